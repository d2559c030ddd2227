//! What is fuzzed of the broker, as it is: the heart, the layouts of the store and its model in memory, PROXY headers. Without the
//! rest of the broker this builds in seconds. The targets are in `targets`; each is a module of its program in `bin`, and all are of
//! `tests/corpus.rs`. A target takes any bytes, keeps nothing from one call to the next, and panics where a rule is broken.
// The rest of the broker uses what is unused here.
#![allow(dead_code)]

#[path = "../../../src/ingest/mod.rs"]
pub mod ingest;
#[path = "../../../src/limits.rs"]
pub mod limits;
#[path = "../../../src/metrics.rs"]
pub mod metrics;
#[path = "../../../src/mqtt/mod.rs"]
pub mod mqtt;
#[path = "../../../src/registry/mod.rs"]
pub mod registry;
#[path = "../../../src/routing/mod.rs"]
pub mod routing;
#[path = "../../../src/session/mod.rs"]
pub mod session;
#[path = "../../../src/shard/mod.rs"]
pub mod shard;
#[path = "../../../src/websocket/mod.rs"]
pub mod websocket;

#[path = "../../../src/net"]
pub mod net {
    pub mod proxy;
}
#[path = "../../../src/store"]
pub mod store {
    pub mod memory;
    pub mod pages;
    pub mod schema;
    pub mod streams;
}

pub mod choices;
