//! Layer 0: WebSocket frames taken apart in place, their headers, and the upgrade. Small frames hold one PUBLISH of 64 bytes
//! to a short topic; a decoded buffer is masked again by copying it, which is measured with it.

use std::hint::black_box;

use skein::websocket::{AllowedOrigins, Decoder, Handshake, binary_header, handshake};

use super::Runner;

const PACKET_BYTES: usize = 78;
pub const LARGE_BYTES: usize = 60_000;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const UPGRADE: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: localhost:8083\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\
    Origin: http://localhost\r\nUser-Agent: bench\r\n\r\n";

/// Final binary frames as a client sends them.
pub fn masked_frames(payload_bytes: usize, count: usize) -> Vec<u8> {
    let mut frame = match payload_bytes {
        len @ 0..126 => vec![0x82, 0x80 | len as u8],
        len => [&[0x82, 0xfe], &(len as u16).to_be_bytes()[..]].concat(),
    };
    frame.extend(MASK);
    frame.extend((0..payload_bytes).map(|at| at as u8 ^ MASK[at % 4]));
    frame.repeat(count)
}

pub fn scenarios(runner: &mut impl Runner) {
    for (of, payload_bytes, count) in [
        ("1 frame of 78 bytes", PACKET_BYTES, 1),
        ("100 frames of 78 bytes", PACKET_BYTES, 100),
        ("1 frame of 60,000 bytes", LARGE_BYTES, 1),
    ] {
        runner.scenario(&format!("websocket/decode {of}"), count, || {
            let frames = masked_frames(payload_bytes, count);
            let mut buffer = frames.clone();
            let mut answers = Vec::new();
            move || {
                buffer.copy_from_slice(&frames);
                let decoded = Decoder::default().decode(black_box(&mut buffer), &mut answers);
                assert_eq!(decoded.payload_len, payload_bytes * count);
            }
        });
    }
    for (of, payload_bytes) in [("78 bytes", PACKET_BYTES), ("60,000 bytes", LARGE_BYTES)] {
        runner.scenario(&format!("websocket/encode a frame of {of}"), 1, || {
            let payload = vec![0x5a; payload_bytes];
            let mut out = Vec::with_capacity(payload_bytes + 10);
            move || {
                out.clear();
                out.extend_from_slice(binary_header(black_box(payload_bytes)).as_bytes());
                out.extend_from_slice(black_box(&payload));
            }
        });
    }
    runner.scenario("websocket/upgrade", 1, || {
        || {
            let answer = handshake(black_box(UPGRADE), &AllowedOrigins::Any, false);
            assert!(matches!(answer, Handshake::Accepted { .. }));
        }
    });
}
