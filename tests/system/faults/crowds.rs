//! Clients in crowds that read nothing, never say who they are, or subscribe to more than they may.
//!
//! `SKEIN_FAULT_CLIENTS` sets their number, 10,000 by hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect as connect_socket, socket_with};

use super::number;
use crate::broker::{Broker, FOUR_CORES, Setting, patience};
use crate::descriptors::allow_open_files;
use crate::durability::{assert_balanced, count, counted, counters};
use crate::hostile::Witness;
use crate::raw::{Raw, connect, publish, publish_at_most_once, subscribe};

fn clients() -> usize {
    number("SKEIN_FAULT_CLIENTS", 300)
}

fn setting() -> Setting {
    FOUR_CORES[0]
}

/// So many connections that have sent this.
fn connections(broker: &Broker, bytes: impl Fn(usize) -> Vec<u8>) -> Vec<TcpStream> {
    allow_open_files();
    let connection = |n| {
        // With little room: who does not read stops the broker after some kilobytes, not after megabytes.
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        set_socket_recv_buffer_size(&socket, 4_096).unwrap();
        connect_socket(&socket, &broker.address()).unwrap();
        let mut socket = TcpStream::from(socket);
        socket
            .set_read_timeout(Some(patience(Duration::from_secs(20))))
            .unwrap();
        socket.write_all(&bytes(n)).unwrap();
        socket
    };
    (0..clients()).map(connection).collect()
}

#[test]
fn a_crowd_that_never_reads_costs_what_its_bounds_say_and_nobody_else_notices() {
    const PAYLOAD: usize = 8_000;
    const MESSAGES: u16 = 100;
    const OUTBOX_KIB: u64 = 32;
    // The packet that overshoots it; a buffer that grows is doubled.
    const BUFFER_KIB: u64 = 2 * (OUTBOX_KIB + 8);
    // What a Session and its connection cost beside it.
    const FURTHER_KIB: u64 = 2;
    let arguments = [
        ["--max-outbox", "32 KiB"],
        ["--max-queued", "10"],
        ["--max-inflight", "4"],
        ["--overflow-wait", "10ms"],
    ];
    let broker = Broker::start(setting(), arguments.as_flattened());
    let mut witness = Witness::start(&broker);
    let mut sockets = connections(&broker, |n| {
        [connect(&format!("deaf {n}")), subscribe("flood", (n % 2) as u8)].concat()
    });
    for (n, socket) in sockets.iter_mut().enumerate() {
        let mut answer = [0; 9];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 0, 0x90, 3, 0, 1, (n % 2) as u8]);
    }
    witness.looks();
    let before = broker.resident_kib();
    let mut publisher = Raw::clean(broker.port, "publisher");
    let mut slowest = Duration::ZERO;
    let began = Instant::now();
    let rounds = number("SKEIN_FAULT_ROUNDS", 3);
    for _ in 0..rounds {
        for id in 1..=MESSAGES {
            match id % 10 {
                0 => publisher.deliver(&publish("flood", 1, id, &[b'x'; PAYLOAD]), id),
                _ => publisher.send(&publish_at_most_once("flood", &[b'x'; PAYLOAD])),
            }
        }
        let looked = Instant::now();
        witness.looks();
        slowest = slowest.max(looked.elapsed());
    }
    publisher.fence();
    let grown = broker.resident_kib().saturating_sub(before);
    let bound = clients() as u64 * (BUFFER_KIB + FURTHER_KIB) + 32 * 1024;
    eprintln!(
        "{} clients that do not read: {grown} KiB more, of {bound}; ten trips of a witness took {slowest:?} at most; {:?}",
        clients(),
        began.elapsed()
    );
    assert!(grown < bound, "{grown} KiB for {} clients", clients());
    let counters_now = counted(&broker);
    assert_balanced(&counters_now);
    assert!(count(&counters_now, "dropped_outbox_full") > 0, "{counters_now:?}");
    assert!(count(&counters_now, "dropped_queue_full") > 0, "{counters_now:?}");
    drop(sockets);
    assert_balanced(&counters(&broker.stop()));
}

