//! The kill loop: other people's clients publish, subscribe, go away and come back, while the broker is killed at random
//! instants and started again on the same directory, with 1 or 4 cores by turns.
//!
//! Method: publishers number their messages per topic. Every few rounds the broker is left alone: the publishers stop, what
//!         they still wait for is acknowledged, whoever is not away gets what is theirs, and then everything is compared.
//!         A client sends again what was not acknowledged, so at rest each number was acknowledged, most of them before a
//!         kill.
//! Holds   - whoever was subscribed gets every acknowledged message;
//!         - from a durable publisher at QoS 2 to a durable Session at QoS 2, once;
//!         - of one publisher and topic, the first arrivals are in order;
//!         - the retained message of a topic is the last one acknowledged;
//!         - a filter is subscribed after its SUBACK, and no more after its UNSUBACK;
//!         - Session Present says what is so (`crowd`).
//!
//! `SKEIN_KILL_ROUNDS` sets the number of rounds, `SKEIN_KILL_SEED` repeats the choices of a run (what the clients and the
//! scheduler do with them differs).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::crowd::{Arrival, Crowd, Held, Member, Part, Publishing};
use super::{assert_balanced, counters, seed};
use crate::broker::{Broker, Site, patience};
use crate::clients::{INSTALL, MosquittoSub};
use crate::power_cut::Random;

/// Rounds from one rest to the next.
const ROUNDS_TO_REST: u32 = 5;
/// No queue may overflow while its subscriber is away: what is dropped is another test's matter.
const ROOMY: [&str; 4] = ["--max-queued", "10000000", "--max-queued-bytes", "8 GiB"];
/// After all that must come has come: time for what must not.
const SETTLE: Duration = Duration::from_millis(400);

#[test]
fn what_is_acknowledged_survives_kills_at_any_instant() {
    let rounds = rounds(50);
    kill_loop("fsync", rounds);
}

#[test]
fn what_is_acknowledged_survives_kills_without_fsync() {
    let rounds = rounds(50) * 3 / 10;
    kill_loop("process", rounds);
}

fn rounds(default: u32) -> u32 {
    std::env::var("SKEIN_KILL_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}

/// One `mosquitto_pub` per message, each time with the same Client Identifier and Packet Identifier: it knows nothing of
/// the one before it. Where that one has left a QoS 2 message unfinished it takes another Client Identifier, since under the
/// same one the broker has to take its message for the unfinished one [MQTT-4.3.3-2].
struct Postman {
    topic: String,
    qos: u8,
    is_paused: Arc<AtomicBool>,
    is_ended: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Sent>>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy)]
struct Sent {
    is_acknowledged: bool,
    /// It publishes again on a connection that it makes again.
    copies: u32,
}

impl Postman {
    fn start(port: u16, qos: u8) -> Postman {
        let is_paused = Arc::new(AtomicBool::new(true));
        let is_ended = Arc::new(AtomicBool::new(false));
        let sent: Arc<Mutex<Vec<Sent>>> = Arc::default();
        let topic = format!("load/postman/{qos}");
        let thread = thread::spawn({
            let (is_paused, is_ended) = (Arc::clone(&is_paused), Arc::clone(&is_ended));
            let (sent, topic) = (Arc::clone(&sent), topic.clone());
            move || {
                let mut generation = 0;
                while !is_ended.load(Ordering::Relaxed) {
                    if is_paused.load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(20));
                        continue;
                    }
                    // Held while it is under way: whoever locks it after a pause finds it at rest.
                    let mut sent = sent.lock().unwrap();
                    let client = format!("postman {qos} {generation}");
                    let one = post(port, &client, &topic, qos, sent.len());
                    sent.push(one);
                    if qos == 2 && !one.is_acknowledged {
                        generation += 1;
                    }
                    drop(sent);
                    sleep(Duration::from_millis(50));
                }
            }
        });
        Postman {
            topic,
            qos,
            is_paused,
            is_ended,
            sent,
            thread: Some(thread),
        }
    }

    fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }
}

