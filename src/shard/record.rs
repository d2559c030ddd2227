//! What an acknowledgement waits for on its way to disk: plain data that leaves the core for the store, in order.

use std::sync::Arc;

use crate::mqtt::packet::{PacketId, QoS};
use crate::session::message::SharedMessage;

/// A Session of this core for as long as it lives: place and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    pub index: u32,
    pub generation: u32,
}

/// One change of durable state.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A QoS 1 or 2 message for durable Sessions of this core, stored once for all of them.
    Queued {
        message: SharedMessage,
        sessions: Vec<SessionKey>,
    },
    /// The retained message of a topic is replaced, or cleared by an empty payload.
    Retained {
        topic: Box<str>,
        payload: Arc<[u8]>,
        qos: QoS,
    },
    /// A durable Session received a QoS 2 PUBLISH under this Packet Identifier [MQTT-4.3.3-2].
    PacketIdReceived { session: SessionKey, packet_id: PacketId },
}
