//! Flows of a shard that are awkward to see from outside: two cores with nothing between them but what a test carries.

use super::*;
use crate::limits::{MESH_BACKLOG_BYTES_MAX, RECEIPTS_PER_CONNECTION_MAX, RUN_BYTES_MAX};
use crate::mqtt::client::{self, ServerPacket, decode_from_server};
use crate::mqtt::encode;
use crate::mqtt::packet::{Connect, Level, PacketId, QoS, Will};
use crate::mqtt::reason::SubscribeReturnCode;
use crate::mqtt::topic::TopicName;

const KEY: [u64; 4] = [1, 2, 3, 4];

pub(super) struct Cores {
    pub shards: Vec<Shard>,
    /// All outputs so far but `Transmit` and `Forward`, by core.
    pub said: Vec<Vec<Output>>,
    pub now: Millis,
    keep_alive_s: u16,
    /// Of those who connect next.
    pub account: AccountId,
    pub will: Option<Will>,
}

pub(super) fn at(index: u32) -> ConnectionId {
    ConnectionId { index, generation: 1 }
}

pub(super) fn packet_id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

pub(super) fn publish(topic: &str, qos: QoS, retain: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet_id = PacketId::new(id).filter(|_| qos > QoS::AtMostOnce);
    encode::publish(&mut bytes, false, qos, retain, topic, packet_id, payload);
    bytes
}

impl Cores {
    fn new(cores: u16, limits: Limits) -> Cores {
        Cores::with_access(cores, limits, Access::Open)
    }

    pub fn with_access(cores: u16, limits: Limits, access: Access) -> Cores {
        let config = |core| ShardConfig {
            core: PeerId(core),
            cores,
            shard_levels: 3,
            hash_key: KEY,
            limits: limits.clone(),
            access: access.clone(),
            unix_time: UnixTime::default(),
            v1_topics: false,
            stored_datapoints: StoredDatapoints::until(0),
        };
        Cores {
            shards: (0..cores).map(|core| Shard::new(config(core))).collect(),
            said: (0..cores).map(|_| Vec::new()).collect(),
            now: Millis(0),
            keep_alive_s: 0,
            account: AccountId(0),
            will: None,
        }
    }

    /// A topic with this start that the core owns.
    fn topic_of(&self, core: u16, start: &str) -> String {
        (0..)
            .map(|number| format!("{start}{number}"))
            .find(|topic| self.shards[0].shard_key.owner(AccountId(0), TopicName::trusted(topic)) == core)
            .unwrap()
    }

    pub fn input(&mut self, core: usize, input: Input<'_>) -> usize {
        let consumed = self.shards[core].handle(input, self.now);
        self.listen(core);
        consumed
    }

    fn listen(&mut self, core: usize) {
        while let Some(output) = self.shards[core].poll_output() {
            if !matches!(output, Output::Transmit(_) | Output::Forward(..)) {
                self.said[core].push(output);
            }
        }
    }

    pub fn connect(&mut self, core: usize, index: u32, level: Level, clean_session: bool) {
        let connect = Connect {
            level,
            clean_session,
            keep_alive_s: self.keep_alive_s,
            client_id: format!("client-{index}"),
            will: self.will.take(),
            user_name: None,
            password: None,
        };
        let input = Input::Connected {
            connection: at(index),
            connect: Box::new(connect),
            account: self.account,
        };
        self.input(core, input);
    }

    pub fn receive(&mut self, core: usize, index: u32, bytes: &[u8]) -> usize {
        let connection = at(index);
        self.input(core, Input::Received { connection, bytes })
    }

    pub fn subscribe(&mut self, core: usize, index: u32, id: u16, filter: &str, qos: QoS) {
        let mut bytes = Vec::new();
        client::subscribe(&mut bytes, packet_id(id), &[(filter, qos)]);
        self.receive(core, index, &bytes);
    }

    pub fn commit(&mut self, core: usize) {
        let up_to = self.shards[core].last_record;
        self.input(core, Input::Committed { up_to });
    }

    /// One batch crosses; `false` if none waits.
    fn carry(&mut self, from: usize, to: usize, lane: Lane) -> bool {
        let Some(batch) = self.shards[from].take_batch(PeerId(to as u16), lane) else {
            return false;
        };
        self.listen(from);
        let input = Input::Batch {
            from: PeerId(from as u16),
            bytes: &batch,
        };
        self.input(to, input);
        true
    }

    /// Everything crosses that waits, and what that leads to.
    pub fn carry_all(&mut self) {
        if self.shards.len() == 1 {
            return;
        }
        let pairs = [(0, 1), (1, 0)];
        while pairs
            .iter()
            .any(|(from, to)| Lane::ALL.iter().any(|lane| self.carry(*from, *to, *lane)))
        {}
    }

