//! One run of the real binary: started on a free port in a directory of its own, stopped by SIGTERM, killed on drop.
//!
//! Called by every theme of the system tests.
//! Holds  - no other process is ever signalled, only the one started here;
//!        - [`Broker::stop`] fails unless the broker ends with exit code 0 within 10 s;
//!        - when a test fails, what the broker wrote is printed with the settings it ran with.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::thread::{available_parallelism, panicking, sleep};
use std::time::{Duration, Instant};

/// What a test runs on: the protocol must not notice any of it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub cores: u16,
    pub driver: &'static str,
    pub private_fds: &'static str,
}

const fn setting(cores: u16, driver: &'static str, private_fds: &'static str) -> Setting {
    Setting {
        cores,
        driver,
        private_fds,
    }
}

/// Both values of each of the three, each pair of values met at least once.
pub const SETTINGS: [Setting; 4] = [
    setting(1, "io_uring", "off"),
    setting(4, "io_uring", "on"),
    setting(1, "epoll", "on"),
    setting(4, "epoll", "off"),
];

/// The other four combinations.
pub const FURTHER_SETTINGS: [Setting; 4] = [
    setting(1, "io_uring", "on"),
    setting(4, "io_uring", "off"),
    setting(1, "epoll", "off"),
    setting(4, "epoll", "on"),
];

/// Four cores, on each driver.
pub const FOUR_CORES: [Setting; 2] = [setting(4, "io_uring", "on"), setting(4, "epoll", "off")];

/// `io_uring`, or `auto` where the kernel refuses io_uring (many containers): found out once, and said.
pub fn io_uring() -> &'static str {
    static DRIVER: OnceLock<&str> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let mut probe = Broker::spawn(&["--cores", "1", "--driver", "io_uring"], None);
        if probe.await_ready().is_ok() {
            return "io_uring";
        }
        eprintln!("io_uring cannot be had here, so these tests run on --driver auto in its place");
        "auto"
    })
}

pub struct Broker {
    process: Child,
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    pub port: u16,
}

impl Broker {
    /// Runs and listens.
    pub fn start(setting: Setting, further: &[&str]) -> Broker {
        let cores = setting.cores.to_string();
        let driver = if setting.driver == "io_uring" {
            io_uring()
        } else {
            setting.driver
        };
        let mut arguments = vec![
            "--cores",
            &cores,
            "--driver",
            driver,
            "--private-fds",
            setting.private_fds,
        ];
        arguments.extend(further);
        Broker::start_with(&arguments, None)
    }

    /// The same with any arguments, and a limit of open files.
    pub fn start_with(arguments: &[&str], open_files: Option<u32>) -> Broker {
        let mut broker = Broker::spawn(arguments, open_files);
        match broker.await_ready() {
            Ok(ready) => {
                assert_eq!(
                    ready["pid"],
                    broker.process.id(),
                    "the ready file names another process: {ready}"
                );
                broker.port = ready["mqtt"].as_u64().expect("the ready file names the MQTT port") as u16;
            }
            Err(problem) => panic!("{problem}"),
        }
        broker
    }

    fn spawn(arguments: &[&str], open_files: Option<u32>) -> Broker {
        let directory = tempfile::tempdir().unwrap();
        let ready_file = directory.path().join("ready.json");
        let mut arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
        if !arguments.iter().any(|argument| argument == "--mqtt-port") {
            arguments.extend(["--mqtt-port".into(), "0".into()]);
        }
        arguments.extend(["--ready-file".into(), ready_file.display().to_string()]);
        let process = match open_files {
            None => Command::new(env!("CARGO_BIN_EXE_skein")),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit} && exec \"$@\""), "sh"]);
                shell.arg(env!("CARGO_BIN_EXE_skein"));
                shell
            }
        }
        .args(&arguments)
        .current_dir(directory.path())
        .stdin(std::process::Stdio::null())
        .stdout(File::create(directory.path().join("stdout")).unwrap())
        .stderr(File::create(directory.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
        Broker {
            process,
            directory,
            arguments,
            port: 0,
        }
    }

    fn await_ready(&mut self) -> Result<Value, String> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if let Ok(text) = fs::read_to_string(self.ready_file()) {
                return serde_json::from_str(&text)
                    .map_err(|error| format!("the ready file is no JSON: {error}: {text}"));
            }
            if let Some(status) = self.process.try_wait().unwrap() {
                return Err(format!("the broker ended while starting, {status}: {}", self.written()));
            }
            sleep(Duration::from_millis(10));
        }
        Err(format!("no ready file after 20 s: {}", self.written()))
    }

    pub fn ready_file(&self) -> PathBuf {
        self.directory.path().join("ready.json")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// A TCP connection that speaks no MQTT by itself; it gives up on anything that takes 20 s.
    pub fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Standard output, then standard error, so far.
    pub fn written(&self) -> String {
        ["stdout", "stderr"]
            .map(|stream| fs::read_to_string(self.directory.path().join(stream)).unwrap_or_default())
            .concat()
    }

    /// Resident memory now.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sockets open in the broker, whichever thread's descriptor table holds them; one that several tables hold counts
    /// once.
    pub fn socket_count(&self) -> usize {
        let mut sockets = std::collections::HashSet::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten() {
            for descriptor in fs::read_dir(task.path().join("fd")).into_iter().flatten().flatten() {
                if let Ok(target) = fs::read_link(descriptor.path())
                    && target.to_string_lossy().starts_with("socket:")
                {
                    sockets.insert(target);
                }
            }
        }
        sockets.len()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// SIGTERM: exit code 0 within 10 s, and no core complained of a broken invariant. Returns what was written.
    pub fn stop(mut self) -> String {
        assert_eq!(self.process.try_wait().unwrap(), None, "the broker ended by itself");
        self.signal(Signal::TERM);
        let status = self
            .await_end(Duration::from_secs(10))
            .expect("the broker ends within 10 s of SIGTERM");
        assert_eq!(status.code(), Some(0), "{status}");
        let written = self.written();
        assert!(!written.contains("panicked"), "a thread panicked");
        written
    }

    pub fn await_end(&mut self, within: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            match self.process.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if started.elapsed() > within => return None,
                None => sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both fail where the process has ended and been waited for, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if panicking() {
            eprintln!("--- skein {}\n{}---", self.arguments.join(" "), self.written());
        }
    }
}

/// How much longer than on an idle host of four CPUs things may take.
pub fn patience(span: Duration) -> Duration {
    let cpus = available_parallelism().map_or(1, |cpus| cpus.get()) as u32;
    span * if cpus < 4 { 3 } else { 1 }
}
