#![no_main]

#[path = "../targets/pages.rs"]
mod pages;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pages::check(bytes));
