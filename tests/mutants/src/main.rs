//! Deliberate faults of the heart, one at a time, and whether the simulation notices: what it does not notice it does not
//! test. Or, with `--fuzz`, whether the inputs that fuzzing has kept do ([`corpora`]).
//!
//! Reads   `tests/simulation/mutations.toml`; the sources of the heart and of the simulation.
//! Writes  `target/mutants` alone: the sources are copied there, and the fault is made in the copy.
//! Holds   - the heart without a fault passes the same seeds first;
//!         - a fault is caught when a seed fails, or does not come to its end;
//!         - while one runs, the next is built.

mod copy;
mod corpora;
mod heart;
mod list;
mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Parser;

use crate::heart::Heart;
use crate::list::Mutation;

/// Programs that wait for their run.
const WAITING_MAX: usize = 2;

/// Makes one deliberate fault of the broker after another, and demands that the simulation notices each.
#[derive(Parser)]
#[command(name = "tests/mutations", max_term_width = 100)]
struct Flags {
    /// Not only those marked `quick`
    #[arg(long)]
    all: bool,
    /// Those of tests/fuzz/mutations.toml, which the inputs that fuzzing has kept must notice
    #[arg(long, conflicts_with_all = ["all", "seeds"])]
    fuzz: bool,
    /// These alone, by name
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Seeds for each, instead of what the list says
    #[arg(long)]
    seeds: Option<u64>,
}

/// What became of a fault.
enum Fate {
    Caught {
        seed: u64,
        place: String,
        message: String,
    },
    /// A seed did not come to its end.
    Hangs,
    Missed,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tests/mutations: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every fault was caught.
fn run(flags: &Flags) -> anyhow::Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    if flags.fuzz {
        return corpora::run(&root, &flags.only);
    }
    let list = list::read(&root, list::SIMULATED)?;
    let chosen = list::choose(&list, &flags.only, |mutation| flags.all || mutation.quick)?;
    let seeds = |mutation: &Mutation| flags.seeds.unwrap_or(mutation.seeds);
    let start = Instant::now();
    let heart = Heart::copy(&root)?;
    let program = heart.build("whole")?;
    let most = chosen
        .iter()
        .map(|mutation| seeds(mutation))
        .max()
        .context("no mutation is chosen")?;
    match simulate(&program, most)? {
        Fate::Missed => println!("without a fault: {most} seeds hold"),
        Fate::Hangs => bail!("the heart without a fault does not come to the end of {most} seeds"),
        Fate::Caught { seed, place, message } => {
            bail!("the heart without a fault fails at seed {seed}, {place}: {message}")
        }
    }
    let mut missed = 0;
    thread::scope(|scope| -> anyhow::Result<()> {
        let (sender, programs) = mpsc::sync_channel::<(&Mutation, PathBuf)>(WAITING_MAX);
        let runs = scope.spawn(move || -> anyhow::Result<usize> {
            let mut missed = 0;
            for (mutation, program) in programs {
                let (fate, of) = (simulate(&program, seeds(mutation))?, seeds(mutation));
                missed += usize::from(matches!(fate, Fate::Missed));
                println!("{}", line(&mutation.name, of, &fate));
            }
            Ok(missed)
        });
        for mutation in chosen {
            let program = heart.build_with(mutation).with_context(|| mutation.name.clone())?;
            if sender.send((mutation, program)).is_err() {
                break;
            }
        }
        drop(sender);
        missed = runs.join().expect("the runs end by themselves")?;
        Ok(())
    })?;
    println!("{missed} missed, {:.0} s", start.elapsed().as_secs_f64());
    Ok(missed == 0)
}

fn line(name: &str, seeds: u64, fate: &Fate) -> String {
    match fate {
        Fate::Caught { seed, place, message } => {
            let message = message.lines().next().unwrap_or_default();
            let message: String = message.chars().take(110).collect();
            format!("{name:<34} seed {seed:>4} of {seeds:<5} {place}: {message}")
        }
        Fate::Hangs => format!("{name:<34} does not come to its end"),
        Fate::Missed => format!("{name:<34} MISSED in {seeds} seeds"),
    }
}

/// Runs a simulation over the first `seeds` seeds.
fn simulate(path: &Path, seeds: u64) -> anyhow::Result<Fate> {
    let Some((status, text)) = program::run(Command::new(path).arg(seeds.to_string()))? else {
        return Ok(Fate::Hangs);
    };
    ensure!(status.success(), "{} ends with {status}", path.display());
    let Some((first, message)) = text.split_once('\n') else {
        return Ok(Fate::Missed);
    };
    let (seed, place) = first.split_once(' ').context("a seed and a place")?;
    Ok(Fate::Caught {
        seed: seed.parse()?,
        place: place.to_owned(),
        message: message.to_owned(),
    })
}
