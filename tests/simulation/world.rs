//! What is around the shards: the mesh, the store, the clock, and with `links` the sockets. It plays the worker of every core.
//!
//! Owns    the shards, links and batches on their way, and the order in which things happen, which the seed decides.
//! Called  by `run`; calls `workload` for what clients do and `oracle` for what must hold.
//! Holds   - bytes and batches are never lost or swapped but by a connection's end;
//!         - one step is one thing done by one part; how often each part gets its turn is the seed's choice, so every part
//!           is slow in some seeds.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use skein::metrics::Counters;
use skein::mqtt::client::decode_from_server;
use skein::mqtt::frame::{Framing, next_frame};
use skein::registry::access::Access;
use skein::shard::message::{Doubt, Messages, ShardMessage};
use skein::shard::record::{Fetch, Record};
use skein::shard::restore::restore;
use skein::shard::{CloseReason, ConnectionId, Input, Lane, Millis, Output, PeerId, Shard, ShardConfig, UnixTime};

use crate::disk::Disk;
use crate::faults::Profile;
use crate::links::{Link, Stage};
use crate::met::Met;
use crate::oracle::{Oracle, message_number};
use crate::overrides::Overrides;
use crate::platform::{Happened, Platform};
use crate::random::{Random, mix};
use crate::topics::Route;
use crate::words::{brief, brief_fetched, brief_record};
use crate::workload::Client;

thread_local! {
    /// The last events, in words, while a failed seed is played again; outlives a panic.
    pub static LOG: RefCell<Option<VecDeque<String>>> = const { RefCell::new(None) };
}
pub const PACKET_BYTES_MAX: usize = 256 * 1024;

/// A core's table of connections: the link in each place, and how often the place was used.
#[derive(Default)]
pub struct Places {
    pub links: Vec<Option<usize>>,
    pub generations: Vec<u32>,
    pub free: Vec<u32>,
}

pub struct World {
    pub random: Random,
    pub profile: Profile,
    /// Of Unix time, too.
    pub now_ms: u64,
    /// When this run of the broker began: its clock begins at 0.
    pub started_ms: u64,
    /// Counts everything that happens; no two events share one.
    pub moment: u64,
    pub shards: Vec<Shard>,
    pub links: Vec<Link>,
    /// Links of which one end at least is still there.
    pub live: Vec<usize>,
    pub clients: Vec<Client>,
    pub oracle: Oracle,
    /// Where there are accounts.
    pub platform: Option<Platform>,
    pub happened: Happened,
    pub places: Vec<Places>,
    /// By sender, receiver, lane.
    rings: BTreeMap<(usize, usize, Lane), VecDeque<Vec<u8>>>,
    /// `Output::Forward` said, batch not taken.
    forwards: Vec<Vec<(PeerId, Lane)>>,
    pub disk: Disk,
    /// Every commit fails.
    disk_is_full: bool,
    /// Steps to the next crash, where that is decided.
    crash_in: Option<usize>,
    pub met: Met,
    /// Of all runs of the broker that are over.
    pub counters: Counters,
    /// Resumed between two turns, and no input since.
    pub resumed: Vec<Vec<usize>>,
    is_between_turns: bool,
    pub hash: u64,
    logs: bool,
}

impl World {
    pub fn new(seed: u64, overrides: &Overrides) -> World {
        let mut random = Random::new(seed);
        let mut profile = Profile::of(&mut random);
        overrides.apply(&mut profile, &mut random);
        // Each account has a client.
        profile.tenants = profile.tenants.min(profile.clients);
        let clients = (0..profile.clients)
            .map(|client| Client::new(&mut random, &profile, client % profile.tenants.max(1)))
            .collect();
        let platform = (profile.tenants > 0).then(|| Platform::new(&profile, &mut random));
        let oracle = Oracle::new(&profile, platform.as_ref(), &mut random);
        let mut world = World {
            random,
            now_ms: 0,
            started_ms: 0,
            moment: 1,
            shards: Vec::new(),
            links: Vec::new(),
            live: Vec::new(),
            clients,
            oracle,
            platform,
            happened: Happened::default(),
            places: Vec::new(),
            rings: BTreeMap::new(),
            forwards: Vec::new(),
            resumed: Vec::new(),
            is_between_turns: false,
            disk: Disk::new(profile.fetch_entries_max),
            disk_is_full: false,
            crash_in: None,
            met: Met::default(),
            counters: Counters::default(),
            hash: seed,
            logs: LOG.with(|log| log.borrow().is_some()),
            profile,
        };
        if let Some(platform) = &world.platform {
            platform.founding().iter().for_each(|record| world.disk.put(record));
        }
        world.start();
        world
    }

