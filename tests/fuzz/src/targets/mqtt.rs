//! The codec: any bytes at any cuts; what may be read and what must not, by the rules of both versions written down once more;
//! whatever is read written and read again; and mqttbytes as another reader of what is valid.

use fuzz::limits::RUN_BYTES_MAX;
use fuzz::mqtt::client::{self, ServerPacket, decode_from_server};
use fuzz::mqtt::decode::{decode, decode_after, decode_connect};
use fuzz::mqtt::encode;
use fuzz::mqtt::frame::{Frame, Framing, next_frame};
use fuzz::mqtt::fuzz_packets;
use fuzz::mqtt::packet::{Connect, Level, Packet, PacketId, QoS};
use fuzz::mqtt::run::{AcknowledgementKind, AcknowledgementRun, Run};
use fuzz::registry::access::Access;
use fuzz::shard::greeting::{Greeting, Identity, greet};
use mqttbytes::v4;

const PACKET_BYTES_MAX: usize = 4_096;
const CLIENT_ID_CHARS_MAX: usize = 23;

pub fn check(bytes: &[u8]) {
    fuzz_packets(bytes);
    greeting(bytes);
    let mut rest = bytes;
    let mut topic = None;
    loop {
        a_cut_changes_nothing(rest);
        let Ok(Framing::Whole(frame)) = next_frame(rest, PACKET_BYTES_MAX) else {
            return;
        };
        let connect = decode_connect(frame);
        assert_eq!(connect.is_ok(), Body(frame.body).connect(frame.first_byte).is_some());
        if let Ok(connect) = connect {
            as_they_read_connect(&connect);
        }
        for level in [Level::V31, Level::V311] {
            let packet = decode(frame, level);
            let must_be_read = Body(frame.body).packet(frame.first_byte, level).is_some();
            assert_eq!(packet.is_ok(), must_be_read, "{frame:02x?} {level:?}");
            let Ok(packet) = packet else { continue };
            // What is known of the packet before saves work, and changes nothing.
            assert_eq!(decode_after(frame, level, topic), Ok(packet));
            let written = written(packet);
            let again = whole(&written);
            assert_eq!(decode(again, level), Ok(packet));
            if level == Level::V311 {
                assert_eq!(read_by_them(&written), theirs(packet));
            }
        }
        if let Ok(packet) = decode_from_server(frame) {
            let written = written_by_server(packet);
            assert_eq!(decode_from_server(whole(&written)), Ok(packet));
        }
        a_run_is_its_packets(frame, rest);
        an_acknowledgement_run_is_its_packets(rest);
        if let Ok(Packet::Publish(publish)) = decode(frame, Level::V311) {
            topic = Some(publish.topic);
        }
        rest = &rest[frame.len..];
    }
}

/// A packet that is not whole is announced as such, by no more bytes than it has; the rest of the stream says nothing of it.
fn a_cut_changes_nothing(bytes: &[u8]) {
    let verdict = next_frame(bytes, PACKET_BYTES_MAX);
    let end = match verdict {
        Ok(Framing::Whole(frame)) => frame.len,
        Ok(Framing::Missing(_)) => bytes.len() + 1,
        Err(_) => (1..=bytes.len())
            .find(|&length| next_frame(&bytes[..length], PACKET_BYTES_MAX).is_err())
            .expect("they do at last"),
    };
    for length in 0..end.min(bytes.len() + 1) {
        let Ok(Framing::Missing(missing)) = next_frame(&bytes[..length], PACKET_BYTES_MAX) else {
            panic!("{length} bytes are none");
        };
        assert!(missing >= 1);
        if let Ok(Framing::Whole(frame)) = verdict {
            assert!(length + missing <= frame.len);
        }
    }
    if end <= bytes.len() {
        assert_eq!(next_frame(&bytes[..end], PACKET_BYTES_MAX), verdict);
    }
}

/// What is left of a packet's body. `None`: a rule is broken.
struct Body<'b>(&'b [u8]);

