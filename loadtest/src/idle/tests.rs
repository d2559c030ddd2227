use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, front};
use crate::report::Figures;
use crate::transport::Transport;

fn settings() -> Settings {
    Settings {
        connections: 20,
        hold: 0.0,
        rate: None,
        threads: 2,
        source_addresses: None,
        in_flight: 4,
        keep_alive: 0,
        deliver: 0,
        deliver_rate: 1000,
        broadcast: false,
        unacked: 4,
        silence: 15,
        measure_close: false,
        abrupt: false,
        qos: 1,
        topic_prefix: "idle".into(),
        filter: "{}/x".into(),
        credentials: Credentials::default(),
        transport: transport::Settings::default(),
    }
}

#[test]
fn clients_are_held_answered_and_reached_over_each_transport() {
    let identity = Identity::new();
    thread::scope(|scope| {
        for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
            let identity = &identity;
            scope.spawn(move || {
                let broker = FakeBroker::start(Fault::None);
                let address = front(transport, identity, &broker.address, 4);
                let settings = Settings {
                    hold: 0.5,
                    keep_alive: 2,
                    deliver: 7,
                    broadcast: true,
                    transport: identity.settings(transport),
                    ..settings()
                };
                let figures = run(&address, None, &settings).unwrap();
                assert!(figures.is_good() && figures.pings >= 20, "{figures}");
                let (chosen, all) = (figures.chosen.as_ref().unwrap(), figures.all.as_ref().unwrap());
                assert_eq!(
                    (chosen.published, chosen.delivered, all.published, all.delivered),
                    (7, 7, 20, 20)
                );
                assert_eq!((chosen.latency_us.count, all.latency_us.count), (7, 20));
            });
        }
    });
}

#[test]
fn one_publish_reaches_all_who_share_a_filter() {
    let broker = FakeBroker::start(Fault::None);
    let settings = Settings {
        broadcast: true,
        filter: "all".into(),
        ..settings()
    };
    let figures = run(&broker.address, None, &settings).unwrap();
    let all = figures.all.as_ref().unwrap();
    assert!(figures.is_good(), "{figures}");
    assert_eq!((all.published, all.clients, all.delivered), (1, 20, 20));
}

#[test]
fn what_is_lost_doubled_misdelivered_or_damaged_is_counted_and_no_success() {
    thread::scope(|scope| {
        for (fault, wanted) in [
            (Fault::LosesThird, [1, 0, 0, 0]),
            (Fault::DoublesThird, [0, 1, 0, 0]),
            (Fault::SpreadsThird, [0, 0, 19, 0]),
            (Fault::DamagesThird, [1, 0, 0, 1]),
        ] {
            scope.spawn(move || {
                let broker = FakeBroker::start(fault);
                let settings = Settings {
                    deliver: 5,
                    silence: 1,
                    ..settings()
                };
                let figures = run(&broker.address, None, &settings).unwrap();
                let Faults {
                    missing,
                    doubled,
                    misdelivered,
                    damaged,
                } = figures.delivery_faults;
                assert_eq!(
                    [missing, doubled, misdelivered, damaged],
                    wanted,
                    "{fault:?}: {figures}"
                );
                assert!(!figures.is_good());
            });
        }
    });
}

#[test]
fn pings_that_nobody_answers_are_counted_and_no_success() {
    let broker = FakeBroker::start(Fault::IgnoresPings);
    let settings = Settings {
        hold: 0.1,
        keep_alive: 3,
        silence: 1,
        ..settings()
    };
    let figures = run(&broker.address, None, &settings).unwrap();
    assert!(
        figures.pings >= 20 && figures.pings_unanswered == figures.pings,
        "{figures}"
    );
    assert!(!figures.is_good());
}

#[test]
fn a_broker_that_stops_acknowledging_is_an_error_that_says_how_far_it_came() {
    let broker = FakeBroker::start(Fault::FallsSilent);
    let settings = Settings {
        broadcast: true,
        silence: 1,
        ..settings()
    };
    let error = format!("{:#}", run(&broker.address, None, &settings).unwrap_err());
    assert!(
        error.contains("acknowledged nothing for 1 s; 9 of 20 messages sent"),
        "{error}"
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused_with_what_to_change() {
    for (wrong, sentence) in [
        (
            Settings {
                deliver: 21,
                ..settings()
            },
            "--deliver 21 is more than --connections 20",
        ),
        (
            Settings {
                deliver: 1,
                filter: "all".into(),
                ..settings()
            },
            "--deliver wants a topic for each client: give --filter a {}",
        ),
        (
            Settings {
                broadcast: true,
                unacked: 0,
                ..settings()
            },
            "--unacked 0 is outside 1..=8192",
        ),
    ] {
        let error = format!("{:#}", run("127.0.0.1:1", None, &wrong).unwrap_err());
        assert!(error.contains(sentence), "{error}");
    }
}
