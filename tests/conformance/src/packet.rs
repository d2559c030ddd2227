//! Control Packets as bytes: built as a case wants them, wrong ones included, and read as strictly as the standard reads.
//!
//! Called  by `client` and by the cases.
//! Holds   - what a broker sends is checked here whatever the case is about: flags, lengths, identifiers, topic names.

pub const CONNACK: u8 = 0x20;
pub const PUBLISH: u8 = 0x30;
pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x60;
pub const PUBCOMP: u8 = 0x70;
pub const SUBACK: u8 = 0x90;
pub const UNSUBACK: u8 = 0xB0;
pub const PINGRESP: u8 = 0xD0;

pub const PINGREQ: [u8; 2] = [0xC0, 0];
pub const DISCONNECT: [u8; 2] = [0xE0, 0];

/// A string or a Will Message with its length in two bytes.
pub fn field(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let length = u16::try_from(bytes.len()).expect("a case keeps its strings below 65,536 bytes");
    [&length.to_be_bytes(), bytes].concat()
}

/// Any packet: its first byte, the Remaining Length that the body has, and the body.
pub fn packet(first: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let more = length > 127;
        bytes.push((length & 127) as u8 | if more { 128 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

/// A PUBLISH; the identifier is left out at QoS 0. `flags` are the four bits of the header.
pub fn publish(flags: u8, topic: impl AsRef<[u8]>, id: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut body = field(topic);
    if flags & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend(payload.as_ref());
    packet(PUBLISH | flags, body)
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP: whatever is an identifier and no more.
pub fn acknowledgement(first: u8, id: u16) -> Vec<u8> {
    packet(first, id.to_be_bytes())
}

pub fn subscribe(id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    for (filter, qos) in filters {
        body.extend(field(filter));
        body.push(*qos);
    }
    packet(0x82, body)
}

pub fn unsubscribe(id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    for filter in filters {
        body.extend(field(filter));
    }
    packet(0xA2, body)
}

/// A CONNECT, field by field, so that a case can leave out, add or spoil any of them.
#[derive(Clone, Debug)]
pub struct Hello {
    pub header: u8,
    pub protocol: Vec<u8>,
    pub level: u8,
    pub flags: u8,
    pub keep_alive_s: u16,
    /// Client Identifier, Will Topic, Will Message, user name, password: those there are.
    pub fields: Vec<Vec<u8>>,
}

impl Hello {
    pub const CLEAN: u8 = 0x02;
    pub const WILL: u8 = 0x04;
    pub const WILL_RETAIN: u8 = 0x20;
    pub const PASSWORD: u8 = 0x40;
    pub const USER: u8 = 0x80;

    pub fn durable(mut self) -> Hello {
        self.flags &= !Hello::CLEAN;
        self
    }

    pub fn keep_alive(mut self, seconds: u16) -> Hello {
        self.keep_alive_s = seconds;
        self
    }

    pub fn will(mut self, topic: impl AsRef<[u8]>, message: impl AsRef<[u8]>, qos: u8, retain: bool) -> Hello {
        self.flags |= Hello::WILL | qos << 3 | if retain { Hello::WILL_RETAIN } else { 0 };
        self.fields.insert(1, topic.as_ref().to_vec());
        self.fields.insert(2, message.as_ref().to_vec());
        self
    }

    pub fn id(mut self, id: impl AsRef<[u8]>) -> Hello {
        self.fields[0] = id.as_ref().to_vec();
        self
    }

    /// MQTT 3.1.
    pub fn level3(mut self) -> Hello {
        self.protocol = b"MQIsdp".to_vec();
        self.level = 3;
        self
    }

    pub fn flag(mut self, flag: u8) -> Hello {
        self.flags |= flag;
        self
    }

    pub fn without_flag(mut self, flag: u8) -> Hello {
        self.flags &= !flag;
        self
    }

    pub fn protocol(mut self, name: &str, level: u8) -> Hello {
        self.protocol = name.into();
        self.level = level;
        self
    }

    /// No user name, no password: flags and fields.
    pub fn anonymous(mut self) -> Hello {
        let credentials = (self.flags & Hello::USER != 0) as usize + (self.flags & Hello::PASSWORD != 0) as usize;
        self.fields.truncate(self.fields.len() - credentials);
        self.without_flag(Hello::USER | Hello::PASSWORD)
    }

    /// One more field behind the others; what the flags say of it is the case's own affair.
    pub fn with_field(mut self, bytes: impl AsRef<[u8]>) -> Hello {
        self.fields.push(bytes.as_ref().to_vec());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut body = field(&self.protocol);
        body.extend([self.level, self.flags]);
        body.extend(self.keep_alive_s.to_be_bytes());
        self.fields.iter().for_each(|bytes| body.extend(field(bytes)));
        packet(self.header, body)
    }
}

/// What came from the broker: a packet that keeps the rules of its own form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub first: u8,
    pub body: Vec<u8>,
}

impl Packet {
    /// The first packet of `bytes` and how many of them it takes; `None` while it is not whole.
    pub fn cut(bytes: &[u8]) -> Result<Option<(Packet, usize)>, String> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let mut length = 0;
        for place in 0..4 {
            let Some(&digit) = bytes.get(1 + place) else {
                return Ok(None);
            };
            length |= usize::from(digit & 127) << (7 * place);
            if digit & 128 == 0 {
                let (start, end) = (2 + place, 2 + place + length);
                let Some(body) = bytes.get(start..end) else {
                    return Ok(None);
                };
                let body = body.to_vec();
                return Ok(Some((Packet { first, body }, end)));
            }
        }
        Err("a Remaining Length of more than four bytes".into())
    }

    pub fn kind(&self) -> u8 {
        self.first & 0xF0
    }

    /// The identifier of an acknowledgement.
    pub fn id(&self) -> u16 {
        self.body.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]))
    }

    /// The rule that its form breaks, if any: [MQTT-2.2.2-1], [MQTT-2.3.1-1], [MQTT-2.3.1-5], [MQTT-3.3.1-2] and their like.
    /// At level 3 a PUBREL that is sent again has DUP set.
    pub fn fault(&self, level: u8) -> Option<String> {
        let flags = self.first & 15;
        let (wanted_flags, wanted_length) = match self.kind() {
            PUBLISH => return self.message().err(),
            CONNACK | PUBACK | PUBREC | PUBCOMP | UNSUBACK => (0, 2..=2),
            PUBREL if level == 3 => (flags & 8 | 2, 2..=2),
            PUBREL => (2, 2..=2),
            SUBACK => (0, 3..=usize::MAX),
            PINGRESP => (0, 0..=0),
            _ => return Some("a packet that no broker sends".into()),
        };
        if flags != wanted_flags {
            return Some(format!("flags {flags} where {wanted_flags} is reserved [MQTT-2.2.2-1]"));
        }
        if !wanted_length.contains(&self.body.len()) {
            return Some(format!("a body of {} bytes", self.body.len()));
        }
        (self.kind() != CONNACK && self.kind() != PINGRESP && self.id() == 0)
            .then(|| "Packet Identifier 0 [MQTT-2.3.1-1]".into())
    }

    /// A PUBLISH taken apart.
    pub fn message(&self) -> Result<Message, String> {
        let (dup, qos, retain) = (self.first & 8 != 0, self.first >> 1 & 3, self.first & 1 != 0);
        if qos == 3 {
            return Err("a PUBLISH of QoS 3 [MQTT-3.3.1-4]".into());
        }
        if qos == 0 && dup {
            return Err("a PUBLISH of QoS 0 with DUP [MQTT-3.3.1-2]".into());
        }
        let length = usize::from(self.id());
        let topic = self
            .body
            .get(2..2 + length)
            .ok_or("a PUBLISH without a whole topic name")?;
        let topic = String::from_utf8(topic.to_vec()).map_err(|_| "a topic name that is no UTF-8 [MQTT-1.5.3-1]")?;
        if topic.is_empty() || topic.contains(['+', '#', '\0']) {
            return Err("a topic name that is empty or has a wildcard or U+0000 in it [MQTT-3.3.2-2]".into());
        }
        let rest = &self.body[2 + length..];
        let (id, payload) = match (qos, rest) {
            (0, payload) => (0, payload),
            (_, [high, low, payload @ ..]) => (u16::from_be_bytes([*high, *low]), payload),
            _ => return Err("a PUBLISH without a Packet Identifier [MQTT-2.3.1-1]".into()),
        };
        if qos > 0 && id == 0 {
            return Err("a PUBLISH with Packet Identifier 0 [MQTT-2.3.1-1]".into());
        }
        let payload = payload.to_vec();
        Ok(Message {
            dup,
            qos,
            retain,
            topic,
            id,
            payload,
        })
    }
}

