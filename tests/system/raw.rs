//! A client written by hand, packet by packet: for what no library can be brought to say, or to leave unsaid.
//!
//! Called by `hostile` and `durability`.
//! Holds  - a packet that does not come within a generous time fails the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::broker::patience;

pub const PUBLISH: u8 = 0x30;
pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;
const SUBACK: u8 = 0x90;

pub fn hex(text: &str) -> Vec<u8> {
    hex::decode(text.replace(' ', "")).unwrap()
}

/// CONNECT, level 4, Clean Session, keep alive 0, with this Client Identifier.
pub fn connect(id: &str) -> Vec<u8> {
    let mut packet = hex("10 00 0004 4d515454 04 02 0000 00");
    packet.push(id.len() as u8);
    packet.extend(id.as_bytes());
    packet[1] = packet.len() as u8 - 2;
    packet
}

/// The same with Clean Session 0.
pub fn connect_durable(id: &str) -> Vec<u8> {
    let mut packet = connect(id);
    packet[9] = 0;
    packet
}

/// SUBSCRIBE, packet identifier 1, to one filter.
pub fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    let mut packet = hex("82 00 0001 00");
    packet.push(filter.len() as u8);
    packet.extend(filter.as_bytes());
    packet.push(qos);
    packet[1] = packet.len() as u8 - 2;
    packet
}

/// PUBLISH at QoS 1 or 2.
pub fn publish(topic: &str, qos: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![PUBLISH | qos << 1];
    let mut length = 2 + topic.len() + 2 + payload.len();
    loop {
        let more = if length >= 128 { 0x80 } else { 0 };
        packet.push((length % 128) as u8 | more);
        length /= 128;
        if length == 0 {
            break;
        }
    }
    packet.extend((topic.len() as u16).to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(payload);
    packet
}

/// PUBACK and its like.
pub fn acknowledgement(kind: u8, id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [kind, 2, high, low]
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        dup: bool,
        /// 0 at QoS 0.
        id: u16,
    },
    Acknowledgement {
        kind: u8,
        id: u16,
    },
}

/// A connection with its CONNACK behind it.
pub struct Raw {
    socket: TcpStream,
    unread: Vec<u8>,
    pub session_present: bool,
}

impl Raw {
    pub fn clean(port: u16, id: &str) -> Raw {
        Raw::start(port, &connect(id))
    }

    pub fn durable(port: u16, id: &str) -> Raw {
        Raw::start(port, &connect_durable(id))
    }

    fn start(port: u16, connect: &[u8]) -> Raw {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut raw = Raw {
            socket,
            unread: Vec::new(),
            session_present: false,
        };
        raw.send(connect);
        let (first, body) = raw.frame(patience(Duration::from_secs(20))).expect("a CONNACK comes");
        assert_eq!(
            (first, body[1]),
            (0x20, 0),
            "not a CONNACK with return code 0: {body:02x?}"
        );
        raw.session_present = body[0] == 1;
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// For another thread that writes while this one reads.
    pub fn writer(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    pub fn subscribe(&mut self, filter: &str, qos: u8) {
        self.send(&subscribe(filter, qos));
        let packet = self.packet();
        let expected = Packet::Acknowledgement { kind: SUBACK, id: 1 };
        assert_eq!(packet, expected, "not the SUBACK of {filter}");
    }

    /// Everything sent before has been worked off, and is on disk where it belongs there. Returns what came meanwhile.
    pub fn fence(&mut self) -> Vec<Packet> {
        self.send(&subscribe("fence", 1));
        let mut between = Vec::new();
        loop {
            match self.packet() {
                Packet::Acknowledgement { kind: SUBACK, id: 1 } => return between,
                other => between.push(other),
            }
        }
    }

    pub fn packet(&mut self) -> Packet {
        self.packet_within(patience(Duration::from_secs(20)))
            .expect("a packet comes within 20 s")
    }

    /// The next packet, or `None` where none comes.
    pub fn packet_within(&mut self, within: Duration) -> Option<Packet> {
        let (first, body) = self.frame(within)?;
        let number = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        if first & 0xf0 != PUBLISH {
            return Some(Packet::Acknowledgement {
                kind: first,
                id: number(0),
            });
        }
        let end = 2 + number(0) as usize;
        let qos = first >> 1 & 3;
        let (id, payload) = match qos {
            0 => (0, &body[end..]),
            _ => (number(end), &body[end + 2..]),
        };
        Some(Packet::Publish {
            topic: String::from_utf8(body[2..end].to_vec()).unwrap(),
            payload: payload.to_vec(),
            qos,
            dup: first & 8 != 0,
            id,
        })
    }

    /// The next message, acknowledged: at QoS 2 with the rest of its flow. PUBREL of earlier ones is answered on the way.
    pub fn message(&mut self) -> (String, Vec<u8>, u8) {
        self.message_within(patience(Duration::from_secs(20)))
            .expect("a message comes within 20 s")
    }

    pub fn message_within(&mut self, within: Duration) -> Option<(String, Vec<u8>, u8)> {
        loop {
            match self.packet_within(within)? {
                Packet::Publish {
                    topic,
                    payload,
                    qos,
                    id,
                    ..
                } => {
                    match qos {
                        0 => {}
                        1 => self.send(&acknowledgement(PUBACK, id)),
                        _ => self.send(&acknowledgement(PUBREC, id)),
                    }
                    return Some((topic, payload, qos));
                }
                Packet::Acknowledgement { kind: PUBREL, id } => self.send(&acknowledgement(PUBCOMP, id)),
                other => panic!("{other:?} where a message was awaited"),
            }
        }
    }

    fn frame(&mut self, within: Duration) -> Option<(u8, Vec<u8>)> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            let mut bytes = [0; 16 * 1024];
            match self.socket.read(&mut bytes) {
                Ok(0) => panic!("the broker closed the connection"),
                Ok(count) => self.unread.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("the connection is broken: {error}"),
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut length = 0;
        for (index, byte) in self.unread.iter().enumerate().skip(1) {
            length |= (*byte as usize & 0x7f) << (7 * (index - 1));
            if byte & 0x80 == 0 {
                let end = index + 1 + length;
                if self.unread.len() < end {
                    return None;
                }
                let frame = (self.unread[0], self.unread[index + 1..end].to_vec());
                self.unread.drain(..end);
                return Some(frame);
            }
        }
        None
    }
}
