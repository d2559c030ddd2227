//! Memory: the broker's, the kernel's for its sockets, and what bounds them.
//!
//! Called  by [`super::examine`].

use super::{Finding, Host, Needs, State, at_least, grouped, mib, set};

/// User memory of a connection with one subscription, as the README has measured it, rounded up; over TLS, with its keys.
const CONNECTION_BYTES: u64 = 500;
const TLS_CONNECTION_BYTES: u64 = 4_000;
/// What the kernel has for a socket that waits: 3.8 KB in slabs, as `skein-load idle` prints them.
const SOCKET_BYTES: u64 = 4_096;
/// The broker without a connection.
const BASE_BYTES: u64 = 64 << 20;
/// What is on its way through each socket when all are closed at once, as /proc/net/sockstat had it for a million: 2.0 KB.
const BUFFER_BYTES: u64 = 2_048;
/// Mappings of a thread (its stack, its heap, its rings), and those of the program.
const MAPS_PER_CORE: u64 = 16;
const MAPS: u64 = 1_024;
/// Address space of a thread that is promised to it: its stack and its heap.
const PROMISED_PER_CORE: u64 = 4 << 20;

pub fn check(host: &Host, needs: &Needs) -> Vec<Finding> {
    let mut findings = vec![memory(host, needs), tcp_mem(host, needs)];
    findings.extend(buffers(host));
    findings.push(overcommit(host, needs));
    findings.push(at_least(
        host,
        "vm.max_map_count",
        MAPS + needs.cores * MAPS_PER_CORE,
        "every core has mappings of its own",
    ));
    findings.push(huge_pages(host));
    findings
}

fn user_bytes(needs: &Needs, each: u64) -> u64 {
    BASE_BYTES + needs.connections * each
}

/// What is free of the host and of every cgroup around this process, and which of them is the narrowest.
fn available(host: &Host) -> Option<(u64, String)> {
    let mut least = (host.meminfo("MemAvailable")?, "available".to_owned());
    for (path, bytes) in cgroup_rooms(host) {
        if bytes < least.0 {
            least = (bytes, format!("left by the cgroup {path}"));
        }
    }
    Some(least)
}

/// Of every cgroup this process is in, from its own to the top: how much memory its limit leaves.
fn cgroup_rooms(host: &Host) -> Vec<(String, u64)> {
    let mut rooms = Vec::new();
    for line in host.text("proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (base, limit, usage) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
            "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
            _ => continue,
        };
        for directory in std::path::Path::new(path).ancestors() {
            let path = directory.to_string_lossy();
            let place = format!("{base}{}", path.trim_end_matches('/'));
            // `max` is no number: there is no limit.
            let limit = host.number(&format!("{place}/{limit}"));
            let usage = host.number(&format!("{place}/{usage}"));
            if let (Some(limit), Some(usage)) = (limit, usage) {
                rooms.push((path.into_owned(), limit.saturating_sub(usage)));
            }
        }
    }
    rooms
}

fn memory(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "memory";
    let Some((room, whose)) = available(host) else {
        return Finding::new(NAME, State::Unknown, "this host does not tell");
    };
    let config = &needs.config;
    let has_plain = config.mqtt_port.is_some() || config.ws_port.is_some();
    let has_tls = config.mqtts_port.is_some() || config.wss_port.is_some();
    let wanted = |each| user_bytes(needs, each) + needs.connections * SOCKET_BYTES;
    let (plain, tls) = (wanted(CONNECTION_BYTES), wanted(TLS_CONNECTION_BYTES));
    let fits = |each: u64| room.saturating_sub(BASE_BYTES) / (each + SOCKET_BYTES);
    let (least, each, over) = match has_plain {
        true => (plain, CONNECTION_BYTES, "without TLS"),
        false => (tls, TLS_CONNECTION_BYTES, "over TLS"),
    };
    if room < least {
        let text = format!(
            "{} {whose}, and {} are wanted {over}: {} for the broker, the rest for the kernel's sockets",
            mib(room),
            mib(least),
            mib(user_bytes(needs, each))
        );
        return Finding::new(NAME, State::Fix, text).or(format!("skein --max-connections {}", fits(each).max(1)));
    }
    if has_plain && has_tls && room < tls {
        let text = format!(
            "{} {whose}: enough without TLS ({}), not if all come over TLS ({})",
            mib(room),
            mib(plain),
            mib(tls)
        );
        return Finding::new(NAME, State::Hint, text)
            .or(format!("skein --max-connections {}", fits(TLS_CONNECTION_BYTES).max(1)));
    }
    let tls = match has_plain && has_tls {
        true => format!(", {} if all come over TLS", mib(tls)),
        false => String::new(),
    };
    Finding::new(
        NAME,
        State::Ok,
        format!("{} {whose}, {} wanted {over}{tls}", mib(room), mib(least)),
    )
}

