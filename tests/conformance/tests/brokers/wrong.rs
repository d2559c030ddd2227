//! Brokers that are wrong in one thing each: the statements about it fail. So no statement passes whatever a broker does.
//!
//! Each is the broker of this repository behind a relay that changes one kind of packet, in one direction, or one rule of the
//! connection. Without a fault the relay changes nothing, and everything passes through it.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::broker::Broker;
use conformance::bench::Settings;
use conformance::packet::*;
use conformance::report::Verdict;

/// What is wrong.
#[derive(Clone, Copy)]
enum Fault {
    None,
    /// Of each packet from the broker, what the client gets in its place.
    Out(fn(Packet) -> Vec<Packet>),
    /// Of each packet from the client, what the broker gets in its place.
    In(fn(Packet) -> Vec<Packet>),
    /// Such a packet from the broker changes places with the next of the kind.
    Swapped(fn(&Packet) -> bool),
    /// The client never learns that the broker has closed.
    NeverCloses,
    /// The end of a client is told the broker as a DISCONNECT.
    Polite,
    /// Some of the UTF-8 is mended, and the connection goes on.
    MendsStrings,
}

fn one(first: u8, body: impl Into<Vec<u8>>) -> Vec<Packet> {
    let body = body.into();
    vec![Packet { first, body }]
}

fn same(packet: Packet) -> Vec<Packet> {
    vec![packet]
}

fn is(packet: &Packet, kinds: &[u8]) -> bool {
    kinds.contains(&packet.kind())
}

/// A PUBLISH with its parts changed, whatever else as it is.
fn publishing(packet: Packet, change: impl FnOnce(&mut Message)) -> Vec<Packet> {
    let (PUBLISH, Ok(mut message)) = (packet.kind(), packet.message()) else {
        return vec![packet];
    };
    change(&mut message);
    let flags = u8::from(message.dup) << 3 | message.qos << 1 | u8::from(message.retain);
    let bytes = publish(flags, &message.topic, message.id, &message.payload);
    vec![Packet::cut(&bytes).unwrap().unwrap().0]
}

/// A CONNECT with its flags changed: their byte is the one behind protocol name and level.
fn connecting(mut packet: Packet, change: impl FnOnce(&mut u8)) -> Vec<Packet> {
    let name_length = usize::from(packet.id());
    if packet.first & 0xF0 == 0x10
        && let Some(flags) = packet.body.get_mut(name_length + 3)
    {
        change(flags);
    }
    vec![packet]
}

/// A CONNECT of level 4 with this identifier where it has none.
fn named(mut packet: Packet, id: &str) -> Vec<Packet> {
    if packet.first & 0xF0 == 0x10 && packet.body[..2] == [0, 4] && packet.body[10..12] == [0, 0] {
        packet.body = [&packet.body[..10], &field(id), &packet.body[12..]].concat();
    }
    vec![packet]
}

/// A wrong name, what is wrong, and the statements that must fail for it.
type Wrong = (&'static str, Fault, &'static str);

