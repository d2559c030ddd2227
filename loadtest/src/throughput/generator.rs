//! The one thread that drives all publishers and subscribers by epoll.
//!
//! Owns    the connections, what each publisher may send, and all counts.
//! Called  by `throughput::run`.
//! Holds   - closed loop: a publisher never has more than `window` messages sent and not yet received by all its
//!           subscribers; open loop: messages leave when `pace` says so and latency counts from then;
//!         - every message is checked (`sequence`), every acknowledgement too (`acknowledgement`);
//!         - no allocation, hash or clock read per message: packets are patched copies in a reused buffer, the clock is read
//!           once per read and once per write, equal latencies (of deliveries, of acknowledgements) are recorded together.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::{Plan, Settings, Topics};
use crate::acknowledgement::{AcknowledgementFaults, Answer, Unacknowledged};
use crate::broker_process::BrokerProcess;
use crate::client::{Connection, Received};
use crate::meter::Reading;
use crate::pace::Pace;
use crate::packet::{self, PublishTemplate, SessionKind, Stamp};
use crate::progress::{End, Progress};
use crate::report::{Host, Latency, Throughput, Verdict};
use crate::sequence::Streams;
use crate::timeline::{Timeline, Watch};
use crate::transport::Target;

const READ_BYTES: usize = 256 * 1024;
const BATCH_MESSAGES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 256 * 1024;
const EVENTS_MAX: usize = 1024;
/// How long an idle turn waits: the grain of the phases and the progress line.
const TURN_MAX: Duration = Duration::from_millis(20);
/// At QoS 0 messages may be dropped: after this silence a window is written off.
const SILENCE_WRITE_OFF: Duration = Duration::from_secs(1);
/// Above QoS 0 nothing may be lost: after this silence the run has failed.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// After the last message, how long a doubled one may still turn up.
const LINGER: Duration = Duration::from_millis(100);
/// Open loop: a message that leaves this late was not held up by a busy CPU alone.
const BEHIND_NS: u64 = 100_000_000;
const TIMER: u64 = u64::MAX;

struct Publisher {
    connection: Connection,
    /// Copies of the packet, one after the other, patched and sent again and again.
    batch: Vec<u8>,
    batch_messages: usize,
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
    now_ns: u64,
    sent: u64,
    received: u64,
    acknowledged: u64,
    reading: Reading,
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
    run: u32,
    epoll: OwnedFd,
    timer: OwnedFd,
    start: Instant,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    streams: Streams,
    /// Publishers that may have something to send.
    queue: Vec<u32>,
    /// What a subscriber sends back after a read.
    answers: Vec<u8>,
    pace: Option<Pace>,
    paced: u64,
    /// What is due by then is sent, however late; nothing after it.
    paced_until_ns: u64,
    /// Latencies count for messages stamped in this span.
    measured_ns: std::ops::Range<u64>,
    histogram: Histogram<u64>,
    /// From PUBLISH to its PUBACK or PUBREC.
    acknowledgement_histogram: Histogram<u64>,
    sent: u64,
    /// PUBACKs or PUBRECs that were waited for.
    acknowledged: u64,
    received: u64,
    /// Deliveries sent for, less those credited.
    outstanding: u64,
    unacknowledged: u64,
    foreign: u64,
    stalls: u64,
}

impl<'a> Generator<'a> {
    pub fn connect(target: &Target, plan: &'a Plan, settings: &'a Settings, run: u32) -> Result<Generator<'a>> {
        let prefix = &settings.topic_prefix;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;

