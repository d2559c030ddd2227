//! What each session of a backlog has got, message by message.
//!
//! Called  by `receivers` (through `Check`) for every message, by `drain` for where things stand.
//! Holds   - a stream is one publisher's messages to one session: order, loss and doubles are those of `sequence`;
//!         - a session is drained when every stream of it has come to the end of its queued part: gaps count as passed, and
//!           live messages do not stand in for queued ones.

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::Plan;
use crate::packet::{Publish, Stamp};
use crate::receivers::Check;
use crate::senders::read_number;
use crate::sequence::{Faults, Streams};

pub struct Ledger<'a> {
    plan: &'a Plan,
    qos: u8,
    size: usize,
    /// Of each publisher, on each of its topics.
    queued_each: Vec<u64>,
    streams: Streams,
    sessions: Vec<Session>,
    /// Nanoseconds since the drain began, as of the read under way.
    pub now_ns: u64,
    /// When the last message came.
    pub last_ns: u64,
    pub received: u64,
    /// How far all streams have come, gaps included.
    pub moved: u64,
    pub drained: u64,
    /// Sessions the broker did not know any more.
    pub lost_sessions: u64,
    /// Messages of another run.
    pub foreign: u64,
    /// Over the sessions: from CONNECT to the first message, and to the last queued one; nanoseconds.
    pub first: Histogram<u64>,
    pub whole: Histogram<u64>,
}

#[derive(Clone, Copy)]
struct Session {
    came_ns: u64,
    /// Queued messages to come.
    left: u64,
    has_first: bool,
}

impl<'a> Ledger<'a> {
    pub fn new(plan: &'a Plan, qos: u8, size: usize) -> Result<Ledger<'a>> {
        let session = Session {
            came_ns: 0,
            left: plan.messages,
            has_first: false,
        };
        Ok(Ledger {
            plan,
            qos,
            size,
            queued_each: (0..plan.publishers).map(|p| plan.queued_each(p)).collect(),
            streams: Streams::new((plan.sessions * plan.publishers) as usize),
            sessions: vec![session; plan.sessions as usize],
            now_ns: 0,
            last_ns: 0,
            received: 0,
            moved: 0,
            drained: 0,
            lost_sessions: 0,
            foreign: 0,
            first: Histogram::new_with_bounds(1000, 86_400_000_000_000, 3)?,
            whole: Histogram::new_with_bounds(1000, 86_400_000_000_000, 3)?,
        })
    }

    /// A session connects now.
    pub fn comes(&mut self, session: usize) {
        self.sessions[session].came_ns = self.now_ns;
    }

    /// What went wrong so far.
    pub fn errors(&self) -> u64 {
        self.streams.faults().total() + self.lost_sessions
    }

    /// Nothing comes any more. `sent_by` tells how many messages each publisher has sent in all.
    pub fn finish(&mut self, sent_by: impl Fn(u64) -> u64) -> Faults {
        let rota = self.plan.rota();
        for session in 0..self.plan.sessions {
            for publisher in 0..self.plan.publishers {
                let topic = if self.plan.is_shared { 0 } else { session };
                let stream = (session * self.plan.publishers + publisher) as usize;
                self.streams.finish(stream, rota.count(topic, sent_by(publisher)));
            }
        }
        self.streams.faults()
    }
}

impl Check for Ledger<'_> {
    fn accepted(&mut self, _: usize, session_present: bool) {
        self.lost_sessions += u64::from(!session_present);
    }

