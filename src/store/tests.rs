//! The store on disk against the store in memory, and what it does when things go wrong.
#![allow(clippy::unwrap_used)]

mod platform;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::Door;
use super::error::StoreError;
use super::inspect::{Inspection, inspect, look_at};
use super::lmdb::{Applier, Durability, Fault, Lmdb, LmdbConfig};
use super::memory::Tables;
use super::writer::{Ring, Store, StoreConfig};
use crate::mqtt::packet::{PacketId, QoS};
use crate::mqtt::topic::TopicName;
use crate::registry::access::AccountId;
use crate::session::message::{Message, SharedMessage};
use crate::shard::RecordNumber;
use crate::shard::record::{
    Fetch, Fetched, Origin, QueueEntry, QueueFetch, QueueWindow, Record, RetainedFetch, SessionKey, SessionNumber,
    Stored,
};

// --- records ---------------------------------------------------------------------------------------------------------

fn message(topic: &str, payload: &[u8]) -> SharedMessage {
    SharedMessage::new(&Message {
        topic: TopicName::new(topic).unwrap(),
        payload,
        qos: QoS::AtLeastOnce,
    })
}

fn started(session: u64) -> Record {
    Record::SessionStarted {
        session: SessionNumber(session),
        account: AccountId(0),
        client_id: format!("client-{session}").into(),
    }
}

fn ended(session: u64) -> Record {
    Record::SessionEnded {
        session: SessionNumber(session),
    }
}

fn queued(sessions: &[u64], sequence: u64, payload: &[u8]) -> Record {
    let entry = |session: &u64| QueueEntry {
        session: SessionNumber(*session),
        sequence,
        qos: QoS::AtLeastOnce,
        retain: false,
    };
    Record::Queued {
        message: message("plant/pump", payload),
        entries: sessions.iter().map(entry).collect(),
        origin: None,
    }
}

fn delivered(session: u64, sequence: u64) -> Record {
    let session = SessionNumber(session);
    Record::Delivered { session, sequence }
}

fn retained(topic: &str, payload: &[u8]) -> Record {
    Record::Retained {
        topic: topic.into(),
        payload: payload.into(),
        qos: QoS::AtLeastOnce,
    }
}

fn queue_fetch(session: u64, from: u64, entries_max: usize) -> QueueFetch {
    QueueFetch {
        after: RecordNumber(0),
        session: SessionKey {
            index: 0,
            number: SessionNumber(session),
        },
        from,
        entries_max,
        bytes_max: usize::MAX,
    }
}

fn config(dir: &Path) -> LmdbConfig {
    LmdbConfig {
        dir: dir.to_owned(),
        durability: Durability::Process,
        map_bytes: 64 << 20,
        map_bytes_max: 1 << 30,
    }
}

fn commit(lmdb: &Lmdb, applier: &mut Applier, records: &[Record]) {
    lmdb.commit(applier, records.iter()).unwrap();
}

fn open(dir: &Path) -> (Lmdb, Applier) {
    let lmdb = Lmdb::open(config(dir)).unwrap();
    let (_, applier) = lmdb.load(usize::MAX).unwrap();
    (lmdb, applier)
}

fn window(lmdb: &Lmdb, fetch: QueueFetch) -> QueueWindow {
    lmdb.view(|view| view.window(&fetch)).unwrap()
}

/// In one order, whatever the tables sort by.
fn sorted(mut stored: Stored) -> Stored {
    for session in &mut stored.sessions {
        session.filters.sort();
        session.received.sort();
    }
    stored.retained.sort_by(|one, other| one.topic.cmp(&other.topic));
    stored
}

// --- the same as in memory -------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Op {
    Start {
        reuse: bool,
    },
    End(usize),
    Subscribe(usize, usize, QoS),
    Unsubscribe(usize, usize),
    Queue {
        first: usize,
        count: usize,
        bytes: usize,
        origin: Option<(usize, u16)>,
    },
    Release(usize, usize),
    Deliver(usize, usize),
    Retain(usize, usize),
    Receive(usize, u16),
    Free(usize, u16),
    Away(usize),
    Back(usize),
    Platform(platform::Op),
    Commit,
    CommitTwice,
    CommitAfterFault,
    Idle,
    Reopen,
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

