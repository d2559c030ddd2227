//! The settings as they were written: every one optional, none checked against the others. One struct for the file (TOML,
//! unknown keys refused), the environment and the flags, so that the names are the same everywhere.
//!
//! Called by `main` (clap fills it from flags and `SKEIN_…`, a flag winning) and by `config` (which lays it over the file).

use super::units::{Expiry, Networks, Origins, Port, ProxyPorts, Size, Span};
use super::{Access, Driver, Durability, LogFormat, LogLevel, PrivateFds};
use std::{net::IpAddr, path::PathBuf};

/// One layer of settings.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Raw {
    /// Who may connect: `platform` the devices of accounts, on topics that begin with their token; `open` anyone, on any topic
    #[arg(long, env = "SKEIN_ACCESS", value_enum, hide_env = true)]
    pub access: Option<Access>,

    /// Threads that serve connections; as many as there are CPUs unless given
    #[arg(long, env = "SKEIN_CORES", value_name = "N", hide_env = true)]
    pub cores: Option<u64>,

    /// How sockets are waited for; `auto` takes io_uring where the kernel allows it
    #[arg(long, env = "SKEIN_DRIVER", value_enum, hide_env = true)]
    pub driver: Option<Driver>,

    /// One table of file descriptors per core; `auto` does so where the limit of open files is too low for --max-connections
    #[arg(long, env = "SKEIN_PRIVATE_FDS", value_enum, hide_env = true)]
    pub private_fds: Option<PrivateFds>,

    /// Connections at a time over all cores
    #[arg(long, env = "SKEIN_MAX_CONNECTIONS", value_name = "N", hide_env = true)]
    pub max_connections: Option<u64>,

    /// Leading topic levels that choose the core which owns a topic
    #[arg(long, env = "SKEIN_SHARD_LEVELS", value_name = "N", hide_env = true)]
    pub shard_levels: Option<u64>,

    /// Address to listen on; 127.0.0.1 unless given, 0.0.0.0 for every IPv4 address of the host
    #[arg(long, env = "SKEIN_BIND", value_name = "IP", hide_env = true)]
    pub bind: Option<IpAddr>,

    /// Port of MQTT over TCP; 0 picks a free one, `off` closes it
    #[arg(long, env = "SKEIN_MQTT_PORT", value_name = "PORT", hide_env = true)]
    pub mqtt_port: Option<Port>,

    /// Port of MQTT over TLS; 0 picks a free one, `off` closes it
    #[arg(long, env = "SKEIN_MQTTS_PORT", value_name = "PORT", hide_env = true)]
    pub mqtts_port: Option<Port>,

    /// Port of MQTT over WebSocket; 0 picks a free one, `off` closes it
    #[arg(long, env = "SKEIN_WS_PORT", value_name = "PORT", hide_env = true)]
    pub ws_port: Option<Port>,

    /// Port of MQTT over WebSocket over TLS; 0 picks a free one, `off` closes it
    #[arg(long, env = "SKEIN_WSS_PORT", value_name = "PORT", hide_env = true)]
    pub wss_port: Option<Port>,

    /// Port of the HTTP API; 0 picks a free one, `off` closes it
    #[arg(long, env = "SKEIN_API_PORT", value_name = "PORT", hide_env = true)]
    pub api_port: Option<Port>,

    /// Address of the HTTP API; 127.0.0.1 unless given, or that of --bind with --api-tls
    #[arg(long, env = "SKEIN_API_BIND", value_name = "IP", hide_env = true)]
    pub api_bind: Option<IpAddr>,

    /// Serve the HTTP API over TLS, with the certificate of the TLS ports
    #[arg(
        long,
        env = "SKEIN_API_TLS",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        hide_env = true
    )]
    pub api_tls: Option<bool>,

    /// Calls of the HTTP API that an account may make in a second; 0: any number
    #[arg(long, env = "SKEIN_API_RATE", value_name = "N", hide_env = true)]
    pub api_rate: Option<u64>,

    /// Times that a device may send over HTTP in a second; 0: any number
    #[arg(long, env = "SKEIN_CONNECTOR_RATE", value_name = "N", hide_env = true)]
    pub connector_rate: Option<u64>,

    /// Largest body of an HTTP request
    #[arg(long, env = "SKEIN_API_MAX_BODY", value_name = "SIZE", hide_env = true)]
    pub api_max_body: Option<Size>,

    /// Take data in the form of version 1 too: `v=1.5&v2=ok` on topics of token and device, and on /post_v1/
    #[arg(
        long,
        env = "SKEIN_V1",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        hide_env = true
    )]
    pub v1: Option<bool>,

    /// Networks that webhooks may reach beside the public ones, with commas between, or `any`, or `none`
    #[arg(long, env = "SKEIN_WEBHOOK_ALLOW", value_name = "NET,...", hide_env = true)]
    pub webhook_allow: Option<Networks>,

    /// Relay for the mails of events: smtp://user:password@host:port, or smtps://; without it they are logged
    #[arg(long, env = "SKEIN_SMTP_RELAY", value_name = "URL", hide_env = true)]
    pub smtp_relay: Option<String>,

    /// Sender of the mails of events
    #[arg(long, env = "SKEIN_MAIL_FROM", value_name = "ADDRESS", hide_env = true)]
    pub mail_from: Option<String>,

    /// Certificate of the TLS ports and the chain behind it (PEM); without it the broker makes one for itself
    #[arg(long, env = "SKEIN_TLS_CERT", value_name = "FILE", hide_env = true)]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert (PEM, not encrypted)
    #[arg(long, env = "SKEIN_TLS_KEY", value_name = "FILE", hide_env = true)]
    pub tls_key: Option<PathBuf>,

    /// Authorities (PEM) of whom one must have issued the certificate that a client of the TLS ports then has to show
    #[arg(long, env = "SKEIN_TLS_CLIENT_CA", value_name = "FILE", hide_env = true)]
    pub tls_client_ca: Option<PathBuf>,

    /// Take the user name of a client from the common name (CN) of its certificate
    #[arg(
        long,
        env = "SKEIN_TLS_CLIENT_CN_AS_USERNAME",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        hide_env = true
    )]
    pub tls_client_cn_as_username: Option<bool>,

    /// Origins of web pages that may connect over WebSocket, with commas between, or `any`
    #[arg(long, env = "SKEIN_WS_ALLOW_ORIGIN", value_name = "ORIGIN,...", hide_env = true)]
    pub ws_allow_origin: Option<Origins>,

    /// Ports whose connections begin with the header of a proxy: some of mqtt, mqtts, ws, wss, or `all`, or `none`
    #[arg(long, env = "SKEIN_PROXY_PROTOCOL", value_name = "PORT,...", hide_env = true)]
    pub proxy_protocol: Option<ProxyPorts>,

    /// Directory for what must outlive the broker: durable sessions with their messages, and retained messages
    #[arg(long, env = "SKEIN_DATA_DIR", value_name = "DIR", hide_env = true)]
    pub data_dir: Option<PathBuf>,

    /// What an acknowledgement means: `fsync` survives a power cut, `process` a crash of the broker
    #[arg(long, env = "SKEIN_DURABILITY", value_enum, hide_env = true)]
    pub durability: Option<Durability>,

    /// Address space for the data file at the start; it grows by itself
    #[arg(long, env = "SKEIN_MAP_SIZE", value_name = "SIZE", hide_env = true)]
    pub map_size: Option<Size>,

    /// Time after which the durable session of a client that stays away ends, or `never`
    #[arg(long, env = "SKEIN_SESSION_EXPIRY", value_name = "DURATION", hide_env = true)]
    pub session_expiry: Option<Expiry>,

    /// Payloads of retained messages that are kept in memory; the rest is on disk only
    #[arg(long, env = "SKEIN_RETAINED_MEMORY", value_name = "SIZE", hide_env = true)]
    pub retained_memory: Option<Size>,

    /// Largest MQTT packet
    #[arg(long, env = "SKEIN_MAX_PACKET", value_name = "SIZE", hide_env = true)]
    pub max_packet: Option<Size>,

    /// QoS 1 and 2 deliveries one client may leave unacknowledged
    #[arg(long, env = "SKEIN_MAX_INFLIGHT", value_name = "N", hide_env = true)]
    pub max_inflight: Option<u64>,

    /// Messages that may wait for one session
    #[arg(long, env = "SKEIN_MAX_QUEUED", value_name = "N", hide_env = true)]
    pub max_queued: Option<u64>,

    /// Bytes that may wait for one session
    #[arg(long, env = "SKEIN_MAX_QUEUED_BYTES", value_name = "SIZE", hide_env = true)]
    pub max_queued_bytes: Option<Size>,

    /// Time for which the full queue of a connected client holds back those who publish to it
    #[arg(long, env = "SKEIN_OVERFLOW_WAIT", value_name = "DURATION", hide_env = true)]
    pub overflow_wait: Option<Span>,

    /// PUBLISH packets that one connection may send in a second before it has to wait; 0: any number
    #[arg(long, env = "SKEIN_MAX_PUBLISH_RATE", value_name = "N", hide_env = true)]
    pub max_publish_rate: Option<u64>,

    /// Shortest time between two writes to one connection
    #[arg(long, env = "SKEIN_WRITE_INTERVAL", value_name = "DURATION", hide_env = true)]
    pub write_interval: Option<Span>,

    /// Encoded bytes one connection may hold that its socket has not taken
    #[arg(long, env = "SKEIN_MAX_OUTBOX", value_name = "SIZE", hide_env = true)]
    pub max_outbox: Option<Size>,

    /// Filters one session may hold
    #[arg(long, env = "SKEIN_MAX_SUBSCRIPTIONS", value_name = "N", hide_env = true)]
    pub max_subscriptions: Option<u64>,

    /// Longest Client Identifier, in characters; 23 unless given, or 65535 with --access open
    #[arg(long, env = "SKEIN_CLIENT_ID_MAX", value_name = "N", hide_env = true)]
    pub client_id_max: Option<u64>,

    /// Connections that one account may have at a time; 0: any number
    #[arg(long, env = "SKEIN_ACCOUNT_CONNECTIONS", value_name = "N", hide_env = true)]
    pub account_connections: Option<u64>,

    /// Durable sessions that one account may have, connected or not; 0: any number
    #[arg(long, env = "SKEIN_ACCOUNT_SESSIONS", value_name = "N", hide_env = true)]
    pub account_sessions: Option<u64>,

    /// Filters that one account may hold over all its sessions; 0: any number
    #[arg(long, env = "SKEIN_ACCOUNT_SUBSCRIPTIONS", value_name = "N", hide_env = true)]
    pub account_subscriptions: Option<u64>,

    /// PUBLISH packets that one account may send in a second before it has to wait; 0: any number
    #[arg(long, env = "SKEIN_ACCOUNT_PUBLISH_RATE", value_name = "N", hide_env = true)]
    pub account_publish_rate: Option<u64>,

    /// Bytes of one account's messages that wait or are retained; 0: any number
    #[arg(long, env = "SKEIN_ACCOUNT_MESSAGE_STORAGE", value_name = "SIZE", hide_env = true)]
    pub account_message_storage: Option<Size>,

    /// Time from accepting a connection to its whole CONNECT
    #[arg(long, env = "SKEIN_CONNECT_TIMEOUT", value_name = "DURATION", hide_env = true)]
    pub connect_timeout: Option<Span>,

    /// Least severe log lines to write
    #[arg(long, env = "SKEIN_LOG", value_enum, value_name = "LEVEL", hide_env = true)]
    pub log: Option<LogLevel>,

    /// Shape of a log line
    #[arg(long, env = "SKEIN_LOG_FORMAT", value_enum, hide_env = true)]
    pub log_format: Option<LogFormat>,

    /// File to write once every port listens: JSON with the process id and the ports
    #[arg(long, env = "SKEIN_READY_FILE", value_name = "FILE", hide_env = true)]
    pub ready_file: Option<PathBuf>,
}

