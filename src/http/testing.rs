//! A platform for the tests of the services: the whole API and a store on disk; in place of the cores, one that does on the
//! spot what they do, in as few words as possible.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use serde_json::Value;
use tower::ServiceExt as _;

use super::api::{Api, ApiParts, Clock, Settings};
use super::cores::Cores;
use super::desk::{Desk, DeskParts};
use super::router::{App, app};
use crate::ingest::payload;
use crate::ingest::topic::Format;
use crate::registry::access::{AccountId, Accounts};
use crate::registry::account::{Account, Token};
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceState};
use crate::registry::event::Notification;
use crate::routing::shard_key::{Division, ShardKey};
use crate::shard::query::{Answer, ConnectedSession, Query, Refusal, SentFormat};
use crate::shard::record::{Datapoint, Record};
use crate::store::client::Client;
use crate::store::writer::{Store, StoreConfig};
use crate::worker::{Control, Question, Reply};

/// 2026-03-04T08:15:00Z, which is 09:15 in Vienna: when a platform begins.
pub const START_MS: u64 = 1_772_612_100_000;
pub const ONE: AccountId = AccountId(1);
pub const OTHER: AccountId = AccountId(2);

pub struct Platform {
    app: App,
    pub desk: Desk,
    pub client: Client,
    core: Arc<Core>,
    clock: Arc<AtomicU64>,
    told: Arc<Mutex<Vec<Notification>>>,
    store: Option<Store>,
    _dir: tempfile::TempDir,
}

/// An answer, whole.
#[derive(Debug, PartialEq)]
pub struct Answered {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answered {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Status, and the code of a refusal.
    pub fn refusal(&self) -> (u16, String) {
        assert_eq!(self.headers["content-type"], "application/json");
        (
            self.status,
            self.json()["error"].as_str().unwrap_or(&self.text).to_owned(),
        )
    }

    #[track_caller]
    pub fn is_refused(&self, status: u16, code: &str) {
        assert_eq!(self.refusal(), (status, code.to_owned()));
        assert_eq!(self.text, format!(r#"{{"error":"{code}"}}"#));
    }

    #[track_caller]
    pub fn is(&self, status: u16, json: &Value) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/json");
        assert_eq!(&self.json(), json);
    }

    #[track_caller]
    pub fn is_done(&self) {
        self.is(200, &serde_json::json!({"result": "OK"}));
    }
}

fn account(id: AccountId) -> Account {
    let token = |kind: u8| Token::from_random([kind + id.0 as u8; 16]);
    Account {
        locale: "Europe/Vienna".to_owned(),
        ..Account::new(id, &format!("U{:06}", id.0), token(0xa0), token(0xb0), START_MS)
    }
}

impl Platform {
    /// Without limits of rates, which have tests of their own.
    pub fn new() -> Platform {
        Platform::with(
            Settings {
                calls_per_s: 0,
                connector_sends_per_s: 0,
                ..Settings::default()
            },
            |_| {},
        )
    }

    /// With these settings, and both accounts as `shape` leaves them.
    pub fn with(settings: Settings, shape: impl Fn(&mut Account)) -> Platform {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(StoreConfig::new(dir.path())).unwrap();
        drop(store.start(Vec::new()).unwrap());
        let client = store.client();
        let mut accounts = Accounts::default();
        let mut records = Vec::new();
        for id in [ONE, OTHER] {
            let mut account = account(id);
            shape(&mut account);
            accounts = accounts.with(account.clone(), []);
            records.push(Record::AccountPut(Box::new(account)));
        }
        let accounts = Arc::new(accounts);
        let clock = Arc::new(AtomicU64::new(START_MS * 1_000_000));
        let core = Arc::new(Core {
            accounts: Mutex::new(Arc::clone(&accounts)),
            client: client.clone(),
            clock: Arc::clone(&clock),
            asked: Mutex::default(),
            sessions: Mutex::default(),
        });
        let doors = (0..CORES).map(|number| {
            let core = Arc::clone(&core);
            Box::new(move |control| core.take(number, control)) as _
        });
        let cores = Cores::behind(doors.collect(), ShardKey::new([1, 2, 3, 4], CORES, Division::Devices));
        let telling = cores.clone();
        let desk = Desk::new(DeskParts {
            accounts,
            events: Vec::new(),
            newest_account: OTHER.0,
            books: Arc::new(client.clone()),
            tell: Box::new(move |change| {
                telling.tell_all(&change);
                Box::pin(async {})
            }),
        });
        let told: Arc<Mutex<Vec<Notification>>> = Arc::default();
        let telling = Arc::clone(&told);
        let api = Api::new(ApiParts {
            settings,
            desk: desk.clone(),
            cores,
            client: client.clone(),
            notifier: Arc::new(move |notification| {
                telling.lock().unwrap().push(notification);
                true
            }),
            stored_datapoints: store.datapoints().clone(),
            clock: Clock::Set(Arc::clone(&clock)),
        });
        let platform = Platform {
            app: app(api),
            desk,
            client,
            core,
            clock,
            told,
            store: Some(store),
            _dir: dir,
        };
        platform.persist(records);
        platform
    }

