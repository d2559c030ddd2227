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
