//! The device platform around the shards, where a seed has one: accounts, devices, and the application that changes them.
//!
//! Owns    the accounts as the control thread has them, the mailbox of every core (questions, and news of the accounts), what
//!         was asked and not answered, and what may be so of every device at every moment.
//! Called  by `world` (one act or one letter at a time, answers, starts and crashes), and at rest by `run` and `streams`.
//! Holds   - an account is on disk before any core hears of it; the letters of one core arrive in order, those of two cores
//!           whenever they like;
//!         - a device is asked about once at a time; what an answer says is on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use skein::mqtt::packet::QoS;
use skein::registry::access::{Access, AccountId, Accounts, AccountsChange, Ended, EndedWhy};
use skein::registry::account::{Account, Token};
use skein::registry::channel::{Channel, ChannelId};
use skein::registry::device::{Device, DeviceChange};
use skein::registry::quota::{OwnQuotas, Quotas, Usage};
use skein::routing::shard_key::{Division, ShardKey};
use skein::shard::Input;
use skein::shard::query::{Answer, Query, Refusal, SentFormat, Ticket};
use skein::shard::record::{Record, Stored};

use crate::faults::Profile;
use crate::oracle::{Message, message_number};
use crate::quotas::some_quotas;
use crate::random::Random;
use crate::topics::{Purpose, Route, is_below};
use crate::world::World;

/// Devices that topics name, by tenant.
pub const DEVICES: usize = 3;
/// Channels of every account.
pub const CHANNELS: u32 = 2;

pub struct Tenant {
    pub id: AccountId,
    pub account: Account,
    /// It is removed, and this one is made in its place when every core knows. That is told to its clients once every core
    /// knows it.
    next: Option<Next>,
    /// By the device's number.
    pub devices: Vec<Known>,
}

struct Next {
    account: Box<Account>,
    is_made: bool,
}

/// A token that is nobody's any more.
struct Past {
    token: Token,
    /// The account is removed as well.
    removed: Option<AccountId>,
    at: u64,
    /// Nothing of it was left, or the broker died before that: what cores had not heard of stays on disk.
    is_over: bool,
}

/// How a device treats data: a device that is not registered is as it would be once registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub is_enabled: bool,
    pub channel: Option<ChannelId>,
}

/// A change that was asked for.
struct Change {
    asked_at: u64,
    /// None: not answered, and nobody knows whether it was done.
    answered_at: Option<u64>,
    to: State,
}

/// How a device was, as far as anybody can know.
pub struct Known {
    first: State,
    changes: Vec<Change>,
    is_asked: bool,
}

enum Asked {
    Message(usize),
    Device {
        tenant: usize,
        device: usize,
    },
    Sessions {
        tenant: usize,
        core: usize,
    },
    /// Whose mailbox was read when it was asked.
    Settled,
}

enum Letter {
    Question(Ticket, Query),
    Accounts(AccountsChange),
}

pub struct Platform {
    pub tenants: Vec<Tenant>,
    /// Of accounts that have none of their own.
    quotas: Quotas,
    has_few_devices: bool,
    past: Vec<Past>,
    newest_account: u32,
    accounts: Arc<Accounts>,
    /// What each core has been told.
    pub told: Vec<Arc<Accounts>>,
    mailboxes: Vec<VecDeque<Letter>>,
    asked: BTreeMap<Ticket, Asked>,
    next_ticket: u32,
    shard_key: Option<ShardKey>,
}

/// What has happened, for the totals.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Happened {
    pub answers: u64,
    pub refusals: u64,
    pub suspensions: u64,
    pub rotations: u64,
    pub removals: u64,
    pub quotas_set: u64,
    pub datapoints: u64,
}

impl Happened {
    pub fn add(&mut self, other: &Happened) {
        self.answers += other.answers;
        self.refusals += other.refusals;
        self.suspensions += other.suspensions;
        self.rotations += other.rotations;
        self.removals += other.removals;
        self.quotas_set += other.quotas_set;
        self.datapoints += other.datapoints;
    }
}

pub fn device_name(device: usize) -> String {
    format!("d{device}")
}