    /// What the connection's socket takes now, packet by packet, in words.
    pub fn sent(&mut self, core: usize, index: u32) -> Vec<String> {
        let bytes = self.shards[core].unsent(at(index)).to_vec();
        let input = Input::Sent {
            connection: at(index),
            bytes: bytes.len(),
        };
        self.input(core, input);
        let mut rest = &bytes[..];
        let mut packets = Vec::new();
        while let Ok(Framing::Whole(frame)) = next_frame(rest, usize::MAX) {
            rest = &rest[frame.len..];
            packets.push(match decode_from_server(frame).unwrap() {
                ServerPacket::ConnAck { session_present, .. } => format!("CONNACK {}", u8::from(session_present)),
                ServerPacket::PubAck(id) => format!("PUBACK {}", id.get()),
                ServerPacket::PubRec(id) => format!("PUBREC {}", id.get()),
                ServerPacket::PubRel(id) => format!("PUBREL {}", id.get()),
                ServerPacket::SubAck(suback) => format!("SUBACK {:?}", suback.codes().collect::<Vec<_>>()),
                ServerPacket::Publish(publish) => format!(
                    "PUBLISH{} {} {}",
                    if publish.retain { " retained" } else { "" },
                    publish.topic.as_str(),
                    String::from_utf8_lossy(publish.payload)
                ),
                other => format!("{other:?}"),
            });
        }
        assert!(rest.is_empty());
        packets
    }
}

#[test]
fn acknowledgements_keep_the_order_of_the_publishes_over_two_cores() {
    let mut cores = Cores::new(2, Limits::default());
    let (near, far) = (cores.topic_of(0, "near"), cores.topic_of(1, "far"));
    cores.connect(0, 0, Level::V311, true);
    cores.receive(0, 0, &publish(&far, QoS::AtLeastOnce, false, 1, b""));
    cores.receive(0, 0, &publish(&near, QoS::ExactlyOnce, false, 2, b""));
    assert_eq!(
        cores.sent(0, 0),
        ["CONNACK 0"],
        "the first waits for its owner, and the second for the first"
    );
    assert!(!cores.shards[0].is_quiescent());
    cores.carry_all();
    assert_eq!(cores.sent(0, 0), ["PUBACK 1", "PUBREC 2"]);
    assert!(cores.shards[0].is_quiescent());
}

#[test]
fn an_acknowledgement_waits_for_every_commit_on_every_core() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(0, "t");
    for (core, index) in [(0, 0), (1, 1)] {
        cores.connect(core, index, Level::V311, false);
        cores.subscribe(core, index, 1, &topic, QoS::AtLeastOnce);
    }
    cores.carry_all();
    (0..2).for_each(|core| cores.commit(core));
    cores.sent(0, 0);
    cores.receive(0, 0, &publish(&topic, QoS::AtLeastOnce, true, 1, b"m"));
    cores.carry_all();
    let delivery = format!("PUBLISH {topic} m");
    assert_eq!(cores.sent(0, 0), [delivery.as_str()], "deliveries do not wait");
    cores.commit(0);
    cores.carry_all();
    assert!(cores.sent(0, 0).is_empty(), "core 1 has not committed");
    cores.commit(1);
    cores.carry_all();
    assert_eq!(cores.sent(0, 0), ["PUBACK 1"]);
}

#[test]
fn every_repetition_of_a_qos_2_publish_is_answered_once_its_receipt_is_complete() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.connect(0, 0, Level::V31, true);
    cores.connect(1, 1, Level::V311, true);
    cores.subscribe(1, 1, 1, &topic, QoS::ExactlyOnce);
    cores.sent(1, 1);
    for _ in 0..3 {
        cores.receive(0, 0, &publish(&topic, QoS::ExactlyOnce, false, 7, b"m"));
    }
    cores.receive(0, 0, &publish(&topic, QoS::AtLeastOnce, false, 8, b"n"));
    assert_eq!(cores.sent(0, 0), ["CONNACK 0"]);
    cores.carry_all();
    assert_eq!(cores.sent(0, 0), ["PUBREC 7", "PUBREC 7", "PUBREC 7", "PUBACK 8"]);
    let deliveries = [format!("PUBLISH {topic} m"), format!("PUBLISH {topic} n")];
    assert_eq!(cores.sent(1, 1), deliveries, "it is one message");
    assert!(cores.shards.iter().all(Shard::is_quiescent));
}

