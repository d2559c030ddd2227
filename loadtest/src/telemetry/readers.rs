//! Readers that page through the streams of all channels while the devices send.
//!
//! Owns    a thread for each reader.
//! Called  by `telemetry`.
//! Holds   - a reader reads one channel after the other from the start of the run to its newest datapoint, page by page, and
//!           round again;
//!         - a latency is that of one call, its body included; the wait after a refusal for the rate limit is not in it.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::Plan;
use super::stop::{Stop, Stopped};
use crate::api::{Api, Range};
use crate::pace::Pace;
use crate::report::Latency;

pub struct Readers {
    stop: Stop,
    threads: Vec<JoinHandle<Result<Reads>>>,
}

/// Of one reader.
struct Reads {
    histogram: Histogram<u64>,
    rows: u64,
    rows_max: u64,
    bytes: u64,
}

/// Of all readers.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    pub readers: u32,
    pub rows: u64,
    /// In one answer.
    pub rows_max: u64,
    pub bytes: u64,
    pub latency_us: Latency,
}

impl Readers {
    /// `None` where nobody is to read.
    pub fn start(api: &Api, plan: &Plan, readers: u32, rate: Option<u64>) -> Result<Option<Readers>> {
        let stop = Stop::default();
        let mut threads = Vec::new();
        for reader in 0..readers {
            let (api, plan, stopped) = (api.clone(), plan.clone(), stop.watch());
            let pace = rate.map(|rate| Pace::new(rate, u64::from(readers)));
            let thread = std::thread::Builder::new()
                .name(format!("reader-{reader}"))
                .spawn(move || read(&api, &plan, reader, readers, pace, &stopped))?;
            threads.push(thread);
        }
        Ok((readers > 0).then_some(Readers { stop, threads }))
    }

    pub fn stop(self) -> Result<Reading> {
        drop(self.stop);
        let mut whole = Reads::new()?;
        let readers = self.threads.len() as u32;
        for thread in self.threads {
            let reads = match thread.join() {
                Ok(reads) => reads.context("readers")?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            whole.histogram.add(&reads.histogram)?;
            whole.rows += reads.rows;
            whole.rows_max = whole.rows_max.max(reads.rows_max);
            whole.bytes += reads.bytes;
        }
        Ok(Reading {
            readers,
            rows: whole.rows,
            rows_max: whole.rows_max,
            bytes: whole.bytes,
            latency_us: Latency::of(&whole.histogram),
        })
    }
}

impl Reads {
    fn new() -> Result<Reads> {
        Ok(Reads {
            histogram: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
            rows: 0,
            rows_max: 0,
            bytes: 0,
        })
    }
}

fn read(api: &Api, plan: &Plan, reader: u32, readers: u32, pace: Option<Pace>, stopped: &Stopped) -> Result<Reads> {
    let mut reads = Reads::new()?;
    let start = Instant::now();
    // They spread over the channels.
    let mut index = (u64::from(reader) * u64::from(plan.channels) / u64::from(readers)) as u32;
    let mut from = plan.from.clone();
    loop {
        let due_ns = pace.map_or(0, |pace| pace.due_ns(u64::from(reader), reads.histogram.len()));
        if !stopped.sleep_until(start + Duration::from_nanos(due_ns)) {
            return Ok(reads);
        }
        let answer = api.stream(Range {
            channel: plan.channel(index),
            from: &from,
            until: &plan.until,
        })?;
        let rows = answer.body.matches("\"_id\"").count() as u64;
        reads.histogram.saturating_record(answer.time.as_nanos() as u64);
        reads.rows += rows;
        reads.rows_max = reads.rows_max.max(rows);
        reads.bytes += answer.body.len() as u64;
        match last_time(&answer.body) {
            Some(time) if answer.is_truncated && time != from => from = time.to_string(),
            _ => {
                index = (index + 1) % plan.channels;
                from.clone_from(&plan.from);
            }
        }
    }
}

/// The `at` of the last datapoint of an answer, without parsing all of it.
fn last_time(body: &str) -> Option<&str> {
    const KEY: &str = "\"at\":\"";
    let rest = &body[body.rfind(KEY)? + KEY.len()..];
    rest.split_once('"').map(|(time, _)| time)
}
