//! What stands between a socket and MQTT: a PROXY header, TLS, WebSocket, in this order; for plain TCP nothing.
//!
//! Owns    of a connection its [`Layers`], behind one pointer; of a core the settings and buffers that all of them share.
//! Called  by `worker::turn`, in place of `reader` and `writer` for connections that have layers.
//! Holds   - no protocol rule of MQTT: bytes of the stream come out as if the socket were a plain one;
//!         - frames are decoded where they were received; what is sealed or framed is taken from the outbox as it stands there,
//!           and a frame that the socket took in part goes on with the bytes that were promised;
//!         - between two reads a connection keeps the part of a record or head that waits for its rest, what the socket has
//!           not taken, and nothing else;
//!         - of the answers that a peer can ask for without end (pongs) one waits at a time.
//!
//! ```text
//! socket ─▶ PROXY header ─▶ TLS records ─▶ WebSocket frames ─▶ MQTT bytes in the core's scratch buffer
//! socket ◀───────────────── TLS records ◀─ WebSocket frames ◀─ what the outbox shows
//! ```

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use rustls::HandshakeKind;

use crate::limits::{READ_BYTES_PER_TURN, SEAL_BYTES_PER_WRITE};
use crate::websocket::{
    AllowedOrigins, CloseCode, Decoder, End as FrameEnd, FrameError, Handshake, HandshakeError, binary_header,
    close_frame, handshake,
};

use super::certificate::Tls;
use super::proxy::{Proxy, proxy_header};
use super::reader::{Read, Scratch, Stash, receive};
use super::tls::{Sealed, TlsEnd, TlsFault, TlsLayer};
use super::writer::{self, Written};

/// How the clients of a port speak below MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// A PROXY header comes first, before anything else.
    pub has_proxy_header: bool,
    pub is_tls: bool,
    pub is_websocket: bool,
}

impl Transport {
    /// As the ports are called.
    pub fn name(self) -> &'static str {
        match (self.is_tls, self.is_websocket) {
            (false, false) => "mqtt",
            (true, false) => "mqtts",
            (false, true) => "ws",
            (true, true) => "wss",
        }
    }
}

/// What a core's connections share.
pub struct Transports {
    /// None: no port speaks TLS.
    pub tls: Option<Tls>,
    pub origins: AllowedOrigins,
    /// What has been opened since it was last asked for.
    pub opened: OpenedCounts,
    /// Records as they were received.
    records: Box<[u8]>,
    sealed: Sealed,
    /// A frame with its header, to be sealed in one record.
    gathered: Vec<u8>,
    answers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenedCounts {
    pub tls_full: u64,
    pub tls_resumed: u64,
    pub websockets: u64,
}

impl Transports {
    pub fn new(tls: Option<Tls>, origins: AllowedOrigins) -> Transports {
        Transports {
            records: vec![0; if tls.is_some() { READ_BYTES_PER_TURN } else { 0 }].into(),
            tls,
            origins,
            opened: OpenedCounts::default(),
            sealed: Sealed::default(),
            gathered: Vec::new(),
            answers: Vec::new(),
        }
    }
}

/// Why a connection ended below MQTT; counted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No PROXY header, or a broken one, where there must be one.
    Proxy,
    Tls(TlsFault),
    Upgrade(HandshakeError),
    Frame(FrameError),
}

/// Nothing more comes of this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has closed TLS or the WebSocket as it should.
    Closed,
    Fault(Fault),
}

/// The layers of one connection.
pub struct Layers {
    transport: Transport,
    end: Option<End>,
    /// A part of the PROXY header or of a record, until its rest comes.
    partial: Option<Stash>,
    /// Made with the first bytes: whoever says nothing costs nothing.
    tls: Option<Box<TlsLayer>>,
    websocket: WebSocket,
    pending: Option<Box<Pending>>,
    /// Where the client connects from, as the PROXY header says.
    client: Option<Box<SocketAddr>>,
}

// An idle WebSocket connection may cost 100 bytes more than a plain one.
const _: () = assert!(size_of::<Layers>() <= 96, "paid once per connection that has layers");

enum WebSocket {
    /// There is none.
    Absent,
    /// The request has not come as a whole; this much of it has.
    Upgrading(Option<Stash>),
    Open {
        decoder: Decoder,
        /// Bytes that the header of an unfinished frame has promised: the next ones of the outbox.
        frame_left: u32,
    },
}

