//! What TLS and WebSocket hold for a connection on which nothing moves.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use skein::net::certificate::{Source, TlsSettings, load};
use skein::net::reader::Scratch;
use skein::net::tls::TlsLayer;
use skein::net::transport::{Layers, Transport, Transports};
use skein::websocket::AllowedOrigins;

use crate::counting::held_bytes;

const TLS_BYTES_MAX: usize = 4_096;
const WEBSOCKET_BYTES_MAX: usize = 100;
const UPGRADE: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

struct Core {
    transports: Transports,
    scratch: Scratch,
    client: Arc<ClientConfig>,
}

/// What the layers of one connection hold after its handshakes.
fn at_rest(core: &mut Core, transport: Transport) -> usize {
    let (a, mut b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let before = held_bytes();
    let mut client = transport
        .is_tls
        .then(|| ClientConnection::new(Arc::clone(&core.client), name).unwrap());
    let mut layers = Layers::new(transport).unwrap();
    if transport.is_websocket {
        match &mut client {
            Some(client) => client.writer().write_all(UPGRADE).unwrap(),
            None => b.write_all(UPGRADE).unwrap(),
        }
    }
    for _ in 0..8 {
        if let Some(client) = &mut client {
            while client.wants_write() {
                client.write_tls(&mut b).unwrap();
            }
        }
        let mut stash = None;
        layers.read(a.as_fd(), &mut core.scratch, &mut stash, &mut core.transports);
        layers.write(a.as_fd(), &[], &mut core.transports);
        assert!(stash.is_none() && layers.end().is_none());
        match &mut client {
            Some(client) => match client.read_tls(&mut b) {
                Ok(_) => drop(client.process_new_packets().unwrap()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            },
            None => drop(b.read(&mut [0; 1_024])),
        }
    }
    assert!(!layers.is_handshaking() && !layers.wants_write());
    drop(client);
    held_bytes() - before
}

#[test]
fn a_connection_at_rest_holds_rustls_state_and_no_buffer() {
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
    let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // The client would keep tickets on this thread's account.
    client.resumption = rustls::client::Resumption::disabled();
    let mut core = Core {
        transports: Transports::new(Some(loaded.tls), AllowedOrigins::Any),
        scratch: Scratch::new(),
        client: Arc::new(client),
    };
    let [tls, websocket, both] = [(true, false), (false, true), (true, true)].map(|(is_tls, is_websocket)| {
        let transport = Transport {
            is_tls,
            is_websocket,
            ..Transport::default()
        };
        // What the core's own buffers grow by stays with the core.
        at_rest(&mut core, transport);
        at_rest(&mut core, transport)
    });
    let own = size_of::<Layers>();
    let of_rustls = size_of::<TlsLayer>();
    println!("TLS {tls}, WebSocket {websocket}, both {both}: layers {own}, rustls {of_rustls} and what it points to");
    assert!(own + of_rustls <= tls && tls <= TLS_BYTES_MAX, "{tls}");
    assert!(own <= websocket && websocket <= WEBSOCKET_BYTES_MAX, "{websocket}");
    assert!(both <= tls + WEBSOCKET_BYTES_MAX, "{both}");
}
