//! Skein: an MQTT broker, one thread per core. Bytes travel one way round and nothing calls backwards:
//!
//! ```text
//! home core of the publisher                                             owner core of the topic
//! socket ─▶ net ─▶ mqtt/frame ─▶ mqtt/decode ─▶ session/inbound ─▶ shard/publish ─mesh─▶ shard/topic ─▶ store
//!                                                                                           │ routing/interest,
//! home core of each subscriber                                                             mesh  routing/retained
//! socket ◀─ net ◀─ session/outbox ◀─ mqtt/encode ◀─ session/outbound ◀─ shard/deliver ◀─────┘
//!                                                                        │ routing/subscriptions: this core's trie
//!                                                                        └▶ store: the queues of durable Sessions
//! ```
//!
//! What the store is given is confirmed when it is on disk, and only then leaves the acknowledgement of it.
//!
//! A client that comes over WebSocket has its frames taken off by `websocket` before `mqtt/frame` sees a byte.
//!
//! Layers import downward only: 0 `limits` < 0 `mqtt websocket` < 0 `metrics` < 1 `registry` <
//! 1 `session routing ingest` < 2 `shard` < 3 `mesh store` < 4 `net` < 5 `worker` < 6 `config http` < 7 `doctor server` < `main`. Layers
//! 0 to 2 are the heart: no socket, file, thread, `async`, clock or randomness; values in, values out. `tests/layers.rs`
//! reads this list.

pub mod config;
pub mod doctor;
pub mod http;
pub mod ingest;
pub mod limits;
pub mod mesh;
pub mod metrics;
pub mod mqtt;
pub mod net;
pub mod registry;
pub mod routing;
pub mod server;
pub mod session;
pub mod shard;
pub mod store;
pub mod websocket;
pub mod worker;
