//! A message at the home core of its subscribers, and their answers.
//!
//! Called  by `shard::topic`, with `Deliver` from an owner core, and on PUBACK, PUBREC, PUBCOMP and `Input::Sent`.
//! Holds   - QoS 0 to a client that is keeping up: one lookup, one append to its outbox;
//!         - one Session never holds up another: what it cannot take is queued or dropped by its own bounds, and counted;
//!         - a message for several durable Sessions is one allocation and one record.

use crate::limits::{QUEUE_WINDOW_BYTES, QUEUE_WINDOW_MESSAGES};
use crate::mqtt::encode;
use crate::mqtt::packet::{PacketId, QoS};
use crate::mqtt::topic::TopicName;
use crate::routing::recent::Recent;
use crate::routing::subscriptions::Target;
use crate::session::message::{Message, SharedMessage};
use crate::session::outbound::{Keeping, Limits, Offered, Outbound, PubRec, Returned, WrongAcknowledgement};

use super::clients::Clients;
use super::event::{CloseReason, ConnectionId, Output, PeerId, RecordNumber, Violation};
use super::message::Doubt;
use super::overflow::Publisher;
use super::quota::{charge, without_room};
use super::receipt::{ReceiptId, Then};
use super::record::{Fetch, QueueEntry, QueueFetch, QueueWindow, Record, SessionKey};
use super::{Shard, mark};

impl Shard {
    /// Gives a message to every Session of this core that wants it. Returns the record that an acknowledgement of the
    /// message must wait for, if a durable Session has it.
    pub(super) fn deliver(&mut self, message: &Message<'_>, origin: Option<Doubt>) -> Option<RecordNumber> {
        let targets = self.find_targets(message.topic);
        let without;
        let wanting = match origin
            .filter(|doubt| doubt.is_again)
            .and_then(|doubt| self.in_doubt.get(&doubt.origin))
        {
            None => targets.answer(),
            Some(have_it) => {
                let sessions = &self.clients.sessions;
                let lacks_it = |target: &&Target| !have_it.contains(&sessions[target.session as usize].number);
                without = Vec::from_iter(targets.answer().iter().filter(lacks_it).copied());
                &without
            }
        };
        self.counters.matched += wanting.len() as u64;
        let mut shared = None;
        let mut durable = Vec::new();
        let limits = self.delivery_limits;
        for target in wanting {
            let qos = message.qos.min(target.qos);
            self.deliver_to(target.session, message, &mut shared, qos, false, &limits, &mut durable);
        }
        self.targets = targets;
        if durable.is_empty() {
            return None;
        }
        let message = shared.expect("a durable Session keeps its message");
        // On one core the identifier is on disk before its message, in the same unit: the message is not in doubt, and
        // nothing would end that doubt.
        let origin = origin.filter(|_| self.cores > 1);
        Some(self.persist(Record::Queued {
            message,
            entries: durable,
            origin: origin.map(|doubt| doubt.origin),
        }))
    }

    /// The Sessions of this core that want the topic; given back to `targets` by the caller.
    #[inline]
    pub(super) fn find_targets(&mut self, topic: TopicName<'_>) -> Recent<Target> {
        let mut targets = std::mem::take(&mut self.targets);
        let subscriptions = &mut self.subscriptions;
        targets.look_up(topic, subscriptions.version(), |found| {
            subscriptions.matches(topic, found)
        });
        targets
    }

    /// A message from the owner of its topic.
    pub(super) fn deliver_from(
        &mut self,
        receipt: Option<(PeerId, ReceiptId)>,
        origin: Option<Doubt>,
        message: &Message<'_>,
    ) {
        let record = self.deliver(message, origin);
        self.delivered(receipt, record);
    }

    /// Everybody here has what the owner of its topic sent: confirms it, once this record is on disk.
    pub(super) fn delivered(&mut self, receipt: Option<(PeerId, ReceiptId)>, record: Option<RecordNumber>) {
        let publisher = receipt.map(|(home, receipt)| Publisher::At(home, receipt));
        self.hold_back(publisher);
        if record.is_some() {
            self.hold_back_for_disk(publisher);
        }
        match (receipt, record) {
            (Some((home, receipt)), Some(record)) => {
                self.after_commit(record, Then::Confirm { home, receipt });
            }
            (Some((home, receipt)), None) => self.confirm(home, receipt),
            (None, _) => {}
        }
    }

