//! Layer 7: `skein doctor`: the host held against what so many connections need.
//!
//! Owns    the list of checks, and the command that mends what each finds.
//! Called  by `main`.
//! Holds   - nothing of the host is changed: it is read, through [`Host`], under a root that tests make up;
//!         - [`State::Fix`] is what stands between this host and the connections asked for, and nothing else is;
//!         - what the kernel does not tell is said to be unknown, and is no finding.

mod disk;
mod files;
mod host;
mod kernel;
mod memory;
mod network;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use crate::config::{Config, Driver};

pub use host::{Host, Tried};

/// What is asked of the host.
#[derive(Clone, Debug)]
pub struct Needs {
    pub connections: u64,
    pub cores: u64,
    pub driver: Driver,
    pub config: Config,
}

impl Needs {
    /// Of a broker with these settings, and at most `connections` at a time.
    pub fn new(config: Config, connections: u64) -> Needs {
        Needs {
            connections,
            cores: u64::from(config.cores),
            driver: config.driver,
            config: Config {
                connections_max: connections as usize,
                ..config
            },
        }
    }

    /// Flag and number of every port that is open; what the kernel chooses has none yet.
    fn ports(&self) -> Vec<(&'static str, u16)> {
        let config = &self.config;
        let ports = [
            ("--mqtt-port", config.mqtt_port),
            ("--mqtts-port", config.mqtts_port),
            ("--ws-port", config.ws_port),
            ("--wss-port", config.wss_port),
            ("--api-port", config.api_port()),
        ];
        let given = ports
            .into_iter()
            .filter_map(|(flag, port)| Some((flag, port.filter(|port| *port != 0)?)));
        given.collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    /// Must be changed.
    Fix,
    /// Works, and something else may work better.
    Hint,
    /// This host does not tell.
    Unknown,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub state: State,
    pub text: String,
    /// To paste into a shell; any one of them mends it.
    pub commands: Vec<String>,
}

impl Finding {
    fn new(check: &'static str, state: State, text: impl Into<String>) -> Finding {
        Finding {
            check,
            state,
            text: text.into(),
            commands: Vec::new(),
        }
    }

    fn or(mut self, command: impl Into<String>) -> Finding {
        self.commands.push(command.into());
        self
    }
}

/// What `skein doctor` prints.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Examination {
    pub connections: u64,
    pub cores: u64,
    pub data_dir: PathBuf,
    pub findings: Vec<Finding>,
    pub fixes_count: usize,
}

/// Holds `host` against `needs`.
pub fn examine(host: &Host, needs: &Needs) -> Examination {
    let findings: Vec<Finding> = [
        files::check(host, needs),
        memory::check(host, needs),
        network::check(host, needs),
        kernel::check(host, needs),
        disk::check(host),
    ]
    .concat();
    Examination {
        connections: needs.connections,
        cores: needs.cores,
        data_dir: needs.config.data_dir.clone(),
        fixes_count: findings.iter().filter(|finding| finding.state == State::Fix).count(),
        findings,
    }
}

/// A setting of sysctl that must be `min` at least.
fn at_least(host: &Host, name: &'static str, min: u64, why: &str) -> Finding {
    match host.sysctl_number(name) {
        None => Finding::new(name, State::Unknown, "this host does not tell"),
        Some(now) if now >= min => {
            Finding::new(name, State::Ok, format!("{} (wanted: {})", grouped(now), grouped(min)))
        }
        Some(now) => Finding::new(
            name,
            State::Fix,
            format!("{}, and {} is wanted: {why}", grouped(now), grouped(min)),
        )
        .or(set(name, min)),
    }
}

fn set(name: &str, value: impl fmt::Display) -> String {
    format!("sudo sysctl -w {name}={value}")
}

/// 1234567 -> "1,234,567".
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes.div_ceil(1 << 20)))
}

impl fmt::Display for Examination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} connections on {} cores, data in {}",
            grouped(self.connections),
            self.cores,
            self.data_dir.display()
        )?;
        for finding in &self.findings {
            let state = match finding.state {
                State::Ok => "ok",
                State::Fix => "fix",
                State::Hint => "hint",
                State::Unknown => "?",
            };
            writeln!(f, "{state:<5} {:<32} {}", finding.check, finding.text)?;
            for (place, command) in finding.commands.iter().enumerate() {
                writeln!(f, "{:>8}  {command}", if place == 0 { "" } else { "or" })?;
            }
        }
        match self.fixes_count {
            0 => writeln!(f, "nothing has to be changed"),
            1 => writeln!(f, "1 thing has to be changed"),
            count => writeln!(f, "{count} things have to be changed"),
        }?;
        match self.findings.iter().any(|finding| {
            finding.state == State::Fix && finding.commands.iter().any(|command| command.contains("sysctl -w"))
        }) {
            true => writeln!(
                f,
                "sysctl -w lasts until the next boot; a file in /etc/sysctl.d keeps the same NAME=VALUE for good"
            ),
            false => Ok(()),
        }
    }
}
