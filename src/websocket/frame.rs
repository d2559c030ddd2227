//! Frames <-> MQTT bytes (RFC 6455 section 5), in place and as they come.
//!
//! Called  by the reader of a connection (decode) and by its writer (headers, the close frame).
//! Holds   - every byte given is consumed: of a header that is cut at most 13 bytes are kept, of a control frame that
//!           is cut at most 125, of data nothing;
//!         - payload moves towards the front only, and is read once and written once;
//!         - how a stream is cut changes neither its payload nor its end, only which pings get their own pong;
//!         - one call appends at most one pong and one close frame to `answers`, the close frame last;
//!         - after the end nothing is decoded and nothing more is answered.

use super::error::FrameError;
use crate::limits::WEBSOCKET_FRAME_BYTES_MAX;

/// First byte of a frame: FIN and the opcode (section 5.2).
const FINAL: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0f;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// Second byte of a frame: the mask bit and seven bits of length, two values of which announce a longer one.
const MASKED: u8 = 0x80;
const LENGTH_IN_2_BYTES: u8 = 126;
const LENGTH_IN_8_BYTES: u8 = 127;

/// Two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;
const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// One connection's inbound side.
#[derive(Debug, Default)]
pub struct Decoder {
    phase: Phase,
    /// The last data frame was not its message's last: a continuation must follow.
    is_fragmented: bool,
    /// The mask, turned so that its first byte is for the next byte of payload.
    mask: [u8; 4],
    /// Payload of the frame at hand that is still to come.
    remaining: u32,
    /// The beginning of a header that was cut.
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// The beginning of a control payload that was cut.
    control: Option<Box<CutControl>>,
}

const _: () = assert!(size_of::<Decoder>() <= 40);

/// What the next byte is.
#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Header,
    Data,
    Control(Control),
    Ended(End),
}

#[derive(Clone, Copy, Debug)]
enum Control {
    Close,
    Ping,
    Pong,
}

#[derive(Debug)]
struct CutControl {
    len: u8,
    payload: [u8; CONTROL_PAYLOAD_BYTES_MAX],
}

/// What one call of [`Decoder::decode`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// MQTT bytes: `bytes[..payload_len]`. There may be some before an end as well.
    pub payload_len: usize,
    /// The peer has closed, or has broken a rule: nothing after this is decoded.
    pub end: Option<End>,
}

