//! The scenario against a platform that breaks one rule at a time.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;
use crate::fake_api::{self, API_TOKEN, DEVICE_TOKEN, Platform, USER};
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, front};
use crate::packet;
use crate::sequence::Faults;
use crate::transport::Transport;

struct Fake {
    platform: Arc<Mutex<Platform>>,
    broker: FakeBroker,
    api: String,
}

impl Fake {
    fn new(fault: Fault, platform: Platform) -> Fake {
        let platform = Arc::new(Mutex::new(platform));
        let broker = FakeBroker::with(fault, Some(platform.clone()));
        Fake {
            api: fake_api::start(&platform, &broker),
            platform,
            broker,
        }
    }

    fn settings(&self, qos: u8) -> Settings {
        Settings {
            devices: 3,
            size: 64,
            qos,
            window: Some(5),
            rate: None,
            burst: 1,
            seconds: None,
            messages: Some(50),
            silence: 1,
            api: self.api.clone(),
            api_token: API_TOKEN.into(),
            channels: None,
            first_channel: 7,
            commands_per_second: None,
            readers: 0,
            reads_per_second: None,
            data_dir: None,
            topic_prefix: None,
            credentials: Credentials::default(),
            transport: transport::Settings::default(),
        }
    }

    fn run(&self, settings: &Settings) -> Telemetry {
        run(&self.broker.address, None, settings).unwrap()
    }
}

#[test]
fn an_honest_platform_passes_at_every_qos_and_makes_things_once() {
    for qos in 0..=2 {
        let fake = Fake::new(Fault::None, Platform::default());
        for channels in [None, Some(2)] {
            let mut settings = fake.settings(qos);
            settings.channels = channels;
            let figures = fake.run(&settings);
            assert_eq!(figures.verdict, Verdict::Good, "QoS {qos}: {figures}");
            assert_eq!(
                (figures.sent, figures.stored.datapoints, figures.read_back.found),
                (150, 150, 150)
            );
            assert_eq!(figures.read_back.faults, Faults::default());
            // The first run's datapoints are there still.
            assert_eq!(figures.read_back.foreign > 0, channels.is_some(), "{figures}");
            let acknowledged = (qos > 0).then_some(150);
            assert_eq!(figures.acknowledged, acknowledged);
            assert_eq!(
                figures.acknowledgement_us.as_ref().map(|latency| latency.count),
                acknowledged
            );
            assert!(figures.stored.readable_after_ms.is_some(), "{figures}");
        }
        let platform = fake.platform.lock().unwrap();
        assert_eq!((platform.devices.len(), platform.channels.len()), (3, 3));
        assert_eq!(
            platform.devices.values().copied().collect::<Vec<_>>(),
            [Some(7), Some(8), Some(7)]
        );
    }
}

#[test]
fn each_broken_rule_is_counted_and_held_against_the_qos_it_breaks() {
    let outcome = |qos: u8, fault: Fault| {
        let fake = Fake::new(fault, Platform::default());
        let figures = fake.run(&fake.settings(qos));
        (figures.read_back.faults, figures.verdict)
    };
    let (none, broken) = (Faults::default(), Verdict::RulesBroken);
    for qos in 0..=2 {
        let lost = if qos == 0 { Verdict::Good } else { broken };
        assert_eq!(
            outcome(qos, Fault::Loses),
            (Faults { missing: 3, ..none }, lost),
            "QoS {qos}"
        );
        let doubled = if qos == 1 { Verdict::Good } else { broken };
        assert_eq!(
            outcome(qos, Fault::Doubles),
            (Faults { doubled: 3, ..none }, doubled),
            "QoS {qos}"
        );
        let swapped = Faults {
            out_of_order: 3,
            ..none
        };
        assert_eq!(outcome(qos, Fault::Swaps), (swapped, broken), "QoS {qos}");
    }
}

#[test]
fn a_datapoint_in_another_devices_channel_is_a_fault() {
    let platform = Platform {
        is_misplacing: true,
        ..Platform::default()
    };
    let fake = Fake::new(Fault::None, platform);
    let figures = fake.run(&fake.settings(0));
    assert_eq!(
        (figures.read_back.misplaced, figures.verdict),
        (100, Verdict::RulesBroken),
        "{figures}"
    );
}

#[test]
fn a_schedule_is_kept_and_what_is_due_at_its_end_is_sent() {
    for (qos, burst) in [(0, 1), (1, 1), (2, 10)] {
        let fake = Fake::new(Fault::None, Platform::default());
        let mut settings = fake.settings(qos);
        (settings.rate, settings.messages, settings.seconds, settings.window) = (Some(1000), None, Some(0.3), None);
        settings.burst = burst;
        let figures = fake.run(&settings);
        assert_eq!(figures.verdict, Verdict::Good, "{figures}");
        assert!(
            (300..=310).contains(&figures.sent) && figures.read_back.found == figures.sent,
            "{figures}"
        );
    }
}

