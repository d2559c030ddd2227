//! Layer 4: sockets. What a core holds for each, how bytes come in and go out, how sockets come in and move on.
//!
//! Owns    every descriptor of a core but its runtime's and its bell's.
//! Called  by `worker`, which decides when; by `server`, which binds and reads certificates before the cores start.
//! Holds   - a socket costs one [`sockets::Sockets`] slot of 32 bytes and no buffer while nothing of it waits;
//!         - no protocol rule of MQTT: bytes and descriptors only. TLS, WebSocket and PROXY headers end in `transport`.

pub mod certificate;
#[cfg(test)]
mod certificate_tests;
pub mod handoff;
pub mod listener;
pub mod proxy;
pub mod reader;
mod self_made;
pub mod sockets;
pub mod tls;
pub mod transport;
#[cfg(test)]
mod transport_tests;
pub mod writer;
