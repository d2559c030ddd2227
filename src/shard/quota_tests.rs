//! The bounds of an account at its shards, each on one core and on two; and that whatever is counted goes back to nothing.

use std::sync::Arc;

use super::record::{Backlog, Stored, StoredRetained, StoredSession};
use super::restore::restore;
use super::tests::{Cores, at, packet_id, publish};
use super::*;
use crate::limits::{ACCOUNT_TURN_MS, READ_BYTES_PER_TURN};
use crate::mqtt::client;
use crate::mqtt::packet::{Level, QoS};
use crate::registry::access::{Accounts, AccountsChange, Tenant};
use crate::registry::account::{Account, Token};
use crate::registry::quota::Quotas;

const ONE: AccountId = AccountId(1);
const TWO: AccountId = AccountId(2);

fn account(id: AccountId) -> Account {
    let token = |kind: u8| Token::from_random([kind + id.0 as u8; 16]);
    Account::new(id, &format!("U{:06}", id.0), token(0xa0), token(0xd0), 0)
}

fn topic(id: AccountId, below: &str) -> String {
    format!("{}/{below}", account(id).device_token.as_str())
}

/// The first account is bounded, the second is not.
fn access(quotas: Quotas) -> Access {
    let mut first = account(ONE);
    first.quotas.connections_max = Some(quotas.connections_max);
    first.quotas.sessions_max = Some(quotas.sessions_max);
    first.quotas.subscriptions_max = Some(quotas.subscriptions_max);
    first.quotas.publishes_per_s_max = Some(quotas.publishes_per_s_max);
    first.quotas.kept_bytes_max = Some(quotas.kept_bytes_max);
    Access::Platform(Arc::new(Accounts::default().with(first, []).with(account(TWO), [])))
}

fn on_one_and_two_cores(quotas: Quotas, test: impl Fn(Cores)) {
    for count in [1, 2] {
        let mut cores = Cores::with_access(count, Limits::default(), access(quotas));
        cores.account = ONE;
        test(cores);
    }
}

impl Cores {
    /// The last core: with two, not that of most topics' publishers.
    fn last(&self) -> usize {
        self.shards.len() - 1
    }

    fn tenant(&self) -> Arc<Tenant> {
        Arc::clone(self.shards[0].access.tenant(ONE).unwrap())
    }

    fn total(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        self.shards.iter().map(|shard| of(shard.counters())).sum()
    }

    /// Everything that follows happens, on every core and disk.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.carry_all();
            (0..self.shards.len()).for_each(|core| self.commit(core));
        }
        self.carry_all();
    }

    /// What the connection hears, once everything has happened.
    fn heard(&mut self, core: usize, index: u32) -> Vec<String> {
        self.settle();
        self.sent(core, index)
    }

    fn closes(&mut self, core: usize) -> Vec<(u32, CloseReason)> {
        let closes = self.said[core].extract_if(.., |output| matches!(output, Output::Close(..)));
        let closes = closes.map(|output| match output {
            Output::Close(connection, reason) => (connection.index, reason),
            _ => unreachable!("picked by its kind"),
        });
        closes.collect()
    }

    fn disconnect(&mut self, core: usize, index: u32) {
        let connection = at(index);
        self.input(core, Input::Disconnected { connection });
    }
}

#[test]
fn a_connection_too_many_is_refused_and_ends_nothing() {
    let quotas = Quotas {
        connections_max: 2,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let last = cores.last();
        cores.connect(0, 0, Level::V311, true);
        cores.connect(last, 1, Level::V311, false);
        assert_eq!(cores.heard(last, 1), ["CONNACK 0"]);
        let session_count = cores.shards[last].session_count();
        cores.connect(last, 2, Level::V311, false);
        assert_eq!(cores.shards[last].unsent(at(2)), [0x20, 2, 0, 3]);
        assert_eq!(cores.closes(last), [(2, CloseReason::Refused)]);
        cores.disconnect(last, 2);
        assert_eq!(cores.shards[last].session_count(), session_count);
        assert_eq!(cores.total(|counters| counters.refused_account_connections), 1);
        assert_eq!(cores.total(|counters| counters.connects_refused), 1);
        // The other account has none of these bounds.
        cores.account = TWO;
        (10..20).for_each(|index| cores.connect(last, index, Level::V311, true));
        assert!(cores.closes(last).is_empty());
        // Who leaves makes room.
        cores.account = ONE;
        cores.disconnect(0, 0);
        cores.connect(last, 3, Level::V311, true);
        assert_eq!(cores.heard(last, 3), ["CONNACK 0"]);
        assert_eq!(cores.tenant().usage.connections.now(), 2);
    });
}

