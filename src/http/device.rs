//! `/v2/device`: the registry.
//!
//! Holds   - what is changed is changed by the core that owns the device, and committed before the answer;
//!         - a device is mapped to a channel that is there: from the look to the change the account's lock is held.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer::{Done, done, json, json_text, to_json};
use super::api::Api;
use super::auth::Caller;
use super::budget::large;
use super::channel;
use super::cores::succeeded;
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::request::{Fields, Id, Whole};
use super::time::{Style, Zone};
use crate::registry::access::AccountId;
use crate::registry::channel::ChannelId;
use crate::registry::device::{Device, DeviceChange, DeviceState, check_device_id};
use crate::shard::query::Query;

/// A device, as it is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub(super) struct Shown<'d> {
    #[schema(example = "pump-07")]
    device_id: &'d str,
    description: &'d str,
    /// `false`: what it sends is refused.
    enabled: bool,
    /// The channel that its data goes to.
    #[schema(value_type = Option<u32>, maximum = 2147483647)]
    mapped_ch: Option<ChannelId>,
    device_type: &'d str,
    location: &'d str,
    manufacturer: &'d str,
    /// When it was registered.
    #[schema(example = "2026-03-04T09:15:00+01:00")]
    activate_at: String,
    /// What it reported last, and when (`last_update`). Absent until the first report.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    state: Option<Box<RawValue>>,
}

impl<'d> Shown<'d> {
    fn new(id: &'d str, device: &'d Device, state: Option<&DeviceState>, zone: &Zone) -> Shown<'d> {
        Shown {
            device_id: id,
            description: &device.description,
            enabled: device.is_enabled,
            mapped_ch: device.channel,
            device_type: &device.device_type,
            location: &device.location,
            manufacturer: &device.manufacturer,
            activate_at: zone.text(device.activated_ms, Style::Extended),
            state: state.and_then(|state| shown_state(state, zone)),
        }
    }
}

/// The report with `last_update` in it. `None`: what is stored is no object.
fn shown_state(state: &DeviceState, zone: &Zone) -> Option<Box<RawValue>> {
    let reported = state.json.trim_end().strip_suffix('}')?;
    let comma = if reported.trim_end().ends_with('{') { "" } else { "," };
    let at = zone.text(state.at_ms, Style::Extended);
    RawValue::from_string(format!(r#"{reported}{comma}"last_update":"{at}"}}"#)).ok()
}

/// What is said of a device; what is absent stays as it is.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `change` reads")]
pub(super) struct DeviceFields {
    #[schema(nullable = false, max_length = 1024)]
    description: Option<String>,
    #[schema(nullable = false)]
    enabled: Option<bool>,
    /// `null`: none.
    #[schema(maximum = 2147483647)]
    mapped_ch: Option<u32>,
    #[schema(nullable = false, max_length = 1024)]
    device_type: Option<String>,
    #[schema(nullable = false, max_length = 1024)]
    location: Option<String>,
    #[schema(nullable = false, max_length = 1024)]
    manufacturer: Option<String>,
}

fn change(mut fields: Fields) -> Result<DeviceChange, ApiError> {
    Ok(DeviceChange {
        description: fields.text("description")?,
        is_enabled: fields.flag("enabled")?,
        channel: fields.channel("mapped_ch")?,
        device_type: fields.text("device_type")?,
        location: fields.text("location")?,
        manufacturer: fields.text("manufacturer")?,
    })
}

#[derive(Serialize, ToSchema)]
pub(super) struct DeviceCreated<'d> {
    device_id: &'d str,
}

/// All devices of the account.
#[utoipa::path(get, path = "/v2/device", tag = "device", responses((status = 200, body = [Shown])))]
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Response, ApiError> {
    let account = caller.account;
    let body = api.view(move |view| {
        let devices = view.devices(account)?;
        let shown = devices
            .iter()
            .map(|(id, device, state)| Shown::new(id, device, state.as_ref(), &caller.zone));
        Ok(to_json(&shown.collect::<Vec<_>>()))
    });
    large(api.budget(), account, body.await?)
}

/// One device, in a list of one.
#[utoipa::path(
    get,
    path = "/v2/device/{device_id}",
    tag = "device",
    params(("device_id" = String, Path, description = "Percent-encoded UTF-8.")),
    responses((status = 200, body = [Shown]), (status = 404, description = "`NO_DEVICE`", body = ErrorBody)),
)]
pub(super) async fn read(State(api): State<Api>, caller: Caller, Id(id): Id) -> Result<Response, ApiError> {
    check_device_id(&id).map_err(|_| ApiError::NoDevice)?;
    let body = api.view(move |view| {
        let (device, state) = view.device(caller.account, &id)?.ok_or(ApiError::NoDevice)?;
        Ok(to_json(&[Shown::new(&id, &device, state.as_ref(), &caller.zone)]))
    });
    Ok(json_text(StatusCode::OK, body.await?))
}

