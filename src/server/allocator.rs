//! What the C library's allocator gives back.
//!
//! Called  by `server` before anything large is allocated.
//! Holds   - a block of [`MALLOC_MAPPED_BYTES_MIN`] and more is a mapping of its own, that goes when it is freed. Left to itself
//!           glibc raises that bound to the largest block it has seen freed, and keeps twice as much free in the arena of each
//!           thread: answers of the API, one of them made by a different thread each time, then stay for hours.
#![allow(unsafe_code)]

use crate::limits::MALLOC_MAPPED_BYTES_MIN;

/// An operator's own `GLIBC_TUNABLES` go before.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    if !std::env::var_os("GLIBC_TUNABLES").is_some_and(|tunables| tunables.to_string_lossy().contains("glibc.malloc."))
    {
        // SAFETY: it takes two numbers and locks what it changes.
        let was_taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MALLOC_MAPPED_BYTES_MIN) };
        debug_assert_eq!(was_taken, 1, "glibc takes any up to half of an arena's largest heap");
    }
}
