//! A broker that may have little memory: a control group holds it to that, and kills it if it does not keep within its bounds.
//!
//! Holds   - version 1 and 2 of control groups; where none can be made, this says so, and what is resident is compared instead.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::number;
use crate::broker::{Broker, Site, patience};
use crate::durability::{assert_balanced, count, counted, counters};
use crate::hostile::Witness;
use crate::raw::{PUBACK, Packet, Raw, acknowledgement, connect, publish, publish_at_most_once, retained, subscribe};

/// All that the control group may have, page cache included.
const LIMIT_MIB: u64 = 96;

/// A control group with a limit of memory and no swap beyond it.
struct Group {
    directory: PathBuf,
    is_second: bool,
}

impl Group {
    fn make(limit: u64) -> Result<Group, String> {
        let name = format!("skein-faults-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let is_second = root.join("cgroup.controllers").exists();
        let parent = if is_second {
            root.to_owned()
        } else {
            root.join("memory")
        };
        let group = Group {
            directory: parent.join(name),
            is_second,
        };
        let of = |error: std::io::Error| format!("{}: {error}", group.directory.display());
        if !parent.is_dir() {
            return Err(format!("{} is no directory", parent.display()));
        }
        if is_second {
            // It may have been given already.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        fs::create_dir(&group.directory).map_err(of)?;
        let file = if is_second {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        fs::write(group.directory.join(file), limit.to_string()).map_err(of)?;
        // Not there without swap.
        let (file, swap) = match is_second {
            true => ("memory.swap.max", 0),
            false => ("memory.memsw.limit_in_bytes", limit),
        };
        let _ = fs::write(group.directory.join(file), swap.to_string());
        Ok(group)
    }

    /// Words before a command that is to run in it.
    fn enter(&self) -> Vec<String> {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.directory.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).into()
    }

    fn most(&self) -> u64 {
        let file = if self.is_second {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        let text = fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Busy until the kernel has done with the last process.
        let began = Instant::now();
        while fs::remove_dir(&self.directory).is_err() && began.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What is resident at most and is no file's page.
fn anonymous_kib(broker: &Broker) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Slow readers, large messages, queues of many who are away and more retained messages than memory is set aside for: what
/// does not fit is dropped and counted, or on disk.
#[test]
fn a_broker_with_little_memory_sheds_load_and_stays_up() {
    const LARGE: usize = 100_000;
    const KEPT: usize = 10_000;
    const SLOW: usize = 100;
    let away = number("SKEIN_FAULT_AWAY", 100);
    let topics = number("SKEIN_FAULT_RETAINED", 1_000);
    let rounds = number("SKEIN_FAULT_ROUNDS", 3);
    let group = Group::make(LIMIT_MIB << 20);
    let mut site = Site::new();
    match &group {
        Ok(group) => site.set_launcher(group.enter()),
        Err(problem) => eprintln!("no control group here, so only what is resident is compared: {problem}"),
    }
    let arguments = [
        ["--max-outbox", "128 KiB"],
        ["--max-queued", "1000"],
        ["--max-queued-bytes", "256 KiB"],
        ["--retained-memory", "8 MiB"],
        ["--overflow-wait", "50ms"],
        ["--max-inflight", "2"],
    ];
    let mut broker = site.start(4, arguments.as_flattened());
    let mut witness = Witness::start(&broker);
    let began = Instant::now();
    for n in 0..away {
        Raw::durable(site.port(), &format!("away {n}")).subscribe("large/#", 1);
    }
    let slow: Vec<_> = (0..SLOW)
        .map(|n| {
            let mut socket = broker.socket();
            let opening = [connect(&format!("slow {n}")), subscribe("large/#", (n % 3) as u8)].concat();
            socket.write_all(&opening).unwrap();
            socket
        })
        .collect();
    let mut most_kib = 0;
    let mut look = |broker: &Broker| {
        most_kib = most_kib.max(anonymous_kib(broker));
        witness.looks();
    };
    // Several at a time, none of whom waits for another.
    let publishers = 4;
    let payload = vec![b'x'; LARGE];
    thread::scope(|scope| {
        let publishing: Vec<_> = (0..publishers)
            .map(|publisher| {
                let (site, payload) = (&site, &payload);
                scope.spawn(move || {
                    let mut raw = Raw::clean(site.port(), &format!("publisher {publisher}"));
                    for id in 1..=(20 * rounds) as u16 {
                        let topic = format!("large/{publisher}");
                        match id % 3 {
                            0 => raw.send(&publish_at_most_once(&topic, payload)),
                            qos => raw.deliver(&publish(&topic, qos as u8, id, payload), id),
                        }
                    }
                    let kept: Vec<_> = (publisher..topics).step_by(publishers).collect();
                    for chunk in kept.chunks(50) {
                        for (n, id) in chunk.iter().zip(1..) {
                            let packet = publish(&format!("kept/{n}"), 1, id, &payload[..KEPT]);
                            raw.send(&retained(packet));
                        }
                        for id in (1..).take(chunk.len()) {
                            assert_eq!(raw.packet(), Packet::Acknowledgement { kind: PUBACK, id });
                        }
                    }
                })
            })
            .collect();
        while publishing.iter().any(|thread| !thread.is_finished()) {
            look(&broker);
            assert!(
                began.elapsed() < patience(Duration::from_secs(120)),
                "it does not get on"
            );
        }
    });
    look(&broker);
    // All retained messages for a few, who read them.
    for n in 0..3 {
        let mut raw = Raw::clean(site.port(), &format!("reader {n}"));
        raw.send(&subscribe("kept/#", 1));
        let mut came = 0;
        while came < topics {
            if let Packet::Publish { payload, id, .. } = raw.packet() {
                assert_eq!(payload.len(), KEPT);
                raw.send(&acknowledgement(PUBACK, id));
                came += 1;
            }
        }
        look(&broker);
    }
    assert_eq!(broker.await_end(Duration::ZERO), None, "the broker has ended");
    let counters_now = counted(&broker);
    assert_balanced(&counters_now);
    let dropped = count(&counters_now, "dropped_queue_full") + count(&counters_now, "dropped_away");
    assert!(dropped > 0, "{counters_now:?}");
    assert!(count(&counters_now, "dropped_outbox_full") > 0, "{counters_now:?}");
    let most = group.as_ref().map_or(0, Group::most) >> 20;
    eprintln!(
        "{} KiB of the broker's own at most, {most} MiB of {LIMIT_MIB} with the page cache, in {:?}",
        most_kib,
        began.elapsed()
    );
    assert!(most_kib < LIMIT_MIB << 10, "{most_kib} KiB");
    drop(slow);
    drop(witness);
    // What is kept for those who are away is whole.
    let mut back = Raw::durable(site.port(), "away 0");
    let (_, payload, _) = back.message();
    assert_eq!(payload.len(), LARGE);
    drop(back);
    assert_balanced(&counters(&broker.stop()));
}
