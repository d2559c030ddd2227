//! One thread that drives its share of the publishers and subscribers by epoll.
//!
//! Owns    their connections, what each publisher may send, and all counts of the share.
//! Called  by `throughput::run`, in as many threads as there are shares; `shared` is what lies between them.
//! Holds   - closed loop: a publisher never has more than `window` messages sent and not yet received by all its
//!           subscribers; open loop: messages leave when `pace` says so and latency counts from then;
//!         - every message is checked (`sequence`), every acknowledgement too (`acknowledgement`);
//!         - no allocation, hash or clock read per message: packets are patched copies in a reused buffer (built one by one
//!           where they differ in size or topic), the clock is read once per read and once per write, equal latencies (of
//!           deliveries, of acknowledgements) are recorded together;
//!         - open loop: how late each message was handed to its socket is recorded, to tell the generator from the broker.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use super::names::{Names, Role};
use super::shared::{Credit, Share, Shared};
use super::{Plan, Settings, Topics};
use crate::acknowledgement::{AcknowledgementFaults, Answer, Unacknowledged};
use crate::broker_process::BrokerProcess;
use crate::client::{Connection, Received};
use crate::meter::Reading;
use crate::pace::Pace;
use crate::packet::{self, PublishTemplate, SessionKind, Stamp};
use crate::progress::{End, Progress};
use crate::sequence::Streams;
use crate::sizes::Sizes;
use crate::source_ports::SourcePorts;
use crate::timeline::Watch;
use crate::timer::Timer;
use crate::transport::Target;

const READ_BYTES: usize = 256 * 1024;
pub const BATCH_MESSAGES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Reads of one subscriber in a row.
const READS_PER_TURN: usize = 4;
/// Bytes a thread writes before it reads again, as many as it reads of one subscriber. Where a broker takes them as fast as they
/// are written, it would write for ever, and what it does not read meanwhile would be called lost.
pub const SEND_BYTES_PER_TURN: usize = READS_PER_TURN * READ_BYTES;
const EVENTS_MAX: usize = 1024;
/// How long an idle turn waits: the grain of the phases and the progress line.
const TURN_MAX: Duration = Duration::from_millis(20);
/// At QoS 0 messages may be dropped: after this silence a window is written off.
const SILENCE_WRITE_OFF: Duration = Duration::from_secs(1);
/// Above QoS 0 nothing may be lost: after this silence the run has failed.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// After the last message, how long a doubled one may still turn up.
const LINGER: Duration = Duration::from_millis(100);
const TIMER: u64 = u64::MAX;
const MAILBOX: u64 = u64::MAX - 1;

/// Where a publisher's packets come from.
enum Packets {
    /// Copies of one packet, one after the other, patched and sent again and again.
    Copies { batch: Vec<u8>, count: usize },
    /// Built for each message: sizes differ, or topics do, which take turns.
    Built { topics: Rc<[String]> },
}

struct Publisher {
    connection: Connection,
    packets: Packets,
    sent: u64,
    /// Deliveries seen, gaps included: how far all streams of this publisher have come.
    credited: u64,
    /// Deliveries the window no longer waits for.
    written_off: u64,
    unacknowledged: Option<Unacknowledged>,
    /// PUBRELs to send.
    control: Vec<u8>,
    is_queued: bool,
    waits_writable: bool,
}

struct Subscriber {
    connection: Connection,
    waits_writable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measured,
    Drain,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::WarmUp => "warm-up, delivered",
            Phase::Measured => "delivered",
            Phase::Drain => "drain, delivered",
        }
    }
}

/// All counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub now_ns: u64,
    pub sent: u64,
    pub received: u64,
    pub acknowledged: u64,
    pub reading: Reading,
}

/// What a thread gives back: plain values, no descriptor.
pub struct Part {
    pub subscribers: Range<usize>,
    /// Of each of its publishers.
    pub sent: Vec<u64>,
    pub streams: Streams,
    pub histogram: Histogram<u64>,
    pub acknowledgement_histogram: Histogram<u64>,
    pub lateness_histogram: Histogram<u64>,
    pub acknowledgements: AcknowledgementFaults,
    pub received: u64,
    pub foreign: u64,
    pub stalls: u64,
    pub begin: Snapshot,
    pub end: Snapshot,
}

