//! One client of the broker under test: the handshake, blocking and bounded in time, and the non-blocking connection after it.
//!
//! Owns    the socket, the layers above it if it is not plain TCP, the piece of a frame a read ended in, and the bytes the
//!         socket did not take yet.
//! Called  by `throughput`, `senders`, `receivers`, `visits` and `connect`; `idle` has its own, smaller state for its many
//!         clients and shares the errors.
//! Holds   - bytes leave in the order they were given: while `pending` is not empty nothing else is written;
//!         - plain TCP reads into and writes from the caller's buffers; the layers cost a copy each way;
//!         - every error is a sentence that names the address and the cause.

use std::cell::RefCell;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::net::sockopt;

use crate::dial::dial;
use crate::packet::{self, Credentials, SessionKind, Will};
use crate::source_ports::SourcePorts;
use crate::transport::{Layers, Stage, Target};

/// How long a TCP connect, a CONNACK or a SUBACK may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    pub address: SocketAddr,
    /// None: plain TCP.
    layers: Option<Box<Layers>>,
    /// The start of a frame whose end has not come.
    leftover: Vec<u8>,
    /// What the socket did not take, to go before anything else: bytes of the socket, not of MQTT.
    pending: Vec<u8>,
}

/// What the layers of whichever connection reads are fed from and give to.
struct Scratch {
    wire: Vec<u8>,
    plain: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { wire: Vec::new(), plain: Vec::new() }) };
}

/// Bytes the layers are given in one read.
const WIRE_BYTES: usize = 64 * 1024;

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// `buffer[..len]` starts with a frame; `full` says that more may wait.
    Bytes {
        len: usize,
        full: bool,
    },
    Nothing,
}

/// The first address of `text`, "host:port".
pub fn resolve(text: &str) -> Result<SocketAddr> {
    let mut addresses = text
        .to_socket_addrs()
        .with_context(|| format!("{text} is no address, HOST:PORT is wanted"))?;
    addresses.next().with_context(|| format!("{text} names no address"))
}

/// Why a CONNACK refuses.
pub fn connack_cause(code: u8) -> &'static str {
    match code {
        1 => "unacceptable protocol version",
        2 => "identifier rejected",
        3 => "server unavailable",
        4 => "bad user name or password",
        5 => "not authorized",
        _ => "a reserved return code",
    }
}

/// Session Present of the CONNACK of an accepted connection, or the refusal as an error.
pub fn check_connack(address: SocketAddr, frame: packet::Frame<'_>) -> Result<bool> {
    match (frame.kind(), frame.body) {
        (packet::CONNACK, [flags, 0]) => Ok(flags & 1 == 1),
        (packet::CONNACK, [_, code]) => bail!("{address} refused CONNECT with code {code}: {}", connack_cause(*code)),
        _ => bail!("{address} answered CONNECT with a packet of type {}", frame.kind()),
    }
}

/// The SUBACK for the one filter asked for at `qos`, or what is wrong with it as an error.
pub fn check_suback(address: SocketAddr, frame: packet::Frame<'_>, qos: u8) -> Result<()> {
    match (frame.kind(), frame.body) {
        (packet::SUBACK, [0, 1, code]) if *code == qos => Ok(()),
        (packet::SUBACK, [0, 1, 0x80]) => bail!("{address} refused the subscription"),
        (packet::SUBACK, [0, 1, code]) => bail!("{address} granted QoS {code} where {qos} was asked for"),
        _ => bail!("{address} answered SUBSCRIBE with a packet of type {}", frame.kind()),
    }
}

impl Connection {
    /// Connects, without Keep Alive, and waits for CONNACK.
    pub fn open(
        target: &Target,
        client_id: &str,
        session: SessionKind,
        credentials: &Credentials,
    ) -> Result<Connection> {
        Connection::greet(Connection::dial(target)?, client_id, session, credentials)
    }

    /// As [`Connection::open`], from the next of `ports`; `number` is that of the connection.
    pub fn open_from(
        ports: &mut SourcePorts,
        number: u32,
        target: &Target,
        client_id: &str,
        session: SessionKind,
        credentials: &Credentials,
    ) -> Result<Connection> {
        let address = target.address;
        let (socket, is_connected) = dial(address, ports, number)?;
        if !is_connected {
            let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
            let limit = Timespec {
                tv_sec: HANDSHAKE_MAX.as_secs() as _,
                tv_nsec: 0,
            };
            if rustix::event::poll(&mut fds, Some(&limit))? == 0 {
                bail!(
                    "cannot connect to {address}: no answer within {} s",
                    HANDSHAKE_MAX.as_secs()
                );
            }
            sockopt::socket_error(&socket)?.map_err(|error| {
                let error = std::io::Error::from(error);
                anyhow!("cannot connect to {address}: {error}")
            })?;
        }
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(false)?;
        Connection::greet(Connection::over(socket, target)?, client_id, session, credentials)
    }

