//! A store that keeps nothing: a run without a data directory loses its durable state with the process, so a record is as
//! safe as it will be the moment it is pushed.

use crate::shard::RecordNumber;
use crate::shard::record::Record;

#[derive(Debug, Default)]
pub struct Memory {
    pushed: Option<RecordNumber>,
}

impl Memory {
    pub fn push(&mut self, number: RecordNumber, record: Box<Record>) {
        drop(record);
        self.pushed = Some(number);
    }

    pub fn committed(&mut self) -> Option<RecordNumber> {
        self.pushed.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::record::SessionKey;

    #[test]
    fn all_that_was_pushed_is_confirmed_once() {
        let session = SessionKey {
            index: 0,
            generation: 0,
        };
        let packet_id = crate::mqtt::packet::PacketId::new(1).unwrap();
        let mut memory = Memory::default();
        assert_eq!(memory.committed(), None);
        for number in [4, 5] {
            let record = Record::PacketIdReceived { session, packet_id };
            memory.push(RecordNumber(number), Box::new(record));
        }
        assert_eq!(memory.committed(), Some(RecordNumber(5)));
        assert_eq!(memory.committed(), None);
    }
}
