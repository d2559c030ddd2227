//! `/v2/channel`: where datapoints are kept, and the tags in them.
//!
//! Holds   - changes of an account's channels happen one after another, under its lock;
//!         - a tag is there if it was declared, has a name of its own, or has datapoints;
//!         - a channel that is removed is no core's mapping any more when that is answered.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{Done, done, json, json_text, to_json};
use super::api::{Api, Refused};
use super::auth::Caller;
use super::budget::large;
use super::cores::succeeded;
use super::error::ApiError;
use super::openapi::ErrorBody;
use super::request::{Fields, Id, Whole, flag, tag};
use super::time::{Style, Zone};
use crate::limits::{CHANNELS_PER_ACCOUNT_MAX, TAGS_PER_CHANNEL_MAX};
use crate::registry::access::AccountId;
use crate::registry::channel::{Channel, ChannelId};
use crate::shard::query::Query;
use crate::shard::record::Record;
use crate::store::lmdb::View;
use crate::store::streams::TagUsage;

const WITH_TAG: &str = "x-withtag";

/// A channel, or a tag of one, as it is shown.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Channel)]
struct Shown {
    #[schema(value_type = u32, maximum = 2147483647)]
    channel: ChannelId,
    /// With `X-WITHTAG` only; `null`: the datapoints without a tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    tag: Option<Option<Box<str>>>,
    /// Of a tag: its own, or the channel's.
    channel_name: String,
    /// When the last datapoint came; `null`: there is none.
    #[schema(example = "2026-03-04T10:02:11+0100")]
    last_update: Option<String>,
}

/// When the newest datapoint came of all these.
pub(super) fn last_update(tags: &[TagUsage], zone: &Zone) -> Option<String> {
    let last_ms = tags.iter().map(|tag| tag.last_ms).max()?;
    Some(zone.text(last_ms, Style::Basic))
}

/// The elements for one channel.
fn shown(id: ChannelId, channel: &Channel, tags: &[TagUsage], with_tag: bool, zone: &Zone) -> Vec<Shown> {
    if !with_tag {
        return vec![Shown {
            channel: id,
            tag: None,
            channel_name: channel.name.clone(),
            last_update: last_update(tags, zone),
        }];
    }
    let declared = channel.tags.keys().map(|tag| &**tag);
    let used = tags.iter().map(|usage| &*usage.tag).filter(|tag| !tag.is_empty());
    let mut names: Vec<&str> = declared.chain(used).collect();
    names.sort_unstable();
    names.dedup();
    let element = |tag: Option<&str>| {
        let usage = tags.iter().filter(|usage| &*usage.tag == tag.unwrap_or_default());
        let own_name = tag.and_then(|tag| channel.tags.get(tag)?.clone());
        Shown {
            channel: id,
            tag: Some(tag.map(Box::from)),
            channel_name: own_name.unwrap_or_else(|| channel.name.clone()),
            last_update: usage.map(|usage| zone.text(usage.last_ms, Style::Basic)).next(),
        }
    };
    names.into_iter().map(Some).chain([None]).map(element).collect()
}

/// A channel as it is asked for by number.
pub(super) fn find(
    view: &View<'_>,
    account: AccountId,
    id: Option<ChannelId>,
) -> Result<(ChannelId, Channel), Refused> {
    let id = id.ok_or(ApiError::NoChannel)?;
    let channel = view.channel(account, id)?.ok_or(ApiError::NoChannel)?;
    Ok((id, channel))
}