impl<'b> Body<'b> {
    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        let digits = self.take(bytes)?.iter();
        Some(digits.fold(0, |number, digit| number << 8 | usize::from(*digit)))
    }

    fn data(&mut self) -> Option<&'b [u8]> {
        let length = self.number(2)?;
        self.take(length)
    }

    /// Section 1.5.3.
    fn text(&mut self) -> Option<&'b str> {
        std::str::from_utf8(self.data()?)
            .ok()
            .filter(|text| !text.contains('\0'))
    }

    /// Section 4.7.
    fn topic(&mut self) -> Option<&'b str> {
        self.text()
            .filter(|text| !text.is_empty() && !text.contains(['+', '#']))
    }

    fn filter(&mut self) -> Option<&'b str> {
        let filter = self.text().filter(|text| !text.is_empty())?;
        let (before, last) = filter
            .rsplit_once('/')
            .map_or(("", filter), |(before, last)| (before, last));
        let is_level = |level: &str| level == "+" || !level.contains(['+', '#']);
        ((last == "#" || is_level(last)) && before.split('/').all(is_level)).then_some(filter)
    }

    /// Section 2.3.1.
    fn identifier(&mut self) -> Option<usize> {
        self.number(2).filter(|identifier| *identifier != 0)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// A whole CONNECT: section 3.1.
    fn connect(mut self, first_byte: u8) -> Option<()> {
        let is_old = match (self.data()?, self.number(1)?) {
            (b"MQTT", 4) => false,
            (b"MQIsdp", 3) => true,
            _ => return None,
        };
        let flags = self.number(1)?;
        let has = |bit: usize| flags & 1 << bit != 0;
        let (user_name, password, will_retain, will) = (has(7), has(6), has(5), has(2));
        let will_qos = flags >> 3 & 3;
        let is_good = first_byte >> 4 == 1
            && (is_old || (first_byte == 0x10 && !has(0)))
            && will_qos < 3
            && (will || (will_qos == 0 && !will_retain))
            && (user_name || !password);
        is_good.then_some(())?;
        self.number(2)?;
        self.text()?;
        if will {
            self.topic()?;
            self.data()?;
        }
        // In 3.1 a packet may end before what its flags say.
        if user_name && !(is_old && self.0.is_empty()) {
            self.text()?;
        }
        if password && !(is_old && self.0.is_empty()) {
            self.data()?;
        }
        self.end()
    }

    /// A whole packet that a client sends behind its CONNECT: sections 3.3 to 3.14.
    fn packet(mut self, first_byte: u8, level: Level) -> Option<()> {
        let flags = first_byte & 0x0f;
        // In 3.1 what is sent again has DUP.
        let is_two = flags == 2 || (flags == 10 && level == Level::V31);
        match first_byte >> 4 {
            3 => {
                let (dup, qos) = (flags & 8 != 0, flags >> 1 & 3);
                (qos < 3 && (qos > 0 || !dup)).then_some(())?;
                self.topic()?;
                if qos > 0 {
                    self.identifier()?;
                }
                return Some(());
            }
            4 | 5 | 7 if flags == 0 => drop(self.identifier()?),
            6 if is_two => drop(self.identifier()?),
            kind @ (8 | 10) if is_two => {
                self.identifier()?;
                loop {
                    self.filter()?;
                    if kind == 8 {
                        self.number(1).filter(|qos| *qos < 3)?;
                    }
                    if self.0.is_empty() {
                        break;
                    }
                }
            }
            12 | 14 if flags == 0 => {}
            _ => return None,
        }
        self.end()
    }
}

/// The first packet of a connection, as it comes in.
fn greeting(bytes: &[u8]) {
    let judged = |length: usize| {
        greet(
            &bytes[..length],
            || Identity::Claimed,
            &Access::Open,
            CLIENT_ID_CHARS_MAX,
            || "fresh".to_owned(),
        )
    };
    let whole = judged(bytes.len());
    let step = (bytes.len() / 64).max(1);
    let mut has_fallen = false;
    for length in (0..=bytes.len()).step_by(step) {
        let found = judged(length);
        if has_fallen {
            assert_eq!(found, whole, "with {length} bytes");
        }
        has_fallen |= found != Greeting::Incomplete;
        if let Greeting::Accepted { connect, consumed, .. } = found {
            assert!(consumed <= length && !connect.client_id.is_empty());
            assert!(connect.client_id.chars().count() <= CLIENT_ID_CHARS_MAX);
        }
    }
}

