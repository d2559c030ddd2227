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
        generation |= bits
            .checked_shl(shift)
            .filter(|moved| moved >> shift == bits)
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