fn op() -> impl Strategy<Value = Op> {
    let place = 0..8usize;
    prop_oneof![
        3 => any::<bool>().prop_map(|reuse| Op::Start { reuse }),
        1 => place.clone().prop_map(Op::End),
        2 => (place.clone(), 0..6usize, qos()).prop_map(|(session, filter, qos)| Op::Subscribe(session, filter, qos)),
        1 => (place.clone(), 0..6usize).prop_map(|(session, filter)| Op::Unsubscribe(session, filter)),
        10 => (place.clone(), 1..4usize, 0..300usize, proptest::option::weighted(0.3, (place.clone(), 1..4u16)))
            .prop_map(|(first, count, bytes, origin)| Op::Queue { first, count, bytes, origin }),
        2 => (place.clone(), 0..5usize).prop_map(|(session, at)| Op::Release(session, at)),
        8 => (place.clone(), 0..5usize).prop_map(|(session, at)| Op::Deliver(session, at)),
        2 => (0..6usize, 0..40usize).prop_map(|(topic, bytes)| Op::Retain(topic, bytes)),
        2 => (place.clone(), 1..4u16).prop_map(|(session, id)| Op::Receive(session, id)),
        1 => (place.clone(), 1..4u16).prop_map(|(session, id)| Op::Free(session, id)),
        1 => place.clone().prop_map(Op::Away),
        1 => place.prop_map(Op::Back),
        60 => platform::op().prop_map(Op::Platform),
        6 => Just(Op::Commit),
        2 => Just(Op::CommitTwice),
        2 => Just(Op::CommitAfterFault),
        1 => Just(Op::Idle),
        1 => Just(Op::Reopen),
    ]
}

/// Short ones, and long ones that differ at their end only.
fn topics() -> Vec<String> {
    let long = "long/".repeat(120);
    vec![
        "a".into(),
        "a/b".into(),
        "b".into(),
        format!("{long}1"),
        format!("{long}2"),
        "t".repeat(511),
    ]
}

#[derive(Default)]
struct Generator {
    /// Number, next sequence, sequences queued.
    sessions: Vec<(u64, u64, Vec<u64>)>,
    gone: Vec<u64>,
    newest: u64,
    platform: platform::Generator,
}

impl Generator {
    /// The record of an operation that is possible now.
    fn record(&mut self, op: &Op) -> Option<Record> {
        let topics = topics();
        let count = self.sessions.len();
        if let Op::Start { reuse } = op {
            let number = match self.gone.pop() {
                Some(gone) if *reuse => gone,
                _ => {
                    self.newest += 1;
                    self.newest
                }
            };
            self.sessions.push((number, 1, Vec::new()));
            return Some(started(number));
        }
        if let Op::Platform(op) = op {
            let sessions = self.sessions.iter().map(|(number, ..)| SessionNumber(*number));
            return self.platform.record(op, &Vec::from_iter(sessions));
        }
        if let Op::Retain(topic, bytes) = op {
            return Some(retained(&topics[*topic], &vec![7; *bytes]));
        }
        if count == 0 {
            return None;
        }
        let number = |at: &usize| SessionNumber(self.sessions[at % count].0);
        let id = |id: &u16| PacketId::new(*id).unwrap();
        Some(match op {
            Op::End(at) => {
                let (number, ..) = self.sessions.remove(at % count);
                self.gone.push(number);
                ended(number)
            }
            Op::Subscribe(at, filter, qos) => Record::Subscribed {
                session: number(at),
                filter: topics[*filter].as_str().into(),
                qos: *qos,
            },
            Op::Unsubscribe(at, filter) => Record::Unsubscribed {
                session: number(at),
                filter: topics[*filter].as_str().into(),
            },
            Op::Queue {
                first,
                count: holders,
                bytes,
                origin,
            } => {
                let origin = origin.map(|(at, packet_id)| Origin {
                    session: number(&at),
                    packet_id: id(&packet_id),
                });
                let mut entries = Vec::new();
                for at in 0..(*holders).min(count) {
                    let (session, next, queue) = &mut self.sessions[(first + at) % count];
                    entries.push(QueueEntry {
                        session: SessionNumber(*session),
                        sequence: *next,
                        qos: QoS::ExactlyOnce,
                        retain: at == 1,
                    });
                    queue.push(*next);
                    *next += 1;
                }
                Record::Queued {
                    message: message(&topics[bytes % 6], &vec![3; *bytes]),
                    entries,
                    origin,
                }
            }
            Op::Release(at, nth) | Op::Deliver(at, nth) => {
                let (session, _, queue) = &mut self.sessions[at % count];
                let session = SessionNumber(*session);
                if queue.is_empty() {
                    return None;
                }
                let nth = nth % queue.len();
                match op {
                    Op::Release(..) => Record::Released {
                        session,
                        sequence: queue[nth],
                    },
                    _ => Record::Delivered {
                        session,
                        sequence: queue.remove(nth),
                    },
                }
            }
            Op::Receive(at, packet_id) => Record::PacketIdReceived {
                session: number(at),
                packet_id: id(packet_id),
            },
            Op::Free(at, packet_id) => Record::PacketIdReleased {
                session: number(at),
                packet_id: id(packet_id),
            },
            Op::Away(at) => Record::SessionAway {
                session: number(at),
                since_s: 1_700_000_000,
            },
            Op::Back(at) => Record::SessionBack { session: number(at) },
            _ => return None,
        })
    }
}

