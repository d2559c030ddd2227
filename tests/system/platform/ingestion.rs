//! Data on its way into the streams, while the broker is killed at random instants and started again with 1 or 4 cores by turns.
//!
//! Method: devices number their values. Some publish with paho-mqtt and come back by themselves, each with the Session it had
//!         (QoS 2) or one of any kind (QoS 1); some send by HTTP, and send a value again until it is answered. Every few
//!         rounds they stop, what they wait for is acknowledged, and every stream is read. Each device has a channel of its
//!         own, since a datapoint does not tell who sent it.
//! Holds   - every value that was acknowledged is in the stream: once at QoS 2;
//!         - of one device, first arrivals are in order, and ids and times only grow;
//!         - a device whose message was acknowledged is registered.
//!
//! `SKEIN_INGEST_ROUNDS` sets the number of rounds, `SKEIN_INGEST_SEED` repeats the choices of a run.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use super::fixture::{Account, LIFTED, Platform, values};
use super::rest::Line;
use crate::durability::crowd::{Crowd, Part, Publishing};
use crate::durability::seed;
use crate::power_cut::Random;

const ROUNDS_TO_REST: u32 = 5;
/// Devices with a channel each: those of QoS 1, of QoS 2, and those that send by HTTP, in this order.
const DEVICES_EACH: u32 = 3;
/// Devices that nobody has mapped: every one comes to be by its first message.
const STRANGERS: u32 = 200;

#[test]
fn what_is_acknowledged_is_in_the_stream_whenever_the_broker_is_killed() {
    kill_loop("fsync");
}

#[test]
fn what_is_acknowledged_is_in_the_stream_without_fsync() {
    kill_loop("process");
}

fn device(kind: &str, n: u32) -> String {
    format!("{kind}-{n}")
}

fn kill_loop(durability: &str) {
    let rounds = std::env::var("SKEIN_INGEST_ROUNDS").map_or(15, |rounds| rounds.parse().unwrap());
    let seed = seed("SKEIN_INGEST_SEED");
    eprintln!("--durability {durability}, {rounds} rounds, SKEIN_INGEST_SEED={seed}");
    let mut random = Random::new(seed);
    let flags = [&LIFTED[..], &["--durability", durability]].concat();
    let mut platform = Platform::start_with(1, 1, &flags);
    let account = platform.account(0).clone();
    for (channel, (kind, n)) in devices().enumerate() {
        platform.map(0, &device(kind, n), channel as u32);
    }
    let mut crowd = crowd(&platform, seed);
    let port = Arc::new(AtomicU16::new(platform.broker().api_port()));
    let senders: Vec<_> = (0..DEVICES_EACH).map(|n| Sender::start(&port, &account, n)).collect();
    let mut checked = 0;
    resume(&mut crowd, &senders);
    for round in 0..rounds {
        crowd.watch(Duration::from_millis(random.below(1200) as u64));
        port.store(0, Ordering::Relaxed);
        platform.kill();
        if random.below(4) == 0 {
            crowd.watch(Duration::from_millis(random.below(300) as u64));
        }
        platform.run([4, 1][round as usize % 2], &flags);
        port.store(platform.broker().api_port(), Ordering::Relaxed);
        if round % ROUNDS_TO_REST == ROUNDS_TO_REST - 1 || round + 1 == rounds {
            pause(&mut crowd, &senders);
            checked = compare(&platform, &crowd, &senders);
            resume(&mut crowd, &senders);
        }
    }
    pause(&mut crowd, &senders);
    platform.stop();
    assert!(checked > u64::from(rounds), "{checked} datapoints are hardly any");
    eprintln!("--durability {durability}, {rounds} rounds: {checked} datapoints compared");
}

fn devices() -> impl Iterator<Item = (&'static str, u32)> {
    let kinds = ["one", "two", "http"].into_iter();
    kinds.flat_map(|kind| (0..DEVICES_EACH).map(move |n| (kind, n)))
}

fn resume(crowd: &mut Crowd, senders: &[Sender]) {
    senders
        .iter()
        .for_each(|sender| sender.is_paused.store(false, Ordering::Relaxed));
    crowd.resume();
}

fn pause(crowd: &mut Crowd, senders: &[Sender]) {
    senders
        .iter()
        .for_each(|sender| sender.is_paused.store(true, Ordering::Relaxed));
    crowd.pause();
}

/// Three publishers: QoS 1, QoS 2 with a durable Session, and one that names a new device with almost every message.
fn crowd(platform: &Platform, seed: u64) -> Crowd {
    let account = platform.account(0);
    let mut crowd = Crowd::start(platform.site.port(), seed);
    let publishing = |topics: Vec<String>, qos: u8| Publishing {
        topics,
        qos,
        retain: false,
        window: 10,
        per_second: 150,
        padding: vec![0],
        clear_every: 0,
    };
    let topics = |kind: &str, count: u32| -> Vec<_> {
        (0..count)
            .map(|n| account.topic(&format!("json/{}", device(kind, n))))
            .collect()
    };
    for part in [
        Part::new("one").publishes(publishing(topics("one", DEVICES_EACH), 1)),
        Part::new("two").publishes(publishing(topics("two", DEVICES_EACH), 2)),
        Part::new("strangers")
            .clean()
            .publishes(publishing(topics("stranger", STRANGERS), 1)),
    ] {
        crowd.join(part.user(&account.user_id, &account.device_token));
    }
    crowd.wait_until("everybody is connected", |crowd| {
        crowd.members.values().all(|member| member.is_connected)
    });
    crowd
}

