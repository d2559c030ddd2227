//! What waits to be told: a lane for each event that has something waiting.
//!
//! Called  by [`Notifier`](super::Notifier), which runs a lane from its first notification to its last.
//! Holds   - a lane is there as long as it is run, and no longer: what is not waiting costs nothing but, for an event with a
//!           minimum interval, the time of its last notification;
//!         - an account's waiting notifications are bounded in number and bytes.

use std::collections::{HashMap, VecDeque, hash_map::Entry};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::bytes_of;
use crate::limits::{NOTIFY_ACCOUNT_BYTES_MAX, NOTIFY_ACCOUNT_MAX, NOTIFY_AT_ONCE_PER_ACCOUNT_MAX};
use crate::registry::access::AccountId;
use crate::registry::event::{Event, Notification};

/// An event, of an account.
pub(super) type LaneId = (AccountId, u32);

/// Times of last notifications that are looked through only when they have doubled.
const TIMES_MIN: usize = 1_024;

#[derive(Default)]
pub(super) struct Lanes {
    lanes: HashMap<LaneId, VecDeque<Notification>>,
    accounts: HashMap<AccountId, Load>,
    told: HashMap<LaneId, LastTold>,
    told_sweep_at: usize,
}

/// What an account has waiting, the one that is being told included.
struct Load {
    count: usize,
    bytes: usize,
    slots: Arc<Semaphore>,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            count: 0,
            bytes: 0,
            slots: Arc::new(Semaphore::new(NOTIFY_AT_ONCE_PER_ACCOUNT_MAX)),
        }
    }
}

/// When an event was last told of, and until when it keeps quiet.
struct LastTold {
    at_ms: u64,
    until_ms: u64,
}

/// Where a notification has gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Into a lane that is to be run now.
    New(LaneId),
    /// Behind others.
    Behind,
    /// Nowhere: its event keeps quiet.
    WithinInterval,
}

impl Lanes {
    /// Whether there is no room for it: too much of its account waits.
    pub fn is_full(&self, notification: &Notification) -> bool {
        let is_full = |load: &Load| {
            load.count >= NOTIFY_ACCOUNT_MAX || load.bytes + bytes_of(notification) > NOTIFY_ACCOUNT_BYTES_MAX
        };
        // One that is alone is taken, however large it is.
        self.accounts.get(&notification.account).is_some_and(is_full)
    }

    /// For which there is room.
    pub fn put(&mut self, event: &Event, notification: Notification) -> Place {
        let lane = (notification.account, notification.event_id);
        if is_quiet(&mut self.told, lane, event.interval_ms, notification.at_ms) {
            return Place::WithinInterval;
        }
        let load = self.accounts.entry(notification.account).or_default();
        load.bytes += bytes_of(&notification);
        load.count += 1;
        self.sweep(notification.at_ms);
        match self.lanes.entry(lane) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back(notification);
                Place::Behind
            }
            Entry::Vacant(free) => {
                free.insert(VecDeque::from([notification]));
                Place::New(lane)
            }
        }
    }

    /// The next of a lane; `None`: the lane is gone.
    pub fn next(&mut self, lane: LaneId) -> Option<Notification> {
        let notification = self.lanes.get_mut(&lane)?.pop_front();
        if notification.is_none() {
            self.lanes.remove(&lane);
        }
        notification
    }

    /// It waits no more.
    pub fn done(&mut self, notification: &Notification) {
        let load = self.accounts.get_mut(&notification.account);
        let load = load.expect("something waits, so it has a load");
        load.count -= 1;
        load.bytes -= bytes_of(notification);
        if load.count == 0 {
            self.accounts.remove(&notification.account);
        }
    }

    /// The attempts that an account with something waiting may have running.
    pub fn slots(&self, account: AccountId) -> Arc<Semaphore> {
        let load = self.accounts.get(&account).expect("something waits, so it has a load");
        Arc::clone(&load.slots)
    }

    /// Drops times that matter no more.
    fn sweep(&mut self, now_ms: u64) {
        if self.told.len() >= self.told_sweep_at.max(TIMES_MIN) {
            self.told.retain(|_, last| last.until_ms > now_ms);
            self.told_sweep_at = 2 * self.told.len();
        }
    }
}

