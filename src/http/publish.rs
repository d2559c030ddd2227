//! `/v2/publish/{device_id}`: a message to the subscribers of `DT/DEV/subscribe`.
//!
//! Holds   - the answer 200 means that the broker has it as durably as an acknowledged PUBLISH, not that a device has.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::Response;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer::{Done, done};
use super::api::Api;
use super::auth::Caller;
use super::cores::succeeded;
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::request::{Fields, Id, Whole};
use crate::mqtt::packet::QoS;
use crate::registry::device::check_device_id;
use crate::shard::query::Query;

/// A message.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `message` reads")]
pub(super) struct Message {
    /// 0 or 1; 0 if absent.
    #[schema(nullable = false, maximum = 1)]
    qos: Option<u8>,
    /// Sent as it is. A JSON object or a number is sent as compact JSON text.
    #[schema(value_type = Payload)]
    payload: String,
}

#[derive(serde::Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes what `message` reads")]
enum Payload {
    Text(String),
    Number(f64),
    #[schema(value_type = Object)]
    Object(Value),
}

/// Sends a message to whoever subscribes to the device's `DT/DEV/subscribe`.
#[utoipa::path(
    post,
    path = "/v2/publish/{device_id}",
    tag = "publish",
    params(("device_id" = String, Path)),
    request_body = Message,
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`DEVICE_DISABLED`", body = ErrorBody),
        (status = 404, description = "`NO_DEVICE`", body = ErrorBody),
    ),
)]
pub(super) async fn send(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    let (qos, payload) = message(&body)?;
    check_device_id(&id).map_err(|_| ApiError::NoDevice)?;
    let token = &caller.tenant.account.device_token;
    must_fit(
        &[token.as_str(), &id, "subscribe"],
        &payload,
        api.settings().packet_bytes_max,
    )?;
    let query = Query::Command {
        account: caller.account,
        device: id.as_str().into(),
        qos,
        payload,
    };
    succeeded(api.cores().ask_owner(caller.account, &id, query).await?)?;
    Ok(done())
}

/// The same under its old path.
#[utoipa::path(
    post,
    path = "/v1/publish/{device_id}",
    tag = "publish",
    params(("device_id" = String, Path)),
    request_body = Message,
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`DEVICE_DISABLED`", body = ErrorBody),
        (status = 404, description = "`NO_DEVICE`", body = ErrorBody),
    ),
)]
pub(super) async fn send_v1(api: State<Api>, caller: Caller, id: Id, body: Whole) -> Result<Response, ApiError> {
    send(api, caller, id, body).await
}

/// What the body says is to be sent.
fn message(body: &[u8]) -> Result<(QoS, Box<[u8]>), ApiError> {
    let fields = Fields::parse(body)?;
    let qos = match fields.value("qos").map(|qos| qos.as_u64()) {
        None | Some(Some(0)) => QoS::AtMostOnce,
        Some(Some(1)) => QoS::AtLeastOnce,
        Some(_) => return Err(ApiError::BadParameter),
    };
    let payload = match fields.value("payload") {
        Some(Value::String(text)) => text.as_bytes().into(),
        Some(Value::Object(_) | Value::Number(_)) => {
            // As it was written: a number may have more digits than any type of ours.
            let raw: HashMap<String, &RawValue> = serde_json::from_slice(body).map_err(|_| ApiError::BadJsonFormat)?;
            compact(raw.get("payload").ok_or(ApiError::BadParameter)?.get())
        }
        _ => return Err(ApiError::BadParameter),
    };
    Ok((qos, payload))
}

/// JSON without the white space between its parts.
fn compact(json: &str) -> Box<[u8]> {
    let (mut is_text, mut is_escaped) = (false, false);
    let is_kept = |byte: &u8| {
        if is_text {
            is_text = is_escaped || *byte != b'"';
            is_escaped = !is_escaped && *byte == b'\\';
            return true;
        }
        is_text = *byte == b'"';
        !byte.is_ascii_whitespace()
    };
    json.bytes().filter(is_kept).collect()
}

