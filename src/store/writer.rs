//! The store on disk at work: one thread writes, one reads, and each core has a door to them.
//!
//! Owns    the two threads, the units that wait for them, and what each core has been told.
//! Called  by `server`: [`Store::open`], [`Store::start`], [`Store::report`], [`Store::stop`]; by each core through its
//!         [`Door`](super::Door).
//! Holds   - a unit is in one transaction, after all units that were handed over before it, of any core;
//!         - all who give ids of datapoints know the newest on disk before anybody is told that it is there;
//!         - a core is told that a record is committed after the commit, and before or with any answer that was read from
//!           that commit or a later one;
//!         - a fetch is read after the commit of the record that it names, and the fetches of a Session are answered in order;
//!         - a transaction that fails is tried again, whole, until it works: what waits for it waits on;
//!         - at a stop everything that was handed over is committed, unless the disk refuses until the deadline.
//!
//! ```text
//! cores ── push, flush ──▶ units ──▶ storage thread ── commit ──▶ committed, bell
//!                                          │
//!                                          └─ fetches ──▶ reading thread ── view ──▶ inbox, bell
//! ```
//! While a commit runs the next batch gathers by itself: the slower the disk, the more records share a commit.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Door;
use super::client::{Bell, Client};
use super::door::DiskDoor;
use super::error::StoreError;
use super::lmdb::{Applied, Applier, Durability, Fault, Lmdb, LmdbConfig};
use crate::limits::{
    RETAINED_MEMORY_BYTES_MAX, STORE_COMMIT_BYTES_MAX, STORE_COMMIT_ROWS_MAX, STORE_LAZY_MS, STORE_LAZY_RECORDS_MAX,
    STORE_MAP_BYTES, STORE_MAP_BYTES_MAX, STORE_READS_PER_VIEW, STORE_RETRY_MS, STORE_STOP_MS,
};
use crate::registry::datapoint::StoredDatapoints;
use crate::shard::record::{Fetch, Fetched, QueueWindow, Record, RetainedPayloads, SessionNumber, Stored};

/// Buffers of units kept for use again.
const SPARES_MAX: usize = 64;
/// A stop looks this often whether the storage thread is done.
const STOP_POLL_MS: u64 = 2;
/// What a stop allows the storage thread beyond its deadline, to come back from a system call.
const STOP_SLACK_MS: u64 = 500;

#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub dir: PathBuf,
    pub durability: Durability,
    /// Address space for the file at first (`--map-size`), and at most.
    pub map_bytes: usize,
    pub map_bytes_max: usize,
    /// Payloads of retained messages to read at the start.
    pub retained_bytes_max: usize,
}

impl StoreConfig {
    pub fn new(dir: impl Into<PathBuf>) -> StoreConfig {
        StoreConfig {
            dir: dir.into(),
            durability: Durability::Fsync,
            map_bytes: STORE_MAP_BYTES,
            map_bytes_max: STORE_MAP_BYTES_MAX,
            retained_bytes_max: RETAINED_MEMORY_BYTES_MAX,
        }
    }

    pub(super) fn lmdb(&self) -> LmdbConfig {
        LmdbConfig {
            dir: self.dir.clone(),
            durability: self.durability,
            map_bytes: self.map_bytes.min(self.map_bytes_max),
            map_bytes_max: self.map_bytes_max,
        }
    }
}

/// Wakes a core if it sleeps, from any thread: its bell of the mesh, which the store does not know.
pub type Ring = Box<dyn Fn() + Send + Sync>;

/// The store of one run.
pub struct Store {
    state: State,
    newest_session: SessionNumber,
    datapoints: StoredDatapoints,
}

enum State {
    Opened(Box<(Lmdb, Applier)>),
    Running {
        shared: Arc<Shared>,
        client: Client,
        writer: JoinHandle<()>,
        reader: JoinHandle<()>,
    },
    Stopped,
}

/// What the store has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreReport {
    pub commits: u64,
    /// Records committed.
    pub records: u64,
    /// Records of the largest commit.
    pub records_max: u64,
    /// Bytes of keys and values put, without the pages around them.
    pub bytes: u64,
    /// Commits that failed, each of which was tried again.
    pub failed_commits: u64,
    /// Datapoints for channels that were not there any more.
    pub dropped_datapoints: u64,
    pub map_bytes: u64,
    /// Time from the beginning of a transaction to the end of its commit.
    pub commit_us: u64,
    pub commit_us_max: u64,
    /// Records that were handed over and are not committed.
    pub waiting_records: u64,
}

