//! The accounts of a run and their events.
//!
//! Owns    both, as they are committed; the snapshot that every core holds is made here.
//! Called  by the services of `http` and by `skein account` through the admin socket, all on the control thread.
//! Holds   - a change is checked, committed, in the next snapshot, and told to every core before it is answered;
//!         - once begun it is done to its end, also when whoever asked has hung up: memory never falls behind the disk;
//!         - changes of one account happen one after another, and snapshots reach a core in their order;
//!         - events of a channel go with it, so a channel is removed here too.

mod rules;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};

use crate::limits::{ACCOUNTS_MAX, EVENTS_PER_ACCOUNT_MAX};
use crate::registry::access::{AccountId, Accounts, AccountsChange, Ended, EndedWhy};
use crate::registry::account::{Account, Token, is_user_id};
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::event::Event;
use crate::shard::record::Record;

/// What the desk, and whoever notifies, need of the store.
pub trait Books: Send + Sync + 'static {
    /// Hands records over as one unit. `then` is called once they are committed, on a thread of the store; it is dropped if
    /// the store stops before that.
    fn persist(&self, records: Vec<Record>, then: Box<dyn FnOnce() + Send>);

    /// A channel as it is committed now. It blocks. Err: one sentence.
    fn channel(&self, account: AccountId, channel: ChannelId) -> Result<Option<Channel>, String>;
}

/// Sends a change to every core at once. What it returns is over when all of them have it: a client that knows its new token
/// must not find a core that does not.
pub type Tell = Box<dyn Fn(AccountsChange) -> Told + Send + Sync>;

pub type Told = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a desk begins with.
pub struct DeskParts {
    /// The snapshot that the cores began with: it has the counts of devices.
    pub accounts: Arc<Accounts>,
    /// All events, enabled or not.
    pub events: Vec<(AccountId, Vec<Event>)>,
    /// The greatest id that an account ever had.
    pub newest_account: u32,
    pub books: Arc<dyn Books>,
    pub tell: Tell,
}

/// A handle; all of them are the same desk.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    books: Arc<dyn Books>,
    tell: Tell,
    state: Mutex<State>,
    /// Held while an account is added: two must not choose the same user id.
    adding: AsyncMutex<()>,
}

struct State {
    accounts: Arc<Accounts>,
    seats: HashMap<AccountId, Seat>,
    newest_account: u32,
}

/// What the snapshot does not have of an account.
#[derive(Default)]
struct Seat {
    /// Held by whoever does several things that belong together.
    lock: Arc<AsyncMutex<()>>,
    /// Held by one change.
    turn: Arc<AsyncMutex<()>>,
    events: BTreeMap<u32, Event>,
}

/// While it lives, nobody else has the lock of this account.
pub struct AccountLock(#[expect(dead_code, reason = "held, not read")] OwnedMutexGuard<()>);

/// What an operator may say of an account; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountSettings {
    pub devices_max: Option<u32>,
    pub storage_bytes_max: Option<u64>,
    pub quotas: QuotaSettings,
    pub default_channel: Option<DefaultChannel>,
    pub user: UserChange,
}

/// Bounds of an account's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaSettings {
    pub connections_max: Option<Bound<u32>>,
    pub sessions_max: Option<Bound<u32>>,
    pub subscriptions_max: Option<Bound<u32>>,
    pub publishes_per_s_max: Option<Bound<u32>>,
    pub kept_bytes_max: Option<Bound<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound<T> {
    /// That of the broker, whatever it is.
    Default,
    /// 0: any number.
    Own(T),
}

/// Where new devices are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultChannel {
    Off,
    /// It is made if it is not there.
    Channel(ChannelId),
}

/// Which tokens of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokens {
    Api,
    Device,
    Both,
}

impl Tokens {
    fn has_api(self) -> bool {
        self != Tokens::Device
    }

    fn has_device(self) -> bool {
        self != Tokens::Api
    }
}

/// What an account may say of itself; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserChange {
    pub email1: Option<String>,
    pub email2: Option<String>,
    pub organization: Option<String>,
    pub locale: Option<String>,
    pub user_alias: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewAccount {
    /// `None`: one is chosen.
    pub user_id: Option<String>,
    pub settings: AccountSettings,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    #[error("there is no such account; `skein account list` shows those there are")]
    NoAccount,
    #[error("there is no account {0}; `skein account list` shows those there are")]
    UnknownUserId(String),
    #[error("there is no such event")]
    NoEvent,
    #[error("{0} is no account id: give U and six digits, as in U004217")]
    BadUserId(String),
    #[error("the account id {0} is taken; give another one, or none to have one chosen")]
    UserIdTaken(String),
    #[error("{field} cannot be that: {why}")]
    BadParameter { field: &'static str, why: &'static str },
    #[error("there are {ACCOUNTS_MAX} accounts, and no more fit; remove one first")]
    TooManyAccounts,
    #[error("the account has {EVENTS_PER_ACCOUNT_MAX} events, and no more fit")]
    TooManyEvents,
    #[error("{0}")]
    Unreadable(String),
    #[error("the broker is stopping, and the change may not be kept")]
    Stopping,
}

