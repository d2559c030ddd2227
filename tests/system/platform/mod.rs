//! The device platform from outside: `--access platform`, driven by other people's clients and judged by the contract that
//! devices and applications rely on. Its sections, and where each is tested:
//!
//! ```text
//! 2       ports, TLS                        acceptance (all four ports), api_port
//! 3.1     client identifiers                tokens: a_client_identifier_…, the_same_client_identifier_in_two_accounts_…
//! 3.2, 4  credentials, tokens               tokens; acceptance item 6
//! 5       grammar, refusals, wills          topics
//! 6.1     new devices, limit                devices: a_new_device_…, over_the_device_limit_…; connector: over_…, with_a_default_…
//! 6.2     order of the checks               connector: a_device_is_new_then_…, an_unreadable_body_…; rates: the_connector_looks_…
//! 6.3     payload to value                  topics: a_payload_decides_…; connector: a_body_is_any_json_value_…, the_old_path_…
//! 6.4     state                             devices: a_state_report_…
//! 6.5     quota                             streams: at_the_quota_…; users: storage_counts_…
//! 7       conventions of the API            bad_input; tokens: the_api_asks_…; every file (`assert_error`)
//! 7.1     times                             devices, streams, sessions: by zone
//! 7.2     rates                             rates
//! 8       data model                        devices 8.2, channels 8.3, streams 8.4, events 8.5, sessions 8.6, users 8.1
//! 9-14    services, row by row              devices 9, channels 10, streams 11, connector 12, events 13, users 14.1,
//!                                           publish 14.2, sessions 14.3
//! 15      acceptance list                   acceptance, item by item
//!         all of it at once                 tenancy (a model), concurrency, ingestion (kills), openapi (schemathesis)
//! ```
//!
//! `fixture` is a broker with accounts, `rest` calls its API, `servers` are called by it, `time` reads what it shows; `cpus` says
//! which threads go first.

pub mod fixture;
mod rest;
mod servers;
pub mod time;

mod acceptance;
mod api_port;
mod bad_input;
mod channels;
mod concurrency;
mod connector;
mod cpus;
mod devices;
mod events;
mod ingestion;
mod noisy_neighbour;
mod openapi;
mod publish;
mod quotas;
mod rates;
mod sessions;
mod streams;
mod tenancy;
mod tokens;
mod topics;
mod users;
