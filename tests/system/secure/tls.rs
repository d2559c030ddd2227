//! TLS as openssl and rustls see it: versions, protocols, kinds of keys, resumption, renewal, client certificates.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::KeyPair;
use rustix::process::Signal;
use rustls::{AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion};

use super::peer::*;
use super::pki::{self, Authority, EACH, Pair, client, expired, leaf, openssl};
use crate::broker::{Broker, FOUR_CORES, SETTINGS, Site};
use crate::raw::{connect, hex};

/// What `openssl s_client` says of a connection on which it sends this.
fn s_client(broker: &Broker, port: Port, arguments: &str, bytes: &[u8]) -> Vec<u8> {
    let mut process = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{}", ready_port(broker, port.name())),
        ])
        .args(["-servername", "localhost", "-verify_return_error"])
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command openssl is installed");
    // It may have ended without reading this.
    let mut stdin = process.stdin.take().unwrap();
    let _ = stdin.write_all(bytes);
    if bytes.is_empty() {
        drop(stdin);
    } else {
        // The broker closes after the DISCONNECT.
        let (mut stdout, mut stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let mut said = Vec::new();
        stdout.read_to_end(&mut said).unwrap();
        stderr.read_to_end(&mut said).unwrap();
        process.wait().unwrap();
        return said;
    }
    let output = process.wait_with_output().unwrap();
    [output.stdout, output.stderr].concat()
}

fn has(said: &[u8], words: &[u8]) -> bool {
    said.windows(words.len()).any(|window| window == words)
}

fn assert_says(said: &[u8], words: &str) {
    assert!(
        has(said, words.as_bytes()),
        "no `{words}`: {}",
        String::from_utf8_lossy(said)
    );
}

fn conversation(id: &str) -> Vec<u8> {
    [&connect(id)[..], &DISCONNECT].concat()
}

#[test]
fn openssl_verifies_speaks_mqtt_and_resumes_in_tls_1_2_and_1_3() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let authority = self_made(&broker);
        let session = broker.ready_file().with_file_name("session");
        for version in ["-tls1_2", "-tls1_3"] {
            let common = format!("{version} -CAfile {} -alpn mqtt", authority.display());
            let first = s_client(
                &broker,
                Port::Mqtts,
                &format!("{common} -sess_out {}", session.display()),
                &conversation("o"),
            );
            let second = s_client(
                &broker,
                Port::Mqtts,
                &format!("{common} -sess_in {}", session.display()),
                &conversation("o"),
            );
            for (said, kind) in [(&first, "New, TLSv1"), (&second, "Reused, TLSv1")] {
                assert_says(said, kind);
                assert_says(said, "Verification: OK");
                assert_says(said, "ALPN protocol: mqtt");
                assert!(has(said, &CONNACK), "no CONNACK: {}", String::from_utf8_lossy(said));
            }
            // A session of one protocol is none of the other.
            let common = format!("{version} -CAfile {} -alpn http/1.1", authority.display());
            let other = s_client(
                &broker,
                Port::Wss,
                &format!("{common} -sess_in {}", session.display()),
                b"",
            );
            assert_says(&other, "New, TLSv1");
            assert_says(&other, "ALPN protocol: http/1.1");
        }
        await_counted(
            &broker,
            &[
                ("tls_full", 4),
                ("tls_resumed", 2),
                ("closed_tls", 0),
                ("closed_disconnect", 4),
            ],
        );
        broker.stop();
    }
}

