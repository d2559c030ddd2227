//! The stream service (section 11): which datapoints, in which order, how many, and what is made of them.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::fixture::{LIFTED, Platform, assert_error, keys, values};
use super::rest::{Api, Line};
use super::time::{basic, local, now_s};
use crate::raw::{PUBACK, Packet, publish};

/// Rows of an answer at most.
const CAP: usize = 10_000;

/// Numbers stored as `{"value1":n}`.
fn numbers(stream: &Value) -> Vec<i64> {
    values(stream)
        .iter()
        .map(|value| value["value1"].as_i64().unwrap_or_else(|| panic!("{value}")))
        .collect()
}

fn get(api: &Api) -> Value {
    api.get("/v2/stream/3").expect(200).json()
}

fn last(platform: &Platform) -> Api {
    platform.api(0).header("X-ENDTIME", "last")
}

/// A platform with the numbers from 1 on, every other one tagged `even`.
fn with_numbers(count: usize) -> Platform {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    fill(&platform, count);
    platform
}

/// Faster than one command for each.
fn fill(platform: &Platform, count: usize) {
    let mut raw = platform.client(0, "fill");
    let account = platform.account(0);
    let mut unanswered = 0;
    for n in 1..=count {
        let topic = if n % 2 == 0 {
            "json/pump-07/even"
        } else {
            "json/pump-07"
        };
        let id = (n % 60_000 + 1) as u16;
        raw.send(&publish(&account.topic(topic), 1, id, n.to_string().as_bytes()));
        unanswered += 1;
        if unanswered == 500 || n == count {
            for _ in 0..unanswered {
                assert!(matches!(raw.packet(), Packet::Acknowledgement { kind: PUBACK, .. }));
            }
            unanswered = 0;
        }
    }
}

#[test]
fn an_answer_names_channel_and_rows_with_id_tag_value_and_time() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform
        .api(0)
        .put("/v2/channel/3", json!({"channel_name": "water"}))
        .expect(200);
    platform
        .api(0)
        .put("/v2/user", json!({"locale": "Asia/Tokyo"}))
        .expect(200);
    let began = now_s();
    platform.send(0, "json/pump-07/inlet", r#"{"temp":21.5,"rh":48}"#);
    platform.send(0, "binary/pump-07", [1, 0xa4, 0xff]);
    let reply = last(&platform)
        .header("X-PAGELIMIT", "10")
        .get("/v2/stream/3")
        .expect(200);
    assert!(reply.header("content-type").unwrap().starts_with("application/json"));
    assert_eq!(reply.header("x-truncated"), None);
    let stream = reply.json();
    assert_eq!(keys(&stream), ["channel", "channel_name", "last_update", "stream"]);
    assert_eq!(
        (&stream["channel"], &stream["channel_name"]),
        (&json!(3), &json!("water"))
    );
    let rows = stream["stream"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let mut ids = Vec::new();
    for row in rows {
        assert_eq!(keys(row), ["_id", "at", "tag", "value"]);
        let id = row["_id"].as_str().unwrap();
        assert!(
            id.len() == 24 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{id}"
        );
        ids.push(id.to_owned());
        let at = basic(row["at"].as_str().unwrap(), "+0900");
        assert!((began..=now_s()).contains(&at), "{row}");
    }
    assert!(ids[0] < ids[1], "ids grow with time: {ids:?}");
    assert_eq!((&rows[0]["tag"], &rows[1]["tag"]), (&json!("inlet"), &json!(null)));
    assert_eq!(rows[0]["value"], json!({"temp": 21.5, "rh": 48}));
    assert_eq!(rows[1]["value"], json!({"value1": "01a4ff"}));
    assert_eq!(stream["last_update"], rows[1]["at"]);
}

#[test]
fn the_end_is_required_and_the_channel_has_to_be() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/channel/3", "").expect(201);
    assert_error(&api.get("/v2/stream/3"), 400, "ENDTIME_REQUIRED");
    assert_error(
        &api.header("X-STARTTIME", "last").get("/v2/stream/3"),
        400,
        "ENDTIME_REQUIRED",
    );
    for id in ["4", "2147483648", "-1", "x"] {
        assert_error(&last(&platform).get(&format!("/v2/stream/{id}")), 404, "NO_CHANNEL");
    }
    let stream = get(&last(&platform));
    assert_eq!(
        stream,
        json!({"channel": 3, "channel_name": "", "last_update": null, "stream": []})
    );
}

