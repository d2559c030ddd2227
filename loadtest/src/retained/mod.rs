//! Retained messages: set, then read by new subscribers, then cleared.
//!
//! Owns    the flags of the scenario, its phases and what they leave behind in the broker.
//! Called  by `main`.
//! Holds   - the topics of a run carry its tag; subscribers ask for PREFIX/# and ignore what other runs have left there;
//!         - the messages are cleared after the run, after a failed one too, unless they are to stay;
//!         - everything is bounded in time: handshakes, and silence while the broker owes something.

mod board;
mod report;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::board::Board;
use self::report::{Reading as Read, Retained, Setting};
use crate::acknowledgement::AcknowledgementFaults;
use crate::broker_process::BrokerProcess;
use crate::meter::Reading;
use crate::packet::{SessionKind, run_tag};
use crate::poller::Poller;
use crate::private_fds;
use crate::progress::{End, Progress};
use crate::receivers::{Receivers, Wish};
use crate::report::{Host, Latency, Verdict, grouped};
use crate::senders::{self, Job, NUMBER_DIGITS, NUMBER_MAX, Payload, Rota, Senders, Share, share_of};
use crate::timeline::Watch;
use crate::transport::Target;

/// After the last message, how long a doubled one may still turn up.
const LINGER: Duration = Duration::from_millis(100);
/// At QoS 0 a message may be dropped: after this silence nothing more is waited for.
const SILENCE_QOS_0: Duration = Duration::from_secs(2);
const TURN_MAX: Duration = Duration::from_millis(20);
/// Subscribers that connect in one turn: those that read want theirs.
const BEGUN_MAX: u64 = 64;
const OTHER_FDS: u64 = 64;
const BITS_MAX: u64 = 8_000_000_000;

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Retained messages, each on a topic of its own
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub topics: u64,
    /// Times each is set; the last payload is what a subscriber must get
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub updates: u64,
    /// Subscribers that read all of them, at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub subscribers: u32,
    /// Of the publishes and of the subscriptions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    #[command(flatten)]
    pub senders: senders::Settings,
    /// Leave the messages in the broker, and print the tag to read them by
    #[arg(long)]
    pub keep: bool,
    /// Read what an earlier invocation kept, given the tag it printed; the other flags must be those it was given
    #[arg(long, value_name = "TAG", value_parser = crate::backlog::parse_tag)]
    pub read_only: Option<u32>,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "retained",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
}

/// [`Settings`] checked, and where they lead.
#[derive(Clone, Debug)]
struct Plan {
    target: Target,
    run: u32,
    topics: u64,
    updates: u64,
    publishers: u64,
    subscribers: u64,
}

impl Plan {
    fn new(target: Target, settings: &Settings) -> Result<Plan> {
        settings.senders.check()?;
        let subscribers = u64::from(settings.subscribers);
        if settings.topics - 1 > NUMBER_MAX || settings.topics * subscribers > BITS_MAX {
            bail!(
                "{} topics × {subscribers} subscribers are more than can be checked",
                settings.topics
            );
        }
        let fds = private_fds::raise_limit();
        if subscribers + OTHER_FDS > fds {
            bail!("{subscribers} subscribers, but this process may have {fds} files open: ulimit -n");
        }
        Ok(Plan {
            target,
            run: settings.read_only.unwrap_or_else(run_tag),
            topics: settings.topics,
            updates: settings.updates,
            // One without a topic has nothing to do.
            publishers: u64::from(settings.senders.publishers).min(settings.topics),
            subscribers,
        })
    }

    fn topic(&self, prefix: &str) -> String {
        format!("{prefix}/{:08x}/{:0width$}", self.run, 0, width = NUMBER_DIGITS)
    }

    /// Each topic is one publisher's: its payloads come in order.
    fn shares(&self, times: u64) -> Vec<Share> {
        (0..self.publishers)
            .map(|publisher| {
                let width = share_of(self.topics, publisher, self.publishers);
                Share {
                    rota: Rota {
                        first: publisher,
                        step: self.publishers,
                        width,
                    },
                    from: 0,
                    until: width * times,
                }
            })
            .collect()
    }

    fn job<'a>(&self, settings: &'a Settings, payload: Payload<'a>) -> Job<'a> {
        Job {
            retain: true,
            payload,
            topic: self.topic(&settings.topic_prefix),
            is_numbered: true,
            ..settings.senders.job(self.run, settings.qos)
        }
    }

    fn describe(&self, settings: &Settings) -> String {
        format!(
            "{} retained messages set {} times, {} subscribers, QoS {}, {} bytes, {} publishers, unacked {}",
            grouped(self.topics),
            self.updates,
            self.subscribers,
            settings.qos,
            settings.senders.size,
            self.publishers,
            settings.senders.unacked
        )
    }
}

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Retained> {
    let plan = Plan::new(Target::new(address, &settings.senders.transport)?, settings)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let mut result = measure(address, broker.as_ref(), &plan, settings);
    if !settings.keep {
        let begin = Instant::now();
        let cleared = clear(&plan, settings);
        // What made the run fail is told, not what came of it.
        if let Ok(report) = &mut result {
            cleared.context("the run is done, its messages could not be cleared")?;
            report.cleared_seconds = Some(begin.elapsed().as_secs_f64());
            report.broker_bytes_cleared = broker.as_ref().and_then(|broker| broker.memory_bytes().ok());
        }
    }
    result
}

