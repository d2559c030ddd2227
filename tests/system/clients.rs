//! Other people's clients, so that our own reading of the standard is not its own judge: paho-mqtt and MQTT.js, each as
//! an agent that is told what to do line by line, and mosquitto_pub and mosquitto_sub as commands.
//!
//! Called by every theme of the system tests.
//! Holds  - a client that is not installed fails the test, with the command that installs it;
//!        - nothing is waited for without a limit, and what did not come is named;
//!        - every process started here is killed when its value is dropped.

use crate::broker::{Broker, Transport, patience};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

pub const INSTALL: &str = "run tests/setup, which installs what the tests need";

/// A message as a client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
}

impl Message {
    pub fn new(topic: &str, payload: impl AsRef<[u8]>, qos: u8, retain: bool) -> Message {
        Message {
            topic: topic.into(),
            payload: payload.as_ref().to_vec(),
            qos,
            retain,
        }
    }

    /// The payload up to its first space: what a burst numbers its messages with.
    pub fn label(&self) -> String {
        let end = self
            .payload
            .iter()
            .position(|&byte| byte == b' ')
            .unwrap_or(self.payload.len());
        String::from_utf8(self.payload[..end].to_vec()).unwrap()
    }
}

/// What a client says in its CONNECT.
#[derive(Clone, Debug)]
pub struct Hello {
    pub id: String,
    pub transport: Transport,
    pub clean: bool,
    pub level: u8,
    pub keep_alive: u16,
    /// User name and password.
    pub user: Option<(String, String)>,
    pub will: Option<Message>,
    /// QoS 1 and 2 messages paho leaves unacknowledged at a time.
    pub inflight: u16,
    /// Bytes of each payload that are reported.
    pub clip: usize,
}

pub fn hello(id: &str) -> Hello {
    Hello {
        id: id.into(),
        transport: Transport::Tcp,
        clean: true,
        level: 4,
        keep_alive: 60,
        user: None,
        will: None,
        inflight: 20,
        clip: usize::MAX >> 12,
    }
}

impl Hello {
    pub fn over(self, transport: Transport) -> Hello {
        Hello { transport, ..self }
    }

    pub fn durable(self) -> Hello {
        Hello { clean: false, ..self }
    }

    pub fn level(self, level: u8) -> Hello {
        Hello { level, ..self }
    }

    pub fn will(self, will: Message) -> Hello {
        Hello {
            will: Some(will),
            ..self
        }
    }

    pub fn user(self, name: &str, password: &str) -> Hello {
        Hello {
            user: Some((name.into(), password.into())),
            ..self
        }
    }

    pub fn keep_alive(self, keep_alive: u16) -> Hello {
        Hello { keep_alive, ..self }
    }

    pub fn inflight(self, inflight: u16) -> Hello {
        Hello { inflight, ..self }
    }

