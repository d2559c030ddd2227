//! Clients that do anything in any order, over one to three shards: what comes out must be what a Server may say.
//!
//! Owns    the world around the shards: sockets that take as much as the input says, rings and a store that may be behind.
//! Holds   - what an input plays is decided by its bytes alone;
//!         - what is written are whole packets of a Server, CONNACK first and once, nothing after the end;
//!         - a Packet Identifier is in use from the first send to the end of its flow [MQTT-2.3.1-4], and never more of them than
//!           are allowed; what is sent again is sent with the identifier and the content it had;
//!         - a message of QoS 2 comes to a Session once for each time it was published, however often its PUBLISH came
//!           [MQTT-4.3.3-1]; one of QoS 1 whose PUBLISH came once does too;
//!         - at every moment what was matched is delivered, dropped or queued; when all have left for good, nothing is left.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fuzz::limits;
use fuzz::metrics::Counters;
use fuzz::mqtt::client::{self, ServerPacket, decode_from_server};
use fuzz::mqtt::decode::decode;
use fuzz::mqtt::encode;
use fuzz::mqtt::frame::{Framing, next_frame};
use fuzz::mqtt::packet::{Connect, Level, Packet, PacketId, Publish, QoS, Will};
use fuzz::mqtt::reason::ConnectReturnCode;
use fuzz::registry::access::Access;
use fuzz::registry::datapoint::StoredDatapoints;
use fuzz::shard::greeting::{Greeting, Identity, greet};
use fuzz::shard::{ConnectionId, Input, Lane, Limits, Millis, Output, PeerId, Shard, ShardConfig, UnixTime};
use fuzz::store::memory::Memory;

use fuzz::choices::Choices;

const CLIENTS: usize = 4;
const TOPICS: [&str; 7] = ["a", "a/b", "a/b/c", "b", "b/b", "$a/b", "c/d/e/f"];
const FILTERS: [&str; 10] = [
    "a", "a/b", "a/+", "a/#", "#", "+/b", "b/#", "$a/+", "c/d/e/f", "+/+/+/+",
];
const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
/// Before the number in a payload of ours.
const MARK: &[u8] = b"no. ";
const ACTIONS_MAX: usize = 400;

pub fn check(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut world = World::new(&mut choices);
    for _ in 0..ACTIONS_MAX {
        if choices.is_over() {
            break;
        }
        world.act(&mut choices);
        world.check_ledger();
    }
    world.end();
}

struct World {
    shards: Vec<Shard>,
    stores: Vec<Memory>,
    links: Vec<Link>,
    /// The link that each client uses.
    clients: [Client; CLIENTS],
    /// What is known of a Session, by its client identifier.
    sessions: BTreeMap<String, Session>,
    /// Batches that have not come, per sender, receiver and lane.
    rings: BTreeMap<(usize, usize, bool), VecDeque<Vec<u8>>>,
    are_rings_slow: bool,
    is_store_slow: bool,
    /// Records that the store has, and has not confirmed.
    unconfirmed: Vec<u64>,
    now: Millis,
    inflight_max: usize,
    next_number: u32,
    /// An input that writes bytes of its own may say of a message what it likes.
    is_counted: bool,
}

/// What a client means to do, by the rules.
#[derive(Default)]
struct Client {
    link: Option<usize>,
    /// Packet Identifiers of its PUBLISH packets that are not over: the message.
    sent: BTreeMap<u16, Sent>,
}

#[derive(Clone, Copy)]
struct Sent {
    number: u32,
    qos: QoS,
    topic: &'static str,
    released: bool,
}

#[derive(Default)]
struct Link {
    client_id: String,
    client: usize,
    home: Option<usize>,
    /// Sent by the client, not consumed.
    inbound: Vec<u8>,
    /// So many bytes that the shard has written were looked at; the socket has not taken them.
    seen: usize,
    /// The socket takes nothing.
    is_stalled: bool,
    paused: bool,
    closed: bool,
    connack_seen: bool,
    clean_session: bool,
    level: Option<Level>,
}

/// What the Server has said to a Session.
#[derive(Default)]
struct Session {
    in_flight: BTreeMap<u16, InFlight>,
    /// Identifiers of a PUBREC out of turn, or a PUBCOMP before its PUBREL: a PUBREL may come for them when there is no flow.
    out_of_turn: BTreeSet<u16>,
    /// Its last connection wanted none that outlives it.
    is_clean: bool,
    /// Numbers of messages that came, of a live subscription.
    came: BTreeSet<u32>,
}

