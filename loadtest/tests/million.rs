//! `million.sh` with few connections, against the broker of this repository: that it runs, meets its targets, ends what it
//! starts, and refuses what cannot be done with a sentence.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(arguments: &[&str], temporary: &Path) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("million.sh"))
        .args(arguments)
        .current_dir(std::env::temp_dir())
        .env("TMPDIR", temporary)
        .output()
        .expect("bash runs it")
}

/// Where both programs are: cargo puts them beside each other.
fn binaries() -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_skein-load"))
        .parent()
        .expect("it is in a directory");
    assert!(
        directory.join("skein").exists(),
        "the broker is not built: run the tests of the whole workspace, or cargo build --workspace first"
    );
    directory.to_owned()
}

#[test]
fn a_small_run_meets_every_target_and_leaves_nothing_behind() {
    let binaries = binaries();
    let binaries = binaries.to_str().expect("a path of this repository");
    let few = [
        "--binaries",
        binaries,
        "--connections",
        "1500",
        "--hold",
        "3",
        "--keep-alive",
        "30",
    ];
    let temporary = std::env::temp_dir().join(format!("million-{}", std::process::id()));
    fs::create_dir(&temporary).expect("no process had this number a moment ago");
    for more in [
        &["--deliver", "300"][..],
        &["--one-filter", "--cores", "3", "--transport", "ws"],
    ] {
        let output = script(&[&few[..], more].concat(), &temporary);
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(0), "{text}{errors}");
        assert!(text.ends_with("million.sh: every target is met\n"), "{text}");
        let reached = match more[0] {
            "--deliver" => [
                "one message each     300 of 300 clients",
                "1500 of 1500 clients in",
                "by 1500 PUBLISH",
            ],
            _ => ["over ws, 3 cores", "1500 of 1500 clients in", "by 1 PUBLISH"],
        };
        assert!(reached.iter().all(|words| text.contains(words)), "{text}");
        let left = fs::read_dir(&temporary).expect("it was made above").count();
        assert_eq!((left, processes_of(&temporary)), (0, 0), "files and processes are left");
    }
    fs::remove_dir(&temporary).expect("it is empty");
}

/// Those that were given a path below this one.
fn processes_of(directory: &Path) -> usize {
    let processes = fs::read_dir("/proc").expect("this is Linux").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let name = directory.as_os_str().as_encoded_bytes();
    lines
        .filter(|line| line.windows(name.len()).any(|part| part == name))
        .count()
}

#[test]
fn what_cannot_be_run_is_refused_with_what_to_change() {
    for (arguments, sentence) in [
        (
            &["--connections", "many"][..],
            "--connections many is no number of at most eight digits",
        ),
        (&["--connections"], "--connections wants a value"),
        (&["--connections", "99999999"], "are available: --connections "),
        (
            &["--connections", "1000", "--cores", "300"],
            "1000 connections take --cores 1 to 256",
        ),
        (
            &["--transport", "udp"],
            "--transport udp is none of tcp, tls, ws and wss",
        ),
        (&["--keep-alive", "70000"], "give at most 65535"),
        (
            &["--rate", "5"],
            "there is no option --rate; --help prints those there are",
        ),
        (&["--binaries", "/nowhere"], "--binaries /nowhere is no directory"),
    ] {
        let output = script(arguments, &std::env::temp_dir());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        let is_one_line = errors.trim_end().lines().count() == 1;
        assert!(errors.starts_with("million.sh: ") && is_one_line, "{errors}");
        assert!(errors.contains(sentence), "{errors}");
    }
}
