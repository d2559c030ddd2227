//! What a span of a run cost: time, CPU time on both sides, and what the broker wrote.
//!
//! Called  by the scenarios, at the start and the end of what they measure.
//! Holds   - a figure that cannot be read is absent, not 0 and not an error;
//!         - both readings of one span are taken by the same thread: its own CPU time is that of the thread.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::ClockId;
use serde::Serialize;

use crate::broker_process::{BrokerProcess, CpuTime, Io, machine_flushes};
use crate::html::Page;
use crate::report::{figure, grouped};

/// All readings of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    own_cpu: Duration,
    broker_cpu: Option<CpuTime>,
    broker_io: Option<Io>,
    machine_flushes: Option<u64>,
}

impl Reading {
    pub fn take(broker: Option<&BrokerProcess>) -> Result<Reading> {
        let own = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        Ok(Reading {
            broker_cpu: broker.map(BrokerProcess::cpu_time).transpose()?,
            broker_io: broker.and_then(BrokerProcess::io),
            machine_flushes: broker.and_then(|_| machine_flushes()),
            own_cpu: Duration::new(own.tv_sec as u64, own.tv_nsec as u32),
            at: Instant::now(),
        })
    }

    /// The span from `before` to this reading.
    pub fn since(&self, before: &Reading) -> Span {
        Span {
            time: self.at - before.at,
            own_cpu: self.own_cpu.saturating_sub(before.own_cpu),
            broker_cpu: self
                .broker_cpu
                .zip(before.broker_cpu)
                .map(|(end, begin)| end.since(begin)),
            broker_io: self
                .broker_io
                .zip(before.broker_io)
                .map(|(end, begin)| end.since(begin)),
            machine_flushes: self
                .machine_flushes
                .zip(before.machine_flushes)
                .map(|(end, begin)| end.saturating_sub(begin)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub time: Duration,
    pub own_cpu: Duration,
    pub broker_cpu: Option<CpuTime>,
    pub broker_io: Option<Io>,
    pub machine_flushes: Option<u64>,
}

impl Span {
    /// What the broker wrote, shared out among `messages`; absent when there were none.
    pub fn written(&self, messages: u64) -> Option<Written> {
        let io = self.broker_io.filter(|_| messages > 0)?;
        let each = |count: u64| count as f64 / messages as f64;
        Some(Written {
            bytes: io.write_bytes,
            bytes_per_message: each(io.write_bytes),
            call_bytes_per_message: each(io.wchar),
            calls_per_message: each(io.syscw),
            machine_flushes_per_s: self.machine_flushes.map(|n| n as f64 / self.time.as_secs_f64()),
        })
    }

    /// The costs of a span in which `messages` came or went.
    pub fn costs(&self, messages: u64) -> Costs {
        let seconds = self.time.as_secs_f64();
        let per_message_us = |time: Duration| (messages > 0).then(|| time.as_secs_f64() * 1e6 / messages as f64);
        Costs {
            broker_cpu_us: self.broker_cpu.and_then(|cpu| per_message_us(cpu.total)),
            broker_cpus: self.broker_cpu.map(|cpu| cpu.total.as_secs_f64() / seconds),
            generator_cpus: self.own_cpu.as_secs_f64() / seconds,
            written: self.written(messages),
        }
    }
}

impl Costs {
    /// Rows of a page, of the phase `of`.
    pub fn rows(&self, page: &mut Page, of: &str) {
        page.measured(&format!("Broker CPU time, {of}"), self.broker_cpu_us, "µs per message");
        page.measured(&format!("Broker CPUs, {of}"), self.broker_cpus, "kept busy");
        page.measured(&format!("Generator CPUs, {of}"), Some(self.generator_cpus), "kept busy");
        let bytes = self.written.map(|written| written.bytes_per_message);
        page.measured(&format!("Written to disk, {of}"), bytes, "bytes per message");
    }
}

/// What the broker's process wrote.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Written {
    /// To the block layer, in all.
    pub bytes: u64,
    pub bytes_per_message: f64,
    /// Through write(2) and its kin, sockets included.
    pub call_bytes_per_message: f64,
    pub calls_per_message: f64,
    /// Of all processes of this machine.
    pub machine_flushes_per_s: Option<f64>,
}

impl Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes per message to the block layer ({} KiB), by write calls {} bytes in {}",
            figure(self.bytes_per_message),
            grouped(self.bytes / 1024),
            figure(self.call_bytes_per_message),
            figure(self.calls_per_message)
        )?;
        match self.machine_flushes_per_s {
            Some(flushes) => write!(f, "; this machine's disk flushed {}/s", figure(flushes)),
            None => Ok(()),
        }
    }
}

/// The costs of one phase of a run, per message; CPUs over the whole phase, the wait for what might still come included.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Costs {
    pub broker_cpu_us: Option<f64>,
    pub broker_cpus: Option<f64>,
    pub generator_cpus: f64,
    pub written: Option<Written>,
}

impl Costs {
    /// The lines of a report.
    pub fn lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(us), Some(cpus)) = (self.broker_cpu_us, self.broker_cpus) {
            writeln!(
                f,
                "  CPU        broker {} µs per message, {cpus:.2} CPUs; generator {:.2} CPUs",
                figure(us),
                self.generator_cpus
            )?;
        }
        match self.written {
            Some(written) => writeln!(f, "  written    {written}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(io: Option<Io>) -> Span {
        Span {
            time: Duration::from_secs(2),
            own_cpu: Duration::from_secs(1),
            broker_cpu: None,
            broker_io: io,
            machine_flushes: Some(10),
        }
    }

    #[test]
    fn what_was_written_is_shared_out_among_the_messages() {
        let io = Io {
            write_bytes: 8192,
            wchar: 1000,
            syscw: 5,
        };
        let written = span(Some(io)).written(10).unwrap();
        assert_eq!((written.bytes, written.bytes_per_message), (8192, 819.2));
        assert_eq!(
            (written.call_bytes_per_message, written.calls_per_message),
            (100.0, 0.5)
        );
        assert_eq!(written.machine_flushes_per_s, Some(5.0));
    }

    #[test]
    fn what_cannot_be_read_or_shared_out_is_absent() {
        assert!(span(None).written(10).is_none());
        assert!(span(Some(Io::default())).written(0).is_none());
        let costs = span(None).costs(0);
        assert!(costs.broker_cpu_us.is_none() && costs.broker_cpus.is_none() && costs.written.is_none());
        assert_eq!(costs.generator_cpus, 0.5);
    }
}