    // --- calls ---

    /// As the first account.
    pub async fn get(&self, path: &str) -> Answered {
        self.call("GET", path, &[], "").await
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        self.call_as(ONE, method, path, headers, body).await
    }

    pub async fn call_as(
        &self,
        caller: AccountId,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let token = self.account(caller).api_token;
        let mut all = vec![("X-APITOKEN", token.as_str())];
        all.extend(headers);
        self.send(method, path, &all, body).await
    }

    /// The device connector, as the first account.
    pub async fn post_v2(&self, device: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        let token = self.account(ONE).device_token;
        let mut all = vec![("X-DEVICETOKEN", token.as_str()), ("X-DEVICEID", device)];
        all.extend(headers);
        self.send("POST", "/post_v2/", &all, body).await
    }

    /// Nothing but what is given.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        self.request(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub async fn request(&self, request: Request<Body>) -> Answered {
        let response = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Answered {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    // --- what there is ---

    pub fn app(&self) -> App {
        self.app.clone()
    }

    pub fn account(&self, id: AccountId) -> Account {
        self.desk.accounts().tenant(id).unwrap().account.clone()
    }

    pub fn pass_ms(&self, ms: u64) {
        self.clock.fetch_add(ms * 1_000_000, Ordering::Relaxed);
    }

    /// What the cores have been asked since the last time, and which of them.
    pub fn asked(&self) -> Vec<(u16, Query)> {
        std::mem::take(&mut self.core.asked.lock().unwrap())
    }

    /// What was told of events since the last time.
    pub fn told(&self) -> Vec<Notification> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    pub fn connect(&self, core: u16, session: ConnectedSession) {
        self.core.sessions.lock().unwrap().push((core, session));
    }

    pub fn persist(&self, records: Vec<Record>) {
        let (done, committed) = std::sync::mpsc::channel();
        self.client.persist(records, move || done.send(()).unwrap());
        committed.recv().unwrap();
    }

    pub fn channel(&self, account: AccountId, number: u32, name: &str) {
        self.persist(vec![Record::ChannelPut {
            account,
            channel: ChannelId::new(number).unwrap(),
            entry: Box::new(Channel {
                name: name.to_owned(),
                ..Channel::default()
            }),
        }]);
    }

    pub fn device(&self, account: AccountId, id: &str, channel: Option<u32>) {
        let entry = Device::new(channel.and_then(ChannelId::new), START_MS);
        self.persist(vec![Record::DeviceRegistered {
            account,
            device: id.into(),
            entry: Box::new(entry),
        }]);
    }

    pub fn state(&self, account: AccountId, id: &str, json: &str, at_ms: u64) {
        let state = DeviceState {
            json: json.into(),
            at_ms,
        };
        self.persist(vec![Record::DeviceReported {
            account,
            device: id.into(),
            state: Box::new(state),
        }]);
    }

    /// A datapoint, received at this many milliseconds after the start.
    pub fn datapoint(&self, account: AccountId, channel: u32, after_ms: u64, tag: &str, value: &str) -> String {
        let id = DatapointId::new(START_MS + after_ms, 0, 1);
        self.persist(vec![datapoint(
            account,
            ChannelId::new(channel).unwrap(),
            id,
            tag,
            "d",
            value,
        )]);
        id.to_hex()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.store.take().unwrap().stop();
    }
}

pub fn datapoint(
    account: AccountId,
    channel: ChannelId,
    id: DatapointId,
    tag: &str,
    device: &str,
    value: &str,
) -> Record {
    Record::Datapoint(Box::new(Datapoint {
        account,
        channel,
        id,
        row: DatapointRow { tag, device, value }.pack(),
        origin: None,
        is_awaited: true,
    }))
}

pub const CORES: u16 = 3;

/// All cores in one.
struct Core {
    accounts: Mutex<Arc<Accounts>>,
    client: Client,
    clock: Arc<AtomicU64>,
    asked: Mutex<Vec<(u16, Query)>>,
    sessions: Mutex<Vec<(u16, ConnectedSession)>>,
}

impl Core {
    fn take(&self, number: u16, control: Control) {
        match control {
            Control::Accounts(change) => *self.accounts.lock().unwrap() = change.accounts,
            Control::Ask(question) => {
                let Question { query, reply } = *question;
                self.asked.lock().unwrap().push((number, query.clone()));
                match self.does(number, query) {
                    (answer, records) if records.is_empty() => reply(answer),
                    (answer, records) => self.persist(records, answer, reply),
                }
            }
            _ => unreachable!("nothing else is asked of a core"),
        }
    }

