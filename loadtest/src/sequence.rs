//! Checks that one subscriber gets one publisher's messages all, once, and in order.
//!
//! Owns    the next sequence number each (publisher, subscriber) pair expects, and the gaps seen so far.
//! Called  by `throughput` and `backlog` for every message received.
//! Holds   - the common case (the expected number) is one comparison and one addition;
//!         - `missing` counts what has not come yet: a message that comes late is taken off it and counted as out of order.

use std::collections::HashMap;

use serde::Serialize;

/// Gaps remembered for one stream. Beyond it the oldest is forgotten: a message of it that comes after all counts as
/// out of order without being taken off `missing`.
const GAPS_MAX: usize = 4096;

/// What went wrong, summed over all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub missing: u64,
    pub doubled: u64,
    pub out_of_order: u64,
}

#[derive(Debug, Default)]
pub struct Streams {
    next: Vec<u64>,
    gaps: HashMap<u32, Gaps>,
    faults: Faults,
}

/// Half-open ranges of numbers not seen, ascending.
#[derive(Debug, Default)]
struct Gaps {
    ranges: Vec<(u64, u64)>,
    forgotten_below: u64,
}

impl Faults {
    pub fn add(&mut self, other: Faults) {
        self.missing += other.missing;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
    }
}

impl Streams {
    pub fn new(count: usize) -> Streams {
        Streams {
            next: vec![0; count],
            ..Streams::default()
        }
    }

    /// Takes one message. Returns how far the stream moved on: 1 as a rule, more over a gap, 0 for one seen or late.
    #[inline]
    pub fn receive(&mut self, stream: usize, sequence: u64) -> u64 {
        let next = &mut self.next[stream];
        if *next == sequence {
            *next += 1;
            return 1;
        }
        self.receive_unexpected(stream, sequence)
    }

    #[cold]
    fn receive_unexpected(&mut self, stream: usize, sequence: u64) -> u64 {
        let next = &mut self.next[stream];
        let gaps = self.gaps.entry(stream as u32).or_default();
        if sequence > *next {
            let moved = sequence + 1 - *next;
            self.faults.missing += moved - 1;
            gaps.open(*next, sequence);
            *next = sequence + 1;
            return moved;
        }
        if gaps.close(sequence) {
            self.faults.missing -= 1;
            self.faults.out_of_order += 1;
        } else if sequence < gaps.forgotten_below {
            self.faults.out_of_order += 1;
        } else {
            self.faults.doubled += 1;
        }
        0
    }

    /// The stream's messages up to `sent` will not come any more.
    pub fn finish(&mut self, stream: usize, sent: u64) {
        let next = &mut self.next[stream];
        self.faults.missing += sent.saturating_sub(*next);
        *next = (*next).max(sent);
    }

    pub fn faults(&self) -> Faults {
        self.faults
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Faults {
            missing,
            doubled,
            out_of_order,
        } = self;
        write!(f, "missing {missing}, doubled {doubled}, out of order {out_of_order}")
    }
}

impl Faults {
    pub fn total(self) -> u64 {
        self.missing + self.doubled + self.out_of_order
    }
}

impl Gaps {
    fn open(&mut self, start: u64, end: u64) {
        if self.ranges.len() == GAPS_MAX {
            self.forgotten_below = self.ranges.remove(0).1;
        }
        self.ranges.push((start, end));
    }

    /// Takes `sequence` out of the gap it lies in; false when it lies in none.
    fn close(&mut self, sequence: u64) -> bool {
        let at = self.ranges.partition_point(|&(_, end)| end <= sequence);
        let Some(&(start, end)) = self.ranges.get(at) else {
            return false;
        };
        if sequence < start {
            return false;
        }
        let parts = [(start, sequence), (sequence + 1, end)];
        self.ranges
            .splice(at..=at, parts.into_iter().filter(|(start, end)| start < end));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(received: &[u64], sent: u64) -> Faults {
        let mut streams = Streams::new(2);
        for &sequence in received {
            streams.receive(1, sequence);
        }
        streams.finish(1, sent);
        streams.faults()
    }

    #[test]
    fn all_once_and_in_order_is_no_fault() {
        assert_eq!(after(&[0, 1, 2, 3], 4), Faults::default());
    }

    #[test]
    fn a_gap_and_a_lost_tail_are_missing() {
        assert_eq!(
            after(&[0, 3, 4], 7),
            Faults {
                missing: 4,
                ..Faults::default()
            }
        );
        assert_eq!(
            after(&[], 3),
            Faults {
                missing: 3,
                ..Faults::default()
            }
        );
    }

    #[test]
    fn a_late_message_is_out_of_order_and_not_missing() {
        assert_eq!(
            after(&[0, 2, 1, 3], 4),
            Faults {
                out_of_order: 1,
                ..Faults::default()
            }
        );
        assert_eq!(
            after(&[9, 4, 0, 8], 10),
            Faults {
                missing: 6,
                out_of_order: 3,
                ..Faults::default()
            }
        );
    }

    #[test]
    fn a_second_copy_is_doubled_even_when_the_first_came_late() {
        assert_eq!(
            after(&[0, 0, 1], 2),
            Faults {
                doubled: 1,
                ..Faults::default()
            }
        );
        assert_eq!(
            after(&[0, 2, 1, 1], 3),
            Faults {
                doubled: 1,
                out_of_order: 1,
                ..Faults::default()
            }
        );
    }

    #[test]
    fn the_stream_moves_on_over_a_gap_and_not_back() {
        let mut streams = Streams::new(1);
        let moved: Vec<u64> = [0, 4, 2, 4, 5].map(|sequence| streams.receive(0, sequence)).to_vec();
        assert_eq!(moved, [1, 4, 0, 0, 1]);
    }

    #[test]
    fn forgotten_gaps_stay_missing() {
        let every_other: Vec<u64> = (0..=GAPS_MAX as u64 + 1).map(|i| i * 2 + 1).collect();
        let mut received = every_other.clone();
        received.push(0);
        let faults = after(&received, received[every_other.len() - 1] + 1);
        assert_eq!(
            faults,
            Faults {
                missing: GAPS_MAX as u64 + 2,
                out_of_order: 1,
                doubled: 0
            }
        );
    }

    #[test]
    fn streams_do_not_disturb_each_other() {
        let mut streams = Streams::new(2);
        streams.receive(0, 5);
        streams.receive(1, 0);
        streams.receive(0, 3);
        assert_eq!(
            streams.faults(),
            Faults {
                missing: 4,
                out_of_order: 1,
                doubled: 0
            }
        );
    }
}
