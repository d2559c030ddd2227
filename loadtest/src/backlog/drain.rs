//! The sessions of a backlog come back, `--at-once` at a time, while new messages may go on arriving.
//!
//! Called  by `backlog::run`.
//! Holds   - one thread drives sessions and live publishers; the clock is read once per event;
//!         - live messages stop when every session is drained; the end is when all that was sent has come, and for `LINGER`
//!           nothing more;
//!         - a session that is stuck (its messages are lost) does not keep the next ones away for longer than `STUCK`;
//!         - silence ends the drain: what has not come by then is missing.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::ledger::Ledger;
use super::report::Draining;
use super::{Plan, Settings};
use crate::acknowledgement::AcknowledgementFaults;
use crate::broker_process::BrokerProcess;
use crate::meter::Reading;
use crate::pace::Pace;
use crate::packet::SessionKind;
use crate::poller::Poller;
use crate::progress::{End, Progress};
use crate::receivers::Receivers;
use crate::report::Latency;
use crate::senders::Senders;
use crate::timeline::Watch;

/// After the last message, how long a doubled one may still turn up.
const LINGER: Duration = Duration::from_millis(100);
const STUCK: Duration = Duration::from_secs(2);
/// Sessions that connect in one turn: those that drain want theirs.
const BEGUN_MAX: u64 = 64;
const TURN_MAX: Duration = Duration::from_millis(20);
/// The grain of the live rate.
const LIVE_TURN_MAX: Duration = Duration::from_millis(1);

pub fn run(
    broker: Option<&BrokerProcess>,
    watch: &Watch,
    queued_count: u64,
    plan: &Plan,
    settings: &Settings,
) -> Result<(Draining, AcknowledgementFaults)> {
    let mut poller = Poller::new()?;
    let shares = plan.shares(|p| plan.queued_by(p), |p| plan.queued_by(p));
    let mut live = match settings.live {
        Some(rate) => Some((
            Pace::new(rate, plan.publishers),
            Senders::connect(&plan.target, &poller, 0, plan.job(settings), &shares)?,
        )),
        None => None,
    };
    let mut receivers = Receivers::new(plan.publishers, None, settings.senders.size);
    let mut ledger = Ledger::new(plan, settings.qos, settings.senders.size)?;
    let at_once = settings.at_once.map_or(plan.sessions, u64::from);
    let silence_max = settings.senders.silence();
    let stuck = STUCK.min(silence_max / 2);
    let turn_max = if live.is_some() { LIVE_TURN_MAX } else { TURN_MAX };

    watch.phase_with_memory("draining");
    let begin = Reading::take(broker)?;
    let start = Instant::now();
    // Live messages go on until all sessions are drained: when that is, nobody knows.
    let mut progress = Progress::new(match live {
        Some(_) => End::Unknown,
        None => End::At(plan.deliveries()),
    });
    let (mut heard, mut heard_frames) = (start, 0);
    let mut given_up = 0;
    loop {
        ledger.now_ns = start.elapsed().as_nanos() as u64;
        for _ in 0..BEGUN_MAX {
            let begun = receivers.count() as u64;
            if begun == plan.sessions || begun.saturating_sub(ledger.drained + given_up) >= at_once {
                break;
            }
            ledger.comes(begun as usize);
            let id = plan.client_id(begun as usize);
            let credentials = &settings.senders.credentials;
            receivers.begin(&plan.target, &poller, &id, SessionKind::Durable, credentials)?;
        }
        let mut frames = receivers.frames;
        let (mut live_sent, mut live_acknowledged, mut is_live_done) = (0, 0, true);
        if let Some((pace, senders)) = &mut live {
            for publisher in 0..plan.publishers {
                let due = if ledger.drained < plan.sessions {
                    plan.queued_by(publisher) + pace.due_count(publisher, ledger.now_ns)
                } else {
                    0
                };
                senders.allow(publisher as usize, due);
            }
            senders.send_all(&poller)?;
            frames += senders.frames;
            (live_sent, live_acknowledged, is_live_done) = (senders.sent, senders.acknowledged, senders.is_done());
        }
        if frames != heard_frames {
            (heard, heard_frames) = (Instant::now(), frames);
        }
        let silence = heard.elapsed();
        if silence >= stuck {
            given_up = receivers.count() as u64 - ledger.drained;
        }
        let outstanding = (plan.deliveries() + live_sent * plan.fan()).saturating_sub(ledger.moved);
        let is_done = outstanding == 0 && ledger.drained == plan.sessions && is_live_done;
        if (is_done && silence >= LINGER) || silence >= silence_max {
            break;
        }
        progress.count(ledger.now_ns, ledger.received, "delivered");
        watch.store([queued_count + live_acknowledged, ledger.received], ledger.errors());
        poller.wait(turn_max)?;
        for at in 0..poller.events().len() {
            let (token, flags) = poller.event(at);
            match &mut live {
                Some((_, senders)) if token < plan.publishers => senders.ready(token, flags, &poller)?,
                _ => {
                    ledger.now_ns = start.elapsed().as_nanos() as u64;
                    receivers.ready(token, flags, &poller, &mut ledger)?;
                }
            }
        }
    }
    drop(progress);
    let span = Reading::take(broker)?.since(&begin);
    let memory = watch.memory();
    let senders = live.map(|(_, senders)| senders);
    let faults = ledger.finish(|publisher| match &senders {
        Some(senders) => senders.sent_by(publisher as usize),
        None => plan.queued_by(publisher),
    });
    let acknowledgements = senders.as_ref().map(Senders::faults).unwrap_or_default();
    let live_sent = senders.as_ref().map(|senders| senders.sent);
    receivers.close();
    if let Some(senders) = senders {
        senders.close();
    }
    // The wait for what does not come is not part of the rate.
    let seconds = ledger.last_ns.max(1) as f64 / 1e9;
    let draining = Draining {
        seconds,
        received: ledger.received,
        received_per_s: ledger.received as f64 / seconds,
        live_sent,
        sessions_drained: ledger.drained,
        sessions_lost: ledger.lost_sessions,
        first_message_us: Latency::of(&ledger.first),
        drained_us: Latency::of(&ledger.whole),
        foreign: ledger.foreign,
        faults,
        memory,
        costs: span.costs(ledger.received),
    };
    Ok((draining, acknowledgements))
}
