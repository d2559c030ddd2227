//! Conversations over a network: the broker as a process with one port open, and the driver that talks to it.
//!
//! Called  by `main.rs`.
//! Holds   - a broker runs in a temporary directory of its own and is ended with its `Broker`;
//!         - clients trust the certificate that the broker has made for itself, and nothing else; they share what TLS
//!           remembers, so some handshakes are resumptions;
//!         - nobody blocks: while one connection is written to, what arrives on the others is read, as a broker that
//!           holds a publisher back for a slow subscriber would otherwise wait for us for ever.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::runner::{Driver, Heard};
use crate::script::{Control, Conversation};
use crate::stream::Stream;

/// Long: the machine may be busy. It is only ever waited out by a conversation that fails.
const PATIENCE: Duration = Duration::from_secs(8);
const QUIET: Duration = Duration::from_millis(120);
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What carries MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Tls,
    /// TLS, with clients that know nothing newer than 1.2.
    Tls12,
    WebSocket,
    SecureWebSocket,
}

impl Transport {
    /// As the flags and the ready file call it.
    fn port(self) -> &'static str {
        match self {
            Transport::Tcp => "mqtt",
            Transport::Tls | Transport::Tls12 => "mqtts",
            Transport::WebSocket => "ws",
            Transport::SecureWebSocket => "wss",
        }
    }

    fn is_websocket(self) -> bool {
        matches!(self, Transport::WebSocket | Transport::SecureWebSocket)
    }

    /// What clients know of TLS when the certificate in the file is all they trust.
    fn tls(self, certificate: &Path) -> Result<Option<Arc<ClientConfig>>, String> {
        let versions = match self {
            Transport::Tcp | Transport::WebSocket => return Ok(None),
            Transport::Tls | Transport::SecureWebSocket => rustls::DEFAULT_VERSIONS,
            Transport::Tls12 => &[&rustls::version::TLS12],
        };
        let certificate = CertificateDer::from_pem_file(certificate);
        let certificate = certificate.map_err(|error| format!("the broker's certificate: {error}"))?;
        let mut trusted = RootCertStore::empty();
        trusted.add(certificate).map_err(|error| error.to_string())?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        Ok(Some(Arc::new(config)))
    }
}

pub struct Broker {
    address: SocketAddr,
    transport: Transport,
    tls: Option<Arc<ClientConfig>>,
    pid: Option<u32>,
    child: Option<Child>,
    directory: Option<tempfile::TempDir>,
}

impl Broker {
    /// A broker that someone else has started and that speaks MQTT over TCP there.
    pub fn at(address: &str) -> Result<Broker, String> {
        let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
        Ok(Broker {
            address,
            transport: Transport::Tcp,
            tls: None,
            pid: None,
            child: None,
            directory: None,
        })
    }

    pub fn start(transport: Transport, flags: &[String]) -> Result<Broker, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let ready_file = directory.path().join("ready.json");
        let log = std::fs::File::create(directory.path().join("log")).map_err(|error| error.to_string())?;
        let log_too = log.try_clone().map_err(|error| error.to_string())?;
        let ports = ["mqtt", "mqtts", "ws", "wss"].map(|name| {
            let port = if name == transport.port() { "0" } else { "off" };
            format!("--{name}-port={port}")
        });
        let mut child = Command::new(env!("CARGO_BIN_EXE_skein"))
            .current_dir(directory.path())
            // Settings of the broker may come from the environment; here none does.
            .env_clear()
            .args(ports)
            .arg("--access=open")
            .arg("--ready-file")
            .arg(&ready_file)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(|error| format!("the broker does not start: {error}"))?;
        let deadline = Instant::now() + START_TIMEOUT;
        let port = loop {
            let ready = std::fs::read_to_string(&ready_file).unwrap_or_default();
            if let Ok(ready) = serde_json::from_str::<serde_json::Value>(&ready) {
                break ready[transport.port()]
                    .as_u64()
                    .and_then(|port| u16::try_from(port).ok());
            }
            let ended = child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
                // It may have ended by itself: then there is nothing left to end.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the broker {flags:?} is not ready ({ended:?}): {log}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let pid = Some(child.id());
        let mut broker = Broker {
            address: SocketAddr::from(([127, 0, 0, 1], port.unwrap_or_default())),
            transport,
            tls: None,
            pid,
            child: Some(child),
            directory: None,
        };
        port.ok_or(format!("the ready file names no {} port", transport.port()))?;
        broker.tls = transport.tls(&directory.path().join("skein-data/tls/cert.pem"))?;
        broker.directory = Some(directory);
        Ok(broker)
    }

