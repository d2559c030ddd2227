//! Layer 0: frame + decode and encode of the packets on a message's path, and filter matching.

use std::hint::black_box;

use skein::limits::PACKET_BYTES_MAX;
use skein::mqtt::client;
use skein::mqtt::decode::{decode, decode_connect};
use skein::mqtt::encode;
use skein::mqtt::frame::{Frame, Framing, next_frame};
use skein::mqtt::packet::{Connect, Level, Packet, QoS, Will};
use skein::mqtt::topic::{TopicFilter, TopicName};

use super::{PAYLOAD, Runner, packet_id, publishes};

const TOPICS: [(&str, &str); 3] = [
    ("topic of 10 bytes", "bench/0001"),
    ("topic of 46 bytes", "temperature/json/DEV0123456789ABCDEF/telemetry"),
    ("topic not ASCII", "wohnzimmer/wärme/°C/größte"),
];
const PACKETS: usize = 1_000;

fn frame(bytes: &[u8]) -> Frame<'_> {
    match next_frame(bytes, PACKET_BYTES_MAX) {
        Ok(Framing::Whole(frame)) => frame,
        other => panic!("the bench wrote a whole packet: {other:?}"),
    }
}

pub fn scenarios(runner: &mut impl Runner) {
    decode_publish(runner);
    decode_rare(runner);
    encode_publish(runner);
    matches(runner);
}

fn decode_publish(runner: &mut impl Runner) {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        for (of, topic) in TOPICS {
            let name = format!("codec/decode PUBLISH, qos {}, {of}", qos as u8);
            runner.scenario(&name, 1, || {
                let bytes = publishes(&[topic], qos, 1);
                move || {
                    let packet = decode(frame(black_box(&bytes)), Level::V311);
                    let Ok(Packet::Publish(publish)) = packet else {
                        panic!("a PUBLISH was written")
                    };
                    black_box((publish.topic, publish.packet_id, publish.payload));
                }
            });
        }
    }
    // What one read brings: frames of one buffer, one after the other.
    runner.scenario("codec/decode PUBLISH, qos 1, 1,000 in one buffer", PACKETS, || {
        let bytes = publishes(&[TOPICS[0].1], QoS::AtLeastOnce, PACKETS);
        move || {
            let mut rest = black_box(bytes.as_slice());
            let mut ids = 0;
            while let Ok(Framing::Whole(frame)) = next_frame(rest, PACKET_BYTES_MAX) {
                if let Ok(Packet::Publish(publish)) = decode(frame, Level::V311) {
                    ids += publish.packet_id.map_or(0, |id| usize::from(id.get()));
                }
                rest = &rest[frame.len..];
            }
            assert_eq!(ids, PACKETS * (PACKETS + 1) / 2);
        }
    });
}

fn decode_rare(runner: &mut impl Runner) {
    runner.scenario("codec/decode PUBACK", 1, || {
        let mut bytes = Vec::new();
        encode::puback(&mut bytes, packet_id(7));
        move || {
            let _ = black_box(decode(frame(black_box(&bytes)), Level::V311));
        }
    });
    runner.scenario("codec/decode SUBSCRIBE of 3 filters", 1, || {
        let filters = ["bench/0001", "bench/+/state", "temperature/json/DEV0123456789ABCDEF/#"];
        let mut bytes = Vec::new();
        client::subscribe(
            &mut bytes,
            packet_id(7),
            &filters.map(|filter| (filter, QoS::AtLeastOnce)),
        );
        move || {
            let packet = decode(frame(black_box(&bytes)), Level::V311);
            let Ok(Packet::Subscribe(subscribe)) = packet else {
                panic!("a SUBSCRIBE was written")
            };
            subscribe.filters().for_each(|entry| {
                black_box(entry);
            });
        }
    });
    runner.scenario("codec/decode CONNECT with will and login", 1, || {
        let connect = Connect {
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
        let mut bytes = Vec::new();
        client::connect(&mut bytes, &connect);
        move || {
            let connect = black_box(decode_connect(frame(black_box(&bytes))));
            assert!(connect.is_ok());
        }
    });
}

fn encode_publish(runner: &mut impl Runner) {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let (of, topic) = TOPICS[0];
        runner.scenario(&format!("codec/encode PUBLISH, qos {}, {of}", qos as u8), 1, || {
            let id = (qos != QoS::AtMostOnce).then(|| packet_id(7));
            let mut out = Vec::with_capacity(1 << 16);
            move || {
                // An outbox that is emptied now and then, as a flush does.
                if out.len() > 60_000 {
                    out.clear();
                }
                encode::publish(&mut out, false, qos, false, black_box(topic), id, black_box(&PAYLOAD));
            }
        });
    }
}

fn matches(runner: &mut impl Runner) {
    for (of, filter, expected) in [
        (
            "an equal filter",
            "temperature/json/DEV0123456789ABCDEF/telemetry",
            true,
        ),
        ("a filter with two +", "temperature/+/DEV0123456789ABCDEF/+", true),
        ("a filter with #", "temperature/json/#", true),
        ("a filter that does not match", "temperature/binary/+/telemetry", false),
    ] {
        runner.scenario(&format!("codec/match {of}"), 1, || {
            let name = TopicName::new(TOPICS[1].1).expect("a name");
            let filter = TopicFilter::new(filter).expect("a filter");
            move || assert_eq!(black_box(filter).matches(black_box(name)), expected)
        });
    }
}
