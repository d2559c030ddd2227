//! Clients that keep no rule: packets that may not be, in an order that may not be, half of them sent, nothing read.
//!
//! Owns    the connections of the abusers, and what they write.
//! Called  by `world`: one act at a time, and with what the server writes to them.
//! Holds   - an abuser has no Session that outlives its connection, and publishes to topics of its own, so that clients by
//!           the rules can tell its messages: their payload is `PAYLOAD`;
//!         - an abuser of an account tries the topics of others, too, of which nobody gets anything;
//!         - whatever an abuser does is done to its own connection: the checks of everybody else hold as they do without it.

use skein::mqtt::client::{self, ServerPacket};
use skein::mqtt::packet::{Connect, Level, QoS, Will};
use skein::shard::CloseReason;

use crate::world::World;

/// Too short to have a number.
pub const PAYLOAD: &[u8] = b"abuse";
const WORD: &str = "abuse";

/// Whether an abuser may have published to this topic.
pub fn is_abuse(topic: &str) -> bool {
    topic.split('/').any(|level| level == WORD)
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// A packet of one byte's Remaining Length.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(body.len()).expect("a short packet");
    assert!(len < 128);
    [&[first, len], body].concat()
}

fn publish(first: u8, topic: &[u8], id: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend(id.iter().flat_map(|id| id.to_be_bytes()));
    body.extend_from_slice(payload);
    packet(first, &body)
}

fn filters(first: u8, id: u16, filter: &[u8], qos: Option<u8>) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    text(&mut body, filter);
    body.extend(qos);
    packet(first, &body)
}

impl World {
    /// One thing an abuser does.
    pub fn abuser_acts(&mut self) {
        let abuser = self.random.below(self.profile.abusers);
        let open = self.live.iter().copied().find(|link| {
            let link = &self.links[*link];
            link.abuser == Some(abuser) && link.attached
        });
        let Some(link) = open else {
            return self.abuser_connects(abuser);
        };
        if self.links[link].down_ends || self.random.percent(3) {
            self.abuser_goes(link);
            return;
        }
        if self.links[link].up.len() > 2_000 || self.links[link].is_silent {
            return;
        }
        for _ in 0..self.random.between(1, 3) {
            let mut bytes = self.some_packet(abuser, link);
            if self.random.percent(3) {
                // The rest of it never comes.
                bytes.truncate(self.random.below(bytes.len()));
                self.links[link].is_silent = true;
            }
            self.event(50, bytes.len() as u64, || {
                format!("abuser {abuser} writes {bytes:?} on link {link}")
            });
            if !self.links[link].up_ends {
                self.links[link].up.extend(bytes);
            }
            if self.links[link].is_silent {
                return;
            }
        }
    }

