//! Properties of the module as a whole: arbitrary bytes do no harm, a cut changes nothing, and an independent
//! implementation (tungstenite, in its client's role) reads what we write and is read by us.

use std::io::{self, Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode as TheirCode, Data, OpCode};
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{ClientRequestBuilder, Message, WebSocket};

use super::frame::tests::{client_frame, decode_in_pieces};
use super::*;

/// What a client does.
#[derive(Clone, Debug)]
enum Step {
    /// One message in these fragments, with a ping after each that has one.
    Data(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn control() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=125)
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..40),
        2 => vec(any::<u8>(), 120..300),
        1 => (65_530_usize..65_545, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fragments = vec((data(), proptest::option::weighted(0.2, control())), 1..4);
    let step = prop_oneof![
        4 => fragments.prop_map(Step::Data),
        1 => control().prop_map(Step::Ping),
        1 => control().prop_map(Step::Pong),
    ];
    vec(step, 0..8)
}

/// The close frame's payload, or a frame that breaks a rule, or neither.
#[derive(Clone, Debug)]
enum Last {
    Nothing,
    Close(Option<(u16, String)>),
    Broken(Vec<u8>),
}

fn last() -> impl Strategy<Value = Last> {
    let close = proptest::option::of((prop_oneof![1000_u16..1004, 3000_u16..5000], "[a-zä]{0,40}"));
    prop_oneof![
        Just(Last::Nothing),
        close.prop_map(Last::Close),
        // Every byte of these is read before the verdict.
        Just(Last::Broken(vec![0x93])),
        Just(Last::Broken(vec![0x81])),
        Just(Last::Broken(vec![0x89, 0x05])),
        Just(Last::Broken(vec![0x88, 0x81, 0, 0, 0, 0, 7])),
    ]
}

/// The frames of a client that takes these steps; the payload in them; its pings.
fn frames(steps: &[Step], masks: &mut impl Iterator<Item = [u8; 4]>) -> (Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
    let (mut stream, mut payload, mut pings) = (Vec::new(), Vec::new(), Vec::new());
    let mut frame = |first, bytes: &[u8]| stream.extend(client_frame(first, masks.next().unwrap(), bytes));
    for step in steps {
        match step {
            Step::Data(fragments) => {
                for (index, (bytes, ping)) in fragments.iter().enumerate() {
                    let opcode = if index == 0 { 2 } else { 0 };
                    let last = if index + 1 == fragments.len() { 0x80 } else { 0 };
                    frame(opcode | last, bytes);
                    payload.extend_from_slice(bytes);
                    if let Some(ping) = ping {
                        frame(0x89, ping);
                        pings.push(ping.clone());
                    }
                }
            }
            Step::Ping(bytes) => {
                frame(0x89, bytes);
                pings.push(bytes.clone());
            }
            Step::Pong(bytes) => frame(0x8a, bytes),
        }
    }
    (stream, payload, pings)
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

fn is_subsequence(part: &[Vec<u8>], whole: &[Vec<u8>]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|wanted| whole.any(|found| found == wanted))
}

