//! Properties of the codec as a whole: arbitrary bytes do no harm, and an independent codec (mqttbytes, module `v4`)
//! reads what we write and agrees with us on what it writes.
//!
//! mqttbytes is an oracle for valid packets only: its reader is too lax, its filter functions are wrong and are never
//! called here.

use mqttbytes::v4;
use proptest::prelude::*;

use super::decode::{decode, decode_connect};
use super::frame::{Frame, Framing, next_frame};
use super::packet::{Connect, Level, Packet, PacketId, QoS, Will};
use super::reason::{ConnectReturnCode, SubscribeReturnCode};
use super::{client, encode, fuzz_packets};

const NO_LIMIT: usize = 1 << 28;

fn their_qos(qos: QoS) -> mqttbytes::QoS {
    mqttbytes::qos(qos as u8).unwrap()
}

/// The one packet in `bytes`, read by mqttbytes.
fn read_by_them(bytes: &[u8]) -> v4::Packet {
    let mut stream = bytes.iter().copied().collect();
    let packet = v4::read(&mut stream, NO_LIMIT).expect("a valid packet");
    assert!(stream.is_empty(), "the whole packet was read");
    packet
}

fn write_by_them(packet: &v4::Packet) -> Vec<u8> {
    let mut out = Default::default();
    match packet {
        v4::Packet::Connect(packet) => packet.write(&mut out),
        v4::Packet::Publish(packet) => packet.write(&mut out),
        v4::Packet::PubAck(packet) => packet.write(&mut out),
        v4::Packet::PubRec(packet) => packet.write(&mut out),
        v4::Packet::PubRel(packet) => packet.write(&mut out),
        v4::Packet::PubComp(packet) => packet.write(&mut out),
        v4::Packet::Subscribe(packet) => packet.write(&mut out),
        v4::Packet::Unsubscribe(packet) => packet.write(&mut out),
        v4::Packet::PingReq => v4::PingReq.write(&mut out),
        v4::Packet::Disconnect => v4::Disconnect.write(&mut out),
        other => panic!("no Client sends {other:?}"),
    }
    .expect("a valid packet");
    out.to_vec()
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    match next_frame(bytes, NO_LIMIT) {
        Ok(Framing::Whole(frame)) => {
            assert_eq!(frame.len, bytes.len());
            frame
        }
        other => panic!("a whole packet: {other:?}"),
    }
}

fn their_connect(connect: &Connect) -> v4::Packet {
    let mut theirs = v4::Connect::new(connect.client_id.clone());
    theirs.keep_alive = connect.keep_alive_s;
    theirs.clean_session = connect.clean_session;
    theirs.last_will = connect.will.as_ref().map(|will| {
        v4::LastWill::new(
            will.topic.clone(),
            will.payload.clone(),
            their_qos(will.qos),
            will.retain,
        )
    });
    theirs.login = connect.user_name.as_ref().map(|user_name| {
        let password = connect.password.clone().unwrap_or_default();
        v4::Login::new(
            user_name.clone(),
            String::from_utf8(password).expect("theirs is a string"),
        )
    });
    v4::Packet::Connect(theirs)
}