    fn abuser_connects(&mut self, abuser: usize) {
        let tenant = abuser % self.profile.tenants.max(1);
        let keep_alive_s = self.random.pick(&[0, 0, 1, 3]);
        let level = self.random.pick(&[Level::V311, Level::V31]);
        let mut link = World::fresh_link(0, tenant, level, keep_alive_s, None);
        link.abuser = Some(abuser);
        let login = self.login(tenant);
        let (user_name, mut password) = login.map(|(user, token)| (user, token.into_bytes())).unzip();
        if let Some(password) = &mut password
            && self.random.percent(10)
        {
            password.truncate(self.random.below(password.len()));
        }
        let will = self.random.percent(50).then(|| Will {
            topic: self.own_topic(tenant),
            payload: PAYLOAD.to_vec(),
            qos: self.random.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]),
            retain: false,
        });
        let connect = Connect {
            level,
            clean_session: true,
            keep_alive_s,
            client_id: format!("abuser-{abuser}"),
            user_name,
            password,
            will,
        };
        client::connect(&mut link.up, &connect);
        match self.random.below(12) {
            // Reserved flag [MQTT-3.1.2-3], unknown level [MQTT-3.1.2-2], another name, another packet, nothing whole.
            0 => link.up[if level == Level::V311 { 9 } else { 11 }] |= 1,
            1 => link.up[if level == Level::V311 { 8 } else { 10 }] = 9,
            2 => link.up[4] = b'X',
            3 => link.up = packet(0xc0, &[]),
            4 => {
                link.up.pop();
                link.is_silent = true;
            }
            _ => {}
        }
        let bytes = link.up.len();
        let link = self.open_link(link);
        self.event(51, bytes as u64, || format!("abuser {abuser} connects on link {link}"));
    }

    /// It lets go; the server may hear of it or not.
    fn abuser_goes(&mut self, link: usize) {
        self.event(52, link as u64, || format!("the abuser of link {link} goes"));
        let half_open = self.random.percent(30);
        let l = &mut self.links[link];
        l.up_ends |= !half_open;
        l.attached = false;
        l.down.clear();
        self.bury(link);
    }

    pub fn abusers_leave(&mut self) -> bool {
        let links = self.live.iter().copied();
        let theirs: Vec<usize> = links.filter(|link| self.links[*link].abuser.is_some()).collect();
        for link in &theirs {
            self.links[*link].attached = false;
            self.reset(*link);
        }
        !theirs.is_empty()
    }

    fn own_topic(&mut self, tenant: usize) -> String {
        let end = self.random.pick(&["a", "b", "c/d"]);
        match &self.platform {
            None => format!("{WORD}/{end}"),
            Some(platform) => format!("{}/{WORD}/{end}", platform.token(tenant)),
        }
    }

    fn some_packet(&mut self, abuser: usize, link: usize) -> Vec<u8> {
        let tenant = self.links[link].tenant;
        let own = self.own_topic(tenant);
        let own = own.as_bytes();
        let id = self.random.pick(&[1, 1, 2, 3, 65_535]);
        let qos = self.random.below(3) as u8;
        let dup = 8 * u8::from(qos > 0 && self.random.percent(30));
        let with_id = (qos > 0).then_some(id);
        match self.random.below(30) {
            0..6 => publish(0x30 | dup | qos << 1, own, with_id, PAYLOAD),
            6 if self.profile.tenants > 1 => {
                let foreign = (tenant + 1 + self.random.below(self.profile.tenants - 1)) % self.profile.tenants;
                let topic = self.random.pick(&self.oracle.topics.of[foreign]);
                publish(
                    0x30 | qos << 1,
                    self.oracle.topics.texts[topic].as_bytes(),
                    with_id,
                    PAYLOAD,
                )
            }
            7 => publish(0x30, &[own, b"/#"].concat(), None, PAYLOAD),
            8 => publish(0x36, own, Some(id), PAYLOAD),
            9 => publish(0x32, own, Some(0), PAYLOAD),
            10 => packet(0x30, &[0, 60, b'a']),
            11 => publish(0x30, b"abuse/\xff\xfe", None, PAYLOAD),
            12 => publish(0x30, b"abuse/\0", None, PAYLOAD),
            13..17 => {
                let first = self.random.pick(&[0x40, 0x50, 0x62, 0x70]);
                packet(first, &u16::to_be_bytes(id))
            }
            17 => packet(0x60, &u16::to_be_bytes(id)),
            18..22 => {
                let filter = match self.platform {
                    None => self.random.pick(&["#", "+/#", "abuse/+", "a/b"]).as_bytes().to_vec(),
                    Some(_) if self.random.percent(30) => b"#".to_vec(),
                    Some(_) => own[..32].iter().copied().chain(*b"/#").collect(),
                };
                filters(0x82, id, &filter, Some(qos))
            }
            22 => match self.random.below(5) {
                0 => filters(0x80, id, own, Some(qos)),
                1 => filters(0x82, id, own, Some(3)),
                2 => filters(0x82, 0, own, Some(qos)),
                3 => filters(0x82, id, b"abuse/#/a", Some(qos)),
                _ => packet(0x82, &u16::to_be_bytes(id)),
            },
            23 => filters(0xa2, id, own, None),
            24 => packet(0xa2, &u16::to_be_bytes(id)),
            25 => packet(self.random.pick(&[0xc0, 0xd0, 0x20, 0x90, 0xf0, 0x00]), &[]),
            26 => {
                let mut again = Vec::new();
                let connect = Connect {
                    level: Level::V311,
                    clean_session: true,
                    keep_alive_s: 0,
                    client_id: format!("abuser-{abuser}"),
                    user_name: None,
                    password: None,
                    will: None,
                };
                client::connect(&mut again, &connect);
                again
            }
            27 => packet(self.random.pick(&[0xe0, 0xe1]), &[]),
            28 => vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
            29 => vec![0x30, 0xff, 0xff, 0xff, 0x7f],
            _ => packet(0xc0, &[]),
        }
    }

    /// What the server writes to an abuser is nothing of another account's.
    pub fn abuser_gets(&mut self, link: usize, packet: &ServerPacket<'_>) {
        self.met.abuse_answered += 1;
        if let ServerPacket::Publish(publish) = packet {
            assert!(
                self.oracle
                    .topics
                    .is_or_was_below(self.links[link].tenant, publish.topic.as_str()),
                "an abuser gets what is another account's"
            );
        }
    }

    pub fn abuser_closed(&mut self, reason: CloseReason) {
        self.met.abuse_closed += u64::from(matches!(reason, CloseReason::Malformed(_) | CloseReason::Violation(_)));
    }
}
