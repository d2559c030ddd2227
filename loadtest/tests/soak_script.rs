//! `soak.sh` for seconds, against the broker of this repository: that every part of its load runs and is checked, that what
//! breaks a rule ends it with exit code 1, when it calls a line flat, and what it refuses.

mod script;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

#[test]
fn a_short_soak_meets_every_target_and_leaves_nothing_behind() {
    let (binaries, temporary, json) = (
        script::binaries(),
        script::temporary("soak"),
        std::env::temp_dir().join(format!("soak-{}.json", std::process::id())),
    );
    let arguments = [
        "--binaries",
        binaries.to_str().unwrap(),
        "--seconds",
        "10",
        "--rate",
        "500",
        "--json",
        json.to_str().unwrap(),
    ];
    let output = script::run("soak.sh", &arguments, &temporary);
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    assert!(text.ends_with("soak.sh: every target is met\n"), "{text}");
    script::assert_nothing_left(&temporary);
    fs::remove_dir(&temporary).expect("it is empty");

    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::remove_file(&json).unwrap();
    let scenarios = &figures["scenarios"];
    let at_least = |value: &serde_json::Value, least: u64| {
        assert!(value.as_u64().is_some_and(|value| value >= least), "{value}: {text}");
    };
    let pairs = &scenarios["pairs"];
    at_least(&pairs["received"], 1000);
    at_least(&pairs["wills"]["received"], 1);
    at_least(&pairs["comings_back"], 1);
    at_least(&pairs["retained_read"], 1);
    for transport in ["tcp", "tls", "ws", "wss"] {
        at_least(&scenarios[format!("connects over {transport}")]["connected"], 10);
    }
    for qos in 0..3 {
        let devices = &scenarios[format!("devices at QoS {qos}")];
        at_least(&devices["commands"]["received"], 10);
    }
    at_least(&figures["counters"]["datapoints"], 1000);
    at_least(&figures["counters"]["wills_published"], 1);
    assert!(
        figures["samples"]["rows"]
            .as_array()
            .is_some_and(|rows| rows.len() >= 3)
    );
    assert_eq!(figures["missed"], 0);
}

/// A soak that ends early with exit code 1, since `program` is another: lines of a shell before the real one. What it says.
fn missed(program: &str, instead: &str) -> String {
    let (binaries, temporary) = (script::binaries(), script::temporary(&format!("soak-other-{program}")));
    let (programs, files) = (temporary.join("programs"), temporary.join("files"));
    fs::create_dir(&programs).expect("the directory was made above");
    fs::create_dir(&files).expect("the directory was made above");
    for name in ["skein", "skein-load"] {
        let (real, here) = (binaries.join(name), programs.join(name));
        if name == program {
            let text = format!("#!/bin/sh\n{instead}\nexec '{}' \"$@\"\n", real.display());
            fs::write(&here, text).expect("the directory was made above");
            fs::set_permissions(&here, fs::Permissions::from_mode(0o755)).expect("it is a file of this process");
        } else {
            symlink(real, here).expect("the directory was made above");
        }
    }
    let programs = programs.to_str().expect("a path of this process");
    let output = script::run("soak.sh", &["--binaries", programs, "--seconds", "60"], &files);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    script::assert_nothing_left(&files);
    fs::remove_dir_all(&temporary).expect("it is of this process");
    errors
}

#[test]
fn a_scenario_that_fails_ends_it_and_is_named() {
    let errors = missed("skein-load", "[ $1 != connect ] || exit 1");
    assert!(errors.contains("soak.sh: missed: connects over tcp: "), "{errors}");
    assert!(errors.contains("soak.sh: missed: the run: connects over "), "{errors}");
}

#[test]
fn a_broker_that_dies_ends_it_and_its_exit_code_is_told() {
    let errors = missed("skein", "case $1 in --access) (sleep 6; kill -9 $$) & esac");
    for what in ["the run: ", "ledger: 0 matched", "its stop: exit code 137"] {
        assert!(errors.contains(&format!("soak.sh: missed: {what}")), "{errors}");
    }
}

/// What the script's `fit` says of readings every 10 s for an hour.
fn fitted(reading: impl Fn(f64) -> f64, directory: &Path) -> String {
    let line = |i: u32| format!("{} {}\n", i * 10, reading(f64::from(i * 10)));
    let samples: String = (1..=360).map(line).collect();
    fs::write(directory.join("samples"), samples).expect("the directory was made above");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("soak.sh");
    let function = "eval \"$(sed -n '/^warm_up=/p; /^noise_[a-z]*=/p; /^fit() {/,/^}/p' \"$1\")\"; fit 2";
    let output = Command::new("bash")
        .args(["-euc", function, "-"])
        .arg(script)
        .env("directory", directory)
        .env("seconds", "3600")
        .output()
        .expect("bash runs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn growth_is_called_flat_within_noise_and_not_beyond() {
    let temporary = script::temporary("soak-fit");
    let noise = |s: f64| if (s / 10.0) % 2.0 == 0.0 { 50.0 } else { -50.0 };
    // 289 samples after the warm-up; 1 KiB a second is 3,600 an hour.
    let growing = fitted(|s| 10_000.0 + s + noise(s), &temporary);
    let words: Vec<&str> = growing.split_whitespace().collect();
    let (slope, error): (f64, f64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    assert!(
        (slope - 3600.0).abs() < 20.0 && (5.0..20.0).contains(&error),
        "{growing}"
    );
    assert!(growing.ends_with(" 289 not flat\n"), "{growing}");
    // What fills in the beginning is not looked at, nor what is less than noise, or than 2 % of the whole.
    for flat in [
        fitted(|s| if s < 720.0 { s } else { 720.0 }, &temporary),
        fitted(|s| 10_000.0 + s / 20.0, &temporary),
        fitted(|s| 1000.0 + s / 110.0 + noise(s), &temporary),
    ] {
        assert!(flat.ends_with(" 289 flat\n"), "{flat}");
    }
    fs::remove_dir_all(&temporary).unwrap();
}

#[test]
fn what_cannot_be_run_is_refused_with_what_to_change() {
    for (arguments, sentence) in [
        (
            &["--minutes", "many"][..],
            "--minutes many is no number of at most six digits",
        ),
        (&["--minutes"], "--minutes wants a value"),
        (&["--minutes", "0"], "--minutes must be more than 0"),
        (&["--seconds", "5"], "give at least 10"),
        (
            &["--hold", "5"],
            "there is no option --hold; --help prints those there are",
        ),
        (&["--binaries", "/nowhere"], "--binaries /nowhere is no directory"),
        (&["--json", "/nowhere/file"], "/nowhere/file cannot be written"),
    ] {
        script::assert_refuses("soak.sh", arguments, sentence);
    }
}
