//! The clients: what they do, what they remember, and what they check of what they get.
//!
//! Called  by `world`, one act or one read at a time.
//! Holds   - clients keep the rules of MQTT 3.1.1 (but for one that misbehaves once and is closed for it), so whatever
//!           looks wrong to them is the server's doing;
//!         - what they write and read goes through mqttbytes, a codec that is not ours; only a level 3 CONNECT, which it
//!           does not know, is written by our own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mqttbytes::v4;
use skein::mqtt::client;
use skein::mqtt::packet::{Connect, Level, QoS, Will};

use skein::shard::record::SessionNumber;

use crate::abuse::{self, is_abuse};
use crate::faults::Profile;
use crate::oracle::{Message, Oracle, Seen, message_number};
use crate::random::Random;
use crate::topics::{Purpose, Retired, Route};
use crate::world::{PACKET_BYTES_MAX, World};

/// A PUBLISH of the client's that is not over.
pub struct Outgoing {
    pub id: u16,
    pub message: usize,
    /// QoS 2: PUBREC came.
    is_released: bool,
}

/// A subscription that the server has confirmed and the client has not given up.
pub struct Subscription {
    /// The lowest that may be in force.
    qos: QoS,
    since: u64,
    /// The connection of the first SUBACK.
    pub link: usize,
    /// Never asked for again, so that its retained messages are known to have come.
    is_simple: bool,
}

/// A filter under which messages may come.
struct Held {
    qos_max: QoS,
    removed_at: Option<u64>,
    /// Counts SUBSCRIBEs.
    generation: u32,
    /// Its token was rotated away: the server takes it away, sooner or later.
    is_retired: bool,
}

/// What a client knows of its durable Session.
pub struct Promised {
    client: usize,
    number: SessionNumber,
    subscriptions: Vec<(String, QoS)>,
    removed: Vec<String>,
}

#[derive(Default)]
struct Copies {
    fresh: u32,
    /// At QoS 2.
    exact: u32,
}

pub struct Client {
    /// Of whose account it is; 0 where there are none.
    pub tenant: usize,
    prefers_durable: bool,
    level: Level,
    pub is_slow: bool,
    /// The connection that was closed, or will be, for a malformed packet.
    pub misbehaved: Option<usize>,
    pub link: Option<usize>,
    /// CONNACK came.
    pub ready: bool,
    clean_session: bool,
    /// It has forgotten its Session, and does not know whether the server has.
    must_be_clean: bool,
    rx: Vec<u8>,
    last_sent_ms: u64,
    next_id: u16,
    /// It takes the smallest identifier that is free, not the next.
    reuses_ids: bool,
    pub outgoing: Vec<Outgoing>,
    /// What this connection must acknowledge, in order.
    expected: VecDeque<(u16, QoS)>,
    /// Answers that the client takes its time to give.
    replies: VecDeque<v4::Packet>,
    /// QoS 2 messages that came and are not released; `None` for one without a number.
    received_ids: BTreeMap<u16, Option<usize>>,
    /// Of those, the ones of another Session than this one may be: they may begin again.
    stray_ids: BTreeSet<u16>,
    /// A SUBACK of this Session came.
    has_suback: bool,
    pub subscribing: BTreeMap<u16, Vec<(usize, QoS, bool)>>,
    unsubscribing: BTreeMap<u16, Vec<(usize, u32)>>,
    pub subscriptions: BTreeMap<usize, Subscription>,
    held: BTreeMap<usize, Held>,
    copies: BTreeMap<usize, Copies>,
    pub seen: Seen,
    /// The server's count of Sessions when this one began.
    epoch: u64,
    /// Topics whose last retained message has come, and which.
    pub retained_seen: BTreeMap<usize, usize>,
}

impl Client {
    pub fn new(random: &mut Random, profile: &Profile, tenant: usize) -> Client {
        Client {
            tenant,
            prefers_durable: random.percent(profile.durable_percent),
            level: if random.percent(profile.v31_percent) {
                Level::V31
            } else {
                Level::V311
            },
            is_slow: random.percent(profile.slow_reader_percent),
            misbehaved: None,
            link: None,
            ready: false,
            clean_session: true,
            must_be_clean: false,
            rx: Vec::new(),
            last_sent_ms: 0,
            next_id: if random.percent(20) { 65_530 } else { 1 },
            reuses_ids: random.percent(50),
            outgoing: Vec::new(),
            expected: VecDeque::new(),
            replies: VecDeque::new(),
            received_ids: BTreeMap::new(),
            stray_ids: BTreeSet::new(),
            has_suback: false,
            subscribing: BTreeMap::new(),
            unsubscribing: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            held: BTreeMap::new(),
            copies: BTreeMap::new(),
            seen: Seen::new(),
            epoch: 0,
            retained_seen: BTreeMap::new(),
        }
    }

    pub fn is_at_rest(&self) -> bool {
        self.outgoing.is_empty()
            && self.expected.is_empty()
            && self.replies.is_empty()
            && self.subscribing.is_empty()
            && self.unsubscribing.is_empty()
            && self.received_ids.keys().all(|id| self.stray_ids.contains(id))
            && self.rx.is_empty()
    }

