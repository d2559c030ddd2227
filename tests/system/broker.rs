//! One run of the real binary: started in a directory of its own, or on a [`Site`] that several runs have one after
//! another; stopped by SIGTERM, or killed, at the latest on drop.
//!
//! Called by every theme of the system tests.
//! Holds  - no other process is ever signalled, only the one started here;
//!        - [`Broker::stop`] fails unless the broker ends with exit code 0 within 10 s;
//!        - [`Broker::kill`] fails if the broker had ended by itself;
//!        - when a test fails, what the broker wrote is printed with the settings it ran with.

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
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

/// How a client reaches the broker. Each has a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Tls,
    WebSocket,
    SecureWebSocket,
}

impl Transport {
    pub const ALL: [Transport; 4] = [
        Transport::Tcp,
        Transport::Tls,
        Transport::WebSocket,
        Transport::SecureWebSocket,
    ];

    /// The scheme of its URLs, its name in the ready file, and what its port's flag begins with.
    pub fn name(self) -> &'static str {
        ["mqtt", "mqtts", "ws", "wss"][self as usize]
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Transport::Tls | Transport::SecureWebSocket)
    }

    pub fn flag(self) -> String {
        format!("--{}-port", self.name())
    }
}

/// The flag of the port of the HTTP API.
const API_PORT: &str = "--api-port";

/// `io_uring`, or `auto` where the kernel refuses io_uring (many containers): found out once, and said.
pub fn io_uring() -> &'static str {
    static DRIVER: OnceLock<&str> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let mut probe = Site::any_port().spawn(&["--cores", "1", "--driver", "io_uring"], None);
        if probe.await_ready().is_ok() {
            return "io_uring";
        }
        eprintln!("io_uring cannot be had here, so these tests run on --driver auto in its place");
        "auto"
    })
}

/// Where brokers run one after another: a directory, and a port that is the same for all of them.
#[derive(Clone)]
pub struct Site {
    directory: Arc<tempfile::TempDir>,
    /// None: any free port, another one for each run.
    port: Option<Arc<ReservedPort>>,
    environment: Vec<(String, OsString)>,
    /// The program that starts the broker in its place, with its arguments; none: nobody does.
    launcher: Vec<String>,
    runs: Arc<AtomicUsize>,
}

impl Site {
    pub fn new() -> Site {
        Site {
            port: Some(Arc::new(ReservedPort::any())),
            ..Site::any_port()
        }
    }

    fn any_port() -> Site {
        Site {
            directory: Arc::new(tempfile::tempdir().unwrap()),
            port: None,
            environment: Vec::new(),
            launcher: Vec::new(),
            runs: Arc::default(),
        }
    }

    /// Variables for the runs to come.
    pub fn set_environment<N: Into<String>>(&mut self, variables: impl IntoIterator<Item = (N, OsString)>) {
        self.environment = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value))
            .collect();
    }

    /// For the runs to come: words that are put before the command. What they start becomes the broker, in the same process.
    pub fn set_launcher(&mut self, words: impl IntoIterator<Item = String>) {
        self.launcher = words.into_iter().collect();
    }

    /// The binary, started as the brokers are.
    pub fn command(&self) -> Command {
        let words = [&self.launcher[..], &[env!("CARGO_BIN_EXE_skein").to_owned()]].concat();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// The port of every run; 0 where each has another.
    pub fn port(&self) -> u16 {
        self.port.as_ref().map_or(0, |reserved| reserved.port)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where a broker that is given no --data-dir keeps what must outlive it.
    pub fn data_dir(&self) -> PathBuf {
        self.directory().join("skein-data")
    }

    pub fn data_file(&self) -> PathBuf {
        self.data_dir().join("data.mdb")
    }

    /// Runs and listens.
    pub fn start(&self, cores: u16, further: &[&str]) -> Broker {
        let mut broker = self.launch(cores, further);
        broker.listens().unwrap_or_else(|problem| panic!("{problem}"));
        broker
    }

    /// Has been started; whether it listens is not waited for.
    pub fn launch(&self, cores: u16, further: &[&str]) -> Broker {
        let cores = cores.to_string();
        self.spawn(&[&["--cores", &cores], further].concat(), None)
    }

    /// The one sentence, whatever the log has said before it, of a start that is refused with exit code 2.
    pub fn refusal(&self, further: &[&str]) -> String {
        self.launch(1, further).refusal()
    }

    fn spawn(&self, arguments: &[&str], open_files: Option<u32>) -> Broker {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let in_directory = |name: &str| self.directory().join(format!("{name}.{run}"));
        let (stdout, stderr, ready_file) = (
            in_directory("stdout"),
            in_directory("stderr"),
            in_directory("ready.json"),
        );
        let mut arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
        if !arguments.iter().any(|argument| argument == "--mqtt-port") {
            arguments.extend(["--mqtt-port".into(), self.port().to_string()]);
        }
        for flag in &Transport::ALL.map(Transport::flag)[1..] {
            if !arguments.contains(flag) {
                arguments.extend([flag.clone(), "0".into()]);
            }
        }
        // Most tests want any topic from anyone; only the platform has a port of its API.
        match arguments.iter().position(|argument| argument == "--access") {
            None => arguments.extend(["--access".into(), "open".into()]),
            Some(flag)
                if arguments[flag + 1] == "platform" && !arguments.iter().any(|argument| argument == API_PORT) =>
            {
                arguments.extend([API_PORT.into(), "0".into()]);
            }
            Some(_) => {}
        }
        arguments.extend(["--ready-file".into(), ready_file.display().to_string()]);
        let process = match open_files {
            None => self.command(),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit} && exec \"$@\""), "sh"]);
                shell.arg(env!("CARGO_BIN_EXE_skein"));
                shell
            }
        }
        .args(&arguments)
        .envs(self.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(self.directory())
        .stdin(std::process::Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
        Broker {
            process,
            directory: Arc::clone(&self.directory),
            outputs: [stdout, stderr],
            ready_file,
            arguments,
            port: self.port(),
            ports: [0; 4],
            api_port: 0,
        }
    }
}

