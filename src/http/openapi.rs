//! `/openapi.json`: what this API is, for machines; `/docs` and `/`: the same for people.
//!
//! Holds   - the document is made of the handlers' own annotations; what is true of all of them is added here, once;
//!         - neither needs a token: it says nothing that is not public.

mod page;

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Header, PathItem, Ref, RefOr, Response as Answer};
use utoipa::{Modify, OpenApi, ToSchema};

use super::answer::json_text;
use super::api::Api;
use super::{channel, connector, device, event, publish, router, session, stream, user};

/// What every `X-TAGNAME` may be.
pub(super) const TAG_NAME: &str = "A tag: 1 to 64 characters but `/`, `+`, `#` and control characters. One that has more than \
                                   visible ASCII in it is written `UTF-8''` and its bytes percent-encoded, as in \
                                   `UTF-8''Zul%C3%A4ufe`.";

/// Why a request is refused.
#[derive(ToSchema)]
#[schema(as = Error)]
#[expect(dead_code, reason = "it describes what `error` writes")]
pub(super) struct ErrorBody {
    #[schema(example = "AUTH_REQUIRED")]
    error: &'static str,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `router` answers")]
pub(super) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Skein",
        description = "The HTTP API of the Skein broker: devices, channels, streams, events, and the connector for devices \
                       that speak HTTP.\n\nEvery refusal is a JSON object with a code: `{\"error\":\"NO_DEVICE\"}`. Objects \
                       of another account are answered as those that are not there. Times are local to the account's zone, \
                       with their offset.",
    ),
    tags(
        (name = "device", description = "The registry. A device is made by hand, or by the first data that it sends."),
        (name = "channel", description = "Where datapoints are kept, and the tags in them."),
        (name = "stream", description = "Datapoints, read, folded into one, and written."),
        (name = "event", description = "Threshold rules, and whom they tell."),
        (name = "user", description = "The account itself."),
        (name = "publish", description = "Messages to devices."),
        (name = "session", description = "Who is connected."),
        (name = "connector", description = "For devices that speak HTTP and no MQTT."),
        (name = "health", description = "For whatever watches the broker."),
    ),
    paths(
        device::list, device::read, device::create, device::update, device::remove,
        channel::list, channel::read, channel::create, channel::update, channel::remove,
        stream::read, stream::write,
        event::list, event::read, event::create, event::update, event::remove,
        user::read, user::update,
        publish::send, publish::send_v1,
        session::list,
        connector::post_v2, connector::post_v1,
        router::health,
    ),
    components(schemas(ErrorBody)),
    modifiers(&Common),
)]
struct Document;

/// What is true of all operations.
struct Common;

const API_TOKEN: &str = "api_token";
const DEVICE_TOKEN: &str = "device_token";

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        for (name, header, what) in [
            (API_TOKEN, "X-APITOKEN", "The account's API token."),
            (DEVICE_TOKEN, "X-DEVICETOKEN", "The account's device token."),
        ] {
            let key = ApiKeyValue::with_description(header, what);
            components.add_security_scheme(name, SecurityScheme::ApiKey(ApiKey::Header(key)));
        }
        for operation in document.paths.paths.values_mut().flat_map(operations) {
            name(operation);
            let is_of = |tag: &str| operation.tags.iter().flatten().any(|of| of == tag);
            let (is_health, is_connector) = (is_of("health"), is_of("connector"));
            if is_health {
                continue;
            }
            let scheme = if is_connector { DEVICE_TOKEN } else { API_TOKEN };
            operation.security = Some(vec![SecurityRequirement::new(scheme, [""; 0])]);
            refuse(operation, "400", "`BAD_PARAMETER`: a header that is not ASCII");
            refuse(operation, "401", "`AUTH_REQUIRED`");
            refuse(operation, "429", "`TOO_MANY_REQUESTS`");
            refuse(
                operation,
                "503",
                "`UNAVAILABLE`: the broker is stopping, or its disk is full",
            );
            if operation.request_body.is_some() {
                refuse(operation, "408", "`REQUEST_TIMEOUT`: the body did not come");
                refuse(operation, "413", "`PAYLOAD_TOO_LARGE`");
            }
            describe_answers(operation);
        }
    }
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut path.get, &mut path.put, &mut path.post, &mut path.delete]
        .into_iter()
        .filter_map(Option::as_mut)
}

