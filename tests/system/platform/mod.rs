//! The device platform from outside: `--access platform`, driven by other people's clients and judged by the contract that
//! devices and applications rely on, whose sections are named here.
//!
//! `fixture` is a broker with accounts, `rest` calls its API by curl, `servers` are called by it.

mod fixture;
mod rest;
mod servers;
mod time;

mod acceptance;
mod api_port;
mod bad_input;
mod channels;
mod connector;
mod devices;
mod events;
mod ingestion;
mod openapi;
mod publish;
mod rates;
mod sessions;
mod streams;
mod tenancy;
mod tokens;
mod topics;
mod users;
