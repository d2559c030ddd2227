//! The API as a service, without sockets: requests as text, through the broker's own router, over a store on disk.
//!
//! Owns    a platform of one account, as it is made at the start; in place of the cores, one that answers what they would, and
//!         changes nothing.
//! Holds   - an input is requests, one behind the other, between lines of `===`: a line of method and path, headers, an empty
//!           line, the body;
//!         - every answer is one of the contract's: a JSON text, a refusal with a code, never a failure of ours;
//!         - without the token nothing is answered or done;
//!         - what an input has changed is unmade behind it.

use std::cell::RefCell;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request};
use serde_json::Value;
use skein::http::api::{Api, ApiParts, Clock, Settings};
use skein::http::cores::Cores;
use skein::http::desk::{Desk, DeskParts};
use skein::http::fuzz_request;
use skein::ingest::payload;
use skein::ingest::topic::Format;
use skein::registry::access::{AccountId, Accounts};
use skein::registry::account::{Account, Token};
use skein::registry::channel::{Channel, ChannelId};
use skein::registry::datapoint::{DatapointId, DatapointRow};
use skein::registry::device::{Device, DeviceState};
use skein::registry::event::{Event, NotifyType};
use skein::routing::shard_key::{Division, ShardKey};
use skein::shard::ConnectionId;
use skein::shard::query::{Answer, ConnectedSession, Query, Refusal, SentFormat};
use skein::shard::record::{Datapoint, Record};
use skein::store::client::Client;
use skein::store::lmdb::Durability;
use skein::store::writer::{Store, StoreConfig};
use skein::worker::Control;
use tokio::runtime::Runtime;

const ACCOUNT: AccountId = AccountId(1);
const API_TOKEN: [u8; 16] = [0xA1; 16];
const DEVICE_TOKEN: [u8; 16] = [0xB1; 16];
const DEVICE: &str = "pump-07";
const CHANNEL: u32 = 3;
/// 2026-03-04T08:15:00Z
const START_MS: u64 = 1_772_612_100_000;
const CORES: u16 = 3;
const REQUESTS_MAX: usize = 8;

thread_local! {
    static PLATFORM: RefCell<Option<Platform>> = const { RefCell::new(None) };
}

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    PLATFORM.with_borrow_mut(|kept| {
        for part in text.split("===\n").take(REQUESTS_MAX) {
            let Some(request) = request(part) else {
                continue;
            };
            let platform = kept.get_or_insert_with(Platform::new);
            platform.ask(request);
        }
        if kept.as_ref().is_some_and(|platform| platform.has_changed) {
            *kept = None;
        }
    });
}

/// `None`: hyper would not have let it in.
fn request(text: &str) -> Option<Request<Body>> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(path);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        request = request.header(name, value.trim());
    }
    request.body(Body::from(body.to_owned())).ok()
}

struct Platform {
    runtime: Runtime,
    api: Api,
    store: Option<Store>,
    has_changed: bool,
    _dir: tempfile::TempDir,
}

