//! The arithmetic of Packet Identifiers: 1 to 65,535 in a circle without 0 [MQTT-2.3.1-1].

use crate::mqtt::packet::PacketId;

/// Identifiers there are.
pub const PACKET_IDS: usize = 65_535;

/// How many steps of [`PacketId::next`] lead from `from` to `to`: 0 to 65,534.
pub fn distance(from: PacketId, to: PacketId) -> usize {
    let (from, to) = (from.get() as usize, to.get() as usize);
    if to >= from { to - from } else { to + PACKET_IDS - from }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_steps_of_next_around_the_circle() {
        for start in [1, 2, 65_534, 65_535] {
            let from = PacketId::new(start).unwrap();
            let mut to = from;
            for steps in 0..PACKET_IDS {
                assert_eq!(distance(from, to), steps, "from {start}");
                to = to.next();
            }
            assert_eq!(to, from, "a full circle visits every identifier and never 0");
        }
    }
}
