//! Credentials and tokens (sections 3.2 and 4), client identifiers (3.1), and what the administrator's changes of an account do
//! to what is connected.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::fixture::{Account, LIFTED, Platform, assert_error, eventually, settle};
use crate::clients::{Agent, LIBRARIES, Message};
use crate::raw::{Connect, Will, publish, publish_at_most_once, retained};

/// Return codes of the standard.
const BAD_LEVEL: u8 = 1;
const BAD_ID: u8 = 2;
const BAD_CREDENTIALS: u8 = 4;
const NOT_AUTHORIZED: u8 = 5;

#[test]
fn only_the_user_id_with_the_device_token_of_the_same_account_is_let_in() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &LIFTED);
        let [one, two] = platform.accounts();
        let (lower, longer) = (one.device_token.to_lowercase(), format!("{}0", one.device_token));
        let lower_user = one.user_id.to_lowercase();
        let good = one.connect("device");
        for level in [3, 4] {
            platform.raw(Connect { level, ..good });
            for (user, password) in [
                (None, None),
                (Some(&one.user_id[..]), None),
                (Some(&one.user_id), Some("")),
                (Some(""), Some(&one.device_token[..])),
                (Some("U999999"), Some(&one.device_token)),
                (Some(&lower_user), Some(&one.device_token)),
                (Some(&one.user_id), Some(&one.api_token)),
                (Some(&one.user_id), Some(&two.device_token)),
                (Some(&two.user_id), Some(&one.device_token)),
                (Some(&one.user_id), Some(&lower)),
                (Some(&one.user_id), Some(&one.device_token[..31])),
                (Some(&one.user_id), Some(&longer)),
                (Some(&one.device_token), Some(&one.user_id)),
            ] {
                let connect = Connect {
                    level,
                    user,
                    password,
                    ..good
                };
                assert_eq!(platform.refused(connect), BAD_CREDENTIALS, "{connect:?}");
            }
        }
    }
}

/// 1 to 23 characters unless the flag says otherwise; an empty one is given a name at level 4 with a clean session.
#[test]
fn a_client_identifier_has_1_to_23_characters() {
    let mut platform = Platform::start(1);
    let account = platform.account(0).clone();
    let of = |one: &str, count: usize| one.repeat(count);
    let allowed = ["d".to_owned(), of("d", 23), of("é", 23)];
    let refused = [of("d", 24), of("d", 28), of("é", 24)];
    for level in [3, 4] {
        for is_clean in [true, false] {
            let connect = |id| Connect {
                level,
                is_clean,
                ..account.connect(id)
            };
            for id in &allowed {
                platform.raw(connect(id));
            }
            for id in &refused {
                assert_eq!(platform.refused(connect(id)), BAD_ID, "{id}");
            }
            match (level, is_clean) {
                (4, true) => drop(platform.raw(connect(""))),
                _ => assert_eq!(platform.refused(connect("")), BAD_ID, "level {level}"),
            }
        }
    }
    // What was given is a name of at most 23 characters, another one each time.
    let raws: Vec<_> = (0..3).map(|_| platform.raw(account.connect(""))).collect();
    let list = platform.api(0).get("/v2/session").expect(200).json();
    let mut ids: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|session| session["client_id"].as_str().unwrap())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), raws.len(), "{list}");
    assert!(ids.iter().all(|id| (1..=23).contains(&id.chars().count())), "{list}");
    drop(raws);
    platform.stop();

    platform.run(4, &[&LIFTED[..], &["--client-id-max", "64"]].concat());
    platform.raw(account.connect(&"d".repeat(64)));
    assert_eq!(platform.refused(account.connect(&"d".repeat(65))), BAD_ID);
}

#[test]
fn another_protocol_level_is_refused_with_0x01() {
    let platform = Platform::start(1);
    let good = platform.account(0).connect("device");
    for level in [0, 1, 2, 5, 6, 0x83] {
        assert_eq!(platform.refused(Connect { level, ..good }), BAD_LEVEL, "level {level}");
    }
}