#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    ("never closes", Fault::NeverCloses,
        "1.5.3-1 1.5.3-2 2.2.2-2 2.3.1-1 3.1.0-1 3.1.0-2 3.1.2-1 3.1.2-2 3.1.2-3 3.1.2-9 3.1.2-11 3.1.2-13 3.1.2-14 3.1.2-15 3.1.2-18 \
         3.1.2-19 3.1.2-20 3.1.2-21 3.1.2-22 3.1.2-24 3.1.3-3 3.1.3-4 3.1.3-8 3.1.3-7 3.1.3-10 3.1.3-11 3.1.4-1 3.1.4-2 3.2.2-5 \
         3.3.1-4 3.3.2-1 3.3.2-2 3.6.1-1 3.8.1-1 3.8.3-1 3.8.3-3 3.8.3-4 3.10.1-1 3.10.3-1 3.10.3-2 3.14.1-1 4.7.1-1 4.7.1-2 4.7.1-3 \
         4.7.3-1 4.7.3-2 4.8.0-1 V31-2 V31-4 V31-10 V31-17"),
    ("Session Present is always 1", Fault::Out(|mut packet| {
        if is(&packet, &[CONNACK]) { packet.body[0] = 1; }
        same(packet)
    }), "3.1.4-3 3.2.2-1 3.2.2-3 3.2.2-4 V31-5"),
    ("Session Present is always 0", Fault::Out(|mut packet| {
        if is(&packet, &[CONNACK]) { packet.body[0] = 0; }
        same(packet)
    }), "3.1.4-3 3.2.2-2"),
    ("CONNACK has a body of three bytes", Fault::Out(|mut packet| {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        if is(&packet, &[CONNACK]) && SEEN.fetch_add(1, Ordering::Relaxed) > 0 { packet.body.push(0); }
        same(packet)
    }), "3.1.2-2 3.1.3-5 3.1.3-8 3.1.3-9 3.1.4-4 V31-1 V31-3 V31-4 V31-7 V31-8 V31-9"),
    ("CONNACK comes second", Fault::Out(|packet| {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        if is(&packet, &[CONNACK]) && SEEN.fetch_add(1, Ordering::Relaxed) > 0 {
            [one(PINGRESP, []), same(packet)].concat()
        } else { same(packet) }
    }), "3.2.0-1 3.1.4-4"),
    ("a return code says another thing", Fault::Out(|mut packet| {
        if is(&packet, &[CONNACK]) && packet.body[1] > 0 { packet.body[1] += 6; }
        same(packet)
    }), "3.1.2-2 3.1.3-8 3.1.3-7 3.2.2-4 V31-4"),
    ("who is refused is let in", Fault::Out(|packet| {
        if is(&packet, &[CONNACK]) { one(CONNACK, [packet.body[0], 0]) } else { same(packet) }
    }), "3.1.2-2 3.1.3-7 3.1.3-8 3.2.2-4 V31-2 V31-4"),
    ("who has no identifier is nobody", Fault::In(|packet| named(packet, "nobody")), "3.1.3-6 3.1.3-7 3.1.3-8"),
    // By itself: another nobody that takes over would close the connection in time, as a broker must that rejects.
    ("who has no identifier is somebody", Fault::In(|packet| named(packet, "somebody")), "3.1.4-5"),
    ("identifiers of acknowledgements are one too high", Fault::Out(|packet| {
        if is(&packet, &[PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK]) {
            let id = packet.id().wrapping_add(1);
            let body = [&id.to_be_bytes(), &packet.body[2..]].concat();
            one(packet.first, body)
        } else { same(packet) }
    }), "2.3.1-6 2.3.1-7 3.3.4-1 3.8.4-1 3.8.4-2 3.10.4-4 3.10.4-5 3.10.4-6 4.3.2-2 4.3.3-2 V31-11"),
    ("no SUBACK, UNSUBACK, PUBACK, PUBREC, PUBREL or PINGRESP", Fault::Out(|packet| {
        if is(&packet, &[SUBACK, UNSUBACK, PUBACK, PUBREC, PUBREL, PINGRESP]) { Vec::new() } else { same(packet) }
    }), "3.3.4-1 3.8.4-1 3.10.4-4 3.10.4-5 3.12.4-1 7.1.1-1"),
    ("each delivery comes twice", Fault::Out(|packet| {
        if is(&packet, &[PUBLISH]) { vec![packet.clone(), packet] } else { same(packet) }
    }), "3.1.2-5 3.3.1-6 3.3.1-7 3.3.1-12 3.8.4-3 3.8.4-4 4.3.1-1 4.3.3-2 4.6.0-6 V31-15"),
    ("DUP is always 0", Fault::Out(|packet| publishing(packet, |message| message.dup = false)), "3.3.1-1 V31-14"),
    ("DUP is always 1", Fault::Out(|mut packet| {
        if is(&packet, &[PUBLISH]) { packet.first |= 8; }
        same(packet)
    }), "3.3.1-2 3.3.1-3 4.3.1-1 4.3.2-1 4.3.3-1"),
    ("RETAIN is always 0 in deliveries", Fault::Out(|packet| publishing(packet, |message| message.retain = false)),
        "3.3.1-5 3.3.1-8 3.1.2-7 3.1.2-17"),
    ("RETAIN is always 1 in deliveries", Fault::Out(|packet| publishing(packet, |message| message.retain = true)),
        "3.3.1-9 3.3.1-10 3.1.2-16"),
    ("deliveries are all at QoS 0", Fault::Out(|packet| publishing(packet, |message| message.qos = 0)),
        "3.3.1-5 3.3.5-1 3.8.4-6 4.1.0-2 4.3.2-1 4.3.3-1"),
    ("deliveries at QoS 1 have identifier 1, those at QoS 0 have one", Fault::Out(|packet| match packet.first & 6 {
        0 if is(&packet, &[PUBLISH]) => publishing(packet, |message| message.payload.splice(0..0, [0, 7]).for_each(drop)),
        2 if is(&packet, &[PUBLISH]) => publishing(packet, |message| message.id = 1),
        _ => same(packet),
    }), "2.3.1-4 2.3.1-5 4.3.1-1"),
    ("identifiers of deliveries differ from day to day", Fault::Out(|packet| {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        publishing(packet, |message| message.id = NEXT.fetch_add(1, Ordering::Relaxed).max(1))
    }), "2.3.1-4 4.1.0-1 4.3.3-1 4.4.0-1"),
    ("return codes are in the wrong order", Fault::Out(|mut packet| {
        if is(&packet, &[SUBACK]) { packet.body[2..].reverse(); }
        same(packet)
    }), "3.8.4-4 3.8.4-5 3.9.3-1"),
    ("a return code is missing", Fault::Out(|mut packet| {
        if is(&packet, &[SUBACK]) && packet.body.len() > 3 { packet.body.pop(); }
        same(packet)
    }), "3.8.4-5 3.9.3-1 3.8.4-4"),
    ("return code 3", Fault::Out(|mut packet| {
        if is(&packet, &[SUBACK]) { packet.body[2] = 3; }
        same(packet)
    }), "3.8.3-2 3.9.3-2"),
    ("PINGRESP has flags", Fault::Out(|mut packet| {
        if is(&packet, &[PINGRESP]) { packet.first |= 1; }
        same(packet)
    }), "2.2.2-1 3.12.4-1"),
    ("deliveries change places", Fault::Swapped(|packet| packet.kind() == PUBLISH), "4.6.0-5 4.6.0-6 7.1.1-1"),
    ("what is sent again changes places", Fault::Swapped(|packet| packet.first & 0xF8 == PUBLISH | 8), "4.6.0-1"),
    ("PUBACKs change places", Fault::Swapped(|packet| packet.kind() == PUBACK), "4.6.0-2"),
    ("PUBRECs change places", Fault::Swapped(|packet| packet.kind() == PUBREC), "4.6.0-3"),
    ("PUBRELs change places", Fault::Swapped(|packet| packet.kind() == PUBREL), "4.6.0-4"),
    ("the topic of deliveries loses U+FEFF and its case", Fault::Out(|packet| {
        publishing(packet, |message| message.topic = message.topic.replace('\u{feff}', "").replace(['Q', 'R'], "q"))
    }), "1.5.3-3 3.3.2-3"),
    ("topics are compared in small letters", Fault::In(|packet| {
        publishing(packet, |message| message.topic = message.topic.replace("STRASSE", "Straße"))
    }), "4.7.3-4"),
    ("$ is a letter like others", Fault::Out(|packet| {
        publishing(packet, |message| if message.payload == b"fence" { message.topic = "$SYS/x".into(); })
    }), "4.7.2-1"),
    ("messages reach who has not subscribed", Fault::In(|mut packet| {
        if packet.first == 0x82 {
            // Whatever is subscribed to, all of the case is: the last level of the filter becomes #.
            let length = usize::from(u16::from_be_bytes([packet.body[2], packet.body[3]]));
            let filter = String::from_utf8_lossy(&packet.body[4..4 + length]).into_owned();
            let levels: Vec<&str> = filter.splitn(4, '/').collect();
            if levels.len() == 4 {
                let filter = format!("{}/#", levels[..3].join("/"));
                packet.body = [&packet.body[..2], &field(filter), &packet.body[4 + length..]].concat();
            }
        }
        same(packet)
    }), "3.3.2-3 3.3.1-6 4.7.3-4"),
    ("UNSUBSCRIBE unsubscribes from nothing", Fault::In(|packet| {
        if packet.first == 0xA2 { one(0xA2, [&packet.body[..2], &field("nothing")].concat()) } else { same(packet) }
    }), "3.10.4-1 3.10.4-2 3.10.4-6"),
    ("no PUBREC is heard", Fault::In(|packet| {
        if is(&packet, &[PUBREC]) { Vec::new() } else { same(packet) }
    }), "3.10.4-3 4.3.3-1"),
    ("flags of headers are mended", Fault::In(|mut packet| {
        packet.first = match packet.kind() {
            PUBLISH => packet.first,
            0x80 | 0xA0 | PUBREL => packet.kind() | 2,
            kind => kind,
        };
        same(packet)
    }), "2.2.2-2 3.6.1-1 3.8.1-1 3.10.1-1 3.14.1-1"),
    ("the reserved Connect Flag is ignored", Fault::In(|packet| connecting(packet, |flags| *flags &= !1)), "3.1.2-3 3.1.4-1"),
    ("ill-formed UTF-8 is mended", Fault::MendsStrings, "1.5.3-1 3.1.3-4 3.1.3-10 3.1.3-11 3.3.2-1 3.8.3-1 3.10.3-1 3.1.4-1"),
    ("DISCONNECT is ignored", Fault::In(|packet| if packet.first == 0xE0 { Vec::new() } else { same(packet) }),
        "3.1.2-10 3.1.2-12 3.14.4-3"),
    ("any end is like DISCONNECT", Fault::Polite, "3.1.2-8 3.1.2-16 3.1.2-17 3.1.3-1"),
    ("Clean Session is always 1", Fault::In(|packet| connecting(packet, |flags| *flags |= 2)),
        "3.1.2-4 3.1.2-5 3.1.3-2 3.1.4-3 3.2.2-2 4.1.0-1 4.4.0-1 4.5.0-1 V31-14 V31-16"),
    ("Clean Session is always 0", Fault::In(|packet| connecting(packet, |flags| *flags &= !2)), "3.1.2-6 3.1.4-3"),
    ("nothing is retained", Fault::In(|packet| publishing(packet, |message| message.retain = false)),
        "3.3.1-5 3.3.1-6 3.3.1-8 3.3.1-10 3.3.1-12 3.1.2-7 V31-16"),
    ("everything is retained, nothing empty is", Fault::In(|packet| publishing(packet, |message| {
        message.retain = true;
        if message.payload.is_empty() { message.payload = b"empty".to_vec(); }
    })), "3.3.1-10 3.3.1-11 3.3.1-12"),
    ("retained messages of QoS 0 are not looked at", Fault::In(|packet| {
        publishing(packet, |message| message.retain &= message.qos > 0)
    }), "3.3.1-7"),
    ("a Keep Alive is not kept", Fault::In(|mut packet| {
        if packet.first & 0xF0 == 0x10 && packet.body.len() > 9 && packet.body[..2] == [0, 4] { packet.body[8..10].fill(0); }
        same(packet)
    }), "3.1.2-24"),
    ("every connection is a Client of its own", Fault::In(|mut packet| {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if packet.first & 0xF0 == 0x10 && packet.body.len() > 12 && packet.body[..2] == [0, 4] {
            let length = usize::from(u16::from_be_bytes([packet.body[10], packet.body[11]]));
            if let Some(id) = packet.body.get(12..12 + length).filter(|id| !id.is_empty()) {
                let id = [id, format!("-{}", NEXT.fetch_add(1, Ordering::Relaxed)).as_bytes()].concat();
                packet.body = [&packet.body[..10], &field(id), &packet.body[12 + length..]].concat();
            }
        }
        same(packet)
    }), "3.1.4-2 3.1.2-4 3.2.2-2 V31-16"),
];

