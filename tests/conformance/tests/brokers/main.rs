//! The suite against brokers that run: `own` is the one of this repository, which passes; `wrong` are those that are wrong in one
//! thing each, which do not. `broker` starts and ends the first.
#![allow(clippy::unwrap_used)]

mod broker;
mod own;
mod wrong;