/// Consecutive messages of one publisher with one time stamp: they are accounted for together.
#[derive(Clone, Copy, Default)]
struct RunOfMessages {
    publisher: u32,
    time_ns: u64,
    count: u64,
    moved: u64,
}

pub struct Generator<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
    share: Share,
    shared: &'a Shared,
    run: u32,
    epoll: OwnedFd,
    timer: Timer,
    /// The turn of the schedule the timer is set for.
    timer_turn: Option<u64>,
    start: Instant,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    streams: Streams,
    /// Publishers that may have something to send.
    queue: VecDeque<u32>,
    /// Written since the sockets were looked at.
    turn_bytes: usize,
    /// What a subscriber sends back after a read.
    answers: Vec<u8>,
    /// The packets of [`Packets::Built`], of whoever sends.
    built: Vec<u8>,
    pace: Option<Pace>,
    /// Turns of this thread's publishers that have begun.
    paced: u64,
    /// What is due by then is sent, however late; nothing after it.
    paced_until_ns: u64,
    /// Latencies count for messages stamped in this span.
    measured_ns: Range<u64>,
    histogram: Histogram<u64>,
    /// From PUBLISH to its PUBACK or PUBREC.
    acknowledgement_histogram: Histogram<u64>,
    /// Open loop: from the intended time to the write.
    lateness_histogram: Histogram<u64>,
    sent: u64,
    /// PUBACKs or PUBRECs that were waited for.
    acknowledged: u64,
    received: u64,
    /// Deliveries sent for, less those credited.
    outstanding: u64,
    unacknowledged: u64,
    /// Deliveries to the subscribers of others, by their mailbox.
    credited_by_others: u64,
    /// For the publishers of other threads, by thread; posted at the end of a turn.
    credits: Vec<Vec<Credit>>,
    foreign: u64,
    stalls: u64,
}

impl<'a> Generator<'a> {
    pub fn connect(
        target: &Target,
        plan: &'a Plan,
        settings: &'a Settings,
        names: &Names,
        share: Share,
        shared: &'a Shared,
    ) -> Result<Generator<'a>> {
        let run = names.run;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = Timer::new(&epoll, TIMER)?;
        let mailbox = &shared.mailboxes[share.thread].wake;
        epoll::add(
            &epoll,
            mailbox,
            epoll::EventData::new_u64(MAILBOX),
            epoll::EventFlags::IN,
        )?;
        let mut ports = SourcePorts::new(share.thread as u32, shared.threads() as u32, plan.sources, run)?;
        let mut open = |role: Role, number: usize, session: SessionKind| {
            let id = names.client_id(role, number);
            let own = match role {
                Role::Publisher => number,
                Role::Subscriber => plan.publishers + number,
            };
            Connection::open_from(&mut ports, own as u32, target, &id, session, &settings.credentials)
        };

