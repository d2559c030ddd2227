//! The data directory: what file system it is on, and how much room there is.
//!
//! Called  by [`super::examine`].

use super::{Finding, Host, State, mib};
use crate::limits::STORE_FILE_AHEAD_BYTES;
use std::path::Path;

/// Maps of their files are not shared between hosts, or syncs of them mean less than the broker promises.
const NETWORK: [&str; 14] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "afs",
    "ncpfs",
    "virtiofs",
    "fuse.sshfs",
    "fuse.glusterfs",
];
/// Nothing in them outlives the host.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// Room for what comes in a while.
const FREE_BYTES_WANTED: u64 = 1 << 30;

pub fn check(host: &Host) -> Vec<Finding> {
    vec![file_system(host), room(host)]
}

fn file_system(host: &Host) -> Finding {
    const NAME: &str = "file system of the data";
    let directory = &host.tried.data_dir;
    let Some(kind) = host
        .text("proc/self/mountinfo")
        .and_then(|mounts| kind_of(&mounts, directory))
    else {
        return Finding::new(NAME, State::Unknown, "this host does not tell");
    };
    let shown = directory.display();
    if NETWORK.contains(&kind.as_str()) {
        let text = format!("{kind} at {shown}: a network file system does not keep what the broker promises");
        return Finding::new(NAME, State::Fix, text).or("skein --data-dir /var/lib/skein");
    }
    if IN_MEMORY.contains(&kind.as_str()) {
        let text = format!("{kind} at {shown}: nothing there outlives the host");
        return Finding::new(NAME, State::Hint, text).or("skein --data-dir /var/lib/skein");
    }
    Finding::new(NAME, State::Ok, format!("{kind} at {shown}"))
}

/// The type of the file system that the deepest mount above `directory` has; of several at one place the last.
fn kind_of(mounts: &str, directory: &Path) -> Option<String> {
    let mut deepest: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        // Spaces in a path are written \040.
        let Some(point) = mount.split(' ').nth(4).map(|point| point.replace("\\040", " ")) else {
            continue;
        };
        let depth = Path::new(&point).components().count();
        if directory.starts_with(&point) && deepest.is_none_or(|(other, _)| depth >= other) {
            deepest = Some((depth, file_system.split(' ').next()?));
        }
    }
    deepest.map(|(_, kind)| kind.to_owned())
}

fn room(host: &Host) -> Finding {
    const NAME: &str = "room for the data";
    match host.tried.data_bytes_free {
        None => Finding::new(NAME, State::Unknown, "this host does not tell"),
        Some(free) if free < STORE_FILE_AHEAD_BYTES => Finding::new(
            NAME,
            State::Fix,
            format!(
                "{} free: a store that is full acknowledges nothing durable; make room, or give another --data-dir",
                mib(free)
            ),
        ),
        Some(free) if free < FREE_BYTES_WANTED => Finding::new(NAME, State::Hint, format!("{} free", mib(free))),
        Some(free) => Finding::new(NAME, State::Ok, format!("{} free", mib(free))),
    }
}
