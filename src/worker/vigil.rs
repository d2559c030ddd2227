//! Whether a core that has nothing to do looks on for a moment before it sleeps.
//!
//! A sleep and the wake from it cost as much CPU time as some tens of microseconds of looking, and the wake comes late: what
//! arrives within that time is cheaper and sooner met awake. Whether it will is learnt from what came after the last times
//! there was nothing to do: an acknowledgement follows its message, and at a steady rate the next message the one before.
//!
//! Owns    the memory of those times.
//! Called  by `worker` around each sleep.
//! Holds   - a core looks on only where that has paid every other time, so an idle core sleeps;
//!         - one that looked on in vain has spent what the sleep it might have saved would have cost, and no more.

use std::time::Duration;

use crate::limits::VIGIL_US;

/// How the last times ended, newest in the lowest bit: 1 where something came within [`VIGIL_US`].
#[derive(Debug)]
pub struct Vigil {
    endings: u16,
    has_cpu: bool,
}

const LENGTH: Duration = Duration::from_micros(VIGIL_US);
const IN_TIME_MIN: u32 = u16::BITS / 2;

impl Vigil {
    /// `has_cpu`: the core has a CPU to itself, as far as the broker goes. Else what it looks for may need that CPU to come.
    pub fn new(has_cpu: bool) -> Vigil {
        Vigil { endings: 0, has_cpu }
    }

    /// How long to look on now; zero: sleep at once.
    pub fn length(&self) -> Duration {
        match self.has_cpu && self.endings.count_ones() >= IN_TIME_MIN {
            true => LENGTH,
            false => Duration::ZERO,
        }
    }

    /// Something came after this time, met awake or asleep.
    pub fn ended(&mut self, after: Duration) {
        self.endings = self.endings << 1 | u16::from(after <= LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_core_sleeps_and_one_for_which_more_comes_soon_looks_on() {
        let mut vigil = Vigil::new(true);
        assert_eq!(vigil.length(), Duration::ZERO);
        for _ in 0..IN_TIME_MIN {
            vigil.ended(LENGTH);
        }
        assert_eq!(vigil.length(), LENGTH);
        // Every other time is often enough; less is not.
        for _ in 0..100 {
            vigil.ended(LENGTH * 2);
            vigil.ended(LENGTH / 2);
        }
        assert_eq!(vigil.length(), LENGTH);
        for _ in 0..2 {
            vigil.ended(LENGTH * 2);
        }
        assert_eq!(vigil.length(), Duration::ZERO);
    }

    #[test]
    fn cores_that_share_cpus_sleep() {
        let mut vigil = Vigil::new(false);
        for _ in 0..100 {
            vigil.ended(Duration::ZERO);
        }
        assert_eq!(vigil.length(), Duration::ZERO);
    }
}