struct InFlight {
    qos: QoS,
    topic: String,
    payload: Vec<u8>,
    step: Step,
    /// Its last packet came over the connection there is now: an acknowledgement counts.
    is_live: bool,
    /// There was a CONNACK since that does not say whether the Session is the one that it was: one of level 3 does not, and none
    /// does after another that was not heard.
    is_doubtful: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    Sent,
    /// PUBREC was said.
    Received,
    /// PUBREL was heard.
    Released,
}

impl World {
    fn new(choices: &mut Choices<'_>) -> World {
        let cores = 1 + u16::from(choices.byte() % 3);
        let inflight_max = 1 + choices.below(4);
        let limits = Limits {
            packet_bytes_max: 2_048,
            inflight_max,
            queued_max: 1 + choices.below(6),
            outbox_bytes_max: choices.one_of(&[64, 512, limits::OUTBOX_BYTES_MAX]),
            subscriptions_max: 6,
            session_expiry_s: choices.one_of(&[None, Some(1), Some(3_600)]),
            ..Limits::default()
        };
        let seed = u64::from(choices.byte());
        let shard = |core| {
            Shard::new(ShardConfig {
                core: PeerId(core),
                cores,
                shard_levels: limits::SHARD_LEVELS,
                hash_key: [seed, 2, 3, 4],
                limits: limits.clone(),
                access: Access::Open,
                unix_time: UnixTime::default(),
                v1_topics: false,
                stored_datapoints: StoredDatapoints::until(0),
            })
        };
        World {
            shards: (0..cores).map(shard).collect(),
            stores: (0..cores).map(|_| Memory::default()).collect(),
            links: Vec::new(),
            clients: Default::default(),
            sessions: BTreeMap::new(),
            rings: BTreeMap::new(),
            are_rings_slow: false,
            is_store_slow: false,
            unconfirmed: vec![0; cores.into()],
            now: Millis(1_000_000),
            inflight_max,
            next_number: 0,
            is_counted: true,
        }
    }

    // --- what clients do ---------------------------------------------------------------------------------------------

    fn act(&mut self, choices: &mut Choices<'_>) {
        let action = choices.byte();
        let client = choices.below(CLIENTS);
        match action % 20 {
            0 | 1 => self.connect(client, choices),
            2 => self.disconnect(client, choices.byte().is_multiple_of(2)),
            3 | 4 => self.subscribe(client, choices),
            5 => self.unsubscribe(client, choices),
            6..=9 => self.publish(client, choices),
            10 => self.publish_again(client, choices),
            11 | 12 => self.acknowledge(client, usize::from(choices.byte())),
            13 => self.release(client),
            14 => {
                if let Some(link) = self.clients[client].link {
                    self.links[link].is_stalled = choices.byte().is_multiple_of(2);
                }
            }
            15 => self.are_rings_slow = choices.byte().is_multiple_of(2),
            16 => self.is_store_slow = choices.byte().is_multiple_of(2),
            17 => self.pass(u64::from(choices.byte()) * 40),
            18 => {
                let length = choices.below(48);
                self.write_anything(client, choices.take(length));
            }
            _ => self.acknowledge_anything(client, choices),
        }
        self.settle();
    }

    fn connect(&mut self, client: usize, choices: &mut Choices<'_>) {
        let flags = choices.byte();
        let will = (flags & 2 > 0).then(|| Will {
            topic: choices.one_of(&TOPICS).to_owned(),
            payload: b"gone".to_vec(),
            qos: choices.one_of(&QOS),
            retain: flags & 4 > 0,
        });
        let connect = Connect {
            level: if flags & 8 > 0 { Level::V31 } else { Level::V311 },
            clean_session: flags & 1 > 0,
            keep_alive_s: choices.one_of(&[0, 0, 1, 10]),
            client_id: format!("client {client}"),
            will,
            user_name: None,
            password: None,
        };
        let mut bytes = Vec::new();
        client::connect(&mut bytes, &connect);
        let link = self.open(client);
        self.send(link, &bytes);
    }