#[test]
fn a_repetition_of_a_packet_of_a_qos_2_run_is_answered_behind_the_run() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.connect(0, 0, Level::V31, true);
    cores.connect(1, 1, Level::V311, true);
    cores.subscribe(1, 1, 1, &topic, QoS::ExactlyOnce);
    cores.sent(1, 1);
    let run = [7, 8].map(|id| publish(&topic, QoS::ExactlyOnce, false, id, b"m"));
    cores.receive(0, 0, &run.concat());
    cores.receive(0, 0, &run[0]);
    // All of it is known: none of it is a message.
    cores.receive(0, 0, &run.concat());
    assert_eq!(cores.sent(0, 0), ["CONNACK 0"]);
    cores.carry_all();
    let answers = [7, 8, 7, 7, 8].map(|id| format!("PUBREC {id}"));
    assert_eq!(cores.sent(0, 0), answers);
    assert_eq!(cores.sent(1, 1).len(), 2, "two messages");
    assert!(cores.shards.iter().all(Shard::is_quiescent));
}

#[test]
fn suback_waits_for_the_owner_and_comes_before_the_retained_messages() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.connect(1, 1, Level::V311, true);
    cores.receive(1, 1, &publish(&topic, QoS::AtMostOnce, true, 0, b"old"));
    cores.connect(0, 0, Level::V311, true);
    cores.subscribe(0, 0, 1, &topic, QoS::AtMostOnce);
    assert_eq!(cores.sent(0, 0), ["CONNACK 0"]);
    assert!(cores.carry(0, 1, Lane::ToOwner));
    // Published between registration and the scan: live only.
    cores.receive(1, 1, &publish(&topic, QoS::AtMostOnce, true, 0, b"new"));
    cores.carry_all();
    let live = format!("PUBLISH {topic} new");
    assert_eq!(cores.sent(0, 0), ["SUBACK [Granted(AtMostOnce)]", live.as_str()]);
}

#[test]
fn retained_messages_come_once_each_from_every_owner_chunk_by_chunk() {
    // The outbox holds a few at a time, so that the scan stops and goes on.
    let limits = Limits {
        outbox_bytes_max: 100,
        ..Limits::default()
    };
    let mut cores = Cores::new(2, limits);
    cores.connect(1, 1, Level::V311, true);
    let mut expected = Vec::new();
    for number in 0..300 {
        let topic = format!("r{number:03}");
        cores.receive(1, 1, &publish(&topic, QoS::AtMostOnce, true, 0, b"m"));
        cores.carry_all();
        expected.push(format!("PUBLISH retained {topic} m"));
    }
    assert!(
        cores
            .shards
            .iter()
            .all(|shard| shard.retained_count() > 2 * crate::limits::RETAINED_CHUNK_MESSAGES - 20)
    );
    cores.connect(0, 0, Level::V311, true);
    cores.subscribe(0, 0, 1, "#", QoS::AtMostOnce);
    let mut got = Vec::new();
    loop {
        cores.carry_all();
        let sent = cores.sent(0, 0);
        if sent.is_empty() {
            break;
        }
        got.extend(sent);
    }
    assert_eq!(got[..2], ["CONNACK 0", "SUBACK [Granted(AtMostOnce)]"]);
    got.drain(..2);
    got.sort_unstable();
    assert_eq!(got, expected);
    assert_eq!(cores.shards[0].counters().dropped_outbox_full, 0);
}

#[test]
fn who_fills_a_peers_batch_is_paused_until_it_is_taken() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.connect(0, 0, Level::V311, true);
    let frame = publish(&topic, QoS::AtMostOnce, false, 0, &[7; 10_000]);
    let frames = 2 * MESH_BACKLOG_BYTES_MAX / frame.len();
    let bytes = frame.repeat(frames);
    let consumed = cores.receive(0, 0, &bytes);
    assert!((MESH_BACKLOG_BYTES_MAX..MESH_BACKLOG_BYTES_MAX + RUN_BYTES_MAX + frame.len()).contains(&consumed));
    assert_eq!(consumed % frame.len(), 0);
    assert_eq!(cores.said[0], [Output::Pause(at(0))]);
    assert_eq!(
        cores.receive(0, 0, &bytes[consumed..]),
        0,
        "a paused connection is not listened to"
    );
    cores.carry(0, 1, Lane::ToOwner);
    assert_eq!(cores.said[0], [Output::Pause(at(0)), Output::Resume(at(0))]);
    let mut consumed = consumed;
    while consumed < bytes.len() {
        consumed += cores.receive(0, 0, &bytes[consumed..]);
        cores.carry_all();
    }
    assert_eq!(
        cores.shards[0].counters().publishes_qos0,
        frames as u64,
        "nothing is lost"
    );
}

