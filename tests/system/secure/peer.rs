//! A client by hand on any of the four ports, and what the tests here read of a broker.
//!
//! Called by every theme of `secure`.
//! Holds  - what does not come within a generous time fails the test;
//!        - no frame or record is made by the broker's own code.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, StreamOwned};

use super::pki;
use crate::broker::{Broker, patience};
use crate::raw::{connect, subscribe};

pub const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
}

impl Port {
    pub const ALL: [Port; 4] = [Port::Mqtt, Port::Mqtts, Port::Ws, Port::Wss];

    pub fn name(self) -> &'static str {
        match self {
            Port::Mqtt => "mqtt",
            Port::Mqtts => "mqtts",
            Port::Ws => "ws",
            Port::Wss => "wss",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Port::Mqtts | Port::Wss)
    }

    pub fn is_websocket(self) -> bool {
        matches!(self, Port::Ws | Port::Wss)
    }
}

/// As the ready file says.
pub fn ready_port(broker: &Broker, name: &str) -> u16 {
    let ready: serde_json::Value = serde_json::from_slice(&fs::read(broker.ready_file()).unwrap()).unwrap();
    ready[name].as_u64().expect("the ready file names the port") as u16
}

/// The certificate that the broker has made for itself.
pub fn self_made(broker: &Broker) -> PathBuf {
    broker.ready_file().with_file_name("skein-data").join("tls/cert.pem")
}

/// A client that trusts just that.
pub fn trusting(broker: &Broker) -> Arc<ClientConfig> {
    pki::client(&fs::read_to_string(self_made(broker)).unwrap(), pki::ANY, None)
}

pub fn tcp(broker: &Broker, port: Port) -> TcpStream {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, ready_port(broker, port.name()))).unwrap();
    settle(socket)
}

