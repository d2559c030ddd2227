//! The device platform on disk against the device platform in memory, and each rule by itself.

use std::sync::mpsc;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::{assert_sound, commit, damage, open, sorted, started};
use crate::limits::STORE_PURGE_ROWS_MAX;
use crate::mqtt::packet::PacketId;
use crate::registry::access::AccountId;
use crate::registry::account::{Account, Token};
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceChange, DeviceState};
use crate::registry::event::Event;
use crate::shard::record::{Datapoint, Origin, Record, SessionNumber};
use crate::store::client::Client;
use crate::store::error::StoreError;
use crate::store::inspect::{inspect, look_at};
use crate::store::lmdb::{Applier, Fault, Lmdb, Table};
use crate::store::memory::Tables;
use crate::store::offline::change_offline;
use crate::store::schema::platform::{self, StreamNumber, datapoint_bytes};
use crate::store::streams::{DatapointRange, Found, TagUsage, Usage};
use crate::store::writer::{Store, StoreConfig};

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

// --- each rule by itself ---------------------------------------------------------------------------------------------

struct Fixture {
    dir: TempDir,
    lmdb: Lmdb,
    applier: Applier,
}

impl Fixture {
    /// One account with two channels.
    fn new() -> Fixture {
        let dir = tempdir().unwrap();
        let (lmdb, applier) = open(dir.path());
        let mut fixture = Fixture { dir, lmdb, applier };
        fixture.commit(&[account(1, u64::MAX), channel(ACCOUNT, 1, &[]), channel(ACCOUNT, 2, &[])]);
        fixture
    }

    fn commit(&mut self, records: &[Record]) {
        commit(&self.lmdb, &mut self.applier, records);
    }

    /// Until nothing waits to be deleted.
    fn idle(&mut self) {
        while self.applier.is_behind() {
            self.commit(&[]);
        }
        assert_sound(&self.lmdb);
    }

    fn reopen(self) -> Fixture {
        let Fixture { dir, lmdb, .. } = self;
        drop(lmdb);
        let (lmdb, applier) = open(dir.path());
        Fixture { dir, lmdb, applier }
    }

    fn times(&self, channel: u32) -> Vec<u64> {
        let found = found(&self.lmdb, ACCOUNT, channel, &everything());
        found.rows.iter().map(|row| row.id.at_ms()).collect()
    }

    fn usage(&self) -> Usage {
        self.lmdb.view(|view| view.usage(ACCOUNT)).unwrap()
    }

    fn tags(&self, channel: u32) -> Vec<TagUsage> {
        self.lmdb.view(|view| view.tags(ACCOUNT, channel_id(channel))).unwrap()
    }

    fn rows(&self, table: Table) -> u64 {
        self.lmdb.view(|view| view.size(table)).unwrap().entries
    }
}

fn usage(count: u64) -> Usage {
    Usage {
        count,
        bytes: count * bytes_of_one(),
    }
}

fn tag(name: &str, last_ms: u64, count: u64) -> TagUsage {
    TagUsage {
        tag: name.into(),
        last_ms,
        count,
    }
}

#[test]
fn a_datapoint_is_there_once_and_counted_once_however_often_it_comes() {
    let mut fixture = Fixture::new();
    let records = [
        datapoint(1, 30, "inlet"),
        datapoint(2, 10, ""),
        datapoint(1, 20, ""),
        datapoint(1, 25, "inlet"),
    ];
    for _ in 0..2 {
        fixture.commit(&records);
        fixture.commit(&records[..1]);
    }
    assert_eq!(fixture.times(1), [20, 25, 30]);
    assert_eq!(fixture.tags(1), [tag("", 20, 1), tag("inlet", 30, 2)]);
    assert_eq!(fixture.usage(), usage(4));
    assert_sound(&fixture.lmdb);
}

