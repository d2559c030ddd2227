//! Frames -> packets, strictly: every byte of a frame is accounted for, or the packet is refused.
//!
//! Called  by the shell: [`decode_connect`] for the first packet of a connection, [`decode`] for all later ones.
//! Gives   packets that borrow from the read buffer; only CONNECT is copied, since it travels to its home core.
//! Holds   - a packet that breaks a rule of form has no effect: nothing is returned but the rule [MQTT-4.8.0-1];
//!         - the level decides: what 3.1 tolerated is tolerated at level 3 and refused at level 4;
//!         - control characters and non-characters in strings are allowed, except U+0000 [MQTT-1.5.3-2].

use thiserror::Error;

use super::error::DecodeError;
use super::frame::{Frame, packet_type};
use super::packet::{Connect, Level, Packet, PacketId, Publish, QoS, Subscribe, Unsubscribe, Will};
use super::topic::{TopicFilter, TopicName, has_nul, str_from_utf8};

/// Why a first packet is not an acceptable CONNECT.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConnectError {
    /// Close, nothing sent.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// A right protocol name with a level we do not speak: CONNACK 0x01, then close [MQTT-3.1.2-2].
    #[error("protocol level {0} is not supported [MQTT-3.1.2-2]")]
    UnsupportedLevel(u8),
}

/// Reads the first packet of a connection.
pub fn decode_connect(frame: Frame<'_>) -> Result<Connect, ConnectError> {
    if frame.packet_type() != packet_type::CONNECT {
        return Err(DecodeError::FirstPacketNotConnect.into());
    }
    let mut fields = Fields(frame.body);
    let level = match (fields.binary()?, fields.byte()?) {
        (b"MQTT", 4) => Level::V311,
        (b"MQIsdp", 3) => Level::V31,
        // What follows is of a form we do not know, so it is not looked at.
        (b"MQTT" | b"MQIsdp", level) => return Err(ConnectError::UnsupportedLevel(level)),
        _ => return Err(DecodeError::ProtocolName.into()),
    };
    if level == Level::V311 && frame.flags() != 0 {
        return Err(DecodeError::FixedHeaderFlags.into());
    }
    Ok(connect_fields(fields, level)?)
}

/// Reads a packet of an accepted connection. A second CONNECT and packets only a Server may send are errors.
#[inline]
pub fn decode<'a>(frame: Frame<'a>, level: Level) -> Result<Packet<'a>, DecodeError> {
    if frame.packet_type() == packet_type::PUBLISH {
        publish(frame).map(Packet::Publish)
    } else {
        decode_other(frame, level)
    }
}

/// All but PUBLISH; apart, so that [`decode`] stays small enough to be inlined.
fn decode_other<'a>(frame: Frame<'a>, level: Level) -> Result<Packet<'a>, DecodeError> {
    match frame.packet_type() {
        packet_type::PUBACK => {
            no_flags(frame, DecodeError::FixedHeaderFlags)?;
            packet_id_alone(frame).map(Packet::PubAck)
        }
        packet_type::PUBREC => {
            no_flags(frame, DecodeError::FixedHeaderFlags)?;
            packet_id_alone(frame).map(Packet::PubRec)
        }
        packet_type::PUBREL => {
            flags_two(frame, level, DecodeError::PubRelFlags)?;
            packet_id_alone(frame).map(Packet::PubRel)
        }
        packet_type::PUBCOMP => {
            no_flags(frame, DecodeError::FixedHeaderFlags)?;
            packet_id_alone(frame).map(Packet::PubComp)
        }
        packet_type::SUBSCRIBE => {
            flags_two(frame, level, DecodeError::SubscribeFlags)?;
            subscribe(frame).map(Packet::Subscribe)
        }
        packet_type::UNSUBSCRIBE => {
            flags_two(frame, level, DecodeError::UnsubscribeFlags)?;
            unsubscribe(frame).map(Packet::Unsubscribe)
        }
        packet_type::PINGREQ => {
            no_flags(frame, DecodeError::FixedHeaderFlags)?;
            Fields(frame.body).end().map(|()| Packet::PingReq)
        }
        packet_type::DISCONNECT => {
            no_flags(frame, DecodeError::DisconnectFlags)?;
            Fields(frame.body).end().map(|()| Packet::Disconnect)
        }
        packet_type::CONNECT => Err(DecodeError::SecondConnect),
        packet_type::CONNACK | packet_type::SUBACK | packet_type::UNSUBACK | packet_type::PINGRESP => {
            Err(DecodeError::ServerOnlyPacket)
        }
        _ => Err(DecodeError::ReservedPacketType),
    }
}