    pub fn clip(self, clip: usize) -> Hello {
        Hello { clip, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Paho,
    MqttJs,
}

pub const LIBRARIES: [Library; 2] = [Library::Paho, Library::MqttJs];

/// One process with any number of clients of one library, each with a name of the test's choice.
pub struct Agent {
    pub library: Library,
    process: Child,
    commands: ChildStdin,
    events: Receiver<Value>,
    /// Connections so far: a name is given out again on every connect, its late events must not be taken for new ones.
    connections: u32,
    clients: HashMap<String, Client>,
}

#[derive(Default)]
struct Client {
    /// What the agent calls it.
    wire_name: String,
    replies: VecDeque<Value>,
    messages: VecDeque<Message>,
}

impl Agent {
    pub fn start(library: Library) -> Agent {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let clients = root.join("tests/system/clients");
        let (program, script, needs) = match library {
            Library::Paho => {
                let python = root.join(".venv/bin/python");
                (python.clone(), clients.join("agent.py"), python)
            }
            Library::MqttJs => (
                "node".into(),
                clients.join("agent.js"),
                clients.join("node_modules/mqtt"),
            ),
        };
        assert!(needs.exists(), "{library:?} is not installed: {INSTALL}");
        let mut process = Command::new(program)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{library:?} cannot be started ({error}): {INSTALL}"));
        let (sender, events) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({"client": "?", "event": line}));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Agent {
            library,
            commands: process.stdin.take().unwrap(),
            process,
            events,
            connections: 0,
            clients: HashMap::new(),
        }
    }

    fn tell(&mut self, client: &str, what: &str, mut command: Value) {
        command["client"] = self.clients[client].wire_name.as_str().into();
        command["do"] = what.into();
        writeln!(self.commands, "{command}").unwrap();
    }

    fn client(&mut self, name: &str) -> &mut Client {
        self.clients.get_mut(name).expect("a test connects a client first")
    }

    /// Takes one event in, or false after `wait`.
    fn take_in(&mut self, wait: Duration) -> bool {
        let event = match self.events.recv_timeout(wait) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => panic!("the {:?} agent has ended", self.library),
        };
        let wire_name = event["client"].as_str().unwrap();
        let Some(client) = self.clients.values_mut().find(|client| client.wire_name == wire_name) else {
            return true;
        };
        match event["event"].as_str().unwrap() {
            "message" => client.messages.push_back(Message {
                topic: event["topic"].as_str().unwrap().into(),
                payload: hex::decode(event["payload"].as_str().unwrap()).unwrap(),
                qos: event["qos"].as_u64().unwrap() as u8,
                retain: event["retain"].as_bool().unwrap(),
            }),
            "error" => panic!("{:?} client {wire_name}: {}", self.library, event["text"]),
            _ => client.replies.push_back(event),
        }
        true
    }

