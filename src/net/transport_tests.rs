//! Layers between a socket pair: a client of the test's own (rustls, frames by hand) at the other end, bytes cut anywhere, a
//! socket that takes little.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use proptest::prelude::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::certificate::{Source, Tls, TlsSettings, load};
use super::reader::{Read, Scratch, Stash};
use super::transport::{End, Fault, Layers, Sent, Transport, Transports};
use crate::websocket::{AllowedOrigins, CloseCode, FrameError, HandshakeError};

const fn transport(has_proxy_header: bool, is_tls: bool, is_websocket: bool) -> Transport {
    Transport {
        has_proxy_header,
        is_tls,
        is_websocket,
    }
}

/// All that have layers.
const TRANSPORTS: [Transport; 7] = [
    transport(false, true, false),
    transport(false, false, true),
    transport(false, true, true),
    transport(true, false, false),
    transport(true, true, false),
    transport(true, false, true),
    transport(true, true, true),
];

const PROXY_HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 1883\r\n";
const UPGRADE: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

fn tls() -> &'static (Tls, Arc<ClientConfig>) {
    static TLS: OnceLock<(Tls, Arc<ClientConfig>)> = OnceLock::new();
    TLS.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let source = Source::SelfMade {
            directory: directory.path().join("tls"),
        };
        let settings = TlsSettings {
            source,
            client_ca: None,
        };
        let loaded = load(&settings, SystemTime::now()).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&loaded.certificate).unwrap())
            .unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (loaded.tls, Arc::new(client))
    })
}

/// The other end: what it sends is kept in `out` until it is let out in pieces.
struct Client {
    socket: UnixStream,
    tls: Option<ClientConnection>,
    is_websocket: bool,
    out: Vec<u8>,
    /// Inside TLS, not yet taken apart.
    framed: Vec<u8>,
    is_upgraded: bool,
    mqtt: Vec<u8>,
    pongs: Vec<Vec<u8>>,
    close_code: Option<u16>,
    has_ended: bool,
    frames: u32,
}

