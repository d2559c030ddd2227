//! Which topics there are, for what and whose; which filters, and what they match.
//!
//! Owns    topics and filters by number, and the tokens that accounts have and had.
//! Called  by `oracle`, whose part it is; by `workload` and `platform` through it.
//! Holds   - where there are accounts, every topic begins with a token. A token that is rotated away, or whose account is
//!           removed, leaves its topics behind: the same ones are there below the next token, under other numbers.

use std::collections::{BTreeMap, BTreeSet};

use skein::registry::access::AccountId;

use crate::faults::Profile;
use crate::platform::{DEVICES, Platform, device_name};
use crate::random::Random;

/// What a topic is for, where there are accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// There are none.
    Open,
    Data {
        tenant: usize,
        device: usize,
        tag: Option<&'static str>,
        is_json: bool,
    },
    State {
        tenant: usize,
        device: usize,
    },
    Command {
        tenant: usize,
        device: usize,
    },
    Other {
        tenant: usize,
    },
}

impl Purpose {
    /// Whose topic it is.
    pub fn tenant(self) -> usize {
        match self {
            Purpose::Open => 0,
            Purpose::Data { tenant, .. }
            | Purpose::State { tenant, .. }
            | Purpose::Command { tenant, .. }
            | Purpose::Other { tenant } => tenant,
        }
    }

    pub fn is_json(self) -> bool {
        matches!(self, Purpose::Data { is_json: true, .. } | Purpose::State { .. })
    }
}

/// A topic below a token that is its account's no more.
#[derive(Clone, Copy, Debug)]
pub struct Retired {
    pub at: u64,
    /// When the last core had heard of it.
    pub known_at: Option<u64>,
}

/// Whether those who want its topic get a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Surely,
    Maybe,
    Never,
}

/// A first level that no leading wildcard matches [MQTT-4.7.2-1].
const DOLLAR: &str = "$x";

pub struct Topics {
    pub texts: Vec<String>,
    /// By topic.
    pub purposes: Vec<Purpose>,
    /// By tenant: its topics, and what they begin with. One of "" where there are no accounts.
    pub of: Vec<Vec<usize>>,
    prefixes: Vec<String>,
    /// Of tokens that were rotated away.
    past_prefixes: Vec<Vec<String>>,
    /// Whose account it is or was.
    pub tenant_of: BTreeMap<AccountId, usize>,
    pub removed: BTreeSet<AccountId>,
    /// Of accounts that are removed.
    removed_topics: BTreeSet<usize>,
    topic_numbers: BTreeMap<String, usize>,
    /// By topic: when its token was rotated away, and since when every core knows.
    pub retired: Vec<Option<Retired>>,
    /// By topic: since when every core has known its token.
    known_from: Vec<Option<u64>>,
    /// By tenant: since when every core has known of its last rotation; `None` while some do not.
    turned_at: Vec<Option<u64>>,
    pub filters: Vec<String>,
    filter_numbers: BTreeMap<String, usize>,
    /// By filter, then topic.
    matching: Vec<Vec<bool>>,
}

