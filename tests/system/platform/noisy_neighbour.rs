//! One account does all it can to be a nuisance; another goes on as if it were alone.
//!
//! Called  in every run with what does not depend on the host's speed: what of the flood is let through is bounded by time, and
//!         the neighbour's messages all come, in their order. That they come in the same turn of a core is a test of the shard
//!         (`shard::quota_tests`). How long they take is measured by hand, with a CPU for all clients, as if they were on other
//!         hosts, and the rest for the broker: `cargo test --release --test system timed_beside_a_flood -- --ignored --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, available_parallelism, scope, sleep};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::cpus::{Awake, keep_process_to, keep_to, step_back, step_forward};
use super::fixture::{Account, LIFTED, Platform};
use super::quotas::counted;
use super::rest::Line;
use crate::raw::{Raw, publish};

const RATE: u64 = 200;
const BOUNDS: [&str; 10] = [
    "--account-publish-rate",
    "200",
    "--account-connections",
    "24",
    "--account-sessions",
    "10",
    "--account-subscriptions",
    "100",
    "--account-message-storage",
    "1 MiB",
];

/// Connections that send as fast as they are read, at QoS 0 and 1, small and large payloads, a topic that many subscribe to.
/// Its threads take what CPU time is left, since another account's clients are on other hosts.
struct Flood {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Floods so far: what an earlier one has sent and was not read yet must not meet the subscribers of a later one.
static FLOODS: AtomicUsize = AtomicUsize::new(0);

impl Flood {
    fn of(platform: &Platform, index: usize) -> Flood {
        let account = platform.account(index).clone();
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let fan = format!("fan/{}", FLOODS.fetch_add(1, Ordering::Relaxed));
        for n in 0..8 {
            let mut subscriber = platform.client(index, &format!("sub-{n}"));
            subscriber.subscribe(&account.topic(&format!("{fan}/#")), (n % 2) as u8);
            threads.push(drain(subscriber.writer(), &is_over));
        }
        for n in 0..12u8 {
            let sender = platform.client(index, &format!("pub-{n}"));
            let payload = vec![b'x'; if n % 3 == 0 { 8_192 } else { 64 }];
            let packets: Vec<u8> = (1..=50)
                .flat_map(|id| publish(&account.topic(&format!("{fan}/out")), n % 2, id, &payload))
                .collect();
            let (mut socket, is_over_too) = (sender.writer(), Arc::clone(&is_over));
            threads.push(drain(sender.writer(), &is_over));
            threads.push(step_back(move || {
                socket.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                let mut at = 0;
                while !is_over_too.load(Ordering::Relaxed) {
                    // Whole packets, wherever a full socket has cut them.
                    match socket.write(&packets[at..]) {
                        Ok(count) => at = (at + count) % packets.len(),
                        Err(error) if is_passing(&error) => {}
                        Err(_) => break,
                    }
                }
                // What is on its way is not to be read: the next flood begins when this one is over.
                set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
                drop(sender);
            }));
        }
        // Connects beyond the bound, and subscribes beyond it.
        let (port, is_over_too, greedy) = (platform.broker().port, Arc::clone(&is_over), account.clone());
        threads.push(step_back(move || {
            let mut round = 0;
            while !is_over_too.load(Ordering::Relaxed) {
                round += 1;
                let mut held = Vec::new();
                for n in 0..6 {
                    held.extend(Raw::open(port, &greedy.connect(&format!("more-{n}")).packet()).ok());
                }
                for (n, client) in held.iter_mut().enumerate() {
                    let filters: Vec<String> = (0..60).map(|f| greedy.topic(&format!("{round}/{n}/{f}"))).collect();
                    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
                    client.granted(&filters);
                }
                sleep(Duration::from_millis(20));
            }
        }));
        // Calls, each on a connection of its own. Not by curl: to start a process keeps a CPU from everybody for milliseconds.
        for _ in 0..8 {
            let (port, token) = (platform.broker().api_port(), account.api_token.clone());
            let is_over = Arc::clone(&is_over);
            threads.push(step_back(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut line = Line::open(port, &[("X-APITOKEN", &token)]).unwrap();
                    line.call("GET", "/v2/device", &[], "");
                }
            }));
        }
        Flood { is_over, threads }
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn drain(mut socket: TcpStream, is_over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let is_over = Arc::clone(is_over);
    step_back(move || {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut bytes = vec![0; 64 * 1024];
        while !is_over.load(Ordering::Relaxed) {
            match socket.read(&mut bytes) {
                Ok(0) => return,
                Err(error) if !is_passing(&error) => return,
                _ => {}
            }
        }
    })
}

/// Nothing to read or no room for now, or a process that another thread has started has ended.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Two clients of one account, one message at a time, QoS 1 both ways.
struct Pair {
    account: Account,
    from: Raw,
    to: Raw,
    sent: u32,
}

impl Pair {
    fn of(platform: &Platform, index: usize) -> Pair {
        let account = platform.account(index).clone();
        let mut to = platform.client(index, "to");
        to.subscribe(&account.topic("m"), 1);
        Pair {
            from: platform.client(index, "from"),
            to,
            account,
            sent: 0,
        }
    }

