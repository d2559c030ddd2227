//! How others hear of a broker that serves: what a start prints, the ready file, and where its ports are for the commands that are
//! printed.
//!
//! Called  by `server` once everything listens, and at the stop.
//! Holds   - tokens are printed once, of the account that a first start makes; nothing else here has any.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::{self, Config};
use crate::http::admin::{Endpoints, first_account};

use super::renewal::Renewal;
use super::{Broker, OpenPort};

/// On standard output, for whoever has started it.
pub fn announce(config: &Config, broker: &Broker) {
    let host = host_of(config);
    let mut words = String::from("skein listens for MQTT\n");
    for OpenPort { transport, port } in &broker.ports {
        let address = SocketAddr::new(config.bind, *port);
        let in_url = if config.bind.is_ipv6() && !config.bind.is_unspecified() {
            format!("[{host}]")
        } else {
            host.clone()
        };
        let how = match (transport.is_tls, transport.is_websocket) {
            (false, false) => "over TCP".to_owned(),
            (true, false) => "over TLS".to_owned(),
            (false, true) => format!("over WebSocket, ws://{in_url}:{port}/mqtt"),
            (true, true) => format!("over secure WebSocket, wss://{in_url}:{port}/mqtt"),
        };
        let _ = writeln!(words, "  on {address} {how}");
    }
    let port_of = |is_tls| {
        let mut ports = broker.ports.iter();
        ports.find(|open| open.transport.is_tls == is_tls && !open.transport.is_websocket)
    };
    if let Some(platform) = &broker.platform {
        if let Some(url) = &platform.endpoints.api_url {
            let _ = writeln!(words, "and serves the HTTP API on {url}, described on {url}/docs");
        }
        match &platform.first_account {
            Some(account) => words += &first_account(account, &platform.endpoints),
            None => words += "  Accounts: skein account list, add, …; --access open does without them.\n",
        }
    }
    let is_open = config.access == config::Access::Open;
    if let Some(open) = port_of(false).filter(|_| is_open) {
        let _ = writeln!(words, "  try: mosquitto_sub -h {host} -p {} -t '#' -v", open.port);
    }
    if let Some(certificate) = broker.renewal.as_ref().and_then(Renewal::self_made) {
        let certificate = absolute(certificate);
        let certificate = match certificate.to_string_lossy() {
            path if path.contains(|c: char| c.is_whitespace() || c == '\'') => {
                format!("'{}'", path.replace('\'', "'\\''"))
            }
            path => path.into_owned(),
        };
        let _ = match port_of(true).filter(|_| is_open) {
            Some(open) => writeln!(
                words,
                "  The certificate is one of its own making; whoever is to trust it needs {certificate}:\n  try: \
                 mosquitto_sub -h localhost -p {} --cafile {certificate} -t '#' -v",
                open.port
            ),
            None => writeln!(
                words,
                "  The certificate is one of its own making; whoever is to trust it needs {certificate}"
            ),
        };
    }
    if is_open && config.bind.is_loopback() {
        words += "  Only this host can connect, since anybody may use any topic here; --bind 0.0.0.0 lets others in.\n";
    }
    // Whoever closed stdout does not want to know.
    let _ = io::stdout().write_all(words.as_bytes());
}

/// Where others find this broker, for the commands that are printed.
pub fn endpoints_of(
    config: &Config,
    ports: &[OpenPort],
    renewal: &Option<Renewal>,
    api: Option<SocketAddr>,
) -> Endpoints {
    let is_plain = |open: &&OpenPort| !open.transport.is_tls && !open.transport.is_websocket;
    // What the broker has made for itself is for the name localhost, whatever the address is.
    let self_made = renewal
        .as_ref()
        .and_then(Renewal::self_made)
        .filter(|_| config.api.is_tls);
    let api_host = |address: SocketAddr| match self_made {
        None if !address.ip().is_unspecified() => address.to_string(),
        _ => format!("localhost:{}", address.port()),
    };
    let scheme = if config.api.is_tls { "https" } else { "http" };
    Endpoints {
        host: host_of(config),
        mqtt_port: ports.iter().find(is_plain).map(|open| open.port),
        api_url: api.map(|address| format!("{scheme}://{}", api_host(address))),
        ca_file: self_made.map(absolute),
    }
}

/// What a client on this host connects to.
fn host_of(config: &Config) -> String {
    match config.bind.is_unspecified() {
        true => "localhost".to_owned(),
        false => config.bind.to_string(),
    }
}

/// Whoever pastes a path may be in another directory than the broker.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Appears whole or not at all: whoever waits for the file may read it at once.
pub fn write_ready_file(path: &Path, ports: &[OpenPort], api: Option<u16>) -> io::Result<()> {
    let mut ready = serde_json::json!({
        "pid": std::process::id(), "mqtt": null, "mqtts": null, "ws": null, "wss": null, "api": api,
    });
    for open in ports {
        ready[open.transport.name()] = open.port.into();
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    std::fs::write(&beside, format!("{ready}\n"))?;
    std::fs::rename(&beside, path).inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// Nobody can connect any more. A broker that was started meanwhile keeps the file it wrote.
pub fn remove_ready_file(path: &Path) {
    let ready: serde_json::Value = std::fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    if ready["pid"] == std::process::id() {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::transport::Transport;

    #[test]
    fn the_ready_file_names_process_and_ports_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let port = |is_tls, is_websocket, port| OpenPort {
            transport: Transport {
                has_proxy_header: false,
                is_tls,
                is_websocket,
            },
            port,
        };
        write_ready_file(&path, &[port(false, false, 1883), port(true, true, 8084)], Some(8080)).unwrap();
        let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(ready["pid"], std::process::id());
        assert_eq!(ready["mqtt"], 1883);
        assert_eq!(ready["wss"], 8084);
        assert_eq!(ready["api"], 8080);
        assert!(["mqtts", "ws"].iter().all(|port| ready[port].is_null()));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        remove_ready_file(&path);
        assert!(!path.exists());
        std::fs::write(&path, r#"{"pid":1}"#).unwrap();
        remove_ready_file(&path);
        assert!(path.exists(), "another broker's");
    }
}
