//! Connections: what a client and the server see of one, and everything between them.
//!
//! Owns    [`Link`]: its bytes on their way, where its server's end is, and what the oracle has seen of it.
//! Called  by `world`, whose steps move bytes; by `workload` and `abuse`, which open links and write to them.
//! Holds   - bytes are never lost or swapped but by a connection's end;
//!         - the server's end goes the way of the broker's: greeted by any core, handed over to its home, closed when the shard says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skein::mqtt::decode::decode;
use skein::mqtt::encode;
use skein::mqtt::frame::{Framing, next_frame};
use skein::mqtt::packet::{Connect, Level, Packet};
use skein::mqtt::reason::ConnectReturnCode;
use skein::registry::access::{Access, AccountId};
use skein::shard::greeting::{Greeting, Identity, greet};
use skein::shard::{ConnectionId, Input};

use crate::world::{PACKET_BYTES_MAX, World};

/// Where the server's end of a connection is.
pub enum Stage {
    /// On the accepting core, before a whole CONNECT.
    Greeting,
    /// On its way to its home core.
    Handoff {
        connect: Box<Connect>,
        account: AccountId,
        /// Of the accounts that it was judged by.
        version: u64,
        home: usize,
    },
    Home {
        core: usize,
        id: ConnectionId,
    },
    /// The server's socket is closed.
    Gone,
}

pub struct Link {
    pub client: usize,
    /// Its client's account; 0 where there are none.
    pub tenant: usize,
    /// It is this abuser's, and `client` means nothing.
    pub abuser: Option<usize>,
    /// Half a packet was its last.
    pub is_silent: bool,
    pub stage: Stage,
    /// Sent by the client, not read by the server.
    pub up: Vec<u8>,
    /// Read by the server, not consumed by a shard.
    pub arrived: Vec<u8>,
    /// Taken by the server's socket, not read by the client.
    pub down: Vec<u8>,
    /// Bytes of the outbox that the socket has taken, and those that the oracle has seen.
    pub taken: u64,
    pub seen: u64,
    pub paused: bool,
    pub transmit: bool,
    /// The client has not let go of its end.
    pub attached: bool,
    /// The client closes after what is in `up`.
    pub up_ends: bool,
    /// The server has closed after what is in `down`.
    pub down_ends: bool,
    pub level: Level,
    pub keep_alive_s: u16,
    /// The message of its Will.
    pub will: Option<usize>,
    /// When it came home: connections of one client may overtake each other on the way.
    pub home_at: u64,
    /// The count of this client's Sessions when it came home.
    pub epoch: u64,
    /// Whether the model says that a Session was resumed.
    pub resumed: bool,
    pub connack_seen: bool,
    /// When a whole packet last reached the shard, or the connection was resumed.
    pub heard_at_ms: u64,
    /// The shard says that it has ended.
    pub closing: bool,
    /// Its Session's queue has been read from disk: QoS 0 gives way till it has caught up.
    pub has_fetched: bool,
    /// Its account has no room for it.
    pub is_refused: bool,
    /// By identifier of a SUBSCRIBE that a core has read, which filters are granted.
    pub granted: BTreeMap<u16, Vec<bool>>,
    /// Those that an abuser holds.
    pub filters: BTreeSet<String>,
}

impl Link {
    pub fn is_home(&self) -> bool {
        matches!(self.stage, Stage::Home { .. })
    }

    pub fn is_at_home_on(&self, home: usize) -> bool {
        matches!(self.stage, Stage::Home { core, .. } if core == home)
    }
}

impl World {
    /// A connection whose `up` the client fills from now on.
    pub fn open_link(&mut self, link: Link) -> usize {
        self.links.push(link);
        self.live.push(self.links.len() - 1);
        self.links.len() - 1
    }

