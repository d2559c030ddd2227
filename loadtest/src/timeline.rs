//! What a run counted and cost over its time, and the broker's memory in each phase: sampled by a thread of its own.
//!
//! Called  by the scenarios: one `Watch` for a run, on which its phases begin.
//! Holds   - a thread that drives the run stores its own counts once a turn, relaxed: no lock, and no clock is read for it;
//!         - reading /proc/PID/smaps_rollup takes longer the more memory there is: at least `REST` times as long passes
//!           before the next sample, so that the broker is disturbed little;
//!         - the samples kept are bounded: when there are too many, every second one goes, and from then on they are taken half
//!           as often. Counts and CPU times are totals, so that what lies between two samples is known whichever go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::ClockId;
use serde::Serialize;

use crate::broker_process::{BrokerProcess, CpuTime};
use crate::html::Page;
use crate::report::grouped;

const EVERY: Duration = Duration::from_millis(250);
const REST: u32 = 20;
const SAMPLES_MAX: usize = 1024;

/// Samples of a whole run, in the order of time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    /// What each of a sample's `counts` is of.
    pub counted: Vec<&'static str>,
    /// Seconds since the start, and what began then.
    pub phases: Vec<(f64, &'static str)>,
    pub samples: Vec<Sample>,
}

/// Totals since the start of the run.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub seconds: f64,
    pub counts: Vec<u64>,
    pub errors: u64,
    /// User memory.
    pub broker_bytes: Option<u64>,
    pub broker_cpu_seconds: Option<f64>,
    /// In ticks of 10 ms, as what is left of the whole.
    pub broker_user_seconds: Option<f64>,
    pub generator_cpu_seconds: f64,
}

impl Timeline {
    fn add(&mut self, sample: Sample) -> bool {
        let is_full = self.samples.len() == SAMPLES_MAX;
        if is_full {
            let mut is_kept = false;
            self.samples.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
        self.samples.push(sample);
        is_full
    }

    pub fn seconds(&self) -> f64 {
        self.samples.last().map_or(0.0, |sample| sample.seconds)
    }

    /// (Seconds, growth of a total in a second), in the middle of each span between samples at least `seconds_min` apart.
    pub fn rates(&self, seconds_min: f64, total: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
        let mut rates = Vec::new();
        let mut before: Option<(f64, f64)> = None;
        for sample in &self.samples {
            let Some(now) = total(sample) else { continue };
            let Some((then_seconds, then)) = before else {
                before = Some((sample.seconds, now));
                continue;
            };
            let span = sample.seconds - then_seconds;
            if span >= seconds_min {
                rates.push((then_seconds + span / 2.0, (now - then) / span));
                before = Some((sample.seconds, now));
            }
        }
        rates
    }
}

/// The broker's user memory in one phase, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    pub before: u64,
    pub min: u64,
    pub max: u64,
    pub last: u64,
    pub readings: u64,
}

impl Memory {
    fn new(bytes: u64) -> Memory {
        Memory {
            before: bytes,
            min: bytes,
            max: bytes,
            last: bytes,
            readings: 1,
        }
    }

    fn add(&mut self, bytes: u64) {
        self.min = self.min.min(bytes);
        self.max = self.max.max(bytes);
        self.last = bytes;
        self.readings += 1;
    }
}

impl Memory {
    /// A row of a page, of the phase `of`.
    pub fn row(&self, page: &mut Page, of: &str) {
        let kib = |bytes: u64| grouped(bytes / 1024);
        page.figure(
            &format!("Broker memory, {of}"),
            kib(self.last),
            &format!("KiB at the end, {} before, at most {}", kib(self.before), kib(self.max)),
        );
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kib = |bytes: u64| grouped(bytes / 1024);
        write!(
            f,
            "{} KiB before, {} after (min {}, max {} in {} samples)",
            kib(self.before),
            kib(self.last),
            kib(self.min),
            kib(self.max),
            self.readings
        )
    }
}

/// What a thread that drives the run has counted; on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    counts: [AtomicU64; 2],
    errors: AtomicU64,
}

