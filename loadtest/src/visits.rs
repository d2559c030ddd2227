//! Short visits of many clients: subscribe and go, leaving a Session behind, or come to end that Session.
//!
//! Called  by `throughput` and `backlog`, before and after what they measure.
//! Holds   - at most `AT_ONCE` connections at a time, so that a broker that commits in groups can do so;
//!         - a broker from which nobody hears for `HANDSHAKE_MAX` is an error.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::epoll;
use rustix::fd::OwnedFd;

use crate::client::{Connection, HANDSHAKE_MAX, Received, check_connack, check_suback};
use crate::packet::{self, Credentials, DISCONNECT_BYTES, SessionKind};
use crate::poller::Poller;
use crate::progress::{End, Progress};
use crate::transport::Target;

const AT_ONCE: usize = 64;
const READ_BYTES: usize = 64 * 1024;

pub struct Visits<'a> {
    pub target: &'a Target,
    pub credentials: &'a Credentials,
    pub count: usize,
    pub client_id: Box<dyn Fn(usize) -> String + 'a>,
}

/// What a visitor subscribes to, and at which QoS.
#[derive(Clone, Copy)]
struct Wish<'a> {
    filter: &'a dyn Fn(usize) -> String,
    qos: u8,
}

struct Visitor {
    number: usize,
    connection: Connection,
}

impl Visits<'_> {
    /// Each leaves a durable Session with one subscription.
    pub fn subscribe(&self, filter: &dyn Fn(usize) -> String, qos: u8) -> Result<()> {
        self.make(SessionKind::Durable, Some(Wish { filter, qos }), "subscribed")
    }

    /// No Session of theirs is left.
    pub fn end_sessions(&self) -> Result<()> {
        self.make(SessionKind::Clean, None, "sessions ended")
    }

    fn make(&self, session: SessionKind, wish: Option<Wish<'_>>, what: &str) -> Result<()> {
        let mut poller = Poller::new()?;
        let mut visitors: Vec<Option<Visitor>> = (0..AT_ONCE).map(|_| None).collect();
        let mut buffer = vec![0; READ_BYTES];
        let (mut begun, mut done) = (0, 0);
        let (start, mut heard) = (Instant::now(), Instant::now());
        let mut progress = Progress::new(End::At(self.count as u64));
        while done < self.count {
            for (slot, visitor) in visitors.iter_mut().enumerate().filter(|(_, v)| v.is_none()) {
                if begun == self.count {
                    break;
                }
                let id = (self.client_id)(begun);
                let connection = Connection::begin(self.target, &id, session, self.credentials)
                    .with_context(|| format!("client {begun} of {}", self.count))?;
                poller.add(connection.socket(), slot as u64)?;
                *visitor = Some(Visitor {
                    number: begun,
                    connection,
                });
                begun += 1;
            }
            poller.wait(Duration::from_millis(20))?;
            for at in 0..poller.events().len() {
                let (slot, flags) = poller.event(at);
                let Some(visitor) = &mut visitors[slot as usize] else {
                    continue;
                };
                let number = visitor.number;
                let is_done = visitor
                    .ready(flags, poller.fd(), slot, wish, &mut buffer)
                    .with_context(|| format!("client {number} of {}", self.count))?;
                heard = Instant::now();
                if is_done {
                    visitors[slot as usize] = None;
                    done += 1;
                }
            }
            if heard.elapsed() > HANDSHAKE_MAX {
                let seconds = HANDSHAKE_MAX.as_secs();
                bail!(
                    "{} answered nobody for {seconds} s; {done} of {} {what}",
                    self.target.address,
                    self.count
                );
            }
            progress.count(start.elapsed().as_nanos() as u64, done as u64, what);
        }
        Ok(())
    }
}

impl Visitor {
    /// True when it has gone.
    fn ready(
        &mut self,
        flags: epoll::EventFlags,
        epoll: &OwnedFd,
        slot: u64,
        wish: Option<Wish<'_>>,
        buffer: &mut [u8],
    ) -> Result<bool> {
        let connection = &mut self.connection;
        if flags.contains(epoll::EventFlags::OUT) {
            connection.flush()?;
        }
        let mut is_done = false;
        if let Received::Bytes { len, .. } = connection.receive(buffer)? {
            let mut at = 0;
            while let Some(frame) =
                packet::next_frame(&buffer[at..len]).with_context(|| format!("{} sent", connection.address))?
            {
                at += frame.len;
                let answer = match (frame.kind(), wish) {
                    // Of an older Session of this name, or of somebody who publishes already.
                    (packet::PUBLISH, _) => continue,
                    (packet::SUBACK, Some(wish)) => {
                        check_suback(connection.address, frame, wish.qos)?;
                        is_done = true;
                        DISCONNECT_BYTES.to_vec()
                    }
                    (_, Some(wish)) => {
                        check_connack(connection.address, frame)?;
                        let mut bytes = Vec::new();
                        packet::subscribe(&mut bytes, &(wish.filter)(self.number), wish.qos);
                        bytes
                    }
                    (_, None) => {
                        check_connack(connection.address, frame)?;
                        is_done = true;
                        DISCONNECT_BYTES.to_vec()
                    }
                };
                connection.send(&[], &answer)?;
                if is_done {
                    return Ok(true);
                }
            }
            connection.keep(&buffer[at..len]);
        }
        connection.watch(epoll, slot, connection.wants_write())?;
        Ok(is_done)
    }
}
