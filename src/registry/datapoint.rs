//! A datapoint: one stored value, its id, and how it lies in a row.

/// Orders the datapoints of a channel: 48 bits of milliseconds of Unix time, when it was received; 16 bits of who received it
/// (a core's number, or one past the last for the HTTP API); 32 bits that this one counts up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatapointId(pub [u8; DatapointId::LEN]);

impl DatapointId {
    pub const LEN: usize = 12;
    pub const MAX: DatapointId = DatapointId([0xff; DatapointId::LEN]);

    pub fn new(at_ms: u64, source: u16, sequence: u32) -> DatapointId {
        let mut bytes = [0; DatapointId::LEN];
        bytes[..6].copy_from_slice(&at_ms.to_be_bytes()[2..]);
        bytes[6..8].copy_from_slice(&source.to_be_bytes());
        bytes[8..].copy_from_slice(&sequence.to_be_bytes());
        DatapointId(bytes)
    }

    /// Milliseconds of Unix time: when it was received.
    pub fn at_ms(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(bytes)
    }

    /// The first that can be received at this time.
    pub fn first_at(at_ms: u64) -> DatapointId {
        DatapointId::new(at_ms, 0, 0)
    }

    /// 24 hexadecimal digits: `_id`.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

/// Gives ids that only grow, whatever the clock does.
#[derive(Clone, Debug)]
pub struct DatapointIds {
    source: u16,
    last_ms: u64,
    sequence: u32,
}

impl DatapointIds {
    /// `after_ms`: that of the newest datapoint there is. The next millisecond is the first that has room: in that one the run
    /// before may have given any id, and the clock may have been set back since.
    pub fn new(source: u16, after_ms: u64) -> DatapointIds {
        DatapointIds {
            source,
            last_ms: after_ms + 1,
            sequence: 0,
        }
    }

    pub fn next(&mut self, now_ms: u64) -> DatapointId {
        if now_ms > self.last_ms {
            self.last_ms = now_ms;
            self.sequence = 0;
        }
        // More than 2^32 in a millisecond are none that could be counted otherwise.
        self.sequence = self.sequence.checked_add(1).unwrap_or_else(|| {
            self.last_ms += 1;
            0
        });
        DatapointId::new(self.last_ms, self.source, self.sequence)
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

    #[test]
    fn ids_grow_with_time_and_when_it_stands_still_or_goes_back() {
        let mut ids = DatapointIds::new(3, 1_000);
        let given: Vec<_> = [5, 1_000, 1_001, 1_001, 999, 1_002].map(|now| ids.next(now)).into();
        assert!(given.is_sorted_by(|a, b| a < b));
        assert_eq!(given[0].at_ms(), 1_001);
        assert_eq!(given[5].at_ms(), 1_002);
        assert_eq!(given[5].to_hex(), "0000000003ea000300000001");
    }

    #[test]
    fn the_next_run_gives_no_id_again_though_its_clock_was_set_back() {
        let mut ids = DatapointIds::new(3, 0);
        let last = [7, 7, 7].map(|now| ids.next(now))[2];
        for now in [0, 6, 7, 8] {
            assert!(DatapointIds::new(3, last.at_ms()).next(now) > last, "at {now}");
        }
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
