//! The topic grammar (section 5), who may publish and subscribe where (5.1, 5.2), and what is stored of it (6.1 to 6.3); at both
//! levels of the protocol, by a client that says exactly what is written here.

use serde_json::{Value, json};

use super::fixture::{Account, LIFTED, Platform, eventually, settle};
use crate::raw::{Connect, Packet, Raw, Will, publish, publish_at_most_once, retained};

const LEVELS: [u8; 2] = [3, 4];

fn connect(platform: &Platform, level: u8, id: &str) -> Raw {
    platform.raw(Connect {
        level,
        ..platform.account(0).connect(id)
    })
}

/// At each QoS, acknowledged.
fn publish_at_every_qos(raw: &mut Raw, topic: &str, payload: &[u8]) {
    raw.send(&publish_at_most_once(topic, payload));
    raw.deliver(&publish(topic, 1, 11, payload), 11);
    raw.deliver(&publish(topic, 2, 12, payload), 12);
}

/// Messages that have come until something that is known to come last.
fn until_fence(watcher: &mut Raw, publisher: &mut Raw, account: &Account) -> Vec<(String, Vec<u8>)> {
    publisher.deliver(&publish(&account.topic("fence"), 1, 99, b"fence"), 99);
    let mut got = Vec::new();
    loop {
        let (topic, payload, _) = watcher.message();
        if topic == account.topic("fence") {
            return got;
        }
        got.push((topic, payload));
    }
}

/// The rows of section 5 and its rules: topic, payload, what is stored of it with which tag, whether a subscriber gets it.
#[test]
fn what_is_stored_and_what_is_routed_is_known_by_the_topic() {
    let long = "d".repeat(64);
    let too_long = "d".repeat(65);
    let stored = |value: Value, tag: Value| Some((value, tag));
    let one = || json!({"value1": 1});
    /// Topic below the token, payload, value and tag. `None`: routed, not stored, not provisioned.
    type Row<'a> = (String, &'a [u8], Option<(Value, Value)>);
    let rows: Vec<Row<'_>> = vec![
        ("json/DEV".into(), b"1", stored(one(), json!(null))),
        ("json/DEV/TAG".into(), b"1", stored(one(), json!("TAG"))),
        ("json/DEV/".into(), b"1", stored(one(), json!(null))),
        ("json/DEV/0".into(), b"1", stored(one(), json!("0"))),
        ("json/DEV/json".into(), b"1", stored(one(), json!("json"))),
        (format!("json/DEV/{long}"), b"1", stored(one(), json!(long))),
        ("binary/DEV".into(), b"1", stored(json!({"value1": "31"}), json!(null))),
        (
            "binary/DEV/TAG".into(),
            b"\x00\xff",
            stored(json!({"value1": "00ff"}), json!("TAG")),
        ),
        (
            "binary/DEV/".into(),
            b"{}",
            stored(json!({"value1": "7b7d"}), json!(null)),
        ),
        // Routed and no more: commands, and what fits no row.
        ("DEV/subscribe".into(), b"1", None),
        ("new/subscribe".into(), b"1", None),
        ("DEV".into(), b"v=1", None),
        ("anything/else/there/is".into(), b"1", None),
        ("JSON/DEV".into(), b"1", None),
        ("other/DEV/TAG".into(), b"1", None),
        ("Grüße/日本".into(), b"1", None),
        ("".into(), b"1", None),
        ("/".into(), b"1", None),
    ];
    for level in LEVELS {
        for cores in [1, 4] {
            let platform = Platform::start_with(cores, 1, &LIFTED);
            let account = platform.account(0);
            platform.map(0, "DEV", 3);
            let mut publisher = connect(&platform, level, "publisher");
            let mut watcher = connect(&platform, 7 - level, "watcher");
            assert_eq!(watcher.granted(&[(&account.topic("#"), 2)]), [2]);
            let mut points = Vec::new();
            for (below, payload, stored) in &rows {
                let topic = account.topic(below);
                publish_at_every_qos(&mut publisher, &topic, payload);
                let got = until_fence(&mut watcher, &mut publisher, account);
                assert_eq!(
                    got,
                    vec![(topic.clone(), payload.to_vec()); 3],
                    "{below}, byte for byte"
                );
                if let Some((value, tag)) = stored {
                    points.extend(vec![(value.clone(), tag.clone()); 3]);
                }
                let stream = platform.stream(0, 3);
                let rows = stream["stream"].as_array().unwrap().iter();
                let found: Vec<_> = rows.map(|row| (row["value"].clone(), row["tag"].clone())).collect();
                assert_eq!(found, points, "{below}, level {level}, {cores} cores");
            }
            // The prefix itself is a topic of the account.
            publish_at_every_qos(&mut publisher, &account.device_token, b"1");
            assert_eq!(until_fence(&mut watcher, &mut publisher, account).len(), 3);
            assert_eq!(platform.devices(0), ["DEV"]);
            // Ids that may not be, and tags of more than a level: nothing is stored or provisioned.
            let before = platform.values(0, 3).len();
            for below in [
                "json/DEV/TAG/more",
                "json/DEV/TAG/",
                "json/DEV//",
                "json/new/TAG/more",
                "json",
                "json/",
                "json//TAG",
                "json/0",
                "json/0/TAG",
                "json/json",
                "json/binary",
                "json/state",
                "json/subscribe",
                "binary/0",
                "binary/subscribe/TAG",
                "binary/",
                "state/0",
                "state/",
                "json/a\tb",
                "json/a\u{7f}b",
                "json/DEV/a\u{1}b",
                &format!("json/{too_long}"),
                &format!("json/DEV/{too_long}"),
                &format!("binary/{too_long}"),
            ] {
                publish_at_every_qos(&mut publisher, &account.topic(below), b"1");
                assert_eq!(platform.devices(0), ["DEV"], "{below}");
            }
            assert_eq!(platform.values(0, 3).len(), before);
        }
    }
}

