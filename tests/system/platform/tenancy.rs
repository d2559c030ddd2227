//! Nothing crosses accounts: random clients, filters, messages and API calls of several accounts that use the same client
//! identifiers, device ids, channel numbers and topics, against a model of each account that knows nothing of the others.
//!
//! Method: one step after another, each answered before the next. Every payload names its account and is used once. Every
//!         so many steps all is compared: what each client got, and devices, channels, streams, events, sessions and retained
//!         messages of each account.
//! Holds   - whatever a client gets lies below its account's prefix, was published by its account, and to a filter of its;
//!         - whatever it has to get it gets: while it is connected, at every QoS; while it is away, at QoS 1 and 2;
//!         - every answer of the API is the one that the account's own history gives.
//!
//! `SKEIN_TENANCY_STEPS` sets the number of steps, `SKEIN_TENANCY_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::{Account, LIFTED, Platform, values};
use super::rest::{Line, Reply};
use crate::broker::patience;
use crate::power_cut::Random;
use crate::raw::{Connect, Packet, Raw, Will, publish, publish_at_most_once, retained};

const ACCOUNTS: usize = 3;
const CLIENTS: [&str; 4] = ["same", "a", "b", "device_k3x9"];
const DEVICES: [&str; 5] = ["pump-07", "a", "0x", "é", "DEV"];
const TAGS: [&str; 3] = ["", "inlet", "json"];
const CHANNELS: [u32; 3] = [0, 3, 2_147_483_647];
const STEPS_TO_CHECK: usize = 60;

type Message = (String, Vec<u8>);

/// A Session, as far as the account knows.
#[derive(Default)]
struct Client {
    raw: Option<Raw>,
    level: u8,
    is_durable: bool,
    /// Whole filters, below the account's prefix.
    filters: BTreeMap<String, u8>,
    required: BTreeSet<Message>,
    /// All that may come, ever since the Session began.
    allowed: BTreeSet<Message>,
    got: BTreeSet<Message>,
}

#[derive(Clone, Debug, PartialEq)]
struct Device {
    is_enabled: bool,
    channel: Option<u32>,
    has_state: bool,
}

struct Tenant {
    account: Account,
    line: Line,
    connector: Line,
    clients: BTreeMap<&'static str, Client>,
    devices: BTreeMap<String, Device>,
    /// Values with their tags, in order.
    channels: BTreeMap<u32, Vec<(Value, Option<String>)>>,
    /// Description and channel, by id.
    events: BTreeMap<u64, (String, Option<u32>)>,
    retained: BTreeMap<String, Vec<u8>>,
    alias: String,
}

struct Scene {
    platform: Platform,
    tenants: Vec<Tenant>,
    random: Random,
    /// Numbers every payload.
    sequence: u64,
    story: Vec<String>,
}

#[test]
fn nothing_crosses_accounts_on_one_core() {
    run(1);
}

#[test]
fn nothing_crosses_accounts_on_four_cores() {
    run(4);
}

fn run(cores: u16) {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = number("SKEIN_TENANCY_SEED", now.into());
    let steps = number("SKEIN_TENANCY_STEPS", 900) as usize;
    eprintln!("{cores} cores, {steps} steps, SKEIN_TENANCY_SEED={seed}");
    let platform = Platform::start_with(cores, ACCOUNTS, &LIFTED);
    let tenants = (0..ACCOUNTS).map(|index| Tenant::new(&platform, index)).collect();
    let mut scene = Scene {
        platform,
        tenants,
        random: Random::new(seed),
        sequence: 0,
        story: Vec::new(),
    };
    for step in 1..=steps {
        scene.step();
        if step % STEPS_TO_CHECK == 0 {
            scene.check();
        }
        if step == steps / 2 {
            scene.restart(5 - cores);
        }
    }
    scene.check();
    scene.platform.stop();
}

impl Tenant {
    fn new(platform: &Platform, index: usize) -> Tenant {
        let account = platform.account(index).clone();
        let (line, connector) = lines(platform, &account);
        Tenant {
            account,
            line,
            connector,
            clients: CLIENTS.map(|id| (id, Client::default())).into(),
            devices: BTreeMap::new(),
            channels: BTreeMap::new(),
            events: BTreeMap::new(),
            retained: BTreeMap::new(),
            alias: String::new(),
        }
    }

