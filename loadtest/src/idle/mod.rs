//! Many connections that do nothing: what each costs the broker and the kernel in memory, whether messages still reach them,
//! and what is left when they have gone.
//!
//! Owns    the idle clients: per client a descriptor, a state, a time and a byte for the messages it got (`delivery`), in one
//!         flat Vec per thread; beside it what is above the socket of each, when that is not MQTT itself.
//! Called  by `main`.
//! Holds   - each client has its own id and one subscription; PINGREQ leaves in time, the first of each after a random part of
//!           that time, as of clients that have been there for long;
//!         - a thread's descriptors never leave it (`private_fds`);
//!         - a set-up that stands still for `STANDSTILL_MAX` is an error, a connection lost later is counted.

mod delivery;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};

use crate::acknowledgement::{AcknowledgementFaults, UNACKED_MAX};
use crate::broker_process::BrokerProcess;
use crate::client::{check_connack, check_suback};
use crate::dial::dial;
use crate::kernel_memory::KernelMemory;
use crate::meter::Reading;
use crate::pace::Pace;
use crate::packet::{self, Credentials, SessionKind, run_tag};
use crate::private_fds;
use crate::progress::{End, Progress};
use crate::report::{Host, Idle};
use crate::source_ports::{SourcePorts, source_count};
use crate::timeline::Watch;
use crate::transport::{self, Layers, Target};

use delivery::{Arrival, Board, Outcome, Publisher, Sending, Stage, Topics, Verdict};
pub use delivery::{Delivery, Faults};

/// Descriptors of a table that are not connections.
const OTHER_FDS: u64 = 64;
const STANDSTILL_MAX: Duration = Duration::from_secs(30);
/// From the last SUBACK, and from the last close, to the reading of the memory.
const SETTLE: Duration = Duration::from_secs(3);
/// After the last delivery, for what comes twice.
const LINGER: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Connections to hold
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Seconds to hold them after the memory was read
    #[arg(long, default_value_t = 0.0)]
    pub hold: f64,
    /// Connects a second over all threads [default: as fast as they are answered]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// Threads; more are started where the limit of open files asks for them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub threads: u32,
    /// Connect from 127.0.0.1 to 127.0.0.K in turn [default: none, or enough for 20,000 each on a loopback address]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    pub source_addresses: Option<u32>,
    /// Handshakes under way at a time, per thread
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Keep Alive in seconds; 0 sends no PINGREQ. One leaves when it is over, as from the common client libraries, the first
    /// of each client after a random part of that, so that they come evenly spread
    #[arg(long, default_value_t = 300)]
    pub keep_alive: u16,
    /// After the hold send one message each to so many clients, chosen at random, and check every delivery
    #[arg(long, default_value_t = 0, value_name = "CLIENTS")]
    pub deliver: u32,
    /// Messages a second of --deliver, whatever the broker does; latency counts from when each was due
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub deliver_rate: u64,
    /// Then send one message to every client, and check every delivery: a PUBLISH for each, to its own topic, as fast as they are
    /// acknowledged; or one PUBLISH that goes to all, if there is no {} in --filter and they share it
    #[arg(long)]
    pub broadcast: bool,
    /// Messages of --broadcast that the broker may leave unacknowledged
    #[arg(long, default_value_t = 1000)]
    pub unacked: usize,
    /// Seconds without an acknowledgement, a delivery or a PINGRESP, while one is owed, after which it counts as missing
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub silence: u64,
    /// Read the memory again 3 s after all connections were closed
    #[arg(long)]
    pub measure_close: bool,
    /// Close the sockets without DISCONNECT
    #[arg(long)]
    pub abrupt: bool,
    /// QoS of the subscriptions
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "idle",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    /// Topic Filter of each client, below the prefix; {} becomes its number, without it all share the filter. The number of
    /// levels is part of what a subscription costs
    #[arg(long, default_value = "{}/command")]
    pub filter: String,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

