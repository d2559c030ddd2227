//! The figures of slow readers, for a reader and as JSON.
//!
//! Called  by `main` with what `slow_reader` gives back.
//! Holds   - a figure that was not measured (no --broker-pid) is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use super::readers::Counts;
use crate::bystanders;
use crate::html::Page;
use crate::report::{Figures, Host, Verdict, grouped};
use crate::timeline::{Memory, Timeline};

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
    pub timeline: Timeline,
    pub verdict: Verdict,
}

impl Figures for SlowReader {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            "slow-reader",
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        let counts = &self.counts;
        page.verdict = self.verdict.sentence(&format!(
            "{} of {} slow readers cut off, doubled {}, out of order {}",
            counts.cut, counts.readers, counts.faults.doubled, counts.faults.out_of_order
        ));
        page.count("Cut off", counts.cut.into(), "slow readers");
        page.count("Read while slow", counts.read_while_slow_bytes, "bytes");
        page.measured("Slow, catching up included", Some(counts.seconds), "s");
        page.count("Sent to the slow ones", counts.sent, "messages");
        let due = counts.sent * u64::from(counts.readers);
        page.count("Due to them", due, "deliveries");
        page.count("Came to them", counts.received, "deliveries");
        page.count("Did not come to those not cut off", counts.dropped, "deliveries");
        if counts.not_sent > 0 {
            page.count("Due while the broker took none", counts.not_sent, "messages");
        }
        if let Some(memory) = &self.memory {
            memory.row(&mut page, "whole run");
        }
        self.bystanders.show(&mut page, "The others", "the slow ones");
        page.timeline(&self.timeline);
        page
    }
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
            let samples = self.timeline.samples.iter();
            let read: Vec<_> = samples
                .filter_map(|sample| Some((sample.seconds, sample.broker_bytes?)))
                .collect();
            let points = read.iter().step_by(read.len().div_ceil(PRINTED).max(1));
            let texts = points.map(|(at_s, bytes)| format!("{at_s:.1} s {}", grouped(bytes / 1024)));
            writeln!(f, "  KiB at     {}", texts.collect::<Vec<_>>().join(", "))?;
        }
        writeln!(f, "{}", self.bystanders)?;
        self.verdict.line(f)
    }
}
