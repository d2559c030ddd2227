//! Distinct Topic Filters with a value each, and the answer to "which of them match this topic".
//!
//! ```text
//! by_text   whole text ─▶ id     one hash, two cache lines: every filter without a wildcard that matches a topic equals it
//! trie      levels     ─▶ id     filters with a wildcard only; costs nothing while there is none
//! filters   id ─▶ text, value    the text is stored once
//! ```
//!
//! Owns    the texts, the values, both ways to find them.
//! Called  by `subscriptions` (value: the Sessions) and `interest` (value: the cores).
//! Holds   - an id is valid until `remove`, then used again;
//!         - ids and the order of what a match finds follow from the operations alone, not from the hash key;
//!         - memory follows what is held: without filters none is left.

use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;

use super::id_table::{IdTable, fold};
use super::pages::Pages;
use super::text::Text;
use super::trie::WildcardTrie;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// One cache line.
#[repr(align(64))]
pub(super) struct Filter<V> {
    text: Text<TEXT_INLINE>,
    value: V,
}

/// The bytes of a filter that fit in its entry.
const TEXT_INLINE: usize = 46;
const _: () = assert!(size_of::<Filter<[u64; 2]>>() == 64);

pub(super) struct Filters<V> {
    hasher: RandomState,
    filters: Pages<Filter<V>>,
    by_text: IdTable,
    trie: WildcardTrie,
}

impl<V> Filters<V> {
    pub fn new([k0, k1, k2, k3]: [u64; 4]) -> Self {
        Filters {
            hasher: RandomState::with_seeds(k0, k1, k2, k3),
            filters: Pages::new(),
            by_text: IdTable::new(),
            trie: WildcardTrie::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.filters.len()
    }

    pub fn find(&self, filter: TopicFilter<'_>) -> Option<u32> {
        self.find_text(self.hash(filter.as_str()), filter.as_str())
    }

    /// The filter's id, and whether it was there already; if not, it is there now with `value`.
    pub fn find_or_insert(&mut self, filter: TopicFilter<'_>, value: V) -> (u32, bool) {
        let text = filter.as_str();
        let hash = self.hash(text);
        if let Some(id) = self.find_text(hash, text) {
            return (id, true);
        }
        let id = self.filters.insert(Filter {
            text: Text::new(text),
            value,
        });
        self.by_text.insert(hash, id);
        if filter.has_wildcard() {
            self.trie.insert(&self.hasher, text, id);
        }
        (id, false)
    }

    /// `id` is valid.
    pub fn remove(&mut self, id: u32) {
        let Filter { text, .. } = self.filters.remove(id);
        let text = text.as_str();
        self.by_text.remove(self.hash(text), id);
        if TopicFilter::trusted(text).has_wildcard() {
            self.trie.remove(&self.hasher, text);
        }
    }

    /// `id` is valid.
    pub fn text(&self, id: u32) -> &str {
        self.filters[id].text.as_str()
    }

    /// `id` is valid.
    pub fn value(&self, id: u32) -> &V {
        &self.filters[id].value
    }

    pub fn value_mut(&mut self, id: u32) -> Option<&mut V> {
        Some(&mut self.filters.get_mut(id)?.value)
    }

    /// Replaces `found` by the id of every filter that matches.
    pub fn matches(&mut self, topic: TopicName<'_>, found: &mut Vec<u32>) {
        found.clear();
        // A topic has no wildcard, so what equals it has none either.
        let text = topic.as_str();
        found.extend(self.find_text(self.hash(text), text));
        self.trie.matches(&self.hasher, topic, found);
    }

    #[cfg(test)]
    pub fn trie_node_count(&self) -> usize {
        self.trie.node_count()
    }

    fn find_text(&self, hash: u32, text: &str) -> Option<u32> {
        self.by_text
            .find(hash, |id| self.filters[id].text.as_bytes() == text.as_bytes())
    }

    fn hash(&self, text: &str) -> u32 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(text.as_bytes());
        fold(hasher.finish())
    }
}
