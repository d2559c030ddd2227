//! Return codes on the wire: CONNACK (section 3.2.2.3) and SUBACK (section 3.9.3).
//!
//! Called  by `session` and `shard` (choose a code), by `encode` (writes it), by `client` (reads a broker's).
//! Holds   `from_bits(code.bits())` is `Some(code)`; every other byte is `None`.

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

impl ConnectReturnCode {
    pub const fn bits(self) -> u8 {
        self as u8
    }

    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => ConnectReturnCode::Accepted,
            1 => ConnectReturnCode::UnacceptableProtocolVersion,
            2 => ConnectReturnCode::IdentifierRejected,
            3 => ConnectReturnCode::ServerUnavailable,
            4 => ConnectReturnCode::BadUserNameOrPassword,
            5 => ConnectReturnCode::NotAuthorized,
            _ => return None,
        })
    }
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

    pub const fn from_bits(bits: u8) -> Option<Self> {
        match (bits, QoS::from_bits(bits)) {
            (0x80, _) => Some(SubscribeReturnCode::Failure),
            (_, Some(qos)) => Some(SubscribeReturnCode::Granted(qos)),
            (_, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_one_code_or_none() {
        for bits in 0..=u8::MAX {
            let connect = ConnectReturnCode::from_bits(bits);
            assert_eq!(connect.map(ConnectReturnCode::bits), (bits <= 5).then_some(bits));
            let subscribe = SubscribeReturnCode::from_bits(bits);
            assert_eq!(
                subscribe.map(SubscribeReturnCode::bits),
                (bits <= 2 || bits == 0x80).then_some(bits)
            );
        }
    }
}