    /// A new connection. The one before, if there is one, is left as it is: the Server finds out.
    fn open(&mut self, client: usize) -> usize {
        self.links.push(Link {
            client,
            ..Link::default()
        });
        self.clients[client].link = Some(self.links.len() - 1);
        self.links.len() - 1
    }

    fn send(&mut self, link: usize, bytes: &[u8]) {
        let link = &mut self.links[link];
        if !link.closed {
            link.inbound.extend_from_slice(bytes);
        }
    }

    /// The client's connection, once it has been let in.
    fn served(&self, client: usize) -> Option<usize> {
        let link = self.clients[client].link?;
        (self.links[link].connack_seen && !self.links[link].closed).then_some(link)
    }

    fn disconnect(&mut self, client: usize, says_so: bool) {
        let Some(link) = self.clients[client].link else {
            return;
        };
        if says_so {
            self.send(link, &[0xe0, 0]);
            self.settle();
        }
        self.hang_up(link);
    }

    fn hang_up(&mut self, link: usize) {
        if self.links[link].closed {
            return;
        }
        if let Some(core) = self.links[link].home {
            // What the socket has not taken was sent nevertheless.
            self.look_at(core, link);
            self.links[link].closed = true;
            self.handle(core, Input::Disconnected { connection: id(link) });
        }
        self.links[link].closed = true;
    }

    fn subscribe(&mut self, client: usize, choices: &mut Choices<'_>) {
        let Some(link) = self.served(client) else { return };
        let count = 1 + choices.below(3);
        let filters: Vec<_> = (0..count)
            .map(|_| (choices.one_of(&FILTERS), choices.one_of(&QOS)))
            .collect();
        let mut bytes = Vec::new();
        client::subscribe(&mut bytes, packet_id(choices.byte()), &filters);
        self.send(link, &bytes);
    }

    fn unsubscribe(&mut self, client: usize, choices: &mut Choices<'_>) {
        let Some(link) = self.served(client) else { return };
        let mut bytes = Vec::new();
        client::unsubscribe(&mut bytes, packet_id(choices.byte()), &[choices.one_of(&FILTERS)]);
        self.send(link, &bytes);
    }

    fn publish(&mut self, client: usize, choices: &mut Choices<'_>) {
        let Some(link) = self.served(client) else { return };
        let qos = choices.one_of(&QOS);
        let topic = choices.one_of(&TOPICS);
        let flags = choices.byte();
        let id = packet_id(flags >> 2);
        if qos != QoS::AtMostOnce && self.clients[client].sent.contains_key(&id.get()) {
            return;
        }
        self.next_number += 1;
        let number = self.next_number;
        let mut bytes = Vec::new();
        let is_clearing = flags & 2 > 0;
        let payload = if is_clearing { Vec::new() } else { payload(number) };
        let packet_id = (qos != QoS::AtMostOnce).then_some(id);
        encode::publish(&mut bytes, false, qos, flags & 1 > 0, topic, packet_id, &payload);
        if let (Some(id), false) = (packet_id, is_clearing) {
            let sent = Sent {
                number,
                qos,
                topic,
                released: false,
            };
            self.clients[client].sent.insert(id.get(), sent);
        }
        self.send(link, &bytes);
    }

    /// The PUBLISH of an unfinished flow of QoS 2 comes once more, or its PUBREL.
    fn publish_again(&mut self, client: usize, choices: &mut Choices<'_>) {
        let Some(link) = self.served(client) else { return };
        let flows: Vec<(u16, Sent)> = self.clients[client]
            .sent
            .iter()
            .filter(|(_, sent)| sent.qos == QoS::ExactlyOnce)
            .map(|(id, sent)| (*id, *sent))
            .collect();
        if flows.is_empty() {
            return;
        }
        let (id, sent) = flows[choices.below(flows.len())];
        let id = PacketId::new(id).expect("it was one");
        let mut bytes = Vec::new();
        if sent.released {
            encode::pubrel(&mut bytes, id);
        } else {
            encode::publish(
                &mut bytes,
                true,
                sent.qos,
                false,
                sent.topic,
                Some(id),
                &payload(sent.number),
            );
        }
        self.send(link, &bytes);
    }

