//! Messages through the broker: how many, how late, and what each costs in CPU time.
//!
//! Owns    the flags of the scenario and what they come to.
//! Called  by `main` for one run and by `compare` for many.
//! Holds   - settings that cannot be measured are refused with a sentence before anything is connected;
//!         - everything is bounded in time: the handshakes, silence while messages are outstanding, the drain;
//!         - Sessions that outlive their connection are ended after the run, after a failed one too.

mod generator;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};

use self::generator::Generator;
use crate::acknowledgement::UNACKED_MAX;
use crate::broker_process::BrokerProcess;
use crate::packet::{Credentials, STAMP_BYTES, run_tag};
use crate::report::{Throughput, grouped};
use crate::transport::{self, Target};
use crate::visits::Visits;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topics {
    /// Publisher i to subscriber i
    Pairs,
    /// All publishers on one topic, to all subscribers
    FanOut,
    /// Each publisher on its own topic, subscribers on PREFIX/#
    FanIn,
}

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Who talks to whom
    #[arg(long, value_enum, default_value = "pairs")]
    pub topics: Topics,
    /// [default: pairs 10, fan-out 1, fan-in 1000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: Option<u32>,
    /// [default: pairs as many as publishers, fan-out 1000, fan-in 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub subscribers: Option<u32>,
    /// Payload bytes, at least 24
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Of the publishes and of the subscriptions
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Closed loop: messages of one publisher sent and not yet received by its subscribers [default: pairs 500,
    /// fan-out 20, fan-in 5; above QoS 0 at most 200]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub window: Option<u32>,
    /// Above QoS 0: messages of one publisher without their acknowledgement [default: 20, with --rate 8192]
    #[arg(long)]
    pub unacked: Option<usize>,
    /// Subscribers keep a Session (Clean Session off), which is ended after the run
    #[arg(long)]
    pub durable: bool,
    /// Open loop: messages a second over all publishers, sent on a schedule; latency counts from the scheduled time
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rate: Option<u64>,
    /// Seconds before measuring starts
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds measured
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seconds that what is outstanding may take to arrive after the measured time
    #[arg(long, default_value_t = 30.0)]
    pub drain: f64,
    /// Pin the generator's thread to this CPU
    #[arg(long)]
    pub cpu: Option<usize>,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "bench",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

/// [`Settings`] checked, defaults filled in.
#[derive(Clone, Debug)]
struct Plan {
    topics: Topics,
    publishers: usize,
    subscribers: usize,
    /// Subscribers that get each message.
    fan: u64,
    window: u64,
    unacked: usize,
}

impl Settings {
    fn plan(&self) -> Result<Plan> {
        let defaults = match self.topics {
            Topics::Pairs => (10, self.publishers.unwrap_or(10), 500),
            Topics::FanOut => (1, 1000, 20),
            Topics::FanIn => (1000, 1, 5),
        };
        let publishers = self.publishers.unwrap_or(defaults.0) as usize;
        let subscribers = self.subscribers.unwrap_or(defaults.1) as usize;
        if self.topics == Topics::Pairs && publishers != subscribers {
            bail!("--topics pairs wants as many subscribers as publishers, not {subscribers} and {publishers}");
        }
        if self.size < STAMP_BYTES || self.size > 200_000_000 {
            bail!(
                "--size {} is outside {STAMP_BYTES}..=200000000: a payload starts with {STAMP_BYTES} bytes of bookkeeping",
                self.size
            );
        }
        if publishers.saturating_mul(subscribers) > 100_000_000 {
            bail!("{publishers} publishers × {subscribers} subscribers are more streams than can be checked");
        }
        for (seconds, flag) in [
            (self.warmup, "--warmup"),
            (self.seconds, "--seconds"),
            (self.drain, "--drain"),
        ] {
            if !(0.0..=1e6).contains(&seconds) {
                bail!("{flag} {seconds} is no time span");
            }
        }
        if self.seconds < 0.01 {
            bail!("--seconds {} is too short to measure", self.seconds);
        }
        let unacked = self
            .unacked
            .unwrap_or(if self.rate.is_some() { UNACKED_MAX } else { 20 });
        if !(1..=UNACKED_MAX).contains(&unacked) {
            bail!("--unacked {unacked} is outside 1..={UNACKED_MAX}");
        }
        let window = self
            .window
            .unwrap_or(if self.qos > 0 { defaults.2.min(200) } else { defaults.2 });
        Ok(Plan {
            topics: self.topics,
            publishers,
            subscribers,
            fan: if self.topics == Topics::Pairs {
                1
            } else {
                subscribers as u64
            },
            window: window as u64,
            unacked,
        })
    }

    fn describe(&self, plan: &Plan) -> String {
        let topics = match plan.topics {
            Topics::Pairs => "pairs",
            Topics::FanOut => "fan-out",
            Topics::FanIn => "fan-in",
        };
        let loop_ = match self.rate {
            Some(rate) => format!("open loop at {}/s", grouped(rate)),
            None => format!("window {}", plan.window),
        };
        let unacked = if self.qos > 0 {
            format!(", unacked {}", plan.unacked)
        } else {
            String::new()
        };
        let durable = if self.durable { ", durable Sessions" } else { "" };
        format!(
            "{topics} {} -> {}{durable}, QoS {}, {} bytes, {loop_}{unacked}, {}, warm-up {} s",
            plan.publishers,
            plan.subscribers,
            self.qos,
            self.size,
            self.transport.transport.name(),
            self.warmup
        )
    }
}

impl Plan {
    fn topic(&self, prefix: &str, publisher: usize) -> String {
        match self.topics {
            Topics::Pairs | Topics::FanIn => format!("{prefix}/{publisher}"),
            Topics::FanOut => format!("{prefix}/all"),
        }
    }

    fn filter(&self, prefix: &str, subscriber: usize) -> String {
        match self.topics {
            Topics::Pairs => format!("{prefix}/{subscriber}"),
            Topics::FanOut => format!("{prefix}/all"),
            Topics::FanIn => format!("{prefix}/#"),
        }
    }

    fn streams(&self) -> usize {
        if self.topics == Topics::Pairs {
            self.publishers
        } else {
            self.publishers * self.subscribers
        }
    }
}

/// One run against one broker.
pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Throughput> {
    let plan = settings.plan()?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let target = Target::new(address, &settings.transport)?;
    if let Some(cpu) = settings.cpu {
        let mut set = CpuSet::new();
        if cpu >= CpuSet::MAX_CPU {
            bail!("there is no CPU {cpu}");
        }
        set.set(cpu);
        sched_setaffinity(None, &set).with_context(|| format!("cannot pin to CPU {cpu}"))?;
    }
    let run = run_tag();
    let result = measure(address, &target, broker.as_ref(), &plan, settings, run);
    if settings.durable {
        let ended = Visits {
            target: &target,
            credentials: &settings.credentials,
            count: plan.subscribers,
            client_id: Box::new(move |i| generator::subscriber_id(run, i)),
        }
        .end_sessions();
        // What made the run fail is told, not what came of it.
        if result.is_ok() {
            ended.context("the run is done, its Sessions could not be ended")?;
        }
    }
    result
}

fn measure(
    address: &str,
    target: &Target,
    broker: Option<&BrokerProcess>,
    plan: &Plan,
    settings: &Settings,
    run: u32,
) -> Result<Throughput> {
    let mut generator = Generator::connect(target, plan, settings, run)?;
    let (begin, end, timeline) = generator.drive(broker)?;
    let report = generator.report(address, broker, begin, end, timeline)?;
    generator.close();
    Ok(report)
}
