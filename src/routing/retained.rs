//! For the topics this core owns: Topic Name -> retained message.

use std::collections::BTreeMap;
use std::ops::Bound;
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

#[derive(Default)]
pub struct RetainedMessages {
    topics: BTreeMap<Box<str>, Retained>,
    sequence: u64,
}

impl RetainedMessages {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or, with an empty payload, clears [MQTT-3.3.1-10]; returns the sequence of the change.
    pub fn set(&mut self, topic: TopicName<'_>, payload: &[u8], qos: QoS) -> u64 {
        self.sequence += 1;
        if payload.is_empty() {
            self.topics.remove(topic.as_str());
        } else {
            let retained = Retained {
                payload: payload.into(),
                qos,
                sequence: self.sequence,
            };
            self.topics.insert(topic.as_str().into(), retained);
        }
        self.sequence
    }

    /// The sequence of the newest change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether any topic can match: cheap, may say true where a scan finds nothing.
    pub fn may_match(&self, filter: TopicFilter<'_>) -> bool {
        self.next(filter, None, u64::MAX).is_some()
    }

    /// The next retained message, in the order of topics, that matches `filter`, whose topic is greater than `after`, and
    /// whose sequence is at most `sequence_max`.
    pub fn next<'a>(
        &'a self,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        sequence_max: u64,
    ) -> Option<(&'a str, &'a Retained)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.topics
            .range::<str, _>((from, Bound::Unbounded))
            .find(|(topic, retained)| retained.sequence <= sequence_max && filter.matches(TopicName::trusted(topic)))
            .map(|(topic, retained)| (&**topic, retained))
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
