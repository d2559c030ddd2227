//! Publishers that are held back because the queue of a connected client is full, or the disk is behind.
//!
//! Owns    the full queues of Sessions at home here, with when each is given up; and the connections at home here that are
//!         held back by a queue on any core. What waits for the disk is one more such queue of each core, [`STORE`].
//! Called  by `shard::publish`, `shard::topic` and `shard::deliver` once a message has been given to everybody, by
//!         `shard::deliver` when a queue drains, on `HoldBack` and `LetGo` from other cores, and on `Input::Tick`.
//! Holds   - a full queue holds its publishers back for at most `overflow_wait` from the moment it was full, then it drops
//!           what comes, and holds nobody back before half of it is free again;
//!         - nobody is held back by its own queue, whose acknowledgements would not be read either;
//!         - the queue of a client that is away holds nobody back: nobody drains it;
//!         - the disk is waited for as long as it takes: nothing that has been taken is dropped because of it.
//!
//! ```text
//! home core of the subscriber                                home core of the publisher
//! its queue is full      ─▶ HoldBack{receipt, session}   ─▶ the connection of that receipt is paused
//! half of it is free, the time is over, the client left ─▶ LetGo{session} ─▶ resumed, unless another queue holds it
//! ```

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;
use indexmap::IndexSet;

use crate::limits::STORE_BACKLOG_BYTES_MAX;

use super::clients::paused;
use super::deadlines::TickNumber;
use super::event::{ConnectionId, Lane, PeerId};
use super::message::ShardMessage;
use super::receipt::{ReceiptId, Sender};
use super::record::{SessionKey, SessionNumber};
use super::{Shard, event::Millis};

/// The records of a core that are not on disk, among its queues.
const STORE: SessionKey = SessionKey {
    index: u32::MAX,
    number: SessionNumber(u64::MAX),
};

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
    /// By core and queue.
    held: HashMap<(PeerId, SessionKey), IndexSet<ConnectionId, RandomState>, RandomState>,
    /// How many queues hold a connection back.
    holds: HashMap<ConnectionId, u32, RandomState>,
}

struct Full {
    /// `None`: it is never given up.
    due: Option<TickNumber>,
    /// Other cores whose publishers were held back.
    told: Vec<PeerId>,
}

impl Overflows {
    pub fn new(wait_ms: u64, hasher: RandomState) -> Overflows {
        Overflows {
            wait_ms,
            filled: Vec::new(),
            full: HashMap::with_hasher(hasher.clone()),
            due: VecDeque::new(),
            held: HashMap::with_hasher(hasher.clone()),
            holds: HashMap::with_hasher(hasher),
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

    /// Holds back whoever made this core write more than the disk keeps up with.
    #[inline]
    pub(super) fn hold_back_for_disk(&mut self, publisher: Option<Publisher>) {
        if self.unconfirmed_bytes > STORE_BACKLOG_BYTES_MAX
            && let Some(publisher) = publisher
        {
            self.hold_back_for(STORE, publisher);
        }
    }

    /// The disk has caught up.
    pub(super) fn let_go_for_disk(&mut self) {
        if self.overflows.is_any_full() && self.unconfirmed_bytes <= STORE_BACKLOG_BYTES_MAX / 2 {
            self.let_go(STORE);
        }
    }

    #[cold]
    fn hold_back_for(&mut self, session: SessionKey, publisher: Publisher) {
        let due = TickNumber::at_or_after(self.now.millis().plus(self.overflows.wait_ms));
        let due = (session != STORE).then_some(due);
        let Overflows { full, due: all_due, .. } = &mut self.overflows;
        let full = full.entry(session).or_insert_with(|| {
            all_due.extend(due.map(|due| (due, session)));
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
        let connection = match self.receipts.sender(receipt) {
            Sender::Client(sender) => sender.connection,
            Sender::Run(sender) => sender.connection,
            // Waits for the answer, and sends nothing meanwhile.
            Sender::Asker(_) => return,
        };
        self.held_back(home, session, connection);
    }

    fn held_back(&mut self, home: PeerId, session: SessionKey, connection: ConnectionId) {
        let Some(open) = self.clients.open_connection(connection) else {
            return;
        };
        // Its own queue drains by what it sends: that must be read.
        if home == self.core && session.index == open.client {
            return;
        }
        let Overflows { held, holds, .. } = &mut self.overflows;
        // Their order is that of the resumes; a set, since one queue may hold back every publisher there is.
        let hasher = holds.hasher().clone();
        let by_queue = held
            .entry((home, session))
            .or_insert_with(|| IndexSet::with_hasher(hasher));
        if !by_queue.insert(connection) {
            return;
        }
        *holds.entry(connection).or_default() += 1;
        self.counters.held_back += 1;
        self.pause(connection, paused::HELD_BACK);
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
        let Some(held) = self.overflows.held.remove(&(home, session)) else {
            return;
        };
        for connection in held {
            let holds = self
                .overflows
                .holds
                .get_mut(&connection)
                .expect("counted when it was held");
            *holds -= 1;
            if *holds == 0 {
                self.overflows.holds.remove(&connection);
                self.resume(connection, paused::HELD_BACK);
            }
        }
    }

    /// Gives up the queues that have been full for too long.
    pub(super) fn give_up_overflows(&mut self) {
        while let Some((due, session)) = self.overflows.due.front().copied()
            && due <= self.now
        {
            self.overflows.due.pop_front();
            if self
                .overflows
                .full
                .get(&session)
                .is_none_or(|full| full.due != Some(due))
            {
                continue;
            }
            if let Some(client) = self.clients.session(session) {
                client.outbound().give_up();
            }
            self.let_go(session);
        }
    }
}
