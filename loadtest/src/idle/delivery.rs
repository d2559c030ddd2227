//! Messages to clients that are held idle: one each to some of them, or one to all; every delivery is checked.
//!
//! Owns    who is sent what, the publisher, and the count of what came.
//! Called  by `idle`: its main thread publishes and waits, its holders check what their clients get and record it.
//! Holds   - a message is right when run, client, topic and payload are, and when it is the client's first of its stage;
//!         - open loop: latency counts from when a message was due; closed loop: from when it was sent;
//!         - a client costs one byte for it, its number in the order of the messages four more.

use std::fmt::{self, Display};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use rustix::event::epoll;
use serde::Serialize;

use crate::acknowledgement::{AcknowledgementFaults, Unacknowledged};
use crate::client::{Connection, Received};
use crate::pace::Pace;
use crate::packet::{self, Credentials, Publish, PublishTemplate, STAMP_BYTES, SessionKind, Stamp};
use crate::poller::Poller;
use crate::report::{Latency, figure, grouped};
use crate::timer::Timer;
use crate::transport::Target;

/// Of every message: its [`Stamp`], and `FILLING` behind it.
const PAYLOAD_BYTES: usize = 64;
const FILLING: u8 = b'.';
/// The addressee of a message that one PUBLISH brings to all.
const EVERYBODY: u32 = u32::MAX;
const BATCH_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;
const PUBLISHER: u64 = 0;
const TIMER: u64 = 1;

const _: () = assert!(PAYLOAD_BYTES >= STAMP_BYTES);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One message each to clients chosen at random.
    Chosen,
    /// One to every client.
    All,
}

const STAGES: [Stage; 2] = [Stage::Chosen, Stage::All];

impl Stage {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What each client subscribes to, and the topic that reaches it.
#[derive(Clone, Debug)]
pub struct Topics {
    filter: String,
}

impl Topics {
    pub fn new(prefix: &str, filter: &str) -> Topics {
        Topics {
            filter: format!("{prefix}/{filter}"),
        }
    }

    pub fn filter(&self, number: u32) -> String {
        self.filter.replace("{}", &number.to_string())
    }

    /// A topic that the client's filter matches, and nobody else's unless all share it.
    pub fn topic(&self, number: u32) -> String {
        let filter = self.filter(number);
        if !filter.contains(['+', '#']) {
            return filter;
        }
        let levels = filter.split('/').map(|level| match level {
            "+" | "#" => "any",
            name => name,
        });
        levels.collect::<Vec<_>>().join("/")
    }

    /// All clients have one filter.
    pub fn is_shared(&self) -> bool {
        !self.filter.contains("{}")
    }
}

/// What a client was sent wrongly, and what it was not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub missing: u64,
    pub doubled: u64,
    /// To another client, or on another topic.
    pub misdelivered: u64,
    pub damaged: u64,
}

impl Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Faults {
            missing,
            doubled,
            misdelivered,
            damaged,
        } = self;
        write!(
            f,
            "missing {missing}, doubled {doubled}, misdelivered {misdelivered}, damaged {damaged}"
        )
    }
}

/// What a client got is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right {
        stage: Stage,
        sent_ns: u64,
    },
    /// Of another run, or of somebody else.
    Foreign,
    Doubled,
    Misdelivered,
    Damaged,
}

/// `got` are the stages of which the client has its message.
pub fn check(publish: Publish<'_>, run: u32, number: u32, topics: &Topics, now_ns: u64, got: &mut u8) -> Verdict {
    let Some(stamp) = Stamp::read(publish.payload).filter(|stamp| stamp.run == run) else {
        return Verdict::Foreign;
    };
    let is_whole =
        publish.payload.len() == PAYLOAD_BYTES && publish.payload[STAMP_BYTES..].iter().all(|byte| *byte == FILLING);
    let stage = STAGES.get(stamp.sequence as usize).copied();
    let (Some(stage), true) = (stage, is_whole && stamp.time_ns <= now_ns) else {
        return Verdict::Damaged;
    };
    let addressee = if topics.is_shared() { EVERYBODY } else { number };
    if stamp.publisher != addressee || publish.topic != topics.topic(number).as_bytes() {
        return Verdict::Misdelivered;
    }
    if *got & stage.bit() != 0 {
        return Verdict::Doubled;
    }
    *got |= stage.bit();
    Verdict::Right {
        stage,
        sent_ns: stamp.time_ns,
    }
}

