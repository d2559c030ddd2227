//! A datapoint: one stored value, its id, and how it lies in a row.
//!
//! Owns    the order of datapoints: [`DatapointIds`] of each core and of the stream service, and the one number that all of
//!         them share, [`StoredDatapoints`].
//! Called  by `shard` and `http` for an id; by the storage thread after a commit, before it tells anybody of it.
//! Holds   - ids of a stream are in the order in which its datapoints were acknowledged, whichever core or service took them:
//!           what is sent after an acknowledgement gets a greater id than what was acknowledged.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Orders the datapoints of a channel: 48 bits of milliseconds of Unix time, when it was received; 16 bits that count up
/// within one; 32 bits of who received it (a core's number, or one past the last for the stream service).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatapointId(pub [u8; DatapointId::LEN]);

/// Where the milliseconds begin in the number that milliseconds and count are.
const COUNT_BITS: u32 = 16;

impl DatapointId {
    pub const LEN: usize = 12;
    pub const MAX: DatapointId = DatapointId([0xff; DatapointId::LEN]);

    pub fn new(at_ms: u64, count: u16, source: u32) -> DatapointId {
        DatapointId::at(at_ms << COUNT_BITS | u64::from(count), source)
    }

    fn at(time: u64, source: u32) -> DatapointId {
        let mut bytes = [0; DatapointId::LEN];
        bytes[..8].copy_from_slice(&time.to_be_bytes());
        bytes[8..].copy_from_slice(&source.to_be_bytes());
        DatapointId(bytes)
    }

    /// Milliseconds and count.
    fn time(self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(bytes)
    }

    /// Milliseconds of Unix time: when it was received.
    pub fn at_ms(self) -> u64 {
        self.time() >> COUNT_BITS
    }

    /// The first that can be received at this time.
    pub fn first_at(at_ms: u64) -> DatapointId {
        DatapointId::new(at_ms, 0, 0)
    }

    /// The last that can be received at this time.
    pub fn last_at(at_ms: u64) -> DatapointId {
        DatapointId::new(at_ms, u16::MAX, u32::MAX)
    }

    /// 24 hexadecimal digits: `_id`.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

/// The newest datapoint that is on disk, as the store tells all who give ids: before it tells anybody who waits for the
/// commit, so that whoever was told cannot be overtaken. Clocks alone would not do: a core has its time from the beginning of a
/// batch, each core its own, and two datapoints may come in one millisecond.
#[derive(Clone)]
pub struct StoredDatapoints(Arc<Newest>);

/// Looked at for every datapoint and written with a commit of some: nothing else is on its cache line.
#[repr(align(128))]
struct Newest(AtomicU64);

impl StoredDatapoints {
    /// There is none after this millisecond: any of it may be there.
    pub fn until(at_ms: u64) -> StoredDatapoints {
        StoredDatapoints(Arc::new(Newest(AtomicU64::new(DatapointId::last_at(at_ms).time()))))
    }

    pub fn committed(&self, newest: DatapointId) {
        self.0.0.fetch_max(newest.time(), Ordering::Release);
    }

    #[inline]
    fn newest(&self) -> u64 {
        self.0.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for StoredDatapoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredDatapoints").field(&self.newest()).finish()
    }
}

/// Gives ids that only grow, whatever the clock does, and are greater than that of any datapoint on disk.
#[derive(Clone, Debug)]
pub struct DatapointIds {
    source: u32,
    stored: StoredDatapoints,
    /// Milliseconds and count of the last.
    last: u64,
}

impl DatapointIds {
    pub fn new(source: u16, stored: StoredDatapoints) -> DatapointIds {
        DatapointIds {
            source: source.into(),
            stored,
            last: 0,
        }
    }

