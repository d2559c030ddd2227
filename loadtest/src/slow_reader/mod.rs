//! Subscribers that read slowly or not at all, among others that do: what becomes of the broker's memory, of the slow ones and
//! of the others.
//!
//! Owns    the flags of the scenario and its phases.
//! Called  by `main`.
//! Holds   - the phases: the others alone, the slow ones beside them, the others alone again;
//!         - a slow one that was cut off, or that messages were dropped for, is told: each is the broker's right. A message that
//!           comes twice, or out of order, is not.

mod readers;
mod report;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use self::readers::Readers;
pub use self::report::SlowReader;
use crate::broker_process::BrokerProcess;
use crate::bystanders::{self, Bystanders};
use crate::packet::{Credentials, run_tag};
use crate::progress::{End, Progress};
use crate::report::{Host, Verdict, grouped};
use crate::timeline::{Memory, Timeline, Watch};
use crate::transport::{self, Target};

const BASELINE: Duration = Duration::from_secs(2);
const AFTERMATH: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Subscribers that are slow
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub readers: u32,
    /// Bytes a second each of them reads; 0: none at all
    #[arg(long, default_value_t = 0)]
    pub read_rate: u64,
    /// Messages a second that each of them is sent, on a schedule
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rate: u64,
    /// Payload bytes of these, at least 24
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(24..=1_000_000))]
    pub size: u32,
    /// QoS of these and of the slow subscriptions
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Seconds they are slow for
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Pairs of a publisher and a subscriber, QoS 0, that are not slow
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pairs: u32,
    /// Messages a second over all pairs, on a schedule; latency counts from the scheduled time
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub pair_rate: u64,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "slow",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<SlowReader> {
    if !(0.1..=1e6).contains(&settings.seconds) {
        bail!("--seconds {} is outside 0.1..=1000000", settings.seconds);
    }
    let target = Target::new(address, &settings.transport)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let run = run_tag();
    let others = bystanders::Settings {
        pairs: settings.pairs,
        rate: settings.pair_rate,
        transport: settings.transport.transport.name(),
        topic_prefix: settings.topic_prefix.clone(),
        credentials: settings.credentials.clone(),
    };
    let bystanders = Bystanders::start(target.clone(), others, run)?;
    let result = measure(&target, broker.as_ref(), settings, run, &bystanders);
    // The thread ends whatever happened; what made the run fail is told first.
    let bystanders = bystanders.stop();
    let (counts, memory, timeline) = result?;
    let faults = counts.faults;
    let is_broken = faults.doubled + faults.out_of_order > 0;
    Ok(SlowReader {
        address: address.to_string(),
        broker: broker.map(|broker| broker.name),
        settings: describe(settings),
        host: Host::this(),
        counts,
        memory,
        bystanders: bystanders?,
        timeline,
        verdict: if is_broken { Verdict::RulesBroken } else { Verdict::Good },
    })
}

fn describe(settings: &Settings) -> String {
    let pace = match settings.read_rate {
        0 => "not at all".to_string(),
        rate => format!("{} bytes/s", grouped(rate)),
    };
    format!(
        "{} subscribers read {pace} for {} s, QoS {}, each is sent {}/s of {} bytes, {}",
        settings.readers,
        settings.seconds,
        settings.qos,
        grouped(settings.rate),
        settings.size,
        settings.transport.transport.name()
    )
}

/// What is told of the run while it goes on.
struct Live<'a> {
    watch: Watch,
    progress: Progress,
    start: Instant,
    others: &'a Bystanders,
    /// Deliveries to the slow ones, and what was wrong with them.
    slow: (u64, u64),
}

impl Live<'_> {
    fn turn(&mut self) {
        let others = self.others.received();
        self.watch.store([others, self.slow.0], self.slow.1);
        let now_ns = self.start.elapsed().as_nanos() as u64;
        self.progress.count(now_ns, others, "to the others");
    }
}

fn measure(
    target: &Target,
    broker: Option<&BrokerProcess>,
    settings: &Settings,
    run: u32,
    bystanders: &Bystanders,
) -> Result<(readers::Counts, Option<Memory>, Timeline)> {
    let slow_for = Duration::from_secs_f64(settings.seconds);
    let length = bystanders::WARM_UP + BASELINE + slow_for + readers::SILENCE + AFTERMATH;
    let mut live = Live {
        watch: Watch::start(broker, &["to the others", "to the slow ones"], "the others alone")?,
        progress: Progress::new(End::After(length)),
        start: Instant::now(),
        others: bystanders,
        slow: (0, 0),
    };
    bystanders.wait(bystanders::WARM_UP + BASELINE, || live.turn())?;
    let mut readers = Readers::connect(target, settings, run)?;
    live.watch.phase("slow");
    bystanders.storm_begins();
    let start = Instant::now();
    let slow = readers.be_slow(&mut live);
    live.watch.phase("catching up");
    let caught_up = slow.and_then(|()| readers.catch_up(&mut live));
    let took = start.elapsed();
    bystanders.storm_ended();
    caught_up?;
    live.watch.phase("alone again");
    let counts = readers.finish(took);
    bystanders.wait(AFTERMATH, || live.turn())?;
    let memory = live.watch.memory();
    Ok((counts, memory, live.watch.stop()))
}
