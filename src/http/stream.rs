//! `/v2/stream/{channel_id}`: datapoints, read, folded into one, and written.
//!
//! Holds   - a reader looks at the store in short views, one after another: however much it asks for, neither the writer nor
//!           other readers wait for it;
//!         - stored JSON is passed on as it is stored;
//!         - an answer has at most [`STREAM_ROWS_MAX`] rows and about [`STREAM_BYTES_MAX`] bytes, and says so if there are more.

mod query;
mod rows;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use self::query::{Decode, End, Reading};
use self::rows::{Rows, walk};
use super::answer::{json, to_json};
use super::api::{Api, Refused};
use super::auth::Caller;
use super::budget::large;
use super::channel::{find, last_update};
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::request::{Id, Whole, tag};
use super::time::Zone;
use crate::ingest::aggregate::{Aggregate, Aggregator};
use crate::ingest::payload;
use crate::ingest::topic::Format;
use crate::ingest::trigger;
use crate::registry::access::AccountId;
use crate::registry::channel::ChannelId;
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::registry::event::Notification;
use crate::shard::record::{Datapoint, Record};
use crate::store::lmdb::View;

const TRUNCATED: HeaderName = HeaderName::from_static("x-truncated");

/// What every answer says of its channel.
#[derive(Serialize, ToSchema)]
struct Head {
    #[schema(value_type = u32)]
    channel: ChannelId,
    channel_name: String,
    /// When the last datapoint came; `null`: there is none.
    last_update: Option<String>,
}

