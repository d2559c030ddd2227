//! What one account may have and do at a time, over all cores, so that it takes nothing from the others.
//!
//! Owns    [`Quotas`], the bounds; [`OwnQuotas`], where an account has others than the broker's; [`Usage`], what it has now.
//! Called  by `access`, which gives every [`Tenant`](super::access::Tenant) its own; by `shard`, where something is taken or
//!         given back.
//! Holds   - 0 is any number; what is counted is counted all the same, so a bound may come while the broker runs;
//!         - who has more than a bound that has come later keeps it, and gets no more;
//!         - nothing but bounds depends on the counts, so cores need no order among them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Nanoseconds: of these the turns of a publish rate are made.
const SECOND_NS: u64 = 1_000_000_000;
const MS_NS: u64 = 1_000_000;

/// The bounds of an account; 0: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Connections; a further one is refused with return code 3.
    pub connections_max: u32,
    /// Durable Sessions, connected or not; a CONNECT that begins a further one is refused likewise.
    pub sessions_max: u32,
    /// Filters over all Sessions; a further one gets 0x80 (level 3: granted, never delivered).
    pub subscriptions_max: u32,
    /// PUBLISH packets in a second; who has more to send is not read until there is room.
    pub publishes_per_s_max: u32,
    /// Bytes of retained messages and of those that wait for Sessions, topic names included; beyond it the newest are
    /// delivered to whoever takes them now, and not kept.
    pub kept_bytes_max: u64,
}

/// The bounds that an account has of its own, on disk with it; `None`: that of the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct OwnQuotas {
    pub connections_max: Option<u32>,
    pub sessions_max: Option<u32>,
    pub subscriptions_max: Option<u32>,
    pub publishes_per_s_max: Option<u32>,
    pub kept_bytes_max: Option<u64>,
}

impl OwnQuotas {
    pub fn is_empty(&self) -> bool {
        *self == OwnQuotas::default()
    }

    pub fn over(&self, under: &Quotas) -> Quotas {
        Quotas {
            connections_max: self.connections_max.unwrap_or(under.connections_max),
            sessions_max: self.sessions_max.unwrap_or(under.sessions_max),
            subscriptions_max: self.subscriptions_max.unwrap_or(under.subscriptions_max),
            publishes_per_s_max: self.publishes_per_s_max.unwrap_or(under.publishes_per_s_max),
            kept_bytes_max: self.kept_bytes_max.unwrap_or(under.kept_bytes_max),
        }
    }
}

/// What an account has now.
#[derive(Debug, Default)]
pub struct Usage {
    pub devices: Count,
    pub connections: Count,
    pub sessions: Count,
    pub subscriptions: Count,
    pub kept: KeptBytes,
    pub publishes: Turns,
}

/// Things of one kind.
#[derive(Debug, Default)]
pub struct Count(AtomicU32);

impl Count {
    /// One more; false where there are `max` already.
    pub fn take_below(&self, max: u32) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < max).then_some(count + 1)
        });
        taken.is_ok()
    }

    /// The same, where 0 is any number.
    pub fn take(&self, max: u32) -> bool {
        self.take_below(if max == 0 { u32::MAX } else { max })
    }

    /// One that is there whatever the bound.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn give_back(&self, count: u32) {
        let before = self.0.fetch_sub(count, Ordering::Relaxed);
        assert!(before >= count, "what is given back was counted before");
    }

    pub fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes that are kept.
#[derive(Debug, Default)]
pub struct KeptBytes(AtomicU64);

impl KeptBytes {
    /// Whether so many more are within the bound. Whoever asks and then keeps may overshoot it by what other cores keep
    /// meanwhile: one message of each.
    pub fn has_room(&self, bytes: usize, max: u64) -> bool {
        max == 0 || self.now().saturating_add(bytes as u64) <= max
    }