/// One delivery that is right.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub stage: Stage,
    pub sent_ns: u64,
    pub at_ns: u64,
}

/// Where the holders record what came.
pub struct Board {
    tallies: [Mutex<Tally>; STAGES.len()],
    right: [AtomicU64; STAGES.len()],
    doubled: AtomicU64,
    misdelivered: AtomicU64,
    damaged: AtomicU64,
    pub foreign: AtomicU64,
}

struct Tally {
    latency_ns: Histogram<u64>,
    last_ns: u64,
}

impl Board {
    pub fn new() -> Result<Board> {
        let tally = || -> Result<Mutex<Tally>> {
            Ok(Mutex::new(Tally {
                latency_ns: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
                last_ns: 0,
            }))
        };
        Ok(Board {
            tallies: [tally()?, tally()?],
            right: Default::default(),
            doubled: AtomicU64::new(0),
            misdelivered: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
        })
    }

    pub fn count(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Right { .. } => return,
            Verdict::Foreign => &self.foreign,
            Verdict::Doubled => &self.doubled,
            Verdict::Misdelivered => &self.misdelivered,
            Verdict::Damaged => &self.damaged,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Empties `arrivals`: those of one batch of events, so that the lock is taken once for all of them.
    pub fn record(&self, arrivals: &mut Vec<Arrival>) {
        if arrivals.is_empty() {
            return;
        }
        for stage in STAGES {
            let mut of_stage = arrivals.iter().filter(|arrival| arrival.stage == stage).peekable();
            if of_stage.peek().is_none() {
                continue;
            }
            let mut tally = self.tally(stage);
            let mut count = 0;
            for arrival in of_stage {
                tally
                    .latency_ns
                    .saturating_record(arrival.at_ns.saturating_sub(arrival.sent_ns));
                tally.last_ns = tally.last_ns.max(arrival.at_ns);
                count += 1;
            }
            self.right[stage as usize].fetch_add(count, Ordering::Release);
        }
        arrivals.clear();
    }

    fn tally(&self, stage: Stage) -> std::sync::MutexGuard<'_, Tally> {
        self.tallies[stage as usize]
            .lock()
            .expect("no thread panics while it holds this lock")
    }

    fn right(&self, stage: Stage) -> u64 {
        self.right[stage as usize].load(Ordering::Acquire)
    }

    /// In all stages.
    pub fn delivered(&self) -> u64 {
        STAGES.into_iter().map(|stage| self.right(stage)).sum()
    }

    /// Of `wanted` deliveries in all.
    pub fn faults(&self, wanted: u64) -> Faults {
        Faults {
            missing: wanted.saturating_sub(self.delivered()),
            doubled: self.doubled.load(Ordering::Acquire),
            misdelivered: self.misdelivered.load(Ordering::Acquire),
            damaged: self.damaged.load(Ordering::Acquire),
        }
    }
}

/// The clients in an order chosen at random.
pub fn shuffled(count: u32, seed: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut state = u64::from(seed);
    for last in (1..order.len()).rev() {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        order.swap(last, (mixed % (last as u64 + 1)) as usize);
    }
    order
}