/// Connect flags and all that follows them (sections 3.1.2.3 to 3.1.3.5).
fn connect_fields(mut fields: Fields<'_>, level: Level) -> Result<Connect, DecodeError> {
    let flags = fields.byte()?;
    let user_name_flag = flags & 0x80 != 0;
    let password_flag = flags & 0x40 != 0;
    let will_retain = flags & 0x20 != 0;
    let will_qos = QoS::from_bits(flags >> 3 & 0x03).ok_or(DecodeError::WillQoS)?;
    let will_flag = flags & 0x04 != 0;
    let clean_session = flags & 0x02 != 0;
    // 3.1 calls bit 0 unused and says nothing about its value.
    if level == Level::V311 && flags & 0x01 != 0 {
        return Err(DecodeError::ConnectReservedFlag);
    }
    if !will_flag && (will_qos != QoS::AtMostOnce || will_retain) {
        return Err(DecodeError::WillFlagsWithoutWill);
    }
    if password_flag && !user_name_flag {
        return Err(DecodeError::PasswordWithoutUserName);
    }

    let keep_alive_s = fields.u16()?;
    let client_id = fields.string()?.to_owned();
    let will = if will_flag {
        let topic = TopicName::from_bytes(fields.binary()?)?.as_str().to_owned();
        let payload = fields.binary()?.to_vec();
        Some(Will {
            topic,
            payload,
            qos: will_qos,
            retain: will_retain,
        })
    } else {
        None
    };
    // 3.1, section 3.1: the remaining length takes precedence over these two flags, a packet may end before the field.
    let present = |flag: bool, fields: &Fields<'_>| flag && (level == Level::V311 || !fields.0.is_empty());
    let user_name = if present(user_name_flag, &fields) {
        Some(fields.string()?.to_owned())
    } else {
        None
    };
    let password = if present(password_flag, &fields) {
        Some(fields.binary()?.to_vec())
    } else {
        None
    };
    fields.end()?;
    Ok(Connect {
        level,
        clean_session,
        keep_alive_s,
        client_id,
        will,
        user_name,
        password,
    })
}

#[inline]
pub(super) fn publish(frame: Frame<'_>) -> Result<Publish<'_>, DecodeError> {
    let qos = QoS::from_bits(frame.first_byte >> 1 & 0x03).ok_or(DecodeError::PublishQoS)?;
    let dup = frame.first_byte & 0x08 != 0;
    let retain = frame.first_byte & 0x01 != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(DecodeError::DupAtQoS0);
    }
    let mut fields = Fields(frame.body);
    let topic = TopicName::from_bytes(fields.binary()?)?;
    let packet_id = if qos == QoS::AtMostOnce {
        None
    } else {
        Some(fields.packet_id()?)
    };
    Ok(Publish {
        dup,
        qos,
        retain,
        topic,
        packet_id,
        payload: fields.0,
    })
}

fn subscribe(frame: Frame<'_>) -> Result<Subscribe<'_>, DecodeError> {
    let mut fields = Fields(frame.body);
    let packet_id = fields.packet_id()?;
    let entries = fields.0;
    if entries.is_empty() {
        return Err(DecodeError::SubscribeWithoutFilter);
    }
    while !fields.0.is_empty() {
        TopicFilter::from_bytes(fields.binary()?)?;
        QoS::from_bits(fields.byte()?).ok_or(DecodeError::RequestedQoS)?;
    }
    Ok(Subscribe { packet_id, entries })
}

fn unsubscribe(frame: Frame<'_>) -> Result<Unsubscribe<'_>, DecodeError> {
    let mut fields = Fields(frame.body);
    let packet_id = fields.packet_id()?;
    let entries = fields.0;
    if entries.is_empty() {
        return Err(DecodeError::UnsubscribeWithoutFilter);
    }
    while !fields.0.is_empty() {
        TopicFilter::from_bytes(fields.binary()?)?;
    }
    Ok(Unsubscribe { packet_id, entries })
}

/// A body that is a Packet Identifier and nothing else.
pub(super) fn packet_id_alone(frame: Frame<'_>) -> Result<PacketId, DecodeError> {
    let mut fields = Fields(frame.body);
    let packet_id = fields.packet_id()?;
    fields.end()?;
    Ok(packet_id)
}

pub(super) fn no_flags(frame: Frame<'_>, rule: DecodeError) -> Result<(), DecodeError> {
    if frame.flags() == 0 { Ok(()) } else { Err(rule) }
}

/// PUBREL, SUBSCRIBE and UNSUBSCRIBE carry the flags 2, which 3.1 calls QoS 1; in 3.1 a resend also has DUP set.
fn flags_two(frame: Frame<'_>, level: Level, rule: DecodeError) -> Result<(), DecodeError> {
    match (frame.flags(), level) {
        (0b0010, _) | (0b1010, Level::V31) => Ok(()),
        _ => Err(rule),
    }
}

/// The fields of a body that have not been read yet.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::BodyTooShort)?;
        self.0 = rest;
        Ok(byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk::<2>().ok_or(DecodeError::BodyTooShort)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16()?).ok_or(DecodeError::PacketIdZero)
    }

    /// Bytes behind a length of two bytes.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::from(self.u16()?);
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(DecodeError::BodyTooShort)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A UTF-8 encoded string (section 1.5.3).
    pub(super) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let text = str_from_utf8(self.binary()?)?;
        if has_nul(text.as_bytes()) {
            Err(DecodeError::NulCharacter)
        } else {
            Ok(text)
        }
    }

    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes)
        }
    }
}