impl Client {
    fn inner(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.out.extend_from_slice(bytes),
            Some(tls) => {
                tls.writer().write_all(bytes).unwrap();
                self.take_tls();
            }
        }
    }

    fn take_tls(&mut self) {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.out).unwrap();
            }
        }
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        self.frames += 1;
        let mask = self.frames.wrapping_mul(0x9e37_79b9).to_be_bytes();
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(0x80 | len as u8),
            len @ 126..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.inner(&frame);
    }

    fn send(&mut self, mqtt: &[u8]) {
        match self.is_websocket {
            true => self.frame(0x82, mqtt),
            false => self.inner(mqtt),
        }
    }

    /// Lets at most so many bytes out.
    fn let_out(&mut self, count: usize) {
        let count = count.min(self.out.len());
        match self.socket.write(&self.out[..count]) {
            Ok(written) => drop(self.out.drain(..written)),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe),
                "{error}"
            ),
        }
    }

    /// Takes at most so many bytes in.
    fn take_in(&mut self, count: usize) {
        if count == 0 {
            // Nothing read for want of room would look like the end.
            return;
        }
        let mut bytes = vec![0; count];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.has_ended = true,
            Ok(read) => bytes.truncate(read),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => {
                self.has_ended = true;
                return;
            }
        }
        if self.has_ended {
            return;
        }
        match &mut self.tls {
            None => self.framed.extend(bytes),
            Some(tls) => {
                let mut bytes = &bytes[..];
                while !bytes.is_empty() {
                    tls.read_tls(&mut bytes).unwrap();
                    tls.process_new_packets().unwrap();
                    let mut plain = Vec::new();
                    if let Err(error) = tls.reader().read_to_end(&mut plain) {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    }
                    self.framed.extend(plain);
                }
                self.take_tls();
            }
        }
        self.take_apart();
    }

    fn take_apart(&mut self) {
        if !self.is_websocket {
            self.mqtt.append(&mut self.framed);
            return;
        }
        if !self.is_upgraded {
            let Some(end) = self.framed.windows(4).position(|window| window == b"\r\n\r\n") else {
                return;
            };
            assert!(self.framed.starts_with(b"HTTP/1.1 101 "));
            self.framed.drain(..end + 4);
            self.is_upgraded = true;
        }
        while let [first, length, rest @ ..] = &self.framed[..] {
            assert_eq!(self.close_code, None, "a frame behind the close frame");
            let (header, len) = match (*length, rest) {
                (len @ 0..126, _) => (2, usize::from(len)),
                (126, [a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
                (127, rest) if rest.len() >= 8 => (10, u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize),
                (128.., _) => panic!("a server masks nothing"),
                _ => return,
            };
            if self.framed.len() < header + len {
                return;
            }
            let payload = &self.framed[header..header + len];
            match first {
                0x82 => self.mqtt.extend_from_slice(payload),
                0x8a => self.pongs.push(payload.to_vec()),
                0x88 => self.close_code = Some(u16::from_be_bytes([payload[0], payload[1]])),
                other => panic!("frame {other:#x}"),
            }
            self.framed.drain(..header + len);
        }
    }
}

struct Server {
    socket: Option<UnixStream>,
    layers: Box<Layers>,
    core: Transports,
    scratch: Scratch,
    stash: Option<Stash>,
    outbox: Vec<u8>,
    consumed: Vec<u8>,
    is_full: bool,
}

impl Server {
    /// One read; consumes `appetite` bytes of what it shows. False: nothing came.
    fn read(&mut self, appetite: usize) -> bool {
        let socket = self.socket.as_ref().unwrap();
        let read = self
            .layers
            .read(socket.as_fd(), &mut self.scratch, &mut self.stash, &mut self.core);
        if !matches!(read, Read::Bytes { .. }) {
            return false;
        }
        let shown = self.scratch.bytes();
        let eaten = appetite.min(shown.len());
        self.consumed.extend_from_slice(&shown[..eaten]);
        self.scratch.keep(eaten, &mut self.stash);
        true
    }

    fn write(&mut self) {
        let socket = self.socket.as_ref().unwrap();
        let Sent::Bytes { taken, is_full } = self.layers.write(socket.as_fd(), &self.outbox, &mut self.core) else {
            panic!("the client is there")
        };
        self.outbox.drain(..taken);
        self.is_full = is_full;
    }

    fn close(&mut self, code: CloseCode) {
        let socket = self.socket.take().unwrap();
        self.layers.close(socket.into(), &self.outbox, code, &mut self.core);
    }
}

/// A connection whose client has what opens it ready to be let out.
fn pair(transport: Transport) -> (Client, Server) {
    let (a, b) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&a, 4_096).unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    let (server_tls, client_tls) = tls();
    let mut client = Client {
        socket: b,
        tls: transport.is_tls.then(|| {
            let name = ServerName::try_from("localhost").unwrap();
            let mut tls = ClientConnection::new(Arc::clone(client_tls), name).unwrap();
            tls.set_buffer_limit(None);
            tls
        }),
        is_websocket: transport.is_websocket,
        out: Vec::new(),
        framed: Vec::new(),
        is_upgraded: false,
        mqtt: Vec::new(),
        pongs: Vec::new(),
        close_code: None,
        has_ended: false,
        frames: 0,
    };
    if transport.has_proxy_header {
        client.out.extend_from_slice(PROXY_HEADER);
    }
    client.take_tls();
    if transport.is_websocket {
        client.inner(UPGRADE);
    }
    let server = Server {
        socket: Some(a),
        layers: Layers::new(transport).unwrap(),
        core: Transports::new(Some(server_tls.clone()), AllowedOrigins::Any),
        scratch: Scratch::new(),
        stash: None,
        outbox: Vec::new(),
        consumed: Vec::new(),
        is_full: false,
    };
    (client, server)
}