/// Idle sockets hold no buffer; what is on its way to many at once counts.
fn tcp_mem(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "net.ipv4.tcp_mem";
    const PAGE_BYTES: u64 = 4_096;
    let Some(&[low, pressure, max]) = host.sysctl_numbers(NAME).as_deref() else {
        return Finding::new(NAME, State::Unknown, "this host does not tell");
    };
    let wanted = needs.connections * BUFFER_BYTES / PAGE_BYTES;
    if max >= wanted {
        return Finding::new(
            NAME,
            State::Ok,
            format!("{} pages (wanted: {})", grouped(max), grouped(wanted)),
        );
    }
    let text = format!(
        "{} pages for what all sockets send and receive, and {} are wanted when all come or go at once",
        grouped(max),
        grouped(wanted)
    );
    let value = format!("\"{} {} {wanted}\"", low.max(wanted / 2), pressure.max(wanted * 3 / 4));
    Finding::new(NAME, State::Fix, text).or(set(NAME, value))
}

/// The least a socket may hold: it is granted even when memory is short.
fn buffers(host: &Host) -> Vec<Finding> {
    const MIN_MAX: u64 = 16_384;
    ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]
        .into_iter()
        .map(|name| match host.sysctl_numbers(name).as_deref() {
            Some(&[min, default, max]) if min > MIN_MAX => Finding::new(
                name,
                State::Hint,
                format!(
                    "{} bytes are granted to every socket even when memory is short",
                    grouped(min)
                ),
            )
            .or(set(name, format!("\"4096 {default} {max}\""))),
            Some(&[min, default, max]) => Finding::new(
                name,
                State::Ok,
                format!(
                    "{} to {} bytes a socket, {} at first: taken by what is on its way, not by who waits",
                    grouped(min),
                    grouped(max),
                    grouped(default)
                ),
            ),
            _ => Finding::new(name, State::Unknown, "this host does not tell"),
        })
        .collect()
}

/// The map of the data file is shared with the file and is promised nothing; heaps and stacks are.
fn overcommit(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "vm.overcommit_memory";
    let swap = match host.meminfo("SwapTotal") {
        None | Some(0) => "no swap".to_owned(),
        Some(bytes) => format!("{} of swap, which would make connections wait for the disk", mib(bytes)),
    };
    match host.sysctl_number(NAME) {
        None => Finding::new(NAME, State::Unknown, "this host does not tell"),
        Some(2) => {
            let (Some(limit), Some(promised)) = (host.meminfo("CommitLimit"), host.meminfo("Committed_AS")) else {
                return Finding::new(NAME, State::Unknown, "2, and this host does not tell its CommitLimit");
            };
            let wanted = user_bytes(needs, CONNECTION_BYTES) + needs.cores * PROMISED_PER_CORE;
            let room = limit.saturating_sub(promised);
            match room >= wanted {
                true => Finding::new(
                    NAME,
                    State::Ok,
                    format!("2, {} left to promise ({} wanted); {swap}", mib(room), mib(wanted)),
                ),
                false => Finding::new(
                    NAME,
                    State::Fix,
                    format!("2: {} are left to promise, and {} are wanted", mib(room), mib(wanted)),
                )
                .or(set(NAME, 0)),
            }
        }
        Some(mode) => Finding::new(NAME, State::Ok, format!("{mode}; {swap}")),
    }
}

fn huge_pages(host: &Host) -> Finding {
    const NAME: &str = "transparent huge pages";
    let text = host.text("sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = text.as_deref().and_then(|text| text.split(['[', ']']).nth(1));
    match chosen {
        None => Finding::new(NAME, State::Unknown, "this host does not tell"),
        Some(mode) => Finding::new(
            NAME,
            State::Ok,
            format!("{mode} (the README's memory per connection was measured with madvise)"),
        ),
    }
}
