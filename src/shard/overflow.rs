//! Publishers that are held back because the queue of a connected client is full.
//!
//! Owns    the full queues of Sessions at home here, with when each is given up; and the connections at home here that are
//!         held back by a queue on any core.
//! Called  by `shard::publish`, `shard::topic` and `shard::deliver` once a message has been given to everybody, by
//!         `shard::deliver` when a queue drains, on `HoldBack` and `LetGo` from other cores, and on `Input::Tick`.
//! Holds   - a full queue holds its publishers back for at most `overflow_wait` from the moment it was full, then it drops
//!           what comes, and holds nobody back before half of it is free again;
//!         - the queue of a client that is away holds nobody back: nobody drains it.
//!
//! ```text
//! home core of the subscriber                                home core of the publisher
//! its queue is full      ─▶ HoldBack{receipt, session}   ─▶ the connection of that receipt is paused
//! half of it is free, the time is over, the client left ─▶ LetGo{session} ─▶ resumed, unless another queue holds it
//! ```

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;

use super::clients::paused;
use super::deadlines::TickNumber;
use super::event::{ConnectionId, Lane, PeerId};
use super::message::ShardMessage;
use super::receipt::ReceiptId;
use super::record::SessionKey;
use super::{Shard, event::Millis};

/// Who published the message that filled a queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Publisher {
    Here(ConnectionId),
    /// At home on this core, under this receipt.
    At(PeerId, ReceiptId),
}

pub struct Overflows {
    wait_ms: u64,
    /// Filled by the message that is being delivered.
    pub(super) filled: Vec<SessionKey>,
    full: HashMap<SessionKey, Full, RandomState>,
    /// In the order of time; an entry counts if it is still the one of its queue.
    due: VecDeque<(TickNumber, SessionKey)>,
    held: Vec<Held>,
}

struct Full {
    due: TickNumber,
    /// Other cores whose publishers were held back.
    told: Vec<PeerId>,
}

/// One connection at home here and one queue that holds it back.
struct Held {
    home: PeerId,
    session: SessionKey,
    connection: ConnectionId,
}

impl Overflows {
    pub fn new(wait_ms: u64, hasher: RandomState) -> Overflows {
        Overflows {
            wait_ms,
            filled: Vec::new(),
            full: HashMap::with_hasher(hasher),
            due: VecDeque::new(),
            held: Vec::new(),
        }
    }

    pub fn next_deadline(&self) -> Option<Millis> {
        self.due.front().map(|(due, _)| due.millis())
    }

    /// Whether any queue of this core is full: what the path of a message asks first.
    pub fn is_any_full(&self) -> bool {
        !self.full.is_empty()
    }
}

impl Shard {
    /// Holds back whoever published the message that was delivered just now, if it filled a queue.
    #[inline]
    pub(super) fn hold_back(&mut self, publisher: Option<Publisher>) {
        if !self.overflows.filled.is_empty() {
            self.hold_back_for_filled(publisher);
        }
    }

    #[cold]
    fn hold_back_for_filled(&mut self, publisher: Option<Publisher>) {
        let mut filled = std::mem::take(&mut self.overflows.filled);
        // A Will has no publisher that could wait.
        if let Some(publisher) = publisher {
            for session in &filled {
                self.hold_back_for(*session, publisher);
            }
        }
        filled.clear();
        self.overflows.filled = filled;
    }

    fn hold_back_for(&mut self, session: SessionKey, publisher: Publisher) {
        let due = TickNumber::at_or_after(self.now.millis().plus(self.overflows.wait_ms));
        let Overflows { full, due: all_due, .. } = &mut self.overflows;
        let full = full.entry(session).or_insert_with(|| {
            all_due.push_back((due, session));
            Full { due, told: Vec::new() }
        });
        match publisher {
            Publisher::Here(connection) => self.held_back(self.core, session, connection),
            Publisher::At(home, receipt) if home == self.core => self.hold_back_sender(home, session, receipt),
            Publisher::At(home, receipt) => {
                if !full.told.contains(&home) {
                    full.told.push(home);
                }
                self.send(home, Lane::ToHome, &ShardMessage::HoldBack { receipt, session });
            }
        }
    }

    /// A queue on core `home` holds back the connection that waits for this receipt. It is open: the core that says so has
    /// not confirmed its part.
    pub(super) fn hold_back_sender(&mut self, home: PeerId, session: SessionKey, receipt: ReceiptId) {
        let connection = self.receipts.sender(receipt).connection;
        self.held_back(home, session, connection);
    }

    fn held_back(&mut self, home: PeerId, session: SessionKey, connection: ConnectionId) {
        if self.clients.open_connection(connection).is_none() {
            return;
        }
        let holds = |held: &Held| held.connection == connection && held.home == home && held.session == session;
        if self.overflows.held.iter().any(holds) {
            return;
        }
        self.overflows.held.push(Held {
            home,
            session,
            connection,
        });
        self.counters.held_back += 1;
        self.pause(connection, paused::OVERFLOW);
    }

    /// Lets the publishers of a queue at home here go on.
    pub(super) fn let_go(&mut self, session: SessionKey) {
        let Some(full) = self.overflows.full.remove(&session) else {
            return;
        };
        for peer in full.told {
            self.send(peer, Lane::ToHome, &ShardMessage::LetGo { session });
        }
        self.let_go_held(self.core, session);
    }

    /// A queue on core `home` holds nobody back any more.
    pub(super) fn let_go_held(&mut self, home: PeerId, session: SessionKey) {
        let mut freed = Vec::new();
        self.overflows.held.retain(|held| {
            let is_free = held.home == home && held.session == session;
            if is_free {
                freed.push(held.connection);
            }
            !is_free
        });
        for connection in freed {
            if !self.overflows.held.iter().any(|held| held.connection == connection) {
                self.resume(connection, paused::OVERFLOW);
            }
        }
    }

    /// Gives up the queues that have been full for too long.
    pub(super) fn give_up_overflows(&mut self) {
        while let Some((due, session)) = self.overflows.due.front().copied()
            && due <= self.now
        {
            self.overflows.due.pop_front();
            if self.overflows.full.get(&session).is_none_or(|full| full.due != due) {
                continue;
            }
            if let Some(client) = self.clients.session(session) {
                client.outbound().give_up();
            }
            self.let_go(session);
        }
    }
}
