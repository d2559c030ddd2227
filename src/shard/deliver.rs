//! A message at the home core of its subscribers, and their answers.
//!
//! Called  by `shard::topic`, with `Deliver` from an owner core, and on PUBACK, PUBREC, PUBCOMP and `Input::Sent`.
//! Holds   - QoS 0 to a client that is keeping up: one lookup, one append to its outbox;
//!         - one Session never holds up another: what it cannot take is queued or dropped by its own bounds, and counted;
//!         - a message for several durable Sessions is one allocation and one record.

use crate::mqtt::encode;
use crate::mqtt::packet::{PacketId, QoS};
use crate::session::message::{Message, SharedMessage};
use crate::session::outbound::{Limits, Offered, Outbound, WrongAcknowledgement};

use super::clients::Clients;
use super::event::{CloseReason, ConnectionId, PeerId, RecordNumber, Violation};
use super::receipt::{AwaitsCommit, ReceiptId};
use super::record::{QueueEntry, Record};
use super::{Shard, mark};

impl Shard {
    /// Gives a message to every Session of this core that wants it. Returns the record that an acknowledgement of the
    /// message must wait for, if a durable Session has it.
    pub(super) fn deliver(&mut self, message: &Message<'_>) -> Option<RecordNumber> {
        let mut targets = std::mem::take(&mut self.targets);
        self.subscriptions.matches(message.topic, &mut targets);
        self.counters.matched += targets.len() as u64;
        let mut shared = None;
        let mut durable = Vec::new();
        let limits = self.delivery_limits;
        for target in &targets {
            let qos = message.qos.min(target.qos);
            self.deliver_to(target.session, message, &mut shared, qos, false, &limits, &mut durable);
        }
        self.targets = targets;
        if durable.is_empty() {
            return None;
        }
        let message = shared.expect("a durable Session keeps its message");
        Some(self.persist(Record::Queued {
            message,
            entries: durable,
            origin: None,
        }))
    }

    /// A message from the owner of its topic.
    pub(super) fn deliver_from(&mut self, receipt: Option<(PeerId, ReceiptId)>, message: &Message<'_>) {
        let record = self.deliver(message);
        match (receipt, record) {
            (Some((home, receipt)), Some(record)) => {
                self.awaits_commit.push_back(AwaitsCommit { record, home, receipt });
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
        let client = &mut sessions[session as usize];
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
                    let durable = !client.is_clean();
                    let outbox = Some((&mut connection.outbox, &mut self.pool));
                    client
                        .outbound()
                        .offer(message, shared, qos, retain, durable, outbox, limits)
                };
                if offered == Offered::Sent {
                    mark(connection, id, &mut self.outputs);
                }
                offered
            }
            None if qos == QoS::AtMostOnce => Offered::DroppedAway,
            None => client
                .outbound()
                .offer(message, shared, qos, retain, true, None, limits),
        };
        match offered {
            Offered::Sent => match qos {
                QoS::AtMostOnce => self.counters.delivered_qos0 += 1,
                QoS::AtLeastOnce => self.counters.delivered_qos1 += 1,
                QoS::ExactlyOnce => self.counters.delivered_qos2 += 1,
            },
            Offered::Queued => {}
            Offered::DroppedOutboxFull => self.counters.dropped_outbox_full += 1,
            Offered::DroppedQueueFull => self.counters.dropped_queue_full += 1,
            Offered::DroppedAway => self.counters.dropped_away += 1,
        }
        if matches!(offered, Offered::Sent | Offered::Queued) && qos != QoS::AtMostOnce && !client.is_clean() {
            durable.push(QueueEntry {
                session: client.number,
                sequence: 0,
                qos,
                retain,
            });
        }
    }

    pub(super) fn puback(&mut self, id: ConnectionId, packet_id: PacketId) {
        self.acknowledged(id, |outbound| outbound.puback(packet_id));
    }

    pub(super) fn pubcomp(&mut self, id: ConnectionId, packet_id: PacketId) {
        self.acknowledged(id, |outbound| outbound.pubcomp(packet_id));
    }

    pub(super) fn pubrec(&mut self, id: ConnectionId, packet_id: PacketId) {
        if self.acknowledged(id, |outbound| outbound.pubrec(packet_id)) {
            self.write(id, |out| encode::pubrel(out, packet_id));
        }
    }

    /// Applies an acknowledgement and sends what the window now allows. `false` if it closed the connection.
    fn acknowledged(
        &mut self,
        id: ConnectionId,
        apply: impl FnOnce(&mut Outbound) -> Result<(), WrongAcknowledgement>,
    ) -> bool {
        let client = self.clients.connections[id.index as usize].client;
        let Some(outbound) = &mut self.clients.sessions[client as usize].outbound else {
            return true;
        };
        if apply(outbound).is_err() {
            self.close(id, CloseReason::Violation(Violation::WrongAcknowledgement));
            return false;
        }
        if !outbound.is_clear() {
            self.refill(id);
        }
        true
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
        let durable = !client.is_clean();
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
            outbound.refill(&mut connection.outbox, pool, level, durable, limits, wrote);
            if connection.outbox.len() > before {
                mark(connection, id, &mut self.outputs);
            }
        }
        if connection.scans.is_some() {
            self.advance_scans(id);
        }
    }
}
