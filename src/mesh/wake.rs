//! Waking a core that sleeps in its poller, and making no system call when it does not.
//!
//! Owns    one eventfd per core and the word that says whether its core sleeps.
//! Called  by every thread that gives a core something to do ([`Bell::ring`]: cores through `mesh`, the signal thread, the
//!         control thread), and by the core itself around its wait.
//! Holds   - work is made visible first, the bell is rung after; the core says it sleeps first, looks for work after. Each
//!           side has a SeqCst fence between the two, so at least one of them sees the other: no wake-up is lost;
//!         - one write to the eventfd per sleep at most, whoever and however many ring;
//!         - each write is read back in the end, so a level-triggered poller does not spin: a ringer that was delayed
//!           between its word and its write is remembered in `unread`.
//!
//! ```text
//! ringer:  push work ─▶ fence ─▶ is it SLEEPING? ─▶ RUNG, write the eventfd
//! core:    SLEEPING ─▶ fence ─▶ look for work ─▶ wait for the eventfd ─▶ AWAKE, read the eventfd if it was RUNG
//! ```

use super::Padded;
use super::atomic::{AtomicU8, Ordering, fence};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const AWAKE: u8 = 0;
const SLEEPING: u8 = 1;
/// A ringer has taken it on itself to write the eventfd, and nobody else will.
const RUNG: u8 = 2;

/// The bell of one core, shared with everybody who may wake it.
pub struct Bell {
    state: Padded<AtomicU8>,
    wake_fd: WakeFd,
    /// Writes to the eventfd announced by RUNG and not read yet. Only the core touches it.
    unread: std::sync::atomic::AtomicU64,
}

impl Bell {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Padded(AtomicU8::new(AWAKE)),
            wake_fd: WakeFd::new()?,
            unread: 0.into(),
        })
    }

    /// Any thread, after the work was made visible (pushed, or stored with Release): wakes the core if it sleeps.
    #[inline]
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        self.ring_after_fence();
    }

    /// [`Bell::ring`] for a caller that rings several bells after one SeqCst fence of its own.
    #[inline]
    pub(super) fn ring_after_fence(&self) {
        if self.state.0.load(Ordering::Relaxed) == SLEEPING {
            self.ring_sleeper();
        }
    }

    #[cold]
    fn ring_sleeper(&self) {
        // Release: the core acquires in `woken`, so whoever waits for the fd has the ringer's work in sight.
        if self
            .state
            .0
            .compare_exchange(SLEEPING, RUNG, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            self.wake_fd.write();
        }
    }

    /// The core only: announces the sleep. Afterwards look for work once more; if there is any, [`Bell::cancel_sleep`],
    /// else wait until [`Bell::as_fd`] is readable (or anything else happens), then [`Bell::woken`].
    #[inline]
    pub fn prepare_sleep(&self) {
        self.state.0.store(SLEEPING, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The core only: there was work, no wait took place.
    #[inline]
    pub fn cancel_sleep(&self) {
        self.woken();
    }

    /// The core only, after every wait, whatever ended it. True when the bell was rung.
    #[inline]
    pub fn woken(&self) -> bool {
        let rung = self.state.0.swap(AWAKE, Ordering::AcqRel) == RUNG;
        let unread = self.unread.load(Ordering::Relaxed) + u64::from(rung);
        if unread > 0 {
            // The ringer may not have written yet: then the next sleep ends at once, and reads it.
            self.unread.store(unread - self.wake_fd.read(), Ordering::Relaxed);
        }
        rung
    }
}

#[cfg(not(loom))]
impl AsFd for Bell {
    /// Readable when the core must wake: for the core's own poller. Nobody but the bell reads or writes it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.0.as_fd()
    }
}

#[cfg(not(loom))]
struct WakeFd(std::os::fd::OwnedFd);

#[cfg(not(loom))]
impl WakeFd {
    fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn write(&self) {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes()));
        assert_eq!(
            written,
            Ok(8),
            "an open eventfd below its 2^64 takes a count: a bell that cannot ring strands its core"
        );
    }

    /// The count of the writes since the last read.
    fn read(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut count)) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => panic!("an open eventfd can be read: {error}"),
        }
    }
}