impl Topics {
    pub fn new(profile: &Profile, platform: Option<&Platform>, random: &mut Random) -> Topics {
        let mut topics = BTreeMap::new();
        if let Some(platform) = platform {
            for tenant in (0..platform.tenants.len()).cycle() {
                // There are not many more of them.
                if topics.len()
                    >= profile
                        .topics
                        .clamp(platform.tenants.len(), 60 * platform.tenants.len())
                {
                    break;
                }
                let (topic, purpose) =
                    some_platform_topic(platform.token(tenant), tenant, profile.dollar_percent, random);
                topics.insert(topic, purpose);
            }
        }
        let prefixes = platform.map_or(vec![String::new()], |platform| {
            (0..platform.tenants.len())
                .map(|tenant| platform.token(tenant).to_owned())
                .collect()
        });
        let words: &[&str] = if profile.topics > 100 {
            &["a", "b", "c", "d", "e", "f", "-", ""]
        } else {
            &["a", "b", "c"]
        };
        while platform.is_none() && topics.len() < profile.topics {
            let levels = random.between(1, 5);
            let mut topic: Vec<&str> = (0..levels).map(|_| random.pick(words)).collect();
            if random.percent(profile.dollar_percent) {
                topic[0] = DOLLAR;
            }
            let topic = topic.join("/");
            if !topic.is_empty() {
                topics.insert(topic, Purpose::Open);
            }
        }
        let (topics, purposes): (Vec<String>, Vec<Purpose>) = topics.into_iter().unzip();
        let of = |tenant: usize| {
            (0..topics.len())
                .filter(|topic| purposes[*topic].tenant() == tenant)
                .collect()
        };
        Topics {
            of: (0..prefixes.len()).map(of).collect(),
            past_prefixes: vec![Vec::new(); prefixes.len()],
            tenant_of: platform.map_or(BTreeMap::from([(AccountId(0), 0)]), |platform| {
                platform.tenants.iter().map(|tenant| tenant.id).zip(0..).collect()
            }),
            removed: BTreeSet::new(),
            removed_topics: BTreeSet::new(),
            topic_numbers: topics.iter().cloned().zip(0..).collect(),
            retired: vec![None; topics.len()],
            known_from: vec![Some(0); topics.len()],
            turned_at: vec![Some(0); prefixes.len()],
            prefixes,
            texts: topics,
            purposes,
            filters: Vec::new(),
            filter_numbers: BTreeMap::new(),
            matching: Vec::new(),
        }
    }

    /// Whether a tenant may subscribe to this.
    pub fn may_subscribe(&self, tenant: usize, filter: usize) -> bool {
        self.is_own_filter(tenant, &self.filters[filter])
    }

    pub fn is_own_filter(&self, tenant: usize, filter: &str) -> bool {
        is_below(&self.prefixes[tenant], filter)
    }

    pub fn has_rotated(&self, tenant: usize) -> bool {
        !self.past_prefixes[tenant].is_empty()
    }

    /// Whether a topic is below a token that is or was the tenant's.
    pub fn is_or_was_below(&self, tenant: usize, topic: &str) -> bool {
        is_below(&self.prefixes[tenant], topic) || self.was_below(tenant, topic)
    }

    /// Whether a filter is below a token that was the tenant's.
    pub fn was_below(&self, tenant: usize, filter: &str) -> bool {
        self.past_prefixes[tenant].iter().any(|prefix| is_below(prefix, filter))
    }

    /// A tenant has another token: the same topics below it.
    pub fn rotate(&mut self, tenant: usize, token: &str, moment: u64) {
        let before = std::mem::replace(&mut self.prefixes[tenant], token.to_owned());
        let old = std::mem::take(&mut self.of[tenant]);
        for topic in old {
            self.retired[topic] = Some(Retired {
                at: moment,
                known_at: None,
            });
            let text = self.texts[topic].replacen(&before, token, 1);
            let number = self.texts.len();
            for (filter, matching) in self.filters.iter().zip(&mut self.matching) {
                matching.push(matches(filter, &text));
            }
            self.topic_numbers.insert(text.clone(), number);
            self.texts.push(text);
            self.purposes.push(self.purposes[topic]);
            self.retired.push(None);
            self.known_from.push(None);
            self.of[tenant].push(number);
        }
        self.past_prefixes[tenant].push(before);
        self.turned_at[tenant] = None;
    }

    /// A tenant's account is removed, and gets another with this token: what was below the old one is as if it was rotated
    /// away.
    pub fn remove_account(&mut self, tenant: usize, next: AccountId, token: &str, moment: u64) {
        let before = self.tenant_of.iter().filter(|(_, of)| **of == tenant);
        self.removed.extend(before.map(|(account, _)| *account));
        self.tenant_of.insert(next, tenant);
        let topics = (0..self.texts.len()).filter(|topic| self.purposes[*topic].tenant() == tenant);
        self.removed_topics.extend(topics);
        self.rotate(tenant, token, moment);
    }

