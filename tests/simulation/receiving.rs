//! What clients get, and whether it is what they were promised.
//!
//! Called  by `world`, when a client reads; by `run`, at rest, for what must have come by then.
//! Holds   - a PUBLISH is of a subscription that the client has or had, at its QoS, as it was sent, and not oftener than it may be;
//!         - an acknowledgement is of what the client has sent, and in order.

use mqttbytes::v4;
use skein::mqtt::packet::{Level, QoS};

use crate::abuse::{self, is_abuse};
use crate::oracle::{Message, message_number};
use crate::topics::Route;
use crate::words::brief_packet;
use crate::workload::{Client, Promised, Subscription, ours};
use crate::world::{PACKET_BYTES_MAX, World};

/// Length of the frame at the head of `bytes`, if it is whole.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let mut len = 0;
    for (at, byte) in bytes.iter().skip(1).take(4).enumerate() {
        len |= usize::from(byte & 127) << (7 * at);
        if byte & 128 == 0 {
            let whole = 2 + at + len;
            return (bytes.len() >= whole).then_some(whole);
        }
    }
    assert!(bytes.len() < 5, "a Remaining Length has four bytes at most");
    None
}

impl World {
    /// Bytes come to a client.
    pub fn client_reads(&mut self, link: usize, bytes: &[u8]) {
        let client = self.links[link].client;
        self.clients[client].rx.extend_from_slice(bytes);
        let mut rx = std::mem::take(&mut self.clients[client].rx);
        let mut read = 0;
        while let Some(len) = frame_len(&rx[read..]) {
            let mut stream = rx[read..read + len].iter().copied().collect();
            read += len;
            let packet = match v4::read(&mut stream, PACKET_BYTES_MAX) {
                Ok(packet) => packet,
                Err(error) => panic!("client {client} cannot read: {error:?}"),
            };
            self.event(25, client as u64, || {
                format!("client {client} gets {}", brief_packet(&packet))
            });
            self.client_gets(client, link, packet);
        }
        rx.drain(..read);
        self.clients[client].rx = rx;
    }

