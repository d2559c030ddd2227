//! `skein-load`: a load generator for any MQTT 3.1.1 broker. Flags in, a scenario run, figures and an exit code out.
//!
//! `throughput` sends messages through a broker, `latency` does so at a fixed rate, `soak` for hours and of all kinds,
//! `slow-reader` to subscribers that do not keep up; `idle` holds connections that do nothing, `connect` opens them by the
//! thousand; `backlog` queues messages for sessions that are away, `retained` sets retained messages and reads them back;
//! `telemetry` sends datapoints to a device platform and looks for them in its streams; `compare` runs a scenario against
//! several brokers in turn; `relay` is the floor to compare with. What they share: `client` (one connection), `transport`
//! (what MQTT runs over), `packet` (bytes), `sequence` and `acknowledgement` (was every rule kept), `pace` (open loop),
//! `senders`, `receivers` and `visits` (clients with finite work), `bystanders` (clients to whom something is done), `api` (the
//! platform's HTTP API), `broker_process` and `kernel_memory` (/proc), `meter` and `timeline` (what a phase cost, and when),
//! `stats`, `report` and `html`.
//!
//! Exit codes: 0 done, 1 the broker broke a delivery rule or failed a client, 2 it could not be measured (the sentence is on stderr).

mod acknowledgement;
mod api;
mod backlog;
mod broker_process;
mod bystanders;
mod client;
mod compare;
mod connect;
mod dial;
#[cfg(test)]
mod fake_api;
#[cfg(test)]
mod fake_broker;
#[cfg(test)]
mod fake_front;
mod html;
mod idle;
mod kernel_memory;
mod latency;
mod meter;
mod pace;
mod packet;
mod poller;
mod private_fds;
mod progress;
mod receivers;
mod relay;
mod report;
mod retained;
mod senders;
mod sequence;
mod sizes;
mod slow_reader;
mod soak;
mod source_ports;
mod stats;
mod telemetry;
mod throughput;
mod timeline;
mod timer;
mod transport;
mod visits;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::report::Figures;

#[derive(Debug, Parser)]
#[command(name = "skein-load", version, about = "A load generator for any MQTT 3.1.1 broker")]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

/// The broker under test.
#[derive(Debug, Args)]
struct Broker {
    /// The broker, HOST:PORT
    #[arg(long, default_value = "127.0.0.1:1883")]
    addr: String,
    /// Its process, to read CPU time, memory and what it writes of. Start it afresh to measure memory: heap freed by an earlier
    /// run is used again and makes what is held look cheaper than it is
    #[arg(long)]
    broker_pid: Option<u32>,
}

