//! Layer 2: all that one core knows.
//!
//! Owns    the core's Sessions and connections, its trie, and, for the topics it owns, interest and retained messages.
//! Called  by the worker, one [`Input`] at a time, and drained of every [`Output`] before the next.
//! Holds   - no socket, clock, thread or randomness: one seed replays a run;
//!         - a QoS 0 message between two clients of one core allocates nothing between read buffer and outbox;
//!         - every queue has a bound in [`Limits`] or [`crate::limits`], and what gives way there is counted.
//!
//! ```text
//! Input ─▶ handle ─┬▶ connect     CONNECT came home: refuse nothing, resume or start anew; every ending
//!                  ├▶ publish     a client's PUBLISH on its home core ─▶ topic at its owner ─▶ deliver at the homes
//!                  ├▶ run         the same for packets of one topic that came together, and for acknowledgements, as one piece
//!                  ├▶ subscribe   SUBSCRIBE, UNSUBSCRIBE ─▶ scan   retained messages for new subscriptions
//!                  ├▶ deliver     PUBACK, PUBREC, PUBCOMP, room in an outbox, a part of a queue read back
//!                  ├▶ receipt     what a commit lets happen
//!                  └▶ overflow, expiry   whom a full queue holds back; whose time is over
//! poll_output ◀─ outputs, peers (batches for other cores), records and fetches (for the store)
//! ```

mod asked;
pub mod clients;
mod connect;
pub mod deadlines;
mod deliver;
pub mod event;
mod expiry;
pub mod greeting;
mod ingest;
pub mod message;
mod overflow;
pub mod peers;
#[cfg(test)]
mod platform_tests;
mod publish;
pub mod query;
mod quota;
#[cfg(test)]
mod quota_tests;
mod rate;
pub mod receipt;
pub mod record;
pub mod restore;
mod run;
#[cfg(test)]
mod run_tests;
mod scan;
mod subscribe;
#[cfg(test)]
mod tests;
mod topic;

use std::collections::{HashMap, HashSet, VecDeque};

use ahash::RandomState;
use slab::Slab;

use crate::limits::{OUTBOX_FLUSH_BYTES, STORE_BACKLOG_BYTES_MAX};
use crate::metrics::Counters;
use crate::mqtt::decode::decode_after;
use crate::mqtt::frame::{Framing, next_frame};
use crate::mqtt::packet::Packet;
use crate::mqtt::run::{AcknowledgementRun, Run};
use crate::registry::access::{Access, AccountId};
use crate::registry::datapoint::{DatapointIds, StoredDatapoints};
use crate::registry::devices::Devices;
use crate::routing::interest::Interest;
use crate::routing::recent::Recent;
use crate::routing::retained::RetainedMessages;
use crate::routing::shard_key::{Division, ShardKey};
use crate::routing::subscriptions::{Subscriptions, Target};
use crate::session::outbound;
use crate::session::outbox::BufferPool;
use crate::session::will::Ending;

use clients::{Clients, Connection, State};
use deadlines::{Deadlines, TickNumber};
use expiry::Expiry;
use message::{Messages, ShardMessage};
use overflow::{Overflows, Publisher};
use peers::Peers;
use rate::PublishRate;
use receipt::{AwaitsCommit, Receipts, Then};
use record::{Fetched, Origin, Record, SessionNumber};
use scan::Parked;
use subscribe::PendingSubscribe;

pub use expiry::UnixTime;

pub use event::{CloseReason, ConnectionId, Input, Lane, Millis, Output, PeerId, RecordNumber, Violation};

