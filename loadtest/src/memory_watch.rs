//! The broker's memory over a span of a run, sampled by a thread of its own.
//!
//! Called  by `backlog` and `retained`, around each phase, and by `idle`, around the end.
//! Holds   - reading /proc/PID/smaps_rollup takes longer the more memory there is: at least `REST` times as long passes
//!           before the next reading, so that the broker is disturbed little;
//!         - the samples kept are bounded: when there are too many, every second one goes.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::broker_process::BrokerProcess;
use crate::report::grouped;

const EVERY: Duration = Duration::from_millis(200);
const REST: u32 = 20;
const SAMPLES_MAX: usize = 2048;

/// User memory in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    pub before: u64,
    pub min: u64,
    pub max: u64,
    pub last: u64,
    /// Seconds since the start of the span, bytes.
    pub samples: Vec<(f64, u64)>,
}

impl Memory {
    fn new(bytes: u64) -> Memory {
        Memory {
            before: bytes,
            min: bytes,
            max: bytes,
            last: bytes,
            samples: vec![(0.0, bytes)],
        }
    }

    fn add(&mut self, seconds: f64, bytes: u64) {
        if self.samples.len() == SAMPLES_MAX {
            let mut is_kept = false;
            self.samples.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
        self.samples.push((seconds, bytes));
        self.min = self.min.min(bytes);
        self.max = self.max.max(bytes);
        self.last = bytes;
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kib = |bytes: u64| grouped(bytes / 1024);
        write!(
            f,
            "{} KiB before, {} after (min {}, max {} in {} samples)",
            kib(self.before),
            kib(self.last),
            kib(self.min),
            kib(self.max),
            self.samples.len()
        )
    }
}

pub struct MemoryWatch {
    broker: BrokerProcess,
    start: Instant,
    /// Dropped to end the thread.
    end: Sender<()>,
    thread: JoinHandle<Memory>,
}

impl MemoryWatch {
    /// The first reading is that of the caller; without permission for it there is no watch.
    pub fn start(broker: Option<&BrokerProcess>) -> Result<Option<MemoryWatch>> {
        let Some((broker, bytes)) = broker.and_then(|broker| Some((broker, broker.memory_bytes().ok()?))) else {
            return Ok(None);
        };
        let mut memory = Memory::new(bytes);
        let (end, ended) = mpsc::channel::<()>();
        let (start, process) = (Instant::now(), broker.clone());
        let thread = std::thread::Builder::new().name("memory-watch".into()).spawn(move || {
            let mut pause = EVERY;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let begin = Instant::now();
                // A broker that has gone is told by whoever talks to it.
                let Ok(bytes) = process.memory_bytes() else { break };
                memory.add(start.elapsed().as_secs_f64(), bytes);
                pause = EVERY.max(begin.elapsed() * REST);
            }
            memory
        })?;
        Ok(Some(MemoryWatch {
            broker: broker.clone(),
            start,
            end,
            thread,
        }))
    }

    /// Ends with one more reading.
    pub fn stop(self) -> Memory {
        drop(self.end);
        let mut memory = self.thread.join().expect("the thread does nothing that panics");
        if let Ok(bytes) = self.broker.memory_bytes() {
            memory.add(self.start.elapsed().as_secs_f64(), bytes);
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_bounded_and_extremes_are_not_forgotten() {
        let mut memory = Memory::new(100);
        for i in 0..100_000u64 {
            memory.add(i as f64, if i == 3 { 5 } else { 100 + i });
        }
        assert!(memory.samples.len() <= SAMPLES_MAX && memory.samples.len() > SAMPLES_MAX / 4);
        assert!(memory.samples.is_sorted_by(|a, b| a.0 <= b.0));
        assert_eq!(
            (memory.before, memory.min, memory.max, memory.last),
            (100, 5, 100_099, 100_099)
        );
    }

    #[test]
    fn a_watch_reads_at_the_start_and_at_the_end() {
        let own = BrokerProcess::new(std::process::id()).unwrap();
        let memory = MemoryWatch::start(Some(&own)).unwrap().unwrap().stop();
        assert!(memory.samples.len() >= 2 && memory.min > 0, "{memory:?}");
        assert!(MemoryWatch::start(None).unwrap().is_none());
    }
}
