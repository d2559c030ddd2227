//! The figures of a run, for a reader and as JSON; `backlog` and `retained` have theirs beside them.
//!
//! Called  by `main` with what a scenario gives back.
//! Holds   - a figure that was not measured (no --broker-pid) is absent, not 0.

use std::fmt::{self, Display};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::acknowledgement::AcknowledgementFaults;
use crate::html::{Curves, Page};
use crate::idle::{self, Delivery};
use crate::meter::Written;
use crate::sequence::Faults;
use crate::timeline::Timeline;

/// What a scenario gives back: for a reader, for a program, and a verdict.
pub trait Figures: Display + Serialize {
    fn is_good(&self) -> bool;
    /// What a report shows of it.
    fn page(&self) -> Page;
}

/// What a throughput run measured, or one at a fixed rate for its latency.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    pub scenario: &'static str,
    pub address: String,
    /// Name of the broker's process.
    pub broker: Option<String>,
    pub settings: String,
    pub host: Host,
    /// Of the generator.
    pub threads: usize,
    /// The measured time, after the warm-up.
    pub seconds: f64,
    pub sent_in_time: u64,
    pub delivered_in_time: u64,
    pub delivered_per_s: f64,
    pub latency_us: Latency,
    /// PUBACKs at QoS 1, PUBRECs at QoS 2; absent at QoS 0.
    pub acknowledged_in_time: Option<u64>,
    pub acknowledged_per_s: Option<f64>,
    /// From PUBLISH (open loop: its intended time) to PUBACK or PUBREC.
    pub acknowledgement_us: Option<Latency>,
    /// Open loop: from the intended time of each message to the generator's write. It is part of both latencies.
    pub lateness_us: Option<Latency>,
    pub broker_cpu_us: Option<f64>,
    pub broker_user_us: Option<f64>,
    pub broker_system_us: Option<f64>,
    /// CPUs the broker kept busy.
    pub broker_cpus: Option<f64>,
    pub generator_cpu_us: f64,
    pub generator_cpus: f64,
    pub broker_memory_bytes: Option<u64>,
    /// In the measured time, per acknowledged message; absent at QoS 0 and where /proc/PID/io cannot be read.
    pub broker_written: Option<Written>,
    /// Over the whole run, warm-up and drain included.
    pub sent: u64,
    pub received: u64,
    pub faults: Faults,
    pub acknowledgements: AcknowledgementFaults,
    /// Messages of another run, which were ignored.
    pub foreign: u64,
    /// Open loop: messages that were due and could not be sent in time.
    pub behind_schedule: u64,
    /// Closed loop at QoS 0: times the window was written off because nothing came any more.
    pub stalls: u64,
    pub timeline: Timeline,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// A message was lost above QoS 0, doubled or out of order, or an acknowledgement was wrong.
    RulesBroken,
}

#[derive(Clone, Debug, Serialize)]
pub struct Host {
    pub kernel: String,
    pub cpus: usize,
    /// As the kernel names it.
    pub cpu_model: Option<String>,
    pub memory_bytes: Option<u64>,
}

impl Verdict {
    pub fn line(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Good => Ok(()),
            Verdict::RulesBroken => writeln!(f, "FAILED       the broker broke a delivery rule, see the counts above"),
        }
    }

    /// Of a report.
    pub fn sentence(self, counts: &str) -> String {
        match self {
            Verdict::Good => format!("Every rule was kept: {counts}."),
            Verdict::RulesBroken => format!("The broker broke a delivery rule: {counts}."),
        }
    }
}

impl Host {
    pub fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host         Linux {}, {} CPUs", self.kernel, self.cpus)
    }

    pub fn this() -> Host {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Host {
            kernel: release,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_model: line_of("/proc/cpuinfo", "model name"),
            memory_bytes: line_of("/proc/meminfo", "MemTotal")
                .and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok())
                .map(|kib| kib * 1024),
        }
    }
}

/// What stands behind `name` and a colon, the first time; absent where there is no such file or line.
fn line_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim_start().strip_prefix(':')?.trim().to_string())
}

/// Microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub count: u64,
    /// (microseconds, messages up to it), one step for each filled bucket of 3 digits.
    pub histogram: Vec<(f64, u64)>,
}

impl Latency {
    /// From a histogram in nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile: f64| us(histogram.value_at_quantile(quantile));
        let mut up_to = 0;
        let steps = histogram.iter_recorded().map(|step| {
            up_to += step.count_since_last_iteration();
            (us(step.value_iterated_to()), up_to)
        });
        Latency {
            histogram: steps.collect(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(histogram.max()),
            count: histogram.len(),
        }
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
            figure(self.p50),
            figure(self.p90),
            figure(self.p99),
            figure(self.p999),
            figure(self.max)
        )
    }
}

impl Figures for Throughput {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            self.scenario,
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        page.verdict = self.verdict.sentence(&format!(
            "{} messages sent, {} received, {}{}",
            grouped(self.sent),
            grouped(self.received),
            self.faults,
            self.acknowledgements.told()
        ));
        page.count("Delivered", self.delivered_per_s.round() as u64, "messages/s");
        if let Some(rate) = self.acknowledged_per_s {
            page.count("Acknowledged", rate.round() as u64, "messages/s");
        }
        page.figure("Measured", format!("{:.2}", self.seconds), "s");
        page.measured("Broker CPU time", self.broker_cpu_us, "µs per delivered message");
        page.measured("Broker CPU time, user", self.broker_user_us, "µs per delivered message");
        page.measured(
            "Broker CPU time, system",
            self.broker_system_us,
            "µs per delivered message",
        );
        page.measured("Broker CPUs", self.broker_cpus, "kept busy");
        if let Some(bytes) = self.broker_memory_bytes {
            page.count("Broker memory after the run", bytes / 1024, "KiB");
        }
        if let Some(written) = self.broker_written {
            page.measured("Written to disk", Some(written.bytes_per_message), "bytes per message");
        }
        page.measured(
            "Generator CPU time",
            Some(self.generator_cpu_us),
            "µs per delivered message",
        );
        page.measured("Generator CPUs", Some(self.generator_cpus), "kept busy");
        for (what, count) in [
            ("Messages of another run", self.foreign),
            ("Due and not sent in time", self.behind_schedule),
            ("Windows written off", self.stalls),
        ] {
            if count > 0 {
                page.count(what, count, "");
            }
        }
        page.latencies = vec![
            Curves::new("From PUBLISH")
                .with("delivered", Some(&self.latency_us))
                .with("acknowledged", self.acknowledgement_us.as_ref())
                .with("own lateness", self.lateness_us.as_ref()),
        ];
        page.timeline(&self.timeline);
        page
    }
}

impl Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        let rate = grouped(self.delivered_per_s.round() as u64);
        writeln!(
            f,
            "delivered    {rate}/s ({} in {:.2} s)",
            grouped(self.delivered_in_time),
            self.seconds
        )?;
        if let (Some(count), Some(rate)) = (self.acknowledged_in_time, self.acknowledged_per_s) {
            writeln!(
                f,
                "acknowledged {}/s ({})",
                grouped(rate.round() as u64),
                grouped(count)
            )?;
        }
        writeln!(f, "latency µs   {}", self.latency_us)?;
        if let Some(latency) = &self.acknowledgement_us {
            writeln!(f, "ack µs       {latency}")?;
        }
        if let Some(latency) = &self.lateness_us {
            writeln!(f, "own late µs  {latency}")?;
        }
        if let (Some(total), Some(user), Some(system), Some(cpus)) = (
            self.broker_cpu_us,
            self.broker_user_us,
            self.broker_system_us,
            self.broker_cpus,
        ) {
            let (total, user, system) = (figure(total), figure(user), figure(system));
            writeln!(
                f,
                "broker       {total} µs CPU per delivered message (user {user}, system {system}), {cpus:.2} CPUs"
            )?;
        }
        let own = figure(self.generator_cpu_us);
        writeln!(
            f,
            "generator    {own} µs CPU per delivered message, {:.2} CPUs",
            self.generator_cpus
        )?;
        if let Some(written) = self.broker_written {
            writeln!(f, "written      {written}")?;
        }
        if let Some(bytes) = self.broker_memory_bytes {
            writeln!(
                f,
                "memory       {} KiB of user memory in the broker after the run",
                grouped(bytes / 1024)
            )?;
        }
        let Faults {
            missing,
            doubled,
            out_of_order,
        } = self.faults;
        write!(
            f,
            "whole run    sent {}, received {}",
            grouped(self.sent),
            grouped(self.received)
        )?;
        writeln!(f, ", missing {missing}, doubled {doubled}, out of order {out_of_order}")?;
        self.acknowledgements.line(f)?;
        for (count, what) in [
            (self.foreign, "messages of another run were ignored"),
            (
                self.behind_schedule,
                "messages were due and not sent: the broker or this machine is slower than --rate",
            ),
            (
                self.stalls,
                "times nothing came for a second; what was outstanding counts as dropped",
            ),
        ] {
            if count > 0 {
                writeln!(f, "note         {count} {what}")?;
            }
        }
        self.verdict.line(f)
    }
}

