//! The layers against a server of other people's making, in memory and through the errors a user meets.

use super::*;
use crate::client::Connection;
use crate::fake_broker::{FakeBroker, Fault};
use crate::fake_front::{Identity, Server, front};
use crate::packet::{Credentials, SessionKind};

const LAYERED: [Transport; 3] = [Transport::Tls, Transport::Ws, Transport::Wss];

/// A conversation in which both sides see at most `cut` bytes at a time; gives what arrived at the client.
fn converse(
    transport: Transport,
    settings: &Settings,
    identity: &Identity,
    cut: usize,
    down: &[u8],
    up: &[u8],
) -> Vec<u8> {
    let target = Target::new("127.0.0.1:1", settings).unwrap();
    let mut layers = target.layers().unwrap().unwrap();
    let mut server = Server::new(transport, &identity.config);
    let (mut got, mut plain, mut to_server, mut is_sent) = (Vec::new(), Vec::new(), Vec::new(), false);
    layers.begin(&mut to_server).unwrap();
    loop {
        for bytes in std::mem::take(&mut to_server).chunks(cut) {
            got.extend(server.take(bytes).unwrap());
        }
        if got == up && is_sent && plain.len() == down.len() {
            break;
        }
        if got == up && is_sent {
            server.put(down, 1000);
        }
        let mut to_client = server.wire();
        for bytes in to_client.chunks_mut(cut) {
            layers.take(bytes, &mut plain, &mut to_server).unwrap();
        }
        if layers.is_open() && !is_sent {
            let (first, second) = up.split_at(up.len() / 3);
            layers.put(&[], first, &mut to_server).unwrap();
            layers.put(&second[..10], &second[10..], &mut to_server).unwrap();
            is_sent = true;
        }
    }
    assert_eq!(layers.held(), 0);
    let mut end = Vec::new();
    layers.end(&[0xE0, 0], &mut end).unwrap();
    assert_eq!(server.take(&end).unwrap(), [0xE0, 0]);
    plain
}

#[test]
fn mqtt_comes_through_however_bytes_are_cut() {
    let identity = Identity::new();
    let down: Vec<u8> = (0..40_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let up: Vec<u8> = (0..70_000u32).map(|i| (i * 17 % 241) as u8).collect();
    for transport in LAYERED {
        for version in [Some(Version::Tls12), Some(Version::Tls13)] {
            for cut in [1, 2, 3, 5, 7, 64, 1460, 20_000, usize::MAX] {
                let mut settings = identity.settings(transport);
                settings.layers.tls_version = version;
                let got = converse(transport, &settings, &identity, cut, &down, &up);
                assert!(got == down, "{transport:?} {version:?} cut at {cut}");
            }
        }
    }
}

fn open(address: &str, settings: &Settings) -> Result<Connection> {
    let target = Target::new(address, settings)?;
    Connection::open(&target, "sl00000000v", SessionKind::Clean, &Credentials::default())
}

#[test]
fn a_broker_that_is_not_trusted_is_a_sentence() {
    let (identity, other) = (Identity::new(), Identity::new());
    let broker = FakeBroker::start(Fault::None);
    for transport in [Transport::Tls, Transport::Wss] {
        let address = front(transport, &identity, &broker.address, 1000);
        open(&address, &identity.settings(transport)).unwrap();
        let error = open(&address, &other.settings(transport)).unwrap_err().to_string();
        let wanted = format!("{address} presented a certificate that does not stand: ");
        assert!(error.starts_with(&wanted) && error.contains("--tls-ca"), "{error}");

        let mut named = identity.settings(transport);
        named.layers.tls_server_name = Some("elsewhere.example".into());
        let error = open(&address, &named).unwrap_err().to_string();
        assert!(
            error.contains("elsewhere.example") && error.contains("--tls-server-name"),
            "{error}"
        );

        let mut insecure = named;
        insecure.layers.tls_ca = None;
        let error = open(&address, &insecure).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "--transport {} wants --tls-ca FILE to verify the broker against, or --tls-insecure to verify nothing",
                transport.name()
            )
        );
        insecure.layers.tls_insecure = true;
        open(&address, &insecure).unwrap();
    }
}

#[test]
fn a_file_that_is_no_certificate_is_a_sentence() {
    let identity = Identity::new();
    let mut settings = identity.settings(Transport::Tls);
    let error = |settings: &Settings| format!("{:#}", Target::new("127.0.0.1:1", settings).unwrap_err());
    settings.layers.tls_ca = Some("/nowhere/ca.pem".into());
    assert!(error(&settings).starts_with("cannot read --tls-ca /nowhere/ca.pem"));
    settings.layers.tls_ca = Some("/dev/null".into());
    assert_eq!(error(&settings), "--tls-ca /dev/null holds no certificate");
}

#[test]
fn a_port_of_another_transport_is_a_sentence() {
    let identity = Identity::new();
    let broker = FakeBroker::start(Fault::None);
    let address = front(Transport::Ws, &identity, &broker.address, 1000);
    let mut settings = identity.settings(Transport::Ws);
    settings.layers.ws_path = "/other".into();
    let error = open(&address, &settings).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{address} answered the WebSocket upgrade with \"HTTP/1.1 404 Not Found\" (is --ws-path right?)")
    );
    let tls = front(Transport::Tls, &identity, &broker.address, 1000);
    let error = open(&tls, &identity.settings(Transport::Ws)).unwrap_err().to_string();
    assert!(
        error.starts_with(&tls) && error.contains("the answer to the WebSocket upgrade"),
        "{error}"
    );
}

#[test]
fn a_loopback_address_is_asked_for_as_localhost() {
    for (host, name) in [
        ("127.0.0.1", "localhost"),
        ("[::1]", "localhost"),
        ("localhost", "localhost"),
        ("10.1.2.3", "10.1.2.3"),
        ("[fd00::1]", "fd00::1"),
        ("broker.example", "broker.example"),
    ] {
        assert_eq!(default_name(host), name);
    }
}
