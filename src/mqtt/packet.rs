//! The control packets the heart works on. PUBLISH, SUBSCRIBE and UNSUBSCRIBE borrow from the read buffer: nothing is
//! allocated between a socket's bytes and an outbox. CONNECT is owned, since it travels to the client's home core.

use std::num::NonZeroU16;

use super::topic::{TopicFilter, TopicName};

/// Protocol level of a connection (CONNECT, section 3.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// MQTT 3.1, protocol name `MQIsdp`.
    V31 = 3,
    /// MQTT 3.1.1, protocol name `MQTT`.
    V311 = 4,
}

/// Quality of Service (section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of these two bits; `None` for the reserved value 3 [MQTT-3.3.1-4].
    pub const fn from_bits(bits: u8) -> Option<QoS> {
        match bits {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}

/// A Packet Identifier: never zero [MQTT-2.3.1-1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    pub const fn new(id: u16) -> Option<PacketId> {
        match NonZeroU16::new(id) {
            Some(id) => Some(PacketId(id)),
            None => None,
        }
    }

    pub const fn get(self) -> u16 {
        self.0.get()
    }

    /// The identifier after this one; 65,535 is followed by 1.
    pub const fn next(self) -> PacketId {
        match NonZeroU16::new(self.0.get().wrapping_add(1)) {
            Some(id) => PacketId(id),
            None => PacketId(NonZeroU16::MIN),
        }
    }
}

/// What a CONNECT asked for, checked (section 3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    pub level: Level,
    pub clean_session: bool,
    /// Seconds; 0 turns the mechanism off.
    pub keep_alive_s: u16,
    /// May be empty: the access rules decide what that means.
    pub client_id: String,
    pub will: Option<Will>,
    pub user_name: Option<String>,
    /// Binary data; may be empty.
    pub password: Option<Vec<u8>>,
}

/// The Will Message of a CONNECT. Its topic has been checked as a [`TopicName`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: QoS,
    pub retain: bool,
}

/// A PUBLISH in the read buffer. `packet_id` is present exactly when `qos` is above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
    pub topic: TopicName<'a>,
    pub packet_id: Option<PacketId>,
    pub payload: &'a [u8],
}

/// A packet a client may send after its CONNECT was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Publish(Publish<'a>),
    PubAck(PacketId),
    PubRec(PacketId),
    PubRel(PacketId),
    PubComp(PacketId),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    PingReq,
    Disconnect,
}

/// A SUBSCRIBE whose whole payload has been checked [MQTT-3.8.3-3] [MQTT-3.8.3-4]; at least one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    pub packet_id: PacketId,
    pub(super) entries: &'a [u8],
}

/// An UNSUBSCRIBE whose whole payload has been checked [MQTT-3.10.3-2]; at least one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    pub packet_id: PacketId,
    pub(super) entries: &'a [u8],
}

impl<'a> Subscribe<'a> {
    /// The (Topic Filter, requested QoS) pairs in the order of the packet.
    pub fn filters(&self) -> impl Iterator<Item = (TopicFilter<'a>, QoS)> + use<'a> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            let (filter, after) = checked_string(rest)?;
            let (&qos, after) = after.split_first()?;
            rest = after;
            Some((TopicFilter::trusted(filter), QoS::from_bits(qos)?))
        })
    }
}

impl<'a> Unsubscribe<'a> {
    /// The Topic Filters in the order of the packet.
    pub fn filters(&self) -> impl Iterator<Item = TopicFilter<'a>> + use<'a> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            let (filter, after) = checked_string(rest)?;
            rest = after;
            Some(TopicFilter::trusted(filter))
        })
    }
}

/// A length-prefixed string that `decode` has already checked.
fn checked_string(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(u16::from_be_bytes(*length) as usize)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}
