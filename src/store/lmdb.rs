//! The LMDB environment: one file, its tables, and the transactions on it.
//!
//! Owns    the environment and the lock of its directory.
//! Called  by `writer`: [`Lmdb::commit`] from the storage thread, [`Lmdb::view`] from the thread that reads; by `inspect`.
//! Holds   - one thread writes; readers hold the environment shared while they look, so that growing the map and opening
//!           anew, which take it whole, find no transaction open;
//!         - a batch is in one transaction: whole, or not at all;
//!         - the file is longer than its last used page, so that a shorter one has lost something: LMDB reads through a map,
//!           and a page that is not there would end the process with SIGBUS.

mod apply;
mod capped;
mod datapoints;
mod platform;
mod purge;
mod read;
mod streams;
mod tables;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use heed::{Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, WithoutTls};

use super::error::StoreError;
use super::pages;
use super::schema::{self, DecodeError, META_SCHEMA};
use crate::limits::{STORE_CHECK_BYTES_MAX, STORE_FILE_AHEAD_BYTES};
use crate::shard::record::{QueueFetch, QueueWindow, Record, RetainedFetch, RetainedPayloads, Stored};
pub use apply::{Applied, Applier};
pub use tables::Table;
use tables::{Database, Tables, UNREAD, create_tables, open_tables};

/// What a commit stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// On the disk: survives a power cut.
    #[default]
    Fsync,
    /// In the kernel: survives the end of the process.
    Process,
}

#[derive(Clone, Debug)]
pub struct LmdbConfig {
    pub dir: PathBuf,
    pub durability: Durability,
    /// Address space at first, and at most.
    pub map_bytes: usize,
    pub map_bytes_max: usize,
}

/// Why a transaction came to nothing.
#[derive(Debug)]
pub enum Fault {
    /// The map is too small for it.
    MapFull,
    /// The environment cannot go on: it must be opened anew.
    Broken(String),
    /// The disk, or what stands for it, refused.
    Disk(io::Error),
    /// A value that a transaction needs cannot be used.
    Damaged(Damage),
    Other(heed::Error),
}

impl Fault {
    /// Another process has made the map larger than it is here.
    pub fn is_map_resized(&self) -> bool {
        matches!(self, Fault::Other(heed::Error::Mdb(MdbError::MapResized)))
    }
}

impl From<heed::Error> for Fault {
    fn from(error: heed::Error) -> Fault {
        match error {
            heed::Error::Mdb(MdbError::MapFull) => Fault::MapFull,
            heed::Error::Mdb(MdbError::Panic) => Fault::Broken(error.to_string()),
            heed::Error::Io(error) => Fault::Disk(error),
            other => Fault::Other(other),
        }
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub table: Table,
    pub key: Vec<u8>,
    pub error: DecodeError,
}

impl Damage {
    fn of(table: Table, key: &[u8], error: DecodeError) -> Damage {
        let key = key.to_vec();
        Damage { table, key, error }
    }

