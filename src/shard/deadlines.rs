//! Every timer of one core, in one structure: a wheel of coarse slots.
//!
//! Owns    one entry per connection with a Keep Alive: 8 bytes, no runtime timer.
//! Called  by `shard::connect` (arm) and on `Input::Tick` (expire, and arm again).
//! Holds   - an entry comes out at or after its time, at most [`DEADLINE_TICK_MS`] late, never before;
//!         - traffic does not touch the wheel: what comes out is checked against the last packet and armed again.

use crate::limits::DEADLINE_TICK_MS;

use super::event::{ConnectionId, Millis};

/// Slots of the wheel: 128 s ahead. What is due later is armed again on the way.
const SLOTS: usize = 512;

/// A moment in ticks of [`DEADLINE_TICK_MS`] since the clock's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TickNumber(pub u32);

impl TickNumber {
    /// The first tick at or after `at`.
    pub fn at_or_after(at: Millis) -> TickNumber {
        TickNumber(at.0.div_ceil(DEADLINE_TICK_MS) as u32)
    }

    /// The last tick at or before `at`.
    pub fn at_or_before(at: Millis) -> TickNumber {
        TickNumber((at.0 / DEADLINE_TICK_MS) as u32)
    }

    pub fn millis(self) -> Millis {
        Millis(u64::from(self.0) * DEADLINE_TICK_MS)
    }
}

/// The wheel.
pub struct Deadlines {
    slots: Vec<Vec<ConnectionId>>,
    /// Every tick before this one has been expired.
    next: TickNumber,
    armed: usize,
}

impl Deadlines {
    pub fn new() -> Deadlines {
        Deadlines {
            slots: vec![Vec::new(); SLOTS],
            next: TickNumber(0),
            armed: 0,
        }
    }

    /// `connection` comes out of [`Deadlines::expire`] at `due`, or earlier if that is more than the wheel's span ahead.
    pub fn arm(&mut self, connection: ConnectionId, due: TickNumber) {
        let ahead = due.0.saturating_sub(self.next.0).min(SLOTS as u32 - 1);
        let slot = (self.next.0 + ahead) as usize % SLOTS;
        self.slots[slot].push(connection);
        self.armed += 1;
    }

    /// Moves everything due at `now` into `due`.
    pub fn expire(&mut self, now: Millis, due: &mut Vec<ConnectionId>) {
        let last = TickNumber::at_or_before(now);
        if self.armed == 0 {
            self.next = self.next.max(TickNumber(last.0 + 1));
            return;
        }
        while self.next <= last && self.armed > 0 {
            let slot = &mut self.slots[self.next.0 as usize % SLOTS];
            self.armed -= slot.len();
            due.append(slot);
            // A storm of connects must not leave its capacity behind.
            if slot.capacity() > 1_024 {
                *slot = Vec::new();
            }
            self.next = TickNumber(self.next.0 + 1);
        }
        self.next = self.next.max(TickNumber(last.0 + 1));
    }

    /// The time of the next entry.
    pub fn next_deadline(&self) -> Option<Millis> {
        if self.armed == 0 {
            return None;
        }
        let ahead = (0..SLOTS as u32).find(|ahead| !self.slots[(self.next.0 + ahead) as usize % SLOTS].is_empty())?;
        Some(TickNumber(self.next.0 + ahead).millis())
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(index: u32) -> ConnectionId {
        ConnectionId { index, generation: 0 }
    }

    #[test]
    fn nothing_comes_out_before_its_time_and_everything_within_a_tick_after() {
        for due_ms in [1, 249, 250, 251, 7_500, 127_000] {
            let mut deadlines = Deadlines::new();
            deadlines.arm(connection(1), TickNumber::at_or_after(Millis(due_ms)));
            let mut due = Vec::new();
            let mut now = 0;
            while due.is_empty() {
                assert!(now < due_ms + DEADLINE_TICK_MS, "{due_ms} not out at {now}");
                now += 1;
                deadlines.expire(Millis(now), &mut due);
            }
            assert!(now >= due_ms, "{due_ms} came out at {now}");
            assert_eq!(deadlines.next_deadline(), None);
        }
    }

    #[test]
    fn the_next_deadline_is_the_earliest_and_survives_a_long_silence() {
        let mut deadlines = Deadlines::new();
        let mut due = Vec::new();
        deadlines.expire(Millis(1_000_000), &mut due);
        deadlines.arm(connection(1), TickNumber::at_or_after(Millis(1_010_000)));
        deadlines.arm(connection(2), TickNumber::at_or_after(Millis(1_005_000)));
        assert_eq!(deadlines.next_deadline(), Some(Millis(1_005_000)));
        deadlines.expire(Millis(2_000_000), &mut due);
        assert_eq!(due, [connection(2), connection(1)]);
    }

    #[test]
    fn what_is_due_beyond_the_span_comes_out_early_to_be_armed_again() {
        let mut deadlines = Deadlines::new();
        deadlines.arm(connection(1), TickNumber::at_or_after(Millis(98_000_000)));
        let next = deadlines.next_deadline().unwrap();
        assert!(next <= Millis(SLOTS as u64 * DEADLINE_TICK_MS));
    }
}