/// Statements that no fault here is about, and why.
const WITHOUT_FAULT: &[(&str, &str)] = &[
    ("MQTT-3.3.5-2", "the broker behind the relay forbids nothing"),
    ("V31-12", "the same"),
    ("MQTT-6.0.0-1", "the relay speaks no WebSocket"),
    ("MQTT-6.0.0-2", "the same"),
    ("MQTT-6.0.0-4", "the same"),
];

/// Listens, and relays each connection to the broker with this fault until the test ends.
fn relay(broker: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(broker) else { return };
            let (from_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || inward(from_client, server, fault));
            thread::spawn(move || outward(from_server, client, fault));
        }
    });
    address
}

/// What the client says.
fn inward(mut client: TcpStream, mut server: TcpStream, fault: Fault) {
    let mut buffer = Vec::new();
    let mut bytes = [0; 16384];
    while let Ok(length @ 1..) = client.read(&mut bytes) {
        match fault {
            Fault::In(change) => {
                buffer.extend(&bytes[..length]);
                while let Ok(Some((packet, length))) = Packet::cut(&buffer) {
                    buffer.drain(..length);
                    change(packet).iter().for_each(|packet| write(&mut server, packet));
                }
            }
            // No string is as short as that, but PINGREQ is.
            Fault::MendsStrings if length > 2 => {
                bytes[..length]
                    .iter_mut()
                    .filter(|byte| **byte >= 0x80 && !is_header(**byte))
                    .for_each(|byte| *byte = b'b');
                let _ = server.write_all(&bytes[..length]);
            }
            _ => {
                let _ = server.write_all(&bytes[..length]);
            }
        }
    }
    if let Fault::Polite = fault {
        let _ = server.write_all(&DISCONNECT);
    }
    let _ = server.shutdown(Shutdown::Write);
}

