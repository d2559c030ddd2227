//! One thread of the storm: opens its share of the connections, some at a time, and times each.
//!
//! Owns    the handshakes under way, the connections that are kept, and the thread's counts.
//! Called  by `connect`.
//! Holds   - at most `in_flight` handshakes at a time; open loop: none before it is due, and its latency counts from then;
//!         - every connection of the share ends as connected or as failed with a cause; one that gets no answer fails after
//!           `HANDSHAKE_MAX`;
//!         - descriptors never leave the thread (`private_fds`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};
use rustix::process::setpriority_process;

use super::report::Storm;
use super::{Plan, Settings};
use crate::client::{HANDSHAKE_MAX, check_connack, check_suback};
use crate::dial::dial;
use crate::pace::Pace;
use crate::packet::{self, DISCONNECT_BYTES, SessionKind};
use crate::private_fds;
use crate::source_ports::SourcePorts;
use crate::timer::Timer;
use crate::transport::{self, Layers};

const READ_BYTES: usize = 64 * 1024;
const EVENTS_MAX: usize = 256;
const CYCLE_PAYLOAD_BYTES: usize = 64;
const TIMER: u64 = u64::MAX;
/// How often those that wait for too long are looked for, and how long an idle turn lasts.
const SWEEP: Duration = Duration::from_millis(200);

/// What the threads tell each other, and the one that waits for them.
#[derive(Debug, Default)]
pub struct Shared {
    /// Connections that are up, or have failed.
    pub settled: AtomicU64,
    /// Of those, the ones that have failed.
    pub failed: AtomicU64,
    pub is_stopped: AtomicBool,
}

/// The connections of one thread.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub thread: u32,
    pub first: u32,
    pub count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Tcp,
    Tls,
    WebSocket,
    Mqtt,
    /// Of a cycle: SUBACK is to come, then its own message.
    Subscribes,
    Publishes,
    /// Up, and open until all are.
    Kept,
}

struct Handshake {
    number: u32,
    socket: OwnedFd,
    layers: Option<Box<Layers>>,
    stage: Stage,
    intended_ns: u64,
    began_ns: u64,
    /// When this stage began.
    stage_ns: u64,
    /// The start of a frame whose end has not come.
    leftover: Vec<u8>,
}

struct Thread<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
    share: Share,
    shared: &'a Shared,
    start: Instant,
    epoll: OwnedFd,
    timer: Timer,
    ports: SourcePorts,
    pace: Option<Pace>,
    begun: u32,
    under_way: u32,
    /// By slot; a slot is used again. The token of an event is slot and number.
    handshakes: Vec<Option<Handshake>>,
    free: Vec<u32>,
    mqtt: Vec<u8>,
    wire: Vec<u8>,
    plain: Vec<u8>,
    storm: Storm,
}

pub fn run(plan: &Plan, settings: &Settings, share: Share, start: Instant, shared: &Shared) -> Result<Storm> {
    let result = (|| {
        if plan.is_private {
            private_fds::unshare()?;
        }
        // On Linux this is the calling thread's alone.
        setpriority_process(None, settings.storm_nice).context("--storm-nice")?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut thread = Thread {
            plan,
            settings,
            share,
            shared,
            start,
            timer: Timer::new(&epoll, TIMER)?,
            epoll,
            ports: SourcePorts::new(share.thread, plan.threads, plan.sources, plan.run)?,
            pace: settings.rate.map(|rate| Pace::new(rate, u64::from(plan.threads))),
            begun: 0,
            under_way: 0,
            handshakes: Vec::new(),
            free: Vec::new(),
            mqtt: Vec::new(),
            wire: Vec::new(),
            plain: Vec::new(),
            storm: Storm::new()?,
        };
        thread.drive()?;
        Ok(thread.storm)
    })();
    if result.is_err() {
        shared.is_stopped.store(true, Ordering::Release);
    }
    result
}

