//! What a store holds, and whether it agrees with itself.
//!
//! Called  by `main` for `skein inspect`, beside a running broker or without one; writes nothing and takes no lock.
//! Holds   - it is one moment of the store that is looked at, however long that takes;
//!         - what is wrong is a finding, not the end: as many are named as [`FINDINGS_MAX`], all are counted.

mod platform;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::lmdb::{Fault, Lmdb, Table, TableSize, View};
use super::schema::{self, DecodeError, EntryMessage, MessageId};
use crate::shard::record::{Backlog, SessionNumber};

/// Findings that are named.
const FINDINGS_MAX: usize = 100;

/// What `skein inspect` prints.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Inspection {
    pub path: PathBuf,
    pub schema: u64,
    /// Length of the file, a part of which takes no space; of that what is or was in use; and the address space for it.
    pub file_bytes: u64,
    pub used_bytes: u64,
    pub map_bytes: u64,
    /// Number of the last commit.
    pub commit: u64,
    pub sessions: u64,
    pub subscriptions: u64,
    /// Messages in queues, and topics and payloads of them; a message in two queues counts twice.
    pub queued_messages: u64,
    pub queued_bytes: u64,
    /// Messages that several queues hold, stored once.
    pub shared_messages: u64,
    pub retained_messages: u64,
    /// Sessions that have ended and whose rows are being deleted.
    pub ended_sessions: u64,
    pub accounts: u64,
    pub devices: u64,
    pub channels: u64,
    pub events: u64,
    /// Of all channels, and bytes of their keys and values.
    pub datapoints: u64,
    pub datapoint_bytes: u64,
    /// Datapoints of what was removed, which are being deleted.
    pub dead_datapoints: u64,
    pub tables: BTreeMap<&'static str, TableSize>,
    /// What is wrong: the first of them, each a sentence.
    pub findings: Vec<String>,
    pub findings_count: u64,
}

/// A broker that grows its map between opening and looking makes us open again.
const TRIES: usize = 5;

/// Looks at the store of a directory.
pub fn inspect(dir: &Path) -> Result<Inspection, StoreError> {
    let mut tries = 1..TRIES;
    loop {
        let lmdb = Lmdb::open_to_look(dir)?;
        match look_at(&lmdb) {
            Err(fault) if fault.is_map_resized() && tries.next().is_some() => {}
            looked => return looked.map_err(|fault| lmdb.error(fault)),
        }
    }
}

pub(super) fn look_at(lmdb: &Lmdb) -> Result<Inspection, Fault> {
    lmdb.view(|view| look(lmdb.path(), view))
}

fn look(path: PathBuf, view: &View<'_>) -> Result<Inspection, Fault> {
    let mut tables = BTreeMap::new();
    for table in Table::ALL {
        tables.insert(table.name(), view.size(table)?);
    }
    let entries = |table: Table| tables[table.name()].entries;
    let mut check = Check::default();
    check.all(view)?;
    Ok(Inspection {
        path,
        schema: view.schema()?,
        file_bytes: view.file_bytes()?,
        used_bytes: view.used_bytes(),
        map_bytes: view.map_bytes(),
        commit: view.commit(),
        sessions: entries(Table::Sessions),
        subscriptions: entries(Table::Subscriptions),
        queued_messages: entries(Table::Queues),
        queued_bytes: check.queued_bytes,
        shared_messages: entries(Table::Messages),
        retained_messages: entries(Table::Retained),
        ended_sessions: entries(Table::Ended),
        accounts: entries(Table::Accounts),
        devices: entries(Table::Devices),
        channels: entries(Table::Channels),
        events: entries(Table::Events),
        datapoints: check.datapoints,
        datapoint_bytes: check.datapoint_bytes,
        dead_datapoints: check.dead_datapoints,
        findings: check.findings,
        findings_count: check.findings_count,
        tables,
    })
}

/// Reads every value, and holds what the tables say against each other.
#[derive(Default)]
struct Check {
    sessions: HashSet<SessionNumber>,
    ended: HashSet<SessionNumber>,
    newest_session: u64,
    /// Entries counted that hold a message.
    holders: HashMap<MessageId, u32>,
    messages: HashMap<MessageId, usize>,
    queued_bytes: u64,
    newest_account: u64,
    newest_stream: u64,
    datapoints: u64,
    datapoint_bytes: u64,
    dead_datapoints: u64,
    findings: Vec<String>,
    findings_count: u64,
}

impl Check {
    fn all(&mut self, view: &View<'_>) -> Result<(), Fault> {
        self.meta(view)?;
        self.sessions(view)?;
        self.of_sessions(view)?;
        self.messages(view)?;
        self.queues(view)?;
        self.references(view)?;
        self.each(view, Table::Retained, |key, value| {
            schema::decode_retained(key, value)?;
            Ok(None)
        })?;
        // Its holders may have ended since.
        self.each(view, Table::Origins, |key, value| {
            schema::decode_origin_key(key)?;
            schema::decode_mark(key, value)?;
            Ok(None)
        })?;
        self.platform(view)
    }