/// Same id, two accounts: neither takes over, and each has a Session of its own.
#[test]
fn the_same_client_identifier_in_two_accounts_is_two_clients() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &LIFTED);
        let [one, two] = platform.accounts();
        let mut first = platform.raw(one.connect_durable("same"));
        let mut second = platform.raw(two.connect_durable("same"));
        assert!(!second.session_present);
        for (raw, account) in [(&mut first, &one), (&mut second, &two)] {
            assert_eq!(raw.granted(&[(&account.topic("#"), 1)]), [1]);
            raw.deliver(&publish(&account.topic("x"), 1, 7, account.user_id.as_bytes()), 7);
            let (topic, payload, _) = raw.message();
            assert_eq!(
                (topic, payload),
                (account.topic("x"), account.user_id.clone().into_bytes())
            );
        }
        // Within the account it takes over.
        let third = platform.raw(one.connect_durable("same"));
        assert!(third.session_present);
        assert!(first.is_closed_within(std::time::Duration::from_secs(10)));
        second.deliver(&publish(&two.topic("x"), 1, 8, b"still here"), 8);
        assert_eq!(second.message().1, b"still here");
        // A clean session of one ends nothing of the other.
        drop(third);
        drop(platform.raw(one.connect("same")));
        drop(second);
        assert!(platform.raw(two.connect_durable("same")).session_present);
        assert!(!platform.raw(one.connect_durable("same")).session_present);
    }
}

/// Every form the API token, or none, may be given in.
#[test]
fn the_api_asks_for_the_api_token_on_every_call() {
    let platform = Platform::start(1);
    let account = platform.account(0).clone();
    platform.map(0, "pump-07", 3);
    let wrong = [
        None,
        Some(String::new()),
        Some("0".repeat(32)),
        Some(account.device_token.clone()),
        Some(account.api_token.to_lowercase()),
        Some(account.api_token[..31].to_owned()),
        Some(format!("{}0", account.api_token)),
        Some(account.user_id.clone()),
    ];
    let calls = [
        ("GET", "/v2/device"),
        ("GET", "/v2/device/pump-07"),
        ("POST", "/v2/device/new"),
        ("PUT", "/v2/device/pump-07"),
        ("DELETE", "/v2/device/pump-07"),
        ("GET", "/v2/channel"),
        ("GET", "/v2/channel/3"),
        ("POST", "/v2/channel/4"),
        ("PUT", "/v2/channel/3"),
        ("DELETE", "/v2/channel/3"),
        ("GET", "/v2/stream/3"),
        ("POST", "/v2/stream/3"),
        ("GET", "/v2/event"),
        ("GET", "/v2/event/1"),
        ("POST", "/v2/event"),
        ("PUT", "/v2/event/1"),
        ("DELETE", "/v2/event/1"),
        ("GET", "/v2/user"),
        ("PUT", "/v2/user"),
        ("POST", "/v2/publish/pump-07"),
        ("POST", "/v1/publish/pump-07"),
        ("GET", "/v2/session"),
    ];
    for (method, path) in calls {
        for token in &wrong {
            let api = match token {
                Some(token) => platform.anybody().header("X-APITOKEN", token),
                None => platform.anybody(),
            };
            let body = matches!(method, "POST" | "PUT").then_some(&b"{}"[..]);
            assert_error(&api.call(method, path, body), 401, "AUTH_REQUIRED");
        }
    }
    // No other place for it.
    let token = &account.api_token;
    for api in [
        platform.anybody().header("X-DEVICETOKEN", token),
        platform.anybody().header("Authorization", format!("Bearer {token}")),
        platform.anybody().header("Cookie", format!("X-APITOKEN={token}")),
    ] {
        assert_error(&api.get("/v2/device"), 401, "AUTH_REQUIRED");
    }
    assert_error(
        &platform.anybody().get(&format!("/v2/device?X-APITOKEN={token}")),
        401,
        "AUTH_REQUIRED",
    );
    // The name of a header has no case.
    platform
        .anybody()
        .header("x-apitoken", token)
        .get("/v2/device")
        .expect(200);
    assert_eq!(
        (platform.devices(0), platform.values(0, 3).len()),
        (vec!["pump-07".to_owned()], 0)
    );
}

