//! The ports that do not speak plain MQTT: TLS, WebSocket, the header of a proxy, and whoever mistakes one for another.
//!
//! `pki` makes certificates (rcgen, and openssl for RSA), `peer` is a client by hand on any of the four ports: TLS by
//! rustls, frames by its own few lines. Needs the command `openssl`.
//!
//! Called by `main`.

mod peer;
mod pki;

mod bad_input;
mod proxy;
mod tls;
mod websocket;
