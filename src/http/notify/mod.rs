//! Telling of events: webhooks and mail.
//!
//! Owns    what waits to be told, from the door that the cores hold to the last attempt.
//! Called  by the cores through [`Door`]; by `server`, which makes both ends and has [`Notifier::run`] run on the control thread.
//! Holds   - ingestion waits for nobody: where there is no room, a notification is dropped and counted;
//!         - notifications of one event are told one after another, in order; those of different events are not held up by
//!           each other: a target that does not answer has a few attempts of its account running, and none while it waits for
//!           the next;
//!         - what is told, and where, is what the event says when its turn comes; one that has gone or is disabled tells
//!           nobody;
//!         - waiting notifications are bounded in number and bytes, over all and for each account.
//!
//! ```text
//! cores ─▶ Door ─▶ inbox ─▶ lanes, one per event ─▶ message ─▶ webhook (target)
//!                                                          └─▶ mail
//! ```

mod lanes;
pub mod mail;
mod message;
pub mod target;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc};

use super::desk::Desk;
use crate::limits::{
    MAILS_AT_ONCE_MAX, NOTIFICATIONS_BYTES_MAX, NOTIFICATIONS_MAX, NOTIFY_LOG_MS, NOTIFY_RETRY_MS, WEBHOOK_TIMEOUT_MS,
    WEBHOOKS_AT_ONCE_MAX,
};
use crate::registry::account::Account;
use crate::registry::event::{Event, Notification, NotifyType};
use lanes::{Lanes, Place};
use mail::{MailSettings, Mails, Posted};
use target::Allow;
use webhook::{Failure, Webhooks};

#[derive(Clone, Debug)]
pub struct NotifySettings {
    /// `--webhook-allow`
    pub allow: Allow,
    /// `--smtp-relay` and `--mail-from`; `None`: mail is logged.
    pub mail: Option<MailSettings>,
    /// For one attempt.
    pub timeout_ms: u64,
    /// Before the second attempt, and before the third, which is the last.
    pub retry_ms: [u64; 2],
}

impl Default for NotifySettings {
    fn default() -> NotifySettings {
        NotifySettings {
            allow: Allow::default(),
            mail: None,
            timeout_ms: WEBHOOK_TIMEOUT_MS,
            retry_ms: NOTIFY_RETRY_MS,
        }
    }
}

/// What has become of notifications since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NotifyReport {
    /// Webhooks that were answered with 2xx.
    pub delivered: u64,
    /// Webhooks and mails that no attempt brought to its end.
    pub failed: u64,
    /// Webhooks to a place that `--webhook-allow` does not allow.
    pub refused: u64,
    /// The account had too much waiting.
    pub dropped: u64,
    /// The event had gone or was disabled when its turn came.
    pub outdated: u64,
    /// Left out for the event's minimum interval.
    pub within_interval: u64,
    /// Mails that the relay took, one for both addresses of an account.
    pub mailed: u64,
    /// Mails that were logged, for want of a relay or of an address.
    pub mails_logged: u64,
    /// Mails beyond those of a day.
    pub mails_over_limit: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Not told yet.
    pub waiting: u64,
}

#[derive(Default)]
struct Figures {
    delivered: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    outdated: AtomicU64,
    within_interval: AtomicU64,
    mailed: AtomicU64,
    mails_logged: AtomicU64,
    mails_over_limit: AtomicU64,
    retries: AtomicU64,
}

/// What one more of it costs: an entry that waits, without its value.
const NOTIFICATION_BYTES: usize = 2 * size_of::<Notification>();

fn bytes_of(notification: &Notification) -> usize {
    NOTIFICATION_BYTES + notification.current.len()
}

/// How much waits, from the door on.
#[derive(Default)]
struct Waiting {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Waiting {
    /// Cores that come at the same instant may overshoot by one notification each.
    fn has_room(&self, bytes: usize) -> bool {
        self.count.load(Ordering::Relaxed) < NOTIFICATIONS_MAX
            && self.bytes.load(Ordering::Relaxed) + bytes <= NOTIFICATIONS_BYTES_MAX
    }

