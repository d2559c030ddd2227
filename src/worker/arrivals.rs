//! How a connection comes to its core: accepted, greeted, and handed home.
//!
//! Called  by `turn`, of which this is the part that knows sockets without a shard yet.
//! Holds   - the shard hears of a connection on its home core only, after its CONNECT was accepted;
//!         - a socket that is handed over has left this core's epoll set before it is in another's; the bytes behind its
//!           CONNECT travel with it;
//!         - what finds no room on its way waits in `departures`: at most as many as connections are allowed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::limits::ACCEPTS_PER_BATCH;
use crate::mesh::Lane;
use crate::mqtt::encode;
use crate::mqtt::packet::Connect;
use crate::mqtt::reason::ConnectReturnCode;
use crate::net::handoff::SOCKETS_PER_MESSAGE;
use crate::net::listener::{Accepted, peer_address};
use crate::net::sockets::Flags;
use crate::net::transport::{Layers, Transport};
use crate::registry::access::AccountId;
use crate::shard::greeting::{Greeting, Identity, greet};
use crate::shard::{CloseReason, ConnectionId, Input, Millis};

use super::parcel::{Arrival, Arrivals, Carried, Parcel};
use super::turn::Core;

/// A listener that found no descriptor left is asked again after this time.
const LISTENER_REST_MS: u64 = 100;

impl Core {
    pub(super) fn accept(&mut self, number: u16) {
        if self.stopping.is_some() {
            return;
        }
        for _ in 0..ACCEPTS_PER_BATCH {
            let Some(listener) = self.parts.listeners.get(usize::from(number)) else {
                return;
            };
            match listener.accept(&mut self.spare) {
                Accepted::Socket(socket) => {
                    self.parts.shard.counters_mut().sockets_accepted += 1;
                    let layers = Layers::new(self.parts.transports_of[usize::from(number)]);
                    match self.sockets.insert(socket, layers, Flags::GREETING) {
                        Ok(connection) => {
                            self.expect_connect(connection);
                        }
                        Err(error) => self.refuse_socket(&error),
                    }
                }
                Accepted::Nobody => return,
                Accepted::Shed => self.parts.shard.counters_mut().sockets_refused += 1,
                Accepted::Exhausted => return self.rest_listeners(),
                Accepted::Closed => return self.watch_listeners(false),
            }
        }
    }

    /// The CONNECT has the whole timeout from here on: `now` is rounded down, and older than what its batch accepts.
    pub(super) fn expect_connect(&mut self, connection: ConnectionId) {
        let now = Millis(self.parts.epoch.elapsed().as_micros().div_ceil(1_000) as u64);
        self.greeting_deadlines
            .push_back((now.plus(self.parts.connect_timeout_ms), connection));
    }

    fn refuse_socket(&mut self, error: &std::io::Error) {
        self.parts.shard.counters_mut().sockets_refused += 1;
        tracing::debug!(%error, "a socket was closed: the core cannot take it in");
    }

    fn rest_listeners(&mut self) {
        tracing::debug!("no descriptor or memory is left for a new connection; it waits");
        self.watch_listeners(false);
        self.listener_rests = Some(self.now.plus(LISTENER_REST_MS));
    }

    pub(super) fn watch_listeners(&mut self, watched: bool) {
        for (number, listener) in self.parts.listeners.iter().enumerate() {
            // Fails only where it is so already.
            let _ = match watched {
                true => self.sockets.watch_listener(number as u16, listener),
                false => self.sockets.unwatch_listener(listener),
            };
        }
    }

