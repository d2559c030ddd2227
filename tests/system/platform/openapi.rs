//! The API's description of itself, checked against the running broker by schemathesis: what is sent is made from the
//! document, what is answered has to be in it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::fixture::{LIFTED, Platform};
use crate::clients::INSTALL;

/// The services of the contract (sections 9 to 14).
const CALLS: [(&str, &str); 24] = [
    ("get", "/v2/device"),
    ("get", "/v2/device/{device_id}"),
    ("post", "/v2/device/{device_id}"),
    ("put", "/v2/device/{device_id}"),
    ("delete", "/v2/device/{device_id}"),
    ("get", "/v2/channel"),
    ("get", "/v2/channel/{channel_id}"),
    ("post", "/v2/channel/{channel_id}"),
    ("put", "/v2/channel/{channel_id}"),
    ("delete", "/v2/channel/{channel_id}"),
    ("get", "/v2/stream/{channel_id}"),
    ("post", "/v2/stream/{channel_id}"),
    ("get", "/v2/event"),
    ("post", "/v2/event"),
    ("get", "/v2/event/{event_id}"),
    ("put", "/v2/event/{event_id}"),
    ("delete", "/v2/event/{event_id}"),
    ("get", "/v2/user"),
    ("put", "/v2/user"),
    ("get", "/v2/session"),
    ("post", "/v2/publish/{device_id}"),
    ("post", "/v1/publish/{device_id}"),
    ("post", "/post_v2/"),
    ("post", "/post_v1/"),
];

#[test]
fn the_document_names_every_call_and_its_page_can_be_read() {
    let platform = Platform::start_with(1, 1, &[&LIFTED[..], &["--v1=true"]].concat());
    // It says nothing that is not public.
    let reply = platform.anybody().get("/openapi.json").expect(200);
    assert!(reply.header("content-type").unwrap().starts_with("application/json"));
    let document: Value = reply.json();
    assert!(
        document["openapi"].as_str().unwrap().starts_with("3."),
        "{}",
        document["openapi"]
    );
    for (method, path) in CALLS {
        let call = &document["paths"][path][method];
        assert!(call.is_object(), "{method} {path} is not in the document");
        assert!(
            call["summary"].is_string() || call["description"].is_string(),
            "{method} {path}"
        );
        let answers = call["responses"].as_object().unwrap();
        let is_error = |answer: &str| answers.contains_key(answer);
        assert!(
            is_error("401") && is_error("429"),
            "{method} {path}: {:?}",
            answers.keys()
        );
    }
    let paths = document["paths"].as_object().unwrap();
    let undocumented = paths.iter().flat_map(|(path, calls)| {
        let methods = calls.as_object().unwrap().keys();
        methods.map(move |method| (method.as_str(), path.as_str()))
    });
    let further: Vec<_> = undocumented.filter(|call| !CALLS.contains(call)).collect();
    eprintln!("beyond the contract: {further:?}");
    let mut pages = ["/docs", "/openapi", "/"]
        .into_iter()
        .map(|path| platform.anybody().get(path));
    let page = pages.find(|reply| reply.status == 200).expect("a page to read");
    assert!(
        page.header("content-type").unwrap().starts_with("text/html"),
        "{page:?}"
    );
    let text = page.text();
    assert!(text.contains("/v2/device"), "{text}");
    // Nothing is fetched from elsewhere.
    assert!(!text.contains("src=\"http") && !text.contains("href=\"//"), "{text}");
}

/// Once by an account that has something of everything.
#[test]
fn what_the_document_says_is_so() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "schemathesis is not installed: {INSTALL}");
    let flags = [&LIFTED[..], &["--v1=true", "--log", "info"]].concat();
    let mut platform = Platform::start_with(4, 1, &flags);
    platform.map(0, "pump-07", 3);
    platform.map(0, "pump-07", 1);
    platform.send(0, "json/pump-07", r#"{"temp":20,"deep":{"er":[1,2]}}"#);
    platform.send(0, "json/pump-07/inlet", r#"{"temp":21}"#);
    platform.send(0, "binary/pump-07", [0x81, 0xa1, 0x61, 1]);
    platform.send(0, "state/pump-07", "health=OK&load=12.5");
    platform
        .api(0)
        .post("/v2/event", json!({"description": "own", "mapped_ch": 3}))
        .expect(201);
    let _raw = platform.client(0, "connected");
    let url = format!("http://127.0.0.1:{}/openapi.json", platform.broker().api_port());
    let examples = std::env::var("SKEIN_SCHEMATHESIS_EXAMPLES").unwrap_or("25".into());
    let account = platform.account(0);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    // By its module: the command's script names the directory in which it was installed, which may have been moved since.
    let mut command = Command::new(python);
    command.args([
        "-m",
        "schemathesis.cli",
        "run",
        &url,
        "--checks",
        checks,
        "--max-examples",
        &examples,
        "--phases",
        "examples,coverage,fuzzing",
    ]);
    command.args([
        "--no-color",
        "--generation-database",
        "none",
        "--request-timeout",
        "20",
        "--continue-on-failure",
    ]);
    // How much of what it makes up it has to throw away, and how long that takes, depends on the seed and on what else runs:
    // it is nothing that the document says.
    command.args(["--suppress-health-check", "filter_too_much,too_slow"]);
    command.args(["-H", &format!("X-APITOKEN:{}", account.api_token)]);
    command.args(["-H", &format!("X-DEVICETOKEN:{}", account.device_token)]);
    if let Ok(seed) = std::env::var("SKEIN_SCHEMATHESIS_SEED") {
        command.args(["--seed", &seed]);
    }
    command.env("NO_PROXY", "*").current_dir(platform.site.directory());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    eprintln!("{said}");
    // The broker has come through it, and so has the account.
    platform
        .anybody()
        .header("X-APITOKEN", &platform.account(0).api_token)
        .get("/v2/user")
        .expect(200);
    platform.stop();
}