/// That the tables agree with each other.
fn assert_sound(lmdb: &Lmdb) -> Inspection {
    let inspection = look_at(lmdb).unwrap();
    assert_eq!(inspection.findings, [] as [String; 0]);
    inspection
}

fn assert_same(lmdb: &Lmdb, tables: &Tables, retained_bytes_max: usize) {
    assert_sound(lmdb);
    let stored = lmdb.view(|view| view.stored(retained_bytes_max)).unwrap();
    let expected = sorted(tables.stored(usize::MAX));
    if retained_bytes_max == usize::MAX {
        assert_eq!(sorted(stored), expected);
    }
    for session in &expected.sessions {
        for (from, entries_max, bytes_max) in [(0, 1_000, usize::MAX), (2, 3, usize::MAX), (0, 1_000, 200), (0, 0, 1)] {
            let fetch = QueueFetch {
                bytes_max,
                ..queue_fetch(session.session.0, from, entries_max)
            };
            let expected = tables.read(&Fetch::Queue(fetch));
            assert_eq!(Fetched::Queue(window(lmdb, fetch)), expected);
        }
    }
    let fetch = RetainedFetch {
        ticket: 5,
        topics: topics().into_iter().map(Into::into).collect(),
    };
    let payloads = lmdb.view(|view| view.payloads(&fetch)).unwrap();
    assert_eq!(Fetched::Retained(payloads), tables.read(&Fetch::Retained(fetch)));
    platform::assert_same(lmdb, tables);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Random records in random batches, with retries, purges and starts between them.
    #[test]
    fn the_store_on_disk_says_what_the_store_in_memory_says(
        ops in proptest::collection::vec(op(), 1..300),
        purge_rows_max in 0..6usize,
    ) {
        let dir = tempdir().unwrap();
        let (mut lmdb, mut applier) = open(dir.path());
        applier.set_purge_rows_max(purge_rows_max);
        let (mut generator, mut tables) = (Generator::default(), Tables::default());
        let mut batch = Vec::new();
        let last = [Op::Commit, Op::Reopen];
        for op in ops.iter().chain(&last) {
            match op {
                Op::Commit | Op::CommitTwice | Op::CommitAfterFault => {
                    if matches!(op, Op::CommitAfterFault) {
                        lmdb.fail_next(Fault::Disk(std::io::Error::from_raw_os_error(28)));
                        lmdb.commit(&mut applier, batch.iter()).unwrap_err();
                    }
                    commit(&lmdb, &mut applier, &batch);
                    // As after a meta page of which nobody knows whether it was written.
                    if matches!(op, Op::CommitTwice) {
                        applier = lmdb.reopen().unwrap();
                        applier.set_purge_rows_max(purge_rows_max);
                        commit(&lmdb, &mut applier, &batch);
                    }
                    batch.iter().for_each(|record| tables.apply(record));
                    tables.settle();
                    batch.clear();
                    generator.platform.committed();
                    assert_same(&lmdb, &tables, usize::MAX);
                }
                Op::Idle => commit(&lmdb, &mut applier, &[]),
                Op::Reopen => {
                    drop(lmdb);
                    lmdb = Lmdb::open(config(dir.path())).unwrap();
                    let (stored, loaded) = lmdb.load(usize::MAX).unwrap();
                    assert_eq!(sorted(stored), sorted(tables.stored(usize::MAX)));
                    applier = loaded;
                    applier.set_purge_rows_max(purge_rows_max);
                }
                op => batch.extend(generator.record(op)),
            }
        }
        // With the purge done, what is left is what lives.
        applier.set_purge_rows_max(7);
        while applier.is_behind() {
            commit(&lmdb, &mut applier, &[]);
        }
        assert_same(&lmdb, &tables, usize::MAX);
        assert!(applier.newest_session().0 <= generator.newest);
    }
}

// --- threads ---------------------------------------------------------------------------------------------------------

struct Running {
    store: Store,
    doors: Vec<Door>,
    /// How often each core's bell was rung.
    rung: Arc<Vec<AtomicU64>>,
    next: Vec<u64>,
}

impl Running {
    fn new(dir: &Path, cores: usize) -> Running {
        let (mut store, _) = Store::open(StoreConfig::new(dir)).unwrap();
        let rung: Arc<Vec<AtomicU64>> = Arc::new((0..cores).map(|_| AtomicU64::new(0)).collect());
        let bell = |core: usize| -> Ring {
            let rung = Arc::clone(&rung);
            Box::new(move || {
                rung[core].fetch_add(1, Ordering::Release);
            })
        };
        let doors = store.start((0..cores).map(bell).collect()).unwrap();
        Running {
            store,
            doors,
            rung,
            next: vec![1; cores],
        }
    }

    fn push(&mut self, core: usize, record: Record) -> u64 {
        let number = self.next[core];
        self.next[core] += 1;
        self.doors[core].push(RecordNumber(number), Box::new(record));
        number
    }

