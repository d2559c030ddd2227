//! What the tables of the store hold, byte for byte: pure functions between keys, values and what they mean.
//!
//! Called  by `lmdb` (writing, reading, loading) and by `inspect`.
//! Holds   - a value is a version byte, a body, and the CRC-32 of key, version and body: a value that was damaged, or that
//!           lies under a damaged key, is found when it is read;
//!         - bytes from disk never panic: what is short, long, of another version or no text is a [`DecodeError`];
//!         - the layouts that a message passes through (queue entry, message, backlog, subscription, retained message) are
//!           fixed: no names, no lengths that the value has anyway, decoded in place. What is rare and will grow (a Session)
//!           is MessagePack with names, so that a field can be added and older values still read.
//!
//! ```text
//! table          key                                        body of the value
//! meta           name                                       u64
//! sessions       session u64                                {account, client_id} as MessagePack
//! subscriptions  session u64, filter*                       qos u8, filter where its key has a part of it only
//! received       session u64, packet id u16                 -
//! away           session u64                                second of Unix time u64
//! queues         session u64, sequence u64                  flags u8, then topic length u16, topic, payload
//!                                                                     or message id u64, message length u32
//! messages       message id u64                             topic length u16, topic, payload
//! references     message id u64                             entries that hold it u32
//! backlogs       session u64                                first u64, end u64, entries u64, bytes u64
//! retained       topic*                                     qos u8, topic length u16, topic where its key has a part only, payload
//! origins        publisher u64, packet id u16, holder u64   -
//! ended          session u64                                -
//! ```
//! The tables of the device platform are in [`platform`].
//!
//! Integers are big-endian, so that keys sort as their numbers do. \* LMDB's keys end at 511 bytes: a text that would make
//! its key that long or longer is cut, and its SHA-256 fills the key to exactly 511; the value has the whole text.

pub mod platform;

use sha2::{Digest, Sha256};

use crate::mqtt::packet::{PacketId, QoS};
use crate::shard::record::{Backlog, Origin, SessionNumber};

/// The layout of the whole file. A file with a greater number is refused: whoever wrote it knows more than this build. One with
/// a smaller number is brought up to date when it is opened for writing: schema 2 has the tables of the device platform.
pub const SCHEMA: u64 = 2;
/// First byte of every value.
pub const VERSION: u8 = 1;
/// LMDB's longest key, as it is compiled.
pub const KEY_BYTES_MAX: usize = 511;

const CRC_BYTES: usize = 4;
const HASH_BYTES: usize = 32;

/// Names in the table `meta`.
pub const META_SCHEMA: &[u8] = b"schema";
/// The number of the next shared message.
pub const META_NEXT_MESSAGE: &[u8] = b"next_message";
/// The greatest number that a Session ever had.
pub const META_NEWEST_SESSION: &[u8] = b"newest_session";
/// The greatest number that a channel's stream ever had.
pub const META_NEWEST_STREAM: &[u8] = b"newest_stream";
/// When the newest datapoint came that there ever was, in milliseconds of Unix time.
pub const META_NEWEST_DATAPOINT: &[u8] = b"newest_datapoint_ms";
/// The greatest id that an account ever had.
pub const META_NEWEST_ACCOUNT: &[u8] = b"newest_account";

/// A message that several queue entries hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

/// Why bytes from disk are not what this build writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it is too short")]
    Short,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it has version {0}, this build reads version {VERSION}")]
    Version(u8),
    #[error("it goes on after its end")]
    Trailing,
    #[error("its key has a wrong shape")]
    Key,
    #[error("its text is not UTF-8, or not the text of its key")]
    Text,
    #[error("a field has a value that is never written")]
    Field,
    #[error("its MessagePack cannot be read")]
    Pack,
}

// --- keys ------------------------------------------------------------------------------------------------------------

pub fn session_key(session: SessionNumber) -> [u8; 8] {
    session.0.to_be_bytes()
}

