//! The figures of a run with retained messages, for a reader and as JSON.
//!
//! Called  by `main` with what the scenario gives back.
//! Holds   - a phase that another invocation ran, and a figure that was not measured, is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use super::board::Faults;
use crate::acknowledgement::AcknowledgementFaults;
use crate::html::{Curves, Page};
use crate::meter::Costs;
use crate::report::{Figures, Host, Latency, Verdict, figure, grouped};
use crate::timeline::{Memory, Timeline};

#[derive(Clone, Debug, Serialize)]
pub struct Retained {
    pub address: String,
    pub broker: Option<String>,
    pub settings: String,
    pub host: Host,
    /// The tag of the run, in the names of its topics.
    pub run: String,
    pub is_kept: bool,
    pub setting: Option<Setting>,
    pub reading: Reading,
    pub acknowledgements: AcknowledgementFaults,
    pub timeline: Timeline,
    pub cleared_seconds: Option<f64>,
    pub broker_bytes_cleared: Option<u64>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// From the first PUBLISH to the end of the last flow; at QoS 0 to the PINGRESP behind the last.
    pub seconds: f64,
    pub set: u64,
    pub set_per_s: f64,
    pub acknowledgement_us: Option<Latency>,
    pub topics: u64,
    pub memory: Option<Memory>,
    /// Per message set.
    pub costs: Costs,
}

#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// From the first CONNECT to the last message.
    pub seconds: f64,
    pub received: u64,
    pub received_per_s: f64,
    pub foreign: u64,
    pub faults: Faults,
    pub memory: Option<Memory>,
    /// Per message read.
    pub costs: Costs,
}

impl Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "setting      {}/s ({} in {:.2} s)",
            grouped(self.set_per_s.round() as u64),
            grouped(self.set),
            self.seconds
        )?;
        if let Some(latency) = &self.acknowledgement_us {
            writeln!(f, "  ack µs     {latency}")?;
        }
        if let Some(memory) = &self.memory {
            let grown = memory.last.saturating_sub(memory.before) as f64 / self.topics as f64;
            writeln!(f, "  memory     {memory}")?;
            writeln!(f, "             grown by {} bytes per topic", figure(grown))?;
        }
        self.costs.lines(f)
    }
}

impl Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "reading      {}/s ({} in {:.2} s)",
            grouped(self.received_per_s.round() as u64),
            grouped(self.received),
            self.seconds
        )?;
        if let Some(memory) = &self.memory {
            writeln!(f, "  memory     {memory}")?;
        }
        self.costs.lines(f)?;
        let Faults {
            missing,
            doubled,
            outdated,
            unflagged,
            wrong,
        } = self.faults;
        writeln!(
            f,
            "checked      missing {missing}, doubled {doubled}, outdated {outdated}, without RETAIN {unflagged}, wrong {wrong}"
        )?;
        if self.foreign > 0 {
            writeln!(f, "note         {} messages of another run were ignored", self.foreign)?;
        }
        Ok(())
    }
}

impl Figures for Retained {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            "retained",
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        let Faults {
            missing,
            doubled,
            outdated,
            unflagged,
            wrong,
        } = self.reading.faults;
        page.verdict = self.verdict.sentence(&format!(
            "{} read, missing {missing}, doubled {doubled}, outdated {outdated}, without RETAIN {unflagged}, wrong {wrong}{}",
            grouped(self.reading.received),
            self.acknowledgements.told()
        ));
        if let Some(setting) = &self.setting {
            page.count("Set", setting.set_per_s.round() as u64, "messages/s");
            page.measured("Set in", Some(setting.seconds), "s");
            setting.costs.rows(&mut page, "setting");
            if let Some(memory) = &setting.memory {
                memory.row(&mut page, "setting");
            }
            let curves = Curves::new("From PUBLISH").with("acknowledged", setting.acknowledgement_us.as_ref());
            page.latencies.push(curves);
        }
        page.count("Read", self.reading.received_per_s.round() as u64, "messages/s");
        page.measured("Read in", Some(self.reading.seconds), "s");
        self.reading.costs.rows(&mut page, "reading");
        if let Some(memory) = &self.reading.memory {
            memory.row(&mut page, "reading");
        }
        page.measured("Cleared in", self.cleared_seconds, "s");
        if let Some(bytes) = self.broker_bytes_cleared {
            page.count("Broker memory, cleared", bytes / 1024, "KiB");
        }
        page.timeline(&self.timeline);
        page
    }
}

impl Display for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        if let Some(setting) = &self.setting {
            write!(f, "{setting}")?;
        }
        write!(f, "{}", self.reading)?;
        if let Some(seconds) = self.cleared_seconds {
            write!(f, "cleared      in {seconds:.2} s")?;
            match self.broker_bytes_cleared {
                Some(bytes) => writeln!(f, ", {} KiB of user memory in the broker then", grouped(bytes / 1024))?,
                None => writeln!(f)?,
            }
        }
        if self.is_kept {
            writeln!(
                f,
                "kept         read it with the same flags and --read-only {}",
                self.run
            )?;
        }
        self.acknowledgements.line(f)?;
        self.verdict.line(f)
    }
}
