//! What a core holds of the devices it owns: who they belong to, whether they may send, and where their data goes.
//!
//! Owns    one slot of 24 bytes a device; the ids are on disk only.
//! Called  by `shard`: a lookup for every message of a device; changes that the API asked for.
//! Holds   - a slot has a keyed fingerprint of 128 bits of (account, id) in place of the id. The key is a secret of the run, and
//!           among a million ids two meet with a chance of about 2^-89. The account is compared exactly: whoever found two
//!           ids that meet would confuse two devices of their own, and nobody else's;
//!         - a lookup reads one cache line, or its neighbour with it: the slots are probed linearly and at most two thirds of
//!           them are taken;
//!         - at least four ninths are taken while the table only grows, so a device costs at most 54 bytes;
//!         - the table is cut into segments by hash, and each grows alone: at a million devices one growth moves some
//!           16,000 and never all of them;
//!         - nothing iterates in an order that could leak out.

use ahash::RandomState;

use super::access::AccountId;
use super::channel::ChannelId;
use crate::limits::ACCOUNT_ID_BITS;

/// What every message of a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub is_enabled: bool,
    pub channel: Option<ChannelId>,
}

/// The devices of one core.
pub struct Devices {
    hashers: [RandomState; 2],
    segments: [Segment; SEGMENTS],
    count: usize,
}

impl Devices {
    pub fn new(hash_key: [u64; 4]) -> Devices {
        let [k0, k1, k2, k3] = hash_key;
        let first = RandomState::with_seeds(k0, k1, k2, k3);
        let [k0, k1, k2, k3] = [0u8, 1, 2, 3].map(|word| first.hash_one(word));
        let second = RandomState::with_seeds(k0, k1, k2, k3);
        Devices {
            hashers: [first, second],
            segments: std::array::from_fn(|_| Segment::default()),
            count: 0,
        }
    }

    #[inline]
    pub fn get(&self, account: AccountId, id: &str) -> Option<Entry> {
        let fingerprint = self.fingerprint(account, id);
        let segment = &self.segments[segment_of(fingerprint)];
        segment.find(fingerprint, account).map(|at| segment.slots[at].entry())
    }

    /// False: the device was there, and stays as it is.
    pub fn insert(&mut self, account: AccountId, id: &str, entry: Entry) -> bool {
        let fingerprint = self.fingerprint(account, id);
        let segment = &mut self.segments[segment_of(fingerprint)];
        if segment.find(fingerprint, account).is_some() {
            return false;
        }
        segment.insert(Slot::new(fingerprint, account, entry));
        self.count += 1;
        true
    }

    /// False: there is no such device.
    pub fn set(&mut self, account: AccountId, id: &str, entry: Entry) -> bool {
        let fingerprint = self.fingerprint(account, id);
        let segment = &mut self.segments[segment_of(fingerprint)];
        let found = segment.find(fingerprint, account);
        if let Some(at) = found {
            segment.slots[at] = Slot::new(fingerprint, account, entry);
        }
        found.is_some()
    }

    /// False: there is no such device.
    pub fn remove(&mut self, account: AccountId, id: &str) -> bool {
        let fingerprint = self.fingerprint(account, id);
        let segment = &mut self.segments[segment_of(fingerprint)];
        let found = segment.find(fingerprint, account);
        if let Some(at) = found {
            segment.remove(at);
            self.count -= 1;
        }
        found.is_some()
    }

    /// Takes the mapping of every device that is mapped to the channel; how many those were. Reads the whole table.
    pub fn unmap(&mut self, account: AccountId, channel: ChannelId) -> usize {
        let mut unmapped = 0;
        for slot in self.segments.iter_mut().flat_map(|segment| &mut segment.slots) {
            let entry = slot.entry();
            if slot.is_of(account) && entry.channel == Some(channel) {
                *slot = Slot::new(slot.fingerprint, account, Entry { channel: None, ..entry });
                unmapped += 1;
            }
        }
        unmapped
    }

    /// Removes every device of the account; how many those were. Reads the whole table.
    pub fn remove_account(&mut self, account: AccountId) -> usize {
        let removed: usize = self
            .segments
            .iter_mut()
            .map(|segment| segment.remove_account(account))
            .sum();
        self.count -= removed;
        removed
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[inline]
    fn fingerprint(&self, account: AccountId, id: &str) -> Fingerprint {
        [&self.hashers[0], &self.hashers[1]].map(|hasher| hasher.hash_one((account, id)))
    }
}

/// The first word chooses the slot, the second the segment.
type Fingerprint = [u64; 2];

#[derive(Clone, Copy)]
struct Slot {
    fingerprint: Fingerprint,
    /// The account, and below it `TAKEN`, `ENABLED` and `MAPPED`. 0: the slot is free.
    owner: u32,
    /// 0 where the device is not mapped.
    channel: u32,
}

const TAKEN: u32 = 1;
const ENABLED: u32 = 2;
const MAPPED: u32 = 4;
const FLAG_BITS: u32 = 3;

const FREE: Slot = Slot {
    fingerprint: [0; 2],
    owner: 0,
    channel: 0,
};

const _: () = assert!(size_of::<Slot>() == 24);
const _: () = assert!(ACCOUNT_ID_BITS + FLAG_BITS <= u32::BITS);

impl Slot {
    fn new(fingerprint: Fingerprint, account: AccountId, entry: Entry) -> Slot {
        assert!(account.0 >> ACCOUNT_ID_BITS == 0, "an account's id fits its bits");
        let is_enabled = if entry.is_enabled { ENABLED } else { 0 };
        let is_mapped = if entry.channel.is_some() { MAPPED } else { 0 };
        Slot {
            fingerprint,
            owner: account.0 << FLAG_BITS | TAKEN | is_enabled | is_mapped,
            channel: entry.channel.map_or(0, ChannelId::number),
        }
    }

