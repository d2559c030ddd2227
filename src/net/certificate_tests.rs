//! Certificates of every kind, by handshakes in memory with the client of rustls; and the sentences for bad files.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};

use super::certificate::{Loaded, Source, TlsSettings, Validity, common_name, fingerprint, load};

const RSA_KEY: &str = include_str!("test_rsa_key.pem");
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Someone who issues certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// An authority that this one vouches for.
    fn below(&self, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, name: &str, key: &KeyPair) -> String {
        self.issue_for(name, key, (2020, 2100))
    }

    fn issue_for(&self, name: &str, key: &KeyPair, (from, to): (i32, i32)) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        params.signed_by(key, &self.issuer).unwrap().pem()
    }
}

fn self_made(directory: &Path) -> TlsSettings {
    TlsSettings {
        source: Source::SelfMade {
            directory: directory.to_owned(),
        },
        client_ca: None,
    }
}

/// The operator's files.
struct Files {
    directory: tempfile::TempDir,
    settings: TlsSettings,
}

impl Files {
    fn new(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Files {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path("c"), certificate).unwrap();
        fs::write(path("k"), key).unwrap();
        let source = Source::Files {
            certificate: path("c"),
            key: path("k"),
        };
        let settings = TlsSettings {
            source,
            client_ca: None,
        };
        Files { directory, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn client_ca(mut self, pem: impl AsRef<[u8]>) -> Files {
        fs::write(self.path("ca"), pem).unwrap();
        self.settings.client_ca = Some(self.path("ca"));
        self
    }

    fn load(&self) -> Loaded {
        load(&self.settings, SystemTime::now()).unwrap()
    }

    fn sentence(&self) -> String {
        sentence(&self.settings).replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn sentence(settings: &TlsSettings) -> String {
    load(settings, SystemTime::now()).unwrap_err().to_string()
}

/// What a client trusts and shows.
fn client(
    version: &'static SupportedProtocolVersion,
    root: &str,
    shown: Option<(&str, &KeyPair)>,
    protocol: Option<&str>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap);
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            builder.with_client_auth_cert(chain.collect(), key).unwrap()
        }
    };
    config.alpn_protocols = protocol.map(|name| name.as_bytes().to_vec()).into_iter().collect();
    Arc::new(config)
}

/// Both ends after the handshake, and after what the server sends right behind it.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert!(client.reader().read(&mut [0]).is_err(), "nothing but the handshake");
    Ok((client, server))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

const YEAR: Duration = Duration::from_secs(31_557_600);

#[test]
fn a_self_made_certificate_is_its_own_authority_and_stays() {
    let data = tempfile::tempdir().unwrap();
    let directory = data.path().join("new/tls");
    let now = SystemTime::now();
    let settings = self_made(&directory);
    let made = load(&settings, now).unwrap();
    assert!(made.was_made && made.is_self_made && !made.is_rsa);
    assert_eq!(made.certificate, directory.join("cert.pem"));
    assert_eq!(made.names[0], "localhost");
    assert_eq!(made.names[made.names.len() - 2..], ["127.0.0.1", "::1"]);
    assert_eq!(made.validity(now), Validity::Valid);
    assert_eq!(made.validity(now - YEAR / 400), Validity::Valid);
    assert_eq!(made.validity(now - YEAR / 100), Validity::NotYet);
    assert_eq!(made.validity(now + YEAR * 99 / 10), Validity::Valid);
    assert_eq!(made.validity(now + YEAR * 11), Validity::Expired);
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("cert.pem")), 0o644);
    assert_eq!(mode(&directory.join("key.pem")), 0o600);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);

    let before = fingerprint(&settings);
    let pem = fs::read_to_string(&made.certificate).unwrap();
    let loaded = load(&settings, now).unwrap();
    assert!(!loaded.was_made && loaded.is_self_made);
    assert_eq!(fingerprint(&settings), before);
    assert_eq!((loaded.names, loaded.not_after), (made.names.clone(), made.not_after));

    for version in VERSIONS {
        for name in &made.names {
            for (config, protocol) in [(&made.tls.mqtts, "mqtt"), (&loaded.tls.wss, "http/1.1")] {
                let (client, server) = handshake(&client(version, &pem, None, Some(protocol)), config, name).unwrap();
                assert_eq!(client.alpn_protocol(), Some(protocol.as_bytes()));
                assert_eq!(server.protocol_version(), Some(version.version));
                assert_eq!(client.peer_certificates().unwrap().len(), 1);
            }
        }
        let plain = client(version, &pem, None, None);
        assert!(handshake(&plain, &made.tls.mqtts, "localhost").is_ok());
        assert!(handshake(&plain, &made.tls.mqtts, "other.example").is_err());
        let stranger = client(version, &Authority::new("stranger").pem, None, None);
        assert!(handshake(&stranger, &made.tls.mqtts, "localhost").is_err());
    }
}

