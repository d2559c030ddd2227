//! What must hold, by a model that shares nothing with the broker: messages by number, Sessions by client.
//!
//! Owns    what every message is, what the server has written and recorded of it, and who may expect it.
//! Called  by `world` (records, commits, packets written and consumed), by `workload` (what clients saw), and by `run`
//!         at rest.
//! Holds   - every message carries its number in its payload; an empty payload (it clears a retained message) carries
//!           none, and is known by its topic only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use skein::mqtt::client::ServerPacket;
use skein::mqtt::packet::{Level, Packet, QoS};
use skein::mqtt::reason::ConnectReturnCode;
use skein::registry::access::AccountId;
use skein::shard::record::{Record, SessionNumber};

use crate::faults::Profile;
use crate::platform::Platform;
use crate::random::Random;
use crate::topics::{Route, Topics};
use crate::workload::Outgoing;
use crate::world::World;

pub struct Message {
    pub topic: usize,
    pub qos: QoS,
    pub retain: bool,
    pub len: usize,
    pub publisher: usize,
    /// Of whom it comes; 0 where there are no accounts.
    pub tenant: usize,
    /// It came over the API: `publisher` and `link` mean nothing.
    pub is_api: bool,
    /// The API said that nobody gets it.
    pub is_refused: bool,
    /// The connection it was first sent on; for a Will, the one it belongs to.
    pub link: usize,
    /// How often its publisher has sent it.
    pub attempts: u32,
    /// How often it was sent again in another Session than the one it was sent in, and its publisher could not know.
    pub strays: u32,
    /// In how many runs of the broker it has been sent, and the last of them.
    pub runs: u32,
    pub last_run: u64,
    /// When it was first sent; for a Will, when its connection ended otherwise than by DISCONNECT.
    pub sent_at: Option<u64>,
    /// When its publisher heard that the broker has it.
    pub acknowledged_at: Option<u64>,
    pub is_will: bool,
}

impl Message {
    /// When the broker has done with it. What was sent again may come behind its acknowledgement.
    pub fn over_at(&self) -> u64 {
        let at = self.acknowledged_at.filter(|_| self.attempts <= 1);
        at.unwrap_or(u64::MAX)
    }
}

/// What payloads that are JSON begin with; ten digits follow.
const JSON_NUMBER: &[u8] = br#"{"n":""#;
const JSON_BYTES_MIN: usize = 25;

/// The number in a payload.
pub fn message_number(payload: &[u8]) -> Option<usize> {
    if let Some(rest) = payload.strip_prefix(JSON_NUMBER) {
        return std::str::from_utf8(rest.get(..10)?).ok()?.parse().ok();
    }
    payload
        .first_chunk::<8>()
        .map(|number| u64::from_le_bytes(*number) as usize)
}

#[derive(Clone, Copy)]
struct Inflight {
    message: Option<usize>,
    qos: QoS,
    /// PUBREC came.
    is_released: bool,
    /// PUBREL was written.
    is_completing: bool,
    link: usize,
    /// In the line of what was sent; `None` where nobody but the disk knows.
    place: Option<u64>,
}

/// A Session that its records tell of.
struct Durable {
    number: SessionNumber,
    account: AccountId,
    started: usize,
    ended: Option<usize>,
}

/// A Session as the server must see it.
#[derive(Default)]
pub struct ServerSession {
    exists: bool,
    is_durable: bool,
    /// The number of a durable one.
    number: Option<SessionNumber>,
    /// Counts Sessions of this client.
    pub epoch: u64,
    link: Option<usize>,
    /// When its client went away, and whether the broker has died since.
    away: Option<(u64, bool)>,
    /// It had ended when the broker died, and the disk does not know: nor does the model know its identifiers any more.
    is_revived: bool,
    inflight: BTreeMap<u16, Inflight>,
    to_send_again: VecDeque<u16>,
    /// Flows that ended in this run of the broker, for which the disk may not know it yet.
    ended: Vec<(u16, Inflight)>,
    /// What was sent before a crash, and may come again: with DUP if it is certain that it was on disk.
    may_return: BTreeMap<u16, (Inflight, bool)>,
    /// By filter, when SUBACKs for it were written.
    subacks: BTreeMap<usize, Vec<u64>>,
    /// A SUBACK was written that no client reads any more, so nobody knows for what.
    has_lost_subacks: bool,
    /// By message, how often it was written as retained.
    retained: BTreeMap<usize, usize>,
    /// What its cores have granted, and not taken away.
    pub filters: BTreeSet<String>,
}