#[test]
fn requests_are_not_taken_while_answers_wait_beyond_their_bound() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.connect(0, 0, Level::V311, true);
    cores.subscribe(0, 0, 1, &topic, QoS::AtMostOnce);
    cores.carry_all();
    cores.connect(1, 1, Level::V311, true);
    let bytes = publish(&topic, QoS::AtMostOnce, false, 0, &[7; 10_000]).repeat(40);
    cores.receive(1, 1, &bytes);
    assert_eq!(cores.said[1], [Output::Pause(at(1))]);
    assert!(!cores.shards[1].takes_requests());
    cores.carry(1, 0, Lane::ToHome);
    assert!(cores.shards[1].takes_requests());
    assert_eq!(cores.said[1], [Output::Pause(at(1)), Output::Resume(at(1))]);
}

#[test]
fn a_connection_with_too_many_receipts_is_paused_until_half_are_complete() {
    let mut cores = Cores::new(1, Limits::default());
    cores.connect(0, 0, Level::V311, true);
    let mut bytes = Vec::new();
    for id in 1..=RECEIPTS_PER_CONNECTION_MAX as u16 + 1 {
        bytes.extend(publish("t", QoS::AtLeastOnce, true, id, b"m"));
    }
    let frame = publish("t", QoS::AtLeastOnce, true, 1, b"m").len();
    let consumed = cores.receive(0, 0, &bytes);
    assert_eq!(consumed, RECEIPTS_PER_CONNECTION_MAX * frame);
    let paused = |cores: &Cores| {
        cores.said[0]
            .iter()
            .filter(|said| **said == Output::Pause(at(0)))
            .count()
    };
    let resumed = |cores: &Cores| {
        cores.said[0]
            .iter()
            .filter(|said| **said == Output::Resume(at(0)))
            .count()
    };
    assert_eq!((paused(&cores), resumed(&cores)), (1, 0));
    let half = RECEIPTS_PER_CONNECTION_MAX as u64 / 2;
    let commit = |up_to| Input::Committed {
        up_to: RecordNumber(up_to),
    };
    cores.input(0, commit(half - 1));
    assert_eq!(resumed(&cores), 0);
    cores.input(0, commit(half));
    assert_eq!(resumed(&cores), 1);
    assert_eq!(cores.receive(0, 0, &bytes[consumed..]), frame);
}

#[test]
fn a_level_3_client_is_not_told_of_refusals_nor_of_its_session() {
    let limits = Limits {
        subscriptions_max: 1,
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.connect(0, 0, Level::V31, false);
    cores.connect(0, 1, Level::V311, false);
    for index in [0, 1] {
        cores.subscribe(0, index, 1, "kept", QoS::AtLeastOnce);
        cores.subscribe(0, index, 2, "refused", QoS::AtLeastOnce);
    }
    cores.commit(0);
    let granted = format!("SUBACK {:?}", [SubscribeReturnCode::Granted(QoS::AtLeastOnce)]);
    let refused = format!("SUBACK {:?}", [SubscribeReturnCode::Failure]);
    assert_eq!(cores.sent(0, 0), ["CONNACK 0", &granted, &granted]);
    // What is refused waits for no commit.
    assert_eq!(cores.sent(0, 1), ["CONNACK 0", &refused, &granted]);
    cores.receive(0, 0, &publish("refused", QoS::AtMostOnce, false, 0, b"m"));
    assert!(cores.sent(0, 0).is_empty() && cores.sent(0, 1).is_empty());
    for index in [0, 1] {
        cores.input(0, Input::Disconnected { connection: at(index) });
        cores.connect(0, index, if index == 0 { Level::V31 } else { Level::V311 }, false);
    }
    assert_eq!(cores.sent(0, 0), ["CONNACK 0"], "that byte is reserved at level 3");
    assert_eq!(cores.sent(0, 1), ["CONNACK 1"]);
}

#[test]
fn the_ledger_balances_when_a_session_ends_with_messages_in_flight_and_queued() {
    let limits = Limits {
        inflight_max: 1,
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.connect(0, 0, Level::V311, true);
    cores.connect(0, 1, Level::V311, true);
    cores.subscribe(0, 1, 1, "t", QoS::AtLeastOnce);
    for id in 1..=3 {
        cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, id, b"m"));
    }
    cores.input(0, Input::Disconnected { connection: at(1) });
    let counters = cores.shards[0].counters();
    assert_eq!(
        (
            counters.matched,
            counters.delivered_qos1,
            counters.dropped_session_ended
        ),
        (3, 1, 2)
    );
}