#[test]
fn a_start_that_was_ended_while_it_made_a_certificate_is_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name| directory.path().join(name);
    let settings = self_made(directory.path());
    // Before the key is in place, and between key and certificate.
    for left in [
        &["key.new"][..],
        &["key.new", "cert.new"],
        &["key.pem", "cert.new"],
        &["key.pem"],
    ] {
        for name in ["key.pem", "cert.pem"] {
            let _ = fs::remove_file(path(name));
        }
        for name in left {
            fs::write(path(name), "hal").unwrap();
        }
        assert!(load(&settings, SystemTime::now()).unwrap().was_made, "{left:?}");
        assert_eq!(mode(&path("key.pem")), 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(!load(&settings, SystemTime::now()).unwrap().was_made, "{left:?}");
    }
}

#[test]
fn a_self_made_certificate_is_made_again_only_when_it_has_expired() {
    let directory = tempfile::tempdir().unwrap();
    let settings = self_made(directory.path());
    let now = SystemTime::now();
    let first = load(&settings, now).unwrap();
    let key = fs::read(directory.path().join("key.pem")).unwrap();
    assert!(!load(&settings, now + YEAR * 9).unwrap().was_made);
    assert!(!load(&settings, now - YEAR).unwrap().was_made);
    assert_eq!(fs::read(directory.path().join("key.pem")).unwrap(), key);
    // The start that was to make the next one was ended after its key.
    fs::write(
        directory.path().join("key.pem"),
        KeyPair::generate().unwrap().serialize_pem(),
    )
    .unwrap();
    let second = load(&settings, now + YEAR * 11).unwrap();
    assert!(second.was_made && second.not_after > first.not_after);
    assert_eq!(second.validity(now + YEAR * 11), Validity::Valid);
}

#[test]
fn a_damaged_self_made_certificate_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("tls");
    let settings = self_made(&dir);
    let advice = format!("; delete {} to have a certificate made anew", dir.display());
    for (name, bytes, problem) in [
        ("cert.pem", Some("x"), "is not in PEM format".to_owned()),
        (
            "key.pem",
            None,
            "cannot be read: No such file or directory (os error 2)".to_owned(),
        ),
        ("key.pem", Some(""), "is not in PEM format".to_owned()),
        (
            "key.pem",
            Some(RSA_KEY),
            format!(
                "has a private key in it that does not belong to the first certificate in {}",
                dir.join("cert.pem").display()
            ),
        ),
    ] {
        let _ = fs::remove_dir_all(&dir);
        load(&settings, SystemTime::now()).unwrap();
        let path = dir.join(name);
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let before = fingerprint(&settings);
        assert_eq!(sentence(&settings), format!("{} {problem}{advice}", path.display()));
        assert_eq!(fingerprint(&settings), before);
    }
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "").unwrap();
    assert_eq!(
        sentence(&settings),
        format!(
            "{} cannot be read: Not a directory (os error 20){advice}",
            dir.join("cert.pem").display()
        )
    );
    let settings = self_made(Path::new("/proc/nowhere/tls"));
    assert!(
        sentence(&settings).starts_with("cannot keep a certificate in /proc/nowhere/tls: "),
        "{}",
        sentence(&settings)
    );
}

