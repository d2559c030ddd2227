//! The binary's flags, environment and exit codes, by settings that are refused: nothing here starts a broker.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn skein(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SKEIN_")) {
        command.env_remove(name);
    }
    command.args(args).envs(environment.iter().copied()).output().unwrap()
}

/// The sentence of a start that must be refused.
fn refusal(args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = skein(args, environment);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_file_gives_way_to_the_environment_and_that_to_a_flag() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "max-inflight = 5001\n").unwrap();
    let path = file.path().to_str().unwrap();
    let sentence = |value| format!("skein: --max-inflight {value} is out of range: give 1 to 4095\n");
    let environment = [("SKEIN_MAX_INFLIGHT", "5002")];
    for command in [&[][..], &["serve"]] {
        let with = |args: &[&'static str]| [command, &["--config", path], args].concat();
        assert_eq!(refusal(&with(&[]), &[]), sentence(5001));
        assert_eq!(refusal(&with(&[]), &environment), sentence(5002));
        assert_eq!(
            refusal(&with(&["--max-inflight", "5003"]), &environment),
            sentence(5003)
        );
    }
    assert_eq!(refusal(&[], &[("SKEIN_CONFIG", path)]), sentence(5001));
}

#[test]
fn a_wrong_flag_or_variable_says_what_is_right_and_exits_2() {
    assert!(refusal(&["--max-packet", "5 cows"], &[]).contains("`5 cows` is no size: give"));
    assert!(refusal(&[], &[("SKEIN_CONNECT_TIMEOUT", "10")]).contains("`10` is no duration: give"));
    assert!(refusal(&["--access", "closed"], &[]).contains("[possible values: "));
    assert!(refusal(&["--drivr", "epoll"], &[]).contains("'--driver'"));
    assert!(
        refusal(&["--config", "/nowhere.toml"], &[])
            .starts_with("skein: cannot read the settings file /nowhere.toml: ")
    );
}

#[test]
fn a_switch_is_on_by_its_flag_alone_and_true_or_false_in_the_environment() {
    const NAME: &str = "SKEIN_TLS_CLIENT_CN_AS_USERNAME";
    let needs = "skein: --tls-client-cn-as-username needs clients that show a certificate: ";
    assert!(refusal(&["--tls-client-cn-as-username"], &[]).starts_with(needs));
    assert!(
        refusal(
            &["serve", "--tls-client-cn-as-username", "--cores=2"],
            &[(NAME, "false")]
        )
        .starts_with(needs)
    );
    assert!(refusal(&[], &[(NAME, "true")]).starts_with(needs));
    assert!(refusal(&[], &[(NAME, "yes")]).contains("[possible values: true, false]"));
    // Off, it needs nothing: what is refused is another flag.
    for (args, value) in [
        (&["--cores=0"][..], "false"),
        (&["--tls-client-cn-as-username=false", "--cores=0"], "true"),
    ] {
        let refused = refusal(args, &[(NAME, value)]);
        assert_eq!(refused, "skein: --cores 0 is out of range: give 1 to 256\n");
    }
}

#[test]
fn the_printed_settings_are_a_valid_file() {
    let printed = skein(&["config"], &[("SKEIN_CORES", "0")]);
    assert_eq!(printed.status.code(), Some(0));
    assert!(printed.stderr.is_empty());
    assert_eq!(skein(&["--print-config"], &[]).stdout, printed.stdout);
    assert_eq!(
        String::from_utf8(printed.stdout.clone()).unwrap(),
        skein::config::DEFAULT_TOML
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), printed.stdout).unwrap();
    // What is refused is the flag, so the file has been read.
    let refused = refusal(&["--config", file.path().to_str().unwrap(), "--cores", "0"], &[]);
    assert_eq!(refused, "skein: --cores 0 is out of range: give 1 to 256\n");
}

#[test]
fn help_and_version_exit_0() {
    for flag in ["--help", "--version"] {
        let output = skein(&[flag], &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty());
    }
}

/// The one setting that has a password.
#[test]
fn no_secret_is_repeated() {
    let relay = |url: &'static str| [("SKEIN_SMTP_RELAY", url)];
    for arguments in [
        &["--help"][..],
        &["config"],
        &["--print-config"],
        &["account", "--help"],
    ] {
        let output = skein(arguments, &relay("smtp://user:s3cret@mail.example"));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("s3cret"),
            "{arguments:?}"
        );
    }
}

#[test]
fn doctor_examines_this_host_for_people_and_for_machines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let arguments = ["doctor", "--connections", "100", "--data-dir", path, "--cores", "2"];
    let json = skein(&[&arguments[..], &["--json"]].concat(), &[]);
    let told: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let findings = told["findings"].as_array().unwrap();
    let fixes: Vec<_> = findings.iter().filter(|finding| finding["state"] == "fix").collect();
    assert_eq!(told["fixes_count"], fixes.len());
    assert_eq!(json.status.code(), Some(i32::from(!fixes.is_empty())), "{told}");
    assert_eq!((&told["connections"], &told["cores"]), (&100.into(), &2.into()));
    for check in ["open files", "memory", "io_uring", "file system of the data"] {
        let finding = findings.iter().find(|finding| finding["check"] == check).unwrap();
        assert_ne!(finding["state"], "unknown", "{finding}");
    }

    let text = skein(&arguments, &[]);
    assert_eq!(text.status.code(), json.status.code());
    assert!(text.stderr.is_empty(), "{text:?}");
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("100 connections on 2 cores, data in "), "{text}");
    for finding in fixes {
        let command = finding["commands"][0].as_str().unwrap();
        assert!(text.contains(command), "{text}");
    }
    // It looks and makes nothing.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn doctor_needs_settings_a_broker_would_start_with() {
    assert!(refusal(&["doctor", "--connections", "0"], &[]).contains("0 is not in 1..=100000000"));
    assert!(refusal(&["doctor", "--connections", "some"], &[]).contains("invalid digit"));
    assert_eq!(
        refusal(&["doctor", "--cores", "0"], &[]),
        "skein: --cores 0 is out of range: give 1 to 256\n"
    );
    assert!(
        refusal(&["doctor"], &[("SKEIN_CONFIG", "/nowhere.toml")]).starts_with("skein: cannot read the settings file")
    );
}
