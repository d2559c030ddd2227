//! What an account may have and do (`--account-…`, `skein account set`): each bound, at it and beyond it, with real clients.

use std::time::{Duration, Instant};

use super::fixture::{LIFTED, Platform, eventually};
use crate::clients::MosquittoSub;
use crate::raw::{PUBACK, Packet, Raw, publish, publish_at_most_once, retained};

/// What a counter of a run came to; one that is 0 is not written.
pub fn counted(log: &str, name: &str) -> u64 {
    let line = log.lines().rfind(|line| line.contains("counters=\"")).unwrap();
    let mut words = line.split([' ', '"']);
    let count = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    count.map_or(0, |count| count.parse().unwrap())
}

fn bounded(cores: u16, accounts: usize, bounds: &[&str]) -> Platform {
    Platform::start_with(cores, accounts, &[&LIFTED[..], bounds].concat())
}

#[test]
fn connections_at_a_time_are_bounded_for_each_account() {
    for cores in [1, 4] {
        let mut platform = bounded(cores, 2, &["--account-connections", "3"]);
        let [one, other] = platform.accounts();
        let mut held: Vec<Raw> = ["a", "b", "c"].map(|id| platform.client(0, id)).into();
        assert_eq!(platform.refused(one.connect("d")), 3);
        // A real client hears the same, and the other account is not concerned.
        let output = std::process::Command::new("mosquitto_pub")
            .args(["-p", &platform.broker().port.to_string()])
            .args(one.mosquitto())
            .args(["-t", &one.topic("x"), "-m", "y"])
            .output()
            .unwrap();
        assert!(!output.status.success(), "{output:?}");
        let others: Vec<Raw> = ["a", "b", "c"].map(|id| platform.client(1, id)).into();
        assert_eq!(platform.refused(other.connect("d")), 3);
        // Taking over needs no room, and whoever leaves makes some.
        let taken = platform.client(0, "a");
        assert!(held[0].is_closed_within(Duration::from_secs(10)));
        drop((held, taken));
        eventually("a place is free again", || {
            Raw::open(platform.broker().port, &one.connect("d").packet()).is_ok()
        });
        // An account of its own bound; and the broker's again.
        platform.account_json(&["set", &other.user_id, "--max-connections", "4"]);
        let fourth = platform.client(1, "d");
        assert_eq!(platform.refused(other.connect("e")), 3);
        platform.account_json(&["set", &other.user_id, "--max-connections", "default"]);
        assert_eq!(
            platform.refused(other.connect("e")),
            3,
            "nobody is thrown out, and nobody comes"
        );
        drop((others, fourth));
        let log = platform.stop();
        assert!(counted(&log, "refused_account_connections") >= 5, "{log}");
        assert_eq!(
            counted(&log, "refused_account_connections"),
            counted(&log, "connects_refused")
        );
    }
}

/// They are still there after a crash, and so they count.
#[test]
fn durable_sessions_and_subscriptions_are_bounded_over_runs() {
    let bounds = ["--account-sessions", "2", "--account-subscriptions", "3"];
    let mut platform = bounded(4, 1, &bounds);
    let account = platform.account(0).clone();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|below| account.topic(below));
    let mut first = platform.raw(account.connect_durable("first"));
    assert_eq!(first.granted(&[(&a, 1), (&b, 1)]), [1, 1]);
    let mut second = platform.raw(account.connect_durable("second"));
    assert_eq!(second.granted(&[(&c, 0), (&d, 0)]), [0, 0x80]);
    assert_eq!(second.granted(&[(&c, 1)]), [1], "it is held already");
    assert_eq!(platform.refused(account.connect_durable("third")), 3);
    drop(platform.client(0, "clean"));
    let log = platform.stop();
    assert_eq!(counted(&log, "refused_account_sessions"), 1);
    assert_eq!(counted(&log, "refused_account_subscriptions"), 1);

    platform.run(2, &[&LIFTED[..], &bounds].concat());
    assert_eq!(platform.refused(account.connect_durable("third")), 3);
    let mut first = platform.raw(account.connect_durable("first"));
    assert!(first.session_present);
    assert_eq!(first.granted(&[(&d, 0)]), [0x80]);
    first.unsubscribe(&a);
    assert_eq!(first.granted(&[(&d, 0)]), [0]);
    // A session that is ended makes room for another.
    drop(platform.client(0, "second"));
    let third = platform.raw(account.connect_durable("third"));
    drop((first, third));
    platform.kill();
}