/// The first packets of a stream and their lengths, as far as each is as it would be written, read alike by both versions, and the
/// same as the first by this.
fn alike<'b, T: PartialEq>(
    bytes: &'b [u8],
    likeness: impl Fn(Packet<'b>) -> Option<T>,
) -> (Option<T>, Vec<(Packet<'b>, usize)>) {
    let (mut rest, mut of_all, mut packets) = (bytes, None, Vec::new());
    while let Ok(Framing::Whole(frame)) = next_frame(rest, PACKET_BYTES_MAX)
        && let Ok(packet) = decode(frame, Level::V311)
        && decode(frame, Level::V31) == Ok(packet)
        && let Some(this) = likeness(packet)
        && *of_all.get_or_insert_with(|| likeness(packet).expect("it has one")) == this
        && written(packet) == rest[..frame.len]
    {
        packets.push((packet, frame.len));
        rest = &rest[frame.len..];
    }
    (of_all, packets)
}

/// A run is the packets that would be read without it, as many as there are.
fn a_run_is_its_packets(first: Frame<'_>, bytes: &[u8]) {
    let (of_all, mut packets) = alike(bytes, |packet| match packet {
        Packet::Publish(publish) if !publish.dup && !publish.retain => Some((publish.topic, publish.qos)),
        _ => None,
    });
    let mut ends: Vec<usize> = packets
        .iter()
        .scan(0, |end, (_, len)| {
            *end += len;
            Some(*end)
        })
        .collect();
    ends.retain(|end| *end <= RUN_BYTES_MAX);
    packets.truncate(ends.len());
    let run = Run::beginning_with(first, bytes, PACKET_BYTES_MAX);
    let Some((topic, qos)) = of_all.filter(|(_, qos)| packets.len() >= if *qos == QoS::AtMostOnce { 1 } else { 2 })
    else {
        return assert_eq!(run, None);
    };
    let run = run.expect("there is one");
    assert_eq!((run.topic, run.qos, run.count), (topic, qos, packets.len() as u32));
    assert_eq!(run.frames, &bytes[..ends[packets.len() - 1]]);
    assert!(
        run.publishes()
            .map(Packet::Publish)
            .eq(packets.iter().map(|(packet, _)| *packet))
    );
    assert!(run.lens().eq(packets.iter().map(|(_, len)| *len)));
    for ((publish, len), end) in run.publishes().zip(run.lens()).zip(&ends) {
        assert_eq!(run.message_len(len), topic.as_str().len() + publish.payload.len());
        if let Some(packet_id) = publish.packet_id {
            let at = end - len + run.packet_id_at(len);
            assert_eq!(bytes[at..at + 2], packet_id.get().to_be_bytes());
        }
    }
    if qos > QoS::AtMostOnce {
        assert!(
            run.packet_ids()
                .eq(run.publishes().filter_map(|publish| publish.packet_id))
        );
    }
    assert_eq!(Run::trusted(run.frames, run.count), run);
    // Their first ones: by number, and those that begin within so many bytes.
    for count in [0, 1, packets.len() / 2, packets.len()] {
        let end = ends[..count].last().copied().unwrap_or(0);
        let firsts = Run {
            frames: &bytes[..end],
            count: count as u32,
            ..run
        };
        assert_eq!((run.first(count as u32), run.up_to(end)), (firsts, firsts));
        if count > 0 {
            assert_eq!(run.up_to(end - packets[count - 1].1 + 1), firsts);
        }
    }
}

/// The same for acknowledgements.
fn an_acknowledgement_run_is_its_packets(bytes: &[u8]) {
    let read = |packet| match packet {
        Packet::PubAck(id) => Some((AcknowledgementKind::PubAck, id)),
        Packet::PubRec(id) => Some((AcknowledgementKind::PubRec, id)),
        Packet::PubRel(id) => Some((AcknowledgementKind::PubRel, id)),
        Packet::PubComp(id) => Some((AcknowledgementKind::PubComp, id)),
        _ => None,
    };
    let (kind, packets) = alike(bytes, |packet| Some(read(packet)?.0));
    let run = AcknowledgementRun::beginning(bytes);
    let Some(kind) = kind.filter(|_| packets.len() >= 2) else {
        return assert_eq!(run, None);
    };
    let run = run.expect("there is one");
    assert_eq!(
        (run.kind, run.bytes()),
        (kind, packets.iter().map(|(_, len)| len).sum())
    );
    assert!(
        run.packet_ids()
            .eq(packets.iter().filter_map(|(packet, _)| Some(read(*packet)?.1)))
    );
}

fn whole(bytes: &[u8]) -> Frame<'_> {
    match next_frame(bytes, usize::MAX) {
        Ok(Framing::Whole(frame)) if frame.len == bytes.len() => frame,
        other => panic!("we wrote a whole packet: {other:?}"),
    }
}

fn written(packet: Packet<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match packet {
        Packet::Publish(publish) => encode::publish(
            &mut out,
            publish.dup,
            publish.qos,
            publish.retain,
            publish.topic.as_str(),
            publish.packet_id,
            publish.payload,
        ),
        Packet::PubAck(id) => encode::puback(&mut out, id),
        Packet::PubRec(id) => encode::pubrec(&mut out, id),
        Packet::PubRel(id) => encode::pubrel(&mut out, id),
        Packet::PubComp(id) => encode::pubcomp(&mut out, id),
        Packet::Subscribe(subscribe) => {
            let filters: Vec<_> = subscribe
                .filters()
                .map(|(filter, qos)| (filter.as_str(), qos))
                .collect();
            client::subscribe(&mut out, subscribe.packet_id, &filters);
        }
        Packet::Unsubscribe(unsubscribe) => {
            let filters: Vec<_> = unsubscribe.filters().map(|filter| filter.as_str()).collect();
            client::unsubscribe(&mut out, unsubscribe.packet_id, &filters);
        }
        Packet::PingReq => client::pingreq(&mut out),
        Packet::Disconnect => client::disconnect(&mut out),
    }
    out
}

