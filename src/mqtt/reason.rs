//! Return codes on the wire: CONNACK (section 3.2.2.3) and SUBACK (section 3.9.3).

use super::packet::QoS;

/// CONNACK return code; anything but `Accepted` is followed by a close [MQTT-3.2.2-5].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ConnectReturnCode {
    Accepted = 0,
    UnacceptableProtocolVersion = 1,
    IdentifierRejected = 2,
    ServerUnavailable = 3,
    BadUserNameOrPassword = 4,
    NotAuthorized = 5,
}

/// SUBACK return code of one filter. `Failure` (0x80) exists at level 4 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeReturnCode {
    Granted(QoS),
    Failure,
}

impl SubscribeReturnCode {
    pub const fn bits(self) -> u8 {
        match self {
            SubscribeReturnCode::Granted(qos) => qos as u8,
            SubscribeReturnCode::Failure => 0x80,
        }
    }
}
