//! One scenario against several brokers in turn: medians, and ratios to the first.
//!
//! Owns    which scenarios can be compared, and the figures of each that are.
//! Called  by `main`.
//! Holds   - brokers take turns within a round, and every second round runs backwards, so that a slow drift of the machine
//!           meets all of them alike;
//!         - a ratio is taken within a round and only then summarised.

use std::fmt::{self, Display};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::broker_process::{BrokerProcess, listening_on};
use crate::client::resolve;
use crate::connect::Connect;
use crate::html::{Curves, Page, Run};
use crate::report::{Figures, Host, Idle, Latency, Throughput, figure, grouped, ratio};
use crate::stats::{Spread, paired_ratios, spread};
use crate::timeline::Timeline;

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Brokers as HOST:PORT or HOST:PORT:PID, the one to compare with first; NAME=HOST:PORT:PID gives one a name. Without a
    /// process id it is that of who listens there, if this machine tells
    #[arg(long, value_delimiter = ',', required = true)]
    pub against: Vec<String>,
    /// Runs against each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// One of a run, if it was measured.
type Figure = (&'static str, Option<f64>);

/// What a run of a scenario gives a comparison.
pub trait Compared: Serialize {
    fn broker(&self) -> Option<&str>;
    fn settings(&self) -> String;
    fn host(&self) -> &Host;
    fn timeline(&self) -> &Timeline;
    /// The same names in the same order from every run.
    fn figures(&self) -> Vec<Figure>;
    /// The same titles in the same order from every run.
    fn latencies(&self) -> Vec<(&'static str, Option<&Latency>)>;
    /// What is wrong with the run, if anything is.
    fn failure(&self) -> Option<String>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    name: Option<String>,
    address: String,
    pid: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct Comparison<F> {
    settings: String,
    rounds: u32,
    brokers: Vec<String>,
    rows: Vec<Row>,
    runs: Vec<Vec<F>>,
}

/// One figure of all brokers.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    cells: Vec<Option<Cell>>,
}

#[derive(Debug, Serialize)]
struct Cell {
    values: Spread,
    /// To the first broker.
    ratio: Option<Spread>,
}

/// A latency's lines, by the word before them.
fn of_latency(names: [&'static str; 5], latency: Option<&Latency>) -> [Figure; 5] {
    let pick = |of: fn(&Latency) -> f64| latency.map(of);
    let values = [
        pick(|l| l.p50),
        pick(|l| l.p90),
        pick(|l| l.p99),
        pick(|l| l.p999),
        pick(|l| l.max),
    ];
    std::array::from_fn(|i| (names[i], values[i]))
}

impl Compared for Throughput {
    fn broker(&self) -> Option<&str> {
        self.broker.as_deref()
    }

    fn settings(&self) -> String {
        self.settings.clone()
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn figures(&self) -> Vec<Figure> {
        let written = self.broker_written;
        let mut figures = vec![
            ("delivered/s", Some(self.delivered_per_s)),
            ("acknowledged/s", self.acknowledged_per_s),
            ("broker CPU µs/message", self.broker_cpu_us),
            ("  user µs", self.broker_user_us),
            ("  system µs", self.broker_system_us),
            ("broker CPUs", self.broker_cpus),
        ];
        let names = [
            "latency p50 µs",
            "latency p90 µs",
            "latency p99 µs",
            "latency p99.9 µs",
            "latency max µs",
        ];
        figures.extend(of_latency(names, Some(&self.latency_us)));
        let names = ["ack p50 µs", "ack p90 µs", "ack p99 µs", "ack p99.9 µs", "ack max µs"];
        figures.extend(of_latency(names, self.acknowledgement_us.as_ref()));
        figures.extend([
            ("written bytes/acked", written.map(|w| w.bytes_per_message)),
            ("  by write calls, bytes", written.map(|w| w.call_bytes_per_message)),
            ("  write calls", written.map(|w| w.calls_per_message)),
            (
                "machine's disk flushes/s",
                written.and_then(|w| w.machine_flushes_per_s),
            ),
            ("own lateness p99 µs", self.lateness_us.as_ref().map(|l| l.p99)),
            ("generator CPU µs/message", Some(self.generator_cpu_us)),
            ("dropped", Some(self.faults.missing as f64)),
        ]);
        figures
    }

    fn latencies(&self) -> Vec<(&'static str, Option<&Latency>)> {
        vec![
            ("Delivered, from PUBLISH", Some(&self.latency_us)),
            ("Acknowledged, from PUBLISH", self.acknowledgement_us.as_ref()),
            ("Lateness of the generator", self.lateness_us.as_ref()),
        ]
    }

    fn failure(&self) -> Option<String> {
        (!self.is_good()).then(|| format!("{}{}", self.faults, self.acknowledgements.told()))
    }
}

impl Compared for Connect {
    fn broker(&self) -> Option<&str> {
        self.broker.as_deref()
    }

    fn settings(&self) -> String {
        self.settings.clone()
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = vec![
            ("connects/s", Some(self.connects_per_s)),
            ("broker CPU µs/connect", self.broker_cpu_us_per_connect),
            ("broker CPUs", self.broker_cpus),
        ];
        let names = [
            "latency p50 µs",
            "latency p90 µs",
            "latency p99 µs",
            "latency p99.9 µs",
            "latency max µs",
        ];
        figures.extend(of_latency(names, Some(&self.latency_us)));
        figures.extend([
            ("CONNECT to CONNACK p50 µs", Some(self.phases_us.mqtt.p50)),
            (
                "bystanders' p99 during µs",
                self.bystanders.as_ref().map(|b| b.during_us.p99),
            ),
            ("generator CPUs", Some(self.generator_cpus)),
        ]);
        figures
    }

    fn latencies(&self) -> Vec<(&'static str, Option<&Latency>)> {
        let phases = &self.phases_us;
        let bystanders = self.bystanders.as_ref();
        vec![
            ("Connect", Some(&self.latency_us)),
            ("CONNECT to CONNACK", Some(&phases.mqtt)),
            ("CONNACK to SUBACK", phases.subscribe.as_ref()),
            ("PUBLISH to its delivery", phases.message.as_ref()),
            (
                "Messages of bystanders, during the storm",
                bystanders.map(|b| &b.during_us),
            ),
        ]
    }

    fn failure(&self) -> Option<String> {
        let causes = self.failures.iter();
        let causes = causes.map(|(cause, count)| format!("{} times: {cause}", grouped(*count)));
        (!self.is_good()).then(|| causes.collect::<Vec<_>>().join("; "))
    }
}

impl Compared for Idle {
    fn broker(&self) -> Option<&str> {
        self.broker.as_deref()
    }

    fn settings(&self) -> String {
        format!(
            "{} idle connections over {}",
            grouped(self.connections.into()),
            self.transport
        )
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn figures(&self) -> Vec<Figure> {
        vec![
            ("bytes/connection", self.broker_bytes_per_connection),
            ("broker CPU µs/connect", self.broker_cpu_us_per_connect),
            ("broker CPUs held", self.broker_cpus_held),
            ("set-up s", Some(self.set_up_seconds)),
            ("generator bytes/connection", Some(self.own_bytes_per_connection)),
        ]
    }

    fn latencies(&self) -> Vec<(&'static str, Option<&Latency>)> {
        vec![
            ("One message each", self.chosen.as_ref().map(|of| &of.latency_us)),
            ("One message to all", self.all.as_ref().map(|of| &of.latency_us)),
        ]
    }

    fn failure(&self) -> Option<String> {
        let counts = format!("lost {}, unanswered {}", self.lost, self.pings_unanswered);
        let faults = format!("; deliveries {}{}", self.delivery_faults, self.acknowledgements.told());
        (!self.is_good()).then(|| counts + &faults)
    }
}

/// `run_one` is one run against a broker at an address, with its process if that is known.
pub fn run<F: Compared>(
    settings: &Settings,
    run_one: impl Fn(&str, Option<u32>) -> Result<F>,
) -> Result<Comparison<F>> {
    let targets: Vec<Target> = settings
        .against
        .iter()
        .map(|text| parse_target(text))
        .collect::<Result<_>>()?;
    // A wrong process id is told before the first round, not in the middle of it.
    for (target, text) in targets.iter().zip(&settings.against) {
        if let Some(pid) = target.pid {
            BrokerProcess::new(pid).with_context(|| format!("--against {text}"))?;
        }
    }
    let mut runs: Vec<Vec<F>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..settings.rounds {
        let mut order: Vec<usize> = (0..targets.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for broker in order {
            let Target { address, pid, .. } = &targets[broker];
            let figures = run_one(address, *pid)
                .with_context(|| format!("round {} against {}", round + 1, settings.against[broker]))?;
            runs[broker].push(figures);
        }
    }
    let names = targets.iter().zip(&runs).map(|(target, runs)| match &target.name {
        Some(name) => name.clone(),
        None => format!("{} {}", runs[0].broker().unwrap_or("?"), target.address),
    });
    Ok(Comparison {
        brokers: names.collect(),
        settings: runs[0][0].settings(),
        rounds: settings.rounds,
        rows: rows(&runs),
        runs,
    })
}

fn parse_target(text: &str) -> Result<Target> {
    let (name, rest) = match text.split_once('=') {
        Some((name, rest)) => (Some(name.to_string()), rest),
        None => (None, text),
    };
    // An IPv6 address stands in brackets: what follows them, or the first colon, is the port.
    let after_host = rest.find(']').unwrap_or(0);
    let (address, pid) = match rest[after_host..].match_indices(':').nth(1) {
        None => (rest, None),
        Some((at, _)) => {
            let (address, pid) = rest.split_at(after_host + at);
            let pid = pid[1..].parse();
            let Ok(pid) = pid else {
                bail!(
                    "--against {text}: {} is no process id; HOST:PORT:PID is wanted",
                    &rest[address.len() + 1..]
                )
            };
            (address, Some(pid))
        }
    };
    let is_address = address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !is_address {
        bail!("--against {text}: HOST:PORT or HOST:PORT:PID is wanted");
    }
    let listener = || resolve(address).ok().and_then(listening_on);
    Ok(Target {
        name,
        address: address.to_string(),
        pid: pid.or_else(listener),
    })
}

fn rows<F: Compared>(runs: &[Vec<F>]) -> Vec<Row> {
    let figures: Vec<Vec<_>> = runs.iter().map(|runs| runs.iter().map(F::figures).collect()).collect();
    let names = figures[0][0].iter().map(|figure| figure.0);
    names.enumerate().map(|(at, what)| row(what, at, &figures)).collect()
}

/// Figure `at` of all runs.
fn row(what: &'static str, at: usize, figures: &[Vec<Vec<Figure>>]) -> Row {
    let values: Vec<Vec<f64>> = figures
        .iter()
        .map(|runs| runs.iter().filter_map(|figures| figures[at].1).collect())
        .collect();
    let cells = values.iter().map(|own| {
        Some(Cell {
            values: spread(own)?,
            ratio: spread(&paired_ratios(own, &values[0])),
        })
    });
    Row {
        what,
        cells: cells.collect(),
    }
}

impl<F: Compared> Figures for Comparison<F> {
    fn is_good(&self) -> bool {
        self.failures().next().is_none()
    }

    fn page(&self) -> Page {
        let first = &self.runs[0][0];
        let settings = format!("{}; {} rounds", self.settings, self.rounds);
        let mut page = Page::new("compare", None, "", &settings, first.host());
        page.brokers = self.brokers.join(" and ");
        page.verdict = match self.failures().next() {
            None => "Every broker kept every rule in every round.".to_string(),
            Some(_) => format!(
                "A broker broke a rule or failed its clients: {}.",
                self.failures().collect::<Vec<_>>().join("; ")
            ),
        };
        for (broker, name) in self.brokers.iter().enumerate() {
            page.columns.push(name.clone());
            page.columns.extend((broker > 0).then(|| "ratio".to_string()));
        }
        for row in self.rows() {
            let cells = row.cells.iter().enumerate().flat_map(|(broker, cell)| {
                let values = cell.as_ref().map_or("-".to_string(), Cell::values_text);
                let ratio = cell
                    .as_ref()
                    .and_then(|cell| cell.ratio)
                    .map_or(String::new(), ratio_text);
                std::iter::once(values).chain((broker > 0).then_some(ratio))
            });
            page.rows.push((row.what.to_string(), cells.collect()));
            let ratios = |cell: &Option<Cell>| cell.as_ref().and_then(|cell| cell.ratio);
            page.ratios
                .push((row.what, row.cells.iter().skip(1).map(ratios).collect()));
        }
        page.ratios
            .retain(|(_, ratios)| ratios.iter().flatten().any(|ratio| ratio.min > 0.0));
        let named = || self.brokers.iter().zip(&self.runs).enumerate();
        // By place: what no round of a broker has is no curve, and not the place of another.
        for (at, (title, _)) in first.latencies().into_iter().enumerate() {
            let mut curves = Curves::new(title);
            for (broker, (name, runs)) in named() {
                curves = curves.with_merged(name, broker, runs.iter().filter_map(|run| run.latencies()[at].1));
            }
            page.latencies.push(curves);
        }
        page.runs = named().filter_map(|(_, (name, runs))| median_run(name, runs)).collect();
        page
    }
}

/// Over time a broker is shown by its round in the middle, by the first of its figures.
fn median_run<F: Compared>(name: &str, runs: &[F]) -> Option<Run> {
    let of = |run: &F| run.figures()[0].1.unwrap_or(0.0);
    let mut sorted: Vec<&F> = runs.iter().collect();
    sorted.sort_by(|a, b| of(a).total_cmp(&of(b)));
    Some(Run {
        name: name.to_string(),
        timeline: sorted.get(sorted.len() / 2)?.timeline().clone(),
    })
}

fn ratio_text(r: Spread) -> String {
    format!("{} [{}..{}]", ratio(r.median), ratio(r.min), ratio(r.max))
}

fn cell_text(broker: usize, cell: Option<&Cell>) -> String {
    let Some(cell) = cell else {
        return "-".to_string();
    };
    match cell.ratio.filter(|_| broker > 0) {
        Some(ratio) => format!("{} {}", cell.values_text(), ratio_text(ratio)),
        None => cell.values_text(),
    }
}

impl Cell {
    fn values_text(&self) -> String {
        let v = self.values;
        format!("{} [{}..{}]", figure(v.median), figure(v.min), figure(v.max))
    }
}

impl<F: Compared> Comparison<F> {
    /// What no broker has (acknowledgements at QoS 0, say) is no line.
    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.cells.iter().any(Option::is_some))
    }

    /// A broker, its round, and what it did wrong there.
    fn failures(&self) -> impl Iterator<Item = String> {
        self.brokers.iter().zip(&self.runs).flat_map(|(name, runs)| {
            let failed = runs.iter().enumerate();
            failed.filter_map(move |(round, run)| Some(format!("{name}, round {}: {}", round + 1, run.failure()?)))
        })
    }
}

impl<F: Compared> Display for Comparison<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}; {} rounds, median [min..max], then the ratio to the first [least..greatest]",
            self.settings, self.rounds
        )?;
        write!(f, "{:26}", "")?;
        for name in &self.brokers {
            write!(f, " {name:<56}")?;
        }
        writeln!(f)?;
        for row in self.rows() {
            write!(f, "{:26}", row.what)?;
            for (broker, cell) in row.cells.iter().enumerate() {
                write!(f, " {:<56}", cell_text(broker, cell.as_ref()))?;
            }
            writeln!(f)?;
        }
        self.failures().try_for_each(|failure| writeln!(f, "FAILED {failure}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_and_its_process_given_or_found() {
        let target = |name: Option<&str>, address: &str, pid| Target {
            name: name.map(String::from),
            address: address.into(),
            pid,
        };
        assert_eq!(
            parse_target("127.0.0.1:1883:42").unwrap(),
            target(None, "127.0.0.1:1883", Some(42))
        );
        assert_eq!(
            parse_target("old=[::1]:1883:7").unwrap(),
            target(Some("old"), "[::1]:1883", Some(7))
        );
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = Some(std::process::id());
        assert_eq!(
            parse_target(&format!("new={address}")).unwrap(),
            target(Some("new"), &address, own)
        );
        // Nobody listens on the port of the discard service.
        assert_eq!(parse_target("[::1]:9").unwrap(), target(None, "[::1]:9", None));
        for wrong in ["127.0.0.1", "a:b:c", "", "127.0.0.1:1883:x"] {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_scenario_that_can_be_compared_gives_ratios_to_the_first_broker() {
        use crate::fake_broker::{FakeBroker, Fault};
        let brokers = [FakeBroker::start(Fault::None), FakeBroker::start(Fault::None)];
        let settings = Settings {
            against: brokers.iter().map(|broker| broker.address.clone()).collect(),
            rounds: 2,
        };
        let figures = |what: &'static str, value: f64| Given {
            what,
            value,
            host: Host::this(),
            timeline: Timeline::default(),
        };
        let values = std::cell::Cell::new(0.0);
        let comparison = run(&settings, |address, pid| {
            assert_eq!(pid, Some(std::process::id()));
            values.set(values.get() + 1.0);
            Ok(figures(if address.is_empty() { "" } else { "x" }, values.get()))
        })
        .unwrap();
        // Rounds 1, 2 forwards and 3, 4 backwards: the ratios are 2/1 and 3/4.
        let cell = comparison.rows[0].cells[1].as_ref().unwrap();
        let to_first = cell.ratio.unwrap();
        assert_eq!((to_first.min, to_first.max), (0.75, 2.0));
        assert!(
            !comparison.is_good() && comparison.to_string().contains("FAILED self"),
            "{comparison}"
        );
    }

    #[derive(Serialize)]
    struct Given {
        what: &'static str,
        value: f64,
        host: Host,
        timeline: Timeline,
    }

    impl Compared for Given {
        fn broker(&self) -> Option<&str> {
            Some("self")
        }

        fn settings(&self) -> String {
            String::new()
        }

        fn host(&self) -> &Host {
            &self.host
        }

        fn timeline(&self) -> &Timeline {
            &self.timeline
        }

        fn latencies(&self) -> Vec<(&'static str, Option<&Latency>)> {
            Vec::new()
        }

        fn figures(&self) -> Vec<Figure> {
            vec![(self.what, Some(self.value))]
        }

        fn failure(&self) -> Option<String> {
            (self.value == 4.0).then(|| "four".to_string())
        }
    }
}