    /// For where nobody is left to tell: the store goes on without the value.
    fn log(&self) {
        tracing::error!(
            table = self.table.name(),
            key = hex::encode(&self.key),
            error = %self.error,
            "the store is damaged: a value cannot be used and is left out; look with `skein inspect`"
        );
    }
}

/// The environment of one directory.
pub struct Lmdb {
    config: LmdbConfig,
    opened: RwLock<Option<Opened>>,
    /// Nobody else's broker.
    _lock: Option<File>,
    /// What the next commits fail with.
    #[cfg(test)]
    pub(super) faults: std::sync::Mutex<std::collections::VecDeque<Fault>>,
}

struct Opened {
    env: Env<WithoutTls>,
    tables: Tables,
    file: File,
}

impl Lmdb {
    /// Opens or creates the store for writing.
    pub fn open(config: LmdbConfig) -> Result<Lmdb, StoreError> {
        let dir = &config.dir;
        let not_writable = |path: &Path| {
            let path = path.to_owned();
            move |error| StoreError::NotWritable { path, error }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| StoreError::Create {
                path: dir.clone(),
                error,
            })?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(not_writable(&path))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse { path: dir.clone() }),
            Err(error) => return Err(not_writable(&path)(error.into())),
        }
        let path = data_path(dir);
        if !path.exists() {
            create(&config).map_err(not_writable(dir))??;
        }
        // LMDB would say of a directory, or a file without rights, that it cannot use it, and not why.
        let _can_be_written = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(not_writable(&path))?;
        check_before_start(&path)?;
        let opened = open_env(&config, Access::Write)?;
        // Killed at the right instant, the last broker has left a commit that can be seen and is not on disk: nothing is
        // built on it before it is.
        opened
            .env
            .force_sync()
            .map_err(|error| Fault::from(error).into_error(&path))?;
        sync_names(dir).map_err(not_writable(dir))?;
        Ok(Lmdb {
            config,
            opened: RwLock::new(Some(opened)),
            _lock: Some(lock),
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    /// Opens a store to look at it, beside a running broker or without one. Nothing is written.
    pub fn open_to_look(dir: &Path) -> Result<Lmdb, StoreError> {
        let path = data_path(dir);
        if !path.exists() {
            return Err(StoreError::Missing { path: dir.to_owned() });
        }
        check_file(&path, pages::Depth::Everything)?;
        let config = LmdbConfig {
            dir: dir.to_owned(),
            durability: Durability::Process,
            // As large as its writer has it.
            map_bytes: 0,
            map_bytes_max: 0,
        };
        let opened = open_env(&config, Access::Look)?;
        Ok(Lmdb {
            config,
            opened: RwLock::new(Some(opened)),
            _lock: None,
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    pub fn path(&self) -> PathBuf {
        data_path(&self.config.dir)
    }

    /// Writes a batch in one transaction and commits it. `applier` is as before if that fails.
    ///
    /// Trying again after a failure is sound, whatever failed. LMDB never writes over a page that the last commit can reach:
    /// a transaction writes pages that were free, then has them synced, then writes one of two meta pages, which names
    /// the new root. Until that last write the other meta page is the root, and it names nothing but pages of commits that
    /// were synced. So after a failed write or fsync the store is that of the last commit, and the next try begins there,
    /// builds each of its pages from the records and writes each to the file again: what the kernel did with the pages of
    /// the failed try (an fsync that failed may have marked them clean without writing them) is no part of it. Where the
    /// write of the meta page failed, LMDB wants to be [opened anew](Lmdb::reopen), and either root is then whole: applying a
    /// batch twice gives what applying it once does.
    pub fn commit<'r>(
        &self,
        applier: &mut Applier,
        records: impl Iterator<Item = &'r Record> + Clone,
    ) -> Result<Applied, Fault> {
        let guard = self.opened();
        let opened = guard.as_ref().ok_or_else(closed)?;
        opened.stay_ahead();
        let mut txn = opened.env.write_txn()?;
        let applied = applier.apply(&mut txn, &opened.tables, records)?;
        #[cfg(test)]
        if let Some(fault) = self.faults.lock().expect("tests do not panic with it").pop_front() {
            return Err(fault);
        }
        txn.commit()?;
        applier.adopt();
        Ok(applied)
    }

    /// What is committed now, unchanged for as long as it is looked at.
    pub fn view<T>(&self, look: impl FnOnce(&View<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        let guard = self.opened();
        let opened = guard.as_ref().ok_or_else(closed)?;
        let txn = opened.env.read_txn()?;
        look(&View {
            txn: &txn,
            tables: &opened.tables,
            opened,
        })
    }

    /// Number of the last commit.
    pub fn last_commit(&self) -> u64 {
        let guard = self.opened();
        guard.as_ref().map_or(0, |opened| opened.env.info().last_txn_id as u64)
    }

    pub fn map_bytes(&self) -> u64 {
        let guard = self.opened();
        guard.as_ref().map_or(0, |opened| opened.env.info().map_size as u64)
    }

    /// Doubles the map. False if it is as large as it may be.
    pub fn grow(&self) -> Result<bool, Fault> {
        let mut guard = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let opened = guard.as_mut().ok_or_else(closed)?;
        opened.env.clear_stale_readers()?;
        let now = opened.env.info().map_size;
        let next = now.saturating_mul(2).min(page_multiple(self.config.map_bytes_max));
        if next <= now {
            return Ok(false);
        }
        // SAFETY: no transaction is open in this process: readers hold `opened` shared while theirs is, the one writer is
        // here, and this has it whole.
        #[allow(unsafe_code)]
        unsafe {
            opened.env.resize(next)?;
        }
        tracing::info!(from_bytes = now, to_bytes = next, "the store grows");
        Ok(true)
    }

    /// Closes the environment and opens it anew, after a [`Fault::Broken`]. Returns what to go on from: nobody knows whether
    /// the batch before is on disk.
    pub fn reopen(&self) -> Result<Applier, StoreError> {
        let mut guard = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let map_bytes = guard.take().map_or(0, |opened| opened.env.info().map_size);
        let config = LmdbConfig {
            map_bytes: map_bytes.max(self.config.map_bytes),
            ..self.config.clone()
        };
        check_before_start(&self.path())?;
        *guard = Some(open_env(&config, Access::Write)?);
        drop(guard);
        self.view(|view| view.applier()).map_err(|fault| self.error(fault))
    }

    /// Everything a start needs, and what the storage thread goes on from.
    pub fn load(&self, retained_bytes_max: usize) -> Result<(Stored, Applier), StoreError> {
        let loaded = self.view(|view| {
            let stored = view.stored(retained_bytes_max)?;
            Ok((stored, view.applier()?))
        });
        loaded.map_err(|fault| self.error(fault))
    }

    pub fn error(&self, fault: Fault) -> StoreError {
        fault.into_error(&self.path())
    }

    fn opened(&self) -> RwLockReadGuard<'_, Option<Opened>> {
        // A panic with the guard in hand left the environment as it was.
        self.opened.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Lmdb {
    pub(super) fn set_schema(&self, number: u64) {
        let mut value = Vec::new();
        schema::encode_number(META_SCHEMA, number, &mut value);
        self.change(Table::Meta, |table, txn| table.put(txn, META_SCHEMA, &value));
    }

    /// Leaves the file as a build of schema 1 does.
    pub(super) fn downgrade(self) {
        self.set_schema(1);
        let guard = self.opened();
        let opened = guard.as_ref().expect("tests do not break it");
        let mut txn = opened.env.write_txn().expect("tests have a disk");
        for database in &opened.tables.databases[Table::OF_SCHEMA_1..] {
            // SAFETY: nobody uses the handles after this: the environment is closed.
            #[allow(unsafe_code)]
            unsafe { database.remove(&mut txn) }.expect("tests have a disk");
        }
        txn.commit().expect("tests have a disk");
    }

    pub(super) fn fail_next(&self, fault: Fault) {
        let mut faults = self.faults.lock().expect("tests do not panic with it");
        faults.push_back(fault);
    }

    pub(super) fn remove_row(&self, table: Table, key: &[u8]) {
        self.change(table, |table, txn| table.delete(txn, key).map(drop));
    }

    pub(super) fn put_row(&self, table: Table, key: &[u8], value: &[u8]) {
        self.change(table, |table, txn| table.put(txn, key, value));
    }

    fn change(&self, table: Table, change: impl FnOnce(&Database, &mut heed::RwTxn<'_>) -> heed::Result<()>) {
        let guard = self.opened();
        let opened = guard.as_ref().expect("tests do not break it");
        let mut txn = opened.env.write_txn().expect("tests have a disk");
        change(opened.tables.of(table), &mut txn)
            .and_then(|()| txn.commit())
            .expect("tests have a disk");
    }
}

fn closed() -> Fault {
    Fault::Broken("it could not be opened anew".to_owned())
}

impl Fault {
    fn into_error(self, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Fault::Damaged(Damage { table, key, error }) => StoreError::Damaged {
                path,
                table: table.name(),
                key: hex::encode(key),
                error,
            },
            Fault::Disk(error) => StoreError::Io { path, error },
            Fault::Other(heed::Error::Mdb(
                error @ (MdbError::Corrupted | MdbError::PageNotFound | MdbError::Incompatible | MdbError::BadValSize),
            )) => StoreError::DamagedPages {
                path,
                reason: error.to_string(),
            },
            Fault::MapFull => StoreError::Io {
                path,
                error: io::Error::other("the map is full"),
            },
            Fault::Broken(reason) => StoreError::Io {
                path,
                error: io::Error::other(reason),
            },
            Fault::Other(error) => StoreError::Io {
                path,
                error: io::Error::other(error),
            },
        }
    }
}

/// Key and value.
type Row<'t> = Result<(&'t [u8], &'t [u8]), Fault>;

/// One moment of the store.
pub struct View<'v> {
    txn: &'v RoTxn<'v, WithoutTls>,
    tables: &'v Tables,
    opened: &'v Opened,
}

/// What a table takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TableSize {
    pub entries: u64,
    pub pages: u64,
    pub bytes: u64,
}

impl View<'_> {
    /// Number of the commit that is looked at.
    pub fn commit(&self) -> u64 {
        self.txn.id() as u64
    }

    /// A table that the file does not have, being of an earlier schema, is an empty one.
    pub fn size(&self, table: Table) -> Result<TableSize, Fault> {
        if !self.tables.has(table) {
            return Ok(TableSize::default());
        }
        let stat = self.tables.of(table).stat(self.txn)?;
        let pages = (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64;
        Ok(TableSize {
            entries: stat.entries as u64,
            pages,
            bytes: pages * u64::from(stat.page_size),
        })
    }

    /// All rows of a table, in the order of their keys.
    pub fn rows(&self, table: Table) -> Result<impl Iterator<Item = Row<'_>>, Fault> {
        let rows = match self.tables.has(table) {
            true => Some(self.tables.of(table).iter(self.txn)?),
            false => None,
        };
        Ok(rows.into_iter().flatten().map(|row| row.map_err(Fault::from)))
    }

    pub fn row(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Fault> {
        match self.tables.has(table) {
            true => Ok(self.tables.of(table).get(self.txn, key)?),
            false => Ok(None),
        }
    }

    pub fn map_bytes(&self) -> u64 {
        self.opened.env.info().map_size as u64
    }

    pub fn file_bytes(&self) -> Result<u64, Fault> {
        Ok(self.opened.file.metadata().map_err(Fault::Disk)?.len())
    }

    /// Bytes of the file that are or were in use.
    pub fn used_bytes(&self) -> u64 {
        self.opened.used_bytes()
    }

    pub fn schema(&self) -> Result<u64, Fault> {
        let value = self.row(Table::Meta, META_SCHEMA)?.unwrap_or_default();
        schema::decode_number(META_SCHEMA, value)
            .map_err(|error| Fault::Damaged(Damage::of(Table::Meta, META_SCHEMA, error)))
    }

    pub fn stored(&self, retained_bytes_max: usize) -> Result<Stored, Fault> {
        read::stored(self.txn, self.tables, retained_bytes_max)
    }

    pub fn window(&self, fetch: &QueueFetch) -> Result<QueueWindow, Fault> {
        read::window(self.txn, self.tables, fetch)
    }

    pub fn payloads(&self, fetch: &RetainedFetch) -> Result<RetainedPayloads, Fault> {
        read::payloads(self.txn, self.tables, fetch)
    }

    fn applier(&self) -> Result<Applier, Fault> {
        Applier::load(self.txn, self.tables)
    }
}

impl Opened {
    fn used_bytes(&self) -> u64 {
        let page_bytes = u64::from(self.env.unnamed_database_stat().page_size);
        (self.env.info().last_page_number as u64 + 1) * page_bytes
    }

    /// Makes the file longer before a transaction needs it. LMDB counts pages as used that a transaction took at the end of
    /// the file and gave back before its commit, and does not write them: without this, a file could be shorter than it says
    /// and still be whole. Nothing is written for it on disk, and where it cannot be had the store does without.
    fn stay_ahead(&self) {
        let used = self.used_bytes();
        let length = self.file.metadata().map_or(u64::MAX, |metadata| metadata.len());
        if length < used + STORE_FILE_AHEAD_BYTES / 2 {
            let ahead = (used + STORE_FILE_AHEAD_BYTES).next_multiple_of(STORE_FILE_AHEAD_BYTES / 2);
            let _ = self.file.set_len(ahead);
        }
    }
}

/// Whether a directory has a store.
pub fn is_in(dir: &Path) -> bool {
    data_path(dir).exists()
}

fn data_path(dir: &Path) -> PathBuf {
    dir.join("data.mdb")
}

/// A file that is synced is found after a power cut only if its name was synced too, and that of its directory.
fn sync_names(dir: &Path) -> io::Result<()> {
    let dir = dir.canonicalize()?;
    File::open(&dir)?.sync_all()?;
    // The parent may belong to somebody else, and then was there before.
    if let Some(parent) = dir.parent().and_then(|parent| File::open(parent).ok()) {
        let _ = parent.sync_all();
    }
    Ok(())
}

fn page_multiple(bytes: usize) -> usize {
    let page = rustix::param::page_size();
    bytes.next_multiple_of(page)
}

/// Makes an empty store, whole or not at all: it comes under its name when it is on disk. So a file that is there and holds
/// nothing has lost something.
fn create(config: &LmdbConfig) -> io::Result<Result<(), StoreError>> {
    let aside = config.dir.join("new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    DirBuilder::new().mode(0o700).create(&aside)?;
    let empty = LmdbConfig {
        dir: aside.clone(),
        durability: Durability::Fsync,
        ..config.clone()
    };
    let path = data_path(&aside);
    // With these rights, whatever the umask; LMDB would give it others.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    match open_env(&empty, Access::Create) {
        Ok(opened) => opened.env.prepare_for_closing().wait(),
        Err(error) => return Ok(Err(error)),
    };
    fs::rename(&path, data_path(&config.dir))?;
    fs::remove_dir_all(&aside)?;
    sync_names(&config.dir)?;
    Ok(Ok(()))
}

/// A start must not take longer for a larger backlog.
fn check_before_start(path: &Path) -> Result<(), StoreError> {
    match fs::metadata(path).map_or(0, |metadata| metadata.len()) <= STORE_CHECK_BYTES_MAX {
        true => check_file(path, pages::Depth::Everything),
        false => check_file(path, pages::Depth::Structure { unread: &UNREAD }),
    }
}

/// What can be said of the file before LMDB maps it.
fn check_file(path: &Path, depth: pages::Depth<'_>) -> Result<(), StoreError> {
    let io = |error| StoreError::Io {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(io)?;
    let not_a_store = |reason: &str| StoreError::NotAStore {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    // The head of LMDB's first page: page number, flags (meta page), then its magic number and version.
    let mut head = [0; 24];
    file.read_exact_at(&mut head, 0)
        .map_err(|_| not_a_store("it is no LMDB file"))?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(16) != 0xBEEF_C0DE {
        return Err(not_a_store("it is no LMDB file"));
    }
    if word(20) != 1 {
        return Err(not_a_store("it was written by another version of LMDB"));
    }
    let summary = pages::check(path, depth).map_err(|damage| match damage {
        pages::Damage::Damaged { path, what, .. } => StoreError::DamagedPages { path, reason: what },
        pages::Damage::Empty { path } => StoreError::DamagedPages {
            path,
            reason: "it is empty".to_owned(),
        },
        pages::Damage::Unreadable { path, error } => StoreError::Io { path, error },
        pages::Damage::Busy { path } => StoreError::Busy { path },
    })?;
    if summary.other_transaction + 1 < summary.last_transaction {
        tracing::warn!(
            last_commit = summary.last_transaction,
            before = summary.other_transaction,
            "{} may have lost its newest commits: those that it should have are not the last two",
            path.display()
        );
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// A new file.
    Create,
    Write,
    Look,
}

fn open_env(config: &LmdbConfig, access: Access) -> Result<Opened, StoreError> {
    let path = data_path(&config.dir);
    let io = |error| StoreError::Io {
        path: path.clone(),
        error,
    };
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.max_dbs(Table::ALL.len() as u32);
    if config.map_bytes > 0 {
        options.map_size(page_multiple(config.map_bytes));
    }
    let mut flags = EnvFlags::empty();
    if access == Access::Look {
        flags |= EnvFlags::READ_ONLY;
    } else if config.durability == Durability::Process {
        flags |= EnvFlags::NO_SYNC;
    }
    // SAFETY: NO_SYNC is what `Durability::Process` promises, no more; READ_ONLY takes nothing away from LMDB. Of the file
    // mapped: this process opens it once (heed sees to it), no other broker writes it (the lock of the directory), a
    // network file system is the operator's to avoid, and that it is not shorter than it must be is checked below before
    // the first transaction.
    #[allow(unsafe_code)]
    let env = unsafe {
        options.flags(flags);
        options.open(&config.dir)
    };
    let env = env.map_err(|error| match error {
        heed::Error::EnvAlreadyOpened => StoreError::InUse {
            path: config.dir.clone(),
        },
        heed::Error::Mdb(MdbError::Invalid | MdbError::Corrupted) => StoreError::NotAStore {
            path: path.clone(),
            reason: "it is no LMDB file, or its first pages are damaged".to_owned(),
        },
        heed::Error::Mdb(MdbError::VersionMismatch) => StoreError::NotAStore {
            path: path.clone(),
            reason: "it was written by another version of LMDB".to_owned(),
        },
        heed::Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => StoreError::Map {
            path: path.clone(),
            bytes: config.map_bytes as u64,
            error,
        },
        heed::Error::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => StoreError::NotWritable {
            path: config.dir.clone(),
            error,
        },
        heed::Error::Io(error) => io(error),
        other => io(io::Error::other(other)),
    })?;
    let file = env
        .try_clone_inner_file()
        .map_err(|error| io(io::Error::other(error)))?;
    // In this order: beside a running broker the file grows meanwhile, and grows before it is needed.
    let needed = (env.info().last_page_number as u64 + 1) * u64::from(env.unnamed_database_stat().page_size);
    let bytes = file.metadata().map_err(io)?.len();
    if bytes < needed {
        return Err(StoreError::Truncated { path, bytes, needed });
    }
    if access != Access::Look {
        env.clear_stale_readers()
            .map_err(|error| Fault::from(error).into_error(&path))?;
    }
    let tables = match access {
        Access::Create => create_tables(&env, &path, true)?,
        Access::Write => create_tables(&env, &path, false)?,
        Access::Look => open_tables(&env, &path)?,
    };
    Ok(Opened { env, tables, file })
}
