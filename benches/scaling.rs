//! How the broker spreads over many cores, on whatever machine this runs: real shards, virtual cores.
//!
//! `cargo bench --bench scaling`. Each virtual core has a clock of its own; the one that is furthest behind has its next batch.
//! What a batch does is done by the real shards and the real batches between them, bounded as in `worker` and `mesh`; what it
//! costs is added to the core's clock by the prices below. So throughput, batch sizes and queue depths follow from the design
//! and the prices, not from the machine: the same figures come out every time. Left out: `--write-interval`, and
//! memory and caches that cores share.
//!
//! Prices are this project's measurements on one host (`perf` and `callgrind`; the sum is what `skein-load` finds there).
//! They are the same for every number of cores, so the ratios hold for others too as far as their prices are alike.

use std::collections::VecDeque;

use skein::limits::{
    FLUSH_REST_PART, FLUSH_REST_SOCKETS_MIN, FLUSH_REST_US_MAX, MESH_PARCELS_PER_BATCH, MESH_RING_PARCELS,
    READ_BYTES_PER_TURN,
};
use skein::mqtt::client::{self, ServerPacket, decode_from_server};
use skein::mqtt::encode;
use skein::mqtt::frame::{Framing, next_frame};
use skein::mqtt::packet::{Connect, Level, PacketId, QoS};
use skein::registry::access::{Access, AccountId};
use skein::registry::datapoint::StoredDatapoints;
use skein::shard::{ConnectionId, Input, Lane, Limits, Millis, Output, PeerId, Shard, ShardConfig, UnixTime};

type Ns = u64;

/// `epoll_wait`, once per batch.
const POLL_NS: Ns = 700;
const RECV_NS: Ns = 1_800;
const SEND_NS: Ns = 7_000;
/// Sleep and wake of a core, and how late it is then.
const WAKE_NS: Ns = 6_000;
/// One packet through the heart, at QoS 0 in a run and else.
const RUN_PACKET_NS: Ns = 12;
const PACKET_NS: Ns = 90;
/// One parcel through a ring, and a byte of it or of a socket.
const PARCEL_NS: Ns = 300;
const BYTES_PER_NS: Ns = 10;
/// From a broker's send to what the client sends back being readable.
const CLIENT_NS: Ns = 40_000;

const WARM_UP_NS: Ns = 10_000_000;
const MEASURED_NS: Ns = 40_000_000;
const PAYLOAD: [u8; 64] = [b'x'; 64];

/// What the clients do.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    qos: QoS,
    /// Publishers per core, each with a topic of its own.
    publishers: usize,
    /// Subscribers per topic.
    fan: usize,
    /// Messages of a publisher that its subscribers have not all received.
    window: u64,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "QoS 0, pairs, window 200",
        qos: QoS::AtMostOnce,
        publishers: 50,
        fan: 1,
        window: 200,
    },
    Scenario {
        name: "QoS 0, pairs, window 1",
        qos: QoS::AtMostOnce,
        publishers: 200,
        fan: 1,
        window: 1,
    },
    Scenario {
        name: "QoS 1, pairs, window 20",
        qos: QoS::AtLeastOnce,
        publishers: 50,
        fan: 1,
        window: 20,
    },
    Scenario {
        name: "QoS 0, 1 to 100, window 20",
        qos: QoS::AtMostOnce,
        publishers: 4,
        fan: 100,
        window: 20,
    },
];

const CORES: [u16; 4] = [1, 2, 8, 32];

/// What a client will have sent, and from when on it can be read.
#[derive(Default)]
struct Socket {
    /// Messages that may be published, or PUBACKs to come, by the time they are there.
    ready: VecDeque<(Ns, u64)>,
    /// Its publisher's place: whom a delivery is credited to. None: this is a publisher.
    subscribes_to: Option<usize>,
    publisher: usize,
    /// The next Packet Identifier to publish or to acknowledge.
    packet_id: u16,
}