/// A change being made: what it leaves here is what will be.
struct Draft {
    account: Account,
    events: BTreeMap<u32, Event>,
    records: Vec<Record>,
    ended: Option<EndedWhy>,
}

impl Draft {
    /// After `account` was changed.
    fn put_account(&mut self) {
        self.records.push(Record::AccountPut(Box::new(self.account.clone())));
    }

    fn put_event(&mut self, event: Event) {
        self.records.push(Record::EventPut {
            account: self.account.id,
            event: Box::new(event.clone()),
        });
        self.events.insert(event.event_id, event);
    }
}

impl Desk {
    pub fn new(parts: DeskParts) -> Desk {
        let mut seats: HashMap<AccountId, Seat> = parts
            .accounts
            .iter()
            .map(|tenant| (tenant.id(), Seat::default()))
            .collect();
        for (account, events) in parts.events {
            if let Some(seat) = seats.get_mut(&account) {
                seat.events = events.into_iter().map(|event| (event.event_id, event)).collect();
            }
        }
        Desk(Arc::new(Inner {
            books: parts.books,
            tell: parts.tell,
            state: Mutex::new(State {
                accounts: parts.accounts,
                seats,
                newest_account: parts.newest_account,
            }),
            adding: AsyncMutex::default(),
        }))
    }

    // --- looking ---

    /// The current snapshot.
    pub fn accounts(&self) -> Arc<Accounts> {
        Arc::clone(&self.state().accounts)
    }

    /// All events of an account, in the order of their ids.
    pub fn events(&self, account: AccountId) -> Vec<Event> {
        let state = self.state();
        let events = state.seats.get(&account).map(|seat| seat.events.values().cloned());
        events.into_iter().flatten().collect()
    }

    pub fn event(&self, account: AccountId, event_id: u32) -> Option<Event> {
        self.state().seats.get(&account)?.events.get(&event_id).cloned()
    }

    /// For what takes several steps: looking at channels, asking cores, changing what is here. The changes of this desk do
    /// not need it, and may be made while it is held.
    pub async fn lock(&self, account: AccountId) -> AccountLock {
        // An account that has gone has nothing to guard.
        let lock = self.state().seats.get(&account).map(|seat| Arc::clone(&seat.lock));
        AccountLock(lock.unwrap_or_default().lock_owned().await)
    }

    // --- accounts ---

    pub async fn add_account(&self, new: NewAccount) -> Result<Account, DeskError> {
        let desk = self.clone();
        to_the_end(async move {
            let _adding = desk.0.adding.lock().await;
            let account = desk.new_account(&new)?;
            let mut records = vec![Record::AccountPut(Box::new(account.clone()))];
            records.extend(account.default_channel.map(|channel| Record::ChannelPut {
                account: account.id,
                channel,
                entry: Box::default(),
            }));
            desk.commit(records).await?;
            desk.publish(account.clone(), BTreeMap::new(), None).await;
            Ok(account)
        })
        .await
    }

    fn new_account(&self, new: &NewAccount) -> Result<Account, DeskError> {
        let mut state = self.state();
        let accounts = Arc::clone(&state.accounts);
        if state.seats.len() >= ACCOUNTS_MAX {
            return Err(DeskError::TooManyAccounts);
        }
        let user_id = match &new.user_id {
            Some(given) if !is_user_id(given) => return Err(DeskError::BadUserId(given.clone())),
            Some(given) if accounts.by_user_id(given).is_some() => return Err(DeskError::UserIdTaken(given.clone())),
            Some(given) => given.clone(),
            None => random_user_id(&accounts),
        };
        let id = AccountId(state.newest_account + 1);
        let mut account = Account::new(id, &user_id, random_token(), random_token(), now_ms());
        rules::apply_settings(&mut account, new.settings.clone())?;
        state.newest_account = id.0;
        Ok(account)
    }

