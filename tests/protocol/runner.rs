//! Plays one `Conversation` on a `Driver` and says where it first went wrong.
//!
//! Called  by `main.rs`, on one thread per conversation; by its own tests on a scripted driver.
//! Holds   for every conversation, whatever it says itself:
//!         - a Packet Identifier of the server is never 0 and never one that is still in flight, unless DUP is set
//!           [MQTT-2.3.1-4];
//!         - at the end nothing has arrived that was not expected, and no connection has been closed unasked;
//!         - nothing has gone wrong below MQTT, where the driver has something there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::script::{Action, Atom, Control, Conversation};

/// What `receive` came back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Bytes,
    Silence,
    Closed,
}

/// A broker, and the connections of one conversation to it.
pub trait Driver {
    fn open(&mut self) -> usize;
    /// Sends the bytes, `chunk` at a time where one is given. A broker that no longer listens is no error.
    fn send(&mut self, connection: usize, bytes: &[u8], chunk: Option<usize>);
    /// `Control::Drop`, `Reset` or `Shutdown`.
    fn end(&mut self, connection: usize, how: Control);
    /// Appends what has come; waits for it at most `wait`.
    fn receive(&mut self, connection: usize, into: &mut Vec<u8>, wait: Duration) -> Heard;
    /// Lets time pass.
    fn pass(&mut self, time: Duration);
    /// How long something expected may take, and how long a silence must last to count.
    fn patience(&self) -> (Duration, Duration);
    /// Resident memory of the broker; `None` where it is not a process of its own.
    fn memory_bytes(&self) -> Option<u64>;
    /// At the end: waits for what the broker still owes below MQTT; the error names a rule that it broke there.
    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Default)]
struct Connection {
    /// `None` before the first use and after its end was seen.
    handle: Option<usize>,
    received: Vec<u8>,
    ended: bool,
    acknowledges: bool,
    ignored: bool,
    in_flight: BTreeSet<u16>,
    /// How much of `received` has been looked at for Packet Identifiers: whole packets.
    scanned: usize,
}

struct Run<'a, D: Driver> {
    driver: &'a mut D,
    connections: BTreeMap<String, Connection>,
    variables: BTreeMap<String, [u8; 2]>,
}

/// Plays all steps. The error names the step and holds what was expected and what came.
pub fn run<D: Driver>(conversation: &Conversation, driver: &mut D) -> Result<(), String> {
    let mut run = Run {
        driver,
        connections: BTreeMap::new(),
        variables: BTreeMap::new(),
    };
    let played = conversation.steps.iter().try_for_each(|step| {
        run.step(&step.action)
            .map_err(|reason| format!("line {}: {}\n      {reason}", step.line, step.text))
    });
    let played = played.and_then(|()| run.finish().map_err(|reason| format!("at the end: {reason}")));
    match (played, driver.settle()) {
        (Ok(()), settled) => settled,
        (Err(reason), Ok(())) => Err(reason),
        (Err(reason), Err(below)) => Err(format!("{reason}\n      below MQTT: {below}")),
    }
}