/// A mapping to it is allowed. What depends on the answer is done under the account's lock.
pub(super) async fn must_exist(api: &Api, account: AccountId, channel: ChannelId) -> Result<(), ApiError> {
    api.view(move |view| find(view, account, Some(channel)).map(drop)).await
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `name` reads")]
pub(super) struct ChannelFields {
    #[schema(nullable = false, max_length = 1024)]
    channel_name: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ChannelCreated {
    #[schema(value_type = u32)]
    channel: ChannelId,
}

/// All channels of the account; with `X-WITHTAG: true` an element for each tag of each, and one for what has no tag.
#[utoipa::path(
    get,
    path = "/v2/channel",
    tag = "channel",
    params(("X-WITHTAG" = Option<bool>, Header, description = "`true`, `false`, `1` or `0`.")),
    responses(
        (status = 200, body = [Shown]),
        (status = 400, description = "`BAD_PARAMETER`", body = ErrorBody),
    ),
)]
pub(super) async fn list(State(api): State<Api>, caller: Caller, headers: HeaderMap) -> Result<Response, ApiError> {
    let with_tag = flag(&headers, WITH_TAG)?;
    let account = caller.account;
    let body = api.view(move |view| {
        let mut all = Vec::new();
        for (id, channel) in view.channels(account)? {
            let tags = view.tags(account, id)?;
            all.extend(shown(id, &channel, &tags, with_tag, &caller.zone));
        }
        Ok(to_json(&all))
    });
    large(api.budget(), account, body.await?)
}

/// One channel.
#[utoipa::path(
    get,
    path = "/v2/channel/{channel_id}",
    tag = "channel",
    params(
        ("channel_id" = u32, Path, maximum = 2147483647),
        ("X-WITHTAG" = Option<bool>, Header, description = "`true`, `false`, `1` or `0`."),
    ),
    responses(
        (status = 200, body = [Shown]),
        (status = 400, description = "`BAD_PARAMETER`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`", body = ErrorBody),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let with_tag = flag(&headers, WITH_TAG)?;
    let body = api.view(move |view| {
        let (id, channel) = find(view, caller.account, ChannelId::parse(&id))?;
        let tags = view.tags(caller.account, id)?;
        Ok(to_json(&shown(id, &channel, &tags, with_tag, &caller.zone)))
    });
    Ok(json_text(StatusCode::OK, body.await?))
}

/// Creates a channel. With `X-TAGNAME`: declares a tag of it, and creates the channel if it is not there.
#[utoipa::path(
    post,
    path = "/v2/channel/{channel_id}",
    tag = "channel",
    params(
        ("channel_id" = u32, Path, maximum = 2147483647, description = "Chosen by the client."),
        ("X-TAGNAME" = Option<String>, Header, description = super::openapi::TAG_NAME),
    ),
    request_body(content = Option<ChannelFields>, description = "May be left out. With `X-TAGNAME` the name is the tag's."),
    responses(
        (status = 201, body = ChannelCreated),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`CHANNEL_INUSE`, `MAX_CHANNEL_REACH`, `MAX_TAG_REACH`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`: no number that a channel can have", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    let id = ChannelId::parse(&id).ok_or(ApiError::NoChannel)?;
    let tag = tag(&headers)?;
    let name = Fields::parse_optional(&body)?.text("channel_name")?;
    let account = caller.account;
    let _lock = api.desk().lock(account).await;
    let entry = api.view(move |view| {
        let (mut channel, is_new) = match view.channel(account, id)? {
            Some(channel) => (channel, false),
            None => (Channel::default(), true),
        };
        if is_new && view.channels(account)?.len() >= CHANNELS_PER_ACCOUNT_MAX {
            return Err(ApiError::MaxChannelReach.into());
        }
        let Some(tag) = tag else {
            channel.name = name.unwrap_or_default();
            return is_new.then_some(channel).ok_or(ApiError::ChannelInUse.into());
        };
        if has_tag(view, account, id, &channel, &tag)? {
            return Err(ApiError::ChannelInUse.into());
        }
        declare(&mut channel, tag, name)?;
        Ok(channel)
    });
    put(&api, account, id, entry.await?, None).await?;
    Ok(json(StatusCode::CREATED, &ChannelCreated { channel: id }))
}

/// Names a channel. With `X-TAGNAME`: that tag of it only.
#[utoipa::path(
    put,
    path = "/v2/channel/{channel_id}",
    tag = "channel",
    params(
        ("channel_id" = u32, Path, maximum = 2147483647),
        ("X-TAGNAME" = Option<String>, Header, description = super::openapi::TAG_NAME),
    ),
    request_body = ChannelFields,
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_JSON_FORMAT`, `BAD_PARAMETER`", body = ErrorBody),
        (status = 403, description = "`MAX_TAG_REACH`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`, `NO_TAG`", body = ErrorBody),
    ),
)]
pub(super) async fn update(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    Whole(body): Whole,
) -> Result<Response, ApiError> {
    let id = ChannelId::parse(&id).ok_or(ApiError::NoChannel)?;
    let tag = tag(&headers)?;
    let name = Fields::parse(&body)?.text("channel_name")?;
    let account = caller.account;
    let _lock = api.desk().lock(account).await;
    let entry = api.view(move |view| {
        let (_, mut channel) = find(view, account, Some(id))?;
        match tag {
            Some(tag) if !has_tag(view, account, id, &channel, &tag)? => return Err(ApiError::NoTag.into()),
            Some(tag) if name.is_some() => declare(&mut channel, tag, name)?,
            Some(_) => {}
            None => channel.name = name.unwrap_or(channel.name),
        }
        Ok(channel)
    });
    put(&api, account, id, entry.await?, None).await?;
    Ok(done())
}