impl Thread<'_> {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn drive(&mut self) -> Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let mut swept_ns = 0;
        loop {
            let now = self.now_ns();
            let due = match self.pace {
                Some(pace) => pace
                    .due_count(self.share.thread.into(), now)
                    .min(self.share.count.into()) as u32,
                None => self.share.count,
            };
            while self.begun < due && self.under_way < self.settings.in_flight {
                self.begin();
            }
            if now - swept_ns >= SWEEP.as_nanos() as u64 {
                swept_ns = now;
                self.sweep(now);
            }
            let all = u64::from(self.settings.connections);
            let is_over = self.begun == self.share.count
                && self.under_way == 0
                && (!self.settings.keep || self.shared.settled.load(Ordering::Acquire) == all);
            if is_over || self.shared.is_stopped.load(Ordering::Acquire) {
                self.disconnect_kept();
                return Ok(());
            }
            let mut wait = SWEEP;
            if let Some(pace) = self.pace
                && self.begun < self.share.count
                && self.under_way < self.settings.in_flight
            {
                let next_ns = pace.due_ns(self.share.thread.into(), self.begun.into());
                wait = wait.min(Duration::from_nanos(next_ns.saturating_sub(self.now_ns())));
            } else if self.under_way == 0 {
                // Another thread's last connection ends this one's wait.
                wait = Duration::from_millis(5);
            }
            self.timer.set(wait)?;
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in &events {
                match event.data.u64() {
                    TIMER => self.timer.clear(),
                    token => self.ready(token, event.flags, &mut buffer),
                }
            }
        }
    }

    /// The next connection starts; what goes wrong with it is its failure.
    fn begin(&mut self) {
        let number = self.share.first + self.begun;
        let began_ns = self.now_ns();
        let intended_ns = match self.pace {
            Some(pace) => pace.due_ns(self.share.thread.into(), self.begun.into()),
            None => began_ns,
        };
        self.begun += 1;
        if let Err(cause) = self.open(number, intended_ns, began_ns) {
            self.failed(&cause);
        }
    }

    fn open(&mut self, number: u32, intended_ns: u64, began_ns: u64) -> Result<()> {
        let layers = self.plan.target.layers()?.map(Box::new);
        let (socket, is_connected) = dial(self.plan.target.address, &mut self.ports, number)?;
        let slot = self.free.pop().unwrap_or(self.handshakes.len() as u32);
        let flags = if is_connected {
            epoll::EventFlags::IN
        } else {
            epoll::EventFlags::OUT
        };
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(token(slot, number)),
            flags,
        )?;
        let handshake = Handshake {
            number,
            socket,
            layers,
            stage: Stage::Tcp,
            intended_ns,
            began_ns,
            stage_ns: began_ns,
            leftover: Vec::new(),
        };
        match self.handshakes.get_mut(slot as usize) {
            Some(free) => *free = Some(handshake),
            None => self.handshakes.push(Some(handshake)),
        }
        self.under_way += 1;
        if is_connected {
            self.step(slot, |thread, handshake| thread.connected(handshake));
        }
        Ok(())
    }

    fn failed(&mut self, cause: &anyhow::Error) {
        *self.storm.failures.entry(format!("{cause:#}")).or_default() += 1;
        self.shared.failed.fetch_add(1, Ordering::Release);
        self.shared.settled.fetch_add(1, Ordering::Release);
    }

    fn ready(&mut self, event: u64, flags: epoll::EventFlags, buffer: &mut [u8]) {
        let slot = event as u32;
        // The events of one wait may name a connection that an earlier one of them has ended.
        let handshake = self.handshakes.get(slot as usize).and_then(Option::as_ref);
        if handshake.is_some_and(|handshake| token(slot, handshake.number) == event) {
            self.step(slot, |thread, handshake| match handshake.stage {
                Stage::Tcp => thread.tcp_ready(slot, flags, handshake),
                _ => thread.readable(handshake, buffer),
            });
        }
    }

    /// Moves one connection on, and takes it out when it has come to its end.
    fn step(&mut self, slot: u32, act: impl FnOnce(&mut Self, &mut Handshake) -> Result<bool>) {
        let Some(mut handshake) = self.handshakes[slot as usize].take() else {
            return;
        };
        let was_kept = handshake.stage == Stage::Kept;
        let result = act(self, &mut handshake);
        match result {
            Ok(false) => {
                self.handshakes[slot as usize] = Some(handshake);
                return;
            }
            Ok(true) => {
                self.under_way -= 1;
                if self.settings.keep {
                    handshake.stage = Stage::Kept;
                    self.handshakes[slot as usize] = Some(handshake);
                } else {
                    self.free.push(slot);
                    self.disconnect(&mut handshake);
                }
                self.shared.settled.fetch_add(1, Ordering::Release);
                return;
            }
            Err(cause) if was_kept => {
                // It is settled already, and was counted as connected.
                let cause = cause.context("lost before all were up");
                *self.storm.failures.entry(format!("{cause:#}")).or_default() += 1;
            }
            Err(cause) => {
                self.under_way -= 1;
                self.failed(&cause);
            }
        }
        self.free.push(slot);
    }

    fn tcp_ready(&mut self, slot: u32, flags: epoll::EventFlags, handshake: &mut Handshake) -> Result<bool> {
        let target = self.plan.target.address;
        if let Err(error) = sockopt::socket_error(&handshake.socket)? {
            bail!("cannot connect to {target}: {}", std::io::Error::from(error));
        }
        if !flags.contains(epoll::EventFlags::OUT) {
            return Ok(false);
        }
        let data = epoll::EventData::new_u64(token(slot, handshake.number));
        epoll::modify(&self.epoll, &handshake.socket, data, epoll::EventFlags::IN)?;
        self.connected(handshake)
    }

    /// The socket is connected.
    fn connected(&mut self, handshake: &mut Handshake) -> Result<bool> {
        let now = self.now_ns();
        self.storm.tcp.saturating_record(now - handshake.stage_ns);
        handshake.stage_ns = now;
        self.wire.clear();
        match &mut handshake.layers {
            None => self.send_connect(handshake)?,
            Some(layers) => {
                layers.begin(&mut self.wire)?;
                handshake.stage = stage_of(layers);
                self.send(handshake)?;
            }
        }
        Ok(false)
    }

    fn send_connect(&mut self, handshake: &mut Handshake) -> Result<()> {
        handshake.stage = Stage::Mqtt;
        self.mqtt.clear();
        let id = format!("sc{:08x}n{}", self.plan.run, handshake.number);
        packet::connect(&mut self.mqtt, &id, SessionKind::Clean, 0, &self.settings.credentials);
        self.wire.clear();
        match &mut handshake.layers {
            None => self.wire.extend_from_slice(&self.mqtt),
            Some(layers) => layers.put(&[], &self.mqtt, &mut self.wire)?,
        }
        self.send(handshake)
    }

    /// Sends `self.wire`: the first bytes of a connection fit its send buffer, or it is broken.
    fn send(&self, handshake: &Handshake) -> Result<()> {
        let target = self.plan.target.address;
        match rustix::net::send(&handshake.socket, &self.wire, SendFlags::NOSIGNAL) {
            Ok(n) if n == self.wire.len() => Ok(()),
            Ok(_) | Err(Errno::AGAIN) => bail!("{target} takes no bytes"),
            Err(error) => bail!("{target} broke the connection: {}", std::io::Error::from(error)),
        }
    }

    /// True when CONNACK came.
    fn readable(&mut self, handshake: &mut Handshake, buffer: &mut [u8]) -> Result<bool> {
        let target = self.plan.target.address;
        let wanted = match &handshake.layers {
            _ if handshake.stage == Stage::Kept => "it was told to",
            Some(layers) if !layers.is_open() => layers.stage().wanted(),
            _ if handshake.stage == Stage::Subscribes => "SUBACK",
            _ if handshake.stage == Stage::Publishes => "its own message",
            _ => "CONNACK",
        };
        let n = match rustix::net::recv(&handshake.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, 0)) => bail!("{target} closed the connection before {wanted}"),
            Ok((_, n)) => n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => bail!(
                "{target} broke the connection before {wanted}: {}",
                std::io::Error::from(error)
            ),
        };
        let Some(layers) = &mut handshake.layers else {
            return self.take_mqtt(handshake, &buffer[..n]);
        };
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        self.wire.clear();
        let before = layers.stage();
        layers
            .take(&mut buffer[..n], &mut plain, &mut self.wire)
            .map_err(|error| anyhow!("{target} {error}"))?;
        if !self.wire.is_empty() {
            self.send(handshake)?;
        }
        if let Some(layers) = &handshake.layers
            && layers.stage() != before
        {
            let now = self.now_ns();
            let histogram = match before {
                transport::Stage::WebSocket => &mut self.storm.websocket,
                _ => &mut self.storm.tls,
            };
            histogram.saturating_record(now - handshake.stage_ns);
            handshake.stage_ns = now;
            if before == transport::Stage::Tls && layers.is_resumed() {
                self.storm.resumed += 1;
            }
            handshake.stage = stage_of(layers);
            if handshake.stage == Stage::Mqtt {
                self.send_connect(handshake)?;
            }
        }
        let is_up = self.take_mqtt(handshake, &plain);
        self.plain = plain;
        is_up
    }

    fn take_mqtt(&mut self, handshake: &mut Handshake, bytes: &[u8]) -> Result<bool> {
        // What comes after CONNACK is not asked for, and not looked at.
        if handshake.stage == Stage::Kept {
            return Ok(false);
        }
        let target = self.plan.target.address;
        handshake.leftover.extend_from_slice(bytes);
        let mut at = 0;
        let mut is_up = false;
        while !is_up
            && let Some(frame) =
                packet::next_frame(&handshake.leftover[at..]).with_context(|| format!("{target} sent"))?
        {
            at += frame.len;
            let now = self.now_ns();
            let taken = now - handshake.stage_ns;
            match handshake.stage {
                Stage::Subscribes => {
                    check_suback(target, frame, 0)?;
                    self.storm.subscribe.saturating_record(taken);
                    handshake.stage = Stage::Publishes;
                    self.mqtt.clear();
                    let topic = self.topic(handshake.number);
                    packet::publish_packet(&mut self.mqtt, &topic, 0, CYCLE_PAYLOAD_BYTES);
                }
                Stage::Publishes => {
                    if frame.kind() != packet::PUBLISH {
                        bail!(
                            "{target} sent a packet of type {} where a message was due",
                            frame.kind()
                        );
                    }
                    self.storm.message.saturating_record(taken);
                    is_up = true;
                }
                _ => {
                    check_connack(target, frame)?;
                    self.storm.mqtt.saturating_record(taken);
                    is_up = !self.settings.churn;
                    if !is_up {
                        handshake.stage = Stage::Subscribes;
                        self.mqtt.clear();
                        let topic = self.topic(handshake.number);
                        packet::subscribe(&mut self.mqtt, &topic, 0);
                    }
                }
            }
            handshake.stage_ns = now;
            if is_up {
                self.storm.total.saturating_record(now - handshake.intended_ns);
                self.storm.connected += 1;
                self.storm.last_ns = now;
            } else {
                self.wire.clear();
                match &mut handshake.layers {
                    None => self.wire.extend_from_slice(&self.mqtt),
                    Some(layers) => layers.put(&[], &self.mqtt, &mut self.wire)?,
                }
                self.send(handshake)?;
            }
        }
        handshake.leftover.drain(..at);
        Ok(is_up)
    }

    /// Of the cycle of one connection.
    fn topic(&self, number: u32) -> String {
        format!("{}/{:08x}/{number}", self.settings.topic_prefix, self.plan.run)
    }

    /// Those that have waited for too long fail.
    fn sweep(&mut self, now: u64) {
        let target = self.plan.target.address;
        for slot in 0..self.handshakes.len() as u32 {
            let Some(handshake) = &self.handshakes[slot as usize] else {
                continue;
            };
            let is_late = now.saturating_sub(handshake.began_ns) > HANDSHAKE_MAX.as_nanos() as u64;
            if is_late && handshake.stage != Stage::Kept {
                let wanted = match handshake.stage {
                    Stage::Tcp => "answer to TCP's SYN",
                    Stage::Tls => transport::Stage::Tls.wanted(),
                    Stage::WebSocket => transport::Stage::WebSocket.wanted(),
                    Stage::Mqtt | Stage::Kept => "CONNACK",
                    Stage::Subscribes => "SUBACK",
                    Stage::Publishes => "its own message",
                };
                let seconds = HANDSHAKE_MAX.as_secs();
                self.step(slot, |_, _| {
                    bail!("{target} kept a client waiting for {seconds} s: {wanted}")
                });
            }
        }
    }

    fn disconnect(&mut self, handshake: &mut Handshake) {
        self.wire.clear();
        let ended = match &mut handshake.layers {
            None => {
                self.wire.extend_from_slice(&DISCONNECT_BYTES);
                Ok(())
            }
            Some(layers) => layers.end(&DISCONNECT_BYTES, &mut self.wire),
        };
        // The broker may be gone already: nobody is told.
        if ended.is_ok() {
            let _ = rustix::net::send(&handshake.socket, &self.wire, SendFlags::NOSIGNAL);
        }
    }

    fn disconnect_kept(&mut self) {
        for mut handshake in std::mem::take(&mut self.handshakes).into_iter().flatten() {
            if handshake.stage == Stage::Kept {
                self.disconnect(&mut handshake);
            }
        }
    }
}

