//! The server's side of RFC 6455: the opening request byte by byte, and it and frames against second readers, which have them
//! whole.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use fuzz::limits::{WEBSOCKET_FRAME_BYTES_MAX, WEBSOCKET_HANDSHAKE_BYTES_MAX, WEBSOCKET_HEADERS_MAX};
use fuzz::websocket::{AllowedOrigins, Decoder, End, Handshake, fuzz_websocket, handshake};

pub fn check(bytes: &[u8]) {
    fuzz_websocket(bytes);
    requests(bytes);
    frames(bytes);
}

const ORIGIN: &str = "https://example.org";

/// A verdict on a request falls once, and no later byte changes it; it is that of the second reader.
fn requests(bytes: &[u8]) {
    let origins = AllowedOrigins::parse(&[ORIGIN]).expect("an origin");
    let whole = handshake(bytes, &origins, true);
    if let Some(request) = Request::read(bytes) {
        match (&whole, request.answer()) {
            (Handshake::Accepted { consumed, response }, Some(answer)) => {
                assert_eq!((*consumed, response.as_slice()), (request.length, answer.as_bytes()));
            }
            (Handshake::Refused { .. }, None) => {}
            (found, answer) => panic!("{found:?} where there must be {answer:?}"),
        }
    }
    // It reads from the start each time: the cuts of a long request are spread over it.
    let step = (bytes.len() / 256).max(1);
    let mut has_fallen = false;
    for length in (0..=bytes.len()).step_by(step) {
        let found = handshake(&bytes[..length], &origins, true);
        if has_fallen {
            assert_eq!(found, whole, "with {length} bytes");
        }
        has_fallen |= found != Handshake::Incomplete;
        match found {
            Handshake::Incomplete => assert!(length < WEBSOCKET_HANDSHAKE_BYTES_MAX),
            Handshake::Accepted { consumed, response } => {
                assert!(consumed <= length);
                assert!(response.starts_with(b"HTTP/1.1 101 ") && response.ends_with(b"\r\n\r\n"));
            }
            Handshake::Refused { response, .. } => assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 ")),
        }
    }
}

/// A request that is whole, and as plain as clients write it: of others this reader says nothing.
struct Request<'b> {
    method: &'b str,
    path: &'b str,
    headers: Vec<(&'b str, &'b str)>,
    /// Of the head.
    length: usize,
}

impl<'b> Request<'b> {
    fn read(bytes: &'b [u8]) -> Option<Request<'b>> {
        let length = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..length - 4]).ok()?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version, end) = (words.next()?, words.next()?, words.next()?, words.next());
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let is_target = target.starts_with('/')
            && target[1..]
                .split(['/', '?', '=', '.'])
                .all(|part| part.is_empty() || is_word(part));
        let headers: Vec<_> = lines.map(|line| line.split_once(':')).collect::<Option<_>>()?;
        let is_plain =
            |(name, value): &(&str, &str)| is_word(name) && value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let is_all_plain =
            is_word(method) && is_target && version == "HTTP/1.1" && end.is_none() && headers.iter().all(is_plain);
        (is_all_plain && length <= WEBSOCKET_HANDSHAKE_BYTES_MAX && headers.len() <= WEBSOCKET_HEADERS_MAX).then(|| {
            Request {
                method,
                path: target.split('?').next().unwrap_or_default(),
                headers,
                length,
            }
        })
    }

    fn values(&self, name: &str) -> Vec<&'b str> {
        let named = self.headers.iter().filter(|header| header.0.eq_ignore_ascii_case(name));
        named.map(|header| header.1.trim()).collect()
    }

    fn has(&self, name: &str, word: &str) -> bool {
        let values = self.values(name);
        values
            .iter()
            .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
    }

    /// Section 4.2; `None`: it must be refused.
    fn answer(&self) -> Option<String> {
        let [key] = self.values("Sec-WebSocket-Key")[..] else {
            return None;
        };
        let is_key = key.strip_suffix("==").is_some_and(|symbols| {
            symbols.len() == 22
                && symbols
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        });
        let offered = self.values("Sec-WebSocket-Protocol");
        let mut items = offered.iter().flat_map(|value| value.split(',')).map(str::trim);
        let subprotocol = items.find(|item| matches!(*item, "mqtt" | "mqttv3.1"));
        let is_good = self.method == "GET"
            && matches!(self.path, "/" | "/mqtt")
            && self.values("Host").len() == 1
            && self.has("Upgrade", "websocket")
            && self.has("Connection", "upgrade")
            && self.values("Sec-WebSocket-Version") == ["13"]
            && is_key
            && self
                .values("Origin")
                .iter()
                .all(|origin| origin.eq_ignore_ascii_case(ORIGIN))
            && (offered.is_empty() || subprotocol.is_some());
        let accept = STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
        let subprotocol = subprotocol.map_or(String::new(), |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        is_good.then(|| {
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: {accept}\r\n{subprotocol}\r\n"
            )
        })
    }
}

