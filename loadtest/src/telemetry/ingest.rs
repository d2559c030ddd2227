//! All devices send: one thread, until each has sent what it is to send and every answer has come.
//!
//! Called  by `telemetry::run`.
//! Holds   - open loop: turns are at least `GRAIN` apart, so that a high rate is sent in writes of what has become due; a
//!           message that is late for it is late in its latency;
//!         - a broker that owes an answer and gives no sign for the time of --silence is an error.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Plan;
use super::commands::{Commander, Echoes};
use crate::poller::Poller;
use crate::progress::{End, Progress};
use crate::senders::Senders;
use crate::timeline::Watch;
use crate::timer::Timer;

pub const TIMER: u64 = u64::MAX;
const TURN_MAX: Duration = Duration::from_millis(20);
const GRAIN: Duration = Duration::from_micros(100);
/// Open loop: a message that leaves this late was not held up by a busy CPU alone.
const BEHIND_NS: u64 = 100_000_000;
/// After the last answer, how long a command may be on its way to its device.
const COMMANDS_MAX: Duration = Duration::from_secs(2);

/// Nanoseconds since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    /// When the last message had left.
    pub sent_ns: u64,
    /// When the last answer had come.
    pub answered_ns: u64,
    /// Messages that were due long before the end and had not left by then.
    pub behind_schedule: u64,
}

pub fn drive(
    senders: &mut Senders<'_>,
    poller: &mut Poller,
    plan: &Plan,
    start: Instant,
    watch: &Watch,
    mut commands: Option<(Commander, &mut Echoes)>,
) -> Result<Sending> {
    let now_ns = || start.elapsed().as_nanos() as u64;
    let timer = Timer::new(poller.fd(), TIMER)?;
    let mut progress = Progress::new(match plan.end_ns {
        u64::MAX => End::At(plan.messages.saturating_mul(plan.devices as u64)),
        end_ns => End::After(Duration::from_nanos(end_ns)),
    });
    let mut sending = Sending::default();
    let (mut sent, mut is_stopped) = (0, false);
    let (mut heard_ns, mut heard_signs) = (0, 0);
    senders.begin_at(start);
    if plan.pace.is_none() {
        senders.send_all(poller)?;
    }
    loop {
        let now = now_ns();
        if let Some(pace) = plan.pace.filter(|_| !is_stopped) {
            let due = senders.send_due(pace, poller)?;
            timer.set(Duration::from_nanos(due.saturating_sub(now)).max(GRAIN))?;
        }
        if !is_stopped && now >= plan.end_ns {
            is_stopped = true;
            sending.behind_schedule = plan.pace.map_or(0, |pace| {
                pace.total_due_count(now.saturating_sub(BEHIND_NS).min(plan.end_ns))
                    .saturating_sub(senders.sent)
            });
            senders.stop(poller)?;
        }
        if senders.sent != sent {
            (sent, sending.sent_ns) = (senders.sent, now_ns());
        }
        if senders.is_done() {
            break;
        }
        let signs = senders.frames + senders.sent;
        if signs != heard_signs || !senders.is_owed() {
            (heard_ns, heard_signs) = (now, signs);
        } else if now - heard_ns > plan.silence_max.as_nanos() as u64 {
            return Err(senders.silent());
        }
        progress.count(now, sent, "sent");
        watch.store([sent, senders.acknowledged], 0);
        turn(
            senders,
            poller,
            &timer,
            commands.as_mut().map(|(_, echoes)| &mut **echoes),
        )?;
    }
    sending.answered_ns = now_ns();
    if let Some((commander, echoes)) = commands {
        echoes.posted(commander.stop()?);
        let end = Instant::now() + COMMANDS_MAX;
        while echoes.is_waiting() && Instant::now() < end {
            turn(senders, poller, &timer, Some(&mut *echoes))?;
        }
    }
    Ok(sending)
}

fn turn(senders: &mut Senders<'_>, poller: &mut Poller, timer: &Timer, mut echoes: Option<&mut Echoes>) -> Result<()> {
    poller.wait(TURN_MAX)?;
    for at in 0..poller.events().len() {
        match poller.event(at) {
            (TIMER, _) => timer.clear(),
            (token, flags) => match &mut echoes {
                Some(echoes) => {
                    senders.ready_with(token, flags, poller, |device, publish| echoes.take(device, publish))?
                }
                None => senders.ready(token, flags, poller)?,
            },
        }
    }
    Ok(())
}
