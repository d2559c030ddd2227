//! The kernel and the CPUs: io_uring and the memory it locks, clock, cores.
//!
//! Called  by [`super::examine`].

use super::{Finding, Host, Needs, State, grouped, set};
use crate::config::Driver;

/// From this version on the rings of io_uring do not count as locked memory.
const UNLOCKED_RINGS: (u32, u32) = (5, 12);
/// Versions that take who sleeps on a ring for one who waits for a disk; from the second on they can be told (`worker::ring`).
const SLEEP_IS_IO: std::ops::Range<(u32, u32)> = (6, 5)..(6, 15);
/// Memory a core's ring locks before it.
const RING_BYTES: u64 = 64 * 1024;
/// Clocks that are read without a call of the kernel.
const FAST_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

pub fn check(host: &Host, needs: &Needs) -> Vec<Finding> {
    vec![
        io_uring(host, needs),
        locked_memory(host, needs),
        clock(host),
        cpus(host, needs),
        governor(host),
    ]
}

fn io_uring(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "io_uring";
    let (driver, problem) = match (needs.driver, &host.tried.io_uring) {
        (Driver::Epoll, _) => return Finding::new(NAME, State::Ok, "not used, by --driver epoll"),
        (_, Ok(())) if host.kernel().is_some_and(|version| SLEEP_IS_IO.contains(&version)) => {
            let text = "tried, and it works; but before Linux 6.15 a core that sleeps counts as one that waits for a disk: `wa` of \
                        top and /proc/pressure/io rise to 100% where nothing is to do";
            return Finding::new(NAME, State::Hint, text).or("skein --driver epoll");
        }
        (_, Ok(())) => return Finding::new(NAME, State::Ok, "tried, and it works"),
        (driver, Err(problem)) => (driver, problem),
    };
    let (state, then) = match driver {
        Driver::IoUring => (State::Fix, "the broker does not start with --driver io_uring"),
        _ => (State::Hint, "the broker takes epoll"),
    };
    match host.sysctl_number("kernel.io_uring_disabled") {
        Some(disabled @ 1..) => Finding::new(
            NAME,
            state,
            format!("kernel.io_uring_disabled is {disabled} ({problem}): {then}"),
        )
        .or(set("kernel.io_uring_disabled", 0)),
        _ => Finding::new(
            NAME,
            state,
            format!("the kernel or the container's filter of system calls refuses it ({problem}): {then}"),
        )
        .or("skein --driver epoll"),
    }
}

fn locked_memory(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "locked memory";
    if needs.driver == Driver::Epoll {
        return Finding::new(NAME, State::Ok, "none is locked with --driver epoll");
    }
    match (host.kernel(), host.limit("Max locked memory")) {
        (Some(version), _) if version >= UNLOCKED_RINGS => {
            Finding::new(NAME, State::Ok, "rings of io_uring do not count from Linux 5.12 on")
        }
        (Some(_), Some((soft, _))) => {
            let wanted = needs.cores * RING_BYTES;
            match soft >= wanted {
                true => Finding::new(NAME, State::Ok, format!("{} bytes (wanted: {})", grouped(soft), grouped(wanted))),
                false => Finding::new(
                    NAME,
                    if needs.driver == Driver::IoUring { State::Fix } else { State::Hint },
                    format!(
                        "{} bytes, and {} are wanted for the rings of io_uring (LimitMEMLOCK={wanted} of a systemd unit)",
                        grouped(soft),
                        grouped(wanted)
                    ),
                )
                .or(format!("sudo prlimit --pid $$ --memlock={wanted}:{wanted}")),
            }
        }
        _ => Finding::new(NAME, State::Unknown, "this host does not tell"),
    }
}

fn clock(host: &Host) -> Finding {
    const NAME: &str = "clock source";
    const BASE: &str = "sys/devices/system/clocksource/clocksource0";
    let Some(text) = host.text(&format!("{BASE}/current_clocksource")) else {
        return Finding::new(NAME, State::Unknown, "this host does not tell");
    };
    let clock = text.trim();
    if FAST_CLOCKS.contains(&clock) {
        return Finding::new(NAME, State::Ok, format!("{clock}, read without a system call"));
    }
    let finding = Finding::new(
        NAME,
        State::Hint,
        format!("{clock}: every look at the clock is a system call"),
    );
    let others = host.text(&format!("{BASE}/available_clocksource")).unwrap_or_default();
    match FAST_CLOCKS
        .iter()
        .find(|fast| others.split_ascii_whitespace().any(|other| other == **fast))
    {
        Some(fast) => finding.or(format!("echo {fast} | sudo tee /{BASE}/current_clocksource")),
        None => finding,
    }
}

fn cpus(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "--cores";
    let Some(cpus) = host.cpus() else {
        return Finding::new(NAME, State::Unknown, "this host does not tell how many CPUs there are");
    };
    let text = format!("{} for {cpus} CPUs", needs.cores);
    if needs.cores == cpus {
        return Finding::new(NAME, State::Ok, text);
    }
    if needs.cores < cpus {
        return Finding::new(NAME, State::Hint, format!("{text}: the others serve nobody"))
            .or(format!("skein --cores {cpus}"));
    }
    // More are wanted where the limit of open files counts per core.
    Finding::new(
        NAME,
        State::Ok,
        format!("{text}: threads share CPUs and are not pinned to them"),
    )
}

fn governor(host: &Host) -> Finding {
    const NAME: &str = "CPU frequency";
    match host
        .text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        .as_deref()
        .map(str::trim)
    {
        None => Finding::new(NAME, State::Ok, "not for this kernel to choose"),
        Some("powersave") => Finding::new(
            NAME,
            State::Hint,
            "powersave: the first messages after a pause take longer",
        )
        .or("sudo cpupower frequency-set -g performance"),
        Some(governor) => Finding::new(NAME, State::Ok, governor),
    }
}
