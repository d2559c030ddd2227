//! Messages through the broker: how many, how late, and what each costs in CPU time.
//!
//! Owns    the flags of the scenario and what they come to.
//! Called  by `main` for one run and by `compare` for many.
//! Holds   - settings that cannot be measured are refused with a sentence before anything is connected;
//!         - everything is bounded in time: the handshakes, silence while messages are outstanding, the drain;
//!         - Sessions that outlive their connection are ended after the run, after a failed one too.

mod figures;
mod generator;
mod names;
mod shared;
#[cfg(test)]
mod tests;

use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};

use self::generator::{Generator, Part};
use self::names::{Names, Role};
use self::shared::{Share, Shared, range_of};
use crate::acknowledgement::UNACKED_MAX;
use crate::broker_process::BrokerProcess;
use crate::packet::{Credentials, run_tag};
use crate::private_fds;
use crate::report::{Throughput, grouped};
use crate::sizes::Sizes;
use crate::source_ports::source_count;
use crate::timeline::Watch;
use crate::transport::{self, Target};
use crate::visits::Visits;

/// Descriptors of a table that are not connections.
const OTHER_FDS: usize = 64;
const THREADS_MAX: i64 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topics {
    /// Publisher i to subscriber i
    Pairs,
    /// All publishers on one topic, to all subscribers
    FanOut,
    /// Each publisher on its own topic, subscribers on PREFIX/#
    FanIn,
    /// All publishers on the same topics in turn, to all subscribers
    Shared,
}

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Who talks to whom
    #[arg(long, value_enum, default_value = "pairs")]
    pub topics: Topics,
    /// [default: pairs 10, fan-out 1, fan-in 1000, shared 10]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: Option<u32>,
    /// [default: pairs as many as publishers, fan-out 1000, fan-in 1, shared 10]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub subscribers: Option<u32>,
    /// With --topics shared: how many topics
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub shared_topics: u32,
    /// Payload bytes, at least 24: one size, a span (64-1024), or sizes with weights (64:0.9,4096:0.1)
    #[arg(long, default_value = "64")]
    pub size: Sizes,
    /// What the sizes are drawn from: the same seed, the same sizes [default: another one each run, which the report names]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Of the publishes and of the subscriptions
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Closed loop: messages of one publisher sent and not yet received by its subscribers [default: pairs 500,
    /// fan-out 20, fan-in 5, shared 20; above QoS 0 at most 200]
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
    /// Threads. Each has its share of the publishers and of the subscribers; who sends to whom does not depend on it. More are
    /// started where the limit of open files asks for them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX))]
    pub threads: u32,
    /// Connect from 127.0.0.1 to 127.0.0.K in turn [default: none, or enough for 20,000 each on a loopback address]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    pub source_addresses: Option<u32>,
    /// Pin the generator's first thread to this CPU, the next ones to those after it
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Open loop: microseconds before a message is due from which on its thread looks at the clock and does not sleep. Some
    /// 100 hold the schedule to a few microseconds, for CPU time the broker may want on the same host
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub spin: u64,
    /// Closed loop: microseconds that a thread lets answers gather before it reads them (the timer adds some 50). Against a
    /// broker that writes once a message, the generator reads once a message otherwise, and takes nearly as much CPU time as the
    /// broker; latencies have it in them, and what is delivered in that time is bounded by the windows
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub gather: u64,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "bench",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    /// The publishers' topics below the prefix: {publisher} becomes its number, {client} its client id, {run} differs from run to
    /// run, {topic} is the number of a shared topic [default: {publisher}, fan-out all, shared shared/{topic}]
    #[arg(long, value_name = "TEMPLATE")]
    pub topic: Option<String>,
    /// Client ids: {role} is p for publishers and s for subscribers, {number} counts within each role, {run} differs from run
    /// to run [default: sl{run}{role}{number}]
    #[arg(long, value_name = "TEMPLATE")]
    pub client_id: Option<String>,
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
    /// Topics all publishers share; 1 where each has its own.
    shared_topics: usize,
    window: u64,
    unacked: usize,
    threads: usize,
    /// Each thread has its own descriptor table.
    is_private: bool,
    /// 0: the kernel chooses.
    sources: u32,
    seed: u64,
    run: u32,
}

