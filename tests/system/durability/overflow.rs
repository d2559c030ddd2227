//! Full queues: whoever publishes to a Session that is connected and slow is held back, then the newest is dropped; one that
//! is away slows nobody. What is dropped is counted.

use std::thread;
use std::time::{Duration, Instant};

use super::{assert_balanced, count, counted};
use crate::broker::{Broker, Site, patience};
use crate::raw::{PUBACK, Packet, Raw, publish};

const COUNT: u16 = 200;
const SMALL: [&str; 4] = ["--max-queued", "20", "--max-inflight", "5"];

/// Messages in the air at a time: a full queue has as much room again for what is on its way when it fills.
const WINDOW: u16 = 10;

/// Publishes so many messages, and returns how long their acknowledgements took to come.
fn publish_all(site: &Site, topic: &str) -> Duration {
    let began = Instant::now();
    let mut publisher = Raw::clean(site.port(), "publisher");
    let packet = |n: u16| publish(topic, 1, n + 1, n.to_string().as_bytes());
    for n in 0..WINDOW {
        publisher.send(&packet(n));
    }
    for n in 0..COUNT {
        let expected = Packet::Acknowledgement {
            kind: PUBACK,
            id: n + 1,
        };
        assert_eq!(publisher.packet(), expected);
        if n + WINDOW < COUNT {
            publisher.send(&packet(n + WINDOW));
        }
    }
    began.elapsed()
}

/// What comes until nothing comes any more.
fn drain(raw: &mut Raw) -> Vec<u16> {
    let mut numbers = Vec::new();
    while let Some((_, payload, _)) = raw.message_within(Duration::from_secs(2)) {
        numbers.push(String::from_utf8(payload).unwrap().parse().unwrap());
    }
    numbers
}

fn subscriber(site: &Site, is_durable: bool) -> Raw {
    let mut raw = match is_durable {
        true => Raw::durable(site.port(), "slow"),
        false => Raw::clean(site.port(), "slow"),
    };
    raw.subscribe("overflow", 1);
    raw
}

/// As many as were dropped are missing, and those are the newest of their time: the first ones all came.
fn assert_dropped(broker: &Broker, got: &[u16]) -> u64 {
    let counters = counted(broker);
    assert_balanced(&counters);
    let dropped = count(&counters, "dropped_queue_full");
    assert_eq!(got.len() as u64 + dropped, u64::from(COUNT), "{got:?}, {counters:?}");
    assert!(got.is_sorted_by(|one, other| one < other), "{got:?}");
    let first = got.len().min(20) as u16;
    assert!(
        got.iter().take(20).copied().eq(0..first),
        "the oldest must stay: {got:?}"
    );
    dropped
}

#[test]
fn a_slow_subscriber_holds_its_publishers_back_and_then_loses_the_newest() {
    for cores in [1, 4] {
        for is_durable in [true, false] {
            let site = Site::new();
            let broker = site.start(cores, &[&SMALL[..], &["--overflow-wait", "2s"]].concat());
            let mut raw = subscriber(&site, is_durable);
            let took = publish_all(&site, "overflow");
            let what = format!("{cores} cores, durable: {is_durable}, {took:?}");
            // The broker reads its clock once per batch, and in whole milliseconds: the wait may seem a little shorter.
            assert!(took >= Duration::from_millis(1_900), "nobody was held back: {what}");
            let counters = counted(&broker);
            assert!(count(&counters, "held_back") > 0, "{what}: {counters:?}");
            let got = drain(&mut raw);
            let dropped = assert_dropped(&broker, &got);
            assert!(dropped > 0, "{what}");
            // Whoever reads again is served again.
            publish_all(&site, "elsewhere");
            let mut publisher = Raw::clean(site.port(), "publisher");
            publisher.send(&publish("overflow", 1, 1, b"7"));
            assert_eq!(raw.message().1, b"7", "{what}");
            broker.stop();
        }
    }
}

/// It begins to read before the wait is over: nothing is lost.
#[test]
fn a_slow_subscriber_that_catches_up_in_time_loses_nothing() {
    for cores in [1, 4] {
        for is_durable in [true, false] {
            let site = Site::new();
            let broker = site.start(cores, &[&SMALL[..], &["--overflow-wait", "60s"]].concat());
            let mut raw = subscriber(&site, is_durable);
            let publishing = thread::spawn({
                let site = site.clone();
                move || publish_all(&site, "overflow")
            });
            let began = Instant::now();
            while count(&counted(&broker), "held_back") == 0 {
                assert!(
                    began.elapsed() < patience(Duration::from_secs(20)),
                    "nobody is held back"
                );
            }
            let got: Vec<u16> = (0..COUNT)
                .map(|_| String::from_utf8(raw.message().1).unwrap().parse().unwrap())
                .collect();
            assert!(got.into_iter().eq(0..COUNT));
            publishing.join().unwrap();
            let counters = counted(&broker);
            assert_eq!(count(&counters, "dropped_queue_full"), 0, "{counters:?}");
            broker.stop();
        }
    }
}

#[test]
fn an_absent_subscriber_with_a_full_queue_slows_nobody() {
    for cores in [1, 4] {
        let site = Site::new();
        // A wait that would be noticed.
        let broker = site.start(cores, &[&SMALL[..], &["--overflow-wait", "60s"]].concat());
        let raw = subscriber(&site, true);
        drop(raw);
        let took = publish_all(&site, "overflow");
        assert!(
            took < Duration::from_secs(50),
            "held back by somebody who is away: {took:?}"
        );
        let counters = counted(&broker);
        assert_eq!(count(&counters, "held_back"), 0, "{counters:?}");
        let mut raw = Raw::durable(site.port(), "slow");
        let got = drain(&mut raw);
        let dropped = assert_dropped(&broker, &got);
        // 20, or as many as the window of those that may be in flight has beside them.
        assert!(
            (u64::from(COUNT) - 25..=u64::from(COUNT) - 20).contains(&dropped),
            "{dropped}"
        );
        broker.stop();
    }
}

#[test]
fn a_slow_subscriber_that_leaves_sets_its_publishers_free() {
    for cores in [1, 4] {
        let site = Site::new();
        let broker = site.start(cores, &[&SMALL[..], &["--overflow-wait", "60s"]].concat());
        let raw = subscriber(&site, false);
        let publishing = thread::spawn({
            let site = site.clone();
            move || publish_all(&site, "overflow")
        });
        let began = Instant::now();
        while count(&counted(&broker), "held_back") == 0 {
            assert!(
                began.elapsed() < patience(Duration::from_secs(20)),
                "nobody is held back"
            );
        }
        drop(raw);
        let took = publishing.join().unwrap();
        assert!(
            took < Duration::from_secs(50),
            "held back by somebody who has gone: {took:?}"
        );
        assert_balanced(&counted(&broker));
        broker.stop();
    }
}