/// Payload, answers and end of a stream that comes in pieces of this length.
fn in_pieces(stream: &[u8], length: usize) -> (Vec<u8>, Vec<u8>, Option<End>) {
    let mut decoder = Decoder::new();
    let (mut payload, mut answers, mut end) = (Vec::new(), Vec::new(), None);
    for piece in stream.chunks(length) {
        let mut piece = piece.to_vec();
        let decoded = decoder.decode(&mut piece, &mut answers);
        payload.extend_from_slice(&piece[..decoded.payload_len]);
        assert!(end.is_none() || (end == decoded.end && decoded.payload_len == 0));
        end = decoded.end;
    }
    (payload, answers, end)
}

fn frames(bytes: &[u8]) {
    let model = Model::read(bytes);
    let other = 2 + bytes.len() % 13;
    for length in [1, other, bytes.len().max(1)] {
        let (payload, answers, end) = in_pieces(bytes, length);
        assert_eq!(payload, model.payload, "in pieces of {length}");
        let ending = end.map(|end| matches!(end, End::Closed));
        assert_eq!(ending, model.is_closed, "in pieces of {length}");
        let (pongs, behind) = pongs(&answers);
        assert_eq!(pongs.last(), model.pings.last());
        if length == 1 {
            assert_eq!(pongs, model.pings);
        }
        assert_eq!(behind.is_empty(), end.is_none());
        assert!(behind.is_empty() || (behind[0] == 0x88 && behind.len() == 4));
        if let (Some(true), Some(code)) = (model.is_closed, model.close_code) {
            assert_eq!(behind[2..], code);
        }
    }
}

/// The payloads of the pongs among `answers`, and what follows them.
fn pongs(mut answers: &[u8]) -> (Vec<Vec<u8>>, &[u8]) {
    let mut pongs = Vec::new();
    while let [0x8a, len, rest @ ..] = answers {
        let (pong, rest) = rest.split_at(usize::from(*len));
        pongs.push(pong.to_vec());
        answers = rest;
    }
    (pongs, answers)
}

/// What a stream says, read with all of it at hand.
#[derive(Default)]
struct Model {
    payload: Vec<u8>,
    pings: Vec<Vec<u8>>,
    /// Closed by the client's close frame; else by ours, for a rule it broke. None: it goes on.
    is_closed: Option<bool>,
    close_code: Option<[u8; 2]>,
    /// A message is not over.
    is_within: bool,
}

impl Model {
    fn read(mut rest: &[u8]) -> Model {
        let mut model = Model::default();
        while model.is_closed.is_none() && !rest.is_empty() {
            match model.frame(rest) {
                Ok(behind) => rest = behind,
                Err(Broken) => model.is_closed = Some(false),
            }
        }
        model
    }

    /// Reads one frame, or as much of it as there is; returns what is behind it.
    fn frame<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Broken> {
        let (is_final, opcode) = (bytes[0] & 0x80 != 0, bytes[0] & 0x0f);
        let is_control = opcode >= 8;
        let is_good = match opcode {
            0 => self.is_within,
            2 => !self.is_within,
            8..=10 => is_final,
            _ => false,
        };
        if bytes[0] & 0x70 != 0 || !is_good {
            return Err(Broken);
        }
        let Some(&second) = bytes.get(1) else { return Ok(&[]) };
        let short = second & 0x7f;
        if second & 0x80 == 0 || (is_control && short > 125) {
            return Err(Broken);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(digits) = bytes.get(2..2 + extended) else {
            return Ok(&[]);
        };
        let length = match extended {
            0 => u64::from(short),
            _ => digits.iter().fold(0, |number, &digit| number << 8 | u64::from(digit)),
        };
        let least = match extended {
            0 => 0,
            2 => 126,
            _ => 65_536,
        };
        if !(least..=WEBSOCKET_FRAME_BYTES_MAX as u64).contains(&length) {
            return Err(Broken);
        }
        if !is_control {
            self.is_within = !is_final;
        }
        let head = 2 + extended;
        let Some(mask) = bytes.get(head..head + 4) else {
            return Ok(&[]);
        };
        let behind = &bytes[head + 4..];
        let is_whole = behind.len() as u64 >= length;
        let masked = if is_whole { &behind[..length as usize] } else { behind };
        let payload: Vec<u8> = masked
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        match opcode {
            0 | 2 => self.payload.extend(payload),
            _ if !is_whole => {}
            8 => {
                let code = payload.first_chunk::<2>().copied();
                let is_sendable = |code: u16| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                if payload.len() == 1
                    || code.is_some_and(|code| !is_sendable(u16::from_be_bytes(code)))
                    || std::str::from_utf8(payload.get(2..).unwrap_or_default()).is_err()
                {
                    return Err(Broken);
                }
                self.is_closed = Some(true);
                self.close_code = code;
            }
            9 => self.pings.push(payload),
            _ => {}
        }
        Ok(if is_whole { &behind[length as usize..] } else { &[] })
    }
}

struct Broken;
