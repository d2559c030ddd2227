//! The device platform on disk: what its tests are made of.

mod client;
pub mod model;
mod rules;

use crate::registry::access::AccountId;
use crate::registry::account::{Account, Token};
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceChange, DeviceState};
use crate::registry::event::Event;
use crate::shard::record::{Datapoint, Origin, Record};
use crate::store::lmdb::Lmdb;
use crate::store::schema::platform::datapoint_bytes;
use crate::store::streams::{DatapointRange, Found, Usage};

// --- records ---------------------------------------------------------------------------------------------------------

const ACCOUNT: AccountId = AccountId(1);
const TAGS: [&str; 4] = ["", "a", "inlet", "inlet-2"];

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

fn found_times(lmdb: &Lmdb) -> Vec<u64> {
    let found = found(lmdb, ACCOUNT, 1, &everything());
    found.rows.iter().map(|row| row.id.at_ms()).collect()
}

fn usage(count: u64) -> Usage {
    Usage {
        count,
        bytes: count * bytes_of_one(),
    }
}