/// How the frames of a connection ended. The close frame that says so is the last of the answers; a side that has sent
/// its own already (section 5.5.1: one each) drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer sent a close frame; it is answered with its own code, or with 1000 if it gave none.
    Closed,
    /// The answer carries [`FrameError::close_code`].
    Failed(FrameError),
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes all of `bytes`, however they are cut: payloads of binary messages are unmasked and moved together at the
    /// front of `bytes`. `answers` gets whole frames to send: a pong, and the close frame. Of several pings only the
    /// latest is answered (section 5.5.3), so a flood of them costs one pong per call.
    ///
    /// After the end every further call gives that end again, and no payload.
    pub fn decode(&mut self, bytes: &mut [u8], answers: &mut Vec<u8>) -> Decoded {
        let pong_at = answers.len();
        let mut payload_len = 0;
        let mut at = 0;
        let end = loop {
            match self.phase {
                Phase::Header => match self.header(&bytes[at..]) {
                    Ok(Some(taken)) => at += taken,
                    Ok(None) => break None,
                    Err(error) => self.fail(error, answers),
                },
                Phase::Data => {
                    let len = self.available(bytes.len() - at);
                    unmask(bytes, at, payload_len, len, self.mask);
                    at += len;
                    payload_len += len;
                    if self.is_cut_after(len) {
                        break None;
                    }
                }
                Phase::Control(control) => {
                    let len = self.available(bytes.len() - at);
                    unmask(bytes, at, at, len, self.mask);
                    let piece = &bytes[at..at + len];
                    at += len;
                    if self.is_cut_after(len) {
                        self.control.get_or_insert_default().push(piece);
                        break None;
                    }
                    let cut = self.control.take().map(|mut cut| {
                        cut.push(piece);
                        cut
                    });
                    let payload = cut.as_deref().map_or(piece, CutControl::payload);
                    match control {
                        Control::Pong => {}
                        Control::Ping => {
                            answers.truncate(pong_at);
                            // Below 126, so the length fits.
                            answers.extend_from_slice(&[FINAL | PONG, payload.len() as u8]);
                            answers.extend_from_slice(payload);
                        }
                        Control::Close => match close_code(payload) {
                            Ok(code) => {
                                answers.extend_from_slice(&close_frame_of(code));
                                self.phase = Phase::Ended(End::Closed);
                            }
                            Err(error) => self.fail(error, answers),
                        },
                    }
                }
                Phase::Ended(end) => break Some(end),
            }
        };
        Decoded { payload_len, end }
    }

    /// Takes a frame's header from the start of `bytes` and what is kept of it: how many of these bytes it took, or
    /// `None` when they are too few; then they are kept.
    fn header(&mut self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let kept = usize::from(self.header_len);
        let (header, taken) = if kept == 0 {
            let Some((header, len)) = Header::read(bytes, self.is_fragmented)? else {
                self.keep_header(bytes);
                return Ok(None);
            };
            (header, len)
        } else {
            let more = bytes.len().min(HEADER_BYTES_MAX - kept);
            self.keep_header(&bytes[..more]);
            let Some((header, len)) = Header::read(&self.header[..kept + more], self.is_fragmented)? else {
                // Fourteen bytes are a whole header: there were fewer, and all of them are kept.
                return Ok(None);
            };
            self.header_len = 0;
            (header, len - kept)
        };
        self.mask = header.mask;
        self.remaining = header.payload_len;
        self.phase = match header.control {
            Some(control) => Phase::Control(control),
            None => {
                self.is_fragmented = !header.is_final;
                Phase::Data
            }
        };
        Ok(Some(taken))
    }

    fn keep_header(&mut self, bytes: &[u8]) {
        let kept = usize::from(self.header_len);
        self.header[kept..kept + bytes.len()].copy_from_slice(bytes);
        self.header_len += bytes.len() as u8; // At most 14 in all.
    }

    /// How much of the next `len` bytes is payload of the frame at hand.
    fn available(&self, len: usize) -> usize {
        len.min(self.remaining as usize)
    }

    /// Notes that `len` bytes of payload were taken. If they were the last of their frame, a header is next; if not,
    /// the bytes are at their end.
    fn is_cut_after(&mut self, len: usize) -> bool {
        self.remaining -= len as u32; // `len` is not above it.
        self.mask.rotate_left(len % 4);
        if self.remaining == 0 {
            self.phase = Phase::Header;
        }
        self.remaining > 0
    }

    fn fail(&mut self, error: FrameError, answers: &mut Vec<u8>) {
        answers.extend_from_slice(&close_frame(error.close_code()));
        self.phase = Phase::Ended(End::Failed(error));
    }
}

impl Default for CutControl {
    fn default() -> Self {
        CutControl {
            len: 0,
            payload: [0; CONTROL_PAYLOAD_BYTES_MAX],
        }
    }
}

impl CutControl {
    fn push(&mut self, piece: &[u8]) {
        let len = usize::from(self.len);
        self.payload[len..len + piece.len()].copy_from_slice(piece);
        self.len += piece.len() as u8; // The header promised at most 125 in all.
    }

    fn payload(&self) -> &[u8] {
        &self.payload[..usize::from(self.len)]
    }
}

/// A frame's header, as a client writes it.
struct Header {
    /// `None` for data.
    control: Option<Control>,
    is_final: bool,
    payload_len: u32,
    mask: [u8; 4],
}

