//! What the headers of a stream read ask for.

use axum::http::HeaderMap;

use crate::http::error::ApiError;
use crate::http::request::{header, tag};
use crate::http::time::Zone;
use crate::ingest::aggregate::Aggregate;
use crate::limits::STREAM_ROWS_MAX;
use crate::registry::datapoint::DatapointId;

const START_TIME: &str = "x-starttime";
const END_TIME: &str = "x-endtime";
const PAGE_LIMIT: &str = "x-pagelimit";
const PAGE_SORT: &str = "x-pagesort";
const AGGREGATE: &str = "x-aggregate";
const DECODE: &str = "x-decode";
/// In place of a time.
const LAST: &str = "last";

#[derive(Debug, PartialEq)]
pub struct Reading {
    /// `None`: nothing can be in it.
    pub range: Option<Range>,
    pub end: End,
    pub is_descending: bool,
    pub aggregate: Option<Aggregate>,
    pub decode: Option<Decode>,
}

/// Which datapoints; both ends are included.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    pub from: DatapointId,
    pub to: DatapointId,
    pub tag: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// The newest so many.
    Last { rows_max: usize },
    /// All up to a time.
    At,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decode {
    MessagePack,
}

impl Reading {
    pub fn of(headers: &HeaderMap, zone: &Zone) -> Result<Reading, ApiError> {
        let time = |name| match header(headers, name)? {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case(LAST) => Ok(Some(None)),
            Some(text) => zone
                .parse(text)
                .map(|span| Some(Some(span)))
                .ok_or(ApiError::BadParameter),
        };
        let end = time(END_TIME)?.ok_or(ApiError::EndtimeRequired)?;
        let start = time(START_TIME)?.flatten();
        if let (Some(start), Some(end)) = (&start, &end)
            && end.is_before(start)
        {
            return Err(ApiError::BadParameter);
        }
        let tag = tag(headers)?;
        let rows_max = page_limit(headers)?;
        Ok(Reading {
            range: range(start.map(|start| start.first_ms()), end.map(|end| end.last_ms()), tag),
            end: if end.is_some() { End::At } else { End::Last { rows_max } },
            is_descending: word(headers, PAGE_SORT, &[("asc", false), ("desc", true)])?.unwrap_or(false),
            aggregate: aggregate(headers)?,
            decode: word(headers, DECODE, &[("msgpack", Decode::MessagePack)])?,
        })
    }
}

/// The ids between two times; no datapoint is older than 1970.
fn range(first_ms: Option<i64>, last_ms: Option<i64>, tag: Option<Box<str>>) -> Option<Range> {
    let from = DatapointId::first_at(first_ms.map_or(0, |ms| ms.max(0) as u64));
    let to = match last_ms {
        None => DatapointId::MAX,
        Some(ms) => DatapointId::last_at(u64::try_from(ms).ok()?),
    };
    (from <= to).then_some(Range { from, to, tag })
}

fn page_limit(headers: &HeaderMap) -> Result<usize, ApiError> {
    let Some(text) = header(headers, PAGE_LIMIT)? else {
        return Ok(1);
    };
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    let limit = is_decimal.then(|| text.parse().ok()).flatten();
    limit
        .filter(|limit| (1..=STREAM_ROWS_MAX).contains(limit))
        .ok_or(ApiError::BadParameter)
}

fn aggregate(headers: &HeaderMap) -> Result<Option<Aggregate>, ApiError> {
    let Some(text) = header(headers, AGGREGATE)? else {
        return Ok(None);
    };
    let found = Aggregate::parse(&text.to_ascii_lowercase());
    found.map(Some).ok_or(ApiError::BadParameter)
}