    /// PUBREL for what PUBREC was heard of, or not heard of yet.
    fn release(&mut self, client: usize) {
        let Some(link) = self.served(client) else { return };
        let mut bytes = Vec::new();
        for (id, sent) in &mut self.clients[client].sent {
            if sent.qos == QoS::ExactlyOnce {
                sent.released = true;
                encode::pubrel(&mut bytes, PacketId::new(*id).expect("it was one"));
            }
        }
        self.send(link, &bytes);
    }

    /// What the Server waits for from this client, the first few of it.
    fn acknowledge(&mut self, client: usize, count: usize) {
        let Some(link) = self.served(client) else { return };
        let Some(session) = self.sessions.get(&self.links[link].client_id) else {
            return;
        };
        let mut bytes = Vec::new();
        for (id, flight) in session
            .in_flight
            .iter()
            .filter(|(_, flight)| flight.is_live)
            .take(count)
        {
            let id = PacketId::new(*id).expect("it was one");
            match (flight.qos, flight.step) {
                (QoS::AtLeastOnce, _) => encode::puback(&mut bytes, id),
                (_, Step::Sent) => encode::pubrec(&mut bytes, id),
                // Its PUBREL comes.
                (_, Step::Received) => {}
                (_, Step::Released) => encode::pubcomp(&mut bytes, id),
            }
        }
        self.send(link, &bytes);
    }

    fn acknowledge_anything(&mut self, client: usize, choices: &mut Choices<'_>) {
        let Some(link) = self.served(client) else { return };
        let id = packet_id(choices.byte());
        let mut bytes = Vec::new();
        match choices.byte() % 4 {
            0 => encode::puback(&mut bytes, id),
            1 => encode::pubrec(&mut bytes, id),
            2 => encode::pubcomp(&mut bytes, id),
            _ => encode::pubrel(&mut bytes, id),
        }
        self.send(link, &bytes);
        // A PUBREL out of turn ends a flow of QoS 2, and its PUBLISH then begins another.
        self.is_counted = false;
    }

    fn write_anything(&mut self, client: usize, bytes: &[u8]) {
        let link = match self.clients[client].link {
            Some(link) if !self.links[link].closed => link,
            _ => self.open(client),
        };
        self.send(link, bytes);
        self.is_counted = false;
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus(ms);
        for core in 0..self.shards.len() {
            self.handle(core, Input::Tick);
        }
    }

    // --- what is around the shards -----------------------------------------------------------------------------------

    fn handle(&mut self, core: usize, input: Input<'_>) -> usize {
        let consumed = self.shards[core].handle(input, self.now);
        self.drain(core);
        consumed
    }

    fn drain(&mut self, core: usize) {
        while let Some(output) = self.shards[core].poll_output() {
            match output {
                Output::Transmit(id) => self.look_at(core, id.index as usize),
                Output::Close(id, _) => {
                    let link = id.index as usize;
                    self.look_at(core, link);
                    assert!(!self.links[link].closed, "it is closed once");
                    self.links[link].closed = true;
                    self.shards[core].handle(Input::Disconnected { connection: id }, self.now);
                }
                Output::Pause(id) => self.links[id.index as usize].paused = true,
                Output::Resume(id) => self.links[id.index as usize].paused = false,
                Output::Forward(peer, lane) => {
                    while let Some(batch) = self.shards[core].take_batch(peer, lane) {
                        let ring = (core, usize::from(peer.0), lane == Lane::ToHome);
                        self.rings.entry(ring).or_default().push_back(batch);
                    }
                }
                Output::Persist(number, record) => {
                    self.stores[core].push(number, record);
                    self.unconfirmed[core] += 1;
                }
                Output::Fetch(fetch) => self.stores[core].fetch(*fetch),
                Output::Answer(_) | Output::Notify(_) => panic!("nobody asks, and nobody has events"),
            }
        }
    }

    /// Reads what the shard has written to a socket since the last time.
    fn look_at(&mut self, core: usize, link: usize) {
        let unsent = self.shards[core].unsent(id(link));
        if self.links[link].closed {
            assert!(unsent.is_empty(), "nothing comes after the end");
            return;
        }
        let new = unsent[self.links[link].seen..].to_vec();
        self.links[link].seen = unsent.len();
        let mut rest = &new[..];
        while !rest.is_empty() {
            let Ok(Framing::Whole(frame)) = next_frame(rest, usize::MAX) else {
                panic!("packets are written whole");
            };
            rest = &rest[frame.len..];
            let packet = decode_from_server(frame).unwrap_or_else(|error| panic!("the server wrote {error:?}"));
            self.heard(link, packet);
        }
    }