    fn add(&self, bytes: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Where the cores put notifications.
#[derive(Clone)]
pub struct Door {
    sender: mpsc::Sender<Notification>,
    waiting: Arc<Waiting>,
}

/// The other side of the door.
pub struct Inbox {
    receiver: mpsc::Receiver<Notification>,
    waiting: Arc<Waiting>,
}

/// Needs no runtime: the cores have their door before the control thread begins.
pub fn door() -> (Door, Inbox) {
    let (sender, receiver) = mpsc::channel(NOTIFICATIONS_MAX);
    let waiting = Arc::<Waiting>::default();
    let door = Door {
        sender,
        waiting: Arc::clone(&waiting),
    };
    (door, Inbox { receiver, waiting })
}

impl Door {
    /// As the cores hold it.
    pub fn of_cores(&self) -> crate::worker::Notifier {
        let door = self.clone();
        Arc::new(move |notification| door.take(notification))
    }

    /// At once; false if there is no room.
    pub fn take(&self, notification: Notification) -> bool {
        let bytes = bytes_of(&notification);
        if !self.waiting.has_room(bytes) {
            return false;
        }
        // Before it is seen, so that it is never taken away before it was added.
        self.waiting.add(bytes);
        let is_taken = self.sender.try_send(notification).is_ok();
        if !is_taken {
            self.waiting.remove(bytes);
        }
        is_taken
    }
}

/// Tells of events. A handle.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    desk: Desk,
    webhooks: Webhooks,
    mails: Mails,
    retry_ms: [u64; 2],
    waiting: Arc<Waiting>,
    lanes: Mutex<Lanes>,
    /// The right to post a webhook, to send a mail, and to look into the store.
    posting: Semaphore,
    mailing: Semaphore,
    looking: Semaphore,
    figures: Figures,
    /// When a failure was last logged at a level that people read.
    logged: Mutex<Option<Instant>>,
}

/// How telling of one notification ended.
enum Told {
    Delivered,
    Mailed(Posted),
    Outdated,
    Failed,
    Refused,
}

/// While it lives, an attempt may run.
struct Slot<'a> {
    _of_account: OwnedSemaphorePermit,
    _of_all: SemaphorePermit<'a>,
}

impl Notifier {
    /// Needs no runtime. Channels' names are those of the desk's store.
    pub fn new(settings: NotifySettings, desk: Desk, inbox: &Inbox) -> Notifier {
        let timeout = Duration::from_millis(settings.timeout_ms);
        Notifier(Arc::new(Inner {
            desk,
            webhooks: Webhooks::new(settings.allow, timeout),
            mails: Mails::new(settings.mail),
            retry_ms: settings.retry_ms,
            waiting: Arc::clone(&inbox.waiting),
            lanes: Mutex::default(),
            posting: Semaphore::new(WEBHOOKS_AT_ONCE_MAX),
            mailing: Semaphore::new(MAILS_AT_ONCE_MAX),
            looking: Semaphore::new(1),
            figures: Figures::default(),
            logged: Mutex::default(),
        }))
    }

    /// On a tokio runtime that has [`NOTIFY_THREADS_MAX`](crate::limits::NOTIFY_THREADS_MAX) threads for what blocks. It ends
    /// when no core has the door any more.
    pub async fn run(self, mut inbox: Inbox) {
        while let Some(notification) = inbox.receiver.recv().await {
            self.take(notification);
        }
    }

    pub fn report(&self) -> NotifyReport {
        let figures = &self.0.figures;
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        NotifyReport {
            delivered: read(&figures.delivered),
            failed: read(&figures.failed),
            refused: read(&figures.refused),
            dropped: read(&figures.dropped),
            outdated: read(&figures.outdated),
            within_interval: read(&figures.within_interval),
            mailed: read(&figures.mailed),
            mails_logged: read(&figures.mails_logged),
            mails_over_limit: read(&figures.mails_over_limit),
            retries: read(&figures.retries),
            waiting: self.0.waiting.count.load(Ordering::Relaxed) as u64,
        }
    }

    /// Into the lane of its event.
    fn take(&self, notification: Notification) {
        let Inner { figures, waiting, .. } = &*self.0;
        let bytes = bytes_of(&notification);
        // An event that is met all the time costs no more than this look.
        let is_full = self.lanes().is_full(&notification);
        let event = (!is_full).then(|| self.event(&notification)).flatten();
        let left_out = match event {
            None if is_full => Some(&figures.dropped),
            None => Some(&figures.outdated),
            Some((_, event)) => {
                let place = self.lanes().put(&event, notification);
                match place {
                    Place::New(lane) => {
                        let notifier = self.clone();
                        tokio::spawn(async move { notifier.run_lane(lane).await });
                        None
                    }
                    Place::Behind => None,
                    Place::WithinInterval => Some(&figures.within_interval),
                }
            }
        };
        if let Some(figure) = left_out {
            count(figure);
            waiting.remove(bytes);
        }
    }

    /// One event's, until none waits.
    async fn run_lane(&self, lane: lanes::LaneId) {
        loop {
            let Some(notification) = self.lanes().next(lane) else {
                return;
            };
            let told = self.tell(&notification).await;
            let figures = &self.0.figures;
            count(match told {
                Told::Delivered => &figures.delivered,
                Told::Mailed(Posted::Taken) => &figures.mailed,
                Told::Mailed(Posted::Logged) => &figures.mails_logged,
                Told::Mailed(Posted::OverLimit) => &figures.mails_over_limit,
                Told::Outdated => &figures.outdated,
                Told::Failed => &figures.failed,
                Told::Refused => &figures.refused,
            });
            self.lanes().done(&notification);
            self.0.waiting.remove(bytes_of(&notification));
        }
    }

