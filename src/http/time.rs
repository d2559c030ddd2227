//! Times as the API writes and reads them: local time of an account's zone.
//!
//! Called  by every service that shows a time, and by `stream`, which reads them.
//! Holds   - two styles are written, field by field as the contract has them, both to the second;
//!         - a time that is read covers what it does not say: all of its minute, or of its second;
//!         - where clocks are set back, a local time covers both of its occurrences; where they are set forward, a local time
//!           that does not exist covers nothing, and stands at the moment of the change: a range from or to it holds exactly
//!           what has a local time within it.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

/// How an offset is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `2026-03-04T09:15:00+0900`: streams, channels, sessions.
    Basic,
    /// `2026-03-04T09:15:00+09:00`: devices.
    Extended,
}

/// An account's time zone.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// By its IANA name. A name that this host's and our own tables do not have (any more) is taken for UTC: what an account
    /// was given was known once.
    pub fn of(locale: &str) -> Zone {
        Zone(TimeZone::get(locale).unwrap_or(TimeZone::UTC))
    }

    /// Milliseconds of Unix time, written.
    pub fn text(&self, at_ms: u64, style: Style) -> String {
        let mut out = String::new();
        self.write(&mut out, at_ms, style);
        out
    }

    pub fn write(&self, out: &mut String, at_ms: u64, style: Style) {
        let at = i64::try_from(at_ms).ok().map(Timestamp::from_millisecond);
        let at = at.and_then(Result::ok).unwrap_or(Timestamp::MAX);
        let offset = self.0.to_offset(at);
        let local = offset.to_datetime(at);
        let year = i32::from(local.year());
        push_two(out, year / 100);
        push_two(out, year % 100);
        let rest = [
            ('-', local.month()),
            ('-', local.day()),
            ('T', local.hour()),
            (':', local.minute()),
            (':', local.second()),
        ];
        for (before, number) in rest {
            out.push(before);
            push_two(out, i32::from(number));
        }
        let minutes = offset.seconds() / 60;
        out.push(if minutes < 0 { '-' } else { '+' });
        push_two(out, minutes.abs() / 60);
        if style == Style::Extended {
            out.push(':');
        }
        push_two(out, minutes.abs() % 60);
    }

    /// `YYYY-MM-DD hh:mm`, with seconds or without, `T` in place of the blank or not, with an offset or in this zone.
    pub fn parse(&self, text: &str) -> Option<Span> {
        let Written {
            local,
            offset_s,
            width_ms,
        } = written(text)?;
        let last = width_ms - 1;
        if let Some(offset_s) = offset_s {
            let first_ms = utc_ms(local)? - i64::from(offset_s) * 1_000;
            return Some(Span::plain(first_ms, first_ms + last));
        }
        let ambiguous = self.0.to_ambiguous_timestamp(local);
        let earlier = ambiguous.earlier().ok()?;
        let (first_ms, last_ms) = (
            earlier.as_millisecond(),
            ambiguous.later().ok()?.as_millisecond() + last,
        );
        let change_ms = match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } => {
                let change = self.0.following(earlier).next();
                Some(change.map_or(first_ms, |change| change.timestamp().as_millisecond()))
            }
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => None,
        };
        Some(Span {
            change_ms,
            ..Span::plain(first_ms, last_ms)
        })
    }
}

/// A number below 100, in two digits.
fn push_two(out: &mut String, number: i32) {
    for digit in [number / 10, number % 10] {
        out.push(char::from(b'0' + digit as u8));
    }
}

/// What a written time covers, in milliseconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    earliest_ms: i64,
    latest_ms: i64,
    /// There is no such local time: the clocks went past it at this moment.
    change_ms: Option<i64>,
}

impl Span {
    fn plain(first_ms: i64, last_ms: i64) -> Span {
        Span {
            earliest_ms: first_ms,
            latest_ms: last_ms,
            change_ms: None,
        }
    }

    /// Where a range begins that begins with it.
    pub fn first_ms(&self) -> i64 {
        self.change_ms.unwrap_or(self.earliest_ms)
    }

    /// Where a range ends that ends with it.
    pub fn last_ms(&self) -> i64 {
        self.change_ms.map_or(self.latest_ms, |change| change - 1)
    }

    /// Whether it lies before `start` however both are read, so that they are no range.
    pub fn is_before(&self, start: &Span) -> bool {
        self.latest_ms < start.earliest_ms
    }
}

/// A time as it stands there.
struct Written {
    local: DateTime,
    /// Seconds east of UTC, if it says so.
    offset_s: Option<i32>,
    /// Down to what it says.
    width_ms: i64,
}

