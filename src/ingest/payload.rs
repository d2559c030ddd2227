//! A payload -> the JSON object that is stored of it.
//!
//! Called  by `pipeline`, for data and for state reports.
//! Holds   - what is appended is one JSON object as `json::settle` leaves one, at most `VALUE_DEPTH_MAX` deep;
//!         - a refused payload leaves `out` as it was;
//!         - numbers are those of JSON's grammar and finite, everywhere: in a form `NaN`, `+5`, `007` and `1e400` are text;
//!         - a form's text must be UTF-8, before its escapes are resolved and after.

use std::borrow::Cow;

use super::json::{self, BadJson};
use super::number::Number;
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
    if Number::parse(trimmed).is_some() {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn converted(convert: impl FnOnce(&mut String) -> Result<(), BadPayload>) -> Result<String, BadPayload> {
        const BEFORE: &str = "before";
        let mut out = BEFORE.to_owned();
        let result = convert(&mut out);
        let appended = out.strip_prefix(BEFORE).expect("what was there stays").to_owned();
        if result.is_err() {
            assert_eq!(appended, "", "a refused payload leaves nothing");
        }
        result.map(|()| appended)
    }

    #[track_caller]
    fn assert_value(format: Format, payload: impl AsRef<[u8]>, expected: &str) {
        let payload = payload.as_ref();
        let stored = converted(|out| value(format, payload, out));
        assert_eq!(stored.as_deref(), Ok(expected), "{}", String::from_utf8_lossy(payload));
    }

    #[track_caller]
    fn assert_refused(format: Format, payload: impl AsRef<[u8]>) {
        let payload = payload.as_ref();
        let stored = converted(|out| value(format, payload, out));
        assert_eq!(stored, Err(BadPayload), "{}", String::from_utf8_lossy(payload));
    }

    #[track_caller]
    fn assert_state(payload: impl AsRef<[u8]>, expected: Result<&str, BadPayload>) {
        let payload = payload.as_ref();
        let stored = converted(|out| state(payload, out));
        assert_eq!(
            stored.as_deref().map_err(|bad| *bad),
            expected,
            "{}",
            String::from_utf8_lossy(payload)
        );
    }

    #[test]
    fn a_json_object_is_stored_to_the_letter() {
        for object in [
            r#"{"temp":21.5,"rh":48}"#,
            r#"{}"#,
            r#"{"z":{"y":[{"x":1},{"x":2}]},"a":null,"b":[]}"#,
            r#"{ "spaced" : [ 1 , 2 ] ,"n":	"x" }"#,
            r#"{"big":123456789012345678901234567890,"exact":0.10,"e":1E+2,"tiny":1e-400,"neg":-0}"#,
            r#"{"escaped":"\u00e9\n\/ \ud83d\ude00","é":"ü"}"#,
            r#"{"$serde_json::private::RawValue":"[1,"}"#,
            r#"{"$serde_json::private::Number":"1"}"#,
            r#"{"":1}"#,
        ] {
            assert_value(Format::Json, object, object);
            assert_value(Format::Json, format!(" \r\n\t{object} \r\n\t"), object);
        }
    }

    #[test]
    fn other_json_is_stored_as_value1() {
        for (payload, stored) in [
            ("23.5", r#"{"value1":23.5}"#),
            ("0.10", r#"{"value1":0.10}"#),
            ("-7\n", r#"{"value1":-7}"#),
            ("9007199254740993", r#"{"value1":9007199254740993}"#),
            (
                "123456789012345678901234567890",
                r#"{"value1":123456789012345678901234567890}"#,
            ),
            (r#""open""#, r#"{"value1":"open"}"#),
            (r#""""#, r#"{"value1":""}"#),
            ("true", r#"{"value1":true}"#),
            (" false ", r#"{"value1":false}"#),
            ("[1, {\"a\":2}]", r#"{"value1":[1, {"a":2}]}"#),
            ("[]", r#"{"value1":[]}"#),
            (r#"[{"a":1,"a":2}]"#, r#"{"value1":[{"a":2}]}"#),
        ] {
            assert_value(Format::Json, payload, stored);
        }
    }

    #[test]
    fn what_is_no_json_that_could_be_stored_is_refused() {
        for payload in [
            "",
            " ",
            "null",
            " null\n",
            "nul",
            "{",
            "}",
            "{}}",
            "{} {}",
            "[1,]",
            r#"{"a":1,}"#,
            r#"{"a"}"#,
            r#"{a:1}"#,
            "{'a':1}",
            r#"{"a":1 "b":2}"#,
            "open",
            "tru",
            "True",
            "NaN",
            "nan",
            "Infinity",
            "-Infinity",
            r#"{"a":NaN}"#,
            r#"{"a":-Infinity}"#,
            "1e400",
            "-1e400",
            r#"{"a":1e400}"#,
            "+5",
            "007",
            ".5",
            "5.",
            "0x1f",
            "1,5",
            "1 2",
            "v=1.5",
            "\u{feff}1",
            "\u{a0}1",
            r#""\x""#,
            r#""\ud800""#,
            r#"{"\ud800":1}"#,
            "\"a\nb\"",
            "\"open",
            "// 1",
            "1\0",
        ] {
            assert_refused(Format::Json, payload);
        }
        let beyond = "9".repeat(400);
        assert_refused(Format::Json, &beyond);
        for not_utf8 in [
            &b"\xff"[..],
            b"\"\xff\"",
            b"{\"a\":\"\xc3\"}",
            b"\"\xed\xa0\x80\"",
            b"\xef\xbb",
        ] {
            assert_refused(Format::Json, not_utf8);
        }
    }

    #[test]
    fn nesting_is_bounded_and_what_is_stored_can_be_read_again() {
        let arrays = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = |depth: usize| format!("{}0{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let deepest = format!(r#"{{"value1":{}}}"#, arrays(VALUE_DEPTH_MAX - 1));
        assert_value(Format::Json, arrays(VALUE_DEPTH_MAX - 1), &deepest);
        assert!(serde_json::from_str::<serde_json::Value>(&deepest).is_ok());
        assert_refused(Format::Json, arrays(VALUE_DEPTH_MAX));
        assert_value(Format::Json, objects(VALUE_DEPTH_MAX), &objects(VALUE_DEPTH_MAX));
        assert_refused(Format::Json, objects(VALUE_DEPTH_MAX + 1));
        for depth in [10_000, 100_000] {
            assert_refused(Format::Json, arrays(depth));
            assert_refused(Format::Json, "[".repeat(depth));
            assert_refused(Format::Json, objects(depth));
            assert_state(objects(depth), Err(BadPayload));
        }
    }

    #[test]
    fn of_a_name_that_is_there_twice_the_last_wins() {
        for (payload, stored) in [
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"b":2,"a":3}"#),
            (r#"{"a":1, "a":2 , "a":3, "b":0.10}"#, r#"{"a":3, "b":0.10}"#),
            (
                r#"{"o":{"a":1,"a":2},"o":{"b":1,"b":12345678901234567890123}}"#,
                r#"{"o":{"b":12345678901234567890123}}"#,
            ),
            (r#"{"a":1,"\u0061":2}"#, r#"{"\u0061":2}"#),
            (r#"{"\u0061":1,"b":2}"#, r#"{"\u0061":1,"b":2}"#),
            (
                r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#,
                r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#,
            ),
        ] {
            assert_value(Format::Json, payload, stored);
        }
        // More names than are compared as they come.
        let names: String = (0..100).map(|name| format!(r#""n{name}":0,"#)).collect();
        assert_value(Format::Json, format!(r#"{{{names}"n50":1}}"#), &{
            let kept: String = (0..100)
                .filter(|name| *name != 50)
                .map(|name| format!(r#""n{name}":0,"#))
                .collect();
            format!(r#"{{{kept}"n50":1}}"#)
        });
    }

    #[test]
    fn binary_is_stored_as_lower_case_hexadecimal_text() {
        assert_value(Format::Binary, [0x01, 0xa4, 0xff], r#"{"value1":"01a4ff"}"#);
        assert_value(Format::Binary, b"{}", r#"{"value1":"7b7d"}"#);
        let all: Vec<u8> = (0..=255).collect();
        assert_value(
            Format::Binary,
            &all,
            &format!(r#"{{"value1":"{}"}}"#, hex::encode(&all)),
        );
    }

    #[test]
    fn the_four_values_of_the_v1_form_are_numbers_or_strings() {
        for (payload, stored) in [
            ("v=1.5&v2=ok&v3=7", r#"{"value1":1.5,"value2":"ok","value3":7}"#),
            ("v=1&v2=2&v3=3&v4=4", r#"{"value1":1,"value2":2,"value3":3,"value4":4}"#),
            ("v4=4&v=1", r#"{"value1":1,"value4":4}"#),
            ("v3=7", r#"{"value3":7}"#),
            ("v=1&x=2&v5=3&v1=4&value1=5&V=6", r#"{"value1":1}"#),
            ("v=1&v=2", r#"{"value1":2}"#),
            (
                "v=0.10&v2=12345678901234567890123",
                r#"{"value1":0.10,"value2":12345678901234567890123}"#,
            ),
            ("v=+21.5&v2=%2021.5%0a\r\n", r#"{"value1":21.5,"value2":21.5}"#),
            ("v=a+b%26c%3D&v2=%C3%BC", r#"{"value1":"a b&c=","value2":"ü"}"#),
            ("v=%22%5C%0A%00%1f", r#"{"value1":"\"\\\n\u0000\u001f"}"#),
            ("v=100%&v2=%zz%4", r#"{"value1":"100%","value2":"%zz%4"}"#),
            ("v=a=b", r#"{"value1":"a=b"}"#),
            ("v=&v2", r#"{"value1":"","value2":""}"#),
            ("&&v=1&", r#"{"value1":1}"#),
            ("%76=1", r#"{"value1":1}"#),
            (
                "v=NaN&v2=1e400&v3=007&v4=%2b5",
                r#"{"value1":"NaN","value2":"1e400","value3":"007","value4":"+5"}"#,
            ),
            ("v=true&v2=null", r#"{"value1":"true","value2":"null"}"#),
        ] {
            assert_value(Format::V1, payload, stored);
        }
        for refused in [
            "",
            "hello",
            "x=1",
            "value1=1",
            r#"{"v":1}"#,
            "V=1",
            "v=%ff",
            "v2=1&x=%ff",
            "v=%C3",
        ] {
            assert_refused(Format::V1, refused);
        }
        assert_refused(Format::V1, b"v=\xff");
    }

    #[test]
    fn a_state_is_a_form_of_any_names_or_a_json_object() {
        for (payload, stored) in [
            (
                "health=OK&load=12.5&uptime=90211",
                r#"{"health":"OK","load":12.5,"uptime":90211}"#,
            ),
            ("a= 12 &b=+OK+&c=%09x%0a\n", r#"{"a":12,"b":"OK","c":"x"}"#),
            ("a=1&a=2&b=3", r#"{"a":2,"b":3}"#),
            ("a=", r#"{"a":""}"#),
            ("a=1&b&&", r#"{"a":1,"b":""}"#),
            (
                "n%22ame=true&x=NaN&y=1e400",
                r#"{"n\"ame":"true","x":"NaN","y":"1e400"}"#,
            ),
            ("serial=007", r#"{"serial":"007"}"#),
            ("a=1&last_update=2026&b=2", r#"{"a":1,"b":2}"#),
            ("a=1&last%5Fupdate=2026", r#"{"a":1}"#),
            ("last_update=2026", r#"{}"#),
            (r#"{"health":"OK","load":12.50}"#, r#"{"health":"OK","load":12.50}"#),
            (r#" {"a":{"last_update":1}} "#, r#"{"a":{"last_update":1}}"#),
            (r#"{"last_update":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":2 , "last_update":1}"#, r#"{"a":2}"#),
            (r#"{"a":2,"last\u005fupdate":1,"a":3,"last_update":1}"#, r#"{"a":3}"#),
            (r#"{ "last_update":{"last_update":1} }"#, r#"{ }"#),
            (r#"{"a":1,"a":"x=y"}"#, r#"{"a":"x=y"}"#),
            ("{}", "{}"),
        ] {
            assert_state(payload, Ok(stored));
        }
        for refused in [
            "",
            "hello",
            "null",
            "5",
            "[1]",
            r#""open""#,
            "{",
            r#"{"a":1e400}"#,
            "{a=1}",
            "a=%ff",
            "%ff=1",
        ] {
            assert_state(refused, Err(BadPayload));
        }
        assert_state(b"a=\xff", Err(BadPayload));
    }

    /// Texts that come near to what is meant.
    fn near() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"\\u0061\"",
            "\"last_update\"",
            "1",
            "-0",
            "1e400",
            "1e308",
            "null",
            " ",
            "\n",
            "true",
            "v=",
            "v2=",
            "&",
            "=",
            "%41",
            "%",
            "+",
            "\"",
            "\\",
            "é",
            "\u{0}",
            "1.7976931348623158e308",
            "9".repeat(309).leak(),
        ]);
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat().into_bytes()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]
        #[test]
        fn no_payload_is_a_panic_and_what_is_stored_is_a_settled_object(payload in near()) {
            let conversions = [
                converted(|out| value(Format::Json, &payload, out)),
                converted(|out| value(Format::Binary, &payload, out)),
                converted(|out| value(Format::V1, &payload, out)),
                converted(|out| state(&payload, out)),
            ];
            for stored in conversions.into_iter().flatten() {
                let object: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(&stored);
                prop_assert!(object.is_ok(), "{} became {}", String::from_utf8_lossy(&payload), stored);
                let again = json::settle(&stored, VALUE_DEPTH_MAX, None);
                prop_assert_eq!(again, Ok(Cow::Borrowed(stored.as_str())));
            }
        }
    }
}