/// It was let in by a core that has heard of its account, and its home has not, or has heard of the end of it.
#[test]
fn a_connection_of_an_account_that_is_unknown_at_home_is_refused_and_given_nothing_back_for() {
    on_one_and_two_cores(Quotas::default(), |mut cores| {
        let last = cores.last();
        cores.account = AccountId(3);
        cores.connect(last, 0, Level::V311, false);
        assert_eq!(cores.shards[last].unsent(at(0)), [0x20, 2, 0, 3]);
        assert_eq!(cores.closes(last), [(0, CloseReason::Refused)]);
        for core in 0..cores.shards.len() {
            let Access::Platform(accounts) = &cores.shards[core].access else {
                unreachable!("it has accounts");
            };
            let accounts = Access::Platform(Arc::new(Accounts::clone(accounts).with(account(AccountId(3)), [])));
            cores.shards[core].access = accounts;
        }
        cores.disconnect(last, 0);
        let tenant = cores.shards[last].access.tenant(AccountId(3)).unwrap();
        assert_eq!(tenant.usage.connections.now(), 0);
        assert_eq!(
            (
                cores.shards[last].session_count(),
                cores.shards[last].connection_count()
            ),
            (0, 0)
        );
    });
}

#[test]
fn who_takes_over_needs_no_room() {
    let quotas = Quotas {
        connections_max: 1,
        sessions_max: 1,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        cores.connect(0, 0, Level::V311, false);
        // The same identifier on another socket.
        let connect = crate::mqtt::packet::Connect {
            level: Level::V311,
            clean_session: false,
            keep_alive_s: 0,
            client_id: "client-0".to_owned(),
            will: None,
            user_name: None,
            password: None,
        };
        let input = Input::Connected {
            connection: at(5),
            connect: Box::new(connect),
            account: ONE,
        };
        cores.input(0, input);
        assert_eq!(cores.closes(0), [(0, CloseReason::TakenOver)]);
        assert_eq!(cores.heard(0, 5), ["CONNACK 1"]);
        assert_eq!(cores.tenant().usage.connections.now(), 1);
        assert_eq!(cores.tenant().usage.sessions.now(), 1);
    });
}

#[test]
fn durable_sessions_are_bounded_whether_their_clients_are_there_or_not() {
    let quotas = Quotas {
        sessions_max: 2,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let last = cores.last();
        for index in 0..3 {
            cores.connect(last, index, Level::V311, false);
            cores.settle();
            cores.disconnect(last, index);
        }
        assert_eq!(cores.closes(last), [(2, CloseReason::Refused)]);
        assert_eq!(cores.total(|counters| counters.refused_account_sessions), 1);
        let usage = Arc::clone(&cores.tenant().usage);
        assert_eq!((usage.sessions.now(), usage.connections.now()), (2, 0));
        // Clean ones are none of them; one that is there is resumed, or ended.
        cores.connect(last, 3, Level::V311, true);
        cores.connect(last, 11, Level::V311, true);
        assert!(cores.closes(last).is_empty());
        let connect = crate::mqtt::packet::Connect {
            level: Level::V311,
            clean_session: true,
            keep_alive_s: 0,
            client_id: "client-0".to_owned(),
            will: None,
            user_name: None,
            password: None,
        };
        let input = Input::Connected {
            connection: at(4),
            connect: Box::new(connect),
            account: ONE,
        };
        cores.input(last, input);
        cores.settle();
        assert_eq!(usage.sessions.now(), 1);
        cores.connect(last, 6, Level::V311, false);
        assert!(cores.closes(last).is_empty());
        assert_eq!(usage.sessions.now(), 2);
    });
}

