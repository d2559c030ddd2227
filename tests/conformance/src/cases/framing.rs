//! Fixed headers, lengths and strings: what is malformed closes the connection.

use crate::bench::{Bench, Outcome, each};
use crate::client::Client;
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-1.5.3-1"],
        "ill-formed UTF-8 in each string of each packet",
        ill_formed,
    ),
    case(&["MQTT-1.5.3-2"], "U+0000 in each string of each packet", null),
    case(&["MQTT-4.7.3-2"], "U+0000 in topic names and filters", null_in_topics),
    case(&["MQTT-1.5.3-3"], "U+FEFF is a character of a topic", byte_order_mark),
    case(
        &["MQTT-3.1.3-4"],
        "an identifier that is no UTF-8",
        ill_formed_identifier,
    ),
    case(
        &["MQTT-3.1.3-10"],
        "a Will Topic that is no UTF-8",
        ill_formed_will_topic,
    ),
    case(&["MQTT-3.1.3-11"], "a user name that is no UTF-8", ill_formed_user),
    case(
        &["MQTT-3.3.2-1"],
        "a topic name that is no UTF-8, or none at all",
        ill_formed_topic_name,
    ),
    case(
        &["MQTT-3.8.3-1"],
        "a filter to subscribe that is no UTF-8",
        ill_formed_subscribe,
    ),
    case(
        &["MQTT-3.10.3-1"],
        "a filter to unsubscribe that is no UTF-8",
        ill_formed_unsubscribe,
    ),
    case(
        &["MQTT-2.2.2-1", "MQTT-2.3.1-5"],
        "the broker's own packets, of each kind it sends",
        own_packets,
    ),
    case(&["MQTT-2.2.2-2"], "packets with invalid flags", invalid_flags),
    case(&["MQTT-3.6.1-1"], "PUBREL with other flags", pubrel_flags),
    case(&["MQTT-3.8.1-1"], "SUBSCRIBE with other flags", subscribe_flags),
    case(&["MQTT-3.10.1-1"], "UNSUBSCRIBE with other flags", unsubscribe_flags),
    case(
        &["MQTT-3.14.1-1"],
        "DISCONNECT with flags: closed, and the Will is published",
        disconnect_flags,
    ),
    case(&["MQTT-2.3.1-1"], "Packet Identifier 0", identifier_zero),
    case(
        &["MQTT-4.8.0-1"],
        "protocol violations that no other statement names",
        violations,
    ),
    case(
        &["MQTT-7.1.1-1"],
        "TCP is a stream: one byte at a time, and many packets at once",
        stream,
    ),
];

/// What is no UTF-8: a byte that never is, an overlong form, a surrogate, a code point too high, half a character.
const ILL_FORMED: [(&str, &[u8]); 5] = [
    ("ff", b"a\xff"),
    ("c0 80", b"a\xc0\x80"),
    ("ed a0 80", b"a\xed\xa0\x80"),
    ("f4 90 80 80", b"a\xf4\x90\x80\x80"),
    ("e2 82", b"a\xe2\x82"),
];
const NULL: [(&str, &[u8]); 2] = [("U+0000", b"\0"), ("U+0000 in the midst", b"a\0b")];

type Violation = fn(&Bench, &[u8]) -> Outcome;

fn below(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    [bench.topic("").as_bytes(), bytes].concat()
}

fn in_identifier(bench: &Bench, bytes: &[u8]) -> Outcome {
    let id = [bench.id("").as_bytes(), bytes].concat();
    refuses(bench, bench.hello("a").id(id))
}

fn in_will_topic(bench: &Bench, bytes: &[u8]) -> Outcome {
    refuses(bench, bench.hello("a").will(below(bench, bytes), "w", 0, false))
}

fn in_user(bench: &Bench, bytes: &[u8]) -> Outcome {
    refuses(bench, bench.hello("a").anonymous().flag(Hello::USER).with_field(bytes))
}

fn in_topic_name(bench: &Bench, bytes: &[u8]) -> Outcome {
    bench.client("a")?.violates(publish(0, below(bench, bytes), 0, "x"))
}

