//! Log lines to standard error, written by a thread of their own: a full pipe must not stop a core.
//!
//! Owns    the queue of lines and the thread that writes them.
//! Called  by `main`, once.
//! Holds   - at most [`LINES_MAX`] lines wait; further ones are dropped, and their number is the next line written;
//!         - a panic's last lines are written before the process ends.

use skein::config::{LogFormat, LogLevel};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for standard error to take them.
const LINES_MAX: usize = 8_192;
/// How long the end of the process waits for them.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// From now on every `tracing` event at least as severe as `level` is a line on standard error.
pub fn start(level: LogLevel, format: LogFormat) -> Log {
    let (lines, waiting) = sync_channel(LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let log = Log {
        lines,
        dropped: Arc::clone(&dropped),
    };
    if level == LogLevel::Off {
        return log;
    }
    std::thread::Builder::new()
        .name("skein-log".into())
        .spawn(move || write_lines(&waiting, &dropped, io::stderr()))
        .expect("the first thread of a process can be made");

    let is_ansi = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(filter(level))
        .with_writer(log.clone());
    match format {
        LogFormat::Text => subscriber.with_ansi(is_ansi).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    let (at_panic, report) = (log.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        at_panic.flush();
        report(panic);
    }));
    log
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// The way in to the queue.
#[derive(Clone)]
pub struct Log {
    lines: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it has been written.
    Flush(SyncSender<()>),
}

impl Log {
    /// Waits until what was logged so far is written, for a second at most.
    pub fn flush(&self) {
        let (written, done) = sync_channel(1);
        // A full queue means that nobody reads standard error: then there is no use in waiting.
        if self.lines.try_send(Entry::Flush(written)).is_ok() {
            let _ = done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn write_lines(waiting: &Receiver<Entry>, dropped: &AtomicU64, mut to: impl Write) {
    for entry in waiting {
        // An error (nobody holds the other end any more) has no place left to be reported to.
        let _ = match entry {
            Entry::Line(line) => to.write_all(&line),
            Entry::Flush(written) => written.send(()).map_err(io::Error::other),
        };
        let missing = match dropped.load(Ordering::Relaxed) {
            0 => 0,
            _ => dropped.swap(0, Ordering::Relaxed),
        };
        if missing > 0 {
            let _ = writeln!(
                to,
                "skein: {missing} log lines dropped: standard error is read too slowly"
            );
        }
    }
}

/// One event being formatted; it joins the queue when it is whole.
pub struct Line<'a> {
    log: &'a Log,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if !line.is_empty() && self.log.lines.try_send(Entry::Line(line)).is_err() {
            self.log.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            log: self,
            bytes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(log: &Log, text: &str) {
        log.make_writer().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_counted_without_waiting() {
        let (lines, waiting) = sync_channel(2);
        let log = Log {
            lines,
            dropped: Arc::default(),
        };
        ["a\n", "b\n", "c\n", "d\n"].iter().for_each(|text| line(&log, text));
        log.flush();
        let dropped = Arc::clone(&log.dropped);
        drop(log);
        let mut out = Vec::new();
        write_lines(&waiting, &dropped, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(
            out,
            "a\nskein: 2 log lines dropped: standard error is read too slowly\nb\n"
        );
    }

    #[test]
    fn a_flush_returns_when_what_came_before_it_is_written() {
        let (lines, waiting) = sync_channel(8);
        let log = Log {
            lines,
            dropped: Arc::default(),
        };
        let (read, write) = std::io::pipe().unwrap();
        let dropped = Arc::clone(&log.dropped);
        let writer = std::thread::spawn(move || write_lines(&waiting, &dropped, write));
        line(&log, "a\n");
        log.flush();
        let mut seen = [0; 2];
        std::io::Read::read_exact(&mut &read, &mut seen).unwrap();
        assert_eq!(&seen, b"a\n");
        drop(log);
        writer.join().unwrap();
    }
}
