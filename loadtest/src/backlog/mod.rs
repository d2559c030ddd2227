//! A backlog: messages queue for sessions that are away, then the sessions come back and drain it.
//!
//! Owns    the flags of the scenario, its phases and what they leave behind in the broker.
//! Called  by `main`.
//! Holds   - the phases: sessions are made, messages are published and all acknowledged, sessions come back until each has
//!           its backlog and nothing is outstanding; the last may be left to another invocation, which knows the run by its tag;
//!         - sessions are ended after the run, after a failed one too, unless they are what is to stay;
//!         - the generator's memory is a few numbers for each session and publisher, nothing for a message;
//!         - everything is bounded in time: handshakes, and silence while the broker owes something.

mod drain;
mod ledger;
mod report;
#[cfg(test)]
mod tests;

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::report::{Backlog, Queueing};
use crate::acknowledgement::AcknowledgementFaults;
use crate::broker_process::BrokerProcess;
use crate::meter::Reading;
use crate::packet::run_tag;
use crate::poller::Poller;
use crate::private_fds;
use crate::report::{Host, Latency, Verdict, grouped};
use crate::senders::{self, Job, NUMBER_DIGITS, NUMBER_MAX, Payload, Rota, Senders, Share, share_of};
use crate::timeline::Watch;
use crate::transport::Target;
use crate::visits::Visits;

/// From the last DISCONNECT to the first message: until then the broker may take a session for connected.
const SETTLE: Duration = Duration::from_millis(500);
/// Descriptors that are not connections.
const OTHER_FDS: u64 = 64;

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Durable sessions that are away while messages queue for them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sessions: u32,
    /// Messages that queue for each session
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub messages: u64,
    /// One topic for all sessions: each message is published once and queues for every session. Otherwise each session has a
    /// topic of its own
    #[arg(long)]
    pub shared: bool,
    /// Of the publishes and of the subscriptions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub qos: u8,
    #[command(flatten)]
    pub senders: senders::Settings,
    /// Sessions that may be draining at the same time; one that has its backlog stays connected [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub at_once: Option<u32>,
    /// Messages a second, over all publishers, that go on arriving until every session has its backlog
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub live: Option<u64>,
    /// Stop when the messages are queued, and print the tag to drain them by
    #[arg(long, conflicts_with_all = ["live", "at_once", "drain_only"])]
    pub stop_before_drain: bool,
    /// Drain what an earlier invocation queued, given the tag it printed; the other flags must be those it was given
    #[arg(long, value_name = "TAG", value_parser = parse_tag)]
    pub drain_only: Option<u32>,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "backlog",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
}

/// Also of `retained`.
pub fn parse_tag(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 16).map_err(|_| "a tag is eight hexadecimal digits".to_string())
}

/// [`Settings`] checked, and where they lead.
#[derive(Clone, Debug)]
struct Plan {
    target: Target,
    run: u32,
    sessions: u64,
    publishers: u64,
    messages: u64,
    is_shared: bool,
}

impl Plan {
    fn new(target: Target, settings: &Settings) -> Result<Plan> {
        settings.senders.check()?;
        let (sessions, publishers) = (u64::from(settings.sessions), u64::from(settings.senders.publishers));
        if sessions - 1 > NUMBER_MAX || sessions * publishers > 100_000_000 {
            bail!("{publishers} publishers × {sessions} sessions are more streams than can be checked");
        }
        let fds = private_fds::raise_limit();
        if !settings.stop_before_drain && sessions + publishers + OTHER_FDS > fds {
            bail!("{sessions} sessions come back, but this process may have {fds} files open: ulimit -n");
        }
        Ok(Plan {
            target,
            run: settings.drain_only.unwrap_or_else(run_tag),
            sessions,
            publishers,
            messages: settings.messages,
            is_shared: settings.shared,
        })
    }

    fn client_id(&self, session: usize) -> String {
        format!("sl{:08x}b{session}", self.run)
    }

    fn topic(&self, prefix: &str, session: usize) -> String {
        if self.is_shared {
            format!("{prefix}/{:08x}/all", self.run)
        } else {
            format!("{prefix}/{:08x}/{session:0width$}", self.run, width = NUMBER_DIGITS)
        }
    }

    fn rota(&self) -> Rota {
        Rota {
            width: if self.is_shared { 1 } else { self.sessions },
            ..Rota::ONE
        }
    }

    /// Messages on each of its topics that publisher `publisher` queues.
    fn queued_each(&self, publisher: u64) -> u64 {
        share_of(self.messages, publisher, self.publishers)
    }

    /// Of `publisher`, over all its topics.
    fn queued_by(&self, publisher: u64) -> u64 {
        self.queued_each(publisher) * self.rota().width
    }

    /// Sessions each message goes to.
    fn fan(&self) -> u64 {
        if self.is_shared { self.sessions } else { 1 }
    }

