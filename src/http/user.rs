//! `/v2/user`: the account itself.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{Done, done, json};
use super::api::Api;
use super::auth::Caller;
use super::desk::UserChange;
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::request::{Fields, Whole};
use crate::store::streams::Usage;

/// The account, as it is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
struct Shown<'u> {
    #[schema(example = "U004217")]
    user_id: &'u str,
    api_token: &'u str,
    device_token: &'u str,
    email1: &'u str,
    email2: &'u str,
    organization: &'u str,
    /// IANA zone name.
    #[schema(example = "Europe/Vienna")]
    locale: &'u str,
    user_alias: &'u str,
    storage: Storage,
}

#[derive(Serialize, ToSchema)]
struct Storage {
    /// Datapoints in all channels.
    count: u64,
    usage_bytes: u64,
    /// When this is reached, the oldest datapoints go.
    #[serde(rename = "maxSize")]
    max_size: u64,
    /// Mean bytes of a datapoint.
    avg_obj_size: u64,
}

impl Storage {
    fn new(Usage { count, bytes }: Usage, max_size: u64) -> Storage {
        Storage {
            count,
            usage_bytes: bytes,
            max_size,
            avg_obj_size: bytes.checked_div(count).unwrap_or(0),
        }
    }
}

/// What an account may say of itself; what is absent stays as it is.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `update` reads")]
pub(super) struct UserFields {
    /// One mail address, or an empty text for none.
    #[schema(nullable = false, max_length = 254)]
    email1: Option<String>,
    #[schema(nullable = false, max_length = 254)]
    email2: Option<String>,
    #[schema(nullable = false, max_length = 1024)]
    organization: Option<String>,
    /// IANA zone name.
    #[schema(nullable = false, example = "Europe/Vienna")]
    locale: Option<String>,
    #[schema(nullable = false, max_length = 1024)]
    user_alias: Option<String>,
}

/// The account, in a list of one.
#[utoipa::path(get, path = "/v2/user", tag = "user", responses((status = 200, body = [Shown])))]
pub(super) async fn read(State(api): State<Api>, caller: Caller) -> Result<Response, ApiError> {
    let account = caller.account;
    let usage = api.view(move |view| Ok(view.usage(account)?)).await?;
    let account = &caller.tenant.account;
    let shown = Shown {
        user_id: &account.user_id,
        api_token: account.api_token.as_str(),
        device_token: account.device_token.as_str(),
        email1: &account.email1,
        email2: &account.email2,
        organization: &account.organization,
        locale: &account.locale,
        user_alias: &account.user_alias,
        storage: Storage::new(usage, account.storage_bytes_max),
    };
    Ok(json(StatusCode::OK, &[shown]))
}

/// Changes what the body names of the account. Tokens are renewed by the operator.
#[utoipa::path(
    put,
    path = "/v2/user",
    tag = "user",
    request_body = UserFields,
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
    ),
)]
pub(super) async fn update(State(api): State<Api>, caller: Caller, Whole(body): Whole) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let change = UserChange {
        email1: fields.text("email1")?,
        email2: fields.text("email2")?,
        organization: fields.text("organization")?,
        locale: fields.text("locale")?,
        user_alias: fields.text("user_alias")?,
    };
    api.desk().change_user(caller.account, change).await?;
    Ok(done())
}