/// A new account, with its channels.
fn founding(entry: &Account) -> Vec<Record> {
    let account = entry.id;
    let channels = (0..CHANNELS).map(|number| Record::ChannelPut {
        account,
        channel: channel(number),
        entry: Box::new(Channel::default()),
    });
    let put = Record::AccountPut(Box::new(entry.clone()));
    std::iter::once(put).chain(channels).collect()
}

pub fn channel(number: u32) -> ChannelId {
    ChannelId::new(number).expect("a small number")
}

impl Platform {
    pub fn new(profile: &Profile, random: &mut Random) -> Platform {
        // Of accounts that have none of their own.
        let quotas = some_quotas(profile, random).over(&Quotas::default());
        let tenants = (0..profile.tenants).map(|number| {
            let id = AccountId(number as u32 + 1);
            let mut token = || {
                let (high, low) = (random.next().to_be_bytes(), random.next().to_be_bytes());
                let mut bits = [0; 16];
                bits[..8].copy_from_slice(&high);
                bits[8..].copy_from_slice(&low);
                Token::from_random(bits)
            };
            let tokens = (token(), token());
            let mut account = Account::new(id, &format!("U{:06}", id.0), tokens.0, tokens.1, 0);
            account.default_channel = random.percent(50).then(|| channel(0));
            account.quotas = some_quotas(profile, random);
            if profile.has_few_devices {
                account.devices_max = random.between(0, DEVICES - 1) as u32;
            }
            let first = State {
                is_enabled: true,
                channel: account.default_channel,
            };
            let known = || Known {
                first,
                changes: Vec::new(),
                is_asked: false,
            };
            Tenant {
                id,
                account,
                next: None,
                devices: (0..DEVICES).map(|_| known()).collect(),
            }
        });
        Platform {
            tenants: tenants.collect(),
            quotas,
            has_few_devices: profile.has_few_devices,
            past: Vec::new(),
            newest_account: profile.tenants as u32,
            accounts: Arc::default(),
            told: Vec::new(),
            mailboxes: Vec::new(),
            asked: BTreeMap::new(),
            next_ticket: 0,
            shard_key: None,
        }
    }

    /// What is on disk before the first start.
    pub fn founding(&self) -> Vec<Record> {
        self.tenants
            .iter()
            .flat_map(|tenant| founding(&tenant.account))
            .collect()
    }

    fn is_known(&self) -> bool {
        self.told.iter().all(|told| Arc::ptr_eq(told, &self.accounts))
    }

    pub fn token(&self, tenant: usize) -> &str {
        self.tenants[tenant].account.device_token.as_str()
    }

    /// A run of the broker begins. What was asked of the last is not answered any more.
    pub fn start(&mut self, stored: &Stored, cores: u16, hash_key: [u64; 4]) -> Access {
        let none = Accounts::bounded(self.quotas);
        let found = stored.accounts.iter().cloned();
        self.accounts = Arc::new(found.fold(none, |accounts, (account, events)| accounts.with(account, events)));
        self.told = (0..cores).map(|_| Arc::clone(&self.accounts)).collect();
        self.mailboxes = (0..cores).map(|_| VecDeque::new()).collect();
        self.asked.clear();
        for known in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.devices) {
            known.is_asked = false;
        }
        self.shard_key = Some(ShardKey::new(hash_key, cores, Division::Devices));
        Access::Platform(Arc::clone(&self.accounts))
    }

    /// What an account has now.
    pub fn usage(&self, tenant: usize) -> Option<&Usage> {
        self.accounts.tenant(self.tenants[tenant].id).map(|known| &*known.usage)
    }

    /// Whether a message was, will be, or may have been given to those who want its topic, by what was known between these
    /// moments.
    pub fn route(&self, message: &Message, purpose: Purpose, from: u64, to: u64) -> Route {
        match purpose {
            Purpose::Data { tenant, device, .. } | Purpose::State { tenant, device } if message.len > 0 => {
                let possible = self.tenants[tenant].devices[device].possible(from, to);
                match possible.iter().filter(|state| state.is_enabled).count() {
                    0 => Route::Never,
                    // A device that is new may find no room.
                    _ if self.has_few_devices => Route::Maybe,
                    enabled if enabled == possible.len() => Route::Surely,
                    _ => Route::Maybe,
                }
            }
            _ => Route::Surely,
        }
    }

    fn owner(&self, tenant: usize, device: usize) -> usize {
        let key = self.shard_key.as_ref().expect("it has started");
        key.owner_of_device(self.tenants[tenant].id, &device_name(device))
            .into()
    }

    fn ask(&mut self, core: usize, asked: Asked, query: Query) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.asked.insert(ticket, asked);
        self.mailboxes[core].push_back(Letter::Question(ticket, query));
        ticket
    }

    fn tell_all(&mut self, ended: Option<Ended>) {
        for mailbox in &mut self.mailboxes {
            let accounts = Arc::clone(&self.accounts);
            mailbox.push_back(Letter::Accounts(AccountsChange { accounts, ended }));
        }
    }

    pub fn is_at_rest(&self) -> bool {
        self.asked.is_empty() && self.mailboxes.iter().all(VecDeque::is_empty)
    }
}

