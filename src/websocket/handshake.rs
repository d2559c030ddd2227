//! The opening handshake (RFC 6455 section 4.2): an HTTP request in, whole or not yet; an HTTP response out.
//!
//! Called  by the reader of a connection, with all it has received, until the answer is not `Incomplete`.
//! Holds   - nothing is consumed or copied before the verdict; what lies behind the head belongs to the frames;
//!         - what can never become a request is refused at its first wrong byte, and what is no HTTP gets no HTTP back;
//!         - a refusal is a complete response, made of constants: nothing of the request is in it;
//!         - the work of one call is bounded by `WEBSOCKET_HANDSHAKE_BYTES_MAX`.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use httparse::{Header, Request, Status};
use sha1::{Digest as _, Sha1};

use super::error::HandshakeError;
use super::origin::AllowedOrigins;
use crate::limits::{WEBSOCKET_HANDSHAKE_BYTES_MAX, WEBSOCKET_HEADERS_MAX};

/// What a server appends to the key before it hashes it (section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const VERSION: &[u8] = b"13";
/// Paths that are MQTT; a query behind them is ignored.
const PATHS: [&str; 2] = ["/mqtt", "/"];
/// `mqtt` is MQTT's own name [MQTT-6.0.0-3]; clients of level 3 say the other. Compared exactly (section 4.1).
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// A key is sixteen random bytes (section 4.1). Clients that draw characters instead leave bits at its end that mean
/// nothing: they do no harm.
const KEY: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
const KEY_CHARACTERS: usize = 24;
const KEY_BYTES: usize = 16;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The beginning of a request: more bytes decide.
    Incomplete,
    /// After the response, frames. The client's first may lie behind the `consumed` bytes of its request.
    Accepted { consumed: usize, response: Vec<u8> },
    /// After the response, if it is not empty, nothing: the connection is closed.
    Refused { reason: HandshakeError, response: Vec<u8> },
}

/// Judges `bytes`, all that a connection has received. `is_secure`: it came over TLS; only the text of a refusal differs.
pub fn handshake(bytes: &[u8], origins: &AllowedOrigins, is_secure: bool) -> Handshake {
    // What is beyond the bound is not looked at, so that the verdict does not depend on how much has arrived.
    let head = &bytes[..bytes.len().min(WEBSOCKET_HANDSHAKE_BYTES_MAX)];
    let mut headers = [httparse::EMPTY_HEADER; WEBSOCKET_HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let reason = match request.parse(head) {
        Ok(Status::Complete(consumed)) => match judge(&request, origins) {
            Ok(terms) => {
                let response = acceptance(&terms);
                return Handshake::Accepted { consumed, response };
            }
            Err(reason) => reason,
        },
        Ok(Status::Partial) if head.len() < WEBSOCKET_HANDSHAKE_BYTES_MAX => return Handshake::Incomplete,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => HandshakeError::HeadTooLarge,
        // Not even a method: MQTT (0x10), TLS (0x16), another protocol's greeting.
        Err(_) if request.method.is_none() => HandshakeError::NotHttp,
        Err(_) => HandshakeError::BadRequest,
    };
    let response = refusal(reason, request.method == Some("HEAD"), is_secure);
    Handshake::Refused { reason, response }
}

/// What both sides agree on.
struct Terms<'a> {
    key: &'a [u8],
    subprotocol: Option<&'static str>,
}

