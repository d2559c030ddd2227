#![no_main]

#[path = "../targets/routing.rs"]
mod routing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| routing::check(bytes));
