//! Goal: nothing is answered before it is committed, and the cores are told exactly what is. Method: a store in memory that
//! commits when it is told to.
use std::collections::BTreeSet;
use std::task::Poll;

use super::*;
use crate::registry::event::{NotifyType, Operator};

/// A store of which a test holds the commits.
#[derive(Default)]
pub(crate) struct FakeBooks {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    units: Vec<Vec<Record>>,
    waiting: Vec<Box<dyn FnOnce() + Send>>,
    holds: bool,
    channels: BTreeMap<(AccountId, ChannelId), Channel>,
}

impl FakeBooks {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// From now on nothing is committed.
    fn hold(&self) {
        self.kept().holds = true;
    }

    fn commit(&self) {
        let waiting = {
            let mut kept = self.kept();
            kept.holds = false;
            std::mem::take(&mut kept.waiting)
        };
        waiting.into_iter().for_each(|then| then());
    }

    /// The store stops: what waits is never committed.
    fn stop(&self) {
        self.kept().waiting.clear();
    }

    /// The records since the last call, unit by unit.
    pub(crate) fn take(&self) -> Vec<Vec<Record>> {
        std::mem::take(&mut self.kept().units)
    }

    pub(crate) fn put_channel(&self, account: AccountId, channel: ChannelId, name: &str) {
        let entry = Channel {
            name: name.to_owned(),
            ..Channel::default()
        };
        self.kept().channels.insert((account, channel), entry);
    }
}

impl Books for FakeBooks {
    fn persist(&self, records: Vec<Record>, then: Box<dyn FnOnce() + Send>) {
        let mut kept = self.kept();
        kept.units.push(records);
        match kept.holds {
            true => kept.waiting.push(then),
            false => {
                drop(kept);
                then();
            }
        }
    }

    fn channel(&self, account: AccountId, channel: ChannelId) -> Result<Option<Channel>, String> {
        Ok(self.kept().channels.get(&(account, channel)).cloned())
    }
}

/// What the cores were told.
type Told = Arc<Mutex<Vec<AccountsChange>>>;

pub(crate) fn desk() -> (Desk, Arc<FakeBooks>, Told) {
    let (books, told) = (Arc::<FakeBooks>::default(), Told::default());
    let tell = Arc::clone(&told);
    let desk = Desk::new(DeskParts {
        accounts: Arc::default(),
        events: Vec::new(),
        newest_account: 0,
        books: books.clone(),
        tell: Box::new(move |change| {
            tell.lock().unwrap().push(change);
            Box::pin(std::future::ready(()))
        }),
    });
    (desk, books, told)
}

pub(crate) fn channel(number: u32) -> ChannelId {
    ChannelId::new(number).unwrap()
}

/// An event that is complete.
pub(crate) fn event(post_url: &str) -> Event {
    Event {
        channel: Some(channel(3)),
        description: "well too warm".to_owned(),
        notify_type: NotifyType::Http,
        post_url: post_url.to_owned(),
        is_enabled: true,
        source: "temp".to_owned(),
        operator: Operator::Greater,
        threshold: "30".to_owned(),
        ..Event::default()
    }
}

fn named(user_id: &str) -> NewAccount {
    NewAccount {
        user_id: Some(user_id.to_owned()),
        ..NewAccount::default()
    }
}

fn last(told: &Told) -> AccountsChange {
    told.lock().unwrap().last().expect("the cores were told").clone()
}

