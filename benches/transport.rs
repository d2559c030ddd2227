//! Times what stands between a socket and MQTT over TLS: handshakes, and records opened and sealed.
//!
//! `cargo bench --bench transport`. Per record of a PUBLISH with a 64-byte payload, and per byte of large ones. WebSocket is in
//! `websocket`.

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use skein::net::certificate::{Source, Tls, TlsSettings, load};
use skein::net::tls::{Sealed, TlsLayer};

/// A PUBLISH of 64 bytes to a short topic.
const PACKET_BYTES: usize = 78;

struct Pair {
    server: TlsLayer,
    client: ClientConnection,
    sealed: Sealed,
}

/// A handshake from the first byte to the last, both sides; the time of the server's steps is the callers' to take.
fn begin(tls: &Tls, client: &Arc<ClientConfig>) -> Pair {
    let name = ServerName::try_from("localhost").expect("a name");
    Pair {
        server: TlsLayer::new(&tls.mqtts, &tls.client_verifier).expect("a config that was loaded"),
        client: ClientConnection::new(Arc::clone(client), name).expect("a config of this bench"),
        sealed: Sealed::default(),
    }
}

fn client_says(pair: &mut Pair) -> Vec<u8> {
    let mut bytes = Vec::new();
    while pair.client.wants_write() {
        pair.client.write_tls(&mut bytes).expect("a Vec takes everything");
    }
    bytes
}

fn client_hears(pair: &mut Pair) {
    let mut records = pair.sealed.bytes();
    while !records.is_empty() {
        pair.client.read_tls(&mut records).expect("records in memory");
        pair.client.process_new_packets().expect("what the server sealed");
    }
    pair.sealed.clear();
}

fn server_hears(pair: &mut Pair, mut records: Vec<u8>) {
    let opened = pair.server.open(&mut records, &mut pair.sealed, |_| {});
    assert!(opened.end.is_none() && opened.consumed == records.len());
}

fn shake_hands(mut pair: Pair) -> Pair {
    while pair.client.is_handshaking() || pair.server.is_handshaking() {
        let records = client_says(&mut pair);
        server_hears(&mut pair, records);
        client_hears(&mut pair);
    }
    pair
}

fn tls(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory for the certificate");
    let settings = TlsSettings {
        source: Source::SelfMade {
            directory: directory.path().join("tls"),
        },
        client_ca: None,
    };
    let loaded = load(&settings, SystemTime::now()).expect("a certificate can be made");
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(&loaded.certificate).expect("just written");
    roots.add(certificate).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("what ring has")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Arc::new(client);

    let mut group = c.benchmark_group("tls 1.3");
    // The server's share: from the ClientHello to the end of what it answers.
    for (name, resumes) in [("full", false), ("resumed", true)] {
        let mut fresh = client.as_ref().clone();
        fresh.resumption = match resumes {
            true => rustls::client::Resumption::in_memory_sessions(1_024),
            false => rustls::client::Resumption::disabled(),
        };
        let fresh = Arc::new(fresh);
        shake_hands(begin(&loaded.tls, &fresh));
        let kind = shake_hands(begin(&loaded.tls, &fresh)).client.handshake_kind();
        assert_eq!(kind == Some(rustls::HandshakeKind::Resumed), resumes, "{kind:?}");
        group.bench_function(format!("handshake/{name}, server"), |b| {
            b.iter_batched(
                || {
                    if resumes {
                        // A ticket is used once.
                        shake_hands(begin(&loaded.tls, &fresh));
                    }
                    let mut pair = begin(&loaded.tls, &fresh);
                    let hello = client_says(&mut pair);
                    (pair, hello)
                },
                |(mut pair, hello)| {
                    server_hears(&mut pair, hello);
                    pair
                },
                BatchSize::PerIteration,
            );
        });
    }
    for (name, bytes) in [("78 bytes", PACKET_BYTES), ("16384 bytes", 16_384)] {
        let mut pair = shake_hands(begin(&loaded.tls, &client));
        let payload = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("seal/{name}"), |b| {
            b.iter(|| {
                pair.sealed.clear();
                pair.server
                    .seal(black_box(&payload), &mut [], &mut pair.sealed)
                    .expect("the handshake is over");
            });
        });
        let mut pair = shake_hands(begin(&loaded.tls, &client));
        group.bench_function(format!("open/{name}"), |b| {
            b.iter_batched(
                || {
                    pair.client.writer().write_all(&payload).expect("a buffer in memory");
                    let mut records = Vec::new();
                    while pair.client.wants_write() {
                        pair.client.write_tls(&mut records).expect("a Vec takes everything");
                    }
                    records
                },
                |mut records| {
                    let mut len = 0;
                    let opened = pair
                        .server
                        .open(&mut records, &mut pair.sealed, |plain| len += plain.len());
                    assert!(opened.end.is_none() && len == bytes);
                    records
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, tls);
criterion_main!(benches);
