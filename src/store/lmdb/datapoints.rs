//! The datapoints of a batch: sorted, so that those of a channel are written side by side, and counted.
//!
//! Called  by [`apply`](super::apply) for each datapoint, and to write them before whatever must not be mixed up with them.
//! Holds   - a datapoint whose channel is not there is dropped and counted;
//!         - one that is there already is not counted again: a batch may be applied twice;
//!         - what a tag has is written once per tag, channel and batch, what an account has once per account and batch;
//!         - an account that has more than it may loses its oldest before the batch is over: [`capped`](super::capped).

use hashbrown::hash_map::Entry;
use heed::{RoTxn, WithoutTls};

use super::apply::{Batch, Map};
use super::{Damage, Fault, Table, Tables};
use crate::registry::access::AccountId;
use crate::registry::datapoint::DatapointId;
use crate::shard::record::Datapoint;
use crate::store::schema::platform::{self, Generation, Purge, StreamNumber, Tag, TagPurge};
use crate::store::streams::Usage;

/// A datapoint on its way to its row.
#[derive(Clone, Copy)]
pub(super) struct Pending<'r> {
    stream: StreamNumber,
    id: DatapointId,
    account: AccountId,
    tag: &'r str,
    row: &'r [u8],
}

/// The usage of an account that changes in this batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct TouchedUsage {
    before: Usage,
    pub(super) now: Usage,
    /// Datapoints that this batch adds.
    pub(super) added: usize,
}

/// Accounts that have more datapoints than they may, as a stop or a crash left them.
pub(super) fn over_their_storage(txn: &RoTxn<'_, WithoutTls>, tables: &Tables) -> Result<Vec<AccountId>, Fault> {
    let mut over = Vec::new();
    for row in tables.of(Table::Usage).iter(txn)? {
        let (key, value) = row?;
        let Ok(usage) = platform::decode_usage(key, value) else {
            continue;
        };
        let account = tables.of(Table::Accounts).get(txn, key)?;
        if let Some(Ok(account)) = account.map(|value| platform::decode_account(key, value))
            && usage.bytes > account.storage_bytes_max
        {
            over.push(account.id);
        }
    }
    Ok(over)
}

/// The tag of a packed row, which the rest of it is not looked through for.
fn tag_of(row: &[u8]) -> &str {
    let end = row.iter().position(|byte| *byte == b'\n');
    let tag = end.and_then(|end| std::str::from_utf8(&row[..end]).ok());
    tag.expect("a core hands over what `DatapointRow::pack` made")
}

impl<'r> Batch<'_, '_, 'r> {
    pub(super) fn datapoint(&mut self, datapoint: &'r Datapoint) -> Result<(), Fault> {
        self.state.newest_datapoint = self.state.newest_datapoint.max(datapoint.id);
        match self.stream(datapoint.account, datapoint.channel)? {
            Some(stream) => self.pending.push(Pending {
                stream,
                id: datapoint.id,
                account: datapoint.account,
                tag: tag_of(&datapoint.row),
                row: &datapoint.row,
            }),
            None => self.scratch.dropped_datapoints += 1,
        }
        Ok(())
    }