/// What one stage measured.
#[derive(Clone, Debug, Serialize)]
pub struct Delivery {
    pub stage: &'static str,
    pub clients: u64,
    /// PUBLISH packets sent for it.
    pub published: u64,
    pub delivered: u64,
    /// From the first PUBLISH to the last delivery.
    pub seconds: f64,
    pub delivered_per_s: f64,
    pub latency_us: Latency,
    /// Per delivery.
    pub broker_cpu_us: Option<f64>,
}

impl Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} clients in {:.2} s, {}/s, {} PUBLISH",
            grouped(self.delivered),
            grouped(self.clients),
            self.seconds,
            grouped(self.delivered_per_s.round() as u64),
            grouped(self.published)
        )?;
        match self.broker_cpu_us {
            Some(us) => writeln!(f, ", {} µs broker CPU per delivery", figure(us))?,
            None => writeln!(f)?,
        }
        writeln!(f, "  latency µs {}", self.latency_us)
    }
}

/// What the messages have in common.
#[derive(Clone, Copy)]
pub struct Sending<'a> {
    pub topics: &'a Topics,
    pub run: u32,
    /// Of all times.
    pub start: Instant,
    pub unacked: usize,
    /// Without an acknowledgement, or a delivery, while one is owed.
    pub silence_max: Duration,
    pub board: &'a Board,
    /// Called once a turn; an error ends the run.
    pub turn: &'a dyn Fn() -> Result<()>,
}

/// One connection that publishes at QoS 1: the broker says that it has taken a message, whatever QoS its subscribers have.
pub struct Publisher<'a> {
    sending: Sending<'a>,
    connection: Connection,
    poller: Poller,
    timer: Timer,
    unacknowledged: Unacknowledged,
    buffer: Vec<u8>,
    batch: Vec<u8>,
    waits_writable: bool,
    heard: Instant,
}