/// Registers a device.
#[utoipa::path(
    post,
    path = "/v2/device/{device_id}",
    tag = "device",
    params((
        "device_id" = String, Path,
        description = "1 to 64 characters but `/`, `+`, `#` and control characters; not `0`, `json`, `binary`, `state` or \
                       `subscribe`."
    )),
    request_body(content = Option<DeviceFields>, description = "May be left out."),
    responses(
        (status = 201, body = DeviceCreated),
        (status = 400, description = "`BAD_DEVICE_ID`, `DEVICE_ID_ZERO`, `BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`DEVICE_INUSE`, `MAX_DEVICE_REACH`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`: of `mapped_ch`", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    check_device_id(&id)?;
    let change = change(Fields::parse_optional(&body)?)?;
    ask_with_channel(&api, &caller, &id, change, |account, device, change| {
        Query::CreateDevice {
            account,
            device,
            change,
        }
    })
    .await?;
    Ok(json(StatusCode::CREATED, &DeviceCreated { device_id: &id }))
}

/// Changes what the body names of a device.
#[utoipa::path(
    put,
    path = "/v2/device/{device_id}",
    tag = "device",
    params(("device_id" = String, Path)),
    request_body = DeviceFields,
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 404, description = "`NO_DEVICE`, or `NO_CHANNEL`: of `mapped_ch`", body = ErrorBody),
    ),
)]
pub(super) async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    let change = change(Fields::parse(&body)?)?;
    check_device_id(&id).map_err(|_| ApiError::NoDevice)?;
    ask_with_channel(&api, &caller, &id, change, |account, device, change| {
        Query::ChangeDevice {
            account,
            device,
            change,
        }
    })
    .await?;
    Ok(done())
}

/// Removes a device. Its datapoints stay in their channel; if it sends again, it is registered anew.
#[utoipa::path(
    delete,
    path = "/v2/device/{device_id}",
    tag = "device",
    params(("device_id" = String, Path)),
    responses((status = 200, body = Done), (status = 404, description = "`NO_DEVICE`", body = ErrorBody)),
)]
pub(super) async fn remove(State(api): State<Api>, caller: Caller, Id(id): Id) -> Result<Response, ApiError> {
    check_device_id(&id).map_err(|_| ApiError::NoDevice)?;
    let query = Query::RemoveDevice {
        account: caller.account,
        device: id.as_str().into(),
    };
    succeeded(api.cores().ask_owner(caller.account, &id, query).await?)?;
    Ok(done())
}

