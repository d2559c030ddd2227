//! What accounts may have at most: as an operator sets it, and a model of what is refused.
//!
//! Owns    nothing: what accounts have is with `oracle` (Sessions, their filters) and `world` (connections).
//! Called  by `world`, before a connection comes home, with every SUBSCRIBE that a core has read, and around every input of
//!         a core; by `platform`, for what an operator sets, and at rest.
//! Holds   - a core goes by the bounds that it has been told of;
//!         - connections, durable Sessions and filters are refused where one more would be beyond the bound, and nowhere else;
//!         - what is kept, and devices, grow beyond their bounds by nothing that comes (what is in flight to a client that
//!           leaves is kept for it); they are refused where the bound is near, and nowhere else.

use skein::mqtt::packet::Packet;
use skein::registry::quota::{OwnQuotas, Quotas};
use skein::shard::Input;

use crate::faults::Profile;
use crate::random::Random;
use crate::topics::is_below;
use crate::world::World;

/// What retained messages that are read from the disk at once may take.
const FETCHED_BYTES: usize = 64 * 1024;

/// Bounds of an account's own.
pub fn some_quotas(profile: &Profile, random: &mut Random) -> OwnQuotas {
    let mut some =
        |choices: &[u32]| -> Option<u32> { random.percent(profile.quota_percent).then(|| random.pick(choices)) };
    OwnQuotas {
        connections_max: some(&[0, 1, 2, 4]),
        sessions_max: some(&[0, 1, 2, 4]),
        subscriptions_max: some(&[0, 1, 3, 8, 20]),
        publishes_per_s_max: random.pick(&[None, None, Some(5), Some(50)]),
        kept_bytes_max: profile.kept_bytes_max.filter(|_| random.percent(60)),
    }
}

/// Of an account, before an input.
struct Had {
    kept: u64,
    devices: u32,
}

/// What is there before an input of a core.
pub struct Before {
    /// By tenant.
    had: Vec<Had>,
    connections: usize,
    refused_kept: u64,
    refused_devices: u64,
    /// What the input brings at most.
    bytes: usize,
    /// It ends connections, or may.
    ends: bool,
}

impl World {
    /// The bounds of an account as a core knows them; `None`: there are none, or the account is gone.
    fn quotas(&self, core: usize, tenant: usize) -> Option<Quotas> {
        let platform = self.platform.as_ref()?;
        let known = platform.told[core].tenant(platform.tenants[tenant].id)?;
        Some(known.quotas)
    }

    /// Open connections of an account.
    pub fn connections_of(&self, tenant: usize) -> usize {
        let is_open = |link: &&usize| self.links[**link].is_home() && self.links[**link].tenant == tenant;
        self.live.iter().filter(is_open).count()
    }

    /// Durable Sessions of an account.
    pub fn sessions_of(&self, tenant: usize) -> usize {
        self.oracle
            .durable_sessions(|client| self.clients[client].tenant == tenant)
    }

    /// Filters over all Sessions of an account.
    pub fn filters_of(&self, tenant: usize) -> usize {
        let clients = self.clients.iter().zip(&self.oracle.sessions);
        let clients = clients.filter(|(client, _)| client.tenant == tenant);
        let of_clients: usize = clients.map(|(_, session)| session.filters.len()).sum();
        let links = self.live.iter().map(|link| &self.links[*link]);
        let abusers = links.filter(|link| link.abuser.is_some() && link.tenant == tenant && link.is_home());
        of_clients + abusers.map(|link| link.filters.len()).sum::<usize>()
    }

    /// Whether the account of a connection that is about to come home has no room for it, or is none that this core has heard of.
    pub fn is_beyond_bounds(&self, link: usize, home: usize, clean_session: bool) -> bool {
        let l = &self.links[link];
        let Some(quotas) = self.quotas(home, l.tenant) else {
            return self.platform.is_some();
        };
        let is_full = |count: usize, max: u32| max > 0 && count >= max as usize;
        // Who takes over needs no room.
        let takes_over = self.live.iter().any(|other| {
            let other = &self.links[*other];
            other.is_home() && (other.client, other.abuser) == (l.client, l.abuser)
        });
        let has_session = l.abuser.is_none() && self.oracle.has_durable_session(l.client);
        let needs_session = !clean_session && !has_session;
        (!takes_over && is_full(self.connections_of(l.tenant), quotas.connections_max))
            || (needs_session && is_full(self.sessions_of(l.tenant), quotas.sessions_max))
    }

    /// A core has read a packet: what it grants, and what its Session has then.
    pub fn server_subscribes(&mut self, link: usize, core: usize, packet: &Packet<'_>) {
        match packet {
            Packet::Subscribe(subscribe) => {
                let granted = subscribe.filters();
                let granted = granted
                    .map(|(filter, _)| self.is_granted(link, core, filter.as_str()))
                    .collect();
                self.links[link].granted.insert(subscribe.packet_id.get(), granted);
            }
            Packet::Unsubscribe(unsubscribe) => {
                for filter in unsubscribe.filters() {
                    let l = &mut self.links[link];
                    match l.abuser {
                        Some(_) => l.filters.remove(filter.as_str()),
                        None => self.oracle.sessions[l.client].filters.remove(filter.as_str()),
                    };
                }
            }
            _ => {}
        }
    }