impl Settings {
    fn plan(&self) -> Result<Plan> {
        let defaults = match self.topics {
            Topics::Pairs => (10, self.publishers.unwrap_or(10), 500),
            Topics::FanOut => (1, 1000, 20),
            Topics::FanIn => (1000, 1, 5),
            Topics::Shared => (10, 10, 20),
        };
        let publishers = self.publishers.unwrap_or(defaults.0) as usize;
        let subscribers = self.subscribers.unwrap_or(defaults.1) as usize;
        if self.topics == Topics::Pairs && publishers != subscribers {
            bail!("--topics pairs wants as many subscribers as publishers, not {subscribers} and {publishers}");
        }
        let shared_topics = match self.topics {
            Topics::Shared => self.shared_topics as usize,
            _ => 1,
        };
        if publishers.saturating_mul(subscribers).saturating_mul(shared_topics) > 100_000_000 {
            bail!(
                "{publishers} publishers × {subscribers} subscribers × {shared_topics} topics are more streams than can be checked"
            );
        }
        if self.threads as usize > publishers.max(subscribers) {
            bail!(
                "--threads {}: there are not as many publishers, nor subscribers",
                self.threads
            );
        }
        if self.spin > 0 && self.rate.is_none() {
            bail!("--spin is for an open loop: it wants --rate");
        }
        if self.gather > 0 && self.rate.is_some() {
            bail!("--gather is for a closed loop: an open loop (--rate) would measure it as the broker's latency");
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
        let per_table = (private_fds::raise_limit() as usize).saturating_sub(OTHER_FDS).max(3);
        let is_private = publishers + subscribers > per_table;
        let needed = if is_private {
            // The parts of both kinds may each be one longer than the others'.
            (publishers + subscribers).div_ceil(per_table - 2)
        } else {
            1
        };
        let run = run_tag();
        Ok(Plan {
            topics: self.topics,
            publishers,
            subscribers,
            fan: if self.topics == Topics::Pairs {
                1
            } else {
                subscribers as u64
            },
            shared_topics,
            window: window as u64,
            unacked,
            threads: needed.max(self.threads as usize),
            is_private,
            sources: 0,
            seed: self.seed.unwrap_or(run.into()),
            run,
        })
    }

    fn names(&self, plan: &Plan) -> Result<Names> {
        let names = Names {
            topics: self.topics,
            prefix: self.topic_prefix.clone(),
            topic: self.topic.clone(),
            client_id: self.client_id.clone(),
            shared_topics: plan.shared_topics,
            run: plan.run,
        };
        names.check(plan.publishers, plan.subscribers)?;
        Ok(names)
    }

    fn describe(&self, plan: &Plan) -> String {
        let topics = match plan.topics {
            Topics::Pairs => "pairs",
            Topics::FanOut => "fan-out",
            Topics::FanIn => "fan-in",
            Topics::Shared => &format!("{} shared topics", plan.shared_topics),
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
        let mut text = format!(
            "{topics} {} -> {}{durable}, QoS {}, {} bytes, {loop_}{unacked}, {}, warm-up {} s",
            plan.publishers,
            plan.subscribers,
            self.qos,
            self.size,
            self.transport.transport.name(),
            self.warmup
        );
        if !self.size.is_fixed() {
            text += &format!(", seed {}", plan.seed);
        }
        if plan.threads > 1 {
            text += &format!(", {} threads", plan.threads);
        }
        if plan.sources > 0 {
            text += &format!(", {} source addresses", plan.sources);
        }
        for (what, template) in [("topics", &self.topic), ("client ids", &self.client_id)] {
            if let Some(template) = template {
                text += &format!(", {what} {}", self.credentials.mask(template));
            }
        }
        if self.spin > 0 {
            text += &format!(", spin {} µs", self.spin);
        }
        if self.gather > 0 {
            text += &format!(", gathering {} µs", self.gather);
        }
        text
    }
}

impl Plan {
    fn share(&self, thread: usize) -> Share {
        Share {
            thread,
            publishers: range_of(self.publishers, thread, self.threads),
            subscribers: range_of(self.subscribers, thread, self.threads),
        }
    }

    /// Those that end in one thread.
    fn streams(&self, share: &Share) -> usize {
        match self.topics {
            Topics::Pairs => share.subscribers.len(),
            _ => share.subscribers.len() * self.publishers * self.shared_topics,
        }
    }
}

/// One run against one broker.
pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Throughput> {
    let mut plan = settings.plan()?;
    let names = settings.names(&plan)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let target = Target::new(address, &settings.transport)?;
    let clients = (plan.publishers + plan.subscribers) as u32;
    plan.sources = source_count(target.address, settings.source_addresses, clients)?;
    let counted = ["delivered", "acknowledged"];
    let counted = &counted[..if settings.qos > 0 { 2 } else { 1 }];
    let watch = Watch::of_threads(plan.threads, broker.as_ref(), counted, "connect")?;
    let result = measure(&target, broker.as_ref(), &plan, settings, &names, &watch)
        .and_then(|parts| figures::of(address, broker.as_ref(), &plan, settings, parts, watch.stop()));
    if settings.durable {
        let ended = Visits {
            target: &target,
            credentials: &settings.credentials,
            count: plan.subscribers,
            client_id: Box::new(|i| names.client_id(Role::Subscriber, i)),
        }
        .end_sessions();
        // What made the run fail is told, not what came of it.
        if result.is_ok() {
            ended.context("the run is done, its Sessions could not be ended")?;
        }
    }
    result
}

/// What each thread counted, in their order.
fn measure(
    target: &Target,
    broker: Option<&BrokerProcess>,
    plan: &Plan,
    settings: &Settings,
    names: &Names,
    watch: &Watch,
) -> Result<Vec<Part>> {
    let shared = Shared::new(plan.threads, plan.publishers)?;
    let run_thread = |thread: usize| -> Result<Option<Part>> {
        let result = (|| {
            if plan.is_private {
                private_fds::unshare()?;
            }
            if let Some(first) = settings.cpu {
                pin(first + thread)?;
            }
            // One reads the broker's process for all.
            let broker = broker.filter(|_| thread == 0);
            let share = plan.share(thread);
            let mut generator = Generator::connect(target, plan, settings, names, share, &shared)?;
            let driven = generator.drive(broker, watch)?;
            Ok(driven.map(|(begin, end)| generator.finish(begin, end)))
        })();
        if result.is_err() {
            shared.stop();
        }
        result
    };
    if plan.threads == 1 {
        return Ok(run_thread(0)?.into_iter().collect());
    }
    thread::scope(|scope| {
        let run_thread = &run_thread;
        let mut threads = Vec::new();
        for thread in 0..plan.threads {
            let spawned = thread::Builder::new()
                .spawn_scoped(scope, move || run_thread(thread))
                .with_context(|| format!("cannot start thread {thread} of {}", plan.threads));
            match spawned {
                Ok(handle) => threads.push(handle),
                Err(error) => {
                    shared.stop();
                    return Err(error);
                }
            }
        }
        let mut parts = Vec::new();
        let mut failure = None;
        for thread in threads {
            match thread.join() {
                Ok(Ok(part)) => parts.extend(part),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(parts),
        }
    })
}

/// The calling thread alone.
fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("there is no CPU {cpu}");
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin to CPU {cpu}"))
}
