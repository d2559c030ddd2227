//! What is around the shards: sockets, the mesh, the store, the clock. It plays the worker of every core.
//!
//! Owns    the shards, every byte and batch on its way, and the order in which things happen, which the seed decides.
//! Called  by `run`; calls `workload` for what clients do and `oracle` for what must hold.
//! Holds   - bytes and batches are never lost or swapped but by a connection's end;
//!         - one step is one thing done by one part; how often each part gets its turn is the seed's choice, so every part
//!           is slow in some seeds.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use skein::metrics::Counters;
use skein::mqtt::client::decode_from_server;
use skein::mqtt::decode::decode;
use skein::mqtt::encode;
use skein::mqtt::frame::{Framing, next_frame};
use skein::mqtt::packet::{Connect, Level, Packet};
use skein::mqtt::reason::ConnectReturnCode;
use skein::registry::access::{Access, AccountId};
use skein::session::message::Message;
use skein::shard::greeting::{Greeting, Identity, greet};
use skein::shard::message::{Doubt, Messages, ShardMessage};
use skein::shard::record::{Fetch, Fetched, Record};
use skein::shard::restore::restore;
use skein::shard::{CloseReason, ConnectionId, Input, Lane, Millis, Output, PeerId, Shard, ShardConfig, UnixTime};

use crate::disk::Disk;
use crate::faults::Profile;
use crate::oracle::{Oracle, message_number};
use crate::overrides::Overrides;
use crate::platform::{Happened, Platform};
use crate::random::{Random, mix};
use crate::topics::Route;
use crate::workload::Client;

thread_local! {
    /// The last events, in words, while a failed seed is played again; outlives a panic.
    pub static LOG: RefCell<Option<VecDeque<String>>> = const { RefCell::new(None) };
}
pub const PACKET_BYTES_MAX: usize = 256 * 1024;

/// Where the server's end of a connection is.
pub enum Stage {
    /// On the accepting core, before a whole CONNECT.
    Greeting,
    /// On its way to its home core.
    Handoff {
        connect: Box<Connect>,
        account: AccountId,
        /// Of the accounts that it was judged by.
        version: u64,
        home: usize,
    },
    Home {
        core: usize,
        id: ConnectionId,
    },
    /// The server's socket is closed.
    Gone,
}

pub struct Link {
    pub client: usize,
    /// Its client's account; 0 where there are none.
    pub tenant: usize,
    /// It is this abuser's, and `client` means nothing.
    pub abuser: Option<usize>,
    /// Half a packet was its last.
    pub is_silent: bool,
    pub stage: Stage,
    /// Sent by the client, not read by the server.
    pub up: Vec<u8>,
    /// Read by the server, not consumed by a shard.
    arrived: Vec<u8>,
    /// Taken by the server's socket, not read by the client.
    pub down: Vec<u8>,
    /// Bytes of the outbox that the socket has taken, and those that the oracle has seen.
    taken: u64,
    seen: u64,
    pub paused: bool,
    transmit: bool,
    /// The client has not let go of its end.
    pub attached: bool,
    /// The client closes after what is in `up`.
    pub up_ends: bool,
    /// The server has closed after what is in `down`.
    pub down_ends: bool,
    pub level: Level,
    pub keep_alive_s: u16,
    /// The message of its Will.
    pub will: Option<usize>,
    /// When it came home: connections of one client may overtake each other on the way.
    pub home_at: u64,
    /// The count of this client's Sessions when it came home.
    pub epoch: u64,
    /// Whether the model says that a Session was resumed.
    pub resumed: bool,
    pub connack_seen: bool,
    /// When a whole packet last reached the shard, or the connection was resumed.
    heard_at_ms: u64,
    /// The shard says that it has ended.
    closing: bool,
    /// Its Session's queue has been read from disk: QoS 0 gives way till it has caught up.
    pub has_fetched: bool,
    /// Its account has no room for it.
    pub is_refused: bool,
    /// By identifier of a SUBSCRIBE that a core has read, which filters are granted.
    pub granted: BTreeMap<u16, Vec<bool>>,
    /// Those that an abuser holds.
    pub filters: BTreeSet<String>,
}

impl Link {
    pub fn is_home(&self) -> bool {
        matches!(self.stage, Stage::Home { .. })
    }

    pub fn is_at_home_on(&self, home: usize) -> bool {
        matches!(self.stage, Stage::Home { core, .. } if core == home)
    }
}

