//! The schedule of an open loop: message k of the run is due at start + k / rate, whatever the broker does.
//!
//! Called  by the scenarios that send what is due and count latency from the due time: a broker that stalls does not slow the
//!         clock it is measured by.
//! Holds   - publishers take turns: turn k belongs to publisher k mod publishers, and in it all messages of a burst are due at
//!           once, one unless it was set to more;
//!         - pure arithmetic on nanoseconds since the start of the schedule, no drift however late it is asked.

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate_per_s: u64,
    publishers: u64,
    burst: u64,
}

impl Pace {
    /// `rate_per_s` messages a second over all publishers; neither is 0.
    pub fn new(rate_per_s: u64, publishers: u64) -> Pace {
        assert!(rate_per_s > 0 && publishers > 0);
        Pace {
            rate_per_s,
            publishers,
            burst: 1,
        }
    }

    /// The same rate, a publisher's messages `burst` at a time.
    pub fn in_bursts(self, burst: u64) -> Pace {
        assert!(burst > 0);
        Pace { burst, ..self }
    }

    /// When message `sequence` of `publisher` is due.
    pub fn due_ns(&self, publisher: u64, sequence: u64) -> u64 {
        self.turn_due_ns(sequence / self.burst * self.publishers + publisher)
    }

    /// How many messages of `publisher` are due at `now_ns`.
    pub fn due_count(&self, publisher: u64, now_ns: u64) -> u64 {
        (self.turns_due(now_ns) + self.publishers - 1 - publisher) / self.publishers * self.burst
    }

    /// How many messages of all publishers are due at `now_ns`.
    pub fn total_due_count(&self, now_ns: u64) -> u64 {
        self.turns_due(now_ns) * self.burst
    }

    /// How many turns have begun at `now_ns`.
    pub fn turns_due(&self, now_ns: u64) -> u64 {
        let per_s = 1_000_000_000 * u128::from(self.burst);
        let mut count = (u128::from(now_ns) * u128::from(self.rate_per_s) / per_s) as u64;
        // Due times are rounded up; the turn whose rounded time is now is due now.
        while self.turn_due_ns(count) <= now_ns {
            count += 1;
        }
        count
    }

    /// When a turn begins, given how many were before it.
    pub fn turn_due_ns(&self, turn: u64) -> u64 {
        let message = u128::from(turn) * u128::from(self.burst);
        (message * 1_000_000_000).div_ceil(u128::from(self.rate_per_s)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_due_at_its_time_and_not_before() {
        for rate in [1, 3, 5_000, 999_999, 7_000_001] {
            let pace = Pace::new(rate, 1);
            for message in [0, 1, 2, 77, 1_000_000] {
                let due = pace.due_ns(0, message);
                assert_eq!(pace.due_count(0, due), message + 1, "rate {rate}");
                if message > 0 {
                    assert_eq!(pace.due_count(0, due - 1), message, "rate {rate}");
                }
            }
        }
    }

    #[test]
    fn the_rate_is_exact_over_a_day() {
        let pace = Pace::new(333, 1);
        assert_eq!(pace.total_due_count(86_400_000_000_000), 333 * 86_400 + 1);
    }

    #[test]
    fn publishers_take_turns_and_sum_to_the_rate() {
        let pace = Pace::new(1_000, 3);
        assert_eq!(
            [0, 1, 2].map(|publisher| pace.due_ns(publisher, 0)),
            [0, 1_000_000, 2_000_000]
        );
        for now_ns in [0, 999_999, 1_000_000, 2_500_000, 1_000_000_000] {
            let counts = [0, 1, 2].map(|publisher| pace.due_count(publisher, now_ns));
            assert_eq!(counts.iter().sum::<u64>(), pace.total_due_count(now_ns));
            for (publisher, count) in counts.into_iter().enumerate() {
                assert!(count == 0 || pace.due_ns(publisher as u64, count - 1) <= now_ns);
                assert!(pace.due_ns(publisher as u64, count) > now_ns);
            }
        }
    }

    #[test]
    fn a_burst_is_due_at_once_and_the_rate_stays() {
        let pace = Pace::new(1_000, 2).in_bursts(5);
        assert_eq!([0, 4, 5].map(|sequence| pace.due_ns(0, sequence)), [0, 0, 10_000_000]);
        assert_eq!(
            [0, 4, 5].map(|sequence| pace.due_ns(1, sequence)),
            [5_000_000, 5_000_000, 15_000_000]
        );
        let counts = [0, 4_999_999, 5_000_000, 10_000_000].map(|now_ns| [0, 1].map(|p| pace.due_count(p, now_ns)));
        assert_eq!(counts, [[5, 0], [5, 0], [5, 5], [10, 5]]);
        assert_eq!(pace.total_due_count(1_000_000_000), 1_000 + 5);
    }
}
