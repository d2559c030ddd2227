//! A certificate that the broker makes for itself, so that TLS works before anybody has one issued.
//!
//! Owns    the two files in its directory: cert.pem, which clients may be given as their authority, and key.pem.
//! Called  by `certificate`, when there is none or it has expired.
//! Holds   - each file appears whole or not at all, the key before the certificate;
//!         - nobody but the owner of the key can read it, at no time.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustix::rand::{GetRandomFlags, getrandom};

use super::certificate::CertificateError;

const DAY: Duration = Duration::from_secs(86_400);
/// Ten years, as nobody renews it. It begins a day early for clients whose clock is behind.
const VALID: Duration = DAY.saturating_mul(3_652);
/// What a common name may have (RFC 5280, ub-common-name).
const COMMON_NAME_CHARS_MAX: usize = 64;

/// The certificate's file and its key's.
pub(super) fn pair(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("cert.pem"), directory.join("key.pem"))
}

/// Since 1970; before it, below 0.
pub(super) fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    }
}

/// Makes a key and a certificate and puts them where they belong, in the place of what is there.
pub(super) fn make(directory: &Path, now: SystemTime) -> Result<(), CertificateError> {
    let host = rustix::system::uname().nodename().to_str().ok().and_then(host_name);
    let (certificate, key) =
        generate(host.as_deref(), now).map_err(|error| CertificateError::Make(error.to_string()))?;
    write_pair(directory, &certificate, &key).map_err(|error| CertificateError::Write {
        directory: directory.to_owned(),
        error,
    })
}

/// A node name that clients could ask for: letters, digits, hyphens and dots, and no address.
fn host_name(node: &str) -> Option<String> {
    let name = node.trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.chars().all(|c| c.is_ascii_digit());
    let is_name = name.len() <= 253 && name.split('.').all(is_label) && !name.rsplit('.').next().is_some_and(is_number);
    (is_name && name != "localhost").then_some(name)
}

/// As PEM.
fn generate(host: Option<&str>, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let mut names = vec!["localhost".to_owned()];
    names.extend(host.map(str::to_owned));
    let mut params = CertificateParams::new(names)?;
    let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    params.subject_alt_names.extend(addresses.map(SanType::IpAddress));
    let mut name = format!("skein on {}", host.unwrap_or("localhost"));
    name.truncate(COMMON_NAME_CHARS_MAX);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // Clients that trust it trust nothing else by it.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // A clock before 1970 is no clock.
    let now = Duration::from_secs(seconds(now).max(0) as u64);
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(DAY);
    params.not_after = params.not_before + VALID;
    params.serial_number = Some(serial());
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Random and positive: browsers refuse a second certificate with the serial number of the first.
fn serial() -> SerialNumber {
    let mut serial = [0u8; 16];
    let filled = getrandom(&mut serial, GetRandomFlags::empty());
    assert_eq!(filled, Ok(serial.len()), "the kernel gives 16 random bytes at once");
    serial[0] = serial[0] & 0x7F | 0x40;
    SerialNumber::from_slice(&serial)
}

fn write_pair(directory: &Path, certificate: &str, key: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let (certificate_path, key_path) = pair(directory);
    let key_beside = write_beside(&key_path, key, 0o600)?;
    let certificate_beside = write_beside(&certificate_path, certificate, 0o644)?;
    // What is on disk after a power cut is in this order too.
    let directory = File::open(directory)?;
    fs::rename(key_beside, key_path)?;
    directory.sync_all()?;
    fs::rename(certificate_beside, certificate_path)?;
    directory.sync_all()
}

/// The whole text on disk, under the name it has until it is renamed.
fn write_beside(path: &Path, text: &str, mode: u32) -> io::Result<PathBuf> {
    let beside = path.with_extension("new");
    // What a start that was ended left there may have other permissions.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    // Whatever the umask took away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_name_of_the_host_if_clients_could_ask_for_it() {
        for (node, name) in [
            ("Broker-1", Some("broker-1")),
            ("broker.example.org.", Some("broker.example.org")),
            ("3f2a91c0", Some("3f2a91c0")),
            ("localhost", None),
            ("(none)", None),
            ("my_host", None),
            ("192.0.2.7", None),
            ("1234", None),
            ("-a", None),
            ("a..b", None),
            ("höst", None),
            ("", None),
        ] {
            assert_eq!(host_name(node).as_deref(), name, "{node}");
        }
    }

    #[test]
    fn a_long_name_of_the_host_is_cut_in_the_common_name_only() {
        let host = format!("{}.example", "h".repeat(60));
        let (certificate, _) = generate(Some(&host), SystemTime::now()).unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        let (again, _) = generate(Some(&host), SystemTime::now()).unwrap();
        assert_ne!(certificate, again);
        assert!(generate(None, SystemTime::UNIX_EPOCH).is_ok());
    }
}