#[test]
fn an_answer_to_a_scan_that_was_given_up_does_not_end_the_next_one() {
    let mut cores = Cores::new(2, Limits::default());
    let (first, second) = (cores.topic_of(1, "first"), cores.topic_of(1, "second"));
    cores.connect(1, 1, Level::V311, true);
    for topic in [&first, &second] {
        cores.receive(1, 1, &publish(topic, QoS::AtMostOnce, true, 0, b"m"));
    }
    cores.connect(0, 0, Level::V311, true);
    cores.subscribe(0, 0, 1, &first, QoS::AtMostOnce);
    cores.carry(0, 1, Lane::ToOwner);
    // Registered before the scan for the first is asked for, so answered before it.
    cores.subscribe(0, 0, 2, &second, QoS::AtMostOnce);
    cores.carry(1, 0, Lane::ToHome);
    let mut unsubscribe = Vec::new();
    client::unsubscribe(&mut unsubscribe, packet_id(3), &[&first]);
    cores.receive(0, 0, &unsubscribe);
    cores.sent(0, 0);
    cores.carry_all();
    let retained = format!("PUBLISH retained {second} m");
    assert_eq!(cores.sent(0, 0), ["SUBACK [Granted(AtMostOnce)]", retained.as_str()]);
    assert!(cores.shards.iter().all(Shard::is_quiescent));
}

#[test]
fn silence_counts_from_the_resume_when_a_batch_was_taken_long_after_the_last_input() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.keep_alive_s = 1;
    cores.connect(0, 0, Level::V311, true);
    let bytes = publish(&topic, QoS::AtMostOnce, false, 0, &[7; 10_000]).repeat(30);
    cores.receive(0, 0, &bytes);
    assert_eq!(cores.said[0], [Output::Pause(at(0))]);
    // Nothing is fed for ten seconds, then the ring has room.
    cores.now = Millis(10_000);
    cores.carry(0, 1, Lane::ToOwner);
    cores.input(0, Input::Tick);
    assert_eq!(cores.said[0][1..], [Output::Resume(at(0))], "its silence was ours");
    cores.now = Millis(12_000);
    cores.input(0, Input::Tick);
    assert_eq!(
        cores.said[0].last(),
        Some(&Output::Close(at(0), CloseReason::KeepAlive))
    );
}

#[test]
fn no_retained_message_follows_an_unsubscribe_that_came_before_its_suback() {
    let mut cores = Cores::new(2, Limits::default());
    let topic = cores.topic_of(1, "t");
    cores.connect(1, 1, Level::V311, true);
    cores.receive(1, 1, &publish(&topic, QoS::AtMostOnce, true, 0, b"m"));
    cores.connect(0, 0, Level::V311, true);
    cores.subscribe(0, 0, 1, &topic, QoS::AtMostOnce);
    let mut unsubscribe = Vec::new();
    client::unsubscribe(&mut unsubscribe, packet_id(2), &[&topic]);
    cores.receive(0, 0, &unsubscribe);
    cores.carry_all();
    assert_eq!(
        cores.sent(0, 0),
        ["CONNACK 0", "UnsubAck(PacketId(2))", "SUBACK [Granted(AtMostOnce)]"]
    );
    assert!(cores.shards.iter().all(Shard::is_quiescent));
}

#[test]
fn unsuback_of_what_is_held_no_more_waits_for_the_disk_to_know_it() {
    let mut cores = Cores::new(1, Limits::default());
    cores.connect(0, 0, Level::V311, false);
    cores.subscribe(0, 0, 1, "a", QoS::AtLeastOnce);
    cores.commit(0);
    cores.sent(0, 0);
    for id in [2, 3] {
        let mut unsubscribe = Vec::new();
        client::unsubscribe(&mut unsubscribe, packet_id(id), &["a"]);
        cores.receive(0, 0, &unsubscribe);
    }
    assert!(cores.sent(0, 0).is_empty());
    cores.commit(0);
    assert_eq!(cores.sent(0, 0), ["UnsubAck(PacketId(2))", "UnsubAck(PacketId(3))"]);
}

#[test]
fn the_full_queue_of_a_connected_client_holds_its_publishers_back_until_half_of_it_is_free() {
    let limits = Limits {
        inflight_max: 1,
        queued_max: 4,
        ..Limits::default()
    };
    for owner in [0, 1] {
        let mut cores = Cores::new(2, limits.clone());
        let topic = cores.topic_of(owner, "t");
        cores.connect(1, 1, Level::V311, true);
        cores.subscribe(1, 1, 1, &topic, QoS::AtLeastOnce);
        cores.connect(0, 0, Level::V311, true);
        cores.carry_all();
        let frame = |id| publish(&topic, QoS::AtLeastOnce, false, id, b"m");
        for id in 1..=5 {
            cores.receive(0, 0, &frame(id));
            cores.carry_all();
        }
        // One in flight, four queued: the last of them filled the queue.
        assert_eq!(cores.said[0], [Output::Pause(at(0))], "owner {owner}");
        assert_eq!(cores.receive(0, 0, &frame(6)), 0);
        cores.sent(1, 1);
        let acknowledge = |cores: &mut Cores, id| {
            let mut puback = Vec::new();
            encode::puback(&mut puback, packet_id(id));
            cores.receive(1, 1, &puback);
            cores.carry_all();
        };
        acknowledge(&mut cores, 1);
        assert_eq!(cores.said[0].len(), 1, "three wait");
        acknowledge(&mut cores, 2);
        assert_eq!(cores.said[0].last(), Some(&Output::Resume(at(0))));
        let counters = cores.shards[1].report();
        assert_eq!((counters.queued_now, counters.dropped_queue_full), (2, 0));
    }
}

