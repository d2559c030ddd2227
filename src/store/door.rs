//! One core's door to the store on disk.
//!
//! Owns    what the core has pushed since its last flush, and what it has been told.
//! Called  by the core, through [`Door`](super::Door): plain additions while it pushes, one short lock per flush, none while
//!         there is no news.
//! Holds   - what was pushed between two flushes is handed over as one unit;
//!         - no answer is given out that shows more than the core has been told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::writer::{CoreSide, Records, Shared, Unit};
use crate::shard::RecordNumber;
use crate::shard::record::{Fetch, Fetched, Record};

/// What it is told by the store it tells on in order: see [`writer`](super::writer).
pub struct DiskDoor {
    core: usize,
    shared: Arc<Shared>,
    unit: Records,
    unit_rows: usize,
    unit_bytes: usize,
    fetches: Vec<Fetch>,
    is_urgent: bool,
    pushed: u64,
    /// What the core has been told.
    reported: u64,
    /// The LMDB transaction up to which `reported` covers the records of this core.
    reported_commit: u64,
}

impl DiskDoor {
    pub(super) fn new(core: usize, shared: Arc<Shared>) -> DiskDoor {
        DiskDoor {
            core,
            reported_commit: shared.told_commit.load(Ordering::Acquire),
            shared,
            unit: Vec::new(),
            unit_rows: 0,
            unit_bytes: 0,
            fetches: Vec::new(),
            is_urgent: false,
            pushed: 0,
            reported: 0,
        }
    }

    pub fn push(&mut self, number: RecordNumber, record: Box<Record>) {
        self.unit_rows += record.rows();
        self.unit_bytes += record.len();
        self.is_urgent |= !record.is_lazy();
        self.unit.push(record);
        self.pushed = number.0;
    }

    /// As [`flush`](Self::flush), for records that somebody waits for, whatever they are.
    pub(super) fn flush_awaited(&mut self) {
        self.is_urgent = true;
        self.flush();
    }

    pub fn fetch(&mut self, fetch: Fetch) {
        self.fetches.push(fetch);
    }

    pub fn flush(&mut self) {
        if !self.fetches.is_empty() {
            // What waits for no commit overtakes what does. Fetches of one Session wait for ever later records, and one that
            // waits is with the reading thread before its core is told of the commit: so these stay in order.
            let (core, committed) = (self.core, self.side().committed.load(Ordering::Acquire));
            let ready = self.fetches.extract_if(.., |fetch| fetch.after().0 <= committed);
            self.shared.read_soon(ready.map(|fetch| (core, fetch)));
        }
        if self.unit.is_empty() && self.fetches.is_empty() {
            return;
        }
        let unit = Unit {
            core: self.core,
            last: self.pushed,
            records: std::mem::take(&mut self.unit),
            rows: std::mem::take(&mut self.unit_rows),
            bytes: std::mem::take(&mut self.unit_bytes),
            is_urgent: std::mem::take(&mut self.is_urgent) | !self.fetches.is_empty(),
            fetches: std::mem::take(&mut self.fetches),
        };
        self.shared.hand_over(unit, &mut self.unit);
    }

    pub fn committed(&mut self) -> Option<RecordNumber> {
        // In this order: the store tells the core first, then says up to which transaction everybody was told.
        self.reported_commit = self.shared.told_commit.load(Ordering::Acquire);
        let committed = self.side().committed.load(Ordering::Acquire);
        if committed == self.reported {
            return None;
        }
        self.reported = committed;
        Some(RecordNumber(committed))
    }

    pub fn fetched(&mut self) -> Option<Fetched> {
        let side = &self.shared.cores[self.core];
        if side.inbox_len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut inbox = side.inbox.lock().expect("nobody panics while holding it");
        // It may show what the core has not been told yet: the next `committed` tells it.
        let (commit, _) = inbox.front()?;
        if *commit > self.reported_commit {
            return None;
        }
        let fetched = inbox.pop_front().map(|(_, fetched)| fetched);
        side.inbox_len.store(inbox.len(), Ordering::Release);
        fetched
    }

    /// Whether `committed` or `fetched` have something to say.
    pub fn has_news(&self) -> bool {
        let side = self.side();
        side.committed.load(Ordering::Acquire) != self.reported || side.inbox_len.load(Ordering::Acquire) > 0
    }

    fn side(&self) -> &CoreSide {
        &self.shared.cores[self.core]
    }
}
