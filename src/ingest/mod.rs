//! Layer 1: from a device's message to what is kept of it. One pure pipeline for MQTT and for the HTTP device connector.
//!
//! [`topic`] says what a topic is for, [`payload`] what value a payload is, [`pipeline`] what is to become of it,
//! [`trigger`] which events it fires: all on the way of every message, none allocating while all is as it should be.
//! [`aggregate`] and [`decode`] are for who reads stored values. [`json`] and [`number`] are what they share.

pub mod aggregate;
pub mod decode;
pub mod json;
pub mod number;
pub mod payload;
pub mod pipeline;
pub mod topic;
pub mod trigger;
