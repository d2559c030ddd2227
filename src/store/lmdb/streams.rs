//! What is read of the device platform, account by account: for its API, beside the thread that writes.
//!
//! Holds   - what is removed is not shown, whether its rows are still there or not;
//!         - a damaged value is left out and logged, and stays where it is for `inspect`.

use std::ops::Bound;

use super::apply::Map;
use super::purge::removed_tags;
use super::{Damage, Fault, Table, View};
use crate::registry::access::AccountId;
use crate::registry::account::Account;
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceState};
use crate::registry::event::Event;
use crate::store::schema::DecodeError;
use crate::store::schema::platform::{self, Generation, StreamNumber, Tag};
use crate::store::streams::{DatapointRange, Found, FoundDatapoint, FoundDevice, TagUsage, Usage};

impl View<'_> {
    pub fn account(&self, account: AccountId) -> Result<Option<Account>, Fault> {
        self.decoded(
            Table::Accounts,
            &platform::account_key(account),
            platform::decode_account,
        )
    }

    pub fn device(&self, account: AccountId, id: &str) -> Result<Option<(Device, Option<DeviceState>)>, Fault> {
        let mut key = Vec::new();
        platform::device_key(account, id, &mut key);
        if !self.is_account(account)? {
            return Ok(None);
        }
        let Some(device) = self.decoded(Table::Devices, &key, platform::decode_device)? else {
            return Ok(None);
        };
        let state = self.decoded(Table::States, &key, platform::decode_state)?;
        Ok(Some((device, state)))
    }

    /// In the order of their ids.
    pub fn devices(&self, account: AccountId) -> Result<Vec<FoundDevice>, Fault> {
        // Both tables have the same keys.
        let states = self.of_account(account, Table::States, |key, value| {
            Ok((key.to_vec(), platform::decode_state(key, value)?))
        })?;
        let mut states = states.into_iter().peekable();
        self.of_account(account, Table::Devices, |key, value| {
            let (_, id) = platform::decode_device_key(key)?;
            let device = platform::decode_device(key, value)?;
            while states.next_if(|(of, _)| of[..] < *key).is_some() {}
            let state = states.next_if(|(of, _)| of[..] == *key);
            Ok((id.into(), device, state.map(|(_, state)| state)))
        })
    }

    pub fn channel(&self, account: AccountId, channel: ChannelId) -> Result<Option<Channel>, Fault> {
        Ok(self.channel_row(account, channel)?.map(|(_, channel)| channel))
    }

    /// In the order of their ids.
    pub fn channels(&self, account: AccountId) -> Result<Vec<(ChannelId, Channel)>, Fault> {
        self.of_account(account, Table::Channels, |key, value| {
            let (_, id) = platform::decode_channel_key(key)?;
            let (_, channel) = platform::decode_channel(key, value)?;
            Ok((id, channel))
        })
    }

    /// The tags of a channel that have datapoints, in their order; `""` stands for the datapoints without one.
    pub fn tags(&self, account: AccountId, channel: ChannelId) -> Result<Vec<TagUsage>, Fault> {
        let Some((stream, _)) = self.channel_row(account, channel)? else {
            return Ok(Vec::new());
        };
        self.prefixed(Table::Tags, &platform::stream_prefix(stream), |key, value| {
            let (_, name) = platform::decode_tag_key(key)?;
            let tag = platform::decode_tag(key, value)?;
            Ok(tag_usage(name, &tag))
        })
    }

    /// One tag of a channel, if it has datapoints.
    pub fn tag(&self, account: AccountId, channel: ChannelId, name: &str) -> Result<Option<TagUsage>, Fault> {
        let Some((stream, _)) = self.channel_row(account, channel)? else {
            return Ok(None);
        };
        let mut key = Vec::new();
        platform::tag_key(stream, name, &mut key);
        let tag = self.decoded(Table::Tags, &key, platform::decode_tag)?;
        Ok(tag.map(|tag| tag_usage(name, &tag)))
    }

    /// In the order of their ids.
    pub fn events(&self, account: AccountId) -> Result<Vec<Event>, Fault> {
        self.of_account(account, Table::Events, platform::decode_event)
    }

    pub fn usage(&self, account: AccountId) -> Result<Usage, Fault> {
        let usage = self.decoded(Table::Usage, &platform::account_key(account), platform::decode_usage)?;
        Ok(usage.unwrap_or_default())
    }

    pub fn datapoints(&self, account: AccountId, channel: ChannelId, range: &DatapointRange) -> Result<Found, Fault> {
        let mut found = Found::default();
        self.walk_datapoints(account, channel, range, |id, row| {
            if found.rows.len() == range.rows_max {
                found.is_cut = true;
                return false;
            }
            found.rows.push(FoundDatapoint {
                id,
                tag: (!row.tag.is_empty()).then(|| row.tag.into()),
                value: row.value.into(),
            });
            true
        })?;
        Ok(found)
    }

    /// Goes through a range as long as `each` wants more, whatever the `rows_max` of the range. A view that is open for long
    /// makes the file longer, and cannot last while the store grows: who looks at very many does it in parts.
    pub fn walk_datapoints(
        &self,
        account: AccountId,
        channel: ChannelId,
        range: &DatapointRange,
        mut each: impl FnMut(DatapointId, DatapointRow<'_>) -> bool,
    ) -> Result<(), Fault> {
        let Some((stream, _)) = self.channel_row(account, channel)? else {
            return Ok(());
        };
        let (mut to, mut left) = (range.to, u64::MAX);
        if let Some(name) = &range.tag {
            let mut key = Vec::new();
            platform::tag_key(stream, name, &mut key);
            let value = self.row(Table::Tags, &key)?;
            match value.map(|value| platform::decode_tag(&key, value)) {
                // There are none behind its newest, and so many in all: no need to look further.
                Some(Ok(Tag { newest, usage, .. })) => (to, left) = (to.min(newest), usage.count),
                Some(Err(error)) => Damage::of(Table::Tags, &key, error).log(),
                None => return Ok(()),
            }
        }
        if range.from > to {
            return Ok(());
        }
        let mut visit = Visit {
            removed: removed_tags(self.txn, self.tables, stream)?,
            tag: range.tag.as_deref(),
            left,
            each: |id, row: DatapointRow<'_>| each(id, row),
        };
        let (from, to) = (
            platform::datapoint_key(stream, range.from),
            platform::datapoint_key(stream, to),
        );
        let bounds = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        let table = self.tables.of(Table::Datapoints);
        if range.newest_first {
            visit.all(table.rev_range(self.txn, &bounds)?)
        } else {
            visit.all(table.range(self.txn, &bounds)?)
        }
    }

    // --- rows --------------------------------------------------------------------------------------------------------

    fn is_account(&self, account: AccountId) -> Result<bool, Fault> {
        Ok(self.row(Table::Accounts, &platform::account_key(account))?.is_some())
    }

    fn channel_row(&self, account: AccountId, channel: ChannelId) -> Result<Option<(StreamNumber, Channel)>, Fault> {
        match self.is_account(account)? {
            true => self.decoded(
                Table::Channels,
                &platform::channel_key(account, channel),
                platform::decode_channel,
            ),
            false => Ok(None),
        }
    }

    fn decoded<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8], &[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, Fault> {
        let value = self.row(table, key)?;
        Ok(value.and_then(|value| {
            decode(key, value)
                .map_err(|error| Damage::of(table, key, error).log())
                .ok()
        }))
    }

    /// The rows of a table whose keys begin with an account that is there.
    fn of_account<T>(
        &self,
        account: AccountId,
        table: Table,
        decode: impl FnMut(&[u8], &[u8]) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, Fault> {
        match self.is_account(account)? {
            true => self.prefixed(table, &platform::account_key(account), decode),
            false => Ok(Vec::new()),
        }
    }

    fn prefixed<T>(
        &self,
        table: Table,
        prefix: &[u8],
        mut decode: impl FnMut(&[u8], &[u8]) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, Fault> {
        let mut found = Vec::new();
        for row in self.tables.of(table).prefix_iter(self.txn, prefix)? {
            let (key, value) = row?;
            match decode(key, value) {
                Ok(decoded) => found.push(decoded),
                Err(error) => Damage::of(table, key, error).log(),
            }
        }
        Ok(found)
    }
}

fn tag_usage(name: &str, tag: &Tag) -> TagUsage {
    TagUsage {
        tag: name.into(),
        last_ms: tag.newest.at_ms(),
        count: tag.usage.count,
    }
}

/// A walk through datapoints of one stream.
struct Visit<'v, E> {
    removed: Map<Box<str>, Generation>,
    tag: Option<&'v str>,
    /// Datapoints that there can still be.
    left: u64,
    each: E,
}

impl<E: FnMut(DatapointId, DatapointRow<'_>) -> bool> Visit<'_, E> {
    fn all<'t>(&mut self, rows: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>) -> Result<(), Fault> {
        for row in rows {
            let (key, value) = row?;
            let decoded = platform::decode_datapoint_key(key)
                .and_then(|(_, id)| Ok((id, platform::decode_datapoint(key, value)?)));
            let (id, datapoint) = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    Damage::of(Table::Datapoints, key, error).log();
                    continue;
                }
            };
            let row = datapoint.row;
            let is_dead = || {
                let live = self.removed.get(row.tag);
                live.is_some_and(|live| datapoint.generation < *live)
            };
            if self.tag.is_some_and(|tag| tag != row.tag) || is_dead() {
                continue;
            }
            if self.left == 0 || !(self.each)(id, row) {
                break;
            }
            self.left -= 1;
        }
        Ok(())
    }
}
