//! The loop of one core: what is ready is read, the shard fed and drained, what it wrote is sent.
//!
//! Owns    the core's shard, its sockets and its end of the mesh.
//! Called  by `worker`, which naps between [`Core::batch`]es as [`Core::nap`] says, or sleeps as [`Core::prepare_sleep`] allows.
//! Holds   - one input at a time, every output taken before the next;
//!         - one `recv` per ready socket and batch, one `send` per socket that has something to send, one bell per peer;
//!         - a socket for which more and more comes is written to once per `write_interval_us`;
//!         - a socket that has more than one read waits for its next turn: nobody starves behind it;
//!         - TLS handshakes take at most [`HANDSHAKE_MS_PER_BATCH`] of a batch: a storm of them delays nobody's messages;
//!         - what cannot go now (a full socket, a full ring, a full passage) waits for an event, never in a loop.
//!
//! ```text
//! epoll ─▶ accept, recv ─▶ turn … ─▶ handshakes ─▶ mesh in ─▶ turn … ─▶ store ─▶ send ─▶ mesh out ─▶ bells ─▶ sleep, or again
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::limits::{
    DROPPING_BATCH_US, EVENTS_PER_BATCH, FLUSH_REST_PART, FLUSH_REST_SOCKETS_MIN, FLUSH_REST_US_MAX,
    HANDSHAKE_MS_PER_BATCH, MESH_PARCELS_PER_BATCH, NAP_US_MAX, OUTBOX_FLUSH_BYTES,
};
use crate::mesh::{Endpoint, Lane};
use crate::metrics::Counters;
use crate::net::handoff::Passage;
use crate::net::listener::{Listener, Spare};
use crate::net::reader::{Read, Scratch};
use crate::net::sockets::{Flags, Ready, Sockets};
use crate::net::transport::{OpenedCounts, Sent, Transport, Transports};
use crate::net::writer::{self, Written};
use crate::registry::access::Access;
use crate::shard::{CloseReason, ConnectionId, Input, Millis, Output, PeerId, Shard};
use crate::store::Door;
use slab::Slab;

use super::arrivals::Departure;
use super::ending::{Ending, count_ending};
use super::parcel::Parcel;
use super::{Control, Mailbox, Notifier, Reply};

/// A passage that was full is tried again after this time: its reader rings no bell for it.
const PASSAGE_RETRY_MS: u64 = 1;
/// Stop: what other cores still have for this one is waited for at least this long, ...
const STOP_SETTLE_MS: u64 = 50;
/// ... and full sockets at most this long.
const STOP_FLUSH_MS: u64 = 2_000;

/// What a core is made of; everything that can fail has been opened.
pub struct CoreParts {
    pub shard: Shard,
    pub listeners: Vec<Listener>,
    /// Of each listener, in the same order.
    pub transports_of: Vec<Transport>,
    pub transports: Transports,
    /// Over TLS, a client's user name is the common name of its certificate.
    pub certificate_names_user: bool,
    pub mesh: Endpoint<Parcel>,
    /// None: the cores share one descriptor table.
    pub passage: Option<Passage>,
    pub store: Door,
    pub mailbox: Arc<Mailbox>,
    pub access: Access,
    /// Takes the notifications of events; false if it has no room. None: nobody wants any.
    pub notifier: Option<Notifier>,
    pub client_id_chars_max: usize,
    pub connect_timeout_ms: u64,
    /// Between two writes to one socket.
    pub write_interval_us: u32,
    pub connections_max: usize,
    /// Connections past their CONNECT, over all cores.
    pub connections_open: Arc<AtomicUsize>,
    /// The beginning of time.
    pub epoch: Instant,
}

