//! Whether the inputs that fuzzing has kept notice a fault: each target is what it holds and what it has found, and both must be
//! worth something.
//!
//! Reads   `tests/fuzz/mutations.toml`; the workspace.
//! Writes  a copy of it in `target/mutants/workspace`, and what cargo builds of that in `target/mutants/whole`: in a directory that
//!         two workspaces share, cargo takes the files of one for those of the other where a package has sources outside of its own.
//! Holds   without a fault every input is taken; a fault is caught when an input of its target is not, or does not come to its end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::copy::{self, Copy};
use crate::list::{self, CORPORA, Mutation};
use crate::program;

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
    let target = copy::target(root).join("mutants");
    let workspace = Copy::new(root, target.join("workspace"));
    let target = target.join("whole");
    // What was kept once and is not any more proves nothing.
    let kept = workspace.at.join(CORPORA);
    if kept.exists() {
        fs::remove_dir_all(kept)?;
    }
    workspace.update(&PATHS, &[])?;
    for package in chosen.iter().map(|mutation| package(mutation)).collect::<BTreeSet<_>>() {
        match replay(&build(&workspace, &target, package)?)? {
            Some(Replayed { is_passed: true, .. }) => {}
            Some(Replayed { why, .. }) => bail!("without a fault {package} fails: {why}"),
            None => bail!("without a fault {package} does not come to its end"),
        }
        println!("without a fault: {package} takes what is kept");
    }
    let mut missed = 0;
    for mutation in chosen {
        let built = workspace.with(mutation, || build(&workspace, &target, package(mutation)));
        let replayed = replay(&built.with_context(|| mutation.name.clone())?)?;
        let (name, target) = (&mutation.name, &mutation.target);
        let Some(Replayed { failed, why, .. }) = replayed else {
            println!("{name:<34} does not come to its end");
            continue;
        };
        match failed.iter().filter(|failed| *failed == target).count() {
            0 => {
                missed += 1;
                println!("{name:<34} MISSED by {target}");
            }
            inputs => println!("{name:<34} {target}, {inputs} inputs: {why}"),
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
    is_passed: bool,
    /// The target of each input that was not taken.
    failed: Vec<String>,
    /// Of the first of them.
    why: String,
}

/// The test ends with its first failure, or names all. `None`: it does not come to its end.
fn replay(test: &Path) -> anyhow::Result<Option<Replayed>> {
    let run = program::run(Command::new(test).env("RUST_BACKTRACE", "0").stderr(Stdio::null()))?;
    Ok(run.map(|(status, text)| {
        let failed = text
            .lines()
            .filter_map(|line| line.split_once("tests/fuzz/run --replay ")?.1.split(' ').next())
            .map(str::to_owned)
            .collect();
        let mut lines = text.lines().skip_while(|line| !line.contains("panicked at "));
        let place = lines.next().and_then(|line| line.split_once("panicked at "));
        let message: String = lines.next().unwrap_or_default().chars().take(110).collect();
        Replayed {
            is_passed: status.success(),
            failed,
            why: format!("{} {message}", place.map_or("", |(_, place)| place)),
        }
    }))
}