#[test]
fn last_takes_the_newest_and_then_orders_them() {
    let platform = with_numbers(9);
    /// Headers, and the values that come.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [i64]);
    let cases: [Case<'_>; 9] = [
        (&[], &[9]),
        (&[("X-PAGELIMIT", "1")], &[9]),
        (&[("X-PAGELIMIT", "3")], &[7, 8, 9]),
        (&[("X-PAGELIMIT", "3"), ("X-PAGESORT", "asc")], &[7, 8, 9]),
        (&[("X-PAGELIMIT", "3"), ("X-PAGESORT", "desc")], &[9, 8, 7]),
        (&[("X-PAGELIMIT", "10000")], &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        // After the tag filter.
        (&[("X-PAGELIMIT", "3"), ("X-TAGNAME", "even")], &[4, 6, 8]),
        (
            &[("X-PAGELIMIT", "2"), ("X-TAGNAME", "even"), ("X-PAGESORT", "desc")],
            &[8, 6],
        ),
        (&[("X-PAGELIMIT", "5"), ("X-TAGNAME", "odd")], &[]),
    ];
    for (headers, expected) in cases {
        let api = headers
            .iter()
            .fold(last(&platform), |api, (name, value)| api.header(name, value));
        assert_eq!(numbers(&get(&api)), expected, "{headers:?}");
        // A start that is `last` is none.
        assert_eq!(
            numbers(&get(&api.header("X-STARTTIME", "last"))),
            expected,
            "{headers:?}"
        );
    }
}

/// With an end that is a time the page limit has no effect: default, explicit, or small.
#[test]
fn an_explicit_end_takes_the_whole_range() {
    let platform = with_numbers(5);
    let end = local(now_s() + 60, "UTC", "%Y-%m-%d %H:%M");
    let api = platform.api(0).header("X-ENDTIME", &end);
    assert_eq!(numbers(&get(&api)), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&get(&api.header("X-PAGELIMIT", "2"))), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&get(&api.header("X-PAGESORT", "desc"))), [5, 4, 3, 2, 1]);
    assert_eq!(numbers(&get(&api.header("X-TAGNAME", "even"))), [2, 4]);
    assert_eq!(numbers(&get(&api.header("X-STARTTIME", "last"))), [1, 2, 3, 4, 5]);
    let none = api.header("X-STARTTIME", local(now_s() + 30, "UTC", "%Y-%m-%d %H:%M:%S"));
    assert_eq!(numbers(&get(&none)), [0; 0], "existing channel, no match");
}

/// Both ends inclusive, to the second and to the minute, in the zone of the account or with an offset.
#[test]
fn ends_are_inclusive_and_a_minute_is_the_whole_minute() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    // Three datapoints, each in a second of its own.
    for n in 1..=3 {
        platform.send(0, "json/pump-07", n.to_string());
        sleep(Duration::from_millis(1100));
    }
    let stream = platform.stream(0, 3);
    let at = |n: usize| basic(stream["stream"][n]["at"].as_str().unwrap(), "+0000");
    let [first, second, third] = [at(0), at(1), at(2)];
    assert!(first < second && second < third);
    for zone in ["UTC", "Asia/Tokyo", "America/Phoenix", "Europe/Vienna"] {
        platform.api(0).put("/v2/user", json!({"locale": zone})).expect(200);
        let range = |from: &str, to: &str| {
            let api = platform.api(0).header("X-STARTTIME", from).header("X-ENDTIME", to);
            numbers(&get(&api))
        };
        let second_of = |at: i64| local(at, zone, "%Y-%m-%d %H:%M:%S");
        let iso = |at: i64| local(at, zone, "%Y-%m-%dT%H:%M:%S%z");
        let iso_with_colon = |at: i64| local(at, zone, "%Y-%m-%dT%H:%M:%S%:z");
        let utc = |at: i64| local(at, "UTC", "%Y-%m-%dT%H:%M:%SZ");
        for format in [&second_of as &dyn Fn(i64) -> String, &iso, &iso_with_colon, &utc] {
            assert_eq!(
                range(&format(first), &format(third)),
                [1, 2, 3],
                "{zone}, {}",
                format(first)
            );
            assert_eq!(
                range(&format(second), &format(second)),
                [2],
                "{zone}, {}",
                format(second)
            );
            assert_eq!(range(&format(first + 1), &format(third)), [2, 3], "{zone}");
            assert_eq!(range(&format(first), &format(third - 1)), [1, 2], "{zone}");
            assert_eq!(range(&format(third + 1), &format(third + 60)), [0; 0], "{zone}");
        }
        let minute_of = |at: i64| local(at, zone, "%Y-%m-%d %H:%M");
        let in_minute: Vec<_> = [(1, first), (2, second), (3, third)]
            .into_iter()
            .filter_map(|(n, at)| (at / 60 == second / 60).then_some(n))
            .collect();
        assert_eq!(range(&minute_of(second), &minute_of(second)), in_minute, "{zone}");
        assert_eq!(range(&minute_of(first), &minute_of(third)), [1, 2, 3], "{zone}");
        assert_eq!(range(&minute_of(third + 60), &minute_of(third + 120)), [0; 0], "{zone}");
        assert_eq!(range(&minute_of(first - 120), &minute_of(first - 60)), [0; 0], "{zone}");
        // With `last` a start that is a time is a lower bound.
        let newest = last(&platform)
            .header("X-PAGELIMIT", "10")
            .header("X-STARTTIME", second_of(second));
        assert_eq!(numbers(&get(&newest)), [2, 3], "{zone}");
        // What is shown is local as well.
        let offset = local(first, zone, "%z");
        basic(get(&newest)["stream"][0]["at"].as_str().unwrap(), &offset);
    }
}