/// A stream for tungstenite: what it writes is kept, what it reads was put there.
#[derive(Default)]
struct Pipe {
    written: Vec<u8>,
    to_read: io::Cursor<Vec<u8>>,
    /// Nothing comes after that.
    is_closed: bool,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.to_read.read(into) {
            Ok(0) if !self.is_closed => Err(io::ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn their_client() -> WebSocket<Pipe> {
    WebSocket::from_raw_socket(Pipe::default(), Role::Client, None)
}

/// The other end of a [`Pipe`] is our handshake.
struct Server {
    pipe: Pipe,
    origins: AllowedOrigins,
}

impl Read for Server {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.pipe.read(into)
    }
}

impl Write for Server {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pipe.written.extend_from_slice(bytes);
        match handshake(&self.pipe.written, &self.origins, false) {
            Handshake::Incomplete => {}
            Handshake::Accepted { response, .. } | Handshake::Refused { response, .. } => {
                self.pipe.to_read = io::Cursor::new(response);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The status and the subprotocol that tungstenite found in our answer to its request.
fn their_handshake(uri: &'static str, offers: &[&str], origins: &AllowedOrigins) -> (u16, Option<String>) {
    let mut request = ClientRequestBuilder::new(tungstenite::http::Uri::from_static(uri));
    request = request.with_header("Origin", "https://example.org");
    for offer in offers {
        request = request.with_sub_protocol(*offer);
    }
    let server = Server {
        pipe: Pipe::default(),
        origins: origins.clone(),
    };
    match tungstenite::client(request, server) {
        Ok((_, response)) => {
            let subprotocol = response.headers().get("Sec-WebSocket-Protocol");
            let subprotocol = subprotocol.map(|value| value.to_str().unwrap().to_owned());
            (response.status().as_u16(), subprotocol)
        }
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            (response.status().as_u16(), None)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn tungstenite_agrees_to_our_handshake() {
    let any = AllowedOrigins::Any;
    let mqtt = Some("mqtt".to_owned());
    assert_eq!(
        their_handshake("ws://localhost/mqtt", &["mqtt"], &any),
        (101, mqtt.clone())
    );
    assert_eq!(
        their_handshake("ws://localhost:9001", &["a", "mqtt", "mqttv3.1"], &any),
        (101, mqtt.clone())
    );
    assert_eq!(their_handshake("ws://localhost/mqtt?x=1", &[], &any), (101, None));
    assert_eq!(their_handshake("ws://localhost/mqtt", &["chat"], &any), (400, None));
    assert_eq!(their_handshake("ws://localhost/other", &["mqtt"], &any), (404, None));
    let ours = AllowedOrigins::parse(&["https://example.org"]).unwrap();
    assert_eq!(their_handshake("ws://localhost/mqtt", &["mqtt"], &ours), (101, mqtt));
    let others = AllowedOrigins::parse(&["https://example.com"]).unwrap();
    assert_eq!(their_handshake("ws://localhost/mqtt", &["mqtt"], &others), (403, None));
}

#[test]
fn tungstenite_reads_our_frames() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
        let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let frame = [binary_header(len).as_bytes(), &payload].concat();
        let mut client = their_client();
        client.get_mut().to_read = io::Cursor::new(frame);
        assert_eq!(client.read().unwrap(), Message::Binary(payload.into()));
    }
    for code in [
        CloseCode::Normal,
        CloseCode::GoingAway,
        CloseCode::ProtocolError,
        CloseCode::Unsupported,
        CloseCode::InvalidPayload,
        CloseCode::Policy,
        CloseCode::TooBig,
    ] {
        let mut client = their_client();
        client.get_mut().to_read = io::Cursor::new(close_frame(code).to_vec());
        let Message::Close(Some(frame)) = client.read().unwrap() else {
            panic!("a close frame with a code")
        };
        assert_eq!(u16::from(frame.code), code as u16);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_cut_changes_neither_payload_nor_end_nor_the_last_pong(
        steps in steps(),
        last in last(),
        masks in vec(any::<[u8; 4]>(), 1..5),
        lengths in vec(prop_oneof![1_usize..20, 1_usize..5_000], 1..20),
    ) {
        let mut masks = masks.into_iter().cycle();
        let (mut stream, payload, pings) = frames(&steps, &mut masks);
        let close = |code: u16| [&[0x88, 2], &code.to_be_bytes()[..]].concat();
        let (end, last_answer) = match &last {
            Last::Nothing => (None, Vec::new()),
            Last::Close(frame) => {
                let bytes = frame.as_ref().map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat());
                stream.extend(client_frame(0x88, masks.next().unwrap(), &bytes.unwrap_or_default()));
                (Some(End::Closed), close(frame.as_ref().map_or(1000, |(code, _)| *code)))
            }
            Last::Broken(bytes) => {
                stream.extend_from_slice(bytes);
                let rule = match bytes[..] {
                    [0x93] => FrameError::ReservedBits,
                    [0x81] => FrameError::Text,
                    [0x89, _] => FrameError::Unmasked,
                    _ => FrameError::CloseLength,
                };
                (Some(End::Failed(rule)), close(rule.close_code() as u16))
            }
        };
        if end.is_some() {
            stream.extend_from_slice(b"\x82\x80whatever");
        }
        for lengths in [&lengths[..], &[1], &[usize::MAX]] {
            let (found, answers, found_end) = decode_in_pieces(&stream, lengths);
            prop_assert!(found == payload, "the payload, in pieces of {lengths:?}");
            prop_assert_eq!(found_end, end);
            let (pongs, behind) = pongs(&answers);
            prop_assert_eq!(behind, &last_answer[..]);
            prop_assert_eq!(pongs.last(), pings.last());
            prop_assert!(is_subsequence(&pongs, &pings));
            match lengths {
                [1] => prop_assert_eq!(&pongs, &pings),
                [usize::MAX] => prop_assert!(pongs.len() <= 1),
                _ => {}
            }
        }
    }

    #[test]
    fn we_read_what_tungstenite_writes_and_it_reads_our_answers(
        steps in steps(),
        close in proptest::option::of((prop_oneof![1000_u16..1004, 3000_u16..5000], "[a-zä]{0,40}")),
        length in 1_usize..5_000,
    ) {
        let mut client = their_client();
        let (mut payload, mut last_ping) = (Vec::new(), None);
        for step in steps {
            match step {
                Step::Data(mut fragments) if fragments.len() == 1 => {
                    let (bytes, _) = fragments.remove(0);
                    payload.extend_from_slice(&bytes);
                    client.write(Message::Binary(bytes.into())).unwrap();
                }
                Step::Data(fragments) => {
                    let count = fragments.len();
                    for (index, (bytes, ping)) in fragments.into_iter().enumerate() {
                        payload.extend_from_slice(&bytes);
                        let opcode = if index == 0 { Data::Binary } else { Data::Continue };
                        let frame = Frame::message(bytes, OpCode::Data(opcode), index + 1 == count);
                        client.write(Message::Frame(frame)).unwrap();
                        if let Some(ping) = ping {
                            last_ping = Some(ping.clone());
                            client.write(Message::Ping(ping.into())).unwrap();
                        }
                    }
                }
                Step::Ping(bytes) => {
                    last_ping = Some(bytes.clone());
                    client.write(Message::Ping(bytes.into())).unwrap();
                }
                Step::Pong(bytes) => client.write(Message::Pong(bytes.into())).unwrap(),
            }
        }
        let close = close.map(|(code, reason)| CloseFrame { code: TheirCode::from(code), reason: reason.into() });
        client.close(close.clone()).unwrap();
        client.flush().unwrap();

        let stream = std::mem::take(&mut client.get_mut().written);
        let (found, _, end) = decode_in_pieces(&stream, &[length]);
        prop_assert!(found == payload);
        prop_assert_eq!(end, Some(End::Closed));
        let mut whole = stream;
        let mut answers = Vec::new();
        let decoded = Decoder::new().decode(&mut whole, &mut answers);
        prop_assert!(whole[..decoded.payload_len] == payload);

        client.get_mut().to_read = io::Cursor::new(answers);
        if let Some(ping) = last_ping {
            prop_assert_eq!(client.read().unwrap(), Message::Pong(ping.into()));
        }
        let Message::Close(Some(frame)) = client.read().unwrap() else {
            panic!("a close frame with a code")
        };
        prop_assert_eq!(u16::from(frame.code), close.map_or(1000, |close| close.code.into()));
        // The server closes the connection (section 7.1.1); until then a client waits.
        prop_assert!(matches!(client.read(), Err(tungstenite::Error::Io(_))));
        client.get_mut().is_closed = true;
        prop_assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    }

    #[test]
    fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..600)) {
        fuzz_websocket(&bytes);
    }

    #[test]
    fn no_bytes_behind_a_good_start_do_harm(
        start in prop_oneof![
            Just(&b""[..]),
            Just(&b"GET /mqtt HTTP/1.1\r\nHost: a\r\n"[..]),
            Just(&b"GET "[..]),
            Just(&b"\x02\x80\0\0\0\0"[..]),
        ],
        frames in vec((any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..140)), 0..20),
        noise in "[ -~\r\n]{0,80}",
    ) {
        let mut bytes = start.to_vec();
        bytes.extend_from_slice(noise.as_bytes());
        fuzz_websocket(&bytes);
        // Frames that are more often right than not.
        let mut bytes = start.to_vec();
        for (first, second, payload) in frames {
            let first = if first & 0x30 == 0 { first } else { [0x82, 0x02, 0x80, 0x00, 0x89, 0x8a][usize::from(first) % 6] };
            bytes.push(first);
            bytes.push(0x80 | second.min(127));
            bytes.extend_from_slice(&payload);
        }
        fuzz_websocket(&bytes);
    }
}
