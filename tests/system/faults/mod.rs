//! What hosts, networks, disks and clients do to a broker, done to the real binary: it is stopped and continued, its network
//! loses and holds back, its disk is slow, full or read-only, its memory and its descriptors run out, its clock jumps, and
//! clients come in crowds that read nothing, say nothing or all return at once.
//!
//! Owns    [`Traffic`]: publishers and subscribers of every QoS who come back by themselves, and the comparison at rest.
//! Holds   - whoever was subscribed gets every acknowledged message;
//!         - from a durable publisher at QoS 2 to a durable Session at QoS 2, once;
//!         - of one publisher and topic, the first arrivals are in order;
//!         - every test ends with the ledger of its broker in balance.
//!
//! `SKEIN_FAULT_CLIENTS` and `SKEIN_STORM_CLIENTS` set the numbers of `crowds` and `storm`, `SKEIN_FAULT_SEED` repeats the choices
//! of `network`.

mod clock;
mod crowds;
mod descriptors;
mod memory;
mod namespace;
mod network;
mod pause;
mod relay;
mod storage;
mod storm;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::patience;
use crate::durability::crowd::{Crowd, Part, Publishing};

/// No queue may overflow while its subscriber is cut off: what is dropped is another test's matter.
const ROOMY: [&str; 4] = ["--max-queued", "1000000", "--max-queued-bytes", "1 GiB"];
/// After all that must come has come: time for what must not.
const SETTLE: Duration = Duration::from_millis(400);
/// Of one publisher.
const TOPICS: usize = 3;
/// Durable subscribers, to all topics, each at this QoS.
const SUBSCRIBERS: [(&str, u8); 2] = [("stayer 1", 1), ("stayer 2", 2)];
/// Publishers, each at this QoS.
const PUBLISHERS: [(&str, u8); 3] = [("zero", 0), ("one", 1), ("two", 2)];

/// paho-mqtt clients under a fault.
struct Traffic {
    crowd: Crowd,
    compared: usize,
}

impl Traffic {
    /// All are subscribed, the publishers publish.
    fn start(mut crowd: Crowd, keep_alive_s: u16) -> Traffic {
        let filters = ["load/#"];
        for (name, qos) in SUBSCRIBERS {
            crowd.join(Part::new(name).subscribes(&filters, qos).keep_alive(keep_alive_s));
        }
        let bystander = Part::new("bystander").clean().subscribes(&filters, 0);
        crowd.join(bystander.keep_alive(keep_alive_s));
        crowd.wait_until("everybody is subscribed", |crowd| {
            crowd.members.values().all(|member| member.subscribed > 0)
        });
        for (name, qos) in PUBLISHERS {
            let part = Part {
                is_clean: qos == 0,
                ..Part::new(name).keep_alive(keep_alive_s)
            };
            crowd.join(part.publishes(Publishing {
                topics: (0..TOPICS).map(|n| format!("load/{name}/{n}")).collect(),
                qos,
                retain: false,
                window: 8,
                per_second: 60,
                padding: vec![0, 20, 700],
                clear_every: 0,
            }));
        }
        crowd.wait_until("everybody is connected", |crowd| {
            crowd.members.values().all(|member| member.is_connected)
        });
        crowd.resume();
        Traffic { crowd, compared: 0 }
    }

    /// What everybody has connected, together.
    fn connects(&self) -> u32 {
        self.crowd.members.values().map(|member| member.connects).sum()
    }

    /// Everything is over and all is well again: the publishers stop, what they have begun is acknowledged, and compared with
    /// what has come; then they go on.
    fn compare(&mut self, after: &str) {
        self.crowd.pause();
        let mut published = BTreeMap::new();
        for (name, qos) in PUBLISHERS {
            for (topic, count) in &self.crowd.members[name].issued {
                published.insert(topic.clone(), (qos, *count));
            }
        }
        let began = Instant::now();
        loop {
            let missing = self.missing(&published);
            let Some(first) = missing.first() else { break };
            if began.elapsed() > patience(Duration::from_secs(20)) {
                let name = first.split(':').next().unwrap();
                let trace = self.crowd.trace(name);
                panic!("{after}: {} are missing, such as {first}\n{trace}", missing.len());
            }
            self.crowd.watch(Duration::from_millis(50));
        }
        self.crowd.watch(SETTLE);
        for (name, granted) in SUBSCRIBERS {
            for (topic, numbers) in self.arrivals(name) {
                let (qos, _) = published[&topic];
                self.compared += numbers.len();
                let mut seen = BTreeSet::new();
                let firsts: Vec<_> = numbers.iter().filter(|number| seen.insert(**number)).collect();
                let problem = if !firsts.is_sorted() {
                    "out of order"
                } else if qos.min(granted) != 1 && firsts.len() != numbers.len() {
                    "doubled"
                } else {
                    continue;
                };
                let trace = self.crowd.trace(name);
                panic!("{after}: {name}: {topic}: {problem}: {numbers:?}\n{trace}");
            }
        }
        self.crowd.resume();
    }

    /// Messages at QoS 1 and 2 that were published and have not come to a durable subscriber.
    fn missing(&self, published: &BTreeMap<String, (u8, u32)>) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, _) in SUBSCRIBERS {
            let arrivals = self.arrivals(name);
            for (topic, (qos, count)) in published {
                let got: BTreeSet<u32> = arrivals.get(topic).into_iter().flatten().copied().collect();
                let lacking = (0..*count).filter(|number| *qos > 0 && !got.contains(number));
                missing.extend(lacking.map(|number| format!("{name}: {topic} number {number}")));
            }
        }
        missing
    }

    /// By topic, the numbers that came.
    fn arrivals(&self, name: &str) -> BTreeMap<String, Vec<u32>> {
        let arrivals = self.crowd.members[name].arrivals.iter();
        let numbers = arrivals.map(|(topic, arrivals)| {
            let numbers = arrivals.iter().filter_map(|arrival| arrival.number).collect();
            (topic.clone(), numbers)
        });
        numbers.collect()
    }
}

/// Where tools for the network are that not everybody has in their path.
const PATH: &str = "PATH=$PATH:/usr/sbin:/sbin;";

/// A process that holds namespaces open, and does nothing.
struct Holder {
    process: Child,
}

impl Holder {
    /// `script` runs in the namespaces first. The reason where they cannot be had.
    fn start(command: &[&str], script: &str) -> Result<Holder, String> {
        let script = format!("{PATH} {script} && echo ready && exec cat >&2");
        let mut process = Command::new(command[0])
            .args(&command[1..])
            .args(["sh", "-ec", &script])
            // Ends with this process, however that ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", command[0]))?;
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        if line == "ready\n" {
            return Ok(Holder { process });
        }
        let output = process.wait_with_output().unwrap();
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Words before a command that is to run in its namespaces of these kinds.
    fn enter(&self, kinds: &str) -> Vec<String> {
        let pid = self.process.id();
        let words = format!("nsenter --preserve-credentials -t {pid} -U {kinds}");
        words.split(' ').map(str::to_owned).collect()
    }

    /// A script in them, which has to succeed.
    fn run(&self, kinds: &str, script: &str) {
        self.try_run(kinds, script)
            .unwrap_or_else(|problem| panic!("{script}: {problem}"));
    }

    fn try_run(&self, kinds: &str, script: &str) -> Result<(), String> {
        let words = self.enter(kinds);
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["sh", "-ec", &format!("{PATH} {script}")])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Fails where it has ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// From this variable of the environment, or `default`.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}
