//! What a request says: its headers, the id in its path, its body.
//!
//! Called  by every service of `http`.
//! Holds   - a header is one value of visible ASCII, or the request is refused: what is read twice would be two things;
//!         - text is data: nothing of it is ever part of a query, a path or a format;
//!         - a body is read up to its limit and no further in time than [`HTTP_BODY_TIMEOUT_MS`], whatever its length claims.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::request::Parts;
use hyper::body::Body as _;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout, timeout_at};

use super::api::Api;
use super::error::ApiError;
use crate::limits::{HTTP_BODY_TIMEOUT_MS, HTTP_DRAIN_BYTES_MAX, HTTP_DRAIN_MS, TEXT_CHARS_MAX};
use crate::registry::channel::ChannelId;
use crate::registry::device::is_name;

pub const TAG_NAME: &str = "x-tagname";

/// Begins a name in a header that has more than visible ASCII in it, percent-encoded (RFC 8187).
const EXTENDED: &str = "utf-8''";

/// A header's value; `None` if there is none, or an empty one.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(ApiError::BadParameter);
    }
    let text = value.to_str().map_err(|_| ApiError::BadParameter)?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A device id or a tag in a header: as it is, or `UTF-8''` and its bytes percent-encoded. Not checked otherwise.
pub fn name_header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<Cow<'h, str>>, ApiError> {
    let Some(text) = header(headers, name)? else {
        return Ok(None);
    };
    match text.split_at_checked(EXTENDED.len()) {
        Some((start, encoded)) if start.eq_ignore_ascii_case(EXTENDED) => {
            let decoded = percent_decoded(encoded).ok_or(ApiError::BadParameter)?;
            Ok(Some(decoded.into()).filter(|decoded: &Cow<'_, str>| !decoded.is_empty()))
        }
        _ => Ok(Some(text.into())),
    }
}

/// `X-TAGNAME`; an empty one is none.
pub fn tag(headers: &HeaderMap) -> Result<Option<Box<str>>, ApiError> {
    match name_header(headers, TAG_NAME)? {
        Some(tag) if is_name(&tag) => Ok(Some(tag.into())),
        Some(_) => Err(ApiError::BadParameter),
        None => Ok(None),
    }
}

/// `true` or `false`, `1` or `0`, in any case.
pub fn flag(headers: &HeaderMap, name: &str) -> Result<bool, ApiError> {
    match header(headers, name)? {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ApiError::BadParameter),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let mut byte = [0];
                hex::decode_to_slice(digits, &mut byte).ok()?;
                byte[0]
            }
            _ => *first,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The id in the path, percent-decoded.
pub struct Id(pub String);

/// No id of anything: what a path has that is no UTF-8.
const NO_ID: &str = "/";

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Id, Infallible> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let id = params.ok().and_then(|params| Some(params.iter().next()?.1.to_owned()));
        Ok(Id(id.unwrap_or_else(|| NO_ID.to_owned())))
    }
}

/// A whole body of the REST API.
pub struct Whole(pub Bytes);

impl FromRequest<Api> for Whole {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Whole, ApiError> {
        let (parts, body) = request.into_parts();
        whole_body(&parts.headers, body, api.settings().body_bytes_max)
            .await
            .map(Whole)
    }
}

/// The body, unless it has more bytes than this.
pub async fn whole_body(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let length: Option<usize> = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    match length {
        Some(length) if length > bytes_max => {
            // Who waits to be told (100-continue) does not send.
            if length <= HTTP_DRAIN_BYTES_MAX && !headers.contains_key(EXPECT) {
                drain(body).await;
            }
            Err(ApiError::PayloadTooLarge)
        }
        _ => read_body(body, bytes_max, Duration::from_millis(HTTP_BODY_TIMEOUT_MS)).await,
    }
}

async fn read_body(mut body: Body, bytes_max: usize, within: Duration) -> Result<Bytes, ApiError> {
    let until = Instant::now() + within;
    let mut whole = Vec::new();
    loop {
        let data = timeout_at(until, next_data(&mut body)).await;
        let Some(data) = data.map_err(|_| ApiError::RequestTimeout)?? else {
            return Ok(whole.into());
        };
        if whole.len() + data.len() > bytes_max {
            drain(body).await;
            return Err(ApiError::PayloadTooLarge);
        }
        whole.extend_from_slice(&data);
    }
}

