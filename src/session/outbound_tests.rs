//! Flows of one Session's deliveries, with bounds small enough to meet.

use std::collections::BTreeMap;

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
    /// What the disk has of it: payloads by sequence, and whether PUBREC came.
    disk: BTreeMap<u64, (String, QoS, bool)>,
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

fn returned((sequence, (payload, qos, released)): (&u64, &(String, QoS, bool))) -> Returned {
    let topic = TopicName::new("t").unwrap();
    let payload = payload.as_bytes();
    Returned {
        sequence: *sequence,
        qos: *qos,
        retain: false,
        released: *released,
        message: SharedMessage::new(&Message {
            topic,
            payload,
            qos: *qos,
        }),
    }
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
            disk: BTreeMap::new(),
        }
    }

    fn offer_to(&mut self, payload: &str, qos: QoS, is_connected: bool) -> Offered {
        let message = Message {
            topic: TopicName::new("t").unwrap(),
            payload: payload.as_bytes(),
            qos,
        };
        let connection = is_connected.then_some((&mut self.outbox, &mut self.pool));
        let keeping = match self.durable {
            true => Keeping::Durable { record: 7 },
            false => Keeping::Clean,
        };
        let outbound = &mut self.outbound;
        let offered = outbound.offer(&message, &mut None, qos, false, keeping, connection, &self.limits);
        if self.durable && qos != QOS0 && matches!(offered, Offered::Sent | Offered::Queued) {
            self.disk.insert(outbound.last_sequence(), (payload.into(), qos, false));
        }
        offered
    }

    fn offer(&mut self, payload: &str, qos: QoS) -> Offered {
        self.offer_to(payload, qos, true)
    }

    fn refill(&mut self) {
        self.refill_committed(7);
    }

    fn refill_committed(&mut self, committed: u64) {
        let (outbound, outbox, pool) = (&mut self.outbound, &mut self.outbox, &mut self.pool);
        outbound.refill(outbox, pool, Level::V311, committed, &self.limits, |_, _| {});
    }

    /// Reads back at most `max` entries, if any are wanted.
    fn fetch(&mut self, max: usize) {
        let Some((from, _)) = self.outbound.wants_stored(7) else {
            return;
        };
        let entries: Vec<Returned> = self.disk.range(from..).take(max).map(returned).collect();
        let is_end = entries.len() == self.disk.range(from..).count();
        self.outbound.returned(entries.into_iter(), is_end);
    }

    /// The store answers with at most `max` entries.
    fn fetch_answer(&mut self, max: usize, is_end: bool) {
        let from = self.outbound.fetched_to;
        let entries: Vec<Returned> = self.disk.range(from..).take(max).map(returned).collect();
        self.outbound.returned(entries.into_iter(), is_end);
    }

    fn puback(&mut self, packet_id: u16) {
        let ended = self.outbound.puback(id(packet_id)).unwrap();
        self.disk.remove(&ended.unwrap());
    }

    fn pubrec(&mut self, packet_id: u16) {
        match self.outbound.pubrec(id(packet_id)) {
            Ok(PubRec::Released(sequence)) => self.disk.get_mut(&sequence).unwrap().2 = true,
            other => panic!("{other:?}"),
        }
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
    for _ in 0..3 {
        assert_eq!(session.offer("d", QOS1), Offered::Queued);
    }
    assert_eq!(session.offer("d", QOS1), Offered::QueuedFull);
    session.outbound.give_up();
    assert_eq!(session.offer("e", QOS1), Offered::DroppedQueueFull);
    for acknowledged in [1, 2] {
        session.outbound.puback(id(acknowledged)).unwrap();
        session.refill();
    }
    assert_eq!(session.offer("f", QOS0), Offered::Queued, "room again for QoS 0");
    assert_eq!(session.offer(&"x".repeat(2_000), QOS1), Offered::DroppedQueueFull);
    assert_eq!(session.offer_to("g", QOS0, false), Offered::DroppedAway);
}

