//! This core's trie: Topic Filter -> the Sessions at home here.
//!
//! Owns    every filter held by a Session of this core, its text once, and who holds it with which QoS.
//! Called  by `shard` for SUBSCRIBE, UNSUBSCRIBE and the end of a Session (by id, from the Session's list of filters),
//!         and by `shard::deliver` for each message that reaches this core.
//! Holds   - a filter is here exactly while a Session holds it; its [`FilterId`] is valid as long;
//!         - a match gives each Session once, with the highest QoS among its matching filters [MQTT-3.3.5-1];
//!         - the order of a match follows from the operations alone: not from the hash key, not from addresses;
//!         - a match that one filter answers is one copy of its Targets; one that several answer costs time linear in
//!           their Targets.

use super::filters::Filters;
use super::holders::{Holders, Removal};
use crate::mqtt::packet::QoS;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// A Session's place in its core's slab. The shard removes a Session's filters before the place is used again.
pub type SessionIndex = u32;

/// One Session that wants a message, and the highest QoS granted to it among its matching filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub session: SessionIndex,
    pub qos: QoS,
}

/// A filter held on this core; valid while any Session of the core holds it, then used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterId(pub u32);

/// What [`Subscriptions::subscribe`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// No Session of this core held the filter.
    FirstOnCore,
    /// Others hold it; this Session did not.
    Added,
    /// This Session held it; its QoS is replaced [MQTT-3.8.4-3].
    Replaced,
}

/// What [`Subscriptions::unsubscribe`] found. The id it carries is what the Session's list of filters holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// The Session was the last holder on this core: the filter is gone, and its id with it.
    LastOnCore(FilterId),
    Removed(FilterId),
    /// The Session did not hold this very filter [MQTT-3.10.4-1].
    NotFound,
}

pub struct Subscriptions {
    filters: Filters<Holders>,
    /// The filters of the current match.
    found: Vec<u32>,
    stamps: Stamps,
    version: u64,
}

impl Subscriptions {
    pub fn new(hash_key: [u64; 4]) -> Self {
        Subscriptions {
            filters: Filters::new(hash_key),
            found: Vec::new(),
            stamps: Stamps::default(),
            version: 0,
        }
    }

    /// The same while no match can have changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn subscribe(&mut self, filter: TopicFilter<'_>, session: SessionIndex, qos: QoS) -> (FilterId, Subscribed) {
        self.version += 1;
        let target = Target { session, qos };
        let (id, known) = self.filters.find_or_insert(filter, Holders::One(target));
        let found = match known {
            false => Subscribed::FirstOnCore,
            true => {
                let holders = self.filters.value_mut(id).expect("it has just been found");
                if holders.insert(target) {
                    Subscribed::Replaced
                } else {
                    Subscribed::Added
                }
            }
        };
        (FilterId(id), found)
    }

    pub fn unsubscribe(&mut self, filter: TopicFilter<'_>, session: SessionIndex) -> Unsubscribed {
        match self.filters.find(filter) {
            Some(id) => self.unsubscribe_id(FilterId(id), session),
            None => Unsubscribed::NotFound,
        }
    }

    /// As [`Subscriptions::unsubscribe`]. After `LastOnCore` the text is gone: who needs it reads it before.
    pub fn unsubscribe_id(&mut self, id: FilterId, session: SessionIndex) -> Unsubscribed {
        self.version += 1;
        let Some(holders) = self.filters.value_mut(id.0) else {
            return Unsubscribed::NotFound;
        };
        match holders.remove(session) {
            Removal::NotFound => Unsubscribed::NotFound,
            Removal::Removed => Unsubscribed::Removed(id),
            Removal::IsLast => {
                self.filters.remove(id.0);
                if self.filters.len() == 0 {
                    self.found = Vec::new();
                    self.stamps = Stamps::default();
                }
                Unsubscribed::LastOnCore(id)
            }
        }
    }

    /// The text of a filter that some Session of this core holds.
    pub fn filter_text(&self, id: FilterId) -> &str {
        self.filters.text(id.0)
    }

    /// Replaces `targets` by every Session with a matching filter, each once, in a deterministic order.
    pub fn matches(&mut self, topic: TopicName<'_>, targets: &mut Vec<Target>) {
        targets.clear();
        self.filters.matches(topic, &mut self.found);
        match *self.found {
            [] => {}
            [only] => targets.extend_from_slice(self.filters.value(only).as_slice()),
            [..] => self.merge(targets),
        }
    }

    /// Distinct filters held.
    pub fn filter_count(&self) -> usize {
        self.filters.len()
    }

    /// The Targets of several filters. Where one side is small, as with a monitor of `#` beside a fan-out, it is compared
    /// with the other directly; else each Session is looked up by a stamp. The comparisons have a budget in
    /// proportion to the Targets, so that many small filters do not add up to a square.
    fn merge(&mut self, targets: &mut Vec<Target>) {
        let total: usize = self
            .found
            .iter()
            .map(|&id| self.filters.value(id).as_slice().len())
            .sum();
        let mut budget = total.saturating_mul(8);
        let mut stamped = None;
        for &id in &self.found {
            let more = self.filters.value(id).as_slice();
            let known = targets.len();
            let comparisons = known.saturating_mul(more.len());
            if comparisons <= budget {
                budget -= comparisons;
                for &target in more {
                    // A filter holds a Session once: only what came before it can hold the same.
                    match targets[..known]
                        .iter_mut()
                        .find(|known| known.session == target.session)
                    {
                        Some(known) => known.qos = known.qos.max(target.qos),
                        None => targets.push(target),
                    }
                }
                continue;
            }
            let from = stamped.unwrap_or_else(|| {
                self.stamps.begin();
                0
            });
            for (place, target) in targets.iter().enumerate().skip(from) {
                self.stamps.set(target.session, place);
            }
            for &target in more {
                match self.stamps.place(target.session) {
                    Some(place) => targets[place].qos = targets[place].qos.max(target.qos),
                    None => {
                        self.stamps.set(target.session, targets.len());
                        targets.push(target);
                    }
                }
            }
            stamped = Some(targets.len());
        }
    }
}