impl Drop for Postman {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if !thread::panicking() {
            self.thread.take().unwrap().join().unwrap();
        }
    }
}

fn post(port: u16, client: &str, topic: &str, qos: u8, number: usize) -> Sent {
    let mut command = Command::new("timeout");
    command.args([
        "60",
        "mosquitto_pub",
        "-d",
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-c",
    ]);
    let message = format!("{number} from a command");
    command.args(["-i", client, "-q", &qos.to_string(), "-t", topic, "-m", &message]);
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("mosquitto_pub cannot be started ({error}): {INSTALL}"));
    let code = output.status.code();
    assert!(code != Some(127), "mosquitto_pub cannot be started: {INSTALL}");
    let written = String::from_utf8_lossy(&output.stdout);
    Sent {
        is_acknowledged: code == Some(0),
        copies: written.matches("sending PUBLISH (d0").count() as u32,
    }
}

/// The messages of one publisher to one topic, as far as it has come.
struct Published {
    topic: String,
    qos: u8,
    /// Who sends again with the identifier of the first time, on the same Session.
    is_durable: bool,
    sent: Vec<Sent>,
}

impl Published {
    fn is_required(&self, number: u32) -> bool {
        self.sent[number as usize].is_acknowledged
    }
}

/// A durable subscriber as the checks see it.
#[derive(Default)]
struct Ledger {
    /// By topic: numbers below this have been checked.
    base: BTreeMap<String, u32>,
}

struct Scene {
    site: Site,
    arguments: Vec<&'static str>,
    crowd: Crowd,
    /// Durable, and never away by their own will.
    commands: Vec<(Member, MosquittoSub)>,
    postmen: Vec<Postman>,
    ledgers: BTreeMap<String, Ledger>,
    probes: u32,
    story: Vec<String>,
    checked_messages: u64,
}

fn topics(of: &str, count: u32) -> Vec<String> {
    (0..count).map(|n| format!("{of}/{n}")).collect()
}

fn load(of: &str, qos: u8, window: u16, padding: &[u32]) -> Publishing {
    Publishing {
        topics: topics(&format!("load/{of}"), 4),
        qos,
        retain: false,
        window,
        per_second: 60,
        padding: padding.to_vec(),
        clear_every: 0,
    }
}

fn retained(of: &str, qos: u8) -> Publishing {
    Publishing {
        topics: topics(&format!("kept/{of}"), 40),
        retain: true,
        per_second: 30,
        clear_every: 8,
        ..load(of, qos, 6, &[0, 40, 3000])
    }
}

const COMERS: [&str; 3] = ["comer 1", "comer 2", "comer 2 exact"];