fn in_subscribe(bench: &Bench, bytes: &[u8]) -> Outcome {
    let body = [&[0, 1], &field(below(bench, bytes))[..], &[0]].concat();
    bench.client("a")?.violates(packet(0x82, body))
}

fn in_unsubscribe(bench: &Bench, bytes: &[u8]) -> Outcome {
    let body = [&[0, 1], &field(below(bench, bytes))[..]].concat();
    bench.client("a")?.violates(packet(0xA2, body))
}

/// The statements ask for the end of the connection; that no CONNACK comes before is asked by [MQTT-3.1.4-1].
fn refuses(bench: &Bench, hello: Hello) -> Outcome {
    let mut client = bench.open("a")?;
    client.send(hello.bytes());
    client.refused(false)
}

const EVERYWHERE: [(&str, Violation); 6] = [
    ("Client Identifier", in_identifier),
    ("Will Topic", in_will_topic),
    ("user name", in_user),
    ("topic name", in_topic_name),
    ("filter of SUBSCRIBE", in_subscribe),
    ("filter of UNSUBSCRIBE", in_unsubscribe),
];

fn all_of(bench: &Bench, places: &[(&str, Violation)], strings: &[(&str, &[u8])]) -> Outcome {
    each(places.iter().copied(), |place| {
        each(strings.iter().copied(), |bytes| place(bench, bytes))
    })
}

fn ill_formed(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE, &ILL_FORMED)
}

fn null(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE, &NULL)
}

fn null_in_topics(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[3..], &NULL)
}

fn ill_formed_identifier(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[..1], &ILL_FORMED)
}

fn ill_formed_will_topic(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[1..2], &ILL_FORMED)
}

fn ill_formed_user(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[2..3], &ILL_FORMED)
}

fn ill_formed_topic_name(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[3..4], &ILL_FORMED)?;
    let none: [(&str, &[u8]); 3] = [
        ("an empty body", &[0x30, 0]),
        ("half a length", &[0x30, 1, 0]),
        ("less than its length says", &[0x30, 4, 0, 3, b'a', b'b']),
    ];
    each(none, |bytes| bench.client("a")?.violates(bytes))
}

fn ill_formed_subscribe(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[4..5], &ILL_FORMED)
}

fn ill_formed_unsubscribe(bench: &Bench) -> Outcome {
    all_of(bench, &EVERYWHERE[5..], &ILL_FORMED)
}

fn byte_order_mark(bench: &Bench) -> Outcome {
    let (plain, marked) = (bench.topic("t"), bench.topic("\u{feff}t"));
    let mut client = bench.client("a")?;
    client.subscribe(&[(&marked, 0), (&plain, 0)])?;
    client.publish(&marked, "marked", 0, false)?;
    client.delivered(&marked, "marked", 0, false)?;
    client.publish(&plain, "plain", 0, false)?;
    client.delivered(&plain, "plain", 0, false)?;
    client.nothing("each message once")
}

/// Every kind of packet that a broker sends; `Packet::fault` is what checks them.
fn own_packets(bench: &Bench) -> Outcome {
    let mut client = bench.client("a")?;
    let topic = bench.topic("t");
    client.subscribe(&[(&topic, 2)])?;
    for qos in 0..=2 {
        client.publish(&topic, "x", qos, false)?;
        let message = client.delivered(&topic, "x", qos, false)?;
        client.acknowledge(&message)?;
    }
    client.pings()?;
    client.unsubscribe(&[&topic])
}

fn subscribed<'a>(bench: &'a Bench<'a>) -> Outcome<Client<'a>> {
    let mut client = bench.client("a")?;
    client.subscribe(&[(&bench.topic("held"), 2)])?;
    Ok(client)
}

/// The kinds that have statements of their own are not repeated.
fn invalid_flags(bench: &Bench) -> Outcome {
    let connect = ["CONNECT with flags 1", "CONNECT with flags 2"]
        .into_iter()
        .zip([0x11, 0x12]);
    let connects = each(connect, |header| {
        refuses(
            bench,
            Hello {
                header,
                ..bench.hello("a")
            },
        )
    });
    let packets: [(&str, &[u8]); 6] = [
        ("PINGREQ with flags 1", &[0xC1, 0]),
        ("PINGREQ with flags 8", &[0xC8, 0]),
        ("PUBACK with flags 1", &[0x41, 2, 0, 1]),
        ("PUBREC with flags 2", &[0x52, 2, 0, 1]),
        ("PUBCOMP with flags 1", &[0x71, 2, 0, 1]),
        ("PUBACK with flags 8", &[0x48, 2, 0, 1]),
    ];
    let others = each(packets, |bytes| bench.client("a")?.violates(bytes));
    both(connects, others)
}

