//! Whether the inputs that fuzzing has kept notice a fault: each target is what it holds and what it has found, and both must be
//! worth something.
//!
//! Reads   `tests/fuzz/mutations.toml`; the workspace.
//! Writes  a copy of it in `target/mutants/workspace`, and what cargo builds of that.
//! Holds   without a fault every input is taken; a fault is caught when an input of its target is not.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::RUN_SECONDS_MAX;
use crate::copy::{self, Copy};
use crate::list::{self, CORPORA, Mutation};

/// What the workspace is.
const PATHS: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    "clippy.toml",
    "src",
    "benches",
    "loadtest",
    "tests",
];
/// This target needs the broker whole, and is a package of its own.
const WHOLE: &str = "http";

/// Whether every fault was caught.
pub fn run(root: &Path, only: &[String]) -> anyhow::Result<bool> {
    let list = list::read(root, list::FUZZED)?;
    let chosen = list::choose(&list, only, |_| true)?;
    let start = Instant::now();
    let target = copy::target(root);
    let workspace = Copy::new(root, target.join("mutants/workspace"));
    // What was kept once and is not any more proves nothing.
    let kept = workspace.at.join(CORPORA);
    if kept.exists() {
        fs::remove_dir_all(kept)?;
    }
    workspace.update(&PATHS, &[])?;
    for package in chosen.iter().map(|mutation| package(mutation)).collect::<BTreeSet<_>>() {
        let replayed = replay(&build(&workspace, &target, package)?)?;
        ensure!(
            replayed.failed.is_empty(),
            "without a fault {package} fails: {}",
            replayed.why
        );
        println!("without a fault: {package} takes what is kept");
    }
    let mut missed = 0;
    for mutation in chosen {
        let built = workspace.with(mutation, || build(&workspace, &target, package(mutation)));
        let replayed = replay(&built.with_context(|| mutation.name.clone())?)?;
        let inputs = replayed
            .failed
            .iter()
            .filter(|target| **target == mutation.target)
            .count();
        missed += usize::from(inputs == 0);
        let (name, target) = (&mutation.name, &mutation.target);
        match inputs {
            0 => println!("{name:<34} MISSED by {target}"),
            inputs => println!("{name:<34} {target}, {inputs} inputs: {}", replayed.why),
        }
    }
    println!("{missed} missed, {:.0} s", start.elapsed().as_secs_f64());
    Ok(missed == 0)
}

fn package(mutation: &Mutation) -> &'static str {
    if mutation.target == WHOLE { "fuzz-http" } else { "fuzz" }
}

/// The test that replays what is kept.
fn build(workspace: &Copy, target: &Path, package: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "test",
            "--quiet",
            "--locked",
            "--no-run",
            "--test",
            "corpus",
            "--message-format",
            "json",
        ])
        .args(["--package", package, "--manifest-path"])
        .arg(workspace.at.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "the copy in {} does not build:\n{}",
            workspace.at.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<serde_json::Value>()
        .filter_map(Result::ok)
        .filter(|message| message["target"]["name"] == "corpus")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo has left no test")
}

struct Replayed {
    /// The target of each input that was not taken.
    failed: Vec<String>,
    /// Of the first of them.
    why: String,
}

/// The test ends with its first failure, or names all.
fn replay(test: &Path) -> anyhow::Result<Replayed> {
    let mut child = Command::new(test)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", test.display()))?;
    let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?);
    let text = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout
            .read_to_end(&mut bytes)
            .map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let until = Instant::now() + Duration::from_secs(RUN_SECONDS_MAX);
    while child.try_wait()?.is_none() {
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            bail!("{} does not come to its end", test.display());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let text = text.join().expect("a reader that ends with its pipe")?;
    let failed = text
        .lines()
        .filter_map(|line| line.split_once("tests/fuzz/run --replay ")?.1.split(' ').next())
        .map(str::to_owned)
        .collect();
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at "));
    let place = lines.next().and_then(|line| line.split_once("panicked at "));
    let message: String = lines.next().unwrap_or_default().chars().take(110).collect();
    Ok(Replayed {
        failed,
        why: format!("{} {message}", place.map_or("", |(_, place)| place)),
    })
}
