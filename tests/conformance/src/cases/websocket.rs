//! MQTT over WebSocket, where the flags tell of a port.
//!
//! Holds   - just enough of RFC 6455 to say what the statements are about: masked frames out, whole frames in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::bench::{Bench, Failure, Outcome, Stop, each, skip};
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(&["MQTT-6.0.0-1"], "a text frame", text),
    case(
        &["MQTT-6.0.0-2"],
        "packets over several frames, several packets in one frame",
        unaligned,
    ),
    case(&["MQTT-6.0.0-4"], "mqtt is selected, also among others", selected),
];

const BINARY: u8 = 0x82;
const TEXT: u8 = 0x81;

struct WebSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
    headers: String,
    deadline: Instant,
}

fn failed<T>(sent: &str, expected: &str, received: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(vec![Failure {
        variant: String::new(),
        sent: sent.into(),
        expected: expected.into(),
        received: received.into(),
    }]))
}

impl WebSocket {
    /// Shakes hands, offering these sub-protocols.
    fn open(bench: &Bench, offer: &str) -> Outcome<WebSocket> {
        let Some(address) = bench.settings.websocket else {
            return skip("no port of MQTT over WebSocket is known; --ws-port names one");
        };
        let timeout = bench.settings.timeout;
        let sent = "the handshake of a WebSocket";
        let opened = TcpStream::connect_timeout(&address, timeout);
        let mut socket = match opened {
            Ok(stream) => WebSocket {
                stream,
                buffer: Vec::new(),
                headers: String::new(),
                deadline: Instant::now() + timeout,
            },
            Err(error) => return failed("a TCP connection", "it is accepted", error.to_string()),
        };
        let path = &bench.settings.websocket_path;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {offer}\r\n\r\n"
        );
        socket.send(request.as_bytes());
        let end = loop {
            if let Some(at) = socket.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if !socket.read() {
                return failed(sent, "an answer", String::from_utf8_lossy(&socket.buffer));
            }
        };
        socket.headers = String::from_utf8_lossy(&socket.buffer[..end]).into_owned();
        socket.buffer.drain(..end + 4);
        if !socket.headers.starts_with("HTTP/1.1 101") {
            return failed(sent, "HTTP/1.1 101", socket.headers.lines().next().unwrap_or_default());
        }
        Ok(socket)
    }

    /// An end that the broker has closed shows in what is read next.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// A masked frame: with a mask of zeros what is sent is what is meant.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len();
        let mut bytes = vec![first];
        match u8::try_from(length) {
            Ok(length @ 0..=125) => bytes.push(0x80 | length),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let bytes = WebSocket::frame(first, payload);
        self.send(&bytes);
    }

    /// More from the socket; false at its end, and when nothing comes in time.
    fn read(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut bytes = [0; 4096];
        let is_late = left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err();
        match self.stream.read(&mut bytes) {
            Ok(length) if length > 0 && !is_late => {
                self.buffer.extend(&bytes[..length]);
                true
            }
            _ => false,
        }
    }

    /// The payload of the next frame of data; `None` when the broker ends it, or says nothing in time.
    fn data(&mut self) -> Option<Vec<u8>> {
        loop {
            if let [first, length, rest @ ..] = &self.buffer[..] {
                let (start, length) = match (length, rest) {
                    (126, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
                    (0..=125, _) => (2, usize::from(*length)),
                    _ => (usize::MAX / 2, 0),
                };
                if self.buffer.len() >= start + length {
                    let (first, payload) = (*first, self.buffer[start..start + length].to_vec());
                    self.buffer.drain(..start + length);
                    match first & 0x0F {
                        0..=2 => return Some(payload),
                        8 => return None,
                        _ => continue,
                    }
                }
            }
            if !self.read() {
                return None;
            }
        }
    }

    /// So many bytes of MQTT, from however many frames.
    fn expect(&mut self, wanted: &[u8], sent: &str) -> Outcome {
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            match self.data() {
                Some(payload) => got.extend(payload),
                None => return failed(sent, &show(wanted), format!("{}, then the end", show(&got))),
            }
        }
        if got == wanted {
            Ok(())
        } else {
            failed(sent, &show(wanted), show(&got))
        }
    }

    /// The end comes in time: a close frame, or that of the socket.
    fn is_closed(&mut self) -> bool {
        while self.data().is_some() {}
        Instant::now() < self.deadline
    }
}

fn text(bench: &Bench) -> Outcome {
    let mut socket = WebSocket::open(bench, "mqtt")?;
    socket.send_frame(BINARY, &bench.hello("a").bytes());
    socket.expect(&[CONNACK, 2, 0, 0], "CONNECT")?;
    socket.send_frame(TEXT, &PINGREQ.map(|byte| byte & 0x7F));
    if socket.is_closed() {
        Ok(())
    } else {
        failed("a text frame", "the connection is closed", "nothing")
    }
}

fn unaligned(bench: &Bench) -> Outcome {
    let hello = bench.hello("a").bytes();
    let ways = [
        "a byte in each frame",
        "two packets in one frame",
        "a packet and a half",
    ];
    each(ways.into_iter().zip(0..), |way| {
        let mut socket = WebSocket::open(bench, "mqtt")?;
        let both = [&hello[..], &PINGREQ].concat();
        match way {
            0 => both.iter().for_each(|byte| socket.send_frame(BINARY, &[*byte])),
            1 => socket.send_frame(BINARY, &both),
            _ => {
                let (head, tail) = both.split_at(hello.len() + 1);
                socket.send_frame(BINARY, head);
                socket.send_frame(BINARY, tail);
            }
        }
        socket.expect(&[CONNACK, 2, 0, 0, PINGRESP, 0], "CONNECT and PINGREQ")
    })
}

fn selected(bench: &Bench) -> Outcome {
    each(
        ["mqtt", "other, mqtt", "mqtt, mqttv3.1"].map(|offer| (offer, offer)),
        |offer| {
            let socket = WebSocket::open(bench, offer)?;
            let header = socket.headers.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("sec-websocket-protocol")
                    .then(|| value.trim().to_owned())
            });
            match header.as_deref() {
                Some("mqtt") => Ok(()),
                other => failed(offer, "Sec-WebSocket-Protocol: mqtt", other.unwrap_or("no such header")),
            }
        },
    )
}