#[test]
fn other_protocols_and_versions_before_1_2_are_refused_with_their_alert() {
    let broker = Broker::start(SETTINGS[0], &[]);
    for (port, other) in [(Port::Mqtts, "http/1.1"), (Port::Wss, "mqtt"), (Port::Wss, "h2")] {
        for version in ["-tls1_2", "-tls1_3"] {
            let said = s_client(&broker, port, &format!("{version} -alpn {other}"), b"");
            assert_says(&said, "alert no application protocol");
        }
    }
    for version in ["-tls1", "-tls1_1"] {
        let said = s_client(&broker, Port::Mqtts, &format!("{version} -cipher ALL:@SECLEVEL=0"), b"");
        // rustls looks at the signature algorithms first, which these versions do not name.
        let says = |words: &str| has(&said, words.as_bytes());
        let said = String::from_utf8_lossy(&said);
        assert!(
            says("alert protocol version") || says("alert handshake failure"),
            "{said}"
        );
    }
    let said = s_client(&broker, Port::Mqtts, "-tls1_2 -cipher AES128-SHA", b"");
    assert_says(&said, "alert handshake failure");
    await_counted(
        &broker,
        &[
            ("tls_application_protocol", 6),
            ("tls_incompatible", 3),
            ("closed_tls", 9),
            ("tls_full", 0),
        ],
    );
    // A client that does not trust it says so.
    let said = s_client(&broker, Port::Mqtts, "-tls1_3", b"");
    assert_says(&said, "self-signed certificate");
    await_counted(&broker, &[("tls_refused_by_client", 1)]);
    broker.stop();
}

/// Sends a message over a resumed connection as well: what is resumed is no less a connection.
#[test]
fn rustls_resumes_whichever_core_it_meets() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let authority = fs::read_to_string(self_made(&broker)).unwrap();
        for versions in EACH {
            for port in [Port::Mqtts, Port::Wss] {
                let config = client(&authority, versions, None);
                for n in 0..8 {
                    let mut peer = Peer::connected(&broker, port, &config, &format!("r{n}"));
                    peer.looks();
                    let kind = if n == 0 {
                        HandshakeKind::Full
                    } else {
                        HandshakeKind::Resumed
                    };
                    assert_eq!(kind_of(&peer), kind, "{n}, {versions:?}, {port:?}, {setting:?}");
                }
            }
        }
        await_counted(&broker, &[("tls_full", 4), ("tls_resumed", 28)]);
        broker.stop();
    }
}

/// Records of 27 bytes of a message each, and segments of one byte each: both are allowed, and neither is a fault.
#[test]
fn a_handshake_in_small_pieces_is_a_handshake() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let authority = fs::read_to_string(self_made(&broker)).unwrap();
        for versions in EACH {
            let mut config = Arc::unwrap_or_clone(client(&authority, versions, None));
            config.max_fragment_size = Some(32);
            let config = Arc::new(config);
            for (port, segment) in [
                (Port::Mqtts, usize::MAX),
                (Port::Wss, usize::MAX),
                (Port::Mqtts, 1),
                (Port::Wss, 7),
            ] {
                let mut slow = Segments(tcp(&broker, port), segment);
                let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
                let mut connection = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
                while connection.is_handshaking() {
                    connection.complete_io(&mut slow).unwrap();
                }
                let stream = rustls::StreamOwned::new(connection, slow.0);
                let mut peer = Peer::over(Wire::Tls(Box::new(stream)), port);
                peer.greet("pieces");
                peer.looks();
            }
        }
        await_counted(&broker, &[("closed_tls", 0)]);
        broker.stop();
    }
}

/// Writes this much at a time, and lets it leave.
struct Segments(std::net::TcpStream, usize);

