//! What the benches measure, written once: `codec`, `shard` and the others time it, `instructions` counts what it takes.
//!
//! Called  by every bench through a [`Runner`]; one file per module that is measured.
//! Holds   - a scenario is a steady state: each call leaves behind what the one before found, so nothing grows but once;
//!         - no clock, thread or randomness, and the hash key is fixed: every run takes the same steps;
//!         - a call checks that it did what its name says. What it does for the other side (writing the client's
//!           acknowledgements) is measured with it, some ten instructions a packet.
// Each bench is a crate of its own and uses its part.
#![allow(dead_code)]

pub mod codec;
pub mod ingest;
pub mod mesh;
pub mod routing;
pub mod session;
pub mod shard;
pub mod store;
pub mod websocket;

use skein::mqtt::encode;
use skein::mqtt::packet::{PacketId, QoS};

pub const HASH_KEY: [u64; 4] = [11, 22, 33, 44];
pub const PAYLOAD: [u8; 64] = [b'x'; 64];
/// 64 bytes.
pub const JSON: &[u8] = br#"{"temp":21.5,"rh":48,"battery":3.71,"door":"open","uptime":9021}"#;

/// Who measures.
pub trait Runner {
    /// `name` is `module/what`. What `prepare` returns is measured: each call does `operations` of what the name says.
    /// A runner need not prepare what it does not run.
    fn scenario<F: FnMut()>(&mut self, name: &str, operations: usize, prepare: impl FnOnce() -> F);
}

pub fn all(runner: &mut impl Runner) {
    codec::scenarios(runner);
    ingest::scenarios(runner);
    mesh::scenarios(runner);
    routing::scenarios(runner);
    session::scenarios(runner);
    shard::scenarios(runner);
    store::scenarios(runner);
    websocket::scenarios(runner);
}

pub fn packet_id(id: u16) -> PacketId {
    PacketId::new(id).expect("a bench counts from 1")
}

/// As many PUBLISH packets of [`PAYLOAD`] to these topics in turn, their Packet Identifiers counted from 1.
pub fn publishes<T: AsRef<str>>(topics: &[T], qos: QoS, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, topic) in (1..=count).zip(topics.iter().cycle()) {
        let id = (qos > QoS::AtMostOnce).then(|| packet_id(number as u16));
        encode::publish(&mut bytes, false, qos, false, topic.as_ref(), id, &PAYLOAD);
    }
    bytes
}
