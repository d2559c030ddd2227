//! All clients return at once to a broker that was killed and started again.
//!
//! Method: children of this process have a share of the clients each, so that the limit of open files counts for each of them.
//!         A child says `ready` when all its clients are subscribed and everything sent to them is acknowledged, returns when it
//!         is told to, and says `back` and how long that took.
//!
//! `SKEIN_STORM_CLIENTS` sets their number, 20,000 by hand.

use std::env;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use super::{ROOMY, number};
use crate::broker::Site;
use crate::descriptors::allow_open_files;
use crate::durability::{assert_balanced, count, counted, counters};
use crate::raw::{PUBACK, Packet, Raw, connect_durable, publish, subscribe};

/// Clients of one child at most.
const SHARE_MAX: usize = 2_500;
/// Messages for each client.
const EACH: usize = 2;
/// Connections that a child has asked for and not seen answered: more than the listen queue of most hosts takes.
const AT_ONCE: usize = 500;

struct Share {
    process: Child,
    commands: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Share {
    fn start(port: u16, first: usize, end: usize) -> Share {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "faults::storm::share_of_a_child", "--ignored", "--nocapture"])
            .env("SKEIN_STORM_SHARE", format!("{port} {first} {end}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Share {
            commands: process.stdin.take().unwrap(),
            lines: BufReader::new(process.stdout.take().unwrap()).lines(),
            process,
        }
    }

    /// What stands behind this word in the line that has it.
    fn await_word(&mut self, word: &str) -> String {
        loop {
            // The test harness of the child writes lines of its own, and may begin one.
            let line = self.lines.next().expect("the child has failed").unwrap();
            if let Some((_, rest)) = line.split_once(word) {
                return rest.to_owned();
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Fails where it has ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_crowd_of_durable_clients_returns_after_a_kill_and_misses_nothing() {
    let clients = number("SKEIN_STORM_CLIENTS", 500);
    let children = clients.div_ceil(SHARE_MAX).max(2);
    let arguments = [&ROOMY[..], &["--private-fds", "on"]].concat();
    let site = Site::new();
    let broker = site.start(4, &arguments);
    let began = Instant::now();
    let end = |child: usize| clients * child / children;
    let mut shares: Vec<_> = (0..children)
        .map(|child| Share::start(site.port(), end(child), end(child + 1)))
        .collect();
    for share in &mut shares {
        share.await_word("ready");
    }
    let prepared = began.elapsed();
    broker.kill();
    let began = Instant::now();
    // One core could have no more descriptors than a process may where this is run.
    let broker = site.start(2, &arguments);
    let started = began.elapsed();
    let began = Instant::now();
    for share in &mut shares {
        writeln!(share.commands, "return").unwrap();
    }
    let connected: Vec<u64> = shares
        .iter_mut()
        .map(|share| share.await_word("back").trim().parse().unwrap())
        .collect();
    eprintln!(
        "{clients} durable clients, subscribed and sent to in {prepared:?}; after the kill the broker was up in {started:?}, all \
         connected again after {} ms, and all messages with them after {:?}; {} KiB resident",
        connected.iter().max().unwrap(),
        began.elapsed(),
        broker.resident_kib()
    );
    let counters_now = counted(&broker);
    assert_balanced(&counters_now);
    assert_eq!(count(&counters_now, "queued_restored"), (clients * EACH) as u64);
    assert_eq!(count(&counters_now, "queued_now"), 0, "{counters_now:?}");
    assert!(
        count(&counters_now, "sessions_now") >= clients as u64,
        "{counters_now:?}"
    );
    drop(shares);
    assert_balanced(&counters(&broker.stop()));
}

#[test]
#[ignore = "the child of the test above"]
fn share_of_a_child() {
    allow_open_files();
    let share = env::var("SKEIN_STORM_SHARE").unwrap();
    let share: Vec<usize> = share.split(' ').map(|number| number.parse().unwrap()).collect();
    let (port, first, end) = (share[0] as u16, share[1], share[2]);
    let name = |n: usize| format!("durable {n}");
    // All of a chunk ask before the first is answered.
    let come = |opening: &dyn Fn(usize) -> Vec<u8>| {
        let mut members = Vec::new();
        for chunk in (first..end).step_by(AT_ONCE) {
            let numbers = chunk..end.min(chunk + AT_ONCE);
            let asked = numbers.map(|n| {
                let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                socket.write_all(&opening(n)).unwrap();
                socket
            });
            let asked: Vec<_> = asked.collect();
            members.extend(asked.into_iter().map(|socket| Raw::over(socket, &[]).unwrap()));
        }
        members
    };
    let acknowledged = Packet::Acknowledgement { kind: 0x90, id: 1 };
    let mut members = come(&|n| [connect_durable(&name(n)), subscribe(&format!("storm/{n}"), 1)].concat());
    for raw in &mut members {
        assert_eq!(raw.packet(), acknowledged, "not the SUBACK");
    }
    let mut publisher = Raw::clean(port, &format!("publisher {first}"));
    for round in 0..EACH {
        for n in first..end {
            let id = (n - first) as u16 + 1;
            publisher.send(&publish(&format!("storm/{n}"), 1, id, round.to_string().as_bytes()));
        }
        for n in first..end {
            let id = (n - first) as u16 + 1;
            assert_eq!(publisher.packet(), Packet::Acknowledgement { kind: PUBACK, id });
        }
    }
    // Some have received, and nobody has acknowledged.
    for raw in members.iter_mut().step_by(10) {
        raw.packet();
    }
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    drop(members);
    let began = Instant::now();
    let mut members = come(&|n| connect_durable(&name(n)));
    let connected = began.elapsed();
    for (n, raw) in (first..end).zip(&mut members) {
        assert!(raw.session_present, "{} is gone", name(n));
        for round in 0..EACH {
            let (topic, payload, qos) = raw.message();
            assert_eq!(
                (topic, payload, qos),
                (format!("storm/{n}"), round.to_string().into_bytes(), 1)
            );
        }
    }
    // What they have acknowledged has been taken in, and nothing else comes.
    for raw in &mut members {
        raw.send(&subscribe("fence", 1));
    }
    for raw in &mut members {
        assert_eq!(raw.packet(), acknowledged, "not the SUBACK of the fence");
    }
    println!("back {}", connected.as_millis());
}
