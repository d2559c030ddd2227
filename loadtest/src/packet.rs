//! The few MQTT 3.1.1 packets a load generator speaks, as bytes.
//!
//! Owns    encoding what a client sends once (CONNECT, SUBSCRIBE), the template of a PUBLISH that is copied and patched
//!         for each message, and splitting what a broker sends into frames, in place.
//! Called  by `client` (the handshake) and by every scenario.
//! Holds   - a payload starts with a [`Stamp`]: which run, which publisher, which message, sent when;
//!         - nothing here allocates per message.

use anyhow::{Result, bail};
use rustix::time::ClockId;

pub const CONNACK: u8 = 2;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
pub const PUBREC: u8 = 5;
pub const PUBREL: u8 = 6;
pub const PUBCOMP: u8 = 7;
pub const SUBACK: u8 = 9;
pub const PINGRESP: u8 = 13;

pub const PINGREQ_BYTES: [u8; 2] = [0xC0, 0];
pub const DISCONNECT_BYTES: [u8; 2] = [0xE0, 0];

/// Bytes of the [`Stamp`]: the smallest payload.
pub const STAMP_BYTES: usize = 24;

/// What the payload of each message says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Differs from run to run, so that a message left over from an earlier run is recognised.
    pub run: u32,
    pub publisher: u32,
    /// Counts a publisher's messages from 0.
    pub sequence: u64,
    /// When it was sent, or was to be sent: nanoseconds since the start of the run.
    pub time_ns: u64,
}

impl Stamp {
    pub fn read(payload: &[u8]) -> Option<Stamp> {
        let (bytes, _) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let word = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i: usize| bytes[at + i]));
        let first = word(0);
        Some(Stamp {
            run: first as u32,
            publisher: (first >> 32) as u32,
            sequence: word(8),
            time_ns: word(16),
        })
    }

    pub fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&self.run.to_le_bytes());
        payload[4..8].copy_from_slice(&self.publisher.to_le_bytes());
        payload[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        payload[16..24].copy_from_slice(&self.time_ns.to_le_bytes());
    }
}

/// Longest client id a scenario gives: what every broker takes [MQTT-3.1.3-5], and some take no longer one.
pub const CLIENT_ID_CHARS_MAX: usize = 23;
/// Longest topic, filter or client id there can be [MQTT-1.5.3].
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// User name and password of every client.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Credentials {
    /// User name every client connects with
    #[arg(long)]
    pub username: Option<String>,
    /// Password every client connects with (needs --username). Other users of this host see the flag in the list of
    /// processes, the variable they do not
    #[arg(long, requires = "username", env = "SKEIN_LOAD_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,
}

impl Credentials {
    /// `text` as a report may show it: a password that is part of a topic is left out.
    pub fn mask(&self, text: &str) -> String {
        match self.password.as_deref() {
            Some(password) if !password.is_empty() => text.replace(password, "PASSWORD"),
            _ => text.to_string(),
        }
    }
}

/// What becomes of a client's Session when its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// Clean Session 1: it starts empty and ends with the connection.
    Clean,
    /// Clean Session 0: it outlives the connection.
    Durable,
}

/// What the broker publishes for a client that goes without DISCONNECT [MQTT-3.1.2-8].
#[derive(Clone, Copy, Debug)]
pub struct Will<'a> {
    pub topic: &'a str,
    pub qos: u8,
    pub payload: &'a [u8],
}

pub fn connect(out: &mut Vec<u8>, client_id: &str, session: SessionKind, keep_alive_s: u16, credentials: &Credentials) {
    connect_with(out, client_id, session, keep_alive_s, None, credentials);
}

pub fn connect_with(
    out: &mut Vec<u8>,
    client_id: &str,
    session: SessionKind,
    keep_alive_s: u16,
    will: Option<Will<'_>>,
    credentials: &Credentials,
) {
    assert!(
        client_id.len() <= TOPIC_BYTES_MAX,
        "a name given by a flag is checked before"
    );
    let mut flags = match session {
        SessionKind::Clean => 0b10,
        SessionKind::Durable => 0,
    };
    let mut length = 10 + 2 + client_id.len();
    if let Some(will) = will {
        flags |= 0b100 | will.qos << 3;
        length += 2 + will.topic.len() + 2 + will.payload.len();
    }
    if let Some(name) = &credentials.username {
        flags |= 0x80;
        length += 2 + name.len();
    }
    if let Some(password) = &credentials.password {
        flags |= 0x40;
        length += 2 + password.len();
    }
    out.push(0x10);
    push_remaining_length(out, length);
    push_string(out, "MQTT");
    out.extend([4, flags]);
    out.extend(keep_alive_s.to_be_bytes());
    push_string(out, client_id);
    if let Some(will) = will {
        push_string(out, will.topic);
        push_bytes(out, will.payload);
    }
    for text in [&credentials.username, &credentials.password].into_iter().flatten() {
        push_string(out, text);
    }
}

