//! The clients: what they do, and what they remember. What they get is in `receiving`.
//!
//! Owns    [`Client`], all that one knows.
//! Called  by `world`, one act at a time.
//! Holds   - clients keep the rules of MQTT 3.1.1 (but for one that misbehaves once and is closed for it), so whatever
//!           looks wrong to them is the server's doing;
//!         - what they write and read goes through mqttbytes, a codec that is not ours; only a level 3 CONNECT, which it
//!           does not know, is written by our own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mqttbytes::v4;
use skein::mqtt::client;
use skein::mqtt::packet::{Connect, Level, QoS, Will};

use skein::shard::record::SessionNumber;

use crate::faults::Profile;
use crate::oracle::{Message, Oracle, Seen};
use crate::random::Random;
use crate::topics::{Purpose, Retired};
use crate::words::brief_packet;
use crate::world::World;

/// Above QoS 0 a client has so many that are not over.
const OUTGOING_MAX: usize = 20;

/// A PUBLISH of the client's that is not over.
pub struct Outgoing {
    pub id: u16,
    pub message: usize,
    /// QoS 2: PUBREC came.
    pub is_released: bool,
}

/// A subscription that the server has confirmed and the client has not given up.
pub struct Subscription {
    /// The lowest that may be in force.
    pub qos: QoS,
    pub since: u64,
    /// The connection of the first SUBACK.
    pub link: usize,
    /// Never asked for again, so that its retained messages are known to have come.
    pub is_simple: bool,
}

/// A filter under which messages may come.
pub struct Held {
    pub qos_max: QoS,
    pub removed_at: Option<u64>,
    /// Counts SUBSCRIBEs.
    pub generation: u32,
    /// Its token was rotated away: the server takes it away, sooner or later.
    pub is_retired: bool,
}

/// What a client knows of its durable Session.
pub struct Promised {
    pub client: usize,
    pub number: SessionNumber,
    pub subscriptions: Vec<(String, QoS)>,
    pub removed: Vec<String>,
}

#[derive(Default)]
pub struct Copies {
    pub fresh: u32,
    /// At QoS 2.
    pub exact: u32,
}

pub struct Client {
    /// Of whose account it is; 0 where there are none.
    pub tenant: usize,
    pub prefers_durable: bool,
    pub level: Level,
    pub is_slow: bool,
    /// The connection that was closed, or will be, for a malformed packet.
    pub misbehaved: Option<usize>,
    pub link: Option<usize>,
    /// CONNACK came.
    pub ready: bool,
    pub clean_session: bool,
    /// It has forgotten its Session, and does not know whether the server has.
    pub must_be_clean: bool,
    pub rx: Vec<u8>,
    pub last_sent_ms: u64,
    pub next_id: u16,
    /// It takes the smallest identifier that is free, not the next.
    pub reuses_ids: bool,
    pub outgoing: Vec<Outgoing>,
    /// What this connection must acknowledge, in order.
    pub expected: VecDeque<(u16, QoS)>,
    /// Answers that the client takes its time to give.
    pub replies: VecDeque<v4::Packet>,
    /// QoS 2 messages that came and are not released; `None` for one without a number.
    pub received_ids: BTreeMap<u16, Option<usize>>,
    /// Of those, the ones of another Session than this one may be: they may begin again.
    pub stray_ids: BTreeSet<u16>,
    /// A SUBACK of this Session came.
    pub has_suback: bool,
    pub subscribing: BTreeMap<u16, Vec<(usize, QoS, bool)>>,
    pub unsubscribing: BTreeMap<u16, Vec<(usize, u32)>>,
    pub subscriptions: BTreeMap<usize, Subscription>,
    pub held: BTreeMap<usize, Held>,
    pub copies: BTreeMap<usize, Copies>,
    pub seen: Seen,
    /// The server's count of Sessions when this one began.
    pub epoch: u64,
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
    pub fn forget(&mut self) -> Seen {
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

pub fn ours(qos: mqttbytes::QoS) -> QoS {
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

impl World {
    pub fn send(&mut self, client: usize, packet: &v4::Packet) {
        let Some(link) = self.clients[client].link else { return };
        self.event(20, client as u64, || {
            format!("client {client} sends {}", brief_packet(packet))
        });
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

    pub fn let_go(&mut self, client: usize) {
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
        if self.clients[client].outgoing.len() >= OUTGOING_MAX {
            return;
        }
        let number = self.new_message(client, link);
        if self.oracle.messages[number].retain && self.random.percent(20) {
            self.oracle.messages[number].len = 0;
        }
        self.publish_message(client, number);
    }

    /// For the first time.
    fn publish_message(&mut self, client: usize, number: usize) {
        if self.oracle.messages[number].qos == QoS::AtMostOnce {
            return self.send_publish(client, number, 0, false);
        }
        let id = self.clients[client].fresh_id();
        self.clients[client].outgoing.push(Outgoing {
            id,
            message: number,
            is_released: false,
        });
        self.send_publish(client, number, id, false);
    }

    /// Packets of one topic and QoS, one behind the other.
    fn publish_run(&mut self, client: usize) {
        let link = self.clients[client].link.expect("it is connected");
        let topic = self.some_topic(self.clients[client].tenant);
        let qos = self.random.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]);
        for _ in 0..self.random.between(2, 8) {
            if qos > QoS::AtMostOnce && self.clients[client].outgoing.len() >= OUTGOING_MAX {
                return;
            }
            let number = self.new_message(client, link);
            let message = &mut self.oracle.messages[number];
            (message.qos, message.retain) = (qos, false);
            self.put_on_topic(number, topic);
            self.publish_message(client, number);
        }
    }

    fn put_on_topic(&mut self, number: usize, topic: usize) {
        let min = self.oracle.payload_min(topic);
        let message = &mut self.oracle.messages[number];
        (message.topic, message.len) = (topic, message.len.max(min));
    }

    pub fn send_publish(&mut self, client: usize, number: usize, id: u16, dup: bool) {
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
}
