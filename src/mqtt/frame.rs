//! Finds one whole frame at the start of a buffer, or says how many bytes are missing.
//!
//! Called  by the readers of the shell and of the load generator, once per packet.
//! Holds   - nothing is consumed or copied: the same bytes with more behind them give the same frame;
//!         - `Missing(n)`: fewer than `n` more bytes never make a whole frame, so a reader that asks for exactly `n`
//!           never takes a byte of the next packet;
//!         - a length of more than four bytes [MQTT-4.8.0-1] or above the limit is an error on the header alone.

use super::error::DecodeError;

/// Control packet types: the upper four bits of a packet's first byte (section 2.2.1).
pub(super) mod packet_type {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
}

/// One control packet: fixed header and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Packet type in the upper, flags in the lower four bits.
    pub first_byte: u8,
    /// Variable header and payload.
    pub body: &'a [u8],
    /// Length of the frame, fixed header included.
    pub len: usize,
}

impl Frame<'_> {
    pub(super) const fn packet_type(&self) -> u8 {
        self.first_byte >> 4
    }

    pub(super) const fn flags(&self) -> u8 {
        self.first_byte & 0x0f
    }
}

/// What stands at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing<'a> {
    Whole(Frame<'a>),
    /// At least this many more bytes are needed.
    Missing(usize),
}

/// Looks at the start of `bytes`. The length limit is checked on the header alone: a packet of more than
/// `packet_bytes_max` bytes, header included, is an error before its body has arrived.
#[inline]
pub fn next_frame(bytes: &[u8], packet_bytes_max: usize) -> Result<Framing<'_>, DecodeError> {
    let [first_byte, length, ..] = *bytes else {
        return Ok(Framing::Missing(2 - bytes.len()));
    };
    let (header_len, remaining) = if length < 0x80 {
        (2, usize::from(length))
    } else {
        match long_remaining_length(bytes)? {
            Some(found) => found,
            None => return Ok(Framing::Missing(1)),
        }
    };
    let len = header_len + remaining;
    if len > packet_bytes_max {
        return Err(DecodeError::PacketTooLarge);
    }
    match bytes.get(header_len..len) {
        Some(body) => Ok(Framing::Whole(Frame { first_byte, body, len })),
        None => Ok(Framing::Missing(len - bytes.len())),
    }
}

/// Header length and remaining length where the latter takes more than one byte; `None` while it is incomplete.
/// 3.1.1 does not forbid a length written with more bytes than it needs, so `80 00` is 0.
fn long_remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut remaining = 0;
    for (index, &byte) in bytes.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Ok(Some((index + 2, remaining)));
        }
    }
    if bytes.len() >= 5 {
        Err(DecodeError::RemainingLength)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REMAINING_LENGTH_MAX;

    const NO_LIMIT: usize = REMAINING_LENGTH_MAX + 5;

    #[test]
    fn mqtt_4_8_0_1_a_fourth_length_byte_with_continuation_bit_is_an_error_without_the_body() {
        assert_eq!(
            next_frame(&[0x30, 0xff, 0xff, 0xff, 0xff], NO_LIMIT),
            Err(DecodeError::RemainingLength)
        );
        assert_eq!(
            next_frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], NO_LIMIT),
            Err(DecodeError::RemainingLength)
        );
    }

    #[test]
    fn the_largest_remaining_length_is_framed() {
        let missing = next_frame(&[0x30, 0xff, 0xff, 0xff, 0x7f], NO_LIMIT);
        assert_eq!(missing, Ok(Framing::Missing(REMAINING_LENGTH_MAX)));
    }

    #[test]
    fn x1_a_packet_above_the_limit_is_an_error_on_its_header_alone() {
        assert_eq!(next_frame(&[0x30, 8], 10), Ok(Framing::Missing(8)));
        assert_eq!(next_frame(&[0x30, 9], 10), Err(DecodeError::PacketTooLarge));
        assert_eq!(
            next_frame(&[0x10, 0xff, 0xff, 0xff, 0x7f], 65_536),
            Err(DecodeError::PacketTooLarge)
        );
    }

    #[test]
    fn x2_one_byte_at_a_time_gives_the_same_frame_and_missing_never_over_reads() {
        for remaining in [0_usize, 1, 127, 128, 300, 16_383, 16_384] {
            let mut bytes = Vec::new();
            crate::mqtt::encode::fixed_header(&mut bytes, 0x30, remaining);
            bytes.resize(bytes.len() + remaining, 0xaa);
            let whole = bytes.len();
            bytes.extend_from_slice(&[0xc0, 0]);
            for have in 0..whole {
                let Ok(Framing::Missing(missing)) = next_frame(&bytes[..have], NO_LIMIT) else {
                    panic!("{have} of {whole} bytes are no frame")
                };
                assert!(missing >= 1 && have + missing <= whole);
            }
            for have in whole..=bytes.len() {
                let Ok(Framing::Whole(frame)) = next_frame(&bytes[..have], NO_LIMIT) else {
                    panic!("{have} bytes hold a frame of {whole}")
                };
                assert_eq!(
                    (frame.first_byte, frame.len, frame.body.len()),
                    (0x30, whole, remaining)
                );
            }
        }
    }

    #[test]
    fn section_2_2_3_a_length_with_needless_bytes_is_read() {
        let frame = next_frame(&[0xc0, 0x80, 0x00, 0xff], NO_LIMIT);
        assert_eq!(
            frame,
            Ok(Framing::Whole(Frame {
                first_byte: 0xc0,
                body: &[],
                len: 3
            }))
        );
    }
}