#[test]
fn a_range_is_read_from_either_end_and_says_whether_it_is_cut() {
    let mut fixture = Fixture::new();
    let records: Vec<Record> = (0..20)
        .map(|at| datapoint(1, 100 + at, if at % 5 == 0 { "inlet" } else { "" }))
        .collect();
    fixture.commit(&records);
    let read = |range: DatapointRange| {
        let found = found(&fixture.lmdb, ACCOUNT, 1, &range);
        let times: Vec<u64> = found.rows.iter().map(|row| row.id.at_ms()).collect();
        (times, found.is_cut)
    };
    let last = DatapointRange {
        newest_first: true,
        rows_max: 1,
        ..everything()
    };
    assert_eq!(read(last.clone()), (vec![119], true));
    let tagged = DatapointRange {
        tag: Some("inlet".into()),
        ..last
    };
    assert_eq!(read(tagged.clone()), (vec![115], true));
    let all = DatapointRange { rows_max: 4, ..tagged };
    assert_eq!(read(all), (vec![115, 110, 105, 100], false));
    let part = DatapointRange {
        from: DatapointId::first_at(103),
        to: DatapointId::new(105, 0, 1),
        ..everything()
    };
    assert_eq!(read(part.clone()), (vec![103, 104, 105], false));
    let (from, to) = (part.to, part.from);
    assert_eq!(read(DatapointRange { from, to, ..part }), (vec![], false));
    let mut seen = Vec::new();
    let walked = fixture.lmdb.view(|view| {
        view.walk_datapoints(ACCOUNT, channel_id(1), &everything(), |id, row| {
            assert_eq!(row.device, "pump-07");
            seen.push(id.at_ms());
            seen.len() < 3
        })
    });
    walked.unwrap();
    assert_eq!(seen, [100, 101, 102]);
}

#[test]
fn a_datapoint_of_a_channel_that_is_not_there_is_dropped_and_counted() {
    let mut fixture = Fixture::new();
    let records = [
        datapoint(3, 10, ""),
        datapoint_of(AccountId(2), 1, DatapointId::new(10, 0, 1), "", None),
        datapoint(1, 11, ""),
        channel_removed(ACCOUNT, 2),
        datapoint(2, 12, ""),
    ];
    let applied = fixture.lmdb.commit(&mut fixture.applier, records.iter()).unwrap();
    assert_eq!((applied.records, applied.dropped_datapoints), (5, 3));
    assert_eq!((fixture.usage(), fixture.times(2)), (usage(1), vec![]));
    fixture.idle();
}

#[test]
fn a_start_knows_accounts_devices_events_and_the_newest_there_ever_were() {
    let mut fixture = Fixture::new();
    fixture.commit(&[
        account(5, 0),
        device(ACCOUNT, "pump", Some(2)),
        device(AccountId(5), "pump", None),
        event(ACCOUNT, 3, Some(1)),
        event(ACCOUNT, 2, None),
        datapoint(1, 77, ""),
        account(9, 0),
        Record::AccountRemoved { account: AccountId(9) },
        changed(
            ACCOUNT,
            "pump",
            DeviceChange {
                is_enabled: Some(false),
                ..DeviceChange::default()
            },
        ),
    ]);
    let (stored, _) = fixture.lmdb.load(0).unwrap();
    let events: Vec<(u32, Vec<u32>)> = stored
        .accounts
        .iter()
        .map(|(account, events)| (account.id.0, events.iter().map(|event| event.event_id).collect()))
        .collect();
    assert_eq!(events, [(1, vec![2, 3]), (5, vec![])]);
    let devices: Vec<_> = stored
        .devices
        .iter()
        .map(|device| (device.account.0, &*device.device, device.is_enabled, device.channel))
        .collect();
    assert_eq!(
        devices,
        [(1, "pump", false, Some(channel_id(2))), (5, "pump", true, None)]
    );
    assert_eq!((stored.newest_datapoint_ms, stored.newest_account), (77, 9));
}

#[test]
fn the_origin_of_a_datapoint_is_in_doubt_until_it_is_settled() {
    let mut fixture = Fixture::new();
    let packet_id = |id| PacketId::new(id).unwrap();
    let session = SessionNumber(1);
    let origin = |id| Origin {
        session,
        packet_id: packet_id(id),
    };
    let received = |id| Record::PacketIdReceived {
        session,
        packet_id: packet_id(id),
    };
    let of = |at_ms, id| datapoint_of(ACCOUNT, 1, DatapointId::new(at_ms, 0, 1), "", Some(origin(id)));
    fixture.commit(&[started(1), of(1, 1), of(2, 2), received(1)]);
    let in_doubt = |fixture: &Fixture| fixture.lmdb.load(0).unwrap().0.in_doubt;
    assert_eq!(in_doubt(&fixture), [(origin(2), vec![SessionNumber::STREAM])]);
    assert_eq!(
        fixture.rows(Table::Origins),
        1,
        "what is settled in its batch is never written"
    );
    assert_eq!(fixture.times(1), [1, 2]);
    fixture.commit(&[received(2)]);
    assert_eq!(in_doubt(&fixture), []);
}

