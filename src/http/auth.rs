//! Who calls: the account whose API token the request has, within its rate.
//!
//! Called  by axum for every handler that takes a [`Caller`], before it looks at anything else of the request.
//! Holds   - a device token is never an API token, nor the other way round;
//!         - tokens are compared in constant time, by [`Accounts`](crate::registry::access::Accounts).

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use super::api::Api;
use super::error::ApiError;
use super::request::header;
use super::time::Zone;
use crate::registry::access::{AccountId, Tenant};

pub const API_TOKEN: &str = "x-apitoken";
pub const DEVICE_TOKEN: &str = "x-devicetoken";

/// The account that a request is answered for.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: Arc<Tenant>,
    pub account: AccountId,
    pub zone: Zone,
}

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Caller, ApiError> {
        let token = header(&parts.headers, API_TOKEN)?.ok_or(ApiError::AuthRequired)?;
        let accounts = api.desk().accounts();
        let tenant = in_force(accounts.by_api_token(token))?;
        api.let_in(tenant.id())?;
        Ok(Caller {
            account: tenant.id(),
            zone: Zone::of(&tenant.account.locale),
            tenant,
        })
    }
}

/// The account of a device connector's request.
pub fn sender(api: &Api, headers: &HeaderMap) -> Result<Arc<Tenant>, ApiError> {
    let token = header(headers, DEVICE_TOKEN)?.ok_or(ApiError::AuthRequired)?;
    in_force(api.desk().accounts().by_device_token(token))
}

fn in_force(tenant: Option<&Arc<Tenant>>) -> Result<Arc<Tenant>, ApiError> {
    match tenant {
        Some(tenant) if !tenant.account.is_suspended => Ok(Arc::clone(tenant)),
        _ => Err(ApiError::AuthRequired),
    }
}

#[cfg(test)]
mod tests {
    use crate::http::api::Settings;
    use crate::http::desk::Tokens;
    use crate::http::testing::{ONE, OTHER, Platform};

    #[tokio::test]
    async fn only_the_api_token_of_an_account_in_force_lets_in() {
        let platform = Platform::new();
        let account = platform.account(ONE);
        let (token, device_token) = (account.api_token, account.device_token);
        let lower = token.as_str().to_lowercase();
        for headers in [
            &[][..],
            &[("X-APITOKEN", "")],
            &[("X-APITOKEN", "x")],
            &[("X-APITOKEN", device_token.as_str())],
            &[("X-APITOKEN", &lower)],
            &[("X-APITOKEN", &token.as_str()[..31])],
            &[("X-DEVICETOKEN", token.as_str())],
            &[("Authorization", token.as_str())],
        ] {
            for (method, path) in [
                ("GET", "/v2/device"),
                ("GET", "/v2/device/d"),
                ("POST", "/v2/device/d"),
                ("PUT", "/v2/device/d"),
                ("DELETE", "/v2/device/d"),
                ("GET", "/v2/channel"),
                ("GET", "/v2/channel/3"),
                ("POST", "/v2/channel/3"),
                ("PUT", "/v2/channel/3"),
                ("DELETE", "/v2/channel/3"),
                ("GET", "/v2/stream/3"),
                ("POST", "/v2/stream/3"),
                ("GET", "/v2/event"),
                ("POST", "/v2/event"),
                ("GET", "/v2/event/1"),
                ("PUT", "/v2/event/1"),
                ("DELETE", "/v2/event/1"),
                ("GET", "/v2/user"),
                ("PUT", "/v2/user"),
                ("POST", "/v2/publish/d"),
                ("POST", "/v1/publish/d"),
                ("GET", "/v2/session"),
            ] {
                platform
                    .send(method, path, headers, "{")
                    .await
                    .is_refused(401, "AUTH_REQUIRED");
            }
        }
        let twice = [("X-APITOKEN", token.as_str()), ("X-APITOKEN", token.as_str())];
        platform
            .send("GET", "/v2/user", &twice, "")
            .await
            .is_refused(400, "BAD_PARAMETER");
        platform
            .send("GET", "/v2/user", &[("X-APITOKEN", "ä")], "")
            .await
            .is_refused(400, "BAD_PARAMETER");
        assert_eq!(platform.asked(), []);
    }

    #[tokio::test]
    async fn a_suspended_account_is_let_in_nowhere_until_it_is_resumed() {
        let platform = Platform::new();
        platform.desk.suspend("U000001").await.unwrap();
        platform.get("/v2/user").await.is_refused(401, "AUTH_REQUIRED");
        platform.post_v2("d", &[], "1").await.is_refused(401, "AUTH_REQUIRED");
        assert_eq!(platform.call_as(OTHER, "GET", "/v2/user", &[], "").await.status, 200);
        platform.desk.resume("U000001").await.unwrap();
        assert_eq!(platform.get("/v2/user").await.status, 200);
    }

    #[tokio::test]
    async fn a_rotated_token_lets_in_no_more() {
        let platform = Platform::new();
        let before = platform.account(ONE);
        platform.desk.rotate("U000001", Tokens::Api).await.unwrap();
        platform.desk.rotate("U000001", Tokens::Device).await.unwrap();
        let headers = [("X-APITOKEN", before.api_token.as_str())];
        platform
            .send("GET", "/v2/user", &headers, "")
            .await
            .is_refused(401, "AUTH_REQUIRED");
        let headers = [("X-DEVICETOKEN", before.device_token.as_str()), ("X-DEVICEID", "d")];
        platform
            .send("POST", "/post_v2/", &headers, "1")
            .await
            .is_refused(401, "AUTH_REQUIRED");
        assert_eq!(platform.get("/v2/user").await.status, 200);
        assert_eq!(platform.post_v2("d", &[], "1").await.status, 201);
    }

    #[tokio::test]
    async fn the_21st_call_of_an_account_within_a_second_is_refused() {
        let platform = Platform::with(Settings::default(), |_| {});
        for call in 0..20 {
            // Whatever comes of them, and whatever they are.
            let (path, status) = [("/v2/user", 200), ("/v2/device/d", 404), ("/v2/stream/x", 404)][call % 3];
            assert_eq!(platform.get(path).await.status, status);
        }
        let refused = platform.get("/v2/user").await;
        refused.is_refused(429, "TOO_MANY_REQUESTS");
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(platform.call_as(OTHER, "GET", "/v2/user", &[], "").await.status, 200);
        assert_eq!(
            platform.post_v2("d", &[], "1").await.status,
            201,
            "the connector has a limit of its own"
        );
        platform.pass_ms(1_000);
        assert_eq!(platform.get("/v2/user").await.status, 200);
    }
}