    fn find(&mut self, finding: String) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Decodes every row of a table, which names the Session it belongs to, if it must belong to one.
    fn each(
        &mut self,
        view: &View<'_>,
        table: Table,
        mut decode: impl FnMut(&[u8], &[u8]) -> Result<Option<SessionNumber>, DecodeError>,
    ) -> Result<(), Fault> {
        for row in view.rows(table)? {
            let (key, value) = row?;
            match decode(key, value) {
                Ok(None) => {}
                Ok(Some(session)) if self.sessions.contains(&session) || self.ended.contains(&session) => {}
                Ok(Some(session)) => self.find(format!(
                    "table {}, key {}: there is no session {}",
                    table.name(),
                    hex::encode(key),
                    session.0
                )),
                Err(error) => self.unusable(table, key, error),
            }
        }
        Ok(())
    }

    fn unusable(&mut self, table: Table, key: &[u8], error: DecodeError) {
        let (table, key) = (table.name(), hex::encode(key));
        self.find(format!(
            "table {table}, key {key}: the value cannot be used, since {error}"
        ));
    }

    fn meta(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let mut numbers = HashMap::new();
        self.each(view, Table::Meta, |key, value| {
            numbers.insert(key.to_vec(), schema::decode_number(key, value)?);
            Ok(None)
        })?;
        let number = |name: &[u8]| numbers.get(name).copied().unwrap_or(0);
        self.newest_session = number(schema::META_NEWEST_SESSION);
        self.newest_account = number(schema::META_NEWEST_ACCOUNT);
        self.newest_stream = number(schema::META_NEWEST_STREAM);
        Ok(())
    }

    fn sessions(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let (mut sessions, mut ended) = (HashSet::new(), HashSet::new());
        let mut clients = HashSet::new();
        let mut twice = Vec::new();
        self.each(view, Table::Sessions, |key, value| {
            let number = schema::decode_session_key(key)?;
            sessions.insert(number);
            let session = schema::decode_session(key, value)?;
            if !clients.insert((session.account, session.client_id.clone())) {
                twice.push((number, session));
            }
            Ok(None)
        })?;
        self.each(view, Table::Ended, |key, value| {
            ended.insert(schema::decode_session_key(key)?);
            schema::decode_mark(key, value)?;
            Ok(None)
        })?;
        for (number, session) in twice {
            self.find(format!(
                "session {}: the client {:?} of account {} has another one too",
                number.0, session.client_id, session.account
            ));
        }
        for number in sessions.intersection(&ended) {
            self.find(format!("session {} has ended and has not", number.0));
        }
        if let Some(newest) = sessions.iter().max()
            && newest.0 > self.newest_session
        {
            let known = self.newest_session;
            self.find(format!("session {} is newer than the newest, {known}", newest.0));
        }
        (self.sessions, self.ended) = (sessions, ended);
        Ok(())
    }

    fn of_sessions(&mut self, view: &View<'_>) -> Result<(), Fault> {
        self.each(view, Table::Subscriptions, |key, value| {
            let (session, ..) = schema::decode_subscription(key, value)?;
            Ok(Some(session))
        })?;
        self.each(view, Table::Received, |key, value| {
            schema::decode_mark(key, value)?;
            Ok(Some(schema::decode_received_key(key)?.0))
        })?;
        self.each(view, Table::Away, |key, value| {
            schema::decode_number(key, value)?;
            Ok(Some(schema::decode_session_key(key)?))
        })
    }

    fn messages(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let mut messages = HashMap::new();
        self.each(view, Table::Messages, |key, value| {
            let id = schema::decode_message_key(key)?;
            messages.insert(id, 0);
            let message = schema::decode_message(key, value)?;
            messages.insert(id, message.topic.len() + message.payload.len());
            Ok(None)
        })?;
        self.messages = messages;
        Ok(())
    }

    /// Queues and backlogs sort by Session alike: each queue is counted once, and held against what its backlog says.
    fn queues(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let mut counted: Option<(SessionNumber, Backlog)> = None;
        let mut backlogs = 0;
        for row in view.rows(Table::Queues)? {
            let (key, value) = row?;
            let (session, sequence) = match schema::decode_queue_key(key) {
                Ok(place) => place,
                Err(error) => {
                    self.unusable(Table::Queues, key, error);
                    continue;
                }
            };
            if counted.is_none_or(|(of, _)| of != session)
                && let Some((of, backlog)) = counted.take()
            {
                backlogs += u64::from(self.backlog(view, of, backlog)?);
            }
            let (_, backlog) = counted.get_or_insert((
                session,
                Backlog {
                    first: sequence,
                    end: sequence,
                    entries: 0,
                    bytes: 0,
                },
            ));
            backlog.end = sequence + 1;
            backlog.entries += 1;
            match schema::decode_entry(key, value) {
                Ok(entry) => {
                    let len = entry.message.len() as u64;
                    backlog.bytes += len;
                    self.queued_bytes += len;
                    if let EntryMessage::Shared { id, len } = entry.message {
                        self.shared_entry(key, id, len);
                    }
                }
                Err(error) => self.unusable(Table::Queues, key, error),
            }
        }
        if let Some((of, backlog)) = counted {
            backlogs += u64::from(self.backlog(view, of, backlog)?);
        }
        let rows = view.size(Table::Backlogs)?.entries;
        if rows != backlogs {
            let more = rows.saturating_sub(backlogs);
            self.find(format!("table backlogs: {more} backlogs of queues that are empty"));
        }
        Ok(())
    }