impl Known {
    /// What may be so at some moment from `from` to `to`.
    pub fn possible(&self, from: u64, to: u64) -> BTreeSet<State> {
        let mut states = BTreeSet::from([self.first]);
        for change in self.changes.iter().take_while(|change| change.asked_at <= to) {
            if change.answered_at.is_some_and(|at| at <= from) {
                states.clear();
            }
            states.insert(change.to);
        }
        states
    }
}

impl World {
    /// One thing that an application or an operator does, or one letter that a core reads.
    pub fn platform_acts(&mut self) {
        if self.platform.is_none() {
            return;
        }
        if self.random.percent(50) {
            let core = self.random.below(self.shards.len());
            self.read_mail(core);
            return;
        }
        let tenants = self.platform.as_ref().map_or(0, |platform| platform.tenants.len());
        let tenant = self.random.below(tenants);
        let device = self.random.below(DEVICES);
        if self.tenant(tenant).next.is_some() {
            self.add_again(tenant);
            return;
        }
        // What was asked names topics that would be others when it is read.
        if self.platform.as_ref().is_some_and(Platform::is_at_rest) && self.random.percent(50) {
            let (rotates, removes) = (self.profile.rotate_percent, self.profile.remove_percent);
            match self.random.below(10) {
                0..4 if self.random.percent(rotates) => self.rotate(tenant),
                4..10 if self.random.percent(removes) => self.remove(tenant),
                _ => {}
            }
            return;
        }
        match self.random.below(20) {
            0..8 => self.api_message(tenant),
            8..15 => self.change_device(tenant, device),
            15..17 => {
                let core = self.random.below(self.shards.len());
                let account = self.tenant(tenant).id;
                self.ask(
                    core,
                    Asked::Sessions { tenant, core },
                    Query::Sessions { account, from: 0 },
                );
            }
            17 if self.random.percent(50) => {
                let core = self.random.below(self.shards.len());
                self.ask(core, Asked::Settled, Query::Settled);
            }
            17 if self.random.percent(self.profile.quota_percent) => self.set_quotas(tenant),
            19 if self.random.percent(self.profile.suspend_percent) => {
                let is_suspended = !self.tenant(tenant).account.is_suspended;
                self.suspend(tenant, is_suspended);
            }
            _ => {}
        }
    }

    fn tenant(&self, tenant: usize) -> &Tenant {
        &self.platform.as_ref().expect("a seed with accounts").tenants[tenant]
    }

    fn ask(&mut self, core: usize, asked: Asked, query: Query) {
        let words = brief(core, &query);
        let platform = self.platform.as_mut().expect("a seed with accounts");
        let Ticket(ticket) = platform.ask(core, asked, query);
        self.event(40, u64::from(ticket), || format!("{ticket}: {words}"));
    }

    /// Data over HTTP, or a command.
    fn api_message(&mut self, tenant: usize) {
        let number = self.new_api_message(tenant);
        let Some(number) = number else { return };
        let message = &self.oracle.messages[number];
        let (qos, purpose) = (message.qos, self.oracle.topics.purposes[message.topic]);
        let payload = self.oracle.payload(number).into_boxed_slice();
        let account = self.tenant(tenant).id;
        let (device, query) = match purpose {
            Purpose::Data { device, tag, .. } => {
                let query = Query::Send {
                    account,
                    device: device_name(device).into(),
                    tag: tag.map(Into::into),
                    payload,
                    format: SentFormat::Json,
                };
                (device, query)
            }
            Purpose::Command { device, .. } => {
                let query = Query::Command {
                    account,
                    device: device_name(device).into(),
                    qos,
                    payload,
                };
                (device, query)
            }
            _ => unreachable!("the API sends data and commands"),
        };
        let core = self
            .platform
            .as_ref()
            .expect("a seed with accounts")
            .owner(tenant, device);
        let moment = self.moment;
        let message = &mut self.oracle.messages[number];
        (message.sent_at, message.attempts, message.runs) = (Some(moment), 1, 1);
        self.ask(core, Asked::Message(number), query);
    }

