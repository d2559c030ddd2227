//! What is removed of the platform with too many rows to delete at once: accounts, the datapoints of channels and of tags.
//!
//! Called  by [`platform`](super::platform), which marks what is to go, and at the end of every batch.
//! Holds   - nobody is shown what is marked;
//!         - a batch deletes no more rows than its share, those of ended Sessions included, and looks at no more than
//!           [`STORE_PURGE_LOOKS_MAX`]; how far it came is in the mark, so that a start goes on there;
//!         - the usage of an account has the datapoints of a channel or a tag no more as soon as that is marked.

use std::ops::Bound;

use hashbrown::HashMap;

use super::apply::{Batch, Map};
use super::{Damage, Fault, Table};
use crate::limits::STORE_PURGE_LOOKS_MAX;
use crate::registry::access::AccountId;
use crate::store::schema;
use crate::store::schema::platform::{self, Generation, Purge, StreamNumber, TagPurge};

impl Batch<'_, '_, '_> {
    pub(super) fn mark_removed(
        &mut self,
        purge: &Purge,
        encode: impl FnOnce(&[u8], &mut Vec<u8>),
    ) -> Result<(), Fault> {
        self.state.has_purges = true;
        let mut key = Vec::new();
        platform::purge_key(purge, &mut key);
        encode(&key, &mut self.scratch.value);
        self.put(Table::Purges, &key)
    }

    /// Deletes this batch's share of what is marked.
    pub(super) fn purge_platform(&mut self) -> Result<(), Fault> {
        let (mut rows, mut looks) = (self.scratch.purge_rows, STORE_PURGE_LOOKS_MAX);
        while self.state.has_purges && rows > 0 && looks > 0 {
            let Some((key, value)) = self.table(Table::Purges).first(self.txn)? else {
                self.state.has_purges = false;
                break;
            };
            let (key, value) = (key.to_vec(), value.to_vec());
            let is_done = match self.purge_marked(&key, &value, &mut rows, &mut looks)? {
                Ok(is_done) => is_done,
                Err(error) => {
                    Damage::of(Table::Purges, &key, error).log();
                    true
                }
            };
            if is_done {
                self.delete(Table::Purges, &key)?;
            }
        }
        self.scratch.purge_rows = rows;
        Ok(())
    }

    fn purge_marked(
        &mut self,
        key: &[u8],
        value: &[u8],
        rows: &mut usize,
        looks: &mut usize,
    ) -> Result<Result<bool, schema::DecodeError>, Fault> {
        Ok(match platform::decode_purge_key(key) {
            Ok(Purge::Account(account)) => Ok(self.purge_account(account, rows)?),
            Ok(Purge::Stream(stream)) => Ok(self.purge_stream(stream, rows)?),
            Ok(Purge::Tag(stream, tag)) => match platform::decode_tag_purge(key, value) {
                Ok(purge) => Ok(self.purge_tag(key, stream, &tag, purge, rows, looks)?),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        })
    }

    /// The datapoints of a stream are nobody's from now on, nor are its tags.
    pub(super) fn mark_stream(&mut self, stream: StreamNumber) -> Result<(), Fault> {
        if self.state.has_purges {
            let prefix = platform::purge_tags_prefix(stream);
            self.delete_prefixed(Table::Purges, &prefix, &mut usize::MAX.clone())?;
        }
        self.mark_removed(&Purge::Stream(stream), schema::encode_mark)
    }

    /// True if nothing is left, but for the streams, which have marks of their own then.
    fn purge_account(&mut self, account: AccountId, rows: &mut usize) -> Result<bool, Fault> {
        let prefix = platform::account_key(account);
        for table in [Table::Devices, Table::States, Table::Events] {
            if !self.delete_prefixed(table, &prefix, rows)? {
                return Ok(false);
            }
        }
        loop {
            let channel = self.table(Table::Channels).prefix_iter(self.txn, &prefix)?.next();
            let Some((key, value)) = channel.transpose()? else {
                return Ok(true);
            };
            if *rows == 0 {
                return Ok(false);
            }
            *rows -= 1;
            let (key, stream) = (key.to_vec(), platform::decode_channel_stream(key, value));
            match stream {
                Ok(stream) => self.mark_stream(stream)?,
                Err(error) => Damage::of(Table::Channels, &key, error).log(),
            }
            self.delete(Table::Channels, &key)?;
        }
    }

    /// All that is marked of an account, however much it is.
    pub(super) fn finish_account_purge(&mut self, account: AccountId) -> Result<(), Fault> {
        let mut key = Vec::new();
        platform::purge_key(&Purge::Account(account), &mut key);
        if self.table(Table::Purges).get(self.txn, &key)?.is_some() {
            self.purge_account(account, &mut usize::MAX.clone())?;
            self.delete(Table::Purges, &key)?;
            self.memo.forget(account);
        }
        Ok(())
    }

    fn purge_stream(&mut self, stream: StreamNumber, rows: &mut usize) -> Result<bool, Fault> {
        let prefix = platform::stream_prefix(stream);
        for table in [Table::Tags, Table::Datapoints] {
            if !self.delete_prefixed(table, &prefix, rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks on for datapoints of a removed tag. True if it has looked at all of them.
    fn purge_tag(
        &mut self,
        key: &[u8],
        stream: StreamNumber,
        tag: &str,
        purge: TagPurge,
        rows: &mut usize,
        looks: &mut usize,
    ) -> Result<bool, Fault> {
        let (from, to) = (
            platform::datapoint_key(stream, purge.next),
            platform::datapoint_key(stream, purge.last),
        );
        let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        let mut dead = Vec::new();
        let mut next = None;
        for row in self.table(Table::Datapoints).range(self.txn, &range)? {
            let (key, value) = row?;
            let Ok((_, id)) = platform::decode_datapoint_key(key) else {
                continue;
            };
            if *looks == 0 || dead.len() == *rows {
                next = Some(id);
                break;
            }
            *looks -= 1;
            // What is damaged stays for `inspect`.
            if let Ok(datapoint) = platform::decode_datapoint(key, value)
                && datapoint.row.tag == tag
                && datapoint.generation < purge.generation
            {
                dead.push(id);
            }
        }
        *rows -= dead.len();
        for id in dead {
            self.delete(Table::Datapoints, &platform::datapoint_key(stream, id))?;
        }
        let Some(next) = next else {
            return Ok(true);
        };
        platform::encode_tag_purge(key, &TagPurge { next, ..purge }, &mut self.scratch.value);
        self.put(Table::Purges, key)?;
        Ok(false)
    }

    /// The removed tags of a stream of which datapoints are left, each with its generation since.
    pub(super) fn removed_tags(&self, stream: StreamNumber) -> Result<Map<Box<str>, Generation>, Fault> {
        match self.state.has_purges {
            true => removed_tags(self.txn, self.tables, stream),
            false => Ok(HashMap::default()),
        }
    }
}

/// As [`Batch::removed_tags`], for whoever reads.
pub(super) fn removed_tags(
    txn: &heed::RoTxn<'_>,
    tables: &super::Tables,
    stream: StreamNumber,
) -> Result<Map<Box<str>, Generation>, Fault> {
    let mut removed = HashMap::default();
    let prefix = platform::purge_tags_prefix(stream);
    for row in tables.of(Table::Purges).prefix_iter(txn, &prefix)? {
        let (key, value) = row?;
        let decoded =
            platform::decode_purge_key(key).and_then(|purge| Ok((purge, platform::decode_tag_purge(key, value)?)));
        match decoded {
            Ok((Purge::Tag(_, tag), purge)) => drop(removed.insert(tag, purge.generation)),
            Ok(_) => {}
            Err(error) => Damage::of(Table::Purges, key, error).log(),
        }
    }
    Ok(removed)
}