impl Read for Segments {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Segments {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.0.write(&bytes[..bytes.len().min(self.1)])?;
        if self.1 < usize::MAX {
            sleep(Duration::from_micros(200));
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn kind_of(peer: &Peer) -> HandshakeKind {
    match &peer.wire {
        Wire::Tls(stream) => match stream.conn.handshake_kind().unwrap() {
            HandshakeKind::FullWithHelloRetryRequest => HandshakeKind::Full,
            kind => kind,
        },
        Wire::Plain(_) => panic!("no TLS"),
    }
}

fn reload(broker: &Broker) {
    let reads = |words: &str| broker.written().matches(words).count();
    let count = || reads("the certificate was read anew") + reads("the certificate in use stays");
    let before = count();
    broker.signal(Signal::HUP);
    wait_until("SIGHUP is answered in the log", || count() > before);
}

fn flags<'a>(certificate: &'a Path, key: &'a Path) -> [&'a str; 4] {
    [
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ]
}

/// The chain ends below the root: what is verified has come over the wire.
#[test]
fn keys_of_every_kind_and_form_serve_with_their_chain() {
    let site = Site::new();
    let at = site.directory();
    let root = Authority::root("root");
    let middle = root.intermediate("middle");
    root.pair.write(at, "root");
    let (middle_certificate, _) = middle.pair.write(at, "middle");
    let middle_certificate = fs::read_to_string(middle_certificate).unwrap();
    for (name, algorithm) in [
        ("p256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("p384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("ed25519", &rcgen::PKCS_ED25519),
    ] {
        let pair = middle.issue_for(leaf(Some(name)), KeyPair::generate_for(algorithm).unwrap());
        pair.write(at, name);
    }
    fs::write(at.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    openssl(at, "genrsa -out rsa.key 2048");
    openssl(at, "req -new -key rsa.key -subj /CN=rsa -out rsa.csr");
    openssl(
        at,
        "x509 -req -in rsa.csr -CA middle.pem -CAkey middle.key -days 9 -extfile names -out rsa.pem",
    );
    for name in ["p256", "p384", "ed25519", "rsa"] {
        let own = fs::read_to_string(at.join(format!("{name}.pem"))).unwrap();
        fs::write(at.join(format!("{name}.pem")), own + &middle_certificate).unwrap();
    }
    openssl(at, "rsa -in rsa.key -traditional -out rsa-pkcs1.key");
    openssl(at, "ec -in p256.key -out p256-sec1.key");
    openssl(at, "ec -in p384.key -out p384-sec1.key");
    for (name, marker) in [
        ("rsa", "-----BEGIN PRIVATE"),
        ("rsa-pkcs1", "-----BEGIN RSA"),
        ("p256", "-----BEGIN PRIVATE"),
        ("p256-sec1", "-----BEGIN EC"),
        ("p384-sec1", "-----BEGIN EC"),
    ] {
        let key = fs::read_to_string(at.join(format!("{name}.key"))).unwrap();
        assert!(key.starts_with(marker), "{name}");
    }

    let (certificate, key) = (at.join("in-use.pem"), at.join("in-use.key"));
    let mut broker: Option<Broker> = None;
    for (chain, key_name) in [
        ("rsa", "rsa"),
        ("rsa", "rsa-pkcs1"),
        ("p256", "p256"),
        ("p256", "p256-sec1"),
        ("p384", "p384"),
        ("p384", "p384-sec1"),
        ("ed25519", "ed25519"),
    ] {
        fs::copy(at.join(format!("{chain}.pem")), &certificate).unwrap();
        fs::copy(at.join(format!("{key_name}.key")), &key).unwrap();
        match &broker {
            None => broker = Some(site.start(1, &flags(&certificate, &key))),
            Some(broker) => reload(broker),
        }
        let broker = broker.as_ref().unwrap();
        for versions in EACH {
            let config = client(&root.pair.certificate, versions, None);
            let mut peer = Peer::connected(broker, Port::Mqtts, &config, key_name);
            peer.looks();
            assert_eq!(own_certificate(&peer), chain_of(&certificate)[0], "{key_name}");
        }
        for version in ["-tls1_2", "-tls1_3"] {
            let arguments = format!("{version} -CAfile {}", at.join("root.pem").display());
            let said = s_client(broker, Port::Mqtts, &arguments, &conversation(key_name));
            assert_says(&said, "Verification: OK");
            assert!(has(&said, &CONNACK), "{}", String::from_utf8_lossy(&said));
        }
    }
    let written = broker.unwrap().stop();
    assert!(written.contains("an RSA key makes each handshake"), "{written}");
}

fn chain_of(path: &Path) -> Vec<Vec<u8>> {
    let pem = fs::read_to_string(path).unwrap();
    pki::certificates(&pem).iter().map(|der| der.to_vec()).collect()
}

fn own_certificate(peer: &Peer) -> Vec<u8> {
    match &peer.wire {
        Wire::Tls(stream) => stream.conn.peer_certificates().unwrap()[0].to_vec(),
        Wire::Plain(_) => panic!("no TLS"),
    }
}

/// What a client that comes now is shown.
fn shown(broker: &Broker, authority: &Authority) -> Vec<u8> {
    let config = client(&authority.pair.certificate, pki::ANY, None);
    own_certificate(&Peer::connected(broker, Port::Mqtts, &config, "now"))
}

fn der(pair: &Pair) -> Vec<u8> {
    pki::certificates(&pair.certificate)[0].to_vec()
}

#[test]
fn a_renewed_certificate_is_taken_up_and_nobody_loses_a_connection() {
    let site = Site::new();
    let at = site.directory();
    let root = Authority::root("root");
    let issue = || root.issue(leaf(Some("broker")));
    let links = [at.join("cert"), at.join("key")];
    let first = issue();
    let (certificate, key) = first.write(at, "a");
    symlink(&certificate, &links[0]).unwrap();
    symlink(&key, &links[1]).unwrap();
    let broker = site.start(2, &flags(&links[0], &links[1]));
    let config = client(&root.pair.certificate, pki::ANY, None);
    let mut witnesses = Witnesses::start(&broker, &config);
    assert_eq!(shown(&broker, &root), der(&first));

    // Overwritten, and SIGHUP.
    let second = issue();
    second.write(at, "a");
    reload(&broker);
    assert_eq!(shown(&broker, &root), der(&second));
    witnesses.look();

    // Overwritten, renamed over, and behind a symbolic link that is turned: found by looking.
    let await_shown = |pair: &Pair, how: &str| {
        wait_until(how, || shown(&broker, &root) == der(pair));
    };
    let third = issue();
    third.write(at, "a");
    await_shown(&third, "overwritten");
    witnesses.look();
    let fourth = issue();
    let (new_certificate, new_key) = fourth.write(at, "new");
    fs::rename(new_key, &key).unwrap();
    fs::rename(new_certificate, &certificate).unwrap();
    await_shown(&fourth, "renamed");
    witnesses.look();
    let fifth = issue();
    let (certificate, key) = fifth.write(at, "b");
    for (target, link) in [(&key, &links[1]), (&certificate, &links[0])] {
        symlink(target, at.join("turned")).unwrap();
        fs::rename(at.join("turned"), link).unwrap();
    }
    await_shown(&fifth, "turned");
    witnesses.look();
    broker.stop();
}

#[test]
fn what_cannot_be_used_leaves_the_old_certificate_and_is_said_once() {
    let site = Site::new();
    let at = site.directory();
    let root = Authority::root("root");
    let good = root.issue(leaf(Some("broker")));
    let (certificate, key) = good.write(at, "in-use");
    let broker = site.start(2, &flags(&certificate, &key));
    let complaints = || broker.written().matches("the certificate in use stays").count();
    let cases = [
        ("garbage".to_owned(), good.key.clone(), "is not in PEM format"),
        (
            good.certificate.clone(),
            KeyPair::generate().unwrap().serialize_pem(),
            "does not belong",
        ),
        {
            let old = root.issue(expired("broker"));
            (old.certificate, old.key, "to 2002-01-01")
        },
        (good.certificate[..200].to_owned(), good.key.clone(), "is damaged"),
    ];
    for (n, (new_certificate, new_key, why)) in cases.into_iter().enumerate() {
        fs::write(&certificate, new_certificate).unwrap();
        fs::write(&key, new_key).unwrap();
        // One is found by looking, and not complained of at every look.
        if n == 1 {
            wait_until("a change of the files is found", || complaints() == n + 1);
            sleep(Duration::from_millis(4_500));
        } else {
            reload(&broker);
        }
        let written = broker.written();
        assert_eq!(complaints(), n + 1, "{written}");
        let complaint = written
            .lines()
            .rfind(|line| line.contains("the certificate in use stays"));
        assert!(complaint.unwrap().contains(why), "no `{why}`: {}", complaint.unwrap());
        assert_eq!(shown(&broker, &root), der(&good));
    }
    good.write(at, "in-use");
    reload(&broker);
    let written = broker.stop();
    assert!(written.contains("the certificate was read anew"), "{written}");
    let secret = good.key.lines().nth(1).unwrap();
    assert!(!written.contains(secret), "a key is in the log");
}

#[test]
fn a_start_with_files_that_cannot_be_used_is_refused_by_one_sentence() {
    let site = Site::new();
    let at = site.directory();
    let root = Authority::root("root");
    let (certificate, key) = root.issue(leaf(Some("broker"))).write(at, "broker");
    let (_, other_key) = root.issue(leaf(Some("other"))).write(at, "other");
    let nowhere = at.join("nowhere.pem");
    let text = at.join("text.pem");
    fs::write(&text, "no certificate at all").unwrap();
    openssl(at, "pkey -in broker.key -aes128 -passout pass:x -out locked.key");
    let locked = at.join("locked.key");
    for (certificate, key, named, why) in [
        (&nowhere, &key, &nowhere, "cannot be read"),
        (&certificate, &nowhere, &nowhere, "cannot be read"),
        (&text, &key, &text, "is not in PEM format"),
        (&certificate, &text, &text, "is not in PEM format"),
        (&key, &key, &key, "has no certificate in it"),
        (&certificate, &certificate, &certificate, "has no private key in it"),
        (&certificate, &locked, &locked, "encrypted"),
        (&certificate, &other_key, &other_key, "does not belong"),
    ] {
        let sentence = site.refusal(&flags(certificate, key));
        let named = named.to_str().unwrap();
        assert!(sentence.contains(why) && sentence.contains(named), "{why}: {sentence}");
        assert!(sentence.contains("--tls-"), "no flag is named: {sentence}");
    }
    let sentence = site.refusal(&["--tls-cert", certificate.to_str().unwrap()]);
    assert!(sentence.contains("--tls-key"), "{sentence}");
    let sentence = site.refusal(&["--tls-key", key.to_str().unwrap()]);
    assert!(sentence.contains("--tls-cert"), "{sentence}");
    let sentence = site.refusal(&["--tls-client-ca", nowhere.to_str().unwrap()]);
    assert!(
        sentence.contains("--tls-client-ca") && sentence.contains(nowhere.to_str().unwrap()),
        "{sentence}"
    );
    let sentence = site.refusal(&["--tls-client-cn-as-username"]);
    assert!(
        sentence.contains("--tls-client-ca") || sentence.contains("tls-client-ca"),
        "{sentence}"
    );
}

#[test]
fn the_first_start_makes_a_certificate_that_stays() {
    let site = Site::new();
    let directory = site.data_dir().join("tls");
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let works = |broker: &Broker| {
        let config = trusting(broker);
        for port in [Port::Mqtts, Port::Wss] {
            Peer::connected(broker, port, &config, "c").looks();
        }
    };

    let broker = site.start(1, &[]);
    works(&broker);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&key), 0o600);
    assert_eq!(mode(&directory), 0o700);
    let made = fs::read(&certificate).unwrap();
    let said = openssl(
        &directory,
        "x509 -in cert.pem -noout -ext subjectAltName,basicConstraints",
    );
    assert!(
        said.contains("DNS:localhost") && said.contains("IP Address:127.0.0.1"),
        "{said}"
    );
    assert!(said.contains("CA:FALSE"), "{said}");
    broker.stop();

    let broker = site.start(1, &[]);
    works(&broker);
    assert_eq!(fs::read(&certificate).unwrap(), made, "the same after a restart");
    broker.stop();

    // A start that ended between the two files.
    fs::remove_file(&certificate).unwrap();
    let broker = site.start(1, &[]);
    works(&broker);
    let again = fs::read(&certificate).unwrap();
    assert_ne!(again, made);
    broker.stop();

    for (path, bytes) in [
        (&certificate, &again[..100]),
        (&certificate, b""),
        (&key, b"-----BEGIN "),
    ] {
        let whole = fs::read(path).unwrap();
        fs::write(path, bytes).unwrap();
        let sentence = site.refusal(&[]);
        let advice = format!("delete {}", Path::new("skein-data/tls").display());
        assert!(
            sentence.contains(&advice) && sentence.contains("made anew"),
            "{sentence}"
        );
        fs::write(path, whole).unwrap();
    }
    fs::remove_file(&key).unwrap();
    assert!(site.refusal(&[]).contains("made anew"), "a certificate without its key");
    fs::remove_dir_all(&directory).unwrap();
    let broker = site.start(1, &[]);
    works(&broker);
    broker.stop();
}

// --- certificates of clients -----------------------------------------------------------------------------------------

/// How a client fares: connected by such a handshake, or sent away by this alert.
fn fares(broker: &Broker, config: &Arc<ClientConfig>) -> Result<HandshakeKind, Option<AlertDescription>> {
    let away = |error: std::io::Error| alert(&error);
    let mut stream = tls(tcp(broker, Port::Mqtts), config).map_err(away)?;
    if stream.conn.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
        // This side has ended its handshake before it is judged: a ticket comes, or the alert. Nothing is sent meanwhile:
        // what the broker does not read makes its close a reset, which may overtake the alert.
        stream.conn.read_tls(&mut stream.sock).map_err(away)?;
        let judged = stream.conn.process_new_packets();
        judged.map_err(|error| away(std::io::Error::other(error)))?;
    }
    stream.write_all(&connect("certified")).map_err(away)?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).map_err(away)?;
    assert_eq!(connack, CONNACK);
    Ok(stream.conn.handshake_kind().unwrap())
}

