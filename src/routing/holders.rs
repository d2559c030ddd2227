//! The Sessions that hold one filter.
//!
//! ```text
//! One     the Target itself, in the filter's entry                       most filters
//! Many    a boxed list of Targets, scanned up to SCAN_MAX                a fan-out
//!         with a table Session -> place beside it beyond that            up to every Session of the core
//! ```
//!
//! Owns    the Targets of one filter.
//! Called  by `subscriptions`.
//! Holds   - never empty: who takes the last Target takes the filter;
//!         - the Targets are contiguous, in an order that follows from the operations alone: the last one fills a gap;
//!         - adding and removing are O(1) at any size; memory follows the number of Targets down as well as up.

use hashbrown::HashTable;

use super::subscriptions::{SessionIndex, Target};

/// Up to here a scan of 8-byte Targets is no slower than a probe of a table.
const SCAN_MAX: usize = 16;

pub(super) enum Holders {
    One(Target),
    Many(Box<Crowd>),
}

const _: () = assert!(size_of::<Holders>() == 16);

pub(super) struct Crowd {
    targets: Vec<Target>,
    /// Each Session's place in `targets`; empty while these are few enough to scan.
    places: HashTable<u32>,
}

/// What [`Holders::remove`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Removed,
    /// It is the only one and stays: the filter is to be removed.
    IsLast,
    NotFound,
}

impl Holders {
    pub fn as_slice(&self) -> &[Target] {
        match self {
            Holders::One(target) => std::slice::from_ref(target),
            Holders::Many(crowd) => &crowd.targets,
        }
    }

    /// Adds `target`, or replaces the QoS of its Session; says whether the Session was there.
    pub fn insert(&mut self, target: Target) -> bool {
        match self {
            Holders::One(only) if only.session == target.session => {
                only.qos = target.qos;
                true
            }
            Holders::One(only) => {
                let crowd = Crowd {
                    targets: vec![*only, target],
                    places: HashTable::new(),
                };
                *self = Holders::Many(Box::new(crowd));
                false
            }
            Holders::Many(crowd) => match crowd.place(target.session) {
                Some(place) => {
                    crowd.targets[place].qos = target.qos;
                    true
                }
                None => {
                    crowd.push(target);
                    false
                }
            },
        }
    }

    pub fn remove(&mut self, session: SessionIndex) -> Removal {
        match self {
            Holders::One(only) if only.session == session => Removal::IsLast,
            Holders::One(_) => Removal::NotFound,
            Holders::Many(crowd) => {
                let Some(place) = crowd.place(session) else {
                    return Removal::NotFound;
                };
                crowd.swap_remove(place);
                if let [only] = *crowd.targets {
                    *self = Holders::One(only);
                }
                Removal::Removed
            }
        }
    }
}

impl Crowd {
    fn place(&self, session: SessionIndex) -> Option<usize> {
        if self.places.is_empty() {
            return self.targets.iter().position(|target| target.session == session);
        }
        let is_session = |&place: &u32| self.targets[place as usize].session == session;
        self.places
            .find(session_hash(session), is_session)
            .map(|&place| place as usize)
    }

    /// The Session is not in the list.
    fn push(&mut self, target: Target) {
        let targets = &mut self.targets;
        let place = targets.len() as u32;
        targets.push(target);
        let hash_at = |&place: &u32| session_hash(targets[place as usize].session);
        if !self.places.is_empty() {
            self.places.insert_unique(session_hash(target.session), place, hash_at);
        } else if targets.len() > SCAN_MAX {
            self.places.reserve(targets.len(), hash_at);
            for place in 0..=place {
                self.places.insert_unique(hash_at(&place), place, hash_at);
            }
        }
    }

    fn swap_remove(&mut self, place: usize) {
        let last = self.targets.len() - 1;
        if !self.places.is_empty() {
            self.entry(place).remove();
            if place != last {
                *self.entry(last).get_mut() = place as u32;
            }
        }
        self.targets.swap_remove(place);
        if self.targets.len() <= SCAN_MAX / 2 {
            self.places = HashTable::new();
        }
        if self.targets.len() < self.targets.capacity() / 4 {
            self.targets.shrink_to(self.targets.len() * 2);
            let Crowd { targets, places } = self;
            places.shrink_to(places.len() * 2, |&place| session_hash(targets[place as usize].session));
        }
    }

    fn entry(&mut self, place: usize) -> hashbrown::hash_table::OccupiedEntry<'_, u32> {
        let hash = session_hash(self.targets[place].session);
        let entry = self.places.find_entry(hash, |&at| at as usize == place);
        entry.expect("every place is in the table, or none is")
    }
}

/// Places in a core's slab are dense and not a client's to choose: no key is needed.
fn session_hash(session: SessionIndex) -> u64 {
    let mixed = u64::from(session).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::packet::QoS;

    fn target(session: SessionIndex) -> Target {
        Target {
            session,
            qos: QoS::AtMostOnce,
        }
    }

    #[test]
    fn a_million_sessions_come_and_go_each_in_constant_time() {
        const SESSIONS: u32 = 1_000_000;
        let mut holders = Holders::One(target(0));
        for session in 1..SESSIONS {
            assert!(!holders.insert(target(session)));
        }
        assert_eq!(holders.as_slice().len(), SESSIONS as usize);
        assert!(holders.insert(target(500_000)));
        // From both ends in turn, so that gaps are filled from elsewhere.
        for session in 0..SESSIONS / 2 {
            assert_eq!(holders.remove(session), Removal::Removed);
            if session + 1 < SESSIONS / 2 {
                assert_eq!(holders.remove(SESSIONS - 1 - session), Removal::Removed);
            }
        }
        assert_eq!(holders.as_slice(), [target(SESSIONS / 2)]);
        assert!(matches!(holders, Holders::One(_)));
        assert_eq!(holders.remove(0), Removal::NotFound);
        assert_eq!(holders.remove(SESSIONS / 2), Removal::IsLast);
    }
}
