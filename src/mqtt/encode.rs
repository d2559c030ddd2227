//! Packets -> bytes, appended to an outbox: what a Server sends, and what both sides send.
//!
//! Called  by `session::outbox`; `client` adds what only a Client sends.
//! Holds   - bytes already in `out` are not touched, and a packet is appended whole;
//!         - a PUBLISH reserves exactly [`publish_len`] bytes, then copies topic and payload once each;
//!         - lengths that do not fit their field are our own mistake and end the process: a length that wrapped would
//!           make the rest of the stream read as something else.

use super::packet::{PacketId, QoS};
use super::reason::{ConnectReturnCode, SubscribeReturnCode};
use crate::limits::REMAINING_LENGTH_MAX;

pub fn connack(out: &mut Vec<u8>, session_present: bool, code: ConnectReturnCode) {
    // A refusal never says that a session is present [MQTT-3.2.2-4].
    assert!(!session_present || code == ConnectReturnCode::Accepted);
    out.extend_from_slice(&[0x20, 2, u8::from(session_present), code.bits()]);
}

pub fn suback(out: &mut Vec<u8>, packet_id: PacketId, codes: &[SubscribeReturnCode]) {
    assert!(
        !codes.is_empty(),
        "a SUBSCRIBE has at least one filter, its SUBACK one code for each [MQTT-3.9.3-1]"
    );
    fixed_header(out, 0x90, 2 + codes.len());
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    out.extend(codes.iter().map(|code| code.bits()));
}

pub fn unsuback(out: &mut Vec<u8>, packet_id: PacketId) {
    with_packet_id(out, 0xb0, packet_id);
}

pub fn puback(out: &mut Vec<u8>, packet_id: PacketId) {
    with_packet_id(out, 0x40, packet_id);
}

pub fn pubrec(out: &mut Vec<u8>, packet_id: PacketId) {
    with_packet_id(out, 0x50, packet_id);
}

pub fn pubrel(out: &mut Vec<u8>, packet_id: PacketId) {
    with_packet_id(out, 0x62, packet_id);
}

/// A PUBREL sent again at level 3, which sets DUP (3.1 section 3.6); 3.1.1 reserves the bit [MQTT-3.6.1-1].
pub fn pubrel_again_v31(out: &mut Vec<u8>, packet_id: PacketId) {
    with_packet_id(out, 0x6a, packet_id);
}

pub fn pubcomp(out: &mut Vec<u8>, packet_id: PacketId) {
    with_packet_id(out, 0x70, packet_id);
}

pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Bytes [`publish`] appends.
pub fn publish_len(qos: QoS, topic: &str, payload: &[u8]) -> usize {
    let remaining = publish_remaining(qos != QoS::AtMostOnce, topic, payload);
    fixed_header_len(remaining) + remaining
}

/// Appends a PUBLISH. `packet_id` is given exactly when `qos` is above 0; topic and payload fit a packet, since they came in one.
#[inline]
pub fn publish(
    out: &mut Vec<u8>,
    dup: bool,
    qos: QoS,
    retain: bool,
    topic: &str,
    packet_id: Option<PacketId>,
    payload: &[u8],
) {
    assert!(packet_id.is_some() == (qos != QoS::AtMostOnce));
    debug_assert!(!dup || qos != QoS::AtMostOnce, "[MQTT-3.3.1-2]");
    let topic_len = length_bytes(topic.as_bytes());
    let remaining = publish_remaining(packet_id.is_some(), topic, payload);
    out.reserve(fixed_header_len(remaining) + remaining);
    fixed_header(
        out,
        0x30 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain),
        remaining,
    );
    out.extend_from_slice(&topic_len);
    out.extend_from_slice(topic.as_bytes());
    if let Some(packet_id) = packet_id {
        out.extend_from_slice(&packet_id.get().to_be_bytes());
    }
    out.extend_from_slice(payload);
}

fn publish_remaining(with_packet_id: bool, topic: &str, payload: &[u8]) -> usize {
    2 + topic.len() + if with_packet_id { 2 } else { 0 } + payload.len()
}

/// First byte and remaining length. Arrays of a known length, so that each case is one store.
#[inline]
pub(super) fn fixed_header(out: &mut Vec<u8>, first_byte: u8, remaining: usize) {
    assert!(remaining <= REMAINING_LENGTH_MAX);
    let [a, b, c, d] = [0, 7, 14, 21].map(|shift| (remaining >> shift & 0x7f) as u8);
    match fixed_header_len(remaining) {
        2 => out.extend_from_slice(&[first_byte, a]),
        3 => out.extend_from_slice(&[first_byte, a | 0x80, b]),
        4 => out.extend_from_slice(&[first_byte, a | 0x80, b | 0x80, c]),
        _ => out.extend_from_slice(&[first_byte, a | 0x80, b | 0x80, c | 0x80, d]),
    }
}

/// Bytes of the fixed header in front of `remaining` bytes (section 2.2.3, table 2.4).
#[inline]
pub(super) const fn fixed_header_len(remaining: usize) -> usize {
    match remaining {
        0..=127 => 2,
        128..=16_383 => 3,
        16_384..=2_097_151 => 4,
        _ => 5,
    }
}