/// What the threads and the one that waits for them tell each other.
struct Shared {
    is_closing: AtomicBool,
    /// No PINGREQ is sent any more.
    is_quiet: AtomicBool,
    ready: AtomicU64,
    lost: AtomicU64,
    pings: AtomicU64,
    pongs: AtomicU64,
    closed: AtomicU64,
    board: Board,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Shared {
    fn new() -> Result<Shared> {
        Ok(Shared {
            is_closing: AtomicBool::new(false),
            is_quiet: AtomicBool::new(false),
            ready: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            pings: AtomicU64::new(0),
            pongs: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            board: Board::new()?,
            failure: Mutex::new(None),
        })
    }
}

/// The clients of one thread.
#[derive(Clone, Copy)]
struct Share {
    thread: u32,
    threads: u32,
    first: u32,
    count: u32,
    /// 0: the kernel chooses.
    sources: u32,
    run: u32,
    /// Of the run: what all times in messages count from.
    start: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    /// TLS or WebSocket.
    OpensLayers,
    AwaitsConnack,
    AwaitsSuback,
    Idle,
    AwaitsPong,
    Lost,
}

struct Client {
    socket: Option<OwnedFd>,
    /// When the next PINGREQ is due: seconds since the thread started.
    ping_s: u32,
    state: State,
    /// The stages of which it has its message.
    got: u8,
}

const _: () = assert!(size_of::<Client>() <= 12);

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Idle> {
    let target = Target::new(address, &settings.transport)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let own = BrokerProcess::new(std::process::id())?;
    let n = settings.connections;
    if !(0.0..=1e7).contains(&settings.hold) {
        bail!("--hold {} is no time span", settings.hold);
    }
    let topics = Topics::new(&settings.topic_prefix, &settings.filter);
    if settings.deliver > n {
        bail!("--deliver {} is more than --connections {n}", settings.deliver);
    }
    if settings.deliver > 0 && topics.is_shared() {
        bail!("--deliver wants a topic for each client: give --filter a {{}}, or leave --deliver out");
    }
    if !(1..=UNACKED_MAX).contains(&settings.unacked) {
        bail!("--unacked {} is outside 1..={UNACKED_MAX}", settings.unacked);
    }
    let sources = source_count(target.address, settings.source_addresses, n)?;
    let per_table = private_fds::raise_limit().saturating_sub(OTHER_FDS).max(1);
    let is_private = n as u64 > per_table;
    let threads = if is_private {
        settings.threads.max((n as u64).div_ceil(per_table) as u32)
    } else {
        settings.threads
    };

    let (bytes_before, own_before) = (memory(broker.as_ref())?, own.memory_bytes()?);
    let kernel_before = KernelMemory::read()?;
    let cpu_before = broker.as_ref().map(BrokerProcess::cpu_time).transpose()?;
    let counted = ["connected", "delivered"];
    let is_sent_to = settings.deliver > 0 || settings.broadcast;
    let counted = &counted[..if is_sent_to { 2 } else { 1 }];
    let timeline = Watch::start(broker.as_ref(), counted, "set-up")?;
    let start = Instant::now();
    let shared = Shared::new()?;
    let run = run_tag();
    thread::scope(|scope| {
        let mut first = 0;
        for thread in 0..threads {
            let count = n / threads + u32::from(thread < n % threads);
            let share = Share {
                thread,
                threads,
                first,
                count,
                sources,
                run,
                start,
            };
            first += count;
            let (shared, target, topics) = (&shared, &target, &topics);
            // The state of a thread is one Vec and a few kilobytes of stack.
            let spawned = thread::Builder::new()
                .stack_size(256 * 1024)
                .spawn_scoped(scope, move || {
                    let result = if is_private { private_fds::unshare() } else { Ok(()) };
                    if let Err(error) = result.and_then(|()| hold_share(target, settings, share, topics, shared)) {
                        let mut failure = shared
                            .failure
                            .lock()
                            .expect("no thread panics while it holds this lock");
                        failure.get_or_insert(error);
                        shared.is_closing.store(true, Ordering::Release);
                    }
                });
            if let Err(error) = spawned {
                shared.is_closing.store(true, Ordering::Release);
                return Err(error).with_context(|| format!("cannot start thread {thread} of {threads}"));
            }
        }
        let observer = Observer {
            target: &target,
            settings,
            topics: &topics,
            run,
            start,
            shared: &shared,
            broker: broker.as_ref(),
            timeline: &timeline,
        };
        let outcome = observer.run(&own);
        if outcome.is_ok() && settings.measure_close {
            timeline.phase_with_memory("closing");
        }
        // Whatever happened, the threads end, and with them the scope.
        shared.is_closing.store(true, Ordering::Release);
        let (set_up_seconds, held) = outcome?;
        let (mut closing, mut kernel_after) = (None, None);
        if settings.measure_close {
            let begin = Instant::now();
            while shared.closed.load(Ordering::Acquire) < threads as u64 && begin.elapsed() < STANDSTILL_MAX {
                thread::sleep(Duration::from_millis(10));
            }
            thread::sleep(SETTLE);
            closing = timeline.memory();
            kernel_after = Some(KernelMemory::read()?);
        }
        let per_connection = |before: u64, now: u64| (now as f64 - before as f64) / n as f64;
        let cpu_per_connect = held
            .cpu
            .zip(cpu_before)
            .map(|(now, before)| now.since(before).total.as_secs_f64() * 1e6 / n as f64);
        let kernel_each = |now: &KernelMemory| per_connection(kernel_before.total, now.total);
        let caches = held.kernel.growth_of_caches(&kernel_before);
        Ok(Idle {
            address: address.to_string(),
            broker: broker.as_ref().map(|b| b.name.clone()),
            host: Host::this(),
            transport: settings.transport.transport.name(),
            filter: settings
                .credentials
                .mask(&format!("{}/{}", settings.topic_prefix, settings.filter)),
            connections: n,
            threads,
            private_descriptor_tables: is_private,
            source_addresses: sources,
            set_up_seconds,
            broker_bytes_before: bytes_before,
            broker_bytes_held: held.bytes,
            broker_bytes_after: closing.as_ref().map(|memory| memory.last),
            broker_bytes_at_close: closing.as_ref().map(|memory| memory.before),
            broker_bytes_closing_max: closing.as_ref().map(|memory| memory.max),
            broker_bytes_per_connection: bytes_before
                .zip(held.bytes)
                .map(|(before, now)| per_connection(before, now)),
            broker_cpu_us_per_connect: cpu_per_connect,
            broker_cpus_held: held.cpus,
            kernel_bytes_per_connection: kernel_each(&held.kernel),
            kernel_bytes_per_connection_after: kernel_after.as_ref().map(kernel_each),
            kernel_caches: caches
                .into_iter()
                .map(|(name, bytes)| (name, bytes as f64 / n as f64))
                .collect(),
            own_bytes_per_connection: per_connection(own_before, held.own_bytes),
            lost: shared.lost.load(Ordering::Acquire),
            held_seconds: held.seconds,
            pings_held: held.pings,
            pings: shared.pings.load(Ordering::Acquire),
            pings_unanswered: shared
                .pings
                .load(Ordering::Acquire)
                .saturating_sub(shared.pongs.load(Ordering::Acquire)),
            chosen: held.chosen,
            all: held.all,
            delivery_faults: shared.board.faults(held.wanted),
            acknowledgements: held.acknowledgements,
            foreign: shared.board.foreign.load(Ordering::Acquire),
            timeline: timeline.stop(),
        })
    })
}

fn memory(broker: Option<&BrokerProcess>) -> Result<Option<u64>> {
    broker.map(BrokerProcess::memory_bytes).transpose()
}

struct Held {
    bytes: Option<u64>,
    cpu: Option<crate::broker_process::CpuTime>,
    cpus: Option<f64>,
    kernel: KernelMemory,
    own_bytes: u64,
    seconds: f64,
    /// Sent meanwhile.
    pings: u64,
    chosen: Option<Delivery>,
    all: Option<Delivery>,
    /// Deliveries of both.
    wanted: u64,
    acknowledgements: AcknowledgementFaults,
}

/// What the main thread looks at while the others hold the clients.
struct Observer<'a> {
    target: &'a Target,
    settings: &'a Settings,
    topics: &'a Topics,
    run: u32,
    start: Instant,
    shared: &'a Shared,
    broker: Option<&'a BrokerProcess>,
    timeline: &'a Watch,
}

