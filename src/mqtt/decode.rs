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
    decode_after(frame, level, None)
}

/// The same behind a PUBLISH on this topic: the next one may well be on it too, and is then not checked again.
#[inline]
pub fn decode_after<'a>(
    frame: Frame<'a>,
    level: Level,
    topic: Option<TopicName<'a>>,
) -> Result<Packet<'a>, DecodeError> {
    if frame.packet_type() == packet_type::PUBLISH {
        publish_after(frame, topic).map(Packet::Publish)
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
    publish_after(frame, None)
}

#[inline]
fn publish_after<'a>(frame: Frame<'a>, known: Option<TopicName<'a>>) -> Result<Publish<'a>, DecodeError> {
    let qos = QoS::from_bits(frame.first_byte >> 1 & 0x03).ok_or(DecodeError::PublishQoS)?;
    let dup = frame.first_byte & 0x08 != 0;
    let retain = frame.first_byte & 0x01 != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(DecodeError::DupAtQoS0);
    }
    let mut fields = Fields(frame.body);
    let topic = fields.binary()?;
    let topic = match known {
        Some(known) if known.as_str().as_bytes() == topic => known,
        _ => TopicName::from_bytes(topic)?,
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::client;

    const BOTH: [Level; 2] = [Level::V31, Level::V311];

    fn frame(first_byte: u8, body: &[u8]) -> Frame<'_> {
        Frame {
            first_byte,
            body,
            len: 2 + body.len(),
        }
    }

    fn read(first_byte: u8, body: &[u8], level: Level) -> Result<Packet<'_>, DecodeError> {
        decode(frame(first_byte, body), level)
    }

    fn refused(first_byte: u8, body: &[u8], rule: DecodeError) {
        for level in BOTH {
            assert_eq!(
                read(first_byte, body, level),
                Err(rule),
                "{first_byte:02x} {body:02x?} {level:?}"
            );
        }
    }

    fn connect(first_byte: u8, body: &[u8]) -> Result<Connect, ConnectError> {
        decode_connect(frame(first_byte, body))
    }

    /// Body of a CONNECT with Keep Alive 60 and `payload` behind it.
    fn connect_body(level: Level, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut body = match level {
            Level::V31 => b"\0\x06MQIsdp\x03".to_vec(),
            Level::V311 => b"\0\x04MQTT\x04".to_vec(),
        };
        body.extend_from_slice(&[flags, 0, 60]);
        body.extend_from_slice(payload);
        body
    }

    fn connect_with(level: Level, flags: u8, payload: &[u8]) -> Result<Connect, ConnectError> {
        connect(0x10, &connect_body(level, flags, payload))
    }

    fn connect_refused(level: Level, flags: u8, payload: &[u8], rule: DecodeError) {
        let found = connect_with(level, flags, payload);
        assert_eq!(
            found,
            Err(ConnectError::Malformed(rule)),
            "{flags:08b} {payload:02x?} {level:?}"
        );
    }

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    #[test]
    fn mqtt_2_2_2_2_reserved_flags_of_the_fixed_header_are_refused_at_level_4() {
        let cases: [(u8, &[u8], DecodeError); 14] = [
            (0x41, b"\0\x01", DecodeError::FixedHeaderFlags),
            (0x48, b"\0\x01", DecodeError::FixedHeaderFlags),
            (0x52, b"\0\x01", DecodeError::FixedHeaderFlags),
            (0x60, b"\0\x01", DecodeError::PubRelFlags),
            (0x63, b"\0\x01", DecodeError::PubRelFlags),
            (0x6a, b"\0\x01", DecodeError::PubRelFlags),
            (0x71, b"\0\x01", DecodeError::FixedHeaderFlags),
            (0x80, b"\0\x01\0\x01a\0", DecodeError::SubscribeFlags),
            (0x8a, b"\0\x01\0\x01a\0", DecodeError::SubscribeFlags),
            (0xa0, b"\0\x01\0\x01a", DecodeError::UnsubscribeFlags),
            (0xaa, b"\0\x01\0\x01a", DecodeError::UnsubscribeFlags),
            (0xc1, b"", DecodeError::FixedHeaderFlags),
            (0xe1, b"", DecodeError::DisconnectFlags),
            (0xe8, b"", DecodeError::DisconnectFlags),
        ];
        for (first_byte, body, rule) in cases {
            assert_eq!(read(first_byte, body, Level::V311), Err(rule), "{first_byte:02x}");
        }
        let body = connect_body(Level::V311, 0x02, b"\0\x01a");
        for first_byte in 0x11..=0x1f {
            assert_eq!(connect(first_byte, &body), Err(DecodeError::FixedHeaderFlags.into()));
        }
    }

    #[test]
    fn v31_11_dup_on_subscribe_unsubscribe_and_pubrel_is_accepted_at_level_3_and_nothing_else_is() {
        assert_eq!(read(0x6a, b"\0\x01", Level::V31), Ok(Packet::PubRel(id(1))));
        assert_eq!(
            read(0x8a, b"\0\x01\0\x01a\0", Level::V31),
            read(0x82, b"\0\x01\0\x01a\0", Level::V31)
        );
        assert_eq!(
            read(0xaa, b"\0\x01\0\x01a", Level::V31),
            read(0xa2, b"\0\x01\0\x01a", Level::V31)
        );
        for flags in (0..=15).filter(|flags| ![0b0010, 0b1010].contains(flags)) {
            refused(0x60 | flags, b"\0\x01", DecodeError::PubRelFlags);
            refused(0x80 | flags, b"\0\x01\0\x01a\0", DecodeError::SubscribeFlags);
            refused(0xa0 | flags, b"\0\x01\0\x01a", DecodeError::UnsubscribeFlags);
        }
    }

    #[test]
    fn x3_reserved_types_and_server_packets_are_refused() {
        for (first_byte, body) in [(0x00, &b""[..]), (0xf0, b""), (0x02, b"\0\x01"), (0xf2, b"\0\x01")] {
            refused(first_byte, body, DecodeError::ReservedPacketType);
        }
        for (first_byte, body) in [
            (0x20, &b"\0\0"[..]),
            (0x90, b"\0\x01\0"),
            (0xb0, b"\0\x01"),
            (0xd0, b""),
        ] {
            refused(first_byte, body, DecodeError::ServerOnlyPacket);
        }
    }

    #[test]
    fn x4_every_shorter_body_is_refused() {
        let cases: [(u8, &[u8]); 9] = [
            (0x30, b"\0\x03a/b"),
            (0x32, b"\0\x03a/b\0\x01"),
            (0x40, b"\0\x01"),
            (0x50, b"\0\x01"),
            (0x62, b"\0\x01"),
            (0x70, b"\0\x01"),
            (0x82, b"\0\x01\0\x03a/b\x01\0\x01c\x02"),
            (0xa2, b"\0\x01\0\x03a/b\0\x01c"),
            (0x82, b"\0\x01\0\x03a/b\x01"),
        ];
        for (first_byte, body) in cases {
            assert!(read(first_byte, body, Level::V311).is_ok(), "{first_byte:02x}");
            for length in 0..body.len() {
                let expected = match (first_byte, length) {
                    (0x82, 2) => DecodeError::SubscribeWithoutFilter,
                    (0xa2, 2) => DecodeError::UnsubscribeWithoutFilter,
                    // A whole entry makes a whole packet.
                    (0x82, 8) | (0xa2, 7) => continue,
                    _ => DecodeError::BodyTooShort,
                };
                assert_eq!(
                    read(first_byte, &body[..length], Level::V311),
                    Err(expected),
                    "{first_byte:02x} {length}"
                );
            }
        }
    }

    #[test]
    fn x4_bytes_behind_the_last_field_are_refused() {
        for first_byte in [0x40, 0x50, 0x62, 0x70] {
            refused(first_byte, b"\0\x01\0", DecodeError::TrailingBytes);
        }
        refused(0xc0, b"\0", DecodeError::TrailingBytes);
        refused(0xe0, b"\0", DecodeError::TrailingBytes);
        for level in BOTH {
            connect_refused(level, 0x02, b"\0\x01a\0", DecodeError::TrailingBytes);
        }
    }

    #[test]
    fn mqtt_2_3_1_1_a_packet_id_of_zero_is_refused() {
        for first_byte in [0x40, 0x50, 0x62, 0x70] {
            refused(first_byte, b"\0\0", DecodeError::PacketIdZero);
        }
        refused(0x32, b"\0\x01a\0\0", DecodeError::PacketIdZero);
        refused(0x34, b"\0\x01a\0\0", DecodeError::PacketIdZero);
        refused(0x82, b"\0\0\0\x01a\0", DecodeError::PacketIdZero);
        refused(0xa2, b"\0\0\0\x01a", DecodeError::PacketIdZero);
    }

    #[test]
    fn mqtt_1_5_3_1_ill_formed_utf8_and_surrogates_are_refused_in_every_string() {
        for bad in [
            &b"\0\x03\xed\xa0\x80"[..],
            b"\0\x02\xc0\x80",
            b"\0\x01\xff",
            b"\0\x02a\xc3",
        ] {
            let rule = DecodeError::IllFormedUtf8;
            refused(0x30, bad, rule);
            refused(0x82, &[b"\0\x01", bad, b"\0"].concat(), rule);
            refused(0xa2, &[b"\0\x01", bad].concat(), rule);
            for level in BOTH {
                connect_refused(level, 0x02, bad, rule);
                connect_refused(level, 0x06, &[b"\0\x01a", bad, b"\0\0"].concat(), rule);
                connect_refused(level, 0x82, &[b"\0\x01a", bad].concat(), rule);
            }
        }
    }

    #[test]
    fn mqtt_1_5_3_2_a_nul_character_is_refused_in_every_string() {
        let nul = b"\0\x03a\0b";
        let rule = DecodeError::NulCharacter;
        refused(0x30, nul, rule);
        refused(0x82, &[b"\0\x01", &nul[..], b"\0"].concat(), rule);
        refused(0xa2, &[b"\0\x01", &nul[..]].concat(), rule);
        for level in BOTH {
            connect_refused(level, 0x02, nul, rule);
            connect_refused(level, 0x06, &[b"\0\x01a", &nul[..], b"\0\0"].concat(), rule);
            connect_refused(level, 0x82, &[b"\0\x01a", &nul[..]].concat(), rule);
        }
    }

    #[test]
    fn mqtt_1_5_3_3_and_x5_a_leading_feff_is_kept_and_control_characters_are_allowed() {
        for text in ["\u{feff}a", "a\u{1}\u{1f}\u{7f}\u{9f}", "\u{ffff}\u{fdd0}\u{10ffff}"] {
            let body = [&[0, text.len() as u8], text.as_bytes()].concat();
            let Ok(Packet::Publish(publish)) = read(0x30, &body, Level::V311) else {
                panic!("{text:?}")
            };
            assert_eq!(publish.topic.as_str(), text);
        }
    }

    #[test]
    fn mqtt_3_1_0_1_a_first_packet_that_is_not_connect_is_refused() {
        for packet_type in (0..=15).filter(|packet_type| *packet_type != 1) {
            let body = connect_body(Level::V311, 0x02, b"\0\x01a");
            assert_eq!(
                connect(packet_type << 4, &body),
                Err(DecodeError::FirstPacketNotConnect.into())
            );
        }
    }

    #[test]
    fn mqtt_3_1_0_2_a_second_connect_is_refused() {
        refused(
            0x10,
            &connect_body(Level::V311, 0x02, b"\0\x01a"),
            DecodeError::SecondConnect,
        );
        refused(0x10, b"", DecodeError::SecondConnect);
    }

    #[test]
    fn mqtt_3_1_2_1_a_wrong_protocol_name_is_malformed() {
        for name in ["", "MQT", "MQTTT", "mqtt", "MQisdp", "MQIsdpX", "MQTT\0"] {
            for level in [3, 4, 5] {
                let body = [&[0, name.len() as u8], name.as_bytes(), &[level, 2, 0, 60, 0, 1, b'a']].concat();
                assert_eq!(connect(0x10, &body), Err(DecodeError::ProtocolName.into()), "{name}");
            }
        }
    }

    #[test]
    fn mqtt_3_1_2_2_and_v31_2_a_right_name_with_another_level_is_unsupported() {
        for level in (0..=u8::MAX).filter(|level| *level != 4) {
            let body = [&b"\0\x04MQTT"[..], &[level], b"\x02\0\x3c\0\x01a"].concat();
            assert_eq!(connect(0x10, &body), Err(ConnectError::UnsupportedLevel(level)));
        }
        for level in (0..=u8::MAX).filter(|level| *level != 3) {
            let body = [&b"\0\x06MQIsdp"[..], &[level], b"\x02\0\x3c\0\x01a"].concat();
            assert_eq!(connect(0x10, &body), Err(ConnectError::UnsupportedLevel(level)));
        }
    }

    #[test]
    fn v31_1_both_protocol_pairs_are_accepted() {
        for level in BOTH {
            let connect = connect_with(level, 0x02, b"\0\x01a").unwrap();
            let expected = Connect {
                level,
                clean_session: true,
                keep_alive_s: 60,
                client_id: "a".to_owned(),
                will: None,
                user_name: None,
                password: None,
            };
            assert_eq!(connect, expected);
        }
    }

    #[test]
    fn v31_7_flags_in_the_fixed_header_of_connect_are_ignored_at_level_3() {
        let body = connect_body(Level::V31, 0x02, b"\0\x01a");
        for first_byte in 0x10..=0x1f {
            assert!(connect(first_byte, &body).is_ok());
        }
    }

    #[test]
    fn mqtt_3_1_2_3_and_v31_8_bit_0_of_the_connect_flags_is_refused_at_level_4_and_ignored_at_level_3() {
        connect_refused(Level::V311, 0x03, b"\0\x01a", DecodeError::ConnectReservedFlag);
        assert!(connect_with(Level::V31, 0x03, b"\0\x01a").is_ok());
    }

    #[test]
    fn mqtt_3_1_2_9_will_flag_without_its_fields_is_refused() {
        for level in BOTH {
            connect_refused(level, 0x06, b"\0\x01a", DecodeError::BodyTooShort);
            connect_refused(level, 0x06, b"\0\x01a\0\x01w", DecodeError::BodyTooShort);
            connect_refused(level, 0x06, b"\0\x01a\0\x01w\0\x02x", DecodeError::BodyTooShort);
            assert!(connect_with(level, 0x06, b"\0\x01a\0\x01w\0\0").is_ok());
        }
    }

    #[test]
    fn mqtt_3_1_2_11_will_qos_or_will_retain_without_will_flag_is_refused() {
        for level in BOTH {
            for flags in [0x0a, 0x12, 0x22, 0x2a] {
                connect_refused(level, flags, b"\0\x01a", DecodeError::WillFlagsWithoutWill);
            }
        }
    }

    #[test]
    fn mqtt_3_1_2_14_will_qos_3_is_refused() {
        for level in BOTH {
            connect_refused(level, 0x1e, b"\0\x01a\0\x01w\0\0", DecodeError::WillQoS);
            connect_refused(level, 0x1a, b"\0\x01a", DecodeError::WillQoS);
        }
    }

    #[test]
    fn mqtt_3_1_2_18_login_bytes_without_their_flag_are_refused() {
        for level in BOTH {
            connect_refused(level, 0x02, b"\0\x01a\0\x01u", DecodeError::TrailingBytes);
            connect_refused(level, 0x82, b"\0\x01a\0\x01u\0\x01p", DecodeError::TrailingBytes);
        }
    }

    #[test]
    fn mqtt_3_1_2_19_and_v31_9_a_flag_without_its_field_is_refused_at_level_4_and_absent_at_level_3() {
        connect_refused(Level::V311, 0x82, b"\0\x01a", DecodeError::BodyTooShort);
        connect_refused(Level::V311, 0xc2, b"\0\x01a\0\x01u", DecodeError::BodyTooShort);
        for (flags, payload, user_name) in [
            (0x82, &b"\0\x01a"[..], None),
            (0xc2, b"\0\x01a", None),
            (0xc2, b"\0\x01a\0\x01u", Some("u")),
        ] {
            let connect = connect_with(Level::V31, flags, payload).unwrap();
            assert_eq!((connect.user_name.as_deref(), connect.password), (user_name, None));
        }
        // Half a field is neither there nor absent.
        connect_refused(Level::V31, 0x82, b"\0\x01a\0", DecodeError::BodyTooShort);
        connect_refused(Level::V31, 0xc2, b"\0\x01a\0\x01u\0\x05p", DecodeError::BodyTooShort);
    }

    #[test]
    fn mqtt_3_1_2_22_and_v31_10_a_password_flag_without_user_name_flag_is_refused() {
        for level in BOTH {
            connect_refused(level, 0x42, b"\0\x01a\0\x01p", DecodeError::PasswordWithoutUserName);
        }
    }

    #[test]
    fn x7_an_empty_user_name_and_a_binary_password_are_values() {
        for level in BOTH {
            let connect = connect_with(level, 0xc2, b"\0\x01a\0\0\0\x03\0\xff\0").unwrap();
            assert_eq!(connect.user_name.as_deref(), Some(""));
            assert_eq!(connect.password.as_deref(), Some(&b"\0\xff\0"[..]));
            let connect = connect_with(level, 0xc2, b"\0\0\0\0\0\0").unwrap();
            assert_eq!(
                (connect.client_id.as_str(), connect.password.as_deref()),
                ("", Some(&b""[..]))
            );
        }
    }

    #[test]
    fn x8_a_will_topic_that_is_no_topic_name_is_refused() {
        for level in BOTH {
            connect_refused(level, 0x06, b"\0\x01a\0\0\0\0", DecodeError::EmptyTopicName);
            connect_refused(level, 0x06, b"\0\x01a\0\x03a/+\0\0", DecodeError::WildcardInTopicName);
            connect_refused(level, 0x06, b"\0\x01a\0\x03a/#\0\0", DecodeError::WildcardInTopicName);
        }
    }

    #[test]
    fn section_3_1_a_connect_with_every_field_is_read_as_written_and_every_cut_of_it_is_refused() {
        for level in BOTH {
            let written = Connect {
                level,
                clean_session: false,
                keep_alive_s: 65_535,
                client_id: "ä".to_owned(),
                will: Some(Will {
                    topic: "$will/topic".to_owned(),
                    payload: vec![0, 255],
                    qos: QoS::ExactlyOnce,
                    retain: true,
                }),
                user_name: Some("user".to_owned()),
                password: Some(vec![0, 1, 2]),
            };
            let mut out = Vec::new();
            client::connect(&mut out, &written);
            let body = &out[2..];
            assert_eq!(connect(out[0], body).as_ref(), Ok(&written));
            for length in 0..body.len() {
                let cut = connect(out[0], &body[..length]);
                let before_login = body.len() - 6 - 5;
                if level == Level::V31 && (length == before_login || length == before_login + 6) {
                    assert!(cut.is_ok(), "the length takes precedence over the flags");
                } else {
                    assert_eq!(cut, Err(DecodeError::BodyTooShort.into()), "{length}");
                }
            }
        }
    }

    #[test]
    fn mqtt_3_3_1_2_dup_at_qos_0_is_refused() {
        refused(0x38, b"\0\x01a", DecodeError::DupAtQoS0);
        refused(0x39, b"\0\x01a", DecodeError::DupAtQoS0);
    }

    #[test]
    fn mqtt_3_3_1_4_both_qos_bits_are_refused() {
        refused(0x36, b"\0\x01a\0\x01", DecodeError::PublishQoS);
        refused(0x3f, b"\0\x01a\0\x01", DecodeError::PublishQoS);
    }

    #[test]
    fn mqtt_3_3_2_1_and_2_an_empty_topic_name_or_one_with_wildcards_is_refused() {
        refused(0x30, b"\0\0payload", DecodeError::EmptyTopicName);
        for topic in [
            "+",
            "#",
            "a+",
            "a/#",
            "0123456789+",
            "0123456+",
            "01234567#",
            "+0123456789abcdef",
        ] {
            refused(
                0x30,
                &[&[0, topic.len() as u8], topic.as_bytes()].concat(),
                DecodeError::WildcardInTopicName,
            );
        }
    }

    #[test]
    fn section_3_3_every_flag_and_field_of_a_publish_is_read() {
        for (first_byte, dup, qos, retain) in [
            (0x30, false, QoS::AtMostOnce, false),
            (0x31, false, QoS::AtMostOnce, true),
            (0x32, false, QoS::AtLeastOnce, false),
            (0x3b, true, QoS::AtLeastOnce, true),
            (0x3c, true, QoS::ExactlyOnce, false),
        ] {
            let packet_id = (qos != QoS::AtMostOnce).then(|| id(0x4142));
            let payload: &[u8] = if packet_id.is_some() { b"\0+#" } else { b"AB\0+#" };
            let expected = Publish {
                dup,
                qos,
                retain,
                topic: TopicName::trusted("a/b"),
                packet_id,
                payload,
            };
            for level in BOTH {
                assert_eq!(
                    read(first_byte, b"\0\x03a/bAB\0+#", level),
                    Ok(Packet::Publish(expected))
                );
            }
        }
        let Ok(Packet::Publish(empty)) = read(0x32, b"\0\x01a\0\x01", Level::V311) else {
            panic!("no payload")
        };
        assert_eq!(empty.payload, b"");
    }

    #[test]
    fn mqtt_4_7_3_3_topics_of_65_535_bytes_are_read() {
        let topic = "t".repeat(65_535);
        let body = [&[0xff, 0xff], topic.as_bytes(), b"payload"].concat();
        let Ok(Packet::Publish(publish)) = read(0x30, &body, Level::V311) else {
            panic!("the longest topic")
        };
        assert_eq!(
            (publish.topic.as_str(), publish.payload),
            (topic.as_str(), &b"payload"[..])
        );
    }

    #[test]
    fn mqtt_3_8_3_3_and_3_10_3_2_packets_without_a_filter_are_refused() {
        refused(0x82, b"\0\x01", DecodeError::SubscribeWithoutFilter);
        refused(0xa2, b"\0\x01", DecodeError::UnsubscribeWithoutFilter);
    }

    #[test]
    fn mqtt_3_8_3_4_a_requested_qos_of_3_or_with_upper_bits_is_refused_whatever_stands_before_it() {
        for options in 3..=u8::MAX {
            refused(
                0x82,
                &[0, 1, 0, 1, b'a', 1, 0, 1, b'b', options],
                DecodeError::RequestedQoS,
            );
        }
    }

    #[test]
    fn mqtt_4_7_1_a_bad_filter_is_refused_also_among_good_ones() {
        for (filter, rule) in [
            ("", DecodeError::EmptyTopicFilter),
            ("a#", DecodeError::MultiLevelWildcard),
            ("a/#/b", DecodeError::MultiLevelWildcard),
            ("a+", DecodeError::SingleLevelWildcard),
            ("a/b+", DecodeError::SingleLevelWildcard),
            ("+a/b", DecodeError::SingleLevelWildcard),
        ] {
            let entry = [&[0, filter.len() as u8], filter.as_bytes()].concat();
            refused(0x82, &[b"\0\x01\0\x01a\0", &entry[..], b"\x01"].concat(), rule);
            refused(0x82, &[b"\0\x01", &entry[..], b"\x01\0\x01a\0"].concat(), rule);
            refused(0xa2, &[b"\0\x01\0\x01a", &entry[..]].concat(), rule);
            refused(0xa2, &[b"\0\x01", &entry[..], b"\0\x01a"].concat(), rule);
        }
    }

    #[test]
    fn mqtt_3_8_4_5_filters_come_in_the_order_of_the_packet() {
        let filters = [
            ("a/+", QoS::ExactlyOnce),
            ("#", QoS::AtMostOnce),
            ("a/+", QoS::AtLeastOnce),
        ];
        let mut out = Vec::new();
        client::subscribe(&mut out, id(65_535), &filters);
        let Ok(Packet::Subscribe(subscribe)) = read(out[0], &out[2..], Level::V311) else {
            panic!("SUBSCRIBE")
        };
        assert_eq!(subscribe.packet_id, id(65_535));
        assert!(
            subscribe
                .filters()
                .map(|(filter, qos)| (filter.as_str(), qos))
                .eq(filters)
        );

        out.clear();
        client::unsubscribe(&mut out, id(2), &["b", "a", "b"]);
        let Ok(Packet::Unsubscribe(unsubscribe)) = read(out[0], &out[2..], Level::V311) else {
            panic!("UNSUBSCRIBE")
        };
        assert_eq!(unsubscribe.packet_id, id(2));
        assert!(unsubscribe.filters().map(TopicFilter::as_str).eq(["b", "a", "b"]));
    }

    #[test]
    fn section_3_4_acknowledgements_pings_and_disconnects_are_read() {
        for level in BOTH {
            assert_eq!(read(0x40, b"\x01\x02", level), Ok(Packet::PubAck(id(0x0102))));
            assert_eq!(read(0x50, b"\x01\x02", level), Ok(Packet::PubRec(id(0x0102))));
            assert_eq!(read(0x62, b"\x01\x02", level), Ok(Packet::PubRel(id(0x0102))));
            assert_eq!(read(0x70, b"\x01\x02", level), Ok(Packet::PubComp(id(0x0102))));
            assert_eq!(read(0xc0, b"", level), Ok(Packet::PingReq));
            assert_eq!(read(0xe0, b"", level), Ok(Packet::Disconnect));
        }
    }
}