struct Publisher {
    core: usize,
    socket: usize,
    frame: Vec<u8>,
    /// Deliveries of its current messages that are still missing, oldest first.
    missing: VecDeque<u64>,
}

struct Core {
    shard: Shard,
    clock: Ns,
    /// Nothing is written before.
    rests_until: Ns,
    sockets: Vec<Socket>,
    marked: Vec<usize>,
    forwards: Vec<(PeerId, Lane)>,
}

#[derive(Default)]
struct Figures {
    delivered: u64,
    batches: u64,
    sends: u64,
    parcels: u64,
    parcel_bytes: u64,
    depth_sum: u64,
    depth_max: usize,
    /// Batches that waited because their ring was full.
    waited: u64,
}

struct World {
    scenario: Scenario,
    cores: Vec<Core>,
    publishers: Vec<Publisher>,
    /// From, to, lane: when a parcel is there, and the parcel.
    rings: Vec<VecDeque<(Ns, Vec<u8>)>>,
    figures: Figures,
}

impl World {
    fn new(scenario: Scenario, cores: u16) -> World {
        let shard = |core| {
            Shard::new(ShardConfig {
                core: PeerId(core),
                cores,
                shard_levels: 3,
                hash_key: [11, 22, 33, 44],
                limits: Limits::default(),
                access: Access::Open,
                unix_time: UnixTime::default(),
                v1_topics: false,
                stored_datapoints: StoredDatapoints::until(0),
            })
        };
        let mut world = World {
            scenario,
            cores: (0..cores)
                .map(|core| Core {
                    shard: shard(core),
                    clock: 0,
                    rests_until: 0,
                    sockets: Vec::new(),
                    marked: Vec::new(),
                    forwards: Vec::new(),
                })
                .collect(),
            publishers: Vec::new(),
            rings: (0..usize::from(cores).pow(2) * 2).map(|_| VecDeque::new()).collect(),
            figures: Figures::default(),
        };
        for publisher in 0..scenario.publishers * usize::from(cores) {
            let topic = format!("bench/device/{publisher}");
            for subscriber in 0..scenario.fan {
                let (core, socket) = world.connect(&format!("s{publisher}-{subscriber}"), publisher, true);
                let mut bytes = Vec::new();
                client::subscribe(&mut bytes, PacketId::new(1).expect("not 0"), &[(&topic, scenario.qos)]);
                world.receive(core, socket, &bytes);
            }
            let (core, socket) = world.connect(&format!("p{publisher}"), publisher, false);
            let mut frame = Vec::new();
            let packet_id = (scenario.qos > QoS::AtMostOnce).then_some(PacketId::new(1).expect("not 0"));
            encode::publish(&mut frame, false, scenario.qos, false, &topic, packet_id, &PAYLOAD);
            world.cores[core].sockets[socket].ready.push_back((0, scenario.window));
            world.publishers.push(Publisher {
                core,
                socket,
                frame,
                missing: VecDeque::new(),
            });
        }
        // Subscriptions cross, and are answered, before the clocks start.
        for _ in 0..4 {
            for core in 0..world.cores.len() {
                world.mesh_out(core);
                for core in 0..world.cores.len() {
                    world.mesh_in(core, Ns::MAX);
                }
            }
        }
        for core in &mut world.cores {
            for socket in std::mem::take(&mut core.marked) {
                let connection = id(socket);
                let bytes = core.shard.unsent(connection).len();
                core.shard.handle(Input::Sent { connection, bytes }, Millis(1));
            }
        }
        world
    }

    fn connect(&mut self, client_id: &str, publisher: usize, subscribes: bool) -> (usize, usize) {
        let core = usize::from(self.cores[0].shard.home(AccountId(0), client_id).0);
        let socket = self.cores[core].sockets.len();
        self.cores[core].sockets.push(Socket {
            subscribes_to: subscribes.then_some(publisher),
            publisher,
            packet_id: 1,
            ..Socket::default()
        });
        let connect = Connect {
            level: Level::V311,
            clean_session: true,
            keep_alive_s: 0,
            client_id: client_id.to_owned(),
            will: None,
            user_name: None,
            password: None,
        };
        let input = Input::Connected {
            connection: id(socket),
            connect: Box::new(connect),
            account: AccountId(0),
        };
        self.cores[core].turn(input);
        (core, socket)
    }

