//! A batch of records, written into one transaction.
//!
//! Owns    what the storage thread remembers between batches: the numbers it gives next, what it knows of accounts and channels,
//!         and buffers.
//! Called  by [`Lmdb::commit`](super::Lmdb::commit).
//! Holds   - afterwards the tables say what `memory::Tables` would say after the same records;
//!         - a queue entry that is delivered in the batch that queues it is never written, nor an origin that is settled in
//!           the batch that records it: most messages never touch the disk while their clients keep up;
//!         - a backlog is written once per Session and batch;
//!         - at most [`STORE_PURGE_ROWS_MAX`] rows of ended Sessions are deleted per batch, what is left in the table `ended`;
//!         - the device platform's records are in [`platform`](super::platform) and [`datapoints`](super::datapoints);
//!         - a damaged value never stops the store: what it said is lost, is logged, and is worked out anew where it can be.

use std::ops::Bound;

use ahash::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;
use heed::{RoTxn, RwTxn, WithoutTls};

use super::datapoints::{Pending, TouchedUsage, over_their_storage};
use super::platform::Memo;
use super::{Damage, Database, Fault, Table, Tables, read};
use crate::limits::STORE_PURGE_ROWS_MAX;
use crate::registry::access::AccountId;
use crate::registry::datapoint::DatapointId;
use crate::session::message::SharedMessage;
use crate::shard::record::{Backlog, Origin, QueueEntry, Record, SessionNumber};
use crate::store::schema::{
    self, Entry, EntryMessage, META_NEWEST_ACCOUNT, META_NEWEST_DATAPOINT, META_NEWEST_SESSION, META_NEWEST_STREAM,
    META_NEXT_MESSAGE, MessageId, Retained, StoredMessage,
};

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub records: u64,
    /// Bytes of keys and values that were put.
    pub bytes: u64,
    /// Datapoints for channels that are not there.
    pub dropped_datapoints: u64,
}

/// What goes on from one batch to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    next_message: u64,
    newest_session: u64,
    /// There may be rows in `ended`.
    has_ended: bool,
    pub(super) newest_stream: u64,
    pub(super) newest_datapoint: DatapointId,
    pub(super) newest_account: u64,
    /// There may be rows in `purges`.
    pub(super) has_purges: bool,
    /// Accounts that have more datapoints than they may, and lose some with every batch.
    pub(super) over: Vec<AccountId>,
}

pub struct Applier {
    committed: State,
    /// After the batch that is being written.
    state: State,
    /// Sessions that are gone but for origins that came after their end. The next batch has them purged.
    leftovers: Vec<SessionNumber>,
    purge_rows_max: usize,
    cancelled: Cancelled,
    scratch: Scratch,
    memo: Memo,
    /// The last batch was committed, so that `memo` is true.
    is_memo_true: bool,
}

pub(super) type Map<K, V> = HashMap<K, V, RandomState>;

/// Buffers of one batch, kept for the next.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) value: Vec<u8>,
    pub(super) key: Vec<u8>,
    touched: Map<SessionNumber, Touched>,
    /// Accounts whose usage changes in this batch.
    pub(super) usage: Map<AccountId, TouchedUsage>,
    pub(super) dropped_datapoints: u64,
    /// Shared messages, and how many entries less hold them.
    dropped: Map<MessageId, u32>,
    shared: Vec<MessageId>,
    pub(super) bytes: u64,
    /// Rows of ended Sessions, and of what is gone of the platform, that may still be deleted in this batch.
    pub(super) purge_rows: usize,
}

/// A queue that changes in this batch.
#[derive(Clone, Copy)]
struct Touched {
    first: u64,
    end: u64,
    entries: u64,
    bytes: u64,
    /// It has a row.
    is_stored: bool,
    is_first_gone: bool,
    is_last_gone: bool,
    /// Its row or an entry was damaged: it is counted again.
    is_doubtful: bool,
}

