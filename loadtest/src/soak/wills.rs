//! Wills: clients that come with one and go, by turns with DISCONNECT and without, and those who wait for what the latter left.
//!
//! Owns    the connections of both, and which Wills are due.
//! Called  by `soak::engine`.
//! Holds   - the Wills of those who went without DISCONNECT come, each once, and no others [MQTT-3.1.2-8, MQTT-3.1.2-10];
//!         - a client with a Will is sent nothing but its CONNACK: what is unread when a socket closes may take the DISCONNECT
//!           with it.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;

use super::Settings;
use super::clients::Client;
use super::report::WillFigures;
use crate::client::{check_connack, check_suback};
use crate::packet::{self, STAMP_BYTES, SessionKind, Stamp, Will};
use crate::poller::Poller;
use crate::transport::{Target, Transport};

const TESTATORS_MAX: usize = 256;
/// What an heir subscribes with; a Will comes at its own, 1 or 2.
const HEIR_QOS: u8 = 2;

/// Who waits for the Wills of those who come over the same transport.
struct Heir {
    client: Client,
    filter: String,
    is_subscribed: bool,
}

/// Who has a Will.
struct Testator {
    client: Client,
    number: u64,
    since_ns: u64,
}

pub struct Wills<'a> {
    targets: &'a [(Transport, Target)],
    settings: &'a Settings,
    run: u32,
    heirs: Vec<Heir>,
    testators: Vec<Option<Testator>>,
    /// Of the next testator.
    number: u64,
    /// Numbers of testators.
    due: HashSet<u64>,
    answers: Vec<u8>,
    pub counts: WillFigures,
}

impl<'a> Wills<'a> {
    /// The heirs connect; the number of each is added to `token`.
    pub fn begin(
        targets: &'a [(Transport, Target)],
        settings: &'a Settings,
        run: u32,
        poller: &Poller,
        token: u64,
    ) -> Result<Wills<'a>> {
        let heirs = targets.iter().enumerate().map(|(i, (transport, target))| {
            let (id, token) = (format!("so{run:08x}h{i}"), token + i as u64);
            let client = Client::begin(target, poller, token, &id, SessionKind::Clean, &settings.credentials);
            Ok(Heir {
                client: client.with_context(|| format!("who waits for Wills over {}", transport.name()))?,
                filter: format!("{}/{run:08x}/wills{i}", settings.topic_prefix),
                is_subscribed: false,
            })
        });
        Ok(Wills {
            heirs: heirs.collect::<Result<_>>()?,
            targets,
            settings,
            run,
            testators: Vec::new(),
            number: 0,
            due: HashSet::new(),
            answers: Vec::new(),
            counts: WillFigures::default(),
        })
    }

    pub fn are_awaited(&self) -> bool {
        self.heirs.iter().all(|heir| heir.is_subscribed)
    }

    /// Nobody is on the way, and no Will.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty() && self.testators.iter().all(Option::is_none)
    }

    /// Since when the one who has waited longest waits for CONNACK.
    pub fn waits_since_ns(&self) -> Option<u64> {
        self.testators.iter().flatten().map(|testator| testator.since_ns).min()
    }

    /// Somebody comes with a Will.
    pub fn visit(&mut self, poller: &Poller, token: u64, now: u64) -> Result<()> {
        let free = self.testators.iter().position(Option::is_none);
        if free.is_none() && self.testators.len() == TESTATORS_MAX {
            return Ok(());
        }
        let slot = free.unwrap_or(self.testators.len());
        let number = self.number;
        self.number += 1;
        // Each transport sees both ways to go, and both QoS with each.
        let at = (number / 4 % self.targets.len() as u64) as usize;
        let stamp = Stamp {
            run: self.run,
            publisher: u32::MAX,
            sequence: number,
            time_ns: now,
        };
        let mut payload = [0; STAMP_BYTES];
        stamp.write(&mut payload);
        let will = Will {
            topic: &self.heirs[at].filter,
            qos: 1 + (number / 2 % 2) as u8,
            payload: &payload,
        };
        let (_, target) = &self.targets[at];
        let client = Client::begin_with(
            target,
            poller,
            token + slot as u64,
            &format!("so{:08x}w{number}", self.run),
            SessionKind::Clean,
            Some(will),
            &self.settings.credentials,
        );
        let testator = Testator {
            client: client.context("a client with a Will")?,
            number,
            since_ns: now,
        };
        match self.testators.get_mut(slot) {
            Some(free) => *free = Some(testator),
            None => self.testators.push(Some(testator)),
        }
        Ok(())
    }

    pub fn testator_ready(&mut self, poller: &Poller, slot: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        let Some(testator) = &mut self.testators[slot] else {
            return Ok(());
        };
        let len = testator
            .client
            .receive(poller, flags, buffer)
            .context("a client with a Will")?;
        let Some(frame) = packet::next_frame(&buffer[..len])? else {
            testator.client.keep(&buffer[..len]);
            return Ok(());
        };
        check_connack(testator.client.address(), frame)?;
        if let Some(testator) = self.testators[slot].take() {
            if testator.number % 2 == 0 {
                self.counts.kept += 1;
                testator.client.close();
            } else {
                self.counts.left += 1;
                self.due.insert(testator.number);
            }
        }
        Ok(())
    }

    pub fn heir_ready(&mut self, poller: &Poller, index: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        let heir = &mut self.heirs[index];
        let address = heir.client.address();
        let len = heir
            .client
            .receive(poller, flags, buffer)
            .context("who waits for Wills")?;
        let mut at = 0;
        self.answers.clear();
        while let Some(frame) = packet::next_frame(&buffer[at..len])? {
            at += frame.len;
            match frame.kind() {
                packet::CONNACK => {
                    check_connack(address, frame)?;
                    packet::subscribe(&mut self.answers, &heir.filter, HEIR_QOS);
                }
                packet::SUBACK => {
                    check_suback(address, frame, HEIR_QOS)?;
                    heir.is_subscribed = true;
                }
                packet::PUBLISH => {
                    let publish = packet::publish(frame)?;
                    let answer = match publish.qos {
                        1 => packet::PUBACK,
                        2 => packet::PUBREC,
                        _ => bail!("{address} sent a Will at QoS 0, with which none was left"),
                    };
                    packet::acknowledgement(&mut self.answers, answer, publish.packet_id);
                    let stamp = Stamp::read(publish.payload).filter(|stamp| stamp.run == self.run);
                    self.counts.received += 1;
                    let is_due = stamp.is_some_and(|stamp| self.due.remove(&stamp.sequence));
                    self.counts.unexpected += u64::from(!is_due);
                }
                packet::PUBREL => packet::acknowledgement(&mut self.answers, packet::PUBCOMP, frame.packet_id()?),
                kind => bail!("{address} sent a packet of type {kind}"),
            }
        }
        heir.client.keep(&buffer[at..len]);
        heir.client.put(poller, &self.answers)
    }

    /// How many are still due.
    pub fn end(self) -> u64 {
        self.heirs.into_iter().for_each(|heir| heir.client.close());
        self.due.len() as u64
    }
}
