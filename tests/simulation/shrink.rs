//! From a failing run to a smaller one that fails in the same way.
//!
//! Called  by `simulate`, with the run as a predicate.
//! Holds   - greedy: a change that still fails is kept, and what it is tried on is what has been kept so far;
//!         - a run with fewer steps is the same run up to its last step; any other change makes another run of it, so
//!           several salts are tried with each.

use crate::overrides::{KNOBS, Overrides};

/// The place of `steps` in `KNOBS`.
const STEPS: usize = 0;
/// Other choices that are tried with each change.
const SALTS: u64 = 3;
/// Other choices that are tried at the end for a shorter run.
const SALTS_AT_END: u64 = 12;

struct Shrinker<F> {
    best: Overrides,
    seed: u64,
    /// `None`: enough has been tried.
    fails: F,
    is_over: bool,
}

/// The smallest found. `fails` says whether a run still fails in the same way, or `None` to end the search.
pub fn shrink(seed: u64, start: &Overrides, fails: impl FnMut(&Overrides) -> Option<bool>) -> Overrides {
    let mut shrinker = Shrinker {
        best: start.clone(),
        seed,
        fails,
        is_over: false,
    };
    shrinker.run();
    shrinker.best
}

impl<F: FnMut(&Overrides) -> Option<bool>> Shrinker<F> {
    fn run(&mut self) {
        let others = || (0..KNOBS.len()).filter(|place| *place != STEPS);
        // With all steps there is room for the failure to come about elsewhere.
        loop {
            let before = self.best.clone();
            others().for_each(|place| self.reduce(place, SALTS));
            if self.best == before || self.is_over {
                break;
            }
        }
        self.reduce(STEPS, 0);
        for salt in 1..=SALTS_AT_END {
            let half = self.now(STEPS) / 2;
            if self.keeps(self.best.with(STEPS, half).with_salt(salt)) {
                self.reduce(STEPS, 0);
            }
        }
        others().for_each(|place| self.reduce(place, 0));
        self.reduce(STEPS, 0);
    }

    fn now(&self, place: usize) -> usize {
        self.best.value(self.seed, place)
    }

    /// Keeps a change if it fails, too.
    fn keeps(&mut self, changed: Overrides) -> bool {
        if self.is_over || changed == self.best {
            return false;
        }
        let fails = (self.fails)(&changed);
        self.is_over = fails.is_none();
        if fails == Some(true) {
            self.best = changed;
        }
        fails == Some(true)
    }

    fn keeps_with_some_salt(&mut self, changed: &Overrides, salts: u64) -> bool {
        let mut tried = vec![changed.salt];
        tried.extend((1..=salts).filter(|salt| *salt != changed.salt));
        tried.into_iter().any(|salt| self.keeps(changed.with_salt(salt)))
    }

    /// Brings one value as far towards its simplest as the failure allows.
    fn reduce(&mut self, place: usize, salts: u64) {
        let aim = KNOBS[place].aim;
        let now = self.now(place);
        if now == aim || self.keeps_with_some_salt(&self.best.with(place, aim), salts) || !KNOBS[place].is_gradual {
            return;
        }
        let (mut holds, mut fails) = (aim, now);
        while fails.saturating_sub(holds) > 1 && !self.is_over {
            let middle = holds + (fails - holds) / 2;
            if self.keeps_with_some_salt(&self.best.with(place, middle), salts) {
                fails = middle;
            } else {
                holds = middle;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> usize {
        KNOBS.iter().position(|knob| knob.name == name).expect("a knob")
    }

    fn shrunk(fails: impl Fn(&Overrides) -> bool) -> (Overrides, usize) {
        let mut runs = 0;
        let found = shrink(7, &Overrides::default(), |tried| {
            runs += 1;
            Some(fails(tried))
        });
        (found, runs)
    }

    #[test]
    fn what_the_failure_needs_stays_and_all_else_becomes_simple() {
        let (steps, clients) = (place("steps"), place("clients"));
        let (found, runs) = shrunk(|tried| tried.value(7, steps) >= 123 && tried.value(7, clients) >= 2);
        for (place, knob) in KNOBS.iter().enumerate() {
            let value = found.value(7, place);
            match knob.name {
                "steps" => assert_eq!(value, 123),
                "clients" => assert_eq!(value, 2),
                name => assert_eq!(value, knob.aim, "{name}"),
            }
        }
        assert!(runs < 300, "{runs} runs");
    }

    #[test]
    fn a_failure_that_other_choices_bring_back_is_found_with_them() {
        let crashes = place("crash_permyriad");
        let (found, _) = shrunk(|tried| tried.value(7, crashes) > 0 || tried.salt == 2);
        assert_eq!((found.value(7, crashes), found.salt), (0, 2));
    }

    #[test]
    fn what_fails_in_another_way_is_not_kept_and_the_search_ends_when_told() {
        let (found, _) = shrunk(|_| false);
        assert_eq!(found, Overrides::default());
        let mut left = 5;
        shrink(7, &Overrides::default(), |_| {
            assert!(left > 0, "it asks after the end");
            left -= 1;
            (left > 0).then_some(true)
        });
    }
}
