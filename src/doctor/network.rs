//! The network: who waits to be accepted, ports that another program may take, tracked connections, queues of interfaces.
//!
//! Called  by [`super::examine`].

use super::{Finding, Host, Needs, State, at_least, grouped, set};

/// Clients that come at once wait in queues; a longer one than this helps nobody whose broker accepts at all.
const WAITING_MAX: u64 = 4_096;
const WAITING_MIN: u64 = 128;
/// Connections of others that are tracked.
const OTHERS_TRACKED: u64 = 10_000;
/// CPUs that one word of a mask names.
const CPUS_OF_MASK: u64 = 32;
const TRACKED: &str = "net.netfilter.nf_conntrack_max";

pub fn check(host: &Host, needs: &Needs) -> Vec<Finding> {
    let waiting = (needs.connections / 16).clamp(WAITING_MIN, WAITING_MAX);
    let mut findings = vec![
        at_least(
            host,
            "net.core.somaxconn",
            waiting,
            "clients that come at once wait to be accepted",
        ),
        at_least(
            host,
            "net.ipv4.tcp_max_syn_backlog",
            waiting,
            "clients that come at once wait for their handshake",
        ),
        ports(host, needs),
        tracked(host, needs),
    ];
    findings.extend(queues(host));
    findings
}

/// A port within the range that the kernel takes outgoing ports from may be in use when the broker starts.
fn ports(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "net.ipv4.ip_local_port_range";
    const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
    let Some(&[first, last]) = host.sysctl_numbers(NAME).as_deref() else {
        return Finding::new(NAME, State::Unknown, "this host does not tell");
    };
    let reserved = host.sysctl_text(RESERVED).unwrap_or_default();
    let is_reserved = |port: u16| {
        reserved.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.trim().parse::<u16>(), last.trim().parse::<u16>());
            matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&port))
        })
    };
    let in_range = |port: &u16| (first..=last).contains(&u64::from(*port)) && !is_reserved(*port);
    let taken: Vec<(&str, u16)> = needs.ports().into_iter().filter(|(_, port)| in_range(port)).collect();
    if taken.is_empty() {
        return Finding::new(
            NAME,
            State::Ok,
            format!("{first} to {last}: no port of the broker's is given to others"),
        );
    }
    let named: Vec<String> = taken.iter().map(|(flag, port)| format!("{port} ({flag})")).collect();
    let mut list: Vec<String> = taken.iter().map(|(_, port)| port.to_string()).collect();
    if !reserved.is_empty() {
        list.insert(0, reserved.clone());
    }
    let text = format!(
        "{first} to {last}: {} may be somebody's outgoing port when the broker starts",
        named.join(", ")
    );
    Finding::new(NAME, State::Fix, text).or(set(RESERVED, list.join(",")))
}

fn tracked(host: &Host, needs: &Needs) -> Finding {
    match host.sysctl_number(TRACKED) {
        None => Finding::new(TRACKED, State::Ok, "no connection is tracked on this host"),
        Some(_) => at_least(
            host,
            TRACKED,
            needs.connections + OTHERS_TRACKED,
            "beyond it a firewall that tracks connections drops new ones",
        ),
    }
}

/// Packets of one queue are for one CPU, unless the kernel is told to share them out.
fn queues(host: &Host) -> Vec<Finding> {
    let cpus = host.cpus().unwrap_or(1).min(CPUS_OF_MASK);
    let names = host.names("sys/class/net");
    let physical = names
        .iter()
        .filter(|name| host.has(&format!("sys/class/net/{name}/device")));
    physical
        .map(|name| {
            let base = format!("sys/class/net/{name}/queues");
            let queues: Vec<String> = host
                .names(&base)
                .into_iter()
                .filter(|queue| queue.starts_with("rx-"))
                .collect();
            let is_shared_out = queues.iter().any(|queue| {
                let mask = host.text(&format!("{base}/{queue}/rps_cpus")).unwrap_or_default();
                mask.chars().any(|c| c.is_ascii_hexdigit() && c != '0')
            });
            let text = format!(
                "{name} has {} for {cpus} CPUs",
                plural(queues.len() as u64, "receive queue")
            );
            match queues.len() as u64 >= cpus || is_shared_out {
                true => Finding::new("receive queues", State::Ok, text),
                false => Finding::new(
                    "receive queues",
                    State::Hint,
                    format!("{text}: one CPU takes the packets of a queue"),
                )
                .or(format!("sudo ethtool -L {name} combined {cpus}"))
                .or(format!(
                    "echo {:x} | sudo tee /sys/class/net/{name}/queues/rx-*/rps_cpus",
                    (1u64 << cpus) - 1
                )),
            }
        })
        .collect()
}

fn plural(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}
