//! The header of a proxy before each of the four kinds of connection.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::peer::*;
use crate::broker::{Broker, FOUR_CORES, SETTINGS};
use crate::raw::{connect, hex};

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = hex("0d0a0d0a 000d0a51 5549540a");
    header.extend([command, family]);
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend(rest);
    header
}

/// Headers, and the address that each names; None: the socket's own.
fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let ipv4 = hex("cb007107 c6336401 1267 075b");
    let ipv6 = hex("20010db8000000000000000000000007 20010db8000000000000000000000001 1267 075b");
    let with_fields = [&ipv4[..], &hex("04 0002 0909 ea 0003 010203")].concat();
    vec![
        (
            b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 1883\r\n".to_vec(),
            Some("203.0.113.7:4711"),
        ),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 1883\r\n".to_vec(),
            Some("[2001:db8::7]:4711"),
        ),
        (v2(0x21, 0x11, &ipv4), Some("203.0.113.7:4711")),
        (v2(0x21, 0x21, &ipv6), Some("[2001:db8::7]:4711")),
        (v2(0x21, 0x11, &with_fields), Some("203.0.113.7:4711")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN ff ff 1 2\r\n".to_vec(), None),
        (v2(0x20, 0, &[]), None),
        (v2(0x20, 0x11, &ipv4), None),
    ]
}

/// Some clients for each header, so that many of them are handed to another core.
#[test]
fn the_address_of_a_client_is_what_the_proxy_says_on_every_port_and_core() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &["--proxy-protocol", "all", "--log", "debug"]);
        let config = trusting(&broker);
        let mut expected = Vec::new();
        for port in Port::ALL {
            for (n, (header, client)) in headers().into_iter().enumerate() {
                for k in 0..3 {
                    let mut socket = tcp(&broker, port);
                    socket.write_all(&header).unwrap();
                    let own = socket.local_addr().unwrap().to_string();
                    let mut peer = Peer::over(Wire::over(socket, port, &config), port);
                    let id = format!("{}-{n}-{k}", port.name());
                    peer.greet(&id);
                    peer.looks();
                    expected.push((id, port.name(), client.map_or(own, str::to_owned)));
                }
            }
        }
        let written = broker.await_written(&format!("client=\"{}\"", expected.last().unwrap().0));
        for (id, port, address) in expected {
            let line = written.lines().find(|line| line.contains(&format!("client=\"{id}\"")));
            let line = line.unwrap_or_else(|| panic!("{id} is not in the log"));
            assert!(line.contains(&format!("address={address} ")), "{address}: {line}");
            assert!(line.contains(&format!("port=\"{port}\"")), "{line}");
        }
        assert!(counted(&broker)["handoffs"] > 30);
        await_counted(&broker, &[("closed_proxy", 0)]);
        broker.stop();
    }
}

/// In two segments cut after every byte, among them all in one.
#[test]
fn a_header_may_be_cut_anywhere_or_come_with_what_follows() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &["--proxy-protocol", "all"]);
        for port in [Port::Mqtt, Port::Ws] {
            for header in [0, 2].map(|at| headers()[at].0.clone()) {
                let bytes = |cut: usize| match port.is_websocket() {
                    false => [&header[..], &connect(&format!("{cut:04}"))].concat(),
                    true => [
                        &header[..],
                        &upgrade_request(),
                        &frame(BINARY, &connect(&format!("{cut:04}"))),
                    ]
                    .concat(),
                };
                let cuts = 0..=header.len() + 12;
                let mut sockets: Vec<TcpStream> = Vec::new();
                for cut in cuts.clone() {
                    let mut socket = tcp(&broker, port);
                    socket.write_all(&bytes(cut)[..cut]).unwrap();
                    sockets.push(socket);
                }
                thread::sleep(Duration::from_millis(100));
                for (cut, socket) in cuts.zip(&mut sockets) {
                    socket.write_all(&bytes(cut)[cut..]).unwrap();
                }
                for mut socket in sockets {
                    if port.is_websocket() {
                        assert!(response_head(&mut socket).starts_with("HTTP/1.1 101 "));
                        assert_eq!(read_frame(&mut socket).unwrap(), (BINARY, CONNACK.to_vec()));
                    } else {
                        expect(&mut socket, &CONNACK);
                    }
                }
            }
        }
        // TLS records behind it, in one segment with it and in two that do not end where it does.
        let config = trusting(&broker);
        for port in [Port::Mqtts, Port::Wss] {
            for (header, _) in headers() {
                for cut in [1, header.len() - 1, header.len(), header.len() + 3] {
                    let mut socket = Joined::new(tcp(&broker, port), header.clone(), cut);
                    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
                    let mut connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
                    while connection.is_handshaking() {
                        connection.complete_io(&mut socket).unwrap();
                    }
                    let stream = rustls::StreamOwned::new(connection, socket.socket);
                    Peer::over(Wire::Tls(Box::new(stream)), port).greet("joined");
                }
            }
        }
        broker.stop();
    }
}