/// What an idle run measured.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    pub address: String,
    pub broker: Option<String>,
    pub host: Host,
    pub transport: &'static str,
    pub filter: String,
    pub connections: u32,
    pub threads: u32,
    pub private_descriptor_tables: bool,
    pub source_addresses: u32,
    pub set_up_seconds: f64,
    pub broker_bytes_before: Option<u64>,
    pub broker_bytes_held: Option<u64>,
    pub broker_bytes_after: Option<u64>,
    /// When the first connection was about to close, all messages having been delivered.
    pub broker_bytes_at_close: Option<u64>,
    /// From then to 3 s after the last close.
    pub broker_bytes_closing_max: Option<u64>,
    pub broker_bytes_per_connection: Option<f64>,
    pub broker_cpu_us_per_connect: Option<f64>,
    /// CPUs the broker kept busy while the connections were held.
    pub broker_cpus_held: Option<f64>,
    /// By how much the kernel's memory grew, both ends of a connection to a broker on this host together.
    pub kernel_bytes_per_connection: f64,
    /// After all were closed.
    pub kernel_bytes_per_connection_after: Option<f64>,
    /// The caches that grew most, in bytes per connection; empty for those who may not read /proc/slabinfo.
    pub kernel_caches: Vec<(String, f64)>,
    pub own_bytes_per_connection: f64,
    pub lost: u64,
    /// From the last SUBACK to the first message.
    pub held_seconds: f64,
    pub pings_held: u64,
    pub pings: u64,
    pub pings_unanswered: u64,
    /// One message each to clients chosen at random.
    pub chosen: Option<Delivery>,
    /// One message to every client.
    pub all: Option<Delivery>,
    pub delivery_faults: idle::Faults,
    pub acknowledgements: AcknowledgementFaults,
    /// Messages that somebody else published.
    pub foreign: u64,
    pub timeline: Timeline,
}

impl Figures for Idle {
    fn is_good(&self) -> bool {
        self.lost == 0
            && self.pings_unanswered == 0
            && self.delivery_faults == idle::Faults::default()
            && !self.acknowledgements.is_broken()
    }