impl Header {
    /// The header at the start of `bytes` and its length; `None` while it is incomplete. Rules are checked in the order
    /// of the bytes they speak of, each as soon as these are there, so that a cut changes no verdict.
    #[inline]
    fn read(bytes: &[u8], is_fragmented: bool) -> Result<Option<(Header, usize)>, FrameError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        if first & RESERVED_BITS != 0 {
            return Err(FrameError::ReservedBits);
        }
        let is_final = first & FINAL != 0;
        let control = match first & OPCODE_BITS {
            CONTINUATION if is_fragmented => None,
            CONTINUATION => return Err(FrameError::ContinuationOfNothing),
            TEXT => return Err(FrameError::Text),
            BINARY if is_fragmented => return Err(FrameError::MessageInsideMessage),
            BINARY => None,
            CLOSE | PING | PONG if !is_final => return Err(FrameError::FragmentedControl),
            CLOSE => Some(Control::Close),
            PING => Some(Control::Ping),
            PONG => Some(Control::Pong),
            _ => return Err(FrameError::ReservedOpcode),
        };

        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        if second & MASKED == 0 {
            return Err(FrameError::Unmasked);
        }
        let short = second & !MASKED;
        if control.is_some() && usize::from(short) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(FrameError::LongControl);
        }
        let (payload_len, rest) = match short {
            LENGTH_IN_2_BYTES => {
                let Some((length, rest)) = bytes[2..].split_first_chunk() else {
                    return Ok(None);
                };
                let length = u16::from_be_bytes(*length);
                if length < u16::from(LENGTH_IN_2_BYTES) {
                    return Err(FrameError::LengthNotMinimal);
                }
                (u32::from(length), rest)
            }
            LENGTH_IN_8_BYTES => {
                let Some((length, rest)) = bytes[2..].split_first_chunk() else {
                    return Ok(None);
                };
                let length = u64::from_be_bytes(*length);
                if length >> 63 != 0 {
                    return Err(FrameError::LengthTopBit);
                }
                if length <= u64::from(u16::MAX) {
                    return Err(FrameError::LengthNotMinimal);
                }
                if length > WEBSOCKET_FRAME_BYTES_MAX as u64 {
                    return Err(FrameError::FrameTooLarge);
                }
                (length as u32, rest) // The bound is below 2^32.
            }
            short => (u32::from(short), &bytes[2..]),
        };
        let Some((&mask, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let header = Header {
            control,
            is_final,
            payload_len,
            mask,
        };
        Ok(Some((header, bytes.len() - rest.len())))
    }
}

/// Unmasks `bytes[from..from + len]` (section 5.3) into `bytes[to..to + len]`, which is the same place or one before it.
/// `mask[0]` is for the first byte.
#[inline]
fn unmask(bytes: &mut [u8], from: usize, to: usize, len: usize, mask: [u8; 4]) {
    assert!(to <= from);
    let gap = from - to;
    let window = &mut bytes[to..from + len];
    let [a, b, c, d] = mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut at = 0;
    // What is written ends before what is read next begins, whatever the gap.
    while let Some(masked) = window[at + gap..].first_chunk() {
        let clear = (u64::from_ne_bytes(*masked) ^ twice).to_ne_bytes();
        window[at..at + 8].copy_from_slice(&clear);
        at += 8;
    }
    for at in at..len {
        window[at] = window[at + gap] ^ mask[at % 4];
    }
}

/// The code of a close frame's payload; 1000 if there is none (section 5.5.1).
fn close_code(payload: &[u8]) -> Result<u16, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(CloseCode::Normal as u16)
        } else {
            Err(FrameError::CloseLength)
        };
    };
    let code = u16::from_be_bytes(*code);
    // Section 7.4: 1004 to 1006 and 1015 never travel. 1012 to 1014 were registered after it was written.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::CloseCode);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(FrameError::CloseReason);
    }
    Ok(code)
}

/// The header of one unmasked, final binary frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    bytes: [u8; 10],
    len: u8,
}