    pub fn fresh_link(client: usize, tenant: usize, level: Level, keep_alive_s: u16, will: Option<usize>) -> Link {
        Link {
            client,
            tenant,
            abuser: None,
            is_silent: false,
            stage: Stage::Greeting,
            up: Vec::new(),
            arrived: Vec::new(),
            down: Vec::new(),
            taken: 0,
            seen: 0,
            paused: false,
            transmit: false,
            attached: true,
            up_ends: false,
            down_ends: false,
            level,
            keep_alive_s,
            will,
            home_at: 0,
            epoch: 0,
            resumed: false,
            connack_seen: false,
            heard_at_ms: 0,
            closing: false,
            has_fetched: false,
            is_refused: false,
            granted: BTreeMap::new(),
            filters: BTreeSet::new(),
        }
    }

    /// The server's socket reads up to `bytes`.
    pub fn carry_up(&mut self, link: usize, bytes: usize) -> bool {
        let l = &mut self.links[link];
        match l.stage {
            Stage::Gone => {
                let had = !l.up.is_empty();
                l.up.clear();
                had
            }
            Stage::Greeting => {
                if bytes == 0 {
                    if l.up_ends && l.up.is_empty() {
                        self.server_end(link);
                        return true;
                    }
                    return false;
                }
                l.arrived.extend(l.up.drain(..bytes));
                self.greet(link);
                true
            }
            Stage::Handoff { .. } => {
                self.come_home(link);
                true
            }
            Stage::Home { .. } => {
                if l.paused {
                    return false;
                }
                if bytes == 0 && l.up.is_empty() && l.up_ends {
                    if self.present(link) > 0 {
                        return true;
                    }
                    self.event(1, link as u64, || format!("link {link}: the client's end is closed"));
                    self.server_end(link);
                    return true;
                }
                if bytes == 0 && l.arrived.is_empty() {
                    return false;
                }
                l.arrived.extend(l.up.drain(..bytes));
                self.present(link) > 0 || bytes > 0
            }
        }
    }

    /// User name and password of a client of this account.
    pub fn login(&self, tenant: usize) -> Option<(String, String)> {
        let platform = self.platform.as_ref()?;
        let account = &platform.tenants[tenant].account;
        Some((account.user_id.to_string(), account.device_token.as_str().to_owned()))
    }

    /// The rules as some core knows them.
    pub fn access_of(&self, core: usize) -> Access {
        match &self.platform {
            None => Access::Open,
            Some(platform) => Access::Platform(Arc::clone(&platform.told[core])),
        }
    }

    /// Who is let in by a core is of an account that the core knows, with its token, and not suspended.
    pub fn check_may_come(&self, connect: &Connect, account: AccountId, core: usize) {
        let Some(platform) = &self.platform else { return };
        let known = platform.told[core].tenant(account).map(|known| &known.account);
        let known = known.expect("a connection of no account is let in");
        assert!(!known.is_suspended, "a connection of a suspended account is let in");
        assert_eq!(
            (connect.user_name.as_deref(), connect.password.as_deref()),
            (Some(&*known.user_id), Some(known.device_token.as_str().as_bytes())),
            "a connection with another token is let in"
        );
    }

    /// CONNACK with a code other than 0, and the end.
    pub fn refuse(&mut self, link: usize, code: ConnectReturnCode) {
        self.event(19, link as u64, || format!("link {link}: refused, {code:?}"));
        encode::connack(&mut self.links[link].down, false, code);
        self.server_end(link);
    }

