//! `cargo run --profile simulation --example simulate -- --seeds A..B`: the simulation of `main.rs`, for many seeds on all CPUs. Goes on
//! after a failure; the first failing seed is shrunk and told in words.

mod abuse;
mod disk;
mod faults;
mod links;
mod met;
mod oracle;
mod overrides;
mod platform;
mod quotas;
mod random;
mod receiving;
mod rows;
mod run;
mod shrink;
mod streams;
mod topics;
mod words;
mod workload;
mod world;

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::overrides::Overrides;
use crate::run::{Failure, Outcome, attempt, trace};
use crate::shrink::shrink;

/// Simulates the whole broker, seed by seed, and shrinks the first seed that fails.
#[derive(Parser)]
#[command(name = "simulate", max_term_width = 100)]
struct Flags {
    /// Seeds A to B - 1
    #[arg(long, value_name = "A..B", default_value = "0..300")]
    seeds: Seeds,
    /// What is other than each seed says, as `clients=2,steps=120`
    #[arg(long, value_name = "NAME=NUMBER,...", default_value = "")]
    with: Overrides,
    /// Threads; as many as there are CPUs if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Failing seeds after which no further one begins
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    failures_max: u32,
    /// Runs that shrinking may take; 0: the first failing seed is told as it is
    #[arg(long, default_value_t = 1_000)]
    shrink_runs: u32,
    /// Time that shrinking may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    shrink_seconds: u64,
    /// Events of the first failing seed that are told, the last ones
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Where to write what is printed as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone)]
struct Seeds(Range<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let range = text.split_once("..");
        let range = range.and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
        let range = range.filter(|range| !range.is_empty());
        let range = range.ok_or_else(|| "seeds are A..B, as 0..300, with A below B".to_owned());
        range.map(Seeds)
    }
}

