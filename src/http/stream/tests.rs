//! The stream service on a store on disk.

use serde_json::{Value, json};

use crate::http::testing::{Answered, ONE, OTHER, Platform, START_MS, datapoint};
use crate::limits::{STREAM_BYTES_MAX, STREAM_LOOKS_PER_VIEW, STREAM_ROWS_MAX};
use crate::registry::channel::ChannelId;
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::event::{Event, Operator};

async fn read(platform: &Platform, headers: &[(&str, &str)]) -> Answered {
    platform.call("GET", "/v2/stream/3", headers, "").await
}

/// What `n` is of every row.
async fn numbers(platform: &Platform, headers: &[(&str, &str)]) -> Vec<u64> {
    let answer = read(platform, headers).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let rows = answer.json()["stream"].as_array().unwrap().clone();
    rows.iter().map(|row| row["value"]["n"].as_u64().unwrap()).collect()
}

/// One in each of the first five seconds; the second and the fourth are of the tag `even`.
fn platform() -> Platform {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    for n in 1..=5 {
        let tag = if n % 2 == 0 { "even" } else { "" };
        platform.datapoint(ONE, 3, n * 1_000, tag, &format!(r#"{{"n":{n}}}"#));
    }
    platform
}

/// So many, a millisecond apart.
fn fill(platform: &Platform, count: u64, row: impl Fn(u64) -> (&'static str, String)) {
    let channel = ChannelId::new(3).unwrap();
    let records = (0..count).map(|n| {
        let (tag, value) = row(n);
        datapoint(ONE, channel, DatapointId::new(START_MS + n, 0, 1), tag, "d", &value)
    });
    platform.persist(records.collect());
}

const LAST: (&str, &str) = ("X-ENDTIME", "last");

#[tokio::test]
async fn a_stream_is_shown_with_its_channel_and_all_fields_of_a_datapoint() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    let value = r#"{"temp":21.50,"deep":[{"big":123456789012345678901234567890}],"ä":"\u00e4"}"#;
    let first = platform.datapoint(ONE, 3, 1_999, "in \"let\"", value);
    let second = platform.datapoint(ONE, 3, 60_000, "", r#"{"value1":"01a4ff"}"#);
    let answer = read(&platform, &[("X-ENDTIME", "2026-03-04 23:59")]).await;
    let expected = format!(
        "{{\"channel\":3,\"channel_name\":\"water\",\"last_update\":\"2026-03-04T09:16:00+0100\",\"stream\":[\
         {{\"_id\":\"{first}\",\"tag\":\"in \\\"let\\\"\",\"value\":{value},\"at\":\"2026-03-04T09:15:01+0100\"}},\
         {{\"_id\":\"{second}\",\"tag\":null,\"value\":{{\"value1\":\"01a4ff\"}},\"at\":\"2026-03-04T09:16:00+0100\"}}]}}"
    );
    assert_eq!(
        (answer.status, &answer.text),
        (200, &expected),
        "stored JSON is passed on as it is"
    );
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(!answer.headers.contains_key("x-truncated"));
    assert_eq!(first.len(), 24);
}

#[tokio::test]
async fn last_is_the_newest_page_in_the_order_asked_for() {
    let platform = platform();
    assert_eq!(numbers(&platform, &[LAST]).await, [5]);
    assert_eq!(
        numbers(&platform, &[("X-ENDTIME", "LAST"), ("X-STARTTIME", "last")]).await,
        [5]
    );
    assert_eq!(numbers(&platform, &[LAST, ("X-PAGELIMIT", "3")]).await, [3, 4, 5]);
    assert_eq!(
        numbers(&platform, &[LAST, ("X-PAGELIMIT", "3"), ("X-PAGESORT", "asc")]).await,
        [3, 4, 5]
    );
    assert_eq!(
        numbers(&platform, &[LAST, ("X-PAGELIMIT", "3"), ("X-PAGESORT", "desc")]).await,
        [5, 4, 3]
    );
    assert_eq!(
        numbers(&platform, &[LAST, ("X-PAGELIMIT", "10000")]).await,
        [1, 2, 3, 4, 5]
    );
    let tagged = [LAST, ("X-PAGELIMIT", "3"), ("X-TAGNAME", "even")];
    assert_eq!(numbers(&platform, &tagged).await, [2, 4], "after the tag filter");
    let bounded = [LAST, ("X-PAGELIMIT", "9"), ("X-STARTTIME", "2026-03-04 09:15:04")];
    assert_eq!(numbers(&platform, &bounded).await, [4, 5]);
    assert!(!read(&platform, &[LAST]).await.headers.contains_key("x-truncated"));
}

#[tokio::test]
async fn a_range_has_both_its_ends_and_no_page() {
    let platform = platform();
    for (start, end, expected) in [
        ("2026-03-04 09:15:02", "2026-03-04 09:15:04", &[2, 3, 4][..]),
        ("2026-03-04T08:15:02Z", "2026-03-04T09:15:04+0100", &[2, 3, 4]),
        ("2026-03-04 09:15", "2026-03-04 09:15", &[1, 2, 3, 4, 5]),
        ("last", "2026-03-04 09:15:02", &[1, 2]),
        ("", "2026-03-04 09:15:02", &[1, 2]),
        ("2026-03-04 09:16", "2026-03-04 10:00", &[]),
        ("2000-01-01 00:00", "2026-03-04 09:14", &[]),
        ("1960-01-01 00:00", "1969-12-31 23:59", &[]),
    ] {
        let range = [("X-STARTTIME", start), ("X-ENDTIME", end), ("X-PAGELIMIT", "1")];
        assert_eq!(numbers(&platform, &range).await, expected, "{start} to {end}");
        let mut reversed = expected.to_vec();
        reversed.reverse();
        let range = [range[0], range[1], ("X-PAGESORT", "desc")];
        assert_eq!(numbers(&platform, &range).await, reversed);
    }
    let tagged = [("X-ENDTIME", "2026-03-04 09:15"), ("X-TAGNAME", "even")];
    assert_eq!(numbers(&platform, &tagged).await, [2, 4]);
    let unknown = [("X-ENDTIME", "2026-03-04 09:15"), ("X-TAGNAME", "odd")];
    assert_eq!(numbers(&platform, &unknown).await, [0; 0]);
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused() {
    let platform = platform();
    platform.channel(OTHER, 7, "theirs");
    read(&platform, &[]).await.is_refused(400, "ENDTIME_REQUIRED");
    for (name, value) in [
        ("X-STARTTIME", "yesterday"),
        ("X-STARTTIME", "2026-03-04 09:16"),
        ("X-PAGELIMIT", "0"),
        ("X-PAGELIMIT", "10001"),
        ("X-PAGESORT", "up"),
        ("X-AGGREGATE", "median"),
        ("X-TAGNAME", "a/b"),
        ("X-TAGNAME", "ä"),
        ("X-DECODE", "cbor"),
    ] {
        let headers = [("X-ENDTIME", "2026-03-04 09:15"), (name, value)];
        read(&platform, &headers).await.is_refused(400, "BAD_PARAMETER");
    }
    for id in ["7", "8", "x", "-1", "2147483648"] {
        let path = format!("/v2/stream/{id}");
        for headers in [&[][..], &[LAST], &[("X-ENDTIME", "x")]] {
            platform
                .call("GET", &path, headers, "")
                .await
                .is_refused(404, "NO_CHANNEL");
        }
        platform
            .call("POST", &path, &[], "1")
            .await
            .is_refused(404, "NO_CHANNEL");
    }
    platform.get("/v2/stream").await.is_refused(404, "NOT_FOUND");
    for method in ["PUT", "DELETE", "PATCH"] {
        platform
            .call(method, "/v2/stream/3", &[], "")
            .await
            .is_refused(405, "BAD_METHOD");
    }
}

#[tokio::test]
async fn what_is_more_than_an_answer_holds_is_cut_and_says_so() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    let all = STREAM_ROWS_MAX as u64;
    fill(&platform, all, |n| {
        (if n % 2 == 0 { "even" } else { "" }, format!(r#"{{"n":{n}}}"#))
    });
    let whole = ("X-ENDTIME", "2026-03-05 00:00");
    let is_cut = async |headers: &[(&str, &str)]| {
        let answer = read(&platform, headers).await;
        let cut = answer
            .headers
            .get("x-truncated")
            .map(|cut| cut.to_str().unwrap().to_owned());
        assert!(cut.as_deref().is_none_or(|cut| cut == "true"));
        cut.is_some()
    };
    assert!(!is_cut(&[whole]).await);
    platform.datapoint(ONE, 3, 60_000, "", &format!(r#"{{"n":{all}}}"#));
    assert!(is_cut(&[whole]).await);
    assert_eq!(numbers(&platform, &[whole]).await, Vec::from_iter(0..all), "the oldest");
    assert!(is_cut(&[whole, ("X-PAGESORT", "desc")]).await);
    let newest = numbers(&platform, &[whole, ("X-PAGESORT", "desc")]).await;
    assert_eq!(newest, Vec::from_iter((1..=all).rev()));
    assert!(!is_cut(&[whole, ("X-TAGNAME", "even")]).await);
    assert_eq!(
        numbers(&platform, &[whole, ("X-TAGNAME", "even")]).await.len() as u64,
        all / 2
    );
    assert!(
        !is_cut(&[LAST, ("X-PAGELIMIT", "10000")]).await,
        "so many were asked for"
    );
}

#[tokio::test]
async fn large_values_are_cut_by_their_bytes() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    let bytes = 200_000;
    let fitting = STREAM_BYTES_MAX / bytes + 1;
    fill(&platform, fitting as u64 + 10, |n| {
        ("", format!(r#"{{"n":{n},"x":"{}"}}"#, "x".repeat(bytes)))
    });
    for headers in [
        &[("X-ENDTIME", "2026-03-05 00:00")][..],
        &[LAST, ("X-PAGELIMIT", "10000")],
    ] {
        let answer = read(&platform, headers).await;
        assert_eq!(answer.headers["x-truncated"], "true");
        assert_eq!(answer.json()["stream"].as_array().unwrap().len(), fitting);
    }
}

#[tokio::test]
async fn a_rare_tag_is_found_among_many_datapoints_in_several_looks() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    let count = 2 * STREAM_LOOKS_PER_VIEW as u64 + 10;
    fill(&platform, count, |n| {
        let is_rare = n == 1 || n == count - 3;
        (if is_rare { "rare" } else { "" }, format!(r#"{{"n":{n}}}"#))
    });
    let rare = ("X-TAGNAME", "rare");
    let whole = ("X-ENDTIME", "2026-03-05 00:00");
    assert_eq!(numbers(&platform, &[whole, rare]).await, [1, count - 3]);
    assert_eq!(
        numbers(&platform, &[whole, rare, ("X-PAGESORT", "desc")]).await,
        [count - 3, 1]
    );
    assert_eq!(
        numbers(&platform, &[LAST, rare, ("X-PAGELIMIT", "2")]).await,
        [1, count - 3]
    );
    let sum = read(&platform, &[LAST, ("X-AGGREGATE", "sum")]).await.json();
    assert_eq!(sum["result"][0]["value"]["n"], json!(count * (count - 1) / 2));
}

#[tokio::test]
async fn an_aggregate_has_one_value_for_each_numeric_field() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    platform.datapoint(
        ONE,
        3,
        1_000,
        "in",
        r#"{"temp":20.5,"rh":48,"s":"x","deep":{"a":[1,3]}}"#,
    );
    platform.datapoint(ONE, 3, 2_000, "", r#"{"temp":21.0,"rh":47,"ok":true}"#);
    let aggregate = async |kind: &str, headers: &[(&str, &str)]| {
        let mut all = vec![("X-AGGREGATE", kind)];
        all.extend(headers);
        let answer = read(&platform, &all).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    };
    let expected = |kind: &str, result: Value| {
        json!({
            "channel": 3, "channel_name": "water", "last_update": "2026-03-04T09:15:02+0100", "aggr_type": kind,
            "result": result,
        })
    };
    let of = |value: Value| json!([{"_id": null, "value": value}]);
    let avg = aggregate("avg", &[LAST]).await;
    assert_eq!(
        avg,
        expected("avg", of(json!({"temp": 20.75, "rh": 47.5, "deep:a": 2.0})))
    );
    let range = [("X-ENDTIME", "2026-03-04 09:15"), ("X-PAGELIMIT", "1")];
    assert_eq!(
        aggregate("sum", &range).await["result"][0]["value"],
        json!({"temp": 41.5, "rh": 95, "deep:a": 4})
    );
    assert_eq!(aggregate("MIN", &range).await["result"][0]["value"]["rh"], json!(47));
    assert_eq!(
        aggregate("max", &range).await,
        expected("max", of(json!({"temp": 21.0, "rh": 48, "deep:a": 3})))
    );
    let tagged = [LAST, ("X-TAGNAME", "in")];
    assert_eq!(aggregate("max", &tagged).await["result"][0]["value"]["rh"], json!(48));
    let none = [("X-ENDTIME", "2026-03-04 09:14")];
    assert_eq!(aggregate("avg", &none).await, expected("avg", json!([])));
    let before_all = [("X-ENDTIME", "1960-01-01 00:00")];
    assert_eq!(aggregate("avg", &before_all).await, expected("avg", json!([])));
    read(&platform, &[("X-AGGREGATE", "avg")])
        .await
        .is_refused(400, "ENDTIME_REQUIRED");
}

#[tokio::test]
async fn message_pack_is_decoded_beside_its_digits_on_request() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    // {"a": 1}
    platform.datapoint(ONE, 3, 1_000, "", r#"{"value1":"81a16101"}"#);
    platform.datapoint(ONE, 3, 2_000, "", r#"{"value1":"open"}"#);
    let headers = [LAST, ("X-PAGELIMIT", "2"), ("X-DECODE", "MsgPack")];
    let rows = read(&platform, &headers).await.json()["stream"].clone();
    assert_eq!(
        (&rows[0]["value"], &rows[0]["decoded"]),
        (&json!({"value1": "81a16101"}), &json!({"a": 1}))
    );
    assert_eq!(rows[1].get("decoded"), None);
    let plain = read(&platform, &headers[..2]).await.json()["stream"].clone();
    assert_eq!(plain[0].get("decoded"), None);
}

#[tokio::test]
async fn a_damaged_value_is_left_out() {
    let platform = platform();
    platform.datapoint(ONE, 3, 9_000, "", r#"{"n":"#);
    assert_eq!(
        numbers(&platform, &[("X-ENDTIME", "2026-03-04 09:15")]).await,
        [1, 2, 3, 4, 5]
    );
}

#[tokio::test]
async fn a_datapoint_is_written_as_a_device_would_have_sent_it() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    platform.pass_ms(1_500);
    for (body, tag, value) in [
        (r#"{"temp": 21.50}"#, "inlet", json!({"temp": 21.5})),
        ("23.5", "", json!({"value1": 23.5})),
        ("\"open\"", "", json!({"value1": "open"})),
        ("[1,2]", "", json!({"value1": [1, 2]})),
        ("true", "UTF-8''%C3%A4", json!({"value1": true})),
    ] {
        let written = platform
            .call("POST", "/v2/stream/3/", &[("X-TAGNAME", tag)], body)
            .await;
        assert_eq!(written.status, 201, "{body}: {}", written.text);
        let row = &read(&platform, &[LAST]).await.json()["stream"][0];
        assert_eq!((&row["_id"], &row["value"]), (&written.json()["_id"], &value));
        let shown = match tag {
            "" => json!(null),
            "inlet" => json!("inlet"),
            _ => json!("ä"),
        };
        assert_eq!((&row["tag"], &row["at"]), (&shown, &json!("2026-03-04T09:15:01+0100")));
        let keys: Vec<_> = written.json().as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["_id"]);
    }
    let deep = "[".repeat(10_000);
    for body in ["", "null", "NaN", "{", "v=1&v2=2", "\u{0}", &deep] {
        platform
            .call("POST", "/v2/stream/3", &[], body)
            .await
            .is_refused(400, "BAD_JSON_FORMAT");
    }
    platform
        .call("POST", "/v2/stream/3", &[("X-TAGNAME", "a/b")], "1")
        .await
        .is_refused(400, "BAD_PARAMETER");
    let large = format!("\"{}\"", "x".repeat(64 * 1024));
    platform
        .call("POST", "/v2/stream/3", &[], &large)
        .await
        .is_refused(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(platform.asked(), [], "no device has anything to do with it");
}

#[tokio::test]
async fn a_written_datapoint_says_nothing_of_a_device_and_its_id_is_the_apis() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    let written = platform.call("POST", "/v2/stream/3", &[], "1").await.json();
    let mut rows = Vec::new();
    let range = crate::store::streams::DatapointRange {
        from: DatapointId::first_at(0),
        to: DatapointId::MAX,
        tag: None,
        newest_first: false,
        rows_max: 9,
    };
    let channel = ChannelId::new(3).unwrap();
    let look = |id: DatapointId, row: DatapointRow<'_>| {
        rows.push((id.to_hex(), row.device.to_owned()));
        true
    };
    platform
        .client
        .view(|view| view.walk_datapoints(ONE, channel, &range, look))
        .unwrap();
    let id = written["_id"].as_str().unwrap();
    assert_eq!(rows, [(id.to_owned(), String::new())]);
    // One past the cores.
    assert_eq!(&id[16..], "00000003");
}

#[tokio::test]
async fn a_written_datapoint_fires_the_events_of_its_channel() {
    let platform = Platform::new();
    platform.channel(ONE, 3, "water");
    platform.channel(ONE, 4, "");
    let event = |channel: u32, threshold: &str, is_enabled: bool| Event {
        channel: ChannelId::new(channel),
        post_url: "http://alarm.example.org".to_owned(),
        is_enabled,
        source: "temp".to_owned(),
        operator: Operator::Greater,
        threshold: threshold.to_owned(),
        ..Event::default()
    };
    for (channel, threshold, is_enabled) in [(3, "30", true), (3, "40", true), (4, "30", true), (3, "30", false)] {
        platform
            .desk
            .create_event(ONE, event(channel, threshold, is_enabled))
            .await
            .unwrap();
    }
    platform.call("POST", "/v2/stream/3", &[], r#"{"temp":31.20}"#).await;
    let told = platform.told();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (
            told[0].account,
            told[0].event_id,
            told[0].channel.number(),
            &*told[0].current,
            told[0].at_ms
        ),
        (ONE, 1, 3, "31.20", START_MS)
    );
    platform.call("POST", "/v2/stream/3", &[], r#"{"temp":30}"#).await;
    assert_eq!(platform.told(), []);
}
