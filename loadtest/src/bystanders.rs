//! Pairs that talk while others connect: what a storm does to those who were there before it.
//!
//! Owns    a thread, the connections of the pairs, and the latency of their messages before, during and after the storm.
//! Called  by `connect` and `slow_reader`, which tell when what they do to the broker begins and ends.
//! Holds   - message k leaves when `pace` says so, latency counts from then: a storm that holds this thread up, or the broker,
//!           is in the figures;
//!         - a message belongs to the phase it was to leave in, whenever it comes;
//!         - QoS 0: what does not come is counted, it is no fault.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::epoll;
use serde::Serialize;

use crate::client::{Connection, Received};
use crate::html::{Curves, Page};
use crate::pace::Pace;
use crate::packet::{self, Credentials, PublishTemplate, STAMP_BYTES, SessionKind, Stamp};
use crate::poller::Poller;
use crate::report::{Latency, grouped};
use crate::timer::Timer;
use crate::transport::Target;

const PAYLOAD_BYTES: usize = 64;
const READ_BYTES: usize = 256 * 1024;
const TIMER: u64 = u64::MAX;
/// What their own start does to the first messages (slow start, the first delayed acknowledgement of TCP) is not what they are
/// asked about: messages of this time are in no histogram.
pub const WARM_UP: Duration = Duration::from_millis(500);
/// After the last message, how long one that is under way may take.
const DRAIN: Duration = Duration::from_secs(2);
/// How old a count may be when it is sampled.
const WAIT: Duration = Duration::from_millis(5);

struct Shared {
    start: Instant,
    is_ready: AtomicBool,
    is_stopping: AtomicBool,
    /// When the storm began and ended; u64::MAX before that.
    begin_ns: AtomicU64,
    end_ns: AtomicU64,
    received: AtomicU64,
}

/// Who they are.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pairs: u32,
    /// Messages a second over all pairs.
    pub rate: u64,
    pub transport: &'static str,
    pub topic_prefix: String,
    pub credentials: Credentials,
}

pub struct Bystanders {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Figures>>,
}

/// What they noticed.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub pairs: u32,
    pub rate: u64,
    pub transport: &'static str,
    pub sent: u64,
    pub received: u64,
    pub before_us: Latency,
    pub during_us: Latency,
    pub after_us: Latency,
}

