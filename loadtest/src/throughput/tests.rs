//! The generator against brokers that break one rule each.

use std::time::{Duration, Instant};

use super::generator::{BATCH_MESSAGES_MAX, SEND_BYTES_PER_TURN};
use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, front};
use crate::packet;
use crate::report::Verdict;
use crate::transport::Transport;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

/// What a broker under test does with the n-th PUBLISH: writes to the subscriber, then to the publisher.
/// False closes the connections.
type Behaviour = fn(n: u64, frame: &[u8], subscriber: &mut Vec<u8>, publisher: &mut Vec<u8>) -> bool;

fn id_of(frame: &[u8]) -> u16 {
    let parsed = packet::next_frame(frame).unwrap().unwrap();
    packet::publish(parsed).unwrap().packet_id
}

fn honest(_: u64, frame: &[u8], subscriber: &mut Vec<u8>, publisher: &mut Vec<u8>) -> bool {
    subscriber.extend_from_slice(frame);
    match frame[0] {
        0x30 => {}
        0x32 => packet::acknowledgement(publisher, packet::PUBACK, id_of(frame)),
        _ => packet::acknowledgement(publisher, packet::PUBREC, id_of(frame)),
    }
    true
}

fn broker(behaviour: Behaviour) -> String {
    broker_with_visitors(behaviour).0
}

/// A broker for one subscriber and, after it, one publisher; then for whoever comes. Gives its address and what CONNECT
/// packets came.
fn broker_with_visitors(behaviour: Behaviour) -> (String, mpsc::Receiver<Vec<u8>>) {
    let (connects, came) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let greet = || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut connect = [0; 256];
            let n = socket.read(&mut connect).unwrap();
            assert!(n > 14);
            // Nobody may want to know.
            let _ = connects.send(connect[..n].to_vec());
            socket.write_all(&[0x20, 2, 0, 0]).unwrap();
            socket
        };
        let mut subscriber = greet();
        let mut request = [0; 256];
        let n = subscriber.read(&mut request).unwrap();
        subscriber.write_all(&[0x90, 3, 0, 1, request[n - 1]]).unwrap();
        let publisher = greet();
        serve(subscriber, publisher, behaviour);
        loop {
            greet();
        }
    });
    (address, came)
}

fn serve(mut subscriber: TcpStream, mut publisher: TcpStream, behaviour: Behaviour) {
    let mut from_subscriber = subscriber.try_clone().unwrap();
    thread::spawn(move || {
        // The subscriber's flows: PUBREC is answered with PUBREL.
        let (mut bytes, mut buffer) = (Vec::new(), [0; 65_536]);
        while let Ok(n @ 1..) = from_subscriber.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..n]);
            let mut out = Vec::new();
            let mut at = 0;
            while let Some(frame) = packet::next_frame(&bytes[at..]).unwrap() {
                at += frame.len;
                if frame.kind() == packet::PUBREC {
                    packet::acknowledgement(&mut out, packet::PUBREL, frame.packet_id().unwrap());
                }
            }
            bytes.drain(..at);
            if from_subscriber.write_all(&out).is_err() {
                return;
            }
        }
    });
    let (mut bytes, mut buffer, mut count) = (Vec::new(), [0; 65_536], 0);
    while let Ok(n @ 1..) = publisher.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..n]);
        let (mut at, mut down, mut up) = (0, Vec::new(), Vec::new());
        while let Some(frame) = packet::next_frame(&bytes[at..]).unwrap() {
            let whole = &bytes[at..at + frame.len];
            at += frame.len;
            match frame.kind() {
                packet::PUBLISH if behaviour(count, whole, &mut down, &mut up) => count += 1,
                packet::PUBREL => packet::acknowledgement(&mut up, packet::PUBCOMP, frame.packet_id().unwrap()),
                _ => {
                    let _ = subscriber.shutdown(std::net::Shutdown::Both);
                    return;
                }
            }
        }
        bytes.drain(..at);
        if subscriber.write_all(&down).is_err() || publisher.write_all(&up).is_err() {
            return;
        }
    }
}

/// Sent before anything is answered: so many are sent however slow this machine is.
const WINDOW: u32 = 10;

