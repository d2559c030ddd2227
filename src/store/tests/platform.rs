//! The device platform on disk against the device platform in memory, and each rule by itself.

use proptest::prelude::*;
use tempfile::tempdir;

use super::{assert_sound, commit, config, open, started};
use crate::mqtt::packet::PacketId;
use crate::registry::access::AccountId;
use crate::registry::account::{Account, Token};
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceChange, DeviceState};
use crate::registry::event::Event;
use crate::shard::record::{Datapoint, Origin, Record, SessionNumber};
use crate::store::lmdb::{Applier, Fault, Lmdb, Table};
use crate::store::memory::Tables;
use crate::store::schema::platform::datapoint_bytes;
use crate::store::streams::{DatapointRange, Found, Usage};

// --- records ---------------------------------------------------------------------------------------------------------

const ACCOUNT: AccountId = AccountId(1);

pub(super) fn account(id: u32, storage_bytes_max: u64) -> Record {
    let token = |kind: u8| Token::from_random([kind.wrapping_add(id as u8); 16]);
    Record::AccountPut(Box::new(Account {
        storage_bytes_max,
        ..Account::new(AccountId(id), &format!("U{id:06}"), token(0xa0), token(0xb0), 7)
    }))
}

pub(super) fn channel_id(number: u32) -> ChannelId {
    ChannelId::new(number).unwrap()
}

fn channel(account: AccountId, number: u32, tags: &[&str]) -> Record {
    Record::ChannelPut {
        account,
        channel: channel_id(number),
        entry: Box::new(Channel {
            name: format!("channel {number}"),
            tags: tags.iter().map(|tag| (Box::from(*tag), None)).collect(),
        }),
    }
}

fn channel_removed(account: AccountId, number: u32) -> Record {
    Record::ChannelRemoved {
        account,
        channel: channel_id(number),
    }
}

fn tag_removed(number: u32, tag: &str) -> Record {
    Record::TagRemoved {
        account: ACCOUNT,
        channel: channel_id(number),
        tag: tag.into(),
    }
}

fn device(account: AccountId, id: &str, channel: Option<u32>) -> Record {
    Record::DeviceRegistered {
        account,
        device: id.into(),
        entry: Box::new(Device::new(channel.map(channel_id), 5)),
    }
}

fn changed(account: AccountId, id: &str, change: DeviceChange) -> Record {
    Record::DeviceChanged {
        account,
        device: id.into(),
        change: Box::new(change),
    }
}

fn reported(account: AccountId, id: &str, at_ms: u64) -> Record {
    Record::DeviceReported {
        account,
        device: id.into(),
        state: Box::new(DeviceState {
            json: r#"{"health":"OK"}"#.into(),
            at_ms,
        }),
    }
}

fn event(account: AccountId, event_id: u32, channel: Option<u32>) -> Record {
    Record::EventPut {
        account,
        event: Box::new(Event {
            event_id,
            channel: channel.map(channel_id),
            ..Event::default()
        }),
    }
}