/// What waits for the socket.
#[derive(Default)]
struct Pending {
    /// Goes first, as it stands.
    bytes: Vec<u8>,
    /// A pong that goes when no frame is unfinished; not sealed yet.
    control: Vec<u8>,
    /// The close frame that answers the peer's, or its fault: the last of all frames (RFC 6455 section 5.5.1).
    farewell: Vec<u8>,
}

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// So many bytes of the outbox are the layers' or the socket's now. Full: the socket takes no more for now.
    Bytes {
        taken: usize,
        is_full: bool,
    },
    Broken,
}

impl Layers {
    /// None for plain TCP.
    pub fn new(transport: Transport) -> Option<Box<Layers>> {
        if transport == Transport::default() {
            return None;
        }
        Some(Box::new(Layers {
            transport,
            end: None,
            partial: None,
            tls: None,
            websocket: match transport.is_websocket {
                true => WebSocket::Upgrading(None),
                false => WebSocket::Absent,
            },
            pending: None,
            client: None,
        }))
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// What comes next costs the time of a public-key operation, or comes before one that does.
    pub fn is_handshaking(&self) -> bool {
        self.transport.is_tls && self.tls.as_ref().is_none_or(|tls| tls.is_handshaking())
    }

    /// The common name in the certificate that the client has shown.
    pub fn client_common_name(&self) -> Option<String> {
        self.tls.as_ref()?.client_common_name()
    }

    /// Where the client connects from, if a proxy has said so.
    pub fn client_address(&self) -> Option<SocketAddr> {
        self.client.as_deref().copied()
    }

    /// What has ended it: nothing is read any more, and it is to be closed.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Something waits for the socket that is not in the outbox.
    pub fn wants_write(&self) -> bool {
        let waits = |pending: &Pending| !pending.bytes.is_empty() || !pending.control.is_empty();
        self.pending.as_deref().is_some_and(waits)
    }

    #[cfg(test)]
    pub fn waiting_bytes(&self) -> usize {
        let of = |pending: &Pending| pending.bytes.len() + pending.control.len();
        self.pending.as_deref().map_or(0, of)
    }

    // --- in ----------------------------------------------------------------------------------------------------------

    /// Receives once; [`Scratch::bytes`] then shows the MQTT bytes of stash and read in one piece, as after
    /// [`Scratch::read`]. [`Layers::end`] says whether they are the last.
    pub fn read(
        &mut self,
        socket: BorrowedFd<'_>,
        scratch: &mut Scratch,
        stash: &mut Option<Stash>,
        core: &mut Transports,
    ) -> Read {
        let room = scratch.room(stash);
        let (read, taken) = match self.transport.is_tls {
            true => self.read_sealed(socket, room, core),
            false => self.read_open(socket, room, core),
        };
        if let Read::Bytes { .. } = read {
            scratch.fill(taken, stash);
        }
        read
    }

    /// Without TLS: received where MQTT bytes belong, and decoded there.
    fn read_open(&mut self, socket: BorrowedFd<'_>, room: &mut [u8], core: &mut Transports) -> (Read, usize) {
        let (read, len) = self.receive(socket, room);
        let Some(start) = self.pass_proxy_header(&room[..len]) else {
            return (read, 0);
        };
        if start > 0 {
            room.copy_within(start..len, 0);
        }
        (read, self.unframe(&mut room[..len - start], core))
    }

    fn read_sealed(&mut self, socket: BorrowedFd<'_>, room: &mut [u8], core: &mut Transports) -> (Read, usize) {
        let (read, len) = self.receive(socket, &mut core.records);
        let Some(start) = self.pass_proxy_header(&core.records[..len]) else {
            return (read, 0);
        };
        if start == len {
            return (read, 0);
        }
        if self.tls.is_none() {
            match self.begin_tls(core) {
                Ok(tls) => self.tls = Some(Box::new(tls)),
                Err(fault) => {
                    self.end = Some(End::Fault(Fault::Tls(fault)));
                    return (read, 0);
                }
            }
        }
        let tls = self.tls.as_mut().expect("made above");
        let mut plain = 0;
        core.sealed.clear();
        let opened = tls.open(&mut core.records[start..len], &mut core.sealed, |payload| {
            room[plain..plain + payload.len()].copy_from_slice(payload);
            plain += payload.len();
        });
        self.keep_partial(&core.records[start + opened.consumed..len]);
        match opened.established {
            None => {}
            Some(HandshakeKind::Resumed) => core.opened.tls_resumed += 1,
            Some(_) => core.opened.tls_full += 1,
        }
        match opened.end {
            None => {}
            Some(TlsEnd::Closed) => self.end = Some(End::Closed),
            Some(TlsEnd::Fault(fault)) => self.end = Some(End::Fault(Fault::Tls(fault))),
        }
        // A socket that is broken says so when it is read.
        let _ = self.send_sealed(socket, core);
        (read, self.unframe(&mut room[..plain], core))
    }

    fn begin_tls(&self, core: &Transports) -> Result<TlsLayer, TlsFault> {
        let tls = core.tls.as_ref().expect("a port that speaks TLS has a certificate");
        let config = match self.transport.is_websocket {
            true => &tls.wss,
            false => &tls.mqtts,
        };
        TlsLayer::new(config, &tls.client_verifier)
    }

    /// Receives behind what was kept. Returns how much there is now.
    fn receive(&mut self, socket: BorrowedFd<'_>, buffer: &mut [u8]) -> (Read, usize) {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.len());
        if partial == buffer.len() {
            // A message of the handshake that fills it has no end that anybody needs.
            self.end = Some(End::Fault(Fault::Tls(TlsFault::Misbehaved)));
            return (Read::Bytes { filled: false }, 0);
        }
        match receive(socket, &mut buffer[partial..]) {
            Ok(0) => (Read::End, 0),
            Ok(taken) => {
                if let Some(partial) = self.partial.take() {
                    buffer[..partial.len()].copy_from_slice(&partial);
                }
                let len = partial + taken;
                let filled = len == buffer.len();
                (Read::Bytes { filled }, len)
            }
            Err(Errno::AGAIN) => (Read::Nothing, 0),
            Err(_) => (Read::End, 0),
        }
    }

    fn keep_partial(&mut self, bytes: &[u8]) {
        self.partial = (!bytes.is_empty()).then(|| Box::new(bytes.to_vec()));
    }

    /// Where what follows the header begins; None if that is not known yet, or never will be.
    fn pass_proxy_header(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.transport.has_proxy_header || bytes.is_empty() {
            return Some(0);
        }
        match proxy_header(bytes) {
            Proxy::Header { consumed, client } => {
                // From here on the connection is like any other of its port.
                self.transport.has_proxy_header = false;
                self.client = client.map(Box::new);
                Some(consumed)
            }
            Proxy::Incomplete => {
                self.keep_partial(bytes);
                None
            }
            Proxy::Malformed => {
                self.end = Some(End::Fault(Fault::Proxy));
                None
            }
        }
    }

    /// Leaves MQTT bytes at the front of what came, and returns how many.
    fn unframe(&mut self, bytes: &mut [u8], core: &mut Transports) -> usize {
        let len = match &mut self.websocket {
            WebSocket::Absent => return bytes.len(),
            WebSocket::Open { .. } => bytes.len(),
            WebSocket::Upgrading(head) => {
                let mut head = head.take();
                if let Some(head) = &mut head {
                    head.extend_from_slice(bytes);
                }
                match self.upgrade(head.as_ref().map_or(bytes, |head| head), core) {
                    Upgrade::Incomplete => {
                        let head = head.unwrap_or_else(|| Box::new(bytes.to_vec()));
                        self.websocket = WebSocket::Upgrading((!head.is_empty()).then_some(head));
                        return 0;
                    }
                    Upgrade::Refused => return 0,
                    // What follows the request came with its end.
                    Upgrade::Done { rest } => {
                        bytes.copy_within(bytes.len() - rest.., 0);
                        rest
                    }
                }
            }
        };
        let WebSocket::Open { decoder, .. } = &mut self.websocket else {
            unreachable!("it is open, or has just been opened")
        };
        core.answers.clear();
        let decoded = decoder.decode(&mut bytes[..len], &mut core.answers);
        if !core.answers.is_empty() {
            let pending = self.pending.get_or_insert_default();
            let answers = match decoded.end {
                None => &mut pending.control,
                Some(_) => &mut pending.farewell,
            };
            // The latest pong stands for all before it (RFC 6455 section 5.5.3).
            answers.clear();
            answers.extend_from_slice(&core.answers);
        }
        match decoded.end {
            None => {}
            Some(FrameEnd::Closed) => self.end = Some(End::Closed),
            Some(FrameEnd::Failed(error)) => self.end = Some(End::Fault(Fault::Frame(error))),
        }
        decoded.payload_len
    }

    fn upgrade(&mut self, head: &[u8], core: &mut Transports) -> Upgrade {
        match handshake(head, &core.origins, self.transport.is_tls) {
            Handshake::Incomplete => Upgrade::Incomplete,
            Handshake::Accepted { consumed, response } => {
                self.say(&response, core);
                core.opened.websockets += 1;
                self.websocket = WebSocket::Open {
                    decoder: Decoder::default(),
                    frame_left: 0,
                };
                Upgrade::Done {
                    rest: head.len() - consumed,
                }
            }
            Handshake::Refused { reason, response } => {
                self.say(&response, core);
                self.end = Some(End::Fault(Fault::Upgrade(reason)));
                Upgrade::Refused
            }
        }
    }

    // --- out ---------------------------------------------------------------------------------------------------------

    /// Gives the socket what waits for it, then as much of the outbox as it takes.
    pub fn write(&mut self, socket: BorrowedFd<'_>, unsent: &[u8], core: &mut Transports) -> Sent {
        let mut taken = 0;
        loop {
            match self.send_pending(socket, core) {
                Some(true) => {}
                Some(false) => return Sent::Bytes { taken, is_full: true },
                None => return Sent::Broken,
            }
            let rest = &unsent[taken..];
            if rest.is_empty() {
                return Sent::Bytes { taken, is_full: false };
            }
            let offered;
            let written = match (&mut self.tls, &mut self.websocket) {
                (Some(tls), websocket) => {
                    let chunk = &rest[..rest.len().min(SEAL_BYTES_PER_WRITE)];
                    let plain = match websocket {
                        WebSocket::Open { .. } => {
                            core.gathered.clear();
                            core.gathered.extend_from_slice(binary_header(chunk.len()).as_bytes());
                            core.gathered.extend_from_slice(chunk);
                            &core.gathered
                        }
                        _ => chunk,
                    };
                    let partial = self.partial.as_mut().map_or(&mut [][..], |partial| partial);
                    core.sealed.clear();
                    if tls.seal(plain, partial, &mut core.sealed).is_err() {
                        return Sent::Broken;
                    }
                    // The records are ours to deliver now, whatever the socket takes of them.
                    taken += chunk.len();
                    offered = core.sealed.bytes().len();
                    self.send_sealed(socket, core)
                }
                (None, WebSocket::Open { frame_left, .. }) => {
                    let header = (*frame_left == 0).then(|| binary_header(rest.len()));
                    let header = header.as_ref().map_or(&[][..], |header| header.as_bytes());
                    if !header.is_empty() {
                        *frame_left = rest.len() as u32;
                    }
                    let payload = &rest[..*frame_left as usize];
                    offered = header.len() + payload.len();
                    let written = write_both(socket, header, payload);
                    if let Written::Bytes(bytes) = written {
                        let of_payload = bytes.saturating_sub(header.len());
                        *frame_left -= of_payload as u32;
                        taken += of_payload;
                        if bytes < header.len() {
                            let pending = self.pending.get_or_insert_default();
                            pending.bytes.extend_from_slice(&header[bytes..]);
                        }
                    }
                    written
                }
                (None, _) => {
                    offered = rest.len();
                    let written = writer::write(socket, rest);
                    if let Written::Bytes(bytes) = written {
                        taken += bytes;
                    }
                    written
                }
            };
            match written {
                Written::Bytes(bytes) if bytes == offered => {}
                Written::Bytes(_) => return Sent::Bytes { taken, is_full: true },
                Written::Broken => return Sent::Broken,
            }
        }
    }

    /// Says the last words, those of the layers included, as far as the socket takes them at once, and closes.
    pub fn close(&mut self, socket: OwnedFd, last: &[u8], code: CloseCode, core: &mut Transports) {
        let mut words = Vec::new();
        let Pending {
            bytes: mut first,
            control,
            farewell,
        } = self.pending.take().map_or_else(Pending::default, |pending| *pending);
        match self.websocket {
            WebSocket::Absent => words.extend_from_slice(last),
            // There is nobody yet who would understand.
            WebSocket::Upgrading(_) => {}
            WebSocket::Open { frame_left, .. } => {
                // An unfinished frame goes on with what it has promised.
                let (of_frame, further) = last.split_at((frame_left as usize).min(last.len()));
                words.extend_from_slice(of_frame);
                words.extend_from_slice(&control);
                if !further.is_empty() {
                    words.extend_from_slice(binary_header(further.len()).as_bytes());
                    words.extend_from_slice(further);
                }
                match farewell.is_empty() {
                    true => words.extend_from_slice(&close_frame(code)),
                    false => words.extend_from_slice(&farewell),
                }
            }
        }
        match &mut self.tls {
            None => first.append(&mut words),
            Some(tls) => {
                let partial = self.partial.as_mut().map_or(&mut [][..], |partial| partial);
                core.sealed.clear();
                if words.is_empty() || tls.seal(&words, partial, &mut core.sealed).is_ok() {
                    tls.close(partial, &mut core.sealed);
                }
                first.extend_from_slice(core.sealed.bytes());
            }
        }
        writer::close(socket, &first);
    }

    /// Bytes of the layer below MQTT, to go as soon as the socket takes them.
    fn say(&mut self, bytes: &[u8], core: &mut Transports) {
        let pending = &mut self.pending.get_or_insert_default().bytes;
        match &mut self.tls {
            None => pending.extend_from_slice(bytes),
            Some(tls) => {
                core.sealed.clear();
                let partial = self.partial.as_mut().map_or(&mut [][..], |partial| partial);
                // A connection that cannot be written to ends when it is read.
                let _ = tls.seal(bytes, partial, &mut core.sealed);
                pending.extend_from_slice(core.sealed.bytes());
            }
        }
    }

    /// Sends the core's sealed records behind what waits; the rest waits too.
    fn send_sealed(&mut self, socket: BorrowedFd<'_>, core: &Transports) -> Written {
        let records = core.sealed.bytes();
        let written = match &self.pending {
            Some(pending) if !pending.bytes.is_empty() => Written::Bytes(0),
            _ if records.is_empty() => Written::Bytes(0),
            _ => writer::write(socket, records),
        };
        if let Written::Bytes(bytes) = written
            && bytes < records.len()
        {
            let pending = self.pending.get_or_insert_default();
            pending.bytes.extend_from_slice(&records[bytes..]);
        }
        written
    }

    /// Sends what waits. True: what is in the outbox may go now; false: the socket is full; None: it is broken.
    fn send_pending(&mut self, socket: BorrowedFd<'_>, core: &mut Transports) -> Option<bool> {
        loop {
            let Some(pending) = &mut self.pending else {
                return Some(true);
            };
            if !pending.bytes.is_empty() {
                match writer::write(socket, &pending.bytes) {
                    Written::Bytes(bytes) if bytes < pending.bytes.len() => {
                        pending.bytes.drain(..bytes);
                        return Some(false);
                    }
                    Written::Bytes(_) => pending.bytes = Vec::new(),
                    Written::Broken => return None,
                }
            }
            if pending.control.is_empty() {
                self.pending.take_if(|pending| pending.farewell.is_empty());
                return Some(true);
            }
            if let WebSocket::Open { frame_left: 1.., .. } = self.websocket {
                // Not before the end of that frame, which is in the outbox.
                return Some(true);
            }
            let control = std::mem::take(&mut pending.control);
            self.say(&control, core);
        }
    }
}

enum Upgrade {
    Incomplete,
    Refused,
    /// So many bytes stand behind the request.
    Done {
        rest: usize,
    },
}

/// Both in one call, and no copy of either.
fn write_both(socket: BorrowedFd<'_>, first: &[u8], second: &[u8]) -> Written {
    let slices = [IoSlice::new(first), IoSlice::new(second)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let send = || sendmsg(socket, &slices, &mut SendAncillaryBuffer::default(), flags);
    match rustix::io::retry_on_intr(send) {
        Ok(taken) => Written::Bytes(taken),
        Err(Errno::AGAIN) => Written::Bytes(0),
        Err(_) => Written::Broken,
    }
}