#[test]
fn a_device_is_registered_changed_reported_and_removed() {
    let mut fixture = Fixture::new();
    let rename = || {
        changed(
            ACCOUNT,
            "pump",
            DeviceChange {
                description: Some("north".to_owned()),
                ..DeviceChange::default()
            },
        )
    };
    let look = |fixture: &Fixture| fixture.lmdb.view(|view| view.device(ACCOUNT, "pump")).unwrap();
    fixture.commit(&[rename(), reported(ACCOUNT, "pump", 1)]);
    assert_eq!(look(&fixture), None, "neither makes a device");
    fixture.commit(&[device(ACCOUNT, "pump", Some(1)), rename(), reported(ACCOUNT, "pump", 2)]);
    let (entry, state) = look(&fixture).unwrap();
    assert_eq!(
        (entry.description.as_str(), entry.channel),
        ("north", Some(channel_id(1)))
    );
    assert_eq!(state.unwrap().at_ms, 2);
    fixture.commit(&[device(ACCOUNT, "pump", None)]);
    assert_eq!(look(&fixture), Some((Device::new(None, 5), None)), "nothing is kept");
    fixture.commit(&[
        reported(ACCOUNT, "pump", 3),
        Record::DeviceRemoved {
            account: ACCOUNT,
            device: "pump".into(),
        },
    ]);
    assert_eq!((look(&fixture), fixture.rows(Table::States)), (None, 0));
}

#[test]
fn a_removed_channel_is_gone_at_once_and_deleted_in_steps() {
    let mut fixture = Fixture::new();
    let old: Vec<Record> = (0..9_000).map(|at| datapoint(1, 10_000 + at, "inlet")).collect();
    fixture.commit(&old);
    fixture.commit(&[
        datapoint(2, 1, ""),
        device(ACCOUNT, "pump", Some(1)),
        device(ACCOUNT, "other", Some(2)),
        event(ACCOUNT, 1, Some(1)),
        event(ACCOUNT, 2, Some(2)),
    ]);
    fixture.commit(&[channel_removed(ACCOUNT, 1)]);
    let mapped = |fixture: &Fixture, id| {
        let device = fixture.lmdb.view(|view| view.device(ACCOUNT, id)).unwrap();
        device.unwrap().0.channel
    };
    assert_eq!(
        (mapped(&fixture, "pump"), mapped(&fixture, "other")),
        (None, Some(channel_id(2)))
    );
    assert_eq!(fixture.rows(Table::Events), 1);
    assert_eq!((fixture.usage(), fixture.tags(1)), (usage(1), vec![]));
    assert_eq!(fixture.rows(Table::Datapoints), 9_001 - STORE_PURGE_ROWS_MAX as u64);
    assert_sound(&fixture.lmdb);

    // The same id again, and datapoints older than those that still lie there.
    fixture.commit(&[channel(ACCOUNT, 1, &[])]);
    assert!(fixture.times(1).is_empty());
    fixture.commit(&[datapoint(1, 2, "inlet"), datapoint(1, 20_000, "")]);
    assert_eq!(fixture.times(1), [2, 20_000]);
    fixture = fixture.reopen();
    assert!(fixture.applier.is_behind());
    fixture.idle();
    assert_eq!((fixture.times(1), fixture.times(2)), (vec![2, 20_000], vec![1]));
    assert_eq!((fixture.rows(Table::Datapoints), fixture.rows(Table::Purges)), (3, 0));
    assert_eq!(fixture.usage(), usage(3));
}