impl Store {
    /// Opens the store and reads what a start needs.
    pub fn open(config: StoreConfig) -> Result<(Store, Stored), StoreError> {
        ignore_file_size_signal();
        let lmdb = Lmdb::open(config.lmdb())?;
        let (stored, applier) = lmdb.load(config.retained_bytes_max)?;
        let store = Store {
            newest_session: applier.newest_session(),
            datapoints: StoredDatapoints::until(applier.newest_datapoint().at_ms()),
            state: State::Opened(Box::new((lmdb, applier))),
        };
        Ok((store, stored))
    }

    /// The greatest number that a Session of any run had: new ones begin after it.
    pub fn newest_session(&self) -> SessionNumber {
        self.newest_session
    }

    /// What is on disk of datapoints, for all who give them ids.
    pub fn datapoints(&self) -> &StoredDatapoints {
        &self.datapoints
    }

    /// Starts the threads. One door for each bell, that of the core it is for; and one more, for [`client`](Self::client).
    pub fn start(&mut self, mut bells: Vec<Ring>) -> io::Result<Vec<Door>> {
        let (writer_end, wait) = std::sync::mpsc::channel::<(Arc<Shared>, Applier)>();
        // The thread first: what it needs is given to it when nothing can fail any more.
        let writer = spawn("store-write", move || {
            if let Ok((shared, applier)) = wait.recv() {
                Writer::new(shared, applier).run();
            }
        })?;
        let (reader_end, wait) = std::sync::mpsc::channel::<Arc<Shared>>();
        let reader = spawn("store-read", move || {
            if let Ok(shared) = wait.recv() {
                read(&shared);
            }
        })?;
        let State::Opened(opened) = std::mem::replace(&mut self.state, State::Stopped) else {
            unreachable!("a store is started once");
        };
        let (lmdb, applier) = *opened;
        let cores = bells.len();
        let bell = Bell::default();
        bells.push(bell.ring());
        let shared = Arc::new(Shared::new(lmdb, bells, self.datapoints.clone()));
        let door = |core| DiskDoor::new(core, Arc::clone(&shared));
        let doors = (0..cores).map(|core| Door::Disk(Box::new(door(core)))).collect();
        let client = Client::new(door(cores), Arc::clone(&shared), &bell);
        let _ = writer_end.send((Arc::clone(&shared), applier));
        let _ = reader_end.send(Arc::clone(&shared));
        self.state = State::Running {
            shared,
            client,
            writer,
            reader,
        };
        Ok(doors)
    }

    /// A door for threads that are no core.
    ///
    /// # Panics
    ///
    /// Before [`start`](Self::start).
    pub fn client(&self) -> Client {
        match &self.state {
            State::Running { client, .. } => client.clone(),
            State::Opened(_) | State::Stopped => panic!("a store has a client once it is started"),
        }
    }

    pub fn report(&self) -> StoreReport {
        match &self.state {
            State::Running { shared, .. } => shared.report(),
            State::Opened(_) | State::Stopped => StoreReport::default(),
        }
    }

    /// Commits what was handed over and ends the threads. Call it when no core pushes any more. `waiting_records` of the
    /// report are those that the disk has not taken by the deadline.
    pub fn stop(mut self) -> StoreReport {
        let State::Running {
            shared, writer, reader, ..
        } = std::mem::replace(&mut self.state, State::Stopped)
        else {
            return StoreReport::default();
        };
        let deadline = Instant::now() + Duration::from_millis(STORE_STOP_MS);
        {
            let mut queue = shared.queue();
            queue.stop_by = Some(deadline);
        }
        shared.wake.notify_all();
        {
            let mut reads = shared.reads();
            reads.is_stopping = true;
        }
        shared.reads_wake.notify_all();
        let last = deadline + Duration::from_millis(STOP_SLACK_MS);
        for thread in [writer, reader] {
            while !thread.is_finished() && Instant::now() < last {
                std::thread::sleep(Duration::from_millis(STOP_POLL_MS));
            }
            if thread.is_finished() {
                thread
                    .join()
                    .expect("a thread of the store that panics ends the process");
            }
        }
        let report = shared.report();
        if report.waiting_records > 0 {
            tracing::error!(
                records = report.waiting_records,
                "the store could not write everything before the stop; nobody was told that these are safe"
            );
        }
        report
    }
}

