//! `million.sh` with few connections, against the broker of this repository: that it runs, meets its targets, ends what it
//! starts, and refuses what cannot be done with a sentence.

mod script;

use std::fs;

#[test]
fn a_small_run_meets_every_target_and_leaves_nothing_behind() {
    let binaries = script::binaries();
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
    let temporary = script::temporary("million");
    for more in [
        &["--deliver", "300"][..],
        &["--one-filter", "--cores", "3", "--transport", "ws"],
    ] {
        let output = script::run("million.sh", &[&few[..], more].concat(), &temporary);
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(0), "{text}{errors}");
        // Behind it stand the settings of the host that are as they were again, if any had to be raised.
        let is_met = text.lines().any(|line| line == "million.sh: every target is met");
        assert!(is_met, "{text}");
        let reached = match more[0] {
            "--deliver" => [
                "one message each     300 of 300 clients",
                "1500 of 1500 clients in",
                "by 1500 PUBLISH",
            ],
            _ => ["over ws, 3 cores", "1500 of 1500 clients in", "by 1 PUBLISH"],
        };
        assert!(reached.iter().all(|words| text.contains(words)), "{text}");
        script::assert_nothing_left(&temporary);
    }
    fs::remove_dir(&temporary).expect("it is empty");
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
        script::assert_refuses("million.sh", arguments, sentence);
    }
}
