//! A payload -> the JSON object that is stored of it.
//!
//! Called  by `pipeline`, for data and for state reports.
//! Holds   - what is appended is one JSON object as `json::settle` leaves one, at most `VALUE_DEPTH_MAX` deep;
//!         - a refused payload leaves `out` as it was;
//!         - numbers are those of JSON's grammar and finite, everywhere: in a form `NaN`, `+5`, `007` and `1e400` are text;
//!         - a form's text must be UTF-8, before its escapes are resolved and after.

use std::borrow::Cow;

use super::json::{self, BadJson};
use super::topic::Format;
use crate::limits::VALUE_DEPTH_MAX;

/// The payload is not what its topic says; nothing of it can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPayload;

impl From<BadJson> for BadPayload {
    fn from(_: BadJson) -> BadPayload {
        BadPayload
    }
}

/// Ours in a device's state: when it was reported.
pub const LAST_UPDATE: &str = "last_update";

/// The value of a datapoint.
pub fn value(format: Format, payload: &[u8], out: &mut String) -> Result<(), BadPayload> {
    match format {
        Format::Json => from_json(text(payload)?, out),
        Format::Binary => {
            from_binary(payload, out);
            Ok(())
        }
        Format::V1 => from_v1(text(payload)?, out),
    }
}

/// The state of a device: a form of any names, or a JSON object.
pub fn state(payload: &[u8], out: &mut String) -> Result<(), BadPayload> {
    let text = text(payload)?;
    if text.starts_with('{') {
        let object = json::settle(text, VALUE_DEPTH_MAX, Some(LAST_UPDATE))?;
        out.push_str(&object);
        return Ok(());
    }
    if !text.contains('=') {
        return Err(BadPayload);
    }
    let start = out.len();
    let written = write_form(pairs(text), out);
    // A name that is there twice, or is ours, is cut out as it would be of an object.
    let settled = written.and_then(|()| Ok(json::settle(&out[start..], VALUE_DEPTH_MAX, Some(LAST_UPDATE))?));
    match settled {
        Ok(Cow::Borrowed(_)) => Ok(()),
        Ok(Cow::Owned(object)) => {
            out.truncate(start);
            out.push_str(&object);
            Ok(())
        }
        Err(bad) => {
            out.truncate(start);
            Err(bad)
        }
    }
}

fn text(payload: &[u8]) -> Result<&str, BadPayload> {
    std::str::from_utf8(payload).map(json::trim).map_err(|_| BadPayload)
}

fn from_json(text: &str, out: &mut String) -> Result<(), BadPayload> {
    match text.as_bytes().first() {
        Some(b'{') => out.push_str(&json::settle(text, VALUE_DEPTH_MAX, None)?),
        // What begins so is null, or nothing.
        Some(b'n') | None => return Err(BadPayload),
        Some(_) => {
            let value1 = json::settle(text, VALUE_DEPTH_MAX - 1, None)?;
            out.push_str(r#"{"value1":"#);
            out.push_str(&value1);
            out.push('}');
        }
    }
    Ok(())
}

fn from_binary(payload: &[u8], out: &mut String) {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    out.reserve(2 * payload.len() + 13);
    out.push_str(r#"{"value1":""#);
    out.extend(payload.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    out.push_str(r#""}"#);
}

fn from_v1(text: &str, out: &mut String) -> Result<(), BadPayload> {
    let mut values: [Option<Cow<'_, str>>; 4] = [None, None, None, None];
    for pair in pairs(text) {
        let (name, value) = pair?;
        let place = match &*name {
            "v" => 0,
            "v2" => 1,
            "v3" => 2,
            "v4" => 3,
            _ => continue,
        };
        values[place] = Some(value);
    }
    let mut separator = '{';
    for (value, name) in values.iter().zip(["value1", "value2", "value3", "value4"]) {
        if let Some(value) = value {
            out.push(separator);
            json::push_string(name, out);
            out.push(':');
            push_typed(value, value, out);
            separator = ',';
        }
    }
    if separator == '{' {
        return Err(BadPayload);
    }
    out.push('}');
    Ok(())
}

/// An object of all pairs, as they come.
fn write_form<'t>(
    pairs: impl Iterator<Item = Result<Pair<'t>, BadPayload>>,
    out: &mut String,
) -> Result<(), BadPayload> {
    out.push('{');
    for (at, pair) in pairs.enumerate() {
        let (name, value) = pair?;
        if at > 0 {
            out.push(',');
        }
        json::push_string(&name, out);
        out.push(':');
        push_typed(&value, value.trim(), out);
    }
    out.push('}');
    Ok(())
}

/// `value` as the number it is, white space around it aside; else `otherwise` as a string.
fn push_typed(value: &str, otherwise: &str, out: &mut String) {
    let trimmed = value.trim();
    if json::is_number(trimmed) {
        out.push_str(trimmed);
    } else {
        json::push_string(otherwise, out);
    }
}

type Pair<'t> = (Cow<'t, str>, Cow<'t, str>);

/// `name=value&name=value`, escapes resolved (WHATWG URL, application/x-www-form-urlencoded).
fn pairs(text: &str) -> impl Iterator<Item = Result<Pair<'_>, BadPayload>> {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((resolved(name)?, resolved(value)?))
    })
}

/// `+` is a blank and `%` with two hexadecimal digits a byte; any other `%` stands for itself. The `form_urlencoded` crate would
/// put a replacement character where bytes are not UTF-8, which are refused here.
fn resolved(text: &str) -> Result<Cow<'_, str>, BadPayload> {
    if !text.contains(['+', '%']) {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let escaped = behind.get(..2).filter(|_| *first == b'%');
        let byte = escaped.and_then(|digits| {
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok().map(|()| byte[0])
        });
        rest = if byte.is_some() { &behind[2..] } else { behind };
        bytes.push(byte.unwrap_or(if *first == b'+' { b' ' } else { *first }));
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| BadPayload)
}