/// A device that sends by HTTP, one value after another, each until it is answered.
struct Sender {
    is_paused: Arc<AtomicBool>,
    is_ended: Arc<AtomicBool>,
    /// How many were answered with 200. Held while one is under way.
    answered: Arc<Mutex<u64>>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// `port`: where the API listens now, 0 while nobody does.
    fn start(port: &Arc<AtomicU16>, account: &Account, n: u32) -> Sender {
        let (is_paused, is_ended) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let answered: Arc<Mutex<u64>> = Arc::default();
        let thread = thread::spawn({
            let (is_paused, is_ended, answered) =
                (Arc::clone(&is_paused), Arc::clone(&is_ended), Arc::clone(&answered));
            let (port, token) = (Arc::clone(port), account.device_token.clone());
            move || {
                while !is_ended.load(Ordering::Relaxed) {
                    if is_paused.load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(10));
                        continue;
                    }
                    let mut answered = answered.lock().unwrap();
                    while !is_ended.load(Ordering::Relaxed) && !send(port.load(Ordering::Relaxed), &token, n, *answered)
                    {
                        sleep(Duration::from_millis(20));
                    }
                    *answered += 1;
                }
            }
        });
        Sender {
            is_paused,
            is_ended,
            answered,
            thread: Some(thread),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// Whether it was answered with 200.
fn send(port: u16, token: &str, n: u32, value: u64) -> bool {
    let id = device("http", n);
    let Ok(mut line) = Line::open(port, &[("X-DEVICETOKEN", token), ("X-DEVICEID", &id)]) else {
        return false;
    };
    match line.try_call("POST", "/post_v2/", &[], &value.to_string()) {
        Ok(reply) => {
            assert!(reply.status == 200 || reply.status >= 500, "{reply:?}");
            reply.status == 200
        }
        Err(_) => false,
    }
}

/// How many datapoints there are.
fn compare(platform: &Platform, crowd: &Crowd, senders: &[Sender]) -> u64 {
    let account = platform.account(0);
    let mut checked = 0;
    for (channel, (kind, n)) in devices().enumerate() {
        let name = device(kind, n);
        let numbers = numbers(platform, channel as u32, &name);
        let topic = account.topic(&format!("json/{name}"));
        let sent = match kind {
            "http" => *senders[n as usize].answered.lock().unwrap(),
            _ => {
                let member = &crowd.members[kind];
                let issued = member.issued.get(&topic).copied().unwrap_or(0);
                let acknowledged: BTreeSet<_> = member.acknowledged.get(&topic).into_iter().flatten().collect();
                assert_eq!(
                    acknowledged.len(),
                    issued as usize,
                    "{name}: an idle publisher waits for nothing"
                );
                u64::from(issued)
            }
        };
        let mut first = Vec::new();
        let mut seen = BTreeSet::new();
        for number in &numbers {
            if seen.insert(*number) {
                first.push(*number);
            }
        }
        let expected: Vec<_> = (0..sent).collect();
        if first != expected {
            let trace = if kind == "http" {
                String::new()
            } else {
                crowd.trace(kind)
            };
            let missing: Vec<_> = expected.iter().filter(|number| !seen.contains(number)).collect();
            panic!("{name}: {missing:?} of {sent} are missing, or the order is wrong: {numbers:?}\n{trace}");
        }
        if kind == "two" {
            assert_eq!(
                numbers.len(),
                first.len(),
                "{name}: more than once at QoS 2: {numbers:?}"
            );
        }
        checked += numbers.len() as u64;
    }
    let registered: BTreeSet<_> = platform.devices(0).into_iter().collect();
    for topic in crowd.members["strangers"].acknowledged.keys() {
        let (_, name) = topic.rsplit_once('/').unwrap();
        assert!(registered.contains(name), "{name} is not registered");
    }
    checked
}

/// All of a channel, which may be more than one answer holds.
fn numbers(platform: &Platform, channel: u32, name: &str) -> Vec<u64> {
    let stream = platform.stream(0, channel);
    let rows = stream["stream"].as_array().unwrap();
    assert!(rows.len() < 10_000, "{name}: fewer rounds, please");
    let ids: Vec<_> = rows.iter().map(|row| row["_id"].as_str().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{name}: ids grow");
    let times: Vec<_> = rows.iter().map(|row| row["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{name}: so do times");
    values(&stream)
        .iter()
        .map(|value| value["value1"].as_u64().unwrap_or_else(|| panic!("{name}: {value}")))
        .collect()
}