/// What one Session of a client has seen, by topic, in the order of arrival.
pub type Seen = BTreeMap<usize, Vec<usize>>;

/// Messages by when their connection came home and when they were sent.
type Published = Vec<(u64, u64, usize)>;

pub struct Oracle {
    pub topics: Topics,
    pub messages: Vec<Message>,
    pub sessions: Vec<ServerSession>,
    /// By serial of a record.
    on_disk: Vec<bool>,
    clients_of: BTreeMap<SessionNumber, usize>,
    /// By client.
    durable: Vec<Vec<Durable>>,
    /// By Session and filter, the records of its SUBSCRIBEs.
    subscribed: BTreeMap<(SessionNumber, String), Vec<usize>>,
    /// By message: the records about it.
    records: BTreeMap<usize, Vec<usize>>,
    /// By message: the Sessions it is queued for, the record that says so, and whether it is a retained one for a new
    /// subscription.
    queued: BTreeMap<usize, Vec<(SessionNumber, usize, bool)>>,
    packet_id_records: BTreeMap<(usize, u16), usize>,
    /// The last record that an identifier of a client's is free again.
    packet_id_releases: BTreeMap<(usize, u16), usize>,
    rings: BTreeMap<usize, i64>,
    /// By topic, the records of retained messages as its owner took them; `None` for an empty one.
    retained: BTreeMap<String, Vec<(usize, Option<usize>)>>,
    pub seen: Vec<Seen>,
    place: u64,
    /// When the broker last died; 0: never.
    pub crashed_at: u64,
    crashed_place: u64,
    inflight_max: usize,
    session_expiry_ms: Option<u64>,
    ample_queue: bool,
    /// What is kept for an account is bounded.
    is_kept_bounded: bool,
    pub missing_qos0: u64,
    pub missing: u64,
    pub deliveries: u64,
}

impl Oracle {
    pub fn new(profile: &Profile, platform: Option<&Platform>, random: &mut Random) -> Oracle {
        Oracle {
            topics: Topics::new(profile, platform, random),
            messages: Vec::new(),
            sessions: (0..profile.clients).map(|_| ServerSession::default()).collect(),
            on_disk: Vec::new(),
            clients_of: BTreeMap::new(),
            durable: (0..profile.clients).map(|_| Vec::new()).collect(),
            subscribed: BTreeMap::new(),
            records: BTreeMap::new(),
            queued: BTreeMap::new(),
            packet_id_records: BTreeMap::new(),
            packet_id_releases: BTreeMap::new(),
            rings: BTreeMap::new(),
            retained: BTreeMap::new(),
            seen: Vec::new(),
            place: 0,
            crashed_at: 0,
            crashed_place: 0,
            inflight_max: profile.limits.inflight_max,
            session_expiry_ms: profile.limits.session_expiry_s.map(|seconds| seconds * 1_000),
            ample_queue: profile.ample_queue,
            is_kept_bounded: profile.kept_bytes_max.is_some(),
            missing_qos0: 0,
            missing: 0,
            deliveries: 0,
        }
    }

