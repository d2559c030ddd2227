//! What rides the mesh: a batch of the shards' own messages, or connections on their way home.

use std::os::fd::OwnedFd;

use crate::mqtt::packet::Connect;
use crate::net::handoff::Ticket;
use crate::net::transport::Layers;
use crate::registry::access::AccountId;

pub enum Parcel {
    /// Bytes for the other shard; the parcel's lane is the batch's.
    Batch(Vec<u8>),
    /// Always on `Lane::ToHome`, which is always drained: whoever connects is not held up by a core that is behind with
    /// requests, and an arrival makes no core wait.
    Arrivals(Box<Arrivals>),
}

const _: () = assert!(size_of::<Parcel>() <= 32, "rings are cores x cores x parcels");

/// Connections from one core to another, at most
/// [`SOCKETS_PER_MESSAGE`](crate::net::handoff::SOCKETS_PER_MESSAGE).
pub struct Arrivals {
    pub sockets: Carried,
    /// As many as sockets were sent, in the same order.
    pub connections: Vec<Arrival>,
}

/// How the sockets travel.
#[derive(Debug)]
pub enum Carried {
    /// One table for all cores: as they are.
    Descriptors(Vec<OwnedFd>),
    /// A table per core: through the passage, under this ticket.
    Ticket(Ticket),
}

/// A connection whose CONNECT was accepted on another core.
pub struct Arrival {
    pub connect: Box<Connect>,
    pub account: AccountId,
    /// Of the accounts that let it in: those of its home may be newer.
    pub access_version: u64,
    /// What came behind the CONNECT.
    pub unread: Vec<u8>,
    /// TLS and WebSocket go on where they were.
    pub layers: Option<Box<Layers>>,
}