#[test]
fn a_header_that_cannot_be_read_is_400() {
    let platform = with_numbers(1);
    let bad = |name: &str, value: &str| {
        let api = match name {
            "X-ENDTIME" => platform.api(0),
            _ => last(&platform),
        };
        assert_error(&api.header(name, value).get("/v2/stream/3"), 400, "BAD_PARAMETER");
    };
    for value in [
        "now",
        "2026",
        "2026-03-04",
        "2026-13-04 09:15",
        "2026-02-30 09:15",
        "2026-03-04 25:15",
        "2026-03-04 09:60",
        "09:15",
        "1772612100",
        "2026-03-04 09:15; DROP",
        "LAST!",
    ] {
        bad("X-ENDTIME", value);
        bad("X-STARTTIME", value);
    }
    for value in ["0", "-1", "10001", "ten", "1.5", "99999999999999999999", "1 2"] {
        bad("X-PAGELIMIT", value);
    }
    for value in ["up", "ascending", "asc,desc"] {
        bad("X-PAGESORT", value);
    }
    for value in ["median", "avg,sum", "count"] {
        bad("X-AGGREGATE", value);
    }
    for value in ["a/b", "+", &"t".repeat(65)] {
        bad("X-TAGNAME", value);
    }
    let [early, late] = [0, 3600].map(|later| local(now_s() + later, "UTC", "%Y-%m-%d %H:%M"));
    let api = platform.api(0).header("X-STARTTIME", late).header("X-ENDTIME", early);
    assert_error(&api.get("/v2/stream/3"), 400, "BAD_PARAMETER");
    // The least and the most that are allowed.
    for value in ["1", "10000"] {
        assert_eq!(numbers(&get(&last(&platform).header("X-PAGELIMIT", value))), [1]);
    }
}

#[test]
fn a_range_of_more_than_the_cap_is_cut_and_says_so() {
    let platform = with_numbers(CAP);
    let end = local(now_s() + 3600, "UTC", "%Y-%m-%d %H:%M");
    let whole = platform.api(0).header("X-ENDTIME", &end);
    let reply = whole.get("/v2/stream/3").expect(200);
    assert_eq!(reply.header("x-truncated"), None);
    assert_eq!(numbers(&reply.json()).len(), CAP);
    platform.send(0, "json/pump-07", (CAP + 1).to_string());
    let reply = whole.get("/v2/stream/3").expect(200);
    assert_eq!(reply.header("x-truncated"), Some("true"));
    let expected: Vec<_> = (1..=CAP as i64).collect();
    assert_eq!(numbers(&reply.json()), expected);
    let reply = whole.header("X-PAGESORT", "desc").get("/v2/stream/3").expect(200);
    assert_eq!(reply.header("x-truncated"), Some("true"));
    let expected: Vec<_> = (2..=CAP as i64 + 1).rev().collect();
    assert_eq!(
        numbers(&reply.json()),
        expected,
        "the first rows of the order that was asked for"
    );
    // Below it after the tag filter.
    let reply = whole.header("X-TAGNAME", "even").get("/v2/stream/3").expect(200);
    assert_eq!(
        (reply.header("x-truncated"), numbers(&reply.json()).len()),
        (None, CAP / 2)
    );
    // Aggregates look at all of it.
    let sum = get(&whole.header("X-AGGREGATE", "sum"));
    let total = (CAP + 1) * (CAP + 2) / 2;
    assert_eq!(sum["result"][0]["value"]["value1"].as_f64(), Some(total as f64));
    // The newest of them.
    let newest = last(&platform).header("X-PAGELIMIT", "10000");
    assert_eq!(numbers(&get(&newest))[0], 2);
}

