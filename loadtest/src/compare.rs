//! One throughput scenario against several brokers in turn: medians, and ratios to the first.
//!
//! Called  by `main`.
//! Holds   - brokers take turns within a round, and every second round runs backwards, so that a slow drift of the machine
//!           meets all of them alike;
//!         - a ratio is taken within a round and only then summarised.

use std::fmt::{self, Display};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::broker_process::BrokerProcess;
use crate::html::{Curves, Page, Run};
use crate::report::{Figures, Throughput, figure, ratio};
use crate::stats::{Spread, paired_ratios, spread};
use crate::throughput;

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Brokers as HOST:PORT:PID, the one to compare with first; NAME=HOST:PORT:PID gives one a name
    #[arg(long, value_delimiter = ',', required = true)]
    pub against: Vec<String>,
    /// Runs against each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    name: Option<String>,
    address: String,
    pid: u32,
}

#[derive(Debug, Serialize)]
pub struct Comparison {
    settings: String,
    rounds: u32,
    brokers: Vec<String>,
    rows: Vec<Row>,
    runs: Vec<Vec<Throughput>>,
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

type Pick = fn(&Throughput) -> Option<f64>;

const FIGURES: [(&str, Pick); 22] = [
    ("delivered/s", |t| Some(t.delivered_per_s)),
    ("acknowledged/s", |t| t.acknowledged_per_s),
    ("broker CPU µs/message", |t| t.broker_cpu_us),
    ("  user µs", |t| t.broker_user_us),
    ("  system µs", |t| t.broker_system_us),
    ("broker CPUs", |t| t.broker_cpus),
    ("latency p50 µs", |t| Some(t.latency_us.p50)),
    ("latency p90 µs", |t| Some(t.latency_us.p90)),
    ("latency p99 µs", |t| Some(t.latency_us.p99)),
    ("latency p99.9 µs", |t| Some(t.latency_us.p999)),
    ("latency max µs", |t| Some(t.latency_us.max)),
    ("ack p50 µs", |t| Some(t.acknowledgement_us.as_ref()?.p50)),
    ("ack p90 µs", |t| Some(t.acknowledgement_us.as_ref()?.p90)),
    ("ack p99 µs", |t| Some(t.acknowledgement_us.as_ref()?.p99)),
    ("ack p99.9 µs", |t| Some(t.acknowledgement_us.as_ref()?.p999)),
    ("ack max µs", |t| Some(t.acknowledgement_us.as_ref()?.max)),
    ("written bytes/acked", |t| Some(t.broker_written?.bytes_per_message)),
    ("  by write calls, bytes", |t| {
        Some(t.broker_written?.call_bytes_per_message)
    }),
    ("  write calls", |t| Some(t.broker_written?.calls_per_message)),
    ("machine's disk flushes/s", |t| t.broker_written?.machine_flushes_per_s),
    ("generator CPU µs/message", |t| Some(t.generator_cpu_us)),
    ("dropped", |t| Some(t.faults.missing as f64)),
];

pub fn run(settings: &Settings, throughput: &throughput::Settings) -> Result<Comparison> {
    let targets: Vec<Target> = settings
        .against
        .iter()
        .map(|text| parse_target(text))
        .collect::<Result<_>>()?;
    // A wrong process id is told before the first round, not in the middle of it.
    for (target, text) in targets.iter().zip(&settings.against) {
        BrokerProcess::new(target.pid).with_context(|| format!("--against {text}"))?;
    }
    let mut runs: Vec<Vec<Throughput>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..settings.rounds {
        let mut order: Vec<usize> = (0..targets.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for broker in order {
            let Target { address, pid, .. } = &targets[broker];
            let figures = throughput::run(address, Some(*pid), throughput)
                .with_context(|| format!("round {} against {}", round + 1, settings.against[broker]))?;
            runs[broker].push(figures);
        }
    }
    let names = targets.iter().zip(&runs).map(|(target, runs)| match &target.name {
        Some(name) => name.clone(),
        None => format!("{} {}", runs[0].broker.as_deref().unwrap_or("?"), target.address),
    });
    Ok(Comparison {
        brokers: names.collect(),
        settings: runs[0][0].settings.clone(),
        rounds: settings.rounds,
        rows: FIGURES.iter().map(|&(what, pick)| row(what, pick, &runs)).collect(),
        runs,
    })
}

fn parse_target(text: &str) -> Result<Target> {
    let (name, rest) = match text.split_once('=') {
        Some((name, rest)) => (Some(name.to_string()), rest),
        None => (None, text),
    };
    let parts = rest
        .rsplit_once(':')
        .and_then(|(address, pid)| Some((address, pid.parse().ok()?)));
    match parts {
        Some((address, pid)) if address.contains(':') => Ok(Target {
            name,
            address: address.to_string(),
            pid,
        }),
        _ => bail!("--against {text}: HOST:PORT:PID is wanted"),
    }
}

fn row(what: &'static str, pick: Pick, runs: &[Vec<Throughput>]) -> Row {
    let values: Vec<Vec<f64>> = runs.iter().map(|runs| runs.iter().filter_map(pick).collect()).collect();
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

impl Figures for Comparison {
    fn is_good(&self) -> bool {
        self.runs.iter().flatten().all(Figures::is_good)
    }

    fn page(&self) -> Page {
        let first = &self.runs[0][0];
        let settings = format!("{}; {} rounds", self.settings, self.rounds);
        let mut page = Page::new("compare", None, "", &settings, &first.host);
        page.brokers = self.brokers.join(" and ");
        page.verdict = match self.failures().next() {
            None => "Every broker kept every rule in every round.".to_string(),
            Some(_) => format!(
                "A broker broke a delivery rule: {}.",
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
        let mut delivered = Curves::new("Delivered, from PUBLISH");
        let mut acknowledged = Curves::new("Acknowledged, from PUBLISH");
        for (broker, (name, runs)) in named() {
            delivered = delivered.with_merged(name, broker, runs.iter().map(|run| &run.latency_us));
            let acknowledgements = runs.iter().filter_map(|run| run.acknowledgement_us.as_ref());
            acknowledged = acknowledged.with_merged(name, broker, acknowledgements);
        }
        page.latencies = vec![delivered, acknowledged];
        page.runs = named().filter_map(|(_, (name, runs))| median_run(name, runs)).collect();
        page
    }
}

/// Over time a broker is shown by its round in the middle, by what was delivered.
fn median_run(name: &str, runs: &[Throughput]) -> Option<Run> {
    let mut sorted: Vec<&Throughput> = runs.iter().collect();
    sorted.sort_by(|a, b| a.delivered_per_s.total_cmp(&b.delivered_per_s));
    Some(Run {
        name: name.to_string(),
        timeline: sorted.get(sorted.len() / 2)?.timeline.clone(),
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

impl Comparison {
    /// What no broker has (acknowledgements at QoS 0, say) is no line.
    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.cells.iter().any(Option::is_some))
    }

    /// A broker, its round, and what it did wrong there.
    fn failures(&self) -> impl Iterator<Item = String> {
        self.brokers.iter().zip(&self.runs).flat_map(|(name, runs)| {
            let failed = runs.iter().enumerate().filter(|(_, run)| !run.is_good());
            failed.map(move |(round, run)| {
                let counts = format!("{}{}", run.faults, run.acknowledgements.told());
                format!("{name}, round {}: {counts}", round + 1)
            })
        })
    }
}

impl Display for Comparison {
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
    fn a_target_is_an_address_and_a_process() {
        let target = |name: Option<&str>, address: &str, pid| Target {
            name: name.map(String::from),
            address: address.into(),
            pid,
        };
        assert_eq!(
            parse_target("127.0.0.1:1883:42").unwrap(),
            target(None, "127.0.0.1:1883", 42)
        );
        assert_eq!(
            parse_target("old=[::1]:1883:7").unwrap(),
            target(Some("old"), "[::1]:1883", 7)
        );
        for wrong in ["127.0.0.1:1883", "127.0.0.1", "a:b:c", ""] {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }
}
