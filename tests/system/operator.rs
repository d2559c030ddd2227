//! What whoever runs the broker sees: the ready file, the words at the start, refusals that say what to change.
//! Settings that are refused before anything is opened are in `tests/command_line.rs`.

use crate::broker::{Broker, SETTINGS};
use crate::clients::{Agent, Library, hello};
use rustix::process::Signal;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::time::Duration;

/// A start that ends by itself, in a directory of its own.
fn skein(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_skein"))
        .args(arguments)
        .current_dir(&directory)
        .output()
        .unwrap()
}

/// The one sentence, whatever the log has said before it, of a start that is refused with exit code 2.
fn refusal(arguments: &[&str]) -> String {
    let output = skein(arguments);
    let written = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{written}");
    assert!(output.stdout.is_empty());
    let sentences: Vec<_> = written.lines().filter(|line| line.starts_with("skein: ")).collect();
    let [sentence] = sentences[..] else {
        panic!("not one sentence: {written}")
    };
    assert!(written.ends_with(&format!("{sentence}\n")), "{written}");
    sentence.to_owned()
}

#[test]
fn a_port_in_use_is_one_sentence_and_exit_code_2() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let sentence = refusal(&["--mqtt-port", &port]);
    assert!(
        sentence.contains(&format!("127.0.0.1:{port} is in use")) && sentence.contains("--mqtt-port"),
        "{sentence}"
    );
}

/// Every core listens with SO_REUSEPORT, so the kernel would let a second broker share the port.
#[test]
fn a_second_broker_on_the_same_port_is_refused() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let cores = setting.cores.to_string();
        let sentence = refusal(&["--mqtt-port", &broker.port.to_string(), "--cores", &cores]);
        assert!(sentence.contains("is in use"), "{sentence}");
        broker.stop();
    }
}

#[test]
fn a_bad_start_says_what_to_change() {
    let nothing_open = refusal(&["--mqtt-port", "off"]);
    assert!(
        nothing_open.contains("no port is open") && nothing_open.contains("--mqtt-port"),
        "{nothing_open}"
    );

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skein.toml");
    std::fs::write(&file, "cores = 2\n\nmqtt-prot = 1883\n").unwrap();
    let file = file.to_str().unwrap();
    let sentence = refusal(&["--config", file]);
    assert!(
        sentence.contains(&format!("{file}, line 3: ")) && sentence.contains("mqtt-prot"),
        "{sentence}"
    );

    let sentence = refusal(&["--mqtt-port", "0", "--ready-file", "/nowhere/ready.json"]);
    assert!(
        sentence.contains("/nowhere/ready.json") && sentence.contains("--ready-file"),
        "{sentence}"
    );

    // 192.0.2.1 is set aside for documentation (RFC 5737): no host has it.
    let sentence = refusal(&["--mqtt-port", "0", "--bind", "192.0.2.1"]);
    assert!(
        sentence.contains("192.0.2.1") && sentence.contains("--bind"),
        "{sentence}"
    );

    let output = skein(&["--mqtt-prt", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("--mqtt-port"),
        "the flag that was meant is not named"
    );
}

#[test]
fn the_version_is_the_package_version() {
    let output = skein(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("skein {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_ready_file_names_every_port_and_is_gone_after_the_stop() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let path = broker.ready_file();
        let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "pid": broker.pid(), "mqtt": broker.port, "mqtts": null, "ws": null, "wss": null, "api": null,
        });
        assert_eq!(ready, expected);
        assert!(broker.port > 0);
        broker.stop();
        assert!(!path.exists());
    }
}

#[test]
fn the_start_says_where_it_listens_what_to_try_and_that_only_this_host_can_connect() {
    let broker = Broker::start(SETTINGS[0], &[]);
    let port = broker.port;
    let written = broker.stop();
    assert!(written.contains(&format!("127.0.0.1:{port}")), "{written}");
    assert!(
        written.contains(&format!("mosquitto_sub -h 127.0.0.1 -p {port}")),
        "{written}"
    );
    assert!(
        written.contains("Only this host can connect") && written.contains("--bind 0.0.0.0"),
        "{written}"
    );

    let broker = Broker::start(SETTINGS[0], &["--bind", "0.0.0.0"]);
    assert!(std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 2], broker.port))).is_ok());
    let written = broker.stop();
    assert!(!written.contains("Only this host"), "{written}");
}

/// A client that is connected learns of the stop by its connection's end; [`Broker::stop`] checks time and exit code.
#[test]
fn a_signal_closes_connections_and_ends_with_exit_code_0() {
    let mut agent = Agent::start(Library::MqttJs);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        agent.connect("a", &broker, hello("a"));
        let address = broker.address();
        broker.stop();
        agent.closed("a");
        TcpListener::bind(address).expect("the port is free again");

        let mut broker = Broker::start(setting, &[]);
        broker.signal(Signal::INT);
        let status = broker
            .await_end(Duration::from_secs(10))
            .expect("SIGINT ends the broker");
        assert_eq!(status.code(), Some(0));
    }
}
