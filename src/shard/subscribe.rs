//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages a new subscription gets.
//!
//! Owns    [`PendingSubscribe`]: a SUBSCRIBE whose owners have not all answered; [`Scans`]: retained messages on their way.
//! Called  with every SUBSCRIBE and UNSUBSCRIBE, with the answers of owner cores, and when an outbox has room.
//! Holds   - SUBACK leaves when every owner core concerned has registered the interest: what is published after it is
//!           delivered;
//!         - retained messages follow SUBACK, asked for chunk by chunk as the outbox has room, so `#` on a million of them
//!           costs a chunk of memory; the cursor is the last topic, so owners keep no state;
//!         - a scan sees the changes up to its registration only: what changed later has been delivered live.

use std::collections::VecDeque;

use crate::limits::{RETAINED_CHUNK_BYTES, RETAINED_CHUNK_MESSAGES};
use crate::mqtt::encode;
use crate::mqtt::packet::{Level, PacketId, QoS, Subscribe, Unsubscribe};
use crate::mqtt::reason::SubscribeReturnCode;
use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::routing::shard_key::Owners;
use crate::routing::subscriptions::{FilterId, Subscribed, Unsubscribed};
use crate::session::message::Message;
use crate::session::outbound;

use super::clients::Clients;
use super::event::{ConnectionId, Lane, PeerId};
use super::message::{ScanId, ShardMessage};
use super::receipt::Then;
use super::record::Record;
use super::{Shard, mark, send};

/// A SUBSCRIBE that waits for the answers of other cores.
pub struct PendingSubscribe {
    connection: ConnectionId,
    packet_id: PacketId,
    codes: Vec<SubscribeReturnCode>,
    /// Answers still to come.
    waiting: u32,
    /// By entry of the packet; `None` where nothing was granted.
    scans: Vec<Option<Scan>>,
}

/// Retained messages for one granted filter.
struct Scan {
    filter: Box<str>,
    filter_id: FilterId,
    granted: QoS,
    /// Owners that may have matches, each with the last change that counts.
    owners: VecDeque<(PeerId, u64)>,
    /// The last topic that came from the first of `owners`.
    after: Option<String>,
    serial: u32,
    /// That owner has been asked, and has not answered.
    is_asked: bool,
}

/// The scans of one connection, one after the other.
#[derive(Default)]
pub struct Scans {
    scans: VecDeque<Scan>,
}

impl Shard {
    pub(super) fn subscribe(&mut self, id: ConnectionId, subscribe: Subscribe<'_>) {
        let connection = &self.clients.connections[id.index as usize];
        let (index, level) = (connection.client, connection.level());
        let mut pending = PendingSubscribe {
            connection: id,
            packet_id: subscribe.packet_id,
            codes: Vec::new(),
            waiting: 0,
            scans: Vec::new(),
        };
        let request = u32::try_from(self.pending_subscribes.vacant_key()).expect("fewer than connections x packet ids");
        let mut record = None;
        for (filter, qos) in subscribe.filters() {
            let entry = pending.codes.len() as u16;
            let Some(mut scan) = self.grant(index, filter, qos) else {
                self.counters.subscribe_refused += 1;
                // Level 3 has no failure code: granted, never delivered.
                pending.codes.push(match level {
                    Level::V311 => SubscribeReturnCode::Failure,
                    Level::V31 => SubscribeReturnCode::Granted(qos),
                });
                pending.scans.push(None);
                continue;
            };
            self.counters.subscribed += 1;
            let session = self.clients.sessions[index as usize].number;
            if !session.is_clean() {
                let filter = filter.as_str().into();
                record = Some(self.persist(Record::Subscribed { session, filter, qos }));
            }
            let owners = match self.shard_key.owners(filter) {
                _ if self.cores == 1 => 0..1,
                Owners::All => 0..self.cores,
                Owners::One(core) => core..core + 1,
            };
            for core in owners {
                if core == self.core.0 {
                    if self.cores > 1 {
                        self.interest.add(filter, core);
                    }
                    if self.retained.may_match(filter) {
                        scan.owners.push_back((self.core, self.retained.sequence()));
                    }
                } else {
                    self.send(
                        PeerId(core),
                        Lane::ToOwner,
                        &ShardMessage::Register { request, entry, filter },
                    );
                    pending.waiting += 1;
                }
            }
            pending.codes.push(SubscribeReturnCode::Granted(qos));
            pending.scans.push(Some(scan));
        }
        pending.waiting += u32::from(record.is_some());
        if let Some(record) = record {
            self.after_commit(record, Then::Subscribed { request });
        }
        if pending.waiting == 0 {
            self.subscribed(pending);
        } else {
            self.pending_subscribes.insert(pending);
        }
    }