    /// In words.
    pub fn waits_for(&self) -> String {
        let outgoing: Vec<(u16, usize)> = self.outgoing.iter().map(|out| (out.id, out.message)).collect();
        format!(
            "link {:?} ready {}, outgoing {outgoing:?}, acknowledgements {:?}, SUBACK {:?}, UNSUBACK {:?}, released {:?}, {} bytes",
            self.link,
            self.ready,
            self.expected,
            self.subscribing.keys(),
            self.unsubscribing.keys(),
            self.received_ids,
            self.rx.len()
        )
    }

    /// The QoS, at least, at which this Session must get a message that was sent then.
    pub fn is_due(&self, oracle: &Oracle, client: usize, message: &Message, sent_at: u64) -> Option<QoS> {
        if self.epoch != oracle.sessions[client].epoch {
            return None;
        }
        let wants = |(filter, subscription): (&usize, &Subscription)| {
            (subscription.since < sent_at && oracle.topics.matches(*filter, message.topic))
                .then(|| message.qos.min(subscription.qos))
        };
        self.subscriptions.iter().filter_map(wants).max()
    }

    /// The Session is over: nothing is expected of it any more.
    fn forget(&mut self) -> Seen {
        self.outgoing.clear();
        self.received_ids.clear();
        self.stray_ids.clear();
        self.has_suback = false;
        self.subscriptions.clear();
        self.held.clear();
        self.copies.clear();
        self.retained_seen.clear();
        std::mem::take(&mut self.seen)
    }

    /// The token of its account is rotated away: of its subscriptions nothing is certain any more.
    pub fn retire_subscriptions(&mut self) {
        self.subscriptions.clear();
        self.held.values_mut().for_each(|held| held.is_retired = true);
        for (.., is_wanted) in self.subscribing.values_mut().flatten() {
            *is_wanted = false;
        }
    }

    /// Every core knows: what is sent now does not come.
    pub fn end_retired_subscriptions(&mut self, moment: u64) {
        for held in self.held.values_mut().filter(|held| held.is_retired) {
            held.removed_at.get_or_insert(moment);
        }
    }

    /// The connection is over.
    fn detach(&mut self) {
        self.link = None;
        self.ready = false;
        self.rx.clear();
        self.expected.clear();
        self.replies.clear();
        self.subscribing.clear();
        self.unsubscribing.clear();
    }

    fn fresh_id(&mut self) -> u16 {
        if self.reuses_ids {
            self.next_id = 1;
        }
        loop {
            let id = self.next_id;
            self.next_id = if id == u16::MAX { 1 } else { id + 1 };
            let in_use = self.outgoing.iter().any(|out| out.id == id)
                || self.expected.iter().any(|(expected, _)| *expected == id)
                || self.subscribing.contains_key(&id)
                || self.unsubscribing.contains_key(&id);
            if !in_use {
                return id;
            }
        }
    }
}

fn their(qos: QoS) -> mqttbytes::QoS {
    mqttbytes::qos(qos as u8).expect("0, 1 or 2")
}

fn ours(qos: mqttbytes::QoS) -> QoS {
    QoS::from_bits(qos as u8).expect("0, 1 or 2")
}

fn packet_bytes(packet: &v4::Packet) -> Vec<u8> {
    let mut out = Default::default();
    let written = match packet {
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
        other => panic!("a client does not write {other:?}"),
    };
    written.expect("the packet is valid");
    out.to_vec()
}

/// Length of the frame at the head of `bytes`, if it is whole.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let mut len = 0;
    for (at, byte) in bytes.iter().skip(1).take(4).enumerate() {
        len |= usize::from(byte & 127) << (7 * at);
        if byte & 128 == 0 {
            let whole = 2 + at + len;
            return (bytes.len() >= whole).then_some(whole);
        }
    }
    assert!(bytes.len() < 5, "a Remaining Length has four bytes at most");
    None
}

impl World {
    fn send(&mut self, client: usize, packet: &v4::Packet) {
        let Some(link) = self.clients[client].link else { return };
        self.event(20, client as u64, || format!("client {client} sends {}", brief(packet)));
        let bytes = packet_bytes(packet);
        // After a reset of which the client has not heard, its bytes go nowhere.
        if !self.links[link].up_ends {
            self.links[link].up.extend_from_slice(&bytes);
        }
        self.clients[client].last_sent_ms = self.now_ms;
    }

    /// One thing a client does.
    pub fn client_acts(&mut self, client: usize) {
        let Some(link) = self.clients[client].link else {
            if self.random.percent(30) {
                self.connect(client, None);
            }
            return;
        };
        if self.random.below(1_000) < self.profile.leave_permille {
            self.leave(client);
            return;
        }
        if !self.clients[client].ready {
            return;
        }
        let count = self.random.below(self.clients[client].replies.len() + 1);
        self.give_replies(client, count);
        let keep_alive_ms = u64::from(self.links[link].keep_alive_s) * 1_000;
        if keep_alive_ms > 0 && self.now_ms - self.clients[client].last_sent_ms > keep_alive_ms / 2 {
            self.send(client, &v4::Packet::PingReq);
        }
        if self.links[link].up.len() > 4 * self.profile.payload_max + 2_000 {
            return;
        }
        if self.random.percent(self.profile.publish_percent) {
            match self.random.percent(self.profile.run_percent) {
                true => self.publish_run(client),
                false => self.publish(client),
            }
        } else if self.random.percent(70) {
            self.subscribe(client);
        } else if self.random.percent(70) {
            self.unsubscribe(client);
        } else if self.clients[client].level == Level::V31 {
            self.send_again_in_place(client);
        }
    }

