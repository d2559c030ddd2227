//! What the kernel of this host holds in memory for everybody: what many connections cost beside the memory of processes.
//!
//! Called  by `idle`, before the connections, while they are held, and after they have gone.
//! Holds   - it is the whole host: other work on it, and both ends of a connection to a broker on it, are in the figures;
//!         - what cannot be read is absent: /proc/slabinfo is for root.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// Lines of /proc/meminfo that are the kernel's own memory; the page cache is not among them.
const MEMINFO_LINES: [&str; 5] = ["Slab:", "KernelStack:", "PageTables:", "Percpu:", "VmallocUsed:"];
/// Caches that a report names.
const NAMED_CACHES: usize = 8;

/// In bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KernelMemory {
    pub total: u64,
    /// The part of it that is reserved for what sockets have to send and have received.
    pub socket_buffers: u64,
    pub caches: Option<BTreeMap<String, u64>>,
}

impl KernelMemory {
    pub fn read() -> Result<KernelMemory> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_string());
        let page_bytes = rustix::param::page_size() as u64;
        let buffers = parse_sockstat(&read("/proc/net/sockstat")?).unwrap_or(0) * page_bytes;
        Ok(KernelMemory {
            total: parse_meminfo(&read("/proc/meminfo")?) + buffers,
            socket_buffers: buffers,
            caches: fs::read_to_string("/proc/slabinfo")
                .ok()
                .map(|text| parse_slabinfo(&text, page_bytes)),
        })
    }

    /// By how much the caches that grew most since `before` have grown, the largest first.
    pub fn growth_of_caches(&self, before: &KernelMemory) -> Vec<(String, u64)> {
        let (Some(now), Some(before)) = (&self.caches, &before.caches) else {
            return Vec::new();
        };
        let grown = now.iter().map(|(name, bytes)| {
            let was = before.get(name).copied().unwrap_or(0);
            (name.clone(), bytes.saturating_sub(was))
        });
        let mut grown: Vec<_> = grown.filter(|(_, bytes)| *bytes > 0).collect();
        grown.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        grown.truncate(NAMED_CACHES);
        grown
    }
}

fn parse_meminfo(text: &str) -> u64 {
    let kib = |line: &str| -> Option<u64> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        MEMINFO_LINES.contains(&name).then(|| words.next()?.parse().ok())?
    };
    text.lines().filter_map(kib).sum::<u64>() * 1024
}

/// Pages.
fn parse_sockstat(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("TCP:"))?;
    let mut words = line.split_ascii_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

/// Bytes of each cache: its slabs, whole. Its columns are name, active objects, objects, their size, objects per slab, pages per
/// slab; and at the end active slabs, slabs.
fn parse_slabinfo(text: &str, page_bytes: u64) -> BTreeMap<String, u64> {
    let cache = |line: &str| -> Option<(String, u64)> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        Some((words.first()?.to_string(), number(5)? * number(14)? * page_bytes))
    };
    text.lines().filter_map(cache).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_summed_and_no_others() {
        let text = "MemTotal: 24683656 kB\nSlab: 100 kB\nSReclaimable: 60 kB\nKernelStack: 7 kB\nPageTables: 3 kB\n";
        assert_eq!(parse_meminfo(text), 110 * 1024);
    }

    #[test]
    fn pages_of_sockets_are_those_of_tcp() {
        let text = "sockets: used 27\nTCP: inuse 2 orphan 0 tw 0 alloc 4 mem 489\nUDP: inuse 0 mem 7\n";
        assert_eq!(parse_sockstat(text), Some(489));
        assert_eq!(parse_sockstat("UDP: inuse 0 mem 7\n"), None);
    }

    #[test]
    fn a_cache_is_its_slabs_and_growth_is_sorted() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> ...\n\
            TCP 92 143 2368 13 8 : tunables 0 0 0 : slabdata 11 11 0\n\
            filp 738 756 192 21 1 : tunables 0 0 0 : slabdata 36 36 0\n";
        let before = KernelMemory {
            caches: Some(parse_slabinfo(text, 4096)),
            ..KernelMemory::default()
        };
        assert_eq!(before.caches.as_ref().unwrap()["TCP"], 11 * 8 * 4096);
        let text = text.replace("11 11 0", "21 21 0").replace("36 36 0", "136 136 0");
        let held = KernelMemory {
            caches: Some(parse_slabinfo(&text, 4096)),
            ..KernelMemory::default()
        };
        let grown = [("filp".to_string(), 100 * 4096), ("TCP".to_string(), 80 * 4096)];
        assert_eq!(held.growth_of_caches(&before), grown);
        assert_eq!(KernelMemory::default().growth_of_caches(&before), []);
    }

    #[test]
    fn this_host_tells() {
        assert!(KernelMemory::read().unwrap().total > 1024 * 1024);
    }
}
