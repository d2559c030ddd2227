//! A start: what the store knew, given to the cores of this run, whose number may differ from the last.
//!
//! Called  by `server` before the first core serves, and by the simulation after a crash.
//! Holds   - every Session goes to its home core, every filter and retained message to its owners, as this run divides them;
//!         - with accounts, what belongs to none of them is left where it is: Sessions of `--access open`, retained messages, devices;
//!         - Sessions of an account that was removed end here, where the broker ended before all cores had heard of it;
//!         - a new Session's number is greater than any that was ever on disk, and no two cores give the same.

use std::sync::Arc;

use crate::mqtt::packet::PacketId;
use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::registry::access::{Access, AccountId};
use crate::registry::devices::Entry;
use crate::routing::shard_key::Owners;
use crate::routing::subscriptions::Subscribed;
use crate::session::outbound::Outbound;

use super::Shard;
use super::record::{Record, SessionKey, Stored, StoredRetained, StoredSession};

/// Gives the shards what the store kept. `shards` are all cores of the run, in order, fresh.
pub fn restore(shards: &mut [Shard], stored: Stored) {
    let Stored {
        sessions,
        retained,
        newest_session,
        in_doubt,
        devices,
        // The first is in the shards' access, the second in their configuration; the last is for whoever makes accounts.
        accounts: _,
        newest_datapoint_ms: _,
        newest_account: _,
    } = stored;
    let accounts = match &shards[0].access {
        Access::Open => None,
        Access::Platform(accounts) => Some(Arc::clone(accounts)),
    };
    let cores = shards.len() as u64;
    let first = newest_session + 1;
    for (core, shard) in shards.iter_mut().enumerate() {
        assert!(
            usize::from(shard.core.0) == core && u64::from(shard.cores) == cores,
            "the shards are those of one run, in order"
        );
        shard.clients.number_from(first + core as u64, cores);
        shard.in_doubt.extend(in_doubt.iter().cloned());
    }
    let mut away: Vec<Vec<_>> = shards.iter().map(|_| Vec::new()).collect();
    for (origin, _) in &in_doubt {
        if let Ok(place) = sessions.binary_search_by_key(&origin.session, |session| session.session) {
            let publisher = &sessions[place];
            let home = shards[0].home(publisher.account, &publisher.client_id);
            shards[usize::from(home.0)].unsettled.insert(*origin);
        }
    }
    for retained in retained {
        let StoredRetained {
            topic,
            payload,
            payload_bytes,
            qos,
        } = retained;
        let account = match &accounts {
            None => AccountId::default(),
            Some(accounts) => match accounts.of_topic(&topic) {
                Some(tenant) => {
                    tenant.usage.kept.change(0, topic.len() + payload_bytes as usize);
                    tenant.id()
                }
                // Nobody can get it. It stays on disk for a run with `--access open`.
                None => continue,
            },
        };
        let topic = TopicName::trusted(&topic);
        let owner = shards[0].shard_key.owner(account, topic);
        shards[usize::from(owner)]
            .retained
            .restore(topic, payload, payload_bytes, qos);
    }
    for device in devices {
        let Some(tenant) = accounts.as_ref().and_then(|accounts| accounts.tenant(device.account)) else {
            continue;
        };
        tenant.count_device();
        let owner = shards[0].shard_key.owner_of_device(device.account, &device.device);
        let entry = Entry {
            is_enabled: device.is_enabled,
            channel: device.channel,
        };
        shards[usize::from(owner)]
            .devices
            .insert(device.account, &device.device, entry);
    }
    for session in sessions {
        let home = shards[0].home(session.account, &session.client_id);
        if let Some(accounts) = &accounts
            && accounts.tenant(session.account).is_none()
        {
            // That one nobody can come for now, but in a run with `--access open`: it stays on disk.
            if session.account != AccountId::default() {
                let session = session.session;
                shards[usize::from(home.0)].persist(Record::SessionEnded { session });
            }
            continue;
        }
        let since_s = session.away_since_s;
        let (key, new_filters) = shards[usize::from(home.0)].restore_session(session);
        away[usize::from(home.0)].push((since_s, key));
        for (filter, owners) in new_filters {
            for owner in owners {
                shards[usize::from(owner)]
                    .interest
                    .add(TopicFilter::trusted(&filter), home.0);
            }
        }
    }
    for (shard, away) in shards.iter_mut().zip(away) {
        shard.restore_expiry(away);
    }
}

/// A filter that is new on its core, and the cores that own its topics.
type NewFilter = (Box<str>, std::ops::Range<u16>);

impl Shard {
    /// Makes a Session as the store knew it. Returns the filters that are new on this core, and the cores to tell.
    fn restore_session(&mut self, stored: StoredSession) -> (SessionKey, Vec<NewFilter>) {
        let index = self
            .clients
            .insert_numbered(stored.account, stored.client_id, stored.session);
        self.counters.sessions_restored += 1;
        let client = &mut self.clients.sessions[index as usize];
        if let Some(backlog) = stored.backlog {
            let bytes = usize::try_from(backlog.bytes).unwrap_or(usize::MAX);
            let outbound = Outbound::stored(backlog.first, backlog.end, backlog.entries, bytes);
            client.outbound = Some(Box::new(outbound));
            self.counters.queued_restored += backlog.entries;
        }
        let tenant = self.access.tenant(stored.account).cloned();
        if let Some(tenant) = &tenant {
            tenant.usage.sessions.add();
        }
        if !stored.received.is_empty() {
            let received = client.received.get_or_insert_default();
            stored.received.into_iter().for_each(|packet_id: PacketId| {
                received.receive(packet_id);
            });
        }
        let mut first = Vec::new();
        for (text, qos) in stored.filters {
            let filter = TopicFilter::trusted(&text);
            if !self.access.may_subscribe(stored.account, filter) {
                // The token was rotated, and the broker ended before all of what was below it had gone.
                let session = stored.session;
                self.persist(Record::Unsubscribed { session, filter: text });
                continue;
            }
            let (filter_id, subscribed) = self.subscriptions.subscribe(filter, index, qos);
            if subscribed != Subscribed::Replaced {
                self.clients.sessions[index as usize].filters.insert(filter_id);
                if let Some(tenant) = &tenant {
                    tenant.usage.subscriptions.add();
                }
            }
            if subscribed == Subscribed::FirstOnCore && self.cores > 1 {
                let owners = match self.shard_key.owners(stored.account, filter) {
                    Owners::All => 0..self.cores,
                    Owners::One(core) => core..core + 1,
                };
                first.push((text, owners));
            }
        }
        self.charge(index);
        (self.clients.key(index), first)
    }
}