pub fn decode_session_key(key: &[u8]) -> Result<SessionNumber, DecodeError> {
    Ok(SessionNumber(decode_u64_key(key)?))
}

pub fn message_key(id: MessageId) -> [u8; 8] {
    id.0.to_be_bytes()
}

pub fn decode_message_key(key: &[u8]) -> Result<MessageId, DecodeError> {
    Ok(MessageId(decode_u64_key(key)?))
}

fn decode_u64_key(key: &[u8]) -> Result<u64, DecodeError> {
    Ok(u64::from_be_bytes(key.try_into().map_err(|_| DecodeError::Key)?))
}

pub fn queue_key(session: SessionNumber, sequence: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&session.0.to_be_bytes());
    key[8..].copy_from_slice(&sequence.to_be_bytes());
    key
}

pub fn decode_queue_key(key: &[u8]) -> Result<(SessionNumber, u64), DecodeError> {
    let (session, sequence) = key.split_first_chunk::<8>().ok_or(DecodeError::Key)?;
    Ok((SessionNumber(u64::from_be_bytes(*session)), decode_u64_key(sequence)?))
}

pub fn received_key(session: SessionNumber, packet_id: PacketId) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&session.0.to_be_bytes());
    key[8..].copy_from_slice(&packet_id.get().to_be_bytes());
    key
}

pub fn decode_received_key(key: &[u8]) -> Result<(SessionNumber, PacketId), DecodeError> {
    let (session, packet_id) = key.split_first_chunk::<8>().ok_or(DecodeError::Key)?;
    let packet_id = u16::from_be_bytes(packet_id.try_into().map_err(|_| DecodeError::Key)?);
    Ok((
        SessionNumber(u64::from_be_bytes(*session)),
        PacketId::new(packet_id).ok_or(DecodeError::Key)?,
    ))
}

pub fn origin_key(origin: Origin, holder: SessionNumber) -> [u8; 18] {
    let mut key = [0; 18];
    key[..10].copy_from_slice(&received_key(origin.session, origin.packet_id));
    key[10..].copy_from_slice(&holder.0.to_be_bytes());
    key
}

pub fn decode_origin_key(key: &[u8]) -> Result<(Origin, SessionNumber), DecodeError> {
    let (origin, holder) = key.split_at_checked(10).ok_or(DecodeError::Key)?;
    let (session, packet_id) = decode_received_key(origin)?;
    Ok((Origin { session, packet_id }, decode_session_key(holder)?))
}

/// A text key as `key`, which has room for what comes before the text.
fn text_key(key: &mut Vec<u8>, text: &str) {
    if key.len() + text.len() < KEY_BYTES_MAX {
        key.extend_from_slice(text.as_bytes());
        return;
    }
    let part = KEY_BYTES_MAX - HASH_BYTES - key.len();
    key.extend_from_slice(&text.as_bytes()[..part]);
    key.extend_from_slice(&Sha256::digest(text.as_bytes()));
}

/// Whether a key has a part of its text only.
fn is_cut(key: &[u8]) -> bool {
    key.len() == KEY_BYTES_MAX
}

/// The whole text of a key, which begins at `at`; `kept` is what the value has of it.
fn key_text<'a>(key: &'a [u8], at: usize, kept: &'a [u8]) -> Result<&'a str, DecodeError> {
    let text = if is_cut(key) {
        let hash = &key[KEY_BYTES_MAX - HASH_BYTES..];
        if Sha256::digest(kept)[..] != *hash {
            return Err(DecodeError::Text);
        }
        kept
    } else if kept.is_empty() {
        key.get(at..).ok_or(DecodeError::Key)?
    } else {
        return Err(DecodeError::Trailing);
    };
    std::str::from_utf8(text).map_err(|_| DecodeError::Text)
}

pub fn subscription_key(session: SessionNumber, filter: &str, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&session.0.to_be_bytes());
    text_key(key, filter);
}

pub fn retained_key(topic: &str, key: &mut Vec<u8>) {
    key.clear();
    text_key(key, topic);
}

