//! Client to Server: what is owed for the client's QoS 1 and 2 PUBLISH packets.
//!
//! Owns    [`Acknowledgements`], which die with the connection, and [`ReceivedIds`], which live as long as the Session.
//! Called  by `shard::publish` (a PUBLISH or PUBREL came) and `shard::receipt` (everybody concerned has a message).
//! Holds   - acknowledgements leave in the order of the PUBLISH packets [MQTT-4.6.0-2] [MQTT-4.6.0-3], each only when its
//!           own receipt and all before it are complete;
//!         - a QoS 2 identifier is known from its first PUBLISH to its PUBREL: what comes under it meanwhile is the same
//!           message, and is not published again [MQTT-4.3.3-2].

use std::collections::VecDeque;

use crate::mqtt::packet::PacketId;

/// Which packet acknowledges a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// PUBACK, for QoS 1.
    PubAck(PacketId),
    /// PUBREC, for QoS 2.
    PubRec(PacketId),
}

/// What a connection is owed, in order.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    /// Sequence number of the first entry.
    first: u32,
    owed: VecDeque<(Acknowledgement, Ready)>,
}

type Ready = bool;

impl Acknowledgements {
    /// The number the next entry will get.
    pub fn next_sequence(&self) -> u32 {
        self.first.wrapping_add(self.owed.len() as u32)
    }

    pub fn len(&self) -> usize {
        self.owed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    pub fn push(&mut self, acknowledgement: Acknowledgement, ready: Ready) {
        self.owed.push_back((acknowledgement, ready));
    }

    /// The receipt of this entry is complete.
    pub fn complete(&mut self, sequence: u32) {
        let index = sequence.wrapping_sub(self.first) as usize;
        let entry = self
            .owed
            .get_mut(index)
            .expect("a receipt completes once, and its entry waits for it");
        debug_assert!(!entry.1);
        entry.1 = true;
    }

    /// The next acknowledgement that may leave.
    pub fn pop(&mut self) -> Option<Acknowledgement> {
        let (acknowledgement, true) = *self.owed.front()? else {
            return None;
        };
        self.owed.pop_front();
        self.first = self.first.wrapping_add(1);
        Some(acknowledgement)
    }
}

/// What a QoS 2 PUBLISH is, by its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A new message: publish it, and say so with [`ReceivedIds::routed`].
    New,
    /// Known, and its message has reached everybody: acknowledge again.
    Repeated,
    /// Known, and its receipt is not complete: the acknowledgement waits for it.
    RepeatedTooEarly,
}

/// Packet Identifiers of QoS 2 messages received and not yet released.
#[derive(Debug, Default)]
pub struct ReceivedIds {
    /// Ascending. At most 65,535 of two bytes each: its own bound.
    ids: Vec<u16>,
    /// Those among them whose receipt is not complete.
    routing: Vec<PacketId>,
    /// Entries of the present connection's [`Acknowledgements`] that wait for such a receipt as well, one per repetition.
    waiting: Vec<(PacketId, u32)>,
}

impl ReceivedIds {
    pub fn receive(&mut self, packet_id: PacketId) -> Received {
        // Clients count upwards, so most identifiers are the highest.
        if self.ids.last().is_none_or(|last| *last < packet_id.get()) {
            self.ids.push(packet_id.get());
            return Received::New;
        }
        match self.ids.binary_search(&packet_id.get()) {
            Err(place) => {
                self.ids.insert(place, packet_id.get());
                Received::New
            }
            Ok(_) if self.routing.contains(&packet_id) => Received::RepeatedTooEarly,
            Ok(_) => Received::Repeated,
        }
    }

    /// As long as they are new, receives them; how many those were. They are not marked as on their way: acknowledgements leave in
    /// order, so that of a repetition leaves behind theirs.
    pub fn receive_new(&mut self, packet_ids: impl Iterator<Item = PacketId>) -> u32 {
        let mut new = 0;
        for packet_id in packet_ids {
            if self.receive(packet_id) != Received::New {
                break;
            }
            new += 1;
        }
        new
    }

