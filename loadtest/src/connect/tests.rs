//! Storms against brokers over each transport, and against one that refuses.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, front};
use crate::report::Figures;
use crate::transport::Version;

const ALL: [Transport; 4] = [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];

fn settings(transport: transport::Settings) -> Settings {
    Settings {
        churn: false,
        seconds: 10.0,
        connections: 60,
        rate: None,
        in_flight: 5,
        threads: 2,
        resume: false,
        keep: false,
        storm_nice: 1,
        source_addresses: None,
        bystanders: 0,
        bystander_rate: 500,
        bystander_transport: Transport::Tcp,
        bystander_addr: None,
        topic_prefix: "c".into(),
        credentials: Credentials::default(),
        transport,
    }
}

#[test]
fn every_connection_is_counted_and_timed_over_each_transport() {
    let identity = Identity::new();
    let broker = FakeBroker::start(Fault::None);
    for transport in ALL {
        let address = front(transport, &identity, &broker.address, 7);
        for keep in [false, true] {
            let mut settings = settings(identity.settings(transport));
            settings.keep = keep;
            let figures = run(&address, None, &settings).unwrap();
            assert!(figures.is_good() && figures.connected == 60, "{figures}");
            let phases = &figures.phases_us;
            assert_eq!(
                (figures.latency_us.count, phases.tcp.count, phases.mqtt.count),
                (60, 60, 60)
            );
            assert_eq!(phases.tls.as_ref().map(|l| l.count), transport.is_tls().then_some(60));
            assert_eq!(
                phases.websocket.as_ref().map(|l| l.count),
                transport.is_websocket().then_some(60)
            );
            assert_eq!(figures.resumed, transport.is_tls().then_some(0));
        }
    }
}

#[test]
fn resumed_handshakes_are_those_that_were() {
    let identity = Identity::new();
    let broker = FakeBroker::start(Fault::None);
    let address = front(Transport::Tls, &identity, &broker.address, 1000);
    for version in [Version::Tls12, Version::Tls13] {
        let mut settings = settings(identity.settings(Transport::Tls));
        settings.transport.layers.tls_version = Some(version);
        settings.resume = true;
        let figures = run(&address, None, &settings).unwrap();
        assert_eq!(
            (figures.connected, figures.resumed),
            (60, Some(60)),
            "{version:?} {figures}"
        );
    }
    let error = run(
        &broker.address,
        None,
        &Settings {
            resume: true,
            ..settings(Default::default())
        },
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "--resume is for --transport tls and wss, not tcp"
    );
}

#[test]
fn a_schedule_is_kept_and_bystanders_are_heard_in_each_phase() {
    let identity = Identity::new();
    let broker = FakeBroker::start(Fault::None);
    let address = front(Transport::Wss, &identity, &broker.address, 1000);
    let mut settings = settings(identity.settings(Transport::Wss));
    (settings.rate, settings.bystanders) = (Some(100), 2);
    let error = run(&address, None, &settings).unwrap_err().to_string();
    assert!(error.contains("--bystander-addr"), "{error}");
    settings.bystander_addr = Some(broker.address.clone());
    let figures = run(&address, Some(std::process::id()), &settings).unwrap();
    assert!(figures.is_good() && figures.connected == 60, "{figures}");
    // The last of 60 is due after 590 ms.
    assert!(figures.seconds >= 0.59, "{figures}");
    let bystanders = figures.bystanders.as_ref().unwrap();
    assert_eq!(bystanders.sent, bystanders.received);
    let counts = [&bystanders.before_us, &bystanders.during_us, &bystanders.after_us].map(|latency| latency.count);
    assert!(counts[0] > 500 && counts[1] > 200 && counts[2] > 200, "{counts:?}");
    assert!(figures.broker_cpu_us_per_connect.is_some() && figures.broker_cpus_before.is_some());
    let json = serde_json::to_value(&figures).unwrap();
    assert_eq!(json["bystanders"]["sent"], bystanders.sent);
}

/// A broker that refuses each `n`-th CONNECT and closes on each one after it.
fn moody(n: u32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for (count, socket) in (1..).zip(listener.incoming()) {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 256]).unwrap();
            match count % n {
                0 => drop(socket.write_all(&[0x20, 2, 0, 3])),
                1 if count > 1 => {}
                _ => drop(socket.write_all(&[0x20, 2, 0, 0])),
            }
        }
    });
    address
}

#[test]
fn a_failure_is_counted_by_its_cause_and_ends_no_run() {
    let address = moody(10);
    let figures = run(&address, None, &settings(Default::default())).unwrap();
    assert!(!figures.is_good());
    assert_eq!(figures.connected, 48, "{figures}");
    let causes: Vec<(&str, u64)> = figures
        .failures
        .iter()
        .map(|(cause, count)| (cause.as_str(), *count))
        .collect();
    let refused = format!("{address} refused CONNECT with code 3: server unavailable");
    let closed = format!("{address} closed the connection before CONNACK");
    assert_eq!(causes, [(closed.as_str(), 6), (refused.as_str(), 6)]);
}

#[test]
fn a_broker_that_is_not_there_is_told_before_the_storm() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let error = run(&address, None, &settings(Default::default()))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(&format!("cannot connect to {address}: ")), "{error}");
}

#[test]
fn a_churn_goes_through_whole_cycles_over_each_transport() {
    let identity = Identity::new();
    let broker = FakeBroker::start(Fault::None);
    for transport in ALL {
        let address = front(transport, &identity, &broker.address, 7);
        let mut settings = settings(identity.settings(transport));
        (settings.churn, settings.seconds, settings.rate) = (true, 0.4, Some(100));
        let figures = run(&address, Some(std::process::id()), &settings).unwrap();
        assert!(figures.is_good() && figures.connected == 40, "{figures}");
        let counts = [&figures.phases_us.subscribe, &figures.phases_us.message].map(|l| l.as_ref().unwrap().count);
        assert_eq!(counts, [40, 40], "{figures}");
        assert!(figures.to_string().contains("CPU per cycle"), "{figures}");
    }
    let mut settings = settings(Default::default());
    (settings.churn, settings.seconds) = (true, 0.0);
    let error = run(&broker.address, None, &settings).unwrap_err().to_string();
    assert!(error.contains("--seconds 0"), "{error}");
}
