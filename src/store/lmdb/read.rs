//! What the tables say: all of it for a start, or what a [`Fetch`](crate::shard::record::Fetch) asks for.
//!
//! Holds   - a start reads what it must know of every Session, never its queue: its time does not depend on backlogs;
//!         - a damaged value stops a start, which then says which; while serving it is left out and logged, and stays where it
//!           is for `inspect`.

use std::iter::Peekable;
use std::ops::Bound;

use heed::{RoTxn, WithoutTls};

use super::{Damage, Fault, Table, Tables};
use crate::mqtt::packet::QoS;
use crate::mqtt::topic::TopicName;
use crate::registry::access::AccountId;
use crate::registry::account::Account;
use crate::registry::event::Event;
use crate::session::message::{Message, SharedMessage};
use crate::shard::record::{
    Origin, QueueFetch, QueueWindow, RetainedFetch, RetainedPayloads, SessionNumber, Stored, StoredDevice, StoredEntry,
    StoredRetained, StoredSession,
};
use crate::store::schema::platform::{self, DeviceStanding};
use crate::store::schema::{self, DecodeError, EntryMessage, MessageId, StoredMessage};

type Txn<'t> = RoTxn<'t, WithoutTls>;

pub(super) fn stored(txn: &Txn<'_>, tables: &Tables, retained_bytes_max: usize) -> Result<Stored, Fault> {
    let sessions = sessions(txn, tables)?;
    let in_doubt = in_doubt(txn, tables, &sessions)?;
    Ok(Stored {
        sessions,
        retained: retained(txn, tables, retained_bytes_max)?,
        newest_session: meta_number(txn, tables, schema::META_NEWEST_SESSION)?,
        in_doubt,
        accounts: accounts(txn, tables)?,
        devices: devices(txn, tables)?,
        newest_datapoint_ms: meta_number(txn, tables, schema::META_NEWEST_DATAPOINT)?,
        newest_account: meta_number(txn, tables, schema::META_NEWEST_ACCOUNT)? as u32,
    })
}

/// A number of the table `meta`; 0 where it was never written.
pub(super) fn meta_number(txn: &Txn<'_>, tables: &Tables, name: &[u8]) -> Result<u64, Fault> {
    match tables.of(Table::Meta).get(txn, name)? {
        None => Ok(0),
        Some(value) => {
            schema::decode_number(name, value).map_err(|error| Fault::Damaged(Damage::of(Table::Meta, name, error)))
        }
    }
}

/// Joins what the tables have of each Session: all of them sort by session number.
fn sessions(txn: &Txn<'_>, tables: &Tables) -> Result<Vec<StoredSession>, Fault> {
    let mut filters = rows(txn, tables, Table::Subscriptions, |key, value| {
        let (session, filter, qos) = schema::decode_subscription(key, value)?;
        Ok((session, (Box::from(filter), qos)))
    })?;
    let mut received = rows(txn, tables, Table::Received, |key, value| {
        schema::decode_mark(key, value)?;
        schema::decode_received_key(key)
    })?;
    let mut away = rows(txn, tables, Table::Away, |key, value| {
        Ok((schema::decode_session_key(key)?, schema::decode_number(key, value)?))
    })?;
    let mut backlogs = rows(txn, tables, Table::Backlogs, |key, value| {
        Ok((schema::decode_session_key(key)?, schema::decode_backlog(key, value)?))
    })?;
    let all = rows(txn, tables, Table::Sessions, |key, value| {
        Ok((schema::decode_session_key(key)?, schema::decode_session(key, value)?))
    })?;
    let mut sessions = Vec::with_capacity(tables.of(Table::Sessions).len(txn)? as usize);
    for row in all {
        let (session, schema::Session { account, client_id }) = row?;
        sessions.push(StoredSession {
            session,
            account: AccountId(account),
            client_id,
            filters: of_session(&mut filters, session)?,
            received: of_session(&mut received, session)?,
            away_since_s: of_session(&mut away, session)?.pop(),
            backlog: of_session(&mut backlogs, session)?.pop(),
        });
    }
    Ok(sessions)
}

