//! Who may connect, and who may use which topic.
//!
//! Owns    [`Accounts`], the snapshot of all accounts that every core holds; replaced as a whole.
//! Called  by `shard::greeting` (CONNECT) and by `shard` (PUBLISH, SUBSCRIBE); by `http` for its own tokens.
//! Holds   - no state of a client;
//!         - passwords and tokens are compared in constant time, whether the account exists or not;
//!         - a topic or a filter is an account's only if its first level is the account's device token: since that holds for
//!           every publish and every subscription, no message crosses accounts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::account::{Account, Token};
use super::channel::ChannelId;
use super::event::Event;
use super::quota::{Quotas, Usage};
use crate::mqtt::packet::Connect;
use crate::mqtt::reason::ConnectReturnCode;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// A tenant. Client identifiers are unique within one. 0 is the one account of `--access open`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub u32);

/// The rules of a run; an immutable value that every core holds.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// `--access open`: anyone, any topic. One account for all.
    #[default]
    Open,
    /// `--access platform`: accounts, tokens, and topics that begin with the token.
    Platform(Arc<Accounts>),
}

impl Access {
    /// The account of a CONNECT, or the return code that refuses it.
    pub fn authenticate(&self, connect: &Connect) -> Result<AccountId, ConnectReturnCode> {
        match self {
            Access::Open => Ok(AccountId(0)),
            Access::Platform(accounts) => accounts.authenticate(connect),
        }
    }

    #[inline]
    pub fn may_publish(&self, account: AccountId, topic: TopicName<'_>) -> bool {
        match self {
            Access::Open => true,
            Access::Platform(accounts) => accounts.below_prefix(account, topic.as_str()).is_some(),
        }
    }

    pub fn may_subscribe(&self, account: AccountId, filter: TopicFilter<'_>) -> bool {
        match self {
            Access::Open => true,
            Access::Platform(accounts) => accounts.below_prefix(account, filter.as_str()).is_some(),
        }
    }

    /// What is known of an account; nothing in `--access open`.
    #[inline]
    pub fn tenant(&self, account: AccountId) -> Option<&Arc<Tenant>> {
        match self {
            Access::Open => None,
            Access::Platform(accounts) => accounts.tenant(account),
        }
    }

    /// Whether any account is bounded in how often it may publish.
    pub fn limits_publishes(&self) -> bool {
        matches!(self, Access::Platform(accounts) if accounts.publish_limited > 0)
    }

    /// Whether any account is bounded in what is kept for it.
    pub fn limits_kept(&self) -> bool {
        matches!(self, Access::Platform(accounts) if accounts.kept_limited > 0)
    }

    /// Tells one snapshot from the next.
    pub fn version(&self) -> u64 {
        match self {
            Access::Open => 0,
            Access::Platform(accounts) => accounts.version,
        }
    }
}

/// What the cores know of one account.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub account: Account,
    /// The enabled events of each channel.
    pub events: HashMap<ChannelId, Vec<Event>>,
    /// Its own where it has any, else the broker's.
    pub quotas: Quotas,
    /// Over all cores and snapshots.
    pub usage: Arc<Usage>,
}

impl Tenant {
    pub fn id(&self) -> AccountId {
        self.account.id
    }

    /// Makes room for one more device; false at the account's limit.
    pub fn take_device(&self) -> bool {
        self.usage.devices.take_below(self.account.devices_max)
    }

    /// A device that a start found: it is there, whatever the limit.
    pub fn count_device(&self) {
        self.usage.devices.add();
    }

    pub fn give_device_back(&self) {
        self.usage.devices.give_back(1);
    }

    pub fn device_count(&self) -> u32 {
        self.usage.devices.now()
    }

    /// Whether so many more bytes may be kept for it.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.usage.kept.has_room(bytes, self.quotas.kept_bytes_max)
    }

    /// Takes its turn to publish; false where it has none now.
    pub fn take_publish(&self, now_ms: u64) -> bool {
        let per_s = self.quotas.publishes_per_s_max;
        per_s == 0 || self.usage.publishes.take(per_s, now_ms)
    }

    /// Turns to publish that it has now.
    pub fn publishes_ready(&self, now_ms: u64) -> u64 {
        match self.quotas.publishes_per_s_max {
            0 => u64::MAX,
            per_s => self.usage.publishes.ready(per_s, now_ms),
        }
    }
}

