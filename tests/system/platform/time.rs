//! Times as the API writes them (section 7.1): local, with the offset, in two styles.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Seconds of Unix time of `2026-03-04T09:15:00+0900`; the offset has to be this one.
pub fn basic(text: &str, offset: &str) -> i64 {
    assert_eq!(offset.len(), 5);
    assert!(
        is_like(text, "dddd-dd-ddTdd:dd:dd") && text.ends_with(offset),
        "{text} is not local at {offset}"
    );
    seconds(text, "%Y-%m-%dT%H:%M:%S%z")
}

/// Seconds of Unix time of `2026-03-04T09:15:00+09:00`.
pub fn extended(text: &str, offset: &str) -> i64 {
    assert_eq!(offset.len(), 6);
    assert!(
        is_like(text, "dddd-dd-ddTdd:dd:dd") && text.ends_with(offset),
        "{text} is not local at {offset}"
    );
    seconds(text, "%Y-%m-%dT%H:%M:%S%:z")
}

/// A pattern, `d` for a digit, and behind it nothing but the offset.
fn is_like(text: &str, pattern: &str) -> bool {
    let is_one = |(byte, one): (u8, u8)| {
        if one == b'd' {
            byte.is_ascii_digit()
        } else {
            byte == one
        }
    };
    let offset = text.len().saturating_sub(pattern.len());
    (5..=6).contains(&offset) && text.bytes().zip(pattern.bytes()).all(is_one)
}

fn seconds(text: &str, format: &str) -> i64 {
    let read = jiff::fmt::strtime::parse(format, text).and_then(|parts| parts.to_timestamp());
    read.unwrap_or_else(|error| panic!("{text} is no time: {error}"))
        .as_second()
}

pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// What a clock on the wall in this zone shows, in a form of `strftime`.
pub fn local(unix_s: i64, zone: &str, format: &str) -> String {
    let at = Timestamp::from_second(unix_s).unwrap();
    jiff::ZonedDateTime::new(at, TimeZone::get(zone).unwrap())
        .strftime(format)
        .to_string()
}
