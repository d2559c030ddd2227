//! What a request is answered with, if it is not refused.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// JSON that is text already.
pub fn json_text(status: StatusCode, body: impl Into<axum::body::Body>) -> Response {
    (status, [(CONTENT_TYPE, JSON)], body.into()).into_response()
}

pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    json_text(status, to_json(body))
}

pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what is answered has text for keys, and no error of its own")
}

/// It is so now.
#[derive(Serialize, ToSchema)]
pub struct Done {
    /// `OK`
    #[schema(example = "OK")]
    result: &'static str,
}

/// The answer to what succeeded and has nothing else to say.
pub fn done() -> Response {
    json(StatusCode::OK, &Done { result: "OK" })
}