pub struct Core {
    pub(super) parts: CoreParts,
    pub(super) sockets: Sockets,
    pub(super) spare: Spare,
    pub(super) now: Millis,
    ready: Vec<Ready>,
    scratch: Scratch,
    /// Sockets to read without an event, in this batch and in the next.
    again: Vec<ConnectionId>,
    again_next: Vec<ConnectionId>,
    /// Sockets to write to: before the batch ends, or when their time has come.
    marked: Vec<ConnectionId>,
    /// Of those, the ones that have been written to just now: while a batch goes through `marked`.
    marked_next: Vec<ConnectionId>,
    /// `now` in microseconds, which begin anew after 71 minutes: a socket that was written to exactly as long ago waits once
    /// for nothing.
    now_us: u32,
    /// Nothing is written before this time since `epoch` but what is urgent.
    rests_until: Duration,
    /// Sockets to write to at once.
    urgent: Vec<ConnectionId>,
    closing: Vec<(ConnectionId, Ending)>,
    /// Sockets whose TLS handshake can go on; each once.
    handshakes: VecDeque<ConnectionId>,
    /// Batches that wait for room in their ring.
    forwards: Vec<(PeerId, Lane)>,
    /// Whether a peer and lane is in `forwards`.
    is_forward_waiting: Vec<bool>,
    /// Connections on their way home that wait for room in the ring or the passage.
    pub(super) departures: BTreeMap<u16, VecDeque<Departure>>,
    pub(super) is_passage_full: bool,
    /// When the sockets that have not sent a CONNECT are closed; those that have are skipped.
    pub(super) greeting_deadlines: VecDeque<(Millis, ConnectionId)>,
    pub(super) listener_rests: Option<Millis>,
    pub(super) stopping: Option<Millis>,
    is_done: bool,
    /// Batches on end that have left sockets unread which were ready.
    unread_batches: usize,
    /// When the clock of the host is looked at again.
    pub(super) clock_due: Millis,
    /// Of the counters, when they were last looked at.
    pub(super) refused_before: u64,
    pub(super) refused_log_due: Millis,
    /// Questions that are not answered yet, by their tickets.
    pub(super) asked: Slab<Reply>,
}

impl Core {
    pub fn new(parts: CoreParts, sockets: Sockets) -> Core {
        let lanes = usize::from(parts.mesh.cores()) * Lane::ALL.len();
        let mut core = Core {
            parts,
            sockets,
            spare: Spare::open(),
            now: Millis::default(),
            ready: Vec::new(),
            scratch: Scratch::new(),
            again: Vec::new(),
            again_next: Vec::new(),
            marked: Vec::new(),
            marked_next: Vec::new(),
            now_us: 0,
            rests_until: Duration::ZERO,
            urgent: Vec::new(),
            closing: Vec::new(),
            handshakes: VecDeque::new(),
            forwards: Vec::new(),
            is_forward_waiting: vec![false; lanes],
            departures: BTreeMap::new(),
            is_passage_full: false,
            greeting_deadlines: VecDeque::new(),
            listener_rests: None,
            stopping: None,
            is_done: false,
            unread_batches: 0,
            clock_due: Millis::default(),
            refused_before: 0,
            refused_log_due: Millis::default(),
            asked: Slab::new(),
        };
        // What the shard had to say when it was restored.
        core.settle();
        core
    }

