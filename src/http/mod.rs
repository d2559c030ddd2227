//! Layer 6: the HTTP API, on the control thread.

pub mod admin;
pub mod desk;
pub mod notify;