/// Asks for a change of a device that may map it to a channel.
async fn ask_with_channel(
    api: &Api,
    caller: &Caller,
    id: &str,
    change: DeviceChange,
    query: impl FnOnce(AccountId, Box<str>, DeviceChange) -> Query,
) -> Result<(), ApiError> {
    let _lock = match change.channel {
        Some(Some(channel)) => {
            let lock = api.desk().lock(caller.account).await;
            channel::must_exist(api, caller.account, channel).await?;
            Some(lock)
        }
        _ => None,
    };
    let query = query(caller.account, id.into(), change);
    succeeded(api.cores().ask_owner(caller.account, id, query).await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::http::testing::{ONE, OTHER, Platform, START_MS};
    use crate::shard::query::Query;

    #[tokio::test]
    async fn a_device_is_shown_with_all_its_fields() {
        let platform = Platform::new();
        platform.get("/v2/device").await.is(200, &json!([]));
        platform.device(ONE, "pump-07", Some(3));
        platform.device(ONE, "a b", None);
        platform.device(OTHER, "theirs", None);
        platform.state(ONE, "pump-07", r#"{"health":"OK","load":12.50}"#, START_MS + 5_999);
        platform.state(ONE, "a b", "{}", START_MS);
        let pump = json!({
            "device_id": "pump-07", "description": "", "enabled": true, "mapped_ch": 3, "device_type": "",
            "location": "", "manufacturer": "", "activate_at": "2026-03-04T09:15:00+01:00",
            "state": {"health": "OK", "load": 12.5, "last_update": "2026-03-04T09:15:05+01:00"},
        });
        let other = json!({
            "device_id": "a b", "description": "", "enabled": true, "mapped_ch": null, "device_type": "",
            "location": "", "manufacturer": "", "activate_at": "2026-03-04T09:15:00+01:00",
            "state": {"last_update": "2026-03-04T09:15:00+01:00"},
        });
        platform.get("/v2/device").await.is(200, &json!([other, pump]));
        platform.get("/v2/device/").await.is(200, &json!([other, pump]));
        platform.get("/v2/device/a%20b").await.is(200, &json!([other]));
        let one = platform.get("/v2/device/pump-07").await;
        one.is(200, &json!([pump]));
        assert!(
            one.text.contains("12.50"),
            "what was reported is passed on as it is: {}",
            one.text
        );
        platform.device(ONE, "silent", None);
        let silent = platform.get("/v2/device/silent").await;
        assert_eq!(silent.json()[0].get("state"), None);
    }

    #[tokio::test]
    async fn what_is_not_there_or_not_ones_own_is_no_device() {
        let platform = Platform::new();
        platform.device(OTHER, "theirs", None);
        for id in [
            "theirs",
            "0",
            "json",
            "a%2Fb",
            "%FF",
            "%F0%9F%98%80",
            &"x".repeat(65),
            &"x".repeat(9_000),
        ] {
            let path = format!("/v2/device/{id}");
            for (method, body) in [("GET", ""), ("PUT", "{}"), ("DELETE", "")] {
                platform
                    .call(method, &path, &[], body)
                    .await
                    .is_refused(404, "NO_DEVICE");
            }
        }
        let still = platform.call_as(OTHER, "GET", "/v2/device/theirs", &[], "").await;
        assert_eq!(still.status, 200);
    }

    #[tokio::test]
    async fn a_device_is_created_with_defaults_or_with_what_the_body_says() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        let created = platform.call("POST", "/v2/device/pump-07", &[], "").await;
        created.is(201, &json!({"device_id": "pump-07"}));
        let shown = platform.get("/v2/device/pump-07").await.json();
        assert_eq!(
            (&shown[0]["enabled"], &shown[0]["mapped_ch"]),
            (&json!(true), &json!(null))
        );
        assert_eq!(shown[0]["activate_at"], "2026-03-04T09:15:00+01:00");

        let body = r#"{"description":"north","enabled":false,"mapped_ch":3,"device_type":"ESP32","location":"Hall 2",
            "manufacturer":"we","unknown":[1]}"#;
        platform
            .call("POST", "/v2/device/%C3%A4%20%22", &[], body)
            .await
            .is(201, &json!({"device_id": "ä \""}));
        let shown = platform.get("/v2/device/%C3%A4%20%22").await;
        shown.is(
            200,
            &json!([{
                "device_id": "ä \"", "description": "north", "enabled": false, "mapped_ch": 3,
                "device_type": "ESP32", "location": "Hall 2", "manufacturer": "we",
                "activate_at": "2026-03-04T09:15:00+01:00",
            }]),
        );
        platform
            .call("POST", "/v2/device/pump-07", &[], "")
            .await
            .is_refused(403, "DEVICE_INUSE");
        // The other account may use the same id.
        assert_eq!(
            platform
                .call_as(OTHER, "POST", "/v2/device/pump-07", &[], "")
                .await
                .status,
            201
        );
    }

    #[tokio::test]
    async fn an_id_that_no_device_can_have_is_refused() {
        let platform = Platform::new();
        platform
            .call("POST", "/v2/device/0", &[], "")
            .await
            .is_refused(400, "DEVICE_ID_ZERO");
        let long = "x".repeat(65);
        for id in [
            "json",
            "binary",
            "state",
            "subscribe",
            "a%2Fb",
            "a%2Bb",
            "a%23",
            "a%00b",
            "%FF",
            "%7F",
            &long,
        ] {
            platform
                .call("POST", &format!("/v2/device/{id}"), &[], "")
                .await
                .is_refused(400, "BAD_DEVICE_ID");
        }
        for id in [
            "00",
            &long[..64],
            "'; DROP TABLE devices; --",
            "..%5C..",
            "%0D%0AX-Evil:%201",
        ] {
            let path = format!("/v2/device/{}", id.replace(' ', "%20"));
            let created = platform.call("POST", &path, &[], "").await;
            assert_eq!(created.status, if id.contains("%0D") { 400 } else { 201 }, "{id}");
        }
        assert!(
            platform
                .asked()
                .iter()
                .all(|(_, query)| matches!(query, Query::CreateDevice { .. }))
        );
    }

    #[tokio::test]
    async fn devices_beyond_the_limit_are_refused() {
        let platform = Platform::with(crate::http::api::Settings::default(), |account| account.devices_max = 1);
        assert_eq!(platform.call("POST", "/v2/device/a", &[], "").await.status, 201);
        platform
            .call("POST", "/v2/device/b", &[], "")
            .await
            .is_refused(403, "MAX_DEVICE_REACH");
    }

    #[tokio::test]
    async fn a_change_keeps_what_it_does_not_name() {
        let platform = Platform::new();
        platform.channel(ONE, 0, "zero");
        platform.device(ONE, "d", None);
        let put = async |body: &str| platform.call("PUT", "/v2/device/d", &[], body).await;
        put(r#"{"description":"north","mapped_ch":0}"#).await.is_done();
        put(r#"{"location":"Hall 2"}"#).await.is_done();
        put("{}").await.is_done();
        let shown = &platform.get("/v2/device/d").await.json()[0];
        assert_eq!(
            (&shown["description"], &shown["mapped_ch"], &shown["location"]),
            (&json!("north"), &json!(0), &json!("Hall 2"))
        );
        put(r#"{"mapped_ch":null}"#).await.is_done();
        assert_eq!(platform.get("/v2/device/d").await.json()[0]["mapped_ch"], json!(null));
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_used_changes_nothing() {
        let platform = Platform::new();
        platform.channel(OTHER, 7, "theirs");
        platform.device(ONE, "d", None);
        let before = platform.get("/v2/device/d").await;
        for (body, status, code) in [
            ("", 400, "BAD_JSON_FORMAT"),
            ("{", 400, "BAD_JSON_FORMAT"),
            (&"[".repeat(10_000) as &str, 400, "BAD_JSON_FORMAT"),
            ("[]", 400, "BAD_PARAMETER"),
            (r#"{"enabled":1}"#, 400, "BAD_PARAMETER"),
            (r#"{"description":null}"#, 400, "BAD_PARAMETER"),
            (r#"{"mapped_ch":"3"}"#, 400, "BAD_PARAMETER"),
            (r#"{"mapped_ch":3}"#, 404, "NO_CHANNEL"),
            (r#"{"description":"x","mapped_ch":7}"#, 404, "NO_CHANNEL"),
            (r#"{"mapped_ch":-1}"#, 404, "NO_CHANNEL"),
        ] {
            platform
                .call("PUT", "/v2/device/d", &[], body)
                .await
                .is_refused(status, code);
            if !body.is_empty() {
                platform
                    .call("POST", "/v2/device/new", &[], body)
                    .await
                    .is_refused(status, code);
            }
        }
        assert_eq!(platform.get("/v2/device/d").await, before);
        assert_eq!(platform.get("/v2/device/new").await.status, 404);
        let large = format!(r#"{{"description":"{}"}}"#, "x".repeat(70 * 1024));
        platform
            .call("PUT", "/v2/device/d", &[], &large)
            .await
            .is_refused(413, "PAYLOAD_TOO_LARGE");
    }

    #[tokio::test]
    async fn a_device_that_is_removed_is_no_device() {
        let platform = Platform::new();
        platform.device(ONE, "d", None);
        platform.call("DELETE", "/v2/device/d", &[], "").await.is_done();
        platform
            .call("DELETE", "/v2/device/d", &[], "")
            .await
            .is_refused(404, "NO_DEVICE");
        platform.get("/v2/device").await.is(200, &json!([]));
    }
}
