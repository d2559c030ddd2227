//! Publishers with a set number of messages to send, each within its bound of unacknowledged ones.
//!
//! Owns    the publishers' connections, what each has sent, and what became of it.
//! Called  by `backlog`, `retained` and `telemetry`, whose thread drives it with a `Poller`.
//! Holds   - a publisher sends the messages of its `Share` in order and never has more than `unacked` of them without the end
//!           of their flow; at QoS 0 a PINGRESP tells that the broker has read what went before its PINGREQ, and where
//!           there is a `ping_window` no more than that is unanswered;
//!         - open loop (`pace`): a message leaves when it is due, and its latency counts from then;
//!         - no allocation, hash or clock read per message: one topic length for all, so that topic, Packet Identifier and
//!           payload are patched in copies of one packet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hdrhistogram::Histogram;
use rustix::event::epoll;

use crate::acknowledgement::{AcknowledgementFaults, Answer, UNACKED_MAX, Unacknowledged};
use crate::client::{Connection, Received};
use crate::pace::Pace;
use crate::packet::{self, Credentials, PINGREQ_BYTES, Publish, PublishTemplate, STAMP_BYTES, SessionKind, Stamp};
use crate::poller::Poller;
use crate::progress::{End, Progress};
use crate::receivers::Wish;
use crate::timeline::Watch;
use crate::transport::{self, Target};

/// A numbered topic ends in this many digits.
pub const NUMBER_DIGITS: usize = 7;
pub const NUMBER_MAX: u64 = 10_000_000 - 1;

const READ_BYTES: usize = 64 * 1024;
const BATCH_MESSAGES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Of all publishers.
const BATCHES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The flags that scenarios with a set number of messages share.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Connections that publish
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub publishers: u32,
    /// Payload bytes, at least 24
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Above QoS 0: messages of one publisher whose flow has not ended. Some brokers close on more than they allow
    #[arg(long, default_value_t = 20)]
    pub unacked: usize,
    /// Seconds without any sign of the broker, while it owes one, that end a run
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub silence: u64,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        if !(STAMP_BYTES..=200_000_000).contains(&self.size) {
            bail!(
                "--size {} is outside {STAMP_BYTES}..=200000000: a payload starts with {STAMP_BYTES} bytes of bookkeeping",
                self.size
            );
        }
        if !(1..=UNACKED_MAX).contains(&self.unacked) {
            bail!("--unacked {} is outside 1..={UNACKED_MAX}", self.unacked);
        }
        Ok(())
    }

    pub fn silence(&self) -> Duration {
        Duration::from_secs(self.silence)
    }

    /// What the flags say of a job: payload and topic are not in them.
    pub fn job(&self, run: u32, qos: u8) -> Job<'_> {
        Job {
            credentials: &self.credentials,
            run,
            qos,
            unacked: self.unacked,
            ping_window: None,
            pace: None,
            pace_end_ns: u64::MAX,
            silence_max: self.silence(),
            retain: false,
            payload: Payload::Empty,
            topic: String::new(),
            is_numbered: false,
            wish: None,
        }
    }
}

/// `count` shared out among `publishers`: how much publisher `publisher` gets.
pub fn share_of(count: u64, publisher: u64, publishers: u64) -> u64 {
    count / publishers + u64::from(publisher < count % publishers)
}

/// The topics of one publisher, one after the other and round again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rota {
    pub first: u64,
    pub step: u64,
    pub width: u64,
}

impl Rota {
    /// One topic, whatever its number.
    pub const ONE: Rota = Rota {
        first: 0,
        step: 1,
        width: 1,
    };

    /// Topic number and sequence number on that topic of a publisher's message `message`.
    #[inline]
    pub fn at(&self, message: u64) -> (u64, u64) {
        (self.first + self.step * (message % self.width), message / self.width)
    }

    /// How many of a publisher's first `sent` messages went to its topic `position`, counted from 0.
    pub fn count(&self, position: u64, sent: u64) -> u64 {
        share_of(sent, position, self.width)
    }
}

/// What one publisher sends: messages `from..until` of its rota.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub rota: Rota,
    pub from: u64,
    pub until: u64,
}