fn written(text: &str) -> Option<Written> {
    let mut rest = text.as_bytes();
    let year = number(&mut rest, 4)?;
    expect(&mut rest, b"-")?;
    let month = number(&mut rest, 2)?;
    expect(&mut rest, b"-")?;
    let day = number(&mut rest, 2)?;
    expect(&mut rest, b" Tt")?;
    let hour = number(&mut rest, 2)?;
    expect(&mut rest, b":")?;
    let minute = number(&mut rest, 2)?;
    let (mut second, mut milli, mut width_ms) = (0, 0, 60_000);
    if expect(&mut rest, b":").is_some() {
        second = number(&mut rest, 2)?;
        width_ms = 1_000;
        if expect(&mut rest, b".").is_some() {
            (milli, width_ms) = fraction(&mut rest)?;
        }
    }
    let offset_s = match rest {
        [] => None,
        _ => Some(offset(rest)?),
    };
    let date = Date::new(year as i16, month as i8, day as i8).ok()?;
    let time = Time::new(hour as i8, minute as i8, second as i8, milli as i32 * 1_000_000).ok()?;
    Some(Written {
        local: DateTime::from_parts(date, time),
        offset_s,
        width_ms,
    })
}

/// `Z`, `+09:00`, `+0900` or `+09`
fn offset(mut rest: &[u8]) -> Option<i32> {
    if matches!(rest, b"Z" | b"z") {
        return Some(0);
    }
    let sign = if expect(&mut rest, b"+-")? == b'-' { -1 } else { 1 };
    let hours = number(&mut rest, 2)?;
    let has_colon = expect(&mut rest, b":").is_some();
    let minutes = match rest {
        [] if !has_colon => 0,
        _ => number(&mut rest, 2)?,
    };
    let is_offset = rest.is_empty() && hours < 24 && minutes < 60;
    is_offset.then_some(sign * (hours as i32 * 3_600 + minutes as i32 * 60))
}

/// Digits of a second after the point: milliseconds, and how many of them the digits leave open.
fn fraction(rest: &mut &[u8]) -> Option<(u32, i64)> {
    let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=9).contains(&len) {
        return None;
    }
    let (digits, after) = rest.split_at(len);
    *rest = after;
    let digit = |place: usize| u32::from(digits.get(place).map_or(0, |digit| digit - b'0'));
    let width = [100, 10, 1][len.min(3) - 1];
    Some((digit(0) * 100 + digit(1) * 10 + digit(2), width))
}

/// Exactly so many digits.
fn number(rest: &mut &[u8], width: usize) -> Option<u32> {
    let (digits, after) = rest.split_at_checked(width)?;
    *rest = after;
    digits.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0'))
    })
}

/// One of these bytes.
fn expect(rest: &mut &[u8], one_of: &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    one_of.contains(first).then(|| *rest = after)?;
    Some(*first)
}