/// A core's table of connections: the link in each place, and how often the place was used.
#[derive(Default)]
struct Places {
    links: Vec<Option<usize>>,
    generations: Vec<u32>,
    free: Vec<u32>,
}

/// What a run has met that no counter of the broker's counts.
#[derive(Debug, Default, serde::Serialize)]
pub struct Met {
    /// Inputs that shards have handled.
    pub turns: u64,
    /// Connections that the network lost.
    pub resets: u64,
    /// Connections whose client went without the server hearing of it.
    pub half_open: u64,
    /// Connections on which a client broke a rule.
    pub nonsense: u64,
    /// Times from which on every commit failed.
    pub outages: u64,
    /// Batches that waited because the ring was full.
    pub rings_full: u64,
    pub commits_failed: u64,
    pub fetches: u64,
    pub fetches_retained: u64,
    pub crashes: u64,
    /// Starts with another number of cores than before.
    pub other_cores: u64,
    /// QoS 2 messages that a start found on disk without their PUBLISH.
    pub in_doubt: u64,
    /// Those that came again between cores.
    pub in_doubt_again: u64,
    /// PUBLISH packets with DUP of what was sent before a crash.
    pub sent_again: u64,
    /// CONNECT packets that were refused.
    pub refused: u64,
    /// Messages that came to clients on a topic that begins with `$`.
    pub dollar_topics: u64,
    /// Packets written to abusers, and connections of theirs that were closed for what they sent.
    pub abuse_answered: u64,
    pub abuse_closed: u64,
    #[serde(flatten)]
    pub happened: Happened,
}

impl Met {
    pub fn add(&mut self, other: &Met) {
        self.turns += other.turns;
        self.resets += other.resets;
        self.half_open += other.half_open;
        self.nonsense += other.nonsense;
        self.outages += other.outages;
        self.rings_full += other.rings_full;
        self.commits_failed += other.commits_failed;
        self.fetches += other.fetches;
        self.fetches_retained += other.fetches_retained;
        self.crashes += other.crashes;
        self.other_cores += other.other_cores;
        self.in_doubt += other.in_doubt;
        self.in_doubt_again += other.in_doubt_again;
        self.sent_again += other.sent_again;
        self.refused += other.refused;
        self.dollar_topics += other.dollar_topics;
        self.abuse_answered += other.abuse_answered;
        self.abuse_closed += other.abuse_closed;
        self.happened.add(&other.happened);
    }
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
    places: Vec<Places>,
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
    resumed: Vec<Vec<usize>>,
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
            newest_datapoint_ms: stored.newest_datapoint_ms,
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

    fn some_bytes(&mut self, there: usize) -> usize {
        match self.random.below(4) {
            _ if self.random.percent(self.profile.crumbs_percent) => there.min(self.random.between(1, 3)),
            0 => there.min(self.random.between(1, 64)),
            1 => there.min(self.random.between(1, 1_000)),
            _ => there,
        }
    }

    /// A connection whose `up` the client fills from now on.
    pub fn open_link(&mut self, link: Link) -> usize {
        self.links.push(link);
        self.live.push(self.links.len() - 1);
        self.links.len() - 1
    }

    pub fn fresh_link(client: usize, tenant: usize, level: Level, keep_alive_s: u16, will: Option<usize>) -> Link {
        Link {
            client,
            tenant,
            abuser: None,
            is_silent: false,
            stage: Stage::Greeting,
            up: Vec::new(),
            arrived: Vec::new(),
            down: Vec::new(),
            taken: 0,
            seen: 0,
            paused: false,
            transmit: false,
            attached: true,
            up_ends: false,
            down_ends: false,
            level,
            keep_alive_s,
            will,
            home_at: 0,
            epoch: 0,
            resumed: false,
            connack_seen: false,
            heard_at_ms: 0,
            closing: false,
            has_fetched: false,
            is_refused: false,
            granted: BTreeMap::new(),
            filters: BTreeSet::new(),
        }
    }

