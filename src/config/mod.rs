//! Layer 6: the settings of one run, checked and typed.
//!
//! Owns    [`Config`], its defaults, the ranges of its values, and the sentences that say what to change.
//! Called  by `main` ([`Config::load`]); read by `server`, which hands each module its own small struct.
//! Holds   - a value that exists is in its range;
//!         - file < environment < flags; the embedded [`DEFAULT_TOML`] says the same as [`Config::default`].

mod raw;
mod units;

pub use raw::Raw;
pub use units::{Expiry, Networks, Origins, Port, ProxyPorts, Size, Span};

use crate::limits;
use crate::registry::quota::Quotas;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every key with its default and what it does: what `skein config` prints.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// What the broker runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub access: Access,
    /// Worker threads.
    pub cores: u16,
    pub driver: Driver,
    pub private_fds: PrivateFds,
    pub connections_max: usize,
    pub shard_levels: usize,
    pub bind: IpAddr,
    /// None: closed. 0: any free port.
    pub mqtt_port: Option<u16>,
    /// None or 0: as `mqtt_port`.
    pub mqtts_port: Option<u16>,
    pub ws_port: Option<u16>,
    pub wss_port: Option<u16>,
    /// Only with [`Access::Platform`].
    pub api: ApiConfig,
    /// None: the broker makes its own.
    pub tls_certificate: Option<CertificateFiles>,
    /// None: no client is asked for a certificate.
    pub tls_client_ca: Option<PathBuf>,
    pub tls_client_cn_as_username: bool,
    /// Empty: any.
    pub ws_allow_origin: Vec<String>,
    pub proxy_protocol: ProxyPorts,
    pub data_dir: PathBuf,
    pub durability: Durability,
    pub map_bytes: usize,
    /// None: never.
    pub session_expiry: Option<Duration>,
    pub retained_memory_bytes_max: usize,
    pub packet_bytes_max: usize,
    pub inflight_max: usize,
    pub queued_max: usize,
    pub queued_bytes_max: usize,
    pub overflow_wait: Duration,
    /// 0: any number.
    pub publishes_per_s_max: u32,
    pub write_interval: Duration,
    pub outbox_bytes_max: usize,
    pub subscriptions_per_session_max: usize,
    pub client_id_chars_max: usize,
    /// Only with [`Access::Platform`]: of an account that has no others of its own.
    pub account_quotas: Quotas,
    pub connect_timeout: Duration,
    pub log: LogLevel,
    pub log_format: LogFormat,
    pub ready_file: Option<PathBuf>,
}

/// The HTTP API and what comes with it: events, webhooks, mail.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// None: closed. 0: any free port.
    pub port: Option<u16>,
    pub bind: IpAddr,
    pub is_tls: bool,
    /// Calls in a second by one account; 0: any number.
    pub rate: u32,
    /// Times in a second by one device; 0: any number.
    pub connector_rate: u32,
    pub body_bytes_max: usize,
    pub v1: bool,
    pub webhook_allow: Networks,
    /// None: mails are logged.
    pub smtp_relay: Option<String>,
    pub mail_from: String,
}

/// `--tls-cert` and `--tls-key`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// `--access`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Access {
    /// Accounts with tokens, their devices, and topics that begin with the token
    Platform,
    /// Anyone, without credentials, on any topic
    Open,
}

/// `--driver`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Driver {
    Auto,
    IoUring,
    Epoll,
}

/// `--private-fds`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum PrivateFds {
    Auto,
    On,
    Off,
}

/// `--durability`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Durability {
    /// What is acknowledged is on disk: it survives a power cut
    Fsync,
    /// What is acknowledged is with the kernel: it survives the end of the broker, not that of the host
    Process,
}

