//! `/post_v2` and `/post_v1`: for devices that speak HTTP and no MQTT.
//!
//! Holds   - the checks come in the order of the contract: token, device id, rate; the rest is the core's, which does what it
//!         does for a PUBLISH on the device's `json` topic.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{Done, done, json};
use super::api::Api;
use super::auth::sender;
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::publish::must_fit;
use super::request::{name_header, tag, whole_body};
use crate::registry::device::check_device_id;
use crate::shard::query::{Answer, Query, SentFormat};

const DEVICE_ID: &str = "x-deviceid";

/// The device was unknown.
#[derive(Serialize, ToSchema)]
pub(super) struct NewDevice {
    /// `NEW_DEVICE_FOUND`
    result: &'static str,
}

/// Sends a datapoint. A device that is not known is registered by it; map it to a channel before it sends again.
#[utoipa::path(
    post,
    path = "/post_v2/",
    tag = "connector",
    params(
        ("X-DEVICEID" = String, Header),
        ("X-TAGNAME" = Option<String>, Header, description = super::openapi::TAG_NAME),
    ),
    request_body(content = serde_json::Value, description = "Any JSON but `null`; its `Content-Type` is not looked at."),
    responses(
        (status = 200, description = "Stored", body = Done),
        (status = 201, description = "`NEW_DEVICE_FOUND`", body = NewDevice),
        (status = 400, description = "`DEVICE_ID_ZERO`, `BAD_DEVICE_ID`, `BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`NO_MAPPED_CH`, `DEVICE_DISABLED`, `MAX_DEVICE_REACH`", body = ErrorBody),
    ),
)]
pub(super) async fn post_v2(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    post(&api, request, SentFormat::Json).await
}

/// Sends a datapoint of up to four values in the form of version 1. Otherwise as `/post_v2/`.
#[utoipa::path(
    post,
    path = "/post_v1/",
    tag = "connector",
    params(("X-DEVICEID" = String, Header)),
    request_body(
        content = String,
        content_type = "application/x-www-form-urlencoded",
        description = "`v=..&v2=..&v3=..&v4=..`; its `Content-Type` is not looked at."
    ),
    responses(
        (status = 200, description = "Stored", body = Done),
        (status = 201, description = "`NEW_DEVICE_FOUND`", body = NewDevice),
        (status = 400, description = "`DEVICE_ID_ZERO`, `BAD_DEVICE_ID`, `BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`NO_MAPPED_CH`, `DEVICE_DISABLED`, `MAX_DEVICE_REACH`", body = ErrorBody),
    ),
)]
pub(super) async fn post_v1(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    post(&api, request, SentFormat::V1).await
}

async fn post(api: &Api, request: Request, format: SentFormat) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let tenant = sender(api, headers)?;
    let device = name_header(headers, DEVICE_ID)?.unwrap_or_default();
    check_device_id(&device)?;
    api.let_device_in(tenant.id(), &device)?;
    let tag = sent_tag(headers, format)?;
    let payload = whole_body(headers, body, api.settings().body_bytes_max).await?;
    let token = &tenant.account.device_token;
    let levels = [token.as_str(), "json", &device, tag.as_deref().unwrap_or_default()];
    must_fit(&levels, &payload, api.settings().packet_bytes_max)?;
    let query = Query::Send {
        account: tenant.id(),
        device: (*device).into(),
        tag,
        payload: payload[..].into(),
        format,
    };
    match api.cores().ask_owner(tenant.id(), &device, query).await? {
        Answer::Done => Ok(done()),
        Answer::Registered => {
            let result = "NEW_DEVICE_FOUND";
            Ok(json(StatusCode::CREATED, &NewDevice { result }))
        }
        Answer::Refused(refusal) => Err(refusal.into()),
        Answer::Sessions { .. } => unreachable!("a core answers what it was asked"),
    }
}

