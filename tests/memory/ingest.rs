//! What a registered device costs while it is silent, and that its messages cost no allocation.

use skein::ingest::payload::{state, value};
use skein::ingest::pipeline::{self, Outcome};
use skein::ingest::topic::{Format, purpose};
use skein::ingest::trigger;
use skein::registry::access::AccountId;
use skein::registry::channel::ChannelId;
use skein::registry::devices::{Devices, Entry};
use skein::registry::event::{Event, Operator};

use crate::counting::{held_bytes, largest_request_bytes};

const DEVICES: u32 = 1_000_000;
const BYTES_PER_DEVICE_MAX: usize = 64;
/// One segment of the table.
const LARGEST_REQUEST_MAX: usize = 1024 * 1024;

fn entry() -> Entry {
    Entry {
        is_enabled: true,
        channel: ChannelId::new(3),
    }
}

#[test]
fn a_device_costs_at_most_its_bound_on_the_way_to_a_million() {
    let baseline = held_bytes();
    let mut devices = Devices::new([1, 2, 3, 4]);
    largest_request_bytes();
    for number in 0..DEVICES {
        assert!(devices.insert(AccountId(number % 7), &format!("DEV{number:07}"), entry()));
        if number >= 10_000 {
            let held = held_bytes() - baseline + size_of::<Devices>();
            assert!(held <= BYTES_PER_DEVICE_MAX * devices.len(), "{held} bytes at {number}");
        }
    }
    let largest = largest_request_bytes();
    assert!(largest <= LARGEST_REQUEST_MAX, "{largest}");
    for account in 0..7 {
        assert!(devices.remove_account(AccountId(account)) > 0);
    }
    assert!(devices.is_empty());
    assert_eq!(held_bytes() - baseline, 0);
}

#[test]
fn a_message_of_a_device_is_judged_without_allocating() {
    let mut devices = Devices::new([1, 2, 3, 4]);
    devices.insert(AccountId(1), "pump-07", entry());
    let event = Event {
        source: "data:temp".to_owned(),
        operator: Operator::Greater,
        threshold: "30".to_owned(),
        ..Event::default()
    };
    let object = br#"{"data":[{"temp":21.5,"rh":48}],"note":"a \"text\" \u00e9","big":12345678901234567890123}"#;
    let mut text = String::with_capacity(4096);
    let judge = |text: &mut String| {
        assert!(purpose("json/pump-07/inlet", true).is_ok());
        let known = devices.get(AccountId(1), "pump-07");
        for payload in [&object[..], b"23.5", b"[1,2]"] {
            text.clear();
            let verdict = pipeline::data(Format::Json, payload, known, None, || false, text);
            assert!(matches!(verdict.outcome, Outcome::Kept(_)));
            assert_eq!(trigger::matches(&event, text), None);
        }
        assert!(value(Format::Binary, b"\x01\xa4\xff", text).is_ok());
        assert!(value(Format::V1, b"v=1.5&v2=ok", text).is_ok());
        assert!(state(b"health=OK&load=12.5", text).is_ok());
    };
    judge(&mut text);
    largest_request_bytes();
    judge(&mut text);
    // serde_json resolves the escapes of a string in a buffer of its own: nothing else asked for memory.
    let largest = largest_request_bytes();
    assert!(largest <= 16, "{largest}");
}