/// What all publishers have in common.
#[derive(Clone)]
pub struct Job<'a> {
    pub credentials: &'a Credentials,
    pub run: u32,
    pub qos: u8,
    /// Above QoS 0.
    pub unacked: usize,
    /// At QoS 0: messages of one publisher that no PINGRESP has answered. `None`: as many as the socket takes.
    pub ping_window: Option<u64>,
    /// Open loop; the rotas begin at message 0.
    pub pace: Option<Pace>,
    /// Open loop: nothing becomes due after it.
    pub pace_end_ns: u64,
    /// Without any sign of the broker, while it owes one.
    pub silence_max: Duration,
    pub retain: bool,
    pub payload: Payload<'a>,
    pub topic: String,
    /// The last `NUMBER_DIGITS` bytes of the topic are the number.
    pub is_numbered: bool,
    /// What each publisher subscribes to.
    pub wish: Option<&'a dyn Fn(usize) -> Wish>,
}

#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// It clears a retained message.
    Empty,
    /// Of this many bytes, a [`Stamp`] first.
    Stamped(usize),
    /// A text of each publisher, all of one length, in which `SEQUENCE_DIGITS` digits from `sequence_at` on are the sequence
    /// number, counted from `sequence_base`.
    Text {
        of: &'a dyn Fn(usize) -> Vec<u8>,
        sequence_at: usize,
        sequence_base: u64,
    },
}

/// Of the sequence number in a text.
pub const SEQUENCE_DIGITS: usize = 10;

struct Publisher {
    connection: Connection,
    share: Share,
    /// Next message.
    next: u64,
    batch: Vec<u8>,
    batch_messages: usize,
    unacknowledged: Option<Unacknowledged>,
    /// What goes before the next messages: PUBREL, PINGREQ, PUBACK.
    control: Vec<u8>,
    ping: Ping,
    waits_writable: bool,
}

/// At QoS 0: how far the broker has read, as next messages.
#[derive(Clone, Copy, Debug)]
struct Ping {
    /// What the PINGREQ under way asks about.
    asked: Option<u64>,
    answered: u64,
}

pub struct Senders<'a> {
    job: Job<'a>,
    first_token: u64,
    publishers: Vec<Publisher>,
    payload_bytes: usize,
    buffer: Vec<u8>,
    start: Instant,
    /// Open loop: turns of the publishers that have been taken.
    paced: u64,
    pub sent: u64,
    /// PUBACKs or PUBRECs that were waited for; at QoS 0 what was sent.
    pub acknowledged: u64,
    /// From PUBLISH to its PUBACK or PUBREC, in nanoseconds.
    pub histogram: Histogram<u64>,
    /// Packets that came: a sign of life.
    pub frames: u64,
}

