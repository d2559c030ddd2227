//! Server to Client: QoS 1 and 2 deliveries of one Session, and everything that waits behind them.
//!
//! Owns    the in-flight window and the queue behind it. A Session that receives QoS 0 only has none of this.
//! Called  by `shard::deliver` (a message to send, PUBACK, PUBREC, PUBCOMP, room in the outbox) and on resume.
//! Gives   encoded packets to the connection's `Outbox`, and nothing else.
//! Holds   - every delivery above QoS 0 has a sequence number, in the order of sending; its Packet Identifier follows from
//!           it, so that a delivery has the same one after a resume, a restart or a crash [MQTT-4.4.0-1];
//!         - a Packet Identifier is in use from first send until its flow ends [MQTT-2.3.1-4]: those in use lie in one
//!           run of the circle, oldest first;
//!         - what came first leaves first, whatever its QoS, so a Session sees the order of its topics' owners;
//!         - unacknowledged <= `inflight_max`, run <= `inflight_max` * INFLIGHT_SPAN_FACTOR, queue within its bounds.
//!
//! A durable Session has all of this on disk as well, and in memory only what a connected client is about to get:
//! ```text
//! sequence   first           first + inflight      fetched_to            next
//!              │ in flight        │ queue (memory)      │ on disk only      │
//! ```
//! When its client leaves, everything is "on disk only"; when it comes back, the oldest is read back first, flagged DUP as
//! far as it may have been sent before [MQTT-3.3.1-1].

use std::collections::VecDeque;

use crate::limits::{INFLIGHT_SPAN_FACTOR, QUEUE_WINDOW_BYTES, QUEUE_WINDOW_MESSAGES, RETAINED_CHUNK_BYTES};
use crate::mqtt::encode;
use crate::mqtt::packet::{Level, PacketId, QoS};
use crate::mqtt::run::Run;

use super::message::{Message, SharedMessage};
use super::outbox::{BufferPool, Outbox};
use super::packet_id::{PACKET_IDS, distance};

/// The bounds of one Session's deliveries.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub inflight_max: usize,
    pub queued_max: usize,
    pub queued_bytes_max: usize,
    pub outbox_bytes_max: usize,
}

/// What keeps a message beside this memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// Nothing: the Session ends with its connection.
    Clean,
    /// The disk, with the record of this number. QoS 2 leaves when that is committed: after a crash its identifier must
    /// not come with another message.
    Durable { record: u64 },
}

/// What became of a message that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// Written to the outbox.
    Sent,
    /// Waits in the queue.
    Queued,
    /// The same, and the queue is at its bound: who publishes to this connected client should be held back.
    QueuedFull,
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

/// What a PUBREC means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PubRec {
    /// The message with this sequence is the client's now.
    Released(u64),
    /// It has been before: PUBREL again.
    Repeated,
    /// The flow is forgotten here: PUBREL lets the client end it.
    Unknown,
    /// For an earlier connection's PUBLISH that is about to be sent again: the client will answer that one.
    TooEarly,
}

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
    /// Topic and payload, for the bound of what a durable Session has on disk.
    len: u32,
}

struct Queued {
    message: SharedMessage,
    qos: QoS,
    retain: bool,
    /// Sent before, or maybe: DUP.
    again: bool,
    /// PUBREC has come for it: PUBREL is next.
    released: bool,
    /// Above QoS 0.
    sequence: u64,
    /// Must be committed before it is sent.
    record: u64,
}

/// A message that the store gave back.
pub struct Returned {
    pub sequence: u64,
    pub qos: QoS,
    pub retain: bool,
    pub released: bool,
    pub message: SharedMessage,
}

/// The QoS 1 and 2 deliveries of one Session.
#[derive(Default)]
pub struct Outbound {
    /// `inflight[n]` has the sequence `first + n`.
    inflight: VecDeque<Inflight>,
    first: u64,
    /// Entries of `inflight` that have not ended.
    unacknowledged: usize,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    queued_qos0: usize,
    /// The next sequence, and the first that is on disk only; equal unless there is such a thing.
    next: u64,
    fetched_to: u64,
    /// Bytes of what is on disk only.
    stored_bytes: usize,
    /// Entries that are on disk only and have not been sent in this run of the broker.
    stored_unsent: u64,
    /// Entries of `queue` that have been sent in this run, on an earlier connection.
    queued_sent: usize,
    /// Publishers have waited in vain for this queue to drain: until half of it has, they wait no more.
    is_given_up: bool,
    /// One past the last sequence that was ever sent.
    sent_to: u64,
    /// Sequences below this may have been sent in an earlier run.
    doubtful_to: u64,
    /// The record that the disk must have before everything below `next` can be read as it is.
    record: u64,
    /// A record that is being waited for, `next` as it was then, and what that was when the last such record was committed:
    /// below it the disk can be read at once, however fast new messages come.
    awaited: (u64, u64),
    readable_to: u64,
    /// One past the last sequence that the store was asked for; None while it is not.
    asked: Option<u64>,
    /// Answers on their way to a connection that has ended.
    stale_answers: u32,
    /// What the account has been charged of `waiting_bytes`: the caller's.
    pub charged_bytes: usize,
}

