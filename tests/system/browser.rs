//! A page in a browser: MQTT.js as its authors bundle it for pages, in a headless Chromium, over WebSocket and secure
//! WebSocket. The test serves the page, and the page posts to it what it has seen.
//!
//! Holds  - the browser verifies certificates as always; it only takes the keys of the brokers under test for good ones;
//!        - the browser is ended by its own process id, and leaves nothing outside a temporary directory.

use crate::broker::{Broker, SETTINGS, Transport, patience};
use crate::clients::{Agent, INSTALL, Library, Message, hello};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// Three brokers: any page may connect to the first, ours to the second, another one to the third.
#[test]
fn a_page_talks_over_ws_and_wss_unless_its_origin_is_not_allowed() {
    let site = PageServer::start();
    let brokers = [
        Broker::start(SETTINGS[0], &[]),
        Broker::start(SETTINGS[1], &["--ws-allow-origin", &site.origin]),
        Broker::start(SETTINGS[3], &["--ws-allow-origin", "https://elsewhere.example"]),
    ];
    let mut agent = Agent::start(Library::Paho);
    let mut urls = Vec::new();
    for (n, broker) in brokers.iter().enumerate() {
        let name = n.to_string();
        agent.connect(&name, broker, hello("other").clip(16));
        for qos in 0..=2 {
            agent.publish(
                &name,
                &Message::new(&format!("page/kept/{qos}"), [0, 255, qos], qos, true),
            );
        }
        agent.subscribe(&name, &[("page/own/+", 2)]);
        for transport in [Transport::WebSocket, Transport::SecureWebSocket] {
            urls.push(format!(
                "{}://127.0.0.1:{}/mqtt",
                transport.name(),
                broker.port_of(transport)
            ));
        }
    }

    let address = format!("{}/?url={}", site.origin, urls.join("&url="));
    let browser = Browser::start(&address, &brokers.each_ref().map(Broker::certificate));
    let results = site.result();
    drop(browser);

    let own: Vec<u8> = (0..70_000).map(|at| (at % 251) as u8).collect();
    let own = hex::encode(own);
    let expected: Vec<Value> = (0..=2)
        .map(|qos| json!([format!("page/kept/{qos}"), hex::encode([0, 255, qos]), qos, true]))
        .chain((0..=2).map(|qos| json!([format!("page/own/{qos}"), own, qos, false])))
        .collect();
    for (result, url) in results.as_array().unwrap().iter().zip(&urls).take(4) {
        assert_eq!(result["how"], "done", "{url}: {}", brief(result));
        let mut messages = result["messages"].as_array().unwrap().clone();
        messages.sort_by_key(|message| message[0].to_string());
        assert!(messages == expected, "{url}: {}", brief(result));
    }
    // Sorted over both connections: paho reports QoS 2 at its PUBREL, which Nagle's algorithm (paho leaves it on) and a delayed
    // ACK hold back by 40 ms, while the page's second connection publishes.
    for name in ["0", "1"] {
        let mut got = agent.messages(name, 6);
        got.sort();
        for (n, message) in (0..6).zip(got) {
            let qos = n / 2;
            assert_eq!((message.topic, message.qos), (format!("page/own/{qos}"), qos));
        }
    }
    let refused = json!({"how": "closed", "connected": false, "messages": []});
    assert_eq!(results.as_array().unwrap()[4..], [refused.clone(), refused]);
    for broker in brokers {
        broker.stop();
    }
}

/// A result without its payloads.
fn brief(result: &Value) -> Value {
    let mut result = result.clone();
    for message in result["messages"].as_array_mut().unwrap() {
        message[1] = message[1].as_str().unwrap().len().into();
    }
    result
}

/// The page and the library it loads; whatever else is asked for is not there.
struct PageServer {
    origin: String,
    results: Receiver<Value>,
}

impl PageServer {
    fn start() -> PageServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (tell, results) = channel();
        // Ends with the process.
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let tell = tell.clone();
                thread::spawn(move || answer(connection, &tell));
            }
        });
        PageServer { origin, results }
    }

    fn result(&self) -> Value {
        let within = patience(Duration::from_secs(60));
        self.results.recv_timeout(within).expect("the page posts its result")
    }
}

fn answer(mut connection: TcpStream, tell: &Sender<Value>) -> Option<()> {
    let mut input = BufReader::new(connection.try_clone().ok()?);
    let (mut request, mut header, mut length) = (String::new(), String::new(), 0);
    input.read_line(&mut request).ok()?;
    while input.read_line(&mut header).ok()? > 2 {
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        header.clear();
    }
    let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/system/clients");
    let (kind, body) = if request.starts_with("POST /result ") {
        let mut body = vec![0; length];
        input.read_exact(&mut body).ok()?;
        tell.send(serde_json::from_slice(&body).ok()?).ok()?;
        ("204 No Content\r\nContent-Type: text/plain", Vec::new())
    } else if request.starts_with("GET /mqtt.min.js ") {
        let bundle = clients.join("node_modules/mqtt/dist/mqtt.min.js");
        ("200 OK\r\nContent-Type: text/javascript", fs::read(bundle).ok()?)
    } else if request.starts_with("GET /?") {
        (
            "200 OK\r\nContent-Type: text/html",
            fs::read(clients.join("page.html")).ok()?,
        )
    } else {
        ("404 Not Found\r\nContent-Type: text/plain", Vec::new())
    };
    let head = format!(
        "HTTP/1.1 {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(&[head.as_bytes(), &body].concat()).ok()
}

struct Browser {
    process: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// At this address, with these certificates' keys taken for good ones.
    fn start(address: &str, certificates: &[PathBuf]) -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let keys: Vec<_> = certificates.iter().map(|certificate| key_hash(certificate)).collect();
        let process = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--ignore-certificate-errors-spki-list={}", keys.join(",")))
            .arg(address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(profile.path().join("stderr")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("chromium cannot be started ({error}): {INSTALL}"));
        Browser {
            process,
            _profile: profile,
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if thread::panicking() {
            let said = fs::read_to_string(self._profile.path().join("stderr"));
            eprintln!("--- chromium\n{}---", said.unwrap_or_default());
        }
        // Its further processes end when it is gone. Both fail where it has ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What Chromium knows a key by: Base64 of the SHA-256 of the SubjectPublicKeyInfo.
fn key_hash(certificate: &Path) -> String {
    let text = fs::read(certificate).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).unwrap();
    let certificate = pem.parse_x509().unwrap();
    BASE64_STANDARD.encode(Sha256::digest(certificate.public_key().raw))
}