impl Applier {
    pub(super) fn load(txn: &RoTxn<'_, WithoutTls>, tables: &Tables) -> Result<Applier, Fault> {
        let number = |name| read::meta_number(txn, tables, name);
        let state = State {
            next_message: number(META_NEXT_MESSAGE)?,
            newest_session: number(META_NEWEST_SESSION)?,
            has_ended: !tables.of(Table::Ended).is_empty(txn)?,
            newest_stream: number(META_NEWEST_STREAM)?,
            newest_datapoint: DatapointId::last_at(number(META_NEWEST_DATAPOINT)?),
            newest_account: number(META_NEWEST_ACCOUNT)?,
            has_purges: !tables.of(Table::Purges).is_empty(txn)?,
            over: over_their_storage(txn, tables)?,
        };
        Ok(Applier {
            committed: state.clone(),
            state,
            leftovers: leftovers(txn, tables)?,
            purge_rows_max: STORE_PURGE_ROWS_MAX,
            cancelled: Cancelled::default(),
            scratch: Scratch::default(),
            memo: Memo::default(),
            is_memo_true: true,
        })
    }

    /// No datapoint on disk has a greater id.
    pub fn newest_datapoint(&self) -> DatapointId {
        self.committed.newest_datapoint
    }

    /// The greatest number that a Session ever had.
    pub fn newest_session(&self) -> SessionNumber {
        SessionNumber(self.committed.newest_session)
    }

    /// Rows wait to be deleted, of ended Sessions, of removed accounts, channels and tags, or of accounts that have more than
    /// they may: an empty batch deletes some.
    pub fn is_behind(&self) -> bool {
        let State {
            has_ended,
            has_purges,
            over,
            ..
        } = &self.committed;
        *has_ended || *has_purges || !over.is_empty() || !self.leftovers.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn set_purge_rows_max(&mut self, rows: usize) {
        self.purge_rows_max = rows;
    }

    /// The batch is committed.
    pub(super) fn adopt(&mut self) {
        self.committed.clone_from(&self.state);
        self.leftovers.clear();
        self.is_memo_true = true;
    }

    pub(super) fn apply<'r>(
        &mut self,
        txn: &mut RwTxn<'_>,
        tables: &Tables,
        records: impl Iterator<Item = &'r Record> + Clone,
    ) -> Result<Applied, Fault> {
        self.state.clone_from(&self.committed);
        self.scratch.begin(self.purge_rows_max);
        self.memo.begin(self.is_memo_true);
        self.is_memo_true = false;
        self.cancelled.find(records.clone());
        let mut batch = Batch {
            txn,
            tables,
            state: &mut self.state,
            scratch: &mut self.scratch,
            memo: &mut self.memo,
            pending: Vec::new(),
        };
        let mut fates = self.cancelled.fates.iter().copied();
        let mut fate = || fates.next().expect("one for every record and entry");
        for session in &self.leftovers {
            batch.purge_later(*session)?;
        }
        let mut count = 0;
        for record in records {
            count += 1;
            let fate_of_record = fate();
            match record {
                Record::Queued {
                    message,
                    entries,
                    origin,
                } => {
                    batch.queued(message, entries, &mut fate)?;
                    if let Some(origin) = origin
                        && fate_of_record == Fate::Write
                    {
                        batch.doubted(*origin, entries.iter().map(|entry| entry.session))?;
                    }
                }
                Record::Datapoint(datapoint) => {
                    batch.datapoint(datapoint)?;
                    if let Some(origin) = datapoint.origin
                        && fate_of_record == Fate::Write
                    {
                        batch.doubted(origin, [SessionNumber::STREAM])?;
                    }
                }
                _ if fate_of_record == Fate::Skip => {}
                other => batch.record(other)?,
            }
        }
        batch.finish()?;
        Ok(Applied {
            records: count,
            bytes: self.scratch.bytes,
            dropped_datapoints: self.scratch.dropped_datapoints,
        })
    }
}

/// Publishers of origins that are no Sessions, nor Sessions that are being purged.
fn leftovers(txn: &RoTxn<'_, WithoutTls>, tables: &Tables) -> Result<Vec<SessionNumber>, Fault> {
    let mut found = Vec::new();
    for row in tables.of(Table::Origins).iter(txn)? {
        let (key, _) = row?;
        // A key that cannot be read stops the start elsewhere.
        let Ok((origin, _)) = schema::decode_origin_key(key) else {
            continue;
        };
        let publisher = schema::session_key(origin.session);
        let is_known = found.last() == Some(&origin.session)
            || tables.of(Table::Sessions).get(txn, &publisher)?.is_some()
            || tables.of(Table::Ended).get(txn, &publisher)?.is_some();
        if !is_known {
            found.push(origin.session);
        }
    }
    Ok(found)
}

