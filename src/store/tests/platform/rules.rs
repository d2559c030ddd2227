//! The platform's tables, rule by rule; values that are damaged; files of the schema before.

use tempfile::{TempDir, tempdir};

use super::super::{assert_sound, commit, damage, open, queued, sorted, started};
use super::{
    ACCOUNT, account, bytes_of_one, changed, channel, channel_id, channel_removed, datapoint, datapoint_of, device,
    event, everything, found, found_times, reported, tag_removed, usage,
};
use crate::limits::STORE_PURGE_ROWS_MAX;
use crate::mqtt::packet::PacketId;
use crate::registry::access::AccountId;
use crate::registry::datapoint::DatapointId;
use crate::registry::device::{Device, DeviceChange};
use crate::shard::record::{Origin, Record, SessionNumber};
use crate::store::inspect::{inspect, look_at};
use crate::store::lmdb::{Applier, Fault, Lmdb, Table};
use crate::store::schema::platform::{self, StreamNumber};
use crate::store::streams::{DatapointRange, TagUsage, Usage};
use crate::store::writer::{Store, StoreConfig};

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
        channel_removed(ACCOUNT, 2),
        tag_removed(1, "inlet"),
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
    commit(&lmdb, &mut applier, &[started(1), queued(&[1], 1, b"payload")]);
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