    /// A run of the broker begins, with what the disk has.
    fn start(&mut self) {
        let cores = self.profile.cores as usize;
        self.disk.start(cores);
        self.started_ms = self.now_ms;
        let hash_key = [(); 4].map(|()| self.random.next());
        let stored = self.disk.stored(self.profile.limits.retained_memory_bytes_max);
        let access = match &mut self.platform {
            None => Access::Open,
            Some(platform) => platform.start(&stored, self.profile.cores, hash_key),
        };
        let config = |core| ShardConfig {
            core: PeerId(core),
            cores: self.profile.cores,
            shard_levels: self.profile.shard_levels,
            hash_key,
            limits: self.profile.limits.clone(),
            access: access.clone(),
            unix_time: UnixTime {
                epoch_ms: self.started_ms,
            },
            v1_topics: false,
            stored_datapoints: self.disk.datapoints().clone(),
        };
        self.shards = (0..self.profile.cores).map(|core| Shard::new(config(core))).collect();
        self.met.in_doubt += stored.in_doubt.len() as u64;
        restore(&mut self.shards, stored);
        let lanes = |from: usize| (0..cores).flat_map(move |to| Lane::ALL.map(|lane| (from, to, lane)));
        self.rings = (0..cores).flat_map(lanes).map(|ends| (ends, VecDeque::new())).collect();
        self.places = (0..cores).map(|_| Places::default()).collect();
        self.forwards = vec![Vec::new(); cores];
        self.resumed = vec![Vec::new(); cores];
        // What a start finds to mend.
        for core in 0..cores {
            self.drain(core);
        }
    }

    /// The process dies, and the next begins. What was on its way to clients may come, or a part of it, or nothing.
    pub fn crash(&mut self) {
        self.crash_in = self.random.percent(25).then(|| self.random.below(60));
        self.event(30, 0, || "the broker dies".to_owned());
        self.met.crashes += 1;
        self.check_ledger();
        for shard in &self.shards {
            self.counters.add(shard.counters());
        }
        if self.disk.is_writing() {
            if self.random.percent(50) {
                self.commit();
            } else {
                self.disk.fail();
            }
        }
        for link in self.live.clone() {
            let there = self.links[link].down.len();
            let comes = if self.random.percent(50) {
                there
            } else {
                self.random.below(there + 1)
            };
            let l = &mut self.links[link];
            l.down.truncate(comes);
            l.down_ends = true;
            l.up.clear();
            l.arrived.clear();
            l.stage = Stage::Gone;
            self.bury(link);
        }
        let promised = self.promised();
        self.oracle.crashed(self.moment, self.now_ms);
        let cores = self.profile.cores;
        if self.random.percent(60) {
            self.profile.cores = self.random.pick(&[1, 2, 3, 4, 5]);
        }
        self.met.other_cores += u64::from(cores != self.profile.cores);
        self.disk_is_full = false;
        self.start();
        self.filters_are_those_on_disk();
        self.rotations_are_known();
        self.check_promised(&promised);
        let cores = self.profile.cores;
        self.event(31, u64::from(cores), || format!("the broker starts on {cores} cores"));
    }

    /// What Sessions hold when the broker begins.
    fn filters_are_those_on_disk(&mut self) {
        let stored = self.disk.stored(0).sessions;
        for client in 0..self.clients.len() {
            let number = self.oracle.number_of(client);
            let kept = stored.iter().find(|session| Some(session.session) == number);
            let filters = kept.into_iter().flat_map(|session| &session.filters);
            let filters = filters.map(|(filter, _)| filter.to_string());
            let tenant = self.clients[client].tenant;
            // What is below a token that is rotated away goes.
            let filters = filters
                .filter(|filter| self.oracle.topics.is_own_filter(tenant, filter))
                .collect();
            self.oracle.sessions[client].filters = filters;
        }
    }

