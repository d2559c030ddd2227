//! The HTTP device connector (section 12, and 6.1 to 6.3 as far as a body can say it).

use serde_json::json;

use super::fixture::{LIFTED, Platform, assert_error, settle};
use super::rest::Reply;
use crate::clients::Message;

fn assert_stored(reply: &Reply) {
    assert_eq!(
        (reply.status, reply.json_or_text()),
        (200, json!({"result": "OK"})),
        "{reply:?}"
    );
    assert!(
        reply.header("content-type").unwrap().starts_with("application/json"),
        "{reply:?}"
    );
}

fn assert_new(reply: &Reply) {
    let expected = (201, json!({"result": "NEW_DEVICE_FOUND"}));
    assert_eq!((reply.status, reply.json_or_text()), expected, "{reply:?}");
}

/// 200, 201, 403, 403: the rows in the order a device meets them. Path with and without the slash.
#[test]
fn a_device_is_new_then_unmapped_then_stored_then_disabled() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        for (device, path) in [("slash", "/post_v2/"), ("bare", "/post_v2")] {
            let send = || platform.connector(0, device).post(path, r#"{"temp":20}"#);
            assert_new(&send());
            assert_error(&send(), 403, "NO_MAPPED_CH");
            platform.map(0, device, 3);
            assert_stored(&send());
            let change = |body: serde_json::Value| {
                platform.api(0).put(&format!("/v2/device/{device}"), body).expect(200);
            };
            change(json!({"enabled": false}));
            assert_error(&send(), 403, "DEVICE_DISABLED");
            // `enabled` is looked at before `mapped_ch`.
            change(json!({"mapped_ch": null}));
            assert_error(&send(), 403, "DEVICE_DISABLED");
            change(json!({"enabled": true}));
            assert_error(&send(), 403, "NO_MAPPED_CH");
        }
        assert_eq!(platform.values(0, 3), [json!({"temp": 20}), json!({"temp": 20})]);
    }
}

#[test]
fn a_missing_empty_or_zero_id_is_400_device_id_zero() {
    let platform = Platform::start(1);
    let token = platform.account(0).device_token.clone();
    let nobody = platform.anybody().header("X-DEVICETOKEN", token);
    assert_error(&nobody.post("/post_v2/", "1"), 400, "DEVICE_ID_ZERO");
    for id in ["", "0"] {
        assert_error(&platform.connector(0, id).post("/post_v2/", "1"), 400, "DEVICE_ID_ZERO");
    }
    assert_eq!(platform.devices(0), [""; 0]);
}

/// Reserved ids (section 5, rule 5), and those that no topic can have (rule 3).
#[test]
fn an_id_that_may_not_be_is_400_and_never_registered() {
    let platform = Platform::start(1);
    let (longest, too_long) = ("d".repeat(64), "d".repeat(65));
    for id in [
        "json",
        "binary",
        "state",
        "subscribe",
        "a/b",
        "a+b",
        "a#b",
        "+",
        "#",
        "a\tb",
        &too_long,
    ] {
        assert_error(&platform.connector(0, id).post("/post_v2/", "1"), 400, "BAD_DEVICE_ID");
    }
    assert_eq!(platform.devices(0), [""; 0]);
    for id in [&longest[..], "JSON", "00", "a b", "x"] {
        assert_new(&platform.connector(0, id).post("/post_v2/", "1"));
    }
    let mut registered = vec![&longest[..], "JSON", "00", "a b", "x"];
    registered.sort();
    let mut devices = platform.devices(0);
    devices.sort();
    assert_eq!(devices, registered);
}

