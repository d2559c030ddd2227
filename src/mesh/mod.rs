//! Layer 3: parcels between cores. Two bounded rings for every ordered pair of cores, one bell for every core.
//!
//! Owns    the rings and the bells. What a parcel is, and what waits when a ring is full, is the worker's matter.
//! Called  by `worker`: each core holds the one [`Endpoint`] that is its own.
//! Holds   - parcels of one sender on one lane arrive in the order they were pushed; the two lanes are not ordered among
//!           each other;
//!         - a core that sleeps is rung for what was pushed to it, and for room in a ring that it found full;
//!         - looking at every ring costs one word per 64 peers and lane.
//!
//! The two lanes keep floods from locking the cores up. [`Lane::ToHome`] is always drained: what a core does with it
//! makes bounded acknowledgements only. [`Lane::ToOwner`] is drained only while all that follows from it, which leaves on
//! `ToHome`, has somewhere to go. So `ToHome` rings always empty in the end, therefore `ToOwner` rings too.
//!
//! One turn of a core:
//! ```text
//! pop_any(ToHome) until None ─▶ pop_any(ToOwner) while nothing is backed up ─▶ read sockets ─▶ push … ─▶ ring_bells()
//! nothing left to do: prepare_sleep(lanes)? ─▶ wait for the bell ─▶ bell().woken()
//! ```

mod peers;
mod ring;
mod wake;

use peers::{PeerSet, SharedPeerSet};
pub use ring::{Consumer, Producer, ring};
pub use wake::Bell;

pub use crate::shard::Lane;