impl<'a> Senders<'a> {
    /// Connects a publisher for each share; their tokens are `first_token` and up.
    pub fn connect(
        target: &Target,
        poller: &Poller,
        first_token: u64,
        job: Job<'a>,
        shares: &[Share],
    ) -> Result<Senders<'a>> {
        let payload_bytes = match job.payload {
            Payload::Empty => 0,
            Payload::Stamped(size) => size,
            Payload::Text { of, .. } => of(0).len(),
        };
        let mut publishers = Vec::with_capacity(shares.len());
        for (i, &share) in shares.iter().enumerate() {
            let context = || format!("publisher {i} of {}", shares.len());
            let id = format!("sl{:08x}p{i}", job.run);
            let mut connection =
                Connection::open(target, &id, SessionKind::Clean, job.credentials).with_context(context)?;
            if let Some(wish) = job.wish {
                let Wish { filter, qos } = wish(i);
                connection.subscribe(&filter, qos).with_context(context)?;
            }
            connection.set_nonblocking()?;
            poller.add(connection.socket(), first_token + i as u64)?;
            let mut template = PublishTemplate::new(&job.topic, job.qos, payload_bytes);
            template.bytes[0] |= u8::from(job.retain);
            if job.is_numbered {
                let topic_end = template.stamp_at - if job.qos > 0 { 2 } else { 0 };
                let (number, _) = share.rota.at(share.from);
                write_digits(&mut template.bytes[topic_end - NUMBER_DIGITS..topic_end], number);
            }
            match job.payload {
                Payload::Empty => {}
                Payload::Stamped(_) => Stamp {
                    run: job.run,
                    publisher: i as u32,
                    sequence: 0,
                    time_ns: 0,
                }
                .write(&mut template.bytes[template.stamp_at..]),
                Payload::Text { of, .. } => template.bytes[template.stamp_at..].copy_from_slice(&of(i)),
            }
            let window = match job.ping_window {
                // Half of it is on its way while the other half is being answered.
                Some(window) => window.div_ceil(2) as usize,
                None => job.unacked,
            };
            let batch_messages = (BATCH_BYTES_MAX.min(BATCHES_BYTES_MAX / shares.len()) / template.bytes.len())
                .min(BATCH_MESSAGES_MAX)
                .min(window)
                .max(1);
            publishers.push(Publisher {
                connection,
                share,
                next: share.from,
                batch: template.bytes.repeat(batch_messages),
                batch_messages,
                unacknowledged: (job.qos > 0).then(|| Unacknowledged::new(job.qos, job.unacked)),
                control: Vec::new(),
                ping: Ping {
                    asked: None,
                    answered: share.from,
                },
                waits_writable: false,
            });
        }
        Ok(Senders {
            job,
            first_token,
            publishers,
            payload_bytes,
            paced: 0,
            buffer: vec![0; READ_BYTES],
            start: Instant::now(),
            sent: 0,
            acknowledged: 0,
            histogram: Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?,
            frames: 0,
        })
    }

    /// How many messages publisher `publisher` has sent, those before its share included.
    pub fn sent_by(&self, publisher: usize) -> u64 {
        self.publishers[publisher].next
    }

    /// Messages up to `until` of publisher `publisher` may be sent; what is sent already stays sent.
    pub fn allow(&mut self, publisher: usize, until: u64) {
        let p = &mut self.publishers[publisher];
        p.share.until = until.max(p.next);
    }

    pub fn send_all(&mut self, poller: &Poller) -> Result<()> {
        (0..self.publishers.len()).try_for_each(|i| self.send(i, poller))
    }

    /// All is sent and every flow has ended.
    pub fn is_done(&self) -> bool {
        self.publishers.iter().all(|p| {
            let is_ended = match &p.unacknowledged {
                Some(unacknowledged) => unacknowledged.in_flight() == 0 && p.control.is_empty(),
                None => p.ping.answered == p.next,
            };
            p.next == p.share.until && is_ended && !p.connection.wants_write()
        })
    }

    /// The broker has something to answer, or to read.
    pub fn is_owed(&self) -> bool {
        self.publishers.iter().any(|p| {
            let is_asked = match &p.unacknowledged {
                Some(unacknowledged) => unacknowledged.in_flight() > 0,
                None => p.ping.asked.is_some(),
            };
            is_asked || p.connection.wants_write()
        })
    }

    /// Sends until all is done. A broker that answers nobody for the time of `--silence` is an error.
    /// What is acknowledged is the first count of `watch`.
    pub fn run(&mut self, poller: &mut Poller, what: &str, watch: Option<&Watch>) -> Result<()> {
        let wanted = self.publishers.iter().map(|p| p.share.until - p.share.from).sum();
        let mut progress = Progress::new(End::At(wanted));
        let (mut heard, mut heard_signs) = (Instant::now(), 0);
        self.send_all(poller)?;
        while !self.is_done() {
            poller.wait(Duration::from_millis(20))?;
            for at in 0..poller.events().len() {
                let (token, flags) = poller.event(at);
                self.ready(token, flags, poller)?;
            }
            // At QoS 0 a broker that takes bytes is alive.
            let signs = self.frames + self.sent;
            if signs != heard_signs {
                (heard, heard_signs) = (Instant::now(), signs);
            } else if heard.elapsed() > self.job.silence_max {
                return Err(self.silent());
            }
            let now_ns = self.start.elapsed().as_nanos() as u64;
            progress.count(now_ns, self.acknowledged, what);
            if let Some(watch) = watch {
                watch.store([self.acknowledged, 0], 0);
            }
        }
        Ok(())
    }

    /// What the broker owed did not come.
    pub fn silent(&self) -> anyhow::Error {
        anyhow!(
            "{} answered no publisher for {} s; {} sent, {} acknowledged (has it a bound on what it queues?)",
            self.publishers[0].connection.address,
            self.job.silence_max.as_secs_f64(),
            self.sent,
            self.acknowledged
        )
    }

    /// The schedule of an open loop, and all latencies, count from `start`.
    pub fn begin_at(&mut self, start: Instant) {
        self.start = start;
    }

    /// Nanoseconds since the start, as far as the schedule goes.
    fn pace_ns(&self) -> u64 {
        (self.start.elapsed().as_nanos() as u64).min(self.job.pace_end_ns)
    }

    /// Open loop: sends what has become due, and gives the nanoseconds since the start when the next message will be.
    pub fn send_due(&mut self, pace: Pace, poller: &Poller) -> Result<u64> {
        let due = pace.turns_due(self.pace_ns());
        let publishers = self.publishers.len() as u64;
        // A publisher that its window or its socket holds back goes on when that is ready.
        for turn in self.paced..due.min(self.paced + publishers) {
            self.send((turn % publishers) as usize, poller)?;
        }
        self.paced = due;
        Ok(pace.turn_due_ns(due))
    }

    /// No message is sent any more but, in an open loop, those that are due now.
    pub fn stop(&mut self, poller: &Poller) -> Result<()> {
        let now = self.pace_ns();
        for publisher in 0..self.publishers.len() {
            let p = &mut self.publishers[publisher];
            let due = self.job.pace.map_or(0, |pace| pace.due_count(publisher as u64, now));
            p.share.until = due.min(p.share.until).max(p.next);
            self.send(publisher, poller)?;
        }
        Ok(())
    }

    fn send(&mut self, publisher: usize, poller: &Poller) -> Result<()> {
        let job = &self.job;
        let now = self.start.elapsed().as_nanos() as u64;
        let p = &mut self.publishers[publisher];
        let stride = p.batch.len() / p.batch_messages;
        let stamp_at = stride - self.payload_bytes;
        let topic_end = stamp_at - if job.qos > 0 { 2 } else { 0 };
        let context = || format!("publisher {publisher}");
        let until = match job.pace {
            Some(pace) => p
                .share
                .until
                .min(pace.due_count(publisher as u64, now.min(job.pace_end_ns))),
            None => p.share.until,
        };
        while !p.connection.wants_write() {
            let mut count = until.saturating_sub(p.next).min(p.batch_messages as u64) as usize;
            if let Some(unacknowledged) = &p.unacknowledged {
                count = count.min(job.unacked.saturating_sub(unacknowledged.in_flight()));
            } else {
                let unanswered = p.next - p.ping.answered;
                let mut wants_to_know = p.next == p.share.until;
                if let Some(window) = job.ping_window {
                    count = count.min(window.saturating_sub(unanswered) as usize);
                    wants_to_know |= unanswered >= window.div_ceil(2);
                }
                if wants_to_know && p.ping.asked.is_none() && unanswered > 0 {
                    p.control.extend_from_slice(&PINGREQ_BYTES);
                    p.ping.asked = Some(p.next);
                }
            }
            let mut filled = 0;
            while filled < count {
                let message = &mut p.batch[filled * stride..(filled + 1) * stride];
                let position = p.next + filled as u64;
                if let Some(unacknowledged) = &mut p.unacknowledged {
                    let time_ns = job.pace.map_or(now, |pace| pace.due_ns(publisher as u64, position));
                    let Some(id) = unacknowledged.take(time_ns) else { break };
                    message[topic_end..stamp_at].copy_from_slice(&id.to_be_bytes());
                }
                let (number, sequence) = p.share.rota.at(position);
                if job.is_numbered && p.share.rota.width > 1 {
                    write_digits(&mut message[topic_end - NUMBER_DIGITS..topic_end], number);
                }
                match job.payload {
                    Payload::Empty => {}
                    Payload::Stamped(_) => {
                        message[stamp_at + 8..stamp_at + 16].copy_from_slice(&sequence.to_le_bytes());
                        message[stamp_at + 16..stamp_at + 24].copy_from_slice(&now.to_le_bytes());
                    }
                    Payload::Text {
                        sequence_at,
                        sequence_base,
                        ..
                    } => write_digits(
                        &mut message[stamp_at + sequence_at..][..SEQUENCE_DIGITS],
                        sequence_base + sequence,
                    ),
                }
                filled += 1;
            }
            if filled == 0 && p.control.is_empty() {
                break;
            }
            p.next += filled as u64;
            self.sent += filled as u64;
            if job.qos == 0 {
                self.acknowledged += filled as u64;
            }
            p.connection
                .send(&p.control, &p.batch[..filled * stride])
                .with_context(context)?;
            p.control.clear();
        }
        if p.connection.wants_write() != p.waits_writable {
            p.waits_writable = p.connection.wants_write();
            p.connection
                .watch(poller.fd(), self.first_token + publisher as u64, p.waits_writable)?;
        }
        Ok(())
    }

    /// Takes an event of one of the publishers' tokens.
    pub fn ready(&mut self, token: u64, flags: epoll::EventFlags, poller: &Poller) -> Result<()> {
        self.ready_with(token, flags, poller, |_, _| {
            bail!("a message, and no publisher has subscribed")
        })
    }

    /// `message` is given what the publishers have subscribed to.
    pub fn ready_with(
        &mut self,
        token: u64,
        flags: epoll::EventFlags,
        poller: &Poller,
        mut message: impl FnMut(usize, Publish<'_>) -> Result<()>,
    ) -> Result<()> {
        let index = (token - self.first_token) as usize;
        let context = || format!("publisher {index}");
        let p = &mut self.publishers[index];
        if flags.contains(epoll::EventFlags::OUT) {
            p.connection.flush().with_context(context)?;
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            let address = p.connection.address;
            if let Received::Bytes { len, .. } = p.connection.receive(&mut self.buffer).with_context(context)? {
                let now = self.start.elapsed().as_nanos() as u64;
                let (mut time_ns, mut equal) = (0, 0);
                let mut at = 0;
                while let Some(frame) =
                    packet::next_frame(&self.buffer[at..len]).with_context(|| format!("{address} sent"))?
                {
                    at += frame.len;
                    self.frames += 1;
                    match (frame.kind(), self.job.qos, &mut p.unacknowledged) {
                        (packet::PUBACK, 1, Some(unacknowledged)) | (packet::PUBREC, 2, Some(unacknowledged)) => {
                            let id = frame.packet_id()?;
                            let answer = unacknowledged.first(id);
                            if answer == Answer::Fault {
                                continue;
                            }
                            let sent_ns = unacknowledged.sent_ns(id);
                            if sent_ns != time_ns {
                                if equal > 0 {
                                    self.histogram.saturating_record_n(now.saturating_sub(time_ns), equal);
                                }
                                (time_ns, equal) = (sent_ns, 0);
                            }
                            equal += 1;
                            self.acknowledged += 1;
                            if answer == Answer::SendPubrel {
                                packet::acknowledgement(&mut p.control, packet::PUBREL, id);
                            }
                        }
                        (packet::PUBCOMP, 2, Some(unacknowledged)) => {
                            unacknowledged.complete(frame.packet_id()?);
                        }
                        (packet::PINGRESP, 0, _) => {
                            p.ping.answered = p.ping.asked.take().unwrap_or(p.ping.answered);
                        }
                        (packet::PUBLISH, ..) => {
                            let publish = packet::publish(frame)?;
                            message(index, publish).with_context(|| format!("{address} sent publisher {index}"))?;
                            // Nobody subscribes at QoS 2.
                            if publish.qos > 0 {
                                packet::acknowledgement(&mut p.control, packet::PUBACK, publish.packet_id);
                            }
                        }
                        (kind, ..) => bail!("{address} sent publisher {index} a packet of type {kind}"),
                    }
                }
                if equal > 0 {
                    self.histogram.saturating_record_n(now.saturating_sub(time_ns), equal);
                }
                p.connection.keep(&self.buffer[at..len]);
            }
        }
        self.send(index, poller)
    }

    pub fn faults(&self) -> AcknowledgementFaults {
        let mut faults = AcknowledgementFaults::default();
        for unacknowledged in self.publishers.iter().filter_map(|p| p.unacknowledged.as_ref()) {
            faults.add(unacknowledged.faults());
        }
        faults
    }

    /// DISCONNECT for everybody.
    pub fn close(self) {
        self.publishers.into_iter().for_each(|p| p.connection.close());
    }
}