    /// The next event of this kind for this client; other kinds before it are passed over.
    fn await_reply(&mut self, client: &str, kind: &str, within: Duration) -> Value {
        let deadline = Instant::now() + patience(within);
        loop {
            while let Some(reply) = self.client(client).replies.pop_front() {
                if reply["event"] == kind {
                    return reply;
                }
                assert!(
                    reply["event"] == "closed",
                    "{:?} client {client}: {reply} where `{kind}` was awaited",
                    self.library
                );
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.take_in(left) {
                panic!("{:?} client {client}: no `{kind}` within {within:?}", self.library);
            }
        }
    }

    pub fn begin_connect(&mut self, client: &str, broker: &Broker, hello: &Hello) {
        let will = hello.will.as_ref().map(|will| {
            json!({"topic": will.topic, "payload": hex::encode(&will.payload), "qos": will.qos, "retain": will.retain})
        });
        let command = json!({
            "host": "127.0.0.1", "port": broker.port_of(hello.transport), "scheme": hello.transport.name(),
            "ca": hello.transport.is_tls().then(|| broker.certificate()), "id": hello.id, "clean": hello.clean, "level": hello.level,
            "keep_alive": hello.keep_alive, "user": hello.user, "will": will, "inflight": hello.inflight, "clip": hello.clip,
        });
        self.connections += 1;
        let fresh = Client {
            wire_name: format!("{client} #{}", self.connections),
            ..Client::default()
        };
        self.clients.insert(client.to_owned(), fresh);
        self.tell(client, "connect", command);
    }

    /// Connects, and returns Session Present.
    pub fn connect(&mut self, client: &str, broker: &Broker, hello: Hello) -> bool {
        self.begin_connect(client, broker, &hello);
        let reply = self.await_reply(client, "connected", Duration::from_secs(10));
        reply["session_present"].as_bool().unwrap()
    }

    /// Connects in vain, and returns what the library says of the return code.
    pub fn refused(&mut self, client: &str, broker: &Broker, hello: Hello) -> String {
        self.begin_connect(client, broker, &hello);
        let reply = self.await_reply(client, "refused", Duration::from_secs(10));
        reply["reason"].as_str().unwrap().to_owned()
    }

    /// Subscribes, and returns the granted QoS of each filter.
    pub fn subscribe(&mut self, client: &str, filters: &[(&str, u8)]) -> Vec<u8> {
        self.tell(client, "subscribe", json!({"filters": filters}));
        let reply = self.await_reply(client, "subscribed", Duration::from_secs(10));
        let granted = reply["granted"].as_array().unwrap();
        granted.iter().map(|code| code.as_u64().unwrap() as u8).collect()
    }

    pub fn unsubscribe(&mut self, client: &str, filters: &[&str]) {
        self.tell(client, "unsubscribe", json!({"filters": filters}));
        self.await_reply(client, "unsubscribed", Duration::from_secs(10));
    }

    /// Returns when the broker has what this client had to say to all that it has reported: a library reports a message
    /// before it acknowledges it, and an answer after that, so the second request stands behind the acknowledgement.
    pub fn fence(&mut self, client: &str) {
        for _ in 0..2 {
            self.unsubscribe(client, &["nothing/of/this/name"]);
        }
    }

    /// Publishes, and returns when QoS 1 and 2 are acknowledged.
    pub fn publish(&mut self, client: &str, message: &Message) {
        let command = json!({
            "topic": message.topic, "payload": hex::encode(&message.payload), "qos": message.qos, "retain": message.retain,
        });
        self.tell(client, "publish", command);
        self.await_reply(client, "published", Duration::from_secs(20));
    }

    /// Begins to publish `count` messages, each with a label of `prefix` and its number, and `padding` bytes after it.
    pub fn begin_burst(&mut self, client: &str, topic: &str, qos: u8, prefix: &str, count: usize, padding: usize) {
        let command = json!({
            "topic": topic, "qos": qos, "retain": false, "prefix": prefix, "count": count, "padding": padding,
        });
        self.tell(client, "burst", command);
    }

    /// Begins to publish these payloads to one topic, in their order. It ends as a burst does.
    pub fn begin_payloads(&mut self, client: &str, topic: &str, qos: u8, payloads: &[Vec<u8>]) {
        let payloads: Vec<_> = payloads.iter().map(hex::encode).collect();
        let command = json!({"topic": topic, "qos": qos, "retain": false, "payloads": payloads});
        self.tell(client, "payloads", command);
    }

    /// The burst has been sent, and acknowledged where its QoS has acknowledgements.
    pub fn await_burst(&mut self, client: &str) {
        self.await_reply(client, "burst", Duration::from_secs(60));
    }

    /// The next `count` messages of this client.
    pub fn messages(&mut self, client: &str, count: usize) -> Vec<Message> {
        let within = Duration::from_secs(30);
        let deadline = Instant::now() + patience(within);
        loop {
            let got = &mut self.client(client).messages;
            if got.len() >= count {
                return got.drain(..count).collect();
            }
            let (got, left) = (got.len(), deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() || !self.take_in(left) {
                let latest = self.clients[client]
                    .messages
                    .back()
                    .map(|message| (&message.topic, message.payload.len()));
                panic!(
                    "{:?} client {client}: {got} of {count} messages within {within:?}, the latest {latest:?}",
                    self.library
                );
            }
        }
    }

    pub fn message(&mut self, client: &str) -> Message {
        self.messages(client, 1).remove(0)
    }

    pub fn labels(&mut self, client: &str, count: usize) -> Vec<String> {
        self.messages(client, count).iter().map(Message::label).collect()
    }

    /// Sends DISCONNECT and closes.
    pub fn disconnect(&mut self, client: &str) {
        self.tell(client, "disconnect", json!({}));
        self.closed(client);
    }

    /// The connection is closed, whoever did it.
    pub fn closed(&mut self, client: &str) {
        self.await_reply(client, "closed", Duration::from_secs(10));
    }

    /// Stops the whole agent where it is: its sockets stay open, and nothing is read from them or written to them.
    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.process), Signal::STOP).unwrap();
    }

    /// Lets an agent go on that was frozen.
    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.process), Signal::CONT).unwrap();
    }

    /// kill -9 of the whole agent: its sockets end without a DISCONNECT.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails where it has ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `mosquitto_pub` over TCP, with the payload on its standard input; returns when it has ended well.
