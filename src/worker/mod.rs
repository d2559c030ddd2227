//! Layer 5: one thread per core.
//!
//! Owns    the thread: its CPU, its runtime, its sleep. What it does awake is [`turn`].
//! Called  by `server`: [`start`] once per core, then through each core's [`Mailbox`]; by `doctor`: [`try_io_uring`].
//! Holds   - the runtime serves for the sleep only: no socket is a task, nothing is ever awaited but the core's epoll set,
//!           a timer and the fence of [`ring`], and all may be dropped at any moment;
//!         - a nap, while writes wait for their time, is a plain sleep of the thread: at most `NAP_US_MAX`, and no bell ends it;
//!         - hence a busy core needs no yield: there is no other task that could starve;
//!         - a core is done with everything that can fail before it says it is ready, and serves nobody before all are.

mod arrivals;
mod asked;
mod ending;
pub mod parcel;
mod ring;
pub mod turn;
#[cfg(test)]
mod turn_tests;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use monoio::time::TimeDriver;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::thread::CpuSet;

use crate::mesh::Bell;
use crate::metrics::Counters;
use crate::net::certificate::Tls;
use crate::net::handoff;
use crate::net::sockets::Sockets;
use crate::registry::access::AccountsChange;
use crate::registry::event::Notification;
use crate::shard::query::{Answer, Query};
use ring::{Ring, Sleeper};
use turn::{Core, CoreParts};

/// What the runtime waits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring where it can be had, else epoll.
    Auto,
    IoUring,
    Epoll,
}

/// What a core is asked from outside.
pub enum Control {
    Stop,
    /// For every TLS handshake that begins from now on; who is connected stays. The sender is dropped when it is taken up.
    Certificate(Box<Tls>, mpsc::Sender<Infallible>),
    /// Its counters, as they stand.
    Report(mpsc::Sender<Counters>),
    /// A question of the control thread's.
    Ask(Box<Question>),
    /// The accounts have changed.
    Accounts(Box<AccountsChange>),
}

/// Something asked of a core, and where the answer goes: called on the core's thread, so it only hands over.
pub struct Question {
    pub query: Query,
    pub reply: Reply,
}

pub type Reply = Box<dyn FnOnce(Answer) + Send>;

/// Takes a notification on the core's thread, at once; false if there is no room for it.
pub type Notifier = Arc<dyn Fn(Notification) -> bool + Send + Sync>;

/// How any thread speaks to a core.
pub struct Mailbox {
    bell: Arc<Bell>,
    mail: Mutex<Vec<Control>>,
    has_mail: AtomicBool,
}

impl Mailbox {
    pub fn new(bell: Arc<Bell>) -> Mailbox {
        Mailbox {
            bell,
            mail: Mutex::default(),
            has_mail: AtomicBool::new(false),
        }
    }

    pub fn send(&self, control: Control) {
        self.mail.lock().expect("nobody panics while holding it").push(control);
        self.has_mail.store(true, Ordering::Release);
        self.bell.ring();
    }

    fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    fn take(&self) -> Vec<Control> {
        self.has_mail.store(false, Ordering::Release);
        std::mem::take(&mut self.mail.lock().expect("nobody panics while holding it"))
    }
}

/// The thread of a core.
pub struct WorkerConfig {
    pub driver: Driver,
    /// The CPU to stay on; None: any.
    pub cpu: Option<usize>,
    /// A descriptor table of its own, without these, which belong to other cores.
    pub private_descriptors: Option<Vec<RawFd>>,
}

/// Where all cores meet on their way up.
pub struct Gate {
    barrier: Barrier,
    is_abandoned: AtomicBool,
}

impl Gate {
    /// For `cores` cores and the thread that starts them.
    pub fn new(cores: usize) -> Gate {
        Gate {
            barrier: Barrier::new(cores + 1),
            is_abandoned: AtomicBool::new(false),
        }
    }

    /// The starting thread: lets the cores on, or sends them home.
    pub fn open(&self, go: bool) {
        self.is_abandoned.store(!go, Ordering::Release);
        self.barrier.wait();
    }

    /// A core: waits for all; false if the start was abandoned.
    fn pass(&self) -> bool {
        self.barrier.wait();
        !self.is_abandoned.load(Ordering::Acquire)
    }
}

/// What a core says of itself on its way up.
pub enum Progress {
    /// Everything is open. The driver is what `Auto` came to.
    Opened(Driver),
    /// It has parted its descriptors, if it was to.
    Parted,
    Failed(io::Error),
}

/// Starts a core's thread, which returns what it has counted. It says `Opened`, passes `gates[0]`, parts its descriptors,
/// says `Parted`, passes `gates[1]`, and serves: nobody serves before everybody has parted, for a connection that is in a
/// table that is copied is open twice.
pub fn start(
    config: WorkerConfig,
    parts: CoreParts,
    gates: Arc<[Gate; 2]>,
    progress: mpsc::Sender<Progress>,
) -> io::Result<JoinHandle<Counters>> {
    let name = format!("core-{}", parts.mesh.core());
    std::thread::Builder::new().name(name).spawn(move || {
        // Half a broker is worse than a restart. (A release build aborts by itself.)
        catch_unwind(AssertUnwindSafe(|| run(config, parts, &gates, &progress)))
            .unwrap_or_else(|_| std::process::abort())
    })
}