/// Whether a PUBLISH packet on the topic of these levels is of a size that clients are sent.
pub(super) fn must_fit(levels: &[&str], payload: &[u8], packet_bytes_max: usize) -> Result<(), ApiError> {
    /// Packet type, length of the rest, length of the topic, packet identifier.
    const AROUND: usize = 1 + 4 + 2 + 2;
    let topic: usize = levels.iter().map(|level| level.len() + 1).sum();
    let fits = AROUND + topic + payload.len() <= packet_bytes_max;
    fits.then_some(()).ok_or(ApiError::PayloadTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::{ONE, OTHER, Platform};
    use crate::registry::account::Token;

    #[test]
    fn a_text_is_sent_as_it_is_and_an_object_or_number_as_compact_json() {
        for (body, qos, payload) in [
            (r#"{"qos":1,"payload":"valve=open"}"#, QoS::AtLeastOnce, "valve=open"),
            (r#"{"payload":""}"#, QoS::AtMostOnce, ""),
            (
                r#"{"qos":0,"payload":" { \"a\" : 1 } "}"#,
                QoS::AtMostOnce,
                r#" { "a" : 1 } "#,
            ),
            (r#"{"payload":"ä\u0000\n"}"#, QoS::AtMostOnce, "ä\0\n"),
            (
                "{\"payload\": { \"a b\" : [ 1,\n 2.50 ] , \"c\":\"x \\\" y\\\\\" }}",
                QoS::AtMostOnce,
                r#"{"a b":[1,2.50],"c":"x \" y\\"}"#,
            ),
            (
                r#"{"payload": 123456789012345678901234567890.10 }"#,
                QoS::AtMostOnce,
                "123456789012345678901234567890.10",
            ),
            (r#"{"payload":1,"pay\u006coad":2}"#, QoS::AtMostOnce, "2"),
            (r#"{"payload":"x","to":["a"]}"#, QoS::AtMostOnce, "x"),
        ] {
            assert_eq!(message(body.as_bytes()), Ok((qos, payload.as_bytes().into())), "{body}");
        }
    }

    #[test]
    fn other_qos_and_other_payloads_are_refused() {
        for (qos, payload) in [
            ("2", "\"x\""),
            ("-1", "\"x\""),
            ("1.0", "\"x\""),
            ("\"1\"", "\"x\""),
            ("null", "\"x\""),
            ("0", "null"),
            ("0", "true"),
            ("0", "[1]"),
        ] {
            let body = format!(r#"{{"qos":{qos},"payload":{payload}}}"#);
            assert_eq!(message(body.as_bytes()), Err(ApiError::BadParameter), "{body}");
        }
        assert_eq!(message(b"{}"), Err(ApiError::BadParameter));
        assert_eq!(message(b""), Err(ApiError::BadJsonFormat));
    }

    #[test]
    fn what_would_make_too_large_a_packet_is_refused() {
        let token = Token::from_random([1; 16]);
        let levels = [token.as_str(), "d", "subscribe"];
        let room = 1_000 - 9 - (33 + 2 + 10);
        assert_eq!(must_fit(&levels, &vec![0; room], 1_000), Ok(()));
        assert_eq!(
            must_fit(&levels, &vec![0; room + 1], 1_000),
            Err(ApiError::PayloadTooLarge)
        );
    }

    #[tokio::test]
    async fn a_message_goes_to_the_owner_of_its_device_by_either_path() {
        let platform = Platform::new();
        platform.device(ONE, "pump 07", None);
        for path in [
            "/v2/publish/pump%2007",
            "/v1/publish/pump%2007",
            "/v2/publish/pump%2007/",
        ] {
            let body = r#"{"qos":1,"payload":{"valve": "open"}}"#;
            platform.call("POST", path, &[], body).await.is_done();
            let asked = platform.asked();
            assert_eq!(
                asked[0].1,
                Query::Command {
                    account: ONE,
                    device: "pump 07".into(),
                    qos: QoS::AtLeastOnce,
                    payload: (*br#"{"valve":"open"}"#).into(),
                }
            );
            assert_eq!(asked.len(), 1);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_refused_by_either_path() {
        let platform = Platform::new();
        platform.device(ONE, "off", None);
        platform.device(ONE, "on", None);
        platform.device(OTHER, "theirs", None);
        platform
            .call("PUT", "/v2/device/off", &[], r#"{"enabled":false}"#)
            .await
            .is_done();
        for version in ["v1", "v2"] {
            for (device, body, status, code) in [
                ("off", r#"{"payload":"x"}"#, 403, "DEVICE_DISABLED"),
                ("theirs", r#"{"payload":"x"}"#, 404, "NO_DEVICE"),
                ("0", r#"{"payload":"x"}"#, 404, "NO_DEVICE"),
                ("a%2Fb", r#"{"payload":"x"}"#, 404, "NO_DEVICE"),
                ("%23", r#"{"payload":"x"}"#, 404, "NO_DEVICE"),
                ("on", r#"{"qos":2,"payload":"x"}"#, 400, "BAD_PARAMETER"),
                ("on", r#"{"qos":1}"#, 400, "BAD_PARAMETER"),
                ("on", "payload=x", 400, "BAD_JSON_FORMAT"),
                ("on", "", 400, "BAD_JSON_FORMAT"),
            ] {
                let path = format!("/{version}/publish/{device}");
                platform.call("POST", &path, &[], body).await.is_refused(status, code);
            }
            platform
                .get(&format!("/{version}/publish/on"))
                .await
                .is_refused(405, "BAD_METHOD");
        }
        let token = platform.account(ONE).device_token;
        let headers = [("X-APITOKEN", token.as_str())];
        let refused = platform
            .send("POST", "/v1/publish/on", &headers, r#"{"payload":"x"}"#)
            .await;
        refused.is_refused(401, "AUTH_REQUIRED");
    }
}
