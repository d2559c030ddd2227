//! Listening sockets: bound once for all cores, accepted from on each.
//!
//! Called  by `server` (bind), by `worker::turn` (accept).
//! Holds   - every core has its own listener on the same port (`SO_REUSEPORT`): the kernel spreads connections;
//!         - a port that another process listens on is refused, even one that would share it: who binds holds the
//!           port's turn (an abstract Unix name) from the look until it listens, so two brokers cannot pass each other;
//!         - when descriptors run out, whoever waits is closed with the help of a spare descriptor, or the listener
//!           rests: a core never spins on it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, getpeername, getsockname,
    listen, shutdown, socket_with, sockopt,
};

/// Connections that wait to be accepted, per listener; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;
/// How often and how long the turn at a port is asked for.
const TURN_ATTEMPTS: u32 = 200;
const TURN_PAUSE: Duration = Duration::from_millis(25);

/// Listens on one address once for every core. Port 0 takes any free port, the same for all.
pub fn listen_on(ip: IpAddr, port: u16, cores: usize) -> io::Result<(u16, Vec<OwnedFd>)> {
    let _turn = take_turn(port)?;
    if port != 0 {
        // Without SO_REUSEPORT this fails if anybody at all listens there.
        let probe = tcp_socket(ip)?;
        bind(&probe, &SocketAddr::new(ip, port))?;
    }
    let mut port = port;
    let mut listeners = Vec::with_capacity(cores);
    for _ in 0..cores {
        let listener = tcp_socket(ip)?;
        sockopt::set_socket_reuseport(&listener, true)?;
        // Inherited by every accepted socket.
        sockopt::set_tcp_nodelay(&listener, true)?;
        bind(&listener, &SocketAddr::new(ip, port))?;
        if port == 0 {
            port = local_port(listener.as_fd())?;
        }
        listen(&listener, BACKLOG)?;
        listeners.push(listener);
    }
    Ok((port, listeners))
}

fn tcp_socket(ip: IpAddr) -> io::Result<OwnedFd> {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // A restart does not wait for connections of the last run to time out.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(socket)
}

fn local_port(socket: BorrowedFd<'_>) -> io::Result<u16> {
    let address: SocketAddr = getsockname(socket)?
        .try_into()
        .map_err(|_| io::Error::other("a TCP socket without an IP address"))?;
    Ok(address.port())
}

/// Where the other end of a connection is; None if it has gone.
pub fn peer_address(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    getpeername(socket).ok()??.try_into().ok()
}

/// Only one process at a time looks at a port and listens on it. The name is gone with the socket.
fn take_turn(port: u16) -> io::Result<OwnedFd> {
    let name = SocketAddrUnix::new_abstract_name(format!("skein/listen/{port}").as_bytes())?;
    let turn = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    for _ in 0..TURN_ATTEMPTS {
        match bind(&turn, &name) {
            Ok(()) => return Ok(turn),
            Err(Errno::ADDRINUSE) if port != 0 => std::thread::sleep(TURN_PAUSE),
            // Nobody else can be given a port the kernel chooses.
            Err(_) if port == 0 => return Ok(turn),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::ADDRINUSE.into())
}

/// What an attempt to accept gave.
#[derive(Debug)]
pub enum Accepted {
    Socket(OwnedFd),
    /// Nobody waits.
    Nobody,
    /// No descriptor was left: who waited has been closed.
    Shed,
    /// No descriptor is left, not even to close who waits: let the listener rest.
    Exhausted,
    /// The listener was shut down.
    Closed,
}

/// A descriptor that a core gives up for a moment when it has no other: one for all its listeners, opened in its own table.
#[derive(Default)]
pub struct Spare(Option<OwnedFd>);

impl Spare {
    pub fn open() -> Spare {
        let spare = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        // Without one, who waits is not closed but goes on to wait.
        Spare(spare.ok())
    }
}

/// One listener of one core.
pub struct Listener {
    fd: OwnedFd,
}

impl Listener {
    pub fn new(fd: OwnedFd) -> Listener {
        Listener { fd }
    }

    pub fn accept(&self, spare: &mut Spare) -> Accepted {
        loop {
            match accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Accepted::Socket(socket),
                Err(Errno::AGAIN) => return Accepted::Nobody,
                Err(Errno::INVAL) => return Accepted::Closed,
                Err(Errno::MFILE | Errno::NFILE) => return self.shed(spare),
                Err(Errno::NOMEM | Errno::NOBUFS) => return Accepted::Exhausted,
                // Errors of the connection that was waiting (accept(2)): take the next.
                Err(_) => {}
            }
        }
    }

    fn shed(&self, spare: &mut Spare) -> Accepted {
        if spare.0.take().is_none() {
            *spare = Spare::open();
            return Accepted::Exhausted;
        }
        let shed = accept_with(&self.fd, SocketFlags::CLOEXEC).is_ok();
        *spare = Spare::open();
        if shed { Accepted::Shed } else { Accepted::Exhausted }
    }

    /// Listens no more, whatever other descriptor tables still hold of it.
    pub fn stop(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream};

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn every_core_listens_on_the_port_the_first_was_given() {
        let (port, listeners) = listen_on(LOCAL, 0, 3).unwrap();
        assert_eq!(listeners.len(), 3);
        for listener in &listeners {
            assert_eq!(local_port(listener.as_fd()).unwrap(), port);
        }
    }

    #[test]
    fn a_port_that_is_listened_on_is_refused_even_if_it_would_be_shared() {
        let (port, listeners) = listen_on(LOCAL, 0, 2).unwrap();
        let error = listen_on(LOCAL, port, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        listen_on(LOCAL, port, 2).unwrap();
    }

    #[test]
    fn accepted_sockets_do_not_wait_to_fill_segments_and_a_stopped_listener_takes_nobody() {
        let (port, mut listeners) = listen_on(LOCAL, 0, 1).unwrap();
        let listener = Listener::new(listeners.pop().unwrap());
        let mut spare = Spare::open();
        assert!(matches!(listener.accept(&mut spare), Accepted::Nobody));
        let _client = TcpStream::connect((LOCAL, port)).unwrap();
        let Accepted::Socket(socket) = listener.accept(&mut spare) else {
            panic!("a client waits")
        };
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        listener.stop();
        assert!(matches!(listener.accept(&mut spare), Accepted::Closed));
        assert!(TcpStream::connect((LOCAL, port)).is_err());
    }
}
