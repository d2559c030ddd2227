//! What runs have met.
//!
//! Owns    the counts that no counter of the broker's has.
//! Called  by every part of the world; `main` and `simulate` add up and print.

use crate::platform::Happened;

/// What a run has met that no counter of the broker's counts.
#[derive(Debug, Default, serde::Serialize)]
pub struct Met {
    /// Inputs that shards have handled.
    pub turns: u64,
    /// Connections that the network lost.
    pub resets: u64,
    /// Connections whose client went without the server hearing of it.
    pub half_open: u64,
    /// Connections on which a client broke a rule.
    pub nonsense: u64,
    /// Times from which on every commit failed.
    pub outages: u64,
    /// Batches that waited because the ring was full.
    pub rings_full: u64,
    pub commits_failed: u64,
    pub fetches: u64,
    pub fetches_retained: u64,
    pub crashes: u64,
    /// Starts with another number of cores than before.
    pub other_cores: u64,
    /// QoS 2 messages that a start found on disk without their PUBLISH.
    pub in_doubt: u64,
    /// Those that came again between cores.
    pub in_doubt_again: u64,
    /// PUBLISH packets with DUP of what was sent before a crash.
    pub sent_again: u64,
    /// CONNECT packets that were refused.
    pub refused: u64,
    /// Messages that came to clients on a topic that begins with `$`.
    pub dollar_topics: u64,
    /// Packets written to abusers, and connections of theirs that were closed for what they sent.
    pub abuse_answered: u64,
    pub abuse_closed: u64,
    #[serde(flatten)]
    pub happened: Happened,
}

impl Met {
    pub fn add(&mut self, other: &Met) {
        self.turns += other.turns;
        self.resets += other.resets;
        self.half_open += other.half_open;
        self.nonsense += other.nonsense;
        self.outages += other.outages;
        self.rings_full += other.rings_full;
        self.commits_failed += other.commits_failed;
        self.fetches += other.fetches;
        self.fetches_retained += other.fetches_retained;
        self.crashes += other.crashes;
        self.other_cores += other.other_cores;
        self.in_doubt += other.in_doubt;
        self.in_doubt_again += other.in_doubt_again;
        self.sent_again += other.sent_again;
        self.refused += other.refused;
        self.dollar_topics += other.dollar_topics;
        self.abuse_answered += other.abuse_answered;
        self.abuse_closed += other.abuse_closed;
        self.happened.add(&other.happened);
    }
}