    /// Notes an event: for the trace that a replay must repeat, and in words for whoever reads a failure.
    pub fn event(&mut self, what: u64, number: u64, words: impl FnOnce() -> String) {
        self.moment += 1;
        self.hash = mix(self.hash ^ mix(what.wrapping_mul(31) ^ number));
        if self.logs {
            let line = format!("{:>7} {:>7} ms  {}", self.moment, self.now_ms, words());
            LOG.with(|log| {
                if let Some(log) = &mut *log.borrow_mut() {
                    if log.len() == log.capacity() {
                        log.pop_front();
                    }
                    log.push_back(line);
                }
            });
        }
    }

    /// One thing, done by one part.
    pub fn step(&mut self) {
        let total = self.profile.weights.iter().sum();
        let mut at = self.random.below(total);
        let mut action = 0;
        while at >= self.profile.weights[action] {
            at -= self.profile.weights[action];
            action += 1;
        }
        match action {
            0 | 1 if self.profile.abusers > 0 && self.random.percent(10) => self.abuser_acts(),
            0 | 1 => {
                let client = self.random.below(self.clients.len());
                self.client_acts(client);
            }
            2 => {
                if let Some(link) = self.some_link() {
                    let bytes = self.some_bytes(self.links[link].up.len());
                    self.carry_up(link, bytes);
                }
            }
            3 => {
                if let Some(link) = self.some_link() {
                    let bytes = self.some_bytes(usize::MAX);
                    self.flush(link, bytes);
                }
            }
            4 => {
                if let Some(link) = self.some_link() {
                    let l = &self.links[link];
                    let slow = l.abuser.is_some() || self.clients[l.client].is_slow;
                    if !slow || self.random.percent(10) {
                        let bytes = self.some_bytes(self.links[link].down.len());
                        self.carry_down(link, bytes);
                    }
                }
            }
            5 => {
                let core = self.random.below(self.shards.len());
                self.forward(core);
            }
            6 => {
                let (from, to) = (
                    self.random.below(self.shards.len()),
                    self.random.below(self.shards.len()),
                );
                let lane = self.random.pick(&Lane::ALL);
                self.deliver(from, to, lane);
            }
            7 => {
                for _ in 0..self.random.between(1, 8) {
                    self.disk_step();
                }
            }
            9 => self.platform_acts(),
            _ => {
                let ms = self.random.between(1, self.profile.step_ms_max) as u64 * 10;
                self.pass_time(ms);
            }
        }
        if let Some(steps) = &mut self.crash_in {
            *steps = steps.saturating_sub(1);
        }
        if self.crash_in == Some(0) || self.random.below(10_000) < self.profile.crash_permyriad {
            self.crash();
        }
        if self.random.below(1_000) < self.profile.reset_permille
            && let Some(link) = self.some_link()
        {
            self.reset(link);
        }
    }

    fn some_link(&mut self) -> Option<usize> {
        (!self.live.is_empty()).then(|| self.live[self.random.below(self.live.len())])
    }

    pub fn some_bytes(&mut self, there: usize) -> usize {
        match self.random.below(4) {
            _ if self.random.percent(self.profile.crumbs_percent) => there.min(self.random.between(1, 3)),
            0 => there.min(self.random.between(1, 64)),
            1 => there.min(self.random.between(1, 1_000)),
            _ => there,
        }
    }

