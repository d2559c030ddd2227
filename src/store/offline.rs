//! A change of a store that no broker runs on: for commands.

use super::error::StoreError;
use super::lmdb::{Fault, Lmdb};
use super::writer::StoreConfig;
use crate::shard::record::{Record, Stored};

/// Opens the store as a broker does, [`InUse`](StoreError::InUse) where one has it, and creates it where there is none. Commits
/// the records that `change` makes of what is stored, all or none, and closes it again. Payloads of retained messages are
/// not read.
pub fn change_offline<T, E: From<StoreError>>(
    config: StoreConfig,
    change: impl FnOnce(&Stored) -> Result<(Vec<Record>, T), E>,
) -> Result<T, E> {
    let lmdb = Lmdb::open(config.lmdb())?;
    let (stored, mut applier) = lmdb.load(0)?;
    let (records, answer) = change(&stored)?;
    if records.is_empty() {
        return Ok(answer);
    }
    loop {
        match lmdb.commit(&mut applier, records.iter()) {
            Ok(_) => return Ok(answer),
            Err(Fault::MapFull) if lmdb.grow().map_err(|fault| lmdb.error(fault))? => {}
            Err(fault) => return Err(lmdb.error(fault).into()),
        }
    }
}
