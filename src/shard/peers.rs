//! What waits for the other cores: per peer and lane one growing batch, taken as a whole when the ring has room.
//!
//! Owns    the batches and the connections paused because of them.
//! Called  by everything in `shard` that speaks to another core; emptied by the worker through `Shard::take_batch`.
//! Holds   - a batch passes [`MESH_BACKLOG_BYTES_MAX`] by the messages of one frame, one run or one batch at most: the connection
//!           that wrote it is paused until the batch is taken, and while a `ToHome` batch is past it, no `ToOwner` batch
//!           is accepted from others;
//!         - nothing is dropped here.

use crate::limits::MESH_BACKLOG_BYTES_MAX;

use super::event::{ConnectionId, Lane, PeerId};
use super::message::ShardMessage;

/// Capacity of emptied batches that one core keeps for reuse. Those made by other cores come here too.
const SPARE_BYTES_MAX: usize = 1024 * 1024;
/// Their number, for each peer and lane. A core that is sent more batches than it sends would gather small ones for hours.
const SPARES_MAX: usize = 4;

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    paused: Vec<ConnectionId>,
}

/// The batches of one core for all others.
pub struct Peers {
    /// By peer, then lane.
    waiting: Vec<[Waiting; 2]>,
    /// `ToHome` batches past the bound.
    backed_up: usize,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

/// What [`Peers::send`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendState {
    /// The batch was empty: the worker must hear of it.
    pub is_first: bool,
    /// The batch is past its bound: whoever caused this pauses.
    pub is_full: bool,
}

impl Peers {
    pub fn new(cores: u16) -> Peers {
        let waiting = (0..cores).map(|_| Default::default()).collect();
        Peers {
            waiting,
            backed_up: 0,
            spare: Vec::new(),
            spare_bytes: 0,
        }
    }

    #[inline]
    pub fn send(&mut self, peer: PeerId, lane: Lane, message: &ShardMessage<'_>) -> SendState {
        let waiting = &mut self.waiting[peer.0 as usize][lane as usize];
        let before = waiting.bytes.len();
        if before == 0
            && waiting.bytes.capacity() == 0
            && let Some(spare) = self.spare.pop()
        {
            self.spare_bytes -= spare.capacity();
            waiting.bytes = spare;
        }
        message.encode(&mut waiting.bytes);
        let is_full = waiting.bytes.len() >= MESH_BACKLOG_BYTES_MAX;
        if is_full && before < MESH_BACKLOG_BYTES_MAX && lane == Lane::ToHome {
            self.backed_up += 1;
        }
        SendState {
            is_first: before == 0,
            is_full,
        }
    }

    /// `connection` is paused until the batch for this peer is taken.
    pub fn pause(&mut self, peer: PeerId, lane: Lane, connection: ConnectionId) {
        self.waiting[peer.0 as usize][lane as usize].paused.push(connection);
    }

    /// Takes the whole batch, and the connections that waited for that.
    pub fn take(&mut self, peer: PeerId, lane: Lane) -> Option<(Vec<u8>, Vec<ConnectionId>)> {
        let waiting = &mut self.waiting[peer.0 as usize][lane as usize];
        if waiting.bytes.is_empty() {
            return None;
        }
        if waiting.bytes.len() >= MESH_BACKLOG_BYTES_MAX && lane == Lane::ToHome {
            self.backed_up -= 1;
        }
        Some((std::mem::take(&mut waiting.bytes), std::mem::take(&mut waiting.paused)))
    }

    pub fn recycle(&mut self, mut batch: Vec<u8>) {
        let has_room = self.spare_bytes + batch.capacity() <= SPARE_BYTES_MAX;
        if has_room && self.spare.len() < self.waiting.len() * 2 * SPARES_MAX {
            batch.clear();
            self.spare_bytes += batch.capacity();
            self.spare.push(batch);
        }
    }

    /// Whether requests of other cores, which make this core send `ToHome`, may be taken now.
    pub fn takes_requests(&self) -> bool {
        self.backed_up == 0
    }

    /// Bytes that wait for all peers.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().flatten().map(|waiting| waiting.bytes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::receipt::ReceiptId;
    use super::*;

    #[test]
    fn spare_batches_are_bounded_in_bytes_and_number_and_used_again() {
        let mut peers = Peers::new(2);
        for _ in 0..10 {
            peers.recycle(Vec::with_capacity(SPARE_BYTES_MAX / 4));
        }
        assert_eq!((peers.spare.len(), peers.spare_bytes), (4, SPARE_BYTES_MAX));
        let message = ShardMessage::Delivered { receipt: ReceiptId(1) };
        peers.send(PeerId(1), Lane::ToHome, &message);
        assert_eq!(peers.spare_bytes, SPARE_BYTES_MAX / 4 * 3);
        let (batch, _) = peers.take(PeerId(1), Lane::ToHome).unwrap();
        assert_eq!(batch.capacity(), SPARE_BYTES_MAX / 4);
        let mut peers = Peers::new(2);
        for _ in 0..1000 {
            peers.recycle(Vec::with_capacity(64));
        }
        assert_eq!(peers.spare.len(), 2 * 2 * SPARES_MAX);
    }

    #[test]
    fn requests_wait_while_a_batch_for_a_home_core_is_past_its_bound() {
        let mut peers = Peers::new(3);
        let message = ShardMessage::Delivered { receipt: ReceiptId(1) };
        assert_eq!(
            peers.send(PeerId(1), Lane::ToHome, &message),
            SendState {
                is_first: true,
                is_full: false
            }
        );
        while !peers.send(PeerId(1), Lane::ToHome, &message).is_full {
            assert!(peers.takes_requests());
        }
        peers.send(PeerId(1), Lane::ToHome, &message);
        assert!(!peers.takes_requests());
        let connection = ConnectionId {
            index: 4,
            generation: 1,
        };
        peers.pause(PeerId(1), Lane::ToHome, connection);
        let (batch, paused) = peers.take(PeerId(1), Lane::ToHome).unwrap();
        assert!(batch.len() >= MESH_BACKLOG_BYTES_MAX);
        assert_eq!(paused, [connection]);
        assert!(peers.takes_requests());
        assert_eq!(peers.take(PeerId(1), Lane::ToHome), None);
    }
}