/// Where each Session stands in the Targets of the current match, without clearing anything between matches.
#[derive(Default)]
struct Stamps {
    /// By Session; a mark of an earlier generation is none.
    marks: Vec<Mark>,
    generation: u32,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    generation: u32,
    place: u32,
}

impl Stamps {
    fn begin(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.marks.fill(Mark::default());
            self.generation = 1;
        }
    }

    fn set(&mut self, session: SessionIndex, place: usize) {
        let session = session as usize;
        if session >= self.marks.len() {
            self.marks.resize((session + 1).next_power_of_two(), Mark::default());
        }
        self.marks[session] = Mark {
            generation: self.generation,
            place: place as u32,
        };
    }

    fn place(&self, session: SessionIndex) -> Option<usize> {
        let mark = self.marks.get(session as usize)?;
        (mark.generation == self.generation).then_some(mark.place as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];

    fn filter(text: &str) -> TopicFilter<'_> {
        TopicFilter::new(text).unwrap()
    }

    fn matched(subscriptions: &mut Subscriptions, topic: &str) -> Vec<(SessionIndex, QoS)> {
        // Stale content: a match replaces it.
        let mut targets = vec![Target {
            session: 9_999,
            qos: QoS::ExactlyOnce,
        }];
        subscriptions.matches(TopicName::new(topic).unwrap(), &mut targets);
        targets.into_iter().map(|target| (target.session, target.qos)).collect()
    }

    #[test]
    fn a_filter_is_first_added_replaced_removed_and_last() {
        let mut subscriptions = Subscriptions::new(KEY);
        for text in ["a/b", "a/+/#"] {
            let (id, found) = subscriptions.subscribe(filter(text), 1, QoS::AtMostOnce);
            assert_eq!(found, Subscribed::FirstOnCore);
            assert_eq!(
                subscriptions.subscribe(filter(text), 2, QoS::AtMostOnce),
                (id, Subscribed::Added)
            );
            assert_eq!(
                subscriptions.subscribe(filter(text), 1, QoS::ExactlyOnce),
                (id, Subscribed::Replaced)
            );
            assert_eq!(subscriptions.filter_text(id), text);
            assert_eq!(subscriptions.filter_count(), 1);
            assert_eq!(
                matched(&mut subscriptions, "a/b"),
                [(1, QoS::ExactlyOnce), (2, QoS::AtMostOnce)]
            );
            assert_eq!(subscriptions.unsubscribe(filter(text), 3), Unsubscribed::NotFound);
            assert_eq!(subscriptions.unsubscribe(filter("a"), 1), Unsubscribed::NotFound);
            assert_eq!(subscriptions.unsubscribe(filter(text), 1), Unsubscribed::Removed(id));
            assert_eq!(subscriptions.unsubscribe_id(id, 1), Unsubscribed::NotFound);
            assert_eq!(subscriptions.unsubscribe_id(id, 2), Unsubscribed::LastOnCore(id));
            assert_eq!(subscriptions.unsubscribe_id(id, 2), Unsubscribed::NotFound);
            assert_eq!(matched(&mut subscriptions, "a/b"), []);
            assert_eq!(subscriptions.filter_count(), 0);
        }
    }

    #[test]
    fn a_filter_that_looks_like_a_match_is_not_the_same_filter() {
        let mut subscriptions = Subscriptions::new(KEY);
        subscriptions.subscribe(filter("a/+"), 1, QoS::AtMostOnce);
        for other in ["a/b", "a/#", "+/+", "a", "a/+/#"] {
            assert_eq!(
                subscriptions.unsubscribe(filter(other), 1),
                Unsubscribed::NotFound,
                "{other}"
            );
        }
    }

    #[test]
    fn a_session_gets_the_highest_qos_of_its_matching_filters() {
        let mut subscriptions = Subscriptions::new(KEY);
        subscriptions.subscribe(filter("a/b"), 1, QoS::AtMostOnce);
        subscriptions.subscribe(filter("a/+"), 1, QoS::ExactlyOnce);
        subscriptions.subscribe(filter("#"), 1, QoS::AtLeastOnce);
        assert_eq!(matched(&mut subscriptions, "a/b"), [(1, QoS::ExactlyOnce)]);
    }

    #[test]
    fn a_leading_wildcard_leaves_dollar_topics_alone() {
        let mut subscriptions = Subscriptions::new(KEY);
        for (session, text) in ["#", "+/a", "+/#", "$SYS/#", "$SYS/+", "a/#"].into_iter().enumerate() {
            subscriptions.subscribe(filter(text), session as u32, QoS::AtMostOnce);
        }
        assert_eq!(
            matched(&mut subscriptions, "$SYS/a"),
            [(3, QoS::AtMostOnce), (4, QoS::AtMostOnce)]
        );
        // Only the first level counts.
        assert_eq!(matched(&mut subscriptions, "a/$SYS").len(), 3);
    }

    #[test]
    fn overlapping_crowds_are_merged_by_stamps_as_by_comparison() {
        let mut subscriptions = Subscriptions::new(KEY);
        for session in 0..1_000 {
            subscriptions.subscribe(filter("a/b"), session, QoS::AtMostOnce);
            subscriptions.subscribe(filter("a/+"), session + 500, QoS::AtLeastOnce);
            subscriptions.subscribe(filter("+/b"), session * 2, QoS::ExactlyOnce);
        }
        let wanted: BTreeMap<u32, QoS> = (0..2_000)
            .filter_map(|session| match session {
                _ if session % 2 == 0 => Some((session, QoS::ExactlyOnce)),
                500..1_500 => Some((session, QoS::AtLeastOnce)),
                0..500 => Some((session, QoS::AtMostOnce)),
                _ => None,
            })
            .collect();
        for _ in 0..3 {
            let found = matched(&mut subscriptions, "a/b");
            assert_eq!(found.len(), wanted.len());
            assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), wanted);
        }
        // The generation of the stamps comes round.
        subscriptions.stamps.generation = u32::MAX;
        assert_eq!(matched(&mut subscriptions, "a/b").len(), wanted.len());
    }

    #[test]
    fn the_last_filter_takes_its_nodes_with_it() {
        let mut subscriptions = Subscriptions::new(KEY);
        let texts = ["a/+/c", "a/+/d", "a/#", "a/b/+", "+", "+/+/+", "#", "//+/"];
        for text in texts {
            subscriptions.subscribe(filter(text), 1, QoS::AtMostOnce);
        }
        let nodes = subscriptions.filters.trie_node_count();
        subscriptions.subscribe(filter("a/+/c/+/e"), 1, QoS::AtMostOnce);
        assert_eq!(subscriptions.filters.trie_node_count(), nodes + 2);
        subscriptions.unsubscribe(filter("a/+/c/+/e"), 1);
        assert_eq!(subscriptions.filters.trie_node_count(), nodes);
        for text in texts {
            subscriptions.unsubscribe(filter(text), 1);
        }
        assert_eq!(subscriptions.filters.trie_node_count(), 1);
    }

    #[test]
    fn a_topic_of_65_536_levels_is_matched_without_recursion() {
        let mut subscriptions = Subscriptions::new(KEY);
        let deep = "/".repeat(65_535);
        let wild = format!("{}+", "/".repeat(65_534));
        subscriptions.subscribe(filter(&wild), 1, QoS::AtMostOnce);
        subscriptions.subscribe(filter("#"), 2, QoS::AtMostOnce);
        assert_eq!(matched(&mut subscriptions, &deep), [(2, QoS::AtMostOnce)]);
        assert_eq!(matched(&mut subscriptions, &deep[..65_534]).len(), 2);
        assert!(matches!(
            subscriptions.unsubscribe(filter(&wild), 1),
            Unsubscribed::LastOnCore(_)
        ));
        assert_eq!(subscriptions.filters.trie_node_count(), 1);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Subscribe(String, SessionIndex, QoS),
        Unsubscribe(String, SessionIndex),
        UnsubscribeAll(SessionIndex),
        Match(String),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let filters = || "(\\$|[ab]?|\\+)(/([ab]?|\\+)){0,3}(/#)?|#".prop_filter("not empty", |text| !text.is_empty());
        let topics = "[ab$]?(/[ab]?){0,4}".prop_filter("not empty", |text| !text.is_empty());
        let qos = (0u8..3).prop_map(|bits| QoS::from_bits(bits).unwrap());
        prop_oneof![
            6 => (filters(), 0u32..40, qos).prop_map(|(text, session, qos)| Operation::Subscribe(text, session, qos)),
            3 => (filters(), 0u32..40).prop_map(|(text, session)| Operation::Unsubscribe(text, session)),
            1 => (0u32..40).prop_map(Operation::UnsubscribeAll),
            3 => topics.prop_map(Operation::Match),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Against a list of (filter, session, QoS), and a second instance with another hash key: same answers in the
        /// same order.
        #[test]
        fn any_sequence_of_operations_is_answered_as_a_list_would(
            operations in proptest::collection::vec(operation(), 1..200),
        ) {
            let mut subscriptions = Subscriptions::new(KEY);
            let mut twin = Subscriptions::new([9, 8, 7, 6]);
            let mut list: BTreeMap<(String, SessionIndex), (QoS, FilterId)> = BTreeMap::new();
            for operation in operations {
                let holders = |list: &BTreeMap<(String, SessionIndex), _>, text: &str| {
                    list.keys().filter(|(held, _)| held == text).count()
                };
                match operation {
                    Operation::Subscribe(text, session, qos) => {
                        let before = holders(&list, &text);
                        let (id, found) = subscriptions.subscribe(filter(&text), session, qos);
                        prop_assert_eq!(twin.subscribe(filter(&text), session, qos), (id, found));
                        let wanted = match list.insert((text.clone(), session), (qos, id)) {
                            Some(_) => Subscribed::Replaced,
                            None if before == 0 => Subscribed::FirstOnCore,
                            None => Subscribed::Added,
                        };
                        prop_assert_eq!(found, wanted);
                        prop_assert_eq!(subscriptions.filter_text(id), text);
                    }
                    Operation::Unsubscribe(text, session) => {
                        let found = subscriptions.unsubscribe(filter(&text), session);
                        prop_assert_eq!(twin.unsubscribe(filter(&text), session), found);
                        let wanted = match list.remove(&(text.clone(), session)) {
                            None => Unsubscribed::NotFound,
                            Some((_, id)) if holders(&list, &text) == 0 => Unsubscribed::LastOnCore(id),
                            Some((_, id)) => Unsubscribed::Removed(id),
                        };
                        prop_assert_eq!(found, wanted);
                    }
                    Operation::UnsubscribeAll(session) => {
                        let held: Vec<_> =
                            list.iter().filter(|((_, at), _)| *at == session).map(|(key, value)| (key.clone(), value.1)).collect();
                        for (key, id) in held {
                            prop_assert_eq!(subscriptions.filter_text(id), key.0.as_str());
                            let found = subscriptions.unsubscribe_id(id, session);
                            prop_assert_ne!(found, Unsubscribed::NotFound);
                            prop_assert_eq!(twin.unsubscribe_id(id, session), found);
                            list.remove(&key);
                        }
                    }
                    Operation::Match(topic) => {
                        let mut wanted: BTreeMap<SessionIndex, QoS> = BTreeMap::new();
                        for ((text, session), (qos, _)) in &list {
                            if filter(text).matches(TopicName::new(&topic).unwrap()) {
                                let highest = wanted.entry(*session).or_insert(*qos);
                                *highest = (*highest).max(*qos);
                            }
                        }
                        let found = matched(&mut subscriptions, &topic);
                        prop_assert_eq!(&matched(&mut twin, &topic), &found);
                        prop_assert_eq!(found.len(), wanted.len());
                        prop_assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), wanted);
                    }
                }
                let filters: std::collections::BTreeSet<&str> = list.keys().map(|(text, _)| text.as_str()).collect();
                prop_assert_eq!(subscriptions.filter_count(), filters.len());
            }
            for ((_, session), (_, id)) in list {
                subscriptions.unsubscribe_id(id, session);
            }
            prop_assert_eq!(subscriptions.filter_count(), 0);
            prop_assert_eq!(subscriptions.filters.trie_node_count(), 1);
        }
    }
}
