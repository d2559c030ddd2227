//! Times layer 0: frame + decode and encode of the packets on a message's path, and filter matching.
//!
//! `cargo bench --bench codec`. Bound: frame + decode of a PUBLISH with a 64-byte payload takes at most 25 ns.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use skein::limits::PACKET_BYTES_MAX;
use skein::mqtt::client;
use skein::mqtt::decode::{decode, decode_connect};
use skein::mqtt::encode;
use skein::mqtt::frame::{Frame, Framing, next_frame};
use skein::mqtt::packet::{Connect, Level, Packet, PacketId, QoS, Will};
use skein::mqtt::topic::{TopicFilter, TopicName};

const TOPICS: [(&str, &str); 3] = [
    ("10_bytes", "bench/0001"),
    ("46_bytes", "temperature/json/DEV0123456789ABCDEF/telemetry"),
    ("non_ascii", "wohnzimmer/wärme/°C/größte"),
];
const PAYLOAD: [u8; 64] = [0xa5; 64];

fn packet_id(id: u16) -> PacketId {
    PacketId::new(id).expect("the bench counts from 1")
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    match next_frame(bytes, PACKET_BYTES_MAX) {
        Ok(Framing::Whole(frame)) => frame,
        other => panic!("the bench wrote a whole packet: {other:?}"),
    }
}

fn publish_bytes(qos: QoS, topic: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let id = (qos != QoS::AtMostOnce).then(|| packet_id(7));
    encode::publish(&mut out, false, qos, false, topic, id, &PAYLOAD);
    out
}

fn decode_publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame+decode PUBLISH");
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        for (name, topic) in TOPICS {
            let bytes = publish_bytes(qos, topic);
            group.bench_function(format!("qos{}/{name}", qos as u8), |b| {
                b.iter(|| {
                    let packet = decode(frame(black_box(&bytes)), Level::V311);
                    let Ok(Packet::Publish(publish)) = packet else {
                        panic!("a PUBLISH was written")
                    };
                    black_box((publish.topic, publish.packet_id, publish.payload));
                });
            });
        }
    }
    // What one read brings: frames of one buffer, one after the other.
    let mut buffer = Vec::new();
    for id in 1..=1_000 {
        let topic = format!("bench/{:04}", id % 100);
        encode::publish(
            &mut buffer,
            false,
            QoS::AtLeastOnce,
            false,
            &topic,
            Some(packet_id(id)),
            &PAYLOAD,
        );
    }
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("qos1/1000 in one buffer", |b| {
        b.iter(|| {
            let mut rest = black_box(buffer.as_slice());
            let mut ids = 0_u64;
            while let Ok(Framing::Whole(frame)) = next_frame(rest, PACKET_BYTES_MAX) {
                if let Ok(Packet::Publish(publish)) = decode(frame, Level::V311) {
                    ids += publish.packet_id.map_or(0, |id| u64::from(id.get()));
                }
                rest = &rest[frame.len..];
            }
            assert_eq!(ids, 500_500);
        });
    });
    group.finish();
}

fn decode_rare(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame+decode");
    let mut puback = Vec::new();
    encode::puback(&mut puback, packet_id(7));
    group.bench_function("PUBACK", |b| {
        b.iter(|| black_box(decode(frame(black_box(&puback)), Level::V311)))
    });

    let mut subscribe = Vec::new();
    let filters = ["bench/0001", "bench/+/state", "temperature/json/DEV0123456789ABCDEF/#"];
    client::subscribe(
        &mut subscribe,
        packet_id(7),
        &filters.map(|filter| (filter, QoS::AtLeastOnce)),
    );
    group.bench_function("SUBSCRIBE of 3 filters", |b| {
        b.iter(|| {
            let packet = decode(frame(black_box(&subscribe)), Level::V311);
            let Ok(Packet::Subscribe(subscribe)) = packet else {
                panic!("a SUBSCRIBE was written")
            };
            subscribe.filters().for_each(|entry| {
                black_box(entry);
            });
        });
    });

    let mut connect = Vec::new();
    let packet = Connect {
        level: Level::V311,
        clean_session: true,
        keep_alive_s: 60,
        client_id: "DEV0123456789ABCDEF".to_owned(),
        will: Some(Will {
            topic: "temperature/state/DEV0123456789ABCDEF".to_owned(),
            payload: b"offline".to_vec(),
            qos: QoS::AtLeastOnce,
            retain: true,
        }),
        user_name: Some("user".to_owned()),
        password: Some(b"password".to_vec()),
    };
    client::connect(&mut connect, &packet);
    group.bench_function("CONNECT with will and login", |b| {
        b.iter(|| black_box(decode_connect(frame(black_box(&connect)))));
    });
    group.finish();
}

fn encode_publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode PUBLISH");
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let (name, topic) = TOPICS[0];
        let id = (qos != QoS::AtMostOnce).then(|| packet_id(7));
        let mut out = Vec::with_capacity(1 << 16);
        group.bench_function(format!("qos{}/{name}", qos as u8), |b| {
            b.iter(|| {
                // An outbox that is emptied now and then, as a flush does.
                if out.len() > 60_000 {
                    out.clear();
                }
                encode::publish(&mut out, false, qos, false, black_box(topic), id, black_box(&PAYLOAD));
            });
        });
    }
    group.finish();
}

fn matches(c: &mut Criterion) {
    let mut group = c.benchmark_group("matches");
    let name = TopicName::new("temperature/json/DEV0123456789ABCDEF/telemetry").expect("a name");
    let filters = [
        ("equal", "temperature/json/DEV0123456789ABCDEF/telemetry"),
        ("plus", "temperature/+/DEV0123456789ABCDEF/+"),
        ("hash", "temperature/json/#"),
        ("no", "temperature/binary/+/telemetry"),
    ];
    for (label, filter) in filters {
        let filter = TopicFilter::new(filter).expect("a filter");
        group.bench_function(label, |b| {
            b.iter(|| black_box(black_box(filter).matches(black_box(name))))
        });
    }
    group.finish();
}

criterion_group!(benches, decode_publish, decode_rare, encode_publish, matches);
criterion_main!(benches);
