//! The bar that shows a run goes on, and how fast: drawn on a terminal only.
//!
//! Called  by every scenario, once a turn.
//! Holds   - a bar where the end is known (a time, a count), else a spinner;
//!         - a turn in which nothing is due costs a comparison.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::grouped;

const EVERY_NS: u64 = 250_000_000;

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    After(Duration),
    /// When so many have been counted.
    At(u64),
    Unknown,
}

#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    end: End,
    /// Time and count when it was last drawn.
    last: (u64, u64),
}

impl Progress {
    pub fn new(end: End) -> Progress {
        let is_shown = std::io::stderr().is_terminal();
        Progress::on(is_shown.then(ProgressDrawTarget::stderr), end)
    }

    fn on(target: Option<ProgressDrawTarget>, end: End) -> Progress {
        let length = match end {
            End::After(time) => Some(time.as_millis() as u64),
            End::At(count) => Some(count),
            End::Unknown => None,
        };
        let template = match end {
            End::Unknown => "{spinner} {elapsed_precise}  {msg}",
            _ => "[{bar:30}] {percent:>3} %  {elapsed_precise}, {eta_precise} to go  {msg}",
        };
        let style = ProgressStyle::with_template(template).expect("a constant, and a test draws it");
        Progress {
            bar: target
                .map(|target| ProgressBar::with_draw_target(length, target).with_style(style.progress_chars("=> "))),
            end,
            last: (0, 0),
        }
    }

    /// Draws, when it is due, how many there are of `what` and how many came a second since it was last drawn.
    #[inline]
    pub fn count(&mut self, now_ns: u64, count: u64, what: &str) {
        if self.bar.is_none() || now_ns < self.last.0 + EVERY_NS {
            return;
        }
        let (then_ns, before) = std::mem::replace(&mut self.last, (now_ns, count));
        let rate = count.saturating_sub(before) as f64 * 1e9 / (now_ns - then_ns) as f64;
        self.draw(
            now_ns,
            count,
            format!("{what} {}, {}/s", grouped(count), grouped(rate as u64)),
        );
    }

    /// A line that stays, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Draws a text, whenever it is called.
    pub fn show(&self, now: Duration, text: String) {
        self.draw(now.as_nanos() as u64, 0, text);
    }

    fn draw(&self, now_ns: u64, count: u64, text: String) {
        let Some(bar) = &self.bar else { return };
        bar.set_message(text);
        match self.end {
            End::After(time) => bar.set_position((now_ns / 1_000_000).min(time.as_millis() as u64)),
            End::At(of) => bar.set_position(count.min(of)),
            End::Unknown => {}
        }
        bar.tick();
    }

    pub fn is_shown(&self) -> bool {
        self.bar.is_some()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    fn drawn(end: End, counts: &[(u64, u64)]) -> String {
        let terminal = InMemoryTerm::new(5, 120);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let mut progress = Progress::on(Some(target), end);
        for &(now_ns, count) in counts {
            progress.count(now_ns, count, "delivered");
        }
        let text = terminal.contents();
        drop(progress);
        assert_eq!(terminal.contents(), "", "nothing is left of it");
        text
    }

    #[test]
    fn a_known_end_is_a_share_and_the_rate_is_that_since_the_last_time() {
        let counts = [
            (1_000_000_000, 1_000_000),
            (3_000_000_000, 4_000_000),
            (3_000_000_001, 9),
        ];
        let text = drawn(End::After(Duration::from_secs(12)), &counts);
        assert!(text.contains("25 %") && text.contains("to go"), "{text}");
        assert!(text.ends_with("delivered 4,000,000, 1,500,000/s"), "{text}");
        assert!(drawn(End::At(8_000_000), &counts).contains(" 50 %"));
        assert!(drawn(End::At(3_000_000), &counts).contains("100 %"));
    }

    #[test]
    fn without_a_known_end_there_is_no_share() {
        let text = drawn(End::Unknown, &[(500_000_000, 1_000)]);
        assert!(
            text.ends_with("delivered 1,000, 2,000/s") && !text.contains('%'),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_drawn_where_there_is_no_terminal() {
        let mut progress = Progress::on(None, End::At(1));
        progress.count(u64::MAX, 1, "delivered");
        assert!(!progress.is_shown());
    }
}
