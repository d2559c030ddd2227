//! What a record costs: encoding, a commit of few and many, a queue read back, and all of it through the threads; what a
//! datapoint costs on its way to the disk, there, and when it is read.
//!
//! `cargo bench --bench store`. Commits wait for the disk of the directory for temporary files (TMPDIR).
//! Queues stay as long as they are: what one batch queues, the next delivers, as for a client that keeps up.

mod scenarios;
mod timed;

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use scenarios::PAYLOAD;
use skein::mqtt::packet::QoS;
use skein::mqtt::topic::TopicName;
use skein::registry::access::AccountId;
use skein::registry::account::{Account, Token};
use skein::registry::channel::{Channel, ChannelId};
use skein::registry::datapoint::{DatapointId, DatapointIds, DatapointRow, StoredDatapoints};
use skein::session::message::{Message, SharedMessage};
use skein::shard::RecordNumber;
use skein::shard::record::{Datapoint, QueueEntry, QueueFetch, Record, SessionKey, SessionNumber};
use skein::store::Door;
use skein::store::lmdb::{Applier, Durability, Lmdb, LmdbConfig, Table};
use skein::store::streams::DatapointRange;
use skein::store::writer::{Store, StoreConfig};
use timed::{ThreadInstant, ThreadTime};

const SESSION: SessionNumber = SessionNumber(1);
const TOPIC: &str = "plant/line/pump";

fn started() -> Record {
    Record::SessionStarted {
        session: SESSION,
        account: AccountId(0),
        client_id: "pump".into(),
    }
}

fn queued(sequence: u64) -> Record {
    let message = Message {
        topic: TopicName::new(TOPIC).expect("a topic"),
        payload: &PAYLOAD,
        qos: QoS::AtLeastOnce,
    };
    Record::Queued {
        message: SharedMessage::new(&message),
        entries: vec![QueueEntry {
            session: SESSION,
            sequence,
            qos: QoS::AtLeastOnce,
            retain: false,
        }],
        origin: None,
    }
}

fn delivered(sequence: u64) -> Record {
    let session = SESSION;
    Record::Delivered { session, sequence }
}

/// `count` records: half of them queue, half deliver what the call before queued.
struct Flow {
    next: u64,
    waiting: std::ops::Range<u64>,
}

impl Flow {
    fn new() -> Flow {
        Flow { next: 1, waiting: 1..1 }
    }

    fn records(&mut self, count: u64) -> Vec<Record> {
        // One record alone queues in one call and delivers in the next.
        let queues = if count == 1 {
            self.waiting.is_empty().into()
        } else {
            count / 2
        };
        let delivers = std::mem::replace(&mut self.waiting, self.next..self.next + queues);
        self.next += queues;
        self.waiting
            .clone()
            .map(queued)
            .chain(delivers.map(delivered))
            .collect()
    }
}

fn open(dir: &Path, durability: Durability) -> (Lmdb, Applier) {
    let lmdb = Lmdb::open(LmdbConfig {
        dir: dir.to_owned(),
        durability,
        map_bytes: 1 << 30,
        map_bytes_max: 1 << 30,
    })
    .expect("a temporary directory can be written");
    let (_, applier) = lmdb.load(0).expect("it is new");
    (lmdb, applier)
}

fn encode(criterion: &mut Criterion<ThreadTime>) {
    scenarios::store::scenarios(criterion);
}

fn commit(criterion: &mut Criterion) {
    for (name, durability) in [("fsync", Durability::Fsync), ("process", Durability::Process)] {
        let mut group = criterion.benchmark_group(format!("commit/{name}"));
        group.sample_size(20).measurement_time(Duration::from_secs(4));
        for count in [1, 100, 1_000, 10_000] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (lmdb, mut applier) = open(dir.path(), durability);
            lmdb.commit(&mut applier, [started()].iter()).expect("a commit");
            let mut flow = Flow::new();
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter_batched(
                    || flow.records(count),
                    |records| lmdb.commit(&mut applier, records.iter()).expect("a commit"),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn read(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (lmdb, mut applier) = open(dir.path(), Durability::Process);
    let records: Vec<Record> = [started()].into_iter().chain((1..=100_000).map(queued)).collect();
    lmdb.commit(&mut applier, records.iter()).expect("a commit");
    let fetch = QueueFetch {
        after: RecordNumber(0),
        session: SessionKey {
            index: 0,
            number: SESSION,
        },
        from: 50_000,
        entries_max: 512,
        bytes_max: usize::MAX,
    };
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(512));
    group.bench_function("window of 512 from a queue of 100,000", |bencher| {
        bencher.iter(|| lmdb.view(|view| view.window(&fetch)).expect("a view"));
    });
}

/// One core that hands over units and waits for the commit of the one before the last: as a busy core does.
fn threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("through the storage thread, fsync");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for count in [100, 1_000, 4_000] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut store, _) = Store::open(StoreConfig::new(dir.path())).expect("a temporary directory can be written");
        let mut door = store.start(vec![Box::new(|| {})]).expect("threads").remove(0);
        let mut flow = Flow::new();
        let mut number = 1;
        door.push(RecordNumber(number), Box::new(started()));
        let mut committed = 0;
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("records per unit", count), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for round in 0..rounds {
                    let records: Vec<Box<Record>> = flow.records(count).into_iter().map(Box::new).collect();
                    let began = Instant::now();
                    let before = number;
                    for record in records {
                        number += 1;
                        door.push(RecordNumber(number), record);
                    }
                    door.flush();
                    let awaited = if round + 1 == rounds { number } else { before };
                    wait(&mut door, &mut committed, awaited);
                    took += began.elapsed();
                }
                took
            });
        });
        let report = store.stop();
        eprintln!("{report:?}");
    }
}

