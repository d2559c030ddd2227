//! Calls of the API as applications make them: by curl, which is told method, path, headers and body.
//!
//! Owns    [`Api`], where to call and with which headers; [`Reply`], what came.
//! Called  by every theme of the platform's tests.
//! Holds   - a call that has no whole answer within a generous time fails the test.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::patience;
use crate::clients::INSTALL;

/// An immutable description: adding a header makes another one.
#[derive(Clone, Debug)]
pub struct Api {
    origin: String,
    certificate: Option<PathBuf>,
    headers: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Api {
    pub fn at(port: u16) -> Api {
        Api {
            origin: format!("http://127.0.0.1:{port}"),
            certificate: None,
            headers: Vec::new(),
        }
    }

    /// The same over TLS, the server verified by this.
    pub fn tls(port: u16, certificate: PathBuf) -> Api {
        Api {
            origin: format!("https://127.0.0.1:{port}"),
            certificate: Some(certificate),
            headers: Vec::new(),
        }
    }

    pub fn header(&self, name: &str, value: impl AsRef<[u8]>) -> Api {
        let mut with = self.clone();
        with.headers.push((name.to_owned(), value.as_ref().to_vec()));
        with
    }

    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, None)
    }

    pub fn post(&self, path: &str, body: impl ToString) -> Reply {
        self.call("POST", path, Some(body.to_string().as_bytes()))
    }

    pub fn put(&self, path: &str, body: impl ToString) -> Reply {
        self.call("PUT", path, Some(body.to_string().as_bytes()))
    }

    pub fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, None)
    }

    pub fn call(&self, method: &str, path: &str, body: Option<&[u8]>) -> Reply {
        let mut command = self.curl();
        command.args(["-i", "-X", method]);
        if body.is_some() {
            command.args(["--data-binary", "@-", "-H", "Expect:"]);
        }
        command.arg(format!("{}{path}", self.origin));
        let mut replies = Reply::parse(run(command, body.unwrap_or_default()));
        assert_eq!(replies.len(), 1, "one call, one answer: {replies:?}");
        replies.remove(0)
    }

    /// The same GET so many times on one connection, one right after another.
    pub fn get_times(&self, path: &str, times: usize) -> Vec<Reply> {
        let mut command = self.curl();
        command.arg("-i");
        command.args(vec![format!("{}{path}", self.origin); times]);
        Reply::parse(run(command, &[]))
    }

    /// The same POST so many times on one connection.
    pub fn post_times(&self, path: &str, body: &str, times: usize) -> Vec<Reply> {
        let mut command = self.curl();
        command.args(["-i", "-X", "POST", "--data-binary", body]);
        command.args(vec![format!("{}{path}", self.origin); times]);
        Reply::parse(run(command, &[]))
    }

    fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sS", "--globoff", "--path-as-is", "--noproxy", "*", "--max-time", "60"]);
        if let Some(certificate) = &self.certificate {
            command.arg("--cacert").arg(certificate);
        }
        for (name, value) in &self.headers {
            // A header without a value is written so.
            let end = if value.is_empty() { ";" } else { ": " };
            let header = [format!("{name}{end}").as_bytes(), value].concat();
            command.arg("-H").arg(OsString::from_vec(header));
        }
        command
    }
}

/// One connection for many calls, one after another: where starting curl for each would take too long.
pub struct Line {
    port: u16,
    socket: TcpStream,
    head: String,
    used: Instant,
}

/// A connection that has been idle for so long the server may be about to close.
const IDLE: Duration = Duration::from_secs(3);

impl Line {
    /// These headers go with every call.
    pub fn open(port: u16, headers: &[(&str, &str)]) -> io::Result<Line> {
        let head = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        Ok(Line {
            port,
            socket: dial(port)?,
            head,
            used: Instant::now(),
        })
    }

    pub fn call(&mut self, method: &str, path: &str, further: &[(&str, &str)], body: &str) -> Reply {
        let reply = self.try_call(method, path, further, body);
        reply.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// For a server that may die meanwhile.
    pub fn try_call(&mut self, method: &str, path: &str, further: &[(&str, &str)], body: &str) -> io::Result<Reply> {
        let further: String = further
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n",
            body.len()
        );
        let request = [&head, &self.head, &further, "\r\n", body].concat();
        if self.used.elapsed() > IDLE {
            self.socket = dial(self.port)?;
        }
        self.socket.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        loop {
            let mut more = [0; 16 * 1024];
            let count = match self.socket.read(&mut more) {
                // A process that another thread has started has ended.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend(&more[..count]);
            let Some(end) = find(&bytes, b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.split("content-length:").nth(1).expect("an answer has its length");
            let length: usize = length.split("\r\n").next().unwrap().trim().parse().unwrap();
            if bytes.len() >= end + 4 + length {
                self.used = Instant::now();
                return Ok(Reply::parse(bytes).remove(0));
            }
        }
    }
}

fn dial(port: u16) -> io::Result<TcpStream> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(patience(Duration::from_secs(20))))?;
    Ok(socket)
}

fn run(mut command: Command, input: &[u8]) -> Vec<u8> {
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = piped
        .spawn()
        .unwrap_or_else(|error| panic!("curl cannot be started ({error}): {INSTALL}"));
    // It may have seen the answer before it has read all of this.
    let _ = process.stdin.take().unwrap().write_all(input);
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl ends with {}: {said}", output.status);
    output.stdout
}

impl Reply {
    /// Answers after one another, each with its length in its head.
    pub fn parse(mut bytes: Vec<u8>) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !bytes.is_empty() {
            let end =
                find(&bytes, b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(&bytes)));
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.split("\r\n");
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            let headers = lines.map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_lowercase(), value.trim().to_owned())
            });
            let headers: Vec<_> = headers.collect();
            let length = headers.iter().find(|(name, _)| name == "content-length");
            let length = length.map_or(bytes.len() - end - 4, |(_, length)| length.parse().unwrap());
            replies.push(Reply {
                status,
                headers,
                body: bytes[end + 4..end + 4 + length].to_vec(),
            });
            bytes.drain(..end + 4 + length);
        }
        replies
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}: {}", self.text()))
    }

    /// What can be compared with JSON in any case.
    pub fn json_or_text(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| Value::String(self.text()))
    }

    /// Itself, if this is its status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{:?}: {}", self.headers, self.text());
        self
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