#[cfg(test)]
impl Store {
    /// What the next commits fail with.
    pub(super) fn fail_with(&self, faults: impl IntoIterator<Item = Fault>) {
        let State::Running { shared, .. } = &self.state else {
            unreachable!("tests start it first");
        };
        shared
            .lmdb
            .faults
            .lock()
            .expect("tests do not panic with it")
            .extend(faults);
    }
}

/// A thread whose panic ends the process: half a broker is worse than a restart. (A release build aborts by itself.)
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| std::process::abort()))
}

/// A file that grows past the limit of the process (`ulimit -f`) is an error to handle like a full disk, not the end.
fn ignore_file_size_signal() {
    let sink = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, sink) {
        tracing::debug!(%error, "the limit of file sizes ends the process, should there be one");
    }
}

/// What the threads and all cores share.
pub(super) struct Shared {
    pub(super) lmdb: Lmdb,
    queue: Mutex<Queue>,
    wake: Condvar,
    reads: Mutex<Reads>,
    reads_wake: Condvar,
    pub(super) cores: Vec<CoreSide>,
    /// The last LMDB transaction of which every core has been told.
    pub(super) told_commit: AtomicU64,
    datapoints: StoredDatapoints,
    figures: Figures,
}

/// What one core is told. Looked at by it all the time, so that no two share a cache line.
#[repr(align(128))]
pub(super) struct CoreSide {
    ring: Ring,
    pub(super) committed: AtomicU64,
    /// Answers, each with the LMDB transaction it was read from.
    pub(super) inbox: Mutex<VecDeque<(u64, Fetched)>>,
    pub(super) inbox_len: AtomicUsize,
}

#[derive(Default)]
struct Figures {
    commits: AtomicU64,
    records: AtomicU64,
    records_max: AtomicU64,
    bytes: AtomicU64,
    failed_commits: AtomicU64,
    dropped_datapoints: AtomicU64,
    commit_us: AtomicU64,
    commit_us_max: AtomicU64,
    handed_over: AtomicU64,
}

/// As they come: a record is boxed by the core that makes it, and stays where it is.
#[allow(clippy::vec_box)]
pub(super) type Records = Vec<Box<Record>>;

/// What one core pushed between two flushes.
pub(super) struct Unit {
    pub(super) core: usize,
    pub(super) last: u64,
    pub(super) records: Records,
    pub(super) rows: usize,
    pub(super) bytes: usize,
    pub(super) fetches: Vec<Fetch>,
    /// Somebody waits for it.
    pub(super) is_urgent: bool,
}

#[derive(Default)]
struct Queue {
    units: VecDeque<Unit>,
    records: usize,
    has_urgent: bool,
    /// When the oldest of `units` came, where none is urgent.
    since: Option<Instant>,
    writer: Awaits,
    stop_by: Option<Instant>,
    spares: Vec<Records>,
}

/// What the storage thread sleeps for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Awaits {
    /// It is awake.
    #[default]
    Nothing,
    /// Anything at all.
    Any,
    /// More than lazy records: it has some, and wakes for them in time.
    Urgent,
}

#[derive(Default)]
struct Reads {
    /// In order, each with its core.
    fetches: VecDeque<(usize, Fetch)>,
    is_asleep: bool,
    is_stopping: bool,
}

impl Shared {
    fn new(lmdb: Lmdb, bells: Vec<Ring>, datapoints: StoredDatapoints) -> Shared {
        let side = |ring| CoreSide {
            ring,
            committed: AtomicU64::new(0),
            inbox: Mutex::default(),
            inbox_len: AtomicUsize::new(0),
        };
        Shared {
            told_commit: AtomicU64::new(lmdb.last_commit()),
            datapoints,
            lmdb,
            queue: Mutex::default(),
            wake: Condvar::new(),
            reads: Mutex::default(),
            reads_wake: Condvar::new(),
            cores: bells.into_iter().map(side).collect(),
            figures: Figures::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics while holding it")
    }

    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().expect("nobody panics while holding it")
    }