#[test]
fn commands_reach_their_devices_and_readers_read_while_the_devices_send() {
    for qos in 0..=2 {
        let fake = Fake::new(Fault::None, Platform::default());
        let mut settings = fake.settings(qos);
        (settings.rate, settings.messages, settings.seconds) = (Some(300), None, Some(0.5));
        (
            settings.commands_per_second,
            settings.readers,
            settings.reads_per_second,
        ) = (Some(100), 2, Some(200));
        let figures = fake.run(&settings);
        assert_eq!(figures.verdict, Verdict::Good, "{figures}");
        let commands = figures.commands.as_ref().unwrap();
        assert!(
            (1..=60).contains(&commands.posted) && commands.received == commands.posted,
            "{figures}"
        );
        assert_eq!(commands.round_trip_us.count, commands.received);
        let reading = figures.reading.as_ref().unwrap();
        assert!(
            reading.latency_us.count > 0 && reading.rows > 0 && reading.rows_max <= 10,
            "{figures}"
        );
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["commands"]["received"], commands.received);
    }
}

#[test]
fn a_window_is_never_passed() {
    // A broker that answers CONNECT alone: what comes in is one window, and at QoS 0 a PINGREQ within it.
    for qos in 0..=2 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let silent = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 256]).unwrap();
            socket.write_all(&[0x20, 2, 0, 0]).unwrap();
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).unwrap();
            let (mut at, mut kinds) = (0, Vec::new());
            while let Some(frame) = packet::next_frame(&bytes[at..]).unwrap() {
                at += frame.len;
                kinds.push(frame.kind());
            }
            kinds
        });
        let fake = Fake::new(Fault::None, Platform::default());
        let mut settings = fake.settings(qos);
        (settings.devices, settings.window) = (1, Some(6));
        let error = format!("{:#}", run(&address, None, &settings).unwrap_err());
        assert!(error.contains("6 sent"), "{error}");
        let kinds = silent.join().unwrap();
        let publishes = kinds.iter().filter(|kind| **kind == packet::PUBLISH).count();
        let pings = kinds.iter().filter(|kind| **kind == 12).count();
        assert_eq!((publishes, pings), (6, usize::from(qos == 0)), "{kinds:?}");
    }
}

#[test]
fn calls_that_meet_the_rate_limit_are_made_again() {
    let platform = Platform {
        refuses_each: Some(3),
        ..Platform::default()
    };
    let fake = Fake::new(Fault::None, platform);
    let figures = fake.run(&fake.settings(1));
    assert_eq!(figures.verdict, Verdict::Good, "{figures}");
    assert!(figures.api_refused > 5 && figures.read_back.found == 150, "{figures}");
}

#[test]
fn what_ends_a_run_is_a_sentence_without_a_token() {
    let error = |fake: &Fake, change: fn(&mut Settings)| {
        let mut settings = fake.settings(1);
        change(&mut settings);
        let error = format!("{:#}", run(&fake.broker.address, None, &settings).unwrap_err());
        assert!(!error.contains(API_TOKEN) && !error.contains(DEVICE_TOKEN), "{error}");
        error
    };
    let fake = Fake::new(Fault::FallsSilent, Platform::default());
    let silent = error(&fake, |_| {});
    assert!(
        silent.contains(&fake.broker.address) && silent.contains("5 acknowledged"),
        "{silent}"
    );
    let fake = Fake::new(Fault::None, Platform::default());
    assert!(error(&fake, |s| s.api_token = "wrong".into()).contains("AUTH_REQUIRED"));
    assert!(error(&fake, |s| s.credentials.username = Some("U1".into())).contains("code 4"));
    assert!(error(&fake, |s| s.api = "https://[::1]".into()).contains("without TLS"));
    assert!(error(&fake, |s| s.size = 53).contains("--size 53"));
    assert!(error(&fake, |s| s.window = Some(0)).contains("--window 0"));
    assert!(error(&fake, |s| s.seconds = Some(f64::NAN)).contains("--seconds"));
    assert!(error(&fake, |s| s.first_channel = u32::MAX).contains("--first-channel"));
    assert!(error(&fake, |s| s.data_dir = Some("/nowhere".into())).contains("/nowhere/data.mdb"));
    fake.platform.lock().unwrap().devices_max = Some(3);
    assert!(error(&fake, |s| s.devices = 5).contains("device limit"));
}

#[test]
fn devices_send_over_every_transport() {
    let identity = Identity::new();
    for transport in [Transport::Tls, Transport::Ws, Transport::Wss] {
        let fake = Fake::new(Fault::None, Platform::default());
        let mut settings = fake.settings(2);
        settings.transport = identity.settings(transport);
        (settings.silence, settings.credentials.username) = (10, Some(USER.into()));
        let address = front(transport, &identity, &fake.broker.address, 700);
        let figures = run(&address, None, &settings).unwrap();
        assert_eq!(
            (figures.verdict, figures.read_back.found),
            (Verdict::Good, 150),
            "{figures}"
        );
    }
}
