//! A client's PUBLISH on its home core: acknowledge last.
//!
//! Called  with every PUBLISH and PUBREL of a client, with a Will, and when a receipt is complete.
//! Gives   the message to the owner core of its topic: `shard::topic` if that is this one, else over the mesh.
//! Holds   - PUBACK and PUBREC leave when everybody concerned has the message and the disk has what is durable about it;
//!         - QoS 0 waits for nothing;
//!         - whoever fills a peer's batch past its bound is paused; what was sent is not lost.

use crate::limits::RECEIPTS_PER_CONNECTION_MAX;
use crate::mqtt::encode;
use crate::mqtt::packet::{PacketId, Publish, QoS};
use crate::mqtt::topic::TopicName;
use crate::registry::access::AccountId;
use crate::session::inbound::{Acknowledgement, Received};
use crate::session::message::Message;

use super::clients::{Connection, paused};
use super::event::{ConnectionId, Lane, PeerId};
use super::message::{Doubt, Published, ShardMessage};
use super::overflow::Publisher;
use super::receipt::{ClientSender, RunSender, Sender, Then};
use super::record::{Origin, Record};
use super::{Shard, mark};

/// Where a message stands when the home core has done its part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dispatched {
    /// A receipt is open: the acknowledgement waits.
    pub waits: bool,
    /// This peer's batch is past its bound: the publisher pauses.
    pub congested: Option<(PeerId, Lane)>,
}

impl Shard {
    #[inline]
    pub(super) fn publish(&mut self, id: ConnectionId, publish: Publish<'_>) {
        let Publish {
            qos,
            retain,
            topic,
            packet_id,
            payload,
            dup,
        } = publish;
        let connection = &mut self.clients.connections[id.index as usize];
        let index = connection.client;
        let account = self.clients.sessions[index as usize].account;
        let message = Message { topic, payload, qos };
        let published = Published {
            account,
            message,
            retain,
            origin: None,
        };
        let allowed = self.access.may_publish(account, topic);
        let Some(packet_id) = packet_id else {
            self.counters.publishes_qos0 += 1;
            if !allowed {
                self.counters.publishes_refused += 1;
                self.counters.refused_bad_token += 1;
                return;
            }
            let dispatched = self.dispatch(&published, None);
            self.pause_if_congested(id, dispatched);
            return;
        };

        let sequence = connection
            .acknowledgements
            .as_ref()
            .map_or(0, |owed| owed.next_sequence());
        let mut sender = ClientSender {
            connection: id,
            sequence,
            packet_id: None,
        };
        let mut origin = None;
        let acknowledgement = if qos == QoS::AtLeastOnce {
            self.counters.publishes_qos1 += 1;
            Acknowledgement::PubAck(packet_id)
        } else {
            self.counters.publishes_qos2 += 1;
            let key = self.clients.key(index);
            let client = &mut self.clients.sessions[index as usize];
            let received = client.received.get_or_insert_default();
            sender.packet_id = Some((key, packet_id));
            match received.receive(packet_id) {
                Received::New => {
                    if !client.is_clean() {
                        origin = Some(Origin {
                            session: key.number,
                            packet_id,
                        });
                    }
                    Acknowledgement::PubRec(packet_id)
                }
                Received::Repeated => {
                    self.counters.publishes_repeated += 1;
                    self.owe(id, Acknowledgement::PubRec(packet_id), true);
                    return;
                }
                Received::RepeatedTooEarly => {
                    self.counters.publishes_repeated += 1;
                    received.wait(packet_id, sequence);
                    self.owe(id, Acknowledgement::PubRec(packet_id), false);
                    return;
                }
            }
        };
        if !allowed {
            // 3.1.1 cannot report it: acknowledged as usual, and dropped [MQTT-3.3.5-2].
            self.counters.publishes_refused += 1;
            self.counters.refused_bad_token += 1;
            self.owe(id, acknowledgement, true);
            return;
        }
        let dispatched = match origin {
            None => self.dispatch(&published, Some(Sender::Client(sender))),
            Some(origin) => self.dispatch_once(&published, sender, origin, dup),
        };
        self.hold_back(Some(Publisher::Here(id)));
        if dispatched.waits
            && let Some((key, packet_id)) = sender.packet_id
            && let Some(received) = self.clients.session(key).and_then(|client| client.received.as_mut())
        {
            received.routing(packet_id);
        }
        self.owe(id, acknowledgement, !dispatched.waits);
        self.pause_if_congested(id, dispatched);
    }

