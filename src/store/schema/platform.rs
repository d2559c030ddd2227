//! What the tables of the device platform hold, byte for byte.
//!
//! Holds   - the datapoints of a channel lie under the number of its stream, which no other channel ever gets, not even one
//!           that is created anew under the same id: what is left of a removed channel is nobody's, and goes when there is time;
//!         - the generation of a tag grows when the tag is removed: datapoints of an earlier one are dead where they lie;
//!         - what is rare and will grow (an account, a device, a channel, an event) is MessagePack with names.
//!
//! ```text
//! table          key                                        body of the value
//! accounts       account u32                                Account as MessagePack
//! devices        account u32, device id                     Device as MessagePack
//! states         account u32, device id                     time in ms u64, JSON
//! channels       account u32, channel u32                   stream u64, Channel as MessagePack
//! tags           stream u64, tag                            generation u32, newest datapoint 12, count u64, bytes u64
//! datapoints     stream u64, datapoint id 12                generation of the tag as LEB128, DatapointRow
//! usage          account u32                                count u64, bytes u64
//! events         account u32, event u32                     Event as MessagePack
//! purges         1, account u32                             -                  all of a removed account
//!                2, stream u64                              -                  all of a removed channel
//!                3, stream u64, tag                         generation u32, next datapoint 12, last datapoint 12
//!                                                                              what is dead of a removed tag
//! ```
//!
//! The tag `""` stands for the datapoints without one. Ids and tags are short enough for a key as they are.

use crate::limits::NAME_CHARS_MAX;
use crate::registry::access::AccountId;
use crate::registry::account::Account;
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::device::{Device, DeviceState};
use crate::registry::event::Event;
use crate::store::streams::Usage;

use super::{CRC_BYTES, DecodeError, Fields, KEY_BYTES_MAX, begin, body, named, seal};

const _: () = assert!(DATAPOINT_KEY_BYTES + 4 * NAME_CHARS_MAX < KEY_BYTES_MAX);

/// The datapoints of one channel for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamNumber(pub u64);

/// How often a tag of a stream was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u32);

// --- keys ------------------------------------------------------------------------------------------------------------

const STREAM_KEY_BYTES: usize = 8;
const DATAPOINT_KEY_BYTES: usize = STREAM_KEY_BYTES + DatapointId::LEN;

pub fn account_key(account: AccountId) -> [u8; 4] {
    account.0.to_be_bytes()
}

pub fn decode_account_key(key: &[u8]) -> Result<AccountId, DecodeError> {
    Ok(AccountId(u32::from_be_bytes(
        key.try_into().map_err(|_| DecodeError::Key)?,
    )))
}

/// Of `devices` and `states`.
pub fn device_key(account: AccountId, device: &str, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&account_key(account));
    key.extend_from_slice(device.as_bytes());
}

pub fn decode_device_key(key: &[u8]) -> Result<(AccountId, &str), DecodeError> {
    let (account, device) = key.split_first_chunk::<4>().ok_or(DecodeError::Key)?;
    let device = std::str::from_utf8(device).map_err(|_| DecodeError::Text)?;
    Ok((AccountId(u32::from_be_bytes(*account)), device))
}

fn numbered_key(account: AccountId, number: u32) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&account_key(account));
    key[4..].copy_from_slice(&number.to_be_bytes());
    key
}

fn decode_numbered_key(key: &[u8]) -> Result<(AccountId, u32), DecodeError> {
    let (account, number) = key.split_first_chunk::<4>().ok_or(DecodeError::Key)?;
    let number = u32::from_be_bytes(number.try_into().map_err(|_| DecodeError::Key)?);
    Ok((AccountId(u32::from_be_bytes(*account)), number))
}

pub fn channel_key(account: AccountId, channel: ChannelId) -> [u8; 8] {
    numbered_key(account, channel.number())
}

pub fn decode_channel_key(key: &[u8]) -> Result<(AccountId, ChannelId), DecodeError> {
    let (account, number) = decode_numbered_key(key)?;
    Ok((account, ChannelId::new(number).ok_or(DecodeError::Key)?))
}

pub fn event_key(account: AccountId, event: u32) -> [u8; 8] {
    numbered_key(account, event)
}

pub fn decode_event_key(key: &[u8]) -> Result<(AccountId, u32), DecodeError> {
    decode_numbered_key(key)
}

