//! The figures of all threads of a run, put together.
//!
//! Called  by `throughput::run` when the last thread has ended.
//! Holds   - every stream is checked to its end with what its publisher sent, whichever thread that was in;
//!         - each thread measured the same span by its own clock readings: rates are added, not counts over somebody's time.

use std::time::Duration;

use anyhow::{Context, Result};

use super::generator::Part;
use super::{Plan, Settings, Topics};
use crate::acknowledgement::AcknowledgementFaults;
use crate::broker_process::BrokerProcess;
use crate::pace::Pace;
use crate::report::{Host, Latency, Throughput, Verdict};
use crate::sequence::Faults;
use crate::timeline::Timeline;

/// Open loop: a message that leaves this late was not held up by a busy CPU alone.
const BEHIND_NS: u64 = 100_000_000;

/// `parts` are in the order of their threads; the first read the broker's process.
pub fn of(
    address: &str,
    broker: Option<&BrokerProcess>,
    plan: &Plan,
    settings: &Settings,
    mut parts: Vec<Part>,
    timeline: Timeline,
) -> Result<Throughput> {
    let sent: Vec<u64> = parts.iter().flat_map(|part| part.sent.iter().copied()).collect();
    let mut faults = Faults::default();
    let mut acknowledgements = AcknowledgementFaults::default();
    let mut own_cpu = Duration::ZERO;
    for part in &mut parts {
        finish_streams(plan, part, &sent);
        faults.add(part.streams.faults());
        acknowledgements.add(part.acknowledgements);
        own_cpu += part.end.reading.since(&part.begin.reading).own_cpu;
    }
    let seconds_of = |part: &Part| (part.end.now_ns - part.begin.now_ns) as f64 / 1e9;
    let sum_of = |count: fn(&Part) -> u64| parts.iter().map(count).sum::<u64>();
    let rate_of =
        |count: fn(&Part) -> u64| -> f64 { parts.iter().map(|part| count(part) as f64 / seconds_of(part)).sum() };
    let delivered = |part: &Part| part.end.received - part.begin.received;
    let acknowledged = |part: &Part| part.end.acknowledged - part.begin.acknowledged;
    let seconds = parts.iter().map(seconds_of).sum::<f64>() / parts.len() as f64;
    let (delivered, delivered_per_s) = (sum_of(delivered), rate_of(delivered));
    let (acknowledged, acknowledged_per_s) = (sum_of(acknowledged), rate_of(acknowledged));
    let sent_in_time = sum_of(|part| part.end.sent - part.begin.sent);
    let received = sum_of(|part| part.received);
    let foreign = sum_of(|part| part.foreign);
    let stalls = sum_of(|part| part.stalls);
    let sent: u64 = sent.iter().sum();

    let mut parts = parts.into_iter();
    let mut whole = parts.next().context("no thread has measured anything")?;
    for part in parts {
        whole.histogram.add(part.histogram)?;
        whole.acknowledgement_histogram.add(part.acknowledgement_histogram)?;
        whole.lateness_histogram.add(part.lateness_histogram)?;
    }
    let span = whole.end.reading.since(&whole.begin.reading);
    let broker_cpu = span.broker_cpu;
    let per_message_us = |time: Duration| {
        if delivered > 0 {
            time.as_secs_f64() * 1e6 / delivered as f64
        } else {
            f64::NAN
        }
    };
    let is_acknowledged = settings.qos > 0;
    // Loss is a fault above QoS 0 only [MQTT-4.3.1]; order and single delivery hold at QoS 0 as well.
    let is_broken = faults.doubled > 0
        || faults.out_of_order > 0
        || (settings.qos > 0 && faults.missing > 0)
        || acknowledgements.is_broken();
    let pace = settings.rate.map(|rate| Pace::new(rate, plan.publishers as u64));
    Ok(Throughput {
        scenario: "throughput",
        address: address.to_string(),
        broker: broker.map(|b| b.name.clone()),
        settings: settings.describe(plan),
        host: Host::this(),
        threads: plan.threads,
        seconds,
        sent_in_time,
        delivered_in_time: delivered,
        delivered_per_s,
        latency_us: Latency::of(&whole.histogram),
        acknowledged_in_time: is_acknowledged.then_some(acknowledged),
        acknowledged_per_s: is_acknowledged.then_some(acknowledged_per_s),
        acknowledgement_us: is_acknowledged.then(|| Latency::of(&whole.acknowledgement_histogram)),
        lateness_us: pace.map(|_| Latency::of(&whole.lateness_histogram)),
        broker_written: span.written(acknowledged),
        broker_cpu_us: broker_cpu.map(|cpu| per_message_us(cpu.total)),
        broker_user_us: broker_cpu.map(|cpu| per_message_us(cpu.user)),
        broker_system_us: broker_cpu.map(|cpu| per_message_us(cpu.system)),
        broker_cpus: broker_cpu.map(|cpu| cpu.total.as_secs_f64() / span.time.as_secs_f64()),
        generator_cpu_us: per_message_us(own_cpu),
        generator_cpus: own_cpu.as_secs_f64() / seconds,
        broker_memory_bytes: broker.and_then(|b| b.memory_bytes().ok()),
        sent,
        received,
        faults,
        acknowledgements,
        foreign,
        behind_schedule: pace.map_or(0, |pace| {
            pace.total_due_count(whole.end.now_ns.saturating_sub(BEHIND_NS))
                .saturating_sub(sent)
        }),
        stalls,
        timeline,
        verdict: if is_broken { Verdict::RulesBroken } else { Verdict::Good },
    })
}

/// What has not come of the streams of a thread's subscribers will not come any more.
fn finish_streams(plan: &Plan, part: &mut Part, sent: &[u64]) {
    if plan.topics == Topics::Pairs {
        for (stream, publisher) in part.subscribers.clone().enumerate() {
            part.streams.finish(stream, sent[publisher]);
        }
        return;
    }
    let topics = plan.shared_topics as u64;
    let mut stream = 0;
    for _ in part.subscribers.clone() {
        for sent in sent {
            for topic in 0..topics {
                part.streams
                    .finish(stream, sent / topics + u64::from(topic < sent % topics));
                stream += 1;
            }
        }
    }
}
