//! Accounts that have as many bytes of datapoints as they may: for what comes, the oldest go.
//!
//! Owns    where the datapoints of such an account begin, stream by stream, from one batch to the next.
//! Called  by [`datapoints`](super::datapoints), at the end of a batch.
//! Holds   - the oldest by id go first, of whichever channel; nothing is refused;
//!         - a batch deletes twice what it adds and [`STORE_PURGE_ROWS_MAX`] rows more, at most: an account whose limit was
//!           lowered comes to it in steps, and nobody waits for it.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::apply::{Batch, Map};
use super::{Damage, Fault, Table};
use crate::limits::STORE_PURGE_ROWS_MAX;
use crate::registry::access::AccountId;
use crate::registry::datapoint::DatapointId;
use crate::store::schema::platform::{self, StreamNumber};
use crate::store::streams::Usage;

/// Where the streams of one account begin: no datapoint of a stream is before its place here.
#[derive(Default)]
pub(super) struct Capped {
    places: BTreeSet<(DatapointId, StreamNumber)>,
    of: Map<StreamNumber, DatapointId>,
}

impl Capped {
    /// A datapoint with this id comes into a stream.
    pub(super) fn add(&mut self, stream: StreamNumber, id: DatapointId) {
        match self.of.get(&stream) {
            Some(first) if *first <= id => {}
            _ => self.set(stream, Some(id)),
        }
    }

    pub(super) fn remove(&mut self, stream: StreamNumber) {
        self.set(stream, None);
    }

    fn set(&mut self, stream: StreamNumber, first: Option<DatapointId>) {
        if let Some(before) = self.of.remove(&stream) {
            self.places.remove(&(before, stream));
        }
        if let Some(first) = first {
            self.of.insert(stream, first);
            self.places.insert((first, stream));
        }
    }

    /// The stream that begins first, and up to where it has the oldest datapoints.
    fn first(&self) -> Option<(StreamNumber, DatapointId, DatapointId)> {
        let mut places = self.places.iter();
        let (first, stream) = places.next()?;
        let next = places.next().map_or(DatapointId::MAX, |(next, _)| *next);
        Some((*stream, *first, next))
    }
}

impl Batch<'_, '_, '_> {
    /// Deletes the oldest datapoints of an account until it has no more than this.
    pub(super) fn evict(&mut self, account: AccountId, bytes_max: u64) -> Result<(), Fault> {
        let mut capped = match self.memo.capped.remove(&account) {
            Some(capped) => capped,
            None => self.places_of(account)?,
        };
        let mut rows = STORE_PURGE_ROWS_MAX + 2 * self.usage(account)?.added;
        let mut gone = Map::default();
        while rows > 0 && self.usage(account)?.now.bytes > bytes_max {
            let Some((stream, from, to)) = capped.first() else {
                // It has none, whatever was counted.
                self.usage(account)?.now = Usage::default();
                break;
            };
            let mut usage = self.usage(account)?.now;
            let next = self.evict_run(stream, (from, to), &mut rows, |tag, bytes| {
                let one = Usage { count: 1, bytes };
                usage.subtract(one);
                let gone: &mut Usage = gone.entry((stream, Box::from(tag))).or_default();
                gone.add(bytes);
                usage.bytes <= bytes_max
            })?;
            self.usage(account)?.now = usage;
            capped.set(stream, next);
        }
        self.memo.capped.insert(account, capped);
        for ((stream, name), gone) in gone {
            let mut tag = self.tag(stream, &name)?;
            tag.usage.subtract(gone);
            self.put_tag(stream, &name, &tag)?;
        }
        Ok(())
    }

    /// Deletes datapoints of a stream, both places included, until `each` has enough. Returns what is the first then.
    fn evict_run(
        &mut self,
        stream: StreamNumber,
        (from, to): (DatapointId, DatapointId),
        rows: &mut usize,
        mut each: impl FnMut(&str, u64) -> bool,
    ) -> Result<Option<DatapointId>, Fault> {
        let (first_key, end_key) = (
            platform::datapoint_key(stream, from),
            platform::datapoint_key(stream, DatapointId::MAX),
        );
        let range = (Bound::Included(&first_key[..]), Bound::Included(&end_key[..]));
        let (mut last, mut next) = (None, None);
        let mut is_enough = false;
        let generations = self.removed_tags(stream)?;
        for row in self.table(Table::Datapoints).range(self.txn, &range)? {
            let (key, value) = row?;
            let (_, id) = match platform::decode_datapoint_key(key) {
                Ok(place) => place,
                Err(error) => {
                    Damage::of(Table::Datapoints, key, error).log();
                    continue;
                }
            };
            if is_enough || *rows == 0 || id > to {
                next = Some(id);
                break;
            }
            *rows -= 1;
            last = Some(id);
            match platform::decode_datapoint(key, value) {
                Ok(datapoint) => {
                    let live = generations.get(datapoint.row.tag);
                    if live.is_none_or(|live| datapoint.generation >= *live) {
                        is_enough = each(datapoint.row.tag, datapoint.bytes);
                    }
                }
                // Nobody knows whose it was.
                Err(error) => Damage::of(Table::Datapoints, key, error).log(),
            }
        }
        if let Some(last) = last {
            let last_key = platform::datapoint_key(stream, last);
            self.delete_range(Table::Datapoints, &first_key, &last_key)?;
        }
        Ok(next)
    }

    fn places_of(&self, account: AccountId) -> Result<Capped, Fault> {
        let mut capped = Capped::default();
        for stream in self.streams_of(account)? {
            let from = platform::datapoint_key(stream, DatapointId::default());
            let first = self
                .table(Table::Datapoints)
                .get_greater_than_or_equal_to(self.txn, &from)?;
            if let Some((key, _)) = first
                && let Ok((of, id)) = platform::decode_datapoint_key(key)
                && of == stream
            {
                capped.set(stream, Some(id));
            }
        }
        Ok(capped)
    }
}
