//! Source addresses and ports for more connections than one address has ports.
//!
//! Called  by `dial`, for each connection of a thread of `idle`, `connect` or `throughput`.
//! Holds   - a source belongs to one thread only; ports are those the kernel would choose from;
//!         - ports are bound by number: the kernel's own search through a nearly full range costs far more than the
//!           connection, and IP_BIND_ADDRESS_NO_PORT has no safe binding.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};

/// Connections one source address is asked for, well below the 28,232 ports the kernel gives by default.
const CONNECTIONS_PER_SOURCE: u32 = 20_000;

/// How many source addresses `connections` to `target` need, unless it was `asked` for a number; 0 leaves the choice of address
/// and port to the kernel.
pub fn source_count(target: SocketAddr, asked: Option<u32>, connections: u32) -> Result<u32> {
    let is_loopback = matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback());
    Ok(match asked {
        Some(_) if !is_loopback => bail!("--source-addresses are 127.0.0.x, from which {target} cannot be reached"),
        Some(sources) => sources,
        None if is_loopback && connections > CONNECTIONS_PER_SOURCE => connections.div_ceil(CONNECTIONS_PER_SOURCE),
        None => 0,
    })
}

#[derive(Debug)]
pub struct SourcePorts {
    first: u16,
    /// Ports of this thread per source address.
    count: u32,
    thread: u32,
    threads: u32,
    /// Next port of each source address.
    cursors: Vec<u32>,
    /// Whose turn it is. One whose ports others have, as after a storm of connects from it, is passed over by who asks again.
    next: usize,
}

impl SourcePorts {
    /// For thread `thread` of `threads`, connecting from `sources` addresses; 0 leaves the choice to the kernel.
    pub fn new(thread: u32, threads: u32, sources: u32, run: u32) -> Result<SourcePorts> {
        let path = "/proc/sys/net/ipv4/ip_local_port_range";
        let text = std::fs::read_to_string(path).with_context(|| path.to_string())?;
        let (first, last) = parse_port_range(&text).with_context(|| format!("{path} holds {text:?}"))?;
        // A start that differs from run to run: the ports of the last run are still in TIME_WAIT.
        let count = (last as u32 - first as u32 + 1) / threads;
        if sources > 0 && count == 0 {
            bail!(
                "{} threads share ports {first}..={last} of a source address: too few",
                threads
            );
        }
        let start = run % count.max(1);
        Ok(SourcePorts {
            first,
            count,
            thread,
            threads,
            cursors: vec![start; sources as usize],
            next: thread as usize,
        })
    }

    /// How many there are before they repeat; at least one.
    pub fn sources(&self) -> usize {
        (self.count as usize * self.cursors.len()).max(1)
    }

    /// The source of the next connection. `None`: the kernel chooses.
    pub fn take(&mut self) -> Option<SocketAddr> {
        if self.cursors.is_empty() {
            return None;
        }
        let source = self.next % self.cursors.len();
        self.next = source + 1;
        let cursor = &mut self.cursors[source];
        let port = self.first as u32 + self.thread + (*cursor % self.count) * self.threads;
        *cursor += 1;
        let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + source as u32);
        Some(SocketAddr::from((address, port as u16)))
    }
}

fn parse_port_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
    let (first, last) = (numbers.next()??, numbers.next()??);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_connections_share_a_source() {
        for (threads, sources) in [(3, 4), (6, 4), (54, 50)] {
            let mut seen = HashSet::new();
            for thread in 0..threads {
                let mut ports = SourcePorts::new(thread, threads, sources, 77).unwrap();
                let mut before = None;
                // All that the thread has.
                for _ in 0..ports.sources() {
                    let source = ports.take().unwrap();
                    assert_ne!(before.replace(source.ip()), Some(source.ip()), "it is another's turn");
                    assert!(source.ip().is_loopback() && source.port() >= ports.first);
                    assert!(seen.insert(source), "{source} twice");
                }
            }
            let addresses: HashSet<_> = seen.iter().map(|source| source.ip()).collect();
            assert_eq!(addresses.len(), sources as usize);
        }
    }

    #[test]
    fn a_port_range_is_two_numbers_in_order() {
        assert_eq!(parse_port_range("32768\t60999\n"), Some((32768, 60999)));
        assert_eq!(
            [parse_port_range("9 1"), parse_port_range("1"), parse_port_range("x y")],
            [None; 3]
        );
    }
}