    pub fn greet(&mut self, link: usize) {
        let acceptor = self.random.below(self.shards.len());
        let access = self.access_of(acceptor);
        let l = &mut self.links[link];
        match greet(&l.arrived, || Identity::Claimed, &access, 65_535, || "fresh".to_owned()) {
            Greeting::Incomplete => {}
            Greeting::Accepted {
                connect,
                account,
                consumed,
            } => {
                l.arrived.drain(..consumed);
                self.check_may_come(&connect, account, acceptor);
                let l = &mut self.links[link];
                let home = self.shards[0].home(account, &connect.client_id).0 as usize;
                assert!(
                    self.shards
                        .iter()
                        .all(|shard| shard.home(account, &connect.client_id).0 as usize == home),
                    "every core names the same home"
                );
                l.stage = Stage::Handoff {
                    connect,
                    account,
                    version: access.version(),
                    home,
                };
                self.event(2, link as u64, || {
                    format!("link {link}: CONNECT accepted, home is core {home}")
                });
            }
            // A client's account may be suspended, or its token another by now: see what the client makes of it.
            Greeting::Refused(code) if self.platform.is_some() || l.abuser.is_some() => self.refuse(link, code),
            Greeting::Malformed(_) if l.abuser.is_some() => self.server_end(link),
            Greeting::Refused(code) => panic!("a CONNECT by the rules was refused: {code:?}"),
            Greeting::Malformed(error) => panic!("a CONNECT by the rules was malformed: {error:?}"),
        }
    }

    pub fn come_home(&mut self, link: usize) {
        let stage = std::mem::replace(&mut self.links[link].stage, Stage::Gone);
        let Stage::Handoff {
            connect,
            account,
            version,
            home,
        } = stage
        else {
            unreachable!("only a link on its way comes home");
        };
        let access = self.access_of(home);
        if version < access.version()
            && let Err(code) = access.authenticate(&connect)
        {
            return self.refuse(link, code);
        }
        if version < access.version() {
            self.check_may_come(&connect, account, home);
        }
        let clean_session = connect.clean_session;
        let is_refused = self.is_beyond_bounds(link, home, clean_session);
        self.links[link].is_refused = is_refused;
        let places = &mut self.places[home];
        let index = places.free.pop().unwrap_or_else(|| {
            places.links.push(None);
            places.generations.push(0);
            places.links.len() as u32 - 1
        });
        places.generations[index as usize] += 1;
        places.links[index as usize] = Some(link);
        let id = ConnectionId {
            index,
            generation: places.generations[index as usize],
        };
        let l = &mut self.links[link];
        l.stage = Stage::Home { core: home, id };
        l.heard_at_ms = self.now_ms;
        l.home_at = self.moment;
        let client = l.client;
        if l.abuser.is_some() || is_refused {
            let words = if is_refused { ", and is refused" } else { "" };
            self.event(3, link as u64, || {
                format!("link {link}: comes home to core {home}{words}")
            });
        } else {
            self.links[link].resumed = self.oracle.came_home(client, link, clean_session, self.now_ms);
            self.links[link].epoch = self.oracle.sessions[client].epoch;
            let resumed = self.links[link].resumed;
            self.event(3, link as u64, || {
                format!(
                    "link {link}: client {client} comes home to core {home}, clean {clean_session}, resumed {resumed}"
                )
            });
        }
        let input = Input::Connected {
            connection: id,
            connect,
            account,
        };
        self.handle(home, input);
        self.drain(home);
        assert!(
            !is_refused || !self.links[link].is_home(),
            "link {link} is served, and its account has no room for it"
        );
        self.present(link);
    }

    /// Presents what has been read to the shard.
    pub fn present(&mut self, link: usize) -> usize {
        let l = &mut self.links[link];
        let Stage::Home { core, id } = l.stage else { return 0 };
        if l.paused || l.arrived.is_empty() {
            return 0;
        }
        let bytes = std::mem::take(&mut l.arrived);
        let input = Input::Received {
            connection: id,
            bytes: &bytes,
        };
        let consumed = self.handle(core, input);
        assert!(consumed <= bytes.len(), "no more is consumed than was presented");
        if consumed > 0 {
            self.links[link].heard_at_ms = self.now_ms;
        }
        self.event(4, (link as u64) << 32 | consumed as u64, || {
            format!("link {link}: core {core} consumes {consumed} of {} bytes", bytes.len())
        });
        let mut read = &bytes[..consumed];
        while let Ok(Framing::Whole(frame)) = next_frame(read, PACKET_BYTES_MAX) {
            read = &read[frame.len..];
            let Ok(packet) = decode(frame, self.links[link].level) else {
                break;
            };
            if self.links[link].abuser.is_none() {
                self.oracle.server_consumed(self.links[link].client, &packet);
            }
            self.server_subscribes(link, core, &packet);
            if packet == Packet::Disconnect {
                break;
            }
        }
        // A pause may leave whole packets; without one the rest is less than a packet.
        self.links[link].arrived = bytes;
        self.links[link].arrived.drain(..consumed);
        self.drain(core);
        let l = &self.links[link];
        if !l.paused && matches!(l.stage, Stage::Home { .. }) {
            let rest = next_frame(&l.arrived, PACKET_BYTES_MAX);
            assert!(matches!(rest, Ok(Framing::Missing(_))), "whole packets are consumed");
        }
        consumed
    }

