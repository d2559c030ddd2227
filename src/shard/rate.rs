//! How often one connection may publish (`--max-publish-rate`); off unless an operator asks for it.
//!
//! Owns    the counts of the second that runs, and who waits for the next one.
//! Called  by `shard::publish` after each PUBLISH of a client, and on `Input::Tick`.
//! Holds   - nothing is dropped: whoever has published as often as it may is not read until the second is over;
//!         - it costs nothing while it is off.

use std::collections::HashMap;

use ahash::RandomState;

use super::Shard;
use super::clients::paused;
use super::event::{ConnectionId, Millis};

const SECOND_MS: u64 = 1_000;

pub struct PublishRate {
    /// PUBLISH packets in a second; 0: any number.
    max: u32,
    /// Since the clock's start, and what was counted in it.
    second: u64,
    counts: HashMap<ConnectionId, u32, RandomState>,
    waiting: Vec<ConnectionId>,
}

impl PublishRate {
    pub fn new(max: u32, hasher: RandomState) -> PublishRate {
        PublishRate {
            max,
            second: 0,
            counts: HashMap::with_hasher(hasher),
            waiting: Vec::new(),
        }
    }

    #[inline]
    pub fn is_limited(&self) -> bool {
        self.max > 0
    }

    /// When those who wait go on.
    pub fn next_deadline(&self) -> Option<Millis> {
        (!self.waiting.is_empty()).then_some(Millis((self.second + 1) * SECOND_MS))
    }

    /// Counts one; true if it was the last that this connection may publish in this second.
    fn count(&mut self, connection: ConnectionId, now: Millis) -> bool {
        let second = now.0 / SECOND_MS;
        if second != self.second {
            self.second = second;
            self.counts.clear();
        }
        let count = self.counts.entry(connection).or_default();
        *count += 1;
        *count >= self.max
    }
}

impl Shard {
    #[cold]
    pub(super) fn count_publish(&mut self, id: ConnectionId) {
        if self.publish_rate.count(id, self.now_ms) && self.clients.open_connection(id).is_some() {
            self.publish_rate.waiting.push(id);
            self.pause(id, paused::RATE);
        }
    }

    /// The second is over for those who wait.
    pub(super) fn end_second(&mut self, now: Millis) {
        if self.publish_rate.next_deadline().is_some_and(|due| due <= now) {
            self.publish_rate.counts.clear();
            self.publish_rate.second = now.0 / SECOND_MS;
            for id in std::mem::take(&mut self.publish_rate.waiting) {
                self.resume(id, paused::RATE);
            }
        }
    }
}
