//! A bounded ring between exactly two threads: one pushes, one pops, neither locks, neither waits.
//!
//! Owns    the slots and the two positions; what is left in the slots is dropped with the ring.
//! Called  by `mesh` (one ring per ordered pair of cores and lane).
//! Holds   - `head <= tail <= head + capacity` in wrapping arithmetic: both only ever grow;
//!         - slots `head..tail` hold a parcel, the others hold nothing;
//!         - only the [`Producer`] writes `tail`, only the [`Consumer`] writes `head`: a slot is handed over by the Release
//!           store of one and the Acquire load of the other, so it is never touched from two sides;
//!         - each end keeps a copy of the other's position and reads the shared one only when the copy says full or empty:
//!           a batch moves each cache line once.
#![allow(unsafe_code)]

use super::Padded;
use super::atomic::{AtomicUsize, Ordering};
#[cfg(loom)]
use loom::{cell::UnsafeCell, sync::Arc};
use std::mem::MaybeUninit;
#[cfg(not(loom))]
use std::sync::Arc;

/// A ring of at least `capacity` parcels, rounded up to a power of two, so that a position becomes a slot by a mask.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity > 0, "a ring holds at least one parcel");
    let slots_count = capacity.next_power_of_two();
    let shared = Arc::new(Shared {
        head: Padded(AtomicUsize::new(0)),
        tail: Padded(AtomicUsize::new(0)),
        slots: (0..slots_count)
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
            .collect(),
    });
    let producer = Producer {
        shared: Arc::clone(&shared),
        tail: 0,
        head_seen: 0,
    };
    (
        producer,
        Consumer {
            shared,
            head: 0,
            tail_seen: 0,
        },
    )
}

/// The end that pushes.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// The shared `tail`, which only this end writes.
    tail: usize,
    /// A `head` once read: the true one is the same or further.
    head_seen: usize,
}

impl<T: Send> Producer<T> {
    /// Hands the parcel back when the ring is full.
    #[inline]
    pub fn push(&mut self, parcel: T) -> Result<(), T> {
        if !self.has_room() {
            return Err(parcel);
        }
        let slot = &self.shared.slots[self.tail & self.shared.mask()];
        // SAFETY: there is room, so `tail` is outside `head..tail`: the consumer does not read this slot before the store
        // below, and what it once held was moved out before the consumer's store of `head`, which `has_room` acquired.
        slot.with_mut(|slot| unsafe { (*slot).write(parcel) });
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Whether the next push will succeed. Only the consumer can change a `false`, nobody a `true`.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        let capacity = self.capacity();
        if self.tail.wrapping_sub(self.head_seen) < capacity {
            return true;
        }
        self.head_seen = self.shared.head.0.load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head_seen) < capacity
    }

    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }
}

/// The end that pops.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// The shared `head`, which only this end writes.
    head: usize,
    /// A `tail` once read: the true one is the same or further.
    tail_seen: usize,
}

impl<T: Send> Consumer<T> {
    /// The oldest parcel.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        let slot = &self.shared.slots[self.head & self.shared.mask()];
        // SAFETY: `head` is inside `head..tail`: the producer wrote this slot before its store of `tail`, acquired above,
        // and does not write it again before the store of `head` below. The parcel is read once: `head` moves past it.
        let parcel = slot.with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.shared.head.0.store(self.head, Ordering::Release);
        Some(parcel)
    }

    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail_seen && self.head == self.shared.tail.0.load(Ordering::Acquire)
    }
}

