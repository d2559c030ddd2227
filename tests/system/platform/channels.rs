//! The channel service (section 10) and the channel as it is shown (8.3).

use serde_json::{Value, json};

use super::fixture::{LIFTED, Platform, assert_error, keys, values};
use super::rest::Api;
use super::time::{basic, now_s};

fn tagged(api: &Api, tag: &str) -> Api {
    api.header("X-TAGNAME", tag)
}

/// `tag` and `channel_name` of each element, with X-WITHTAG.
fn with_tags(platform: &Platform, path: &str) -> Vec<(Value, Value)> {
    let list = platform.api(0).header("X-WITHTAG", "true").get(path).expect(200).json();
    let elements = list.as_array().unwrap().iter();
    elements
        .map(|element| (element["tag"].clone(), element["channel_name"].clone()))
        .collect()
}

#[test]
fn channels_are_made_listed_named_and_removed() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    for path in ["/v2/channel", "/v2/channel/"] {
        assert_eq!(api.get(path).expect(200).json(), json!([]));
    }
    for id in ["3", "0", "2147483647"] {
        let made = api.post(&format!("/v2/channel/{id}"), "").expect(201);
        assert!(made.header("content-type").unwrap().starts_with("application/json"));
    }
    assert_error(&api.post("/v2/channel/3", ""), 403, "CHANNEL_INUSE");
    let expected = |id: i64, name: &str| json!({"channel": id, "channel_name": name, "last_update": null});
    for path in ["/v2/channel", "/v2/channel/"] {
        let list = api.get(path).expect(200).json();
        assert_eq!(
            list,
            json!([expected(0, ""), expected(3, ""), expected(2_147_483_647, "")])
        );
    }
    let reply = api
        .put("/v2/channel/3", json!({"channel_name": "wätér", "unknown": 1}))
        .expect(200);
    assert_eq!(reply.json(), json!({"result": "OK"}));
    assert_eq!(
        api.get("/v2/channel/3").expect(200).json(),
        json!([expected(3, "wätér")])
    );
    // Nothing to change is no error.
    api.put("/v2/channel/3", "{}").expect(200);
    assert_eq!(
        api.get("/v2/channel/3").expect(200).json(),
        json!([expected(3, "wätér")])
    );
    let reply = api.delete("/v2/channel/3").expect(200);
    assert_eq!(reply.json(), json!({"result": "OK"}));
    for (method, body) in [("GET", None), ("PUT", Some(&b"{}"[..])), ("DELETE", None)] {
        assert_error(&api.call(method, "/v2/channel/3", body), 404, "NO_CHANNEL");
    }
    api.post("/v2/channel/3", "").expect(201);
    assert_eq!(api.get("/v2/channel/3").expect(200).json(), json!([expected(3, "")]));
}

/// The documented 404 of POST: the id is not from 0 to 2147483647.
#[test]
fn an_id_out_of_range_is_404() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    for id in [
        "-1",
        "2147483648",
        "99999999999999999999",
        "1.5",
        "x",
        "%20",
        "1%202",
        "0x10",
        "+3",
    ] {
        for (method, body) in [
            ("GET", None),
            ("POST", None),
            ("PUT", Some(&b"{}"[..])),
            ("DELETE", None),
        ] {
            let reply = api.call(method, &format!("/v2/channel/{id}"), body);
            assert_error(&reply, 404, "NO_CHANNEL");
        }
    }
    assert_eq!(api.get("/v2/channel").expect(200).json(), json!([]));
}

#[test]
fn a_change_that_cannot_be_read_changes_nothing() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/channel/3", "").expect(201);
    for body in ["", "{", "channel_name=x"] {
        assert_error(&api.put("/v2/channel/3", body), 400, "BAD_JSON_FORMAT");
    }
    for body in [
        json!([]),
        json!("x"),
        json!(null),
        json!({"channel_name": 3}),
        json!({"channel_name": null}),
    ] {
        assert_error(&api.put("/v2/channel/3", body), 400, "BAD_PARAMETER");
    }
    assert_eq!(api.get("/v2/channel/3").expect(200).json()[0]["channel_name"], "");
}

