//! Short soaks against brokers that keep every rule, or break one.

use clap::Parser;

use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, front};
use crate::report::Verdict;

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

fn settings() -> Settings {
    let flags = "soak --seconds 3 --rate 400 --pairs 1 --churn 8 --away 0.3 --every 1";
    Flags::parse_from(flags.split(' ')).settings
}

#[test]
fn an_honest_broker_keeps_every_message_for_those_who_leave_and_come_back() {
    let broker = FakeBroker::start(Fault::None);
    let figures = run(&broker.address, Some(std::process::id()), &settings()).unwrap();
    assert_eq!(
        (figures.verdict, figures.failure.as_deref()),
        (Verdict::Good, None),
        "{figures}"
    );
    assert!(figures.sent > 600 && figures.received == figures.sent, "{figures}");
    assert!(
        figures.comings_back >= 10 && figures.retained_read >= 10 && figures.retained_set >= 4,
        "{figures}"
    );
    let wills = figures.wills;
    assert!(
        wills.left >= 8 && wills.kept >= 8 && wills.received == wills.left,
        "{figures}"
    );
    assert!(figures.lines.len() >= 3 && figures.memory.is_some(), "{figures}");
    assert_eq!((broker.session_count(), broker.retained_count()), (0, 0));
}

#[test]
fn all_transports_carry_it() {
    let identity = Identity::new();
    let broker = FakeBroker::start(Fault::None);
    let at = |transport| front(transport, &identity, &broker.address, 1000);
    let mut settings = settings();
    settings.layers = identity.settings(Transport::Wss).layers;
    settings.tls_addr = Some(at(Transport::Tls));
    settings.ws_addr = Some(at(Transport::Ws));
    settings.wss_addr = Some(at(Transport::Wss));
    let figures = run(&broker.address, None, &settings).unwrap();
    assert_eq!(
        (figures.verdict, figures.received),
        (Verdict::Good, figures.sent),
        "{figures}"
    );
    assert!(
        figures.settings.contains("20 pairs over tcp, tls, ws, wss"),
        "{figures}"
    );
}

#[test]
fn what_a_broker_breaks_is_found() {
    for fault in [
        Fault::LosesOne,
        Fault::DoublesOne,
        Fault::Forgets,
        Fault::KeepsTheFirst,
        Fault::ForgetsWills,
        Fault::KeepsWills,
    ] {
        let broker = FakeBroker::start(fault);
        let figures = run(&broker.address, None, &settings()).unwrap();
        assert_eq!(figures.verdict, Verdict::RulesBroken, "{fault:?} {figures}");
        assert_eq!(
            figures.sessions_lost > 0,
            fault == Fault::Forgets,
            "{fault:?} {figures}"
        );
        assert_eq!(
            figures.retained_stale > 0,
            fault == Fault::KeepsTheFirst,
            "{fault:?} {figures}"
        );
        assert_eq!(
            (figures.wills.missing > 0, figures.wills.unexpected > 0),
            (fault == Fault::ForgetsWills, fault == Fault::KeepsWills),
            "{fault:?} {figures}"
        );
    }
}

#[test]
fn a_broker_that_fails_ends_the_run_and_not_the_report() {
    let broker = FakeBroker::start(Fault::None);
    let mut settings = settings();
    settings.seconds = 1000.0;
    let ended = std::thread::spawn({
        let address = broker.address.clone();
        move || run(&address, None, &settings)
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    broker.cut_one();
    let figures = ended.join().unwrap().unwrap();
    assert!(
        figures
            .failure
            .as_ref()
            .is_some_and(|cause| cause.contains("connection")),
        "{figures}"
    );
    assert!(
        figures.verdict == Verdict::RulesBroken && figures.received > 100,
        "{figures}"
    );
}

#[test]
fn settings_that_make_no_soak_are_refused_with_a_sentence() {
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        settings.check().unwrap_err().to_string()
    };
    assert!(refused(|s| s.away = -1.0).contains("--away"));
    assert!(refused(|s| s.churn = f64::NAN).contains("--churn"));
    assert!(refused(|s| s.every = 0.0).contains("0.1 s"));
    let mut settings = settings();
    assert_eq!(settings.check().unwrap(), 3.0);
    settings.minutes = Some(2.0);
    assert_eq!(settings.check().unwrap(), 123.0);
    (settings.minutes, settings.seconds) = (None, 0.0);
    assert_eq!(settings.check().unwrap(), 600.0);
}
