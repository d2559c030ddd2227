//! A topic or a filter -> the core that owns it, or all of them.
//!
//! Owns    nothing that changes: the hash key, the number of cores, how topics are divided.
//! Called  by `shard::publish` (where a PUBLISH goes) and by `shard` (where a filter is announced); by `http`, which asks the
//!         owner of a device.
//! Holds   - [`Division::Levels`]: the key of a topic is its first levels with the separators between them, or the whole
//!           topic where it has fewer;
//!         - [`Division::Devices`]: the key is the account and the device, so that all topics of a device, its registry entry
//!           and its datapoints meet on one core, whatever the account's token is: `DT/json/DEV…`, `DT/binary/DEV…`,
//!           `DT/state/DEV`, `DT/DEV/…`. The key of a topic of no device is its second level in the place of the device;
//!         - a filter that matches a topic is known to the owner of that topic: `owners(filter)` is `All`, or `One` of
//!           `owner(topic)`. A filter with no wildcard in what makes the key matches only topics of that very key
//!           (`a/b/c/#` with three levels matches `a/b/c`, whose key is `a/b/c` as well).

use ahash::RandomState;

use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::registry::access::{Access, AccountId};

/// Which cores must know of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    One(u16),
    All,
}

/// What of a topic chooses its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Division {
    /// So many leading levels (`--shard-levels`), at least 1.
    Levels(usize),
    /// The device (`--access platform`).
    Devices,
}

impl Division {
    pub fn of(access: &Access, levels: usize) -> Division {
        match access {
            Access::Open => Division::Levels(levels),
            Access::Platform(_) => Division::Devices,
        }
    }
}

/// Maps topics to owner cores; the same on every core of a run.
#[derive(Clone, Debug)]
pub struct ShardKey {
    hasher: RandomState,
    cores: u16,
    division: Division,
}

impl ShardKey {
    pub fn new(hash_key: [u64; 4], cores: u16, division: Division) -> Self {
        assert!(cores >= 1 && division != Division::Levels(0));
        let [k0, k1, k2, k3] = hash_key;
        ShardKey {
            hasher: RandomState::with_seeds(k0, k1, k2, k3),
            cores,
            division,
        }
    }

    /// The core that owns a topic of this account.
    #[inline]
    pub fn owner(&self, account: AccountId, topic: TopicName<'_>) -> u16 {
        self.core(account, self.key(topic.as_str()))
    }

    /// The core that owns a device, and every topic of it.
    pub fn owner_of_device(&self, account: AccountId, device: &str) -> u16 {
        debug_assert_eq!(self.division, Division::Devices);
        self.core(account, device)
    }

    /// The owners of every topic `filter` can match: one if nothing that makes the key is a wildcard.
    pub fn owners(&self, account: AccountId, filter: TopicFilter<'_>) -> Owners {
        let text = filter.as_str();
        let key = self.key(text);
        // What stands before the key chooses it: a wildcard there matches topics of many keys.
        let chosen_by = match self.division {
            Division::Levels(_) => key,
            Division::Devices => &text[..key.as_ptr() as usize - text.as_ptr() as usize + key.len()],
        };
        // `+` and `#` stand only as whole levels in a TopicFilter, so a byte of the key is a level of the key.
        if chosen_by.bytes().any(|byte| byte == b'+' || byte == b'#') {
            Owners::All
        } else {
            Owners::One(self.core(account, key))
        }
    }

    /// A part of `text`.
    fn key<'a>(&self, text: &'a str) -> &'a str {
        match self.division {
            Division::Levels(levels) => leading_levels(text, levels),
            Division::Devices => device_level(text),
        }
    }

    fn core(&self, account: AccountId, key: &str) -> u16 {
        if self.cores == 1 {
            return 0;
        }
        let account = match self.division {
            // Topics are everybody's.
            Division::Levels(_) => AccountId::default(),
            Division::Devices => account,
        };
        let hash = self.hasher.hash_one((account, key));
        // Multiply and shift: the high bits choose, without a division.
        ((u128::from(hash) * u128::from(self.cores)) >> 64) as u16
    }
}

