//! The event service (section 13): definitions, which datapoint fires, and what is sent to whom.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::{Account, LIFTED, Platform, assert_error, eventually, keys, settle};
use super::servers::{Answer, Hook, Relay};
use crate::broker::patience;

const ALLOWED: [&str; 6] = [
    "--api-rate",
    "0",
    "--connector-rate",
    "0",
    "--webhook-allow",
    "127.0.0.0/8",
];

fn platform_with(cores: u16, accounts: usize) -> Platform {
    let platform = Platform::start_with(cores, accounts, &ALLOWED);
    for index in 0..accounts {
        platform.map(index, "pump-07", 3);
    }
    platform
}

/// `source operator threshold` on channel 3, enabled.
fn rule(hook: &Hook, source: &str, operator: &str, threshold: &str) -> Value {
    json!({
        "mapped_ch": 3, "notify_type": "http", "post_url": hook.url("/hook"), "enabled": true, "source": source,
        "operator": operator, "threshold": threshold,
    })
}

/// Its id.
fn define(platform: &Platform, index: usize, event: &Value) -> u64 {
    let made = platform.api(index).post("/v2/event", event).expect(201).json();
    assert_eq!(keys(&made), ["event_id"]);
    made["event_id"].as_u64().unwrap()
}

fn event_url(id: u64) -> String {
    format!("/v2/event/{id}")
}

#[test]
fn an_event_is_made_empty_filled_shown_and_removed() {
    let platform = platform_with(4, 1);
    let api = platform.api(0);
    for path in ["/v2/event", "/v2/event/"] {
        assert_eq!(api.get(path).expect(200).json(), json!([]));
    }
    let made = api.post("/v2/event", "").expect(201).json();
    let id = made["event_id"].as_u64().unwrap();
    let mut expected = json!({
        "event_id": id, "mapped_ch": null, "description": "", "notify_type": "http", "post_url": "", "enabled": false,
        "source": "", "operator": "=", "threshold": "",
    });
    assert_eq!(api.get(&event_url(id)).expect(200).json(), json!([expected]));
    for (name, value) in [
        ("mapped_ch", json!(3)),
        ("description", json!("well too warm")),
        ("notify_type", json!("email")),
        ("notify_type", json!("http")),
        ("post_url", json!("https://alarm.example.org/hook?a=b")),
        ("source", json!("data:value")),
        ("operator", json!("<")),
        ("operator", json!(">")),
        ("operator", json!("<=")),
        ("operator", json!(">=")),
        ("operator", json!("!=")),
        ("operator", json!("=")),
        ("threshold", json!("30")),
        ("enabled", json!(true)),
        ("enabled", json!(false)),
        ("mapped_ch", json!(null)),
    ] {
        let reply = api.put(&event_url(id), json!({name: value})).expect(200);
        assert_eq!(reply.json(), json!({"result": "OK"}));
        expected[name] = value;
        assert_eq!(api.get(&event_url(id)).expect(200).json(), json!([expected]), "{name}");
    }
    // The id is none of the fields of a change, and what is unknown is passed over.
    api.put(&event_url(id), json!({"event_id": 77, "unknown": 1}))
        .expect(200);
    assert_eq!(api.get("/v2/event").expect(200).json(), json!([expected]));
    let second = define(&platform, 0, &json!({"description": "second"}));
    assert_ne!(second, id);
    let list = api.get("/v2/event/").expect(200).json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    let reply = api.delete(&event_url(id)).expect(200);
    assert_eq!(reply.json(), json!({"result": "OK"}));
    for (method, body) in [("GET", None), ("PUT", Some(&b"{}"[..])), ("DELETE", None)] {
        for path in [
            event_url(id),
            event_url(999),
            "/v2/event/x".into(),
            "/v2/event/-1".into(),
        ] {
            assert_error(&api.call(method, &path, body), 404, "NO_EVENT");
        }
    }
    let third = define(&platform, 0, &json!({}));
    assert!(third != id && third != second, "an id is not given again");
}

