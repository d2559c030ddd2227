//! Layer 2: all that one core knows.
//!
//! Owns    the core's Sessions and connections, its trie, and, for the topics it owns, interest and retained messages.
//! Called  by the worker, one [`Input`] at a time, and drained of every [`Output`] before the next.
//! Holds   - no socket, clock, thread or randomness: one seed replays a run;
//!         - a QoS 0 message between two clients of one core allocates nothing between read buffer and outbox;
//!         - every queue has a bound in [`Limits`] or [`crate::limits`], and what gives way there is counted.

pub mod event;
pub mod greeting;
pub mod record;

use crate::metrics::Counters;
use crate::registry::access::{Access, AccountId};

pub use event::{CloseReason, ConnectionId, Input, Lane, Millis, Output, PeerId, RecordNumber, Violation};

/// What an operator may set of a shard.
#[derive(Clone, Debug)]
pub struct Limits {
    pub packet_bytes_max: usize,
    pub inflight_max: usize,
    pub queued_max: usize,
    pub queued_bytes_max: usize,
    pub outbox_bytes_max: usize,
    pub subscriptions_max: usize,
}

/// What a shard is made with; the same on every core of a run but for `core`.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub core: PeerId,
    pub cores: u16,
    pub shard_levels: usize,
    /// Key of every hash: random in a broker, fixed in a simulation.
    pub hash_key: [u64; 4],
    pub limits: Limits,
    pub access: Access,
}

/// The state of one core.
pub struct Shard {
    counters: Counters,
}

impl Shard {
    pub fn new(config: ShardConfig) -> Shard {
        let _ = config;
        todo!()
    }

    /// The home core of a client, on any core of a run.
    pub fn home(&self, account: AccountId, client_id: &str) -> PeerId {
        let _ = (account, client_id);
        todo!()
    }

    /// Feeds one input. For `Received`, returns how many bytes were consumed; for all others, 0. `now` never goes back.
    pub fn handle(&mut self, input: Input<'_>, now: Millis) -> usize {
        let _ = (input, now);
        todo!()
    }

    /// The next thing to do; `None` ends the turn.
    pub fn poll_output(&mut self) -> Option<Output> {
        todo!()
    }

    /// Encoded bytes that wait for this socket, oldest first; empty for a connection that is not known.
    pub fn unsent(&self, connection: ConnectionId) -> &[u8] {
        let _ = connection;
        todo!()
    }

    /// All messages that wait for a peer, as one batch of at most about
    /// [`MESH_BACKLOG_BYTES_MAX`](crate::limits::MESH_BACKLOG_BYTES_MAX); `None` if nothing waits. Connections that were
    /// paused for this peer resume (outputs follow).
    pub fn take_batch(&mut self, peer: PeerId, lane: Lane) -> Option<Vec<u8>> {
        let _ = (peer, lane);
        todo!()
    }

    /// Gives an emptied batch back for reuse, whichever core made it.
    pub fn recycle_batch(&mut self, batch: Vec<u8>) {
        let _ = batch;
        todo!()
    }

    /// Whether batches of `Lane::ToOwner` may be fed now; those of `Lane::ToHome` always may.
    pub fn takes_requests(&self) -> bool {
        todo!()
    }

    /// When a `Tick` is due at the latest; `None` while nothing is timed.
    pub fn next_deadline(&self) -> Option<Millis> {
        todo!()
    }

    /// Connections that are open now.
    pub fn connection_count(&self) -> usize {
        todo!()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }
}