impl Observer<'_> {
    /// Waits until all are subscribed, reads the memory, holds, sends. Gives the seconds the set-up took, and the readings.
    fn run(&self, own: &BrokerProcess) -> Result<(f64, Held)> {
        let Observer {
            settings,
            shared,
            broker,
            ..
        } = *self;
        let mut progress = Progress::new(End::At(settings.connections.into()));
        let (mut ready, mut moved) = (0, Instant::now());
        while ready < settings.connections as u64 {
            thread::sleep(Duration::from_millis(20));
            fail_with_thread(shared)?;
            let now_ready = shared.ready.load(Ordering::Acquire);
            if now_ready != ready {
                (ready, moved) = (now_ready, Instant::now());
            } else if moved.elapsed() > STANDSTILL_MAX {
                bail!(
                    "the set-up stands still at {ready} of {} connections",
                    settings.connections
                );
            }
            progress.count(self.start.elapsed().as_nanos() as u64, ready, "connected");
            self.store();
        }
        let set_up_seconds = self.start.elapsed().as_secs_f64();
        drop(progress);
        self.timeline.phase("held");
        let cpu = broker.map(BrokerProcess::cpu_time).transpose()?;
        let (hold_start, pings_before) = (Instant::now(), shared.pings.load(Ordering::Acquire));
        self.wait(SETTLE)?;
        let (bytes, own_bytes) = (memory(broker)?, own.memory_bytes()?);
        let kernel = KernelMemory::read()?;
        self.wait(Duration::from_secs_f64(settings.hold))?;
        let seconds = hold_start.elapsed().as_secs_f64();
        let cpus = match (broker, cpu) {
            (Some(broker), Some(cpu)) => Some(broker.cpu_time()?.since(cpu).total.as_secs_f64() / seconds),
            _ => None,
        };
        let mut held = Held {
            bytes,
            cpu,
            cpus,
            kernel,
            own_bytes,
            seconds,
            pings: shared.pings.load(Ordering::Acquire) - pings_before,
            chosen: None,
            all: None,
            wanted: 0,
            acknowledgements: AcknowledgementFaults::default(),
        };
        if settings.deliver > 0 || settings.broadcast {
            self.send(&mut held)?;
        }
        shared.is_quiet.store(true, Ordering::Release);
        self.wait(LINGER)?;
        let owed_since = Instant::now();
        while shared.pongs.load(Ordering::Acquire) < shared.pings.load(Ordering::Acquire)
            && owed_since.elapsed() < Duration::from_secs(settings.silence)
        {
            thread::sleep(Duration::from_millis(10));
            fail_with_thread(shared)?;
            self.store();
        }
        Ok((set_up_seconds, held))
    }

    /// The messages to some and to all.
    fn send(&self, held: &mut Held) -> Result<()> {
        let Observer {
            settings,
            topics,
            shared,
            ..
        } = *self;
        let wanted = u64::from(settings.deliver)
            + match settings.broadcast {
                true => u64::from(settings.connections),
                false => 0,
            };
        let progress = RefCell::new(Progress::new(End::At(wanted)));
        let turn = || {
            self.store();
            let now_ns = self.start.elapsed().as_nanos() as u64;
            progress
                .borrow_mut()
                .count(now_ns, shared.board.delivered(), "delivered");
            fail_with_thread(shared)
        };
        let sending = Sending {
            topics,
            run: self.run,
            start: self.start,
            unacked: settings.unacked,
            silence_max: Duration::from_secs(settings.silence),
            board: &shared.board,
            turn: &turn,
        };
        let mut publisher = Publisher::connect(self.target, &settings.credentials, sending)?;
        let order = match topics.is_shared() {
            true => Vec::new(),
            false => delivery::shuffled(settings.connections, self.run),
        };
        if settings.deliver > 0 {
            self.timeline.phase("one each");
            let pace = Pace::new(settings.deliver_rate, 1);
            let chosen = &order[..settings.deliver as usize];
            held.chosen = Some(self.measure("chosen", || publisher.deliver(Stage::Chosen, chosen, Some(pace)))?);
            held.wanted += u64::from(settings.deliver);
        }
        if settings.broadcast {
            self.timeline.phase("one to all");
            let n = u64::from(settings.connections);
            held.all = Some(self.measure("all", || match topics.is_shared() {
                true => publisher.deliver_to_all(Stage::All, n),
                false => publisher.deliver(Stage::All, &order, None),
            })?);
            held.wanted += n;
        }
        held.acknowledgements = publisher.close();
        Ok(())
    }

    fn wait(&self, time: Duration) -> Result<()> {
        let progress = Progress::new(End::After(time));
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::sleep(left.min(Duration::from_millis(100)));
            fail_with_thread(self.shared)?;
            self.store();
            let lost = self.shared.lost.load(Ordering::Acquire);
            progress.show(time - left, format!("held, {lost} lost"));
        }
        Ok(())
    }

    fn store(&self) {
        let ready = self.shared.ready.load(Ordering::Acquire);
        let lost = self.shared.lost.load(Ordering::Acquire);
        self.timeline.store([ready, self.shared.board.delivered()], lost);
    }

    fn measure(&self, stage: &'static str, send: impl FnOnce() -> Result<Outcome>) -> Result<Delivery> {
        let begin = Reading::take(self.broker)?;
        let outcome = send()?;
        let costs = Reading::take(self.broker)?.since(&begin).costs(outcome.delivered);
        Ok(Delivery {
            stage,
            clients: outcome.clients,
            published: outcome.published,
            delivered: outcome.delivered,
            seconds: outcome.seconds,
            delivered_per_s: outcome.delivered as f64 / outcome.seconds,
            latency_us: outcome.latency_us,
            broker_cpu_us: costs.broker_cpu_us,
        })
    }
}

