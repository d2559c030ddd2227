//! Sockets from one core's descriptor table to another's.
//!
//! Owns    a socket pair per destination core, made before the tables part.
//! Called  by `worker::turn`: [`Passage::send`] before the parcel that speaks of the sockets, [`Passage::receive`] when
//!         that parcel arrives; by `worker` to part the tables.
//! Holds   - sockets travel under a ticket, and are in the destination's queue before the ticket is: who has the ticket
//!           finds the sockets without waiting;
//!         - messages of other senders met on the way are kept under their own tickets;
//!         - the kernel hands over as many of a message's descriptors as the receiver has room for, in order: what is
//!           missing is at the end, and closed.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Sockets that ride in one message: below the kernel's bound of 253 (`SCM_MAX_FD`).
pub const SOCKETS_PER_MESSAGE: usize = 250;

/// Names the sockets of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// One core's way to all others.
pub struct Passage {
    core: u16,
    issued: u64,
    outgoing: Arc<[OwnedFd]>,
    incoming: OwnedFd,
    /// Came before their parcel.
    early: HashMap<Ticket, Vec<OwnedFd>>,
}

/// A passage for every core.
pub fn passages(cores: usize) -> io::Result<Vec<Passage>> {
    let mut outgoing = Vec::with_capacity(cores);
    let mut incoming = Vec::with_capacity(cores);
    for _ in 0..cores {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (send, receive) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        outgoing.push(send);
        incoming.push(receive);
    }
    let outgoing: Arc<[OwnedFd]> = outgoing.into();
    Ok(incoming
        .into_iter()
        .enumerate()
        .map(|(core, incoming)| Passage {
            core: core as u16,
            issued: 0,
            outgoing: Arc::clone(&outgoing),
            incoming,
            early: HashMap::new(),
        })
        .collect())
}

impl Passage {
    /// Copies the sockets, at most [`SOCKETS_PER_MESSAGE`], to the destination's queue. None: no room now, try later.
    pub fn send(&mut self, to: u16, sockets: &[BorrowedFd<'_>]) -> io::Result<Option<Ticket>> {
        assert!((1..=SOCKETS_PER_MESSAGE).contains(&sockets.len()));
        let ticket = Ticket(u64::from(self.core) << 48 | self.issued);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(
            control.push(SendAncillaryMessage::ScmRights(sockets)),
            "the space is for more"
        );
        let body = ticket.0.to_ne_bytes();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(
            &self.outgoing[usize::from(to)],
            &[IoSlice::new(&body)],
            &mut control,
            flags,
        ) {
            Ok(_) => {
                self.issued += 1;
                Ok(Some(ticket))
            }
            // TOOMANYREFS: as many descriptors are on their way as the process may have open.
            Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The sockets of a ticket, in the order they were given; those that found no room in this core's table are missing at
    /// the end.
    pub fn receive(&mut self, ticket: Ticket) -> io::Result<Vec<OwnedFd>> {
        if let Some(sockets) = self.early.remove(&ticket) {
            return Ok(sockets);
        }
        loop {
            let (found, sockets) = self.receive_one()?;
            if found == ticket {
                return Ok(sockets);
            }
            self.early.insert(found, sockets);
        }
    }

    fn receive_one(&self) -> io::Result<(Ticket, Vec<OwnedFd>)> {
        let mut body = [0; 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let count = rustix::io::retry_on_intr(|| {
            recvmsg(&self.incoming, &mut [IoSliceMut::new(&mut body)], &mut control, flags).map(|message| message.bytes)
        })?;
        assert_eq!(
            count,
            body.len(),
            "a message is a ticket, and never without its sender's end open"
        );
        let mut sockets = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        Ok((Ticket(u64::from_ne_bytes(body)), sockets))
    }
}

/// Gives the calling thread a descriptor table of its own: a copy of the process's.
pub fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: a descriptor stays valid in every table that has it. After this call a descriptor opened by one thread means
    // nothing to another; the caller sees to it that from here on no `OwnedFd` that was opened later crosses threads, but
    // through a `Passage`. Those opened before are the same number for the same file in all tables.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }?;
    Ok(())
}

/// Closes, in the calling thread's own table, descriptors that belong to other threads and were copied with it.
pub fn close_copies(descriptors: &[RawFd]) {
    for descriptor in descriptors {
        // SAFETY: only after `unshare_descriptors` on this thread: the owners have theirs in tables of their own, and
        // nothing on this thread refers to these.
        unsafe { rustix::io::close(*descriptor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn talks(a: OwnedFd, mut b: UnixStream, word: &[u8]) {
        UnixStream::from(a).write_all(word).unwrap();
        let mut read = Vec::new();
        b.read_to_end(&mut read).unwrap();
        assert_eq!(read, word);
    }

    #[test]
    fn tickets_find_their_sockets_in_whatever_order_the_parcels_arrive() {
        let mut passages = passages(3).unwrap();
        let (a1, b1) = UnixStream::pair().unwrap();
        let (a2, b2) = UnixStream::pair().unwrap();
        let (a3, b3) = UnixStream::pair().unwrap();
        let first = passages[0].send(2, &[a1.as_fd(), a2.as_fd()]).unwrap().unwrap();
        let second = passages[1].send(2, &[a3.as_fd()]).unwrap().unwrap();
        assert_ne!(first, second);
        drop((a1, a2, a3));
        let mut sockets = passages[2].receive(second).unwrap();
        talks(sockets.pop().unwrap(), b3, b"three");
        let mut sockets = passages[2].receive(first).unwrap();
        assert_eq!(sockets.len(), 2);
        talks(sockets.pop().unwrap(), b2, b"two");
        talks(sockets.pop().unwrap(), b1, b"one");
        assert!(passages[2].early.is_empty());
    }

    #[test]
    fn a_full_passage_asks_to_try_later_and_loses_nothing() {
        let mut passages = passages(2).unwrap();
        let (a, _b) = UnixStream::pair().unwrap();
        let mut tickets = Vec::new();
        while let Some(ticket) = passages[0].send(1, &[a.as_fd()]).unwrap() {
            tickets.push(ticket);
        }
        assert!(tickets.len() > 10);
        for ticket in &tickets {
            assert_eq!(passages[1].receive(*ticket).unwrap().len(), 1);
        }
        assert!(passages[0].send(1, &[a.as_fd()]).unwrap().is_some());
    }

    #[test]
    fn a_socket_sent_between_private_tables_is_closed_when_its_receiver_closes_it() {
        let mut passages = passages(2).unwrap();
        let mut receiver = passages.pop().unwrap();
        let mut sender = passages.pop().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let sending = std::thread::spawn(move || {
            unshare_descriptors().unwrap();
            let (a, b) = UnixStream::pair().unwrap();
            tell.send(sender.send(1, &[a.as_fd()]).unwrap().unwrap()).unwrap();
            drop(a);
            let mut read = Vec::new();
            (&b).read_to_end(&mut read).unwrap();
            read
        });
        let receiving = std::thread::spawn(move || {
            unshare_descriptors().unwrap();
            let mut sockets = receiver.receive(told.recv().unwrap()).unwrap();
            UnixStream::from(sockets.pop().unwrap()).write_all(b"home").unwrap();
        });
        receiving.join().unwrap();
        assert_eq!(sending.join().unwrap(), b"home");
    }
}
