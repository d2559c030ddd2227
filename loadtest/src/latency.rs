//! Latency at a fixed rate: what a message, and its acknowledgement, take from the time they were to leave.
//!
//! Owns    flags and defaults; the work is that of `throughput` as an open loop over pairs.
//! Called  by `main` and `compare`.
//! Holds   - the generator's own lateness is a line of its own, so that it is not taken for the broker's.

use anyhow::Result;
use clap::Args;

use crate::packet::Credentials;
use crate::report::Throughput;
use crate::sizes::Sizes;
use crate::throughput::{self, Topics};
use crate::transport;

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Publishers, each with a subscriber of its own
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: u32,
    /// Messages a second over all pairs, sent on a schedule
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rate: u64,
    /// Of the publishes and of the subscriptions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Payload bytes, at least 24: one size, a span (64-1024), or sizes with weights (64:0.9,4096:0.1)
    #[arg(long, default_value = "64")]
    pub size: Sizes,
    /// Subscribers keep a Session (Clean Session off), which is ended after the run
    #[arg(long)]
    pub durable: bool,
    /// Microseconds before a message is due from which on the generator looks at the clock and does not sleep: this holds the
    /// schedule to a few microseconds. 0 leaves the CPU to the broker, where both share it
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub spin: u64,
    /// Seconds before measuring starts
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds measured
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Threads, each with its share of the pairs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Pin the generator's first thread to this CPU, the next ones to those after it
    #[arg(long)]
    pub cpu: Option<usize>,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "latency",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Throughput> {
    let Settings {
        pairs,
        rate,
        qos,
        size,
        durable,
        spin,
        warmup,
        seconds,
        threads,
        cpu,
        topic_prefix,
        credentials,
        transport,
    } = settings.clone();
    let settings = throughput::Settings {
        topics: Topics::Pairs,
        publishers: Some(pairs),
        subscribers: None,
        shared_topics: 1,
        size,
        seed: None,
        qos,
        window: None,
        unacked: None,
        durable,
        rate: Some(rate),
        warmup,
        seconds,
        drain: 30.0,
        threads,
        source_addresses: None,
        cpu,
        spin,
        gather: 0,
        topic_prefix,
        topic: None,
        client_id: None,
        credentials,
        transport,
    };
    let figures = throughput::run(address, broker_pid, &settings)?;
    Ok(Throughput {
        scenario: "latency",
        ..figures
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_broker::{FakeBroker, Fault};
    use crate::report::Verdict;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(flags: &str) -> Settings {
        Flags::parse_from(flags.split(' ')).settings
    }

    #[test]
    fn a_fixed_rate_is_kept_and_both_latencies_and_the_generators_own_are_told() {
        let broker = FakeBroker::start(Fault::None);
        for flags in ["latency --rate 500", "latency --rate 50 --spin 0 --threads 2"] {
            let settings = settings(&format!("{flags} --warmup 0.1 --seconds 1"));
            let figures = run(&broker.address, None, &settings).unwrap();
            assert_eq!(figures.verdict, Verdict::Good, "{figures}");
            let wanted = settings.rate * 11 / 10;
            assert!((wanted..=wanted * 2).contains(&figures.sent), "{figures}");
            let late = figures.lateness_us.as_ref().unwrap();
            assert!(late.count >= settings.rate * 9 / 10, "{figures}");
            let acknowledged = figures.acknowledgement_us.as_ref().unwrap();
            assert!(
                late.p50 <= acknowledged.p50 && late.p50 <= figures.latency_us.p50,
                "{figures}"
            );
        }
    }
}