use crate::limits;
use atomic::{Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic;
#[cfg(not(loom))]
use std::sync::atomic;
use std::{io, sync::Arc};

/// Where endpoints come from.
pub struct Mesh;

impl Mesh {
    /// The endpoints of cores `0..cores`, in order, joined by rings of `ring_parcels` (rounded up to a power of two) each.
    /// Fails when the process has no file descriptor left for the bells.
    pub fn build<T: Send>(cores: usize, ring_parcels: usize) -> io::Result<Vec<Endpoint<T>>> {
        assert!(
            (1..=limits::CORES_MAX).contains(&cores),
            "{cores} cores: 1 to {}",
            limits::CORES_MAX
        );
        let inboxes = (0..cores)
            .map(|_| Inbox::new(cores))
            .collect::<io::Result<Arc<[Inbox]>>>()?;
        let mut endpoints: Vec<Endpoint<T>> = (0..cores)
            .map(|core| Endpoint::new(core as u16, Arc::clone(&inboxes)))
            .collect();
        for from in 0..cores {
            for to in 0..cores {
                for lane in Lane::ALL {
                    // A core has no ring to itself: what stays is not a parcel.
                    let (producer, consumer) = match from == to {
                        true => (None, None),
                        false => {
                            let (producer, consumer) = ring(ring_parcels);
                            (Some(producer), Some(consumer))
                        }
                    };
                    endpoints[from].outgoing[lane as usize].rings.push(producer);
                    endpoints[to].incoming[lane as usize].rings.push(consumer);
                }
            }
        }
        Ok(endpoints)
    }
}

/// One core's end of the mesh. It moves to the core's thread and stays there.
pub struct Endpoint<T> {
    core: u16,
    inboxes: Arc<[Inbox]>,
    outgoing: [Outgoing<T>; 2],
    incoming: [Incoming<T>; 2],
    /// Something was pushed or popped since the last `ring_bells`.
    is_touched: bool,
    /// Scratch of `ring_bells`, empty between calls.
    to_ring: PeerSet,
}

impl<T: Send> Endpoint<T> {
    fn new(core: u16, inboxes: Arc<[Inbox]>) -> Self {
        let cores = inboxes.len();
        Self {
            core,
            inboxes,
            outgoing: [Outgoing::new(cores), Outgoing::new(cores)],
            incoming: [Incoming::new(core, cores), Incoming::new(core, cores)],
            is_touched: false,
            to_ring: PeerSet::new(cores),
        }
    }

    pub fn core(&self) -> u16 {
        self.core
    }

    pub fn cores(&self) -> u16 {
        self.inboxes.len() as u16
    }

    /// Rung when there is something to pop, or room for what would not go; a clone wakes this core from any thread.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.inboxes[usize::from(self.core)].bell
    }

    /// Whether the next push will succeed. After a `false`, a sleep of this core ends when there is room again.
    /// Panics when `peer` is this core.
    #[inline]
    pub fn has_room(&mut self, peer: u16, lane: Lane) -> bool {
        let outgoing = &mut self.outgoing[lane as usize];
        let has_room = outgoing.ring(peer).has_room();
        if !has_room {
            outgoing.awaited.insert(peer);
        }
        has_room
    }

    /// Hands the parcel back when the ring is full; a sleep of this core then ends when there is room again. The peer is
    /// told of a parcel by the next [`Endpoint::ring_bells`]. Panics when `peer` is this core.
    #[inline]
    pub fn push(&mut self, peer: u16, lane: Lane, parcel: T) -> Result<(), T> {
        if !self.has_room(peer, lane) {
            return Err(parcel);
        }
        let outgoing = &mut self.outgoing[lane as usize];
        outgoing.ring(peer).push(parcel)?;
        outgoing.pushed.insert(peer);
        self.is_touched = true;
        Ok(())
    }

    /// Once per batch, and always before sleeping: tells every peer that was pushed to, and every peer that waits for room
    /// which was made here, and wakes those that sleep.
    #[inline]
    pub fn ring_bells(&mut self) {
        if !std::mem::take(&mut self.is_touched) {
            return;
        }
        for lane in Lane::ALL {
            while let Some(peer) = self.outgoing[lane as usize].pushed.take_first() {
                self.inboxes[usize::from(peer)].filled[lane as usize].insert(self.core);
                self.to_ring.insert(peer);
            }
        }
        // Between what was made visible (bits, positions in rings) and the looks at who sleeps and who waits for room.
        fence(Ordering::SeqCst);
        let inbox = &self.inboxes[usize::from(self.core)];
        for lane in Lane::ALL {
            inbox.room_awaited[lane as usize].take_those(&mut self.incoming[lane as usize].popped, &mut self.to_ring);
        }
        while let Some(peer) = self.to_ring.take_first() {
            self.inboxes[usize::from(peer)].bell.ring_after_fence();
        }
    }

    /// The next parcel of the lane and who sent it. Peers take turns: at most one ringful of each, then the next peer.
    #[inline]
    pub fn pop_any(&mut self, lane: Lane) -> Option<(u16, T)> {
        let filled = &self.inboxes[usize::from(self.core)].filled[lane as usize];
        let popped = self.incoming[lane as usize].pop_any(filled);
        self.is_touched |= popped.is_some();
        popped
    }

    /// The next parcel from one peer. None when `peer` is this core.
    #[inline]
    pub fn pop(&mut self, lane: Lane, peer: u16) -> Option<T> {
        let filled = &self.inboxes[usize::from(self.core)].filled[lane as usize];
        let popped = self.incoming[lane as usize].pop(peer, filled);
        self.is_touched |= popped.is_some();
        popped
    }

    /// Gives up to `budget` parcels to `sink`, peers taking turns as in [`Endpoint::pop_any`]; returns how many. A sink
    /// that itself pushes needs `pop_any` in a loop.
    #[inline]
    pub fn drain(&mut self, lane: Lane, budget: usize, mut sink: impl FnMut(u16, T)) -> usize {
        for count in 0..budget {
            match self.pop_any(lane) {
                Some((from, parcel)) => sink(from, parcel),
                None => return count,
            }
        }
        budget
    }

    /// Nothing to pop on either lane: the look before sleeping. May say false once where there is nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.is_lane_empty(Lane::ToHome) && self.is_lane_empty(Lane::ToOwner)
    }

    /// The same for one lane: a core that leaves `ToOwner` undrained, because what follows is backed up, sleeps on
    /// `ToHome` and on room.
    #[inline]
    pub fn is_lane_empty(&self, lane: Lane) -> bool {
        self.incoming[lane as usize].filled.is_empty()
            && self.inboxes[usize::from(self.core)].filled[lane as usize].is_empty()
    }

    /// Whether a ring that was found full has room now; if none has, asks the peers to ring when they make some. Part of
    /// the look before sleeping, after `prepare_sleep`: what a peer rings before the sleep is announced is not kept.
    pub fn has_awaited_room(&mut self) -> bool {
        if self.outgoing.iter().all(|outgoing| outgoing.awaited.is_empty()) {
            return false;
        }
        if self.sees_room() {
            return true;
        }
        for (lane, outgoing) in self.outgoing.iter_mut().enumerate() {
            outgoing.awaited.retain(|peer| {
                self.inboxes[usize::from(peer)].room_awaited[lane].insert(self.core);
                true
            });
        }
        // Against the fence of `ring_bells`: either the peer that made room sees the request, or the room is seen here.
        fence(Ordering::SeqCst);
        self.sees_room()
    }

    fn sees_room(&mut self) -> bool {
        let [to_owner, to_home] = &mut self.outgoing;
        to_owner.sees_room() | to_home.sees_room()
    }

    /// The whole look before sleeping: announces the sleep and takes it back if there is something to pop on `lanes`, or
    /// room in a ring that was found full. True: wait for the bell (or look at further sources of work first, and
    /// `cancel_sleep` if there is some), then `bell().woken()`. [`Endpoint::ring_bells`] comes before.
    pub fn prepare_sleep(&mut self, lanes: &[Lane]) -> bool {
        debug_assert!(!self.is_touched, "a sleeping core leaves nobody unrung");
        self.bell().prepare_sleep();
        let may_sleep = lanes.iter().all(|lane| self.is_lane_empty(*lane)) && !self.has_awaited_room();
        if !may_sleep {
            self.bell().cancel_sleep();
        }
        may_sleep
    }
}

