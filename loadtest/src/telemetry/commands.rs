//! Commands: published through the HTTP API to one device after the other, and timed until the device has them.
//!
//! Owns    a thread that makes the calls (`Commander`), and what the devices were given (`Echoes`), which the thread of their
//!         connections keeps.
//! Called  by `telemetry`.
//! Holds   - command k is due at start + k / rate and goes to device k mod devices; its round trip counts from then;
//!         - a command says who it is for and when it was due: no table is shared between the threads.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::stop::Stop;
use super::{Plan, device_id};
use crate::api::Api;
use crate::pace::Pace;
use crate::packet::Publish;
use crate::report::Latency;
use crate::sequence::{Faults, Streams};

pub struct Commander {
    stop: Stop,
    thread: JoinHandle<Result<Posted>>,
}

/// What was accepted by the API.
pub struct Posted {
    count: u64,
    /// Of the schedule, by its end.
    due: u64,
    call: Histogram<u64>,
}

impl Commander {
    pub fn start(api: &Api, plan: &Plan, rate: u64, start: Instant) -> Result<Commander> {
        let stop = Stop::default();
        let stopped = stop.watch();
        let (api, pace, run, qos, devices) = (
            api.clone(),
            Pace::new(rate, 1),
            plan.run,
            plan.command_qos(),
            plan.devices,
        );
        let thread = std::thread::Builder::new().name("commander".into()).spawn(move || {
            let mut posted = Posted {
                count: 0,
                due: 0,
                call: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
            };
            loop {
                let due_ns = pace.turn_due_ns(posted.count);
                if !stopped.sleep_until(start + Duration::from_nanos(due_ns)) {
                    posted.due = pace
                        .total_due_count(start.elapsed().as_nanos() as u64)
                        .max(posted.count);
                    return Ok(posted);
                }
                let command = format!("{run:08x} {} {due_ns}", posted.count);
                let device = (posted.count % devices as u64) as usize;
                let answer = api.publish(&device_id(device), qos, &command)?;
                posted.call.saturating_record(answer.time.as_nanos() as u64);
                posted.count += 1;
            }
        })?;
        Ok(Commander { stop, thread })
    }

    pub fn stop(self) -> Result<Posted> {
        drop(self.stop);
        match self.thread.join() {
            Ok(posted) => posted.context("commands"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

pub struct Echoes {
    run: u32,
    devices: u64,
    start: Instant,
    /// Of each device, its commands.
    streams: Streams,
    round_trip: Histogram<u64>,
    received: u64,
    posted: Option<Posted>,
}

impl Echoes {
    pub fn new(plan: &Plan, start: Instant) -> Result<Echoes> {
        Ok(Echoes {
            run: plan.run,
            devices: plan.devices as u64,
            start,
            streams: Streams::new(plan.devices),
            round_trip: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
            received: 0,
            posted: None,
        })
    }

    /// A device has a message. What others publish to it is nobody's business here.
    pub fn take(&mut self, device: usize, publish: Publish<'_>) -> Result<()> {
        let now = self.start.elapsed().as_nanos() as u64;
        let Some((run, number, due_ns)) = parse(publish.payload) else {
            return Ok(());
        };
        if run != self.run {
            return Ok(());
        }
        if number % self.devices != device as u64 {
            bail!("command {number}, which was for another device");
        }
        self.streams.receive(device, number / self.devices);
        self.round_trip.saturating_record(now.saturating_sub(due_ns));
        self.received += 1;
        Ok(())
    }

    /// No command is posted any more.
    pub fn posted(&mut self, posted: Posted) {
        self.posted = Some(posted);
    }

    pub fn is_waiting(&self) -> bool {
        self.posted.as_ref().is_some_and(|posted| self.received < posted.count)
    }

    pub fn figures(mut self) -> Option<Commands> {
        let posted = self.posted.take()?;
        for device in 0..self.devices {
            let count = (posted.count + self.devices - 1 - device) / self.devices;
            self.streams.finish(device as usize, count);
        }
        Some(Commands {
            due: posted.due,
            posted: posted.count,
            received: self.received,
            faults: self.streams.faults(),
            call_us: Latency::of(&posted.call),
            round_trip_us: Latency::of(&self.round_trip),
        })
    }
}

fn parse(payload: &[u8]) -> Option<(u32, u64, u64)> {
    let mut words = std::str::from_utf8(payload).ok()?.split(' ');
    let run = u32::from_str_radix(words.next()?, 16).ok()?;
    Some((run, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// What became of the commands.
#[derive(Clone, Debug, Serialize)]
pub struct Commands {
    pub due: u64,
    /// Fewer than were due: a call takes longer than there is time between two commands.
    pub posted: u64,
    pub received: u64,
    pub faults: Faults,
    /// Of the POST.
    pub call_us: Latency,
    /// From the time it was due to the device.
    pub round_trip_us: Latency,
}
