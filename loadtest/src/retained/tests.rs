//! The scenario against a broker that breaks one rule at a time.

use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::packet::Credentials;
use crate::transport;

fn settings() -> Settings {
    Settings {
        topics: 20,
        updates: 3,
        subscribers: 2,
        qos: 1,
        senders: senders::Settings {
            publishers: 3,
            size: 40,
            unacked: 10,
            silence: 1,
            credentials: Credentials::default(),
            transport: transport::Settings::default(),
        },
        keep: false,
        read_only: None,
        topic_prefix: "r".into(),
    }
}

#[test]
fn an_honest_broker_passes_and_keeps_nothing() {
    let broker = FakeBroker::start(Fault::None);
    let figures = run(&broker.address, None, &settings()).unwrap();
    assert_eq!(figures.verdict, Verdict::Good, "{figures}");
    assert_eq!(figures.setting.as_ref().unwrap().set, 60);
    assert_eq!(figures.reading.received, 40);
    assert_eq!(broker.retained_count(), 0);
}

#[test]
fn each_broken_rule_is_counted() {
    let faults = |fault: Fault| {
        let broker = FakeBroker::start(fault);
        let figures = run(&broker.address, None, &settings()).unwrap();
        assert_eq!(figures.verdict, Verdict::RulesBroken, "{figures}");
        figures.reading.faults
    };
    let none = board::Faults::default();
    assert_eq!(faults(Fault::Loses), board::Faults { missing: 2, ..none });
    assert_eq!(faults(Fault::Doubles), board::Faults { doubled: 2, ..none });
    assert_eq!(faults(Fault::KeepsTheFirst), board::Faults { outdated: 40, ..none });
}

#[test]
fn one_invocation_keeps_and_another_reads_and_clears() {
    let broker = FakeBroker::start(Fault::None);
    let mut first = settings();
    first.keep = true;
    let kept = run(&broker.address, None, &first).unwrap();
    assert_eq!(broker.retained_count(), 20);
    let mut second = settings();
    second.read_only = Some(crate::backlog::parse_tag(&kept.run).unwrap());
    let read = run(&broker.address, None, &second).unwrap();
    assert_eq!((read.verdict, read.setting.is_none()), (Verdict::Good, true), "{read}");
    assert_eq!(broker.retained_count(), 0);
}