    fn change_device(&mut self, tenant: usize, device: usize) {
        let to = State {
            is_enabled: self.random.percent(70),
            channel: self
                .random
                .percent(70)
                .then(|| channel(self.random.below(CHANNELS as usize) as u32)),
        };
        let removes = self.random.percent(15);
        let creates = self.random.percent(30);
        let moment = self.moment;
        let platform = self.platform.as_mut().expect("a seed with accounts");
        let account = platform.tenants[tenant].id;
        let known = &mut platform.tenants[tenant].devices[device];
        if known.is_asked {
            return;
        }
        known.is_asked = true;
        let (name, first) = (device_name(device).into(), known.first);
        let change = DeviceChange {
            is_enabled: Some(to.is_enabled),
            channel: Some(to.channel),
            ..DeviceChange::default()
        };
        let (to, query) = match (removes, creates) {
            (true, _) => (first, Query::RemoveDevice { account, device: name }),
            (_, true) => (
                to,
                Query::CreateDevice {
                    account,
                    device: name,
                    change,
                },
            ),
            _ => (
                to,
                Query::ChangeDevice {
                    account,
                    device: name,
                    change,
                },
            ),
        };
        known.changes.push(Change {
            asked_at: moment,
            answered_at: None,
            to,
        });
        let core = platform.owner(tenant, device);
        self.ask(core, Asked::Device { tenant, device }, query);
    }

    fn suspend(&mut self, tenant: usize, is_suspended: bool) {
        self.event(41, tenant as u64, || {
            format!("account of tenant {tenant}: suspended {is_suspended}")
        });
        self.happened.suspensions += u64::from(is_suspended);
        let platform = self.platform.as_mut().expect("a seed with accounts");
        let entry = &mut platform.tenants[tenant];
        entry.account.is_suspended = is_suspended;
        self.disk.put(&Record::AccountPut(Box::new(entry.account.clone())));
        platform.accounts = Arc::new(platform.accounts.with(entry.account.clone(), []));
        let ended = is_suspended.then_some(Ended {
            account: entry.id,
            why: EndedWhy::Suspended,
        });
        platform.tell_all(ended);
    }

    /// An operator sets other bounds.
    fn set_quotas(&mut self, tenant: usize) {
        let quotas = some_quotas(&self.profile, &mut self.random);
        self.happened.quotas_set += 1;
        self.put_quotas(tenant, quotas);
    }

    /// Everybody may come, and subscribe, at the end of a run.
    fn lift_bounds(&mut self, tenant: usize) -> bool {
        let before = self.tenant(tenant).account.quotas;
        let quotas = OwnQuotas {
            connections_max: Some(0),
            sessions_max: Some(0),
            subscriptions_max: Some(0),
            ..before
        };
        if quotas != before {
            self.put_quotas(tenant, quotas);
        }
        quotas != before
    }

    fn put_quotas(&mut self, tenant: usize, quotas: OwnQuotas) {
        self.event(46, tenant as u64, || format!("account of tenant {tenant}: {quotas:?}"));
        let platform = self.platform.as_mut().expect("a seed with accounts");
        let entry = &mut platform.tenants[tenant];
        entry.account.quotas = quotas;
        self.disk.put(&Record::AccountPut(Box::new(entry.account.clone())));
        platform.accounts = Arc::new(platform.accounts.with(entry.account.clone(), []));
        platform.tell_all(None);
    }

    fn some_token(&mut self) -> Token {
        let bits = [self.random.next(), self.random.next()].map(u64::to_be_bytes);
        Token::from_random(std::array::from_fn(|at| bits[at / 8][at % 8]))
    }

