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
mod tests {
    use super::*;
    use clap::Parser;
    use std::fs;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        raw: Raw,
    }

    fn flags(args: &[&str]) -> Raw {
        Flags::try_parse_from(std::iter::once(&"skein").chain(args))
            .unwrap()
            .raw
    }

    fn from_file(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let name = file.path().display().to_string();
        Config::load(Raw::default(), Some(file.path())).map_err(|error| error.to_string().replace(&name, "FILE"))
    }

    /// Keys that the embedded file has as comments, and the examples there.
    const COMMENTED: [(&str, &str); 8] = [
        ("cores", "2"),
        ("api-bind", "\"0.0.0.0\""),
        ("smtp-relay", "\"smtp://user:password@mail.example:587\""),
        ("client-id-max", "23"),
        ("tls-cert", "\"/etc/skein/cert.pem\""),
        ("tls-key", "\"/etc/skein/key.pem\""),
        ("tls-client-ca", "\"/etc/skein/clients-ca.pem\""),
        ("ready-file", "\"/run/skein/ready.json\""),
    ];

    #[test]
    fn tables_part_by_themselves_only_where_one_table_is_too_small() {
        let config = |cores, private_fds| Config {
            cores,
            private_fds,
            connections_max: 100_000,
            ..Config::default()
        };
        assert!(config(2, PrivateFds::Auto).parts_descriptors(20_000));
        assert!(!config(2, PrivateFds::Auto).parts_descriptors(1_000_000));
        assert!(!config(1, PrivateFds::Auto).parts_descriptors(20_000));
        assert!(config(1, PrivateFds::On).parts_descriptors(1_000_000));
        assert!(!config(2, PrivateFds::Off).parts_descriptors(20_000));
    }

    #[test]
    fn the_embedded_file_says_what_the_defaults_are() {
        let raw = parse_toml(DEFAULT_TOML, "default.toml").unwrap();
        assert_eq!(Config::check(raw.clone()).unwrap(), Config::default());
        assert_eq!(Config::check(Raw::default()).unwrap(), Config::default());
        // Every key is there and set, but for those that have no fixed default, which are there as comments.
        let Raw {
            cores: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            ready_file: None,
            api_bind: None,
            smtp_relay: None,
            client_id_max: None,
            ..
        } = raw
        else {
            panic!("these depend on the host")
        };
        let command = <Flags as clap::CommandFactory>::command();
        for flag in command.get_arguments().filter(|flag| flag.get_id() != "help") {
            let key = flag.get_long().unwrap();
            let is_comment = COMMENTED.iter().any(|(commented, _)| *commented == key);
            let start = format!("\n{}{key} = ", if is_comment { "# " } else { "" });
            assert!(DEFAULT_TOML.contains(&start), "{key} is not in default.toml");
            assert_eq!(
                flag.get_env().unwrap().to_str().unwrap(),
                format!("SKEIN_{}", key.to_uppercase().replace('-', "_"))
            );
        }
    }

    #[test]
    fn the_examples_in_the_comments_of_the_embedded_file_are_valid() {
        let mut text = DEFAULT_TOML.to_owned();
        for (key, example) in COMMENTED {
            let line = format!("\n# {key} = {example}\n");
            assert!(text.contains(&line), "{key}");
            text = text.replace(&line, &line.replace("# ", ""));
        }
        let config = from_file(&text).unwrap();
        assert_eq!(config.cores, 2);
        assert_eq!(config.tls_certificate.unwrap().key, Path::new("/etc/skein/key.pem"));
        assert_eq!(
            config.tls_client_ca.as_deref(),
            Some(Path::new("/etc/skein/clients-ca.pem"))
        );
        assert_eq!(config.ready_file, Some(PathBuf::from("/run/skein/ready.json")));
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "max-inflight = 10\nmax-queued = 20\nmqtt-port = \"off\"\n").unwrap();
        let config = Config::load(flags(&["--max-queued", "30", "--mqtt-port", "0"]), Some(file.path())).unwrap();
        assert_eq!(config.inflight_max, 10);
        assert_eq!(config.queued_max, 30);
        assert_eq!(config.mqtt_port, Some(0));
        assert_eq!(config.outbox_bytes_max, limits::OUTBOX_BYTES_MAX);
    }

    #[test]
    fn every_setting_of_the_upper_layer_wins() {
        let upper = flags(&[
            "--access=open",
            "--cores=3",
            "--driver=io_uring",
            "--private-fds=on",
            "--max-connections=7",
            "--shard-levels=2",
            "--bind=::1",
            "--mqtt-port=99",
            "--mqtts-port=98",
            "--ws-port=off",
            "--wss-port=0",
            "--api-port=97",
            "--api-bind=10.0.0.1",
            "--api-tls",
            "--api-rate=5",
            "--connector-rate=0",
            "--api-max-body=2KiB",
            "--v1",
            "--webhook-allow=10.0.0.0/8,::1",
            "--smtp-relay=smtp://mail",
            "--mail-from=a@b.example",
            "--tls-cert=/c",
            "--tls-key=/k",
            "--tls-client-ca=/a",
            "--tls-client-cn-as-username",
            "--ws-allow-origin=https://a.example,null",
            "--proxy-protocol=mqtt,wss",
            "--data-dir=/d",
            "--durability=process",
            "--map-size=2GiB",
            "--session-expiry=7d",
            "--retained-memory=1MiB",
            "--overflow-wait=2s",
            "--max-packet=1MB",
            "--max-inflight=8",
            "--max-queued=9",
            "--max-queued-bytes=2KiB",
            "--max-publish-rate=12",
            "--write-interval=200us",
            "--max-outbox=1 MiB",
            "--max-subscriptions=11",
            "--client-id-max=23",
            "--account-connections=13",
            "--account-sessions=14",
            "--account-subscriptions=15",
            "--account-publish-rate=16",
            "--account-message-storage=17KiB",
            "--connect-timeout=500ms",
            "--log=debug",
            "--log-format=json",
            "--ready-file=/r",
        ]);
        let lower = parse_toml(DEFAULT_TOML, "default.toml").unwrap();
        assert_eq!(upper.clone().over(lower.clone()), upper);
        assert_eq!(Raw::default().over(upper.clone()), upper);
        let config = Config::check(upper.over(lower)).unwrap();
        let expected = Config {
            access: Access::Open,
            cores: 3,
            driver: Driver::IoUring,
            private_fds: PrivateFds::On,
            connections_max: 7,
            shard_levels: 2,
            bind: "::1".parse().unwrap(),
            mqtt_port: Some(99),
            mqtts_port: Some(98),
            ws_port: None,
            wss_port: Some(0),
            api: ApiConfig {
                port: Some(97),
                bind: "10.0.0.1".parse().unwrap(),
                is_tls: true,
                rate: 5,
                connector_rate: 0,
                body_bytes_max: 2048,
                v1: true,
                webhook_allow: Networks::These(vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]),
                smtp_relay: Some("smtp://mail".to_owned()),
                mail_from: "a@b.example".to_owned(),
            },
            tls_certificate: Some(CertificateFiles {
                certificate: "/c".into(),
                key: "/k".into(),
            }),
            tls_client_ca: Some("/a".into()),
            tls_client_cn_as_username: true,
            ws_allow_origin: vec!["https://a.example".into(), "null".into()],
            proxy_protocol: ProxyPorts {
                mqtt: true,
                wss: true,
                ..ProxyPorts::default()
            },
            data_dir: "/d".into(),
            durability: Durability::Process,
            map_bytes: 2 << 30,
            session_expiry: Some(Duration::from_secs(7 * 86_400)),
            retained_memory_bytes_max: 1 << 20,
            overflow_wait: Duration::from_secs(2),
            packet_bytes_max: 1_000_000,
            inflight_max: 8,
            queued_max: 9,
            queued_bytes_max: 2048,
            publishes_per_s_max: 12,
            write_interval: Duration::from_micros(200),
            outbox_bytes_max: 1 << 20,
            subscriptions_per_session_max: 11,
            client_id_chars_max: 23,
            account_quotas: Quotas {
                connections_max: 13,
                sessions_max: 14,
                subscriptions_max: 15,
                publishes_per_s_max: 16,
                kept_bytes_max: 17 * 1024,
            },
            connect_timeout: Duration::from_millis(500),
            log: LogLevel::Debug,
            log_format: LogFormat::Json,
            ready_file: Some("/r".into()),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_problem_in_the_file_names_the_file_the_line_and_what_to_change() {
        for (text, sentence) in [
            (
                "access = \"open\"\n\nmax-pakcet = 5\n",
                "FILE, line 3: there is no key `max-pakcet`; `skein config` prints every key there is",
            ),
            (
                "\nmax-packet = \"5 cows\"",
                "FILE, line 2: `5 cows` is no size: give a whole number of bytes, or one with a unit of B, KB, MB, GB, KiB, \
                 MiB, GiB",
            ),
            (
                "connect-timeout = \"10\"",
                "FILE, line 1: `10` is no duration: give numbers with a unit, such as 10s, 500ms or 1m 30s",
            ),
            (
                "mqtt-port = 70000",
                "FILE, line 1: `70000` is no port: give 1 to 65535, 0 for any free port, or off",
            ),
            (
                "mqtt-port = true",
                "FILE, line 1: expected a whole number, or a text in quotes",
            ),
            (
                "proxy-protocol = \"http\"",
                "FILE, line 1: `http` is no list of ports: give some of mqtt, mqtts, ws, wss with commas between, or all, or \
                 none",
            ),
            (
                "ws-allow-origin = 1",
                "FILE, line 1: expected a text in quotes, or a list of them",
            ),
            (
                "driver = \"kqueue\"",
                "FILE, line 1: unknown variant `kqueue`, expected one of `auto`, `io_uring`, `epoll`",
            ),
            (
                "# é\ncores = -1",
                "FILE, line 2: invalid value: integer `-1`, expected u64",
            ),
        ] {
            assert_eq!(from_file(text).unwrap_err(), sentence, "{text}");
        }
        for text in [
            "cores = ",
            "cores = 1\ncores = 2",
            "[section]\ncores = 1",
            "\u{0}",
            "= 1",
        ] {
            assert!(from_file(text).unwrap_err().starts_with("FILE, line "), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = Config::load(Raw::default(), Some(Path::new("/nowhere/skein.toml")))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot read the settings file /nowhere/skein.toml: "),
            "{error}"
        );
    }

    #[test]
    fn a_value_out_of_range_names_its_flag_and_the_range() {
        for (args, sentence) in [
            (["--cores", "0"], "--cores 0 is out of range: give 1 to 256"),
            (["--cores", "257"], "--cores 257 is out of range: give 1 to 256"),
            (
                ["--max-inflight", "4096"],
                "--max-inflight 4096 is out of range: give 1 to 4095",
            ),
            (
                ["--max-packet", "257 MiB"],
                "--max-packet 257 MiB is out of range: give 1 KiB to 256 MiB",
            ),
            (
                ["--max-packet", "1000"],
                "--max-packet 1000 B is out of range: give 1 KiB to 256 MiB",
            ),
            (
                ["--client-id-max", "22"],
                "--client-id-max 22 is out of range: give 23 to 65535",
            ),
            (
                ["--connect-timeout", "1ms"],
                "--connect-timeout 1ms is out of range: give 250ms to 10m",
            ),
            (
                ["--shard-levels", "0"],
                "--shard-levels 0 is out of range: give 1 to 16",
            ),
            (
                ["--max-connections", "0"],
                "--max-connections 0 is out of range: give 1 to 100000000",
            ),
            (
                ["--max-outbox", "1"],
                "--max-outbox 1 B is out of range: give 4 KiB to 1 GiB",
            ),
        ] {
            assert_eq!(Config::load(flags(&args), None).unwrap_err().to_string(), sentence);
        }
        assert_eq!(
            Config::load(flags(&["--max-inflight", "4095"]), None)
                .unwrap()
                .inflight_max,
            4095
        );
    }

    #[test]
    fn settings_that_do_not_go_together_say_which_to_change() {
        let off = ["--mqtt-port=off", "--mqtts-port=off", "--ws-port=off", "--wss-port=off"];
        let half = "a certificate and its key come together, so give both or none";
        for (args, sentence) in [
            (
                &off[..],
                "no port is open: give one of --mqtt-port, --mqtts-port, --ws-port and --wss-port a number, or 0 for any \
                 free port"
                    .to_owned(),
            ),
            (
                &["--ws-port=1883"],
                "--mqtt-port and --ws-port are both 1883: give one of them another number, or off".to_owned(),
            ),
            (
                &["--wss-port=9000", "--mqtts-port=9000", "--mqtt-port=off"],
                "--mqtts-port and --wss-port are both 9000: give one of them another number, or off".to_owned(),
            ),
            (
                &["--tls-cert=/c"],
                format!("--tls-cert is given and --tls-key is not: {half}"),
            ),
            (
                &["--tls-key=/k"],
                format!("--tls-key is given and --tls-cert is not: {half}"),
            ),
            (
                &["--tls-client-cn-as-username"],
                "--tls-client-cn-as-username needs clients that show a certificate: give --tls-client-ca the file of those \
                 who issue them, or leave it out"
                    .to_owned(),
            ),
        ] {
            assert_eq!(
                Config::load(flags(args), None).unwrap_err().to_string(),
                sentence,
                "{args:?}"
            );
        }
        for args in [
            &off[1..],
            &off[..3],
            &["--mqtt-port=0", "--mqtts-port=0", "--ws-port=0", "--wss-port=0"],
            &["--tls-client-cn-as-username", "--tls-client-ca=/a"],
            &["--tls-client-cn-as-username=false"],
        ] {
            assert!(Config::load(flags(args), None).is_ok(), "{args:?}");
        }
    }

    #[test]
    fn a_switch_needs_no_value_and_a_file_may_list() {
        let is_on = |args: &[&str]| flags(args).tls_client_cn_as_username;
        assert_eq!(is_on(&[]), None);
        assert_eq!(
            is_on(&["--tls-client-cn-as-username", "--tls-client-ca", "/a"]),
            Some(true)
        );
        assert_eq!(is_on(&["--tls-client-cn-as-username", "false"]), Some(false));
        let config = from_file(
            "tls-client-ca = \"/a\"\ntls-client-cn-as-username = true\nproxy-protocol = [\"mqtts\"]\n\
             ws-allow-origin = [\"https://a.example\", \"https://b.example\"]\n",
        )
        .unwrap();
        assert!(config.tls_client_cn_as_username && config.proxy_protocol.mqtts && !config.proxy_protocol.mqtt);
        assert_eq!(config.ws_allow_origin, ["https://a.example", "https://b.example"]);
    }

    #[test]
    fn a_largest_packet_is_one_the_protocol_can_carry() {
        assert!(256 * KIB * KIB <= limits::REMAINING_LENGTH_MAX as u64 + 5);
        assert!(INFLIGHT_MAX_MAX as usize * limits::INFLIGHT_SPAN_FACTOR < u16::MAX as usize);
    }
}
