//! One client of a soak on its poller, and what a subscriber remembers from one connection to the next.
//!
//! Called  by `soak::engine`.
//! Holds   - bytes leave in the order they were given, whether the socket takes them now or later;
//!         - a message seen before is no fault where the protocol allows it to come again: at QoS 1 marked as a duplicate after
//!           its acknowledgement was lost, at QoS 2 under an identifier whose PUBREL has not come [MQTT-4.3.3-2].

use std::collections::HashSet;

use anyhow::Result;
use rustix::event::epoll;

use crate::client::{Connection, Received};
use crate::packet::{self, Credentials, Publish, SessionKind, Stamp, Will};
use crate::poller::Poller;
use crate::sequence::Streams;
use crate::transport::Target;

pub struct Client {
    connection: Connection,
    token: u64,
    waits_writable: bool,
}

impl Client {
    /// Connects and sends CONNECT; what comes back is read like everything else.
    pub fn begin(
        target: &Target,
        poller: &Poller,
        token: u64,
        id: &str,
        session: SessionKind,
        credentials: &Credentials,
    ) -> Result<Client> {
        Client::begin_with(target, poller, token, id, session, None, credentials)
    }

    /// As [`Client::begin`], with a Will.
    pub fn begin_with(
        target: &Target,
        poller: &Poller,
        token: u64,
        id: &str,
        session: SessionKind,
        will: Option<Will<'_>>,
        credentials: &Credentials,
    ) -> Result<Client> {
        let connection = Connection::begin_with(target, id, session, will, credentials)?;
        poller.add(connection.socket(), token)?;
        let mut client = Client {
            connection,
            token,
            waits_writable: false,
        };
        client.watch(poller)?;
        Ok(client)
    }

    pub fn put(&mut self, poller: &Poller, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.connection.wants_write() {
            self.connection.append(bytes)?;
        } else {
            self.connection.send(&[], bytes)?;
        }
        self.watch(poller)
    }

    /// What came, if anything did; it starts with a frame. What is not used goes back by `keep`.
    pub fn receive(&mut self, poller: &Poller, flags: epoll::EventFlags, buffer: &mut [u8]) -> Result<usize> {
        if flags.contains(epoll::EventFlags::OUT) {
            self.connection.flush()?;
        }
        let received = self.connection.receive(buffer)?;
        self.watch(poller)?;
        Ok(match received {
            Received::Bytes { len, .. } => len,
            Received::Nothing => 0,
        })
    }

    pub fn keep(&mut self, rest: &[u8]) {
        self.connection.keep(rest);
    }

    pub fn is_full(&self) -> bool {
        self.connection.wants_write()
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.connection.address
    }

    /// With a DISCONNECT; without one when it is dropped.
    pub fn close(self) {
        self.connection.close();
    }

    fn watch(&mut self, poller: &Poller) -> Result<()> {
        let wants = self.connection.wants_write();
        if wants != self.waits_writable {
            self.connection.watch(poller.fd(), self.token, wants)?;
            self.waits_writable = wants;
        }
        Ok(())
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    New,
    /// It had come before, and was allowed to come again.
    Again,
}

/// A subscriber's memory.
#[derive(Debug, Default)]
pub struct Memory {
    /// One more than the highest number seen.
    pub next: u64,
    /// QoS 2: identifiers received whose PUBREL has not come.
    held: HashSet<u16>,
}

impl Memory {
    /// Takes a message of the subscriber's publisher into `stream`; its answer goes to `answers`.
    pub fn take(
        &mut self,
        publish: Publish<'_>,
        is_dup: bool,
        stamp: Stamp,
        streams: &mut Streams,
        stream: usize,
        answers: &mut Vec<u8>,
    ) -> Taken {
        let was_taken = match publish.qos {
            0 => false,
            1 => {
                packet::acknowledgement(answers, packet::PUBACK, publish.packet_id);
                is_dup && stamp.sequence < self.next
            }
            _ => {
                packet::acknowledgement(answers, packet::PUBREC, publish.packet_id);
                !self.held.insert(publish.packet_id)
            }
        };
        if was_taken {
            return Taken::Again;
        }
        streams.receive(stream, stamp.sequence);
        self.next = self.next.max(stamp.sequence + 1);
        Taken::New
    }

    /// The Session is a new one: its identifiers start afresh.
    pub fn begin_session(&mut self) {
        self.held.clear();
    }

    pub fn release(&mut self, packet_id: u16, answers: &mut Vec<u8>) {
        self.held.remove(&packet_id);
        packet::acknowledgement(answers, packet::PUBCOMP, packet_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Faults;

    fn take(memory: &mut Memory, streams: &mut Streams, qos: u8, id: u16, is_dup: bool, sequence: u64) -> Taken {
        let publish = Publish {
            qos,
            retain: false,
            topic: b"t",
            packet_id: id,
            payload: &[],
        };
        let stamp = Stamp {
            run: 0,
            publisher: 0,
            sequence,
            time_ns: 0,
        };
        memory.take(publish, is_dup, stamp, streams, 0, &mut Vec::new())
    }

    #[test]
    fn at_qos_1_a_marked_duplicate_is_allowed_and_an_unmarked_one_is_a_fault() {
        let (mut memory, mut streams) = (Memory::default(), Streams::new(1));
        assert_eq!(take(&mut memory, &mut streams, 1, 1, false, 0), Taken::New);
        assert_eq!(take(&mut memory, &mut streams, 1, 1, true, 0), Taken::Again);
        assert_eq!(take(&mut memory, &mut streams, 1, 2, true, 1), Taken::New);
        assert_eq!(streams.faults(), Faults::default());
        take(&mut memory, &mut streams, 1, 3, false, 1);
        assert_eq!(streams.faults().doubled, 1);
    }

    #[test]
    fn at_qos_2_a_message_may_come_again_until_its_pubrel() {
        let (mut memory, mut streams) = (Memory::default(), Streams::new(1));
        assert_eq!(take(&mut memory, &mut streams, 2, 7, false, 0), Taken::New);
        assert_eq!(take(&mut memory, &mut streams, 2, 7, true, 0), Taken::Again);
        let mut answers = Vec::new();
        memory.release(7, &mut answers);
        assert_eq!(answers, [0x70, 2, 0, 7]);
        take(&mut memory, &mut streams, 2, 7, true, 0);
        assert_eq!(streams.faults().doubled, 1);
        // In a new Session the identifier is another message's.
        assert_eq!(take(&mut memory, &mut streams, 2, 8, false, 1), Taken::New);
        memory.begin_session();
        assert_eq!(take(&mut memory, &mut streams, 2, 8, false, 2), Taken::New);
    }
}
