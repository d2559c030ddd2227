//! The figures of a telemetry run, for a reader and as JSON.
//!
//! Called  by `main` with what the scenario gives back.
//! Holds   - a figure that was not measured is absent, not 0.

use std::fmt::{self, Display};

use serde::Serialize;

use super::commands::Commands;
use super::read_back::ReadBack;
use super::readers::Reading;
use crate::acknowledgement::AcknowledgementFaults;
use crate::html::{Curves, Page};
use crate::meter::Costs;
use crate::report::{Figures, Host, Latency, Verdict, figure, grouped};
use crate::sequence::Faults;
use crate::timeline::{Memory, Timeline};

#[derive(Clone, Debug, Serialize)]
pub struct Telemetry {
    pub address: String,
    pub broker: Option<String>,
    pub settings: String,
    pub host: Host,
    pub qos: u8,
    pub sent: u64,
    /// From the first message to the last one's leaving.
    pub sent_seconds: f64,
    pub sent_per_s: f64,
    /// PUBACKs at QoS 1, PUBRECs at QoS 2; absent at QoS 0.
    pub acknowledged: Option<u64>,
    /// From the first message to the last answer.
    pub answered_seconds: f64,
    pub acknowledged_per_s: Option<f64>,
    /// From PUBLISH (open loop: its intended time) to PUBACK or PUBREC.
    pub acknowledgement_us: Option<Latency>,
    pub stored: Stored,
    pub generator_cpu_us: f64,
    pub generator_cpus: f64,
    /// Of the broker, from the first message until all was stored, per datapoint; what readers and commands cost is in it.
    pub costs: Costs,
    pub memory: Option<Memory>,
    pub disk: Option<Disk>,
    pub commands: Option<Commands>,
    pub reading: Option<Reading>,
    pub read_back: ReadBack,
    pub acknowledgements: AcknowledgementFaults,
    pub timeline: Timeline,
    /// Open loop: messages that were due and could not be sent in time.
    pub behind_schedule: u64,
    /// Calls of the API that met its rate limit.
    pub api_refused: u64,
    pub verdict: Verdict,
}

/// What the account's count of datapoints says.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stored {
    pub datapoints: u64,
    /// From the first message until they could all be read; absent when fewer than were sent ever could.
    pub seconds: Option<f64>,
    pub per_s: Option<f64>,
    /// From the last message's leaving.
    pub readable_after_ms: Option<f64>,
}

/// The blocks that the data file uses.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Disk {
    pub bytes_before: u64,
    pub bytes_after: u64,
    pub bytes_per_datapoint: Option<f64>,
}

impl Telemetry {
    /// Loss is a fault above QoS 0, a second copy is one at QoS 0 and 2, another order at each of them.
    pub fn judge(&mut self) {
        let ReadBack {
            faults,
            misplaced,
            unsorted,
            ..
        } = self.read_back;
        let is_lost = faults.missing > 0 && self.qos > 0;
        let is_doubled = faults.doubled > 0 && self.qos != 1;
        let commands = self
            .commands
            .as_ref()
            .map(|commands| commands.faults)
            .unwrap_or_default();
        let is_broken = is_lost
            || is_doubled
            || faults.out_of_order > 0
            || misplaced > 0
            || unsorted > 0
            || self.acknowledgements.is_broken()
            || commands != Faults::default();
        self.verdict = if is_broken { Verdict::RulesBroken } else { Verdict::Good };
    }
}

impl Figures for Telemetry {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            "telemetry",
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        page.verdict = self.verdict.sentence(&format!(
            "{} datapoints sent, {} found in the streams, {}, in another channel {}, with an id out of order {}{}",
            grouped(self.sent),
            grouped(self.read_back.found),
            self.read_back.faults,
            self.read_back.misplaced,
            self.read_back.unsorted,
            self.acknowledgements.told()
        ));
        page.count("Sent", self.sent_per_s.round() as u64, "datapoints/s");
        if let Some(rate) = self.acknowledged_per_s {
            page.count("Acknowledged", rate.round() as u64, "datapoints/s");
        }
        if let Some(rate) = self.stored.per_s {
            page.count("Stored", rate.round() as u64, "datapoints/s");
        }
        page.measured("Readable", self.stored.readable_after_ms, "ms after the last was sent");
        self.costs.rows(&mut page, "until all was stored");
        if let Some(memory) = &self.memory {
            memory.row(&mut page, "until all was stored");
        }
        let disk = self.disk.and_then(|disk| disk.bytes_per_datapoint);
        page.measured("Disk", disk, "bytes per datapoint");
        page.measured("Generator CPU time", Some(self.generator_cpu_us), "µs per datapoint");
        page.latencies
            .push(Curves::new("From PUBLISH").with("acknowledged", self.acknowledgement_us.as_ref()));
        if let Some(commands) = &self.commands {
            page.figure(
                "Commands",
                grouped(commands.received),
                &format!("received, {}", commands.faults),
            );
            page.latencies.push(
                Curves::new("Commands")
                    .with("until the device has it", Some(&commands.round_trip_us))
                    .with("call of the API", Some(&commands.call_us)),
            );
        }
        if let Some(reading) = &self.reading {
            page.count("Reads meanwhile", reading.latency_us.count, "");
            page.latencies
                .push(Curves::new("Reads").with("call of the API", Some(&reading.latency_us)));
        }
        page.timeline(&self.timeline);
        page
    }
}