    /// Readable when a batch has something to do.
    pub fn epoll(&self) -> BorrowedFd<'_> {
        self.sockets.epoll()
    }

    pub fn bell(&self) -> &crate::mesh::Bell {
        self.parts.mesh.bell()
    }

    /// Stopped, and everything closed.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Everything that is ready now, once. Returns whether there was anything, or more is ready at once.
    pub fn batch(&mut self) -> bool {
        let now = self.parts.epoch.elapsed();
        self.now = Millis(now.as_millis() as u64);
        self.now_us = now.as_micros() as u32;
        if self.now >= self.clock_due {
            self.look_at_clock();
        }
        let mut ready = std::mem::take(&mut self.ready);
        let polled = self.sockets.poll(&mut ready);
        polled.expect("a core whose epoll set fails can serve nobody");
        let mut busy = !ready.is_empty();
        let dropped_before = self.parts.shard.counters().dropped_outbox_full;
        let mut leaves_unread = ready.len() >= EVENTS_PER_BATCH;
        for event in ready.drain(..) {
            let is_cut_short = self.is_cut_short(now, dropped_before);
            leaves_unread |= is_cut_short;
            self.event(event, !is_cut_short);
        }
        self.ready = ready;

        busy |= !self.again.is_empty();
        let mut again = std::mem::take(&mut self.again);
        for connection in again.drain(..) {
            let is_cut_short = self.is_cut_short(now, dropped_before);
            leaves_unread |= is_cut_short;
            if let Some(socket) = self.sockets.get_mut(connection) {
                socket.unset(Flags::AGAIN);
                match is_cut_short {
                    true => self.read_again(connection),
                    false => self.read(connection),
                }
            }
        }
        // What asked for another turn, during events too, has it in the next batch.
        self.again = std::mem::replace(&mut self.again_next, again);

        self.handshakes();
        busy |= self.mesh_in(now, dropped_before);
        self.unread_batches = if leaves_unread { self.unread_batches + 1 } else { 0 };
        // After a pause of this process, who has sent in time is among many whose bytes are there: nobody was silent before
        // all have been looked at. That takes so many batches at most, since the kernel goes round; then no load delays it.
        let rounds = self.sockets.count() / EVENTS_PER_BATCH + 1;
        if self.unread_batches == 0 || self.unread_batches > rounds {
            self.deadlines();
        }
        busy |= self.commit();
        self.flush();
        busy |= self.mesh_out();
        self.parts.mesh.ring_bells();
        busy |= self.mail();
        busy | !self.again.is_empty() | !self.again_next.is_empty() | !self.handshakes.is_empty()
    }

    /// How long to sleep before the next batch where the next thing to do is to write to a socket that waits for its time; None
    /// if no socket does.
    pub fn nap(&self) -> Option<Duration> {
        if self.marked.is_empty() {
            return None;
        }
        let now = self.parts.epoch.elapsed();
        let most = Duration::from_micros(NAP_US_MAX);
        if self.rests_until > now {
            return Some(most.min(self.rests_until - now));
        }
        let now_us = now.as_micros() as u32;
        let waits = self.marked.iter().filter_map(|connection| {
            let since_us = now_us.wrapping_sub(self.sockets.get(*connection)?.written_us);
            Some(self.parts.write_interval_us.saturating_sub(since_us))
        });
        Some(most.min(Duration::from_micros(waits.min()?.into())))
    }

    /// The last look before a sleep: None if there is something to do, else how long the sleep may last at most.
    /// After the sleep, the bell wants `woken`.
    pub fn prepare_sleep(&mut self) -> Option<Option<u64>> {
        let lanes: &[Lane] = match self.parts.shard.takes_requests() {
            true => &Lane::ALL,
            false => &[Lane::ToHome],
        };
        if !self.parts.mesh.prepare_sleep(lanes) {
            return None;
        }
        if self.parts.mailbox.has_mail() || self.parts.store.has_news() {
            self.bell().cancel_sleep();
            return None;
        }
        let greeting = self.greeting_deadlines.front().map(|(due, _)| *due);
        let passage = self.is_passage_full.then(|| self.now.plus(PASSAGE_RETRY_MS));
        let stop = self.stopping.map(|_| self.now.plus(STOP_SETTLE_MS));
        let due = [
            self.parts.shard.next_deadline(),
            greeting,
            passage,
            stop,
            self.listener_rests,
        ]
        .into_iter()
        .flatten()
        .min();
        Some(due.map(|due| due.0.saturating_sub(self.parts.epoch.elapsed().as_millis() as u64)))
    }

    /// Whether what else is ready waits for the next batch: messages are dropped because sockets are full, and while more is
    /// read nobody notices that they take more.
    #[inline]
    fn is_cut_short(&self, began: Duration, dropped_before: u64) -> bool {
        self.parts.shard.counters().dropped_outbox_full > dropped_before
            && self.parts.epoch.elapsed() - began >= Duration::from_micros(DROPPING_BATCH_US)
    }

    /// `reads`: there is time for it now.
    fn event(&mut self, event: Ready, reads: bool) {
        match event {
            Ready::Bell => {}
            Ready::Listener(number) => self.accept(number),
            Ready::Socket {
                id,
                readable,
                writable,
                hangup,
            } => {
                let Some(socket) = self.sockets.get_mut(id) else {
                    return;
                };
                if writable && socket.unset(Flags::FULL) {
                    self.mark(id);
                }
                if readable {
                    let socket = self.sockets.get_mut(id).expect("found above");
                    if hangup {
                        socket.set(Flags::HANGUP);
                    }
                    match &socket.layers {
                        Some(layers) if layers.is_handshaking() => {
                            if !socket.set(Flags::HANDSHAKE) {
                                self.handshakes.push_back(id);
                            }
                        }
                        _ if !reads => self.read_again(id),
                        _ => self.read(id),
                    }
                }
            }
        }
    }

    /// In the order in which they came, until the time for them is over; the rest in the next batch.
    fn handshakes(&mut self) {
        let Some(first) = self.handshakes.pop_front() else {
            return;
        };
        let began = Instant::now();
        let mut next = Some(first);
        while let Some(connection) = next {
            if let Some(socket) = self.sockets.get_mut(connection) {
                socket.unset(Flags::HANDSHAKE);
                self.read(connection);
            }
            if began.elapsed() >= Duration::from_millis(HANDSHAKE_MS_PER_BATCH) {
                break;
            }
            next = self.handshakes.pop_front();
        }
        if self.handshakes.is_empty() && self.handshakes.capacity() > 4_096 {
            self.handshakes = VecDeque::new();
        }
    }

    // --- reading -----------------------------------------------------------------------------------------------------

    fn read(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.get_mut(connection) else {
            return;
        };
        // A paused socket is read when it resumes, whatever came meanwhile.
        if socket.is(Flags::PAUSED) || self.stopping.is_some() {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut more = false;
        let mut has_bytes = true;
        let is_held = socket.unset(Flags::HELD);
        match socket.stash.take() {
            Some(stash) if is_held => {
                scratch.show(stash);
                more = true;
            }
            mut stash => {
                let read = match socket.layers.take() {
                    None => scratch.read(socket.fd(), &mut stash),
                    Some(mut layers) => {
                        let read = match layers.end() {
                            None => layers.read(socket.fd(), &mut scratch, &mut stash, &mut self.parts.transports),
                            Some(_) => Read::Nothing,
                        };
                        socket.layers = Some(layers);
                        // Here, since what follows may end it, or take it to another core.
                        count_opened(&mut self.parts);
                        read
                    }
                };
                socket.stash = stash;
                match read {
                    Read::Bytes { filled } => more = filled || socket.is(Flags::HANGUP),
                    Read::Nothing => has_bytes = false,
                    Read::End => {
                        has_bytes = false;
                        self.closing.push((connection, CloseReason::PeerClosed.into()));
                        self.settle();
                    }
                }
            }
        }
        if has_bytes {
            let consumed = self.present(connection, scratch.bytes());
            if let Some(socket) = self.sockets.get_mut(connection) {
                scratch.keep(consumed, &mut socket.stash);
                if socket.is(Flags::PAUSED) {
                    socket.set(Flags::HELD);
                } else if more {
                    self.read_again(connection);
                }
            }
        }
        self.scratch = scratch;
        self.attend_layers(connection);
    }

    /// Lets the layers say what they have to say, and ends a connection whose layers have ended: behind everything that came
    /// before, which a paused connection still holds.
    pub(super) fn attend_layers(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.get(connection) else {
            return;
        };
        let Some(layers) = &socket.layers else { return };
        let end = layers.end().filter(|_| !socket.is(Flags::PAUSED));
        if layers.wants_write() {
            self.mark(connection);
        }
        if let Some(end) = end {
            self.closing.push((connection, end.into()));
            self.settle();
        }
    }

    fn read_again(&mut self, connection: ConnectionId) {
        if let Some(socket) = self.sockets.get_mut(connection)
            && !socket.set(Flags::AGAIN)
        {
            self.again_next.push(connection);
        }
    }

    /// Gives the bytes to whoever the connection is with. Returns how many were consumed.
    fn present(&mut self, connection: ConnectionId, bytes: &[u8]) -> usize {
        match self.sockets.get(connection) {
            Some(socket) if socket.is(Flags::GREETING) => self.greet(connection, bytes),
            Some(_) => self.turn(Input::Received { connection, bytes }),
            None => 0,
        }
    }

    // --- the shard ---------------------------------------------------------------------------------------------------

    pub(super) fn turn(&mut self, input: Input<'_>) -> usize {
        let consumed = self.parts.shard.handle(input, self.now);
        self.settle();
        consumed
    }

    /// Takes every output, and feeds what follows from them at once: closed sockets, and full outboxes sent.
    fn settle(&mut self) {
        loop {
            while let Some(output) = self.parts.shard.poll_output() {
                self.output(output);
            }
            if let Some((connection, ending)) = self.closing.pop() {
                self.end(connection, ending);
            } else if let Some(connection) = self.urgent.pop() {
                self.write(connection);
            } else {
                return;
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Transmit(connection) => {
                if self.parts.shard.unsent(connection).len() >= OUTBOX_FLUSH_BYTES {
                    self.urgent.push(connection);
                } else {
                    self.mark(connection);
                }
            }
            Output::Close(connection, reason) => self.closing.push((connection, reason.into())),
            Output::Pause(connection) => {
                if let Some(socket) = self.sockets.get_mut(connection) {
                    socket.set(Flags::PAUSED);
                }
            }
            Output::Resume(connection) => {
                if let Some(socket) = self.sockets.get_mut(connection)
                    && socket.unset(Flags::PAUSED)
                {
                    socket.set(Flags::HELD);
                    self.read_again(connection);
                }
            }
            Output::Forward(peer, lane) => {
                let waits = &mut self.is_forward_waiting[usize::from(peer.0) * Lane::ALL.len() + lane as usize];
                if !std::mem::replace(waits, true) {
                    self.forwards.push((peer, lane));
                }
            }
            Output::Persist(number, record) => self.parts.store.push(number, record),
            Output::Fetch(fetch) => self.parts.store.fetch(*fetch),
            Output::Answer(answer) => self.answer(*answer),
            Output::Notify(notification) => self.notify(*notification),
        }
    }

    /// Feeds an input without settling: for `settle` itself.
    fn tell(&mut self, input: Input<'_>) {
        self.parts.shard.handle(input, self.now);
    }

    // --- writing and closing -----------------------------------------------------------------------------------------

    pub(super) fn mark(&mut self, connection: ConnectionId) {
        if let Some(socket) = self.sockets.get_mut(connection)
            && !socket.set(Flags::MARKED)
        {
            self.marked.push(connection);
        }
    }

    /// Sends to every marked socket until it is full or has all: what was sent may let more follow. A socket that was written
    /// to within the last `write_interval_us` stays marked, and all do while the core rests after many: few large writes cost less
    /// than many small ones.
    fn flush(&mut self) {
        let elapsed = || self.parts.epoch.elapsed();
        let began = (self.marked.len() >= FLUSH_REST_SOCKETS_MIN).then(elapsed);
        if self.rests_until > began.unwrap_or_else(elapsed) {
            return;
        }
        // In the order in which they were marked: a message leaves before what acknowledges it to its publisher.
        let mut at = 0;
        while let Some(connection) = self.marked.get(at).copied() {
            at += 1;
            if let Some(socket) = self.sockets.get_mut(connection) {
                if self.now_us.wrapping_sub(socket.written_us) < self.parts.write_interval_us {
                    self.marked_next.push(connection);
                    continue;
                }
                socket.unset(Flags::MARKED);
                self.write(connection);
                self.settle();
            }
        }
        self.marked.clear();
        std::mem::swap(&mut self.marked, &mut self.marked_next);
        if let Some(began) = began {
            let now = self.parts.epoch.elapsed();
            let rest = (now - began) / FLUSH_REST_PART;
            self.rests_until = now + rest.min(Duration::from_micros(FLUSH_REST_US_MAX));
        }
    }

    /// One send; what follows from it is for `settle`.
    fn write(&mut self, connection: ConnectionId) {
        let Some(socket) = self.sockets.get_mut(connection) else {
            return;
        };
        if socket.is(Flags::FULL) {
            return;
        }
        let unsent = self.parts.shard.unsent(connection);
        let sent = match &mut socket.layers {
            None if unsent.is_empty() => return,
            None => match writer::write(socket.fd(), unsent) {
                Written::Bytes(taken) => Sent::Bytes {
                    taken,
                    is_full: taken < unsent.len(),
                },
                Written::Broken => Sent::Broken,
            },
            Some(_) => {
                let mut layers = socket.layers.take().expect("just seen");
                let sent = layers.write(socket.fd(), unsent, &mut self.parts.transports);
                socket.layers = Some(layers);
                sent
            }
        };
        socket.written_us = self.now_us;
        match sent {
            Sent::Bytes { taken, is_full } => {
                if is_full {
                    socket.set(Flags::FULL);
                }
                if taken > 0 {
                    self.tell(Input::Sent {
                        connection,
                        bytes: taken,
                    });
                }
            }
            Sent::Broken => self.closing.push((connection, CloseReason::PeerClosed.into())),
        }
    }

    /// Ends a connection that the shard knows, or one that is still being greeted.
    fn end(&mut self, connection: ConnectionId, ending: Ending) {
        let Some(socket) = self.sockets.get(connection) else {
            return;
        };
        if socket.is(Flags::GREETING) {
            self.close(connection, ending, &[]);
            return;
        }
        self.close_served(connection, ending);
        self.parts.connections_open.fetch_sub(1, Ordering::Relaxed);
        self.tell(Input::Disconnected { connection });
    }

    fn close_served(&mut self, connection: ConnectionId, ending: Ending) {
        let (fd, layers) = self.sockets.remove(connection).expect("looked up by the caller");
        let unsent = self.parts.shard.unsent(connection);
        match layers {
            Some(mut layers) => layers.close(fd, unsent, ending.close_code(), &mut self.parts.transports),
            None if ending == CloseReason::PeerClosed.into() => drop(fd),
            None => writer::close(fd, unsent),
        }
        count_ending(self.parts.shard.counters_mut(), connection, ending);
    }

    pub(super) fn close(&mut self, connection: ConnectionId, ending: Ending, last: &[u8]) {
        if let Some((fd, layers)) = self.sockets.remove(connection) {
            match layers {
                Some(mut layers) => layers.close(fd, last, ending.close_code(), &mut self.parts.transports),
                None => writer::close(fd, last),
            }
            count_ending(self.parts.shard.counters_mut(), connection, ending);
        }
    }

    // --- other cores -------------------------------------------------------------------------------------------------

    fn mesh_in(&mut self, began: Duration, dropped_before: u64) -> bool {
        let mut taken = 0;
        while taken < MESH_PARCELS_PER_BATCH
            && !(taken > 0 && self.is_cut_short(began, dropped_before))
            && let Some((from, parcel)) = self.parts.mesh.pop_any(Lane::ToHome)
        {
            taken += 1;
            self.parcel(PeerId(from), parcel);
        }
        let mut requests = 0;
        while requests < MESH_PARCELS_PER_BATCH
            && !(requests > 0 && self.is_cut_short(began, dropped_before))
            && self.parts.shard.takes_requests()
            && let Some((from, parcel)) = self.parts.mesh.pop_any(Lane::ToOwner)
        {
            requests += 1;
            self.parcel(PeerId(from), parcel);
        }
        taken + requests > 0
    }

    fn parcel(&mut self, from: PeerId, parcel: Parcel) {
        match parcel {
            Parcel::Batch(bytes) => {
                self.turn(Input::Batch { from, bytes: &bytes });
                self.parts.shard.recycle_batch(bytes);
            }
            Parcel::Arrivals(arrivals) => self.arrive(*arrivals),
        }
    }

    /// Whatever has room goes; what has none is awaited by the mesh.
    fn mesh_out(&mut self) -> bool {
        // Before what it makes other cores write: the store takes records in the order of their causes.
        self.parts.store.flush();
        let mut sent = false;
        let mut at = 0;
        while let Some((peer, lane)) = self.forwards.get(at).copied() {
            if !self.parts.mesh.has_room(peer.0, lane) {
                at += 1;
                continue;
            }
            self.forwards.swap_remove(at);
            self.is_forward_waiting[usize::from(peer.0) * Lane::ALL.len() + lane as usize] = false;
            if let Some(batch) = self.parts.shard.take_batch(peer, lane) {
                let pushed = self.parts.mesh.push(peer.0, lane, Parcel::Batch(batch));
                assert!(pushed.is_ok(), "only this core pushes to this ring, and it had room");
                sent = true;
            }
            self.settle();
        }
        if !self.departures.is_empty() {
            sent |= self.depart();
        }
        sent
    }

    // --- store, time, control ----------------------------------------------------------------------------------------

    fn commit(&mut self) -> bool {
        self.parts.store.flush();
        let mut busy = false;
        if let Some(up_to) = self.parts.store.committed() {
            self.turn(Input::Committed { up_to });
            busy = true;
        }
        while let Some(fetched) = self.parts.store.fetched() {
            self.turn(Input::Fetched(Box::new(fetched)));
            busy = true;
        }
        busy
    }

    fn deadlines(&mut self) {
        if self.parts.shard.next_deadline().is_some_and(|due| due <= self.now) {
            self.turn(Input::Tick);
        }
        while let Some((due, connection)) = self.greeting_deadlines.front().copied() {
            let socket = self.sockets.get(connection);
            let is_greeting = socket.is_some_and(|socket| socket.is(Flags::GREETING));
            if is_greeting && due > self.now {
                break;
            }
            self.greeting_deadlines.pop_front();
            if socket.is_some_and(|socket| socket.is(Flags::HANDSHAKE)) {
                // It waits for this core, not this core for it.
                self.expect_connect(connection);
            } else if is_greeting {
                self.close(connection, CloseReason::ConnectTimeout.into(), &[]);
            }
        }
        if self.greeting_deadlines.is_empty() && self.greeting_deadlines.capacity() > 4_096 {
            self.greeting_deadlines = VecDeque::new();
        }
        if self.listener_rests.is_some_and(|until| until <= self.now) {
            self.listener_rests = None;
            self.watch_listeners(self.stopping.is_none());
        }
        if let Some(since) = self.stopping {
            self.stop(since);
        }
    }

    fn mail(&mut self) -> bool {
        if !self.parts.mailbox.has_mail() {
            return false;
        }
        for control in self.parts.mailbox.take() {
            match control {
                Control::Stop => {
                    for listener in &self.parts.listeners {
                        listener.stop();
                    }
                    self.watch_listeners(false);
                    self.stopping.get_or_insert(self.now);
                }
                Control::Certificate(tls, taken_up) => {
                    self.parts.transports.tls = Some(*tls);
                    drop(taken_up);
                }
                Control::Ask(question) => self.ask(*question),
                Control::Accounts(change) => {
                    self.parts.access = Access::Platform(Arc::clone(&change.accounts));
                    self.turn(Input::Accounts(change));
                }
                // Whoever asked may be gone.
                Control::Report(to) => drop(to.send(self.parts.shard.report())),
            }
        }
        true
    }

    /// Nothing is read any more; what is on its way from other cores is still written, then everything closes. The shard is
    /// not told: a will would find nobody to go to, since every other connection ends as well.
    fn stop(&mut self, since: Millis) {
        let is_full = |socket: &crate::net::sockets::Socket| socket.is(Flags::FULL);
        if self.now < since.plus(STOP_SETTLE_MS) || self.is_done {
            return;
        }
        self.flush();
        let sockets = &self.sockets;
        let waits = sockets
            .ids()
            .any(|connection| sockets.get(connection).is_some_and(is_full));
        if waits && self.now < since.plus(STOP_FLUSH_MS) {
            return;
        }
        let open: Vec<ConnectionId> = self.sockets.ids().collect();
        for connection in open {
            self.close_served(connection, CloseReason::Stopping.into());
        }
        // What was on its way is handed to the store, which commits it after the last core.
        self.parts.store.flush();
        self.is_done = true;
    }

    /// What it has counted, and what waits in it.
    pub fn report(&self) -> Counters {
        self.parts.shard.report()
    }
}

fn count_opened(parts: &mut CoreParts) {
    let opened = std::mem::take(&mut parts.transports.opened);
    if opened != OpenedCounts::default() {
        let counters = parts.shard.counters_mut();
        counters.tls_full += opened.tls_full;
        counters.tls_resumed += opened.tls_resumed;
        counters.websockets += opened.websockets;
    }
}
