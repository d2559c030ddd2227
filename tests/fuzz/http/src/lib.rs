//! The API as a service, without sockets: requests as text, through the broker's own router, over a store on disk.
//!
//! Owns    a platform of one account, as it is made at the start; in place of the cores, one that answers what they would, and
//!         changes nothing.
//! Holds   - an input is requests, one behind the other, between lines of `===`: a line of method and path, headers, an empty
//!           line, the body;
//!         - every answer is one of the contract's: what was asked for, or a refusal with a status and a code of it; never a
//!           failure of ours;
//!         - nothing is answered or done without the one token that it needs;
//!         - HEAD is GET without the body, and a slash at the end of a path makes no difference;
//!         - a stream that is asked for in words of the model has the rows, the order and the sums that a list has;
//!         - what was done is shown as the body said it, what was made or removed is one more or one fewer, what was refused has
//!           changed nothing;
//!         - what an input has changed is unmade behind it.

mod cores;
mod stream;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, Uri};
use serde_json::Value;
use skein::http::api::{Api, ApiParts, Clock, Settings};
use skein::http::cores::Cores;
use skein::http::desk::{Desk, DeskParts};
use skein::http::fuzz_app;
use skein::limits::{HTTP_ANSWER_TIMEOUT_MS, HTTP_BODY_TIMEOUT_MS};
use skein::registry::access::{AccountId, Accounts};
use skein::registry::account::{Account, Token};
use skein::registry::channel::{Channel, ChannelId};
use skein::registry::datapoint::StoredDatapoints;
use skein::registry::device::{Device, DeviceState};
use skein::registry::event::{Event, NotifyType};
use skein::routing::shard_key::{Division, ShardKey};
use skein::shard::record::Record;
use skein::store::client::Client;
use skein::store::lmdb::Durability;
use skein::store::writer::{Store, StoreConfig};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;
use tower::util::BoxCloneService;

const ACCOUNT: AccountId = AccountId(1);
const API_TOKEN: [u8; 16] = [0xA1; 16];
const DEVICE_TOKEN: [u8; 16] = [0xB1; 16];
const DEVICE: &str = "pump-07";
const CHANNEL: u32 = 3;
/// 2026-03-04T08:15:00Z
const START_MS: u64 = 1_772_612_100_000;
const CORES: u16 = 3;
const REQUESTS_MAX: usize = 8;

/// Every refusal that one account without limits of rates can meet.
const REFUSALS: [(u16, &str); 16] = [
    (400, "BAD_JSON_FORMAT"),
    (400, "BAD_PARAMETER"),
    (400, "BAD_DEVICE_ID"),
    (400, "DEVICE_ID_ZERO"),
    (400, "ENDTIME_REQUIRED"),
    (401, "AUTH_REQUIRED"),
    (403, "MAX_EVENT_REACH"),
    (403, "DEVICE_INUSE"),
    (403, "CHANNEL_INUSE"),
    (404, "NOT_FOUND"),
    (404, "NO_DEVICE"),
    (404, "NO_CHANNEL"),
    (404, "NO_TAG"),
    (404, "NO_EVENT"),
    (405, "BAD_METHOD"),
    (413, "PAYLOAD_TOO_LARGE"),
];

/// What a change of an event, and of the account, may name, and is shown.
const EVENT_FIELDS: [&str; 9] = [
    "mapped_ch",
    "description",
    "notify_type",
    "post_url",
    "enabled",
    "source",
    "operator",
    "threshold",
    "min_interval",
];
const USER_FIELDS: [&str; 5] = ["email1", "email2", "organization", "locale", "user_alias"];

thread_local! {
    /// From one input to the next, unless one has changed it.
    static PLATFORM: Cell<Option<Platform>> = const { Cell::new(None) };
}

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let requests = text.split("===\n").take(REQUESTS_MAX).filter_map(request);
    let taken = PLATFORM.take().map_or_else(Platform::new, Ok).and_then(|mut platform| {
        for request in requests {
            platform.take(&request)?;
        }
        Ok(platform)
    });
    PLATFORM.set(taken.ok().filter(|platform| !platform.has_changed));
}