#[test]
fn a_client_authority_lets_in_whom_it_has_issued_a_certificate_and_nobody_else() {
    use HandshakeKind::{Full, Resumed};
    let site = Site::new();
    let at = site.directory();
    let (root, ours, theirs) = (
        Authority::root("root"),
        Authority::root("ours"),
        Authority::root("theirs"),
    );
    let (certificate, key) = root.issue(leaf(Some("broker"))).write(at, "broker");
    let (authority, _) = ours.pair.write(at, "clients");
    let arguments = [
        &flags(&certificate, &key)[..],
        &["--tls-client-ca", authority.to_str().unwrap()],
    ]
    .concat();
    let broker = site.start(4, &arguments);
    let good = ours.intermediate("between").issue(leaf(Some("good")));
    let chained = {
        let between = ours.intermediate("between");
        let mut pair = between.issue(leaf(Some("chained")));
        pair.certificate += &between.pair.certificate;
        pair
    };
    let direct = ours.issue(leaf(Some("direct")));
    let old = ours.issue(expired("old"));
    let foreign = theirs.issue(leaf(Some("foreign")));
    let trusted = &root.pair.certificate;
    let mut kept = Vec::new();
    for versions in EACH {
        let fares = |pair: Option<&Pair>| fares(&broker, &client(trusted, versions, pair));
        assert_eq!(fares(Some(&direct)), Ok(Full), "{versions:?}");
        assert_eq!(fares(Some(&chained)), Ok(Full), "{versions:?}");
        assert_eq!(
            fares(Some(&old)),
            Err(Some(AlertDescription::CertificateExpired)),
            "{versions:?}"
        );
        assert_eq!(
            fares(Some(&foreign)),
            Err(Some(AlertDescription::UnknownCA)),
            "{versions:?}"
        );
        // Its issuer is not shown.
        assert_eq!(
            fares(Some(&good)),
            Err(Some(AlertDescription::UnknownCA)),
            "{versions:?}"
        );
        assert_eq!(
            fares(None),
            Err(Some(AlertDescription::CertificateRequired)),
            "{versions:?}"
        );
        kept.push(client(trusted, versions, Some(&direct)));
    }
    await_counted(
        &broker,
        &[
            ("tls_full", 4),
            ("tls_no_client_certificate", 2),
            ("tls_client_certificate_expired", 2),
            ("tls_client_certificate_refused", 4),
            ("closed_tls", 8),
        ],
    );
    let mut held = Peer::connected(&broker, Port::Wss, &kept[1], "held");
    for config in &kept {
        // Another protocol's session, if any, is no use here.
        fares(&broker, config).unwrap();
        assert_eq!(super::tls::fares(&broker, config), Ok(Resumed));
    }

    // Who was let in by the old authority is not let in by it any more, whatever tickets are kept.
    fs::write(&authority, &theirs.pair.certificate).unwrap();
    let before = counted(&broker)["tls_resumed"];
    reload(&broker);
    for config in &kept {
        assert_eq!(fares(&broker, config), Err(Some(AlertDescription::UnknownCA)));
    }
    assert_eq!(fares(&broker, &client(trusted, pki::ANY, Some(&foreign))), Ok(Full));
    await_counted(
        &broker,
        &[("tls_resumed", before), ("tls_client_certificate_refused", 6)],
    );
    held.looks();
    broker.stop();
}

