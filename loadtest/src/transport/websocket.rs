//! The client's side of WebSocket (RFC 6455): the upgrade request, frames out with a mask, frames in without.
//!
//! Owns    where in the answer, a header or a payload the last bytes ended.
//! Called  by `Layers`, with the bytes of the socket or those TLS gave.
//! Holds   - bytes may be cut anywhere: nothing is lost and nothing is read twice;
//!         - each write is one binary frame; the mask is drawn once for a connection (this is a load test: no proxy that a
//!           predictable mask could deceive stands between);
//!         - a ping is answered by a pong, a close or a text frame is an error.

use anyhow::{Result, bail};

/// The key of every upgrade: the one of RFC 6455 1.3, and what a server must answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const RESPONSE_BYTES_MAX: usize = 8 * 1024;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Debug)]
pub struct WebSocket {
    mask: [u8; 4],
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    /// The answer to the upgrade, so far.
    Response(Vec<u8>),
    Header {
        bytes: [u8; 10],
        len: u8,
    },
    Data {
        left: u64,
    },
    Control {
        opcode: u8,
        len: u8,
        bytes: Vec<u8>,
    },
}

const HEADER: Reading = Reading::Header { bytes: [0; 10], len: 0 };

/// The request of every connection to `path` on `host`.
pub fn upgrade_request(host: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
}

impl WebSocket {
    /// One whose upgrade request was sent.
    pub fn new(mask: u32) -> WebSocket {
        WebSocket {
            mask: mask.to_ne_bytes(),
            reading: Reading::Response(Vec::new()),
        }
    }

    /// The server has agreed.
    pub fn is_open(&self) -> bool {
        !matches!(self.reading, Reading::Response(_))
    }

    /// One binary frame of the two parts.
    pub fn put(&self, first: &[u8], second: &[u8], out: &mut Vec<u8>) {
        self.frame(BINARY, first, second, out);
    }