/// One of a few words, in any case.
fn word<T: Copy>(headers: &HeaderMap, name: &str, words: &[(&str, T)]) -> Result<Option<T>, ApiError> {
    let Some(text) = header(headers, name)? else {
        return Ok(None);
    };
    let found = words.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
    found.map(|(_, meaning)| Some(*meaning)).ok_or(ApiError::BadParameter)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// 2026-03-04T00:15:00Z
    const MARCH_MS: u64 = 1_772_583_300_000;

    fn reading(pairs: &[(&'static str, &str)]) -> Result<Reading, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        Reading::of(&headers, &Zone::of("Asia/Tokyo"))
    }

    #[test]
    fn the_end_is_required() {
        assert_eq!(reading(&[]), Err(ApiError::EndtimeRequired));
        assert_eq!(reading(&[(END_TIME, "")]), Err(ApiError::EndtimeRequired));
        assert_eq!(
            reading(&[(START_TIME, "2026-03-04 09:15")]),
            Err(ApiError::EndtimeRequired)
        );
    }

    #[test]
    fn last_alone_is_the_newest_one_ascending() {
        let all = Range {
            from: DatapointId::first_at(0),
            to: DatapointId::MAX,
            tag: None,
        };
        let newest = Reading {
            range: Some(all),
            end: End::Last { rows_max: 1 },
            is_descending: false,
            aggregate: None,
            decode: None,
        };
        assert_eq!(reading(&[(END_TIME, "last")]).as_ref(), Ok(&newest));
        assert_eq!(reading(&[(END_TIME, "LAST"), (START_TIME, "last")]), Ok(newest));
    }

    #[test]
    fn every_header_is_read() {
        let all = reading(&[
            (END_TIME, "last"),
            (START_TIME, "2026-03-04 09:15"),
            ("x-tagname", "inlet"),
            (PAGE_LIMIT, "10000"),
            (PAGE_SORT, "desc"),
            (AGGREGATE, "Max"),
            (DECODE, "msgpack"),
        ]);
        assert_eq!(
            all,
            Ok(Reading {
                range: Some(Range {
                    from: DatapointId::first_at(MARCH_MS),
                    to: DatapointId::MAX,
                    tag: Some("inlet".into())
                }),
                end: End::Last { rows_max: 10_000 },
                is_descending: true,
                aggregate: Some(Aggregate::Max),
                decode: Some(Decode::MessagePack),
            })
        );
        for kind in [Aggregate::Avg, Aggregate::Sum, Aggregate::Min, Aggregate::Max] {
            let read = reading(&[(END_TIME, "last"), (AGGREGATE, kind.as_str())]).unwrap();
            assert_eq!(read.aggregate, Some(kind));
        }
    }

    #[test]
    fn both_ends_are_in_the_range_whole() {
        let read = reading(&[(START_TIME, "2026-03-04 09:15"), (END_TIME, "2026-03-04 09:15")]).unwrap();
        let range = read.range.unwrap();
        assert_eq!(read.end, End::At);
        assert_eq!(range.from, DatapointId::first_at(MARCH_MS));
        assert!(DatapointId::last_at(MARCH_MS + 59_999) <= range.to);
        assert!(DatapointId::first_at(MARCH_MS + 60_000) > range.to);
        let read = reading(&[(END_TIME, "1969-12-31 23:59")]).unwrap();
        assert_eq!(read.range, None, "there can be nothing");
        assert!(
            reading(&[(START_TIME, "1960-01-01 00:00"), (END_TIME, "last")]).is_ok_and(|read| read.range.is_some())
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (name, value) in [
            (START_TIME, "yesterday"),
            (START_TIME, "2026-03-04 09:17"),
            (END_TIME, "2026-03-04"),
            (PAGE_LIMIT, "0"),
            (PAGE_LIMIT, "10001"),
            (PAGE_LIMIT, "-1"),
            (PAGE_LIMIT, "+1"),
            (PAGE_LIMIT, "1.0"),
            (PAGE_LIMIT, "99999999999999999999"),
            (PAGE_SORT, "up"),
            (AGGREGATE, "median"),
            (DECODE, "cbor"),
            ("x-tagname", "a/b"),
        ] {
            let mut pairs = vec![(END_TIME, "2026-03-04 09:16")];
            pairs.retain(|(other, _)| *other != name);
            pairs.push((name, value));
            assert_eq!(reading(&pairs), Err(ApiError::BadParameter), "{name}: {value}");
        }
    }
}