/// A table, decoded.
fn rows<'t, T>(
    txn: &'t Txn<'_>,
    tables: &Tables,
    table: Table,
    decode: impl Fn(&'t [u8], &'t [u8]) -> Result<T, DecodeError>,
) -> Result<Peekable<impl Iterator<Item = Result<T, Fault>>>, Fault> {
    let rows = tables.of(table).iter(txn)?.map(move |row| {
        let (key, value) = row?;
        decode(key, value).map_err(|error| Fault::Damaged(Damage::of(table, key, error)))
    });
    Ok(rows.peekable())
}

/// The rows of one Session. Rows before it are of Sessions that have ended and are being purged.
fn of_session<T>(
    rows: &mut Peekable<impl Iterator<Item = Result<(SessionNumber, T), Fault>>>,
    session: SessionNumber,
) -> Result<Vec<T>, Fault> {
    let mut found = Vec::new();
    while let Some(row) = rows.next_if(|row| !matches!(row, Ok((of, _)) if *of > session)) {
        let (of, row) = row?;
        if of == session {
            found.push(row);
        }
    }
    Ok(found)
}

fn retained(txn: &Txn<'_>, tables: &Tables, bytes_max: usize) -> Result<Vec<StoredRetained>, Fault> {
    let mut bytes_left = bytes_max;
    let all = rows(txn, tables, Table::Retained, schema::decode_retained)?;
    let retained = all.map(|row| {
        let schema::Retained { topic, qos, payload } = row?;
        let fits = payload.len() <= bytes_left;
        bytes_left -= if fits { payload.len() } else { 0 };
        Ok(StoredRetained {
            topic: topic.into(),
            payload: fits.then(|| payload.into()),
            payload_bytes: payload.len() as u32,
            qos,
        })
    });
    retained.collect()
}

/// An origin whose publisher is gone is in no doubt: it never sends its PUBLISH again.
fn in_doubt(
    txn: &Txn<'_>,
    tables: &Tables,
    sessions: &[StoredSession],
) -> Result<Vec<(Origin, Vec<SessionNumber>)>, Fault> {
    let all = rows(txn, tables, Table::Origins, |key, value| {
        schema::decode_mark(key, value)?;
        schema::decode_origin_key(key)
    })?;
    let mut in_doubt: Vec<(Origin, Vec<SessionNumber>)> = Vec::new();
    for row in all {
        let (origin, holder) = row?;
        if sessions
            .binary_search_by_key(&origin.session, |session| session.session)
            .is_err()
        {
            continue;
        }
        match in_doubt.last_mut() {
            Some((last, holders)) if *last == origin => holders.push(holder),
            _ => in_doubt.push((origin, vec![holder])),
        }
    }
    Ok(in_doubt)
}

/// Accounts and their events, which sort by account alike.
fn accounts(txn: &Txn<'_>, tables: &Tables) -> Result<Vec<(Account, Vec<Event>)>, Fault> {
    let mut events = rows(txn, tables, Table::Events, |key, value| {
        Ok((platform::decode_event_key(key)?.0, platform::decode_event(key, value)?))
    })?;
    let mut accounts = Vec::new();
    for account in rows(txn, tables, Table::Accounts, platform::decode_account)? {
        let account = account?;
        let mut of_account = Vec::new();
        // Those before it are of accounts that are gone and being purged.
        while let Some(event) = events.next_if(|event| !matches!(event, Ok((of, _)) if *of > account.id)) {
            let (of, event) = event?;
            if of == account.id {
                of_account.push(event);
            }
        }
        accounts.push((account, of_account));
    }
    Ok(accounts)
}