    fn get(&mut self, path: &str) -> Value {
        self.line.call("GET", path, &[], "").expect(200).json()
    }

    /// What becomes of a message of this account to a topic below its own prefix.
    fn publish(&mut self, below: &str, payload: &[u8], qos: u8, retain: bool) {
        if self.ingest(below, payload) {
            self.route(below, payload, qos, retain);
        }
    }

    /// Whether it is routed.
    fn ingest(&mut self, below: &str, payload: &[u8]) -> bool {
        let levels: Vec<_> = below.split('/').collect();
        let (format, id, tag) = match levels[..] {
            [format @ ("json" | "binary" | "state"), id] => (format, id, None),
            [format @ ("json" | "binary"), id, tag] => (format, id, Some(tag.to_owned()).filter(|tag| !tag.is_empty())),
            _ => return true,
        };
        if format == "state" {
            if let Some(device) = self.devices.get_mut(id) {
                device.has_state |= device.is_enabled && device.channel.is_some();
                return device.is_enabled;
            }
            return true;
        }
        let Some(device) = self.devices.get(id) else {
            self.devices.insert(id.to_owned(), Device::new());
            return true;
        };
        if !device.is_enabled {
            return false;
        }
        if let Some(channel) = device.channel {
            let value = match format {
                "json" => serde_json::from_slice(payload).unwrap(),
                _ => json!({"value1": hex::encode(payload)}),
            };
            self.channels
                .get_mut(&channel)
                .expect("mapped to a channel")
                .push((value, tag));
        }
        true
    }

    fn route(&mut self, below: &str, payload: &[u8], qos: u8, retain: bool) {
        let topic = self.account.topic(below);
        if retain {
            self.retained.insert(topic.clone(), payload.to_vec());
        }
        for client in self
            .clients
            .values_mut()
            .filter(|client| client.raw.is_some() || client.is_durable)
        {
            let granted = client
                .filters
                .iter()
                .filter(|(filter, _)| covers(filter, &topic))
                .map(|(_, qos)| *qos)
                .max();
            let Some(granted) = granted else {
                continue;
            };
            let message = (topic.clone(), payload.to_vec());
            client.allowed.insert(message.clone());
            if client.raw.is_some() || granted.min(qos) > 0 {
                client.required.insert(message);
            }
        }
    }

    fn drop_channel(&mut self, channel: u32) -> bool {
        for device in self
            .devices
            .values_mut()
            .filter(|device| device.channel == Some(channel))
        {
            device.channel = None;
        }
        self.events.retain(|_, (_, of)| *of != Some(channel));
        self.channels.remove(&channel).is_some()
    }
}

impl Device {
    fn new() -> Device {
        Device {
            is_enabled: true,
            channel: None,
            has_state: false,
        }
    }
}

fn lines(platform: &Platform, account: &Account) -> (Line, Line) {
    let port = platform.broker().api_port();
    let line = Line::open(port, &[("X-APITOKEN", &account.api_token)]);
    let connector = Line::open(port, &[("X-DEVICETOKEN", &account.device_token)]);
    (line.unwrap(), connector.unwrap())
}

/// Whether a filter matches a topic, none of them beginning with `$`.
fn covers(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (one, other) if one == other => {}
            _ => return false,
        }
    }
}

impl Client {
    /// Takes in what has come, and acknowledges it; with an answer of the broker behind it.
    fn drain(&mut self, fence: &str) {
        let Some(raw) = &mut self.raw else {
            return;
        };
        raw.granted(&[(fence, 0)]);
        while raw.has_early() {
            if let Some((topic, payload, _)) = raw.message_within(Duration::from_millis(1)) {
                self.got.insert((topic, payload));
            }
        }
    }

    fn is_satisfied(&self) -> bool {
        self.raw.is_none() || self.required.is_subset(&self.got)
    }
}