    /// What the payload of a message looks like.
    pub fn payload(&self, number: usize) -> Vec<u8> {
        let Message { topic, len, .. } = self.messages[number];
        if len == 0 {
            return Vec::new();
        }
        if self.topics.purposes[topic].is_json() {
            let padding = "x".repeat(len - JSON_BYTES_MIN);
            return format!(r#"{{"n":"{number:010}","p":"{padding}"}}"#).into_bytes();
        }
        let mut payload = vec![number as u8; len];
        payload
            .iter_mut()
            .zip((number as u64).to_le_bytes())
            .for_each(|(byte, id)| *byte = id);
        payload
    }

    /// Bytes that a payload on this topic has at least.
    pub fn payload_min(&self, topic: usize) -> usize {
        if self.topics.purposes[topic].is_json() {
            JSON_BYTES_MIN
        } else {
            8
        }
    }

    pub fn in_rings(&mut self, message: usize, change: i64) {
        *self.rings.entry(message).or_default() += change;
    }

    pub fn on_disk(&mut self, serials: &[usize]) {
        serials.iter().for_each(|serial| self.on_disk[*serial] = true);
    }

    pub fn client_of(&self, session: SessionNumber) -> usize {
        self.clients_of[&session]
    }

    /// The durable Session of a client, if it is the one that the client knows.
    pub fn session_of(&self, client: usize, epoch: u64) -> Option<SessionNumber> {
        let session = &self.sessions[client];
        (session.exists && session.is_durable && session.epoch == epoch)
            .then_some(session.number)
            .flatten()
    }

    pub fn is_anybody_away(&self) -> bool {
        self.sessions
            .iter()
            .any(|session| session.exists && session.link.is_none())
    }

    pub fn session_count(&self) -> usize {
        self.sessions.iter().filter(|session| session.exists).count()
    }

    pub fn durable_sessions(&self, is_counted: impl Fn(usize) -> bool) -> usize {
        let sessions = self.sessions.iter().enumerate();
        sessions
            .filter(|(client, session)| is_counted(*client) && session.exists && session.is_durable)
            .count()
    }

    pub fn has_durable_session(&self, client: usize) -> bool {
        self.sessions[client].exists && self.sessions[client].is_durable
    }

    /// The number of a client's durable Session.
    pub fn number_of(&self, client: usize) -> Option<SessionNumber> {
        self.sessions[client]
            .number
            .filter(|_| self.has_durable_session(client))
    }

    pub fn has_met_durable(&self) -> bool {
        !self.clients_of.is_empty()
    }

    pub fn link_of(&self, client: usize) -> Option<usize> {
        self.sessions[client].link
    }

    /// Returns the record's place among all records.
    pub fn persisted(&mut self, record: &Record, now_ms: u64) -> usize {
        let serial = self.on_disk.len();
        self.on_disk.push(false);
        match record {
            Record::SessionStarted {
                session,
                account,
                client_id,
            } => {
                let client = client_id.strip_prefix("client-").and_then(|client| client.parse().ok());
                let client: usize = client.expect("the name of a client");
                // Each account has its own client-0.
                let tenants = self.topics.of.len();
                let client = client * tenants + self.topics.tenant_of[account];
                self.clients_of.insert(*session, client);
                self.sessions[client].number = Some(*session);
                self.durable[client].push(Durable {
                    number: *session,
                    account: *account,
                    started: serial,
                    ended: None,
                });
            }
            Record::SessionEnded { session } => {
                let client = self.client_of(*session);
                let mut durable = self.durable[client].iter_mut();
                let ended = durable.find(|durable| durable.number == *session && durable.ended.is_none());
                let ended = ended.expect("a Session that began ends once");
                ended.ended = Some(serial);
                let is_removed = self.topics.removed.contains(&ended.account);
                if self.sessions[client].exists && self.sessions[client].number == Some(*session) {
                    if !is_removed {
                        self.check_may_expire(client, now_ms);
                    }
                    self.session_goes(client);
                }
            }
            Record::Subscribed { session, filter, .. } => {
                let key = (*session, filter.to_string());
                self.subscribed.entry(key).or_default().push(serial);
            }
            Record::Queued { message, entries, .. } => {
                assert!(!entries.is_empty(), "a message is recorded for somebody");
                if let Some(message) = message_number(message.payload()) {
                    let queued = self.queued.entry(message).or_default();
                    queued.extend(entries.iter().map(|entry| (entry.session, serial, entry.retain)));
                    // Nobody waits for a retained message on its way to a new subscription.
                    if !entries[0].retain {
                        self.records.entry(message).or_default().push(serial);
                    }
                }
            }
            Record::Retained { topic, payload, .. } => {
                let message = message_number(payload);
                if let Some(message) = message {
                    self.records.entry(message).or_default().push(serial);
                }
                self.retained
                    .entry(topic.to_string())
                    .or_default()
                    .push((serial, message));
            }
            Record::Datapoint(datapoint) if datapoint.is_awaited => {
                if let Some(message) = crate::streams::stored_message(&datapoint.row) {
                    self.records.entry(message).or_default().push(serial);
                }
            }
            Record::PacketIdReleased { session, packet_id } => {
                let client = self.client_of(*session);
                self.packet_id_releases.insert((client, packet_id.get()), serial);
            }
            Record::PacketIdReceived { session, packet_id } => {
                let client = self.client_of(*session);
                self.packet_id_records.insert((client, packet_id.get()), serial);
            }
            _ => {}
        }
        serial
    }

    /// A Session ends that nobody has replaced: its client has been away for too long.
    fn check_may_expire(&self, client: usize, now_ms: u64) {
        let expiry_ms = self
            .session_expiry_ms
            .expect("Sessions expire where an operator says so");
        let (since_ms, has_died) = self.sessions[client]
            .away
            .expect("the Session of a client that is here does not expire");
        // That a client was back is not on disk at once: a crash may count from when it left before.
        assert!(
            has_died || now_ms - since_ms >= expiry_ms,
            "a Session expires after {} ms, not {expiry_ms}",
            now_ms - since_ms
        );
    }

    fn session_goes(&mut self, client: usize) {
        self.sessions[client] = ServerSession {
            epoch: self.sessions[client].epoch + 1,
            ..ServerSession::default()
        };
        self.packet_id_records.retain(|(of, _), _| *of != client);
        self.packet_id_releases.retain(|(of, _), _| *of != client);
    }

    /// The broker is dead. What is not on disk has never been; a Session is what the disk has of it.
    pub fn crashed(&mut self, moment: u64, now_ms: u64) {
        (self.crashed_at, self.crashed_place) = (moment, self.place);
        self.rings.clear();
        let Oracle {
            on_disk,
            records,
            queued,
            retained,
            packet_id_records,
            packet_id_releases,
            subscribed,
            ..
        } = self;
        let mut lost = BTreeSet::new();
        for (message, queued) in queued.iter() {
            let of_lost = queued.iter().filter(|(_, serial, _)| !on_disk[*serial]);
            lost.extend(of_lost.map(|(session, ..)| (*message, *session)));
        }
        records
            .values_mut()
            .for_each(|serials| serials.retain(|serial| on_disk[*serial]));
        queued
            .values_mut()
            .for_each(|queued| queued.retain(|(_, serial, _)| on_disk[*serial]));
        retained
            .values_mut()
            .for_each(|order| order.retain(|(serial, _)| on_disk[*serial]));
        subscribed
            .values_mut()
            .for_each(|serials| serials.retain(|serial| on_disk[*serial]));
        packet_id_records.retain(|_, serial| on_disk[*serial]);
        packet_id_releases.retain(|_, serial| on_disk[*serial]);
        for client in 0..self.sessions.len() {
            let on_disk = &self.on_disk;
            self.durable[client].retain(|durable| on_disk[durable.started]);
            for durable in &mut self.durable[client] {
                durable.ended = durable.ended.filter(|serial| on_disk[*serial]);
            }
            // Of an account that is removed nobody finds what is still there, and the next run ends it.
            let removed = &self.topics.removed;
            let is_left = |durable: &&Durable| durable.ended.is_none() && !removed.contains(&durable.account);
            let mut left = self.durable[client].iter().filter(is_left);
            let (survivor, more) = (left.next().map(|durable| durable.number), left.count());
            assert_eq!(more, 0, "two Sessions of client {client} are on disk");
            let session = &mut self.sessions[client];
            let away_ms = session.away.map_or(now_ms, |(since_ms, _)| since_ms);
            session.away = Some((away_ms, true));
            if survivor.is_some() && session.number == survivor && session.exists {
                self.session_outlives(client, &lost);
                continue;
            }
            *session = ServerSession {
                exists: survivor.is_some(),
                is_durable: survivor.is_some(),
                number: survivor,
                epoch: session.epoch + 1,
                away: session.away,
                is_revived: survivor.is_some(),
                ..ServerSession::default()
            };
            self.packet_id_records.retain(|(of, _), _| *of != client);
            self.packet_id_releases.retain(|(of, _), _| *of != client);
        }
    }

    fn session_outlives(&mut self, client: usize, lost: &BTreeSet<(usize, SessionNumber)>) {
        let session = &mut self.sessions[client];
        session.link = None;
        session.to_send_again.clear();
        let number = session.number.expect("a durable Session has a number");
        // QoS 1 may leave before its commit; of a message without a number nobody knows which record is its own.
        let is_certain = |flow: &Inflight| {
            let is_lost = flow.message.is_none_or(|message| lost.contains(&(message, number)));
            flow.qos == QoS::ExactlyOnce || !is_lost
        };
        for (id, flow) in session.ended.drain(..) {
            session.may_return.insert(id, (flow, is_certain(&flow)));
        }
        for (id, flow) in &session.inflight {
            if !is_certain(flow) {
                session.may_return.insert(*id, (*flow, false));
            }
        }
        session.inflight.retain(|_, flow| is_certain(flow));
        for flow in session.inflight.values_mut() {
            flow.is_released = flow.is_completing;
        }
    }

    /// Returns whether a Session is resumed.
    pub fn came_home(&mut self, client: usize, link: usize, clean_session: bool, now_ms: u64) -> bool {
        let expiry_ms = self.session_expiry_ms;
        let session = &mut self.sessions[client];
        // The older connection is closed by the same input; its Session is gone with it if it was clean.
        let resumed = session.exists && session.is_durable && !clean_session;
        if resumed {
            if let (Some(expiry_ms), Some((since_ms, false))) = (expiry_ms, session.away) {
                let away_ms = now_ms - since_ms;
                assert!(
                    away_ms <= expiry_ms + 2_000,
                    "a Session is resumed after {away_ms} ms, and expires after {expiry_ms}"
                );
            }
            let places = session.inflight.iter();
            let mut pending: Vec<(u64, u16)> = places.filter_map(|(id, flow)| Some((flow.place?, *id))).collect();
            pending.sort_unstable();
            session.to_send_again = pending.into_iter().map(|(_, id)| id).collect();
        } else {
            let epoch = session.epoch + 1;
            *session = ServerSession {
                epoch,
                ..ServerSession::default()
            };
            self.packet_id_records.retain(|(of, _), _| *of != client);
            self.packet_id_releases.retain(|(of, _), _| *of != client);
        }
        session.exists = true;
        session.away = None;
        session.is_durable = !clean_session;
        session.link = Some(link);
        resumed
    }

    pub fn connection_ended(
        &mut self,
        client: usize,
        link: usize,
        will: Option<usize>,
        graceful: bool,
        (moment, now_ms): (u64, u64),
    ) {
        let session = &mut self.sessions[client];
        if session.link == Some(link) {
            session.link = None;
            session.away = Some((now_ms, false));
            if !session.is_durable {
                session.exists = false;
                session.epoch += 1;
                session.inflight.clear();
                session.filters.clear();
            }
        }
        if let Some(will) = will
            && !graceful
        {
            self.messages[will].sent_at = Some(moment);
        }
    }

    pub fn server_consumed(&mut self, client: usize, packet: &Packet<'_>) {
        let inflight = &mut self.sessions[client].inflight;
        match packet {
            Packet::PubAck(id) | Packet::PubComp(id) => {
                if let Some(flow) = inflight.remove(&id.get())
                    && self.sessions[client].is_durable
                {
                    self.sessions[client].ended.push((id.get(), flow));
                }
            }
            Packet::PubRec(id) => {
                if let Some(flow) = inflight.get_mut(&id.get()) {
                    flow.is_released = true;
                }
            }
            Packet::PubRel(id) => {
                self.packet_id_records.remove(&(client, id.get()));
            }
            _ => {}
        }
    }

    /// Every subscriber of a topic, and every publisher to it, agrees with one order.
    pub fn check_order(&self, sequences: &[&Seen], home_at: impl Fn(usize) -> u64) {
        let mut after: Vec<Vec<usize>> = vec![Vec::new(); self.messages.len()];
        let mut counts = vec![0u32; self.messages.len()];
        // A message that its publisher had to send again may have its place twice.
        let counted = |message: &usize| self.messages[*message].attempts <= 1;
        let mut link = |sequence: &mut dyn Iterator<Item = usize>| {
            let mut before: Option<usize> = None;
            for message in sequence.filter(counted) {
                if let Some(before) = before.replace(message) {
                    after[before].push(message);
                    counts[message] += 1;
                }
            }
        };
        for seen in sequences {
            for sequence in seen.values() {
                link(&mut sequence.iter().copied());
            }
        }
        for sequence in self.retained.values() {
            link(&mut sequence.iter().filter_map(|(_, message)| *message));
        }
        let mut published: BTreeMap<(usize, usize), Published> = BTreeMap::new();
        let everywhere: BTreeSet<usize> = sequences
            .iter()
            .flat_map(|seen| seen.values().flatten().copied())
            .collect();
        for number in everywhere {
            let message = &self.messages[number];
            if let Some(sent_at) = message.sent_at
                && !message.is_will
                && !message.is_api
            {
                let key = (message.publisher, message.topic);
                published
                    .entry(key)
                    .or_default()
                    .push((home_at(message.link), sent_at, number));
            }
        }
        for sequence in published.values_mut() {
            sequence.sort_unstable();
            link(&mut sequence.iter().map(|(.., number)| *number));
        }
        let mut free: Vec<usize> = (0..counts.len()).filter(|message| counts[*message] == 0).collect();
        let mut sorted = 0;
        while let Some(message) = free.pop() {
            sorted += 1;
            for next in &after[message] {
                counts[*next] -= 1;
                if counts[*next] == 0 {
                    free.push(*next);
                }
            }
        }
        let circle: Vec<usize> = (0..counts.len()).filter(|message| counts[*message] > 0).collect();
        assert!(sorted == counts.len(), "no one order holds messages {circle:?}");
    }

    /// By what publishers know alone: what is kept of a topic is not older than a retained message that was acknowledged.
    pub fn check_retained_is_newest(&self, kept: &BTreeMap<usize, usize>, route: impl Fn(usize) -> Route) {
        // What a publisher has sent again at QoS 1 may have its place twice, one after its acknowledgement.
        let is_over_before = |message: &Message, moment: u64| {
            let is_once = message.attempts <= 1 || message.qos == QoS::ExactlyOnce;
            is_once && message.acknowledged_at.is_some_and(|at| at < moment)
        };
        for (number, message) in self.messages.iter().enumerate().filter(|(_, message)| message.retain) {
            let (Some(sent_at), Some(_)) = (message.sent_at, message.acknowledged_at) else {
                continue;
            };
            if route(number) != Route::Surely || self.topics.retired[message.topic].is_some() {
                continue;
            }
            if let Some(kept) = kept.get(&message.topic) {
                assert!(
                    !is_over_before(&self.messages[*kept], sent_at),
                    "message {kept} is retained, and a newer one was acknowledged"
                );
            } else if message.len > 0 && !self.is_kept_bounded {
                let clears = |(number, other): &(usize, &Message)| {
                    other.retain
                        && other.topic == message.topic
                        && other.len == 0
                        && other.sent_at.is_some()
                        && route(*number) != Route::Never
                };
                let mut clearing = self.messages.iter().enumerate().filter(clears);
                assert!(
                    clearing.any(|(_, other)| !is_over_before(other, sent_at)),
                    "nothing is retained of topic {}, nobody cleared it after an acknowledged message",
                    message.topic
                );
            }
        }
    }

    /// What a fresh subscriber to `#` must get: topic and message.
    /// Nothing below a token that was rotated away.
    pub fn retained(&self) -> BTreeMap<usize, usize> {
        let kept = self
            .retained
            .iter()
            .filter_map(|(topic, order)| Some((topic, order.last()?.1?)));
        kept.map(|(topic, message)| (self.topics.topic_number(topic), message))
            .filter(|(topic, _)| self.topics.retired[*topic].is_none())
            .collect()
    }
}

impl World {
    /// The server has appended a packet to a client's outbox.
    pub fn server_wrote(&mut self, link: usize, packet: &ServerPacket<'_>) {
        let client = self.links[link].client;
        if let ServerPacket::ConnAck { session_present, code } = packet {
            let l = &mut self.links[link];
            assert!(!l.connack_seen, "CONNACK comes once");
            l.connack_seen = true;
            let expected = match l.is_refused {
                true => (false, ConnectReturnCode::ServerUnavailable),
                false => (l.resumed && l.level == Level::V311, ConnectReturnCode::Accepted),
            };
            assert_eq!((*session_present, *code), expected, "[MQTT-3.2.2-2]");
            return;
        }
        assert!(self.links[link].connack_seen, "CONNACK comes first [MQTT-3.2.0-1]");
        match packet {
            ServerPacket::Publish(publish) => {
                self.oracle.deliveries += 1;
                let message = message_number(publish.payload);
                if publish.retain && !publish.dup {
                    self.retained_written(client, message);
                }
                if let Some(message) = message {
                    let known = &self.oracle.messages[message];
                    assert_eq!(
                        publish.topic.as_str(),
                        self.oracle.topics.texts[known.topic],
                        "message {message}"
                    );
                    assert_eq!(publish.payload.len(), known.len, "message {message}");
                    assert!(publish.qos <= known.qos, "message {message} gained QoS");
                    assert!(
                        known.sent_at.is_some(),
                        "message {message} was not sent, or is the Will of a connection that ended with DISCONNECT"
                    );
                }
                let Some(id) = publish.packet_id.map(|id| id.get()) else {
                    return;
                };
                self.oracle.place += 1;
                let place = self.oracle.place;
                let inflight_max = self.oracle.inflight_max;
                let session = &mut self.oracle.sessions[client];
                let known = session.inflight.get_mut(&id);
                if publish.dup && known.is_none() {
                    // Nobody but the disk knows how far the last run of the broker had come.
                    let sent_at = message.and_then(|message| self.oracle.messages[message].sent_at);
                    assert!(
                        session.is_durable && sent_at.is_none_or(|sent_at| sent_at < self.oracle.crashed_at),
                        "DUP is set on what was not sent before"
                    );
                }
                if let Some(flow) = known
                    && publish.dup
                {
                    assert_eq!(flow.message, message, "identifier {id} sends another message again");
                    assert_ne!(flow.link, link, "sent again on the same connection");
                    assert!(!flow.is_released, "sent again after PUBREC");
                    self.met.sent_again += u64::from(flow.place < Some(self.oracle.crashed_place));
                    flow.link = link;
                    session.sends_again(id);
                } else {
                    let before = session.may_return.remove(&id);
                    let before = before.filter(|(flow, _)| flow.message == message);
                    let must_be_dup = |message: usize| {
                        before.is_some_and(|(_, is_certain)| is_certain) && self.oracle.messages[message].attempts <= 1
                    };
                    assert!(
                        // A retained message comes again with every subscription.
                        publish.dup || publish.retain || !message.is_some_and(must_be_dup),
                        "message {message:?} was sent as {id} before the crash: DUP is missing [MQTT-3.3.1-1]"
                    );
                    // Again, it keeps its place in the line. One that was published twice may have been another then.
                    let is_once = |message: usize| self.oracle.messages[message].attempts <= 1 && !publish.retain;
                    let place = match before {
                        _ if !publish.dup => Some(place),
                        Some((flow, _)) if message.is_some_and(is_once) => flow.place,
                        _ => None,
                    };
                    let flow = Inflight {
                        message,
                        qos: publish.qos,
                        is_released: false,
                        is_completing: false,
                        link,
                        place,
                    };
                    let in_use = session.inflight.insert(id, flow);
                    assert!(
                        in_use.is_none(),
                        "identifier {id} is in use, or DUP is missing [MQTT-2.3.1-4] [MQTT-3.3.1-1]"
                    );
                    let late = session
                        .to_send_again
                        .iter()
                        .find(|id| session.inflight.contains_key(id));
                    assert!(
                        publish.dup || late.is_none(),
                        "{id} is sent before {late:?}, which must be sent again [MQTT-4.4.0-1]"
                    );
                    let count = session.inflight.values().filter(|flow| flow.link == link).count();
                    assert!(count <= inflight_max, "{count} in flight");
                }
            }
            ServerPacket::SubAck(suback) => {
                let moment = self.moment;
                let granted = self.links[link].granted.get(&suback.packet_id.get());
                let granted = granted.expect("SUBACK answers a SUBSCRIBE");
                let session = &mut self.oracle.sessions[client];
                let c = &self.clients[client];
                match c.subscribing.get(&suback.packet_id.get()) {
                    Some(entries) if c.link == Some(link) => {
                        for ((filter, ..), _) in entries.iter().zip(granted).filter(|(_, granted)| **granted) {
                            if session.is_durable {
                                let number = session.number.expect("a durable Session has a number");
                                let key = (number, self.oracle.topics.filters[*filter].clone());
                                let mut records = self.oracle.subscribed.get(&key).into_iter().flatten();
                                assert!(
                                    records.any(|serial| self.oracle.on_disk[*serial]),
                                    "SUBACK {} leaves before its commit",
                                    suback.packet_id.get()
                                );
                            }
                            session.subacks.entry(*filter).or_default().push(moment);
                        }
                    }
                    _ => session.has_lost_subacks = true,
                }
            }
            ServerPacket::PubRel(id) => {
                let session = &mut self.oracle.sessions[client];
                session.sends_again(id.get());
                if let Some(flow) = session.inflight.get_mut(&id.get()) {
                    (flow.is_completing, flow.link) = (true, link);
                }
            }
            ServerPacket::PubComp(id) => {
                // The client may use the identifier for another message, which a crash must not make a repetition.
                let release = self.oracle.packet_id_releases.get(&(client, id.get()));
                assert!(
                    release.is_none_or(|serial| self.oracle.on_disk[*serial]),
                    "PUBCOMP {} leaves before its identifier is free on disk",
                    id.get()
                );
            }
            ServerPacket::PubAck(id) => self.acknowledges(link, client, id.get(), QoS::AtLeastOnce),
            ServerPacket::PubRec(id) => self.acknowledges(link, client, id.get(), QoS::ExactlyOnce),
            _ => {}
        }
    }

