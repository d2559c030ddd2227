//! The device service (section 9), the device as it is shown (8.2), and how devices come to be by themselves (6.1, 6.4).

use serde_json::{Value, json};

use super::fixture::{Platform, assert_error, keys, settle};
use super::time::{basic, extended, now_s};

fn device_url(id: &str) -> String {
    format!("/v2/device/{id}")
}

#[test]
fn a_list_is_an_array_also_of_one_or_none() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    for path in ["/v2/device", "/v2/device/"] {
        assert_eq!(api.get(path).expect(200).json(), json!([]));
    }
    for id in ["pump-08", "pump-07"] {
        let made = api.post(&device_url(id), "").expect(201);
        assert_eq!(made.json(), json!({"device_id": id}));
    }
    for path in ["/v2/device", "/v2/device/"] {
        let reply = api.get(path).expect(200);
        assert!(reply.header("content-type").unwrap().starts_with("application/json"));
        let list = reply.json();
        let ids: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|device| &device["device_id"])
            .collect();
        assert_eq!(json!(ids), json!(["pump-07", "pump-08"]));
    }
    assert_eq!(platform.device(0, "pump-07")["device_id"], "pump-07");
    for (method, path) in [
        ("GET", "pump-09"),
        ("PUT", "pump-09"),
        ("DELETE", "pump-09"),
        ("GET", "PUMP-07"),
    ] {
        let body = (method == "PUT").then_some(&b"{}"[..]);
        assert_error(&api.call(method, &device_url(path), body), 404, "NO_DEVICE");
    }
}

/// Section 6.1: the same however it came to be.
#[test]
fn a_new_device_has_the_defaults() {
    let platform = Platform::start(1);
    let began = now_s();
    platform.api(0).post(&device_url("by-rest"), "").expect(201);
    platform.connector(0, "by-http").post("/post_v2/", "1").expect(201);
    platform.send(0, "json/by-mqtt", "1");
    platform.send(0, "binary/by-bytes", "1");
    for id in ["by-rest", "by-http", "by-mqtt", "by-bytes"] {
        let mut device = platform.device(0, id);
        let at = extended(device["activate_at"].as_str().unwrap(), "+00:00");
        assert!((began..=now_s()).contains(&at), "{device}");
        device["activate_at"] = json!(null);
        let expected = json!({
            "device_id": id, "description": "", "enabled": true, "mapped_ch": null, "device_type": "", "location": "",
            "manufacturer": "", "activate_at": null,
        });
        assert_eq!(device, expected);
    }
}