fn written_by_server(packet: ServerPacket<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match packet {
        ServerPacket::ConnAck { session_present, code } => encode::connack(&mut out, session_present, code),
        ServerPacket::Publish(publish) => out = written(Packet::Publish(publish)),
        ServerPacket::PubAck(id) => encode::puback(&mut out, id),
        ServerPacket::PubRec(id) => encode::pubrec(&mut out, id),
        ServerPacket::PubRel(id) => encode::pubrel(&mut out, id),
        ServerPacket::PubComp(id) => encode::pubcomp(&mut out, id),
        ServerPacket::SubAck(suback) => {
            encode::suback(&mut out, suback.packet_id, &suback.codes().collect::<Vec<_>>());
        }
        ServerPacket::UnsubAck(id) => encode::unsuback(&mut out, id),
        ServerPacket::PingResp => encode::pingresp(&mut out),
    }
    out
}

fn read_by_them(bytes: &[u8]) -> v4::Packet {
    let mut stream = bytes.iter().copied().collect();
    let packet = v4::read(&mut stream, usize::MAX).expect("a valid packet");
    assert!(stream.is_empty(), "the whole packet was read");
    packet
}

fn their_qos(qos: QoS) -> mqttbytes::QoS {
    mqttbytes::qos(qos as u8).expect("the same three")
}

/// Our packet in their types.
fn theirs(packet: Packet<'_>) -> v4::Packet {
    match packet {
        Packet::Publish(publish) => {
            let mut theirs = v4::Publish::new(publish.topic.as_str(), their_qos(publish.qos), publish.payload);
            theirs.dup = publish.dup;
            theirs.retain = publish.retain;
            theirs.pkid = publish.packet_id.map_or(0, PacketId::get);
            v4::Packet::Publish(theirs)
        }
        Packet::PubAck(id) => v4::Packet::PubAck(v4::PubAck::new(id.get())),
        Packet::PubRec(id) => v4::Packet::PubRec(v4::PubRec::new(id.get())),
        Packet::PubRel(id) => v4::Packet::PubRel(v4::PubRel::new(id.get())),
        Packet::PubComp(id) => v4::Packet::PubComp(v4::PubComp::new(id.get())),
        Packet::Subscribe(subscribe) => {
            let filters = subscribe.filters();
            let mut theirs = v4::Subscribe::new_many(
                filters.map(|(filter, qos)| v4::SubscribeFilter::new(filter.as_str().to_owned(), their_qos(qos))),
            );
            theirs.pkid = subscribe.packet_id.get();
            v4::Packet::Subscribe(theirs)
        }
        Packet::Unsubscribe(unsubscribe) => v4::Packet::Unsubscribe(v4::Unsubscribe {
            pkid: unsubscribe.packet_id.get(),
            topics: unsubscribe.filters().map(|filter| filter.as_str().to_owned()).collect(),
        }),
        Packet::PingReq => v4::Packet::PingReq,
        Packet::Disconnect => v4::Packet::Disconnect,
    }
}

/// As far as they know what a CONNECT may be: not level 3, no password that is not text, no empty user name.
fn as_they_read_connect(connect: &Connect) {
    let password = connect.password.clone().map(String::from_utf8).transpose();
    let (Level::V311, Ok(password)) = (connect.level, password) else {
        return;
    };
    if connect.user_name.as_deref() == Some("") {
        return;
    }
    let mut written = Vec::new();
    client::connect(&mut written, connect);
    let mut theirs = v4::Connect::new(connect.client_id.clone());
    theirs.keep_alive = connect.keep_alive_s;
    theirs.clean_session = connect.clean_session;
    theirs.last_will = connect.will.as_ref().map(|will| {
        v4::LastWill::new(
            will.topic.clone(),
            will.payload.clone(),
            their_qos(will.qos),
            will.retain,
        )
    });
    let login = connect.user_name.as_ref();
    theirs.login = login.map(|user_name| v4::Login::new(user_name.clone(), password.unwrap_or_default()));
    assert_eq!(read_by_them(&written), v4::Packet::Connect(theirs));
}
