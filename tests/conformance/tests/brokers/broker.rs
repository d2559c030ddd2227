//! The broker of this repository, for the tests of this package.
//!
//! Holds   - only the process started here is ever ended, at the latest on drop.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

pub struct Broker {
    process: Child,
    pub directory: tempfile::TempDir,
    pub mqtt: SocketAddr,
    pub websocket: SocketAddr,
}

/// The broker's program: cargo puts both beside each other.
pub fn skein() -> PathBuf {
    let own = Path::new(env!("CARGO_BIN_EXE_skein-conformance"));
    let program = own.with_file_name("skein");
    assert!(
        program.exists(),
        "the broker is not built: run the tests of the whole workspace, or cargo build --bin skein first"
    );
    program
}

impl Broker {
    /// On free ports; with `--access platform` the directory has its accounts already.
    pub fn start(directory: tempfile::TempDir, access: &str) -> Broker {
        let ready = directory.path().join("ready.json");
        let mut command = Command::new(skein());
        command.args(["--access", access, "--cores", "2", "--mqtt-port", "0", "--ws-port", "0"]);
        command.args(["--mqtts-port", "off", "--wss-port", "off"]);
        if access == "platform" {
            command.args(["--api-port", "0"]);
        }
        let log = directory.path().join("log");
        let process = command
            .arg("--ready-file")
            .arg(&ready)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let text = loop {
            if let Ok(text) = fs::read_to_string(&ready) {
                break text;
            }
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "the broker does not listen: {}",
                log()
            );
            sleep(Duration::from_millis(10));
        };
        let ports: Value = serde_json::from_str(&text).unwrap();
        let address = |name: &str| ([127, 0, 0, 1], ports[name].as_u64().unwrap() as u16).into();
        Broker {
            process,
            directory,
            mqtt: address("mqtt"),
            websocket: address("ws"),
        }
    }

    pub fn open() -> Broker {
        Broker::start(tempfile::tempdir().unwrap(), "open")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
