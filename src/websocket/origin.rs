//! Which pages may connect (RFC 6455 section 10.2).
//!
//! Called  by the configuration (parse, once) and by `handshake` (for each request that has an origin).
//! Holds   - an allowed origin is kept as a browser serializes it, so one comparison decides.

use std::sync::Arc;

/// Which `Origin` may connect (`--ws-allow-origin`). Any by default.
///
/// An origin names the page that a browser runs (section 10.2); what is no browser has none and is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedOrigins {
    #[default]
    Any,
    /// As a browser serializes them: `scheme://host`, and `:port` where it is not the scheme's own. Lower case.
    Only(Arc<[String]>),
}

impl AllowedOrigins {
    /// `any`, or a list of origins such as `https://example.org` or `https://example.org:8443`. The error is a sentence
    /// for the operator.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, String> {
        match texts {
            [] => Err("no origin is listed: `any` allows every one".to_owned()),
            [any] if any.as_ref() == "any" => Ok(AllowedOrigins::Any),
            texts => {
                let origins: Result<Vec<_>, _> = texts.iter().map(|text| origin(text.as_ref())).collect();
                Ok(AllowedOrigins::Only(origins?.into()))
            }
        }
    }

    pub(super) fn allow(&self, origin: &[u8]) -> bool {
        match self {
            AllowedOrigins::Any => true,
            AllowedOrigins::Only(origins) => origins.iter().any(|only| origin.eq_ignore_ascii_case(only.as_bytes())),
        }
    }
}

/// An origin as a browser serializes it (RFC 6454 section 6.2): lower case, without the scheme's own port.
fn origin(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    // What has no origin to tell: sandboxed frames and, with some browsers, local files. With others these say `file://`.
    if lower == "null" || lower == "file://" {
        return Ok(lower);
    }
    let wrong = |what: &str| Err(format!("`{text}` is no origin: {what}"));
    if lower == "any" {
        return wrong("`any` stands alone");
    }
    let Some((scheme, rest)) = lower.split_once("://") else {
        return wrong("it begins with a scheme, as in https://example.org");
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if !is_scheme {
        return wrong("its scheme is none; a good one is https");
    }
    if rest.contains(['/', '?', '#']) {
        return wrong("it ends with its host or port, without a path and without a slash");
    }
    // In brackets an address of IPv6, which has colons of its own.
    let host_end = rest.find(']').map_or(0, |end| end + 1);
    let (host, port) = match rest[host_end..].split_once(':') {
        Some((_, port)) => (&rest[..rest.len() - port.len() - 1], Some(port)),
        None => (rest, None),
    };
    let is_host = match host.strip_prefix('[') {
        Some(address) => {
            let address = address.strip_suffix(']').unwrap_or_default();
            !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit() || ":.".contains(c))
        }
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c)),
    };
    if !is_host {
        return wrong("its host is none; one beyond ASCII is written as the browser sends it (xn--...)");
    }
    let Some(port) = port else { return Ok(lower) };
    let number = port.parse().unwrap_or(0_u16);
    if number == 0 || port != number.to_string() {
        return wrong("its port is no number from 1 to 65535");
    }
    let is_own = matches!((scheme, number), ("http", 80) | ("https", 443));
    Ok(if is_own { format!("{scheme}://{host}") } else { lower })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_origins_are_any_or_a_list_of_origins() {
        assert_eq!(AllowedOrigins::default(), AllowedOrigins::Any);
        assert_eq!(AllowedOrigins::parse(&["any"]), Ok(AllowedOrigins::Any));
        for (text, origin) in [
            ("https://example.org", "https://example.org"),
            ("HTTPS://Example.Org:8443", "https://example.org:8443"),
            ("http://example.org:80", "http://example.org"),
            ("https://example.org:443", "https://example.org"),
            ("http://example.org:443", "http://example.org:443"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://[2001:DB8::1]", "http://[2001:db8::1]"),
            ("moz-extension://0a1b", "moz-extension://0a1b"),
            ("file://", "file://"),
            ("null", "null"),
        ] {
            let only = AllowedOrigins::Only([origin.to_owned()].into());
            assert_eq!(AllowedOrigins::parse(&[text]), Ok(only));
        }
        for text in [
            "",
            "example.org",
            "example.org:8443",
            "//example.org",
            "://example.org",
            "1http://example.org",
            "https://",
            "https://:443",
            "https://example.org/",
            "https://example.org/path",
            "https://example.org?x",
            "https://user@example.org",
            "https://example.org:",
            "https://example.org:0",
            "https://example.org:080",
            "https://example.org:+80",
            "https://example.org:65536",
            "https://a:1:2",
            "https://[::1",
            "https://[]",
            "https://[::1]x",
            "https://::1",
            "https://*.example.org",
            "https://zoë.example",
            "https://a https://b",
        ] {
            let sentence = AllowedOrigins::parse(&[text]).unwrap_err();
            assert!(sentence.starts_with(&format!("`{text}` is no origin: ")), "{sentence}");
        }
        assert!(AllowedOrigins::parse(&["any", "https://example.org"]).is_err());
        assert!(AllowedOrigins::parse::<&str>(&[]).is_err());
    }
}
