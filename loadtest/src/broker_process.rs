//! What the broker's process costs, read from outside: CPU time and memory.
//!
//! Called  by the scenarios at the start and the end of what they measure.
//! Holds   - CPU time comes from the process's own CPU clock (nanoseconds, all threads, ended ones too); the split into
//!           user and system comes from /proc/PID/stat, in ticks of 10 ms and sampled by the tick: an estimate;
//!         - memory is Pss of /proc/PID/smaps_rollup: user pages, shared ones in proportion, no kernel socket memory.

use std::fs;
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

    /// Pss in bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        let pid = self.pid;
        let rollup = read(pid, "smaps_rollup")?;
        parse_pss(&rollup).with_context(|| format!("no Pss line in /proc/{pid}/smaps_rollup"))
    }
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

fn parse_pss(rollup: &str) -> Option<u64> {
    let rest = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_last_parenthesis() {
        let line = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 2000 0 1 0 123 456 0 0 20 0 3 0 987654 1 2 3";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.name, stat.user_ticks, stat.system_ticks), ("a (b) c", 123, 456));
        assert!(parse_stat("4242 (x) S 1 2").is_err());
        assert!(parse_stat("").is_err());
    }

    #[test]
    fn pss_is_not_taken_from_its_sister_lines() {
        let rollup =
            "55-7f ---p 00000000 00:00 0   [rollup]\nRss:  1840 kB\nPss_Dirty:  7 kB\nPss:    456 kB\nPss_Anon: 9 kB\n";
        assert_eq!(parse_pss(rollup), Some(456 * 1024));
        assert_eq!(parse_pss("Rss: 1 kB\n"), None);
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
    fn a_process_that_is_not_there_is_named() {
        let error = format!("{:#}", BrokerProcess::new(u32::MAX / 2).unwrap_err());
        assert!(error.contains("2147483647"), "{error}");
    }
}
