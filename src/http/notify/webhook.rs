//! A POST to the target of an event, once.
//!
//! Owns    the HTTP client.
//! Called  by [`delivery`](super::delivery), for every attempt.
//! Holds   - a connection is made only to an address that the rule of [`target`](super::target) allows, of a host of which it
//!           allows all addresses: the resolver is ours, and the addresses it gives are those that are connected to;
//!         - redirects are not followed, proxies of the environment not used, and of an answer nothing is read but its head.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use tokio::sync::Semaphore;

use super::target::{self, Allow, Refused};
use crate::limits::{WEBHOOK_ADDRESSES_MAX, WEBHOOK_IDLE_MS, WEBHOOK_LOOKUPS_MAX};

/// Why a POST was no success.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It will be no other time.
    #[error("{0}")]
    Refused(Refused),
    #[error("it answered {0}")]
    Status(u16),
    #[error("it did not answer in time")]
    Timeout,
    #[error("{0}")]
    Unreachable(String),
}

pub struct Webhooks {
    client: Client,
    allow: Arc<Allow>,
}

impl Webhooks {
    /// `timeout` is for one attempt, from looking up the host to the head of the answer.
    pub fn new(allow: Allow, timeout: Duration) -> Webhooks {
        let allow = Arc::new(allow);
        let client = Client::builder()
            .tls_backend_preconfigured(tls())
            .dns_resolver(Resolver {
                allow: Arc::clone(&allow),
                lookups: Arc::new(Semaphore::new(WEBHOOK_LOOKUPS_MAX)),
            })
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(timeout)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_millis(WEBHOOK_IDLE_MS))
            .user_agent(concat!("skein/", env!("CARGO_PKG_VERSION")))
            .build()
            .expect("it takes a configuration of the rustls it was built with");
        Webhooks { client, allow }
    }

    pub async fn post(&self, url: Url, json: Vec<u8>) -> Result<(), Failure> {
        // What is no name is not looked up.
        if let Some(address) = target::literal(&url)
            && !self.allow.allows(address)
        {
            return Err(Failure::Refused(Refused(address)));
        }
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .body(json);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(Failure::Status(answer.status().as_u16())),
            Err(error) => Err(failure(&error)),
        }
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Failure::Refused(*refused);
        }
        match cause.source() {
            Some(source) => cause = source,
            // The first has the URL in it, which may hold secrets; the last is what happened.
            None if error.is_timeout() => return Failure::Timeout,
            None => return Failure::Unreachable(cause.to_string()),
        }
    }
}

/// With the certificates that this host trusts.
fn tls() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS 1.2 and 1.3 need");
    match Verifier::new(provider) {
        Ok(verifier) => config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth(),
        Err(error) => {
            tracing::warn!(%error, "this host trusts no certificates: webhooks over https will fail");
            config
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        }
    }
}

/// Looks a host up and lets nothing through that is not allowed.
struct Resolver {
    allow: Arc<Allow>,
    /// A look-up blocks a thread, also when nobody waits for it any more.
    lookups: Arc<Semaphore>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow, lookups) = (Arc::clone(&self.allow), Arc::clone(&self.lookups));
        Box::pin(async move {
            let permit = lookups.acquire_owned().await?;
            let addresses = tokio::task::spawn_blocking(move || {
                let found = look_up(name.as_str());
                drop(permit);
                found
            });
            let addresses = check(&allow, addresses.await??)?;
            // Port 0 stands for that of the URL.
            let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

fn look_up(host: &str) -> io::Result<Vec<IpAddr>> {
    let found = (host, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

/// All of them, or none.
pub(super) fn check(allow: &Allow, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refused> {
    match addresses.iter().find(|address| !allow.allows(**address)) {
        Some(address) => Err(Refused(*address)),
        None => {
            addresses.truncate(WEBHOOK_ADDRESSES_MAX);
            Ok(addresses)
        }
    }
}