/// After a rotation of the device token: connections close, subscriptions and retained messages below the old prefix are gone,
/// in the running broker and after a restart. Devices, data and the API token stay.
#[test]
fn rotating_the_device_token_ends_what_was_below_the_old_one() {
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 2, &LIFTED);
        let [before, other] = platform.accounts();
        for index in [0, 1] {
            platform.map(index, "pump-07", 3);
            platform.send(index, "json/pump-07", "1");
        }
        let kept = Message::new(&before.topic("kept"), "old", 1, true);
        let mut raw = platform.raw(before.connect_durable("durable"));
        assert_eq!(raw.granted(&[(&before.topic("#"), 1)]), [1]);
        raw.deliver(&retained(publish(&kept.topic, 1, 1, b"old")), 1);
        let mut clean = platform.raw(before.connect("clean"));
        let mut bystander = platform.raw(other.connect("bystander"));
        assert_eq!(bystander.granted(&[(&other.topic("#"), 1)]), [1]);
        bystander.deliver(&retained(publish(&other.topic("kept"), 1, 1, b"other")), 1);

        let after = platform.change_account(0, &["rotate-token"]);
        assert_eq!((&after.user_id, &after.api_token), (&before.user_id, &before.api_token));
        assert!(after.device_token != before.device_token && after.device_token.len() == 32);
        assert_eq!(
            platform.api(0).get("/v2/user").expect(200).json()[0]["device_token"],
            after.device_token
        );
        for raw in [&mut raw, &mut clean] {
            assert!(
                raw.is_closed_within(std::time::Duration::from_secs(10)),
                "{cores} cores"
            );
        }
        assert_eq!(platform.refused(before.connect("clean")), BAD_CREDENTIALS);
        let old = platform.anybody().header("X-DEVICETOKEN", &before.device_token);
        assert_error(
            &old.header("X-DEVICEID", "pump-07").post("/post_v2/", "1"),
            401,
            "AUTH_REQUIRED",
        );
        bystander.deliver(&publish(&other.topic("x"), 1, 2, b"still"), 2);
        assert_eq!(bystander.message().1, b"other");
        assert_eq!(bystander.message().1, b"still");

        // Devices and data stay, and go on below the new prefix.
        platform.send(0, "json/pump-07", "2");
        assert_eq!(platform.values(0, 3), [json!({"value1": 1}), json!({"value1": 2})]);
        let check = |platform: &Platform, n: u16| {
            let mut raw = platform.raw(after.connect_durable("durable"));
            // Below the old prefix nothing is the account's any more.
            raw.deliver(&publish(&before.topic("x"), 1, 10 + n, b"lost"), 10 + n);
            raw.deliver(&publish(&after.topic("x"), 1, 20 + n, b"not subscribed"), 20 + n);
            assert_eq!(
                raw.granted(&[(&before.topic("#"), 1), (&after.topic("y"), 1)]),
                [0x80, 1]
            );
            raw.deliver(&publish(&after.topic("y"), 1, 30 + n, b"first"), 30 + n);
            assert_eq!(raw.message().1, b"first", "the old subscriptions are gone");
        };
        check(&platform, 0);
        platform.kill();
        platform.run(5 - cores, &LIFTED);
        check(&platform, 1);
        let mut watcher = platform.watch(0);
        settle();
        assert_eq!(watcher.arrived(), [], "nothing is retained");
    }
}

