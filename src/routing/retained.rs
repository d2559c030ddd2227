//! For the topics this core owns: Topic Name -> retained message.
//!
//! Owns    every topic, in byte order, with its place in the history of changes; the payloads as far as the memory allowed
//!         for them goes. What is more is on disk only, and is read when a subscriber wants it.
//! Called  by `shard::topic` (a PUBLISH with RETAIN) and by `shard` (a SUBSCRIBE, scanned in chunks: the last topic of a
//!         chunk is the cursor of the next, so nothing here remembers a scan).
//! Holds   - one message per topic, none with an empty payload [MQTT-3.3.1-10] [MQTT-3.3.1-11];
//!         - every set and every clear is one step of `sequence`;
//!         - a payload leaves memory only after its record is committed, so one that is not here is on disk;
//!         - which leave is decided by a clock hand over the topics: the unused go first, and a scan with wildcards uses
//!           nothing, so that one `#` does not drive out what is asked for by name;
//!         - a scan looks at the matches and at the groups of topics between them (`topic_order`), not at the store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::topic_order::{self, Step};
use crate::mqtt::packet::QoS;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// Entries tried one by one before a seek.
const NEIGHBOURS: usize = 4;
/// Entries the clock hand looks at in one turn.
const LOOKS_PER_TURN: usize = 16;
/// What a payload in memory costs beside its bytes: the reference counts, and the allocator's share.
const PAYLOAD_OVERHEAD_BYTES: usize = 32;

/// The last retained message of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// `None`: on disk only.
    pub payload: Option<Arc<[u8]>>,
    pub payload_bytes: u32,
    pub qos: QoS,
    /// Position in the owner core's history of retained changes.
    pub sequence: u64,
    /// The record of this core's that has it.
    record: u64,
    /// The clock hand passes over it once.
    is_used: bool,
}

impl Retained {
    /// What it takes with its topic, wherever its payload is.
    pub fn bytes(&self, topic: &str) -> usize {
        topic.len() + self.payload_bytes as usize
    }
}

pub struct RetainedMessages {
    topics: BTreeMap<Box<str>, Retained>,
    sequence: u64,
    memory_bytes: usize,
    memory_bytes_max: usize,
    /// The last topic the clock hand looked at.
    hand: String,
}

impl RetainedMessages {
    /// `memory_bytes_max`: for payloads.
    pub fn new(memory_bytes_max: usize) -> Self {
        RetainedMessages {
            topics: BTreeMap::new(),
            sequence: 0,
            memory_bytes: 0,
            memory_bytes_max,
            hand: String::new(),
        }
    }

    /// Sets or, with an empty payload, clears [MQTT-3.3.1-10]; returns the sequence of the change. `record`: what brings it
    /// to disk.
    pub fn set(&mut self, topic: TopicName<'_>, payload: Arc<[u8]>, qos: QoS, record: u64) -> u64 {
        if payload.is_empty() {
            self.sequence += 1;
            self.remove(topic.as_str());
        } else {
            let payload_bytes = payload.len() as u32;
            self.insert(topic, Some(payload), payload_bytes, qos, record);
        }
        self.sequence
    }

    /// What a start found on disk; the payload where there is memory for it.
    pub fn restore(&mut self, topic: TopicName<'_>, payload: Option<Arc<[u8]>>, payload_bytes: u32, qos: QoS) {
        self.insert(topic, payload, payload_bytes, qos, 0);
    }

    fn insert(&mut self, topic: TopicName<'_>, payload: Option<Arc<[u8]>>, payload_bytes: u32, qos: QoS, record: u64) {
        self.sequence += 1;
        self.memory_bytes += memory_bytes(&payload);
        let retained = Retained {
            payload,
            payload_bytes,
            qos,
            sequence: self.sequence,
            record,
            is_used: false,
        };
        // Whoever has the topic keeps its key: one allocation less, and a topic that changes often is the common case.
        match self.topics.get_mut(topic.as_str()) {
            Some(there) => {
                self.memory_bytes -= memory_bytes(&there.payload);
                *there = retained;
            }
            None => drop(self.topics.insert(topic.as_str().into(), retained)),
        }
    }

    /// The topic has no retained message.
    pub fn remove(&mut self, topic: &str) {
        if let Some(removed) = self.topics.remove(topic) {
            self.memory_bytes -= memory_bytes(&removed.payload);
        }
    }

    pub fn get(&self, topic: &str) -> Option<&Retained> {
        self.topics.get(topic)
    }

    /// Somebody asked for this topic by name: its payload stays, or is here from now on.
    pub fn use_payload(&mut self, topic: &str, payload: &Arc<[u8]>) {
        if let Some(retained) = self.topics.get_mut(topic) {
            retained.is_used = true;
            if retained.payload.is_none() {
                retained.payload = Some(payload.clone());
                self.memory_bytes += memory_bytes(&retained.payload);
            }
        }
    }

