//! Where a webhook may go.

use reqwest::Url;

/// The URL of a webhook: `http` or `https`, with a host.
pub fn parse(text: &str) -> Result<Url, ()> {
    let url = Url::parse(text).map_err(drop)?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(()),
    }
}