/// What an operator may set of a shard.
#[derive(Clone, Debug)]
pub struct Limits {
    pub packet_bytes_max: usize,
    pub inflight_max: usize,
    pub queued_max: usize,
    pub queued_bytes_max: usize,
    pub outbox_bytes_max: usize,
    pub subscriptions_max: usize,
    /// How long the full queue of a connected client holds its publishers back.
    pub overflow_wait_ms: u64,
    /// How long a durable Session waits for its client; None: for ever.
    pub session_expiry_s: Option<u64>,
    /// Payloads of retained messages in memory, over all cores.
    pub retained_memory_bytes_max: usize,
    /// PUBLISH packets of one connection in a second; 0: any number.
    pub publishes_per_s_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        use crate::limits::*;
        Limits {
            packet_bytes_max: PACKET_BYTES_MAX,
            inflight_max: INFLIGHT_MAX,
            queued_max: QUEUED_MAX,
            queued_bytes_max: QUEUED_BYTES_MAX,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            subscriptions_max: SUBSCRIPTIONS_PER_SESSION_MAX,
            overflow_wait_ms: OVERFLOW_WAIT_MS,
            session_expiry_s: None,
            retained_memory_bytes_max: RETAINED_MEMORY_BYTES_MAX,
            publishes_per_s_max: 0,
        }
    }
}

/// What a shard is made with; the same on every core of a run but for `core`.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub core: PeerId,
    pub cores: u16,
    pub shard_levels: usize,
    /// Key of every hash: random in a broker, fixed in a simulation.
    pub hash_key: [u64; 4],
    pub limits: Limits,
    pub access: Access,
    pub unix_time: UnixTime,
    /// `DT/DEV` with `v=..&v2=..` is data.
    pub v1_topics: bool,
    /// Shared by the cores, the stream service and the store.
    pub stored_datapoints: StoredDatapoints,
}

/// The state of one core.
pub struct Shard {
    core: PeerId,
    cores: u16,
    packet_bytes_max: usize,
    subscriptions_max: usize,
    delivery_limits: outbound::Limits,
    access: Access,
    shard_key: ShardKey,
    home_hasher: RandomState,
    now: TickNumber,
    now_ms: Millis,
    unix_time: UnixTime,

    clients: Clients,
    deadlines: Deadlines,
    subscriptions: Subscriptions,
    interest: Interest,
    retained: RetainedMessages,
    /// Of the topics this core owns.
    devices: Devices,
    datapoint_ids: DatapointIds,
    v1_topics: bool,

    receipts: Receipts,
    pending_subscribes: Slab<PendingSubscribe>,
    /// Serial of the next scan for retained messages.
    next_scan: u32,
    peers: Peers,
    /// Resumed between two inputs, when the time is not known.
    resumed: Vec<ConnectionId>,
    /// Records sent to the store, and what waits for their commit, in order.
    last_record: RecordNumber,
    committed: RecordNumber,
    /// The last that ends a Session.
    last_ended: RecordNumber,
    awaits_commit: VecDeque<AwaitsCommit>,
    /// Sizes of the records that are not confirmed, oldest first.
    unconfirmed: VecDeque<u32>,
    unconfirmed_bytes: usize,
    /// Answers the store owes, and chunks of retained messages that wait for some of them.
    fetches: usize,
    parked: Slab<Parked>,
    /// QoS 2 messages of the last run that were queued for these Sessions, but not acknowledged. With several cores
    /// `unsettled` has those whose publisher is at home here and has not sent them again.
    in_doubt: HashMap<Origin, Vec<SessionNumber>, RandomState>,
    unsettled: HashSet<Origin, RandomState>,

    /// Whether any account is bounded in what is kept for it.
    limits_kept: bool,
    overflows: Overflows,
    publish_rate: PublishRate,
    /// None: durable Sessions wait for their clients for ever.
    expiry: Option<Expiry>,

    outputs: VecDeque<Output>,
    pool: BufferPool,
    counters: Counters,
    /// Who wants the topic of the last message: Sessions of this core, and cores.
    targets: Recent<Target>,
    cores_wanting: Recent<u16>,
    due: Vec<ConnectionId>,
    text: String,
    /// A datapoint's value while it is made.
    value: String,
}

