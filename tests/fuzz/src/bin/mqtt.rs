#![no_main]

#[path = "../targets/mqtt.rs"]
mod mqtt;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mqtt::check(bytes));
