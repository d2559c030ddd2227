//! Layer 1: who may do what. [`access`] is the small interface the rest of the broker asks.

pub mod access;
