//! Authorities, certificates and what a TLS client believes in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

pub type Versions = &'static [&'static SupportedProtocolVersion];
pub const ANY: Versions = &[&TLS12, &TLS13];
pub const EACH: [Versions; 2] = [&[&TLS12], &[&TLS13]];

/// PEM texts that belong together.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    /// As NAME.pem and NAME.key.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let of = |ending: &str| directory.join(format!("{name}.{ending}"));
        fs::write(of("pem"), &self.certificate).unwrap();
        fs::write(of("key"), &self.key).unwrap();
        (of("pem"), of("key"))
    }
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pair: Pair,
}

impl Authority {
    pub fn root(name: &str) -> Authority {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority::of(params, key, certificate)
    }

    pub fn intermediate(&self, name: &str) -> Authority {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Authority::of(params, key, certificate)
    }

    fn of(params: CertificateParams, key: KeyPair, certificate: String) -> Authority {
        let pair = Pair {
            certificate,
            key: key.serialize_pem(),
        };
        Authority {
            issuer: Issuer::new(params, key),
            pair,
        }
    }

    /// ECDSA, P-256.
    pub fn issue(&self, params: CertificateParams) -> Pair {
        self.issue_for(params, KeyPair::generate().unwrap())
    }

    pub fn issue_for(&self, params: CertificateParams, key: KeyPair) -> Pair {
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// For this host, valid until far away.
pub fn leaf(common_name: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.distinguished_name = DistinguishedName::new();
    match common_name {
        Some(name) => params.distinguished_name.push(DnType::CommonName, name),
        None => params.distinguished_name.push(DnType::OrganizationName, "nameless"),
    }
    params
}

/// The same, over for years.
pub fn expired(common_name: &str) -> CertificateParams {
    let mut params = leaf(Some(common_name));
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    params
}

/// One that trusts these certificates (PEM), and shows this one if asked for one. Its sessions are its own.
pub fn client(trusted: &str, versions: Versions, identity: Option<&Pair>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(trusted) {
        roots.add(certificate).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(certificates(&pair.certificate), key)
                .unwrap()
        }
    })
}

pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

/// Runs to its end and well; what it wrote to standard output.
pub fn openssl(directory: &Path, arguments: &str) -> String {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("the command openssl is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
