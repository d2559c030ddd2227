//! Layer 3: what the store writes and reads, as bytes.

use std::hint::black_box;

use skein::mqtt::packet::QoS;
use skein::registry::datapoint::DatapointRow;
use skein::shard::record::SessionNumber;
use skein::store::schema::{self, Entry, EntryMessage, StoredMessage};

use super::{JSON, PAYLOAD, Runner};

const ENTRY: Entry<'static> = Entry {
    qos: QoS::AtLeastOnce,
    retain: false,
    released: false,
    message: EntryMessage::Inline(StoredMessage {
        topic: "plant/line/pump",
        payload: &PAYLOAD,
    }),
};

pub fn scenarios(runner: &mut impl Runner) {
    runner.scenario("store/encode a queue entry", 1, || {
        let mut value = Vec::new();
        move || {
            let key = schema::queue_key(SessionNumber(1), black_box(7));
            schema::encode_entry(&key, black_box(&ENTRY), &mut value);
            black_box(&value);
        }
    });
    runner.scenario("store/decode a queue entry", 1, || {
        let key = schema::queue_key(SessionNumber(1), 7);
        let mut value = Vec::new();
        schema::encode_entry(&key, &ENTRY, &mut value);
        move || assert!(black_box(schema::decode_entry(black_box(&key), black_box(&value))).is_ok())
    });
    runner.scenario("store/pack and unpack a datapoint", 1, || {
        let row = DatapointRow {
            tag: "",
            device: "device-00017",
            value: std::str::from_utf8(JSON).expect("text"),
        };
        move || {
            let packed = black_box(black_box(&row).pack());
            assert!(black_box(DatapointRow::unpack(&packed)).is_some());
        }
    });
}