/// Puts a header in front of what is written first, and divides both after some bytes.
struct Joined {
    socket: TcpStream,
    first: Option<(Vec<u8>, usize)>,
}

impl Joined {
    fn new(socket: TcpStream, header: Vec<u8>, cut: usize) -> Joined {
        Joined {
            socket,
            first: Some((header, cut)),
        }
    }
}

impl std::io::Read for Joined {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.socket.read(bytes)
    }
}

impl Write for Joined {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some((mut header, cut)) = self.first.take() else {
            return self.socket.write(bytes);
        };
        header.extend(bytes);
        self.socket.write_all(&header[..cut])?;
        thread::sleep(Duration::from_millis(5));
        self.socket.write_all(&header[cut..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn where_a_header_must_be_nothing_else_is_let_in_and_elsewhere_it_is_not() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &["--proxy-protocol", "mqtt,wss"]);
        let config = trusting(&broker);
        let hello: &[u8] = &hex("16 03 01 00 3f 01");
        let mut count = 0;
        for port in [Port::Mqtt, Port::Wss] {
            for bytes in [
                &connect("none")[..],
                hello,
                b"GET / HTTP/1.1\r\n\r\n",
                b"PROXY TCP4 203.0.113.7 198.51.100.1 4711\r\n",
                b"PROXY TCP4 203.0.113.300 198.51.100.1 4711 1883\r\n",
                &v2(0x31, 0x11, &[0; 12]),
                &v2(0x21, 0x11, &[0; 11]),
                &v2(0x21, 0x11, &[0; 600]),
            ] {
                let mut socket = tcp(&broker, port);
                let _ = socket.write_all(bytes);
                assert_eq!(until_closed(&mut socket), b"", "{bytes:02x?}");
                count += 1;
            }
        }
        // Where there is none to be, it is no MQTT, no TLS and no HTTP.
        for port in [Port::Mqtts, Port::Ws] {
            for header in [0, 2].map(|at| headers()[at].0.clone()) {
                let mut socket = tcp(&broker, port);
                socket.write_all(&header).unwrap();
                let got = until_closed(&mut socket);
                let is_refusal = got.is_empty() || port.is_tls() && got[0] == 0x15 || got.starts_with(b"HTTP/1.1 400 ");
                assert!(is_refusal, "{port:?}: {got:02x?}");
            }
            Peer::connected(&broker, port, &config, "direct").looks();
        }
        await_counted(&broker, &[("closed_proxy", count), ("closed_peer", 2)]);
        broker.stop();
    }
    let broker = Broker::start(SETTINGS[0], &[]);
    for (header, _) in headers() {
        let mut socket = tcp(&broker, Port::Mqtt);
        socket.write_all(&header).unwrap();
        assert_eq!(until_closed(&mut socket), b"");
    }
    await_counted(&broker, &[("closed_malformed", 9)]);
    broker.stop();
}
