//! Clients that come, or come back, and are given what waits for them.
//!
//! Owns    their connections and the answers to what they get.
//! Called  by `backlog` and `retained`, whose thread drives it with a `Poller`; each brings its own `Check`.
//! Holds   - every message is acknowledged in the order it came, after it was checked;
//!         - nothing is allocated per message.

use anyhow::{Context, Result, bail};
use rustix::event::epoll;

use crate::client::{Connection, Received, check_connack, check_suback};
use crate::packet::{self, Credentials, Publish, SessionKind};
use crate::poller::Poller;
use crate::transport::Target;

const READ_BYTES: usize = 256 * 1024;
/// A few reads at most for one: the others want their turn.
const READS_MAX: usize = 4;

/// What a scenario makes of what its clients get.
pub trait Check {
    /// CONNACK came.
    fn accepted(&mut self, receiver: usize, session_present: bool);
    /// An error ends the run: what came was never sent that way.
    fn message(&mut self, receiver: usize, publish: Publish<'_>) -> Result<()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitsConnack,
    AwaitsSuback,
    Receives,
}

struct Receiver {
    connection: Connection,
    state: State,
    waits_writable: bool,
}

/// What a client subscribes to once it is accepted.
#[derive(Clone, Debug)]
pub struct Wish {
    pub filter: String,
    pub qos: u8,
}

pub struct Receivers {
    first_token: u64,
    receivers: Vec<Receiver>,
    wish: Option<Wish>,
    buffer: Vec<u8>,
    answers: Vec<u8>,
    /// Packets that came: a sign of life.
    pub frames: u64,
}

impl Receivers {
    /// Nobody yet. Tokens are `first_token` and up; messages are of `size` bytes or not much longer.
    pub fn new(first_token: u64, wish: Option<Wish>, size: usize) -> Receivers {
        Receivers {
            first_token,
            receivers: Vec::new(),
            wish,
            buffer: vec![0; READ_BYTES.max(size * 2 + 65_536 * 2)],
            answers: Vec::new(),
            frames: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.receivers.len()
    }

    /// The next client connects.
    pub fn begin(
        &mut self,
        target: &Target,
        poller: &Poller,
        client_id: &str,
        session: SessionKind,
        credentials: &Credentials,
    ) -> Result<()> {
        let index = self.receivers.len();
        let connection =
            Connection::begin(target, client_id, session, credentials).with_context(|| format!("client {index}"))?;
        poller.add(connection.socket(), self.first_token + index as u64)?;
        self.receivers.push(Receiver {
            connection,
            state: State::AwaitsConnack,
            waits_writable: false,
        });
        Ok(())
    }

    /// Takes an event of one of the clients' tokens.
    pub fn ready(
        &mut self,
        token: u64,
        flags: epoll::EventFlags,
        poller: &Poller,
        check: &mut impl Check,
    ) -> Result<()> {
        let index = (token - self.first_token) as usize;
        let context = || format!("client {index}");
        if flags.contains(epoll::EventFlags::OUT) {
            self.receivers[index].connection.flush().with_context(context)?;
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            for _ in 0..READS_MAX {
                let mut buffer = std::mem::take(&mut self.buffer);
                let received = self.receivers[index].connection.receive(&mut buffer);
                let used = match received {
                    Ok(Received::Bytes { len, .. }) => self.take_frames(index, &buffer[..len], check).map(|used| {
                        self.receivers[index].connection.keep(&buffer[used..len]);
                        len == buffer.len()
                    }),
                    Ok(Received::Nothing) => Ok(false),
                    Err(error) => Err(error),
                };
                self.buffer = buffer;
                if !used.with_context(context)? {
                    break;
                }
            }
        }
        let r = &mut self.receivers[index];
        if !self.answers.is_empty() {
            if r.connection.wants_write() {
                r.connection.append(&self.answers).with_context(context)?;
            } else {
                r.connection.send(&[], &self.answers).with_context(context)?;
            }
            self.answers.clear();
        }
        if r.connection.wants_write() != r.waits_writable {
            r.waits_writable = r.connection.wants_write();
            r.connection.watch(poller.fd(), token, r.waits_writable)?;
        }
        Ok(())
    }

    /// Gives the bytes used.
    fn take_frames(&mut self, index: usize, bytes: &[u8], check: &mut impl Check) -> Result<usize> {
        let receiver = &mut self.receivers[index];
        let address = receiver.connection.address;
        let mut at = 0;
        while let Some(frame) = packet::next_frame(&bytes[at..]).with_context(|| format!("{address} sent"))? {
            at += frame.len;
            self.frames += 1;
            match (receiver.state, frame.kind()) {
                (State::AwaitsConnack, _) => {
                    check.accepted(index, check_connack(address, frame)?);
                    receiver.state = match &self.wish {
                        Some(wish) => {
                            packet::subscribe(&mut self.answers, &wish.filter, wish.qos);
                            State::AwaitsSuback
                        }
                        None => State::Receives,
                    };
                }
                (_, packet::PUBLISH) => {
                    let publish = packet::publish(frame)?;
                    check
                        .message(index, publish)
                        .with_context(|| format!("{address} sent"))?;
                    match publish.qos {
                        0 => {}
                        1 => packet::acknowledgement(&mut self.answers, packet::PUBACK, publish.packet_id),
                        _ => packet::acknowledgement(&mut self.answers, packet::PUBREC, publish.packet_id),
                    }
                }
                (_, packet::PUBREL) => packet::acknowledgement(&mut self.answers, packet::PUBCOMP, frame.packet_id()?),
                (State::AwaitsSuback, _) => {
                    check_suback(address, frame, self.wish.as_ref().map_or(0, |wish| wish.qos))?;
                    receiver.state = State::Receives;
                }
                (State::Receives, kind) => bail!("{address} sent a packet of type {kind}"),
            }
        }
        Ok(at)
    }

    /// DISCONNECT for everybody.
    pub fn close(self) {
        self.receivers.into_iter().for_each(|r| r.connection.close());
    }
}
