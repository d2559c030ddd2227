//! The end of durable Sessions whose clients stay away (`--session-expiry`).
//!
//! Owns    since when each client with a durable Session is away; nothing where Sessions do not expire.
//! Called  by `shard::connect` (a client leaves or comes back), by `shard::restore`, and on `Input::Tick`.
//! Holds   - a Session ends when its client has been away for the whole time, never while it is connected;
//!         - the time counts over restarts of the broker: it is on disk as a second of Unix time, written when a client
//!           leaves. For clients that were connected when the broker died it counts from the start after that.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;

use super::Shard;
use super::event::Millis;
use super::record::{Record, SessionKey, SessionNumber};

/// Sessions ended in one turn; the rest is due in the next.
const EXPIRED_PER_TICK: usize = 1_000;

/// Unix time by the clock of the shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnixTime {
    /// The millisecond of Unix time at `Millis(0)`.
    pub epoch_ms: u64,
}

impl UnixTime {
    /// The second of Unix time.
    fn at(self, now: Millis) -> u64 {
        self.at_ms(now) / 1_000
    }

    pub fn at_ms(self, now: Millis) -> u64 {
        self.epoch_ms + now.0
    }

    /// The first millisecond of this second; 0 if it was before the clock began.
    fn millis(self, second: u64) -> Millis {
        Millis((second * 1_000).saturating_sub(self.epoch_ms))
    }
}

pub struct Expiry {
    after_s: u64,
    unix_time: UnixTime,
    away: HashMap<SessionNumber, u64, RandomState>,
    /// In the order of time; an entry counts if `away` says the same.
    due: VecDeque<(u64, SessionKey)>,
}

impl Expiry {
    pub fn new(after_s: u64, unix_time: UnixTime, hasher: RandomState) -> Expiry {
        Expiry {
            after_s,
            unix_time,
            away: HashMap::with_hasher(hasher),
            due: VecDeque::new(),
        }
    }

    /// When the Session of a client ends that left in this second: not before its time, whenever in the second that was.
    fn ends(&self, since_s: u64) -> Millis {
        self.unix_time.millis(since_s + 1 + self.after_s)
    }

    pub fn next_deadline(&self) -> Option<Millis> {
        let (since_s, _) = self.due.front()?;
        Some(self.ends(*since_s))
    }

    /// Clients that are away as a start finds them, since then or, where nothing is known, since now.
    fn restore(&mut self, sessions: Vec<(Option<u64>, SessionKey)>) {
        let now_s = self.unix_time.at(Millis(0));
        // A clock that was set back must not keep a Session for longer than from now on.
        let since = |since_s: Option<u64>| since_s.map_or(now_s, |since_s| since_s.min(now_s));
        self.due = sessions
            .into_iter()
            .map(|(since_s, key)| (since(since_s), key))
            .collect();
        self.due.make_contiguous().sort_unstable();
        self.away
            .extend(self.due.iter().map(|(since_s, key)| (key.number, *since_s)));
    }
}

impl Shard {
    /// All Sessions that a start finds are away. Where they do not expire, what is known of the past is forgotten: by the
    /// time they do, it would be wrong.
    pub(super) fn restore_expiry(&mut self, sessions: Vec<(Option<u64>, SessionKey)>) {
        if let Some(expiry) = &mut self.expiry {
            expiry.restore(sessions);
            return;
        }
        for (_, key) in sessions.iter().filter(|(since_s, _)| since_s.is_some()) {
            self.persist(Record::SessionBack { session: key.number });
        }
    }

    pub(super) fn client_left(&mut self, session: SessionKey) {
        let Some(expiry) = &mut self.expiry else { return };
        let since_s = expiry.unix_time.at(self.now_ms);
        expiry.away.insert(session.number, since_s);
        expiry.due.push_back((since_s, session));
        // What is kept is read by a clock of another run: it is what the clock says now, not what it made of the start of this one.
        let since_s = self.unix_time.at(self.now_ms);
        let session = session.number;
        self.persist(Record::SessionAway { session, since_s });
    }

    pub(super) fn client_is_back(&mut self, session: SessionNumber) {
        let Some(expiry) = &mut self.expiry else { return };
        if expiry.away.remove(&session).is_some() {
            self.persist(Record::SessionBack { session });
        }
    }

    /// Ends the Sessions whose time is over.
    pub(super) fn expire_sessions(&mut self, now: Millis) {
        for _ in 0..EXPIRED_PER_TICK {
            let Some(expiry) = &mut self.expiry else { return };
            let Some((since_s, session)) = expiry.due.front().copied() else {
                return;
            };
            if expiry.ends(since_s) > now {
                return;
            }
            expiry.due.pop_front();
            if expiry.away.get(&session.number) != Some(&since_s) {
                continue;
            }
            if self.clients.session(session).is_some() {
                self.counters.sessions_expired += 1;
                self.counters.expired += self.end_session(session.index);
            }
        }
    }

    /// A Session has ended, for whatever reason.
    pub(super) fn forget_expiry(&mut self, session: SessionNumber) {
        if let Some(expiry) = &mut self.expiry {
            expiry.away.remove(&session);
        }
    }
}