    /// The server's socket reads up to `bytes`.
    pub fn carry_up(&mut self, link: usize, bytes: usize) -> bool {
        let l = &mut self.links[link];
        match l.stage {
            Stage::Gone => {
                let had = !l.up.is_empty();
                l.up.clear();
                had
            }
            Stage::Greeting => {
                if bytes == 0 {
                    if l.up_ends && l.up.is_empty() {
                        self.server_end(link);
                        return true;
                    }
                    return false;
                }
                l.arrived.extend(l.up.drain(..bytes));
                self.greet(link);
                true
            }
            Stage::Handoff { .. } => {
                self.come_home(link);
                true
            }
            Stage::Home { .. } => {
                if l.paused {
                    return false;
                }
                if bytes == 0 && l.up.is_empty() && l.up_ends {
                    if self.present(link) > 0 {
                        return true;
                    }
                    self.event(1, link as u64, || format!("link {link}: the client's end is closed"));
                    self.server_end(link);
                    return true;
                }
                if bytes == 0 && l.arrived.is_empty() {
                    return false;
                }
                l.arrived.extend(l.up.drain(..bytes));
                self.present(link) > 0 || bytes > 0
            }
        }
    }

    /// User name and password of a client of this account.
    pub fn login(&self, tenant: usize) -> Option<(String, String)> {
        let platform = self.platform.as_ref()?;
        let account = &platform.tenants[tenant].account;
        Some((account.user_id.to_string(), account.device_token.as_str().to_owned()))
    }

    /// The rules as some core knows them.
    fn access_of(&self, core: usize) -> Access {
        match &self.platform {
            None => Access::Open,
            Some(platform) => Access::Platform(Arc::clone(&platform.told[core])),
        }
    }

    /// Who is let in by a core is of an account that the core knows, with its token, and not suspended.
    fn check_may_come(&self, connect: &Connect, account: AccountId, core: usize) {
        let Some(platform) = &self.platform else { return };
        let known = platform.told[core].tenant(account).map(|known| &known.account);
        let known = known.expect("a connection of no account is let in");
        assert!(!known.is_suspended, "a connection of a suspended account is let in");
        assert_eq!(
            (connect.user_name.as_deref(), connect.password.as_deref()),
            (Some(&*known.user_id), Some(known.device_token.as_str().as_bytes())),
            "a connection with another token is let in"
        );
    }

    /// CONNACK with a code other than 0, and the end.
    fn refuse(&mut self, link: usize, code: ConnectReturnCode) {
        self.event(19, link as u64, || format!("link {link}: refused, {code:?}"));
        encode::connack(&mut self.links[link].down, false, code);
        self.server_end(link);
    }

    fn greet(&mut self, link: usize) {
        let acceptor = self.random.below(self.shards.len());
        let access = self.access_of(acceptor);
        let l = &mut self.links[link];
        match greet(&l.arrived, || Identity::Claimed, &access, 65_535, || "fresh".to_owned()) {
            Greeting::Incomplete => {}
            Greeting::Accepted {
                connect,
                account,
                consumed,
            } => {
                l.arrived.drain(..consumed);
                self.check_may_come(&connect, account, acceptor);
                let l = &mut self.links[link];
                let home = self.shards[0].home(account, &connect.client_id).0 as usize;
                assert!(
                    self.shards
                        .iter()
                        .all(|shard| shard.home(account, &connect.client_id).0 as usize == home),
                    "every core names the same home"
                );
                l.stage = Stage::Handoff {
                    connect,
                    account,
                    version: access.version(),
                    home,
                };
                self.event(2, link as u64, || {
                    format!("link {link}: CONNECT accepted, home is core {home}")
                });
            }
            // A client's account may be suspended, or its token another by now: see what the client makes of it.
            Greeting::Refused(code) if self.platform.is_some() || l.abuser.is_some() => self.refuse(link, code),
            Greeting::Malformed(_) if l.abuser.is_some() => self.server_end(link),
            Greeting::Refused(code) => panic!("a CONNECT by the rules was refused: {code:?}"),
            Greeting::Malformed(error) => panic!("a CONNECT by the rules was malformed: {error:?}"),
        }
    }

