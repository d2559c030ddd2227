//! Layer 1: who may do what, and what the platform knows of accounts, devices, channels and events.
//!
//! [`access`] is the small interface the rest of the broker asks. The other modules are plain data with their rules: what a
//! name may be, what a default is. [`devices`] is what a core holds of the devices it owns.

pub mod access;
pub mod account;
pub mod channel;
pub mod datapoint;
pub mod device;
pub mod devices;
pub mod event;
pub mod quota;