    /// Waits as a core does, without its poller.
    fn until<T>(&mut self, core: usize, mut look: impl FnMut(&mut Door) -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = look(&mut self.doors[core]) {
                return found;
            }
            assert!(Instant::now() < until, "the store says nothing");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn until_committed(&mut self, core: usize, number: u64) {
        self.until(core, |door| {
            door.committed().filter(|committed| committed.0 >= number).map(drop)
        });
    }
}

fn stored(dir: &Path) -> Stored {
    let (store, stored) = Store::open(StoreConfig::new(dir)).unwrap();
    drop(store);
    stored
}

#[test]
fn cores_are_told_of_their_records_in_order_and_find_them_after_a_restart() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 3);
    let mut told = [0; 3];
    for round in 1..=200u64 {
        for (core, told) in told.iter_mut().enumerate() {
            let session = core as u64 + 1;
            if round == 1 {
                running.push(core, started(session));
            }
            running.push(core, queued(&[session], round, b"payload"));
            if round % (core as u64 + 1) == 0 {
                running.doors[core].flush();
            }
            if let Some(committed) = running.doors[core].committed() {
                assert!(committed.0 > *told && committed.0 < running.next[core]);
                *told = committed.0;
            }
        }
    }
    for (core, told) in told.into_iter().enumerate() {
        running.doors[core].flush();
        let last = running.next[core] - 1;
        if told < last {
            running.until_committed(core, last);
        }
        assert_eq!(running.doors[core].committed(), None);
        assert!(!running.doors[core].has_news());
    }
    let report = running.store.stop();
    assert_eq!((report.records, report.waiting_records), (603, 0));
    assert!(report.commits <= 603 && report.records_max >= 1);
    drop(running.doors);
    let stored = stored(dir.path());
    let entries: Vec<u64> = stored
        .sessions
        .iter()
        .map(|session| session.backlog.unwrap().entries)
        .collect();
    assert_eq!(entries, [200, 200, 200]);
}

#[test]
fn a_fetch_is_answered_after_the_records_before_it_and_after_they_are_told() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 1);
    running.push(0, started(1));
    for sequence in 1..=100 {
        let last = running.push(0, queued(&[1], sequence, b"payload"));
        running.doors[0].fetch(Fetch::Queue(QueueFetch {
            after: RecordNumber(last),
            ..queue_fetch(1, sequence, 10)
        }));
        running.doors[0].flush();
        let mut told = 0;
        let fetched = running.until(0, |door| {
            told = door.committed().map_or(told, |committed| committed.0);
            door.fetched()
        });
        assert_eq!(told, last, "an answer shows what its core was not told");
        let Fetched::Queue(window) = fetched else { panic!() };
        assert_eq!((window.entries.len(), window.is_end), (1, true));
        assert_eq!(window.entries[0].sequence, sequence);
    }
    // What is on its way, and not asked for, is not waited for.
    let commits = running.store.report().commits;
    running.push(0, delivered(1, 1));
    running.doors[0].fetch(Fetch::Queue(queue_fetch(1, 1, 1_000)));
    running.doors[0].flush();
    let Fetched::Queue(window) = running.until(0, Door::fetched) else {
        panic!()
    };
    assert_eq!(window.entries.len(), 100);
    assert_eq!(running.store.report().commits, commits);
    assert_eq!(running.store.stop().waiting_records, 0);
}

#[test]
fn lazy_records_wait_for_company_and_are_committed_at_a_stop() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 1);
    running.push(0, started(1));
    running.doors[0].flush();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(running.store.report().commits, 0);
    let number = running.push(0, queued(&[1], 1, b"payload"));
    running.doors[0].flush();
    running.until_committed(0, number);
    assert_eq!(running.store.report().commits, 1, "both in one");

    let number = running.push(0, delivered(1, 1));
    running.doors[0].flush();
    running.until_committed(0, number);
    assert_eq!(running.store.report().commits, 2, "nobody came, and it went alone");

    running.push(0, started(2));
    running.doors[0].flush();
    let report = running.store.stop();
    assert_eq!((report.commits, report.waiting_records), (3, 0));
    drop(running.doors);
    assert_eq!(stored(dir.path()).sessions.len(), 2);
}

