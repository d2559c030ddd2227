//! The HTTP API of a broker that is a device platform: blocking calls over connections that are kept.
//!
//! Owns    the HTTP agent and the API token.
//! Called  by `telemetry`, from several threads: a clone shares the connections.
//! Holds   - a call refused for the rate limit (429) is made again after the time its Retry-After asks for; the refusals are
//!           counted;
//!         - an answer of another status than the ones waited for is an error that names the call, the status and the body;
//!           no error holds the token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::{Method, Request};

/// A call, its body included.
const CALL_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Where 429 comes without Retry-After, and the longest one that is honoured.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Refusals of one call until it is given up.
const REFUSALS_MAX: u32 = 100;
/// Threads that call at the same time keep a connection each.
const IDLE_CONNECTIONS_MAX: usize = 1024;

#[derive(Clone)]
pub struct Api {
    agent: Agent,
    base: String,
    token: String,
    refused: Arc<AtomicU64>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// X-TRUNCATED: there is more in the range asked for.
    pub is_truncated: bool,
    pub body: String,
    /// From the request to the end of the body, without the refusals before it.
    pub time: Duration,
}

/// The account of the token.
#[derive(Debug, Deserialize)]
pub struct Account {
    pub user_id: String,
    pub device_token: String,
    storage: Storage,
}

#[derive(Debug, Deserialize)]
struct Storage {
    count: u64,
}

impl Account {
    /// Datapoints it has stored, in all channels.
    pub fn datapoint_count(&self) -> u64 {
        self.storage.count
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Device {
    pub device_id: String,
    pub enabled: bool,
    pub mapped_ch: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Channel {
    channel: u32,
}

/// Of a range of time in one channel.
#[derive(Clone, Copy, Debug)]
pub struct Range<'a> {
    pub channel: u32,
    /// ISO 8601 with an offset from UTC, to the second.
    pub from: &'a str,
    pub until: &'a str,
}

impl Api {
    pub fn new(base: &str, token: &str) -> Result<Api> {
        let base = base.trim_end_matches('/');
        if !base.starts_with("http://") {
            bail!("--api {base}: http://HOST:PORT is wanted, without TLS");
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(CALL_MAX))
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            // Whatever the environment says: the broker is measured, not a proxy.
            .proxy(None)
            .build()
            .new_agent();
        Ok(Api {
            agent,
            base: base.to_string(),
            token: token.to_string(),
            refused: Arc::default(),
        })
    }

    /// Calls that met the rate limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn account(&self) -> Result<Account> {
        let accounts: Vec<Account> = self.list("/v2/user")?;
        accounts.into_iter().next().context("GET /v2/user gave no account")
    }

    pub fn devices(&self) -> Result<Vec<Device>> {
        self.list("/v2/device")
    }

    pub fn channels(&self) -> Result<Vec<u32>> {
        let channels: Vec<Channel> = self.list("/v2/channel")?;
        Ok(channels.into_iter().map(|channel| channel.channel).collect())
    }

    pub fn create_channel(&self, channel: u32) -> Result<()> {
        self.call(Method::POST, &format!("/v2/channel/{channel}"), &[], Some("{}"), &[201])
            .map(drop)
    }

    /// Gives whether the account takes another one.
    pub fn create_device(&self, device: &Device) -> Result<bool> {
        let (path, body) = (
            format!("/v2/device/{}", device.device_id),
            serde_json::to_string(device)?,
        );
        let answer = self.call(Method::POST, &path, &[], Some(&body), &[201, 403])?;
        match answer.status {
            201 => Ok(true),
            _ if answer.body.contains("MAX_DEVICE_REACH") => Ok(false),
            _ => bail!("POST {path} answered 403: {}", start_of(&answer.body)),
        }
    }

    pub fn map_device(&self, device: &str, channel: u32) -> Result<()> {
        let body = format!("{{\"mapped_ch\":{channel},\"enabled\":true}}");
        self.call(Method::PUT, &format!("/v2/device/{device}"), &[], Some(&body), &[200])
            .map(drop)
    }

    /// `payload` needs no escapes in JSON.
    pub fn publish(&self, device: &str, qos: u8, payload: &str) -> Result<Answer> {
        let body = format!("{{\"qos\":{qos},\"payload\":\"{payload}\"}}");
        self.call(Method::POST, &format!("/v2/publish/{device}"), &[], Some(&body), &[200])
    }

    /// The datapoints of a range, the oldest first, as many as the broker gives at a time.
    pub fn stream(&self, range: Range<'_>) -> Result<Answer> {
        let path = format!("/v2/stream/{}", range.channel);
        let headers = [("x-starttime", range.from), ("x-endtime", range.until)];
        self.call(Method::GET, &path, &headers, None, &[200])
    }

    fn list<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.call(Method::GET, path, &[], None, &[200])?;
        serde_json::from_str(&answer.body).with_context(|| format!("GET {path} gave what is no list of the kind"))
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
        wanted: &[u16],
    ) -> Result<Answer> {
        let context = || format!("{method} {}{path}", self.base);
        for _ in 0..REFUSALS_MAX {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(format!("{}{path}", self.base))
                .header("x-apitoken", &self.token);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let begin = Instant::now();
            let mut response = match body {
                Some(body) => self.agent.run(request.body(body).with_context(context)?),
                None => self.agent.run(request.body(()).with_context(context)?),
            }
            .with_context(context)?;
            let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
            let body = body.read_to_string().with_context(context)?;
            let time = begin.elapsed();
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let status = response.status().as_u16();
            if status == 429 {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let seconds = header("retry-after").and_then(|text| text.trim().parse().ok());
                std::thread::sleep(seconds.map_or(RETRY_AFTER, Duration::from_secs).min(RETRY_AFTER_MAX));
                continue;
            }
            if !wanted.contains(&status) {
                bail!("{} answered {status}: {}", context(), start_of(&body));
            }
            let is_truncated = header("x-truncated").is_some_and(|text| text.eq_ignore_ascii_case("true"));
            return Ok(Answer {
                status,
                is_truncated,
                body,
                time,
            });
        }
        bail!("{} was refused {REFUSALS_MAX} times for the rate limit", context());
    }
}

/// As much of a body as an error shows.
fn start_of(body: &str) -> String {
    body.trim().chars().take(200).collect()
}