fn clear(plan: &Plan, settings: &Settings) -> Result<()> {
    let mut poller = Poller::new()?;
    let mut senders = Senders::connect(
        &plan.target,
        &poller,
        0,
        plan.job(settings, Payload::Empty),
        &plan.shares(1),
    )?;
    senders.run(&mut poller, "cleared", None)?;
    senders.close();
    Ok(())
}

fn measure(address: &str, broker: Option<&BrokerProcess>, plan: &Plan, settings: &Settings) -> Result<Retained> {
    let watch = Watch::start(broker, &["set", "read"], "start")?;
    let (setting, acknowledgements) = match settings.read_only {
        Some(_) => (None, AcknowledgementFaults::default()),
        None => {
            let (setting, faults) = set(broker, &watch, plan, settings)?;
            (Some(setting), faults)
        }
    };
    let set_count = setting.as_ref().map_or(0, |setting| setting.set);
    let reading = read(broker, &watch, set_count, plan, settings)?;
    // At QoS 0 a message may be dropped, retained or not.
    let lost = if settings.qos > 0 { reading.faults.missing } else { 0 };
    let others = board::Faults {
        missing: 0,
        ..reading.faults
    };
    let is_broken = lost > 0 || others != board::Faults::default() || acknowledgements.is_broken();
    Ok(Retained {
        address: address.to_string(),
        broker: broker.map(|b| b.name.clone()),
        settings: plan.describe(settings),
        host: Host::this(),
        run: format!("{:08x}", plan.run),
        is_kept: settings.keep,
        setting,
        reading,
        acknowledgements,
        timeline: watch.stop(),
        cleared_seconds: None,
        broker_bytes_cleared: None,
        verdict: if is_broken { Verdict::RulesBroken } else { Verdict::Good },
    })
}

fn set(
    broker: Option<&BrokerProcess>,
    watch: &Watch,
    plan: &Plan,
    settings: &Settings,
) -> Result<(Setting, AcknowledgementFaults)> {
    let mut poller = Poller::new()?;
    let shares = plan.shares(plan.updates);
    let mut senders = Senders::connect(
        &plan.target,
        &poller,
        0,
        plan.job(settings, Payload::Stamped(settings.senders.size)),
        &shares,
    )?;
    watch.phase_with_memory("setting");
    let begin = Reading::take(broker)?;
    senders.run(&mut poller, "set", Some(watch))?;
    let span = Reading::take(broker)?.since(&begin);
    let memory = watch.memory();
    let seconds = span.time.as_secs_f64();
    let setting = Setting {
        seconds,
        set: senders.acknowledged,
        set_per_s: senders.acknowledged as f64 / seconds,
        acknowledgement_us: (settings.qos > 0).then(|| Latency::of(&senders.histogram)),
        topics: plan.topics,
        memory,
        costs: span.costs(senders.acknowledged),
    };
    let faults = senders.faults();
    senders.close();
    Ok((setting, faults))
}

fn read(
    broker: Option<&BrokerProcess>,
    watch: &Watch,
    set_count: u64,
    plan: &Plan,
    settings: &Settings,
) -> Result<Read> {
    let mut poller = Poller::new()?;
    let wish = Wish {
        filter: format!("{}/#", settings.topic_prefix),
        qos: settings.qos,
    };
    let mut receivers = Receivers::new(0, Some(wish), settings.senders.size);
    let mut board = Board::new(plan, settings.qos, settings.senders.size);
    let silence_max = match settings.qos {
        0 => SILENCE_QOS_0,
        _ => settings.senders.silence(),
    };
    watch.phase_with_memory("reading");
    let begin = Reading::take(broker)?;
    let start = Instant::now();
    let wanted = plan.topics * plan.subscribers;
    let mut progress = Progress::new(End::At(wanted));
    let (mut heard, mut heard_frames) = (start, 0);
    loop {
        board.now_ns = start.elapsed().as_nanos() as u64;
        for _ in 0..BEGUN_MAX.min(plan.subscribers - receivers.count() as u64) {
            let id = format!("sl{:08x}r{}", plan.run, receivers.count());
            let credentials = &settings.senders.credentials;
            receivers.begin(&plan.target, &poller, &id, SessionKind::Clean, credentials)?;
        }
        if receivers.frames != heard_frames {
            (heard, heard_frames) = (Instant::now(), receivers.frames);
        }
        let silence = heard.elapsed();
        if (board.got == wanted && silence >= LINGER) || silence >= silence_max {
            break;
        }
        progress.count(board.now_ns, board.received, "read");
        watch.store([set_count, board.received], board.errors());
        poller.wait(TURN_MAX)?;
        for at in 0..poller.events().len() {
            let (token, flags) = poller.event(at);
            board.now_ns = start.elapsed().as_nanos() as u64;
            receivers.ready(token, flags, &poller, &mut board)?;
        }
    }
    drop(progress);
    let span = Reading::take(broker)?.since(&begin);
    let memory = watch.memory();
    receivers.close();
    // The wait for what does not come is not part of the rate.
    let seconds = board.last_ns.max(1) as f64 / 1e9;
    Ok(Read {
        seconds,
        received: board.received,
        received_per_s: board.received as f64 / seconds,
        foreign: board.foreign,
        faults: board.faults(),
        memory,
        costs: span.costs(board.received),
    })
}