    fn come_home(&mut self, link: usize) {
        let stage = std::mem::replace(&mut self.links[link].stage, Stage::Gone);
        let Stage::Handoff {
            connect,
            account,
            version,
            home,
        } = stage
        else {
            unreachable!("only a link on its way comes home");
        };
        let access = self.access_of(home);
        if version < access.version()
            && let Err(code) = access.authenticate(&connect)
        {
            return self.refuse(link, code);
        }
        if version < access.version() {
            self.check_may_come(&connect, account, home);
        }
        let clean_session = connect.clean_session;
        let is_refused = self.is_beyond_bounds(link, home, clean_session);
        self.links[link].is_refused = is_refused;
        let places = &mut self.places[home];
        let index = places.free.pop().unwrap_or_else(|| {
            places.links.push(None);
            places.generations.push(0);
            places.links.len() as u32 - 1
        });
        places.generations[index as usize] += 1;
        places.links[index as usize] = Some(link);
        let id = ConnectionId {
            index,
            generation: places.generations[index as usize],
        };
        let l = &mut self.links[link];
        l.stage = Stage::Home { core: home, id };
        l.heard_at_ms = self.now_ms;
        l.home_at = self.moment;
        let client = l.client;
        if l.abuser.is_some() || is_refused {
            let words = if is_refused { ", and is refused" } else { "" };
            self.event(3, link as u64, || {
                format!("link {link}: comes home to core {home}{words}")
            });
        } else {
            self.links[link].resumed = self.oracle.came_home(client, link, clean_session, self.now_ms);
            self.links[link].epoch = self.oracle.sessions[client].epoch;
            let resumed = self.links[link].resumed;
            self.event(3, link as u64, || {
                format!(
                    "link {link}: client {client} comes home to core {home}, clean {clean_session}, resumed {resumed}"
                )
            });
        }
        let input = Input::Connected {
            connection: id,
            connect,
            account,
        };
        self.handle(home, input);
        self.drain(home);
        assert!(
            !is_refused || !self.links[link].is_home(),
            "link {link} is served, and its account has no room for it"
        );
        self.present(link);
    }

    /// Presents what has been read to the shard.
    fn present(&mut self, link: usize) -> usize {
        let l = &mut self.links[link];
        let Stage::Home { core, id } = l.stage else { return 0 };
        if l.paused || l.arrived.is_empty() {
            return 0;
        }
        let bytes = std::mem::take(&mut l.arrived);
        let input = Input::Received {
            connection: id,
            bytes: &bytes,
        };
        let consumed = self.handle(core, input);
        assert!(consumed <= bytes.len(), "no more is consumed than was presented");
        if consumed > 0 {
            self.links[link].heard_at_ms = self.now_ms;
        }
        self.event(4, (link as u64) << 32 | consumed as u64, || {
            format!("link {link}: core {core} consumes {consumed} of {} bytes", bytes.len())
        });
        let mut read = &bytes[..consumed];
        while let Ok(Framing::Whole(frame)) = next_frame(read, PACKET_BYTES_MAX) {
            read = &read[frame.len..];
            let Ok(packet) = decode(frame, self.links[link].level) else {
                break;
            };
            if self.links[link].abuser.is_none() {
                self.oracle.server_consumed(self.links[link].client, &packet);
            }
            self.server_subscribes(link, core, &packet);
            if packet == Packet::Disconnect {
                break;
            }
        }
        // A pause may leave whole packets; without one the rest is less than a packet.
        self.links[link].arrived = bytes;
        self.links[link].arrived.drain(..consumed);
        self.drain(core);
        let l = &self.links[link];
        if !l.paused && matches!(l.stage, Stage::Home { .. }) {
            let rest = next_frame(&l.arrived, PACKET_BYTES_MAX);
            assert!(matches!(rest, Ok(Framing::Missing(_))), "whole packets are consumed");
        }
        consumed
    }

    /// The server's socket takes up to `bytes` of the outbox.
    pub fn flush(&mut self, link: usize, bytes: usize) -> bool {
        let l = &mut self.links[link];
        let Stage::Home { core, id } = l.stage else {
            return false;
        };
        if !l.transmit {
            return false;
        }
        let room = if l.attached {
            self.profile.down_max.saturating_sub(l.down.len())
        } else {
            0
        };
        let unsent = self.shards[core].unsent(id);
        let count = bytes.min(room).min(unsent.len());
        l.down.extend_from_slice(&unsent[..count]);
        l.taken += count as u64;
        if count == unsent.len() {
            l.transmit = false;
        }
        if count == 0 {
            return false;
        }
        self.event(5, (link as u64) << 32 | count as u64, || {
            format!("link {link}: the socket takes {count} bytes")
        });
        let input = Input::Sent {
            connection: id,
            bytes: count,
        };
        self.handle(core, input);
        self.drain(core);
        true
    }

    /// The client reads up to `bytes`.
    pub fn carry_down(&mut self, link: usize, bytes: usize) -> bool {
        let l = &mut self.links[link];
        if !l.attached {
            return false;
        }
        if l.down.is_empty() && l.down_ends {
            match self.links[link].abuser {
                None => self.client_sees_end(link),
                Some(_) => {
                    self.links[link].attached = false;
                    self.bury(link);
                }
            }
            return true;
        }
        if bytes == 0 {
            return false;
        }
        let read: Vec<u8> = l.down.drain(..bytes).collect();
        if l.abuser.is_none() {
            self.client_reads(link, &read);
        }
        true
    }