pub fn mosquitto_pub(broker: &Broker, arguments: &[&str], message: &Message) {
    mosquitto_pub_at(&Address::tcp(broker), arguments, message);
}

/// Where the mosquitto commands connect to.
pub struct Address {
    pub port: u16,
    /// Over TLS, with what they verify the broker by.
    pub certificate: Option<PathBuf>,
    /// In place of OpenSSL's own configuration file.
    pub openssl: Option<PathBuf>,
}

impl Address {
    fn tcp(broker: &Broker) -> Address {
        Address::of(broker, Transport::Tcp)
    }

    /// The commands know no WebSocket.
    pub fn of(broker: &Broker, transport: Transport) -> Address {
        Address {
            port: broker.port_of(transport),
            certificate: transport.is_tls().then(|| broker.certificate()),
            openssl: None,
        }
    }

    fn give_to(&self, command: &mut Command) {
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some(certificate) = &self.certificate {
            command.arg("--cafile").arg(certificate);
        }
        if let Some(openssl) = &self.openssl {
            command.env("OPENSSL_CONF", openssl);
        }
    }
}

/// The same, wherever this says.
pub fn mosquitto_pub_at(address: &Address, arguments: &[&str], message: &Message) {
    let mut command = Command::new("mosquitto_pub");
    address.give_to(&mut command);
    let qos = message.qos.to_string();
    command.args(["-t", &message.topic, "-q", &qos]).args(arguments);
    // -s sends nothing at all when nothing stands on the input.
    command.arg(if message.payload.is_empty() { "-n" } else { "-s" });
    if message.retain {
        command.arg("-r");
    }
    let mut process = started(command.stdin(Stdio::piped()).stderr(Stdio::piped()), "mosquitto_pub");
    process.stdin.take().unwrap().write_all(&message.payload).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "mosquitto_pub: {output:?}");
}

/// A running `mosquitto_sub` that is subscribed.
pub struct MosquittoSub {
    process: Child,
    lines: Receiver<String>,
    /// Came before the SUBACK was reported.
    early: VecDeque<String>,
    /// All that was printed, with the time since the start, without payloads.
    log: Vec<String>,
    began: Instant,
    /// QoS 2 messages it has received and not released: by Packet Identifier, the topic.
    unreleased: HashMap<String, String>,
    /// By Packet Identifier, what it keeps: more than one where a message came again before its PUBREL.
    kept: HashMap<String, usize>,
    /// The topic of one that it has just released: it prints the message next.
    released: Option<String>,
    topics: HashMap<String, Flows>,
}

/// QoS 2 messages to one topic, as packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flows {
    /// Begun with a PUBLISH under an identifier that was not in use.
    pub count: usize,
    /// Released, and not printed.
    pub dropped: usize,
    /// Begun under an identifier for which a copy was still kept: that one is printed in its place.
    pub displaced: usize,
}

/// Stands before the line of a message; what else is printed is what `-d` adds.
const MARK: &str = "MESSAGE ";

impl MosquittoSub {
    pub fn start(broker: &Broker, arguments: &[&str]) -> MosquittoSub {
        MosquittoSub::start_at(&Address::tcp(broker), arguments)
    }

    /// The same, wherever this says.
    pub fn start_at(address: &Address, arguments: &[&str]) -> MosquittoSub {
        // Into a pipe it would write only when its buffer is full.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "mosquitto_sub"]);
        address.give_to(&mut command);
        command
            .args(["-d", "-F", &format!("{MARK}%q %r %x %t")])
            .args(arguments);
        let mut process = started(command.stdin(Stdio::null()).stdout(Stdio::piped()), "mosquitto_sub");
        let (sender, lines) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let early = VecDeque::new();
        let mut sub = MosquittoSub {
            process,
            lines,
            early,
            log: Vec::new(),
            began: Instant::now(),
            unreleased: HashMap::new(),
            kept: HashMap::new(),
            released: None,
            topics: HashMap::new(),
        };
        loop {
            let line = sub.line();
            match line.starts_with(MARK) {
                true => sub.early.push_back(line),
                false if line.starts_with("Subscribed") => return sub,
                false => {}
            }
        }
    }

