//! A slab that grows page by page: an entry never moves, so growth has no pause, and no spare half.
//!
//! Owns    the entries and the list of free places.
//! Called  by `filters` and `trie`.
//! Holds   - an id is valid from `insert` to `remove`, then used again, the last freed first;
//!         - the first page grows by doubling, so that a small slab is small; an empty slab holds no memory.

use std::ops::{Index, IndexMut};

const PAGE_BITS: u32 = 9;
const PAGE_ENTRIES: usize = 1 << PAGE_BITS;
const NONE: u32 = u32::MAX;

enum Entry<T> {
    /// The next free place.
    Free(u32),
    Used(T),
}

pub(super) struct Pages<T> {
    /// Every page but the last is full.
    pages: Vec<Vec<Entry<T>>>,
    free: u32,
    count: usize,
}

impl<T> Pages<T> {
    pub fn new() -> Self {
        Pages {
            pages: Vec::new(),
            free: NONE,
            count: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn insert(&mut self, value: T) -> u32 {
        self.count += 1;
        if self.free != NONE {
            let id = self.free;
            let entry = &mut self.pages[page(id)][place(id)];
            let Entry::Free(next) = std::mem::replace(entry, Entry::Used(value)) else {
                unreachable!("the list of free places leads to free places");
            };
            self.free = next;
            return id;
        }
        if self.pages.last().is_none_or(|last| last.len() == PAGE_ENTRIES) {
            let capacity = if self.pages.is_empty() { 1 } else { PAGE_ENTRIES };
            self.pages.push(Vec::with_capacity(capacity));
        }
        let id = (self.pages.len() - 1) * PAGE_ENTRIES;
        let last = self.pages.last_mut().expect("there is a page with room");
        let id = u32::try_from(id + last.len()).expect("2^32 entries would not fit in memory");
        last.push(Entry::Used(value));
        id
    }

    /// `id` is valid.
    pub fn remove(&mut self, id: u32) -> T {
        let entry = &mut self.pages[page(id)][place(id)];
        let Entry::Used(value) = std::mem::replace(entry, Entry::Free(self.free)) else {
            panic!("entry {id} is removed once");
        };
        self.free = id;
        self.count -= 1;
        if self.count == 0 {
            *self = Pages::new();
        }
        value
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.pages.get_mut(page(id))?.get_mut(place(id))? {
            Entry::Used(value) => Some(value),
            Entry::Free(_) => None,
        }
    }
}

impl<T> Index<u32> for Pages<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        match &self.pages[page(id)][place(id)] {
            Entry::Used(value) => value,
            Entry::Free(_) => panic!("entry {id} is in use"),
        }
    }
}

impl<T> IndexMut<u32> for Pages<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        self.get_mut(id).expect("the entry is in use")
    }
}

fn page(id: u32) -> usize {
    (id >> PAGE_BITS) as usize
}

fn place(id: u32) -> usize {
    id as usize % PAGE_ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_its_id_over_pages_until_removed_and_then_its_place_is_used_again() {
        let mut pages = Pages::new();
        let count = PAGE_ENTRIES as u32 * 3 + 1;
        for id in 0..count {
            assert_eq!(pages.insert(Box::new(id)), id);
        }
        assert!((0..count).all(|id| *pages[id] == id));
        assert_eq!((*pages.remove(700), *pages.remove(3)), (700, 3));
        assert!(pages.get_mut(700).is_none() && pages.get_mut(count).is_none());
        assert_eq!(
            (
                pages.insert(Box::new(1)),
                pages.insert(Box::new(2)),
                pages.insert(Box::new(3))
            ),
            (3, 700, count)
        );
        assert_eq!(pages.len(), count as usize + 1);
        for id in 0..=count {
            pages.remove(id);
        }
        assert!(pages.len() == 0 && pages.pages.is_empty());
    }
}