    pub fn forward(&mut self, core: usize) -> bool {
        if self.forwards[core].is_empty() {
            return false;
        }
        let at = self.random.below(self.forwards[core].len());
        let (peer, lane) = self.forwards[core][at];
        let ends = (core, peer.0 as usize, lane);
        if self.rings[&ends].len() >= self.profile.ring_parcels {
            self.met.rings_full += 1;
            return false;
        }
        self.forwards[core].swap_remove(at);
        // Before what it makes other cores write.
        self.disk.hand_over(core);
        let batch = self.shards[core].take_batch(peer, lane).expect("a batch was announced");
        self.event(7, mix((core as u64) << 32 | batch.len() as u64), || {
            format!("core {core} -> core {} {lane:?}: {} bytes", peer.0, batch.len())
        });
        for message in Messages::new(&batch) {
            for (payload, _) in carried(&message) {
                if let Some(number) = message_number(payload) {
                    self.oracle.in_rings(number, 1);
                }
            }
        }
        self.rings.get_mut(&ends).expect("every ring is there").push_back(batch);
        self.is_between_turns = true;
        self.drain(core);
        self.is_between_turns = false;
        true
    }

    pub fn deliver(&mut self, from: usize, to: usize, lane: Lane) -> bool {
        if lane == Lane::ToOwner && !self.shards[to].takes_requests() {
            return false;
        }
        let Some(batch) = self.rings.get_mut(&(from, to, lane)).and_then(VecDeque::pop_front) else {
            return false;
        };
        self.event(8, mix((from as u64) << 32 | to as u64), || {
            let messages: Vec<String> = Messages::new(&batch).map(|message| brief(&message)).collect();
            format!("core {to} takes from core {from}, {lane:?}: {}", messages.join("; "))
        });
        for message in Messages::new(&batch) {
            for (payload, origin) in carried(&message) {
                self.met.in_doubt_again += u64::from(origin.is_some_and(|doubt| doubt.is_again));
                if let Some(number) = message_number(payload) {
                    self.oracle.in_rings(number, -1);
                }
            }
        }
        let input = Input::Batch {
            from: PeerId(from as u16),
            bytes: &batch,
        };
        self.handle(to, input);
        let giver = if self.random.percent(50) { from } else { to };
        self.shards[giver].recycle_batch(batch);
        self.drain(to);
        true
    }

    /// One step of the disk's, for one core.
    fn disk_step(&mut self) {
        let core = self.random.below(self.shards.len());
        match self.random.below(6) {
            0 => {
                self.disk.hand_over(core);
            }
            1 if !self.disk.is_writing() && self.disk.waiting() > 0 => {
                let units = self.random.between(1, self.disk.waiting());
                self.disk.begin(units);
            }
            2 if self.disk.is_writing() => {
                let outage = if self.disk_is_full {
                    2
                } else {
                    self.profile.outage_percent
                };
                let was_full = self.disk_is_full;
                self.disk_is_full ^= self.random.percent(outage);
                self.met.outages += u64::from(self.disk_is_full && !was_full);
                if self.disk_is_full || self.random.percent(self.profile.commit_fails_percent) {
                    self.event(15, 0, || "the commit fails".to_owned());
                    self.disk.fail();
                } else {
                    self.commit();
                }
            }
            3 => {
                let there = self.disk.unconfirmed(core);
                let count = if self.random.percent(70) {
                    there
                } else {
                    self.random.below(there as usize + 1) as u64
                };
                self.confirm(core, count);
            }
            4 => {
                self.disk.read(core, &mut self.random);
            }
            5 => {
                self.answer(core);
            }
            _ => {}
        }
    }

    /// Everything that the disk can do, done at once, and nothing fails.
    fn disk_settles(&mut self) -> bool {
        let mut moved = false;
        for core in 0..self.shards.len() {
            moved |= self.disk.hand_over(core);
        }
        if !self.disk.is_writing() {
            self.disk.begin(self.disk.waiting());
        }
        if self.disk.is_writing() {
            self.commit();
            moved = true;
        }
        for core in 0..self.shards.len() {
            moved |= self.confirm(core, self.disk.unconfirmed(core));
            while self.disk.read(core, &mut self.random) {
                moved = true;
            }
            while self.answer(core) {
                moved = true;
            }
        }
        moved
    }

    fn commit(&mut self) {
        let serials = self.disk.commit();
        self.event(9, serials.len() as u64, || {
            format!(
                "on disk: {} records, {:?} to {:?}",
                serials.len(),
                serials.first(),
                serials.last()
            )
        });
        self.oracle.on_disk(&serials);
    }