    /// A message leaves with RETAIN set: for a SUBACK that left before, and not published after that.
    fn retained_written(&mut self, client: usize, message: Option<usize>) {
        let number = message.expect("what is retained has a payload [MQTT-3.3.1-11]");
        let message = &self.oracle.messages[number];
        assert!(
            message.retain,
            "RETAIN is set on message {number}, which is not retained"
        );
        let sent_at = message.sent_at.expect("it was sent");
        let (oracle, topic) = (&self.oracle, message.topic);
        let session = &oracle.sessions[client];
        if session.has_lost_subacks {
            return;
        }
        let subacks = session
            .subacks
            .iter()
            .filter(|(filter, _)| oracle.topics.matches(**filter, topic));
        let subacks = subacks
            .flat_map(|(_, moments)| moments)
            .filter(|at| **at > sent_at)
            .count();
        assert!(
            subacks > 0,
            "retained message {number} comes before SUBACK, or was published after it"
        );
        let copies = self.oracle.sessions[client].retained.entry(number).or_default();
        *copies += 1;
        assert!(*copies <= subacks, "retained message {number} comes once too often");
    }

    /// PUBACK or PUBREC leaves: everything durable about its message is committed, and it is not on its way any more.
    fn acknowledges(&mut self, link: usize, client: usize, id: u16, qos: QoS) {
        if self.clients[client].link != Some(link) {
            return;
        }
        let Some(Outgoing { message, .. }) = self.clients[client].outgoing.iter().find(|out| out.id == id) else {
            return;
        };
        let number = *message;
        let oracle = &self.oracle;
        let message = &oracle.messages[number];
        if message.qos != qos {
            return;
        }
        let is_committed = |serial: &usize| oracle.on_disk[*serial];
        let records = oracle.records.get(&number).map_or(&[][..], Vec::as_slice);
        // Attempts at QoS 1 are messages of their own, each with its records.
        assert!(
            records.iter().all(is_committed) || (message.qos == QoS::AtLeastOnce && message.attempts > 1),
            "message {number} is acknowledged before its commit"
        );
        let session = &oracle.sessions[client];
        // A level 3 client's repetition may be answered in the turn in which its PUBREL came.
        let is_first = message.attempts <= 1 || self.links[link].level == Level::V311;
        // What is another account's is dropped; again, it is dropped again.
        let is_first = is_first
            && message.tenant == oracle.topics.purposes[message.topic].tenant()
            && oracle
                .topics
                .as_rotated(Route::Surely, message.topic, message.sent_at.unwrap_or(0), u64::MAX)
                == Route::Surely
            && !oracle
                .topics
                .may_be_of_the_past(message.tenant, self.links[link].home_at);
        if qos == QoS::ExactlyOnce
            && is_first
            && !session.is_revived
            && session.is_durable
            && session.link == Some(link)
        {
            let record = oracle.packet_id_records.get(&(client, id));
            assert!(
                record.is_some_and(is_committed),
                "PUBREC {id} leaves before its identifier is committed"
            );
        }
        self.check_everybody_has(number);
    }