/// A port that nobody but the brokers of one site listens on. It is bound all the time and never listened on: so the kernel
/// gives it to nobody who asks for any port, and lets a socket with SO_REUSEADDR, which the broker's has, listen on it.
struct ReservedPort {
    port: u16,
    _bound: OwnedFd,
}

impl ReservedPort {
    fn any() -> ReservedPort {
        let bound = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseaddr(&bound, true).unwrap();
        bind(&bound, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address: SocketAddr = getsockname(&bound).unwrap().try_into().unwrap();
        ReservedPort {
            port: address.port(),
            _bound: bound,
        }
    }
}

pub struct Broker {
    process: Child,
    /// Goes when the last that needs it does.
    directory: Arc<tempfile::TempDir>,
    /// Standard output and standard error.
    outputs: [PathBuf; 2],
    ready_file: PathBuf,
    arguments: Vec<String>,
    /// The one of MQTT over TCP.
    pub port: u16,
    /// All of them, in the order of [`Transport::ALL`]; 0 where it is off, or the broker is not known to listen.
    ports: [u16; 4],
    /// That of the HTTP API, 0 where nothing listens.
    api_port: u16,
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
        let mut broker = Site::any_port().spawn(arguments, open_files);
        broker.listens().unwrap_or_else(|problem| panic!("{problem}"));
        broker
    }

    /// Waits until it listens, and says why it does not.
    pub fn listens(&mut self) -> Result<(), String> {
        let ready = self.await_ready()?;
        assert_eq!(
            ready["pid"],
            self.process.id(),
            "the ready file names another process: {ready}"
        );
        let port = |name: &str| ready[name].as_u64().unwrap_or(0) as u16;
        self.ports = Transport::ALL.map(|transport| port(transport.name()));
        self.api_port = port("api");
        self.port = self.ports[Transport::Tcp as usize];
        Ok(())
    }

    fn await_ready(&mut self) -> Result<Value, String> {
        let started = Instant::now();
        while started.elapsed() < patience(Duration::from_secs(20)) {
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

    /// Ends by itself with exit code 2 and one sentence, which is returned.
    pub fn refusal(mut self) -> String {
        let status = self.await_end(patience(Duration::from_secs(20)));
        let status = status.expect("a start that is refused ends by itself");
        let written = self.written();
        assert_eq!(status.code(), Some(2), "{status}: {written}");
        let sentences: Vec<_> = written.lines().filter(|line| line.starts_with("skein: ")).collect();
        let [sentence] = sentences[..] else {
            panic!("not one sentence: {written}")
        };
        assert!(written.ends_with(&format!("{sentence}\n")), "{written}");
        assert!(!written.contains("panicked"), "{written}");
        sentence.to_owned()
    }

    pub fn ready_file(&self) -> PathBuf {
        self.ready_file.clone()
    }

    /// Where it listens for this one, which is not off.
    pub fn port_of(&self, transport: Transport) -> u16 {
        let port = self.ports[transport as usize];
        assert!(port > 0, "the ready file names no port for {transport:?}");
        port
    }

    /// Where the HTTP API listens, with `--access platform`.
    pub fn api_port(&self) -> u16 {
        assert!(self.api_port > 0, "the ready file names no port of the API");
        self.api_port
    }

    /// The directory it runs in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The certificate of its own making, for a broker that is given no --data-dir: who has it can verify the broker as
    /// localhost, 127.0.0.1 and ::1.
    pub fn certificate(&self) -> PathBuf {
        self.directory().join("skein-data/tls/cert.pem")
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
        let outputs = self.outputs.iter();
        outputs
            .map(|path| fs::read_to_string(path).unwrap_or_default())
            .collect()
    }

    /// The same once these words are in it: the log is written by a thread of its own.
    pub fn await_written(&self, words: &str) -> String {
        let started = Instant::now();
        loop {
            let written = self.written();
            if written.contains(words) {
                return written;
            }
            assert!(
                started.elapsed() < patience(Duration::from_secs(20)),
                "no `{words}` was written: {written}"
            );
            sleep(Duration::from_millis(20));
        }
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

    /// SIGKILL, wherever it is. Returns what was written.
    pub fn kill(mut self) -> String {
        if let Some(status) = self.process.try_wait().unwrap() {
            panic!("the broker ended by itself, {status}");
        }
        self.signal(Signal::KILL);
        self.process.wait().unwrap();
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
