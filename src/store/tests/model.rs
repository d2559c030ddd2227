//! Any row of records, kept on disk and in memory: both say the same, whatever happens in between.

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use tempfile::tempdir;

use super::platform::model;
use super::{assert_sound, commit, config, ended, message, open, queue_fetch, retained, sorted, started, window};
use crate::mqtt::packet::{PacketId, QoS};
use crate::shard::record::{Fetch, Fetched, Origin, QueueEntry, QueueFetch, Record, RetainedFetch, SessionNumber};
use crate::store::lmdb::{Fault, Lmdb};
use crate::store::memory::Tables;

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
    Platform(model::Op),
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
        60 => model::op().prop_map(Op::Platform),
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
    platform: model::Generator,
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
    model::assert_same(lmdb, tables);
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