#[test]
fn creation_takes_the_fields_of_a_change() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/channel/3", "").expect(201);
    let fields = json!({
        "description": "north well", "enabled": false, "mapped_ch": 3, "device_type": "ESP32", "location": "Hall 2",
        "manufacturer": "Ünïcode 日本", "unknown": {"key": 1}, "device_id": "other", "activate_at": "never",
    });
    api.post(&device_url("pump-07"), &fields).expect(201);
    let device = platform.device(0, "pump-07");
    for name in [
        "description",
        "enabled",
        "mapped_ch",
        "device_type",
        "location",
        "manufacturer",
    ] {
        assert_eq!(device[name], fields[name], "{name}");
    }
    assert_eq!(device["device_id"], "pump-07");
    assert_eq!(
        keys(&device),
        [
            "activate_at",
            "description",
            "device_id",
            "device_type",
            "enabled",
            "location",
            "manufacturer",
            "mapped_ch"
        ]
    );
    assert_error(&api.post(&device_url("bad"), "{"), 400, "BAD_JSON_FORMAT");
    assert_error(
        &api.post(&device_url("bad"), r#"{"enabled":"yes"}"#),
        400,
        "BAD_PARAMETER",
    );
    assert_error(&api.post(&device_url("bad"), r#"{"mapped_ch":4}"#), 404, "NO_CHANNEL");
    assert_eq!(platform.devices(0), ["pump-07"]);
}

#[test]
fn creation_refuses_ids_that_are_taken_or_may_not_be() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post(&device_url("pump-07"), "").expect(201);
    assert_error(&api.post(&device_url("pump-07"), ""), 403, "DEVICE_INUSE");
    platform.send(0, "json/by-itself", "1");
    assert_error(&api.post(&device_url("by-itself"), ""), 403, "DEVICE_INUSE");
    assert_error(&api.post(&device_url("0"), ""), 400, "DEVICE_ID_ZERO");
    let too_long = "d".repeat(65);
    for id in [
        "json",
        "binary",
        "state",
        "subscribe",
        "a%2Fb",
        "a%2Bb",
        "a%23b",
        "a%00b",
        "a%0Ab",
        "a%7Fb",
        &too_long,
    ] {
        assert_error(&api.post(&device_url(id), ""), 400, "BAD_DEVICE_ID");
    }
    for id in [
        "d".repeat(64),
        "%C3%A9".repeat(64),
        "JSON".into(),
        "a%20b".into(),
        "..".replace('.', "%2E"),
    ] {
        api.post(&device_url(&id), "").expect(201);
    }
    // 64 characters, not bytes.
    assert!(platform.devices(0).contains(&"é".repeat(64)));
}

#[test]
fn over_the_device_limit_creation_is_403() {
    let mut platform = Platform::prepare(0);
    platform.add_account(&["--max-devices", "1"]);
    platform.add_account(&[]);
    platform.run(4, &super::fixture::LIFTED);
    platform.api(0).post(&device_url("one"), "").expect(201);
    assert_error(&platform.api(0).post(&device_url("two"), ""), 403, "MAX_DEVICE_REACH");
    // Of each account by itself.
    platform.api(1).post(&device_url("one"), "").expect(201);
    platform.api(1).post(&device_url("two"), "").expect(201);
    platform.api(0).delete(&device_url("one")).expect(200);
    platform.api(0).post(&device_url("two"), "").expect(201);
}

#[test]
fn a_change_is_partial() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/channel/0", "").expect(201);
    api.post(&device_url("pump-07"), "").expect(201);
    let mut expected = platform.device(0, "pump-07");
    for (name, value) in [
        ("description", json!("north well")),
        ("enabled", json!(false)),
        ("mapped_ch", json!(0)),
        ("device_type", json!("ESP32")),
        ("location", json!("Hall 2")),
        ("manufacturer", json!("'; DROP TABLE devices; --")),
        ("description", json!("")),
        ("enabled", json!(true)),
        ("mapped_ch", json!(null)),
    ] {
        let reply = api.put(&device_url("pump-07"), json!({name: value})).expect(200);
        assert_eq!(reply.json(), json!({"result": "OK"}));
        expected[name] = value;
        assert_eq!(platform.device(0, "pump-07"), expected);
    }
    // Nothing, and what is no field.
    for body in [json!({}), json!({"unknown": 1, "device_id": "x", "state": {"a": 1}})] {
        api.put(&device_url("pump-07"), body).expect(200);
        assert_eq!(platform.device(0, "pump-07"), expected);
    }
}

#[test]
fn a_change_that_cannot_be_read_changes_nothing() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/channel/3", "").expect(201);
    api.post(&device_url("pump-07"), "").expect(201);
    let before = platform.device(0, "pump-07");
    for body in ["", "{", "description=x", "{\"description\":\"x\"", "nul"] {
        assert_error(&api.put(&device_url("pump-07"), body), 400, "BAD_JSON_FORMAT");
    }
    for body in [
        json!([]),
        json!("x"),
        json!(1),
        json!(null),
        json!({"description": 1}),
        json!({"description": null}),
        json!({"enabled": 1}),
        json!({"enabled": "true"}),
        json!({"enabled": null}),
        json!({"mapped_ch": "3"}),
        json!({"mapped_ch": 3.5}),
        json!({"location": ["x"]}),
        json!({"device_type": {}}),
        json!({"manufacturer": true}),
        json!({"description": "x", "enabled": "no"}),
    ] {
        assert_error(&api.put(&device_url("pump-07"), &body), 400, "BAD_PARAMETER");
    }
    for channel in [4, i32::MAX] {
        let body = json!({"description": "x", "mapped_ch": channel});
        assert_error(&api.put(&device_url("pump-07"), body), 404, "NO_CHANNEL");
    }
    assert_eq!(platform.device(0, "pump-07"), before);
}