    /// Adds a filter to a Session, or replaces its QoS; `None` if rules or bounds forbid it.
    fn grant(&mut self, index: u32, filter: TopicFilter<'_>, qos: QoS) -> Option<Scan> {
        let client = &mut self.clients.sessions[index as usize];
        if !self.access.may_subscribe(client.account, filter) {
            return None;
        }
        let (filter_id, subscribed) = self.subscriptions.subscribe(filter, index, qos);
        if subscribed != Subscribed::Replaced {
            if client.filters.len() >= self.subscriptions_max {
                // No owner has been told of it yet.
                self.subscriptions.unsubscribe_id(filter_id, index);
                return None;
            }
            client.filters.insert(filter_id);
        }
        let filter = filter.as_str().into();
        Some(Scan {
            filter,
            filter_id,
            granted: qos,
            owners: VecDeque::new(),
            after: None,
            serial: 0,
            is_asked: false,
        })
    }

    /// An owner has registered one filter of a SUBSCRIBE of ours.
    pub(super) fn registered(&mut self, from: PeerId, request: u32, entry: u16, sequence: u64, may_match: bool) {
        let pending = &mut self.pending_subscribes[request as usize];
        if may_match && let Some(scan) = &mut pending.scans[entry as usize] {
            scan.owners.push_back((from, sequence));
        }
        self.answered(request);
    }

    /// One of those that a SUBSCRIBE waits for has answered: an owner, or the disk.
    pub(super) fn answered(&mut self, request: u32) {
        let pending = &mut self.pending_subscribes[request as usize];
        pending.waiting -= 1;
        if pending.waiting == 0 {
            let pending = self.pending_subscribes.remove(request as usize);
            self.subscribed(pending);
        }
    }

    /// Every owner has answered: SUBACK, then the retained messages.
    fn subscribed(&mut self, pending: PendingSubscribe) {
        let PendingSubscribe {
            connection: id,
            packet_id,
            codes,
            scans,
            ..
        } = pending;
        if self.clients.open_connection(id).is_none() {
            return;
        }
        let connection = &mut self.clients.connections[id.index as usize];
        encode::suback(connection.outbox.writer(&mut self.pool), packet_id, &codes);
        mark(connection, id, &mut self.outputs);
        let held = self.clients.sessions[connection.client as usize].filters.as_slice();
        // An UNSUBSCRIBE may have come while the owners answered [MQTT-3.10.4-2].
        let wanted = |scan: &Scan| !scan.owners.is_empty() && held.contains(&scan.filter_id);
        for mut scan in scans.into_iter().flatten().filter(wanted) {
            let queue = connection.scans.get_or_insert_default();
            // Never the serial of an earlier scan: what was asked for that may still be on its way.
            scan.serial = self.next_scan;
            self.next_scan = self.next_scan.wrapping_add(1);
            queue.scans.push_back(scan);
        }
        if connection.scans.is_some() {
            self.advance_scans(id);
        }
    }

    pub(super) fn unsubscribe(&mut self, id: ConnectionId, unsubscribe: Unsubscribe<'_>) {
        let index = self.clients.connections[id.index as usize].client;
        let mut record = None;
        for filter in unsubscribe.filters() {
            let removed = match self.subscriptions.unsubscribe(filter, index) {
                Unsubscribed::NotFound => continue,
                Unsubscribed::Removed(filter_id) => filter_id,
                Unsubscribed::LastOnCore(filter_id) => {
                    self.withdraw(filter);
                    filter_id
                }
            };
            self.counters.unsubscribed += 1;
            let client = &mut self.clients.sessions[index as usize];
            client.filters.remove(removed);
            let session = client.number;
            if !session.is_clean() {
                let filter = filter.as_str().into();
                record = Some(self.persist(Record::Unsubscribed { session, filter }));
            }
            if let Some(scans) = &mut self.clients.connections[id.index as usize].scans {
                scans.scans.retain(|scan| *scan.filter != *filter.as_str());
            }
        }
        let (connection, packet_id) = (id, unsubscribe.packet_id);
        match record {
            Some(record) => self.after_commit(record, Then::Unsubscribed { connection, packet_id }),
            None => self.write(id, |out| encode::unsuback(out, packet_id)),
        }
    }

    /// Another core wants a filter of topics this core owns.
    pub(super) fn register(&mut self, from: PeerId, request: u32, entry: u16, filter: TopicFilter<'_>) {
        self.interest.add(filter, from.0);
        let (sequence, may_match) = (self.retained.sequence(), self.retained.may_match(filter));
        self.send(
            from,
            Lane::ToHome,
            &ShardMessage::Registered {
                request,
                entry,
                sequence,
                may_match,
            },
        );
    }

