//! What of a seed's `Profile` is other than chance made it: to shrink a failing seed, and to replay it as it was shrunk.
//!
//! Called  by `World::new`; made by `shrink`, and from the command line by `simulate`.
//! Holds   - what is not named is as the seed decides;
//!         - as text they are `clients=2,steps=120`, which gives them back.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::faults::Profile;
use crate::random::{Random, mix};

/// One number of a `Profile`.
pub struct Knob {
    pub name: &'static str,
    /// What it may be, both ends included.
    pub least: usize,
    pub most: usize,
    /// Where a run is simplest.
    pub aim: usize,
    /// Whether what lies between is worth trying.
    pub is_gradual: bool,
    read: fn(&Profile) -> usize,
    write: fn(&mut Profile, usize),
}

macro_rules! knob {
    ($name:ident at $($field:ident).+, $least:expr, $most:expr, $aim:expr, $is_gradual:expr) => {
        Knob {
            name: stringify!($name),
            least: $least,
            most: $most,
            aim: $aim,
            is_gradual: $is_gradual,
            read: |profile| profile.$($field).+ as usize,
            write: |profile, value| profile.$($field).+ = value as _,
        }
    };
}

/// A size: the fewer, the simpler.
macro_rules! size {
    ($name:ident, $least:expr, $most:expr) => {
        knob!($name at $name, $least, $most, $least, true)
    };
}

/// How often something happens: the simplest is never.
macro_rules! chance {
    ($name:ident, $most:expr) => {
        knob!($name at $name, 0, $most, 0, false)
    };
}

/// A bound: the simplest is one that is not met.
macro_rules! bound {
    ($name:ident at $($field:ident).+, $least:expr, $most:expr) => {
        knob!($name at $($field).+, $least, $most, $most, false)
    };
}

/// In the order in which they are worth trying. `steps` is the first: the shrinker knows it.
pub const KNOBS: &[Knob] = &[
    knob!(steps at steps, 0, 1_000_000, 0, true),
    chance!(crash_permyriad, 10_000),
    chance!(crashes_at_end_max, 100),
    size!(cores, 1, 32),
    size!(clients, 1, 200),
    size!(tenants, 0, 8),
    chance!(abusers, 8),
    chance!(rotate_percent, 100),
    chance!(remove_percent, 100),
    chance!(suspend_percent, 100),
    chance!(quota_percent, 100),
    chance!(foreign_percent, 100),
    chance!(dollar_percent, 100),
    chance!(outage_percent, 100),
    chance!(commit_fails_percent, 100),
    chance!(reset_permille, 1_000),
    chance!(leave_permille, 1_000),
    chance!(durable_percent, 100),
    chance!(retain_percent, 100),
    chance!(run_percent, 100),
    chance!(wildcard_percent, 100),
    chance!(v31_percent, 100),
    Knob {
        name: "keep_alive",
        least: 0,
        most: 1,
        aim: 0,
        is_gradual: false,
        read: |profile| usize::from(profile.keep_alive),
        write: |profile, value| profile.keep_alive = value > 0,
    },
    chance!(slow_reader_percent, 100),
    chance!(crumbs_percent, 100),
    Knob {
        name: "ample_queue",
        least: 1,
        most: 1,
        aim: 1,
        is_gradual: false,
        read: |profile| usize::from(profile.ample_queue),
        write: |profile, _| {
            profile.ample_queue = true;
            profile.kept_bytes_max = None;
            profile.limits.queued_max = 100_000;
            profile.limits.queued_bytes_max = 1 << 30;
        },
    },
    Knob {
        name: "ample_outbox",
        least: 1,
        most: 1,
        aim: 1,
        is_gradual: false,
        read: |profile| usize::from(profile.ample_outbox),
        write: |profile, _| {
            profile.ample_outbox = true;
            profile.limits.outbox_bytes_max = 1 << 30;
        },
    },
    bound!(inflight_max at limits.inflight_max, 1, 256),
    bound!(retained_memory_bytes_max at limits.retained_memory_bytes_max, 0, 1 << 30),
    bound!(subscriptions_max at limits.subscriptions_max, 2, 1_000),
    bound!(fetch_entries_max at fetch_entries_max, 1, 1_000),
    bound!(ring_parcels at ring_parcels, 1, 8),
    bound!(down_max at down_max, 1, 1 << 20),
    size!(topics, 1, 250),
    size!(payload_max, 8, 100_000),
    size!(step_ms_max, 1, 1_000),
    size!(shard_levels, 1, 4),
    knob!(overflow_wait_ms at limits.overflow_wait_ms, 0, 10_000, 0, false),
    knob!(publish_percent at publish_percent, 0, 100, 90, false),
];