    /// Frees payloads while there are too many, a few in one call. `committed`: the last record that is on disk.
    pub fn make_room(&mut self, committed: u64) {
        for _ in 0..LOOKS_PER_TURN {
            if self.memory_bytes <= self.memory_bytes_max {
                return;
            }
            let behind = (Bound::Excluded(self.hand.as_str()), Bound::Unbounded);
            let Some((topic, retained)) = self.topics.range_mut::<str, _>(behind).next() else {
                // No topic is empty, so the first is behind this.
                self.hand.clear();
                continue;
            };
            if std::mem::take(&mut retained.is_used) || retained.record > committed {
                // It has another round.
            } else {
                self.memory_bytes -= memory_bytes(&retained.payload);
                retained.payload = None;
            }
            self.hand.clear();
            self.hand.push_str(topic);
        }
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

fn memory_bytes(payload: &Option<Arc<[u8]>>) -> usize {
    payload
        .as_ref()
        .map_or(0, |payload| payload.len() + PAYLOAD_OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(retained: &mut RetainedMessages, topic: &str, payload: &[u8]) -> u64 {
        retained.set(TopicName::new(topic).unwrap(), payload.into(), QoS::AtLeastOnce, 1)
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
        let mut retained = RetainedMessages::new(usize::MAX);
        assert_eq!((retained.sequence(), retained.is_empty()), (0, true));
        assert_eq!(set(&mut retained, "a", b"1"), 1);
        assert_eq!(set(&mut retained, "a", b"2"), 2);
        let filter = TopicFilter::new("a").unwrap();
        let (topic, message) = retained.next(filter, None, u64::MAX).unwrap();
        assert_eq!(
            (topic, message.payload.as_deref(), message.qos, message.sequence),
            ("a", Some(&b"2"[..]), QoS::AtLeastOnce, 2)
        );
        assert_eq!(retained.len(), 1);
        assert_eq!(set(&mut retained, "a", b""), 3);
        assert_eq!(set(&mut retained, "a", b""), 4);
        assert_eq!((retained.len(), retained.sequence()), (0, 4));
        assert!(retained.next(filter, None, u64::MAX).is_none());
    }

    #[test]
    fn payloads_beyond_the_memory_are_on_disk_only_once_they_are_committed_and_the_used_stay_longest() {
        let mut retained = RetainedMessages::new(4 * (PAYLOAD_OVERHEAD_BYTES + 8));
        let topics: Vec<String> = (0..8).map(|number| format!("t{number}")).collect();
        let hot = |retained: &RetainedMessages| {
            let is_hot = |topic: &&String| retained.get(topic).unwrap().payload.is_some();
            topics.iter().filter(is_hot).cloned().collect::<Vec<_>>()
        };
        for (record, topic) in (1..).zip(&topics) {
            let topic = TopicName::new(topic).unwrap();
            retained.set(topic, [7; 8].as_slice().into(), QoS::AtMostOnce, record);
            retained.make_room(0);
        }
        assert_eq!(hot(&retained).len(), 8, "nothing is committed");
        retained.use_payload("t1", &[7; 8].as_slice().into());
        retained.make_room(6);
        let now = hot(&retained);
        let stays = ["t1", "t6", "t7"];
        assert!(
            now.len() == 4 && stays.iter().all(|topic| now.contains(&(*topic).to_owned())),
            "{now:?}"
        );
        // A payload that was read back is here again, in the place of another.
        retained.use_payload("t0", &[7; 8].as_slice().into());
        retained.make_room(8);
        let now = hot(&retained);
        assert!(now.len() == 4 && now.contains(&"t0".to_owned()), "{now:?}");
        topics.iter().for_each(|topic| retained.remove(topic));
        assert_eq!((retained.memory_bytes, retained.len()), (0, 0));
    }

    #[test]
    fn a_scan_leaves_out_what_changed_after_its_sequence() {
        let mut retained = RetainedMessages::new(usize::MAX);
        set(&mut retained, "a", b"1");
        let sequence = set(&mut retained, "b", b"1");
        set(&mut retained, "a", b"2");
        set(&mut retained, "c", b"1");
        assert_eq!(scan(&retained, "#", sequence), ["b"]);
        assert_eq!(scan(&retained, "#", retained.sequence()), ["a", "b", "c"]);
    }

    #[test]
    fn may_match_is_false_where_no_topic_has_the_leading_levels() {
        let mut retained = RetainedMessages::new(usize::MAX);
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
            let mut retained = RetainedMessages::new(usize::MAX);
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
