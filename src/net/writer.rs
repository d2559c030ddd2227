//! One send of what waits for a socket, and the end of a connection.
//!
//! Called  by `worker::turn` with what the shard shows as unsent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

/// What became of a send.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// All of it, or the part that fitted.
    Bytes(usize),
    /// The connection is broken.
    Broken,
}

/// Gives the socket what it takes at once, in one call.
#[inline]
pub fn write(socket: BorrowedFd<'_>, bytes: &[u8]) -> Written {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::io::retry_on_intr(|| send(socket, bytes, flags)) {
        Ok(taken) => Written::Bytes(taken),
        Err(Errno::AGAIN) => Written::Bytes(0),
        Err(_) => Written::Broken,
    }
}

/// Writes the last words, as far as the socket takes them at once, and closes.
pub fn close(socket: OwnedFd, last: &[u8]) {
    if !last.is_empty() && write(socket.as_fd(), last) != Written::Broken {
        // The end of the stream stands behind the last words even if unread bytes make the close a reset.
        let _ = shutdown(&socket, Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_full_socket_takes_nothing_and_is_not_broken() {
        let (a, b) = UnixStream::pair().unwrap();
        let bytes = vec![7; 1 << 20];
        while write(a.as_fd(), &bytes) != Written::Bytes(0) {}
        drop(b);
        assert_eq!(write(a.as_fd(), &bytes), Written::Broken);
    }

    #[test]
    fn the_last_words_arrive_before_the_end() {
        let (a, mut b) = UnixStream::pair().unwrap();
        close(a.into(), b"bye");
        let mut read = Vec::new();
        b.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"bye");
    }
}