const ACCOUNT: AccountId = AccountId(1);
/// What a busy storage thread finds waiting.
const BATCH: u32 = 4_096;

fn channel(number: u32) -> ChannelId {
    ChannelId::new(number).expect("a small number")
}

/// Devices that send in turn, each to a channel of its own. A value has 64 bytes.
struct Devices {
    count: u32,
    next: u32,
    now_ms: u64,
    ids: DatapointIds,
}

impl Devices {
    /// With an account that may have so many bytes.
    fn new(count: u32, bytes_max: u64, lmdb: &Lmdb, applier: &mut Applier) -> Devices {
        let token = Token::from_random([7; 16]);
        let account = Account {
            storage_bytes_max: bytes_max,
            ..Account::new(ACCOUNT, "U000001", token, token, 0)
        };
        let mut records = vec![Record::AccountPut(Box::new(account))];
        records.extend((0..count).map(|number| Record::ChannelPut {
            account: ACCOUNT,
            channel: channel(number),
            entry: Box::new(Channel::default()),
        }));
        lmdb.commit(applier, records.iter()).expect("a commit");
        Devices {
            count,
            next: 0,
            now_ms: 1_700_000_000_000,
            ids: DatapointIds::new(0, StoredDatapoints::until(0)),
        }
    }

    fn datapoint(&mut self) -> Record {
        self.next += 1;
        // 100,000 a second.
        self.now_ms += u64::from(self.next.is_multiple_of(100));
        let device = self.next * 7 % self.count;
        let value = format!(
            r#"{{"temperature":{},"humidity":{},"battery":{},"state":"ok"}}"#,
            20.5, 48.25, 3.71
        );
        let row = DatapointRow {
            tag: "",
            device: &format!("device-{device:05}"),
            value: &value,
        };
        Record::Datapoint(Box::new(Datapoint {
            account: ACCOUNT,
            channel: channel(device),
            id: self.ids.next(self.now_ms),
            row: row.pack(),
            origin: None,
            is_awaited: false,
        }))
    }

    fn batch(&mut self) -> Vec<Record> {
        (0..BATCH).map(|_| self.datapoint()).collect()
    }
}

fn datapoints(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("datapoints/commit of 4,096");
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, durability, channels, bytes_max) in [
        ("1 channel", Durability::Process, 1, u64::MAX),
        ("1,000 channels", Durability::Process, 1_000, u64::MAX),
        ("1,000 channels, fsync", Durability::Fsync, 1_000, u64::MAX),
        (
            "1,000 channels, account at its limit",
            Durability::Process,
            1_000,
            20_000_000,
        ),
    ] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (lmdb, mut applier) = open(dir.path(), durability);
        let mut devices = Devices::new(channels, bytes_max, &lmdb, &mut applier);
        for _ in 0..100 {
            lmdb.commit(&mut applier, devices.batch().iter()).expect("a commit");
        }
        let (mut took, mut commits) = (Duration::ZERO, 0);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut wall = Duration::ZERO;
                for _ in 0..rounds {
                    let batch = devices.batch();
                    let (began, began_cpu) = (Instant::now(), ThreadInstant::now());
                    lmdb.commit(&mut applier, batch.iter()).expect("a commit");
                    wall += began.elapsed();
                    took += began_cpu.elapsed();
                    commits += 1;
                }
                wall
            });
        });
        let size = lmdb.view(|view| view.size(Table::Datapoints)).expect("a view");
        eprintln!(
            "{name}: {:.2} µs of CPU and {:.0} bytes on disk per datapoint, {} of them",
            took.as_secs_f64() * 1e6 / f64::from(commits * BATCH),
            size.bytes as f64 / size.entries as f64,
            size.entries,
        );
    }
}

fn stream(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (lmdb, mut applier) = open(dir.path(), Durability::Process);
    let mut devices = Devices::new(10, u64::MAX, &lmdb, &mut applier);
    for _ in 0..50 {
        lmdb.commit(&mut applier, devices.batch().iter()).expect("a commit");
    }
    let mut group = criterion.benchmark_group("datapoints/read");
    let last = DatapointRange {
        from: DatapointId::default(),
        to: DatapointId::MAX,
        tag: None,
        newest_first: true,
        rows_max: 1,
    };
    let all = DatapointRange {
        rows_max: 10_000,
        newest_first: false,
        ..last.clone()
    };
    for (name, range) in [("the last", last), ("10,000", all)] {
        group.throughput(Throughput::Elements(range.rows_max as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let found = lmdb.view(|view| view.datapoints(ACCOUNT, channel(3), &range));
                assert_eq!(found.expect("a view").rows.len(), range.rows_max);
            });
        });
    }
}

fn wait(door: &mut Door, committed: &mut u64, number: u64) {
    while *committed < number {
        match door.committed() {
            Some(up_to) => *committed = up_to.0,
            None => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}

criterion_group! {
    name = bytes;
    config = timed::criterion();
    targets = encode
}
criterion_group!(benches, commit, read, threads, datapoints, stream);
criterion_main!(bytes, benches);