fn kill_loop(durability: &'static str, rounds: u32) {
    let seed = seed("SKEIN_KILL_SEED");
    let began = Instant::now();
    eprintln!("--durability {durability}, {rounds} rounds, SKEIN_KILL_SEED={seed}");
    let mut random = Random::new(seed);
    let site = Site::new();
    let arguments = [&["--durability", durability], &ROOMY[..]].concat();
    let mut broker = site.start(1, &arguments);
    let mut crowd = Crowd::start(site.port(), seed);

    for part in [
        Part::new("stayer 1").subscribes(&["load/#"], 1),
        Part::new("stayer 2").subscribes(&["load/#"], 2),
        Part::new(COMERS[0]).subscribes(&["load/+/+"], 1),
        Part::new(COMERS[1]).subscribes(&["load/#"], 2),
        Part::new(COMERS[2]).subscribes(&["load/two/0", "load/two/3", "load/large/1", "load/one/2"], 2),
        Part::new("bystander").clean().subscribes(&["load/#", "kept/#"], 1),
        Part {
            toggled: topics("toggled", 10),
            ..Part::new("toggler")
        },
        Part::new("one").publishes(load("one", 1, 8, &[0, 10, 300])),
        Part::new("two").publishes(load("two", 2, 8, &[0, 10, 300])),
        Part::new("large").publishes(load("large", 2, 20, &[0, 2_000, 30_000])),
        Part::new("clean").clean().publishes(load("clean", 1, 8, &[5])),
        Part::new("keeper 1").publishes(retained("one", 1)),
        Part::new("keeper 2").publishes(retained("two", 2)),
        Part::new("onlooker").clean().subscribes(&["kept/#"], 2),
    ] {
        crowd.join(part);
    }
    crowd.wait_until("everybody is subscribed", |crowd| {
        let mut members = crowd.members.values();
        members.all(|member| member.is_connected && (member.part.filters.is_empty() || member.subscribed > 0))
    });
    crowd.go_away("onlooker");
    let commands = [1, 2].map(|qos| {
        let (name, qos_text) = (format!("command {qos}"), qos.to_string());
        let sub = ["-c", "-i", &name, "-q", &qos_text, "-t", "load/#"];
        let sub = MosquittoSub::start(&broker, &sub);
        (Member::new(Part::new(&name).subscribes(&["load/#"], qos)), sub)
    });
    let mut scene = Scene {
        postmen: [1, 2].map(|qos| Postman::start(site.port(), qos)).into(),
        ledgers: BTreeMap::new(),
        site,
        arguments,
        crowd,
        commands: commands.into(),
        probes: 0,
        story: Vec::new(),
        checked_messages: 0,
    };
    scene.go_on();

    for round in 0..rounds {
        for name in COMERS {
            match scene.crowd.members[name].is_away {
                true if random.below(4) == 0 => scene.crowd.come_back(name),
                false if random.below(3) == 0 => scene.crowd.go_away(name),
                _ => {}
            }
        }
        let lived = Duration::from_millis(random.below(1500) as u64);
        scene.crowd.watch(lived);
        match random.below(6) {
            0 => scene.stop(broker, &format!("after {lived:?}")),
            _ => scene.kill(broker, &format!("after {lived:?}")),
        }
        // Sometimes it dies on its way up.
        if random.below(4) == 0 {
            let lived = Duration::from_millis(random.below(150) as u64);
            let unborn = scene.site.launch(cores(round + 1), &scene.arguments);
            scene.crowd.watch(lived);
            scene.kill(unborn, &format!("{lived:?} after its process began"));
        }
        if random.below(4) == 0 {
            scene.crowd.watch(Duration::from_millis(random.below(300) as u64));
        }
        scene.story.push(format!("round {round}: {} cores", cores(round)));
        broker = scene.site.start(cores(round), &scene.arguments);
        if round % ROUNDS_TO_REST == ROUNDS_TO_REST - 1 {
            scene.rest();
            scene.go_on();
        }
    }
    for name in COMERS {
        scene.crowd.come_back(name);
    }
    scene.rest();
    let report = format!(
        "--durability {durability}, {rounds} rounds: {} deliveries compared, in {:.0?}",
        scene.checked_messages,
        began.elapsed()
    );
    scene.stop(broker, "at rest");
    eprintln!("{report}");
}

fn cores(round: u32) -> u16 {
    [4, 1][round as usize % 2]
}

impl Scene {
    fn kill(&mut self, broker: Broker, when: &str) {
        self.story.push(format!("killed {when}"));
        broker.kill();
    }

    /// SIGTERM in the middle of it all: nothing is lost either, and every match is accounted for.
    fn stop(&mut self, broker: Broker, when: &str) {
        self.story.push(format!("stopped {when}"));
        assert_balanced(&counters(&broker.stop()));
    }

    fn go_on(&mut self) {
        for postman in &self.postmen {
            postman.is_paused.store(false, Ordering::Relaxed);
        }
        self.crowd.resume();
    }

