//! What is kept of all fuzzing so far, replayed without an engine.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn every_input_that_is_kept_is_taken() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/http");
    let mut inputs: Vec<_> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty());
    for input in inputs {
        let bytes = fs::read(&input).unwrap();
        let taken = catch_unwind(|| fuzz_http::check(&bytes));
        assert!(taken.is_ok(), "tests/fuzz/run --replay http {}", input.display());
    }
}