/// What the keys of all rows of a stream begin with.
pub fn stream_prefix(stream: StreamNumber) -> [u8; STREAM_KEY_BYTES] {
    stream.0.to_be_bytes()
}

pub fn tag_key(stream: StreamNumber, tag: &str, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&stream_prefix(stream));
    key.extend_from_slice(tag.as_bytes());
}

pub fn decode_tag_key(key: &[u8]) -> Result<(StreamNumber, &str), DecodeError> {
    let (stream, tag) = key.split_first_chunk::<STREAM_KEY_BYTES>().ok_or(DecodeError::Key)?;
    let tag = std::str::from_utf8(tag).map_err(|_| DecodeError::Text)?;
    Ok((StreamNumber(u64::from_be_bytes(*stream)), tag))
}

pub fn datapoint_key(stream: StreamNumber, id: DatapointId) -> [u8; DATAPOINT_KEY_BYTES] {
    let mut key = [0; DATAPOINT_KEY_BYTES];
    key[..STREAM_KEY_BYTES].copy_from_slice(&stream_prefix(stream));
    key[STREAM_KEY_BYTES..].copy_from_slice(&id.0);
    key
}

pub fn decode_datapoint_key(key: &[u8]) -> Result<(StreamNumber, DatapointId), DecodeError> {
    let (stream, id) = key.split_first_chunk::<STREAM_KEY_BYTES>().ok_or(DecodeError::Key)?;
    let id = DatapointId(id.try_into().map_err(|_| DecodeError::Key)?);
    Ok((StreamNumber(u64::from_be_bytes(*stream)), id))
}

/// What is to be deleted. In the order of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    Account(AccountId),
    Stream(StreamNumber),
    Tag(StreamNumber, Box<str>),
}

const PURGE_ACCOUNT: u8 = 1;
const PURGE_STREAM: u8 = 2;
const PURGE_TAG: u8 = 3;

pub fn purge_key(purge: &Purge, key: &mut Vec<u8>) {
    key.clear();
    match purge {
        Purge::Account(account) => {
            key.push(PURGE_ACCOUNT);
            key.extend_from_slice(&account_key(*account));
        }
        Purge::Stream(stream) => {
            key.push(PURGE_STREAM);
            key.extend_from_slice(&stream_prefix(*stream));
        }
        Purge::Tag(stream, tag) => {
            key.extend_from_slice(&purge_tags_prefix(*stream));
            key.extend_from_slice(tag.as_bytes());
        }
    }
}

/// What the keys of all removed tags of a stream begin with.
pub fn purge_tags_prefix(stream: StreamNumber) -> [u8; 1 + STREAM_KEY_BYTES] {
    let mut prefix = [PURGE_TAG; 1 + STREAM_KEY_BYTES];
    prefix[1..].copy_from_slice(&stream_prefix(stream));
    prefix
}

pub fn decode_purge_key(key: &[u8]) -> Result<Purge, DecodeError> {
    let (kind, rest) = key.split_first().ok_or(DecodeError::Key)?;
    match *kind {
        PURGE_ACCOUNT => Ok(Purge::Account(decode_account_key(rest)?)),
        PURGE_STREAM => match decode_tag_key(rest)? {
            (stream, "") => Ok(Purge::Stream(stream)),
            _ => Err(DecodeError::Key),
        },
        PURGE_TAG => {
            let (stream, tag) = decode_tag_key(rest)?;
            Ok(Purge::Tag(stream, tag.into()))
        }
        _ => Err(DecodeError::Key),
    }
}

// --- values ----------------------------------------------------------------------------------------------------------

fn encode_named<T: serde::Serialize>(key: &[u8], head: &[u8], named: &T, value: &mut Vec<u8>) {
    begin(value);
    value.extend_from_slice(head);
    rmp_serde::encode::write_named(value, named).expect("texts and numbers can be written to memory");
    seal(key, value);
}

pub fn encode_account(key: &[u8], account: &Account, value: &mut Vec<u8>) {
    encode_named(key, &[], account, value);
}

pub fn decode_account(key: &[u8], value: &[u8]) -> Result<Account, DecodeError> {
    let account: Account = named(body(key, value)?)?;
    match decode_account_key(key)? == account.id {
        true => Ok(account),
        false => Err(DecodeError::Field),
    }
}

