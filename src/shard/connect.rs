//! A client comes home, and every way it leaves.
//!
//! Called  on `Input::Connected` and `Input::Disconnected`, and by `Shard::close`.
//! Holds   - who comes beyond what its account may have is refused, and has ended nothing; who takes over needs no room;
//!         - CONNACK is the first packet of a connection [MQTT-3.2.0-1];
//!         - one connection per Client Identifier: the older is closed first, its Will published [MQTT-3.1.4-2];
//!         - a clean Session ends with its connection, a durable one when a clean CONNECT replaces it [MQTT-3.1.2-6], which
//!           is answered when the disk knows, or when its client has stayed away for too long (`shard::expiry`).

use crate::mqtt::encode;
use crate::mqtt::packet::{Connect, Level, Will};
use crate::mqtt::reason::ConnectReturnCode;
use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::registry::access::{Access, AccountId};
use crate::routing::shard_key::Owners;
use crate::routing::subscriptions::Unsubscribed;
use crate::session::message::Message;
use crate::session::will::Ending;

use super::clients::{Client, Connection, State, paused};
use super::event::{CloseReason, ConnectionId, Lane, Output, PeerId};
use super::message::{Published, ShardMessage};
use super::receipt::Then;
use super::record::Record;
use super::{Shard, mark};

impl Shard {
    pub(super) fn connected(&mut self, id: ConnectionId, connect: Connect, account: AccountId) {
        let existing = self.clients.find(account, &connect.client_id);
        if !self.take_places(account, connect.clean_session, existing) {
            return self.refuse(id);
        }
        if let Some(older) = existing.and_then(|client| self.clients.sessions[client as usize].connection) {
            self.close(older, CloseReason::TakenOver);
        }
        // A clean Session has ended with its connection just now; a durable one is still there.
        let existing = self.clients.find(account, &connect.client_id);
        let (client, session_present) = match existing {
            Some(client) if !connect.clean_session => (client, true),
            replaced => {
                if let Some(replaced) = replaced {
                    self.counters.dropped_session_ended += self.end_session(replaced);
                }
                let client_id = connect.client_id.into_boxed_str();
                let client = self.clients.insert(account, client_id, connect.clean_session);
                if !connect.clean_session {
                    let Client { client_id, number, .. } = &self.clients.sessions[client as usize];
                    let (session, client_id) = (*number, client_id.clone());
                    self.persist(Record::SessionStarted {
                        session,
                        account,
                        client_id,
                    });
                }
                (client, false)
            }
        };
        self.clients.sessions[client as usize].connection = Some(id);
        if session_present {
            self.client_is_back(self.clients.sessions[client as usize].number);
        }

        let now = self.now;
        let connection = self.place_of(id);
        *connection = Connection {
            will: connect.will.map(Box::new),
            generation: id.generation,
            client,
            last_packet: now,
            connected: now,
            keep_alive_s: connect.keep_alive_s,
            level_is_v31: connect.level == Level::V31,
            state: State::Open,
            ..Connection::default()
        };
        let deadline = connection.silence_deadline();
        if let Some(deadline) = deadline {
            self.deadlines.arm(id, deadline);
        }
        self.clients.open += 1;
        self.counters.connects_accepted += 1;
        if !session_present && self.last_ended > self.committed {
            // Who is told that its old Session is gone must not find it again after a crash [MQTT-3.1.2-6], whether this
            // connection or an earlier one has ended it. The new one has no subscription yet, so nothing comes before
            // CONNACK.
            self.pause(id, paused::ENDED_SESSION);
            self.after_commit(self.last_record, Then::Accept { connection: id });
        } else {
            self.accept(id, session_present);
        }
    }

    /// Takes what a CONNECT needs of its account's bounds; false if there is none left.
    fn take_places(&mut self, account: AccountId, clean_session: bool, existing: Option<u32>) -> bool {
        let Some(tenant) = self.access.tenant(account) else {
            // Where there are accounts, this one is gone, or so new that only the core that has let it in has heard of it: what
            // nobody counts here must not be given back once it is known.
            return matches!(self.access, Access::Open);
        };
        let (usage, quotas) = (&tenant.usage, &tenant.quotas);
        let existing = existing.map(|client| &self.clients.sessions[client as usize]);
        if existing.is_some_and(|client| client.connection.is_some()) {
            // The older gives its place back in a moment.
            usage.connections.add();
        } else if !usage.connections.take(quotas.connections_max) {
            self.counters.refused_account_connections += 1;
            return false;
        }
        let resumes = existing.is_some_and(|client| !client.is_clean());
        if !clean_session && !resumes && !usage.sessions.take(quotas.sessions_max) {
            usage.connections.give_back(1);
            self.counters.refused_account_sessions += 1;
            return false;
        }
        true
    }

