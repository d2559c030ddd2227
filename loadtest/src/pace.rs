//! The schedule of an open loop: message k of the run is due at start + k / rate, whatever the broker does.
//!
//! Called  by `throughput`, which sends what is due and counts latency from the due time: a broker that stalls does not
//!         slow the clock it is measured by.
//! Holds   - publishers take turns: message k belongs to publisher k mod publishers;
//!         - pure arithmetic on nanoseconds since the start of the schedule, no drift however late it is asked.

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate_per_s: u64,
    publishers: u64,
}

impl Pace {
    /// `rate_per_s` messages a second over all publishers; neither is 0.
    pub fn new(rate_per_s: u64, publishers: u64) -> Pace {
        assert!(rate_per_s > 0 && publishers > 0);
        Pace { rate_per_s, publishers }
    }

    /// When message `sequence` of `publisher` is due.
    pub fn due_ns(&self, publisher: u64, sequence: u64) -> u64 {
        self.message_due_ns(sequence * self.publishers + publisher)
    }

    /// How many messages of `publisher` are due at `now_ns`.
    pub fn due_count(&self, publisher: u64, now_ns: u64) -> u64 {
        let total = self.total_due_count(now_ns);
        (total + self.publishers - 1 - publisher) / self.publishers
    }

    /// How many messages of all publishers are due at `now_ns`.
    pub fn total_due_count(&self, now_ns: u64) -> u64 {
        let mut count = (now_ns as u128 * self.rate_per_s as u128 / 1_000_000_000) as u64;
        // Due times are rounded up; the message whose rounded time is now is due now.
        while self.message_due_ns(count) <= now_ns {
            count += 1;
        }
        count
    }

    /// When the next message of any publisher is due, given that `sent` of them are.
    pub fn message_due_ns(&self, message: u64) -> u64 {
        (message as u128 * 1_000_000_000).div_ceil(self.rate_per_s as u128) as u64
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
}