#[test]
fn a_missing_or_wrong_device_token_is_401() {
    let platform = Platform::start(2);
    let [one, two] = platform.accounts();
    let device = platform.anybody().header("X-DEVICEID", "pump-07");
    assert_error(&device.post("/post_v2/", "1"), 401, "AUTH_REQUIRED");
    let wrong = [
        "",
        "0",
        &"0".repeat(32),
        &one.api_token,
        &one.device_token.to_lowercase(),
        &one.device_token[..31],
        &format!("{}0", one.device_token),
        &one.user_id,
    ];
    for token in wrong {
        let reply = device.header("X-DEVICETOKEN", token).post("/post_v2/", "1");
        assert_error(&reply, 401, "AUTH_REQUIRED");
    }
    // The token is looked at first: before the id, and before the body.
    let wrong = platform.anybody().header("X-DEVICETOKEN", "0");
    assert_error(&wrong.post("/post_v2/", "{"), 401, "AUTH_REQUIRED");
    // The API token in its own header opens nothing here.
    let reply = device.header("X-APITOKEN", &one.api_token).post("/post_v2/", "1");
    assert_error(&reply, 401, "AUTH_REQUIRED");
    // The device belongs to whoever the token belongs to.
    assert_new(&device.header("X-DEVICETOKEN", &two.device_token).post("/post_v2/", "1"));
    assert_eq!(
        (platform.devices(0), platform.devices(1)),
        (vec![], vec!["pump-07".to_owned()])
    );
}

/// 6.3: what a body may be, and what is stored of it.
#[test]
fn a_body_is_any_json_value_but_null() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let connector = platform.connector(0, "pump-07");
    let bodies = [
        (r#"{"temp":21.5,"rh":48}"#, json!({"temp": 21.5, "rh": 48})),
        (r#"{"a":{"b":[1,{"c":null}]}}"#, json!({"a": {"b": [1, {"c": null}]}})),
        ("{}", json!({})),
        ("23.5", json!({"value1": 23.5})),
        (" 7 \n", json!({"value1": 7})),
        ("-0.5e3", json!({"value1": -500.0})),
        (r#""open""#, json!({"value1": "open"})),
        (r#""Grüße \u65e5""#, json!({"value1": "Grüße 日"})),
        ("true", json!({"value1": true})),
        ("false", json!({"value1": false})),
        ("[1,\"two\",{}]", json!({"value1": [1, "two", {}]})),
        (r#"{"a":1,"b":2,"a":3}"#, json!({"b": 2, "a": 3})),
        (r#"{"value1":"own"}"#, json!({"value1": "own"})),
    ];
    for (body, _) in &bodies {
        assert_stored(&connector.post("/post_v2/", body));
    }
    let expected: Vec<_> = bodies.into_iter().map(|(_, value)| value).collect();
    assert_eq!(platform.values(0, 3), expected);
}

/// 400 BAD_JSON_FORMAT; nothing is stored, and the payload is looked at last.
#[test]
fn an_unreadable_body_is_400() {
    let platform = Platform::start(1);
    let unreadable: [&[u8]; 14] = [
        b"",
        b" ",
        b"null",
        b"{",
        b"{\"a\":}",
        b"{'a':1}",
        b"{\"a\":1}}",
        b"open",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"{\"a\":NaN}",
        b"\"\xff\xfe\"",
        b"v=1.5&v2=ok",
    ];
    // Not looked at before the device is registered and mapped.
    let post = |device: &str, body: &[u8]| platform.connector(0, device).call("POST", "/post_v2/", Some(body));
    assert_new(&post("fresh", b"{"));
    assert_error(&post("fresh", b"{"), 403, "NO_MAPPED_CH");
    platform.map(0, "pump-07", 3);
    for body in unreadable {
        assert_error(&post("pump-07", body), 400, "BAD_JSON_FORMAT");
    }
    assert_eq!(platform.stream(0, 3)["stream"], json!([]));
    assert_eq!(platform.stream(0, 3)["last_update"], json!(null));
}

#[test]
fn digits_beyond_what_a_float_holds_are_kept_as_received() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    for number in ["9007199254740993", "18446744073709551615", "-9223372036854775808"] {
        assert_stored(
            &platform
                .connector(0, "pump-07")
                .post("/post_v2/", format!("{{\"n\":{number}}}")),
        );
        let newest = platform
            .api(0)
            .header("X-ENDTIME", "last")
            .get("/v2/stream/3")
            .expect(200)
            .text();
        assert!(newest.contains(&format!("\"n\":{number}")), "{newest}");
    }
}

#[test]
fn the_content_type_is_ignored() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    for kind in [
        "application/json",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/octet-stream",
        "x",
    ] {
        assert_stored(
            &platform
                .connector(0, "pump-07")
                .header("Content-Type", kind)
                .post("/post_v2/", "1"),
        );
    }
    assert_eq!(platform.values(0, 3).len(), 5);
}

#[test]
fn a_tag_is_one_word_or_none() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let send = |tag: &str| {
        platform
            .connector(0, "pump-07")
            .header("X-TAGNAME", tag)
            .post("/post_v2/", "1")
    };
    let longest = "t".repeat(64);
    for tag in ["inlet", "", "0", "json", &longest] {
        assert_stored(&send(tag));
    }
    for tag in [&"t".repeat(65)[..], "a/b", "+", "a#"] {
        assert_error(&send(tag), 400, "BAD_PARAMETER");
    }
    let stream = platform.stream(0, 3);
    let tags: Vec<_> = stream["stream"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| &point["tag"])
        .collect();
    assert_eq!(json!(tags), json!(["inlet", null, "0", "json", longest]));
}

#[test]
fn a_body_over_the_limit_is_413() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let body = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_stored(&platform.connector(0, "pump-07").post("/post_v2/", body(64 * 1024)));
    let reply = platform.connector(0, "pump-07").post("/post_v2/", body(64 * 1024 + 1));
    assert_error(&reply, 413, "PAYLOAD_TOO_LARGE");
    assert_eq!(platform.values(0, 3).len(), 1);

    let platform = Platform::start_with(1, 1, &[&LIFTED[..], &["--api-max-body", "2000"]].concat());
    platform.map(0, "pump-07", 3);
    assert_stored(&platform.connector(0, "pump-07").post("/post_v2/", body(2000)));
    let reply = platform.connector(0, "pump-07").post("/post_v2/", body(2001));
    assert_error(&reply, 413, "PAYLOAD_TOO_LARGE");
}

#[test]
fn another_method_is_405() {
    let platform = Platform::start(1);
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let reply = platform.connector(0, "pump-07").call(method, "/post_v2/", None);
        assert_error(&reply, 405, "BAD_METHOD");
    }
    assert_eq!(platform.devices(0), [""; 0]);
}