/// A session outlives the certificate by which it was begun, but opens no connection after that.
#[test]
fn a_resumed_session_ends_with_its_clients_certificate() {
    let site = Site::new();
    let ours = Authority::root("ours");
    let (authority, _) = ours.pair.write(site.directory(), "clients");
    let broker = site.start(1, &["--tls-client-ca", authority.to_str().unwrap()]);
    let trusted = fs::read_to_string(self_made(&broker)).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut params = leaf(Some("brief"));
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now + 8);
    let brief = ours.issue(params);
    let configs = EACH.map(|versions| client(&trusted, versions, Some(&brief)));
    for config in &configs {
        assert_eq!(fares(&broker, config), Ok(HandshakeKind::Full));
        assert_eq!(fares(&broker, config), Ok(HandshakeKind::Resumed));
    }
    let until = UNIX_EPOCH + Duration::from_secs(now + 10);
    sleep(until.duration_since(SystemTime::now()).unwrap_or_default());
    let before = counted(&broker)["connects_accepted"];
    for config in &configs {
        // CONNECT leaves with the end of the handshake: nothing that came with it counts either.
        let mut socket = tcp(&broker, Port::Mqtts);
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
        connection.writer().write_all(&connect("late")).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).unwrap();
        }
        let kind = connection.handshake_kind();
        let got = until_closed(&mut rustls::StreamOwned::new(connection, socket));
        assert_eq!(kind, Some(HandshakeKind::Resumed));
        assert_eq!(got, b"", "what came with the end of the handshake was answered");
    }
    await_counted(
        &broker,
        &[("tls_client_certificate_expired", 2), ("connects_accepted", before)],
    );
    broker.stop();
}