    /// The operator's settings of an account.
    pub async fn change_account(&self, user_id: &str, settings: AccountSettings) -> Result<Account, DeskError> {
        let id = self.id_of(user_id)?;
        // Nobody makes the channel meanwhile.
        let _lock = self.lock(id).await;
        let missing = match settings.default_channel {
            Some(DefaultChannel::Channel(channel)) if self.channel(id, channel).await?.is_none() => Some(channel),
            _ => None,
        };
        self.change(id, move |draft| {
            rules::apply_settings(&mut draft.account, settings)?;
            draft.records.extend(missing.map(|channel| Record::ChannelPut {
                account: id,
                channel,
                entry: Box::default(),
            }));
            draft.put_account();
            Ok(draft.account.clone())
        })
        .await
    }

    pub async fn change_user(&self, account: AccountId, change: UserChange) -> Result<(), DeskError> {
        self.change(account, move |draft| {
            rules::apply_user(&mut draft.account, change)?;
            draft.put_account();
            Ok(())
        })
        .await
    }

    /// Connections that used the old device token close.
    pub async fn rotate(&self, user_id: &str, tokens: Tokens) -> Result<Account, DeskError> {
        self.change(self.id_of(user_id)?, move |draft| {
            if tokens.has_api() {
                draft.account.api_token = random_token();
            }
            if tokens.has_device() {
                let before = std::mem::replace(&mut draft.account.device_token, random_token());
                draft.ended = Some(EndedWhy::TokenRotated { before });
            }
            draft.put_account();
            Ok(draft.account.clone())
        })
        .await
    }

    /// Connections close, and nobody of this account can connect. What it has stays.
    pub async fn suspend(&self, user_id: &str) -> Result<Account, DeskError> {
        self.set_suspended(user_id, true).await
    }

    pub async fn resume(&self, user_id: &str) -> Result<Account, DeskError> {
        self.set_suspended(user_id, false).await
    }

    async fn set_suspended(&self, user_id: &str, is_suspended: bool) -> Result<Account, DeskError> {
        self.change(self.id_of(user_id)?, move |draft| {
            if draft.account.is_suspended != is_suspended {
                draft.account.is_suspended = is_suspended;
                draft.ended = is_suspended.then_some(EndedWhy::Suspended);
                draft.put_account();
            }
            Ok(draft.account.clone())
        })
        .await
    }

    /// With all that is its.
    pub async fn remove(&self, user_id: &str) -> Result<Account, DeskError> {
        self.change(self.id_of(user_id)?, |draft| {
            let (account, device_token) = (draft.account.id, draft.account.device_token);
            draft.ended = Some(EndedWhy::Removed { device_token });
            draft.records.push(Record::AccountRemoved { account });
            Ok(draft.account.clone())
        })
        .await
    }

    // --- events ---

    /// Returns the id that the event is given.
    pub async fn create_event(&self, account: AccountId, mut event: Event) -> Result<u32, DeskError> {
        self.change(account, move |draft| {
            if draft.events.len() >= EVENTS_PER_ACCOUNT_MAX {
                return Err(DeskError::TooManyEvents);
            }
            rules::check_event(&event)?;
            let event_id = draft.account.next_event;
            draft.account.next_event = event_id.checked_add(1).ok_or(DeskError::TooManyEvents)?;
            event.event_id = event_id;
            draft.put_event(event);
            draft.put_account();
            Ok(event_id)
        })
        .await
    }

    pub async fn change_event(
        &self,
        account: AccountId,
        event_id: u32,
        change: impl FnOnce(&mut Event) -> Result<(), DeskError> + Send + 'static,
    ) -> Result<(), DeskError> {
        self.change(account, move |draft| {
            let mut event = draft.events.get(&event_id).cloned().ok_or(DeskError::NoEvent)?;
            change(&mut event)?;
            event.event_id = event_id;
            rules::check_event(&event)?;
            draft.put_event(event);
            Ok(())
        })
        .await
    }

    pub async fn remove_event(&self, account: AccountId, event_id: u32) -> Result<(), DeskError> {
        self.change(account, move |draft| {
            draft.events.remove(&event_id).ok_or(DeskError::NoEvent)?;
            draft.records.push(Record::EventRemoved { account, event_id });
            Ok(())
        })
        .await
    }

    /// Removes a channel on disk, its events here, and the mapping of new devices to it. That devices are mapped to it is
    /// for the cores to forget, which are asked by whoever calls this.
    pub async fn remove_channel(&self, account: AccountId, channel: ChannelId) -> Result<(), DeskError> {
        self.change(account, move |draft| {
            draft.events.retain(|_, event| event.channel != Some(channel));
            draft.records.push(Record::ChannelRemoved { account, channel });
            if draft.account.default_channel == Some(channel) {
                draft.account.default_channel = None;
                draft.put_account();
            }
            Ok(())
        })
        .await
    }