impl<D: Driver> Run<'_, D> {
    fn step(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Send {
                connection,
                bytes,
                chunk,
            } => {
                let bytes = self.bind(bytes)?;
                let handle = self.opened(connection);
                let state = self.connections.get_mut(connection).expect("just opened");
                acknowledged(&bytes, &mut state.in_flight);
                self.driver.send(handle, &bytes, *chunk);
                Ok(())
            }
            Action::Expect { connection, bytes } => self.expect(connection, bytes),
            Action::ExpectAnyOrder { connection, packets } => self.expect_any_order(connection, packets),
            Action::ExpectClose { connection, within } => self.expect_close(connection, *within),
            Action::ExpectNothing { connection, lasting } => self.expect_nothing(connection, *lasting),
            Action::Control { connection, control } => {
                let handle = self.opened(connection);
                let state = self.connections.get_mut(connection).expect("just opened");
                match control {
                    Control::Open => {}
                    Control::Acknowledge => state.acknowledges = true,
                    Control::Withhold => state.acknowledges = false,
                    Control::Ignore => state.ignored = true,
                    Control::Shutdown => self.driver.end(handle, *control),
                    Control::Drop | Control::Reset => {
                        self.driver.end(handle, *control);
                        state.handle = None;
                    }
                }
                Ok(())
            }
            Action::Wait(time) => {
                self.driver.pass(*time);
                Ok(())
            }
            Action::MemoryBelow(bytes_max) => match self.driver.memory_bytes() {
                Some(bytes) if bytes >= *bytes_max => Err(format!("the broker holds {} KiB", bytes / 1024)),
                _ => Ok(()),
            },
        }
    }

    /// The handle of a connection, which is opened where it is not.
    fn opened(&mut self, name: &str) -> usize {
        let state = self.connections.entry(name.to_owned()).or_default();
        match state.handle {
            Some(handle) => handle,
            None => {
                let handle = self.driver.open();
                *state = Connection {
                    handle: Some(handle),
                    acknowledges: state.acknowledges,
                    ignored: state.ignored,
                    ..Connection::default()
                };
                handle
            }
        }
    }

    fn bind(&self, atoms: &[Atom]) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        for atom in atoms {
            match atom {
                Atom::Bytes(literal) => bytes.extend_from_slice(literal),
                Atom::Variable(name) => {
                    bytes.extend_from_slice(self.variables.get(name).ok_or(format!("${name} has no value yet"))?);
                }
                Atom::AnyId => return Err("$* cannot be sent".to_owned()),
            }
        }
        Ok(bytes)
    }

    /// Reads once; `Err` where the connection was never opened.
    fn read(&mut self, name: &str, wait: Duration) -> Result<Heard, String> {
        let state = self
            .connections
            .get_mut(name)
            .ok_or(format!("connection {name:?} was never opened"))?;
        let handle = state.handle.ok_or(format!("connection {name:?} is not open"))?;
        if state.ended {
            return Ok(Heard::Closed);
        }
        let heard = self.driver.receive(handle, &mut state.received, wait);
        state.ended = heard == Heard::Closed;
        self.scan(name)?;
        Ok(heard)
    }

    fn expect(&mut self, name: &str, atoms: &[Atom]) -> Result<(), String> {
        let (patience, _) = self.driver.patience();
        loop {
            let state = self
                .connections
                .get(name)
                .ok_or(format!("connection {name:?} was never opened"))?;
            match matched(atoms, &state.received, &self.variables) {
                Match::Whole(length, variables) => {
                    self.variables = variables;
                    return self.consume(name, length);
                }
                Match::Never(at) => {
                    return Err(format!(
                        "expected {}\n      received {}\n      they differ at byte {at}",
                        shown(atoms),
                        dump(&state.received)
                    ));
                }
                Match::Partial => match self.read(name, patience)? {
                    Heard::Bytes => {}
                    heard => {
                        let received = dump(&self.connections[name].received);
                        return Err(format!(
                            "expected {}\n      received {received}, then {heard:?}",
                            shown(atoms)
                        ));
                    }
                },
            }
        }
    }

    fn expect_any_order(&mut self, name: &str, packets: &[Vec<Atom>]) -> Result<(), String> {
        let (patience, _) = self.driver.patience();
        let mut missing: Vec<&Vec<Atom>> = packets.iter().collect();
        while !missing.is_empty() {
            let received = &self
                .connections
                .get(name)
                .ok_or(format!("connection {name:?} was never opened"))?
                .received;
            let Some(length) = packet_length(received) else {
                match self.read(name, patience)? {
                    Heard::Bytes => continue,
                    heard => {
                        let missing: Vec<_> = missing.iter().map(|atoms| shown(atoms)).collect();
                        let received = dump(&self.connections[name].received);
                        return Err(format!(
                            "received {received}, then {heard:?}; missing {}",
                            missing.join(" | ")
                        ));
                    }
                }
            };
            let found = missing.iter().enumerate().find_map(|(index, atoms)| {
                match matched(atoms, &received[..length], &self.variables) {
                    Match::Whole(whole, variables) if whole == length => Some((index, variables)),
                    _ => None,
                }
            });
            let Some((index, variables)) = found else {
                let missing: Vec<_> = missing.iter().map(|atoms| shown(atoms)).collect();
                return Err(format!(
                    "received {}; missing {}",
                    dump(&received[..length]),
                    missing.join(" | ")
                ));
            };
            missing.remove(index);
            self.variables = variables;
            self.consume(name, length)?;
        }
        Ok(())
    }

    fn expect_close(&mut self, name: &str, within: Option<Duration>) -> Result<(), String> {
        let (patience, _) = self.driver.patience();
        let heard = self.read(name, within.unwrap_or(patience))?;
        let state = self.connections.get_mut(name).expect("just read");
        if !state.received.is_empty() {
            return Err(format!(
                "expected only the end of the connection, received {}",
                dump(&state.received)
            ));
        }
        if heard != Heard::Closed {
            return Err("the connection was not closed".to_owned());
        }
        state.handle = None;
        Ok(())
    }

    fn expect_nothing(&mut self, name: &str, lasting: Option<Duration>) -> Result<(), String> {
        let (_, quiet) = self.driver.patience();
        let heard = self.read(name, lasting.unwrap_or(quiet))?;
        let state = &self.connections[name];
        if !state.received.is_empty() {
            return Err(format!("expected nothing, received {}", dump(&state.received)));
        }
        if heard == Heard::Closed {
            return Err("the connection was closed".to_owned());
        }
        Ok(())
    }

    /// Takes what was expected from the buffer.
    fn consume(&mut self, name: &str, length: usize) -> Result<(), String> {
        let state = self.connections.get_mut(name).expect("just matched");
        state.received.drain(..length);
        state.scanned = state
            .scanned
            .checked_sub(length)
            .ok_or("what was expected ends inside a packet")?;
        Ok(())
    }

    /// Checks the identifiers in what has arrived and acknowledges it where asked to: at once, or the broker's window
    /// would hold back the rest of what a step expects.
    fn scan(&mut self, name: &str) -> Result<(), String> {
        let state = self.connections.get_mut(name).expect("just read");
        let mut answers = Vec::new();
        while let Some(length) = packet_length(&state.received[state.scanned..]) {
            let packet = &state.received[state.scanned..state.scanned + length];
            state.scanned += length;
            let first = packet[0];
            let body = &packet[packet.iter().skip(1).position(|byte| byte & 0x80 == 0).expect("whole") + 2..];
            match first & 0xf0 {
                0x30 if first & 0x06 != 0 => {
                    let short = "a delivery that is too short";
                    let topic_bytes = usize::from(u16::from_be_bytes([*body.first().ok_or(short)?, body[1]]));
                    let id_bytes = body.get(2 + topic_bytes..4 + topic_bytes).ok_or(short)?;
                    let id = u16::from_be_bytes([id_bytes[0], id_bytes[1]]);
                    if id == 0 {
                        return Err("a delivery with Packet Identifier 0".to_owned());
                    }
                    if !state.in_flight.insert(id) && first & 0x08 == 0 {
                        return Err(format!("Packet Identifier {id} was still in flight"));
                    }
                    let answer = if first & 0x06 == 0x02 { 0x40 } else { 0x50 };
                    answers.extend_from_slice(&[answer, 2, id_bytes[0], id_bytes[1]]);
                }
                0x60 if body.len() == 2 => answers.extend_from_slice(&[0x70, 2, body[0], body[1]]),
                _ => {}
            }
        }
        if state.acknowledges && !answers.is_empty() {
            acknowledged(&answers, &mut state.in_flight);
            let handle = state.handle.expect("it is open: it was read from");
            self.driver.send(handle, &answers, None);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        let names: Vec<String> = self.connections.keys().cloned().collect();
        for name in names {
            let state = &self.connections[&name];
            if state.handle.is_none() || state.ignored {
                continue;
            }
            let heard = self.read(&name, Duration::ZERO)?;
            let state = &self.connections[&name];
            if !state.received.is_empty() {
                return Err(format!(
                    "connection {name:?} received {} unasked",
                    dump(&state.received)
                ));
            }
            if heard == Heard::Closed {
                return Err(format!("connection {name:?} was closed unasked"));
            }
        }
        Ok(())
    }
}

