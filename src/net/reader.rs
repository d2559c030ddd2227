//! One receive into the core's single buffer, and what is kept of it.
//!
//! Called  by `worker::turn`, which presents the bytes and says how many were consumed; by `transport`, which puts MQTT
//!         bytes where a plain socket's would be.
//! Holds   - one `recv` per call; bytes of an earlier one stand before those of this one without a gap;
//!         - what is kept is at most one unconsumed stash and one read: a caller that presents nothing does not read.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::limits::READ_BYTES_PER_TURN;

/// A stash up to this length is copied in front of the read; a longer one is extended by it, so that a large packet that
/// comes in pieces is not copied once per piece.
const STASH_COPY_BYTES: usize = 16 * 1024;

/// Bytes that were not consumed. Boxed: almost every socket has none, and its slot holds one word for it.
#[allow(clippy::box_collection)]
pub type Stash = Box<Vec<u8>>;

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes came; `filled` if there may be more.
    Bytes { filled: bool },
    /// Nothing to read now.
    Nothing,
    /// The other side has sent its last byte, or the connection is broken.
    End,
}

/// The buffer of a core. The default has none: it stands in for one that is in use.
#[derive(Default)]
pub struct Scratch {
    buffer: Box<[u8]>,
    len: usize,
    /// Stands for the buffer while a long stash is being continued.
    long: Option<Stash>,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch {
            buffer: vec![0; STASH_COPY_BYTES + READ_BYTES_PER_TURN].into(),
            len: 0,
            long: None,
        }
    }

    /// Receives once; [`Scratch::bytes`] then shows stash and read in one piece.
    pub fn read(&mut self, socket: BorrowedFd<'_>, stash: &mut Option<Stash>) -> Read {
        match receive(socket, self.room(stash)) {
            Ok(0) => Read::End,
            Ok(taken) => {
                self.fill(taken, stash);
                Read::Bytes {
                    filled: taken == READ_BYTES_PER_TURN,
                }
            }
            Err(Errno::AGAIN) => Read::Nothing,
            Err(_) => Read::End,
        }
    }

    /// Room for [`READ_BYTES_PER_TURN`] bytes that follow those of the stash; [`Scratch::fill`] says how many there were.
    pub fn room(&mut self, stash: &Option<Stash>) -> &mut [u8] {
        self.long = None;
        self.len = 0;
        if let Some(bytes) = stash.as_ref().filter(|stash| stash.len() <= STASH_COPY_BYTES) {
            self.buffer[..bytes.len()].copy_from_slice(bytes);
            self.len = bytes.len();
        }
        &mut self.buffer[self.len..][..READ_BYTES_PER_TURN]
    }

    /// The first `taken` bytes of the room belong to the stream.
    pub fn fill(&mut self, taken: usize, stash: &mut Option<Stash>) {
        let from = self.len;
        self.len += taken;
        if let Some(mut long) = stash.take_if(|stash| stash.len() > STASH_COPY_BYTES) {
            long.extend_from_slice(&self.buffer[from..self.len]);
            self.long = Some(long);
        }
    }

    /// Shows a stash alone, without a read.
    pub fn show(&mut self, stash: Stash) {
        self.long = Some(stash);
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.long {
            Some(long) => long,
            None => &self.buffer[..self.len],
        }
    }

    /// Puts what was not consumed into the stash of its socket.
    pub fn keep(&mut self, consumed: usize, stash: &mut Option<Stash>) {
        if let Some(mut long) = self.long.take() {
            if consumed < long.len() {
                if consumed > 0 {
                    // Not drained in place: capacity for a large packet would stay with a few bytes.
                    *long = long[consumed..].to_vec();
                }
                *stash = Some(long);
            }
            return;
        }
        let rest = &self.buffer[consumed..self.len];
        if rest.is_empty() {
            *stash = None;
            return;
        }
        let kept = stash.get_or_insert_default();
        kept.clear();
        kept.extend_from_slice(rest);
    }
}

/// What has come, at most as much as the buffer holds; 0 is the end.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::DONTWAIT).map(|(count, _)| count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    proptest! {
        /// Whatever the pieces in which bytes come and are consumed, every byte is consumed once and in order.
        #[test]
        fn pieces_join_without_gap_or_repetition(
            pieces in prop::collection::vec((1usize..40_000, 0usize..60_000), 1..20), show in any::<u64>()
        ) {
            let (a, mut b) = UnixStream::pair().unwrap();
            b.set_nonblocking(true).unwrap();
            let mut scratch = Scratch::new();
            let mut stash = None;
            let mut consumed = Vec::new();
            let mut sent = Vec::new();
            for (step, (len, appetite)) in pieces.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|at| ((sent.len() + at) % 251) as u8).collect();
                let taken = b.write(&bytes).unwrap_or(0);
                sent.extend_from_slice(&bytes[..taken]);
                if show >> (step % 64) & 1 == 1 && stash.is_some() {
                    scratch.show(stash.take().unwrap());
                } else if scratch.read(a.as_fd(), &mut stash) == Read::Nothing {
                    continue;
                }
                let eaten = appetite.min(scratch.bytes().len());
                consumed.extend_from_slice(&scratch.bytes()[..eaten]);
                scratch.keep(eaten, &mut stash);
                prop_assert!(stash.as_ref().is_none_or(|stash| !stash.is_empty()));
            }
            loop {
                let read = scratch.read(a.as_fd(), &mut stash);
                if read == Read::Nothing {
                    break;
                }
                consumed.extend_from_slice(scratch.bytes());
                let all = scratch.bytes().len();
                scratch.keep(all, &mut stash);
            }
            consumed.extend_from_slice(&stash.take().map_or(Vec::new(), |stash| *stash));
            prop_assert_eq!(consumed, sent);
        }
    }

    #[test]
    fn nothing_to_read_keeps_the_stash_and_the_end_is_told_apart() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut scratch = Scratch::new();
        let mut stash = Some(Box::new(b"abc".to_vec()));
        assert_eq!(scratch.read(a.as_fd(), &mut stash), Read::Nothing);
        assert_eq!(stash.as_ref().unwrap().as_slice(), b"abc");
        drop(b);
        assert_eq!(scratch.read(a.as_fd(), &mut stash), Read::End);
    }

    #[test]
    fn a_consumed_stash_is_freed() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"def").unwrap();
        let mut scratch = Scratch::new();
        let mut stash = Some(Box::new(b"abc".to_vec()));
        assert_eq!(scratch.read(a.as_fd(), &mut stash), Read::Bytes { filled: false });
        assert_eq!(scratch.bytes(), b"abcdef");
        scratch.keep(6, &mut stash);
        assert!(stash.is_none());
    }
}
