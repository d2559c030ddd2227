//! The disk: one store for all cores, slow at every step, which fails now and then, and forgets at a crash what it has
//! not committed.
//!
//! Owns    what is committed, the units that wait for their commit in the order in which cores handed them over, and the
//!         answers it owes.
//! Called  by `world`, one step of one thing at a time.
//! Holds   - what a core pushes between two hand-overs is one unit: it is in one transaction, or in none;
//!         - a transaction takes the oldest units, of whatever cores; if it fails, nothing of it is there, and it is tried
//!           again;
//!         - between what is on disk and what a core has been told there may be a crash;
//!         - a wish to read is read after the commit of the record that it names, those of one Session in order, and
//!           answered after its core has been told of all that the answer may show.

use std::collections::VecDeque;

use skein::registry::datapoint::StoredDatapoints;
use skein::shard::RecordNumber;
use skein::shard::record::{Fetch, Fetched, QueueFetch, Record, Stored};
use skein::store::memory::Tables;

use crate::random::Random;
use crate::rows;

/// A record on its way: its place among all records of a run of the simulation, and among those of its core.
struct Pushed {
    serial: usize,
    number: RecordNumber,
    record: Box<Record>,
}

struct Unit {
    core: usize,
    records: Vec<Pushed>,
}

struct Wish {
    fetch: Fetch,
    /// What was read, and the last record of the core that was on disk then.
    answer: Option<(Fetched, RecordNumber)>,
}

/// One core's end.
#[derive(Default)]
struct Door {
    open: Vec<Pushed>,
    pushed: RecordNumber,
    on_disk: RecordNumber,
    confirmed: RecordNumber,
    wishes: VecDeque<Wish>,
}

pub struct Disk {
    tables: Tables,
    datapoints: StoredDatapoints,
    doors: Vec<Door>,
    queue: VecDeque<Unit>,
    /// Units at the head of `queue` that the transaction now being written has; 0: none is.
    writing: usize,
    /// No more entries than this in one answer about a queue.
    entries_max: usize,
    pub commits: u64,
    pub failures: u64,
    pub fetches: u64,
    pub fetches_retained: u64,
}

impl Disk {
    pub fn new(entries_max: usize) -> Disk {
        Disk {
            tables: Tables::default(),
            datapoints: StoredDatapoints::until(0),
            doors: Vec::new(),
            queue: VecDeque::new(),
            writing: 0,
            entries_max,
            commits: 0,
            failures: 0,
            fetches: 0,
            fetches_retained: 0,
        }
    }