fn settings(qos: u8) -> Settings {
    Settings {
        topics: Topics::Pairs,
        publishers: Some(1),
        subscribers: None,
        shared_topics: 10,
        size: Sizes::Fixed(64),
        seed: None,
        qos,
        window: Some(WINDOW),
        unacked: None,
        durable: false,
        rate: None,
        warmup: 0.05,
        seconds: 0.2,
        drain: 0.4,
        threads: 1,
        source_addresses: None,
        cpu: None,
        spin: 0,
        gather: 0,
        topic_prefix: "t".into(),
        topic: None,
        client_id: None,
        credentials: Credentials::default(),
        transport: transport::Settings::default(),
    }
}

fn measure(qos: u8, behaviour: Behaviour) -> Throughput {
    run(&broker(behaviour), None, &settings(qos)).unwrap()
}

#[test]
fn an_honest_broker_passes_at_every_qos() {
    for qos in 0..=2 {
        let figures = measure(qos, honest);
        assert_eq!(figures.verdict, Verdict::Good, "{figures}");
        assert_eq!((figures.faults, figures.acknowledgements), Default::default());
        assert!(
            figures.sent >= WINDOW.into() && figures.sent == figures.received,
            "{figures}"
        );
        let told = figures.latency_us.count + u64::from(WINDOW);
        assert!(told >= figures.delivered_in_time, "{figures}");
        // What is acknowledged in time was sent at most a window before it, what was sent in time answered soon after it.
        assert_eq!(figures.acknowledgement_us.is_some(), qos > 0);
        if let (Some(latency), Some(acknowledged)) = (&figures.acknowledgement_us, figures.acknowledged_in_time) {
            assert!(latency.count.abs_diff(acknowledged) <= 20, "{figures}");
        }
    }
}

/// Of a CONNECT without user name: its flags and its client id.
fn flags_and_id(connect: &[u8]) -> (u8, &str) {
    (connect[9], std::str::from_utf8(&connect[14..]).unwrap())
}

#[test]
fn durable_subscribers_leave_no_session_behind_even_when_the_run_fails() {
    let closing: Behaviour = |n, frame, subscriber, publisher| n < 50 && honest(n, frame, subscriber, publisher);
    for (behaviour, is_good) in [(honest as Behaviour, true), (closing, false)] {
        let mut durable = settings(1);
        durable.durable = true;
        let (address, came) = broker_with_visitors(behaviour);
        let result = run(&address, None, &durable);
        assert_eq!(result.is_ok(), is_good, "{result:?}");
        assert!(result.map_or(true, |figures| figures.settings.contains("durable Sessions")));
        let came: Vec<_> = came.try_iter().collect();
        let came: Vec<_> = came.iter().map(|connect| flags_and_id(connect)).collect();
        let [(0, subscriber), (2, publisher), (2, visitor)] = came[..] else {
            panic!("{came:?}")
        };
        assert!(subscriber == visitor && subscriber != publisher, "{came:?}");
    }
}

#[test]
fn loss_is_a_fault_above_qos_0_and_a_drop_at_qos_0() {
    let lossy: Behaviour = |n, frame, subscriber, publisher| {
        let mut nowhere = Vec::new();
        honest(
            n,
            frame,
            if n == 3 || n == 20 { &mut nowhere } else { subscriber },
            publisher,
        )
    };
    for (qos, verdict) in [(0, Verdict::Good), (1, Verdict::RulesBroken), (2, Verdict::RulesBroken)] {
        let figures = measure(qos, lossy);
        assert_eq!(
            (figures.faults.missing, figures.verdict),
            (2, verdict),
            "QoS {qos}: {figures}"
        );
    }
}