    /// An account is removed with all that is its. Its tenant gets another, once every core knows.
    fn remove(&mut self, tenant: usize) {
        // What cores that know have given back is not counted: to those that do not know yet the account would seem full.
        if self.lift_bounds(tenant) {
            return;
        }
        let tokens = (self.some_token(), self.some_token());
        let moment = self.moment;
        let quotas = some_quotas(&self.profile, &mut self.random);
        let platform = self.platform.as_mut().expect("a seed with accounts");
        // Two that are gone at a time would tell no more than one.
        if platform.tenants.iter().any(|tenant| tenant.next.is_some()) {
            return;
        }
        platform.newest_account += 1;
        let entry = &mut platform.tenants[tenant];
        entry.next = Some(Next {
            account: Box::new(Account {
                id: AccountId(platform.newest_account),
                api_token: tokens.0,
                device_token: tokens.1,
                is_suspended: false,
                quotas,
                ..entry.account.clone()
            }),
            is_made: false,
        });
        // Its devices are unknown again.
        for known in &mut entry.devices {
            known.changes.push(Change {
                asked_at: moment,
                answered_at: None,
                to: known.first,
            });
        }
        let (account, device_token) = (entry.id, entry.account.device_token);
        self.disk.put(&Record::AccountRemoved { account });
        platform.accounts = Arc::new(platform.accounts.without(account));
        platform.tell_all(Some(Ended {
            account,
            why: EndedWhy::Removed { device_token },
        }));
        platform.past.push(Past {
            token: device_token,
            removed: Some(account),
            at: moment,
            is_over: false,
        });
        let next = AccountId(platform.newest_account);
        self.event(47, tenant as u64, || {
            format!(
                "the account of tenant {tenant} is removed; {next:?} follows with {}",
                tokens.1.as_str()
            )
        });
        self.happened.removals += 1;
        self.oracle
            .topics
            .remove_account(tenant, next, tokens.1.as_str(), self.moment);
        for client in self.clients.iter_mut().filter(|client| client.tenant == tenant) {
            client.retire_subscriptions();
        }
    }

    /// The account of a tenant that has none is made, or known. False where some core is behind.
    fn add_again(&mut self, tenant: usize) -> bool {
        let moment = self.moment;
        let platform = self.platform.as_mut().expect("a seed with accounts");
        if !platform.is_known() || !platform.is_at_rest() {
            return false;
        }
        let entry = &mut platform.tenants[tenant];
        let next = entry.next.as_mut().expect("it is removed");
        if !next.is_made {
            next.is_made = true;
            founding(&next.account).iter().for_each(|record| self.disk.put(record));
            platform.accounts = Arc::new(platform.accounts.with(Account::clone(&next.account), []));
            platform.tell_all(None);
            return true;
        }
        (entry.id, entry.account) = (next.account.id, Account::clone(&next.account));
        entry.next = None;
        for change in entry.devices.iter_mut().filter_map(|known| known.changes.last_mut()) {
            change.answered_at = Some(moment);
        }
        self.event(48, tenant as u64, || format!("tenant {tenant} has an account again"));
        self.rotations_are_known();
        true
    }

    /// A tenant gets another device token.
    fn rotate(&mut self, tenant: usize) {
        let token = self.some_token();
        let moment = self.moment;
        let platform = self.platform.as_mut().expect("a seed with accounts");
        let entry = &mut platform.tenants[tenant];
        let before = std::mem::replace(&mut entry.account.device_token, token);
        self.disk.put(&Record::AccountPut(Box::new(entry.account.clone())));
        platform.accounts = Arc::new(platform.accounts.with(entry.account.clone(), []));
        let ended = Ended {
            account: entry.id,
            why: EndedWhy::TokenRotated { before },
        };
        platform.tell_all(Some(ended));
        platform.past.push(Past {
            token: before,
            removed: None,
            at: moment,
            is_over: false,
        });
        self.event(45, tenant as u64, || {
            format!("tenant {tenant} has another token, {}", token.as_str())
        });
        self.happened.rotations += 1;
        self.oracle.topics.rotate(tenant, token.as_str(), self.moment);
        for client in self.clients.iter_mut().filter(|client| client.tenant == tenant) {
            client.retire_subscriptions();
        }
    }