    pub(super) fn greet(&mut self, connection: ConnectionId, bytes: &[u8]) -> usize {
        let parts = &self.parts;
        let layers = self.sockets.get(connection).and_then(|socket| socket.layers.as_deref());
        let identity = || match layers {
            Some(layers) if parts.certificate_names_user && layers.transport().is_tls => {
                Identity::Certificate(layers.client_common_name())
            }
            _ => Identity::Claimed,
        };
        match greet(
            bytes,
            identity,
            &parts.access,
            parts.client_id_chars_max,
            fresh_client_id,
        ) {
            Greeting::Incomplete => 0,
            Greeting::Malformed(error) => {
                self.close(connection, CloseReason::Malformed(error).into(), &[]);
                0
            }
            Greeting::Refused(code) => {
                self.refuse(connection, code);
                0
            }
            Greeting::Accepted {
                connect,
                account,
                consumed,
            } => {
                if self.parts.connections_open.fetch_add(1, Ordering::Relaxed) >= self.parts.connections_max {
                    self.parts.connections_open.fetch_sub(1, Ordering::Relaxed);
                    self.refuse(connection, ConnectReturnCode::ServerUnavailable);
                    return 0;
                }
                self.log_connect(connection, &connect);
                let home = self.parts.shard.home(account, &connect.client_id);
                if home.0 != self.parts.mesh.core() {
                    let Some((socket, layers)) = self.sockets.release(connection) else {
                        return 0;
                    };
                    let unread = bytes[consumed..].to_vec();
                    let arrival = Arrival {
                        connect,
                        account,
                        access_version: parts.access.version(),
                        unread,
                        layers,
                    };
                    self.departures.entry(home.0).or_default().push_back((socket, arrival));
                    return 0;
                }
                let socket = self.sockets.get_mut(connection).expect("presented by its id");
                socket.unset(Flags::GREETING);
                self.connected(connection, connect, account);
                consumed + self.present_rest(connection, &bytes[consumed..])
            }
        }
    }

    fn connected(&mut self, connection: ConnectionId, connect: Box<Connect>, account: AccountId) {
        self.turn(Input::Connected {
            connection,
            connect,
            account,
        });
    }

    /// What came behind the CONNECT.
    fn present_rest(&mut self, connection: ConnectionId, bytes: &[u8]) -> usize {
        match self.sockets.get(connection) {
            Some(socket) if !bytes.is_empty() && !socket.is(Flags::PAUSED) => {
                self.turn(Input::Received { connection, bytes })
            }
            _ => 0,
        }
    }

    fn refuse(&mut self, connection: ConnectionId, code: ConnectReturnCode) {
        self.parts.shard.counters_mut().connects_refused += 1;
        let mut connack = Vec::with_capacity(4);
        encode::connack(&mut connack, false, code);
        self.close(connection, CloseReason::Refused.into(), &connack);
    }

