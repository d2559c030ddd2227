//! Runs: PUBLISH packets of one read that a subscriber at QoS 0 gets byte for byte as the publisher sent them.
//!
//! Called  by `shard` with every frame that may begin one, and with the frames that another core has sent.
//! Holds   - every frame of a run has QoS 0, no RETAIN, the same Topic Name, and is what [`super::encode::publish`] would
//!           write: a remaining length that takes more bytes than it needs ends a run;
//!         - so who gets a run is looked up once, and its frames are copied as one piece;
//!         - it has at most `RUN_BYTES_MAX` bytes, or one packet.

use crate::limits::RUN_BYTES_MAX;

use super::decode;
use super::encode::fixed_header_len;
use super::frame::{Frame, Framing, next_frame};
use super::packet::Publish;
use super::topic::TopicName;

/// PUBLISH, no DUP, QoS 0, no RETAIN.
const FIRST_BYTE: u8 = 0x30;

/// At least one PUBLISH; only what is left of a run may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    pub topic: TopicName<'a>,
    /// Whole frames, one behind the other.
    pub frames: &'a [u8],
    pub count: u32,
}

impl<'a> Run<'a> {
    /// The longest run that begins with `first`, the frame at the start of `bytes`; `None` if that is part of no run, which
    /// includes every frame that breaks a rule.
    #[inline]
    pub fn beginning_with(first: Frame<'a>, bytes: &'a [u8], packet_bytes_max: usize) -> Option<Run<'a>> {
        if !is_plain(&first) {
            return None;
        }
        let topic = decode::publish(first).ok()?.topic;
        // The two bytes of its length and the topic itself.
        let head = &first.body[..2 + topic.as_str().len()];
        let (mut len, mut count) = (first.len, 1);
        while let Ok(Framing::Whole(next)) = next_frame(&bytes[len..], packet_bytes_max)
            && is_plain(&next)
            && next.body.starts_with(head)
            && len + next.len <= RUN_BYTES_MAX
        {
            len += next.len;
            count += 1;
        }
        Some(Run {
            topic,
            frames: &bytes[..len],
            count,
        })
    }

    /// A run that has been one before.
    pub fn trusted(frames: &'a [u8], count: u32) -> Run<'a> {
        let first = first_of(frames).expect("a run has at least one frame");
        let topic = decode::publish(first).expect("a run is well-formed").topic;
        Run { topic, frames, count }
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

#[inline]
fn is_plain(frame: &Frame<'_>) -> bool {
    frame.first_byte == FIRST_BYTE && frame.len - frame.body.len() == fixed_header_len(frame.body.len())
}

fn first_of(frames: &[u8]) -> Option<Frame<'_>> {
    match next_frame(frames, usize::MAX) {
        Ok(Framing::Whole(frame)) => Some(frame),
        _ => None,
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
            // RETAIN, QoS 1, a needless byte of length, an ill-formed topic, above the limit, another packet.
            &[0x31, 4, 0, 1, b'a', b'1'][..],
            &[0x32, 6, 0, 1, b'a', 0, 1, b'1'],
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
                let packet_id = (qos != QoS::AtMostOnce).then(|| PacketId::new(7).unwrap());
                encode::publish(&mut bytes, false, qos, *retain, topic, packet_id, &vec![b'x'; *len]);
            }
            let (mut at, mut seen) = (0, 0);
            while at < bytes.len() {
                let Ok(Framing::Whole(frame)) = next_frame(&bytes[at..], LIMIT) else { panic!("cut at {at}") };
                let Some(run) = Run::beginning_with(frame, &bytes[at..], LIMIT) else {
                    prop_assert!(packets[seen].1 > 0 || packets[seen].2);
                    (at, seen) = (at + frame.len, seen + 1);
                    continue;
                };
                let mut again = Vec::new();
                for publish in run.publishes() {
                    let (topic, qos, retain, len) = &packets[seen];
                    prop_assert_eq!((publish.topic.as_str(), publish.payload.len()), (topic.as_str(), *len));
                    prop_assert!(*qos == 0 && !retain);
                    plain(&mut again, topic, publish.payload);
                    seen += 1;
                }
                prop_assert_eq!(&again[..], run.frames);
                prop_assert_eq!(run.publishes().count(), run.count as usize);
                prop_assert_eq!(Run::trusted(run.frames, run.count), run);
                at += run.frames.len();
            }
            prop_assert_eq!(seen, packets.len());
        }
    }
}
