//! The file of the store, as `skein inspect` reads it without LMDB: any bytes are whole, or damaged in words.

pub fn check(bytes: &[u8]) {
    fuzz::store::pages::fuzz_pages(bytes);
}
