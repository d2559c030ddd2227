//! The retained messages a new subscription gets.
//!
//! Owns    [`Scans`]: retained messages on their way to a subscriber, on its home core; [`Parked`]: a chunk of them at the
//!         topics' owner that waits for payloads from the disk.
//! Called  by `shard::subscribe` (a SUBACK has left), with the requests and answers of other cores, with the store's, and
//!         when an outbox has room.
//! Holds   - retained messages follow SUBACK, asked for chunk by chunk as the outbox has room, so `#` on a million of them
//!           costs a chunk of memory; the cursor is the last topic, so owners keep no state between chunks;
//!         - a scan sees the changes up to its registration only: what changed later has been delivered live, also while a
//!           chunk waited for the disk.
//!
//! ```text
//! home core of the subscriber            owner core of the topics
//! advance_scans ─▶ RetainedNext ────────▶ take_chunk ─▶ in memory ────────────────────────▶ Retained…, RetainedEnd
//!                                                    └▶ on disk ─▶ Fetch … Fetched ─▶ emit ─▶ the same
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use crate::limits::{RETAINED_CHUNK_BYTES, RETAINED_CHUNK_MESSAGES};
use crate::mqtt::packet::QoS;
use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::registry::access::Access;
use crate::routing::subscriptions::FilterId;
use crate::session::message::Message;
use crate::session::outbound;

use super::clients::Clients;
use super::event::{ConnectionId, Lane, Output, PeerId};
use super::message::{ScanId, ShardMessage};
use super::record::{Fetch, Record, RetainedFetch, RetainedPayloads};
use super::{Shard, send};

/// Retained messages for one granted filter.
pub(super) struct Scan {
    pub(super) filter: Box<str>,
    pub(super) filter_id: FilterId,
    pub(super) granted: QoS,
    /// Owners that may have matches, each with the last change that counts.
    pub(super) owners: VecDeque<(PeerId, u64)>,
    /// The last topic that came from the first of `owners`.
    pub(super) after: Option<String>,
    pub(super) serial: u32,
    /// That owner has been asked, and has not answered.
    pub(super) is_asked: bool,
}

/// The scans of one connection, one after the other.
#[derive(Default)]
pub struct Scans {
    pub(super) scans: VecDeque<Scan>,
}

/// A chunk that waits for payloads.
pub(super) struct Parked {
    from: PeerId,
    scan: ScanId,
    found: Vec<Found>,
    /// The owner's part of the scan ends with it.
    finished: bool,
    /// The filter names one topic: its payload is worth keeping.
    is_exact: bool,
}

/// A retained message as the scan found it.
struct Found {
    topic: Box<str>,
    /// `None`: the store reads it.
    payload: Option<Arc<[u8]>>,
    qos: QoS,
    sequence: u64,
}

