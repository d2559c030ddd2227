//! The real binary against other people's clients, and against peers that mean no good.
//!
//! `broker` starts and stops it, `clients` are paho-mqtt, MQTT.js and the mosquitto commands; every other file is one
//! theme. Nothing here uses our own codec. `tests/setup` installs the clients; without them these tests fail.
#![allow(clippy::unwrap_used)]

mod broker;
mod clients;
mod disk_faults;
mod power_cut;
mod raw;

mod browser;
mod descriptors;
mod durability;
mod exchange;
mod faults;
mod hostile;
mod operator;
mod order;
mod platform;
mod secure;
mod sessions;
mod transports;
