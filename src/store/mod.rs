//! Layer 3: what must outlive the process, and the word that it does.
//!
//! Called  by `worker::turn`: [`Door::push`] for every `Output::Persist`, [`Door::fetch`] for every `Output::Fetch`,
//!         [`Door::flush`] before anything leaves for other cores, [`Door::committed`] and [`Door::fetched`] once per batch.
//! Holds   - records are confirmed in the order they were pushed, none before it is as safe as the store makes it;
//!         - what one core pushes between two flushes is one unit: it is in one transaction, or in none.

pub mod client;
mod door;
pub mod error;
pub mod inspect;
pub mod lmdb;
pub mod memory;
pub mod offline;
pub mod pages;
pub mod schema;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod writer;

use crate::shard::RecordNumber;
use crate::shard::record::{Fetch, Fetched, Record};

/// One core's door to the store.
pub enum Door {
    Memory(memory::Memory),
    Disk(Box<door::DiskDoor>),
}

impl Door {
    pub fn memory() -> Door {
        Door::Memory(memory::Memory::default())
    }

    pub fn push(&mut self, number: RecordNumber, record: Box<Record>) {
        match self {
            Door::Memory(memory) => memory.push(number, record),
            Door::Disk(disk) => disk.push(number, record),
        }
    }

    pub fn fetch(&mut self, fetch: Fetch) {
        match self {
            Door::Memory(memory) => memory.fetch(fetch),
            Door::Disk(disk) => disk.fetch(fetch),
        }
    }

    /// Hands all that was pushed to the storage thread, as one unit.
    pub fn flush(&mut self) {
        match self {
            Door::Memory(_) => {}
            Door::Disk(disk) => disk.flush(),
        }
    }

    /// The last record that is committed now, if it is a later one than was said before.
    pub fn committed(&mut self) -> Option<RecordNumber> {
        match self {
            Door::Memory(memory) => memory.committed(),
            Door::Disk(disk) => disk.committed(),
        }
    }

    /// The next answer. Said after the `committed` that covers the records before its request.
    pub fn fetched(&mut self) -> Option<Fetched> {
        match self {
            Door::Memory(memory) => memory.fetched(),
            Door::Disk(disk) => disk.fetched(),
        }
    }

    /// Whether [`committed`](Door::committed) or [`fetched`](Door::fetched) have something to say: for the last look before a
    /// sleep, which the bell of the core ends when there is news.
    pub fn has_news(&self) -> bool {
        match self {
            Door::Memory(memory) => memory.has_news(),
            Door::Disk(disk) => disk.has_news(),
        }
    }
}
