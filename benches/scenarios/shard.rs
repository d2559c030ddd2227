//! Layer 2: whole turns of the heart, from frames in a read buffer to frames in an outbox, driven as the shell drives it:
//! every output is drained, every outbox taken, every batch carried, every record committed.

use std::hint::black_box;
use std::sync::Arc;

use skein::limits::CLIENT_ID_CHARS_MAX;
use skein::mqtt::client;
use skein::mqtt::encode;
use skein::mqtt::packet::{Connect, Level, QoS};
use skein::mqtt::topic::TopicName;
use skein::registry::access::{Access, AccountId, Accounts};
use skein::registry::account::{Account, Token};
use skein::registry::channel::ChannelId;
use skein::registry::datapoint::StoredDatapoints;
use skein::routing::shard_key::{Division, ShardKey};
use skein::shard::greeting::{Greeting, Identity, greet};
use skein::shard::{
    ConnectionId, Input, Lane, Limits, Millis, Output, PeerId, RecordNumber, Shard, ShardConfig, UnixTime,
};

use super::{HASH_KEY, JSON, Runner, packet_id, publishes};

const TOPIC: &str = "dt/json/device";
const PUBLISHER: u32 = 0;
const SUBSCRIBER: u32 = 1;
const MANY: usize = 1_000;
/// Every core divides topics by the same levels, so a topic's owner is known.
const SHARD_LEVELS: usize = 3;
/// Between two connects: what waits for their Keep Alive is then as many as are open in that time.
const CONNECT_INTERVAL_MS: u64 = 50;
const KEEP_ALIVE_S: u16 = 60;

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBCOMP: u8 = 0x70;
const DISCONNECT: [u8; 2] = [0xe0, 0];
const CONNACK_BYTES: usize = 4;
const SUBACK_BYTES: usize = 5;
const ACKNOWLEDGEMENT_BYTES: usize = 4;

fn id(index: u32) -> ConnectionId {
    ConnectionId { index, generation: 1 }
}

/// One core and what the shell knows of it.
struct Core {
    shard: Shard,
    /// Batches that wait.
    forwards: Vec<(PeerId, Lane)>,
    persisted: RecordNumber,
    committed: RecordNumber,
}

impl Core {
    /// Drains every output. `hear` gets what each socket takes, and all sockets take everything; the store commits what it
    /// was given.
    #[inline]
    fn take(&mut self, now: Millis, hear: &mut impl FnMut(u32, &[u8])) {
        loop {
            while let Some(output) = self.shard.poll_output() {
                match output {
                    Output::Transmit(connection) => {
                        let unsent = black_box(self.shard.unsent(connection));
                        let bytes = unsent.len();
                        if bytes > 0 {
                            hear(connection.index, unsent);
                            self.shard.handle(Input::Sent { connection, bytes }, now);
                        }
                    }
                    Output::Forward(peer, lane) => self.forwards.push((peer, lane)),
                    Output::Persist(number, _) => self.persisted = number,
                    _ => {}
                }
            }
            if self.committed == self.persisted {
                return;
            }
            self.committed = self.persisted;
            let up_to = self.committed;
            self.shard.handle(Input::Committed { up_to }, now);
        }
    }
}

/// The cores of a broker, on one thread.
struct Broker {
    cores: Vec<Core>,
    now: Millis,
}

impl Broker {
    fn new(cores: u16, access: &Access) -> Broker {
        let core = |core| Core {
            shard: Shard::new(ShardConfig {
                core: PeerId(core),
                cores,
                shard_levels: SHARD_LEVELS,
                hash_key: HASH_KEY,
                limits: Limits::default(),
                access: access.clone(),
                unix_time: UnixTime::default(),
                v1_topics: false,
                stored_datapoints: StoredDatapoints::until(0),
            }),
            forwards: Vec::new(),
            persisted: RecordNumber(0),
            committed: RecordNumber(0),
        };
        Broker {
            cores: (0..cores).map(core).collect(),
            now: Millis(1_000),
        }
    }

    fn connect(&mut self, core: usize, index: u32, clean_session: bool, account: AccountId) {
        let connect = Connect {
            level: Level::V311,
            clean_session,
            keep_alive_s: KEEP_ALIVE_S,
            client_id: format!("client-{index}"),
            will: None,
            user_name: None,
            password: None,
        };
        let input = Input::Connected {
            connection: id(index),
            connect: Box::new(connect),
            account,
        };
        self.cores[core].shard.handle(input, self.now);
        self.settle(|_, _| {});
    }