/// Our packet in their types.
fn theirs(packet: Packet<'_>) -> v4::Packet {
    match packet {
        Packet::Publish(publish) => {
            let mut theirs = v4::Publish::new(publish.topic.as_str(), their_qos(publish.qos), publish.payload);
            theirs.dup = publish.dup;
            theirs.retain = publish.retain;
            theirs.pkid = publish.packet_id.map_or(0, PacketId::get);
            v4::Packet::Publish(theirs)
        }
        Packet::PubAck(id) => v4::Packet::PubAck(v4::PubAck::new(id.get())),
        Packet::PubRec(id) => v4::Packet::PubRec(v4::PubRec::new(id.get())),
        Packet::PubRel(id) => v4::Packet::PubRel(v4::PubRel::new(id.get())),
        Packet::PubComp(id) => v4::Packet::PubComp(v4::PubComp::new(id.get())),
        Packet::Subscribe(subscribe) => {
            let filters = subscribe.filters();
            let mut theirs = v4::Subscribe::new_many(
                filters.map(|(filter, qos)| v4::SubscribeFilter::new(filter.as_str().to_owned(), their_qos(qos))),
            );
            theirs.pkid = subscribe.packet_id.get();
            v4::Packet::Subscribe(theirs)
        }
        Packet::Unsubscribe(unsubscribe) => v4::Packet::Unsubscribe(v4::Unsubscribe {
            pkid: unsubscribe.packet_id.get(),
            topics: unsubscribe.filters().map(|filter| filter.as_str().to_owned()).collect(),
        }),
        Packet::PingReq => v4::Packet::PingReq,
        Packet::Disconnect => v4::Packet::Disconnect,
    }
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_map(|id| PacketId::new(id).unwrap())
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

fn string() -> impl Strategy<Value = String> {
    "[^\\x00]{0,24}"
}

fn topic() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/$]{1,40}", "[^\\x00+#]{1,24}"]
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof!["[^\\x00+#/]{0,8}", Just("+".to_owned())];
    (prop::collection::vec(level, 0..5), any::<bool>())
        .prop_map(|(mut levels, hash)| {
            levels.extend(hash.then(|| "#".to_owned()));
            levels.join("/")
        })
        .prop_filter("empty", |filter| !filter.is_empty())
}

/// The long ones cross the border between two and three bytes of remaining length.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let long = (any::<u8>(), 16_300..16_500_usize).prop_map(|(byte, length)| vec![byte; length]);
    prop_oneof![9 => prop::collection::vec(any::<u8>(), 0..200), 1 => long]
}

fn filters() -> impl Strategy<Value = Vec<(String, QoS)>> {
    prop::collection::vec((filter(), qos()), 1..12)
}

/// Packets of a Client in mqttbytes' types, all but CONNECT.
fn their_packet() -> impl Strategy<Value = v4::Packet> {
    let publish = (topic(), qos(), packet_id(), any::<bool>(), any::<bool>(), payload()).prop_map(
        |(topic, qos, id, dup, retain, payload)| {
            let mut publish = v4::Publish::new(topic, their_qos(qos), payload);
            publish.retain = retain;
            if qos != QoS::AtMostOnce {
                publish.pkid = id.get();
                publish.dup = dup;
            }
            v4::Packet::Publish(publish)
        },
    );
    let subscribe = (packet_id(), filters()).prop_map(|(id, filters)| {
        let filters = filters
            .into_iter()
            .map(|(filter, qos)| v4::SubscribeFilter::new(filter, their_qos(qos)));
        let mut subscribe = v4::Subscribe::new_many(filters);
        subscribe.pkid = id.get();
        v4::Packet::Subscribe(subscribe)
    });
    let unsubscribe = (packet_id(), prop::collection::vec(filter(), 1..12))
        .prop_map(|(id, topics)| v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: id.get(), topics }));
    prop_oneof![
        6 => publish,
        3 => subscribe,
        3 => unsubscribe,
        1 => packet_id().prop_map(|id| v4::Packet::PubAck(v4::PubAck::new(id.get()))),
        1 => packet_id().prop_map(|id| v4::Packet::PubRec(v4::PubRec::new(id.get()))),
        1 => packet_id().prop_map(|id| v4::Packet::PubRel(v4::PubRel::new(id.get()))),
        1 => packet_id().prop_map(|id| v4::Packet::PubComp(v4::PubComp::new(id.get()))),
        1 => Just(v4::Packet::PingReq),
        1 => Just(v4::Packet::Disconnect),
    ]
}

/// Any CONNECT; the password is text and the user name not empty, which is all that mqttbytes can express.
fn connect() -> impl Strategy<Value = Connect> {
    let will = (topic(), payload(), qos(), any::<bool>()).prop_map(|(topic, payload, qos, retain)| Will {
        topic,
        payload,
        qos,
        retain,
    });
    let login = ("[^\\x00]{1,12}", prop::option::of("[^\\x00]{1,12}"));
    (
        string(),
        any::<bool>(),
        any::<u16>(),
        prop::option::of(will),
        prop::option::of(login),
    )
        .prop_map(|(client_id, clean_session, keep_alive_s, will, login)| {
            let (user_name, password) = login.unzip();
            let password = password.flatten().map(String::into_bytes);
            Connect {
                level: Level::V311,
                clean_session,
                keep_alive_s,
                client_id,
                will,
                user_name,
                password,
            }
        })
}

