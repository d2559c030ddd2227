//! The device platform in memory: what its records mean.

use std::collections::BTreeMap;

use super::Tables;
use crate::registry::access::AccountId;
use crate::registry::account::Account;
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceState};
use crate::registry::event::Event;
use crate::shard::record::{Datapoint, Record, StoredDevice};
use crate::store::schema::platform::datapoint_bytes;
use crate::store::streams::{DatapointRange, Found, FoundDatapoint, FoundDevice, TagUsage, Usage};

/// An account and all it has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tenant {
    account: Account,
    devices: BTreeMap<Box<str>, (Device, Option<DeviceState>)>,
    channels: BTreeMap<ChannelId, Stream>,
    events: BTreeMap<u32, Event>,
    /// Of all channels.
    usage: Usage,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Stream {
    channel: Channel,
    datapoints: BTreeMap<DatapointId, Box<[u8]>>,
}

impl Tables {
    pub(super) fn apply_platform(&mut self, record: &Record) {
        match record {
            Record::AccountPut(account) => {
                self.newest_account = self.newest_account.max(account.id.0);
                let tenant = self.tenants.entry(account.id).or_insert_with(|| Tenant {
                    account: Account::clone(account),
                    devices: BTreeMap::new(),
                    channels: BTreeMap::new(),
                    events: BTreeMap::new(),
                    usage: Usage::default(),
                });
                tenant.account = Account::clone(account);
            }
            Record::AccountRemoved { account } => drop(self.tenants.remove(account)),
            Record::DeviceRegistered { account, device, entry } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.devices.insert(device.clone(), (Device::clone(entry), None));
                }
            }
            Record::DeviceChanged {
                account,
                device,
                change,
            } => {
                if let Some((entry, _)) = self.device_mut(*account, device) {
                    entry.change(change);
                }
            }
            Record::DeviceRemoved { account, device } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.devices.remove(device);
                }
            }
            Record::DeviceReported { account, device, state } => {
                if let Some((_, reported)) = self.device_mut(*account, device) {
                    *reported = Some(DeviceState::clone(state));
                }
            }
            Record::ChannelPut {
                account,
                channel,
                entry,
            } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.channels.entry(*channel).or_default().channel = Channel::clone(entry);
                }
            }
            Record::ChannelRemoved { account, channel } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.remove_channel(*channel);
                }
            }
            Record::TagRemoved { account, channel, tag } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.remove_tag(*channel, tag);
                }
            }
            Record::EventPut { account, event } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.events.insert(event.event_id, Event::clone(event));
                }
            }
            Record::EventRemoved { account, event_id } => {
                if let Some(tenant) = self.tenants.get_mut(account) {
                    tenant.events.remove(event_id);
                }
            }
            Record::Datapoint(datapoint) => self.datapoint(datapoint),
            _ => unreachable!("the caller has the records of Sessions"),
        }
    }

    fn datapoint(&mut self, datapoint: &Datapoint) {
        self.newest_datapoint_ms = self.newest_datapoint_ms.max(datapoint.id.at_ms());
        if let Some(origin) = datapoint.origin {
            let held = self.in_doubt.entry(origin).or_default();
            held.insert(crate::shard::record::SessionNumber::STREAM);
        }
        let Some(tenant) = self.tenants.get_mut(&datapoint.account) else {
            return;
        };
        if let Some(stream) = tenant.channels.get_mut(&datapoint.channel)
            && stream.datapoints.insert(datapoint.id, datapoint.row.clone()).is_none()
        {
            tenant.usage.add(datapoint_bytes(&datapoint.row));
        }
    }

    /// The end of a batch: accounts that have more than they may lose their oldest datapoints.
    pub fn settle(&mut self) {
        for tenant in self.tenants.values_mut() {
            while tenant.usage.bytes > tenant.account.storage_bytes_max {
                let streams = tenant.channels.values_mut();
                let oldest = streams.min_by_key(|stream| match stream.datapoints.first_key_value() {
                    Some((id, _)) => *id,
                    None => DatapointId::MAX,
                });
                let Some((_, row)) = oldest.and_then(|stream| stream.datapoints.pop_first()) else {
                    break;
                };
                tenant.usage.subtract(Usage {
                    count: 1,
                    bytes: datapoint_bytes(&row),
                });
            }
        }
    }

    fn device_mut(&mut self, account: AccountId, device: &str) -> Option<&mut (Device, Option<DeviceState>)> {
        self.tenants.get_mut(&account)?.devices.get_mut(device)
    }

    fn stream(&self, account: AccountId, channel: ChannelId) -> Option<&Stream> {
        self.tenants.get(&account)?.channels.get(&channel)
    }

    // --- what a start is given ---------------------------------------------------------------------------------------

    pub(super) fn stored_accounts(&self) -> Vec<(Account, Vec<Event>)> {
        let tenants = self.tenants.values();
        tenants
            .map(|tenant| (tenant.account.clone(), tenant.events.values().cloned().collect()))
            .collect()
    }

    pub(super) fn stored_devices(&self) -> Vec<StoredDevice> {
        let of_tenant = |(account, tenant): (&AccountId, &Tenant)| {
            let account = *account;
            let devices = tenant.devices.iter().map(move |(id, (device, _))| StoredDevice {
                account,
                device: id.clone(),
                is_enabled: device.is_enabled,
                channel: device.channel,
            });
            Vec::from_iter(devices)
        };
        self.tenants.iter().flat_map(of_tenant).collect()
    }

    // --- what is read, as by `lmdb::View` ----------------------------------------------------------------------------

    pub fn devices(&self, account: AccountId) -> Vec<FoundDevice> {
        let tenant = self.tenants.get(&account).into_iter();
        let devices = tenant.flat_map(|tenant| &tenant.devices);
        devices
            .map(|(id, (device, state))| (id.clone(), device.clone(), state.clone()))
            .collect()
    }

    pub fn channels(&self, account: AccountId) -> Vec<(ChannelId, Channel)> {
        let tenant = self.tenants.get(&account).into_iter();
        let channels = tenant.flat_map(|tenant| &tenant.channels);
        channels.map(|(id, stream)| (*id, stream.channel.clone())).collect()
    }

    pub fn events(&self, account: AccountId) -> Vec<Event> {
        let tenant = self.tenants.get(&account).into_iter();
        tenant.flat_map(|tenant| tenant.events.values().cloned()).collect()
    }

    pub fn usage(&self, account: AccountId) -> Usage {
        self.tenants
            .get(&account)
            .map_or_else(Usage::default, |tenant| tenant.usage)
    }

    pub fn tags(&self, account: AccountId, channel: ChannelId) -> Vec<TagUsage> {
        let mut tags: BTreeMap<&str, TagUsage> = BTreeMap::new();
        let stream = self.stream(account, channel).into_iter();
        for (id, row) in stream.flat_map(|stream| &stream.datapoints) {
            let name = unpacked(row).tag;
            let tag = tags.entry(name).or_insert_with(|| TagUsage {
                tag: name.into(),
                last_ms: 0,
                count: 0,
            });
            tag.last_ms = id.at_ms();
            tag.count += 1;
        }
        tags.into_values().collect()
    }

    pub fn datapoints(&self, account: AccountId, channel: ChannelId, range: &DatapointRange) -> Found {
        let stream = self.stream(account, channel).into_iter();
        let mut rows: Vec<FoundDatapoint> = stream
            .flat_map(|stream| &stream.datapoints)
            .filter(|(id, _)| (range.from..=range.to).contains(id))
            .map(|(id, row)| (*id, unpacked(row)))
            .filter(|(_, row)| range.tag.as_deref().is_none_or(|tag| row.tag == tag))
            .map(|(id, row)| FoundDatapoint {
                id,
                tag: (!row.tag.is_empty()).then(|| row.tag.into()),
                value: row.value.into(),
            })
            .collect();
        if range.newest_first {
            rows.reverse();
        }
        let is_cut = rows.len() > range.rows_max;
        rows.truncate(range.rows_max);
        Found { rows, is_cut }
    }
}

impl Tenant {
    fn remove_channel(&mut self, channel: ChannelId) {
        self.channels.remove(&channel);
        self.events.retain(|_, event| event.channel != Some(channel));
        for (device, _) in self.devices.values_mut() {
            device.channel = device.channel.filter(|mapped| *mapped != channel);
        }
        self.count();
    }

    fn remove_tag(&mut self, channel: ChannelId, tag: &str) {
        if let Some(stream) = self.channels.get_mut(&channel) {
            stream.channel.tags.remove(tag);
            stream.datapoints.retain(|_, row| unpacked(row).tag != tag);
        }
        self.count();
    }

    fn count(&mut self) {
        self.usage = Usage::default();
        for row in self.channels.values().flat_map(|stream| stream.datapoints.values()) {
            self.usage.add(datapoint_bytes(row));
        }
    }
}

fn unpacked(row: &[u8]) -> DatapointRow<'_> {
    DatapointRow::unpack(row).expect("a core hands over what `DatapointRow::pack` made")
}
