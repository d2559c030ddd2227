//! Layer 0: bytes <-> control packets of MQTT 3.1 (level 3) and 3.1.1 (level 4).
//!
//! [`frame`] finds one whole frame, [`decode`] reads it strictly, [`encode`] writes; [`topic`] checks names and
//! filters once, [`packet`] is what the heart works on, [`run`] what of it may be copied as it came. [`client`] is the other side of the wire, for the load generator.

pub mod client;
pub mod decode;
pub mod encode;
pub mod error;
pub mod frame;
pub mod packet;
#[cfg(test)]
mod properties;
pub mod reason;
pub mod run;
pub mod topic;

/// Reads `bytes` as a peer's stream in every way the broker and the load generator can, and panics where an invariant
/// of this layer breaks. The door for fuzzers.
#[doc(hidden)]
pub fn fuzz_packets(bytes: &[u8]) {
    use frame::{Framing, next_frame};
    use packet::{Level, Packet};

    const PACKET_BYTES_MAX: usize = 4_096;
    let mut rest = bytes;
    loop {
        let frame = match next_frame(rest, PACKET_BYTES_MAX) {
            Ok(Framing::Whole(frame)) => frame,
            Ok(Framing::Missing(missing)) => {
                assert!(missing >= 1 && rest.len() + missing <= PACKET_BYTES_MAX.max(rest.len() + 2));
                return;
            }
            Err(_) => return,
        };
        assert!(frame.len <= rest.len() && frame.len <= PACKET_BYTES_MAX);
        let header_len = frame.len - frame.body.len();
        assert!((2..=5).contains(&header_len));
        assert_eq!(frame.body, &rest[header_len..frame.len]);
        assert_eq!(
            next_frame(&rest[..frame.len], PACKET_BYTES_MAX),
            Ok(Framing::Whole(frame))
        );

        if let Ok(connect) = decode::decode_connect(frame) {
            // What was read is written and read again: the same.
            let mut out = Vec::new();
            client::connect(&mut out, &connect);
            let Ok(Framing::Whole(again)) = next_frame(&out, usize::MAX) else {
                panic!("we wrote a whole packet")
            };
            assert_eq!(decode::decode_connect(again), Ok(connect));
        }
        let strict = decode::decode(frame, Level::V311);
        let lenient = decode::decode(frame, Level::V31);
        // Level 3 only accepts more.
        assert!(strict.is_err() || strict == lenient);
        match lenient {
            Ok(Packet::Publish(publish)) => {
                let topic = publish.topic.as_str();
                let mut out = Vec::new();
                encode::publish(
                    &mut out,
                    publish.dup,
                    publish.qos,
                    publish.retain,
                    topic,
                    publish.packet_id,
                    publish.payload,
                );
                assert_eq!(out.len(), encode::publish_len(publish.qos, topic, publish.payload));
                assert_eq!(&out[out.len() - frame.body.len()..], frame.body);
            }
            Ok(Packet::Subscribe(subscribe)) => {
                let entries_len: usize = subscribe.filters().map(|(filter, _)| filter.as_str().len() + 3).sum();
                assert!(entries_len > 0 && 2 + entries_len == frame.body.len());
            }
            Ok(Packet::Unsubscribe(unsubscribe)) => {
                let entries_len: usize = unsubscribe.filters().map(|filter| filter.as_str().len() + 2).sum();
                assert!(entries_len > 0 && 2 + entries_len == frame.body.len());
            }
            _ => {}
        }
        if let Ok(client::ServerPacket::SubAck(suback)) = client::decode_from_server(frame) {
            assert_eq!(2 + suback.codes().count(), frame.body.len());
        }
        rest = &rest[frame.len..];
    }
}