#[test]
fn a_removed_tag_is_gone_at_once_and_what_comes_with_it_later_is_not() {
    let mut fixture = Fixture::new();
    let old: Vec<Record> = (0..6_000)
        .map(|at| datapoint(1, 10_000 + at, if at % 2 == 0 { "inlet" } else { "" }))
        .collect();
    fixture.commit(&[channel(ACCOUNT, 1, &["inlet", "outlet"])]);
    fixture.commit(&old);
    fixture.applier.set_purge_rows_max(500);
    fixture.commit(&[tag_removed(1, "inlet"), tag_removed(1, "none"), tag_removed(4, "inlet")]);
    let (tags, declared) = (
        fixture.tags(1),
        fixture.lmdb.view(|view| view.channel(ACCOUNT, channel_id(1))).unwrap(),
    );
    assert_eq!(tags, [tag("", 15_999, 3_000)]);
    assert_eq!(
        declared.unwrap().tags.keys().map(|tag| &**tag).collect::<Vec<_>>(),
        ["outlet"]
    );
    assert_eq!(fixture.usage(), usage(3_000));
    assert_eq!(fixture.rows(Table::Datapoints), 5_500);
    assert_eq!(fixture.times(1).len(), 3_000);
    assert_sound(&fixture.lmdb);

    // From a core whose clock is behind, and one that was removed already.
    fixture.commit(&[datapoint(1, 5, "inlet"), datapoint(1, 12_000, "inlet")]);
    assert_eq!(fixture.tags(1), [tag("", 15_999, 3_000), tag("inlet", 12_000, 2)]);
    let tagged = DatapointRange {
        tag: Some("inlet".into()),
        ..everything()
    };
    let times = |fixture: &Fixture| {
        let found = found(&fixture.lmdb, ACCOUNT, 1, &tagged);
        Vec::from_iter(found.rows.iter().map(|row| row.id.at_ms()))
    };
    assert_eq!(times(&fixture), [5, 12_000]);
    assert_sound(&fixture.lmdb);
    fixture = fixture.reopen();
    fixture.commit(&[tag_removed(1, "inlet"), datapoint(1, 6, "inlet")]);
    assert_eq!(times(&fixture), [6]);
    fixture.idle();
    assert_eq!(times(&fixture), [6]);
    assert_eq!(
        (fixture.rows(Table::Datapoints), fixture.rows(Table::Purges)),
        (3_001, 0)
    );
    assert_eq!(fixture.usage(), usage(3_001));
}

#[test]
fn a_removed_account_is_gone_at_once_with_all_it_has() {
    let mut fixture = Fixture::new();
    let other = AccountId(2);
    fixture.commit(&[
        account(2, u64::MAX),
        channel(other, 1, &[]),
        device(other, "pump", Some(1)),
        event(other, 1, Some(1)),
        datapoint_of(other, 1, DatapointId::new(1, 0, 1), "inlet", None),
    ]);
    let mut records = vec![event(ACCOUNT, 1, Some(1))];
    for at in 0..3_000 {
        records.push(device(ACCOUNT, &format!("pump-{at}"), Some(1)));
        records.push(reported(ACCOUNT, &format!("pump-{at}"), at));
        records.push(datapoint(1 + (at % 2) as u32, at, "inlet"));
    }
    fixture.commit(&records);
    fixture.commit(&[tag_removed(1, "inlet"), Record::AccountRemoved { account: ACCOUNT }]);
    let late = [
        device(ACCOUNT, "late", None),
        reported(ACCOUNT, "pump-2999", 1),
        channel(ACCOUNT, 3, &[]),
        event(ACCOUNT, 2, None),
        datapoint(1, 9_000, ""),
    ];
    for _ in 0..3 {
        let (stored, _) = fixture.lmdb.load(0).unwrap();
        assert_eq!((stored.accounts.len(), stored.devices.len()), (1, 1));
        let nothing = fixture.lmdb.view(|view| {
            Ok((
                view.devices(ACCOUNT)?,
                view.channels(ACCOUNT)?,
                view.events(ACCOUNT)?,
                view.usage(ACCOUNT)?,
            ))
        });
        assert_eq!(nothing.unwrap(), (vec![], vec![], vec![], Usage::default()));
        assert_sound(&fixture.lmdb);
        fixture = fixture.reopen();
        fixture.commit(&late);
    }
    assert!(fixture.applier.is_behind());
    fixture.idle();
    for (table, rows) in [
        (Table::Accounts, 1),
        (Table::Devices, 1),
        (Table::States, 0),
        (Table::Channels, 1),
        (Table::Tags, 1),
        (Table::Datapoints, 1),
        (Table::Usage, 1),
        (Table::Events, 1),
        (Table::Purges, 0),
    ] {
        assert_eq!(fixture.rows(table), rows, "{}", table.name());
    }
}