impl<'a> Publisher<'a> {
    pub fn connect(target: &Target, credentials: &Credentials, sending: Sending<'a>) -> Result<Publisher<'a>> {
        let id = format!("si{:08x}p", sending.run);
        let mut connection = Connection::open(target, &id, SessionKind::Clean, credentials).context("the publisher")?;
        connection.set_nonblocking()?;
        let poller = Poller::new()?;
        poller.add(connection.socket(), PUBLISHER)?;
        let timer = Timer::new(poller.fd(), TIMER)?;
        Ok(Publisher {
            unacknowledged: Unacknowledged::new(1, sending.unacked),
            sending,
            connection,
            poller,
            timer,
            buffer: vec![0; READ_BYTES],
            batch: Vec::new(),
            waits_writable: false,
            heard: Instant::now(),
        })
    }

    /// One message to each of `clients`, on its own topic: at the pace given, or as fast as they are acknowledged.
    pub fn deliver(&mut self, stage: Stage, clients: &[u32], pace: Option<Pace>) -> Result<Outcome> {
        self.publish(stage, clients, clients.len() as u64, pace)
    }

    /// One message to all `count` clients, which share a filter.
    pub fn deliver_to_all(&mut self, stage: Stage, count: u64) -> Result<Outcome> {
        self.publish(stage, &[EVERYBODY], count, None)
    }

    fn now_ns(&self) -> u64 {
        self.sending.start.elapsed().as_nanos() as u64
    }

    fn publish(&mut self, stage: Stage, addressees: &[u32], wanted: u64, pace: Option<Pace>) -> Result<Outcome> {
        let begin_ns = self.now_ns();
        self.send_all(stage, addressees, pace, begin_ns)?;
        self.await_deliveries(stage, wanted)?;
        let board = self.sending.board;
        let delivered = board.right(stage);
        let tally = board.tally(stage);
        let seconds = tally.last_ns.saturating_sub(begin_ns).max(1) as f64 / 1e9;
        Ok(Outcome {
            published: addressees.len() as u64,
            clients: wanted,
            delivered,
            seconds,
            latency_us: Latency::of(&tally.latency_ns),
        })
    }

    fn send_all(&mut self, stage: Stage, addressees: &[u32], pace: Option<Pace>, begin_ns: u64) -> Result<()> {
        let mut next = 0;
        self.heard = Instant::now();
        loop {
            (self.sending.turn)()?;
            let now_ns = self.now_ns();
            let due = match pace {
                Some(pace) => (pace.total_due_count(now_ns - begin_ns) as usize).min(addressees.len()),
                None => addressees.len(),
            };
            self.batch.clear();
            while next < due
                && !self.connection.wants_write()
                && self.batch.len() < BATCH_BYTES_MAX
                && self.unacknowledged.in_flight() < self.sending.unacked
            {
                let time_ns = pace.map_or(now_ns, |pace| begin_ns + pace.due_ns(0, next as u64));
                let Some(id) = self.unacknowledged.take(time_ns) else {
                    break;
                };
                self.put(stage, addressees[next], id, time_ns);
                next += 1;
            }
            if !self.batch.is_empty() {
                self.connection.send(&[], &self.batch).context("the publisher")?;
            }
            let is_owed = self.unacknowledged.in_flight() > 0 || self.connection.wants_write();
            if next == addressees.len() && !is_owed {
                return Ok(());
            }
            if !is_owed {
                self.heard = Instant::now();
            } else if self.heard.elapsed() > self.sending.silence_max {
                bail!(
                    "{} acknowledged nothing for {} s; {next} of {} messages sent",
                    self.connection.address,
                    self.sending.silence_max.as_secs(),
                    addressees.len()
                );
            }
            if let Some(pace) = pace.filter(|_| next == due && due < addressees.len()) {
                let due_ns = begin_ns + pace.due_ns(0, next as u64);
                self.timer
                    .set(Duration::from_nanos(due_ns.saturating_sub(self.now_ns())))?;
            }
            self.wait()?;
        }
    }

    /// Puts one PUBLISH into the batch.
    fn put(&mut self, stage: Stage, addressee: u32, id: u16, time_ns: u64) {
        let number = if addressee == EVERYBODY { 0 } else { addressee };
        let mut message = PublishTemplate::new(&self.sending.topics.topic(number), 1, PAYLOAD_BYTES);
        let at = message.stamp_at;
        message.bytes[at - 2..at].copy_from_slice(&id.to_be_bytes());
        message.bytes[at..].fill(FILLING);
        Stamp {
            run: self.sending.run,
            publisher: addressee,
            sequence: stage as u64,
            time_ns,
        }
        .write(&mut message.bytes[at..]);
        self.batch.extend_from_slice(&message.bytes);
    }

    fn wait(&mut self) -> Result<()> {
        if self.connection.wants_write() != self.waits_writable {
            self.waits_writable = self.connection.wants_write();
            self.connection
                .watch(self.poller.fd(), PUBLISHER, self.waits_writable)?;
        }
        self.poller.wait(Duration::from_millis(20))?;
        for at in 0..self.poller.events().len() {
            let (token, flags) = self.poller.event(at);
            match token {
                TIMER => self.timer.clear(),
                _ => self.ready(flags).context("the publisher")?,
            }
        }
        Ok(())
    }

    fn ready(&mut self, flags: epoll::EventFlags) -> Result<()> {
        if flags.contains(epoll::EventFlags::OUT) {
            self.connection.flush()?;
        }
        let address = self.connection.address;
        if let Received::Bytes { len, .. } = self.connection.receive(&mut self.buffer)? {
            let mut at = 0;
            while let Some(frame) =
                packet::next_frame(&self.buffer[at..len]).with_context(|| format!("{address} sent"))?
            {
                at += frame.len;
                match frame.kind() {
                    packet::PUBACK => self.unacknowledged.first(frame.packet_id()?),
                    kind => return Err(anyhow!("{address} sent a packet of type {kind}")),
                };
                self.heard = Instant::now();
            }
            self.connection.keep(&self.buffer[at..len]);
        }
        Ok(())
    }

    /// Until all have come, or none comes any more.
    fn await_deliveries(&mut self, stage: Stage, wanted: u64) -> Result<()> {
        let (mut right, mut moved) = (0, Instant::now());
        while right < wanted && moved.elapsed() < self.sending.silence_max {
            std::thread::sleep(Duration::from_millis(2));
            (self.sending.turn)()?;
            let now = self.sending.board.right(stage);
            if now != right {
                (right, moved) = (now, Instant::now());
            }
        }
        Ok(())
    }

    pub fn close(self) -> AcknowledgementFaults {
        let faults = self.unacknowledged.faults();
        self.connection.close();
        faults
    }
}

/// What became of one stage.
pub struct Outcome {
    pub published: u64,
    pub clients: u64,
    pub delivered: u64,
    pub seconds: f64,
    pub latency_us: Latency,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_topic_reaches_its_own_client_whatever_wildcards_its_filter_has() {
        for (filter, topic) in [
            ("{}/command", "idle/7/command"),
            ("+/{}/#", "idle/any/7/any"),
            ("{}", "idle/7"),
            ("dev{}/+/x", "idle/dev7/any/x"),
        ] {
            let topics = Topics::new("idle", filter);
            assert_eq!(topics.topic(7), topic);
            assert!(!topics.is_shared());
        }
        assert!(Topics::new("idle", "all/#").is_shared());
    }

