//! Runs: packets of one read that need no look at each. PUBLISH packets that a subscriber gets byte for byte as the publisher
//! sent them but for their Packet Identifiers, and acknowledgements of one kind.
//!
//! Called  by `shard` with every frame that may begin one, and with the frames that another core has sent.
//! Holds   - every frame of a [`Run`] has the same QoS and Topic Name, no DUP, no RETAIN, and is what
//!           [`super::encode::publish`] would write: a remaining length that takes more bytes than it needs ends it;
//!         - so who gets a run is looked up once, and its frames are copied as one piece;
//!         - it has at most `RUN_BYTES_MAX` bytes, or one packet at QoS 0; above that it has two at least;
//!         - an [`AcknowledgementRun`] has at least two packets, all of them well-formed.

use crate::limits::RUN_BYTES_MAX;

use super::decode;
use super::encode::fixed_header_len;
use super::frame::{Frame, Framing, next_frame};
use super::packet::{PacketId, Publish, QoS};
use super::topic::TopicName;

/// PUBLISH packets; only what is left of a run may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    pub qos: QoS,
    pub topic: TopicName<'a>,
    /// Whole frames, one behind the other.
    pub frames: &'a [u8],
    pub count: u32,
}

impl<'a> Run<'a> {
    /// The longest run that begins with `first`, the frame at the start of `bytes`; `None` if that is part of no run, which
    /// includes every frame that breaks a rule, and a frame above QoS 0 that is alone.
    #[inline]
    pub fn beginning_with(first: Frame<'a>, bytes: &'a [u8], packet_bytes_max: usize) -> Option<Run<'a>> {
        let qos = plain_qos(first.first_byte)?;
        if !is_shortest(&first) {
            return None;
        }
        let (topic, (len, count)) = if qos == QoS::AtMostOnce {
            let topic = decode::publish(first).ok()?.topic;
            // The two bytes of its length and the topic itself.
            let head = &first.body[..2 + topic.as_str().len()];
            (topic, extent::<false>(first, head, bytes, packet_bytes_max))
        } else {
            // Most are alone: that is seen before the topic is looked at.
            let topic_len = first.body.first_chunk()?;
            let head = first.body.get(..2 + usize::from(u16::from_be_bytes(*topic_len)))?;
            let extent = extent::<true>(first, head, bytes, packet_bytes_max);
            if extent.1 == 1 {
                return None;
            }
            (decode::publish(first).ok()?.topic, extent)
        };
        Some(Run {
            qos,
            topic,
            frames: &bytes[..len],
            count,
        })
    }

    /// A run that has been one before.
    pub fn trusted(frames: &'a [u8], count: u32) -> Run<'a> {
        let first = first_of(frames).expect("a run has at least one frame");
        let Publish { qos, topic, .. } = decode::publish(first).expect("a run is well-formed");
        Run {
            qos,
            topic,
            frames,
            count,
        }
    }

    /// Its first packets, as far as one begins within so many bytes: what goes into an outbox with so much room, of which the
    /// last packet may take more. Maybe none.
    pub fn up_to(&self, bytes: usize) -> Run<'a> {
        let (mut len, mut count) = (0, 0);
        while len < bytes
            && let Some(frame) = first_of(&self.frames[len..])
        {
            len += frame.len;
            count += 1;
        }
        Run {
            frames: &self.frames[..len],
            count,
            ..*self
        }
    }

    /// Its first packets, so many of them: at most as many as there are.
    pub fn first(&self, count: u32) -> Run<'a> {
        let len = self.lens().take(count as usize).sum();
        Run {
            frames: &self.frames[..len],
            count,
            ..*self
        }
    }

    /// How long each frame is.
    #[inline]
    pub fn lens(&self) -> impl Iterator<Item = usize> {
        let mut rest = self.frames;
        std::iter::from_fn(move || {
            let len = first_of(rest)?.len;
            rest = &rest[len..];
            Some(len)
        })
    }

    /// Where the Packet Identifier lies in a frame so long, above QoS 0: behind the Topic Name.
    #[inline]
    pub fn packet_id_at(&self, len: usize) -> usize {
        header_len(len) + 2 + self.topic.as_str().len()
    }

    /// Bytes of topic and payload in a frame so long.
    #[inline]
    pub fn message_len(&self, len: usize) -> usize {
        let packet_id_len = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        len - header_len(len) - 2 - packet_id_len
    }

    /// Above QoS 0: the Packet Identifiers, one by one.
    #[inline]
    pub fn packet_ids(&self) -> impl Iterator<Item = PacketId> {
        debug_assert!(self.qos != QoS::AtMostOnce);
        let mut from = 0;
        self.lens().map(move |len| {
            let at = from + self.packet_id_at(len);
            from += len;
            packet_id([self.frames[at], self.frames[at + 1]])
        })
    }

    /// Its packets, one by one.
    pub fn publishes(&self) -> impl Iterator<Item = Publish<'a>> {
        let mut rest = self.frames;
        std::iter::from_fn(move || {
            let frame = first_of(rest)?;
            rest = &rest[frame.len..];
            Some(decode::publish(frame).expect("a run is well-formed"))
        })
    }
}