#[test]
fn an_account_at_its_limit_loses_its_oldest_of_whichever_channel() {
    let mut fixture = Fixture::new();
    let limit = |count: u64| account(1, count * bytes_of_one());
    fixture.commit(&[limit(4)]);
    fixture.commit(&[
        datapoint(1, 10, "a"),
        datapoint(2, 20, ""),
        datapoint(1, 30, "a"),
        datapoint(2, 40, ""),
    ]);
    assert_eq!(fixture.usage(), usage(4));
    fixture.commit(&[datapoint(2, 50, "")]);
    assert_eq!((fixture.times(1), fixture.times(2)), (vec![30], vec![20, 40, 50]));
    // Late ones are the oldest, and go first.
    fixture.commit(&[datapoint(1, 5, "a"), datapoint(1, 60, "a"), datapoint(1, 6, "b")]);
    assert_eq!((fixture.times(1), fixture.times(2)), (vec![30, 60], vec![40, 50]));
    assert_eq!(fixture.tags(1), [tag("a", 60, 2)]);
    assert_sound(&fixture.lmdb);
    // What a commit that fails has deleted is there, for the next.
    fixture
        .lmdb
        .fail_next(Fault::Disk(std::io::Error::from_raw_os_error(28)));
    let more = [datapoint(1, 70, ""), datapoint(2, 80, "")];
    fixture.lmdb.commit(&mut fixture.applier, more.iter()).unwrap_err();
    assert_eq!((fixture.times(1), fixture.times(2)), (vec![30, 60], vec![40, 50]));
    fixture.commit(&more);
    assert_eq!((fixture.times(1), fixture.times(2)), (vec![60, 70], vec![50, 80]));
    // What is removed makes room.
    fixture.commit(&[channel_removed(ACCOUNT, 2), datapoint(1, 90, ""), datapoint(1, 100, "")]);
    assert_eq!(fixture.times(1), [60, 70, 90, 100]);
    fixture.commit(&[
        tag_removed(1, ""),
        datapoint(1, 110, "x"),
        datapoint(1, 120, "x"),
        datapoint(1, 130, "x"),
    ]);
    assert_eq!(fixture.times(1), [60, 110, 120, 130]);
    fixture.commit(&[limit(0)]);
    assert_eq!((fixture.usage(), fixture.tags(1)), (Usage::default(), vec![]));
    fixture.idle();
    assert_eq!(fixture.rows(Table::Datapoints), 0);
}

#[test]
fn a_limit_that_is_lowered_is_come_to_in_steps_also_after_a_restart() {
    let mut fixture = Fixture::new();
    let records: Vec<Record> = (0..10_000).map(|at| datapoint(1 + at % 2, at.into(), "")).collect();
    fixture.commit(&records);
    fixture.commit(&[account(1, 100 * bytes_of_one())]);
    assert_eq!(fixture.usage(), usage(10_000 - STORE_PURGE_ROWS_MAX as u64));
    assert!(fixture.applier.is_behind());
    fixture = fixture.reopen();
    assert!(fixture.applier.is_behind());
    fixture.commit(&[datapoint(1, 20_000, "")]);
    let left = 10_000 + 1 - 2 * STORE_PURGE_ROWS_MAX as u64 - 2;
    assert_eq!(fixture.usage(), usage(left), "twice what comes, and as many as that");
    fixture.idle();
    assert_eq!(fixture.usage(), usage(100));
    assert_eq!(fixture.times(1).last(), Some(&20_000));
}

// --- values that are damaged -----------------------------------------------------------------------------------------

#[test]
fn damaged_datapoints_are_left_out_and_damaged_counts_are_counted_anew() {
    let mut fixture = Fixture::new();
    fixture.commit(&[
        datapoint(1, 1, "inlet"),
        datapoint(1, 2, "inlet"),
        datapoint(1, 3, ""),
        datapoint(2, 4, ""),
        tag_removed(1, "inlet"),
        datapoint(1, 5, "inlet"),
        datapoint(1, 6, "inlet"),
    ]);
    fixture.idle();
    let mut key = Vec::new();
    platform::tag_key(StreamNumber(1), "inlet", &mut key);
    fixture.lmdb.put_row(Table::Tags, &key, b"no tag");
    fixture
        .lmdb
        .put_row(Table::Usage, &platform::account_key(ACCOUNT), b"no usage");
    fixture = fixture.reopen();
    assert_eq!(fixture.tags(1).len(), 1, "it is left out");
    fixture.commit(&[datapoint(1, 7, "inlet")]);
    assert_eq!(fixture.tags(1), [tag("", 3, 1), tag("inlet", 7, 3)]);
    assert_sound(&fixture.lmdb);
    // Its generation was found too.
    fixture.applier.set_purge_rows_max(0);
    fixture.commit(&[tag_removed(1, "inlet")]);
    assert_eq!(fixture.times(1), [3]);

    fixture.lmdb.put_row(
        Table::Datapoints,
        &platform::datapoint_key(StreamNumber(2), DatapointId::new(4, 0, 1)),
        b"no datapoint",
    );
    assert!(fixture.times(2).is_empty());
    let found = look_at(&fixture.lmdb).unwrap();
    let expected = [
        "table datapoints, key 0000000000000002000000000004000000000001: the value cannot be used",
        "stream 2: 1 tags have no datapoints",
    ];
    assert_eq!(found.findings.len(), expected.len(), "{:#?}", found.findings);
    for (finding, expected) in found.findings.iter().zip(expected) {
        assert!(finding.starts_with(expected), "{finding}");
    }
}