/// All accounts at one moment.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    version: u64,
    /// Of accounts that have none of their own.
    quotas: Quotas,
    /// Accounts that are bounded in how often they may publish, and in what is kept for them.
    publish_limited: u32,
    kept_limited: u32,
    /// By [`AccountId`]: ids are given in ascending order, and never again.
    by_id: Vec<Option<Arc<Tenant>>>,
    by_user: BTreeMap<Box<str>, AccountId>,
    /// By the hash of the token, so that how long a search takes tells nothing of a token.
    by_device_token: BTreeMap<[u8; 32], AccountId>,
    by_api_token: BTreeMap<[u8; 32], AccountId>,
}

impl Accounts {
    /// None; those to come have these bounds unless they have others of their own.
    pub fn bounded(quotas: Quotas) -> Accounts {
        Accounts {
            quotas,
            ..Accounts::default()
        }
    }

    /// Those that a start finds, each with its events.
    pub fn of<E: IntoIterator<Item = Event>>(found: impl IntoIterator<Item = (Account, E)>) -> Accounts {
        let mut accounts = Accounts::default();
        for (account, events) in found {
            accounts.put(account, events);
        }
        accounts
    }

    /// The same accounts as `self` but for this one, which is new or has changed.
    pub fn with(&self, account: Account, events: impl IntoIterator<Item = Event>) -> Accounts {
        let mut next = self.clone();
        next.version += 1;
        next.put(account, events);
        next
    }

    /// The same accounts without this one.
    pub fn without(&self, id: AccountId) -> Accounts {
        let mut next = self.clone();
        next.version += 1;
        next.take(id);
        next
    }

    fn put(&mut self, account: Account, events: impl IntoIterator<Item = Event>) {
        let usage = self.take(account.id).map(|before| Arc::clone(&before.usage));
        let quotas = account.quotas.over(&self.quotas);
        self.publish_limited += u32::from(quotas.publishes_per_s_max > 0);
        self.kept_limited += u32::from(quotas.kept_bytes_max > 0);
        let mut by_channel: HashMap<ChannelId, Vec<Event>> = HashMap::new();
        for event in events {
            if let (true, Some(channel)) = (event.is_enabled, event.channel) {
                by_channel.entry(channel).or_default().push(event);
            }
        }
        self.by_user.insert(account.user_id.clone(), account.id);
        self.by_device_token
            .insert(digest(account.device_token.as_str()), account.id);
        self.by_api_token.insert(digest(account.api_token.as_str()), account.id);
        let place = account.id.0 as usize;
        if self.by_id.len() <= place {
            self.by_id.resize(place + 1, None);
        }
        self.by_id[place] = Some(Arc::new(Tenant {
            account,
            events: by_channel,
            quotas,
            usage: usage.unwrap_or_default(),
        }));
    }

    fn take(&mut self, id: AccountId) -> Option<Arc<Tenant>> {
        let tenant = self.by_id.get_mut(id.0 as usize)?.take()?;
        self.publish_limited -= u32::from(tenant.quotas.publishes_per_s_max > 0);
        self.kept_limited -= u32::from(tenant.quotas.kept_bytes_max > 0);
        let account = &tenant.account;
        self.by_user.remove(&account.user_id);
        self.by_device_token.remove(&digest(account.device_token.as_str()));
        self.by_api_token.remove(&digest(account.api_token.as_str()));
        Some(tenant)
    }

    #[inline]
    pub fn tenant(&self, id: AccountId) -> Option<&Arc<Tenant>> {
        self.by_id.get(id.0 as usize)?.as_ref()
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.by_id.iter().flatten()
    }

    pub fn by_user_id(&self, user_id: &str) -> Option<&Arc<Tenant>> {
        self.tenant(*self.by_user.get(user_id)?)
    }

    /// `X-DEVICETOKEN`
    pub fn by_device_token(&self, token: &str) -> Option<&Arc<Tenant>> {
        let tenant = self.tenant(*self.by_device_token.get(&digest(token))?)?;
        tenant.account.device_token.is(token.as_bytes()).then_some(tenant)
    }

    /// Whose topic it is.
    pub fn of_topic(&self, topic: &str) -> Option<&Arc<Tenant>> {
        self.by_device_token(topic.split('/').next().unwrap_or_default())
    }

