//! Scenarios under criterion, by the CPU time of the thread: what else runs on the host costs it caches, not turns.
// Each bench is a crate of its own and uses its part.
#![allow(dead_code)]

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use rustix::time::{ClockId, clock_gettime};

use crate::scenarios::Runner;

/// The CPU time of this thread, as a clock.
#[derive(Clone, Copy)]
pub struct ThreadInstant(Duration);

impl ThreadInstant {
    pub fn now() -> ThreadInstant {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        ThreadInstant(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    pub fn elapsed(self) -> Duration {
        ThreadInstant::now() - self
    }
}

impl std::ops::Sub for ThreadInstant {
    type Output = Duration;

    fn sub(self, earlier: ThreadInstant) -> Duration {
        self.0 - earlier.0
    }
}

/// Measures as [`ThreadInstant`] does, prints as criterion does.
pub struct ThreadTime;

impl Measurement for ThreadTime {
    type Intermediate = ThreadInstant;
    type Value = Duration;

    fn start(&self) -> ThreadInstant {
        ThreadInstant::now()
    }

    fn end(&self, start: ThreadInstant) -> Duration {
        start.elapsed()
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Of a bench that takes no longer than it must.
pub fn criterion() -> Criterion<ThreadTime> {
    Criterion::default()
        .with_measurement(ThreadTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

impl Runner for Criterion<ThreadTime> {
    fn scenario<F: FnMut()>(&mut self, name: &str, operations: usize, prepare: impl FnOnce() -> F) {
        let (module, what) = name.split_once('/').expect("a scenario is named after its module");
        let mut round = prepare();
        let mut group = self.benchmark_group(module);
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(what, |bencher| bencher.iter(&mut round));
        group.finish();
    }
}

/// What one dependent read of a cold cache line takes on this host, to read the figures of large tables by.
pub fn floor(criterion: &mut Criterion<ThreadTime>) {
    const LINES: usize = 1 << 20;
    let mut lines = vec![[0u64; 8]; LINES];
    for (at, line) in lines.iter_mut().enumerate() {
        // A full cycle: the multiplier is 1 modulo 4, the step odd, the length a power of two.
        line[0] = ((at * 0x9E37_79B5 + 0x1_2345) % LINES) as u64;
    }
    let mut at = 0;
    criterion.bench_function("floor/one dependent line of 64 MiB", |b| {
        b.iter(|| {
            at = lines[at as usize][0];
            at
        })
    });
}
