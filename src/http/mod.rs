//! Layer 6: the HTTP API, on the control thread.

pub mod cores;
pub mod desk;
pub mod error;
pub mod notify;
pub mod rate;
pub mod time;