    fn client_gets(&mut self, client: usize, link: usize, packet: v4::Packet) {
        let moment = self.moment;
        match packet {
            v4::Packet::ConnAck(connack) if connack.code != v4::ConnectReturnCode::Success => {
                let tenant = self.clients[client].tenant;
                let is_right = match connack.code {
                    v4::ConnectReturnCode::NotAuthorized => self.happened.suspensions > 0,
                    v4::ConnectReturnCode::BadUserNamePassword => self.oracle.topics.has_rotated(tenant),
                    v4::ConnectReturnCode::ServiceUnavailable => self.links[link].is_refused,
                    _ => false,
                };
                assert!(is_right, "a CONNECT by the rules was refused: {connack:?}");
                self.met.refused += 1;
                self.links[link].up_ends = true;
                self.let_go(client);
            }
            v4::Packet::ConnAck(_) => self.connected(client, link),
            v4::Packet::PubAck(v4::PubAck { pkid }) => {
                let expected = self.clients[client].expected.pop_front();
                assert_eq!(
                    expected,
                    Some((pkid, QoS::AtLeastOnce)),
                    "acknowledgements keep the order [MQTT-4.6.0-2]"
                );
                let outgoing = &mut self.clients[client].outgoing;
                if let Some(place) = outgoing.iter().position(|out| out.id == pkid) {
                    let message = outgoing.remove(place).message;
                    self.oracle.messages[message].acknowledged_at.get_or_insert(moment);
                }
            }
            v4::Packet::PubRec(v4::PubRec { pkid }) => {
                let c = &mut self.clients[client];
                let expected = c.expected.pop_front();
                assert_eq!(
                    expected,
                    Some((pkid, QoS::ExactlyOnce)),
                    "acknowledgements keep the order [MQTT-4.6.0-3]"
                );
                // The answer to a level 3 client's repetition may come when the flow has ended.
                if let Some(outgoing) = c.outgoing.iter_mut().find(|out| out.id == pkid) {
                    self.oracle.messages[outgoing.message]
                        .acknowledged_at
                        .get_or_insert(moment);
                    if !outgoing.is_released {
                        outgoing.is_released = true;
                        c.replies.push_back(v4::Packet::PubRel(v4::PubRel { pkid }));
                    }
                } else {
                    assert_eq!(c.level, Level::V31, "PUBREC {pkid} for nothing");
                }
            }
            v4::Packet::PubComp(v4::PubComp { pkid }) => {
                let outgoing = &mut self.clients[client].outgoing;
                let place = outgoing.iter().position(|out| out.id == pkid && out.is_released);
                outgoing.remove(place.expect("PUBCOMP follows PUBREL"));
            }
            v4::Packet::PubRel(v4::PubRel { pkid }) => {
                let c = &mut self.clients[client];
                c.received_ids.remove(&pkid);
                c.replies.push_back(v4::Packet::PubComp(v4::PubComp { pkid }));
            }
            v4::Packet::SubAck(suback) => {
                let c = &mut self.clients[client];
                let entries = c.subscribing.remove(&suback.pkid).expect("SUBACK answers a SUBSCRIBE");
                let codes: Vec<u8> = suback
                    .return_codes
                    .iter()
                    .map(|code| match code {
                        v4::SubscribeReasonCode::Success(qos) => *qos as u8,
                        v4::SubscribeReasonCode::Failure => 0x80,
                    })
                    .collect();
                let granted = self.links[link].granted.remove(&suback.pkid);
                let granted = granted.expect("a core has read what it answers");
                // One that grants nothing says nothing of the Session.
                c.has_suback |= granted.contains(&true);
                let level = c.level;
                // Level 3 has no code for what is refused.
                let code = |(entry, is_granted): (&(usize, QoS, bool), &bool)| match level {
                    Level::V311 if !is_granted => 0x80,
                    _ => entry.1 as u8,
                };
                let expected: Vec<u8> = entries.iter().zip(&granted).map(code).collect();
                assert_eq!(codes, expected, "one code per filter, in order [MQTT-3.9.3-1]");
                for ((filter, qos, is_wanted), is_granted) in entries.into_iter().zip(granted) {
                    if !is_wanted || !is_granted {
                        continue;
                    }
                    // A later SUBSCRIBE for the same filter may be in force by now.
                    let later = c.subscribing.values().flatten().filter(|entry| entry.0 == filter);
                    let qos = later.map(|(_, qos, _)| *qos).min().map_or(qos, |later| later.min(qos));
                    let is_simple = c.held.get(&filter).is_some_and(|held| held.generation == 1);
                    let fresh = Subscription {
                        qos,
                        since: moment,
                        link,
                        is_simple,
                    };
                    let subscription = c.subscriptions.entry(filter).or_insert(fresh);
                    subscription.qos = subscription.qos.min(qos);
                }
            }
            v4::Packet::UnsubAck(unsuback) => {
                let c = &mut self.clients[client];
                let filters = c
                    .unsubscribing
                    .remove(&unsuback.pkid)
                    .expect("UNSUBACK answers an UNSUBSCRIBE");
                for (filter, generation) in filters {
                    if let Some(held) = c.held.get_mut(&filter)
                        && held.generation == generation
                    {
                        held.removed_at = Some(moment);
                    }
                }
            }
            v4::Packet::PingResp => {}
            v4::Packet::Publish(publish) => self.client_gets_publish(client, publish),
            other => panic!("a server does not write {other:?}"),
        }
    }

    fn connected(&mut self, client: usize, link: usize) {
        let resumed = self.links[link].resumed;
        let epoch = self.links[link].epoch;
        let c = &mut self.clients[client];
        c.ready = true;
        c.must_be_clean = false;
        if !resumed && !c.clean_session {
            let seen = c.forget();
            self.oracle.seen.push(seen);
        }
        let c = &mut self.clients[client];
        // An earlier connection of this client's may have overtaken this one on its way home, and have ended its Session:
        // then nothing is expected of it.
        if !resumed {
            c.epoch = epoch;
        }
        if resumed {
            let again: Vec<(u16, usize, bool)> = c
                .outgoing
                .iter()
                .map(|out| (out.id, out.message, out.is_released))
                .collect();
            // Its Session ended while it was away, another began of which it has not heard, and this one resumes that.
            let is_stray = self.clients[client].epoch != epoch;
            if is_stray {
                // Nor can the server know what the client thinks that it has received, and subscribed to.
                let c = &mut self.clients[client];
                c.stray_ids = c.received_ids.keys().copied().collect();
                c.subscriptions.clear();
                c.has_suback = false;
                c.epoch = epoch;
            }
            for (id, message, is_released) in again {
                self.oracle.messages[message].strays += u32::from(is_stray);
                if is_released {
                    self.send(client, &v4::Packet::PubRel(v4::PubRel { pkid: id }));
                } else {
                    self.send_publish(client, message, id, true);
                }
            }
        }
    }

