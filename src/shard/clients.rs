//! The clients at home on this core: Sessions, connections, and how one is found from the other.
//!
//! Owns    a slab of [`Client`]s found by (account, Client Identifier), and a table of [`Connection`]s found by the
//!         shell's [`ConnectionId`].
//! Called  by all of `shard`.
//! Holds   - a Client has at most one Connection and a live Connection exactly one Client;
//!         - both structs are paid a million times: what only busy clients need is behind a pointer that is usually null
//!           (sizes asserted below).

use ahash::RandomState;
use hashbrown::HashTable;
use slab::Slab;

use crate::mqtt::packet::{Level, Will};
use crate::registry::access::AccountId;
use crate::routing::subscriptions::FilterId;
use crate::session::inbound::{Acknowledgements, ReceivedIds};
use crate::session::outbound::Outbound;
use crate::session::outbox::Outbox;

use super::deadlines::TickNumber;
use super::event::ConnectionId;
use super::record::{SessionKey, SessionNumber};
use super::scan::Scans;

/// What outlives a Network Connection if Clean Session is off, and ends with it otherwise.
pub struct Client {
    pub client_id: Box<str>,
    /// Received QoS 2 identifiers.
    pub received: Option<Box<ReceivedIds>>,
    /// Deliveries above QoS 0, and what waits behind them.
    pub outbound: Option<Box<Outbound>>,
    pub filters: Filters,
    pub account: AccountId,
    pub connection: Option<ConnectionId>,
    /// Which Session this is, for ever; the clean ones have numbers of their own, so that no durable one meets them.
    pub number: SessionNumber,
}

impl Client {
    /// Whether the Session ends with its connection.
    #[inline]
    pub fn is_clean(&self) -> bool {
        self.number.is_clean()
    }

    /// The deliveries, made when they are first needed.
    pub fn outbound(&mut self) -> &mut Outbound {
        self.outbound.get_or_insert_default()
    }

    /// Frees what an idle client does not need.
    pub fn trim(&mut self) {
        if self.outbound.as_ref().is_some_and(|outbound| outbound.is_idle()) {
            self.outbound = None;
        }
        if self.received.as_ref().is_some_and(|received| received.is_empty()) {
            self.received = None;
        }
    }
}

/// The filters one Session holds; nearly always one.
#[derive(Default)]
pub enum Filters {
    #[default]
    None,
    One(FilterId),
    Many(Box<Vec<FilterId>>),
}