impl Scratch {
    /// An aborted batch may have left anything.
    fn begin(&mut self, purge_rows: usize) {
        self.touched.clear();
        self.usage.clear();
        self.dropped.clear();
        self.shared.clear();
        self.bytes = 0;
        self.dropped_datapoints = 0;
        self.purge_rows = purge_rows;
    }
}

// --- what need not be written ----------------------------------------------------------------------------------------

/// What is to be done with a record, or with one entry of a `Queued`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Write,
    Skip,
    /// An entry whose `Released` is in the batch too.
    WriteReleased,
}

/// Looks through a batch for what a later record of it undoes.
#[derive(Default)]
struct Cancelled {
    /// In the order of the batch: one for each record, and after a `Queued` one for each of its entries. That of a `Queued`
    /// itself, or of a `Datapoint`, is the fate of its origin.
    fates: Vec<Fate>,
    /// Entries queued and not delivered, by their place in `fates`.
    queued: Map<(SessionNumber, u64), usize>,
    /// Origins not settled, by the places of their records.
    doubted: Map<Origin, Vec<usize>>,
}

impl Cancelled {
    fn find<'r>(&mut self, records: impl Iterator<Item = &'r Record>) {
        self.fates.clear();
        self.queued.clear();
        self.doubted.clear();
        for record in records {
            let at = self.fates.len();
            self.fates.push(Fate::Write);
            match record {
                Record::Queued { entries, origin, .. } => {
                    for entry in entries {
                        self.queued.insert((entry.session, entry.sequence), self.fates.len());
                        self.fates.push(Fate::Write);
                    }
                    if let Some(origin) = origin {
                        self.doubted.entry(*origin).or_default().push(at);
                    }
                }
                Record::Datapoint(datapoint) => {
                    if let Some(origin) = datapoint.origin {
                        self.doubted.entry(origin).or_default().push(at);
                    }
                }
                Record::Delivered { session, sequence } => {
                    if let Some(entry) = self.queued.remove(&(*session, *sequence)) {
                        self.fates[entry] = Fate::Skip;
                        self.fates[at] = Fate::Skip;
                    }
                }
                Record::Released { session, sequence } => {
                    if let Some(entry) = self.queued.get(&(*session, *sequence)) {
                        self.fates[*entry] = Fate::WriteReleased;
                        self.fates[at] = Fate::Skip;
                    }
                }
                Record::PacketIdReceived { session, packet_id } => {
                    let (session, packet_id) = (*session, *packet_id);
                    if let Some(records) = self.doubted.remove(&Origin { session, packet_id }) {
                        records.into_iter().for_each(|record| self.fates[record] = Fate::Skip);
                    }
                }
                _ => {}
            }
        }
    }
}

// --- what is written -------------------------------------------------------------------------------------------------

/// A batch of records `'r` in its transaction.
pub(super) struct Batch<'b, 'e, 'r> {
    pub(super) txn: &'b mut RwTxn<'e>,
    pub(super) tables: &'b Tables,
    pub(super) state: &'b mut State,
    pub(super) scratch: &'b mut Scratch,
    pub(super) memo: &'b mut Memo,
    /// Datapoints that are written together.
    pub(super) pending: Vec<Pending<'r>>,
}

