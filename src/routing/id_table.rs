//! A hash table from keys held elsewhere to their `u32` ids.
//!
//! Owns    (hash, id) pairs of 8 bytes, probed linearly; the caller owns the keys and compares them.
//! Called  by `filters` (whole filter texts) and `trie` (a level under its parent).
//! Holds   - a probe reads one cache line, rarely two, before the first key: what a table with separate tags cannot do;
//!         - the table is cut into segments by hash, and each grows alone: at a million ids one growth moves some
//!           16,000 pairs and never all of them; the stored hash spares reading any key for it;
//!         - a segment is at most two thirds full and, once large, at least a sixth; an empty one holds no memory;
//!         - nothing iterates, so no order of the table can leak out.

const SEGMENT_BITS: u32 = 6;
const SLOTS_MIN: usize = 8;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    /// `NONE` where the slot is free.
    id: u32,
}

const FREE: Slot = Slot { hash: 0, id: NONE };

#[derive(Default)]
struct Segment {
    /// None, or a power of two; at least one is free. From a pair's home to its slot no slot is free.
    slots: Box<[Slot]>,
    count: usize,
}

pub(super) struct IdTable {
    segments: [Segment; 1 << SEGMENT_BITS],
}

impl IdTable {
    pub fn new() -> Self {
        IdTable {
            segments: std::array::from_fn(|_| Segment::default()),
        }
    }

    pub fn find(&self, hash: u32, mut is_key: impl FnMut(u32) -> bool) -> Option<u32> {
        let slots = &*self.segments[segment(hash)].slots;
        let mask = slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let Slot { hash: other, id } = slots[at & mask];
            if id == NONE {
                return None;
            }
            if other == hash && is_key(id) {
                return Some(id);
            }
            at += 1;
        }
    }

    /// The caller has looked: the key is not in the table.
    pub fn insert(&mut self, hash: u32, id: u32) {
        debug_assert_ne!(id, NONE);
        let segment = &mut self.segments[segment(hash)];
        if (segment.count + 1) * 3 > segment.slots.len() * 2 {
            segment.resize((segment.slots.len() * 2).max(SLOTS_MIN));
        }
        segment.place(Slot { hash, id });
        segment.count += 1;
    }

    /// The pair is in the table.
    pub fn remove(&mut self, hash: u32, id: u32) {
        let segment = &mut self.segments[segment(hash)];
        let slots = &mut *segment.slots;
        let mask = slots.len() - 1;
        let mut gap = hash as usize & mask;
        while slots[gap].id != id {
            assert_ne!(
                slots[gap].id, NONE,
                "an id is removed under the hash it was inserted with"
            );
            gap = (gap + 1) & mask;
        }
        // What stands behind the gap moves into it, unless its home lies behind the gap: no marker stays.
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            if slots[at].id == NONE {
                break;
            }
            let from_home = at.wrapping_sub(slots[at].hash as usize) & mask;
            if from_home >= (at.wrapping_sub(gap) & mask) {
                slots[gap] = slots[at];
                gap = at;
            }
        }
        slots[gap] = FREE;
        segment.count -= 1;
        let length = segment.slots.len();
        if segment.count == 0 {
            segment.slots = Box::default();
        } else if length > SLOTS_MIN && segment.count * 6 < length {
            segment.resize(length / 2);
        }
    }
}

impl Segment {
    fn resize(&mut self, length: usize) {
        let before = std::mem::replace(&mut self.slots, vec![FREE; length].into_boxed_slice());
        for slot in before {
            if slot.id != NONE {
                self.place(slot);
            }
        }
    }

    fn place(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = slot.hash as usize & mask;
        while self.slots[at].id != NONE {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }
}

/// By the high bits; the low bits choose the home slot.
fn segment(hash: u32) -> usize {
    (hash >> (u32::BITS - SEGMENT_BITS)) as usize
}

/// Folds a keyed 64-bit hash to the 32 bits a slot keeps.
pub(super) fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few homes, so that runs of pairs touch, wrap around the end and share whole hashes.
        #[test]
        fn what_is_inserted_is_found_until_it_is_removed(
            operations in proptest::collection::vec((0u32..60, any::<bool>()), 1..400),
        ) {
            let mut table = IdTable::new();
            let mut model = BTreeMap::new();
            for (id, insert) in operations {
                let hash = (id % 7).wrapping_sub(3);
                if insert {
                    if model.insert(id, hash).is_none() {
                        table.insert(hash, id);
                    }
                } else if model.remove(&id).is_some() {
                    table.remove(hash, id);
                }
                for id in 0..60u32 {
                    let found = table.find((id % 7).wrapping_sub(3), |other| other == id);
                    prop_assert_eq!(found.is_some(), model.contains_key(&id));
                }
            }
            for (id, hash) in model {
                table.remove(hash, id);
            }
            prop_assert!(table.segments.iter().all(|segment| segment.slots.is_empty()));
        }
    }
}