    fn confirm(&mut self, core: usize, count: u64) -> bool {
        if count == 0 {
            return false;
        }
        let up_to = self.disk.confirm(core, count);
        self.event(16, (core as u64) << 32 | up_to.0, || {
            format!("core {core}: committed up to {}", up_to.0)
        });
        self.handle(core, Input::Committed { up_to });
        self.drain(core);
        true
    }

    fn answer(&mut self, core: usize) -> bool {
        let Some(fetched) = self.disk.answer(core, &mut self.random) else {
            return false;
        };
        self.event(17, core as u64, || format!("core {core}: {}", brief_fetched(&fetched)));
        self.handle(core, Input::Fetched(Box::new(fetched)));
        self.drain(core);
        true
    }

    pub fn pass_time(&mut self, ms: u64) {
        self.now_ms += ms;
        for core in 0..self.shards.len() {
            if self.shards[core]
                .next_deadline()
                .is_some_and(|Millis(due)| due <= self.now_ms - self.started_ms)
            {
                self.event(10, core as u64, || format!("core {core}: tick"));
                self.handle(core, Input::Tick);
                self.drain(core);
            }
        }
    }

    pub fn handle(&mut self, core: usize, input: Input<'_>) -> usize {
        // A resume outside of a turn counts from the next one: the shard has no clock.
        for link in self.resumed[core].drain(..) {
            self.links[link].heard_at_ms = self.now_ms;
        }
        self.met.turns += 1;
        let before = self.before(core, &input);
        let consumed = self.shards[core].handle(input, Millis(self.now_ms - self.started_ms));
        if let Some(before) = before {
            self.check_bounds(core, &before);
        }
        consumed
    }

    /// Does everything that a shard says, and looks at what it has written.
    pub fn drain(&mut self, core: usize) {
        let mut closing = Vec::new();
        while let Some(output) = self.shards[core].poll_output() {
            match output {
                Output::Transmit(id) => {
                    if let Some(link) = self.link(core, id) {
                        self.links[link].transmit = true;
                    }
                }
                Output::Close(id, reason) => {
                    let link = self.link(core, id).expect("only a connection that is there is closed");
                    self.event(11, link as u64, || format!("link {link}: close, {reason:?}"));
                    self.closed(link, reason);
                    closing.push(link);
                }
                Output::Pause(id) => {
                    let link = self.link(core, id).expect("only a connection that is there is paused");
                    assert!(!self.links[link].paused, "a pause is said once");
                    self.links[link].paused = true;
                    self.event(12, link as u64, || format!("link {link}: pause"));
                }
                Output::Resume(id) => {
                    if let Some(link) = self.link(core, id) {
                        assert!(self.links[link].paused, "a resume follows a pause");
                        self.links[link].paused = false;
                        self.links[link].heard_at_ms = self.now_ms;
                        if self.is_between_turns {
                            self.resumed[core].push(link);
                        }
                        self.event(13, link as u64, || format!("link {link}: resume"));
                    }
                }
                Output::Forward(peer, lane) => {
                    assert!(
                        !self.forwards[core].contains(&(peer, lane)),
                        "a batch is announced once"
                    );
                    self.forwards[core].push((peer, lane));
                }
                Output::Answer(answer) => {
                    let (ticket, answer) = *answer;
                    self.answered(core, ticket, &answer);
                }
                Output::Notify(_) => unreachable!("nobody has events"),
                Output::Persist(number, record) => {
                    self.check_recorded(&record);
                    let serial = self.oracle.persisted(&record, self.now_ms);
                    self.event(14, number.0, || {
                        format!("core {core}: record {} ({serial}) {}", number.0, brief_record(&record))
                    });
                    self.disk.push(core, serial, number, record);
                }
                Output::Fetch(fetch) => {
                    self.event(18, core as u64, || format!("core {core}: {fetch:?}"));
                    if let Fetch::Queue(fetch) = &*fetch {
                        let client = self.oracle.client_of(fetch.session.number);
                        if let Some(link) = self.clients[client].link {
                            self.links[link].has_fetched = true;
                        }
                        if let Some(link) = self.oracle.link_of(client) {
                            self.links[link].has_fetched = true;
                        }
                    }
                    self.disk.fetch(core, *fetch);
                }
            }
        }
        self.look_at_outboxes(core);
        for link in closing {
            // The socket takes what it takes at once.
            if let Stage::Home { core, id } = self.links[link].stage {
                let unsent = self.shards[core].unsent(id);
                let count = if self.random.percent(70) {
                    unsent.len()
                } else {
                    self.random.below(unsent.len() + 1)
                };
                self.links[link].down.extend_from_slice(&unsent[..count]);
                if count > 0 && self.random.percent(50) {
                    let input = Input::Sent {
                        connection: id,
                        bytes: count,
                    };
                    self.handle(core, input);
                    self.links[link].taken += count as u64;
                }
                self.server_end(link);
            }
        }
    }

