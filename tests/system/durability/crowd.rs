//! Clients that live through many deaths of the broker, and what each of them was told and has got.
//!
//! Owns    the process of `clients/crash.py`: any number of paho-mqtt clients that come back by themselves.
//! Called  by the kill loops and whoever else lets a broker die under a crowd.
//! Holds   - events are taken in the order the clients saw them;
//!         - a client that says of itself that it is broken fails the test;
//!         - [`Crowd::trace`] has the latest of what a client saw, for whoever has to understand a failure.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::broker::patience;
use crate::clients::INSTALL;

/// Events of each client that are kept for the report of a failure.
const TRACE_MAX: usize = 5_000;
/// Of those, how many are printed.
const SHOWN_MAX: usize = 60;

/// What a publisher does while it is not paused.
#[derive(Clone, Debug)]
pub struct Publishing {
    pub topics: Vec<String>,
    pub qos: u8,
    pub retain: bool,
    /// Messages it leaves unacknowledged at a time.
    pub window: u16,
    pub per_second: u32,
    /// Bytes after the number of a message: one of these.
    pub padding: Vec<u32>,
    /// One in so many messages is empty. 0: none.
    pub clear_every: u32,
}

/// Who a client is.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub name: String,
    pub is_clean: bool,
    /// User name and password.
    pub user: Option<(String, String)>,
    pub filters: Vec<(String, u8)>,
    pub publishing: Option<Publishing>,
    /// Filters it subscribes to, at QoS 1, and leaves again, at random.
    pub toggled: Vec<String>,
    pub keep_alive_s: u16,
}

impl Part {
    pub fn new(name: &str) -> Part {
        Part {
            name: name.to_owned(),
            keep_alive_s: 60,
            ..Part::default()
        }
    }

    pub fn keep_alive(self, keep_alive_s: u16) -> Part {
        Part { keep_alive_s, ..self }
    }

    pub fn user(self, name: &str, password: &str) -> Part {
        Part {
            user: Some((name.into(), password.into())),
            ..self
        }
    }

    pub fn clean(self) -> Part {
        Part { is_clean: true, ..self }
    }

    pub fn subscribes(self, filters: &[&str], qos: u8) -> Part {
        Part {
            filters: filters.iter().map(|filter| (filter.to_string(), qos)).collect(),
            ..self
        }
    }

    pub fn publishes(self, publishing: Publishing) -> Part {
        Part {
            publishing: Some(publishing),
            ..self
        }
    }
}

/// A message as a client got it; `number` is `None` for an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub number: Option<u32>,
    pub qos: u8,
    pub retain: bool,
}

/// What is certain of a filter that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Acknowledged,
    Left,
    /// Asked for, not answered.
    Unknown,
}

#[derive(Debug)]
pub struct Member {
    pub part: Part,
    pub is_connected: bool,
    pub is_away: bool,
    /// Something of its Session was acknowledged: a later CONNACK says Session Present.
    is_kept: bool,
    pub connects: u32,
    pub subscribed: u32,
    /// By topic, in order.
    pub arrivals: BTreeMap<String, Vec<Arrival>>,
    /// By topic: numbers that were acknowledged, in that order.
    pub acknowledged: BTreeMap<String, Vec<u32>>,
    /// By topic: messages published so far. Known when it is idle.
    pub issued: BTreeMap<String, u32>,
    /// By topic: whether the last message was not empty. Known when it is idle.
    pub last_is_full: BTreeMap<String, bool>,
    pub held: BTreeMap<String, Held>,
    is_idle: bool,
    trace: VecDeque<String>,
}

pub struct Crowd {
    process: Child,
    commands: ChildStdin,
    events: Receiver<Value>,
    /// Where they connect to.
    address: (String, u16),
    seed: u64,
    pub members: BTreeMap<String, Member>,
    began: Instant,
    /// Topics and numbers, since they were last taken.
    fresh: Vec<(String, u32)>,
}

impl Crowd {
    pub fn start(port: u16, seed: u64) -> Crowd {
        Crowd::start_from(&[], "127.0.0.1", port, seed)
    }

