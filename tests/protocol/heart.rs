//! Conversations in memory: one `Shard` per core, no socket, virtual time.
//!
//! Owns    the part of the shell that conversations need: greeting, handing bytes over, carrying batches between cores.
//! Called  by `main.rs`.
//! Holds   - after every call nothing is on its way any more, so what is going to arrive has arrived;
//!         - every socket takes what it is given at once; the store commits at once.

use std::collections::VecDeque;
use std::time::Duration;

use skein::limits;
use skein::mqtt::encode;
use skein::registry::access::Access;
use skein::registry::datapoint::StoredDatapoints;
use skein::shard::event::{ConnectionId, Input, Lane, Millis, Output, PeerId};
use skein::shard::greeting::{Greeting, Identity, greet};
use skein::shard::{Limits, Shard, ShardConfig, UnixTime};
use skein::store::Door;

use crate::runner::{Driver, Heard};
use crate::script::Control;

/// Step in which time passes: finer than any deadline's resolution.
const STEP_MS: u64 = 50;

pub struct Heart {
    shards: Vec<Shard>,
    /// A Session stays on its core, so each core may have a store of its own.
    stores: Vec<Door>,
    access: Access,
    client_id_chars_max: usize,
    connections: Vec<Connection>,
    /// Batches that a core was not ready for, per sender and receiver.
    requests: VecDeque<(PeerId, PeerId, Vec<u8>)>,
    now: Millis,
}

#[derive(Default)]
struct Connection {
    /// Its home core, once it has been let in.
    home: Option<usize>,
    /// From the client, not yet consumed.
    inbound: Vec<u8>,
    /// To the client, not yet received.
    outbound: Vec<u8>,
    paused: bool,
    /// No more comes from the broker.
    closed: bool,
}

impl Heart {
    /// `seed` decides which core owns what; `flags` are those of the broker, as far as they concern the heart.
    pub fn new(cores: u16, seed: u64, flags: &[String]) -> Result<Heart, String> {
        let mut limits = Limits::default();
        let mut client_id_chars_max = limits::CLIENT_ID_CHARS_MAX;
        for pair in flags.chunks(2) {
            let [flag, value] = pair else {
                return Err(format!("{flags:?}: flags come with values"));
            };
            let value = match (value.strip_suffix("KiB"), value.strip_suffix("MiB")) {
                (Some(number), _) => number.parse::<usize>().map(|number| number << 10),
                (_, Some(number)) => number.parse().map(|number: usize| number << 20),
                _ => value.parse(),
            };
            let value = value.map_err(|error| format!("{pair:?}: {error}"))?;
            match flag.as_str() {
                "--max-packet" => limits.packet_bytes_max = value,
                "--max-inflight" => limits.inflight_max = value,
                "--max-subscriptions" => limits.subscriptions_max = value,
                "--client-id-max" => client_id_chars_max = value,
                _ => return Err(format!("{flag} does not concern the heart")),
            }
        }
        let shards = (0..cores).map(|core| {
            Shard::new(ShardConfig {
                core: PeerId(core),
                cores,
                shard_levels: limits::SHARD_LEVELS,
                hash_key: [seed, 2, 3, 4],
                limits: limits.clone(),
                access: Access::Open,
                unix_time: UnixTime::default(),
                v1_topics: false,
                stored_datapoints: StoredDatapoints::until(0),
            })
        });
        Ok(Heart {
            shards: shards.collect(),
            stores: (0..cores).map(|_| Door::memory()).collect(),
            access: Access::Open,
            client_id_chars_max,
            connections: Vec::new(),
            requests: VecDeque::new(),
            now: Millis(1_000_000),
        })
    }

    /// One name per connection, never used again: its generation is always 0.
    fn id(connection: usize) -> ConnectionId {
        ConnectionId {
            index: u32::try_from(connection).expect("conversations are short"),
            generation: 0,
        }
    }

    fn handle(&mut self, core: usize, input: Input<'_>) -> usize {
        let consumed = self.shards[core].handle(input, self.now);
        self.drain(core);
        consumed
    }

    /// Carries out what a core wants done.
    fn drain(&mut self, core: usize) {
        while let Some(output) = self.shards[core].poll_output() {
            match output {
                Output::Transmit(id) => self.transmit(core, id),
                Output::Close(id, _) => {
                    self.transmit(core, id);
                    self.connections[id.index as usize].closed = true;
                    self.shards[core].handle(Input::Disconnected { connection: id }, self.now);
                }
                Output::Pause(id) => self.connections[id.index as usize].paused = true,
                Output::Resume(id) => self.connections[id.index as usize].paused = false,
                Output::Forward(peer, lane) => {
                    while let Some(batch) = self.shards[core].take_batch(peer, lane) {
                        let from = PeerId(u16::try_from(core).expect("there are few cores"));
                        match lane {
                            Lane::ToOwner => self.requests.push_back((from, peer, batch)),
                            Lane::ToHome => {
                                self.handle(usize::from(peer.0), Input::Batch { from, bytes: &batch });
                            }
                        }
                    }
                }
                Output::Persist(number, record) => {
                    self.stores[core].push(number, record);
                    let up_to = self.stores[core].committed().expect("confirmed at once");
                    self.shards[core].handle(Input::Committed { up_to }, self.now);
                }
                Output::Answer(_) | Output::Notify(_) => unreachable!("nobody asks, and nobody has events"),
                Output::Fetch(fetch) => {
                    self.stores[core].fetch(*fetch);
                    let fetched = self.stores[core].fetched().expect("answered at once");
                    self.shards[core].handle(Input::Fetched(Box::new(fetched)), self.now);
                }
            }
        }
    }

