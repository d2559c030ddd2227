//! What a host says of itself: /proc and /sys below a root, and what can only be tried.
//!
//! Called  by every check.
//! Holds   - what is not there, or not as it should be, is `None`: old kernels and containers hide things.

use std::fs;
use std::path::{Path, PathBuf};

use crate::worker;

#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    pub tried: Tried,
}

/// What no file tells.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Why the kernel gave no io_uring to this process.
    pub io_uring: Result<(), String>,
    /// The data directory, or where it is going to be: an absolute path without links.
    pub data_dir: PathBuf,
    /// What is free there for this user.
    pub data_bytes_free: Option<u64>,
}

impl Host {
    /// The one this process is on.
    pub fn this(data_dir: &Path) -> Host {
        let data_dir = existing(data_dir);
        let free = rustix::fs::statvfs(&data_dir).ok();
        Host {
            root: PathBuf::from("/"),
            tried: Tried {
                io_uring: worker::try_io_uring().map_err(|error| error.to_string()),
                data_bytes_free: free.map(|free| free.f_bavail.saturating_mul(free.f_frsize)),
                data_dir,
            },
        }
    }

    #[cfg(test)]
    pub fn made_up(root: &Path, tried: Tried) -> Host {
        Host {
            root: root.to_owned(),
            tried,
        }
    }

    /// The text of a file, such as `proc/meminfo`.
    pub fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    /// One number, or the first of several.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.split_ascii_whitespace().next()?.parse().ok()
    }

    pub fn numbers(&self, path: &str) -> Option<Vec<u64>> {
        let text = self.text(path)?;
        text.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
    }

    pub fn sysctl_number(&self, name: &str) -> Option<u64> {
        self.number(&sysctl_path(name))
    }

    pub fn sysctl_numbers(&self, name: &str) -> Option<Vec<u64>> {
        self.numbers(&sysctl_path(name))
    }

    pub fn sysctl_text(&self, name: &str) -> Option<String> {
        Some(self.text(&sysctl_path(name))?.trim().to_owned())
    }

    /// Names in a directory, sorted.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    pub fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// A line of /proc/meminfo, in bytes.
    pub fn meminfo(&self, name: &str) -> Option<u64> {
        let text = self.text("proc/meminfo")?;
        let rest = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Soft and hard limit of this process, by the name that /proc/self/limits has for it.
    pub fn limit(&self, name: &str) -> Option<(u64, u64)> {
        let text = self.text("proc/self/limits")?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = rest.split_ascii_whitespace().map(|word| match word {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        });
        Some((words.next()??, words.next()??))
    }

    /// Major and minor version of the kernel.
    pub fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.sysctl_text("kernel.osrelease")?;
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|part| part.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }

    /// CPUs this process may use.
    pub fn cpus(&self) -> Option<u64> {
        let status = self.text("proc/self/status")?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let count = |range: &str| -> Option<u64> {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (last.parse::<u64>().ok()? + 1).checked_sub(first.parse().ok()?)
        };
        list.trim().split(',').map(count).sum()
    }
}

fn sysctl_path(name: &str) -> String {
    format!("proc/sys/{}", name.replace('.', "/"))
}

/// The path, or the nearest directory above it that is there.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().find_map(|path| path.canonicalize().ok());
    found.unwrap_or_else(|| PathBuf::from("/"))
}