    fn receive(&mut self, core: usize, socket: usize, bytes: &[u8]) {
        let connection = id(socket);
        let consumed = self.cores[core].turn(Input::Received { connection, bytes });
        assert_eq!(consumed, bytes.len(), "nobody is paused in these scenarios");
    }

    /// One batch of one core, as `worker::turn` has it. Returns whether there was anything to do.
    fn batch(&mut self, core: usize) -> bool {
        let now = self.cores[core].clock;
        let mut cost = POLL_NS;
        let mut busy = false;
        for socket in 0..self.cores[core].sockets.len() {
            let bytes = self.readable(core, socket, now);
            if bytes.is_empty() {
                continue;
            }
            busy = true;
            cost += RECV_NS + bytes.len() as Ns / BYTES_PER_NS + self.packets_ns(&bytes);
            self.receive(core, socket, &bytes);
        }
        let crossed = self.mesh_in(core, now);
        busy |= crossed > 0;
        cost += crossed;
        if now >= self.cores[core].rests_until {
            let sockets = self.cores[core].marked.len();
            let flushed = self.flush(core, now + cost);
            cost += flushed;
            busy |= flushed > 0;
            if sockets >= FLUSH_REST_SOCKETS_MIN {
                let rest = (flushed / Ns::from(FLUSH_REST_PART)).min(FLUSH_REST_US_MAX * 1_000);
                self.cores[core].rests_until = now + cost + rest;
            }
        }
        self.cores[core].clock += cost;
        cost += self.mesh_out(core);
        if busy {
            self.cores[core].clock = now + cost;
            self.figures.batches += 1;
        }
        busy
    }

    /// What a client has sent by now, as much as one read takes.
    fn readable(&mut self, core: usize, at: usize, now: Ns) -> Vec<u8> {
        let qos = self.scenario.qos;
        let socket = &mut self.cores[core].sockets[at];
        let mut count = 0;
        let per_message = match socket.subscribes_to {
            Some(_) => 4,
            None => self.publishers[socket.publisher].frame.len(),
        };
        let most = (READ_BYTES_PER_TURN / per_message) as u64;
        while let Some((when, ready)) = socket.ready.front_mut()
            && *when <= now
            && count < most
        {
            let take = (*ready).min(most - count);
            count += take;
            *ready -= take;
            if *ready == 0 {
                socket.ready.pop_front();
            }
        }
        let mut bytes = Vec::with_capacity(count as usize * per_message);
        for _ in 0..count {
            let packet_id = PacketId::new(socket.packet_id).expect("never 0");
            match socket.subscribes_to {
                Some(_) => encode::puback(&mut bytes, packet_id),
                None => {
                    let publisher = &mut self.publishers[socket.publisher];
                    let start = bytes.len();
                    bytes.extend_from_slice(&publisher.frame);
                    if qos > QoS::AtMostOnce {
                        let at = bytes.len() - PAYLOAD.len() - 2;
                        bytes[at..at + 2].copy_from_slice(&packet_id.get().to_be_bytes());
                    }
                    debug_assert_eq!(bytes.len() - start, per_message);
                    publisher.missing.push_back(self.scenario.fan as u64);
                }
            }
            socket.packet_id = packet_id.next().get();
        }
        bytes
    }

    fn packets_ns(&self, bytes: &[u8]) -> Ns {
        let one = if self.scenario.qos == QoS::AtMostOnce {
            RUN_PACKET_NS
        } else {
            PACKET_NS
        };
        frames(bytes).count() as Ns * one
    }