impl Bystanders {
    /// They are connected and talk when this returns.
    pub fn start(target: Target, settings: Settings, run: u32) -> Result<Bystanders> {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            is_ready: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            begin_ns: AtomicU64::new(u64::MAX),
            end_ns: AtomicU64::new(u64::MAX),
            received: AtomicU64::new(0),
        });
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("bystanders".into())
            .spawn(move || Pairs::connect(&target, &settings, run, &of_thread)?.drive())
            .context("cannot start the thread of the bystanders")?;
        let bystanders = Bystanders { shared, thread };
        while !bystanders.shared.is_ready.load(Ordering::Acquire) {
            if bystanders.thread.is_finished() {
                bystanders.stop()?;
                bail!("the bystanders were stopped before they talked");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(bystanders)
    }

    /// Lets them talk for a while, and calls `meanwhile` again and again.
    pub fn wait(&self, time: Duration, mut meanwhile: impl FnMut()) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.thread.is_finished() {
                bail!("the bystanders fell silent");
            }
            meanwhile();
            thread::sleep(left.min(WAIT));
        }
        Ok(())
    }

    /// Messages so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    pub fn storm_begins(&self) {
        let now = self.shared.start.elapsed().as_nanos() as u64;
        self.shared.begin_ns.store(now, Ordering::Release);
    }

    pub fn storm_ended(&self) {
        let now = self.shared.start.elapsed().as_nanos() as u64;
        self.shared.end_ns.store(now, Ordering::Release);
    }

    pub fn stop(self) -> Result<Figures> {
        self.shared.is_stopping.store(true, Ordering::Release);
        match self.thread.join() {
            Ok(figures) => figures.context("bystanders"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

struct Pairs<'a> {
    shared: &'a Shared,
    run: u32,
    rate: u64,
    transport: &'static str,
    poller: Poller,
    timer: Timer,
    /// Tokens: publisher i has i, subscriber i has `publishers.len() + i`.
    publishers: Vec<(Connection, PublishTemplate)>,
    subscribers: Vec<Connection>,
    is_waiting: Vec<bool>,
    sent: u64,
    received: u64,
    counted_from_ns: u64,
    /// Before, during, after.
    histograms: [Histogram<u64>; 3],
}

impl<'a> Pairs<'a> {
    fn connect(target: &Target, settings: &Settings, run: u32, shared: &'a Shared) -> Result<Pairs<'a>> {
        let poller = Poller::new()?;
        let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
        let pairs = settings.pairs;
        for i in 0..u64::from(pairs) {
            let topic = format!("{}/{run:08x}/{i}", settings.topic_prefix);
            let context = || format!("pair {i} of {pairs}");
            let open = |id: &str| Connection::open(target, id, SessionKind::Clean, &settings.credentials);
            let mut subscriber = open(&format!("sc{run:08x}r{i}")).with_context(context)?;
            subscriber.subscribe(&topic, 0).with_context(context)?;
            subscriber.set_nonblocking()?;
            poller.add(subscriber.socket(), u64::from(pairs) + i)?;
            subscribers.push(subscriber);
            let mut publisher = open(&format!("sc{run:08x}p{i}")).with_context(context)?;
            publisher.set_nonblocking()?;
            poller.add(publisher.socket(), i)?;
            publishers.push((publisher, PublishTemplate::new(&topic, 0, PAYLOAD_BYTES)));
        }
        let histogram = || Histogram::new_with_bounds(100, 3_600_000_000_000, 3);
        Ok(Pairs {
            timer: Timer::new(poller.fd(), TIMER)?,
            shared,
            run,
            rate: settings.rate,
            transport: settings.transport,
            poller,
            is_waiting: vec![false; publishers.len() + subscribers.len()],
            publishers,
            subscribers,
            sent: 0,
            received: 0,
            counted_from_ns: 0,
            histograms: [histogram()?, histogram()?, histogram()?],
        })
    }

    fn drive(mut self) -> Result<Figures> {
        let pace = Pace::new(self.rate, 1);
        let mut buffer = vec![0; READ_BYTES];
        // The schedule starts with them, not with their handshakes.
        let zero_ns = self.now_ns();
        self.counted_from_ns = zero_ns + WARM_UP.as_nanos() as u64;
        self.shared.is_ready.store(true, Ordering::Release);
        let mut stopped = None;
        loop {
            let now = self.now_ns() - zero_ns;
            if stopped.is_none() && self.shared.is_stopping.load(Ordering::Acquire) {
                stopped = Some(Instant::now());
            }
            match stopped {
                Some(since) if self.received >= self.sent || since.elapsed() > DRAIN => break,
                Some(_) => self.timer.set(Duration::from_millis(1))?,
                None => {
                    let due = pace.total_due_count(now);
                    while self.sent < due {
                        self.publish(zero_ns + pace.turn_due_ns(self.sent))?;
                    }
                    let next = pace.turn_due_ns(due).saturating_sub(self.now_ns() - zero_ns);
                    self.timer.set(Duration::from_nanos(next))?;
                }
            }
            self.poller.wait(Duration::from_millis(20))?;
            for at in 0..self.poller.events().len() {
                let (token, flags) = self.poller.event(at);
                match token {
                    TIMER => self.timer.clear(),
                    token => self.ready(token, flags, &mut buffer)?,
                }
            }
        }
        let [before, during, after] = &self.histograms;
        let figures = Figures {
            pairs: self.publishers.len() as u32,
            rate: self.rate,
            transport: self.transport,
            sent: self.sent,
            received: self.received,
            before_us: Latency::of(before),
            during_us: Latency::of(during),
            after_us: Latency::of(after),
        };
        self.publishers
            .into_iter()
            .for_each(|(connection, _)| connection.close());
        self.subscribers.into_iter().for_each(Connection::close);
        Ok(figures)
    }

    fn now_ns(&self) -> u64 {
        self.shared.start.elapsed().as_nanos() as u64
    }

    fn publish(&mut self, time_ns: u64) -> Result<()> {
        let index = (self.sent % self.publishers.len() as u64) as usize;
        let (connection, template) = &mut self.publishers[index];
        let stamp = Stamp {
            run: self.run,
            publisher: index as u32,
            sequence: self.sent,
            time_ns,
        };
        stamp.write(&mut template.bytes[template.stamp_at..][..STAMP_BYTES]);
        let context = || format!("publisher {index}");
        if connection.wants_write() {
            connection.append(&template.bytes).with_context(context)?;
        } else {
            connection.send(&[], &template.bytes).with_context(context)?;
        }
        self.sent += 1;
        self.watch(index as u64)
    }

    fn watch(&mut self, token: u64) -> Result<()> {
        let connection = match self.publishers.get(token as usize) {
            Some((connection, _)) => connection,
            None => &self.subscribers[token as usize - self.publishers.len()],
        };
        let wants = connection.wants_write();
        if wants != self.is_waiting[token as usize] {
            connection.watch(self.poller.fd(), token, wants)?;
            self.is_waiting[token as usize] = wants;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, flags: epoll::EventFlags, buffer: &mut [u8]) -> Result<()> {
        let index = token as usize;
        let pairs = self.publishers.len();
        let (connection, name, number) = if index < pairs {
            (&mut self.publishers[index].0, "publisher", index)
        } else {
            (&mut self.subscribers[index - pairs], "subscriber", index - pairs)
        };
        let context = || format!("{name} {number}");
        if flags.contains(epoll::EventFlags::OUT) {
            connection.flush().with_context(context)?;
        }
        if let Received::Bytes { len, .. } = connection.receive(buffer).with_context(context)? {
            let now = self.shared.start.elapsed().as_nanos() as u64;
            let begin = self.shared.begin_ns.load(Ordering::Acquire);
            let end = self.shared.end_ns.load(Ordering::Acquire);
            let mut at = 0;
            while let Some(frame) = packet::next_frame(&buffer[at..len]).with_context(context)? {
                at += frame.len;
                if frame.kind() != packet::PUBLISH {
                    continue;
                }
                let publish = packet::publish(frame)?;
                let Some(stamp) = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.run) else {
                    continue;
                };
                self.received += 1;
                if stamp.time_ns < self.counted_from_ns {
                    continue;
                }
                let phase = usize::from(stamp.time_ns >= begin) + usize::from(stamp.time_ns >= end);
                self.histograms[phase].saturating_record(now.saturating_sub(stamp.time_ns));
            }
            self.shared.received.store(self.received, Ordering::Relaxed);
            connection.keep(&buffer[at..len]);
        }
        self.watch(token)
    }
}

impl Figures {
    /// On a page: what they noticed of the `storm`.
    pub fn show(&self, page: &mut Page, who: &str, storm: &str) {
        page.count(&format!("{who}: messages sent"), self.sent, "");
        page.count(&format!("{who}: messages received"), self.received, "");
        page.latencies.push(
            Curves::new(&format!("Messages of {}", who.to_lowercase()))
                .with(&format!("before {storm}"), Some(&self.before_us))
                .with("during", Some(&self.during_us))
                .with("after", Some(&self.after_us)),
        );
    }
}

impl Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bystanders   {} pairs over {}, {}/s: sent {}, received {}",
            self.pairs,
            self.transport,
            grouped(self.rate),
            grouped(self.sent),
            grouped(self.received)
        )?;
        for (name, latency) in [
            ("before", &self.before_us),
            ("during", &self.during_us),
            ("after", &self.after_us),
        ] {
            write!(f, "\n  {name:<10} {latency}")?;
        }
        Ok(())
    }
}
