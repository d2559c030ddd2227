//! The store as the API has it, beside the cores; as `skein account` has it without a broker; and one that is killed.

use std::sync::mpsc;

use tempfile::{TempDir, tempdir};

use super::super::{Running, assert_sound, child, child_dir, commit, open};
use super::{
    ACCOUNT, TAGS, account, bytes_of_one, channel, channel_id, datapoint, datapoint_of, everything, found_times,
    tag_removed, usage,
};
use crate::registry::datapoint::DatapointId;
use crate::shard::record::Record;
use crate::store::client::Client;
use crate::store::error::StoreError;
use crate::store::lmdb::{Fault, Lmdb};
use crate::store::offline::change_offline;
use crate::store::streams::DatapointRange;
use crate::store::writer::{Store, StoreConfig};

// --- the client ------------------------------------------------------------------------------------------------------

fn running(dir: &TempDir) -> (Store, Client) {
    let (mut store, _) = Store::open(StoreConfig::new(dir.path())).unwrap();
    let doors = store.start(vec![Box::new(|| {})]).unwrap();
    assert_eq!(doors.len(), 1, "the client's is its own");
    let client = store.client();
    (store, client)
}

#[test]
fn a_client_is_told_after_the_commit_and_in_the_order_of_its_calls() {
    let dir = tempdir().unwrap();
    let (store, client) = running(&dir);
    let (told, tell) = mpsc::channel();
    let then = |at: u64| {
        let (told, client) = (told.clone(), client.clone());
        move || {
            let times = client.view(|view| {
                let found = view.datapoints(ACCOUNT, channel_id(1), &everything())?;
                Ok(Vec::from_iter(found.rows.iter().map(|row| row.id.at_ms())))
            });
            told.send((at, times.unwrap())).unwrap();
        }
    };
    client.persist(vec![account(1, u64::MAX), channel(ACCOUNT, 1, &[])], then(0));
    for at in 1..=100 {
        client.persist(vec![datapoint(1, at, "")], then(at));
    }
    for expected in 0..=100 {
        let (at, times) = tell.recv().unwrap();
        assert_eq!(at, expected);
        assert!(
            times.len() as u64 >= at && times.is_sorted(),
            "it is told before it can be seen"
        );
    }
    // Whoever is told may come back at once, with nothing too.
    let (again, done) = (client.clone(), told.clone());
    client.persist(vec![channel(ACCOUNT, 2, &[])], move || {
        let done = done.clone();
        let next = again.clone();
        again.persist(vec![channel(ACCOUNT, 3, &[])], move || {
            next.persist(Vec::new(), move || done.send((777, Vec::new())).unwrap());
        });
    });
    assert_eq!(tell.recv().unwrap().0, 777);
    client.persist(vec![datapoint(9, 1, "")], || {});
    let report = store.stop();
    assert_eq!((report.waiting_records, report.dropped_datapoints), (0, 1));
}

#[test]
fn a_client_is_used_by_many_threads_beside_the_cores() {
    let dir = tempdir().unwrap();
    let (store, client) = running(&dir);
    let (done, wait) = mpsc::channel();
    client.persist(vec![account(1, u64::MAX), channel(ACCOUNT, 1, &[])], || {});
    std::thread::scope(|scope| {
        for thread in 0..4u16 {
            let (client, done) = (client.clone(), done.clone());
            scope.spawn(move || {
                for at in 0..200u32 {
                    let id = DatapointId::new(1 + u64::from(at), thread, at);
                    let done = done.clone();
                    client.persist(vec![datapoint_of(ACCOUNT, 1, id, "", None)], move || {
                        done.send(()).unwrap()
                    });
                    let usage = client.view(|view| view.usage(ACCOUNT)).unwrap();
                    assert!(usage.count <= 800);
                }
            });
        }
    });
    (0..800).for_each(|_| wait.recv().unwrap());
    assert_eq!(client.view(|view| view.usage(ACCOUNT)).unwrap(), usage(800));
    assert_eq!(store.stop().waiting_records, 0);
}

#[test]
fn nobody_is_told_of_what_the_disk_does_not_take_and_the_directory_is_free_again() {
    let dir = tempdir().unwrap();
    let (store, client) = running(&dir);
    store.fail_with((0..50).map(|_| Fault::Disk(std::io::Error::from_raw_os_error(28))));
    let (told, tell) = mpsc::channel::<()>();
    client.persist(vec![account(1, u64::MAX)], move || told.send(()).unwrap());
    let report = store.stop();
    assert_eq!(report.waiting_records, 1);
    drop(client);
    // The closure is dropped with the last client: it is neither called nor kept.
    tell.recv().unwrap_err();
    let (stored, _) = open(dir.path()).0.load(0).unwrap();
    assert_eq!(stored.accounts, []);
}

