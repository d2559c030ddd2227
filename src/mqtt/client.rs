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
    // A refusal never says that a session is present [MQTT-3.2.2-4].
    if flags == 1 && code != ConnectReturnCode::Accepted {
        return Err(DecodeError::ConnAckFlags);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::encode;
    use crate::mqtt::topic::TopicName;

    fn read(first_byte: u8, body: &[u8]) -> Result<ServerPacket<'_>, DecodeError> {
        decode_from_server(Frame {
            first_byte,
            body,
            len: 2 + body.len(),
        })
    }

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    #[test]
    fn what_the_server_writes_the_client_reads() {
        let codes = [
            SubscribeReturnCode::Granted(QoS::AtLeastOnce),
            SubscribeReturnCode::Failure,
        ];
        let mut out = Vec::new();
        encode::suback(&mut out, id(7), &codes);
        let Ok(ServerPacket::SubAck(suback)) = read(out[0], &out[2..]) else {
            panic!("SUBACK")
        };
        assert_eq!(suback.packet_id, id(7));
        assert!(suback.codes().eq(codes));

        out.clear();
        encode::publish(&mut out, true, QoS::AtLeastOnce, true, "a", Some(id(7)), b"p");
        let topic = TopicName::new("a").unwrap();
        let expected = Publish {
            dup: true,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic,
            packet_id: Some(id(7)),
            payload: b"p",
        };
        assert_eq!(read(out[0], &out[2..]), Ok(ServerPacket::Publish(expected)));

        type Write = fn(&mut Vec<u8>, PacketId);
        let writers: [(Write, ServerPacket<'_>); 5] = [
            (encode::puback, ServerPacket::PubAck(id(7))),
            (encode::pubrec, ServerPacket::PubRec(id(7))),
            (encode::pubrel, ServerPacket::PubRel(id(7))),
            (encode::pubcomp, ServerPacket::PubComp(id(7))),
            (encode::unsuback, ServerPacket::UnsubAck(id(7))),
        ];
        for (write, expected) in writers {
            out.clear();
            write(&mut out, id(7));
            assert_eq!(read(out[0], &out[2..]), Ok(expected));
        }
        out.clear();
        encode::pingresp(&mut out);
        assert_eq!(read(out[0], &out[2..]), Ok(ServerPacket::PingResp));
        for session_present in [false, true] {
            out.clear();
            encode::connack(&mut out, session_present, ConnectReturnCode::Accepted);
            let expected = ServerPacket::ConnAck {
                session_present,
                code: ConnectReturnCode::Accepted,
            };
            assert_eq!(read(out[0], &out[2..]), Ok(expected));
        }
    }

    #[test]
    fn a_server_that_breaks_a_rule_of_form_is_found() {
        for (first_byte, body, rule) in [
            (0x20, &b"\x02\0"[..], DecodeError::ConnAckFlags),
            (0x20, b"\x01\x02", DecodeError::ConnAckFlags),
            (0x20, b"\0\x06", DecodeError::ConnAckReturnCode),
            (0x20, b"\0", DecodeError::BodyTooShort),
            (0x20, b"\0\0\0", DecodeError::TrailingBytes),
            (0x21, b"\0\0", DecodeError::FixedHeaderFlags),
            (0x90, b"\0\x01", DecodeError::SubAckWithoutCode),
            (0x90, b"\0\x01\x01\x03", DecodeError::SubAckReturnCode),
            (0x90, b"\0\0\x01", DecodeError::PacketIdZero),
            (0xb0, b"\0\x01\0", DecodeError::TrailingBytes),
            (0xd0, b"\0", DecodeError::TrailingBytes),
            (0x60, b"\0\x01", DecodeError::PubRelFlags),
            (0x30, b"\0\x01+", DecodeError::WildcardInTopicName),
            (0x10, b"", DecodeError::ClientOnlyPacket),
            (0x82, b"\0\x01\0\x01a\0", DecodeError::ClientOnlyPacket),
            (0xc0, b"", DecodeError::ClientOnlyPacket),
            (0xe0, b"", DecodeError::ClientOnlyPacket),
            (0x00, b"", DecodeError::ReservedPacketType),
            (0xf0, b"", DecodeError::ReservedPacketType),
        ] {
            assert_eq!(read(first_byte, body), Err(rule), "{first_byte:02x} {body:02x?}");
        }
    }
}