#[test]
fn a_damaged_account_or_device_stops_a_start_that_names_it() {
    for (find, with, table) in [
        (&b"U000001"[..], b"U000002", "accounts"),
        (b"pump-07", b"pump-70", "devices"),
    ] {
        let mut fixture = Fixture::new();
        fixture.commit(&[device(ACCOUNT, "pump-07", None)]);
        let Fixture { dir, lmdb, .. } = fixture;
        drop(lmdb);
        damage(&dir, find, with);
        let error = Store::open(StoreConfig::new(dir.path())).map(drop).unwrap_err();
        assert!(error.to_string().contains(&format!("in table {table}, ")), "{error}");
    }
}

// --- inspection ------------------------------------------------------------------------------------------------------

#[test]
fn an_inspection_counts_the_platform_and_finds_where_its_tables_disagree() {
    let mut fixture = Fixture::new();
    fixture.commit(&[
        device(ACCOUNT, "pump", Some(1)),
        device(ACCOUNT, "other", None),
        reported(ACCOUNT, "other", 1),
        event(ACCOUNT, 1, Some(2)),
        datapoint(1, 1, ""),
        datapoint(1, 2, "inlet"),
        datapoint(2, 3, ""),
        datapoint(2, 4, ""),
    ]);
    fixture.applier.set_purge_rows_max(0);
    fixture.commit(&[tag_removed(1, "inlet"), channel(ACCOUNT, 3, &[]), datapoint(3, 5, "")]);
    fixture.commit(&[channel_removed(ACCOUNT, 3)]);
    let found = look_at(&fixture.lmdb).unwrap();
    assert_eq!(found.findings, [] as [String; 0]);
    assert_eq!(
        (found.accounts, found.devices, found.channels, found.events),
        (1, 2, 2, 1)
    );
    assert_eq!((found.datapoints, found.datapoint_bytes), (3, 3 * bytes_of_one()));
    assert_eq!(found.dead_datapoints, 2);
    let printed = found.to_string();
    assert!(
        printed.contains("datapoints being deleted               2"),
        "{printed}"
    );

    // Everything that hangs on what is taken away now.
    fixture
        .lmdb
        .remove_row(Table::Channels, &platform::channel_key(ACCOUNT, channel_id(1)));
    fixture
        .lmdb
        .remove_row(Table::Channels, &platform::channel_key(ACCOUNT, channel_id(2)));
    let mut key = Vec::new();
    platform::device_key(ACCOUNT, "other", &mut key);
    fixture.lmdb.remove_row(Table::Devices, &key);
    let found = look_at(&fixture.lmdb).unwrap();
    let expected = [
        "device \"pump\" of account number 1: channel 1, which it is mapped to, is not there",
        "the state of device \"other\" of account number 1: there is no such device",
        "event 1 of account number 1: channel 2, which it watches, is not there",
        "tag \"\" of stream 1: no channel has this stream",
        "tag \"\" of stream 2: no channel has this stream",
        "stream 1: 1 datapoints, and no channel has this stream",
        "stream 2: 2 datapoints, and no channel has this stream",
        "account number 1: it should have 3 datapoints of 264 bytes, its channels have 0 of 0",
    ];
    assert_eq!(found.findings, expected);

    fixture
        .lmdb
        .remove_row(Table::Accounts, &platform::account_key(ACCOUNT));
    let found = look_at(&fixture.lmdb).unwrap();
    assert!(found.findings[0].starts_with("device \"pump\" of account number 1: its account is not there"));
}

// --- schemas ---------------------------------------------------------------------------------------------------------