/// Section 6.3 over MQTT. What cannot be read is acknowledged, and neither stored nor routed.
#[test]
fn a_payload_decides_what_is_stored() {
    let platform = Platform::start(1);
    let account = platform.account(0);
    platform.map(0, "DEV", 3);
    let mut raw = platform.client(0, "publisher");
    let payloads: [(&str, &[u8], Value); 12] = [
        ("json", br#"{"temp":21.5,"rh":48}"#, json!({"temp": 21.5, "rh": 48})),
        (
            "json",
            br#"{"a":{"b":[1,{"c":"d"}]}}"#,
            json!({"a": {"b": [1, {"c": "d"}]}}),
        ),
        ("json", b"23.5", json!({"value1": 23.5})),
        ("json", b"-7", json!({"value1": -7})),
        ("json", br#""open""#, json!({"value1": "open"})),
        ("json", b"true", json!({"value1": true})),
        ("json", b"[1,2]", json!({"value1": [1, 2]})),
        ("json", b" { } ", json!({})),
        ("json", br#"{"a":1,"a":2}"#, json!({"a": 2})),
        ("binary", &[0x01, 0xa4, 0xff], json!({"value1": "01a4ff"})),
        ("binary", b"null", json!({"value1": "6e756c6c"})),
        ("binary", &[0; 300], json!({"value1": "00".repeat(300)})),
    ];
    for (format, payload, _) in &payloads {
        raw.deliver(&publish(&account.topic(&format!("{format}/DEV")), 1, 1, payload), 1);
    }
    let expected: Vec<_> = payloads.into_iter().map(|(_, _, value)| value).collect();
    assert_eq!(platform.values(0, 3), expected);
    for payload in [
        &b"null"[..],
        b"{",
        b"open",
        b"NaN",
        b"{\"a\":Infinity}",
        b"\"\xff\"",
        b"1 2",
        b"\xef\xbb\xbf1",
    ] {
        publish_at_every_qos(&mut raw, &account.topic("json/DEV"), payload);
        // The payload is looked at last: the device is registered all the same.
        publish_at_every_qos(&mut raw, &account.topic("json/unreadable"), payload);
    }
    assert_eq!(platform.values(0, 3), expected);
    assert_eq!(platform.devices(0), ["DEV", "unreadable"]);
}

#[test]
fn an_empty_payload_is_never_stored_and_never_provisions() {
    for level in LEVELS {
        let platform = Platform::start(1);
        let account = platform.account(0);
        platform.map(0, "DEV", 3);
        let mut raw = connect(&platform, level, "publisher");
        for below in [
            "json/DEV",
            "binary/DEV",
            "json/new",
            "binary/new",
            "state/DEV",
            "state/new",
        ] {
            publish_at_every_qos(&mut raw, &account.topic(below), b"");
            raw.deliver(&retained(publish(&account.topic(below), 1, 1, b"")), 1);
        }
        assert_eq!(platform.values(0, 3).len(), 0);
        assert_eq!(platform.devices(0), ["DEV"]);
        assert_eq!(platform.device(0, "DEV").get("state"), None);
    }
}

/// Section 5.1: routed while it is unmapped, not while it is disabled.
#[test]
fn a_message_is_routed_while_its_device_is_unmapped_and_not_while_it_is_disabled() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        let account = platform.account(0);
        let mut publisher = platform.client(0, "publisher");
        let mut watcher = platform.client(0, "watcher");
        assert_eq!(watcher.granted(&[(&account.topic("#"), 2)]), [2]);
        let topics =
            ["json/DEV", "json/DEV/TAG", "binary/DEV", "state/DEV", "DEV/subscribe"].map(|below| account.topic(below));
        let mut routed = |publisher: &mut Raw| {
            for topic in &topics {
                let payload = if topic.contains("/state/") { &b"a=1"[..] } else { b"1" };
                publish_at_every_qos(publisher, topic, payload);
            }
            let got = until_fence(&mut watcher, publisher, account);
            topics
                .each_ref()
                .map(|topic| got.iter().filter(|(found, _)| found == topic).count())
        };
        // New, then unmapped, then mapped.
        assert_eq!(routed(&mut publisher), [3; 5]);
        assert_eq!(routed(&mut publisher), [3; 5]);
        platform.map(0, "DEV", 3);
        assert_eq!(routed(&mut publisher), [3; 5]);
        assert_eq!(platform.values(0, 3).len(), 9);
        let enable = |enabled: bool| {
            platform
                .api(0)
                .put("/v2/device/DEV", json!({"enabled": enabled}))
                .expect(200);
        };
        enable(false);
        // A command is no data of the device.
        assert_eq!(routed(&mut publisher), [0, 0, 0, 0, 3]);
        assert_eq!(platform.values(0, 3).len(), 9);
        enable(true);
        assert_eq!(routed(&mut publisher), [3; 5]);
        assert_eq!(platform.values(0, 3).len(), 18);
    }
}

/// Another account's token, none, a part of the own one: acknowledged at QoS 1 and 2, and the connection stays.
#[test]
fn a_topic_without_the_own_token_is_acknowledged_and_goes_nowhere() {
    for level in LEVELS {
        let platform = Platform::start(2);
        let [own, other] = platform.accounts();
        let mut watchers = [platform.watch(0), platform.watch(1)];
        platform.map(1, "DEV", 3);
        let mut raw = connect(&platform, level, "publisher");
        let (lower, longer) = (own.device_token.to_lowercase(), format!("{}0", own.device_token));
        for prefix in [
            &other.device_token[..],
            &own.api_token,
            &own.user_id,
            &lower,
            &longer,
            &own.device_token[..31],
            "",
            "$SYS",
            &format!("/{}", own.device_token),
            &format!(" {}", own.device_token),
        ] {
            for below in ["json/DEV", "binary/DEV", "state/DEV", "DEV/subscribe", "DEV"] {
                let topic = format!("{prefix}/{below}");
                publish_at_every_qos(&mut raw, &topic, b"1");
                raw.deliver(&retained(publish(&topic, 1, 1, b"1")), 1);
            }
        }
        raw.deliver(&publish("x", 1, 1, b"1"), 1);
        settle();
        for watcher in &mut watchers {
            assert_eq!(watcher.arrived(), []);
        }
        assert_eq!((platform.devices(0).len(), platform.values(1, 3).len()), (0, 0));
        assert_eq!(platform.device(1, "DEV").get("state"), None);
        let mut later = [platform.watch(0), platform.watch(1)];
        settle();
        for watcher in &mut later {
            assert_eq!(watcher.arrived(), [], "a refused message was retained");
        }
    }
}

/// Section 5.2: the SUBACK at level 4; at level 3 a positive one, and nothing ever comes.
#[test]
fn only_filters_at_or_below_the_own_prefix_are_granted() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &LIFTED);
        let [own, other] = platform.accounts();
        let allowed = [
            "#",
            "pump-07/subscribe",
            "+/subscribe",
            "json/+",
            "json/+/+",
            "+",
            "",
            "+/#",
            "state/#",
        ];
        let mut allowed: Vec<_> = allowed.map(|below| own.topic(below)).into();
        allowed.push(own.device_token.clone());
        let (lower, longer) = (own.device_token.to_lowercase(), format!("{}0/#", own.device_token));
        let refused = [
            "#".to_owned(),
            "+/#".into(),
            "+/json/#".into(),
            "+".into(),
            "+/+/+".into(),
            "/#".into(),
            "$SYS/#".into(),
            "$SYS/broker/uptime".into(),
            other.topic("#"),
            other.device_token.clone(),
            other.topic("pump-07/subscribe"),
            format!("{lower}/#"),
            longer,
            format!("{}/#", &own.device_token[..31]),
            format!("/{}/#", own.device_token),
            format!("$share/group/{}/#", own.device_token),
            own.api_token.clone(),
            "x".into(),
        ];
        for level in LEVELS {
            let mut raw = connect(&platform, level, "subscriber");
            for qos in 0..=2 {
                for filter in &allowed {
                    assert_eq!(raw.granted(&[(filter, qos)]), [qos], "{filter}, level {level}");
                }
                for filter in &refused {
                    let code = raw.granted(&[(filter, qos)]);
                    match level {
                        4 => assert_eq!(code, [0x80], "{filter}"),
                        _ => assert!(code[0] <= 2, "{filter}: {code:?}, which level 3 does not know"),
                    }
                }
            }
            // Others in the packet are not concerned.
            let mixed = [("#", 2), (&allowed[1][..], 1), (&refused[8], 0), (&allowed[2], 2)];
            let codes = raw.granted(&mixed);
            assert_eq!((codes.len(), codes[1], codes[3]), (4, 1, 2));
            if level == 4 {
                assert_eq!((codes[0], codes[2]), (0x80, 0x80));
            }
            // What is refused is not subscribed: with nothing else subscribed nothing comes, of either account.
            let mut raw = connect(&platform, level, "bare");
            for filter in &refused {
                raw.granted(&[(filter, 1)]);
            }
            for index in [0, 1] {
                platform.send(index, "json/pump-07", "1");
                platform.send(index, "pump-07/subscribe", "1");
            }
            assert_eq!(
                raw.packet_within(std::time::Duration::from_millis(500)),
                None,
                "level {level}"
            );
        }
    }
}