/// The rules of section 4.2.1, those first that tell the most to whoever is wrong here.
fn judge<'a>(request: &Request<'_, 'a>, origins: &AllowedOrigins) -> Result<Terms<'a>, HandshakeError> {
    let headers = &*request.headers;
    if !matches!(request.method, Some("GET" | "HEAD")) {
        return Err(HandshakeError::Method);
    }
    if !request.path.is_some_and(|target| PATHS.contains(&path(target))) {
        return Err(HandshakeError::Path);
    }
    // httparse knows 1.0 and 1.1 and no other. In 1.0 there is no upgrade (RFC 9110 section 7.8): what asks for one has
    // come through a proxy that dropped or downgraded it.
    if request.version != Some(1) {
        return Err(HandshakeError::NoUpgrade);
    }
    only(headers, "Host").ok_or(HandshakeError::BadRequest)?;
    let asks = |name, word: &[u8]| items(headers, name).any(|item| item.eq_ignore_ascii_case(word));
    if request.method != Some("GET") || !asks("Upgrade", b"websocket") || !asks("Connection", b"upgrade") {
        return Err(HandshakeError::NoUpgrade);
    }
    if only(headers, "Sec-WebSocket-Version") != Some(VERSION) {
        return Err(HandshakeError::Version);
    }
    let key = only(headers, "Sec-WebSocket-Key").filter(|key| is_key(key));
    let key = key.ok_or(HandshakeError::BadRequest)?;
    if !values(headers, "Origin").all(|origin| origins.allow(origin)) {
        return Err(HandshakeError::Origin);
    }
    let subprotocol = subprotocol(headers)?;
    Ok(Terms { key, subprotocol })
}

/// The path of a request's target, which may be a whole URI (section 4.1, RFC 9112 section 3.2.2).
fn path(target: &str) -> &str {
    let before_query = target.split('?').next().unwrap_or_default();
    match before_query.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |start| &rest[start..]),
        _ => before_query,
    }
}

/// The values of every header of this name, in their order.
fn values<'h, 'a>(headers: &'h [Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'h, 'a> {
    let named = headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| header.value.trim_ascii())
}

/// The value of a header that stands there once.
fn only<'a>(headers: &[Header<'a>], name: &'static str) -> Option<&'a [u8]> {
    let mut values = values(headers, name);
    values.next().filter(|_| values.next().is_none())
}