fn datapoint_of(account: AccountId, number: u32, id: DatapointId, tag: &str, origin: Option<Origin>) -> Record {
    // All of them count for the same.
    let value = format!(r#"{{"value1":"{}"}}"#, "x".repeat(40 - tag.len()));
    let row = DatapointRow {
        tag,
        device: "pump-07",
        value: &value,
    };
    Record::Datapoint(Box::new(Datapoint {
        account,
        channel: channel_id(number),
        id,
        row: row.pack(),
        origin,
        is_awaited: false,
    }))
}

fn datapoint(number: u32, at_ms: u64, tag: &str) -> Record {
    datapoint_of(ACCOUNT, number, DatapointId::new(at_ms, 0, 1), tag, None)
}

/// What each of [`datapoint_of`] counts for.
fn bytes_of_one() -> u64 {
    let Record::Datapoint(datapoint) = datapoint(1, 1, "") else {
        panic!()
    };
    datapoint_bytes(&datapoint.row)
}

// --- the same as in memory -------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
pub(super) enum Op {
    Account {
        storage_max: Option<u64>,
    },
    ChangeAccount(usize, Option<u64>),
    RemoveAccount(usize),
    Register(usize, usize, Option<usize>),
    Change(usize, usize, Option<Option<usize>>, Option<bool>),
    RemoveDevice(usize, usize),
    Report(usize, usize),
    Channel(usize, u32, usize),
    RemoveChannel(usize, u32),
    RemoveTag(usize, u32, usize),
    Event(usize, u32, Option<usize>),
    RemoveEvent(usize, u32),
    Datapoint {
        account: usize,
        channel: u32,
        tag: usize,
        /// From a core whose clock is behind.
        is_late: bool,
        origin: Option<(usize, u16)>,
    },
}

const DEVICES: [&str; 4] = ["pump", "pump-07", "pump-08", "x"];
const TAGS: [&str; 4] = ["", "a", "inlet", "inlet-2"];
/// Never created: what comes for it is dropped.
const NO_CHANNEL: u32 = 4;

pub(super) fn op() -> impl Strategy<Value = Op> {
    let place = 0..4usize;
    let storage = || proptest::option::weighted(0.5, 0..12u64);
    let channel = 0..4u32;
    prop_oneof![
        2 => storage().prop_map(|storage_max| Op::Account { storage_max }),
        1 => (place.clone(), storage()).prop_map(|(account, max)| Op::ChangeAccount(account, max)),
        1 => place.clone().prop_map(Op::RemoveAccount),
        3 => (place.clone(), place.clone(), proptest::option::of(0..4usize))
            .prop_map(|(account, device, channel)| Op::Register(account, device, channel)),
        2 => (place.clone(), place.clone(), proptest::option::of(proptest::option::of(0..4usize)), any::<Option<bool>>())
            .prop_map(|(account, device, channel, enabled)| Op::Change(account, device, channel, enabled)),
        1 => (place.clone(), place.clone()).prop_map(|(account, device)| Op::RemoveDevice(account, device)),
        2 => (place.clone(), place.clone()).prop_map(|(account, device)| Op::Report(account, device)),
        4 => (place.clone(), channel.clone(), place.clone())
            .prop_map(|(account, channel, tag)| Op::Channel(account, channel, tag)),
        1 => (place.clone(), channel.clone()).prop_map(|(account, channel)| Op::RemoveChannel(account, channel)),
        2 => (place.clone(), channel.clone(), place.clone())
            .prop_map(|(account, channel, tag)| Op::RemoveTag(account, channel, tag)),
        1 => (place.clone(), 1..4u32, proptest::option::of(0..4usize))
            .prop_map(|(account, event, channel)| Op::Event(account, event, channel)),
        1 => (place.clone(), 1..4u32).prop_map(|(account, event)| Op::RemoveEvent(account, event)),
        30 => (place.clone(), 0..=NO_CHANNEL, place, any::<bool>(), proptest::option::weighted(0.2, (0..8usize, 1..4u16)))
            .prop_map(|(account, channel, tag, is_late, origin)| Op::Datapoint { account, channel, tag, is_late, origin }),
    ]
}

#[derive(Default)]
pub(super) struct Generator {
    /// Number, limit, channels.
    accounts: Vec<(u32, u64, Vec<u32>)>,
    gone: Vec<u32>,
    newest: u32,
    datapoints: u32,
    /// Channels for which this batch drops something.
    dropped: Vec<(u32, u32)>,
}

impl Generator {
    pub(super) fn committed(&mut self) {
        self.dropped.clear();
    }

    /// The record of an operation that is possible now. `sessions` are those that publish.
    pub(super) fn record(&mut self, op: &Op, sessions: &[SessionNumber]) -> Option<Record> {
        let one = bytes_of_one();
        let limit = |max: &Option<u64>| max.map_or(u64::MAX, |count| count * one + 7);
        if let Op::Account { storage_max } = op {
            self.newest += 1;
            self.accounts.push((self.newest, limit(storage_max), Vec::new()));
            return Some(account(self.newest, limit(storage_max)));
        }
        if self.accounts.is_empty() {
            return None;
        }
        let count = self.accounts.len();
        let place = match op {
            Op::ChangeAccount(at, ..)
            | Op::RemoveAccount(at)
            | Op::Register(at, ..)
            | Op::Change(at, ..)
            | Op::RemoveDevice(at, _)
            | Op::Report(at, _)
            | Op::Channel(at, ..)
            | Op::RemoveChannel(at, _)
            | Op::RemoveTag(at, ..)
            | Op::Event(at, ..)
            | Op::RemoveEvent(at, _)
            | Op::Datapoint { account: at, .. } => at % count,
            Op::Account { .. } => 0,
        };
        let (number, storage_max, channels) = &mut self.accounts[place];
        // What is on its way for an account that is gone.
        let id = match (op, self.gone.last()) {
            (Op::Register(3, ..) | Op::Datapoint { account: 3, .. } | Op::Event(3, ..), Some(gone)) => AccountId(*gone),
            _ => AccountId(*number),
        };
        let mapped = |at: Option<usize>| {
            let at = at.filter(|_| !channels.is_empty())?;
            Some(channels[at % channels.len()])
        };
        Some(match op {
            Op::Account { .. } => unreachable!("handled before"),
            Op::ChangeAccount(_, max) => {
                *storage_max = limit(max);
                account(*number, *storage_max)
            }
            Op::RemoveAccount(_) => {
                let account = AccountId(*number);
                self.gone.push(*number);
                self.accounts.remove(place);
                Record::AccountRemoved { account }
            }
            Op::Register(_, at, channel) => device(id, DEVICES[*at], mapped(*channel)),
            Op::Change(_, at, channel, is_enabled) => changed(
                id,
                DEVICES[*at],
                DeviceChange {
                    description: Some("changed".to_owned()),
                    channel: channel.map(|channel| mapped(channel).map(channel_id)),
                    is_enabled: *is_enabled,
                    ..DeviceChange::default()
                },
            ),
            Op::RemoveDevice(_, at) => Record::DeviceRemoved {
                account: id,
                device: DEVICES[*at].into(),
            },
            Op::Report(_, at) => reported(id, DEVICES[*at], u64::from(self.datapoints)),
            Op::Channel(_, at, tag) => {
                if self.dropped.contains(&(*number, *at)) {
                    return None;
                }
                if !channels.contains(at) {
                    channels.push(*at);
                }
                channel(id, *at, &TAGS[..*tag])
            }
            Op::RemoveChannel(_, at) => {
                channels.retain(|channel| channel != at);
                channel_removed(id, *at)
            }
            Op::RemoveTag(_, at, tag) => Record::TagRemoved {
                account: id,
                channel: channel_id(*at),
                tag: TAGS[*tag].into(),
            },
            Op::Event(_, number, channel) => event(id, *number, mapped(*channel)),
            Op::RemoveEvent(_, event_id) => Record::EventRemoved {
                account: id,
                event_id: *event_id,
            },
            Op::Datapoint {
                channel,
                tag,
                is_late,
                origin,
                ..
            } => {
                if !channels.contains(channel) {
                    self.dropped.push((*number, *channel));
                }
                self.datapoints += 1;
                let at = self.datapoints;
                let at_ms = 1_000 + u64::from(at / 3) - if *is_late { 5 } else { 0 };
                let origin = origin.filter(|_| !sessions.is_empty()).map(|(session, id)| Origin {
                    session: sessions[session % sessions.len()],
                    packet_id: PacketId::new(id).unwrap(),
                });
                let datapoint = DatapointId::new(at_ms, u16::from(*is_late), at);
                datapoint_of(id, *channel, datapoint, TAGS[*tag], origin)
            }
        })
    }
}

fn everything() -> DatapointRange {
    DatapointRange {
        from: DatapointId::default(),
        to: DatapointId::MAX,
        tag: None,
        newest_first: false,
        rows_max: usize::MAX,
    }
}

fn found(lmdb: &Lmdb, account: AccountId, channel: u32, range: &DatapointRange) -> Found {
    lmdb.view(|view| view.datapoints(account, channel_id(channel), range))
        .unwrap()
}

/// That whatever is asked gets the same answer from both.
pub(super) fn assert_same(lmdb: &Lmdb, tables: &Tables) {
    for account in (1..8).map(AccountId) {
        let (devices, channels, events, usage) = lmdb
            .view(|view| {
                Ok((
                    view.devices(account)?,
                    view.channels(account)?,
                    view.events(account)?,
                    view.usage(account)?,
                ))
            })
            .unwrap();
        assert_eq!(devices, tables.devices(account));
        assert_eq!(channels, tables.channels(account));
        assert_eq!(events, tables.events(account));
        assert_eq!(usage, tables.usage(account));
        for id in DEVICES {
            let device = lmdb.view(|view| view.device(account, id)).unwrap();
            let expected = devices.iter().find(|(of, ..)| &**of == id);
            assert_eq!(
                device,
                expected.map(|(_, device, state)| (device.clone(), state.clone()))
            );
        }
        for channel in (0..NO_CHANNEL + 1).map(channel_id) {
            let entry = lmdb.view(|view| view.channel(account, channel)).unwrap();
            assert_eq!(
                entry.as_ref(),
                channels.iter().find(|(of, _)| *of == channel).map(|(_, entry)| entry)
            );
            let tags = lmdb.view(|view| view.tags(account, channel)).unwrap();
            let expected = tables.tags(account, channel);
            assert_eq!(tags.len(), expected.len());
            for (tag, expected) in tags.iter().zip(expected) {
                // Its newest may have gone with others of an account at its limit.
                assert!(tag.last_ms >= expected.last_ms);
                assert_eq!((&tag.tag, tag.count), (&expected.tag, expected.count));
            }
            for tag in [None, Some(TAGS[0]), Some(TAGS[2]), Some(TAGS[3]), Some("none")] {
                for (from, to, rows_max) in [
                    (0, u64::MAX >> 16, usize::MAX),
                    (1_004, 1_010, usize::MAX),
                    (0, 1_020, 3),
                ] {
                    for newest_first in [false, true] {
                        let range = DatapointRange {
                            from: DatapointId::first_at(from),
                            to: DatapointId::first_at(to),
                            tag: tag.map(Into::into),
                            newest_first,
                            rows_max,
                        };
                        let found = lmdb.view(|view| view.datapoints(account, channel, &range)).unwrap();
                        assert_eq!(found, tables.datapoints(account, channel, &range), "{range:?}");
                    }
                }
            }
        }
    }
}