/// Whether an event keeps quiet at this time; if not, its interval begins anew.
fn is_quiet(told: &mut HashMap<LaneId, LastTold>, lane: LaneId, interval_ms: u64, at_ms: u64) -> bool {
    if interval_ms == 0 {
        told.remove(&lane);
        return false;
    }
    // The interval is the one of now: it may have been changed. A clock that was set back ends it.
    let is_quiet = told
        .get(&lane)
        .is_some_and(|last| (last.at_ms..last.at_ms.saturating_add(interval_ms)).contains(&at_ms));
    if !is_quiet {
        let until_ms = at_ms.saturating_add(interval_ms);
        told.insert(lane, LastTold { at_ms, until_ms });
    }
    is_quiet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::channel::ChannelId;

    fn notification(account: u32, event_id: u32, at_ms: u64) -> Notification {
        Notification {
            account: AccountId(account),
            event_id,
            channel: ChannelId::new(3).unwrap(),
            current: at_ms.to_string().into(),
            at_ms,
        }
    }

    fn every(interval_ms: u64) -> Event {
        Event {
            interval_ms,
            ..Event::default()
        }
    }

    #[test]
    fn a_lane_keeps_its_order_and_is_gone_when_it_is_empty() {
        let mut lanes = Lanes::default();
        let lane = (AccountId(1), 7);
        assert_eq!(lanes.put(&every(0), notification(1, 7, 1)), Place::New(lane));
        assert_eq!(lanes.put(&every(0), notification(1, 7, 2)), Place::Behind);
        assert_eq!(
            lanes.put(&every(0), notification(1, 8, 3)),
            Place::New((AccountId(1), 8))
        );
        let first = lanes.next(lane).unwrap();
        assert_eq!(first.at_ms, 1);
        // While the first is told, the lane is there.
        assert_eq!(lanes.put(&every(0), notification(1, 7, 4)), Place::Behind);
        lanes.done(&first);
        for at_ms in [2, 4] {
            let next = lanes.next(lane).unwrap();
            assert_eq!(next.at_ms, at_ms);
            lanes.done(&next);
        }
        assert_eq!(lanes.next(lane), None);
        let other = lanes.next((AccountId(1), 8)).unwrap();
        lanes.done(&other);
        assert_eq!(lanes.next((AccountId(1), 8)), None);
        assert!(lanes.lanes.is_empty() && lanes.accounts.is_empty() && lanes.told.is_empty());
    }

    #[test]
    fn an_account_is_bounded_and_another_is_not_affected() {
        let mut lanes = Lanes::default();
        for at_ms in 0..NOTIFY_ACCOUNT_MAX as u64 {
            assert!(!lanes.is_full(&notification(1, 7, at_ms)));
            lanes.put(&every(0), notification(1, 7, at_ms));
        }
        assert!(lanes.is_full(&notification(1, 8, 0)) && !lanes.is_full(&notification(2, 7, 0)));
        let first = lanes.next((AccountId(1), 7)).unwrap();
        lanes.done(&first);
        assert!(!lanes.is_full(&notification(1, 8, 0)));

        let mut lanes = Lanes::default();
        let large = || Notification {
            current: "1".repeat(NOTIFY_ACCOUNT_BYTES_MAX).into(),
            ..notification(1, 7, 0)
        };
        assert!(!lanes.is_full(&large()));
        lanes.put(&every(0), large());
        assert!(lanes.is_full(&notification(1, 7, 0)));
    }

    #[test]
    fn an_event_keeps_quiet_for_its_interval_since_it_was_last_told() {
        let mut lanes = Lanes::default();
        let mut told = |interval_ms, at_ms| {
            let is_told = lanes.put(&every(interval_ms), notification(1, 7, at_ms)) != Place::WithinInterval;
            while let Some(next) = lanes.next((AccountId(1), 7)) {
                lanes.done(&next);
            }
            is_told
        };
        for (interval_ms, at_ms, is_told) in [
            (1_000, 10_000, true),
            (1_000, 10_999, false),
            (1_000, 11_000, true),
            (1_000, 11_500, false),
            (500, 11_500, true),
            (0, 11_501, true),
            (1_000, 11_502, true),
            (1_000, 11_000, true),
        ] {
            assert_eq!(told(interval_ms, at_ms), is_told, "{interval_ms} {at_ms}");
        }
        // Times that are over are not kept.
        for event_id in 0..10 * TIMES_MIN as u32 {
            let at_ms = 20_000 + u64::from(event_id) * 10_000;
            lanes.put(&every(1_000), notification(event_id, event_id, at_ms));
        }
        assert!(lanes.told.len() <= TIMES_MIN);
    }
}
