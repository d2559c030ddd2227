//! What the broker's process costs, read from outside: CPU time, memory and what it writes.
//!
//! Called  by the scenarios at the start and the end of what they measure.
//! Holds   - CPU time comes from the process's own CPU clock (nanoseconds, all threads, ended ones too); the split into
//!           user and system comes from /proc/PID/stat, in ticks of 10 ms and sampled by the tick: an estimate;
//!         - what it writes comes from /proc/PID/io: the kernel counts `write_bytes` when a page becomes dirty or goes to the
//!           disk directly, whichever call did it; `wchar` and `syscw` see write(2) and its kin (sockets too, when they are
//!           written that way), not sendmsg(2), mmap or io_uring;
//!         - who flushes is not told per process: /proc/diskstats has it for the whole machine;
//!         - memory is Pss of /proc/PID/smaps_rollup without mapped files: user pages, shared ones in proportion, no kernel
//!           socket memory, nor the page cache behind a map, which the kernel takes back when it needs it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

#[derive(Clone, Debug)]
pub struct BrokerProcess {
    pid: u32,
    pub name: String,
}

/// CPU time used since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    pub total: Duration,
    /// In ticks of 10 ms.
    pub user: Duration,
    pub system: Duration,
}

impl CpuTime {
    pub fn since(self, before: CpuTime) -> CpuTime {
        CpuTime {
            total: self.total.saturating_sub(before.total),
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

/// What the process has written since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Went to the block layer, or will.
    pub write_bytes: u64,
    /// Given to write(2) and its kin.
    pub wchar: u64,
    /// Calls of them.
    pub syscw: u64,
}

impl Io {
    pub fn since(self, before: Io) -> Io {
        Io {
            write_bytes: self.write_bytes.saturating_sub(before.write_bytes),
            wchar: self.wchar.saturating_sub(before.wchar),
            syscw: self.syscw.saturating_sub(before.syscw),
        }
    }
}

/// Flush requests that the disks of this machine have completed, whoever asked; absent where the kernel does not tell.
pub fn machine_flushes() -> Option<u64> {
    parse_flushes(&fs::read_to_string("/proc/diskstats").ok()?)
}

impl BrokerProcess {
    pub fn new(pid: u32) -> Result<BrokerProcess> {
        let stat = read(pid, "stat")?;
        let name = parse_stat(&stat)
            .with_context(|| format!("/proc/{pid}/stat"))?
            .name
            .to_string();
        Ok(BrokerProcess { pid, name })
    }

    pub fn cpu_time(&self) -> Result<CpuTime> {
        let pid = self.pid;
        let stat = read(pid, "stat")?;
        let stat = parse_stat(&stat).with_context(|| format!("/proc/{pid}/stat"))?;
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let (user, system) = (
            Duration::from_nanos(stat.user_ticks * tick_ns),
            Duration::from_nanos(stat.system_ticks * tick_ns),
        );
        let total = cpu_clock(pid).unwrap_or(user + system);
        Ok(CpuTime { total, user, system })
    }

    /// Absent where it may not be read: the file is for the same user only, and not on every kernel.
    pub fn io(&self) -> Option<Io> {
        parse_io(&read(self.pid, "io").ok()?)
    }

    /// In bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        let pid = self.pid;
        let rollup = read(pid, "smaps_rollup")?;
        parse_memory(&rollup).with_context(|| format!("no Pss_Anon line in /proc/{pid}/smaps_rollup"))
    }
}

/// The process that listens on `address` of this machine, where that may be read: of the same user, or by root.
pub fn listening_on(address: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inodes: Vec<String> = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listeners(&table, address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let holds = |fds: String| {
        let entries = fs::read_dir(fds).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
    };
    let numbers = |path: &str| -> Vec<u32> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    };
    let processes = numbers("/proc");
    let of_process = processes.iter().find(|pid| holds(format!("/proc/{pid}/fd")));
    // A thread may have a descriptor table of its own.
    let of_thread = || {
        processes.iter().find(|pid| {
            let tasks = format!("/proc/{pid}/task");
            numbers(&tasks).iter().any(|task| holds(format!("{tasks}/{task}/fd")))
        })
    };
    of_process.or_else(of_thread).copied()
}

/// Inodes of the sockets in a table of /proc/net that take connections to `address`. One bound to no address in particular
/// counts for loopback alone: whether another address is this machine's the table does not tell.
fn listeners(table: &str, address: SocketAddr) -> Vec<u64> {
    let takes = |local: &str| {
        let (ip, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let ip = match ip.len() {
            8 => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes())),
            // Four words, each in the byte order of the machine.
            32 => {
                let mut bytes = [0; 16];
                for (word, out) in bytes.chunks_exact_mut(4).enumerate() {
                    let text = ip.get(word * 8..word * 8 + 8)?;
                    out.copy_from_slice(&u32::from_str_radix(text, 16).ok()?.to_ne_bytes());
                }
                IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
            }
            _ => return None,
        };
        let is_local = ip == address.ip() || (ip.is_unspecified() && address.ip().is_loopback());
        Some(port == address.port() && is_local)
    };
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        const LISTEN: &str = "0A";
        (*fields.get(3)? == LISTEN && takes(fields.get(1)?)?).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().filter_map(inode).collect()
}

fn cpu_clock(pid: u32) -> Option<Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    Some(nix::time::clock_getcpuclockid(pid).ok()?.now().ok()?.into())
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("{path} (is the broker's process still there?)"))
}

struct Stat<'a> {
    name: &'a str,
    user_ticks: u64,
    system_ticks: u64,
}

