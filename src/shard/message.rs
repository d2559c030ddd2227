//! What one core says to another, packed into a batch of bytes: all that a turn has for a peer leaves as one parcel, with
//! no allocation per message and one contiguous read on the other side.
//!
//! Owns    the layout, which never leaves the process: a batch that does not parse is our own broken invariant.
//! Called  by `shard::peers` (write) and `shard::handle` (read).
//!
//! ```text
//! PUBLISH to its owner          ToOwner   Publish ─▶ Routed, Delivered...;  PublishRun likewise
//! SUBSCRIBE to the owners       ToOwner   Register ─▶ Registered;  RetainedNext ─▶ Retained..., RetainedEnd
//! last holder of a filter gone  ToOwner   Withdraw
//! owner to interested cores     ToHome    Deliver ─▶ Delivered (to the publisher's home, if it asked);  DeliverRun likewise
//! a full queue to publishers    ToHome    HoldBack, LetGo
//! ```

use crate::mqtt::packet::{PacketId, QoS};
use crate::mqtt::run::Run;
use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::registry::access::AccountId;
use crate::session::message::Message;

use super::event::{ConnectionId, PeerId};
use super::receipt::ReceiptId;
use super::record::{Origin, SessionKey, SessionNumber};

/// A scan for retained messages, as its subscriber's home core knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanId {
    pub connection: ConnectionId,
    /// Tells the scans of a core apart.
    pub serial: u32,
}

/// One message between cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardMessage<'a> {
    /// Home to owner: a client published. `receipt`: answer with `Routed`, and let everybody answer with `Delivered`.
    Publish {
        receipt: Option<ReceiptId>,
        published: Published<'a>,
    },
    /// Home to owner: a client published these. `receipt`, above QoS 0: as in `Publish`, for all of them.
    PublishRun {
        receipt: Option<ReceiptId>,
        account: AccountId,
        run: Run<'a>,
    },
    /// Home to owner: this core wants the filter. Answer with `Registered`.
    Register {
        request: u32,
        entry: u16,
        filter: TopicFilter<'a>,
    },
    /// Home to owner: this core no longer wants the filter.
    Withdraw { filter: TopicFilter<'a> },
    /// Home to owner: the next retained messages of a scan, topics after `after`, changes up to `sequence_max`.
    RetainedNext {
        scan: ScanId,
        filter: TopicFilter<'a>,
        after: Option<&'a str>,
        sequence_max: u64,
    },
    /// Owner to an interested core. `receipt`: tell that core when the message has reached everybody here.
    Deliver {
        receipt: Option<(PeerId, ReceiptId)>,
        origin: Option<Doubt>,
        message: Message<'a>,
    },
    /// Owner to an interested core. `receipt`, above QoS 0: as in `Deliver`, for all of them.
    DeliverRun {
        receipt: Option<(PeerId, ReceiptId)>,
        run: Run<'a>,
    },
    /// Owner to home: a receipt is complete after this many `Delivered`.
    Routed { receipt: ReceiptId, parts: u32 },
    /// To the publisher's home: one part of a receipt.
    Delivered { receipt: ReceiptId },
    /// Owner to home: what is published from now on is delivered. Retained changes up to `sequence` are the snapshot.
    Registered {
        request: u32,
        entry: u16,
        sequence: u64,
        may_match: bool,
    },
    /// Owner to home: one retained message of a scan.
    Retained { scan: ScanId, message: Message<'a> },
    /// Owner to home: the answer to one `RetainedNext` ends; `finished`: so does this owner's part of the scan.
    RetainedEnd { scan: ScanId, finished: bool },
    /// To the publisher's home: its message filled the queue of this Session of the sending core. Comes before the part
    /// of the receipt that this core confirms.
    HoldBack { receipt: ReceiptId, session: SessionKey },
    /// The queue of this Session of the sending core holds nobody back any more.
    LetGo { session: SessionKey },
}

/// A message as its publisher's home core gives it to the owner of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published<'a> {
    pub account: AccountId,
    pub message: Message<'a>,
    pub retain: bool,
    pub origin: Option<Doubt>,
}

/// The durable origin of a QoS 2 message, and whether its client sends it again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub origin: Origin,
    /// Sessions that the store lists for it have it already.
    pub is_again: bool,
}

/// What stands before the `Publish` or `Deliver` it belongs to.
const ORIGIN: u8 = 11;
const NO_RECEIPT: u32 = u32::MAX;
const RETAIN: u8 = 0b100;