// --- values ----------------------------------------------------------------------------------------------------------

/// Begins a value in a buffer that is used again and again.
fn begin(value: &mut Vec<u8>) {
    value.clear();
    value.push(VERSION);
}

fn seal(key: &[u8], value: &mut Vec<u8>) {
    let crc = crc(key, value);
    value.extend_from_slice(&crc.to_be_bytes());
}

fn crc(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// The body of a value.
fn body<'a>(key: &[u8], value: &'a [u8]) -> Result<Fields<'a>, DecodeError> {
    let (sealed, stored_crc) = value.split_last_chunk::<CRC_BYTES>().ok_or(DecodeError::Short)?;
    let (version, body) = sealed.split_first().ok_or(DecodeError::Short)?;
    if crc(key, sealed) != u32::from_be_bytes(*stored_crc) {
        return Err(DecodeError::Checksum);
    }
    // A later version keeps its checksum in this place.
    match *version {
        VERSION => Ok(Fields(body)),
        other => Err(DecodeError::Version(other)),
    }
}

/// What is left of a value's body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// Bytes with their length before them, in two bytes.
    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u16::from_be_bytes(self.take()?);
        let (bytes, rest) = self.0.split_at_checked(length.into()).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Text)
    }

    fn qos(&mut self) -> Result<QoS, DecodeError> {
        QoS::from_bits(self.u8()?).ok_or(DecodeError::Field)
    }

    fn end(self) -> Result<(), DecodeError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(DecodeError::Trailing),
        }
    }
}

fn push_text(value: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("an MQTT string has at most 65,535 bytes");
    value.extend_from_slice(&length.to_be_bytes());
    value.extend_from_slice(text.as_bytes());
}

/// For what is said by being there: `received`, `origins`, `ended`.
pub fn encode_mark(key: &[u8], value: &mut Vec<u8>) {
    begin(value);
    seal(key, value);
}

pub fn decode_mark(key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    body(key, value)?.end()
}

/// A number: `meta`, `away`.
pub fn encode_number(key: &[u8], number: u64, value: &mut Vec<u8>) {
    begin(value);
    value.extend_from_slice(&number.to_be_bytes());
    seal(key, value);
}

pub fn decode_number(key: &[u8], value: &[u8]) -> Result<u64, DecodeError> {
    let mut fields = body(key, value)?;
    let number = fields.u64()?;
    fields.end()?;
    Ok(number)
}

/// A count of entries: `references`.
pub fn encode_references(key: &[u8], count: u32, value: &mut Vec<u8>) {
    begin(value);
    value.extend_from_slice(&count.to_be_bytes());
    seal(key, value);
}

pub fn decode_references(key: &[u8], value: &[u8]) -> Result<u32, DecodeError> {
    let mut fields = body(key, value)?;
    let count = fields.u32()?;
    fields.end()?;
    Ok(count)
}

/// What a Session is, beside what has a table of its own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Session {
    pub account: u32,
    pub client_id: Box<str>,
}

pub fn encode_session(key: &[u8], session: &Session, value: &mut Vec<u8>) {
    begin(value);
    rmp_serde::encode::write_named(value, session).expect("a number and a text can be written to memory");
    seal(key, value);
}

pub fn decode_session(key: &[u8], value: &[u8]) -> Result<Session, DecodeError> {
    named(body(key, value)?)
}

/// The rest of a body as MessagePack.
fn named<T: serde::de::DeserializeOwned>(Fields(packed): Fields<'_>) -> Result<T, DecodeError> {
    let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(packed));
    let named = T::deserialize(&mut deserializer).map_err(|_| DecodeError::Pack)?;
    // The deserializer stops after the map and does not mind what follows.
    match deserializer.position() == packed.len() as u64 {
        true => Ok(named),
        false => Err(DecodeError::Trailing),
    }
}

/// One message in one Session's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub qos: QoS,
    pub retain: bool,
    /// PUBREC came for it.
    pub released: bool,
    pub message: EntryMessage<'a>,
}