impl Platform {
    fn new() -> Platform {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut store, _) = Store::open(StoreConfig {
            durability: Durability::Process,
            map_bytes: 16 << 20,
            ..StoreConfig::new(dir.path())
        })
        .expect("a new store");
        drop(store.start(Vec::new()).expect("its threads"));
        let client = store.client();
        let account = Account {
            locale: "Europe/Vienna".to_owned(),
            ..Account::new(
                ACCOUNT,
                "U000001",
                Token::from_random(API_TOKEN),
                Token::from_random(DEVICE_TOKEN),
                START_MS,
            )
        };
        let event = Event {
            event_id: 1,
            channel: ChannelId::new(CHANNEL),
            notify_type: NotifyType::default(),
            post_url: "https://example.org/hook".to_owned(),
            is_enabled: true,
            source: "temp".to_owned(),
            threshold: "20".to_owned(),
            ..Event::default()
        };
        persist(&client, records(&account, &event));
        let doors = (0..CORES).map(|_| Box::new(told) as _);
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
            newest_datapoint_ms: 0,
            clock: Clock::host(),
        });
        Platform {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .max_blocking_threads(1)
                .build()
                .expect("a runtime"),
            api,
            store: Some(store),
            has_changed: false,
            _dir: dir,
        }
    }

    fn ask(&mut self, request: Request<Body>) {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let has_token = may_call(request.headers());
        let api = self.api.clone();
        let (parts, body) = self.runtime.block_on(async {
            let (parts, body) = fuzz_request(api, request).await.into_parts();
            (parts, to_bytes(body, usize::MAX).await.expect("it is all there"))
        });
        let status = parts.status.as_u16();
        assert!(
            (200..500).contains(&status),
            "{method} {path} is answered with {status}"
        );
        let is_done = parts.status.is_success();
        if path.starts_with("/v2/") || path.starts_with("/v1/") {
            assert!(has_token || !is_done, "{method} {path} needs a token");
        }
        if is_done && !matches!(method, Method::GET | Method::HEAD) {
            self.has_changed = true;
        }
        assert_eq!(parts.headers["cache-control"], "no-store");
        if method == Method::HEAD {
            assert!(body.is_empty());
            return;
        }
        let is_json = parts
            .headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/json");
        assert!(is_json || is_done, "{method} {path}: a refusal is JSON");
        if is_json {
            let json: Value = serde_json::from_slice(&body).expect("it says that it is JSON");
            let is_refusal = json
                .as_object()
                .is_some_and(|json| json.len() == 1 && json.get("error").is_some_and(Value::is_string));
            assert!(is_done || is_refusal, "{method} {path}: {json}");
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.stop();
        }
    }
}

fn may_call(headers: &HeaderMap) -> bool {
    let token = Token::from_random(API_TOKEN);
    headers.get("x-apitoken").is_some_and(|value| value == token.as_str())
}

fn persist(client: &Client, records: Vec<Record>) {
    let (done, committed) = std::sync::mpsc::channel();
    client.persist(records, move || done.send(()).expect("it is waited for"));
    committed.recv().expect("the store commits");
}

/// What the platform begins with: a device with a state, and a channel with a few values.
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
    let values = [
        ("", r#"{"temp":20}"#),
        ("", r#"{"temp":21.5,"at":{"x":[1,2]}}"#),
        ("night", r#"{"temp":-3}"#),
        ("night", r#"{"value1":"82a161c3a16205"}"#),
    ];
    records.extend(values.into_iter().zip(0..).map(|((tag, value), number)| {
        Record::Datapoint(Box::new(Datapoint {
            account: ACCOUNT,
            channel,
            id: DatapointId::new(START_MS + 60_000 * u64::from(number), 0, number),
            row: DatapointRow {
                tag,
                device: DEVICE,
                value,
            }
            .pack(),
            origin: None,
            is_awaited: true,
        }))
    }));
    records
}

/// A core that has one device.
fn told(control: Control) {
    if let Control::Ask(question) = control {
        (question.reply)(answer(question.query));
    }
}

fn answer(query: Query) -> Answer {
    let known = |device: &str| device == DEVICE;
    match query {
        Query::CreateDevice { device, .. } if known(&device) => Answer::Refused(Refusal::DeviceInUse),
        Query::CreateDevice { .. } | Query::UnmapChannel { .. } | Query::Settled => Answer::Done,
        Query::Send { device, .. } if !known(&device) => Answer::Registered,
        Query::Send { payload, format, .. } => {
            let format = match format {
                SentFormat::Json => Format::Json,
                SentFormat::V1 => Format::V1,
            };
            match payload::value(format, &payload, &mut String::new()) {
                Ok(()) => Answer::Done,
                Err(payload::BadPayload) => Answer::Refused(Refusal::BadPayload),
            }
        }
        Query::ChangeDevice { device, .. } | Query::RemoveDevice { device, .. } | Query::Command { device, .. } => {
            match known(&device) {
                true => Answer::Done,
                false => Answer::Refused(Refusal::NoDevice),
            }
        }
        Query::Sessions { .. } => Answer::Sessions {
            sessions: vec![ConnectedSession {
                connection: ConnectionId {
                    index: 0,
                    generation: 0,
                },
                client_id: DEVICE.into(),
                address: "127.0.0.1:1".to_owned(),
                clean_session: true,
                level: 4,
                keep_alive_s: 60,
                connected_ms: START_MS,
            }],
            next: None,
        },
    }
}