    /// PUBREL: the identifier is free again. PUBCOMP in any case [MQTT-4.3.3-2], but not before the disk knows: the client
    /// may use the identifier for another message, which must not be taken for a repetition after a crash.
    pub(super) fn pubrel(&mut self, id: ConnectionId, packet_id: PacketId) {
        let index = self.clients.connections[id.index as usize].client;
        let client = &mut self.clients.sessions[index as usize];
        let was_known = client
            .received
            .as_mut()
            .is_some_and(|received| received.release(packet_id));
        if client.is_clean() {
            self.write(id, |out| encode::pubcomp(out, packet_id));
            return;
        }
        let session = client.number;
        let record = match was_known {
            true => self.persist(Record::PacketIdReleased { session, packet_id }),
            false => self.last_record,
        };
        let connection = id;
        self.after_commit(record, Then::Complete { connection, packet_id });
    }

    /// Gives a message to the owner of its topic. With a sender, opens a receipt unless everything is done at once.
    #[inline]
    pub(super) fn dispatch(&mut self, published: &Published<'_>, sender: Option<Sender>) -> Dispatched {
        self.dispatch_recorded(published, sender, None)
    }

    /// The same for a QoS 2 message of a durable Session, which must come through exactly once whenever the broker stops.
    /// On one core identifier and message are one unit for the store: both are on disk, or neither. On several the
    /// identifier follows when everybody has the message, which till then carries its origin, so that whoever has it
    /// already knows it again.
    fn dispatch_once(
        &mut self,
        published: &Published<'_>,
        sender: ClientSender,
        origin: Origin,
        dup: bool,
    ) -> Dispatched {
        // What is sent again says so [MQTT-3.3.1-1]; else it is another message, of a client that has lost its state.
        if self.cores == 1 {
            let is_again = dup && self.in_doubt.contains_key(&origin);
            let doubt = is_again.then_some(Doubt { origin, is_again });
            let Origin { session, packet_id } = origin;
            let record = self.persist(Record::PacketIdReceived { session, packet_id });
            let published = Published {
                origin: doubt,
                ..*published
            };
            let dispatched = self.dispatch_recorded(&published, Some(Sender::Client(sender)), Some(record));
            self.in_doubt.remove(&origin);
            return dispatched;
        }
        let is_again = self.unsettled.remove(&origin) && dup;
        let published = Published {
            origin: Some(Doubt { origin, is_again }),
            ..*published
        };
        let dispatched = self.dispatch_recorded(&published, Some(Sender::Client(sender)), None);
        if !dispatched.waits {
            self.receive(sender, origin);
        }
        Dispatched {
            waits: true,
            ..dispatched
        }
    }

    /// Everybody has the message: its identifier goes to disk, and PUBREC follows.
    fn receive(&mut self, sender: ClientSender, origin: Origin) {
        let Origin { session, packet_id } = origin;
        let record = self.persist(Record::PacketIdReceived { session, packet_id });
        self.after_commit(record, Then::Received(sender));
    }

    #[inline]
    pub(super) fn owner(&self, account: AccountId, topic: TopicName<'_>) -> PeerId {
        PeerId(match self.cores {
            1 => 0,
            _ => self.shard_key.owner(account, topic),
        })
    }

    /// The same, with a record of this core's that the receipt waits for as well.
    fn dispatch_recorded(
        &mut self,
        published: &Published<'_>,
        sender: Option<Sender>,
        record: Option<super::RecordNumber>,
    ) -> Dispatched {
        let owner = self.owner(published.account, published.message.topic);
        if owner == self.core {
            return self.route_here(published, sender, record);
        }
        debug_assert!(
            record.is_none(),
            "with several cores an identifier goes to disk after its message"
        );
        let receipt = sender.map(|sender| self.receipts.open(sender, None));
        let publish = ShardMessage::Publish {
            receipt,
            published: *published,
        };
        let is_full = self.send(owner, Lane::ToOwner, &publish);
        Dispatched {
            waits: receipt.is_some(),
            congested: is_full.then_some((owner, Lane::ToOwner)),
        }
    }