/// What others write to tell one core something, a set per lane.
struct Inbox {
    bell: Arc<Bell>,
    /// Senders whose ring to this core may hold something: entered once per batch, left before the ring is drained.
    filled: [SharedPeerSet; 2],
    /// Senders that found their ring to this core full and may be asleep over it.
    room_awaited: [SharedPeerSet; 2],
}

impl Inbox {
    fn new(cores: usize) -> io::Result<Self> {
        Ok(Self {
            bell: Arc::new(Bell::new()?),
            filled: [SharedPeerSet::new(cores), SharedPeerSet::new(cores)],
            room_awaited: [SharedPeerSet::new(cores), SharedPeerSet::new(cores)],
        })
    }
}

/// One lane from this core to all.
struct Outgoing<T> {
    rings: Vec<Option<Producer<T>>>,
    /// Peers pushed to since the last `ring_bells`.
    pushed: PeerSet,
    /// Peers whose ring was found full since the last look before sleeping.
    awaited: PeerSet,
}

impl<T: Send> Outgoing<T> {
    fn new(cores: usize) -> Self {
        Self {
            rings: Vec::with_capacity(cores),
            pushed: PeerSet::new(cores),
            awaited: PeerSet::new(cores),
        }
    }

    #[inline]
    fn ring(&mut self, peer: u16) -> &mut Producer<T> {
        self.rings[usize::from(peer)]
            .as_mut()
            .expect("a core sends no parcel to itself")
    }

    /// Forgets the awaited rings that have room now; whether there was one.
    fn sees_room(&mut self) -> bool {
        let Outgoing { rings, awaited, .. } = self;
        let mut found = false;
        awaited.retain(|peer| {
            let ring = rings[usize::from(peer)]
                .as_mut()
                .expect("a core sends no parcel to itself");
            let has_room = ring.has_room();
            found |= has_room;
            !has_room
        });
        found
    }
}

/// One lane from all to this core.
struct Incoming<T> {
    rings: Vec<Option<Consumer<T>>>,
    /// Peers taken from the inbox's `filled` whose ring was not yet found empty since.
    filled: PeerSet,
    /// Peers popped from since the last `ring_bells`.
    popped: PeerSet,
    /// The peer whose turn it is, and how many parcels it has had of its turn.
    at: u16,
    turn_taken: usize,
}

impl<T: Send> Incoming<T> {
    fn new(core: u16, cores: usize) -> Self {
        let (filled, popped) = (PeerSet::new(cores), PeerSet::new(cores));
        Self {
            rings: Vec::with_capacity(cores),
            filled,
            popped,
            at: core,
            turn_taken: 0,
        }
    }

    #[inline]
    fn pop_any(&mut self, filled: &SharedPeerSet) -> Option<(u16, T)> {
        loop {
            if self.filled.contains(self.at) {
                let ring = self.rings[usize::from(self.at)]
                    .as_mut()
                    .expect("a core sends no parcel to itself");
                if self.turn_taken < ring.capacity() {
                    if let Some(parcel) = ring.pop() {
                        self.turn_taken += 1;
                        self.popped.insert(self.at);
                        return Some((self.at, parcel));
                    }
                    self.filled.remove(self.at);
                }
            }
            filled.take_all(&mut self.filled);
            self.at = self.filled.next_after(self.at)?;
            self.turn_taken = 0;
        }
    }