#[test]
fn a_full_queue_has_as_much_room_again_for_what_is_on_its_way_until_it_is_given_up() {
    let mut session = Session::new(1, false);
    session.offer("a", QOS1);
    for _ in 0..9 {
        assert_eq!(session.offer("b", QOS1), Offered::Queued);
    }
    for _ in 0..11 {
        assert_eq!(session.offer("c", QOS1), Offered::QueuedFull);
    }
    assert_eq!(session.offer("d", QOS1), Offered::DroppedQueueFull);
    session.outbound.give_up();
    for acknowledged in 1..=14 {
        session.outbound.puback(id(acknowledged)).unwrap();
        session.refill();
        session.written();
    }
    assert_eq!(
        (session.outbound.queued(), session.outbound.has_drained(&session.limits)),
        (6, false)
    );
    for _ in 0..4 {
        assert_eq!(session.offer("e", QOS1), Offered::Queued);
    }
    assert_eq!(
        session.offer("f", QOS1),
        Offered::DroppedQueueFull,
        "given up until half is free"
    );
    for acknowledged in 15..=19 {
        session.outbound.puback(id(acknowledged)).unwrap();
        session.refill();
        session.written();
    }
    assert!(session.outbound.has_drained(&session.limits));
    assert_eq!(
        session.offer(&"x".repeat(998), QOS1),
        Offered::QueuedFull,
        "by its bytes"
    );
}