/// What is sent by HTTP is routed as if it had been published: byte for byte, also before the device is mapped, but not
/// while it is disabled, nor when it was refused.
#[test]
fn what_the_connector_takes_is_routed_to_the_json_topic() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &LIFTED);
        let mut own = platform.watch(0);
        let mut other = platform.watch(1);
        let topic = |below: &str| platform.account(0).topic(below);
        let post = |body: &str| platform.connector(0, "pump-07").post("/post_v2/", body).status;
        assert_eq!(post("{\"temp\" : 1}"), 201);
        assert_eq!(own.message().payload, b"{\"temp\" : 1}");
        assert_eq!(post(" 2 "), 403);
        let routed = own.message();
        assert_eq!((routed.topic, routed.payload), (topic("json/pump-07"), b" 2 ".to_vec()));
        platform.map(0, "pump-07", 3);
        let tagged = platform.connector(0, "pump-07").header("X-TAGNAME", "inlet");
        assert_eq!(tagged.post("/post_v2/", "3").status, 200);
        let routed = own.message();
        assert_eq!(
            (routed.topic, routed.payload),
            (topic("json/pump-07/inlet"), b"3".to_vec())
        );
        // Not these: unreadable, disabled, refused.
        assert_eq!(post("{"), 400);
        platform
            .api(0)
            .put("/v2/device/pump-07", json!({"enabled": false}))
            .expect(200);
        assert_eq!(post("4"), 403);
        assert_eq!(platform.connector(0, "json").post("/post_v2/", "5").status, 400);
        settle();
        assert_eq!(own.arrived(), []);
        assert_eq!(other.arrived(), []);
    }
}