    /// CONNACK with return code 3, and the end.
    fn refuse(&mut self, id: ConnectionId) {
        self.counters.connects_refused += 1;
        *self.place_of(id) = Connection {
            generation: id.generation,
            ..Connection::default()
        };
        let out = self.clients.connections[id.index as usize]
            .outbox
            .writer(&mut self.pool);
        encode::connack(out, false, ConnectReturnCode::ServerUnavailable);
        self.outputs.push_back(Output::Close(id, CloseReason::Refused));
    }

    /// Where a new connection goes.
    fn place_of(&mut self, id: ConnectionId) -> &mut Connection {
        let index = id.index as usize;
        if self.clients.connections.len() <= index {
            self.clients.connections.resize_with(index + 1, Connection::default);
        }
        let connection = &mut self.clients.connections[index];
        assert!(
            connection.state == State::Closed,
            "the shell reuses an id after it said that its socket is gone"
        );
        connection
    }

    /// CONNACK, then whatever waits for the client.
    pub(super) fn accept(&mut self, id: ConnectionId, session_present: bool) {
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        // Level 3 has no Session Present: that byte is reserved.
        let session_present = session_present && connection.level() == Level::V311;
        let out = connection.outbox.writer(&mut self.pool);
        encode::connack(out, session_present, ConnectReturnCode::Accepted);
        mark(connection, id, &mut self.outputs);
        self.resume(id, paused::ENDED_SESSION);
        self.refill(id);
    }

    /// The socket is gone.
    pub(super) fn disconnected(&mut self, id: ConnectionId) {
        self.end_connection(id, Ending::Abnormal);
        if let Some(connection) = self.clients.connections.get_mut(id.index as usize)
            && connection.generation == id.generation
        {
            connection.outbox.clear(&mut self.pool);
        }
    }

    /// Takes Session and connection apart; does nothing for a connection that has ended before. The outbox stays for the
    /// shell to write.
    pub(super) fn end_connection(&mut self, id: ConnectionId, ending: Ending) {
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        connection.state = State::Closed;
        connection.acknowledgements = None;
        connection.scans = None;
        let will = connection.will.take();
        let index = connection.client;
        self.clients.open -= 1;
        self.let_go(self.clients.key(index));
        let client = &mut self.clients.sessions[index as usize];
        let account = client.account;
        client.connection = None;
        if let Some(tenant) = self.access.tenant(account) {
            tenant.usage.connections.give_back(1);
        }
        if client.is_clean() {
            self.counters.dropped_session_ended += self.end_session(index);
        } else {
            if let Some(outbound) = &mut client.outbound {
                // QoS 0 waits for nobody who is away.
                self.counters.dropped_away += outbound.disconnected(self.last_record.0) as u64;
            }
            if let Some(received) = &mut client.received {
                received.disconnected();
            }
            self.charge(index);
            self.clients.sessions[index as usize].trim();
            let key = self.clients.key(index);
            self.client_left(key);
        }
        if let Some(will) = will
            && ending.publishes_will()
        {
            self.publish_will(account, &will);
        }
    }

    /// The Session's state is gone for good [MQTT-3.2.2-1].
    /// Returns how many messages waited for it, for the caller to count.
    pub(super) fn end_session(&mut self, index: u32) -> u64 {
        let client = self.clients.remove(index);
        let queued = client.outbound.as_ref().map_or(0, |outbound| outbound.queued());
        self.give_back_all_of(&client);
        if !client.is_clean() {
            self.forget_expiry(client.number);
            self.last_ended = self.persist(Record::SessionEnded { session: client.number });
        }
        let mut text = std::mem::take(&mut self.text);
        for filter in client.filters.as_slice() {
            text.clear();
            text.push_str(self.subscriptions.filter_text(*filter));
            if let Unsubscribed::LastOnCore(_) = self.subscriptions.unsubscribe_id(*filter, index) {
                self.withdraw(client.account, TopicFilter::trusted(&text));
            }
        }
        self.text = text;
        queued
    }

    /// The last holder on this core of `filter` is gone: its owners need not send what matches it any more.
    pub(super) fn withdraw(&mut self, account: AccountId, filter: TopicFilter<'_>) {
        if self.cores == 1 {
            return;
        }
        let owners = match self.shard_key.owners(account, filter) {
            Owners::All => 0..self.cores,
            Owners::One(core) => core..core + 1,
        };
        for core in owners {
            if core == self.core.0 {
                self.interest.remove(filter, core);
            } else {
                self.send(PeerId(core), Lane::ToOwner, &ShardMessage::Withdraw { filter });
            }
        }
    }

    fn publish_will(&mut self, account: AccountId, will: &Will) {
        let topic = TopicName::trusted(&will.topic);
        if !self.access.may_publish(account, topic) {
            self.counters.publishes_refused += 1;
            self.counters.refused_bad_token += 1;
            return;
        }
        self.counters.wills_published += 1;
        let message = Message {
            topic,
            payload: &will.payload,
            qos: will.qos,
        };
        // Nobody is owed an acknowledgement, so nothing waits for a receipt.
        let published = Published {
            account,
            message,
            retain: will.retain,
            origin: None,
        };
        self.dispatch(&published, None);
        self.hold_back(None);
    }
}