    fn frame(&self, opcode: u8, first: &[u8], second: &[u8], out: &mut Vec<u8>) {
        let len = first.len() + second.len();
        out.reserve(len + 14);
        out.push(0x80 | opcode);
        match len {
            0..=125 => out.push(0x80 | len as u8),
            126..=0xFFFF => {
                out.push(0x80 | 126);
                out.extend((len as u16).to_be_bytes());
            }
            _ => {
                out.push(0x80 | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        out.extend(self.mask);
        let payload_at = out.len();
        out.extend_from_slice(first);
        out.extend_from_slice(second);
        let (words, rest) = out[payload_at..].as_chunks_mut::<4>();
        let mask = u32::from_ne_bytes(self.mask);
        for word in words {
            *word = (u32::from_ne_bytes(*word) ^ mask).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(self.mask) {
            *byte ^= mask;
        }
    }

    /// Bytes of the server in; payloads to `plain`, what must be answered to `out`. An error completes the sentence
    /// "ADDRESS ...".
    pub fn take(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        while !bytes.is_empty() {
            match &mut self.reading {
                Reading::Response(response) => {
                    let before = response.len();
                    response.extend_from_slice(bytes);
                    let from = before.saturating_sub(3);
                    match response[from..].windows(4).position(|window| window == b"\r\n\r\n") {
                        Some(at) => {
                            let end = from + at + 4;
                            check_response(&response[..end])?;
                            bytes = &bytes[end - before..];
                            self.reading = HEADER;
                        }
                        None if response.len() > RESPONSE_BYTES_MAX => {
                            bail!("answered the WebSocket upgrade with more than {RESPONSE_BYTES_MAX} bytes")
                        }
                        None => return Ok(()),
                    }
                }
                Reading::Header { bytes: header, len } => {
                    header[*len as usize] = bytes[0];
                    *len += 1;
                    bytes = &bytes[1..];
                    let wanted = match (*len, header[1] & 0x7F) {
                        (1, _) => 2,
                        (_, 126) => 4,
                        (_, 127) => 10,
                        _ => 2,
                    };
                    if *len == wanted {
                        self.reading = after_header(header)?;
                        self.end_control(out)?;
                    }
                }
                Reading::Data { left } => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    plain.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    *left -= n as u64;
                    if *left == 0 {
                        self.reading = HEADER;
                    }
                }
                Reading::Control { len, bytes: got, .. } => {
                    let n = (*len as usize - got.len()).min(bytes.len());
                    got.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.end_control(out)?;
                }
            }
        }
        Ok(())
    }

    /// Acts on a control frame that is whole.
    fn end_control(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let Reading::Control { opcode, len, bytes } = &mut self.reading else {
            return Ok(());
        };
        if bytes.len() < *len as usize {
            return Ok(());
        }
        let (opcode, bytes) = (*opcode, std::mem::take(bytes));
        self.reading = HEADER;
        match (opcode, bytes.as_slice()) {
            (PING, payload) => self.frame(PONG, payload, &[], out),
            (PONG, _) => {}
            (_, [high, low, reason @ ..]) => bail!(
                "closed the WebSocket with code {}{}{}",
                u16::from_be_bytes([*high, *low]),
                if reason.is_empty() { "" } else { ": " },
                String::from_utf8_lossy(reason)
            ),
            _ => bail!("closed the WebSocket"),
        }
        Ok(())
    }
}

fn after_header(header: &[u8; 10]) -> Result<Reading> {
    let opcode = header[0] & 0x0F;
    if header[0] & 0x70 != 0 || header[1] & 0x80 != 0 {
        bail!("sent a WebSocket frame with reserved bits or a mask");
    }
    let left = match header[1] {
        126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
        127 => u64::from_be_bytes([2, 3, 4, 5, 6, 7, 8, 9].map(|i: usize| header[i])),
        len => u64::from(len),
    };
    match opcode {
        CONTINUATION | BINARY if left == 0 => Ok(HEADER),
        CONTINUATION | BINARY => Ok(Reading::Data { left }),
        CLOSE | PING | PONG if left <= 125 => Ok(Reading::Control {
            opcode,
            len: left as u8,
            bytes: Vec::new(),
        }),
        TEXT => bail!("sent a WebSocket text frame, which MQTT forbids"),
        _ => bail!("sent a WebSocket frame of opcode {opcode} with {left} bytes"),
    }
}

fn check_response(response: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(response);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        bail!("answered the WebSocket upgrade with {status:?} (is --ws-path right?)");
    }
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let value = |name: &str| {
        let found = headers.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    };
    if value("sec-websocket-accept") != Some(ACCEPT) {
        bail!("answered the WebSocket upgrade with a wrong Sec-WebSocket-Accept");
    }
    match value("sec-websocket-protocol") {
        Some("mqtt") => Ok(()),
        Some(other) => bail!("agreed to subprotocol {other:?} where mqtt was asked for"),
        None => bail!("agreed to no subprotocol where mqtt was asked for"),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: mqtt\r\n\r\n";

    /// A frame as servers send it.
    pub fn server_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first_byte];
        match payload.len() {
            len @ 0..=125 => bytes.push(len as u8),
            len @ 126..=0xFFFF => {
                bytes.push(126);
                bytes.extend((len as u16).to_be_bytes());
            }
            len => {
                bytes.push(127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    fn opened() -> WebSocket {
        let mut websocket = WebSocket::new(0x1234_5678);
        websocket.take(RESPONSE, &mut Vec::new(), &mut Vec::new()).unwrap();
        assert!(websocket.is_open());
        websocket
    }

    #[test]
    fn bytes_may_be_cut_anywhere() {
        let mut stream = RESPONSE.to_vec();
        let mut sent = Vec::new();
        for (first_byte, len) in [
            (0x82, 5),
            (0x02, 126),
            (0x00, 0),
            (0x80, 300),
            (0x89, 3),
            (0x82, 70_000),
            (0x8A, 0),
            (0x82, 1),
        ] {
            let payload: Vec<u8> = (0..len).map(|i: u32| (i * 7 + len) as u8).collect();
            stream.extend(server_frame(first_byte, &payload));
            if first_byte & 8 == 0 {
                sent.extend(payload);
            }
        }
        let mut pong = Vec::new();
        opened().frame(PONG, &[3, 10, 17], &[], &mut pong);
        for chunk in [1, 2, 3, 5, 7, 64, 1000, stream.len()] {
            let mut websocket = WebSocket::new(0x1234_5678);
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            for bytes in stream.chunks(chunk) {
                websocket.take(bytes, &mut plain, &mut out).unwrap();
            }
            assert!(plain == sent && out == pong, "chunks of {chunk}");
        }
    }

    #[test]
    fn a_frame_out_is_masked_and_its_length_in_the_shortest_form() {
        for (len, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload: Vec<u8> = (0..len).map(|i: u32| i as u8).collect();
            let (first, second) = payload.split_at(payload.len() / 3);
            let mut out = Vec::new();
            opened().put(first, second, &mut out);
            assert_eq!(
                (out[0], out[1] & 0x80, out.len()),
                (0x82, 0x80, header + 4 + payload.len())
            );
            let mask = &out[header..header + 4];
            let plain: Vec<u8> = out[header + 4..]
                .iter()
                .zip(mask.iter().cycle())
                .map(|(b, m)| b ^ m)
                .collect();
            assert!(plain == payload);
        }
    }

    #[test]
    fn what_a_server_may_not_send_is_an_error() {
        let cases = [
            (
                server_frame(0x88, &[3, 0xE8, b'b', b'y', b'e']),
                "closed the WebSocket with code 1000: bye",
            ),
            (server_frame(0x88, &[]), "closed the WebSocket"),
            (
                server_frame(0x81, b"x"),
                "sent a WebSocket text frame, which MQTT forbids",
            ),
            (
                vec![0x82, 0x81, 0, 0, 0, 0, 0],
                "sent a WebSocket frame with reserved bits or a mask",
            ),
            (
                server_frame(0x83, b"x"),
                "sent a WebSocket frame of opcode 3 with 1 bytes",
            ),
        ];
        for (bytes, wanted) in cases {
            let error = opened().take(&bytes, &mut Vec::new(), &mut Vec::new()).unwrap_err();
            assert_eq!(error.to_string(), wanted);
        }
    }

    #[test]
    fn a_refused_upgrade_is_told_with_its_status() {
        let text = String::from_utf8(RESPONSE.to_vec()).unwrap();
        let cases = [
            (
                "HTTP/1.1 404 Not Found\r\n\r\n".to_string(),
                "answered the WebSocket upgrade with \"HTTP/1.1 404 Not Found\" (is --ws-path right?)",
            ),
            (
                text.replace("xOo=", "xOx="),
                "answered the WebSocket upgrade with a wrong Sec-WebSocket-Accept",
            ),
            (
                text.replace(": mqtt", ": amqp"),
                "agreed to subprotocol \"amqp\" where mqtt was asked for",
            ),
            (
                text.replace("-protocol", "-other"),
                "agreed to no subprotocol where mqtt was asked for",
            ),
        ];
        for (response, wanted) in cases {
            let error = WebSocket::new(1)
                .take(response.as_bytes(), &mut Vec::new(), &mut Vec::new())
                .unwrap_err();
            assert_eq!(error.to_string(), wanted);
        }
    }
}
