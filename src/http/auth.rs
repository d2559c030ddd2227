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
