//! What the structures that grow with the number of clients hold on the heap.
//!
//! Counted by thread: one test function makes and drops what it measures. `layers` is about TLS and WebSocket,
//! `ingest` about devices and what they send.

#![allow(clippy::unwrap_used)]

mod counting;
mod ingest;
mod layers;

use counting::{held_bytes, largest_request_bytes};
use skein::mqtt::packet::QoS;
use skein::mqtt::topic::{TopicFilter, TopicName};
use skein::routing::interest::Interest;
use skein::routing::subscriptions::Subscriptions;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Beyond the filter's own text.
const BYTES_PER_FILTER_MAX: usize = 120;
const LARGEST_REQUEST_MAX: usize = 512 * 1024;
const EXACT: usize = 1_000_000;
const WILDCARD: usize = 10_000;
const CORES: u16 = skein::limits::CORES_MAX as u16;

fn text(at: usize) -> String {
    match at {
        _ if at < EXACT => format!("dt/json/DEV{at:07}/telemetry"),
        _ if at.is_multiple_of(2) => format!("dt/json/DEV{:07}/#", at - EXACT),
        _ => format!("dt/+/DEV{:07}/telemetry", at - EXACT),
    }
}

#[test]
fn a_filter_costs_at_most_its_bound_and_the_last_one_leaves_nothing() {
    let mut subscriptions = Subscriptions::new([1, 2, 3, 4]);
    let mut interest = Interest::new([1, 2, 3, 4]);
    let mut targets = Vec::with_capacity(64);
    let mut cores = Vec::with_capacity(64);
    let baseline = held_bytes();

    largest_request_bytes();
    let mut text_bytes = 0;
    for at in 0..EXACT + WILDCARD {
        let text = text(at);
        text_bytes += text.len();
        subscriptions.subscribe(TopicFilter::trusted(&text), at as u32, QoS::AtLeastOnce);
    }
    let each = (held_bytes() - baseline - text_bytes) / (EXACT + WILDCARD);
    assert!(each <= BYTES_PER_FILTER_MAX, "{each}");
    // No step of the growth moved more than this: there is no pause to rebuild it all.
    let largest = largest_request_bytes();
    assert!(largest <= LARGEST_REQUEST_MAX, "{largest}");

    // Several Sessions per filter, and a fan-out, with matches that merge.
    for session in 0..100_000 {
        for text in ["dt/#", "dt/json/+/telemetry"] {
            subscriptions.subscribe(TopicFilter::trusted(text), session, QoS::AtMostOnce);
        }
        interest.add(TopicFilter::trusted(&text(session as usize)), session as u16 % CORES);
        interest.add(TopicFilter::trusted("dt/+/#"), session as u16 % CORES);
    }
    subscriptions.matches(TopicName::trusted("dt/json/DEV0000001/telemetry"), &mut targets);
    // The crowd, the exact filter's Session among it, and that of the filter with `+`.
    assert_eq!(targets.len(), 100_001);
    interest.matches(TopicName::trusted("dt/json/DEV0000001/telemetry"), &mut cores);
    assert_eq!(cores.len(), usize::from(CORES));
    (targets, cores) = (Vec::with_capacity(64), Vec::with_capacity(64));

    for session in 0..100_000 {
        for text in ["dt/#", "dt/json/+/telemetry"] {
            subscriptions.unsubscribe(TopicFilter::trusted(text), session);
        }
        interest.remove(TopicFilter::trusted(&text(session as usize)), session as u16 % CORES);
    }
    for core in 0..CORES {
        interest.remove(TopicFilter::trusted("dt/+/#"), core);
    }
    for at in 0..EXACT + WILDCARD {
        subscriptions.unsubscribe(TopicFilter::trusted(&text(at)), at as u32);
    }
    assert_eq!((subscriptions.filter_count(), interest.filter_count()), (0, 0));
    assert_eq!(held_bytes(), baseline);
    // Last, for the harness keeps what is printed on the heap.
    println!(
        "{} filters: {each} bytes of heap each beyond the text, in requests of at most {largest}",
        EXACT + WILDCARD
    );
    drop((targets, cores));
}