#[test]
fn rotating_the_api_token_ends_the_old_one_at_once() {
    let mut platform = Platform::start(1);
    let before = platform.account(0).clone();
    let mut raw = platform.raw(before.connect("device"));
    let after = platform.change_account(0, &["rotate-token", "--api"]);
    assert_eq!(
        (&after.user_id, &after.device_token),
        (&before.user_id, &before.device_token)
    );
    assert!(after.api_token != before.api_token && after.api_token.len() == 32);
    assert_error(&platform.api_of(&before).get("/v2/user"), 401, "AUTH_REQUIRED");
    platform.api_of(&after).get("/v2/user").expect(200);
    raw.deliver(&publish(&after.topic("x"), 1, 1, b""), 1);
    platform.kill();
    platform.run(1, &LIFTED);
    assert_error(&platform.api_of(&before).get("/v2/user"), 401, "AUTH_REQUIRED");
    platform.api_of(&after).get("/v2/user").expect(200);
}

#[test]
fn a_suspended_account_is_refused_with_0x05_and_its_connections_close() {
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 2, &LIFTED);
        let [one, two] = platform.accounts();
        platform.map(0, "pump-07", 3);
        platform.send(0, "json/pump-07", "1");
        let mut durable = platform.raw(one.connect_durable("durable"));
        assert_eq!(durable.granted(&[(&one.topic("#"), 1)]), [1]);
        let mut bystander = platform.raw(two.connect("bystander"));
        let suspended = platform.change_account(0, &["suspend"]);
        assert_eq!(suspended, one, "tokens stay");
        assert!(
            durable.is_closed_within(std::time::Duration::from_secs(10)),
            "{cores} cores"
        );
        let refused_in_all = |platform: &Platform| {
            for level in [3, 4] {
                let connect = Connect {
                    level,
                    ..one.connect("device")
                };
                assert_eq!(platform.refused(connect), NOT_AUTHORIZED);
            }
            let wrong = Connect {
                password: Some(&one.api_token),
                ..one.connect("device")
            };
            assert_eq!(
                platform.refused(wrong),
                BAD_CREDENTIALS,
                "who has not the token learns nothing"
            );
            let connector = platform.connector(0, "pump-07").post("/post_v2/", "1");
            assert!(matches!(connector.status, 401 | 403), "{connector:?}");
            let api = platform.api(0).get("/v2/user");
            assert!(matches!(api.status, 401 | 403), "{api:?}");
        };
        refused_in_all(&platform);
        bystander.deliver(&publish(&two.topic("x"), 1, 1, b""), 1);
        platform.kill();
        platform.run(5 - cores, &LIFTED);
        refused_in_all(&platform);
        assert_eq!(platform.change_account(0, &["resume"]), one);
        let raw = platform.raw(one.connect_durable("durable"));
        assert!(raw.session_present, "everything stays");
        assert_eq!(platform.values(0, 3), [json!({"value1": 1})]);
    }
}

