//! A global allocator that counts: the heap a structure holds, as the difference of two readings.
//!
//! Counts the bytes this thread asked for, not what the allocator rounds them up to: a test harness's other threads do
//! not disturb the count, and what is measured must be freed by the thread that made it. Used by `tests/memory`, `benches/routing`
//! and `benches/ingest`.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

pub struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    HELD.set(HELD.get().wrapping_add(more).wrapping_sub(less));
    LARGEST.set(LARGEST.get().max(more));
}

/// Bytes allocated less bytes freed, by this thread.
pub fn held_bytes() -> usize {
    HELD.get()
}

/// The largest single request since the last call.
pub fn largest_request_bytes() -> usize {
    LARGEST.replace(0)
}

// SAFETY: every call is passed to `System` unchanged; counting touches no memory it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.realloc(memory, layout, size) }
    }
}
