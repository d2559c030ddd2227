//! Who is told of an event, and how.

pub mod target;
