//! One run, from its seed to its end: steps, then rest, and what must hold there.
//!
//! Called  by `main` and `simulate`; calls `world` for the steps, `workload` for what clients do at the end, `oracle` for
//!         what must hold.
//! Holds   - a run depends on its seed, and on what overrides it, alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use skein::metrics::Counters;
use skein::mqtt::packet::QoS;
use skein::shard::Millis;

use crate::met::Met;
use crate::oracle::Seen;
use crate::overrides::Overrides;
use crate::world::{LOG, World};

/// What a run amounts to, or many.
#[derive(Default)]
pub struct Outcome {
    pub hash: u64,
    pub steps: usize,
    pub messages: usize,
    pub deliveries: u64,
    pub missing: u64,
    pub counters: Counters,
    pub met: Met,
}

impl Outcome {
    /// Whatever the order of runs, the sum is the same.
    pub fn add(&mut self, other: &Outcome) {
        self.hash = self.hash.wrapping_add(other.hash);
        self.steps += other.steps;
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.missing += other.missing;
        self.counters.add(&other.counters);
        self.met.add(&other.met);
    }
}

/// An assertion that did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    pub message: String,
    /// File and line: what tells one assertion from another.
    pub place: String,
}

pub fn run(seed: u64, overrides: &Overrides) -> Outcome {
    let mut world = World::new(seed, overrides);
    for _ in 0..world.profile.steps {
        world.step();
    }
    for _ in 0..world.random.below(world.profile.crashes_at_end_max + 1) {
        settle_for_a_while(&mut world);
        world.crash();
    }
    settle(&mut world);
    check_at_rest(&mut world);
    if world.profile.crashes_at_end_max > 0 && world.random.percent(50) {
        // Nothing was on its way: nothing may be lost.
        world.crash();
        settle(&mut world);
        check_at_rest(&mut world);
    }
    check_retained(&mut world);
    everybody_leaves(&mut world);
    Outcome {
        hash: world.hash,
        steps: world.profile.steps,
        messages: world.oracle.messages.len(),
        deliveries: world.oracle.deliveries,
        missing: world.oracle.missing + world.oracle.missing_qos0,
        counters: counters(&world),
        met: Met {
            commits_failed: world.disk.failures,
            fetches: world.disk.fetches,
            fetches_retained: world.disk.fetches_retained,
            happened: world.happened,
            ..world.met
        },
    }
}

/// Of all runs of the broker.
fn counters(world: &World) -> Counters {
    let mut counters = world.counters.clone();
    world.shards.iter().for_each(|shard| counters.add(shard.counters()));
    counters
}

fn settle_for_a_while(world: &mut World) {
    for _ in 0..world.random.below(10) {
        if !world.settle_once() {
            return;
        }
    }
}

fn settle(world: &mut World) {
    let mut rounds = 0;
    // Sockets that hold a few bytes would take as many rounds as there are bytes.
    world.profile.down_max = usize::MAX;
    while world.settle_once() || world.wait_for_held_back() {
        rounds += 1;
        assert!(rounds < 100_000, "it does not come to rest");
    }
    for (core, shard) in world.shards.iter().enumerate() {
        assert!(
            shard.is_quiescent(),
            "core {core} waits for something that does not come"
        );
    }
    for (number, client) in world.clients.iter().enumerate() {
        assert!(
            client.link.is_none() || client.ready && client.is_at_rest(),
            "client {number} waits in vain: {}",
            client.waits_for()
        );
    }
}

fn check_at_rest(world: &mut World) {
    world.check_deliveries();
    world.check_streams();
    world.check_usage();
    world.check_past();
    world.check_ledger();
    let counters = counters(world);
    // Behind what must be read back first, QoS 0 gives way.
    if world.profile.ample_queue && !world.oracle.has_met_durable() {
        assert_eq!(counters.dropped_queue_full, 0, "no queue could fill");
    }
    if world.profile.ample_outbox {
        assert_eq!(counters.dropped_outbox_full, 0, "no outbox could fill");
    }
    let oracle = &world.oracle;
    assert!(
        oracle.missing <= counters.dropped_queue_full,
        "{} are missing, {counters:?}",
        oracle.missing
    );
    assert!(
        oracle.missing + oracle.missing_qos0 <= counters.dropped_queue_full + counters.dropped_outbox_full,
        "{} and {} of QoS 0 are missing, {counters:?}",
        oracle.missing,
        oracle.missing_qos0
    );
    if world.profile.ample_queue && world.profile.ample_outbox {
        world.check_retained_seen();
    }
    let sequences: Vec<&Seen> = world
        .oracle
        .seen
        .iter()
        .chain(world.clients.iter().map(|client| &client.seen))
        .collect();
    world.oracle.check_order(&sequences, |link| world.links[link].home_at);
    let open = world.clients.iter().filter(|client| client.link.is_some()).count();
    let served: usize = world.shards.iter().map(|shard| shard.connection_count()).sum();
    assert_eq!(served, open, "connections");
    let there: usize = world.shards.iter().map(|shard| shard.session_count()).sum();
    assert_eq!(there, world.oracle.session_count(), "Sessions");
    let known: u64 = world.shards.iter().map(|shard| shard.report().devices_now).sum();
    assert_eq!(known as usize, world.disk.stored(0).devices.len(), "devices");
}

