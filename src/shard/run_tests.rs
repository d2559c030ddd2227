//! A read of several packets against the same packets in a read each: nobody can tell them apart.

use proptest::prelude::*;

use super::tests::{Cores, packet_id, publish};
use super::*;
use crate::mqtt::client;
use crate::mqtt::packet::{Level, QoS};

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
    let connection = super::tests::at(4);
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
        all.shards[core].unsent(super::tests::at(index)).to_vec()
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
