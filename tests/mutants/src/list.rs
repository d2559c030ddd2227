//! The list of faults, checked.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;

pub const PATH: &str = "tests/simulation/mutations.toml";

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
    /// Within how many seeds it must be caught.
    pub seeds: u64,
    /// Made without `--all`, too.
    #[serde(default)]
    pub quick: bool,
}

impl Mutation {
    /// The file with the fault.
    pub fn apply(&self, source: &str) -> anyhow::Result<String> {
        let count = source.matches(&self.find).count();
        ensure!(
            count == 1,
            "{}: its text occurs {count} times in {}, not once; bring {PATH} up to date",
            self.name,
            self.file
        );
        ensure!(self.find != self.replace, "{} changes nothing", self.name);
        Ok(source.replacen(&self.find, &self.replace, 1))
    }
}

/// Every mutation, each with a name of its own and a text that is there once.
pub fn read(root: &Path) -> anyhow::Result<Vec<Mutation>> {
    let text = fs::read_to_string(root.join(PATH)).with_context(|| format!("cannot read {PATH}"))?;
    let List { mutation: list } = toml::from_str(&text).with_context(|| PATH.to_owned())?;
    for (place, mutation) in list.iter().enumerate() {
        let name = &mutation.name;
        ensure!(
            list[..place].iter().all(|other| other.name != *name),
            "two mutations are called {name}"
        );
        ensure!(
            mutation.seeds > 0 && !mutation.breaks.is_empty(),
            "{name} says neither what it breaks nor in how many seeds"
        );
        let source = fs::read_to_string(root.join(&mutation.file))
            .with_context(|| format!("{name}: cannot read {}", mutation.file))?;
        mutation.apply(&source)?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_can_be_made() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let list = read(&root).expect("the list fits the sources");
        assert!(list.len() >= 12, "{} mutations", list.len());
        assert!(list.iter().any(|mutation| mutation.quick));
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
        };
        assert_eq!(mutation.apply("abd").ok().as_deref(), Some("acd"));
        assert!(mutation.apply("abdb").is_err());
        assert!(mutation.apply("ad").is_err());
    }
}