struct Shared<T> {
    /// Parcels popped so far.
    head: Padded<AtomicUsize>,
    /// Parcels pushed so far.
    tail: Padded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is reached from one side at a time (see "Holds" above), so sharing the ring moves parcels between two
// threads, which `T: Send` allows, and never shares one.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: whichever thread drops the ring drops the parcels in it, which `T: Send` allows.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    #[inline]
    fn mask(&self) -> usize {
        self.slots.len() - 1
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Both ends are gone and `Arc` has ordered their last stores before this: plain reads would do.
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut head = self.head.0.load(Ordering::Relaxed);
        while head != tail {
            let slot = &self.slots[head & self.mask()];
            // SAFETY: slots `head..tail` hold a parcel, nobody else can reach the ring, each is dropped once.
            slot.with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// `std`'s cell with the one method of loom's cell that is used here.
#[cfg(not(loom))]
struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_full_ring_hands_the_parcel_back() {
        let (mut producer, mut consumer) = ring(4);
        for n in 0..4 {
            assert_eq!(producer.push(n), Ok(()));
        }
        assert!(!producer.has_room());
        assert_eq!(producer.push(4), Err(4));
        assert_eq!(consumer.pop(), Some(0));
        assert!(producer.has_room());
        assert_eq!(producer.push(5), Ok(()));
        assert_eq!(std::iter::from_fn(|| consumer.pop()).collect::<Vec<_>>(), [1, 2, 3, 5]);
        assert!(consumer.is_empty());
    }

    #[test]
    fn what_is_left_in_the_ring_is_dropped_once() {
        let parcel = std::sync::Arc::new(());
        let (mut producer, mut consumer) = ring(8);
        for _ in 0..8 {
            producer.push(std::sync::Arc::clone(&parcel)).unwrap();
        }
        drop((consumer.pop(), consumer.pop()));
        producer.push(std::sync::Arc::clone(&parcel)).unwrap();
        assert_eq!(std::sync::Arc::strong_count(&parcel), 8);
        drop(producer);
        assert_eq!(std::sync::Arc::strong_count(&parcel), 8);
        drop(consumer);
        assert_eq!(std::sync::Arc::strong_count(&parcel), 1);
    }

    #[test]
    fn two_threads_see_every_parcel_once_and_in_order() {
        // Miri takes its time over each.
        const PARCELS: u64 = if cfg!(miri) { 300 } else { 30_000 };
        let (mut producer, mut consumer) = ring(16);
        let pusher = std::thread::spawn(move || {
            for n in 0..PARCELS {
                let mut parcel = Box::new(n);
                while let Err(back) = producer.push(parcel) {
                    parcel = back;
                    std::thread::yield_now();
                }
            }
        });
        for expected in 0..PARCELS {
            let got = loop {
                match consumer.pop() {
                    Some(got) => break *got,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(got, expected);
        }
        pusher.join().unwrap();
        assert!(consumer.pop().is_none());
    }

    proptest! {
        #[test]
        fn any_order_of_pushes_and_pops_is_a_bounded_queue(capacity in 1usize..9, steps in prop::collection::vec(any::<bool>(), 0..200)) {
            let (mut producer, mut consumer) = ring(capacity);
            let mut model = VecDeque::new();
            for (n, push) in steps.into_iter().enumerate() {
                if push {
                    let room = model.len() < producer.capacity();
                    prop_assert_eq!(producer.push(n).is_ok(), room);
                    if room { model.push_back(n); }
                } else {
                    prop_assert_eq!(consumer.pop(), model.pop_front());
                }
                prop_assert_eq!(consumer.is_empty(), model.is_empty());
                prop_assert_eq!(producer.has_room(), model.len() < producer.capacity());
            }
        }
    }
}

#[cfg(all(test, loom))]
#[allow(clippy::unwrap_used)]
mod model {
    use super::*;

    #[test]
    fn no_slot_is_touched_from_two_sides() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let pusher = loom::thread::spawn(move || {
                let mut pushed = 0;
                for n in 0..3 {
                    pushed += usize::from(producer.push(Box::new(n)).is_ok());
                    if pushed == n {
                        break;
                    } // The ring was full.
                }
                pushed
            });
            let mut popped = 0;
            for _ in 0..2 {
                if let Some(parcel) = consumer.pop() {
                    assert_eq!(*parcel, popped);
                    popped += 1;
                }
            }
            let pushed = pusher.join().unwrap();
            while let Some(parcel) = consumer.pop() {
                assert_eq!(*parcel, popped);
                popped += 1;
            }
            assert_eq!(popped, pushed);
        });
    }

    #[test]
    fn the_end_that_goes_last_drops_what_is_left() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let parcel = std::sync::Arc::new(());
            let (one, two) = (parcel.clone(), parcel.clone());
            let pusher = loom::thread::spawn(move || {
                let _ = producer.push(one);
                let _ = producer.push(two);
            });
            drop(consumer.pop());
            drop(consumer);
            pusher.join().unwrap();
            assert_eq!(std::sync::Arc::strong_count(&parcel), 1);
        });
    }
}