fn devices(txn: &Txn<'_>, tables: &Tables) -> Result<Vec<StoredDevice>, Fault> {
    let all = rows(txn, tables, Table::Devices, |key, value| {
        let (account, device) = platform::decode_device_key(key)?;
        let DeviceStanding { is_enabled, channel } = platform::decode_device_standing(key, value)?;
        Ok(StoredDevice {
            account,
            device: device.into(),
            is_enabled,
            channel,
        })
    })?;
    let mut devices = Vec::with_capacity(tables.of(Table::Devices).len(txn)? as usize);
    let mut is_there = (AccountId(0), false);
    for device in all {
        let device = device?;
        if devices.is_empty() || is_there.0 != device.account {
            let key = platform::account_key(device.account);
            is_there = (device.account, tables.of(Table::Accounts).get(txn, &key)?.is_some());
        }
        // Others are of accounts that are gone and being purged.
        if is_there.1 {
            devices.push(device);
        }
    }
    Ok(devices)
}

pub(super) fn window(txn: &Txn<'_>, tables: &Tables, fetch: &QueueFetch) -> Result<QueueWindow, Fault> {
    let session = fetch.session.number;
    let (from, to) = (
        schema::queue_key(session, fetch.from),
        schema::queue_key(session, u64::MAX),
    );
    let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
    let mut rest = tables.of(Table::Queues).range(txn, &range)?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let mut is_end = false;
    while entries.len() < fetch.entries_max && bytes < fetch.bytes_max {
        let Some(row) = rest.next() else {
            is_end = true;
            break;
        };
        let (key, value) = row?;
        match entry(txn, tables, key, value)? {
            Ok(entry) => {
                bytes += entry.message.len();
                entries.push(entry);
            }
            Err(damage) => damage.log(),
        }
    }
    Ok(QueueWindow {
        session: fetch.session,
        entries,
        is_end: is_end || rest.next().transpose()?.is_none(),
    })
}

fn entry(txn: &Txn<'_>, tables: &Tables, key: &[u8], value: &[u8]) -> Result<Result<StoredEntry, Damage>, Fault> {
    let decoded =
        schema::decode_queue_key(key).and_then(|(_, sequence)| Ok((sequence, schema::decode_entry(key, value)?)));
    let (sequence, entry) = match decoded {
        Ok(decoded) => decoded,
        Err(error) => return Ok(Err(Damage::of(Table::Queues, key, error))),
    };
    let message = match entry.message {
        EntryMessage::Inline(message) => Ok(shared(&message, entry.qos)),
        EntryMessage::Shared { id, .. } => message(txn, tables, id, entry.qos)?,
    };
    Ok(message.map(|message| StoredEntry {
        sequence,
        qos: entry.qos,
        retain: entry.retain,
        released: entry.released,
        message,
    }))
}

fn message(txn: &Txn<'_>, tables: &Tables, id: MessageId, qos: QoS) -> Result<Result<SharedMessage, Damage>, Fault> {
    let key = schema::message_key(id);
    // A message that is not there is as good as one without a byte.
    let value = tables.of(Table::Messages).get(txn, &key)?.unwrap_or_default();
    Ok(match schema::decode_message(&key, value) {
        Ok(message) => Ok(shared(&message, qos)),
        Err(error) => Err(Damage::of(Table::Messages, &key, error)),
    })
}

fn shared(message: &StoredMessage<'_>, qos: QoS) -> SharedMessage {
    SharedMessage::new(&Message {
        topic: TopicName::trusted(message.topic),
        payload: message.payload,
        qos,
    })
}

pub(super) fn payloads(txn: &Txn<'_>, tables: &Tables, fetch: &RetainedFetch) -> Result<RetainedPayloads, Fault> {
    let mut key = Vec::new();
    let mut payloads = Vec::with_capacity(fetch.topics.len());
    for topic in &fetch.topics {
        schema::retained_key(topic, &mut key);
        let value = tables.of(Table::Retained).get(txn, &key)?;
        payloads.push(match value.map(|value| schema::decode_retained(&key, value)) {
            None => None,
            Some(Ok(retained)) => Some(retained.payload.into()),
            Some(Err(error)) => {
                Damage::of(Table::Retained, &key, error).log();
                None
            }
        });
    }
    Ok(RetainedPayloads {
        ticket: fetch.ticket,
        payloads,
    })
}
