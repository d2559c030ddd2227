//! Which retained messages each subscriber has got.
//!
//! Called  by `receivers` (through `Check`) for every message, by `retained` for where things stand.
//! Holds   - one bit for each topic and subscriber;
//!         - a retained message goes to a new subscription once, with RETAIN set [MQTT-3.3.1-8], and is the last that was set.

use anyhow::Result;
use serde::Serialize;

use super::Plan;
use crate::packet::{Publish, Stamp};
use crate::receivers::Check;
use crate::senders::read_number;

/// What went wrong, summed over all subscribers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub missing: u64,
    pub doubled: u64,
    /// An earlier payload of its topic than the last one set.
    pub outdated: u64,
    /// Without RETAIN.
    pub unflagged: u64,
    /// On a topic, at a QoS or of a length that nobody published it with.
    pub wrong: u64,
}

pub struct Board<'a> {
    plan: &'a Plan,
    qos: u8,
    size: usize,
    /// Words of each subscriber.
    words: usize,
    seen: Vec<u64>,
    faults: Faults,
    /// Nanoseconds since the reading began, as of the read under way.
    pub now_ns: u64,
    /// When the last message came.
    pub last_ns: u64,
    pub received: u64,
    /// Topics got, over all subscribers.
    pub got: u64,
    /// Messages of another run.
    pub foreign: u64,
}

impl<'a> Board<'a> {
    pub fn new(plan: &'a Plan, qos: u8, size: usize) -> Board<'a> {
        let words = plan.topics.div_ceil(64) as usize;
        Board {
            plan,
            qos,
            size,
            words,
            seen: vec![0; words * plan.subscribers as usize],
            faults: Faults::default(),
            now_ns: 0,
            last_ns: 0,
            received: 0,
            got: 0,
            foreign: 0,
        }
    }

    /// What went wrong so far.
    pub fn errors(&self) -> u64 {
        let Faults {
            missing: _,
            doubled,
            outdated,
            unflagged,
            wrong,
        } = self.faults;
        doubled + outdated + unflagged + wrong
    }

    /// With what has not come by now.
    pub fn faults(&self) -> Faults {
        Faults {
            missing: self.plan.topics * self.plan.subscribers - self.got,
            ..self.faults
        }
    }
}

impl Check for Board<'_> {
    fn accepted(&mut self, _: usize, _: bool) {}

    fn message(&mut self, subscriber: usize, publish: Publish<'_>) -> Result<()> {
        let Some(stamp) = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.plan.run) else {
            self.foreign += 1;
            return Ok(());
        };
        self.received += 1;
        self.last_ns = self.now_ns;
        let number = read_number(publish.topic).filter(|&number| {
            number < self.plan.topics
                && number % self.plan.publishers == u64::from(stamp.publisher)
                && publish.qos == self.qos
                && publish.payload.len() == self.size
        });
        let Some(number) = number else {
            self.faults.wrong += 1;
            return Ok(());
        };
        self.faults.unflagged += u64::from(!publish.retain);
        self.faults.outdated += u64::from(stamp.sequence + 1 != self.plan.updates);
        let word = &mut self.seen[subscriber * self.words + number as usize / 64];
        let bit = 1 << (number % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.got += 1;
        } else {
            self.faults.doubled += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            target: crate::transport::Target::tcp(([127, 0, 0, 1], 1).into()),
            run: 9,
            topics: 100,
            updates: 2,
            publishers: 3,
            subscribers: 2,
        }
    }

    /// Of topic 70, which is publisher 1's.
    fn after(change: impl Fn(&mut Publish<'_>, &mut Stamp), times: usize) -> (Faults, u64) {
        let plan = plan();
        let mut board = Board::new(&plan, 1, 30);
        let mut stamp = Stamp {
            run: 9,
            publisher: 1,
            sequence: 1,
            time_ns: 0,
        };
        let mut publish = Publish {
            qos: 1,
            retain: true,
            topic: b"r/0000070",
            packet_id: 1,
            payload: &[],
        };
        change(&mut publish, &mut stamp);
        let mut payload = [0; 30];
        stamp.write(&mut payload);
        publish.payload = &payload;
        for _ in 0..times {
            board.message(1, publish).unwrap();
        }
        (board.faults(), board.foreign)
    }

    #[test]
    fn each_broken_rule_has_its_count() {
        let faults = Faults {
            missing: 199,
            ..Faults::default()
        };
        assert_eq!(after(|_, _| {}, 1), (faults, 0));
        assert_eq!(after(|_, _| {}, 2), (Faults { doubled: 1, ..faults }, 0));
        let unflagged = Faults { unflagged: 1, ..faults };
        assert_eq!(after(|publish, _| publish.retain = false, 1), (unflagged, 0));
        let outdated = Faults { outdated: 1, ..faults };
        assert_eq!(after(|_, stamp| stamp.sequence = 0, 1), (outdated, 0));
        let nothing = Faults {
            missing: 200,
            ..Faults::default()
        };
        let wrong = Faults { wrong: 1, ..nothing };
        assert_eq!(after(|publish, _| publish.topic = b"r/0000071", 1), (wrong, 0));
        assert_eq!(after(|publish, _| publish.topic = b"r/0000100", 1), (wrong, 0));
        assert_eq!(after(|publish, _| publish.qos = 0, 1), (wrong, 0));
        assert_eq!(after(|_, stamp| stamp.run = 8, 1), (nothing, 1));
    }
}
