//! One protocol on the port of another, and handshakes that end anywhere: closed, counted, and nobody else notices.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::peer::*;
use super::pki::{self, Authority, EACH, client};
use crate::broker::{Broker, FOUR_CORES, SETTINGS};
use crate::raw::{connect, hex};

const HTTP: &[u8] = b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n";

/// What a client says first.
fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_protocol_on_the_port_of_another_is_closed_and_counted_by_what_was_missed() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let config = trusting(&broker);
        let mut witnesses = Witnesses::start(&broker, &config);
        let hello = client_hello(&config);
        for (port, bytes) in [
            (Port::Mqtts, &connect("plain")[..]),
            (Port::Mqtts, HTTP),
            (Port::Mqtts, b"SSH-2.0-OpenSSH_9.2\r\n"),
            (Port::Wss, &connect("plain")),
            (Port::Wss, HTTP),
            (Port::Mqtt, &hello),
            (Port::Mqtt, HTTP),
            (Port::Ws, &hello),
            (Port::Ws, &connect("plain")),
        ] {
            let mut socket = tcp(&broker, port);
            socket.write_all(bytes).unwrap();
            let got = until_closed(&mut socket);
            // TLS may say so by an alert; the others have no words for it.
            let is_alert = port.is_tls() && got.len() == 7 && got[0] == 0x15;
            assert!(
                got.is_empty() || is_alert,
                "{port:?} answers {bytes:02x?} with {got:02x?}"
            );
            witnesses.look();
        }
        await_counted(
            &broker,
            &[
                ("tls_not_tls", 5),
                ("closed_tls", 5),
                ("websocket_not_http", 2),
                ("closed_websocket", 2),
                ("closed_malformed", 2),
            ],
        );
        broker.stop();
    }
}

/// A record of a handshake, in the clear.
fn record(message: &[u8]) -> Vec<u8> {
    [&hex("16 0301"), &(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// What TLS keeps of messages that are whole, or not yet, must not be met again when the connection ends.
#[test]
fn messages_that_wait_behind_a_fault_or_for_their_rest_end_with_their_connection() {
    let other_protocol = {
        let mut config = ClientConfig::clone(&client(&Authority::root("any").pair.certificate, pki::ANY, None));
        config.alpn_protocols = vec![b"h2".to_vec()];
        client_hello(&Arc::new(config))[5..].to_vec()
    };
    let hello = client_hello(&client(&Authority::root("any").pair.certificate, pki::ANY, None))[5..].to_vec();
    let (half, rest) = hello.split_at(hello.len() / 2);
    let cases: [(&str, Vec<u8>); 8] = [
        (
            "a whole message behind a ClientHello",
            record(&[&hello[..], &hex("00 000000")].concat()),
        ),
        (
            "a part of a message behind a ClientHello",
            record(&[&hello[..], &hex("01 0000ff")].concat()),
        ),
        (
            "a whole message behind a ClientHello that is refused",
            record(&[&other_protocol[..], &hex("00 000000")].concat()),
        ),
        (
            "a part of a message behind a ClientHello that is refused",
            record(&[&other_protocol[..], &hex("01 0000ff 03")].concat()),
        ),
        ("half a ClientHello", record(half)),
        (
            "half a ClientHello, then another record",
            [record(half), hex("14 0303 0001 01")].concat(),
        ),
        (
            "half a ClientHello, then close_notify",
            [record(half), hex("15 0303 0002 0100")].concat(),
        ),
        (
            "a ClientHello in two records and a whole message",
            [record(half), record(&[rest, &hex("00 000000")].concat())].concat(),
        ),
    ];
    let mut ended = Vec::new();
    for port in [Port::Mqtts, Port::Wss] {
        for (what, bytes) in &cases {
            let mut broker = Broker::start(SETTINGS[0], &["--connect-timeout", "1s"]);
            let mut peer = Peer::connected(&broker, Port::Mqtt, &trusting(&broker), "witness");
            peer.looks();
            let mut socket = tcp(&broker, port);
            socket.write_all(bytes).unwrap();
            until_closed(&mut socket);
            // Its core may be on its way out.
            if let Some(status) = broker.await_end(Duration::from_millis(300)) {
                ended.push(format!("{what}, {port:?}: {status}"));
                continue;
            }
            peer.looks();
            // One that waits when the broker stops.
            let mut waits = tcp(&broker, port);
            waits.write_all(&record(half)).unwrap();
            peer.looks();
            broker.stop();
        }
    }
    assert!(ended.is_empty(), "the broker was ended by {ended:#?}");
}

/// The other side's bytes pass, ours end after some.
struct Cut {
    socket: TcpStream,
    left: usize,
}

impl Read for Cut {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.read(bytes)
    }
}

impl Write for Cut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::Other.into());
        }
        let count = self.socket.write(&bytes[..bytes.len().min(self.left)])?;
        self.left -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A handshake and a CONNECT of which `bytes` are sent; how many of them were.
fn handshake_cut_after(socket: TcpStream, config: &Arc<ClientConfig>, bytes: usize) -> (TcpStream, usize) {
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut cut = Cut { socket, left: bytes };
    let mut run = || {
        while connection.is_handshaking() {
            connection.complete_io(&mut cut)?;
        }
        // Its own client id: one that got through whole must not take over another.
        connection.writer().write_all(&connect(&format!("cut-{bytes:06}")))?;
        while connection.wants_write() {
            connection.write_tls(&mut cut)?;
        }
        io::Result::Ok(())
    };
    // Ends where the bytes do.
    let _ = run();
    let sent = bytes - cut.left;
    (cut.socket, sent)
}

