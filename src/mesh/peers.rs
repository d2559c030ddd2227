//! Sets of cores, one bit each: which rings hold something, which senders wait for room.
//!
//! Called  by `mesh`, so that looking at every ring of 64 peers is the load of one word.

use super::Padded;
use super::atomic::{AtomicU64, Ordering};

fn words_for(cores: usize) -> usize {
    cores.div_ceil(64)
}

/// A set of cores that one core keeps for itself.
pub(super) struct PeerSet(Box<[u64]>);

impl PeerSet {
    pub(super) fn new(cores: usize) -> Self {
        Self(vec![0; words_for(cores)].into())
    }

    #[inline]
    pub(super) fn insert(&mut self, peer: u16) {
        self.0[usize::from(peer) / 64] |= 1 << (peer % 64);
    }

    #[inline]
    pub(super) fn remove(&mut self, peer: u16) {
        self.0[usize::from(peer) / 64] &= !(1 << (peer % 64));
    }

    #[inline]
    pub(super) fn contains(&self, peer: u16) -> bool {
        self.0[usize::from(peer) / 64] & (1 << (peer % 64)) != 0
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first member after `peer`, going round; `peer` itself comes last.
    #[inline]
    pub(super) fn next_after(&self, peer: u16) -> Option<u16> {
        let (home, bit) = (usize::from(peer) / 64, peer % 64);
        let above = (u64::MAX << bit) << 1;
        let words = self.0.len();
        (0..=words).find_map(|step| {
            let at = (home + step) % words;
            let mask = match step {
                0 => above,
                _ if step == words => !above,
                _ => u64::MAX,
            };
            let word = self.0[at] & mask;
            (word != 0).then(|| (at * 64) as u16 + word.trailing_zeros() as u16)
        })
    }

    /// Takes one member out.
    #[inline]
    pub(super) fn take_first(&mut self) -> Option<u16> {
        self.0
            .iter_mut()
            .enumerate()
            .find(|(_, word)| **word != 0)
            .map(|(at, word)| {
                let bit = word.trailing_zeros() as u16;
                *word &= *word - 1;
                (at * 64) as u16 + bit
            })
    }

    /// Takes out the members that `stays` refuses.
    #[inline]
    pub(super) fn retain(&mut self, mut stays: impl FnMut(u16) -> bool) {
        for (at, word) in self.0.iter_mut().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                if !stays((at * 64) as u16 + bit as u16) {
                    *word &= !(1 << bit);
                }
            }
        }
    }
}

/// A set of cores that every member enters by itself and one core empties. What a member did before `insert` is
/// visible to the core that takes the member out.
pub(super) struct SharedPeerSet(Box<[Padded<AtomicU64>]>);

impl SharedPeerSet {
    pub(super) fn new(cores: usize) -> Self {
        Self((0..words_for(cores)).map(|_| Padded(AtomicU64::new(0))).collect())
    }

    /// Always a read-modify-write: a look first ("already a member") could see a bit that is being taken.
    #[inline]
    pub(super) fn insert(&self, peer: u16) {
        self.0[usize::from(peer) / 64]
            .0
            .fetch_or(1 << (peer % 64), Ordering::Release);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.0.load(Ordering::Relaxed) == 0)
    }

    /// Moves every member to `into`.
    #[inline]
    pub(super) fn take_all(&self, into: &mut PeerSet) {
        for (word, into) in self.0.iter().zip(&mut into.0) {
            if word.0.load(Ordering::Relaxed) != 0 {
                *into |= word.0.swap(0, Ordering::AcqRel);
            }
        }
    }

    /// Moves the members that are in `of` to `into`; `of` is empty afterwards.
    #[inline]
    pub(super) fn take_those(&self, of: &mut PeerSet, into: &mut PeerSet) {
        for ((word, of), into) in self.0.iter().zip(&mut of.0).zip(&mut into.0) {
            let of = std::mem::take(of);
            let members = match of {
                0 => 0,
                _ => word.0.load(Ordering::Relaxed) & of,
            };
            if members != 0 {
                word.0.fetch_and(!members, Ordering::AcqRel);
                *into |= members;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn members_of(set: &mut PeerSet) -> Vec<u16> {
        std::iter::from_fn(|| set.take_first()).collect()
    }

    proptest! {
        #[test]
        fn a_set_of_peers_is_a_set_in_going_round_order(
            cores in 1usize..200, members in prop::collection::btree_set(0usize..200, 0..40), from in 0usize..200
        ) {
            let members: BTreeSet<u16> = members.into_iter().filter(|m| *m < cores).map(|m| m as u16).collect();
            let from = (from % cores) as u16;
            let shared = SharedPeerSet::new(cores);
            prop_assert!(shared.is_empty());
            members.iter().for_each(|m| shared.insert(*m));
            let mut set = PeerSet::new(cores);
            shared.take_all(&mut set);
            prop_assert!(shared.is_empty());
            let mut seen = Vec::new();
            set.retain(|m| { seen.push(m); m >= from });
            prop_assert_eq!(seen, members.iter().copied().collect::<Vec<_>>());
            let members: BTreeSet<u16> = members.into_iter().filter(|m| *m >= from).collect();
            let next = members.range(from + 1..).next().or(members.first()).copied();
            prop_assert_eq!(set.next_after(from), next);
            prop_assert_eq!(set.contains(from), members.contains(&from));
            prop_assert_eq!(members_of(&mut set), members.into_iter().collect::<Vec<_>>());
            prop_assert!(set.is_empty());
        }
    }

    #[test]
    fn only_the_members_asked_for_leave_a_shared_set() {
        let shared = SharedPeerSet::new(130);
        [1, 64, 129].iter().for_each(|m| shared.insert(*m));
        let (mut of, mut into) = (PeerSet::new(130), PeerSet::new(130));
        [0, 64, 129].iter().for_each(|m| of.insert(*m));
        shared.take_those(&mut of, &mut into);
        assert_eq!(members_of(&mut into), [64, 129]);
        assert!(of.is_empty());
        shared.take_all(&mut of);
        assert_eq!(members_of(&mut of), [1]);
    }
}