impl Outbound {
    /// The deliveries of a durable Session as a start finds them: `entries` of the sequences `first..end` are on disk. All
    /// may have been sent before, and acknowledged: a queue is read back, and its client drains it, however long the disk
    /// does not hear of that.
    pub fn stored(first: u64, end: u64, entries: u64, bytes: usize) -> Outbound {
        Outbound {
            first,
            fetched_to: first,
            next: end,
            sent_to: first,
            stored_bytes: bytes,
            stored_unsent: entries,
            doubtful_to: end,
            ..Outbound::default()
        }
    }

    /// Nothing in flight, nothing queued, and nothing charged for.
    pub fn is_idle(&self) -> bool {
        self.inflight.is_empty()
            && self.is_clear()
            && self.asked.is_none()
            && self.stale_answers == 0
            && self.charged_bytes == 0
    }

    /// Whether a message may be written past this state at once: nothing waits that came before it.
    pub fn is_clear(&self) -> bool {
        self.queue.is_empty() && !self.has_stored()
    }

    /// Whether more may be asked for that is not urgent: retained messages.
    pub fn keeps_up(&self, limits: &Limits) -> bool {
        self.is_clear()
            || (!self.has_stored()
                && self.queue.len() < (limits.queued_max / 2).min(QUEUE_WINDOW_MESSAGES / 4)
                && self.waiting_bytes() + RETAINED_CHUNK_BYTES <= limits.queued_bytes_max)
    }

    /// Messages that have not been sent in this run of the broker.
    pub fn queued(&self) -> u64 {
        (self.queue.len() - self.queued_sent) as u64 + self.stored_unsent
    }

    /// Whether half of the queue is free again, after it was full.
    pub fn has_drained(&self, limits: &Limits) -> bool {
        self.queued() <= limits.queued_max as u64 / 2 && self.waiting_bytes() <= limits.queued_bytes_max / 2
    }

    /// Publishers have been held back long enough for this client.
    pub fn give_up(&mut self) {
        self.is_given_up = true;
    }

    /// Bytes of the queue, wherever it is.
    pub fn waiting_bytes(&self) -> usize {
        self.queued_bytes + self.stored_bytes
    }

    /// The sequence of the message that was offered last and not dropped, if it was above QoS 0.
    pub fn last_sequence(&self) -> u64 {
        self.next - 1
    }

    fn has_stored(&self) -> bool {
        self.fetched_to < self.next
    }

