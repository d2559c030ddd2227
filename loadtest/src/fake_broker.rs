//! A small broker for tests of the scenarios: sessions, retained messages, Wills, a QoS 2 without memory, one
//! lock.
//!
//! Called  by their tests, which give it a rule to break. With a `Platform` it takes that account's clients alone, below its
//!         token alone, and gives it their datapoints.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::fake_api::{DEVICE_TOKEN, Platform, USER};
use crate::packet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The third delivery of a session, or of a subscription to retained messages, or datapoint of a device.
    Loses,
    Doubles,
    /// The third and the fourth.
    Swaps,
    /// Sessions are not kept.
    Forgets,
    /// Retained messages are what was set first.
    KeepsTheFirst,
    /// Nothing is acknowledged after the fifth PUBLISH.
    FallsSilent,
    /// The third PUBLISH goes to nobody, twice, to everybody, or with another last byte.
    LosesThird,
    DoublesThird,
    SpreadsThird,
    DamagesThird,
    /// No PINGREQ is answered.
    IgnoresPings,
    /// The tenth PUBLISH at QoS 1, where loss and doubling are faults, reaches nobody who is there.
    LosesOne,
    /// It reaches everybody twice.
    DoublesOne,
    /// Wills are published for nobody, or after DISCONNECT too.
    ForgetsWills,
    KeepsWills,
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    retained: HashMap<Vec<u8>, Vec<u8>>,
    published: u64,
    published_at_qos_1: u64,
    wills: u16,
}

struct Will {
    topic: Vec<u8>,
    qos: u8,
    payload: Vec<u8>,
}

#[derive(Default)]
struct Session {
    filters: Vec<Vec<u8>>,
    /// PUBLISH packets that wait; the socket of a client that is there takes them at once.
    queue: Vec<Vec<u8>>,
    /// Sent and not acknowledged: by PUBACK, or by PUBREC.
    unacked: Vec<(u16, Vec<u8>)>,
    is_clean: bool,
    socket: Option<TcpStream>,
}

#[derive(Clone)]
pub struct FakeBroker {
    state: Arc<Mutex<State>>,
    fault: Fault,
    platform: Option<Arc<Mutex<Platform>>>,
    pub address: String,
}

impl FakeBroker {
    pub fn start(fault: Fault) -> FakeBroker {
        FakeBroker::with(fault, None)
    }