/// `--log`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// What the operator has to change, as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the settings file {path}: {error}; give --config a file that can be read", path = path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{file}, line {line}: {problem}")]
    File { file: String, line: usize, problem: String },
    #[error("--{name} {value} is out of range: give {min} to {max}")]
    OutOfRange {
        name: &'static str,
        value: String,
        min: String,
        max: String,
    },
    #[error(
        "no port is open: give one of --mqtt-port, --mqtts-port, --ws-port and --wss-port a number, or 0 for any free port"
    )]
    NoPort,
    #[error("--{first} and --{second} are both {port}: give one of them another number, or off")]
    SamePort {
        first: &'static str,
        second: &'static str,
        port: u16,
    },
    #[error("--{given} is given and --{missing} is not: a certificate and its key come together, so give both or none")]
    HalfCertificate { given: &'static str, missing: &'static str },
    #[error(
        "--tls-client-cn-as-username needs clients that show a certificate: give --tls-client-ca the file of those who \
         issue them, or leave it out"
    )]
    NoClientCertificates,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            access: Access::Platform,
            cores: cpus(),
            driver: Driver::Auto,
            private_fds: PrivateFds::Auto,
            connections_max: limits::CONNECTIONS_MAX,
            shard_levels: limits::SHARD_LEVELS,
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            mqtt_port: Some(1883),
            mqtts_port: Some(8883),
            ws_port: Some(8083),
            wss_port: Some(8084),
            api: ApiConfig {
                port: Some(8080),
                bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
                is_tls: false,
                rate: limits::API_CALLS_PER_S,
                connector_rate: limits::CONNECTOR_SENDS_PER_S,
                body_bytes_max: limits::API_BODY_BYTES_MAX,
                v1: false,
                webhook_allow: Networks::These(Vec::new()),
                smtp_relay: None,
                mail_from: "skein@localhost".to_owned(),
            },
            tls_certificate: None,
            tls_client_ca: None,
            tls_client_cn_as_username: false,
            ws_allow_origin: Vec::new(),
            proxy_protocol: ProxyPorts::default(),
            data_dir: PathBuf::from("skein-data"),
            durability: Durability::Fsync,
            map_bytes: limits::STORE_MAP_BYTES,
            session_expiry: None,
            retained_memory_bytes_max: limits::RETAINED_MEMORY_BYTES_MAX,
            packet_bytes_max: limits::PACKET_BYTES_MAX,
            inflight_max: limits::INFLIGHT_MAX,
            queued_max: limits::QUEUED_MAX,
            queued_bytes_max: limits::QUEUED_BYTES_MAX,
            overflow_wait: Duration::from_millis(limits::OVERFLOW_WAIT_MS),
            publishes_per_s_max: 0,
            write_interval: Duration::from_micros(limits::WRITE_INTERVAL_US),
            outbox_bytes_max: limits::OUTBOX_BYTES_MAX,
            subscriptions_per_session_max: limits::SUBSCRIPTIONS_PER_SESSION_MAX,
            client_id_chars_max: limits::PLATFORM_CLIENT_ID_CHARS_MAX,
            account_quotas: Quotas::default(),
            connect_timeout: Duration::from_millis(limits::CONNECT_TIMEOUT_MS),
            log: LogLevel::Info,
            log_format: LogFormat::Text,
            ready_file: None,
        }
    }
}

