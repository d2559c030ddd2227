//! The records of the device platform but for its datapoints: accounts, devices, channels, events.
//!
//! Owns    what the storage thread remembers of accounts and channels, so that a datapoint costs no read of their rows.
//! Called  by [`apply`](super::apply), in the order of the records.
//! Holds   - what is recorded of an account that is not there (any more) is dropped, and so is a report of a device that is not;
//!         - what is asked for by an account, a channel or a device is gone at once when it is removed; what lies beneath it
//!           is deleted in steps by [`purge`](super::purge).

use std::ops::Bound;

use super::apply::{Batch, Map};
use super::capped::Capped;
use super::{Damage, Fault, Table};
use crate::limits::STORE_KNOWN_CHANNELS_MAX;
use crate::registry::access::AccountId;
use crate::registry::account::Account;
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::device::{Device, DeviceChange, DeviceState};
use crate::registry::event::Event;
use crate::shard::record::Record;
use crate::store::schema;
use crate::store::schema::platform::{self, Purge, StreamNumber};

/// What was read of the platform's tables, and what their next batch leaves there.
#[derive(Default)]
pub(super) struct Memo {
    /// How many bytes an account may have; `None`: there is no such account.
    accounts: Map<AccountId, Option<u64>>,
    /// `None`: there is no such channel.
    streams: Map<(AccountId, ChannelId), Option<StreamNumber>>,
    /// Accounts that are at their limit.
    pub(super) capped: Map<AccountId, Capped>,
}

impl Memo {
    /// Before a batch: what a batch left here that failed is not so.
    pub(super) fn begin(&mut self, is_true: bool) {
        if !is_true || self.streams.len() > STORE_KNOWN_CHANNELS_MAX || self.accounts.len() > STORE_KNOWN_CHANNELS_MAX {
            *self = Memo::default();
        }
    }

    /// All that is known of an account is no longer so.
    pub(super) fn forget(&mut self, account: AccountId) {
        self.accounts.remove(&account);
        self.streams.retain(|(of, _), _| *of != account);
        self.capped.remove(&account);
    }
}