    fn client_gets_publish(&mut self, client: usize, publish: v4::Publish) {
        let v4::Publish {
            dup,
            qos,
            retain,
            topic,
            pkid,
            payload: bytes,
        } = publish;
        let c = &mut self.clients[client];
        let qos = ours(qos);
        let is_new = match qos {
            QoS::AtMostOnce => {
                assert!(!dup, "[MQTT-3.3.1-2]");
                true
            }
            QoS::AtLeastOnce => {
                c.replies.push_back(v4::Packet::PubAck(v4::PubAck { pkid }));
                true
            }
            QoS::ExactlyOnce => {
                c.replies.push_back(v4::Packet::PubRec(v4::PubRec { pkid }));
                let message = message_number(&bytes);
                let held = c.received_ids.insert(pkid, message);
                let begins_again = c.stray_ids.remove(&pkid) && !dup;
                let held = held.filter(|_| !begins_again);
                if let Some(held) = held {
                    assert!(dup, "identifier {pkid} is in use");
                    assert_eq!(held, message, "identifier {pkid} comes with another message");
                }
                held.is_none()
            }
        };
        if !is_new {
            return;
        }
        if is_abuse(&topic) {
            assert_eq!(bytes, abuse::PAYLOAD, "what abusers publish comes as it is");
            assert!(
                self.oracle.topics.is_or_was_below(self.clients[client].tenant, &topic),
                "an abuser of another account published {topic}"
            );
            return;
        }
        self.met.dollar_topics += u64::from(topic.starts_with('$'));
        let topic = self.oracle.topics.topic_number(&topic);
        let Some(number) = message_number(&bytes) else {
            assert!(
                bytes.is_empty() && !retain,
                "a retained message has a payload [MQTT-3.3.1-11]"
            );
            return;
        };
        let message = &self.oracle.messages[number];
        assert_eq!(bytes, self.oracle.payload(number), "message {number} came changed");
        assert!(
            self.route(number) != Route::Never,
            "message {number} came, and is refused or another account's"
        );
        let sent_at = message.sent_at.expect("the world saw it leave");
        let oracle = &self.oracle;
        let c = &mut self.clients[client];
        let copies = c.copies.entry(number).or_default();
        if retain {
            assert!(message.retain, "RETAIN is set on what was retained");
            c.retained_seen.insert(topic, number);
            return;
        }
        let may_come = c.held.iter().any(|(filter, held)| {
            held.removed_at.is_none_or(|at| sent_at < at)
                && qos <= held.qos_max
                && oracle.topics.matches(*filter, topic)
        });
        assert!(may_come, "message {number} came without a subscription");
        if !dup || qos == QoS::ExactlyOnce {
            copies.fresh += 1;
        }
        copies.exact += u32::from(qos == QoS::ExactlyOnce);
        assert!(
            copies.exact <= 1 + message.strays,
            "message {number} came {} times at QoS 2",
            copies.exact
        );
        let allowed = if message.qos == QoS::AtLeastOnce {
            message.attempts.max(1)
        } else {
            // What was sent below QoS 2 before a crash may be forgotten.
            message.runs.max(1) + message.strays
        };
        assert!(
            copies.fresh <= allowed,
            "message {number} came {} times, {allowed} allowed",
            copies.fresh
        );
        let due = c.is_due(oracle, client, message, sent_at);
        assert!(due.is_none_or(|due| qos >= due), "message {number} lost QoS: {due:?}");
        let c = &mut self.clients[client];
        let order = c.seen.entry(topic).or_default();
        if !order.contains(&number) {
            order.push(number);
        }
        if message.retain {
            c.retained_seen.insert(topic, number);
        }
    }

    /// What the broker has told its clients of their Sessions.
    pub fn promised(&self) -> Vec<Promised> {
        let told = |(client, c): (usize, &Client)| {
            let number = self.oracle.session_of(client, c.epoch)?;
            let text = |filter: &usize| self.oracle.topics.filters[*filter].clone();
            c.has_suback.then(|| Promised {
                client,
                number,
                subscriptions: c
                    .subscriptions
                    .iter()
                    .map(|(filter, held)| (text(filter), held.qos))
                    .collect(),
                removed: c
                    .held
                    .iter()
                    .filter(|(_, held)| held.removed_at.is_some() && !held.is_retired)
                    .map(|(filter, _)| text(filter))
                    .collect(),
            })
        };
        self.clients.iter().enumerate().filter_map(told).collect()
    }