enum Match {
    Whole(usize, BTreeMap<String, [u8; 2]>),
    Partial,
    Never(usize),
}

fn matched(atoms: &[Atom], received: &[u8], variables: &BTreeMap<String, [u8; 2]>) -> Match {
    let mut variables = variables.clone();
    let mut at = 0;
    for atom in atoms {
        let rest = &received[at..];
        if let Atom::Bytes(literal) = atom {
            let length = literal.len().min(rest.len());
            if rest[..length] != literal[..length] {
                let differs = literal.iter().zip(rest).position(|(a, b)| a != b).unwrap_or(0);
                return Match::Never(at + differs);
            }
        }
        if rest.len() < atom.len() {
            return Match::Partial;
        }
        match atom {
            Atom::Bytes(_) => {}
            Atom::AnyId if rest[..2] == [0, 0] => return Match::Never(at),
            Atom::AnyId => {}
            Atom::Variable(name) => {
                let value = [rest[0], rest[1]];
                if *variables.entry(name.clone()).or_insert(value) != value {
                    return Match::Never(at);
                }
            }
        }
        at += atom.len();
    }
    Match::Whole(at, variables)
}

/// Bytes of the packet at the front, if it is whole.
fn packet_length(bytes: &[u8]) -> Option<usize> {
    let mut length = 0;
    for index in 0..4 {
        let byte = *bytes.get(1 + index)?;
        length |= usize::from(byte & 127) << (7 * index);
        if byte & 128 == 0 {
            let whole = 2 + index + length;
            return (bytes.len() >= whole).then_some(whole);
        }
    }
    None
}