    fn greet(
        mut connection: Connection,
        client_id: &str,
        session: SessionKind,
        credentials: &Credentials,
    ) -> Result<Connection> {
        let mut bytes = Vec::new();
        packet::connect(&mut bytes, client_id, session, 0, credentials);
        let address = connection.address;
        connection.request(&bytes, "CONNACK", packet::CONNACK, |frame| {
            check_connack(address, frame).map(drop)
        })?;
        Ok(connection)
    }

    /// Connects (TLS and the WebSocket upgrade included) and sends CONNECT, without Keep Alive; CONNACK is the first frame to
    /// be read. Non-blocking from here on.
    pub fn begin(
        target: &Target,
        client_id: &str,
        session: SessionKind,
        credentials: &Credentials,
    ) -> Result<Connection> {
        Connection::begin_with(target, client_id, session, None, credentials)
    }

    /// As [`Connection::begin`], with a Will.
    pub fn begin_with(
        target: &Target,
        client_id: &str,
        session: SessionKind,
        will: Option<Will<'_>>,
        credentials: &Credentials,
    ) -> Result<Connection> {
        let mut connection = Connection::dial(target)?;
        connection.set_nonblocking()?;
        let mut bytes = Vec::new();
        packet::connect_with(&mut bytes, client_id, session, 0, will, credentials);
        connection.send(&[], &bytes)?;
        Ok(connection)
    }

    fn dial(target: &Target) -> Result<Connection> {
        let address = target.address;
        let socket = TcpStream::connect_timeout(&address, HANDSHAKE_MAX)
            .map_err(|error| anyhow!("cannot connect to {address}: {error}"))?;
        Connection::over(socket, target)
    }

