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
    let body = api.view(move |view| {
        let devices = view.devices(caller.account)?;
        let shown = devices
            .iter()
            .map(|(id, device, state)| Shown::new(id, device, state.as_ref(), &caller.zone));
        Ok(to_json(&shown.collect::<Vec<_>>()))
    });
    Ok(json_text(StatusCode::OK, body.await?))
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
    let token = &caller.tenant.account.device_token;
    succeeded(api.cores().ask_owner(token, &id, query).await?)?;
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
    let token = &caller.tenant.account.device_token;
    succeeded(api.cores().ask_owner(token, id, query).await?)
}
