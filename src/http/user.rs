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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::testing::{ONE, OTHER, Platform};

    #[tokio::test]
    async fn the_account_is_shown_with_its_tokens_and_its_storage() {
        let platform = Platform::new();
        let account = platform.account(ONE);
        let shown = |count: u64, bytes: u64| {
            json!([{
                "user_id": "U000001", "api_token": account.api_token.as_str(),
                "device_token": account.device_token.as_str(), "email1": "", "email2": "", "organization": "",
                "locale": "Europe/Vienna", "user_alias": "",
                "storage": {
                    "count": count, "usage_bytes": bytes, "maxSize": 5_242_880_000_u64,
                    "avg_obj_size": bytes.checked_div(count).unwrap_or(0),
                },
            }])
        };
        platform.get("/v2/user").await.is(200, &shown(0, 0));
        platform.channel(ONE, 3, "water");
        platform.channel(OTHER, 3, "theirs");
        for n in 0..3 {
            platform.datapoint(ONE, 3, n, "", r#"{"a":1}"#);
            platform.datapoint(OTHER, 3, n, "", r#"{"a":1}"#);
        }
        let bytes = platform.client.view(|view| view.usage(ONE)).unwrap().bytes;
        assert!(bytes > 3 * 7);
        platform.get("/v2/user/").await.is(200, &shown(3, bytes));
    }

    #[test]
    fn the_mean_of_nothing_is_nothing() {
        let storage = Storage::new(
            Usage {
                count: 184,
                bytes: 20_608,
            },
            5,
        );
        assert_eq!((storage.avg_obj_size, storage.max_size), (112, 5));
        assert_eq!(Storage::new(Usage::default(), 5).avg_obj_size, 0);
    }

    #[tokio::test]
    async fn an_account_changes_what_it_names_and_its_times_with_its_zone() {
        let platform = Platform::new();
        platform.device(ONE, "d", None);
        let body = r#"{"email1":"ops@example.org","email2":"","organization":"Farm","locale":"asia/tokyo",
            "user_alias":"Green","api_token":"x","user_id":"U999999"}"#;
        platform.call("PUT", "/v2/user", &[], body).await.is_done();
        platform
            .call("PUT", "/v2/user/", &[], r#"{"user_alias":"Blue"}"#)
            .await
            .is_done();
        let shown = &platform.get("/v2/user").await.json()[0];
        for (key, value) in [
            ("user_id", "U000001"),
            ("email1", "ops@example.org"),
            ("organization", "Farm"),
            ("locale", "Asia/Tokyo"),
            ("user_alias", "Blue"),
        ] {
            assert_eq!(shown[key], value);
        }
        let device = platform.get("/v2/device/d").await.json();
        assert_eq!(device[0]["activate_at"], "2026-03-04T17:15:00+09:00");
    }

    #[tokio::test]
    async fn what_no_account_can_be_changes_nothing() {
        let platform = Platform::new();
        let before = platform.get("/v2/user").await;
        for (body, code) in [
            ("", "BAD_JSON_FORMAT"),
            ("email1=x", "BAD_JSON_FORMAT"),
            ("[]", "BAD_PARAMETER"),
            (r#"{"email1":1}"#, "BAD_PARAMETER"),
            (r#"{"email1":"a@b.example\r\nBcc: c@d.example"}"#, "BAD_PARAMETER"),
            (r#"{"locale":"Mars/Olympus"}"#, "BAD_PARAMETER"),
            (r#"{"locale":""}"#, "BAD_PARAMETER"),
            (r#"{"user_alias":"x","locale":"../../etc/passwd"}"#, "BAD_PARAMETER"),
        ] {
            platform.call("PUT", "/v2/user", &[], body).await.is_refused(400, code);
        }
        assert_eq!(platform.get("/v2/user").await, before);
        for method in ["POST", "DELETE"] {
            platform
                .call(method, "/v2/user", &[], "")
                .await
                .is_refused(405, "BAD_METHOD");
        }
    }
}
