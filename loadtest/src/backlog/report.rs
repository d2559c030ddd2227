//! The figures of a backlog, for a reader and as JSON.
//!
//! Called  by `main` with what the scenario gives back.
//! Holds   - a phase that another invocation runs, and a figure that was not measured, is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::acknowledgement::AcknowledgementFaults;
use crate::html::{Curves, Page};
use crate::meter::Costs;
use crate::report::{Figures, Host, Latency, Verdict, figure, grouped};
use crate::sequence::Faults;
use crate::timeline::{Memory, Timeline};

#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    pub address: String,
    pub broker: Option<String>,
    pub settings: String,
    pub host: Host,
    /// The tag of the run, in the names of its sessions and topics.
    pub run: String,
    pub is_left_queued: bool,
    pub queueing: Option<Queueing>,
    pub draining: Option<Draining>,
    pub acknowledgements: AcknowledgementFaults,
    pub timeline: Timeline,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Queueing {
    /// From the first PUBLISH to the end of the last flow.
    pub seconds: f64,
    pub acknowledged: u64,
    pub acknowledged_per_s: f64,
    pub acknowledgement_us: Latency,
    /// Messages × the sessions each waits for.
    pub deliveries: u64,
    pub memory: Option<Memory>,
    /// Per acknowledged message.
    pub costs: Costs,
}

#[derive(Clone, Debug, Serialize)]
pub struct Draining {
    /// From the first CONNECT to the last message.
    pub seconds: f64,
    pub received: u64,
    pub received_per_s: f64,
    pub live_sent: Option<u64>,
    pub sessions_drained: u64,
    /// Answered without Session Present.
    pub sessions_lost: u64,
    /// Over the sessions, from CONNECT.
    pub first_message_us: Latency,
    pub drained_us: Latency,
    pub foreign: u64,
    pub faults: Faults,
    pub memory: Option<Memory>,
    /// Per delivered message.
    pub costs: Costs,
}

impl Draining {
    pub fn is_broken(&self) -> bool {
        self.faults != Faults::default() || self.sessions_lost > 0
    }
}

impl Display for Queueing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "queueing     {} acknowledged/s ({} in {:.2} s), {} deliveries wait",
            grouped(self.acknowledged_per_s.round() as u64),
            grouped(self.acknowledged),
            self.seconds,
            grouped(self.deliveries)
        )?;
        writeln!(f, "  ack µs     {}", self.acknowledgement_us)?;
        if let Some(memory) = &self.memory {
            writeln!(f, "  memory     {memory}")?;
            let grown = memory.last.saturating_sub(memory.before) as f64;
            writeln!(
                f,
                "             grown by {} bytes per message, {} per delivery that waits",
                figure(grown / self.acknowledged.max(1) as f64),
                figure(grown / self.deliveries.max(1) as f64)
            )?;
        }
        self.costs.lines(f)
    }
}

impl Display for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "draining     {} delivered/s ({} in {:.2} s)",
            grouped(self.received_per_s.round() as u64),
            grouped(self.received),
            self.seconds
        )?;
        match self.live_sent {
            Some(sent) => writeln!(f, ", {} messages were sent meanwhile", grouped(sent))?,
            None => writeln!(f)?,
        }
        // A session's first message, and its last queued one.
        if self.first_message_us.count > 0 {
            writeln!(f, "  first µs   {} after CONNECT", self.first_message_us)?;
        }
        if self.drained_us.count > 0 {
            let sessions = grouped(self.sessions_drained);
            writeln!(f, "  whole µs   {} ({sessions} sessions)", self.drained_us)?;
        }
        if let Some(memory) = &self.memory {
            writeln!(f, "  memory     {memory}")?;
        }
        self.costs.lines(f)?;
        let Faults {
            missing,
            doubled,
            out_of_order,
        } = self.faults;
        writeln!(
            f,
            "checked      missing {missing}, doubled {doubled}, out of order {out_of_order}, sessions lost {}",
            self.sessions_lost
        )?;
        if self.foreign > 0 {
            writeln!(f, "note         {} messages of another run were ignored", self.foreign)?;
        }
        Ok(())
    }
}

impl Figures for Backlog {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            "backlog",
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        let drained = self.draining.as_ref().map_or(String::from("left queued"), |draining| {
            format!(
                "{} delivered to {} sessions, {}, sessions lost {}",
                grouped(draining.received),
                grouped(draining.sessions_drained),
                draining.faults,
                draining.sessions_lost
            )
        });
        page.verdict = self
            .verdict
            .sentence(&format!("{drained}{}", self.acknowledgements.told()));
        if let Some(queueing) = &self.queueing {
            page.count("Queued", queueing.acknowledged_per_s.round() as u64, "acknowledged/s");
            page.measured("Queued in", Some(queueing.seconds), "s");
            page.count("Deliveries that wait", queueing.deliveries, "");
            queueing.costs.rows(&mut page, "queueing");
            if let Some(memory) = &queueing.memory {
                memory.row(&mut page, "queueing");
            }
            let latency = Some(&queueing.acknowledgement_us);
            page.latencies
                .push(Curves::new("From PUBLISH").with("acknowledged", latency));
        }
        if let Some(draining) = &self.draining {
            page.count("Drained", draining.received_per_s.round() as u64, "messages/s");
            page.measured("Drained in", Some(draining.seconds), "s");
            if let Some(sent) = draining.live_sent {
                page.count("Live messages meanwhile", sent, "");
            }
            draining.costs.rows(&mut page, "draining");
            if let Some(memory) = &draining.memory {
                memory.row(&mut page, "draining");
            }
            let curves = Curves::new("From CONNECT of a session")
                .with("first message", Some(&draining.first_message_us))
                .with("all it had queued", Some(&draining.drained_us));
            page.latencies.push(curves);
        }
        page.timeline(&self.timeline);
        page
    }
}

impl Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        if let Some(queueing) = &self.queueing {
            write!(f, "{queueing}")?;
        }
        if let Some(draining) = &self.draining {
            write!(f, "{draining}")?;
        }
        if self.is_left_queued {
            writeln!(
                f,
                "left queued  drain it with the same flags and --drain-only {}",
                self.run
            )?;
        }
        self.acknowledgements.line(f)?;
        self.verdict.line(f)
    }
}
