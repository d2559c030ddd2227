//! A storm of connects: how many a second the broker takes, how long each waits, and what the others notice of it.
//!
//! Owns    the flags of the scenario and its phases.
//! Called  by `main`.
//! Holds   - the phases: one connection to see that it can be measured (with --resume as many as tickets are needed), the
//!           bystanders alone, the storm, the bystanders alone again;
//!         - a connection of the storm that fails is counted with its cause; it ends no run;
//!         - the threads of the storm step back before the broker and the bystanders (`--storm-nice`).

mod report;
mod storm;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

pub use self::report::Connect;
use self::report::{Phases, Storm};
use crate::broker_process::{BrokerProcess, CpuTime};
use crate::bystanders::{self, Bystanders};
use crate::client::Connection;
use crate::packet::{Credentials, SessionKind, run_tag};
use crate::private_fds;
use crate::progress::{End, Progress};
use crate::report::{Host, Latency, grouped};
use crate::source_ports::source_count;
use crate::timeline::{Timeline, Watch};
use crate::transport::tls::Tickets;
use crate::transport::{self, Target, Transport};

/// Descriptors of a table that are not connections.
const OTHER_FDS: u64 = 64;
/// The bystanders alone, before and after the storm.
const BASELINE: Duration = Duration::from_secs(2);
const AFTERMATH: Duration = Duration::from_secs(1);
/// How often the counts of the threads are looked at.
const TURN: Duration = Duration::from_millis(5);
/// Cycles of a churn without --rate.
const CHURN_PER_S: u64 = 100;

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Steady cycles instead of a storm: connect, subscribe, publish one message, get it back, disconnect; --rate of them a
    /// second (100 unless it is given) for --seconds
    #[arg(long, conflicts_with_all = ["keep", "connections"])]
    pub churn: bool,
    /// With --churn: for how long
    #[arg(long, default_value_t = 10.0, requires = "churn")]
    pub seconds: f64,
    /// Connections of the storm
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Connects a second over all threads, on a schedule; latency counts from the scheduled time [default: as fast as they are
    /// answered]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// Handshakes under way at a time, per thread
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Threads of the storm; more are started where --keep meets the limit of open files
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub threads: u32,
    /// TLS: resume sessions. What is to resume comes from full handshakes before the storm, which are not counted
    #[arg(long)]
    pub resume: bool,
    /// Close no connection before all are up [default: each is closed after its CONNACK]
    #[arg(long)]
    pub keep: bool,
    /// How far the threads of the storm step back: their TLS work takes CPU time the broker wants on the same host. 0 to 19,
    /// as of nice(1). Where kernel.sched_autogroup_enabled is 1 it counts only against a broker started from the same
    /// session (terminal); the report says so
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i32).range(0..=19))]
    pub storm_nice: i32,
    /// Connect from 127.0.0.1 to 127.0.0.K in turn [default: none, or enough for 20,000 each on a loopback address]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    pub source_addresses: Option<u32>,
    /// Pairs of a publisher and a subscriber, QoS 0, that were there before the storm
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub bystanders: u32,
    /// Messages a second over all pairs, on a schedule; latency counts from the scheduled time
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bystander_rate: u64,
    /// What the bystanders speak
    #[arg(long, value_enum, default_value = "tcp")]
    pub bystander_transport: Transport,
    /// Where, HOST:PORT [default: --addr, if the transport is that of the storm]
    #[arg(long)]
    pub bystander_addr: Option<String>,
    /// First levels of the bystanders' topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "connect",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

impl Settings {
    /// A churn is so many cycles at its rate.
    fn with_cycles(&self) -> Result<Settings> {
        let mut settings = self.clone();
        if self.churn {
            let rate = self.rate.unwrap_or(CHURN_PER_S);
            let cycles = self.seconds * rate as f64;
            if !(1.0..=1e9).contains(&cycles) {
                bail!("--seconds {} at {rate} cycles a second makes no churn", self.seconds);
            }
            (settings.rate, settings.connections) = (Some(rate), cycles as u32);
        }
        Ok(settings)
    }
}

