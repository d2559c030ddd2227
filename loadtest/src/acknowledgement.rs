//! A publisher's unacknowledged messages at QoS 1 and 2: which Packet Identifier waits for what, and since when.
//!
//! Called  by `throughput` and `senders`, for each message sent and each PUBACK, PUBREC and PUBCOMP received.
//! Holds   - an identifier is used again only when its flow has ended [MQTT-2.3.1-4];
//!         - identifiers are taken in a circle (`ring`), so that the order of the answers can be checked
//!           ([MQTT-4.6.0-2] and [MQTT-4.6.0-3], which bind the client's side; a Server that answers out of order is
//!           counted, not refused).

use std::fmt;

use serde::Serialize;

const RING_MAX: usize = 1 << 14;
/// Most messages one publisher may have unacknowledged.
pub const UNACKED_MAX: usize = RING_MAX / 2;
/// The circle holds this many times what may be unacknowledged: so much later comes an identifier again, and an answer that is
/// sent twice is seen until then. It is no larger, for a thousand publishers have one each.
const RING_UNACKED: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// PUBACK at QoS 1, PUBREC at QoS 2.
    First,
    Complete,
}

#[derive(Debug)]
pub struct Unacknowledged {
    states: Vec<State>,
    /// When the message of each identifier was sent, or was to be sent. Zeroed pages: memory goes to what is used.
    sent_ns: Vec<u64>,
    qos: u8,
    taken: usize,
    answered: usize,
    in_flight: usize,
    faults: AcknowledgementFaults,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AcknowledgementFaults {
    /// For an identifier that waits for no such packet.
    pub unexpected: u64,
    pub out_of_order: u64,
    /// Never came.
    pub missing: u64,
}

impl AcknowledgementFaults {
    /// Of a report, where there is anything to say.
    pub fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == AcknowledgementFaults::default() {
            return Ok(());
        }
        let AcknowledgementFaults {
            unexpected,
            out_of_order,
            missing,
        } = self;
        writeln!(
            f,
            "acks         unexpected {unexpected}, out of order {out_of_order}, missing {missing}"
        )
    }
}

/// What to do about an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The flow of one message has ended.
    Ended,
    SendPubrel,
    /// Counted as a fault.
    Fault,
}

impl AcknowledgementFaults {
    pub fn add(&mut self, other: AcknowledgementFaults) {
        self.unexpected += other.unexpected;
        self.out_of_order += other.out_of_order;
        self.missing += other.missing;
    }

    /// What a sentence that counts faults goes on with; nothing where there were none.
    pub fn told(&self) -> String {
        let AcknowledgementFaults {
            unexpected,
            out_of_order,
            missing,
        } = self;
        match unexpected + out_of_order + missing {
            0 => String::new(),
            _ => format!("; acknowledgements unexpected {unexpected}, out of order {out_of_order}, missing {missing}"),
        }
    }

    /// An answer out of order is told, not held against the Server.
    pub fn is_broken(&self) -> bool {
        self.unexpected > 0 || self.missing > 0
    }
}

impl Unacknowledged {
    /// For a publisher with at most `unacked` messages unacknowledged.
    pub fn new(qos: u8, unacked: usize) -> Unacknowledged {
        let ring = (unacked * RING_UNACKED).next_power_of_two().min(RING_MAX);
        Unacknowledged {
            states: vec![State::Free; ring],
            sent_ns: vec![0; ring],
            qos,
            taken: 0,
            answered: 0,
            in_flight: 0,
            faults: AcknowledgementFaults::default(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The identifier of the next message, of this time; `None` while the one whose turn it is has not ended.
    #[inline]
    pub fn take(&mut self, time_ns: u64) -> Option<u16> {
        let slot = self.taken % self.states.len();
        if self.states[slot] != State::Free {
            return None;
        }
        self.states[slot] = State::First;
        self.sent_ns[slot] = time_ns;
        self.taken += 1;
        self.in_flight += 1;
        Some(slot as u16 + 1)
    }

    /// The time given for the message an identifier was last taken for. Of use when an answer was no fault.
    #[inline]
    pub fn sent_ns(&self, packet_id: u16) -> u64 {
        self.sent_ns[(packet_id as usize).wrapping_sub(1) % self.sent_ns.len()]
    }

    /// PUBACK at QoS 1, PUBREC at QoS 2.
    pub fn first(&mut self, packet_id: u16) -> Answer {
        if !self.step(
            packet_id,
            State::First,
            if self.qos == 2 { State::Complete } else { State::Free },
        ) {
            return Answer::Fault;
        }
        if packet_id as usize != self.answered % self.states.len() + 1 {
            self.faults.out_of_order += 1;
        }
        self.answered += 1;
        if self.qos == 2 {
            return Answer::SendPubrel;
        }
        self.in_flight -= 1;
        Answer::Ended
    }

    pub fn complete(&mut self, packet_id: u16) -> Answer {
        if !self.step(packet_id, State::Complete, State::Free) {
            return Answer::Fault;
        }
        self.in_flight -= 1;
        Answer::Ended
    }

    fn step(&mut self, packet_id: u16, from: State, to: State) -> bool {
        match self.states.get_mut((packet_id as usize).wrapping_sub(1)) {
            Some(state) if *state == from => {
                *state = to;
                true
            }
            _ => {
                self.faults.unexpected += 1;
                false
            }
        }
    }

    pub fn faults(&self) -> AcknowledgementFaults {
        AcknowledgementFaults {
            missing: self.in_flight as u64,
            ..self.faults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_comes_again_only_after_its_flow_has_ended() {
        let mut unacked = Unacknowledged::new(2, UNACKED_MAX);
        for _ in 0..RING_MAX {
            assert!(unacked.take(0).is_some());
        }
        assert_eq!(unacked.take(0), None);
        assert_eq!(unacked.first(1), Answer::SendPubrel);
        assert_eq!(unacked.take(0), None, "PUBREC does not end a QoS 2 flow");
        assert_eq!(unacked.complete(1), Answer::Ended);
        assert_eq!(unacked.take(7), Some(1));
        assert_eq!(unacked.sent_ns(1), 7);
    }

    #[test]
    fn a_second_a_foreign_and_a_missing_acknowledgement_are_counted() {
        let mut unacked = Unacknowledged::new(1, 20);
        assert_eq!((unacked.take(5), unacked.take(6)), (Some(1), Some(2)));
        assert_eq!((unacked.sent_ns(1), unacked.sent_ns(2)), (5, 6));
        assert_eq!(unacked.first(1), Answer::Ended);
        for wrong in [1, 3, 0, 65_535] {
            assert_eq!(unacked.first(wrong), Answer::Fault);
        }
        let faults = AcknowledgementFaults {
            unexpected: 4,
            missing: 1,
            out_of_order: 0,
        };
        assert_eq!(unacked.faults(), faults);
    }

    #[test]
    fn answers_out_of_order_are_counted() {
        let mut unacked = Unacknowledged::new(1, 20);
        for _ in 0..3 {
            unacked.take(0);
        }
        for id in [2, 1, 3] {
            assert_eq!(unacked.first(id), Answer::Ended);
        }
        assert_eq!(
            unacked.faults(),
            AcknowledgementFaults {
                out_of_order: 2,
                ..Default::default()
            }
        );
    }
}
