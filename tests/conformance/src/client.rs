//! One connection to the broker, packet by packet.
//!
//! Called  by the cases.
//! Holds   - nothing is acknowledged, answered or sent again unless a case says so;
//!         - a packet that breaks the rules of its own form fails the case, whatever it is about;
//!         - while an acknowledgement is waited for, deliveries that come before it are kept for later.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::bench::{Bench, Failure, Outcome, Stop, skip};
use crate::packet::*;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Packet(Packet),
    /// The end of the stream, or a reset.
    Closed,
    /// Nothing, for as long as was waited.
    Silence,
}

pub struct Client<'a> {
    bench: &'a Bench<'a>,
    stream: TcpStream,
    /// Read, but not yet a whole packet.
    buffer: Vec<u8>,
    /// Deliveries that came while something else was waited for.
    kept: VecDeque<Packet>,
    /// What a report says of the bytes sent, the latest last.
    sent: VecDeque<String>,
    next_id: u16,
    /// Of the protocol, as its last CONNECT says.
    level: u8,
}

impl<'a> Client<'a> {
    pub fn open(bench: &'a Bench<'a>, name: &str) -> Outcome<Client<'a>> {
        let timeout = bench.settings.timeout;
        let opened = TcpStream::connect_timeout(&bench.settings.address, timeout).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => Ok(Client {
                bench,
                stream,
                buffer: Vec::new(),
                kept: VecDeque::new(),
                sent: VecDeque::new(),
                next_id: 0,
                level: 4,
            }),
            Err(error) => Err(Stop::Failed(vec![Failure {
                variant: String::new(),
                sent: format!("a TCP connection for {name}"),
                expected: "it is accepted".into(),
                received: error.to_string(),
            }])),
        }
    }

    /// An end that the broker has closed shows in what is read next, not here.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        const SENT_SHOWN_MAX: usize = 3;
        let bytes = bytes.as_ref();
        if self.sent.len() == SENT_SHOWN_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(self.bench.show(bytes));
        if bytes.first().is_some_and(|first| first & 0xF0 == 0x10) {
            let is_level3 = bytes.windows(9).take(3).any(|window| window == b"\0\x06MQIsdp\x03");
            self.level = if is_level3 { 3 } else { 4 };
        }
        let _ = self.stream.write_all(bytes);
    }

    /// The next identifier; far fewer are used than there are.
    pub fn id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }

    /// Ends the connection without a word.
    pub fn drop_connection(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// DISCONNECT, and the broker has closed: its Will and its place are gone.
    pub fn leave(mut self) {
        self.send(DISCONNECT);
        let _ = self.stream.shutdown(Shutdown::Write);
        while let Ok(Event::Packet(_)) = self.event(self.bench.settings.timeout) {}
    }

    pub fn failed<T>(&self, expected: impl Into<String>, received: impl Into<String>) -> Outcome<T> {
        Err(Stop::Failed(vec![Failure {
            variant: String::new(),
            sent: self.sent.iter().map(String::as_str).collect::<Vec<_>>().join("; "),
            expected: expected.into(),
            received: received.into(),
        }]))
    }

    fn shown(&self, event: &Event) -> String {
        match event {
            Event::Packet(packet) => self.bench.show_packet(packet),
            Event::Closed => "the connection was closed".into(),
            Event::Silence => "nothing".into(),
        }
    }

    /// Fails with what came.
    pub fn unexpected<T>(&self, expected: impl Into<String>, event: &Event) -> Outcome<T> {
        self.failed(expected, self.shown(event))
    }

    pub fn event(&mut self, within: Duration) -> Outcome<Event> {
        if let Some(packet) = self.kept.pop_front() {
            return Ok(Event::Packet(packet));
        }
        self.fresh(within)
    }

    /// The next from the socket, past what is kept.
    fn fresh(&mut self, within: Duration) -> Outcome<Event> {
        let deadline = Instant::now() + within;
        loop {
            match Packet::cut(&self.buffer) {
                Err(fault) => return self.failed("well-formed packets", fault),
                Ok(Some((packet, length))) => {
                    self.buffer.drain(..length);
                    if let Some(fault) = packet.fault(self.level) {
                        let received = format!("{fault}: {}", self.bench.show_packet(&packet));
                        return self.failed("well-formed packets", received);
                    }
                    return Ok(Event::Packet(packet));
                }
                Ok(None) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Silence);
            }
            let mut bytes = [0; 65536];
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(0) => return Ok(Event::Closed),
                Ok(length) => self.buffer.extend(&bytes[..length]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Ok(Event::Closed),
                },
            }
        }
    }

    /// What comes within the time that what must come has.
    pub fn receive(&mut self) -> Outcome<Event> {
        self.event(self.bench.settings.timeout)
    }

    /// Just this packet comes next.
    pub fn expect(&mut self, wanted: impl AsRef<[u8]>, expected: &str) -> Outcome {
        match self.receive()? {
            Event::Packet(came) if packet(came.first, &came.body) == wanted.as_ref() => Ok(()),
            event => self.unexpected(format!("{expected} ({})", self.bench.show(wanted.as_ref())), &event),
        }
    }

    /// The next packet that is no delivery; deliveries are kept.
    pub fn answer(&mut self, kind: u8) -> Outcome<Packet> {
        let deadline = Instant::now() + self.bench.settings.timeout;
        let mut passed = VecDeque::new();
        loop {
            match self.fresh(deadline.saturating_duration_since(Instant::now()))? {
                Event::Packet(packet) if packet.kind() == kind => {
                    self.kept.extend(passed);
                    return Ok(packet);
                }
                Event::Packet(packet) if matches!(packet.kind(), PUBLISH | PUBREL) => passed.push_back(packet),
                event => return self.unexpected(name(kind), &event),
            }
        }
    }

    /// An acknowledgement of this kind with this identifier.
    pub fn acknowledged(&mut self, kind: u8, id: u16) -> Outcome {
        let packet = self.answer(kind)?;
        if packet.id() == id {
            Ok(())
        } else {
            self.unexpected(format!("{} {id}", name(kind)), &Event::Packet(packet))
        }
    }

    /// CONNACK 0; returns Session Present.
    pub fn accepted(&mut self) -> Outcome<bool> {
        match self.receive()? {
            Event::Packet(packet) if packet.kind() == CONNACK && packet.body[1] == 0 && packet.body[0] < 2 => {
                Ok(packet.body[0] == 1)
            }
            event => self.unexpected("CONNACK with return code 0", &event),
        }
    }

    /// The CONNECT that was sent does not stand: the connection is closed, after a CONNACK that refuses it or, where `silent`,
    /// without one.
    pub fn refused(&mut self, silent: bool) -> Outcome {
        let expected = if silent {
            "the connection is closed without CONNACK"
        } else {
            "the connection is closed, at most a CONNACK that refuses comes before"
        };
        match self.receive()? {
            Event::Closed => Ok(()),
            Event::Packet(packet) if !silent && packet.kind() == CONNACK && packet.body[1] != 0 => {
                self.closed(expected)
            }
            event => self.unexpected(expected, &event),
        }
    }

    /// CONNACK with this return code and Session Present 0, then the end.
    pub fn refused_with(&mut self, code: u8) -> Outcome {
        let expected = format!("CONNACK with return code {code} and Session Present 0, then the connection is closed");
        match self.receive()? {
            Event::Packet(packet) if packet.kind() == CONNACK && packet.body == [0, code] => self.closed(&expected),
            event => self.unexpected(expected, &event),
        }
    }

    /// Whatever else comes, the connection ends. One that answers a PINGREQ first is given a little longer, no more.
    pub fn closed(&mut self, expected: &str) -> Outcome {
        let deadline = Instant::now() + self.bench.settings.timeout;
        let mut wait = self.bench.settings.silence;
        let (mut last, mut is_asked) = (Event::Silence, false);
        loop {
            match self.event(wait.min(deadline.saturating_duration_since(Instant::now())))? {
                Event::Closed => return Ok(()),
                Event::Packet(packet) => {
                    let is_answer = packet.kind() == PINGRESP;
                    last = Event::Packet(packet);
                    if is_asked && is_answer {
                        wait = self.bench.settings.silence;
                    }
                }
                Event::Silence if is_asked => return self.unexpected(expected, &last),
                Event::Silence => {
                    // Not shown as sent: it only asks whether anybody is there.
                    let _ = self.stream.write_all(&PINGREQ);
                    is_asked = true;
                    wait = self.bench.settings.timeout;
                }
            }
        }
    }

    /// The packet breaks the protocol: the connection ends.
    pub fn violates(&mut self, bytes: impl AsRef<[u8]>) -> Outcome {
        self.send(bytes);
        self.closed("the connection is closed")
    }

    /// Nothing comes, and the connection stays.
    pub fn nothing(&mut self, expected: &str) -> Outcome {
        match self.event(self.bench.settings.silence)? {
            Event::Silence => {}
            event => return self.unexpected(expected, &event),
        }
        let _ = self.stream.write_all(&PINGREQ);
        match self.receive()? {
            Event::Packet(packet) if packet.kind() == PINGRESP => Ok(()),
            event => self.unexpected(expected, &event),
        }
    }

    /// PINGREQ, PINGRESP.
    pub fn pings(&mut self) -> Outcome {
        self.send(PINGREQ);
        self.answer(PINGRESP).map(|_| ())
    }

    /// SUBSCRIBE with these filters; the return codes, one for each, none above what was asked for.
    pub fn subscribe_codes(&mut self, filters: &[(&str, u8)]) -> Outcome<Vec<u8>> {
        let id = self.id();
        self.send(subscribe(id, filters));
        let packet = self.answer(SUBACK)?;
        let codes = packet.body[2..].to_vec();
        let is_answer = |(code, (_, asked)): (&u8, &(&str, u8))| code <= asked || *code == 0x80;
        if packet.id() != id || codes.len() != filters.len() || !codes.iter().zip(filters).all(is_answer) {
            let expected = format!(
                "SUBACK {id} with {} return codes, each up to the QoS asked for or 0x80",
                filters.len()
            );
            return self.unexpected(expected, &Event::Packet(packet));
        }
        Ok(codes)
    }

    /// The same, granted as asked for; a broker that grants less, as it may, cannot play this case.
    pub fn subscribe(&mut self, filters: &[(&str, u8)]) -> Outcome {
        let codes = self.subscribe_codes(filters)?;
        for ((filter, qos), code) in filters.iter().zip(codes) {
            if code != *qos {
                let filter = self.bench.show(filter.as_bytes());
                return skip(format!(
                    "the broker answers {filter} at QoS {qos} with return code {code:#04x}, as it may"
                ));
            }
        }
        Ok(())
    }

    pub fn unsubscribe(&mut self, filters: &[&str]) -> Outcome {
        let id = self.id();
        self.send(unsubscribe(id, filters));
        self.acknowledged(UNSUBACK, id)
    }

    /// A PUBLISH through its whole flow: at QoS 1 and 2 the broker has it.
    pub fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8, retain: bool) -> Outcome {
        if retain {
            self.bench.note_retained(topic);
        }
        let id = if qos > 0 { self.id() } else { 0 };
        self.send(publish(qos << 1 | u8::from(retain), topic, id, payload));
        match qos {
            0 => Ok(()),
            1 => self.acknowledged(PUBACK, id),
            _ => {
                self.acknowledged(PUBREC, id)?;
                self.send(acknowledgement(PUBREL | 2, id));
                self.acknowledged(PUBCOMP, id)
            }
        }
    }

    /// The next packet, which must be a delivery.
    pub fn message(&mut self, expected: &str) -> Outcome<Message> {
        match self.receive()? {
            Event::Packet(packet) if packet.kind() == PUBLISH => match packet.message() {
                Ok(message) => Ok(message),
                Err(fault) => self.failed(expected, fault),
            },
            event => self.unexpected(expected, &event),
        }
    }

    fn describe(&self, topic: &str, payload: &[u8], dup: bool, qos: u8, retain: bool) -> String {
        let (topic, payload) = (self.bench.show(topic.as_bytes()), self.bench.show(payload));
        let (retain, dup) = (u8::from(retain), u8::from(dup));
        format!("PUBLISH {topic} with payload {payload}, QoS {qos}, RETAIN {retain}, DUP {dup}")
    }

    /// A delivery with this topic, payload, QoS and RETAIN, DUP 0; it is not acknowledged.
    pub fn delivered(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8, retain: bool) -> Outcome<Message> {
        let payload = payload.as_ref();
        let expected = self.describe(topic, payload, false, qos, retain);
        let message = self.message(&expected)?;
        let is_as_wanted = (
            message.topic.as_str(),
            message.payload.as_slice(),
            message.qos,
            message.retain,
        ) == (topic, payload, qos, retain);
        if is_as_wanted && !message.dup {
            return Ok(message);
        }
        let received = self.describe(
            &message.topic,
            &message.payload,
            message.dup,
            message.qos,
            message.retain,
        );
        self.failed(expected, received)
    }

    /// Acknowledges a delivery through its whole flow.
    pub fn acknowledge(&mut self, message: &Message) -> Outcome {
        match message.qos {
            0 => Ok(()),
            1 => {
                self.send(acknowledgement(PUBACK, message.id));
                Ok(())
            }
            _ => {
                self.send(acknowledgement(PUBREC, message.id));
                self.acknowledged_release(message.id)?;
                self.send(acknowledgement(PUBCOMP, message.id));
                Ok(())
            }
        }
    }

    /// PUBREL with this identifier comes, whatever deliveries come before it.
    pub fn acknowledged_release(&mut self, id: u16) -> Outcome {
        let deadline = Instant::now() + self.bench.settings.timeout;
        loop {
            match self.fresh(deadline.saturating_duration_since(Instant::now()))? {
                Event::Packet(packet) if packet.kind() == PUBREL && packet.id() == id => return Ok(()),
                Event::Packet(packet) if packet.kind() == PUBLISH => self.kept.push_back(packet),
                event => return self.unexpected(format!("PUBREL {id}"), &event),
            }
        }
    }
}