        let mut subscribers = Vec::with_capacity(share.subscribers.len());
        for (token, i) in (share.publishers.len()..).zip(share.subscribers.clone()) {
            let context = || format!("subscriber {i} of {}", plan.subscribers);
            let session = if settings.durable {
                SessionKind::Durable
            } else {
                SessionKind::Clean
            };
            let mut connection = open(Role::Subscriber, i, session).with_context(context)?;
            for filter in names.filters(i) {
                connection.subscribe(&filter, settings.qos).with_context(context)?;
            }
            connection.set_nonblocking()?;
            let token = epoll::EventData::new_u64(token as u64);
            epoll::add(&epoll, connection.socket(), token, epoll::EventFlags::IN)?;
            subscribers.push(Subscriber {
                connection,
                waits_writable: false,
            });
        }
        let mut publishers = Vec::with_capacity(share.publishers.len());
        let shared_topics: Rc<[String]> = names.topics(0).into();
        for (token, i) in share.publishers.clone().enumerate() {
            let context = || format!("publisher {i} of {}", plan.publishers);
            let mut connection = open(Role::Publisher, i, SessionKind::Clean).with_context(context)?;
            connection.set_nonblocking()?;
            epoll::add(
                &epoll,
                connection.socket(),
                epoll::EventData::new_u64(token as u64),
                epoll::EventFlags::IN,
            )?;
            let topics = match plan.topics {
                Topics::Shared => shared_topics.clone(),
                _ => names.topics(i).into(),
            };
            publishers.push(Publisher {
                connection,
                packets: Packets::new(plan, settings, run, i, topics),
                sent: 0,
                credited: 0,
                written_off: 0,
                unacknowledged: (settings.qos > 0).then(|| Unacknowledged::new(settings.qos, plan.unacked)),
                control: Vec::new(),
                is_queued: false,
                waits_writable: false,
            });
        }
        let histogram = || Histogram::new_with_bounds(100, 3_600_000_000_000, 3);
        Ok(Generator {
            plan,
            settings,
            run,
            epoll,
            timer,
            timer_turn: None,
            start: Instant::now(),
            publishers,
            subscribers,
            streams: Streams::new(plan.streams(&share)),
            queue: VecDeque::with_capacity(share.publishers.len()),
            turn_bytes: 0,
            answers: Vec::new(),
            built: Vec::new(),
            pace: settings.rate.map(|rate| Pace::new(rate, plan.publishers as u64)),
            paced: 0,
            paced_until_ns: u64::MAX,
            measured_ns: 0..0,
            histogram: histogram()?,
            acknowledgement_histogram: histogram()?,
            lateness_histogram: histogram()?,
            sent: 0,
            acknowledged: 0,
            received: 0,
            outstanding: 0,
            unacknowledged: 0,
            credited_by_others: 0,
            credits: vec![Vec::new(); shared.threads()],
            foreign: 0,
            stalls: 0,
            share,
            shared,
        })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn snapshot(&self, broker: Option<&BrokerProcess>) -> Result<Snapshot> {
        Ok(Snapshot {
            reading: Reading::take(broker)?,
            now_ns: self.now_ns(),
            sent: self.sent,
            received: self.received,
            acknowledged: self.acknowledged,
        })
    }

    /// Warm-up, measured time, drain. Gives the counters at the start and the end of the measured time; `None` when another
    /// thread has failed. The first thread tells `watch` of the phases, and draws the bar, for all.
    pub fn drive(&mut self, broker: Option<&BrokerProcess>, watch: &Watch) -> Result<Option<(Snapshot, Snapshot)>> {
        let read_bytes = READ_BYTES.max(self.settings.size.max() * 2 + 65_536 * 2);
        let mut buffer = vec![0; read_bytes];
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let seconds = |s: f64| (s * 1e9) as u64;
        let length = Duration::from_secs_f64(self.settings.warmup + self.settings.seconds);
        let thread = self.share.thread;
        let mut progress = (thread == 0).then(|| Progress::new(End::After(length)));
        let begin_phase = |name: &'static str| {
            if thread == 0 {
                watch.phase(name);
            }
        };
        let shared = self.shared;
        let cell = &shared.cells[thread];

