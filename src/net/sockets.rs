//! The sockets of one core and the epoll set they are all in.
//!
//! Owns    the descriptors, and of each: what has come and was not consumed (the stash), and a few flags.
//! Called  by `worker::turn`.
//! Holds   - a socket is registered once, edge-triggered, for as long as the core has it: afterwards readiness costs no
//!           system call but the shared `epoll_wait`;
//!         - a slot is used again with the next generation, so an event or a request that comes late finds nobody;
//!         - a stash exists only while it holds bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};

use crate::limits::EVENTS_PER_BATCH;
use crate::shard::ConnectionId;

use super::reader::Stash;
use super::transport::Layers;

/// What is true of a socket now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No whole CONNECT yet: the shard has not heard of it.
    pub const GREETING: Flags = Flags(1);
    /// The shard wants no more of it for now.
    pub const PAUSED: Flags = Flags(2);
    /// In the list of sockets to write to.
    pub const MARKED: Flags = Flags(4);
    /// Took less than it was given: nothing is written before epoll says it takes more.
    pub const FULL: Flags = Flags(8);
    /// In the list of sockets to read once more without an event.
    pub const AGAIN: Flags = Flags(16);
    /// The other side sends no more: read on until the end shows, no further edge will come.
    pub const HANGUP: Flags = Flags(32);
    /// The stash may hold whole packets: present it before reading.
    pub const HELD: Flags = Flags(64);
    /// In the list of sockets whose TLS handshake goes on when there is time for it.
    pub const HANDSHAKE: Flags = Flags(128);
}

/// One socket.
pub struct Socket {
    /// None: the slot is free.
    fd: Option<OwnedFd>,
    generation: u32,
    /// When it was last written to, in microseconds of the core's clock, which begin anew after 71 minutes.
    pub written_us: u32,
    pub stash: Option<Stash>,
    /// None for plain TCP.
    pub layers: Option<Box<Layers>>,
    flags: Flags,
}

const _: () = assert!(size_of::<Socket>() <= 32, "paid once per connection");

impl Socket {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("a slot that is handed out is taken").as_fd()
    }

    pub fn is(&self, flag: Flags) -> bool {
        self.flags.0 & flag.0 != 0
    }

    /// Returns whether it was set before.
    pub fn set(&mut self, flag: Flags) -> bool {
        let was = self.is(flag);
        self.flags.0 |= flag.0;
        was
    }

    /// Returns whether it was set before.
    pub fn unset(&mut self, flag: Flags) -> bool {
        let was = self.is(flag);
        self.flags.0 &= !flag.0;
        was
    }
}

/// Something that one wait reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    Socket {
        id: ConnectionId,
        readable: bool,
        writable: bool,
        hangup: bool,
    },
    /// The listener with this number has somebody waiting.
    Listener(u16),
    /// The bell was rung.
    Bell,
}

/// Slot indexes from here up name what is no socket of a client.
const INDEX_BELL: u32 = u32::MAX;
const INDEX_LISTENER_FIRST: u32 = u32::MAX - 1 - u16::MAX as u32;

pub struct Sockets {
    epoll: OwnedFd,
    slots: Vec<Socket>,
    free: Vec<u32>,
    events: Vec<epoll::Event>,
}

impl Sockets {
    pub fn new() -> io::Result<Sockets> {
        Ok(Sockets {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: Vec::new(),
            free: Vec::new(),
            events: Vec::with_capacity(EVENTS_PER_BATCH),
        })
    }

