//! A topic or a filter -> the core that owns it, or all of them.
//!
//! Owns    nothing that changes: the hash key, the number of cores, the number of levels.
//! Called  by `shard::publish` (where a PUBLISH goes) and by `shard` (where a filter is announced).
//! Holds   - the key of a topic is its first `levels` levels with the separators between them, or the whole topic where
//!           it has fewer;
//!         - a filter that matches a topic is known to the owner of that topic: `owners(filter)` is `All`, or `One` of
//!           `owner(topic)`. A filter with no wildcard in its first `levels` levels matches only topics that begin
//!           with those very levels (`a/b/c/#` with three levels matches `a/b/c`, whose key is `a/b/c` as well).

use ahash::RandomState;

use crate::mqtt::topic::{TopicFilter, TopicName};

/// Which cores must know of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    One(u16),
    All,
}

/// Maps topics to owner cores; the same on every core of a run.
#[derive(Clone, Debug)]
pub struct ShardKey {
    hasher: RandomState,
    cores: u16,
    levels: usize,
}

impl ShardKey {
    /// `levels`: leading levels that make the key (`--shard-levels`), at least 1.
    pub fn new(hash_key: [u64; 4], cores: u16, levels: usize) -> Self {
        assert!(cores >= 1 && levels >= 1);
        let [k0, k1, k2, k3] = hash_key;
        ShardKey {
            hasher: RandomState::with_seeds(k0, k1, k2, k3),
            cores,
            levels,
        }
    }

    /// The core that owns `topic`.
    pub fn owner(&self, topic: TopicName<'_>) -> u16 {
        self.core(self.key(topic.as_str()))
    }

    /// The owners of every topic `filter` can match: one if none of its leading levels is a wildcard.
    pub fn owners(&self, filter: TopicFilter<'_>) -> Owners {
        let key = self.key(filter.as_str());
        // `+` and `#` stand only as whole levels in a TopicFilter, so a byte of the key is a level of the key.
        if key.bytes().any(|byte| byte == b'+' || byte == b'#') {
            Owners::All
        } else {
            Owners::One(self.core(key))
        }
    }

    fn key<'a>(&self, text: &'a str) -> &'a str {
        let mut separators = self.levels;
        for (at, byte) in text.bytes().enumerate() {
            if byte == b'/' {
                separators -= 1;
                if separators == 0 {
                    return &text[..at];
                }
            }
        }
        text
    }

    fn core(&self, key: &str) -> u16 {
        if self.cores == 1 {
            return 0;
        }
        let hash = self.hasher.hash_one(key);
        // Multiply and shift: the high bits choose, without a division.
        ((u128::from(hash) * u128::from(self.cores)) >> 64) as u16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];

    #[test]
    fn the_key_is_the_leading_levels_or_the_whole_topic() {
        let shard_key = ShardKey::new(KEY, 8, 3);
        for (text, key) in [
            ("a", "a"),
            ("a/b/c", "a/b/c"),
            ("a/b/c/", "a/b/c"),
            ("a/b/c/d/e", "a/b/c"),
            ("/a/b/c", "/a/b"),
            ("///", "//"),
        ] {
            assert_eq!(shard_key.key(text), key);
        }
    }

    #[test]
    fn a_filter_has_one_owner_exactly_when_its_leading_levels_have_no_wildcard() {
        let shard_key = ShardKey::new(KEY, 8, 3);
        for filter in ["a/b", "a/b/c", "a/b/c/#", "a/b/c/+", "a/b/c/d/+/#"] {
            assert!(
                matches!(shard_key.owners(TopicFilter::trusted(filter)), Owners::One(_)),
                "{filter}"
            );
        }
        for filter in ["#", "+", "a/#", "a/b/#", "a/b/+", "a/+/c/d", "+/b/c"] {
            assert_eq!(shard_key.owners(TopicFilter::trusted(filter)), Owners::All, "{filter}");
        }
    }

    #[test]
    fn every_core_owns_a_fair_part() {
        let shard_key = ShardKey::new(KEY, 7, 3);
        let mut counts = [0u32; 7];
        for device in 0..7_000 {
            counts[usize::from(shard_key.owner(TopicName::trusted(&format!("dt/json/{device}"))))] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1_200).contains(&count)), "{counts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]
        #[test]
        fn a_filter_is_known_to_the_owner_of_every_topic_it_matches(
            topic in "[ab$]?(/[ab]?){0,4}",
            filter in "([ab$]?|\\+)(/([ab]?|\\+)){0,4}(/#)?",
            levels in 1usize..5,
        ) {
            prop_assume!(!topic.is_empty() && !filter.is_empty());
            let shard_key = ShardKey::new(KEY, 1_024, levels);
            let (topic, filter) = (TopicName::trusted(&topic), TopicFilter::trusted(&filter));
            if filter.matches(topic) {
                let owners = shard_key.owners(filter);
                prop_assert!(owners == Owners::All || owners == Owners::One(shard_key.owner(topic)));
            }
        }
    }
}