#[test]
fn a_deleted_device_leaves_its_datapoints_and_is_provisioned_anew() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &super::fixture::LIFTED);
        let api = platform.api(0);
        platform.map(0, "pump-07", 3);
        platform.send(0, "json/pump-07", "1");
        platform.send(0, "state/pump-07", "health=OK");
        assert_eq!(platform.device(0, "pump-07")["state"]["health"], "OK");
        let reply = api.delete(&device_url("pump-07")).expect(200);
        assert_eq!(reply.json(), json!({"result": "OK"}));
        assert_error(&api.get(&device_url("pump-07")), 404, "NO_DEVICE");
        assert_error(&api.delete(&device_url("pump-07")), 404, "NO_DEVICE");
        assert_eq!(platform.values(0, 3), [json!({"value1": 1})]);
        platform.send(0, "json/pump-07", "2");
        let device = platform.device(0, "pump-07");
        assert_eq!((&device["mapped_ch"], device.get("state")), (&json!(null), None));
        assert_eq!(platform.values(0, 3), [json!({"value1": 1})]);
    }
}

#[test]
fn devices_of_another_account_do_not_exist() {
    let platform = Platform::start(2);
    platform.map(0, "pump-07", 3);
    let other = platform.api(1);
    assert_eq!(other.get("/v2/device").expect(200).json(), json!([]));
    assert_error(&other.get(&device_url("pump-07")), 404, "NO_DEVICE");
    assert_error(&other.put(&device_url("pump-07"), "{}"), 404, "NO_DEVICE");
    assert_error(&other.delete(&device_url("pump-07")), 404, "NO_DEVICE");
    // A channel of another account cannot be mapped to.
    other.post(&device_url("pump-07"), "").expect(201);
    assert_error(
        &other.put(&device_url("pump-07"), json!({"mapped_ch": 3})),
        404,
        "NO_CHANNEL",
    );
    assert_eq!(platform.device(0, "pump-07")["mapped_ch"], 3);
}

/// Section 6.4.
#[test]
fn a_state_report_replaces_the_one_before_and_types_its_values() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    assert_eq!(
        platform.device(0, "pump-07").get("state"),
        None,
        "absent until the first report"
    );
    let reports: [(&str, Value); 8] = [
        (
            "health=OK&load=12.5&uptime=90211",
            json!({"health": "OK", "load": 12.5, "uptime": 90211}),
        ),
        (
            "load= 7 &name=%20two%20words%20&x=a+b",
            json!({"load": 7, "name": "two words", "x": "a b"}),
        ),
        (
            "a=-1&b=1e3&c=0x10&d=1_000&e=",
            json!({"a": -1, "b": 1000.0, "c": "0x10", "d": "1_000", "e": ""}),
        ),
        (
            "a=NaN&b=inf&c=Infinity&d=true",
            json!({"a": "NaN", "b": "inf", "c": "Infinity", "d": "true"}),
        ),
        ("a=1&a=2", json!({"a": 2})),
        ("größe=%C3%A9", json!({"größe": "é"})),
        (
            r#"{"health":"bad","depth":{"m":[1,2]}}"#,
            json!({"health": "bad", "depth": {"m": [1, 2]}}),
        ),
        ("only=1", json!({"only": 1})),
    ];
    for (report, expected) in reports {
        let began = now_s();
        platform.send(0, "state/pump-07", report);
        let mut state = platform.device(0, "pump-07")["state"].clone();
        let at = extended(state["last_update"].as_str().unwrap(), "+00:00");
        assert!((began..=now_s()).contains(&at), "{state}");
        state.as_object_mut().unwrap().remove("last_update");
        // Numbers compare as numbers, 1000 and 1000.0.
        let floats = |value: &Value| value.as_f64().map_or(value.clone(), |number| json!(number));
        let like_floats = |object: &Value| -> Vec<(String, Value)> {
            let object = object.as_object().unwrap();
            object.iter().map(|(key, value)| (key.clone(), floats(value))).collect()
        };
        let (mut got, mut wanted) = (like_floats(&state), like_floats(&expected));
        got.sort_by(|one, other| one.0.cmp(&other.0));
        wanted.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(got, wanted, "{report}");
    }
    // No datapoint comes of it.
    assert_eq!(platform.values(0, 3).len(), 0);
}