/// Removes a channel with its datapoints and events, and the mappings of devices to it. With `X-TAGNAME`: that tag and its
/// datapoints only.
#[utoipa::path(
    delete,
    path = "/v2/channel/{channel_id}",
    tag = "channel",
    params(
        ("channel_id" = u32, Path, maximum = 2147483647),
        ("X-TAGNAME" = Option<String>, Header, description = super::openapi::TAG_NAME),
    ),
    responses(
        (status = 200, body = Done),
        (status = 400, description = "`BAD_PARAMETER`", body = ErrorBody),
        (status = 404, description = "`NO_CHANNEL`, `NO_TAG`", body = ErrorBody),
    ),
)]
pub(super) async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = ChannelId::parse(&id).ok_or(ApiError::NoChannel)?;
    let account = caller.account;
    let _lock = api.desk().lock(account).await;
    match tag(&headers)? {
        Some(tag) => remove_tag(&api, account, id, tag).await?,
        None => {
            must_exist(&api, account, id).await?;
            api.desk().remove_channel(account, id).await?;
            // The store has unmapped them in its rows; what the cores hold in memory follows.
            let unmap = || Query::UnmapChannel { account, channel: id };
            for answer in api.cores().ask_all(unmap).await? {
                succeeded(answer)?;
            }
        }
    }
    Ok(done())
}

async fn remove_tag(api: &Api, account: AccountId, id: ChannelId, tag: Box<str>) -> Result<(), ApiError> {
    let name = tag.clone();
    let entry = api.view(move |view| {
        let (_, mut channel) = find(view, account, Some(id))?;
        if !has_tag(view, account, id, &channel, &name)? {
            return Err(ApiError::NoTag.into());
        }
        channel.tags.remove(&name);
        Ok(channel)
    });
    let removed = Record::TagRemoved {
        account,
        channel: id,
        tag,
    };
    put(api, account, id, entry.await?, Some(removed)).await
}

fn has_tag(view: &View<'_>, account: AccountId, id: ChannelId, channel: &Channel, tag: &str) -> Result<bool, Refused> {
    if channel.tags.contains_key(tag) {
        return Ok(true);
    }
    let used = view.tags(account, id)?;
    Ok(used.iter().any(|usage| &*usage.tag == tag))
}

/// Declares a tag, or gives a declared one this name.
fn declare(channel: &mut Channel, tag: Box<str>, name: Option<String>) -> Result<(), ApiError> {
    if !channel.tags.contains_key(&tag) && channel.tags.len() >= TAGS_PER_CHANNEL_MAX {
        return Err(ApiError::MaxTagReach);
    }
    channel.tags.insert(tag, name);
    Ok(())
}