/// The eventfd in the model: a wait that nobody ends is a deadlock, which loom reports.
#[cfg(loom)]
struct WakeFd(loom::sync::Mutex<u64>, loom::sync::Condvar);

#[cfg(loom)]
impl WakeFd {
    fn new() -> io::Result<Self> {
        Ok(Self(loom::sync::Mutex::new(0), loom::sync::Condvar::new()))
    }

    fn write(&self) {
        *self.0.lock().expect("no thread of the model panics with it") += 1;
        self.1.notify_one();
    }

    fn read(&self) -> u64 {
        std::mem::take(&mut *self.0.lock().expect("no thread of the model panics with it"))
    }
}

#[cfg(loom)]
impl Bell {
    /// What the poller does: returns when the fd is readable.
    #[cfg(test)]
    pub(super) fn wait(&self) {
        let mut count = self.wake_fd.0.lock().unwrap();
        while *count == 0 {
            count = self.wake_fd.1.wait(count).unwrap();
        }
    }

    #[cfg(test)]
    pub(super) fn is_readable(&self) -> bool {
        *self.wake_fd.0.lock().unwrap() > 0
    }
}
#[cfg(loom)]
impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("the model has no file descriptors")
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn is_readable(bell: &Bell) -> bool {
        poll(
            &mut [PollFd::new(bell, PollFlags::IN)],
            Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
        )
        .unwrap()
            == 1
    }

    #[test]
    fn a_bell_rung_while_its_core_is_awake_writes_nothing() {
        let bell = Bell::new().unwrap();
        bell.ring();
        assert!(!is_readable(&bell));
    }

    #[test]
    fn many_rings_of_one_sleep_write_once_and_leave_nothing_behind() {
        let bell = Bell::new().unwrap();
        bell.prepare_sleep();
        assert!(!is_readable(&bell));
        bell.ring();
        bell.ring();
        assert_eq!(bell.wake_fd.read(), 1);
        bell.wake_fd.write();
        assert!(is_readable(&bell));
        assert!(bell.woken());
        assert!(!is_readable(&bell));
        assert!(!bell.woken());
    }

    #[test]
    fn a_cancelled_sleep_that_was_rung_leaves_nothing_behind() {
        let bell = Bell::new().unwrap();
        bell.prepare_sleep();
        bell.ring();
        bell.cancel_sleep();
        assert!(!is_readable(&bell));
    }

    #[test]
    fn a_write_that_comes_after_the_core_is_up_is_read_at_the_next_wake() {
        let bell = Bell::new().unwrap();
        bell.prepare_sleep();
        bell.state.0.store(RUNG, Ordering::Release); // The ringer is delayed here.
        assert!(bell.woken());
        bell.wake_fd.write();
        bell.prepare_sleep();
        assert!(is_readable(&bell), "one wake-up for nothing");
        assert!(!bell.woken());
        assert!(!is_readable(&bell), "and only one");
    }

    #[test]
    fn a_core_that_sleeps_after_every_item_gets_them_all() {
        const ITEMS: u64 = 20_000;
        let bell = Arc::new(Bell::new().unwrap());
        let work = Arc::new(AtomicU64::new(0));
        let ringer = {
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            std::thread::spawn(move || {
                for _ in 0..ITEMS {
                    work.fetch_add(1, Ordering::Release);
                    bell.ring();
                }
            })
        };
        let mut done = 0;
        while done < ITEMS {
            bell.prepare_sleep();
            if work.load(Ordering::Acquire) == done {
                let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
                let readable = poll(&mut [PollFd::new(&*bell, PollFlags::IN)], Some(&timeout)).unwrap();
                assert_eq!(readable, 1, "a wake-up was lost at {done}");
            }
            bell.woken();
            done = work.load(Ordering::Acquire);
        }
        ringer.join().unwrap();
    }
}