    fn line(&mut self) -> String {
        let line = self.lines.recv_timeout(patience(Duration::from_secs(20)));
        line.unwrap_or_else(|error| panic!("mosquitto_sub printed nothing more: {error}"))
    }

    pub fn message(&mut self) -> Message {
        let line = loop {
            let line = self.early.pop_front().unwrap_or_else(|| self.line());
            if line.starts_with(MARK) {
                break line;
            }
        };
        let mut fields = line[MARK.len()..].splitn(4, ' ');
        let mut field = || fields.next().unwrap();
        Message {
            qos: field().parse().unwrap(),
            retain: field() == "1",
            payload: hex::decode(field()).unwrap(),
            topic: field().into(),
        }
    }

    pub fn messages(&mut self, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.message()).collect()
    }

    /// What has come so far and was not taken yet.
    pub fn arrived(&mut self) -> Vec<Message> {
        while let Ok(line) = self.lines.try_recv() {
            let at = self.began.elapsed().as_secs_f32();
            let clipped = String::from_utf8_lossy(&line.as_bytes()[..line.len().min(160)]);
            self.log.push(format!("{at:9.3} {clipped}"));
            self.follow(&line);
            self.early.push_back(line);
        }
        self.early.retain(|line| line.starts_with(MARK));
        (0..self.early.len()).map(|_| self.message()).collect()
    }

    /// What it prints at QoS 2 is not what it received (seen in 2.0.11): a message is dropped when its PUBREL has come and
    /// PUBCOMP cannot be sent any more; one that came twice before its PUBREL, as after a broken connection it must, is kept
    /// twice, and printed again in place of the next message under its identifier, which is printed in place of the one
    /// after. So the flow of packets is what tells whether the broker has done its part.
    fn follow(&mut self, line: &str) {
        if let Some(topic) = self.released.take()
            && !line.starts_with(MARK)
        {
            self.topics.entry(topic).or_default().dropped += 1;
        }
        let between = |before: &str, after: char| {
            let from = line.find(before)? + before.len();
            let to = from + line[from..].find(after)?;
            Some(line[from..to].to_owned())
        };
        if line.contains("received PUBLISH") && line.contains(", q2, ") {
            let id = between(", m", ',').unwrap();
            let topic = between(", '", '\'').unwrap();
            let kept = self.kept.entry(id.clone()).or_default();
            let is_displaced = *kept > 0;
            *kept += 1;
            if self.unreleased.insert(id.clone(), topic.clone()).is_none() {
                let flows = self.topics.entry(topic).or_default();
                flows.count += 1;
                flows.displaced += usize::from(is_displaced);
            }
        } else if let Some(id) = between("sending PUBCOMP (m", ')') {
            self.released = self.unreleased.remove(&id);
            if let Some(kept) = self.kept.get_mut(&id) {
                *kept = kept.saturating_sub(1);
            }
        }
    }

    /// What [`MosquittoSub::arrived`] has seen of the QoS 2 messages to this topic.
    pub fn flows(&self, topic: &str) -> Flows {
        self.topics.get(topic).copied().unwrap_or_default()
    }

    /// From here on what was not printed before excuses nothing.
    pub fn forget_unprinted(&mut self) {
        for flows in self.topics.values_mut() {
            (flows.dropped, flows.displaced) = (0, 0);
        }
    }

    /// What [`MosquittoSub::arrived`] has passed over and returned, for the report of a failure.
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// kill -9: no DISCONNECT is sent.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for MosquittoSub {
    fn drop(&mut self) {
        // Fails where it has ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn started(command: &mut Command, program: &str) -> Child {
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be started ({error}): {INSTALL}"))
}
