//! What a message costs inside the heart: from a frame in a read buffer to the frame in an outbox.
//!
//! `cargo bench --bench shard`. Every case drains the outputs and takes the outbox as the shell does, so the figures are
//! those of whole turns.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use skein::mqtt::client;
use skein::mqtt::encode;
use skein::mqtt::packet::{Connect, Level, PacketId, QoS};
use skein::mqtt::topic::TopicName;
use skein::registry::access::{Access, AccountId};
use skein::routing::shard_key::{Division, ShardKey};
use skein::shard::{ConnectionId, Input, Lane, Limits, Millis, Output, PeerId, Shard, ShardConfig, UnixTime};

const KEY: [u64; 4] = [11, 22, 33, 44];
const NOW: Millis = Millis(1_000);
const PAYLOAD: [u8; 64] = [b'x'; 64];
const FRAMES: usize = 100;
/// Each core of a run with several sees the same keys, so a topic's owner is known.
const SHARD_LEVELS: usize = 3;

fn shard(core: u16, cores: u16) -> Shard {
    Shard::new(ShardConfig {
        core: PeerId(core),
        cores,
        shard_levels: SHARD_LEVELS,
        hash_key: KEY,
        limits: Limits::default(),
        access: Access::Open,
        unix_time: UnixTime::default(),
        v1_topics: false,
        newest_datapoint_ms: 0,
    })
}

fn id(index: u32) -> ConnectionId {
    ConnectionId { index, generation: 1 }
}

/// Drains every output; takes what is unsent. Returns how many outboxes had something.
#[inline]
fn drain(shard: &mut Shard) -> usize {
    let mut transmits = 0;
    while let Some(output) = shard.poll_output() {
        if let Output::Transmit(connection) = output {
            transmits += 1;
            let bytes = black_box(shard.unsent(connection)).len();
            if bytes > 0 {
                shard.handle(Input::Sent { connection, bytes }, NOW);
            }
        }
    }
    transmits
}

fn connect(shard: &mut Shard, index: u32) {
    let connect = Connect {
        level: Level::V311,
        clean_session: true,
        keep_alive_s: 60,
        client_id: format!("client-{index}"),
        will: None,
        user_name: None,
        password: None,
    };
    let input = Input::Connected {
        connection: id(index),
        connect: Box::new(connect),
        account: AccountId(0),
    };
    shard.handle(input, NOW);
    drain(shard);
}

fn receive(shard: &mut Shard, index: u32, bytes: &[u8]) {
    let connection = id(index);
    let consumed = shard.handle(Input::Received { connection, bytes }, NOW);
    debug_assert_eq!(consumed, bytes.len());
}

fn subscribe(shard: &mut Shard, index: u32, filter: &str, qos: QoS) {
    let mut bytes = Vec::new();
    client::subscribe(&mut bytes, packet_id(1), &[(filter, qos)]);
    receive(shard, index, &bytes);
}

fn packet_id(id: u16) -> PacketId {
    PacketId::new(id).expect("not 0")
}

fn publishes(topic: &str, qos: QoS, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 1..=count {
        let packet_id = (qos > QoS::AtMostOnce).then(|| packet_id(number as u16));
        encode::publish(&mut bytes, false, qos, false, topic, packet_id, &PAYLOAD);
    }
    bytes
}