/// Bytes and number of the frames that are like the `first`, which begins with this `head`.
#[inline]
fn extent<const HAS_PACKET_ID: bool>(
    first: Frame<'_>,
    head: &[u8],
    bytes: &[u8],
    packet_bytes_max: usize,
) -> (usize, u32) {
    let (mut len, mut count) = (first.len, 1);
    while let Ok(Framing::Whole(next)) = next_frame(&bytes[len..], packet_bytes_max)
        && next.first_byte == first.first_byte
        && is_shortest(&next)
        && next.body.starts_with(head)
        && (!HAS_PACKET_ID || matches!(next.body[head.len()..], [high, low, ..] if high | low != 0))
        && len + next.len <= RUN_BYTES_MAX
    {
        len += next.len;
        count += 1;
    }
    (len, count)
}

/// The QoS of a PUBLISH with neither DUP nor RETAIN; `None` for every other first byte.
#[inline]
fn plain_qos(first_byte: u8) -> Option<QoS> {
    match first_byte {
        0x30 => Some(QoS::AtMostOnce),
        0x32 => Some(QoS::AtLeastOnce),
        0x34 => Some(QoS::ExactlyOnce),
        _ => None,
    }
}

/// Whether the remaining length takes no more bytes than it needs.
#[inline]
fn is_shortest(frame: &Frame<'_>) -> bool {
    frame.len - frame.body.len() == fixed_header_len(frame.body.len())
}

/// Of the fixed header of a frame so long whose remaining length is as short as can be.
#[inline]
fn header_len(len: usize) -> usize {
    // Between two lengths of header no frame is so long. `fixed_header_len` asked twice would say the same, for 12
    // instructions a packet.
    match len {
        0..=129 => 2,
        130..=16_386 => 3,
        16_387..=2_097_155 => 4,
        _ => 5,
    }
}

#[inline]
fn packet_id(bytes: [u8; 2]) -> PacketId {
    PacketId::new(u16::from_be_bytes(bytes)).expect("looked at when the run was found")
}

#[inline]
fn first_of(frames: &[u8]) -> Option<Frame<'_>> {
    match next_frame(frames, usize::MAX) {
        Ok(Framing::Whole(frame)) => Some(frame),
        _ => None,
    }
}

/// Which acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcknowledgementKind {
    PubAck,
    PubRec,
    PubRel,
    PubComp,
}

/// Two or more acknowledgements of one kind, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcknowledgementRun<'a> {
    pub kind: AcknowledgementKind,
    frames: &'a [[u8; 4]],
}

impl<'a> AcknowledgementRun<'a> {
    /// The longest one at the start of `bytes`; `None` where there is none of two, as both versions of the standard would have it.
    #[inline]
    pub fn beginning(bytes: &'a [u8]) -> Option<AcknowledgementRun<'a>> {
        let (frames, _) = bytes.as_chunks::<4>();
        let [[first_byte, 2, ..], [second_byte, 2, ..], ..] = *frames else {
            return None;
        };
        let kind = match first_byte {
            _ if first_byte != second_byte => return None,
            0x40 => AcknowledgementKind::PubAck,
            0x50 => AcknowledgementKind::PubRec,
            0x62 => AcknowledgementKind::PubRel,
            0x70 => AcknowledgementKind::PubComp,
            _ => return None,
        };
        let is_one = |[byte, len, high, low]: &[u8; 4]| *byte == first_byte && *len == 2 && high | low != 0;
        let count = frames.iter().take_while(|frame| is_one(frame)).count();
        let frames = &frames[..count];
        (count >= 2).then_some(AcknowledgementRun { kind, frames })
    }

    /// Bytes of all its frames.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.frames.as_flattened().len()
    }