    /// One message there, acknowledged, and the time it took.
    fn exchange(&mut self) -> Duration {
        self.sent += 1;
        let text = self.sent.to_string();
        let began = Instant::now();
        let id = 1 + (self.sent % 60_000) as u16;
        self.from
            .send(&publish(&self.account.topic("m"), 1, id, text.as_bytes()));
        let (_, payload, _) = self.to.message();
        let took = began.elapsed();
        assert_eq!(payload, text.as_bytes(), "in order, none lost, none twice");
        self.from.packet();
        took
    }
}

#[test]
fn a_flood_is_held_to_its_bounds_and_the_neighbours_messages_all_come() {
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 2, &BOUNDS);
        let mut pair = Pair::of(&platform, 1);
        let began = Instant::now();
        let flood = Flood::of(&platform, 0);
        while began.elapsed() < Duration::from_secs(2) || pair.sent < 100 {
            pair.exchange();
            sleep(Duration::from_millis(2));
        }
        flood.end();
        let sent = u64::from(pair.sent);
        let log = platform.stop();
        // Since it had begun; the bound is exact, so a slow host can only make less of it.
        let most = RATE + RATE * began.elapsed().as_millis() as u64 / 1_000 + 1;
        let published = counted(&log, "publishes_qos0") + counted(&log, "publishes_qos1") - sent;
        assert!(published <= most, "{published} of {most} at most");
        assert!(published >= RATE, "what was saved up at least: {published}");
        for name in [
            "held_back_account_rate",
            "refused_account_connections",
            "refused_account_subscriptions",
        ] {
            assert!(counted(&log, name) > 0, "{name}");
        }
        assert_eq!(
            counted(&log, "matched") + counted(&log, "queued_restored"),
            [
                "delivered_qos0",
                "delivered_qos1",
                "delivered_qos2",
                "queued_now",
                "expired"
            ]
            .into_iter()
            .chain([
                "dropped_outbox_full",
                "dropped_queue_full",
                "dropped_away",
                "dropped_session_ended"
            ])
            .chain(["dropped_damaged"])
            .map(|name| counted(&log, name))
            .sum::<u64>(),
            "{log}"
        );
    }
}

/// A flood of calls takes the time that messages leave.
#[test]
fn the_threads_of_the_api_step_back_before_the_cores() {
    let platform = Platform::start_with(2, 1, &LIFTED);
    platform.api(0).get("/v2/device");
    let tasks = format!("/proc/{}/task", platform.broker().pid());
    let mut nice_of = BTreeMap::new();
    for task in fs::read_dir(tasks).unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap();
        let stat = fs::read_to_string(task.join("stat")).unwrap();
        // proc(5): the 19th field, the second ending with a parenthesis.
        let nice: i32 = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .nth(16)
            .unwrap()
            .parse()
            .unwrap();
        nice_of.insert(name.trim_end().to_owned(), nice);
    }
    let own = rustix::process::getpriority_process(None).unwrap();
    assert!(nice_of["http"] > own, "{nice_of:?}");
    assert_eq!((nice_of["core-0"], nice_of["core-1"]), (own, own), "{nice_of:?}");
}

/// Windows with and without the flood in turn; medians of their p99.
#[test]
#[ignore = "it measures time: by hand, on a host that does nothing else, --release"]
fn timed_beside_a_flood_the_neighbour_takes_no_quarter_longer() {
    const ROUNDS: usize = 5;
    // The neighbour stays below its own bound: what that holds back is not the flood's doing.
    const PAUSE: Duration = Duration::from_millis(1_250 / RATE);
    // The neighbour's clients are on another host than the flood's: here they go before those.
    let window = |pair: &mut Pair| {
        let mut took: Vec<Duration> = scope(|threads| {
            let exchanges = threads.spawn(|| {
                if !step_forward() {
                    println!("the neighbour's clients wait for CPUs as others do: this user may not put them first");
                }
                let one = |_| {
                    sleep(PAUSE);
                    pair.exchange()
                };
                (0..1_000).map(one).collect()
            });
            exchanges.join().unwrap()
        });
        took.sort_unstable();
        [took[500], took[990]]
    };
    let median = |values: &mut Vec<Duration>| {
        values.sort_unstable();
        values[values.len() / 2]
    };
    // Clients are on other hosts. Here that is the last CPU, and the others are the broker's.
    let last = available_parallelism().unwrap().get() - 1;
    assert!(last > 0, "it takes two CPUs");
    let mut ratio = [0.0; 2];
    for (which, bounds) in [(0, &BOUNDS[..]), (1, &LIFTED[..])] {
        for cores in BTreeSet::from([1, last.min(4) as u16]) {
            let mut platform = Platform::start_with(cores, 2, bounds);
            keep_process_to(&format!("0-{}", last - 1), platform.broker().pid());
            keep_to(&last.to_string());
            let awake = Awake::keep(last + 1);
            let mut pair = Pair::of(&platform, 1);
            window(&mut pair);
            let [mut alone_p50, mut alone_p99, mut beside_p50, mut beside_p99] = [const { Vec::new() }; 4];
            for _ in 0..ROUNDS {
                let [p50, p99] = window(&mut pair);
                alone_p50.push(p50);
                alone_p99.push(p99);
                let flood = Flood::of(&platform, 0);
                let [p50, p99] = window(&mut pair);
                beside_p50.push(p50);
                beside_p99.push(p99);
                flood.end();
            }
            let [p50, p99, p50_beside, p99_beside] =
                [&mut alone_p50, &mut alone_p99, &mut beside_p50, &mut beside_p99].map(median);
            let ratios = p99_beside.as_secs_f64() / p99.as_secs_f64();
            println!(
                "{} cores, bounds {}: p50 {p50:?}, beside the flood {p50_beside:?}; p99 {p99:?}, {p99_beside:?}: x {ratios:.2}",
                cores,
                which == 0
            );
            ratio[which] = ratios.max(ratio[which]);
            drop(awake);
            platform.stop();
            keep_to(&format!("0-{last}"));
        }
    }
    assert!(ratio[0] < 1.25, "{ratio:?}");
}
