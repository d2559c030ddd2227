//! Frames -> packets, strictly.

use thiserror::Error;

use super::error::DecodeError;
use super::frame::Frame;
use super::packet::{Connect, Level, Packet};

/// Why a first packet is not an acceptable CONNECT.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConnectError {
    /// Close, nothing sent.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// A right protocol name with a level we do not speak: CONNACK 0x01, then close [MQTT-3.1.2-2].
    #[error("protocol level {0} is not supported [MQTT-3.1.2-2]")]
    UnsupportedLevel(u8),
}

/// Reads the first packet of a connection.
pub fn decode_connect(frame: Frame<'_>) -> Result<Connect, ConnectError> {
    let _ = frame;
    todo!()
}

/// Reads a packet of an accepted connection. A second CONNECT and packets only a Server may send are errors.
pub fn decode<'a>(frame: Frame<'a>, level: Level) -> Result<Packet<'a>, DecodeError> {
    let _ = (frame, level);
    todo!()
}
