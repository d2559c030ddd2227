//! The lists of faults, checked.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// What the simulation must notice.
pub const SIMULATED: &str = "tests/simulation/mutations.toml";
/// What the inputs that fuzzing has kept must notice.
pub const FUZZED: &str = "tests/fuzz/mutations.toml";

/// A directory for each target.
pub const CORPORA: &str = "tests/fuzz/corpus";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutation: Vec<Mutation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutation {
    pub name: String,
    pub file: String,
    /// What it breaks, in a sentence.
    pub breaks: String,
    /// Occurs exactly once in `file`.
    pub find: String,
    pub replace: String,
    /// Within how many seeds it must be caught, if it is for the simulation.
    #[serde(default)]
    pub seeds: u64,
    /// Made without `--all`, too.
    #[serde(default)]
    pub quick: bool,
    /// The target of fuzzing that must catch it, if it is for that.
    #[serde(default)]
    pub target: String,
}

impl Mutation {
    /// The file with the fault.
    pub fn apply(&self, source: &str) -> anyhow::Result<String> {
        let count = source.matches(&self.find).count();
        ensure!(
            count == 1,
            "{}: its text occurs {count} times in {}, not once; bring the list up to date",
            self.name,
            self.file
        );
        ensure!(self.find != self.replace, "{} changes nothing", self.name);
        Ok(source.replacen(&self.find, &self.replace, 1))
    }
}

/// Every mutation of a list, each with a name of its own, a text that is there once, and somebody who must notice.
pub fn read(root: &Path, path: &str) -> anyhow::Result<Vec<Mutation>> {
    let text = fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?;
    let List { mutation: list } = toml::from_str(&text).with_context(|| path.to_owned())?;
    for (place, mutation) in list.iter().enumerate() {
        let name = &mutation.name;
        ensure!(
            list[..place].iter().all(|other| other.name != *name),
            "two mutations are called {name}"
        );
        ensure!(!mutation.breaks.is_empty(), "{name} does not say what it breaks");
        if path == SIMULATED {
            ensure!(mutation.seeds > 0, "{name} does not say in how many seeds");
        } else {
            ensure!(
                root.join(CORPORA).join(&mutation.target).is_dir() && !mutation.target.is_empty(),
                "{name} does not name a target of fuzzing"
            );
        }
        let source = fs::read_to_string(root.join(&mutation.file))
            .with_context(|| format!("{name}: cannot read {}", mutation.file))?;
        mutation.apply(&source)?;
    }
    Ok(list)
}

/// Those that are named, or if none is, those that are `usual`.
pub fn choose<'a>(
    list: &'a [Mutation],
    only: &[String],
    usual: impl Fn(&Mutation) -> bool,
) -> anyhow::Result<Vec<&'a Mutation>> {
    for name in only {
        ensure!(
            list.iter().any(|mutation| mutation.name == *name),
            "there is no mutation {name} in the list"
        );
    }
    let chosen = list.iter().filter(|mutation| match only {
        [] => usual(mutation),
        only => only.contains(&mutation.name),
    });
    Ok(chosen.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_can_be_made() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let list = read(&root, SIMULATED).expect("the list fits the sources");
        assert!(list.len() >= 12, "{} mutations", list.len());
        assert!(list.iter().any(|mutation| mutation.quick));
        let list = read(&root, FUZZED).expect("the list fits the sources");
        for target in fs::read_dir(root.join(CORPORA)).expect("the targets") {
            let target = target.expect("a target").file_name();
            assert!(
                list.iter().any(|mutation| *mutation.target == *target),
                "a mutation for {}",
                target.display()
            );
        }
    }

    /// A fault is made in a copy, which takes minutes to say that it does not build.
    #[test]
    fn the_program_is_made_of_what_the_simulation_is_made_of() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let modules = |path: &str| -> BTreeSet<String> {
            let text = fs::read_to_string(root.join(path)).expect("the sources");
            let modules = text
                .lines()
                .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
            modules.map(str::to_owned).collect()
        };
        let mut simulation = modules("tests/simulation/main.rs");
        assert!(simulation.remove("shrink"), "which the program does without");
        assert_eq!(modules("tests/mutants/program/main.rs"), simulation);
    }

    #[test]
    fn a_text_that_is_not_there_once_is_refused() {
        let mutation = Mutation {
            name: "any".to_owned(),
            file: "src/any.rs".to_owned(),
            breaks: "all".to_owned(),
            find: "b".to_owned(),
            replace: "c".to_owned(),
            seeds: 1,
            quick: false,
            target: String::new(),
        };
        assert_eq!(mutation.apply("abd").ok().as_deref(), Some("acd"));
        assert!(mutation.apply("abdb").is_err());
        assert!(mutation.apply("ad").is_err());
    }
}