/// Where the figures of a run go, beside the terminal.
#[derive(Debug, Args)]
struct Outputs {
    /// Write the figures here as well, those of every round where there are several
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write them as a page for a browser, with plots: one file that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

impl Outputs {
    /// Prints the figures and writes them to the files asked for. Gives the verdict.
    fn give(&self, figures: &impl Figures) -> Result<bool> {
        print!("{figures}");
        if let Some(path) = &self.json {
            report::write_json(path, figures)?;
        }
        if let Some(path) = &self.report {
            html::write(path, figures)?;
        }
        Ok(figures.is_good())
    }
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Hold many connections that do nothing; measure what each costs in memory, and whether messages still reach them
    Idle {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: idle::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Send messages through a broker; check, count and time every one
    Throughput {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: throughput::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Send at a fixed rate; tell how long a message, and its acknowledgement, take from the time it was to leave
    Latency {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: latency::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Mixed load for minutes or hours, with clients that come and go: nothing may be lost, no memory grow
    Soak {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: soak::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Let subscribers read slowly or not at all: what becomes of them, of the broker's memory, and of the others
    SlowReader {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: slow_reader::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Run one scenario against several brokers in turn; print medians and ratios. Without its name: throughput
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Compare {
        #[command(subcommand)]
        scenario: Option<CompareScenario>,
        #[command(flatten)]
        settings: compare::Settings,
        #[command(flatten)]
        throughput: throughput::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Queue messages for sessions that are away; let them come back; check, count and time what they get
    Backlog {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: backlog::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Set retained messages; let subscribers read all of them; check, count and time what they get
    Retained {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: retained::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Connect again and again: how many a second the broker takes, and what those who were there before notice of it
    Connect {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: connect::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Send datapoints from the devices of a platform; read every one back from its stream; check, count and time them
    ///
    /// The API token is all it must be given: user name and device token, unless there are flags for them, are those the API
    /// tells of the account. Channels and devices that are not there are made. They and their datapoints stay in the account,
    /// for the next run to use again: take an account for it alone. The broker must let the account have as many devices
    /// (the platform's limit is 1,000 unless it is raised). Latencies and rates are those of the whole run.
    Telemetry {
        #[command(flatten)]
        broker: Broker,
        #[command(flatten)]
        settings: telemetry::Settings,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Be a relay for QoS 0 without broker semantics: the floor a broker's cost is compared with
    Relay {
        #[command(flatten)]
        settings: relay::Settings,
    },
}

/// What `compare` can run, each with the flags it has by itself.
#[derive(Debug, Subcommand)]
enum CompareScenario {
    /// Messages as fast as they go, or at a rate
    Throughput(Comparing<throughput::Settings>),
    /// Messages at a fixed rate
    Latency(Comparing<latency::Settings>),
    /// Storms, rates and churn of connects
    Connect(Comparing<connect::Settings>),
    /// Connections that do nothing. Heap freed in one round is used again in the next: with --rounds 1, and brokers started
    /// afresh, it is what a connection costs
    Idle(Comparing<idle::Settings>),
}

#[derive(Debug, clap::Args)]
struct Comparing<S: clap::Args> {
    #[command(flatten)]
    settings: compare::Settings,
    #[command(flatten)]
    scenario: S,
    #[command(flatten)]
    outputs: Outputs,
}

impl<S: clap::Args> Comparing<S> {
    fn run<F: compare::Compared>(&self, run: fn(&str, Option<u32>, &S) -> Result<F>) -> Result<bool> {
        let comparison = compare::run(&self.settings, |address, pid| run(address, pid, &self.scenario))?;
        self.outputs.give(&comparison)
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().scenario) {
        Ok(verdict) => verdict,
        Err(error) => {
            eprintln!("skein-load: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(scenario: Scenario) -> Result<ExitCode> {
    let is_good = match scenario {
        Scenario::Idle {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&idle::run(&addr, broker_pid, &settings)?)?,
        Scenario::Throughput {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&throughput::run(&addr, broker_pid, &settings)?)?,
        Scenario::Latency {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&latency::run(&addr, broker_pid, &settings)?)?,
        Scenario::Soak {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&soak::run(&addr, broker_pid, &settings)?)?,
        Scenario::SlowReader {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&slow_reader::run(&addr, broker_pid, &settings)?)?,
        Scenario::Compare {
            scenario,
            settings,
            throughput,
            outputs,
        } => match scenario {
            None => Comparing {
                settings,
                scenario: throughput,
                outputs,
            }
            .run(throughput::run)?,
            Some(CompareScenario::Throughput(comparing)) => comparing.run(throughput::run)?,
            Some(CompareScenario::Latency(comparing)) => comparing.run(latency::run)?,
            Some(CompareScenario::Connect(comparing)) => comparing.run(connect::run)?,
            Some(CompareScenario::Idle(comparing)) => comparing.run(idle::run)?,
        },
        Scenario::Backlog {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&backlog::run(&addr, broker_pid, &settings)?)?,
        Scenario::Retained {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&retained::run(&addr, broker_pid, &settings)?)?,
        Scenario::Connect {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&connect::run(&addr, broker_pid, &settings)?)?,
        Scenario::Telemetry {
            broker: Broker { addr, broker_pid },
            settings,
            outputs,
        } => outputs.give(&telemetry::run(&addr, broker_pid, &settings)?)?,
        Scenario::Relay { settings } => {
            relay::run(&settings)?;
            true
        }
    };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{DEVICE_TOKEN, Platform, USER};
    use crate::fake_broker::{FakeBroker, Fault};
    use clap::CommandFactory;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_flags_of_every_scenario_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_comparison_is_of_the_scenario_named_and_of_throughput_when_none_is() {
        let brokers = [FakeBroker::start(Fault::None), FakeBroker::start(Fault::None)];
        let against = format!("old={},new={}", brokers[0].address, brokers[1].address);
        for scenario in [
            "--publishers 1 --warmup 0 --seconds 0.1",
            "throughput --publishers 1 --warmup 0 --seconds 0.1",
            "latency --pairs 1 --rate 100 --warmup 0 --seconds 0.1",
            "connect --connections 10",
        ] {
            let flags = ["--rounds", "1", "--against", &against];
            let words = ["skein-load", "compare"].into_iter().chain(scenario.split(' '));
            let verdict = run(Arguments::parse_from(words.chain(flags)).scenario).unwrap();
            assert_eq!(format!("{verdict:?}"), format!("{:?}", ExitCode::SUCCESS), "{scenario}");
        }
        assert!(Arguments::try_parse_from(["skein-load", "compare"]).is_err());
    }

    #[test]
    fn every_scenario_works_where_clients_need_credentials_short_ids_and_topics_below_a_token() {
        let platform = Arc::new(Mutex::new(Platform::default()));
        let broker = FakeBroker::with(Fault::None, Some(platform));
        let report = std::env::temp_dir().join(format!("skein-load-{}.html", std::process::id()));
        for scenario in [
            "idle --connections 5",
            "throughput --qos 1 --publishers 1 --warmup 0 --seconds 0.2",
            "backlog --sessions 2 --messages 20",
            "retained --topics 20",
            "connect --connections 20 --bystanders 1",
        ] {
            let run_with = |password: &str| {
                let flags = ["--addr", &broker.address, "--username", USER, "--password", password];
                let prefix = ["--topic-prefix", DEVICE_TOKEN, "--report", report.to_str().unwrap()];
                let words = ["skein-load"].into_iter().chain(scenario.split(' '));
                run(Arguments::parse_from(words.chain(flags).chain(prefix)).scenario)
            };
            let verdict = run_with(DEVICE_TOKEN).unwrap();
            assert_eq!(format!("{verdict:?}"), format!("{:?}", ExitCode::SUCCESS), "{scenario}");
            let page = std::fs::read_to_string(&report).unwrap();
            std::fs::remove_file(&report).unwrap();
            let name = scenario.split(' ').next().unwrap();
            assert!(
                page.contains(&format!("<h1>{name}: ")) && page.ends_with("</html>"),
                "{page}"
            );
            assert!(!page.contains(DEVICE_TOKEN), "{page}");
            let refusal = format!("{:#}", run_with("wrong").unwrap_err());
            assert!(refusal.contains("bad user name or password"), "{scenario}: {refusal}");
        }
    }
}