    pub fn is_of_removed(&self, topic: usize) -> bool {
        self.removed_topics.contains(&topic)
    }

    /// Every core knows of every rotation.
    pub fn rotations_are_known(&mut self, moment: u64) {
        for retired in self.retired.iter_mut().flatten() {
            retired.known_at.get_or_insert(moment);
        }
        for known in self.known_from.iter_mut().chain(&mut self.turned_at) {
            known.get_or_insert(moment);
        }
    }

    /// What rotations leave of a route.
    pub fn as_rotated(&self, route: Route, topic: usize, from: u64, until: u64) -> Route {
        let is_known = self.known_from[topic].is_some_and(|at| at <= from);
        match self.retired[topic] {
            Some(Retired { known_at: Some(at), .. }) if from >= at => Route::Never,
            Some(retired) if until >= retired.at && route == Route::Surely => Route::Maybe,
            _ if !is_known && route == Route::Surely => Route::Maybe,
            _ => route,
        }
    }

    /// Whether a connection that came home then may be of a token that is rotated away.
    pub fn may_be_of_the_past(&self, tenant: usize, home_at: u64) -> bool {
        self.turned_at[tenant].is_none_or(|at| at >= home_at)
    }

    /// The filters of all that is a tenant's.
    pub fn everything(&mut self, tenant: usize) -> Vec<usize> {
        match self.prefixes[tenant].as_str() {
            "" => vec![self.filter("#"), self.filter(&format!("{DOLLAR}/#"))],
            prefix => {
                let text = format!("{prefix}/#");
                vec![self.filter(&text)]
            }
        }
    }

    pub fn filter(&mut self, text: &str) -> usize {
        if let Some(number) = self.filter_numbers.get(text) {
            return *number;
        }
        let number = self.filters.len();
        self.filters.push(text.to_owned());
        self.filter_numbers.insert(text.to_owned(), number);
        self.matching
            .push(self.texts.iter().map(|topic| matches(text, topic)).collect());
        number
    }

    pub fn matches(&self, filter: usize, topic: usize) -> bool {
        self.matching[filter][topic]
    }

    pub fn topic_number(&self, text: &str) -> usize {
        let place = self.topic_numbers.get(text);
        *place.unwrap_or_else(|| panic!("nobody published to {text}"))
    }
}

fn some_platform_topic(token: &str, tenant: usize, dollar_percent: usize, random: &mut Random) -> (String, Purpose) {
    let device = random.below(DEVICES);
    let name = device_name(device);
    let tag = random.percent(40).then_some("tag");
    let end = tag.map_or_else(String::new, |tag| format!("/{tag}"));
    let data = |is_json| Purpose::Data {
        tenant,
        device,
        tag,
        is_json,
    };
    match random.below(8) {
        0..3 => (format!("{token}/json/{name}{end}"), data(true)),
        3 => (format!("{token}/binary/{name}{end}"), data(false)),
        4 => (format!("{token}/state/{name}"), Purpose::State { tenant, device }),
        5 => (format!("{token}/{name}/subscribe"), Purpose::Command { tenant, device }),
        _ => {
            let levels = random.between(1, 4);
            let mut rest: Vec<&str> = (0..levels).map(|_| random.pick(&["a", "b", "c"])).collect();
            if random.percent(dollar_percent) {
                // Not the first level: any wildcard matches it.
                rest[0] = DOLLAR;
            }
            (format!("{token}/{}", rest.join("/")), Purpose::Other { tenant })
        }
    }
}

pub fn is_below(prefix: &str, filter: &str) -> bool {
    prefix.is_empty() || filter.split('/').next() == Some(prefix)
}

/// MQTT 3.1.1 section 4.7, level by level.
fn matches(filter: &str, topic: &str) -> bool {
    // [MQTT-4.7.2-1]
    if topic.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(want), Some(level)) if want == level => {}
            _ => return false,
        }
    }
}
