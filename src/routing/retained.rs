//! For the topics this core owns: Topic Name -> retained message.

use std::sync::Arc;

use crate::mqtt::packet::QoS;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// The last retained message of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    pub payload: Arc<[u8]>,
    pub qos: QoS,
    /// Position in the owner core's history of retained changes.
    pub sequence: u64,
}

pub struct RetainedMessages {}

impl RetainedMessages {
    pub fn new() -> Self {
        todo!()
    }

    /// Sets or, with an empty payload, clears [MQTT-3.3.1-10]; returns the sequence of the change.
    pub fn set(&mut self, topic: TopicName<'_>, payload: &[u8], qos: QoS) -> u64 {
        let _ = (topic, payload, qos);
        todo!()
    }

    /// The sequence of the newest change.
    pub fn sequence(&self) -> u64 {
        todo!()
    }

    /// Whether any topic can match: cheap, may say true where a scan finds nothing.
    pub fn may_match(&self, filter: TopicFilter<'_>) -> bool {
        let _ = filter;
        todo!()
    }

    /// The next retained message, in the order of topics, that matches `filter`, whose topic is greater than `after`, and
    /// whose sequence is at most `sequence_max`.
    pub fn next<'a>(
        &'a self,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        sequence_max: u64,
    ) -> Option<(&'a str, &'a Retained)> {
        let _ = (filter, after, sequence_max);
        todo!()
    }

    pub fn len(&self) -> usize {
        todo!()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
