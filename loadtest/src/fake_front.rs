//! TLS and WebSocket in front of a broker that speaks plain TCP, for tests of the other transports.
//!
//! Owns    `Server`, the server's side of one connection as bytes in, bytes out, and `Front`, which puts it before an address.
//! Called  by the tests of `transport`, `throughput`, `idle`, `backlog` and `connect`.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::transport::websocket::tests::{RESPONSE, server_frame};
use crate::transport::{self, LayerSettings, Transport};

/// A certificate for localhost that vouches for itself, and its key.
pub struct Identity {
    pub config: Arc<ServerConfig>,
    /// The certificate as a file.
    pub ca: PathBuf,
}

impl Identity {
    pub fn new() -> Identity {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
        let name = format!(
            "skein-load-{}-{}.pem",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let ca = std::env::temp_dir().join(name);
        std::fs::write(&ca, certified.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        Identity {
            config: Arc::new(config),
            ca,
        }
    }

    /// How a client that trusts it speaks `transport`.
    pub fn settings(&self, transport: Transport) -> transport::Settings {
        transport::Settings {
            transport,
            layers: LayerSettings {
                tls_ca: Some(self.ca.clone()),
                ws_path: "/mqtt".into(),
                ..LayerSettings::default()
            },
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

/// The server's side of one connection.
pub struct Server {
    tls: Option<ServerConnection>,
    is_websocket: bool,
    is_upgraded: bool,
    /// Bytes of a request or frame that is not whole.
    held: Vec<u8>,
    /// To the client, without TLS.
    out: Vec<u8>,
}

impl Server {
    pub fn new(transport: Transport, config: &Arc<ServerConfig>) -> Server {
        let tls = transport.is_tls().then(|| {
            let mut tls = ServerConnection::new(config.clone()).unwrap();
            tls.set_buffer_limit(None);
            tls
        });
        Server {
            tls,
            is_websocket: transport.is_websocket(),
            is_upgraded: false,
            held: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Bytes of the socket in, MQTT out. `None`: the client and this server do not understand each other.
    pub fn take(&mut self, mut wire: &[u8]) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        match &mut self.tls {
            None => plain.extend_from_slice(wire),
            Some(tls) => {
                while !wire.is_empty() {
                    tls.read_tls(&mut wire).ok()?;
                    tls.process_new_packets().ok()?;
                    match tls.reader().read_to_end(&mut plain) {
                        Err(error) if error.kind() != ErrorKind::WouldBlock => return None,
                        _ => {}
                    }
                }
            }
        }
        if !self.is_websocket {
            return Some(plain);
        }
        self.held.extend(plain);
        if !self.is_upgraded {
            let Some(end) = self.held.windows(4).position(|window| window == b"\r\n\r\n") else {
                return Some(Vec::new());
            };
            let request = String::from_utf8(self.held.drain(..end + 4).collect()).ok()?;
            self.is_upgraded = request.starts_with("GET /mqtt HTTP/1.1\r\n") && request.contains("Protocol: mqtt\r\n");
            self.out.extend_from_slice(if self.is_upgraded {
                RESPONSE
            } else {
                b"HTTP/1.1 404 Not Found\r\n\r\n"
            });
        }
        let mut mqtt = Vec::new();
        while let Some(used) = unmask(&self.held, &mut mqtt) {
            self.held.drain(..used);
        }
        Some(mqtt)
    }

    /// MQTT to the client, in frames of at most `frame_bytes` with a ping between them.
    pub fn put(&mut self, mqtt: &[u8], frame_bytes: usize) {
        if !self.is_websocket {
            self.out.extend_from_slice(mqtt);
            return;
        }
        for bytes in mqtt.chunks(frame_bytes) {
            self.out.extend(server_frame(0x82, bytes));
            self.out.extend(server_frame(0x89, b"?"));
        }
    }

    /// What is for the socket.
    pub fn wire(&mut self) -> Vec<u8> {
        let out = std::mem::take(&mut self.out);
        let Some(tls) = &mut self.tls else { return out };
        tls.writer().write_all(&out).unwrap();
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
        wire
    }
}

/// The payload of a binary frame at the start of `bytes` to `mqtt`; gives its length, if it is whole.
fn unmask(bytes: &[u8], mqtt: &mut Vec<u8>) -> Option<usize> {
    let (&[first, second], rest) = bytes.split_first_chunk::<2>()?;
    assert_eq!(second & 0x80, 0x80, "a client masks");
    let (len, rest) = match second & 0x7F {
        126 => (u16::from_be_bytes(*rest.first_chunk()?) as usize, &rest[2..]),
        127 => (u64::from_be_bytes(*rest.first_chunk()?) as usize, &rest[8..]),
        len => (len as usize, rest),
    };
    let (mask, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..len)?;
    match first {
        0x82 => mqtt.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask)),
        0x8A => {}
        _ => panic!("a frame of first byte {first:#x}"),
    }
    Some(bytes.len() - rest.len() + len)
}

/// Puts `transport` before the broker at `behind`, and writes at most `cut` bytes at a time. Gives its address.
pub fn front(transport: Transport, identity: &Identity, behind: &str, cut: usize) -> String {
    if transport == Transport::Tcp {
        return behind.to_string();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (config, behind) = (identity.config.clone(), behind.to_string());
    thread::spawn(move || {
        for client in listener.incoming() {
            let server = Server::new(transport, &config);
            let (client, broker) = (client.unwrap(), TcpStream::connect(&behind).unwrap());
            // One that goes ends its thread.
            thread::spawn(move || relay(server, client, broker, cut));
        }
    });
    address
}

fn relay(mut server: Server, mut client: TcpStream, mut broker: TcpStream, cut: usize) -> Option<()> {
    client.set_nodelay(true).ok()?;
    client.set_read_timeout(Some(Duration::from_millis(1))).ok()?;
    broker.set_read_timeout(Some(Duration::from_millis(1))).ok()?;
    let mut buffer = [0; 65_536];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => broker.write_all(&server.take(&buffer[..n])?).ok()?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        let mut is_over = false;
        match broker.read(&mut buffer) {
            Ok(0) => is_over = true,
            Ok(n) => server.put(&buffer[..n], cut),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        for bytes in server.wire().chunks(cut) {
            client.write_all(bytes).ok()?;
        }
        if is_over {
            return None;
        }
    }
}