/// Other choices in the same surroundings, 0: those of the seed itself.
const SALT: &str = "salt";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// By place in `KNOBS`.
    values: BTreeMap<usize, usize>,
    pub salt: u64,
}

impl Overrides {
    pub fn apply(&self, profile: &mut Profile, random: &mut Random) {
        for (place, value) in &self.values {
            (KNOBS[*place].write)(profile, *value);
        }
        if self.salt > 0 {
            *random = Random::new(mix(random.next() ^ self.salt));
        }
    }

    /// What a seed's run has at this place of `KNOBS`.
    pub fn value(&self, seed: u64, place: usize) -> usize {
        let set = self.values.get(&place).copied();
        set.unwrap_or_else(|| (KNOBS[place].read)(&Profile::of(&mut Random::new(seed))))
    }

    /// The same, but for one value.
    pub fn with(&self, place: usize, value: usize) -> Overrides {
        let mut changed = self.clone();
        changed.values.insert(place, value);
        changed
    }

    pub fn with_salt(&self, salt: u64) -> Overrides {
        Overrides { salt, ..self.clone() }
    }
}

impl fmt::Display for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.iter();
        let mut parts: Vec<String> = values
            .map(|(place, value)| format!("{}={value}", KNOBS[*place].name))
            .collect();
        if self.salt > 0 {
            parts.push(format!("{SALT}={}", self.salt));
        }
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Overrides {
    type Err = String;

    fn from_str(text: &str) -> Result<Overrides, String> {
        let mut overrides = Overrides::default();
        let mut named = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("write it as NAME=NUMBER, not `{part}`"))?;
            if named.contains(&name) {
                return Err(format!("`{name}` stands twice; give it once"));
            }
            named.push(name);
            let number = |least: usize, most: usize| {
                let value = value.parse().ok().filter(|value| (least..=most).contains(value));
                value.ok_or_else(|| format!("`{name}` is a number from {least} to {most}; `{part}` is not"))
            };
            if name == SALT {
                overrides.salt = number(0, u32::MAX as usize)? as u64;
                continue;
            }
            let Some(place) = KNOBS.iter().position(|knob| knob.name == name) else {
                let names: Vec<&str> = KNOBS.iter().map(|knob| knob.name).chain([SALT]).collect();
                return Err(format!(
                    "`{name}` is no setting of a run; these are: {}",
                    names.join(", ")
                ));
            };
            overrides
                .values
                .insert(place, number(KNOBS[place].least, KNOBS[place].most)?);
        }
        Ok(overrides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_override_is_read_as_it_is_written_and_changes_what_it_names() {
        for (place, knob) in KNOBS.iter().enumerate() {
            for value in [knob.least, knob.aim, knob.most] {
                let overrides = Overrides::default().with(place, value).with_salt(3);
                assert_eq!(overrides.to_string(), format!("{}={value},salt=3", knob.name));
                assert_eq!(overrides.to_string().parse(), Ok(overrides.clone()));
                let mut random = Random::new(1);
                let mut profile = Profile::of(&mut random);
                overrides.apply(&mut profile, &mut random);
                assert_eq!((knob.read)(&profile), value, "{}", knob.name);
                assert_eq!(overrides.value(1, place), value, "{}", knob.name);
            }
        }
        let several = "steps=120,crash_permyriad=0,clients=2";
        assert_eq!(
            several.parse::<Overrides>().map(|several| several.to_string()),
            Ok(several.to_owned())
        );
        assert_eq!("".parse(), Ok(Overrides::default()));
    }

    #[test]
    fn a_wrong_override_gets_a_sentence() {
        let refused = |text: &str| text.parse::<Overrides>().expect_err(text);
        assert!(refused("klients=2").contains("no setting of a run; these are: steps, "));
        assert_eq!(
            refused("clients=0"),
            "`clients` is a number from 1 to 200; `clients=0` is not"
        );
        assert_eq!(refused("clients"), "write it as NAME=NUMBER, not `clients`");
        assert_eq!(refused("steps=1,steps=2"), "`steps` stands twice; give it once");
    }
}