    /// The set: readable when anything of it is ready.
    pub fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Every open socket.
    pub fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            slot.fd.as_ref().map(|_| ConnectionId {
                index: index as u32,
                generation: slot.generation,
            })
        })
    }

    pub fn watch_bell(&self, bell: impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, bell, data(INDEX_BELL, 0), flags)?)
    }

    /// Level-triggered, since a batch does not take all who wait.
    pub fn watch_listener(&self, number: u16, listener: impl AsFd) -> io::Result<()> {
        let data = data(INDEX_LISTENER_FIRST + u32::from(number), 0);
        Ok(epoll::add(&self.epoll, listener, data, epoll::EventFlags::IN)?)
    }

    /// Not even its error events, which no choice of flags keeps away: a listener that was shut down has one for ever.
    pub fn unwatch_listener(&self, listener: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, listener)?)
    }

    /// Takes in a socket. What it has received already is reported by the next wait.
    pub fn insert(&mut self, fd: OwnedFd, layers: Option<Box<Layers>>, flags: Flags) -> io::Result<ConnectionId> {
        let index = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        assert!(index < INDEX_LISTENER_FIRST, "no process has this many descriptors");
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        let id = ConnectionId { index, generation };
        let interest =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &fd, data(index, generation), interest)?;
        let socket = Socket {
            fd: Some(fd),
            generation,
            written_us: 0,
            stash: None,
            layers,
            flags,
        };
        match self.slots.get_mut(index as usize) {
            Some(slot) => {
                self.free.pop();
                *slot = socket;
            }
            None => self.slots.push(socket),
        }
        Ok(id)
    }

    #[inline]
    pub fn get(&self, id: ConnectionId) -> Option<&Socket> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation && slot.fd.is_some()).then_some(slot)
    }

    #[inline]
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Socket> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation && slot.fd.is_some()).then_some(slot)
    }

    /// Forgets a socket that is about to be closed: the last descriptor leaves the set by being closed.
    pub fn remove(&mut self, id: ConnectionId) -> Option<(OwnedFd, Option<Box<Layers>>)> {
        let slot = self.get_mut(id)?;
        let fd = slot.fd.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.stash = None;
        slot.flags = Flags::default();
        let layers = slot.layers.take();
        self.free.push(id.index);
        Some((fd, layers))
    }

    /// Forgets a socket that lives on elsewhere.
    pub fn release(&mut self, id: ConnectionId) -> Option<(OwnedFd, Option<Box<Layers>>)> {
        let (fd, layers) = self.remove(id)?;
        // Cannot fail: it is in the set since `insert`.
        let _ = epoll::delete(&self.epoll, &fd);
        Some((fd, layers))
    }

    /// What is ready now, without waiting: at most [`EVENTS_PER_BATCH`].
    pub fn poll(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        ready.clear();
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&NOW),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.iter().map(|event| {
            let (data, flags) = (event.data.u64(), event.flags);
            match data as u32 {
                INDEX_BELL => Ready::Bell,
                index if index >= INDEX_LISTENER_FIRST => Ready::Listener((index - INDEX_LISTENER_FIRST) as u16),
                index => {
                    // An error shows in the next read, which also says which.
                    let hangup = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
                    Ready::Socket {
                        id: ConnectionId {
                            index,
                            generation: (data >> 32) as u32,
                        },
                        readable: flags.intersects(epoll::EventFlags::IN | hangup),
                        writable: flags.intersects(epoll::EventFlags::OUT),
                        hangup: flags.intersects(hangup),
                    }
                }
            }
        }));
        Ok(())
    }
}

fn data(index: u32, generation: u32) -> epoll::EventData {
    epoll::EventData::new_u64(u64::from(generation) << 32 | u64::from(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_slot_that_is_used_again_is_not_found_under_its_old_id() {
        let mut sockets = Sockets::new().unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        let first = sockets.insert(a.into(), None, Flags::GREETING).unwrap();
        assert!(sockets.get(first).unwrap().is(Flags::GREETING));
        drop(sockets.remove(first));
        assert!(sockets.get(first).is_none());
        let second = sockets.insert(b.into(), None, Flags::default()).unwrap();
        assert_eq!(second.index, first.index);
        assert!(sockets.get(first).is_none() && sockets.remove(first).is_none());
        assert!(!sockets.get(second).unwrap().is(Flags::GREETING));
        assert_eq!(sockets.count(), 1);
        assert_eq!(sockets.ids().collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn bytes_that_came_before_a_socket_was_taken_in_are_reported_once() {
        let mut sockets = Sockets::new().unwrap();
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"x").unwrap();
        let id = sockets.insert(a.into(), None, Flags::default()).unwrap();
        let mut ready = Vec::new();
        sockets.poll(&mut ready).unwrap();
        assert!(matches!(ready[..], [Ready::Socket { id: of, readable: true, hangup: false, .. }] if of == id));
        sockets.poll(&mut ready).unwrap();
        assert!(ready.is_empty());
        drop(b);
        sockets.poll(&mut ready).unwrap();
        assert!(matches!(
            ready[..],
            [Ready::Socket {
                readable: true,
                hangup: true,
                ..
            }]
        ));
    }

    #[test]
    fn a_released_socket_is_heard_of_no_more_and_still_open() {
        let mut sockets = Sockets::new().unwrap();
        let (a, mut b) = UnixStream::pair().unwrap();
        let id = sockets.insert(a.into(), None, Flags::default()).unwrap();
        let (fd, _) = sockets.release(id).unwrap();
        b.write_all(b"x").unwrap();
        let mut ready = Vec::new();
        sockets.poll(&mut ready).unwrap();
        assert!(ready.is_empty());
        let mut other = Sockets::new().unwrap();
        other.insert(fd, None, Flags::default()).unwrap();
        other.poll(&mut ready).unwrap();
        assert_eq!(ready.len(), 1);
    }
}