/// Where the message of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMessage<'a> {
    /// In the entry: nobody else holds it.
    Inline(StoredMessage<'a>),
    /// In the table `messages`, and so many bytes long.
    Shared { id: MessageId, len: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredMessage<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
}

const FLAG_QOS: u8 = 0b0000_0011;
const FLAG_RETAIN: u8 = 0b0000_0100;
const FLAG_RELEASED: u8 = 0b0000_1000;
const FLAG_SHARED: u8 = 0b0001_0000;
const FLAGS: u8 = FLAG_QOS | FLAG_RETAIN | FLAG_RELEASED | FLAG_SHARED;

impl EntryMessage<'_> {
    /// Topic and payload, in bytes.
    pub fn len(&self) -> usize {
        match self {
            EntryMessage::Inline(message) => message.topic.len() + message.payload.len(),
            EntryMessage::Shared { len, .. } => *len as usize,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub fn encode_entry(key: &[u8], entry: &Entry<'_>, value: &mut Vec<u8>) {
    begin(value);
    let flag = |is, flag| if is { flag } else { 0 };
    let flags = entry.qos as u8 | flag(entry.retain, FLAG_RETAIN) | flag(entry.released, FLAG_RELEASED);
    match entry.message {
        EntryMessage::Inline(message) => {
            value.push(flags);
            push_text(value, message.topic);
            value.extend_from_slice(message.payload);
        }
        EntryMessage::Shared { id, len } => {
            value.push(flags | FLAG_SHARED);
            value.extend_from_slice(&id.0.to_be_bytes());
            value.extend_from_slice(&len.to_be_bytes());
        }
    }
    seal(key, value);
}

pub fn decode_entry<'a>(key: &[u8], value: &'a [u8]) -> Result<Entry<'a>, DecodeError> {
    let mut fields = body(key, value)?;
    let flags = fields.u8()?;
    if flags & !FLAGS != 0 {
        return Err(DecodeError::Field);
    }
    let message = if flags & FLAG_SHARED == 0 {
        let topic = fields.text()?;
        let payload = fields.0;
        EntryMessage::Inline(StoredMessage { topic, payload })
    } else {
        let (id, len) = (MessageId(fields.u64()?), fields.u32()?);
        fields.end()?;
        EntryMessage::Shared { id, len }
    };
    Ok(Entry {
        qos: QoS::from_bits(flags & FLAG_QOS).ok_or(DecodeError::Field)?,
        retain: flags & FLAG_RETAIN != 0,
        released: flags & FLAG_RELEASED != 0,
        message,
    })
}

pub fn encode_message(key: &[u8], message: &StoredMessage<'_>, value: &mut Vec<u8>) {
    begin(value);
    push_text(value, message.topic);
    value.extend_from_slice(message.payload);
    seal(key, value);
}

pub fn decode_message<'a>(key: &[u8], value: &'a [u8]) -> Result<StoredMessage<'a>, DecodeError> {
    let mut fields = body(key, value)?;
    let topic = fields.text()?;
    let payload = fields.0;
    Ok(StoredMessage { topic, payload })
}

pub fn encode_backlog(key: &[u8], backlog: &Backlog, value: &mut Vec<u8>) {
    begin(value);
    for number in [backlog.first, backlog.end, backlog.entries, backlog.bytes] {
        value.extend_from_slice(&number.to_be_bytes());
    }
    seal(key, value);
}

pub fn decode_backlog(key: &[u8], value: &[u8]) -> Result<Backlog, DecodeError> {
    let mut fields = body(key, value)?;
    let backlog = Backlog {
        first: fields.u64()?,
        end: fields.u64()?,
        entries: fields.u64()?,
        bytes: fields.u64()?,
    };
    fields.end()?;
    match backlog.first < backlog.end && (1..=backlog.end - backlog.first).contains(&backlog.entries) {
        true => Ok(backlog),
        false => Err(DecodeError::Field),
    }
}