#[test]
fn a_crowd_that_never_says_who_it_is_goes_after_the_connect_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let broker = Broker::start(setting(), &["--connect-timeout", "2s"]);
    let mut witness = Witness::start(&broker);
    let began = Instant::now();
    let mut sockets = connections(&broker, |n| connect(&format!("half {n}"))[..1 + n % 14].to_vec());
    let connected = began.elapsed();
    let mut looks = Vec::new();
    // Those who come meanwhile are served, and so is who is there.
    while count(&counted(&broker), "closed_connect_timeout") < clients() as u64 {
        let looked = Instant::now();
        witness.looks();
        looks.push(looked.elapsed());
        drop(Raw::clean(broker.port, "newcomer"));
        assert!(
            began.elapsed() < connected + patience(TIMEOUT + Duration::from_secs(10)),
            "some are open in spite of the connect timeout: {:?}",
            counted(&broker)
        );
        sleep(Duration::from_millis(50));
    }
    let took = began.elapsed();
    for socket in &mut sockets {
        let mut byte = [0];
        // A RST where the broker had not read all of it.
        assert!(!matches!(socket.read(&mut byte), Ok(1..)), "answered");
    }
    let slowest = looks.iter().max().copied().unwrap_or_default();
    eprintln!(
        "{} half connects: made in {connected:?}, all closed after {took:?}; ten trips of a witness took {slowest:?} at most",
        clients()
    );
    witness.looks();
    assert_balanced(&counters(&broker.stop()));
}

#[test]
fn a_flood_of_subscriptions_is_refused_beyond_what_a_session_may_hold() {
    const ALLOWED: usize = 50;
    const ASKED: usize = 60;
    let broker = Broker::start(setting(), &["--max-subscriptions", "50"]);
    allow_open_files();
    let mut witness = Witness::start(&broker);
    let before = broker.resident_kib();
    let began = Instant::now();
    let mut sessions = Vec::new();
    for n in 0..clients() {
        let mut raw = Raw::clean(broker.port, &format!("greedy {n}"));
        // Some for everybody alike, some with wildcards, most for itself alone.
        let filters: Vec<_> = (0..ASKED)
            .map(|m| match m % 10 {
                0 => format!("greedy/common/{m}"),
                1 => format!("greedy/+/{n}/{m}/#"),
                _ => format!("greedy/{n}/{m}"),
            })
            .collect();
        let filters: Vec<_> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
        let granted = raw.granted(&filters);
        let (first, beyond) = granted.split_at(ALLOWED);
        assert!(first.iter().all(|code| *code == 1), "{granted:?}");
        assert!(beyond.iter().all(|code| *code == 0x80), "{granted:?}");
        sessions.push(raw);
        if n % 100 == 0 {
            witness.looks();
        }
    }
    let grown = broker.resident_kib().saturating_sub(before);
    eprintln!(
        "{} sessions with {ALLOWED} filters: {grown} KiB more, in {:?}",
        clients(),
        began.elapsed()
    );
    // What was granted is served, what was refused is not.
    let last = clients() - 1;
    witness.looks();
    let mut publisher = Raw::clean(broker.port, "publisher");
    for (topic, is_served) in [
        (format!("greedy/{last}/49"), true),
        (format!("greedy/{last}/59"), false),
    ] {
        publisher.deliver(&publish(&topic, 1, 1, b"x"), 1);
        let raw = sessions.last_mut().unwrap();
        if is_served {
            assert_eq!(raw.message().0, topic);
        } else {
            assert_eq!(raw.message_within(patience(Duration::from_millis(300))), None);
        }
    }
    // A filter that goes makes room for another.
    let raw = &mut sessions[0];
    assert_eq!(raw.granted(&[("one/more", 1)]), [0x80]);
    raw.unsubscribe("greedy/common/0");
    assert_eq!(raw.granted(&[("one/more", 1)]), [1]);
    let counters_now = counted(&broker);
    let refused = ((ASKED - ALLOWED) * clients() + 1) as u64;
    assert_eq!(count(&counters_now, "subscribe_refused"), refused, "{counters_now:?}");
    drop(sessions);
    assert_balanced(&counters(&broker.stop()));
}