fn head(view: &View<'_>, account: AccountId, id: &str, zone: &Zone) -> Result<Head, Refused> {
    let (id, channel) = find(view, account, ChannelId::parse(id))?;
    Ok(Head {
        channel: id,
        last_update: last_update(&view.tags(account, id)?, zone),
        channel_name: channel.name,
    })
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `rows` writes")]
#[schema(as = Datapoint)]
struct ShownDatapoint {
    /// 24 hexadecimal digits; they grow with time.
    #[schema(example = "019cb4f0c5e4000000000001")]
    _id: String,
    tag: Option<String>,
    #[schema(value_type = Object)]
    value: serde_json::Value,
    /// With `X-DECODE: msgpack`, where the hexadecimal digits in `value1` are MessagePack.
    #[schema(value_type = Option<serde_json::Value>)]
    decoded: Option<serde_json::Value>,
    /// When it was received.
    #[schema(example = "2026-03-04T10:02:11+0100")]
    at: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `read` writes")]
pub(super) struct Stream {
    #[schema(inline)]
    #[serde(flatten)]
    head: Head,
    stream: Vec<ShownDatapoint>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Folded {
    #[serde(flatten)]
    head: Head,
    #[schema(value_type = String, example = "avg")]
    aggr_type: &'static str,
    /// None or one.
    result: Vec<FoldedValue>,
}

#[derive(Serialize, ToSchema)]
struct FoldedValue {
    /// `null`
    #[schema(value_type = Option<String>)]
    _id: Option<&'static str>,
    /// By the path of each numeric field, its aggregate.
    #[schema(value_type = Object)]
    value: serde_json::Map<String, serde_json::Value>,
}

#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes what `read` answers")]
pub(super) enum StreamOrAggregate {
    Stream(Stream),
    Aggregate(Folded),
}

/// Datapoints of a channel, or an aggregate of them.
#[utoipa::path(
    get,
    path = "/v2/stream/{channel_id}",
    tag = "stream",
    params(
        ("channel_id" = u32, Path, maximum = 2147483647),
        ("X-ENDTIME" = String, Header, description = "End of the range, or `last`: the newest `X-PAGELIMIT` datapoints.
            `YYYY-MM-DD hh:mm` in the account's zone, included whole; with seconds, or as ISO 8601 with an offset, also."),
        ("X-STARTTIME" = Option<String>, Header, description = "Start of the range, written likewise, or `last`: the oldest."),
        ("X-TAGNAME" = Option<String>, Header, description = super::openapi::TAG_NAME),
        ("X-PAGELIMIT" = Option<u32>, Header, minimum = 1, maximum = 10000,
            description = "Rows with `X-ENDTIME: last`; 1 if absent."),
        ("X-PAGESORT" = Option<String>, Header, pattern = "^(asc|desc)$", description = "`asc` (if absent) or `desc`."),
        ("X-AGGREGATE" = Option<String>, Header, pattern = "^(avg|sum|min|max)$",
            description = "`avg`, `sum`, `min` or `max`: one value for each numeric field of the range."),
        ("X-DECODE" = Option<String>, Header, pattern = "^msgpack$",
            description = "`msgpack`: a decoded copy stands beside what is MessagePack."),
    ),
    responses(
        (status = 200, body = StreamOrAggregate, headers(
            ("X-TRUNCATED" = String, description = "`true`: there are more datapoints than one answer has room for.")
        )),
        (status = 400, description = "`ENDTIME_REQUIRED`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`", body = ErrorBody),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let account = caller.account;
    let zone = caller.zone.clone();
    // A channel that is not there goes before whatever is wrong with how it is asked.
    let head = api.view(move |view| head(view, account, &id, &zone)).await?;
    let reading = Reading::of(&headers, &caller.zone)?;
    match reading.aggregate {
        Some(kind) => fold(&api, account, head, reading, kind).await,
        None => list(&api, &caller, head, reading).await,
    }
}

async fn list(api: &Api, caller: &Caller, head: Head, reading: Reading) -> Result<Response, ApiError> {
    let Reading {
        end,
        range,
        is_descending,
        decode,
        ..
    } = reading;
    let mut rows = Rows::new(caller.zone.clone());
    rows.is_decoding = decode == Some(Decode::MessagePack);
    let newest_first = match end {
        // The newest are found from the end on, whatever order they are shown in.
        End::Last { rows_max } => {
            (rows.rows_max, rows.is_page) = (rows_max, true);
            true
        }
        End::At => is_descending,
    };
    let rows = match range {
        Some(range) => walk(api, caller.account, head.channel, range, newest_first, rows, Rows::take).await?,
        None => rows,
    };
    let mut body = to_json(&head);
    body.pop();
    body.push_str(r#","stream":["#);
    rows.write(&mut body, newest_first != is_descending);
    body.push_str("]}");
    Ok(cut(large(api.budget(), caller.account, body)?, rows.is_cut))
}

/// Says so, if something had no room in an answer.
fn cut(mut response: Response, is_cut: bool) -> Response {
    if is_cut {
        let headers = response.headers_mut();
        headers.insert(TRUNCATED, HeaderValue::from_static("true"));
    }
    response
}

async fn fold(
    api: &Api,
    account: AccountId,
    head: Head,
    reading: Reading,
    kind: Aggregate,
) -> Result<Response, ApiError> {
    let add = |aggregator: &mut Aggregator, _: DatapointId, row: DatapointRow<'_>| {
        aggregator.add(row.value);
        true
    };
    let mut aggregator = Aggregator::new(kind);
    if let Some(range) = reading.range {
        aggregator = walk(api, account, head.channel, range, false, aggregator, add).await?;
    }
    let is_cut = aggregator.is_cut();
    let value = aggregator.finish();
    let result = (!value.is_empty()).then_some(FoldedValue { _id: None, value });
    let folded = Folded {
        head,
        aggr_type: kind.as_str(),
        result: result.into_iter().collect(),
    };
    Ok(cut(json(StatusCode::OK, &folded), is_cut))
}

#[derive(Serialize, ToSchema)]
pub(super) struct DatapointCreated {
    _id: String,
}

/// Writes a datapoint. It needs no device, and events are evaluated as for one.
#[utoipa::path(
    post,
    path = "/v2/stream/{channel_id}",
    tag = "stream",
    params(
        ("channel_id" = u32, Path, maximum = 2147483647),
        ("X-TAGNAME" = Option<String>, Header, description = super::openapi::TAG_NAME),
    ),
    request_body(content = serde_json::Value, description = "Any JSON but `null`; what is no object is kept under `value1`."),
    responses(
        (status = 201, body = DatapointCreated),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`", body = ErrorBody),
    ),
)]
pub(super) async fn write(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    let account = caller.account;
    let (channel, _) = api.view(move |view| find(view, account, ChannelId::parse(&id))).await?;
    let tag = tag(&headers)?.unwrap_or_default();
    if body.len() > api.settings().packet_bytes_max {
        return Err(ApiError::PayloadTooLarge);
    }
    let mut value = String::new();
    payload::value(Format::Json, &body, &mut value).map_err(|_| ApiError::BadJsonFormat)?;
    let row = DatapointRow {
        tag: &tag,
        device: "",
        value: &value,
    };
    let id = api.next_datapoint();
    let datapoint = Datapoint {
        account,
        channel,
        id,
        row: row.pack(),
        origin: None,
        is_awaited: true,
    };
    api.persist(vec![Record::Datapoint(Box::new(datapoint))]).await?;
    for event in caller.tenant.events.get(&channel).into_iter().flatten() {
        if let Some(current) = trigger::matches(event, &value) {
            api.notify(Notification {
                account,
                event_id: event.event_id,
                channel,
                current,
                at_ms: id.at_ms(),
            });
        }
    }
    Ok(json(StatusCode::CREATED, &DatapointCreated { _id: id.to_hex() }))
}

#[cfg(test)]
mod tests;
