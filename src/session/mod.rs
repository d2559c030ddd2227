//! Layer 1: the rules for one client.

pub mod outbound;
