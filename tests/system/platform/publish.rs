//! The publish service (14.2).

use serde_json::json;

use super::fixture::{LIFTED, Platform, assert_error, settle};
use crate::clients::Message;
use crate::raw::Raw;

fn subscriber(platform: &Platform, id: &str, qos: u8) -> Raw {
    let account = platform.account(0);
    let mut raw = platform.raw(account.connect_durable(id));
    assert_eq!(raw.granted(&[(&account.topic("pump-07/subscribe"), qos)]), [qos]);
    raw
}

/// QoS is the lower of the two; the topic is the device's; both paths are the same.
#[test]
fn a_command_goes_to_the_device_at_the_lower_qos() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        let api = platform.api(0);
        api.post("/v2/device/pump-07", "").expect(201);
        let topic = platform.account(0).topic("pump-07/subscribe");
        let mut raws = [0, 1, 2].map(|qos| subscriber(&platform, &format!("qos{qos}"), qos));
        for path in ["/v2/publish/pump-07", "/v1/publish/pump-07"] {
            for (body, qos) in [
                (json!({"qos": 0, "payload": "valve=open"}), 0),
                (json!({"qos": 1, "payload": "valve=open"}), 1),
                (json!({"payload": "valve=open"}), 0),
                (json!({"payload": "valve=open", "unknown": 1, "retain": true}), 0),
            ] {
                let reply = api.post(path, &body).expect(200);
                assert_eq!(reply.json(), json!({"result": "OK"}));
                for (granted, raw) in raws.iter_mut().enumerate() {
                    let got = raw.message();
                    assert_eq!(
                        got,
                        (topic.clone(), b"valve=open".to_vec(), qos.min(granted as u8)),
                        "{body}"
                    );
                }
            }
        }
        // Not retained, whatever was asked for.
        let mut watcher = platform.watch(0);
        settle();
        assert_eq!(watcher.arrived(), []);
    }
}

#[test]
fn a_payload_is_passed_on_uninterpreted_and_json_as_compact_text() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/device/pump-07", "").expect(201);
    let mut raw = subscriber(&platform, "device", 1);
    for (body, payload) in [
        (r#"{"payload":""}"#, ""),
        (r#"{"payload":"{\"a\" : 1}"}"#, r#"{"a" : 1}"#),
        (r#"{"payload":"Gr\u00fc\u00dfe\n\u65e5"}"#, "Grüße\n日"),
        (
            r#"{ "payload" : { "a" : [ 1 , "x y" ], "b" : null } }"#,
            r#"{"a":[1,"x y"],"b":null}"#,
        ),
        (r#"{"payload":23.50}"#, "23.50"),
        (r#"{"payload":7}"#, "7"),
        (r#"{"payload":9007199254740993}"#, "9007199254740993"),
    ] {
        api.post("/v2/publish/pump-07", body).expect(200);
        let got = String::from_utf8(raw.message().1).unwrap();
        // Trailing zeros are the JSON library's matter.
        let is_same = got == payload || got.parse::<f64>().is_ok_and(|number| Ok(number) == payload.parse());
        assert!(is_same, "{body}: {got}");
    }
}

#[test]
fn a_durable_subscriber_that_is_away_gets_a_command_at_qos_1_later() {
    for cores in [1, 4] {
        let mut platform = Platform::start_with(cores, 1, &LIFTED);
        platform.api(0).post("/v2/device/pump-07", "").expect(201);
        drop(subscriber(&platform, "device", 1));
        for n in 0..3 {
            let body = json!({"qos": 1, "payload": n.to_string()});
            platform.api(0).post("/v2/publish/pump-07", body).expect(200);
        }
        // 200 was said, so it is on disk.
        platform.kill();
        platform.run(5 - cores, &LIFTED);
        let mut raw = platform.raw(platform.account(0).connect_durable("device"));
        assert!(raw.session_present);
        let got: Vec<_> = (0..3).map(|_| raw.message().1).collect();
        assert_eq!(got, [b"0", b"1", b"2"]);
    }
}

#[test]
fn a_command_that_cannot_be_given_is_refused_and_not_published() {
    let platform = Platform::start(2);
    let api = platform.api(0);
    api.post("/v2/device/pump-07", "").expect(201);
    platform.api(1).post("/v2/device/others", "").expect(201);
    let mut watchers = [platform.watch(0), platform.watch(1)];
    for path in ["/v2/publish/", "/v1/publish/"] {
        let post = |device: &str, body: &str| api.post(&format!("{path}{device}"), body);
        for body in ["", "{", "payload=x", "nul"] {
            assert_error(&post("pump-07", body), 400, "BAD_JSON_FORMAT");
        }
        for body in [
            "{}",
            r#"{"qos":1}"#,
            r#"{"payload":"x","qos":2}"#,
            r#"{"payload":"x","qos":3}"#,
            r#"{"payload":"x","qos":-1}"#,
            r#"{"payload":"x","qos":"1"}"#,
            r#"{"payload":"x","qos":0.5}"#,
            r#"{"payload":null}"#,
            "[]",
            "null",
            r#""x""#,
        ] {
            assert_error(&post("pump-07", body), 400, "BAD_PARAMETER");
        }
        for device in ["unknown", "others", "0", "subscribe", "PUMP-07", "%2B", "%23"] {
            assert_error(&post(device, r#"{"payload":"x"}"#), 404, "NO_DEVICE");
        }
        let nobody = platform.anybody().post(&format!("{path}pump-07"), r#"{"payload":"x"}"#);
        assert_error(&nobody, 401, "AUTH_REQUIRED");
        assert_error(&api.get(&format!("{path}pump-07")), 405, "BAD_METHOD");
    }
    api.put("/v2/device/pump-07", r#"{"enabled":false}"#).expect(200);
    for path in ["/v2/publish/pump-07", "/v1/publish/pump-07"] {
        assert_error(&api.post(path, r#"{"payload":"x"}"#), 403, "DEVICE_DISABLED");
    }
    settle();
    for watcher in &mut watchers {
        assert_eq!(watcher.arrived(), Vec::<Message>::new());
    }
    assert_eq!(platform.devices(0), ["pump-07"]);
}

#[test]
fn a_command_is_no_data() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform
        .api(0)
        .post("/v2/publish/pump-07", r#"{"payload":"1"}"#)
        .expect(200);
    platform.send(0, "pump-07/subscribe", "2");
    assert_eq!(platform.values(0, 3).len(), 0);
    assert_eq!(platform.device(0, "pump-07").get("state"), None);
}