fn run(config: WorkerConfig, parts: CoreParts, gates: &[Gate; 2], progress: &mpsc::Sender<Progress>) -> Counters {
    if let Some(cpu) = config.cpu {
        pin_to(cpu);
    }
    // Else the kernel may let a sleep of microseconds last 50 longer.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
    let say = |what| drop(progress.send(what));
    let opened = open(config.driver, &parts);
    let (sockets, mut runtime, ring, epoll) = match opened {
        Ok((driver, sockets, runtime, ring, epoll)) => {
            say(Progress::Opened(driver));
            (sockets, runtime, ring, epoll)
        }
        Err(error) => {
            say(Progress::Failed(error));
            gates[0].pass();
            return Counters::default();
        }
    };
    if !gates[0].pass() {
        return Counters::default();
    }
    let parted = match &config.private_descriptors {
        None => Ok(()),
        Some(of_others) => handoff::unshare_descriptors().map(|()| handoff::close_copies(of_others)),
    };
    match parted {
        Ok(()) => say(Progress::Parted),
        Err(error) => say(Progress::Failed(error)),
    }
    if !gates[1].pass() {
        return Counters::default();
    }
    let mut core = Core::new(parts, sockets);
    runtime.block_on(serve(&mut core, epoll, ring));
    let counters = core.report();
    // The process is about to exit; a runtime is not taken down before that, with operations of its own in flight.
    std::mem::forget(runtime);
    counters
}

type Runtime = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// The least monoio makes; one poll and one timer are all there ever is.
const RING_ENTRIES: u32 = 256;

fn open(driver: Driver, parts: &CoreParts) -> io::Result<(Driver, Sockets, Runtime, Option<Ring>, OwnedFd)> {
    let sockets = Sockets::new()?;
    sockets.watch_bell(&**parts.mesh.bell())?;
    for (number, listener) in parts.listeners.iter().enumerate() {
        sockets.watch_listener(number as u16, listener)?;
    }
    let epoll = sockets.epoll().try_clone_to_owned()?;
    let (driver, runtime, ring) = runtime(driver)?;
    Ok((driver, sockets, runtime, ring, epoll))
}

fn runtime(driver: Driver) -> io::Result<(Driver, Runtime, Option<Ring>)> {
    if driver == Driver::IoUring || driver == Driver::Auto && monoio::utils::detect_uring() {
        let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES);
        match Ring::of(|| builder.enable_timer().build()) {
            Ok((runtime, ring)) => return Ok((Driver::IoUring, runtime.into(), ring)),
            Err(error) if driver == Driver::IoUring => return Err(error),
            Err(_) => {}
        }
    }
    let legacy = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    Ok((Driver::Epoll, legacy.into(), None))
}

/// Makes such a ring as a core has, and lets it go: what the kernel, or a filter of system calls, says to it.
pub fn try_io_uring() -> io::Result<()> {
    runtime(Driver::IoUring).map(drop)
}

async fn serve(core: &mut Core, epoll: OwnedFd, ring: Option<Ring>) {
    // Any stream type will do: only its readiness is asked for.
    let epoll = monoio::net::UnixStream::from_std(UnixStream::from(epoll))
        .expect("the runtime takes a descriptor that epoll takes");
    let mut sleeper = ring.map(Sleeper::new);
    let mut readable = pin!(epoll.readable(false));
    while !core.is_done() {
        if core.batch() {
            continue;
        }
        if let Some(nap) = core.nap() {
            // Shorter than any timer of the runtime; what comes meanwhile is what is waited for.
            std::thread::sleep(nap);
            continue;
        }
        if let Some(at_most) = core.prepare_sleep() {
            match &mut sleeper {
                None => sleep(&epoll, at_most).await,
                Some(sleeper) => {
                    if sleeper.sleep(readable.as_mut(), at_most).await {
                        readable.set(epoll.readable(false));
                    }
                }
            }
            core.bell().woken();
        }
    }
}

/// Until the epoll set is readable, or the milliseconds are over.
async fn sleep(epoll: &monoio::net::UnixStream, at_most: Option<u64>) {
    let mut readable = pin!(epoll.readable(false));
    let Some(at_most) = at_most else {
        readable.await.expect("an epoll set can be polled");
        return;
    };
    let mut timer = pin!(monoio::time::sleep(Duration::from_millis(at_most)));
    std::future::poll_fn(|context| {
        if let Poll::Ready(polled) = readable.as_mut().poll(context) {
            polled.expect("an epoll set can be polled");
            return Poll::Ready(());
        }
        timer.as_mut().poll(context)
    })
    .await;
}

fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(cpu, %error, "a core cannot be kept on its CPU");
    }
}

/// The CPUs this process may run on.
pub fn cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}
