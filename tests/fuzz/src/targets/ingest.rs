//! From a payload to a stored value, and from stored values to what is read of them: serde_json, rmp-serde and form_urlencoded
//! read the same bytes, and must find the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fuzz::ingest::aggregate::{Aggregate, Aggregator};
use fuzz::ingest::json::{self, settle};
use fuzz::ingest::number::Number;
use fuzz::ingest::topic::{Format, Purpose, purpose};
use fuzz::ingest::{decode, payload, trigger};
use fuzz::limits::VALUE_DEPTH_MAX;
use fuzz::registry::device::{check_device_id, is_name};
use fuzz::registry::event::{Event, Operator};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// What serde_json takes for itself where it reads a name; nobody else does.
const THEIR_OWN_NAMES: &[u8] = b"$serde_json::private";

pub fn check(bytes: &[u8]) {
    if bytes.windows(THEIR_OWN_NAMES.len()).any(|part| part == THEIR_OWN_NAMES) {
        return;
    }
    message_pack(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        for format in [Format::Json, Format::V1] {
            refused(|out| payload::value(format, bytes, out));
        }
        return refused(|out| payload::state(bytes, out));
    };
    json_value(text);
    form(text);
    state(text);
    aggregates(text);
    rule(text);
    number(text);
    topic(text);
}

/// What is refused leaves no trace.
fn refused(convert: impl FnOnce(&mut String) -> Result<(), payload::BadPayload>) {
    let mut out = "before".to_owned();
    assert!(convert(&mut out).is_err());
    assert_eq!(out, "before");
}

/// What is appended to what was there, if it is not refused.
fn appended(convert: impl Fn(&mut String) -> Result<(), payload::BadPayload>) -> Option<String> {
    let mut out = "before".to_owned();
    if convert(&mut out).is_err() {
        refused(convert);
        return None;
    }
    let value = out.strip_prefix("before").expect("it is appended").to_owned();
    is_settled(&value);
    assert!(matches!(serde_json::from_str(&value), Ok(Value::Object(_))), "{value}");
    Some(value)
}

/// Whole, bounded, and no name twice: there is nothing to do to it any more.
fn is_settled(value: &str) {
    assert_eq!(settle(value, VALUE_DEPTH_MAX, None).as_deref(), Ok(value));
    assert!(depth(value) <= VALUE_DEPTH_MAX);
    serde_json::from_str::<OneOfEach>(value).expect("JSON without a name twice");
    let mut reader = json::Reader::new(value);
    reader.skip();
    assert!(reader.begin().is_none(), "one value, which is passed over whole");
}

/// Any value in which no object has a name twice.
struct OneOfEach;

impl<'de> Deserialize<'de> for OneOfEach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOfEach, D::Error> {
        deserializer.deserialize_any(OneOfEach)
    }
}

impl<'de> Visitor<'de> for OneOfEach {
    type Value = OneOfEach;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<OneOfEach, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<OneOfEach, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<OneOfEach, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<OneOfEach, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<OneOfEach, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<OneOfEach, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<OneOfEach, A::Error> {
        while elements.next_element::<OneOfEach>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<OneOfEach, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, OneOfEach)) = members.next_entry::<String, OneOfEach>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(self)
    }
}

/// How deep the brackets of a JSON text go.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut is_string, mut is_escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !is_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn json_value(text: &str) {
    let found = appended(|out| payload::value(Format::Json, text.as_bytes(), out));
    let trimmed = json::trim(text);
    let theirs: Option<Value> = serde_json::from_str(trimmed).ok();
    let expected = match theirs {
        Some(object @ Value::Object(_)) => Some(object).filter(|_| depth(trimmed) <= VALUE_DEPTH_MAX),
        None | Some(Value::Null) => None,
        Some(value) => {
            let object = Value::Object(Map::from_iter([("value1".to_owned(), value)]));
            Some(object).filter(|_| depth(trimmed) < VALUE_DEPTH_MAX)
        }
    };
    let found: Option<Value> = found.map(|found| serde_json::from_str(&found).expect("it is settled"));
    assert_eq!(found, expected);
}