/// Until nothing moves any more.
fn run(client: &mut Client, server: &mut Server) {
    let mut quiet = 0;
    while quiet < 3 {
        quiet += 1;
        client.let_out(usize::MAX);
        while server.socket.is_some() && server.read(usize::MAX) {
            quiet = 0;
        }
        if server.socket.is_some() {
            let before = server.outbox.len();
            server.write();
            if server.outbox.len() != before || server.is_full {
                quiet = 0;
            }
        }
        let before = (
            client.framed.len(),
            client.mqtt.len(),
            client.pongs.len(),
            client.out.len(),
        );
        client.take_in(1 << 16);
        if before
            != (
                client.framed.len(),
                client.mqtt.len(),
                client.pongs.len(),
                client.out.len(),
            )
        {
            quiet = 0;
        }
    }
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 7 + salt * 13) % 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However the stream is cut and consumed, every byte comes through once and in order; and the handshakes with it.
    #[test]
    fn what_a_client_sends_comes_out_whole(
        which in 0..TRANSPORTS.len(),
        messages in prop::collection::vec(prop_oneof![0usize..300, 0usize..40_000], 1..12),
        pieces in prop::collection::vec((prop_oneof![1usize..8, 1usize..50_000], 0usize..80_000), 1..40)
    ) {
        let (mut client, mut server) = pair(TRANSPORTS[which]);
        let mut sent = Vec::new();
        for (salt, len) in messages.into_iter().enumerate() {
            let mqtt = pattern(len, salt);
            client.send(&mqtt);
            sent.extend(mqtt);
        }
        for (len, appetite) in pieces {
            client.let_out(len);
            server.read(appetite);
            client.take_in(1 << 16);
        }
        run(&mut client, &mut server);
        // What was left in the stash is shown in front of whatever comes next.
        client.send(b"!");
        sent.push(b'!');
        run(&mut client, &mut server);
        prop_assert_eq!(server.layers.end(), None);
        prop_assert_eq!(&server.consumed, &sent);
        prop_assert!(!server.layers.wants_write());
    }

    /// However little the socket takes, what the outbox showed arrives once and in order, and pings are answered between.
    #[test]
    fn what_is_sent_to_a_client_arrives_whole(
        which in 0..TRANSPORTS.len(),
        steps in prop::collection::vec((prop_oneof![0usize..200, 0usize..90_000], 0usize..9_000, any::<bool>()), 1..40)
    ) {
        let (mut client, mut server) = pair(TRANSPORTS[which]);
        run(&mut client, &mut server);
        let mut sent = Vec::new();
        let mut last_ping = None;
        for (salt, (len, read, pings)) in steps.into_iter().enumerate() {
            let mqtt = pattern(len, salt);
            server.outbox.extend_from_slice(&mqtt);
            sent.extend(mqtt);
            if pings && client.is_websocket {
                let payload = (salt as u32).to_be_bytes();
                client.frame(0x89, &payload);
                last_ping = Some(payload.to_vec());
                client.let_out(usize::MAX);
                server.read(0);
            }
            server.write();
            client.take_in(read);
        }
        run(&mut client, &mut server);
        prop_assert_eq!(&client.mqtt, &sent);
        prop_assert_eq!(client.pongs.last(), last_ping.as_ref());
        prop_assert!(!server.layers.wants_write() && server.outbox.is_empty());
    }
}

#[test]
fn the_last_words_arrive_before_a_close_that_says_why() {
    for transport in TRANSPORTS {
        let (mut client, mut server) = pair(transport);
        client.send(b"hello");
        run(&mut client, &mut server);
        assert_eq!(server.consumed, b"hello", "{transport:?}");
        server.outbox.extend_from_slice(b"the last words");
        server.close(CloseCode::GoingAway);
        run(&mut client, &mut server);
        assert_eq!(client.mqtt, b"the last words", "{transport:?}");
        assert_eq!(client.close_code, transport.is_websocket.then_some(1001));
        assert!(client.has_ended);
        if let Some(tls) = &mut client.tls {
            // The end of TLS was said: the stream was not cut.
            assert_eq!(tls.reader().read(&mut [0; 8]).unwrap(), 0);
        }
    }
}

#[test]
fn an_unfinished_frame_is_finished_before_the_close() {
    let (mut client, mut server) = pair(transport(false, false, true));
    run(&mut client, &mut server);
    server.outbox = pattern(200_000, 1);
    server.write();
    assert!(server.is_full && !server.outbox.is_empty());
    let left = server.outbox.len();
    // All but the last bytes fit; then the socket has room for them too.
    while server.outbox.len() > 1_000 {
        client.take_in(1 << 16);
        server.write();
    }
    assert!(server.outbox.len() < left);
    client.take_in(1 << 16);
    client.take_in(1 << 16);
    server.close(CloseCode::Normal);
    run(&mut client, &mut server);
    assert_eq!(client.mqtt, pattern(200_000, 1));
    assert_eq!(client.close_code, Some(1000));
}