    /// Gives a message to one Session at `qos`; a durable one that keeps it is added to `durable`.
    #[inline]
    pub(super) fn deliver_to(
        &mut self,
        session: u32,
        message: &Message<'_>,
        shared: &mut Option<SharedMessage>,
        qos: QoS,
        retain: bool,
        limits: &Limits,
        durable: &mut Vec<QueueEntry>,
    ) {
        let Clients {
            sessions, connections, ..
        } = &mut self.clients;
        // The one that all entries of this message will be in.
        let record = RecordNumber(self.last_record.0 + 1);
        let client = &mut sessions[session as usize];
        let keeping = match client.is_clean() {
            true => Keeping::Clean,
            false => Keeping::Durable { record: record.0 },
        };
        // For what may have to wait: `None` if it may.
        let (access, account, limits_kept) = (&self.access, client.account, self.limits_kept);
        let no_room = || match limits_kept {
            true => without_room(access, account, message, limits),
            false => None,
        };
        let mut is_out_of_room = false;
        let link = client.connection.map(|id| (id, &mut connections[id.index as usize]));
        let offered = match link {
            Some((id, connection)) => {
                let clear = client.outbound.as_ref().is_none_or(|outbound| outbound.is_clear());
                let offered = if qos == QoS::AtMostOnce && clear {
                    if connection.outbox.len() < limits.outbox_bytes_max {
                        let out = connection.outbox.writer(&mut self.pool);
                        encode::publish(out, false, qos, retain, message.topic.as_str(), None, message.payload);
                        Offered::Sent
                    } else {
                        Offered::DroppedOutboxFull
                    }
                } else {
                    let no_room = no_room();
                    is_out_of_room = no_room.is_some();
                    let limits = no_room.as_ref().unwrap_or(limits);
                    let outbox = Some((&mut connection.outbox, &mut self.pool));
                    client
                        .outbound()
                        .offer(message, shared, qos, retain, keeping, outbox, limits)
                };
                if offered == Offered::Sent {
                    mark(connection, id, &mut self.outputs);
                }
                offered
            }
            None if qos == QoS::AtMostOnce => Offered::DroppedAway,
            None => {
                let no_room = no_room();
                is_out_of_room = no_room.is_some();
                let limits = no_room.as_ref().unwrap_or(limits);
                client
                    .outbound()
                    .offer(message, shared, qos, retain, keeping, None, limits)
            }
        };
        match offered {
            Offered::Sent => match qos {
                QoS::AtMostOnce => self.counters.delivered_qos0 += 1,
                QoS::AtLeastOnce => self.counters.delivered_qos1 += 1,
                QoS::ExactlyOnce => self.counters.delivered_qos2 += 1,
            },
            Offered::Queued => charge(&self.access, client.account, client.outbound()),
            Offered::QueuedFull => {
                charge(&self.access, client.account, client.outbound());
                self.overflows.filled.push(SessionKey {
                    index: session,
                    number: client.number,
                });
            }
            Offered::DroppedOutboxFull => self.counters.dropped_outbox_full += 1,
            Offered::DroppedQueueFull => {
                self.counters.dropped_queue_full += 1;
                self.counters.refused_account_storage += u64::from(is_out_of_room);
            }
            Offered::DroppedAway => self.counters.dropped_away += 1,
        }
        let is_kept = matches!(offered, Offered::Sent | Offered::Queued | Offered::QueuedFull);
        if is_kept && qos != QoS::AtMostOnce && keeping != Keeping::Clean {
            durable.push(QueueEntry {
                session: client.number,
                sequence: client.outbound().last_sequence(),
                qos,
                retain,
            });
            if qos == QoS::ExactlyOnce && client.connection.is_some() {
                let key = self.clients.key(session);
                self.after_commit(record, Then::Send(key));
            }
        }
    }

    pub(super) fn puback(&mut self, id: ConnectionId, packet_id: PacketId) {
        self.ended(id, |outbound| outbound.puback(packet_id));
    }

    pub(super) fn pubcomp(&mut self, id: ConnectionId, packet_id: PacketId) {
        self.ended(id, |outbound| outbound.pubcomp(packet_id));
    }

    /// PUBREC. A durable Session's PUBREL waits for the disk: after it the client forgets the message, and must not get it
    /// again after a crash.
    pub(super) fn pubrec(&mut self, id: ConnectionId, packet_id: PacketId) {
        let client = self.clients.connections[id.index as usize].client;
        let client = &mut self.clients.sessions[client as usize];
        let (session, is_clean) = (client.number, client.is_clean());
        let outbound = client.outbound.as_mut();
        let meaning = outbound.map_or(Ok(PubRec::Unknown), |outbound| outbound.pubrec(packet_id));
        let record = match meaning {
            Err(WrongAcknowledgement) => {
                self.close(id, CloseReason::Violation(Violation::WrongAcknowledgement));
                return;
            }
            Ok(PubRec::TooEarly) => return,
            Ok(PubRec::Released(sequence)) if !is_clean => self.persist(Record::Released { session, sequence }),
            Ok(PubRec::Repeated) if !is_clean => self.last_record,
            Ok(_) => {
                self.write(id, |out| encode::pubrel(out, packet_id));
                return;
            }
        };
        let connection = id;
        self.after_commit(record, Then::Release { connection, packet_id });
    }