    /// Everything moves that may.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for link in 0..self.links.len() {
                moved |= self.take(link);
                while self.present(link) {
                    moved = true;
                }
            }
            if !self.are_rings_slow {
                moved |= self.carry();
            }
            if !self.is_store_slow {
                moved |= self.confirm();
            }
            if !moved {
                return;
            }
        }
    }

    fn take(&mut self, link: usize) -> bool {
        let state = &mut self.links[link];
        let Some(core) = state.home.filter(|_| !state.closed && !state.is_stalled) else {
            return false;
        };
        self.look_at(core, link);
        let bytes = std::mem::take(&mut self.links[link].seen);
        if bytes > 0 {
            self.handle(
                core,
                Input::Sent {
                    connection: id(link),
                    bytes,
                },
            );
        }
        bytes > 0
    }

    fn present(&mut self, link: usize) -> bool {
        let state = &mut self.links[link];
        if state.closed || state.paused || state.inbound.is_empty() {
            return false;
        }
        let Some(core) = state.home else {
            return self.greet(link);
        };
        // What an acknowledgement is for may have been written to a socket that takes nothing.
        self.look_at(core, link);
        // Packet by packet, so that what they mean is known before the shard answers.
        let inbound = std::mem::take(&mut self.links[link].inbound);
        let length = match next_frame(&inbound, usize::MAX) {
            Ok(Framing::Whole(frame)) => {
                if let Ok(packet) = decode(frame, Level::V31) {
                    self.said(link, packet);
                }
                frame.len
            }
            _ => inbound.len(),
        };
        let (now, later) = inbound.split_at(length);
        let consumed = self.handle(
            core,
            Input::Received {
                connection: id(link),
                bytes: now,
            },
        );
        assert!(consumed <= now.len());
        let mut rest = now[consumed..].to_vec();
        rest.extend_from_slice(later);
        let has_moved = consumed > 0;
        let state = &mut self.links[link];
        rest.append(&mut state.inbound);
        state.inbound = rest;
        has_moved
    }

    fn greet(&mut self, link: usize) -> bool {
        let greeting = greet(
            &self.links[link].inbound,
            || Identity::Claimed,
            &Access::Open,
            limits::CLIENT_ID_CHARS_MAX,
            || format!("fresh {link}"),
        );
        let state = &mut self.links[link];
        match greeting {
            Greeting::Incomplete => return false,
            Greeting::Refused(_) | Greeting::Malformed(_) => state.closed = true,
            Greeting::Accepted {
                connect,
                account,
                consumed,
            } => {
                state.inbound.drain(..consumed);
                state.client_id = connect.client_id.clone();
                state.clean_session = connect.clean_session;
                state.level = Some(connect.level);
                let home = usize::from(self.shards[0].home(account, &connect.client_id).0);
                state.home = Some(home);
                let before = self.sessions.get(&connect.client_id);
                if connect.clean_session || before.is_some_and(|session| session.is_clean) {
                    self.forget(&connect.client_id);
                }
                self.handle(
                    home,
                    Input::Connected {
                        connection: id(link),
                        connect,
                        account,
                    },
                );
            }
        }
        true
    }

    /// A Session ends when its client says that it wants none, or comes back and had wanted none, whether it hears of that or not
    /// [MQTT-3.1.2-6].
    fn forget(&mut self, client_id: &str) {
        for link in 0..self.links.len() {
            if let Some(core) = self.links[link].home
                && self.links[link].client_id == client_id
            {
                self.look_at(core, link);
                self.clients[self.links[link].client].sent.clear();
            }
        }
        self.sessions.remove(client_id);
    }

    /// One batch of every ring, where its receiver takes it.
    fn carry(&mut self) -> bool {
        let mut moved = false;
        for ring in self.rings.keys().copied().collect::<Vec<_>>() {
            let (from, to, is_to_home) = ring;
            if !is_to_home && !self.shards[to].takes_requests() {
                continue;
            }
            let Some(batch) = self.rings.get_mut(&ring).and_then(VecDeque::pop_front) else {
                continue;
            };
            let from = PeerId(u16::try_from(from).expect("there are few cores"));
            self.handle(to, Input::Batch { from, bytes: &batch });
            moved = true;
        }
        moved
    }

    fn confirm(&mut self) -> bool {
        let mut moved = false;
        for core in 0..self.shards.len() {
            if std::mem::take(&mut self.unconfirmed[core]) > 0
                && let Some(up_to) = self.stores[core].committed()
            {
                self.handle(core, Input::Committed { up_to });
                moved = true;
            }
            while let Some(fetched) = self.stores[core].fetched() {
                self.handle(core, Input::Fetched(Box::new(fetched)));
                moved = true;
            }
        }
        moved
    }

    // --- what must hold ----------------------------------------------------------------------------------------------

    /// The Server has been told so, and will act on it if it is about what this connection has carried.
    fn said(&mut self, link: usize, packet: Packet<'_>) {
        let (Packet::PubAck(id) | Packet::PubRec(id) | Packet::PubComp(id)) = packet else {
            return;
        };
        let session = self.sessions.entry(self.links[link].client_id.clone()).or_default();
        let flight = session.in_flight.get_mut(&id.get()).filter(|flight| flight.is_live);
        match (packet, flight) {
            (Packet::PubAck(_), Some(flight)) if flight.qos == QoS::AtLeastOnce => {
                session.in_flight.remove(&id.get());
            }
            (Packet::PubRec(_), Some(flight)) if flight.qos == QoS::ExactlyOnce && flight.step == Step::Sent => {
                flight.step = Step::Received;
            }
            (Packet::PubRec(_), _) => drop(session.out_of_turn.insert(id.get())),
            (Packet::PubComp(_), Some(flight)) if flight.step != Step::Sent => {
                if flight.step == Step::Received {
                    session.out_of_turn.insert(id.get());
                }
                session.in_flight.remove(&id.get());
            }
            _ => {}
        }
    }

    fn heard(&mut self, link: usize, packet: ServerPacket<'_>) {
        let was_let_in_unheard = self.was_let_in_unheard(link);
        let state = &mut self.links[link];
        if let ServerPacket::ConnAck { session_present, code } = packet {
            assert!(!state.connack_seen, "one CONNACK");
            assert_eq!(code, ConnectReturnCode::Accepted);
            assert!(!(state.clean_session && session_present), "[MQTT-3.2.2-1]");
            state.connack_seen = true;
            let session = self.sessions.entry(state.client_id.clone()).or_default();
            let is_unsaid = state.level == Some(Level::V31) && !state.clean_session && !session.is_clean;
            let is_doubtful = is_unsaid || was_let_in_unheard;
            if session_present || is_unsaid {
                for flight in session.in_flight.values_mut() {
                    flight.is_live = false;
                    flight.is_doubtful |= is_doubtful;
                }
            } else {
                *session = Session::default();
            }
            session.is_clean = state.clean_session;
            if !session_present || is_doubtful {
                self.clients[state.client].sent.clear();
            }
            return;
        }
        assert!(state.connack_seen, "CONNACK comes first [MQTT-3.2.0-1]");
        let client = state.client;
        let client_id = state.client_id.clone();
        let session = self.sessions.get_mut(&client_id).expect("there was a CONNACK");
        match packet {
            ServerPacket::Publish(publish) => self.delivered(&client_id, &publish),
            ServerPacket::PubRel(id) => {
                let Some(flight) = session.in_flight.get_mut(&id.get()) else {
                    assert!(session.out_of_turn.contains(&id.get()), "PUBREL of no flow");
                    return;
                };
                if !flight.is_live && flight.is_doubtful && session.out_of_turn.contains(&id.get()) {
                    return;
                }
                assert_ne!(flight.step, Step::Sent, "PUBREL follows PUBREC");
                (flight.step, flight.is_live, flight.is_doubtful) = (Step::Released, true, false);
            }
            ServerPacket::PubAck(id) | ServerPacket::PubComp(id) => {
                self.clients[client].sent.remove(&id.get());
            }
            _ => {}
        }
    }

    /// Whether the client's connection before this one was let in, and ended before it heard whether the Session was still there.
    fn was_let_in_unheard(&self, link: usize) -> bool {
        let client_id = &self.links[link].client_id;
        let mut before = self.links[..link].iter().rev();
        before
            .find(|before| before.home.is_some() && before.client_id == *client_id)
            .is_some_and(|before| !before.connack_seen)
    }

    fn delivered(&mut self, client_id: &str, publish: &Publish<'_>) {
        let session = self.sessions.get_mut(client_id).expect("there was a CONNACK");
        let Some(id) = publish.packet_id else {
            return;
        };
        let flight = InFlight {
            qos: publish.qos,
            topic: publish.topic.as_str().to_owned(),
            payload: publish.payload.to_vec(),
            step: Step::Sent,
            is_live: true,
            is_doubtful: false,
        };
        let before = session.in_flight.get_mut(&id.get());
        match before.filter(|before| publish.dup || before.is_live || !before.is_doubtful) {
            None => {
                assert!(!publish.dup, "{id:?} was never sent");
                session.in_flight.insert(id.get(), flight);
            }
            Some(before) => {
                assert!(publish.dup, "{id:?} is in flight [MQTT-2.3.1-4]");
                assert!(
                    before.step == Step::Sent && !before.is_live,
                    "it is not to be sent again"
                );
                let (was, is) = (
                    (before.qos, &before.topic, &before.payload),
                    (flight.qos, &flight.topic, &flight.payload),
                );
                assert_eq!(was, is, "it is sent again as it was [MQTT-4.4.0-1]");
                (before.is_live, before.is_doubtful) = (true, false);
            }
        }
        let live = session.in_flight.values().filter(|flight| flight.is_live);
        assert!(live.count() <= self.inflight_max);
        if publish.dup || publish.retain || !self.is_counted {
            return;
        }
        if let Some(number) = publish.payload.strip_prefix(MARK) {
            let number = u32::from_be_bytes(number.try_into().expect("it is one of ours"));
            assert!(session.came.insert(number), "message {number} came twice");
        }
    }

    fn check_ledger(&self) {
        let mut counters = Counters::default();
        self.shards.iter().for_each(|shard| counters.add(&shard.report()));
        let delivered = counters.delivered_qos0 + counters.delivered_qos1 + counters.delivered_qos2;
        let dropped = counters.dropped_outbox_full
            + counters.dropped_queue_full
            + counters.dropped_away
            + counters.dropped_session_ended
            + counters.expired;
        assert_eq!(
            counters.matched + counters.queued_restored,
            delivered + dropped + counters.queued_now,
            "the ledger: {counters:?}"
        );
        assert_eq!((counters.dropped_damaged, counters.retained_damaged), (0, 0));
    }

    /// What is behind catches up, everybody goes, and every Session is ended by a connection that wants none.
    fn end(mut self) {
        self.are_rings_slow = false;
        self.is_store_slow = false;
        for link in &mut self.links {
            link.is_stalled = false;
        }
        self.settle();
        // Full queues hold publishers back for so long.
        for _ in 0..4 {
            self.pass(limits::OVERFLOW_WAIT_MS + 250);
            self.settle();
        }
        for link in 0..self.links.len() {
            self.hang_up(link);
        }
        self.settle();
        self.check_ledger();
        let client_ids: BTreeSet<String> = self.links.iter().map(|link| link.client_id.clone()).collect();
        for client_id in client_ids.into_iter().filter(|client_id| !client_id.is_empty()) {
            let connect = Connect {
                level: Level::V311,
                clean_session: true,
                keep_alive_s: 0,
                client_id,
                will: None,
                user_name: None,
                password: None,
            };
            let mut bytes = Vec::new();
            client::connect(&mut bytes, &connect);
            let link = self.open(0);
            self.send(link, &bytes);
            self.settle();
            assert!(self.links[link].connack_seen, "everybody may come back");
            self.hang_up(link);
            self.settle();
        }
        self.check_ledger();
        for shard in &self.shards {
            assert_eq!(
                (shard.connection_count(), shard.session_count(), shard.filter_count()),
                (0, 0, 0)
            );
            assert!(shard.is_quiescent());
        }
    }
}

fn id(link: usize) -> ConnectionId {
    ConnectionId {
        index: u32::try_from(link).expect("inputs are short"),
        generation: 0,
    }
}

/// One of few, so that they meet.
fn packet_id(choice: u8) -> PacketId {
    PacketId::new(1 + u16::from(choice % 6)).expect("it is not zero")
}

fn payload(number: u32) -> Vec<u8> {
    [MARK, &number.to_be_bytes()].concat()
}
