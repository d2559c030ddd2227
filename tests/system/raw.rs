//! A client written by hand, packet by packet: for what no library can be brought to say, or to leave unsaid.
//!
//! Called by `hostile`, `durability` and `platform`.
//! Holds  - a packet that does not come within a generous time fails the test.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

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

/// Any other CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    pub level: u8,
    pub id: &'a str,
    pub is_clean: bool,
    pub keep_alive_s: u16,
    pub user: Option<&'a str>,
    pub password: Option<&'a str>,
    pub will: Option<Will<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Will<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: u8,
    pub retain: bool,
}

impl Connect<'_> {
    pub fn packet(&self) -> Vec<u8> {
        let mut flags = u8::from(self.is_clean) << 1;
        flags |= u8::from(self.user.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        let mut body = match self.level {
            3 => string(b"MQIsdp"),
            _ => string(b"MQTT"),
        };
        body.push(self.level);
        if let Some(will) = self.will {
            flags |= 4 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        body.push(flags);
        body.extend(self.keep_alive_s.to_be_bytes());
        body.extend(string(self.id.as_bytes()));
        if let Some(will) = self.will {
            body.extend([string(will.topic.as_bytes()), string(will.payload)].concat());
        }
        for text in [self.user, self.password].into_iter().flatten() {
            body.extend(string(text.as_bytes()));
        }
        framed(0x10, &body)
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// With the Remaining Length between them.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let more = if length >= 128 { 0x80 } else { 0 };
        packet.push((length % 128) as u8 | more);
        length /= 128;
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
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
    let body = [&string(topic.as_bytes()), &id.to_be_bytes()[..], payload].concat();
    framed(PUBLISH | qos << 1, &body)
}

/// PUBLISH at QoS 0.
pub fn publish_at_most_once(topic: &str, payload: &[u8]) -> Vec<u8> {
    framed(PUBLISH, &[&string(topic.as_bytes())[..], payload].concat())
}

/// The same PUBLISH, to be retained.
pub fn retained(mut publish: Vec<u8>) -> Vec<u8> {
    publish[0] |= 1;
    publish
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
        retain: bool,
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
    /// Frames that came before the one that was awaited.
    early: VecDeque<(u8, Vec<u8>)>,
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
        Raw::open(port, connect).unwrap_or_else(|code| panic!("not a CONNACK with return code 0, but {code}"))
    }

    /// With the return code of a CONNACK that refuses, behind which the connection has been closed.
    pub fn open(port: u16, connect: &[u8]) -> Result<Raw, u8> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        Raw::over(socket, connect)
    }

    /// On a socket that has seen something else before.
    pub fn over(socket: TcpStream, connect: &[u8]) -> Result<Raw, u8> {
        socket.set_nodelay(true).unwrap();
        let mut raw = Raw {
            socket,
            unread: Vec::new(),
            early: VecDeque::new(),
            session_present: false,
        };
        raw.send(connect);
        let (first, body) = raw.frame(patience(Duration::from_secs(20))).expect("a CONNACK comes");
        assert_eq!(first, 0x20, "not a CONNACK: {body:02x?}");
        raw.session_present = body[0] == 1;
        match body[1] {
            0 => Ok(raw),
            code => {
                assert!(!raw.session_present, "a refused CONNECT has no Session Present");
                assert!(
                    raw.is_closed_within(Duration::from_secs(10)),
                    "open after a CONNACK with {code}"
                );
                Err(code)
            }
        }
    }

    /// The broker closes this connection; what it sends before it does is passed over.
    pub fn is_closed_within(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + patience(within);
        let mut bytes = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            match self.socket.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    /// SUBSCRIBE to all of these; what the SUBACK says of each. Messages that come before it are kept for later.
    pub fn granted(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        let mut body = vec![0, 1];
        for (filter, qos) in filters {
            body.extend(string(filter.as_bytes()));
            body.push(*qos);
        }
        self.send(&framed(0x82, &body));
        loop {
            let (first, body) = self.frame(patience(Duration::from_secs(20))).expect("a SUBACK comes");
            if first == SUBACK {
                return body[2..].to_vec();
            }
            self.early.push_back((first, body));
        }
    }

    /// UNSUBSCRIBE and its answer.
    pub fn unsubscribe(&mut self, filter: &str) {
        self.send(&framed(0xa2, &[&[0, 1], &string(filter.as_bytes())[..]].concat()));
        self.answered(0xb0, 1);
    }

    /// PUBLISH, and whatever QoS 1 or 2 has of answers.
    pub fn deliver(&mut self, packet: &[u8], id: u16) {
        self.send(packet);
        match packet[0] >> 1 & 3 {
            0 => {}
            1 => self.answered(PUBACK, id),
            _ => {
                self.answered(PUBREC, id);
                self.send(&acknowledgement(PUBREL, id));
                self.answered(PUBCOMP, id);
            }
        }
    }

    /// Something has come that was not asked for yet.
    pub fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    fn answered(&mut self, kind: u8, id: u16) {
        loop {
            let (first, body) = self.frame(patience(Duration::from_secs(20))).expect("an answer comes");
            if (first, &body[..]) == (kind, &id.to_be_bytes()[..]) {
                return;
            }
            self.early.push_back((first, body));
        }
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
        let (first, body) = match self.early.pop_front() {
            Some(early) => early,
            None => self.frame(within)?,
        };
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
            retain: first & 1 != 0,
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
                // Level 3 has DUP in it when it comes again.
                Packet::Acknowledgement { kind, id } if kind & !8 == PUBREL => self.send(&acknowledgement(PUBCOMP, id)),
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
                // A process that another thread has started has ended.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
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