impl Batch<'_, '_, '_> {
    /// Any record but `Queued` and `Datapoint`.
    fn record(&mut self, record: &Record) -> Result<(), Fault> {
        match record {
            Record::Queued { .. } | Record::Datapoint(_) => unreachable!("the caller has the fates of their parts"),
            Record::SessionStarted {
                session,
                account,
                client_id,
            } => {
                let row = schema::Session {
                    account: account.0,
                    client_id: client_id.clone(),
                };
                // Numbers only grow; should one be given again while rows of its last Session wait to be purged, they go now.
                if self.state.has_ended
                    && self
                        .table(Table::Ended)
                        .get(self.txn, &schema::session_key(*session))?
                        .is_some()
                {
                    self.purge(*session, &mut usize::MAX.clone())?;
                    self.delete(Table::Ended, &schema::session_key(*session))?;
                }
                self.state.newest_session = self.state.newest_session.max(session.0);
                let key = schema::session_key(*session);
                schema::encode_session(&key, &row, &mut self.scratch.value);
                self.put(Table::Sessions, &key)
            }
            Record::SessionEnded { session } => self.ended(*session),
            Record::Subscribed { session, filter, qos } => {
                let mut key = std::mem::take(&mut self.scratch.key);
                schema::subscription_key(*session, filter, &mut key);
                schema::encode_subscription(&key, filter, *qos, &mut self.scratch.value);
                let put = self.put(Table::Subscriptions, &key);
                self.scratch.key = key;
                put
            }
            Record::Unsubscribed { session, filter } => {
                let mut key = std::mem::take(&mut self.scratch.key);
                schema::subscription_key(*session, filter, &mut key);
                let deleted = self.delete(Table::Subscriptions, &key);
                self.scratch.key = key;
                deleted
            }
            Record::Released { session, sequence } => self.released(*session, *sequence),
            Record::Delivered { session, sequence } => self.delivered(*session, *sequence),
            Record::Retained { topic, payload, qos } => {
                let mut key = std::mem::take(&mut self.scratch.key);
                schema::retained_key(topic, &mut key);
                let done = if payload.is_empty() {
                    self.delete(Table::Retained, &key)
                } else {
                    let (qos, payload) = (*qos, &payload[..]);
                    let retained = Retained { topic, qos, payload };
                    schema::encode_retained(&key, &retained, &mut self.scratch.value);
                    self.put(Table::Retained, &key)
                };
                self.scratch.key = key;
                done
            }
            Record::PacketIdReceived { session, packet_id } => {
                let key = schema::received_key(*session, *packet_id);
                schema::encode_mark(&key, &mut self.scratch.value);
                self.put(Table::Received, &key)?;
                self.settled(&key)
            }
            Record::PacketIdReleased { session, packet_id } => {
                self.delete(Table::Received, &schema::received_key(*session, *packet_id))
            }
            Record::SessionAway { session, since_s } => {
                let key = schema::session_key(*session);
                schema::encode_number(&key, *since_s, &mut self.scratch.value);
                self.put(Table::Away, &key)
            }
            Record::SessionBack { session } => self.delete(Table::Away, &schema::session_key(*session)),
            of_the_platform => self.platform_record(of_the_platform),
        }
    }

    fn queued(
        &mut self,
        message: &SharedMessage,
        entries: &[QueueEntry],
        mut fate: impl FnMut() -> Fate,
    ) -> Result<(), Fault> {
        let stored = StoredMessage {
            topic: message.topic(),
            payload: message.payload(),
        };
        let len = message.len();
        // The usual message has one entry, and needs to know no others.
        if let [entry] = entries {
            return match fate() {
                Fate::Skip => Ok(()),
                fate => self.entry(entry, fate == Fate::WriteReleased, EntryMessage::Inline(stored)),
            };
        }
        let fates: Vec<Fate> = entries.iter().map(|_| fate()).collect();
        let holders = fates.iter().filter(|fate| **fate != Fate::Skip).count() as u32;
        let place = if holders > 1 {
            let id = MessageId(self.state.next_message);
            self.state.next_message += 1;
            let key = schema::message_key(id);
            schema::encode_message(&key, &stored, &mut self.scratch.value);
            self.put(Table::Messages, &key)?;
            schema::encode_references(&key, holders, &mut self.scratch.value);
            self.put(Table::References, &key)?;
            let len = len as u32;
            EntryMessage::Shared { id, len }
        } else {
            EntryMessage::Inline(stored)
        };
        for (entry, fate) in entries.iter().zip(fates) {
            if fate != Fate::Skip {
                self.entry(entry, fate == Fate::WriteReleased, place)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &QueueEntry, released: bool, message: EntryMessage<'_>) -> Result<(), Fault> {
        let key = schema::queue_key(entry.session, entry.sequence);
        let stored = Entry {
            qos: entry.qos,
            retain: entry.retain,
            released,
            message,
        };
        schema::encode_entry(&key, &stored, &mut self.scratch.value);
        self.scratch.bytes += (key.len() + self.scratch.value.len()) as u64;
        let queues = *self.table(Table::Queues);
        let before = queues.get_or_put(self.txn, &key, &self.scratch.value)?;
        // A batch that is applied a second time finds its entries in place.
        let before = before.map(|value| Removed::of(&key, value));
        if let Some(before) = before {
            self.removed(entry.session, entry.sequence, before)?;
            queues.put(self.txn, &key, &self.scratch.value)?;
        }
        let touched = self.touch(entry.session)?;
        touched.first = touched.first.min(entry.sequence);
        touched.end = touched.end.max(entry.sequence + 1);
        touched.entries += 1;
        touched.bytes += message.len() as u64;
        Ok(())
    }

    fn doubted(&mut self, origin: Origin, holders: impl IntoIterator<Item = SessionNumber>) -> Result<(), Fault> {
        for holder in holders {
            let key = schema::origin_key(origin, holder);
            schema::encode_mark(&key, &mut self.scratch.value);
            self.put(Table::Origins, &key)?;
        }
        Ok(())
    }

    /// Deletes the origins whose keys begin so.
    fn settled(&mut self, prefix: &[u8]) -> Result<(), Fault> {
        if !self.table(Table::Origins).is_empty(self.txn)? {
            self.delete_prefixed(Table::Origins, prefix, &mut usize::MAX.clone())?;
        }
        Ok(())
    }

    fn released(&mut self, session: SessionNumber, sequence: u64) -> Result<(), Fault> {
        let key = schema::queue_key(session, sequence);
        let Some(value) = self.table(Table::Queues).get(self.txn, &key)? else {
            return Ok(());
        };
        match schema::decode_entry(&key, value) {
            Ok(entry) => {
                let released = Entry {
                    released: true,
                    ..entry
                };
                schema::encode_entry(&key, &released, &mut self.scratch.value);
                self.put(Table::Queues, &key)
            }
            Err(error) => {
                Damage::of(Table::Queues, &key, error).log();
                Ok(())
            }
        }
    }

    fn delivered(&mut self, session: SessionNumber, sequence: u64) -> Result<(), Fault> {
        let key = schema::queue_key(session, sequence);
        let queues = *self.table(Table::Queues);
        let Some(value) = queues.get(self.txn, &key)? else {
            return Ok(());
        };
        let removed = Removed::of(&key, value);
        queues.delete(self.txn, &key)?;
        self.removed(session, sequence, removed)
    }

    /// An entry is no more.
    fn removed(&mut self, session: SessionNumber, sequence: u64, removed: Removed) -> Result<(), Fault> {
        let touched = self.touch(session)?;
        touched.entries = touched.entries.saturating_sub(1);
        touched.is_first_gone |= sequence == touched.first;
        touched.is_last_gone |= sequence.checked_add(1) == Some(touched.end);
        match removed {
            Removed::Inline(len) => touched.bytes = touched.bytes.saturating_sub(len),
            Removed::Shared(id, len) => {
                touched.bytes = touched.bytes.saturating_sub(len);
                *self.scratch.dropped.entry(id).or_default() += 1;
            }
            Removed::Damaged => touched.is_doubtful = true,
        }
        Ok(())
    }

    fn touch(&mut self, session: SessionNumber) -> Result<&mut Touched, Fault> {
        let vacant = match self.scratch.touched.entry(session) {
            MapEntry::Occupied(touched) => return Ok(touched.into_mut()),
            MapEntry::Vacant(vacant) => vacant,
        };
        let key = schema::session_key(session);
        let stored = self.tables.of(Table::Backlogs).get(self.txn, &key)?;
        let mut touched = Touched {
            first: u64::MAX,
            end: 0,
            entries: 0,
            bytes: 0,
            is_stored: stored.is_some(),
            is_first_gone: false,
            is_last_gone: false,
            is_doubtful: false,
        };
        match stored.map(|value| schema::decode_backlog(&key, value)) {
            None => {}
            Some(Ok(backlog)) => {
                (touched.first, touched.end) = (backlog.first, backlog.end);
                (touched.entries, touched.bytes) = (backlog.entries, backlog.bytes);
            }
            Some(Err(error)) => {
                Damage::of(Table::Backlogs, &key, error).log();
                touched.is_doubtful = true;
            }
        }
        Ok(vacant.insert(touched))
    }

    // --- ended Sessions ----------------------------------------------------------------------------------------------

    /// What makes it a Session goes now, and as many of its rows as this batch may still delete.
    fn ended(&mut self, session: SessionNumber) -> Result<(), Fault> {
        let key = schema::session_key(session);
        self.delete(Table::Sessions, &key)?;
        self.delete(Table::Backlogs, &key)?;
        self.delete(Table::Away, &key)?;
        self.scratch.touched.remove(&session);
        let mut rows = self.scratch.purge_rows;
        let is_done = self.purge(session, &mut rows)?;
        self.scratch.purge_rows = rows;
        match is_done {
            true => Ok(()),
            false => self.purge_later(session),
        }
    }

    fn purge_later(&mut self, session: SessionNumber) -> Result<(), Fault> {
        let key = schema::session_key(session);
        self.state.has_ended = true;
        schema::encode_mark(&key, &mut self.scratch.value);
        self.put(Table::Ended, &key)
    }

    /// Deletes up to `rows` rows of a Session. True if none are left.
    fn purge(&mut self, session: SessionNumber, rows: &mut usize) -> Result<bool, Fault> {
        let prefix = schema::session_key(session);
        for table in [Table::Subscriptions, Table::Received, Table::Origins, Table::Queues] {
            if !self.delete_prefixed(table, &prefix, rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes up to `rows` rows whose keys begin so. True if none are left.
    pub(super) fn delete_prefixed(&mut self, table: Table, prefix: &[u8], rows: &mut usize) -> Result<bool, Fault> {
        let database = *self.table(table);
        let mut last = std::mem::take(&mut self.scratch.key);
        last.clear();
        let mut is_done = true;
        for row in database.prefix_iter(self.txn, prefix)? {
            let (key, value) = row?;
            if *rows == 0 {
                is_done = false;
                break;
            }
            *rows -= 1;
            last.clear();
            last.extend_from_slice(key);
            if table == Table::Queues
                && let Removed::Shared(id, _) = Removed::of(key, value)
            {
                self.scratch.shared.push(id);
            }
        }
        for id in self.scratch.shared.drain(..) {
            *self.scratch.dropped.entry(id).or_default() += 1;
        }
        if !last.is_empty() {
            let range = (Bound::Included(prefix), Bound::Included(&last[..]));
            database.delete_range(self.txn, &range)?;
        }
        self.scratch.key = last;
        Ok(is_done)
    }

    fn purge_ended(&mut self) -> Result<(), Fault> {
        let mut rows = self.scratch.purge_rows;
        while self.state.has_ended && rows > 0 {
            let Some((key, _)) = self.table(Table::Ended).first(self.txn)? else {
                self.state.has_ended = false;
                break;
            };
            let key = key.to_vec();
            let is_done = match schema::decode_session_key(&key) {
                Ok(session) => self.purge(session, &mut rows)?,
                Err(error) => {
                    Damage::of(Table::Ended, &key, error).log();
                    true
                }
            };
            if is_done {
                self.delete(Table::Ended, &key)?;
                self.state.has_ended = !self.table(Table::Ended).is_empty(self.txn)?;
            }
        }
        self.scratch.purge_rows = rows;
        Ok(())
    }

    // --- the end of a batch ------------------------------------------------------------------------------------------

    fn finish(&mut self) -> Result<(), Fault> {
        self.write_datapoints()?;
        self.purge_ended()?;
        self.purge_platform()?;
        self.settle_usage()?;
        let mut touched = std::mem::take(&mut self.scratch.touched);
        for (session, touched) in touched.drain() {
            self.settle_backlog(session, touched)?;
        }
        self.scratch.touched = touched;
        let mut dropped = std::mem::take(&mut self.scratch.dropped);
        for (id, count) in dropped.drain() {
            self.drop_references(id, count)?;
        }
        self.scratch.dropped = dropped;
        for (name, number) in [
            (META_NEXT_MESSAGE, self.state.next_message),
            (META_NEWEST_SESSION, self.state.newest_session),
            (META_NEWEST_STREAM, self.state.newest_stream),
            (META_NEWEST_DATAPOINT, self.state.newest_datapoint.at_ms()),
            (META_NEWEST_ACCOUNT, self.state.newest_account),
        ] {
            schema::encode_number(name, number, &mut self.scratch.value);
            let is_stored = self.table(Table::Meta).get(self.txn, name)? == Some(&self.scratch.value[..]);
            if !is_stored && number > 0 {
                self.put(Table::Meta, name)?;
            }
        }
        Ok(())
    }

    fn settle_backlog(&mut self, session: SessionNumber, touched: Touched) -> Result<(), Fault> {
        let backlog = match self.backlog(session, touched)? {
            Some(backlog) => Some(backlog),
            None => self.count_queue(session)?,
        };
        let key = schema::session_key(session);
        match backlog {
            Some(backlog) if backlog.entries > 0 => {
                schema::encode_backlog(&key, &backlog, &mut self.scratch.value);
                self.put(Table::Backlogs, &key)
            }
            _ if touched.is_stored => self.delete(Table::Backlogs, &key),
            _ => Ok(()),
        }
    }

    /// The backlog as this batch leaves it; `None` if what was counted cannot be.
    fn backlog(&self, session: SessionNumber, touched: Touched) -> Result<Option<Backlog>, Fault> {
        if touched.is_doubtful {
            return Ok(None);
        }
        let queues = self.table(Table::Queues);
        let mut backlog = Backlog {
            first: touched.first,
            end: touched.end,
            entries: touched.entries,
            bytes: touched.bytes,
        };
        if backlog.entries == 0 {
            return Ok(Some(backlog));
        }
        let is_own = |key: &[u8]| match schema::decode_queue_key(key) {
            Ok((of, sequence)) if of == session => Some(sequence),
            _ => None,
        };
        if touched.is_first_gone {
            let first = queues.get_greater_than_or_equal_to(self.txn, &schema::queue_key(session, backlog.first))?;
            let Some(first) = first.and_then(|(key, _)| is_own(key)) else {
                return Ok(None);
            };
            backlog.first = first;
        }
        if touched.is_last_gone {
            let last = queues.get_lower_than(self.txn, &schema::queue_key(session, backlog.end))?;
            let Some(last) = last.and_then(|(key, _)| is_own(key)) else {
                return Ok(None);
            };
            backlog.end = last + 1;
        }
        let is_sound = backlog.first < backlog.end && backlog.entries <= backlog.end - backlog.first;
        Ok(is_sound.then_some(backlog))
    }

    /// Walks a queue whose backlog is lost.
    fn count_queue(&self, session: SessionNumber) -> Result<Option<Backlog>, Fault> {
        let mut counted: Option<Backlog> = None;
        let prefix = schema::session_key(session);
        for row in self.table(Table::Queues).prefix_iter(self.txn, &prefix)? {
            let (key, value) = row?;
            let Ok((_, sequence)) = schema::decode_queue_key(key) else {
                continue;
            };
            let len = schema::decode_entry(key, value).map_or(0, |entry| entry.message.len() as u64);
            let backlog = counted.get_or_insert(Backlog {
                first: sequence,
                end: sequence,
                entries: 0,
                bytes: 0,
            });
            backlog.end = sequence + 1;
            backlog.entries += 1;
            backlog.bytes += len;
        }
        Ok(counted)
    }

    fn drop_references(&mut self, id: MessageId, count: u32) -> Result<(), Fault> {
        let key = schema::message_key(id);
        let references = *self.table(Table::References);
        let Some(value) = references.get(self.txn, &key)? else {
            return Ok(());
        };
        match schema::decode_references(&key, value) {
            Ok(held) if held > count => {
                schema::encode_references(&key, held - count, &mut self.scratch.value);
                self.put(Table::References, &key)
            }
            Ok(_) => {
                references.delete(self.txn, &key)?;
                self.delete(Table::Messages, &key)
            }
            Err(error) => {
                // Nobody knows when the last of its entries goes: the message stays.
                Damage::of(Table::References, &key, error).log();
                Ok(())
            }
        }
    }

    // --- rows --------------------------------------------------------------------------------------------------------

    pub(super) fn table(&self, table: Table) -> &Database {
        self.tables.of(table)
    }

    /// Puts `scratch.value`.
    pub(super) fn put(&mut self, table: Table, key: &[u8]) -> Result<(), Fault> {
        self.scratch.bytes += (key.len() + self.scratch.value.len()) as u64;
        Ok(self.tables.of(table).put(self.txn, key, &self.scratch.value)?)
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), Fault> {
        self.tables.of(table).delete(self.txn, key)?;
        Ok(())
    }
}

/// What an entry held that is gone from its queue.
#[derive(Clone, Copy)]
enum Removed {
    Inline(u64),
    Shared(MessageId, u64),
    Damaged,
}

impl Removed {
    fn of(key: &[u8], value: &[u8]) -> Removed {
        match schema::decode_entry(key, value).map(|entry| entry.message) {
            Ok(EntryMessage::Shared { id, len }) => Removed::Shared(id, len.into()),
            Ok(message) => Removed::Inline(message.len() as u64),
            Err(error) => {
                Damage::of(Table::Queues, key, error).log();
                Removed::Damaged
            }
        }
    }
}
