//! Layer 1: who wants this topic.
//!
//! [`subscriptions`] is this core's trie, [`interest`] and [`retained`] serve the topics this core owns,
//! [`shard_key`] names the owner core of a topic.

pub mod interest;
pub mod retained;
pub mod shard_key;
pub mod subscriptions;