#[test]
fn doubled_and_swapped_messages_are_faults_at_every_qos() {
    let doubling: Behaviour = |n, frame, subscriber, publisher| {
        if n == 7 {
            subscriber.extend_from_slice(frame);
        }
        honest(n, frame, subscriber, publisher)
    };
    let swapping: Behaviour = |n, frame, subscriber, publisher| {
        let len = frame.len();
        honest(n, frame, subscriber, publisher);
        if n >= 7 && subscriber.len() >= 2 * len {
            subscriber.rotate_left(len);
        }
        true
    };
    for qos in 0..=2 {
        let figures = measure(qos, doubling);
        assert_eq!(
            (figures.faults.doubled, figures.verdict),
            (1, Verdict::RulesBroken),
            "QoS {qos}: {figures}"
        );
        let figures = measure(qos, swapping);
        assert_eq!(figures.verdict, Verdict::RulesBroken, "QoS {qos}: {figures}");
        assert!(
            figures.faults.out_of_order > 0 && figures.faults.doubled == 0,
            "QoS {qos}: {figures}"
        );
    }
}

#[test]
fn an_acknowledgement_withheld_or_sent_twice_is_a_fault() {
    let withholding: Behaviour = |n, frame, subscriber, publisher| {
        let mut nowhere = Vec::new();
        honest(n, frame, subscriber, if n == 5 { &mut nowhere } else { publisher })
    };
    let figures = measure(1, withholding);
    assert_eq!(
        (figures.acknowledgements.missing, figures.verdict),
        (1, Verdict::RulesBroken),
        "{figures}"
    );
    let repeating: Behaviour = |n, frame, subscriber, publisher| {
        if n == 5 {
            packet::acknowledgement(publisher, packet::PUBACK, id_of(frame));
        }
        honest(n, frame, subscriber, publisher)
    };
    let figures = measure(1, repeating);
    assert_eq!(
        (figures.acknowledgements.unexpected, figures.verdict),
        (1, Verdict::RulesBroken),
        "{figures}"
    );
}

#[test]
fn a_broker_that_closes_is_an_error_with_its_address() {
    let address = broker(|n, frame, subscriber, publisher| n < 50 && honest(n, frame, subscriber, publisher));
    let error = format!("{:#}", run(&address, None, &settings(0)).unwrap_err());
    assert!(error.contains(&address) && error.contains("connection"), "{error}");
}

#[test]
fn a_window_is_never_passed() {
    // A broker that delivers nothing: what comes in is one window.
    let figures = measure(0, |_, _, _, _| true);
    assert_eq!(
        (figures.sent, figures.received, figures.faults.missing),
        (10, 0, 10),
        "{figures}"
    );
    let mut two = settings(1);
    two.unacked = Some(2);
    let silent = broker(|_, _, _, _| true);
    assert_eq!(run(&silent, None, &two).unwrap().sent, 2);
}

