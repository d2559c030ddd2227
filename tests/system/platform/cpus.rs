//! Which CPUs a thread gets, and before whom: a test that measures time stands for several hosts on one.
//!
//! Called  by `noisy_neighbour`.
//! Holds   - it is asked of util-linux, since the kernel's calls for it are `unsafe`.

use std::hint::spin_loop;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};

/// A thread that takes what time others leave.
pub fn step_back(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    spawn(move || {
        if !schedule(&["--idle"], 0) {
            // Fails nowhere: who asks for less is given it.
            rustix::process::nice(19).unwrap();
        }
        work();
    })
}

/// This thread goes before all others of its CPU that are not so, if this user may ask for that.
pub fn step_forward() -> bool {
    schedule(&["--fifo"], 1)
}

/// How the kernel schedules this thread, as chrt(1) is told. Whether it may be so.
fn schedule(policy: &[&str], priority: u32) -> bool {
    let output = Command::new("chrt")
        .args(policy)
        .args(["--pid", &priority.to_string(), &this_thread()])
        .output();
    output.expect("util-linux is installed").status.success()
}

fn this_thread() -> String {
    rustix::thread::gettid().as_raw_nonzero().to_string()
}

/// The CPUs that this thread may run on, as taskset(1) is told.
pub fn keep_to(cpus: &str) {
    taskset(&["--cpu-list", "--pid", cpus, &this_thread()]);
}

/// The same for all threads that a process has, and those that they start.
pub fn keep_process_to(cpus: &str, process: u32) {
    taskset(&["--all-tasks", "--cpu-list", "--pid", cpus, &process.to_string()]);
}

fn taskset(arguments: &[&str]) {
    let output = Command::new("taskset").args(arguments).output();
    let output = output.expect("util-linux is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// CPUs that never sleep: to wake one, a virtual one above all, can take longer than an answer of the broker.
pub struct Awake {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    pub fn keep(cpus: usize) -> Awake {
        let is_over = Arc::new(AtomicBool::new(false));
        let spin = |cpu: usize| {
            let is_over = Arc::clone(&is_over);
            step_back(move || {
                keep_to(&cpu.to_string());
                while !is_over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            })
        };
        Awake {
            threads: (0..cpus).map(spin).collect(),
            is_over,
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
