//! The Client's side of the wire: what only a Client writes, and how it reads a Server's packets.
//!
//! Called  by `loadtest` and by tests. The broker does not use it.
//! Holds   the same strictness as `decode`: a broker that breaks a rule of form is found by the load generator too.
//! What both sides write (PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP) is in `encode`.

use super::decode::{Fields, no_flags, packet_id_alone, publish};
use super::encode::{fixed_header, length_bytes};
use super::error::DecodeError;
use super::frame::{Frame, packet_type};
use super::packet::{Connect, Level, PacketId, Publish, QoS};
use super::reason::{ConnectReturnCode, SubscribeReturnCode};

/// A packet a Server may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPacket<'a> {
    ConnAck {
        session_present: bool,
        code: ConnectReturnCode,
    },
    Publish(Publish<'a>),
    PubAck(PacketId),
    PubRec(PacketId),
    PubRel(PacketId),
    PubComp(PacketId),
    SubAck(SubAck<'a>),
    UnsubAck(PacketId),
    PingResp,
}

/// A SUBACK whose codes have been checked [MQTT-3.9.3-2]; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubAck<'a> {
    pub packet_id: PacketId,
    codes: &'a [u8],
}

impl<'a> SubAck<'a> {
    /// One code per filter of the SUBSCRIBE, in its order [MQTT-3.9.3-1].
    pub fn codes(&self) -> impl Iterator<Item = SubscribeReturnCode> + use<'a> {
        self.codes
            .iter()
            .filter_map(|&bits| SubscribeReturnCode::from_bits(bits))
    }
}

/// Reads a packet that a Server sent. Its first packet must be CONNACK [MQTT-3.2.0-1]: that is for the caller to check.
pub fn decode_from_server(frame: Frame<'_>) -> Result<ServerPacket<'_>, DecodeError> {
    let packet_type = frame.packet_type();
    match packet_type {
        packet_type::PUBLISH => return publish(frame).map(ServerPacket::Publish),
        // A 3.1 Server may set DUP on a resend; the level is not known here.
        packet_type::PUBREL if matches!(frame.flags(), 0b0010 | 0b1010) => {
            return packet_id_alone(frame).map(ServerPacket::PubRel);
        }
        packet_type::PUBREL => return Err(DecodeError::PubRelFlags),
        packet_type::CONNECT
        | packet_type::SUBSCRIBE
        | packet_type::UNSUBSCRIBE
        | packet_type::PINGREQ
        | packet_type::DISCONNECT => return Err(DecodeError::ClientOnlyPacket),
        0 | 15 => return Err(DecodeError::ReservedPacketType),
        _ => no_flags(frame, DecodeError::FixedHeaderFlags)?,
    }
    match packet_type {
        packet_type::CONNACK => connack(frame),
        packet_type::PUBACK => packet_id_alone(frame).map(ServerPacket::PubAck),
        packet_type::PUBREC => packet_id_alone(frame).map(ServerPacket::PubRec),
        packet_type::PUBCOMP => packet_id_alone(frame).map(ServerPacket::PubComp),
        packet_type::SUBACK => suback(frame).map(ServerPacket::SubAck),
        packet_type::UNSUBACK => packet_id_alone(frame).map(ServerPacket::UnsubAck),
        // PINGRESP: the only type left.
        _ => Fields(frame.body).end().map(|()| ServerPacket::PingResp),
    }
}

fn connack(frame: Frame<'_>) -> Result<ServerPacket<'_>, DecodeError> {
    let mut fields = Fields(frame.body);
    let flags = fields.byte()?;
    if flags > 1 {
        return Err(DecodeError::ConnAckFlags);
    }
    let code = ConnectReturnCode::from_bits(fields.byte()?).ok_or(DecodeError::ConnAckReturnCode)?;
    fields.end()?;
    Ok(ServerPacket::ConnAck {
        session_present: flags == 1,
        code,
    })
}

fn suback(frame: Frame<'_>) -> Result<SubAck<'_>, DecodeError> {
    let mut fields = Fields(frame.body);
    let packet_id = fields.packet_id()?;
    let codes = fields.0;
    if codes.is_empty() {
        return Err(DecodeError::SubAckWithoutCode);
    }
    if codes.iter().any(|&bits| SubscribeReturnCode::from_bits(bits).is_none()) {
        return Err(DecodeError::SubAckReturnCode);
    }
    Ok(SubAck { packet_id, codes })
}

/// Appends a CONNECT. Strings of more than 65,535 bytes end the process; nothing else is checked, so that a test can
/// write a CONNECT that a broker must refuse.
pub fn connect(out: &mut Vec<u8>, connect: &Connect) {
    let name: &[u8] = match connect.level {
        Level::V31 => b"MQIsdp",
        Level::V311 => b"MQTT",
    };
    let mut flags = u8::from(connect.clean_session) << 1;
    if let Some(will) = &connect.will {
        flags |= 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.user_name.is_some()) << 7;
    // The fields of the payload in their order [MQTT-3.1.3-1].
    let payload = [
        Some(connect.client_id.as_bytes()),
        connect.will.as_ref().map(|will| will.topic.as_bytes()),
        connect.will.as_ref().map(|will| will.payload.as_slice()),
        connect.user_name.as_deref().map(str::as_bytes),
        connect.password.as_deref(),
    ];
    let payload_len: usize = payload.iter().flatten().map(|field| 2 + field.len()).sum();
    fixed_header(out, 0x10, 2 + name.len() + 4 + payload_len);
    field(out, name);
    out.extend_from_slice(&[connect.level as u8, flags]);
    out.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    for bytes in payload.into_iter().flatten() {
        field(out, bytes);
    }
}

/// Appends a SUBSCRIBE. The filters are not checked.
pub fn subscribe(out: &mut Vec<u8>, packet_id: PacketId, filters: &[(&str, QoS)]) {
    let entries_len: usize = filters.iter().map(|(filter, _)| 2 + filter.len() + 1).sum();
    fixed_header(out, 0x82, 2 + entries_len);
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    for &(filter, qos) in filters {
        field(out, filter.as_bytes());
        out.push(qos as u8);
    }
}

/// Appends an UNSUBSCRIBE. The filters are not checked.
pub fn unsubscribe(out: &mut Vec<u8>, packet_id: PacketId, filters: &[&str]) {
    let entries_len: usize = filters.iter().map(|filter| 2 + filter.len()).sum();
    fixed_header(out, 0xa2, 2 + entries_len);
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    for filter in filters {
        field(out, filter.as_bytes());
    }
}

pub fn pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc0, 0]);
}

pub fn disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xe0, 0]);
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length_bytes(bytes));
    out.extend_from_slice(bytes);
}