pub fn encode_device(key: &[u8], device: &Device, value: &mut Vec<u8>) {
    encode_named(key, &[], device, value);
}

pub fn decode_device(key: &[u8], value: &[u8]) -> Result<Device, DecodeError> {
    named(body(key, value)?)
}

/// What a start needs of a device: the rest of its row is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct DeviceStanding {
    pub is_enabled: bool,
    pub channel: Option<ChannelId>,
}

pub fn decode_device_standing(key: &[u8], value: &[u8]) -> Result<DeviceStanding, DecodeError> {
    named(body(key, value)?)
}

pub fn encode_state(key: &[u8], state: &DeviceState, value: &mut Vec<u8>) {
    begin(value);
    value.extend_from_slice(&state.at_ms.to_be_bytes());
    value.extend_from_slice(state.json.as_bytes());
    seal(key, value);
}

pub fn decode_state(key: &[u8], value: &[u8]) -> Result<DeviceState, DecodeError> {
    let mut fields = body(key, value)?;
    let at_ms = fields.u64()?;
    let json = std::str::from_utf8(fields.0).map_err(|_| DecodeError::Text)?.into();
    Ok(DeviceState { json, at_ms })
}

pub fn encode_channel(key: &[u8], stream: StreamNumber, channel: &Channel, value: &mut Vec<u8>) {
    encode_named(key, &stream_prefix(stream), channel, value);
}

pub fn decode_channel(key: &[u8], value: &[u8]) -> Result<(StreamNumber, Channel), DecodeError> {
    let mut fields = body(key, value)?;
    let stream = StreamNumber(fields.u64()?);
    Ok((stream, named(fields)?))
}

/// Only where the datapoints of a channel are.
pub fn decode_channel_stream(key: &[u8], value: &[u8]) -> Result<StreamNumber, DecodeError> {
    Ok(StreamNumber(body(key, value)?.u64()?))
}

pub fn encode_event(key: &[u8], event: &Event, value: &mut Vec<u8>) {
    encode_named(key, &[], event, value);
}

pub fn decode_event(key: &[u8], value: &[u8]) -> Result<Event, DecodeError> {
    let event: Event = named(body(key, value)?)?;
    match decode_event_key(key)?.1 == event.event_id {
        true => Ok(event),
        false => Err(DecodeError::Field),
    }
}

/// What a stream has of one tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    pub generation: Generation,
    /// The greatest id that a datapoint of it ever had.
    pub newest: DatapointId,
    pub usage: Usage,
}

pub fn encode_tag(key: &[u8], tag: &Tag, value: &mut Vec<u8>) {
    begin(value);
    value.extend_from_slice(&tag.generation.0.to_be_bytes());
    value.extend_from_slice(&tag.newest.0);
    push_usage(&tag.usage, value);
    seal(key, value);
}

pub fn decode_tag(key: &[u8], value: &[u8]) -> Result<Tag, DecodeError> {
    let mut fields = body(key, value)?;
    let tag = Tag {
        generation: Generation(fields.u32()?),
        newest: DatapointId(fields.take()?),
        usage: usage(&mut fields)?,
    };
    fields.end()?;
    // A tag without datapoints has no row.
    match tag.usage.count > 0 {
        true => Ok(tag),
        false => Err(DecodeError::Field),
    }
}

fn push_usage(usage: &Usage, value: &mut Vec<u8>) {
    value.extend_from_slice(&usage.count.to_be_bytes());
    value.extend_from_slice(&usage.bytes.to_be_bytes());
}

fn usage(fields: &mut Fields<'_>) -> Result<Usage, DecodeError> {
    Ok(Usage {
        count: fields.u64()?,
        bytes: fields.u64()?,
    })
}

pub fn encode_usage(key: &[u8], usage: &Usage, value: &mut Vec<u8>) {
    begin(value);
    push_usage(usage, value);
    seal(key, value);
}

pub fn decode_usage(key: &[u8], value: &[u8]) -> Result<Usage, DecodeError> {
    let mut fields = body(key, value)?;
    let usage = usage(&mut fields)?;
    fields.end()?;
    Ok(usage)
}

/// What a datapoint counts for in the usage of its account: key and value, in the first generation of its tag.
pub fn datapoint_bytes(row: &[u8]) -> u64 {
    (DATAPOINT_KEY_BYTES + 2 + row.len() + CRC_BYTES) as u64
}

