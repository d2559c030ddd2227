//! The tables of the file, and how it comes to have them.
//!
//! Called  by [`lmdb`](super), when it opens the environment.
//! Holds   - a file has all tables of its schema and the number that says so: both come in one transaction;
//!         - a file of an earlier schema is brought up to date when it is opened for writing, and looked at as it is.

use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, WithoutTls};

use super::{Damage, Fault};
use crate::store::error::StoreError;
use crate::store::schema::{self, META_SCHEMA, SCHEMA};

/// The tables, by name. `ALL` is in the order of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Meta,
    Sessions,
    Subscriptions,
    Received,
    Away,
    Queues,
    Messages,
    References,
    Backlogs,
    Retained,
    Origins,
    Ended,
    // Since schema 2.
    Accounts,
    Devices,
    States,
    Channels,
    Tags,
    Datapoints,
    Usage,
    Events,
    Purges,
}

impl Table {
    pub const ALL: [Table; 21] = [
        Table::Meta,
        Table::Sessions,
        Table::Subscriptions,
        Table::Received,
        Table::Away,
        Table::Queues,
        Table::Messages,
        Table::References,
        Table::Backlogs,
        Table::Retained,
        Table::Origins,
        Table::Ended,
        Table::Accounts,
        Table::Devices,
        Table::States,
        Table::Channels,
        Table::Tags,
        Table::Datapoints,
        Table::Usage,
        Table::Events,
        Table::Purges,
    ];
    /// So many of them, the first, are in a file of schema 1.
    pub(super) const OF_SCHEMA_1: usize = Table::Accounts as usize;

    pub const fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Sessions => "sessions",
            Table::Subscriptions => "subscriptions",
            Table::Received => "received",
            Table::Away => "away",
            Table::Queues => "queues",
            Table::Messages => "messages",
            Table::References => "references",
            Table::Backlogs => "backlogs",
            Table::Retained => "retained",
            Table::Origins => "origins",
            Table::Ended => "ended",
            Table::Accounts => "accounts",
            Table::Devices => "devices",
            Table::States => "states",
            Table::Channels => "channels",
            Table::Tags => "tags",
            Table::Datapoints => "datapoints",
            Table::Usage => "usage",
            Table::Events => "events",
            Table::Purges => "purges",
        }
    }
}

pub(super) type Database = heed::Database<'static, Bytes, Bytes>;

#[derive(Clone, Copy)]
pub(super) struct Tables {
    pub(super) databases: [Database; Table::ALL.len()],
    /// Those that the file has; fewer only where a file of an earlier schema is looked at.
    count: usize,
}

impl Tables {
    pub(super) fn of(&self, table: Table) -> &Database {
        &self.databases[table as usize]
    }

    pub(super) fn has(&self, table: Table) -> bool {
        (table as usize) < self.count
    }
}

/// Tables that may be as large as the disk: a start does not read their leaves beyond a size of the file.
pub(super) const UNREAD: [&str; 6] = [
    Table::Queues.name(),
    Table::Messages.name(),
    Table::References.name(),
    Table::Retained.name(),
    Table::States.name(),
    Table::Datapoints.name(),
];

/// Opens the tables. In a new file, which has no schema so far, and in one of an earlier schema they are created first: in one
/// transaction, so that a file has all of them and the number that says so, or is as it was.
pub(super) fn create_tables(env: &Env<WithoutTls>, path: &Path, is_new: bool) -> Result<Tables, StoreError> {
    let failed = |fault: Fault| fault.into_error(path);
    let txn = env.write_txn().map_err(|error| failed(error.into()))?;
    let mut found = None;
    let created = env.create_databases_and_commit(txn, |opener, txn| -> Result<_, Fault> {
        let meta: heed::Database<'_, Bytes, Bytes> = opener.create_database(txn, Some(Table::Meta.name()))?;
        found = match meta.get(txn, META_SCHEMA)? {
            Some(value) => Some(
                schema::decode_number(META_SCHEMA, value)
                    .map_err(|error| Fault::Damaged(Damage::of(Table::Meta, META_SCHEMA, error)))?,
            ),
            None => None,
        };
        match found {
            Some(SCHEMA) if !is_new => {}
            None | Some(1) if is_new == found.is_none() => {
                let mut value = Vec::new();
                schema::encode_number(META_SCHEMA, SCHEMA, &mut value);
                meta.put(txn, META_SCHEMA, &value)?;
            }
            _ => return Ok(CommitOrAbort::Abort(())),
        }
        let mut databases = [meta; Table::ALL.len()];
        for (database, table) in databases.iter_mut().zip(Table::ALL).skip(1) {
            *database = opener.create_database(txn, Some(table.name()))?;
        }
        Ok(CommitOrAbort::Commit(databases))
    });
    match created.map_err(failed)? {
        CommitOrAbort::Commit(databases) => {
            if let Some(before) = found.filter(|before| *before != SCHEMA) {
                tracing::info!(from = before, to = SCHEMA, "{} is brought up to date", path.display());
            }
            Ok(Tables {
                databases,
                count: databases.len(),
            })
        }
        CommitOrAbort::Abort(()) => Err(not_ours(path, found)),
    }
}

fn not_ours(path: &Path, found: Option<u64>) -> StoreError {
    let path = path.to_owned();
    match found {
        Some(found) if found > SCHEMA => StoreError::NewerSchema { path, found },
        _ => StoreError::NotAStore {
            path,
            reason: "it is an LMDB file without the tables of a broker".to_owned(),
        },
    }
}

pub(super) fn open_tables(env: &Env<WithoutTls>, path: &Path) -> Result<Tables, StoreError> {
    let failed = |fault: Fault| fault.into_error(path);
    let txn = env.read_txn().map_err(|error| failed(error.into()))?;
    let (mut found, mut count) = (None, 0);
    let opened = env.open_databases_and_commit(txn, |opener, txn| -> Result<_, Fault> {
        let meta: Option<heed::Database<'_, Bytes, Bytes>> = opener.open_database(txn, Some(Table::Meta.name()))?;
        let Some(meta) = meta else {
            return Ok(CommitOrAbort::Abort(()));
        };
        let value = meta.get(txn, META_SCHEMA)?.unwrap_or_default();
        let number = schema::decode_number(META_SCHEMA, value)
            .map_err(|error| Fault::Damaged(Damage::of(Table::Meta, META_SCHEMA, error)))?;
        found = Some(number);
        count = match number {
            SCHEMA => Table::ALL.len(),
            1 => Table::OF_SCHEMA_1,
            _ => return Ok(CommitOrAbort::Abort(())),
        };
        let mut databases = [meta; Table::ALL.len()];
        for (database, table) in databases[..count].iter_mut().zip(Table::ALL).skip(1) {
            match opener.open_database(txn, Some(table.name()))? {
                Some(opened) => *database = opened,
                None => return Ok(CommitOrAbort::Abort(())),
            }
        }
        Ok(CommitOrAbort::Commit(databases))
    });
    match opened.map_err(failed)? {
        CommitOrAbort::Commit(databases) => Ok(Tables { databases, count }),
        CommitOrAbort::Abort(()) => Err(not_ours(path, found)),
    }
}