/// v1 knows no tags.
fn sent_tag(headers: &HeaderMap, format: SentFormat) -> Result<Option<Box<str>>, ApiError> {
    match format {
        SentFormat::Json => tag(headers),
        SentFormat::V1 => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::api::Settings;
    use crate::http::testing::{ONE, Platform};

    #[tokio::test]
    async fn a_device_meets_every_answer_on_its_way() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        let send = async || platform.post_v2("pump-07", &[], r#"{"temp":20}"#).await;
        send().await.is(201, &json!({"result": "NEW_DEVICE_FOUND"}));
        send().await.is_refused(403, "NO_MAPPED_CH");
        platform
            .call("PUT", "/v2/device/pump-07", &[], r#"{"mapped_ch":3}"#)
            .await
            .is_done();
        send().await.is_done();
        platform
            .call("PUT", "/v2/device/pump-07", &[], r#"{"enabled":false}"#)
            .await
            .is_done();
        send().await.is_refused(403, "DEVICE_DISABLED");
        let stream = platform.call("GET", "/v2/stream/3", &[("X-ENDTIME", "last")], "").await;
        assert_eq!(stream.json()["stream"][0]["value"], json!({"temp": 20}));
    }

    #[tokio::test]
    async fn the_core_is_asked_for_the_device_with_its_tag_and_body() {
        let platform = Platform::new();
        platform.device(ONE, "ä b", None);
        let token = platform.account(ONE).device_token;
        for path in ["/post_v2", "/post_v2/"] {
            let headers = [
                ("X-DEVICETOKEN", token.as_str()),
                ("X-DEVICEID", "UTF-8''%C3%A4%20b"),
                ("X-TAGNAME", "inlet"),
                ("Content-Type", "application/x-www-form-urlencoded"),
            ];
            let answer = platform.send("POST", path, &headers, " {\"a\" : 1} ").await;
            answer.is_refused(403, "NO_MAPPED_CH");
            assert_eq!(
                platform.asked()[0].1,
                Query::Send {
                    account: ONE,
                    device: "ä b".into(),
                    tag: Some("inlet".into()),
                    payload: (*b" {\"a\" : 1} ").into(),
                    format: SentFormat::Json,
                }
            );
        }
    }

    #[tokio::test]
    async fn token_then_id_then_tag_are_looked_at_before_any_core_is_asked() {
        let platform = Platform::new();
        let account = platform.account(ONE);
        let (token, api_token) = (account.device_token, account.api_token);
        for headers in [
            &[][..],
            &[("X-DEVICEID", "d")],
            &[("X-DEVICEID", "0"), ("X-DEVICETOKEN", "x")],
            &[("X-DEVICEID", "d"), ("X-DEVICETOKEN", api_token.as_str())],
            &[("X-DEVICEID", "d"), ("X-APITOKEN", api_token.as_str())],
            &[("X-DEVICEID", "d"), ("X-DEVICETOKEN", &token.as_str().to_lowercase())],
        ] {
            platform
                .send("POST", "/post_v2/", headers, "1")
                .await
                .is_refused(401, "AUTH_REQUIRED");
        }
        let headers = [("X-DEVICETOKEN", token.as_str())];
        platform
            .send("POST", "/post_v2/", &headers, "1")
            .await
            .is_refused(400, "DEVICE_ID_ZERO");
        for zero in ["", "0"] {
            platform.post_v2(zero, &[], "1").await.is_refused(400, "DEVICE_ID_ZERO");
        }
        for bad in ["json", "a/b", "a+", "#", "a\tb", &"x".repeat(65)] {
            platform.post_v2(bad, &[], "1").await.is_refused(400, "BAD_DEVICE_ID");
        }
        platform.post_v2("ä", &[], "1").await.is_refused(400, "BAD_PARAMETER");
        for bad in ["a/b", "ä", &"x".repeat(65)] {
            platform
                .post_v2("d", &[("X-TAGNAME", bad)], "1")
                .await
                .is_refused(400, "BAD_PARAMETER");
        }
        assert_eq!(platform.asked(), []);
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            platform
                .send(method, "/post_v2/", &headers, "")
                .await
                .is_refused(405, "BAD_METHOD");
        }
    }

    #[tokio::test]
    async fn an_unreadable_body_is_looked_at_last() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        platform
            .post_v2("new", &[], "{")
            .await
            .is(201, &json!({"result": "NEW_DEVICE_FOUND"}));
        platform.post_v2("new", &[], "{").await.is_refused(403, "NO_MAPPED_CH");
        platform.device(ONE, "d", Some(3));
        for body in ["", "null", "{", "v=1"] {
            platform
                .post_v2("d", &[], body)
                .await
                .is_refused(400, "BAD_JSON_FORMAT");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_too_large() {
        let platform = Platform::new();
        platform.device(ONE, "d", None);
        let body = |bytes: usize| "1".repeat(bytes);
        platform
            .post_v2("d", &[], &body(64 * 1024 + 1))
            .await
            .is_refused(413, "PAYLOAD_TOO_LARGE");
        platform
            .post_v2("d", &[], &body(64 * 1024))
            .await
            .is_refused(403, "NO_MAPPED_CH");
        // What fits the limit but no MQTT packet could be sent to nobody.
        let settings = Settings {
            body_bytes_max: 2_000,
            packet_bytes_max: 1_000,
            ..Settings::default()
        };
        let platform = Platform::with(settings, |_| {});
        platform
            .post_v2("d", &[], &body(990))
            .await
            .is_refused(413, "PAYLOAD_TOO_LARGE");
        platform
            .post_v2("e", &[], &body(2_001))
            .await
            .is_refused(413, "PAYLOAD_TOO_LARGE");
    }

    #[tokio::test]
    async fn one_device_may_send_once_a_second() {
        let platform = Platform::with(Settings::default(), |_| {});
        let send = async |device: &str| platform.post_v2(device, &[], "1").await;
        assert_eq!(send("d").await.status, 201);
        let refused = send("d").await;
        refused.is_refused(429, "TOO_MANY_REQUESTS");
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(send("e").await.status, 201, "another device is not concerned");
        platform.pass_ms(999);
        send("d").await.is_refused(429, "TOO_MANY_REQUESTS");
        platform.pass_ms(1);
        send("d").await.is_refused(403, "NO_MAPPED_CH");
        // What is refused before the rate is looked at does not count, and the API has a limit of its own.
        send("0").await.is_refused(400, "DEVICE_ID_ZERO");
        send("0").await.is_refused(400, "DEVICE_ID_ZERO");
        assert_eq!(platform.get("/v2/device").await.status, 200);
    }

    #[tokio::test]
    async fn devices_beyond_the_limit_are_not_registered() {
        let settings = Settings {
            connector_sends_per_s: 0,
            ..Settings::default()
        };
        let platform = Platform::with(settings, |account| account.devices_max = 1);
        assert_eq!(platform.post_v2("a", &[], "1").await.status, 201);
        platform
            .post_v2("b", &[], "1")
            .await
            .is_refused(403, "MAX_DEVICE_REACH");
    }

    #[tokio::test]
    async fn version_1_is_there_where_the_operator_says_so() {
        let platform = Platform::new();
        let token = platform.account(ONE).device_token;
        let headers = [
            ("X-DEVICETOKEN", token.as_str()),
            ("X-DEVICEID", "d"),
            ("X-TAGNAME", "a/b"),
        ];
        for path in ["/post_v1", "/post_v1/"] {
            platform
                .send("POST", path, &headers, "v=1")
                .await
                .is_refused(404, "NOT_FOUND");
        }
        let settings = Settings {
            has_v1: true,
            connector_sends_per_s: 0,
            ..Settings::default()
        };
        let platform = Platform::with(settings, |_| {});
        platform.channel(ONE, 3, "water");
        platform.device(ONE, "d", Some(3));
        for path in ["/post_v1", "/post_v1/"] {
            platform.send("POST", path, &headers, "v=1.5&v2=ok").await.is_done();
            let asked = platform.asked();
            let Query::Send { tag, format, .. } = &asked[0].1 else {
                panic!("{asked:?}")
            };
            assert_eq!((tag, *format), (&None, SentFormat::V1), "it knows no tags");
        }
        let stream = platform.call("GET", "/v2/stream/3", &[("X-ENDTIME", "last")], "").await;
        assert_eq!(
            stream.json()["stream"][0]["value"],
            json!({"value1": 1.5, "value2": "ok"})
        );
    }
}