    #[test]
    fn an_order_is_of_all_clients_and_differs_with_the_seed() {
        let order = shuffled(1000, 1);
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), 1000);
        assert_ne!(order, shuffled(1000, 2));
        assert!(order.iter().enumerate().filter(|(i, n)| *i as u32 == **n).count() < 20);
        assert!(shuffled(0, 1).is_empty());
    }

    fn message(publisher: u32, sequence: u64) -> Vec<u8> {
        let mut payload = vec![FILLING; PAYLOAD_BYTES];
        let stamp = Stamp {
            run: 5,
            publisher,
            sequence,
            time_ns: 100,
        };
        stamp.write(&mut payload);
        payload
    }

    #[test]
    fn only_the_first_whole_message_to_the_right_client_on_the_right_topic_is_right() {
        let topics = Topics::new("idle", "{}");
        let mut got = 0;
        let mut verdict = |topic: &str, payload: &[u8], now_ns| {
            let publish = Publish {
                qos: 0,
                retain: false,
                topic: topic.as_bytes(),
                packet_id: 0,
                payload,
            };
            check(publish, 5, 7, &topics, now_ns, &mut got)
        };
        let right = |stage| Verdict::Right { stage, sent_ns: 100 };
        assert_eq!(verdict("idle/7", &message(8, 0), 200), Verdict::Misdelivered);
        assert_eq!(verdict("idle/8", &message(7, 0), 200), Verdict::Misdelivered);
        assert_eq!(
            verdict("idle/7", &message(7, 0), 99),
            Verdict::Damaged,
            "from the future"
        );
        assert_eq!(verdict("idle/7", &message(7, 2), 200), Verdict::Damaged, "of no stage");
        assert_eq!(
            verdict("idle/7", &message(7, 0)[..PAYLOAD_BYTES - 1], 200),
            Verdict::Damaged
        );
        let mut spoilt = message(7, 0);
        spoilt[PAYLOAD_BYTES - 1] = b'x';
        assert_eq!(verdict("idle/7", &spoilt, 200), Verdict::Damaged);
        assert_eq!(verdict("idle/7", b"hello", 200), Verdict::Foreign);
        assert_eq!(verdict("idle/7", &message(7, 0), 200), right(Stage::Chosen));
        assert_eq!(verdict("idle/7", &message(7, 1), 200), right(Stage::All));
        assert_eq!(verdict("idle/7", &message(7, 0), 200), Verdict::Doubled);
        assert_eq!(verdict("idle/7", &message(7, 1), 200), Verdict::Doubled);
    }
}