#[test]
fn filters_are_bounded_over_all_sessions_of_an_account() {
    let quotas = Quotas {
        subscriptions_max: 3,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let last = cores.last();
        cores.connect(0, 0, Level::V311, true);
        cores.connect(last, 1, Level::V311, false);
        cores.subscribe(0, 0, 1, &topic(ONE, "a"), QoS::AtMostOnce);
        cores.subscribe(0, 0, 2, &topic(ONE, "b"), QoS::AtMostOnce);
        cores.heard(0, 0);
        cores.heard(last, 1);
        let (c, d) = (topic(ONE, "c"), topic(ONE, "d"));
        let mut bytes = Vec::new();
        client::subscribe(
            &mut bytes,
            packet_id(3),
            &[(&c, QoS::AtMostOnce), (&d, QoS::AtMostOnce)],
        );
        cores.receive(last, 1, &bytes);
        assert_eq!(cores.heard(last, 1), ["SUBACK [Granted(AtMostOnce), Failure]"]);
        // One that is held already is no further one.
        cores.subscribe(0, 0, 4, &topic(ONE, "a"), QoS::AtLeastOnce);
        assert_eq!(cores.heard(0, 0), ["SUBACK [Granted(AtLeastOnce)]"]);
        assert_eq!(cores.total(|counters| counters.refused_account_subscriptions), 1);
        assert_eq!(cores.total(|counters| counters.subscribe_refused), 1);
        // Gone are those of UNSUBSCRIBE, and with a Session all of them.
        let mut bytes = Vec::new();
        client::unsubscribe(&mut bytes, packet_id(5), &[&c]);
        cores.receive(last, 1, &bytes);
        let usage = Arc::clone(&cores.tenant().usage);
        assert_eq!(usage.subscriptions.now(), 2);
        cores.disconnect(0, 0);
        cores.disconnect(last, 1);
        assert_eq!(usage.subscriptions.now(), 0);
    });
}

#[test]
fn a_retained_message_beyond_the_bound_is_delivered_and_its_topic_has_none() {
    let quotas = Quotas {
        kept_bytes_max: 100,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let last = cores.last();
        let retained = |cores: &Cores| cores.shards.iter().map(Shard::retained_count).sum::<usize>();
        cores.connect(0, 0, Level::V311, true);
        cores.connect(last, 1, Level::V311, true);
        cores.subscribe(last, 1, 1, &topic(ONE, "#"), QoS::AtMostOnce);
        cores.heard(last, 1);
        let mut say = |below: &str, payload: &[u8]| {
            cores.receive(0, 0, &publish(&topic(ONE, below), QoS::AtLeastOnce, true, 1, payload));
            let delivered = cores.heard(last, 1).len();
            (delivered, retained(&cores), cores.tenant().usage.kept.now())
        };
        // 34 bytes of topic each.
        assert_eq!(say("a", &[b'x'; 16]), (1, 1, 50));
        assert_eq!(say("b", &[b'x'; 16]), (1, 2, 100));
        assert_eq!(say("c", b"x"), (1, 2, 100));
        assert_eq!(say("a", &[b'y'; 16]), (1, 2, 100), "no larger than the one before");
        assert_eq!(say("a", &[b'y'; 17]), (1, 1, 50), "not the old one either");
        assert_eq!(say("c", &[b'x'; 16]), (1, 2, 100));
        assert_eq!(say("c", b""), (1, 1, 50));
        assert_eq!(cores.total(|counters| counters.refused_account_retained), 2);
    });
}

