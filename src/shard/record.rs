//! What the disk keeps: plain data that leaves a core for the store in order, and what the store reads back.
//!
//! Holds   - a record of one core takes effect after all that the core pushed before it;
//!         - the fetches of one Session are answered in order, and name ever later records to wait for;
//!         - every record may be applied again: a transaction that failed is tried whole;
//!         - a record [`is_lazy`](Record::is_lazy) when nothing waits for its commit: losing it repeats work, never a message
//!           at QoS 2.

use std::sync::Arc;

use crate::mqtt::packet::{PacketId, QoS};
use crate::registry::access::AccountId;
use crate::registry::account::Account;
use crate::registry::channel::{Channel, ChannelId};
use crate::registry::datapoint::DatapointId;
use crate::registry::device::{Device, DeviceChange, DeviceState};
use crate::registry::event::Event;
use crate::session::message::SharedMessage;

use super::event::RecordNumber;

/// A Session, for ever: no other gets the same number, on any core, in any later run that still knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionNumber(pub u64);

impl SessionNumber {
    /// No Session has it: among those that hold a message in doubt it stands for the stream that the message was stored in.
    pub const STREAM: SessionNumber = SessionNumber(0);

    /// The bit that a Session with Clean Session has: it is never on disk.
    pub const CLEAN: u64 = 1 << 63;

    pub const fn is_clean(self) -> bool {
        self.0 & Self::CLEAN != 0
    }
}

/// A Session of this core for as long as it lives: its place, and the number that tells it from the next one there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    pub index: u32,
    pub number: SessionNumber,
}

impl SessionKey {
    /// Whether the Session ends with its connection.
    pub const fn is_clean(self) -> bool {
        self.number.is_clean()
    }
}

/// One change of durable state.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A durable Session begins, with nothing in it.
    SessionStarted {
        session: SessionNumber,
        account: AccountId,
        client_id: Box<str>,
    },
    /// It is gone, with its subscriptions, queue and identifiers, and whatever is in doubt of its PUBLISH packets.
    SessionEnded {
        session: SessionNumber,
    },
    /// A subscription is made, or its QoS replaced.
    Subscribed {
        session: SessionNumber,
        filter: Box<str>,
        qos: QoS,
    },
    Unsubscribed {
        session: SessionNumber,
        filter: Box<str>,
    },
    /// A QoS 1 or 2 message for durable Sessions of this core, stored once for all of them.
    Queued {
        message: SharedMessage,
        entries: Vec<QueueEntry>,
        /// The QoS 2 PUBLISH it came in, where another core than its home queues it.
        origin: Option<Origin>,
    },
    /// PUBREC came: the message is the client's, only PUBREL may follow [MQTT-4.3.3-1].
    Released {
        session: SessionNumber,
        sequence: u64,
    },
    /// PUBACK or PUBCOMP came: the queue entry is over.
    Delivered {
        session: SessionNumber,
        sequence: u64,
    },
    /// The retained message of a topic is replaced, or cleared by an empty payload.
    Retained {
        topic: Box<str>,
        payload: Arc<[u8]>,
        qos: QoS,
    },
    /// A durable Session received a QoS 2 PUBLISH under this Packet Identifier [MQTT-4.3.3-2], and everybody has its
    /// message: no [`Origin`] of it is in doubt any more.
    PacketIdReceived {
        session: SessionNumber,
        packet_id: PacketId,
    },
    /// PUBREL came: the identifier is free.
    PacketIdReleased {
        session: SessionNumber,
        packet_id: PacketId,
    },
    /// The client of a durable Session went away, at this second of Unix time. Written only where Sessions expire.
    SessionAway {
        session: SessionNumber,
        since_s: u64,
    },
    /// It is back.
    SessionBack {
        session: SessionNumber,
    },
    /// An account is new, or has changed.
    AccountPut(Box<Account>),
    /// It is gone, with its devices, channels, datapoints and events.
    AccountRemoved {
        account: AccountId,
    },
    DeviceRegistered {
        account: AccountId,
        device: Box<str>,
        entry: Box<Device>,
    },
    DeviceChanged {
        account: AccountId,
        device: Box<str>,
        change: Box<DeviceChange>,
    },
    /// It is gone, with its state. Its datapoints stay in their channel.
    DeviceRemoved {
        account: AccountId,
        device: Box<str>,
    },
    /// A state report, in place of the one before.
    DeviceReported {
        account: AccountId,
        device: Box<str>,
        state: Box<DeviceState>,
    },
    /// A channel is new, or has changed.
    ChannelPut {
        account: AccountId,
        channel: ChannelId,
        entry: Box<Channel>,
    },
    /// It is gone, with its datapoints, tags and events; devices that were mapped to it are mapped to none.
    ChannelRemoved {
        account: AccountId,
        channel: ChannelId,
    },
    /// A tag of a channel is gone, with its datapoints.
    TagRemoved {
        account: AccountId,
        channel: ChannelId,
        tag: Box<str>,
    },
    EventPut {
        account: AccountId,
        event: Box<Event>,
    },
    EventRemoved {
        account: AccountId,
        event_id: u32,
    },
    Datapoint(Box<Datapoint>),
}

/// A value for a stream. One for a channel that is not there (any more) is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Datapoint {
    pub account: AccountId,
    pub channel: ChannelId,
    pub id: DatapointId,
    /// A [`DatapointRow`](crate::registry::datapoint::DatapointRow), packed.
    pub row: Box<[u8]>,
    /// The QoS 2 PUBLISH it came in, where another core than its home stores it: it is written down with
    /// [`SessionNumber::STREAM`] for its holder.
    pub origin: Option<Origin>,
    /// An acknowledgement waits for it.
    pub is_awaited: bool,
}

