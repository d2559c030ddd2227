//! A mixed load for hours: all QoS over several transports, clients that come and go, Sessions that wait for them, retained
//! messages, Wills; every message is checked from the first minute to the last, and the broker's memory is to stay flat.
//!
//! Owns    the flags of the scenario.
//! Called  by `main`.
//! Holds   - a broker that fails under load ends the run, not the report: what was measured until then is told with the cause;
//!         - the Sessions and retained messages of the run are ended after it.

mod clients;
mod engine;
mod report;
#[cfg(test)]
mod tests;
mod wills;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::engine::Engine;
pub use self::report::Soak;
use crate::broker_process::BrokerProcess;
use crate::packet::{Credentials, run_tag};
use crate::report::grouped;
use crate::timeline::Watch;
use crate::transport::{LayerSettings, Target, Transport};
use crate::visits::Visits;

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Seconds of load
    #[arg(long, default_value_t = 0.0)]
    pub seconds: f64,
    /// Minutes of load, added to --seconds [default: 10, without --seconds]
    #[arg(long)]
    pub minutes: Option<f64>,
    /// The broker's port for TLS, HOST:PORT; clients come over it as well
    #[arg(long, value_name = "ADDR")]
    pub tls_addr: Option<String>,
    /// The broker's port for WebSocket
    #[arg(long, value_name = "ADDR")]
    pub ws_addr: Option<String>,
    /// The broker's port for secure WebSocket
    #[arg(long, value_name = "ADDR")]
    pub wss_addr: Option<String>,
    /// Pairs of each kind over each transport. The kinds: QoS 0, 1 and 2 with a clean Session, 1 and 2 with one that is kept
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// Messages a second over all pairs, on a schedule
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rate: u64,
    /// Subscribers that leave and come back, a second, all in turn; each brings a visitor who reads a retained message, and a client
    /// with a Will, which every second one leaves. 0: none
    #[arg(long, default_value_t = 1.0)]
    pub churn: f64,
    /// Seconds a subscriber stays away
    #[arg(long, default_value_t = 2.0)]
    pub away: f64,
    /// Payload bytes, at least 24
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(24..=1_000_000))]
    pub size: u32,
    /// Above QoS 0: messages of one publisher without their acknowledgement; what falls due beyond is not sent
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub unacked: u16,
    /// Seconds between two lines that tell how it goes
    #[arg(long, default_value_t = 60.0)]
    pub every: f64,
    /// First levels of the topics. Where a broker lets its clients use topics below a token only, that token
    #[arg(
        long,
        default_value = "soak",
        env = "SKEIN_LOAD_TOPIC_PREFIX",
        hide_env_values = true
    )]
    pub topic_prefix: String,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub layers: LayerSettings,
}

impl Settings {
    fn check(&self) -> Result<f64> {
        let minutes = self.minutes.unwrap_or(if self.seconds > 0.0 { 0.0 } else { 10.0 });
        let seconds = self.seconds + minutes * 60.0;
        for (value, most, flag) in [
            (self.seconds, 1e7, "--seconds"),
            (minutes, 1e5, "--minutes"),
            (self.away, 3600.0, "--away"),
            (self.churn, 1000.0, "--churn"),
            (self.every, 1e7, "--every"),
        ] {
            if !(0.0..=most).contains(&value) {
                bail!("{flag} {value} is outside 0..={most}");
            }
        }
        if seconds < 0.1 || self.every < 0.1 {
            bail!("a run, and what lies between two lines, take 0.1 s at least");
        }
        Ok(seconds)
    }

    fn targets(&self, address: &str) -> Result<Vec<(Transport, Target)>> {
        let all = [
            (Transport::Tcp, Some(address)),
            (Transport::Tls, self.tls_addr.as_deref()),
            (Transport::Ws, self.ws_addr.as_deref()),
            (Transport::Wss, self.wss_addr.as_deref()),
        ];
        let given = all.into_iter().filter_map(|(transport, text)| Some((transport, text?)));
        given
            .map(|(transport, text)| Ok((transport, Target::with_tickets(text, transport, &self.layers, None)?)))
            .collect()
    }

    fn describe(&self, targets: &[(Transport, Target)], pairs: usize, seconds: f64) -> String {
        let names: Vec<&str> = targets.iter().map(|(transport, _)| transport.name()).collect();
        format!(
            "{pairs} pairs over {}, QoS 0, 1 and 2, {} bytes, open loop at {}/s, {} leave a second for {} s, {seconds} s",
            names.join(", "),
            self.size,
            grouped(self.rate),
            self.churn,
            self.away
        )
    }
}

pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Soak> {
    let seconds = settings.check()?;
    let targets = settings.targets(address)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let run = run_tag();
    let watch = Watch::start(broker.as_ref(), &["delivered"], "connect")?;
    let mut engine = Engine::connect(&targets, settings, run, watch)?;
    let text = settings.describe(&targets, engine.pairs(), seconds);
    let set_up = engine.wait_for_all();
    let failure = match set_up {
        Ok(()) => engine.drive(seconds, broker.as_ref()).err(),
        Err(_) => None,
    };
    let durable = engine.durable_ids();
    let figures = engine.report(
        address,
        broker.as_ref(),
        text,
        failure.map(|error| format!("{error:#}")),
    )?;
    for ((_, target), ids) in targets.iter().zip(&durable) {
        let ended = Visits {
            target,
            credentials: &settings.credentials,
            count: ids.len(),
            client_id: Box::new(|i| ids[i].clone()),
        }
        .end_sessions();
        // What made the run fail is in the figures, not what came of it.
        if set_up.is_ok() && figures.failure.is_none() {
            ended.context("the run is done, its Sessions could not be ended")?;
        }
    }
    set_up.map(|()| figures)
}
