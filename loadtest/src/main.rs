//! `skein-load`: a load generator for any MQTT 3.1.1 broker. Flags in, a scenario run, figures and an exit code out.
//!
//! `throughput` sends messages through a broker, `compare` does so against several brokers in turn, `idle` holds
//! connections that do nothing, `backlog` queues messages for sessions that are away, `retained` sets retained messages and
//! reads them back, `connect` opens connections by the thousand; `relay` is the floor to compare with. What they share:
//! `client` (one connection), `transport` (what MQTT runs over), `packet` (bytes), `sequence` and `acknowledgement` (was every
//! rule kept), `pace` (open loop), `senders`, `receivers` and `visits` (clients with finite work), `broker_process` (/proc), `meter` and `memory_watch` (what a phase cost), `stats` and `report`.
//!
//! Exit codes: 0 done, 1 the broker broke a delivery rule or failed a client, 2 it could not be measured (the sentence is on stderr).

mod acknowledgement;
mod backlog;
mod broker_process;
mod client;
mod compare;
mod connect;
mod dial;
#[cfg(test)]
mod fake_broker;
#[cfg(test)]
mod fake_front;
mod idle;
mod memory_watch;
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
mod source_ports;
mod stats;
mod throughput;
mod timer;
mod transport;
mod visits;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "skein-load", version, about = "A load generator for any MQTT 3.1.1 broker")]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Hold many connections that do nothing; measure what each costs the broker in user memory
    Idle {
        /// The broker, HOST:PORT
        #[arg(long, default_value = "127.0.0.1:1883")]
        addr: String,
        /// Its process, to read CPU time and memory of. Start it afresh: heap freed by an earlier run is used again and makes
        /// a connection look cheaper than it is
        #[arg(long)]
        broker_pid: Option<u32>,
        #[command(flatten)]
        settings: idle::Settings,
        /// Write the figures here as well
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Send messages through a broker; check, count and time every one
    Throughput {
        /// The broker, HOST:PORT
        #[arg(long, default_value = "127.0.0.1:1883")]
        addr: String,
        /// Its process, to read CPU time, memory and what it writes of
        #[arg(long)]
        broker_pid: Option<u32>,
        #[command(flatten)]
        settings: throughput::Settings,
        /// Write the figures here as well
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Run one throughput scenario against several brokers in turn; print medians and ratios
    Compare {
        #[command(flatten)]
        settings: compare::Settings,
        #[command(flatten)]
        throughput: throughput::Settings,
        /// Write the figures of all rounds here as well
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Queue messages for sessions that are away; let them come back; check, count and time what they get
    Backlog {
        /// The broker, HOST:PORT
        #[arg(long, default_value = "127.0.0.1:1883")]
        addr: String,
        /// Its process, to read CPU time, memory and what it writes of. Start it afresh: heap freed by an earlier run is used
        /// again and makes messages look cheaper than they are
        #[arg(long)]
        broker_pid: Option<u32>,
        #[command(flatten)]
        settings: backlog::Settings,
        /// Write the figures here as well
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Set retained messages; let subscribers read all of them; check, count and time what they get
    Retained {
        /// The broker, HOST:PORT
        #[arg(long, default_value = "127.0.0.1:1883")]
        addr: String,
        /// Its process, to read CPU time, memory and what it writes of. Start it afresh: heap freed by an earlier run is used
        /// again and makes messages look cheaper than they are
        #[arg(long)]
        broker_pid: Option<u32>,
        #[command(flatten)]
        settings: retained::Settings,
        /// Write the figures here as well
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Connect again and again: how many a second the broker takes, and what those who were there before notice of it
    Connect {
        /// The broker, HOST:PORT
        #[arg(long, default_value = "127.0.0.1:1883")]
        addr: String,
        /// Its process, to read CPU time of
        #[arg(long)]
        broker_pid: Option<u32>,
        #[command(flatten)]
        settings: connect::Settings,
        /// Write the figures here as well
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Be a relay for QoS 0 without broker semantics: the floor a broker's cost is compared with
    Relay {
        #[command(flatten)]
        settings: relay::Settings,
    },
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
            addr,
            broker_pid,
            settings,
            json,
        } => {
            let figures = idle::run(&addr, broker_pid, &settings)?;
            print!("{figures}");
            if let Some(path) = json {
                report::write_json(&path, &figures)?;
            }
            figures.is_good()
        }
        Scenario::Throughput {
            addr,
            broker_pid,
            settings,
            json,
        } => {
            let figures = throughput::run(&addr, broker_pid, &settings)?;
            print!("{figures}");
            if let Some(path) = json {
                report::write_json(&path, &figures)?;
            }
            figures.verdict == report::Verdict::Good
        }
        Scenario::Compare {
            settings,
            throughput,
            json,
        } => {
            let comparison = compare::run(&settings, &throughput)?;
            print!("{comparison}");
            if let Some(path) = json {
                report::write_json(&path, &comparison)?;
            }
            comparison.is_good()
        }
        Scenario::Backlog {
            addr,
            broker_pid,
            settings,
            json,
        } => {
            let figures = backlog::run(&addr, broker_pid, &settings)?;
            print!("{figures}");
            if let Some(path) = json {
                report::write_json(&path, &figures)?;
            }
            figures.verdict == report::Verdict::Good
        }
        Scenario::Retained {
            addr,
            broker_pid,
            settings,
            json,
        } => {
            let figures = retained::run(&addr, broker_pid, &settings)?;
            print!("{figures}");
            if let Some(path) = json {
                report::write_json(&path, &figures)?;
            }
            figures.verdict == report::Verdict::Good
        }
        Scenario::Connect {
            addr,
            broker_pid,
            settings,
            json,
        } => {
            let figures = connect::run(&addr, broker_pid, &settings)?;
            print!("{figures}");
            if let Some(path) = json {
                report::write_json(&path, &figures)?;
            }
            figures.is_good()
        }
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
    use clap::CommandFactory;

    #[test]
    fn the_flags_of_every_scenario_fit_together() {
        Arguments::command().debug_assert();
    }
}
