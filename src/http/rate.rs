//! How often somebody may call: so many times within any one second.
//!
//! Owns    the calls of the last second.
//! Called  by `auth` (the REST API, by account) and by `connector` (by account and device).
//! Holds   - a call is let in if fewer than the limit were let in during the second before it; a call that is refused does
//!           not count;
//!         - what it remembers is one entry per call of the last second, and at most [`RATE_CALLS_MAX`] of them: beyond that
//!           everybody is refused;
//!         - no clock: the time is an argument.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::limits::RATE_CALLS_MAX;

const WINDOW: Duration = Duration::from_secs(1);

pub struct RateLimit<K> {
    /// 0: no limit.
    calls_per_second: u32,
    /// The calls let in within the last second, in their order: when, and whose.
    calls: VecDeque<(Duration, K)>,
    /// How many of them each has.
    counts: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash> RateLimit<K> {
    pub fn new(calls_per_second: u32) -> RateLimit<K> {
        RateLimit {
            calls_per_second,
            calls: VecDeque::new(),
            counts: HashMap::new(),
        }
    }

    /// Whether this call is let in. `now` is the time since any fixed moment; it never goes back.
    pub fn take(&mut self, key: &K, now: Duration) -> bool {
        if self.calls_per_second == 0 {
            return true;
        }
        self.forget(now);
        if self.calls.len() >= RATE_CALLS_MAX {
            return false;
        }
        match self.counts.get_mut(key) {
            Some(count) if *count >= self.calls_per_second => return false,
            Some(count) => *count += 1,
            None => drop(self.counts.insert(key.clone(), 1)),
        }
        self.calls.push_back((now, key.clone()));
        true
    }

    /// Calls that are a second old or older.
    fn forget(&mut self, now: Duration) {
        while let Some((at, _)) = self.calls.front()
            && *at + WINDOW <= now
        {
            let (_, key) = self.calls.pop_front().expect("it was looked at");
            let count = self.counts.get_mut(&key).expect("every call is counted");
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn the_call_after_the_limit_is_refused_until_the_first_is_a_second_old() {
        let mut rate = RateLimit::new(20);
        for call in 0..20 {
            assert!(rate.take(&1, at(call * 10_000)), "{call}");
        }
        assert!(!rate.take(&1, at(200_000)));
        assert!(!rate.take(&1, at(999_999)));
        assert!(rate.take(&1, at(1_000_000)), "the first one is a second old");
        assert!(!rate.take(&1, at(1_009_999)));
        assert!(rate.take(&1, at(1_010_000)));
    }

    #[test]
    fn refused_calls_do_not_count_and_others_are_not_concerned() {
        let mut rate = RateLimit::new(1);
        assert!(rate.take(&"a", at(0)));
        for us in [1, 300_000, 999_999] {
            assert!(!rate.take(&"a", at(us)));
            assert_eq!(rate.take(&"b", at(us)), us == 1);
        }
        assert!(rate.take(&"a", at(1_000_000)));
    }

    #[test]
    fn what_is_remembered_expires_and_is_bounded() {
        let mut rate = RateLimit::new(5);
        for key in 0..RATE_CALLS_MAX {
            assert!(rate.take(&key, at(0)));
        }
        assert!(!rate.take(&RATE_CALLS_MAX, at(1)), "no room");
        assert!(rate.take(&0, at(1_000_000)));
        assert_eq!((rate.calls.len(), rate.counts.len()), (1, 1));
    }

    #[test]
    fn zero_is_no_limit() {
        let mut rate = RateLimit::new(0);
        assert!((0..1_000).all(|_| rate.take(&1, at(0))));
    }
}