    /// After a crash.
    pub fn check_promised(&self, promised: &[Promised]) {
        let stored = self.disk.stored(0);
        for Promised {
            client,
            number,
            subscriptions,
            removed,
        } in promised
        {
            let session = stored.sessions.iter().find(|session| session.session == *number);
            let session = session.unwrap_or_else(|| panic!("the Session of client {client} is lost after a SUBACK"));
            for (filter, qos) in subscriptions {
                let kept = session.filters.iter().find(|(kept, _)| **kept == **filter);
                assert!(
                    kept.is_some_and(|(_, kept)| kept >= qos),
                    "the subscription of client {client} to {filter} at {qos:?} is lost after its SUBACK: {kept:?}"
                );
            }
            for filter in removed {
                assert!(
                    session.filters.iter().all(|(kept, _)| **kept != **filter),
                    "the subscription of client {client} to {filter} is back after its UNSUBACK"
                );
            }
        }
    }

    /// After everything has come to rest: who misses what.
    pub fn check_deliveries(&mut self) {
        let (mut missing, mut missing_qos0, mut lost_qos0) = (0, 0, Vec::new());
        for client in 0..self.clients.len() {
            let c = &self.clients[client];
            let Some(link) = c.link else { continue };
            for (number, message) in self.oracle.messages.iter().enumerate() {
                let Some(sent_at) = message.sent_at else { continue };
                let publisher = &self.clients[message.publisher];
                let is_sender_here = !message.is_api && publisher.link == Some(message.link) && publisher.ready;
                // A Will is published without anybody's acknowledgement.
                let surely_published = (message.is_will && sent_at > self.oracle.crashed_at)
                    || message.acknowledged_at.is_some()
                    || (message.qos == QoS::AtMostOnce && is_sender_here);
                if !surely_published || message.len == 0 || c.copies.contains_key(&number) {
                    continue;
                }
                if self.route(number) != Route::Surely {
                    continue;
                }
                match c.is_due(&self.oracle, client, message, sent_at) {
                    Some(QoS::AtLeastOnce | QoS::ExactlyOnce) => {
                        missing += 1;
                        assert!(!self.oracle.ample(), "message {number} did not reach client {client}");
                    }
                    Some(QoS::AtMostOnce) => {
                        let here = |(filter, subscription): (&usize, &Subscription)| {
                            subscription.link == link
                                && subscription.since < sent_at
                                && self.oracle.topics.matches(*filter, message.topic)
                        };
                        if c.subscriptions.iter().any(here) {
                            if self.links[link].has_fetched {
                                missing_qos0 += 1;
                                continue;
                            }
                            missing_qos0 += 1;
                            lost_qos0.push((number, client));
                        }
                    }
                    None => {}
                }
            }
        }
        if self.profile.ample_queue && self.profile.ample_outbox {
            assert_eq!(lost_qos0, [], "QoS 0 messages that did not reach clients");
        }
        self.oracle.missing = missing;
        self.oracle.missing_qos0 = missing_qos0;
    }

    /// Clients whose subscription is as old as their connection have the last retained message of each topic, live or
    /// as retained.
    pub fn check_retained_seen(&self) {
        let retained = self.oracle.retained();
        for (client, c) in self.clients.iter().enumerate() {
            let Some(link) = c.link else { continue };
            for (topic, message) in &retained {
                let Message { qos, runs, .. } = self.oracle.messages[*message];
                if runs > 1 {
                    // Who got it before a crash does not get it again at QoS 2, though it is retained anew.
                    continue;
                }
                // Behind what is read back first, QoS 0 gives way.
                let wants = c.subscriptions.iter().any(|(filter, subscription)| {
                    subscription.link == link
                        && subscription.is_simple
                        && self.oracle.topics.matches(*filter, *topic)
                        && (qos.min(subscription.qos) > QoS::AtMostOnce || !self.links[link].has_fetched)
                });
                if wants {
                    let seen = c.retained_seen.get(topic);
                    assert_eq!(
                        seen,
                        Some(message),
                        "client {client}, topic {topic}: the last retained message"
                    );
                }
            }
        }
    }
}
