//! The store on disk against the store in memory, and what it does when things go wrong: what these tests are made of.
#![allow(clippy::unwrap_used)]

mod files;
mod model;
mod platform;
mod threads;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Door;
use super::inspect::{Inspection, look_at};
use super::lmdb::{Applier, Durability, Lmdb, LmdbConfig};
use super::writer::{Ring, Store, StoreConfig};
use crate::mqtt::packet::QoS;
use crate::mqtt::topic::TopicName;
use crate::registry::access::AccountId;
use crate::session::message::{Message, SharedMessage};
use crate::shard::RecordNumber;
use crate::shard::record::{QueueEntry, QueueFetch, QueueWindow, Record, SessionKey, SessionNumber, Stored};

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

// --- what a store has on disk ----------------------------------------------------------------------------------------

/// That the tables agree with each other.
fn assert_sound(lmdb: &Lmdb) -> Inspection {
    let inspection = look_at(lmdb).unwrap();
    assert_eq!(inspection.findings, [] as [String; 0]);
    inspection
}

/// Changes every occurrence of `find` in the used part of the file.
fn damage(dir: &TempDir, find: &[u8], with: &[u8]) {
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

fn data(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("data.mdb")
}

// --- a running store -------------------------------------------------------------------------------------------------

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

// --- another process -------------------------------------------------------------------------------------------------

const CHILD: &str = "SKEIN_STORE_TEST_CHILD";

/// This test binary once more, as the child `does` on a directory: the tests of these modules that end in `_child`.
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