    fn shared_entry(&mut self, key: &[u8], id: MessageId, len: u32) {
        *self.holders.entry(id).or_default() += 1;
        let key = hex::encode(key);
        match self.messages.get(&id) {
            Some(stored) if *stored == len as usize => {}
            Some(stored) => self.find(format!(
                "table queues, key {key}: message {} has {stored} bytes, not {len}",
                id.0
            )),
            None => self.find(format!("table queues, key {key}: there is no message {}", id.0)),
        }
    }

    /// Whether the queue has a backlog.
    fn backlog(&mut self, view: &View<'_>, session: SessionNumber, counted: Backlog) -> Result<bool, Fault> {
        let is_ended = self.ended.contains(&session);
        if !is_ended && !self.sessions.contains(&session) {
            let entries = counted.entries;
            self.find(format!(
                "table queues: {entries} entries, and there is no session {}",
                session.0
            ));
        }
        let key = schema::session_key(session);
        let stored = view.row(Table::Backlogs, &key)?;
        match stored.map(|value| schema::decode_backlog(&key, value)) {
            // The backlog of an ended Session goes first.
            None if is_ended => {}
            Some(Ok(stored)) if stored == counted => {}
            Some(Err(error)) => self.unusable(Table::Backlogs, &key, error),
            other => self.find(format!(
                "session {}: its backlog says {:?}, its queue has {counted:?}",
                session.0,
                other.and_then(Result::ok)
            )),
        }
        Ok(stored.is_some())
    }

    fn references(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let mut holders = std::mem::take(&mut self.holders);
        let mut wrong = Vec::new();
        self.each(view, Table::References, |key, value| {
            let id = schema::decode_message_key(key)?;
            let held = holders.remove(&id).unwrap_or(0);
            let stored = schema::decode_references(key, value)?;
            if stored != held {
                wrong.push((id, stored, held));
            }
            Ok(None)
        })?;
        wrong.extend(holders.into_iter().map(|(id, held)| (id, 0, held)));
        for (id, stored, held) in wrong {
            self.find(format!("message {}: {stored} entries should hold it, {held} do", id.0));
        }
        let mut messages: Vec<_> = std::mem::take(&mut self.messages).into_keys().collect();
        messages.sort_unstable();
        for id in messages {
            if view.row(Table::References, &schema::message_key(id))?.is_none() {
                self.find(format!("message {}: nobody counts who holds it", id.0));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inspection { path, schema, .. } = self;
        writeln!(f, "{}", path.display())?;
        for (name, count) in [
            ("schema", *schema),
            ("commits", self.commit),
            ("sessions", self.sessions),
            ("sessions being deleted", self.ended_sessions),
            ("subscriptions", self.subscriptions),
            ("queued messages", self.queued_messages),
            ("queued bytes", self.queued_bytes),
            ("shared messages", self.shared_messages),
            ("retained messages", self.retained_messages),
            ("accounts", self.accounts),
            ("devices", self.devices),
            ("channels", self.channels),
            ("events", self.events),
            ("datapoints", self.datapoints),
            ("datapoint bytes", self.datapoint_bytes),
            ("datapoints being deleted", self.dead_datapoints),
            ("file, bytes in use", self.used_bytes),
            ("file, bytes", self.file_bytes),
            ("map, bytes", self.map_bytes),
        ] {
            writeln!(f, "  {name:<24}{count:>16}")?;
        }
        writeln!(f, "\n  {:<16}{:>12}{:>12}{:>16}", "table", "entries", "pages", "bytes")?;
        for (name, size) in &self.tables {
            writeln!(
                f,
                "  {name:<16}{:>12}{:>12}{:>16}",
                size.entries, size.pages, size.bytes
            )?;
        }
        match self.findings_count {
            0 => writeln!(f, "\nEvery value can be read, and the tables agree with each other."),
            count => {
                writeln!(f, "\n{count} findings:")?;
                self.findings
                    .iter()
                    .try_for_each(|finding| writeln!(f, "  {finding}"))?;
                match count as usize - self.findings.len() {
                    0 => Ok(()),
                    more => writeln!(f, "  and {more} more"),
                }
            }
        }
    }
}
