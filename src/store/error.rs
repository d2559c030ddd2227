//! What the operator has to change before the store can be opened.

use std::io;
use std::path::PathBuf;

use super::schema::{DecodeError, SCHEMA};

/// Each is one sentence that names the path.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create {path}: {error}; give --data-dir a directory that this user may create", path = path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("cannot write to {path}: {error}; give this user the right to write there, or give --data-dir another directory", path = path.display())]
    NotWritable { path: PathBuf, error: io::Error },
    #[error("{path} is in use by another broker; stop that one, or give --data-dir another directory", path = path.display())]
    InUse { path: PathBuf },
    #[error("there is no store in {path}; give --data-dir the directory of a broker", path = path.display())]
    Missing { path: PathBuf },
    #[error(
        "{path} was written by a newer version (schema {found}, this one knows {SCHEMA}); run that version, or give \
         --data-dir another directory", path = path.display()
    )]
    NewerSchema { path: PathBuf, found: u64 },
    #[error("{path} is not a store: {reason}; move it away, or give --data-dir another directory", path = path.display())]
    NotAStore { path: PathBuf, reason: String },
    #[error("{path} is written to faster than it can be checked; try again when its broker is less busy", path = path.display())]
    Busy { path: PathBuf },
    #[error(
        "{path} is truncated: it has {bytes} bytes, and {needed} are in use; restore it from a backup, or move it away \
         to begin anew", path = path.display()
    )]
    Truncated { path: PathBuf, bytes: u64, needed: u64 },
    #[error(
        "{path} is damaged: in table {table}, the value of key {key} cannot be used, since {error}; restore the file from a \
         backup, or move it away to begin anew", path = path.display()
    )]
    Damaged {
        path: PathBuf,
        table: &'static str,
        /// In hex.
        key: String,
        error: DecodeError,
    },
    #[error("{path} is damaged: {reason}; restore it from a backup, or move it away to begin anew", path = path.display())]
    DamagedPages { path: PathBuf, reason: String },
    #[error(
        "cannot reserve {bytes} bytes of address space for {path}: {error}; give a smaller --map-size, or allow more \
         (ulimit -v)", path = path.display()
    )]
    Map {
        path: PathBuf,
        bytes: u64,
        error: io::Error,
    },
    #[error("cannot use {path}: {error}; see that its disk and file system are in order", path = path.display())]
    Io { path: PathBuf, error: io::Error },
}