/// Section 11.2.
#[test]
fn aggregates_take_every_numeric_field_by_its_path() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform
        .api(0)
        .put("/v2/channel/3", json!({"channel_name": "water"}))
        .expect(200);
    for value in [
        r#"{"temp":20.5,"rh":48,"name":"x","ok":true,"deep":{"a":1,"b":{"c":-2}},"list":[{"v":1},{"v":3}]}"#,
        r#"{"temp":21,"rh":47,"name":7,"deep":{"a":2},"none":null}"#,
    ] {
        platform.send(0, "json/pump-07", value);
    }
    platform.send(0, "json/pump-07/inlet", r#"{"temp":100}"#);
    let aggregate = |kind: &str, api: Api| {
        let answer = get(&api.header("X-AGGREGATE", kind));
        assert_eq!(
            keys(&answer),
            ["aggr_type", "channel", "channel_name", "last_update", "result"]
        );
        assert_eq!((&answer["aggr_type"], &answer["channel"]), (&json!(kind), &json!(3)));
        assert_eq!(answer["channel_name"], "water");
        basic(answer["last_update"].as_str().unwrap(), "+0000");
        let [result] = &answer["result"].as_array().unwrap()[..] else {
            panic!("not one element: {answer}")
        };
        assert_eq!((keys(result), &result["_id"]), (vec!["_id", "value"], &json!(null)));
        result["value"].clone()
    };
    let floats = |value: &Value| {
        let object = value.as_object().unwrap().iter();
        let mut floats: Vec<_> = object
            .map(|(path, number)| (path.clone(), number.as_f64().unwrap()))
            .collect();
        floats.sort_by(|one, other| one.0.cmp(&other.0));
        floats
    };
    let expected = |fields: &[(&str, f64)]| -> Vec<(String, f64)> {
        fields
            .iter()
            .map(|(path, number)| (path.to_string(), *number))
            .collect()
    };
    for (kind, fields) in [
        (
            "sum",
            [
                ("deep:a", 3.0),
                ("deep:b:c", -2.0),
                ("list:v", 4.0),
                ("name", 7.0),
                ("rh", 95.0),
                ("temp", 141.5),
            ],
        ),
        (
            "min",
            [
                ("deep:a", 1.0),
                ("deep:b:c", -2.0),
                ("list:v", 1.0),
                ("name", 7.0),
                ("rh", 47.0),
                ("temp", 20.5),
            ],
        ),
        (
            "max",
            [
                ("deep:a", 2.0),
                ("deep:b:c", -2.0),
                ("list:v", 3.0),
                ("name", 7.0),
                ("rh", 48.0),
                ("temp", 100.0),
            ],
        ),
        (
            "avg",
            [
                ("deep:a", 1.5),
                ("deep:b:c", -2.0),
                ("list:v", 2.0),
                ("name", 7.0),
                ("rh", 47.5),
                ("temp", 141.5 / 3.0),
            ],
        ),
    ] {
        // `last` means up to now.
        assert_eq!(floats(&aggregate(kind, last(&platform))), expected(&fields), "{kind}");
        let end = local(now_s() + 60, "UTC", "%Y-%m-%d %H:%M");
        assert_eq!(
            floats(&aggregate(kind, platform.api(0).header("X-ENDTIME", end))),
            expected(&fields),
            "{kind}"
        );
    }
    let inlet = last(&platform).header("X-TAGNAME", "inlet");
    assert_eq!(floats(&aggregate("sum", inlet)), expected(&[("temp", 100.0)]));
    // avg is a float, whatever it was made of.
    let text = last(&platform)
        .header("X-AGGREGATE", "avg")
        .get("/v2/stream/3")
        .expect(200)
        .text();
    assert!(text.contains("\"name\":7.0"), "{text}");
    // Nothing numeric, nothing at all.
    for tag in ["open", "nothing"] {
        if tag == "open" {
            platform.send(0, "json/pump-07/open", r#""open""#);
        }
        let answer = get(&last(&platform).header("X-AGGREGATE", "avg").header("X-TAGNAME", tag));
        assert_eq!((&answer["aggr_type"], &answer["result"]), (&json!("avg"), &json!([])));
    }
}

#[test]
fn aggregates_cover_the_range_and_no_more() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    for n in 1..=3 {
        platform.send(0, "json/pump-07", n.to_string());
        sleep(Duration::from_millis(1100));
    }
    let stream = platform.stream(0, 3);
    let at = |n: usize| {
        local(
            basic(stream["stream"][n]["at"].as_str().unwrap(), "+0000"),
            "UTC",
            "%Y-%m-%d %H:%M:%S",
        )
    };
    let sum = |from: &str, to: &str| {
        let api = platform
            .api(0)
            .header("X-AGGREGATE", "sum")
            .header("X-STARTTIME", from)
            .header("X-ENDTIME", to);
        get(&api)["result"][0]["value"]["value1"].as_f64().unwrap()
    };
    assert_eq!(sum(&at(1), &at(2)), 5.0);
    assert_eq!(sum(&at(0), &at(1)), 3.0);
    assert_eq!(sum("last", &at(0)), 1.0);
    assert_eq!(sum(&at(1), "last"), 5.0);
}