    fn persist(&self, records: Vec<Record>, answer: Answer, reply: Reply) {
        self.client.persist(records, move || reply(answer));
    }

    fn found(&self, account: AccountId, device: &str) -> Option<Device> {
        let found = self.client.view(|view| view.device(account, device)).unwrap();
        found.map(|(device, _)| device)
    }

    fn now_ms(&self) -> u64 {
        self.clock.load(Ordering::Relaxed) / 1_000_000
    }

    fn does(&self, number: u16, query: Query) -> (Answer, Vec<Record>) {
        let refused = |refusal| (Answer::Refused(refusal), Vec::new());
        match query {
            Query::CreateDevice {
                account,
                device,
                change,
            } => {
                if self.found(account, &device).is_some() {
                    return refused(Refusal::DeviceInUse);
                }
                match self.registered(account) {
                    Some(mut entry) => {
                        entry.change(&change);
                        let registered = Record::DeviceRegistered {
                            account,
                            device,
                            entry: Box::new(entry),
                        };
                        (Answer::Done, vec![registered])
                    }
                    None => refused(Refusal::MaxDeviceReach),
                }
            }
            Query::ChangeDevice { account, device, .. } | Query::RemoveDevice { account, device }
                if self.found(account, &device).is_none() =>
            {
                refused(Refusal::NoDevice)
            }
            Query::ChangeDevice {
                account,
                device,
                change,
            } => {
                let change = Box::new(change);
                (
                    Answer::Done,
                    vec![Record::DeviceChanged {
                        account,
                        device,
                        change,
                    }],
                )
            }
            Query::RemoveDevice { account, device } => (Answer::Done, vec![Record::DeviceRemoved { account, device }]),
            Query::Command { account, device, .. } => match self.found(account, &device) {
                None => refused(Refusal::NoDevice),
                Some(device) if !device.is_enabled => refused(Refusal::DeviceDisabled),
                Some(_) => (Answer::Done, Vec::new()),
            },
            Query::Send {
                account,
                device,
                tag,
                payload,
                format,
            } => self.sent(account, device, tag, &payload, format),
            Query::UnmapChannel { .. } | Query::Settled => (Answer::Done, Vec::new()),
            Query::Sessions { from, .. } => {
                // One at a time.
                let sessions = self.sessions.lock().unwrap();
                let mut here: VecDeque<_> = sessions
                    .iter()
                    .filter(|(core, _)| *core == number)
                    .skip(from as usize)
                    .collect();
                let next = (here.len() > 1).then_some(from + 1);
                let sessions = here
                    .pop_front()
                    .map(|(_, session)| session.clone())
                    .into_iter()
                    .collect();
                (Answer::Sessions { sessions, next }, Vec::new())
            }
        }
    }

    fn registered(&self, account: AccountId) -> Option<Device> {
        let accounts = self.accounts.lock().unwrap();
        let tenant = accounts.tenant(account).unwrap();
        tenant
            .take_device()
            .then(|| Device::new(tenant.account.default_channel, self.now_ms()))
    }

    fn sent(
        &self,
        account: AccountId,
        device: Box<str>,
        tag: Option<Box<str>>,
        payload: &[u8],
        format: SentFormat,
    ) -> (Answer, Vec<Record>) {
        let refused = |refusal| (Answer::Refused(refusal), Vec::new());
        let Some(found) = self.found(account, &device) else {
            return match self.registered(account) {
                None => refused(Refusal::MaxDeviceReach),
                Some(entry) => {
                    let entry = Box::new(entry);
                    let registered = Record::DeviceRegistered { account, device, entry };
                    (Answer::Registered, vec![registered])
                }
            };
        };
        let Some(channel) = found.channel.filter(|_| found.is_enabled) else {
            return refused(match found.is_enabled {
                true => Refusal::NoMappedChannel,
                false => Refusal::DeviceDisabled,
            });
        };
        let format = match format {
            SentFormat::Json => Format::Json,
            SentFormat::V1 => Format::V1,
        };
        let mut value = String::new();
        if payload::value(format, payload, &mut value).is_err() {
            return refused(Refusal::BadPayload);
        }
        let id = DatapointId::new(self.now_ms(), 0, 0);
        let tag = tag.unwrap_or_default();
        (
            Answer::Done,
            vec![datapoint(account, channel, id, &tag, &device, &value)],
        )
    }
}