    fn log_connect(&self, connection: ConnectionId, connect: &Connect) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let Some(socket) = self.sockets.get(connection) else {
            return;
        };
        let layers = socket.layers.as_deref();
        let address = layers
            .and_then(Layers::client_address)
            .or_else(|| peer_address(socket.fd()));
        tracing::debug!(
            client = connect.client_id,
            user = connect.user_name.as_deref().unwrap_or_default(),
            address = %address.map_or("unknown".to_owned(), |address| address.to_string()),
            port = layers.map_or(Transport::default(), Layers::transport).name(),
            "connected"
        );
    }

    pub(super) fn arrive(&mut self, arrivals: Arrivals) {
        let sockets = match arrivals.sockets {
            Carried::Descriptors(sockets) => sockets,
            Carried::Ticket(ticket) => {
                let passage = self
                    .parts
                    .passage
                    .as_mut()
                    .expect("tickets are issued by passages only");
                passage.receive(ticket).unwrap_or_else(|error| {
                    tracing::warn!(%error, "connections were lost on their way between cores");
                    Vec::new()
                })
            }
        };
        let lost = arrivals.connections.len() - sockets.len();
        if lost > 0 {
            tracing::debug!(lost, "this core has no descriptor left for connections that came home");
            self.parts.shard.counters_mut().sockets_refused += lost as u64;
            self.parts.connections_open.fetch_sub(lost, Ordering::Relaxed);
        }
        for (socket, mut arrival) in sockets.into_iter().zip(arrivals.connections) {
            match self.sockets.insert(socket, arrival.layers.take(), Flags::default()) {
                Ok(connection) => {
                    if let Err(code) = self.let_in_again(&arrival) {
                        self.parts.connections_open.fetch_sub(1, Ordering::Relaxed);
                        self.refuse(connection, code);
                        continue;
                    }
                    self.connected(connection, arrival.connect, arrival.account);
                    let consumed = self.present_rest(connection, &arrival.unread);
                    if consumed < arrival.unread.len()
                        && let Some(socket) = self.sockets.get_mut(connection)
                    {
                        // The next read finds it in front, or the resume, which presents it first.
                        socket.stash = Some(Box::new(arrival.unread[consumed..].to_vec()));
                        socket.set(Flags::HELD);
                    }
                    // What they had not said, or had heard, when they left.
                    self.attend_layers(connection);
                }
                Err(error) => {
                    self.parts.connections_open.fetch_sub(1, Ordering::Relaxed);
                    self.refuse_socket(&error);
                }
            }
        }
    }

    /// The accounts may have changed while a connection was on its way: then what its CONNECT says is looked at again.
    fn let_in_again(&self, arrival: &Arrival) -> Result<(), ConnectReturnCode> {
        let access = &self.parts.access;
        if arrival.access_version >= access.version() {
            return Ok(());
        }
        match access.authenticate(&arrival.connect)? {
            account if account == arrival.account => Ok(()),
            _ => Err(ConnectReturnCode::BadUserNameOrPassword),
        }
    }

    pub(super) fn depart(&mut self) -> bool {
        let mut sent = false;
        self.is_passage_full = false;
        let mut departures = std::mem::take(&mut self.departures);
        departures.retain(|home, waiting| {
            while !waiting.is_empty() && self.parts.mesh.has_room(*home, Lane::ToHome) {
                let count = waiting.len().min(SOCKETS_PER_MESSAGE);
                let carried = match &mut self.parts.passage {
                    None => None,
                    Some(passage) => {
                        let sockets: Vec<_> = waiting.iter().take(count).map(|(socket, _)| socket.as_fd()).collect();
                        match passage.send(*home, &sockets) {
                            Ok(Some(ticket)) => Some(ticket),
                            Ok(None) => {
                                self.is_passage_full = true;
                                break;
                            }
                            Err(error) => {
                                tracing::warn!(%error, count, "connections cannot be handed to their core: closed");
                                self.parts.shard.counters_mut().sockets_refused += count as u64;
                                self.parts.connections_open.fetch_sub(count, Ordering::Relaxed);
                                waiting.drain(..count);
                                continue;
                            }
                        }
                    }
                };
                let (sockets, connections): (Vec<_>, Vec<_>) = waiting.drain(..count).unzip();
                let sockets = match carried {
                    // This core's own descriptors close here: the passage holds the sockets.
                    Some(ticket) => Carried::Ticket(ticket),
                    None => Carried::Descriptors(sockets),
                };
                let parcel = Parcel::Arrivals(Box::new(Arrivals { sockets, connections }));
                let pushed = self.parts.mesh.push(*home, Lane::ToHome, parcel);
                assert!(pushed.is_ok(), "only this core pushes to this ring, and it had room");
                self.parts.shard.counters_mut().handoffs += count as u64;
                sent = true;
            }
            !waiting.is_empty()
        });
        self.departures = departures;
        sent
    }
}

/// A connection on its way to its home core.
pub(super) type Departure = (OwnedFd, Arrival);

/// "auto-" and 64 random bits: nobody has it, and nobody can guess it to take the connection over.
fn fresh_client_id() -> String {
    let mut random = [0; 8];
    let filled =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty()));
    assert_eq!(
        filled,
        Ok(random.len()),
        "up to 256 bytes are given whole once the system has booted"
    );
    format!("auto-{}", hex::encode(random))
}
