//! The rows that a record is on disk, by the real schema: what is written is what is read.
//!
//! Called  by `disk` with every record that is committed. That LMDB keeps rows as the tables of the simulation keep values is
//!         what `store`'s own tests compare.

use skein::shard::record::{Datapoint, Record};
use skein::store::schema::platform::{
    Generation, StreamNumber, datapoint_key, decode_datapoint, decode_datapoint_key, decode_device, decode_device_key,
    device_key, encode_datapoint, encode_device,
};
use skein::store::schema::{
    Entry, EntryMessage, Retained, Session, StoredMessage, decode_entry, decode_queue_key, decode_received_key,
    decode_retained, decode_session, decode_session_key, decode_subscription, encode_entry, encode_retained,
    encode_session, encode_subscription, queue_key, received_key, retained_key, session_key, subscription_key,
};

/// Panics if a row of this record is not read as it was written.
pub fn check(record: &Record) {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    match record {
        Record::SessionStarted {
            session,
            account,
            client_id,
        } => {
            let key = session_key(*session);
            let row = Session {
                account: account.0,
                client_id: client_id.clone(),
            };
            encode_session(&key, &row, &mut value);
            assert_eq!(decode_session_key(&key), Ok(*session));
            assert_eq!(decode_session(&key, &value), Ok(row));
        }
        Record::Subscribed { session, filter, qos } => {
            subscription_key(*session, filter, &mut key);
            encode_subscription(&key, filter, *qos, &mut value);
            assert_eq!(decode_subscription(&key, &value), Ok((*session, &**filter, *qos)));
        }
        Record::Queued { message, entries, .. } => {
            for queued in entries {
                let key = queue_key(queued.session, queued.sequence);
                let stored = StoredMessage {
                    topic: message.topic(),
                    payload: message.payload(),
                };
                let row = Entry {
                    qos: queued.qos,
                    retain: queued.retain,
                    released: false,
                    message: EntryMessage::Inline(stored),
                };
                value.clear();
                encode_entry(&key, &row, &mut value);
                assert_eq!(decode_queue_key(&key), Ok((queued.session, queued.sequence)));
                assert_eq!(decode_entry(&key, &value), Ok(row));
            }
        }
        Record::Retained { topic, payload, qos } => {
            retained_key(topic, &mut key);
            let (qos, payload) = (*qos, &**payload);
            let row = Retained { topic, qos, payload };
            encode_retained(&key, &row, &mut value);
            assert_eq!(decode_retained(&key, &value), Ok(row));
        }
        Record::PacketIdReceived { session, packet_id } => {
            let key = received_key(*session, *packet_id);
            assert_eq!(decode_received_key(&key), Ok((*session, *packet_id)));
        }
        Record::DeviceRegistered { account, device, entry } => {
            device_key(*account, device, &mut key);
            encode_device(&key, entry, &mut value);
            assert_eq!(decode_device_key(&key), Ok((*account, &**device)));
            assert_eq!(decode_device(&key, &value).as_ref(), Ok(&**entry));
        }
        Record::Datapoint(datapoint) => {
            let Datapoint { channel, id, row, .. } = &**datapoint;
            let stream = StreamNumber(u64::from(channel.number()) + 1);
            let key = datapoint_key(stream, *id);
            encode_datapoint(&key, Generation(3), row, &mut value);
            assert_eq!(decode_datapoint_key(&key), Ok((stream, *id)));
            let stored = decode_datapoint(&key, &value).expect("it was written by the schema");
            assert_eq!(stored.row.pack(), *row);
        }
        _ => {}
    }
}