    /// The server's socket takes up to `bytes` of the outbox.
    pub fn flush(&mut self, link: usize, bytes: usize) -> bool {
        let l = &mut self.links[link];
        let Stage::Home { core, id } = l.stage else {
            return false;
        };
        if !l.transmit {
            return false;
        }
        let room = if l.attached {
            self.profile.down_max.saturating_sub(l.down.len())
        } else {
            0
        };
        let unsent = self.shards[core].unsent(id);
        let count = bytes.min(room).min(unsent.len());
        l.down.extend_from_slice(&unsent[..count]);
        l.taken += count as u64;
        if count == unsent.len() {
            l.transmit = false;
        }
        if count == 0 {
            return false;
        }
        self.event(5, (link as u64) << 32 | count as u64, || {
            format!("link {link}: the socket takes {count} bytes")
        });
        let input = Input::Sent {
            connection: id,
            bytes: count,
        };
        self.handle(core, input);
        self.drain(core);
        true
    }

    /// The client reads up to `bytes`.
    pub fn carry_down(&mut self, link: usize, bytes: usize) -> bool {
        let l = &mut self.links[link];
        if !l.attached {
            return false;
        }
        if l.down.is_empty() && l.down_ends {
            match self.links[link].abuser {
                None => self.client_sees_end(link),
                Some(_) => {
                    self.links[link].attached = false;
                    self.bury(link);
                }
            }
            return true;
        }
        if bytes == 0 {
            return false;
        }
        let read: Vec<u8> = l.down.drain(..bytes).collect();
        if l.abuser.is_none() {
            self.client_reads(link, &read);
        }
        true
    }

    /// The network loses a connection: what is on its way is gone, both ends hear of it.
    pub fn reset(&mut self, link: usize) {
        self.event(6, link as u64, || format!("link {link}: reset"));
        self.met.resets += 1;
        let l = &mut self.links[link];
        l.up.clear();
        l.down.clear();
        l.up_ends = true;
        l.down_ends = true;
        if matches!(l.stage, Stage::Greeting | Stage::Home { .. }) {
            self.server_end(link);
        }
        self.bury(link);
    }

    /// The server's socket is closed.
    pub fn server_end(&mut self, link: usize) {
        let stage = std::mem::replace(&mut self.links[link].stage, Stage::Gone);
        self.links[link].down_ends = true;
        self.links[link].up.clear();
        if let Stage::Home { core, id } = stage {
            if !self.links[link].closing {
                self.end_session_connection(link, false);
            }
            self.handle(core, Input::Disconnected { connection: id });
            self.places[core].links[id.index as usize] = None;
            self.places[core].free.push(id.index);
            self.drain(core);
        }
        self.bury(link);
    }

    pub fn end_session_connection(&mut self, link: usize, graceful: bool) {
        let l = &self.links[link];
        if l.abuser.is_some() || l.is_refused {
            return;
        }
        self.oracle
            .connection_ended(l.client, link, l.will, graceful, (self.moment, self.now_ms));
    }

    /// Forgets a link that has no end left.
    pub fn bury(&mut self, link: usize) {
        let l = &self.links[link];
        if matches!(l.stage, Stage::Gone) && !l.attached {
            self.live.retain(|live| *live != link);
        }
    }
}
