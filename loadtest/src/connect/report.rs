//! The figures of a storm of connects, for a reader and as JSON.
//!
//! Called  by `main` with what `connect` gives back.
//! Holds   - a figure that was not measured (no --broker-pid, no TLS) is absent, not 0.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::bystanders;
use crate::html::{Curves, Page};
use crate::report::{Figures, Host, Latency, figure, grouped};
use crate::timeline::Timeline;
use crate::transport::Transport;

/// What threads of a storm counted. Times are nanoseconds.
#[derive(Debug)]
pub struct Storm {
    pub connected: u64,
    pub resumed: u64,
    /// When the last CONNACK came, since the start of the storm.
    pub last_ns: u64,
    /// By cause.
    pub failures: BTreeMap<String, u64>,
    /// From the intended start to CONNACK.
    pub total: Histogram<u64>,
    pub tcp: Histogram<u64>,
    pub tls: Histogram<u64>,
    pub websocket: Histogram<u64>,
    pub mqtt: Histogram<u64>,
    pub subscribe: Histogram<u64>,
    pub message: Histogram<u64>,
}

/// What a connect run measured.
#[derive(Clone, Debug, Serialize)]
pub struct Connect {
    pub address: String,
    pub broker: Option<String>,
    pub host: Host,
    pub settings: String,
    /// From the start of the storm to its last CONNACK.
    pub seconds: f64,
    pub connected: u64,
    pub connects_per_s: f64,
    /// From the intended start of each to its CONNACK; of a cycle to its message.
    pub latency_us: Latency,
    pub phases_us: Phases,
    /// Until the storm's threads had ended, less what the bystanders alone cost before.
    pub broker_cpu_us_per_connect: Option<f64>,
    pub broker_cpus: Option<f64>,
    /// With the bystanders alone.
    pub broker_cpus_before: Option<f64>,
    pub generator_cpus: f64,
    pub resumed: Option<u64>,
    /// By cause.
    pub failures: BTreeMap<String, u64>,
    pub bystanders: Option<bystanders::Figures>,
    pub timeline: Timeline,
    pub nice_without_effect: bool,
}

/// Where the time of a connect goes; from the real start, not the intended one.
#[derive(Clone, Debug, Serialize)]
pub struct Phases {
    pub tcp: Latency,
    pub tls: Option<Latency>,
    pub websocket: Option<Latency>,
    /// From CONNECT to CONNACK.
    pub mqtt: Latency,
    /// Of a cycle: to SUBACK, and from the PUBLISH until it is back.
    pub subscribe: Option<Latency>,
    pub message: Option<Latency>,
}

impl Phases {
    pub fn of(storm: &Storm, transport: Transport, is_churn: bool) -> Phases {
        Phases {
            tcp: Latency::of(&storm.tcp),
            tls: transport.is_tls().then(|| Latency::of(&storm.tls)),
            websocket: transport.is_websocket().then(|| Latency::of(&storm.websocket)),
            mqtt: Latency::of(&storm.mqtt),
            subscribe: is_churn.then(|| Latency::of(&storm.subscribe)),
            message: is_churn.then(|| Latency::of(&storm.message)),
        }
    }
}

impl Connect {
    fn is_churn(&self) -> bool {
        self.phases_us.message.is_some()
    }
}

impl Figures for Connect {
    fn is_good(&self) -> bool {
        self.failures.is_empty()
    }