/// The two bytes that say how long `bytes` is.
#[inline]
pub(super) fn length_bytes(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len())
        .expect("strings came in behind a length of two bytes")
        .to_be_bytes()
}

pub(super) fn with_packet_id(out: &mut Vec<u8>, first_byte: u8, packet_id: PacketId) {
    let [high, low] = packet_id.get().to_be_bytes();
    out.extend_from_slice(&[first_byte, 2, high, low]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(&mut out);
        assert_eq!(&out[..6], b"before", "an encoder appends");
        out.split_off(6)
    }

    #[test]
    fn mqtt_3_2_2_connack_bytes() {
        assert_eq!(
            written(|out| connack(out, false, ConnectReturnCode::Accepted)),
            [0x20, 2, 0, 0]
        );
        assert_eq!(
            written(|out| connack(out, true, ConnectReturnCode::Accepted)),
            [0x20, 2, 1, 0]
        );
        assert_eq!(
            written(|out| connack(out, false, ConnectReturnCode::NotAuthorized)),
            [0x20, 2, 0, 5]
        );
    }

    #[test]
    #[should_panic]
    fn mqtt_3_2_2_4_a_refusal_with_session_present_is_our_mistake() {
        written(|out| connack(out, true, ConnectReturnCode::IdentifierRejected));
    }

    #[test]
    fn mqtt_3_9_3_1_suback_has_one_code_per_filter_in_order() {
        let codes = [
            SubscribeReturnCode::Granted(QoS::ExactlyOnce),
            SubscribeReturnCode::Failure,
        ];
        assert_eq!(
            written(|out| suback(out, id(0x1234), &codes)),
            [0x90, 4, 0x12, 0x34, 2, 0x80]
        );
        let many = [SubscribeReturnCode::Granted(QoS::AtLeastOnce); 200];
        let bytes = written(|out| suback(out, id(1), &many));
        assert_eq!(&bytes[..5], [0x90, 202 | 0x80, 1, 0, 1]);
        assert_eq!(bytes[5..], [1; 200]);
    }

    #[test]
    fn section_3_4_acknowledgement_bytes() {
        assert_eq!(written(|out| puback(out, id(0x1234))), [0x40, 2, 0x12, 0x34]);
        assert_eq!(written(|out| pubrec(out, id(0x1234))), [0x50, 2, 0x12, 0x34]);
        assert_eq!(written(|out| pubrel(out, id(0x1234))), [0x62, 2, 0x12, 0x34]);
        assert_eq!(written(|out| pubrel_again_v31(out, id(0x1234))), [0x6a, 2, 0x12, 0x34]);
        assert_eq!(written(|out| pubcomp(out, id(0x1234))), [0x70, 2, 0x12, 0x34]);
        assert_eq!(written(|out| unsuback(out, id(0x1234))), [0xb0, 2, 0x12, 0x34]);
        assert_eq!(written(pingresp), [0xd0, 0]);
    }

    #[test]
    fn section_3_3_publish_bytes() {
        let bytes = written(|out| publish(out, false, QoS::AtMostOnce, true, "a/b", None, b"x"));
        assert_eq!(bytes, b"\x31\x06\0\x03a/bx");
        let bytes = written(|out| publish(out, true, QoS::ExactlyOnce, false, "a/b", Some(id(0x1234)), b""));
        assert_eq!(bytes, b"\x3c\x07\0\x03a/b\x12\x34");
    }

    #[test]
    fn section_2_2_3_remaining_lengths_at_their_limits() {
        for (remaining, bytes) in [
            (0, &[0][..]),
            (127, &[0x7f]),
            (128, &[0x80, 1]),
            (16_383, &[0xff, 0x7f]),
            (16_384, &[0x80, 0x80, 1]),
            (2_097_151, &[0xff, 0xff, 0x7f]),
            (2_097_152, &[0x80, 0x80, 0x80, 1]),
            (268_435_455, &[0xff, 0xff, 0xff, 0x7f]),
        ] {
            assert_eq!(&written(|out| fixed_header(out, 0x30, remaining))[1..], bytes);
        }
    }

    #[test]
    fn publish_len_is_what_publish_appends_and_reserves() {
        for payload_len in [0, 119, 120, 121, 16_376, 16_377, 2_097_144, 2_097_145] {
            let payload = vec![1; payload_len];
            for (qos, packet_id) in [(QoS::AtMostOnce, None), (QoS::AtLeastOnce, Some(id(9)))] {
                let mut out = Vec::new();
                publish(&mut out, false, qos, false, "a/b", packet_id, &payload);
                assert_eq!(out.len(), publish_len(qos, "a/b", &payload));
            }
        }
    }

    #[test]
    #[should_panic]
    fn mqtt_2_3_1_5_a_packet_id_at_qos_0_is_our_mistake() {
        written(|out| publish(out, false, QoS::AtMostOnce, false, "a", Some(id(1)), b""));
    }
}