#[test]
fn the_bell_of_a_core_is_rung_after_its_news() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 2);
    let rings = |running: &Running, core: usize| running.rung[core].load(Ordering::Acquire);
    let until_rung = |running: &Running, times: u64| {
        let until = Instant::now() + Duration::from_secs(20);
        while rings(running, 0) < times {
            assert!(Instant::now() < until, "the bell is silent");
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    running.push(0, started(1));
    let last = running.push(0, queued(&[1], 1, b"payload"));
    running.doors[0].flush();
    until_rung(&running, 1);
    assert!(running.doors[0].has_news());
    assert_eq!(running.doors[0].committed(), Some(RecordNumber(last)));
    assert!(!running.doors[0].has_news());
    running.doors[0].fetch(Fetch::Queue(queue_fetch(1, 0, 1)));
    running.doors[0].flush();
    until_rung(&running, 2);
    assert!(running.doors[0].has_news());
    assert!(running.doors[0].fetched().is_some());
    assert_eq!(rings(&running, 1), 0, "the other core has no news");
    running.store.stop();
}

#[test]
fn nothing_is_confirmed_while_commits_fail_and_all_is_after() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 1);
    let faults = [
        Fault::Disk(std::io::Error::from_raw_os_error(28)),
        Fault::Broken("as after a meta page that could not be written".into()),
        Fault::Disk(std::io::Error::from_raw_os_error(5)),
    ];
    running.store.fail_with(faults);
    running.push(0, started(1));
    let last = running.push(0, queued(&[1], 1, b"payload"));
    running.doors[0].flush();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(800) {
        assert_eq!(running.doors[0].committed(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    running.until_committed(0, last);
    let report = running.store.stop();
    assert_eq!(
        (report.failed_commits, report.commits, report.waiting_records),
        (2, 1, 0)
    );
}

#[test]
fn a_stop_gives_up_on_a_disk_that_refuses_and_says_what_is_lost() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 1);
    running
        .store
        .fail_with((0..50).map(|_| Fault::Disk(std::io::Error::from_raw_os_error(28))));
    running.push(0, started(1));
    running.push(0, queued(&[1], 1, b"payload"));
    running.doors[0].flush();
    let report = running.store.stop();
    assert_eq!((report.commits, report.waiting_records), (0, 2));
    drop(running.doors);
    assert_eq!(stored(dir.path()), Stored::default());
}

// --- growth and purge ------------------------------------------------------------------------------------------------

#[test]
fn the_map_grows_while_the_store_runs() {
    let dir = tempdir().unwrap();
    let (mut store, _) = Store::open(StoreConfig {
        map_bytes: 128 << 10,
        ..StoreConfig::new(dir.path())
    })
    .unwrap();
    let mut doors = store.start(vec![Box::new(|| {})]).unwrap();
    let payload = vec![1; 10_000];
    doors[0].push(RecordNumber(1), Box::new(started(1)));
    for sequence in 1..=400 {
        doors[0].push(RecordNumber(sequence + 1), Box::new(queued(&[1], sequence, &payload)));
        doors[0].flush();
    }
    let report = store.stop();
    assert_eq!((report.waiting_records, report.failed_commits), (0, 0));
    assert!(report.map_bytes >= 4 << 20, "{report:?}");
    drop(doors);
    assert_eq!(stored(dir.path()).sessions[0].backlog.unwrap().entries, 400);
}

#[test]
fn a_store_at_its_largest_confirms_nothing_until_there_is_room() {
    let dir = tempdir().unwrap();
    let lmdb = Lmdb::open(LmdbConfig {
        map_bytes: 256 << 10,
        map_bytes_max: 256 << 10,
        ..config(dir.path())
    })
    .unwrap();
    let (_, mut applier) = lmdb.load(0).unwrap();
    commit(&lmdb, &mut applier, &[started(1)]);
    let payload = vec![1; 10_000];
    let full = (1..=100).find(|sequence| {
        let records = [queued(&[1], *sequence, &payload)];
        matches!(lmdb.commit(&mut applier, records.iter()), Err(Fault::MapFull))
    });
    let full = full.unwrap();
    assert!(!lmdb.grow().unwrap());
    assert_eq!(window(&lmdb, queue_fetch(1, 0, 1_000)).entries.len() as u64, full - 1);
    for sequence in 1..5 {
        commit(&lmdb, &mut applier, &[delivered(1, sequence)]);
    }
    commit(&lmdb, &mut applier, &[queued(&[1], full, &payload)]);
}

#[test]
fn a_long_queue_is_purged_in_steps_and_goes_on_after_a_restart() {
    let dir = tempdir().unwrap();
    let (lmdb, mut applier) = open(dir.path());
    let records: Vec<Record> = (1..=1_000)
        .map(|sequence| queued(&[1, 2], sequence, b"shared"))
        .collect();
    commit(&lmdb, &mut applier, &[started(1), started(2)]);
    commit(&lmdb, &mut applier, &records);
    applier.set_purge_rows_max(300);
    commit(&lmdb, &mut applier, &[ended(1)]);
    let left = |lmdb: &Lmdb| lmdb.view(|view| view.size(super::lmdb::Table::Queues)).unwrap().entries;
    assert_eq!(left(&lmdb), 1_700);
    assert!(applier.is_behind());
    commit(&lmdb, &mut applier, &[]);
    assert_eq!(left(&lmdb), 1_400);
    drop(lmdb);

    let lmdb = Lmdb::open(config(dir.path())).unwrap();
    let (stored, mut applier) = lmdb.load(usize::MAX).unwrap();
    assert_eq!(stored.sessions.len(), 1);
    assert!(applier.is_behind());
    assert_eq!(applier.newest_session(), SessionNumber(2));
    commit(&lmdb, &mut applier, &[]);
    assert_eq!(left(&lmdb), 1_000);
    assert!(!applier.is_behind());
    commit(&lmdb, &mut applier, &[ended(2)]);
    for table in super::lmdb::Table::ALL.into_iter().skip(1) {
        assert_eq!(
            lmdb.view(|view| view.size(table)).unwrap().entries,
            0,
            "{}",
            table.name()
        );
    }
}