impl Config {
    /// The flags (environment included) over the file, if there is one, over the defaults.
    pub fn load(flags: Raw, file: Option<&Path>) -> Result<Config, ConfigError> {
        let under = match file {
            None => Raw::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                    path: path.to_owned(),
                    error,
                })?;
                parse_toml(&text, &path.display().to_string())?
            }
        };
        Config::check(flags.over(under))
    }

    /// Defaults where `raw` says nothing; every value in its range.
    pub fn check(raw: Raw) -> Result<Config, ConfigError> {
        let default = Config::default();
        let count = |name, value: Option<u64>, default: usize, range: RangeInclusive<u64>| match value {
            None => Ok(default),
            Some(value) if range.contains(&value) => Ok(value as usize),
            Some(value) => Err(ConfigError::out_of_range(name, value, range.start(), range.end())),
        };
        let size = |name, value: Option<Size>, default: usize, range: RangeInclusive<u64>| match value {
            None => Ok(default),
            Some(Size(bytes)) if range.contains(&bytes) => Ok(bytes as usize),
            Some(value) => Err(ConfigError::out_of_range(
                name,
                value,
                Size(*range.start()),
                Size(*range.end()),
            )),
        };
        let span = |name, value: Option<Span>, default, min: Duration, max: Duration| match value {
            None => Ok(default),
            Some(Span(span)) if (min..=max).contains(&span) => Ok(span),
            Some(value) => Err(ConfigError::out_of_range(name, value, Span(min), Span(max))),
        };
        let access = raw.access.unwrap_or(default.access);
        let bind = raw.bind.unwrap_or(default.bind);
        let api_is_tls = raw.api_tls.unwrap_or(default.api.is_tls);
        let config = Config {
            access,
            cores: count(
                "cores",
                raw.cores,
                usize::from(default.cores),
                1..=limits::CORES_MAX as u64,
            )? as u16,
            driver: raw.driver.unwrap_or(default.driver),
            private_fds: raw.private_fds.unwrap_or(default.private_fds),
            connections_max: count(
                "max-connections",
                raw.max_connections,
                default.connections_max,
                1..=100_000_000,
            )?,
            shard_levels: count("shard-levels", raw.shard_levels, default.shard_levels, 1..=16)?,
            bind,
            mqtt_port: raw.mqtt_port.map_or(default.mqtt_port, |Port(port)| port),
            mqtts_port: raw.mqtts_port.map_or(default.mqtts_port, |Port(port)| port),
            ws_port: raw.ws_port.map_or(default.ws_port, |Port(port)| port),
            wss_port: raw.wss_port.map_or(default.wss_port, |Port(port)| port),
            api: ApiConfig {
                port: raw.api_port.map_or(default.api.port, |Port(port)| port),
                bind: raw.api_bind.unwrap_or(if api_is_tls { bind } else { default.api.bind }),
                is_tls: api_is_tls,
                rate: count("api-rate", raw.api_rate, default.api.rate as usize, 0..=1_000_000)? as u32,
                connector_rate: count(
                    "connector-rate",
                    raw.connector_rate,
                    default.api.connector_rate as usize,
                    0..=1_000_000,
                )? as u32,
                body_bytes_max: size(
                    "api-max-body",
                    raw.api_max_body,
                    default.api.body_bytes_max,
                    KIB..=256 * KIB * KIB,
                )?,
                v1: raw.v1.unwrap_or(default.api.v1),
                webhook_allow: raw.webhook_allow.unwrap_or(default.api.webhook_allow),
                smtp_relay: raw.smtp_relay.or(default.api.smtp_relay),
                mail_from: raw.mail_from.unwrap_or(default.api.mail_from),
            },
            tls_certificate: certificate_files(raw.tls_cert, raw.tls_key)?,
            tls_client_ca: raw.tls_client_ca.or(default.tls_client_ca),
            tls_client_cn_as_username: raw
                .tls_client_cn_as_username
                .unwrap_or(default.tls_client_cn_as_username),
            ws_allow_origin: raw
                .ws_allow_origin
                .map_or(default.ws_allow_origin, |Origins(origins)| origins),
            proxy_protocol: raw.proxy_protocol.unwrap_or(default.proxy_protocol),
            data_dir: raw.data_dir.unwrap_or(default.data_dir),
            durability: raw.durability.unwrap_or(default.durability),
            map_bytes: size(
                "map-size",
                raw.map_size,
                default.map_bytes,
                KIB * KIB..=limits::STORE_MAP_BYTES_MAX as u64,
            )?,
            session_expiry: match raw.session_expiry {
                None => default.session_expiry,
                Some(Expiry(None)) => None,
                Some(Expiry(Some(after))) => Some(span(
                    "session-expiry",
                    Some(Span(after)),
                    after,
                    Duration::from_secs(1),
                    Duration::from_secs(100 * 365 * 86_400),
                )?),
            },
            retained_memory_bytes_max: size(
                "retained-memory",
                raw.retained_memory,
                default.retained_memory_bytes_max,
                0..=1024 * KIB * KIB * KIB,
            )?,
            packet_bytes_max: size(
                "max-packet",
                raw.max_packet,
                default.packet_bytes_max,
                KIB..=256 * KIB * KIB,
            )?,
            inflight_max: count(
                "max-inflight",
                raw.max_inflight,
                default.inflight_max,
                1..=INFLIGHT_MAX_MAX,
            )?,
            queued_max: count("max-queued", raw.max_queued, default.queued_max, 1..=100_000_000)?,
            queued_bytes_max: size(
                "max-queued-bytes",
                raw.max_queued_bytes,
                default.queued_bytes_max,
                KIB..=1024 * KIB * KIB * KIB,
            )?,
            overflow_wait: span(
                "overflow-wait",
                raw.overflow_wait,
                default.overflow_wait,
                Duration::ZERO,
                Duration::from_secs(600),
            )?,
            publishes_per_s_max: count("max-publish-rate", raw.max_publish_rate, 0, 0..=1_000_000)? as u32,
            write_interval: span(
                "write-interval",
                raw.write_interval,
                default.write_interval,
                Duration::ZERO,
                Duration::from_millis(10),
            )?,
            outbox_bytes_max: size(
                "max-outbox",
                raw.max_outbox,
                default.outbox_bytes_max,
                4 * KIB..=KIB * KIB * KIB,
            )?,
            subscriptions_per_session_max: count(
                "max-subscriptions",
                raw.max_subscriptions,
                default.subscriptions_per_session_max,
                1..=100_000_000,
            )?,
            // A Server takes at least 23 bytes [MQTT-3.1.3-5]; a string carries at most 65,535.
            client_id_chars_max: count(
                "client-id-max",
                raw.client_id_max,
                match access {
                    Access::Platform => default.client_id_chars_max,
                    Access::Open => limits::CLIENT_ID_CHARS_MAX,
                },
                23..=65_535,
            )?,
            account_quotas: Quotas {
                connections_max: count("account-connections", raw.account_connections, 0, 0..=100_000_000)? as u32,
                sessions_max: count("account-sessions", raw.account_sessions, 0, 0..=100_000_000)? as u32,
                subscriptions_max: count("account-subscriptions", raw.account_subscriptions, 0, 0..=100_000_000)?
                    as u32,
                publishes_per_s_max: count("account-publish-rate", raw.account_publish_rate, 0, 0..=1_000_000)? as u32,
                kept_bytes_max: size(
                    "account-message-storage",
                    raw.account_message_storage,
                    0,
                    0..=1024 * KIB * KIB * KIB,
                )? as u64,
            },
            connect_timeout: span(
                "connect-timeout",
                raw.connect_timeout,
                default.connect_timeout,
                Duration::from_millis(limits::DEADLINE_TICK_MS),
                Duration::from_secs(600),
            )?,
            log: raw.log.unwrap_or(default.log),
            log_format: raw.log_format.unwrap_or(default.log_format),
            ready_file: raw.ready_file.or(default.ready_file),
        };
        check_ports([
            ("mqtt-port", config.mqtt_port),
            ("mqtts-port", config.mqtts_port),
            ("ws-port", config.ws_port),
            ("wss-port", config.wss_port),
            ("api-port", config.api_port()),
        ])?;
        match config.tls_client_cn_as_username && config.tls_client_ca.is_none() {
            true => Err(ConfigError::NoClientCertificates),
            false => Ok(config),
        }
    }

    /// Whether each core has a table of descriptors of its own, where one table may hold so many.
    pub fn parts_descriptors(&self, descriptors: u64) -> bool {
        let cores = u64::from(self.cores);
        let needed = self.connections_max as u64 + limits::DESCRIPTORS_BESIDE_PER_CORE * cores;
        match self.private_fds {
            PrivateFds::On => true,
            PrivateFds::Off => false,
            // One core has one table either way.
            PrivateFds::Auto => cores > 1 && descriptors < needed,
        }
    }

    /// That of the HTTP API, which a plain broker does not have.
    pub fn api_port(&self) -> Option<u16> {
        self.api.port.filter(|_| self.access == Access::Platform)
    }
}