    /// If every core has heard of the accounts as they are: nothing below an older token goes anywhere.
    pub fn rotations_are_known(&mut self) {
        let Some(platform) = &self.platform else { return };
        let is_any_gone = platform.tenants.iter().any(|tenant| tenant.next.is_some());
        if platform.is_known() && !is_any_gone {
            let moment = self.moment;
            self.oracle.topics.rotations_are_known(moment);
            for client in &mut self.clients {
                client.end_retired_subscriptions(moment);
            }
        }
    }

    /// A core reads one letter.
    pub fn read_mail(&mut self, core: usize) -> bool {
        let Some(platform) = &mut self.platform else {
            return false;
        };
        match platform.mailboxes[core].pop_front() {
            None => return false,
            Some(Letter::Question(ticket, query)) => {
                self.event(42, u64::from(ticket.0), || {
                    format!("core {core} reads question {}", ticket.0)
                });
                let query = Box::new(query);
                self.handle(core, Input::Asked { ticket, query });
            }
            Some(Letter::Accounts(change)) => {
                platform.told[core] = Arc::clone(&change.accounts);
                let ended = change.ended;
                self.event(43, core as u64, || {
                    format!("core {core} hears of the accounts: {ended:?}")
                });
                self.handle(core, Input::Accounts(Box::new(change)));
                self.drain(core);
                if let Some(ended) = ended {
                    self.has_ended(core, &ended);
                }
                self.rotations_are_known();
            }
        }
        self.drain(core);
        true
    }

    /// A core has heard that connections of an account are to close, and filters below an old token to go.
    fn has_ended(&mut self, core: usize, ended: &Ended) {
        let Ended { account, why } = *ended;
        let open = self.live.iter().find(|link| {
            let l = &self.links[**link];
            l.is_at_home_on(core) && self.tenant(l.tenant).id == account
        });
        assert_eq!(open, None, "a connection stays open: {ended:?}");
        if !matches!(why, EndedWhy::TokenRotated { .. }) {
            return;
        }
        for client in 0..self.clients.len() {
            let tenant = self.clients[client].tenant;
            let home = self.shards[core].home(account, &self.client_id(client));
            if self.tenant(tenant).id == account && home.0 as usize == core {
                self.oracle.sessions[client].filters.clear();
            }
        }
    }

    /// An answer of a core's.
    pub fn answered(&mut self, core: usize, ticket: Ticket, answer: &Answer) {
        self.event(44, u64::from(ticket.0), || {
            format!("core {core} answers {}: {answer:?}", ticket.0)
        });
        let moment = self.moment;
        let platform = self.platform.as_mut().expect("only applications ask");
        let asked = platform.asked.remove(&ticket).expect("an answer comes once");
        self.happened.answers += 1;
        self.happened.refusals += u64::from(matches!(answer, Answer::Refused(_)));
        match asked {
            Asked::Settled => assert_eq!(*answer, Answer::Done),
            Asked::Sessions { tenant, core } => {
                let Answer::Sessions { sessions, .. } = answer else {
                    panic!("asked for Sessions, answered {answer:?}");
                };
                for session in sessions {
                    let link = self.link(core, session.connection).expect("a connection that is there");
                    assert_eq!(
                        self.links[link].tenant, tenant,
                        "a Session of another account is listed"
                    );
                }
            }
            Asked::Device { tenant, device } => {
                let known = &mut platform.tenants[tenant].devices[device];
                known.is_asked = false;
                match answer {
                    Answer::Done => {
                        let change = known.changes.last_mut().expect("it was asked for");
                        change.answered_at = Some(moment);
                        self.check_device_on_disk(tenant, device);
                    }
                    // Nothing was changed.
                    Answer::Refused(Refusal::NoDevice | Refusal::DeviceInUse) => drop(known.changes.pop()),
                    Answer::Refused(Refusal::MaxDeviceReach) => {
                        known.changes.pop();
                        self.check_has_no_room(core, tenant);
                    }
                    _ => panic!("a change of a device is answered {answer:?}"),
                }
            }
            Asked::Message(number) => match answer {
                Answer::Done | Answer::Registered | Answer::Refused(Refusal::NoMappedChannel) => {
                    if self.oracle.messages[number].qos > QoS::AtMostOnce {
                        self.oracle.messages[number].acknowledged_at = Some(moment);
                        self.check_everybody_has(number);
                    }
                }
                Answer::Refused(Refusal::DeviceDisabled | Refusal::NoDevice) => {
                    self.oracle.messages[number].is_refused = true;
                }
                Answer::Refused(Refusal::MaxDeviceReach) => {
                    let tenant = self.oracle.messages[number].tenant;
                    self.oracle.messages[number].is_refused = true;
                    self.check_has_no_room(core, tenant);
                }
                _ => panic!("message {number} is answered {answer:?}"),
            },
        }
    }