/// Retained messages and wills go through the same checks.
#[test]
fn a_retained_data_message_is_stored_once_and_delivered_later() {
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 2, &LIFTED);
        let [account, other] = platform.accounts();
        platform.map(0, "DEV", 3);
        platform
            .api(0)
            .post("/v2/device/off", r#"{"enabled":false}"#)
            .expect(201);
        let mut raw = platform.client(0, "publisher");
        for (below, payload) in [
            ("json/DEV", &b"1"[..]),
            ("DEV/subscribe", b"stay"),
            ("anything", b"kept"),
            // Neither stored nor retained: disabled, unreadable, foreign.
            ("json/off", b"2"),
            ("json/DEV/TAG", b"{"),
        ] {
            raw.deliver(&retained(publish(&account.topic(below), 1, 1, payload)), 1);
        }
        raw.deliver(&retained(publish(&other.topic("anything"), 1, 1, b"foreign")), 1);
        assert_eq!(platform.values(0, 3), [json!({"value1": 1})]);
        let mut expected = ["json/DEV", "DEV/subscribe", "anything"].map(|below| account.topic(below));
        expected.sort();
        let seen = |platform: &Platform| {
            let mut raw = platform.client(0, "late");
            raw.granted(&[(&account.topic("#"), 1)]);
            let mut topics = Vec::new();
            while let Some(packet) = raw.packet_within(std::time::Duration::from_millis(500)) {
                let Packet::Publish { topic, retain, .. } = packet else {
                    panic!("{packet:?}")
                };
                assert!(retain, "{topic}");
                topics.push(topic);
            }
            topics.sort();
            topics
        };
        for _ in 0..2 {
            assert_eq!(seen(&platform), expected);
        }
        // Neither a delivery nor a restart stores it again.
        platform.kill();
        platform.run(5 - cores, &LIFTED);
        assert_eq!(seen(&platform), expected);
        assert_eq!(platform.values(0, 3), [json!({"value1": 1})]);
        let mut raw = platform.client(0, "publisher");
        raw.deliver(&retained(publish(&account.topic("json/DEV"), 1, 1, b"")), 1);
        assert_eq!(seen(&platform).len(), 2);
        assert_eq!(platform.values(0, 3), [json!({"value1": 1})]);
    }
}

