//! A clock on the wall that is set by hours while the broker runs: `clock_shift.c` lies to it.
//!
//! Holds   - the shift is 0 until a test sets it; the clock of this process is never touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{ROOMY, Traffic};
use crate::broker::Site;
use crate::durability::crowd::Crowd;
use crate::durability::{assert_balanced, count, counted, counters, seed};
use crate::raw::Raw;

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