    #[inline]
    pub fn next(&mut self, now_ms: u64) -> DatapointId {
        // More in one millisecond than are counted are of the next.
        self.last = (now_ms << COUNT_BITS).max(self.last.max(self.stored.newest()) + 1);
        DatapointId::at(self.last, self.source)
    }
}

/// What lies in a row beside its key, in one allocation. `tag` is empty for none; so is `device` for what
/// came through the stream service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatapointRow<'a> {
    pub tag: &'a str,
    pub device: &'a str,
    /// A JSON object.
    pub value: &'a str,
}

/// Ends tag and device in a row: neither has control characters.
const END: char = '\n';

impl<'a> DatapointRow<'a> {
    pub fn pack(&self) -> Box<[u8]> {
        let DatapointRow { tag, device, value } = self;
        debug_assert!(!tag.contains(END) && !device.contains(END));
        let mut packed = Vec::with_capacity(2 + tag.len() + device.len() + value.len());
        for name in [tag, device] {
            packed.extend_from_slice(name.as_bytes());
            packed.push(END as u8);
        }
        packed.extend_from_slice(value.as_bytes());
        packed.into()
    }

    /// `None`: these bytes were never made by [`pack`](Self::pack).
    pub fn unpack(packed: &'a [u8]) -> Option<DatapointRow<'a>> {
        let text = std::str::from_utf8(packed).ok()?;
        let (tag, rest) = text.split_once(END)?;
        let (device, value) = rest.split_once(END)?;
        Some(DatapointRow { tag, device, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(source: u16, stored: &StoredDatapoints) -> DatapointIds {
        DatapointIds::new(source, stored.clone())
    }

    #[test]
    fn ids_grow_with_time_and_when_it_stands_still_or_goes_back() {
        let mut ids = ids(3, &StoredDatapoints::until(1_000));
        let given: Vec<_> = [5, 1_000, 1_001, 1_001, 999, 1_002].map(|now| ids.next(now)).into();
        assert!(given.is_sorted_by(|a, b| a < b));
        assert_eq!(given[0].at_ms(), 1_001);
        assert_eq!(given[5].at_ms(), 1_002);
        assert_eq!(given[5].to_hex(), "0000000003ea000000000003");
        for _ in 0..=u16::MAX {
            ids.next(1_002);
        }
        assert_eq!(ids.next(1_002).at_ms(), 1_003, "more than are counted");
    }

    #[test]
    fn the_next_run_gives_no_id_again_though_its_clock_was_set_back() {
        let last = [7, 7, 7].map(|now| ids(3, &StoredDatapoints::until(0)).next(now))[2];
        for now in [0, 6, 7, 8] {
            let next = ids(3, &StoredDatapoints::until(last.at_ms())).next(now);
            assert!(next > last, "at {now}");
        }
    }

    #[test]
    fn what_comes_after_a_commit_has_a_greater_id_whoever_takes_it_and_however_late_its_clock_is() {
        let stored = StoredDatapoints::until(0);
        let (mut one, mut other) = (ids(7, &stored), ids(0, &stored));
        for now in [1_000, 1_000, 998, 1_001, 0] {
            let acknowledged = one.next(1_000);
            stored.committed(acknowledged);
            let next = other.next(now);
            assert!(next > acknowledged, "at {now}");
            assert!(next.at_ms() <= 1_001, "the count goes on, not the time");
        }
        // An older one, of a slower core: it does not turn anything back.
        stored.committed(DatapointId::first_at(5));
        let newest = one.next(0);
        assert!(newest.at_ms() >= 1_000);
    }

    #[test]
    fn a_row_is_what_was_packed_and_no_bytes_are_a_panic() {
        let row = DatapointRow {
            tag: "inlet",
            device: "",
            value: r#"{"value1":1}"#,
        };
        let packed = row.pack();
        assert_eq!(DatapointRow::unpack(&packed), Some(row));
        for cut in 0..7 {
            assert_eq!(DatapointRow::unpack(&packed[..cut]), None);
        }
        assert_eq!(DatapointRow::unpack(b"\n\n\xff"), None);
    }
}