    /// At the end of a run: only what the protocol owes, and a way back for those with a durable Session.
    pub fn client_settles(&mut self, client: usize) -> bool {
        let Some(_) = self.clients[client].link else {
            if self.clients[client].prefers_durable && !self.clients[client].subscriptions.is_empty() {
                self.connect(client, Some(false));
                return true;
            }
            return false;
        };
        let count = self.clients[client].replies.len();
        self.give_replies(client, count);
        count > 0
    }

    fn give_replies(&mut self, client: usize, count: usize) {
        for _ in 0..count {
            let Some(reply) = self.clients[client].replies.pop_front() else {
                return;
            };
            self.send(client, &reply);
        }
    }

    /// Each account has its own client-0.
    pub fn client_id(&self, client: usize) -> String {
        format!("client-{}", client / self.profile.tenants.max(1))
    }

    /// `clean_session`: as it is, and no Will; otherwise chance decides.
    pub fn connect(&mut self, client: usize, clean_session: Option<bool>) {
        let mut clean = clean_session.unwrap_or_else(|| !self.clients[client].prefers_durable ^ self.random.percent(5));
        clean |= self.clients[client].must_be_clean;
        self.clients[client].must_be_clean = clean;
        let level = self.clients[client].level;
        let keep_alive_s = if self.profile.keep_alive {
            self.random.between(1, 10) as u16
        } else {
            0
        };
        let link = self.links.len();
        let will = (clean_session.is_none() && self.random.percent(40)).then(|| {
            let will = self.new_message(client, link);
            self.oracle.messages[will].is_will = true;
            will
        });
        let tenant = self.clients[client].tenant;
        let opened = self.open_link(World::fresh_link(client, tenant, level, keep_alive_s, will));
        assert_eq!(link, opened);
        let id = self.client_id(client);
        let login = self.login(tenant);
        let bytes = match level {
            Level::V311 => {
                let mut connect = v4::Connect::new(id);
                connect.clean_session = clean;
                connect.keep_alive = keep_alive_s;
                connect.last_will = will.map(|will| {
                    let message = &self.oracle.messages[will];
                    let topic = self.oracle.topics.texts[message.topic].clone();
                    v4::LastWill::new(topic, self.oracle.payload(will), their(message.qos), message.retain)
                });
                if let Some((user, password)) = &login {
                    connect.set_login(user, password);
                }
                packet_bytes(&v4::Packet::Connect(connect))
            }
            Level::V31 => {
                let connect = Connect {
                    level,
                    clean_session: clean,
                    keep_alive_s,
                    client_id: id,
                    will: will.map(|will| {
                        let message = &self.oracle.messages[will];
                        Will {
                            topic: self.oracle.topics.texts[message.topic].clone(),
                            payload: self.oracle.payload(will),
                            qos: message.qos,
                            retain: message.retain,
                        }
                    }),
                    user_name: login.as_ref().map(|(user, _)| user.clone()),
                    password: login.as_ref().map(|(_, password)| password.clone().into_bytes()),
                };
                let mut bytes = Vec::new();
                client::connect(&mut bytes, &connect);
                bytes
            }
        };
        self.event(21, link as u64, || {
            format!("client {client} connects on link {link}, clean {clean}, will {will:?}")
        });
        self.links[link].up = bytes;
        let now_ms = self.now_ms;
        let c = &mut self.clients[client];
        assert!(c.link.is_none());
        c.link = Some(link);
        c.clean_session = clean;
        c.last_sent_ms = now_ms;
        if clean {
            let seen = c.forget();
            self.oracle.seen.push(seen);
            // It need not wait for CONNACK: what follows is carried to the home core with the connection.
            if clean_session.is_none() && self.random.percent(30) {
                self.subscribe(client);
                self.publish(client);
            }
        }
    }

    fn leave(&mut self, client: usize) {
        let link = self.clients[client].link.expect("it is connected");
        let way = self.random.below(10);
        if way < 3 && self.clients[client].ready {
            self.send(client, &v4::Packet::Disconnect);
        } else if way < 4 && self.clients[client].ready {
            self.event(22, client as u64, || format!("client {client} writes nonsense"));
            // QoS 3 [MQTT-3.3.1-4].
            self.links[link].up.extend_from_slice(&[0x36, 3, 0, 1, b'a']);
            self.clients[client].misbehaved = Some(link);
            self.met.nonsense += 1;
        }
        // Half open: the server does not hear of it until something else happens.
        let half_open = way == 9;
        self.met.half_open += u64::from(half_open);
        self.event(23, client as u64, || {
            format!("client {client} lets go of link {link}, half open {half_open}")
        });
        self.links[link].up_ends = !half_open;
        self.let_go(client);
    }

    fn let_go(&mut self, client: usize) {
        let c = &mut self.clients[client];
        let Some(link) = c.link else { return };
        c.detach();
        if c.clean_session {
            let seen = c.forget();
            self.oracle.seen.push(seen);
        }
        self.links[link].attached = false;
        self.links[link].down.clear();
        self.bury(link);
    }

