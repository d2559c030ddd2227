//! The store in memory: what the records mean, without a disk. The model that `lmdb` is tested against, the store of the
//! simulation, and that of tests.
//!
//! Called  through [`Door`](super::Door) for a run that keeps nothing, where a record is as safe as it will be the moment it
//!         is pushed; by tests and simulation directly, which clone [`Tables`] to know what a crash leaves.
//! Holds   - applying the same records twice in a row from the same tables gives the same tables, but for a datapoint that comes
//!           before its channel.

mod platform;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::mqtt::packet::{PacketId, QoS};
use crate::registry::access::AccountId;
use crate::session::message::SharedMessage;
use crate::shard::RecordNumber;
use crate::shard::record::{
    Backlog, Fetch, Fetched, Origin, QueueFetch, QueueWindow, Record, RetainedFetch, RetainedPayloads, SessionNumber,
    Stored, StoredEntry, StoredRetained, StoredSession,
};

/// All that a store keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    sessions: BTreeMap<SessionNumber, Session>,
    retained: BTreeMap<Box<str>, (Arc<[u8]>, QoS)>,
    in_doubt: BTreeMap<Origin, BTreeSet<SessionNumber>>,
    newest_session: u64,
    tenants: BTreeMap<AccountId, platform::Tenant>,
    newest_datapoint_ms: u64,
    newest_account: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Session {
    account: AccountId,
    client_id: Box<str>,
    filters: BTreeMap<Box<str>, QoS>,
    received: BTreeSet<u16>,
    queue: BTreeMap<u64, Entry>,
    away_since_s: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    message: SharedMessage,
    qos: QoS,
    retain: bool,
    released: bool,
}

