//! The command line: parse flags, start logging, run, turn an error into one sentence and an exit code.
//!
//! Exit codes: 0 a clean stop; 2 what the operator has to change (flags, settings, what a start found in its way);
//! 1 anything else, a store that `skein inspect` finds fault with and a host that `skein doctor` does among it.

mod account_command;
mod logging;

use clap::{Args, Parser, Subcommand};
use skein::config::{Config, DEFAULT_TOML, Raw};
use skein::doctor::{Host, Needs, examine};
use skein::server;
use skein::store::inspect::inspect;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// An MQTT broker: one binary, one thread per core
#[derive(Parser)]
#[command(name = "skein", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "A flag goes before its environment variable (--max-packet: SKEIN_MAX_PACKET), that before the \
                        file given with --config."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Run the broker: what `skein` alone does too
    Serve(Serve),
    /// Print every setting with its default, as a file for --config
    Config,
    /// Manage the accounts of the platform, while a broker runs or not
    Account(account_command::AccountCommand),
    /// Show what a data directory holds and check that it is whole, while a broker runs on it or not
    Inspect(Inspect),
    /// Check what this host allows against what so many connections need, and print the command that mends what falls short
    Doctor(Doctor),
}

#[derive(Args)]
struct Serve {
    /// File of settings (TOML); `skein config` prints one
    #[arg(long, env = "SKEIN_CONFIG", value_name = "FILE", hide_env = true)]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Raw,

    /// Print every setting with its default, and end
    #[arg(long)]
    print_config: bool,
}

#[derive(Args)]
struct Inspect {
    /// Directory of the data, as the broker was given it
    #[arg(
        long,
        env = "SKEIN_DATA_DIR",
        value_name = "DIR",
        hide_env = true,
        default_value = "skein-data"
    )]
    data_dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Takes the settings of the broker, as it is going to be started. Exit code 1 if something must be changed
#[derive(Args)]
struct Doctor {
    /// Connections at a time to check for; --max-connections unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    connections: Option<u64>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// File of settings (TOML), as the broker is given it
    #[arg(long, env = "SKEIN_CONFIG", value_name = "FILE", hide_env = true)]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Raw,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let serve = match command_line.command {
        Some(Command::Config) => return print_config(),
        Some(Command::Account(command)) => return account_command::run(command),
        Some(Command::Inspect(inspect)) => return print_inspection(&inspect),
        Some(Command::Doctor(doctor)) => return print_examination(doctor),
        Some(Command::Serve(serve)) => serve,
        None => command_line.serve,
    };
    if serve.print_config {
        return print_config();
    }
    let config = match Config::load(serve.settings, serve.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let log = logging::start(config.log, config.log_format);
    let ran = server::run(config);
    log.flush();
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

fn print_config() -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(DEFAULT_TOML.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Exit code 1 if something in it is wrong.
fn print_inspection(wanted: &Inspect) -> ExitCode {
    let inspection = match inspect(&wanted.data_dir) {
        Ok(inspection) => inspection,
        Err(error) => return refuse(&error),
    };
    let text = match wanted.json {
        false => inspection.to_string(),
        true => serde_json::to_string_pretty(&inspection).expect("it is made of texts and numbers") + "\n",
    };
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match printed.is_ok() && inspection.findings_count == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Exit code 1 if something must be changed.
fn print_examination(wanted: Doctor) -> ExitCode {
    let config = match Config::load(wanted.settings, wanted.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    let connections = wanted.connections.unwrap_or(config.connections_max as u64);
    let host = Host::this(&config.data_dir);
    let examination = examine(&host, &Needs::new(config, connections));
    let text = match wanted.json {
        false => examination.to_string(),
        true => serde_json::to_string_pretty(&examination).expect("it is made of texts and numbers") + "\n",
    };
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match printed.is_ok() && examination.fixes_count == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// For the operator: one sentence.
fn refuse(error: &dyn std::error::Error) -> ExitCode {
    // Nothing is left to be done when standard error is closed.
    let _ = writeln!(std::io::stderr(), "skein: {error}");
    ExitCode::from(2)
}
