//! Another door to the store, for any thread: the control thread's.
//!
//! Owns    the closures that wait for a commit.
//! Called  by whoever holds a [`Client`]; by the storage thread, which rings it after a commit as it rings a core.
//! Holds   - what is handed over at once is in one transaction, or in none; one after another in the order of the calls;
//!         - a closure runs once its records are committed, and never if they are not by the stop of the store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::door::DiskDoor;
use super::error::StoreError;
use super::lmdb::{Fault, View};
use super::writer::{Ring, Shared};
use crate::shard::RecordNumber;
use crate::shard::record::Record;

#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

struct State {
    door: DiskDoor,
    pushed: u64,
    /// In the order of their records.
    waiting: VecDeque<(RecordNumber, Then)>,
}

type Then = Box<dyn FnOnce() + Send>;

/// Is rung before there is a client.
#[derive(Clone, Default)]
pub(super) struct Bell(Arc<OnceLock<Weak<Inner>>>);

impl Bell {
    pub(super) fn ring(&self) -> Ring {
        let bell = self.clone();
        Box::new(move || {
            if let Some(client) = bell.0.get().and_then(Weak::upgrade) {
                client.rung();
            }
        })
    }
}

impl Client {
    pub(super) fn new(door: DiskDoor, shared: Arc<Shared>, bell: &Bell) -> Client {
        let state = State {
            door,
            pushed: 0,
            waiting: VecDeque::new(),
        };
        let inner = Arc::new(Inner {
            shared,
            state: Mutex::new(state),
        });
        assert!(bell.0.set(Arc::downgrade(&inner)).is_ok(), "a bell has one client");
        Client(inner)
    }

    /// Hands records over as one unit: one transaction has all of them, or none has any. `then` runs once they are committed,
    /// on the storage thread: it only hands over.
    pub fn persist(&self, records: Vec<Record>, then: impl FnOnce() + Send + 'static) {
        if records.is_empty() {
            return then();
        }
        let mut state = self.0.state();
        for record in records {
            state.pushed += 1;
            let number = RecordNumber(state.pushed);
            state.door.push(number, Box::new(record));
        }
        let last = RecordNumber(state.pushed);
        state.waiting.push_back((last, Box::new(then)));
        state.door.flush_awaited();
    }

    /// What is committed now. Blocks, for page faults at least: call it on a blocking thread. While it looks, pages that
    /// others free are not used again, and the store cannot grow: look for milliseconds, not for minutes.
    pub fn view<T>(&self, look: impl FnOnce(&View<'_>) -> Result<T, Fault>) -> Result<T, StoreError> {
        let lmdb = &self.0.shared.lmdb;
        lmdb.view(look).map_err(|fault| lmdb.error(fault))
    }
}

impl Inner {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rung(&self) {
        let mut state = self.state();
        let Some(committed) = state.door.committed() else {
            return;
        };
        let ready = state.waiting.partition_point(|(last, _)| *last <= committed);
        let ready: Vec<_> = state.waiting.drain(..ready).collect();
        // They may come back here.
        drop(state);
        for (_, then) in ready {
            then();
        }
    }
}