    async fn tell(&self, notification: &Notification) -> Told {
        let Some((account, event)) = self.event(notification) else {
            return Told::Outdated;
        };
        let channel_name = self.channel_name(notification).await;
        let message = match message::Message::new(&event, notification, &channel_name) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, event = event.event_id, "a value is no JSON, and its event is told to nobody");
                return Told::Failed;
            }
        };
        match event.notify_type {
            NotifyType::Email => self.mail(&account, notification, &message).await,
            NotifyType::Http => match target::parse(&event.post_url) {
                Ok(url) => self.post(url, notification, &message).await,
                Err(target::BadUrl) => Told::Failed,
            },
        }
    }

    async fn channel_name(&self, notification: &Notification) -> String {
        let _turn = self.0.looking.acquire().await.expect("it is never closed");
        match self.0.desk.channel(notification.account, notification.channel).await {
            Ok(channel) => channel.unwrap_or_default().name,
            Err(error) => {
                tracing::warn!(%error, "a channel's name cannot be read, and an event is told without it");
                String::new()
            }
        }
    }

    async fn post(&self, url: Url, notification: &Notification, message: &message::Message<'_>) -> Told {
        let json = message.json();
        let host = url.host_str().unwrap_or_default().to_owned();
        let mut attempt = 0;
        loop {
            let slot = self.slot(notification, &self.0.posting).await;
            let posted = self.0.webhooks.post(url.clone(), json.clone()).await;
            drop(slot);
            let failure = match posted {
                Ok(()) => return Told::Delivered,
                Err(failure @ Failure::Refused(_)) => {
                    self.log(notification, &host, &failure);
                    return Told::Refused;
                }
                Err(failure) => failure,
            };
            if let Err(told) = self.wait_to_retry(&mut attempt, notification, &host, &failure).await {
                return told;
            }
        }
    }

    async fn mail(&self, account: &Account, notification: &Notification, message: &message::Message<'_>) -> Told {
        let Some(mut mail) = self.0.mails.compose(account, message) else {
            return Told::Mailed(Posted::OverLimit);
        };
        let mut attempt = 0;
        loop {
            let slot = self.slot(notification, &self.0.mailing).await;
            let posted = mail.send().await;
            drop(slot);
            let failure = match posted {
                Ok(posted) => return Told::Mailed(posted),
                Err(failure) if failure.is_final => {
                    self.log(notification, "the mail relay", &failure);
                    return Told::Failed;
                }
                Err(failure) => failure,
            };
            let host = "the mail relay";
            if let Err(told) = self.wait_to_retry(&mut attempt, notification, host, &failure).await {
                return told;
            }
        }
    }

    /// Err: there is no further attempt.
    async fn wait_to_retry(
        &self,
        attempt: &mut usize,
        notification: &Notification,
        host: &str,
        failure: &(dyn std::error::Error + Sync),
    ) -> Result<(), Told> {
        let Some(wait_ms) = self.0.retry_ms.get(*attempt) else {
            self.log(notification, host, failure);
            return Err(Told::Failed);
        };
        *attempt += 1;
        tokio::time::sleep(Duration::from_millis(*wait_ms)).await;
        if self.event(notification).is_none() {
            return Err(Told::Outdated);
        }
        count(&self.0.figures.retries);
        Ok(())
    }

    /// The event as it is now, with its account, if it is to be told.
    fn event(&self, notification: &Notification) -> Option<(Account, Event)> {
        let accounts = self.0.desk.accounts();
        let account = &accounts.tenant(notification.account)?.account;
        let event = self.0.desk.event(notification.account, notification.event_id)?;
        (event.is_enabled && !account.is_suspended).then(|| (account.clone(), event))
    }

    /// The right to one attempt: the account's, then that of all.
    async fn slot<'a>(&self, notification: &Notification, of_all: &'a Semaphore) -> Slot<'a> {
        let of_account = self.lanes().slots(notification.account);
        let of_account = of_account.acquire_owned().await.expect("it is never closed");
        let of_all = of_all.acquire().await.expect("it is never closed");
        Slot {
            _of_account: of_account,
            _of_all: of_all,
        }
    }

    /// One line in a while that people read: a target that is down fails often. The URL stays out of it, secrets may be there.
    fn log(&self, notification: &Notification, host: &str, failure: &dyn std::error::Error) {
        let (account, event) = (notification.account.0, notification.event_id);
        let is_due = {
            let mut logged = self.0.logged.lock().expect("nobody panics while holding it");
            let is_due = logged.is_none_or(|at| at.elapsed() >= Duration::from_millis(NOTIFY_LOG_MS));
            if is_due {
                *logged = Some(Instant::now());
            }
            is_due
        };
        match is_due {
            true => tracing::warn!(account, event, host, "nobody could be told of an event: {failure}"),
            false => tracing::debug!(account, event, host, "nobody could be told of an event: {failure}"),
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.0.lanes.lock().expect("nobody panics while holding it")
    }
}

fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}