impl Display for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        let rate = |per_s: f64| grouped(per_s.round() as u64);
        writeln!(
            f,
            "sent         {}/s ({} in {:.2} s)",
            rate(self.sent_per_s),
            grouped(self.sent),
            self.sent_seconds
        )?;
        if let (Some(count), Some(per_s)) = (self.acknowledged, self.acknowledged_per_s) {
            writeln!(
                f,
                "acknowledged {}/s ({} in {:.2} s)",
                rate(per_s),
                grouped(count),
                self.answered_seconds
            )?;
        }
        if let Some(latency) = &self.acknowledgement_us {
            writeln!(f, "ack µs       {latency}")?;
        }
        let stored = grouped(self.stored.datapoints);
        match (self.stored.per_s, self.stored.readable_after_ms) {
            (Some(per_s), Some(after)) => writeln!(
                f,
                "stored       {}/s ({stored}); the last could be read {} ms after it was sent",
                rate(per_s),
                figure(after)
            )?,
            _ => writeln!(f, "stored       {stored} of what was sent, and no more came")?,
        }
        if let (Some(us), Some(cpus)) = (self.costs.broker_cpu_us, self.costs.broker_cpus) {
            writeln!(f, "broker       {} µs CPU per datapoint, {cpus:.2} CPUs", figure(us))?;
        }
        writeln!(
            f,
            "generator    {} µs CPU per datapoint, {:.2} CPUs (the thread of the devices)",
            figure(self.generator_cpu_us),
            self.generator_cpus
        )?;
        if let Some(written) = self.costs.written {
            writeln!(f, "written      {written}")?;
        }
        if let Some(memory) = &self.memory {
            writeln!(f, "memory       {memory}")?;
        }
        if let Some(disk) = self.disk {
            let kib = |bytes: u64| grouped(bytes / 1024);
            let grown = kib(disk.bytes_after.saturating_sub(disk.bytes_before));
            write!(
                f,
                "disk         {} KiB in use, grown by {grown} KiB",
                kib(disk.bytes_after)
            )?;
            match disk.bytes_per_datapoint {
                Some(bytes) => writeln!(f, ": {} bytes per datapoint", figure(bytes))?,
                None => writeln!(f)?,
            }
        }
        if let Some(commands) = &self.commands {
            let Faults {
                missing,
                doubled,
                out_of_order,
            } = commands.faults;
            writeln!(
                f,
                "commands     {} posted of {} due, {} received: missing {missing}, doubled {doubled}, out of order {out_of_order}",
                grouped(commands.posted),
                grouped(commands.due),
                grouped(commands.received)
            )?;
            writeln!(f, "  call µs    {}", commands.call_us)?;
            writeln!(f, "  device µs  {}", commands.round_trip_us)?;
        }
        if let Some(reading) = &self.reading {
            let reads = reading.latency_us.count;
            writeln!(
                f,
                "reads        {} by {} readers meanwhile, {} rows each (at most {})",
                grouped(reads),
                reading.readers,
                figure(reading.rows as f64 / reads.max(1) as f64),
                grouped(reading.rows_max)
            )?;
            writeln!(f, "  read µs    {}", reading.latency_us)?;
        }
        let ReadBack {
            seconds,
            calls,
            found,
            faults,
            misplaced,
            unsorted,
            foreign,
        } = &self.read_back;
        writeln!(
            f,
            "read back    {} of {} datapoints by {} calls in {seconds:.2} s",
            grouped(*found),
            grouped(self.sent),
            grouped(*calls)
        )?;
        let Faults {
            missing,
            doubled,
            out_of_order,
        } = faults;
        writeln!(
            f,
            "checked      missing {missing}, doubled {doubled}, out of order {out_of_order}, in another channel {misplaced}, \
             with an id out of order {unsorted}"
        )?;
        self.acknowledgements.line(f)?;
        for (count, what) in [
            (*foreign, "datapoints of others were ignored"),
            (
                self.behind_schedule,
                "messages were due and not sent: the broker or this machine is slower than --rate",
            ),
            (
                self.api_refused,
                "calls of the API met its rate limit and were made again",
            ),
        ] {
            if count > 0 {
                writeln!(f, "note         {} {what}", grouped(count))?;
            }
        }
        self.verdict.line(f)
    }
}
