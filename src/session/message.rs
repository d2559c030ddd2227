//! A message on its way to Sessions: borrowed while it passes through a turn, shared where somebody must keep it.

use std::sync::Arc;

use crate::mqtt::packet::QoS;
use crate::mqtt::topic::TopicName;

/// A published message in somebody else's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub topic: TopicName<'a>,
    pub payload: &'a [u8],
    /// As published; a delivery has the lower of this and what its subscription grants [MQTT-3.8.4-6].
    pub qos: QoS,
}

/// A message that outlives the buffer it came in: topic and payload in one allocation, shared by the Sessions of a core
/// that keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMessage {
    bytes: Arc<[u8]>,
    topic_len: u16,
}

impl SharedMessage {
    pub fn new(message: &Message<'_>) -> SharedMessage {
        let topic = message.topic.as_str();
        let mut bytes = Vec::with_capacity(topic.len() + message.payload.len());
        bytes.extend_from_slice(topic.as_bytes());
        bytes.extend_from_slice(message.payload);
        let bytes = bytes.into();
        let topic_len = u16::try_from(topic.len()).expect("a Topic Name has at most 65,535 bytes");
        SharedMessage { bytes, topic_len }
    }

    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.topic_len as usize]).expect("made from a Topic Name")
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.topic_len as usize..]
    }

    /// Topic and payload, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_message_is_the_message_it_was_made_of() {
        let topic = TopicName::new("kitchen/\u{e4}").unwrap();
        let message = Message {
            topic,
            payload: &[0, 255, 1],
            qos: QoS::AtLeastOnce,
        };
        let shared = SharedMessage::new(&message);
        assert_eq!(shared.topic(), "kitchen/\u{e4}");
        assert_eq!(shared.payload(), &[0, 255, 1]);
        assert_eq!(shared.len(), 13);
    }
}