#[test]
fn what_waits_is_bounded_over_all_sessions_and_given_back_when_it_is_taken() {
    let quotas = Quotas {
        kept_bytes_max: 250,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let last = cores.last();
        for (core, index) in [(0, 0), (last, 1)] {
            cores.connect(core, index, Level::V311, false);
            cores.subscribe(core, index, 1, &topic(ONE, "q"), QoS::AtLeastOnce);
            cores.heard(core, index);
            cores.disconnect(core, index);
        }
        cores.connect(0, 2, Level::V311, true);
        let usage = Arc::clone(&cores.tenant().usage);
        // 100 bytes with the topic, for each of the two.
        for id in 1..=3 {
            cores.receive(
                0,
                2,
                &publish(&topic(ONE, "q"), QoS::AtLeastOnce, false, id, &[b'x'; 66]),
            );
            assert_eq!(cores.heard(0, 2).last().unwrap(), &format!("PUBACK {id}"));
        }
        assert_eq!(usage.kept.now(), 200);
        let dropped = |counters: &Counters| (counters.dropped_queue_full, counters.refused_account_storage);
        assert_eq!(cores.total(|counters| dropped(counters).0), 4);
        assert_eq!(cores.total(|counters| dropped(counters).1), 4);
        // A connected client is served as ever, and so is the other account.
        cores.connect(0, 3, Level::V311, true);
        cores.subscribe(0, 3, 1, &topic(ONE, "q"), QoS::AtLeastOnce);
        cores.heard(0, 3);
        cores.receive(
            0,
            2,
            &publish(&topic(ONE, "q"), QoS::AtLeastOnce, false, 9, &[b'x'; 66]),
        );
        assert_eq!(cores.heard(0, 3).len(), 1);
        // A Session that ends takes what waited with it.
        let sessions = cores.shards[last].clients.of_account(ONE).into_iter();
        let durable: Vec<_> = sessions
            .filter(|index| !cores.shards[last].clients.sessions[*index as usize].is_clean())
            .collect();
        for index in durable {
            cores.shards[last].end_session(index);
        }
        assert_eq!(usage.kept.now(), if last == 0 { 0 } else { 100 });
    });
}

/// The counts of a start are those of what it found.
#[test]
fn a_start_counts_what_is_there() {
    let access = access(Quotas::default());
    let mut cores = Cores::with_access(2, Limits::default(), access);
    let stored = Stored {
        sessions: vec![StoredSession {
            account: ONE,
            client_id: "pump".into(),
            session: SessionNumber(4),
            filters: vec![
                (topic(ONE, "a").into(), QoS::AtLeastOnce),
                (topic(ONE, "b").into(), QoS::AtMostOnce),
            ],
            backlog: Some(Backlog {
                first: 0,
                end: 3,
                entries: 3,
                bytes: 120,
            }),
            received: Vec::new(),
            away_since_s: None,
        }],
        retained: vec![StoredRetained {
            topic: topic(ONE, "a").into(),
            payload: None,
            payload_bytes: 6,
            qos: QoS::AtMostOnce,
        }],
        newest_session: 4,
        ..Stored::default()
    };
    restore(&mut cores.shards, stored);
    let usage = Arc::clone(&cores.tenant().usage);
    assert_eq!(
        (usage.sessions.now(), usage.subscriptions.now(), usage.kept.now()),
        (1, 2, 160)
    );
    assert_eq!(usage.connections.now(), 0);
}