    /// What a start is given.
    pub fn stored(&self, retained_bytes_max: usize) -> Stored {
        self.tables.stored(retained_bytes_max)
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What is on disk of datapoints, as all cores of this process know it.
    pub fn datapoints(&self) -> &StoredDatapoints {
        &self.datapoints
    }

    /// What somebody else than a core writes, and waits for.
    pub fn put(&mut self, record: &Record) {
        self.tables.apply(record);
    }

    /// A process with this many cores begins; of the last there is what is on disk.
    pub fn start(&mut self, cores: usize) {
        assert!(
            self.writing == 0,
            "whether what is being written is there has been decided"
        );
        self.queue.clear();
        self.doors = (0..cores).map(|_| Door::default()).collect();
        self.datapoints = StoredDatapoints::until(self.tables.stored(0).newest_datapoint_ms);
    }

    pub fn push(&mut self, core: usize, serial: usize, number: RecordNumber, record: Box<Record>) {
        let door = &mut self.doors[core];
        assert_eq!(number.0, door.pushed.0 + 1, "records are numbered in order");
        door.pushed = number;
        door.open.push(Pushed { serial, number, record });
    }

    pub fn fetch(&mut self, core: usize, mut fetch: Fetch) {
        if let Fetch::Queue(QueueFetch { entries_max, .. }) = &mut fetch {
            assert!(*entries_max > 0, "an answer without entries would be asked for again");
            *entries_max = self.entries_max.min(*entries_max);
        }
        let door = &mut self.doors[core];
        assert!(
            fetch.after() <= door.pushed,
            "nothing is waited for that was not pushed"
        );
        door.wishes.push_back(Wish { fetch, answer: None });
    }

    /// A core hands over what it has pushed.
    pub fn hand_over(&mut self, core: usize) -> bool {
        let records = std::mem::take(&mut self.doors[core].open);
        let is_any = !records.is_empty();
        if is_any {
            self.queue.push_back(Unit { core, records });
        }
        is_any
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub fn is_writing(&self) -> bool {
        self.writing > 0
    }

    /// A transaction with the first `units` begins.
    pub fn begin(&mut self, units: usize) {
        assert!(self.writing == 0 && units <= self.queue.len());
        self.writing = units;
    }

    pub fn fail(&mut self) {
        assert!(self.writing > 0);
        self.writing = 0;
        self.failures += 1;
    }

    /// The transaction is on disk. Returns the serials of its records.
    pub fn commit(&mut self) -> Vec<usize> {
        let mut serials = Vec::new();
        for Unit { core, records } in self.queue.drain(..self.writing) {
            for Pushed { serial, number, record } in records {
                rows::check(&record);
                self.tables.apply(&record);
                if let Record::Datapoint(datapoint) = &*record {
                    self.datapoints.committed(datapoint.id);
                }
                self.doors[core].on_disk = number;
                serials.push(serial);
            }
        }
        self.writing = 0;
        self.commits += 1;
        serials
    }

    /// Records of a core that are on disk, and that it has not been told of.
    pub fn unconfirmed(&self, core: usize) -> u64 {
        self.doors[core].on_disk.0 - self.doors[core].confirmed.0
    }

    /// Tells a core of the next `count`.
    pub fn confirm(&mut self, core: usize, count: u64) -> RecordNumber {
        let door = &mut self.doors[core];
        door.confirmed.0 += count;
        assert!(door.confirmed <= door.on_disk);
        door.confirmed
    }

    /// Reads for one wish of a core's, if what it waits for is there. Wishes of one Session are read in order.
    pub fn read(&mut self, core: usize, random: &mut Random) -> bool {
        let door = &mut self.doors[core];
        let waits = |place: &usize| door.wishes[*place].answer.is_none() && !door.has_earlier(*place);
        let waiting: Vec<usize> = (0..door.wishes.len()).filter(waits).collect();
        if waiting.is_empty() {
            return false;
        }
        let on_disk = door.on_disk;
        let wish = &mut door.wishes[random.pick(&waiting)];
        if wish.fetch.after() > on_disk {
            return false;
        }
        match wish.fetch {
            Fetch::Queue(_) => self.fetches += 1,
            Fetch::Retained(_) => self.fetches_retained += 1,
        }
        wish.answer = Some((self.tables.read(&wish.fetch), on_disk));
        true
    }

    /// An answer to a core, which has been told of everything that it may show.
    pub fn answer(&mut self, core: usize, random: &mut Random) -> Option<Fetched> {
        let door = &mut self.doors[core];
        let is_ready = |place: &usize| {
            let answer = door.wishes[*place].answer.as_ref();
            answer.is_some_and(|(_, on_disk)| *on_disk <= door.confirmed) && !door.has_earlier(*place)
        };
        let ready: Vec<usize> = (0..door.wishes.len()).filter(is_ready).collect();
        if ready.is_empty() {
            return None;
        }
        let wish = door.wishes.remove(random.pick(&ready))?;
        wish.answer.map(|(fetched, _)| fetched)
    }
}

impl Door {
    /// Whether a wish of the same Session stands before this one.
    fn has_earlier(&self, place: usize) -> bool {
        let session = |wish: &Wish| match &wish.fetch {
            Fetch::Queue(fetch) => Some(fetch.session.number),
            Fetch::Retained(_) => None,
        };
        let of = session(&self.wishes[place]);
        of.is_some() && self.wishes.range(..place).any(|wish| session(wish) == of)
    }
}