    /// `X-APITOKEN`
    pub fn by_api_token(&self, token: &str) -> Option<&Arc<Tenant>> {
        let tenant = self.tenant(*self.by_api_token.get(&digest(token))?)?;
        tenant.account.api_token.is(token.as_bytes()).then_some(tenant)
    }

    /// User name: the account; password: its device token. 0x04 if they are not both right, 0x05 if the account is suspended.
    fn authenticate(&self, connect: &Connect) -> Result<AccountId, ConnectReturnCode> {
        let password = connect.password.as_deref().unwrap_or_default();
        let tenant = connect.user_name.as_deref().and_then(|user| self.by_user_id(user));
        let is_right = match tenant {
            Some(tenant) => tenant.account.device_token.is(password),
            None => {
                let _ = Token::NOBODYS.is(password);
                false
            }
        };
        match tenant {
            Some(tenant) if is_right && tenant.account.is_suspended => Err(ConnectReturnCode::NotAuthorized),
            Some(tenant) if is_right => Ok(tenant.id()),
            _ => Err(ConnectReturnCode::BadUserNameOrPassword),
        }
    }

    /// What follows the account's prefix in a topic or filter: "" for the prefix itself, else what comes after its `/`. `None`
    /// where the first level is not the account's device token.
    #[inline]
    pub fn below_prefix<'t>(&self, account: AccountId, text: &'t str) -> Option<&'t str> {
        let token = &self.tenant(account)?.account.device_token;
        let first = text.as_bytes().get(..Token::LEN)?;
        if !token.is(first) {
            return None;
        }
        match text.as_bytes().get(Token::LEN) {
            None => Some(""),
            Some(b'/') => Some(&text[Token::LEN + 1..]),
            Some(_) => None,
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// A new snapshot, and who has lost what by it.
#[derive(Clone, Debug)]
pub struct AccountsChange {
    pub accounts: Arc<Accounts>,
    pub ended: Option<Ended>,
}

/// Connections of this account close; what else goes with it, see [`EndedWhy`].
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub account: AccountId,
    pub why: EndedWhy,
}

#[derive(Clone, Copy, Debug)]
pub enum EndedWhy {
    /// Connections that used this device token close; subscriptions and retained messages below it go.
    TokenRotated { before: Token },
    /// Connections close; everything stays.
    Suspended,
    /// Sessions, retained messages, devices: all of it goes. The store removes the rest.
    Removed { device_token: Token },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::packet::Level;
    use crate::registry::quota::OwnQuotas;

    fn account(id: u32) -> Account {
        let token = |kind: u8| Token::from_random([kind + id as u8; 16]);
        Account::new(AccountId(id), &format!("U{id:06}"), token(0xa0), token(0xb0), 0)
    }

    fn accounts() -> Accounts {
        Accounts::default().with(account(1), []).with(account(2), [])
    }

    fn connect(user: Option<&str>, password: Option<&str>) -> Connect {
        Connect {
            level: Level::V311,
            clean_session: true,
            keep_alive_s: 0,
            client_id: "c".to_owned(),
            user_name: user.map(str::to_owned),
            password: password.map(|password| password.as_bytes().to_vec()),
            will: None,
        }
    }

    #[test]
    fn user_name_and_device_token_of_one_account_let_in() {
        use ConnectReturnCode::{BadUserNameOrPassword, NotAuthorized};
        let accounts = accounts();
        let (one, two) = (account(1), account(2));
        let device = one.device_token.as_str();
        let authenticate = |user, password| accounts.authenticate(&connect(user, password));
        assert_eq!(authenticate(Some("U000001"), Some(device)), Ok(AccountId(1)));
        for (user, password) in [
            (Some("U000001"), Some(one.api_token.as_str())),
            (Some("U000001"), Some(two.device_token.as_str())),
            (Some("U000001"), Some(&device.to_lowercase() as &str)),
            (Some("U000001"), Some(&device[..31])),
            (Some("U000001"), Some("")),
            (Some("U000001"), None),
            (Some("U000003"), Some(device)),
            (Some("u000001"), Some(device)),
            (Some(""), Some("")),
            (None, None),
        ] {
            assert_eq!(
                authenticate(user, password),
                Err(BadUserNameOrPassword),
                "{user:?} {password:?}"
            );
        }
        let suspended = Account {
            is_suspended: true,
            ..one.clone()
        };
        let accounts = accounts.with(suspended, []);
        assert_eq!(
            accounts.authenticate(&connect(Some("U000001"), Some(device))),
            Err(NotAuthorized)
        );
        let wrong = accounts.authenticate(&connect(Some("U000001"), Some("x")));
        assert_eq!(
            wrong,
            Err(BadUserNameOrPassword),
            "who does not know the token learns nothing"
        );
    }