impl Batch<'_, '_, '_> {
    pub(super) fn platform_record(&mut self, record: &Record) -> Result<(), Fault> {
        match record {
            Record::AccountPut(account) => self.account_put(account),
            Record::AccountRemoved { account } => self.account_removed(*account),
            Record::DeviceRegistered { account, device, entry } => self.device_registered(*account, device, entry),
            Record::DeviceChanged {
                account,
                device,
                change,
            } => self.device_changed(*account, device, change),
            Record::DeviceRemoved { account, device } => self.device_removed(*account, device),
            Record::DeviceReported { account, device, state } => self.device_reported(*account, device, state),
            Record::ChannelPut {
                account,
                channel,
                entry,
            } => self.channel_put(*account, *channel, entry),
            Record::ChannelRemoved { account, channel } => self.channel_removed(*account, *channel),
            Record::TagRemoved { account, channel, tag } => self.tag_removed(*account, *channel, tag),
            Record::EventPut { account, event } => self.event_put(*account, event),
            Record::EventRemoved { account, event_id } => {
                self.delete(Table::Events, &platform::event_key(*account, *event_id))
            }
            _ => unreachable!("the caller has the records of Sessions and datapoints"),
        }
    }

    // --- accounts ----------------------------------------------------------------------------------------------------

    fn account_put(&mut self, account: &Account) -> Result<(), Fault> {
        let id = account.id;
        // Ids are given once; should one be given again while rows of the last account wait to be purged, they go now.
        if self.state.has_purges {
            self.finish_account_purge(id)?;
        }
        self.state.newest_account = self.state.newest_account.max(id.0.into());
        let key = platform::account_key(id);
        platform::encode_account(&key, account, &mut self.scratch.value);
        self.put(Table::Accounts, &key)?;
        self.memo.accounts.insert(id, Some(account.storage_bytes_max));
        // It may have more now than it may.
        self.usage(id)?;
        Ok(())
    }

    fn account_removed(&mut self, account: AccountId) -> Result<(), Fault> {
        self.write_datapoints()?;
        let key = platform::account_key(account);
        self.delete(Table::Accounts, &key)?;
        self.delete(Table::Usage, &key)?;
        self.scratch.usage.remove(&account);
        self.state.over.retain(|over| *over != account);
        self.memo.forget(account);
        self.mark_removed(&Purge::Account(account), schema::encode_mark)
    }

    /// How many bytes of datapoints an account may have; `None` if there is no such account.
    pub(super) fn storage_bytes_max(&mut self, account: AccountId) -> Result<Option<u64>, Fault> {
        if let Some(known) = self.memo.accounts.get(&account) {
            return Ok(*known);
        }
        let key = platform::account_key(account);
        let value = self.table(Table::Accounts).get(self.txn, &key)?;
        let found = value.map(|value| match platform::decode_account(&key, value) {
            Ok(account) => account.storage_bytes_max,
            Err(error) => {
                Damage::of(Table::Accounts, &key, error).log();
                u64::MAX
            }
        });
        self.memo.accounts.insert(account, found);
        Ok(found)
    }

    fn is_account(&mut self, account: AccountId) -> Result<bool, Fault> {
        Ok(self.storage_bytes_max(account)?.is_some())
    }

    // --- devices -----------------------------------------------------------------------------------------------------

    fn device_registered(&mut self, account: AccountId, device: &str, entry: &Device) -> Result<(), Fault> {
        if !self.is_account(account)? {
            return Ok(());
        }
        self.with_device_key(account, device, |batch, key| {
            platform::encode_device(key, entry, &mut batch.scratch.value);
            batch.put(Table::Devices, key)?;
            batch.delete(Table::States, key)
        })
    }

    fn device_changed(&mut self, account: AccountId, device: &str, change: &DeviceChange) -> Result<(), Fault> {
        self.with_device_key(account, device, |batch, key| {
            batch.change_device(key, |device| device.change(change))
        })
    }

    fn change_device(&mut self, key: &[u8], change: impl FnOnce(&mut Device)) -> Result<(), Fault> {
        let Some(value) = self.table(Table::Devices).get(self.txn, key)? else {
            return Ok(());
        };
        match platform::decode_device(key, value) {
            Ok(mut device) => {
                change(&mut device);
                platform::encode_device(key, &device, &mut self.scratch.value);
                self.put(Table::Devices, key)
            }
            Err(error) => {
                Damage::of(Table::Devices, key, error).log();
                Ok(())
            }
        }
    }

    fn device_removed(&mut self, account: AccountId, device: &str) -> Result<(), Fault> {
        self.with_device_key(account, device, |batch, key| {
            batch.delete(Table::Devices, key)?;
            batch.delete(Table::States, key)
        })
    }

    fn device_reported(&mut self, account: AccountId, device: &str, state: &DeviceState) -> Result<(), Fault> {
        self.with_device_key(account, device, |batch, key| {
            if batch.table(Table::Devices).get(batch.txn, key)?.is_none() {
                return Ok(());
            }
            platform::encode_state(key, state, &mut batch.scratch.value);
            batch.put(Table::States, key)
        })
    }

    fn with_device_key(
        &mut self,
        account: AccountId,
        device: &str,
        with: impl FnOnce(&mut Self, &[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut key = std::mem::take(&mut self.scratch.key);
        platform::device_key(account, device, &mut key);
        let done = with(self, &key);
        self.scratch.key = key;
        done
    }

    // --- channels ----------------------------------------------------------------------------------------------------

    fn channel_put(&mut self, account: AccountId, channel: ChannelId, entry: &Channel) -> Result<(), Fault> {
        if !self.is_account(account)? {
            return Ok(());
        }
        let stream = match self.stream(account, channel)? {
            Some(stream) => stream,
            None => {
                self.state.newest_stream += 1;
                StreamNumber(self.state.newest_stream)
            }
        };
        let key = platform::channel_key(account, channel);
        platform::encode_channel(&key, stream, entry, &mut self.scratch.value);
        self.put(Table::Channels, &key)?;
        self.memo.streams.insert((account, channel), Some(stream));
        Ok(())
    }

    /// Where the datapoints of a channel are; `None` if there is no such channel.
    pub(super) fn stream(&mut self, account: AccountId, channel: ChannelId) -> Result<Option<StreamNumber>, Fault> {
        if let Some(known) = self.memo.streams.get(&(account, channel)) {
            return Ok(*known);
        }
        let key = platform::channel_key(account, channel);
        let found = match self.is_account(account)? {
            // Its channels wait to be purged.
            false => None,
            true => match self.table(Table::Channels).get(self.txn, &key)? {
                None => None,
                Some(value) => platform::decode_channel_stream(&key, value)
                    .map_err(|error| Damage::of(Table::Channels, &key, error).log())
                    .ok(),
            },
        };
        self.memo.streams.insert((account, channel), found);
        Ok(found)
    }

    fn channel_removed(&mut self, account: AccountId, channel: ChannelId) -> Result<(), Fault> {
        // Where the account is gone its purge needs the row, to find the stream.
        if !self.is_account(account)? {
            return Ok(());
        }
        self.write_datapoints()?;
        if let Some(stream) = self.stream(account, channel)? {
            self.stream_removed(account, stream)?;
        }
        self.delete(Table::Channels, &platform::channel_key(account, channel))?;
        self.memo.streams.insert((account, channel), None);
        self.remove_events_of(account, channel)?;
        self.unmap(account, channel)
    }

    /// Its datapoints are nobody's from now on. Its tags go with it, however many: they say what the account has less.
    fn stream_removed(&mut self, account: AccountId, stream: StreamNumber) -> Result<(), Fault> {
        if let Some(capped) = self.memo.capped.get_mut(&account) {
            capped.remove(stream);
        }
        self.usage(account)?;
        let gone = self.count_stream(stream)?;
        self.usage(account)?.now.subtract(gone);
        let prefix = platform::stream_prefix(stream);
        self.delete_prefixed(Table::Tags, &prefix, &mut usize::MAX.clone())?;
        self.mark_stream(stream)
    }

    fn remove_events_of(&mut self, account: AccountId, channel: ChannelId) -> Result<(), Fault> {
        let mut keys = Vec::new();
        for row in self
            .table(Table::Events)
            .prefix_iter(self.txn, &platform::account_key(account))?
        {
            let (key, value) = row?;
            match platform::decode_event(key, value) {
                Ok(event) if event.channel == Some(channel) => keys.push(key.to_vec()),
                Ok(_) => {}
                Err(error) => Damage::of(Table::Events, key, error).log(),
            }
        }
        keys.iter().try_for_each(|key| self.delete(Table::Events, key))
    }

    /// Takes the mapping of devices to this channel away.
    fn unmap(&mut self, account: AccountId, channel: ChannelId) -> Result<(), Fault> {
        let mut keys = Vec::new();
        for row in self
            .table(Table::Devices)
            .prefix_iter(self.txn, &platform::account_key(account))?
        {
            let (key, value) = row?;
            match platform::decode_device_standing(key, value) {
                Ok(standing) if standing.channel == Some(channel) => keys.push(key.to_vec()),
                Ok(_) => {}
                Err(error) => Damage::of(Table::Devices, key, error).log(),
            }
        }
        keys.iter()
            .try_for_each(|key| self.change_device(key, |device| device.channel = None))
    }

    fn tag_removed(&mut self, account: AccountId, channel: ChannelId, tag: &str) -> Result<(), Fault> {
        self.write_datapoints()?;
        let Some(stream) = self.stream(account, channel)? else {
            return Ok(());
        };
        self.undeclare(account, channel, stream, tag)?;
        self.datapoints_of_tag_removed(account, stream, tag)
    }

    fn undeclare(
        &mut self,
        account: AccountId,
        channel: ChannelId,
        stream: StreamNumber,
        tag: &str,
    ) -> Result<(), Fault> {
        let key = platform::channel_key(account, channel);
        let Some(value) = self.table(Table::Channels).get(self.txn, &key)? else {
            return Ok(());
        };
        match platform::decode_channel(&key, value) {
            Ok((_, mut entry)) => {
                if entry.tags.remove(tag).is_some() {
                    platform::encode_channel(&key, stream, &entry, &mut self.scratch.value);
                    self.put(Table::Channels, &key)?;
                }
            }
            Err(error) => Damage::of(Table::Channels, &key, error).log(),
        }
        Ok(())
    }

    /// The streams of an account.
    pub(super) fn streams_of(&self, account: AccountId) -> Result<Vec<StreamNumber>, Fault> {
        let mut streams = Vec::new();
        for row in self
            .table(Table::Channels)
            .prefix_iter(self.txn, &platform::account_key(account))?
        {
            let (key, value) = row?;
            match platform::decode_channel_stream(key, value) {
                Ok(stream) => streams.push(stream),
                Err(error) => Damage::of(Table::Channels, key, error).log(),
            }
        }
        Ok(streams)
    }

    // --- events ------------------------------------------------------------------------------------------------------

    fn event_put(&mut self, account: AccountId, event: &Event) -> Result<(), Fault> {
        if !self.is_account(account)? {
            return Ok(());
        }
        let key = platform::event_key(account, event.event_id);
        platform::encode_event(&key, event, &mut self.scratch.value);
        self.put(Table::Events, &key)
    }

    /// The keys of a table from one to another, both included.
    pub(super) fn delete_range(&mut self, table: Table, from: &[u8], to: &[u8]) -> Result<(), Fault> {
        let range = (Bound::Included(from), Bound::Included(to));
        self.tables.of(table).delete_range(self.txn, &range)?;
        Ok(())
    }
}
