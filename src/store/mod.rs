//! Layer 3: what must outlive the process, and the word that it does.
//!
//! Called  by `worker::turn`: [`Door::push`] for every `Output::Persist`, [`Door::committed`] once per batch.
//! Holds   - records are confirmed in the order they were pushed, none before it is as safe as the store makes it.

pub mod memory;

use crate::shard::RecordNumber;
use crate::shard::record::Record;

/// One core's door to the store.
pub enum Door {
    Memory(memory::Memory),
}

impl Door {
    pub fn memory() -> Door {
        Door::Memory(memory::Memory::default())
    }

    pub fn push(&mut self, number: RecordNumber, record: Box<Record>) {
        match self {
            Door::Memory(memory) => memory.push(number, record),
        }
    }

    /// The last record that is committed now, if it is a later one than was said before.
    pub fn committed(&mut self) -> Option<RecordNumber> {
        match self {
            Door::Memory(memory) => memory.committed(),
        }
    }
}