    fn page(&self) -> Page {
        let mut page = Page::new(
            "connect",
            self.broker.as_deref(),
            &self.address,
            &self.settings,
            &self.host,
        );
        let causes = self
            .failures
            .iter()
            .map(|(cause, count)| format!("; {} times: {cause}", grouped(*count)));
        page.verdict = format!(
            "{}: {} connected, {} failed{}.",
            if self.is_good() {
                "Every client was served"
            } else {
                "The broker failed its clients"
            },
            grouped(self.connected),
            grouped(self.failures.values().sum()),
            causes.collect::<String>()
        );
        let what = if self.is_churn() { "cycle" } else { "connect" };
        page.count("Connected", self.connects_per_s.round() as u64, &format!("{what}s/s"));
        page.measured("Took", Some(self.seconds), "s");
        page.measured(
            "Broker CPU time",
            self.broker_cpu_us_per_connect,
            &format!("µs per {what}"),
        );
        page.measured("Broker CPUs", self.broker_cpus, "kept busy");
        page.measured("Broker CPUs, bystanders alone", self.broker_cpus_before, "kept busy");
        page.measured("Generator CPUs", Some(self.generator_cpus), "kept busy");
        if let Some(resumed) = self.resumed {
            page.count("Resumed", resumed, "handshakes");
        }
        let phases = &self.phases_us;
        page.latencies.push(
            Curves::new(if self.is_churn() { "Cycle" } else { "Connect" })
                .with("whole", Some(&self.latency_us))
                .with("TCP", Some(&phases.tcp))
                .with("TLS", phases.tls.as_ref())
                .with("WebSocket", phases.websocket.as_ref())
                .with("MQTT", Some(&phases.mqtt))
                .with("SUBSCRIBE", phases.subscribe.as_ref())
                .with("message", phases.message.as_ref()),
        );
        if let Some(bystanders) = &self.bystanders {
            bystanders.show(&mut page, "Bystanders", "the storm");
        }
        page.timeline(&self.timeline);
        page
    }
}

impl Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.as_deref().unwrap_or("broker");
        writeln!(f, "{broker} at {}: {}", self.address, self.settings)?;
        self.host.line(f)?;
        writeln!(
            f,
            "connected    {}/s ({} in {:.2} s)",
            grouped(self.connects_per_s.round() as u64),
            grouped(self.connected),
            self.seconds
        )?;
        writeln!(f, "latency µs   {}", self.latency_us)?;
        for (name, latency) in [
            ("tcp", Some(&self.phases_us.tcp)),
            ("tls", self.phases_us.tls.as_ref()),
            ("ws", self.phases_us.websocket.as_ref()),
            ("mqtt", Some(&self.phases_us.mqtt)),
            ("subscribe", self.phases_us.subscribe.as_ref()),
            ("message", self.phases_us.message.as_ref()),
        ] {
            if let Some(latency) = latency {
                writeln!(f, "  {name:<10} {latency}")?;
            }
        }
        if let Some(cpus) = self.broker_cpus {
            write!(f, "broker       ")?;
            if let Some(us) = self.broker_cpu_us_per_connect {
                write!(
                    f,
                    "{} µs CPU per {}, ",
                    figure(us),
                    if self.is_churn() { "cycle" } else { "connect" }
                )?;
            }
            write!(f, "{cpus:.2} CPUs")?;
            match self.broker_cpus_before {
                Some(before) => writeln!(
                    f,
                    " ({before:.2} before the storm, which is not in the cost of a connect)"
                )?,
                None => writeln!(f)?,
            }
        }
        writeln!(f, "generator    {:.2} CPUs", self.generator_cpus)?;
        if let Some(resumed) = self.resumed {
            let share = resumed as f64 * 100.0 / self.connected.max(1) as f64;
            writeln!(f, "resumed      {} handshakes, {share:.1} %", grouped(resumed))?;
        }
        if let Some(bystanders) = &self.bystanders {
            writeln!(f, "{bystanders}")?;
        }
        if self.nice_without_effect {
            writeln!(
                f,
                "note         --storm-nice does not count against this broker: the kernel groups by session \
                 (kernel.sched_autogroup_enabled), and the broker was started from another one"
            )?;
        }
        for (cause, count) in &self.failures {
            writeln!(f, "FAILED       {} times: {cause}", grouped(*count))?;
        }
        Ok(())
    }
}