    /// The message of this identifier waits for a receipt.
    pub fn routing(&mut self, packet_id: PacketId) {
        self.routing.push(packet_id);
    }

    /// A repetition came while the message was on its way: the entry with this sequence waits with it. A level 3 client
    /// may repeat more than once on one connection.
    pub fn wait(&mut self, packet_id: PacketId, sequence: u32) {
        self.waiting.push((packet_id, sequence));
    }

    /// The receipt of this identifier is complete.
    pub fn routed(&mut self, packet_id: PacketId) {
        if let Some(place) = self.routing.iter().position(|id| *id == packet_id) {
            self.routing.swap_remove(place);
        }
    }

    /// Takes an entry that waited for this identifier; `None` when there is no more.
    pub fn waited(&mut self, packet_id: PacketId) -> Option<u32> {
        let place = self.waiting.iter().position(|(id, _)| *id == packet_id)?;
        Some(self.waiting.swap_remove(place).1)
    }

    /// The connection has ended: its entries wait for nothing any more.
    pub fn disconnected(&mut self) {
        self.waiting.clear();
    }

    /// PUBREL: the identifier is free. Whether it was known does not matter to the client: PUBCOMP is the answer anyway.
    pub fn release(&mut self, packet_id: PacketId) -> bool {
        // And most are released oldest first.
        let place = match self.ids.first() == Some(&packet_id.get()) {
            true => Ok(0),
            false => self.ids.binary_search(&packet_id.get()),
        };
        if let Ok(place) = place {
            self.ids.remove(place);
        }
        place.is_ok()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.routing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_the_publishes() {
        let mut owed = Acknowledgements::default();
        owed.push(Acknowledgement::PubAck(id(1)), false);
        let second = owed.next_sequence();
        owed.push(Acknowledgement::PubRec(id(2)), false);
        owed.push(Acknowledgement::PubAck(id(3)), true);
        owed.complete(second);
        assert_eq!(owed.pop(), None);
        owed.complete(0);
        assert_eq!(owed.pop(), Some(Acknowledgement::PubAck(id(1))));
        assert_eq!(owed.pop(), Some(Acknowledgement::PubRec(id(2))));
        assert_eq!(owed.pop(), Some(Acknowledgement::PubAck(id(3))));
        assert_eq!(owed.pop(), None);
        assert_eq!(owed.next_sequence(), 3);
    }

    #[test]
    fn a_qos_2_identifier_is_new_once_until_it_is_released() {
        let mut received = ReceivedIds::default();
        assert_eq!(received.receive(id(7)), Received::New);
        received.routing(id(7));
        assert_eq!(received.receive(id(7)), Received::RepeatedTooEarly);
        received.wait(id(7), 4);
        received.routed(id(7));
        assert_eq!(received.waited(id(7)), Some(4));
        assert_eq!(received.receive(id(7)), Received::Repeated);
        received.release(id(7));
        assert_eq!(received.receive(id(7)), Received::New);
    }

    #[test]
    fn every_repetition_on_one_connection_gets_its_acknowledgement() {
        let mut received = ReceivedIds::default();
        received.receive(id(7));
        received.routing(id(7));
        for sequence in [4, 5] {
            assert_eq!(received.receive(id(7)), Received::RepeatedTooEarly);
            received.wait(id(7), sequence);
        }
        received.routed(id(7));
        let mut waited = [received.waited(id(7)), received.waited(id(7))];
        waited.sort_unstable();
        assert_eq!(waited, [Some(4), Some(5)]);
        assert_eq!(received.waited(id(7)), None);
        assert_eq!(received.receive(id(7)), Received::Repeated);
    }

    #[test]
    fn a_repetition_of_an_ended_connection_waits_for_nothing() {
        let mut received = ReceivedIds::default();
        received.receive(id(7));
        received.routing(id(7));
        received.wait(id(7), 4);
        received.disconnected();
        received.routed(id(7));
        assert_eq!(received.waited(id(7)), None);
        assert_eq!(
            received.receive(id(7)),
            Received::Repeated,
            "the message is not published again"
        );
    }
}