#[tokio::test]
async fn an_account_is_answered_told_and_seen_once_it_is_committed_and_not_before() {
    let (desk, books, told) = desk();
    books.hold();
    let mut adding = Box::pin(desk.add_account(named("U004217")));
    for _ in 0..10 {
        let polled = std::future::poll_fn(|context| Poll::Ready(adding.as_mut().poll(context))).await;
        assert!(polled.is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(books.kept().units.len(), 1, "it was handed over");
    assert!(desk.accounts().by_user_id("U004217").is_none());
    assert!(told.lock().unwrap().is_empty());
    books.commit();
    let account = adding.await.unwrap();
    assert_eq!(books.take(), [[Record::AccountPut(Box::new(account.clone()))]]);
    assert_eq!(last(&told).accounts.by_user_id("U004217").unwrap().account, account);
    assert!(last(&told).ended.is_none());
    assert_ne!(account.api_token, account.device_token);
}

#[tokio::test]
async fn a_change_goes_on_when_whoever_asked_has_hung_up() {
    let (desk, books, told) = desk();
    books.hold();
    let adding = tokio::time::timeout(std::time::Duration::from_millis(20), desk.add_account(named("U000001")));
    assert!(adding.await.is_err());
    books.commit();
    while told.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(desk.accounts().by_user_id("U000001").is_some());
}

#[tokio::test]
async fn what_a_stopping_store_does_not_commit_is_no_success() {
    let (desk, books, told) = desk();
    books.hold();
    let adding = tokio::spawn({
        let desk = desk.clone();
        async move { desk.add_account(named("U000001")).await }
    });
    while books.kept().waiting.is_empty() {
        tokio::task::yield_now().await;
    }
    books.stop();
    assert_eq!(adding.await.unwrap(), Err(DeskError::Stopping));
    assert!(told.lock().unwrap().is_empty() && desk.accounts().iter().next().is_none());
}

#[tokio::test]
async fn user_ids_are_given_or_chosen_and_no_two_accounts_have_one() {
    let (desk, _, _) = desk();
    let taken = desk.add_account(named("U004217")).await.unwrap();
    assert_eq!(
        desk.add_account(named("U004217")).await,
        Err(DeskError::UserIdTaken("U004217".to_owned()))
    );
    for bad in ["", "U1", "u004217", "U00421x", "U0042170", "U00421٣"] {
        let refused = desk.add_account(named(bad)).await;
        assert_eq!(refused, Err(DeskError::BadUserId(bad.to_owned())), "{bad}");
    }
    let mut user_ids = BTreeSet::from([taken.user_id.clone()]);
    let mut ids = vec![taken.id];
    for _ in 0..20 {
        let account = desk.add_account(NewAccount::default()).await.unwrap();
        assert!(is_user_id(&account.user_id) && user_ids.insert(account.user_id));
        ids.push(account.id);
    }
    assert!(
        ids.is_sorted() && ids.first() == Some(&AccountId(1)),
        "0 is no account's"
    );
    // Two at once, the same id: one of them.
    let both = tokio::join!(desk.add_account(named("U000009")), desk.add_account(named("U000009")));
    assert!(both.0.is_ok() != both.1.is_ok());
    // A removed account leaves its user id, never its number.
    let newest = desk.add_account(named("U000010")).await.unwrap();
    desk.remove("U000010").await.unwrap();
    assert!(desk.add_account(named("U000010")).await.unwrap().id > newest.id);
}

#[tokio::test]
async fn the_cores_are_told_whose_connections_end_and_why() {
    let (desk, _, told) = desk();
    let account = desk.add_account(named("U000001")).await.unwrap();

    let rotated = desk.rotate("U000001", Tokens::Device).await.unwrap();
    let change = last(&told);
    let ended = change.ended.unwrap();
    assert_eq!(ended.account, account.id);
    assert!(matches!(ended.why, EndedWhy::TokenRotated { before } if before == account.device_token));
    let accounts = &change.accounts;
    assert!(accounts.by_device_token(account.device_token.as_str()).is_none());
    assert!(accounts.by_device_token(rotated.device_token.as_str()).is_some());
    assert_eq!(rotated.api_token, account.api_token);

    let rotated = desk.rotate("U000001", Tokens::Api).await.unwrap();
    assert!(last(&told).ended.is_none() && rotated.api_token != account.api_token);
    let both = desk.rotate("U000001", Tokens::Both).await.unwrap();
    assert!(both.api_token != rotated.api_token && both.device_token != rotated.device_token);
    assert!(last(&told).ended.is_some());

    assert!(desk.suspend("U000001").await.unwrap().is_suspended);
    assert!(matches!(
        last(&told).ended,
        Some(Ended {
            why: EndedWhy::Suspended,
            ..
        })
    ));
    let said = told.lock().unwrap().len();
    desk.suspend("U000001").await.unwrap();
    assert_eq!(told.lock().unwrap().len(), said, "nothing has changed");
    assert!(!desk.resume("U000001").await.unwrap().is_suspended);
    assert!(last(&told).ended.is_none());

    let removed = desk.remove("U000001").await.unwrap();
    let change = last(&told);
    assert!(matches!(
        change.ended.unwrap().why,
        EndedWhy::Removed { device_token } if device_token == removed.device_token
    ));
    assert!(change.accounts.iter().next().is_none());
    for gone in [
        desk.suspend("U000001").await,
        desk.remove("U000001").await,
        desk.rotate("U000001", Tokens::Api).await,
    ] {
        assert_eq!(gone, Err(DeskError::UnknownUserId("U000001".to_owned())));
    }
    assert_eq!(
        desk.create_event(account.id, Event::default()).await,
        Err(DeskError::NoAccount)
    );
}

#[tokio::test]
async fn changes_made_at_the_same_time_are_all_kept_and_told_in_order() {
    let (desk, books, told) = desk();
    let account = desk.add_account(named("U000001")).await.unwrap().id;
    books.hold();
    let changes: Vec<_> = (0..50)
        .map(|_| {
            let desk = desk.clone();
            tokio::spawn(async move { desk.create_event(account, Event::default()).await.unwrap() })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for change in changes {
        while !change.is_finished() {
            books.commit();
            tokio::task::yield_now().await;
        }
        ids.insert(change.await.unwrap());
    }
    assert_eq!(ids, (1..=50).collect());
    assert_eq!(desk.events(account).len(), 50);
    assert_eq!(desk.accounts().tenant(account).unwrap().account.next_event, 51);
    let versions: Vec<u64> = {
        let told = told.lock().unwrap();
        let version =
            |change: &AccountsChange| crate::registry::access::Access::Platform(Arc::clone(&change.accounts)).version();
        told.iter().map(version).collect()
    };
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
}

#[tokio::test]
async fn events_get_ids_of_their_account_and_only_enabled_ones_reach_the_cores() {
    let (desk, books, told) = desk();
    let one = desk.add_account(named("U000001")).await.unwrap().id;
    let two = desk.add_account(named("U000002")).await.unwrap().id;
    books.take();
    let defaults = Event::default();
    assert_eq!(desk.create_event(one, defaults).await, Ok(1));
    let units = books.take();
    assert!(
        matches!(&units[0][..], [Record::EventPut { event, .. }, Record::AccountPut(account)]
            if event.event_id == 1 && account.next_event == 2),
        "the id and the event are one unit: {units:?}"
    );
    assert_eq!(desk.create_event(one, event("http://example.org/hook")).await, Ok(2));
    assert_eq!(desk.create_event(two, event("https://example.org")).await, Ok(1));
    let in_snapshot = |account| {
        let change = last(&told);
        let tenant = change.accounts.tenant(account).unwrap().clone();
        tenant
            .events
            .values()
            .flatten()
            .map(|event| event.event_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(in_snapshot(one), [2]);
    assert_eq!(in_snapshot(two), [1]);
    assert_eq!(desk.events(one).len(), 2);

    let disable = |event: &mut Event| {
        event.is_enabled = false;
        // An id is nobody's to change.
        event.event_id = 77;
        Ok(())
    };
    desk.change_event(one, 2, disable).await.unwrap();
    assert!(in_snapshot(one).is_empty());
    assert_eq!(desk.event(one, 2).unwrap().event_id, 2);
    assert_eq!(desk.change_event(two, 2, disable).await, Err(DeskError::NoEvent));
    assert_eq!(desk.remove_event(two, 2).await, Err(DeskError::NoEvent));
    desk.remove_event(one, 2).await.unwrap();
    assert_eq!(
        desk.create_event(one, Event::default()).await,
        Ok(3),
        "an id is given once"
    );
    // What a closure refuses is not done.
    let refused = desk
        .change_event(one, 1, |event| {
            event.description = "x".to_owned();
            Err(DeskError::NoEvent)
        })
        .await;
    assert!(refused.is_err() && desk.event(one, 1).unwrap().description.is_empty());
}

#[tokio::test]
async fn an_event_is_enabled_only_when_it_is_complete() {
    let (desk, _, _) = desk();
    let account = desk.add_account(NewAccount::default()).await.unwrap().id;
    let field_of = |result: Result<u32, DeskError>| match result {
        Ok(_) => "",
        Err(DeskError::BadParameter { field, .. }) => field,
        Err(other) => panic!("{other:?}"),
    };
    let complete = event("http://example.org/");
    type Change = fn(&mut Event);
    let cases: [(Change, &str); 14] = [
        (|_| {}, ""),
        (|event| event.channel = None, "mapped_ch"),
        (|event| event.source.clear(), "source"),
        (|event| event.threshold.clear(), "threshold"),
        (|event| event.post_url.clear(), "post_url"),
        (
            |event| {
                event.post_url.clear();
                event.notify_type = NotifyType::Email;
            },
            "",
        ),
        (|event| event.description = "é".repeat(TEXT), ""),
        (|event| event.description = "é".repeat(TEXT + 1), "description"),
        (|event| event.source = "s".repeat(257), "source"),
        (|event| event.threshold = "1".repeat(257), "threshold"),
        (
            |event| event.post_url = format!("http://h/{}", "x".repeat(2_048)),
            "post_url",
        ),
        (|event| event.post_url = "ftp://example.org/".to_owned(), "post_url"),
        (|event| event.post_url = "example.org".to_owned(), "post_url"),
        (|event| event.interval_ms = u64::MAX, "interval"),
    ];
    const TEXT: usize = crate::limits::TEXT_CHARS_MAX;
    for (index, (change, field)) in cases.into_iter().enumerate() {
        let mut event = complete.clone();
        change(&mut event);
        assert_eq!(
            field_of(desk.create_event(account, event.clone()).await),
            field,
            "case {index}"
        );
        // What is not there yet may be missing while the event is disabled; what is wrong may not.
        event.is_enabled = false;
        let is_missing = matches!(index, 1..=4);
        let field = if is_missing { "" } else { field };
        assert_eq!(
            field_of(desk.create_event(account, event).await),
            field,
            "case {index}, disabled"
        );
    }
    let id = desk.create_event(account, Event::default()).await.unwrap();
    let enable = |event: &mut Event| {
        event.is_enabled = true;
        Ok(())
    };
    assert!(desk.change_event(account, id, enable).await.is_err());
    assert!(!desk.event(account, id).unwrap().is_enabled);
}

#[tokio::test]
async fn an_account_has_a_bounded_number_of_events() {
    let (desk, _, _) = desk();
    let account = desk.add_account(NewAccount::default()).await.unwrap().id;
    for _ in 0..EVENTS_PER_ACCOUNT_MAX {
        desk.create_event(account, Event::default()).await.unwrap();
    }
    assert_eq!(
        desk.create_event(account, Event::default()).await,
        Err(DeskError::TooManyEvents)
    );
    desk.remove_event(account, 1).await.unwrap();
    assert!(desk.create_event(account, Event::default()).await.is_ok());
}

#[tokio::test]
async fn a_removed_channel_takes_its_events_and_the_mapping_of_new_devices_along() {
    let (desk, books, told) = desk();
    let mut new = NewAccount::default();
    new.settings.default_channel = Some(DefaultChannel::Channel(channel(3)));
    let account = desk.add_account(new).await.unwrap().id;
    assert!(
        matches!(&books.take()[0][..], [Record::AccountPut(_), Record::ChannelPut { channel: made, .. }]
            if *made == channel(3)),
        "the channel is made with the account"
    );
    desk.create_event(account, event("http://h/")).await.unwrap();
    let elsewhere = Event {
        channel: Some(channel(4)),
        ..event("http://h/")
    };
    desk.create_event(account, elsewhere).await.unwrap();
    books.take();
    desk.remove_channel(account, channel(3)).await.unwrap();
    let units = books.take();
    assert!(
        matches!(&units[0][..], [Record::ChannelRemoved { .. }, Record::AccountPut(account)]
            if account.default_channel.is_none()),
        "{units:?}"
    );
    let ids: Vec<u32> = desk.events(account).iter().map(|event| event.event_id).collect();
    assert_eq!(ids, [2]);
    assert_eq!(last(&told).accounts.tenant(account).unwrap().events.len(), 1);
}

#[tokio::test]
async fn the_default_channel_is_made_unless_it_is_there() {
    let (desk, books, _) = desk();
    let account = desk.add_account(named("U000001")).await.unwrap().id;
    books.put_channel(account, channel(1), "water");
    let to = |default_channel| AccountSettings {
        default_channel: Some(default_channel),
        devices_max: Some(7),
        ..AccountSettings::default()
    };
    books.take();
    for (number, made) in [(1, false), (2, true)] {
        let settings = to(DefaultChannel::Channel(channel(number)));
        let account = desk.change_account("U000001", settings).await.unwrap();
        assert_eq!(
            (account.default_channel, account.devices_max),
            (Some(channel(number)), 7)
        );
        let has_made = books.take()[0]
            .iter()
            .any(|record| matches!(record, Record::ChannelPut { .. }));
        assert_eq!(has_made, made);
    }
    let account = desk.change_account("U000001", to(DefaultChannel::Off)).await.unwrap();
    assert_eq!(account.default_channel, None);
}

#[tokio::test]
async fn an_account_says_of_itself_only_what_makes_sense() {
    let (desk, _, _) = desk();
    let id = desk.add_account(NewAccount::default()).await.unwrap().id;
    let account = || desk.accounts().tenant(id).unwrap().account.clone();
    let change = |field: &str, text: &str| {
        let change = serde_json::from_value(serde_json::json!({ field: text })).unwrap();
        desk.change_user(id, change)
    };
    for (field, good) in [
        ("email1", "ops@example.org"),
        ("email1", ""),
        ("email2", "a.b+c@xn--bcher-kva.example"),
        ("organization", "Example Farm"),
        ("locale", "Europe/Vienna"),
        ("user_alias", "Gewächshaus"),
    ] {
        assert_eq!(change(field, good).await, Ok(()), "{field} {good}");
    }
    let known = account();
    assert_eq!(
        (&*known.email1, &*known.locale, &*known.user_alias),
        ("", "Europe/Vienna", "Gewächshaus")
    );
    change("locale", "asia/tokyo").await.unwrap();
    assert_eq!(account().locale, "Asia/Tokyo", "in its own spelling");
    let known = account();
    let long = "x".repeat(crate::limits::TEXT_CHARS_MAX + 1);
    for (field, bad) in [
        ("email1", "ops"),
        ("email1", "ops@example.org, x@example.org"),
        ("email1", "ops@example.org\r\nBcc: x@example.org"),
        ("email2", "Ops <ops@example.org>"),
        ("organization", &long),
        ("user_alias", &long),
        ("locale", ""),
        ("locale", "Mars/Olympus"),
        ("locale", "Etc/Unknown"),
        ("locale", "../../etc/passwd"),
        ("locale", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ] {
        let refused = change(field, bad).await;
        assert!(
            matches!(refused, Err(DeskError::BadParameter { field: named, .. }) if named == field),
            "{field} {bad}: {refused:?}"
        );
    }
    assert_eq!(account(), known);
}

#[tokio::test]
async fn the_lock_of_an_account_is_held_by_one_at_a_time_and_does_not_bar_a_change() {
    let (desk, _, _) = desk();
    let one = desk.add_account(NewAccount::default()).await.unwrap().id;
    let two = desk.add_account(NewAccount::default()).await.unwrap().id;
    let held = desk.lock(one).await;
    let brief = std::time::Duration::from_millis(10);
    assert!(tokio::time::timeout(brief, desk.lock(one)).await.is_err());
    assert!(tokio::time::timeout(brief, desk.lock(two)).await.is_ok());
    assert!(desk.create_event(one, Event::default()).await.is_ok());
    drop(held);
    assert!(tokio::time::timeout(brief, desk.lock(one)).await.is_ok());
}

#[test]
fn a_desk_begins_with_what_was_stored() {
    let token = Token::from_random([1; 16]);
    let other = Token::from_random([2; 16]);
    let account = Account::new(AccountId(4), "U000004", token, other, 0);
    let (disabled, enabled) = (
        Event {
            event_id: 1,
            ..Event::default()
        },
        Event {
            event_id: 2,
            ..event("http://h/")
        },
    );
    let events = vec![disabled, enabled];
    let desk = Desk::new(DeskParts {
        accounts: Arc::new(Accounts::default().with(account, events.clone())),
        events: vec![(AccountId(4), events.clone()), (AccountId(3), events.clone())],
        newest_account: 9,
        books: Arc::<FakeBooks>::default(),
        tell: Box::new(|_| Box::pin(std::future::ready(()))),
    });
    assert_eq!(desk.events(AccountId(4)), events);
    assert!(desk.events(AccountId(3)).is_empty());
    let account = desk.new_account(&NewAccount::default()).unwrap();
    assert_eq!(account.id, AccountId(10));
}
