//! The slow subscribers, and the publisher that feeds them.
//!
//! Owns    their connections and what each got.
//! Called  by `slow_reader`, in its own thread.
//! Holds   - a reader reads its share of bytes a second and no more, into a small receive buffer, so that what it does not read
//!           is the broker's to keep;
//!         - afterwards all read what there is: what then is missing was dropped, who finds an end was cut off;
//!         - the publisher sends on a schedule; what the broker does not take, or does not acknowledge, is skipped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::sockopt;
use serde::Serialize;

use super::{Live, Settings};
use crate::acknowledgement::{Answer, Unacknowledged};
use crate::client::{Connection, Received};
use crate::pace::Pace;
use crate::packet::{self, PublishTemplate, STAMP_BYTES, SessionKind, Stamp};
use crate::sequence::{Faults, Streams};
use crate::transport::Target;

const TURN: Duration = Duration::from_millis(1);
/// The kernel doubles it; the least it takes is about 2 KiB.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024;
const UNACKED: usize = 1000;
/// With nothing to read for so long a reader has caught up.
pub const SILENCE: Duration = Duration::from_secs(1);
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    pub readers: u32,
    /// Slow time and catching up.
    pub seconds: f64,
    pub sent: u64,
    /// Fell due while the broker took none or acknowledged none.
    pub not_sent: u64,
    pub received: u64,
    pub read_while_slow_bytes: u64,
    pub cut: u32,
    /// Of those who were not cut off: messages that did not come.
    pub dropped: u64,
    pub faults: Faults,
}

struct Reader {
    /// None: cut off.
    connection: Option<Connection>,
    read_bytes: u64,
    streams: Streams,
}

pub struct Readers<'a> {
    settings: &'a Settings,
    run: u32,
    feeder: Connection,
    template: PublishTemplate,
    unacknowledged: Option<Unacknowledged>,
    readers: Vec<Reader>,
    buffer: Vec<u8>,
    counts: Counts,
}

