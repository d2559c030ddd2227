//! Rate limits (section 7.2): 20 REST calls a second for each account, one transmission a second for each device id.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::fixture::{Platform, assert_error};
use super::rest::Reply;

/// What an answer waits for that refuses.
const REFUSAL: Duration = Duration::from_millis(50);

fn statuses(replies: &[Reply]) -> Vec<u16> {
    replies.iter().map(|reply| reply.status).collect()
}

fn assert_limited(reply: &Reply) {
    assert_error(reply, 429, "TOO_MANY_REQUESTS");
    assert_eq!(reply.header("retry-after"), Some("1"), "{reply:?}");
}

#[test]
fn twenty_calls_a_second_for_each_account() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &[]);
        let began = Instant::now();
        let replies = platform.api(0).get_times("/v2/device", 25);
        assert_eq!(statuses(&replies), [vec![200; 20], vec![429; 5]].concat());
        assert!(began.elapsed() >= 5 * REFUSAL, "who is refused waits for it");
        assert_limited(&replies[20]);
        // The other account has a window of its own, whatever is called counts, and nobody has that of the first.
        let other = platform.api(1);
        for (n, path) in ["/v2/device", "/v2/channel", "/v2/user", "/v2/event", "/v2/session"]
            .into_iter()
            .enumerate()
        {
            let replies = other.get_times(path, 4);
            assert_eq!(statuses(&replies), [200; 4], "{n}");
        }
        assert_eq!(statuses(&platform.anybody().get_times("/v2/device", 30)), [401; 30]);
        // Refused calls do not count: a second later there is room again, though it was asked all the time.
        let began = Instant::now();
        while platform.api(0).get("/v2/device").status == 429 {
            assert!(began.elapsed() < Duration::from_secs(3), "no room after a second");
        }
    }
}

/// The window slides: what was called in the second before counts, whenever that second began.
#[test]
fn the_window_of_a_second_slides() {
    let platform = Platform::start_with(4, 1, &[]);
    let api = platform.api(0);
    let mut attempts = 0;
    loop {
        let began = Instant::now();
        let first = api.get_times("/v2/user", 10);
        sleep(Duration::from_millis(700));
        let middle = Instant::now();
        let second = api.get_times("/v2/user", 10);
        sleep(Duration::from_millis(350));
        let is_first_over = began.elapsed() > Duration::from_millis(1050);
        // One that is refused, since each waits for its answer.
        let third = api.get_times("/v2/user", 11);
        if is_first_over && middle.elapsed() < Duration::from_millis(900) {
            assert_eq!(statuses(&[first, second].concat()), [200; 20]);
            assert_eq!(statuses(&third), [vec![200; 10], vec![429]].concat());
            return;
        }
        // Too slow to tell: once more, after a pause.
        attempts += 1;
        assert!(attempts < 30, "this host is too busy for seconds to be told apart");
        sleep(Duration::from_millis(1500));
    }
}

/// Every service counts, errors among them.
#[test]
fn calls_of_all_services_and_those_in_vain_count() {
    let platform = Platform::start_with(4, 1, &[]);
    let api = platform.api(0);
    let began = Instant::now();
    let replies = api.get_times("/v2/device/unknown", 19);
    assert_eq!(statuses(&replies), [404; 19]);
    let replies = api.get_times("/v2/user", 2);
    if began.elapsed() < Duration::from_millis(900) {
        assert_eq!(statuses(&replies), [200, 429]);
    }
}

#[test]
fn one_transmission_a_second_for_each_device() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &[]);
        let send = |index: usize, device: &str, times: usize| {
            platform.connector(index, device).post_times("/post_v2/", "1", times)
        };
        let replies = send(0, "one", 3);
        assert_eq!(statuses(&replies), [201, 429, 429]);
        assert_limited(&replies[1]);
        // Device id and account count.
        assert_eq!(statuses(&send(0, "two", 1)), [201]);
        assert_eq!(statuses(&send(1, "one", 1)), [201]);
        sleep(Duration::from_millis(1100));
        assert_eq!(statuses(&send(0, "one", 2)), [403, 429]);
        // Refused calls do not count.
        let began = Instant::now();
        while statuses(&send(0, "one", 1)) == [429] {
            assert!(began.elapsed() < Duration::from_secs(3), "no room after a second");
        }
        // Neither do MQTT, nor the API, know of it.
        for _ in 0..3 {
            platform.send(0, "json/one", "1");
        }
        platform.api(0).get("/v2/device").expect(200);
    }
}

/// What is wrong with token or id is said before the limit is looked at (section 6.2).
#[test]
fn the_connector_looks_at_token_and_id_before_the_rate() {
    let platform = Platform::start_with(4, 1, &[]);
    let wrong = platform
        .anybody()
        .header("X-DEVICETOKEN", "0")
        .header("X-DEVICEID", "one");
    assert_eq!(statuses(&wrong.post_times("/post_v2/", "1", 3)), [401; 3]);
    assert_eq!(
        statuses(&platform.connector(0, "0").post_times("/post_v2/", "1", 3)),
        [400; 3]
    );
    assert_eq!(
        statuses(&platform.connector(0, "one").post_times("/post_v2/", "1", 2)),
        [201, 429]
    );
}

#[test]
fn both_limits_are_settings_and_0_is_none() {
    let platform = Platform::start_with(4, 1, &["--api-rate", "5", "--connector-rate", "3"]);
    assert_eq!(
        statuses(&platform.api(0).get_times("/v2/user", 7)),
        [200, 200, 200, 200, 200, 429, 429]
    );
    let replies = platform.connector(0, "one").post_times("/post_v2/", "1", 5);
    assert_eq!(statuses(&replies), [201, 403, 403, 429, 429]);

    let platform = Platform::start_with(4, 1, &["--api-rate", "0", "--connector-rate", "0"]);
    assert_eq!(statuses(&platform.api(0).get_times("/v2/user", 100)), [200; 100]);
    let replies = platform.connector(0, "one").post_times("/post_v2/", "1", 50);
    assert_eq!(statuses(&replies)[1..], [403; 49]);
}

/// Section 7.2: no limit for MQTT.
#[test]
fn mqtt_knows_no_rate() {
    let platform = Platform::start_with(4, 1, &[]);
    platform.map(0, "DEV", 3);
    let mut raw = platform.client(0, "publisher");
    let topic = platform.account(0).topic("json/DEV");
    for id in 1..=500 {
        raw.send(&crate::raw::publish(&topic, 1, id, b"1"));
    }
    for _ in 1..=500 {
        raw.packet();
    }
    sleep(Duration::from_millis(1100));
    assert_eq!(platform.values(0, 3).len(), 500);
}