        let Some(start) = shared.start_together() else {
            return Ok(None);
        };
        self.start = start;
        begin_phase("warm-up");
        let warm_until = seconds(self.settings.warmup);
        let mut measure_until = warm_until + seconds(self.settings.seconds);
        let mut drain_until = u64::MAX;
        self.measured_ns = warm_until..measure_until;
        let mut begin = self.snapshot(broker)?;
        let mut end = begin;
        let mut phase = Phase::WarmUp;
        // Deliveries to own subscribers and of own publishers.
        let (mut heard_ns, mut heard_count) = (0, 0);
        let mut is_done = false;
        if self.pace.is_none() {
            for i in 0..self.publishers.len() {
                self.enqueue(i);
            }
        }
        loop {
            if shared.is_stopped() {
                return Ok(None);
            }
            let now = self.now_ns();
            match phase {
                Phase::WarmUp if now >= warm_until => {
                    begin = self.snapshot(broker)?;
                    // The measured span starts when it really does: a long turn may have passed its time.
                    measure_until = begin.now_ns + seconds(self.settings.seconds);
                    self.measured_ns = begin.now_ns..measure_until;
                    self.paced_until_ns = measure_until;
                    phase = Phase::Measured;
                    begin_phase("measured");
                }
                Phase::Measured if now >= measure_until => {
                    end = self.snapshot(broker)?;
                    self.measured_ns.end = end.now_ns;
                    drain_until = end.now_ns + seconds(self.settings.drain);
                    cell.heard_ns.store(now, Ordering::Relaxed);
                    phase = Phase::Drain;
                    begin_phase("drain");
                    if self.pace.is_some() {
                        // A thread woken late still owes what the schedule asked for.
                        self.pace(now)?;
                        while !self.queue.is_empty() {
                            self.send_queued(true)?;
                        }
                    }
                }
                _ => {}
            }
            if self.received + self.credited_by_others != heard_count {
                (heard_count, heard_ns) = (self.received + self.credited_by_others, now);
                cell.received.store(self.received, Ordering::Relaxed);
                cell.heard_ns.store(now, Ordering::Relaxed);
            }
            let mut wait = TURN_MAX;
            if phase == Phase::Drain {
                let silence = Duration::from_nanos(now.saturating_sub(shared.heard_ns()));
                if !is_done && self.outstanding == 0 && self.unacknowledged == 0 {
                    is_done = true;
                    shared.undone.fetch_sub(1, Ordering::AcqRel);
                }
                if (shared.undone.load(Ordering::Acquire) == 0 && silence >= LINGER)
                    || now >= drain_until
                    || (self.settings.qos == 0 && silence >= SILENCE_WRITE_OFF * 2)
                    || silence >= SILENCE_MAX
                {
                    return Ok(Some((begin, end)));
                }
            } else {
                wait = wait.min(self.pace(now)?);
                self.send_queued(true)?;
                if !self.queue.is_empty() {
                    // The turn was over.
                    wait = Duration::ZERO;
                }
                let silence = Duration::from_nanos(now - heard_ns);
                if self.outstanding > 0 && silence >= SILENCE_WRITE_OFF {
                    if self.settings.qos > 0 && silence >= SILENCE_MAX {
                        let address = self.publishers[0].connection.address;
                        bail!(
                            "{address} delivered nothing for {} s; {} deliveries and {} acknowledgements are outstanding",
                            SILENCE_MAX.as_secs(),
                            self.outstanding,
                            self.unacknowledged
                        );
                    }
                    if self.settings.qos == 0 && self.pace.is_none() {
                        self.write_off();
                        heard_ns = now;
                    }
                }
            }
            if let Some(progress) = progress.as_mut().filter(|progress| progress.is_shown()) {
                progress.count(now, shared.received(), phase.name());
            }
            let counts = [self.received, self.acknowledged];
            watch.store_of(thread, counts, self.streams.faults().total());

            if self.settings.gather > 0 && phase != Phase::Drain {
                std::thread::sleep(Duration::from_micros(self.settings.gather));
            }
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: wait.subsec_nanos() as _,
            };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                match token {
                    TIMER => {
                        self.timer.clear();
                        self.timer_turn = None;
                    }
                    MAILBOX => self.take_credits(),
                    token if (token as usize) < self.publishers.len() => {
                        self.publisher_ready(token as usize, flags, &mut buffer)?;
                    }
                    token => self.subscriber_ready(token as usize - self.publishers.len(), flags, &mut buffer)?,
                }
            }
            for (mailbox, credits) in shared.mailboxes.iter().zip(&mut self.credits) {
                if !credits.is_empty() {
                    mailbox.post(credits);
                }
            }
            if phase == Phase::Drain {
                // Nothing new is published; QoS 2 flows end.
                self.send_queued(false)?;
            }
        }
    }

    /// What the subscribers of other threads got.
    fn take_credits(&mut self) {
        let own = self.share.thread;
        let mut credits = std::mem::take(&mut self.credits[own]);
        self.shared.mailboxes[own].collect(&mut credits);
        for credit in credits.drain(..) {
            self.credited_by_others += credit.deliveries;
            self.credit(
                credit.publisher as usize - self.share.publishers.start,
                credit.deliveries,
            );
        }
        self.credits[own] = credits;
    }

    fn enqueue(&mut self, publisher: usize) {
        if !self.publishers[publisher].is_queued {
            self.publishers[publisher].is_queued = true;
            self.queue.push_back(publisher as u32);
        }
    }

    /// Open loop: queues the publishers of the messages that have become due, and sets the timer for the next one. Gives how
    /// long the thread may sleep: not at all when the next is close and `--spin` asks for it.
    fn pace(&mut self, now: u64) -> Result<Duration> {
        let Some(pace) = self.pace.filter(|_| !self.publishers.is_empty()) else {
            return Ok(TURN_MAX);
        };
        // Turns go round all publishers; those of this thread are a span of each round.
        let (own, all) = (self.publishers.len() as u64, self.plan.publishers as u64);
        let first = self.share.publishers.start as u64;
        let begun = pace.turns_due(now.min(self.paced_until_ns));
        let due = begun / all * own + (begun % all).saturating_sub(first).min(own);
        for turn in self.paced..due.min(self.paced + own) {
            self.enqueue((turn % own) as usize);
        }
        self.paced = due;
        let next_ns = pace.turn_due_ns(due / own * all + first + due % own);
        let wait = Duration::from_nanos(next_ns.saturating_sub(self.now_ns()));
        let spin = Duration::from_micros(self.settings.spin);
        if wait <= spin && self.now_ns() < self.paced_until_ns {
            return Ok(Duration::ZERO);
        }
        if self.timer_turn != Some(due) {
            self.timer.set(wait.saturating_sub(spin))?;
            self.timer_turn = Some(due);
        }
        Ok(TURN_MAX)
    }

    /// Lets the publishers send one after another, until nobody has more or the turn is over; the rest is first in the next.
    fn send_queued(&mut self, may_publish: bool) -> Result<()> {
        self.turn_bytes = 0;
        while self.turn_bytes < SEND_BYTES_PER_TURN
            && let Some(publisher) = self.queue.pop_front()
        {
            self.publishers[publisher as usize].is_queued = false;
            self.send(publisher as usize, may_publish)?;
        }
        Ok(())
    }

    /// Sends what `publisher` may send, in writes of up to a batch, until its window or the socket is full, or the turn is over:
    /// then it is queued for the next.
    fn send(&mut self, publisher: usize, may_publish: bool) -> Result<()> {
        let (plan, pace, paced_until_ns) = (self.plan, self.pace, self.paced_until_ns);
        let number = self.share.publishers.start + publisher;
        let now = self.now_ns();
        let mut built = std::mem::take(&mut self.built);
        let p = &mut self.publishers[publisher];
        while !p.connection.wants_write() {
            if self.turn_bytes >= SEND_BYTES_PER_TURN {
                p.is_queued = true;
                self.queue.push_back(publisher as u32);
                break;
            }
            let room = match pace {
                _ if !may_publish => 0,
                Some(pace) => pace
                    .due_count(number as u64, now.min(paced_until_ns))
                    .saturating_sub(p.sent),
                None => {
                    let outstanding = (p.sent * plan.fan).saturating_sub(p.credited + p.written_off);
                    plan.window.saturating_sub(outstanding.div_ceil(plan.fan))
                }
            };
            let mut count = room.min(BATCH_MESSAGES_MAX as u64) as usize;
            if let Some(unacknowledged) = &p.unacknowledged {
                count = count.min(plan.unacked.saturating_sub(unacknowledged.in_flight()));
            }
            let due_ns = |sequence: u64| pace.map_or(now, |pace| pace.due_ns(number as u64, sequence));
            let (filled, bytes) = match &mut p.packets {
                Packets::Copies { batch, count: copies } => {
                    let stride = batch.len() / *copies;
                    let stamp_at = stride - self.settings.size.max();
                    let mut filled = 0;
                    while filled < count.min(*copies) {
                        let message = &mut batch[filled * stride..(filled + 1) * stride];
                        let sequence = p.sent + filled as u64;
                        let time_ns = due_ns(sequence);
                        if let Some(unacknowledged) = &mut p.unacknowledged {
                            let Some(id) = unacknowledged.take(time_ns) else { break };
                            message[stamp_at - 2..stamp_at].copy_from_slice(&id.to_be_bytes());
                        }
                        message[stamp_at + 8..stamp_at + 16].copy_from_slice(&sequence.to_le_bytes());
                        message[stamp_at + 16..stamp_at + 24].copy_from_slice(&time_ns.to_le_bytes());
                        filled += 1;
                    }
                    (filled, &batch[..filled * stride])
                }
                Packets::Built { topics } => {
                    built.clear();
                    let mut filled = 0;
                    while filled < count && built.len() < BATCH_BYTES_MAX {
                        let sequence = p.sent + filled as u64;
                        let time_ns = due_ns(sequence);
                        let id = match &mut p.unacknowledged {
                            None => 0,
                            Some(unacknowledged) => match unacknowledged.take(time_ns) {
                                None => break,
                                Some(id) => id,
                            },
                        };
                        let topic = &topics[(sequence % topics.len() as u64) as usize];
                        let size = self.settings.size.of(plan.seed, number as u32, sequence);
                        let stamp_at = packet::publish_packet(&mut built, topic, self.settings.qos, size);
                        if self.settings.qos > 0 {
                            built[stamp_at - 2..stamp_at].copy_from_slice(&id.to_be_bytes());
                        }
                        let stamp = Stamp {
                            run: self.run,
                            publisher: number as u32,
                            sequence,
                            time_ns,
                        };
                        stamp.write(&mut built[stamp_at..]);
                        filled += 1;
                    }
                    (filled, &built[..])
                }
            };
            if filled == 0 && p.control.is_empty() {
                break;
            }
            if pace.is_some() {
                for sequence in p.sent..p.sent + filled as u64 {
                    let time_ns = due_ns(sequence);
                    if self.measured_ns.contains(&time_ns) {
                        self.lateness_histogram.saturating_record(now.saturating_sub(time_ns));
                    }
                }
            }
            p.sent += filled as u64;
            self.sent += filled as u64;
            self.outstanding += filled as u64 * plan.fan;
            if p.unacknowledged.is_some() {
                self.unacknowledged += filled as u64;
            }
            let context = || format!("publisher {number}");
            p.connection.send(&p.control, bytes).with_context(context)?;
            self.turn_bytes += p.control.len() + bytes.len();
            p.control.clear();
        }
        if p.connection.wants_write() != p.waits_writable {
            p.waits_writable = p.connection.wants_write();
            p.connection.watch(&self.epoll, publisher as u64, p.waits_writable)?;
        }
        self.built = built;
        Ok(())
    }

    /// Nothing comes any more at QoS 0: the broker has dropped what is outstanding, or most of it.
    fn write_off(&mut self) {
        self.stalls += 1;
        for i in 0..self.publishers.len() {
            let p = &mut self.publishers[i];
            p.written_off = (p.sent * self.plan.fan).saturating_sub(p.credited);
            if p.written_off > 0 {
                self.enqueue(i);
            }
        }
    }

    fn publisher_ready(&mut self, index: usize, flags: epoll::EventFlags, buffer: &mut [u8]) -> Result<()> {
        let number = self.share.publishers.start + index;
        let context = || format!("publisher {number}");
        let p = &mut self.publishers[index];
        if flags.contains(epoll::EventFlags::OUT) {
            p.connection.flush().with_context(context)?;
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            let address = p.connection.address;
            if let Received::Bytes { len, .. } = p.connection.receive(buffer).with_context(context)? {
                let now = self.start.elapsed().as_nanos() as u64;
                let (mut time_ns, mut equal) = (0, 0);
                let mut at = 0;
                while let Some(frame) =
                    packet::next_frame(&buffer[at..len]).with_context(|| format!("{address} sent"))?
                {
                    at += frame.len;
                    let Some(unacknowledged) = &mut p.unacknowledged else {
                        bail!("{address} sent publisher {number} a packet of type {}", frame.kind());
                    };
                    let answer = match (frame.kind(), self.settings.qos) {
                        (packet::PUBACK, 1) | (packet::PUBREC, 2) => {
                            let id = frame.packet_id()?;
                            let answer = unacknowledged.first(id);
                            if answer != Answer::Fault {
                                let sent_ns = unacknowledged.sent_ns(id);
                                if sent_ns != time_ns {
                                    if equal > 0 && self.measured_ns.contains(&time_ns) {
                                        self.acknowledgement_histogram
                                            .saturating_record_n(now.saturating_sub(time_ns), equal);
                                    }
                                    (time_ns, equal) = (sent_ns, 0);
                                }
                                equal += 1;
                                self.acknowledged += 1;
                            }
                            answer
                        }
                        (packet::PUBCOMP, 2) => unacknowledged.complete(frame.packet_id()?),
                        (kind, _) => bail!("{address} sent publisher {number} a packet of type {kind}"),
                    };
                    match answer {
                        Answer::Ended => self.unacknowledged -= 1,
                        Answer::SendPubrel => {
                            packet::acknowledgement(&mut p.control, packet::PUBREL, frame.packet_id()?)
                        }
                        Answer::Fault => {}
                    }
                }
                p.connection.keep(&buffer[at..len]);
                if equal > 0 && self.measured_ns.contains(&time_ns) {
                    self.acknowledgement_histogram
                        .saturating_record_n(now.saturating_sub(time_ns), equal);
                }
            }
        }
        self.enqueue(index);
        Ok(())
    }

    fn subscriber_ready(&mut self, index: usize, flags: epoll::EventFlags, buffer: &mut [u8]) -> Result<()> {
        let number = self.share.subscribers.start + index;
        let context = || format!("subscriber {number}");
        if flags.contains(epoll::EventFlags::OUT) {
            self.subscribers[index].connection.flush().with_context(context)?;
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            // A few reads at most: the others want their turn.
            for _ in 0..READS_PER_TURN {
                let received = self.subscribers[index]
                    .connection
                    .receive(buffer)
                    .with_context(context)?;
                let Received::Bytes { len, full } = received else { break };
                let used = self.take_frames(index, &buffer[..len]).with_context(|| {
                    format!("{} to subscriber {number}", self.subscribers[index].connection.address)
                })?;
                self.subscribers[index].connection.keep(&buffer[used..len]);
                if !full {
                    break;
                }
            }
        }
        let s = &mut self.subscribers[index];
        if !s.connection.wants_write() && !self.answers.is_empty() {
            s.connection.send(&[], &self.answers).with_context(context)?;
            self.answers.clear();
        } else if !self.answers.is_empty() {
            // Its acknowledgements wait behind those the socket did not take.
            s.connection.append(&self.answers).with_context(context)?;
            self.answers.clear();
        }
        if s.connection.wants_write() != s.waits_writable {
            s.waits_writable = s.connection.wants_write();
            s.connection
                .watch(&self.epoll, (self.publishers.len() + index) as u64, s.waits_writable)?;
        }
        Ok(())
    }

    /// Reads the frames a subscriber got; answers go to `self.answers`. Gives the bytes used.
    fn take_frames(&mut self, subscriber: usize, bytes: &[u8]) -> Result<usize> {
        let now = self.now_ns();
        let is_paired = self.plan.topics == Topics::Pairs;
        let paired = self.share.subscribers.start + subscriber;
        let topics = self.plan.shared_topics as u64;
        let mut run = RunOfMessages::default();
        let mut at = 0;
        while let Some(frame) = packet::next_frame(&bytes[at..])? {
            at += frame.len;
            match frame.kind() {
                packet::PUBLISH => {
                    let publish = packet::publish(frame)?;
                    let Some(stamp) = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.run) else {
                        self.foreign += 1;
                        self.answer(publish.qos, publish.packet_id);
                        continue;
                    };
                    let publisher = stamp.publisher as usize;
                    let size = self.settings.size.of(self.plan.seed, stamp.publisher, stamp.sequence);
                    if publisher >= self.plan.publishers
                        || (is_paired && publisher != paired)
                        || publish.qos != self.settings.qos
                        || publish.payload.len() != size
                    {
                        bail!(
                            "message {} of publisher {publisher} came at QoS {} with {} bytes, which nobody sent that way",
                            stamp.sequence,
                            publish.qos,
                            publish.payload.len()
                        );
                    }
                    let stream = if is_paired {
                        subscriber
                    } else {
                        subscriber * self.plan.publishers + publisher
                    };
                    let moved = if topics == 1 {
                        self.streams.receive(stream, stamp.sequence)
                    } else {
                        // Order holds within a topic [MQTT-4.6.0-6]; a publisher's topics take turns.
                        let topic = (stamp.sequence % topics) as usize;
                        self.streams
                            .receive(stream * topics as usize + topic, stamp.sequence / topics)
                    };
                    if stamp.time_ns != run.time_ns || stamp.publisher != run.publisher {
                        self.account(run, now);
                        run = RunOfMessages {
                            publisher: stamp.publisher,
                            time_ns: stamp.time_ns,
                            count: 0,
                            moved: 0,
                        };
                    }
                    run.count += 1;
                    run.moved += moved;
                    self.answer(publish.qos, publish.packet_id);
                }
                packet::PUBREL => packet::acknowledgement(&mut self.answers, packet::PUBCOMP, frame.packet_id()?),
                kind => bail!("a packet of type {kind}"),
            }
        }
        self.account(run, now);
        Ok(at)
    }

    #[inline]
    fn answer(&mut self, qos: u8, packet_id: u16) {
        match qos {
            0 => {}
            1 => packet::acknowledgement(&mut self.answers, packet::PUBACK, packet_id),
            _ => packet::acknowledgement(&mut self.answers, packet::PUBREC, packet_id),
        }
    }

    #[inline]
    fn account(&mut self, run: RunOfMessages, now: u64) {
        if run.count == 0 {
            return;
        }
        self.received += run.count;
        if self.measured_ns.contains(&run.time_ns) {
            self.histogram
                .saturating_record_n(now.saturating_sub(run.time_ns), run.count);
        }
        if run.moved > 0 {
            let publisher = run.publisher as usize;
            if self.share.publishers.contains(&publisher) {
                self.credit(publisher - self.share.publishers.start, run.moved);
                return;
            }
            let credits = &mut self.credits[self.shared.owner(publisher)];
            match credits.last_mut().filter(|credit| credit.publisher == run.publisher) {
                Some(credit) => credit.deliveries += run.moved,
                None => credits.push(Credit {
                    publisher: run.publisher,
                    deliveries: run.moved,
                }),
            }
        }
    }

    /// Messages of one of this thread's publishers have come, or will not come any more.
    #[inline]
    fn credit(&mut self, publisher: usize, deliveries: u64) {
        self.outstanding -= deliveries;
        let p = &mut self.publishers[publisher];
        p.credited += deliveries;
        p.written_off = p.written_off.saturating_sub(deliveries);
        if self.pace.is_none() {
            self.enqueue(publisher);
        }
    }

    /// DISCONNECT for everybody; gives what was counted.
    pub fn finish(self, begin: Snapshot, end: Snapshot) -> Part {
        let mut acknowledgements = AcknowledgementFaults::default();
        for unacknowledged in self.publishers.iter().filter_map(|p| p.unacknowledged.as_ref()) {
            acknowledgements.add(unacknowledged.faults());
        }
        let part = Part {
            subscribers: self.share.subscribers,
            sent: self.publishers.iter().map(|p| p.sent).collect(),
            streams: self.streams,
            histogram: self.histogram,
            acknowledgement_histogram: self.acknowledgement_histogram,
            lateness_histogram: self.lateness_histogram,
            acknowledgements,
            received: self.received,
            foreign: self.foreign,
            stalls: self.stalls,
            begin,
            end,
        };
        let publishers = self.publishers.into_iter().map(|publisher| publisher.connection);
        let subscribers = self.subscribers.into_iter().map(|subscriber| subscriber.connection);
        publishers.chain(subscribers).for_each(Connection::close);
        part
    }
}

impl Packets {
    fn new(plan: &Plan, settings: &Settings, run: u32, publisher: usize, topics: Rc<[String]>) -> Packets {
        let size = match settings.size {
            Sizes::Fixed(size) if topics.len() == 1 => size,
            _ => return Packets::Built { topics },
        };
        let mut template = PublishTemplate::new(&topics[0], settings.qos, size);
        let stamp = Stamp {
            run,
            publisher: publisher as u32,
            sequence: 0,
            time_ns: 0,
        };
        stamp.write(&mut template.bytes[template.stamp_at..]);
        let in_window = if settings.rate.is_some() {
            BATCH_MESSAGES_MAX
        } else {
            plan.window as usize
        };
        let count = (BATCH_BYTES_MAX / template.bytes.len())
            .min(BATCH_MESSAGES_MAX)
            .min(in_window)
            .max(1);
        Packets::Copies {
            batch: template.bytes.repeat(count),
            count,
        }
    }
}