impl ShardMessage<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            ShardMessage::Publish { receipt, published } => {
                let Published {
                    account,
                    message,
                    retain,
                    origin,
                } = published;
                put_origin(out, origin);
                let flags = message.qos as u8 | if retain { RETAIN } else { 0 };
                let receipt = receipt.map_or(NO_RECEIPT, |receipt| receipt.0);
                put_message(out, [1, flags], &[receipt, account.0], &message);
            }
            ShardMessage::Register { request, entry, filter } => {
                out.extend_from_slice(&[2]);
                out.extend_from_slice(&request.to_le_bytes());
                out.extend_from_slice(&entry.to_le_bytes());
                put_text(out, filter.as_str());
            }
            ShardMessage::Withdraw { filter } => {
                out.extend_from_slice(&[3]);
                put_text(out, filter.as_str());
            }
            ShardMessage::RetainedNext {
                scan,
                filter,
                after,
                sequence_max,
            } => {
                out.extend_from_slice(&[4, u8::from(after.is_some())]);
                put_scan(out, scan);
                out.extend_from_slice(&sequence_max.to_le_bytes());
                put_text(out, filter.as_str());
                put_text(out, after.unwrap_or(""));
            }
            ShardMessage::Deliver {
                receipt,
                origin,
                message,
            } => {
                put_origin(out, origin);
                let (home, receipt) = receipt.map_or((0, NO_RECEIPT), |(home, receipt)| (u32::from(home.0), receipt.0));
                put_message(out, [5, message.qos as u8], &[home, receipt], &message);
            }
            ShardMessage::Routed { receipt, parts } => {
                out.extend_from_slice(&[6]);
                out.extend_from_slice(&receipt.0.to_le_bytes());
                out.extend_from_slice(&parts.to_le_bytes());
            }
            ShardMessage::Delivered { receipt } => {
                out.extend_from_slice(&[7]);
                out.extend_from_slice(&receipt.0.to_le_bytes());
            }
            ShardMessage::Registered {
                request,
                entry,
                sequence,
                may_match,
            } => {
                out.extend_from_slice(&[8, u8::from(may_match)]);
                out.extend_from_slice(&request.to_le_bytes());
                out.extend_from_slice(&entry.to_le_bytes());
                out.extend_from_slice(&sequence.to_le_bytes());
            }
            ShardMessage::Retained { scan, message } => {
                let words = [scan.connection.index, scan.connection.generation, scan.serial];
                put_message(out, [9, message.qos as u8], &words, &message);
            }
            ShardMessage::RetainedEnd { scan, finished } => {
                out.extend_from_slice(&[10, u8::from(finished)]);
                put_scan(out, scan);
            }
            ShardMessage::HoldBack { receipt, session } => {
                out.extend_from_slice(&[12]);
                out.extend_from_slice(&receipt.0.to_le_bytes());
                put_session(out, session);
            }
            ShardMessage::LetGo { session } => {
                out.extend_from_slice(&[13]);
                put_session(out, session);
            }
            ShardMessage::PublishRun { receipt, account, run } => {
                let receipt = receipt.map_or(NO_RECEIPT, |receipt| receipt.0);
                put_run(out, 14, [receipt, account.0], run);
            }
            ShardMessage::DeliverRun { receipt, run } => {
                let (home, receipt) = receipt.map_or((0, NO_RECEIPT), |(home, receipt)| (u32::from(home.0), receipt.0));
                put_run(out, 15, [home, receipt], run);
            }
        }
    }
}