impl Shard {
    pub fn new(config: ShardConfig) -> Shard {
        let ShardConfig {
            core,
            cores,
            shard_levels,
            hash_key,
            limits,
            access,
            unix_time,
            v1_topics,
            stored_datapoints,
        } = config;
        let session_expiry_s = limits.session_expiry_s;
        assert!(core.0 < cores, "a core is one of the cores");
        let [a, b, c, d] = hash_key;
        let mut shard = Shard {
            core,
            cores,
            packet_bytes_max: limits.packet_bytes_max,
            subscriptions_max: limits.subscriptions_max,
            delivery_limits: outbound::Limits {
                inflight_max: limits.inflight_max,
                queued_max: limits.queued_max,
                queued_bytes_max: limits.queued_bytes_max,
                outbox_bytes_max: limits.outbox_bytes_max,
            },
            shard_key: ShardKey::new(hash_key, cores, Division::of(&access, shard_levels)),
            access,
            unix_time,
            now_ms: Millis(0),
            v1_topics,
            devices: Devices::new(hash_key),
            datapoint_ids: DatapointIds::new(core.0, stored_datapoints),
            value: String::new(),
            // Another key than the tables': else every client of a core would share the low bits of its hash there.
            home_hasher: RandomState::with_seeds(d, c, b, a),
            now: TickNumber(0),
            clients: Clients::new(hash_key),
            deadlines: Deadlines::new(),
            subscriptions: Subscriptions::new(hash_key),
            interest: Interest::new(hash_key),
            retained: RetainedMessages::new(limits.retained_memory_bytes_max / usize::from(cores)),
            receipts: Receipts::default(),
            pending_subscribes: Slab::new(),
            next_scan: 0,
            peers: Peers::new(cores),
            resumed: Vec::new(),
            last_record: RecordNumber(0),
            committed: RecordNumber(0),
            last_ended: RecordNumber(0),
            awaits_commit: VecDeque::new(),
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            fetches: 0,
            parked: Slab::new(),
            in_doubt: HashMap::with_hasher(RandomState::with_seeds(a, b, c, d)),
            unsettled: HashSet::with_hasher(RandomState::with_seeds(a, b, c, d)),
            publish_rate: PublishRate::new(limits.publishes_per_s_max, RandomState::with_seeds(a, b, c, d)),
            limits_kept: false,
            overflows: Overflows::new(limits.overflow_wait_ms, RandomState::with_seeds(a, b, c, d)),
            expiry: session_expiry_s
                .map(|after_s| Expiry::new(after_s, unix_time, RandomState::with_seeds(a, b, c, d))),
            outputs: VecDeque::new(),
            pool: BufferPool::new(),
            counters: Counters::default(),
            targets: Recent::default(),
            cores_wanting: Recent::default(),
            due: Vec::new(),
            text: String::new(),
        };
        shard.look_at_quotas();
        shard
    }

    /// The home core of a client, on any core of a run.
    pub fn home(&self, account: AccountId, client_id: &str) -> PeerId {
        PeerId((self.home_hasher.hash_one((account, client_id)) % u64::from(self.cores)) as u16)
    }

    /// Feeds one input. For `Received`, returns how many bytes were consumed; for all others, 0. `now` never goes back.
    pub fn handle(&mut self, input: Input<'_>, now: Millis) -> usize {
        self.now = self.now.max(TickNumber::at_or_before(now));
        self.now_ms = self.now_ms.max(now);
        if !self.resumed.is_empty() {
            self.hear_resumed();
        }
        match input {
            Input::Received { connection, bytes } => return self.received(connection, bytes),
            Input::Sent { connection, bytes } => self.sent(connection, bytes),
            Input::Batch { from, bytes } => self.batch(from, bytes),
            Input::Connected {
                connection,
                connect,
                account,
            } => self.connected(connection, *connect, account),
            Input::Disconnected { connection } => self.disconnected(connection),
            Input::Committed { up_to } => self.committed(up_to),
            Input::Fetched(fetched) => self.fetched(*fetched),
            Input::Asked { ticket, query } => self.asked(ticket, *query),
            Input::Accounts(change) => self.accounts_changed(*change),
            Input::Tick => self.tick(now),
        }
        0
    }