    fn entry(&self) -> Entry {
        let is_mapped = self.owner & MAPPED != 0;
        Entry {
            is_enabled: self.owner & ENABLED != 0,
            channel: if is_mapped { ChannelId::new(self.channel) } else { None },
        }
    }

    fn is_free(&self) -> bool {
        self.owner == 0
    }

    fn is_of(&self, account: AccountId) -> bool {
        !self.is_free() && self.owner >> FLAG_BITS == account.0
    }
}

const SEGMENTS: usize = 64;
const SLOTS_MIN: usize = 4;

#[derive(Default)]
struct Segment {
    /// None, or at least one of them is free. From a device's home to its slot no slot is free.
    slots: Box<[Slot]>,
    count: usize,
}

fn segment_of(fingerprint: Fingerprint) -> usize {
    fingerprint[1] as usize % SEGMENTS
}

/// Multiply and shift: any number of slots will do, so a table need not double to grow.
fn home(fingerprint: Fingerprint, length: usize) -> usize {
    ((u128::from(fingerprint[0]) * length as u128) >> 64) as usize
}

fn after(at: usize, length: usize) -> usize {
    if at + 1 == length { 0 } else { at + 1 }
}

impl Segment {
    fn find(&self, fingerprint: Fingerprint, account: AccountId) -> Option<usize> {
        let length = self.slots.len();
        if length == 0 {
            return None;
        }
        let mut at = home(fingerprint, length);
        loop {
            let slot = &self.slots[at];
            if slot.is_free() {
                return None;
            }
            if slot.fingerprint == fingerprint && slot.is_of(account) {
                return Some(at);
            }
            at = after(at, length);
        }
    }

    /// The caller has looked: the device is not here.
    fn insert(&mut self, slot: Slot) {
        let length = self.slots.len();
        if (self.count + 1) * 3 > length * 2 {
            self.resize((length + length / 2).max(SLOTS_MIN), |_| true);
        }
        self.place(slot);
        self.count += 1;
    }