    fn page(&self) -> Page {
        let settings = format!(
            "{} idle connections over {}, each subscribed to {}",
            grouped(self.connections.into()),
            self.transport,
            self.filter
        );
        let mut page = Page::new("idle", self.broker.as_deref(), &self.address, &settings, &self.host);
        page.verdict = format!(
            "{}: {} connections lost, {} pings, {} unanswered{}{}.",
            if self.is_good() {
                "Every client was served"
            } else {
                "The broker failed its clients"
            },
            grouped(self.lost),
            grouped(self.pings),
            grouped(self.pings_unanswered),
            match self.chosen.is_some() || self.all.is_some() {
                true => format!("; deliveries {}", self.delivery_faults),
                false => String::new(),
            },
            self.acknowledgements.told()
        );
        page.measured("User memory", self.broker_bytes_per_connection, "bytes per connection");
        let kib = [
            ("Broker memory before", self.broker_bytes_before),
            ("Broker memory with all of them", self.broker_bytes_held),
            ("Broker memory before they left", self.broker_bytes_at_close),
            ("Broker memory while they left, at most", self.broker_bytes_closing_max),
            ("Broker memory after they had gone", self.broker_bytes_after),
        ];
        for (what, bytes) in kib {
            if let Some(bytes) = bytes {
                page.count(what, bytes / 1024, "KiB");
            }
        }
        page.count(
            "Connected",
            (f64::from(self.connections) / self.set_up_seconds) as u64,
            "connections/s",
        );
        page.measured("Set up in", Some(self.set_up_seconds), "s");
        page.measured(
            "Broker CPU time",
            self.broker_cpu_us_per_connect,
            "µs per connect and subscribe",
        );
        page.measured("Broker CPUs while held", self.broker_cpus_held, "kept busy");
        page.measured(
            "Generator memory",
            Some(self.own_bytes_per_connection),
            "bytes per connection",
        );
        page.measured(
            "Kernel memory, both ends where the broker is on this host",
            Some(self.kernel_bytes_per_connection),
            "bytes per connection",
        );
        page.measured(
            "Kernel memory after they had gone",
            self.kernel_bytes_per_connection_after,
            "bytes per connection",
        );
        page.count("Generator threads", self.threads.into(), "");
        page.count("Source addresses", self.source_addresses.into(), "");
        for (title, of, delivery) in [
            ("One message each", "one each", &self.chosen),
            ("One message to all", "one to all", &self.all),
        ] {
            let Some(delivery) = delivery else { continue };
            let rate = delivery.delivered_per_s.round() as u64;
            page.count(&format!("Delivered, {of}"), rate, "messages/s");
            page.measured(
                &format!("Broker CPU time, {of}"),
                delivery.broker_cpu_us,
                "µs per delivery",
            );
            page.latencies
                .push(Curves::new(title).with("delivered", Some(&delivery.latency_us)));
        }
        if self.foreign > 0 {
            page.count("Messages of others", self.foreign, "");
        }
        page.timeline(&self.timeline);
        page
    }
}