#[test]
fn a_file_of_schema_1_is_looked_at_as_it_is_and_brought_up_to_date_by_a_start() {
    let dir = tempdir().unwrap();
    let (lmdb, mut applier) = open(dir.path());
    commit(&lmdb, &mut applier, &[started(1), super::queued(&[1], 1, b"payload")]);
    let before = sorted(lmdb.load(0).unwrap().0);
    lmdb.downgrade();

    let found = inspect(dir.path()).unwrap();
    assert_eq!((found.schema, found.queued_messages, found.datapoints), (1, 1, 0));
    assert_eq!(found.findings, [] as [String; 0]);
    assert_eq!(found.tables["datapoints"].entries, 0);

    let (lmdb, mut applier) = open(dir.path());
    assert_eq!(sorted(lmdb.load(0).unwrap().0), before);
    commit(
        &lmdb,
        &mut applier,
        &[account(1, u64::MAX), channel(ACCOUNT, 1, &[]), datapoint(1, 1, "")],
    );
    assert_eq!(found_times(&lmdb), [1]);
    let found = assert_sound(&lmdb);
    assert_eq!((found.schema, found.queued_messages, found.datapoints), (2, 1, 1));
}

fn found_times(lmdb: &Lmdb) -> Vec<u64> {
    let found = found(lmdb, ACCOUNT, 1, &everything());
    found.rows.iter().map(|row| row.id.at_ms()).collect()
}

// --- the client ------------------------------------------------------------------------------------------------------

fn running(dir: &TempDir) -> (Store, Client) {
    let (mut store, _) = Store::open(StoreConfig::new(dir.path())).unwrap();
    let doors = store.start(vec![Box::new(|| {})]).unwrap();
    assert_eq!(doors.len(), 1, "the client's is its own");
    let client = store.client();
    (store, client)
}

#[test]
fn a_client_is_told_after_the_commit_and_in_the_order_of_its_calls() {
    let dir = tempdir().unwrap();
    let (store, client) = running(&dir);
    let (told, tell) = mpsc::channel();
    let then = |at: u64| {
        let (told, client) = (told.clone(), client.clone());
        move || {
            let times = client.view(|view| {
                let found = view.datapoints(ACCOUNT, channel_id(1), &everything())?;
                Ok(Vec::from_iter(found.rows.iter().map(|row| row.id.at_ms())))
            });
            told.send((at, times.unwrap())).unwrap();
        }
    };
    client.persist(vec![account(1, u64::MAX), channel(ACCOUNT, 1, &[])], then(0));
    for at in 1..=100 {
        client.persist(vec![datapoint(1, at, "")], then(at));
    }
    for expected in 0..=100 {
        let (at, times) = tell.recv().unwrap();
        assert_eq!(at, expected);
        assert!(
            times.len() as u64 >= at && times.is_sorted(),
            "it is told before it can be seen"
        );
    }
    // Whoever is told may come back at once, with nothing too.
    let (again, done) = (client.clone(), told.clone());
    client.persist(vec![channel(ACCOUNT, 2, &[])], move || {
        let done = done.clone();
        let next = again.clone();
        again.persist(vec![channel(ACCOUNT, 3, &[])], move || {
            next.persist(Vec::new(), move || done.send((777, Vec::new())).unwrap());
        });
    });
    assert_eq!(tell.recv().unwrap().0, 777);
    client.persist(vec![datapoint(9, 1, "")], || {});
    let report = store.stop();
    assert_eq!((report.waiting_records, report.dropped_datapoints), (0, 1));
}

#[test]
fn a_client_is_used_by_many_threads_beside_the_cores() {
    let dir = tempdir().unwrap();
    let (store, client) = running(&dir);
    let (done, wait) = mpsc::channel();
    client.persist(vec![account(1, u64::MAX), channel(ACCOUNT, 1, &[])], || {});
    std::thread::scope(|scope| {
        for thread in 0..4u16 {
            let (client, done) = (client.clone(), done.clone());
            scope.spawn(move || {
                for at in 0..200u32 {
                    let id = DatapointId::new(1 + u64::from(at), thread, at);
                    let done = done.clone();
                    client.persist(vec![datapoint_of(ACCOUNT, 1, id, "", None)], move || {
                        done.send(()).unwrap()
                    });
                    let usage = client.view(|view| view.usage(ACCOUNT)).unwrap();
                    assert!(usage.count <= 800);
                }
            });
        }
    });
    (0..800).for_each(|_| wait.recv().unwrap());
    assert_eq!(client.view(|view| view.usage(ACCOUNT)).unwrap(), usage(800));
    assert_eq!(store.stop().waiting_records, 0);
}

