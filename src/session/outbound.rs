//! Server to Client: QoS 1 and 2 deliveries of one Session, and everything that waits behind them.
//!
//! Owns    the in-flight window and the queue behind it. A Session that receives QoS 0 only has none of this.
//! Called  by `shard::deliver` (a message to send, PUBACK, PUBREC, PUBCOMP, room in the outbox) and on resume.
//! Gives   encoded packets to the connection's `Outbox`, and nothing else.
//! Holds   - a Packet Identifier is in use from first send until its flow ends [MQTT-2.3.1-4]: those in use lie in one
//!           run of the circle, oldest first;
//!         - after a resume the unacknowledged go first, same identifiers [MQTT-4.4.0-1], same order [MQTT-4.6.0-6], DUP
//!           set [MQTT-3.3.1-1];
//!         - what came first leaves first, whatever its QoS, so a Session sees the order of its topics' owners;
//!         - unacknowledged <= `inflight_max`, run <= `inflight_max` * INFLIGHT_SPAN_FACTOR, queue within its bounds.

use std::collections::VecDeque;

use crate::limits::INFLIGHT_SPAN_FACTOR;
use crate::mqtt::encode;
use crate::mqtt::packet::{PacketId, QoS};

use super::message::{Message, SharedMessage};
use super::outbox::{BufferPool, Outbox};
use super::packet_id::distance;

/// The bounds of one Session's deliveries.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub inflight_max: usize,
    pub queued_max: usize,
    pub queued_bytes_max: usize,
    pub outbox_bytes_max: usize,
}

/// What became of a message that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// Written to the outbox.
    Sent,
    /// Waits in the queue.
    Queued,
    /// QoS 0, and the outbox is at its bound.
    DroppedOutboxFull,
    /// The queue is at its bound.
    DroppedQueueFull,
    /// QoS 0, and the client is away.
    DroppedAway,
}

/// An acknowledgement that does not fit the flow of its identifier (section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongAcknowledgement;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// QoS 1: PUBLISH sent.
    AwaitsPubAck,
    /// QoS 2: PUBLISH sent.
    AwaitsPubRec,
    /// QoS 2: PUBREC came, PUBREL sent; the message is the client's.
    AwaitsPubComp,
    /// Over; the place is freed when those before it are.
    Ended,
}

struct Inflight {
    flow: Flow,
    retain: bool,
    /// Kept for redelivery by a durable Session; a clean one ends with its connection and redelivers nothing.
    message: Option<SharedMessage>,
}

struct Queued {
    message: SharedMessage,
    qos: QoS,
    retain: bool,
}

/// The QoS 1 and 2 deliveries of one Session.
pub struct Outbound {
    /// `inflight[n]` has the identifier `n` steps after `first_id`.
    inflight: VecDeque<Inflight>,
    first_id: PacketId,
    /// Entries of `inflight` that have not ended.
    unacknowledged: usize,
    /// Entries before this index have been sent on this connection; after a resume the rest goes before anything new.
    sent: usize,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    queued_qos0: usize,
}

impl Default for Outbound {
    fn default() -> Self {
        Outbound {
            inflight: VecDeque::new(),
            first_id: PacketId(std::num::NonZeroU16::MIN),
            unacknowledged: 0,
            sent: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_qos0: 0,
        }
    }
}

impl Outbound {
    /// Nothing in flight and nothing queued.
    pub fn is_idle(&self) -> bool {
        self.inflight.is_empty() && self.queue.is_empty()
    }

