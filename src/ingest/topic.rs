//! The platform's topic grammar: what a topic below an account's prefix is for.
//!
//! Called  by `shard` for every PUBLISH, with what `registry::access` left of the topic.
//! Holds   - nothing is allocated: device and tag are parts of the topic;
//!         - what fits no row of the grammar is [`Purpose::Other`]; [`BadTopic`] is only for what begins like data or state
//!           and then breaks a rule.

use crate::registry::device::{check_device_id, is_name};

/// What a message on a topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// `DT/json/DEV[/TAG]`, `DT/binary/DEV[/TAG]`, and `DT/DEV` of old senders: a value for the device's channel.
    Data {
        format: Format,
        device: &'a str,
        tag: Option<&'a str>,
    },
    /// `DT/state/DEV`: how the device is.
    State { device: &'a str },
    /// Routed to who wants it, and nothing else; `DT/DEV/subscribe` is among these.
    Other,
}

/// How a value is written in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Binary,
    /// `v=..&v2=..&v3=..&v4=..`
    V1,
}

/// The topic breaks a rule of the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTopic;

/// `below_prefix`: the part of the topic behind `DT/`, empty when the topic is the token alone.
pub fn purpose(below_prefix: &str, v1_topics: bool) -> Result<Purpose<'_>, BadTopic> {
    let Some((first, rest)) = below_prefix.split_once('/') else {
        let is_v1 = v1_topics && check_device_id(below_prefix).is_ok();
        return Ok(if is_v1 {
            Purpose::Data {
                format: Format::V1,
                device: below_prefix,
                tag: None,
            }
        } else {
            Purpose::Other
        });
    };
    match first {
        "json" => data(Format::Json, rest),
        "binary" => data(Format::Binary, rest),
        "state" if !rest.contains('/') => Ok(Purpose::State { device: device(rest)? }),
        _ => Ok(Purpose::Other),
    }
}

/// `DEV`, `DEV/` or `DEV/TAG`.
fn data(format: Format, rest: &str) -> Result<Purpose<'_>, BadTopic> {
    let (id, tag) = rest.split_once('/').unwrap_or((rest, ""));
    // A further level is no tag: its separator is none of a name's characters.
    if !tag.is_empty() && !is_name(tag) {
        return Err(BadTopic);
    }
    Ok(Purpose::Data {
        format,
        device: device(id)?,
        tag: (!tag.is_empty()).then_some(tag),
    })
}

fn device(id: &str) -> Result<&str, BadTopic> {
    check_device_id(id).map(|()| id).map_err(|_| BadTopic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data<'a>(format: Format, device: &'a str, tag: Option<&'a str>) -> Result<Purpose<'a>, BadTopic> {
        Ok(Purpose::Data { format, device, tag })
    }

    #[test]
    fn every_row_of_the_grammar_has_its_purpose() {
        use Format::{Binary, Json, V1};
        let (longest, too_long) = ("x".repeat(64), "x".repeat(65));
        let with_longest = format!("json/{longest}/{longest}");
        let long_device = format!("json/{too_long}");
        let long_tag = format!("json/pump-07/{too_long}");
        let long_state = format!("state/{too_long}");
        // Below the prefix; with v1 topics off; with v1 topics on, where that differs.
        let rows = [
            // Send data, send binary data.
            ("json/pump-07", data(Json, "pump-07", None), None),
            ("json/pump-07/inlet", data(Json, "pump-07", Some("inlet")), None),
            ("binary/pump-07", data(Binary, "pump-07", None), None),
            ("binary/pump-07/inlet", data(Binary, "pump-07", Some("inlet")), None),
            // Receive commands.
            ("pump-07/subscribe", Ok(Purpose::Other), None),
            // Report device state.
            ("state/pump-07", Ok(Purpose::State { device: "pump-07" }), None),
            // Old v1 data; rule 6.
            ("pump-07", Ok(Purpose::Other), Some(data(V1, "pump-07", None))),
            // Rule 1: an empty tag is none.
            ("json/pump-07/", data(Json, "pump-07", None), None),
            ("binary/pump-07/", data(Binary, "pump-07", None), None),
            // Rule 2: the tag is one level.
            ("json/pump-07/inlet/", Err(BadTopic), None),
            ("json/pump-07/inlet/left", Err(BadTopic), None),
            ("json/pump-07//", Err(BadTopic), None),
            ("json/pump-07//inlet", Err(BadTopic), None),
            ("binary/pump-07/inlet/left", Err(BadTopic), None),
            // Rule 3: 1 to 64 characters, case-sensitive, no control characters.
            (&with_longest, data(Json, &longest, Some(&longest)), None),
            (&long_device, Err(BadTopic), None),
            (&long_tag, Err(BadTopic), None),
            (&long_state, Err(BadTopic), None),
            (&too_long, Ok(Purpose::Other), None),
            ("json/Pump-07", data(Json, "Pump-07", None), None),
            ("json/pump\u{7}", Err(BadTopic), None),
            ("json/pump-07/in\nlet", Err(BadTopic), None),
            ("json/p+", Err(BadTopic), None),
            ("json/pump-07/#", Err(BadTopic), None),
            ("state/pump\u{7}", Err(BadTopic), None),
            ("json/пумп", data(Json, "пумп", None), None),
            // Rule 4: neither `0` nor empty.
            ("json/0", Err(BadTopic), None),
            ("json/0/inlet", Err(BadTopic), None),
            ("json/", Err(BadTopic), None),
            ("json//", Err(BadTopic), None),
            ("json//inlet", Err(BadTopic), None),
            ("binary/0", Err(BadTopic), None),
            ("state/0", Err(BadTopic), None),
            ("state/", Err(BadTopic), None),
            ("0", Ok(Purpose::Other), None),
            ("json/00", data(Json, "00", None), None),
            // A tag may be `0`, and may be called like a reserved device.
            ("json/pump-07/0", data(Json, "pump-07", Some("0")), None),
            ("json/pump-07/json", data(Json, "pump-07", Some("json")), None),
            // Rule 5: reserved ids.
            ("json/json", Err(BadTopic), None),
            ("json/binary", Err(BadTopic), None),
            ("binary/state", Err(BadTopic), None),
            ("json/subscribe", Err(BadTopic), None),
            ("state/subscribe", Err(BadTopic), None),
            ("json/JSON", data(Json, "JSON", None), None),
            ("json", Ok(Purpose::Other), None),
            ("binary", Ok(Purpose::Other), None),
            ("state", Ok(Purpose::Other), None),
            ("subscribe", Ok(Purpose::Other), None),
            // Anything else below the prefix.
            ("", Ok(Purpose::Other), None),
            ("/", Ok(Purpose::Other), None),
            ("/json/pump-07", Ok(Purpose::Other), None),
            ("pump-07/", Ok(Purpose::Other), None),
            ("pump-07/other", Ok(Purpose::Other), None),
            ("pump-07/subscribe/more", Ok(Purpose::Other), None),
            ("state/pump-07/", Ok(Purpose::Other), None),
            ("state/pump-07/more", Ok(Purpose::Other), None),
            ("state//", Ok(Purpose::Other), None),
            ("JSON/pump-07", Ok(Purpose::Other), None),
        ];
        for (topic, without_v1, with_v1) in rows {
            assert_eq!(purpose(topic, false), without_v1, "{topic}");
            assert_eq!(
                purpose(topic, true),
                with_v1.unwrap_or(without_v1),
                "{topic} with v1 topics"
            );
        }
    }
}