impl Scene {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.random.below(one_in) == 0
    }

    /// Names its account, and is used once.
    fn payload(&mut self, index: usize) -> String {
        self.sequence += 1;
        format!("{{\"account\":{index},\"n\":{}}}", self.sequence)
    }

    fn note(&mut self, what: String) {
        self.story.push(what);
    }

    fn fail(&self, problem: String) -> ! {
        let whole =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tenancy.{}.log", self.platform.site.port()));
        std::fs::write(&whole, self.story.join("\n")).unwrap();
        let story = &self.story[self.story.len().saturating_sub(60)..];
        let (story, whole) = (story.join("\n  "), whole.display());
        panic!("{problem}\nwhat happened, all of it in {whole}:\n  {story}");
    }

    fn step(&mut self) {
        let index = self.random.below(ACCOUNTS);
        match self.random.below(20) {
            0..=1 => self.come(index),
            2 => self.go(index),
            3..=5 => self.subscribe(index),
            6 => self.unsubscribe(index),
            7..=12 => self.publish(index),
            13 => self.intrude(index),
            14 => self.will(index),
            15 => self.send_by_http(index),
            _ => self.call(index),
        }
    }

    /// A client that is connected, or the one named, connected now.
    fn connected(&mut self, index: usize) -> &'static str {
        let id = self.pick(&CLIENTS);
        if self.tenants[index].clients[id].raw.is_none() {
            self.connect(index, id);
        }
        id
    }

    /// Connects; where it is connected it takes over from itself.
    fn come(&mut self, index: usize) {
        let id = self.pick(&CLIENTS);
        self.settle_client(index, id);
        self.connect(index, id);
    }

    fn connect(&mut self, index: usize, id: &'static str) {
        let is_durable = !self.chance(3);
        let level = self.pick(&[3, 4]);
        self.note(format!("{index}: {id} connects, level {level}, durable: {is_durable}"));
        let tenant = &mut self.tenants[index];
        let connect = Connect {
            level,
            is_clean: !is_durable,
            ..tenant.account.connect(id)
        };
        let raw = self.platform.raw(connect);
        let client = tenant.clients.get_mut(id).unwrap();
        let is_expected = is_durable && client.is_durable;
        // Which level 3 cannot say.
        if raw.session_present != (is_expected && level == 4) {
            let present = raw.session_present;
            self.fail(format!("{index}: {id}: Session Present is {present}"));
        }
        if !is_expected {
            *client = Client::default();
        }
        client.raw = Some(raw);
        (client.level, client.is_durable) = (level, is_durable);
    }

    /// It has all that it has to have.
    fn settle_client(&mut self, index: usize, id: &'static str) {
        let fence = self.tenants[index].account.topic("fence");
        let began = Instant::now();
        loop {
            let client = self.tenants[index].clients.get_mut(id).unwrap();
            client.drain(&fence);
            if client.is_satisfied() {
                break;
            }
            if began.elapsed() > patience(Duration::from_secs(10)) {
                let missing: Vec<_> = client.required.difference(&client.got).map(shown).collect();
                self.fail(format!("{index}: {id} has not got {missing:#?}"));
            }
        }
        let client = &self.tenants[index].clients[id];
        let foreign: Vec<_> = client.got.difference(&client.allowed).map(shown).collect();
        if !foreign.is_empty() {
            self.fail(format!("{index}: {id} got what is not its: {foreign:#?}"));
        }
        let client = self.tenants[index].clients.get_mut(id).unwrap();
        if client.raw.is_some() {
            client.required.clear();
        }
        client.got.clear();
    }

    fn go(&mut self, index: usize) {
        let id = self.pick(&CLIENTS);
        self.settle_client(index, id);
        let client = self.tenants[index].clients.get_mut(id).unwrap();
        let Some(mut raw) = client.raw.take() else {
            return;
        };
        raw.send(&[0xe0, 0]);
        assert!(raw.is_closed_within(Duration::from_secs(10)), "after DISCONNECT");
        if !client.is_durable {
            *client = Client::default();
        }
        self.note(format!("{index}: {id} goes"));
    }

    /// A filter of any kind, and whether it is the account's.
    fn filter(&mut self, index: usize) -> (String, bool) {
        let other = (index + 1 + self.random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let device = self.pick(&DEVICES);
        let below = match self.random.below(9) {
            0 => "#".to_owned(),
            1 => "json/#".into(),
            2 => "json/+".into(),
            3 => format!("json/{device}/+"),
            4 => format!("{device}/subscribe"),
            5 => "+/subscribe".into(),
            6 => format!("binary/{device}"),
            7 => "other/+/x".into(),
            _ => "+/+".into(),
        };
        match self.random.below(8) {
            0 => (
                self.pick(&["#", "+/#", "+/json/+", "+/+/subscribe", "$SYS/#"])
                    .to_owned(),
                false,
            ),
            1 => (self.tenants[other].account.topic(&below), false),
            2 => (
                format!("{}/{below}", self.tenants[index].account.device_token.to_lowercase()),
                false,
            ),
            _ => (self.tenants[index].account.topic(&below), true),
        }
    }

    fn subscribe(&mut self, index: usize) {
        let id = self.connected(index);
        let (filter, is_own) = self.filter(index);
        let qos = self.pick(&[0, 1, 2]);
        self.note(format!("{index}: {id} subscribes to {filter} at QoS {qos}"));
        let tenant = &mut self.tenants[index];
        let client = tenant.clients.get_mut(id).unwrap();
        let codes = client.raw.as_mut().unwrap().granted(&[(&filter, qos)]);
        let is_right = match (is_own, client.level) {
            (true, _) => codes == [qos],
            (false, 4) => codes == [0x80],
            (false, _) => codes[0] <= 2,
        };
        if is_own {
            for (topic, payload) in tenant.retained.iter().filter(|(topic, _)| covers(&filter, topic)) {
                let message = (topic.clone(), payload.clone());
                client.allowed.insert(message.clone());
                client.required.insert(message);
            }
            client.filters.insert(filter, qos);
        }
        if !is_right {
            self.fail(format!("{index}: {id}: SUBACK {codes:?}"));
        }
    }

    fn unsubscribe(&mut self, index: usize) {
        let id = self.connected(index);
        let client = &self.tenants[index].clients[id];
        let Some(filter) = client.filters.keys().next().cloned() else {
            return;
        };
        self.note(format!("{index}: {id} unsubscribes from {filter}"));
        let client = self.tenants[index].clients.get_mut(id).unwrap();
        client.raw.as_mut().unwrap().unsubscribe(&filter);
        client.filters.remove(&filter);
    }

    fn topic_below(&mut self) -> String {
        let (device, tag) = (self.pick(&DEVICES), self.pick(&TAGS));
        match self.random.below(8) {
            0..=2 if tag.is_empty() => format!("json/{device}"),
            0..=2 => format!("json/{device}/{tag}"),
            3 => format!("binary/{device}"),
            4 => format!("state/{device}"),
            5 => format!("{device}/subscribe"),
            6 => format!("other/{device}/x"),
            _ => device.to_owned(),
        }
    }

    fn publish(&mut self, index: usize) {
        let id = self.connected(index);
        let below = self.topic_below();
        let (qos, retain) = (self.pick(&[0, 1, 2]), self.chance(4));
        let send = |scene: &mut Scene, qos: u8, retain: bool| {
            let payload = scene.payload(index);
            scene.note(format!(
                "{index}: {id} publishes {payload} to {below} at QoS {qos}, retain: {retain}"
            ));
            let tenant = &mut scene.tenants[index];
            let topic = tenant.account.topic(&below);
            let raw = tenant.clients.get_mut(id).unwrap().raw.as_mut().unwrap();
            let packet = match qos {
                0 => publish_at_most_once(&topic, payload.as_bytes()),
                _ => publish(&topic, qos, 7, payload.as_bytes()),
            };
            let packet = if retain { retained(packet) } else { packet };
            raw.deliver(&packet, 7);
            tenant.publish(&below, payload.as_bytes(), qos, retain);
        };
        send(self, qos, retain);
        // What comes behind it on its way is acknowledged, so it has arrived as well.
        if qos == 0 {
            send(self, 1, false);
        }
    }

    /// To another account's topics: acknowledged, and gone.
    fn intrude(&mut self, index: usize) {
        let other = (index + 1 + self.random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let id = self.connected(index);
        let below = self.topic_below();
        let payload = self.payload(index);
        self.note(format!("{index}: {id} publishes {payload} to {below} of {other}"));
        let topic = self.tenants[other].account.topic(&below);
        let raw = self.tenants[index].clients.get_mut(id).unwrap().raw.as_mut().unwrap();
        raw.send(&retained(publish_at_most_once(&topic, payload.as_bytes())));
        for qos in [1, 2] {
            raw.deliver(&retained(publish(&topic, qos, 7, payload.as_bytes())), 7);
        }
    }

    /// A client of its own comes with a will and dies; to its own account's topic, or another's.
    fn will(&mut self, index: usize) {
        let of = if self.chance(3) { (index + 1) % ACCOUNTS } else { index };
        let below = self.topic_below();
        let payload = self.payload(index);
        let (qos, retain) = (self.pick(&[1, 2]), self.chance(3));
        self.note(format!(
            "{index}: dies with {payload} to {below} of {of} at QoS {qos}, retain: {retain}"
        ));
        let topic = self.tenants[of].account.topic(&below);
        let will = Will {
            topic: &topic,
            payload: payload.as_bytes(),
            qos,
            retain,
        };
        drop(
            self.platform
                .raw(self.tenants[index].account.connect_with_will("mortal", will)),
        );
        if of == index {
            self.tenants[index].publish(&below, payload.as_bytes(), qos, retain);
        }
        self.check();
    }

    fn send_by_http(&mut self, index: usize) {
        let (device, tag) = (self.pick(&DEVICES), self.pick(&TAGS));
        // A header has no letters but those of ASCII.
        let device = if device.is_ascii() { device } else { "pump-07" };
        let payload = self.payload(index);
        self.note(format!("{index}: {device} sends {payload} by HTTP, tag {tag:?}"));
        let tenant = &mut self.tenants[index];
        let expected = match tenant.devices.get(device) {
            None => 201,
            Some(found) if !found.is_enabled || found.channel.is_none() => 403,
            Some(_) => 200,
        };
        let headers = [("X-DEVICEID", device), ("X-TAGNAME", tag)];
        let headers = if tag.is_empty() { &headers[..1] } else { &headers };
        let reply = tenant.connector.call("POST", "/post_v2/", headers, &payload);
        let below = if tag.is_empty() {
            format!("json/{device}")
        } else {
            format!("json/{device}/{tag}")
        };
        tenant.publish(&below, payload.as_bytes(), 1, false);
        self.expect(index, &reply, expected);
    }

    fn expect(&self, index: usize, reply: &Reply, status: u16) {
        if reply.status != status {
            self.fail(format!("{index}: {status} was expected: {reply:?}: {}", reply.text()));
        }
    }

    fn call(&mut self, index: usize) {
        let (device, channel) = (self.pick(&DEVICES), self.pick(&CHANNELS));
        let path: String = device.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let (device_path, channel_path) = (format!("/v2/device/{path}"), format!("/v2/channel/{channel}"));
        let what = self.random.below(14);
        let tag = self.pick(&TAGS);
        let payload = self.payload(index);
        self.note(format!(
            "{index}: call {what} of {device}, channel {channel}, {payload}"
        ));
        let tenant = &mut self.tenants[index];
        let known = tenant.devices.contains_key(device);
        let has_channel = tenant.channels.contains_key(&channel);
        let (reply, status) = match what {
            0 => {
                let reply = tenant.line.call("POST", &device_path, &[], "");
                tenant.devices.entry(device.to_owned()).or_insert(Device::new());
                (reply, if known { 403 } else { 201 })
            }
            1 => {
                let reply = tenant.line.call("DELETE", &device_path, &[], "");
                tenant.devices.remove(device);
                (reply, if known { 200 } else { 404 })
            }
            2..=4 => {
                let body = json!({"mapped_ch": channel}).to_string();
                let reply = tenant.line.call("PUT", &device_path, &[], &body);
                if let (Some(found), true) = (tenant.devices.get_mut(device), has_channel) {
                    found.channel = Some(channel);
                }
                (reply, if known && has_channel { 200 } else { 404 })
            }
            5 => {
                let is_enabled = payload.len().is_multiple_of(2) || tag == "inlet";
                let body = json!({"enabled": is_enabled}).to_string();
                let reply = tenant.line.call("PUT", &device_path, &[], &body);
                if let Some(found) = tenant.devices.get_mut(device) {
                    found.is_enabled = is_enabled;
                }
                (reply, if known { 200 } else { 404 })
            }
            6..=7 => {
                let reply = tenant.line.call("POST", &channel_path, &[], "");
                tenant.channels.entry(channel).or_default();
                (reply, if has_channel { 403 } else { 201 })
            }
            8 if tag.is_empty() => {
                let reply = tenant.line.call("DELETE", &channel_path, &[], "");
                (reply, if tenant.drop_channel(channel) { 200 } else { 404 })
            }
            8 => {
                let reply = tenant.line.call("DELETE", &channel_path, &[("X-TAGNAME", tag)], "");
                let rows = tenant.channels.get_mut(&channel);
                let before = rows.as_ref().map_or(0, |rows| rows.len());
                let after = rows.map_or(0, |rows| {
                    rows.retain(|(_, found)| found.as_deref() != Some(tag));
                    rows.len()
                });
                (reply, if after < before { 200 } else { 404 })
            }
            9 => {
                let headers = [("X-TAGNAME", tag)];
                let headers = if tag.is_empty() { &[][..] } else { &headers };
                let reply = tenant
                    .line
                    .call("POST", &format!("/v2/stream/{channel}"), headers, &payload);
                if let Some(rows) = tenant.channels.get_mut(&channel) {
                    let tag = Some(tag.to_owned()).filter(|tag| !tag.is_empty());
                    rows.push((serde_json::from_str(&payload).unwrap(), tag));
                }
                (reply, if has_channel { 201 } else { 404 })
            }
            10 => {
                let of = has_channel.then_some(channel);
                let body = json!({"description": payload, "mapped_ch": of}).to_string();
                let reply = tenant.line.call("POST", "/v2/event", &[], &body);
                if reply.status == 201 {
                    let id = reply.json()["event_id"].as_u64().unwrap();
                    assert!(
                        tenant.events.insert(id, (payload, of)).is_none(),
                        "{index}: event {id} twice"
                    );
                }
                (reply, 201)
            }
            11 => {
                // An id that some account has.
                let all: Vec<u64> = self
                    .tenants
                    .iter()
                    .flat_map(|tenant| tenant.events.keys().copied())
                    .collect();
                let id = if all.is_empty() { 1 } else { self.pick(&all) };
                let tenant = &mut self.tenants[index];
                let reply = tenant.line.call("DELETE", &format!("/v2/event/{id}"), &[], "");
                (reply, if tenant.events.remove(&id).is_some() { 200 } else { 404 })
            }
            12 => {
                tenant.alias = payload.clone();
                let body = json!({"user_alias": payload}).to_string();
                (tenant.line.call("PUT", "/v2/user", &[], &body), 200)
            }
            _ => {
                let body = json!({"qos": 1, "payload": payload}).to_string();
                let reply = tenant.line.call("POST", &format!("/v2/publish/{path}"), &[], &body);
                let status = match tenant.devices.get(device) {
                    None => 404,
                    Some(found) if !found.is_enabled => 403,
                    Some(_) => 200,
                };
                if status == 200 {
                    tenant.route(&format!("{device}/subscribe"), payload.as_bytes(), 1, false);
                }
                (reply, status)
            }
        };
        self.expect(index, &reply, status);
    }

    /// Everything of every account is what its own history says.
    fn check(&mut self) {
        for index in 0..ACCOUNTS {
            for id in CLIENTS {
                self.settle_client(index, id);
            }
            self.check_registry(index);
            self.check_streams(index);
            self.check_retained(index);
        }
    }

    fn check_registry(&mut self, index: usize) {
        // A will is published when the broker has noticed, which nobody is told.
        let began = Instant::now();
        loop {
            let tenant = &mut self.tenants[index];
            let list = tenant.get("/v2/device");
            let found: BTreeMap<_, _> = list.as_array().unwrap().iter().map(device).collect();
            if found == tenant.devices {
                break;
            }
            if began.elapsed() > patience(Duration::from_secs(5)) {
                let expected = format!("{:?}", tenant.devices);
                self.fail(format!("{index}: devices {found:?}\ninstead of {expected}"));
            }
        }
        let tenant = &mut self.tenants[index];
        let list = tenant.get("/v2/channel");
        let channels: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["channel"].as_u64().unwrap() as u32)
            .collect();
        let expected: Vec<_> = tenant.channels.keys().copied().collect();
        let list = tenant.get("/v2/event");
        let event = |one: &Value| {
            let channel = one["mapped_ch"].as_u64().map(|channel| channel as u32);
            (
                one["event_id"].as_u64().unwrap(),
                (one["description"].as_str().unwrap().to_owned(), channel),
            )
        };
        let events: BTreeMap<_, _> = list.as_array().unwrap().iter().map(event).collect();
        let user = tenant.get("/v2/user");
        let is_own = user[0]["user_id"] == tenant.account.user_id && user[0]["user_alias"] == tenant.alias;
        let rows: usize = tenant.channels.values().map(Vec::len).sum();
        let count = user[0]["storage"]["count"].clone();
        let connected: Vec<_> = tenant
            .clients
            .iter()
            .filter(|(_, client)| client.raw.is_some())
            .map(|(id, _)| *id)
            .collect();
        if channels != expected || events != tenant.events || !is_own {
            self.fail(format!("{index}: channels {channels:?}, events {events:?}, {user}"));
        }
        let began = Instant::now();
        loop {
            let list = self.tenants[index].get("/v2/session");
            let mut ids: Vec<_> = list
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["client_id"].as_str().unwrap())
                .collect();
            ids.sort();
            let mut expected = connected.clone();
            expected.sort();
            if ids == expected {
                break;
            }
            // Whoever has just died is noticed a little later.
            if began.elapsed() > patience(Duration::from_secs(5)) {
                self.fail(format!("{index}: sessions {ids:?} instead of {connected:?}"));
            }
        }
        if count != rows {
            // The will again.
            self.check_streams(index);
            let user = self.tenants[index].get("/v2/user");
            if user[0]["storage"]["count"] != rows {
                self.fail(format!("{index}: {rows} datapoints, {user}"));
            }
        }
    }

    fn check_streams(&mut self, index: usize) {
        let headers = [("X-ENDTIME", "last"), ("X-PAGELIMIT", "10000")];
        for channel in CHANNELS {
            let began = Instant::now();
            loop {
                let tenant = &mut self.tenants[index];
                let reply = tenant.line.call("GET", &format!("/v2/stream/{channel}"), &headers, "");
                let Some(expected) = tenant.channels.get(&channel) else {
                    self.expect(index, &reply, 404);
                    break;
                };
                let stream = reply.json();
                let tags = stream["stream"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|row| row["tag"].as_str().map(str::to_owned));
                let found: Vec<_> = values(&stream).into_iter().zip(tags).collect();
                if found == *expected {
                    break;
                }
                if began.elapsed() > patience(Duration::from_secs(5)) {
                    let expected = format!("{expected:?}");
                    self.fail(format!("{index}: channel {channel}: {found:?}\ninstead of {expected}"));
                }
            }
        }
    }

    fn check_retained(&mut self, index: usize) {
        let began = Instant::now();
        loop {
            let tenant = &self.tenants[index];
            let mut raw = self.platform.raw(tenant.account.connect("onlooker"));
            let mut found = BTreeMap::new();
            // At QoS 0: none of them waits for an acknowledgement of another.
            raw.granted(&[(&tenant.account.topic("#"), 0)]);
            raw.granted(&[(&tenant.account.topic("fence"), 0)]);
            while raw.has_early() {
                let Packet::Publish { topic, payload, .. } = raw.packet() else {
                    panic!("no PUBLISH")
                };
                found.insert(topic, payload);
            }
            let is_right = found == tenant.retained;
            raw.send(&[0xe0, 0]);
            assert!(raw.is_closed_within(Duration::from_secs(10)));
            if is_right {
                return;
            }
            if began.elapsed() > patience(Duration::from_secs(5)) {
                let text = |retained: &BTreeMap<String, Vec<u8>>| -> Vec<_> {
                    let messages = retained.iter();
                    messages
                        .map(|(topic, payload)| shown(&(topic.clone(), payload.clone())))
                        .collect()
                };
                let (found, expected) = (text(&found), text(&tenant.retained));
                self.fail(format!("{index}: retained {found:#?}\ninstead of {expected:#?}"));
            }
        }
    }

    /// Killed at rest: what is durable is there, and whose it was.
    fn restart(&mut self, cores: u16) {
        self.check();
        self.note(format!("killed, then {cores} cores"));
        self.platform.kill();
        self.platform.run(cores, &LIFTED);
        for tenant in &mut self.tenants {
            (tenant.line, tenant.connector) = lines(&self.platform, &tenant.account);
            for client in tenant.clients.values_mut() {
                client.raw = None;
                if !client.is_durable {
                    *client = Client::default();
                }
            }
        }
    }
}

fn shown((topic, payload): &Message) -> String {
    format!("{topic} {}", String::from_utf8_lossy(payload))
}

/// Of an answer of the device service.
fn device(one: &Value) -> (String, Device) {
    let device = Device {
        is_enabled: one["enabled"].as_bool().unwrap(),
        channel: one["mapped_ch"].as_u64().map(|channel| channel as u32),
        has_state: one.get("state").is_some(),
    };
    (one["device_id"].as_str().unwrap().to_owned(), device)
}