#[test]
fn a_tag_comes_into_being_with_its_data_and_is_listed_on_request() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let api = platform.api(0);
    api.put("/v2/channel/3", json!({"channel_name": "water"})).expect(200);
    api.post("/v2/channel/4", "").expect(201);
    let began = now_s();
    platform.send(0, "json/pump-07", "1");
    platform.send(0, "json/pump-07/outlet", "2");
    platform.send(0, "binary/pump-07/inlet", "3");
    // No tag key without the header; one element a channel.
    for api in [api.clone(), api.header("X-WITHTAG", "false")] {
        let list = api.get("/v2/channel").expect(200).json();
        assert_eq!(list.as_array().unwrap().len(), 2);
        for element in list.as_array().unwrap() {
            assert_eq!(keys(element), ["channel", "channel_name", "last_update"]);
        }
    }
    let list = api.header("X-WITHTAG", "true").get("/v2/channel/3").expect(200).json();
    let mut tags: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|element| element["tag"].clone())
        .collect();
    tags.sort_by_key(|tag| tag.to_string());
    assert_eq!(json!(tags), json!(["inlet", "outlet", null]));
    for element in list.as_array().unwrap() {
        assert_eq!(keys(element), ["channel", "channel_name", "last_update", "tag"]);
        assert_eq!(
            (&element["channel"], &element["channel_name"]),
            (&json!(3), &json!("water"))
        );
        let at = basic(element["last_update"].as_str().unwrap(), "+0000");
        assert!((began..=now_s()).contains(&at), "{element}");
    }
    assert_error(
        &api.header("X-WITHTAG", "maybe").get("/v2/channel/3"),
        400,
        "BAD_PARAMETER",
    );
    // One for the data without a tag stands there in any case.
    let tags = with_tags(&platform, "/v2/channel/4");
    assert_eq!(tags, [(json!(null), json!(""))]);
    assert_eq!(with_tags(&platform, "/v2/channel").len(), 4);
}

/// `last_update` is that of the element: of the tag, of what has none, of the channel.
#[test]
fn the_last_update_of_a_tag_is_its_own() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let updates = || {
        let channel = platform.api(0).get("/v2/channel/3").expect(200).json();
        let list = platform
            .api(0)
            .header("X-WITHTAG", "true")
            .get("/v2/channel/3")
            .expect(200)
            .json();
        let of = |tag: Value| {
            let found = list.as_array().unwrap().iter().find(|element| element["tag"] == tag);
            found.map(|element| element["last_update"].clone())
        };
        (
            channel[0]["last_update"].clone(),
            of(json!(null)).unwrap(),
            of(json!("inlet")),
        )
    };
    assert_eq!(updates(), (json!(null), json!(null), None));
    platform.send(0, "json/pump-07/inlet", "1");
    let (channel, untagged, inlet) = updates();
    assert_eq!((&untagged, Some(&channel)), (&json!(null), inlet.as_ref()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    platform.send(0, "json/pump-07", "1");
    let (later, untagged, unchanged) = updates();
    assert_eq!((&untagged, unchanged), (&later, inlet));
    assert_ne!(later, channel);
}

/// X-TAGNAME on POST, PUT and DELETE.
#[test]
fn a_tag_is_declared_named_and_removed_by_itself() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        let api = platform.api(0);
        // Declares the tag, and creates the channel with it.
        tagged(&api, "inlet").post("/v2/channel/3", "").expect(201);
        assert_error(&tagged(&api, "inlet").post("/v2/channel/3", ""), 403, "CHANNEL_INUSE");
        assert_error(&api.post("/v2/channel/3", ""), 403, "CHANNEL_INUSE");
        tagged(&api, "outlet").post("/v2/channel/3", "").expect(201);
        let find = |tag: &str| {
            let tags = with_tags(&platform, "/v2/channel/3");
            tags.into_iter()
                .find(|(found, _)| *found == json!(tag))
                .map(|(_, name)| name)
        };
        assert_eq!((find("inlet"), find("outlet")), (Some(json!("")), Some(json!(""))));
        let list = api.header("X-WITHTAG", "true").get("/v2/channel/3").expect(200).json();
        assert!(
            list.as_array()
                .unwrap()
                .iter()
                .all(|element| element["last_update"] == json!(null)),
            "{list}"
        );
        // A tag that came by itself is there as well.
        platform.map(0, "pump-07", 3);
        platform.send(0, "json/pump-07/third", "1");
        assert_error(&tagged(&api, "third").post("/v2/channel/3", ""), 403, "CHANNEL_INUSE");

        // The name of this tag only.
        api.put("/v2/channel/3", json!({"channel_name": "water"})).expect(200);
        assert_eq!(find("inlet"), Some(json!("water")), "a tag has the name of its channel");
        tagged(&api, "inlet")
            .put("/v2/channel/3", json!({"channel_name": "intake"}))
            .expect(200);
        assert_eq!(
            (find("inlet"), find("outlet")),
            (Some(json!("intake")), Some(json!("water")))
        );
        assert_eq!(api.get("/v2/channel/3").expect(200).json()[0]["channel_name"], "water");
        let unknown = tagged(&api, "unknown").put("/v2/channel/3", json!({"channel_name": "x"}));
        assert_error(&unknown, 404, "NO_TAG");

        // The tag and its datapoints; the channel and the others stay.
        platform.send(0, "json/pump-07/inlet", "2");
        platform.send(0, "json/pump-07", "3");
        assert_eq!(platform.values(0, 3).len(), 3);
        tagged(&api, "inlet").delete("/v2/channel/3").expect(200);
        assert_eq!(platform.values(0, 3), [json!({"value1": 1}), json!({"value1": 3})]);
        assert_eq!(find("inlet"), None);
        assert_error(&tagged(&api, "inlet").delete("/v2/channel/3"), 404, "NO_TAG");
        assert_error(&tagged(&api, "inlet").delete("/v2/channel/9"), 404, "NO_CHANNEL");
        assert_error(&tagged(&api, "inlet").put("/v2/channel/9", "{}"), 404, "NO_CHANNEL");
        tagged(&api, "outlet").delete("/v2/channel/3").expect(200);
        assert_eq!(find("outlet"), None);
        // It may come again.
        platform.send(0, "json/pump-07/inlet", "4");
        assert_eq!(find("inlet"), Some(json!("water")), "the old name went with the tag");
    }
}

