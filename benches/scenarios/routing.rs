//! Layer 1: who wants a topic, with 10,000 filters and 1,000 with a wildcard, which a cache holds. What a million takes, where
//! the caches count, is in `benches/routing.rs` itself.

use std::hint::black_box;

use skein::mqtt::packet::QoS;
use skein::mqtt::topic::{TopicFilter, TopicName};
use skein::registry::access::AccountId;
use skein::routing::interest::Interest;
use skein::routing::retained::RetainedMessages;
use skein::routing::shard_key::{Division, ShardKey};
use skein::routing::subscriptions::Subscriptions;

use super::{HASH_KEY, PAYLOAD, Runner};

const DEVICES: usize = 10_000;
/// A filter with a wildcard for one device in so many.
const STRIDE: usize = 10;
const SUBSCRIBERS: u32 = 1_000;

pub fn topic(device: usize) -> String {
    format!("dt/json/DEV{device:07}/telemetry")
}

/// For one device; every other ends in `#`.
pub fn wildcard(device: usize, ends_in_hash: bool) -> String {
    match ends_in_hash {
        true => format!("dt/json/DEV{device:07}/#"),
        false => format!("dt/+/DEV{device:07}/telemetry"),
    }
}

fn wildcards() -> impl Iterator<Item = String> {
    (0..DEVICES / STRIDE).map(|at| wildcard(at * STRIDE, at.is_multiple_of(2)))
}

fn subscriptions() -> Subscriptions {
    let mut subscriptions = Subscriptions::new(HASH_KEY);
    for (session, filter) in (0..DEVICES).map(topic).chain(wildcards()).enumerate() {
        subscriptions.subscribe(TopicFilter::trusted(&filter), session as u32, QoS::AtLeastOnce);
    }
    subscriptions
}

pub fn scenarios(runner: &mut impl Runner) {
    // A device without a wildcard, one whose wildcard ends in #, one whose wildcard is a +.
    for (of, device, targets_max) in [
        ("1 exact", 4_711, 1),
        ("1 exact and 1 ending in #", 4_720, 2),
        ("1 exact and 1 with +", 4_710, 2),
    ] {
        runner.scenario(&format!("routing/match {of} of 11,000"), 1, || {
            let mut subscriptions = subscriptions();
            let topic = topic(device);
            let mut targets = Vec::new();
            move || {
                subscriptions.matches(TopicName::trusted(black_box(&topic)), &mut targets);
                assert_eq!(targets.len(), targets_max);
            }
        });
    }
    runner.scenario("routing/match nothing of 11,000", 1, || {
        let mut subscriptions = subscriptions();
        let mut targets = Vec::new();
        move || {
            subscriptions.matches(TopicName::trusted(black_box("dt/state/DEV0000001")), &mut targets);
            assert!(targets.is_empty());
        }
    });
    runner.scenario(
        "routing/match a fan-out to 1,000, per target",
        SUBSCRIBERS as usize,
        || {
            let mut subscriptions = subscriptions();
            for session in 0..SUBSCRIBERS {
                subscriptions.subscribe(TopicFilter::trusted("news"), session, QoS::AtLeastOnce);
            }
            let mut targets = Vec::new();
            move || {
                subscriptions.matches(TopicName::trusted(black_box("news")), &mut targets);
                assert_eq!(targets.len(), SUBSCRIBERS as usize);
            }
        },
    );
    runner.scenario("routing/subscribe and unsubscribe 1 of 11,000", DEVICES, || {
        let mut subscriptions = subscriptions();
        let churn: Vec<String> = (DEVICES..2 * DEVICES).map(topic).collect();
        move || {
            for filter in &churn {
                subscriptions.subscribe(TopicFilter::trusted(filter), 7, QoS::AtLeastOnce);
            }
            for filter in &churn {
                subscriptions.unsubscribe(TopicFilter::trusted(filter), 7);
            }
        }
    });
    runner.scenario("routing/interest, 1 exact and 1 ending in # of 11,000", 1, || {
        let mut interest = Interest::new(HASH_KEY);
        for (at, filter) in (0..DEVICES).map(topic).chain(wildcards()).enumerate() {
            interest.add(TopicFilter::trusted(&filter), (at % 16) as u16);
        }
        let topic = topic(4_720);
        let mut cores = Vec::new();
        move || {
            interest.matches(TopicName::trusted(black_box(&topic)), &mut cores);
            assert!(!cores.is_empty());
        }
    });
    runner.scenario("routing/owner of a topic", 1, || {
        let shard_key = ShardKey::new(HASH_KEY, 16, Division::Levels(3));
        let topic = topic(4_711);
        move || {
            black_box(shard_key.owner(AccountId(0), TopicName::trusted(black_box(&topic))));
        }
    });
    runner.scenario("routing/retained, set again, of 10,000", DEVICES, || {
        let mut retained = RetainedMessages::new(usize::MAX);
        let topics: Vec<String> = (0..DEVICES).map(topic).collect();
        move || {
            for topic in &topics {
                retained.set(TopicName::trusted(topic), PAYLOAD[..].into(), QoS::AtLeastOnce, 1);
            }
        }
    });
}
