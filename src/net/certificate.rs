//! The broker's certificate: from the operator's files, or made by the broker for itself.
//!
//! Owns    the rules of TLS: versions, client certificates, resumption; the sentences for files that cannot be used.
//! Called  by `server`: [`load`] at the start and, when [`fingerprint`] has changed, again; the [`Tls`] that comes of it
//!         goes to every core and replaces what was there as a whole.
//! Holds   - the key belongs to the certificate, or there is no [`Tls`];
//!         - every load has ticket keys of its own: a session that was begun under other files, another client authority
//!           among them, is not resumed;
//!         - with a client authority, no handshake ends without a certificate that it issued.
//!
//! Sessions are resumed by tickets that the client keeps, sealed by [`Ticketer`], in TLS 1.2 and 1.3: the cores share a
//! key and no table, and a client costs nothing between its connections. Each of `mqtts` and `wss` has its own ticketer,
//! since a shared one would let the handshake of one protocol be resumed in the other, and a key costs nothing.
//! A ticket carries the client's certificate for up to 12 hours, and rustls does not check it again: who resumes a session
//! may ask [`Tls::client_verifier`].

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, Ticketer};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SignatureAlgorithm};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::self_made;
use crate::limits::CERTIFICATE_FILE_BYTES_MAX;

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `--tls-cert` and `--tls-key`
    Files { certificate: PathBuf, key: PathBuf },
    /// The broker's own, kept in this directory.
    SelfMade { directory: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    pub source: Source,
    /// `--tls-client-ca`. None: no client is asked for a certificate.
    pub client_ca: Option<PathBuf>,
}

impl TlsSettings {
    /// The files of the certificate and of its key.
    fn pair(&self) -> (PathBuf, PathBuf) {
        match &self.source {
            Source::Files { certificate, key } => (certificate.clone(), key.clone()),
            Source::SelfMade { directory } => self_made::pair(directory),
        }
    }
}

/// What every core holds; replaced as a whole when the files have changed.
#[derive(Clone, Debug)]
pub struct Tls {
    /// ALPN "mqtt".
    pub mqtts: Arc<ServerConfig>,
    /// ALPN "http/1.1".
    pub wss: Arc<ServerConfig>,
    /// What both ask of a client's certificate.
    pub client_verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// A certificate in use, and what there is to say of it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub tls: Tls,
    /// There was no certificate, or it had expired: the broker made this one now.
    pub was_made: bool,
    pub is_self_made: bool,
    pub is_rsa: bool,
    pub certificate: PathBuf,
    /// The names and addresses of the host that it is for (subjectAltName).
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Valid,
    Expired,
    NotYet,
}

impl Loaded {
    /// A certificate out of its time loads as any other: what is better than none is for the caller to say.
    pub fn validity(&self, now: SystemTime) -> Validity {
        validity(self.not_before, self.not_after, now)
    }
}

fn validity(not_before: i64, not_after: i64, now: SystemTime) -> Validity {
    let now = self_made::seconds(now);
    match (now < not_before, now > not_after) {
        (true, _) => Validity::NotYet,
        (false, true) => Validity::Expired,
        (false, false) => Validity::Valid,
    }
}

/// What the operator has to change. Each is one sentence that names the path.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{path} {problem}; {}", .role.advice(.problem), path = path.display())]
    File {
        path: PathBuf,
        role: Role,
        problem: Problem,
    },
    #[error(
        "cannot keep a certificate in {directory}: {error}; give this user the right to write there, or give --tls-cert and \
         --tls-key the files of one", directory = directory.display()
    )]
    Write { directory: PathBuf, error: io::Error },
    #[error("cannot make a certificate: {0}; give --tls-cert and --tls-key the files of one")]
    Make(String),
}

/// What a file is for, which tells what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Certificate,
    Key,
    ClientCa,
    /// Either file of a certificate that the broker made for itself.
    SelfMade {
        directory: PathBuf,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is larger than {CERTIFICATE_FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("is not in PEM format")]
    NotPem,
    #[error("is damaged: {0}")]
    Damaged(String),
    #[error("has no certificate in it")]
    NoCertificate,
    #[error("has a certificate in it that cannot be used: {0}")]
    UnusableCertificate(String),
    #[error("has no private key in it")]
    NoKey,
    #[error("has an encrypted private key in it")]
    EncryptedKey,
    #[error("has a private key in it that cannot be used")]
    UnusableKey,
    #[error("has a private key in it that does not belong to the first certificate in {}", .certificate.display())]
    OtherKey { certificate: PathBuf },
}