/// The failures of two.
fn both(first: Outcome, second: Outcome) -> Outcome {
    each([("", first), ("", second)], |outcome| outcome)
}

fn flags(bench: &Bench, kind: u8, body: &[u8]) -> Outcome {
    let variants = [0, 1, 3, 6, 10, 15].map(|flags: u8| (format!("flags {flags}"), flags));
    each(variants, |flags| {
        subscribed(bench)?.violates(packet(kind | flags, body))
    })
}

fn pubrel_flags(bench: &Bench) -> Outcome {
    flags(bench, PUBREL, &[0, 1])
}

fn subscribe_flags(bench: &Bench) -> Outcome {
    flags(bench, 0x80, &[&[0, 9], &field(bench.topic("t"))[..], &[0]].concat())
}

fn unsubscribe_flags(bench: &Bench) -> Outcome {
    flags(bench, 0xA0, &[&[0, 9], &field(bench.topic("held"))[..]].concat())
}

fn disconnect_flags(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&topic, 0)])?;
    each([("flags 1", 0xE1), ("flags 8", 0xE8)], |first| {
        let (mut client, _) = bench.enter(&bench.hello("a").will(&topic, "gone", 0, false))?;
        client.violates([first, 0])?;
        watcher.delivered(&topic, "gone", 0, false)?;
        Ok(())
    })
}

fn identifier_zero(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let variants = [
        ("SUBSCRIBE", subscribe(0, &[(&topic, 0)])),
        ("UNSUBSCRIBE", unsubscribe(0, &[&topic])),
        ("PUBLISH at QoS 1", publish(2, &topic, 0, "x")),
        ("PUBLISH at QoS 2", publish(4, &topic, 0, "x")),
    ];
    each(variants, |bytes| bench.client("a")?.violates(bytes))
}

fn violations(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let variants: [(&str, Vec<u8>); 14] = [
        (
            "a Remaining Length of five bytes",
            vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
        ),
        ("packet type 0", vec![0x00, 0]),
        ("packet type 15", vec![0xF0, 0]),
        ("CONNACK from a Client", vec![0x20, 2, 0, 0]),
        ("SUBACK from a Client", vec![0x90, 3, 0, 1, 0]),
        ("UNSUBACK from a Client", vec![0xB0, 2, 0, 1]),
        ("PINGRESP from a Client", vec![0xD0, 0]),
        ("PINGREQ with a body", vec![0xC0, 1, 0]),
        ("DISCONNECT with a body", vec![0xE0, 1, 0]),
        ("PUBACK without its identifier", vec![0x40, 0]),
        ("PUBACK with more than its identifier", vec![0x40, 3, 0, 1, 0]),
        (
            "SUBSCRIBE with a filter and no QoS",
            packet(0x82, [&[0, 1], &field(&topic)[..]].concat()),
        ),
        ("PUBLISH at QoS 1 without an identifier", packet(0x32, field(&topic))),
        ("PUBLISH at QoS 0 with DUP", publish(8, &topic, 0, "x")),
    ];
    each(variants, |bytes| bench.client("a")?.violates(bytes))
}

fn stream(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.open("a")?;
    for byte in bench.hello("a").bytes().into_iter().chain(subscribe(1, &[(&topic, 0)])) {
        client.send([byte]);
    }
    client.accepted()?;
    client.expect([SUBACK, 3, 0, 1, 0], "SUBACK")?;
    let mut many: Vec<u8> = (0..20).flat_map(|number| publish(0, &topic, 0, [number])).collect();
    many.extend(PINGREQ);
    client.send(many);
    client.answer(PINGRESP)?;
    for number in 0..20 {
        client.delivered(&topic, [number], 0, false)?;
    }
    Ok(())
}