impl FrameHeader {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What goes before `payload_len` MQTT bytes on their way to a client (section 5.2; a server never masks, 5.1).
pub fn binary_header(payload_len: usize) -> FrameHeader {
    let mut bytes = [0; 10];
    bytes[0] = FINAL | BINARY;
    let len = match payload_len {
        0..126 => {
            bytes[1] = payload_len as u8;
            2
        }
        126..=0xffff => {
            bytes[1] = LENGTH_IN_2_BYTES;
            bytes[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
            4
        }
        _ => {
            bytes[1] = LENGTH_IN_8_BYTES;
            bytes[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
            10
        }
    };
    FrameHeader { bytes, len }
}

/// Why this side closes (section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    Normal = 1000,
    GoingAway = 1001,
    ProtocolError = 1002,
    /// A kind of data this side does not take: text.
    Unsupported = 1003,
    /// Data that is not what its kind promises: text that is not UTF-8.
    InvalidPayload = 1007,
    Policy = 1008,
    TooBig = 1009,
}

/// A whole close frame without a reason.
pub const fn close_frame(code: CloseCode) -> [u8; 4] {
    close_frame_of(code as u16)
}

const fn close_frame_of(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [FINAL | CLOSE, 2, high, low]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A frame as a client sends it, its length in as few bytes as possible.
    pub fn client_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let header = binary_header(payload.len());
        let mut frame = header.as_bytes().to_vec();
        frame[0] = first;
        frame[1] |= MASKED;
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Payload, answers and end of a stream that comes in pieces of these lengths, over and over.
    pub fn decode_in_pieces(stream: &[u8], lengths: &[usize]) -> (Vec<u8>, Vec<u8>, Option<End>) {
        let mut decoder = Decoder::new();
        let (mut payload, mut answers, mut end) = (Vec::new(), Vec::new(), None);
        let mut rest = stream;
        let mut lengths = lengths.iter().cycle();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
            rest = behind;
            let mut piece = piece.to_vec();
            let decoded = decoder.decode(&mut piece, &mut answers);
            payload.extend_from_slice(&piece[..decoded.payload_len]);
            assert!(end.is_none() || (end == decoded.end && decoded.payload_len == 0));
            end = decoded.end;
        }
        (payload, answers, end)
    }

    fn stream(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let frames = frames
            .iter()
            .map(|&(first, payload)| client_frame(first, MASK, payload));
        frames.collect::<Vec<_>>().concat()
    }

    #[track_caller]
    fn decodes(stream: &[u8], payload: &[u8], answers: &[u8], end: Option<End>) {
        for length in [stream.len(), 1, 2, 3, 7] {
            let decoded = decode_in_pieces(stream, &[length]);
            assert_eq!(
                decoded,
                (payload.to_vec(), answers.to_vec(), end),
                "in pieces of {length}"
            );
        }
    }

    #[track_caller]
    fn fails(stream: &[u8], error: FrameError, code: u16) {
        assert_eq!(error.close_code() as u16, code);
        // What came before is delivered, what comes after is not.
        let mut before = client_frame(0x82, MASK, b"before");
        before.extend_from_slice(stream);
        before.extend_from_slice(&client_frame(0x82, MASK, b"after"));
        let [high, low] = code.to_be_bytes();
        decodes(&before, b"before", &[0x88, 2, high, low], Some(End::Failed(error)));
    }

    #[test]
    fn section_5_7_a_masked_hello() {
        // The example says "Hello" in a text frame; here it is binary.
        let frame = hex::decode("828537fa213d7f9f4d5158").unwrap();
        assert_eq!(frame, client_frame(0x82, MASK, b"Hello"));
        decodes(&frame, b"Hello", b"", None);
    }

    #[test]
    fn section_5_7_lengths_of_256_and_65536() {
        let header = binary_header(256);
        assert_eq!(header.as_bytes(), hex::decode("827e0100").unwrap());
        let header = binary_header(65_536);
        assert_eq!(header.as_bytes(), hex::decode("827f0000000000010000").unwrap());
        assert_eq!(binary_header(0).as_bytes(), [0x82, 0]);
        assert_eq!(binary_header(125).as_bytes(), [0x82, 125]);
        assert_eq!(binary_header(126).as_bytes(), [0x82, 126, 0, 126]);
        assert_eq!(binary_header(65_535).as_bytes(), [0x82, 126, 0xff, 0xff]);
    }

    #[test]
    fn section_5_4_fragments_are_one_message_and_control_frames_may_lie_between() {
        let frames: &[(u8, &[u8])] = &[
            (0x02, b"one "),
            (0x89, b"are you there"),
            (0x00, b""),
            (0x8a, b"nobody asked"),
            (0x00, b"two "),
            (0x80, b"three"),
            (0x82, b" four"),
        ];
        let pong = [&[0x8a, 13], &b"are you there"[..]].concat();
        decodes(&stream(frames), b"one two three four", &pong, None);
    }

    #[test]
    fn empty_frames_and_empty_fragments_are_fine() {
        decodes(&stream(&[(0x82, b""), (0x82, b"")]), b"", b"", None);
        decodes(
            &stream(&[(0x02, b""), (0x00, b""), (0x80, b""), (0x82, b"x")]),
            b"x",
            b"",
            None,
        );
    }

    #[test]
    fn section_5_5_3_the_latest_ping_of_a_call_is_answered() {
        let mut bytes = stream(&[(0x89, b"1"), (0x82, b"data"), (0x89, b""), (0x89, &[7; 125])]);
        let pong = [&[0x8a, 125][..], &[7; 125]].concat();
        let mut answers = b"already there".to_vec();
        let mut decoder = Decoder::new();
        let decoded = decoder.decode(&mut bytes, &mut answers);
        assert_eq!((decoded.payload_len, decoded.end), (4, None));
        assert_eq!(answers, [&b"already there"[..], &pong].concat());
        // The next call's ping has its own.
        decoder.decode(&mut stream(&[(0x89, b"")]), &mut answers);
        assert_eq!(answers, [&b"already there"[..], &pong, &[0x8a, 0]].concat());
        // And a pong goes before the close frame.
        decoder.decode(&mut stream(&[(0x89, b"z"), (0x88, b"")]), &mut answers);
        assert!(answers.ends_with(&[0x8a, 1, b'z', 0x88, 2, 0x03, 0xe8]));
    }

    #[test]
    fn nothing_is_kept_of_a_control_frame_that_has_ended() {
        let mut decoder = Decoder::new();
        let (mut front, mut back) = (stream(&[(0x89, b"ping")]), Vec::new());
        back.extend_from_slice(&front.split_off(8));
        decoder.decode(&mut front, &mut Vec::new());
        assert!(decoder.control.is_some());
        decoder.decode(&mut back, &mut Vec::new());
        assert!(decoder.control.is_none());
    }

    #[test]
    fn section_5_5_1_a_close_frame_is_answered_with_its_code_and_ends_the_stream() {
        let answer = |code: u16| [&[0x88, 2], &code.to_be_bytes()[..]].concat();
        for code in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 4999_u16] {
            let payload = [&code.to_be_bytes()[..], "see you, Zoë".as_bytes()].concat();
            let frames = stream(&[(0x82, b"last words"), (0x88, &payload), (0x82, b"too late")]);
            decodes(&frames, b"last words", &answer(code), Some(End::Closed));
        }
        decodes(
            &stream(&[(0x88, b""), (0x89, b"")]),
            b"",
            &answer(1000),
            Some(End::Closed),
        );
        // Between fragments as well: the message is given up.
        let frames = stream(&[(0x02, b"half"), (0x88, b"")]);
        decodes(&frames, b"half", &answer(1000), Some(End::Closed));
    }

