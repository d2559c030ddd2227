//! Filters, this core's trie, interest and retained messages: any row of changes and questions, answered as a plain list would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fuzz::mqtt::packet::QoS;
use fuzz::mqtt::topic::{TopicFilter, TopicName};
use fuzz::registry::access::AccountId;
use fuzz::routing::interest::Interest;
use fuzz::routing::recent::Recent;
use fuzz::routing::retained::RetainedMessages;
use fuzz::routing::shard_key::{Division, Owners, ShardKey};
use fuzz::routing::subscriptions::{FilterId, Subscribed, Subscriptions, Target, Unsubscribed};

use fuzz::choices::Choices;

const HASH_KEY: [u64; 4] = [1, 2, 3, 4];
/// What texts are made of, so that they meet: levels, wildcards, and what sorts before and behind `/`.
const LEVELS: [&str; 14] = [
    "a",
    "b",
    "+",
    "#",
    "",
    "ab",
    "a!",
    "a-",
    "a0",
    "$",
    "$a",
    "json",
    "ä",
    "\u{10ffff}",
];
const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
/// Small, so that payloads leave memory.
const RETAINED_MEMORY_BYTES: usize = 200;

pub fn check(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut tables = Tables::new(&mut choices);
    while !choices.is_over() {
        let action = choices.byte();
        let text = text(&mut choices);
        let (filter, topic) = (TopicFilter::new(&text), TopicName::new(&text));
        assert_eq!(filter.is_ok(), is_filter(&text), "{text:?}");
        assert_eq!(topic.is_ok(), is_topic(&text), "{text:?}");
        match (action % 12, filter, topic) {
            (0..=2, Ok(filter), _) => tables.subscribe(filter, &mut choices),
            (3, Ok(filter), _) => tables.unsubscribe(filter, &mut choices),
            (4, Ok(filter), _) => tables.announce(filter, &mut choices),
            (5, Ok(filter), _) => tables.scan(filter, &mut choices),
            (6, _, Ok(topic)) => tables.retain(topic, &mut choices),
            (7, _, Ok(topic)) => tables.payload(topic),
            (8, ..) => tables.end_session(u32::from(choices.byte() % 8)),
            (_, _, Ok(topic)) => tables.match_topic(topic),
            _ => {}
        }
    }
    tables.empty();
}

/// Of these levels, or any.
fn text(choices: &mut Choices<'_>) -> String {
    let count = choices.byte();
    if count >= 0xf0 {
        let length = choices.below(64);
        return String::from_utf8_lossy(choices.take(length)).into_owned();
    }
    let levels = (0..=count % 5).map(|_| choices.one_of(&LEVELS));
    levels.collect::<Vec<_>>().join("/")
}

fn is_topic(text: &str) -> bool {
    !text.is_empty() && text.len() <= 65_535 && !text.contains(['+', '#', '\0'])
}

fn is_filter(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    let is_level = |(at, level): (usize, &&str)| match *level {
        "#" => at + 1 == levels.len(),
        "+" => true,
        level => !level.contains(['+', '#', '\0']),
    };
    !text.is_empty() && text.len() <= 65_535 && levels.iter().enumerate().all(is_level)
}

/// Section 4.7, level by level.
fn matches(filter: &str, topic: &str) -> bool {
    fn all(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => all(filter, topic),
            ([want, filter @ ..], [level, topic @ ..]) if want == level => all(filter, topic),
            _ => false,
        }
    }
    let is_hidden = topic.starts_with('$') && filter.starts_with(['+', '#']);
    let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
    !is_hidden && all(&filter, &topic)
}

/// The broker's tables, and beside each the list that says the same.
struct Tables {
    subscriptions: Subscriptions,
    held: BTreeMap<(String, u32), (QoS, FilterId)>,
    targets: Recent<Target>,
    interest: Interest,
    announced: BTreeSet<(String, u16)>,
    cores: Recent<u16>,
    retained: RetainedMessages,
    kept: BTreeMap<String, (Vec<u8>, QoS, u64)>,
    /// Records so far.
    record: u64,
    levels: ShardKey,
    devices: ShardKey,
}