#[test]
fn a_will_on_a_data_topic_is_stored_when_it_fires_and_a_foreign_one_goes_nowhere() {
    for level in LEVELS {
        for cores in [1, 4] {
            let platform = Platform::start_with(cores, 2, &LIFTED);
            let [account, other] = platform.accounts();
            platform.map(0, "DEV", 3);
            platform.map(1, "DEV", 3);
            let mut watchers = [platform.watch(0), platform.watch(1)];
            let with_will = |id: &str, topic: &str, payload: &[u8]| {
                let will = Will {
                    topic,
                    payload,
                    qos: 1,
                    retain: true,
                };
                platform.raw(Connect {
                    level,
                    ..account.connect_with_will(id, will)
                })
            };
            let own = account.topic("json/DEV");
            // Not stored before it fires, and not when it does not.
            let mut polite = with_will("polite", &own, b"0");
            let victim = with_will("victim", &own, b"1");
            let provisioning = with_will("provisioning", &account.topic("json/new"), b"2");
            let foreign = with_will("foreign", &other.topic("json/DEV"), b"3");
            let unreadable = with_will("unreadable", &own, b"{");
            polite.send(&[0xe0, 0]);
            settle();
            assert_eq!(platform.values(0, 3).len(), 0);
            for raw in [victim, provisioning, foreign, unreadable] {
                drop(raw);
            }
            eventually("the will is stored", || platform.values(0, 3) == [json!({"value1": 1})]);
            eventually("the device is registered", || platform.devices(0) == ["DEV", "new"]);
            settle();
            assert_eq!(platform.values(0, 3).len(), 1);
            assert_eq!(
                (platform.values(1, 3).len(), platform.devices(1)),
                (0, vec!["DEV".to_owned()])
            );
            let mut topics: Vec<_> = watchers[0].arrived().into_iter().map(|message| message.topic).collect();
            topics.sort();
            assert_eq!(topics, [own.clone(), account.topic("json/new")]);
            assert_eq!(watchers[1].arrived(), []);
            let mut late = platform.watch(1);
            settle();
            assert_eq!(late.arrived(), [], "a foreign will was retained");
        }
    }
}