    /// What takes `before` now takes `after`.
    pub fn change(&self, before: usize, after: usize) {
        if after >= before {
            self.0.fetch_add((after - before) as u64, Ordering::Relaxed);
        } else {
            let there = self.0.fetch_sub((before - after) as u64, Ordering::Relaxed);
            assert!(there >= (before - after) as u64, "what goes was kept before");
        }
    }

    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Turns of which so many come a second, and as many as come in one second are saved up. All cores draw from one: an account
/// with one connection gets all of them, whichever core that is on. (A bucket of tokens, kept as the time at which it would be
/// full again, so that one number has all of it.)
#[derive(Debug, Default)]
pub struct Turns {
    full_at_ns: AtomicU64,
}

impl Turns {
    /// Takes one at this time; false if there is none.
    pub fn take(&self, per_s: u32, now_ms: u64) -> bool {
        let (turn_ns, now_ns) = (turn_ns(per_s), now_ms * MS_NS);
        let taken = self
            .full_at_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now_ns) + turn_ns;
                (next <= now_ns + SECOND_NS).then_some(next)
            });
        taken.is_ok()
    }

    /// How many there are at this time.
    pub fn ready(&self, per_s: u32, now_ms: u64) -> u64 {
        let now_ns = now_ms * MS_NS;
        let missing_ns = self.full_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        SECOND_NS.saturating_sub(missing_ns) / turn_ns(per_s)
    }
}

fn turn_ns(per_s: u32) -> u64 {
    (SECOND_NS / u64::from(per_s)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_is_any_number_and_a_bound_that_comes_later_takes_nothing_away() {
        let count = Count::default();
        assert!((0..5).all(|_| count.take(0)));
        assert!(!count.take(3) && !count.take(5) && count.take(6));
        assert!(!count.take_below(0), "of devices, 0 is none");
        count.give_back(6);
        assert!(count.take(1) && !count.take(1));
        let kept = KeptBytes::default();
        kept.change(0, 100);
        assert!(kept.has_room(1, 0) && kept.has_room(28, 128) && !kept.has_room(29, 128) && !kept.has_room(1, 50));
        kept.change(100, 40);
        assert_eq!(kept.now(), 40);
    }

    #[test]
    fn what_an_account_has_of_its_own_goes_before_the_broker_s() {
        let broker = Quotas {
            connections_max: 1,
            sessions_max: 2,
            subscriptions_max: 3,
            publishes_per_s_max: 4,
            kept_bytes_max: 5,
        };
        assert_eq!(OwnQuotas::default().over(&broker), broker);
        let own = OwnQuotas {
            connections_max: Some(0),
            kept_bytes_max: Some(9),
            ..OwnQuotas::default()
        };
        let both = own.over(&broker);
        assert_eq!(
            (both.connections_max, both.kept_bytes_max, both.sessions_max),
            (0, 9, 2)
        );
    }

    #[test]
    fn turns_of_a_second_are_saved_up_and_no_more() {
        let turns = Turns::default();
        let taken = |per_s, now_ms| (0..100_000).take_while(|_| turns.take(per_s, now_ms)).count();
        assert_eq!(taken(10, 0), 10);
        assert_eq!(taken(10, 99), 0);
        assert_eq!(turns.ready(10, 350), 3);
        assert_eq!(taken(10, 350), 3);
        assert_eq!(taken(10, 100_000), 10, "not those of 100 seconds");
        assert_eq!(turns.ready(1_000_000, 200_000), 1_000_000);
    }

    proptest! {
        /// Whoever asks whenever: in any time there are at most as many turns as come in it, and those saved up.
        #[test]
        fn no_stretch_of_time_has_more_turns_than_its_rate(
            per_s in 1u32..5_000,
            asks in proptest::collection::vec((0u64..500, 0usize..300), 1..60),
        ) {
            let turns = Turns::default();
            let (mut now_ms, mut taken) = (0, Vec::new());
            for (wait_ms, count) in asks {
                now_ms += wait_ms;
                let ready = turns.ready(per_s, now_ms);
                let got = (0..count).filter(|_| turns.take(per_s, now_ms)).count() as u64;
                prop_assert_eq!(got, ready.min(count as u64));
                taken.push((now_ms, got));
            }
            for (from, (began_ms, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (at_ms, got) in &taken[from..] {
                    sum += got;
                    // A turn is a whole number of nanoseconds: at most a part in 200,000 sooner than it should be.
                    let most = ((at_ms - began_ms) * MS_NS + SECOND_NS) / turn_ns(per_s);
                    prop_assert!(sum <= most, "{} in {} ms", sum, at_ms - began_ms);
                }
            }
        }
    }
}
