//! For the topics this core owns: Topic Name -> retained message.
//!
//! Owns    the messages, in the byte order of their topics, and the count of changes.
//! Called  by `shard::topic` (a PUBLISH with RETAIN) and by `shard` (a SUBSCRIBE, scanned in chunks: the last topic of a
//!         chunk is the cursor of the next, so nothing here remembers a scan).
//! Holds   - one message per topic, none with an empty payload [MQTT-3.3.1-10] [MQTT-3.3.1-11];
//!         - every set and every clear is one step of `sequence`;
//!         - a scan looks at the matches and at the groups of topics between them (`topic_order`), not at the store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::topic_order::{self, Step};
use crate::mqtt::packet::QoS;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// Entries tried one by one before a seek.
const NEIGHBOURS: usize = 4;

/// The last retained message of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    pub payload: Arc<[u8]>,
    pub qos: QoS,
    /// Position in the owner core's history of retained changes.
    pub sequence: u64,
}

#[derive(Default)]
pub struct RetainedMessages {
    topics: BTreeMap<Box<str>, Retained>,
    sequence: u64,
}

impl RetainedMessages {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or, with an empty payload, clears [MQTT-3.3.1-10]; returns the sequence of the change.
    pub fn set(&mut self, topic: TopicName<'_>, payload: &[u8], qos: QoS) -> u64 {
        self.sequence += 1;
        if payload.is_empty() {
            self.topics.remove(topic.as_str());
        } else {
            let retained = Retained {
                payload: payload.into(),
                qos,
                sequence: self.sequence,
            };
            self.topics.insert(topic.as_str().into(), retained);
        }
        self.sequence
    }

    /// The sequence of the newest change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether any topic can match: cheap, may say true where a scan finds nothing.
    pub fn may_match(&self, filter: TopicFilter<'_>) -> bool {
        let start = topic_order::start(filter);
        let first = self
            .topics
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .next();
        first.is_some_and(|(topic, _)| topic.starts_with(start))
    }

    /// The next retained message, in the order of topics, that matches `filter`, whose topic is greater than `after`, and
    /// whose sequence is at most `sequence_max`.
    pub fn next<'a>(
        &'a self,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        sequence_max: u64,
    ) -> Option<(&'a str, &'a Retained)> {
        let start = topic_order::start(filter);
        let from = match after {
            Some(after) if after >= start => Bound::Excluded(after),
            _ => Bound::Included(start),
        };
        let mut topics = self.topics.range::<str, _>((from, Bound::Unbounded));
        let mut seek = String::new();
        let mut entry = topics.next();
        while let Some((topic, retained)) = entry {
            match topic_order::step(filter, topic, &mut seek) {
                Step::Match if retained.sequence <= sequence_max => return Some((topic, retained)),
                Step::Match => entry = topics.next(),
                Step::End => return None,
                Step::Seek => {
                    // The target is often near: a few neighbours cost less than a descent from the root.
                    entry = topics.by_ref().take(NEIGHBOURS).find(|(topic, _)| ***topic >= *seek);
                    if entry.is_none() {
                        topics = self
                            .topics
                            .range::<str, _>((Bound::Included(seek.as_str()), Bound::Unbounded));
                        entry = topics.next();
                    }
                }
            }
        }
        None
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(retained: &mut RetainedMessages, topic: &str, payload: &[u8]) -> u64 {
        retained.set(TopicName::new(topic).unwrap(), payload, QoS::AtLeastOnce)
    }

    fn scan(retained: &RetainedMessages, filter: &str, sequence_max: u64) -> Vec<String> {
        let filter = TopicFilter::new(filter).unwrap();
        let mut found: Vec<String> = Vec::new();
        while let Some((topic, _)) = retained.next(filter, found.last().map(String::as_str), sequence_max) {
            found.push(topic.to_owned());
        }
        found
    }

    #[test]
    fn a_topic_keeps_its_last_message_and_an_empty_payload_clears_it() {
        let mut retained = RetainedMessages::new();
        assert_eq!((retained.sequence(), retained.is_empty()), (0, true));
        assert_eq!(set(&mut retained, "a", b"1"), 1);
        assert_eq!(set(&mut retained, "a", b"2"), 2);
        let filter = TopicFilter::new("a").unwrap();
        let (topic, message) = retained.next(filter, None, u64::MAX).unwrap();
        assert_eq!(
            (topic, &*message.payload, message.qos, message.sequence),
            ("a", &b"2"[..], QoS::AtLeastOnce, 2)
        );
        assert_eq!(retained.len(), 1);
        assert_eq!(set(&mut retained, "a", b""), 3);
        assert_eq!(set(&mut retained, "a", b""), 4);
        assert_eq!((retained.len(), retained.sequence()), (0, 4));
        assert!(retained.next(filter, None, u64::MAX).is_none());
    }

    #[test]
    fn a_scan_leaves_out_what_changed_after_its_sequence() {
        let mut retained = RetainedMessages::new();
        set(&mut retained, "a", b"1");
        let sequence = set(&mut retained, "b", b"1");
        set(&mut retained, "a", b"2");
        set(&mut retained, "c", b"1");
        assert_eq!(scan(&retained, "#", sequence), ["b"]);
        assert_eq!(scan(&retained, "#", retained.sequence()), ["a", "b", "c"]);
    }

    #[test]
    fn may_match_is_false_where_no_topic_has_the_leading_levels() {
        let mut retained = RetainedMessages::new();
        assert!(!retained.may_match(TopicFilter::new("#").unwrap()));
        set(&mut retained, "a/b", b"1");
        for (filter, may) in [
            ("#", true),
            ("a/+", true),
            ("a/b/#", true),
            ("a/c/#", false),
            ("b/+/c", false),
            ("c", false),
        ] {
            assert_eq!(retained.may_match(TopicFilter::new(filter).unwrap()), may, "{filter}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn a_resumed_scan_finds_in_order_what_a_look_at_every_topic_finds(
            changes in proptest::collection::vec(("[ab$]?[!-]?(/[ab]?[!-]?){0,3}", proptest::bool::weighted(0.8)), 0..80),
            filter in "(\\$|[ab]?[!-]?|\\+)(/([ab]?[!-]?|\\+)){0,3}(/#)?|#",
            sequence_max in 0u64..80,
        ) {
            prop_assume!(!filter.is_empty());
            let mut retained = RetainedMessages::new();
            let mut list: BTreeMap<String, u64> = BTreeMap::new();
            for (topic, keep) in changes.iter().filter(|(topic, _)| !topic.is_empty()) {
                let sequence = set(&mut retained, topic, if *keep { b"x" } else { b"" });
                if *keep { list.insert(topic.clone(), sequence); } else { list.remove(topic); }
            }
            let matcher = TopicFilter::new(&filter).unwrap();
            let wanted: Vec<String> = list
                .iter()
                .filter(|(topic, sequence)| **sequence <= sequence_max && matcher.matches(TopicName::new(topic).unwrap()))
                .map(|(topic, _)| topic.clone())
                .collect();
            prop_assert!(wanted.is_empty() || retained.may_match(matcher));
            prop_assert_eq!(scan(&retained, &filter, sequence_max), wanted);
            prop_assert_eq!(retained.len(), list.len());
        }
    }
}