impl<'a> Readers<'a> {
    pub fn connect(target: &Target, settings: &'a Settings, run: u32) -> Result<Readers<'a>> {
        let topic = format!("{}/{run:08x}/slow", settings.topic_prefix);
        let open = |id: String| Connection::open(target, &id, SessionKind::Clean, &settings.credentials);
        let mut readers = Vec::new();
        for i in 0..settings.readers {
            let context = || format!("slow reader {i} of {}", settings.readers);
            let mut connection = open(format!("sr{run:08x}s{i}")).with_context(context)?;
            connection.subscribe(&topic, settings.qos).with_context(context)?;
            connection.set_nonblocking()?;
            sockopt::set_socket_recv_buffer_size(connection.socket(), RECEIVE_BUFFER_BYTES)?;
            readers.push(Reader {
                connection: Some(connection),
                read_bytes: 0,
                streams: Streams::new(1),
            });
        }
        let mut feeder = open(format!("sr{run:08x}p0")).context("publisher for the slow readers")?;
        feeder.set_nonblocking()?;
        let size = settings.size as usize;
        Ok(Readers {
            settings,
            run,
            feeder,
            template: PublishTemplate::new(&topic, settings.qos, size),
            unacknowledged: (settings.qos > 0).then(|| Unacknowledged::new(settings.qos, UNACKED)),
            readers,
            buffer: vec![0; 2 * size + 256 * 1024],
            counts: Counts {
                readers: settings.readers,
                ..Counts::default()
            },
        })
    }

    /// Feeds them for the time of the flags, while they read as slowly as they are told to.
    pub fn be_slow(&mut self, live: &mut Live) -> Result<()> {
        let start = Instant::now();
        let pace = Pace::new(self.settings.rate, 1);
        let mut begun = 0;
        while start.elapsed().as_secs_f64() < self.settings.seconds {
            let now = start.elapsed().as_nanos() as u64;
            let due = pace.total_due_count(now);
            for _ in begun..due {
                self.feed(now)?;
            }
            begun = due;
            self.take_acknowledgements()?;
            let allowed = (start.elapsed().as_secs_f64() * self.settings.read_rate as f64) as u64;
            for i in 0..self.readers.len() {
                while self.readers[i].read_bytes < allowed && self.read(i)? {}
            }
            self.tell(live);
            std::thread::sleep(TURN);
        }
        self.counts.read_while_slow_bytes = self.readers.iter().map(|reader| reader.read_bytes).sum();
        Ok(())
    }

    /// All read what there is.
    pub fn catch_up(&mut self, live: &mut Live) -> Result<()> {
        let start = Instant::now();
        let mut heard = Instant::now();
        while heard.elapsed() < SILENCE && start.elapsed() < CATCH_UP_MAX {
            self.take_acknowledgements()?;
            for i in 0..self.readers.len() {
                while self.read(i)? {
                    heard = Instant::now();
                }
            }
            self.tell(live);
            std::thread::sleep(TURN);
        }
        Ok(())
    }

    fn tell(&self, live: &mut Live) {
        let faults = self.readers.iter().map(|reader| reader.streams.faults());
        let broken = faults.map(|faults| faults.doubled + faults.out_of_order).sum();
        live.slow = (self.counts.received, broken);
        live.turn();
    }

    pub fn finish(mut self, time: Duration) -> Counts {
        self.counts.seconds = time.as_secs_f64();
        for mut reader in self.readers {
            if reader.connection.is_some() {
                reader.streams.finish(0, self.counts.sent);
                self.counts.dropped += reader.streams.faults().missing;
            }
            let faults = reader.streams.faults();
            self.counts.faults.add(faults);
            reader.connection.into_iter().for_each(Connection::close);
        }
        self.feeder.close();
        self.counts
    }

    fn feed(&mut self, time_ns: u64) -> Result<()> {
        let at = self.template.stamp_at;
        let id = match &mut self.unacknowledged {
            Some(unacknowledged) if unacknowledged.in_flight() >= UNACKED => None,
            _ if self.feeder.wants_write() => None,
            Some(unacknowledged) => unacknowledged.take(time_ns),
            None => Some(0),
        };
        let Some(id) = id else {
            self.counts.not_sent += 1;
            return Ok(());
        };
        if self.settings.qos > 0 {
            self.template.bytes[at - 2..at].copy_from_slice(&id.to_be_bytes());
        }
        let stamp = Stamp {
            run: self.run,
            publisher: 0,
            sequence: self.counts.sent,
            time_ns,
        };
        stamp.write(&mut self.template.bytes[at..][..STAMP_BYTES]);
        self.counts.sent += 1;
        self.feeder
            .send(&[], &self.template.bytes)
            .context("publisher for the slow readers")
    }

    fn take_acknowledgements(&mut self) -> Result<()> {
        self.feeder.flush()?;
        let received = self.feeder.receive(&mut self.buffer);
        let Received::Bytes { len, .. } = received.context("publisher for the slow readers")? else {
            return Ok(());
        };
        let mut at = 0;
        let mut answers = Vec::new();
        while let Some(frame) = packet::next_frame(&self.buffer[at..len])? {
            at += frame.len;
            let id = frame.packet_id()?;
            let answer = match (frame.kind(), &mut self.unacknowledged) {
                (packet::PUBACK | packet::PUBREC, Some(unacknowledged)) => unacknowledged.first(id),
                (packet::PUBCOMP, Some(unacknowledged)) => unacknowledged.complete(id),
                (kind, _) => bail!("{} sent a packet of type {kind}", self.feeder.address),
            };
            if answer == Answer::SendPubrel {
                packet::acknowledgement(&mut answers, packet::PUBREL, id);
            }
        }
        self.feeder.keep(&self.buffer[at..len]);
        put(&mut self.feeder, &answers)
    }

    /// One read of one reader, answered as its QoS asks for; false when there was nothing.
    fn read(&mut self, index: usize) -> Result<bool> {
        let reader = &mut self.readers[index];
        let Some(connection) = &mut reader.connection else {
            return Ok(false);
        };
        // At most a turn's worth, or a frame that is longer.
        let most = self.buffer.len().min(self.settings.size as usize * 2 + 66_000);
        let taken = connection
            .flush()
            .and_then(|()| connection.receive(&mut self.buffer[..most]));
        let len = match taken {
            Ok(Received::Bytes { len, .. }) => len,
            Ok(Received::Nothing) => return Ok(false),
            Err(_) => {
                // That is what is asked about here, no failure of the run.
                reader.connection = None;
                self.counts.cut += 1;
                return Ok(false);
            }
        };
        let mut at = 0;
        let mut answers = Vec::new();
        while let Some(frame) = packet::next_frame(&self.buffer[at..len])? {
            at += frame.len;
            match frame.kind() {
                packet::PUBLISH => {
                    let publish = packet::publish(frame)?;
                    let stamp = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.run);
                    if let Some(stamp) = stamp {
                        reader.streams.receive(0, stamp.sequence);
                        self.counts.received += 1;
                    }
                    match publish.qos {
                        0 => {}
                        1 => packet::acknowledgement(&mut answers, packet::PUBACK, publish.packet_id),
                        _ => packet::acknowledgement(&mut answers, packet::PUBREC, publish.packet_id),
                    }
                }
                packet::PUBREL => packet::acknowledgement(&mut answers, packet::PUBCOMP, frame.packet_id()?),
                kind => bail!("slow reader {index} was sent a packet of type {kind}"),
            }
        }
        connection.keep(&self.buffer[at..len]);
        // What is read again with the rest of its frame is not counted twice.
        reader.read_bytes += at as u64;
        if put(connection, &answers).is_err() {
            reader.connection = None;
            self.counts.cut += 1;
        }
        Ok(true)
    }
}

fn put(connection: &mut Connection, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if connection.wants_write() {
        return connection.append(bytes);
    }
    connection.send(&[], bytes)
}