/// `row`: a [`DatapointRow`], packed.
pub fn encode_datapoint(key: &[u8], generation: Generation, row: &[u8], value: &mut Vec<u8>) {
    begin(value);
    let mut rest = generation.0;
    while rest >= 0x80 {
        value.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    value.push(rest as u8);
    value.extend_from_slice(row);
    seal(key, value);
}

/// A datapoint as it lies in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredDatapoint<'a> {
    /// Of its tag, when it came.
    pub generation: Generation,
    pub row: DatapointRow<'a>,
    /// What it counts for.
    pub bytes: u64,
}

pub fn decode_datapoint<'a>(key: &[u8], value: &'a [u8]) -> Result<StoredDatapoint<'a>, DecodeError> {
    let mut fields = body(key, value)?;
    let mut generation = 0;
    for shift in (0..).step_by(7) {
        let byte = fields.u8()?;
        let bits = u32::from(byte & 0x7f);
        // No number begins with a digit of 0, but 0 itself.
        generation |= bits
            .checked_shl(shift)
            .filter(|moved| moved >> shift == bits && (byte != 0 || shift == 0))
            .ok_or(DecodeError::Field)?;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(StoredDatapoint {
        generation: Generation(generation),
        row: DatapointRow::unpack(fields.0).ok_or(DecodeError::Text)?,
        bytes: datapoint_bytes(fields.0),
    })
}

/// Of a removed tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagPurge {
    /// Datapoints of earlier generations are dead.
    pub generation: Generation,
    /// Those that were not looked at yet are from here on ...
    pub next: DatapointId,
    /// ... up to here.
    pub last: DatapointId,
}

pub fn encode_tag_purge(key: &[u8], purge: &TagPurge, value: &mut Vec<u8>) {
    begin(value);
    value.extend_from_slice(&purge.generation.0.to_be_bytes());
    value.extend_from_slice(&purge.next.0);
    value.extend_from_slice(&purge.last.0);
    seal(key, value);
}

