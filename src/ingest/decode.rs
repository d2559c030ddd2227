//! MessagePack in a binary payload, for who asks to read it decoded: `X-DECODE: msgpack`, an extension of ours.
//!
//! Called  by `http`, for the values of a stream. What is stored stays the hexadecimal text.
//! Holds   - a value is decoded if it has `value1` alone, and that is the hexadecimal text of exactly one MessagePack value;
//!         - the text is as settled as a stored value: no deeper, no name twice (the last wins);
//!         - binary, and strings that are not UTF-8, become hexadecimal text; an extension an array of its type and its data;
//!           NaN and the infinities null, so that the rest of a value can be read;
//!         - a map's name that is a number, a boolean or nil becomes its JSON text. One that is an array, a map or an extension
//!           is not decoded: names within names would double their escapes with every step.

use std::fmt::{self, Write};
use std::io::Cursor;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use super::json::{self, Begun, Reader};
use crate::limits::VALUE_DEPTH_MAX;

/// The MessagePack value within a stored value, as JSON text.
pub fn message_pack(value: &str) -> Option<String> {
    let bytes = hex::decode(hex_text(value)?).ok()?;
    let mut text = String::new();
    let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(&bytes));
    // It refuses what is as deep as it is told.
    deserializer.set_max_depth(VALUE_DEPTH_MAX + 1);
    let transcribe = Transcribe {
        is_name: false,
        out: &mut text,
    };
    transcribe.deserialize(&mut deserializer).ok()?;
    let is_all = deserializer.position() == bytes.len() as u64;
    let settled = json::settle(&text, VALUE_DEPTH_MAX, None).ok().filter(|_| is_all)?;
    Some(settled.into_owned())
}

/// `01a4ff` of `{"value1":"01a4ff"}`.
fn hex_text(value: &str) -> Option<&str> {
    let mut reader = Reader::new(value);
    if reader.begin()? != Begun::Object || reader.next_name()? != r#""value1""# {
        return None;
    }
    let Begun::Scalar(raw) = reader.begin()? else {
        return None;
    };
    let text = raw.strip_prefix('"')?.strip_suffix('"')?;
    let is_hex = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_hex && reader.next_name().is_none()).then_some(text)
}

/// Writes what it visits as JSON.
struct Transcribe<'o> {
    /// It stands for a map's name, which is a string in JSON.
    is_name: bool,
    out: &'o mut String,
}

impl Transcribe<'_> {
    fn again(&mut self, is_name: bool) -> Transcribe<'_> {
        Transcribe { is_name, out: self.out }
    }

    /// What has no quotation marks as a value.
    fn word<E: Error>(self, word: impl fmt::Display) -> Result<(), E> {
        let mark = if self.is_name { "\"" } else { "" };
        write!(self.out, "{mark}{word}{mark}").map_err(E::custom)
    }

    fn refuse_as_name<E: Error>(&self) -> Result<(), E> {
        if self.is_name {
            return Err(E::custom("no name"));
        }
        Ok(())
    }

    /// The shortest text that reads as the same number, with an exponent where it is very large or small.
    fn float<E: Error>(self, is_finite: bool, float: impl fmt::Debug) -> Result<(), E> {
        if is_finite {
            self.word(format_args!("{float:?}"))
        } else {
            self.word("null")
        }
    }
}