    /// Everybody stops, all is compared with all.
    fn rest(&mut self) {
        for postman in &self.postmen {
            postman.is_paused.store(true, Ordering::Relaxed);
        }
        self.crowd.pause();
        let published = self.published();
        let began = Instant::now();
        let mut latest = (began, 0);
        loop {
            self.crowd.watch(Duration::from_millis(50));
            let missing = self.missing(&published);
            if missing.is_empty() {
                break;
            }
            if missing.len() != latest.1 {
                latest = (Instant::now(), missing.len());
            }
            if latest.0.elapsed() > patience(Duration::from_secs(15)) {
                let shown = &missing[..missing.len().min(20)];
                self.fail(
                    &format!("{} are missing:\n  {}", missing.len(), shown.join("\n  ")),
                    &missing[0],
                );
            }
        }
        self.crowd.watch(SETTLE);
        self.compare(&published);
        self.compare_retained();
        self.compare_toggled();
    }

    fn published(&self) -> Vec<Published> {
        let mut published = Vec::new();
        for member in self.crowd.members.values() {
            let Some(publishing) = &member.part.publishing else {
                continue;
            };
            if publishing.retain {
                continue;
            }
            for (topic, count) in &member.issued {
                let acknowledged = member.acknowledged.get(topic).map_or(0, Vec::len);
                assert_eq!(acknowledged, *count as usize, "an idle publisher waits for nothing");
                published.push(Published {
                    topic: topic.clone(),
                    qos: publishing.qos,
                    is_durable: !member.part.is_clean,
                    sent: vec![
                        Sent {
                            is_acknowledged: true,
                            copies: 1
                        };
                        *count as usize
                    ],
                });
            }
        }
        for postman in &self.postmen {
            published.push(Published {
                topic: postman.topic.clone(),
                qos: postman.qos,
                is_durable: true,
                sent: postman.sent(),
            });
        }
        published
    }

    /// Those who have to have everything: durable, and here.
    fn subscribers(&self) -> Vec<&Member> {
        let members = self.crowd.members.values();
        let present =
            members.filter(|member| !member.part.is_clean && !member.part.filters.is_empty() && !member.is_away);
        present.chain(self.commands.iter().map(|(member, _)| member)).collect()
    }

    fn hear_commands(&mut self) {
        for (member, command) in &mut self.commands {
            for message in command.arrived() {
                let number = Some(message.label().parse().unwrap());
                let (qos, retain) = (message.qos, message.retain);
                member.arrive(&message.topic, Arrival { number, qos, retain });
            }
        }
    }

    fn missing(&mut self, published: &[Published]) -> Vec<String> {
        let mut missing = Vec::new();
        let ledgers = std::mem::take(&mut self.ledgers);
        self.hear_commands();
        let flows = |name: &str, topic: &str| {
            let mut commands = self.commands.iter();
            let command = commands.find(|(member, _)| member.part.name == name);
            command.map(|(_, command)| command.flows(topic))
        };
        for subscriber in self.subscribers() {
            let name = &subscriber.part.name;
            for published in published {
                if granted(&subscriber.part, &published.topic).is_none() {
                    continue;
                }
                let ledger = ledgers.get(name).and_then(|ledger| ledger.base.get(&published.topic));
                let base = ledger.copied().unwrap_or(0);
                let arrivals = subscriber.arrivals.get(&published.topic).map_or(&[][..], Vec::as_slice);
                let got: BTreeSet<u32> = arrivals.iter().filter_map(|arrival| arrival.number).collect();
                let numbers = (base..published.sent.len() as u32).filter(|number| published.is_required(*number));
                let lacking: Vec<_> = numbers.filter(|number| !got.contains(number)).collect();
                // What a command has received and not printed is known by the packets it has seen.
                let flows = flows(name, &published.topic).unwrap_or_default();
                if lacking.len() > flows.dropped + flows.displaced {
                    let lacking = lacking.iter();
                    missing.extend(lacking.map(|number| format!("{name}: {} number {number}", published.topic)));
                }
            }
        }
        self.ledgers = ledgers;
        missing
    }

