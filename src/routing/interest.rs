//! For the topics this core owns: Topic Filter -> the cores that want it.

use std::collections::{BTreeMap, BTreeSet};

use crate::mqtt::topic::{TopicFilter, TopicName};

pub struct Interest {
    filters: BTreeMap<Box<str>, BTreeSet<u16>>,
}

impl Interest {
    pub fn new(hash_key: [u64; 4]) -> Self {
        let _ = hash_key;
        Interest {
            filters: BTreeMap::new(),
        }
    }

    /// `core` wants `filter`. Idempotent.
    pub fn add(&mut self, filter: TopicFilter<'_>, core: u16) {
        self.filters.entry(filter.as_str().into()).or_default().insert(core);
    }

    /// `core` no longer wants `filter`. Idempotent.
    pub fn remove(&mut self, filter: TopicFilter<'_>, core: u16) {
        if let Some(cores) = self.filters.get_mut(filter.as_str()) {
            cores.remove(&core);
            if cores.is_empty() {
                self.filters.remove(filter.as_str());
            }
        }
    }

    /// Replaces `cores` by every core with a matching filter, each once, ascending.
    pub fn matches(&mut self, topic: TopicName<'_>, cores: &mut Vec<u16>) {
        cores.clear();
        for (filter, set) in &self.filters {
            if TopicFilter::trusted(filter).matches(topic) {
                cores.extend(set);
            }
        }
        cores.sort_unstable();
        cores.dedup();
    }

    pub fn filter_count(&self) -> usize {
        self.filters.len()
    }
}