    /// Opens the layers over a connected socket.
    fn over(socket: TcpStream, target: &Target) -> Result<Connection> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(HANDSHAKE_MAX))?;
        socket.set_write_timeout(Some(HANDSHAKE_MAX))?;
        let mut connection = Connection {
            socket,
            address: target.address,
            layers: target.layers()?.map(Box::new),
            leftover: Vec::new(),
            pending: Vec::new(),
        };
        if let Some(layers) = &mut connection.layers {
            layers.begin(&mut connection.pending)?;
            connection.climb()?;
        }
        Ok(connection)
    }

    /// Blocks until the layers are open.
    fn climb(&mut self) -> Result<()> {
        loop {
            let stage = self.layers.as_ref().map_or(Stage::Open, |layers| layers.stage());
            self.write_pending(stage.wanted())?;
            if stage == Stage::Open {
                return Ok(());
            }
            self.fill(stage.wanted())?;
        }
    }

    /// Subscribes to one filter and waits for SUBACK. Messages that come before it stay to be read.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> Result<()> {
        let mut bytes = Vec::new();
        packet::subscribe(&mut bytes, filter, qos);
        let address = self.address;
        self.request(&bytes, "SUBACK", packet::SUBACK, |frame| {
            check_suback(address, frame, qos)
        })
    }

    /// Ends the blocking phase.
    pub fn set_nonblocking(&mut self) -> Result<()> {
        Ok(self.socket.set_nonblocking(true)?)
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// True when `send` left bytes behind: call [`Connection::flush`] once the socket is writable.
    pub fn wants_write(&self) -> bool {
        !self.pending.is_empty()
    }

    fn request(
        &mut self,
        bytes: &[u8],
        wanted: &str,
        kind: u8,
        check: impl Fn(packet::Frame<'_>) -> Result<()>,
    ) -> Result<()> {
        let address = self.address;
        match &mut self.layers {
            None => self.pending.extend_from_slice(bytes),
            Some(layers) => layers.put(&[], bytes, &mut self.pending)?,
        }
        loop {
            self.write_pending(wanted)?;
            let mut at = 0;
            while let Some(frame) =
                packet::next_frame(&self.leftover[at..]).with_context(|| format!("{address} sent"))?
            {
                if frame.kind() == kind || frame.kind() != packet::PUBLISH {
                    check(frame)?;
                    let len = frame.len;
                    self.leftover.drain(at..at + len);
                    return Ok(());
                }
                at += frame.len;
            }
            self.fill(wanted)?;
        }
    }

    fn lost(&self, error: &std::io::Error, wanted: &str) -> anyhow::Error {
        let address = self.address;
        match error.kind() {
            ErrorKind::WouldBlock => anyhow!("{address} sent no {wanted} within {} s", HANDSHAKE_MAX.as_secs()),
            _ => anyhow!("{address} broke the connection before {wanted}: {error}"),
        }
    }

    /// Blocks until what is pending is written.
    fn write_pending(&mut self, wanted: &str) -> Result<()> {
        let written = self.socket.write_all(&self.pending);
        self.pending.clear();
        written.map_err(|error| self.lost(&error, wanted))
    }

    /// Blocks until bytes come; those of MQTT go behind what is left over.
    fn fill(&mut self, wanted: &str) -> Result<()> {
        let mut buffer = [0; 4096];
        let n = match self.socket.read(&mut buffer) {
            Ok(0) => bail!("{} closed the connection before {wanted}", self.address),
            Ok(n) => n,
            Err(error) => return Err(self.lost(&error, wanted)),
        };
        match &mut self.layers {
            None => self.leftover.extend_from_slice(&buffer[..n]),
            Some(layers) => layers
                .take(&mut buffer[..n], &mut self.leftover, &mut self.pending)
                .map_err(|error| anyhow!("{} {error}", self.address))?,
        }
        Ok(())
    }

    /// Reads once. What the last read left over comes first in `buffer`, which must be longer than the longest frame.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Received> {
        if self.layers.is_some() {
            return self.receive_through_layers(buffer);
        }
        let left = self.leftover.len();
        let read = self.socket.read(&mut buffer[left..]);
        match read {
            Ok(0) => bail!("{} closed the connection", self.address),
            Ok(n) => {
                buffer[..left].copy_from_slice(&self.leftover);
                self.leftover.clear();
                Ok(Received::Bytes {
                    len: left + n,
                    full: left + n == buffer.len(),
                })
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Received::Nothing)
            }
            Err(error) => bail!("{} broke the connection: {error}", self.address),
        }
    }

    /// What is read from the socket goes through the layers at once, whole: epoll knows of nothing that waits in them.
    fn receive_through_layers(&mut self, buffer: &mut [u8]) -> Result<Received> {
        let Some(layers) = &mut self.layers else {
            return Ok(Received::Nothing);
        };
        let left = self.leftover.len();
        let room = (buffer.len() - left).saturating_sub(layers.held()).min(WIRE_BYTES);
        let address = self.address;
        assert!(
            room > 0,
            "the buffer is longer than the longest frame and a record of TLS"
        );
        let received = SCRATCH.with_borrow_mut(|Scratch { wire, plain }| {
            if wire.is_empty() {
                wire.resize(WIRE_BYTES, 0);
            }
            plain.clear();
            let n = match self.socket.read(&mut wire[..room]) {
                Ok(0) => bail!("{address} closed the connection"),
                Ok(n) => n,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(Received::Nothing);
                }
                Err(error) => bail!("{address} broke the connection: {error}"),
            };
            layers
                .take(&mut wire[..n], plain, &mut self.pending)
                .map_err(|error| anyhow!("{address} {error}"))?;
            if plain.is_empty() {
                return Ok(Received::Nothing);
            }
            let len = left + plain.len();
            buffer[..left].copy_from_slice(&self.leftover);
            buffer[left..len].copy_from_slice(plain);
            self.leftover.clear();
            Ok(Received::Bytes { len, full: n == room })
        })?;
        self.flush()?;
        Ok(received)
    }

    /// Gives back what `receive` gave and no frame used up.
    pub fn keep(&mut self, rest: &[u8]) {
        self.leftover.extend_from_slice(rest);
    }

    /// Writes the parts in one call; what the socket does not take is kept. Call only when [`Connection::wants_write`] is false.
    pub fn send(&mut self, first: &[u8], second: &[u8]) -> Result<()> {
        debug_assert!(self.pending.is_empty());
        if let Some(layers) = &mut self.layers {
            layers.put(first, second, &mut self.pending)?;
            return self.flush();
        }
        let written = if first.is_empty() {
            (&self.socket).write(second)
        } else {
            (&self.socket).write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
        };
        let written = self.written(written)?;
        if written < first.len() {
            self.pending.extend_from_slice(&first[written..]);
            self.pending.extend_from_slice(second);
        } else {
            self.pending.extend_from_slice(&second[written - first.len()..]);
        }
        Ok(())
    }

    /// Puts bytes behind what is pending.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.layers {
            None => self.pending.extend_from_slice(bytes),
            Some(layers) => layers.put(&[], bytes, &mut self.pending)?,
        }
        Ok(())
    }

    /// Asks for events, with or without those of a writable socket.
    pub fn watch(&self, epoll: &OwnedFd, token: u64, writable: bool) -> Result<()> {
        let flags = if writable {
            epoll::EventFlags::IN | epoll::EventFlags::OUT
        } else {
            epoll::EventFlags::IN
        };
        Ok(epoll::modify(
            epoll,
            &self.socket,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    /// Writes what is pending.
    pub fn flush(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            let written = (&self.socket).write(&self.pending);
            let written = self.written(written)?;
            self.pending.drain(..written);
        }
        Ok(())
    }

    fn written(&self, result: std::io::Result<usize>) -> Result<usize> {
        match result {
            Ok(n) => Ok(n),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => bail!("{} broke the connection: {error}", self.address),
        }
    }

    /// DISCONNECT, and the socket closes. The broker may be gone already: nobody is told.
    pub fn close(mut self) {
        if !self.pending.is_empty() {
            return;
        }
        match &mut self.layers {
            None => self.pending.extend_from_slice(&packet::DISCONNECT_BYTES),
            Some(layers) => {
                let _ = layers.end(&packet::DISCONNECT_BYTES, &mut self.pending);
            }
        }
        let _ = self.socket.write(&self.pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// A broker of one connection: answers each request with the next of `answers`, then closes.
    fn broker(answers: Vec<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for answer in answers {
                let _ = socket.read(&mut [0; 1024]).unwrap();
                socket.write_all(answer).unwrap();
            }
        });
        address
    }

    fn open(address: SocketAddr) -> Result<Connection> {
        let target = Target::tcp(address);
        Connection::open(&target, "c", SessionKind::Clean, &Credentials::default())
    }

    #[test]
    fn a_refusal_names_the_address_and_the_code() {
        let address = broker(vec![&[0x20, 2, 0, 5]]);
        let error = open(address).unwrap_err().to_string();
        assert_eq!(error, format!("{address} refused CONNECT with code 5: not authorized"));
    }

    #[test]
    fn a_port_nobody_listens_on_is_named() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = open(address).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot connect to {address}: Connection refused")),
            "{error}"
        );
    }

    #[test]
    fn a_broker_that_closes_is_named() {
        let address = broker(vec![&[]]);
        let error = open(address).unwrap_err().to_string();
        assert_eq!(error, format!("{address} closed the connection before CONNACK"));
    }

    #[test]
    fn a_lower_granted_qos_is_an_error_and_a_message_before_suback_is_kept() {
        let early = [0x30, 4, 0, 1, b'a', b'x'];
        let address = broker(vec![&[0x20, 2, 0, 0], &[0x30, 4, 0, 1, b'a', b'x', 0x90, 3, 0, 1, 1]]);
        let mut connection = open(address).unwrap();
        connection.subscribe("a", 1).unwrap();
        assert_eq!(connection.leftover, early);
        let address = broker(vec![&[0x20, 2, 0, 0], &[0x90, 3, 0, 1, 0]]);
        let error = open(address).unwrap().subscribe("a", 1).unwrap_err().to_string();
        assert_eq!(error, format!("{address} granted QoS 0 where 1 was asked for"));
    }

    #[test]
    fn what_the_socket_does_not_take_goes_first_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let address = listener.local_addr().unwrap();
        let mut connection = Connection {
            socket,
            address,
            layers: None,
            leftover: Vec::new(),
            pending: Vec::new(),
        };
        connection.set_nonblocking().unwrap();
        let first: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let second: Vec<u8> = (0..9_000_000u32).map(|i| (i % 241) as u8).collect();
        connection.send(&first, &second).unwrap();
        assert!(connection.wants_write(), "12 MB do not fit a socket");
        let reader = thread::spawn(move || {
            let mut got = vec![0; 12_000_000];
            peer.read_exact(&mut got).unwrap();
            got
        });
        while connection.wants_write() {
            connection.flush().unwrap();
            thread::yield_now();
        }
        let got = reader.join().unwrap();
        assert!(got[..3_000_000] == first && got[3_000_000..] == second);
    }
}
