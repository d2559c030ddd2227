//! The trace of a run, in words.
//!
//! Called  by `world` for each event, while a failed seed is played again.

use mqttbytes::v4;
use skein::mqtt::run::Run;
use skein::shard::message::ShardMessage;
use skein::shard::record::{Fetched, Record};

use crate::oracle::message_number;

pub fn brief(message: &ShardMessage<'_>) -> String {
    match message {
        ShardMessage::Publish { receipt, published } => {
            let message = &published.message;
            format!(
                "Publish m{:?} {} {receipt:?}",
                message_number(message.payload),
                message.topic.as_str()
            )
        }
        ShardMessage::Deliver { receipt, message, .. } => {
            format!(
                "Deliver m{:?} {} {receipt:?}",
                message_number(message.payload),
                message.topic.as_str()
            )
        }
        ShardMessage::PublishRun { receipt, run, .. } => format!("PublishRun {} {receipt:?}", brief_run(run)),
        ShardMessage::DeliverRun { receipt, run } => format!("DeliverRun {} {receipt:?}", brief_run(run)),
        ShardMessage::Retained { scan, message } => {
            format!(
                "Retained m{:?} {} {scan:?}",
                message_number(message.payload),
                message.topic.as_str()
            )
        }
        other => format!("{other:?}"),
    }
}

fn brief_run(run: &Run<'_>) -> String {
    let numbers: Vec<_> = run.publishes().map(|publish| message_number(publish.payload)).collect();
    format!("m{numbers:?} {:?} {}", run.qos, run.topic.as_str())
}

pub fn brief_record(record: &Record) -> String {
    match record {
        Record::Queued {
            message,
            entries,
            origin,
        } => {
            let entries: Vec<_> = entries.iter().map(|entry| (entry.session.0, entry.sequence)).collect();
            format!(
                "Queued m{:?} {} for {entries:?}, {origin:?}",
                message_number(message.payload()),
                message.topic(),
            )
        }
        Record::Retained { topic, payload, .. } => format!("Retained m{:?} {topic}", message_number(payload)),
        Record::Datapoint(datapoint) => format!(
            "Datapoint m{:?} {:?} {}",
            crate::streams::stored_message(&datapoint.row),
            datapoint.channel,
            datapoint.id.to_hex()
        ),
        other => format!("{other:?}"),
    }
}

pub fn brief_fetched(fetched: &Fetched) -> String {
    let Fetched::Queue(window) = fetched else {
        return format!("{fetched:?}");
    };
    let entries = window.entries.iter().map(|entry| {
        let released = if entry.released { " released" } else { "" };
        format!(
            "{} m{:?}{released}",
            entry.sequence,
            message_number(entry.message.payload())
        )
    });
    let entries: Vec<String> = entries.collect();
    let end = if window.is_end { ", the end" } else { "" };
    format!("read for {:?}: {}{end}", window.session, entries.join(", "))
}

pub fn brief_packet(packet: &v4::Packet) -> String {
    match packet {
        v4::Packet::Publish(publish) => format!(
            "PUBLISH m{:?} {} qos {} dup {} retain {} id {}",
            message_number(&publish.payload),
            publish.topic,
            publish.qos as u8,
            publish.dup,
            publish.retain,
            publish.pkid
        ),
        other => format!("{other:?}"),
    }
}
