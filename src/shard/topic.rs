//! A message at the owner core of its topic: here every publisher of the topic meets, so here is its order.
//!
//! Called  by `shard::publish` for a message of this core, and with `Publish` from another.
//! Gives   the message to every interested core, this one first among equals: `shard::deliver` here, `Deliver` there.
//! Holds   - interested cores see the messages of a topic in the order in which they passed here;
//!         - the retained message is replaced before anything is delivered, so a Session that subscribes meanwhile does
//!           not miss it: it comes live if the core's registration came first, retained if not, and both ways to a core
//!           that held the filter before for another Session.

use std::sync::Arc;

use crate::mqtt::topic::TopicName;
use crate::registry::access::AccountId;
use crate::routing::recent::Recent;
use crate::session::message::Message;

use super::Shard;
use super::event::{Lane, PeerId, RecordNumber};
use super::message::{Published, ShardMessage};
use super::overflow::Publisher;
use super::publish::Dispatched;
use super::receipt::{ReceiptId, Sender, Then};
use super::record::Record;

impl Shard {
    /// A message whose publisher is at home here, or a Will. `record` is one more that its receipt waits for.
    #[inline]
    pub(super) fn route_here(
        &mut self,
        published: &Published<'_>,
        sender: Option<Sender>,
        record: Option<RecordNumber>,
    ) -> Dispatched {
        let (is_routed, stored) = self.admit(published, sender.is_some());
        self.route(published, is_routed, sender, record.max(stored))
    }

    /// The same for what has been admitted, and kept, already.
    pub(super) fn route_kept(
        &mut self,
        published: &Published<'_>,
        sender: Option<Sender>,
        record: Option<RecordNumber>,
    ) -> Dispatched {
        self.route(published, true, sender, record)
    }

    #[inline]
    fn route(
        &mut self,
        published: &Published<'_>,
        is_routed: bool,
        sender: Option<Sender>,
        record: Option<RecordNumber>,
    ) -> Dispatched {
        let Published { message, origin, .. } = published;
        let retained = (published.retain && is_routed).then(|| self.retain(published.account, message));
        if self.cores == 1 {
            let delivered = if is_routed {
                self.deliver(message, *origin)
            } else {
                None
            };
            let record = record.max(retained).max(delivered);
            let (Some(sender), Some(record)) = (sender, record) else {
                return Dispatched::default();
            };
            let receipt = self.receipts.open(sender, Some(1));
            self.after_commit(
                record,
                Then::Confirm {
                    home: self.core,
                    receipt,
                },
            );
            return Dispatched {
                waits: true,
                congested: None,
            };
        }
        let interested = self.find_interested(message.topic);
        // What is not routed nobody gets.
        let cores = if is_routed { interested.answer() } else { &[] };
        let delivered = if cores.contains(&self.core.0) {
            self.deliver(message, *origin)
        } else {
            None
        };
        let record = record.max(retained).max(delivered);
        let parts = self.count_others(cores) + u32::from(record.is_some());
        let receipt = match sender {
            Some(sender) if parts > 0 => Some(self.receipts.open(sender, Some(parts))),
            _ => None,
        };
        if let (Some(receipt), Some(record)) = (receipt, record) {
            self.after_commit(
                record,
                Then::Confirm {
                    home: self.core,
                    receipt,
                },
            );
        }
        let deliver = ShardMessage::Deliver {
            receipt: receipt.map(|receipt| (self.core, receipt)),
            origin: *origin,
            message: *message,
        };
        let congested = self.forward(cores, &deliver);
        self.cores_wanting = interested;
        Dispatched {
            waits: receipt.is_some(),
            congested,
        }
    }

    /// A message whose publisher is at home on `from`.
    pub(super) fn publish_from(&mut self, from: PeerId, receipt: Option<ReceiptId>, published: &Published<'_>) {
        let Published { message, origin, .. } = published;
        let (is_routed, stored) = self.admit(published, receipt.is_some());
        let retained = (published.retain && is_routed).then(|| self.retain(published.account, message));
        let interested = self.find_interested(message.topic);
        // What is not routed nobody gets.
        let cores = if is_routed { interested.answer() } else { &[] };
        let delivered = if cores.contains(&self.core.0) {
            self.deliver(message, *origin)
        } else {
            None
        };
        let record = stored.max(retained).max(delivered);
        self.routed_for(from, receipt, record, self.count_others(cores));
        // Past the bound, the next batch of requests is not taken: nobody to pause here.
        let deliver = ShardMessage::Deliver {
            receipt: receipt.map(|receipt| (from, receipt)),
            origin: *origin,
            message: *message,
        };
        self.forward(cores, &deliver);
        self.cores_wanting = interested;
    }

    /// Tells the publisher's home how many places will confirm: so many other cores, and this one if a record must be on disk first.
    pub(super) fn routed_for(
        &mut self,
        from: PeerId,
        receipt: Option<ReceiptId>,
        record: Option<RecordNumber>,
        others: u32,
    ) {
        let publisher = receipt.map(|receipt| Publisher::At(from, receipt));
        self.hold_back(publisher);
        let Some(receipt) = receipt else { return };
        if let Some(record) = record {
            self.hold_back_for_disk(publisher);
            self.after_commit(record, Then::Confirm { home: from, receipt });
        }
        let parts = others + u32::from(record.is_some());
        self.send(from, Lane::ToHome, &ShardMessage::Routed { receipt, parts });
    }

    /// The cores with a Session that wants the topic; given back to `cores_wanting` by the caller.
    pub(super) fn find_interested(&mut self, topic: TopicName<'_>) -> Recent<u16> {
        let mut cores = std::mem::take(&mut self.cores_wanting);
        let interest = &mut self.interest;
        cores.look_up(topic, interest.version(), |found| interest.matches(topic, found));
        cores
    }

    pub(super) fn count_others(&self, cores: &[u16]) -> u32 {
        cores.iter().filter(|core| **core != self.core.0).count() as u32
    }

    /// Sends the message to every core but this one; the last whose batch is past its bound, if any.
    pub(super) fn forward(&mut self, cores: &[u16], deliver: &ShardMessage<'_>) -> Option<(PeerId, Lane)> {
        let mut congested = None;
        for core in cores {
            if *core != self.core.0 && self.send(PeerId(*core), Lane::ToHome, deliver) {
                congested = Some((PeerId(*core), Lane::ToHome));
            }
        }
        congested
    }

    /// Replaces or clears the retained message of the topic [MQTT-3.3.1-5] [MQTT-3.3.1-10]. Where its account has no room for
    /// the new one the topic has none: the old one would be taken for what is [MQTT-3.3.1-7].
    fn retain(&mut self, account: AccountId, message: &Message<'_>) -> RecordNumber {
        let is_kept = self.charge_retained(account, message);
        self.counters.refused_account_retained += u64::from(!is_kept);
        let payload: Arc<[u8]> = if is_kept { message.payload } else { &[] }.into();
        let record = self.persist(Record::Retained {
            topic: message.topic.as_str().into(),
            payload: payload.clone(),
            qos: message.qos,
        });
        self.retained.set(message.topic, payload, message.qos, record.0);
        self.retained.make_room(self.committed.0);
        record
    }
}