/// Sessions, retained messages, devices, channels, datapoints, events: gone, now and after a restart, and whoever comes after
/// finds nothing of it.
#[test]
fn a_removed_account_leaves_nothing() {
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 2, &LIFTED);
        let [one, two] = platform.accounts();
        for index in [0, 1] {
            platform.map(index, "pump-07", 3);
            platform.send(index, "json/pump-07/inlet", "1");
            platform.send(index, "state/pump-07", "health=OK");
            platform
                .api(index)
                .post("/v2/event", json!({"description": "own"}))
                .expect(201);
        }
        let mut raw = platform.raw(one.connect_durable("durable"));
        assert_eq!(raw.granted(&[(&one.topic("#"), 2)]), [2]);
        raw.deliver(&retained(publish(&one.topic("kept"), 1, 1, b"kept")), 1);
        let removed = platform.account_command(&["remove", &one.user_id]);
        assert!(removed.status.success(), "{removed:?}");
        assert!(
            raw.is_closed_within(std::time::Duration::from_secs(10)),
            "{cores} cores"
        );
        for run in 0..2 {
            assert_eq!(platform.refused(one.connect_durable("durable")), BAD_CREDENTIALS);
            assert_error(&platform.api_of(&one).get("/v2/user"), 401, "AUTH_REQUIRED");
            let connector = platform.connector(0, "pump-07").post("/post_v2/", "1");
            assert_error(&connector, 401, "AUTH_REQUIRED");
            assert_eq!(platform.values(1, 3).len(), 1);
            assert_eq!(platform.device(1, "pump-07")["state"]["health"], "OK");
            assert_eq!(
                platform
                    .api(1)
                    .get("/v2/event")
                    .expect(200)
                    .json()
                    .as_array()
                    .unwrap()
                    .len(),
                1
            );
            if run == 0 {
                platform.kill();
                platform.run(5 - cores, &LIFTED);
            }
        }
        platform.stop();
        // Nothing below its token is on disk: its texts are in no row any more.
        let inspected = std::process::Command::new(env!("CARGO_BIN_EXE_skein"))
            .args(["inspect", "--json", "--data-dir"])
            .arg(platform.data_dir())
            .output()
            .unwrap();
        let inspected_text = String::from_utf8_lossy(&inspected.stdout).into_owned();
        assert!(inspected.status.success(), "{inspected_text}");
        assert!(!inspected_text.contains(&one.device_token), "{inspected_text}");
        // An account that comes later is another one, even if its name were the same.
        platform.run(cores, &LIFTED);
        let again = platform.add_account(&["--id", &one.user_id]);
        let index = 2;
        assert_eq!(
            (again.user_id == one.user_id, again.device_token == one.device_token),
            (true, false)
        );
        assert_eq!(platform.devices(index), [""; 0]);
        for path in ["/v2/channel", "/v2/event", "/v2/session"] {
            assert_eq!(platform.api(index).get(path).expect(200).json(), json!([]), "{path}");
        }
        assert!(!platform.raw(again.connect_durable("durable")).session_present);
        assert_eq!(
            platform.api(index).get("/v2/user").expect(200).json()[0]["storage"]["count"],
            0
        );
        drop(two);
    }
}

/// Beside a running broker, before one runs, and after: one and the same account.
#[test]
fn accounts_are_made_beside_a_running_broker_or_without_one() {
    let mut platform = Platform::prepare(1);
    let before = platform.account(0).clone();
    platform.run(4, &[]);
    platform.client(0, "before");
    let beside = platform.add_account(&[]);
    platform.client(1, "beside");
    platform.api_of(&beside).get("/v2/user").expect(200);
    platform.stop();
    let after = platform.add_account(&[]);
    let list = platform.account_json(&["list"]);
    let listed = list.to_string();
    for account in [&before, &beside, &after] {
        assert!(listed.contains(&account.user_id), "{listed}");
    }
    platform.run(1, &[]);
    for index in 0..3 {
        platform.client(index, "later");
    }
    let refused = platform.account_command(&["suspend", "U999999"]);
    assert!(!refused.status.success());
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("U999999"),
        "{refused:?}"
    );
}

/// The first start makes an account and prints what to paste, once; who has made one before is not given another.
#[test]
fn the_first_start_makes_an_account_and_says_what_to_paste() {
    let mut platform = Platform::prepare(0);
    platform.run(4, &[]);
    let said = platform.stop();
    let list = platform.account_json(&["list"]);
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    let shown = platform.account_json(&["list", "--show-tokens"])[0].clone();
    let account = Account::parse(&shown);
    for text in [&account.user_id, &account.device_token, &account.api_token] {
        assert!(said.contains(text.as_str()), "no {text}: {said}");
    }
    assert!(said.contains("mosquitto_pub") && said.contains("curl"), "{said}");
    platform.run(4, &[]);
    platform.raw(account.connect("device"));
    platform.api_of(&account).get("/v2/user").expect(200);
    let said = platform.stop();
    assert!(
        !said.contains(&account.device_token) && !said.contains(&account.api_token),
        "only once: {said}"
    );

    let mut platform = Platform::prepare(1);
    platform.run(4, &[]);
    platform.stop();
    assert_eq!(platform.account_json(&["list"]).as_array().map(Vec::len), Some(1));
}

