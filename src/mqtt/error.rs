//! What a peer can break: one variant per rule. The shell closes the connection and counts the variant.

use thiserror::Error;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum DecodeError {
    #[error("remaining length of more than four bytes [MQTT-4.8.0-1]")]
    RemainingLength,
    #[error("the first packet is not CONNECT [MQTT-3.1.0-1]")]
    ConnectExpected,
}