    pub fn link(&self, core: usize, id: ConnectionId) -> Option<usize> {
        let places = &self.places[core];
        (places.generations[id.index as usize] == id.generation)
            .then(|| places.links[id.index as usize])
            .flatten()
    }

    fn closed(&mut self, link: usize, reason: CloseReason) {
        let l = &mut self.links[link];
        l.closing = true;
        match reason {
            CloseReason::KeepAlive => {
                let silent_ms = self.now_ms - l.heard_at_ms;
                let allowed_ms = u64::from(l.keep_alive_s) * 1_500;
                assert!(
                    l.keep_alive_s > 0 && silent_ms >= allowed_ms,
                    "closed for {silent_ms} ms of silence, {allowed_ms} ms are allowed [MQTT-3.1.2-24]"
                );
            }
            CloseReason::Refused => assert!(l.is_refused, "link {link} is refused, and its account has room for it"),
            _ if l.abuser.is_some() => self.abuser_closed(reason),
            CloseReason::Disconnect | CloseReason::TakenOver => {}
            CloseReason::AccountEnded => assert!(self.platform.is_some(), "there are no accounts to end"),
            CloseReason::Malformed(_) => {
                let client = l.client;
                assert!(
                    self.clients[client].misbehaved == Some(link),
                    "a client by the rules was closed: {reason:?}"
                );
            }
            _ => panic!("a client by the rules was closed: {reason:?}"),
        }
        self.end_session_connection(link, reason == CloseReason::Disconnect);
    }

    /// Shows the oracle every packet that has been written since it last looked, at the moment it was written.
    fn look_at_outboxes(&mut self, core: usize) {
        let unsent_max = self.profile.unsent_max();
        for index in 0..self.places[core].links.len() {
            let Some(link) = self.places[core].links[index] else {
                continue;
            };
            let Stage::Home { id, .. } = self.links[link].stage else {
                continue;
            };
            let unsent = self.shards[core].unsent(id);
            let l = &mut self.links[link];
            let total = l.taken + unsent.len() as u64;
            if total == l.seen {
                continue;
            }
            assert!(unsent.len() <= unsent_max, "an outbox of {} bytes", unsent.len());
            let new = unsent[(l.seen - l.taken) as usize..].to_vec();
            l.seen = total;
            // The end of a connection that is refused says so, too.
            assert!(l.transmit || l.is_refused, "what is unsent has been announced");
            let mut rest = &new[..];
            while !rest.is_empty() {
                let Ok(Framing::Whole(frame)) = next_frame(rest, PACKET_BYTES_MAX) else {
                    panic!("packets are written whole");
                };
                rest = &rest[frame.len..];
                let packet = decode_from_server(frame).unwrap_or_else(|error| panic!("the server wrote {error:?}"));
                self.hash = mix(self.hash ^ frame.len as u64 ^ u64::from(frame.first_byte) << 32);
                match self.links[link].abuser {
                    None => self.server_wrote(link, &packet),
                    Some(_) => self.abuser_gets(link, &packet),
                }
            }
        }
    }

