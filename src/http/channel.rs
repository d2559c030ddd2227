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
    let body = api.view(move |view| {
        let mut all = Vec::new();
        for (id, channel) in view.channels(caller.account)? {
            let tags = view.tags(caller.account, id)?;
            all.extend(shown(id, &channel, &tags, with_tag, &caller.zone));
        }
        Ok(to_json(&all))
    });
    Ok(json_text(StatusCode::OK, body.await?))
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
