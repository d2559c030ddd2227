//! What must be confirmed before an acknowledgement leaves.
//!
//! Owns    one [`Receipt`] per QoS 1 or 2 PUBLISH, or run of them, that is not confirmed yet, at the publisher's home core.
//! Called  by `shard::publish` (open), and by the answers of other cores and of the store (arrive).
//! Holds   - a PUBLISH that concerns one core only and nothing durable never opens one;
//!         - parts may arrive before their number is known: cores answer the home core directly, not through the owner;
//!         - every part arrives exactly once, so a place is free as soon as its receipt is complete.

use slab::Slab;

use crate::mqtt::packet::PacketId;

use super::event::{ConnectionId, PeerId, RecordNumber};
use super::query::{Refusal, Ticket};
use super::record::SessionKey;

/// A receipt's place on the publisher's home core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptId(pub u32);

/// Whom to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client(ClientSender),
    Run(RunSender),
    /// Whoever asked with this ticket.
    Asker(Asker),
}

/// A connection that is owed PUBACK or PUBREC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSender {
    pub connection: ConnectionId,
    /// The entry of the connection's `Acknowledgements`.
    pub sequence: u32,
    /// For QoS 2, the identifier the Session remembers, since it may outlive the connection.
    pub packet_id: Option<(SessionKey, PacketId)>,
}

/// A connection that is owed PUBACK or PUBREC for each packet of a run. Its Session is clean where that is PUBREC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunSender {
    pub connection: ConnectionId,
    /// The first of so many entries of the connection's `Acknowledgements`.
    pub sequence: u32,
    pub count: u32,
}

/// Somebody outside the cores, and what is to be said once all is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub ticket: Ticket,
    pub then: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    Registered,
    Refused(Refusal),
}

struct Receipt {
    sender: Sender,
    /// Known when the owner has routed the message.
    parts: Option<u32>,
    arrived: u32,
}

/// The open receipts of one core.
#[derive(Default)]
pub struct Receipts {
    receipts: Slab<Receipt>,
}

impl Receipts {
    /// `parts`: how many places will confirm, `None` if only the owner can tell.
    pub fn open(&mut self, sender: Sender, parts: Option<u32>) -> ReceiptId {
        let index = self.receipts.insert(Receipt {
            sender,
            parts,
            arrived: 0,
        });
        ReceiptId(u32::try_from(index).expect("bounded by connections times RECEIPTS_PER_CONNECTION_MAX"))
    }

    /// The owner has routed the message to this many places that will confirm. Returns the sender if that was the last.
    pub fn routed(&mut self, id: ReceiptId, parts: u32) -> Option<Sender> {
        let receipt = &mut self.receipts[id.0 as usize];
        assert!(receipt.parts.is_none(), "an owner routes a message once");
        receipt.parts = Some(parts);
        self.close_if_complete(id)
    }

    /// One place has confirmed. Returns the sender if that was the last.
    pub fn arrived(&mut self, id: ReceiptId) -> Option<Sender> {
        self.receipts[id.0 as usize].arrived += 1;
        self.close_if_complete(id)
    }

    /// Whom an open receipt is for.
    pub fn sender(&self, id: ReceiptId) -> Sender {
        self.receipts[id.0 as usize].sender
    }

    pub fn len(&self) -> usize {
        self.receipts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    fn close_if_complete(&mut self, id: ReceiptId) -> Option<Sender> {
        let receipt = &self.receipts[id.0 as usize];
        let parts = receipt.parts?;
        assert!(receipt.arrived <= parts, "a place confirms once");
        (receipt.arrived == parts).then(|| self.receipts.remove(id.0 as usize).sender)
    }
}

/// What waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitsCommit {
    pub record: RecordNumber,
    pub then: Then,
}

/// What a commit lets happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// A part of a receipt is confirmed to the publisher's home core, this one or another.
    Confirm { home: PeerId, receipt: ReceiptId },
    /// The identifier of a QoS 2 PUBLISH that has reached everybody is on disk: PUBREC may leave.
    Received(ClientSender),
    /// What was asked is on disk.
    Answer(Asker),
    /// A QoS 2 message may be sent to this Session.
    Send(SessionKey),
    /// PUBREL: that the message is the client's is on disk.
    Release {
        connection: ConnectionId,
        packet_id: PacketId,
    },
    /// PUBCOMP: that the identifier is free is on disk.
    Complete {
        connection: ConnectionId,
        packet_id: PacketId,
    },
    /// The subscriptions of a SUBSCRIBE, by its place among those that wait.
    Subscribed { request: u32 },
    /// CONNACK, for a client whose durable Session has been replaced by a clean one.
    Accept { connection: ConnectionId },
    /// UNSUBACK.
    Unsubscribed {
        connection: ConnectionId,
        packet_id: PacketId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(sequence: u32) -> Sender {
        Sender::Client(ClientSender {
            connection: ConnectionId {
                index: 0,
                generation: 0,
            },
            sequence,
            packet_id: None,
        })
    }

    #[test]
    fn a_receipt_is_complete_when_routed_and_all_parts_arrived_in_any_order() {
        let mut receipts = Receipts::default();
        let early = receipts.open(sender(1), None);
        assert_eq!(receipts.arrived(early), None);
        assert_eq!(receipts.arrived(early), None);
        assert_eq!(receipts.routed(early, 2), Some(sender(1)));
        let nobody = receipts.open(sender(3), None);
        assert_eq!(receipts.routed(nobody, 0), Some(sender(3)));
        assert!(receipts.is_empty());
    }
}
