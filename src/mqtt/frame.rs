//! Finds one whole frame at the start of a buffer, or says how many bytes are missing.

use super::error::DecodeError;

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

/// What stands at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing<'a> {
    Whole(Frame<'a>),
    /// At least this many more bytes are needed.
    Missing(usize),
}

/// Looks at the start of `bytes`. The length limit is checked on the header alone: a packet of more than
/// `packet_bytes_max` bytes, header included, is an error before its body has arrived.
pub fn next_frame(bytes: &[u8], packet_bytes_max: usize) -> Result<Framing<'_>, DecodeError> {
    let _ = (bytes, packet_bytes_max);
    todo!()
}