    fn check_has_no_room(&self, core: usize, tenant: usize) {
        let platform = self.platform.as_ref().expect("a seed with accounts");
        let known = platform.told[core].tenant(platform.tenants[tenant].id);
        let known = known.expect("a device of an account that is there");
        assert!(
            known.device_count() >= known.account.devices_max,
            "a device of tenant {tenant} is refused, and there is room for it"
        );
    }

    /// A device that was changed is so on disk when the answer leaves.
    fn check_device_on_disk(&self, tenant: usize, device: usize) {
        let entry = self.tenant(tenant);
        let known = &entry.devices[device];
        let change = known.changes.last().expect("it was changed");
        let stored = self.disk.tables().devices(entry.id);
        let stored = stored.iter().find(|(name, ..)| **name == *device_name(device));
        let state = stored.map_or(known.first, |(_, device, _): &(_, Device, _)| State {
            is_enabled: device.is_enabled,
            channel: device.channel,
        });
        assert_eq!(
            state, change.to,
            "device {device} of tenant {tenant} was changed, and is not so on disk"
        );
    }

    /// Everything that the control thread and the cores owe each other, at once.
    pub fn platform_settles(&mut self) -> bool {
        let mut moved = false;
        let tenants = self.platform.as_ref().map_or(0, |platform| platform.tenants.len());
        for tenant in 0..tenants {
            if self.tenant(tenant).next.is_some() {
                moved |= self.add_again(tenant);
                continue;
            }
            if self.tenant(tenant).account.is_suspended {
                self.suspend(tenant, false);
                moved = true;
            }
            moved |= self.lift_bounds(tenant);
        }
        for core in 0..self.shards.len() {
            while self.read_mail(core) {
                moved = true;
            }
        }
        moved
    }

    /// At rest: nothing is left below a token that is rotated away, nor of an account that is removed.
    pub fn check_past(&mut self) {
        let Some(platform) = &mut self.platform else { return };
        let mut past = platform.past.iter_mut().filter(|past| !past.is_over).peekable();
        if past.peek().is_none() {
            return;
        }
        let stored = self.disk.stored(0);
        for past in past {
            past.is_over = true;
            let is_below = |text: &str| is_below(past.token.as_str(), text);
            let filters = stored.sessions.iter().flat_map(|session| &session.filters);
            let filters = filters.filter(|(filter, _)| is_below(filter)).count();
            let retained = stored
                .retained
                .iter()
                .filter(|retained| is_below(&retained.topic))
                .count();
            assert_eq!(filters, 0, "filters below {:?}", past.token);
            // Who a retained message was of is not on disk, beyond its token.
            if self.oracle.crashed_at <= past.at {
                assert_eq!(retained, 0, "retained messages below {:?}", past.token);
            }
            let Some(account) = past.removed else { continue };
            let sessions = stored.sessions.iter().filter(|session| session.account == account);
            let devices = stored.devices.iter().filter(|device| device.account == account);
            assert_eq!(
                (sessions.count(), devices.count()),
                (0, 0),
                "Sessions and devices of {account:?}"
            );
        }
    }
}

fn brief(core: usize, query: &Query) -> String {
    match query {
        Query::Send {
            account,
            device,
            tag,
            payload,
            ..
        } => {
            let number = message_number(payload);
            format!("core {core} is asked to take m{number:?} of {device} {tag:?}, {account:?}")
        }
        Query::Command {
            account,
            device,
            payload,
            qos,
        } => {
            let number = message_number(payload);
            format!("core {core} is asked to command m{number:?} to {device}, {account:?}, {qos:?}")
        }
        query => format!("core {core} is asked: {query:?}"),
    }
}