#[test]
fn what_is_over_within_its_batch_is_never_written() {
    let dir = tempdir().unwrap();
    let (lmdb, mut applier) = open(dir.path());
    commit(&lmdb, &mut applier, &[started(1), started(2)]);
    let before = lmdb.last_commit();
    let packet_id = PacketId::new(4).unwrap();
    let session = SessionNumber(2);
    let mut records: Vec<Record> = (1..=50)
        .flat_map(|at| [queued(&[1], at, b"payload"), delivered(1, at)])
        .collect();
    commit(&lmdb, &mut applier, &records);
    assert_eq!(lmdb.last_commit(), before, "LMDB had nothing to commit");
    let Record::Queued { origin, .. } = &mut records[0] else {
        panic!()
    };
    *origin = Some(Origin { session, packet_id });
    records.push(Record::PacketIdReceived { session, packet_id });
    records.push(Record::PacketIdReleased { session, packet_id });
    commit(&lmdb, &mut applier, &records);
    for table in [
        super::lmdb::Table::Queues,
        super::lmdb::Table::Origins,
        super::lmdb::Table::Received,
    ] {
        assert_eq!(lmdb.view(|view| view.size(table)).unwrap().entries, 0);
    }
}

// --- files that are not as they should be ----------------------------------------------------------------------------

/// A store with some of everything.
fn filled() -> TempDir {
    let dir = tempdir().unwrap();
    let (lmdb, mut applier) = open(dir.path());
    let mut records = vec![started(1), started(2), retained("a/b", &[9; 3_000])];
    records.extend((1..=200).map(|sequence| queued(&[1], sequence, b"the payload of session one")));
    commit(&lmdb, &mut applier, &records);
    dir
}

fn data(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("data.mdb")
}

fn refused(dir: &Path) -> String {
    let error = Store::open(StoreConfig::new(dir)).map(drop).unwrap_err();
    error.to_string()
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(StoreConfig::new(dir.path())).unwrap();
    let error = Store::open(StoreConfig::new(dir.path())).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()));
    drop(store);
    Store::open(StoreConfig::new(dir.path())).unwrap();
}

#[test]
fn directory_and_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().unwrap();
    let inner = dir.path().join("one/two");
    let (store, _) = Store::open(StoreConfig::new(&inner)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for file in ["data.mdb", "lock.mdb", "lock"] {
        assert_eq!(mode(&inner.join(file)), 0o600, "{file}");
    }
    drop(store);
}

#[test]
fn a_truncated_file_is_refused() {
    let dir = filled();
    let file = std::fs::OpenOptions::new().write(true).open(data(&dir)).unwrap();
    assert!(
        file.metadata().unwrap().len() > 1 << 20,
        "it is kept longer than it must be"
    );
    file.set_len(3 * 4096).unwrap();
    let error = refused(dir.path());
    assert!(
        error.contains("is damaged") && error.contains("the file ends after 3 pages"),
        "{error}"
    );
    for length in [100, 0] {
        file.set_len(length).unwrap();
        let error = refused(dir.path());
        assert!(
            error.contains("it ends after 100 bytes") || error.contains("it is no LMDB file"),
            "{error}"
        );
        assert_eq!(file.metadata().unwrap().len(), length, "it is left as it is");
    }
}

/// The files are made aside and come whole: what a start finds there of an earlier one is no store yet.
#[test]
fn a_start_that_was_cut_off_while_it_made_the_store_is_no_hindrance() {
    let dir = tempdir().unwrap();
    std::fs::create_dir(dir.path().join("new")).unwrap();
    std::fs::write(dir.path().join("new/data.mdb"), [7; 5_000]).unwrap();
    drop(open(dir.path()));
    assert!(!dir.path().join("new").exists());
    drop(open(dir.path()));
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempdir().unwrap();
    {
        let (lmdb, _) = open(dir.path());
        lmdb.set_schema(9);
    }
    let error = refused(dir.path());
    assert!(error.contains("newer version (schema 9, this one knows 2)"), "{error}");
}

