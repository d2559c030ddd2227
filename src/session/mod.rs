//! Layer 1: the rules for one client. Pure: state in, encoded packets and intents out.
//!
//! [`message`] is what is delivered, [`inbound`] the client's QoS 1 and 2 publishes, [`outbound`] deliveries to it,
//! [`outbox`] the encoded bytes its socket has not taken, [`packet_id`] the arithmetic of identifiers, [`will`] when a
//! Will is published. `shard::clients` holds one of each for every client at home.

pub mod inbound;
pub mod message;
pub mod outbound;
pub mod outbox;
pub mod packet_id;
pub mod will;
