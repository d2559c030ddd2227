//! A clock on the wall that is set by hours while the broker runs: `clock_shift.c` lies to it.
//!
//! Holds   - the shift is 0 until a test sets it; the clock of this process is never touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use super::{ROOMY, Traffic};
use crate::broker::{Broker, Site};
use crate::durability::crowd::Crowd;
use crate::durability::{assert_balanced, count, counted, counters, seed};
use crate::platform::fixture::{LIFTED, Platform, eventually};
use crate::platform::time::{basic, now_s};
use crate::raw::{Raw, publish};

const HOUR_S: i64 = 3_600;
/// A broker looks at the clock less often than this.
const NOTICED: Duration = Duration::from_millis(1_500);

struct Clock {
    shift: PathBuf,
}

impl Clock {
    /// Under all runs of this site.
    fn over(site: &mut Site) -> Clock {
        let clock = Clock {
            shift: site.directory().join("clock-shift"),
        };
        clock.set(0);
        site.set_environment([
            ("LD_PRELOAD", library().into()),
            ("SKEIN_CLOCK_SHIFT", clock.shift.clone().into()),
        ]);
        clock
    }

    /// So many seconds beside the true time.
    fn set(&self, shift_s: i64) {
        // Renamed into place: nobody reads half of it.
        let new = self.shift.with_extension("new");
        fs::write(&new, shift_s.to_string()).unwrap();
        fs::rename(new, &self.shift).unwrap();
    }
}

fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/faults/clock_shift.c");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = directory.join("clock_shift.so");
        let new = directory.join(format!("clock_shift.{}.so", std::process::id()));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&new, &source])
            .status()
            .expect("tests/setup installs a C compiler");
        assert!(status.success(), "{} does not compile", source.display());
        // Another run of the tests may have the old one open.
        fs::rename(new, &library).unwrap();
        library
    })
}

#[test]
fn a_clock_that_is_set_disconnects_nobody_and_loses_nothing() {
    let mut site = Site::new();
    let clock = Clock::over(&mut site);
    let broker = site.start(4, &[&ROOMY[..], &["--session-expiry", "24h"]].concat());
    // Keep alives that a jump of the wrong clock would end, and a slow machine does not.
    let mut traffic = Traffic::start(Crowd::start(site.port(), seed("SKEIN_FAULT_SEED")), 20);
    // At QoS 0: nothing waits for it.
    Raw::durable(site.port(), "absent").granted(&[("load/#", 0)]);
    let before = traffic.connects();
    for hours in [5, -5, 0, -20 * 365 * 24, 0] {
        clock.set(hours * HOUR_S);
        traffic.crowd.watch(NOTICED);
    }
    traffic.compare("a clock that was set");
    assert_eq!(traffic.connects(), before, "somebody was disconnected");
    let counters_now = counted(&broker);
    assert_eq!(count(&counters_now, "closed_keep_alive"), 0, "{counters_now:?}");
    assert!(Raw::durable(site.port(), "absent").session_present);
    drop(traffic);
    assert_balanced(&counters(&broker.stop()));
}

/// How long somebody has been away does not depend on what the clock on the wall is set to meanwhile.
#[test]
fn a_clock_that_is_set_ends_no_session_early_and_none_late() {
    let mut site = Site::new();
    let clock = Clock::over(&mut site);
    let away = |id: &str| Raw::durable(site.port(), id).subscribe("away", 1);
    let is_present = |id: &str| Raw::durable(site.port(), id).session_present;
    let sessions = |broker: &Broker| count(&counted(broker), "sessions_now");

    // Hours of the clock are no hours away. It begins far too early, as that of a host without a battery does.
    clock.set(-10 * HOUR_S);
    let broker = site.start(4, &["--session-expiry", "1h"]);
    for (n, hours) in [-10, 5, -5, 0].into_iter().enumerate() {
        clock.set(hours * HOUR_S);
        sleep(NOTICED);
        away(&format!("patient {n}"));
    }
    assert_eq!(sessions(&broker), 4);
    broker.stop();
    // The next run asks the clock how long the last of them has been away: since a moment ago.
    let broker = site.start(1, &["--session-expiry", "1h"]);
    assert!(is_present("patient 3"), "away for seconds, and ended after an hour");
    assert_balanced(&counters(&broker.stop()));

    // Set back when somebody has just gone: the Session ends when it should.
    let broker = site.start(4, &["--session-expiry", "2s"]);
    away("brief");
    clock.set(-10 * HOUR_S);
    eventually("all Sessions end in spite of a clock that was set back", || {
        sessions(&broker) == 0
    });
    assert_balanced(&counters(&broker.stop()));
}

/// Every datapoint is kept, with the time that the clock showed; after it was set back with that of the newest there is, since
/// a stream only grows.
#[test]
fn datapoints_have_the_time_that_the_clock_shows_or_the_newest_has_and_none_is_lost() {
    const EACH: usize = 5;
    let mut platform = Platform::prepare(1);
    let clock = Clock::over(&mut platform.site);
    platform.run(4, &LIFTED);
    platform.map(0, "clock", 1);
    let account = platform.account(0).clone();
    let mut device = platform.client(0, "device");
    let mut sent = Vec::new();
    for hours in [0, 5, -7, 0] {
        clock.set(hours * HOUR_S);
        sleep(NOTICED);
        for _ in 0..EACH {
            let topic = account.topic("json/clock");
            device.deliver(
                &publish(&topic, 1, 1, format!(r#"{{"n":{}}}"#, sent.len()).as_bytes()),
                1,
            );
            sent.push(now_s() + hours * HOUR_S);
        }
    }
    clock.set(24 * HOUR_S);
    sleep(NOTICED);
    let stream = platform.stream(0, 1);
    let points = stream["stream"].as_array().unwrap();
    let mut values: Vec<_> = points
        .iter()
        .map(|point| point["value"]["n"].as_u64().unwrap() as usize)
        .collect();
    let newest_till = |value: usize| sent[..=value].iter().copied().max().unwrap();
    for (point, value) in points.iter().zip(&values) {
        let at = basic(point["at"].as_str().unwrap(), "+0000");
        let shown = newest_till(*value);
        assert!(
            (shown - 5..=shown + 1).contains(&at),
            "{value} is of {at}, sent at {shown}"
        );
    }
    // The oldest first, by the time they have.
    let times: Vec<_> = values.iter().map(|value| newest_till(*value)).collect();
    assert!(times.windows(2).all(|pair| pair[0] <= pair[1] + 5), "{stream}");
    values.sort_unstable();
    assert!(values.into_iter().eq(0..sent.len()), "{stream}");
    drop(device);
    assert_balanced(&counters(&platform.stop()));
}