/// A SUBSCRIBE for one Topic Filter, Packet Identifier 1.
pub fn subscribe(out: &mut Vec<u8>, filter: &str, qos: u8) {
    out.push(0x82);
    push_remaining_length(out, 2 + 2 + filter.len() + 1);
    out.extend([0, 1]);
    push_string(out, filter);
    out.push(qos);
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. A PUBREL carries flags 0b0010 [MQTT-3.6.1-1].
pub fn acknowledgement(out: &mut Vec<u8>, kind: u8, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend([kind << 4 | if kind == PUBREL { 2 } else { 0 }, 2, high, low]);
}

/// A PUBLISH whose Packet Identifier and [`Stamp`] are patched in place for each message.
#[derive(Debug)]
pub struct PublishTemplate {
    pub bytes: Vec<u8>,
    /// Where the [`Stamp`] stands; above QoS 0 the two bytes before it are the Packet Identifier.
    pub stamp_at: usize,
}

impl PublishTemplate {
    pub fn new(topic: &str, qos: u8, payload_bytes: usize) -> PublishTemplate {
        let mut bytes = Vec::new();
        let stamp_at = publish_packet(&mut bytes, topic, qos, payload_bytes);
        PublishTemplate { bytes, stamp_at }
    }
}

/// Puts a PUBLISH behind what is in `out`, Packet Identifier and [`Stamp`] still to be written. Gives where the stamp stands.
#[inline]
pub fn publish_packet(out: &mut Vec<u8>, topic: &str, qos: u8, payload_bytes: usize) -> usize {
    let id_bytes = if qos > 0 { 2 } else { 0 };
    out.push(0x30 | qos << 1);
    push_remaining_length(out, 2 + topic.len() + id_bytes + payload_bytes);
    push_string(out, topic);
    let stamp_at = out.len() + id_bytes;
    out.resize(stamp_at + payload_bytes, b'.');
    stamp_at
}

/// One control packet in a read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub first_byte: u8,
    pub body: &'a [u8],
    /// Length with the fixed header.
    pub len: usize,
}

impl<'a> Frame<'a> {
    pub fn kind(&self) -> u8 {
        self.first_byte >> 4
    }

    /// The Packet Identifier of an acknowledgement.
    pub fn packet_id(&self) -> Result<u16> {
        match self.body {
            [high, low] => Ok(u16::from_be_bytes([*high, *low])),
            _ => bail!("an acknowledgement of {} bytes where 2 are the rule", self.body.len()),
        }
    }
}

/// The frame at the start of `bytes`, if all of it is there.
#[inline]
pub fn next_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>> {
    let (length, header) = match bytes {
        [_, a, ..] if *a < 0x80 => (*a as usize, 2),
        [_, a, b, ..] if *b < 0x80 => ((*a & 0x7F) as usize | (*b as usize) << 7, 3),
        [_, a, b, c, ..] if *c < 0x80 => (
            (*a & 0x7F) as usize | ((*b & 0x7F) as usize) << 7 | (*c as usize) << 14,
            4,
        ),
        [_, a, b, c, d, ..] => {
            if *d >= 0x80 {
                bail!("a remaining length of more than four bytes");
            }
            let low = (*a & 0x7F) as usize | ((*b & 0x7F) as usize) << 7 | ((*c & 0x7F) as usize) << 14;
            (low | (*d as usize) << 21, 5)
        }
        _ => return Ok(None),
    };
    Ok(bytes.get(header..header + length).map(|body| Frame {
        first_byte: bytes[0],
        body,
        len: header + length,
    }))
}

/// What a subscriber needs of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    pub qos: u8,
    pub retain: bool,
    pub topic: &'a [u8],
    /// 0 at QoS 0.
    pub packet_id: u16,
    pub payload: &'a [u8],
}

#[inline]
pub fn publish<'a>(frame: Frame<'a>) -> Result<Publish<'a>> {
    let qos = frame.first_byte >> 1 & 3;
    let retain = frame.first_byte & 1 == 1;
    if let Some((topic_bytes, rest)) = frame.body.split_first_chunk::<2>()
        && let Some((topic, rest)) = rest.split_at_checked(u16::from_be_bytes(*topic_bytes) as usize)
    {
        if qos == 0 {
            return Ok(Publish {
                qos,
                retain,
                topic,
                packet_id: 0,
                payload: rest,
            });
        }
        if let Some((id, payload)) = rest.split_first_chunk::<2>() {
            return Ok(Publish {
                qos,
                retain,
                topic,
                packet_id: u16::from_be_bytes(*id),
                payload,
            });
        }
    }
    bail!("a PUBLISH too short for its own topic")
}

