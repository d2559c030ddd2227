//! A socket on its way to the broker, from a source of our choice.
//!
//! Called  by `idle` and `connect`, whose many clients are non-blocking from the first call on, and by `client`.
//! Holds   - a port that another process uses is passed over: at most all of them once.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::source_ports::SourcePorts;

/// A socket for connection `number`; true when it is connected already, else it becomes writable.
pub fn dial(target: SocketAddr, ports: &mut SourcePorts, number: u32) -> Result<(OwnedFd, bool)> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    for _ in 0..ports.sources() {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|error| anyhow!("no socket for connection {number}: {}", std::io::Error::from(error)))?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        let source = ports.take();
        if let Some(source) = source {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            match rustix::net::bind(&socket, &source) {
                Err(Errno::ADDRINUSE) => continue,
                other => other.with_context(|| format!("cannot bind to {source}"))?,
            }
        }
        match rustix::net::connect(&socket, &target) {
            Ok(()) => return Ok((socket, true)),
            Err(Errno::INPROGRESS) => return Ok((socket, false)),
            Err(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) if source.is_some() => {}
            Err(Errno::ADDRNOTAVAIL) => {
                bail!("no port is left to connect to {target} from; --source-addresses gives more")
            }
            Err(error) => bail!("cannot connect to {target}: {}", std::io::Error::from(error)),
        }
    }
    bail!("no port is free on the source addresses; --source-addresses gives more")
}