#[test]
fn a_key_of_every_kind_and_form_serves() {
    let authority = Authority::new("authority");
    let pem = |kind: &str, der: &[u8]| {
        use base64::prelude::*;
        format!(
            "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
            BASE64_STANDARD.encode(der)
        )
    };
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let rsa = KeyPair::from_pem(RSA_KEY).unwrap();
    // The older forms are what PKCS #8 has inside.
    let sec1 = pem("EC PRIVATE KEY", &p256.serialize_der()[29..]);
    let parameters = pem("EC PARAMETERS", &[6, 8, 42, 134, 72, 206, 61, 3, 1, 7]);
    let pkcs1 = pem("RSA PRIVATE KEY", &rsa.serialize_der()[26..]);
    for (key, text) in [
        (&p256, p256.serialize_pem()),
        (&p256, sec1.clone()),
        (&p256, format!("{parameters}{sec1}")),
        (
            &p256,
            format!("to whom it may concern\r\n{}", sec1.replace('\n', "\r\n")),
        ),
        (&p384, p384.serialize_pem()),
        (&ed25519, ed25519.serialize_pem()),
        (&rsa, RSA_KEY.to_owned()),
        (&rsa, pkcs1),
    ] {
        let certificate = authority.issue("broker.example", key);
        // One file may hold both.
        for certificate in [certificate.clone(), format!("{text}{certificate}")] {
            let loaded = Files::new(certificate, &text).load();
            assert_eq!(loaded.is_rsa, text.contains("RSA") || text == RSA_KEY);
            assert!(!loaded.is_self_made && !loaded.was_made);
            assert_eq!(loaded.names, ["broker.example"]);
            for version in VERSIONS {
                let client = client(version, &authority.pem, None, Some("mqtt"));
                assert!(
                    handshake(&client, &loaded.tls.mqtts, "broker.example").is_ok(),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn a_chain_is_sent_as_the_file_has_it() {
    let root = Authority::new("root");
    let between = root.below("between");
    let key = KeyPair::generate().unwrap();
    let own = between.issue("broker.example", &key);
    let loaded = Files::new(format!("{own}{}", between.pem), key.serialize_pem()).load();
    let client = client(&TLS13, &root.pem, None, None);
    let (client, _) = handshake(&client, &loaded.tls.mqtts, "broker.example").unwrap();
    assert_eq!(client.peer_certificates().unwrap().len(), 2);
    let sentence = Files::new(format!("{}{own}", between.pem), key.serialize_pem()).sentence();
    assert_eq!(
        sentence,
        "k has a private key in it that does not belong to the first certificate in c; give --tls-cert and --tls-key two \
         files that belong together, the broker's own certificate first"
    );
}

#[test]
fn a_certificate_out_of_its_time_loads_and_says_so() {
    let authority = Authority::new("authority");
    let key = KeyPair::generate().unwrap();
    let now = SystemTime::now();
    for (years, expected) in [
        ((2000, 2001), Validity::Expired),
        ((2001, 2100), Validity::Valid),
        ((2090, 2100), Validity::NotYet),
    ] {
        let certificate = authority.issue_for("broker.example", &key, years);
        let loaded = Files::new(certificate, key.serialize_pem()).load();
        assert_eq!(loaded.validity(now), expected);
        let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds as u64);
        for (at, expected) in [
            (at(loaded.not_before - 1), Validity::NotYet),
            (at(loaded.not_before), Validity::Valid),
            (at(loaded.not_after), Validity::Valid),
            (at(loaded.not_after + 1), Validity::Expired),
        ] {
            assert_eq!(loaded.validity(at), expected);
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_what_to_give() {
    let key = KeyPair::generate().unwrap();
    let good_key = key.serialize_pem();
    let good = Authority::new("authority").issue("broker.example", &key);
    let cut = |pem: &str| pem[..pem.len() - 40].to_owned();
    let give = |flag, what| format!("; give --tls-{flag} a PEM file with {what}");
    let own = give("cert", "the broker's certificate, and after it the chain");
    let its_key = give("key", "the private key of the certificate");
    let der = CertificateDer::from_pem_slice(good.as_bytes()).unwrap();
    let no_certificate = "-----BEGIN CERTIFICATE-----\naGFsbG8=\n-----END CERTIFICATE-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\naGFsbG8=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\naGFsbG8=\n\
                         -----END RSA PRIVATE KEY-----\n";
    let unusable = "-----BEGIN PRIVATE KEY-----\naGFsbG8=\n-----END PRIVATE KEY-----\n";
    let without = "; give --tls-key the key without a password (openssl pkey -in ENCRYPTED -out PLAIN)";
    for (certificate, key, sentence) in [
        (&b""[..], &good_key[..], format!("c is not in PEM format{own}")),
        (&der, &good_key, format!("c is not in PEM format{own}")),
        (
            good_key.as_bytes(),
            &good_key,
            format!("c has no certificate in it{own}"),
        ),
        (
            cut(&good).as_bytes(),
            &good_key,
            format!("c is damaged: a section in it does not end{own}"),
        ),
        (
            good.replacen("MII", "M\u{7}I", 1).replacen("MIIB", "M!IB", 1).as_bytes(),
            &good_key,
            format!("c is damaged: a section in it is not Base64{own}"),
        ),
        (
            format!("{good}{no_certificate}").as_bytes(),
            &good_key,
            format!("c is damaged: a certificate in it is not well-formed{own}"),
        ),
        (
            good.replacen("-----\n", "----\n", 1).as_bytes(),
            &good_key,
            format!("c is damaged: a section in it begins wrongly{own}"),
        ),
        (
            &[b'x'; 1024 * 1024 + 1],
            &good_key,
            format!("c is larger than 1048576 bytes{own}"),
        ),
        (good.as_bytes(), "", format!("k is not in PEM format{its_key}")),
        (good.as_bytes(), &good, format!("k has no private key in it{its_key}")),
        (
            good.as_bytes(),
            &cut(&good_key),
            format!("k is damaged: a section in it does not end{its_key}"),
        ),
        (
            good.as_bytes(),
            encrypted,
            format!("k has an encrypted private key in it{without}"),
        ),
        (
            good.as_bytes(),
            old_encrypted,
            format!("k has an encrypted private key in it{without}"),
        ),
        (
            good.as_bytes(),
            unusable,
            "k has a private key in it that cannot be used; give --tls-key a key of ECDSA (P-256 or P-384), Ed25519 or RSA \
             (2048 to 8192 bits)"
                .to_owned(),
        ),
        (
            good.as_bytes(),
            RSA_KEY,
            "k has a private key in it that does not belong to the first certificate in c; give --tls-cert and --tls-key \
             two files that belong together, the broker's own certificate first"
                .to_owned(),
        ),
    ] {
        assert_eq!(Files::new(certificate, key).sentence(), sentence);
    }

    let authorities = give("client-ca", "the certificates of those who issue those of clients");
    for (pem, problem) in [
        ("", "is not in PEM format"),
        (&good_key[..], "has no certificate in it"),
        (&cut(&good), "is damaged: a section in it does not end"),
        (no_certificate, "is damaged: a certificate in it is not well-formed"),
    ] {
        let files = Files::new(&good, &good_key).client_ca(pem);
        assert_eq!(files.sentence(), format!("ca {problem}{authorities}"));
    }
    for (name, flag) in [("c", "cert"), ("k", "key"), ("ca", "client-ca")] {
        let files = Files::new(&good, &good_key).client_ca(&good);
        fs::remove_file(files.path(name)).unwrap();
        let missing = "cannot be read: No such file or directory (os error 2)";
        let advice = format!("give --tls-{flag} a file that this user can read");
        assert_eq!(files.sentence(), format!("{name} {missing}; {advice}"));
        fs::create_dir(files.path(name)).unwrap();
        assert!(files.sentence().contains("Is a directory"), "{}", files.sentence());
    }
}

#[test]
fn with_a_client_authority_only_its_clients_get_in() {
    let authority = Authority::new("authority");
    let clients = Authority::new("clients");
    let strangers = Authority::new("strangers");
    let key = KeyPair::generate().unwrap();
    let files = Files::new(authority.issue("broker.example", &key), key.serialize_pem());
    let open = files.load();
    assert!(open.tls.client_verifier.is_none());
    let below = clients.below("below");
    let loaded = files.client_ca(format!("{}{}", authority.pem, clients.pem)).load();
    assert!(loaded.tls.client_verifier.is_some());
    let device = KeyPair::generate().unwrap();
    let known = clients.issue("device-7", &device);
    let through = format!("{}{}", below.issue("device-7", &device), below.pem);
    let unknown = strangers.issue("device-7", &device);
    let expired = clients.issue_for("device-7", &device, (2000, 2001));
    for version in VERSIONS {
        for server in [&loaded.tls.mqtts, &loaded.tls.wss] {
            let connect = |shown: Option<&str>| {
                let shown = shown.map(|chain| (chain, &device));
                handshake(&client(version, &authority.pem, shown, None), server, "broker.example")
            };
            for shown in [&known, &through] {
                let (_, server) = connect(Some(shown)).unwrap();
                let name = common_name(&server.peer_certificates().unwrap()[0]);
                assert_eq!(name.as_deref(), Some("device-7"));
            }
            for shown in [None, Some(&unknown[..]), Some(&expired)] {
                assert!(connect(shown).is_err());
            }
        }
        // Where no certificate is asked for, none is taken.
        let client = client(version, &authority.pem, Some((&known, &device)), None);
        let (_, server) = handshake(&client, &open.tls.mqtts, "broker.example").unwrap();
        assert!(server.peer_certificates().is_none());
    }
}

#[test]
fn a_session_is_resumed_until_the_next_load_and_on_its_own_port_only() {
    let authority = Authority::new("authority");
    let clients = Authority::new("clients");
    let key = KeyPair::generate().unwrap();
    let files = Files::new(authority.issue("broker.example", &key), key.serialize_pem()).client_ca(&clients.pem);
    let (first, second) = (files.load().tls, files.load().tls);
    let device = KeyPair::generate().unwrap();
    let shown = clients.issue("device-7", &device);
    for version in VERSIONS {
        let client = client(version, &authority.pem, Some((&shown, &device)), None);
        let kind = |server| {
            let (client, server) = handshake(&client, server, "broker.example").unwrap();
            // Who it is, the server knows after a resumption too.
            let name = common_name(&server.peer_certificates().unwrap()[0]);
            assert_eq!(name.as_deref(), Some("device-7"));
            assert_eq!(client.handshake_kind(), server.handshake_kind());
            server.handshake_kind().unwrap()
        };
        assert_eq!(kind(&first.mqtts), HandshakeKind::Full);
        assert_eq!(kind(&first.mqtts), HandshakeKind::Resumed);
        assert_eq!(kind(&first.mqtts), HandshakeKind::Resumed);
        assert_eq!(kind(&first.wss), HandshakeKind::Full);
        assert_eq!(kind(&first.wss), HandshakeKind::Resumed);
        assert_eq!(kind(&second.wss), HandshakeKind::Full);
        assert_eq!(kind(&second.wss), HandshakeKind::Resumed);
    }
}

#[test]
fn the_common_name_is_the_last_one_if_it_is_a_text() {
    // A second common name, since the first type may stand there once.
    let again = || DnType::CustomDnType(vec![2, 5, 4, 3]);
    let of = |names: &[(DnType, DnValue)]| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    };
    let text = |text: &str| DnValue::Utf8String(text.to_owned());
    for (names, expected) in [
        (&[][..], None),
        (&[(DnType::CommonName, text("gerät"))], Some("gerät")),
        (
            &[(DnType::CommonName, DnValue::PrintableString("a 1".try_into().unwrap()))],
            Some("a 1"),
        ),
        (&[(DnType::OrganizationName, text("o"))], None),
        (
            &[
                (DnType::CommonName, text("first")),
                (DnType::OrganizationName, text("o")),
                (again(), text("last")),
            ],
            Some("last"),
        ),
        (&[(DnType::CommonName, text("first")), (again(), text(""))], None),
        (&[(DnType::CommonName, text(""))], None),
        (&[(DnType::CommonName, text("a\0b"))], None),
        (
            &[(DnType::CommonName, DnValue::BmpString("a".try_into().unwrap()))],
            None,
        ),
    ] {
        assert_eq!(common_name(&of(names)).as_deref(), expected, "{names:?}");
    }
    let mut bytes = of(&[(DnType::CommonName, text("device-7"))]).to_vec();
    while let Some(at) = bytes.windows(8).position(|window| window == b"device-7") {
        bytes[at] = 0xFF;
    }
    assert_eq!(common_name(&CertificateDer::from(bytes)), None);
    assert_eq!(common_name(&CertificateDer::from(vec![0x30, 0x03])), None);
}

#[test]
fn a_fingerprint_tells_files_that_changed_behind_links_too() {
    let files = Files::new("c", "k").client_ca("ca");
    let settings = &files.settings;
    let mut seen = vec![fingerprint(settings)];
    let mut changed = |what: &str| {
        let now = fingerprint(settings);
        assert_eq!(fingerprint(settings), now);
        assert!(!seen.contains(&now), "{what}");
        seen.push(now);
    };
    fs::write(files.path("c"), "c2").unwrap();
    changed("size");
    fs::File::options()
        .write(true)
        .open(files.path("k"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::new(7, 1))
        .unwrap();
    changed("time");
    fs::copy(files.path("ca"), files.path("ca2")).unwrap();
    fs::rename(files.path("ca2"), files.path("ca")).unwrap();
    changed("inode");
    fs::remove_file(files.path("k")).unwrap();
    changed("missing");
    // As the secrets of Kubernetes are replaced: a link to a directory of the version.
    for version in ["v1", "v2"] {
        fs::create_dir(files.path(version)).unwrap();
        fs::write(files.path(version).join("k"), "k").unwrap();
    }
    symlink("v1", files.path("now")).unwrap();
    symlink("now/k", files.path("k")).unwrap();
    changed("link");
    symlink("v2", files.path("next")).unwrap();
    fs::rename(files.path("next"), files.path("now")).unwrap();
    changed("behind the link");
}