/// A failing run, told.
struct Told {
    seed: u64,
    overrides: Overrides,
    failure: Failure,
    events: Vec<String>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let start = Instant::now();
    let (seeds, total, failed) = run_all(&flags);
    let seconds = start.elapsed().as_secs_f64();
    print_totals(seeds, &total, seconds);
    for (seed, failure) in &failed {
        println!("seed {seed} fails at {}: {}", failure.place, failure.message);
    }
    let told = failed.first().map(|(seed, failure)| tell(&flags, *seed, failure));
    if let Some(path) = &flags.json {
        let report = report(&flags, seeds, &total, seconds, &failed, told.as_ref());
        if let Err(error) = fs::write(path, format!("{report:#}\n")) {
            eprintln!(
                "simulate: cannot write {}: {error}; name another file with --json",
                path.display()
            );
            return ExitCode::FAILURE;
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// How many seeds were run, what those that hold amount to, and those that do not, in order.
fn run_all(flags: &Flags) -> (u64, Outcome, Vec<(u64, Failure)>) {
    let Seeds(range) = &flags.seeds;
    let progress = ProgressBar::new(range.end - range.start);
    let style = "{elapsed_precise} {bar:40} {pos}/{len} seeds, {per_sec}, {msg}";
    progress.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
    progress.set_message("0 fail");
    let next = AtomicU64::new(range.start);
    let total = Mutex::new(Outcome::default());
    let failed: Mutex<Vec<(u64, Failure)>> = Mutex::default();
    let work = || {
        let mut own = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let is_enough = || lock(&failed).len() >= flags.failures_max as usize;
            if seed >= range.end || is_enough() {
                break;
            }
            match attempt(seed, &flags.with) {
                Ok(outcome) => own.add(&outcome),
                Err(failure) => {
                    let mut failed = lock(&failed);
                    failed.push((seed, failure));
                    progress.set_message(format!("{} fail", failed.len()));
                }
            }
            progress.inc(1);
        }
        lock(&total).add(&own);
    };
    let cpus = || available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let jobs = flags.jobs.map_or_else(cpus, u64::from).min(range.end - range.start);
    std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    progress.finish_and_clear();
    let mut failed = failed.into_inner().expect("no thread panics with the lock");
    failed.sort_by_key(|(seed, _)| *seed);
    let total = total.into_inner().expect("no thread panics with the lock");
    (progress.position(), total, failed)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with the lock")
}

fn print_totals(seeds: u64, total: &Outcome, seconds: f64) {
    let (turns, messages, deliveries) = (total.met.turns, total.messages, total.deliveries);
    println!("{seeds} seeds, {} steps, {turns} turns in {seconds:.1} s", total.steps);
    println!(
        "{messages} messages, {deliveries} deliveries, {} missed by a bound; hash {:016x}",
        total.missing, total.hash
    );
    println!("What went wrong, and what was rare:");
    for (name, count) in met(total) {
        println!("  {name} {count}");
    }
    println!("What the broker counted:");
    for (name, count) in total.counters.iter().filter(|(_, count)| *count > 0) {
        println!("  {name} {count}");
    }
}

fn met(total: &Outcome) -> Map<String, Value> {
    match serde_json::to_value(&total.met) {
        Ok(Value::Object(met)) => met,
        other => unreachable!("counters by name are no {other:?}"),
    }
}

/// Shrinks a failing seed, and tells its last events.
fn tell(flags: &Flags, seed: u64, failure: &Failure) -> Told {
    let until = Instant::now() + Duration::from_secs(flags.shrink_seconds);
    let mut runs = 0;
    let overrides = shrink(seed, &flags.with, |tried| {
        if runs >= flags.shrink_runs || Instant::now() >= until {
            return None;
        }
        runs += 1;
        let again = attempt(seed, tried).err();
        Some(again.is_some_and(|again| again.place == failure.place))
    });
    let failure = attempt(seed, &overrides).err().expect("a run that failed fails again");
    let events = trace(seed, &overrides, flags.events as usize);
    println!("\nseed {seed}, shrunk in {runs} runs, ends so:\n{}", events.join("\n"));
    println!("{}: {}", failure.place, failure.message);
    println!(
        "replay: cargo run --profile simulation --example simulate -- {}",
        arguments(seed, &overrides)
    );
    Told {
        seed,
        overrides,
        failure,
        events,
    }
}

fn arguments(seed: u64, overrides: &Overrides) -> String {
    let seeds = format!("--seeds {seed}..{} --shrink-runs 0", seed + 1);
    match overrides.to_string() {
        with if with.is_empty() => seeds,
        with => format!("{seeds} --with {with}"),
    }
}

fn report(
    flags: &Flags,
    seeds: u64,
    total: &Outcome,
    seconds: f64,
    failed: &[(u64, Failure)],
    told: Option<&Told>,
) -> Value {
    let told_failure =
        |seed: u64, failure: &Failure| json!({"seed": seed, "place": failure.place, "message": failure.message});
    let failed: Vec<Value> = failed
        .iter()
        .map(|(seed, failure)| told_failure(*seed, failure))
        .collect();
    let counters: Map<String, Value> = total
        .counters
        .iter()
        .map(|(name, count)| (name.to_owned(), json!(count)))
        .collect();
    let mut report = json!({
        "first": flags.seeds.0.start,
        "end": flags.seeds.0.end,
        "with": flags.with.to_string(),
        "seeds": seeds,
        "seconds": seconds,
        "steps": total.steps,
        "turns": total.met.turns,
        "messages": total.messages,
        "deliveries": total.deliveries,
        "missed_by_a_bound": total.missing,
        "hash": format!("{:016x}", total.hash),
        "met": met(total),
        "counters": counters,
        "failed": failed,
    });
    if let Some(told) = told {
        report["shrunk"] = told_failure(told.seed, &told.failure);
        report["shrunk"]["with"] = json!(told.overrides.to_string());
        report["shrunk"]["events"] = json!(told.events);
    }
    report
}