impl Raw {
    /// This layer where it says something, `under` elsewhere.
    pub fn over(self, under: Raw) -> Raw {
        Raw {
            access: self.access.or(under.access),
            cores: self.cores.or(under.cores),
            driver: self.driver.or(under.driver),
            private_fds: self.private_fds.or(under.private_fds),
            max_connections: self.max_connections.or(under.max_connections),
            shard_levels: self.shard_levels.or(under.shard_levels),
            bind: self.bind.or(under.bind),
            mqtt_port: self.mqtt_port.or(under.mqtt_port),
            mqtts_port: self.mqtts_port.or(under.mqtts_port),
            ws_port: self.ws_port.or(under.ws_port),
            wss_port: self.wss_port.or(under.wss_port),
            api_port: self.api_port.or(under.api_port),
            api_bind: self.api_bind.or(under.api_bind),
            api_tls: self.api_tls.or(under.api_tls),
            api_rate: self.api_rate.or(under.api_rate),
            connector_rate: self.connector_rate.or(under.connector_rate),
            api_max_body: self.api_max_body.or(under.api_max_body),
            v1: self.v1.or(under.v1),
            webhook_allow: self.webhook_allow.or(under.webhook_allow),
            smtp_relay: self.smtp_relay.or(under.smtp_relay),
            mail_from: self.mail_from.or(under.mail_from),
            tls_cert: self.tls_cert.or(under.tls_cert),
            tls_key: self.tls_key.or(under.tls_key),
            tls_client_ca: self.tls_client_ca.or(under.tls_client_ca),
            tls_client_cn_as_username: self.tls_client_cn_as_username.or(under.tls_client_cn_as_username),
            ws_allow_origin: self.ws_allow_origin.or(under.ws_allow_origin),
            proxy_protocol: self.proxy_protocol.or(under.proxy_protocol),
            data_dir: self.data_dir.or(under.data_dir),
            durability: self.durability.or(under.durability),
            map_size: self.map_size.or(under.map_size),
            session_expiry: self.session_expiry.or(under.session_expiry),
            retained_memory: self.retained_memory.or(under.retained_memory),
            max_packet: self.max_packet.or(under.max_packet),
            max_inflight: self.max_inflight.or(under.max_inflight),
            max_queued: self.max_queued.or(under.max_queued),
            max_queued_bytes: self.max_queued_bytes.or(under.max_queued_bytes),
            overflow_wait: self.overflow_wait.or(under.overflow_wait),
            max_publish_rate: self.max_publish_rate.or(under.max_publish_rate),
            write_interval: self.write_interval.or(under.write_interval),
            max_outbox: self.max_outbox.or(under.max_outbox),
            max_subscriptions: self.max_subscriptions.or(under.max_subscriptions),
            client_id_max: self.client_id_max.or(under.client_id_max),
            account_connections: self.account_connections.or(under.account_connections),
            account_sessions: self.account_sessions.or(under.account_sessions),
            account_subscriptions: self.account_subscriptions.or(under.account_subscriptions),
            account_publish_rate: self.account_publish_rate.or(under.account_publish_rate),
            account_message_storage: self.account_message_storage.or(under.account_message_storage),
            connect_timeout: self.connect_timeout.or(under.connect_timeout),
            log: self.log.or(under.log),
            log_format: self.log_format.or(under.log_format),
            ready_file: self.ready_file.or(under.ready_file),
        }
    }
}