#[test]
fn a_client_that_closes_is_answered() {
    for transport in TRANSPORTS.into_iter().filter(|transport| transport.is_websocket) {
        let (mut client, mut server) = pair(transport);
        client.send(b"x");
        client.frame(0x88, &1000u16.to_be_bytes());
        run(&mut client, &mut server);
        assert_eq!(server.consumed, b"x");
        assert_eq!(server.layers.end(), Some(End::Closed));
        // What stands in the outbox still goes, and in front of the close frame: nobody listens behind it.
        server.outbox.extend_from_slice(b"the last words");
        server.close(CloseCode::Policy);
        run(&mut client, &mut server);
        assert_eq!(client.mqtt, b"the last words", "{transport:?}");
        assert_eq!(client.close_code, Some(1000), "{transport:?}");
        assert!(client.has_ended);
    }
}

#[test]
fn a_tls_client_that_closes_is_heard() {
    let (mut client, mut server) = pair(transport(false, true, false));
    client.send(b"x");
    run(&mut client, &mut server);
    client.tls.as_mut().unwrap().send_close_notify();
    client.take_tls();
    run(&mut client, &mut server);
    assert_eq!(server.consumed, b"x");
    assert_eq!(server.layers.end(), Some(End::Closed));
}

#[test]
fn where_the_client_is_comes_from_the_proxy() {
    for transport in TRANSPORTS.into_iter().filter(|transport| transport.has_proxy_header) {
        let (mut client, mut server) = pair(transport);
        assert_eq!(server.layers.client_address(), None);
        client.send(b"x");
        run(&mut client, &mut server);
        assert_eq!(server.layers.client_address(), Some("192.0.2.7:4711".parse().unwrap()));
        assert!(!server.layers.is_handshaking());
    }
}

#[test]
fn a_fault_is_named_and_answered_as_its_layer_does() {
    let fault = |transport, bytes: &[u8]| {
        let (mut client, mut server) = pair(transport);
        client.out = bytes.to_vec();
        client.let_out(usize::MAX);
        server.read(usize::MAX);
        let Some(End::Fault(fault)) = server.layers.end() else {
            panic!("no fault in {bytes:?}")
        };
        server.close(CloseCode::ProtocolError);
        let mut answer = Vec::new();
        client.socket.set_nonblocking(false).unwrap();
        client.socket.read_to_end(&mut answer).unwrap();
        (fault, answer)
    };
    let (found, answer) = fault(transport(true, false, false), b"\x10\x0c\0\x04MQTT");
    assert_eq!((found, &answer[..]), (Fault::Proxy, &b""[..]));
    let (found, answer) = fault(transport(false, true, false), b"GET / HTTP/1.1\r\n\r\n");
    assert!(matches!(found, Fault::Tls(super::tls::TlsFault::NotTls)), "{found:?}");
    // A fatal alert, in the clear.
    assert_eq!(answer.first(), Some(&0x15), "{answer:?}");
    let (found, answer) = fault(transport(false, false, true), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(found, Fault::Upgrade(HandshakeError::NoUpgrade));
    assert!(answer.starts_with(b"HTTP/1.1 426 "));
    let text = [UPGRADE, &[0x81, 0x80, 0, 0, 0, 0]].concat();
    let (found, answer) = fault(transport(false, false, true), &text);
    assert_eq!(found, Fault::Frame(FrameError::Text));
    assert!(answer.ends_with(&[0x88, 2, 0x03, 0xeb]), "{answer:?}");
}

#[test]
fn a_client_that_never_reads_costs_no_more_the_more_it_pings() {
    for transport in TRANSPORTS.into_iter().filter(|transport| transport.is_websocket) {
        let (mut client, mut server) = pair(transport);
        run(&mut client, &mut server);
        server.outbox = pattern(500_000, 3);
        server.write();
        assert!(server.is_full);
        let before = server.layers.waiting_bytes();
        for ping in 0..2_000u32 {
            client.frame(0x89, &[ping as u8; 100]);
            client.let_out(usize::MAX);
            server.read(0);
            server.write();
        }
        assert!(server.layers.waiting_bytes() <= before + 128, "{transport:?}");
    }
}

/// What a hostile client does to the records it sends.
#[derive(Clone, Debug)]
enum Mutation {
    Flip {
        at: usize,
        with: u8,
    },
    Cut {
        to: usize,
    },
    Extend {
        by: Vec<u8>,
    },
    /// Into two records, with this in front of the second.
    Split {
        at: usize,
        with: Vec<u8>,
    },
    Repeat,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let few = prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..12);
    prop_oneof![
        (any::<usize>(), 1u8..).prop_map(|(at, with)| Mutation::Flip { at, with }),
        any::<usize>().prop_map(|to| Mutation::Cut { to }),
        few.clone().prop_map(|by| Mutation::Extend { by }),
        (any::<usize>(), few).prop_map(|(at, with)| Mutation::Split { at, with }),
        Just(Mutation::Repeat),
    ]
}