#[derive(Debug)]
struct State {
    timeline: Timeline,
    /// Of this phase; none where it may not be read.
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Shared {
    broker: Option<BrokerProcess>,
    start: Instant,
    /// By thread.
    counts: Vec<Counts>,
    /// Not in the state, which is locked while /proc is read.
    phases: Mutex<Vec<(f64, &'static str)>>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// `counted` are one or two; the run begins now, with its first phase. One thread counts.
    pub fn start(broker: Option<&BrokerProcess>, counted: &[&'static str], phase: &'static str) -> Result<Watch> {
        Watch::of_threads(1, broker, counted, phase)
    }

    /// The counts of a run are the sums of what its threads have counted.
    pub fn of_threads(
        threads: usize,
        broker: Option<&BrokerProcess>,
        counted: &[&'static str],
        phase: &'static str,
    ) -> Result<Watch> {
        let shared = Arc::new(Shared {
            broker: broker.cloned(),
            start: Instant::now(),
            counts: (0..threads).map(|_| Counts::default()).collect(),
            phases: Mutex::default(),
            state: Mutex::new(State {
                timeline: Timeline {
                    counted: counted.to_vec(),
                    ..Timeline::default()
                },
                memory: None,
            }),
        });
        shared.phases().push((0.0, phase));
        shared.sample();
        let (end, ended) = mpsc::channel::<()>();
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("timeline".into()).spawn(move || {
            let (mut every, mut pause) = (EVERY, EVERY);
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let begin = Instant::now();
                if of_thread.sample() {
                    every *= 2;
                }
                pause = every.max(begin.elapsed() * REST);
            }
        })?;
        Ok(Watch { shared, end, thread })
    }

    /// Totals so far, where one thread counts.
    #[inline]
    pub fn store(&self, counts: [u64; 2], errors: u64) {
        self.store_of(0, counts, errors);
    }

    /// Totals so far of one of the threads.
    #[inline]
    pub fn store_of(&self, thread: usize, counts: [u64; 2], errors: u64) {
        let own = &self.shared.counts[thread];
        for (of, count) in own.counts.iter().zip(counts) {
            of.store(count, Ordering::Relaxed);
        }
        own.errors.store(errors, Ordering::Relaxed);
    }

    /// The next phase begins. Nothing is read: the caller may be in a hurry.
    pub fn phase(&self, name: &'static str) {
        let seconds = self.shared.start.elapsed().as_secs_f64();
        self.shared.phases().push((seconds, name));
    }

    /// The next phase begins, and the memory of it with a reading by the caller.
    pub fn phase_with_memory(&self, name: &'static str) {
        self.shared.state().memory = None;
        self.shared.sample();
        self.phase(name);
    }

    /// The memory of this phase up to now, which is read once more.
    pub fn memory(&self) -> Option<Memory> {
        self.shared.sample();
        self.shared.state().memory.clone()
    }

    /// Ends with one more sample.
    pub fn stop(self) -> Timeline {
        drop(self.end);
        self.thread.join().expect("the thread does nothing that panics");
        self.shared.sample();
        Timeline {
            phases: std::mem::take(&mut self.shared.phases()),
            ..std::mem::take(&mut self.shared.state().timeline)
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this lock")
    }

    fn phases(&self) -> MutexGuard<'_, Vec<(f64, &'static str)>> {
        self.phases.lock().expect("no thread panics while it holds this lock")
    }

    /// True when samples have become so many that they should become fewer. What cannot be read is absent: of a broker that
    /// has gone, whoever talks to it will tell.
    fn sample(&self) -> bool {
        // One sample at a time: they are in the order of time.
        let mut state = self.state();
        let broker_bytes = self.broker.as_ref().and_then(|broker| broker.memory_bytes().ok());
        let broker_cpu = self.broker.as_ref().and_then(|broker| broker.cpu_time().ok());
        let own = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        if let Some(bytes) = broker_bytes {
            match &mut state.memory {
                Some(memory) => memory.add(bytes),
                None => state.memory = Some(Memory::new(bytes)),
            }
        }
        let sum = |of: &dyn Fn(&Counts) -> u64| self.counts.iter().map(of).sum();
        let counts = (0..state.timeline.counted.len()).map(|at| sum(&|of| of.counts[at].load(Ordering::Relaxed)));
        let counts = counts.collect();
        state.timeline.add(Sample {
            seconds: self.start.elapsed().as_secs_f64(),
            counts,
            errors: sum(&|of| of.errors.load(Ordering::Relaxed)),
            broker_bytes,
            broker_cpu_seconds: broker_cpu.map(|cpu: CpuTime| cpu.total.as_secs_f64()),
            broker_user_seconds: broker_cpu.map(|cpu: CpuTime| cpu.user.as_secs_f64()),
            generator_cpu_seconds: own.tv_sec as f64 + own.tv_nsec as f64 / 1e9,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: f64, count: u64) -> Sample {
        Sample {
            seconds,
            counts: vec![count],
            errors: 0,
            broker_bytes: None,
            broker_cpu_seconds: None,
            broker_user_seconds: None,
            generator_cpu_seconds: 0.0,
        }
    }

    #[test]
    fn samples_are_bounded_and_no_count_is_lost() {
        let mut timeline = Timeline::default();
        let halved = (0..100_000u64)
            .filter(|&i| timeline.add(sample(i as f64, 3 * i)))
            .count();
        let samples = &timeline.samples;
        assert!(samples.len() <= SAMPLES_MAX && samples.len() > SAMPLES_MAX / 4);
        assert!(halved > 100, "{halved}");
        assert!(samples.is_sorted_by(|a, b| a.seconds < b.seconds));
        let rates = timeline.rates(0.1, |sample| Some(sample.counts[0] as f64));
        assert!(rates.len() > SAMPLES_MAX / 4 && rates.iter().all(|&(_, rate)| (rate - 3.0).abs() < 1e-9));
    }

    #[test]
    fn a_rate_is_taken_over_enough_time_and_of_what_was_read() {
        let mut timeline = Timeline::default();
        for (seconds, count) in [(0.0, 0), (1.0, 10), (1.001, 1000), (2.0, 30)] {
            timeline.add(sample(seconds, count));
        }
        let rates = timeline.rates(0.1, |sample| Some(sample.counts[0] as f64));
        assert_eq!(rates, [(0.5, 10.0), (1.5, 20.0)]);
        assert!(timeline.rates(0.1, |sample| sample.broker_cpu_seconds).is_empty());
    }

    #[test]
    fn extremes_of_memory_are_not_forgotten() {
        let mut memory = Memory::new(100);
        for bytes in [200, 5, 300, 150] {
            memory.add(bytes);
        }
        assert_eq!((memory.before, memory.min, memory.max, memory.last), (100, 5, 300, 150));
    }

    #[test]
    fn a_watch_samples_at_the_start_at_each_phase_and_at_the_end() {
        let own = BrokerProcess::new(std::process::id()).unwrap();
        let watch = Watch::start(Some(&own), &["sent", "read"], "first").unwrap();
        watch.store([7, 0], 0);
        watch.phase_with_memory("second");
        watch.store([7, 9], 2);
        let memory = watch.memory().unwrap();
        assert!(memory.min > 0 && memory.readings >= 2, "{memory:?}");
        let timeline = watch.stop();
        let (first, last) = (&timeline.samples[0], timeline.samples.last().unwrap());
        assert_eq!(
            (first.counts.as_slice(), last.counts.as_slice()),
            ([0, 0].as_slice(), [7, 9].as_slice())
        );
        assert_eq!((last.errors, timeline.phases.len()), (2, 2));
        assert!(last.broker_cpu_seconds > Some(0.0) && last.generator_cpu_seconds > 0.0);
    }

    #[test]
    fn what_several_threads_count_is_added_up() {
        let watch = Watch::of_threads(3, None, &["sent"], "all").unwrap();
        for thread in 0..3 {
            watch.store_of(thread, [9, 0], 9);
            watch.store_of(thread, [10 + thread as u64, 0], 1);
        }
        let timeline = watch.stop();
        let last = timeline.samples.last().unwrap();
        assert_eq!((last.counts.as_slice(), last.errors), ([33].as_slice(), 3));
    }

    #[test]
    fn without_a_broker_to_read_there_is_no_memory() {
        let watch = Watch::start(None, &["sent"], "all").unwrap();
        assert_eq!(watch.memory(), None);
        assert!(
            watch
                .stop()
                .samples
                .iter()
                .all(|sample| sample.broker_cpu_seconds.is_none())
        );
    }
}
