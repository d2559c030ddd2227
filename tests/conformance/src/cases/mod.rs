//! What is played: one file per part of the protocol.
//!
//! Called  by `run`, which asks for all of them.
//! Holds   - the longest come first, so that they do not come last;
//!         - a stimulus that breaks a rule is sent on a connection of its own.

mod connect;
mod framing;
mod keep_alive;
mod level3;
mod publish;
mod qos;
mod retained;
mod sessions;
mod subscribe;
mod topics;
mod websocket;
mod wills;

use crate::Case;

pub fn all() -> Vec<&'static Case> {
    let files = [
        keep_alive::CASES,
        wills::CASES,
        framing::CASES,
        connect::CASES,
        sessions::CASES,
        publish::CASES,
        retained::CASES,
        qos::CASES,
        subscribe::CASES,
        topics::CASES,
        level3::CASES,
        websocket::CASES,
    ];
    files.into_iter().flatten().collect()
}