    fn is_granted(&mut self, link: usize, core: usize, filter: &str) -> bool {
        let tenant = self.links[link].tenant;
        let (mut is_own, mut max) = (true, 0);
        if let Some(platform) = &self.platform {
            let known = platform.told[core].tenant(platform.tenants[tenant].id);
            is_own = known.is_some_and(|known| is_below(known.account.device_token.as_str(), filter));
            max = known.map_or(0, |known| known.quotas.subscriptions_max as usize);
        }
        let count = self.filters_of(tenant);
        let l = &mut self.links[link];
        let held = match l.abuser {
            Some(_) => &mut l.filters,
            None => &mut self.oracle.sessions[l.client].filters,
        };
        if !is_own || held.contains(filter) {
            return is_own;
        }
        let has_room = held.len() < self.profile.limits.subscriptions_max && (max == 0 || count < max);
        if has_room {
            held.insert(filter.to_owned());
        }
        has_room
    }

    /// What is there before an input; `None` where there are no accounts.
    pub fn before(&self, core: usize, input: &Input<'_>) -> Option<Before> {
        let platform = self.platform.as_ref()?;
        let tenants = 0..platform.tenants.len();
        let had = tenants.map(|tenant| {
            let known = platform.told[core].tenant(platform.tenants[tenant].id);
            known.map_or(Had { kept: 0, devices: 0 }, |known| Had {
                kept: known.usage.kept.now(),
                devices: known.usage.devices.now(),
            })
        });
        let counters = self.shards[core].counters();
        Some(Before {
            had: had.collect(),
            connections: self.shards[core].connection_count(),
            refused_kept: counters.refused_account_storage + counters.refused_account_retained,
            refused_devices: counters.refused_device_limit,
            bytes: match input {
                Input::Received { bytes, .. } | Input::Batch { bytes, .. } => bytes.len(),
                Input::Fetched(_) => FETCHED_BYTES,
                _ => 0,
            },
            ends: matches!(input, Input::Connected { .. } | Input::Disconnected { .. }),
        })
    }

    /// After the input.
    pub fn check_bounds(&self, core: usize, before: &Before) {
        let Some(platform) = &self.platform else { return };
        let counters = self.shards[core].counters();
        let has_refused_bytes =
            counters.refused_account_storage + counters.refused_account_retained > before.refused_kept;
        let has_refused_device = counters.refused_device_limit > before.refused_devices;
        let ends = before.ends || self.shards[core].connection_count() < before.connections;
        // Each Session of a core may keep a copy of what comes, and a Will is in no input.
        let sessions = self.clients.len() + self.profile.abusers;
        let brought = (before.bytes + self.profile.payload_max + 200) * (sessions + 1);
        let (mut is_near, mut has_no_room) = (false, false);
        for (tenant, had) in before.had.iter().enumerate() {
            let Some(known) = platform.told[core].tenant(platform.tenants[tenant].id) else {
                continue;
            };
            let (kept, kept_max) = (known.usage.kept.now(), known.quotas.kept_bytes_max);
            let (devices, devices_max) = (known.usage.devices.now(), known.account.devices_max);
            assert!(
                ends || kept_max == 0 || kept <= kept_max.max(had.kept),
                "tenant {tenant} has {kept} bytes kept, had {}, and may have {kept_max}",
                had.kept
            );
            assert!(
                devices <= devices_max.max(had.devices),
                "tenant {tenant} has {devices} devices, had {}, and may have {devices_max}",
                had.devices
            );
            is_near |= kept_max > 0 && kept.max(had.kept) + brought as u64 > kept_max;
            has_no_room |= devices >= devices_max;
        }
        assert!(
            !has_refused_bytes || is_near,
            "core {core} refuses to keep a message, and every account has room for it"
        );
        assert!(
            !has_refused_device || has_no_room,
            "core {core} refuses a device, and every account has room for it"
        );
    }

    /// At rest: what accounts are counted for is what they have.
    pub fn check_usage(&self) {
        let Some(platform) = &self.platform else { return };
        let retained = |tenant: usize| {
            let of_tenant = self
                .oracle
                .retained()
                .into_iter()
                .filter(move |(topic, _)| self.oracle.topics.purposes[*topic].tenant() == tenant);
            of_tenant.map(|(topic, message)| self.oracle.topics.texts[topic].len() + self.oracle.messages[message].len)
        };
        let queued: u64 = self.shards.iter().map(|shard| shard.report().queued_now).sum();
        // What was in flight to somebody who is away is kept for them, too.
        let is_nothing_queued = queued == 0 && !self.oracle.is_anybody_away();
        for (tenant, entry) in platform.tenants.iter().enumerate() {
            let Some(usage) = platform.usage(tenant) else { continue };
            assert_eq!(
                usage.connections.now() as usize,
                self.connections_of(tenant),
                "connections of tenant {tenant}"
            );
            assert_eq!(
                usage.sessions.now() as usize,
                self.sessions_of(tenant),
                "durable Sessions of tenant {tenant}"
            );
            assert_eq!(
                usage.subscriptions.now() as usize,
                self.filters_of(tenant),
                "filters of tenant {tenant}"
            );
            assert_eq!(
                usage.devices.now() as usize,
                self.disk.tables().devices(entry.id).len(),
                "devices of tenant {tenant}"
            );
            if is_nothing_queued {
                let bytes: usize = retained(tenant).sum();
                assert_eq!(usage.kept.now() as usize, bytes, "bytes kept for tenant {tenant}");
            }
        }
    }
}