// --- without a broker ------------------------------------------------------------------------------------------------

#[test]
fn a_store_is_changed_without_a_broker_and_not_beside_one() {
    let dir = tempdir().unwrap();
    let inner = dir.path().join("data");
    let change = |config: StoreConfig| {
        change_offline::<_, StoreError>(config, |stored| {
            let next = stored.newest_account + 1;
            Ok((vec![account(next, u64::MAX)], next))
        })
    };
    for expected in 1..=3 {
        assert_eq!(change(StoreConfig::new(&inner)).unwrap(), expected);
    }
    #[derive(Debug)]
    struct No;
    impl From<StoreError> for No {
        fn from(error: StoreError) -> No {
            panic!("{error}")
        }
    }
    let refused = change_offline(StoreConfig::new(&inner), |_| Err::<(Vec<Record>, ()), _>(No));
    refused.unwrap_err();
    let (store, stored) = Store::open(StoreConfig::new(&inner)).unwrap();
    assert_eq!(stored.accounts.len(), 3);
    let error = change(StoreConfig::new(&inner)).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    assert_eq!(change(StoreConfig::new(&inner)).unwrap(), 4);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for file in std::fs::read_dir(&inner).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_change_without_a_broker_grows_the_map() {
    let dir = tempdir().unwrap();
    let config = StoreConfig {
        map_bytes: 256 << 10,
        ..StoreConfig::new(dir.path())
    };
    let records = (1..=5_000).map(|id| account(id, u64::MAX)).collect();
    change_offline::<_, StoreError>(config, |_| Ok((records, ()))).unwrap();
    assert_eq!(
        Lmdb::open(super::super::config(dir.path()))
            .unwrap()
            .load(0)
            .unwrap()
            .0
            .accounts
            .len(),
        5_000
    );
}

// --- with another process --------------------------------------------------------------------------------------------

const OF_THE_KILLED: u64 = 300;

#[test]
fn ingests_until_killed_child() {
    let Some(dir) = child_dir() else { return };
    let mut running = Running::new(&dir, 1);
    running.push(0, account(1, OF_THE_KILLED * bytes_of_one()));
    running.push(0, channel(ACCOUNT, 1, &[]));
    for at in 1.. {
        running.push(0, datapoint(1, at, TAGS[at as usize % TAGS.len()]));
        if at % 50 == 0 {
            running.push(0, tag_removed(1, "a"));
        }
        if at % 3 == 0 {
            running.doors[0].flush();
        }
        if running.doors[0].committed().is_some() {
            // Whatever was committed is told of here, in its own words.
            let newest = running.store.client().view(|view| {
                let last = DatapointRange {
                    newest_first: true,
                    rows_max: 1,
                    ..everything()
                };
                view.datapoints(ACCOUNT, channel_id(1), &last)
            });
            println!("newest {}", newest.unwrap().rows[0].id.at_ms());
        }
    }
}

/// Counts, limits and tags agree with the datapoints, whenever the process ends; what was seen is there.
#[test]
fn a_stream_survives_kill_9() {
    use std::io::BufRead;
    for lines in [2, 30, 90] {
        let dir = tempdir().unwrap();
        let mut process = child("platform::client::ingests_until_killed", dir.path())
            .spawn()
            .unwrap();
        let newest = std::io::BufReader::new(process.stdout.take().unwrap())
            .lines()
            .filter_map(|line| line.unwrap().strip_prefix("newest ")?.parse::<u64>().ok())
            .nth(lines)
            .unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let (lmdb, mut applier) = open(dir.path());
        assert_sound(&lmdb);
        let times = found_times(&lmdb);
        assert!(times.last() >= Some(&newest), "{newest} was there, {times:?}");
        assert!(times.len() as u64 <= OF_THE_KILLED);
        assert!(
            times.windows(2).all(|pair| pair[1] - pair[0] <= 2),
            "one of four is removed"
        );
        while applier.is_behind() {
            commit(&lmdb, &mut applier, &[]);
        }
        assert_eq!(found_times(&lmdb), times);
        assert_sound(&lmdb);
    }
}