/// Rule 6: off unless the setting turns it on.
#[test]
fn old_topics_are_data_only_with_the_setting() {
    for is_on in [false, true] {
        let flags = [if is_on { "--v1=true" } else { "--v1=false" }];
        let platform = Platform::start_with(4, 1, &[&LIFTED[..], &flags].concat());
        let account = platform.account(0);
        let mut raw = platform.client(0, "publisher");
        platform.map(0, "DEV", 3);
        for (payload, below) in [("v=1.5&v2=ok&v3=7", "DEV"), ("v=on&v4=4", "DEV"), ("v=1", "new")] {
            raw.deliver(&publish(&account.topic(below), 1, 1, payload.as_bytes()), 1);
        }
        let expected = match is_on {
            true => vec![
                json!({"value1": 1.5, "value2": "ok", "value3": 7}),
                json!({"value1": "on", "value4": 4}),
            ],
            false => vec![],
        };
        assert_eq!(platform.values(0, 3), expected);
        let devices = if is_on { vec!["DEV", "new"] } else { vec!["DEV"] };
        assert_eq!(platform.devices(0), devices);
        // Reserved words are no devices there either.
        for below in ["json", "binary", "state", "subscribe", "0"] {
            raw.deliver(&publish(&account.topic(below), 1, 1, b"v=1"), 1);
        }
        assert_eq!(platform.devices(0), devices);
    }
}

