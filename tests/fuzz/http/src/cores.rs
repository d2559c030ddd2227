//! In place of the cores: one that has one device.

use skein::ingest::payload;
use skein::ingest::topic::Format;
use skein::shard::ConnectionId;
use skein::shard::query::{Answer, ConnectedSession, Query, Refusal, SentFormat};
use skein::worker::Control;

use crate::{DEVICE, START_MS};

pub fn told(control: Control) {
    if let Control::Ask(question) = control {
        (question.reply)(answer(question.query));
    }
}

fn answer(query: Query) -> Answer {
    let known = |device: &str| device == DEVICE;
    match query {
        Query::CreateDevice { device, .. } if known(&device) => Answer::Refused(Refusal::DeviceInUse),
        Query::CreateDevice { .. } | Query::UnmapChannel { .. } | Query::Settled => Answer::Done,
        Query::Send { device, .. } if !known(&device) => Answer::Registered,
        Query::Send { payload, format, .. } => {
            let format = match format {
                SentFormat::Json => Format::Json,
                SentFormat::V1 => Format::V1,
            };
            match payload::value(format, &payload, &mut String::new()) {
                Ok(()) => Answer::Done,
                Err(payload::BadPayload) => Answer::Refused(Refusal::BadPayload),
            }
        }
        Query::ChangeDevice { device, .. } | Query::RemoveDevice { device, .. } | Query::Command { device, .. } => {
            match known(&device) {
                true => Answer::Done,
                false => Answer::Refused(Refusal::NoDevice),
            }
        }
        Query::Sessions { .. } => Answer::Sessions {
            sessions: vec![ConnectedSession {
                connection: ConnectionId {
                    index: 0,
                    generation: 0,
                },
                client_id: DEVICE.into(),
                address: "127.0.0.1:1".to_owned(),
                clean_session: true,
                level: 4,
                keep_alive_s: 60,
                connected_ms: START_MS,
            }],
            next: None,
        },
    }
}
