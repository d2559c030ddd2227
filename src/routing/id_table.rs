//! A hash table from keys held elsewhere to their `u32` ids.
//!
//! Owns    (hash, id) pairs of 8 bytes; the caller owns the keys and compares them.
//! Called  by `filters` (whole filter texts) and `trie` (a level under its parent).
//! Holds   - the table is cut into segments by hash, and each grows alone: at a million ids one growth moves some
//!           16,000 pairs and never all of them; the stored hash spares reading any key for it;
//!         - a segment no more than a quarter full gives memory back; an empty one holds none;
//!         - nothing iterates, so no order of the table can leak out.

use hashbrown::HashTable;

const SEGMENT_BITS: u32 = 6;

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    id: u32,
}

pub(super) struct IdTable {
    segments: [HashTable<Slot>; 1 << SEGMENT_BITS],
}

impl IdTable {
    pub fn new() -> Self {
        IdTable {
            segments: [const { HashTable::new() }; 1 << SEGMENT_BITS],
        }
    }

    pub fn find(&self, hash: u32, mut is_key: impl FnMut(u32) -> bool) -> Option<u32> {
        self.segments[segment(hash)]
            .find(spread(hash), |slot| slot.hash == hash && is_key(slot.id))
            .map(|slot| slot.id)
    }

    /// The caller has looked: the key is not in the table.
    pub fn insert(&mut self, hash: u32, id: u32) {
        self.segments[segment(hash)].insert_unique(spread(hash), Slot { hash, id }, |slot| spread(slot.hash));
    }

    pub fn remove(&mut self, hash: u32, id: u32) {
        let table = &mut self.segments[segment(hash)];
        let entry = table.find_entry(spread(hash), |slot| slot.id == id);
        entry
            .ok()
            .expect("an id is removed under the hash it was inserted with")
            .remove();
        if table.len() <= table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |slot| spread(slot.hash));
        }
    }
}

fn segment(hash: u32) -> usize {
    (hash >> (u32::BITS - SEGMENT_BITS)) as usize
}

/// hashbrown takes its bucket from the low bits, which pass through, and its tag from the top seven, which mix all.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Folds a keyed 64-bit hash to the 32 bits a slot keeps.
pub(super) fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}
