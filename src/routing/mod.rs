//! Layer 1: who wants this topic.
//!
//! [`subscriptions`] is this core's trie, [`interest`] and [`retained`] serve the topics this core owns,
//! [`shard_key`] names the owner core of a topic. [`topic_order`] finds a filter's matches in an ordered store of
//! topics; [`recent`] keeps the last answer. `filters` is what subscriptions and interest share: `id_table` finds whole
//! texts, `trie` wildcards; `holders` is the Sessions of one filter, `text` a text kept in place, `pages` a slab.

mod filters;
mod holders;
mod id_table;
pub mod interest;
mod pages;
pub mod recent;
pub mod retained;
pub mod shard_key;
pub mod subscriptions;
mod text;
pub mod topic_order;
mod trie;