    pub fn with(fault: Fault, platform: Option<Arc<Mutex<Platform>>>) -> FakeBroker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let broker = FakeBroker {
            state: Arc::default(),
            fault,
            platform,
            address: listener.local_addr().unwrap().to_string(),
        };
        let server = broker.clone();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (server, socket) = (server.clone(), socket.unwrap());
                // A client that goes ends its thread.
                thread::spawn(move || server.serve(socket));
            }
        });
        broker
    }

    /// Of those that outlive their connection.
    pub fn session_count(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.sessions.values().filter(|session| !session.is_clean).count()
    }

    pub fn retained_count(&self) -> usize {
        self.state.lock().unwrap().retained.len()
    }

    /// Closes the connection of one session that is there.
    pub fn cut_one(&self) {
        let state = self.state.lock().unwrap();
        let socket = state.sessions.values().find_map(|session| session.socket.as_ref());
        socket.unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// A whole PUBLISH to the sessions that are there.
    pub fn deliver(&self, topic: &[u8], whole: &[u8]) {
        for session in self.state.lock().unwrap().sessions.values_mut() {
            if let Some(socket) = session
                .socket
                .as_mut()
                .filter(|_| session.filters.iter().any(|filter| filter == topic))
            {
                socket.write_all(whole).unwrap();
            }
        }
    }

    /// What the platform's rules say of a topic or a filter.
    fn is_allowed(&self, topic: &[u8]) -> bool {
        self.platform.is_none() || topic.starts_with(format!("{DEVICE_TOKEN}/").as_bytes())
    }

    fn serve(&self, socket: TcpStream) {
        let mut id = String::new();
        let client = socket.peer_addr().ok();
        let mut will = None;
        self.talk(socket, &mut id, &mut will);
        let mut state = self.state.lock().unwrap();
        if let Some(will) = will.filter(|_| self.fault != Fault::ForgetsWills) {
            publish_will(&mut state, &will);
        }
        let Some(session) = state.sessions.get_mut(&id) else {
            return;
        };
        // Another connection may have taken it over.
        if session
            .socket
            .as_ref()
            .is_some_and(|socket| socket.peer_addr().ok() == client)
            || session.socket.is_none()
        {
            session.socket = None;
            if session.is_clean {
                state.sessions.remove(&id);
            }
        }
    }

    fn talk(&self, mut socket: TcpStream, id: &mut String, will: &mut Option<Will>) -> Option<()> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 65_536]);
        while let Ok(n @ 1..) = socket.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..n]);
            let mut at = 0;
            while let Some(frame) = packet::next_frame(&bytes[at..]).unwrap() {
                let whole = &bytes[at..at + frame.len];
                at += frame.len;
                let mut state = self.state.lock().unwrap();
                match frame.kind() {
                    1 => {
                        let (flags, mut fields) = (frame.body[7], fields(&frame.body[10..]).into_iter());
                        *id = String::from_utf8(fields.next()?).unwrap();
                        if flags & 4 == 4 {
                            *will = Some(Will {
                                topic: fields.next()?,
                                qos: flags >> 3 & 3,
                                payload: fields.next()?,
                            });
                        }
                        if self.platform.is_some() && (id.len() > 23 || !fields.eq([USER, DEVICE_TOKEN].map(Vec::from)))
                        {
                            socket.write_all(&[0x20, 2, 0, 4]).ok()?;
                            return None;
                        }
                        self.connect(&mut state, id, flags & 2 == 2, &socket)?;
                    }
                    8 => {
                        let filter = &frame.body[4..frame.body.len() - 1];
                        let code = if self.is_allowed(filter) {
                            frame.body[frame.body.len() - 1]
                        } else {
                            0x80
                        };
                        socket.write_all(&[0x90, 3, 0, 1, code]).ok()?;
                        let retained = state.retained.iter().filter(|(topic, _)| matches(filter, topic));
                        let packets: Vec<_> = retained.map(|(_, packet)| packet.clone()).collect();
                        socket.write_all(&self.spoil(packets).concat()).ok()?;
                        let filters = &mut state.sessions.get_mut(id)?.filters;
                        filters.retain(|other| other != filter);
                        filters.push(filter.to_vec());
                    }
                    packet::PUBLISH => {
                        let publish = packet::publish(frame).unwrap();
                        state.published += 1;
                        state.published_at_qos_1 += u64::from(publish.qos == 1);
                        if (self.fault == Fault::FallsSilent && state.published > 5) || !self.is_allowed(publish.topic)
                        {
                            continue;
                        }
                        if let Some(platform) = &self.platform {
                            platform.lock().unwrap().take(publish, self.fault);
                        }
                        if publish.retain {
                            self.retain(&mut state, publish, whole);
                        }
                        let mut live = whole.to_vec();
                        live[0] &= !1;
                        let queued = live.clone();
                        let is_third = state.published == 3;
                        let is_tenth = publish.qos == 1 && state.published_at_qos_1 == 10;
                        match self.fault {
                            Fault::LosesThird if is_third => live.clear(),
                            Fault::LosesOne if is_tenth => live.clear(),
                            Fault::DoublesThird if is_third => live = live.repeat(2),
                            Fault::DoublesOne if is_tenth => live = live.repeat(2),
                            Fault::DamagesThird if is_third => *live.last_mut().expect("a whole packet") ^= 1,
                            _ => {}
                        }
                        let is_spread = self.fault == Fault::SpreadsThird && is_third;
                        let is_for = |session: &Session| match is_spread {
                            true => !session.filters.is_empty(),
                            false => session.filters.iter().any(|f| matches(f, publish.topic)),
                        };
                        for session in state.sessions.values_mut().filter(|session| is_for(session)) {
                            match &mut session.socket {
                                // One that has gone without a word is none of the publisher's business.
                                Some(socket) => {
                                    drop(socket.write_all(&live));
                                    if publish.qos > 0 && !live.is_empty() {
                                        session.unacked.push((publish.packet_id, live.clone()));
                                    }
                                }
                                None => session.queue.push(queued.clone()),
                            }
                        }
                        let mut ack = Vec::new();
                        match publish.qos {
                            0 => {}
                            1 => packet::acknowledgement(&mut ack, packet::PUBACK, publish.packet_id),
                            _ => packet::acknowledgement(&mut ack, packet::PUBREC, publish.packet_id),
                        }
                        socket.write_all(&ack).ok()?;
                    }
                    packet::PUBACK | packet::PUBREC => {
                        let packet_id = frame.packet_id().unwrap();
                        if let Some(session) = state.sessions.get_mut(id) {
                            session.unacked.retain(|(id, _)| *id != packet_id);
                        }
                        if frame.kind() == packet::PUBREC {
                            let mut answer = Vec::new();
                            packet::acknowledgement(&mut answer, packet::PUBREL, packet_id);
                            socket.write_all(&answer).ok()?;
                        }
                    }
                    packet::PUBREL => {
                        let mut ack = Vec::new();
                        packet::acknowledgement(&mut ack, packet::PUBCOMP, frame.packet_id().unwrap());
                        socket.write_all(&ack).ok()?;
                    }
                    12 if self.fault == Fault::IgnoresPings => {}
                    12 => socket.write_all(&[0xD0, 0]).ok()?,
                    14 => {
                        will.take_if(|_| self.fault != Fault::KeepsWills);
                        return None;
                    }
                    _ => {}
                }
            }
            bytes.drain(..at);
        }
        None
    }

    fn connect(&self, state: &mut State, id: &str, is_clean: bool, socket: &TcpStream) -> Option<()> {
        let mut socket = socket.try_clone().ok()?;
        if is_clean || self.fault == Fault::Forgets {
            state.sessions.remove(id);
        }
        let is_present = state.sessions.contains_key(id);
        socket.write_all(&[0x20, 2, u8::from(is_present), 0]).ok()?;
        let is_publisher = is_clean && id[10..].starts_with('p');
        if is_clean && !is_publisher && !id[10..].starts_with(['h', 'n', 'r', 's']) {
            return Some(());
        }
        let session = state.sessions.entry(id.to_string()).or_default();
        session.is_clean = is_clean;
        for (_, packet) in &mut session.unacked {
            packet[0] |= 8;
            socket.write_all(packet).ok()?;
        }
        let queue = self.spoil(std::mem::take(&mut session.queue));
        socket.write_all(&queue.concat()).ok()?;
        for packet in queue {
            let publish = packet::publish(packet::next_frame(&packet).unwrap().unwrap()).unwrap();
            if publish.qos > 0 {
                session.unacked.push((publish.packet_id, packet.clone()));
            }
        }
        session.socket = Some(socket);
        Some(())
    }

    fn retain(&self, state: &mut State, publish: packet::Publish<'_>, whole: &[u8]) {
        if publish.payload.is_empty() {
            state.retained.remove(publish.topic);
        } else if self.fault != Fault::KeepsTheFirst || !state.retained.contains_key(publish.topic) {
            state.retained.insert(publish.topic.to_vec(), whole.to_vec());
        }
    }

    fn spoil(&self, mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        if packets.len() > 4 {
            match self.fault {
                Fault::Loses => drop(packets.remove(2)),
                Fault::Doubles => packets.insert(2, packets[2].clone()),
                Fault::Swaps => packets.swap(2, 3),
                _ => {}
            }
        }
        packets
    }
}

fn matches(filter: &[u8], topic: &[u8]) -> bool {
    let mut levels = topic.split(|byte| *byte == b'/');
    for wanted in filter.split(|byte| *byte == b'/') {
        match (wanted, levels.next()) {
            (b"#", _) => return true,
            (b"+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn publish_will(state: &mut State, will: &Will) {
    state.wills += 1;
    let mut packet = Vec::new();
    let topic = std::str::from_utf8(&will.topic).unwrap();
    let at = packet::publish_packet(&mut packet, topic, will.qos, will.payload.len());
    packet[at..].copy_from_slice(&will.payload);
    packet[at - 2..at].copy_from_slice(&state.wills.to_be_bytes());
    for session in state.sessions.values_mut() {
        let wants = session.filters.iter().any(|filter| matches(filter, &will.topic));
        if let Some(socket) = session.socket.as_mut().filter(|_| wants) {
            drop(socket.write_all(&packet));
        }
    }
}

/// Those of a CONNECT behind its flags: client id, Will, user name, password.
fn fields(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (field, rest) = rest.split_at(u16::from_be_bytes(*length) as usize);
        fields.push(field.to_vec());
        bytes = rest;
    }
    fields
}