/// `v=..&v2=..`
fn form(text: &str) {
    let Some(value) = appended(|out| payload::value(Format::V1, text.as_bytes(), out)) else {
        return;
    };
    let mut expected = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(json::trim(text).as_bytes()) {
        let name = match &*name {
            "v" => "value1",
            "v2" => "value2",
            "v3" => "value3",
            "v4" => "value4",
            _ => continue,
        };
        expected.insert(name.to_owned(), value.into_owned());
    }
    same_pairs(&value, &expected, |text| text);
}

fn state(text: &str) {
    let Some(value) = appended(|out| payload::state(text.as_bytes(), out)) else {
        return;
    };
    let trimmed = json::trim(text);
    if trimmed.starts_with('{') {
        let mut theirs: Map<String, Value> = serde_json::from_str(trimmed).expect("it was settled");
        theirs.remove(payload::LAST_UPDATE);
        let ours: Map<String, Value> = serde_json::from_str(&value).expect("it is settled");
        assert_eq!(ours, theirs);
        return;
    }
    let pairs = form_urlencoded::parse(trimmed.as_bytes());
    let mut expected: BTreeMap<String, String> = pairs
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    expected.remove(payload::LAST_UPDATE);
    same_pairs(&value, &expected, str::trim);
}

/// Numbers as numbers, all else as text, as `shown` has it.
fn same_pairs(value: &str, expected: &BTreeMap<String, String>, shown: impl Fn(&str) -> &str) {
    let value: Map<String, Value> = serde_json::from_str(value).expect("it is settled");
    assert_eq!(value.len(), expected.len());
    for (name, text) in expected {
        match &value[name] {
            Value::String(found) => assert_eq!(found, shown(text)),
            found => {
                let theirs: Value = serde_json::from_str(text.trim()).expect("a number as JSON has it");
                assert!(theirs.is_number() && theirs == *found);
            }
        }
    }
}

/// MessagePack in a binary payload.
fn message_pack(bytes: &[u8]) {
    let value = appended(|out| payload::value(Format::Binary, bytes, out)).expect("anything is bytes");
    assert!(value.len() <= 2 * bytes.len() + 13);
    let found = decode::message_pack(&value);
    if let Some(text) = &found {
        is_settled(text);
        // A control character takes the most: six for one.
        assert!(text.len() <= 6 * bytes.len() + 16);
    }
    let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
    let theirs = Value::deserialize(&mut deserializer).ok();
    let is_all = deserializer.position() == bytes.len() as u64;
    assert!(
        is_all || theirs.is_none() || found.is_none(),
        "it goes on behind its one value"
    );
    match theirs.filter(|_| is_all) {
        // They make 64 bits of a float of 32, and so other digits; and text of a name that is binary, where it is UTF-8.
        _ if bytes.iter().any(|byte| matches!(byte, 0xca | 0xc4..=0xc6)) => {}
        Some(theirs) if depth(&theirs.to_string()) <= VALUE_DEPTH_MAX => {
            let found = found.expect("what they read, we read");
            same(&serde_json::from_str(&found).expect("it is settled"), &theirs);
        }
        // Names that are no text, binary and extensions are beyond them, and depth is beyond us.
        _ => {}
    }
}

/// The same but for the last digits of floats, which serde_json does not always read to the letter.
fn same(ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Number(ours), Value::Number(theirs)) => {
            let (ours, theirs) = (ours.as_f64().expect("finite"), theirs.as_f64().expect("finite"));
            assert!((ours - theirs).abs() <= 1e-12 * theirs.abs(), "{ours} {theirs}");
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            ours.iter().zip(theirs).for_each(|(ours, theirs)| same(ours, theirs));
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            ours.iter().for_each(|(name, ours)| same(ours, &theirs[name]));
        }
        _ => assert_eq!(ours, theirs),
    }
}

