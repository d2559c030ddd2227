//! What the threads of a run share: who has which clients, the common start and end, and the credits that cross threads.
//!
//! Owns    the shares, one mailbox for each thread, and what each thread tells about how far it is.
//! Called  by `throughput::generator`.
//! Holds   - a message may be published in one thread and received in another: the receiver checks it, and what it gives back
//!           to the publisher's window goes to the publisher's thread by mailbox, once a turn;
//!         - nobody publishes before everybody has subscribed, nobody leaves before everybody is done or gives up;
//!         - plain values cross threads; the descriptors of the mailboxes are opened before the threads begin, and so are
//!           in the descriptor table of each.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

const START_POLL: Duration = Duration::from_micros(500);

/// The clients of one thread.
#[derive(Clone, Debug)]
pub struct Share {
    pub thread: usize,
    pub publishers: Range<usize>,
    pub subscribers: Range<usize>,
}

/// Deliveries a publisher need not wait for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    pub publisher: u32,
    pub deliveries: u64,
}

pub struct Mailbox {
    credits: Mutex<Vec<Credit>>,
    pub wake: OwnedFd,
}

/// Written by its thread alone; on a cache line of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
pub struct Cell {
    pub received: AtomicU64,
    /// When anything was received last.
    pub heard_ns: AtomicU64,
}

pub struct Shared {
    pub cells: Vec<Cell>,
    pub mailboxes: Vec<Mailbox>,
    publishers: usize,
    ready: AtomicUsize,
    start: OnceLock<Instant>,
    /// Threads with messages under way.
    pub undone: AtomicUsize,
    is_stopped: AtomicBool,
}

impl Shared {
    pub fn new(threads: usize, publishers: usize) -> Result<Shared> {
        let mailbox = || -> Result<Mailbox> {
            Ok(Mailbox {
                credits: Mutex::default(),
                wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            })
        };
        Ok(Shared {
            cells: (0..threads).map(|_| Cell::default()).collect(),
            mailboxes: (0..threads).map(|_| mailbox()).collect::<Result<_>>()?,
            publishers,
            ready: AtomicUsize::new(0),
            start: OnceLock::new(),
            undone: AtomicUsize::new(threads),
            is_stopped: AtomicBool::new(false),
        })
    }

    pub fn threads(&self) -> usize {
        self.cells.len()
    }

    /// The thread a publisher belongs to.
    pub fn owner(&self, publisher: usize) -> usize {
        let (each, longer) = (self.publishers / self.threads(), self.publishers % self.threads());
        if publisher < longer * (each + 1) {
            publisher / (each + 1)
        } else {
            longer + (publisher - longer * (each + 1)) / each.max(1)
        }
    }

    /// Waits until all threads are here; the start they share. `None`: another one has failed.
    pub fn start_together(&self) -> Option<Instant> {
        if self.ready.fetch_add(1, Ordering::AcqRel) + 1 == self.threads() {
            // Only the last to come gets here.
            let _ = self.start.set(Instant::now());
        }
        loop {
            if let Some(start) = self.start.get() {
                return Some(*start);
            }
            if self.is_stopped() {
                return None;
            }
            thread::sleep(START_POLL);
        }
    }

    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
    }

    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    pub fn received(&self) -> u64 {
        self.cells
            .iter()
            .map(|cell| cell.received.load(Ordering::Relaxed))
            .sum()
    }

    pub fn heard_ns(&self) -> u64 {
        let heard = self.cells.iter().map(|cell| cell.heard_ns.load(Ordering::Relaxed));
        heard.max().unwrap_or(0)
    }
}

impl Mailbox {
    /// Empties `credits` into it.
    pub fn post(&self, credits: &mut Vec<Credit>) {
        let mut waiting = self.credits.lock().expect("no thread panics while it holds this lock");
        let was_empty = waiting.is_empty();
        waiting.append(credits);
        drop(waiting);
        if was_empty {
            // An eventfd that is set already wakes as well.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Empties it into `credits`.
    pub fn collect(&self, credits: &mut Vec<Credit>) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::swap(
            credits,
            &mut *self.credits.lock().expect("no thread panics while it holds this lock"),
        );
    }
}

/// Part `part` of `parts` of 0..`count`: their lengths differ by one at most.
pub fn range_of(count: usize, part: usize, parts: usize) -> Range<usize> {
    let first = |part: usize| count / parts * part + part.min(count % parts);
    first(part)..first(part + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_publisher_has_one_owner_and_it_is_the_one_whose_range_holds_it() {
        for (count, threads) in [(1, 1), (1, 4), (10, 3), (1000, 7), (8, 8), (3, 5)] {
            let shared = Shared::new(threads, count).unwrap();
            let ranges: Vec<_> = (0..threads).map(|thread| range_of(count, thread, threads)).collect();
            assert_eq!((ranges[0].start, ranges[threads - 1].end), (0, count));
            for publisher in 0..count {
                assert!(
                    ranges[shared.owner(publisher)].contains(&publisher),
                    "{publisher} of {count}"
                );
            }
        }
    }

    #[test]
    fn a_mailbox_gives_all_that_was_posted_and_wakes_once_for_it() {
        let shared = Shared::new(1, 1).unwrap();
        let mailbox = &shared.mailboxes[0];
        let credit = |deliveries| Credit {
            publisher: 0,
            deliveries,
        };
        let mut out = vec![credit(1)];
        mailbox.post(&mut out);
        out.push(credit(2));
        mailbox.post(&mut out);
        assert!(out.is_empty());
        let mut woken = [0; 8];
        assert_eq!(rustix::io::read(&mailbox.wake, &mut woken), Ok(8));
        assert_eq!(u64::from_ne_bytes(woken), 1);
        let mut got = Vec::new();
        mailbox.collect(&mut got);
        assert_eq!(got, [credit(1), credit(2)]);
    }

    #[test]
    fn a_thread_that_waits_for_the_start_leaves_when_another_fails() {
        let shared = Shared::new(2, 2).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| shared.start_together());
            shared.stop();
            assert!(waiting.join().unwrap().is_none());
        });
    }
}