impl Filters {
    pub fn as_slice(&self) -> &[FilterId] {
        match self {
            Filters::None => &[],
            Filters::One(filter) => std::slice::from_ref(filter),
            Filters::Many(filters) => filters,
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a filter that is not held.
    pub fn insert(&mut self, filter: FilterId) {
        match self {
            Filters::None => *self = Filters::One(filter),
            Filters::One(first) => *self = Filters::Many(Box::new(vec![*first, filter])),
            Filters::Many(filters) => filters.push(filter),
        }
    }

    pub fn remove(&mut self, filter: FilterId) {
        match self {
            Filters::One(only) if *only == filter => *self = Filters::None,
            Filters::None | Filters::One(_) => {}
            Filters::Many(filters) => {
                if let Some(place) = filters.iter().position(|held| *held == filter) {
                    filters.swap_remove(place);
                }
                if filters.is_empty() {
                    *self = Filters::None;
                }
            }
        }
    }
}

/// One Network Connection. `state` tells whether it is served; the outbox is kept until the shell has closed the socket.
#[derive(Default)]
pub struct Connection {
    pub outbox: Outbox,
    pub will: Option<Box<Will>>,
    /// Owed PUBACK and PUBREC that wait for other cores or the disk.
    pub acknowledgements: Option<Box<Acknowledgements>>,
    /// Retained messages on their way to new subscriptions.
    pub scans: Option<Box<Scans>>,
    pub generation: u32,
    /// The Client's place in the slab while `state` is not `Closed`.
    pub client: u32,
    /// When the last packet came, and when it began.
    pub last_packet: TickNumber,
    pub connected: TickNumber,
    pub keep_alive_s: u16,
    pub level_is_v31: bool,
    pub state: State,
    /// `Output::Transmit` has been said and the outbox has not been empty since.
    pub transmit_said: bool,
    /// It has been said again, for the outbox is past `OUTBOX_FLUSH_BYTES`.
    pub flush_said: bool,
    /// Why it is not read: bits of [`paused`].
    pub paused: u8,
}

/// Reasons to pause a connection.
pub mod paused {
    /// A peer's batch is past its bound.
    pub const PEER: u8 = 1;
    /// Too many of its publishes wait for a receipt.
    pub const RECEIPTS: u8 = 2;
    /// The queue of a subscriber is full, or the disk is behind.
    pub const HELD_BACK: u8 = 4;
    /// The disk must know that the Session which it replaced has ended.
    pub const ENDED_SESSION: u8 = 8;
    /// It has published as often as it may in this second.
    pub const RATE: u8 = 16;
    /// Its account has published as often as it may for now.
    pub const ACCOUNT_RATE: u8 = 32;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not in use, or closed and waiting for the shell to say so.
    #[default]
    Closed,
    Open,
}

impl Connection {
    pub fn level(&self) -> Level {
        if self.level_is_v31 { Level::V31 } else { Level::V311 }
    }

    /// When silence has lasted one and a half times the Keep Alive [MQTT-3.1.2-24]; `None` without one.
    pub fn silence_deadline(&self) -> Option<TickNumber> {
        if self.keep_alive_s == 0 {
            return None;
        }
        let ms = u64::from(self.keep_alive_s) * 1_500;
        // `last_packet` is rounded down, so one tick more: never sooner.
        Some(TickNumber(
            self.last_packet.0 + ms.div_ceil(crate::limits::DEADLINE_TICK_MS) as u32 + 1,
        ))
    }
}

const _: () = assert!(size_of::<Client>() <= 72);
const _: () = assert!(size_of::<Connection>() <= 80);

/// The tables.
pub struct Clients {
    pub sessions: Slab<Client>,
    by_id: HashTable<u32>,
    hasher: RandomState,
    /// The next Session's number, and how far it is to the one after: cores take turns.
    next_number: u64,
    number_step: u64,
    pub connections: Vec<Connection>,
    pub open: usize,
}

impl Clients {
    pub fn new(hash_key: [u64; 4]) -> Clients {
        let [a, b, c, d] = hash_key;
        Clients {
            sessions: Slab::new(),
            by_id: HashTable::new(),
            hasher: RandomState::with_seeds(a, b, c, d),
            next_number: 0,
            number_step: 1,
            connections: Vec::new(),
            open: 0,
        }
    }

    /// Numbers of this core from now on: `first`, `first + step`, ...
    pub fn number_from(&mut self, first: u64, step: u64) {
        self.next_number = first;
        self.number_step = step;
    }

    pub fn find(&self, account: AccountId, client_id: &str) -> Option<u32> {
        let hash = self.hasher.hash_one((account, client_id));
        let found = self.by_id.find(hash, |index| {
            let client = &self.sessions[*index as usize];
            client.account == account && *client.client_id == *client_id
        });
        found.copied()
    }

    pub fn insert(&mut self, account: AccountId, client_id: Box<str>, clean_session: bool) -> u32 {
        let number = SessionNumber(self.next_number | if clean_session { SessionNumber::CLEAN } else { 0 });
        self.next_number += self.number_step;
        self.insert_numbered(account, client_id, number)
    }

    /// The same with a number that is known: of a Session that the store kept.
    pub fn insert_numbered(&mut self, account: AccountId, client_id: Box<str>, number: SessionNumber) -> u32 {
        let hash = self.hasher.hash_one((account, &*client_id));
        let index = self.sessions.insert(Client {
            client_id,
            received: None,
            outbound: None,
            filters: Filters::None,
            account,
            connection: None,
            number,
        }) as u32;
        let Clients {
            sessions,
            by_id,
            hasher,
            ..
        } = self;
        by_id.insert_unique(hash, index, |index| {
            let client = &sessions[*index as usize];
            hasher.hash_one((client.account, &*client.client_id))
        });
        index
    }

    pub fn remove(&mut self, index: u32) -> Client {
        let client = self.sessions.remove(index as usize);
        let hash = self.hasher.hash_one((client.account, &*client.client_id));
        match self.by_id.find_entry(hash, |other| *other == index) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => unreachable!("every Session is found by its Client Identifier"),
        }
        client
    }

    /// The places of all Sessions of an account.
    pub fn of_account(&self, account: AccountId) -> Vec<u32> {
        let sessions = self.sessions.iter().filter(|(_, client)| client.account == account);
        sessions.map(|(index, _)| index as u32).collect()
    }

    pub fn key(&self, index: u32) -> SessionKey {
        SessionKey {
            index,
            number: self.sessions[index as usize].number,
        }
    }

    /// The Session of this key, unless it has ended.
    pub fn session(&mut self, key: SessionKey) -> Option<&mut Client> {
        self.sessions
            .get_mut(key.index as usize)
            .filter(|client| client.number == key.number)
    }

    /// The connection with this id, whatever its state, unless its place has been used again.
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections
            .get(id.index as usize)
            .filter(|connection| connection.generation == id.generation)
    }

    /// Whose a connection is that is served.
    pub fn account_of(&self, id: ConnectionId) -> AccountId {
        let client = self.connections[id.index as usize].client;
        self.sessions[client as usize].account
    }

    /// The connection with this id while it is served.
    pub fn open_connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(id.index as usize)?;
        (connection.generation == id.generation && connection.state == State::Open).then_some(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_identifiers_are_unique_within_an_account_only() {
        let mut clients = Clients::new([1, 2, 3, 4]);
        let first = clients.insert(AccountId(0), "a".into(), true);
        let second = clients.insert(AccountId(1), "a".into(), true);
        assert_eq!(clients.find(AccountId(0), "a"), Some(first));
        assert_eq!(clients.find(AccountId(1), "a"), Some(second));
        clients.remove(first);
        assert_eq!(clients.find(AccountId(0), "a"), None);
        assert_eq!(clients.find(AccountId(1), "a"), Some(second));
    }

    #[test]
    fn a_session_key_does_not_find_the_next_session_in_its_place() {
        let mut clients = Clients::new([1, 2, 3, 4]);
        let index = clients.insert(AccountId(0), "a".into(), false);
        let key = clients.key(index);
        clients.remove(index);
        assert_eq!(clients.insert(AccountId(0), "b".into(), false), index);
        assert!(clients.session(key).is_none());
    }

    #[test]
    fn filters_are_held_once_each() {
        let mut filters = Filters::default();
        for id in 0..3 {
            filters.insert(FilterId(id));
        }
        filters.remove(FilterId(1));
        assert_eq!(filters.as_slice(), [FilterId(0), FilterId(2)]);
        filters.remove(FilterId(1));
        filters.remove(FilterId(0));
        filters.remove(FilterId(2));
        assert!(filters.is_empty());
    }
}
