//! SUBSCRIBE and UNSUBSCRIBE.
//!
//! Owns    [`PendingSubscribe`]: a SUBSCRIBE whose owners have not all answered.
//! Called  with every SUBSCRIBE and UNSUBSCRIBE, with the answers of owner cores, and when the disk has a subscription.
//! Gives   to `shard::scan` the filters that retained messages may match.
//! Holds   - SUBACK leaves when every owner core concerned has registered the interest, and a durable Session's
//!           subscription is on disk: what is published after it is delivered.

use std::collections::VecDeque;

use crate::mqtt::encode;
use crate::mqtt::packet::{Level, PacketId, QoS, Subscribe, Unsubscribe};
use crate::mqtt::reason::SubscribeReturnCode;
use crate::mqtt::topic::TopicFilter;
use crate::routing::shard_key::Owners;
use crate::routing::subscriptions::{Subscribed, Unsubscribed};

use super::event::{ConnectionId, Lane, PeerId};
use super::message::ShardMessage;
use super::receipt::Then;
use super::record::Record;
use super::scan::Scan;
use super::{Shard, mark};

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

impl Shard {
    pub(super) fn subscribe(&mut self, id: ConnectionId, subscribe: Subscribe<'_>) {
        let connection = &self.clients.connections[id.index as usize];
        let (index, level) = (connection.client, connection.level());
        let account = self.clients.sessions[index as usize].account;
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
            let owners = match self.shard_key.owners(account, filter) {
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
            let has_room = client.filters.len() < self.subscriptions_max;
            let tenant = self.access.tenant(client.account);
            let is_taken = has_room
                && tenant.is_none_or(|tenant| tenant.usage.subscriptions.take(tenant.quotas.subscriptions_max));
            if !is_taken {
                self.counters.refused_account_subscriptions += u64::from(has_room);
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
                    self.withdraw(self.clients.sessions[index as usize].account, filter);
                    filter_id
                }
            };
            self.counters.unsubscribed += 1;
            let client = &mut self.clients.sessions[index as usize];
            client.filters.remove(removed);
            if let Some(tenant) = self.access.tenant(client.account) {
                tenant.usage.subscriptions.give_back(1);
            }
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
        let is_clean = self.clients.sessions[index as usize].is_clean();
        match record {
            Some(record) => self.after_commit(record, Then::Unsubscribed { connection, packet_id }),
            // What is not held may have been removed just now, and be on disk still.
            None if !is_clean => self.after_commit(self.last_record, Then::Unsubscribed { connection, packet_id }),
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
}