impl Tables {
    fn new(choices: &mut Choices<'_>) -> Tables {
        let cores = 1 + u16::from(choices.byte() % 7);
        let levels = Division::Levels(1 + choices.below(4));
        Tables {
            subscriptions: Subscriptions::new(HASH_KEY),
            held: BTreeMap::new(),
            targets: Recent::default(),
            interest: Interest::new(HASH_KEY),
            announced: BTreeSet::new(),
            cores: Recent::default(),
            retained: RetainedMessages::new(RETAINED_MEMORY_BYTES),
            kept: BTreeMap::new(),
            record: 0,
            levels: ShardKey::new(HASH_KEY, cores, levels),
            devices: ShardKey::new(HASH_KEY, cores, Division::Devices),
        }
    }

    fn is_held(&self, filter: &str) -> bool {
        self.held.keys().any(|(held, _)| held == filter)
    }

    fn filter_count(&self) -> usize {
        self.held
            .keys()
            .map(|(filter, _)| filter)
            .collect::<BTreeSet<_>>()
            .len()
    }

    fn subscribe(&mut self, filter: TopicFilter<'_>, choices: &mut Choices<'_>) {
        let (session, qos) = (u32::from(choices.byte() % 8), choices.one_of(&QOS));
        let text = filter.as_str().to_owned();
        let expected = match (self.is_held(&text), self.held.contains_key(&(text.clone(), session))) {
            (_, true) => Subscribed::Replaced,
            (true, false) => Subscribed::Added,
            (false, false) => Subscribed::FirstOnCore,
        };
        let (id, found) = self.subscriptions.subscribe(filter, session, qos);
        assert_eq!(found, expected);
        assert_eq!(self.subscriptions.filter_text(id), text);
        self.held.insert((text, session), (qos, id));
        assert_eq!(self.subscriptions.filter_count(), self.filter_count());
    }

    fn unsubscribe(&mut self, filter: TopicFilter<'_>, choices: &mut Choices<'_>) {
        let session = u32::from(choices.byte() % 8);
        let text = filter.as_str();
        let removed = self.held.remove(&(text.to_owned(), session));
        let expected = match removed {
            None => Unsubscribed::NotFound,
            Some((_, id)) if self.is_held(text) => Unsubscribed::Removed(id),
            Some((_, id)) => Unsubscribed::LastOnCore(id),
        };
        assert_eq!(self.subscriptions.unsubscribe(filter, session), expected);
        assert_eq!(self.subscriptions.filter_count(), self.filter_count());
    }

    /// As a shard does it: by the ids of its filters.
    fn end_session(&mut self, session: u32) {
        let ids: Vec<(String, FilterId)> = self
            .held
            .iter()
            .filter(|((_, holder), _)| *holder == session)
            .map(|((text, _), (_, id))| (text.clone(), *id))
            .collect();
        for (text, id) in ids {
            self.held.remove(&(text.clone(), session));
            let expected = match self.is_held(&text) {
                true => Unsubscribed::Removed(id),
                false => Unsubscribed::LastOnCore(id),
            };
            assert_eq!(self.subscriptions.unsubscribe_id(id, session), expected);
        }
        assert_eq!(self.subscriptions.filter_count(), self.filter_count());
    }

    fn announce(&mut self, filter: TopicFilter<'_>, choices: &mut Choices<'_>) {
        let core = choices.one_of(&[0, 1, 2, 62, 63, 64, 65, 255]);
        let entry = (filter.as_str().to_owned(), core);
        if !choices.byte().is_multiple_of(3) {
            self.interest.add(filter, core);
            self.announced.insert(entry);
        } else {
            self.interest.remove(filter, core);
            self.announced.remove(&entry);
        }
        let filters: BTreeSet<&String> = self.announced.iter().map(|(filter, _)| filter).collect();
        assert_eq!(self.interest.filter_count(), filters.len());
    }