    fn remove(&mut self, at: usize) {
        let length = self.slots.len();
        // What stands behind the gap moves into it, unless its home lies behind the gap: no marker stays.
        let (mut gap, mut at) = (at, at);
        loop {
            at = after(at, length);
            let slot = self.slots[at];
            if slot.is_free() {
                break;
            }
            let distance = |from: usize| if from <= at { at - from } else { at + length - from };
            if distance(home(slot.fingerprint, length)) >= distance(gap) {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = FREE;
        self.count -= 1;
        if self.count == 0 {
            self.slots = Box::default();
        } else if length > SLOTS_MIN && self.count * 3 < length {
            self.resize((self.count * 2).max(SLOTS_MIN), |_| true);
        }
    }

    fn remove_account(&mut self, account: AccountId) -> usize {
        let of_account = self.slots.iter().filter(|slot| slot.is_of(account)).count();
        self.count -= of_account;
        if self.count == 0 {
            self.slots = Box::default();
        } else if of_account > 0 {
            self.resize((self.count * 2).max(SLOTS_MIN), |slot| !slot.is_of(account));
        }
        of_account
    }

    fn resize(&mut self, length: usize, keeps: impl Fn(&Slot) -> bool) {
        let before = std::mem::replace(&mut self.slots, vec![FREE; length].into_boxed_slice());
        for slot in before {
            if !slot.is_free() && keeps(&slot) {
                self.place(slot);
            }
        }
    }

    fn place(&mut self, slot: Slot) {
        let length = self.slots.len();
        let mut at = home(slot.fingerprint, length);
        while !self.slots[at].is_free() {
            at = after(at, length);
        }
        self.slots[at] = slot;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];

    fn entry(number: u32) -> Entry {
        Entry {
            is_enabled: number.is_multiple_of(2),
            channel: number.checked_sub(2).and_then(ChannelId::new),
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Insert(u32, u32, u32),
        Set(u32, u32, u32),
        Remove(u32, u32),
        Unmap(u32, u32),
        RemoveAccount(u32),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let (account, id, entry) = (0u32..3, 0u32..400, 0u32..8);
        prop_oneof![
            40 => (account.clone(), id.clone(), entry.clone()).prop_map(|(a, i, e)| Operation::Insert(a, i, e)),
            10 => (account.clone(), id.clone(), entry.clone()).prop_map(|(a, i, e)| Operation::Set(a, i, e)),
            20 => (account.clone(), id).prop_map(|(a, i)| Operation::Remove(a, i)),
            2 => (account.clone(), entry).prop_map(|(a, e)| Operation::Unmap(a, e)),
            1 => account.prop_map(Operation::RemoveAccount),
        ]
    }

    proptest! {
        /// Against an ordered map: some 18 devices a segment, so that runs touch, wrap around the end, grow and shrink.
        #[test]
        fn what_is_inserted_is_found_as_it_was_set_until_it_is_removed(
            operations in proptest::collection::vec(operation(), 1..1_500),
        ) {
            let mut devices = Devices::new(KEY);
            let mut model: BTreeMap<(u32, String), Entry> = BTreeMap::new();
            for operation in operations {
                match operation {
                    Operation::Insert(account, id, number) => {
                        let id = format!("pump-{id}");
                        let is_new = devices.insert(AccountId(account), &id, entry(number));
                        prop_assert_eq!(is_new, !model.contains_key(&(account, id.clone())));
                        model.entry((account, id)).or_insert(entry(number));
                    }
                    Operation::Set(account, id, number) => {
                        let id = format!("pump-{id}");
                        let is_there = devices.set(AccountId(account), &id, entry(number));
                        let found = model.get_mut(&(account, id));
                        prop_assert_eq!(is_there, found.is_some());
                        if let Some(found) = found {
                            *found = entry(number);
                        }
                    }
                    Operation::Remove(account, id) => {
                        let id = format!("pump-{id}");
                        let was_there = devices.remove(AccountId(account), &id);
                        prop_assert_eq!(was_there, model.remove(&(account, id)).is_some());
                    }
                    Operation::Unmap(account, channel) => {
                        let channel = ChannelId::new(channel).unwrap();
                        let mut count = 0;
                        for ((owner, _), entry) in &mut model {
                            if *owner == account && entry.channel == Some(channel) {
                                entry.channel = None;
                                count += 1;
                            }
                        }
                        prop_assert_eq!(devices.unmap(AccountId(account), channel), count);
                    }
                    Operation::RemoveAccount(account) => {
                        let before = model.len();
                        model.retain(|(owner, _), _| *owner != account);
                        prop_assert_eq!(devices.remove_account(AccountId(account)), before - model.len());
                    }
                }
                prop_assert_eq!(devices.len(), model.len());
            }
            for account in 0..3 {
                for id in 0..400 {
                    let id = format!("pump-{id}");
                    prop_assert_eq!(devices.get(AccountId(account), &id), model.get(&(account, id.clone())).copied());
                }
            }
            for segment in &devices.segments {
                let taken = segment.slots.iter().filter(|slot| !slot.is_free()).count();
                prop_assert_eq!(taken, segment.count);
                prop_assert!(segment.count == 0 || segment.count * 3 <= segment.slots.len() * 2);
            }
        }
    }

    #[test]
    fn a_device_costs_at_most_64_bytes_however_many_there_are() {
        let mut devices = Devices::new(KEY);
        for number in 0..150_000u32 {
            assert!(devices.insert(AccountId(1), &format!("DEV{number:07}"), entry(3)));
            // Below that, the table itself weighs more than a device or two.
            if number > 5_000 && number.is_multiple_of(97) {
                let slots: usize = devices.segments.iter().map(|segment| segment.slots.len()).sum();
                let bytes = size_of::<Devices>() + slots * size_of::<Slot>();
                assert!(bytes <= 64 * devices.len(), "{bytes} bytes for {}", devices.len());
            }
        }
        for number in 0..150_000u32 {
            assert!(devices.remove(AccountId(1), &format!("DEV{number:07}")));
        }
        assert!(devices.is_empty() && devices.segments.iter().all(|segment| segment.slots.is_empty()));
    }

    #[test]
    fn extremes_of_an_entry_come_back_as_they_were() {
        let mut devices = Devices::new(KEY);
        let greatest = AccountId((1 << ACCOUNT_ID_BITS) - 1);
        for (account, channel) in [(AccountId(0), 0), (greatest, ChannelId::MAX)] {
            let entry = Entry {
                is_enabled: false,
                channel: ChannelId::new(channel),
            };
            assert!(entry.channel.is_some());
            assert!(devices.insert(account, "x", entry));
            assert_eq!(devices.get(account, "x"), Some(entry));
        }
    }

    #[test]
    fn the_same_id_in_two_accounts_is_two_devices() {
        let mut devices = Devices::new(KEY);
        assert!(devices.insert(AccountId(1), "pump", entry(4)));
        assert_eq!(devices.get(AccountId(2), "pump"), None);
        assert!(devices.insert(AccountId(2), "pump", entry(5)));
        assert_eq!(devices.get(AccountId(1), "pump"), Some(entry(4)));
    }
}
