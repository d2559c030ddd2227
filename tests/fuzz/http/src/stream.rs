//! What a read of the platform's one stream is held against: a list.

use std::time::UNIX_EPOCH;

use axum::http::HeaderMap;
use serde_json::Value;
use skein::limits::STREAM_ROWS_MAX;
use skein::registry::channel::ChannelId;
use skein::registry::datapoint::{DatapointId, DatapointRow};
use skein::shard::record::{Datapoint, Record};

use crate::{ACCOUNT, Answer, DEVICE, START_MS};

/// A value a minute.
const STEP_MS: u64 = 60_000;
/// Tag, value, and what of it is in an aggregate.
const VALUES: [(&str, &str, Option<f64>); 5] = [
    ("", r#"{"temp":20}"#, Some(20.0)),
    ("", r#"{"temp":21.5,"at":{"x":[1,2]}}"#, Some(21.5)),
    ("night", r#"{"temp":-3}"#, Some(-3.0)),
    ("night", r#"{"value1":"82a161c3a16205"}"#, None),
    ("", r#"{"temp":4}"#, Some(4.0)),
];
pub const NEWEST_MS: u64 = START_MS + STEP_MS * VALUES.len() as u64;

fn at_ms(number: usize) -> u64 {
    START_MS + STEP_MS * number as u64
}

fn id(number: usize) -> DatapointId {
    DatapointId::new(at_ms(number), 0, number as u32)
}

pub fn records(channel: ChannelId) -> impl Iterator<Item = Record> {
    VALUES.into_iter().enumerate().map(move |(number, (tag, value, _))| {
        Record::Datapoint(Box::new(Datapoint {
            account: ACCOUNT,
            channel,
            id: id(number),
            row: DatapointRow {
                tag,
                device: DEVICE,
                value,
            }
            .pack(),
            origin: None,
            is_awaited: true,
        }))
    })
}

/// What the headers ask for.
struct Asked<'h> {
    /// Of the values, by their numbers: all that are in the range.
    numbers: Vec<usize>,
    /// Of them the newest; `None`: all.
    rows_max: Option<usize>,
    is_descending: bool,
    aggregate: Option<&'h str>,
}

/// Of a request that has the token.
pub fn check(headers: &HeaderMap, answer: &Answer) {
    let Some(asked) = asked(headers) else {
        return;
    };
    assert_eq!(answer.status, 200, "{headers:?}");
    let json = answer.json();
    match asked.aggregate {
        Some(kind) => is_folded(&asked.numbers, kind, &json),
        None => {
            let mut numbers = asked.numbers;
            let left_out = asked.rows_max.map_or(0, |rows| numbers.len().saturating_sub(rows));
            numbers.drain(..left_out);
            if asked.is_descending {
                numbers.reverse();
            }
            let rows = json["stream"].as_array().expect("a list of rows");
            let shown: Vec<_> = rows
                .iter()
                .map(|row| (row["_id"].as_str(), row["value"].clone()))
                .collect();
            let ids: Vec<_> = numbers.iter().map(|number| id(*number).to_hex()).collect();
            let value = |number: &usize| serde_json::from_str(VALUES[*number].1).expect("it is JSON");
            let expected: Vec<(_, Value)> = ids
                .iter()
                .map(|id| Some(&**id))
                .zip(numbers.iter().map(value))
                .collect();
            assert_eq!(shown, expected, "{headers:?}");
        }
    }
}

fn is_folded(numbers: &[usize], kind: &str, json: &Value) {
    let values: Vec<f64> = numbers.iter().filter_map(|number| VALUES[*number].2).collect();
    let sum: f64 = values.iter().sum();
    let expected = match kind {
        "sum" => sum,
        "avg" => sum / values.len() as f64,
        "min" => values.iter().copied().fold(f64::INFINITY, f64::min),
        _ => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    };
    let shown = json["result"][0]["value"]["temp"].as_f64();
    match shown {
        Some(shown) => assert!(!values.is_empty() && (shown - expected).abs() < 1e-9, "{kind}: {json}"),
        None => assert!(values.is_empty(), "{kind}: {json}"),
    }
}

/// `None`: it is not asked in words that are known here; the broker knows more of them.
fn asked(headers: &HeaderMap) -> Option<Asked<'_>> {
    let end = time(word(headers, "x-endtime")??)?;
    let start = match word(headers, "x-starttime")? {
        Some(text) => time(text)?,
        None => None,
    };
    let tag = word(headers, "x-tagname")?;
    if tag.is_some_and(|tag| !tag.bytes().all(|byte| byte.is_ascii_alphanumeric()) || tag.len() > 64) {
        return None;
    }
    let rows_max = match word(headers, "x-pagelimit")? {
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        Some(_) => return None,
        None => 1,
    };
    let is_descending = match word(headers, "x-pagesort")? {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(_) => return None,
    };
    let aggregate = word(headers, "x-aggregate")?;
    let is_known = aggregate.is_none_or(|kind| ["avg", "sum", "min", "max"].contains(&kind))
        && word(headers, "x-decode")?.is_none_or(|kind| kind == "msgpack")
        && (1..=STREAM_ROWS_MAX).contains(&rows_max)
        && end.is_none_or(|end| start.is_none_or(|start| start <= end));
    let range = start.unwrap_or(0)..=end.map_or(u64::MAX, |end| end + 999);
    let is_asked_for =
        |number: &usize| range.contains(&at_ms(*number)) && tag.is_none_or(|tag| tag == VALUES[*number].0);
    is_known.then(|| Asked {
        numbers: (0..VALUES.len()).filter(is_asked_for).collect(),
        rows_max: end.is_none().then_some(rows_max),
        is_descending,
        aggregate,
    })
}

/// One header of plain text; an empty one is none.
fn word<'h>(headers: &'h HeaderMap, name: &str) -> Option<Option<&'h str>> {
    let all: Vec<_> = headers.get_all(name).iter().collect();
    match all[..] {
        [] => Some(None),
        [one] => one.to_str().ok().map(|text| Some(text).filter(|text| !text.is_empty())),
        _ => None,
    }
}

/// `last`, or a second of this era in the one form that humantime and the broker both read, in milliseconds.
fn time(text: &str) -> Option<Option<u64>> {
    if text == "last" {
        return Some(None);
    }
    if text.len() != "2026-03-04T08:15:00Z".len() || text.starts_with("9999") || text.ends_with(":60Z") {
        return None;
    }
    let at = humantime::parse_rfc3339(text).ok()?;
    let at = at.duration_since(UNIX_EPOCH).ok()?;
    Some(Some(at.as_secs() * 1_000))
}