/// Small writes leave at once, and nothing is waited for without end.
pub fn settle(socket: TcpStream) -> TcpStream {
    let limit = Some(patience(Duration::from_secs(20)));
    socket.set_read_timeout(limit).unwrap();
    socket.set_write_timeout(limit).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// With the handshake behind it, as this side sees it.
pub fn tls(mut socket: TcpStream, config: &Arc<ClientConfig>) -> io::Result<TlsStream> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

/// The alert that the other side has sent.
pub fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

pub enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Wire {
    pub fn open(broker: &Broker, port: Port, config: &Arc<ClientConfig>) -> Wire {
        Wire::over(tcp(broker, port), port, config)
    }

    pub fn over(socket: TcpStream, port: Port, config: &Arc<ClientConfig>) -> Wire {
        match port.is_tls() {
            true => Wire::Tls(Box::new(tls(socket, config).expect("the handshake succeeds"))),
            false => Wire::Plain(socket),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.read(bytes),
            Wire::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(socket) => socket.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// What came before the broker closed the connection.
pub fn until_closed(wire: &mut impl Read) -> Vec<u8> {
    let mut got = Vec::new();
    match wire.read_to_end(&mut got) {
        Ok(_) => {}
        // Bytes that the broker had not read when it closed; TLS that was not ended by close_notify.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {}
        Err(error) => panic!("the broker has not closed the connection: {error}"),
    }
    got
}

pub fn expect(wire: &mut impl Read, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    wire.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
}

// --- WebSocket -------------------------------------------------------------------------------------------------------

/// The key of RFC 6455 section 1.3, and what answers it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub fn upgrade_request() -> Vec<u8> {
    format!(
        "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    .into_bytes()
}

/// The head of an HTTP response, with its empty line.
pub fn response_head(wire: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        wire.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A frame as a client writes it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend(MASK);
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ MASK[at % 4]));
    bytes
}

/// First byte and payload of the broker's next frame.
pub fn read_frame(wire: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    wire.read_exact(&mut head)?;
    assert_eq!(head[1] & 0x80, 0, "a server masks nothing");
    let mut length = u64::from(head[1]);
    let more = match head[1] {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if more > 0 {
        let mut bytes = [0; 8];
        wire.read_exact(&mut bytes[8 - more..])?;
        length = u64::from_be_bytes(bytes);
    }
    let mut payload = vec![0; length as usize];
    wire.read_exact(&mut payload)?;
    Ok((head[0], payload))
}

/// The next frame is a close frame with this code and nothing comes behind it.
pub fn expect_close(wire: &mut impl Read, code: u16, what: &str) {
    let frame = read_frame(wire).unwrap_or_else(|error| panic!("{what}: no close frame: {error}"));
    assert_eq!(
        frame,
        (CLOSE, code.to_be_bytes().to_vec()),
        "{what}: not closed by {code}"
    );
    assert!(
        until_closed(wire).is_empty(),
        "{what}: something came behind the close frame"
    );
}

// --- MQTT ------------------------------------------------------------------------------------------------------------

/// A connection that is ready for MQTT.
pub struct Peer {
    pub wire: Wire,
    is_websocket: bool,
    unread: Vec<u8>,
    id: String,
    count: u16,
}

impl Peer {
    pub fn over(mut wire: Wire, port: Port) -> Peer {
        if port.is_websocket() {
            wire.write_all(&upgrade_request()).unwrap();
            let head = response_head(&mut wire);
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        }
        Peer {
            wire,
            is_websocket: port.is_websocket(),
            unread: Vec::new(),
            id: String::new(),
            count: 0,
        }
    }

    pub fn open(broker: &Broker, port: Port, config: &Arc<ClientConfig>) -> Peer {
        Peer::over(Wire::open(broker, port, config), port)
    }

    pub fn connected(broker: &Broker, port: Port, config: &Arc<ClientConfig>, id: &str) -> Peer {
        let mut peer = Peer::open(broker, port, config);
        peer.greet(id);
        peer
    }

    pub fn greet(&mut self, id: &str) {
        self.send(&connect(id));
        assert_eq!(self.packet(), CONNACK, "{id}");
        self.id = id.to_owned();
    }

    pub fn send(&mut self, bytes: &[u8]) {
        match self.is_websocket {
            true => self.wire.write_all(&frame(BINARY, bytes)).unwrap(),
            false => self.wire.write_all(bytes).unwrap(),
        }
    }

    /// The next packet, as a whole.
    pub fn packet(&mut self) -> Vec<u8> {
        loop {
            if self.unread.len() >= 2 {
                assert!(self.unread[1] < 0x80, "no packet of these tests is that long");
                let end = 2 + usize::from(self.unread[1]);
                if self.unread.len() >= end {
                    return self.unread.drain(..end).collect();
                }
            }
            if self.is_websocket {
                let (first, payload) = read_frame(&mut self.wire).unwrap();
                assert_eq!(first, BINARY, "{payload:02x?}");
                self.unread.extend(payload);
            } else {
                let mut bytes = [0; 1024];
                let count = match self.wire.read(&mut bytes) {
                    // A process that another thread has started has ended.
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    count => count.unwrap(),
                };
                assert_ne!(count, 0, "the broker closed the connection");
                self.unread.extend(&bytes[..count]);
            }
        }
    }

    /// Sends a message to itself, through the broker.
    pub fn looks(&mut self) {
        let topic = format!("look/{}", self.id);
        if self.count == 0 {
            self.send(&subscribe(&topic, 0));
            assert_eq!(self.packet(), [0x90, 3, 0, 1, 0]);
        }
        self.count += 1;
        let mut message = vec![0x30, (2 + topic.len() + 2) as u8, 0, topic.len() as u8];
        message.extend(topic.as_bytes());
        message.extend(self.count.to_be_bytes());
        self.send(&message);
        assert_eq!(self.packet(), message, "{}", self.id);
    }
}

/// A client on each port that must not notice anything.
pub struct Witnesses(Vec<Peer>);

impl Witnesses {
    pub fn start(broker: &Broker, config: &Arc<ClientConfig>) -> Witnesses {
        let start = |port: Port| Peer::connected(broker, port, config, &format!("witness-{}", port.name()));
        let mut witnesses = Witnesses(Port::ALL.map(start).into());
        witnesses.look();
        witnesses
    }

    pub fn look(&mut self) {
        self.0.iter_mut().for_each(Peer::looks);
    }
}

// --- the broker ------------------------------------------------------------------------------------------------------

/// What a line of the log says was counted, by name; the last such line.
pub fn counters(log: &str) -> BTreeMap<String, u64> {
    let line = log.lines().rfind(|line| line.contains("counters=\"")).unwrap();
    let counters = line.split("counters=\"").nth(1).unwrap().split('"').next().unwrap();
    let pair = |pair: &str| {
        pair.split_once('=')
            .map(|(name, count)| (name.to_owned(), count.parse().unwrap()))
    };
    counters.split_whitespace().filter_map(pair).collect()
}

/// The counters of a broker that runs (SIGUSR1).
pub fn counted(broker: &Broker) -> BTreeMap<String, u64> {
    let reports = || broker.written().matches("counted so far").count();
    let before = reports();
    broker.signal(Signal::USR1);
    wait_until("SIGUSR1 is answered by counters in the log", || reports() > before);
    counters(&broker.written())
}

/// Waits until these counters are these: what is counted comes a moment after what the other side sees.
pub fn await_counted(broker: &Broker, expected: &[(&str, u64)]) {
    let began = Instant::now();
    loop {
        let counters = counted(broker);
        let found = expected
            .iter()
            .map(|(name, _)| (*name, counters.get(*name).copied().unwrap_or(0)));
        let found: Vec<_> = found.collect();
        if found == expected {
            return;
        }
        assert!(
            began.elapsed() < patience(Duration::from_secs(3)),
            "counted {found:?}, expected {expected:?}; all: {counters:?}"
        );
        sleep(Duration::from_millis(50));
    }
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < patience(Duration::from_secs(10)), "{what}");
        sleep(Duration::from_millis(20));
    }
}