    #[test]
    fn section_5_1_an_unmasked_frame_fails() {
        fails(&[0x82, 5, b'H', b'e', b'l', b'l', b'o'], FrameError::Unmasked, 1002);
        fails(&[0x88, 0], FrameError::Unmasked, 1002);
    }

    #[test]
    fn section_5_2_reserved_bits_fail() {
        for bit in [0x40, 0x20, 0x10] {
            fails(&stream(&[(0x82 | bit, b"x")]), FrameError::ReservedBits, 1002);
            fails(&stream(&[(0x89 | bit, b"")]), FrameError::ReservedBits, 1002);
        }
    }

    #[test]
    fn section_5_2_reserved_opcodes_fail() {
        for opcode in (0x3..=0x7).chain(0xb..=0xf) {
            fails(&stream(&[(0x80 | opcode, b"x")]), FrameError::ReservedOpcode, 1002);
        }
    }

    #[test]
    fn mqtt_6_0_0_1_a_text_frame_fails() {
        fails(&stream(&[(0x81, b"text")]), FrameError::Text, 1003);
        fails(&stream(&[(0x01, b"text")]), FrameError::Text, 1003);
    }

    #[test]
    fn section_5_4_a_continuation_of_nothing_fails() {
        fails(&stream(&[(0x80, b"x")]), FrameError::ContinuationOfNothing, 1002);
        fails(&stream(&[(0x00, b"x")]), FrameError::ContinuationOfNothing, 1002);
        // A message that has ended is nothing.
        let frames = stream(&[(0x02, b""), (0x80, b""), (0x80, b"x")]);
        fails(&frames, FrameError::ContinuationOfNothing, 1002);
    }