/// `None`: hyper would not have let it in.
fn request(text: &str) -> Option<Request<String>> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(path);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        request = request.header(name, value.trim());
    }
    request.body(body.to_owned()).ok()
}

struct Platform {
    runtime: Runtime,
    app: BoxCloneService<Request<Body>, axum::response::Response, std::convert::Infallible>,
    store: Option<Store>,
    /// What [`looked`](Platform::looked) gave last.
    shown: Vec<Answer>,
    has_changed: bool,
    _dir: tempfile::TempDir,
}

/// This machine was held up for longer than the API waits for itself: nothing can be said of what it answers.
struct Late;

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn is_done(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("it says that it is JSON")
    }
}

impl Platform {
    fn new() -> Result<Platform, Late> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut store, _) = Store::open(StoreConfig {
            durability: Durability::Process,
            map_bytes: 16 << 20,
            ..StoreConfig::new(dir.path())
        })
        .expect("a new store");
        drop(store.start(Vec::new()).expect("its threads"));
        let client = store.client();
        let account = account();
        let event = event();
        persist(&client, records(&account, &event));
        let doors = (0..CORES).map(|_| Box::new(cores::told) as _);
        let cores = Cores::behind(doors.collect(), ShardKey::new([1, 2, 3, 4], CORES, Division::Devices));
        let telling = cores.clone();
        let desk = Desk::new(DeskParts {
            accounts: Arc::new(Accounts::default().with(account, [event.clone()])),
            events: vec![(ACCOUNT, vec![event])],
            newest_account: ACCOUNT.0,
            books: Arc::new(client.clone()),
            tell: Box::new(move |change| {
                telling.tell_all(&change);
                Box::pin(async {})
            }),
        });
        let api = Api::new(ApiParts {
            settings: Settings {
                calls_per_s: 0,
                connector_sends_per_s: 0,
                has_v1: true,
                ..Settings::default()
            },
            desk,
            cores,
            client,
            notifier: Arc::new(|_| true),
            stored_datapoints: StoredDatapoints::until(stream::NEWEST_MS),
            clock: Clock::host(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let mut platform = Platform {
            runtime,
            app: BoxCloneService::new(fuzz_app(api)),
            store: Some(store),
            shown: Vec::new(),
            has_changed: false,
            _dir: dir,
        };
        platform.shown = platform.looked()?;
        Ok(platform)
    }

    fn take(&mut self, request: &Request<String>) -> Result<(), Late> {
        let answer = self.answer(request)?;
        match *request.method() {
            Method::GET => self.is_read_alike(request, &answer)?,
            Method::HEAD => {}
            _ => {
                let looked = self.looked()?;
                if answer.is_done() {
                    is_counted(request, &self.shown, &looked);
                    self.has_changed |= looked != self.shown;
                    self.shown = looked;
                    self.is_shown(request, &answer)?;
                } else {
                    assert_eq!(looked, self.shown, "{request:?} is refused and done");
                }
            }
        }
        Ok(())
    }

    /// An answer, held against what all of them must be.
    fn answer(&self, request: &Request<String>) -> Result<Answer, Late> {
        let asked = Instant::now();
        let call = request.clone().map(Body::from);
        let (parts, body) = self.runtime.block_on(async {
            let answer = self.app.clone().oneshot(call).await;
            let (parts, body) = answer.unwrap_or_else(|never| match never {}).into_parts();
            (parts, to_bytes(body, usize::MAX).await.expect("it is all there"))
        });
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.into(),
        };
        if asked.elapsed() >= Duration::from_millis(HTTP_BODY_TIMEOUT_MS.min(HTTP_ANSWER_TIMEOUT_MS)) {
            return Err(Late);
        }
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        if answer.is_done()
            && let Some(may) = may_call(request)
        {
            assert!(may, "{request:?} needs its token");
        }
        if *request.method() == Method::HEAD {
            assert!(answer.body.is_empty());
            return Ok(answer);
        }
        if !answer.is_done() {
            assert_eq!(answer.headers["content-type"], "application/json");
            let is_known = REFUSALS.iter().any(|(status, code)| {
                answer.status == *status && answer.body == format!(r#"{{"error":"{code}"}}"#).as_bytes()
            });
            assert!(is_known, "{request:?} is answered with {answer:?}");
        }
        if answer.headers["content-type"] == "application/json" {
            answer.json();
        }
        Ok(answer)
    }

    /// In other words, and if it is a stream, by the model.
    fn is_read_alike(&self, request: &Request<String>, answer: &Answer) -> Result<(), Late> {
        let mut head = request.clone();
        *head.method_mut() = Method::HEAD;
        let head = self.answer(&head)?;
        assert_eq!(
            (head.status, &head.headers),
            (answer.status, &answer.headers),
            "{request:?}"
        );
        let (path, query) = (request.uri().path(), request.uri().query());
        let other = match query {
            Some(query) => format!("{path}/?{query}"),
            None => format!("{path}/"),
        };
        if path.starts_with('/')
            && !path.ends_with('/')
            && let Ok(other) = other.parse::<Uri>()
        {
            let mut slashed = request.clone();
            *slashed.uri_mut() = other;
            assert_eq!(
                self.answer(&slashed)?,
                *answer,
                "{request:?} without a slash, and with one"
            );
        }
        let is_stream = path.trim_end_matches('/') == format!("/v2/stream/{CHANNEL}");
        if is_stream && may_call(request) == Some(true) && !self.has_changed {
            stream::check(request.headers(), answer);
        }
        Ok(())
    }

    /// After it was done.
    fn is_shown(&self, request: &Request<String>, answer: &Answer) -> Result<(), Late> {
        let path = request.uri().path();
        let path = path.strip_suffix('/').unwrap_or(path);
        let body = serde_json::from_str(request.body()).unwrap_or(Value::Null);
        let is_removed = *request.method() == Method::DELETE;
        let has_tag = request.headers().get("x-tagname").is_some_and(|tag| !tag.is_empty());
        let mut levels = path.split('/').skip(1);
        let (read, fields): (String, &[&str]) = match (levels.next(), levels.next()) {
            (Some("v2"), Some("channel")) if !has_tag => (path.to_owned(), &["channel_name"]),
            (Some("v2"), Some("event")) if *request.method() == Method::POST => {
                (format!("{path}/{}", answer.json()["event_id"]), &EVENT_FIELDS)
            }
            (Some("v2"), Some("event")) => (path.to_owned(), &EVENT_FIELDS),
            (Some("v2"), Some("user")) => (path.to_owned(), &USER_FIELDS),
            (Some("v2"), Some("stream")) => {
                let newest = self.read(path)?;
                assert_eq!(newest.json()["stream"][0]["_id"], answer.json()["_id"], "{request:?}");
                return Ok(());
            }
            _ => return Ok(()),
        };
        let shown = self.read(&read)?;
        if is_removed {
            assert_eq!(shown.status, 404, "{request:?} leaves {shown:?}");
            return Ok(());
        }
        let shown = &shown.json()[0];
        for field in fields {
            let Some(given) = body.get(field) else {
                continue;
            };
            let is_same = match *field {
                // It is left out.
                "min_interval" if given == 0 => true,
                // A zone is shown in its own spelling.
                "locale" => match (given.as_str(), shown[field].as_str()) {
                    (Some(given), Some(shown)) => given.eq_ignore_ascii_case(shown),
                    _ => false,
                },
                _ => shown[field] == *given,
            };
            assert!(is_same, "{request:?}: {field} is shown as {shown}");
        }
        Ok(())
    }

    /// All that the API shows: in this order, [`CHANNELS_AT`] and [`EVENTS_AT`].
    fn looked(&self) -> Result<Vec<Answer>, Late> {
        let stream = format!("/v2/stream/{CHANNEL}");
        ["/v2/user", "/v2/device", "/v2/channel", "/v2/event", &stream]
            .iter()
            .map(|path| self.read(path))
            .collect()
    }

    fn read(&self, path: &str) -> Result<Answer, Late> {
        let request = Request::get(path)
            .header("x-apitoken", Token::from_random(API_TOKEN).as_str())
            .header("x-withtag", "true")
            .header("x-endtime", "last")
            .body(String::new());
        self.answer(&request.expect("a path that is one"))
    }
}

const CHANNELS_AT: usize = 2;
const EVENTS_AT: usize = 3;

/// What a request has done is one more channel or event, one fewer, or none.
fn is_counted(request: &Request<String>, before: &[Answer], after: &[Answer]) {
    let path = request.uri().path();
    let (at, id) = match path.split('/').nth(2) {
        Some("channel") => (CHANNELS_AT, "channel"),
        Some("event") => (EVENTS_AT, "event_id"),
        _ => return,
    };
    let count = |shown: &[Answer]| -> i64 {
        let json = shown[at].json();
        let ids = json
            .as_array()
            .expect("a list")
            .iter()
            .map(|element| element[id].to_string());
        ids.collect::<BTreeSet<_>>().len() as i64
    };
    let has_tag = request.headers().contains_key("x-tagname");
    let expected = match *request.method() {
        Method::POST if has_tag => 0..=1,
        Method::POST => 1..=1,
        Method::DELETE if has_tag => -1..=0,
        Method::DELETE => -1..=-1,
        _ => 0..=0,
    };
    assert!(expected.contains(&(count(after) - count(before))), "{request:?}");
}

/// Whether a request has the one token that it needs, once; `None`: it needs none.
fn may_call(request: &Request<String>) -> Option<bool> {
    let (name, token) = match request.uri().path().split('/').nth(1)? {
        "v1" | "v2" => ("x-apitoken", API_TOKEN),
        "post_v1" | "post_v2" => ("x-devicetoken", DEVICE_TOKEN),
        _ => return None,
    };
    let given: Vec<_> = request.headers().get_all(name).iter().collect();
    Some(given == [Token::from_random(token).as_str()])
}

impl Drop for Platform {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.stop();
        }
    }
}