/// Section 11.3.
#[test]
fn a_datapoint_is_written_by_rest_without_a_device() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        let api = platform.api(0);
        api.post("/v2/channel/3", "").expect(201);
        let made = api.post("/v2/stream/3", r#"{"temp":1}"#).expect(201).json();
        assert_eq!(keys(&made), ["_id"]);
        let tagged = api
            .header("X-TAGNAME", "inlet")
            .post("/v2/stream/3", "23.5")
            .expect(201)
            .json();
        api.post("/v2/stream/3", r#""open""#).expect(201);
        api.post("/v2/stream/3", "[1]").expect(201);
        let stream = platform.stream(0, 3);
        let rows = stream["stream"].as_array().unwrap();
        assert_eq!((&rows[0]["_id"], &rows[1]["_id"]), (&made["_id"], &tagged["_id"]));
        assert_eq!((&rows[0]["tag"], &rows[1]["tag"]), (&json!(null), &json!("inlet")));
        let expected = [
            json!({"temp": 1}),
            json!({"value1": 23.5}),
            json!({"value1": "open"}),
            json!({"value1": [1]}),
        ];
        assert_eq!(values(&stream), expected);
        assert_eq!(platform.devices(0), [""; 0]);
        for body in ["", "{", "null", "NaN"] {
            assert_error(&api.post("/v2/stream/3", body), 400, "BAD_JSON_FORMAT");
        }
        assert_error(
            &api.header("X-TAGNAME", "a/b").post("/v2/stream/3", "1"),
            400,
            "BAD_PARAMETER",
        );
        for id in ["4", "-1", "x"] {
            assert_error(&api.post(&format!("/v2/stream/{id}"), "1"), 404, "NO_CHANNEL");
        }
        assert_error(&platform.anybody().post("/v2/stream/3", "1"), 401, "AUTH_REQUIRED");
        assert_eq!(platform.values(0, 3).len(), 4);
        // No deletion of single datapoints.
        for (method, path) in [("DELETE", "/v2/stream/3"), ("PUT", "/v2/stream/3")] {
            assert_error(&api.call(method, path, None), 405, "BAD_METHOD");
        }
    }
}