    /// Sends what waits. Clients answer a little later.
    fn flush(&mut self, core: usize, now: Ns) -> Ns {
        let mut cost = 0;
        for at in std::mem::take(&mut self.cores[core].marked) {
            let connection = id(at);
            let bytes = self.cores[core].shard.unsent(connection).to_vec();
            if bytes.is_empty() {
                continue;
            }
            cost += SEND_NS + bytes.len() as Ns / BYTES_PER_NS;
            self.figures.sends += 1;
            let back = now + cost + CLIENT_NS;
            let mut delivered = 0;
            for frame in frames(&bytes) {
                if matches!(decode_from_server(frame), Ok(ServerPacket::Publish(_))) {
                    delivered += 1;
                }
            }
            let sent = Input::Sent {
                connection,
                bytes: bytes.len(),
            };
            self.cores[core].turn(sent);
            let socket = &mut self.cores[core].sockets[at];
            if let Some(publisher) = socket.subscribes_to {
                if self.scenario.qos > QoS::AtMostOnce {
                    socket.ready.push_back((back, delivered));
                }
                self.figures.delivered += delivered;
                self.credit(publisher, delivered, back);
            }
        }
        cost
    }

    /// A publisher may send again what all its subscribers have.
    fn credit(&mut self, publisher: usize, mut delivered: u64, when: Ns) {
        let publisher = &mut self.publishers[publisher];
        // Good enough for one subscriber and for many that keep step: the oldest message is the first that all have.
        let mut complete = 0;
        while delivered > 0 {
            let front = publisher.missing.front_mut().expect("what is delivered was sent");
            let take = delivered.min(*front);
            *front -= take;
            delivered -= take;
            if *front == 0 {
                publisher.missing.pop_front();
                complete += 1;
            }
        }
        if complete > 0 {
            let socket = &mut self.cores[publisher.core].sockets[publisher.socket];
            let at = socket.ready.partition_point(|(other, _)| *other <= when);
            socket.ready.insert(at, (when, complete));
        }
    }

    fn mesh_in(&mut self, core: usize, now: Ns) -> Ns {
        let mut cost = 0;
        for lane in [Lane::ToHome, Lane::ToOwner] {
            let mut taken = 0;
            for from in 0..self.cores.len() {
                let ring = self.ring(from, core, lane);
                while taken < MESH_PARCELS_PER_BATCH
                    && (lane == Lane::ToHome || self.cores[core].shard.takes_requests())
                    && self.rings[ring].front().is_some_and(|(when, _)| *when <= now)
                {
                    let (_, batch) = self.rings[ring].pop_front().expect("just seen");
                    taken += 1;
                    cost += PARCEL_NS + batch.len() as Ns / BYTES_PER_NS;
                    let from = PeerId(from as u16);
                    self.cores[core].turn(Input::Batch { from, bytes: &batch });
                    self.cores[core].shard.recycle_batch(batch);
                }
            }
        }
        cost
    }

    fn mesh_out(&mut self, core: usize) -> Ns {
        let mut cost = 0;
        let mut waiting = Vec::new();
        for (peer, lane) in std::mem::take(&mut self.cores[core].forwards) {
            let ring = self.ring(core, usize::from(peer.0), lane);
            let depth = self.rings[ring].len();
            if depth >= MESH_RING_PARCELS {
                self.figures.waited += 1;
                waiting.push((peer, lane));
                continue;
            }
            let Some(batch) = self.cores[core].shard.take_batch(peer, lane) else {
                continue;
            };
            cost += PARCEL_NS + batch.len() as Ns / BYTES_PER_NS;
            self.figures.parcels += 1;
            self.figures.parcel_bytes += batch.len() as u64;
            self.figures.depth_sum += depth as u64 + 1;
            self.figures.depth_max = self.figures.depth_max.max(depth + 1);
            let when = self.cores[core].clock;
            self.rings[ring].push_back((when, batch));
            self.cores[core].settle();
        }
        self.cores[core].forwards.extend(waiting);
        cost
    }

    fn ring(&self, from: usize, to: usize, lane: Lane) -> usize {
        (from * self.cores.len() + to) * 2 + lane as usize
    }

