//! This core's trie: Topic Filter -> the Sessions at home here.

use std::collections::BTreeMap;

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

#[derive(Default)]
pub struct Subscriptions {
    ids: BTreeMap<Box<str>, FilterId>,
    filters: BTreeMap<FilterId, (Box<str>, BTreeMap<SessionIndex, QoS>)>,
}

impl Subscriptions {
    pub fn new(hash_key: [u64; 4]) -> Self {
        let _ = hash_key;
        Subscriptions::default()
    }

    pub fn subscribe(&mut self, filter: TopicFilter<'_>, session: SessionIndex, qos: QoS) -> (FilterId, Subscribed) {
        let free = (0..)
            .map(FilterId)
            .find(|id| !self.filters.contains_key(id))
            .expect("fewer than 2^32 filters");
        let id = *self.ids.entry(filter.as_str().into()).or_insert(free);
        let (_, holders) = self
            .filters
            .entry(id)
            .or_insert_with(|| (filter.as_str().into(), BTreeMap::new()));
        let replaced = holders.insert(session, qos).is_some();
        let found = match (replaced, holders.len()) {
            (true, _) => Subscribed::Replaced,
            (false, 1) => Subscribed::FirstOnCore,
            (false, _) => Subscribed::Added,
        };
        (id, found)
    }

    pub fn unsubscribe(&mut self, filter: TopicFilter<'_>, session: SessionIndex) -> Unsubscribed {
        match self.ids.get(filter.as_str()) {
            Some(&id) => self.unsubscribe_id(id, session),
            None => Unsubscribed::NotFound,
        }
    }

    /// As [`Subscriptions::unsubscribe`], for a filter the Session is known to hold.
    pub fn unsubscribe_id(&mut self, id: FilterId, session: SessionIndex) -> Unsubscribed {
        let Some((text, holders)) = self.filters.get_mut(&id) else {
            return Unsubscribed::NotFound;
        };
        if holders.remove(&session).is_none() {
            return Unsubscribed::NotFound;
        }
        if !holders.is_empty() {
            return Unsubscribed::Removed(id);
        }
        self.ids.remove(text);
        self.filters.remove(&id);
        Unsubscribed::LastOnCore(id)
    }

    /// The text of a filter some Session of this core holds.
    pub fn filter_text(&self, id: FilterId) -> &str {
        &self.filters[&id].0
    }

    /// Replaces `targets` by every Session with a matching filter, each once, in a deterministic order.
    pub fn matches(&mut self, topic: TopicName<'_>, targets: &mut Vec<Target>) {
        let mut found = BTreeMap::new();
        for (text, holders) in self.filters.values() {
            if TopicFilter::trusted(text).matches(topic) {
                for (&session, &qos) in holders {
                    let highest = found.entry(session).or_insert(qos);
                    *highest = qos.max(*highest);
                }
            }
        }
        targets.clear();
        targets.extend(found.into_iter().map(|(session, qos)| Target { session, qos }));
    }

    /// Distinct filters held.
    pub fn filter_count(&self) -> usize {
        self.filters.len()
    }
}
