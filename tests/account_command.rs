//! `skein account` where no broker runs: what it prints, what it leaves in the store, and its exit codes.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

fn account(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SKEIN_")) {
        command.env_remove(name);
    }
    command
        .arg("account")
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .output()
        .unwrap()
}

/// Standard output of a command that works.
fn printed(dir: &Path, args: &[&str]) -> String {
    let output = account(dir, args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(dir: &Path, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&printed(dir, &[args, &["--json"]].concat())).unwrap()
}

/// The sentence of one that the operator has to change.
fn refusal(dir: &Path, args: &[&str]) -> String {
    let output = account(dir, args);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(
        sentence.starts_with("skein: ") && sentence.lines().count() == 1,
        "{sentence}"
    );
    sentence
}

fn is_token(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

#[test]
fn accounts_are_made_changed_and_removed_in_a_directory_that_no_broker_uses() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("data");
    let added = json(
        dir,
        &["add", "--id", "U004217", "--max-devices", "5", "--max-storage", "1 MiB"],
    );
    assert_eq!(added["user_id"], "U004217");
    assert_eq!(
        (&added["devices_max"], &added["storage_bytes_max"]),
        (&5.into(), &1_048_576.into())
    );
    let token = |account: &serde_json::Value, which: &str| account[which].as_str().unwrap().to_owned();
    assert!(is_token(&token(&added, "device_token")) && is_token(&token(&added, "api_token")));

    let listed = &json(dir, &["list"])[0];
    assert_eq!(
        token(listed, "device_token"),
        format!("{}…", &token(&added, "device_token")[..4])
    );
    assert_eq!(json(dir, &["list", "--show-tokens"])[0], added);

    let rotated = json(dir, &["rotate-token", "U004217"]);
    assert_ne!(rotated["device_token"], added["device_token"]);
    assert_eq!(rotated["api_token"], added["api_token"]);
    let both = json(dir, &["rotate-token", "U004217", "--api", "--device"]);
    assert_ne!(
        (&both["device_token"], &both["api_token"]),
        (&rotated["device_token"], &rotated["api_token"])
    );

    assert_eq!(json(dir, &["suspend", "U004217"])["suspended"], true);
    assert_eq!(json(dir, &["list"])[0]["suspended"], true);
    assert_eq!(json(dir, &["resume", "U004217"])["suspended"], false);
    let set = [
        "set",
        "U004217",
        "--locale",
        "europe/vienna",
        "--alias",
        "Farm",
        "--default-channel",
        "3",
    ];
    let set = json(dir, &set);
    assert_eq!(
        (&set["locale"], &set["user_alias"], &set["default_channel"]),
        (&"Europe/Vienna".into(), &"Farm".into(), &3.into())
    );
    assert!(json(dir, &["set", "U004217", "--default-channel", "off"])["default_channel"].is_null());

    json(dir, &["add"]);
    assert_eq!(json(dir, &["list"]).as_array().unwrap().len(), 2);
    json(dir, &["remove", "U004217"]);
    let left = json(dir, &["list"]);
    assert!(left.as_array().unwrap().len() == 1 && left[0]["user_id"] != "U004217");
}

#[test]
fn people_get_a_table_with_masked_tokens_and_after_add_what_to_paste() {
    let dir = tempfile::tempdir().unwrap();
    let text = printed(dir.path(), &["add", "--id", "U004217"]);
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    let device_token = line("device token  ").split_off(14);
    let api_token = line("API token     ").split_off(14);
    let publish = format!(
        "mosquitto_pub -h localhost -p 1883 -u U004217 -P {device_token} -t '{device_token}/json/pump-07' -m '{{\"temp\":20}}'"
    );
    assert_eq!(line("mosquitto_pub"), publish);
    assert_eq!(
        line("curl"),
        format!("curl -H 'X-APITOKEN: {api_token}' http://127.0.0.1:8080/v2/device")
    );

    let table = printed(dir.path(), &["list"]);
    assert!(
        table.starts_with("ACCOUNT  STATE") && table.lines().count() == 2,
        "{table}"
    );
    for token in [&device_token, &api_token] {
        assert!(
            !table.contains(&**token) && table.contains(&format!("{}…", &token[..4])),
            "{table}"
        );
        assert!(printed(dir.path(), &["list", "--show-tokens"]).contains(&**token));
        assert!(!printed(dir.path(), &["suspend", "U004217"]).contains(&**token));
    }
    let rotated = printed(dir.path(), &["rotate-token", "U004217", "--api"]);
    assert!(
        rotated.starts_with("API token     ") && rotated.lines().count() == 1,
        "{rotated}"
    );
}

#[test]
fn what_the_operator_must_change_is_one_sentence_and_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for command in [&["list"][..], &["suspend", "U000001"], &["remove", "U000001"]] {
        assert!(refusal(dir, command).contains("there is no store in"));
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "looking makes none");
    printed(dir, &["add", "--id", "U000001"]);
    assert!(refusal(dir, &["add", "--id", "U000001"]).contains("U000001 is taken"));
    assert!(refusal(dir, &["add", "--id", "u1"]).contains("u1 is no account id: give U and six digits"));
    for command in ["rotate-token", "suspend", "resume", "remove", "set"] {
        assert!(refusal(dir, &[command, "U000002"]).contains("there is no account U000002"));
        assert!(refusal(dir, &[command, "1"]).contains("is no account id"));
    }
    assert!(refusal(dir, &["set", "U000001", "--locale", "Mars"]).contains("locale"));
    assert!(refusal(dir, &["set", "U000001", "--email1", "me"]).contains("email1"));
    // Of the flags themselves speaks clap.
    for args in [
        &["add", "--max-storage", "lots"][..],
        &["add", "--max-devices", "-1"],
        &["set"],
        &["frobnicate"],
        &[],
    ] {
        let output = account(dir, args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn a_broker_that_does_not_answer_is_said_to_and_one_without_accounts_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    printed(dir, &["add", "--id", "U000001"]);
    let socket = dir.join("admin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = account(dir, &["list"]);
    closing.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("does not answer"),
        "{output:?}"
    );
    // A socket that was left behind is nobody's.
    assert!(socket.exists());
    assert_eq!(json(dir, &["list"])[0]["user_id"], "U000001");
    // Somebody has the store, and no socket.
    let lock = std::fs::File::open(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(refusal(dir, &["list"]).contains("--access open"));
}