    /// What has come is in order, at the right QoS, not doubled where it must not be; and is then forgotten.
    fn compare(&mut self, published: &[Published]) {
        let mut problems = Vec::new();
        let mut checked = 0;
        let mut ledgers = std::mem::take(&mut self.ledgers);
        self.hear_commands();
        for subscriber in self.subscribers() {
            let name = &subscriber.part.name;
            let is_command = self.commands.iter().any(|(member, _)| member.part.name == *name);
            for published in published {
                let Some(granted) = granted(&subscriber.part, &published.topic) else {
                    continue;
                };
                let ledger = ledgers.entry(name.clone()).or_default();
                let base = ledger.base.entry(published.topic.clone()).or_default();
                let arrivals = subscriber.arrivals.get(&published.topic).map_or(&[][..], Vec::as_slice);
                checked += arrivals.len() as u64;
                problems.extend(wrong(published, granted, *base, arrivals, is_command).map(|problem| {
                    let numbers: Vec<_> = arrivals.iter().filter_map(|arrival| arrival.number).collect();
                    format!(
                        "{name}: {}: {problem}; from {base} on came {numbers:?}",
                        published.topic
                    )
                }));
                *base = published.sent.len() as u32;
            }
            let known: BTreeSet<_> = published.iter().map(|published| &published.topic).collect();
            let unknown = subscriber.arrivals.keys().find(|topic| !known.contains(topic));
            problems.extend(unknown.map(|topic| format!("{name}: nobody published to {topic}")));
        }
        self.ledgers = ledgers;
        for (member, command) in &self.commands {
            for published in published.iter().filter(|published| published.is_durable) {
                let flows = command.flows(&published.topic);
                let most: u32 = published.sent.iter().map(|sent| sent.copies).sum();
                // By their number: a Session that a start finds with an empty queue counts its identifiers from 1 again.
                if flows.count > most as usize {
                    let (name, topic) = (&member.part.name, &published.topic);
                    problems.push(format!("{name}: {topic}: {flows:?} for {most} messages at QoS 2"));
                }
            }
        }
        self.commands
            .iter_mut()
            .for_each(|(_, command)| command.forget_unprinted());
        self.checked_messages += checked;
        if let Some(problem) = problems.first() {
            self.fail(&problems.join("\n"), &problem.clone());
        }
        let members = self.crowd.members.values_mut();
        for member in members.filter(|member| !member.is_away) {
            member.arrivals.clear();
        }
        for (member, _) in &mut self.commands {
            member.arrivals.clear();
        }
    }

    /// A fresh subscriber sees of each topic the last message, or none where that was empty.
    fn compare_retained(&mut self) {
        let mut expected = BTreeMap::new();
        for member in self.crowd.members.values() {
            let Some(publishing) = &member.part.publishing else {
                continue;
            };
            if publishing.retain {
                for (topic, _) in member.last_is_full.iter().filter(|(_, is_full)| **is_full) {
                    expected.insert(topic.clone(), member.issued[topic] - 1);
                }
            }
        }
        self.crowd.members.get_mut("onlooker").unwrap().arrivals.clear();
        self.crowd.come_back("onlooker");
        let got = |crowd: &Crowd| {
            let arrivals = crowd.members["onlooker"].arrivals.iter();
            arrivals
                .map(|(topic, arrivals)| (topic.clone(), arrivals[arrivals.len() - 1].number.unwrap_or(u32::MAX)))
                .collect::<BTreeMap<_, _>>()
        };
        let began = Instant::now();
        while got(&self.crowd) != expected && began.elapsed() < patience(Duration::from_secs(5)) {
            self.crowd.watch(Duration::from_millis(50));
        }
        self.crowd.watch(SETTLE);
        let got = got(&self.crowd);
        let differing = expected
            .keys()
            .chain(got.keys())
            .filter(|topic| expected.get(*topic) != got.get(*topic));
        let differing: BTreeSet<_> = differing
            .map(|topic| format!("{topic}: {:?} instead of {:?}", got.get(topic), expected.get(topic)))
            .collect();
        if !differing.is_empty() {
            self.fail(&format!("retained: {differing:#?}"), "onlooker:");
        }
        self.crowd.go_away("onlooker");
    }

