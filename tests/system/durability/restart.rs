//! Stop or kill, and start again: what a Session holds is there, whatever the number of cores.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::{assert_balanced, count, counted, counters, seed};
use crate::broker::{Broker, Site, patience};
use crate::clients::{Agent, Library, Message, MosquittoSub, hello, mosquitto_pub};
use crate::power_cut::Random;
use crate::raw::{PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Raw, acknowledgement, publish};

/// How a run ends, and the cores of the one after it.
const ENDS: [(End, u16); 4] = [(End::Stop, 4), (End::Stop, 1), (End::Kill, 4), (End::Kill, 1)];

#[derive(Clone, Copy, Debug)]
enum End {
    Stop,
    Kill,
}

fn end(broker: Broker, how: End) {
    match how {
        End::Stop => drop(broker.stop()),
        End::Kill => drop(broker.kill()),
    }
}

fn number(payload: &[u8]) -> usize {
    let label = payload.split(|&byte| byte == b' ').next().unwrap();
    std::str::from_utf8(label).unwrap().parse().unwrap()
}

/// [MQTT-3.1.2-4] [MQTT-3.2.2-2] [MQTT-4.4.0-1] [MQTT-4.6.0-6]: a client by hand leaves a QoS 1 message, a QoS 2 message
/// before its PUBREC and one after it in the air; libraries fill the queue behind them.
#[test]
fn a_restart_keeps_queues_in_order_and_what_is_in_flight_under_its_identifiers() {
    const COUNT: usize = 400;
    let site = Site::new();
    let mut broker = site.start(1, &[]);
    let mut paho = Agent::start(Library::Paho);
    for (round, (how, cores)) in ENDS.into_iter().enumerate() {
        let id = format!("in flight {round}");
        let mut raw = Raw::durable(site.port(), &id);
        raw.subscribe(&format!("restart/{round}/+"), 2);
        drop(raw);
        paho.connect("p", &broker, hello("publisher"));
        for qos in [1, 2] {
            paho.begin_burst("p", &format!("restart/{round}/{qos}"), qos, "", COUNT, 30);
            paho.await_burst("p");
        }
        paho.disconnect("p");

        let mut raw = Raw::durable(site.port(), &id);
        assert!(raw.session_present);
        // The first message at QoS 1 is acknowledged, so that the second is the first again.
        let mut sent = Vec::new();
        let Packet::Publish { id: first, .. } = raw.packet() else {
            panic!("no PUBLISH")
        };
        for _ in 0..30 {
            let Packet::Publish { id, dup, qos: 1, .. } = raw.packet() else {
                panic!("no PUBLISH at QoS 1")
            };
            assert!(!dup, "the first time it is sent");
            sent.push(id);
        }
        raw.send(&acknowledgement(PUBACK, first));
        for packet in raw.fence() {
            let Packet::Publish { id, qos, .. } = packet else {
                panic!("{packet:?}")
            };
            sent.extend((qos == 1).then_some(id));
        }
        drop(raw);
        end(broker, how);
        broker = site.start(cores, &[]);

        let mut raw = Raw::durable(site.port(), &id);
        assert!(raw.session_present, "{how:?}, then {cores} cores");
        let mut numbers: BTreeMap<u8, Vec<usize>> = BTreeMap::from([(1, vec![0]), (2, vec![])]);
        for (index, expected) in sent.iter().enumerate() {
            let packet = raw.packet();
            let Packet::Publish {
                id,
                dup,
                qos: 1,
                payload,
                ..
            } = &packet
            else {
                panic!("{packet:?} where the QoS 1 messages in flight come again")
            };
            // After a kill the first one may come again: its PUBACK was waited for by nobody.
            if index == 0 && *id == first {
                panic!("{packet:?}: acknowledged, and what came after it was on disk");
            }
            assert_eq!((*id, *dup), (*expected, true), "{how:?}, then {cores} cores");
            numbers.get_mut(&1).unwrap().push(number(payload));
            raw.send(&acknowledgement(PUBACK, *id));
        }
        // The rest, and of the QoS 2 ones those in flight when another run ends.
        while numbers[&1].len() < COUNT {
            let (_, payload, qos) = raw.message();
            numbers.get_mut(&qos).unwrap().push(number(&payload));
        }
        while numbers[&2].len() < COUNT / 2 {
            let (_, payload, qos) = raw.message();
            numbers.get_mut(&qos).unwrap().push(number(&payload));
        }
        let (unreceived, received) = two_in_flight(&mut raw, &mut numbers);
        drop(raw);
        end(broker, how);
        broker = site.start(cores, &[]);

        let mut raw = Raw::durable(site.port(), &id);
        assert!(raw.session_present);
        let mut seen = (false, false);
        while numbers[&2].len() < COUNT || !seen.0 || !seen.1 {
            match raw.packet() {
                Packet::Publish {
                    id,
                    payload,
                    dup,
                    qos: 2,
                    ..
                } => {
                    assert_ne!(id, received, "after its PUBREC only PUBREL may come");
                    if id == unreceived {
                        assert!(dup, "it has been sent before");
                        seen.0 = true;
                    }
                    numbers.get_mut(&2).unwrap().push(number(&payload));
                    raw.send(&acknowledgement(PUBREC, id));
                }
                Packet::Acknowledgement { kind: PUBREL, id } => {
                    seen.1 |= id == received;
                    raw.send(&acknowledgement(PUBCOMP, id));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, (true, true), "{how:?}, then {cores} cores");
        for (qos, numbers) in numbers {
            let expected: Vec<_> = (0..COUNT).collect();
            assert_eq!(numbers, expected, "QoS {qos}, {how:?}, then {cores} cores");
        }
    }
    broker.stop();
}

/// One message that is sent and not answered, and one of which only PUBREC is answered: their identifiers.
fn two_in_flight(raw: &mut Raw, numbers: &mut BTreeMap<u8, Vec<usize>>) -> (u16, u16) {
    loop {
        match raw.packet() {
            Packet::Publish { id, payload, .. } => {
                numbers.get_mut(&2).unwrap().push(number(&payload));
                raw.send(&acknowledgement(PUBREC, id));
                let unreceived = loop {
                    match raw.packet() {
                        Packet::Publish { id, .. } => break id,
                        Packet::Acknowledgement { id, .. } => raw.send(&acknowledgement(PUBCOMP, id)),
                    }
                };
                // PUBREL: the broker has PUBREC on disk.
                loop {
                    match raw.packet() {
                        Packet::Acknowledgement {
                            kind: PUBREL,
                            id: released,
                        } if released == id => {
                            return (unreceived, id);
                        }
                        Packet::Acknowledgement { id, .. } => raw.send(&acknowledgement(PUBCOMP, id)),
                        Packet::Publish { .. } => {}
                    }
                }
            }
            Packet::Acknowledgement { id, .. } => raw.send(&acknowledgement(PUBCOMP, id)),
        }
    }
}

#[test]
fn a_restart_keeps_subscriptions_and_retained_messages() {
    let site = Site::new();
    let mut broker = site.start(4, &[]);
    let mut raw = Raw::durable(site.port(), "keeper");
    assert!(!raw.session_present);
    for filter in ["kept/+/x", "#", "kept/one/#", "left"] {
        raw.subscribe(filter, 1);
    }
    raw.send(b"\xa2\x05\x00\x02\x00\x01#");
    assert_eq!(raw.packet(), Packet::Acknowledgement { kind: 0xb0, id: 2 });
    drop(raw);
    let retained = |n: usize, payload: &str| Message::new(&format!("retained/{n}"), payload, (n % 3) as u8, true);
    for n in 0..30 {
        mosquitto_pub(&broker, &["-i", "writer"], &retained(n, "old"));
    }
    for (how, cores) in ENDS {
        let word = format!("{how:?} {cores}");
        for n in 0..30 {
            match n % 10 {
                0 => mosquitto_pub(&broker, &["-i", "writer"], &retained(n, "")),
                1..3 => mosquitto_pub(&broker, &["-i", "writer"], &retained(n, &word)),
                _ => {}
            }
        }
        // QoS 0 messages are retained too, but nobody waits for the disk: an acknowledged one after them does.
        mosquitto_pub(
            &broker,
            &["-i", "writer"],
            &Message::new("retained/last", "last", 1, true),
        );
        end(broker, how);
        broker = site.start(cores, &[]);
        let mut sub = MosquittoSub::start(&broker, &["-q", "2", "-t", "retained/+"]);
        let mut got = sub.messages(28);
        got.sort();
        let mut expected: Vec<_> = (0..30)
            .filter(|n| n % 10 != 0)
            .map(|n| retained(n, if n % 10 < 3 { &word } else { "old" }))
            .collect();
        expected.push(Message::new("retained/last", "last", 1, true));
        expected.sort();
        assert_eq!(got, expected, "{how:?}, then {cores} cores");

        let mut raw = Raw::durable(site.port(), "keeper");
        assert!(raw.session_present);
        for topic in ["kept/two/x", "kept/two/y", "left", "kept/one/y/z"] {
            mosquitto_pub(&broker, &[], &Message::new(topic, "any", 1, false));
        }
        let topics = [(); 3].map(|()| raw.message().0);
        assert_eq!(
            topics,
            ["kept/two/x", "left", "kept/one/y/z"],
            "{how:?}, then {cores} cores"
        );
        // A QoS 1 message that is not acknowledged on disk comes again; here it shall not.
        raw.fence();
    }
    broker.stop();
}

#[test]
fn a_clean_connect_that_ends_a_durable_session_is_final_over_a_kill() {
    let site = Site::new();
    let mut broker = site.start(1, &[]);
    for (round, cores) in [4, 1, 4, 1, 1, 4].into_iter().enumerate() {
        let id = format!("ends {round}");
        let mut raw = Raw::durable(site.port(), &id);
        raw.subscribe("ends/#", 1);
        drop(raw);
        mosquitto_pub(&broker, &[], &Message::new("ends/a", "queued", 1, false));
        let raw = Raw::clean(site.port(), &id);
        assert!(!raw.session_present);
        broker.kill();
        drop(raw);
        broker = site.start(cores, &[]);
        let mut raw = Raw::durable(site.port(), &id);
        assert!(!raw.session_present, "round {round}: the Session is there again");
        raw.fence();
        mosquitto_pub(&broker, &[], &Message::new("ends/a", "subscribed", 1, false));
        mosquitto_pub(&broker, &[], &Message::new("fence", "fence", 1, false));
        assert_eq!(raw.message().1, b"fence", "round {round}");
    }
    broker.stop();
}

#[test]
fn a_session_expires_while_the_broker_runs_and_while_it_does_not() {
    const EXPIRY: [&str; 2] = ["--session-expiry", "2s"];
    let site = Site::new();
    let mut broker = site.start(4, &EXPIRY);
    let here = Raw::durable(site.port(), "here");
    let mut away = Raw::durable(site.port(), "away");
    away.subscribe("expires", 1);
    drop(away);
    mosquitto_pub(&broker, &[], &Message::new("expires", "queued", 1, false));
    let expired = |broker: &Broker| {
        let began = Instant::now();
        loop {
            let counters = counted(broker);
            assert_balanced(&counters);
            if count(&counters, "sessions_expired") > 0 {
                return counters;
            }
            assert!(
                began.elapsed() < patience(Duration::from_secs(20)),
                "no Session has expired: {counters:?}"
            );
            sleep(Duration::from_millis(200));
        }
    };
    let counters = expired(&broker);
    assert_eq!(count(&counters, "expired"), 1, "the message that waited: {counters:?}");
    assert!(!Raw::durable(site.port(), "away").session_present);
    drop(here);
    assert!(
        Raw::durable(site.port(), "here").session_present,
        "it was connected all the time"
    );

    let mut away = Raw::durable(site.port(), "while down");
    away.subscribe("expires", 1);
    drop(away);
    mosquitto_pub(&broker, &[], &Message::new("expires", "queued", 1, false));
    // The second at which it went is on disk by then.
    sleep(Duration::from_secs(1));
    broker.kill();
    sleep(Duration::from_secs(3));
    broker = site.start(1, &EXPIRY);
    expired(&broker);
    assert!(!Raw::durable(site.port(), "while down").session_present);
    broker.stop();

    // Without the flag it would have lived.
    let broker = site.start(1, &[]);
    let mut away = Raw::durable(site.port(), "never");
    away.subscribe("expires", 1);
    drop(away);
    broker.kill();
    sleep(Duration::from_secs(3));
    let broker = site.start(1, &[]);
    assert!(Raw::durable(site.port(), "never").session_present);
    broker.stop();
}

#[test]
fn the_ledger_balances_over_restarts() {
    const COUNT: usize = 500;
    let site = Site::new();
    let broker = site.start(4, &[]);
    for n in 0..3 {
        Raw::durable(site.port(), &format!("ledger {n}")).subscribe("ledger/#", 1);
    }
    let mut paho = Agent::start(Library::Paho);
    paho.connect("p", &broker, hello("publisher"));
    for qos in [1, 2] {
        paho.begin_burst("p", &format!("ledger/{qos}"), qos, "", COUNT, 30);
        paho.await_burst("p");
    }
    let waiting = 3 * 2 * COUNT as u64;
    let counted_so_far = counted(&broker);
    assert_balanced(&counted_so_far);
    assert_eq!(count(&counted_so_far, "queued_now"), waiting);
    let stopped = counters(&broker.stop());
    assert_balanced(&stopped);
    assert_eq!(count(&stopped, "matched"), waiting);

    // Some is taken; what is in flight at the end is delivered to this run, and waits for the next.
    let broker = site.start(1, &[]);
    let mut raw = Raw::durable(site.port(), "ledger 0");
    for _ in 0..100 {
        raw.message();
    }
    raw.fence();
    drop(raw);
    // Its going away has been noticed when the same identifier is served again.
    drop(Raw::clean(site.port(), "ledger 1"));
    let stopped = counters(&broker.stop());
    assert_balanced(&stopped);
    assert_eq!(count(&stopped, "queued_restored"), waiting);
    assert_eq!(count(&stopped, "dropped_session_ended"), 2 * COUNT as u64);

    // A kill writes no counters; the run after it begins with what is on disk.
    let broker = site.start(4, &[]);
    let restored = count(&counted(&broker), "queued_restored");
    let left = 2 * COUNT as u64 - 100;
    assert_eq!(restored, left + 2 * COUNT as u64);
    let mut raw = Raw::durable(site.port(), "ledger 0");
    for _ in 0..left {
        raw.message();
    }
    raw.fence();
    broker.kill();
    let broker = site.start(1, &[]);
    let stopped = counters(&broker.stop());
    assert_balanced(&stopped);
    assert_eq!(count(&stopped, "queued_restored"), 2 * COUNT as u64);
}

#[test]
fn nobody_else_may_look_into_the_data_directory() {
    let site = Site::new();
    let broker = site.start(1, &[]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&site.data_dir()), 0o700);
    for entry in std::fs::read_dir(site.data_dir()).unwrap() {
        let path = entry.unwrap().path();
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert_eq!(mode(&site.data_dir().join("tls/key.pem")), 0o600);
    assert!(site.data_file().exists());
    broker.stop();
}

/// Queues stay on disk: a start reads Sessions, not their messages.
#[test]
fn a_start_does_not_depend_on_the_backlog() {
    const COUNT: u16 = 50_000;
    const ROOMY: [&str; 2] = ["--max-queued", "1000000"];
    // The map grows several times on the way.
    let arguments = [&ROOMY[..], &["--max-queued-bytes", "1 GiB", "--map-size", "1 MiB"]].concat();
    let site = Site::new();
    let broker = site.start(1, &arguments);
    Raw::durable(site.port(), "backlog").subscribe("backlog", 1);
    let mut publisher = Raw::clean(site.port(), "publisher");
    let mut writer = publisher.writer();
    let writing = thread::spawn(move || {
        use std::io::Write;
        for first in (0..COUNT).step_by(500) {
            let packets =
                (first..first + 500).map(|n| publish("backlog", 1, n + 1, format!("{n} {:200}", "").as_bytes()));
            writer.write_all(&packets.collect::<Vec<_>>().concat()).unwrap();
        }
    });
    for n in 0..COUNT {
        let expected = Packet::Acknowledgement {
            kind: PUBACK,
            id: n + 1,
        };
        assert_eq!(publisher.packet(), expected);
    }
    writing.join().unwrap();
    broker.kill();

    let began = Instant::now();
    let broker = site.start(4, &arguments);
    let took = began.elapsed();
    assert!(took < patience(Duration::from_secs(5)), "the start took {took:?}");
    let resident = broker.resident_kib();
    assert!(
        resident < 150 * 1024,
        "{resident} KiB are resident before anybody has come"
    );
    assert_eq!(count(&counted(&broker), "queued_restored"), u64::from(COUNT));
    let mut raw = Raw::durable(site.port(), "backlog");
    for n in 0..COUNT {
        assert_eq!(number(&raw.message().1), n as usize);
    }
    broker.stop();
}

/// `SKEIN_KILL_SEED` as in the kill loop.
#[test]
fn the_first_start_of_all_may_be_killed_at_any_instant() {
    let seed = seed("SKEIN_KILL_SEED");
    eprintln!("SKEIN_KILL_SEED={seed}");
    let mut random = Random::new(seed);
    for round in 0..20 {
        let site = Site::new();
        for _ in 0..1 + random.below(3) {
            let unborn = site.launch(1, &[]);
            sleep(Duration::from_millis(random.below(120) as u64));
            unborn.kill();
        }
        let broker = site.start([1, 4][round % 2], &[]);
        let mut raw = Raw::durable(site.port(), "first");
        raw.subscribe("first", 1);
        broker.kill();
        let broker = site.start(1, &[]);
        assert!(Raw::durable(site.port(), "first").session_present, "round {round}");
        broker.stop();
    }
}
