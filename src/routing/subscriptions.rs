//! This core's trie: Topic Filter -> the Sessions at home here.

use crate::mqtt::packet::QoS;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// A Session's place in its core's slab. The shard removes a Session's filters before the place is used again.
pub type SessionIndex = u32;

/// One Session that wants a message, and the highest QoS granted to it among its matching filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub session: SessionIndex,
    pub qos: QoS,
}

/// What [`Subscriptions::subscribe`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// No Session of this core held the filter.
    FirstOnCore,
    /// Others hold it; this Session did not.
    Added,
    /// This Session held it; its QoS is replaced [MQTT-3.8.4-3].
    Replaced,
}

/// What [`Subscriptions::unsubscribe`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// The Session was the last holder on this core: the filter is gone.
    LastOnCore,
    Removed,
    /// The Session did not hold this very filter [MQTT-3.10.4-1].
    NotFound,
}

pub struct Subscriptions {}

impl Subscriptions {
    pub fn new(hash_key: [u64; 4]) -> Self {
        let _ = hash_key;
        todo!()
    }

    pub fn subscribe(&mut self, filter: TopicFilter<'_>, session: SessionIndex, qos: QoS) -> Subscribed {
        let _ = (filter, session, qos);
        todo!()
    }

    pub fn unsubscribe(&mut self, filter: TopicFilter<'_>, session: SessionIndex) -> Unsubscribed {
        let _ = (filter, session);
        todo!()
    }

    /// Replaces `targets` by every Session with a matching filter, each once, in a deterministic order.
    pub fn matches(&mut self, topic: TopicName<'_>, targets: &mut Vec<Target>) {
        let _ = (topic, targets);
        todo!()
    }

    /// Distinct filters held.
    pub fn filter_count(&self) -> usize {
        todo!()
    }
}