/// What the threads need to know.
#[derive(Clone, Debug)]
struct Plan {
    target: Target,
    run: u32,
    threads: u32,
    /// Each thread has its own descriptor table.
    is_private: bool,
    sources: u32,
}

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Connect> {
    let settings = &settings.with_cycles()?;
    let transport = settings.transport.transport;
    if settings.resume && !transport.is_tls() {
        bail!("--resume is for --transport tls and wss, not {}", transport.name());
    }
    let bystander_address = match &settings.bystander_addr {
        Some(text) => text.as_str(),
        None if settings.bystanders == 0 || settings.bystander_transport == transport => address,
        None => bail!(
            "the bystanders speak {}, the storm {}: --bystander-addr HOST:PORT says where the broker listens for them",
            settings.bystander_transport.name(),
            transport.name()
        ),
    };
    let tickets = settings.resume.then(Arc::<Tickets>::default);
    let target = Target::with_tickets(address, transport, &settings.transport.layers, tickets.clone())?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let per_table = private_fds::raise_limit().saturating_sub(OTHER_FDS).max(1);
    let n = u64::from(settings.connections);
    let open_at_once = if settings.keep {
        n
    } else {
        n.min(u64::from(settings.in_flight) * u64::from(settings.threads))
    };
    let pairs_fds = u64::from(settings.bystanders) * 2;
    if pairs_fds > per_table {
        bail!(
            "{} pairs of bystanders, but this process may have {per_table} files open: ulimit -n",
            settings.bystanders
        );
    }
    let is_private = open_at_once + pairs_fds > per_table;
    let needed = open_at_once.div_ceil(per_table) as u32;
    let plan = Plan {
        sources: source_count(target.address, settings.source_addresses, settings.connections)?,
        target,
        run: run_tag(),
        threads: if is_private {
            settings.threads.max(needed)
        } else {
            settings.threads
        },
        is_private,
    };
    warm_up(&plan, settings, tickets.as_deref())?;
    let bystanders = match settings.bystanders {
        0 => None,
        pairs => {
            let layers = &settings.transport.layers;
            let target = Target::with_tickets(bystander_address, settings.bystander_transport, layers, None)?;
            let settings = bystanders::Settings {
                pairs,
                rate: settings.bystander_rate,
                transport: settings.bystander_transport.name(),
                topic_prefix: settings.topic_prefix.clone(),
                credentials: settings.credentials.clone(),
            };
            Some(Bystanders::start(target, settings, plan.run)?)
        }
    };
    let result = measure(broker.as_ref(), &plan, settings, bystanders.as_ref());
    // The thread ends whatever happened; what made the run fail is told first.
    let bystanders = bystanders.map(Bystanders::stop);
    let (storm, span) = result?;
    let seconds = span.seconds;
    let during = span.broker_during.zip(span.broker_alone);
    Ok(Connect {
        address: address.to_string(),
        broker: broker.as_ref().map(|b| b.name.clone()),
        host: Host::this(),
        settings: describe(settings, &plan),
        seconds,
        connects_per_s: storm.connected as f64 / seconds,
        latency_us: Latency::of(&storm.total),
        phases_us: Phases::of(&storm, transport, settings.churn),
        broker_cpu_us_per_connect: during.filter(|_| storm.connected > 0).map(|(during, alone)| {
            ((during.total.as_secs_f64() - alone * seconds) * 1e6 / storm.connected as f64).max(0.0)
        }),
        broker_cpus: span.broker_during.map(|cpu| cpu.total.as_secs_f64() / seconds),
        broker_cpus_before: span.broker_alone.filter(|_| settings.bystanders > 0),
        generator_cpus: span.own.total.as_secs_f64() / seconds,
        connected: storm.connected,
        resumed: transport.is_tls().then_some(storm.resumed),
        failures: storm.failures,
        bystanders: bystanders.transpose()?,
        timeline: span.timeline,
        nice_without_effect: broker_pid.is_some_and(is_in_another_autogroup) && settings.storm_nice > 0,
    })
}

/// The scheduler weighs sessions before it weighs the threads in them.
fn is_in_another_autogroup(pid: u32) -> bool {
    let group = |process: &str| {
        let text = std::fs::read_to_string(format!("/proc/{process}/autogroup")).ok()?;
        text.split_ascii_whitespace().next().map(String::from)
    };
    let is_enabled =
        std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled").is_ok_and(|text| text.trim() == "1");
    is_enabled && group("self") != group(&pid.to_string())
}

fn describe(settings: &Settings, plan: &Plan) -> String {
    let pace = match settings.rate {
        Some(rate) => format!("open loop at {}/s", grouped(rate)),
        None => "as fast as answered".to_string(),
    };
    format!(
        "{} connects over {}, {pace}, {} threads with {} in flight (nice {}), {} source addresses{}{}",
        grouped(settings.connections.into()),
        settings.transport.transport.name(),
        plan.threads,
        settings.in_flight,
        settings.storm_nice,
        plan.sources,
        if settings.resume { ", resuming" } else { "" },
        if settings.churn {
            ", each subscribes, publishes and disconnects"
        } else if settings.keep {
            ", kept until all are up"
        } else {
            ", closed after CONNACK"
        },
    )
}