pub fn encode_subscription(key: &[u8], filter: &str, qos: QoS, value: &mut Vec<u8>) {
    begin(value);
    value.push(qos as u8);
    if is_cut(key) {
        value.extend_from_slice(filter.as_bytes());
    }
    seal(key, value);
}

pub fn decode_subscription<'a>(key: &'a [u8], value: &'a [u8]) -> Result<(SessionNumber, &'a str, QoS), DecodeError> {
    let mut fields = body(key, value)?;
    let qos = fields.qos()?;
    let session = key.first_chunk::<8>().ok_or(DecodeError::Key)?;
    let filter = key_text(key, session.len(), fields.0)?;
    Ok((SessionNumber(u64::from_be_bytes(*session)), filter, qos))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained<'a> {
    pub topic: &'a str,
    pub qos: QoS,
    pub payload: &'a [u8],
}

pub fn encode_retained(key: &[u8], retained: &Retained<'_>, value: &mut Vec<u8>) {
    begin(value);
    value.push(retained.qos as u8);
    push_text(value, if is_cut(key) { retained.topic } else { "" });
    value.extend_from_slice(retained.payload);
    seal(key, value);
}

pub fn decode_retained<'a>(key: &'a [u8], value: &'a [u8]) -> Result<Retained<'a>, DecodeError> {
    let mut fields = body(key, value)?;
    let qos = fields.qos()?;
    let topic = key_text(key, 0, fields.bytes()?)?;
    let payload = fields.0;
    Ok(Retained { topic, qos, payload })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(in crate::store) mod tests {
    use super::*;

    const SESSION: SessionNumber = SessionNumber(0x0102);

    pub fn value(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut value = vec![9; 7];
        encode(&mut value);
        value
    }

    /// The layout without its checksum, and the checksum in its place.
    pub fn assert_layout(key: &[u8], value: &[u8], expected: &str) {
        let (sealed, stored) = value.split_last_chunk::<4>().unwrap();
        assert_eq!(hex::encode(sealed), expected.replace(' ', ""));
        let mut all = key.to_vec();
        all.extend_from_slice(sealed);
        assert_eq!(u32::from_be_bytes(*stored), crc32fast::hash(&all));
    }

    /// A value of any body.
    pub fn resealed(key: &[u8], body: &[u8]) -> Vec<u8> {
        let mut value = body.to_vec();
        seal(key, &mut value);
        value
    }

    #[test]
    fn the_checksum_is_the_crc_32_of_key_and_value() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc(b"1234", b"56789"), 0xcbf4_3926);
        assert_eq!(hex::encode(value(|value| encode_mark(b"key", value))), "010a8554fc");
    }

    #[test]
    fn keys_are_laid_out_as_written_in_the_head() {
        let packet_id = PacketId::new(0x0304).unwrap();
        let origin = Origin {
            session: SESSION,
            packet_id,
        };
        assert_eq!(hex::encode(session_key(SESSION)), "0000000000000102");
        assert_eq!(hex::encode(message_key(MessageId(5))), "0000000000000005");
        assert_eq!(hex::encode(queue_key(SESSION, 7)), "00000000000001020000000000000007");
        assert_eq!(hex::encode(received_key(SESSION, packet_id)), "00000000000001020304");
        assert_eq!(
            hex::encode(origin_key(origin, SessionNumber(9))),
            "000000000000010203040000000000000009"
        );
        let mut key = Vec::new();
        subscription_key(SESSION, "a/+", &mut key);
        assert_eq!(hex::encode(&key), "0000000000000102612f2b");
        retained_key("a/b", &mut key);
        assert_eq!(key, b"a/b");

        assert_eq!(decode_session_key(&session_key(SESSION)), Ok(SESSION));
        assert_eq!(decode_queue_key(&queue_key(SESSION, 7)), Ok((SESSION, 7)));
        assert_eq!(
            decode_received_key(&received_key(SESSION, packet_id)),
            Ok((SESSION, packet_id))
        );
        let key = origin_key(origin, SessionNumber(9));
        assert_eq!(decode_origin_key(&key), Ok((origin, SessionNumber(9))));
        assert_eq!(decode_origin_key(&key[1..]), Err(DecodeError::Key));
        assert_eq!(decode_received_key(&[0; 10]), Err(DecodeError::Key));
    }

    #[test]
    fn values_are_laid_out_as_written_in_the_head() {
        let key = session_key(SESSION);
        let encoded = value(|value| encode_number(&key, 0x1122, value));
        assert_layout(&key, &encoded, "01 0000000000001122");
        assert_eq!(decode_number(&key, &encoded), Ok(0x1122));

        let encoded = value(|value| encode_references(&key, 3, value));
        assert_layout(&key, &encoded, "01 00000003");
        assert_eq!(decode_references(&key, &encoded), Ok(3));

        let session = Session {
            account: 7,
            client_id: "pump".into(),
        };
        let encoded = value(|value| encode_session(&key, &session, value));
        // {"account": 7, "client_id": "pump"}
        assert_layout(
            &key,
            &encoded,
            "01 82 a76163636f756e74 07 a9636c69656e745f6964 a470756d70",
        );
        assert_eq!(decode_session(&key, &encoded), Ok(session));

        let backlog = Backlog {
            first: 1,
            end: 9,
            entries: 4,
            bytes: 256,
        };
        let encoded = value(|value| encode_backlog(&key, &backlog, value));
        assert_layout(
            &key,
            &encoded,
            "01 0000000000000001 0000000000000009 0000000000000004 0000000000000100",
        );
        assert_eq!(decode_backlog(&key, &encoded), Ok(backlog));

        let message = StoredMessage {
            topic: "a/b",
            payload: &[0xff, 0],
        };
        let encoded = value(|value| encode_message(&key, &message, value));
        assert_layout(&key, &encoded, "01 0003 612f62 ff00");
        assert_eq!(decode_message(&key, &encoded), Ok(message));
    }

    #[test]
    fn a_queue_entry_has_its_message_or_the_number_of_it() {
        let key = queue_key(SESSION, 7);
        let message = StoredMessage {
            topic: "a/b",
            payload: &[0xff, 0],
        };
        let mut entry = Entry {
            qos: QoS::ExactlyOnce,
            retain: false,
            released: true,
            message: EntryMessage::Inline(message),
        };
        let encoded = value(|value| encode_entry(&key, &entry, value));
        assert_layout(&key, &encoded, "01 0a 0003 612f62 ff00");
        assert_eq!(decode_entry(&key, &encoded), Ok(entry));
        assert_eq!(entry.message.len(), 5);

        entry.qos = QoS::AtLeastOnce;
        (entry.retain, entry.released) = (true, false);
        let (id, len) = (MessageId(0x0b), 5);
        entry.message = EntryMessage::Shared { id, len };
        let encoded = value(|value| encode_entry(&key, &entry, value));
        assert_layout(&key, &encoded, "01 15 000000000000000b 00000005");
        assert_eq!(decode_entry(&key, &encoded), Ok(entry));
        assert_eq!(entry.message.len(), 5);
    }

    #[test]
    fn a_long_text_is_cut_in_its_key_and_whole_in_its_value() {
        let mut key = Vec::new();
        for (length, is_long) in [(1, false), (502, false), (503, true), (65_535, true)] {
            let filter = "f".repeat(length);
            subscription_key(SESSION, &filter, &mut key);
            assert_eq!((key.len() == 511, key.len() <= 511), (is_long, true));
            let encoded = value(|value| encode_subscription(&key, &filter, QoS::AtLeastOnce, value));
            assert_eq!(encoded.len(), 6 + if is_long { length } else { 0 });
            assert_eq!(
                decode_subscription(&key, &encoded),
                Ok((SESSION, &*filter, QoS::AtLeastOnce))
            );
        }
        for (length, is_long) in [(1, false), (510, false), (511, true), (65_535, true)] {
            let topic = "t".repeat(length);
            retained_key(&topic, &mut key);
            assert_eq!((key.len() == 511, key.len() <= 511), (is_long, true));
            let retained = Retained {
                topic: &topic,
                qos: QoS::AtMostOnce,
                payload: b"on",
            };
            let encoded = value(|value| encode_retained(&key, &retained, value));
            assert_eq!(encoded.len(), 10 + if is_long { length } else { 0 });
            assert_eq!(decode_retained(&key, &encoded), Ok(retained));
        }
        retained_key("a/b", &mut key);
        let retained = Retained {
            topic: "a/b",
            qos: QoS::AtLeastOnce,
            payload: b"on",
        };
        let encoded = value(|value| encode_retained(&key, &retained, value));
        assert_layout(&key, &encoded, "01 01 0000 6f6e");
        subscription_key(SESSION, "a/+", &mut key);
        let encoded = value(|value| encode_subscription(&key, "a/+", QoS::ExactlyOnce, value));
        assert_layout(&key, &encoded, "01 02");
    }

    #[test]
    fn a_long_text_sorts_with_its_beginning_and_two_of_them_have_two_keys() {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        retained_key(&"t".repeat(600), &mut one);
        retained_key(&("t".repeat(599) + "u"), &mut other);
        assert_ne!(one, other);
        assert_eq!(one[..479], other[..479]);
    }

    #[test]
    fn every_damaged_bit_is_found() {
        let key = queue_key(SESSION, 7);
        let entry = Entry {
            qos: QoS::AtLeastOnce,
            retain: false,
            released: false,
            message: EntryMessage::Inline(StoredMessage {
                topic: "a",
                payload: b"payload",
            }),
        };
        let encoded = value(|value| encode_entry(&key, &entry, value));
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_entry(&key, &damaged), Err(DecodeError::Checksum), "bit {bit}");
        }
        let mut damaged_key = key;
        damaged_key[3] ^= 1;
        assert_eq!(decode_entry(&damaged_key, &encoded), Err(DecodeError::Checksum));
    }

    #[test]
    fn what_is_cut_goes_on_or_has_another_version_is_an_error_and_no_panic() {
        let key = session_key(SESSION);
        let resealed = |body: &[u8]| resealed(&key, body);
        for length in 0..5 {
            assert!(decode_number(&key, &vec![1; length]).is_err());
        }
        assert_eq!(decode_number(&key, &resealed(&[2, 0, 0])), Err(DecodeError::Version(2)));
        assert_eq!(decode_number(&key, &resealed(&[1, 0, 0])), Err(DecodeError::Short));
        assert_eq!(decode_number(&key, &resealed(&[1; 10])), Err(DecodeError::Trailing));
        assert_eq!(decode_mark(&key, &resealed(&[1, 0])), Err(DecodeError::Trailing));
        assert_eq!(decode_entry(&key, &resealed(&[1, 3, 0, 0])), Err(DecodeError::Field));
        assert_eq!(decode_entry(&key, &resealed(&[1, 0x20, 0, 0])), Err(DecodeError::Field));
        assert_eq!(
            decode_entry(&key, &resealed(&[1, 1, 0, 2, 65])),
            Err(DecodeError::Short)
        );
        assert_eq!(
            decode_entry(&key, &resealed(&[1, 1, 0, 1, 255])),
            Err(DecodeError::Text)
        );
        assert_eq!(decode_entry(&key, &resealed(&[1, 0x11, 0])), Err(DecodeError::Short));
        assert_eq!(decode_backlog(&key, &resealed(&[1; 33])), Err(DecodeError::Field));
        assert_eq!(decode_session(&key, &resealed(&[1, 0x81])), Err(DecodeError::Pack));
        let session = Session {
            account: 7,
            client_id: "pump".into(),
        };
        let mut session = value(|value| encode_session(&key, &session, value));
        session.truncate(session.len() - 4);
        session.push(0xc0);
        assert_eq!(decode_session(&key, &resealed(&session)), Err(DecodeError::Trailing));
    }
}
