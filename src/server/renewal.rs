//! The certificate over the time of a run: read at the start, and anew when its files change or an operator asks for it.
//!
//! Called  by `server` on the main thread: [`Renewal::start`] once, [`Renewal::reload`] on SIGHUP, [`Renewal::look`] every
//!         [`CERTIFICATE_POLL_MS`](crate::limits::CERTIFICATE_POLL_MS).
//! Holds   - what cannot be used changes nothing: the certificate in use stays, and the log says why;
//!         - files are read once they have stood still for one look: a certificate and its key are not replaced at one instant;
//!         - files are looked at by their state, not watched: they may be links that are turned, on any file system.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::net::certificate::{
    CertificateError, Fingerprint, Loaded, Source, Tls, TlsSettings, Validity, fingerprint, load,
};

/// Where the self-made certificate is kept, in the data directory.
const SELF_MADE_DIRECTORY: &str = "tls";

pub struct Renewal {
    settings: TlsSettings,
    /// The files as they were when they were last read.
    read: Fingerprint,
    /// They have changed since, to this, when last looked at.
    changed: Option<Fingerprint>,
    /// The certificate in use.
    certificate: PathBuf,
    is_self_made: bool,
    not_after: i64,
}

impl Renewal {
    pub fn start(config: &Config) -> Result<(Renewal, Tls), CertificateError> {
        let settings = TlsSettings {
            source: match &config.tls_certificate {
                Some(files) => Source::Files {
                    certificate: files.certificate.clone(),
                    key: files.key.clone(),
                },
                None => Source::SelfMade {
                    directory: config.data_dir.join(SELF_MADE_DIRECTORY),
                },
            },
            client_ca: config.tls_client_ca.clone(),
        };
        let now = SystemTime::now();
        let before = fingerprint(&settings);
        let loaded = load(&settings, now)?;
        // A certificate that was just made has changed its files.
        let read = if loaded.was_made {
            fingerprint(&settings)
        } else {
            before
        };
        tell(
            &loaded,
            if loaded.was_made {
                "a certificate was made"
            } else {
                "the certificate was read"
            },
        );
        let (certificate, until) = (loaded.certificate.display(), date(loaded.not_after));
        match loaded.validity(now) {
            Validity::Valid => {}
            Validity::Expired => tracing::warn!("{certificate} has expired on {until}: clients will refuse it"),
            Validity::NotYet => {
                let from = date(loaded.not_before);
                tracing::warn!("{certificate} is valid from {from} on: until then clients will refuse it");
            }
        }
        let renewal = Renewal {
            settings,
            read,
            changed: None,
            certificate: loaded.certificate,
            is_self_made: loaded.is_self_made,
            not_after: loaded.not_after,
        };
        Ok((renewal, loaded.tls))
    }

    /// The certificate file, if it is of this broker's own making: nobody trusts it without having it.
    pub fn self_made(&self) -> Option<&Path> {
        self.is_self_made.then_some(&self.certificate)
    }

    /// Reads the files if they have changed and stand still.
    pub fn look(&mut self) -> Option<Loaded> {
        let found = fingerprint(&self.settings);
        if found == self.read {
            self.changed = None;
            return None;
        }
        match self.changed.as_ref() == Some(&found) {
            true => self.reload(),
            false => {
                self.changed = Some(found);
                None
            }
        }
    }

    /// Reads the files; None if they cannot be used. What is read is to be given to the cores, and then [`tell_renewed`].
    pub fn reload(&mut self) -> Option<Loaded> {
        let now = SystemTime::now();
        self.changed = None;
        self.read = fingerprint(&self.settings);
        let loaded = match load(&self.settings, now) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!("the certificate in use stays: {error}");
                return None;
            }
        };
        let is_in_use_valid = UNIX_EPOCH + Duration::from_secs(self.not_after.max(0) as u64) > now;
        if loaded.validity(now) != Validity::Valid && is_in_use_valid {
            tracing::error!(
                "the certificate in use stays: {} is valid from {} to {}; give --tls-cert one that is valid now",
                loaded.certificate.display(),
                date(loaded.not_before),
                date(loaded.not_after)
            );
            return None;
        }
        self.certificate.clone_from(&loaded.certificate);
        self.not_after = loaded.not_after;
        if loaded.was_made {
            self.read = fingerprint(&self.settings);
        }
        Some(loaded)
    }
}

/// When every handshake that begins shows it.
pub fn tell_renewed(loaded: &Loaded) {
    tell(loaded, "the certificate was read anew; who is connected stays");
}

fn tell(loaded: &Loaded, what: &str) {
    let (names, until) = (loaded.names.join(" "), date(loaded.not_after));
    tracing::info!(certificate = %loaded.certificate.display(), names, %until, "{what}");
    if loaded.is_rsa {
        tracing::info!("an RSA key makes each handshake several times as costly as an ECDSA key (P-256) would");
    }
}

fn date(unix_s: i64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s.max(0) as u64))
}