impl Role {
    fn advice(&self, problem: &Problem) -> String {
        let (flag, what) = match self {
            Role::SelfMade { directory } => {
                return format!("delete {} to have a certificate made anew", directory.display());
            }
            Role::Certificate => ("--tls-cert", "the broker's certificate, and after it the chain"),
            Role::Key => ("--tls-key", "the private key of the certificate"),
            Role::ClientCa => (
                "--tls-client-ca",
                "the certificates of those who issue those of clients",
            ),
        };
        match problem {
            Problem::Unreadable(_) => format!("give {flag} a file that this user can read"),
            Problem::EncryptedKey => {
                format!("give {flag} the key without a password (openssl pkey -in ENCRYPTED -out PLAIN)")
            }
            Problem::UnusableKey => {
                format!("give {flag} a key of ECDSA (P-256 or P-384), Ed25519 or RSA (2048 to 8192 bits)")
            }
            Problem::OtherKey { .. } => {
                format!("give --tls-cert and {flag} two files that belong together, the broker's own certificate first")
            }
            _ => format!("give {flag} a PEM file with {what}"),
        }
    }
}

/// Reads the files, makes them first where the broker has none, and forms from them what a core needs. They may take some
/// milliseconds: not for a core. Two brokers must not share the directory of a self-made certificate.
pub fn load(settings: &TlsSettings, now: SystemTime) -> Result<Loaded, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let (certificate, key) = settings.pair();
    let mut was_made = false;
    let chain = match &settings.source {
        Source::Files { .. } => Chain::read(&certificate, &Role::Certificate)?,
        Source::SelfMade { directory } => {
            let role = Role::SelfMade {
                directory: directory.clone(),
            };
            // The key is written before the certificate: without the latter, a start was ended between them. Nor does a key
            // have to fit a certificate that has expired: it may be that of the next.
            let stored = match certificate.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                _ => Some(Chain::read(&certificate, &role)?),
            };
            match stored.filter(|chain| validity(chain.not_before, chain.not_after, now) != Validity::Expired) {
                Some(chain) => chain,
                None => {
                    self_made::make(directory, now)?;
                    was_made = true;
                    Chain::read(&certificate, &role)?
                }
            }
        }
    };
    let key_role = match &settings.source {
        Source::Files { .. } => Role::Key,
        Source::SelfMade { directory } => Role::SelfMade {
            directory: directory.clone(),
        },
    };
    let Chain {
        certificates,
        names,
        not_before,
        not_after,
    } = chain;
    let certified = certified(&provider, certificates, &certificate, &key, key_role)?;
    let is_rsa = certified.key.algorithm() == SignatureAlgorithm::RSA;
    let client_verifier = match &settings.client_ca {
        None => None,
        Some(path) => Some(client_verifier(&provider, path)?),
    };
    let certified = Arc::new(certified);
    let config = |protocol| server_config(&provider, &certified, client_verifier.clone(), protocol);
    let tls = Tls {
        mqtts: config(b"mqtt")?,
        wss: config(b"http/1.1")?,
        client_verifier: client_verifier.clone(),
    };
    Ok(Loaded {
        tls,
        was_made,
        is_self_made: matches!(settings.source, Source::SelfMade { .. }),
        is_rsa,
        certificate,
        names,
        not_before,
        not_after,
    })
}

/// A certificate with those that lead from it to an authority.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
}

impl Chain {
    fn read(path: &Path, role: &Role) -> Result<Chain, CertificateError> {
        let failed = |problem| CertificateError::File {
            path: path.to_owned(),
            role: role.clone(),
            problem,
        };
        let certificates = certificates(&read(path).map_err(failed)?).map_err(failed)?;
        let own = parse(&certificates[0]).map_err(failed)?;
        let validity = own.validity();
        Ok(Chain {
            names: names(&own),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            certificates,
        })
    }
}