    /// What they acknowledge, one by one.
    #[inline]
    pub fn packet_ids(&self) -> impl Iterator<Item = PacketId> {
        self.frames.iter().map(|[_, _, high, low]| packet_id([*high, *low]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode;
    use super::super::packet::{PacketId, QoS};
    use super::*;

    const LIMIT: usize = 1_000;

    fn run(bytes: &[u8]) -> Option<Run<'_>> {
        let Ok(Framing::Whole(first)) = next_frame(bytes, LIMIT) else {
            panic!("no whole frame: {bytes:?}")
        };
        Run::beginning_with(first, bytes, LIMIT)
    }

    fn plain(out: &mut Vec<u8>, topic: &str, payload: &[u8]) {
        encode::publish(out, false, QoS::AtMostOnce, false, topic, None, payload);
    }

    #[test]
    fn a_run_ends_where_the_topic_changes_or_the_packet_is_not_whole() {
        let mut bytes = Vec::new();
        for payload in [&b"1"[..], b"", b"333"] {
            plain(&mut bytes, "a/b", payload);
        }
        let whole = bytes.len();
        for next in ["a/", "a/bc", "b/b"] {
            let mut bytes = bytes.clone();
            plain(&mut bytes, next, b"4");
            let run = run(&bytes).unwrap();
            assert_eq!((run.count, run.frames), (3, &bytes[..whole]), "{next}");
        }
        bytes.extend_from_slice(&[0x30, 200]);
        assert_eq!(run(&bytes).unwrap().count, 3);
        let run_of_three = run(&bytes).unwrap();
        // Frames of 8, 7 and 10 bytes.
        for (room, count) in [(0, 0), (1, 1), (8, 1), (9, 2), (15, 2), (16, 3), (99, 3)] {
            assert_eq!(run_of_three.up_to(room).count, count, "{room}");
        }
        assert_eq!(run_of_three.up_to(9).frames, &bytes[..15]);
        bytes.truncate(whole);
        let payloads: Vec<&[u8]> = run(&bytes)
            .unwrap()
            .publishes()
            .map(|publish| publish.payload)
            .collect();
        assert_eq!(payloads, [&b"1"[..], b"", b"333"]);
    }

    #[test]
    fn what_would_leave_in_another_form_is_part_of_no_run() {
        let mut first = Vec::new();
        plain(&mut first, "a", b"1");
        let one = first.len();
        for other in [
            // RETAIN, DUP, another QoS, a needless byte of length, an ill-formed topic, above the limit, another packet.
            &[0x31, 4, 0, 1, b'a', b'1'][..],
            &[0x3a, 6, 0, 1, b'a', 0, 1, b'1'],
            &[0x36, 6, 0, 1, b'a', 0, 1, b'1'],
            &[0x30, 0x84, 0x00, 0, 1, b'a', b'1'],
            &[0x30, 4, 0, 1, b'+', b'1'],
            &[0x30, 0xff, 0x7f, 0, 1, b'a', b'1'],
            &[0xc0, 0],
        ] {
            let bytes = [&first, other].concat();
            assert_eq!(run(&bytes).unwrap().frames, &bytes[..one], "{other:?}");
            if next_frame(other, LIMIT).is_ok_and(|framing| matches!(framing, Framing::Whole(_))) {
                assert_eq!(run(other), None, "{other:?}");
            }
        }
        // Another QoS begins another run; an identifier of 0, or none, ends one.
        let at_qos_1 = [0x32, 6, 0, 1, b'a', 0, 1, b'1'];
        assert_eq!(run(&[&first[..], &at_qos_1].concat()).unwrap().count, 1);
        let twice = at_qos_1.repeat(2);
        for other in [
            &[0x32, 6, 0, 1, b'a', 0, 0, b'1'][..],
            &[0x32, 4, 0, 1, b'a', 7],
            &[0x34, 5, 0, 1, b'a', 0, 1],
            &[],
        ] {
            assert_eq!(run(&[&twice, other].concat()).unwrap().frames, twice, "{other:?}");
            assert_eq!(run(&[&at_qos_1, other].concat()), None, "{other:?}");
            if !other.is_empty() {
                assert_eq!(run(&[other, &twice].concat()), None, "{other:?}");
            }
        }
        // Both break a rule, and the same.
        assert_eq!(run(&[0x32, 6, 0, 1, b'#', 0, 1, b'1'].repeat(2)), None);
    }

    #[test]
    fn an_acknowledgement_run_ends_where_the_kind_changes_or_a_rule_is_broken() {
        use AcknowledgementKind::*;
        for (first_byte, kind) in [(0x40, PubAck), (0x50, PubRec), (0x62, PubRel), (0x70, PubComp)] {
            let two = [first_byte, 2, 0, 7, first_byte, 2, 1, 0];
            let run = AcknowledgementRun::beginning(&two).unwrap();
            let packet_ids: Vec<u16> = run.packet_ids().map(PacketId::get).collect();
            assert_eq!((run.kind, run.bytes(), &packet_ids[..]), (kind, 8, &[7, 256][..]));
            for other in [
                // Another kind, flags, an identifier of 0, too long, a length with a needless byte, not whole.
                &[0xc0, 0, 0xc0, 0][..],
                &[first_byte ^ 1, 2, 0, 9],
                &[first_byte, 2, 0, 0],
                &[first_byte, 3, 0, 9, 1],
                &[first_byte, 0x82, 0, 0, 9],
                &[first_byte, 2, 0],
            ] {
                let behind = [&two, other].concat();
                assert_eq!(AcknowledgementRun::beginning(&behind).unwrap().bytes(), 8, "{other:?}");
                let second = [&two[..4], other].concat();
                assert_eq!(AcknowledgementRun::beginning(&second), None, "{other:?}");
                let first = [other, &two[..]].concat();
                assert_eq!(AcknowledgementRun::beginning(&first), None, "{other:?}");
            }
        }
        for other in [
            &[][..],
            &[0x6a, 2, 0, 1, 0x6a, 2, 0, 2],
            &[0xb0, 2, 0, 1, 0xb0, 2, 0, 2],
        ] {
            assert_eq!(AcknowledgementRun::beginning(other), None, "{other:?}");
        }
    }

    #[test]
    fn lengths_of_headers_follow_from_lengths_of_frames() {
        for remaining in [2, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 3_000_000] {
            let header = fixed_header_len(remaining);
            assert_eq!(header_len(header + remaining), header, "{remaining}");
        }
    }

    #[test]
    fn a_run_is_bounded_in_bytes_and_a_large_packet_is_one_alone() {
        let mut bytes = Vec::new();
        plain(&mut bytes, "a", &[7; 900]);
        let one = bytes.len();
        let many = bytes.repeat(100);
        let run = run(&many).unwrap();
        assert_eq!(run.frames.len(), RUN_BYTES_MAX / one * one);
        let mut large = Vec::new();
        plain(&mut large, "a", &[7; 2 * RUN_BYTES_MAX]);
        let twice = large.repeat(2);
        let Ok(Framing::Whole(first)) = next_frame(&twice, usize::MAX) else {
            panic!("it is whole")
        };
        assert_eq!(Run::beginning_with(first, &twice, usize::MAX).unwrap().count, 1);
    }

    proptest! {
        #[test]
        fn a_run_is_what_encode_would_write_and_no_packet_is_lost_or_made(
            packets in proptest::collection::vec(("a|b|a/b", 0u8..3, any::<bool>(), 0usize..300), 1..20),
        ) {
            let mut bytes = Vec::new();
            for (topic, qos, retain, len) in &packets {
                let qos = QoS::from_bits(*qos).unwrap();
                let packet_id = (qos != QoS::AtMostOnce).then(|| PacketId::new(1 + *len as u16).unwrap());
                encode::publish(&mut bytes, false, qos, *retain, topic, packet_id, &vec![b'x'; *len]);
            }
            let (mut at, mut seen) = (0, 0);
            while at < bytes.len() {
                let Ok(Framing::Whole(frame)) = next_frame(&bytes[at..], LIMIT) else { panic!("cut at {at}") };
                let Some(run) = Run::beginning_with(frame, &bytes[at..], LIMIT) else {
                    let (topic, qos, retain, _) = &packets[seen];
                    let is_alone = packets.get(seen + 1).is_none_or(|(next, ..)| next != topic)
                        || packets.get(seen + 1).is_none_or(|next| next.1 != *qos || next.2);
                    prop_assert!(*retain || *qos > 0 && is_alone);
                    (at, seen) = (at + frame.len, seen + 1);
                    continue;
                };
                let mut again = Vec::new();
                let (mut lens, mut from) = (run.lens(), 0);
                for publish in run.publishes() {
                    let (topic, qos, retain, len) = &packets[seen];
                    prop_assert_eq!((publish.topic.as_str(), publish.payload.len()), (topic.as_str(), *len));
                    prop_assert!(*qos == run.qos as u8 && publish.qos == run.qos && !retain);
                    encode::publish(&mut again, false, run.qos, false, topic, publish.packet_id, publish.payload);
                    let frame_len = lens.next().unwrap();
                    prop_assert_eq!(run.message_len(frame_len), topic.len() + len);
                    if run.qos != QoS::AtMostOnce {
                        let at = from + run.packet_id_at(frame_len);
                        prop_assert_eq!(&run.frames[at..at + 2], &publish.packet_id.unwrap().get().to_be_bytes());
                    }
                    from += frame_len;
                    seen += 1;
                }
                prop_assert_eq!(&again[..], run.frames);
                prop_assert_eq!((run.publishes().count(), lens.next()), (run.count as usize, None));
                if run.qos != QoS::AtMostOnce {
                    let packet_ids = run.publishes().filter_map(|publish| publish.packet_id);
                    prop_assert!(run.packet_ids().eq(packet_ids));
                }
                prop_assert_eq!(Run::trusted(run.frames, run.count), run);
                for count in 0..=run.count {
                    let first = run.first(count);
                    prop_assert_eq!((first.count, first.publishes().count()), (count, count as usize));
                }
                at += run.frames.len();
            }
            prop_assert_eq!(seen, packets.len());
        }
    }
}