    #[inline]
    fn pop(&mut self, peer: u16, filled: &SharedPeerSet) -> Option<T> {
        let ring = self.rings[usize::from(peer)].as_mut()?;
        let mut parcel = ring.pop();
        if parcel.is_none() {
            // The bit is taken before the last look, so that a push after the look leaves it set.
            filled.take_all(&mut self.filled);
            parcel = ring.pop();
        }
        match parcel {
            Some(_) => self.popped.insert(peer),
            None => self.filled.remove(peer),
        }
        parcel
    }
}

/// A value alone on its cache lines; two of 64 bytes, since the hardware fetches them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mesh(cores: usize, ring_parcels: usize) -> Vec<Endpoint<u64>> {
        Mesh::build(cores, ring_parcels).unwrap()
    }

    #[test]
    fn a_parcel_arrives_at_the_core_it_was_pushed_to_on_its_lane_and_nowhere_else() {
        let mut endpoints = mesh(3, 4);
        for from in 0..3u16 {
            for to in (0..3).filter(|to| *to != from) {
                for lane in Lane::ALL {
                    let parcel = u64::from(from) * 100 + u64::from(to) * 10 + lane as u64;
                    endpoints[usize::from(from)].push(to, lane, parcel).unwrap();
                }
            }
        }
        endpoints.iter_mut().for_each(Endpoint::ring_bells);
        for to in 0..3u16 {
            for lane in Lane::ALL {
                let mut got = Vec::new();
                let endpoint = &mut endpoints[usize::from(to)];
                assert_eq!(
                    endpoint.drain(lane, usize::MAX, |from, parcel| got.push((from, parcel))),
                    2
                );
                got.sort_unstable();
                let from = (0..3).filter(|from| *from != to);
                let expected = from.map(|from| (from, u64::from(from) * 100 + u64::from(to) * 10 + lane as u64));
                assert_eq!(got, expected.collect::<Vec<_>>());
            }
            assert!(endpoints[usize::from(to)].is_empty());
        }
    }

    #[test]
    fn peers_take_turns_of_at_most_one_ringful() {
        let mut endpoints = mesh(4, 4);
        let mut got = Vec::new();
        for round in 0..6 {
            for from in 1..4u64 {
                // Peer 1 keeps its ring full, the others send one parcel a round.
                while endpoints[from as usize].push(0, Lane::ToOwner, from).is_ok() && from == 1 {}
                endpoints[from as usize].ring_bells();
            }
            let count = endpoints[0].drain(Lane::ToOwner, 6, |from, _| got.push(from));
            assert_eq!(count, 6, "round {round}");
        }
        for turn in got.chunks(6) {
            assert_eq!(turn.iter().filter(|from| **from == 1).count(), 4, "{got:?}");
            assert!(turn.contains(&2) && turn.contains(&3), "{got:?}");
        }
    }

    #[test]
    fn a_drain_cut_short_by_its_budget_is_remembered() {
        let mut endpoints = mesh(2, 8);
        (0..5).for_each(|n| endpoints[0].push(1, Lane::ToHome, n).unwrap());
        endpoints[0].ring_bells();
        assert_eq!(endpoints[1].drain(Lane::ToHome, 3, |_, _| ()), 3);
        assert!(!endpoints[1].is_empty());
        assert!(endpoints[1].is_lane_empty(Lane::ToOwner));
        let mut rest = Vec::new();
        assert_eq!(endpoints[1].drain(Lane::ToHome, 3, |_, n| rest.push(n)), 2);
        assert_eq!(rest, [3, 4]);
        assert!(endpoints[1].is_empty());
    }

    #[test]
    fn popping_from_one_peer_leaves_no_trace_of_a_ring_it_emptied() {
        let mut endpoints = mesh(3, 4);
        endpoints[1].push(0, Lane::ToHome, 7).unwrap();
        endpoints[1].ring_bells();
        assert!(!endpoints[0].is_empty());
        assert_eq!(endpoints[0].pop(Lane::ToHome, 2), None);
        assert_eq!(endpoints[0].pop(Lane::ToHome, 0), None);
        assert_eq!(endpoints[0].pop(Lane::ToHome, 1), Some(7));
        assert_eq!(endpoints[0].pop(Lane::ToHome, 1), None);
        assert!(endpoints[0].is_empty());
    }

    #[test]
    fn a_full_ring_holds_up_neither_the_other_lane_nor_the_other_peers() {
        let mut endpoints = mesh(3, 2);
        (0..2).for_each(|n| endpoints[0].push(1, Lane::ToOwner, n).unwrap());
        assert_eq!(endpoints[0].push(1, Lane::ToOwner, 2), Err(2));
        assert!(!endpoints[0].has_room(1, Lane::ToOwner));
        assert_eq!(endpoints[0].push(1, Lane::ToHome, 3), Ok(()));
        assert_eq!(endpoints[0].push(2, Lane::ToOwner, 4), Ok(()));
    }

    #[test]
    fn who_found_a_ring_full_is_rung_when_there_is_room_and_told_once() {
        let mut endpoints = mesh(2, 2);
        for round in 0..3 {
            while endpoints[0].push(1, Lane::ToHome, round).is_ok() {}
            endpoints[0].ring_bells();
            assert!(endpoints[0].prepare_sleep(&Lane::ALL));
            assert_eq!(endpoints[1].pop_any(Lane::ToHome), Some((0, round)));
            endpoints[1].ring_bells();
            assert!(endpoints[0].bell().woken(), "round {round}");
            assert!(endpoints[0].has_awaited_room());
            assert!(!endpoints[0].has_awaited_room());
            while endpoints[1].pop_any(Lane::ToHome).is_some() {}
        }
    }

    #[test]
    fn a_core_that_waits_for_no_room_is_not_rung_by_pops() {
        let mut endpoints = mesh(2, 2);
        endpoints[0].push(1, Lane::ToHome, 1).unwrap();
        endpoints[0].ring_bells();
        endpoints[0].bell().prepare_sleep();
        assert_eq!(endpoints[1].pop_any(Lane::ToHome), Some((0, 1)));
        endpoints[1].ring_bells();
        assert!(!endpoints[0].bell().woken());
    }

    #[test]
    fn room_made_in_another_ring_keeps_the_wait_for_this_one() {
        let mut endpoints = mesh(3, 2);
        for lane in Lane::ALL {
            while endpoints[0].push(1, lane, 0).is_ok() {}
        }
        endpoints[2].push(1, Lane::ToOwner, 0).unwrap();
        endpoints[0].ring_bells();
        endpoints[2].ring_bells();
        assert!(endpoints[1].pop(Lane::ToOwner, 2).is_some());
        endpoints[1].ring_bells();
        assert!(endpoints[1].pop(Lane::ToHome, 0).is_some());
        endpoints[1].ring_bells();
        assert!(!endpoints[0].prepare_sleep(&Lane::ALL), "there is room on one lane");
        assert!(endpoints[0].prepare_sleep(&Lane::ALL));
        assert!(endpoints[1].pop(Lane::ToOwner, 0).is_some());
        endpoints[1].ring_bells();
        assert!(endpoints[0].bell().woken());
    }

    #[test]
    fn a_mesh_of_one_core_is_empty() {
        let mut endpoints = mesh(1, 16);
        assert!(endpoints[0].is_empty());
        assert_eq!(endpoints[0].pop_any(Lane::ToHome), None);
        endpoints[0].ring_bells();
    }

    /// Goal: parcels flood every ring of a mesh whose cores sleep whenever they may; all arrive, in order, none is stuck.
    /// Method: every core sends to every other as fast as rings allow, and answers each `ToOwner` parcel with a `ToHome`
    /// parcel, leaving `ToOwner` undrained while answers are backed up.
    #[test]
    fn floods_among_all_cores_neither_deadlock_nor_lose_a_wake_up() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use std::collections::VecDeque;
        const CORES: usize = 4;
        const PARCELS: u64 = 3_000;
        let run = |mut mesh: Endpoint<u64>| {
            let peers: Vec<u16> = (0..mesh.cores()).filter(|peer| *peer != mesh.core()).collect();
            let mut sent = [0u64; CORES];
            let (mut asked, mut answered) = ([0u64; CORES], [0u64; CORES]);
            let mut answers: [VecDeque<u64>; CORES] = Default::default();
            let bell = Arc::clone(mesh.bell());
            loop {
                while let Some((from, parcel)) = mesh.pop_any(Lane::ToHome) {
                    assert_eq!(parcel, answered[usize::from(from)]);
                    answered[usize::from(from)] += 1;
                }
                for peer in &peers {
                    let backlog = &mut answers[usize::from(*peer)];
                    while let Some(parcel) = backlog.pop_front() {
                        if let Err(back) = mesh.push(*peer, Lane::ToHome, parcel) {
                            backlog.push_front(back);
                            break;
                        }
                    }
                }
                let mut backed_up = answers.iter().any(|backlog| !backlog.is_empty());
                while !backed_up && let Some((from, parcel)) = mesh.pop_any(Lane::ToOwner) {
                    assert_eq!(parcel, asked[usize::from(from)]);
                    asked[usize::from(from)] += 1;
                    if let Err(back) = mesh.push(from, Lane::ToHome, parcel) {
                        answers[usize::from(from)].push_back(back);
                        backed_up = true;
                    }
                }
                for peer in &peers {
                    let sent = &mut sent[usize::from(*peer)];
                    while *sent < PARCELS && mesh.push(*peer, Lane::ToOwner, *sent).is_ok() {
                        *sent += 1;
                    }
                }
                mesh.ring_bells();
                let is_done = |counts: &[u64; CORES]| peers.iter().all(|peer| counts[usize::from(*peer)] == PARCELS);
                if !backed_up && is_done(&asked) && is_done(&answered) {
                    return;
                }
                let lanes = if backed_up { &[Lane::ToHome][..] } else { &Lane::ALL };
                if mesh.prepare_sleep(lanes) {
                    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
                    let readable = poll(&mut [PollFd::new(&*bell, PollFlags::IN)], Some(&timeout)).unwrap();
                    assert_eq!(
                        readable,
                        1,
                        "core {} was left asleep: {sent:?} {asked:?} {answered:?}",
                        mesh.core()
                    );
                    bell.woken();
                }
            }
        };
        let threads: Vec<_> = mesh(CORES, 2)
            .into_iter()
            .map(|mesh| std::thread::spawn(move || run(mesh)))
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[cfg(all(test, loom))]
#[allow(clippy::unwrap_used)]
mod model {
    use super::*;

