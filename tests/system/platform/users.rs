//! The user service (14.1) and the account as it is shown (8.1).

use serde_json::json;

use super::fixture::{LIFTED, Platform, assert_error, keys};

#[test]
fn the_account_is_shown_with_both_tokens_and_what_it_holds() {
    let platform = Platform::start(2);
    let account = platform.account(0);
    let reply = platform.api(0).get("/v2/user").expect(200);
    assert!(reply.header("content-type").unwrap().starts_with("application/json"));
    let expected = json!([{
        "user_id": account.user_id, "api_token": account.api_token, "device_token": account.device_token, "email1": "",
        "email2": "", "organization": "", "locale": "UTC", "user_alias": "",
        "storage": {"count": 0, "usage_bytes": 0, "maxSize": 5_242_880_000_u64, "avg_obj_size": 0},
    }]);
    assert_eq!(reply.json(), expected);
    assert_eq!(
        platform.api(0).get("/v2/user/").expect(200).json(),
        expected,
        "with a slash"
    );
    assert_eq!(
        platform.api(1).get("/v2/user").expect(200).json()[0]["user_id"],
        platform.account(1).user_id
    );
    assert_error(&platform.anybody().get("/v2/user"), 401, "AUTH_REQUIRED");
}

/// Section 3.2 and 4: `U` and six characters; 128 bits as 32 digits in upper case.
#[test]
fn ids_and_tokens_have_their_shapes_and_are_all_different() {
    let platform = Platform::prepare(8);
    let accounts: [_; 8] = platform.accounts();
    let mut seen = std::collections::BTreeSet::new();
    for account in accounts {
        assert!(
            account.user_id.len() == 7 && account.user_id.starts_with('U'),
            "{account:?}"
        );
        assert!(
            account.user_id[1..].bytes().all(|byte| byte.is_ascii_digit()),
            "{account:?}"
        );
        for token in [&account.api_token, &account.device_token] {
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
            assert!(token.len() == 32 && token.bytes().all(is_digit), "{token}");
            assert!(seen.insert(token.clone()));
        }
        assert!(seen.insert(account.user_id));
    }
}

#[test]
fn a_change_is_partial_and_tokens_are_not_in_it() {
    let mut platform = Platform::start(2);
    let api = platform.api(0);
    let mut expected = api.get("/v2/user").expect(200).json();
    for (name, value) in [
        ("email1", "ops@example.org"),
        ("email2", "night@example.org"),
        ("organization", "Example Farm 日本"),
        ("locale", "Europe/Vienna"),
        ("user_alias", "Greenhouse"),
        ("email2", ""),
        ("locale", "UTC"),
    ] {
        let reply = api.put("/v2/user", json!({name: value})).expect(200);
        assert_eq!(reply.json(), json!({"result": "OK"}));
        expected[0][name] = json!(value);
        assert_eq!(api.get("/v2/user").expect(200).json(), expected, "{name}");
    }
    let body = json!({
        "user_id": "U000000", "api_token": "0".repeat(32), "device_token": "0".repeat(32), "storage": {"maxSize": 1},
        "unknown": [],
    });
    api.put("/v2/user", body).expect(200);
    assert_eq!(
        api.get("/v2/user").expect(200).json(),
        expected,
        "unknown keys are passed over, and so are these"
    );
    assert_eq!(
        platform.api(1).get("/v2/user").expect(200).json()[0]["organization"],
        ""
    );
    platform.kill();
    platform.run(1, &LIFTED);
    assert_eq!(
        platform.api(0).get("/v2/user").expect(200).json(),
        expected,
        "after a kill"
    );
}

#[test]
fn a_change_that_cannot_be_is_400() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    let before = api.get("/v2/user").expect(200).json();
    for body in ["", "{", "email1=x"] {
        assert_error(&api.put("/v2/user", body), 400, "BAD_JSON_FORMAT");
    }
    for body in [
        json!([]),
        json!(null),
        json!("x"),
        json!({"email1": 1}),
        json!({"email2": null}),
        json!({"organization": {}}),
        json!({"user_alias": []}),
        json!({"locale": 9}),
        json!({"locale": "Europe/Atlantis"}),
        json!({"locale": ""}),
        json!({"locale": "+09:00"}),
        json!({"locale": "../../etc/localtime"}),
        json!({"user_alias": "x", "locale": "Nowhere"}),
    ] {
        assert_error(&api.put("/v2/user", &body), 400, "BAD_PARAMETER");
    }
    assert_eq!(api.get("/v2/user").expect(200).json(), before);
    for method in ["POST", "DELETE"] {
        assert_error(&api.call(method, "/v2/user", None), 405, "BAD_METHOD");
    }
}

/// Section 6.5.
#[test]
fn storage_counts_the_records_of_all_channels() {
    let mut platform = Platform::start(2);
    for (index, device, channel) in [(0, "pump-07", 3), (0, "pump-08", 4), (1, "pump-07", 3)] {
        platform.map(index, device, channel);
    }
    let storage = |platform: &Platform, index: usize| {
        let storage = platform.api(index).get("/v2/user").expect(200).json()[0]["storage"].clone();
        assert_eq!(keys(&storage), ["avg_obj_size", "count", "maxSize", "usage_bytes"]);
        let number = |name: &str| storage[name].as_f64().unwrap();
        let (count, bytes) = (number("count"), number("usage_bytes"));
        if count > 0.0 {
            assert!((number("avg_obj_size") - bytes / count).abs() <= 1.0, "{storage}");
        }
        (count as u64, bytes as u64)
    };
    for n in 0..10 {
        platform.send(0, "json/pump-07", format!("{{\"temp\":{n}}}"));
        platform.send(0, "binary/pump-08/inlet", [n; 100]);
    }
    platform.send(1, "json/pump-07", "1");
    let (count, bytes) = storage(&platform, 0);
    assert!(count == 20 && bytes > 10 * 200, "{bytes}");
    assert_eq!(storage(&platform, 1).0, 1);
    platform.stop();
    platform.run(1, &LIFTED);
    assert_eq!(storage(&platform, 0), (count, bytes), "after a restart");
    platform
        .api(0)
        .header("X-TAGNAME", "inlet")
        .delete("/v2/channel/4")
        .expect(200);
    let (count, fewer) = storage(&platform, 0);
    assert!(count == 10 && fewer < bytes, "{fewer}");
    platform.api(0).delete("/v2/channel/3").expect(200);
    assert_eq!(storage(&platform, 0), (0, 0));
    assert_eq!(storage(&platform, 1).0, 1);
}