fn leading_levels(text: &str, levels: usize) -> &str {
    let mut separators = levels;
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

/// The third level behind `json`, `binary` and `state`, else the second; the end of the text where there is none.
fn device_level(text: &str) -> &str {
    let end = &text[text.len()..];
    let Some((_, below)) = text.split_once('/') else {
        return end;
    };
    let (second, further) = below.split_once('/').unwrap_or((below, end));
    match second {
        "json" | "binary" | "state" => further.split_once('/').map_or(further, |(third, _)| third),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];
    const ACCOUNT: AccountId = AccountId(7);

    #[test]
    fn the_key_is_the_leading_levels_or_the_whole_topic() {
        let shard_key = ShardKey::new(KEY, 8, Division::Levels(3));
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
        let shard_key = ShardKey::new(KEY, 8, Division::Levels(3));
        for filter in ["a/b", "a/b/c", "a/b/c/#", "a/b/c/+", "a/b/c/d/+/#"] {
            assert!(
                matches!(shard_key.owners(ACCOUNT, TopicFilter::trusted(filter)), Owners::One(_)),
                "{filter}"
            );
        }
        for filter in ["#", "+", "a/#", "a/b/#", "a/b/+", "a/+/c/d", "+/b/c"] {
            assert_eq!(
                shard_key.owners(ACCOUNT, TopicFilter::trusted(filter)),
                Owners::All,
                "{filter}"
            );
        }
    }

    #[test]
    fn every_core_owns_a_fair_part() {
        let shard_key = ShardKey::new(KEY, 7, Division::Levels(3));
        let mut counts = [0u32; 7];
        for device in 0..7_000 {
            counts[usize::from(shard_key.owner(ACCOUNT, TopicName::trusted(&format!("dt/json/{device}"))))] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1_200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn all_topics_of_a_device_and_its_filters_have_its_owner() {
        let shard_key = ShardKey::new(KEY, 1_024, Division::Devices);
        let owner = shard_key.owner_of_device(ACCOUNT, "pump-07");
        for topic in [
            "T/json/pump-07",
            "T/json/pump-07/inlet",
            "T/binary/pump-07",
            "T/binary/pump-07/inlet",
            "T/state/pump-07",
            "T/pump-07/subscribe",
            "T/pump-07",
            "another token/pump-07/subscribe",
        ] {
            assert_eq!(shard_key.owner(ACCOUNT, TopicName::trusted(topic)), owner, "{topic}");
            assert_eq!(
                shard_key.owners(ACCOUNT, TopicFilter::trusted(topic)),
                Owners::One(owner),
                "{topic}"
            );
        }
        for filter in ["T/json/pump-07/#", "T/json/pump-07/+", "T/pump-07/#", "T/pump-07/+"] {
            assert_eq!(
                shard_key.owners(ACCOUNT, TopicFilter::trusted(filter)),
                Owners::One(owner),
                "{filter}"
            );
        }
        for filter in [
            "T/#",
            "T/+/subscribe",
            "T/json/+",
            "T/json/#",
            "T/+",
            "T/+/pump-07",
            "T/json/+/inlet",
        ] {
            assert_eq!(
                shard_key.owners(ACCOUNT, TopicFilter::trusted(filter)),
                Owners::All,
                "{filter}"
            );
        }
        assert_ne!(shard_key.owner_of_device(AccountId(8), "pump-07"), owner);
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
            let shard_key = ShardKey::new(KEY, 1_024, Division::Levels(levels));
            let (topic, filter) = (TopicName::trusted(&topic), TopicFilter::trusted(&filter));
            if filter.matches(topic) {
                let owners = shard_key.owners(ACCOUNT, filter);
                prop_assert!(owners == Owners::All || owners == Owners::One(shard_key.owner(ACCOUNT, topic)));
            }
        }

        #[test]
        fn a_filter_below_a_token_is_known_to_the_owner_of_every_topic_it_matches(
            topic in "T(/(json|state|binary|a|b|)){0,4}",
            filter in "T(/(json|state|binary|a|b||\\+)){0,4}(/#)?",
        ) {
            let shard_key = ShardKey::new(KEY, 1_024, Division::Devices);
            let (topic, filter) = (TopicName::trusted(&topic), TopicFilter::trusted(&filter));
            if filter.matches(topic) {
                let owners = shard_key.owners(ACCOUNT, filter);
                prop_assert!(owners == Owners::All || owners == Owners::One(shard_key.owner(ACCOUNT, topic)));
            }
        }
    }
}