async fn put(
    api: &Api,
    account: AccountId,
    channel: ChannelId,
    entry: Channel,
    and: Option<Record>,
) -> Result<(), ApiError> {
    let mut records = vec![Record::ChannelPut {
        account,
        channel,
        entry: Box::new(entry),
    }];
    records.extend(and);
    api.persist(records).await
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::http::testing::{Answered, CORES, ONE, OTHER, Platform};
    use crate::registry::channel::ChannelId;
    use crate::registry::event::Event;
    use crate::shard::query::Query;

    async fn with_tag(platform: &Platform, method: &str, tag: &str, body: &str) -> Answered {
        platform
            .call(method, "/v2/channel/3", &[("X-TAGNAME", tag)], body)
            .await
    }

    /// `tag`, `channel_name`, `last_update` of every element.
    async fn tags(platform: &Platform) -> Vec<(Value, Value, Value)> {
        let answer = platform
            .call("GET", "/v2/channel/3", &[("X-WITHTAG", "true")], "")
            .await;
        assert_eq!(answer.status, 200);
        let shown = answer.json();
        let elements = shown.as_array().unwrap().iter();
        elements
            .map(|element| {
                assert_eq!(element["channel"], 3);
                (
                    element["tag"].clone(),
                    element["channel_name"].clone(),
                    element["last_update"].clone(),
                )
            })
            .collect()
    }

    #[tokio::test]
    async fn a_channel_is_shown_with_or_without_its_tags() {
        let platform = Platform::new();
        platform.get("/v2/channel").await.is(200, &json!([]));
        platform.channel(ONE, 3, "water");
        platform.channel(ONE, 0, "");
        platform.channel(OTHER, 4, "theirs");
        platform.datapoint(ONE, 3, 1_000, "", r#"{"a":1}"#);
        platform.datapoint(ONE, 3, 2_000, "inlet", r#"{"a":1}"#);
        with_tag(&platform, "POST", "drain", "")
            .await
            .is(201, &json!({"channel": 3}));
        let zero = json!({"channel": 0, "channel_name": "", "last_update": null});
        let water = json!({"channel": 3, "channel_name": "water", "last_update": "2026-03-04T09:15:02+0100"});
        platform.get("/v2/channel").await.is(200, &json!([zero, water]));
        platform.get("/v2/channel/").await.is(200, &json!([zero, water]));
        platform.get("/v2/channel/3").await.is(200, &json!([water]));
        let plain = platform
            .call("GET", "/v2/channel/3", &[("X-WITHTAG", "False")], "")
            .await;
        plain.is(200, &json!([water]));
        let element = |channel: u32, tag: Value, name: &str, last: Value| json!({"channel": channel, "tag": tag, "channel_name": name, "last_update": last});
        let of_three = [
            element(3, json!("drain"), "water", json!(null)),
            element(3, json!("inlet"), "water", json!("2026-03-04T09:15:02+0100")),
            element(3, json!(null), "water", json!("2026-03-04T09:15:01+0100")),
        ];
        let with_tags = [("X-WITHTAG", "1")];
        platform
            .call("GET", "/v2/channel/3", &with_tags, "")
            .await
            .is(200, &json!(of_three));
        let [one, two, three] = of_three;
        let all = json!([element(0, json!(null), "", json!(null)), one, two, three]);
        platform.call("GET", "/v2/channel", &with_tags, "").await.is(200, &all);
        for path in ["/v2/channel", "/v2/channel/3"] {
            platform
                .call("GET", path, &[("X-WITHTAG", "yes")], "")
                .await
                .is_refused(400, "BAD_PARAMETER");
        }
    }

    #[tokio::test]
    async fn what_is_no_channel_of_the_account_is_not_there() {
        let platform = Platform::new();
        platform.channel(OTHER, 4, "theirs");
        for id in ["4", "5", "-1", "2147483648", "1.0", "x", "%FF", "+4", "%204"] {
            let path = format!("/v2/channel/{id}");
            for (method, body) in [("GET", ""), ("PUT", "{}"), ("DELETE", "")] {
                platform
                    .call(method, &path, &[], body)
                    .await
                    .is_refused(404, "NO_CHANNEL");
            }
        }
        let theirs = platform.call_as(OTHER, "GET", "/v2/channel/4", &[], "").await;
        assert_eq!(theirs.json()[0]["channel_name"], "theirs");
    }

    #[tokio::test]
    async fn a_channel_is_created_once_and_within_its_range() {
        let platform = Platform::new();
        for id in ["0", "2147483647"] {
            let created = platform.call("POST", &format!("/v2/channel/{id}"), &[], "").await;
            created.is(201, &json!({"channel": id.parse::<u32>().unwrap()}));
        }
        platform
            .call("POST", "/v2/channel/0", &[], "")
            .await
            .is_refused(403, "CHANNEL_INUSE");
        for id in ["2147483648", "-1", "x"] {
            platform
                .call("POST", &format!("/v2/channel/{id}"), &[], "")
                .await
                .is_refused(404, "NO_CHANNEL");
        }
        let named = platform
            .call("POST", "/v2/channel/5", &[], r#"{"channel_name":"five"}"#)
            .await;
        assert_eq!(named.status, 201);
        assert_eq!(platform.get("/v2/channel/5").await.json()[0]["channel_name"], "five");
        platform
            .call("POST", "/v2/channel/6", &[], "{")
            .await
            .is_refused(400, "BAD_JSON_FORMAT");
        // Another account has numbers of its own.
        assert_eq!(
            platform.call_as(OTHER, "POST", "/v2/channel/0", &[], "").await.status,
            201
        );
    }

    #[tokio::test]
    async fn a_tag_is_declared_and_its_channel_with_it() {
        let platform = Platform::new();
        with_tag(&platform, "POST", "inlet", "")
            .await
            .is(201, &json!({"channel": 3}));
        with_tag(&platform, "POST", "inlet", "")
            .await
            .is_refused(403, "CHANNEL_INUSE");
        platform.datapoint(ONE, 3, 0, "seen", "{}");
        with_tag(&platform, "POST", "seen", "")
            .await
            .is_refused(403, "CHANNEL_INUSE");
        with_tag(&platform, "POST", "a/b", "")
            .await
            .is_refused(400, "BAD_PARAMETER");
        with_tag(&platform, "POST", "UTF-8''%C3%A4", "")
            .await
            .is(201, &json!({"channel": 3}));
        let names: Vec<_> = tags(&platform).await.into_iter().map(|(tag, ..)| tag).collect();
        assert_eq!(names, [json!("inlet"), json!("seen"), json!("ä"), json!(null)]);
        // An empty one is none.
        with_tag(&platform, "POST", "", "")
            .await
            .is_refused(403, "CHANNEL_INUSE");
    }

    #[tokio::test]
    async fn a_change_names_the_channel_or_one_tag_of_it() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "");
        platform.datapoint(ONE, 3, 0, "inlet", "{}");
        with_tag(&platform, "POST", "drain", "").await;
        let put = async |body: &str| platform.call("PUT", "/v2/channel/3", &[], body).await;
        put(r#"{"channel_name":"water"}"#).await.is_done();
        put("{}").await.is_done();
        with_tag(&platform, "PUT", "inlet", r#"{"channel_name":"in"}"#)
            .await
            .is_done();
        with_tag(&platform, "PUT", "inlet", "{}").await.is_done();
        with_tag(&platform, "PUT", "other", r#"{"channel_name":"x"}"#)
            .await
            .is_refused(404, "NO_TAG");
        let names: Vec<_> = tags(&platform)
            .await
            .into_iter()
            .map(|(tag, name, _)| (tag, name))
            .collect();
        let expected = [
            (json!("drain"), "water"),
            (json!("inlet"), "in"),
            (json!(null), "water"),
        ];
        assert_eq!(names, expected.map(|(tag, name)| (tag, json!(name))));
        put("").await.is_refused(400, "BAD_JSON_FORMAT");
        put("{").await.is_refused(400, "BAD_JSON_FORMAT");
        put("[]").await.is_refused(400, "BAD_PARAMETER");
        put(r#"{"channel_name":3}"#).await.is_refused(400, "BAD_PARAMETER");
        assert_eq!(platform.get("/v2/channel/3").await.json()[0]["channel_name"], "water");
    }

    #[tokio::test]
    async fn a_tag_is_removed_with_its_datapoints_and_the_channel_stays() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        platform.datapoint(ONE, 3, 1_000, "", r#"{"a":1}"#);
        platform.datapoint(ONE, 3, 2_000, "inlet", r#"{"a":2}"#);
        with_tag(&platform, "PUT", "inlet", r#"{"channel_name":"in"}"#)
            .await
            .is_done();
        with_tag(&platform, "POST", "drain", "").await;
        with_tag(&platform, "DELETE", "inlet", "").await.is_done();
        with_tag(&platform, "DELETE", "inlet", "")
            .await
            .is_refused(404, "NO_TAG");
        with_tag(&platform, "DELETE", "drain", "").await.is_done();
        let left = [(json!(null), json!("water"), json!("2026-03-04T09:15:01+0100"))];
        assert_eq!(tags(&platform).await, left);
        // If it comes again, it is a new one.
        platform.datapoint(ONE, 3, 3_000, "inlet", r#"{"a":3}"#);
        assert_eq!(tags(&platform).await[0].1, "water");
    }

    #[tokio::test]
    async fn a_channel_that_is_removed_takes_datapoints_events_and_mappings_along() {
        let platform = Platform::new();
        platform.channel(ONE, 3, "water");
        platform.channel(ONE, 4, "");
        platform.channel(OTHER, 3, "theirs");
        platform.device(ONE, "d", Some(3));
        platform.device(OTHER, "d", Some(3));
        platform.datapoint(ONE, 3, 0, "", r#"{"a":1}"#);
        for channel in [3, 4] {
            let event = Event {
                channel: ChannelId::new(channel),
                ..Event::default()
            };
            platform.desk.create_event(ONE, event).await.unwrap();
        }
        platform.asked();
        platform.call("DELETE", "/v2/channel/3", &[], "").await.is_done();
        let asked = platform.asked();
        assert_eq!(asked.len(), usize::from(CORES), "every core is told");
        let unmap = Query::UnmapChannel {
            account: ONE,
            channel: ChannelId::new(3).unwrap(),
        };
        assert!(asked.iter().all(|(_, query)| *query == unmap));
        assert_eq!(platform.get("/v2/device/d").await.json()[0]["mapped_ch"], json!(null));
        let events = platform.get("/v2/event").await.json();
        assert_eq!(
            (events.as_array().unwrap().len(), &events[0]["mapped_ch"]),
            (1, &json!(4))
        );
        platform.get("/v2/channel/3").await.is_refused(404, "NO_CHANNEL");
        platform
            .call("DELETE", "/v2/channel/3", &[], "")
            .await
            .is_refused(404, "NO_CHANNEL");
        let theirs = platform.call_as(OTHER, "GET", "/v2/device/d", &[], "").await;
        assert_eq!(theirs.json()[0]["mapped_ch"], 3);
        // One of the same number is another one.
        platform.call("POST", "/v2/channel/3", &[], "").await;
        let stream = platform.call("GET", "/v2/stream/3", &[("X-ENDTIME", "last")], "").await;
        assert_eq!(stream.json()["stream"], json!([]));
    }

    #[test]
    fn a_channel_has_a_bounded_number_of_declared_tags() {
        use super::*;
        let mut channel = Channel::default();
        for tag in 0..TAGS_PER_CHANNEL_MAX {
            declare(&mut channel, tag.to_string().into(), None).unwrap();
        }
        assert_eq!(declare(&mut channel, "more".into(), None), Err(ApiError::MaxTagReach));
        assert_eq!(declare(&mut channel, "0".into(), Some("zero".to_owned())), Ok(()));
    }
}
