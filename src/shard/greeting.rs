//! The first packet of a connection, judged on the accepting core before the connection travels to its home core.
//! Pure: the shell calls [`greet`] with what has arrived so far.

use crate::limits::CONNECT_BYTES_MAX;
use crate::mqtt::decode::{ConnectError, decode_connect};
use crate::mqtt::error::DecodeError;
use crate::mqtt::frame::{Framing, next_frame};
use crate::mqtt::packet::{Connect, Level};
use crate::mqtt::reason::ConnectReturnCode;
use crate::registry::access::{Access, AccountId};

/// What the first bytes of a connection amount to.
#[derive(Debug, PartialEq)]
pub enum Greeting {
    /// Not a whole packet yet.
    Incomplete,
    /// A CONNECT that may come in; `consumed` bytes belong to it.
    Accepted {
        connect: Box<Connect>,
        account: AccountId,
        consumed: usize,
    },
    /// Send CONNACK with this code, then close [MQTT-3.2.2-5].
    Refused(ConnectReturnCode),
    /// Close, nothing sent.
    Malformed(DecodeError),
}

/// Who says who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The CONNECT itself, by user name and password.
    Claimed,
    /// The common name of the certificate it has shown, whatever user name the CONNECT gives. None: it has no name there,
    /// which is refused.
    Certificate(Option<String>),
}

/// Judges the bytes received so far. `identity` is asked for once there is a whole CONNECT. An empty client identifier, where
/// one may be empty, is replaced by what `fresh_client_id` returns [MQTT-3.1.3-6].
pub fn greet(
    bytes: &[u8],
    identity: impl FnOnce() -> Identity,
    access: &Access,
    client_id_chars_max: usize,
    fresh_client_id: impl FnOnce() -> String,
) -> Greeting {
    // The type is judged by the first byte: another protocol is not given the time to announce a length.
    if let Some(first) = bytes.first()
        && first >> 4 != 1
    {
        return Greeting::Malformed(DecodeError::FirstPacketNotConnect);
    }
    let frame = match next_frame(bytes, CONNECT_BYTES_MAX) {
        Ok(Framing::Whole(frame)) => frame,
        Ok(Framing::Missing(_)) => return Greeting::Incomplete,
        Err(error) => return Greeting::Malformed(error),
    };
    let mut connect = match decode_connect(frame) {
        Ok(connect) => connect,
        Err(ConnectError::UnsupportedLevel(_)) => {
            return Greeting::Refused(ConnectReturnCode::UnacceptableProtocolVersion);
        }
        Err(ConnectError::Malformed(error)) => return Greeting::Malformed(error),
    };
    if connect.client_id.is_empty() {
        // Level 3 has no server-made identifiers, and a durable Session cannot be found again without one [MQTT-3.1.3-8].
        if connect.level == Level::V31 || !connect.clean_session {
            return Greeting::Refused(ConnectReturnCode::IdentifierRejected);
        }
        connect.client_id = fresh_client_id();
    } else if connect.client_id.chars().nth(client_id_chars_max).is_some() {
        return Greeting::Refused(ConnectReturnCode::IdentifierRejected);
    }
    match identity() {
        Identity::Claimed => {}
        Identity::Certificate(Some(name)) => connect.user_name = Some(name),
        Identity::Certificate(None) => return Greeting::Refused(ConnectReturnCode::NotAuthorized),
    }
    match access.authenticate(&connect) {
        Ok(account) => Greeting::Accepted {
            connect: Box::new(connect),
            account,
            consumed: frame.len,
        },
        Err(code) => Greeting::Refused(code),
    }
}
