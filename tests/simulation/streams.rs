//! The streams at rest: what became of each message that carries data.
//!
//! Called  by `run`, when nothing moves any more; `oracle` and `words` ask which message a row came of.
//! Holds   - a datapoint is a message that was sent, in a stream of its account, with its tag, at most once per attempt;
//!         - what was acknowledged is kept, unless its device may have been disabled or without a channel;
//!         - what was sent after another message was acknowledged stands behind it.

use std::collections::BTreeMap;

use skein::mqtt::packet::QoS;
use skein::registry::channel::ChannelId;
use skein::registry::datapoint::{DatapointId, DatapointRow};
use skein::store::streams::DatapointRange;

use crate::oracle::{Message, message_number};
use crate::platform::{CHANNELS, State, channel};
use crate::topics::{Purpose, Route};
use crate::world::World;

/// How often a message is in which channel.
type Kept = BTreeMap<ChannelId, u32>;

impl World {
    /// Every stream has what it must have, and nothing else.
    pub fn check_streams(&mut self) {
        let Some(platform) = &self.platform else { return };
        assert!(platform.is_at_rest(), "questions without an answer");
        let mut kept = BTreeMap::new();
        let mut datapoints = 0;
        for tenant in 0..platform.tenants.len() {
            for number in 0..CHANNELS {
                datapoints += self.check_stream(tenant, channel(number), &mut kept);
            }
        }
        for (number, message) in self.oracle.messages.iter().enumerate() {
            if let Some(sent_at) = message.sent_at {
                self.check_kept(number, sent_at, &kept.remove(&number).unwrap_or_default());
            }
        }
        self.happened.datapoints = datapoints;
    }

    /// One stream, from its oldest datapoint; returns how many there are.
    fn check_stream(&self, tenant: usize, channel: ChannelId, kept: &mut BTreeMap<usize, Kept>) -> u64 {
        let all = DatapointRange {
            from: DatapointId::first_at(0),
            to: DatapointId::MAX,
            tag: None,
            newest_first: false,
            rows_max: usize::MAX,
        };
        let account = self.platform.as_ref().expect("it is there").tenants[tenant].id;
        let mut order = Vec::new();
        let mut datapoints = 0;
        for row in self.disk.tables().datapoints(account, channel, &all).rows {
            datapoints += 1;
            let number =
                stored_number(&row.value).unwrap_or_else(|| panic!("a datapoint that nobody sent: {}", row.value));
            let Message { topic, tenant: of, .. } = self.oracle.messages[number];
            let Purpose::Data { tenant: to, tag, .. } = self.oracle.topics.purposes[topic] else {
                panic!("message {number} is no data, and is in a stream");
            };
            assert_eq!(
                (of, to),
                (tenant, tenant),
                "message {number} is in another account's stream"
            );
            assert_eq!(row.tag.as_deref(), tag, "the tag of message {number}");
            let count = kept.entry(number).or_default().entry(channel).or_default();
            if *count == 0 {
                order.push(number);
            }
            *count += 1;
        }
        self.check_order(&order);
        datapoints
    }

    /// What was sent after another message was acknowledged stands behind it in a stream.
    fn check_order(&self, order: &[usize]) {
        let mut last_sent: Option<(u64, usize)> = None;
        for number in order {
            let message = &self.oracle.messages[*number];
            // What was sent again may be kept for that alone: the first time its device had no channel.
            assert!(
                last_sent.is_none_or(|(sent_at, _)| sent_at <= message.over_at()),
                "message {:?} was sent after message {number} was acknowledged, and stands before it in a stream",
                last_sent.map(|(_, other)| other)
            );
            last_sent = last_sent.max(message.sent_at.map(|sent_at| (sent_at, *number)));
        }
    }

    /// One message is in the streams where its device had it kept, as often as it may be.
    fn check_kept(&self, number: usize, sent_at: u64, kept: &Kept) {
        let message = &self.oracle.messages[number];
        let Purpose::Data { tenant, device, .. } = self.oracle.topics.purposes[message.topic] else {
            return;
        };
        let count: u32 = kept.values().sum();
        if self.oracle.topics.is_of_removed(message.topic) {
            assert_eq!(count, 0, "message {number} of an account that is removed is kept");
            return;
        }
        let platform = self.platform.as_ref().expect("who sent data has it");
        let possible = platform.tenants[tenant].devices[device].possible(sent_at, message.over_at());
        let may_be_kept = |channel: &ChannelId| {
            let state = State {
                is_enabled: true,
                channel: Some(*channel),
            };
            possible.contains(&state)
        };
        let route = self.route(number);
        let is_own = route != Route::Never && message.len > 0;
        assert!(
            count == 0 || is_own && kept.keys().all(may_be_kept),
            "message {number} is kept in {kept:?}, and the device was {possible:?}"
        );
        let is_surely_kept = possible.iter().all(|state| state.is_enabled && state.channel.is_some());
        let is_acknowledged = message.acknowledged_at.is_some();
        assert!(
            count > 0 || !(is_own && route == Route::Surely && is_surely_kept && is_acknowledged),
            "message {number} was acknowledged, and is in no stream"
        );
        let allowed = match message.qos {
            // Every attempt is a message of its own.
            QoS::AtLeastOnce => message.attempts.max(1),
            QoS::AtMostOnce => 1,
            QoS::ExactlyOnce => 1 + message.strays,
        };
        assert!(
            count <= allowed,
            "message {number} at {:?} is kept {count} times, {allowed} allowed",
            message.qos
        );
    }
}

/// The message that a packed row of a stream came of.
pub fn stored_message(row: &[u8]) -> Option<usize> {
    stored_number(DatapointRow::unpack(row)?.value)
}

/// The message that a value in a stream came of: the object that was sent, or the bytes as digits.
fn stored_number(value: &str) -> Option<usize> {
    match value.strip_prefix(r#"{"value1":""#) {
        None => message_number(value.as_bytes()),
        Some(rest) => message_number(&hex::decode(rest.strip_suffix(r#""}"#)?).ok()?),
    }
}
