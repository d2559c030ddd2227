//! Counts the instructions of every scenario under callgrind, and holds them against `benches/instructions.toml`.
//!
//! `tests/instructions` runs it, in the build that the file is about; `tests/instructions --help` says what else it can do.
//! Holds   - a scenario runs in a process of its own, first some thousand operations that are not counted, then as many
//!           that are;
//!         - nothing of the host is seen but its instruction set: no environment, and glibc is told to use SSE2 whatever the
//!           CPU has;
//!         - what takes more than [`REGRESSION_MAX`] times the baseline fails, and so does what is only in one of the two.

// The name that the scenarios know it by.
extern crate heart as skein;

#[path = "../../scenarios/mod.rs"]
mod scenarios;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

use clap::Parser;
use scenarios::Runner;
use serde::Deserialize;

const BASELINE: &str = "benches/instructions.toml";
const REGRESSION_MAX: f64 = 1.10;
/// The baseline is out of date, and hides what is lost again.
const PROGRESS_MAX: f64 = 0.90;
const OPERATIONS: usize = 10_000;
const ROUNDS_MIN: usize = 10;
/// What glibc would choose by the CPU: memcpy and its like come in a dozen kinds. Names that this glibc does not know are
/// ignored by it.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX2_Usable,-AVX_Usable,-AVX,-BMI2,-LZCNT,-MOVBE,-ERMS,-FSRM,\
    -SSSE3,-SSE4_1,-SSE4_2,-AVX_Fast_Unaligned_Load,-Fast_Unaligned_Copy,-Prefer_No_VZEROUPPER";

#[derive(Parser)]
#[command(
    name = "tests/instructions",
    about = "Instructions per operation, against benches/instructions.toml"
)]
struct Flags {
    /// Write what was counted to benches/instructions.toml.
    #[arg(long)]
    accept: bool,
    /// Only the scenarios whose names contain this; nothing is checked.
    #[arg(long, value_name = "TEXT", conflicts_with = "accept")]
    only: Option<String>,
    /// Keep callgrind's files here, and what callgrind_annotate says of each.
    #[arg(long, value_name = "DIRECTORY")]
    profiles: Option<PathBuf>,
    /// Run one scenario, which callgrind counts.
    #[arg(long, value_name = "NAME", hide = true)]
    count: Option<String>,
}

#[derive(Deserialize, Default)]
struct Baseline {
    made_with: BTreeMap<String, String>,
    instructions: BTreeMap<String, f64>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(name) = &flags.count {
        scenarios::all(&mut Counted { name });
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("tests/instructions: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// The names and how many operations a process counts of each.
#[derive(Default)]
struct Names(Vec<(String, usize)>);

impl Runner for Names {
    fn scenario<F: FnMut()>(&mut self, name: &str, operations: usize, _: impl FnOnce() -> F) {
        self.0.push((name.to_owned(), rounds(operations) * operations));
    }
}

fn rounds(operations: usize) -> usize {
    (OPERATIONS / operations).max(ROUNDS_MIN)
}

/// Runs the one with this name.
struct Counted<'a> {
    name: &'a str,
}

impl Runner for Counted<'_> {
    fn scenario<F: FnMut()>(&mut self, name: &str, operations: usize, prepare: impl FnOnce() -> F) {
        if name == self.name {
            let mut round = prepare();
            (0..rounds(operations)).for_each(|_| round());
            counted_rounds(rounds(operations), &mut round);
        }
    }
}

/// Callgrind counts while this runs, and knows it by its name.
#[inline(never)]
fn counted_rounds<F: FnMut()>(rounds: usize, round: &mut F) {
    (0..rounds).for_each(|_| round());
}

/// An error is a sentence that says what to do.
fn run(flags: &Flags) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut names = Names::default();
    scenarios::all(&mut names);
    let mut names = names.0;
    if let Some(text) = &flags.only {
        names.retain(|(name, _)| name.contains(text));
    }
    names.sort();
    let directory = tempfile::tempdir().map_err(|error| format!("no directory for callgrind's files: {error}"))?;
    let profiles = flags.profiles.as_deref();
    if let Some(profiles) = profiles {
        fs::create_dir_all(profiles).map_err(|error| format!("{}: {error}", profiles.display()))?;
    }
    let now = count_all(&names, profiles.unwrap_or(directory.path()), profiles.is_some())?;
    let made_with = made_with();

    let baseline = match fs::read_to_string(root.join(BASELINE)) {
        Ok(text) => toml::from_str(&text).map_err(|error| format!("{BASELINE}: {error}"))?,
        Err(_) if flags.accept || flags.only.is_some() => Baseline::default(),
        Err(error) => return Err(format!("{BASELINE}: {error}; tests/instructions --accept writes it")),
    };
    let verdicts = table(&baseline.instructions, &now, flags.only.is_some());
    if flags.accept {
        fs::write(root.join(BASELINE), file(&made_with, &now)).map_err(|error| format!("{BASELINE}: {error}"))?;
        println!("{BASELINE} is written.");
        return Ok(());
    }
    for (what, was) in &baseline.made_with {
        match made_with.get(what) {
            Some(is) if is == was => {}
            is => println!(
                "The baseline was made with {what} {was}, this with {}: some of the differences come from that.",
                is.map_or("none", String::as_str)
            ),
        }
    }
    if flags.only.is_some() {
        return Ok(());
    }
    if !verdicts.progress.is_empty() {
        println!(
            "Better than the baseline, which should say so, or the next loss goes unseen (tests/instructions --accept): {}",
            verdicts.progress.join("; ")
        );
    }
    if verdicts.failures.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}. If that is meant, tests/instructions --accept makes it the baseline.",
        verdicts.failures.join("; ")
    ))
}