    fn match_topic(&mut self, topic: TopicName<'_>) {
        let text = topic.as_str();
        let mut expected: BTreeMap<u32, QoS> = BTreeMap::new();
        for ((filter, session), (qos, _)) in &self.held {
            let matched = matches(filter, text);
            let ours = TopicFilter::new(filter).expect("it was one");
            assert_eq!(ours.matches(topic), matched, "{filter:?} {text:?}");
            if matched {
                let highest = expected.entry(*session).or_insert(*qos);
                *highest = (*highest).max(*qos);
                self.is_known_to_its_owner(ours, topic);
            }
        }
        // Asked for twice, the second answer is the first.
        for _ in 0..2 {
            let (version, subscriptions) = (self.subscriptions.version(), &mut self.subscriptions);
            self.targets
                .look_up(topic, version, |targets| subscriptions.matches(topic, targets));
            let found = self.targets.answer();
            assert_eq!(found.len(), expected.len(), "each Session once");
            assert!(
                found
                    .iter()
                    .all(|target| expected.get(&target.session) == Some(&target.qos))
            );
        }

        let announced = self.announced.iter().filter(|(filter, _)| matches(filter, text));
        let expected: BTreeSet<u16> = announced.map(|(_, core)| *core).collect();
        let (version, interest) = (self.interest.version(), &mut self.interest);
        self.cores
            .look_up(topic, version, |cores| interest.matches(topic, cores));
        assert!(self.cores.answer().iter().eq(&expected), "each core once, ascending");
    }

    fn is_known_to_its_owner(&self, filter: TopicFilter<'_>, topic: TopicName<'_>) {
        for key in [&self.levels, &self.devices] {
            for account in [AccountId::default(), AccountId(7)] {
                match key.owners(account, filter) {
                    Owners::All => {}
                    Owners::One(owner) => assert_eq!(owner, key.owner(account, topic)),
                }
            }
        }
    }

    fn retain(&mut self, topic: TopicName<'_>, choices: &mut Choices<'_>) {
        let (length, qos) = (choices.below(64), choices.one_of(&QOS));
        let payload = choices.take(length);
        self.record += 1;
        let sequence = self.retained.set(topic, Arc::from(payload), qos, self.record);
        assert_eq!(sequence, self.retained.sequence());
        if payload.is_empty() {
            self.kept.remove(topic.as_str());
        } else {
            self.kept
                .insert(topic.as_str().to_owned(), (payload.to_vec(), qos, sequence));
        }
        // What is committed is behind what was written.
        self.retained
            .make_room(self.record.saturating_sub(choices.byte().into()));
        assert_eq!(self.retained.len(), self.kept.len());
    }

    /// A payload is here, or was, and then comes back from disk.
    fn payload(&mut self, topic: TopicName<'_>) {
        let kept = self.kept.get(topic.as_str());
        let found = self.retained.get(topic.as_str());
        assert_eq!(found.is_some(), kept.is_some());
        let (Some(found), Some((payload, qos, sequence))) = (found, kept) else {
            return;
        };
        assert_eq!((found.qos, found.sequence), (*qos, *sequence));
        assert_eq!(found.payload_bytes as usize, payload.len());
        assert!(found.payload.as_ref().is_none_or(|here| here[..] == payload[..]));
        self.retained.use_payload(topic.as_str(), &Arc::from(&payload[..]));
        self.retained.make_room(self.record);
    }

    fn scan(&mut self, filter: TopicFilter<'_>, choices: &mut Choices<'_>) {
        let sequence_max = self.retained.sequence().saturating_sub(choices.byte().into());
        let expected = self
            .kept
            .iter()
            .filter(|(topic, (_, _, sequence))| *sequence <= sequence_max && matches(filter.as_str(), topic))
            .map(|(topic, _)| topic);
        let mut after: Option<String> = None;
        for topic in expected {
            assert!(self.retained.may_match(filter));
            let (found, message) = self
                .retained
                .next(filter, after.as_deref(), sequence_max)
                .expect("there is another");
            let (payload, qos, sequence) = &self.kept[topic];
            assert_eq!(
                (found, message.qos, message.sequence),
                (topic.as_str(), *qos, *sequence)
            );
            assert!(message.payload.as_ref().is_none_or(|here| here[..] == payload[..]));
            after = Some(found.to_owned());
        }
        assert!(self.retained.next(filter, after.as_deref(), sequence_max).is_none());
    }

    /// Whatever came goes.
    fn empty(mut self) {
        for session in 0..8 {
            self.end_session(session);
        }
        for (filter, core) in std::mem::take(&mut self.announced) {
            self.interest
                .remove(TopicFilter::new(&filter).expect("it was one"), core);
        }
        for topic in std::mem::take(&mut self.kept).into_keys() {
            self.retained.remove(&topic);
        }
        let left = (
            self.subscriptions.filter_count(),
            self.interest.filter_count(),
            self.retained.len(),
        );
        assert_eq!(left, (0, 0, 0));
    }
}