fn certified(
    provider: &CryptoProvider,
    certificates: Vec<CertificateDer<'static>>,
    certificate: &Path,
    path: &Path,
    role: Role,
) -> Result<CertifiedKey, CertificateError> {
    let key = read(path).and_then(|bytes| private_key(&bytes)).and_then(|key| {
        let loaded = provider.key_provider.load_private_key(key);
        loaded.map_err(|_| Problem::UnusableKey)
    });
    let key = match key {
        Ok(key) => key,
        Err(problem) => {
            let path = path.to_owned();
            return Err(CertificateError::File { path, role, problem });
        }
    };
    let certified = CertifiedKey::new(certificates, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::File {
            path: path.to_owned(),
            role,
            problem: Problem::OtherKey {
                certificate: certificate.to_owned(),
            },
        }),
        Err(error) => Err(CertificateError::File {
            path: certificate.to_owned(),
            role: match role {
                Role::Key => Role::Certificate,
                role => role,
            },
            problem: Problem::UnusableCertificate(error.to_string()),
        }),
    }
}

fn client_verifier(
    provider: &Arc<CryptoProvider>,
    path: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let verifier = read(path).and_then(|bytes| {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&bytes)? {
            let added = roots.add(certificate);
            added.map_err(|error| Problem::UnusableCertificate(error.to_string()))?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| Problem::UnusableCertificate(error.to_string()))
    });
    verifier.map_err(|problem| CertificateError::File {
        path: path.to_owned(),
        role: Role::ClientCa,
        problem,
    })
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    certified: &Arc<CertifiedKey>,
    client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, CertificateError> {
    let make = |error: rustls::Error| CertificateError::Make(error.to_string());
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(make)?;
    let builder = match client_verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new().map_err(make)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(CERTIFICATE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > CERTIFICATE_FILE_BYTES_MAX {
        true => Err(Problem::TooLarge),
        false => Ok(bytes),
    }
}

/// At least one, each well-formed, in the order of the file.
fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let certificates = certificates.map_err(damaged)?;
    if certificates.is_empty() {
        return Err(if is_pem(bytes) {
            Problem::NoCertificate
        } else {
            Problem::NotPem
        });
    }
    certificates
        .iter()
        .try_for_each(|certificate| parse(certificate).map(drop))?;
    Ok(certificates)
}

/// The first of the file.
fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
    let has = |marker: &[u8]| bytes.windows(marker.len()).any(|window| window == marker);
    if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(Problem::EncryptedKey);
    }
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        pem::Error::NoItemsFound if is_pem(bytes) => Problem::NoKey,
        pem::Error::NoItemsFound => Problem::NotPem,
        error => damaged(error),
    })
}

fn is_pem(bytes: &[u8]) -> bool {
    let marker = b"-----BEGIN ";
    bytes.windows(marker.len()).any(|window| window == marker)
}

/// Never with what the file says: it may be a key.
fn damaged(error: pem::Error) -> Problem {
    Problem::Damaged(match error {
        pem::Error::MissingSectionEnd { .. } => "a section in it does not end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section in it begins wrongly".to_owned(),
        _ => "a section in it is not Base64".to_owned(),
    })
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Problem> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Problem::Damaged("a certificate in it is not well-formed".to_owned())),
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
            },
            _ => None,
        })
        .collect()
}

/// The last common name of the subject, the most specific one. None: there is none, or it is empty, no UTF-8, or has a NUL
/// in it.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = parse(certificate).ok()?;
    let name = certificate.subject().iter_common_name().last()?.as_str().ok()?;
    (!name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}

/// What the files were, without their contents: a file that was written or replaced, directly or behind a symbolic link,
/// gives another one. Taken before [`load`], it misses no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint([Option<FileFingerprint>; 3]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileFingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// Of the certificate, its key, and the client authorities. A file that is missing has none.
pub fn fingerprint(settings: &TlsSettings) -> Fingerprint {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some(FileFingerprint {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    };
    let (certificate, key) = settings.pair();
    Fingerprint([of(&certificate), of(&key), settings.client_ca.as_deref().and_then(of)])
}
