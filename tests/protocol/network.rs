//! Conversations over TCP: the broker as a process, and the driver that talks to it.
//!
//! Called  by `main.rs`.
//! Holds   - a broker runs in a temporary directory of its own and is ended with its `Broker`;
//!         - nobody blocks: while one connection is written to, what arrives on the others is read, as a broker that
//!           holds a publisher back for a slow subscriber would otherwise wait for us for ever.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::runner::{Driver, Heard};
use crate::script::Control;

/// Long: the machine may be busy. It is only ever waited out by a conversation that fails.
const PATIENCE: Duration = Duration::from_secs(8);
const QUIET: Duration = Duration::from_millis(120);
const START_TIMEOUT: Duration = Duration::from_secs(20);

pub struct Broker {
    pub address: SocketAddr,
    pid: Option<u32>,
    child: Option<Child>,
    directory: Option<tempfile::TempDir>,
}

impl Broker {
    /// A broker that someone else has started.
    pub fn at(address: &str) -> Result<Broker, String> {
        let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
        Ok(Broker {
            address,
            pid: None,
            child: None,
            directory: None,
        })
    }

    pub fn start(flags: &[String]) -> Result<Broker, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let ready_file = directory.path().join("ready.json");
        let log = std::fs::File::create(directory.path().join("log")).map_err(|error| error.to_string())?;
        let log_too = log.try_clone().map_err(|error| error.to_string())?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_skein"))
            .current_dir(directory.path())
            // Settings of the broker may come from the environment; here none does.
            .env_clear()
            .args([
                "--mqtt-port",
                "0",
                "--mqtts-port",
                "off",
                "--ws-port",
                "off",
                "--wss-port",
                "off",
            ])
            .arg("--ready-file")
            .arg(&ready_file)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(|error| format!("the broker does not start: {error}"))?;
        let deadline = Instant::now() + START_TIMEOUT;
        let port = loop {
            let ready = std::fs::read_to_string(&ready_file).unwrap_or_default();
            if let Ok(ready) = serde_json::from_str::<serde_json::Value>(&ready) {
                break ready["mqtt"].as_u64().and_then(|port| u16::try_from(port).ok());
            }
            let ended = child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
                // It may have ended by itself: then there is nothing left to end.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the broker {flags:?} is not ready ({ended:?}): {log}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let pid = Some(child.id());
        let port = port.ok_or("the ready file names no mqtt port")?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Broker {
            address,
            pid,
            child: Some(child),
            directory: Some(directory),
        })
    }

    /// What it said before it ended, where it ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        let log = self.directory.as_ref().map(|directory| directory.path().join("log"));
        let log = log
            .and_then(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default();
        Some(format!("the broker ended by itself, {status}: {log}"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; `ended` reports that.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub struct Tcp<'a> {
    broker: &'a Broker,
    streams: Vec<Stream>,
}

struct Stream {
    socket: Option<TcpStream>,
    /// The socket will give no more.
    closed: bool,
    /// Arrived while another connection was being written to.
    arrived: Vec<u8>,
}

impl<'a> Tcp<'a> {
    pub fn new(broker: &'a Broker) -> Tcp<'a> {
        Tcp {
            broker,
            streams: Vec::new(),
        }
    }

    /// Waits for any connection to be readable, or for `writer` to be writable; then reads what there is.
    fn pump(&mut self, writer: Option<usize>, wait: Duration) {
        let mut polled = Vec::new();
        let mut fds = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            let Some(socket) = &stream.socket else { continue };
            let mut flags = if stream.closed {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            if writer == Some(index) {
                flags |= PollFlags::OUT;
            }
            if !flags.is_empty() {
                polled.push(index);
                fds.push(PollFd::new(socket, flags));
            }
        }
        let wait = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        // An interrupted wait is a short one; the callers look at the clock.
        let _ = poll(&mut fds, Some(&wait));
        drop(fds);
        let mut scratch = [0; 64 * 1024];
        for index in polled {
            let stream = &mut self.streams[index];
            let Some(socket) = &mut stream.socket else { continue };
            while !stream.closed {
                match socket.read(&mut scratch) {
                    Ok(0) => stream.closed = true,
                    Ok(length) => stream.arrived.extend_from_slice(&scratch[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // A reset ends a connection as a FIN does.
                    Err(_) => stream.closed = true,
                }
            }
        }
    }

    fn write(&mut self, connection: usize, mut bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() && Instant::now() < deadline {
            let Some(socket) = &mut self.streams[connection].socket else {
                return;
            };
            match socket.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.pump(Some(connection), Duration::from_millis(100));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The broker no longer listens. Whether it should have is for the next expectation to say.
                Err(_) => return,
            }
        }
    }
}

impl Driver for Tcp<'_> {
    fn open(&mut self) -> usize {
        let socket = TcpStream::connect(self.broker.address).ok();
        if let Some(socket) = &socket {
            let _ = socket.set_nodelay(true);
            socket
                .set_nonblocking(true)
                .expect("a connected socket can be set non-blocking");
        }
        // A broker that does not accept looks like one that closes at once.
        self.streams.push(Stream {
            closed: socket.is_none(),
            socket,
            arrived: Vec::new(),
        });
        self.streams.len() - 1
    }

    fn send(&mut self, connection: usize, bytes: &[u8], chunk: Option<usize>) {
        let Some(chunk) = chunk else {
            return self.write(connection, bytes);
        };
        for piece in bytes.chunks(chunk) {
            self.write(connection, piece);
            // Long enough for the broker to see most pieces apart.
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    fn end(&mut self, connection: usize, how: Control) {
        let stream = &mut self.streams[connection];
        if how == Control::Shutdown {
            if let Some(socket) = &stream.socket {
                let _ = socket.shutdown(Shutdown::Write);
            }
            return;
        }
        let Some(socket) = stream.socket.take() else { return };
        if how == Control::Reset {
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket can linger");
        } else {
            // Unread bytes would turn the FIN of `close` into a reset.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn receive(&mut self, connection: usize, into: &mut Vec<u8>, wait: Duration) -> Heard {
        let deadline = Instant::now() + wait;
        loop {
            self.pump(None, Duration::ZERO);
            let stream = &mut self.streams[connection];
            if !stream.arrived.is_empty() {
                into.append(&mut stream.arrived);
                return Heard::Bytes;
            }
            if stream.closed {
                return Heard::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Silence;
            }
            self.pump(None, left);
        }
    }

    fn pass(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn patience(&self) -> (Duration, Duration) {
        // A broker of somebody else's is expected to differ here and there, and each time this is waited out.
        (
            if self.broker.child.is_some() {
                PATIENCE
            } else {
                PATIENCE / 4
            },
            QUIET,
        )
    }

    fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.broker.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kibibytes| kibibytes * 1024)
    }
}