    /// What it said before it ended, where it ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        let log = self.directory.as_ref().map(|directory| directory.path().join("log"));
        let log = log
            .and_then(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default();
        Some(format!("the broker ended by itself, {status}: {log}"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; `ended` reports that.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub struct Network<'a> {
    broker: &'a Broker,
    streams: Vec<Stream>,
    seed: u64,
    /// The end of what was sent on it last waits for what is done next: if that is `shutdown`, the layers' farewell goes
    /// out with it, in one segment.
    held: Option<usize>,
}

impl<'a> Network<'a> {
    /// The conversation decides how what it sends is cut below MQTT.
    pub fn new(broker: &'a Broker, conversation: &Conversation) -> Network<'a> {
        let place = conversation.place.bytes();
        Network {
            broker,
            streams: Vec::new(),
            held: None,
            seed: place.fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into())),
        }
    }

    /// Waits for any connection to be readable, or writable where something waits for that; then reads and writes.
    fn pump(&mut self, wait: Duration) {
        let mut polled = Vec::new();
        let mut fds = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            let Some(socket) = &stream.socket else { continue };
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, stream.wants_read());
            flags.set(PollFlags::OUT, stream.wants_write());
            if !flags.is_empty() {
                polled.push(index);
                fds.push(PollFd::new(socket, flags));
            }
        }
        let wait = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        // An interrupted wait is a short one; the callers look at the clock.
        let _ = poll(&mut fds, Some(&wait));
        drop(fds);
        for index in polled {
            self.streams[index].read();
            self.streams[index].write();
        }
    }

    /// Pumps until no more holds, at most for a time.
    fn pump_while(&mut self, time: Duration, goes_on: impl Fn(&[Stream]) -> bool) {
        let deadline = Instant::now() + time;
        while goes_on(&self.streams) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.pump(left);
        }
    }

    /// All but the last piece.
    fn write(&mut self, connection: usize, bytes: &[u8], whole: bool) {
        for (index, piece) in self.streams[connection].pieces_of(bytes, whole).iter().enumerate() {
            if index > 0 {
                self.flush(connection);
                pause();
            }
            self.streams[connection].push(piece);
        }
    }

    fn flush(&mut self, connection: usize) {
        self.streams[connection].write();
        self.pump_while(PATIENCE, |streams| streams[connection].wants_write());
        self.streams[connection].give_up();
    }

    fn release(&mut self) {
        if let Some(connection) = self.held.take() {
            self.flush(connection);
        }
    }
}

/// Long enough for the broker to see most pieces apart.
fn pause() {
    std::thread::sleep(Duration::from_micros(300));
}

impl Driver for Network<'_> {
    fn open(&mut self) -> usize {
        self.release();
        let connection = self.streams.len();
        // A broker that does not accept, or ends the handshake, looks like one that closes at once.
        let socket = TcpStream::connect(self.broker.address).ok();
        let seed = self.seed.wrapping_add(connection as u64);
        let is_websocket = self.broker.transport.is_websocket();
        let stream = Stream::new(socket, self.broker.tls.as_ref(), is_websocket, seed);
        self.streams.push(stream);
        self.pump_while(PATIENCE, |streams| streams[connection].is_opening());
        connection
    }

    fn send(&mut self, connection: usize, bytes: &[u8], chunk: Option<usize>) {
        self.release();
        let Some(chunk) = chunk else {
            self.write(connection, bytes, false);
            self.held = Some(connection);
            return;
        };
        for piece in bytes.chunks(chunk) {
            self.write(connection, piece, true);
            self.flush(connection);
            pause();
        }
    }

    fn end(&mut self, connection: usize, how: Control) {
        if how != Control::Shutdown || self.held != Some(connection) {
            self.release();
        }
        if how == Control::Shutdown {
            self.streams[connection].say_farewell();
            self.held = Some(connection);
            self.release();
            self.streams[connection].shutdown();
        } else {
            self.streams[connection].close(how == Control::Reset);
        }
    }

    fn receive(&mut self, connection: usize, into: &mut Vec<u8>, wait: Duration) -> Heard {
        self.release();
        self.pump(Duration::ZERO);
        self.pump_while(wait, |streams| {
            streams[connection].arrived.is_empty() && !streams[connection].is_ended()
        });
        let stream = &mut self.streams[connection];
        if !stream.arrived.is_empty() {
            into.append(&mut stream.arrived);
            Heard::Bytes
        } else if stream.is_ended() {
            Heard::Closed
        } else {
            Heard::Silence
        }
    }

    fn pass(&mut self, time: Duration) {
        self.release();
        std::thread::sleep(time);
    }

    fn settle(&mut self) -> Result<(), String> {
        self.release();
        self.pump_while(PATIENCE, |streams| {
            streams
                .iter()
                .any(|stream| stream.fault().is_none() && stream.debt().is_some())
        });
        for (number, stream) in self.streams.iter().enumerate() {
            // One that is both follows from the fault.
            let debt = stream.debt().map(|debt| format!("does not get {debt}"));
            if let Some(broken) = stream.fault().map(str::to_owned).or(debt) {
                return Err(format!("connection {number}, as they were opened, from 0: {broken}"));
            }
        }
        Ok(())
    }

    fn patience(&self) -> (Duration, Duration) {
        // A broker of somebody else's is expected to differ here and there, and each time this is waited out.
        (
            if self.broker.child.is_some() {
                PATIENCE
            } else {
                PATIENCE / 4
            },
            QUIET,
        )
    }

    fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.broker.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kibibytes| kibibytes * 1024)
    }
}