/// The items of a list, which may be spread over several headers (RFC 9110 section 5.6.1).
fn items<'h, 'a>(headers: &'h [Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'h, 'a> {
    let items = values(headers, name).flat_map(|value| value.split(|&byte| byte == b','));
    items.map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

fn is_key(key: &[u8]) -> bool {
    // Room for what 24 characters without padding would be.
    let mut bytes = [0; KEY_CHARACTERS / 4 * 3];
    key.len() == KEY_CHARACTERS && KEY.decode_slice(key, &mut bytes) == Ok(KEY_BYTES)
}

/// The first of the client's that is MQTT, as it lists them in the order it prefers (section 4.1). A client that names
/// none gets none: it breaks [MQTT-6.0.0-3] and harms nobody, MQTT itself says what follows.
fn subprotocol(headers: &[Header<'_>]) -> Result<Option<&'static str>, HandshakeError> {
    const NAME: &str = "Sec-WebSocket-Protocol";
    if values(headers, NAME).next().is_none() {
        return Ok(None);
    }
    let ours = |item: &[u8]| SUBPROTOCOLS.into_iter().find(|ours| ours.as_bytes() == item);
    let found = items(headers, NAME).find_map(ours);
    found.map(Some).ok_or(HandshakeError::Subprotocol)
}

/// The value of `Sec-WebSocket-Accept` (section 4.2.2).
fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID);
    STANDARD.encode(hash.finalize())
}

fn acceptance(terms: &Terms<'_>) -> Vec<u8> {
    let mut response =
        String::from("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    response.push_str("Sec-WebSocket-Accept: ");
    response.push_str(&accept(terms.key));
    if let Some(subprotocol) = terms.subprotocol {
        response.push_str("\r\nSec-WebSocket-Protocol: ");
        response.push_str(subprotocol);
    }
    response.push_str("\r\n\r\n");
    response.into_bytes()
}

/// Status line, the headers that belong to it, and what a person reads.
const fn explanation(reason: HandshakeError) -> (&'static str, &'static str, &'static str) {
    const CLOSE: &str = "Connection: close\r\n";
    match reason {
        HandshakeError::NotHttp | HandshakeError::BadRequest => (
            "400 Bad Request",
            CLOSE,
            "The request is not a well-formed WebSocket handshake.",
        ),
        HandshakeError::HeadTooLarge => (
            "431 Request Header Fields Too Large",
            CLOSE,
            "The request has more headers than a handshake needs: too many cookies, perhaps.",
        ),
        HandshakeError::Method => (
            "405 Method Not Allowed",
            "Allow: GET\r\nConnection: close\r\n",
            "A WebSocket begins with GET; the request had another method.",
        ),
        HandshakeError::Path => ("404 Not Found", CLOSE, "There is nothing at this path."),
        HandshakeError::NoUpgrade => (
            "426 Upgrade Required",
            "Upgrade: websocket\r\nConnection: Upgrade, close\r\n",
            "The request did not ask for a WebSocket. If it was sent by an MQTT client, a proxy in between must speak \
             HTTP/1.1 and pass on the headers <code>Upgrade</code> and <code>Connection</code>.",
        ),
        HandshakeError::Version => (
            "426 Upgrade Required",
            "Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n",
            "The client speaks another version of WebSocket; this is version 13 (RFC 6455).",
        ),
        HandshakeError::Origin => (
            "403 Forbidden",
            CLOSE,
            "Pages of this origin may not connect. Who runs the broker can allow them (<code>--ws-allow-origin</code>).",
        ),
        HandshakeError::Subprotocol => (
            "400 Bad Request",
            CLOSE,
            "The client offered other subprotocols, but not <code>mqtt</code>.",
        ),
    }
}

/// The whole response to what is refused; none to what is no HTTP.
fn refusal(reason: HandshakeError, is_head: bool, is_secure: bool) -> Vec<u8> {
    if reason == HandshakeError::NotHttp {
        return Vec::new();
    }
    let (status, headers, text) = explanation(reason);
    let scheme = if is_secure { "wss" } else { "ws" };
    let page = format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MQTT over WebSocket</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 36rem; margin: 15vh auto 0; padding: 0 1.5rem; font: 1.05rem/1.6 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .3rem 1.5rem; }}
dt {{ opacity: .7; }}
dd {{ margin: 0; }}
footer {{ margin-top: 2.5rem; font-size: .9rem; opacity: .7; }}
</style>
</head>
<body>
<h1>This is MQTT over WebSocket</h1>
<p>{text}</p>
<p>There are no pages on this port. An MQTT client connects with:</p>
<dl>
<dt>Address</dt><dd><code>{scheme}://</code>host and port of this page<code>/mqtt</code></dd>
<dt>Subprotocol</dt><dd><code>mqtt</code></dd>
</dl>
<footer>{status}</footer>
</body>
</html>
"#
    );
    let mut response = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\r\n",
        page.len()
    );
    if !is_head {
        response.push_str(&page);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 6] = [
        "Host: broker.example",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: mqtt",
    ];

    fn request(line: &str, headers: &[&str]) -> String {
        format!("{line}\r\n{}\r\n\r\n", headers.join("\r\n"))
    }

    /// A good request, except for the headers of these names: they are left out, or come with these values.
    fn request_with(changes: &[(&str, &[&str])]) -> String {
        let is_changed = |header: &str| changes.iter().any(|(name, _)| header.split(':').next() == Some(name));
        let mut headers: Vec<_> = GOOD
            .iter()
            .filter(|header| !is_changed(header))
            .map(|h| (*h).to_owned())
            .collect();
        for (name, values) in changes {
            headers.extend(values.iter().map(|value| format!("{name}: {value}")));
        }
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        request("GET /mqtt HTTP/1.1", &headers)
    }

    fn only_from(origins: &[&str]) -> AllowedOrigins {
        AllowedOrigins::parse(origins).unwrap()
    }

    /// The subprotocol in the answer to a request that is accepted, not before its last byte.
    #[track_caller]
    fn accepted(request: &str, origins: &AllowedOrigins) -> Option<String> {
        let bytes = request.as_bytes();
        for have in 0..bytes.len() {
            assert_eq!(handshake(&bytes[..have], origins, false), Handshake::Incomplete);
        }
        let with_frames = [bytes, &[0x82, 0x80]].concat();
        let Handshake::Accepted { consumed, response } = handshake(&with_frames, origins, false) else {
            panic!("refused: {request}")
        };
        assert_eq!(consumed, bytes.len());
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
        let mut lines = response.lines();
        lines
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "))
            .map(str::to_owned)
    }

    /// The head and the page of a refusal, which are a valid response.
    #[track_caller]
    fn refused(bytes: &[u8], origins: &AllowedOrigins, reason: HandshakeError, status: u16) -> (String, String) {
        let Handshake::Refused {
            reason: found,
            response,
        } = handshake(bytes, origins, false)
        else {
            panic!("not refused: {}", bytes.escape_ascii())
        };
        assert_eq!(found, reason, "{}", bytes.escape_ascii());
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut headers);
        let head_len = parsed.parse(&response).unwrap().unwrap();
        assert_eq!(parsed.code, Some(status));
        let (head, page) = response.split_at(head_len);
        let length: usize = std::str::from_utf8(only(parsed.headers, "Content-Length").unwrap())
            .unwrap()
            .parse()
            .unwrap();
        assert!(items(parsed.headers, "Connection").any(|item| item == b"close"));
        assert_eq!(
            only(parsed.headers, "Content-Type"),
            Some(&b"text/html; charset=utf-8"[..])
        );
        if bytes.starts_with(b"HEAD") {
            assert!(page.is_empty() && length > 0);
        } else {
            assert_eq!(page.len(), length);
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(head), text(page))
    }

    const ANY: AllowedOrigins = AllowedOrigins::Any;

    #[test]
    fn section_1_3_the_example_of_the_rfc() {
        let request = "GET /mqtt HTTP/1.1\r\n\
            Host: server.example.com\r\n\
            Upgrade: websocket\r\n\
            Connection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Origin: http://example.com\r\n\
            Sec-WebSocket-Protocol: chat, mqtt\r\n\
            Sec-WebSocket-Version: 13\r\n\r\n";
        let response = "HTTP/1.1 101 Switching Protocols\r\n\
            Upgrade: websocket\r\n\
            Connection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
            Sec-WebSocket-Protocol: mqtt\r\n\r\n";
        assert_eq!(
            handshake(request.as_bytes(), &ANY, false),
            Handshake::Accepted {
                consumed: request.len(),
                response: response.into()
            }
        );
    }

    #[test]
    fn section_4_2_1_lists_case_and_paths_as_clients_write_them() {
        for line in [
            "GET /mqtt HTTP/1.1",
            "GET / HTTP/1.1",
            "GET /mqtt?token=a?b://c HTTP/1.1",
            "GET /?x HTTP/1.1",
            "GET http://broker.example/mqtt?x HTTP/1.1",
            "GET ws://broker.example HTTP/1.1",
            "GET https://broker.example?x HTTP/1.1",
        ] {
            assert_eq!(accepted(&request(line, &GOOD), &ANY).as_deref(), Some("mqtt"), "{line}");
        }
        for changes in [
            ("Upgrade", &["h2c, WebSocket"][..]),
            ("Upgrade", &["h2c", "websocket"]),
            ("Connection", &["keep-alive, Upgrade"]),
            ("Connection", &["keep-alive", " ,\tupgrade , x"]),
            // The last character has bits that mean nothing.
            ("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25jZR=="]),
            (
                "Sec-WebSocket-Extensions",
                &["permessage-deflate; client_max_window_bits"],
            ),
            ("Origin", &["https://anywhere.example"]),
            ("Host", &[""]),
        ] {
            assert_eq!(
                accepted(&request_with(&[changes]), &ANY).as_deref(),
                Some("mqtt"),
                "{changes:?}"
            );
        }
        let shouted = request_with(&[])
            .replace("Sec-WebSocket", "SEC-WEBSOCKET")
            .replace("Upgrade:", "upgrade:");
        assert_eq!(accepted(&shouted, &ANY).as_deref(), Some("mqtt"));
    }

    #[test]
    fn mqtt_6_0_0_4_the_first_offered_subprotocol_that_is_mqtt_is_the_answer() {
        for (offers, answer) in [
            (&["mqtt"][..], Some("mqtt")),
            (&["mqttv3.1"], Some("mqttv3.1")),
            (&["mqttv3.1, mqtt"], Some("mqttv3.1")),
            (&["chat ,mqtt,mqttv3.1"], Some("mqtt")),
            (&["chat", "mqttv3.1", "mqtt"], Some("mqttv3.1")),
            (&[], None),
        ] {
            let request = request_with(&[("Sec-WebSocket-Protocol", offers)]);
            assert_eq!(accepted(&request, &ANY).as_deref(), answer, "{offers:?}");
        }
        for offers in [&["MQTT"][..], &["chat"], &["mqttv5", "mqtt3.1"], &[""], &["mqtt;x"]] {
            let request = request_with(&[("Sec-WebSocket-Protocol", offers)]);
            let (_, page) = refused(request.as_bytes(), &ANY, HandshakeError::Subprotocol, 400);
            assert!(page.contains("subprotocols"));
        }
    }

    #[test]
    fn every_refusal_has_its_status() {
        use HandshakeError::{BadRequest, Method, NoUpgrade, Path, Version};
        let lines = [
            ("GET /other HTTP/1.1", Path, 404),
            ("GET /mqtt/ HTTP/1.1", Path, 404),
            ("GET /MQTT HTTP/1.1", Path, 404),
            ("GET http://broker.example/other HTTP/1.1", Path, 404),
            ("HEAD /favicon.ico HTTP/1.1", Path, 404),
            ("POST /mqtt HTTP/1.1", Method, 405),
            ("OPTIONS * HTTP/1.1", Method, 405),
            ("get /mqtt HTTP/1.1", Method, 405),
            ("HEAD /mqtt HTTP/1.1", NoUpgrade, 426),
            ("GET /mqtt HTTP/1.0", NoUpgrade, 426),
            ("GET /mqtt HTTP/2.0", BadRequest, 400),
            ("GET /mqtt HTTP/0.9", BadRequest, 400),
            ("GET /mqtt", BadRequest, 400),
            ("GET  /mqtt HTTP/1.1", BadRequest, 400),
        ];
        for (line, reason, status) in lines {
            refused(request(line, &GOOD).as_bytes(), &ANY, reason, status);
        }
        let changes = [
            ("Host", &[][..], BadRequest, 400),
            ("Host", &["a", "a"], BadRequest, 400),
            ("Upgrade", &[], NoUpgrade, 426),
            ("Upgrade", &["websockets"], NoUpgrade, 426),
            ("Connection", &[], NoUpgrade, 426),
            ("Connection", &["keep-alive"], NoUpgrade, 426),
            ("Sec-WebSocket-Version", &[], Version, 426),
            ("Sec-WebSocket-Version", &["8"], Version, 426),
            ("Sec-WebSocket-Version", &["013"], Version, 426),
            ("Sec-WebSocket-Version", &["13", "13"], Version, 426),
            ("Sec-WebSocket-Key", &[], BadRequest, 400),
            (
                "Sec-WebSocket-Key",
                &["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=="],
                BadRequest,
                400,
            ),
            ("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25j"], BadRequest, 400),
            ("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25jZSEh"], BadRequest, 400),
            ("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25jZSE="], BadRequest, 400),
            ("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25j!Q=="], BadRequest, 400),
            ("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25jZQ"], BadRequest, 400),
            ("Bad Name", &["x"], BadRequest, 400),
            ("X", &["a\r\n folded"], BadRequest, 400),
            ("X", &["\0"], BadRequest, 400),
        ];
        for (name, values, reason, status) in changes {
            refused(request_with(&[(name, values)]).as_bytes(), &ANY, reason, status);
        }
    }

    #[test]
    fn refusals_carry_the_headers_of_their_status() {
        let head = |request: String, reason, status| refused(request.as_bytes(), &ANY, reason, status).0;
        let browser = head(request("GET / HTTP/1.1", &GOOD[..1]), HandshakeError::NoUpgrade, 426);
        assert!(browser.contains("\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"));
        let version = head(
            request_with(&[("Sec-WebSocket-Version", &["7"])]),
            HandshakeError::Version,
            426,
        );
        assert!(version.contains("\r\nSec-WebSocket-Version: 13\r\n"));
        let method = head(request("PUT / HTTP/1.1", &GOOD), HandshakeError::Method, 405);
        assert!(method.contains("\r\nAllow: GET\r\n"));
    }

    #[test]
    fn the_page_says_how_to_connect() {
        for (is_secure, address) in [(false, "<code>ws://"), (true, "<code>wss://")] {
            let bytes = request("GET / HTTP/1.1", &GOOD[..1]);
            let Handshake::Refused { response, .. } = handshake(bytes.as_bytes(), &ANY, is_secure) else {
                panic!("a browser is refused")
            };
            let page = String::from_utf8(response).unwrap();
            for part in [address, "/mqtt</code>", "<code>mqtt</code>", "MQTT over WebSocket"] {
                assert!(page.contains(part), "{part}");
            }
        }
    }

    #[test]
    fn what_is_no_http_is_refused_at_its_first_wrong_byte_and_gets_no_answer() {
        let proxy = b"\r\n\r\n\0\r\nQUIT\n";
        for bytes in [
            &[0x10][..],
            &[0x16],
            &[0x16, 3, 1, 2, 0],
            proxy,
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b" GET",
            b"\xff",
        ] {
            let refused = Handshake::Refused {
                reason: HandshakeError::NotHttp,
                response: Vec::new(),
            };
            assert_eq!(handshake(bytes, &ANY, false), refused, "{}", bytes.escape_ascii());
        }
        // HTTP that has gone wrong is refused as early, with an answer.
        for bytes in [
            &b"GET /\0"[..],
            b"GET / HTTX",
            b"GET / HTTP/1.1\r\nHo st",
            b"PRI * HTTP/2.0\r\n",
        ] {
            refused(bytes, &ANY, HandshakeError::BadRequest, 400);
        }
    }

    #[test]
    fn a_head_above_its_bounds_is_refused() {
        let padded = |len: usize| {
            let bare = request_with(&[("X", &[""])]).len();
            let request = request_with(&[("X", &["a".repeat(len - bare).as_str()])]);
            assert_eq!(request.len(), len);
            request
        };
        accepted(&padded(WEBSOCKET_HANDSHAKE_BYTES_MAX), &ANY);
        let long = padded(WEBSOCKET_HANDSHAKE_BYTES_MAX + 1);
        refused(long.as_bytes(), &ANY, HandshakeError::HeadTooLarge, 431);
        let have = &long.as_bytes()[..WEBSOCKET_HANDSHAKE_BYTES_MAX];
        assert_eq!(handshake(&have[1..], &ANY, false), Handshake::Incomplete);
        refused(have, &ANY, HandshakeError::HeadTooLarge, 431);

        let more = vec!["a"; WEBSOCKET_HEADERS_MAX - GOOD.len() + 1];
        accepted(&request_with(&[("X", &more[1..])]), &ANY);
        let many = request_with(&[("X", &more)]);
        refused(many.as_bytes(), &ANY, HandshakeError::HeadTooLarge, 431);
    }

    #[test]
    fn section_10_2_only_allowed_origins_connect_and_what_has_none_does() {
        let origins = only_from(&[
            "https://Example.org",
            "http://localhost:3000",
            "https://a.example:443",
            "null",
        ]);
        for origin in [
            "https://example.org",
            "HTTPS://EXAMPLE.ORG",
            "http://localhost:3000",
            "https://a.example",
            "null",
        ] {
            accepted(&request_with(&[("Origin", &[origin])]), &origins);
        }
        accepted(&request_with(&[]), &origins);
        for values in [
            &["http://example.org"][..],
            &["https://example.org:8443"],
            &["https://example.org.evil.example"],
            &["https://example.org/"],
            &["http://localhost"],
            &[""],
            &["https://example.org", "http://example.org"],
            &["https://example.org https://a.example"],
        ] {
            let request = request_with(&[("Origin", values)]);
            refused(request.as_bytes(), &origins, HandshakeError::Origin, 403);
        }
    }
}