/// With zeros in front.
fn write_digits(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The number a numbered topic ends in.
pub fn read_number(topic: &[u8]) -> Option<u64> {
    topic
        .last_chunk::<NUMBER_DIGITS>()?
        .iter()
        .try_fold(0, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_the_whole() {
        for (count, publishers) in [(0, 1), (1, 3), (10, 3), (1_000_000, 7), (3, 10)] {
            let shares = (0..publishers).map(|i| share_of(count, i, publishers));
            assert_eq!(shares.sum::<u64>(), count);
        }
    }

    #[test]
    fn a_rota_goes_round_its_topics_and_numbers_each_on_its_own() {
        let rota = Rota {
            first: 2,
            step: 4,
            width: 3,
        };
        let messages: Vec<_> = (0..5).map(|message| rota.at(message)).collect();
        assert_eq!(messages, [(2, 0), (6, 0), (10, 0), (2, 1), (6, 1)]);
        assert_eq!([0, 1, 2].map(|position| rota.count(position, 5)), [2, 2, 1]);
        assert_eq!(
            (0..3).map(|message| Rota::ONE.at(message).1).collect::<Vec<_>>(),
            [0, 1, 2]
        );
    }

    #[test]
    fn a_number_reads_back_from_the_end_of_its_topic() {
        let mut topic = *b"a/bc/0000000";
        for number in [0, 7, 1_234_567, NUMBER_MAX] {
            write_digits(&mut topic[5..], number);
            assert_eq!(read_number(&topic), Some(number));
        }
        assert_eq!([read_number(b"a/all"), read_number(b"a/bc/00x0000")], [None, None]);
    }
}