    #[test]
    fn only_topics_and_filters_below_the_own_token_are_an_accounts() {
        let access = Access::Platform(Arc::new(accounts()));
        let (own, other) = (account(1).device_token, account(2).device_token);
        let (own, other) = (own.as_str(), other.as_str());
        for (filter, may) in [
            (format!("{own}/#"), true),
            (own.to_owned(), true),
            (format!("{own}/+/subscribe"), true),
            (format!("{own}/json/+"), true),
            ("#".to_owned(), false),
            ("+/json/#".to_owned(), false),
            ("$SYS/#".to_owned(), false),
            (format!("{other}/#"), false),
            (format!("{own}x/#"), false),
            (format!("{}/#", &own[..31]), false),
            (format!("/{own}/#"), false),
            (format!("{}/#", own.to_lowercase()), false),
        ] {
            assert_eq!(
                access.may_subscribe(AccountId(1), TopicFilter::trusted(&filter)),
                may,
                "{filter}"
            );
            if !filter.contains(['+', '#']) {
                assert_eq!(
                    access.may_publish(AccountId(1), TopicName::trusted(&filter)),
                    may,
                    "{filter}"
                );
            }
        }
    }

    #[test]
    fn a_snapshot_finds_accounts_by_what_they_have_now() {
        let before = accounts();
        let renewed = Account {
            device_token: Token::from_random([9; 16]),
            ..account(1)
        };
        let after = before.with(renewed.clone(), []);
        assert!(after.by_device_token(account(1).device_token.as_str()).is_none());
        assert_eq!(
            after
                .by_device_token(renewed.device_token.as_str())
                .map(|tenant| tenant.id()),
            Some(AccountId(1))
        );
        assert!(after.by_api_token(renewed.device_token.as_str()).is_none());
        assert!(after.by_api_token(renewed.api_token.as_str()).is_some());
        let without = after.without(AccountId(1));
        assert!(without.by_user_id("U000001").is_none() && without.tenant(AccountId(1)).is_none());
        assert_eq!(without.iter().count(), 1);
        assert!(before.version < after.version && after.version < without.version);
    }

    #[test]
    fn devices_are_counted_over_snapshots_up_to_the_limit() {
        let small = Account {
            devices_max: 2,
            ..account(1)
        };
        let first = Accounts::default().with(small.clone(), []);
        let second = first.with(small, []);
        let [one, two] = [&first, &second].map(|accounts| accounts.tenant(AccountId(1)).unwrap());
        assert!(one.take_device() && two.take_device() && !one.take_device());
        two.give_device_back();
        assert!(one.take_device());
    }

    #[test]
    fn quotas_are_the_account_s_own_or_the_broker_s_and_usage_outlives_a_change() {
        let broker = Quotas {
            connections_max: 2,
            ..Quotas::default()
        };
        let first = Accounts::bounded(broker).with(account(1), []);
        let access = |accounts: &Accounts| Access::Platform(Arc::new(accounts.clone()));
        assert!(!access(&first).limits_publishes() && !access(&first).limits_kept());
        let mut changed = account(1);
        changed.quotas = OwnQuotas {
            publishes_per_s_max: Some(1),
            kept_bytes_max: Some(10),
            ..OwnQuotas::default()
        };
        let second = first.with(changed, []);
        assert!(access(&second).limits_publishes() && access(&second).limits_kept());
        let [one, two] = [&first, &second].map(|accounts| accounts.tenant(AccountId(1)).unwrap());
        assert_eq!((two.quotas.connections_max, two.quotas.kept_bytes_max), (2, 10));
        one.usage.kept.change(0, 10);
        assert!(one.has_room(1) && !two.has_room(1));
        assert!(two.take_publish(0) && !two.take_publish(0) && one.take_publish(0));
        let third = second.without(AccountId(1));
        assert!(!access(&third).limits_publishes() && !access(&third).limits_kept());
    }
}