/// Tokens are shown by the User service, so they are in the file; nobody else may read that.
#[test]
fn the_files_that_hold_tokens_are_the_owners_alone() {
    let platform = Platform::start(1);
    let mut found = 0;
    for entry in std::fs::read_dir(platform.data_dir()).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode();
        if entry.file_name().to_string_lossy().starts_with("data.mdb") {
            found += 1;
            assert_eq!(mode & 0o077, 0, "{entry:?}: {mode:o}");
        }
    }
    assert_eq!(found, 1);
}

/// Whatever happens, at the level that says most.
#[test]
fn no_token_is_ever_in_the_log() {
    let mut agents = LIBRARIES.map(Agent::start);
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 2, &["--log", "debug"]);
        let [one, two] = platform.accounts();
        platform.map(0, "pump-07", 3);
        let mut raw = platform.raw(one.connect_with_will(
            "raw",
            Will {
                topic: &one.topic("json/pump-07"),
                payload: b"1",
                qos: 1,
                retain: true,
            },
        ));
        // Refusals of every kind, of publishing and of subscribing.
        for (n, topic) in [
            one.topic("json/pump-07/a/b"),
            one.topic("json/0"),
            one.topic("json/pump-07"),
            one.topic("json/new"),
            two.topic("json/pump-07"),
            one.api_token.clone(),
            one.device_token.clone(),
            format!("x/{}", one.device_token),
        ]
        .into_iter()
        .enumerate()
        {
            let id = n as u16 + 1;
            raw.deliver(&publish(&topic, 1, id, b"{"), id);
            raw.send(&publish_at_most_once(&topic, b""));
            raw.granted(&[(&topic, 1), (&format!("+/{topic}"), 1)]);
        }
        for password in [&one.api_token, &two.device_token, &one.device_token] {
            for user in [&one.user_id, &one.device_token] {
                let connect = Connect {
                    user: Some(user),
                    password: Some(password),
                    ..one.connect("wrong")
                };
                let _ = crate::raw::Raw::open(platform.broker().port, &connect.packet());
            }
        }
        for agent in &mut agents {
            agent.connect("a", platform.broker(), one.hello("agent").durable());
            agent.subscribe("a", &[(&one.topic("#"), 2)]);
            agent.publish("a", &Message::new(&one.topic("json/pump-07"), "1", 2, true));
            agent.disconnect("a");
        }
        for token in [&one.api_token, &one.device_token] {
            for header in ["X-APITOKEN", "X-DEVICETOKEN"] {
                let api = platform.anybody().header(header, token).header("X-DEVICEID", "pump-07");
                api.get(&format!("/v2/device/{token}"));
                api.post("/post_v2/", "{");
                api.get(&format!("/{token}"));
            }
        }
        drop(raw);
        eventually("the will is stored", || platform.values(0, 3).len() >= 3);
        let rotated = platform.change_account(0, &["rotate-token"]);
        let rotated_api = platform.change_account(0, &["rotate-token", "--api"]);
        platform.change_account(0, &["suspend"]);
        let log = platform.stop();
        for token in [
            &one.api_token,
            &one.device_token,
            &two.api_token,
            &two.device_token,
            &rotated.device_token,
            &rotated_api.api_token,
        ] {
            for form in [token.clone(), token.to_lowercase()] {
                let line = log.lines().find(|line| line.contains(&form));
                assert_eq!(line, None, "{cores} cores");
            }
        }
    }
}