#[test]
fn a_tag_that_no_topic_can_have_is_400() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    api.post("/v2/channel/3", "").expect(201);
    for tag in [&"t".repeat(65)[..], "a/b", "+", "#", "a\tb"] {
        assert_error(&tagged(&api, tag).post("/v2/channel/4", ""), 400, "BAD_PARAMETER");
    }
    assert_error(&api.get("/v2/channel/4"), 404, "NO_CHANNEL");
    tagged(&api, &"t".repeat(64)).post("/v2/channel/4", "").expect(201);
}

#[test]
fn a_deleted_channel_takes_its_datapoints_events_and_mappings_with_it() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &LIFTED);
        let api = platform.api(0);
        for index in [0, 1] {
            platform.map(index, "pump-07", 3);
            platform.map(index, "pump-08", 3);
            platform.map(index, "pump-09", 4);
            platform.send(index, "json/pump-07", "1");
            platform.send(index, "json/pump-09/inlet", "2");
            for channel in [3, 4] {
                platform
                    .api(index)
                    .post("/v2/event", json!({"mapped_ch": channel}))
                    .expect(201);
            }
        }
        api.delete("/v2/channel/3").expect(200);
        let mapped = |index: usize, id: &str| platform.device(index, id)["mapped_ch"].clone();
        assert_eq!([mapped(0, "pump-07"), mapped(0, "pump-08")], [json!(null), json!(null)]);
        assert_eq!(mapped(0, "pump-09"), 4);
        let events = api.get("/v2/event").expect(200).json();
        assert_eq!(
            (events.as_array().unwrap().len(), &events[0]["mapped_ch"]),
            (1, &json!(4))
        );
        let stream = api.header("X-ENDTIME", "last");
        assert_error(&stream.get("/v2/stream/3"), 404, "NO_CHANNEL");
        // A channel of that number is another one.
        api.post("/v2/channel/3", "").expect(201);
        assert_eq!(values(&platform.stream(0, 3)), [json!(null); 0]);
        assert_eq!(
            api.get("/v2/channel/3").expect(200).json()[0]["last_update"],
            json!(null)
        );
        platform.send(0, "json/pump-07", "3");
        assert_eq!(
            values(&platform.stream(0, 3)),
            [json!(null); 0],
            "the device is not mapped"
        );
        // Nothing of it concerns the other account, or the other channel.
        assert_eq!(platform.values(0, 4).len(), 1);
        assert_eq!((mapped(1, "pump-07"), mapped(1, "pump-08")), (json!(3), json!(3)));
        assert_eq!((platform.values(1, 3).len(), platform.values(1, 4).len()), (1, 1));
        assert_eq!(
            platform
                .api(1)
                .get("/v2/event")
                .expect(200)
                .json()
                .as_array()
                .unwrap()
                .len(),
            2
        );
    }
}

#[test]
fn channels_of_another_account_do_not_exist() {
    let platform = Platform::start(2);
    platform.map(0, "pump-07", 3);
    platform.send(0, "json/pump-07", "1");
    let other = platform.api(1);
    for (method, path) in [
        ("GET", "/v2/channel/3"),
        ("PUT", "/v2/channel/3"),
        ("DELETE", "/v2/channel/3"),
        ("GET", "/v2/stream/3"),
        ("POST", "/v2/stream/3"),
    ] {
        let body = (method != "GET" && method != "DELETE").then_some(&b"{}"[..]);
        let reply = other.header("X-ENDTIME", "last").call(method, path, body);
        assert_error(&reply, 404, "NO_CHANNEL");
    }
    other.post("/v2/channel/3", "").expect(201);
    assert_eq!(platform.values(1, 3).len(), 0);
    other.delete("/v2/channel/3").expect(200);
    assert_eq!(
        (
            platform.values(0, 3).len(),
            platform.device(0, "pump-07")["mapped_ch"].clone()
        ),
        (1, json!(3))
    );
}