    /// The next thing to do; `None` ends the turn.
    #[inline]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Encoded bytes that wait for this socket, oldest first; empty for a connection that is not known.
    pub fn unsent(&self, connection: ConnectionId) -> &[u8] {
        self.clients
            .connection(connection)
            .map_or(&[], |connection| connection.outbox.unsent())
    }

    /// All messages that wait for a peer, as one batch of at most about
    /// [`MESH_BACKLOG_BYTES_MAX`](crate::limits::MESH_BACKLOG_BYTES_MAX); `None` if nothing waits. Connections that were
    /// paused for this peer resume (outputs follow).
    pub fn take_batch(&mut self, peer: PeerId, lane: Lane) -> Option<Vec<u8>> {
        let (batch, paused) = self.peers.take(peer, lane)?;
        for connection in paused {
            self.resume(connection, clients::paused::PEER);
            self.resumed.push(connection);
        }
        self.counters.batches_sent += 1;
        Some(batch)
    }

    /// Gives an emptied batch back for reuse, whichever core made it.
    pub fn recycle_batch(&mut self, batch: Vec<u8>) {
        self.peers.recycle(batch);
    }

    /// Whether batches of `Lane::ToOwner` may be fed now; those of `Lane::ToHome` always may.
    pub fn takes_requests(&self) -> bool {
        self.peers.takes_requests() && self.unconfirmed_bytes <= STORE_BACKLOG_BYTES_MAX
    }

