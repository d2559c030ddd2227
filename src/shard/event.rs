//! The only doors of a [`Shard`](super::Shard): what goes in, what comes out, and the names both use.

use crate::mqtt::error::DecodeError;
use crate::mqtt::packet::Connect;
use crate::registry::access::{AccountId, AccountsChange};
use crate::registry::event::Notification;

use super::query::{Answer, Query, Ticket};
use super::record::{Fetch, Fetched, Record};

/// Milliseconds of a clock that never goes back; only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    pub const fn plus(self, ms: u64) -> Millis {
        Millis(self.0 + ms)
    }
}

/// A Network Connection on its home core: a place in the core's tables and how often that place was used before, so
/// that what arrives late for a closed connection finds nobody. The shell chooses both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub index: u32,
    pub generation: u32,
}

/// The other end of a mesh queue: today a core's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

/// The two queues from one core to another. What arrives `ToHome` makes a core send no more than acknowledgements that
/// were asked for, so it is always taken; what arrives `ToOwner` makes it send `ToHome`, so it is taken only while
/// [`Shard::takes_requests`](super::Shard::takes_requests). Hence cores that flood each other cannot wait in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Publishes, registrations of filters, requests for retained messages: to the core that owns the topic.
    ToOwner = 0,
    /// Deliveries, answers and acknowledgements: to the home core of a client.
    ToHome = 1,
}

impl Lane {
    pub const ALL: [Lane; 2] = [Lane::ToOwner, Lane::ToHome];
}

/// The place of a [`Record`] among all that its core has sent to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordNumber(pub u64);

/// What one turn works on.
pub enum Input<'a> {
    /// A Network Connection whose CONNECT passed [`greet`](super::greeting::greet) has come home.
    Connected {
        connection: ConnectionId,
        connect: Box<Connect>,
        account: AccountId,
    },
    /// Bytes of the client's, beginning where the last consumed byte ended. [`Shard::handle`](super::Shard::handle)
    /// returns how many it consumed; the rest (a part of a packet, or what stands behind a `Pause`) is presented again
    /// with what follows, or after `Resume`.
    Received { connection: ConnectionId, bytes: &'a [u8] },
    /// The socket took this many of the bytes that [`Shard::unsent`](super::Shard::unsent) showed.
    Sent { connection: ConnectionId, bytes: usize },
    /// The socket is gone, or has been closed after `Output::Close`: the id may be used again with the next generation.
    /// After this, nothing is said of the connection any more.
    Disconnected { connection: ConnectionId },
    /// One batch of messages from another core, as it gave it to [`Shard::take_batch`](super::Shard::take_batch).
    Batch { from: PeerId, bytes: &'a [u8] },
    /// The store has committed every record of this core up to this one.
    Committed { up_to: RecordNumber },
    /// The answer to `Output::Fetch`.
    Fetched(Box<Fetched>),
    /// A question of the control thread's; answered with `Output::Answer`.
    Asked { ticket: Ticket, query: Box<Query> },
    /// The accounts have changed.
    Accounts(Box<AccountsChange>),
    /// Time has passed: see [`Shard::next_deadline`](super::Shard::next_deadline).
    Tick,
}

/// What the shell is to do.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// [`Shard::unsent`](super::Shard::unsent) has bytes for this socket. Said once until they are all taken, and once
    /// more when they pass [`OUTBOX_FLUSH_BYTES`](crate::limits::OUTBOX_FLUSH_BYTES): then it is best to write now.
    Transmit(ConnectionId),
    /// Write what is unsent as far as the socket takes it at once, close it, then say `Input::Disconnected`.
    Close(ConnectionId, CloseReason),
    /// Do not read this socket, and present nothing of it, until `Resume`.
    Pause(ConnectionId),
    Resume(ConnectionId),
    /// There is a batch for this peer: take it when its ring has room.
    Forward(PeerId, Lane),
    /// Hand this to the store, in order; the store answers with `Input::Committed`.
    Persist(RecordNumber, Box<Record>),
    /// Ask the store for what is on disk only; it answers with `Input::Fetched`.
    Fetch(Box<Fetch>),
    /// To whoever asked.
    Answer(Box<(Ticket, Answer)>),
    /// An event's rule was met. Whoever takes it must not make this core wait.
    Notify(Box<Notification>),
}

// Every message passes some through a queue: what is rare is behind a pointer.
const _: () = assert!(size_of::<Output>() <= 24 && size_of::<Input<'_>>() <= 32);

/// Why a connection ends; counted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client said DISCONNECT.
    Disconnect,
    /// The client closed or reset its socket, or the network did.
    PeerClosed,
    /// A packet broke a rule of form.
    Malformed(DecodeError),
    /// A packet broke a rule of order.
    Violation(Violation),
    /// Nothing came for one and a half times the Keep Alive [MQTT-3.1.2-24].
    KeepAlive,
    /// Another connection took over the client identifier [MQTT-3.1.4-2].
    TakenOver,
    /// No whole CONNECT within the connect timeout.
    ConnectTimeout,
    /// A CONNECT was answered with a return code other than 0.
    Refused,
    /// The account's device token was rotated, or the account suspended or removed.
    AccountEnded,
    /// The broker stops.
    Stopping,
}

/// A well-formed packet where the flow does not allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// PUBREC for a QoS 1 delivery, PUBACK for a QoS 2 one, PUBCOMP before PUBREL (section 4.3).
    WrongAcknowledgement,
}
