//! Open files: how many this process, a table of descriptors and the whole host may have.
//!
//! Called  by [`super::examine`].
//! Holds   - the rule by which cores get tables of their own is the broker's ([`Config::parts_descriptors`]).
//!
//! [`Config::parts_descriptors`]: crate::config::Config::parts_descriptors

use super::{Finding, Host, Needs, State, at_least, grouped, set};
use crate::limits::{CORES_MAX, DESCRIPTORS_BESIDE_PER_CORE};

/// Open files of everybody else.
const OTHERS_FILES: u64 = 10_000;

pub fn check(host: &Host, needs: &Needs) -> Vec<Finding> {
    let others = host.number("proc/sys/fs/file-nr").unwrap_or(0) + OTHERS_FILES;
    let file_max = at_least(
        host,
        "fs.file-max",
        needs.connections + needs.cores * DESCRIPTORS_BESIDE_PER_CORE + others,
        "it is what the whole host may have open",
    );
    vec![open_files(host, needs), file_max]
}

fn open_files(host: &Host, needs: &Needs) -> Finding {
    const NAME: &str = "open files";
    let Some((_, hard)) = host.limit("Max open files") else {
        return Finding::new(NAME, State::Unknown, "this host does not tell its limit");
    };
    let in_one = needs.connections + needs.cores * DESCRIPTORS_BESIDE_PER_CORE;
    let is_parted = needs.config.parts_descriptors(hard);
    let needed = if is_parted {
        per_core(needs.connections, needs.cores)
    } else {
        in_one
    };
    let tables = match is_parted {
        true => format!("in each of {} tables", needs.cores),
        false => "in one table".to_owned(),
    };
    if hard >= needed {
        return Finding::new(
            NAME,
            State::Ok,
            format!("{} {tables}, {} wanted", amount(hard), grouped(needed)),
        );
    }
    let text = format!(
        "{} {tables}, and {} are wanted: raise the hard limit (LimitNOFILE={in_one} of a systemd unit) or have more tables",
        amount(hard),
        grouped(needed)
    );
    let nr_open = host.sysctl_number("fs.nr_open").filter(|nr_open| *nr_open < in_one);
    let raise = format!("sudo prlimit --pid $$ --nofile={in_one}:{in_one}");
    let finding = Finding::new(NAME, State::Fix, text).or(match nr_open {
        // No limit may be above this one.
        Some(_) => format!("{} && {raise}", set("fs.nr_open", in_one)),
        None => raise,
    });
    match (1..=CORES_MAX as u64).find(|cores| per_core(needs.connections, *cores) <= hard) {
        Some(cores) => finding.or(format!("skein --cores {} --private-fds on", cores.max(needs.cores))),
        None => finding,
    }
}

/// Descriptors of one core's table. Clients are spread over the cores by chance: six standard deviations are added.
fn per_core(connections: u64, cores: u64) -> u64 {
    let mean = connections.div_ceil(cores);
    let spread = if cores > 1 { 6 * mean.isqrt() } else { 0 };
    mean + spread + DESCRIPTORS_BESIDE_PER_CORE
}

fn amount(limit: u64) -> String {
    match limit {
        u64::MAX => "any number".to_owned(),
        limit => grouped(limit),
    }
}