#[test]
fn a_queue_that_stays_full_is_given_up_and_then_drops_what_comes() {
    let limits = Limits {
        inflight_max: 1,
        queued_max: 4,
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.connect(0, 0, Level::V311, true);
    cores.connect(0, 1, Level::V311, true);
    cores.subscribe(0, 1, 1, "t", QoS::AtLeastOnce);
    for id in 1..=5 {
        cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, id, b"m"));
    }
    assert_eq!(cores.said[0], [Output::Pause(at(0))]);
    cores.now = Millis(900);
    cores.input(0, Input::Tick);
    assert_eq!(cores.said[0].len(), 1, "its time is not over");
    assert_eq!(cores.shards[0].next_deadline(), Some(Millis(1_000)));
    cores.now = Millis(1_000);
    cores.input(0, Input::Tick);
    assert_eq!(cores.said[0].last(), Some(&Output::Resume(at(0))));
    for id in 6..=8 {
        cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, id, b"m"));
    }
    assert_eq!(cores.said[0].len(), 2, "nobody is held back again");
    let counters = cores.shards[0].report();
    assert_eq!((counters.queued_now, counters.dropped_queue_full), (4, 3));
    // The client leaves: its queue holds nobody back either.
    cores.input(0, Input::Disconnected { connection: at(1) });
    assert_eq!(cores.shards[0].next_deadline(), None);
}

#[test]
fn a_client_that_leaves_lets_its_publishers_go() {
    let limits = Limits {
        inflight_max: 1,
        queued_max: 1,
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.connect(0, 0, Level::V311, true);
    cores.connect(0, 1, Level::V311, false);
    cores.subscribe(0, 1, 1, "t", QoS::AtLeastOnce);
    cores.commit(0);
    for id in 1..=2 {
        cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, id, b"m"));
    }
    assert_eq!(cores.said[0].last(), Some(&Output::Pause(at(0))));
    cores.input(0, Input::Disconnected { connection: at(1) });
    assert_eq!(cores.said[0].last(), Some(&Output::Resume(at(0))));
    // Away, it drops at once.
    cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, 3, b"m"));
    assert_eq!(cores.shards[0].counters().dropped_queue_full, 1);
}