pub fn decode_tag_purge(key: &[u8], value: &[u8]) -> Result<TagPurge, DecodeError> {
    let mut fields = body(key, value)?;
    let purge = TagPurge {
        generation: Generation(fields.u32()?),
        next: DatapointId(fields.take()?),
        last: DatapointId(fields.take()?),
    };
    fields.end()?;
    Ok(purge)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{assert_layout, resealed, value};
    use super::*;
    use crate::registry::account::Token;
    use crate::registry::event::{NotifyType, Operator};

    const ACCOUNT: AccountId = AccountId(0x0102);
    const STREAM: StreamNumber = StreamNumber(0x0304);

    fn text(text: &str) -> String {
        let head = match text.len() {
            length @ 0..32 => format!("{:02x}", 0xa0 + length),
            length => format!("d9{length:02x}"),
        };
        head + &hex::encode(text)
    }

    fn channel() -> ChannelId {
        ChannelId::new(3).unwrap()
    }

    #[test]
    fn keys_are_laid_out_as_written_in_the_head() {
        let id = DatapointId::new(5, 6, 7);
        let mut key = Vec::new();
        device_key(ACCOUNT, "pump", &mut key);
        assert_eq!(hex::encode(&key), "0000010270756d70");
        assert_eq!(decode_device_key(&key), Ok((ACCOUNT, "pump")));
        assert_eq!(hex::encode(channel_key(ACCOUNT, channel())), "0000010200000003");
        assert_eq!(
            decode_channel_key(&channel_key(ACCOUNT, channel())),
            Ok((ACCOUNT, channel()))
        );
        assert_eq!(decode_channel_key(&event_key(ACCOUNT, u32::MAX)), Err(DecodeError::Key));
        assert_eq!(decode_event_key(&event_key(ACCOUNT, 9)), Ok((ACCOUNT, 9)));
        tag_key(STREAM, "in", &mut key);
        assert_eq!(hex::encode(&key), "0000000000000304696e");
        assert_eq!(decode_tag_key(&key), Ok((STREAM, "in")));
        let datapoint = datapoint_key(STREAM, id);
        assert_eq!(hex::encode(datapoint), "0000000000000304000000000005000600000007");
        assert_eq!(decode_datapoint_key(&datapoint), Ok((STREAM, id)));
        for (purge, expected) in [
            (Purge::Account(ACCOUNT), "0100000102"),
            (Purge::Stream(STREAM), "020000000000000304"),
            (Purge::Tag(STREAM, "".into()), "030000000000000304"),
            (Purge::Tag(STREAM, "in".into()), "030000000000000304696e"),
        ] {
            purge_key(&purge, &mut key);
            assert_eq!(hex::encode(&key), expected);
            assert_eq!(decode_purge_key(&key), Ok(purge));
        }
        for bad in [&[][..], &[4, 0, 0, 0, 0], &[1, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0, 1, 65]] {
            assert_eq!(decode_purge_key(bad), Err(DecodeError::Key));
        }
        for bad in [&b"123"[..], b"1234567"] {
            assert_eq!(decode_channel_key(bad), Err(DecodeError::Key));
            assert_eq!(decode_datapoint_key(bad), Err(DecodeError::Key));
            assert_eq!(decode_tag_key(bad), Err(DecodeError::Key));
        }
        assert_eq!(decode_device_key(b"1234\xff"), Err(DecodeError::Text));
    }

    #[test]
    fn accounts_devices_channels_and_events_are_maps_with_names() {
        let key = account_key(ACCOUNT);
        let token = |byte| Token::from_random([byte; 16]);
        let account = Account::new(ACCOUNT, "U000258", token(0xab), token(0xcd), 7);
        let encoded = value(|value| encode_account(&key, &account, value));
        let expected = [
            "01 8f".to_owned(),
            text("id") + "cd0102",
            text("user_id") + &text("U000258"),
            text("api_token") + &text(&"AB".repeat(16)),
            text("device_token") + &text(&"CD".repeat(16)),
            text("is_suspended") + "c2",
            text("email1") + "a0",
            text("email2") + "a0",
            text("organization") + "a0",
            text("locale") + &text("UTC"),
            text("user_alias") + "a0",
            text("default_channel") + "c0",
            text("devices_max") + "cd03e8",
            text("storage_bytes_max") + "cf0000000138800000",
            text("next_event") + "01",
            text("created_ms") + "07",
        ];
        assert_layout(&key, &encoded, &expected.concat());
        assert_eq!(decode_account(&key, &encoded), Ok(account));

        let key = b"\0\0\x01\x02pump";
        let device = Device::new(Some(channel()), 9);
        let encoded = value(|value| encode_device(key, &device, value));
        let expected = [
            "01 87".to_owned(),
            text("description") + "a0",
            text("is_enabled") + "c3",
            text("channel") + "03",
            text("device_type") + "a0",
            text("location") + "a0",
            text("manufacturer") + "a0",
            text("activated_ms") + "09",
        ];
        assert_layout(key, &encoded, &expected.concat());
        assert_eq!(decode_device(key, &encoded), Ok(device));
        let standing = DeviceStanding {
            is_enabled: true,
            channel: Some(channel()),
        };
        assert_eq!(decode_device_standing(key, &encoded), Ok(standing));

        let key = channel_key(ACCOUNT, channel());
        let entry = Channel {
            name: "water".to_owned(),
            tags: [("in".into(), None), ("out".into(), Some("outlet".to_owned()))].into(),
        };
        let encoded = value(|value| encode_channel(&key, STREAM, &entry, value));
        let tags = text("in") + "c0" + &text("out") + &text("outlet");
        let expected =
            "01 0000000000000304 82".to_owned() + &text("name") + &text("water") + &text("tags") + "82" + &tags;
        assert_layout(&key, &encoded, &expected);
        assert_eq!(decode_channel(&key, &encoded), Ok((STREAM, entry)));
        assert_eq!(decode_channel_stream(&key, &encoded), Ok(STREAM));

        let key = event_key(ACCOUNT, 4);
        let event = Event {
            event_id: 4,
            channel: Some(channel()),
            notify_type: NotifyType::Email,
            operator: Operator::GreaterOrEqual,
            source: "temp".to_owned(),
            ..Event::default()
        };
        let encoded = value(|value| encode_event(&key, &event, value));
        let expected = [
            "01 8a".to_owned(),
            text("event_id") + "04",
            text("channel") + "03",
            text("description") + "a0",
            text("notify_type") + &text("email"),
            text("post_url") + "a0",
            text("is_enabled") + "c2",
            text("source") + &text("temp"),
            text("operator") + &text(">="),
            text("threshold") + "a0",
            text("interval_ms") + "00",
        ];
        assert_layout(&key, &encoded, &expected.concat());
        assert_eq!(decode_event(&key, &encoded), Ok(event.clone()));
        let elsewhere = event_key(ACCOUNT, 5);
        let misplaced = value(|value| encode_event(&elsewhere, &event, value));
        assert_eq!(decode_event(&elsewhere, &misplaced), Err(DecodeError::Field));
    }

    #[test]
    fn states_counts_and_marks_are_laid_out_as_written_in_the_head() {
        let key = b"\0\0\x01\x02pump";
        let state = DeviceState {
            json: r#"{"a":1}"#.into(),
            at_ms: 9,
        };
        let encoded = value(|value| encode_state(key, &state, value));
        assert_layout(key, &encoded, "01 0000000000000009 7b2261223a317d");
        assert_eq!(decode_state(key, &encoded), Ok(state));

        let usage = Usage { count: 2, bytes: 300 };
        let key = account_key(ACCOUNT);
        let encoded = value(|value| encode_usage(&key, &usage, value));
        assert_layout(&key, &encoded, "01 0000000000000002 000000000000012c");
        assert_eq!(decode_usage(&key, &encoded), Ok(usage));

        let mut key = Vec::new();
        tag_key(STREAM, "in", &mut key);
        let mut tag = Tag {
            generation: Generation(5),
            newest: DatapointId::new(5, 6, 7),
            usage,
        };
        let encoded = value(|value| encode_tag(&key, &tag, value));
        let expected = "01 00000005 000000000005000600000007 0000000000000002 000000000000012c";
        assert_layout(&key, &encoded, expected);
        assert_eq!(decode_tag(&key, &encoded), Ok(tag));
        tag.usage.count = 0;
        let encoded = value(|value| encode_tag(&key, &tag, value));
        assert_eq!(decode_tag(&key, &encoded), Err(DecodeError::Field));

        let purge = TagPurge {
            generation: Generation(6),
            next: DatapointId::new(1, 0, 0),
            last: DatapointId::new(2, 0, 0),
        };
        purge_key(&Purge::Tag(STREAM, "in".into()), &mut key);
        let encoded = value(|value| encode_tag_purge(&key, &purge, value));
        assert_layout(
            &key,
            &encoded,
            "01 00000006 000000000001000000000000 000000000002000000000000",
        );
        assert_eq!(decode_tag_purge(&key, &encoded), Ok(purge));
    }

    #[test]
    fn a_datapoint_has_the_generation_of_its_tag_and_is_counted_without_it() {
        let key = datapoint_key(STREAM, DatapointId::new(5, 6, 7));
        let row = DatapointRow {
            tag: "in",
            device: "pump",
            value: r#"{"value1":1}"#,
        };
        let packed = row.pack();
        let hex_row = hex::encode(&packed);
        for (generation, expected) in [
            (0, "00"),
            (0x7f, "7f"),
            (0x80, "8001"),
            (0x4000, "808001"),
            (u32::MAX, "ffffffff0f"),
        ] {
            let generation = Generation(generation);
            let encoded = value(|value| encode_datapoint(&key, generation, &packed, value));
            assert_layout(&key, &encoded, &format!("01 {expected} {hex_row}"));
            let bytes = datapoint_bytes(&packed);
            let decoded = StoredDatapoint { generation, row, bytes };
            assert_eq!(decode_datapoint(&key, &encoded), Ok(decoded));
            if generation == Generation(0) {
                assert_eq!(bytes, (key.len() + encoded.len()) as u64);
            }
        }
        for (body, error) in [
            ("01", DecodeError::Short),
            ("0180", DecodeError::Short),
            ("018000", DecodeError::Field),
            ("01ffffffff10", DecodeError::Field),
            ("01ffffffffff01", DecodeError::Field),
            ("0100", DecodeError::Text),
            ("01000a0aff", DecodeError::Text),
        ] {
            let damaged = resealed(&key, &hex::decode(body).unwrap());
            assert_eq!(decode_datapoint(&key, &damaged), Err(error), "{body}");
        }
    }
}
