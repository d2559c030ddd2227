//! For the topics this core owns: Topic Filter -> the cores that want it.

use crate::mqtt::topic::{TopicFilter, TopicName};

pub struct Interest {}

impl Interest {
    pub fn new(hash_key: [u64; 4]) -> Self {
        let _ = hash_key;
        todo!()
    }

    /// `core` wants `filter`. Idempotent.
    pub fn add(&mut self, filter: TopicFilter<'_>, core: u16) {
        let _ = (filter, core);
        todo!()
    }

    /// `core` no longer wants `filter`. Idempotent.
    pub fn remove(&mut self, filter: TopicFilter<'_>, core: u16) {
        let _ = (filter, core);
        todo!()
    }

    /// Replaces `cores` by every core with a matching filter, each once, ascending.
    pub fn matches(&mut self, topic: TopicName<'_>, cores: &mut Vec<u16>) {
        let _ = (topic, cores);
        todo!()
    }

    pub fn filter_count(&self) -> usize {
        todo!()
    }
}