/// The name stands in parentheses and may itself hold spaces and parentheses: fields are counted from the last one.
fn parse_stat(line: &str) -> Result<Stat<'_>> {
    let (Some(open), Some(close)) = (line.find('('), line.rfind(')')) else {
        bail!("no process name in it")
    };
    let mut fields = line[close + 1..].split_ascii_whitespace();
    // After the name comes field 3; utime is field 14, stime 15.
    let (Some(user), Some(system)) = (fields.nth(14 - 3), fields.next()) else {
        bail!("fewer than 15 fields")
    };
    Ok(Stat {
        name: &line[open + 1..close],
        user_ticks: user.parse()?,
        system_ticks: system.parse()?,
    })
}

fn parse_memory(rollup: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let rest = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("Pss_Anon:")? + kib("Pss_Shmem:").unwrap_or(0)) * 1024)
}

fn parse_io(text: &str) -> Option<Io> {
    let value = |name: &str| {
        let rest = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().parse().ok()
    };
    Some(Io {
        write_bytes: value("write_bytes")?,
        wchar: value("wchar")?,
        syscw: value("syscw")?,
    })
}

/// The disk that flushed most: one below another (device mapper) repeats the same flushes. Field 19 of a line is the count;
/// kernels before 5.5 have no such field.
fn parse_flushes(diskstats: &str) -> Option<u64> {
    diskstats
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(18)?.parse().ok())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_not_taken_from_its_sister_lines() {
        let text =
            "rchar: 1\nwchar: 22\nsyscr: 3\nsyscw: 44\nread_bytes: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        let io = Io {
            write_bytes: 4096,
            wchar: 22,
            syscw: 44,
        };
        assert_eq!(parse_io(text), Some(io));
        assert_eq!(parse_io("wchar: 22\nsyscw: 44\ncancelled_write_bytes: 7\n"), None);
        assert_eq!(parse_io("wchar: x\nsyscw: 44\nwrite_bytes: 7\n"), None);
        assert_eq!(
            io.since(Io {
                write_bytes: 4000,
                wchar: 22,
                syscw: 40
            })
            .write_bytes,
            96
        );
    }

    #[test]
    fn what_this_process_writes_is_seen_or_left_out() {
        let process = BrokerProcess::new(std::process::id()).unwrap();
        let Some(before) = process.io() else { return };
        fs::write("/dev/null", [0; 5000]).unwrap();
        let written = process.io().unwrap().since(before);
        assert!(written.wchar >= 5000 && written.syscw >= 1, "{written:?}");
    }

    #[test]
    fn flushes_are_those_of_the_disk_that_flushed_most() {
        let text = "7 0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
                    254 0 vda 178302 9575 11162298 227066 20807 60745 33085952 292595 0 39896 538866 15027 112 105 173 291 18\n\
                    253 0 dm-0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 290 18\n";
        assert_eq!(parse_flushes(text), Some(291));
        assert_eq!(parse_flushes("8 0 sda 1 2 3 4 5 6 7 8 9 10 11\n"), None);
    }

    #[test]
    fn fields_are_counted_from_the_last_parenthesis() {
        let line = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 2000 0 1 0 123 456 0 0 20 0 3 0 987654 1 2 3";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.name, stat.user_ticks, stat.system_ticks), ("a (b) c", 123, 456));
        assert!(parse_stat("4242 (x) S 1 2").is_err());
        assert!(parse_stat("").is_err());
    }

    #[test]
    fn memory_is_what_is_not_a_mapped_file() {
        let rollup = "55-7f ---p 00000000 00:00 0   [rollup]\nRss:  1840 kB\nPss:    456 kB\nPss_Anon: 100 kB\nPss_File: 350 kB\n\
                      Pss_Shmem: 6 kB\nAnonymous: 9 kB\n";
        assert_eq!(parse_memory(rollup), Some(106 * 1024));
        assert_eq!(parse_memory("Rss: 1 kB\n"), None);
    }

    #[test]
    fn this_process_can_be_read_and_its_clock_agrees_with_its_ticks() {
        let process = BrokerProcess::new(std::process::id()).unwrap();
        let before = process.cpu_time().unwrap();
        let mut x = 1u64;
        for i in 0..40_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(i | 1));
        }
        let used = process.cpu_time().unwrap().since(before);
        assert!(used.total > Duration::ZERO);
        let ticks = used.user + used.system;
        assert!(ticks.abs_diff(used.total) <= Duration::from_millis(40), "{used:?}");
        assert!(process.memory_bytes().unwrap() > 100_000);
    }

    #[test]
    fn who_listens_is_found_and_who_does_not_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listening_on(address), Some(std::process::id()));
        assert_eq!(listening_on(SocketAddr::from(([127, 0, 0, 77], address.port()))), None);
        drop(listener);
        assert_eq!(listening_on(address), None);
    }

    #[test]
    fn a_table_tells_who_takes_connections_to_an_address() {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let (all, local) = (word([0; 4]), word([127, 0, 0, 1]));
        let rest = "00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0";
        let talks = rest.replace("0A", "01");
        let table = format!(
            "  sl  local_address rem_address\n 0: {all}:075B {rest} 11 1\n 1: {local}:075B {rest} 22 1\n\
             2: {local}:075B {talks} 33 1\n 3: {local}:075C {rest} 44 1\n 4: {all}{all}{all}{all}:075B {rest} 55 1\n"
        );
        let at = |ip: [u8; 4]| listeners(&table, SocketAddr::from((ip, 1883)));
        assert_eq!(at([127, 0, 0, 1]), [11, 22, 55]);
        assert_eq!(at([10, 0, 0, 1]), [0u64; 0]);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = format!("{:#}", BrokerProcess::new(u32::MAX / 2).unwrap_err());
        assert!(error.contains("2147483647"), "{error}");
    }
}
