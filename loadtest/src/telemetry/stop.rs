//! How the threads beside the devices learn that they are to end.
//!
//! Called  by `commands` and `readers`.
//! Holds   - a `Stop` that is dropped has stopped them: a run that fails leaves no thread behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a thread sleeps without looking whether it is to end.
const NAP: Duration = Duration::from_millis(20);

#[derive(Default)]
pub struct Stop(Arc<AtomicBool>);

/// The thread's end.
#[derive(Clone)]
pub struct Stopped(Arc<AtomicBool>);

impl Stop {
    pub fn watch(&self) -> Stopped {
        Stopped(self.0.clone())
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Stopped {
    /// False when the thread is to end instead.
    pub fn sleep_until(&self, time: Instant) -> bool {
        loop {
            if self.0.load(Ordering::Acquire) {
                return false;
            }
            match time.checked_duration_since(Instant::now()) {
                Some(wait) if !wait.is_zero() => std::thread::sleep(wait.min(NAP)),
                _ => return true,
            }
        }
    }
}
