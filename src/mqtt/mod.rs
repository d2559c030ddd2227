//! Layer 0: bytes <-> control packets of MQTT 3.1 (level 3) and 3.1.1 (level 4).
//!
//! [`frame`] finds one whole frame, [`decode`] reads it strictly, [`encode`] writes; [`topic`] checks names and
//! filters once, [`packet`] is what the heart works on. [`client`] is the other side of the wire, for the load generator.

pub mod client;
pub mod decode;
pub mod encode;
pub mod error;
pub mod frame;
pub mod packet;
pub mod reason;
pub mod topic;