impl Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        let connections = grouped(self.connections as u64);
        writeln!(
            f,
            "{broker} at {}: {connections} idle connections over {}, each subscribed to {}",
            self.address, self.transport, self.filter
        )?;
        let tables = if self.private_descriptor_tables {
            "a descriptor table each"
        } else {
            "one descriptor table"
        };
        writeln!(
            f,
            "generator    {} threads, {tables}, {} source addresses",
            self.threads, self.source_addresses
        )?;
        self.host.line(f)?;
        let rate = grouped((self.connections as f64 / self.set_up_seconds) as u64);
        write!(f, "set-up       {:.2} s, {rate} connects/s", self.set_up_seconds)?;
        match self.broker_cpu_us_per_connect {
            Some(us) => writeln!(f, ", {} µs broker CPU for each with its subscription", figure(us))?,
            None => writeln!(f)?,
        }
        let kib = |bytes: u64| format!("{} KiB", grouped(bytes / 1024));
        if let (Some(each), Some(before), Some(held)) = (
            self.broker_bytes_per_connection,
            self.broker_bytes_before,
            self.broker_bytes_held,
        ) {
            let each = each.round() as i64;
            writeln!(
                f,
                "memory       {each} bytes of user memory per connection ({} before, {} held)",
                kib(before),
                kib(held)
            )?;
        }
        if let (Some(before), Some(max), Some(after)) = (
            self.broker_bytes_at_close,
            self.broker_bytes_closing_max,
            self.broker_bytes_after,
        ) {
            let (before, max) = (kib(before), kib(max));
            writeln!(
                f,
                "after close  {} ({before} before it, at most {max} on the way)",
                kib(after)
            )?;
        }
        write!(
            f,
            "kernel       {:.0} bytes per connection, both ends where the broker is on this host",
            self.kernel_bytes_per_connection
        )?;
        match self.kernel_bytes_per_connection_after {
            Some(bytes) => writeln!(f, "; {bytes:.0} after close")?,
            None => writeln!(f)?,
        }
        for (place, (name, bytes)) in self.kernel_caches.iter().enumerate() {
            write!(
                f,
                "{}{name} {bytes:.0}",
                if place == 0 { "  caches     " } else { ", " }
            )?;
        }
        if !self.kernel_caches.is_empty() {
            writeln!(f)?;
        }
        write!(f, "held         {:.2} s", self.held_seconds)?;
        if let Some(cpus) = self.broker_cpus_held {
            write!(f, ", {cpus:.4} CPUs of the broker")?;
        }
        let rate = grouped((self.pings_held as f64 / self.held_seconds) as u64);
        write!(f, ", {} pings ({rate}/s", grouped(self.pings_held))?;
        match self.broker_cpus_held.filter(|_| self.pings_held > 0) {
            Some(cpus) => {
                let us = cpus * self.held_seconds * 1e6 / self.pings_held as f64;
                writeln!(f, ", {} µs broker CPU each)", figure(us))?;
            }
            None => writeln!(f, ")")?,
        }
        writeln!(
            f,
            "own memory   {:.0} bytes of user memory per connection",
            self.own_bytes_per_connection
        )?;
        for (title, delivery) in [("one each", &self.chosen), ("one to all", &self.all)] {
            if let Some(delivery) = delivery {
                write!(f, "{title:<13}{delivery}")?;
            }
        }
        writeln!(
            f,
            "whole run    lost {}, pings {}, unanswered {}",
            self.lost, self.pings, self.pings_unanswered
        )?;
        if self.chosen.is_some() || self.all.is_some() {
            writeln!(f, "deliveries   {}", self.delivery_faults)?;
            self.acknowledgements.line(f)?;
        }
        if self.foreign > 0 {
            writeln!(f, "note         {} messages of others were ignored", self.foreign)?;
        }
        if !self.is_good() {
            writeln!(
                f,
                "FAILED       the broker dropped connections, did not answer, or broke a delivery rule, see the counts above"
            )?;
        }
        Ok(())
    }
}

pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Three significant digits.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => grouped(value.round() as u64),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.1 => format!("{value:.3}"),
        v if v >= 0.01 => format!("{value:.4}"),
        v if v > 0.0 => format!("{value:.5}"),
        _ => "0".to_string(),
    }
}

/// A ratio: "×1.07", and "1/227" where it is below a tenth.
pub fn ratio(value: f64) -> String {
    if value > 0.0 && value < 0.1 {
        format!("1/{}", figure(1.0 / value))
    } else {
        format!("×{}", figure(value))
    }
}

/// 1234567 -> "1,234,567".
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let cases = [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")];
        assert!(cases.iter().all(|(value, text)| grouped(*value) == *text));
    }

    #[test]
    fn figures_keep_three_digits() {
        let cases = [
            (0.0, "0"),
            (0.0437, "0.0437"),
            (0.437, "0.437"),
            (1.5, "1.50"),
            (10.94, "10.9"),
            (2748.6, "2,749"),
        ];
        for (value, text) in cases {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn a_small_ratio_is_a_fraction() {
        let cases = [(1.066, "×1.07"), (0.25, "×0.250"), (0.025, "1/40.0"), (0.0, "×0")];
        for (value, text) in cases {
            assert_eq!(ratio(value), text);
        }
    }

    #[test]
    fn the_histogram_of_the_report_is_whole() {
        let mut histogram = Histogram::new_with_bounds(1, 10_000_000, 3).unwrap();
        histogram.record_n(1_000, 98).unwrap();
        histogram.record_n(50_000, 2).unwrap();
        let latency = Latency::of(&histogram);
        assert_eq!(latency.histogram.last().unwrap().1, 100);
        assert!((latency.p50 - 1.0).abs() < 0.01 && (latency.p99 - 50.0).abs() < 0.1);
    }
}