/// So many a second and those saved up: never more, whatever the host; so the time it takes at least is known.
#[test]
fn publishes_are_read_at_the_rate_of_the_account_however_many_connections_send() {
    for (cores, qos) in [(1, 1), (4, 0), (4, 1)] {
        let mut platform = bounded(cores, 2, &["--account-publish-rate", "100"]);
        let account = platform.account(0).clone();
        let mut sub = MosquittoSub::start(
            platform.broker(),
            &[&account.mosquitto()[..], &["-q", "1", "-t", &account.topic("#")]].concat(),
        );
        let began = Instant::now();
        let mut senders: Vec<Raw> = (0..5).map(|n| platform.client(0, &format!("sender-{n}"))).collect();
        for sender in &mut senders {
            for id in 1..=60 {
                let topic = account.topic("t");
                sender.send(&match qos {
                    0 => publish_at_most_once(&topic, b"m"),
                    _ => publish(&topic, qos, id, b"m"),
                });
            }
        }
        // The other account has its own turns.
        let other = platform.account(1).clone();
        let mut neighbour = platform.client(1, "neighbour");
        for id in 1..=50 {
            neighbour.deliver(&publish(&other.topic("t"), 1, id, b"m"), id);
        }
        if qos == 1 {
            for sender in &mut senders {
                let acknowledged = (1..=60).map(|id| Packet::Acknowledgement { kind: PUBACK, id });
                acknowledged.for_each(|expected| assert_eq!(sender.packet(), expected));
            }
        }
        let heard = sub.messages(300);
        assert!(heard.iter().all(|message| message.topic == account.topic("t")));
        // The broker reads its clock once per batch, and in whole milliseconds: the wait may seem a little shorter.
        assert!(began.elapsed() >= Duration::from_millis(1_900), "{:?}", began.elapsed());
        drop(senders);
        let log = platform.stop();
        assert!(counted(&log, "held_back_account_rate") > 0);
    }
}

#[test]
fn what_is_kept_of_messages_is_bounded_for_each_account() {
    for cores in [1, 4] {
        let mut platform = bounded(cores, 2, &["--account-message-storage", "10 KiB"]);
        let [one, other] = platform.accounts();
        let payload = [b'x'; 1_000];
        for account in [&one, &other] {
            let mut away = platform.raw(account.connect_durable("away"));
            away.subscribe(&account.topic("q"), 1);
            drop(away);
        }
        let mut live = platform.client(0, "live");
        live.subscribe(&one.topic("#"), 1);
        let mut sender = platform.client(0, "sender");
        for id in 1..=20 {
            sender.deliver(&publish(&one.topic("q"), 1, id, &payload), id);
            live.message();
        }
        // 9 wait, 1,034 bytes each; a retained message of that size has no room beside them, and goes to who is there.
        for id in 1..=3 {
            sender.deliver(&retained(publish(&one.topic("r"), 1, id, &payload)), id);
            live.message();
        }
        let mut late = platform.client(0, "late");
        late.subscribe(&one.topic("r"), 1);
        assert_eq!(late.packet_within(Duration::from_millis(300)), None);
        // The other account has all of its own room.
        let mut neighbour = platform.client(1, "neighbour");
        for id in 1..=5 {
            neighbour.deliver(&publish(&other.topic("q"), 1, id, &payload), id);
        }
        // What is fetched makes room again.
        let mut away = platform.raw(one.connect_durable("away"));
        (0..9).for_each(|_| drop(away.message()));
        eventually("there is room for a retained message", || {
            sender.deliver(&retained(publish(&one.topic("r"), 1, 9, &payload)), 9);
            let mut late = platform.client(0, "later");
            late.subscribe(&one.topic("r"), 1);
            late.packet_within(Duration::from_millis(300)).is_some()
        });
        let log = platform.stop();
        assert_eq!(counted(&log, "refused_account_storage"), 11);
        assert_eq!(counted(&log, "dropped_queue_full"), 11);
        assert!(counted(&log, "refused_account_retained") >= 3);
    }
}

/// Datapoints have a bound of their own, at which the oldest go: what is new is kept, and nothing of it counts as a message.
#[test]
fn datapoints_do_not_count_as_messages() {
    let mut platform = bounded(4, 1, &["--account-message-storage", "1 KiB"]);
    platform.map(0, "DEV", 3);
    let account = platform.account(0).clone();
    let mut sender = platform.client(0, "sender");
    for id in 1..=50 {
        sender.deliver(
            &publish(&account.topic("json/DEV"), 1, id, b"{\"temp\":21.5,\"rh\":48}"),
            id,
        );
    }
    assert_eq!(platform.values(0, 3).len(), 50);
    platform.stop();
}
