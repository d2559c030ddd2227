//! The scenario against a broker that breaks one rule at a time.

use super::*;
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, front};
use crate::packet::Credentials;
use crate::sequence::Faults;
use crate::transport::{self, Transport};

fn settings(is_shared: bool) -> Settings {
    Settings {
        sessions: 3,
        messages: 50,
        shared: is_shared,
        qos: 1,
        senders: senders::Settings {
            publishers: 1,
            size: 40,
            unacked: 10,
            silence: 1,
            credentials: Credentials::default(),
            transport: transport::Settings::default(),
        },
        at_once: Some(2),
        live: None,
        stop_before_drain: false,
        drain_only: None,
        topic_prefix: "b".into(),
    }
}

#[test]
fn an_honest_broker_passes_and_keeps_no_session() {
    for (is_shared, live) in [(false, None), (true, None), (false, Some(500)), (true, Some(500))] {
        let broker = FakeBroker::start(Fault::None);
        let mut settings = settings(is_shared);
        (settings.live, settings.senders.publishers) = (live, 4);
        let own = std::process::id();
        let figures = run(&broker.address, Some(own), &settings).unwrap();
        assert_eq!(figures.verdict, Verdict::Good, "{figures}");
        let queueing = figures.queueing.as_ref().unwrap();
        let acknowledged = if is_shared { 50 } else { 150 };
        assert_eq!((queueing.acknowledged, queueing.deliveries), (acknowledged, 150));
        assert_eq!(queueing.acknowledgement_us.count, acknowledged);
        assert!(queueing.memory.as_ref().is_some_and(|memory| memory.max > 0));
        let draining = figures.draining.as_ref().unwrap();
        let live_sent = draining.live_sent.unwrap_or(0);
        assert_eq!(live.is_some(), live_sent > 0);
        let wanted = 150 + live_sent * if is_shared { 3 } else { 1 };
        assert_eq!((draining.received, draining.sessions_drained), (wanted, 3), "{figures}");
        assert_eq!(draining.drained_us.count, 3);
        assert_eq!(broker.session_count(), 0);
    }
}

#[test]
fn each_broken_rule_is_counted() {
    let fault = |fault: Fault| {
        let broker = FakeBroker::start(fault);
        let figures = run(&broker.address, None, &settings(false)).unwrap();
        assert_eq!(figures.verdict, Verdict::RulesBroken, "{figures}");
        let draining = figures.draining.unwrap();
        (draining.faults, draining.sessions_lost)
    };
    let none = Faults::default();
    assert_eq!(fault(Fault::Loses), (Faults { missing: 3, ..none }, 0));
    assert_eq!(fault(Fault::Doubles), (Faults { doubled: 3, ..none }, 0));
    let out_of_order = 3;
    assert_eq!(fault(Fault::Swaps), (Faults { out_of_order, ..none }, 0));
    assert_eq!(fault(Fault::Forgets), (Faults { missing: 150, ..none }, 3));
}

#[test]
fn one_invocation_queues_and_another_drains() {
    let broker = FakeBroker::start(Fault::None);
    let mut first = settings(true);
    first.stop_before_drain = true;
    let queued = run(&broker.address, None, &first).unwrap();
    assert!(
        queued.draining.is_none() && queued.to_string().contains(&queued.run),
        "{queued}"
    );
    assert_eq!(broker.session_count(), 3);
    let mut second = settings(true);
    second.drain_only = Some(parse_tag(&queued.run).unwrap());
    let drained = run(&broker.address, None, &second).unwrap();
    assert_eq!(
        (drained.verdict, drained.queueing.is_none()),
        (Verdict::Good, true),
        "{drained}"
    );
    assert_eq!(drained.draining.unwrap().received, 150);
    assert_eq!(broker.session_count(), 0);
}

#[test]
fn a_broker_that_stops_to_acknowledge_is_an_error_and_its_sessions_are_ended() {
    let broker = FakeBroker::start(Fault::FallsSilent);
    let error = format!("{:#}", run(&broker.address, None, &settings(false)).unwrap_err());
    assert!(
        error.contains(&broker.address) && error.contains("5 acknowledged"),
        "{error}"
    );
    assert_eq!(broker.session_count(), 0);
}

#[test]
fn settings_that_cannot_be_checked_are_refused_with_a_sentence() {
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings(false);
        change(&mut settings);
        let target = Target::tcp(([127, 0, 0, 1], 1).into());
        Plan::new(target, &settings).unwrap_err().to_string()
    };
    assert!(refused(|s| s.senders.size = 23).contains("--size 23"));
    assert!(refused(|s| s.senders.unacked = 0).contains("--unacked 0"));
    assert!(refused(|s| (s.sessions, s.senders.publishers) = (1_000_000, 1_000)).contains("streams"));
    assert!(refused(|s| s.sessions = 1_000_000).contains("ulimit"));
    assert!(parse_tag("xyz").is_err());
}

#[test]
fn a_backlog_drains_over_every_transport() {
    let identity = Identity::new();
    for transport in [Transport::Tls, Transport::Ws, Transport::Wss] {
        let broker = FakeBroker::start(Fault::None);
        let address = front(transport, &identity, &broker.address, 700);
        let mut settings = settings(false);
        settings.senders.transport = identity.settings(transport);
        settings.senders.silence = 10;
        let figures = run(&address, None, &settings).unwrap();
        assert_eq!(figures.verdict, Verdict::Good, "{figures}");
        assert_eq!(broker.session_count(), 0);
    }
}
