//! Why a request is refused: one variant per code of the contract, each with its status and its body.
//!
//! Called  by every service of `http`; `IntoResponse` is the only place where an error becomes bytes.
//! Holds   - every refusal has a JSON body `{"error":"CODE"}`, whichever layer refuses.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::desk::DeskError;
use crate::registry::device::BadDeviceId;
use crate::shard::query::Refusal;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ApiError {
            $($(#[$doc])* $name,)*
        }

        impl ApiError {
            #[cfg(test)]
            pub const ALL: &'static [ApiError] = &[$(ApiError::$name,)*];

            pub const fn status(self) -> StatusCode {
                match self {
                    $(ApiError::$name => StatusCode::$status,)*
                }
            }

            pub const fn code(self) -> &'static str {
                match self {
                    $(ApiError::$name => $code,)*
                }
            }
        }
    };
}

refusals! {
    /// A body that is no JSON.
    BadJsonFormat = BAD_REQUEST "BAD_JSON_FORMAT",
    /// A field or a header that cannot be that.
    BadParameter = BAD_REQUEST "BAD_PARAMETER",
    BadDeviceId = BAD_REQUEST "BAD_DEVICE_ID",
    DeviceIdZero = BAD_REQUEST "DEVICE_ID_ZERO",
    EndtimeRequired = BAD_REQUEST "ENDTIME_REQUIRED",
    /// The token is missing, wrong, of the other kind, or of a suspended account.
    AuthRequired = UNAUTHORIZED "AUTH_REQUIRED",
    MaxDeviceReach = FORBIDDEN "MAX_DEVICE_REACH",
    MaxChannelReach = FORBIDDEN "MAX_CHANNEL_REACH",
    MaxTagReach = FORBIDDEN "MAX_TAG_REACH",
    MaxEventReach = FORBIDDEN "MAX_EVENT_REACH",
    DeviceInUse = FORBIDDEN "DEVICE_INUSE",
    ChannelInUse = FORBIDDEN "CHANNEL_INUSE",
    NoMappedChannel = FORBIDDEN "NO_MAPPED_CH",
    DeviceDisabled = FORBIDDEN "DEVICE_DISABLED",
    /// There is no such service.
    NotFound = NOT_FOUND "NOT_FOUND",
    NoDevice = NOT_FOUND "NO_DEVICE",
    NoChannel = NOT_FOUND "NO_CHANNEL",
    NoTag = NOT_FOUND "NO_TAG",
    NoEvent = NOT_FOUND "NO_EVENT",
    BadMethod = METHOD_NOT_ALLOWED "BAD_METHOD",
    /// The body did not come in time.
    RequestTimeout = REQUEST_TIMEOUT "REQUEST_TIMEOUT",
    PayloadTooLarge = PAYLOAD_TOO_LARGE "PAYLOAD_TOO_LARGE",
    TooManyRequests = TOO_MANY_REQUESTS "TOO_MANY_REQUESTS",
    /// The broker is stopping, or its disk does not take what it is given: whether the change was made is not known.
    Unavailable = SERVICE_UNAVAILABLE "UNAVAILABLE",
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = format!(r#"{{"error":"{}"}}"#, self.code());
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status(), [(CONTENT_TYPE, json)], body).into_response();
        if self == ApiError::TooManyRequests {
            // The window is one second long.
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::NoDevice => ApiError::NoDevice,
            Refusal::DeviceInUse => ApiError::DeviceInUse,
            Refusal::MaxDeviceReach => ApiError::MaxDeviceReach,
            Refusal::DeviceDisabled => ApiError::DeviceDisabled,
            Refusal::NoMappedChannel => ApiError::NoMappedChannel,
            Refusal::BadPayload => ApiError::BadJsonFormat,
            Refusal::NoAccount => ApiError::AuthRequired,
        }
    }
}

impl From<BadDeviceId> for ApiError {
    fn from(bad: BadDeviceId) -> ApiError {
        match bad {
            BadDeviceId::Zero => ApiError::DeviceIdZero,
            BadDeviceId::Invalid => ApiError::BadDeviceId,
        }
    }
}

impl From<DeskError> for ApiError {
    fn from(error: DeskError) -> ApiError {
        match error {
            DeskError::NoAccount | DeskError::UnknownUserId(_) => ApiError::AuthRequired,
            DeskError::NoEvent => ApiError::NoEvent,
            DeskError::TooManyEvents => ApiError::MaxEventReach,
            DeskError::BadUserId(_) | DeskError::UserIdTaken(_) | DeskError::BadParameter { .. } => {
                ApiError::BadParameter
            }
            DeskError::TooManyAccounts | DeskError::Unreadable(_) | DeskError::Stopping => {
                tracing::warn!("a request is answered with {}: {error}", ApiError::Unavailable.code());
                ApiError::Unavailable
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn every_refusal_is_a_json_object_with_its_code() {
        for error in ApiError::ALL {
            let response = error.into_response();
            assert_eq!(response.status(), error.status());
            assert!(response.status().is_client_error() || *error == ApiError::Unavailable);
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(
                response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap()),
                (*error == ApiError::TooManyRequests).then_some("1")
            );
            let body = to_bytes(response.into_body(), 1_000).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body, serde_json::json!({ "error": error.code() }));
        }
    }
}