/// Every line is a value of a stream, if it is one.
fn aggregates(text: &str) {
    let values: Vec<String> = text
        .lines()
        .filter_map(|line| appended(|out| payload::value(Format::Json, line.as_bytes(), out)))
        .collect();
    let mut fields: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for value in &values {
        collect(
            &serde_json::from_str(value).expect("it is settled"),
            "",
            "",
            &mut fields,
        );
    }
    for aggregate in [Aggregate::Avg, Aggregate::Sum, Aggregate::Min, Aggregate::Max] {
        let mut aggregator = Aggregator::new(aggregate);
        values.iter().for_each(|value| aggregator.add(value));
        let is_cut = aggregator.is_cut();
        let figures = aggregator.finish();
        if is_cut {
            continue;
        }
        for (path, numbers) in &fields {
            let size: f64 = numbers.iter().map(|number| number.abs()).sum();
            if size > 1e300 {
                continue;
            }
            let figure = figures[path].as_f64().expect("a number");
            let expected = match aggregate {
                Aggregate::Avg => numbers.iter().sum::<f64>() / numbers.len() as f64,
                Aggregate::Sum => numbers.iter().sum(),
                Aggregate::Min => numbers.iter().copied().fold(f64::INFINITY, f64::min),
                Aggregate::Max => numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            };
            assert!(
                (figure - expected).abs() <= 1e-9 * size,
                "{aggregate:?} of {path:?}: {figure}"
            );
        }
        assert!(figures.keys().all(|path| fields.contains_key(path)));
    }
}

/// Every number by the path to it.
fn collect(value: &Value, path: &str, separator: &str, fields: &mut BTreeMap<String, Vec<f64>>) {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().expect("finite");
            fields.entry(path.to_owned()).or_default().push(number);
        }
        Value::Array(elements) => elements
            .iter()
            .for_each(|value| collect(value, path, separator, fields)),
        Value::Object(members) => members
            .iter()
            .for_each(|(name, value)| collect(value, &format!("{path}{separator}{name}"), ":", fields)),
        _ => {}
    }
}

/// A value, a path and a threshold, on a line each: what a rule reports is a part of the value, and says nothing of what is not there.
fn rule(text: &str) {
    let mut lines = text.lines();
    let value = lines
        .next()
        .and_then(|line| appended(|out| payload::value(Format::Json, line.as_bytes(), out)));
    let (Some(value), Some(source)) = (value, lines.next()) else {
        return;
    };
    let operators = [
        Operator::Less,
        Operator::Greater,
        Operator::LessOrEqual,
        Operator::GreaterOrEqual,
        Operator::Equal,
        Operator::NotEqual,
    ];
    let threshold = lines.next().unwrap_or_default();
    for operator in operators {
        let event = Event {
            source: source.to_owned(),
            operator,
            threshold: threshold.to_owned(),
            ..Event::default()
        };
        let Some(found) = trigger::matches(&event, &value) else {
            continue;
        };
        assert!(value.contains(&*found));
        let found: Value = serde_json::from_str(&found).expect("a scalar");
        assert!(!source.is_empty() && !found.is_null() && !found.is_object() && !found.is_array());
    }
}

fn number(text: &str) {
    let Some(number) = Number::parse(text) else {
        return;
    };
    let theirs: f64 = serde_json::from_str(text).expect("what is a number here is one in JSON");
    let ours = number.as_float();
    assert!(ours.is_finite() && (ours - theirs).abs() <= 1e-12 * ours.abs());
    assert!(number.compare(number).is_eq());
}

fn topic(text: &str) {
    for has_v1 in [false, true] {
        let Ok(Purpose::Data { format, device, tag }) = purpose(text, has_v1) else {
            continue;
        };
        assert!(check_device_id(device).is_ok() && tag.is_none_or(is_name));
        let whole = match (format, tag) {
            (Format::V1, None) if has_v1 => device.to_owned(),
            (Format::V1, _) => panic!("no such topic"),
            (Format::Json, tag) => format!("json/{device}/{}", tag.unwrap_or_default()),
            (Format::Binary, tag) => format!("binary/{device}/{}", tag.unwrap_or_default()),
        };
        // The separator before a tag may be left out with it.
        assert_eq!(whole.trim_end_matches('/'), text.trim_end_matches('/'));
    }
}
