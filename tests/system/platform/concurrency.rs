//! Many change one account at the same time: channels and devices come and go while data arrives for them, on every core.
//!
//! Method: threads make random calls and publish for a while; nothing is compared until they rest.
//! Holds   - whatever happens at once, no answer is one that the contract does not know;
//!         - at rest every mapping and every event names a channel that is there, and the account counts what its channels hold;
//!         - what the registry shows of a device is what the core that owns it does: data goes to the channel shown, or nowhere;
//!         - all of it is so after a kill, and `skein inspect` finds no fault.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::{Account, LIFTED, Platform};
use super::rest::Line;
use crate::durability::seed;
use crate::power_cut::Random;
use crate::raw::{Packet, Raw, publish};

const CALLERS: u64 = 6;
const PUBLISHERS: u64 = 3;
const SPAN: Duration = Duration::from_secs(4);
const DEVICES: usize = 12;
const CHANNELS: usize = 4;

#[test]
fn an_account_that_many_change_at_once_stays_whole() {
    let seed = seed("SKEIN_CONCURRENCY_SEED");
    eprintln!("SKEIN_CONCURRENCY_SEED={seed}");
    let mut platform = Platform::start(1);
    let account = platform.account(0).clone();
    let (mqtt, api) = (platform.broker().port, platform.broker().api_port());
    thread::scope(|scope| {
        for n in 0..CALLERS {
            let account = &account;
            scope.spawn(move || call(api, account, Random::new(seed.wrapping_add(n))));
        }
        for n in CALLERS..CALLERS + PUBLISHERS {
            let account = &account;
            scope.spawn(move || send(mqtt, account, &format!("sender{n}"), Random::new(seed.wrapping_add(n))));
        }
    });
    let whole = check(&platform);
    platform.kill();
    platform.run(1, &LIFTED);
    assert_eq!(check(&platform), whole, "after a kill, with another number of cores");
    check_mappings(&platform);
    platform.stop();
    let inspected = Command::new(env!("CARGO_BIN_EXE_skein"))
        .args(["inspect", "--data-dir"])
        .arg(platform.data_dir())
        .output()
        .unwrap();
    assert!(
        inspected.status.success(),
        "{}",
        String::from_utf8_lossy(&inspected.stdout)
    );
}

fn call(port: u16, account: &Account, mut random: Random) {
    let mut line = Line::open(port, &[("X-APITOKEN", &account.api_token)]).unwrap();
    let mut connector = Line::open(port, &[("X-DEVICETOKEN", &account.device_token)]).unwrap();
    let began = Instant::now();
    while began.elapsed() < SPAN {
        let id = format!("pump-{}", random.below(DEVICES));
        let (device, channel) = (format!("/v2/device/{id}"), random.below(CHANNELS));
        let channel_path = format!("/v2/channel/{channel}");
        let (reply, expected): (_, &[u16]) = match random.below(12) {
            0 => (line.call("POST", &device, &[], ""), &[201, 403]),
            1 => (line.call("DELETE", &device, &[], ""), &[200, 404]),
            2..=4 => {
                let body = json!({"mapped_ch": channel}).to_string();
                (line.call("PUT", &device, &[], &body), &[200, 404])
            }
            5 => {
                let body = json!({"enabled": random.below(3) > 0}).to_string();
                (line.call("PUT", &device, &[], &body), &[200, 404])
            }
            6..=7 => (line.call("POST", &channel_path, &[], ""), &[201, 403]),
            8 => (line.call("DELETE", &channel_path, &[], ""), &[200, 404]),
            9 => {
                let body = json!({"mapped_ch": channel}).to_string();
                (line.call("POST", "/v2/event", &[], &body), &[201, 404])
            }
            10 => {
                let path = format!("/v2/stream/{channel}");
                (line.call("POST", &path, &[("X-TAGNAME", "tag")], "1"), &[201, 404])
            }
            _ => {
                let headers = [("X-DEVICEID", id.as_str())];
                (connector.call("POST", "/post_v2/", &headers, "1"), &[200, 201, 403])
            }
        };
        assert!(
            expected.contains(&reply.status),
            "{expected:?}: {reply:?}: {}",
            reply.text()
        );
    }
}

fn send(port: u16, account: &Account, id: &str, mut random: Random) {
    let mut raw = Raw::open(port, &account.connect(id).packet()).unwrap();
    let began = Instant::now();
    while began.elapsed() < SPAN {
        for id in 1..=20 {
            let (form, tag) = (
                ["json", "json", "state"][random.below(3)],
                ["", "/tag"][random.below(2)],
            );
            let topic = account.topic(&format!("{form}/pump-{}{tag}", random.below(DEVICES)));
            raw.send(&publish(&topic, 1, id, b"1"));
        }
        for _ in 1..=20 {
            assert!(matches!(raw.packet(), Packet::Acknowledgement { .. }));
        }
    }
}

/// Everything the account has, as far as it may not change by itself.
fn check(platform: &Platform) -> Value {
    let get = |path: &str| platform.api(0).get(path).expect(200).json();
    let (devices, events, user) = (get("/v2/device"), get("/v2/event"), get("/v2/user"));
    let streams = streams(platform);
    for one in devices.as_array().unwrap().iter().chain(events.as_array().unwrap()) {
        let channel = one["mapped_ch"].as_u64();
        assert!(
            channel.is_none_or(|channel| streams.contains_key(&channel)),
            "no such channel: {one}"
        );
    }
    let rows: u64 = streams.values().sum();
    assert_eq!(user[0]["storage"]["count"], rows, "{streams:?}");
    json!([devices, events, user, get("/v2/channel")])
}

/// Datapoints of each channel: every one is a 1, and an aggregate has room for any number of them.
fn streams(platform: &Platform) -> BTreeMap<u64, u64> {
    let channels = platform.api(0).get("/v2/channel").expect(200).json();
    let ids = channels
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["channel"].as_u64().unwrap());
    let count = |id: u64| {
        let api = platform.api(0).header("X-ENDTIME", "last").header("X-AGGREGATE", "sum");
        let sum = api.get(&format!("/v2/stream/{id}")).expect(200).json();
        sum["result"][0]["value"]["value1"].as_f64().unwrap_or(0.0) as u64
    };
    ids.map(|id| (id, count(id))).collect()
}

/// One datapoint for each device: it comes where the registry says.
fn check_mappings(platform: &Platform) {
    let devices = platform.api(0).get("/v2/device").expect(200).json();
    for device in devices.as_array().unwrap() {
        let mut expected = streams(platform);
        let id = device["device_id"].as_str().unwrap();
        if let (Some(channel), Some(true)) = (device["mapped_ch"].as_u64(), device["enabled"].as_bool()) {
            *expected.get_mut(&channel).unwrap() += 1;
        }
        platform.send(0, &format!("json/{id}"), "1");
        assert_eq!(streams(platform), expected, "{device}");
    }
}