/// One for MQTT is open at least, and no two are the same number.
fn check_ports(ports: [(&'static str, Option<u16>); 5]) -> Result<(), ConfigError> {
    if ports[..4].iter().all(|(_, port)| port.is_none()) {
        return Err(ConfigError::NoPort);
    }
    for (place, (second, port)) in ports.iter().enumerate() {
        let Some(port) = port.filter(|port| *port != 0) else {
            continue;
        };
        if let Some((first, _)) = ports[..place].iter().find(|(_, other)| *other == Some(port)) {
            return Err(ConfigError::SamePort { first, second, port });
        }
    }
    Ok(())
}

fn certificate_files(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<CertificateFiles>, ConfigError> {
    let half = |given, missing| Err(ConfigError::HalfCertificate { given, missing });
    match (cert, key) {
        (Some(certificate), Some(key)) => Ok(Some(CertificateFiles { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => half("tls-cert", "tls-key"),
        (None, Some(_)) => half("tls-key", "tls-cert"),
    }
}

const KIB: u64 = 1024;
/// Packet Identifiers are 16 bits, and the window may span [`limits::INFLIGHT_SPAN_FACTOR`] times itself.
const INFLIGHT_MAX_MAX: u64 = (u16::MAX as usize / limits::INFLIGHT_SPAN_FACTOR) as u64;

impl ConfigError {
    fn out_of_range(name: &'static str, value: impl ToString, min: impl ToString, max: impl ToString) -> Self {
        ConfigError::OutOfRange {
            name,
            value: value.to_string(),
            min: min.to_string(),
            max: max.to_string(),
        }
    }
}

/// The CPUs this process may use, by affinity and cgroup quota.
fn cpus() -> u16 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(limits::CORES_MAX) as u16)
}

fn parse_toml(text: &str, file: &str) -> Result<Raw, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let problem = match error
            .message()
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split_once('`'))
        {
            Some((key, _)) => format!("there is no key `{key}`; `skein config` prints every key there is"),
            None => error.message().lines().collect::<Vec<_>>().join("; "),
        };
        ConfigError::File {
            file: file.to_owned(),
            line,
            problem,
        }
    })
}

#[cfg(test)]
mod tests;
