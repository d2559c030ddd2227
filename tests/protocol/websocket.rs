//! MQTT over WebSocket as a client speaks it: RFC 6455 and nothing of the broker's own codec, which it is to try.
//!
//! Called  by `stream.rs`.
//! Holds   - what is sent varies from send to send and is the same in every run: one frame or several, messages that end
//!           in this send, in a later one or never, empty frames, pings and pongs that nobody asked for in between;
//!         - what arrives is held to the rules: unmasked binary frames of shortest lengths without reserved bits, every
//!           one the whole of a message; the pongs of our pings; one close frame with a code that has a meaning, then
//!           nothing.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};

/// RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const CONTROL_BYTES_MAX: usize = 125;
const CLOSE_CODES: [u16; 7] = [1000, 1001, 1002, 1003, 1007, 1008, 1009];

/// The same throws for the same seed (xorshift).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        // Neighbouring seeds begin alike; zero would stay zero.
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Cuts into `count` pieces anywhere; some may be empty.
    pub fn cut<'b>(&mut self, bytes: &'b [u8], count: usize) -> Vec<&'b [u8]> {
        let mut places: Vec<_> = (1..count).map(|_| self.below(bytes.len() + 1)).collect();
        places.push(bytes.len());
        places.sort_unstable();
        let mut start = 0;
        let pieces = places.into_iter().map(|end| {
            let piece = &bytes[start..end];
            start = end;
            piece
        });
        pieces.collect()
    }
}

pub struct Client {
    dice: Dice,
    key: String,
    is_open: bool,
    /// A message that we have begun has not ended.
    in_message: bool,
    /// Payloads of pings that are not answered, oldest first.
    pings: VecDeque<Vec<u8>>,
    /// The head of the answer, a header or a control frame whose rest has not come.
    partial: Vec<u8>,
    /// Bytes of the payload of a binary frame that are still to come.
    payload_left: u64,
    closed: bool,
    has_said_close: bool,
}

impl Client {
    pub fn new(seed: u64) -> Client {
        let mut dice = Dice::new(seed);
        let nonce = [dice.next().to_be_bytes(), dice.next().to_be_bytes()].concat();
        Client {
            dice,
            key: BASE64.encode(nonce),
            is_open: false,
            in_message: false,
            pings: VecDeque::new(),
            partial: Vec::new(),
            payload_left: 0,
            closed: false,
            has_said_close: false,
        }
    }

    pub fn request(&self, port: u16) -> String {
        format!(
            "GET /mqtt HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n",
            self.key
        )
    }

