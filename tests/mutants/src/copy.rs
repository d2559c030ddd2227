//! Sources copied to where a fault may be made in them.
//!
//! Holds   a file that is as it was keeps its time, by which cargo knows what to build.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::list::Mutation;

/// Where cargo builds; what is made here is in `mutants` below it.
pub fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

pub struct Copy {
    root: PathBuf,
    pub at: PathBuf,
}

impl Copy {
    pub fn new(root: &Path, at: PathBuf) -> Copy {
        Copy {
            root: root.to_owned(),
            at,
        }
    }

    /// Copies the files at or under `paths`, but `without`, as far as they have changed.
    pub fn update(&self, paths: &[&str], without: &[&str]) -> anyhow::Result<()> {
        let mut files = BTreeSet::new();
        for path in paths {
            collect(&self.root, Path::new(path), &mut files).with_context(|| format!("cannot read {path}"))?;
        }
        for file in &files {
            if !without.iter().any(|path| file == Path::new(path)) {
                self.restore(file)?;
            }
        }
        Ok(())
    }

    pub fn write(&self, file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.at.join(file);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes a fault for as long as `work` takes.
    pub fn with<T>(&self, mutation: &Mutation, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let file = Path::new(&mutation.file);
        let source = fs::read_to_string(self.root.join(file))?;
        self.write(file, mutation.apply(&source)?.as_bytes())?;
        let done = work();
        self.restore(file)?;
        done
    }

    fn restore(&self, file: &Path) -> anyhow::Result<()> {
        let bytes = fs::read(self.root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        self.write(file, &bytes)
    }
}

/// The files at or under `path`.
fn collect(root: &Path, path: &Path, into: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if root.join(path).is_file() {
        into.insert(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(root.join(path))? {
        collect(root, &path.join(entry?.file_name()), into)?;
    }
    Ok(())
}