    /// Sends, queues or drops one message at `qos`, the lower of its own and the granted one. `shared` is filled when the
    /// message must be kept, once for all Sessions it is offered to. `connection` is `None` while the client is away.
    pub fn offer(
        &mut self,
        message: &Message<'_>,
        shared: &mut Option<SharedMessage>,
        qos: QoS,
        retain: bool,
        keeping: Keeping,
        connection: Option<(&mut Outbox, &mut BufferPool)>,
        limits: &Limits,
    ) -> Offered {
        let is_connected = connection.is_some();
        let len = message.topic.as_str().len() + message.payload.len();
        if let Some((outbox, pool)) = connection {
            let has_room = outbox.len() < limits.outbox_bytes_max;
            let waits_for_disk = qos == QoS::ExactlyOnce && keeping != Keeping::Clean;
            let may_send = qos == QoS::AtMostOnce || (self.window_is_open(limits) && !waits_for_disk);
            if self.is_clear() && has_room && may_send {
                let packet_id = self.begin(qos, len);
                if keeping != Keeping::Clean && qos != QoS::AtMostOnce {
                    shared.get_or_insert_with(|| SharedMessage::new(message));
                }
                let topic = message.topic.as_str();
                encode::publish(
                    outbox.writer(pool),
                    false,
                    qos,
                    retain,
                    topic,
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
        // QoS 0 may fill half the queue only, so that it gives way before QoS 1 and 2; nor is it written to disk, where
        // its place would be while older messages come back from there.
        if qos == QoS::AtMostOnce && (self.queued_qos0 >= limits.queued_max / 2 || self.has_stored()) {
            return Offered::DroppedQueueFull;
        }
        self.is_given_up &= is_connected && !self.has_drained(limits);
        // At its bound the queue of a connected client holds its publishers back, and as much again has room for what
        // they had sent before they heard of it.
        let holds_back = is_connected && qos != QoS::AtMostOnce && !self.is_given_up;
        let factor = if holds_back { 2 } else { 1 };
        let (waiting, bytes) = (self.queued() as usize, self.waiting_bytes() + len);
        if waiting >= limits.queued_max.saturating_mul(factor) || bytes > limits.queued_bytes_max.saturating_mul(factor)
        {
            return Offered::DroppedQueueFull;
        }
        let queued = match holds_back && (waiting + 1 >= limits.queued_max || bytes >= limits.queued_bytes_max) {
            true => Offered::QueuedFull,
            false => Offered::Queued,
        };
        let message = shared.get_or_insert_with(|| SharedMessage::new(message)).clone();
        let sequence = self.next;
        let record = match keeping {
            Keeping::Clean => 0,
            Keeping::Durable { record } => {
                let has_window = self.queue.len() < QUEUE_WINDOW_MESSAGES && self.queued_bytes < QUEUE_WINDOW_BYTES;
                if qos != QoS::AtMostOnce && (!is_connected || self.has_stored() || !has_window) {
                    self.next += 1;
                    self.stored_bytes += len;
                    self.stored_unsent += 1;
                    self.record = record;
                    return queued;
                }
                if qos == QoS::ExactlyOnce { record } else { 0 }
            }
        };
        if qos != QoS::AtMostOnce {
            self.next += 1;
            self.fetched_to = self.next;
        }
        self.push(Queued {
            message,
            qos,
            retain,
            again: false,
            released: false,
            sequence,
            record,
        });
        queued
    }

    /// Whether so many messages above QoS 0 may be sent at once, to a clean Session: nothing is before them, and the window is
    /// open for all.
    pub fn has_window_for(&self, count: u32, limits: &Limits) -> bool {
        let count = count as usize;
        self.is_clear()
            && self.unacknowledged + count <= limits.inflight_max
            && self.inflight.len() + count <= limits.inflight_max * INFLIGHT_SPAN_FACTOR
    }

    /// Sends a run above QoS 0 that [`has_window_for`](Outbound::has_window_for) allows: copied whole, then each packet is given its
    /// identifier.
    pub fn send_run(&mut self, run: &Run<'_>, out: &mut Vec<u8>) {
        let mut from = out.len();
        out.extend_from_slice(run.frames);
        for len in run.lens() {
            let packet_id = self.begin(run.qos, run.message_len(len));
            let packet_id = packet_id.expect("above QoS 0 there is one");
            let at = from + run.packet_id_at(len);
            out[at..at + 2].copy_from_slice(&packet_id.get().to_be_bytes());
            from += len;
        }
    }

    fn push(&mut self, queued: Queued) {
        self.queued_bytes += queued.message.len();
        self.queued_qos0 += usize::from(queued.qos == QoS::AtMostOnce);
        self.queued_sent += usize::from(self.has_sent(&queued));
        self.queue.push_back(queued);
    }

    fn pop(&mut self) -> Option<Queued> {
        let queued = self.queue.pop_front()?;
        self.queued_bytes -= queued.message.len();
        self.queued_qos0 -= usize::from(queued.qos == QoS::AtMostOnce);
        self.queued_sent -= usize::from(self.has_sent(&queued));
        Some(queued)
    }

    /// Whether a message was sent in this run, on an earlier connection.
    fn has_sent(&self, queued: &Queued) -> bool {
        queued.qos != QoS::AtMostOnce && queued.sequence < self.sent_to
    }

    /// Writes what may be written now, as far as window, outbox and the commits of the disk allow. Counts what it writes
    /// through `wrote(qos, again)`: each message once for the first time in this run of the broker.
    pub fn refill(
        &mut self,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
        level: Level,
        committed: u64,
        limits: &Limits,
        mut wrote: impl FnMut(QoS, Again),
    ) {
        while outbox.len() < limits.outbox_bytes_max
            && let Some(front) = self.queue.front()
        {
            let waits = front.record > committed || !self.window_is_open(limits);
            if front.qos != QoS::AtMostOnce && waits {
                return;
            }
            let Some(front) = self.pop() else { return };
            let Queued { ref message, qos, .. } = front;
            let again = self.has_sent(&front);
            let packet_id = match qos {
                QoS::AtMostOnce => None,
                _ => Some(self.place(&front)),
            };
            if !(again && front.released) {
                wrote(qos, again);
            }
            let out = outbox.writer(pool);
            match packet_id {
                Some(packet_id) if front.released && level == Level::V31 => encode::pubrel_again_v31(out, packet_id),
                Some(packet_id) if front.released => encode::pubrel(out, packet_id),
                _ => {
                    let (topic, payload) = (message.topic(), message.payload());
                    encode::publish(out, front.again, qos, front.retain, topic, packet_id, payload);
                }
            }
        }
    }

    /// What to ask the store for when there is room for it in memory: the first sequence that is on disk only, and the
    /// record that must be committed before it is read. The answer goes to [`returned`](Outbound::returned).
    pub fn wants_stored(&mut self, committed: u64) -> Option<(u64, u64)> {
        let has_room = self.queue.len() < QUEUE_WINDOW_MESSAGES / 2 && self.queued_bytes < QUEUE_WINDOW_BYTES / 2;
        if !self.has_stored() || !has_room || self.asked.is_some() {
            return None;
        }
        if self.awaited.0 <= committed {
            self.readable_to = self.readable_to.max(self.awaited.1);
            self.awaited = (self.record, self.next);
        }
        if self.record <= committed {
            self.readable_to = self.next;
        }
        let (asked_to, after) = if self.readable_to > self.fetched_to {
            (self.readable_to, 0)
        } else if self.awaited.1 > self.fetched_to {
            (self.awaited.1, self.awaited.0)
        } else {
            (self.next, self.record)
        };
        self.asked = Some(asked_to);
        Some((self.fetched_to, after))
    }

    /// The store's answer: entries in ascending order, the last of all if `is_end`. Returns how many messages that were
    /// never sent have not come back, since their values on disk are damaged.
    pub fn returned(&mut self, entries: impl Iterator<Item = Returned>, is_end: bool) -> u64 {
        if self.stale_answers > 0 {
            self.stale_answers -= 1;
            return 0;
        }
        let asked_to = self.asked.take().expect("the store answers what it was asked");
        for entry in entries {
            let Returned {
                sequence,
                qos,
                retain,
                released,
                message,
            } = entry;
            assert!(
                sequence >= self.fetched_to && sequence < self.next,
                "the store has what this Session put there"
            );
            self.fetched_to = sequence + 1;
            let again = sequence < self.sent_to.max(self.doubtful_to);
            self.stored_bytes = self.stored_bytes.saturating_sub(message.len());
            self.stored_unsent -= u64::from(sequence >= self.sent_to);
            let record = 0;
            self.push(Queued {
                message,
                qos,
                retain,
                again,
                released,
                sequence,
                record,
            });
        }
        if is_end {
            self.fetched_to = self.fetched_to.max(asked_to);
        }
        if self.has_stored() {
            return 0;
        }
        self.stored_bytes = 0;
        std::mem::take(&mut self.stored_unsent)
    }

    /// PUBACK: the sequence that is over. Unknown identifiers are ignored: the flow they belong to has ended.
    pub fn puback(&mut self, packet_id: PacketId) -> Result<Option<u64>, WrongAcknowledgement> {
        self.ended(packet_id, Flow::AwaitsPubAck)
    }

    /// PUBREC: the message is the client's; the caller answers with PUBREL unless it is `TooEarly`.
    pub fn pubrec(&mut self, packet_id: PacketId) -> Result<PubRec, WrongAcknowledgement> {
        match self.flow(packet_id) {
            Some((index, Flow::AwaitsPubRec)) => {
                self.inflight[index].flow = Flow::AwaitsPubComp;
                Ok(PubRec::Released(self.first + index as u64))
            }
            Some((_, Flow::AwaitsPubComp)) => Ok(PubRec::Repeated),
            Some(_) => Err(WrongAcknowledgement),
            None if self.is_to_be_sent_again(packet_id) => Ok(PubRec::TooEarly),
            None => Ok(PubRec::Unknown),
        }
    }

    /// PUBCOMP: the sequence that is over. Unknown identifiers are ignored.
    pub fn pubcomp(&mut self, packet_id: PacketId) -> Result<Option<u64>, WrongAcknowledgement> {
        self.ended(packet_id, Flow::AwaitsPubComp)
    }

    /// The connection of a durable Session is gone: from now on everything is on disk only, as it is once `record`, the last
    /// of this core, is committed. Returns how many QoS 0 messages go with it.
    pub fn disconnected(&mut self, record: u64) -> usize {
        self.record = record;
        self.awaited = (record, self.next);
        self.readable_to = 0;
        self.stored_unsent += (self.queue.len() - self.queued_qos0 - self.queued_sent) as u64;
        let inflight = self.inflight.iter().filter(|entry| entry.flow != Flow::Ended);
        self.stored_bytes += inflight.map(|entry| entry.len as usize).sum::<usize>();
        let queue = self.queue.iter().filter(|queued| queued.qos != QoS::AtMostOnce);
        self.stored_bytes += queue.map(|queued| queued.message.len()).sum::<usize>();
        (self.inflight, self.queue) = (VecDeque::new(), VecDeque::new());
        self.fetched_to = self.first;
        self.unacknowledged = 0;
        (self.queued_bytes, self.queued_sent) = (0, 0);
        self.is_given_up = false;
        self.stale_answers += u32::from(self.asked.take().is_some());
        std::mem::take(&mut self.queued_qos0)
    }

    fn window_is_open(&self, limits: &Limits) -> bool {
        self.unacknowledged < limits.inflight_max && self.inflight.len() < limits.inflight_max * INFLIGHT_SPAN_FACTOR
    }

    /// Starts a flow with the next sequence; QoS 0 has none.
    fn begin(&mut self, qos: QoS, len: usize) -> Option<PacketId> {
        let flow = match qos {
            QoS::AtMostOnce => return None,
            QoS::AtLeastOnce => Flow::AwaitsPubAck,
            QoS::ExactlyOnce => Flow::AwaitsPubRec,
        };
        let sequence = self.next;
        self.next += 1;
        self.fetched_to = self.next;
        Some(self.start(sequence, flow, len))
    }

    /// Starts the flow of a message that has waited.
    fn place(&mut self, queued: &Queued) -> PacketId {
        let flow = match queued.qos {
            QoS::ExactlyOnce if queued.released => Flow::AwaitsPubComp,
            QoS::ExactlyOnce => Flow::AwaitsPubRec,
            _ => Flow::AwaitsPubAck,
        };
        self.start(queued.sequence, flow, queued.message.len())
    }

    fn start(&mut self, sequence: u64, flow: Flow, len: usize) -> PacketId {
        if self.inflight.is_empty() {
            self.first = sequence;
        }
        // What came back from disk has gaps where the client had acknowledged.
        while self.first + (self.inflight.len() as u64) < sequence {
            self.inflight.push_back(Inflight {
                flow: Flow::Ended,
                len: 0,
            });
        }
        debug_assert_eq!(self.first + self.inflight.len() as u64, sequence);
        let len = len as u32;
        self.inflight.push_back(Inflight { flow, len });
        self.unacknowledged += 1;
        self.sent_to = self.sent_to.max(sequence + 1);
        packet_id_of(sequence)
    }

    /// The flow of an identifier that is in use, and its place.
    fn flow(&self, packet_id: PacketId) -> Option<(usize, Flow)> {
        let index = distance(packet_id_of(self.first), packet_id);
        match self.inflight.get(index)?.flow {
            Flow::Ended => None,
            flow => Some((index, flow)),
        }
    }

    /// Whether an identifier belongs to what was sent on an earlier connection and is not yet on this one.
    fn is_to_be_sent_again(&self, packet_id: PacketId) -> bool {
        let may_return = self.has_stored() && self.fetched_to < self.sent_to.max(self.doubtful_to);
        let is_queued = |queued: &Queued| queued.again && packet_id_of(queued.sequence) == packet_id;
        may_return || self.queue.iter().any(is_queued)
    }

    fn ended(&mut self, packet_id: PacketId, expected: Flow) -> Result<Option<u64>, WrongAcknowledgement> {
        let Some((index, flow)) = self.flow(packet_id) else {
            return Ok(None);
        };
        if flow != expected {
            return Err(WrongAcknowledgement);
        }
        let sequence = self.first + index as u64;
        self.inflight[index].flow = Flow::Ended;
        self.unacknowledged -= 1;
        while let Some(Inflight { flow: Flow::Ended, .. }) = self.inflight.front() {
            self.inflight.pop_front();
            self.first += 1;
        }
        if self.inflight.is_empty() {
            // What waits next begins the run, past the gaps.
            let waiting = self.queue.iter().find(|queued| queued.qos != QoS::AtMostOnce);
            self.first = waiting.map_or(self.fetched_to, |queued| queued.sequence);
        }
        Ok(Some(sequence))
    }
}

/// Identifiers follow sequences around the circle.
fn packet_id_of(sequence: u64) -> PacketId {
    PacketId::new((sequence % PACKET_IDS as u64) as u16 + 1).expect("1 to 65,535")
}

/// Whether a PUBLISH went out again rather than for the first time.
pub type Again = bool;

#[cfg(test)]
#[path = "outbound_tests.rs"]
mod tests;
