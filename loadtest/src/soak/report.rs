//! The figures of a soak, for a reader and as JSON.
//!
//! Called  by `soak::engine`, and by `main` with what it gives back.
//! Holds   - a figure that was not measured (no --broker-pid) is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::acknowledgement::AcknowledgementFaults;
use crate::report::{Host, Latency, Verdict, figure, grouped};
use crate::sequence::Faults;

#[derive(Clone, Debug, Serialize)]
pub struct Soak {
    pub address: String,
    pub broker: Option<String>,
    pub settings: String,
    pub host: Host,
    pub seconds: f64,
    pub sent: u64,
    pub received: u64,
    pub received_per_s: f64,
    /// Due while their pair was quiet for a change of its subscriber, or while too many were unacknowledged.
    pub not_sent: u64,
    /// Of messages to subscribers who were there when they were due.
    pub latency_us: Latency,
    /// By QoS.
    pub faults: [Faults; 3],
    pub acknowledgements: AcknowledgementFaults,
    /// Came again as the protocol allows after a connection was lost.
    pub redelivered: u64,
    pub foreign: u64,
    pub comings_back: u64,
    /// Kept Sessions the broker did not know any more.
    pub sessions_lost: u64,
    pub retained_set: u64,
    pub retained_read: u64,
    /// Older than one that had been acknowledged before the visitor asked.
    pub retained_stale: u64,
    /// None with the retain flag came to a visitor within 5 s.
    pub retained_missing: u64,
    pub broker_cpu_us: Option<f64>,
    pub generator_cpus: f64,
    pub memory: Option<MemoryOverTime>,
    pub lines: Vec<Line>,
    /// Why the run ended before its time.
    pub failure: Option<String>,
    pub verdict: Verdict,
}

/// User memory of the broker.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryOverTime {
    /// Seconds, bytes.
    pub samples: Vec<(f64, u64)>,
    /// Least squares over the second half.
    pub slope_bytes_per_hour: Option<f64>,
}

/// How it went since the last line.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Line {
    pub at_s: f64,
    pub received_per_s: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub broker_bytes: Option<u64>,
    pub broker_cpus: Option<f64>,
    /// Since the start.
    pub faults: u64,
    pub comings_back: u64,
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8.1} s  {:>9}/s  p99 {:>7} µs  max {:>8} µs  faults {}  back {}",
            self.at_s,
            grouped(self.received_per_s.round() as u64),
            figure(self.p99_us),
            figure(self.max_us),
            self.faults,
            grouped(self.comings_back)
        )?;
        if let Some(bytes) = self.broker_bytes {
            write!(f, "  memory {} KiB", grouped(bytes / 1024))?;
        }
        match self.broker_cpus {
            Some(cpus) => write!(f, "  {cpus:.3} CPUs"),
            None => Ok(()),
        }
    }
}

impl Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        writeln!(
            f,
            "delivered    {}/s ({} in {:.1} s)",
            grouped(self.received_per_s.round() as u64),
            grouped(self.received),
            self.seconds
        )?;
        writeln!(f, "latency µs   {}", self.latency_us)?;
        if let Some(us) = self.broker_cpu_us {
            writeln!(
                f,
                "broker       {} µs CPU per delivered message, all else included",
                figure(us)
            )?;
        }
        writeln!(f, "generator    {:.2} CPUs", self.generator_cpus)?;
        if let Some(memory) = &self.memory {
            let bytes = memory.samples.iter().map(|sample| sample.1);
            let (min, max) = (bytes.clone().min().unwrap_or(0), bytes.max().unwrap_or(0));
            write!(f, "memory       {} to {} KiB", grouped(min / 1024), grouped(max / 1024))?;
            match memory.slope_bytes_per_hour {
                Some(slope) => {
                    let sign = if slope < 0.0 { "-" } else { "+" };
                    writeln!(
                        f,
                        ", {sign}{} KiB per hour over the second half",
                        grouped((slope.abs() / 1024.0).round() as u64)
                    )?;
                }
                None => writeln!(f, ", too few readings for a slope")?,
            }
        }
        writeln!(
            f,
            "sessions     {} comings back, {} Sessions lost, {} messages came again as they may",
            grouped(self.comings_back),
            self.sessions_lost,
            grouped(self.redelivered)
        )?;
        writeln!(
            f,
            "retained     {} set, {} read, {} of them stale, {} did not come",
            grouped(self.retained_set),
            grouped(self.retained_read),
            self.retained_stale,
            self.retained_missing
        )?;
        writeln!(
            f,
            "whole run    sent {}, received {}",
            grouped(self.sent),
            grouped(self.received)
        )?;
        for (qos, faults) in self.faults.iter().enumerate() {
            writeln!(
                f,
                "  QoS {qos}      missing {}, doubled {}, out of order {}",
                faults.missing, faults.doubled, faults.out_of_order
            )?;
        }
        self.acknowledgements.line(f)?;
        for (count, what) in [
            (self.foreign, "messages of another run were ignored"),
            (
                self.not_sent,
                "messages fell due while their pair was quiet, or waited for acknowledgements, and were not sent",
            ),
        ] {
            if count > 0 {
                writeln!(f, "note         {} {what}", grouped(count))?;
            }
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "FAILED       the run ended early: {failure}")?;
        }
        self.verdict.line(f)
    }
}