/// A fresh subscriber gets the last retained message of every topic of its account's.
fn check_retained(world: &mut World) {
    let expected = world.oracle.retained();
    let kept: usize = world.shards.iter().map(|shard| shard.retained_count()).sum();
    assert_eq!(kept, expected.len(), "retained messages");
    world
        .oracle
        .check_retained_is_newest(&expected, |number| world.route(number));
    // The first client of each account.
    for client in 0..world.profile.tenants.max(1) {
        // Without subscriptions it does not come back by itself.
        world.clients[client].subscriptions.clear();
        world.disconnect(client);
        settle(world);
        world.connect(client, Some(true));
        let tenant = world.clients[client].tenant;
        let everything = world.oracle.topics.everything(tenant).into_iter();
        let everything: Vec<_> = everything.map(|filter| (filter, QoS::ExactlyOnce)).collect();
        world.subscribe_to(client, &everything);
        settle(world);
        let mut own = expected.clone();
        own.retain(|topic, _| world.oracle.topics.purposes[*topic].tenant() == tenant);
        let got: &BTreeMap<usize, usize> = &world.clients[client].retained_seen;
        if world.profile.ample_queue && world.profile.ample_outbox {
            assert_eq!(*got, own, "retained messages by topic");
        } else {
            let wrong = got.iter().find(|(topic, message)| own.get(topic) != Some(message));
            assert_eq!(wrong, None, "a retained message that is not the last of its topic");
        }
    }
}

/// Everybody goes, half by DISCONNECT and, where there is a Keep Alive, half by falling silent; then every Session is
/// ended. Nothing may be left.
fn everybody_leaves(world: &mut World) {
    // Those with a durable Session would come back.
    for client in 0..world.clients.len() {
        world.clients[client].subscriptions.clear();
    }
    for client in 0..world.clients.len() {
        if !world.profile.keep_alive || client % 2 == 0 {
            world.disconnect(client);
        }
    }
    settle(world);
    let mut rounds = 0;
    while let Some(Millis(due)) = world.shards.iter().filter_map(|shard| shard.next_deadline()).min() {
        let late_ms = world
            .live
            .iter()
            .filter_map(|link| world.silence_overdue_ms(*link))
            .max();
        assert!(
            late_ms.unwrap_or(0) <= 500,
            "a silent connection is {late_ms:?} ms over its time [MQTT-3.1.2-24]"
        );
        let now = world.now_ms - world.started_ms;
        world.pass_time(due.saturating_sub(now).max(1));
        rounds += 1;
        assert!(rounds < 100_000, "a deadline does not pass");
    }
    settle(world);
    for client in 0..world.clients.len() {
        assert!(world.clients[client].link.is_none(), "client {client} is gone");
        world.connect(client, Some(true));
    }
    settle(world);
    for client in 0..world.clients.len() {
        world.disconnect(client);
    }
    settle(world);
    for (core, shard) in world.shards.iter().enumerate() {
        assert_eq!(shard.connection_count(), 0, "core {core}");
        assert_eq!(shard.session_count(), 0, "core {core}");
        assert_eq!(shard.filter_count(), 0, "core {core}");
    }
    world.check_ledger();
    world.check_usage();
}

thread_local! {
    /// While a run is tried: where its panic ends up instead of on stderr.
    static TRIED: RefCell<Option<Option<Failure>>> = const { RefCell::new(None) };
}

/// Runs a seed without a word on stderr.
pub fn attempt(seed: u64, overrides: &Overrides) -> Result<Outcome, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_tried = TRIED.with(|tried| {
                let mut tried = tried.borrow_mut();
                if let Some(failure) = &mut *tried {
                    let message = panic.payload_as_str().unwrap_or("for a reason it does not say");
                    let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line()));
                    *failure = Some(Failure {
                        message: message.to_owned(),
                        place: place.unwrap_or_default(),
                    });
                }
                tried.is_some()
            });
            if !is_tried {
                before(panic);
            }
        }));
    });
    TRIED.with(|tried| *tried.borrow_mut() = Some(None));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, overrides)));
    let failure = TRIED.with(|tried| tried.borrow_mut().take()).flatten();
    outcome.map_err(|_| failure.expect("a panic passes the hook"))
}

/// The last events of a run, in words.
pub fn trace(seed: u64, overrides: &Overrides, events: usize) -> Vec<String> {
    LOG.with(|log| *log.borrow_mut() = Some(VecDeque::with_capacity(events)));
    let _ = attempt(seed, overrides);
    LOG.with(|log| log.borrow_mut().take()).unwrap_or_default().into()
}