    // --- how a change is made ---

    async fn change<T: Send + 'static>(
        &self,
        id: AccountId,
        change: impl FnOnce(&mut Draft) -> Result<T, DeskError> + Send + 'static,
    ) -> Result<T, DeskError> {
        let desk = self.clone();
        to_the_end(async move {
            let turn = desk.state().seats.get(&id).map(|seat| Arc::clone(&seat.turn));
            let _turn = turn.ok_or(DeskError::NoAccount)?.lock_owned().await;
            let mut draft = desk.draft(id)?;
            let answer = change(&mut draft)?;
            if !draft.records.is_empty() {
                desk.commit(draft.records).await?;
                desk.publish(draft.account, draft.events, draft.ended).await;
            }
            Ok(answer)
        })
        .await
    }

    /// The account as it is now: it may have gone while its turn was waited for.
    fn draft(&self, id: AccountId) -> Result<Draft, DeskError> {
        let state = self.state();
        let tenant = state.accounts.tenant(id).ok_or(DeskError::NoAccount)?;
        let seat = state.seats.get(&id).ok_or(DeskError::NoAccount)?;
        Ok(Draft {
            account: tenant.account.clone(),
            events: seat.events.clone(),
            records: Vec::new(),
            ended: None,
        })
    }

    async fn commit(&self, records: Vec<Record>) -> Result<(), DeskError> {
        let (done, committed) = oneshot::channel();
        self.0.books.persist(
            records,
            Box::new(move || {
                let _ = done.send(());
            }),
        );
        committed.await.map_err(|_| DeskError::Stopping)
    }

    /// What is committed becomes what is.
    fn publish(&self, account: Account, events: BTreeMap<u32, Event>, ended: Option<EndedWhy>) -> Told {
        let mut state = self.state();
        let id = account.id;
        let next = match ended {
            Some(EndedWhy::Removed { .. }) => {
                state.seats.remove(&id);
                state.accounts.without(id)
            }
            _ => {
                let next = state.accounts.with(account, events.values().cloned());
                state.seats.entry(id).or_default().events = events;
                next
            }
        };
        state.accounts = Arc::new(next);
        // Under the lock: the next change must not overtake this one on its way to the cores.
        (self.0.tell)(AccountsChange {
            accounts: Arc::clone(&state.accounts),
            ended: ended.map(|why| Ended { account: id, why }),
        })
    }

    /// A channel as it is committed.
    pub async fn channel(&self, account: AccountId, channel: ChannelId) -> Result<Option<Channel>, DeskError> {
        let books = Arc::clone(&self.0.books);
        let looked = tokio::task::spawn_blocking(move || books.channel(account, channel)).await;
        looked.map_err(|_| DeskError::Stopping)?.map_err(DeskError::Unreadable)
    }

    fn id_of(&self, user_id: &str) -> Result<AccountId, DeskError> {
        if !is_user_id(user_id) {
            return Err(DeskError::BadUserId(user_id.to_owned()));
        }
        let accounts = self.accounts();
        accounts
            .by_user_id(user_id)
            .map(|tenant| tenant.id())
            .ok_or_else(|| DeskError::UnknownUserId(user_id.to_owned()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nobody panics while holding it")
    }
}

/// A task of its own: it goes on when the one that waits for it is dropped.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, DeskError>> + Send + 'static,
) -> Result<T, DeskError> {
    // A task that was not finished was taken down with its runtime.
    tokio::spawn(change).await.unwrap_or(Err(DeskError::Stopping))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

pub(super) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()));
    assert_eq!(
        filled,
        Ok(N),
        "up to 256 bytes are given whole once the system has booted"
    );
    bytes
}

fn random_token() -> Token {
    Token::from_random(random_bytes())
}

/// One that is free: of a million, at most [`ACCOUNTS_MAX`] are taken.
fn random_user_id(accounts: &Accounts) -> String {
    const ALL: u32 = 1_000_000;
    const _: () = assert!(ACCOUNTS_MAX < ALL as usize / 2);
    /// Beyond it some remainders would be likelier than others.
    const FAIR: u32 = u32::MAX - u32::MAX % ALL;
    loop {
        let number = u32::from_ne_bytes(random_bytes());
        let user_id = format!("U{:06}", number % ALL);
        if number < FAIR && accounts.by_user_id(&user_id).is_none() {
            return user_id;
        }
    }
}