#[test]
fn a_definition_that_cannot_be_is_400() {
    let platform = platform_with(4, 1);
    let api = platform.api(0);
    let id = define(&platform, 0, &json!({}));
    let before = api.get(&event_url(id)).expect(200).json();
    for body in ["{", "nul", "enabled=true"] {
        assert_error(&api.put(&event_url(id), body), 400, "BAD_JSON_FORMAT");
        assert_error(&api.post("/v2/event", body), 400, "BAD_JSON_FORMAT");
    }
    assert_error(&api.put(&event_url(id), ""), 400, "BAD_JSON_FORMAT");
    for body in [
        json!([]),
        json!("x"),
        json!(null),
        json!({"mapped_ch": "3"}),
        json!({"mapped_ch": 3.5}),
        json!({"description": 1}),
        json!({"notify_type": "sms"}),
        json!({"notify_type": ""}),
        json!({"post_url": 1}),
        json!({"post_url": "ftp://example.org/"}),
        json!({"post_url": "no url"}),
        json!({"enabled": "true"}),
        json!({"source": 1}),
        json!({"operator": "=="}),
        json!({"operator": "like"}),
        json!({"operator": ""}),
        json!({"threshold": 30}),
        json!({"description": "x", "threshold": null}),
    ] {
        assert_error(&api.put(&event_url(id), &body), 400, "BAD_PARAMETER");
        assert_error(&api.post("/v2/event", &body), 400, "BAD_PARAMETER");
    }
    for (method, path) in [("PUT", event_url(id)), ("POST", "/v2/event".into())] {
        let body = json!({"mapped_ch": 9}).to_string();
        assert_error(&api.call(method, &path, Some(body.as_bytes())), 404, "NO_CHANNEL");
    }
    assert_eq!(
        api.get("/v2/event").expect(200).json(),
        before,
        "nothing was changed or made"
    );
}