    fn subscribe(&mut self, core: usize, index: u32, filter: &str, qos: QoS) {
        let mut bytes = Vec::new();
        client::subscribe(&mut bytes, packet_id(1), &[(filter, qos)]);
        self.receive(core, index, &bytes);
        self.settle(|_, _| {});
    }

    #[inline]
    fn receive(&mut self, core: usize, index: u32, bytes: &[u8]) {
        let connection = id(index);
        let input = Input::Received { connection, bytes };
        let consumed = self.cores[core].shard.handle(input, self.now);
        assert_eq!(consumed, bytes.len());
    }

    /// Until nothing is left to do on any core.
    #[inline]
    fn settle(&mut self, mut hear: impl FnMut(u32, &[u8])) {
        loop {
            for core in &mut self.cores {
                core.take(self.now, &mut hear);
            }
            let mut cores = self.cores.iter_mut().enumerate();
            let waits = cores.find_map(|(number, core)| Some((number, core.forwards.pop()?)));
            let Some((from, (to, lane))) = waits else {
                return;
            };
            let batch = self.cores[from].shard.take_batch(to, lane).expect("it was said");
            let input = Input::Batch {
                from: PeerId(from as u16),
                bytes: &batch,
            };
            self.cores[usize::from(to.0)].shard.handle(input, self.now);
            self.cores[from].shard.recycle_batch(batch);
        }
    }
}

/// One publisher and one subscriber, at home on these cores.
struct Pair {
    broker: Broker,
    publisher_core: usize,
    subscriber_core: usize,
    qos: QoS,
    publishes: Vec<u8>,
    pubrels: Vec<u8>,
    frame_bytes: usize,
    /// Where a Packet Identifier lies in a frame.
    packet_id_at: usize,
    /// What the subscriber says next.
    acknowledgements: Vec<u8>,
    /// All that the sockets took in a round.
    taken_bytes: usize,
    expected_bytes: usize,
}

impl Pair {
    fn new(
        mut broker: Broker,
        cores: [usize; 2],
        topics: &[String],
        qos: QoS,
        is_durable: bool,
        frames: usize,
    ) -> Pair {
        let [publisher_core, subscriber_core] = cores;
        broker.connect(publisher_core, PUBLISHER, true, AccountId(0));
        broker.connect(subscriber_core, SUBSCRIBER, !is_durable, AccountId(0));
        for topic in topics {
            broker.subscribe(subscriber_core, SUBSCRIBER, topic, qos);
        }
        let publishes = publishes(topics, qos, frames);
        let mut pubrels = Vec::new();
        for number in 1..=frames {
            encode::pubrel(&mut pubrels, packet_id(number as u16));
        }
        // To the publisher PUBACK, or PUBREC and PUBCOMP; to the subscriber nothing more, or PUBREL.
        let acknowledgements = [0, 1, 3][qos as usize];
        Pair {
            broker,
            publisher_core,
            subscriber_core,
            qos,
            frame_bytes: publishes.len() / frames,
            packet_id_at: 4 + topics[0].len(),
            acknowledgements: Vec::new(),
            taken_bytes: 0,
            expected_bytes: publishes.len() + frames * acknowledgements * ACKNOWLEDGEMENT_BYTES,
            publishes,
            pubrels,
        }
    }

    #[inline]
    fn round(&mut self) {
        self.taken_bytes = 0;
        self.broker
            .receive(self.publisher_core, PUBLISHER, black_box(&self.publishes));
        match self.qos {
            QoS::AtMostOnce => self.settle(),
            QoS::AtLeastOnce => {
                self.settle_and_acknowledge(PUBACK);
                self.say_acknowledgements();
                self.settle();
            }
            QoS::ExactlyOnce => {
                self.settle_and_acknowledge(PUBREC);
                self.broker.receive(self.publisher_core, PUBLISHER, &self.pubrels);
                self.say_acknowledgements();
                self.settle();
                for pubcomp in self.acknowledgements.chunks_exact_mut(ACKNOWLEDGEMENT_BYTES) {
                    pubcomp[0] = PUBCOMP;
                }
                self.say_acknowledgements();
                self.settle();
            }
        }
        assert_eq!(self.taken_bytes, self.expected_bytes);
    }

    fn settle(&mut self) {
        self.broker.settle(|_, bytes| self.taken_bytes += bytes.len());
    }

    fn settle_and_acknowledge(&mut self, kind: u8) {
        self.acknowledgements.clear();
        let at = self.packet_id_at;
        self.broker.settle(|index, bytes| {
            self.taken_bytes += bytes.len();
            if index == SUBSCRIBER {
                for frame in bytes.chunks_exact(self.frame_bytes) {
                    self.acknowledgements
                        .extend_from_slice(&[kind, 2, frame[at], frame[at + 1]]);
                }
            }
        });
    }

