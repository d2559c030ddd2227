//! A read of several packets against the same packets in a read each: nobody can tell them apart.

use proptest::prelude::*;

use super::tests::{Cores, at, packet_id, publish};
use super::*;
use crate::mqtt::client;
use crate::mqtt::encode;
use crate::mqtt::packet::{Level, PacketId, QoS};

/// What every subscriber got, and every counter of both cores but how many batches crossed.
type Outcome = (Vec<Vec<u8>>, Vec<Vec<(&'static str, u64)>>);

/// Subscribers: 1 keeps up, 2 has an outbox that is nearly full, 3 a QoS 1 message in front of all, 4 is away.
fn outcome(cores: u16, packets: &[Vec<u8>], together: bool) -> Outcome {
    let limits = Limits {
        outbox_bytes_max: 300,
        inflight_max: 1,
        ..Limits::default()
    };
    let mut all = Cores::with_access(cores, limits, Access::Open);
    let last = usize::from(cores) - 1;
    for index in 0..5 {
        let core = if index == 0 { 0 } else { last };
        all.connect(core, index, Level::V311, index != 4);
        all.sent(core, index);
        if index > 0 {
            all.subscribe(core, index, 1, "#", QoS::AtLeastOnce);
        }
        all.carry_all();
        all.commit(core);
        all.sent(core, index);
    }
    let mut full = Vec::new();
    client::subscribe(&mut full, packet_id(2), &[("x", QoS::AtMostOnce)]);
    all.receive(last, 2, &full.repeat(40));
    all.receive(0, 0, &publish("a", QoS::AtLeastOnce, false, 9, b"in front"));
    all.receive(0, 0, &publish("a", QoS::AtLeastOnce, false, 10, b"waits"));
    all.carry_all();
    let connection = at(4);
    all.input(last, Input::Disconnected { connection });
    let reads = if together {
        vec![packets.concat()]
    } else {
        packets.to_vec()
    };
    for bytes in reads {
        assert_eq!(all.receive(0, 0, &bytes), bytes.len());
    }
    all.carry_all();
    let got = (0..5).map(|index| {
        let core = if index == 0 { 0 } else { last };
        all.shards[core].unsent(at(index)).to_vec()
    });
    let got = got.collect();
    let counters = all.shards.iter().map(|shard| {
        let counters = shard.counters().iter();
        counters.filter(|(name, _)| *name != "batches_sent").collect()
    });
    (got, counters.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn packets_of_one_read_are_what_they_would_be_one_by_one(
        packets in proptest::collection::vec(("a|b/c", 0u8..6, any::<bool>(), 0usize..90), 1..20),
        cores in 1u16..=2,
    ) {
        let packets: Vec<Vec<u8>> = packets
            .iter()
            .enumerate()
            .map(|(number, (topic, qos, retain, len))| {
                // Mostly at QoS 0 without RETAIN, which is what makes runs.
                let qos = QoS::from_bits(qos.saturating_sub(3)).unwrap();
                let retain = *retain && qos == QoS::AtLeastOnce;
                publish(topic, qos, retain, if qos == QoS::AtMostOnce { 0 } else { 100 + number as u16 }, &vec![number as u8; *len])
            })
            .collect();
        prop_assert_eq!(outcome(cores, &packets, true), outcome(cores, &packets, false));
    }
}

/// What the clients of [`exchange`] do.
#[derive(Clone, Debug)]
struct Plan {
    cores: u16,
    /// The publisher's Session is clean.
    is_clean: bool,
    /// Subscribers: the QoS each is granted, whether its Session is clean, and how many of its acknowledgements it keeps to itself.
    subscribers: Vec<(u8, bool, usize)>,
    /// Identifiers, none of them in use, or any.
    repeats: bool,
    /// Rounds of PUBLISH packets: topic, QoS, identifier, payload length.
    rounds: Vec<Vec<(String, u8, u16, usize)>>,
    /// An acknowledgement, counted from the first of a read, that is of this kind, whatever it should be.
    wrong: Option<(usize, u8)>,
    inflight_max: usize,
    outbox_bytes_max: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    let packet = ("a|a|b/c", 0u8..3, 1u16..40, 0usize..60);
    (
        1u16..=2,
        any::<bool>(),
        proptest::collection::vec((0u8..3, proptest::bool::weighted(0.8), 0usize..4), 1..4),
        proptest::bool::weighted(0.3),
        proptest::collection::vec(proptest::collection::vec(packet, 1..16), 1..4),
        proptest::option::weighted(0.3, (0usize..8, 0u8..3)),
        (
            prop_oneof![4usize..12, Just(24)],
            prop_oneof![100usize..500, Just(2_000)],
        ),
    )
        .prop_map(|(cores, is_clean, subscribers, repeats, mut rounds, wrong, limits)| {
            for round in &mut rounds {
                // Most of a round is of the first packet's kind: that makes runs.
                let (topic, qos, ..) = round[0].clone();
                for packet in round.iter_mut().filter(|packet| packet.3 % 8 != 0) {
                    (packet.0, packet.1) = (topic.clone(), qos);
                }
            }
            let (inflight_max, outbox_bytes_max) = limits;
            Plan {
                cores,
                is_clean,
                subscribers,
                repeats,
                rounds,
                wrong,
                inflight_max,
                outbox_bytes_max,
            }
        })
}

/// Everything that left for each client, every counter, and what else was said: what went to disk, who was closed and why.
type Exchanged = (Vec<Vec<u8>>, Vec<Vec<(&'static str, u64)>>, Vec<String>);

/// PUBLISH packets with all that follows them, each client's packets of a round in one read or in a read each.
fn exchange(plan: &Plan, together: bool) -> Exchanged {
    let limits = Limits {
        inflight_max: plan.inflight_max,
        queued_max: 60,
        outbox_bytes_max: plan.outbox_bytes_max,
        ..Limits::default()
    };
    let mut all = Cores::with_access(plan.cores, limits, Access::Open);
    let clients = 1 + plan.subscribers.len() as u32;
    let core_of = |index: u32| index as usize % usize::from(plan.cores);
    all.connect(0, 0, Level::V311, plan.is_clean);
    for (index, (qos, is_clean, _)) in (1..).zip(&plan.subscribers) {
        all.connect(core_of(index), index, Level::V311, *is_clean);
        all.subscribe(core_of(index), index, 1, "#", QoS::from_bits(*qos).unwrap());
    }
    let mut took = vec![Vec::new(); clients as usize];
    let mut settle = |all: &mut Cores| {
        let mut taken = vec![Vec::new(); clients as usize];
        for _ in 0..3 {
            all.carry_all();
            (0..usize::from(plan.cores)).for_each(|core| all.commit(core));
        }
        for index in 0..clients {
            let connection = at(index);
            let bytes = all.shards[core_of(index)].unsent(connection).to_vec();
            let sent = Input::Sent {
                connection,
                bytes: bytes.len(),
            };
            all.input(core_of(index), sent);
            took[index as usize].extend_from_slice(&bytes);
            taken[index as usize] = bytes;
        }
        taken
    };
    let receive = |all: &mut Cores, index: u32, packets: &[Vec<u8>]| {
        let reads = match together {
            true => vec![packets.concat()],
            false => packets.to_vec(),
        };
        for bytes in reads.into_iter().filter(|bytes| !bytes.is_empty()) {
            assert_eq!(all.receive(core_of(index), index, &bytes), bytes.len());
        }
    };
    settle(&mut all);
    let mut next_id = 0;
    for round in &plan.rounds {
        let publishes: Vec<Vec<u8>> = round
            .iter()
            .map(|(topic, qos, id, len)| {
                next_id += 1;
                let id = if plan.repeats { *id } else { next_id };
                publish(topic, QoS::from_bits(*qos).unwrap(), false, id, &vec![b'x'; *len])
            })
            .collect();
        receive(&mut all, 0, &publishes);
        let mut taken = settle(&mut all);
        // Every flow goes to its end, but for what subscribers keep to themselves.
        for _ in 0..4 {
            for index in 0..clients {
                let mut answers = answers(&taken[index as usize]);
                if index > 0 {
                    answers.truncate(answers.len().saturating_sub(plan.subscribers[index as usize - 1].2));
                }
                if let Some((at, kind)) = plan.wrong
                    && let Some(answer) = answers.get(at).cloned()
                {
                    answers.insert(
                        at,
                        [[0x40, 0x50, 0x70][usize::from(kind)], 2, answer[2], answer[3]].to_vec(),
                    );
                }
                receive(&mut all, index, &answers);
            }
            taken = settle(&mut all);
        }
    }
    let counters = all.shards.iter().map(|shard| {
        let counters = shard.counters().iter();
        counters.filter(|(name, _)| *name != "batches_sent").collect()
    });
    let counters = counters.collect();
    let said = all.said.iter().flatten().filter_map(|output| match output {
        Output::Persist(number, record) => Some(format!("{number:?} {record:?}")),
        Output::Close(connection, reason) => Some(format!("{connection:?} {reason:?}")),
        _ => None,
    });
    (took, counters, said.collect())
}

/// What a client says to packets that it got.
fn answers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut answers = Vec::new();
    while let Ok(Framing::Whole(frame)) = next_frame(rest, usize::MAX) {
        rest = &rest[frame.len..];
        let mut answer = Vec::new();
        let id = |at: usize| PacketId::new(u16::from_be_bytes([frame.body[at], frame.body[at + 1]])).unwrap();
        let behind_topic = 2 + usize::from(*frame.body.get(1).unwrap_or(&0));
        match frame.first_byte {
            0x32 | 0x3a => encode::puback(&mut answer, id(behind_topic)),
            0x34 | 0x3c => encode::pubrec(&mut answer, id(behind_topic)),
            0x50 => encode::pubrel(&mut answer, id(0)),
            0x62 => encode::pubcomp(&mut answer, id(0)),
            _ => continue,
        }
        answers.push(answer);
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn flows_of_one_read_are_what_they_would_be_one_by_one(plan in plan()) {
        prop_assert_eq!(exchange(&plan, true), exchange(&plan, false));
    }
}
