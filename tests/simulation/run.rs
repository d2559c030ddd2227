//! One run, from its seed to its end: steps, then rest, and what must hold there.
//!
//! Called  by `main`; calls `world` for the steps, `workload` for what clients do at the end, `oracle` for what must hold.
//! Holds   - a run depends on its seed alone.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use skein::metrics::Counters;
use skein::mqtt::packet::QoS;
use skein::shard::Millis;

use crate::oracle::Seen;
use crate::world::{LOG, Met, World};

/// What a run amounts to.
#[derive(Default)]
pub struct Outcome {
    pub hash: u64,
    pub messages: usize,
    pub deliveries: u64,
    pub missing: u64,
    pub counters: Counters,
    pub met: Met,
}

pub fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
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
        let everything = world.oracle.everything(tenant);
        world.subscribe_to(client, &[(everything, QoS::ExactlyOnce)]);
        settle(world);
        let mut own = expected.clone();
        own.retain(|topic, _| world.oracle.purposes[*topic].tenant() == tenant);
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

/// Runs a seed; a failure is played again with its events in words.
pub fn run_reported(seed: u64) -> Result<Outcome, String> {
    let why = match catch_unwind(|| run(seed)) {
        Ok(outcome) => return Ok(outcome),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("for a reason it does not say").to_owned()
        }
    };
    let events: usize =
        std::env::var("SKEIN_EVENTS").map_or(40, |count| count.parse().expect("SKEIN_EVENTS is a number"));
    LOG.with(|log| *log.borrow_mut() = Some(VecDeque::with_capacity(events)));
    let _ = catch_unwind(AssertUnwindSafe(|| run(seed)));
    let events = LOG.with(|log| log.borrow_mut().take()).unwrap_or_default();
    let events: Vec<String> = events.into();
    let replay = format!("SKEIN_SEEDS={seed}..{} cargo test --test simulation seeds", seed + 1);
    Err(format!(
        "seed {seed} fails; its last events:\n{}\nseed {seed}: {why}\nreplay: {replay}",
        events.join("\n")
    ))
}