fn persist(client: &Client, records: Vec<Record>) {
    let (done, committed) = std::sync::mpsc::channel();
    client.persist(records, move || done.send(()).expect("it is waited for"));
    committed.recv().expect("the store commits");
}

fn account() -> Account {
    let token = Token::from_random;
    Account {
        locale: "Europe/Vienna".to_owned(),
        next_event: 2,
        ..Account::new(ACCOUNT, "U000001", token(API_TOKEN), token(DEVICE_TOKEN), START_MS)
    }
}

fn event() -> Event {
    Event {
        event_id: 1,
        channel: ChannelId::new(CHANNEL),
        notify_type: NotifyType::default(),
        post_url: "https://example.org/hook".to_owned(),
        is_enabled: true,
        source: "temp".to_owned(),
        threshold: "20".to_owned(),
        ..Event::default()
    }
}

/// What the platform begins with: a device with a state, an event, and a channel with a few values.
fn records(account: &Account, event: &Event) -> Vec<Record> {
    let channel = ChannelId::new(CHANNEL).expect("a small number");
    let mut records = vec![
        Record::AccountPut(Box::new(account.clone())),
        Record::ChannelPut {
            account: ACCOUNT,
            channel,
            entry: Box::new(Channel {
                name: "pumps".to_owned(),
                ..Channel::default()
            }),
        },
        Record::DeviceRegistered {
            account: ACCOUNT,
            device: DEVICE.into(),
            entry: Box::new(Device::new(Some(channel), START_MS)),
        },
        Record::DeviceReported {
            account: ACCOUNT,
            device: DEVICE.into(),
            state: Box::new(DeviceState {
                json: r#"{"rpm":900}"#.into(),
                at_ms: START_MS,
            }),
        },
        Record::EventPut {
            account: ACCOUNT,
            event: Box::new(event.clone()),
        },
    ];
    records.extend(stream::records(channel));
    records
}