#[test]
fn the_common_name_of_a_certificate_is_the_user() {
    let site = Site::new();
    let ours = Authority::root("ours");
    let (authority, _) = ours.pair.write(site.directory(), "clients");
    let broker = site.start(
        4,
        &[
            "--tls-client-ca",
            authority.to_str().unwrap(),
            "--tls-client-cn-as-username",
            "--log",
            "debug",
        ],
    );
    let trusted = fs::read_to_string(self_made(&broker)).unwrap();
    let named = client(&trusted, pki::ANY, Some(&ours.issue(leaf(Some("device-7")))));
    let nameless = client(&trusted, pki::ANY, Some(&ours.issue(leaf(None))));
    // With a user name and a password of its own, which count where there is no certificate.
    let claims = |id: &str| {
        let mut packet = connect(id);
        packet[9] |= 0xc0;
        packet.extend(hex("0003 626f62 0001 78"));
        packet[1] = packet.len() as u8 - 2;
        packet
    };
    for port in Port::ALL {
        let mut peer = Peer::open(&broker, port, &named);
        let id = format!("claims-{}", port.name());
        peer.send(&claims(&id));
        assert_eq!(peer.packet(), CONNACK);
        let written = broker.await_written(&id);
        let line = written.lines().find(|line| line.contains(&id)).unwrap();
        let user = if port.is_tls() {
            "user=\"device-7\""
        } else {
            "user=\"bob\""
        };
        assert!(line.contains(user), "no {user}: {line}");
        if port.is_tls() {
            let mut peer = Peer::open(&broker, port, &nameless);
            peer.send(&claims("nobody"));
            assert_eq!(peer.packet(), [0x20, 2, 0, 5], "{port:?}");
        }
    }
    assert_eq!(counted(&broker)["connects_refused"], 2);
    broker.stop();
}