#[test]
fn a_file_of_something_else_is_refused_and_left_alone() {
    let dir = tempdir().unwrap();
    let text = b"not a database, but somebody's letters".repeat(200);
    std::fs::write(data(&dir), &text).unwrap();
    assert!(refused(dir.path()).contains("no LMDB file"));
    assert_eq!(std::fs::read(data(&dir)).unwrap(), text);

    let dir = filled();
    let file = std::fs::OpenOptions::new().write(true).open(data(&dir)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[2], 20).unwrap();
    let error = refused(dir.path());
    assert!(error.contains("another version of LMDB"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_or_written_is_named() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = refused(&file.join("data"));
    assert!(
        error.starts_with("cannot create ") && error.contains("--data-dir"),
        "{error}"
    );
    std::fs::create_dir_all(dir.path().join("taken/data.mdb")).unwrap();
    let error = refused(&dir.path().join("taken"));
    assert!(error.starts_with("cannot write to "), "{error}");
}

/// Changes every occurrence of `find` in the used part of the file.
pub(super) fn damage(dir: &TempDir, find: &[u8], with: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(data(dir))
        .unwrap();
    let mut bytes = vec![0; 512 << 10];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let found = bytes.windows(find.len()).enumerate().filter(|(_, at)| *at == find);
    let found: Vec<usize> = found.map(|(at, _)| at).collect();
    assert!(!found.is_empty());
    for at in found {
        file.write_all_at(with, at as u64).unwrap();
    }
}

#[test]
fn a_damaged_value_that_a_start_needs_is_named() {
    let dir = filled();
    damage(&dir, b"client-2", b"client-3");
    let error = refused(dir.path());
    let expected = "in table sessions, the value of key 0000000000000002 cannot be used, since its checksum is wrong";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_damaged_message_is_not_delivered_and_holds_up_nothing() {
    let dir = filled();
    let (lmdb, mut applier) = open(dir.path());
    commit(
        &lmdb,
        &mut applier,
        &[queued(&[1], 201, b"the one that breaks"), queued(&[1], 202, b"after")],
    );
    drop(lmdb);
    damage(&dir, b"the one that breaks", b"The");
    let (lmdb, mut applier) = open(dir.path());
    let read = window(&lmdb, queue_fetch(1, 200, 10));
    let sequences: Vec<u64> = read.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!((sequences, read.is_end), (vec![200, 202], true));
    // Its queue is counted anew when it goes.
    commit(&lmdb, &mut applier, &[delivered(1, 201)]);
    let (stored, _) = lmdb.load(0).unwrap();
    let backlog = stored.sessions[0].backlog.unwrap();
    assert_eq!((backlog.first, backlog.end, backlog.entries), (1, 203, 201));
    assert_eq!(backlog.bytes, 200 * 36 + 15);
}

// --- inspection ------------------------------------------------------------------------------------------------------

#[test]
fn an_inspection_counts_what_there_is() {
    let dir = filled();
    let (lmdb, mut applier) = open(dir.path());
    let records = [
        queued(&[1, 2], 300, b"shared"),
        started(3),
        queued(&[3], 1, b"x"),
        queued(&[3], 2, b"x"),
    ];
    commit(&lmdb, &mut applier, &records);
    applier.set_purge_rows_max(0);
    commit(&lmdb, &mut applier, &[ended(3)]);
    drop(lmdb);
    let found = inspect(dir.path()).unwrap();
    assert_eq!((found.schema, found.sessions, found.ended_sessions), (2, 2, 1));
    assert_eq!(
        (found.queued_messages, found.shared_messages, found.retained_messages),
        (204, 1, 1)
    );
    assert_eq!(found.queued_bytes, 200 * 36 + 2 * 16 + 2 * 11);
    assert_eq!(found.map_bytes, 64 << 20);
    assert!(found.used_bytes > 10 * 4096 && found.file_bytes > found.used_bytes);
    assert_eq!(found.tables["queues"].entries, 204);
    assert_eq!(found.findings, [] as [String; 0]);
    let printed = found.to_string();
    assert!(
        printed.contains("queued messages                      204"),
        "{printed}"
    );
    assert!(printed.contains("agree with each other"));
    assert_eq!(
        serde_json::to_value(&found).unwrap()["tables"]["retained"]["entries"],
        1
    );
}

#[test]
fn an_inspection_finds_damaged_values_and_backlogs_that_are_wrong() {
    let dir = filled();
    damage(&dir, b"client-2", b"client-3");
    damage(&dir, &[9; 3_000], b"9");
    {
        let lmdb = Lmdb::open(config(dir.path())).unwrap();
        lmdb.remove_row(
            super::lmdb::Table::Queues,
            &super::schema::queue_key(SessionNumber(1), 7),
        );
    }
    let found = inspect(dir.path()).unwrap();
    let expected = [
        "table sessions, key 0000000000000002: the value cannot be used, since its checksum is wrong",
        "session 1: its backlog says",
        "table retained, key 612f62: the value cannot be used, since its checksum is wrong",
    ];
    assert_eq!(found.findings.len(), expected.len(), "{:#?}", found.findings);
    for (finding, expected) in found.findings.iter().zip(expected) {
        assert!(finding.starts_with(expected), "{finding}");
    }
    assert!(found.to_string().contains("3 findings:"));
}

#[test]
fn a_directory_without_a_store_is_not_made_one_by_looking() {
    let dir = tempdir().unwrap();
    let error = inspect(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

// --- with another process --------------------------------------------------------------------------------------------

const CHILD: &str = "SKEIN_STORE_TEST_CHILD";

/// This test binary once more, as the child `does` on a directory: the tests below that end in `_child`.
fn child(does: &str, dir: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("store::tests::{does}_child"), "--nocapture"]);
    command.env(CHILD, dir).stdout(std::process::Stdio::piped());
    command
}

/// The directory of a child; none when it runs as a test, which it is not.
fn child_dir() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

#[test]
fn inspects_child() {
    if let Some(dir) = child_dir() {
        println!("{}", serde_json::to_string(&inspect(&dir).unwrap()).unwrap());
    }
}

#[test]
fn an_inspection_works_beside_a_running_broker() {
    let dir = tempdir().unwrap();
    let mut running = Running::new(dir.path(), 1);
    running.push(0, started(1));
    let last = running.push(0, queued(&[1], 1, b"payload"));
    running.doors[0].flush();
    running.until_committed(0, last);
    let looked = child("inspects", dir.path()).output().unwrap();
    let printed = String::from_utf8(looked.stdout).unwrap();
    let json = printed.lines().find_map(|line| Some(&line[line.find('{')?..])).unwrap();
    let found: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(found["queued_messages"], 1, "{printed}");
    assert_eq!(found["findings_count"], 0);
    let last = running.push(0, queued(&[1], 2, b"payload"));
    running.doors[0].flush();
    running.until_committed(0, last);
    running.store.stop();
}

#[test]
fn pushes_until_killed_child() {
    let Some(dir) = child_dir() else { return };
    let mut running = Running::new(&dir, 1);
    running.push(0, started(1));
    for sequence in 1.. {
        running.push(0, queued(&[1, 2], sequence, &[5; 500]));
        running.push(0, delivered(2, sequence.saturating_sub(3)));
        running.doors[0].flush();
        if let Some(committed) = running.doors[0].committed() {
            println!("committed {}", committed.0);
        }
    }
}

/// Whatever a core was told is there after the process was killed, in the middle of whatever it did.
#[test]
fn what_was_confirmed_survives_kill_9() {
    use std::io::BufRead;
    for lines in [3, 40, 150] {
        let dir = tempdir().unwrap();
        let mut process = child("pushes_until_killed", dir.path()).spawn().unwrap();
        let told = std::io::BufReader::new(process.stdout.take().unwrap())
            .lines()
            .filter_map(|line| line.unwrap().strip_prefix("committed ")?.parse::<u64>().ok())
            .nth(lines)
            .unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let (lmdb, _) = open(dir.path());
        let (stored, _) = lmdb.load(0).unwrap();
        let backlog = stored.sessions[0].backlog.unwrap();
        // A start, then two records for each message.
        assert!(backlog.entries >= (told - 1) / 2, "{told} told, {backlog:?}");
        assert_eq!((backlog.first, backlog.end), (1, backlog.entries + 1));
        let found = look_at(&lmdb).unwrap();
        // The child never starts session 2.
        let unexpected: Vec<_> = found
            .findings
            .iter()
            .filter(|finding| !finding.contains("no session 2"))
            .collect();
        assert!(unexpected.is_empty(), "{unexpected:#?}");
    }
}

#[test]
fn writes_past_its_limit_child() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Some(dir) = child_dir() else { return };
    let before = getrlimit(Resource::Fsize);
    let limit = |current| setrlimit(Resource::Fsize, Rlimit { current, ..before }).unwrap();
    limit(Some(1 << 20));
    let mut running = Running::new(&dir, 1);
    running.push(0, started(1));
    let mut last = 0;
    for sequence in 1..=400 {
        last = running.push(0, queued(&[1], sequence, &[5; 10_000]));
    }
    running.doors[0].flush();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(running.doors[0].committed(), None);
    assert!(running.store.report().failed_commits >= 1);
    limit(before.current);
    running.until_committed(0, last);
    running.store.stop();
    println!("went on");
}

/// A limit of file sizes stands for a full disk: the kernel refuses pages in the middle of a transaction.
#[test]
fn a_disk_that_is_full_confirms_nothing_and_goes_on_when_there_is_room() {
    let dir = tempdir().unwrap();
    let output = child("writes_past_its_limit", dir.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("went on"),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (lmdb, _) = open(dir.path());
    assert_eq!(assert_sound(&lmdb).queued_messages, 400);
}
