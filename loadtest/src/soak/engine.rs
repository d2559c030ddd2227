//! The thread that drives a soak: publishers on a schedule, subscribers that leave and come back, visitors for what is retained,
//! and `wills`.
//!
//! Owns    all connections, what each subscriber has seen, the counts, the lines it prints meanwhile.
//! Called  by `soak::run`.
//! Holds   - a subscriber whose Session is kept leaves in the middle of the stream, every second time without DISCONNECT, and is
//!           to miss nothing; one with a clean Session leaves when its publisher has paused and all has come, and the
//!           publisher goes on when it is subscribed again: so every message has one subscriber who must get it;
//!         - a message that is due while its pair is quiet is skipped, not sent late: nobody waits for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::epoll::EventFlags;

use super::Settings;
use super::clients::{Client, Memory, Taken};
use super::report::{Line, Soak, WillFigures};
use super::wills::Wills;
use crate::acknowledgement::{AcknowledgementFaults, Answer, Unacknowledged};
use crate::broker_process::BrokerProcess;
use crate::client::{check_connack, check_suback};
use crate::meter::{Reading, Span};
use crate::pace::Pace;
use crate::packet::{self, PublishTemplate, STAMP_BYTES, SessionKind, Stamp};
use crate::poller::Poller;
use crate::progress::{End, Progress};
use crate::report::{Host, Latency, Verdict};
use crate::sequence::Streams;
use crate::stats::slope;
use crate::timeline::{self, Watch};
use crate::timer::Timer;
use crate::transport::{Target, Transport};

const READ_BYTES: usize = 256 * 1024;
/// The phase between the connects and the drain.
const LOAD: &str = "load";
const TURN_MAX: Duration = Duration::from_millis(20);
/// How long those under way, and a subscriber on its way, may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// At QoS 0 a message that has not come by then was dropped.
const QUIET_MAX: Duration = Duration::from_secs(1);
const RETAINED_EVERY: Duration = Duration::from_millis(500);
/// How long a visitor waits for a retained message.
const VISIT_MAX: Duration = Duration::from_secs(5);
const VISITORS_MAX: usize = 256;

const PUBLISHERS: u64 = 0;
const SUBSCRIBERS: u64 = 1 << 32;
const BOARDS: u64 = 2 << 32;
const VISITORS: u64 = 3 << 32;
const HEIRS: u64 = 4 << 32;
const TESTATORS: u64 = 5 << 32;
const TIMER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitsConnack,
    AwaitsSuback,
    Here,
    /// Its publisher has paused, what is under way may still come.
    Quiets {
        since_ns: u64,
    },
    Away {
        until_ns: u64,
    },
}

struct Pair {
    target: usize,
    qos: u8,
    session: SessionKind,
    topic: String,
    publisher: Client,
    template: PublishTemplate,
    unacknowledged: Option<Unacknowledged>,
    sent: u64,
    received: u64,
    subscriber: Option<Client>,
    memory: Memory,
    state: State,
    /// When this state began.
    since_ns: u64,
    here_since_ns: u64,
    leaves: u64,
    has_session: bool,
}

/// A retained message that is set again and again.
struct Board {
    topic: String,
    publisher: Client,
    template: PublishTemplate,
    set: u64,
    acknowledged: u64,
    due_ns: u64,
}

struct Visitor {
    client: Client,
    board: usize,
    since_ns: u64,
    is_accepted: bool,
    /// At least this many times the message had been set when it asked.
    wants: u64,
}

pub struct Engine<'a> {
    targets: &'a [(Transport, Target)],
    settings: &'a Settings,
    run: u32,
    poller: Poller,
    timer: Timer,
    start: Instant,
    pairs: Vec<Pair>,
    boards: Vec<Board>,
    visitors: Vec<Option<Visitor>>,
    visits: u64,
    /// Where clients come and go.
    wills: Option<Wills<'a>>,
    /// By QoS; a stream is a pair.
    streams: [Streams; 3],
    answers: Vec<u8>,
    counts: Counts,
    latency: Histogram<u64>,
    /// Since the last line.
    recent: Histogram<u64>,
    lines: Vec<Line>,
    watch: Watch,
    /// Of the broker, under load.
    memory: Option<timeline::Memory>,
    span: Option<Span>,
    ended_ns: u64,
}

