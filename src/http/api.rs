//! What all services share: the accounts, the cores, the store, and what they count.
//!
//! Owns    the windows of the rate limits, and the ids of datapoints that come by the API.
//! Called  by every service of `http`.
//! Holds   - the store is looked at on threads of [`Viewers`]: that of the requests never waits for the disk;
//!         - what was persisted is committed before the answer.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, oneshot};

use super::budget::Budget;
use super::cores::Cores;
use super::desk::{Books, Desk};
use super::error::ApiError;
use super::rate::RateLimit;
use super::viewers::Viewers;
use crate::limits::{API_BODY_BYTES_MAX, API_CALLS_PER_S, CONNECTOR_SENDS_PER_S, HTTP_CHANGES_MAX, PACKET_BYTES_MAX};
use crate::registry::access::AccountId;
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointIds, StoredDatapoints};
use crate::registry::event::Notification;
use crate::shard::record::Record;
use crate::store::client::Client;
use crate::store::lmdb::{Fault, View};
use crate::worker::Notifier;

/// What an operator may say of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of one account, and of one device of the connector; 0: any number.
    pub calls_per_s: u32,
    pub connector_sends_per_s: u32,
    pub body_bytes_max: usize,
    /// The largest MQTT packet: what is sent by HTTP must fit as well.
    pub packet_bytes_max: usize,
    /// `/post_v1`
    pub has_v1: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            calls_per_s: API_CALLS_PER_S,
            connector_sends_per_s: CONNECTOR_SENDS_PER_S,
            body_bytes_max: API_BODY_BYTES_MAX,
            packet_bytes_max: PACKET_BYTES_MAX,
            has_v1: false,
        }
    }
}

/// A handle; all of them are the same API.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    settings: Settings,
    desk: Desk,
    cores: Cores,
    client: Client,
    notifier: Notifier,
    clock: Clock,
    viewers: Viewers,
    changes: Arc<Semaphore>,
    budget: Budget,
    api_rate: Mutex<RateLimit<AccountId>>,
    connector_rate: Mutex<RateLimit<(AccountId, Box<str>)>>,
    datapoint_ids: Mutex<DatapointIds>,
}

/// What an API begins with.
pub struct ApiParts {
    pub settings: Settings,
    pub desk: Desk,
    pub cores: Cores,
    pub client: Client,
    /// Takes the notifications of events that datapoints of the stream service meet.
    pub notifier: Notifier,
    /// Those of the cores and the store.
    pub stored_datapoints: StoredDatapoints,
    pub clock: Clock,
}

/// Why a view was of no use: the request is refused, or the store cannot be read.
pub enum Refused {
    Api(ApiError),
    Store(Fault),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Refused {
        Refused::Api(error)
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Refused {
        Refused::Store(fault)
    }
}

const POISONED: &str = "nobody panics while holding it";

impl Api {
    pub fn new(parts: ApiParts) -> Api {
        let ApiParts {
            settings,
            desk,
            cores,
            client,
            notifier,
            stored_datapoints,
            clock,
        } = parts;
        // The cores have the numbers below.
        let source = u16::try_from(cores.count()).expect("there are at most CORES_MAX cores");
        Api(Arc::new(Inner {
            api_rate: Mutex::new(RateLimit::new(settings.calls_per_s)),
            connector_rate: Mutex::new(RateLimit::new(settings.connector_sends_per_s)),
            datapoint_ids: Mutex::new(DatapointIds::new(source, stored_datapoints)),
            viewers: Viewers::new(),
            changes: Arc::new(Semaphore::new(HTTP_CHANGES_MAX)),
            budget: Budget::default(),
            settings,
            desk,
            cores,
            client,
            notifier,
            clock,
        }))
    }

    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub fn desk(&self) -> &Desk {
        &self.0.desk
    }

    pub fn cores(&self) -> &Cores {
        &self.0.cores
    }

    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// One of them for each request that changes something.
    pub fn changes(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.changes)
    }

    /// Counts a call of the REST API.
    pub fn let_in(&self, account: AccountId) -> Result<(), ApiError> {
        let mut rate = self.0.api_rate.lock().expect(POISONED);
        let may = rate.take(&account, self.0.clock.elapsed());
        may.then_some(()).ok_or(ApiError::TooManyRequests)
    }

    /// Counts a call of the device connector.
    pub fn let_device_in(&self, account: AccountId, device: &str) -> Result<(), ApiError> {
        let mut rate = self.0.connector_rate.lock().expect(POISONED);
        let may = rate.take(&(account, device.into()), self.0.clock.elapsed());
        may.then_some(()).ok_or(ApiError::TooManyRequests)
    }

    pub fn next_datapoint(&self) -> DatapointId {
        let mut ids = self.0.datapoint_ids.lock().expect(POISONED);
        ids.next(self.0.clock.unix_ms())
    }

    /// Gives up a notification for which there is no room.
    pub fn notify(&self, notification: Notification) {
        if !(self.0.notifier)(notification) {
            tracing::debug!("a notification is dropped: too many wait to be delivered");
        }
    }

    /// What is committed now, as `look` sees it.
    pub async fn view<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, ApiError> {
        let client = self.0.client.clone();
        let looked = self.0.viewers.look(move || {
            client.view(|view| match look(view) {
                Ok(seen) => Ok(Ok(seen)),
                Err(Refused::Api(error)) => Ok(Err(error)),
                Err(Refused::Store(fault)) => Err(fault),
            })
        });
        match looked.await {
            Some(Ok(seen)) => seen,
            Some(Err(error)) => {
                tracing::error!("a request is answered with {}: {error}", ApiError::Unavailable.code());
                Err(ApiError::Unavailable)
            }
            None => Err(ApiError::Unavailable),
        }
    }

    /// Has the records committed, all of them or none.
    pub async fn persist(&self, records: Vec<Record>) -> Result<(), ApiError> {
        let (done, committed) = oneshot::channel();
        let then = move || {
            let _ = done.send(());
        };
        self.0.client.persist(records, then);
        // What was not called is dropped when the store stops.
        committed.await.map_err(|_| ApiError::Unavailable)
    }
}

impl Books for Client {
    fn persist(&self, records: Vec<Record>, then: Box<dyn FnOnce() + Send>) {
        Client::persist(self, records, then);
    }

    fn channel(&self, account: AccountId, channel: ChannelId) -> Result<Option<Channel>, String> {
        self.view(|view| view.channel(account, channel))
            .map_err(|error| error.to_string())
    }
}

/// Where the API has the time from.
#[derive(Clone)]
pub enum Clock {
    /// Of the host; rates are measured from here on.
    Host { start: Instant },
    /// A test's: nanoseconds since 1970.
    #[cfg(test)]
    Set(Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    pub fn host() -> Clock {
        Clock::Host { start: Instant::now() }
    }

    fn elapsed(&self) -> Duration {
        match self {
            Clock::Host { start } => start.elapsed(),
            #[cfg(test)]
            Clock::Set(ns) => Duration::from_nanos(ns.load(std::sync::atomic::Ordering::Relaxed)),
        }
    }

    fn unix_ms(&self) -> u64 {
        match self {
            Clock::Host { .. } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, |since| since.as_millis() as u64)
            }
            #[cfg(test)]
            Clock::Set(_) => self.elapsed().as_millis() as u64,
        }
    }
}