    /// The same, started by another program: words that are put before the command.
    pub fn start_from(launcher: &[String], host: &str, port: u16, seed: u64) -> Crowd {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".venv/bin/python");
        assert!(python.exists(), "paho-mqtt is not installed: {INSTALL}");
        let words = [launcher, &[python.display().to_string()]].concat();
        let mut process = Command::new(&words[0])
            .args(&words[1..])
            .arg(root.join("tests/system/clients/crash.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, events) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    break;
                }
            }
        });
        Crowd {
            commands: process.stdin.take().unwrap(),
            process,
            events,
            address: (host.to_owned(), port),
            seed,
            members: BTreeMap::new(),
            began: Instant::now(),
            fresh: Vec::new(),
        }
    }

    fn tell(&mut self, name: &str, what: &str, mut command: Value) {
        command["client"] = name.into();
        command["do"] = what.into();
        writeln!(self.commands, "{command}").unwrap();
    }

    /// It connects, and goes on doing so. Its publishing begins with [`Crowd::resume`].
    pub fn join(&mut self, part: Part) {
        let publish = part.publishing.as_ref().map(|publishing| {
            json!({
                "topics": publishing.topics, "qos": publishing.qos, "retain": publishing.retain,
                "window": publishing.window, "per_second": publishing.per_second, "padding": publishing.padding,
                "clear_every": publishing.clear_every,
            })
        });
        let toggle = (!part.toggled.is_empty()).then(|| json!({"filters": part.toggled, "qos": 1, "per_second": 20}));
        let command = json!({
            "address": self.address, "keep_alive_s": part.keep_alive_s, "id": part.name, "clean": part.is_clean, "user": part.user, "subscribe": part.filters, "publish": publish,
            "toggle": toggle, "seed": self.seed.wrapping_add(self.members.len() as u64) % (1 << 53),
        });
        let name = part.name.clone();
        self.members.insert(name.clone(), Member::new(part));
        self.tell(&name, "start", command);
    }

    pub fn go_away(&mut self, name: &str) {
        self.member(name).is_away = true;
        self.tell(name, "away", json!({}));
    }

    pub fn come_back(&mut self, name: &str) {
        self.member(name).is_away = false;
        self.tell(name, "back", json!({}));
    }

    /// Every publisher, and whoever toggles.
    pub fn resume(&mut self) {
        for name in self.active() {
            self.member(&name).is_idle = false;
            self.tell(&name, "resume", json!({}));
        }
    }

    /// The same, until all they have begun is acknowledged.
    pub fn pause(&mut self) {
        for name in self.active() {
            self.tell(&name, "pause", json!({}));
        }
        self.wait_until("all that was published is acknowledged", |crowd| {
            crowd.members.values().all(|member| member.is_idle)
        });
    }

    fn active(&self) -> Vec<String> {
        let active = |part: &Part| part.publishing.is_some() || !part.toggled.is_empty();
        let members = self.members.values();
        members
            .filter(|member| active(&member.part))
            .map(|member| member.part.name.clone())
            .collect()
    }

    fn member(&mut self, name: &str) -> &mut Member {
        self.members.get_mut(name).unwrap()
    }

    /// Takes in what happens for so long.
    pub fn watch(&mut self, span: Duration) {
        let until = Instant::now() + span;
        while self.take_in(until.saturating_duration_since(Instant::now())) {}
    }

    /// Takes events in until this is so. Gives up when nothing has happened for a long time, or after a much longer one.
    pub fn wait_until(&mut self, what: &str, is_so: impl Fn(&Crowd) -> bool) {
        let began = Instant::now();
        let mut latest = began;
        while !is_so(self) {
            if self.take_in(Duration::from_millis(20)) {
                latest = Instant::now();
            }
            assert!(
                latest.elapsed() < patience(Duration::from_secs(20))
                    && began.elapsed() < patience(Duration::from_secs(90)),
                "waited in vain: {what}\n{}",
                self.traces()
            );
        }
    }

    /// One event, or false after `wait`.
    pub fn take_in(&mut self, wait: Duration) -> bool {
        let event = match self.events.recv_timeout(wait) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => panic!("crash.py has ended"),
        };
        let name = event[0].as_str().unwrap();
        let at = self.began.elapsed();
        let member = self.members.get_mut(name).unwrap();
        member.note(format!("{:9.3} {event}", at.as_secs_f32()));
        if event[1] == "acknowledged" {
            let number = event[3].as_u64().unwrap() as u32;
            self.fresh.push((event[2].as_str().unwrap().to_owned(), number));
        }
        if let Err(problem) = member.take_in(&event) {
            panic!("{name}: {problem}\n{}", self.trace(name));
        }
        true
    }

    /// What was acknowledged since the last call: topics and numbers.
    pub fn take_acknowledged(&mut self) -> Vec<(String, u32)> {
        std::mem::take(&mut self.fresh)
    }

    pub fn trace(&self, name: &str) -> String {
        let mut text = format!(
            "the latest of {name}, more of it and of the others in {}:\n",
            self.dump()
        );
        let trace = &self.members[name].trace;
        for line in trace.iter().skip(trace.len().saturating_sub(SHOWN_MAX)) {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    /// Writes down all that is known of everybody, in the order it happened, and says where.
    fn dump(&self) -> String {
        let mut lines: Vec<_> = self.members.values().flat_map(|member| &member.trace).collect();
        lines.sort();
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crowd.{}.log", self.address.1));
        let lines: Vec<_> = lines.into_iter().map(String::as_str).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        path.display().to_string()
    }

    fn traces(&self) -> String {
        let traces = self.members.keys().map(|name| self.trace(name));
        traces.collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Fails where it has ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Member {
    pub fn new(part: Part) -> Member {
        Member {
            is_connected: false,
            is_away: false,
            is_kept: false,
            connects: 0,
            subscribed: 0,
            arrivals: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            issued: BTreeMap::new(),
            last_is_full: BTreeMap::new(),
            held: part.toggled.iter().map(|filter| (filter.clone(), Held::Left)).collect(),
            is_idle: true,
            trace: VecDeque::new(),
            part,
        }
    }

    fn note(&mut self, line: String) {
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    fn take_in(&mut self, event: &Value) -> Result<(), String> {
        let text = |index: usize| event[index].as_str().unwrap().to_owned();
        match event[1].as_str().unwrap() {
            "connected" => {
                self.is_connected = true;
                self.connects += 1;
                let is_present = event[2].as_bool().unwrap();
                if self.part.is_clean && is_present {
                    return Err("Session Present in spite of Clean Session [MQTT-3.2.2-1]".into());
                }
                if self.is_kept && !is_present {
                    return Err("no Session Present, though it was acknowledged what the Session holds".into());
                }
            }
            "closed" => {
                self.is_connected = false;
                self.subscribed = 0;
            }
            "away" | "log" => {}
            "subscribing" | "unsubscribing" => drop(self.held.insert(text(2), Held::Unknown)),
            "subscribed" => {
                self.is_kept = !self.part.is_clean;
                self.subscribed += 1;
                for filter in event[2].as_array().unwrap() {
                    let filter = filter.as_str().unwrap();
                    if let Some(held) = self.held.get_mut(filter) {
                        *held = Held::Acknowledged;
                    }
                }
            }
            "unsubscribed" => drop(self.held.insert(text(2), Held::Left)),
            "message" => {
                let label = event[3].as_str().unwrap();
                let number = match label {
                    "" => None,
                    label => Some(label.parse().map_err(|_| format!("a payload nobody sent: {event}"))?),
                };
                self.arrive(
                    &text(2),
                    Arrival {
                        number,
                        qos: event[4].as_u64().unwrap() as u8,
                        retain: event[5].as_bool().unwrap(),
                    },
                );
            }
            "acknowledged" => {
                let number = event[3].as_u64().unwrap() as u32;
                self.acknowledged.entry(text(2)).or_default().push(number);
                // The identifier of a QoS 2 message is kept with the Session, before PUBREC.
                if self
                    .part
                    .publishing
                    .as_ref()
                    .is_some_and(|publishing| publishing.qos == 2)
                {
                    self.is_kept = !self.part.is_clean;
                }
            }
            "idle" => {
                self.is_idle = true;
                let by_topic = |value: &Value| value.as_object().unwrap().clone().into_iter();
                self.issued = by_topic(&event[2])
                    .map(|(topic, count)| (topic, count.as_u64().unwrap() as u32))
                    .collect();
                self.last_is_full = by_topic(&event[3])
                    .map(|(topic, is_full)| (topic, is_full.as_bool().unwrap()))
                    .collect();
            }
            _ => return Err(format!("the client is broken: {event}")),
        }
        Ok(())
    }

    pub fn arrive(&mut self, topic: &str, arrival: Arrival) {
        self.arrivals.entry(topic.to_owned()).or_default().push(arrival);
    }
}
