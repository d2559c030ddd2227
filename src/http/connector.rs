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
