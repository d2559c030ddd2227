//! A topic or a filter -> the core that owns it, or all of them.

use crate::mqtt::topic::{TopicFilter, TopicName};

/// Which cores must know of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    One(u16),
    All,
}

/// Maps topics to owner cores; the same on every core of a run.
#[derive(Clone, Debug)]
pub struct ShardKey {}

impl ShardKey {
    /// `levels`: leading levels that make the key (`--shard-levels`), at least 1.
    pub fn new(hash_key: [u64; 4], cores: u16, levels: usize) -> Self {
        let _ = (hash_key, cores, levels);
        todo!()
    }

    /// The core that owns `topic`.
    pub fn owner(&self, topic: TopicName<'_>) -> u16 {
        let _ = topic;
        todo!()
    }

    /// The owners of every topic `filter` can match: one if none of its leading levels is a wildcard.
    pub fn owners(&self, filter: TopicFilter<'_>) -> Owners {
        let _ = filter;
        todo!()
    }
}
