//! Which request is whose.
//!
//! Holds   - a slash at the end of a path makes no difference;
//!         - whatever no handler takes is refused in the words of the contract as well;
//!         - a request that changes something is done to its end once it has begun, also when its client has hung up: no change
//!           is ever left half done.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower::ServiceExt as _;
use tower::util::MapRequest;

use super::answer::json_text;
use super::api::Api;
use super::error::ApiError;
use super::{channel, connector, device, event, openapi, publish, session, stream, user};
use crate::limits::HTTP_ANSWER_TIMEOUT_MS;

/// The API as a service, of which every connection has a copy.
pub type App = MapRequest<Router, fn(Request<Body>) -> Request<Body>>;

pub fn app(api: Api) -> App {
    let services = Router::new()
        .route("/v2/device", get(device::list))
        .route(
            "/v2/device/{device_id}",
            get(device::read)
                .post(device::create)
                .put(device::update)
                .delete(device::remove),
        )
        .route("/v2/channel", get(channel::list))
        .route(
            "/v2/channel/{channel_id}",
            get(channel::read)
                .post(channel::create)
                .put(channel::update)
                .delete(channel::remove),
        )
        .route("/v2/stream/{channel_id}", get(stream::read).post(stream::write))
        .route("/v2/event", get(event::list).post(event::create))
        .route(
            "/v2/event/{event_id}",
            get(event::read).put(event::update).delete(event::remove),
        )
        .route("/v2/user", get(user::read).put(user::update))
        .route("/v2/publish/{device_id}", post(publish::send))
        .route("/v1/publish/{device_id}", post(publish::send_v1))
        .route("/v2/session", get(session::list))
        .route("/post_v2", post(connector::post_v2));
    let services = match api.settings().has_v1 {
        true => services.route("/post_v1", post(connector::post_v1)),
        false => services,
    };
    let router = services
        .route("/", get(openapi::page))
        .route("/docs", get(openapi::page))
        .route("/openapi.json", get(openapi::document))
        .route("/health", get(health))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::BadMethod)
        .layer(from_fn_with_state(api.clone(), answered))
        .layer(from_fn(private))
        .with_state(api);
    router.map_request(without_last_slash)
}

/// The broker serves.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = openapi::Health)))]
pub(super) async fn health() -> Response {
    json_text(StatusCode::OK, r#"{"status":"ok"}"#)
}

fn without_last_slash(mut request: Request<Body>) -> Request<Body> {
    if let Some(uri) = shortened(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

fn shortened(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    // What was the path of a URI is one without its last slash.
    path_and_query.parse().ok()
}

/// Answers in time, and lets what has begun to change something come to its end.
async fn answered(State(api): State<Api>, request: Request, next: Next) -> Response {
    let timeout = Duration::from_millis(HTTP_ANSWER_TIMEOUT_MS);
    let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
        tokio::time::timeout(timeout, next.run(request)).await.ok()
    } else {
        let Ok(permit) = api.changes().try_acquire_owned() else {
            return ApiError::Unavailable.into_response();
        };
        let change = tokio::spawn(async move {
            let _permit = permit;
            next.run(request).await
        });
        let changed = tokio::time::timeout(timeout, change).await;
        changed.ok().and_then(Result::ok)
    };
    answer.unwrap_or_else(|| ApiError::Unavailable.into_response())
}

/// What is answered is for whoever asked: it has tokens and measurements in it.
async fn private(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