    /// What is subscribed for certain gets a message, what is not gets none.
    fn compare_toggled(&mut self) {
        self.probes += 1;
        let number = self.probes;
        let held = self.crowd.members["toggler"].held.clone();
        self.crowd.members.get_mut("toggler").unwrap().arrivals.clear();
        for topic in held.keys() {
            let sent = post(self.site.port(), "prober", topic, 1, number as usize);
            assert!(sent.is_acknowledged, "a broker at rest takes a message to {topic}");
        }
        let is_there = |crowd: &Crowd, topic: &str| {
            let arrivals = crowd.members["toggler"].arrivals.get(topic);
            arrivals.is_some_and(|arrivals| arrivals.iter().any(|arrival| arrival.number == Some(number)))
        };
        let acknowledged = |held: &Held| *held == Held::Acknowledged;
        let began = Instant::now();
        while !held
            .iter()
            .all(|(topic, held)| !acknowledged(held) || is_there(&self.crowd, topic))
            && began.elapsed() < patience(Duration::from_secs(10))
        {
            self.crowd.watch(Duration::from_millis(50));
        }
        self.crowd.watch(SETTLE);
        for (topic, held) in &held {
            let is_there = is_there(&self.crowd, topic);
            match held {
                Held::Acknowledged if !is_there => {
                    self.fail(&format!("{topic}: the acknowledged subscription is gone"), "toggler:");
                }
                Held::Left if is_there => {
                    self.fail(&format!("{topic}: subscribed, in spite of an UNSUBACK"), "toggler:");
                }
                _ => {}
            }
        }
    }

    /// `about` begins with the name of who has seen it.
    fn fail(&self, problem: &str, about: &str) -> ! {
        let story = &self.story[self.story.len().saturating_sub(40)..];
        let name = about.split(':').next().unwrap();
        let mut commands = self.commands.iter();
        let trace = match commands.find(|(member, _)| member.part.name == name) {
            Some((_, command)) => {
                let whole = std::env::temp_dir().join(format!("skein-{}.log", name.replace(' ', "-")));
                std::fs::write(&whole, command.log().join("\n")).unwrap();
                let latest = command.log()[command.log().len().saturating_sub(200)..].join("\n");
                format!("all of it is in {}; the latest:\n{latest}\n", whole.display())
            }
            None if self.crowd.members.contains_key(name) => self.crowd.trace(name),
            None => String::new(),
        };
        panic!("{problem}\n{trace}what happened:\n  {}", story.join("\n  "));
    }
}

/// The QoS at which a topic is subscribed.
fn granted(part: &Part, topic: &str) -> Option<u8> {
    let covers = |filter: &str| {
        let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (one, other) if one == other => {}
                _ => return false,
            }
        }
    };
    part.filters
        .iter()
        .find(|(filter, _)| covers(filter))
        .map(|(_, qos)| *qos)
}

/// What is wrong with what a subscriber got of a topic, numbers below `base` having been checked before.
fn wrong(published: &Published, granted: u8, base: u32, arrivals: &[Arrival], is_command: bool) -> Option<String> {
    let mut copies: BTreeMap<u32, u32> = BTreeMap::new();
    let mut latest = None;
    for arrival in arrivals {
        let number = arrival.number?;
        if number as usize >= published.sent.len() {
            return Some(format!("number {number} was never published"));
        }
        if arrival.retain {
            return Some(format!("number {number} came as a retained message"));
        }
        if arrival.qos != published.qos.min(granted) {
            return Some(format!("number {number} came at QoS {}", arrival.qos));
        }
        let copies = copies.entry(number).or_default();
        *copies += 1;
        if *copies == 1 && number >= base {
            if latest > Some(number) {
                return Some(format!("number {number} came after {latest:?}"));
            }
            latest = Some(number);
        }
        let is_exact = arrival.qos == 2 && published.is_durable && !is_command;
        if is_exact && (number < base || *copies > published.sent[number as usize].copies) {
            return Some(format!("number {number} came more than once at QoS 2"));
        }
    }
    None
}
