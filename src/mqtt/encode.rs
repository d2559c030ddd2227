//! Packets -> bytes, appended to an outbox.

use super::packet::{PacketId, QoS};
use super::reason::{ConnectReturnCode, SubscribeReturnCode};

pub fn connack(out: &mut Vec<u8>, session_present: bool, code: ConnectReturnCode) {
    let _ = (out, session_present, code);
    todo!()
}

pub fn suback(out: &mut Vec<u8>, packet_id: PacketId, codes: &[SubscribeReturnCode]) {
    let _ = (out, packet_id, codes);
    todo!()
}

pub fn unsuback(out: &mut Vec<u8>, packet_id: PacketId) {
    let _ = (out, packet_id);
    todo!()
}

pub fn puback(out: &mut Vec<u8>, packet_id: PacketId) {
    let _ = (out, packet_id);
    todo!()
}

pub fn pubrec(out: &mut Vec<u8>, packet_id: PacketId) {
    let _ = (out, packet_id);
    todo!()
}

pub fn pubrel(out: &mut Vec<u8>, packet_id: PacketId) {
    let _ = (out, packet_id);
    todo!()
}

pub fn pubcomp(out: &mut Vec<u8>, packet_id: PacketId) {
    let _ = (out, packet_id);
    todo!()
}

pub fn pingresp(out: &mut Vec<u8>) {
    let _ = out;
    todo!()
}

/// Bytes [`publish`] appends.
pub fn publish_len(qos: QoS, topic: &str, payload: &[u8]) -> usize {
    let _ = (qos, topic, payload);
    todo!()
}

/// Appends a PUBLISH. `packet_id` is given exactly when `qos` is above 0; topic and payload fit a packet, since they came in one.
pub fn publish(
    out: &mut Vec<u8>,
    dup: bool,
    qos: QoS,
    retain: bool,
    topic: &str,
    packet_id: Option<PacketId>,
    payload: &[u8],
) {
    let _ = (out, dup, qos, retain, topic, packet_id, payload);
    todo!()
}