    #[test]
    fn section_5_4_a_message_inside_a_message_fails() {
        for first in [0x82, 0x02] {
            let frames = stream(&[(0x02, b""), (0x00, b""), (first, b"x")]);
            fails(&frames, FrameError::MessageInsideMessage, 1002);
        }
    }

    #[test]
    fn section_5_5_a_fragmented_control_frame_fails() {
        for opcode in [0x08, 0x09, 0x0a] {
            fails(&stream(&[(opcode, b"")]), FrameError::FragmentedControl, 1002);
        }
    }

    #[test]
    fn section_5_5_a_control_frame_of_126_bytes_fails() {
        for opcode in [0x88, 0x89, 0x8a] {
            fails(&stream(&[(opcode, &[0; 126])]), FrameError::LongControl, 1002);
            fails(&[opcode, 0xff], FrameError::LongControl, 1002);
        }
    }

    #[test]
    fn section_5_2_a_length_with_needless_bytes_fails() {
        fails(&[0x82, 0xfe, 0, 125], FrameError::LengthNotMinimal, 1002);
        fails(
            &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            FrameError::LengthNotMinimal,
            1002,
        );
    }

    #[test]
    fn section_5_2_a_length_of_64_bits_fails() {
        fails(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1], FrameError::LengthTopBit, 1002);
    }

    #[test]
    fn a_frame_above_the_bound_fails_on_its_header_alone_and_the_largest_mqtt_packet_fits() {
        let header = |len: u64| [&[0x82, 0xff], &len.to_be_bytes()[..]].concat();
        let most = WEBSOCKET_FRAME_BYTES_MAX as u64;
        fails(&header(most + 1), FrameError::FrameTooLarge, 1009);
        fails(&header(u64::MAX >> 1), FrameError::FrameTooLarge, 1009);
        for len in [crate::limits::REMAINING_LENGTH_MAX as u64 + 5, most] {
            let frame = [header(len), MASK.to_vec(), vec![0; 9]].concat();
            assert_eq!(decode_in_pieces(&frame, &[4]).0.len(), 9);
        }
    }

    #[test]
    fn section_5_5_1_half_a_close_code_fails() {
        fails(&stream(&[(0x88, &[3])]), FrameError::CloseLength, 1002);
    }

    #[test]
    fn section_7_4_a_close_code_that_must_not_be_sent_fails() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, u16::MAX] {
            fails(&stream(&[(0x88, &code.to_be_bytes())]), FrameError::CloseCode, 1002);
        }
    }

    #[test]
    fn section_5_5_1_a_close_reason_that_is_not_utf_8_fails() {
        fails(
            &stream(&[(0x88, &[0x03, 0xe8, b'a', 0xff])]),
            FrameError::CloseReason,
            1007,
        );
    }

    #[test]
    fn section_5_3_every_gap_length_and_phase_is_unmasked() {
        for gap in 0..20 {
            for len in 0..40 {
                let clear: Vec<u8> = (0..len as u8).map(|byte| byte.wrapping_mul(37)).collect();
                let masked = clear.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask);
                let mut bytes = vec![0xee; 3 + gap];
                bytes.extend(masked);
                bytes.extend_from_slice(b"behind");
                unmask(&mut bytes, 3 + gap, 3, len, MASK);
                assert_eq!(bytes[..3], [0xee; 3]);
                assert_eq!(bytes[3..3 + len], clear);
                assert!(bytes.ends_with(b"behind"));
            }
        }
    }
}
