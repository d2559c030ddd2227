//! What the platform's records make of tables on disk and in memory: both say the same of everything.

use proptest::prelude::{Strategy, any, prop_oneof};

use super::{
    TAGS, account, bytes_of_one, changed, channel, channel_id, channel_removed, datapoint_of, device, event,
    everything, found, reported,
};
use crate::mqtt::packet::PacketId;
use crate::registry::access::AccountId;
use crate::registry::datapoint::DatapointId;
use crate::registry::device::DeviceChange;
use crate::shard::record::{Origin, Record, SessionNumber};
use crate::store::lmdb::Lmdb;
use crate::store::memory::Tables;
use crate::store::streams::{DatapointRange, Found};

#[derive(Clone, Debug)]
pub enum Op {
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
/// Never created: what comes for it is dropped.
const NO_CHANNEL: u32 = 4;

pub fn op() -> impl Strategy<Value = Op> {
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
pub struct Generator {
    /// Number, limit, channels.
    accounts: Vec<(u32, u64, Vec<u32>)>,
    gone: Vec<u32>,
    newest: u32,
    datapoints: u32,
    /// Channels for which this batch drops something.
    dropped: Vec<(u32, u32)>,
}

impl Generator {
    pub fn committed(&mut self) {
        self.dropped.clear();
    }

    /// The record of an operation that is possible now. `sessions` are those that publish.
    pub fn record(&mut self, op: &Op, sessions: &[SessionNumber]) -> Option<Record> {
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

/// That whatever is asked gets the same answer from both.
pub fn assert_same(lmdb: &Lmdb, tables: &Tables) {
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
            for name in TAGS {
                let tag = lmdb.view(|view| view.tag(account, channel, name)).unwrap();
                assert_eq!(tag.as_ref(), tags.iter().find(|tag| &*tag.tag == name));
            }
            assert_eq!(tags.len(), expected.len());
            for (tag, expected) in tags.iter().zip(expected) {
                // Its newest may have gone with others of an account at its limit.
                assert!(tag.last_ms >= expected.last_ms);
                assert_eq!((&tag.tag, tag.count), (&expected.tag, expected.count));
            }
            if entry.is_none() {
                assert_eq!(found(lmdb, account, channel.number(), &everything()), Found::default());
                continue;
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
