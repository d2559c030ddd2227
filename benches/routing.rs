//! Matching, subscribing and retained messages at a million filters and topics, and at as many as a cache holds.
//!
//! `cargo bench --bench routing`. Before the timings of a million it prints the heap a filter takes and the largest request to
//! the allocator on the way there (what one subscribe at most moves).

#[path = "../tests/memory/counting.rs"]
mod counting;
mod scenarios;
mod timed;

use std::hint::black_box;
use std::time::Duration;

use counting::{held_bytes, largest_request_bytes};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scenarios::HASH_KEY;
use scenarios::routing::topic;
use skein::mqtt::packet::QoS;
use skein::mqtt::topic::{TopicFilter, TopicName};
use skein::registry::access::AccountId;
use skein::routing::interest::Interest;
use skein::routing::retained::RetainedMessages;
use skein::routing::shard_key::{Division, ShardKey};
use skein::routing::subscriptions::Subscriptions;
use timed::{ThreadInstant, ThreadTime};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const EXACT: usize = 1_000_000;
const WILDCARD: usize = 10_000;
/// A filter with a wildcard for one device in so many.
const STRIDE: usize = EXACT / WILDCARD;
/// Filters subscribed and unsubscribed around the million.
const CHURN: usize = 50_000;

/// Texts in one buffer, in an order that has nothing to do with that of the filters; the reads cost no cache miss of their
/// own, as a topic in a read buffer does not.
struct Texts {
    buffer: String,
    ends: Vec<usize>,
    at: usize,
}

impl Texts {
    fn new(texts: impl Iterator<Item = String>) -> Texts {
        let mut all: Vec<String> = texts.collect();
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        for at in (1..all.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            all.swap(at, (state % (at as u64 + 1)) as usize);
        }
        let (mut buffer, mut ends) = (String::new(), vec![0]);
        for text in all {
            buffer.push_str(&text);
            ends.push(buffer.len());
        }
        Texts { buffer, ends, at: 0 }
    }

    fn len(&self) -> usize {
        self.ends.len() - 1
    }

    fn next(&mut self) -> &str {
        self.at = if self.at + 1 == self.len() { 0 } else { self.at + 1 };
        &self.buffer[self.ends[self.at]..self.ends[self.at + 1]]
    }
}

fn wildcard(at: usize) -> String {
    scenarios::routing::wildcard(at * STRIDE, at.is_multiple_of(2))
}

fn filters() -> Texts {
    Texts::new((0..EXACT).map(topic).chain((0..WILDCARD).map(wildcard)))
}

fn subscriptions(c: &mut Criterion<ThreadTime>) {
    let mut texts = filters();
    let mut subscriptions = Subscriptions::new(HASH_KEY);
    let before = held_bytes();
    largest_request_bytes();
    let started = ThreadInstant::now();
    for session in 0..texts.len() {
        subscriptions.subscribe(TopicFilter::trusted(texts.next()), session as u32, QoS::AtLeastOnce);
    }
    let (taken, largest) = (started.elapsed(), largest_request_bytes());
    let each = (held_bytes() - before - texts.buffer.len()) as f64 / texts.len() as f64;
    println!(
        "filters: {}, bytes of heap per filter beyond its text: {each:.1}",
        texts.len()
    );
    println!(
        "subscribed from none: {:?} each, largest request {largest} bytes",
        taken / texts.len() as u32
    );

    let mut group = c.benchmark_group("subscriptions");
    let mut targets = Vec::new();
    let mut topics = Texts::new((0..EXACT).map(topic));
    group.bench_function("match one exact of 1M", |b| {
        b.iter(|| {
            subscriptions.matches(TopicName::trusted(topics.next()), &mut targets);
            targets.len()
        })
    });
    let mut topics = Texts::new((0..WILDCARD).map(|at| topic(at * STRIDE)));
    group.bench_function("match one exact of 1M and one wildcard of 10k", |b| {
        b.iter(|| {
            subscriptions.matches(TopicName::trusted(topics.next()), &mut targets);
            targets.len()
        })
    });
    assert_eq!(targets.len(), 2);
    let monitor = TopicFilter::trusted("dt/json/+/telemetry");
    subscriptions.subscribe(monitor, 7, QoS::AtMostOnce);
    group.bench_function("match one exact of 1M and two wildcards of 10k", |b| {
        b.iter(|| {
            subscriptions.matches(TopicName::trusted(topics.next()), &mut targets);
            targets.len()
        })
    });
    group.bench_function("match nothing", |b| {
        b.iter(|| {
            subscriptions.matches(TopicName::trusted(black_box("dt/state/DEV0000001")), &mut targets);
            targets.len()
        })
    });
    subscriptions.unsubscribe(monitor, 7);

    let mut churn = Texts::new((EXACT..EXACT + CHURN).map(topic));
    // Alternating batches, of which one side is timed.
    for timed_subscribe in [true, false] {
        let name = if timed_subscribe {
            "subscribe at 1M"
        } else {
            "unsubscribe at 1M"
        };
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut timed = Duration::ZERO;
                let mut left = iterations as usize;
                while left > 0 {
                    let batch = left.min(CHURN);
                    let from = churn.at;
                    let started = ThreadInstant::now();
                    for session in 0..batch {
                        let filter = TopicFilter::trusted(churn.next());
                        black_box(subscriptions.subscribe(filter, session as u32, QoS::AtLeastOnce));
                    }
                    let between = ThreadInstant::now();
                    churn.at = from;
                    for session in 0..batch {
                        black_box(subscriptions.unsubscribe(TopicFilter::trusted(churn.next()), session as u32));
                    }
                    timed += if timed_subscribe {
                        between - started
                    } else {
                        between.elapsed()
                    };
                    left -= batch;
                }
                timed
            })
        });
    }

    let news = TopicName::trusted("news");
    for session in 0..1_000 {
        subscriptions.subscribe(TopicFilter::trusted("news"), session * 997, QoS::AtLeastOnce);
    }
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("match a fan-out to 1,000", |b| {
        b.iter(|| {
            subscriptions.matches(black_box(news), &mut targets);
            targets.len()
        })
    });
    subscriptions.subscribe(TopicFilter::trusted("#"), 5, QoS::AtMostOnce);
    group.bench_function("match a fan-out to 1,000 and a monitor", |b| {
        b.iter(|| {
            subscriptions.matches(black_box(news), &mut targets);
            targets.len()
        })
    });
    for session in 500..1_500 {
        subscriptions.subscribe(TopicFilter::trusted("+"), session * 997, QoS::AtLeastOnce);
    }
    group.bench_function("match two overlapping fan-outs to 1,000", |b| {
        b.iter(|| {
            subscriptions.matches(black_box(news), &mut targets);
            targets.len()
        })
    });
    group.finish();
}