    /// When there is something for a sleeping core.
    fn next_event(&self, core: usize) -> Option<Ns> {
        let sockets = self.cores[core].sockets.iter();
        let readable = sockets.filter_map(|socket| Some(socket.ready.front()?.0));
        let rings = (0..self.cores.len()).flat_map(|from| Lane::ALL.map(|lane| self.ring(from, core, lane)));
        let parcels = rings.filter_map(|ring| Some(self.rings[ring].front()?.0));
        let rests = (!self.cores[core].marked.is_empty()).then_some(self.cores[core].rests_until);
        readable.chain(parcels).chain(rests).min()
    }

    fn run_to(&mut self, end: Ns) {
        loop {
            let core = (0..self.cores.len())
                .min_by_key(|core| self.cores[*core].clock)
                .expect("one at least");
            if self.cores[core].clock >= end {
                return;
            }
            if self.batch(core) {
                continue;
            }
            let now = self.cores[core].clock;
            // Nothing for it in sight: others are behind it, or something will come of what they do.
            let next = self.next_event(core).unwrap_or(now + WAKE_NS).max(now);
            self.cores[core].clock = next + WAKE_NS;
        }
    }
}

impl Core {
    fn turn(&mut self, input: Input<'_>) -> usize {
        let consumed = self.shard.handle(input, Millis(1));
        self.settle();
        consumed
    }

    fn settle(&mut self) {
        while let Some(output) = self.shard.poll_output() {
            match output {
                Output::Transmit(connection) => self.marked.push(connection.index as usize),
                Output::Forward(peer, lane) => self.forwards.push((peer, lane)),
                Output::Pause(_) | Output::Resume(_) => {}
                other => panic!("clean sessions over healthy sockets lead to no {other:?}"),
            }
        }
    }
}

fn id(socket: usize) -> ConnectionId {
    ConnectionId {
        index: socket as u32,
        generation: 0,
    }
}

fn frames(mut bytes: &[u8]) -> impl Iterator<Item = skein::mqtt::frame::Frame<'_>> {
    std::iter::from_fn(move || match next_frame(bytes, usize::MAX) {
        Ok(Framing::Whole(frame)) => {
            bytes = &bytes[frame.len..];
            Some(frame)
        }
        _ => None,
    })
}

fn main() {
    // `cargo test --benches` asks whether it runs, not for figures.
    let is_test = std::env::args().any(|argument| argument == "--test");
    println!(
        "{:28} {:>5} {:>13} {:>8} {:>9} {:>9} {:>9} {:>9} {:>7} {:>6} {:>7}",
        "", "cores", "delivered/s", "ratio", "per core", "per batch", "per send", "parcel B", "depth", "most", "waited"
    );
    for scenario in SCENARIOS {
        let mut alone = None;
        for cores in if is_test { &CORES[..2] } else { &CORES[..] } {
            let mut world = World::new(scenario, *cores);
            let measured = if is_test { MEASURED_NS / 20 } else { MEASURED_NS };
            world.run_to(WARM_UP_NS);
            world.figures = Figures::default();
            world.run_to(WARM_UP_NS + measured);
            let figures = &world.figures;
            let rate = figures.delivered as f64 * 1e9 / measured as f64;
            let ratio = rate / *alone.get_or_insert(rate);
            let per = |count: u64, of: u64| if of == 0 { 0.0 } else { count as f64 / of as f64 };
            println!(
                "{:28} {:>5} {:>13.0} {:>8.2} {:>8.0}% {:>9.1} {:>9.1} {:>9.0} {:>7.2} {:>6} {:>7}",
                scenario.name,
                cores,
                rate,
                ratio,
                100.0 * ratio / f64::from(*cores),
                per(figures.delivered, figures.batches),
                per(figures.delivered, figures.sends),
                per(figures.parcel_bytes, figures.parcels),
                per(figures.depth_sum, figures.parcels),
                figures.depth_max,
                figures.waited
            );
        }
    }
}
