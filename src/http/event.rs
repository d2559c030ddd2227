//! `/v2/event`: threshold rules.
//!
//! Holds   - an event is on a channel that is there: from the look to the change the account's lock is held. What else an
//!         event may be is the desk's to say.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::answer::{Done, done, json};
use super::api::Api;
use super::auth::Caller;
use super::channel;
use super::desk::AccountLock;
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::request::{Fields, Id, Whole};
use crate::registry::channel::ChannelId;
use crate::registry::event::{Event, NotifyType, Operator};

/// An event, as it is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
struct Shown<'e> {
    event_id: u32,
    /// The channel that is watched.
    #[schema(value_type = Option<u32>, maximum = 2147483647)]
    mapped_ch: Option<ChannelId>,
    description: &'e str,
    #[schema(value_type = NotifyTypeName)]
    notify_type: NotifyType,
    post_url: &'e str,
    enabled: bool,
    source: &'e str,
    #[schema(value_type = OperatorName)]
    operator: Operator,
    threshold: &'e str,
    /// Seconds; absent where it is 0.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(value_type = Option<u64>, nullable = false)]
    min_interval: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<'e> Shown<'e> {
    fn new(event: &'e Event) -> Shown<'e> {
        Shown {
            event_id: event.event_id,
            mapped_ch: event.channel,
            description: &event.description,
            notify_type: event.notify_type,
            post_url: &event.post_url,
            enabled: event.is_enabled,
            source: &event.source,
            operator: event.operator,
            threshold: &event.threshold,
            min_interval: event.interval_ms / 1_000,
        }
    }
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it describes `NotifyType`")]
enum NotifyTypeName {
    Email,
    Http,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes `Operator`")]
enum OperatorName {
    #[schema(rename = "<")]
    Less,
    #[schema(rename = ">")]
    Greater,
    #[schema(rename = "<=")]
    LessOrEqual,
    #[schema(rename = ">=")]
    GreaterOrEqual,
    #[schema(rename = "=")]
    Equal,
    #[schema(rename = "!=")]
    NotEqual,
}

/// What is said of an event; what is absent stays as it is.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `EventChange` reads")]
pub(super) struct EventFields {
    #[schema(maximum = 2147483647)]
    mapped_ch: Option<u32>,
    #[schema(nullable = false, max_length = 1024)]
    description: Option<String>,
    #[schema(nullable = false, value_type = Option<NotifyTypeName>)]
    notify_type: Option<NotifyTypeName>,
    /// For `http`: where to post to.
    #[schema(nullable = false, max_length = 1024)]
    post_url: Option<String>,
    /// An event that is enabled is complete: it has `mapped_ch`, `source`, `threshold`, and for `http` a `post_url`.
    #[schema(nullable = false)]
    enabled: Option<bool>,
    /// A field of `value`; `:` descends, and arrays are passed through without an index.
    #[schema(nullable = false, max_length = 256, example = "data:value")]
    source: Option<String>,
    #[schema(nullable = false, value_type = Option<OperatorName>)]
    operator: Option<OperatorName>,
    /// Text, also for numbers.
    #[schema(nullable = false, max_length = 256)]
    threshold: Option<String>,
    /// At least so many seconds between two notifications; 0: none is left out.
    #[schema(nullable = false, maximum = 604800)]
    min_interval: Option<u64>,
}

/// What a body says.
#[derive(Debug, Default)]
struct EventChange {
    channel: Option<Option<ChannelId>>,
    description: Option<String>,
    notify_type: Option<NotifyType>,
    post_url: Option<String>,
    is_enabled: Option<bool>,
    source: Option<String>,
    operator: Option<Operator>,
    threshold: Option<String>,
    interval_ms: Option<u64>,
}

impl EventChange {
    fn read(mut fields: Fields) -> Result<EventChange, ApiError> {
        Ok(EventChange {
            channel: fields.channel("mapped_ch")?,
            description: fields.text("description")?,
            notify_type: of_words(&fields, "notify_type")?,
            post_url: fields.text("post_url")?,
            is_enabled: fields.flag("enabled")?,
            source: fields.text("source")?,
            operator: of_words(&fields, "operator")?,
            threshold: fields.text("threshold")?,
            interval_ms: match fields.value("min_interval") {
                None => None,
                Some(seconds) => {
                    let ms = seconds.as_u64().and_then(|seconds| seconds.checked_mul(1_000));
                    Some(ms.ok_or(ApiError::BadParameter)?)
                }
            },
        })
    }

    fn apply(self, event: &mut Event) {
        let EventChange {
            channel,
            description,
            notify_type,
            post_url,
            is_enabled,
            source,
            operator,
            threshold,
            interval_ms,
        } = self;
        let set = |field: &mut String, text: Option<String>| *field = text.unwrap_or(std::mem::take(field));
        set(&mut event.description, description);
        set(&mut event.post_url, post_url);
        set(&mut event.source, source);
        set(&mut event.threshold, threshold);
        event.channel = channel.unwrap_or(event.channel);
        event.notify_type = notify_type.unwrap_or(event.notify_type);
        event.is_enabled = is_enabled.unwrap_or(event.is_enabled);
        event.operator = operator.unwrap_or(event.operator);
        event.interval_ms = interval_ms.unwrap_or(event.interval_ms);
    }

    /// Takes the lock if the channel is to be another, which then must be there.
    async fn lock(&self, api: &Api, caller: &Caller) -> Result<Option<AccountLock>, ApiError> {
        let Some(Some(channel)) = self.channel else {
            return Ok(None);
        };
        let lock = api.desk().lock(caller.account).await;
        channel::must_exist(api, caller.account, channel).await?;
        Ok(Some(lock))
    }
}

/// A field that is one of a few words.
fn of_words<T: DeserializeOwned>(fields: &Fields, key: &str) -> Result<Option<T>, ApiError> {
    match fields.value(key) {
        None => Ok(None),
        Some(word @ Value::String(_)) => T::deserialize(word).map(Some).map_err(|_| ApiError::BadParameter),
        Some(_) => Err(ApiError::BadParameter),
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct EventCreated {
    event_id: u32,
}

/// Decimal digits, as in a path.
fn event_id(text: &str) -> Result<u32, ApiError> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    let id = is_decimal.then(|| text.parse().ok()).flatten();
    id.ok_or(ApiError::NoEvent)
}

/// All events of the account.
#[utoipa::path(get, path = "/v2/event", tag = "event", responses((status = 200, body = [Shown])))]
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Response {
    let events = api.desk().events(caller.account);
    json(StatusCode::OK, &events.iter().map(Shown::new).collect::<Vec<_>>())
}

/// One event, in a list of one.
#[utoipa::path(
    get,
    path = "/v2/event/{event_id}",
    tag = "event",
    params(("event_id" = u32, Path)),
    responses((status = 200, body = [Shown]), (status = 404, description = "`NO_EVENT`", body = ErrorBody)),
)]
pub(super) async fn read(State(api): State<Api>, caller: Caller, Id(id): Id) -> Result<Response, ApiError> {
    let event = api
        .desk()
        .event(caller.account, event_id(&id)?)
        .ok_or(ApiError::NoEvent)?;
    Ok(json(StatusCode::OK, &[Shown::new(&event)]))
}

/// Creates an event, to be filled in by PUT, or filled in already.
#[utoipa::path(
    post,
    path = "/v2/event",
    tag = "event",
    request_body(content = Option<EventFields>, description = "May be left out."),
    responses(
        (status = 201, body = EventCreated),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`MAX_EVENT_REACH`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`: of `mapped_ch`", body = ErrorBody),
    ),
)]
pub(super) async fn create(State(api): State<Api>, caller: Caller, Whole(body): Whole) -> Result<Response, ApiError> {
    let change = EventChange::read(Fields::parse_optional(&body)?)?;
    let _lock = change.lock(&api, &caller).await?;
    let mut event = Event::default();
    change.apply(&mut event);
    let event_id = api.desk().create_event(caller.account, event).await?;
    Ok(json(StatusCode::CREATED, &EventCreated { event_id }))
}

/// Changes what the body names of an event.
#[utoipa::path(
    put,
    path = "/v2/event/{event_id}",
    tag = "event",
    params(("event_id" = u32, Path)),
    request_body = EventFields,
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 404, description = "`NO_EVENT`, or `NO_CHANNEL`: of `mapped_ch`", body = ErrorBody),
    ),
)]
pub(super) async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    let event_id = event_id(&id)?;
    let change = EventChange::read(Fields::parse(&body)?)?;
    let _lock = change.lock(&api, &caller).await?;
    let changed = api.desk().change_event(caller.account, event_id, move |event| {
        change.apply(event);
        Ok(())
    });
    changed.await?;
    Ok(done())
}

/// Removes an event.
#[utoipa::path(
    delete,
    path = "/v2/event/{event_id}",
    tag = "event",
    params(("event_id" = u32, Path)),
    responses((status = 200, body = Done), (status = 404, description = "`NO_EVENT`", body = ErrorBody)),
)]
pub(super) async fn remove(State(api): State<Api>, caller: Caller, Id(id): Id) -> Result<Response, ApiError> {
    api.desk().remove_event(caller.account, event_id(&id)?).await?;
    Ok(done())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::http::testing::{ONE, OTHER, Platform};

    #[tokio::test]
    async fn an_event_is_created_empty_and_filled_in() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        platform.get("/v2/event").await.is(200, &json!([]));
        platform
            .call("POST", "/v2/event", &[], "")
            .await
            .is(201, &json!({"event_id": 1}));
        platform
            .call("POST", "/v2/event/", &[], "{}")
            .await
            .is(201, &json!({"event_id": 2}));
        let empty = json!({
            "event_id": 1, "mapped_ch": null, "description": "", "notify_type": "http", "post_url": "",
            "enabled": false, "source": "", "operator": "=", "threshold": "",
        });
        platform.get("/v2/event/1").await.is(200, &json!([empty]));
        let body = r#"{"mapped_ch":3,"description":"too warm","post_url":"https://alarm.example.org/hook",
            "source":"data:temp","operator":">","threshold":"30","event_id":9,"unknown":1}"#;
        platform.call("PUT", "/v2/event/1", &[], body).await.is_done();
        platform
            .call("PUT", "/v2/event/1", &[], r#"{"enabled":true}"#)
            .await
            .is_done();
        let filled = json!({
            "event_id": 1, "mapped_ch": 3, "description": "too warm", "notify_type": "http",
            "post_url": "https://alarm.example.org/hook", "enabled": true, "source": "data:temp", "operator": ">",
            "threshold": "30",
        });
        platform.get("/v2/event/1").await.is(200, &json!([filled]));
        let list = platform.get("/v2/event/").await.json();
        assert_eq!((&list[0], &list[1]["event_id"]), (&filled, &json!(2)));
        for operator in ["<", ">", "<=", ">=", "=", "!="] {
            let body = json!({"operator": operator, "notify_type": "email"}).to_string();
            platform.call("PUT", "/v2/event/2", &[], &body).await.is_done();
            let shown = &platform.get("/v2/event/2").await.json()[0];
            assert_eq!(
                (&shown["operator"], &shown["notify_type"]),
                (&json!(operator), &json!("email"))
            );
        }
        platform
            .call("PUT", "/v2/event/1", &[], r#"{"enabled":false,"mapped_ch":null}"#)
            .await
            .is_done();
        assert_eq!(platform.get("/v2/event/1").await.json()[0]["mapped_ch"], json!(null));
    }

    #[tokio::test]
    async fn fields_are_taken_at_creation_too() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        let body =
            r#"{"mapped_ch":3,"notify_type":"email","enabled":true,"source":"t","threshold":"1","min_interval":60}"#;
        platform
            .call("POST", "/v2/event", &[], body)
            .await
            .is(201, &json!({"event_id": 1}));
        let shown = &platform.get("/v2/event").await.json()[0];
        assert_eq!((&shown["enabled"], &shown["min_interval"]), (&json!(true), &json!(60)));
        assert_eq!(platform.desk.event(ONE, 1).unwrap().interval_ms, 60_000);
    }

    #[tokio::test]
    async fn what_no_event_can_be_changes_nothing() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        platform.channel(OTHER, 7, "theirs");
        platform.call("POST", "/v2/event", &[], "").await;
        let before = platform.get("/v2/event").await;
        for (body, status, code) in [
            ("{", 400, "BAD_JSON_FORMAT"),
            ("[]", 400, "BAD_PARAMETER"),
            (r#"{"enabled":true}"#, 400, "BAD_PARAMETER"),
            (r#"{"enabled":"true"}"#, 400, "BAD_PARAMETER"),
            (r#"{"notify_type":"sms"}"#, 400, "BAD_PARAMETER"),
            (r#"{"notify_type":["http"]}"#, 400, "BAD_PARAMETER"),
            (r#"{"operator":"=="}"#, 400, "BAD_PARAMETER"),
            (r#"{"operator":null}"#, 400, "BAD_PARAMETER"),
            (r#"{"threshold":30}"#, 400, "BAD_PARAMETER"),
            (r#"{"post_url":"file:///etc/passwd"}"#, 400, "BAD_PARAMETER"),
            (r#"{"min_interval":-1}"#, 400, "BAD_PARAMETER"),
            (r#"{"min_interval":99999999999999999}"#, 400, "BAD_PARAMETER"),
            (r#"{"mapped_ch":"3"}"#, 400, "BAD_PARAMETER"),
            (r#"{"mapped_ch":4}"#, 404, "NO_CHANNEL"),
            (r#"{"mapped_ch":7}"#, 404, "NO_CHANNEL"),
        ] {
            platform
                .call("PUT", "/v2/event/1", &[], body)
                .await
                .is_refused(status, code);
            platform
                .call("POST", "/v2/event", &[], body)
                .await
                .is_refused(status, code);
        }
        platform
            .call("PUT", "/v2/event/1", &[], "")
            .await
            .is_refused(400, "BAD_JSON_FORMAT");
        assert_eq!(platform.get("/v2/event").await, before);
    }

    #[tokio::test]
    async fn what_is_no_event_of_the_account_is_not_there() {
        let platform = Platform::new();
        platform.call_as(OTHER, "POST", "/v2/event", &[], "").await;
        for id in ["1", "0", "x", "-1", "+1", "4294967296", "%FF"] {
            let path = format!("/v2/event/{id}");
            for (method, body) in [("GET", ""), ("PUT", "{}"), ("DELETE", "")] {
                platform
                    .call(method, &path, &[], body)
                    .await
                    .is_refused(404, "NO_EVENT");
            }
        }
        platform
            .call_as(OTHER, "DELETE", "/v2/event/1", &[], "")
            .await
            .is_done();
        platform
            .call_as(OTHER, "GET", "/v2/event/1", &[], "")
            .await
            .is_refused(404, "NO_EVENT");
    }
}