#[test]
fn a_state_report_is_ignored_while_the_device_is_unknown_disabled_or_unmapped() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    platform.send(0, "state/pump-07", "health=OK");
    assert_eq!(platform.devices(0), [""; 0], "state messages do not provision");
    api.post(&device_url("pump-07"), "").expect(201);
    platform.send(0, "state/pump-07", "health=unmapped");
    assert_eq!(platform.device(0, "pump-07").get("state"), None);
    platform.map(0, "pump-07", 3);
    api.put(&device_url("pump-07"), r#"{"enabled":false}"#).expect(200);
    platform.send(0, "state/pump-07", "health=disabled");
    assert_eq!(platform.device(0, "pump-07").get("state"), None);
    api.put(&device_url("pump-07"), r#"{"enabled":true}"#).expect(200);
    platform.send(0, "state/pump-07", "health=OK");
    let state = platform.device(0, "pump-07")["state"].clone();
    assert_eq!(state["health"], "OK");
    // Unreadable or empty ones change nothing.
    for report in [&b""[..], b"health=\xff\xfe"] {
        platform.send(0, "state/pump-07", report);
    }
    settle();
    let after = platform.device(0, "pump-07")["state"].clone();
    assert_eq!(after["health"], "OK", "{after}");
    // A report of one level more is no report.
    platform.send(0, "state/pump-07/inlet", "health=tag");
    assert_eq!(platform.device(0, "pump-07")["state"], after);
}

/// Section 7.1: the zone of the account, with a colon in these two fields.
#[test]
fn times_of_a_device_are_local_with_a_colon_in_the_offset() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform.send(0, "state/pump-07", "health=OK");
    platform.send(0, "json/pump-07", "1");
    for (zone, offset) in [
        ("Asia/Tokyo", "+09:00"),
        ("America/Phoenix", "-07:00"),
        ("Asia/Kathmandu", "+05:45"),
    ] {
        platform.api(0).put("/v2/user", json!({"locale": zone})).expect(200);
        let device = platform.device(0, "pump-07");
        for text in [&device["activate_at"], &device["state"]["last_update"]] {
            let at = extended(text.as_str().unwrap(), offset);
            assert!((now_s() - at).abs() < 120, "{zone}: {device}");
        }
        let channel = platform.api(0).get("/v2/channel/3").expect(200).json();
        let at = basic(channel[0]["last_update"].as_str().unwrap(), &offset.replace(':', ""));
        assert!((now_s() - at).abs() < 120, "{zone}: {channel}");
    }
}

#[test]
fn devices_survive_a_restart() {
    let mut platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform.send(0, "json/by-itself", "1");
    platform.send(0, "state/pump-07", "health=OK");
    platform
        .api(0)
        .put(&device_url("pump-07"), json!({"description": "north well"}))
        .expect(200);
    let before = ["pump-07", "by-itself"].map(|id| platform.device(0, id));
    platform.stop();
    platform.run(1, &super::fixture::LIFTED);
    assert_eq!(["pump-07", "by-itself"].map(|id| platform.device(0, id)), before);
    platform.send(0, "json/pump-07", "2");
    platform.kill();
    platform.run(4, &super::fixture::LIFTED);
    assert_eq!(["pump-07", "by-itself"].map(|id| platform.device(0, id)), before);
    assert_eq!(platform.values(0, 3), [json!({"value1": 2})]);
}