    fn transmit(&mut self, core: usize, id: ConnectionId) {
        loop {
            let unsent = self.shards[core].unsent(id);
            let bytes = unsent.len();
            if bytes == 0 {
                return;
            }
            self.connections[id.index as usize].outbound.extend_from_slice(unsent);
            self.shards[core].handle(Input::Sent { connection: id, bytes }, self.now);
        }
    }

    /// Presents what a client has sent, until no more of it is consumed.
    fn present(&mut self, connection: usize) -> bool {
        let state = &mut self.connections[connection];
        if state.closed || state.paused || state.inbound.is_empty() {
            return false;
        }
        let Some(core) = state.home else {
            return self.greet(connection);
        };
        let inbound = std::mem::take(&mut state.inbound);
        let consumed = self.handle(
            core,
            Input::Received {
                connection: Self::id(connection),
                bytes: &inbound,
            },
        );
        let state = &mut self.connections[connection];
        // What was sent meanwhile, if anything, comes after the rest.
        state.inbound.splice(..0, inbound[consumed..].iter().copied());
        consumed > 0
    }

    fn greet(&mut self, connection: usize) -> bool {
        let state = &mut self.connections[connection];
        match greet(
            &state.inbound,
            || Identity::Claimed,
            &self.access,
            self.client_id_chars_max,
            || format!("fresh-{connection}"),
        ) {
            Greeting::Incomplete => return false,
            Greeting::Accepted {
                connect,
                account,
                consumed,
            } => {
                state.inbound.drain(..consumed);
                let home = usize::from(self.shards[0].home(account, &connect.client_id).0);
                state.home = Some(home);
                self.handle(
                    home,
                    Input::Connected {
                        connection: Self::id(connection),
                        connect,
                        account,
                    },
                );
            }
            Greeting::Refused(code) => {
                encode::connack(&mut state.outbound, false, code);
                state.closed = true;
            }
            Greeting::Malformed(_) => state.closed = true,
        }
        true
    }

    /// Goes on until nothing is on its way.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for _ in 0..self.requests.len() {
                let Some((from, to, batch)) = self.requests.pop_front() else {
                    break;
                };
                let core = usize::from(to.0);
                if self.shards[core].takes_requests() {
                    self.handle(core, Input::Batch { from, bytes: &batch });
                    moved = true;
                } else {
                    self.requests.push_back((from, to, batch));
                }
            }
            for connection in 0..self.connections.len() {
                while self.present(connection) {
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }
}

impl Driver for Heart {
    fn open(&mut self) -> usize {
        self.connections.push(Connection::default());
        self.connections.len() - 1
    }

    fn send(&mut self, connection: usize, bytes: &[u8], chunk: Option<usize>) {
        for piece in bytes.chunks(chunk.unwrap_or(bytes.len().max(1))) {
            self.connections[connection].inbound.extend_from_slice(piece);
            self.settle();
        }
    }

    fn end(&mut self, connection: usize, _: Control) {
        let state = &mut self.connections[connection];
        if !state.closed {
            state.closed = true;
            if let Some(core) = state.home {
                self.handle(
                    core,
                    Input::Disconnected {
                        connection: Self::id(connection),
                    },
                );
            }
        }
        self.settle();
    }

    fn receive(&mut self, connection: usize, into: &mut Vec<u8>, wait: Duration) -> Heard {
        let deadline = self.now.plus(u64::try_from(wait.as_millis()).expect("waits are short"));
        loop {
            let state = &mut self.connections[connection];
            if !state.outbound.is_empty() {
                into.append(&mut state.outbound);
                return Heard::Bytes;
            }
            if state.closed {
                return Heard::Closed;
            }
            if self.now >= deadline {
                return Heard::Silence;
            }
            self.pass(Duration::from_millis(STEP_MS.min(deadline.0 - self.now.0)));
        }
    }

    fn pass(&mut self, time: Duration) {
        let mut left_ms = u64::try_from(time.as_millis()).expect("waits are short");
        while left_ms > 0 {
            let step_ms = left_ms.min(STEP_MS);
            left_ms -= step_ms;
            self.now = self.now.plus(step_ms);
            for core in 0..self.shards.len() {
                self.handle(core, Input::Tick);
            }
            self.settle();
        }
    }

    fn patience(&self) -> (Duration, Duration) {
        (Duration::ZERO, Duration::ZERO)
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }
}