    /// When a `Tick` is due at the latest; `None` while nothing is timed.
    pub fn next_deadline(&self) -> Option<Millis> {
        let expiry = self.expiry.as_ref().and_then(Expiry::next_deadline);
        let deadlines = [
            self.deadlines.next_deadline(),
            self.overflows.next_deadline(),
            self.publish_rate.next_deadline(),
            expiry,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// What time it is outside: whoever has a clock says so every now and then, since it may be set.
    pub fn set_unix_time(&mut self, unix_time: UnixTime) {
        self.unix_time = unix_time;
    }

    fn unix_now_ms(&self) -> u64 {
        self.unix_time.at_ms(self.now_ms)
    }

    /// Connections that are open now.
    pub fn connection_count(&self) -> usize {
        self.clients.open
    }

    /// Sessions at home here, connected or not.
    pub fn session_count(&self) -> usize {
        self.clients.sessions.len()
    }

    /// Distinct Topic Filters of this core's Sessions.
    pub fn filter_count(&self) -> usize {
        self.subscriptions.filter_count()
    }

    /// Retained messages of the topics this core owns.
    pub fn retained_count(&self) -> usize {
        self.retained.len()
    }

    /// Whether nothing is on its way: no receipt, no SUBSCRIBE, no batch, no record waits for an answer. What a test asks
    /// at rest.
    pub fn is_quiescent(&self) -> bool {
        self.receipts.is_empty()
            && self.pending_subscribes.is_empty()
            && self.awaits_commit.is_empty()
            && self.fetches == 0
            && self.peers.waiting_bytes() == 0
            && self.outputs.is_empty()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The counters, and what waits at this moment.
    pub fn report(&self) -> Counters {
        let sessions = self.clients.sessions.iter();
        let queued = sessions
            .filter_map(|(_, client)| client.outbound.as_ref())
            .map(|outbound| outbound.queued());
        Counters {
            queued_now: queued.sum(),
            sessions_now: self.clients.sessions.len() as u64,
            connections_now: self.clients.open as u64,
            retained_now: self.retained.len() as u64,
            devices_now: self.devices.len() as u64,
            ..self.counters.clone()
        }
    }

    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Bytes of a client: every whole packet in them, until one pauses or closes the connection.
    fn received(&mut self, id: ConnectionId, bytes: &[u8]) -> usize {
        let mut consumed = 0;
        let now = self.now;
        // Of the last PUBLISH, or of the run that begins here.
        let mut topic = None;
        // Up to here packets are of no run that goes as one.
        let mut single_to = 0;
        while let Some(connection) = self.clients.open_connection(id) {
            if connection.paused != 0 {
                return consumed;
            }
            let frame = match next_frame(&bytes[consumed..], self.packet_bytes_max) {
                Ok(Framing::Whole(frame)) => frame,
                Ok(Framing::Missing(_)) => return consumed,
                Err(error) => {
                    self.close(id, CloseReason::Malformed(error));
                    return bytes.len();
                }
            };
            connection.last_packet = now;
            let level = connection.level();
            if consumed >= single_to {
                let rest = &bytes[consumed..];
                if let Some(run) = Run::beginning_with(frame, rest, self.packet_bytes_max) {
                    topic = Some(run.topic);
                    single_to = consumed + run.frames.len();
                    if !(self.publish_rate.is_limited() && self.counts_publishes_of(id)) {
                        let done = self.publish_run(id, &run);
                        if done > 0 {
                            consumed += done;
                            continue;
                        }
                    }
                } else if let Some(run) = AcknowledgementRun::beginning(rest) {
                    single_to = consumed + run.bytes();
                    if self.acknowledged_run(id, &run) {
                        consumed = single_to;
                        continue;
                    }
                }
            }
            consumed += frame.len;
            let last_record = self.last_record;
            match decode_after(frame, level, topic) {
                Ok(packet) => {
                    if let Packet::Publish(publish) = &packet {
                        if self.publish_rate.is_limited() && !self.may_publish_now(id) {
                            // It is presented again when it may.
                            return consumed - frame.len;
                        }
                        topic = Some(publish.topic);
                    }
                    self.packet(id, packet);
                }
                Err(error) => self.close(id, CloseReason::Malformed(error)),
            }
            if self.last_record > last_record {
                self.hold_back_for_disk(Some(Publisher::Here(id)));
            }
        }
        // Closed: whatever else came is not looked at.
        bytes.len()
    }

    #[inline]
    fn packet(&mut self, id: ConnectionId, packet: Packet<'_>) {
        match packet {
            Packet::Publish(publish) => self.publish(id, publish),
            Packet::PubAck(packet_id) => self.puback(id, packet_id),
            Packet::PubRec(packet_id) => self.pubrec(id, packet_id),
            Packet::PubRel(packet_id) => self.pubrel(id, packet_id),
            Packet::PubComp(packet_id) => self.pubcomp(id, packet_id),
            Packet::Subscribe(subscribe) => self.subscribe(id, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(id, unsubscribe),
            Packet::PingReq => self.write(id, crate::mqtt::encode::pingresp),
            Packet::Disconnect => self.close(id, CloseReason::Disconnect),
        }
    }

    fn batch(&mut self, from: PeerId, bytes: &[u8]) {
        for message in Messages::new(bytes) {
            match message {
                ShardMessage::Publish { receipt, published } => self.publish_from(from, receipt, &published),
                ShardMessage::Deliver {
                    receipt,
                    origin,
                    message,
                } => self.deliver_from(receipt, origin, &message),
                ShardMessage::Routed { receipt, parts } => {
                    if let Some(sender) = self.receipts.routed(receipt, parts) {
                        self.complete(sender);
                    }
                }
                ShardMessage::Delivered { receipt } => self.confirm(self.core, receipt),
                ShardMessage::Register { request, entry, filter } => self.register(from, request, entry, filter),
                ShardMessage::Withdraw { filter } => self.interest.remove(filter, from.0),
                ShardMessage::Registered {
                    request,
                    entry,
                    sequence,
                    may_match,
                } => {
                    self.registered(from, request, entry, sequence, may_match);
                }
                ShardMessage::RetainedNext {
                    scan,
                    filter,
                    after,
                    sequence_max,
                } => {
                    self.retained_next(from, scan, filter, after, sequence_max);
                }
                ShardMessage::Retained { scan, message } => self.retained_came(scan, &message),
                ShardMessage::RetainedEnd { scan, finished } => self.retained_ended(scan, finished),
                ShardMessage::HoldBack { receipt, session } => self.hold_back_sender(from, session, receipt),
                ShardMessage::LetGo { session } => self.let_go_held(from, session),
                ShardMessage::PublishRun { receipt, account, run } => {
                    self.publish_run_from(from, receipt, account, &run);
                }
                ShardMessage::DeliverRun { receipt, run } => self.deliver_run_from(receipt, &run),
            }
        }
    }

    fn committed(&mut self, up_to: RecordNumber) {
        assert!(up_to <= self.last_record, "the store confirms what it was given");
        for _ in self.committed.0..up_to.0 {
            let len = self
                .unconfirmed
                .pop_front()
                .expect("one for every record that was sent");
            self.unconfirmed_bytes -= len as usize;
        }
        self.committed = self.committed.max(up_to);
        while let Some(waits) = self.awaits_commit.front().copied()
            && waits.record <= up_to
        {
            self.awaits_commit.pop_front();
            self.then(waits.then);
        }
        self.retained.make_room(up_to.0);
        self.let_go_for_disk();
    }

    fn fetched(&mut self, fetched: Fetched) {
        self.fetches -= 1;
        match fetched {
            Fetched::Queue(window) => self.queue_fetched(window),
            Fetched::Retained(payloads) => self.retained_fetched(payloads),
        }
    }

    fn then(&mut self, then: Then) {
        match then {
            Then::Confirm { home, receipt } => self.confirm(home, receipt),
            Then::Received(sender) => self.settle(sender),
            Then::Answer(asker) => self.tell(asker),
            Then::Send(session) => {
                let client = self.clients.session(session);
                if let Some(id) = client.and_then(|client| client.connection) {
                    self.refill(id);
                }
            }
            Then::Release { connection, packet_id } => {
                self.write(connection, |out| crate::mqtt::encode::pubrel(out, packet_id));
            }
            Then::Complete { connection, packet_id } => {
                self.write(connection, |out| crate::mqtt::encode::pubcomp(out, packet_id));
            }
            Then::Accept { connection } => self.accept(connection, false),
            Then::Subscribed { request } => self.answered(request),
            Then::Unsubscribed { connection, packet_id } => {
                self.write(connection, |out| crate::mqtt::encode::unsuback(out, packet_id));
            }
        }
    }

    /// Does it when this record, and so every one before it, is committed: at once if it is.
    fn after_commit(&mut self, record: RecordNumber, then: Then) {
        if record <= self.committed {
            self.then(then);
            return;
        }
        debug_assert!(self.awaits_commit.back().is_none_or(|last| last.record <= record));
        self.awaits_commit.push_back(AwaitsCommit { record, then });
    }

    fn tick(&mut self, now: Millis) {
        self.give_up_overflows();
        self.end_second(now);
        self.give_turns(now);
        self.expire_sessions(now);
        let mut due = std::mem::take(&mut self.due);
        self.deadlines.expire(now, &mut due);
        for id in due.drain(..) {
            let tick = self.now;
            let Some(connection) = self.clients.open_connection(id) else {
                continue;
            };
            let Some(deadline) = connection.silence_deadline() else {
                continue;
            };
            // While the broker itself does not read, the client's silence proves nothing.
            if deadline <= tick && connection.paused == 0 {
                self.close(id, CloseReason::KeepAlive);
                continue;
            }
            if connection.acknowledgements.as_ref().is_some_and(|owed| owed.is_empty()) {
                connection.acknowledgements = None;
            }
            let client = connection.client;
            self.deadlines.arm(id, deadline.max(TickNumber(tick.0 + 1)));
            self.clients.sessions[client as usize].trim();
        }
        if due.capacity() > 1_024 {
            due = Vec::new();
        }
        self.due = due;
    }

    /// Sends a message to another core; `true` if its batch is past the bound, so that whoever caused it pauses.
    #[inline]
    fn send(&mut self, peer: PeerId, lane: Lane, message: &ShardMessage<'_>) -> bool {
        send(&mut self.peers, &mut self.outputs, peer, lane, message)
    }

    /// Hands a record to the store; what depends on it waits for the returned number.
    fn persist(&mut self, record: Record) -> RecordNumber {
        self.last_record.0 += 1;
        let len = record.len();
        self.unconfirmed_bytes += len;
        self.unconfirmed.push_back(len as u32);
        self.outputs
            .push_back(Output::Persist(self.last_record, Box::new(record)));
        self.last_record
    }

    /// One part of a receipt is confirmed: here, or at the publisher's home core.
    fn confirm(&mut self, home: PeerId, receipt: receipt::ReceiptId) {
        if home == self.core {
            if let Some(sender) = self.receipts.arrived(receipt) {
                self.complete(sender);
            }
        } else {
            self.send(home, Lane::ToHome, &ShardMessage::Delivered { receipt });
        }
    }

    /// Appends one packet to a connection's outbox, if it is open.
    #[inline]
    fn write(&mut self, id: ConnectionId, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(connection) = self.clients.open_connection(id) {
            encode(connection.outbox.writer(&mut self.pool));
            mark(connection, id, &mut self.outputs);
        }
    }

    fn pause(&mut self, id: ConnectionId, reason: u8) {
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        if connection.paused == 0 {
            self.outputs.push_back(Output::Pause(id));
            self.counters.pauses += 1;
        }
        connection.paused |= reason;
    }

    fn resume(&mut self, id: ConnectionId, reason: u8) {
        let now = self.now;
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        if connection.paused == 0 {
            return;
        }
        connection.paused &= !reason;
        if connection.paused == 0 {
            connection.last_packet = now;
            self.outputs.push_back(Output::Resume(id));
        }
    }

    /// Silence counts from the resume on; the first input after it knows when that was.
    #[cold]
    fn hear_resumed(&mut self) {
        let now = self.now;
        for id in self.resumed.drain(..) {
            if let Some(connection) = self.clients.open_connection(id) {
                connection.last_packet = connection.last_packet.max(now);
            }
        }
    }

    /// Ends a connection for a reason of ours; the shell writes what is unsent and closes the socket.
    fn close(&mut self, id: ConnectionId, reason: CloseReason) {
        let ending = match reason {
            CloseReason::Disconnect => Ending::Graceful,
            _ => Ending::Abnormal,
        };
        self.outputs.push_back(Output::Close(id, reason));
        self.end_connection(id, ending);
    }
}

/// [`Shard::send`] where other parts of the shard are borrowed.
#[inline]
fn send(
    peers: &mut Peers,
    outputs: &mut VecDeque<Output>,
    peer: PeerId,
    lane: Lane,
    message: &ShardMessage<'_>,
) -> bool {
    let state = peers.send(peer, lane, message);
    if state.is_first {
        outputs.push_back(Output::Forward(peer, lane));
    }
    state.is_full
}

/// Says that an outbox has something: once until it is empty, and once more when it is best written at once.
#[inline]
fn mark(connection: &mut Connection, id: ConnectionId, outputs: &mut VecDeque<Output>) {
    debug_assert_eq!(connection.state, State::Open);
    if !connection.transmit_said {
        connection.transmit_said = true;
        outputs.push_back(Output::Transmit(id));
    } else if !connection.flush_said && connection.outbox.len() >= OUTBOX_FLUSH_BYTES {
        connection.flush_said = true;
        outputs.push_back(Output::Transmit(id));
    }
}
