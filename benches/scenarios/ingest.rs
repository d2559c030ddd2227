//! Layer 1: a device's message on its way to a stored value.

use std::hint::black_box;

use skein::ingest::payload::value;
use skein::ingest::pipeline::{self, Outcome};
use skein::ingest::topic::{Format, purpose};
use skein::ingest::trigger;
use skein::registry::access::AccountId;
use skein::registry::channel::ChannelId;
use skein::registry::devices::{Devices, Entry};
use skein::registry::event::{Event, Operator};

use super::{HASH_KEY, JSON, Runner};

const ACCOUNT: AccountId = AccountId(1);
const DEVICE: &str = "DEV0000017";

pub fn scenarios(runner: &mut impl Runner) {
    assert_eq!(JSON.len(), 64);
    runner.scenario("ingest/purpose of a topic", 1, || {
        || assert!(purpose(black_box("json/DEV0000017/inlet"), black_box(false)).is_ok())
    });
    for (of, format, payload) in [
        ("JSON of 64 bytes", Format::Json, JSON),
        ("a number", Format::Json, b"23.5"),
        ("64 bytes of binary", Format::Binary, JSON),
        ("the v1 form", Format::V1, b"v=1.5&v2=ok&v3=7"),
        (
            "JSON with a name twice",
            Format::Json,
            br#"{"temp":21.5,"rh":48,"temp":22}"#,
        ),
    ] {
        runner.scenario(&format!("ingest/value of {of}"), 1, || {
            let mut out = String::with_capacity(1_024);
            move || {
                out.clear();
                assert!(value(format, black_box(payload), &mut out).is_ok());
            }
        });
    }
    runner.scenario("ingest/trigger on the last field of 64 bytes", 1, || {
        let event = Event {
            source: "uptime".to_owned(),
            operator: Operator::Less,
            threshold: "30".to_owned(),
            ..Event::default()
        };
        let stored = std::str::from_utf8(JSON).expect("text");
        move || assert!(trigger::matches(&event, black_box(stored)).is_none())
    });
    runner.scenario("ingest/datapoint, topic to value, JSON of 64 bytes", 1, || {
        let mut devices = Devices::new(HASH_KEY);
        let entry = Entry {
            is_enabled: true,
            channel: ChannelId::new(3),
        };
        devices.insert(ACCOUNT, DEVICE, entry);
        let mut out = String::with_capacity(1_024);
        move || {
            out.clear();
            assert!(purpose(black_box("json/DEV0000017/inlet"), false).is_ok());
            let known = devices.get(ACCOUNT, black_box(DEVICE));
            let verdict = pipeline::data(Format::Json, black_box(JSON), known, None, || false, &mut out);
            assert!(matches!(verdict.outcome, Outcome::Kept(_)));
        }
    });
}