    /// Owes an acknowledgement. The common case, nothing owed before and everything done, goes straight to the outbox.
    fn owe(&mut self, id: ConnectionId, acknowledgement: Acknowledgement, ready: bool) {
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        let nothing_before = connection.acknowledgements.as_ref().is_none_or(|owed| owed.is_empty());
        if ready && nothing_before {
            write_acknowledgement(connection.outbox.writer(&mut self.pool), acknowledgement);
            mark(connection, id, &mut self.outputs);
            return;
        }
        let owed = connection.acknowledgements.get_or_insert_default();
        owed.push(acknowledgement, ready);
        if owed.len() >= RECEIPTS_PER_CONNECTION_MAX {
            self.pause(id, paused::RECEIPTS);
        }
    }

    /// A receipt is complete. What is durable about a QoS 2 identifier goes to disk now.
    pub(super) fn complete(&mut self, sender: Sender) {
        let sender = match sender {
            Sender::Client(sender) => sender,
            Sender::Run(RunSender {
                connection,
                sequence,
                count,
            }) => return self.acknowledge(connection, sequence, count),
            Sender::Asker(asker) => return self.tell(asker),
        };
        match sender.packet_id {
            Some((key, packet_id)) if self.cores > 1 && !key.is_clean() => {
                let session = key.number;
                // A Session that has ended meanwhile has no identifiers.
                if self.clients.session(key).is_some() {
                    self.receive(sender, Origin { session, packet_id });
                }
            }
            _ => self.settle(sender),
        }
    }

    /// Everything a PUBLISH waits for is done: the acknowledgement leaves if all before it have.
    pub(super) fn settle(&mut self, sender: ClientSender) {
        let ClientSender {
            connection,
            sequence,
            packet_id,
        } = sender;
        self.acknowledge(connection, sequence, 1);
        let Some((key, packet_id)) = packet_id else { return };
        let Some(received) = self.clients.session(key).and_then(|client| client.received.as_mut()) else {
            return;
        };
        received.routed(packet_id);
        // Repetitions wait under the numbers of the connection that is there now.
        while let Some(client) = self.clients.session(key)
            && let Some(sequence) = client.received.as_mut().and_then(|received| received.waited(packet_id))
        {
            if let Some(connection) = client.connection {
                self.acknowledge(connection, sequence, 1);
            }
        }
    }

    /// So many acknowledgements from this one on may leave, if all before them have.
    pub(super) fn acknowledge(&mut self, id: ConnectionId, sequence: u32, count: u32) {
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        let Connection {
            acknowledgements: Some(owed),
            outbox,
            ..
        } = connection
        else {
            return;
        };
        (0..count).for_each(|offset| owed.complete(sequence.wrapping_add(offset)));
        let mut wrote = false;
        while let Some(acknowledgement) = owed.pop() {
            write_acknowledgement(outbox.writer(&mut self.pool), acknowledgement);
            wrote = true;
        }
        let has_room = owed.len() <= RECEIPTS_PER_CONNECTION_MAX / 2;
        if wrote {
            mark(connection, id, &mut self.outputs);
        }
        if has_room {
            self.resume(id, paused::RECEIPTS);
        }
    }

    pub(super) fn pause_if_congested(&mut self, id: ConnectionId, dispatched: Dispatched) {
        if let Some((peer, lane)) = dispatched.congested {
            self.pause(id, paused::PEER);
            self.peers.pause(peer, lane, id);
        }
    }
}

pub(super) fn write_acknowledgement(out: &mut Vec<u8>, acknowledgement: Acknowledgement) {
    match acknowledgement {
        Acknowledgement::PubAck(packet_id) => encode::puback(out, packet_id),
        Acknowledgement::PubRec(packet_id) => encode::pubrec(out, packet_id),
    }
}
