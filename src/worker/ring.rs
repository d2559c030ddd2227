//! A core's sleep on its ring that nobody takes for a wait for the disk.
//!
//! Owns    the last wait of a core on io_uring, where the kernel allows it (Linux 6.15).
//! Called  by `worker`, which has the runtime wait where there is none of these.
//! Holds   - a thread that sleeps on a ring counts as one that waits for I/O, whatever the ring has on it: the CPUs of a broker
//!           that does nothing are at 100% `wa` in `top`, and so is `/proc/pressure/io`. `IORING_ENTER_NO_IOWAIT` says
//!           that it is none; the runtime does not know that flag, so the wait is made here, on the runtime's ring;
//!         - what the runtime has written to the ring goes to the kernel with the wait, and what comes is left for the runtime to
//!           take, which costs one more system call for each sleep.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll};

use monoio::net::UnixStream;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::io_uring::{IoringEnterFlags, io_uring_enter, io_uring_enter_arg, io_uring_getevents_arg, io_uring_ptr};
use rustix::time::Timespec;

/// Since Linux 6.15 (`IORING_ENTER_NO_IOWAIT`).
const NO_IOWAIT: IoringEnterFlags = IoringEnterFlags::from_bits_retain(1 << 7);

/// Rings are made one at a time: what is new is the one that was made.
static MAKING: Mutex<()> = Mutex::new(());

/// The ring of a core's runtime, which lives as long as the process, and what it takes to sleep on it.
pub struct Ring {
    /// The same in a table of the core's own.
    descriptor: RawFd,
    /// Always readable.
    fence: OwnedFd,
}

impl Ring {
    /// Makes a runtime, and gives its ring with it where the kernel knows the flag.
    pub fn of<R>(make: impl FnOnce() -> io::Result<R>) -> io::Result<(R, Option<Ring>)> {
        let _alone = MAKING.lock().expect("nobody panics while holding it");
        let before = rings();
        let made = make()?;
        let mut new = rings().into_iter().filter(|ring| !before.contains(ring));
        let ring = match (new.next(), new.next()) {
            (Some(descriptor), None) if knows_the_flag(descriptor) => Some(Ring {
                descriptor,
                fence: eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }),
            _ => None,
        };
        Ok((made, ring))
    }
}

fn knows_the_flag(ring: RawFd) -> bool {
    // SAFETY: it submits nothing and waits for nothing; the ring was made just now.
    unsafe { io_uring_enter(BorrowedFd::borrow_raw(ring), 0, 0, NO_IOWAIT) }.is_ok()
}

/// The descriptors of rings in this thread's table.
fn rings() -> BTreeSet<RawFd> {
    let Ok(descriptors) = fs::read_dir("/proc/thread-self/fd") else {
        return BTreeSet::new();
    };
    let is_ring =
        |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[io_uring]");
    let rings = descriptors.flatten().filter(is_ring);
    rings
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// How a core sleeps on its ring: inside its runtime.
pub struct Sleeper {
    ring: RawFd,
    fence: UnixStream,
    /// The kernel has been asked for what is waited for.
    is_asked: bool,
}

impl Sleeper {
    pub fn new(ring: Ring) -> Sleeper {
        // Any stream type will do: only its readiness is asked for.
        let fence = UnixStream::from_std(StdUnixStream::from(ring.fence));
        Sleeper {
            ring: ring.descriptor,
            fence: fence.expect("the runtime takes any descriptor"),
            is_asked: false,
        }
    }

    /// Until `readable` is done, or the milliseconds are over, or a little less. Returns whether it is done; if not, it is waited
    /// for again. The runtime has nothing else to wait for.
    pub async fn sleep(
        &mut self,
        mut readable: Pin<&mut impl Future<Output = io::Result<()>>>,
        at_most_ms: Option<u64>,
    ) -> bool {
        // Which writes it to the ring, the first time.
        let mut is_done = poll_fn(|context| Poll::Ready(is_done(readable.as_mut(), context))).await;
        if !is_done {
            self.wait(u32::from(!self.is_asked), at_most_ms);
            is_done = self.take(readable).await;
        }
        self.is_asked = !is_done;
        is_done
    }

    /// Has the runtime take what has come. It does so when there is nothing else to do, and waits for nothing, since the fence is
    /// always ready.
    async fn take(&self, mut readable: Pin<&mut impl Future<Output = io::Result<()>>>) -> bool {
        let mut fence = pin!(self.fence.readable(false));
        poll_fn(|context| match is_done(readable.as_mut(), context) {
            true => Poll::Ready(true),
            false => fence.as_mut().poll(context).map(|polled| {
                polled.expect("an eventfd can be polled");
                false
            }),
        })
        .await
    }

    /// Gives the kernel so many operations off the ring, then sleeps until something has come, or the milliseconds are over, or
    /// a signal comes: the kernel does not say which where it was given any.
    fn wait(&self, to_submit: u32, at_most_ms: Option<u64>) {
        let timeout = at_most_ms.map(|ms| Timespec {
            tv_sec: (ms / 1_000) as _,
            tv_nsec: (ms % 1_000 * 1_000_000) as _,
        });
        let arg = io_uring_getevents_arg {
            sigmask: io_uring_ptr::null(),
            sigmask_sz: 0,
            min_wait_usec: 0,
            ts: match &timeout {
                Some(timeout) => io_uring_ptr::new((&raw const *timeout).cast_mut().cast()),
                None => io_uring_ptr::null(),
            },
        };
        let flags = IoringEnterFlags::GETEVENTS | IoringEnterFlags::EXT_ARG | NO_IOWAIT;
        // SAFETY: the runtime keeps the ring for as long as the process lives, and on it only what may be submitted; the
        // timeout, which the kernel reads, lives until this returns, and there is no set of signals.
        let entered = unsafe { io_uring_enter_arg(BorrowedFd::borrow_raw(self.ring), to_submit, 1, flags, Some(&arg)) };
        match entered {
            // Where the kernel has no memory for it now, the runtime asks again when it takes what has come.
            Ok(_) | Err(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
            Err(error) => panic!("a ring can be waited on: {error}"),
        }
    }
}

fn is_done(readable: Pin<&mut impl Future<Output = io::Result<()>>>, context: &mut Context<'_>) -> bool {
    match readable.poll(context) {
        Poll::Ready(polled) => {
            polled.expect("an epoll set can be polled");
            true
        }
        Poll::Pending => false,
    }
}