#[test]
fn identifiers_go_round_without_0_and_stay_after_a_resume() {
    let mut session = Session::new(4, true);
    session.outbound = Outbound::stored(65_533, 65_533, 0, 0);
    for payload in ["a", "b", "c", "d"] {
        session.offer(payload, QOS1);
    }
    assert_eq!(session.written(), ["65534 a", "65535 b", "1 c", "2 d"]);
    session.puback(1);
    session.puback(65_534);
    session.outbound.disconnected(7);
    session.fetch(10);
    session.refill();
    assert_eq!(session.written(), ["65535 b+", "2 d+"]);
    for left in [65_535, 2] {
        session.puback(left);
    }
    assert!(session.outbound.is_idle());
    session.offer("e", QOS1);
    assert_eq!(session.written(), ["3 e"]);
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
fn a_resume_sends_again_in_order_then_what_came_meanwhile() {
    let mut session = Session::new(4, true);
    for (payload, qos) in [("a", QOS1), ("b", QOS2), ("c", QOS2), ("d", QOS1), ("e", QOS1)] {
        session.offer(payload, qos);
    }
    session.refill();
    session.pubrec(2);
    session.puback(4);
    assert_eq!(session.written(), ["1 a", "2 b", "3 c", "4 d"]);
    session.outbound.disconnected(7);
    assert_eq!(session.offer_to("f", QOS1, false), Offered::Queued);
    let kept = session.outbound.queue.len();
    assert_eq!(kept, 0, "whoever is away costs no memory");
    assert!(
        !session.outbound.is_clear(),
        "nothing may be written past what is sent again"
    );
    assert_eq!(session.offer("g", QOS0), Offered::DroppedQueueFull);
    session.fetch(2);
    session.refill();
    assert_eq!(session.written(), ["1 a+", "2 rel"]);
    assert_eq!(
        session.offer("h", QOS1),
        Offered::Queued,
        "behind what is still on disk"
    );
    session.fetch(10);
    session.refill();
    assert_eq!(session.written(), ["3 c+", "5 e"]);
    session.puback(1);
    session.puback(5);
    session.refill();
    assert_eq!(session.written(), ["6 f", "7 h"]);
}

#[test]
fn qos_2_of_a_durable_session_leaves_after_its_commit_and_holds_back_what_follows() {
    let mut session = Session::new(4, true);
    assert_eq!(session.offer("a", QOS2), Offered::Queued);
    assert_eq!(session.offer("b", QOS1), Offered::Queued);
    session.refill_committed(6);
    assert!(session.written().is_empty());
    session.refill_committed(7);
    assert_eq!(session.written(), ["1 a", "2 b"]);
}

#[test]
fn an_answer_to_an_ended_connection_is_not_taken_for_the_next() {
    let mut session = Session::new(4, true);
    for payload in ["a", "b", "c"] {
        session.offer_to(payload, QOS1, false);
    }
    assert_eq!(session.outbound.wants_stored(7), Some((0, 0)));
    let of_before: Vec<Returned> = session.disk.iter().take(1).map(returned).collect();
    session.outbound.disconnected(7);
    assert!(!session.outbound.is_idle());
    assert_eq!(session.outbound.wants_stored(7), Some((0, 0)));
    session.outbound.returned(of_before.into_iter(), false);
    session.refill();
    assert!(session.written().is_empty());
    let all: Vec<Returned> = session.disk.iter().map(returned).collect();
    session.outbound.returned(all.into_iter(), true);
    session.refill();
    assert_eq!(session.written(), ["1 a", "2 b", "3 c"]);
}

#[test]
fn what_is_on_disk_is_read_at_once_while_new_messages_are_on_their_way_there() {
    let mut session = Session::new(4, true);
    session.limits.queued_max = 100;
    for _ in 0..20 {
        session.offer_to("a", QOS1, false);
    }
    session.outbound.record = 1;
    assert_eq!(session.outbound.wants_stored(0), Some((0, 1)), "it is not there yet");
    session.fetch_answer(3, false);
    for round in 1..6 {
        // One more is pushed each time, with the record after the committed ones.
        session.offer_to("m", QOS1, false);
        session.outbound.record = round + 1;
        assert_eq!(session.outbound.wants_stored(round), Some((3 * round, 0)));
        session.fetch_answer(3, false);
        session.refill();
    }
    // What is left is not on disk yet, but for a part of it.
    session.offer_to("m", QOS1, false);
    session.outbound.record = 20;
    assert_eq!(session.outbound.wants_stored(5), Some((18, 0)));
    session.fetch_answer(100, false);
    session.offer_to("m", QOS1, false);
    session.outbound.record = 21;
    assert_eq!(session.outbound.wants_stored(5), Some((26, 21)));
    session.fetch_answer(100, true);
    session.outbound.disconnected(9);
    assert_eq!(
        session.outbound.wants_stored(8),
        Some((0, 9)),
        "acknowledgements are on their way"
    );
}

#[test]
fn after_a_start_what_may_have_been_sent_is_flagged_and_no_more() {
    let mut session = Session::new(2, true);
    for (sequence, payload) in [(10, "a"), (12, "b"), (13, "c")] {
        session.disk.insert(sequence, (payload.into(), QOS1, false));
    }
    session.outbound = Outbound::stored(10, 14, 3, 3);
    session.offer("d", QOS1);
    session.fetch(10);
    session.refill();
    assert_eq!(session.written(), ["11 a+", "13 b+"]);
    session.puback(11);
    session.refill();
    assert_eq!(session.written(), ["14 c+"]);
    session.puback(13);
    session.refill();
    assert_eq!(session.written(), ["15 d"]);
}

#[test]
fn a_pubrec_for_what_is_about_to_be_sent_again_waits_for_that() {
    let mut session = Session::new(2, true);
    session.offer("a", QOS2);
    session.refill();
    session.outbound.disconnected(7);
    assert_eq!(session.outbound.pubrec(id(1)), Ok(PubRec::TooEarly));
    session.fetch(10);
    assert_eq!(session.outbound.pubrec(id(1)), Ok(PubRec::TooEarly));
    session.refill();
    session.pubrec(1);
    assert_eq!(session.outbound.pubrec(id(1)), Ok(PubRec::Repeated));
    assert_eq!(session.outbound.pubrec(id(9)), Ok(PubRec::Unknown));
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
        assert_eq!(session.outbound.puback(id(unknown)), Ok(None));
        assert_eq!(session.outbound.pubrec(id(unknown)), Ok(PubRec::Unknown));
        assert_eq!(session.outbound.pubcomp(id(unknown)), Ok(None));
    }
    session.outbound.pubrec(id(2)).unwrap();
    assert_eq!(session.outbound.pubrec(id(2)), Ok(PubRec::Repeated));
}