impl Record {
    /// Whether nothing waits for this record: it may go to disk with the next that is waited for.
    pub fn is_lazy(&self) -> bool {
        matches!(
            self,
            Record::Delivered { .. }
                | Record::SessionStarted { .. }
                | Record::SessionAway { .. }
                | Record::SessionBack { .. }
        ) || matches!(self, Record::Datapoint(datapoint) if !datapoint.is_awaited)
    }

    /// How many rows of the store it changes.
    pub fn rows(&self) -> usize {
        match self {
            Record::Queued { entries, .. } => entries.len(),
            _ => 1,
        }
    }

    /// About how many bytes it holds while it waits.
    pub fn len(&self) -> usize {
        let variable = match self {
            Record::Queued { message, entries, .. } => message.len() + size_of_val(&entries[..]),
            Record::Retained { topic, payload, .. } => topic.len() + payload.len(),
            Record::Subscribed { filter, .. } | Record::Unsubscribed { filter, .. } => filter.len(),
            Record::SessionStarted { client_id, .. } => client_id.len(),
            Record::Datapoint(datapoint) => size_of::<Datapoint>() + datapoint.row.len(),
            Record::DeviceReported { state, .. } => size_of::<DeviceState>() + state.json.len(),
            Record::DeviceRegistered { .. } => size_of::<Device>(),
            // The rest is rare, and small.
            _ => 0,
        };
        size_of::<Record>() + variable
    }

    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The place of a message in one Session's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    pub session: SessionNumber,
    /// Ascending in the order of delivery; the Packet Identifier follows from it.
    pub sequence: u64,
    pub qos: QoS,
    pub retain: bool,
}

/// The QoS 2 PUBLISH of a durable Session, while its identifier is not on disk: after a crash the client sends it again,
/// and who has it already must not get it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    pub session: SessionNumber,
    pub packet_id: PacketId,
}

/// A wish to read what is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetch {
    Queue(QueueFetch),
    Retained(RetainedFetch),
}

/// A part of a Session's queue; answered with a [`QueueWindow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFetch {
    pub session: SessionKey,
    /// Only once this record of the core's is committed, and so every one before it.
    pub after: RecordNumber,
    /// The first sequence wanted.
    pub from: u64,
    /// At most so many entries, and no more once these bytes are passed.
    pub entries_max: usize,
    pub bytes_max: usize,
}

/// The payloads of retained messages that are on disk only; answered with [`RetainedPayloads`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedFetch {
    /// Tells the answers of a core apart.
    pub ticket: u32,
    pub topics: Vec<Box<str>>,
}

/// The answer to a [`Fetch`].
#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    Queue(QueueWindow),
    Retained(RetainedPayloads),
}

#[derive(Clone, Debug, PartialEq)]
pub struct QueueWindow {
    pub session: SessionKey,
    /// In ascending order of sequence.
    pub entries: Vec<StoredEntry>,
    /// Nothing was left behind the last entry when the store looked.
    pub is_end: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RetainedPayloads {
    pub ticket: u32,
    /// In the order of the topics; `None` where a topic has no retained message.
    pub payloads: Vec<Option<Arc<[u8]>>>,
}

impl Fetch {
    /// The record that must be committed before it is read.
    pub fn after(&self) -> RecordNumber {
        match self {
            Fetch::Queue(fetch) => fetch.after,
            // What is asked for is on disk already.
            Fetch::Retained(_) => RecordNumber(0),
        }
    }
}

/// One entry of a queue, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEntry {
    pub sequence: u64,
    pub qos: QoS,
    pub retain: bool,
    /// PUBREC came for it: PUBREL is next, not the message.
    pub released: bool,
    pub message: SharedMessage,
}

/// All that a start must know before the first client comes; queues stay where they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// In ascending order of their numbers.
    pub sessions: Vec<StoredSession>,
    pub retained: Vec<StoredRetained>,
    /// The greatest number that any Session ever had; 0 before the first.
    pub newest_session: u64,
    /// Messages that were queued for these Sessions while their PUBLISH was not yet acknowledged.
    pub in_doubt: Vec<(Origin, Vec<SessionNumber>)>,
    /// In ascending order of their ids, each with its events.
    pub accounts: Vec<(Account, Vec<Event>)>,
    pub devices: Vec<StoredDevice>,
    /// When the newest datapoint there ever was came, in milliseconds of Unix time; 0 before the first.
    pub newest_datapoint_ms: u64,
    /// The greatest id that an account ever had; 0 before the first.
    pub newest_account: u32,
}

/// What a core holds of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDevice {
    pub account: AccountId,
    pub device: Box<str>,
    pub is_enabled: bool,
    pub channel: Option<ChannelId>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoredSession {
    pub session: SessionNumber,
    pub account: AccountId,
    pub client_id: Box<str>,
    pub filters: Vec<(Box<str>, QoS)>,
    /// QoS 2 identifiers received and not released, in any order.
    pub received: Vec<PacketId>,
    /// Second of Unix time since when its client has been away, where that was written.
    pub away_since_s: Option<u64>,
    pub backlog: Option<Backlog>,
}

/// What waits in one Session's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Sequence of the first entry.
    pub first: u64,
    /// One past the sequence of the last.
    pub end: u64,
    pub entries: u64,
    /// Topics and payloads.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoredRetained {
    pub topic: Box<str>,
    /// `None`: beyond what a start may hold in memory; it is read when somebody wants it.
    pub payload: Option<Arc<[u8]>>,
    pub payload_bytes: u32,
    pub qos: QoS,
}