    /// DISCONNECT, and gone.
    pub fn disconnect(&mut self, client: usize) {
        if let Some(link) = self.clients[client].link {
            self.send(client, &v4::Packet::Disconnect);
            self.links[link].up_ends = true;
            self.let_go(client);
        }
    }

    /// The server has closed, or the network has.
    pub fn client_sees_end(&mut self, link: usize) {
        let client = self.links[link].client;
        self.event(24, client as u64, || {
            format!("client {client} sees the end of link {link}")
        });
        if self.clients[client].link == Some(link) {
            self.let_go(client);
        }
    }

    fn new_message(&mut self, publisher: usize, link: usize) -> usize {
        let tenant = self.clients[publisher].tenant;
        let topic = self.some_topic(tenant);
        let retain = self.random.percent(self.profile.retain_percent);
        self.add_message(tenant, topic, retain);
        let message = self.oracle.messages.last_mut().expect("one was added");
        (message.publisher, message.link) = (publisher, link);
        self.oracle.messages.len() - 1
    }

    /// A message of an application's, for one of the devices of its account; `None` where no topic is for that.
    pub fn new_api_message(&mut self, tenant: usize) -> Option<usize> {
        let is_sent = |topic: &usize| {
            matches!(
                self.oracle.topics.purposes[*topic],
                Purpose::Data { is_json: true, .. } | Purpose::Command { .. }
            )
        };
        let topics: Vec<usize> = self.oracle.topics.of[tenant].iter().copied().filter(is_sent).collect();
        if topics.is_empty() {
            return None;
        }
        let topic = self.random.pick(&topics);
        self.add_message(tenant, topic, false);
        let is_data = matches!(self.oracle.topics.purposes[topic], Purpose::Data { .. });
        let message = self.oracle.messages.last_mut().expect("one was added");
        message.is_api = true;
        if is_data {
            message.qos = QoS::AtLeastOnce;
        }
        Some(self.oracle.messages.len() - 1)
    }

