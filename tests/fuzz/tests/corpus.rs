//! What is kept of all fuzzing so far, replayed without an engine: seeds, what reached new code, and what once failed.
#![allow(clippy::unwrap_used)]

#[path = "../src/targets/ingest.rs"]
mod ingest;
#[path = "../src/targets/mqtt.rs"]
mod mqtt;
#[path = "../src/targets/pages.rs"]
mod pages;
#[path = "../src/targets/proxy.rs"]
mod proxy;
#[path = "../src/targets/records.rs"]
mod records;
#[path = "../src/targets/routing.rs"]
mod routing;
#[path = "../src/targets/sessions.rs"]
mod sessions;
#[path = "../src/targets/websocket.rs"]
mod websocket;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

type Check = fn(&[u8]);

/// Every target, by the name of its program and of its corpus.
const TARGETS: [(&str, Check); 8] = [
    ("ingest", ingest::check),
    ("mqtt", mqtt::check),
    ("pages", pages::check),
    ("proxy", proxy::check),
    ("records", records::check),
    ("routing", routing::check),
    ("sessions", sessions::check),
    ("websocket", websocket::check),
];

#[test]
fn every_input_that_is_kept_is_taken() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut failed = Vec::new();
    for (name, check) in TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has a corpus");
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            if catch_unwind(|| check(&bytes)).is_err() {
                failed.push(format!("tests/fuzz/run --replay {name} {}", input.display()));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
