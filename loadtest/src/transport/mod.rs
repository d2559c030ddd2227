//! What MQTT runs over: TCP as it is, or TLS, WebSocket, or both above it.
//!
//! Owns    the flags that choose, and the layers of one connection as bytes in, bytes out: no socket.
//! Called  by `client`, `idle` and `connect`, which move the bytes.
//! Holds   - a connection over plain TCP has no layers: its bytes are nobody's business but its own;
//!         - TLS comes first, then the WebSocket upgrade, then MQTT ([`Stage`]).

#[cfg(test)]
mod tests;
pub mod tls;
pub mod websocket;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use self::tls::{Tickets, Tls, Trust};
use self::websocket::WebSocket;
use crate::client::resolve;
use crate::packet::run_tag;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    #[default]
    Tcp,
    Tls,
    /// WebSocket
    Ws,
    /// WebSocket over TLS
    Wss,
}

impl Transport {
    pub fn is_tls(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    pub fn is_websocket(self) -> bool {
        matches!(self, Transport::Ws | Transport::Wss)
    }

    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct Settings {
    /// What MQTT runs over; --addr must be the broker's port for it
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: Transport,
    #[command(flatten)]
    pub layers: LayerSettings,
}

/// The flags of TLS and WebSocket; without effect on what runs over plain TCP.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct LayerSettings {
    /// TLS: certificates (PEM) to verify the broker against
    #[arg(long, value_name = "FILE", conflicts_with = "tls_insecure")]
    pub tls_ca: Option<PathBuf>,
    /// TLS: verify nothing, no signature either, which spares the generator work: a load test is no security check
    #[arg(long)]
    pub tls_insecure: bool,
    /// TLS: the name asked for and verified [default: localhost for a loopback address, else the host of --addr]
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// TLS: this version only
    #[arg(long, value_enum)]
    pub tls_version: Option<Version>,
    /// WebSocket: the path of the upgrade request
    #[arg(long, default_value = "/mqtt", value_parser = parse_path)]
    pub ws_path: String,
}

fn parse_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_string())
    } else {
        Err("a path starts with / and has no spaces".to_string())
    }
}

/// The broker, and how to speak to it.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    over: Option<Arc<Over>>,
}

#[derive(Debug)]
struct Over {
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    upgrade_request: Option<String>,
}

impl Target {
    pub fn new(text: &str, settings: &Settings) -> Result<Target> {
        Target::with_tickets(text, settings.transport, &settings.layers, None)
    }

    /// One whose connections resume what earlier ones left in `tickets`.
    pub fn with_tickets(
        text: &str,
        transport: Transport,
        settings: &LayerSettings,
        tickets: Option<Arc<Tickets>>,
    ) -> Result<Target> {
        let address = resolve(text)?;
        if transport == Transport::Tcp {
            return Ok(Target { address, over: None });
        }
        let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
        let tls = if transport.is_tls() {
            let trust = match &settings.tls_ca {
                Some(path) => Trust::Ca(path.clone()),
                None if settings.tls_insecure => Trust::Anybody,
                None => bail!(
                    "--transport {} wants --tls-ca FILE to verify the broker against, or --tls-insecure to verify nothing",
                    transport.name()
                ),
            };
            let name = match &settings.tls_server_name {
                Some(name) => name.clone(),
                None => default_name(host),
            };
            let server_name = ServerName::try_from(name.clone())
                .with_context(|| format!("--tls-server-name {name} is neither a DNS name nor an IP address"))?;
            Some((tls::config(&trust, settings.tls_version, tickets)?, server_name))
        } else {
            None
        };
        let upgrade_request = transport
            .is_websocket()
            .then(|| websocket::upgrade_request(text, &settings.ws_path));
        Ok(Target {
            address,
            over: Some(Arc::new(Over { tls, upgrade_request })),
        })
    }

    /// Plain TCP.
    #[cfg(test)]
    pub fn tcp(address: SocketAddr) -> Target {
        Target { address, over: None }
    }

    /// MQTT does not run over plain TCP.
    pub fn is_layered(&self) -> bool {
        self.over.is_some()
    }

    /// The layers of a new connection.
    pub fn layers(&self) -> Result<Option<Layers>> {
        let Some(over) = &self.over else { return Ok(None) };
        let tls = match &over.tls {
            Some((config, name)) => Some(Box::new(Tls::new(config, name)?)),
            None => None,
        };
        let websocket = over.upgrade_request.as_ref().map(|_| WebSocket::new(mask()));
        Ok(Some(Layers {
            over: over.clone(),
            tls,
            websocket,
            stage: Stage::Tcp,
        }))
    }
}