/// A PUBLISH from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub dup: bool,
    pub qos: u8,
    pub retain: bool,
    pub topic: String,
    pub id: u16,
    pub payload: Vec<u8>,
}

pub fn name(kind: u8) -> &'static str {
    const NAMES: [&str; 16] = [
        "packet type 0",
        "CONNECT",
        "CONNACK",
        "PUBLISH",
        "PUBACK",
        "PUBREC",
        "PUBREL",
        "PUBCOMP",
        "SUBSCRIBE",
        "SUBACK",
        "UNSUBSCRIBE",
        "UNSUBACK",
        "PINGREQ",
        "PINGRESP",
        "DISCONNECT",
        "packet type 15",
    ];
    NAMES[usize::from(kind >> 4)]
}

/// Bytes for people: hex, and text in quotes where four or more in a row are printable.
pub fn show(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 96;
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let mut words = Vec::new();
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'"';
    let mut at = 0;
    while at < shown.len() {
        let run = shown[at..].iter().take_while(|byte| is_text(byte)).count();
        if run >= 4 {
            words.push(format!("{:?}", String::from_utf8_lossy(&shown[at..at + run])));
            at += run;
        } else {
            words.push(format!("{:02x}", shown[at]));
            at += 1;
        }
    }
    if shown.len() < bytes.len() {
        words.push(format!("… ({} bytes)", bytes.len()));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_cut_when_it_is_whole() {
        let bytes = publish(2, "a/b", 7, vec![b'x'; 200]);
        assert_eq!(Packet::cut(&bytes[..bytes.len() - 1]), Ok(None));
        let (packet, length) = Packet::cut(&bytes).unwrap().unwrap();
        assert_eq!((length, packet.fault(4)), (bytes.len(), None));
        let message = packet.message().unwrap();
        assert_eq!((message.topic.as_str(), message.qos, message.id), ("a/b", 1, 7));
        assert!(Packet::cut(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]).is_err());
    }

    #[test]
    fn what_breaks_the_rules_of_its_form_is_told() {
        for bytes in [
            &[0x21, 2, 0, 0][..],
            &[0x40, 2, 0, 0],
            &[0x60, 2, 0, 1],
            &[0x90, 2, 0, 1],
            &[0xD0, 1, 0],
            &[0x38, 3, 0, 1, b'a'],
            &[0x36, 5, 0, 1, b'a', 0, 1],
            &[0x32, 5, 0, 1, b'a', 0, 0],
            &[0x30, 3, 0, 1, b'#'],
            &[0x30, 2, 0, 0],
            &[0xE0, 0],
        ] {
            let (packet, _) = Packet::cut(bytes).unwrap().unwrap();
            assert!(packet.fault(4).is_some(), "{bytes:?}");
        }
    }

    #[test]
    fn dup_in_a_pubrel_is_for_level_3() {
        let again = Packet {
            first: 0x6A,
            body: vec![0, 1],
        };
        assert!(again.fault(4).is_some());
        assert_eq!(again.fault(3), None);
    }

    #[test]
    fn a_hello_is_what_the_standard_draws() {
        let hello = Hello {
            header: 0x10,
            protocol: b"MQTT".to_vec(),
            level: 4,
            flags: Hello::CLEAN,
            keep_alive_s: 60,
            fields: vec![b"a".to_vec()],
        };
        assert_eq!(hello.bytes(), b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a");
        let hello = hello.flag(Hello::USER).with_field("u").will("t", "w", 1, true);
        assert_eq!(hello.flags, 0xAE);
        assert_eq!(hello.fields, [b"a", b"t", b"w", b"u"]);
        assert_eq!(hello.anonymous().fields.len(), 3);
    }

    #[test]
    fn bytes_are_shown_as_text_where_they_are() {
        assert_eq!(show(b"\x30\x06\x00\x04topic"), r#"30 06 00 04 "topic""#);
        assert!(show(&[0; 200]).ends_with("… (200 bytes)"));
    }
}
