#![no_main]

#[path = "../targets/proxy.rs"]
mod proxy;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy::check(bytes));
