//! A running store: what its cores are told, growth and purges, another process beside it, and one that is killed.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use super::{
    Running, assert_sound, child, child_dir, commit, config, delivered, ended, open, queue_fetch, queued, started,
    window,
};
use crate::mqtt::packet::PacketId;
use crate::shard::RecordNumber;
use crate::shard::record::{Fetch, Fetched, Origin, QueueFetch, Record, SessionNumber, Stored};
use crate::store::Door;
use crate::store::inspect::{inspect, look_at};
use crate::store::lmdb::{Fault, Lmdb, LmdbConfig, Table};
use crate::store::writer::{Store, StoreConfig};

// --- threads ---------------------------------------------------------------------------------------------------------

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
    let left = |lmdb: &Lmdb| lmdb.view(|view| view.size(Table::Queues)).unwrap().entries;
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
    for table in Table::ALL.into_iter().skip(1) {
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
    for table in [Table::Queues, Table::Origins, Table::Received] {
        assert_eq!(lmdb.view(|view| view.size(table)).unwrap().entries, 0);
    }
}

// --- with another process --------------------------------------------------------------------------------------------

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
    let looked = child("threads::inspects", dir.path()).output().unwrap();
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
        let mut process = child("threads::pushes_until_killed", dir.path()).spawn().unwrap();
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
    let output = child("threads::writes_past_its_limit", dir.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("went on"),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (lmdb, _) = open(dir.path());
    assert_eq!(assert_sound(&lmdb).queued_messages, 400);
}