#[test]
fn nobody_is_told_of_what_the_disk_does_not_take_and_the_directory_is_free_again() {
    let dir = tempdir().unwrap();
    let (store, client) = running(&dir);
    store.fail_with((0..50).map(|_| Fault::Disk(std::io::Error::from_raw_os_error(28))));
    let (told, tell) = mpsc::channel::<()>();
    client.persist(vec![account(1, u64::MAX)], move || told.send(()).unwrap());
    let report = store.stop();
    assert_eq!(report.waiting_records, 1);
    drop(client);
    // The closure is dropped with the last client: it is neither called nor kept.
    tell.recv().unwrap_err();
    let (stored, _) = open(dir.path()).0.load(0).unwrap();
    assert_eq!(stored.accounts, []);
}

// --- without a broker ------------------------------------------------------------------------------------------------

#[test]
fn a_store_is_changed_without_a_broker_and_not_beside_one() {
    let dir = tempdir().unwrap();
    let inner = dir.path().join("data");
    let change = |config: StoreConfig| {
        change_offline::<_, StoreError>(config, |stored| {
            let next = stored.newest_account + 1;
            Ok((vec![account(next, u64::MAX)], next))
        })
    };
    for expected in 1..=3 {
        assert_eq!(change(StoreConfig::new(&inner)).unwrap(), expected);
    }
    #[derive(Debug)]
    struct No;
    impl From<StoreError> for No {
        fn from(error: StoreError) -> No {
            panic!("{error}")
        }
    }
    let refused = change_offline(StoreConfig::new(&inner), |_| Err::<(Vec<Record>, ()), _>(No));
    refused.unwrap_err();
    let (store, stored) = Store::open(StoreConfig::new(&inner)).unwrap();
    assert_eq!(stored.accounts.len(), 3);
    let error = change(StoreConfig::new(&inner)).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    assert_eq!(change(StoreConfig::new(&inner)).unwrap(), 4);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for file in std::fs::read_dir(&inner).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_change_without_a_broker_grows_the_map() {
    let dir = tempdir().unwrap();
    let config = StoreConfig {
        map_bytes: 256 << 10,
        ..StoreConfig::new(dir.path())
    };
    let records = (1..=5_000).map(|id| account(id, u64::MAX)).collect();
    change_offline::<_, StoreError>(config, |_| Ok((records, ()))).unwrap();
    assert_eq!(
        Lmdb::open(super::config(dir.path()))
            .unwrap()
            .load(0)
            .unwrap()
            .0
            .accounts
            .len(),
        5_000
    );
}

// --- with another process --------------------------------------------------------------------------------------------

const OF_THE_KILLED: u64 = 300;

#[test]
fn ingests_until_killed_child() {
    let Some(dir) = super::child_dir() else { return };
    let mut running = super::Running::new(&dir, 1);
    running.push(0, account(1, OF_THE_KILLED * bytes_of_one()));
    running.push(0, channel(ACCOUNT, 1, &[]));
    for at in 1.. {
        running.push(0, datapoint(1, at, TAGS[at as usize % TAGS.len()]));
        if at % 50 == 0 {
            running.push(0, tag_removed(1, "a"));
        }
        if at % 3 == 0 {
            running.doors[0].flush();
        }
        if running.doors[0].committed().is_some() {
            // Whatever was committed is told of here, in its own words.
            let newest = running.store.client().view(|view| {
                let last = DatapointRange {
                    newest_first: true,
                    rows_max: 1,
                    ..everything()
                };
                view.datapoints(ACCOUNT, channel_id(1), &last)
            });
            println!("newest {}", newest.unwrap().rows[0].id.at_ms());
        }
    }
}

/// Counts, limits and tags agree with the datapoints, whenever the process ends; what was seen is there.
#[test]
fn a_stream_survives_kill_9() {
    use std::io::BufRead;
    for lines in [2, 30, 90] {
        let dir = tempdir().unwrap();
        let mut process = super::child("platform::ingests_until_killed", dir.path())
            .spawn()
            .unwrap();
        let newest = std::io::BufReader::new(process.stdout.take().unwrap())
            .lines()
            .filter_map(|line| line.unwrap().strip_prefix("newest ")?.parse::<u64>().ok())
            .nth(lines)
            .unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let (lmdb, mut applier) = open(dir.path());
        assert_sound(&lmdb);
        let times = found_times(&lmdb);
        assert!(times.last() >= Some(&newest), "{newest} was there, {times:?}");
        assert!(times.len() as u64 <= OF_THE_KILLED);
        assert!(
            times.windows(2).all(|pair| pair[1] - pair[0] <= 2),
            "one of four is removed"
        );
        while applier.is_behind() {
            commit(&lmdb, &mut applier, &[]);
        }
        assert_eq!(found_times(&lmdb), times);
        assert_sound(&lmdb);
    }
}