/// Ids of one channel grow, whoever writes: several devices on several cores, and HTTP between them. Over connections that stay,
/// so that one follows the other within a millisecond: clocks alone do not order them.
#[test]
fn ids_grow_with_time_whoever_writes() {
    const COUNT: i64 = 1_000;
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        let account = platform.account(0);
        for n in 0..8 {
            platform.map(0, &format!("pump-{n}"), 3);
        }
        let line = |headers: &[(&str, &str)]| Line::open(platform.broker().api_port(), headers).unwrap();
        let mut rest = line(&[("X-APITOKEN", &account.api_token)]);
        let mut connector = line(&[("X-DEVICETOKEN", &account.device_token)]);
        let mut raw = platform.client(0, "pumps");
        for n in 0..COUNT {
            let (device, value) = (format!("pump-{}", n % 8), n.to_string());
            match n % 5 {
                0 => drop(rest.call("POST", "/v2/stream/3", &[], &value).expect(201)),
                1 | 3 => {
                    let qos = if n % 5 == 1 { 1 } else { 2 };
                    let topic = account.topic(&format!("json/{device}"));
                    raw.deliver(&publish(&topic, qos, 7, value.as_bytes()), 7);
                }
                _ => {
                    let reply = connector.call("POST", "/post_v2", &[("X-DEVICEID", &device)], &value);
                    drop(reply.expect(200));
                }
            }
        }
        let expected: Vec<_> = (0..COUNT).collect();
        let stream = get(&last(&platform).header("X-PAGELIMIT", "10000"));
        assert_eq!(
            numbers(&stream),
            expected,
            "in the order in which they were acknowledged, {cores} cores"
        );
        let rows = stream["stream"].as_array().unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row["_id"].as_str().unwrap()).collect();
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        let reversed = last(&platform)
            .header("X-PAGELIMIT", "10000")
            .header("X-PAGESORT", "desc");
        assert_eq!(numbers(&get(&reversed)), expected.into_iter().rev().collect::<Vec<_>>());
    }
}

/// Our extension: a decoded copy beside the digits, on request.
#[test]
fn message_pack_is_decoded_on_request_and_the_digits_stay() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    // {"temp": 21.5, "ok": true}; [1, -1, "x"]; what is none: a map that ends early.
    let packed = ["82a474656d70cb4035800000000000a26f6bc3", "9301ffa178", "82a474"];
    for bytes in packed {
        platform.send(0, "binary/pump-07", hex::decode(bytes).unwrap());
    }
    platform.send(0, "json/pump-07", r#"{"value1":"c3"}"#);
    let plain = last(&platform).header("X-PAGELIMIT", "10");
    let rows = get(&plain)["stream"].clone();
    for (row, bytes) in rows.as_array().unwrap().iter().zip(packed) {
        assert_eq!(row["value"], json!({"value1": bytes}), "off by default");
        assert_eq!(keys(row), ["_id", "at", "tag", "value"]);
    }
    let decoded = get(&plain.header("X-DECODE", "msgpack"));
    for (row, bytes) in decoded["stream"].as_array().unwrap().iter().zip(packed) {
        assert_eq!(row["value"]["value1"], *bytes, "as it was");
    }
    let text = decoded["stream"].to_string();
    assert!(
        text.contains(r#"{"temp":21.5,"ok":true}"#) && text.contains(r#"[1,-1,"x"]"#),
        "{text}"
    );
    assert_error(
        &plain.header("X-DECODE", "cbor").get("/v2/stream/3"),
        400,
        "BAD_PARAMETER",
    );
}

/// Section 6.5: a store that is full drops the oldest and takes the new.
#[test]
fn at_the_quota_the_oldest_datapoints_go_first() {
    const COUNT: usize = 2_000;
    let mut platform = Platform::prepare(0);
    platform.add_account(&["--max-storage", "100 KiB"]);
    platform.run(4, &LIFTED);
    platform.map(0, "pump-07", 3);
    platform.api(0).post("/v2/channel/4", "").expect(201);
    platform.api(0).post("/v2/stream/4", "0").expect(201);
    fill(&platform, COUNT);
    let storage = platform.api(0).get("/v2/user").expect(200).json()[0]["storage"].clone();
    assert_eq!(storage["maxSize"], 100 * 1024);
    let (count, bytes) = (
        storage["count"].as_u64().unwrap(),
        storage["usage_bytes"].as_u64().unwrap(),
    );
    assert!(bytes <= 100 * 1024 && bytes > 50 * 1024, "{storage}");
    let kept = numbers(&platform.stream(0, 3));
    assert!(kept.len() < COUNT && !kept.is_empty(), "{}", kept.len());
    let newest: Vec<_> = (COUNT as i64 - kept.len() as i64 + 1..=COUNT as i64).collect();
    assert_eq!(kept, newest, "those that are kept are the newest, all of them");
    assert_eq!(
        values(&platform.stream(0, 4)),
        [json!(null); 0],
        "the oldest of the account was in another channel"
    );
    assert_eq!(count as usize, kept.len());
    // It is still so after a restart.
    platform.stop();
    platform.run(1, &LIFTED);
    assert_eq!(numbers(&platform.stream(0, 3)), newest);
}
