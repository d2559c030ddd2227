//! What the scenarios measure, and no more: the heart of the broker, the mesh, and the layouts of the store, as they are.
// The rest of the broker uses what is unused here.
#![allow(dead_code)]

#[path = "../../../src/ingest/mod.rs"]
pub mod ingest;
#[path = "../../../src/limits.rs"]
pub mod limits;
#[path = "../../../src/mesh/mod.rs"]
pub mod mesh;
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

#[path = "../../../src/store"]
pub mod store {
    pub mod schema;
    pub mod streams;
}