    /// Whether a QoS 0 message may be written past this state at once: nothing waits that came before it.
    pub fn is_clear(&self) -> bool {
        self.queue.is_empty() && self.sent == self.inflight.len()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sends, queues or drops one message at `qos`, the lower of its own and the granted one. `shared` is filled when the
    /// message must be kept, once for all Sessions it is offered to. `connection` is `None` while the client is away.
    pub fn offer(
        &mut self,
        message: &Message<'_>,
        shared: &mut Option<SharedMessage>,
        qos: QoS,
        retain: bool,
        durable: bool,
        connection: Option<(&mut Outbox, &mut BufferPool)>,
        limits: &Limits,
    ) -> Offered {
        if let Some((outbox, pool)) = connection {
            let has_room = outbox.len() < limits.outbox_bytes_max;
            if self.is_clear() && has_room && (qos == QoS::AtMostOnce || self.window_is_open(limits)) {
                let keep = (durable && qos != QoS::AtMostOnce)
                    .then(|| shared.get_or_insert_with(|| SharedMessage::new(message)).clone());
                let packet_id = self.begin(qos, retain, keep);
                let out = outbox.writer(pool);
                encode::publish(
                    out,
                    false,
                    qos,
                    retain,
                    message.topic.as_str(),
                    packet_id,
                    message.payload,
                );
                return Offered::Sent;
            }
            if qos == QoS::AtMostOnce && !has_room {
                return Offered::DroppedOutboxFull;
            }
        } else if qos == QoS::AtMostOnce {
            return Offered::DroppedAway;
        }
        let len = message.topic.as_str().len() + message.payload.len();
        // QoS 0 may fill half the queue only, so that it gives way before QoS 1 and 2.
        let full = self.queue.len() >= limits.queued_max
            || self.queued_bytes + len > limits.queued_bytes_max
            || (qos == QoS::AtMostOnce && self.queued_qos0 >= limits.queued_max / 2);
        if full {
            return Offered::DroppedQueueFull;
        }
        let message = shared.get_or_insert_with(|| SharedMessage::new(message)).clone();
        self.queued_bytes += len;
        self.queued_qos0 += usize::from(qos == QoS::AtMostOnce);
        self.queue.push_back(Queued { message, qos, retain });
        Offered::Queued
    }

    /// Writes what may be written now: after a resume the unacknowledged, then the queue, as far as window and outbox
    /// allow. Counts what it writes through `wrote(qos, again)`.
    pub fn refill(
        &mut self,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
        durable: bool,
        limits: &Limits,
        mut wrote: impl FnMut(QoS, Again),
    ) {
        while outbox.len() < limits.outbox_bytes_max {
            if self.sent < self.inflight.len() {
                self.send_again(outbox.writer(pool), &mut wrote);
                continue;
            }
            let Some(front) = self.queue.front() else { return };
            if front.qos != QoS::AtMostOnce && !self.window_is_open(limits) {
                return;
            }
            let Some(Queued { message, qos, retain }) = self.queue.pop_front() else {
                return;
            };
            self.queued_bytes -= message.len();
            self.queued_qos0 -= usize::from(qos == QoS::AtMostOnce);
            let keep = (durable && qos != QoS::AtMostOnce).then(|| message.clone());
            let packet_id = self.begin(qos, retain, keep);
            let out = outbox.writer(pool);
            encode::publish(out, false, qos, retain, message.topic(), packet_id, message.payload());
            wrote(qos, false);
        }
    }

    fn send_again(&mut self, out: &mut Vec<u8>, wrote: &mut impl FnMut(QoS, Again)) {
        let entry = &self.inflight[self.sent];
        let packet_id = self.id_at(self.sent);
        match entry.flow {
            Flow::AwaitsPubAck | Flow::AwaitsPubRec => {
                let qos = if entry.flow == Flow::AwaitsPubAck {
                    QoS::AtLeastOnce
                } else {
                    QoS::ExactlyOnce
                };
                let message = entry
                    .message
                    .as_ref()
                    .expect("a Session that outlives its connection keeps its messages");
                encode::publish(
                    out,
                    true,
                    qos,
                    entry.retain,
                    message.topic(),
                    Some(packet_id),
                    message.payload(),
                );
                wrote(qos, true);
            }
            Flow::AwaitsPubComp => encode::pubrel(out, packet_id),
            Flow::Ended => {}
        }
        self.sent += 1;
    }

    /// PUBACK. Unknown identifiers are ignored: the flow they belong to has ended.
    pub fn puback(&mut self, packet_id: PacketId) -> Result<(), WrongAcknowledgement> {
        match self.flow(packet_id) {
            Some((index, Flow::AwaitsPubAck)) => {
                self.end(index);
                Ok(())
            }
            None => Ok(()),
            Some(_) => Err(WrongAcknowledgement),
        }
    }

    /// PUBREC: the message is the client's; the caller answers with PUBREL, also for an unknown identifier, so that a
    /// client that remembers a flow which the Server has forgotten can end it.
    pub fn pubrec(&mut self, packet_id: PacketId) -> Result<(), WrongAcknowledgement> {
        match self.flow(packet_id) {
            Some((index, Flow::AwaitsPubRec)) => {
                let entry = &mut self.inflight[index];
                entry.flow = Flow::AwaitsPubComp;
                entry.message = None;
                Ok(())
            }
            Some((_, Flow::AwaitsPubComp)) | None => Ok(()),
            Some(_) => Err(WrongAcknowledgement),
        }
    }

    /// PUBCOMP. Unknown identifiers are ignored.
    pub fn pubcomp(&mut self, packet_id: PacketId) -> Result<(), WrongAcknowledgement> {
        match self.flow(packet_id) {
            Some((index, Flow::AwaitsPubComp)) => {
                self.end(index);
                Ok(())
            }
            None => Ok(()),
            Some(_) => Err(WrongAcknowledgement),
        }
    }

    /// The connection is gone; what is unacknowledged will be sent again.
    pub fn disconnected(&mut self) {
        self.sent = 0;
        self.inflight.shrink_to_fit();
        self.queue.shrink_to_fit();
    }

    fn window_is_open(&self, limits: &Limits) -> bool {
        self.unacknowledged < limits.inflight_max && self.inflight.len() < limits.inflight_max * INFLIGHT_SPAN_FACTOR
    }

    /// Starts a flow with the next identifier; QoS 0 has none.
    fn begin(&mut self, qos: QoS, retain: bool, message: Option<SharedMessage>) -> Option<PacketId> {
        let flow = match qos {
            QoS::AtMostOnce => return None,
            QoS::AtLeastOnce => Flow::AwaitsPubAck,
            QoS::ExactlyOnce => Flow::AwaitsPubRec,
        };
        let packet_id = self.id_at(self.inflight.len());
        self.inflight.push_back(Inflight { flow, retain, message });
        self.sent += 1;
        self.unacknowledged += 1;
        Some(packet_id)
    }

    /// The identifier `index` steps after the first.
    fn id_at(&self, index: usize) -> PacketId {
        let id = (self.first_id.get() as usize - 1 + index) % super::packet_id::PACKET_IDS + 1;
        PacketId::new(id as u16).expect("1 to 65,535")
    }

    /// The flow of an identifier that is in use, and its place.
    fn flow(&self, packet_id: PacketId) -> Option<(usize, Flow)> {
        let index = distance(self.first_id, packet_id);
        match self.inflight.get(index)?.flow {
            Flow::Ended => None,
            flow => Some((index, flow)),
        }
    }

    fn end(&mut self, index: usize) {
        let entry = &mut self.inflight[index];
        entry.flow = Flow::Ended;
        entry.message = None;
        self.unacknowledged -= 1;
        while let Some(Inflight { flow: Flow::Ended, .. }) = self.inflight.front() {
            self.inflight.pop_front();
            self.first_id = self.first_id.next();
            self.sent = self.sent.saturating_sub(1);
        }
    }
}

/// Whether a PUBLISH went out again rather than for the first time.
pub type Again = bool;