/// Ends it in one of three ways.
fn drop_by(socket: TcpStream, way: usize) {
    match way % 3 {
        0 => set_socket_linger(&socket, Some(Duration::ZERO)).unwrap(),
        1 => socket.shutdown(Shutdown::Write).unwrap_or(()),
        _ => {}
    }
}

#[test]
fn a_connection_that_ends_after_any_byte_of_a_handshake_leaves_nothing_behind() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let trusted = std::fs::read_to_string(self_made(&broker)).unwrap();
        let config = trusting(&broker);
        let mut witnesses = Witnesses::start(&broker, &config);
        let before = broker.socket_count();
        let mut count = 0;
        for versions in EACH {
            let mut cut = 0;
            loop {
                // No session to resume: each is a whole handshake.
                let config = client(&trusted, versions, None);
                let (socket, sent) = handshake_cut_after(tcp(&broker, Port::Mqtts), &config, cut);
                drop_by(socket, cut);
                count += 1;
                if sent < cut {
                    break;
                }
                cut += 1;
                if cut % 64 == 0 {
                    witnesses.look();
                }
            }
            assert!(cut > 250, "{versions:?}: a handshake of {cut} bytes");
        }
        let request = upgrade_request();
        for port in [Port::Ws, Port::Wss] {
            // Over TLS every eighth: the bytes are judged in the same place.
            for cut in (0..request.len()).step_by(if port.is_tls() { 8 } else { 1 }) {
                let mut wire = Wire::open(&broker, port, &config);
                wire.write_all(&request[..cut]).unwrap();
                match wire {
                    Wire::Plain(socket) => drop_by(socket, cut),
                    Wire::Tls(stream) => drop_by(stream.sock, cut / 8),
                }
                count += 1;
            }
            witnesses.look();
        }
        wait_until("their sockets are gone", || broker.socket_count() == before);
        let counters = counted(&broker);
        // The last of each version had its CONNECT.
        assert_eq!(counters["closed_peer"], count, "{counters:?}");
        for none in ["closed_tls", "closed_websocket", "closed_malformed"] {
            assert_eq!(counters.get(none).copied().unwrap_or(0), 0, "{none}: {counters:?}");
        }
        witnesses.look();
        broker.stop();
    }
}

/// Every kind of bad handshake in turn. `SKEIN_BAD_HANDSHAKES` says how many.
#[test]
fn bad_handshakes_cost_nothing_that_stays() {
    let total = std::env::var("SKEIN_BAD_HANDSHAKES").map_or(5_000, |count| count.parse().unwrap());
    let broker = Broker::start(SETTINGS[1], &[]);
    let config = trusting(&broker);
    let distrusting = client(&Authority::root("other").pair.certificate, pki::ANY, None);
    let hello = client_hello(&config);
    let request = upgrade_request();
    let refused = [&request[..request.len() - 2], b"Origin: x\r\nHost: twice\r\n\r\n"].concat();
    let mut witnesses = Witnesses::start(&broker, &config);
    let before = broker.socket_count();
    let mut resident = 0;
    for n in 0..total {
        let say = |port: Port, bytes: &[u8]| {
            let mut socket = tcp(&broker, port);
            // It may be closed before all is written.
            let _ = socket.write_all(bytes);
            socket
        };
        match n % 12 {
            0 => drop(until_closed(&mut say(Port::Mqtts, &connect("plain")))),
            1 => drop(until_closed(&mut say(Port::Wss, HTTP))),
            2 => drop(until_closed(&mut say(Port::Mqtt, &hello))),
            3 => drop(until_closed(&mut say(Port::Ws, &hello))),
            4 => drop_by(say(Port::Mqtts, &hello[..n % hello.len()]), n),
            5 => drop_by(say(Port::Wss, &hello), n),
            6 => drop_by(
                handshake_cut_after(tcp(&broker, Port::Mqtts), &config, hello.len() + n % 80).0,
                n,
            ),
            7 => drop(tls(tcp(&broker, Port::Mqtts), &distrusting).map(drop)),
            8 => drop_by(say(Port::Ws, &request[..n % request.len()]), n),
            9 => drop(until_closed(&mut say(Port::Ws, &refused))),
            10 => drop(until_closed(&mut say(
                Port::Ws,
                &[&request[..], &frame(0x81, b"text")].concat(),
            ))),
            _ => drop_by(
                say(
                    Port::Ws,
                    &[&request[..], &frame(BINARY, &connect("b"))[..n % 9]].concat(),
                ),
                n,
            ),
        }
        if n % 500 == 0 {
            witnesses.look();
        }
        if n == 1_000 {
            resident = broker.resident_kib();
        }
    }
    wait_until("their sockets are gone", || broker.socket_count() == before);
    let grown = broker.resident_kib().saturating_sub(resident);
    println!("{total} bad handshakes: {grown} KiB more than after 1,000");
    assert!(grown < 4 * 1024, "resident memory grew by {grown} KiB");
    witnesses.look();
    let counters = counted(&broker);
    for reason in [
        "tls_not_tls",
        "tls_refused_by_client",
        "websocket_not_http",
        "websocket_text",
        "closed_malformed",
    ] {
        let count = counters.get(reason).copied().unwrap_or(0) as usize;
        assert!(count >= total / 12, "{reason}: {count} of {counters:?}");
    }
    broker.stop();
}