    /// Deliveries that are queued, over all sessions.
    fn deliveries(&self) -> u64 {
        self.messages * self.sessions
    }

    fn job<'a>(&self, settings: &'a Settings) -> Job<'a> {
        Job {
            payload: Payload::Stamped(settings.senders.size),
            topic: self.topic(&settings.topic_prefix, 0),
            is_numbered: !self.is_shared,
            ..settings.senders.job(self.run, settings.qos)
        }
    }

    fn shares(&self, from: impl Fn(u64) -> u64, until: impl Fn(u64) -> u64) -> Vec<Share> {
        (0..self.publishers)
            .map(|publisher| Share {
                rota: self.rota(),
                from: from(publisher),
                until: until(publisher),
            })
            .collect()
    }

    fn describe(&self, settings: &Settings) -> String {
        let topics = if self.is_shared {
            "one topic for all"
        } else {
            "a topic each"
        };
        let at_once = settings
            .at_once
            .map_or(String::new(), |k| format!(", {} back at once", grouped(k.into())));
        let live = settings
            .live
            .map_or(String::new(), |rate| format!(", {}/s live", grouped(rate)));
        format!(
            "{} messages for each of {} sessions ({topics}), QoS {}, {} bytes, {} publishers, unacked {}{at_once}{live}",
            grouped(self.messages),
            grouped(self.sessions),
            settings.qos,
            settings.senders.size,
            self.publishers,
            settings.senders.unacked,
        )
    }
}

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Backlog> {
    let plan = Plan::new(Target::new(address, &settings.senders.transport)?, settings)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let result = measure(address, broker.as_ref(), &plan, settings);
    if result.is_err() || !settings.stop_before_drain {
        let ended = visits(&plan, settings).end_sessions();
        // What made the run fail is told, not what came of it.
        if result.is_ok() {
            ended.context("the run is done, its sessions could not be ended")?;
        }
    }
    result
}

fn visits<'a>(plan: &'a Plan, settings: &'a Settings) -> Visits<'a> {
    Visits {
        target: &plan.target,
        credentials: &settings.senders.credentials,
        count: plan.sessions as usize,
        client_id: Box::new(move |session| plan.client_id(session)),
    }
}

fn measure(address: &str, broker: Option<&BrokerProcess>, plan: &Plan, settings: &Settings) -> Result<Backlog> {
    let mut acknowledgements = AcknowledgementFaults::default();
    let watch = Watch::start(broker, &["acknowledged", "delivered"], "sessions")?;
    let queueing = match settings.drain_only {
        Some(_) => None,
        None => {
            visits(plan, settings).subscribe(&|session| plan.topic(&settings.topic_prefix, session), settings.qos)?;
            thread::sleep(SETTLE);
            let (queueing, faults) = queue(broker, &watch, plan, settings)?;
            acknowledgements.add(faults);
            Some(queueing)
        }
    };
    let draining = if settings.stop_before_drain {
        None
    } else {
        let queued_count = queueing.as_ref().map_or(0, |queueing| queueing.acknowledged);
        let (draining, faults) = drain::run(broker, &watch, queued_count, plan, settings)?;
        acknowledgements.add(faults);
        Some(draining)
    };
    let is_broken = acknowledgements.is_broken() || draining.as_ref().is_some_and(|draining| draining.is_broken());
    Ok(Backlog {
        address: address.to_string(),
        broker: broker.map(|b| b.name.clone()),
        settings: plan.describe(settings),
        host: Host::this(),
        run: format!("{:08x}", plan.run),
        is_left_queued: settings.stop_before_drain,
        queueing,
        draining,
        acknowledgements,
        timeline: watch.stop(),
        verdict: if is_broken { Verdict::RulesBroken } else { Verdict::Good },
    })
}

fn queue(
    broker: Option<&BrokerProcess>,
    watch: &Watch,
    plan: &Plan,
    settings: &Settings,
) -> Result<(Queueing, AcknowledgementFaults)> {
    let mut poller = Poller::new()?;
    let shares = plan.shares(|_| 0, |publisher| plan.queued_by(publisher));
    let mut senders = Senders::connect(&plan.target, &poller, 0, plan.job(settings), &shares)?;
    watch.phase_with_memory("queueing");
    let begin = Reading::take(broker)?;
    senders.run(&mut poller, "queued", Some(watch))?;
    let span = Reading::take(broker)?.since(&begin);
    let memory = watch.memory();
    let seconds = span.time.as_secs_f64();
    let queueing = Queueing {
        seconds,
        acknowledged: senders.acknowledged,
        acknowledged_per_s: senders.acknowledged as f64 / seconds,
        acknowledgement_us: Latency::of(&senders.histogram),
        deliveries: plan.deliveries(),
        memory,
        costs: span.costs(senders.acknowledged),
    };
    let faults = senders.faults();
    senders.close();
    Ok((queueing, faults))
}
