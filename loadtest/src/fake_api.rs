//! A platform of one account for tests: what its devices have sent, and the HTTP API that tells.
//!
//! Called  by the tests of `telemetry`, and by `FakeBroker`, which gives it the datapoints.
//! Holds   - time: each channel has `PER_SECOND` datapoints a second, so that a page ends within one.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::fake_broker::{FakeBroker, Fault};
use crate::packet::{Publish, PublishTemplate};

pub const USER: &str = "U000042";
pub const DEVICE_TOKEN: &str = "5B7E0000000000000000000000000001";
pub const API_TOKEN: &str = "9C0F0000000000000000000000000002";
const PER_SECOND: usize = 4;
/// Of one answer.
const ROWS_MAX: usize = 10;

#[derive(Default)]
pub struct Platform {
    pub devices: BTreeMap<String, Option<u32>>,
    pub channels: BTreeMap<u32, Vec<String>>,
    pub devices_max: Option<usize>,
    /// Each n-th call is refused for the rate limit.
    pub refuses_each: Option<usize>,
    /// Every datapoint goes to the first channel.
    pub is_misplacing: bool,
    pub counts: HashMap<String, u64>,
    /// Comes after the next one of its device.
    pub held: HashMap<String, String>,
    pub calls: usize,
}

impl Platform {
    /// A message below the account's token.
    pub fn take(&mut self, publish: Publish<'_>, fault: Fault) {
        let topic = std::str::from_utf8(publish.topic).unwrap();
        let Some(device) = topic.strip_prefix(&format!("{DEVICE_TOKEN}/json/")) else {
            return;
        };
        let value = String::from_utf8(publish.payload.to_vec()).unwrap();
        let count = self.counts.entry(device.to_string()).or_default();
        *count += 1;
        match (*count, fault) {
            (3, Fault::Loses) => {}
            (3, Fault::Doubles) => {
                self.store(device, value.clone());
                self.store(device, value);
            }
            (3, Fault::Swaps) => drop(self.held.insert(device.to_string(), value)),
            _ => {
                self.store(device, value);
                if let Some(held) = self.held.remove(device) {
                    self.store(device, held);
                }
            }
        }
    }

    fn store(&mut self, device: &str, value: String) {
        let Some(Some(channel)) = self.devices.get(device) else {
            return;
        };
        let mut rows = match self.is_misplacing {
            true => self.channels.values_mut().next(),
            false => self.channels.get_mut(channel),
        };
        rows.as_mut().unwrap().push(value);
    }

    fn stream(&self, channel: u32, from: &str) -> (String, bool) {
        let rows = &self.channels[&channel];
        let at = |index: usize| {
            format!(
                "2100-01-01T00:{:02}:{:02}+0100",
                index / PER_SECOND / 60,
                index / PER_SECOND % 60
            )
        };
        let first = (0..rows.len())
            .find(|index| at(*index).as_str() >= from)
            .unwrap_or(rows.len());
        let until = rows.len().min(first + ROWS_MAX);
        let mut body = format!("{{\"channel\":{channel},\"stream\":[");
        for (index, value) in rows.iter().enumerate().take(until).skip(first) {
            let comma = if index > first { "," } else { "" };
            write!(
                body,
                "{comma}{{\"_id\":\"{index:024x}\",\"tag\":null,\"value\":{value},\"at\":\"{}\"}}",
                at(index)
            )
            .unwrap();
        }
        body.push_str("]}");
        (body, until < rows.len())
    }

