//! Layer 0: RFC 6455, the server's side, as bytes: what MQTT over WebSocket (MQTT 3.1.1 section 6) needs of it.
//!
//! [`handshake()`] reads the opening request and writes its answer; [`Decoder`] takes the frames off what follows, in
//! place, so that MQTT bytes are left; [`binary_header`] and [`close_frame`] are what goes before and after the MQTT
//! bytes of the other direction.
//!
//! Called  by the transports of `net`, between the socket (or TLS) and `mqtt/frame`.
//! Holds   - an MQTT packet may lie across frames, and a frame may hold many [MQTT-6.0.0-2]: a message ends nowhere that
//!           MQTT could see, so nothing is put together and nothing waits for the end of a message;
//!         - one connection costs its [`Decoder`], and 128 bytes more while a control frame is cut across reads;
//!         - no extension is ever agreed on, so the reserved bits stay zero (section 9.1).

mod error;
mod frame;
mod handshake;
mod origin;
#[cfg(test)]
mod properties;

pub use error::{FrameError, HandshakeError};
pub use frame::{CloseCode, Decoded, Decoder, End, FrameHeader, binary_header, close_frame};
pub use handshake::{Handshake, handshake};
pub use origin::AllowedOrigins;

/// Reads `bytes` as a handshake and as frames, whole and cut in two, and panics where an invariant of this module
/// breaks. The door for fuzzers.
#[doc(hidden)]
pub fn fuzz_websocket(bytes: &[u8]) {
    let whole = handshake(bytes, &AllowedOrigins::Any, false);
    if let Handshake::Accepted { consumed, .. } = whole {
        assert!(consumed <= bytes.len() && consumed <= crate::limits::WEBSOCKET_HANDSHAKE_BYTES_MAX);
        assert_eq!(handshake(&bytes[..consumed], &AllowedOrigins::Any, false), whole);
        let before = handshake(&bytes[..consumed - 1], &AllowedOrigins::Any, false);
        assert_eq!(before, Handshake::Incomplete);
    }

    let mut at_once = bytes.to_vec();
    let mut answers = Vec::new();
    let decoded = Decoder::default().decode(&mut at_once, &mut answers);
    assert!(decoded.payload_len <= bytes.len());
    // At most one pong and one close frame, however many bytes there were.
    assert!(answers.len() <= 2 + 125 + 4);
    let cut = bytes.first().map_or(0, |&byte| usize::from(byte) * bytes.len() / 256);
    let (mut front, mut back) = (bytes[..cut].to_vec(), bytes[cut..].to_vec());
    let mut decoder = Decoder::default();
    let first = decoder.decode(&mut front, &mut answers);
    let second = decoder.decode(&mut back, &mut answers);
    assert_eq!(second.end, decoded.end);
    front.truncate(first.payload_len);
    front.extend_from_slice(&back[..second.payload_len]);
    assert_eq!(front, at_once[..decoded.payload_len]);
}
