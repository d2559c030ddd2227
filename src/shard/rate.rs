//! How often one connection (`--max-publish-rate`) and one account (`--account-publish-rate`) may publish; off unless an operator
//! asks for it.
//!
//! Owns    the counts of the second that runs, and who waits: for the next one, or for a turn of its account's.
//! Called  by `Shard::received` before each PUBLISH of a client, and on `Input::Tick`.
//! Holds   - nothing is dropped: whoever has published as often as it may is not read until it may again;
//!         - the connections of an account have its turns one after another, however many of them flood;
//!         - it costs nothing while it is off, and one look at the account where only others are bounded.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use ahash::RandomState;

use crate::limits::ACCOUNT_TURN_MS;
use crate::registry::access::AccountId;

use super::Shard;
use super::clients::paused;
use super::event::{ConnectionId, Millis};

const SECOND_MS: u64 = 1_000;

pub struct PublishRate {
    /// `max > 0`, or any account is bounded: what the path of a message asks.
    is_limited: bool,
    /// PUBLISH packets in a second; 0: any number.
    max: u32,
    /// Since the clock's start, and what was counted in it.
    second: u64,
    counts: HashMap<ConnectionId, u32, RandomState>,
    /// Each with the second that it has used up, in that order.
    waiting: VecDeque<(u64, ConnectionId)>,
    /// Who waits for a turn of its account's.
    lines: BTreeMap<AccountId, Line>,
    /// When those are looked at.
    turns_due: Option<Millis>,
    /// Have been resumed for a turn that they have not had.
    called: HashSet<ConnectionId, RandomState>,
}

/// Those who wait for one account's turns, in their order.
#[derive(Default)]
struct Line {
    /// They were called before and found none left.
    first: VecDeque<ConnectionId>,
    then: VecDeque<ConnectionId>,
}

impl PublishRate {
    pub fn new(max: u32, hasher: RandomState) -> PublishRate {
        PublishRate {
            is_limited: max > 0,
            max,
            second: 0,
            counts: HashMap::with_hasher(hasher.clone()),
            waiting: VecDeque::new(),
            lines: BTreeMap::new(),
            turns_due: None,
            called: HashSet::with_hasher(hasher),
        }
    }

    /// Whether any account is bounded.
    pub fn limits_accounts(&mut self, does: bool) {
        self.is_limited = does || self.max > 0;
    }

    #[inline]
    pub fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// When those who wait go on.
    pub fn next_deadline(&self) -> Option<Millis> {
        let second = self.waiting.front().map(|(second, _)| Millis((second + 1) * SECOND_MS));
        [second, self.turns_due].into_iter().flatten().min()
    }

    /// Counts one; true if it was the last that this connection may publish in this second.
    fn count(&mut self, connection: ConnectionId, now: Millis) -> bool {
        let second = now.0 / SECOND_MS;
        if second != self.second {
            self.second = second;
            self.counts.clear();
        }
        let count = self.counts.entry(connection).or_default();
        *count += 1;
        *count >= self.max
    }

    fn wait_for_turn(&mut self, account: AccountId, connection: ConnectionId, now: Millis) {
        let line = self.lines.entry(account).or_default();
        match self.called.remove(&connection) {
            true => line.first.push_back(connection),
            false => line.then.push_back(connection),
        }
        self.turns_due.get_or_insert(now.plus(ACCOUNT_TURN_MS));
    }
}

impl Shard {
    /// Whether each PUBLISH of this connection is counted.
    #[cold]
    pub(super) fn counts_publishes_of(&self, id: ConnectionId) -> bool {
        let tenant = self.access.tenant(self.clients.account_of(id));
        self.publish_rate.max > 0 || tenant.is_some_and(|tenant| tenant.quotas.publishes_per_s_max > 0)
    }

    /// Counts a PUBLISH that has come; false if its account has no turn for it, and the connection waits for one.
    #[cold]
    pub(super) fn may_publish_now(&mut self, id: ConnectionId) -> bool {
        let account = self.clients.account_of(id);
        let rate = &mut self.publish_rate;
        if let Some(tenant) = self.access.tenant(account)
            && tenant.quotas.publishes_per_s_max > 0
        {
            if !tenant.take_publish(self.now_ms.0) {
                rate.wait_for_turn(account, id, self.now_ms);
                self.counters.held_back_account_rate += 1;
                self.pause(id, paused::ACCOUNT_RATE);
                return false;
            }
            if !rate.called.is_empty() {
                rate.called.remove(&id);
            }
        }
        if rate.max > 0 && rate.count(id, self.now_ms) {
            rate.waiting.push_back((rate.second, id));
            self.pause(id, paused::RATE);
        }
        true
    }

    /// The second is over for those who wait.
    pub(super) fn end_second(&mut self, now: Millis) {
        let second = now.0 / SECOND_MS;
        // Others may have begun to count the next second before this was seen.
        while let Some((used_up, id)) = self.publish_rate.waiting.front().copied()
            && used_up < second
        {
            self.publish_rate.waiting.pop_front();
            self.resume(id, paused::RATE);
        }
    }

    /// Calls as many of each account's as it has turns; an account that has gone, or has no bound any more, holds nobody.
    pub(super) fn give_turns(&mut self, now: Millis) {
        let rate = &mut self.publish_rate;
        if rate.turns_due.is_none_or(|due| due > now) {
            return;
        }
        rate.called.clear();
        let mut called = Vec::new();
        rate.lines.retain(|account, line| {
            let tenant = self.access.tenant(*account);
            let ready = tenant.map_or(u64::MAX, |tenant| tenant.publishes_ready(now.0));
            for _ in 0..ready {
                let Some(next) = line.first.pop_front().or_else(|| line.then.pop_front()) else {
                    return false;
                };
                called.push(next);
            }
            !(line.first.is_empty() && line.then.is_empty())
        });
        rate.turns_due = (!rate.lines.is_empty()).then_some(now.plus(ACCOUNT_TURN_MS));
        rate.called.extend(&called);
        for id in called {
            self.resume(id, paused::ACCOUNT_RATE);
        }
    }
}