    fn say_acknowledgements(&mut self) {
        self.broker
            .receive(self.subscriber_core, SUBSCRIBER, &self.acknowledgements);
    }
}

pub fn scenarios(runner: &mut impl Runner) {
    pairs(runner);
    many(runner);
    rare(runner);
    datapoint(runner);
}

fn pairs(runner: &mut impl Runner) {
    // The last core owns the topics.
    for (of, cores, homes) in [
        ("1 core", 1, [0, 0]),
        ("2 cores", 2, [0, 1]),
        ("2 cores, there and back", 2, [0, 0]),
    ] {
        let mut pair = |name: String, qos, topics: usize, frames: usize| {
            runner.scenario(&name, frames, || {
                let topics = topics_of(cores - 1, cores, topics);
                let mut pair = Pair::new(Broker::new(cores, &Access::Open), homes, &topics, qos, false, frames);
                move || pair.round()
            });
        };
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for frames in [1, 100] {
                pair(
                    format!("shard/{of}, qos {}, {frames} per read", qos as u8),
                    qos,
                    1,
                    frames,
                );
            }
            // Nothing that follows from one topic serves the next packet.
            let name = format!("shard/{of}, qos {}, 100 per read, to 100 topics", qos as u8);
            pair(name, qos, 100, 100);
        }
    }
    for frames in [1, 100] {
        let topics = topics_of(0, 1, 1);
        // What a wildcard subscription costs those whom it concerns.
        let name = format!("shard/1 core, qos 0 and a wildcard, {frames} per read");
        runner.scenario(&name, frames, || {
            let broker = Broker::new(1, &Access::Open);
            let mut pair = Pair::new(broker, [0, 0], &topics, QoS::AtMostOnce, false, frames);
            pair.broker.subscribe(0, SUBSCRIBER, "dt/+/+/#", QoS::AtMostOnce);
            move || pair.round()
        });
        let name = format!("shard/1 core, qos 1 to a durable session, {frames} per read");
        runner.scenario(&name, frames, || {
            let broker = Broker::new(1, &Access::Open);
            let mut pair = Pair::new(broker, [0, 0], &topics, QoS::AtLeastOnce, true, frames);
            move || pair.round()
        });
    }
}

/// Topics with as many levels as divide topics, which this core owns; all of the same length.
fn topics_of(core: u16, cores: u16, count: usize) -> Vec<String> {
    let shard_key = ShardKey::new(HASH_KEY, cores, Division::Levels(SHARD_LEVELS));
    (0..)
        .map(|device| format!("dt/json/{device:06}"))
        .filter(|topic| shard_key.owner(AccountId(0), TopicName::trusted(topic)) == core)
        .take(count)
        .collect()
}

fn many(runner: &mut impl Runner) {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let name = format!("shard/fan-out to 1,000, qos {}, per delivery", qos as u8);
        runner.scenario(&name, MANY, || {
            let mut broker = Broker::new(1, &Access::Open);
            broker.connect(0, PUBLISHER, true, AccountId(0));
            for index in 1..=MANY as u32 {
                broker.connect(0, index, true, AccountId(0));
                broker.subscribe(0, index, TOPIC, qos);
            }
            let bytes = publishes(&[TOPIC], qos, 1);
            let at = 4 + TOPIC.len();
            let mut pubacks = Vec::new();
            move || {
                broker.receive(0, PUBLISHER, black_box(&bytes));
                let mut deliveries = 0;
                pubacks.clear();
                broker.settle(|index, frame| {
                    if index != PUBLISHER {
                        deliveries += 1;
                        pubacks.push((index, [PUBACK, 2, frame[at], frame[at + 1]]));
                    }
                });
                assert_eq!(deliveries, MANY);
                if qos > QoS::AtMostOnce {
                    for (index, puback) in &pubacks {
                        broker.receive(0, *index, puback);
                    }
                    broker.settle(|_, _| {});
                }
            }
        });
    }
    runner.scenario("shard/fan-in of 1,000 topics to a wildcard, qos 0", MANY, || {
        let mut broker = Broker::new(1, &Access::Open);
        let subscriber = MANY as u32;
        let mut publishers = Vec::new();
        for index in 0..subscriber {
            broker.connect(0, index, true, AccountId(0));
            publishers.push((index, publishes(&[format!("dt/json/{index:06}")], QoS::AtMostOnce, 1)));
        }
        broker.connect(0, subscriber, true, AccountId(0));
        broker.subscribe(0, subscriber, "dt/json/+", QoS::AtMostOnce);
        let expected_bytes = MANY * publishers[0].1.len();
        move || {
            // Each a read of its own, as of as many sockets that are ready.
            let mut taken_bytes = 0;
            for (index, bytes) in &publishers {
                broker.receive(0, *index, black_box(bytes));
            }
            broker.settle(|_, bytes| taken_bytes += bytes.len());
            assert_eq!(taken_bytes, expected_bytes);
        }
    });
}