#[test]
fn after_silence_at_qos_0_the_window_is_written_off_and_the_run_goes_on() {
    let mut long = settings(0);
    long.seconds = 1.5;
    let address = broker(|n, frame, subscriber, publisher| {
        let mut nowhere = Vec::new();
        honest(
            n,
            frame,
            if (5..15).contains(&n) { &mut nowhere } else { subscriber },
            publisher,
        )
    });
    let figures = run(&address, None, &long).unwrap();
    assert_eq!((figures.stalls, figures.faults.missing), (1, 10), "{figures}");
    assert!(figures.received > 15, "{figures}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_counts_a_stall_of_the_broker_in_full() {
    let mut open = settings(1);
    (open.rate, open.warmup, open.seconds) = (Some(1_000), 0.0, 0.5);
    let address = broker(|n, frame, subscriber, publisher| {
        if n == 100 {
            thread::sleep(Duration::from_millis(250));
        }
        honest(n, frame, subscriber, publisher)
    });
    let figures = run(&address, None, &open).unwrap();
    // All that was due, plus what fell due while the first turn waited for a CPU.
    assert!((500..=600).contains(&figures.sent), "{figures}");
    // Some 250 messages fell due during the stall: a closed loop would have seen a window of late ones.
    for latency in [&figures.latency_us, figures.acknowledgement_us.as_ref().unwrap()] {
        let late = latency.count
            - latency
                .histogram
                .iter()
                .rfind(|(us, _)| *us < 50_000.0)
                .map_or(0, |(_, up_to)| *up_to);
        assert!(late >= 150 && latency.max >= 200_000.0, "{late} late, {figures}");
    }
}

#[test]
fn messages_of_another_run_are_ignored() {
    let figures = measure(0, |n, frame, subscriber, publisher| {
        if n == 4 {
            let mut foreign = frame.to_vec();
            let stamp_at = foreign.len() - 64;
            foreign[stamp_at] ^= 1;
            subscriber.extend(foreign);
        }
        honest(n, frame, subscriber, publisher)
    });
    assert_eq!((figures.foreign, figures.verdict), (1, Verdict::Good), "{figures}");
}

/// A turn is as long as what gathers in it, so a window goes out once a turn at most; a slow machine makes it fewer.
#[test]
fn what_gathers_is_read_once_a_turn() {
    for qos in 0..=2 {
        let settings = Settings {
            gather: 20_000,
            ..settings(qos)
        };
        let begun = Instant::now();
        let figures = run(&broker(honest), None, &settings).unwrap();
        let turns = begun.elapsed().as_micros() as u64 / settings.gather + 1;
        assert_eq!(figures.verdict, Verdict::Good, "{figures}");
        assert!(figures.sent <= turns * u64::from(WINDOW), "{turns} turns, {figures}");
        assert!(figures.settings.contains("gathering 20000 µs"), "{figures}");
    }
}

/// However much a broker takes, and drops: its subscribers, on the same thread, would be read when the flood is over.
#[test]
fn a_flood_leaves_time_to_read() {
    let settings = Settings {
        window: Some(1_000_000_000),
        gather: 100_000,
        ..settings(0)
    };
    let begun = Instant::now();
    let figures = run(&broker(|_, _, _, _| true), None, &settings).unwrap();
    let turns = begun.elapsed().as_micros() as u64 / settings.gather + 1;
    // The header and the topic come on top of the payload.
    let turn = (SEND_BYTES_PER_TURN / 64 + BATCH_MESSAGES_MAX) as u64;
    assert!(
        figures.sent > 0 && figures.sent <= turns * turn,
        "{turns} turns, {figures}"
    );
}

#[test]
fn settings_that_cannot_be_measured_are_refused_with_a_sentence() {
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings(0);
        change(&mut settings);
        settings.plan().unwrap_err().to_string()
    };
    assert!(refused(|s| s.threads = 2).contains("--threads 2"));
    assert!(refused(|s| s.spin = 50).contains("--rate"));
    assert!(refused(|s| (s.gather, s.rate) = (50, Some(1))).contains("--rate"));
    assert!(refused(|s| s.subscribers = Some(2)).contains("pairs"));
    assert!(refused(|s| s.seconds = f64::NAN).contains("--seconds"));
    assert!(refused(|s| s.unacked = Some(0)).contains("--unacked"));
}

#[test]
fn an_honest_broker_passes_over_every_transport() {
    let identity = Identity::new();
    for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
        for (qos, cut) in [(0, 100_000), (1, 13), (2, 1000)] {
            let address = front(transport, &identity, &broker(honest), cut);
            let settings = Settings {
                transport: identity.settings(transport),
                drain: 5.0,
                ..settings(qos)
            };
            let figures = run(&address, None, &settings).unwrap();
            assert_eq!(figures.verdict, Verdict::Good, "{figures}");
            assert!(
                figures.sent >= WINDOW.into() && figures.sent == figures.received,
                "{transport:?} {figures}"
            );
        }
    }
}

/// More than a pair, for the small broker that knows sessions and filters.
fn many(topics: Topics, publishers: u32, subscribers: u32, threads: u32) -> Settings {
    Settings {
        topics,
        publishers: Some(publishers),
        subscribers: Some(subscribers),
        threads,
        drain: 10.0,
        ..settings(1)
    }
}

