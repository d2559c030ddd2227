//! The figures of a soak, for a reader and as JSON.
//!
//! Called  by `soak::engine`, and by `main` with what it gives back.
//! Holds   - a figure that was not measured (no --broker-pid) is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::acknowledgement::AcknowledgementFaults;
use crate::html::{Curves, Page};
use crate::report::{Figures, Host, Latency, Verdict, figure, grouped};
use crate::sequence::Faults;
use crate::timeline::{Memory, Timeline};

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
    pub wills: WillFigures,
    pub broker_cpu_us: Option<f64>,
    pub generator_cpus: f64,
    /// Of the broker, under load.
    pub memory: Option<Memory>,
    /// Least squares over the second half.
    pub slope_bytes_per_hour: Option<f64>,
    pub timeline: Timeline,
    pub lines: Vec<Line>,
    /// Why the run ended before its time.
    pub failure: Option<String>,
    pub verdict: Verdict,
}

/// Of clients that came with a Will.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct WillFigures {
    /// Who went with DISCONNECT, and without: Wills of the latter are due.
    pub kept: u64,
    pub left: u64,
    pub received: u64,
    /// Due and not received.
    pub missing: u64,
    /// Came twice, or though its client had sent DISCONNECT.
    pub unexpected: u64,
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

fn signed_kib(bytes: f64) -> String {
    let sign = if bytes < 0.0 { "-" } else { "+" };
    format!("{sign}{}", grouped((bytes.abs() / 1024.0).round() as u64))
}

impl Figures for Soak {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            "soak",
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        let by_qos = self.faults.iter().enumerate();
        let by_qos = by_qos.map(|(qos, faults)| format!("; QoS {qos} {faults}"));
        let counts = format!(
            "{} messages sent, {} received, {} Sessions lost, {} retained messages stale, {} missing, {} Wills missing, {} \
             unexpected{}{}",
            grouped(self.sent),
            grouped(self.received),
            self.sessions_lost,
            self.retained_stale,
            self.retained_missing,
            self.wills.missing,
            self.wills.unexpected,
            by_qos.collect::<String>(),
            self.acknowledgements.told()
        );
        page.verdict = match &self.failure {
            Some(failure) => format!("The run ended early: {failure}; {counts}."),
            None => self.verdict.sentence(&counts),
        };
        page.count("Delivered", self.received_per_s.round() as u64, "messages/s");
        page.measured("Load", Some(self.seconds), "s");
        page.measured(
            "Broker CPU time, all else included",
            self.broker_cpu_us,
            "µs per delivered message",
        );
        if let Some(memory) = &self.memory {
            memory.row(&mut page, "under load");
        }
        if let Some(slope) = self.slope_bytes_per_hour {
            page.figure("  its growth over the second half", signed_kib(slope), "KiB per hour");
        }
        page.measured("Generator CPUs", Some(self.generator_cpus), "kept busy");
        page.count("Comings back", self.comings_back, "");
        page.count("Sessions lost", self.sessions_lost, "");
        page.count("Came again, as messages may", self.redelivered, "messages");
        page.count("Retained messages set", self.retained_set, "");
        page.count("Retained messages read", self.retained_read, "");
        page.count("  of them stale", self.retained_stale, "");
        page.count("Retained messages that did not come", self.retained_missing, "");
        page.count("Wills left", self.wills.left, "");
        page.count("Wills received", self.wills.received, "");
        page.count("  of them twice, or after DISCONNECT", self.wills.unexpected, "");
        page.count("Wills that did not come", self.wills.missing, "");
        for (what, count) in [
            ("Messages of another run", self.foreign),
            ("Due and not sent", self.not_sent),
        ] {
            if count > 0 {
                page.count(what, count, "");
            }
        }
        page.latencies = vec![Curves::new("From PUBLISH").with("delivered", Some(&self.latency_us))];
        page.timeline(&self.timeline);
        page
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
            let (min, max) = (grouped(memory.min / 1024), grouped(memory.max / 1024));
            write!(f, "memory       {min} to {max} KiB")?;
            match self.slope_bytes_per_hour {
                Some(slope) => writeln!(f, ", {} KiB per hour over the second half", signed_kib(slope))?,
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
            "wills        {} left and {} kept by DISCONNECT, {} received, {} unexpected, {} did not come",
            grouped(self.wills.left),
            grouped(self.wills.kept),
            grouped(self.wills.received),
            self.wills.unexpected,
            self.wills.missing
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