/// Bytes above 0x7F that begin packets; in the strings of the cases there are none of them.
fn is_header(byte: u8) -> bool {
    matches!(byte, 0x82 | 0xA2 | 0xC2)
}

/// What the broker says.
fn outward(mut server: TcpStream, mut client: TcpStream, fault: Fault) {
    let mut buffer = Vec::new();
    let mut held: Option<Packet> = None;
    let mut bytes = [0; 16384];
    // Who is held back for one that does not come is let go.
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        match server.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => buffer.extend(&bytes[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                held.take().iter().for_each(|packet| write(&mut client, packet));
            }
            Err(_) => break,
        }
        while let Ok(Some((packet, length))) = Packet::cut(&buffer) {
            buffer.drain(..length);
            match fault {
                Fault::Out(change) => change(packet).iter().for_each(|packet| write(&mut client, packet)),
                Fault::Swapped(is_one) if is_one(&packet) => match held.take() {
                    None => held = Some(packet),
                    Some(first) => [packet, first].iter().for_each(|packet| write(&mut client, packet)),
                },
                _ => write(&mut client, &packet),
            }
        }
    }
    if let Fault::NeverCloses = fault {
        // Until the client goes: reading is the other thread's.
        while client.peek(&mut [0]).is_ok_and(|length| length > 0) {
            thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn write(stream: &mut TcpStream, out: &Packet) {
    let _ = stream.write_all(&packet(out.first, &out.body));
}

fn names(list: &str) -> Vec<String> {
    let whole = |id: &str| {
        if id.starts_with("V31") {
            id.to_owned()
        } else {
            format!("MQTT-{id}")
        }
    };
    list.split_whitespace().map(whole).collect()
}

#[test]
fn the_relay_alone_is_no_fault() {
    let broker = Broker::open();
    let settings = Settings {
        timeout: Duration::from_secs(30),
        ..Settings::at(relay(broker.mqtt, Fault::None))
    };
    let report = conformance::run(&settings, &[]).unwrap();
    assert!(!report.has_failed(), "{report}");
}

#[test]
fn every_fault_fails_the_statements_about_it() {
    let broker = Broker::open();
    let next = AtomicUsize::new(0);
    let passed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some((name, fault, wanted)) = WRONG.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let settings = Settings {
                        timeout: Duration::from_millis(500),
                        silence: Duration::from_millis(150),
                        ..Settings::at(relay(broker.mqtt, *fault))
                    };
                    let only = names(wanted);
                    match conformance::run(&settings, &only) {
                        Ok(report) => {
                            let failed: BTreeSet<&str> = report.ids(Verdict::Fail).into_iter().collect();
                            let others = only.iter().filter(|id| !failed.contains(id.as_str()));
                            let others: Vec<&String> = others.collect();
                            if !others.is_empty() {
                                passed.lock().unwrap().push(format!("{name}: {others:?} do not fail"));
                            }
                        }
                        Err(sentence) => passed.lock().unwrap().push(format!("{name}: {sentence}")),
                    }
                }
            });
        }
    });
    let passed = passed.into_inner().unwrap();
    assert!(passed.is_empty(), "{}", passed.join("\n"));
}

#[test]
fn every_statement_that_is_tested_has_a_fault() {
    let with: BTreeSet<String> = WRONG.iter().flat_map(|(_, _, wanted)| names(wanted)).collect();
    let without: BTreeSet<String> = WITHOUT_FAULT.iter().map(|(id, _)| (*id).to_owned()).collect();
    let tested = conformance::list(&[])
        .into_iter()
        .filter(|(_, _, untestable)| untestable.is_none());
    let tested: BTreeSet<String> = tested.map(|(id, _, _)| id.to_owned()).collect();
    assert_eq!(&with | &without, tested);
    assert!(with.is_disjoint(&without));
}