fn rare(runner: &mut impl Runner) {
    runner.scenario("shard/connect and disconnect", 1, || {
        let mut broker = Broker::new(1, &Access::Open);
        let mut bytes = Vec::new();
        let connect = Connect {
            level: Level::V311,
            clean_session: true,
            keep_alive_s: KEEP_ALIVE_S,
            client_id: "DEV0123456789ABCDEF".to_owned(),
            will: None,
            user_name: None,
            password: None,
        };
        client::connect(&mut bytes, &connect);
        let mut generation = 0;
        move || {
            generation += 1;
            broker.now = broker.now.plus(CONNECT_INTERVAL_MS);
            let now = broker.now;
            let shard = &mut broker.cores[0].shard;
            if shard.next_deadline().is_some_and(|due| due <= now) {
                shard.handle(Input::Tick, now);
            }
            let greeting = greet(
                black_box(&bytes),
                || Identity::Claimed,
                &Access::Open,
                CLIENT_ID_CHARS_MAX,
                String::new,
            );
            let Greeting::Accepted { connect, account, .. } = greeting else {
                panic!("{greeting:?}")
            };
            let connection = ConnectionId { index: 0, generation };
            let input = Input::Connected {
                connection,
                connect,
                account,
            };
            shard.handle(input, now);
            let mut taken_bytes = 0;
            broker.settle(|_, connack| taken_bytes += connack.len());
            assert_eq!(taken_bytes, CONNACK_BYTES);
            let shard = &mut broker.cores[0].shard;
            let bytes = &DISCONNECT;
            shard.handle(Input::Received { connection, bytes }, now);
            shard.handle(Input::Disconnected { connection }, now);
            broker.settle(|_, _| {});
        }
    });
    runner.scenario("shard/subscribe and unsubscribe", 1, || {
        let mut broker = Broker::new(1, &Access::Open);
        broker.connect(0, SUBSCRIBER, true, AccountId(0));
        broker.subscribe(0, SUBSCRIBER, "dt/+/other/#", QoS::AtLeastOnce);
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        client::subscribe(&mut subscribe, packet_id(1), &[(TOPIC, QoS::AtLeastOnce)]);
        client::unsubscribe(&mut unsubscribe, packet_id(2), &[TOPIC]);
        move || {
            for (bytes, answer_bytes) in [(&subscribe, SUBACK_BYTES), (&unsubscribe, ACKNOWLEDGEMENT_BYTES)] {
                broker.receive(0, SUBSCRIBER, black_box(bytes));
                let mut taken_bytes = 0;
                broker.settle(|_, answer| taken_bytes += answer.len());
                assert_eq!(taken_bytes, answer_bytes);
            }
        }
    });
}

/// A device of the platform sends to a channel, and nobody listens.
fn datapoint(runner: &mut impl Runner) {
    for frames in [1, 100] {
        let name = format!("shard/datapoint, JSON of 64 bytes, qos 1, {frames} per read");
        runner.scenario(&name, frames, || {
            let token = Token::from_random([7; 16]);
            let account = Account {
                default_channel: ChannelId::new(3),
                ..Account::new(AccountId(1), "U000001", token, token, 0)
            };
            let topic = format!("{}/json/pump-07", account.device_token.as_str());
            let accounts = Accounts::default().with(account, []);
            let mut broker = Broker::new(1, &Access::Platform(Arc::new(accounts)));
            broker.connect(0, PUBLISHER, true, AccountId(1));
            let mut bytes = Vec::new();
            for number in 1..=frames {
                let id = Some(packet_id(number as u16));
                encode::publish(&mut bytes, false, QoS::AtLeastOnce, false, &topic, id, JSON);
            }
            move || {
                let persisted = broker.cores[0].persisted;
                broker.receive(0, PUBLISHER, black_box(&bytes));
                let mut taken_bytes = 0;
                broker.settle(|_, pubacks| taken_bytes += pubacks.len());
                assert_eq!(taken_bytes, frames * ACKNOWLEDGEMENT_BYTES);
                assert!(broker.cores[0].persisted.0 - persisted.0 >= frames as u64);
            }
        });
    }
}