/// Bytes that come near a packet: a type, a length that is about right, fields that are about right.
fn nearly_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        payload().prop_map(|bytes| bytes.into_iter().take(12).collect::<Vec<u8>>()),
        filter().prop_map(|text| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()),
        Just(b"\0\x04MQTT\x04".to_vec()),
        Just(b"\0\x06MQIsdp\x03".to_vec()),
        Just(b"\0\x01".to_vec()),
        prop::collection::vec(0..4_u8, 1..3),
    ];
    (any::<u8>(), prop::collection::vec(field, 0..6), -1..2_i8).prop_map(|(first_byte, fields, off)| {
        let body = fields.concat();
        let mut out = Vec::new();
        encode::fixed_header(&mut out, first_byte, body.len().saturating_add_signed(off.into()));
        out.extend_from_slice(&body);
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_packets(&bytes);
    }

    #[test]
    fn bytes_near_a_packet_never_panic(packets in prop::collection::vec(nearly_a_packet(), 1..4)) {
        fuzz_packets(&packets.concat());
    }

    #[test]
    fn one_changed_byte_never_panics(packet in their_packet(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = write_by_them(&packet);
        let place = place.index(bytes.len());
        bytes[place] = byte;
        fuzz_packets(&bytes);
    }

    #[test]
    fn one_changed_byte_of_a_connect_never_panics(
        connect in connect(),
        v31 in any::<bool>(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = Vec::new();
        let level = if v31 { Level::V31 } else { Level::V311 };
        client::connect(&mut bytes, &Connect { level, ..connect });
        let place = place.index(bytes.len());
        bytes[place] = byte;
        fuzz_packets(&bytes);
    }

    #[test]
    fn a_valid_packet_is_read_as_mqttbytes_reads_it_at_both_levels(packet in their_packet()) {
        let bytes = write_by_them(&packet);
        for level in [Level::V31, Level::V311] {
            let ours = decode(frame(&bytes), level).expect("a valid packet");
            prop_assert_eq!(theirs(ours), read_by_them(&bytes));
        }
    }

    #[test]
    fn a_valid_connect_is_read_as_mqttbytes_reads_it(connect in connect()) {
        let bytes = write_by_them(&their_connect(&connect));
        let ours = decode_connect(frame(&bytes)).expect("a valid packet");
        prop_assert_eq!(their_connect(&ours), read_by_them(&bytes));
        prop_assert_eq!(ours, connect);
    }

    #[test]
    fn mqttbytes_reads_the_connect_we_write(connect in connect()) {
        let mut bytes = Vec::new();
        client::connect(&mut bytes, &connect);
        prop_assert_eq!(read_by_them(&bytes), their_connect(&connect));
    }

    #[test]
    fn mqttbytes_reads_the_publish_we_write(
        topic in topic(), qos in qos(), id in packet_id(), dup in any::<bool>(), retain in any::<bool>(), payload in payload(),
    ) {
        let id = (qos != QoS::AtMostOnce).then_some(id);
        let dup = dup && id.is_some();
        let mut bytes = Vec::new();
        encode::publish(&mut bytes, dup, qos, retain, &topic, id, &payload);
        let mut expected = v4::Publish::new(topic, their_qos(qos), payload);
        (expected.dup, expected.retain, expected.pkid) = (dup, retain, id.map_or(0, PacketId::get));
        prop_assert_eq!(read_by_them(&bytes), v4::Packet::Publish(expected));
    }

    #[test]
    fn mqttbytes_reads_the_subscribe_and_unsubscribe_we_write(id in packet_id(), filters in filters()) {
        let filters: Vec<(&str, QoS)> = filters.iter().map(|(filter, qos)| (filter.as_str(), *qos)).collect();
        let mut bytes = Vec::new();
        client::subscribe(&mut bytes, id, &filters);
        let mut expected = v4::Subscribe::new_many(
            filters.iter().map(|(filter, qos)| v4::SubscribeFilter::new((*filter).to_owned(), their_qos(*qos))),
        );
        expected.pkid = id.get();
        prop_assert_eq!(read_by_them(&bytes), v4::Packet::Subscribe(expected));

        let topics: Vec<&str> = filters.iter().map(|(filter, _)| *filter).collect();
        bytes.clear();
        client::unsubscribe(&mut bytes, id, &topics);
        let topics = topics.into_iter().map(str::to_owned).collect();
        prop_assert_eq!(read_by_them(&bytes), v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: id.get(), topics }));
    }

    #[test]
    fn mqttbytes_reads_the_answers_we_write(
        id in packet_id(),
        codes in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 0x80]), 1..300),
    ) {
        let codes: Vec<_> = codes.into_iter().map(|bits| SubscribeReturnCode::from_bits(bits).unwrap()).collect();
        let mut bytes = Vec::new();
        encode::suback(&mut bytes, id, &codes);
        let codes = codes.into_iter().map(|code| match code {
            SubscribeReturnCode::Granted(qos) => v4::SubscribeReasonCode::Success(their_qos(qos)),
            SubscribeReturnCode::Failure => v4::SubscribeReasonCode::Failure,
        });
        prop_assert_eq!(read_by_them(&bytes), v4::Packet::SubAck(v4::SubAck::new(id.get(), codes.collect())));

        type Write = fn(&mut Vec<u8>, PacketId);
        let answers: [(Write, v4::Packet); 5] = [
            (encode::puback, v4::Packet::PubAck(v4::PubAck::new(id.get()))),
            (encode::pubrec, v4::Packet::PubRec(v4::PubRec::new(id.get()))),
            (encode::pubrel, v4::Packet::PubRel(v4::PubRel::new(id.get()))),
            (encode::pubcomp, v4::Packet::PubComp(v4::PubComp::new(id.get()))),
            (encode::unsuback, v4::Packet::UnsubAck(v4::UnsubAck::new(id.get()))),
        ];
        for (write, expected) in answers {
            bytes.clear();
            write(&mut bytes, id);
            prop_assert_eq!(read_by_them(&bytes), expected);
        }
    }
}