/// One connection tells what is wrong before thousands do; with `tickets`, as many as give one to each handshake under way.
fn warm_up(plan: &Plan, settings: &Settings, tickets: Option<&Tickets>) -> Result<()> {
    let wanted = (settings.in_flight * plan.threads).min(settings.connections) as usize;
    let mut count = 0;
    loop {
        let before = tickets.map_or(0, Tickets::count);
        let id = format!("sc{:08x}w{count}", plan.run);
        Connection::open(&plan.target, &id, SessionKind::Clean, &settings.credentials)?.close();
        count += 1;
        let Some(tickets) = tickets else { return Ok(()) };
        let now = tickets.count();
        if now <= before {
            bail!(
                "--resume: {} gave {now} tickets to {count} connections, {wanted} handshakes are to be under way at a time",
                plan.target.address
            );
        }
        if now >= wanted {
            tickets.begin_use();
            return Ok(());
        }
    }
}

/// What a storm took.
struct Span {
    seconds: f64,
    broker_during: Option<CpuTime>,
    /// CPUs of the broker while the bystanders were alone.
    broker_alone: Option<f64>,
    own: CpuTime,
    timeline: Timeline,
}

fn measure(
    broker: Option<&BrokerProcess>,
    plan: &Plan,
    settings: &Settings,
    bystanders: Option<&Bystanders>,
) -> Result<(Storm, Span)> {
    let own = BrokerProcess::new(std::process::id())?;
    let cpu = || broker.map(BrokerProcess::cpu_time).transpose();
    let (storm_name, what) = if settings.churn {
        ("churn", "cycles")
    } else {
        ("storm", "connected")
    };
    let (counted, first) = match bystanders {
        Some(_) => (&[what, "bystanders' messages"][..], "before"),
        None => (&[what][..], storm_name),
    };
    let watch = Watch::start(broker, counted, first)?;
    let heard = || bystanders.map_or(0, Bystanders::received);
    let mut broker_alone = broker.map(|_| 0.0);
    if let Some(bystanders) = bystanders {
        let meanwhile = || watch.store([0, heard()], 0);
        bystanders.wait(bystanders::WARM_UP, meanwhile)?;
        let (before, start) = (cpu()?, Instant::now());
        bystanders.wait(BASELINE, meanwhile)?;
        broker_alone = cpu()?
            .zip(before)
            .map(|(now, before)| now.since(before).total.as_secs_f64() / start.elapsed().as_secs_f64());
        bystanders.storm_begins();
        watch.phase(storm_name);
    }
    let (cpu_before, own_before) = (cpu()?, own.cpu_time()?);
    let start = Instant::now();
    let shared = storm::Shared::default();
    let mut progress = Progress::new(End::At(settings.connections.into()));
    let outcome = thread::scope(|scope| {
        let mut threads = Vec::new();
        let mut first = 0;
        for thread in 0..plan.threads {
            let count = settings.connections / plan.threads + u32::from(thread < settings.connections % plan.threads);
            let share = storm::Share { thread, first, count };
            first += count;
            let shared = &shared;
            let spawned = thread::Builder::new()
                .spawn_scoped(scope, move || storm::run(plan, settings, share, start, shared))
                .with_context(|| format!("cannot start thread {thread} of {}", plan.threads));
            match spawned {
                Ok(handle) => threads.push(handle),
                Err(error) => {
                    shared.is_stopped.store(true, Ordering::Release);
                    return Err(error);
                }
            }
        }
        while threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(TURN);
            let settled = shared.settled.load(Ordering::Acquire);
            let failed = shared.failed.load(Ordering::Acquire);
            progress.count(start.elapsed().as_nanos() as u64, settled, what);
            watch.store([settled.saturating_sub(failed), heard()], failed);
        }
        let mut whole = Storm::new()?;
        for thread in threads {
            match thread.join() {
                Ok(part) => whole.add(part?)?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(whole)
    });
    drop(progress);
    let ended = (cpu()?, own.cpu_time()?);
    let settled = shared.settled.load(Ordering::Acquire);
    let failed = shared.failed.load(Ordering::Acquire);
    let meanwhile = || watch.store([settled.saturating_sub(failed), heard()], failed);
    meanwhile();
    if let Some(bystanders) = bystanders {
        bystanders.storm_ended();
        watch.phase("after");
        if outcome.is_ok() {
            bystanders.wait(AFTERMATH, meanwhile)?;
        }
    }
    let storm = outcome?;
    let span = Span {
        seconds: (storm.last_ns.max(1)) as f64 / 1e9,
        broker_during: ended.0.zip(cpu_before).map(|(now, before)| now.since(before)),
        broker_alone,
        own: ended.1.since(own_before),
        timeline: watch.stop(),
    };
    Ok((storm, span))
}