    /// Writes what is pending.
    pub(super) fn write_datapoints(&mut self) -> Result<(), Fault> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable_by_key(|datapoint| (datapoint.stream, datapoint.id));
        let mut tags = Map::default();
        for of_stream in pending.chunk_by(|one, other| one.stream == other.stream) {
            self.write_stream(of_stream, &mut tags)?;
        }
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    /// Datapoints of one stream, in the order of their ids. `tags` is empty, and is so again afterwards.
    fn write_stream(&mut self, datapoints: &[Pending<'r>], tags: &mut Map<&'r str, Tag>) -> Result<(), Fault> {
        let [
            Pending {
                stream, id, account, ..
            },
            ..,
        ] = *datapoints
        else {
            return Ok(());
        };
        // Before the rows change that it is counted from, should it be damaged.
        self.usage(account)?;
        if let Some(capped) = self.memo.capped.get_mut(&account) {
            capped.add(stream, id);
        }
        let table = *self.table(Table::Datapoints);
        let mut added = Usage::default();
        for datapoint in datapoints {
            let tag = match tags.entry(datapoint.tag) {
                Entry::Occupied(tag) => tag.into_mut(),
                Entry::Vacant(vacant) => vacant.insert(self.tag(stream, datapoint.tag)?),
            };
            let key = platform::datapoint_key(stream, datapoint.id);
            platform::encode_datapoint(&key, tag.generation, datapoint.row, &mut self.scratch.value);
            self.scratch.bytes += (key.len() + self.scratch.value.len()) as u64;
            let before = table.get_or_put(self.txn, &key, &self.scratch.value)?;
            if let Some(before) = before {
                let is_new = match platform::decode_datapoint(&key, before) {
                    // It was removed with its tag, by the same batch when it was applied before.
                    Ok(before) => before.generation < tag.generation,
                    Err(error) => {
                        Damage::of(Table::Datapoints, &key, error).log();
                        false
                    }
                };
                table.put(self.txn, &key, &self.scratch.value)?;
                if !is_new {
                    continue;
                }
            }
            let bytes = platform::datapoint_bytes(datapoint.row);
            tag.newest = tag.newest.max(datapoint.id);
            tag.usage.add(bytes);
            added.add(bytes);
        }
        for (name, tag) in tags.drain() {
            self.put_tag(stream, name, &tag)?;
        }
        let usage = self.usage(account)?;
        usage.now.add_all(added);
        usage.added += datapoints.len();
        Ok(())
    }

    // --- tags --------------------------------------------------------------------------------------------------------

    /// What a stream has of a tag now.
    pub(super) fn tag(&mut self, stream: StreamNumber, tag: &str) -> Result<Tag, Fault> {
        let mut key = std::mem::take(&mut self.scratch.key);
        platform::tag_key(stream, tag, &mut key);
        let value = self.table(Table::Tags).get(self.txn, &key)?;
        let found = match value.map(|value| platform::decode_tag(&key, value)) {
            Some(Ok(found)) => Some(found),
            Some(Err(error)) => {
                Damage::of(Table::Tags, &key, error).log();
                self.count_tag(stream, tag)?
            }
            None => None,
        };
        self.scratch.key = key;
        match found {
            Some(found) => Ok(found),
            None => Ok(Tag {
                generation: self
                    .tag_purge(stream, tag)?
                    .map_or_else(Generation::default, |purge| purge.generation),
                ..Tag::default()
            }),
        }
    }

    /// The datapoints of a tag are dead before this generation of it, if any of them are left.
    pub(super) fn tag_purge(&self, stream: StreamNumber, tag: &str) -> Result<Option<TagPurge>, Fault> {
        if !self.state.has_purges {
            return Ok(None);
        }
        let mut key = Vec::new();
        platform::purge_key(&Purge::Tag(stream, tag.into()), &mut key);
        let value = self.table(Table::Purges).get(self.txn, &key)?;
        Ok(value.and_then(|value| {
            platform::decode_tag_purge(&key, value)
                .map_err(|error| Damage::of(Table::Purges, &key, error).log())
                .ok()
        }))
    }

    /// Walks a stream for a tag whose row is lost.
    fn count_tag(&self, stream: StreamNumber, name: &str) -> Result<Option<Tag>, Fault> {
        let live = self.tag_purge(stream, name)?.map(|purge| purge.generation);
        let mut counted = Tag::default();
        for row in self
            .table(Table::Datapoints)
            .prefix_iter(self.txn, &platform::stream_prefix(stream))?
        {
            let (key, value) = row?;
            let Ok(datapoint) = platform::decode_datapoint(key, value) else {
                continue;
            };
            if datapoint.row.tag == name && live.is_none_or(|live| datapoint.generation >= live) {
                counted.generation = counted.generation.max(datapoint.generation);
                counted.newest = platform::decode_datapoint_key(key).map_or(counted.newest, |(_, id)| id);
                counted.usage.add(datapoint.bytes);
            }
        }
        Ok((counted.usage.count > 0).then_some(counted))
    }

    /// A tag without datapoints has no row.
    pub(super) fn put_tag(&mut self, stream: StreamNumber, name: &str, tag: &Tag) -> Result<(), Fault> {
        let mut key = std::mem::take(&mut self.scratch.key);
        platform::tag_key(stream, name, &mut key);
        let put = if tag.usage.count > 0 {
            platform::encode_tag(&key, tag, &mut self.scratch.value);
            self.put(Table::Tags, &key)
        } else {
            self.delete(Table::Tags, &key)
        };
        self.scratch.key = key;
        put
    }

    /// The datapoints that a tag has now are dead, and deleted when there is time; those that come later are not.
    pub(super) fn datapoints_of_tag_removed(
        &mut self,
        account: AccountId,
        stream: StreamNumber,
        name: &str,
    ) -> Result<(), Fault> {
        self.usage(account)?;
        let tag = self.tag(stream, name)?;
        if tag.usage.count == 0 {
            return Ok(());
        }
        self.usage(account)?.now.subtract(tag.usage);
        self.put_tag(stream, name, &Tag::default())?;
        let purge = TagPurge {
            generation: Generation(tag.generation.0 + 1),
            next: DatapointId::default(),
            last: tag.newest,
        };
        // What is left of an earlier removal may lie behind the newest of this one, where clocks differ.
        let left = self.tag_purge(stream, name)?.map(|purge| purge.last);
        let last = left.map_or(purge.last, |left| left.max(purge.last));
        let purge = TagPurge { last, ..purge };
        self.mark_removed(&Purge::Tag(stream, name.into()), |key, value| {
            platform::encode_tag_purge(key, &purge, value)
        })
    }

    // --- usage -------------------------------------------------------------------------------------------------------

    /// What an account has, as far as this batch has come.
    pub(super) fn usage(&mut self, account: AccountId) -> Result<&mut TouchedUsage, Fault> {
        if !self.scratch.usage.contains_key(&account) {
            let key = platform::account_key(account);
            let value = self.table(Table::Usage).get(self.txn, &key)?;
            let before = match value.map(|value| platform::decode_usage(&key, value)) {
                None => Usage::default(),
                Some(Ok(usage)) => usage,
                Some(Err(error)) => {
                    Damage::of(Table::Usage, &key, error).log();
                    self.count_usage(account)?
                }
            };
            let touched = TouchedUsage {
                before,
                now: before,
                added: 0,
            };
            self.scratch.usage.insert(account, touched);
        }
        Ok(self.scratch.usage.get_mut(&account).expect("it is there now"))
    }

    /// Adds up what the channels of an account have.
    fn count_usage(&self, account: AccountId) -> Result<Usage, Fault> {
        let mut counted = Usage::default();
        for stream in self.streams_of(account)? {
            counted.add_all(self.count_stream(stream)?);
        }
        Ok(counted)
    }

    /// Adds up what the tags of a stream have.
    pub(super) fn count_stream(&self, stream: StreamNumber) -> Result<Usage, Fault> {
        let mut counted = Usage::default();
        for row in self
            .table(Table::Tags)
            .prefix_iter(self.txn, &platform::stream_prefix(stream))?
        {
            let (key, value) = row?;
            match platform::decode_tag(key, value) {
                Ok(tag) => counted.add_all(tag.usage),
                Err(error) => {
                    Damage::of(Table::Tags, key, error).log();
                    if let Ok((_, name)) = platform::decode_tag_key(key)
                        && let Some(tag) = self.count_tag(stream, name)?
                    {
                        counted.add_all(tag.usage);
                    }
                }
            }
        }
        Ok(counted)
    }

    /// Brings accounts back to what they may have, and writes what they have.
    pub(super) fn settle_usage(&mut self) -> Result<(), Fault> {
        for account in std::mem::take(&mut self.state.over) {
            self.usage(account)?;
        }
        let mut accounts: Vec<AccountId> = self.scratch.usage.keys().copied().collect();
        accounts.sort_unstable();
        for account in accounts {
            let Some(bytes_max) = self.storage_bytes_max(account)? else {
                continue;
            };
            if self.usage(account)?.now.bytes > bytes_max {
                self.evict(account, bytes_max)?;
            }
            let TouchedUsage { before, now, .. } = *self.usage(account)?;
            if now.bytes > bytes_max {
                self.state.over.push(account);
            }
            let key = platform::account_key(account);
            if now == before {
                continue;
            }
            if now == Usage::default() {
                self.delete(Table::Usage, &key)?;
            } else {
                platform::encode_usage(&key, &now, &mut self.scratch.value);
                self.put(Table::Usage, &key)?;
            }
        }
        Ok(())
    }
}