/// What a core does for an account in one turn of its sockets is bounded by the account's rate, however many connections flood
/// and however much they send; another account's message that comes behind all of it is read, delivered and acknowledged in the
/// same turn.
#[test]
fn a_flood_takes_its_accounts_turns_and_the_neighbour_is_served_in_the_same_turn() {
    const FLOODERS: u32 = 100;
    const PER_S: u32 = 50;
    let quotas = Quotas {
        publishes_per_s_max: PER_S,
        ..Quotas::default()
    };
    for (qos, payload_bytes) in [
        (QoS::AtMostOnce, 8),
        (QoS::AtLeastOnce, 8),
        (QoS::AtLeastOnce, 16 * 1024),
    ] {
        on_one_and_two_cores(quotas, |mut cores| {
            let mut flood = Vec::new();
            while flood.len() < READ_BYTES_PER_TURN {
                let id = 1 + flood.len() as u16 % 1_000;
                flood.extend(publish(
                    &topic(ONE, "flood"),
                    qos,
                    false,
                    id,
                    &vec![b'x'; payload_bytes],
                ));
            }
            (0..FLOODERS).for_each(|index| cores.connect(0, index, Level::V311, true));
            cores.account = TWO;
            cores.connect(0, 200, Level::V311, true);
            cores.connect(0, 201, Level::V311, true);
            cores.subscribe(0, 201, 1, &topic(TWO, "m"), QoS::AtLeastOnce);
            cores.heard(0, 200);
            cores.heard(0, 201);
            let mut unread = vec![flood.len(); FLOODERS as usize];
            let published = |cores: &Cores| cores.total(|counters| counters.publishes_qos0 + counters.publishes_qos1);
            let mut before = published(&cores);
            for turn in 0..30u64 {
                cores.now = Millis(1_000 + turn * ACCOUNT_TURN_MS);
                for core in 0..cores.shards.len() {
                    cores.input(core, Input::Tick);
                }
                for index in 0..FLOODERS {
                    let left = &mut unread[index as usize];
                    let begin = flood.len() - *left;
                    *left -= cores.receive(0, index, &flood[begin..]);
                }
                let id = 1 + turn as u16;
                cores.receive(
                    0,
                    200,
                    &publish(&topic(TWO, "m"), QoS::AtLeastOnce, false, id, b"hello"),
                );
                assert_eq!(cores.heard(0, 200), [format!("PUBACK {id}")]);
                assert_eq!(cores.heard(0, 201).len(), 1);
                let now = published(&cores);
                let theirs = now - before - 1;
                before = now;
                match turn {
                    0 => assert_eq!(theirs, u64::from(PER_S), "what was saved up"),
                    _ => assert_eq!(theirs, u64::from(PER_S) * ACCOUNT_TURN_MS / 1_000),
                }
            }
            assert!(cores.total(|counters| counters.held_back_account_rate) > 0);
        });
    }
}

/// Whoever was called and found no turn left is first when the next come.
#[test]
fn the_connections_of_an_account_have_its_turns_one_after_another() {
    const CONNECTIONS: u32 = 7;
    let quotas = Quotas {
        publishes_per_s_max: 100,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let one = publish(&topic(ONE, "t"), QoS::AtMostOnce, false, 0, b"x");
        (0..CONNECTIONS).for_each(|index| cores.connect(0, index, Level::V311, true));
        let mut had = [0usize; CONNECTIONS as usize];
        let mut read: Vec<u32> = (0..CONNECTIONS).collect();
        for turn in 0..350u64 {
            cores.now = Millis(2_000 + turn * ACCOUNT_TURN_MS);
            cores.input(0, Input::Tick);
            let resumed = cores.said[0].extract_if(.., |output| matches!(output, Output::Resume(_)));
            read.extend(resumed.map(|output| match output {
                Output::Resume(connection) => connection.index,
                _ => unreachable!("picked by its kind"),
            }));
            for index in read.drain(..) {
                // Whoever is read has more than there are turns.
                had[index as usize] += cores.receive(0, index, &one.repeat(500)) / one.len();
            }
        }
        // The first had what was saved up; two turns come in each time between looks.
        had[0] -= 100;
        assert_eq!(had.iter().sum::<usize>(), 2 * 349);
        assert!(had.iter().all(|had| (98..=102).contains(had)), "{had:?}");
    });
}

#[test]
fn a_bound_that_is_taken_away_lets_everybody_go_on() {
    let quotas = Quotas {
        publishes_per_s_max: 1,
        ..Quotas::default()
    };
    on_one_and_two_cores(quotas, |mut cores| {
        let one = publish(&topic(ONE, "t"), QoS::AtMostOnce, false, 0, b"x");
        cores.now = Millis(1_000);
        cores.connect(0, 0, Level::V311, true);
        assert_eq!(cores.receive(0, 0, &one.repeat(2)), one.len());
        assert_eq!(cores.receive(0, 0, &one), 0);
        let accounts = Arc::new(Accounts::default().with(account(ONE), []));
        let change = AccountsChange { accounts, ended: None };
        cores.input(0, Input::Accounts(Box::new(change)));
        cores.now = cores.now.plus(ACCOUNT_TURN_MS);
        cores.input(0, Input::Tick);
        assert_eq!(cores.receive(0, 0, &one.repeat(100)), 100 * one.len());
        assert_eq!(cores.shards[0].next_deadline(), None);
    });
}