    /// The server has agreed.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// A close frame has come.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn awaits_pong(&self) -> bool {
        !self.pings.is_empty()
    }

    /// All of it in frames, as many as it pleases.
    pub fn framed(&mut self, payload: &[u8]) -> Vec<u8> {
        let count = match self.dice.below(4) {
            0 | 1 => 1,
            2 => 2,
            _ => 3 + self.dice.below(4),
        };
        let mut frames = Vec::with_capacity(payload.len() + 64);
        for piece in self.dice.cut(payload, count) {
            self.frame(piece, &mut frames);
        }
        frames
    }

    /// In one data frame, which belongs to a message as it comes; perhaps with a ping or a pong before it.
    pub fn frame(&mut self, payload: &[u8], frames: &mut Vec<u8>) {
        if self.dice.one_in(6) {
            let length = match self.dice.below(3) {
                0 => 0,
                1 => CONTROL_BYTES_MAX,
                _ => self.dice.below(CONTROL_BYTES_MAX),
            };
            let payload: Vec<u8> = (0..length).map(|_| self.dice.next() as u8).collect();
            // One pong could not be told from the other.
            if self.dice.one_in(4) || self.pings.contains(&payload) {
                self.append(frames, true, PONG, &payload);
            } else {
                self.append(frames, true, PING, &payload);
                self.pings.push_back(payload);
            }
        }
        let opcode = if self.in_message { CONTINUATION } else { BINARY };
        let is_last = !self.dice.one_in(3);
        self.append(frames, is_last, opcode, payload);
        self.in_message = !is_last;
    }

    /// We send no more.
    pub fn close_frame(&mut self) -> Vec<u8> {
        self.has_said_close = true;
        let mut frame = Vec::new();
        self.append(&mut frame, true, CLOSE, &1000_u16.to_be_bytes());
        frame
    }

    fn append(&mut self, frames: &mut Vec<u8>, is_last: bool, opcode: u8, payload: &[u8]) {
        let mask = (self.dice.next() as u32).to_be_bytes();
        append_masked(frames, is_last, opcode, payload, mask);
    }

    /// Appends the MQTT bytes of what has arrived to `arrived` and what is to be said to it to `answers`. The error
    /// names the rule that the server has broken.
    pub fn take(&mut self, bytes: &[u8], arrived: &mut Vec<u8>, answers: &mut Vec<u8>) -> Result<(), String> {
        let taken = std::mem::take(&mut self.partial);
        let bytes = [&taken, bytes].concat();
        let mut rest = bytes.as_slice();
        if !self.is_open {
            let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else {
                self.partial = bytes;
                return Ok(());
            };
            self.agreed(&rest[..end])?;
            self.is_open = true;
            rest = &rest[end + 4..];
        }
        while !rest.is_empty() {
            if self.closed {
                return Err(format!("{} bytes behind the close frame", rest.len()));
            }
            if self.payload_left > 0 {
                let length = rest.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
                arrived.extend_from_slice(&rest[..length]);
                self.payload_left -= length as u64;
                rest = &rest[length..];
                continue;
            }
            let Some((opcode, length, header_bytes)) = header(rest)? else {
                self.partial = rest.to_vec();
                return Ok(());
            };
            if opcode == BINARY {
                self.payload_left = length;
                rest = &rest[header_bytes..];
                continue;
            }
            let frame_bytes = header_bytes + length as usize;
            if rest.len() < frame_bytes {
                self.partial = rest.to_vec();
                return Ok(());
            }
            let payload = &rest[header_bytes..frame_bytes];
            match opcode {
                PONG => self.answered(payload)?,
                _ => {
                    self.closed = true;
                    closing_code(payload)?;
                    if !self.has_said_close {
                        self.append(answers, true, CLOSE, payload);
                    }
                }
            }
            rest = &rest[frame_bytes..];
        }
        Ok(())
    }

    /// The latest pong answers all pings up to its own (section 5.5.3).
    fn answered(&mut self, payload: &[u8]) -> Result<(), String> {
        match self.pings.iter().position(|ping| ping == payload) {
            Some(index) => {
                self.pings.drain(..=index);
                Ok(())
            }
            None => Err(format!("a pong to no ping: {}", hex::encode(payload))),
        }
    }

    fn agreed(&self, head: &[u8]) -> Result<(), String> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 101 ") {
            return Err(format!("the upgrade was answered with {head:?}"));
        }
        let fields: Vec<_> = lines
            .map(|line| line.split_once(':').ok_or(format!("no header: {line:?}")))
            .collect::<Result<_, _>>()?;
        let fields_of = |name: &str| {
            let named = fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.trim()).collect::<Vec<_>>()
        };
        let accept = BASE64.encode(Sha1::digest(format!("{}{GUID}", self.key)));
        let is_agreed = matches!(fields_of("upgrade")[..], [value] if value.eq_ignore_ascii_case("websocket"))
            && matches!(fields_of("connection")[..], [value] if value.eq_ignore_ascii_case("upgrade"))
            && fields_of("sec-websocket-accept") == [accept.as_str()]
            && fields_of("sec-websocket-protocol") == ["mqtt"]
            && fields_of("sec-websocket-extensions").is_empty();
        if is_agreed {
            Ok(())
        } else {
            Err(format!("the upgrade was answered with {head:?}"))
        }
    }
}