    /// The network loses a connection: what is on its way is gone, both ends hear of it.
    pub fn reset(&mut self, link: usize) {
        self.event(6, link as u64, || format!("link {link}: reset"));
        self.met.resets += 1;
        let l = &mut self.links[link];
        l.up.clear();
        l.down.clear();
        l.up_ends = true;
        l.down_ends = true;
        if matches!(l.stage, Stage::Greeting | Stage::Home { .. }) {
            self.server_end(link);
        }
        self.bury(link);
    }

    /// The server's socket is closed.
    fn server_end(&mut self, link: usize) {
        let stage = std::mem::replace(&mut self.links[link].stage, Stage::Gone);
        self.links[link].down_ends = true;
        self.links[link].up.clear();
        if let Stage::Home { core, id } = stage {
            if !self.links[link].closing {
                self.end_session_connection(link, false);
            }
            self.handle(core, Input::Disconnected { connection: id });
            self.places[core].links[id.index as usize] = None;
            self.places[core].free.push(id.index);
            self.drain(core);
        }
        self.bury(link);
    }

    fn end_session_connection(&mut self, link: usize, graceful: bool) {
        let l = &self.links[link];
        if l.abuser.is_some() || l.is_refused {
            return;
        }
        self.oracle
            .connection_ended(l.client, link, l.will, graceful, (self.moment, self.now_ms));
    }

    /// Forgets a link that has no end left.
    pub fn bury(&mut self, link: usize) {
        let l = &self.links[link];
        if matches!(l.stage, Stage::Gone) && !l.attached {
            self.live.retain(|live| *live != link);
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
            if let Some((message, _)) = carried(&message)
                && let Some(number) = message_number(message.payload)
            {
                self.oracle.in_rings(number, 1);
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
            if let Some((message, origin)) = carried(&message) {
                self.met.in_doubt_again += u64::from(origin.is_some_and(|doubt| doubt.is_again));
                if let Some(number) = message_number(message.payload) {
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

/// The published message that one between cores carries.
fn carried<'m>(message: &ShardMessage<'m>) -> Option<(Message<'m>, Option<Doubt>)> {
    match message {
        ShardMessage::Publish { published, .. } => Some((published.message, published.origin)),
        ShardMessage::Deliver { message, origin, .. } => Some((*message, *origin)),
        _ => None,
    }
}

fn brief(message: &ShardMessage<'_>) -> String {
    match message {
        ShardMessage::Publish { receipt, published } => {
            let message = &published.message;
            format!(
                "Publish m{:?} {} {receipt:?}",
                message_number(message.payload),
                message.topic.as_str()
            )
        }
        ShardMessage::Deliver { receipt, message, .. } => {
            format!(
                "Deliver m{:?} {} {receipt:?}",
                message_number(message.payload),
                message.topic.as_str()
            )
        }
        ShardMessage::Retained { scan, message } => {
            format!(
                "Retained m{:?} {} {scan:?}",
                message_number(message.payload),
                message.topic.as_str()
            )
        }
        other => format!("{other:?}"),
    }
}

fn brief_record(record: &Record) -> String {
    match record {
        Record::Queued {
            message,
            entries,
            origin,
        } => {
            let entries: Vec<_> = entries.iter().map(|entry| (entry.session.0, entry.sequence)).collect();
            format!(
                "Queued m{:?} {} for {entries:?}, {origin:?}",
                message_number(message.payload()),
                message.topic(),
            )
        }
        Record::Retained { topic, payload, .. } => format!("Retained m{:?} {topic}", message_number(payload)),
        Record::Datapoint(datapoint) => format!(
            "Datapoint m{:?} {:?} {}",
            crate::platform::stored_message(&datapoint.row),
            datapoint.channel,
            datapoint.id.to_hex()
        ),
        other => format!("{other:?}"),
    }
}

fn brief_fetched(fetched: &Fetched) -> String {
    let Fetched::Queue(window) = fetched else {
        return format!("{fetched:?}");
    };
    let entries = window.entries.iter().map(|entry| {
        let released = if entry.released { " released" } else { "" };
        format!(
            "{} m{:?}{released}",
            entry.sequence,
            message_number(entry.message.payload())
        )
    });
    let entries: Vec<String> = entries.collect();
    let end = if window.is_end { ", the end" } else { "" };
    format!("read for {:?}: {}{end}", window.session, entries.join(", "))
}