impl<'de> DeserializeSeed<'de> for Transcribe<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Transcribe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_name { "a name" } else { "a value" })
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.word("null")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.word(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.word(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.word(value)
    }

    fn visit_f32<E: Error>(self, value: f32) -> Result<(), E> {
        self.float(value.is_finite(), value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.float(value.is_finite(), value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        json::push_string(value, self.out);
        Ok(())
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<(), E> {
        json::push_string(&hex::encode(value), self.out);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        self.refuse_as_name()?;
        self.out.push('[');
        let start = self.out.len();
        loop {
            let end = self.out.len();
            if end > start {
                self.out.push(',');
            }
            if elements.next_element_seed(self.again(false))?.is_none() {
                self.out.truncate(end);
                break;
            }
        }
        self.out.push(']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        self.refuse_as_name()?;
        self.out.push('{');
        let start = self.out.len();
        loop {
            let end = self.out.len();
            if end > start {
                self.out.push(',');
            }
            if members.next_key_seed(self.again(true))?.is_none() {
                self.out.truncate(end);
                break;
            }
            self.out.push(':');
            members.next_value_seed(self.again(false))?;
        }
        self.out.push('}');
        Ok(())
    }

    /// An extension: its type, then its data.
    fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Option<String> {
        message_pack(&format!(r#"{{"value1":"{}"}}"#, hex::encode(bytes)))
    }

    #[test]
    fn every_kind_of_value_has_its_json() {
        let rows: [(&[u8], &str); 22] = [
            (b"\xc0", "null"),
            (b"\xc2", "false"),
            (b"\x05", "5"),
            (b"\xff", "-1"),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
            (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", "-9223372036854775808"),
            (b"\xca\x41\xa8\xcc\xcd", "21.1"),
            (b"\xcb\x40\x35\x80\x00\x00\x00\x00\x00", "21.5"),
            (b"\xcb\x7f\xef\xff\xff\xff\xff\xff\xff", "1.7976931348623157e308"),
            (b"\xca\x7f\xc0\x00\x00", "null"),
            (b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", "null"),
            (b"\xa4open", r#""open""#),
            (b"\xa3a\"\n", r#""a\"\n""#),
            (b"\xa1\xff", r#""ff""#),
            (b"\xc4\x03\x01\xa4\xff", r#""01a4ff""#),
            (b"\xd4\x05\xaa", r#"[5,"aa"]"#),
            (b"\xd6\xff\x00\x00\x00\x01", r#"[-1,"00000001"]"#),
            (b"\x93\x01\x90\xa0", r#"[1,[],""]"#),
            (
                b"\x82\xa4temp\xcb\x40\x35\x80\x00\x00\x00\x00\x00\xa2rh\x30",
                r#"{"temp":21.5,"rh":48}"#,
            ),
            (
                b"\x86\x01\xa1a\xc3\x80\xc0\x02\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\x03\xc4\x01\xab\x04\xa0\x05",
                r#"{"1":"a","true":{},"null":2,"1.5":3,"ab":4,"":5}"#,
            ),
            (b"\x82\xa1a\x01\xa1a\x02", r#"{"a":2}"#),
            (b"\x82\xa11\x01\x01\x02", r#"{"1":2}"#),
        ];
        for (bytes, json) in rows {
            assert_eq!(decoded(bytes).as_deref(), Some(json), "{}", hex::encode(bytes));
        }
    }

    #[test]
    fn what_is_not_exactly_one_message_pack_value_is_left_alone() {
        let rows: [&[u8]; 10] = [
            b"",
            b"\xc1",
            b"\x05\x05",
            b"\x92\x01",
            b"\xa4ope",
            b"\xdb\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff\xc0",
            b"\xc6\xff\xff\xff\xff\x00",
            b"\x81\x90\x01",
            b"\x81\xd4\x05\xaa\x01",
        ];
        for bytes in rows {
            assert_eq!(decoded(bytes), None, "{}", hex::encode(bytes));
        }
        for value in [
            r#"{"value1":"5"}"#,
            r#"{"value1":"0A"}"#,
            r#"{"value1":"open"}"#,
            r#"{"value1":5}"#,
            r#"{"value1":["05"]}"#,
            r#"{"value2":"05"}"#,
            r#"{"value1":"05","rh":1}"#,
            r#"{"rh":1,"value1":"05"}"#,
            r#"{}"#,
            r#""05""#,
            "",
        ] {
            assert_eq!(message_pack(value), None, "{value}");
        }
        assert_eq!(message_pack(r#" { "value1" : "05" } "#).as_deref(), Some("5"));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
        assert!(decoded(&nested(VALUE_DEPTH_MAX)).is_some());
        assert_eq!(decoded(&nested(VALUE_DEPTH_MAX + 1)), None);
        assert_eq!(decoded(&nested(100_000)), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_a_panic_and_what_is_decoded_is_json(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            if let Some(json) = decoded(&bytes) {
                proptest::prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&json).is_ok(), "{}", json);
            }
        }
    }
}