#[test]
fn threads_serve_the_publishers_of_each_other_in_every_topology() {
    for (topics, publishers, subscribers) in [
        (Topics::Pairs, 5, 5),
        (Topics::FanOut, 1, 7),
        (Topics::FanIn, 7, 1),
        (Topics::Shared, 3, 4),
    ] {
        for (threads, rate, qos) in [
            (1, None, 1),
            (3, None, 0),
            (3, None, 1),
            (3, None, 2),
            (3, Some(400), 1),
        ] {
            let broker = FakeBroker::start(Fault::None);
            let settings = Settings {
                qos,
                rate,
                shared_topics: 3,
                ..many(topics, publishers, subscribers, threads)
            };
            let figures = run(&broker.address, None, &settings).unwrap();
            let fan = if topics == Topics::Pairs {
                1
            } else {
                u64::from(subscribers)
            };
            assert_eq!(
                (figures.verdict, figures.threads),
                (Verdict::Good, threads as usize),
                "{figures}"
            );
            assert!(
                figures.received == figures.sent * fan && figures.sent >= WINDOW.into(),
                "{figures}"
            );
            assert_eq!(figures.faults, Default::default(), "{figures}");
            if rate.is_some() {
                assert!((100..=220).contains(&figures.sent), "{figures}");
                assert!(figures.lateness_us.as_ref().unwrap().count >= 60, "{figures}");
            }
        }
    }
}

#[test]
fn a_message_lost_or_doubled_between_two_threads_is_found() {
    for (topics, publishers, subscribers) in [(Topics::FanOut, 1, 4), (Topics::FanIn, 4, 1), (Topics::Shared, 4, 4)] {
        let settings = many(topics, publishers, subscribers, 4);
        let faults = |fault: Fault| {
            let settings = Settings {
                drain: 0.3,
                ..settings.clone()
            };
            let figures = run(&FakeBroker::start(fault).address, None, &settings).unwrap();
            assert_eq!(figures.verdict, Verdict::RulesBroken, "{figures}");
            figures.faults
        };
        let of_each = u64::from(subscribers);
        assert_eq!(faults(Fault::LosesOne).missing, of_each, "{topics:?}");
        assert_eq!(faults(Fault::DoublesOne).doubled, of_each, "{topics:?}");
    }
}

#[test]
fn sizes_are_those_the_seed_gives_at_both_ends() {
    for size in ["24-2000", "64:0.5,100000:0.5"] {
        let broker = FakeBroker::start(Fault::None);
        let settings = Settings {
            size: size.parse().unwrap(),
            seed: Some(5),
            ..many(Topics::Pairs, 3, 3, 2)
        };
        let figures = run(&broker.address, None, &settings).unwrap();
        assert!(
            figures.verdict == Verdict::Good && figures.received == figures.sent && figures.sent > 20,
            "{figures}"
        );
        assert!(
            figures.settings.contains(size) && figures.settings.contains("seed 5"),
            "{figures}"
        );
    }
}

#[test]
fn clients_and_topics_are_called_as_the_templates_say_and_a_password_is_not_shown() {
    let (address, came) = broker_with_visitors(honest);
    let settings = Settings {
        client_id: Some("{run}/{role}/{number}".into()),
        topic: Some("secret/{client}/up".into()),
        credentials: Credentials {
            username: Some("U".into()),
            password: Some("secret".into()),
        },
        ..settings(0)
    };
    let figures = run(&address, None, &settings).unwrap();
    assert!(figures.settings.contains("topics PASSWORD/{client}/up"), "{figures}");
    assert!(!figures.settings.contains("secret"), "{figures}");
    let ids: Vec<String> = came
        .try_iter()
        .map(|connect| String::from_utf8_lossy(&connect[14..14 + connect[13] as usize]).into_owned())
        .collect();
    assert!(
        ids.len() == 2 && ids[0].ends_with("/s/0") && ids[1].ends_with("/p/0"),
        "{ids:?}"
    );
}

#[test]
fn connections_leave_from_the_source_addresses() {
    let settings = Settings {
        source_addresses: Some(3),
        ..settings(0)
    };
    let figures = run(&broker(honest), None, &settings).unwrap();
    assert!(
        figures.settings.contains("3 source addresses") && figures.received >= WINDOW.into(),
        "{figures}"
    );
}

#[test]
fn a_thread_that_fails_ends_the_others() {
    let broker = FakeBroker::start(Fault::None);
    let mut settings = many(Topics::Pairs, 4, 4, 4);
    settings.seconds = 1000.0;
    let ended = thread::spawn({
        let (address, settings) = (broker.address.clone(), settings);
        move || run(&address, None, &settings)
    });
    thread::sleep(Duration::from_millis(300));
    broker.cut_one();
    let error = format!("{:#}", ended.join().unwrap().unwrap_err());
    assert!(error.contains("connection"), "{error}");
}