fn default_name(host: &str) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => "localhost".to_string(),
        _ => bare.to_string(),
    }
}

/// Differs from connection to connection.
fn mask() -> u32 {
    run_tag()
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was sent.
    Tcp,
    Tls,
    WebSocket,
    /// MQTT may flow.
    Open,
}

impl Stage {
    /// What is waited for.
    pub fn wanted(self) -> &'static str {
        match self {
            Stage::Tcp | Stage::Tls => "the end of the TLS handshake",
            Stage::WebSocket => "the answer to the WebSocket upgrade",
            Stage::Open => "CONNACK",
        }
    }
}

/// What is between the socket of one connection and its MQTT packets.
#[derive(Debug)]
pub struct Layers {
    over: Arc<Over>,
    tls: Option<Box<Tls>>,
    websocket: Option<WebSocket>,
    stage: Stage,
}

thread_local! {
    /// Bytes on their way between the WebSocket and TLS of whichever connection moves.
    static BETWEEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Layers {
    /// The first bytes to the broker, behind those of `out`. The socket is connected.
    pub fn begin(&mut self, out: &mut Vec<u8>) -> Result<()> {
        match &mut self.tls {
            Some(tls) => {
                self.stage = Stage::Tls;
                tls.take(&mut [], out, |_| Ok(()))
            }
            None => self.upgrade(out),
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// TLS was resumed.
    pub fn is_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_resumed())
    }

    /// Bytes that came and are not yet read: a later read may give as many more.
    pub fn held(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.held())
    }

    /// TLS is there, or is not: the WebSocket upgrade is next, or MQTT.
    fn upgrade(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let over = self.over.clone();
        match &over.upgrade_request {
            None => self.stage = Stage::Open,
            Some(request) => {
                self.stage = Stage::WebSocket;
                match &mut self.tls {
                    None => out.extend_from_slice(request.as_bytes()),
                    Some(tls) => tls.put(request.as_bytes(), out)?,
                }
            }
        }
        Ok(())
    }

    /// Bytes of the socket in: MQTT goes behind `plain`, what must go to the socket behind `out`. An error completes the
    /// sentence "ADDRESS ...".
    pub fn take(&mut self, wire: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        let Layers { tls, websocket, .. } = self;
        match (tls, websocket) {
            (None, None) => plain.extend_from_slice(wire),
            (None, Some(websocket)) => websocket.take(wire, plain, out)?,
            (Some(tls), None) => tls.take(wire, out, |bytes| {
                plain.extend_from_slice(bytes);
                Ok(())
            })?,
            (Some(tls), Some(websocket)) => {
                let mut answers = Vec::new();
                tls.take(wire, out, |bytes| websocket.take(bytes, plain, &mut answers))?;
                if !answers.is_empty() {
                    tls.put(&answers, out)?;
                }
            }
        }
        if self.stage == Stage::Tls && self.tls.as_ref().is_some_and(|tls| tls.is_open()) {
            self.upgrade(out)?;
        }
        if self.stage == Stage::WebSocket && self.websocket.as_ref().is_some_and(|websocket| websocket.is_open()) {
            self.stage = Stage::Open;
        }
        Ok(())
    }

    /// MQTT bytes in, one frame of the two parts behind `out`. Only when open.
    pub fn put(&mut self, first: &[u8], second: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match (&mut self.tls, &self.websocket) {
            (None, None) => {
                out.extend_from_slice(first);
                out.extend_from_slice(second);
                Ok(())
            }
            (None, Some(websocket)) => {
                websocket.put(first, second, out);
                Ok(())
            }
            (Some(tls), None) if first.is_empty() => tls.put(second, out),
            (Some(tls), websocket) => BETWEEN.with_borrow_mut(|between| {
                between.clear();
                match websocket {
                    Some(websocket) => websocket.put(first, second, between),
                    None => {
                        between.extend_from_slice(first);
                        between.extend_from_slice(second);
                    }
                }
                tls.put(between, out)
            }),
        }
    }

    /// The last bytes, behind those of `out`: `packet` and what TLS ends with.
    pub fn end(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.put(&[], packet, out)?;
        match &mut self.tls {
            Some(tls) => tls.end(out),
            None => Ok(()),
        }
    }
}