/// Differs from run to run and from process to process.
pub fn run_tag() -> u32 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let mixed =
        (now.tv_sec as u64).wrapping_mul(1_000_000_007) ^ (now.tv_nsec as u64) ^ (std::process::id() as u64) << 32;
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

fn push_remaining_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = (length & 0x7F) as u8;
        length >>= 7;
        if length == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    push_bytes(out, text.as_bytes());
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patched_template_reads_back_as_it_was_stamped() {
        for (qos, size) in [(0, 24), (1, 64), (2, 200), (1, 20_000), (0, 3_000_000)] {
            let mut template = PublishTemplate::new("bench/7", qos, size);
            let stamp = Stamp {
                run: 0xDEAD_BEEF,
                publisher: 70_000,
                sequence: 1 << 40,
                time_ns: 987_654_321_012,
            };
            if qos > 0 {
                template.bytes[template.stamp_at - 2..template.stamp_at].copy_from_slice(&513u16.to_be_bytes());
            }
            stamp.write(&mut template.bytes[template.stamp_at..]);
            let frame = next_frame(&template.bytes).unwrap().unwrap();
            assert_eq!((frame.kind(), frame.len), (PUBLISH, template.bytes.len()));
            let publish = publish(frame).unwrap();
            assert_eq!((publish.qos, publish.payload.len()), (qos, size));
            assert_eq!((publish.topic, publish.retain), (&b"bench/7"[..], false));
            assert_eq!(publish.packet_id, if qos > 0 { 513 } else { 0 });
            assert_eq!(Stamp::read(publish.payload), Some(stamp));
        }
    }

    #[test]
    fn a_frame_is_given_only_when_its_last_byte_is_there() {
        for size in [24, 130, 20_000] {
            let bytes = PublishTemplate::new("t", 0, size).bytes;
            for cut in (0..bytes.len()).step_by(7) {
                assert_eq!(next_frame(&bytes[..cut]).unwrap(), None, "{cut} of {}", bytes.len());
            }
            assert!(next_frame(&bytes).unwrap().is_some());
        }
        assert!(next_frame(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF]).is_err());
    }

    #[test]
    fn connect_and_subscribe_are_the_bytes_of_the_specification() {
        let mut out = Vec::new();
        connect(&mut out, "a", SessionKind::Clean, 60, &Credentials::default());
        assert_eq!(out, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a");
        out.clear();
        connect(&mut out, "a", SessionKind::Durable, 60, &Credentials::default());
        assert_eq!(out, b"\x10\x0d\x00\x04MQTT\x04\x00\x00\x3c\x00\x01a");
        out.clear();
        let with = Credentials {
            username: Some("u".into()),
            password: Some("pw".into()),
        };
        connect(&mut out, "a", SessionKind::Clean, 0, &with);
        assert_eq!(out, b"\x10\x14\x00\x04MQTT\x04\xc2\x00\x00\x00\x01a\x00\x01u\x00\x02pw");
        out.clear();
        let will = Will {
            topic: "w",
            qos: 2,
            payload: b"end",
        };
        connect_with(&mut out, "a", SessionKind::Clean, 0, Some(will), &with);
        assert_eq!(
            out,
            b"\x10\x1c\x00\x04MQTT\x04\xd6\x00\x00\x00\x01a\x00\x01w\x00\x03end\x00\x01u\x00\x02pw"
        );
        out.clear();
        subscribe(&mut out, "b/#", 1);
        assert_eq!(out, b"\x82\x08\x00\x01\x00\x03b/#\x01");
        out.clear();
        acknowledgement(&mut out, PUBREL, 258);
        assert_eq!(out, [0x62, 2, 1, 2]);
    }

    #[test]
    fn a_publish_shorter_than_its_topic_is_an_error() {
        let frame = Frame {
            first_byte: 0x30,
            body: &[0, 5, b'a'],
            len: 5,
        };
        assert!(publish(frame).is_err());
        let frame = Frame {
            first_byte: 0x32,
            body: &[0, 1, b'a', 0],
            len: 6,
        };
        assert!(publish(frame).is_err());
    }

    #[test]
    fn a_password_in_a_topic_is_masked() {
        let with = |password: Option<&str>| Credentials {
            username: Some("U1".into()),
            password: password.map(String::from),
        };
        assert_eq!(with(Some("5B7E")).mask("5B7E/{}/subscribe"), "PASSWORD/{}/subscribe");
        for nothing_to_mask in [None, Some("")] {
            assert_eq!(with(nothing_to_mask).mask("idle/{}"), "idle/{}");
        }
    }
}
