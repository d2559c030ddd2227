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
use crate::mqtt::packet::{Level, PacketId, QoS};

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
        level: Level,
        durable: bool,
        limits: &Limits,
        mut wrote: impl FnMut(QoS, Again),
    ) {
        while outbox.len() < limits.outbox_bytes_max {
            if self.sent < self.inflight.len() {
                self.send_again(outbox.writer(pool), level, &mut wrote);
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

    fn send_again(&mut self, out: &mut Vec<u8>, level: Level, wrote: &mut impl FnMut(QoS, Again)) {
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
            Flow::AwaitsPubComp if level == Level::V31 => encode::pubrel_again_v31(out, packet_id),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::client::{ServerPacket, decode_from_server};
    use crate::mqtt::frame::{Framing, next_frame};
    use crate::mqtt::topic::TopicName;

    /// One Session with a connection, its bounds small enough to meet.
    struct Session {
        outbound: Outbound,
        outbox: Outbox,
        pool: BufferPool,
        limits: Limits,
        durable: bool,
    }

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    impl Session {
        fn new(inflight_max: usize, durable: bool) -> Session {
            Session {
                outbound: Outbound::default(),
                outbox: Outbox::default(),
                pool: BufferPool::new(),
                limits: Limits {
                    inflight_max,
                    queued_max: 10,
                    queued_bytes_max: 1_000,
                    outbox_bytes_max: 1_000,
                },
                durable,
            }
        }

        fn offer_to(&mut self, payload: &str, qos: QoS, is_connected: bool) -> Offered {
            let message = Message {
                topic: TopicName::new("t").unwrap(),
                payload: payload.as_bytes(),
                qos,
            };
            let connection = is_connected.then_some((&mut self.outbox, &mut self.pool));
            let (outbound, durable) = (&mut self.outbound, self.durable);
            outbound.offer(&message, &mut None, qos, false, durable, connection, &self.limits)
        }

        fn offer(&mut self, payload: &str, qos: QoS) -> Offered {
            self.offer_to(payload, qos, true)
        }

        fn refill(&mut self) {
            let (outbound, durable) = (&mut self.outbound, self.durable);
            outbound.refill(
                &mut self.outbox,
                &mut self.pool,
                Level::V311,
                durable,
                &self.limits,
                |_, _| {},
            );
        }

        /// What was written since the last call: identifier (0: none), payload, `+` for DUP; `rel` for PUBREL.
        fn written(&mut self) -> Vec<String> {
            let mut rest = self.outbox.unsent();
            let mut written = Vec::new();
            while let Ok(Framing::Whole(frame)) = next_frame(rest, usize::MAX) {
                rest = &rest[frame.len..];
                written.push(match decode_from_server(frame).unwrap() {
                    ServerPacket::Publish(publish) => format!(
                        "{} {}{}",
                        publish.packet_id.map_or(0, PacketId::get),
                        std::str::from_utf8(publish.payload).unwrap(),
                        if publish.dup { "+" } else { "" }
                    ),
                    ServerPacket::PubRel(id) => format!("{} rel", id.get()),
                    other => panic!("{other:?}"),
                });
            }
            let len = self.outbox.len();
            self.outbox.take(len, &mut self.pool);
            written
        }
    }

    const QOS0: QoS = QoS::AtMostOnce;
    const QOS1: QoS = QoS::AtLeastOnce;
    const QOS2: QoS = QoS::ExactlyOnce;

    #[test]
    fn what_came_first_leaves_first_whatever_its_qos() {
        let mut session = Session::new(2, false);
        assert_eq!(session.offer("a", QOS1), Offered::Sent);
        assert_eq!(session.offer("b", QOS0), Offered::Sent, "nothing waits before it");
        assert_eq!(session.offer("c", QOS2), Offered::Sent);
        assert_eq!(session.offer("d", QOS1), Offered::Queued, "the window is full");
        assert_eq!(session.offer("e", QOS0), Offered::Queued, "it may not overtake");
        assert_eq!(session.offer("f", QOS1), Offered::Queued);
        assert_eq!(session.written(), ["1 a", "0 b", "2 c"]);
        session.outbound.puback(id(1)).unwrap();
        session.refill();
        assert_eq!(session.written(), ["3 d", "0 e"]);
        session.outbound.pubrec(id(2)).unwrap();
        session.refill();
        assert!(
            session.written().is_empty(),
            "a QoS 2 flow holds its place until PUBCOMP"
        );
        session.outbound.pubcomp(id(2)).unwrap();
        session.refill();
        assert_eq!(session.written(), ["4 f"]);
    }

    #[test]
    fn a_full_outbox_drops_qos_0_and_queues_the_rest() {
        let mut session = Session::new(10, false);
        session.limits.outbox_bytes_max = 10;
        assert_eq!(
            session.offer("0123456789", QOS1),
            Offered::Sent,
            "one packet may overshoot"
        );
        assert_eq!(session.offer("a", QOS0), Offered::DroppedOutboxFull);
        assert_eq!(session.offer("b", QOS1), Offered::Queued);
        session.written();
        assert_eq!(
            session.offer("c", QOS0),
            Offered::Queued,
            "there is room, but not before b"
        );
        session.refill();
        assert_eq!(session.written(), ["2 b", "0 c"]);
    }

    #[test]
    fn qos_0_fills_half_of_the_queue_and_bytes_are_bounded() {
        let mut session = Session::new(1, false);
        session.offer("a", QOS1);
        assert_eq!(session.offer("first", QOS1), Offered::Queued);
        for _ in 0..5 {
            assert_eq!(session.offer("b", QOS0), Offered::Queued);
        }
        assert_eq!(session.offer("c", QOS0), Offered::DroppedQueueFull);
        for _ in 0..4 {
            assert_eq!(session.offer("d", QOS1), Offered::Queued);
        }
        assert_eq!(session.offer("e", QOS1), Offered::DroppedQueueFull);
        for acknowledged in [1, 2] {
            session.outbound.puback(id(acknowledged)).unwrap();
            session.refill();
        }
        assert_eq!(session.offer("f", QOS0), Offered::Queued, "room again for QoS 0");
        assert_eq!(session.offer(&"x".repeat(1_000), QOS1), Offered::DroppedQueueFull);
        assert_eq!(session.offer_to("g", QOS0, false), Offered::DroppedAway);
    }

    #[test]
    fn identifiers_go_round_without_0() {
        let mut session = Session::new(4, true);
        session.outbound.first_id = id(65_534);
        for payload in ["a", "b", "c", "d"] {
            session.offer(payload, QOS1);
        }
        assert_eq!(session.written(), ["65534 a", "65535 b", "1 c", "2 d"]);
        session.outbound.puback(id(1)).unwrap();
        session.outbound.puback(id(65_534)).unwrap();
        session.outbound.disconnected();
        session.refill();
        assert_eq!(session.written(), ["65535 b+", "2 d+"]);
        for left in [65_535, 2] {
            session.outbound.puback(id(left)).unwrap();
        }
        assert!(session.outbound.is_idle());
        assert_eq!(session.outbound.first_id, id(3));
    }

    #[test]
    fn one_client_that_never_acknowledges_its_oldest_costs_a_bounded_run() {
        let mut session = Session::new(2, false);
        session.offer("oldest", QOS1);
        let mut sent = 1;
        while session.offer("m", QOS1) == Offered::Sent {
            sent += 1;
            session.outbound.puback(id(sent)).unwrap();
            session.written();
        }
        assert_eq!(usize::from(sent), 2 * INFLIGHT_SPAN_FACTOR);
        session.outbound.puback(id(1)).unwrap();
        session.refill();
        assert_eq!(session.written(), [format!("{} m", sent + 1)]);
    }

    #[test]
    fn a_resume_sends_again_in_order_then_the_queue_in_order() {
        let mut session = Session::new(4, true);
        for (payload, qos) in [("a", QOS1), ("b", QOS2), ("c", QOS2), ("d", QOS1), ("e", QOS1)] {
            session.offer(payload, qos);
        }
        session.outbound.pubrec(id(2)).unwrap();
        session.outbound.puback(id(4)).unwrap();
        session.written();
        session.outbound.disconnected();
        assert_eq!(session.offer_to("f", QOS1, false), Offered::Queued);
        assert!(
            !session.outbound.is_clear(),
            "nothing may be written past what is sent again"
        );
        assert_eq!(session.offer("g", QOS0), Offered::Queued);
        session.refill();
        assert_eq!(session.written(), ["1 a+", "2 rel", "3 c+", "5 e"]);
        // Acknowledged before it was sent again: it is not sent again.
        session.outbound.disconnected();
        session.outbound.puback(id(1)).unwrap();
        session.refill();
        assert_eq!(session.written(), ["2 rel", "3 c+", "5 e+", "6 f", "0 g"]);
    }

    #[test]
    fn an_acknowledgement_of_another_flow_is_an_error_and_an_unknown_one_is_not() {
        let mut session = Session::new(4, false);
        session.offer("a", QOS1);
        session.offer("b", QOS2);
        assert_eq!(session.outbound.pubrec(id(1)), Err(WrongAcknowledgement));
        assert_eq!(session.outbound.puback(id(2)), Err(WrongAcknowledgement));
        assert_eq!(
            session.outbound.pubcomp(id(2)),
            Err(WrongAcknowledgement),
            "PUBREC comes first"
        );
        for unknown in [3, 65_535] {
            assert_eq!(session.outbound.puback(id(unknown)), Ok(()));
            assert_eq!(session.outbound.pubrec(id(unknown)), Ok(()));
            assert_eq!(session.outbound.pubcomp(id(unknown)), Ok(()));
        }
        session.outbound.pubrec(id(2)).unwrap();
        assert_eq!(session.outbound.pubrec(id(2)), Ok(()), "repeated");
    }
}
