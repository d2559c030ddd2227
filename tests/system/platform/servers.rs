//! Who is called by the broker: a server that webhooks go to, and a mail relay.
//!
//! Owns    [`Hook`] and [`Relay`], each on a free port of 127.0.0.1.
//! Called  by `events` and `acceptance`.
//! Holds   - every request and every mail is kept with the time it came.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fixture::eventually;

#[derive(Clone, Debug)]
pub struct Request {
    pub at: Instant,
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What a request is answered with.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    /// 302 to there.
    Redirect(String),
    /// 200 after so long.
    Late(Duration),
}

pub struct Hook {
    pub port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Hook {
    /// Answers the nth request, from 0, as this says.
    pub fn start(answer: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Hook {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, kept) = (Arc::new(answer), Arc::clone(&seen));
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (answer, kept) = (Arc::clone(&answer), Arc::clone(&kept));
                thread::spawn(move || {
                    let mut reader = BufReader::new(socket.try_clone().unwrap());
                    while let Some(request) = read_request(&mut reader) {
                        let nth = {
                            let mut kept = kept.lock().unwrap();
                            kept.push(request.clone());
                            kept.len() - 1
                        };
                        if write_answer(&socket, answer(nth, &request)).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Hook { port, seen }
    }

    /// 200 to everybody.
    pub fn content() -> Hook {
        Hook::start(|_, _| Answer::Status(200))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// As soon as there are so many; more is a failure.
    pub fn await_requests(&self, count: usize) -> Vec<Request> {
        eventually(&format!("{count} requests come, not {}", self.count()), || {
            self.count() >= count
        });
        let requests = self.requests();
        assert_eq!(requests.len(), count, "{requests:?}");
        requests
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let at = Instant::now();
    Some(Request {
        at,
        method,
        path,
        headers,
        body,
    })
}

fn write_answer(mut socket: &TcpStream, answer: Answer) -> std::io::Result<()> {
    match answer {
        Answer::Status(status) => write!(socket, "HTTP/1.1 {status} As told\r\nContent-Length: 0\r\n\r\n"),
        Answer::Redirect(to) => {
            write!(
                socket,
                "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
            )
        }
        Answer::Late(span) => {
            thread::sleep(span);
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        }
    }
}

#[derive(Clone, Debug)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    /// Head and body as they came.
    pub text: String,
}

/// Speaks as much SMTP as is needed to take mails.
pub struct Relay {
    pub port: u16,
    mails: Arc<Mutex<Vec<Mail>>>,
}

impl Relay {
    pub fn start() -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mails: Arc<Mutex<Vec<Mail>>> = Arc::default();
        let kept = Arc::clone(&mails);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let kept = Arc::clone(&kept);
                thread::spawn(move || take_mails(&socket, &kept));
            }
        });
        Relay { port, mails }
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap().clone()
    }
}

fn take_mails(mut socket: &TcpStream, mails: &Mutex<Vec<Mail>>) -> Option<()> {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    socket.write_all(b"220 relay ready\r\n").ok()?;
    let (mut from, mut to) = (String::new(), Vec::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        let address = || line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        let answer = match line.to_uppercase() {
            command if command.starts_with("EHLO") => "250-relay\r\n250 8BITMIME\r\n",
            command if command.starts_with("MAIL FROM:") => {
                from = address();
                "250 ok\r\n"
            }
            command if command.starts_with("RCPT TO:") => {
                to.push(address());
                "250 ok\r\n"
            }
            command if command.starts_with("DATA") => {
                socket.write_all(b"354 go on\r\n").ok()?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") {
                    reader.read_line(&mut text).ok()?;
                }
                let (from, to) = (std::mem::take(&mut from), std::mem::take(&mut to));
                mails.lock().unwrap().push(Mail { from, to, text });
                "250 taken\r\n"
            }
            command if command.starts_with("QUIT") => "221 bye\r\n",
            _ => "250 ok\r\n",
        };
        socket.write_all(answer.as_bytes()).ok()?;
    }
}