    /// A message is acknowledged: whoever must have it does, or will whatever happens.
    pub fn check_everybody_has(&self, number: usize) {
        let oracle = &self.oracle;
        let message = &oracle.messages[number];
        let on_the_way = oracle.rings.get(&number).copied().unwrap_or(0);
        if message.len == 0 || message.attempts > 1 || self.route(number) != Route::Surely {
            return;
        }
        if message.retain && !oracle.is_kept_bounded {
            let order = oracle.retained.get(&oracle.topics.texts[message.topic]);
            assert!(
                order.is_some_and(|order| order.iter().any(|(_, recorded)| *recorded == Some(number))),
                "retained message {number} is not recorded ({:?})",
                oracle.topics.purposes[message.topic]
            );
        }
        assert_eq!(
            on_the_way, 0,
            "message {number} is acknowledged while it is between cores"
        );
        let records = oracle.records.get(&number).map_or(&[][..], Vec::as_slice);
        assert!(
            records.iter().all(|serial| oracle.on_disk[*serial]),
            "message {number} is acknowledged before its commit"
        );
        if oracle.ample_queue {
            let sent_at = message.sent_at.expect("it was sent");
            let due =
                |client: usize| self.clients[client].is_due(oracle, client, message, sent_at) > Some(QoS::AtMostOnce);
            for (client, session) in oracle.sessions.iter().enumerate() {
                if !session.exists || !session.is_durable || !due(client) {
                    continue;
                }
                let queued = oracle.queued.get(&number).map_or(&[][..], Vec::as_slice);
                let is_queued = queued
                    .iter()
                    .any(|(of, _, retain)| session.number == Some(*of) && !retain);
                assert!(
                    is_queued,
                    "message {number} is not recorded for the durable Session of client {client}, which waits for it"
                );
            }
        }
    }
}

impl ServerSession {
    /// `id` is sent again; what stood before it in the line must be over.
    fn sends_again(&mut self, id: u16) {
        if !self.to_send_again.contains(&id) {
            return;
        }
        while let Some(front) = self.to_send_again.pop_front() {
            if front == id {
                return;
            }
            assert!(
                !self.inflight.contains_key(&front),
                "{id} is sent again before {front} [MQTT-4.6.0-6]"
            );
        }
    }
}

impl Oracle {
    /// No queue can fill, so nothing above QoS 0 may be missing.
    pub fn ample(&self) -> bool {
        self.ample_queue
    }
}