#[test]
fn an_event_is_not_enabled_before_it_is_whole() {
    let hook = Hook::content();
    let platform = platform_with(4, 1);
    let api = platform.api(0);
    let whole = rule(&hook, "temp", ">", "30");
    for missing in ["mapped_ch", "post_url", "source"] {
        let mut event = whole.clone();
        event.as_object_mut().unwrap().remove(missing);
        assert_error(&api.post("/v2/event", &event), 400, "BAD_PARAMETER");
        event["enabled"] = json!(false);
        let id = define(&platform, 0, &event);
        assert_error(&api.put(&event_url(id), r#"{"enabled":true}"#), 400, "BAD_PARAMETER");
        api.put(&event_url(id), json!({"enabled": true, missing: whole[missing]}))
            .expect(200);
        // Nor is it left incomplete.
        let emptied = if missing == "mapped_ch" { json!(null) } else { json!("") };
        assert_error(
            &api.put(&event_url(id), json!({missing: emptied})),
            400,
            "BAD_PARAMETER",
        );
        api.delete(&event_url(id)).expect(200);
    }
    assert_error(&api.post("/v2/event", r#"{"enabled":true}"#), 400, "BAD_PARAMETER");
    assert_eq!(api.get("/v2/event").expect(200).json(), json!([]));
}

#[test]
fn events_of_another_account_do_not_exist() {
    let platform = platform_with(4, 2);
    let id = define(&platform, 0, &json!({"description": "own"}));
    let other = platform.api(1);
    assert_eq!(other.get("/v2/event").expect(200).json(), json!([]));
    for (method, body) in [("GET", None), ("PUT", Some(&b"{}"[..])), ("DELETE", None)] {
        assert_error(&other.call(method, &event_url(id), body), 404, "NO_EVENT");
    }
    assert_eq!(
        platform.api(0).get(&event_url(id)).expect(200).json()[0]["description"],
        "own"
    );
}

/// Operators and paths: each rule is an event of its own, each value a datapoint of its own. What fires is known by the
/// description, which is the rule's number.
#[test]
fn each_operator_compares_numbers_or_texts() {
    let number = r#"{"v":10}"#;
    let text = r#"{"v":"open"}"#;
    let numeric_text = r#"{"v":"10"}"#;
    let other = r#"{"w":10}"#;
    let nested = r#"{"data":[{"value":10},{"value":20}],"deep":{"er":{"v":-1.5}},"v":true}"#;
    let null = r#"{"v":null}"#;
    /// Path, operator, threshold, the values it matches with what is reported as `current`.
    type Rule<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, Value)]);
    let rules: [Rule<'_>; 32] = [
        ("v", "=", "10", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", "=", "10.0", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", "=", "1e1", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", "=", "9", &[]),
        (
            "v",
            "!=",
            "9",
            &[
                (number, json!(10)),
                (text, json!("open")),
                (numeric_text, json!("10")),
                (nested, json!(true)),
            ],
        ),
        ("v", "!=", "10", &[(text, json!("open")), (nested, json!(true))]),
        ("v", ">", "9", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", ">", "9.99", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", ">", "10", &[]),
        ("v", ">=", "10", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", ">=", "10.01", &[]),
        ("v", "<", "11", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", "<", "10", &[]),
        ("v", "<=", "10", &[(number, json!(10)), (numeric_text, json!("10"))]),
        ("v", "<=", "9", &[]),
        ("v", "<", "-5", &[]),
        ("v", "=", "open", &[(text, json!("open"))]),
        ("v", "=", "Open", &[]),
        ("v", "=", "open ", &[]),
        (
            "v",
            "!=",
            "open",
            &[(number, json!(10)), (numeric_text, json!("10")), (nested, json!(true))],
        ),
        // The ordering operators know no texts.
        ("v", ">", "a", &[]),
        ("v", "<", "zzz", &[]),
        ("v", ">=", "open", &[]),
        ("v", "<=", "open", &[]),
        // A missing field never matches.
        ("w", "=", "10", &[(other, json!(10))]),
        ("w", "!=", "11", &[(other, json!(10))]),
        ("x", "!=", "1", &[]),
        // Arrays are passed through, the first that matches is reported.
        ("data:value", "=", "10", &[(nested, json!(10))]),
        ("data:value", ">", "10", &[(nested, json!(20))]),
        ("data:value", ">", "5", &[(nested, json!(10))]),
        ("deep:er:v", "<", "-1", &[(nested, json!(-1.5))]),
        ("data:nothing", "!=", "1", &[]),
    ];
    for cores in [1, 4] {
        let hook = Hook::content();
        let platform = platform_with(cores, 1);
        for (n, (source, operator, threshold, _)) in rules.iter().enumerate() {
            let mut event = rule(&hook, source, operator, threshold);
            event["description"] = json!(n.to_string());
            define(&platform, 0, &event);
        }
        for value in [number, text, numeric_text, other, nested, null] {
            let before = hook.count();
            let mut expected = Vec::new();
            for (n, (_, _, _, matches)) in rules.iter().enumerate() {
                let matching = matches.iter().filter(|(matching, _)| *matching == value);
                expected.extend(matching.map(|(_, current)| (n, current.clone())));
            }
            if value == null {
                // Whether null is a value or a missing field nobody says: not looked at.
                continue;
            }
            platform.send(0, "json/pump-07", value);
            eventually(&format!("{} events fire for {value}", expected.len()), || {
                hook.count() >= before + expected.len()
            });
            settle();
            let mut fired: Vec<_> = hook.requests()[before..]
                .iter()
                .map(|request| {
                    let posted = request.json();
                    let n: usize = posted["description"].as_str().unwrap().parse().unwrap();
                    let (source, operator, threshold, _) = rules[n];
                    assert_eq!(
                        (&posted["source"], &posted["threshold"]),
                        (&json!(source), &json!(threshold))
                    );
                    let current = posted["current"].clone();
                    let shown = current.as_str().map_or(current.to_string(), str::to_owned);
                    let status = posted["status"].as_str().unwrap();
                    assert!(
                        status.ends_with(&format!("Current:{shown} {operator} Threshold:{threshold}")),
                        "{status}"
                    );
                    (n, current)
                })
                .collect();
            fired.sort_by_key(|(n, _)| *n);
            assert_eq!(fired, expected, "{value}, {cores} cores");
        }
    }
}

/// Whatever way a datapoint came; but not a state report, an unmapped or refused message, another channel, or another
/// account's data.
#[test]
fn every_datapoint_of_the_channel_is_looked_at_and_nothing_else() {
    let hook = Hook::content();
    let platform = platform_with(4, 2);
    platform.map(0, "pump-08", 4);
    define(&platform, 0, &rule(&hook, "value1", ">", "0"));
    let mut disabled = rule(&hook, "value1", ">", "0");
    (disabled["enabled"], disabled["description"]) = (json!(false), json!("disabled"));
    let disabled = define(&platform, 0, &disabled);
    platform.send(0, "json/pump-07", "1");
    platform.send(0, "json/pump-07/inlet", "2");
    platform.connector(0, "pump-07").post("/post_v2/", "3").expect(200);
    platform.api(0).post("/v2/stream/3", "4").expect(201);
    // None of these.
    platform.send(0, "json/pump-08", "5");
    platform.send(0, "json/new", "6");
    platform.send(0, "state/pump-07", "value1=7");
    platform.send(0, "pump-07/subscribe", "8");
    platform.send(1, "json/pump-07", "9");
    platform.api(0).post("/v2/stream/4", "10").expect(201);
    let mut current: Vec<_> = hook
        .await_requests(4)
        .iter()
        .map(|request| request.json()["current"].clone())
        .collect();
    current.sort_by_key(Value::to_string);
    assert_eq!(json!(current), json!([1, 2, 3, 4]));
    settle();
    hook.await_requests(4);
    // No memory of the state before: every match fires, until it is disabled or removed; and a change takes hold at once.
    platform
        .api(0)
        .put(&event_url(disabled), r#"{"enabled":true}"#)
        .expect(200);
    platform.send(0, "json/pump-07", "1");
    hook.await_requests(6);
    for event in platform.api(0).get("/v2/event").expect(200).json().as_array().unwrap() {
        platform
            .api(0)
            .delete(&event_url(event["event_id"].as_u64().unwrap()))
            .expect(200);
    }
    platform.send(0, "json/pump-07", "1");
    settle();
    hook.await_requests(6);
}

#[test]
fn events_are_there_after_a_restart() {
    let hook = Hook::content();
    let mut platform = platform_with(4, 1);
    let id = define(&platform, 0, &rule(&hook, "value1", ">", "0"));
    let before = platform.api(0).get("/v2/event").expect(200).json();
    platform.kill();
    platform.run(1, &ALLOWED);
    assert_eq!(platform.api(0).get("/v2/event").expect(200).json(), before);
    platform.send(0, "json/pump-07", "1");
    assert_eq!(hook.await_requests(1)[0].json()["event_id"], id);
    let next = define(&platform, 0, &json!({}));
    assert!(next > id);
}

/// Up to three attempts; any 2xx is success; a redirect is not followed.
#[test]
fn a_target_that_fails_is_tried_three_times() {
    for (name, answers, attempts) in [
        ("created", vec![Answer::Status(201)], 1),
        ("no content", vec![Answer::Status(204)], 1),
        ("well at once", vec![Answer::Status(200)], 1),
        ("once in vain", vec![Answer::Status(500), Answer::Status(200)], 2),
        (
            "twice in vain",
            vec![Answer::Status(503), Answer::Status(404), Answer::Status(299)],
            3,
        ),
        ("never well", vec![Answer::Status(500)], 3),
    ] {
        let plan = answers.clone();
        let hook = Hook::start(move |nth, _| plan[nth.min(plan.len() - 1)].clone());
        let platform = platform_with(1, 1);
        define(&platform, 0, &rule(&hook, "value1", ">", "0"));
        platform.send(0, "json/pump-07", "1");
        let came = || hook.count() >= attempts;
        let began = Instant::now();
        while !came() {
            assert!(
                began.elapsed() < patience(Duration::from_secs(30)),
                "{name}: {} attempts",
                hook.count()
            );
            sleep(Duration::from_millis(50));
        }
        sleep(Duration::from_secs(if attempts == 3 { 3 } else { 1 }));
        let requests = hook.await_requests(attempts);
        assert!(
            requests.iter().all(|request| request.body == requests[0].body),
            "{name}"
        );
        for pair in requests.windows(2) {
            assert!(pair[1].at - pair[0].at > Duration::from_millis(50), "{name}: back-off");
        }
    }

    let elsewhere = Hook::content();
    let to = elsewhere.url("/elsewhere");
    let hook = Hook::start(move |_, _| Answer::Redirect(to.clone()));
    let platform = platform_with(1, 1);
    define(&platform, 0, &rule(&hook, "value1", ">", "0"));
    platform.send(0, "json/pump-07", "1");
    eventually("the target is called", || hook.count() >= 1);
    sleep(Duration::from_secs(2));
    assert_eq!(elsewhere.count(), 0, "the redirect was followed");
}

/// Server-side request forgery: no loopback, no private networks, by whatever name, unless they are allowed.
#[test]
fn a_target_that_is_not_allowed_is_never_called() {
    let hook = Hook::content();
    let port = hook.port;
    let urls = [
        hook.url("/hook"),
        format!("http://localhost:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f000001:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://user:secret@127.0.0.1:{port}/"),
    ];
    for allow in [&[][..], &["--webhook-allow", "10.0.0.0/8"]] {
        let platform = Platform::start_with(4, 1, &[&LIFTED[..], allow].concat());
        platform.map(0, "pump-07", 3);
        for url in &urls {
            let mut event = rule(&hook, "value1", ">", "0");
            event["post_url"] = json!(url);
            // Refused when it is defined, or when it fires.
            let reply = platform.api(0).post("/v2/event", &event);
            assert!(matches!(reply.status, 201 | 400), "{url}: {reply:?}");
        }
        for _ in 0..3 {
            platform.send(0, "json/pump-07", "1");
        }
        sleep(Duration::from_secs(3));
        assert_eq!(hook.count(), 0, "{:?}", hook.requests());
        assert_eq!(platform.values(0, 3).len(), 3);
    }
    // The same is called where it is allowed.
    let platform = platform_with(4, 1);
    define(&platform, 0, &rule(&hook, "value1", ">", "0"));
    platform.send(0, "json/pump-07", "1");
    hook.await_requests(1);
}

/// What is sent holds no token, and none of the platform's own headers.
#[test]
fn a_webhook_tells_no_secret() {
    let hook = Hook::content();
    let platform = platform_with(4, 1);
    define(&platform, 0, &rule(&hook, "value1", "=", "x\r\nX-Injected: 1"));
    define(&platform, 0, &rule(&hook, "value1", "!=", "y"));
    platform.send(0, "json/pump-07", json!("x\r\nX-Injected: 1").to_string());
    let Account {
        api_token,
        device_token,
        ..
    } = platform.account(0);
    for request in hook.await_requests(2) {
        let whole = format!("{request:?} {}", String::from_utf8_lossy(&request.body));
        assert!(!whole.contains(api_token) && !whole.contains(device_token), "{whole}");
        assert_eq!(request.header("x-injected"), None);
        assert_eq!(request.json()["current"], "x\r\nX-Injected: 1");
    }
}

/// Targets that never answer in time, and more notifications than are held: publishers do not notice.
#[test]
fn a_slow_target_does_not_delay_ingestion() {
    const COUNT: usize = 3_000;
    let slow = Hook::start(|_, _| Answer::Late(Duration::from_secs(30)));
    let platform = platform_with(4, 1);
    let mut agent = crate::clients::Agent::start(crate::clients::Library::Paho);
    let mut took = [Duration::ZERO; 2];
    for (round, took) in took.iter_mut().enumerate() {
        if round == 1 {
            define(&platform, 0, &rule(&slow, "value1", ">=", "0"));
        }
        let account = platform.account(0);
        agent.connect("p", platform.broker(), account.hello("publisher").inflight(200));
        let began = Instant::now();
        agent.begin_burst("p", &account.topic("json/pump-07"), 1, "", COUNT, 0);
        agent.await_burst("p");
        *took = began.elapsed();
        agent.disconnect("p");
        assert_eq!(platform.values(0, 3).len(), COUNT * (round + 1));
    }
    let [without, with] = took;
    assert!(
        with < without * 3 + Duration::from_secs(1),
        "{with:?} with events, {without:?} without"
    );
    // Nor is the API held up, nor the stop.
    let began = Instant::now();
    platform.api(0).get("/v2/device").expect(200);
    assert!(began.elapsed() < patience(Duration::from_secs(1)));
}

/// 5 s for an answer, and one target that hangs holds no other up for long.
#[test]
fn a_hanging_target_is_given_up_and_others_are_called() {
    let hanging = Hook::start(|_, _| Answer::Late(Duration::from_secs(40)));
    let prompt = Hook::content();
    let platform = platform_with(4, 1);
    define(&platform, 0, &rule(&hanging, "value1", ">", "0"));
    define(&platform, 0, &rule(&prompt, "value1", ">", "0"));
    platform.send(0, "json/pump-07", "1");
    prompt.await_requests(1);
    let began = Instant::now();
    while hanging.count() < 2 {
        assert!(
            began.elapsed() < patience(Duration::from_secs(15)),
            "no second attempt after a timeout of 5 s"
        );
        sleep(Duration::from_millis(50));
    }
    let requests = hanging.requests();
    let between = requests[1].at - requests[0].at;
    assert!(between > Duration::from_millis(4_500), "given up after {between:?}");
}

fn mail_event(threshold: &str) -> Value {
    json!({
        "mapped_ch": 3, "description": "well too warm", "notify_type": "email", "enabled": true, "source": "temp",
        "operator": ">", "threshold": threshold,
    })
}

#[test]
fn an_email_event_goes_to_both_addresses_through_the_relay() {
    let relay = Relay::start();
    let url = format!("smtp://127.0.0.1:{}", relay.port);
    let flags = [&LIFTED[..], &["--smtp-relay", &url, "--mail-from", "skein@example.org"]].concat();
    let platform = Platform::start_with(4, 1, &flags);
    platform.map(0, "pump-07", 3);
    let api = platform.api(0);
    api.put(
        "/v2/user",
        json!({"email1": "ops@example.org", "email2": "night@example.net"}),
    )
    .expect(200);
    // It needs no URL.
    define(&platform, 0, &mail_event("30"));
    platform.send(0, "json/pump-07", r#"{"temp":31.2}"#);
    platform.send(0, "json/pump-07", r#"{"temp":29}"#);
    let recipients = || {
        let mut recipients: Vec<_> = relay.mails().into_iter().flat_map(|mail| mail.to).collect();
        recipients.sort();
        recipients
    };
    eventually("both get it", || recipients().len() >= 2);
    settle();
    assert_eq!(recipients(), ["night@example.net", "ops@example.org"]);
    for mail in relay.mails() {
        assert_eq!(mail.from, "skein@example.org");
        assert!(mail.text.contains("Current:31.2 > Threshold:30"), "{}", mail.text);
        assert!(!mail.text.contains(&platform.account(0).device_token), "{}", mail.text);
    }
    // What stands in a definition is plain data, never a header.
    let id = platform.api(0).get("/v2/event").expect(200).json()[0]["event_id"]
        .as_u64()
        .unwrap();
    let description = "x\r\nBcc: all@example.org\r\nX-Injected: 1";
    api.put(&event_url(id), json!({"description": description})).expect(200);
    platform.send(0, "json/pump-07", r#"{"temp":31.2}"#);
    eventually("both get it", || recipients().len() >= 4);
    for mail in relay.mails() {
        assert!(mail.to.iter().all(|to| to != "all@example.org"), "{mail:?}");
        let (head, _) = mail.text.split_once("\r\n\r\n").unwrap();
        assert!(
            !head
                .lines()
                .any(|line| line.starts_with("Bcc") || line.starts_with("X-Injected")),
            "{head}"
        );
    }
    // One address is enough; none is no mail.
    for (email1, email2, count) in [("", "night@example.net", 5), ("", "", 5)] {
        api.put("/v2/user", json!({"email1": email1, "email2": email2}))
            .expect(200);
        platform.send(0, "json/pump-07", r#"{"temp":31.2}"#);
        eventually("the one gets it", || recipients().len() >= count);
        settle();
        assert_eq!(recipients().len(), count);
    }
}

#[test]
fn mails_are_capped_at_50_a_day_for_each_account() {
    let relay = Relay::start();
    let url = format!("smtp://127.0.0.1:{}", relay.port);
    let flags = [&LIFTED[..], &["--smtp-relay", &url, "--mail-from", "skein@example.org"]].concat();
    let platform = Platform::start_with(4, 2, &flags);
    for (index, address) in ["one@example.org", "two@example.org"].into_iter().enumerate() {
        platform.map(index, "pump-07", 3);
        platform
            .api(index)
            .put("/v2/user", json!({"email1": address}))
            .expect(200);
        define(&platform, index, &mail_event("30"));
    }
    let to = |address: &str| relay.mails().iter().filter(|mail| mail.to == [address]).count();
    for n in 0..60 {
        platform
            .connector(0, "pump-07")
            .post("/post_v2/", r#"{"temp":31}"#)
            .expect(200);
        // So that none is dropped for want of a place.
        if n < 50 {
            eventually("the mail comes", || to("one@example.org") > n);
        }
    }
    sleep(Duration::from_secs(2));
    assert_eq!(to("one@example.org"), 50);
    platform.send(1, "json/pump-07", r#"{"temp":31}"#);
    eventually("the other account has a cap of its own", || to("two@example.org") == 1);
    assert_eq!(platform.values(0, 3).len(), 60);
}

#[test]
fn without_a_relay_the_mail_is_logged() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform
        .api(0)
        .put("/v2/user", json!({"email1": "ops@example.org"}))
        .expect(200);
    define(&platform, 0, &mail_event("30"));
    platform.send(0, "json/pump-07", r#"{"temp":31.2}"#);
    platform.broker().await_written("Current:31.2 > Threshold:30");
}