#[derive(Default)]
struct Counts {
    sent: u64,
    received: u64,
    not_sent: u64,
    redelivered: u64,
    foreign: u64,
    comings_back: u64,
    sessions_lost: u64,
    retained_set: u64,
    retained_read: u64,
    retained_stale: u64,
    retained_missing: u64,
}

impl<'a> Engine<'a> {
    pub fn connect(
        targets: &'a [(Transport, Target)],
        settings: &'a Settings,
        run: u32,
        watch: Watch,
    ) -> Result<Engine<'a>> {
        use SessionKind::{Clean, Durable};
        let poller = Poller::new()?;
        let (mut pairs, mut boards) = (Vec::new(), Vec::new());
        let credentials = &settings.credentials;
        let size = settings.size as usize;
        for (target, (transport, at)) in targets.iter().enumerate() {
            for (qos, session) in [(0, Clean), (1, Clean), (2, Clean), (1, Durable), (2, Durable)] {
                for _ in 0..settings.pairs {
                    let i = pairs.len();
                    let context = || format!("pair {i} over {}", transport.name());
                    let topic = format!("{}/{run:08x}/{i}", settings.topic_prefix);
                    let open =
                        |token, id: String, session| Client::begin(at, &poller, token, &id, session, credentials);
                    let subscriber =
                        open(SUBSCRIBERS + i as u64, subscriber_id(run, i), session).with_context(context)?;
                    let publisher =
                        open(PUBLISHERS + i as u64, format!("so{run:08x}p{i}"), Clean).with_context(context)?;
                    pairs.push(Pair {
                        target,
                        qos,
                        session,
                        template: PublishTemplate::new(&topic, qos, size),
                        topic,
                        publisher,
                        unacknowledged: (qos > 0).then(|| Unacknowledged::new(qos, settings.unacked.into())),
                        sent: 0,
                        received: 0,
                        subscriber: Some(subscriber),
                        memory: Memory::default(),
                        state: State::AwaitsConnack,
                        since_ns: 0,
                        here_since_ns: 0,
                        leaves: 0,
                        has_session: false,
                    });
                }
            }
            if settings.churn > 0.0 {
                let topic = format!("{}/{run:08x}/retained{target}", settings.topic_prefix);
                let id = format!("so{run:08x}b{target}");
                boards.push(Board {
                    template: PublishTemplate::new(&topic, 1, size),
                    topic,
                    publisher: Client::begin(at, &poller, BOARDS + target as u64, &id, Clean, credentials)?,
                    set: 0,
                    acknowledged: 0,
                    due_ns: 0,
                });
            }
        }
        let wills = (settings.churn > 0.0).then(|| Wills::begin(targets, settings, run, &poller, HEIRS));
        let streams = || Streams::new(pairs.len());
        let histogram = || Histogram::new_with_bounds(100, 3_600_000_000_000, 3);
        Ok(Engine {
            streams: [streams(), streams(), streams()],
            targets,
            settings,
            run,
            timer: Timer::new(poller.fd(), TIMER)?,
            poller,
            start: Instant::now(),
            pairs,
            boards,
            visitors: Vec::new(),
            visits: 0,
            wills: wills.transpose()?,
            answers: Vec::new(),
            counts: Counts::default(),
            latency: histogram()?,
            recent: histogram()?,
            lines: Vec::new(),
            watch,
            memory: None,
            span: None,
            ended_ns: 0,
        })
    }

    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Of each target: the clients whose Sessions are kept.
    pub fn durable_ids(&self) -> Vec<Vec<String>> {
        let mut ids = vec![Vec::new(); self.targets.len()];
        for (i, pair) in self.pairs.iter().enumerate() {
            if pair.session == SessionKind::Durable {
                ids[pair.target].push(subscriber_id(self.run, i));
            }
        }
        ids
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub fn drive(&mut self, seconds: f64, broker: Option<&BrokerProcess>) -> Result<()> {
        let mut buffer = self.buffer();
        self.watch.phase_with_memory(LOAD);
        let before = Reading::take(broker)?;
        let result = self.load(seconds, broker, before, &mut buffer);
        // What was measured until a failure counts as well.
        self.ended_ns = self.now_ns();
        self.span = Reading::take(broker).ok().map(|reading| reading.since(&before));
        self.memory = self.watch.memory();
        result?;
        self.watch.phase("drain");
        self.drain(&mut buffer)
    }

    /// The schedule, until its end.
    fn load(&mut self, seconds: f64, broker: Option<&BrokerProcess>, before: Reading, buffer: &mut [u8]) -> Result<()> {
        self.start = Instant::now();
        let end_ns = (seconds * 1e9) as u64;
        let pace = Pace::new(self.settings.rate, self.pairs.len() as u64);
        let churn_ns = (1e9 / self.settings.churn) as u64;
        let every_ns = (self.settings.every * 1e9) as u64;
        let (mut turns, mut churned, mut line_ns) = (0, 0u64, 0);
        let (mut line_received, mut line_reading) = (0, before);
        let mut returning: VecDeque<usize> = VecDeque::new();
        let mut progress = Progress::new(End::After(Duration::from_secs_f64(seconds)));
        loop {
            let now = self.now_ns();
            if now >= line_ns + every_ns || now >= end_ns {
                let reading = Reading::take(broker)?;
                let elapsed_s = (now - line_ns) as f64 / 1e9;
                let cpu = reading.since(&line_reading).broker_cpu;
                let line = Line {
                    at_s: now as f64 / 1e9,
                    received_per_s: (self.counts.received - line_received) as f64 / elapsed_s,
                    p99_us: self.recent.value_at_quantile(0.99) as f64 / 1000.0,
                    max_us: self.recent.max() as f64 / 1000.0,
                    broker_bytes: broker.and_then(|broker| broker.memory_bytes().ok()),
                    broker_cpus: cpu.map(|cpu| cpu.total.as_secs_f64() / elapsed_s),
                    faults: self.fault_count(),
                    comings_back: self.counts.comings_back,
                };
                progress.line(&line.to_string());
                self.lines.push(line);
                self.recent.reset();
                (line_ns, line_received, line_reading) = (now, self.counts.received, reading);
            }
            if now >= end_ns {
                return Ok(());
            }
            let due = pace.turns_due(now);
            for turn in turns..due {
                self.publish((turn % self.pairs.len() as u64) as usize, pace.turn_due_ns(turn))?;
            }
            turns = due;
            if self.settings.churn > 0.0 && now >= (churned + 1).saturating_mul(churn_ns) {
                self.leave((churned % self.pairs.len() as u64) as usize, &mut returning, now)?;
                self.visit(now)?;
                if let Some(wills) = &mut self.wills {
                    wills.visit(&self.poller, TESTATORS, now)?;
                }
                churned += 1;
            }
            self.step_away(&mut returning, now)?;
            self.set_boards(now)?;
            self.sweep(now)?;
            progress.count(now, self.counts.received, "delivered");
            let next = pace.turn_due_ns(turns).saturating_sub(self.now_ns());
            self.turn(Duration::from_nanos(next), buffer)?;
        }
    }

    /// Everybody comes back, and what is under way arrives.
    fn drain(&mut self, buffer: &mut [u8]) -> Result<()> {
        let begin = Instant::now();
        let mut returning: VecDeque<usize> = (0..self.pairs.len()).collect();
        loop {
            let now = self.now_ns();
            for pair in &mut self.pairs {
                if let State::Away { until_ns } = &mut pair.state {
                    *until_ns = now;
                }
            }
            self.step_away(&mut returning, now)?;
            returning = (0..self.pairs.len()).collect();
            self.sweep(now)?;
            let is_done = self.visitors.iter().all(Option::is_none)
                && self.boards.iter().all(|board| board.acknowledged == board.set)
                && self.wills.as_ref().is_none_or(Wills::is_settled)
                && self.pairs.iter().all(|pair| {
                    let is_acknowledged = pair.unacknowledged.as_ref().is_none_or(|u| u.in_flight() == 0);
                    let has_all = pair.memory.next == pair.sent || (pair.qos == 0 && begin.elapsed() > QUIET_MAX);
                    is_acknowledged && has_all && matches!(pair.state, State::Here | State::Quiets { .. })
                });
            if is_done || begin.elapsed() > PATIENCE {
                break;
            }
            self.turn(TURN_MAX, buffer)?;
        }
        for i in 0..self.boards.len() {
            // An empty one takes it away.
            let board = &mut self.boards[i];
            let mut nothing = PublishTemplate::new(&board.topic, 0, 0).bytes;
            nothing[0] |= 1;
            board.publisher.put(&self.poller, &nothing)?;
        }
        // Time for them to leave the sockets' buffers, and for what is doubled to show.
        let linger = Instant::now();
        while linger.elapsed() < Duration::from_millis(100) {
            self.turn(TURN_MAX, buffer)?;
        }
        Ok(())
    }

    fn buffer(&self) -> Vec<u8> {
        vec![0; READ_BYTES.max(self.settings.size as usize * 2 + 65_536 * 2)]
    }

    /// Until all are subscribed.
    pub fn wait_for_all(&mut self) -> Result<()> {
        let mut buffer = self.buffer();
        let begin = Instant::now();
        let is_up = |pair: &Pair| pair.state == State::Here;
        while !(self.pairs.iter().all(is_up) && self.wills.as_ref().is_none_or(Wills::are_awaited)) {
            if begin.elapsed() > PATIENCE {
                let up = self.pairs.iter().filter(|pair| is_up(pair)).count();
                bail!(
                    "{up} of {} subscribers are up after {} s, and not all who wait for Wills",
                    self.pairs.len(),
                    PATIENCE.as_secs()
                );
            }
            self.turn(TURN_MAX, &mut buffer)?;
        }
        Ok(())
    }

    /// Waits for something to be ready, and takes it.
    fn turn(&mut self, wait: Duration, buffer: &mut [u8]) -> Result<()> {
        self.watch.store([self.counts.received, 0], self.fault_count());
        self.timer.set(wait.min(TURN_MAX))?;
        self.poller.wait(TURN_MAX)?;
        for at in 0..self.poller.events().len() {
            let (token, flags) = self.poller.event(at);
            let index = token as u32 as usize;
            match token & !u64::from(u32::MAX) {
                _ if token == TIMER => self.timer.clear(),
                PUBLISHERS => self
                    .publisher_ready(index, flags, buffer)
                    .with_context(|| format!("publisher {index}"))?,
                SUBSCRIBERS => self
                    .subscriber_ready(index, flags, buffer)
                    .with_context(|| format!("subscriber {index}"))?,
                BOARDS => self
                    .board_ready(index, flags, buffer)
                    .with_context(|| format!("publisher of retained messages {index}"))?,
                HEIRS | TESTATORS => {
                    let Some(wills) = &mut self.wills else { continue };
                    match token & !u64::from(u32::MAX) {
                        HEIRS => wills.heir_ready(&self.poller, index, flags, buffer),
                        _ => wills.testator_ready(&self.poller, index, flags, buffer),
                    }?;
                }
                _ => self
                    .visitor_ready(index, flags, buffer)
                    .with_context(|| "visitor".to_string())?,
            }
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, due_ns: u64) -> Result<()> {
        let pair = &mut self.pairs[index];
        // A clean Session's messages need its subscriber.
        let is_quiet = pair.session == SessionKind::Clean && pair.state != State::Here;
        let is_held = match &pair.unacknowledged {
            Some(unacknowledged) => unacknowledged.in_flight() >= self.settings.unacked.into(),
            None => pair.publisher.is_full(),
        };
        if is_quiet || is_held {
            self.counts.not_sent += 1;
            return Ok(());
        }
        let stamp_at = pair.template.stamp_at;
        if let Some(unacknowledged) = &mut pair.unacknowledged {
            let Some(id) = unacknowledged.take(due_ns) else {
                self.counts.not_sent += 1;
                return Ok(());
            };
            pair.template.bytes[stamp_at - 2..stamp_at].copy_from_slice(&id.to_be_bytes());
        }
        let stamp = Stamp {
            run: self.run,
            publisher: index as u32,
            sequence: pair.sent,
            time_ns: due_ns,
        };
        stamp.write(&mut pair.template.bytes[stamp_at..][..STAMP_BYTES]);
        pair.sent += 1;
        self.counts.sent += 1;
        pair.publisher
            .put(&self.poller, &pair.template.bytes)
            .with_context(|| format!("publisher {index}"))
    }

    /// A subscriber leaves now, or when all it is to get has come.
    fn leave(&mut self, index: usize, returning: &mut VecDeque<usize>, now: u64) -> Result<()> {
        let away_ns = (self.settings.away * 1e9) as u64;
        let pair = &mut self.pairs[index];
        if pair.state != State::Here {
            return Ok(());
        }
        returning.push_back(index);
        pair.leaves += 1;
        if pair.session == SessionKind::Clean {
            pair.state = State::Quiets { since_ns: now };
            return Ok(());
        }
        if let Some(client) = pair.subscriber.take()
            && pair.leaves % 2 == 1
        {
            client.close();
        }
        pair.state = State::Away {
            until_ns: now + away_ns,
        };
        Ok(())
    }

    /// Those who left: on their way out, away, or back.
    fn step_away(&mut self, returning: &mut VecDeque<usize>, now: u64) -> Result<()> {
        let away_ns = (self.settings.away * 1e9) as u64;
        for _ in 0..returning.len() {
            let Some(index) = returning.pop_front() else { break };
            let pair = &mut self.pairs[index];
            match pair.state {
                State::Quiets { since_ns } => {
                    let is_idle = pair.unacknowledged.as_ref().is_none_or(|u| u.in_flight() == 0);
                    let most = if pair.qos == 0 { QUIET_MAX } else { PATIENCE };
                    if (is_idle && pair.memory.next == pair.sent) || now - since_ns > most.as_nanos() as u64 {
                        if let Some(client) = pair.subscriber.take() {
                            client.close();
                        }
                        pair.state = State::Away {
                            until_ns: now + away_ns,
                        };
                    }
                }
                State::Away { until_ns } if now >= until_ns => {
                    let (_, target) = &self.targets[pair.target];
                    let id = subscriber_id(self.run, index);
                    let token = SUBSCRIBERS + index as u64;
                    let client = Client::begin(
                        target,
                        &self.poller,
                        token,
                        &id,
                        pair.session,
                        &self.settings.credentials,
                    );
                    pair.subscriber = Some(client.with_context(|| format!("subscriber {index} comes back"))?);
                    pair.state = State::AwaitsConnack;
                    pair.since_ns = now;
                    continue;
                }
                State::Away { .. } => {}
                _ => continue,
            }
            returning.push_back(index);
        }
        Ok(())
    }

    /// Those who wait for too long.
    fn sweep(&mut self, now: u64) -> Result<()> {
        let is_late = |since_ns: u64, most: Duration| now.saturating_sub(since_ns) > most.as_nanos() as u64;
        for (i, pair) in self.pairs.iter().enumerate() {
            if matches!(pair.state, State::AwaitsConnack | State::AwaitsSuback) && is_late(pair.since_ns, PATIENCE) {
                bail!("subscriber {i} got no answer for {} s", PATIENCE.as_secs());
            }
        }
        if let Some(since_ns) = self.wills.as_ref().and_then(Wills::waits_since_ns)
            && is_late(since_ns, PATIENCE)
        {
            bail!("a client with a Will got no answer for {} s", PATIENCE.as_secs());
        }
        for visitor in &mut self.visitors {
            if visitor
                .as_ref()
                .is_some_and(|visitor| is_late(visitor.since_ns, VISIT_MAX))
            {
                self.counts.retained_missing += 1;
                *visitor = None;
            }
        }
        Ok(())
    }

    fn publisher_ready(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        let pair = &mut self.pairs[index];
        let len = pair.publisher.receive(&self.poller, flags, buffer)?;
        let address = pair.publisher.address();
        let mut at = 0;
        self.answers.clear();
        while let Some(frame) = packet::next_frame(&buffer[at..len])? {
            at += frame.len;
            let answer = match (frame.kind(), &mut pair.unacknowledged) {
                (packet::CONNACK, _) => {
                    check_connack(address, frame)?;
                    continue;
                }
                (packet::PUBACK | packet::PUBREC, Some(unacknowledged)) => unacknowledged.first(frame.packet_id()?),
                (packet::PUBCOMP, Some(unacknowledged)) => unacknowledged.complete(frame.packet_id()?),
                (kind, _) => bail!("{address} sent a packet of type {kind}"),
            };
            if answer == Answer::SendPubrel {
                packet::acknowledgement(&mut self.answers, packet::PUBREL, frame.packet_id()?);
            }
        }
        pair.publisher.keep(&buffer[at..len]);
        pair.publisher.put(&self.poller, &self.answers)
    }

    fn subscriber_ready(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        let now = self.now_ns();
        let pair = &mut self.pairs[index];
        let Some(client) = &mut pair.subscriber else {
            return Ok(());
        };
        let len = client.receive(&self.poller, flags, buffer)?;
        let address = client.address();
        let mut at = 0;
        self.answers.clear();
        while let Some(frame) = packet::next_frame(&buffer[at..len])? {
            at += frame.len;
            match frame.kind() {
                packet::CONNACK => {
                    let is_present = check_connack(address, frame)?;
                    let is_back = pair.has_session;
                    self.counts.comings_back += u64::from(is_back);
                    if is_back && pair.session == SessionKind::Durable {
                        if is_present {
                            (pair.state, pair.here_since_ns) = (State::Here, now);
                            continue;
                        }
                        self.counts.sessions_lost += 1;
                    }
                    pair.memory.begin_session();
                    packet::subscribe(&mut self.answers, &pair.topic, pair.qos);
                    pair.state = State::AwaitsSuback;
                }
                packet::SUBACK => {
                    check_suback(address, frame, pair.qos)?;
                    (pair.state, pair.here_since_ns, pair.has_session) = (State::Here, now, true);
                }
                packet::PUBLISH => {
                    let publish = packet::publish(frame)?;
                    let is_dup = frame.first_byte & 8 != 0;
                    let stamp = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.run);
                    let Some(stamp) = stamp.filter(|stamp| stamp.publisher as usize == index) else {
                        self.counts.foreign += 1;
                        match publish.qos {
                            0 => {}
                            1 => packet::acknowledgement(&mut self.answers, packet::PUBACK, publish.packet_id),
                            _ => packet::acknowledgement(&mut self.answers, packet::PUBREC, publish.packet_id),
                        }
                        continue;
                    };
                    if publish.qos != pair.qos || publish.payload.len() != self.settings.size as usize {
                        bail!(
                            "message {} came at QoS {} with {} bytes, which nobody sent that way",
                            stamp.sequence,
                            publish.qos,
                            publish.payload.len()
                        );
                    }
                    let streams = &mut self.streams[usize::from(pair.qos)];
                    let taken = pair
                        .memory
                        .take(publish, is_dup, stamp, streams, index, &mut self.answers);
                    if taken == Taken::Again {
                        self.counts.redelivered += 1;
                        continue;
                    }
                    pair.received += 1;
                    self.counts.received += 1;
                    if stamp.time_ns >= pair.here_since_ns {
                        let latency = now.saturating_sub(stamp.time_ns);
                        self.latency.saturating_record(latency);
                        self.recent.saturating_record(latency);
                    }
                }
                packet::PUBREL => pair.memory.release(frame.packet_id()?, &mut self.answers),
                kind => bail!("{address} sent a packet of type {kind}"),
            }
        }
        client.keep(&buffer[at..len]);
        client.put(&self.poller, &self.answers)
    }

    /// The retained messages are set anew, each when the last was acknowledged.
    fn set_boards(&mut self, now: u64) -> Result<()> {
        for board in &mut self.boards {
            if now < board.due_ns || board.acknowledged < board.set {
                continue;
            }
            board.due_ns = now + RETAINED_EVERY.as_nanos() as u64;
            board.set += 1;
            let stamp = Stamp {
                run: self.run,
                publisher: u32::MAX,
                sequence: board.set,
                time_ns: now,
            };
            let at = board.template.stamp_at;
            stamp.write(&mut board.template.bytes[at..]);
            board.template.bytes[0] |= 1;
            board.template.bytes[at - 2..at].copy_from_slice(&1u16.to_be_bytes());
            self.counts.retained_set += 1;
            board.publisher.put(&self.poller, &board.template.bytes)?;
        }
        Ok(())
    }

    fn board_ready(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        let board = &mut self.boards[index];
        let len = board.publisher.receive(&self.poller, flags, buffer)?;
        let mut at = 0;
        while let Some(frame) = packet::next_frame(&buffer[at..len])? {
            at += frame.len;
            match frame.kind() {
                packet::CONNACK => drop(check_connack(board.publisher.address(), frame)?),
                packet::PUBACK if board.acknowledged < board.set => board.acknowledged = board.set,
                kind => bail!("{} sent a packet of type {kind}", board.publisher.address()),
            }
        }
        board.publisher.keep(&buffer[at..len]);
        Ok(())
    }

    /// Somebody comes to read a retained message.
    fn visit(&mut self, now: u64) -> Result<()> {
        let board = (self.visits % self.boards.len() as u64) as usize;
        let free = self.visitors.iter().position(Option::is_none);
        if self.boards[board].acknowledged == 0 || (free.is_none() && self.visitors.len() == VISITORS_MAX) {
            return Ok(());
        }
        let slot = free.unwrap_or(self.visitors.len());
        let id = format!("so{:08x}r{}", self.run, self.visits);
        self.visits += 1;
        let (_, target) = &self.targets[board];
        let visitor = Visitor {
            client: Client::begin(
                target,
                &self.poller,
                VISITORS + slot as u64,
                &id,
                SessionKind::Clean,
                &self.settings.credentials,
            )
            .context("visitor")?,
            board,
            since_ns: now,
            is_accepted: false,
            wants: 0,
        };
        match self.visitors.get_mut(slot) {
            Some(free) => *free = Some(visitor),
            None => self.visitors.push(Some(visitor)),
        }
        Ok(())
    }

    fn visitor_ready(&mut self, slot: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        let Some(visitor) = &mut self.visitors[slot] else {
            return Ok(());
        };
        let board = &self.boards[visitor.board];
        let client = &mut visitor.client;
        let len = client.receive(&self.poller, flags, buffer)?;
        let mut at = 0;
        while let Some(frame) = packet::next_frame(&buffer[at..len])? {
            at += frame.len;
            match frame.kind() {
                packet::CONNACK if !visitor.is_accepted => {
                    check_connack(client.address(), frame)?;
                    visitor.is_accepted = true;
                    visitor.wants = board.acknowledged;
                    let mut bytes = Vec::new();
                    packet::subscribe(&mut bytes, &board.topic, 0);
                    client.put(&self.poller, &bytes)?;
                }
                packet::SUBACK => check_suback(client.address(), frame, 0)?,
                packet::PUBLISH => {
                    let publish = packet::publish(frame)?;
                    // One without the flag was set after the subscription was taken in. It replaced the one that was there, which
                    // a broker need not send any more: who has the newer one knows what is retained.
                    let stamp = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.run);
                    let is_fresh = stamp.is_some_and(|stamp| stamp.sequence >= visitor.wants);
                    self.counts.retained_read += 1;
                    self.counts.retained_stale += u64::from(!is_fresh);
                    if let Some(visitor) = self.visitors[slot].take() {
                        visitor.client.close();
                    }
                    return Ok(());
                }
                kind => bail!("{} sent a packet of type {kind}", client.address()),
            }
        }
        client.keep(&buffer[at..len]);
        Ok(())
    }

    fn fault_count(&self) -> u64 {
        let of = |streams: &Streams| streams.faults().total();
        self.streams.iter().map(of).sum::<u64>()
            + self.counts.sessions_lost
            + self.counts.retained_stale
            + self.counts.retained_missing
            + self.wills.as_ref().map_or(0, |wills| wills.counts.unexpected)
    }

    pub fn report(
        mut self,
        address: &str,
        broker: Option<&BrokerProcess>,
        settings: String,
        failure: Option<String>,
    ) -> Result<Soak> {
        let mut acknowledgements = AcknowledgementFaults::default();
        for (i, pair) in self.pairs.iter().enumerate() {
            self.streams[usize::from(pair.qos)].finish(i, pair.sent);
            if let Some(unacknowledged) = &pair.unacknowledged {
                acknowledgements.add(unacknowledged.faults());
            }
        }
        let faults = [0, 1, 2].map(|qos: usize| self.streams[qos].faults());
        let counts = self.counts;
        let mut wills = WillFigures::default();
        if let Some(of) = self.wills {
            wills = of.counts;
            // A run that ends early waited for none of them.
            if failure.is_none() {
                wills.missing = of.end();
            }
        }
        let seconds = self.ended_ns as f64 / 1e9;
        let span = self.span;
        let timeline = self.watch.stop();
        let begin = timeline.phases.iter().find(|phase| phase.1 == LOAD);
        let begin_s = begin.map_or(0.0, |phase| phase.0);
        let second_half = begin_s + seconds / 2.0..=begin_s + seconds;
        let samples = timeline.samples.iter();
        let second_half: Vec<(f64, f64)> = samples
            .filter(|sample| second_half.contains(&sample.seconds))
            .filter_map(|sample| Some((sample.seconds / 3600.0, sample.broker_bytes? as f64)))
            .collect();
        // What is under way when a run ends early is nobody's fault.
        let is_lossy = failure.is_none() && (faults[1].missing + faults[2].missing > 0 || acknowledgements.is_broken());
        let is_broken = failure.is_some()
            || is_lossy
            || faults.iter().any(|faults| faults.doubled + faults.out_of_order > 0)
            || counts.sessions_lost + counts.retained_stale + counts.retained_missing > 0
            || wills.missing + wills.unexpected > 0;
        for pair in self.pairs {
            pair.publisher.close();
            pair.subscriber.into_iter().for_each(Client::close);
        }
        self.boards.into_iter().for_each(|board| board.publisher.close());
        Ok(Soak {
            address: address.to_string(),
            broker: broker.map(|broker| broker.name.clone()),
            settings,
            host: Host::this(),
            seconds,
            sent: counts.sent,
            received: counts.received,
            received_per_s: counts.received as f64 / seconds.max(1e-9),
            not_sent: counts.not_sent,
            latency_us: Latency::of(&self.latency),
            faults,
            acknowledgements,
            redelivered: counts.redelivered,
            foreign: counts.foreign,
            comings_back: counts.comings_back,
            sessions_lost: counts.sessions_lost,
            retained_set: counts.retained_set,
            retained_read: counts.retained_read,
            retained_stale: counts.retained_stale,
            retained_missing: counts.retained_missing,
            wills,
            broker_cpu_us: span.and_then(|span| span.costs(counts.received).broker_cpu_us),
            generator_cpus: span.map_or(0.0, |span| span.own_cpu.as_secs_f64() / span.time.as_secs_f64()),
            memory: self.memory,
            slope_bytes_per_hour: slope(&second_half),
            timeline,
            lines: self.lines,
            failure,
            verdict: if is_broken { Verdict::RulesBroken } else { Verdict::Good },
        })
    }
}

fn subscriber_id(run: u32, number: usize) -> String {
    format!("so{run:08x}s{number}")
}