    fn answer(&mut self, call: &Call) -> Answer {
        self.calls += 1;
        if self.refuses_each.is_some_and(|n| self.calls.is_multiple_of(n)) {
            return Answer::error(429, "TOO_MANY_REQUESTS");
        }
        if call.headers.get("x-apitoken").is_none_or(|token| token != API_TOKEN) {
            return Answer::error(401, "AUTH_REQUIRED");
        }
        let body: serde_json::Value = serde_json::from_str(&call.body).unwrap_or_default();
        let mapped = || body["mapped_ch"].as_u64().map(|channel| channel as u32);
        let words: Vec<&str> = call.path.split('/').skip(1).collect();
        match (call.method.as_str(), &words[..]) {
            ("GET", ["v2", "user"]) => {
                let count: usize = self.channels.values().map(Vec::len).sum();
                let account = serde_json::json!([{"user_id": USER, "api_token": API_TOKEN, "device_token": DEVICE_TOKEN,
                    "storage": {"count": count}}]);
                Answer::new(200, account.to_string())
            }
            ("GET", ["v2", "channel"]) => {
                let list = self
                    .channels
                    .keys()
                    .map(|channel| serde_json::json!({"channel": channel}));
                Answer::new(200, serde_json::Value::from_iter(list).to_string())
            }
            ("POST", ["v2", "channel", channel]) => {
                self.channels.insert(channel.parse().unwrap(), Vec::new());
                Answer::new(201, "{}".into())
            }
            ("GET", ["v2", "device"]) => {
                let list = self.devices.iter().map(
                    |(id, mapped_ch)| serde_json::json!({"device_id": id, "enabled": true, "mapped_ch": mapped_ch}),
                );
                Answer::new(200, serde_json::Value::from_iter(list).to_string())
            }
            ("POST", ["v2", "device", _]) if self.devices_max == Some(self.devices.len()) => {
                Answer::error(403, "MAX_DEVICE_REACH")
            }
            ("POST", ["v2", "device", id]) => {
                self.devices.insert(id.to_string(), mapped());
                Answer::new(201, "{}".into())
            }
            ("PUT", ["v2", "device", id]) => {
                self.devices.insert(id.to_string(), mapped());
                Answer::new(200, "{}".into())
            }
            ("GET", ["v2", "stream", channel]) => {
                assert!(call.headers.contains_key("x-endtime"));
                let (body, is_truncated) = self.stream(channel.parse().unwrap(), &call.headers["x-starttime"]);
                Answer {
                    is_truncated,
                    ..Answer::new(200, body)
                }
            }
            ("POST", ["v2", "publish", id]) if self.devices.contains_key(*id) => {
                let payload = body["payload"].as_str().unwrap();
                let topic = format!("{DEVICE_TOKEN}/{id}/subscribe");
                let mut message = PublishTemplate::new(&topic, body["qos"].as_u64().unwrap() as u8, payload.len());
                message.bytes[message.stamp_at..].copy_from_slice(payload.as_bytes());
                Answer {
                    command: Some((topic, message.bytes)),
                    ..Answer::new(200, "{}".into())
                }
            }
            _ => Answer::error(404, "NOT_FOUND"),
        }
    }
}

struct Answer {
    status: u16,
    body: String,
    is_truncated: bool,
    /// Topic and PUBLISH packet.
    command: Option<(String, Vec<u8>)>,
}

impl Answer {
    fn new(status: u16, body: String) -> Answer {
        Answer {
            status,
            body,
            is_truncated: false,
            command: None,
        }
    }

    fn error(status: u16, code: &str) -> Answer {
        Answer::new(status, format!("{{\"error\":\"{code}\"}}"))
    }
}

struct Call {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: String,
}

/// Serves the account; gives the base of its paths.
pub fn start(platform: &Arc<Mutex<Platform>>, broker: &FakeBroker) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (platform, broker) = (platform.clone(), broker.clone());
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (platform, broker, socket) = (platform.clone(), broker.clone(), socket.unwrap());
            // A client that goes ends its thread.
            thread::spawn(move || serve(socket, &platform, &broker));
        }
    });
    base
}

fn serve(mut socket: TcpStream, platform: &Mutex<Platform>, broker: &FakeBroker) -> Option<()> {
    let mut reader = BufReader::new(socket.try_clone().ok()?);
    loop {
        let call = read_call(&mut reader)?;
        let answer = platform.lock().unwrap().answer(&call);
        if let Some((topic, message)) = &answer.command {
            broker.deliver(topic.as_bytes(), message);
        }
        let Answer { status, body, .. } = &answer;
        let truncated = if answer.is_truncated {
            "X-Truncated: true\r\n"
        } else {
            ""
        };
        let retry = if *status == 429 { "Retry-After: 0\r\n" } else { "" };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} S\r\nContent-Length: {length}\r\n{truncated}{retry}\r\n");
        socket.write_all((head + body).as_bytes()).ok()?;
    }
}

fn read_call(reader: &mut impl BufRead) -> Option<Call> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Call {
        method,
        path,
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}