    /// Another core's subscriber has room for more retained messages of topics this core owns.
    pub(super) fn retained_next(
        &mut self,
        from: PeerId,
        scan: ScanId,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        sequence_max: u64,
    ) {
        let mut cursor = after;
        let mut bytes = 0;
        let mut finished = false;
        for _ in 0..RETAINED_CHUNK_MESSAGES {
            let Some((topic, retained)) = self.retained.next(filter, cursor, sequence_max) else {
                finished = true;
                break;
            };
            let message = Message {
                topic: TopicName::trusted(topic),
                payload: &retained.payload,
                qos: retained.qos,
            };
            let answer = ShardMessage::Retained { scan, message };
            send(&mut self.peers, &mut self.outputs, from, Lane::ToHome, &answer);
            bytes += topic.len() + retained.payload.len();
            cursor = Some(topic);
            if bytes >= RETAINED_CHUNK_BYTES {
                break;
            }
        }
        self.send(from, Lane::ToHome, &ShardMessage::RetainedEnd { scan, finished });
    }

    /// One retained message from its owner.
    pub(super) fn retained_came(&mut self, scan: ScanId, message: &Message<'_>) {
        let Some((index, current)) = self.current_scan(scan) else {
            return;
        };
        let granted = current.granted;
        let after = current.after.get_or_insert_default();
        after.clear();
        after.push_str(message.topic.as_str());
        self.deliver_retained(index, granted, message);
    }

    /// An owner's answer has ended.
    pub(super) fn retained_ended(&mut self, scan: ScanId, finished: bool) {
        let Some((_, current)) = self.current_scan(scan) else {
            return;
        };
        current.is_asked = false;
        if finished {
            current.owners.pop_front();
            current.after = None;
        }
        self.advance_scans(scan.connection);
    }

    /// The scan at the head of its connection's queue, if it is this one: it may have been unsubscribed meanwhile.
    fn current_scan(&mut self, scan: ScanId) -> Option<(u32, &mut Scan)> {
        let connection = self.clients.open_connection(scan.connection)?;
        let current = connection.scans.as_mut()?.scans.front_mut()?;
        (current.serial == scan.serial).then_some((connection.client, current))
    }

    /// Retained messages at subscribe have RETAIN set [MQTT-3.3.1-8].
    fn deliver_retained(&mut self, index: u32, granted: QoS, message: &Message<'_>) {
        self.counters.matched += 1;
        self.counters.retained_delivered += 1;
        let mut shared = None;
        let mut durable = Vec::new();
        // A chunk was asked for when there was room for it; live messages that came meanwhile must not make it drop.
        let limits = outbound::Limits {
            outbox_bytes_max: usize::MAX,
            ..self.delivery_limits
        };
        self.deliver_to(
            index,
            message,
            &mut shared,
            message.qos.min(granted),
            true,
            &limits,
            &mut durable,
        );
        // What is retained has no publisher that could wait.
        self.hold_back(None);
        if !durable.is_empty() {
            let message = shared.expect("a durable Session keeps its message");
            self.persist(Record::Queued {
                message,
                entries: durable,
                origin: None,
            });
        }
    }

    /// Goes on with the scans of a connection while it has room.
    pub(super) fn advance_scans(&mut self, id: ConnectionId) {
        loop {
            let Some(connection) = self.clients.open_connection(id) else {
                return;
            };
            let index = connection.client;
            let Clients {
                sessions, connections, ..
            } = &mut self.clients;
            let connection = &mut connections[id.index as usize];
            let Some(scans) = &mut connection.scans else { return };
            let Some(scan) = scans.scans.front_mut() else {
                connection.scans = None;
                return;
            };
            let outbound = &sessions[index as usize].outbound;
            let keeps_up = outbound
                .as_ref()
                .is_none_or(|outbound| outbound.keeps_up(&self.delivery_limits));
            if scan.is_asked || !keeps_up || connection.outbox.len() >= self.delivery_limits.outbox_bytes_max {
                return;
            }
            let Some((owner, sequence_max)) = scan.owners.front().copied() else {
                scans.scans.pop_front();
                continue;
            };
            let filter = TopicFilter::trusted(&scan.filter);
            if owner != self.core {
                scan.is_asked = true;
                let scan_id = ScanId {
                    connection: id,
                    serial: scan.serial,
                };
                let after = scan.after.as_deref();
                let next = ShardMessage::RetainedNext {
                    scan: scan_id,
                    filter,
                    after,
                    sequence_max,
                };
                send(&mut self.peers, &mut self.outputs, owner, Lane::ToOwner, &next);
                return;
            }
            let Some((topic, retained)) = self.retained.next(filter, scan.after.as_deref(), sequence_max) else {
                scan.owners.pop_front();
                scan.after = None;
                continue;
            };
            let after = scan.after.get_or_insert_default();
            after.clear();
            after.push_str(topic);
            let (payload, qos, granted) = (retained.payload.clone(), retained.qos, scan.granted);
            let topic = after.clone();
            let message = Message {
                topic: TopicName::trusted(&topic),
                payload: &payload,
                qos,
            };
            self.deliver_retained(index, granted, &message);
        }
    }
}