fn one_core(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one_core");
    for frames in [FRAMES, 1] {
        group.throughput(Throughput::Elements(frames as u64));
        let mut shard = shard(0, 1);
        connect(&mut shard, 0);
        connect(&mut shard, 1);
        subscribe(&mut shard, 1, "dt/json/device", QoS::AtMostOnce);
        drain(&mut shard);
        let bytes = publishes("dt/json/device", QoS::AtMostOnce, frames);
        group.bench_function(format!("qos0/{frames}_frames_per_input"), |bencher| {
            bencher.iter(|| {
                receive(&mut shard, 0, black_box(&bytes));
                assert_eq!(drain(&mut shard), 1);
            });
        });
        // A filter of its own kind beside it: what a wildcard subscription of the platform costs.
        subscribe(&mut shard, 1, "dt/+/device/#", QoS::AtMostOnce);
        drain(&mut shard);
        group.bench_function(format!("qos0_and_a_wildcard/{frames}_frames_per_input"), |bencher| {
            bencher.iter(|| {
                receive(&mut shard, 0, black_box(&bytes));
                drain(&mut shard)
            });
        });
    }
    for frames in [FRAMES, 1] {
        group.throughput(Throughput::Elements(frames as u64));
        let mut shard = shard(0, 1);
        connect(&mut shard, 0);
        connect(&mut shard, 1);
        subscribe(&mut shard, 1, "dt/json/device", QoS::AtLeastOnce);
        drain(&mut shard);
        let bytes = publishes("dt/json/device", QoS::AtLeastOnce, frames);
        let frame_len = bytes.len() / frames;
        let mut pubacks = Vec::new();
        group.bench_function(format!("qos1_with_both_pubacks/{frames}_frames_per_input"), |bencher| {
            bencher.iter(|| {
                receive(&mut shard, 0, black_box(&bytes));
                // The subscriber acknowledges by the identifier at its place in each frame.
                pubacks.clear();
                for frame in shard.unsent(id(1)).chunks_exact(frame_len) {
                    pubacks.extend_from_slice(&[0x40, 2, frame[18], frame[19]]);
                }
                drain(&mut shard);
                receive(&mut shard, 1, &pubacks);
                drain(&mut shard)
            });
        });
        assert_eq!(pubacks.len(), frames * 4);
        assert_eq!(shard.counters().dropped_queue_full, 0);
    }
    group.finish();
}

fn fan_out(criterion: &mut Criterion) {
    const SUBSCRIBERS: usize = 1_000;
    let mut group = criterion.benchmark_group("fan_out");
    group.throughput(Throughput::Elements(SUBSCRIBERS as u64));
    let mut shard = shard(0, 1);
    for index in 0..=SUBSCRIBERS as u32 {
        connect(&mut shard, index);
        if index > 0 {
            subscribe(&mut shard, index, "dt/json/device", QoS::AtMostOnce);
        }
        drain(&mut shard);
    }
    let bytes = publishes("dt/json/device", QoS::AtMostOnce, 1);
    group.bench_function("qos0/1_to_1000", |bencher| {
        bencher.iter(|| {
            receive(&mut shard, 0, black_box(&bytes));
            assert_eq!(drain(&mut shard), SUBSCRIBERS);
        });
    });
    group.finish();
}

/// Publisher on core 0, topic and subscriber on core 1.
fn two_cores(criterion: &mut Criterion) {
    let shard_key = ShardKey::new(KEY, 2, Division::Levels(SHARD_LEVELS));
    let topic = (0..)
        .map(|device| format!("dt/json/{device:06}"))
        .find(|topic| shard_key.owner(AccountId(0), TopicName::new(topic).expect("a topic")) == 1)
        .expect("core 1 owns half of them");
    let mut group = criterion.benchmark_group("two_cores");
    for (qos, frames) in [
        (QoS::AtMostOnce, FRAMES),
        (QoS::AtMostOnce, 1),
        (QoS::AtLeastOnce, FRAMES),
    ] {
        group.throughput(Throughput::Elements(frames as u64));
        let (mut publisher, mut subscriber) = (shard(0, 2), shard(1, 2));
        connect(&mut publisher, 0);
        connect(&mut subscriber, 1);
        subscribe(&mut subscriber, 1, &topic, QoS::AtMostOnce);
        drain(&mut subscriber);
        let bytes = publishes(&topic, qos, frames);
        group.bench_function(format!("qos{}/{frames}_frames_per_batch", qos as u8), |bencher| {
            bencher.iter(|| {
                receive(&mut publisher, 0, black_box(&bytes));
                carry(&mut publisher, &mut subscriber, 0, Lane::ToOwner);
                drain(&mut publisher);
                if qos > QoS::AtMostOnce {
                    carry(&mut subscriber, &mut publisher, 1, Lane::ToHome);
                    drain(&mut publisher);
                }
                drain(&mut subscriber)
            });
        });
        assert_eq!(
            subscriber.counters().matched,
            publisher.counters().publishes_qos0 + publisher.counters().publishes_qos1
        );
    }
    group.finish();
}

/// One batch crosses.
fn carry(from: &mut Shard, to: &mut Shard, core: u16, lane: Lane) {
    let batch = from.take_batch(PeerId(1 - core), lane).expect("something waits");
    let input = Input::Batch {
        from: PeerId(core),
        bytes: &batch,
    };
    to.handle(input, NOW);
    from.recycle_batch(batch);
}

criterion_group!(benches, one_core, fan_out, two_cores);
criterion_main!(benches);