    fn message(&mut self, session: usize, publish: Publish<'_>) -> Result<()> {
        let Some(stamp) = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.plan.run) else {
            self.foreign += 1;
            return Ok(());
        };
        let is_on_topic = self.plan.is_shared || read_number(publish.topic) == Some(session as u64);
        if u64::from(stamp.publisher) >= self.plan.publishers
            || publish.qos != self.qos
            || publish.payload.len() != self.size
            || !is_on_topic
        {
            bail!(
                "message {} of publisher {} on {} at QoS {} with {} bytes, which nobody sent session {session} that way",
                stamp.sequence,
                stamp.publisher,
                String::from_utf8_lossy(publish.topic),
                publish.qos,
                publish.payload.len()
            );
        }
        let publisher = stamp.publisher as usize;
        let moved = self
            .streams
            .receive(session * self.plan.publishers as usize + publisher, stamp.sequence);
        self.received += 1;
        self.last_ns = self.now_ns;
        self.moved += moved;
        let state = &mut self.sessions[session];
        if !state.has_first {
            state.has_first = true;
            self.first.saturating_record(self.now_ns - state.came_ns);
        }
        if moved > 0 && state.left > 0 {
            let queued = self.queued_each[publisher];
            let (after, before) = (stamp.sequence + 1, stamp.sequence + 1 - moved);
            state.left -= after.min(queued) - before.min(queued);
            if state.left == 0 {
                self.drained += 1;
                self.whole.saturating_record(self.now_ns - state.came_ns);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(is_shared: bool) -> Plan {
        Plan {
            target: crate::transport::Target::tcp(([127, 0, 0, 1], 1).into()),
            run: 9,
            sessions: 2,
            publishers: 2,
            messages: 3,
            is_shared,
        }
    }

    fn give(ledger: &mut Ledger<'_>, session: usize, publisher: u32, sequence: u64) -> Result<()> {
        let mut payload = [0; 30];
        Stamp {
            run: 9,
            publisher,
            sequence,
            time_ns: 1,
        }
        .write(&mut payload);
        let topic = format!("b/{session:07}");
        ledger.message(
            session,
            Publish {
                qos: 1,
                retain: false,
                topic: topic.as_bytes(),
                packet_id: 1,
                payload: &payload,
            },
        )
    }

    #[test]
    fn a_session_is_drained_when_its_queued_messages_have_come_and_not_when_as_many_live_ones_have() {
        for is_shared in [false, true] {
            let plan = plan(is_shared);
            let mut ledger = Ledger::new(&plan, 1, 30).unwrap();
            // Two queued messages of publisher 0, one of publisher 1; the others are live.
            for sequence in 0..5 {
                give(&mut ledger, 0, 0, sequence).unwrap();
            }
            assert_eq!((ledger.drained, ledger.moved), (0, 5));
            give(&mut ledger, 0, 1, 0).unwrap();
            assert_eq!((ledger.drained, ledger.moved), (1, 6));
        }
    }

    #[test]
    fn what_nobody_got_is_missing_and_what_was_sent_live_is_waited_for() {
        let plan = plan(false);
        let mut ledger = Ledger::new(&plan, 1, 30).unwrap();
        for (publisher, sequence) in [(0, 0), (0, 1), (1, 0)] {
            give(&mut ledger, 0, publisher, sequence).unwrap();
        }
        // Session 1 got none of its three; publisher 0 sent one live message, to session 0.
        let sent = [5, 2];
        assert_eq!(ledger.finish(|publisher| sent[publisher as usize]).missing, 4);
    }

    #[test]
    fn a_message_of_another_session_is_an_error_and_one_of_another_run_is_not() {
        let plan = plan(false);
        let mut ledger = Ledger::new(&plan, 1, 30).unwrap();
        let foreign = Publish {
            qos: 1,
            retain: false,
            topic: b"b/0000001",
            packet_id: 1,
            payload: b"short",
        };
        ledger.message(0, foreign).unwrap();
        assert_eq!((ledger.foreign, ledger.received), (1, 0));
        let mut payload = [0; 30];
        payload[0] = 9;
        let wrong = Publish {
            payload: &payload,
            ..foreign
        };
        assert!(ledger.message(0, wrong).is_err());
        assert!(ledger.message(1, wrong).is_ok());
    }

    #[test]
    fn a_session_that_is_not_there_any_more_is_counted() {
        let plan = plan(true);
        let mut ledger = Ledger::new(&plan, 1, 30).unwrap();
        ledger.accepted(0, true);
        ledger.accepted(1, false);
        assert_eq!(ledger.lost_sessions, 1);
    }
}