/// A handler's name is one of its module.
fn name(operation: &mut Operation) {
    let tag = operation.tags.iter().flatten().next();
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
}

/// Says that an operation may be refused so, unless it says so by itself.
fn refuse(operation: &mut Operation, status: &str, why: &str) {
    let answer = || {
        let mut answer = Answer::new(why);
        let error = Ref::from_schema_name("Error");
        answer
            .content
            .insert("application/json".to_owned(), RefOr::T(Content::new(Some(error))));
        if status == "429" {
            answer
                .headers
                .insert("Retry-After".to_owned(), RefOr::T(Header::default()));
        }
        RefOr::T(answer)
    };
    operation
        .responses
        .responses
        .entry(status.to_owned())
        .or_insert_with(answer);
}

/// An answer without a word of its own is described by its status.
fn describe_answers(operation: &mut Operation) {
    for (status, answer) in &mut operation.responses.responses {
        if let (RefOr::T(answer), Ok(status)) = (answer, StatusCode::try_from(status.as_str()))
            && answer.description.is_empty()
        {
            answer.description = status.canonical_reason().unwrap_or_default().to_owned();
        }
    }
}

/// The document and its page, as text.
struct Texts {
    document: String,
    page: String,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| Texts::new(false));
static TEXTS_WITH_V1: LazyLock<Texts> = LazyLock::new(|| Texts::new(true));

impl Texts {
    fn of(api: &Api) -> &'static Texts {
        match api.settings().has_v1 {
            true => &TEXTS_WITH_V1,
            false => &TEXTS,
        }
    }

    fn new(has_v1: bool) -> Texts {
        let document = as_json(has_v1);
        Texts {
            page: page::write(&document),
            document: document.to_string(),
        }
    }
}

fn as_json(has_v1: bool) -> serde_json::Value {
    let mut document = Document::openapi();
    if !has_v1 {
        document.paths.paths.remove("/post_v1/");
    }
    serde_json::to_value(document).expect("it is made of texts")
}

pub(super) async fn document(State(api): State<Api>) -> Response {
    json_text(StatusCode::OK, Texts::of(&api).document.as_str())
}

pub(super) async fn page(State(api): State<Api>) -> Response {
    /// The page has its style within, and nothing else.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'";
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    (headers, Texts::of(&api).page.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::testing::Platform;

    #[tokio::test]
    async fn the_document_and_its_page_need_no_token() {
        let platform = Platform::new();
        let document = platform.send("GET", "/openapi.json", &[], "").await;
        document.is(200, &as_json(false));
        assert!(document.json()["openapi"].as_str().unwrap().starts_with("3."));
        for path in ["/", "/docs", "/docs/"] {
            let page = platform.send("GET", path, &[], "").await;
            assert_eq!(
                (page.status, page.headers["content-type"].to_str().unwrap()),
                (200, "text/html; charset=utf-8")
            );
            assert!(
                page.headers["content-security-policy"]
                    .to_str()
                    .unwrap()
                    .starts_with("default-src 'none'")
            );
            assert!(page.text.starts_with("<!doctype html>") && page.text.contains("/v2/stream/{channel_id}"));
        }
    }

    #[test]
    fn every_operation_names_its_refusals_and_its_token() {
        let document = as_json(true);
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let what = format!("{method} {path}");
                assert!(
                    ids.insert(operation["operationId"].as_str().unwrap()),
                    "{what}: its id is taken"
                );
                assert!(operation["summary"].is_string(), "{what}");
                let answers = operation["responses"].as_object().unwrap();
                if path == "/health" {
                    continue;
                }
                let mut statuses = vec!["400", "401", "429", "503"];
                if operation.get("requestBody").is_some() {
                    statuses.extend(["408", "413"]);
                }
                for status in statuses {
                    let schema = &answers[status]["content"]["application/json"]["schema"];
                    assert_eq!(schema["$ref"], "#/components/schemas/Error", "{what}: {status}");
                }
                let scheme = if path.starts_with("/post") {
                    DEVICE_TOKEN
                } else {
                    API_TOKEN
                };
                assert!(operation["security"][0].get(scheme).is_some(), "{what}");
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let is_in_path = path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap()));
                    assert_eq!(is_in_path, parameter["in"] == "path", "{what}: {parameter}");
                }
            }
        }
        assert!(as_json(false)["paths"].get("/post_v1/").is_none());
        // Whatever is referred to is there.
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = &reference[..reference.find('"').unwrap()];
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