/// A durable subscriber that is away gets later what came by HTTP.
#[test]
fn what_the_connector_takes_waits_for_a_durable_session() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let account = platform.account(0);
    let topic = account.topic("json/pump-07");
    let mut raw = platform.raw(account.connect_durable("absent"));
    assert_eq!(raw.granted(&[(&topic, 1)]), [1]);
    drop(raw);
    assert_stored(&platform.connector(0, "pump-07").post("/post_v2/", "1"));
    let mut raw = platform.raw(account.connect_durable("absent"));
    assert!(raw.session_present);
    let (topic_got, payload, _) = raw.message();
    assert_eq!((topic_got, payload), (topic, b"1".to_vec()));
}

#[test]
fn over_the_device_limit_a_new_device_is_403() {
    let mut platform = Platform::prepare(0);
    platform.add_account(&["--max-devices", "2"]);
    platform.run(4, &LIFTED);
    for device in ["one", "two"] {
        assert_new(&platform.connector(0, device).post("/post_v2/", "1"));
    }
    assert_error(
        &platform.connector(0, "three").post("/post_v2/", "1"),
        403,
        "MAX_DEVICE_REACH",
    );
    // Those that are there are not concerned.
    assert_error(
        &platform.connector(0, "two").post("/post_v2/", "1"),
        403,
        "NO_MAPPED_CH",
    );
    // Silently by MQTT: acknowledged, neither registered nor routed.
    let mut watcher = platform.watch(0);
    platform.send(0, "json/three", "1");
    settle();
    assert_eq!(watcher.arrived(), Vec::<Message>::new());
    assert_eq!(platform.devices(0).len(), 2);
    // One goes, one comes.
    platform.api(0).delete("/v2/device/one").expect(200);
    platform.send(0, "json/three", "1");
    assert_eq!(platform.devices(0), ["three", "two"]);
}

#[test]
fn with_a_default_channel_the_first_body_is_stored_and_still_answered_201() {
    let mut platform = Platform::prepare(0);
    platform.add_account(&["--default-channel", "7"]);
    platform.run(4, &LIFTED);
    assert_new(&platform.connector(0, "pump-07").post("/post_v2/", "1"));
    assert_eq!(platform.device(0, "pump-07")["mapped_ch"], 7);
    platform.send(0, "json/pump-08", "2");
    assert_eq!(platform.device(0, "pump-08")["mapped_ch"], 7);
    assert_stored(&platform.connector(0, "pump-07").post("/post_v2/", "3"));
    assert_eq!(
        platform.values(0, 7),
        [json!({"value1": 1}), json!({"value1": 2}), json!({"value1": 3})]
    );
}

/// Off unless `--v1` turns it on.
#[test]
fn the_old_path_takes_up_to_four_values() {
    let platform = Platform::start(1);
    for path in ["/post_v1/", "/post_v1"] {
        assert_error(&platform.connector(0, "pump-07").post(path, "v=1"), 404, "NOT_FOUND");
    }
    assert_eq!(platform.devices(0), [""; 0]);

    let platform = Platform::start_with(4, 1, &[&LIFTED[..], &["--v1=true"]].concat());
    let post = |body: &str| platform.connector(0, "pump-07").post("/post_v1/", body);
    assert_new(&post("v=1.5"));
    assert_error(&post("v=1.5"), 403, "NO_MAPPED_CH");
    platform.map(0, "pump-07", 3);
    let bodies = [
        ("v=1.5&v2=ok&v3=7", json!({"value1": 1.5, "value2": "ok", "value3": 7})),
        ("v=on", json!({"value1": "on"})),
        ("v4=4&v=1", json!({"value1": 1, "value4": 4})),
        ("v=a+b%2Fc", json!({"value1": "a b/c"})),
    ];
    for (body, _) in &bodies {
        assert_stored(&post(body));
    }
    assert_stored(&platform.connector(0, "pump-07").post("/post_v1", "v=2"));
    let mut expected: Vec<_> = bodies.into_iter().map(|(_, value)| value).collect();
    expected.push(json!({"value1": 2}));
    assert_eq!(platform.values(0, 3), expected);
}