/// Mutates the body of one of the records, and keeps their framing whole, so that it is not the framing that is refused.
fn mutate(records: &[u8], which: usize, mutation: &Mutation) -> Vec<u8> {
    let mut all = Vec::new();
    let mut rest = records;
    while rest.len() >= 5 {
        let len = usize::from(u16::from_be_bytes([rest[3], rest[4]])).min(rest.len() - 5);
        all.push((rest[..3].to_vec(), rest[5..5 + len].to_vec()));
        rest = &rest[5 + len..];
    }
    if all.is_empty() {
        return records.to_vec();
    }
    let which = which % all.len();
    let (head, body) = all[which].clone();
    let within = |at: usize| at % (body.len() + 1);
    let mutated = match mutation {
        Mutation::Flip { at, with } => {
            let mut body = body.clone();
            let at = within(*at);
            body.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= with);
            vec![body]
        }
        Mutation::Cut { to } => vec![body[..within(*to)].to_vec()],
        Mutation::Extend { by } => vec![[&body[..], by].concat()],
        Mutation::Split { at, with } => {
            let (first, second) = body.split_at(within(*at));
            vec![first.to_vec(), [with, second].concat()]
        }
        Mutation::Repeat => vec![body.clone(), body.clone()],
    };
    all.splice(which..=which, mutated.into_iter().map(|body| (head.clone(), body)));
    let framed = all
        .into_iter()
        .map(|(head, body)| [&head[..], &(body.len() as u16).to_be_bytes(), &body].concat());
    framed.collect::<Vec<_>>().concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever comes in whole records, and however it is cut: a fault or a wait, never a panic, and a close that works. A
    /// client that is let in has said exactly what is heard.
    #[test]
    fn hostile_records_end_their_connection_at_most(
        is_websocket in any::<bool>(),
        flight in 0usize..3,
        which in any::<usize>(),
        mutations in prop::collection::vec(mutation(), 1..4),
        pieces in prop::collection::vec(1usize..400, 1..12),
        ends_by_close in any::<bool>()
    ) {
        let (mut client, mut server) = pair(transport(false, true, is_websocket));
        for step in 0..4 {
            if step == flight {
                for mutation in &mutations {
                    client.out = mutate(&client.out, which, mutation);
                }
            }
            for piece in &pieces {
                client.let_out(*piece);
                if server.layers.end().is_none() {
                    server.read(usize::MAX);
                    server.write();
                }
            }
            client.let_out(usize::MAX);
            while server.layers.end().is_none() && server.read(usize::MAX) {}
            if server.layers.end().is_some() {
                break;
            }
            server.write();
            let Some(tls) = &mut client.tls else { unreachable!("it speaks TLS") };
            // The client may not like what the server makes of it.
            let mut bytes = [0; 16 * 1024];
            if let Ok(read) = client.socket.read(&mut bytes) {
                let mut bytes = &bytes[..read];
                while !bytes.is_empty() {
                    tls.read_tls(&mut bytes).unwrap();
                    if tls.process_new_packets().is_err() {
                        break;
                    }
                }
            }
            client.take_tls();
            if step == 1 {
                client.send(b"words");
            }
        }
        prop_assert!(b"words".starts_with(&server.consumed[..]), "{:?}", server.consumed);
        if ends_by_close {
            server.outbox.extend_from_slice(b"last words");
        }
        server.close(CloseCode::Policy);
    }
}