fn interest(c: &mut Criterion<ThreadTime>) {
    let mut interest = Interest::new(HASH_KEY);
    let mut texts = filters();
    for at in 0..texts.len() {
        interest.add(TopicFilter::trusted(texts.next()), (at % 16) as u16);
    }
    interest.add(TopicFilter::trusted("dt/json/+/telemetry"), 3);
    let mut group = c.benchmark_group("interest");
    let mut cores = Vec::new();
    let mut topics = Texts::new((0..WILDCARD).map(|at| topic(at * STRIDE)));
    group.bench_function("match one exact of 1M and two wildcards of 10k", |b| {
        b.iter(|| {
            interest.matches(TopicName::trusted(topics.next()), &mut cores);
            cores.len()
        })
    });
    group.finish();

    let shard_key = ShardKey::new(HASH_KEY, 16, Division::Levels(3));
    c.bench_function("shard_key/owner", |b| {
        b.iter(|| shard_key.owner(AccountId(0), TopicName::trusted(topics.next())))
    });
}

fn retained(c: &mut Criterion<ThreadTime>) {
    let mut retained = RetainedMessages::new(usize::MAX);
    let before = held_bytes();
    // Four topics for each of 250,000 devices.
    let all =
        || (0..250_000).flat_map(|device| ["a", "b", "c", "d"].map(|last| format!("dt/state/{device:06}/{last}")));
    let mut topics = Texts::new(all());
    for _ in 0..topics.len() {
        retained.set(
            TopicName::trusted(topics.next()),
            [7; 32].as_slice().into(),
            QoS::AtLeastOnce,
            1,
        );
    }
    let each = (held_bytes() - before - topics.buffer.len()) as f64 / topics.len() as f64;
    println!(
        "retained messages of 32 bytes: {}, bytes of heap each beyond the topic: {each:.1}",
        retained.len()
    );

    let mut group = c.benchmark_group("retained");
    group.bench_function("set again, of 1M", |b| {
        b.iter(|| {
            retained.set(
                TopicName::trusted(topics.next()),
                [8; 32].as_slice().into(),
                QoS::AtLeastOnce,
                1,
            )
        })
    });
    group.bench_function("next for an exact filter, of 1M", |b| {
        b.iter(|| {
            retained
                .next(TopicFilter::trusted(topics.next()), None, u64::MAX)
                .is_some()
        })
    });
    for filter in ["dt/state/100000/#", "dt/+/100000/c", "dt/state/+/c", "#"] {
        let filter = TopicFilter::trusted(filter);
        let mut after: Option<String> = None;
        group.bench_function(format!("next for {}, of 1M", filter.as_str()), |b| {
            b.iter(|| {
                let found = retained.next(filter, after.as_deref(), u64::MAX);
                match (found, &mut after) {
                    (None, _) => after = None,
                    (Some((topic, _)), Some(cursor)) => {
                        cursor.clear();
                        cursor.push_str(topic);
                    }
                    (Some((topic, _)), None) => after = Some(topic.to_owned()),
                }
            })
        });
    }
    group.finish();
}

fn in_cache(criterion: &mut Criterion<ThreadTime>) {
    scenarios::routing::scenarios(criterion);
}

criterion_group! {
    name = benches;
    config = timed::criterion();
    targets = timed::floor, in_cache, subscriptions, interest, retained
}
criterion_main!(benches);
