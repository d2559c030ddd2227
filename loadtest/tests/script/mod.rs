//! What the tests of scripts share: how one is run, with which programs, and what it must not leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A script of this package; its temporary files are below `temporary`.
pub fn run(name: &str, arguments: &[&str], temporary: &Path) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .args(arguments)
        .current_dir(std::env::temp_dir())
        .env("TMPDIR", temporary)
        .output()
        .expect("bash runs it")
}

/// Where both programs are: cargo puts them beside each other.
pub fn binaries() -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_skein-load"))
        .parent()
        .expect("it is in a directory");
    assert!(
        directory.join("skein").exists(),
        "the broker is not built: run the tests of the whole workspace, or cargo build --workspace first"
    );
    directory.to_owned()
}

/// An empty directory of this process.
pub fn temporary(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir(&directory).expect("no process had this number a moment ago");
    directory
}

/// No file below `directory`, and no process that was given a path below it.
pub fn assert_nothing_left(directory: &Path) {
    let files = fs::read_dir(directory).expect("it was made above").count();
    let processes = fs::read_dir("/proc").expect("this is Linux").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let name = directory.as_os_str().as_encoded_bytes();
    let processes = lines
        .filter(|line| line.windows(name.len()).any(|part| part == name))
        .count();
    assert_eq!((files, processes), (0, 0), "files and processes are left");
}

/// Exit code 2, and one line that begins with the script's name and has `sentence` in it.
pub fn assert_refuses(name: &str, arguments: &[&str], sentence: &str) {
    let output = run(name, arguments, &std::env::temp_dir());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    let is_one_line = errors.trim_end().lines().count() == 1;
    assert!(errors.starts_with(&format!("{name}: ")) && is_one_line, "{errors}");
    assert!(errors.contains(sentence), "{errors}");
}
