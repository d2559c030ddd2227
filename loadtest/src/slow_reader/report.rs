//! The figures of slow readers, for a reader and as JSON.
//!
//! Called  by `main` with what `slow_reader` gives back.
//! Holds   - a figure that was not measured (no --broker-pid) is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use super::readers::Counts;
use crate::bystanders;
use crate::memory_watch::Memory;
use crate::report::{Host, Verdict, grouped};

/// Readings of the memory that are printed; the JSON has all.
const PRINTED: usize = 12;

#[derive(Clone, Debug, Serialize)]
pub struct SlowReader {
    pub address: String,
    pub broker: Option<String>,
    pub settings: String,
    pub host: Host,
    pub counts: Counts,
    /// From the time the others were alone to the time they were alone again.
    pub memory: Option<Memory>,
    pub bystanders: bystanders::Figures,
    pub verdict: Verdict,
}

impl Display for SlowReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        let counts = &self.counts;
        writeln!(
            f,
            "slow ones    {} of {} cut off, {} bytes read while slow, over {:.1} s with catching up",
            counts.cut,
            counts.readers,
            grouped(counts.read_while_slow_bytes),
            counts.seconds
        )?;
        writeln!(
            f,
            "for them     {} messages sent, {} deliveries due, {} came, {} did not to those not cut off",
            grouped(counts.sent),
            grouped(counts.sent * u64::from(counts.readers)),
            grouped(counts.received),
            grouped(counts.dropped)
        )?;
        writeln!(
            f,
            "             doubled {}, out of order {}",
            counts.faults.doubled, counts.faults.out_of_order
        )?;
        if counts.not_sent > 0 {
            writeln!(
                f,
                "note         {} messages fell due while the broker took none, or acknowledged none, and were not sent",
                grouped(counts.not_sent)
            )?;
        }
        if let Some(memory) = &self.memory {
            writeln!(f, "memory       {memory}")?;
            let step = memory.samples.len().div_ceil(PRINTED).max(1);
            let points = memory.samples.iter().step_by(step);
            let texts = points.map(|(at_s, bytes)| format!("{at_s:.1} s {}", grouped(bytes / 1024)));
            writeln!(f, "  KiB at     {}", texts.collect::<Vec<_>>().join(", "))?;
        }
        writeln!(f, "{}", self.bystanders)?;
        self.verdict.line(f)
    }
}