fn fail_with_thread(shared: &Shared) -> Result<()> {
    match shared
        .failure
        .lock()
        .expect("no thread panics while it holds this lock")
        .take()
    {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// One thread: connects its clients, answers for them, closes them when told to.
fn hold_share(target: &Target, settings: &Settings, share: Share, topics: &Topics, shared: &Shared) -> Result<()> {
    let mut holder = Holder {
        target: target.address,
        broker: target,
        settings,
        share,
        topics,
        shared,
        start: Instant::now(),
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        clients: Vec::with_capacity(share.count as usize),
        layers: Vec::with_capacity(if target.is_layered() { share.count as usize } else { 0 }),
        partial: HashMap::new(),
        in_flight: 0,
        ports: SourcePorts::new(share.thread, share.threads, share.sources, share.run)?,
        bytes: Vec::new(),
        wire: Vec::new(),
        plain: Vec::new(),
        arrivals: Vec::new(),
    };
    let result = holder.drive();
    if !settings.abrupt {
        holder.disconnect();
    }
    drop(holder);
    shared.closed.fetch_add(1, Ordering::Release);
    result
}

struct Holder<'a> {
    target: SocketAddr,
    broker: &'a Target,
    settings: &'a Settings,
    share: Share,
    topics: &'a Topics,
    shared: &'a Shared,
    start: Instant,
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// As many as clients, or none where MQTT runs over plain TCP.
    layers: Vec<Layers>,
    /// The few whose last read ended within a frame.
    partial: HashMap<u32, Vec<u8>>,
    in_flight: u32,
    ports: SourcePorts,
    /// MQTT packets to send.
    bytes: Vec<u8>,
    /// What the layers make of them, and what they find in what came.
    wire: Vec<u8>,
    plain: Vec<u8>,
    /// Of this batch of events.
    arrivals: Vec<Arrival>,
}

impl Holder<'_> {
    fn drive(&mut self) -> Result<()> {
        let pace = self
            .settings
            .rate
            .map(|rate| Pace::new(rate, self.share.threads as u64));
        let mut buffer = vec![0; READ_BYTES];
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        let mut swept_s = 0;
        while !self.shared.is_closing.load(Ordering::Acquire) {
            let now = self.start.elapsed();
            let allowed = match pace {
                Some(pace) => pace
                    .due_count(self.share.thread as u64, now.as_nanos() as u64)
                    .min(self.share.count as u64),
                None => self.share.count as u64,
            };
            while (self.clients.len() as u64) < allowed && self.in_flight < self.settings.in_flight {
                self.connect_next()?;
            }
            let now_s = now.as_secs() as u32;
            if now_s > swept_s && self.settings.keep_alive > 0 && !self.shared.is_quiet.load(Ordering::Acquire) {
                swept_s = now_s;
                self.ping_due(now_s);
            }
            let is_connecting = (self.clients.len() as u32) < self.share.count;
            let wait_ms = if is_connecting { 5 } else { 100 };
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: wait_ms * 1_000_000,
            };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in &events {
                let (client, flags) = (event.data.u64() as usize, event.flags);
                self.ready(client, flags, &mut buffer)?;
            }
            self.shared.board.record(&mut self.arrivals);
        }
        Ok(())
    }

    fn connect_next(&mut self) -> Result<()> {
        let index = self.clients.len();
        let number = self.number(index);
        let (socket, is_connected) = dial(self.target, &mut self.ports, number)?;
        let flags = if is_connected {
            epoll::EventFlags::IN
        } else {
            epoll::EventFlags::OUT
        };
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), flags)?;
        self.layers.extend(self.broker.layers()?);
        self.clients.push(Client {
            socket: Some(socket),
            ping_s: 0,
            state: State::Connecting,
            got: 0,
        });
        self.in_flight += 1;
        if is_connected { self.connected(index) } else { Ok(()) }
    }

    /// The socket is connected: MQTT begins, or what is below it.
    fn connected(&mut self, client: usize) -> Result<()> {
        match self.layers.get_mut(client) {
            None => self.send_connect(client),
            Some(layers) => {
                self.clients[client].state = State::OpensLayers;
                self.wire.clear();
                layers.begin(&mut self.wire)?;
                self.send_raw(client, &self.wire)
            }
        }
    }

    fn number(&self, client: usize) -> u32 {
        self.share.first + client as u32
    }

    fn send_connect(&mut self, client: usize) -> Result<()> {
        self.clients[client].state = State::AwaitsConnack;
        self.bytes.clear();
        let id = format!("si{:08x}n{}", self.share.run, self.number(client));
        packet::connect(
            &mut self.bytes,
            &id,
            SessionKind::Clean,
            self.settings.keep_alive,
            &self.settings.credentials,
        );
        self.send_bytes(client)
    }

    fn send_bytes(&mut self, client: usize) -> Result<()> {
        match self.layers.get_mut(client) {
            None => self.send_raw(client, &self.bytes)?,
            Some(layers) => {
                self.wire.clear();
                layers.put(&[], &self.bytes, &mut self.wire)?;
                self.send_raw(client, &self.wire)?;
            }
        }
        Ok(())
    }

    fn send_raw(&self, client: usize, bytes: &[u8]) -> Result<()> {
        let Some(socket) = &self.clients[client].socket else {
            return Ok(());
        };
        // These few bytes fit the send buffer, or the connection is broken.
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => bail!("{} takes no bytes", self.target),
            Err(error) => bail!("{} broke the connection: {}", self.target, std::io::Error::from(error)),
        }
    }

    fn ready(&mut self, client: usize, flags: epoll::EventFlags, buffer: &mut [u8]) -> Result<()> {
        let target = self.target;
        if self.clients[client].state == State::Connecting {
            let Some(socket) = &self.clients[client].socket else {
                return Ok(());
            };
            if let Err(error) = sockopt::socket_error(socket)? {
                bail!("cannot connect to {target}: {}", std::io::Error::from(error));
            }
            if flags.contains(epoll::EventFlags::OUT) {
                epoll::modify(
                    &self.epoll,
                    socket,
                    epoll::EventData::new_u64(client as u64),
                    epoll::EventFlags::IN,
                )?;
                self.connected(client)?;
            }
            return Ok(());
        }
        let Some(socket) = &self.clients[client].socket else {
            return Ok(());
        };
        let cause = match rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, 0)) => anyhow!("{target} closed the connection"),
            Ok((_, n)) if self.layers.is_empty() => return self.take_bytes(client, &buffer[..n]),
            Ok((_, n)) => match self.take_wire(client, &mut buffer[..n])? {
                None => return Ok(()),
                Some(cause) => cause,
            },
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => anyhow!("{target} broke the connection: {}", std::io::Error::from(error)),
        };
        let c = &mut self.clients[client];
        if !matches!(c.state, State::Idle | State::AwaitsPong) {
            return Err(cause).with_context(|| format!("connection {}", self.share.first as usize + client));
        }
        c.state = State::Lost;
        c.socket = None;
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes for the layers of a client. Gives what ends its connection; an error ends the run.
    fn take_wire(&mut self, client: usize, wire: &mut [u8]) -> Result<Option<anyhow::Error>> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        self.wire.clear();
        let layers = &mut self.layers[client];
        let taken = layers.take(wire, &mut plain, &mut self.wire);
        let is_open = layers.is_open();
        let result = match taken.map_err(|error| anyhow!("{} {error}", self.target)) {
            Ok(()) if self.wire.is_empty() => Ok(()),
            Ok(()) => self.send_raw(client, &self.wire),
            Err(error) => Err(error),
        };
        let result = match result {
            Err(cause) => Ok(Some(cause)),
            Ok(()) => self.take_plain(client, is_open, &plain).map(|()| None),
        };
        self.plain = plain;
        result
    }

    fn take_plain(&mut self, client: usize, is_open: bool, plain: &[u8]) -> Result<()> {
        if is_open && self.clients[client].state == State::OpensLayers {
            self.send_connect(client)?;
        }
        self.take_bytes(client, plain)
    }

    fn take_bytes(&mut self, client: usize, bytes: &[u8]) -> Result<()> {
        let joined = self.partial.remove(&(client as u32)).map(|mut start| {
            start.extend_from_slice(bytes);
            start
        });
        let bytes = joined.as_deref().unwrap_or(bytes);
        let mut at = 0;
        while let Some(frame) = packet::next_frame(&bytes[at..]).with_context(|| format!("{} sent", self.target))? {
            at += frame.len;
            self.take_frame(client, frame)?;
        }
        if at < bytes.len() {
            self.partial.insert(client as u32, bytes[at..].to_vec());
        }
        Ok(())
    }

    fn take_frame(&mut self, client: usize, frame: packet::Frame<'_>) -> Result<()> {
        let context = || format!("connection {}", self.share.first as usize + client);
        match self.clients[client].state {
            State::AwaitsConnack => {
                check_connack(self.target, frame).with_context(context)?;
                self.clients[client].state = State::AwaitsSuback;
                self.bytes.clear();
                let filter = self.topics.filter(self.number(client));
                packet::subscribe(&mut self.bytes, &filter, self.settings.qos);
                self.send_bytes(client)
            }
            State::AwaitsSuback if frame.kind() != packet::PUBLISH => {
                check_suback(self.target, frame, self.settings.qos).with_context(context)?;
                let phase_s = spread(self.number(client)) % self.ping_interval_s();
                let c = &mut self.clients[client];
                c.state = State::Idle;
                c.ping_s = self.start.elapsed().as_secs() as u32 + phase_s;
                self.in_flight -= 1;
                self.shared.ready.fetch_add(1, Ordering::Release);
                Ok(())
            }
            State::AwaitsPong if frame.kind() == packet::PINGRESP => {
                self.clients[client].state = State::Idle;
                self.shared.pongs.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            State::Idle | State::AwaitsPong if frame.kind() == packet::PUBLISH => {
                self.take_message(client, packet::publish(frame)?)
            }
            _ => Ok(()),
        }
    }

    /// A message of ours is checked, one that somebody else publishes is counted.
    fn take_message(&mut self, client: usize, publish: packet::Publish<'_>) -> Result<()> {
        let number = self.number(client);
        let at_ns = self.share.start.elapsed().as_nanos() as u64;
        let got = &mut self.clients[client].got;
        let verdict = delivery::check(publish, self.share.run, number, self.topics, at_ns, got);
        match verdict {
            Verdict::Right { stage, sent_ns } => self.arrivals.push(Arrival { stage, sent_ns, at_ns }),
            _ => self.shared.board.count(verdict),
        }
        // What we publish comes at QoS 1 at most.
        if publish.qos == 1 {
            self.bytes.clear();
            packet::acknowledgement(&mut self.bytes, packet::PUBACK, publish.packet_id);
            self.send_bytes(client)?;
        }
        Ok(())
    }

    fn ping_interval_s(&self) -> u32 {
        u32::from(self.settings.keep_alive).max(1)
    }

    /// PINGREQ for every client whose time for one has come.
    fn ping_due(&mut self, now_s: u32) {
        let interval_s = self.ping_interval_s();
        let mut pings = 0;
        for (index, client) in self.clients.iter_mut().enumerate() {
            if now_s < client.ping_s || !matches!(client.state, State::Idle | State::AwaitsPong) {
                continue;
            }
            let Some(socket) = &client.socket else { continue };
            // What goes wrong here shows up as a lost connection.
            let bytes = match self.layers.get_mut(index) {
                None => &packet::PINGREQ_BYTES[..],
                Some(layers) => {
                    self.wire.clear();
                    let _ = layers.put(&[], &packet::PINGREQ_BYTES, &mut self.wire);
                    &self.wire
                }
            };
            if rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) == Ok(bytes.len()) {
                client.state = State::AwaitsPong;
                client.ping_s = now_s + interval_s;
                pings += 1;
            }
        }
        self.shared.pings.fetch_add(pings, Ordering::Relaxed);
    }

    /// DISCONNECT for all that are still there.
    fn disconnect(&mut self) {
        for (index, client) in self.clients.iter().enumerate() {
            let Some(socket) = &client.socket else { continue };
            let bytes = match self.layers.get_mut(index) {
                None => &packet::DISCONNECT_BYTES[..],
                Some(layers) if layers.is_open() => {
                    self.wire.clear();
                    let _ = layers.end(&packet::DISCONNECT_BYTES, &mut self.wire);
                    &self.wire
                }
                Some(_) => continue,
            };
            let _ = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL);
        }
    }
}

/// A number like a random one.
fn spread(number: u32) -> u32 {
    (u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}
