//! Rows of the store: any key with any value is what this build writes, or is refused; what is read is written as it was, or, of
//! MessagePack, is read again the same; nothing is read with a bit of key or value changed. The checksum is set right in half of
//! the tries, or no byte would get past it.

use fuzz::store::schema::platform::*;
use fuzz::store::schema::*;

use fuzz::choices::Choices;

pub fn check(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let table = choices.below(TABLES);
    let is_sealed = choices.byte().is_multiple_of(2);
    let key_length = match choices.byte() {
        // As long as the key of a text that was cut.
        0xff => KEY_BYTES_MAX,
        length => usize::from(length) % 40,
    };
    let key = choices.take(key_length);
    let body = choices.rest();
    read(table, key, &if is_sealed { sealed(key, body) } else { body.to_vec() });
    let (number, mut written) = (body.len() as u64, Vec::new());
    encode_number(key, number, &mut written);
    assert_eq!(written, sealed(key, &number.to_be_bytes()));
}

/// As the head of the schema has it.
fn sealed(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut value = [&[VERSION], body].concat();
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(&value);
    value.extend_from_slice(&crc.finalize().to_be_bytes());
    value
}

const TABLES: usize = 20;

/// Reads a value, writes what it says, and reads that.
macro_rules! again {
    ($key:ident, $value:ident, $decode:ident, |$found:ident, $out:ident| $encode:expr) => {
        if let Ok($found) = $decode($key, $value) {
            let mut written = Vec::new();
            let $out = &mut written;
            $encode;
            assert_eq!($decode($key, &written), Ok($found));
            assert!($decode($key, &damaged($value)).is_err());
            assert!($key.is_empty() || $decode(&damaged($key), $value).is_err());
        }
    };
}

/// The same of a layout that has one way to write a value.
macro_rules! exactly {
    ($key:ident, $value:ident, $decode:ident, |$found:ident, $out:ident| $encode:expr) => {
        again!($key, $value, $decode, |$found, $out| {
            $encode;
            assert_eq!($out, $value);
        })
    };
}

/// With one bit changed: which, the bytes themselves say.
fn damaged(bytes: &[u8]) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    let sum = bytes.iter().fold(bytes.len(), |sum, &byte| sum + usize::from(byte));
    damaged[sum % bytes.len()] ^= 1 << (sum % 8);
    damaged
}

fn read(table: usize, key: &[u8], value: &[u8]) {
    keys(key);
    match table {
        0 => exactly!(key, value, decode_mark, |_found, out| encode_mark(key, out)),
        1 => exactly!(key, value, decode_number, |found, out| encode_number(key, found, out)),
        2 => exactly!(key, value, decode_references, |found, out| encode_references(
            key, found, out
        )),
        3 => again!(key, value, decode_session, |found, out| encode_session(
            key, &found, out
        )),
        4 => exactly!(key, value, decode_entry, |found, out| encode_entry(key, &found, out)),
        5 => exactly!(key, value, decode_message, |found, out| encode_message(
            key, &found, out
        )),
        6 => exactly!(key, value, decode_backlog, |found, out| encode_backlog(
            key, &found, out
        )),
        7 => exactly!(key, value, decode_subscription, |found, out| {
            let (session, filter, qos) = found;
            let mut again = Vec::new();
            subscription_key(session, filter, &mut again);
            // Of a key that was cut, what stands before the hash is looked after by the checksum alone.
            assert!(again == key || key.len() == KEY_BYTES_MAX);
            encode_subscription(key, filter, qos, out)
        }),
        8 => exactly!(key, value, decode_retained, |found, out| encode_retained(
            key, &found, out
        )),
        9 => again!(key, value, decode_account, |found, out| encode_account(
            key, &found, out
        )),
        10 => again!(key, value, decode_device, |found, out| {
            encode_device(key, &found, out);
            let expected = DeviceStanding {
                is_enabled: found.is_enabled,
                channel: found.channel,
            };
            assert_eq!(
                decode_device_standing(key, out),
                Ok(expected),
                "a start reads the same as the API"
            );
        }),
        11 => exactly!(key, value, decode_state, |found, out| encode_state(key, &found, out)),
        12 => again!(key, value, decode_channel, |found, out| {
            assert_eq!(decode_channel_stream(key, value), Ok(found.0));
            encode_channel(key, found.0, &found.1, out)
        }),
        13 => again!(key, value, decode_event, |found, out| encode_event(key, &found, out)),
        14 => exactly!(key, value, decode_tag, |found, out| encode_tag(key, &found, out)),
        15 => exactly!(key, value, decode_usage, |found, out| encode_usage(key, &found, out)),
        16 => exactly!(key, value, decode_datapoint, |found, out| encode_datapoint(
            key,
            found.generation,
            &found.row.pack(),
            out
        )),
        17 => exactly!(key, value, decode_tag_purge, |found, out| encode_tag_purge(
            key, &found, out
        )),
        18 => drop(decode_device_standing(key, value)),
        _ => drop(decode_channel_stream(key, value)),
    }
}

/// A key that is read is written as it was.
fn keys(key: &[u8]) {
    let mut written = Vec::new();
    if let Ok(session) = decode_session_key(key) {
        assert_eq!(session_key(session), key);
    }
    if let Ok(id) = decode_message_key(key) {
        assert_eq!(message_key(id), key);
    }
    if let Ok((session, sequence)) = decode_queue_key(key) {
        assert_eq!(queue_key(session, sequence), key);
    }
    if let Ok((session, packet_id)) = decode_received_key(key) {
        assert_eq!(received_key(session, packet_id), key);
    }
    if let Ok((origin, holder)) = decode_origin_key(key) {
        assert_eq!(origin_key(origin, holder), key);
    }
    if let Ok(account) = decode_account_key(key) {
        assert_eq!(account_key(account), key);
    }
    if let Ok((account, device)) = decode_device_key(key) {
        device_key(account, device, &mut written);
        assert_eq!(written, key);
    }
    if let Ok((account, channel)) = decode_channel_key(key) {
        assert_eq!(channel_key(account, channel), key);
    }
    if let Ok((account, event)) = decode_event_key(key) {
        assert_eq!(event_key(account, event), key);
    }
    if let Ok((stream, tag)) = decode_tag_key(key) {
        tag_key(stream, tag, &mut written);
        assert_eq!(written, key);
    }
    if let Ok((stream, id)) = decode_datapoint_key(key) {
        assert_eq!(datapoint_key(stream, id), key);
    }
    if let Ok(purge) = decode_purge_key(key) {
        purge_key(&purge, &mut written);
        assert_eq!(written, key);
    }
}