#[test]
fn mqttbytes_reads_the_bodiless_packets_and_connacks_we_write() {
    let mut bytes = Vec::new();
    encode::pingresp(&mut bytes);
    assert_eq!(read_by_them(&bytes), v4::Packet::PingResp);
    bytes.clear();
    client::pingreq(&mut bytes);
    assert_eq!(read_by_them(&bytes), v4::Packet::PingReq);
    bytes.clear();
    client::disconnect(&mut bytes);
    assert_eq!(read_by_them(&bytes), v4::Packet::Disconnect);
    for (code, session_present, theirs) in [
        (ConnectReturnCode::Accepted, true, v4::ConnectReturnCode::Success),
        (ConnectReturnCode::Accepted, false, v4::ConnectReturnCode::Success),
        (
            ConnectReturnCode::UnacceptableProtocolVersion,
            false,
            v4::ConnectReturnCode::RefusedProtocolVersion,
        ),
        (
            ConnectReturnCode::IdentifierRejected,
            false,
            v4::ConnectReturnCode::BadClientId,
        ),
        (
            ConnectReturnCode::ServerUnavailable,
            false,
            v4::ConnectReturnCode::ServiceUnavailable,
        ),
        (
            ConnectReturnCode::BadUserNameOrPassword,
            false,
            v4::ConnectReturnCode::BadUserNamePassword,
        ),
        (
            ConnectReturnCode::NotAuthorized,
            false,
            v4::ConnectReturnCode::NotAuthorized,
        ),
    ] {
        bytes.clear();
        encode::connack(&mut bytes, session_present, code);
        assert_eq!(
            read_by_them(&bytes),
            v4::Packet::ConnAck(v4::ConnAck::new(theirs, session_present))
        );
    }
}
