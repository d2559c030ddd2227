//! The walk through the datapoints of a range, and their text in an answer.

use serde_json::value::RawValue;

use super::query::Range;
use crate::http::answer::to_json;
use crate::http::api::Api;
use crate::http::error::ApiError;
use crate::http::time::{Style, Zone};
use crate::ingest::decode;
use crate::limits::{STREAM_BYTES_MAX, STREAM_LOOKS_PER_VIEW, STREAM_ROWS_MAX};
use crate::registry::access::AccountId;
use crate::registry::channel::ChannelId;
use crate::registry::datapoint::{DatapointId, DatapointRow};
use crate::store::streams::DatapointRange;

/// Shows the datapoints of a range to `each`, until it wants no more. It looks at a bounded number of them in one view.
pub async fn walk<S: Send + 'static>(
    api: &Api,
    account: AccountId,
    channel: ChannelId,
    range: Range,
    newest_first: bool,
    mut sink: S,
    each: fn(&mut S, DatapointId, DatapointRow<'_>) -> bool,
) -> Result<S, ApiError> {
    let Range { from, to, tag } = range;
    let mut range = DatapointRange {
        from,
        to,
        tag: None,
        newest_first,
        rows_max: 0,
    };
    // Of a tag it is known how many there are, and that none is newer than this: a rare one is found soon.
    let mut left = u64::MAX;
    if let Some(name) = tag.clone() {
        let usage = api.view(move |view| Ok(view.tags(account, channel)?.into_iter().find(|tag| tag.tag == name)));
        let Some(usage) = usage.await? else {
            return Ok(sink);
        };
        left = usage.count;
        range.to = range.to.min(DatapointId::last_at(usage.last_ms));
    }
    let mut rest = (range.from <= range.to).then_some(range);
    while let Some(range) = rest {
        let tag = tag.clone();
        let looked = api.view(move |view| {
            let (mut looks, mut last, mut wants_more) = (0, None, true);
            view.walk_datapoints(account, channel, &range, |id, row| {
                if tag.as_deref().is_none_or(|tag| tag == row.tag) {
                    wants_more = each(&mut sink, id, row);
                    left -= 1;
                }
                looks += 1;
                last = Some(id);
                wants_more && left > 0 && looks < STREAM_LOOKS_PER_VIEW
            })?;
            let is_over = !wants_more || left == 0 || looks < STREAM_LOOKS_PER_VIEW;
            let rest = last.filter(|_| !is_over).and_then(|last| behind(range, last));
            Ok((sink, left, rest))
        });
        (sink, left, rest) = looked.await?;
    }
    Ok(sink)
}

/// What is left of a range behind this one.
fn behind(range: DatapointRange, last: DatapointId) -> Option<DatapointRange> {
    let number = |id: DatapointId| {
        let mut bytes = [0; 16];
        bytes[4..].copy_from_slice(&id.0);
        u128::from_be_bytes(bytes)
    };
    let id = |number: u128| {
        let mut bytes = [0; DatapointId::LEN];
        bytes.copy_from_slice(&number.to_be_bytes()[4..]);
        DatapointId(bytes)
    };
    if range.newest_first {
        let to = id(number(last).checked_sub(1)?);
        (range.from <= to).then_some(DatapointRange { to, ..range })
    } else {
        (last < range.to).then(|| DatapointRange {
            from: id(number(last) + 1),
            ..range
        })
    }
}

/// Rows as JSON, in the order in which they come.
pub struct Rows {
    pub zone: Zone,
    pub is_decoding: bool,
    pub rows_max: usize,
    pub bytes_max: usize,
    /// The rows that are asked for are no more than that: it does not matter whether there are others.
    pub is_page: bool,
    /// There was one more, and no room for it.
    pub is_cut: bool,
    text: String,
    /// Where each ends in it.
    ends: Vec<usize>,
}

impl Rows {
    pub fn new(zone: Zone) -> Rows {
        Rows {
            zone,
            is_decoding: false,
            rows_max: STREAM_ROWS_MAX,
            bytes_max: STREAM_BYTES_MAX,
            is_page: false,
            is_cut: false,
            text: String::new(),
            ends: Vec::new(),
        }
    }

    /// False: no more.
    pub fn take(&mut self, id: DatapointId, row: DatapointRow<'_>) -> bool {
        if self.ends.len() >= self.rows_max || self.text.len() >= self.bytes_max {
            self.is_cut = true;
            return false;
        }
        // What is stored was checked before; a broken value would break the whole answer.
        if serde_json::from_str::<&RawValue>(row.value).is_err() {
            tracing::warn!(id = id.to_hex(), "a datapoint is left out: its value is damaged");
            return true;
        }
        let out = &mut self.text;
        out.push_str(r#"{"_id":""#);
        out.push_str(&id.to_hex());
        out.push_str(r#"","tag":"#);
        match row.tag {
            "" => out.push_str("null"),
            tag => out.push_str(&to_json(&tag)),
        }
        out.push_str(r#","value":"#);
        out.push_str(row.value);
        if self.is_decoding
            && let Some(decoded) = decode::message_pack(row.value)
        {
            out.push_str(r#","decoded":"#);
            out.push_str(&decoded);
        }
        out.push_str(r#","at":""#);
        self.zone.write(out, id.at_ms(), Style::Basic);
        out.push_str(r#""}"#);
        self.ends.push(out.len());
        !self.is_page || self.ends.len() < self.rows_max
    }

    /// With commas between them.
    pub fn write(&self, out: &mut String, is_reversed: bool) {
        out.reserve(self.text.len() + self.ends.len() + 2);
        let row = |index: usize| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            &self.text[start..self.ends[index]]
        };
        for place in 0..self.ends.len() {
            if place > 0 {
                out.push(',');
            }
            out.push_str(row(if is_reversed {
                self.ends.len() - 1 - place
            } else {
                place
            }));
        }
    }
}
