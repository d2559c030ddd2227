//! For the topics this core owns: Topic Filter -> the cores that want it.
//!
//! Owns    every filter announced to this core, and the set of cores that announced it: one word of bits while all
//!         numbers are below 64, a boxed set of `CORES_MAX` bits above.
//! Called  by `shard` (another core, or this one, announces or withdraws a filter) and by `shard::topic` for each message.
//! Holds   - a filter is here exactly while a core wants it;
//!         - a match is the union of the sets of its filters: each core once, ascending.

use super::filters::Filters;
use crate::limits::CORES_MAX;
use crate::mqtt::topic::{TopicFilter, TopicName};

const WORDS: usize = CORES_MAX.div_ceil(64);

pub struct Interest {
    filters: Filters<Cores>,
    /// The filters of the current match.
    found: Vec<u32>,
    version: u64,
}

impl Interest {
    pub fn new(hash_key: [u64; 4]) -> Self {
        Interest {
            filters: Filters::new(hash_key),
            found: Vec::new(),
            version: 0,
        }
    }

    /// The same while no match can have changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// `core` wants `filter`. Idempotent.
    pub fn add(&mut self, filter: TopicFilter<'_>, core: u16) {
        assert!(usize::from(core) < CORES_MAX);
        self.version += 1;
        let (id, _) = self.filters.find_or_insert(filter, Cores::Low(0));
        self.filters.value_mut(id).expect("it has just been found").insert(core);
    }

    /// `core` no longer wants `filter`. Idempotent.
    pub fn remove(&mut self, filter: TopicFilter<'_>, core: u16) {
        let Some(id) = self.filters.find(filter) else { return };
        self.version += 1;
        let cores = self.filters.value_mut(id).expect("it has just been found");
        cores.remove(core);
        if cores.words().iter().all(|&word| word == 0) {
            self.filters.remove(id);
            if self.filters.len() == 0 {
                self.found = Vec::new();
            }
        }
    }

    /// Replaces `cores` by every core with a matching filter, each once, ascending.
    pub fn matches(&mut self, topic: TopicName<'_>, cores: &mut Vec<u16>) {
        cores.clear();
        self.filters.matches(topic, &mut self.found);
        let mut union = [0; WORDS];
        for &id in &self.found {
            for (all, &word) in union.iter_mut().zip(self.filters.value(id).words()) {
                *all |= word;
            }
        }
        for (at, mut word) in union.into_iter().enumerate() {
            while word != 0 {
                cores.push(at as u16 * 64 + word.trailing_zeros() as u16);
                word &= word - 1;
            }
        }
    }

    pub fn filter_count(&self) -> usize {
        self.filters.len()
    }
}

/// A set of core numbers.
enum Cores {
    Low(u64),
    Wide(Box<[u64; WORDS]>),
}

const _: () = assert!(size_of::<Cores>() == 16);

impl Cores {
    fn words(&self) -> &[u64] {
        match self {
            Cores::Low(word) => std::slice::from_ref(word),
            Cores::Wide(words) => &**words,
        }
    }

    fn insert(&mut self, core: u16) {
        let (at, bit) = (usize::from(core) / 64, 1 << (core % 64));
        match self {
            Cores::Low(word) if at == 0 => *word |= bit,
            Cores::Low(word) => {
                let mut words = Box::new([0; WORDS]);
                words[0] = *word;
                words[at] = bit;
                *self = Cores::Wide(words);
            }
            Cores::Wide(words) => words[at] |= bit,
        }
    }

    fn remove(&mut self, core: u16) {
        let (at, bit) = (usize::from(core) / 64, 1u64 << (core % 64));
        match self {
            Cores::Low(word) if at == 0 => *word &= !bit,
            Cores::Low(_) => {}
            Cores::Wide(words) if at < WORDS => words[at] &= !bit,
            Cores::Wide(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn matched(interest: &mut Interest, topic: &str) -> Vec<u16> {
        let mut cores = vec![9_999];
        interest.matches(TopicName::new(topic).unwrap(), &mut cores);
        cores
    }

    #[test]
    fn adding_and_removing_are_idempotent() {
        let mut interest = Interest::new([1, 2, 3, 4]);
        let filter = TopicFilter::new("a/#").unwrap();
        interest.remove(filter, 3);
        interest.add(filter, 3);
        interest.add(filter, 3);
        assert_eq!((interest.filter_count(), matched(&mut interest, "a")), (1, vec![3]));
        interest.remove(filter, 4);
        interest.remove(filter, CORES_MAX as u16 - 1);
        interest.remove(filter, u16::MAX);
        assert_eq!(interest.filter_count(), 1);
        interest.remove(filter, 3);
        interest.remove(filter, 3);
        assert_eq!((interest.filter_count(), matched(&mut interest, "a")), (0, vec![]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_sequence_of_operations_is_answered_as_a_list_would(
            operations in proptest::collection::vec(
                (
                    "(\\$|[ab]?|\\+)(/([ab]?|\\+)){0,2}(/#)?|#",
                    prop_oneof![0u16..4, 60u16..68, 252u16..CORES_MAX as u16],
                    proptest::bool::weighted(0.6),
                    "[ab$]?(/[ab]?){0,3}",
                ),
                1..200,
            ),
        ) {
            let mut interest = Interest::new([1, 2, 3, 4]);
            let mut list: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
            for (text, core, add, topic) in operations {
                if text.is_empty() || topic.is_empty() {
                    continue;
                }
                let filter = TopicFilter::new(&text).unwrap();
                if add {
                    interest.add(filter, core);
                    list.entry(text).or_default().insert(core);
                } else {
                    interest.remove(filter, core);
                    list.entry(text.clone()).or_default().remove(&core);
                    list.retain(|_, cores| !cores.is_empty());
                }
                prop_assert_eq!(interest.filter_count(), list.len());
                let wanted: BTreeSet<u16> = list
                    .iter()
                    .filter(|(text, _)| {
                        TopicFilter::new(text).unwrap().matches(TopicName::new(&topic).unwrap())
                    })
                    .flat_map(|(_, cores)| cores.iter().copied())
                    .collect();
                prop_assert_eq!(matched(&mut interest, &topic), wanted.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
