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

/// What is answered is for whoever asked, and for no cache: it has tokens and measurements in it.
async fn private(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    tracing::debug!(%method, path, status = response.status().as_u16(), "answered");
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::testing::{ONE, Platform};

    #[tokio::test]
    async fn what_is_no_service_is_not_found_and_what_is_no_method_is_refused() {
        let platform = Platform::new();
        for path in [
            "/v2",
            "/v2/",
            "/v2/devices",
            "/v1/device",
            "/v2/device/a/b",
            "/v2//device",
            "//v2/device",
            "/v2/device//",
            "/v2/..%2Fuser",
            "/v2/%2e%2e/v2/user",
            "/favicon.ico",
            "/V2/device",
        ] {
            platform.get(path).await.is_refused(404, "NOT_FOUND");
            platform.send("POST", path, &[], "").await.is_refused(404, "NOT_FOUND");
        }
        for (method, path) in [
            ("POST", "/v2/device"),
            ("PATCH", "/v2/device/d"),
            ("OPTIONS", "/v2/device"),
            ("TRACE", "/v2/user"),
            ("PUT", "/v2/channel"),
            ("DELETE", "/v2/event"),
            ("POST", "/v2/event/1"),
            ("BREW", "/v2/user"),
            ("POST", "/openapi.json"),
            ("DELETE", "/"),
        ] {
            let refused = platform.call(method, path, &[], "").await;
            refused.is_refused(405, "BAD_METHOD");
            assert!(refused.headers.contains_key("allow"), "{method} {path}");
        }
        let refused = platform.call("PATCH", "/v2/event", &[], "").await;
        assert_eq!(refused.headers["allow"], "GET,HEAD,POST");
    }

    #[tokio::test]
    async fn head_is_answered_like_get_without_the_body() {
        let platform = Platform::new();
        let get = platform.get("/v2/device").await;
        let head = platform.call("HEAD", "/v2/device", &[], "").await;
        assert_eq!((head.status, head.text.as_str()), (200, ""));
        assert_eq!(head.headers, get.headers);
        let missing = platform.call("HEAD", "/v2/device/d", &[], "").await;
        assert_eq!(missing.status, 404);
    }

    #[tokio::test]
    async fn health_needs_no_token_and_nothing_is_kept_by_a_cache() {
        let platform = Platform::new();
        let health = platform.send("GET", "/health", &[], "").await;
        health.is(200, &json!({"status": "ok"}));
        for answer in [health, platform.get("/v2/user").await, platform.get("/nothing").await] {
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        }
    }

    #[tokio::test]
    async fn a_query_of_the_path_is_ignored_before_and_behind_a_slash() {
        let platform = Platform::new();
        for path in ["/v2/device?x=1", "/v2/device/?x=/"] {
            assert_eq!(platform.get(path).await.status, 200, "{path}");
        }
    }

    #[tokio::test]
    async fn a_change_is_done_when_its_client_has_hung_up() {
        let platform = Platform::new();
        let token = platform.account(ONE).api_token;
        let request = Request::post("/v2/channel/3").header("x-apitoken", token.as_str());
        let mut call = Box::pin(platform.app().oneshot(request.body(Body::empty()).unwrap()));
        // It begins, and nobody waits for its end.
        let begun = std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context).is_pending()));
        assert!(begun.await);
        drop(call);
        for _ in 0..1_000 {
            if platform.get("/v2/channel/3").await.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the channel was never made");
    }
}