        let mut subscribers = Vec::with_capacity(plan.subscribers);
        for i in 0..plan.subscribers {
            let context = || format!("subscriber {i} of {}", plan.subscribers);
            let session = if settings.durable {
                SessionKind::Durable
            } else {
                SessionKind::Clean
            };
            let mut connection = Connection::open(target, &subscriber_id(run, i), session, &settings.credentials)
                .with_context(context)?;
            connection
                .subscribe(&plan.filter(prefix, i), settings.qos)
                .with_context(context)?;
            connection.set_nonblocking()?;
            let token = epoll::EventData::new_u64((plan.publishers + i) as u64);
            epoll::add(&epoll, connection.socket(), token, epoll::EventFlags::IN)?;
            subscribers.push(Subscriber {
                connection,
                waits_writable: false,
            });
        }
        let mut publishers = Vec::with_capacity(plan.publishers);
        for i in 0..plan.publishers {
            let context = || format!("publisher {i} of {}", plan.publishers);
            let id = format!("sl{run:08x}p{i}");
            let mut connection =
                Connection::open(target, &id, SessionKind::Clean, &settings.credentials).with_context(context)?;
            connection.set_nonblocking()?;
            epoll::add(
                &epoll,
                connection.socket(),
                epoll::EventData::new_u64(i as u64),
                epoll::EventFlags::IN,
            )?;
            let mut template = PublishTemplate::new(&plan.topic(prefix, i), settings.qos, settings.size);
            Stamp {
                run,
                publisher: i as u32,
                sequence: 0,
                time_ns: 0,
            }
            .write(&mut template.bytes[template.stamp_at..]);
            let in_window = if settings.rate.is_some() {
                BATCH_MESSAGES_MAX
            } else {
                plan.window as usize
            };
            let batch_messages = (BATCH_BYTES_MAX / template.bytes.len())
                .min(BATCH_MESSAGES_MAX)
                .min(in_window)
                .max(1);
            publishers.push(Publisher {
                connection,
                batch: template.bytes.repeat(batch_messages),
                batch_messages,
                sent: 0,
                credited: 0,
                written_off: 0,
                unacknowledged: (settings.qos > 0).then(|| Unacknowledged::new(settings.qos, plan.unacked)),
                control: Vec::new(),
                is_queued: false,
                waits_writable: false,
            });
        }
        Ok(Generator {
            plan,
            settings,
            run,
            epoll,
            timer,
            start: Instant::now(),
            publishers,
            subscribers,
            streams: Streams::new(plan.streams()),
            queue: Vec::with_capacity(plan.publishers),
            answers: Vec::new(),
            pace: settings.rate.map(|rate| Pace::new(rate, plan.publishers as u64)),
            paced: 0,
            paced_until_ns: u64::MAX,
            measured_ns: 0..0,
            histogram: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
            acknowledgement_histogram: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
            sent: 0,
            acknowledged: 0,
            received: 0,
            outstanding: 0,
            unacknowledged: 0,
            foreign: 0,
            stalls: 0,
        })
    }

    /// DISCONNECT for everybody.
    pub fn close(self) {
        let publishers = self.publishers.into_iter().map(|publisher| publisher.connection);
        let subscribers = self.subscribers.into_iter().map(|subscriber| subscriber.connection);
        publishers.chain(subscribers).for_each(Connection::close);
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

    /// Warm-up, measured time, drain. Gives the counters at the start and the end of the measured time.
    pub fn drive(&mut self, broker: Option<&BrokerProcess>) -> Result<(Snapshot, Snapshot, Timeline)> {
        let read_bytes = READ_BYTES.max(self.settings.size * 2 + 65_536 * 2);
        let mut buffer = vec![0; read_bytes];
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let seconds = |s: f64| (s * 1e9) as u64;
        let length = Duration::from_secs_f64(self.settings.warmup + self.settings.seconds);
        let mut progress = Progress::new(End::After(length));
        let counted = ["delivered", "acknowledged"];
        let counted = &counted[..if self.settings.qos > 0 { 2 } else { 1 }];
        let watch = Watch::start(broker, counted, "warm-up")?;

        self.start = Instant::now();
        let warm_until = seconds(self.settings.warmup);
        let mut measure_until = warm_until + seconds(self.settings.seconds);
        let mut drain_until = u64::MAX;
        self.measured_ns = warm_until..measure_until;
        let mut begin = self.snapshot(broker)?;
        let mut end = begin;
        let mut phase = Phase::WarmUp;
        let mut heard_ns = 0;
        let mut heard_count = 0;
        if self.pace.is_none() {
            for i in 0..self.publishers.len() {
                self.enqueue(i);
            }
        }
        loop {
            let now = self.now_ns();
            match phase {
                Phase::WarmUp if now >= warm_until => {
                    begin = self.snapshot(broker)?;
                    // The measured span starts when it really does: a long turn may have passed its time.
                    measure_until = begin.now_ns + seconds(self.settings.seconds);
                    self.measured_ns = begin.now_ns..measure_until;
                    self.paced_until_ns = measure_until;
                    phase = Phase::Measured;
                    watch.phase("measured");
                }
                Phase::Measured if now >= measure_until => {
                    end = self.snapshot(broker)?;
                    self.measured_ns.end = end.now_ns;
                    drain_until = end.now_ns + seconds(self.settings.drain);
                    heard_ns = now;
                    phase = Phase::Drain;
                    watch.phase("drain");
                    if self.pace.is_some() {
                        // A thread woken late still owes what the schedule asked for.
                        self.pace(now)?;
                        self.send_queued()?;
                    }
                }
                _ => {}
            }
            if self.received != heard_count {
                (heard_count, heard_ns) = (self.received, now);
            }
            let silence = Duration::from_nanos(now - heard_ns);
            if phase == Phase::Drain {
                let done = self.outstanding == 0 && self.unacknowledged == 0;
                if (done && silence >= LINGER)
                    || now >= drain_until
                    || (self.settings.qos == 0 && silence >= SILENCE_WRITE_OFF * 2)
                    || silence >= SILENCE_MAX
                {
                    return Ok((begin, end, watch.stop()));
                }
            } else {
                self.pace(now)?;
                self.send_queued()?;
                if self.outstanding > 0 && silence >= SILENCE_WRITE_OFF {
                    if self.settings.qos > 0 && silence >= SILENCE_MAX {
                        let address = self.subscribers[0].connection.address;
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
            progress.count(now, self.received, phase.name());
            watch.store([self.received, self.acknowledged], self.streams.faults().total());

            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: TURN_MAX.subsec_nanos() as _,
            };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == TIMER {
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                } else if (token as usize) < self.publishers.len() {
                    self.publisher_ready(token as usize, flags, &mut buffer)?;
                } else {
                    self.subscriber_ready(token as usize - self.publishers.len(), flags, &mut buffer)?;
                }
            }
            if phase == Phase::Drain {
                // Nothing new is published; QoS 2 flows end.
                self.send_control()?;
            }
        }
    }

    fn enqueue(&mut self, publisher: usize) {
        if !self.publishers[publisher].is_queued {
            self.publishers[publisher].is_queued = true;
            self.queue.push(publisher as u32);
        }
    }

    /// Open loop: queues the publishers of the messages that have become due, and sets the timer for the next one.
    fn pace(&mut self, now: u64) -> Result<()> {
        let Some(pace) = self.pace else { return Ok(()) };
        let due = pace.total_due_count(now.min(self.paced_until_ns));
        let publishers = self.publishers.len() as u64;
        for message in self.paced..due.min(self.paced + publishers) {
            self.enqueue((message % publishers) as usize);
        }
        self.paced = due;
        let wait = Duration::from_nanos(pace.turn_due_ns(due).saturating_sub(self.now_ns()).max(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec {
            tv_sec: wait.as_secs() as _,
            tv_nsec: wait.subsec_nanos() as _,
        };
        rustix::time::timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec {
                it_interval: zero,
                it_value: at,
            },
        )?;
        Ok(())
    }

    fn send_queued(&mut self) -> Result<()> {
        let mut queue = std::mem::take(&mut self.queue);
        for publisher in queue.drain(..) {
            self.publishers[publisher as usize].is_queued = false;
            self.send(publisher as usize, true)?;
        }
        self.queue = queue;
        Ok(())
    }

    fn send_control(&mut self) -> Result<()> {
        let mut queue = std::mem::take(&mut self.queue);
        for publisher in queue.drain(..) {
            self.publishers[publisher as usize].is_queued = false;
            self.send(publisher as usize, false)?;
        }
        self.queue = queue;
        Ok(())
    }

    /// Sends what `publisher` may send, in writes of up to a batch, until its window or the socket is full.
    fn send(&mut self, publisher: usize, may_publish: bool) -> Result<()> {
        let (plan, pace, paced_until_ns) = (self.plan, self.pace, self.paced_until_ns);
        let now = self.now_ns();
        let p = &mut self.publishers[publisher];
        let stride = p.batch.len() / p.batch_messages;
        let stamp_at = stride - self.settings.size;
        while !p.connection.wants_write() {
            let room = match pace {
                _ if !may_publish => 0,
                Some(pace) => pace
                    .due_count(publisher as u64, now.min(paced_until_ns))
                    .saturating_sub(p.sent),
                None => {
                    let outstanding = (p.sent * plan.fan).saturating_sub(p.credited + p.written_off);
                    plan.window.saturating_sub(outstanding.div_ceil(plan.fan))
                }
            };
            let mut count = room.min(p.batch_messages as u64) as usize;
            if let Some(unacknowledged) = &p.unacknowledged {
                count = count.min(plan.unacked.saturating_sub(unacknowledged.in_flight()));
            }
            let mut filled = 0;
            while filled < count {
                let message = &mut p.batch[filled * stride..(filled + 1) * stride];
                let sequence = p.sent + filled as u64;
                let time_ns = pace.map_or(now, |pace| pace.due_ns(publisher as u64, sequence));
                if let Some(unacknowledged) = &mut p.unacknowledged {
                    let Some(id) = unacknowledged.take(time_ns) else { break };
                    message[stamp_at - 2..stamp_at].copy_from_slice(&id.to_be_bytes());
                }
                message[stamp_at + 8..stamp_at + 16].copy_from_slice(&sequence.to_le_bytes());
                message[stamp_at + 16..stamp_at + 24].copy_from_slice(&time_ns.to_le_bytes());
                filled += 1;
            }
            if filled == 0 && p.control.is_empty() {
                break;
            }
            p.sent += filled as u64;
            self.sent += filled as u64;
            self.outstanding += filled as u64 * plan.fan;
            if p.unacknowledged.is_some() {
                self.unacknowledged += filled as u64;
            }
            let context = || format!("publisher {publisher}");
            p.connection
                .send(&p.control, &p.batch[..filled * stride])
                .with_context(context)?;
            p.control.clear();
        }
        if p.connection.wants_write() != p.waits_writable {
            p.waits_writable = p.connection.wants_write();
            p.connection.watch(&self.epoll, publisher as u64, p.waits_writable)?;
        }
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
        let context = || format!("publisher {index}");
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
                        bail!("{address} sent publisher {index} a packet of type {}", frame.kind());
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
                        (kind, _) => bail!("{address} sent publisher {index} a packet of type {kind}"),
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
        let context = || format!("subscriber {index}");
        if flags.contains(epoll::EventFlags::OUT) {
            self.subscribers[index].connection.flush().with_context(context)?;
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            // A few reads at most: the others want their turn.
            for _ in 0..4 {
                let received = self.subscribers[index]
                    .connection
                    .receive(buffer)
                    .with_context(context)?;
                let Received::Bytes { len, full } = received else { break };
                let used = self
                    .take_frames(index, &buffer[..len])
                    .with_context(|| format!("{} to subscriber {index}", self.subscribers[index].connection.address))?;
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
        let first_stream = if is_paired {
            0
        } else {
            subscriber * self.publishers.len()
        };
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
                    if publisher >= self.publishers.len()
                        || (is_paired && publisher != subscriber)
                        || publish.qos != self.settings.qos
                        || publish.payload.len() != self.settings.size
                    {
                        bail!(
                            "message {} of publisher {publisher} came at QoS {} with {} bytes, which nobody sent that way",
                            stamp.sequence,
                            publish.qos,
                            publish.payload.len()
                        );
                    }
                    let moved = self.streams.receive(first_stream + publisher, stamp.sequence);
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
            self.outstanding -= run.moved;
            let p = &mut self.publishers[run.publisher as usize];
            p.credited += run.moved;
            p.written_off = p.written_off.saturating_sub(run.moved);
            if self.pace.is_none() {
                self.enqueue(run.publisher as usize);
            }
        }
    }

    pub fn report(
        &mut self,
        address: &str,
        broker: Option<&BrokerProcess>,
        begin: Snapshot,
        end: Snapshot,
        timeline: Timeline,
    ) -> Result<Throughput> {
        for stream in 0..self.plan.streams() {
            self.streams
                .finish(stream, self.publishers[stream % self.publishers.len()].sent);
        }
        let faults = self.streams.faults();
        let mut acknowledgements = AcknowledgementFaults::default();
        for unacknowledged in self.publishers.iter().filter_map(|p| p.unacknowledged.as_ref()) {
            acknowledgements.add(unacknowledged.faults());
        }
        let seconds = (end.now_ns - begin.now_ns) as f64 / 1e9;
        let delivered = end.received - begin.received;
        let per_message_us = |time: Duration| {
            if delivered > 0 {
                time.as_secs_f64() * 1e6 / delivered as f64
            } else {
                f64::NAN
            }
        };
        let span = end.reading.since(&begin.reading);
        let (own_cpu, broker_cpu) = (span.own_cpu, span.broker_cpu);
        let acknowledged = end.acknowledged - begin.acknowledged;
        let is_acknowledged = self.settings.qos > 0;
        // Loss is a fault above QoS 0 only [MQTT-4.3.1]; order and single delivery hold at QoS 0 as well.
        let is_broken = faults.doubled > 0
            || faults.out_of_order > 0
            || (self.settings.qos > 0 && faults.missing > 0)
            || acknowledgements.is_broken();
        Ok(Throughput {
            address: address.to_string(),
            broker: broker.map(|b| b.name.clone()),
            settings: self.settings.describe(self.plan),
            host: Host::this(),
            seconds,
            sent_in_time: end.sent - begin.sent,
            delivered_in_time: delivered,
            delivered_per_s: delivered as f64 / seconds,
            latency_us: Latency::of(&self.histogram),
            acknowledged_in_time: is_acknowledged.then_some(acknowledged),
            acknowledged_per_s: is_acknowledged.then_some(acknowledged as f64 / seconds),
            acknowledgement_us: is_acknowledged.then(|| Latency::of(&self.acknowledgement_histogram)),
            broker_written: span.written(acknowledged),
            broker_cpu_us: broker_cpu.map(|cpu| per_message_us(cpu.total)),
            broker_user_us: broker_cpu.map(|cpu| per_message_us(cpu.user)),
            broker_system_us: broker_cpu.map(|cpu| per_message_us(cpu.system)),
            broker_cpus: broker_cpu.map(|cpu| cpu.total.as_secs_f64() / seconds),
            generator_cpu_us: per_message_us(own_cpu),
            generator_cpus: own_cpu.as_secs_f64() / seconds,
            broker_memory_bytes: broker.and_then(|b| b.memory_bytes().ok()),
            sent: self.sent,
            received: self.received,
            faults,
            acknowledgements,
            foreign: self.foreign,
            behind_schedule: self.pace.map_or(0, |pace| {
                pace.total_due_count(end.now_ns.saturating_sub(BEHIND_NS))
                    .saturating_sub(self.sent)
            }),
            stalls: self.stalls,
            timeline,
            verdict: if is_broken { Verdict::RulesBroken } else { Verdict::Good },
        })
    }
}

pub fn subscriber_id(run: u32, subscriber: usize) -> String {
    format!("sl{run:08x}s{subscriber}")
}