    fn sleep<T: Send>(endpoint: &mut Endpoint<T>) {
        if endpoint.prepare_sleep(&Lane::ALL) {
            endpoint.bell().wait();
            endpoint.bell().woken();
        }
    }

    #[test]
    fn a_parcel_pushed_and_rung_never_leaves_its_core_asleep() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3); // Without a bound it passes too, in 100 s.
        model.check(|| {
            let mut endpoints = Mesh::build::<usize>(2, 2).unwrap();
            let (mut receiver, mut sender) = (endpoints.pop().unwrap(), endpoints.pop().unwrap());
            let pusher = loom::thread::spawn(move || {
                for n in 0..2 {
                    sender.push(1, Lane::ToHome, n).unwrap();
                    sender.ring_bells();
                }
            });
            let mut expected = 0;
            while expected < 2 {
                while let Some(parcel) = receiver.pop_any(Lane::ToHome) {
                    assert_eq!(parcel, (0, expected));
                    expected += 1;
                }
                if expected < 2 {
                    sleep(&mut receiver);
                }
            }
            pusher.join().unwrap();
        });
    }

    #[test]
    fn room_made_never_leaves_the_sender_asleep() {
        const PARCELS: usize = 3;
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let mut endpoints = Mesh::build::<usize>(2, 1).unwrap();
            let (mut receiver, mut sender) = (endpoints.pop().unwrap(), endpoints.pop().unwrap());
            let pusher = loom::thread::spawn(move || {
                let mut next = 0;
                while next < PARCELS {
                    while next < PARCELS && sender.push(1, Lane::ToHome, next).is_ok() {
                        next += 1;
                    }
                    sender.ring_bells();
                    if next < PARCELS {
                        sleep(&mut sender);
                    }
                }
            });
            let mut expected = 0;
            while expected < PARCELS {
                while let Some(parcel) = receiver.pop_any(Lane::ToHome) {
                    assert_eq!(parcel, (0, expected));
                    expected += 1;
                }
                receiver.ring_bells();
                if expected < PARCELS {
                    sleep(&mut receiver);
                }
            }
            pusher.join().unwrap();
        });
    }

    #[test]
    fn two_ringers_of_one_sleep_leave_nothing_unread_after_the_next_wake() {
        loom::model(|| {
            let bell = Arc::new(Bell::new().unwrap());
            let ringers: Vec<_> = (0..2)
                .map(|_| {
                    let bell = Arc::clone(&bell);
                    loom::thread::spawn(move || bell.ring())
                })
                .collect();
            bell.prepare_sleep();
            bell.woken();
            ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
            bell.prepare_sleep();
            bell.woken();
            assert!(!bell.is_readable());
        });
    }
}