/// Takes the identifiers out whose flow the client ends with these packets.
fn acknowledged(sent: &[u8], in_flight: &mut BTreeSet<u16>) {
    let mut at = 0;
    while let Some(length) = packet_length(&sent[at..]) {
        let packet = &sent[at..at + length];
        if matches!(packet[0] & 0xf0, 0x40 | 0x70) && packet.len() == 4 {
            in_flight.remove(&u16::from_be_bytes([packet[2], packet[3]]));
        }
        at += length;
    }
}

fn shown(atoms: &[Atom]) -> String {
    let mut text = Vec::new();
    for atom in atoms {
        text.push(match atom {
            Atom::Bytes(bytes) => dump(bytes),
            Atom::Variable(name) => format!("${name}"),
            Atom::AnyId => "$*".to_owned(),
        });
        if text.len() > 40 {
            text.push("...".to_owned());
            break;
        }
    }
    text.join(" ")
}

/// Hex and, beside it, what of it is text; long runs are cut.
fn dump(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 96;
    let start = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let text: String = start
        .iter()
        .map(|&byte| {
            if (32..127).contains(&byte) {
                char::from(byte)
            } else {
                '.'
            }
        })
        .collect();
    let more = if bytes.len() > SHOWN_BYTES {
        format!(" ... {} bytes", bytes.len())
    } else {
        String::new()
    };
    if bytes.is_empty() {
        "no bytes".to_owned()
    } else {
        format!("{} |{text}|{more}", hex::encode(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every `send` with the next of its lines; `None` closes.
    struct Scripted {
        lines: Vec<Option<Vec<u8>>>,
        pending: Vec<u8>,
        closed: bool,
    }

    impl Driver for Scripted {
        fn open(&mut self) -> usize {
            0
        }
        fn send(&mut self, _: usize, _: &[u8], _: Option<usize>) {
            if !self.lines.is_empty() {
                match self.lines.remove(0) {
                    Some(bytes) => self.pending.extend(bytes),
                    None => self.closed = true,
                }
            }
        }
        fn end(&mut self, _: usize, _: Control) {}
        fn receive(&mut self, _: usize, into: &mut Vec<u8>, _: Duration) -> Heard {
            let heard = match (self.pending.is_empty(), self.closed) {
                (false, _) => Heard::Bytes,
                (true, true) => Heard::Closed,
                (true, false) => Heard::Silence,
            };
            into.append(&mut self.pending);
            heard
        }
        fn pass(&mut self, _: Duration) {}
        fn patience(&self) -> (Duration, Duration) {
            (Duration::ZERO, Duration::ZERO)
        }
        fn memory_bytes(&self) -> Option<u64> {
            Some(10 << 20)
        }
    }

    fn play(steps: &str, answers: &[Option<&[u8]>]) -> Result<(), String> {
        let text = format!("# [X-2] a test of the runner\n{steps}");
        let conversation = &crate::script::parse("test", 0, &text).unwrap()[0];
        let lines = answers.iter().map(|line| line.map(<[u8]>::to_vec)).collect();
        run(
            conversation,
            &mut Scripted {
                lines,
                pending: Vec::new(),
                closed: false,
            },
        )
    }

    #[test]
    fn what_was_agreed_passes() {
        play("> c0 00\n< d0 00", &[Some(b"\xd0\0")]).unwrap();
        play("> c0 00\n< close", &[None]).unwrap();
        play("> c0 00\n< nothing", &[]).unwrap();
        play(
            "> c0 00\n< 32 { s\"a\" $p }\n> 40 02 $p",
            &[Some(b"\x32\x05\0\x01a\0\x07")],
        )
        .unwrap();
        play(
            "> c0 00\n< any order\n  d0 00\n  b0 02 0001",
            &[Some(b"\xb0\x02\0\x01\xd0\0")],
        )
        .unwrap();
    }

    #[test]
    fn any_departure_fails() {
        let delivery = b"\x32\x05\0\x01a\0\x07".as_slice();
        let twice = [delivery, delivery].concat();
        for (steps, answers) in [
            ("> c0 00\n< d0 00", vec![Some(b"\xd0\x01\x01".as_slice())]),
            ("> c0 00\n< d0 00", vec![]),
            ("> c0 00\n< d0 00", vec![None]),
            ("> c0 00\n< close", vec![]),
            ("> c0 00\n< close", vec![Some(b"\xd0\0")]),
            ("> c0 00\n< nothing", vec![Some(b"\xd0\0")]),
            ("> c0 00\n< nothing", vec![None]),
            ("> c0 00", vec![Some(b"\xd0\0")]),
            ("> c0 00", vec![None]),
            (
                "> c0 00\n< any order\n  d0 00\n  b0 02 0001",
                vec![Some(b"\xd0\0\xd0\0")],
            ),
            (
                "> c0 00\n< 32 { s\"a\" $p } 32 { s\"a\" $q }",
                vec![Some(twice.as_slice())],
            ),
            ("> c0 00\n< 32 { s\"a\" $p }", vec![Some(b"\x32\x05\0\x01a\0\0")]),
            (
                "> c0 00\n< b0 02 $p b0 02 $p",
                vec![Some(b"\xb0\x02\0\x01\xb0\x02\0\x02")],
            ),
            ("> c0 00\nmemory below 1 MiB", vec![]),
            ("> 40 02 $p", vec![]),
        ] {
            assert!(play(steps, &answers).is_err(), "{steps}");
        }
    }
}
