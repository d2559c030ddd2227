//! Layer 1: from a device's message to what is kept of it. One pure pipeline for MQTT and for the HTTP device connector.
//!
//! [`topic`] says what a topic is for, [`payload`] what value a payload is, both without allocating. [`json`] is what they
//! and the readers of stored values share.

pub mod json;
pub mod payload;
pub mod topic;
