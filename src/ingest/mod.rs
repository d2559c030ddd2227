//! Layer 1: from a device's message to what is kept of it. One pure pipeline for MQTT and for the HTTP device connector.
//!
//! [`topic`] says what a topic is for, [`pipeline`] what is to become of data by what the registry says of its device,
//! [`payload`] what value a payload is, none of them allocating. [`json`] is what they and the readers of stored values share.

pub mod json;
pub mod payload;
pub mod pipeline;
pub mod topic;
pub mod trigger;