/// `TIMER` is no token of a connection: there are fewer than 2^32 - 1.
fn token(slot: u32, number: u32) -> u64 {
    u64::from(number) << 32 | u64::from(slot)
}

fn stage_of(layers: &Layers) -> Stage {
    match layers.stage() {
        transport::Stage::Tcp | transport::Stage::Tls => Stage::Tls,
        transport::Stage::WebSocket => Stage::WebSocket,
        transport::Stage::Open => Stage::Mqtt,
    }
}

impl Storm {
    pub fn new() -> Result<Storm> {
        let histogram = || Histogram::new_with_bounds(100, 3_600_000_000_000, 3);
        Ok(Storm {
            connected: 0,
            resumed: 0,
            last_ns: 0,
            failures: BTreeMap::new(),
            total: histogram()?,
            tcp: histogram()?,
            tls: histogram()?,
            websocket: histogram()?,
            mqtt: histogram()?,
            subscribe: histogram()?,
            message: histogram()?,
        })
    }

    pub fn add(&mut self, part: Storm) -> Result<()> {
        self.connected += part.connected;
        self.resumed += part.resumed;
        self.last_ns = self.last_ns.max(part.last_ns);
        for (cause, count) in part.failures {
            *self.failures.entry(cause).or_default() += count;
        }
        self.total.add(part.total)?;
        self.tcp.add(part.tcp)?;
        self.tls.add(part.tls)?;
        self.websocket.add(part.websocket)?;
        self.mqtt.add(part.mqtt)?;
        self.subscribe.add(part.subscribe)?;
        self.message.add(part.message)?;
        Ok(())
    }
}