/// Section 5.1: counted by reason, and said in the log, with the token masked.
#[test]
fn refusals_are_counted_by_reason() {
    let mut platform = Platform::prepare(0);
    platform.add_account(&["--max-devices", "3"]);
    platform.run(1, &LIFTED);
    let account = platform.account(0).clone();
    platform.map(0, "DEV", 3);
    platform
        .api(0)
        .post("/v2/device/off", r#"{"enabled":false}"#)
        .expect(201);
    platform.api(0).post("/v2/device/unmapped", "").expect(201);
    let mut raw = platform.client(0, "publisher");
    let foreign = format!("{}/json/DEV", "0".repeat(32));
    let topics = [
        ("refused_bad_token", foreign, 2),
        ("refused_bad_topic", account.topic("json/DEV/a/b"), 3),
        ("refused_bad_payload", account.topic("json/DEV"), 4),
        ("refused_disabled", account.topic("json/off"), 5),
        ("refused_unmapped", account.topic("json/unmapped"), 6),
        ("refused_device_limit", account.topic("json/one-too-many"), 7),
    ];
    for (name, topic, count) in &topics {
        for _ in 0..*count {
            let payload = if *name == "refused_bad_payload" {
                &b"{"[..]
            } else {
                b"1"
            };
            raw.deliver(&publish(topic, 1, 1, payload), 1);
        }
    }
    let log = platform.stop();
    let line = log.lines().rfind(|line| line.contains("counters=\"")).unwrap();
    for (name, _, count) in topics {
        assert!(
            line.contains(&format!("{name}={count} ")) || line.contains(&format!("{name}={count}\"")),
            "{name}: {line}"
        );
    }
    assert!(
        !log.contains(&account.device_token) && !log.contains(&"0".repeat(32)),
        "{log}"
    );
}

/// Counters are no way around: a client of the platform sees no `$SYS`, and none of its topics is one.
#[test]
fn a_command_from_one_device_reaches_another_of_the_account() {
    let platform = Platform::start(2);
    let account = platform.account(0);
    let mut device = platform.client(0, "device");
    assert_eq!(device.granted(&[(&account.topic("DEV/subscribe"), 1)]), [1]);
    let mut stranger = platform.client(1, "stranger");
    stranger.deliver(&publish(&account.topic("DEV/subscribe"), 1, 1, b"foreign"), 1);
    let mut sender = platform.client(0, "sender");
    sender.deliver(&publish(&account.topic("DEV/subscribe"), 1, 1, b"open"), 1);
    assert_eq!(device.message().1, b"open");
    // Nothing is registered by it.
    assert_eq!(platform.devices(0), [""; 0]);
}
