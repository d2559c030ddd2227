//! The line that shows a run goes on: drawn on a terminal only.
//!
//! Called  by every scenario, as often as they like.

use std::io::IsTerminal;

use indicatif::ProgressBar;

const EVERY_NS: u64 = 250_000_000;

#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Time and count when it was last due.
    last: (u64, u64),
}

impl Progress {
    pub fn new() -> Progress {
        Progress {
            bar: std::io::stderr().is_terminal().then(ProgressBar::new_spinner),
            last: (0, 0),
        }
    }

    /// Time and count at the last time it was due, when it is due again.
    #[inline]
    pub fn is_due(&mut self, now_ns: u64, count: u64) -> Option<(u64, u64)> {
        if self.bar.is_none() || now_ns < self.last.0 + EVERY_NS {
            return None;
        }
        Some(std::mem::replace(&mut self.last, (now_ns, count)))
    }

    pub fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    pub fn show(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_string());
            bar.tick();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