fn utc_ms(local: DateTime) -> Option<i64> {
    Offset::UTC.to_timestamp(local).ok().map(|at| at.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-04T00:15:00Z
    const MARCH_MS: i64 = 1_772_583_300_000;

    fn span(zone: &str, text: &str) -> (i64, i64) {
        let span = Zone::of(zone).parse(text).unwrap_or_else(|| panic!("{text}"));
        (span.first_ms(), span.last_ms())
    }

    #[test]
    fn both_styles_are_written_in_the_zone_of_the_account() {
        for (zone, basic, extended) in [
            ("Asia/Tokyo", "2026-03-04T09:15:00+0900", "2026-03-04T09:15:00+09:00"),
            ("UTC", "2026-03-04T00:15:00+0000", "2026-03-04T00:15:00+00:00"),
            ("Asia/Kolkata", "2026-03-04T05:45:00+0530", "2026-03-04T05:45:00+05:30"),
            (
                "America/St_Johns",
                "2026-03-03T20:45:00-0330",
                "2026-03-03T20:45:00-03:30",
            ),
            ("no such zone", "2026-03-04T00:15:00+0000", "2026-03-04T00:15:00+00:00"),
        ] {
            let zone = Zone::of(zone);
            // Milliseconds are cut, not rounded.
            let at = MARCH_MS as u64 + 999;
            assert_eq!(zone.text(at, Style::Basic), basic);
            assert_eq!(zone.text(at, Style::Extended), extended);
        }
        let summer = Zone::of("Europe/Vienna").text(1_785_000_000_000, Style::Basic);
        assert_eq!(summer, "2026-07-25T19:20:00+0200");
        let zone = Zone::of("UTC");
        assert_eq!(zone.text(0, Style::Basic), "1970-01-01T00:00:00+0000");
        for at in [u64::MAX, (1 << 48) - 1] {
            assert!(zone.text(at, Style::Basic).starts_with("9999-12-3"), "{at}");
        }
    }

    #[test]
    fn a_time_covers_all_that_it_leaves_open() {
        for (text, first, last) in [
            ("2026-03-04 09:15", MARCH_MS, MARCH_MS + 59_999),
            ("2026-03-04T09:15", MARCH_MS, MARCH_MS + 59_999),
            ("2026-03-04 09:15:30", MARCH_MS + 30_000, MARCH_MS + 30_999),
            ("2026-03-04T09:15:30", MARCH_MS + 30_000, MARCH_MS + 30_999),
            ("2026-03-04T09:15:30.25", MARCH_MS + 30_250, MARCH_MS + 30_259),
            ("2026-03-04T09:15:30.250999999", MARCH_MS + 30_250, MARCH_MS + 30_250),
            ("2026-03-04T00:15Z", MARCH_MS, MARCH_MS + 59_999),
            ("2026-03-04t00:15:00z", MARCH_MS, MARCH_MS + 999),
            ("2026-03-04T01:15:00+0100", MARCH_MS, MARCH_MS + 999),
            ("2026-03-04 01:15:00+01:00", MARCH_MS, MARCH_MS + 999),
            ("2026-03-03T20:45-03:30", MARCH_MS, MARCH_MS + 59_999),
            ("2026-03-04T01:15:00+01", MARCH_MS, MARCH_MS + 999),
        ] {
            assert_eq!(span("Asia/Tokyo", text), (first, last), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_covers_its_second() {
        for zone in ["Asia/Tokyo", "Europe/Vienna", "America/St_Johns", "UTC"] {
            for style in [Style::Basic, Style::Extended] {
                let text = Zone::of(zone).text(MARCH_MS as u64 + 1_234, style);
                assert_eq!(span("UTC", &text), (MARCH_MS + 1_000, MARCH_MS + 1_999), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "last",
            "2026-03-04",
            "2026-03-04 ",
            "2026-03-04 9:15",
            "2026-3-4 09:15",
            "26-03-04 09:15",
            "2026-02-29 09:15",
            "2026-13-01 09:15",
            "2026-00-01 09:15",
            "2026-03-04 24:00",
            "2026-03-04 09:60",
            "2026-03-04 09:15:60",
            "2026-03-04 09:15:",
            "2026-03-04 09:15:00.",
            "2026-03-04 09:15:00.1234567890",
            "2026-03-04_09:15",
            "2026-03-04  09:15",
            "2026-03-04 09:15 ",
            " 2026-03-04 09:15",
            "2026-03-04 09:15+1",
            "2026-03-04 09:15+24:00",
            "2026-03-04 09:15+09:60",
            "2026-03-04 09:15+09:",
            "2026-03-04 09:15+09:000",
            "2026-03-04 09:15ZZ",
            "2026-03-04 09:15; drop table",
            "２０２６-03-04 09:15",
            "-026-03-04 09:15",
        ] {
            assert_eq!(Zone::of("UTC").parse(text), None, "{text}");
        }
    }

    /// Vienna, 29 March 2026: at 01:00 UTC the clocks go from 02:00 to 03:00.
    #[test]
    fn a_local_time_that_the_clocks_skip_stands_at_the_moment_of_the_change() {
        let change = span("UTC", "2026-03-29 01:00").0;
        let zone = Zone::of("Europe/Vienna");
        assert_eq!(span("Europe/Vienna", "2026-03-29 01:59"), (change - 60_000, change - 1));
        assert_eq!(span("Europe/Vienna", "2026-03-29 03:00"), (change, change + 59_999));
        for skipped in ["2026-03-29 02:00", "2026-03-29 02:30", "2026-03-29 02:59:59"] {
            assert_eq!(span("Europe/Vienna", skipped), (change, change - 1), "{skipped}");
        }
        let [start, end, after] =
            ["2026-03-29 02:15", "2026-03-29 02:45", "2026-03-29 03:50"].map(|text| zone.parse(text).unwrap());
        assert!(!end.is_before(&start) && !after.is_before(&end) && start.is_before(&after));
    }

    /// Vienna, 25 October 2026: at 01:00 UTC the clocks go from 03:00 back to 02:00.
    #[test]
    fn a_local_time_that_comes_twice_covers_both() {
        let change = span("UTC", "2026-10-25 01:00").0;
        let (first, last) = span("Europe/Vienna", "2026-10-25 02:30");
        assert_eq!(first, change - 30 * 60_000);
        assert_eq!(last, change + 30 * 60_000 + 59_999);
        // An offset says which.
        assert_eq!(span("Europe/Vienna", "2026-10-25T02:30:00+0200").0, first);
        assert_eq!(span("Europe/Vienna", "2026-10-25T02:30+01:00").1, last);
        // From the second 02:30 to 02:10 is a range in local time read one way, so it is no mistake.
        let zone = Zone::of("Europe/Vienna");
        let [start, end] = ["2026-10-25 02:30", "2026-10-25 02:10"].map(|text| zone.parse(text).unwrap());
        assert!(!end.is_before(&start));
    }

    #[test]
    fn an_end_in_the_minute_before_the_start_is_before_it() {
        let zone = Zone::of("UTC");
        let [start, end] = ["2026-03-04 10:01", "2026-03-04 10:00"].map(|text| zone.parse(text).unwrap());
        assert!(end.is_before(&start) && !start.is_before(&end) && !start.is_before(&start));
    }
}