impl Tables {
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::SessionStarted {
                session,
                account,
                client_id,
            } => {
                let started = Session {
                    account: *account,
                    client_id: client_id.clone(),
                    ..Session::default()
                };
                self.sessions.insert(*session, started);
                self.newest_session = self.newest_session.max(session.0);
                self.in_doubt.retain(|origin, _| origin.session != *session);
            }
            Record::SessionEnded { session } => {
                self.sessions.remove(session);
                self.in_doubt.retain(|origin, _| origin.session != *session);
            }
            Record::Subscribed { session, filter, qos } => {
                self.session(*session).filters.insert(filter.clone(), *qos);
            }
            Record::Unsubscribed { session, filter } => drop(self.session(*session).filters.remove(filter)),
            Record::Queued {
                message,
                entries,
                origin,
            } => {
                for entry in entries {
                    let queued = Entry {
                        message: message.clone(),
                        qos: entry.qos,
                        retain: entry.retain,
                        released: false,
                    };
                    self.session(entry.session).queue.insert(entry.sequence, queued);
                }
                if let Some(origin) = origin {
                    let held = entries.iter().map(|entry| entry.session);
                    self.in_doubt.entry(*origin).or_default().extend(held);
                }
            }
            Record::Released { session, sequence } => {
                if let Some(entry) = self.session(*session).queue.get_mut(sequence) {
                    entry.released = true;
                }
            }
            Record::Delivered { session, sequence } => drop(self.session(*session).queue.remove(sequence)),
            Record::Retained { topic, payload, qos } => match payload.is_empty() {
                true => drop(self.retained.remove(topic)),
                false => drop(self.retained.insert(topic.clone(), (payload.clone(), *qos))),
            },
            Record::PacketIdReceived { session, packet_id } => {
                self.session(*session).received.insert(packet_id.get());
                let (session, packet_id) = (*session, *packet_id);
                self.in_doubt.remove(&Origin { session, packet_id });
            }
            Record::PacketIdReleased { session, packet_id } => {
                self.session(*session).received.remove(&packet_id.get());
            }
            Record::SessionAway { session, since_s } => self.session(*session).away_since_s = Some(*since_s),
            Record::SessionBack { session } => self.session(*session).away_since_s = None,
            of_the_platform => self.apply_platform(of_the_platform),
        }
    }

    /// A shard records the start of a Session before anything that happens to it, and nothing after its end.
    fn session(&mut self, session: SessionNumber) -> &mut Session {
        self.sessions
            .get_mut(&session)
            .expect("records of a Session come between its start and its end")
    }

    pub fn read(&self, fetch: &Fetch) -> Fetched {
        match fetch {
            Fetch::Queue(fetch) => Fetched::Queue(self.window(fetch)),
            Fetch::Retained(fetch) => Fetched::Retained(self.payloads(fetch)),
        }
    }

    fn window(&self, fetch: &QueueFetch) -> QueueWindow {
        let queue = self.sessions.get(&fetch.session.number).map(|session| &session.queue);
        let mut rest = queue.into_iter().flat_map(|queue| queue.range(fetch.from..)).peekable();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < fetch.entries_max && bytes < fetch.bytes_max {
            let Some((sequence, entry)) = rest.next() else { break };
            bytes += entry.message.len();
            entries.push(StoredEntry {
                sequence: *sequence,
                qos: entry.qos,
                retain: entry.retain,
                released: entry.released,
                message: entry.message.clone(),
            });
        }
        QueueWindow {
            session: fetch.session,
            entries,
            is_end: rest.peek().is_none(),
        }
    }

    fn payloads(&self, fetch: &RetainedFetch) -> RetainedPayloads {
        let topics = fetch.topics.iter();
        RetainedPayloads {
            ticket: fetch.ticket,
            payloads: topics
                .map(|topic| self.retained.get(topic).map(|(payload, _)| payload.clone()))
                .collect(),
        }
    }

    /// What a start is given; payloads of retained messages as far as these bytes go.
    pub fn stored(&self, retained_bytes_max: usize) -> Stored {
        let sessions = self.sessions.iter().map(|(number, session)| StoredSession {
            session: *number,
            account: session.account,
            client_id: session.client_id.clone(),
            filters: session
                .filters
                .iter()
                .map(|(filter, qos)| (filter.clone(), *qos))
                .collect(),
            received: session.received.iter().filter_map(|id| PacketId::new(*id)).collect(),
            away_since_s: session.away_since_s,
            backlog: session.queue.first_key_value().map(|(first, _)| Backlog {
                first: *first,
                end: session.queue.last_key_value().map_or(*first, |(last, _)| last + 1),
                entries: session.queue.len() as u64,
                bytes: session.queue.values().map(|entry| entry.message.len() as u64).sum(),
            }),
        });
        let mut bytes_left = retained_bytes_max;
        let retained = self.retained.iter().map(|(topic, (payload, qos))| {
            let fits = payload.len() <= bytes_left;
            bytes_left -= if fits { payload.len() } else { 0 };
            StoredRetained {
                topic: topic.clone(),
                payload: fits.then(|| payload.clone()),
                payload_bytes: payload.len() as u32,
                qos: *qos,
            }
        });
        Stored {
            sessions: sessions.collect(),
            retained: retained.collect(),
            newest_session: self.newest_session,
            // A publisher that is gone never sends its PUBLISH again.
            in_doubt: self
                .in_doubt
                .iter()
                .filter(|(origin, _)| self.sessions.contains_key(&origin.session))
                .map(|(origin, held)| (*origin, held.iter().copied().collect()))
                .collect(),
            accounts: self.stored_accounts(),
            devices: self.stored_devices(),
            newest_datapoint_ms: self.newest_datapoint_ms,
            newest_account: self.newest_account,
        }
    }
}

/// The door to a store of one core's own.
#[derive(Debug, Default)]
pub struct Memory {
    tables: Tables,
    pushed: Option<RecordNumber>,
    fetched: VecDeque<Fetched>,
}

impl Memory {
    pub fn push(&mut self, number: RecordNumber, record: Box<Record>) {
        self.tables.apply(&record);
        self.tables.settle();
        self.pushed = Some(number);
    }

    pub fn fetch(&mut self, fetch: Fetch) {
        let fetched = self.tables.read(&fetch);
        self.fetched.push_back(fetched);
    }

    pub fn committed(&mut self) -> Option<RecordNumber> {
        self.pushed.take()
    }

    pub fn fetched(&mut self) -> Option<Fetched> {
        self.fetched.pop_front()
    }

    pub fn has_news(&self) -> bool {
        self.pushed.is_some() || !self.fetched.is_empty()
    }
}