/// As many at once as there are CPUs: what else runs changes no count.
fn count_all(names: &[(String, usize)], directory: &Path, annotates: bool) -> Result<BTreeMap<String, f64>, String> {
    let waiting = Mutex::new(names.iter());
    let counts = Mutex::new(BTreeMap::new());
    let next = || waiting.lock().expect("no panic while it is held").next();
    let work = || {
        while let Some((name, operations)) = next() {
            let instructions = count(name, directory, annotates)?;
            let each = instructions as f64 / *operations as f64;
            let mut counts = counts.lock().expect("no panic while it is held");
            counts.insert(name.clone(), each);
        }
        Ok::<(), String>(())
    };
    std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    Ok(counts.into_inner().expect("no panic while it was held"))
}

/// One scenario in a process of its own.
fn count(name: &str, directory: &Path, annotates: bool) -> Result<u64, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    let stem: String = name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let profile = directory.join(format!("{stem}.callgrind"));
    let own = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_rounds*", "--quiet"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(own)
        .args(["--count", name])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()
        .map_err(|error| format!("valgrind does not start ({error}); tests/setup installs it"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name}: {}\n{}", output.status, said.trim()));
    }
    let text = fs::read_to_string(&profile).map_err(|error| format!("{}: {error}", profile.display()))?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    let total = total.filter(|total| *total > 0);
    if annotates {
        let annotated = Command::new("callgrind_annotate")
            .args(["--inclusive=no"])
            .arg(&profile)
            .output();
        let annotated = annotated.map_err(|error| format!("callgrind_annotate does not start: {error}"))?;
        let path = directory.join(format!("{stem}.txt"));
        fs::write(&path, annotated.stdout).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    total.ok_or_else(|| format!("{name}: callgrind counted nothing; was it built without symbols?"))
}

/// What a count depends on beside the code.
fn made_with() -> BTreeMap<String, String> {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.lines().next()?.trim().to_owned())
    };
    [
        ("architecture", Some(std::env::consts::ARCH.to_owned())),
        ("libc", first_line("getconf", "GNU_LIBC_VERSION")),
        ("rustc", first_line("rustc", "--version")),
        ("valgrind", first_line("valgrind", "--version")),
    ]
    .into_iter()
    .filter_map(|(what, version)| Some((what.to_owned(), version?)))
    .collect()
}

#[derive(Default)]
struct Verdicts {
    failures: Vec<String>,
    progress: Vec<String>,
}

/// Prints old, new and ratio of each scenario.
fn table(old: &BTreeMap<String, f64>, new: &BTreeMap<String, f64>, is_part: bool) -> Verdicts {
    let mut names: Vec<&String> = new.keys().chain(old.keys().filter(|_| !is_part)).collect();
    names.sort();
    names.dedup();
    let width = names.iter().map(|name| name.len()).max().unwrap_or_default();
    println!(
        "{:width$}  {:>10}  {:>10}  {:>6}",
        "instructions per operation", "baseline", "now", "ratio"
    );
    let mut verdicts = Verdicts::default();
    for name in names {
        let (old, new) = (old.get(name), new.get(name));
        let ratio = old.zip(new).map(|(old, new)| new / old);
        let show = |figure: Option<&f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.1}"));
        let mark = match ratio {
            Some(ratio) if ratio > REGRESSION_MAX => "  WORSE",
            Some(ratio) if ratio < PROGRESS_MAX => "  better",
            Some(_) => "",
            None => "  only in one",
        };
        println!(
            "{name:width$}  {:>10}  {:>10}  {:>6}{mark}",
            show(old),
            show(new),
            ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"))
        );
        match (ratio, new) {
            (Some(ratio), _) if ratio > REGRESSION_MAX => verdicts
                .failures
                .push(format!("{name} takes {ratio:.2} times the baseline")),
            (Some(ratio), _) if ratio < PROGRESS_MAX => verdicts.progress.push(name.clone()),
            (Some(_), _) => {}
            (None, Some(_)) => verdicts.failures.push(format!("{name} is not in {BASELINE}")),
            (None, None) => verdicts
                .failures
                .push(format!("{name} is in {BASELINE} and is no scenario any more")),
        }
    }
    verdicts
}

fn file(made_with: &BTreeMap<String, String>, instructions: &BTreeMap<String, f64>) -> String {
    let mut text = String::from(
        "# Instructions per operation of every scenario in benches/scenarios, by callgrind: what `tests/instructions` compares with.\n\
         # Written by `tests/instructions --accept`; benches/README.md says more.\n\n[made_with]\n",
    );
    for (what, version) in made_with {
        let _ = writeln!(text, "{what} = {version:?}");
    }
    text.push_str("\n[instructions]\n");
    for (name, figure) in instructions {
        let _ = writeln!(text, "{name:?} = {figure:.2}");
    }
    text
}