fn append_masked(frames: &mut Vec<u8>, is_last: bool, opcode: u8, payload: &[u8], mask: [u8; 4]) {
    frames.push(if is_last { 0x80 } else { 0 } | opcode);
    match payload.len() {
        length @ 0..=125 => frames.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frames.push(0x80 | 126);
            frames.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frames.push(0x80 | 127);
            frames.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frames.extend_from_slice(&mask);
    frames.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Opcode, length of the payload and bytes of the header; None where it is not whole.
fn header(bytes: &[u8]) -> Result<Option<(u8, u64, usize)>, String> {
    let first = bytes[0];
    if first & 0x70 != 0 {
        return Err(format!("a frame with reserved bits: {first:02x}"));
    }
    if first & 0x80 == 0 {
        return Err(format!("a frame that is not the whole of a message: {first:02x}"));
    }
    let opcode = first & 0x0f;
    if !matches!(opcode, BINARY | PONG | CLOSE) {
        return Err(format!("a frame of a kind that has no business here: {first:02x}"));
    }
    let Some(&second) = bytes.get(1) else {
        return Ok(None);
    };
    if second & 0x80 != 0 {
        return Err("a masked frame from the server".to_owned());
    }
    let (length_bytes, shortest) = match second {
        127 => (8, 0x1_0000),
        126 => (2, 126),
        _ => (0, 0),
    };
    let Some(digits) = bytes.get(2..2 + length_bytes) else {
        return Ok(None);
    };
    let length = match length_bytes {
        0 => u64::from(second),
        _ => digits.iter().fold(0, |length, &digit| length << 8 | u64::from(digit)),
    };
    if length < shortest {
        return Err(format!("a length of {length} in {length_bytes} bytes"));
    }
    if opcode != BINARY && length > CONTROL_BYTES_MAX as u64 {
        return Err(format!("a control frame of {length} bytes"));
    }
    Ok(Some((opcode, length, 2 + length_bytes)))
}

fn closing_code(payload: &[u8]) -> Result<(), String> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return Err("a close frame without a code".to_owned());
    };
    let code = u16::from_be_bytes(*code);
    if !CLOSE_CODES.contains(&code) {
        return Err(format!("a close frame with code {code}"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the reason in the close frame: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Client {
        Client {
            is_open: true,
            pings: VecDeque::from([b"one".to_vec(), b"two".to_vec()]),
            ..Client::new(1)
        }
    }

    /// The rest of a server's answer to the key of RFC 6455 section 1.3.
    const AGREED: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                          Sec-WebSocket-Protocol: mqtt\r\n\r\n";

    fn asked() -> Client {
        Client {
            key: "dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
            ..Client::new(1)
        }
    }

    #[test]
    fn section_5_7_the_frames_of_the_examples() {
        let mut frames = Vec::new();
        append_masked(&mut frames, true, 0x1, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(hex::encode(&frames), "818537fa213d7f9f4d5158");
        for (length, start) in [(125, "82fd"), (126, "82fe007e"), (65_536, "82ff0000000000010000")] {
            frames.clear();
            append_masked(&mut frames, true, BINARY, &vec![0; length], [1, 2, 3, 4]);
            assert!(hex::encode(&frames).starts_with(&format!("{start}01020304")));
        }
    }

    #[test]
    fn whatever_the_framing_the_payload_is_the_same() {
        let payload: Vec<u8> = (0..=255).cycle().take(1_000).collect();
        let mut client = Client::new(3);
        let mut kinds = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let frames = client.framed(&payload);
            let (mut rest, mut unmasked) = (frames.as_slice(), Vec::new());
            while !rest.is_empty() {
                let (length, start) = match rest[1] & 0x7f {
                    126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                    length => (usize::from(length), 2),
                };
                kinds.insert(rest[0]);
                let (mask, body) = rest[start..start + 4 + length].split_at(4);
                if rest[0] & 0x08 == 0 {
                    unmasked.extend(body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
                }
                rest = &rest[start + 4 + length..];
            }
            assert_eq!(unmasked, payload);
        }
        assert_eq!(kinds, [0x00, 0x02, 0x80, 0x82, 0x89, 0x8a].into());
    }

    #[test]
    fn what_a_server_may_say_is_taken_however_it_is_cut() {
        let said = [
            format!("HTTP/1.1 101 Switching Protocols\r\n{AGREED}").as_bytes(),
            b"\x82\x02ab\x82\x7e\x00\x7e",
            &[b'c'; 126],
            b"\x8a\x03two\x82\x00\x82\x01d\x88\x02\x03\xea",
        ]
        .concat();
        for cut in 0..said.len() {
            let mut client = Client {
                pings: VecDeque::from([b"one".to_vec(), b"two".to_vec()]),
                ..asked()
            };
            let (mut arrived, mut answers) = (Vec::new(), Vec::new());
            client.take(&said[..cut], &mut arrived, &mut answers).unwrap();
            client.take(&said[cut..], &mut arrived, &mut answers).unwrap();
            assert_eq!(arrived, [b"ab".as_slice(), &[b'c'; 126], b"d"].concat());
            assert!(client.is_open() && client.is_closed() && !client.awaits_pong());
            assert_eq!(answers[..2], [0x88, 0x82]);
        }
    }

    #[test]
    fn any_departure_of_a_server_fails() {
        for frames in [
            b"\x82\x81\0\0\0\0a".as_slice(),
            b"\x02\x01a",
            b"\x80\x01a",
            b"\x81\x01a",
            b"\x83\x01a",
            b"\xc2\x01a",
            b"\xa2\x01a",
            b"\x92\x01a",
            b"\x89\x00",
            b"\x8a\x05three",
            b"\x8a\x03two\x8a\x03one",
            b"\x82\x7e\x00\x05",
            b"\x82\x7f\0\0\0\0\0\0\xff\xff",
            b"\x8a\x7e\x00\x7e",
            b"\x88\x00",
            b"\x88\x01\x03",
            b"\x88\x02\x03\xed",
            b"\x88\x03\x03\xe8\xff",
            b"\x88\x02\x03\xe8\x82\x01a",
        ] {
            let taken = open().take(frames, &mut Vec::new(), &mut Vec::new());
            assert!(taken.is_err(), "{}", hex::encode(frames));
        }
        let agreed = format!("HTTP/1.1 101 Switching Protocols\r\n{AGREED}");
        for (from, to) in [
            ("101", "200"),
            ("websocket", "h2c"),
            ("Connection: Upgrade", "Connection: close"),
            ("s3pP", "s3pQ"),
            ("mqtt", "mqttv3.1"),
            ("Sec-WebSocket-Protocol: mqtt\r\n", ""),
            ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        ] {
            let head = agreed.replace(from, to);
            let taken = asked().take(head.as_bytes(), &mut Vec::new(), &mut Vec::new());
            assert!(taken.is_err(), "{head}");
        }
    }
}