impl Shard {
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
            scan.is_asked = true;
            let scan_id = ScanId {
                connection: id,
                serial: scan.serial,
            };
            if owner != self.core {
                let filter = TopicFilter::trusted(&scan.filter);
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
            let (filter, after) = (scan.filter.clone(), scan.after.clone());
            let filter = TopicFilter::trusted(&filter);
            let Some(finished) = self.take_chunk(owner, scan_id, filter, after.as_deref(), sequence_max) else {
                return;
            };
            self.end_chunk(scan_id, finished);
        }
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
        if let Some(finished) = self.take_chunk(from, scan, filter, after, sequence_max) {
            self.send(from, Lane::ToHome, &ShardMessage::RetainedEnd { scan, finished });
        }
    }

    /// Sends the next chunk of a scan. Returns whether it is the last, or `None` if it waits for the disk.
    fn take_chunk(
        &mut self,
        from: PeerId,
        scan: ScanId,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        sequence_max: u64,
    ) -> Option<bool> {
        let mut cursor = after;
        let mut bytes = 0;
        let mut finished = false;
        // From the first message on that cannot leave at once.
        let mut found: Vec<Found> = Vec::new();
        for _ in 0..RETAINED_CHUNK_MESSAGES {
            let Some((topic, retained)) = self.retained.next(filter, cursor, sequence_max) else {
                finished = true;
                break;
            };
            bytes += topic.len() + retained.payload_bytes as usize;
            cursor = Some(topic);
            match &retained.payload {
                // The common case: no copy but into the batch.
                Some(payload) if found.is_empty() && from != self.core => {
                    let message = Message {
                        topic: TopicName::trusted(topic),
                        payload,
                        qos: retained.qos,
                    };
                    let answer = ShardMessage::Retained { scan, message };
                    send(&mut self.peers, &mut self.outputs, from, Lane::ToHome, &answer);
                }
                payload => found.push(Found {
                    topic: topic.into(),
                    payload: payload.clone(),
                    qos: retained.qos,
                    sequence: retained.sequence,
                }),
            }
            if bytes >= RETAINED_CHUNK_BYTES {
                break;
            }
        }
        let is_exact = !filter.as_str().contains(['+', '#']);
        if is_exact
            && let Some((topic, retained)) = self.retained.next(filter, after, sequence_max)
            && let Some(payload) = retained.payload.clone()
        {
            let topic: Box<str> = topic.into();
            self.retained.use_payload(&topic, &payload);
        }
        let parked = Parked {
            from,
            scan,
            found,
            finished,
            is_exact,
        };
        if parked.found.iter().all(|found| found.payload.is_some()) {
            self.emit(parked, &mut std::iter::empty());
            return Some(finished);
        }
        let on_disk = parked.found.iter().filter(|found| found.payload.is_none());
        let topics = on_disk.map(|found| found.topic.clone()).collect();
        let ticket = u32::try_from(self.parked.insert(parked)).expect("fewer than connections");
        self.fetches += 1;
        self.outputs
            .push_back(Output::Fetch(Box::new(Fetch::Retained(RetainedFetch {
                ticket,
                topics,
            }))));
        None
    }

    /// The store has read what a chunk waited for.
    pub(super) fn retained_fetched(&mut self, answer: RetainedPayloads) {
        let parked = self.parked.remove(answer.ticket as usize);
        let (from, scan, finished) = (parked.from, parked.scan, parked.finished);
        self.emit(parked, &mut answer.payloads.into_iter());
        if from == self.core {
            self.retained_ended(scan, finished);
        } else {
            self.send(from, Lane::ToHome, &ShardMessage::RetainedEnd { scan, finished });
        }
    }

    /// Sends the messages of a chunk; `read` has the payloads that were on disk only.
    fn emit(&mut self, parked: Parked, read: &mut dyn Iterator<Item = Option<Arc<[u8]>>>) {
        let Parked {
            from,
            scan,
            found,
            is_exact,
            ..
        } = parked;
        for Found {
            topic,
            payload,
            qos,
            sequence,
        } in found
        {
            let payload = payload.or_else(|| read.next().expect("the store answers for every topic"));
            // What has changed meanwhile has been delivered live.
            if self.retained.get(&topic).is_none_or(|now| now.sequence != sequence) {
                continue;
            }
            let Some(payload) = payload else {
                // Not on disk either: its value was damaged, which the store has reported. The topic has none, so a scan
                // does not ask for it for ever.
                if let Some(retained) = self.retained.get(&topic)
                    && let Access::Platform(accounts) = &self.access
                    && let Some(tenant) = accounts.of_topic(&topic)
                {
                    tenant.usage.kept.change(retained.bytes(&topic), 0);
                }
                self.retained.remove(&topic);
                self.counters.retained_damaged += 1;
                continue;
            };
            if is_exact {
                self.retained.use_payload(&topic, &payload);
                self.retained.make_room(self.committed.0);
            }
            let message = Message {
                topic: TopicName::trusted(&topic),
                payload: &payload,
                qos,
            };
            if from == self.core {
                self.retained_came(scan, &message);
            } else {
                self.send(from, Lane::ToHome, &ShardMessage::Retained { scan, message });
            }
        }
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
        if self.end_chunk(scan, finished) {
            self.advance_scans(scan.connection);
        }
    }

    /// Whether the scan is still the one at the head of its connection's queue.
    fn end_chunk(&mut self, scan: ScanId, finished: bool) -> bool {
        let Some((_, current)) = self.current_scan(scan) else {
            return false;
        };
        current.is_asked = false;
        if finished {
            current.owners.pop_front();
            current.after = None;
        }
        true
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
}