/// Before the message itself, so that all others do not pay for it.
fn put_origin(out: &mut Vec<u8>, origin: Option<Doubt>) {
    if let Some(Doubt { origin, is_again }) = origin {
        out.extend_from_slice(&[ORIGIN, u8::from(is_again)]);
        out.extend_from_slice(&origin.session.0.to_le_bytes());
        out.extend_from_slice(&origin.packet_id.get().to_le_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).expect("topics and filters have at most 65,535 bytes");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_scan(out: &mut Vec<u8>, scan: ScanId) {
    for word in [scan.connection.index, scan.connection.generation, scan.serial] {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

fn put_session(out: &mut Vec<u8>, session: SessionKey) {
    out.extend_from_slice(&session.index.to_le_bytes());
    out.extend_from_slice(&session.number.0.to_le_bytes());
}

/// The frames name the topic.
fn put_run(out: &mut Vec<u8>, kind: u8, words: [u32; 2], run: Run<'_>) {
    let len = u32::try_from(run.frames.len()).expect("a run is part of one read");
    out.reserve(17 + run.frames.len());
    out.push(kind);
    for word in [words[0], words[1], run.count, len] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(run.frames);
}

/// Kind and flags, words, lengths, topic, payload: reserved at once, since this is what crosses a million times a second.
#[inline]
fn put_message(out: &mut Vec<u8>, head: [u8; 2], words: &[u32], message: &Message<'_>) {
    let topic = message.topic.as_str();
    out.reserve(2 + words.len() * 4 + 6 + topic.len() + message.payload.len());
    out.extend_from_slice(&head);
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&(message.payload.len() as u32).to_le_bytes());
    put_text(out, topic);
    out.extend_from_slice(message.payload);
}

/// Reads a batch, message by message.
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub fn new(batch: &'a [u8]) -> Messages<'a> {
        Messages { rest: batch }
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes(2).try_into().expect("two bytes"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().expect("eight bytes"))
    }

    fn text(&mut self) -> &'a str {
        let len = self.u16() as usize;
        std::str::from_utf8(self.bytes(len)).expect("written from a str")
    }

    fn scan(&mut self) -> ScanId {
        let connection = ConnectionId {
            index: self.u32(),
            generation: self.u32(),
        };
        ScanId {
            connection,
            serial: self.u32(),
        }
    }

    fn message(&mut self, flags: u8) -> Message<'a> {
        let payload_len = self.u32() as usize;
        let topic = TopicName::trusted(self.text());
        let qos = QoS::from_bits(flags & 0b11).expect("written from a QoS");
        Message {
            topic,
            payload: self.bytes(payload_len),
            qos,
        }
    }

    fn run(&mut self) -> Run<'a> {
        let (count, len) = (self.u32(), self.u32());
        Run::trusted(self.bytes(len as usize), count)
    }

    fn origin(&mut self) -> Doubt {
        let is_again = self.u8() != 0;
        let session = SessionNumber(self.u64());
        let packet_id = PacketId::new(self.u16()).expect("written from a PacketId");
        Doubt {
            origin: Origin { session, packet_id },
            is_again,
        }
    }

    fn session(&mut self) -> SessionKey {
        SessionKey {
            index: self.u32(),
            number: SessionNumber(self.u64()),
        }
    }

    fn receipt(&mut self) -> Option<ReceiptId> {
        match self.u32() {
            NO_RECEIPT => None,
            id => Some(ReceiptId(id)),
        }
    }

    fn receipt_at(&mut self) -> Option<(PeerId, ReceiptId)> {
        let home = PeerId(self.u32() as u16);
        self.receipt().map(|receipt| (home, receipt))
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = ShardMessage<'a>;

    fn next(&mut self) -> Option<ShardMessage<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let mut kind = self.u8();
        let origin = (kind == ORIGIN).then(|| self.origin());
        if origin.is_some() {
            kind = self.u8();
        }
        Some(match kind {
            1 => {
                let flags = self.u8();
                let receipt = self.receipt();
                let published = Published {
                    account: AccountId(self.u32()),
                    retain: flags & RETAIN != 0,
                    origin,
                    message: self.message(flags),
                };
                ShardMessage::Publish { receipt, published }
            }
            2 => {
                let (request, entry) = (self.u32(), self.u16());
                ShardMessage::Register {
                    request,
                    entry,
                    filter: TopicFilter::trusted(self.text()),
                }
            }
            3 => ShardMessage::Withdraw {
                filter: TopicFilter::trusted(self.text()),
            },
            4 => {
                let resumed = self.u8() != 0;
                let (scan, sequence_max) = (self.scan(), self.u64());
                let (filter, after) = (TopicFilter::trusted(self.text()), self.text());
                ShardMessage::RetainedNext {
                    scan,
                    filter,
                    after: resumed.then_some(after),
                    sequence_max,
                }
            }
            5 => {
                let flags = self.u8();
                ShardMessage::Deliver {
                    receipt: self.receipt_at(),
                    origin,
                    message: self.message(flags),
                }
            }
            6 => ShardMessage::Routed {
                receipt: ReceiptId(self.u32()),
                parts: self.u32(),
            },
            7 => ShardMessage::Delivered {
                receipt: ReceiptId(self.u32()),
            },
            8 => {
                let may_match = self.u8() != 0;
                let (request, entry, sequence) = (self.u32(), self.u16(), self.u64());
                ShardMessage::Registered {
                    request,
                    entry,
                    sequence,
                    may_match,
                }
            }
            9 => {
                let flags = self.u8();
                ShardMessage::Retained {
                    scan: self.scan(),
                    message: self.message(flags),
                }
            }
            10 => {
                let finished = self.u8() != 0;
                ShardMessage::RetainedEnd {
                    scan: self.scan(),
                    finished,
                }
            }
            12 => ShardMessage::HoldBack {
                receipt: ReceiptId(self.u32()),
                session: self.session(),
            },
            13 => ShardMessage::LetGo {
                session: self.session(),
            },
            14 => ShardMessage::PublishRun {
                receipt: self.receipt(),
                account: AccountId(self.u32()),
                run: self.run(),
            },
            15 => ShardMessage::DeliverRun {
                receipt: self.receipt_at(),
                run: self.run(),
            },
            kind => panic!("a batch between cores begins a message with {kind}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBT: Option<Doubt> = Some(Doubt {
        origin: Origin {
            session: SessionNumber(1 << 40 | 7),
            packet_id: PacketId(std::num::NonZeroU16::MAX),
        },
        is_again: true,
    });

    const SESSION: SessionKey = SessionKey {
        index: 9,
        number: SessionNumber(1 << 50),
    };

    #[test]
    fn every_message_crosses_unchanged() {
        let scan = ScanId {
            connection: ConnectionId {
                index: 1,
                generation: 2,
            },
            serial: 3,
        };
        let topic = TopicName::new("a/b").unwrap();
        let message = Message {
            topic,
            payload: b"payload",
            qos: QoS::ExactlyOnce,
        };
        let empty = Message {
            payload: b"",
            qos: QoS::AtMostOnce,
            ..message
        };
        let filter = TopicFilter::new("a/#").unwrap();
        let run = Run::trusted(b"\x30\x06\0\x03a/b1\x30\x05\0\x03a/b", 2);
        let run_at_qos_1 = Run::trusted(b"\x32\x08\0\x03a/b\0\x011", 1);
        let messages = [
            ShardMessage::Publish {
                receipt: Some(ReceiptId(7)),
                published: Published {
                    account: AccountId(3),
                    message,
                    retain: true,
                    origin: DOUBT,
                },
            },
            ShardMessage::Publish {
                receipt: None,
                published: Published {
                    account: AccountId(0),
                    message: empty,
                    retain: false,
                    origin: None,
                },
            },
            ShardMessage::Register {
                request: 9,
                entry: 3,
                filter,
            },
            ShardMessage::Withdraw { filter },
            ShardMessage::RetainedNext {
                scan,
                filter,
                after: None,
                sequence_max: u64::MAX,
            },
            ShardMessage::RetainedNext {
                scan,
                filter,
                after: Some("a/b"),
                sequence_max: 1,
            },
            ShardMessage::Deliver {
                receipt: Some((PeerId(1_023), ReceiptId(0))),
                origin: DOUBT,
                message,
            },
            ShardMessage::Deliver {
                receipt: None,
                origin: None,
                message: empty,
            },
            ShardMessage::Routed {
                receipt: ReceiptId(4),
                parts: 5,
            },
            ShardMessage::Delivered { receipt: ReceiptId(6) },
            ShardMessage::Registered {
                request: 1,
                entry: 2,
                sequence: 3,
                may_match: true,
            },
            ShardMessage::Retained { scan, message },
            ShardMessage::RetainedEnd { scan, finished: false },
            ShardMessage::HoldBack {
                receipt: ReceiptId(8),
                session: SESSION,
            },
            ShardMessage::LetGo { session: SESSION },
            ShardMessage::PublishRun {
                receipt: None,
                account: AccountId(3),
                run,
            },
            ShardMessage::PublishRun {
                receipt: Some(ReceiptId(4)),
                account: AccountId(3),
                run: run_at_qos_1,
            },
            ShardMessage::DeliverRun { receipt: None, run },
            ShardMessage::DeliverRun {
                receipt: Some((PeerId(2), ReceiptId(5))),
                run: run_at_qos_1,
            },
        ];
        let mut batch = Vec::new();
        for message in &messages {
            message.encode(&mut batch);
        }
        assert_eq!(Messages::new(&batch).collect::<Vec<_>>(), messages);
    }
}
