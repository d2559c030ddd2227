//! What the control thread asks a core, and what it is answered.
//!
//! Called  by `http` through the core's mailbox: [`Input::Asked`](super::Input), answered by `Output::Answer` once everything
//!         durable about it is on disk.
//! Holds   - what concerns a device is asked of the core that owns it, [`Shard::owner_of_device`](super::Shard); the rest of
//!           all cores;
//!         - the account is one of the snapshot's; whoever asks has checked tokens, rates, and that a channel exists.

use crate::mqtt::packet::QoS;
use crate::registry::access::AccountId;
use crate::registry::channel::ChannelId;
use crate::registry::device::DeviceChange;

use super::event::ConnectionId;

/// Tells the questions of a core apart; chosen by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u32);

#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// The HTTP device connector: as if the device had published it on its `json` topic.
    Send {
        account: AccountId,
        device: Box<str>,
        tag: Option<Box<str>>,
        payload: Box<[u8]>,
        format: SentFormat,
    },
    /// The publish service: `DT/DEV/subscribe`.
    Command {
        account: AccountId,
        device: Box<str>,
        qos: QoS,
        payload: Box<[u8]>,
    },
    CreateDevice {
        account: AccountId,
        device: Box<str>,
        change: DeviceChange,
    },
    ChangeDevice {
        account: AccountId,
        device: Box<str>,
        change: DeviceChange,
    },
    RemoveDevice {
        account: AccountId,
        device: Box<str>,
    },
    /// Devices of this core that are mapped to the channel are so no more. (The store has done the same on disk.)
    UnmapChannel {
        account: AccountId,
        channel: ChannelId,
    },
    /// Nothing: the answer says that this core has done what it was told before, a change of the accounts above all.
    Settled,
    /// The connected clients of an account, from this slot on: see [`Answer::Sessions`].
    Sessions {
        account: AccountId,
        from: u32,
    },
}

/// What the body of [`Query::Send`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentFormat {
    Json,
    /// `v=..&v2=..`
    V1,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is so, and on disk.
    Done,
    /// [`Query::Send`]: the device was unknown, and is registered now. Its data was stored if the account maps new devices.
    Registered,
    Refused(Refusal),
    Sessions {
        sessions: Vec<ConnectedSession>,
        /// Ask again from here; `None`: that was all.
        next: Option<u32>,
    },
}

/// In the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoDevice,
    DeviceInUse,
    MaxDeviceReach,
    DeviceDisabled,
    NoMappedChannel,
    BadPayload,
    /// The account has gone meanwhile.
    NoAccount,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConnectedSession {
    pub connection: ConnectionId,
    pub client_id: Box<str>,
    /// Filled in by the shell, which has the socket.
    pub address: String,
    pub clean_session: bool,
    /// 3 or 4
    pub level: u8,
    pub keep_alive_s: u16,
    /// Milliseconds of Unix time.
    pub connected_ms: u64,
}
