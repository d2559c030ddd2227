//! The broker of this repository passes every statement that can be tested, and the suite leaves nothing behind on it.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::broker::{Broker, skein};
use conformance::bench::Settings;
use conformance::report::Verdict;
use serde_json::Value;

/// What must come has a time that no slow machine needs.
const TIMEOUT: Duration = Duration::from_secs(30);

fn settings(broker: &Broker) -> Settings {
    Settings {
        websocket: Some(broker.websocket),
        timeout: TIMEOUT,
        ..Settings::at(broker.mqtt)
    }
}

fn assert_all_pass(settings: &Settings, skipped: &[&str]) {
    let report = conformance::run(settings, &[]).unwrap();
    assert!(!report.has_failed(), "{report}");
    assert_eq!(report.ids(Verdict::Skip), skipped, "{report}");
    assert_eq!(report.ids(Verdict::NotTestable).len(), 13);
}

#[test]
fn with_open_access_every_statement_passes_and_nothing_is_left() {
    let broker = Broker::open();
    // Nothing is forbidden here.
    assert_all_pass(&settings(&broker), &["MQTT-3.3.5-2", "V31-12"]);
    // The broker takes Sessions away after it has answered.
    let directory = broker.directory.path().join("skein-data");
    let started = Instant::now();
    loop {
        let inspected = Command::new(skein())
            .arg("inspect")
            .arg("--data-dir")
            .arg(&directory)
            .output()
            .unwrap();
        let text = String::from_utf8(inspected.stdout).unwrap();
        let left = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let count = line.unwrap_or_else(|| panic!("no `{name}` in {text}"));
            count.trim().parse::<u64>().unwrap()
        };
        if left("sessions  ") + left("retained messages  ") == 0 {
            break;
        }
        assert!(started.elapsed() < TIMEOUT, "something is left: {text}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn with_accounts_every_statement_passes_below_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let mut add = Command::new(skein());
    add.args(["account", "add", "--json", "--data-dir"]);
    let added = add.arg(directory.path().join("skein-data")).output().unwrap();
    let account: Value = serde_json::from_slice(&added.stdout).unwrap();
    let field = |name: &str| account[name].as_str().unwrap().to_owned();
    let broker = Broker::start(directory, "platform");
    // By the program itself, as a user would.
    let json = broker.directory.path().join("score.json");
    let (host, port) = (broker.mqtt.ip().to_string(), broker.mqtt.port().to_string());
    let (user, token, websocket) = (
        field("user_id"),
        field("device_token"),
        broker.websocket.port().to_string(),
    );
    let output = Command::new(env!("CARGO_BIN_EXE_skein-conformance"))
        .args([
            "--host",
            &host,
            "--port",
            &port,
            "--ws-port",
            &websocket,
            "--timeout",
            "30",
        ])
        .args(["--user", &user, "--topic-prefix", &token, "--name", "skein", "--json"])
        .arg(&json)
        .env("SKEIN_CONFORMANCE_PASSWORD", &token)
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{table}");
    let written = fs::read_to_string(json).unwrap();
    for secret in [&user, &token] {
        assert!(!table.contains(secret.as_str()) && !written.contains(secret.as_str()));
    }
    let score: Value = serde_json::from_str(&written).unwrap();
    // Filters that begin with a wildcard are not below the token.
    let skipped: Vec<&Value> = score["statements"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["verdict"] == "skip")
        .collect();
    assert_eq!(
        skipped.iter().map(|row| &row["id"]).collect::<Vec<_>>(),
        ["MQTT-4.7.2-1"]
    );
    assert_eq!(score["broker"], "skein");
    assert_eq!(
        (&score["mqtt_3_1_1"]["pass"], &score["mqtt_3_1_1"]["fail"]),
        (&127.into(), &0.into())
    );
    assert_eq!(
        (&score["mqtt_3_1"]["pass"], &score["mqtt_3_1"]["fail"]),
        (&15.into(), &0.into())
    );
}
