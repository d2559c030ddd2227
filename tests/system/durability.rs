//! What the broker promises of its disk, kept by the real binary: it is killed, stopped, started again with other cores, on
//! full, failing and damaged disks; and what it has acknowledged is there.

pub mod crowd;
mod data_dir;
pub mod disk;
mod kill_loop;
mod overflow;
mod restart;

use crate::broker::{Broker, patience};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// From this variable of the environment, or another one each time.
pub fn seed(variable: &str) -> u64 {
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into();
    std::env::var(variable).map_or_else(|_| now(), |seed| seed.parse().unwrap())
}

/// What a line of the log says was counted, by name; the last such line.
pub fn counters(log: &str) -> BTreeMap<String, u64> {
    let line = log.lines().rfind(|line| line.contains("counters=\""));
    let line = line.unwrap_or_else(|| panic!("no counters in the log: {log}"));
    let from = line.find("counters=\"").unwrap() + "counters=\"".len();
    let counters = line[from..].split('"').next().unwrap().split_whitespace();
    let pair = |pair: &str| {
        pair.split_once('=')
            .map(|(name, count)| (name.to_owned(), count.parse().unwrap()))
    };
    counters.filter_map(pair).collect()
}

/// One counter, 0 where it is not said.
pub fn count(counters: &BTreeMap<String, u64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

/// The counters of a broker that runs.
pub fn counted(broker: &Broker) -> BTreeMap<String, u64> {
    let reports = || broker.written().matches("counted so far").count();
    let (before, began) = (reports(), Instant::now());
    broker.signal(Signal::USR1);
    while reports() == before {
        assert!(
            began.elapsed() < patience(Duration::from_secs(20)),
            "SIGUSR1 is answered by counters in the log: {}",
            broker.written()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    counters(&broker.written())
}

/// Every match of a message and a Session, of this run or restored, has come to exactly one end.
pub fn assert_balanced(counters: &BTreeMap<String, u64>) {
    let dropped: u64 = counters
        .iter()
        .filter(|(name, _)| name.starts_with("dropped_"))
        .map(|(_, count)| count)
        .sum();
    let delivered: u64 = (0..3).map(|qos| count(counters, &format!("delivered_qos{qos}"))).sum();
    assert_eq!(
        count(counters, "matched") + count(counters, "queued_restored"),
        delivered + dropped + count(counters, "expired") + count(counters, "queued_now"),
        "matched + queued_restored = delivered + dropped + expired + queued_now: {counters:?}"
    );
}

/// Most of it is zeros, which take no space.
fn write_sparse(path: &Path, image: &[u8]) {
    let mut file = File::create(path).unwrap();
    for (index, block) in image.chunks(1 << 16).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start((index as u64) << 16)).unwrap();
            file.write_all(block).unwrap();
        }
    }
    file.set_len(image.len() as u64).unwrap();
}