    /// What came is delivered, counted as dropped, or waits: in this run of the broker, at any moment.
    pub fn check_ledger(&self) {
        let mut counters = Counters::default();
        self.shards.iter().for_each(|shard| counters.add(&shard.report()));
        let delivered = counters.delivered_qos0 + counters.delivered_qos1 + counters.delivered_qos2;
        let dropped = counters.dropped_outbox_full
            + counters.dropped_queue_full
            + counters.dropped_away
            + counters.dropped_session_ended
            + counters.expired;
        assert_eq!(
            counters.matched + counters.queued_restored,
            delivered + dropped + counters.queued_now,
            "the ledger: {counters:?}"
        );
        assert_eq!(
            (counters.dropped_damaged, counters.retained_damaged),
            (0, 0),
            "this disk does no damage"
        );
    }

    /// Whether those who want its topic get a message, by what is known of its account and device.
    pub fn route(&self, number: usize) -> Route {
        let Some(platform) = &self.platform else {
            return Route::Surely;
        };
        let message = &self.oracle.messages[number];
        let purpose = self.oracle.topics.purposes[message.topic];
        if message.tenant != purpose.tenant() || message.is_refused {
            return Route::Never;
        }
        let from = message.sent_at.unwrap_or(self.moment);
        let until = message.over_at();
        let route = platform.route(message, purpose, from, until);
        self.oracle.topics.as_rotated(route, message.topic, from, until)
    }

    /// What is refused, or another account's, leaves no trace.
    fn check_recorded(&self, record: &Record) {
        let payload: &[u8] = match record {
            Record::Queued { message, .. } => message.payload(),
            Record::Retained { payload, .. } => payload,
            _ => return,
        };
        if let Some(number) = message_number(payload) {
            assert!(
                self.route(number) != Route::Never,
                "message {number} is refused or another account's, and is recorded"
            );
        }
    }

    pub fn silence_overdue_ms(&self, link: usize) -> Option<u64> {
        let l = &self.links[link];
        if l.keep_alive_s == 0 || l.paused || !matches!(l.stage, Stage::Home { .. }) {
            return None;
        }
        (self.now_ms - l.heard_at_ms).checked_sub(u64::from(l.keep_alive_s) * 1_500)
    }

    /// Lets the time pass for which full queues hold publishers back, if anybody is.
    pub fn wait_for_held_back(&mut self) -> bool {
        let is_held = self.live.iter().any(|link| self.links[*link].paused);
        if is_held {
            self.pass_time(self.profile.limits.overflow_wait_ms + 250);
        }
        is_held
    }

    /// Everything that can still move, moves once. `false` when nothing did.
    pub fn settle_once(&mut self) -> bool {
        let mut moved = false;
        moved |= self.abusers_leave();
        for link in self.live.clone() {
            let l = &self.links[link];
            if !l.attached && !l.up_ends {
                self.reset(link);
                moved = true;
                continue;
            }
            moved |= self.carry_up(link, self.links[link].up.len());
            moved |= self.flush(link, usize::MAX);
            moved |= self.carry_down(link, self.links[link].down.len());
            if !self.links[link].attached && !matches!(self.links[link].stage, Stage::Gone) {
                // Its client is gone: what it is sent goes nowhere.
                self.links[link].down.clear();
            }
        }
        for core in 0..self.shards.len() {
            while self.forward(core) {
                moved = true;
            }
            for from in 0..self.shards.len() {
                for lane in Lane::ALL {
                    while self.deliver(from, core, lane) {
                        moved = true;
                    }
                }
            }
        }
        moved |= self.platform_settles();
        moved |= self.disk_settles();
        for client in 0..self.clients.len() {
            moved |= self.client_settles(client);
        }
        moved
    }
}

/// The published messages that one between cores carries: their payloads, and their origin where that is in doubt.
fn carried<'m>(message: &ShardMessage<'m>) -> Vec<(&'m [u8], Option<Doubt>)> {
    match message {
        ShardMessage::Publish { published, .. } => vec![(published.message.payload, published.origin)],
        ShardMessage::Deliver { message, origin, .. } => vec![(message.payload, *origin)],
        ShardMessage::PublishRun { run, .. } | ShardMessage::DeliverRun { run, .. } => {
            run.publishes().map(|publish| (publish.payload, None)).collect()
        }
        _ => Vec::new(),
    }
}
