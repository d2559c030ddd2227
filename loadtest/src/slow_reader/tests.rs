//! Slow readers of brokers that wait for them, drop for them, or cut them off.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use clap::Parser;

use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::packet;

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

fn settings(flags: &str) -> Settings {
    let all = format!("slow-reader --readers 2 --seconds 1 --pairs 1 --pair-rate 200 --size 64 {flags}");
    Flags::parse_from(all.split_ascii_whitespace()).settings
}

#[test]
fn a_patient_broker_loses_nothing_and_all_is_told() {
    let broker = FakeBroker::start(Fault::None);
    for flags in [
        "--rate 200 --qos 1",
        "--rate 200 --qos 2 --read-rate 5000",
        "--rate 200",
    ] {
        let figures = run(&broker.address, Some(std::process::id()), &settings(flags)).unwrap();
        let counts = &figures.counts;
        assert_eq!(
            (figures.verdict, counts.cut, counts.dropped),
            (Verdict::Good, 0, 0),
            "{figures}"
        );
        assert!(counts.sent >= 150 && counts.received == counts.sent * 2, "{figures}");
        assert_eq!(
            counts.read_while_slow_bytes > 0,
            flags.contains("--read-rate"),
            "{figures}"
        );
        assert!(
            figures.memory.is_some() && figures.to_string().contains("KiB at"),
            "{figures}"
        );
        let bystanders = &figures.bystanders;
        let phases = [&bystanders.before_us, &bystanders.during_us, &bystanders.after_us];
        assert!(phases.iter().all(|phase| phase.count > 100), "{figures}");
    }
}

#[test]
fn what_is_dropped_or_doubled_is_told_and_only_the_second_is_a_fault() {
    for fault in [Fault::LosesOne, Fault::DoublesOne] {
        // The fault meets a message at QoS 1: the bystanders' have QoS 0.
        let broker = FakeBroker::start(fault);
        let figures = run(&broker.address, None, &settings("--rate 200 --qos 1")).unwrap();
        let is_lossy = fault == Fault::LosesOne;
        assert_eq!(figures.counts.dropped, if is_lossy { 2 } else { 0 }, "{figures}");
        assert_eq!(figures.verdict == Verdict::Good, is_lossy, "{figures}");
    }
}

/// A broker that feeds nobody and closes on the subscribers whose id has an s when the first message comes.
fn impatient() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut slow: Vec<TcpStream> = Vec::new();
        let mut count = 0;
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut buffer = [0; 4096];
            let n = socket.read(&mut buffer).unwrap();
            let is_slow = n > 24 && buffer[24] == b's';
            socket.write_all(&[0x20, 2, 0, 0]).unwrap();
            count += 1;
            // A pair, two slow readers, then who feeds them.
            if count == 1 || is_slow {
                let n = socket.read(&mut buffer).unwrap();
                socket.write_all(&[0x90, 3, 0, 1, buffer[n - 1]]).unwrap();
            }
            if is_slow {
                slow.push(socket);
            } else {
                if count == 5 {
                    slow.clear();
                }
                thread::spawn(move || while let Ok(1..) = socket.read(&mut buffer) {});
            }
        }
    });
    address
}

#[test]
fn who_is_cut_off_is_counted_and_ends_no_run() {
    let figures = run(&impatient(), None, &settings("--rate 200")).unwrap();
    assert_eq!((figures.counts.cut, figures.counts.dropped), (2, 0), "{figures}");
    assert_eq!(figures.verdict, Verdict::Good);
    let mut short = settings("");
    short.seconds = 0.0;
    let error = run("127.0.0.1:9", None, &short).unwrap_err().to_string();
    assert!(error.contains("--seconds 0"), "{error}");
    // The packet of the broker above is the shape it looks for: 14 bytes before the id, of which the 11th is the role.
    let mut connect = Vec::new();
    let credentials = Credentials::default();
    packet::connect(
        &mut connect,
        "sr00000000s0",
        crate::packet::SessionKind::Clean,
        0,
        &credentials,
    );
    assert_eq!(connect[24], b's');
}