#[test]
fn a_durable_session_ends_when_its_client_stays_away_and_not_before() {
    let limits = Limits {
        session_expiry_s: Some(60),
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.connect(0, 0, Level::V311, false);
    cores.subscribe(0, 0, 1, "t", QoS::AtLeastOnce);
    cores.connect(0, 1, Level::V311, true);
    cores.commit(0);
    cores.now = Millis(100_000);
    cores.input(0, Input::Disconnected { connection: at(0) });
    cores.receive(0, 1, &publish("t", QoS::AtLeastOnce, false, 1, b"m"));
    cores.now = Millis(130_000);
    cores.connect(0, 2, Level::V311, true);
    cores.connect(0, 0, Level::V311, false);
    cores.input(0, Input::Disconnected { connection: at(0) });
    cores.now = Millis(190_999);
    cores.input(0, Input::Tick);
    assert_eq!(cores.shards[0].session_count(), 3, "it was back meanwhile");
    // Within a second after its time, since when it left is known in seconds.
    assert_eq!(cores.shards[0].next_deadline(), Some(Millis(191_000)));
    cores.now = Millis(191_000);
    cores.input(0, Input::Tick);
    let counters = cores.shards[0].report();
    assert_eq!((counters.sessions_now, counters.sessions_expired), (2, 1));
    assert_eq!((counters.matched, counters.expired), (1, 1));
    assert_eq!(cores.shards[0].filter_count(), 0);
}

#[test]
fn on_one_core_a_message_that_was_in_doubt_is_so_no_more_when_it_comes_again() {
    let mut cores = Cores::new(1, Limits::default());
    let session = |number, filter: Option<&str>| record::StoredSession {
        session: SessionNumber(number),
        account: AccountId(0),
        client_id: format!("client-{number}").into(),
        filters: filter
            .map(|filter| (filter.into(), QoS::ExactlyOnce))
            .into_iter()
            .collect(),
        received: Vec::new(),
        away_since_s: None,
        backlog: None,
    };
    let origin = Origin {
        session: SessionNumber(1),
        packet_id: packet_id(7),
    };
    let stored = record::Stored {
        sessions: vec![session(1, None), session(2, Some("t")), session(3, Some("t"))],
        in_doubt: vec![(origin, vec![SessionNumber(2)])],
        ..record::Stored::default()
    };
    restore::restore(&mut cores.shards, stored);
    cores.connect(0, 1, Level::V311, false);
    let mut again = Vec::new();
    encode::publish(&mut again, true, QoS::ExactlyOnce, false, "t", Some(packet_id(7)), b"m");
    cores.receive(0, 1, &again);
    let mut queued = cores.said[0].iter().filter_map(|output| match output {
        Output::Persist(_, record) => match &**record {
            Record::Queued { entries, origin, .. } => Some((entries[0].session, entries.len(), *origin)),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(
        queued.next(),
        Some((SessionNumber(3), 1, None)),
        "who has it does not get it twice"
    );
}

#[test]
fn time_away_counts_over_a_restart() {
    let limits = Limits {
        session_expiry_s: Some(60),
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    let session = |number, away_since_s| record::StoredSession {
        session: SessionNumber(number),
        account: AccountId(0),
        client_id: format!("client-{number}").into(),
        filters: Vec::new(),
        received: Vec::new(),
        away_since_s,
        backlog: None,
    };
    let stored = record::Stored {
        sessions: vec![session(1, Some(0)), session(2, None), session(3, Some(u64::MAX))],
        ..record::Stored::default()
    };
    // The clock began at second 0 of Unix time: whatever is later was written by a clock that has been set back.
    restore::restore(&mut cores.shards, stored);
    for (seconds, left) in [(60, 3), (61, 0)] {
        cores.now = Millis(seconds * 1_000);
        cores.input(0, Input::Tick);
        assert_eq!(cores.shards[0].session_count(), left);
    }
}

#[test]
fn a_clean_connect_is_answered_when_the_disk_knows_that_the_durable_session_has_ended() {
    let mut cores = Cores::new(1, Limits::default());
    cores.connect(0, 0, Level::V311, false);
    cores.commit(0);
    cores.input(0, Input::Disconnected { connection: at(0) });
    cores.connect(0, 0, Level::V311, true);
    assert!(cores.sent(0, 0).is_empty());
    assert_eq!(cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, 1, b"m")), 0);
    cores.commit(0);
    assert_eq!(cores.sent(0, 0), ["CONNACK 0"]);
    assert_eq!(cores.said[0].last(), Some(&Output::Resume(at(0))));
    cores.receive(0, 0, &publish("t", QoS::AtLeastOnce, false, 1, b"m"));
    assert_eq!(cores.sent(0, 0), ["PUBACK 1"]);
}

#[test]
fn a_clean_connect_that_finds_nothing_to_end_waits_for_the_end_that_is_not_on_disk() {
    let mut cores = Cores::new(1, Limits::default());
    cores.connect(0, 0, Level::V311, false);
    cores.commit(0);
    cores.input(0, Input::Disconnected { connection: at(0) });
    cores.connect(0, 0, Level::V311, true);
    cores.input(0, Input::Disconnected { connection: at(0) });
    cores.sent(0, 0);
    let connect = Connect {
        level: Level::V311,
        clean_session: true,
        keep_alive_s: 0,
        client_id: "client-0".to_owned(),
        will: None,
        user_name: None,
        password: None,
    };
    let input = Input::Connected {
        connection: at(1),
        connect: Box::new(connect),
        account: AccountId(0),
    };
    cores.input(0, input);
    assert!(cores.sent(0, 1).is_empty());
    cores.commit(0);
    assert_eq!(cores.sent(0, 1), ["CONNACK 0"]);
}

#[test]
fn retained_messages_that_are_on_disk_only_come_in_order_and_never_after_a_newer_live_one() {
    let limits = Limits {
        retained_memory_bytes_max: 0,
        ..Limits::default()
    };
    for subscriber in [0, 1] {
        let mut cores = Cores::new(2, limits.clone());
        let topics: Vec<String> = (0..3).map(|number| cores.topic_of(0, &format!("r{number}-"))).collect();
        cores.connect(0, 7, Level::V311, true);
        for topic in &topics {
            cores.receive(0, 7, &publish(topic, QoS::AtMostOnce, true, 0, b"old"));
        }
        cores.commit(0);
        cores.said[0].clear();
        cores.connect(subscriber, 1, Level::V311, true);
        cores.subscribe(subscriber, 1, 1, "#", QoS::AtMostOnce);
        cores.carry_all();
        cores.sent(subscriber, 1);
        let Some(Output::Fetch(fetch)) = cores.said[0].last() else {
            panic!("{:?}", cores.said[0])
        };
        let record::Fetch::Retained(fetch) = &**fetch else {
            panic!("{fetch:?}")
        };
        assert_eq!(fetch.topics.iter().map(|topic| &**topic).collect::<Vec<_>>(), topics);
        let ticket = fetch.ticket;
        assert!(!cores.shards[0].is_quiescent());
        cores.receive(0, 7, &publish(&topics[1], QoS::AtMostOnce, true, 0, b"new"));
        cores.carry_all();
        let payload = Some(b"old".as_slice().into());
        let payloads = vec![payload.clone(), payload.clone(), None];
        cores.input(
            0,
            Input::Fetched(Box::new(Fetched::Retained(record::RetainedPayloads {
                ticket,
                payloads,
            }))),
        );
        cores.carry_all();
        let live = format!("PUBLISH {} new", topics[1]);
        let retained = format!("PUBLISH retained {} old", topics[0]);
        assert_eq!(
            cores.sent(subscriber, 1),
            [live, retained],
            "subscriber on {subscriber}"
        );
        // The last one's value was damaged: it is gone.
        assert_eq!(cores.shards[0].retained_count(), 2);
        cores.commit(0);
        assert!(cores.shards.iter().all(Shard::is_quiescent));
    }
}

#[test]
fn who_writes_more_than_the_disk_keeps_up_with_is_held_back_on_whatever_core() {
    let limits = Limits {
        queued_bytes_max: 1 << 30,
        ..Limits::default()
    };
    for publisher in [0, 1] {
        let mut cores = Cores::new(2, limits.clone());
        let topic = cores.topic_of(1, "t");
        cores.connect(1, 1, Level::V311, false);
        cores.subscribe(1, 1, 1, &topic, QoS::AtLeastOnce);
        cores.commit(1);
        cores.input(1, Input::Disconnected { connection: at(1) });
        cores.connect(publisher, 0, Level::V311, true);
        let mut taken = 0;
        for id in 1..=400 {
            taken += cores.receive(
                publisher,
                0,
                &publish(&topic, QoS::AtLeastOnce, false, id, &[7; 200_000]),
            );
            cores.carry_all();
        }
        let is_paused = |output: &&Output| **output == Output::Pause(at(0));
        let pauses = cores.said[publisher].iter().filter(is_paused).count();
        assert_eq!(pauses, 1, "on core {publisher}");
        assert!(taken < crate::limits::STORE_BACKLOG_BYTES_MAX + 1_000_000, "{taken}");
        cores.commit(1);
        cores.carry_all();
        assert_eq!(cores.said[publisher].last(), Some(&Output::Resume(at(0))));
        assert!(cores.shards.iter().all(Shard::is_quiescent));
    }
}

#[test]
fn who_publishes_as_often_as_it_may_waits_for_the_next_second() {
    let limits = Limits {
        publishes_per_s_max: 2,
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.now = Millis(1_900);
    cores.connect(0, 0, Level::V311, true);
    let frame = publish("t", QoS::AtMostOnce, false, 0, b"m");
    let bytes = frame.repeat(3);
    assert_eq!(cores.receive(0, 0, &bytes), 2 * frame.len());
    assert_eq!(cores.said[0], [Output::Pause(at(0))]);
    assert_eq!(cores.shards[0].next_deadline(), Some(Millis(2_000)));
    cores.now = Millis(2_000);
    cores.input(0, Input::Tick);
    assert_eq!(cores.said[0], [Output::Pause(at(0)), Output::Resume(at(0))]);
    assert_eq!(cores.receive(0, 0, &frame), frame.len());
    assert_eq!(cores.shards[0].counters().publishes_qos0, 3, "nothing is lost");
}

/// The first PUBLISH of a second can come before the tick that ends the one before it.
#[test]
fn who_waits_for_the_next_second_has_it_though_others_have_begun_it() {
    let limits = Limits {
        publishes_per_s_max: 1,
        ..Limits::default()
    };
    let mut cores = Cores::new(1, limits);
    cores.now = Millis(1_900);
    cores.connect(0, 0, Level::V311, true);
    cores.connect(0, 1, Level::V311, true);
    let frame = publish("t", QoS::AtMostOnce, false, 0, b"m");
    cores.receive(0, 0, &frame);
    cores.now = Millis(2_000);
    cores.receive(0, 1, &frame);
    assert_eq!(cores.said[0], [Output::Pause(at(0)), Output::Pause(at(1))]);
    assert_eq!(cores.shards[0].next_deadline(), Some(Millis(2_000)));
    cores.input(0, Input::Tick);
    assert_eq!(cores.said[0][2..], [Output::Resume(at(0))], "and not who began it");
    cores.now = Millis(3_000);
    cores.input(0, Input::Tick);
    assert_eq!(cores.said[0][3..], [Output::Resume(at(1))]);
}