    pub(super) fn hand_over(&self, unit: Unit, spare: &mut Records) {
        self.figures
            .handed_over
            .fetch_add(unit.records.len() as u64, Ordering::Relaxed);
        let mut queue = self.queue();
        queue.records += unit.records.len();
        queue.has_urgent |= unit.is_urgent;
        if !queue.has_urgent && queue.since.is_none() {
            queue.since = Some(Instant::now());
        }
        queue.units.push_back(unit);
        if let Some(buffer) = queue.spares.pop() {
            *spare = buffer;
        }
        let wakes = match queue.writer {
            Awaits::Nothing => false,
            Awaits::Any => true,
            Awaits::Urgent => queue.has_urgent || queue.records >= STORE_LAZY_RECORDS_MAX,
        };
        if wakes {
            queue.writer = Awaits::Nothing;
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Fetches whose records are committed.
    pub(super) fn read_soon(&self, fetches: impl Iterator<Item = (usize, Fetch)>) {
        let mut reads = self.reads();
        let before = reads.fetches.len();
        reads.fetches.extend(fetches);
        if reads.fetches.len() > before && std::mem::replace(&mut reads.is_asleep, false) {
            drop(reads);
            self.reads_wake.notify_one();
        }
    }

    fn report(&self) -> StoreReport {
        let figures = &self.figures;
        let [
            commits,
            records,
            records_max,
            bytes,
            failed_commits,
            dropped_datapoints,
            commit_us,
            commit_us_max,
            handed_over,
        ] = [
            &figures.commits,
            &figures.records,
            &figures.records_max,
            &figures.bytes,
            &figures.failed_commits,
            &figures.dropped_datapoints,
            &figures.commit_us,
            &figures.commit_us_max,
            &figures.handed_over,
        ]
        .map(|figure| figure.load(Ordering::Relaxed));
        StoreReport {
            commits,
            records,
            records_max,
            bytes,
            failed_commits,
            dropped_datapoints,
            map_bytes: self.lmdb.map_bytes(),
            commit_us,
            commit_us_max,
            waiting_records: handed_over.saturating_sub(records),
        }
    }
}

// --- the storage thread ----------------------------------------------------------------------------------------------

struct Writer {
    shared: Arc<Shared>,
    applier: Applier,
    batch: Vec<Unit>,
    /// Since when commits fail, and how many did.
    failing: Option<(Instant, u64)>,
}

impl Writer {
    fn new(shared: Arc<Shared>, applier: Applier) -> Writer {
        Writer {
            shared,
            applier,
            batch: Vec::new(),
            failing: None,
        }
    }

    fn run(mut self) {
        while self.gather() {
            if !self.commit() {
                return;
            }
            self.tell();
            self.recycle();
        }
    }

    /// Waits for a batch. False at the end of a stop. An empty batch deletes rows that wait to be.
    fn gather(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue();
        loop {
            let is_stopping = queue.stop_by.is_some();
            let left = match queue.since {
                Some(since) => Duration::from_millis(STORE_LAZY_MS).saturating_sub(since.elapsed()),
                None => Duration::MAX,
            };
            let is_behind = self.applier.is_behind() && !is_stopping;
            let is_due = queue.has_urgent
                || queue.records >= STORE_LAZY_RECORDS_MAX
                || left.is_zero()
                || is_stopping
                || is_behind;
            if is_due && (is_behind || !queue.units.is_empty()) {
                queue.take(&mut self.batch);
                return true;
            }
            if is_stopping {
                return false;
            }
            queue = match queue.units.is_empty() {
                true => {
                    queue.writer = Awaits::Any;
                    shared.wake.wait(queue).expect("nobody panics while holding it")
                }
                false => {
                    queue.writer = Awaits::Urgent;
                    let waited = shared.wake.wait_timeout(queue, left);
                    waited.expect("nobody panics while holding it").0
                }
            };
            queue.writer = Awaits::Nothing;
        }
    }

    /// Commits the batch, however often it takes. False if the disk refused until the deadline of a stop.
    fn commit(&mut self) -> bool {
        loop {
            let started = Instant::now();
            let records = self
                .batch
                .iter()
                .flat_map(|unit| unit.records.iter().map(|record| &**record));
            match self.shared.lmdb.commit(&mut self.applier, records) {
                Ok(applied) => {
                    self.count(&applied, started.elapsed());
                    if let Some((since, failed)) = self.failing.take() {
                        let seconds = since.elapsed().as_secs_f32();
                        tracing::info!(
                            failed,
                            seconds,
                            "the store works again; what waited for it is committed"
                        );
                    }
                    return true;
                }
                Err(fault) => {
                    let Some(trouble) = self.overcome(fault) else {
                        continue;
                    };
                    self.failed(&trouble);
                    if !self.wait_to_retry() {
                        return false;
                    }
                }
            }
        }
    }

    /// Does what can be done about a fault. `None`: the batch can be tried again at once.
    fn overcome(&mut self, fault: Fault) -> Option<String> {
        let lmdb = &self.shared.lmdb;
        let path = lmdb.path();
        let path = path.display();
        match fault {
            Fault::MapFull => match lmdb.grow() {
                Ok(true) => None,
                Ok(false) => Some(format!(
                    "{path} is as large as --map-size lets it become; sessions that end or are read make room"
                )),
                Err(fault) => Some(format!(
                    "{path} needs more address space and cannot have it ({fault:?}); allow more (ulimit -v)"
                )),
            },
            Fault::Broken(_) => match lmdb.reopen() {
                Ok(applier) => {
                    self.applier = applier;
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            Fault::Disk(error) => Some(match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                    format!("the disk of {path} is full ({error}); make room there")
                }
                Some(rustix::io::Errno::FBIG) => {
                    format!("{path} may not become larger ({error}); allow larger files (ulimit -f)")
                }
                _ => format!("{path} cannot be written ({error}); look after its disk"),
            }),
            fault => Some(lmdb.error(fault).to_string()),
        }
    }

    fn failed(&mut self, trouble: &str) {
        self.shared.figures.failed_commits.fetch_add(1, Ordering::Relaxed);
        let (_, failed) = self.failing.get_or_insert_with(|| {
            tracing::error!(
                "the store cannot commit: {trouble}. Nothing durable is acknowledged until it can; it goes on by itself, \
                 tried every {STORE_RETRY_MS} ms"
            );
            (Instant::now(), 0)
        });
        *failed += 1;
    }

    /// False if a stop does not allow another try.
    fn wait_to_retry(&self) -> bool {
        let until = Instant::now() + Duration::from_millis(STORE_RETRY_MS);
        let mut queue = self.shared.queue();
        loop {
            let now = Instant::now();
            if queue.stop_by.is_some_and(|deadline| now >= deadline) {
                return false;
            }
            let until = queue.stop_by.map_or(until, |deadline| until.min(deadline));
            if now >= until {
                return true;
            }
            // Nobody wakes it for units; a stop does.
            let waited = self.shared.wake.wait_timeout(queue, until - now);
            queue = waited.expect("nobody panics while holding it").0;
        }
    }

    fn count(&self, applied: &Applied, took: Duration) {
        let figures = &self.shared.figures;
        let us = took.as_micros() as u64;
        figures.commits.fetch_add(1, Ordering::Relaxed);
        figures.records.fetch_add(applied.records, Ordering::Relaxed);
        figures.records_max.fetch_max(applied.records, Ordering::Relaxed);
        figures.bytes.fetch_add(applied.bytes, Ordering::Relaxed);
        figures
            .dropped_datapoints
            .fetch_add(applied.dropped_datapoints, Ordering::Relaxed);
        figures.commit_us.fetch_add(us, Ordering::Relaxed);
        figures.commit_us_max.fetch_max(us, Ordering::Relaxed);
    }

    /// Tells each core of the batch, once. Fetches go to the reading thread before their core is told: a core that knows
    /// its records committed sends the next fetch there by itself, and it must come after these.
    fn tell(&mut self) {
        let shared = &*self.shared;
        if self.batch.iter().any(|unit| !unit.fetches.is_empty()) {
            let fetches = self.batch.iter_mut().flat_map(|unit| {
                let core = unit.core;
                unit.fetches.drain(..).map(move |fetch| (core, fetch))
            });
            shared.read_soon(fetches);
        }
        shared.datapoints.committed(self.applier.newest_datapoint());
        for unit in &self.batch {
            // A core's units are in order.
            shared.cores[unit.core].committed.store(unit.last, Ordering::Release);
        }
        shared.told_commit.store(shared.lmdb.last_commit(), Ordering::Release);
        for unit in &self.batch {
            (shared.cores[unit.core].ring)();
        }
    }

    /// After the cores were told, since it takes its time.
    fn recycle(&mut self) {
        for unit in &mut self.batch {
            unit.records.clear();
        }
        let mut queue = self.shared.queue();
        for unit in self.batch.drain(..) {
            if queue.spares.len() < SPARES_MAX && unit.records.capacity() > 0 {
                queue.spares.push(unit.records);
            }
        }
    }
}

impl Queue {
    /// Moves the next transaction's units to `batch`: at least one, and no more once a bound is passed.
    fn take(&mut self, batch: &mut Vec<Unit>) {
        let (mut records, mut rows, mut bytes) = (0, 0, 0);
        while rows < STORE_COMMIT_ROWS_MAX
            && bytes < STORE_COMMIT_BYTES_MAX
            && let Some(unit) = self.units.pop_front()
        {
            records += unit.records.len();
            rows += unit.rows;
            bytes += unit.bytes;
            batch.push(unit);
        }
        self.records -= records;
        self.has_urgent = self.units.iter().any(|unit| unit.is_urgent);
        self.since = (!self.units.is_empty() && !self.has_urgent).then(Instant::now);
    }
}

// --- the reading thread ----------------------------------------------------------------------------------------------

fn read(shared: &Shared) {
    let mut fetches = Vec::new();
    let mut answers = Vec::new();
    loop {
        {
            let mut reads = shared.reads();
            loop {
                if !reads.fetches.is_empty() {
                    break;
                }
                if reads.is_stopping {
                    return;
                }
                reads.is_asleep = true;
                reads = shared.reads_wake.wait(reads).expect("nobody panics while holding it");
                reads.is_asleep = false;
            }
            let count = reads.fetches.len().min(STORE_READS_PER_VIEW);
            fetches.extend(reads.fetches.drain(..count));
        }
        loop {
            let viewed = shared.lmdb.view(|view| {
                let commit = view.commit();
                for (core, fetch) in &fetches {
                    let fetched = match fetch {
                        Fetch::Queue(fetch) => view.window(fetch).map(Fetched::Queue),
                        Fetch::Retained(fetch) => view.payloads(fetch).map(Fetched::Retained),
                    };
                    let fetched = fetched.unwrap_or_else(|fault| unreadable(shared, fault, fetch));
                    answers.push((*core, commit, fetched));
                }
                Ok(())
            });
            match viewed {
                Ok(()) => break,
                // The storage thread opens it anew, or says why it cannot.
                Err(fault) => {
                    tracing::debug!(?fault, "the store cannot be read now");
                    if shared.reads().is_stopping {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(STORE_RETRY_MS));
                }
            }
        }
        fetches.clear();
        for (core, commit, fetched) in answers.drain(..) {
            let side = &shared.cores[core];
            let mut inbox = side.inbox.lock().expect("nobody panics while holding it");
            inbox.push_back((commit, fetched));
            side.inbox_len.store(inbox.len(), Ordering::Release);
            drop(inbox);
            (side.ring)();
        }
    }
}

/// Pages that LMDB cannot make sense of: whoever asked gets nothing, and everybody else goes on. What is on disk stays.
fn unreadable(shared: &Shared, fault: Fault, fetch: &Fetch) -> Fetched {
    let error = shared.lmdb.error(fault);
    match fetch {
        Fetch::Queue(fetch) => {
            let session = fetch.session.number.0;
            tracing::error!(session, "a queue cannot be read, its messages stay on disk: {error}");
            Fetched::Queue(QueueWindow {
                session: fetch.session,
                entries: Vec::new(),
                is_end: true,
            })
        }
        Fetch::Retained(fetch) => {
            tracing::error!(
                topics = fetch.topics.len(),
                "retained messages cannot be read, they stay on disk: {error}"
            );
            Fetched::Retained(RetainedPayloads {
                ticket: fetch.ticket,
                payloads: vec![None; fetch.topics.len()],
            })
        }
    }
}