    /// Applies PUBACK or PUBCOMP and sends what the window now allows.
    fn ended(
        &mut self,
        id: ConnectionId,
        apply: impl FnOnce(&mut Outbound) -> Result<Option<u64>, WrongAcknowledgement>,
    ) {
        let client = self.clients.connections[id.index as usize].client;
        let client = &mut self.clients.sessions[client as usize];
        let (session, is_clean) = (client.number, client.is_clean());
        let Some(outbound) = &mut client.outbound else { return };
        let Ok(ended) = apply(outbound) else {
            self.close(id, CloseReason::Violation(Violation::WrongAcknowledgement));
            return;
        };
        let is_clear = outbound.is_clear();
        if let Some(sequence) = ended
            && !is_clean
        {
            self.persist(Record::Delivered { session, sequence });
        }
        if !is_clear {
            self.refill(id);
        }
    }

    /// The store has read a part of a Session's queue.
    pub(super) fn queue_fetched(&mut self, window: QueueWindow) {
        let QueueWindow {
            session,
            entries,
            is_end,
        } = window;
        let Some(client) = self.clients.session(session) else {
            return;
        };
        let entries = entries.into_iter().map(|entry| Returned {
            sequence: entry.sequence,
            qos: entry.qos,
            retain: entry.retain,
            released: entry.released,
            message: entry.message,
        });
        let connection = client.connection;
        let outbound = client.outbound.as_mut();
        let outbound = outbound.expect("deliveries that wait for the store are not idle");
        self.counters.dropped_damaged += outbound.returned(entries, is_end);
        charge(&self.access, client.account, outbound);
        if let Some(id) = connection {
            self.refill(id);
        }
    }

    /// The socket took bytes: there may be room for what waits.
    pub(super) fn sent(&mut self, id: ConnectionId, bytes: usize) {
        let Some(connection) = self.clients.connections.get_mut(id.index as usize) else {
            return;
        };
        if connection.generation != id.generation {
            return;
        }
        connection.outbox.take(bytes, &mut self.pool);
        let unsent = connection.outbox.len();
        if unsent == 0 {
            connection.transmit_said = false;
        }
        if unsent < crate::limits::OUTBOX_FLUSH_BYTES {
            connection.flush_said = false;
        }
        let waits = connection.scans.is_some()
            || self
                .clients
                .open_connection(id)
                .map(|connection| connection.client)
                .is_some_and(|client| {
                    let outbound = &self.clients.sessions[client as usize].outbound;
                    outbound.as_ref().is_some_and(|outbound| !outbound.is_clear())
                });
        if waits {
            self.refill(id);
        }
    }

    /// Writes what waits for this client as far as window and outbox allow, then goes on with its retained messages.
    pub(super) fn refill(&mut self, id: ConnectionId) {
        if self.clients.open_connection(id).is_none() {
            return;
        }
        let Clients {
            sessions, connections, ..
        } = &mut self.clients;
        let connection = &mut connections[id.index as usize];
        let client = &mut sessions[connection.client as usize];
        if let Some(outbound) = &mut client.outbound {
            let before = connection.outbox.len();
            let counters = &mut self.counters;
            let level = connection.level();
            let wrote = |qos, again| match (again, qos) {
                (true, _) => counters.redelivered += 1,
                (false, QoS::AtMostOnce) => counters.delivered_qos0 += 1,
                (false, QoS::AtLeastOnce) => counters.delivered_qos1 += 1,
                (false, QoS::ExactlyOnce) => counters.delivered_qos2 += 1,
            };
            let (pool, limits) = (&mut self.pool, &self.delivery_limits);
            outbound.refill(&mut connection.outbox, pool, level, self.committed.0, limits, wrote);
            charge(&self.access, client.account, outbound);
            if let Some((from, after)) = outbound.wants_stored(self.committed.0) {
                let session = SessionKey {
                    index: connection.client,
                    number: client.number,
                };
                self.fetches += 1;
                self.outputs.push_back(Output::Fetch(Box::new(Fetch::Queue(QueueFetch {
                    session,
                    after: RecordNumber(after),
                    from,
                    entries_max: QUEUE_WINDOW_MESSAGES / 2,
                    bytes_max: QUEUE_WINDOW_BYTES / 2,
                }))));
            }
            if connection.outbox.len() > before {
                mark(connection, id, &mut self.outputs);
            }
            if self.overflows.is_any_full() && outbound.has_drained(&self.delivery_limits) {
                let session = SessionKey {
                    index: connection.client,
                    number: client.number,
                };
                self.let_go(session);
            }
        }
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        if connection.scans.is_some() {
            self.advance_scans(id);
        }
    }
}