    fn add_message(&mut self, tenant: usize, topic: usize, retain: bool) {
        let qos = self
            .random
            .pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]);
        let min = self.oracle.payload_min(topic);
        let len = self.random.between(min, self.profile.payload_max.max(min));
        self.oracle.messages.push(Message {
            topic,
            qos,
            retain,
            len,
            tenant,
            is_api: false,
            is_refused: false,
            publisher: 0,
            link: 0,
            attempts: 0,
            strays: 0,
            runs: 0,
            last_run: u64::MAX,
            sent_at: None,
            acknowledged_at: None,
            is_will: false,
        });
    }

    /// Mostly one of its own account's.
    fn some_topic(&mut self, tenant: usize) -> usize {
        if self.profile.tenants > 0 && !self.random.percent(self.profile.foreign_percent) {
            return self.random.pick(&self.oracle.topics.of[tenant]);
        }
        let topic = self.random.below(self.oracle.topics.texts.len());
        match self.oracle.topics.retired[topic] {
            // Some core may still take it for one of an account.
            Some(Retired { known_at: None, .. }) => self.random.pick(&self.oracle.topics.of[tenant]),
            _ => topic,
        }
    }

    fn publish(&mut self, client: usize) {
        let link = self.clients[client].link.expect("it is connected");
        if self.clients[client].outgoing.len() >= 20 {
            return;
        }
        let number = self.new_message(client, link);
        if self.oracle.messages[number].retain && self.random.percent(20) {
            self.oracle.messages[number].len = 0;
        }
        if self.oracle.messages[number].qos > QoS::AtMostOnce {
            let id = self.clients[client].fresh_id();
            self.clients[client].outgoing.push(Outgoing {
                id,
                message: number,
                is_released: false,
            });
            self.send_publish(client, number, id, false);
        } else {
            self.send_publish(client, number, 0, false);
        }
    }

    /// Packets of one topic, one behind the other.
    fn publish_run(&mut self, client: usize) {
        let link = self.clients[client].link.expect("it is connected");
        let topic = self.some_topic(self.clients[client].tenant);
        for _ in 0..self.random.between(2, 8) {
            let number = self.new_message(client, link);
            let message = &mut self.oracle.messages[number];
            (message.qos, message.retain) = (QoS::AtMostOnce, false);
            self.put_on_topic(number, topic);
            self.send_publish(client, number, 0, false);
        }
    }

    fn put_on_topic(&mut self, number: usize, topic: usize) {
        let min = self.oracle.payload_min(topic);
        let message = &mut self.oracle.messages[number];
        (message.topic, message.len) = (topic, message.len.max(min));
    }

    fn send_publish(&mut self, client: usize, number: usize, id: u16, dup: bool) {
        let moment = self.moment;
        let message = &mut self.oracle.messages[number];
        message.attempts += 1;
        if message.last_run != self.met.crashes {
            (message.last_run, message.runs) = (self.met.crashes, message.runs + 1);
        }
        message.sent_at.get_or_insert(moment);
        let qos = message.qos;
        let topic = self.oracle.topics.texts[message.topic].clone();
        let (retain, bytes) = (message.retain, self.oracle.payload(number));
        let mut packet = v4::Publish::new(topic, their(qos), bytes);
        (packet.dup, packet.retain, packet.pkid) = (dup, retain, id);
        if qos > QoS::AtMostOnce {
            self.clients[client].expected.push_back((id, qos));
        }
        self.send(client, &v4::Packet::Publish(packet));
    }

    /// Level 3 clients repeat a PUBLISH without waiting for a reconnect (MQTT 3.1, section 4.2).
    fn send_again_in_place(&mut self, client: usize) {
        let waiting = self.clients[client].outgoing.iter().filter(|out| !out.is_released);
        let waiting: Vec<(usize, u16)> = waiting.map(|out| (out.message, out.id)).collect();
        if !waiting.is_empty() {
            let (message, id) = self.random.pick(&waiting);
            self.send_publish(client, message, id, true);
        }
    }

    fn some_filter(&mut self, tenant: usize) -> usize {
        let topic = self.some_topic(tenant);
        let topic = self.oracle.topics.texts[topic].clone();
        if !self.random.percent(self.profile.wildcard_percent) {
            return self.oracle.topics.filter(&topic);
        }
        let mut levels: Vec<&str> = topic.split('/').collect();
        // Where there are accounts, a wildcard in place of the token is refused.
        let first = usize::from(self.profile.tenants > 0 && !self.random.percent(self.profile.foreign_percent));
        match self.random.below(6) {
            0 => levels.splice(first.., ["#"]).for_each(drop),
            1 => levels.splice(first.., ["+", "#"]).for_each(drop),
            2 | 3 => {
                let level = self.random.between(first, levels.len() - 1);
                levels[level] = "+";
            }
            _ => {
                levels.truncate(self.random.between(1, levels.len()));
                levels.push("#");
            }
        }
        self.oracle.topics.filter(&levels.join("/"))
    }

    fn subscribe(&mut self, client: usize) {
        let count = if self.random.percent(70) {
            1
        } else {
            self.random.between(1, 4)
        };
        let mut filters = Vec::new();
        for _ in 0..count {
            let qos = self.random.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]);
            let filter = self.some_filter(self.clients[client].tenant);
            if filters.iter().all(|(other, _)| *other != filter) {
                filters.push((filter, qos));
            }
        }
        self.subscribe_to(client, &filters);
    }

    pub fn subscribe_to(&mut self, client: usize, filters: &[(usize, QoS)]) {
        let id = self.clients[client].fresh_id();
        let c = &mut self.clients[client];
        for &(filter, qos) in filters {
            if !self.oracle.topics.may_subscribe(c.tenant, filter) {
                continue;
            }
            let held = c.held.entry(filter).or_insert(Held {
                qos_max: qos,
                removed_at: None,
                is_retired: false,
                generation: 0,
            });
            held.qos_max = held.qos_max.max(qos);
            held.removed_at = None;
            held.generation += 1;
            if let Some(subscription) = c.subscriptions.get_mut(&filter) {
                subscription.qos = subscription.qos.min(qos);
                subscription.is_simple = false;
            }
        }
        let is_allowed = |filter: usize| self.oracle.topics.may_subscribe(c.tenant, filter);
        let entries = filters
            .iter()
            .map(|(filter, qos)| (*filter, *qos, is_allowed(*filter)))
            .collect();
        c.subscribing.insert(id, entries);
        let named = filters
            .iter()
            .map(|(filter, qos)| (self.oracle.topics.filters[*filter].clone(), *qos));
        let named = named.map(|(filter, qos)| v4::SubscribeFilter::new(filter, their(qos)));
        let mut packet = v4::Subscribe::new_many(named);
        packet.pkid = id;
        self.send(client, &v4::Packet::Subscribe(packet));
    }

    fn unsubscribe(&mut self, client: usize) {
        let held: Vec<usize> = self.clients[client].held.keys().copied().collect();
        if held.is_empty() {
            return;
        }
        let filter = self.random.pick(&held);
        let id = self.clients[client].fresh_id();
        let c = &mut self.clients[client];
        c.subscriptions.remove(&filter);
        for entry in c.subscribing.values_mut().flatten() {
            if entry.0 == filter {
                entry.2 = false;
            }
        }
        c.unsubscribing.insert(id, vec![(filter, c.held[&filter].generation)]);
        let mut packet = v4::Unsubscribe::new(self.oracle.topics.filters[filter].clone());
        packet.pkid = id;
        self.send(client, &v4::Packet::Unsubscribe(packet));
    }

    /// Bytes come to a client.
    pub fn client_reads(&mut self, link: usize, bytes: &[u8]) {
        let client = self.links[link].client;
        self.clients[client].rx.extend_from_slice(bytes);
        let mut rx = std::mem::take(&mut self.clients[client].rx);
        let mut read = 0;
        while let Some(len) = frame_len(&rx[read..]) {
            let mut stream = rx[read..read + len].iter().copied().collect();
            read += len;
            let packet = match v4::read(&mut stream, PACKET_BYTES_MAX) {
                Ok(packet) => packet,
                Err(error) => panic!("client {client} cannot read: {error:?}"),
            };
            self.event(25, client as u64, || format!("client {client} gets {}", brief(&packet)));
            self.client_gets(client, link, packet);
        }
        rx.drain(..read);
        self.clients[client].rx = rx;
    }

    fn client_gets(&mut self, client: usize, link: usize, packet: v4::Packet) {
        let moment = self.moment;
        match packet {
            v4::Packet::ConnAck(connack) if connack.code != v4::ConnectReturnCode::Success => {
                let tenant = self.clients[client].tenant;
                let is_right = match connack.code {
                    v4::ConnectReturnCode::NotAuthorized => self.happened.suspensions > 0,
                    v4::ConnectReturnCode::BadUserNamePassword => self.oracle.topics.has_rotated(tenant),
                    v4::ConnectReturnCode::ServiceUnavailable => self.links[link].is_refused,
                    _ => false,
                };
                assert!(is_right, "a CONNECT by the rules was refused: {connack:?}");
                self.met.refused += 1;
                self.links[link].up_ends = true;
                self.let_go(client);
            }
            v4::Packet::ConnAck(_) => self.connected(client, link),
            v4::Packet::PubAck(v4::PubAck { pkid }) => {
                let expected = self.clients[client].expected.pop_front();
                assert_eq!(
                    expected,
                    Some((pkid, QoS::AtLeastOnce)),
                    "acknowledgements keep the order [MQTT-4.6.0-2]"
                );
                let outgoing = &mut self.clients[client].outgoing;
                if let Some(place) = outgoing.iter().position(|out| out.id == pkid) {
                    let message = outgoing.remove(place).message;
                    self.oracle.messages[message].acknowledged_at.get_or_insert(moment);
                }
            }
            v4::Packet::PubRec(v4::PubRec { pkid }) => {
                let c = &mut self.clients[client];
                let expected = c.expected.pop_front();
                assert_eq!(
                    expected,
                    Some((pkid, QoS::ExactlyOnce)),
                    "acknowledgements keep the order [MQTT-4.6.0-3]"
                );
                // The answer to a level 3 client's repetition may come when the flow has ended.
                if let Some(outgoing) = c.outgoing.iter_mut().find(|out| out.id == pkid) {
                    self.oracle.messages[outgoing.message]
                        .acknowledged_at
                        .get_or_insert(moment);
                    if !outgoing.is_released {
                        outgoing.is_released = true;
                        c.replies.push_back(v4::Packet::PubRel(v4::PubRel { pkid }));
                    }
                } else {
                    assert_eq!(c.level, Level::V31, "PUBREC {pkid} for nothing");
                }
            }
            v4::Packet::PubComp(v4::PubComp { pkid }) => {
                let outgoing = &mut self.clients[client].outgoing;
                let place = outgoing.iter().position(|out| out.id == pkid && out.is_released);
                outgoing.remove(place.expect("PUBCOMP follows PUBREL"));
            }
            v4::Packet::PubRel(v4::PubRel { pkid }) => {
                let c = &mut self.clients[client];
                c.received_ids.remove(&pkid);
                c.replies.push_back(v4::Packet::PubComp(v4::PubComp { pkid }));
            }
            v4::Packet::SubAck(suback) => {
                let c = &mut self.clients[client];
                let entries = c.subscribing.remove(&suback.pkid).expect("SUBACK answers a SUBSCRIBE");
                let codes: Vec<u8> = suback
                    .return_codes
                    .iter()
                    .map(|code| match code {
                        v4::SubscribeReasonCode::Success(qos) => *qos as u8,
                        v4::SubscribeReasonCode::Failure => 0x80,
                    })
                    .collect();
                let granted = self.links[link].granted.remove(&suback.pkid);
                let granted = granted.expect("a core has read what it answers");
                // One that grants nothing says nothing of the Session.
                c.has_suback |= granted.contains(&true);
                let level = c.level;
                // Level 3 has no code for what is refused.
                let code = |(entry, is_granted): (&(usize, QoS, bool), &bool)| match level {
                    Level::V311 if !is_granted => 0x80,
                    _ => entry.1 as u8,
                };
                let expected: Vec<u8> = entries.iter().zip(&granted).map(code).collect();
                assert_eq!(codes, expected, "one code per filter, in order [MQTT-3.9.3-1]");
                for ((filter, qos, is_wanted), is_granted) in entries.into_iter().zip(granted) {
                    if !is_wanted || !is_granted {
                        continue;
                    }
                    // A later SUBSCRIBE for the same filter may be in force by now.
                    let later = c.subscribing.values().flatten().filter(|entry| entry.0 == filter);
                    let qos = later.map(|(_, qos, _)| *qos).min().map_or(qos, |later| later.min(qos));
                    let is_simple = c.held.get(&filter).is_some_and(|held| held.generation == 1);
                    let fresh = Subscription {
                        qos,
                        since: moment,
                        link,
                        is_simple,
                    };
                    let subscription = c.subscriptions.entry(filter).or_insert(fresh);
                    subscription.qos = subscription.qos.min(qos);
                }
            }
            v4::Packet::UnsubAck(unsuback) => {
                let c = &mut self.clients[client];
                let filters = c
                    .unsubscribing
                    .remove(&unsuback.pkid)
                    .expect("UNSUBACK answers an UNSUBSCRIBE");
                for (filter, generation) in filters {
                    if let Some(held) = c.held.get_mut(&filter)
                        && held.generation == generation
                    {
                        held.removed_at = Some(moment);
                    }
                }
            }
            v4::Packet::PingResp => {}
            v4::Packet::Publish(publish) => self.client_gets_publish(client, publish),
            other => panic!("a server does not write {other:?}"),
        }
    }

    fn connected(&mut self, client: usize, link: usize) {
        let resumed = self.links[link].resumed;
        let epoch = self.links[link].epoch;
        let c = &mut self.clients[client];
        c.ready = true;
        c.must_be_clean = false;
        if !resumed && !c.clean_session {
            let seen = c.forget();
            self.oracle.seen.push(seen);
        }
        let c = &mut self.clients[client];
        // An earlier connection of this client's may have overtaken this one on its way home, and have ended its Session:
        // then nothing is expected of it.
        if !resumed {
            c.epoch = epoch;
        }
        if resumed {
            let again: Vec<(u16, usize, bool)> = c
                .outgoing
                .iter()
                .map(|out| (out.id, out.message, out.is_released))
                .collect();
            // Its Session ended while it was away, another began of which it has not heard, and this one resumes that.
            let is_stray = self.clients[client].epoch != epoch;
            if is_stray {
                // Nor can the server know what the client thinks that it has received, and subscribed to.
                let c = &mut self.clients[client];
                c.stray_ids = c.received_ids.keys().copied().collect();
                c.subscriptions.clear();
                c.has_suback = false;
                c.epoch = epoch;
            }
            for (id, message, is_released) in again {
                self.oracle.messages[message].strays += u32::from(is_stray);
                if is_released {
                    self.send(client, &v4::Packet::PubRel(v4::PubRel { pkid: id }));
                } else {
                    self.send_publish(client, message, id, true);
                }
            }
        }
    }

    fn client_gets_publish(&mut self, client: usize, publish: v4::Publish) {
        let v4::Publish {
            dup,
            qos,
            retain,
            topic,
            pkid,
            payload: bytes,
        } = publish;
        let c = &mut self.clients[client];
        let qos = ours(qos);
        let is_new = match qos {
            QoS::AtMostOnce => {
                assert!(!dup, "[MQTT-3.3.1-2]");
                true
            }
            QoS::AtLeastOnce => {
                c.replies.push_back(v4::Packet::PubAck(v4::PubAck { pkid }));
                true
            }
            QoS::ExactlyOnce => {
                c.replies.push_back(v4::Packet::PubRec(v4::PubRec { pkid }));
                let message = message_number(&bytes);
                let held = c.received_ids.insert(pkid, message);
                let begins_again = c.stray_ids.remove(&pkid) && !dup;
                let held = held.filter(|_| !begins_again);
                if let Some(held) = held {
                    assert!(dup, "identifier {pkid} is in use");
                    assert_eq!(held, message, "identifier {pkid} comes with another message");
                }
                held.is_none()
            }
        };
        if !is_new {
            return;
        }
        if is_abuse(&topic) {
            assert_eq!(bytes, abuse::PAYLOAD, "what abusers publish comes as it is");
            assert!(
                self.oracle.topics.is_or_was_below(self.clients[client].tenant, &topic),
                "an abuser of another account published {topic}"
            );
            return;
        }
        self.met.dollar_topics += u64::from(topic.starts_with('$'));
        let topic = self.oracle.topics.topic_number(&topic);
        let Some(number) = message_number(&bytes) else {
            assert!(
                bytes.is_empty() && !retain,
                "a retained message has a payload [MQTT-3.3.1-11]"
            );
            return;
        };
        let message = &self.oracle.messages[number];
        assert_eq!(bytes, self.oracle.payload(number), "message {number} came changed");
        assert!(
            self.route(number) != Route::Never,
            "message {number} came, and is refused or another account's"
        );
        let sent_at = message.sent_at.expect("the world saw it leave");
        let oracle = &self.oracle;
        let c = &mut self.clients[client];
        let copies = c.copies.entry(number).or_default();
        if retain {
            assert!(message.retain, "RETAIN is set on what was retained");
            c.retained_seen.insert(topic, number);
            return;
        }
        let may_come = c.held.iter().any(|(filter, held)| {
            held.removed_at.is_none_or(|at| sent_at < at)
                && qos <= held.qos_max
                && oracle.topics.matches(*filter, topic)
        });
        assert!(may_come, "message {number} came without a subscription");
        if !dup || qos == QoS::ExactlyOnce {
            copies.fresh += 1;
        }
        copies.exact += u32::from(qos == QoS::ExactlyOnce);
        assert!(
            copies.exact <= 1 + message.strays,
            "message {number} came {} times at QoS 2",
            copies.exact
        );
        let allowed = if message.qos == QoS::AtLeastOnce {
            message.attempts.max(1)
        } else {
            // What was sent below QoS 2 before a crash may be forgotten.
            message.runs.max(1) + message.strays
        };
        assert!(
            copies.fresh <= allowed,
            "message {number} came {} times, {allowed} allowed",
            copies.fresh
        );
        let due = c.is_due(oracle, client, message, sent_at);
        assert!(due.is_none_or(|due| qos >= due), "message {number} lost QoS: {due:?}");
        let c = &mut self.clients[client];
        let order = c.seen.entry(topic).or_default();
        if !order.contains(&number) {
            order.push(number);
        }
        if message.retain {
            c.retained_seen.insert(topic, number);
        }
    }

    /// What the broker has told its clients of their Sessions.
    pub fn promised(&self) -> Vec<Promised> {
        let told = |(client, c): (usize, &Client)| {
            let number = self.oracle.session_of(client, c.epoch)?;
            let text = |filter: &usize| self.oracle.topics.filters[*filter].clone();
            c.has_suback.then(|| Promised {
                client,
                number,
                subscriptions: c
                    .subscriptions
                    .iter()
                    .map(|(filter, held)| (text(filter), held.qos))
                    .collect(),
                removed: c
                    .held
                    .iter()
                    .filter(|(_, held)| held.removed_at.is_some() && !held.is_retired)
                    .map(|(filter, _)| text(filter))
                    .collect(),
            })
        };
        self.clients.iter().enumerate().filter_map(told).collect()
    }

    /// After a crash.
    pub fn check_promised(&self, promised: &[Promised]) {
        let stored = self.disk.stored(0);
        for Promised {
            client,
            number,
            subscriptions,
            removed,
        } in promised
        {
            let session = stored.sessions.iter().find(|session| session.session == *number);
            let session = session.unwrap_or_else(|| panic!("the Session of client {client} is lost after a SUBACK"));
            for (filter, qos) in subscriptions {
                let kept = session.filters.iter().find(|(kept, _)| **kept == **filter);
                assert!(
                    kept.is_some_and(|(_, kept)| kept >= qos),
                    "the subscription of client {client} to {filter} at {qos:?} is lost after its SUBACK: {kept:?}"
                );
            }
            for filter in removed {
                assert!(
                    session.filters.iter().all(|(kept, _)| **kept != **filter),
                    "the subscription of client {client} to {filter} is back after its UNSUBACK"
                );
            }
        }
    }

    /// After everything has come to rest: who misses what.
    pub fn check_deliveries(&mut self) {
        let (mut missing, mut missing_qos0, mut lost_qos0) = (0, 0, Vec::new());
        for client in 0..self.clients.len() {
            let c = &self.clients[client];
            let Some(link) = c.link else { continue };
            for (number, message) in self.oracle.messages.iter().enumerate() {
                let Some(sent_at) = message.sent_at else { continue };
                let publisher = &self.clients[message.publisher];
                let is_sender_here = !message.is_api && publisher.link == Some(message.link) && publisher.ready;
                // A Will is published without anybody's acknowledgement.
                let surely_published = (message.is_will && sent_at > self.oracle.crashed_at)
                    || message.acknowledged_at.is_some()
                    || (message.qos == QoS::AtMostOnce && is_sender_here);
                if !surely_published || message.len == 0 || c.copies.contains_key(&number) {
                    continue;
                }
                if self.route(number) != Route::Surely {
                    continue;
                }
                match c.is_due(&self.oracle, client, message, sent_at) {
                    Some(QoS::AtLeastOnce | QoS::ExactlyOnce) => {
                        missing += 1;
                        assert!(!self.oracle.ample(), "message {number} did not reach client {client}");
                    }
                    Some(QoS::AtMostOnce) => {
                        let here = |(filter, subscription): (&usize, &Subscription)| {
                            subscription.link == link
                                && subscription.since < sent_at
                                && self.oracle.topics.matches(*filter, message.topic)
                        };
                        if c.subscriptions.iter().any(here) {
                            if self.links[link].has_fetched {
                                missing_qos0 += 1;
                                continue;
                            }
                            missing_qos0 += 1;
                            lost_qos0.push((number, client));
                        }
                    }
                    None => {}
                }
            }
        }
        if self.profile.ample_queue && self.profile.ample_outbox {
            assert_eq!(lost_qos0, [], "QoS 0 messages that did not reach clients");
        }
        self.oracle.missing = missing;
        self.oracle.missing_qos0 = missing_qos0;
    }

    /// Clients whose subscription is as old as their connection have the last retained message of each topic, live or
    /// as retained.
    pub fn check_retained_seen(&self) {
        let retained = self.oracle.retained();
        for (client, c) in self.clients.iter().enumerate() {
            let Some(link) = c.link else { continue };
            for (topic, message) in &retained {
                let Message { qos, runs, .. } = self.oracle.messages[*message];
                if runs > 1 {
                    // Who got it before a crash does not get it again at QoS 2, though it is retained anew.
                    continue;
                }
                // Behind what is read back first, QoS 0 gives way.
                let wants = c.subscriptions.iter().any(|(filter, subscription)| {
                    subscription.link == link
                        && subscription.is_simple
                        && self.oracle.topics.matches(*filter, *topic)
                        && (qos.min(subscription.qos) > QoS::AtMostOnce || !self.links[link].has_fetched)
                });
                if wants {
                    let seen = c.retained_seen.get(topic);
                    assert_eq!(
                        seen,
                        Some(message),
                        "client {client}, topic {topic}: the last retained message"
                    );
                }
            }
        }
    }
}

fn brief(packet: &v4::Packet) -> String {
    match packet {
        v4::Packet::Publish(publish) => format!(
            "PUBLISH m{:?} {} qos {} dup {} retain {} id {}",
            message_number(&publish.payload),
            publish.topic,
            publish.qos as u8,
            publish.dup,
            publish.retain,
            publish.pkid
        ),
        other => format!("{other:?}"),
    }
}