/// Reads what nobody needs: a client that is still sending when its connection closes may never see why.
async fn drain(mut body: Body) {
    let read = async {
        let mut left = HTTP_DRAIN_BYTES_MAX;
        while let Ok(Some(data)) = next_data(&mut body).await {
            match left.checked_sub(data.len()) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    let _ = timeout(Duration::from_millis(HTTP_DRAIN_MS), read).await;
}

async fn next_data(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // The rest is trailers.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            // It was cut short: mostly nobody is there any more to be told.
            Some(Err(_)) => return Err(ApiError::BadParameter),
        }
    }
}

/// The fields of a body that is a JSON object. Of a key that is there twice, the last counts; keys that are not asked for are
/// ignored.
pub struct Fields(Map<String, Value>);

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(_) => Err(ApiError::BadParameter),
            Err(_) => Err(ApiError::BadJsonFormat),
        }
    }

    /// Where a body may be left out.
    pub fn parse_optional(body: &[u8]) -> Result<Fields, ApiError> {
        match body.trim_ascii() {
            [] => Ok(Fields(Map::new())),
            body => Fields::parse(body),
        }
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A text, of at most [`TEXT_CHARS_MAX`] characters.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() <= TEXT_CHARS_MAX => Ok(Some(text)),
            Some(_) => Err(ApiError::BadParameter),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(ApiError::BadParameter),
        }
    }

    /// A channel, or `null` for none. A number that no channel can have is refused as that of one that is not there.
    pub fn channel(&self, key: &str) -> Result<Option<Option<ChannelId>>, ApiError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
                let channel = number.as_u64().and_then(|number| u32::try_from(number).ok());
                let channel = channel.and_then(ChannelId::new).ok_or(ApiError::NoChannel)?;
                Ok(Some(Some(channel)))
            }
            Some(_) => Err(ApiError::BadParameter),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_header_is_one_value_of_visible_ascii() {
        assert_eq!(header(&headers(&[]), TAG_NAME), Ok(None));
        assert_eq!(header(&headers(&[(TAG_NAME, b"")]), TAG_NAME), Ok(None));
        assert_eq!(header(&headers(&[(TAG_NAME, b"a b")]), TAG_NAME), Ok(Some("a b")));
        for bad in ["ä".as_bytes(), b"\xff", b"a\x80"] {
            assert_eq!(
                header(&headers(&[(TAG_NAME, bad)]), TAG_NAME),
                Err(ApiError::BadParameter)
            );
        }
        let twice = headers(&[(TAG_NAME, b"a"), (TAG_NAME, b"a")]);
        assert_eq!(header(&twice, TAG_NAME), Err(ApiError::BadParameter));
    }

    #[test]
    fn a_tag_is_what_stands_there_or_is_encoded_and_said_to_be() {
        for (value, tag_name) in [
            ("inlet", "inlet"),
            ("50%", "50%"),
            ("%41", "%41"),
            ("'; drop table", "'; drop table"),
            ("UTF-8''%C3%A4", "ä"),
            ("utf-8''a%20b", "a b"),
            ("UTF-8''%2541", "%41"),
        ] {
            assert_eq!(
                tag(&headers(&[(TAG_NAME, value.as_bytes())])),
                Ok(Some(tag_name.into())),
                "{value}"
            );
        }
        let long = "x".repeat(65);
        for bad in [
            "a/b",
            "+",
            "#",
            &long,
            "UTF-8''%2F",
            "UTF-8''%0A",
            "UTF-8''%C3",
            "UTF-8''%4",
            "UTF-8''%zz",
        ] {
            assert_eq!(
                tag(&headers(&[(TAG_NAME, bad.as_bytes())])),
                Err(ApiError::BadParameter),
                "{bad}"
            );
        }
        let longest = "x".repeat(64);
        assert_eq!(
            tag(&headers(&[(TAG_NAME, longest.as_bytes())])),
            Ok(Some(longest.into()))
        );
        for none in ["", "UTF-8''"] {
            assert_eq!(tag(&headers(&[(TAG_NAME, none.as_bytes())])), Ok(None));
        }
    }

    #[test]
    fn a_flag_is_true_or_false_or_a_digit_in_any_case() {
        for (text, flagged) in [
            ("true", true),
            ("TRUE", true),
            ("1", true),
            ("False", false),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(
                flag(&headers(&[("x-withtag", text.as_bytes())]), "x-withtag"),
                Ok(flagged)
            );
        }
        assert_eq!(flag(&headers(&[]), "x-withtag"), Ok(false));
        for bad in ["yes", "2", "true ,"] {
            assert_eq!(
                flag(&headers(&[("x-withtag", bad.as_bytes())]), "x-withtag"),
                Err(ApiError::BadParameter)
            );
        }
    }

    #[test]
    fn a_body_that_is_no_json_is_told_from_one_that_is_no_object() {
        let deep = "[".repeat(10_000);
        let deep_object = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        for bad in [
            "",
            " ",
            "{",
            "{}x",
            "{'a':1}",
            r#"{"a":NaN}"#,
            "\u{feff}{}",
            &deep,
            &deep_object,
        ] {
            assert_eq!(
                Fields::parse(bad.as_bytes()).err(),
                Some(ApiError::BadJsonFormat),
                "{bad:.20}"
            );
        }
        assert_eq!(Fields::parse(b"{\"a\":\"\xff\"}").err(), Some(ApiError::BadJsonFormat));
        for bad in ["[]", "1", "\"{}\"", "null"] {
            assert_eq!(
                Fields::parse(bad.as_bytes()).err(),
                Some(ApiError::BadParameter),
                "{bad}"
            );
            assert_eq!(
                Fields::parse_optional(bad.as_bytes()).err(),
                Some(ApiError::BadParameter),
                "{bad}"
            );
        }
        for none in ["", " \r\n"] {
            assert!(Fields::parse_optional(none.as_bytes()).is_ok_and(|fields| fields.0.is_empty()));
        }
    }

    #[test]
    fn a_field_is_of_its_type_and_the_last_of_a_name_counts() {
        let fields = |body: &str| Fields::parse(body.as_bytes()).unwrap();
        assert_eq!(fields(r#"{"d":"a","d":"b"}"#).text("d"), Ok(Some("b".to_owned())));
        assert_eq!(fields("{}").text("d"), Ok(None));
        assert_eq!(fields(r#"{"d":1}"#).text("d"), Err(ApiError::BadParameter));
        assert_eq!(fields(r#"{"d":null}"#).text("d"), Err(ApiError::BadParameter));
        let long = format!(r#"{{"d":"{}"}}"#, "ä".repeat(TEXT_CHARS_MAX + 1));
        assert_eq!(fields(&long).text("d"), Err(ApiError::BadParameter));
        assert_eq!(fields(r#"{"e":true}"#).flag("e"), Ok(Some(true)));
        assert_eq!(fields(r#"{"e":"true"}"#).flag("e"), Err(ApiError::BadParameter));
        for (body, channel) in [
            ("{}", Ok(None)),
            (r#"{"m":null}"#, Ok(Some(None))),
            (r#"{"m":3}"#, Ok(Some(ChannelId::new(3)))),
            (r#"{"m":2147483648}"#, Err(ApiError::NoChannel)),
            (r#"{"m":-1}"#, Err(ApiError::NoChannel)),
            (r#"{"m":18446744073709551615}"#, Err(ApiError::NoChannel)),
            (r#"{"m":1.5}"#, Err(ApiError::BadParameter)),
            (r#"{"m":"3"}"#, Err(ApiError::BadParameter)),
            (r#"{"m":[3]}"#, Err(ApiError::BadParameter)),
        ] {
            assert_eq!(fields(body).channel("m"), channel, "{body}");
        }
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_its_limit() {
        let body = |len: usize| Body::from(vec![b'x'; len]);
        assert_eq!(
            whole_body(&headers(&[]), body(10), 10).await.map(|body| body.len()),
            Ok(10)
        );
        assert_eq!(
            whole_body(&headers(&[]), body(0), 10).await.map(|body| body.len()),
            Ok(0)
        );
        let too_large = Err(ApiError::PayloadTooLarge);
        assert_eq!(whole_body(&headers(&[]), body(11), 10).await, too_large);
        assert_eq!(
            whole_body(&headers(&[]), body(2 * HTTP_DRAIN_BYTES_MAX), 10).await,
            too_large
        );
        // What waits for 100 (Continue) is refused without being read, and so is what would take too long; of the rest nobody
        // waits for what does not come.
        for claims in [
            headers(&[("content-length", b"11"), ("expect", b"100-continue")]),
            headers(&[("content-length", b"99999999999")]),
            headers(&[("content-length", b"11")]),
        ] {
            assert_eq!(whole_body(&claims, Body::new(Never), 10).await, too_large);
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
        let read = read_body(Body::new(Never), 10, Duration::from_millis(20)).await;
        assert_eq!(read, Err(ApiError::RequestTimeout));
    }

    /// A body of which nothing comes.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
            std::task::Poll::Pending
        }
    }
}
