//! A descriptor table of its own for a thread, so that the limit of open files counts per thread and not per process.
//!
//! Called  by `idle`, `connect` and `throughput` first thing in each of their threads, when they have more connections than one
//!         table may hold.

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;

/// Raises the limit of open files to what this process may have, and gives it.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Not vital: the old limit stands then.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        );
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// From here on what the calling thread opens and closes is its own. It must not have been given a descriptor to use, and
/// must not give one away; what was open before it is in its table too, under the same number.
#[allow(unsafe_code)]
pub fn unshare() -> Result<()> {
    // SAFETY: the danger is a descriptor number used by a thread whose table does not hold it. The threads of the scenarios
    // call this before they open anything, and no owner of a descriptor opened after it crosses a thread boundary: they are
    // handed plain numbers, strings and atomics, and give those back. Descriptors open at this moment (standard streams, the
    // mailboxes of `throughput`, which stay open until its threads have ended) are in both tables.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }.context("unshare(CLONE_FILES)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsRawFd;
    use std::fs::{File, read_link};
    use std::sync::mpsc;

    #[test]
    fn what_a_thread_opens_is_in_its_own_table_only() {
        let program = std::env::current_exe().unwrap();
        let (opened, number) = mpsc::channel();
        let (done, wait) = mpsc::channel::<()>();
        let path = program.clone();
        let thread = std::thread::spawn(move || {
            unshare().unwrap();
            let file = File::open(&path).unwrap();
            let link = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
            assert_eq!(read_link(&link).unwrap(), path);
            opened.send(link).unwrap();
            let _ = wait.recv();
        });
        let link = number.recv().unwrap();
        assert_ne!(
            read_link(&link).ok(),
            Some(program),
            "{link} of the thread is open here too"
        );
        drop(done);
        thread.join().unwrap();
    }
}
