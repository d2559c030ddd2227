#![no_main]

#[path = "../targets/ingest.rs"]
mod ingest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ingest::check(bytes));
