//! The JSON of a datapoint: `{"seq":1000000123,"temp":21.5,"pad":"1a2b3c4d0000042..."}`.
//!
//! Called  by `telemetry` for what the devices send, by `read_back` for what their streams hold.
//! Holds   - a device's numbers all have the digits of `SEQUENCE_BASE`, so that they are patched in place and are JSON;
//!         - the pad begins with the tag of the run and the number of the device: what others left in a stream is known by it.

use serde::Deserialize;

use crate::senders::{NUMBER_DIGITS, SEQUENCE_DIGITS};

const HEAD: &str = "{\"seq\":";
const MIDDLE: &str = ",\"temp\":21.5,\"pad\":\"";
const TAIL: &str = "\"}";
const RUN_DIGITS: usize = 8;

pub const SEQUENCE_AT: usize = HEAD.len();
/// The number of a device's first message.
pub const SEQUENCE_BASE: u64 = 10u64.pow(SEQUENCE_DIGITS as u32 - 1);
pub const MESSAGES_MAX: u64 = SEQUENCE_BASE * 9;
pub const SIZE_MIN: usize = HEAD.len() + SEQUENCE_DIGITS + MIDDLE.len() + RUN_DIGITS + NUMBER_DIGITS + TAIL.len();

/// The first message of a device, of `size` bytes.
pub fn text(run: u32, device: usize, size: usize) -> Vec<u8> {
    let fill = size - SIZE_MIN;
    format!(
        "{HEAD}{SEQUENCE_BASE}{MIDDLE}{run:08x}{device:0NUMBER_DIGITS$}{:.<fill$}{TAIL}",
        ""
    )
    .into_bytes()
}

/// What a datapoint of this scenario says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datapoint {
    pub run: u32,
    pub device: usize,
    /// Counts a device's messages from 0.
    pub sequence: u64,
}

/// `None`: somebody else's.
pub fn read(value: &str) -> Option<Datapoint> {
    #[derive(Deserialize)]
    struct Value<'a> {
        seq: u64,
        pad: &'a str,
    }
    let Value { seq, pad } = serde_json::from_str(value).ok()?;
    let (run, rest) = pad.split_at_checked(RUN_DIGITS)?;
    Some(Datapoint {
        run: u32::from_str_radix(run, 16).ok()?,
        device: rest.get(..NUMBER_DIGITS)?.parse().ok()?,
        sequence: seq.checked_sub(SEQUENCE_BASE)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datapoint_is_json_of_its_size_and_reads_back() {
        for size in [SIZE_MIN, 64, 1000] {
            let mut payload = text(0xab, 42, size);
            assert_eq!(payload.len(), size);
            payload[SEQUENCE_AT..][..SEQUENCE_DIGITS].copy_from_slice(b"1000000123");
            let payload = String::from_utf8(payload).unwrap();
            assert!(serde_json::from_str::<serde_json::Value>(&payload).is_ok(), "{payload}");
            let datapoint = Datapoint {
                run: 0xab,
                device: 42,
                sequence: 123,
            };
            assert_eq!(read(&payload), Some(datapoint));
        }
    }

    #[test]
    fn what_others_store_is_none_of_ours() {
        let values = [
            "{\"temp\":1}",
            "{\"seq\":5,\"pad\":\"0000000000000000\"}",
            "{\"seq\":1000000000,\"pad\":\"short\"}",
            "{\"seq\":1000000000,\"pad\":\"0000000é0000000\"}",
            "7",
        ];
        assert_eq!(values.map(read), [None; 5]);
    }
}
