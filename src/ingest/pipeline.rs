//! What is to become of a device's message, by what the registry says of the device.
//!
//! Called  by `shard` on the core that owns the device, for MQTT and for the HTTP device connector alike, once token and topic
//!         are found right and, over HTTP, the rate. An empty payload of MQTT never comes here: it is no data.
//! Holds   - the checks come in the contract's order: device (known, or room for it), enabled, mapped, payload;
//!         - a payload is looked at only if it would be kept, so an unmapped device may send what it likes;
//!         - what is refused is neither kept nor routed; what is not kept for want of a mapping is routed all the same;
//!         - a device is registered by data alone, and by data that is refused for its payload too: it was there first.

use super::payload;
use super::topic::Format;
use crate::registry::channel::ChannelId;
use crate::registry::devices::Entry;

/// What is to become of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The device was unknown, and is to be registered so.
    pub registers: Option<Entry>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Data: to be stored in this channel. A state report: to be kept with the device.
    Kept(ChannelId),
    /// There is nowhere to keep it.
    Unmapped,
    Refused(Refused),
}

/// Why a message is neither kept nor routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The device is unknown, and its account has no room for another.
    DeviceLimit,
    Disabled,
    BadPayload,
}

impl Outcome {
    /// Whether those who subscribed get the message.
    pub const fn is_routed(self) -> bool {
        !matches!(self, Outcome::Refused(_))
    }
}

/// Data of a device. `takes_room` counts one more device, or says that there is no room for it: asked only where it is needed.
/// The value is appended to `value` if it is to be kept.
pub fn data(
    format: Format,
    payload: &[u8],
    known: Option<Entry>,
    default_channel: Option<ChannelId>,
    takes_room: impl FnOnce() -> bool,
    value: &mut String,
) -> Verdict {
    let registers = match known {
        Some(_) => None,
        None if takes_room() => Some(Entry {
            is_enabled: true,
            channel: default_channel,
        }),
        None => {
            return Verdict {
                registers: None,
                outcome: Outcome::Refused(Refused::DeviceLimit),
            };
        }
    };
    let outcome = match known.or(registers) {
        Some(entry) => keep(entry, || payload::value(format, payload, value)),
        None => Outcome::Unmapped,
    };
    Verdict { registers, outcome }
}

/// A state report: it registers nobody. The state is appended to `state` if it is to be kept.
pub fn state(payload: &[u8], known: Option<Entry>, state: &mut String) -> Outcome {
    known.map_or(Outcome::Unmapped, |entry| {
        keep(entry, || payload::state(payload, state))
    })
}

fn keep(entry: Entry, convert: impl FnOnce() -> Result<(), payload::BadPayload>) -> Outcome {
    match entry.channel {
        _ if !entry.is_enabled => Outcome::Refused(Refused::Disabled),
        None => Outcome::Unmapped,
        Some(channel) => match convert() {
            Ok(()) => Outcome::Kept(channel),
            Err(payload::BadPayload) => Outcome::Refused(Refused::BadPayload),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] = b"23.5";
    const BAD: &[u8] = b"{";

    fn channel(number: u32) -> ChannelId {
        ChannelId::new(number).unwrap()
    }

    fn entry(is_enabled: bool, channel: Option<ChannelId>) -> Entry {
        Entry { is_enabled, channel }
    }

    /// The verdict, the value, and whether room was asked for.
    fn verdict(
        payload: &[u8],
        known: Option<Entry>,
        default_channel: Option<ChannelId>,
        has_room: bool,
    ) -> (Verdict, String, bool) {
        let (mut value, mut is_asked) = (String::new(), false);
        let takes_room = || {
            is_asked = true;
            has_room
        };
        let verdict = data(Format::Json, payload, known, default_channel, takes_room, &mut value);
        (verdict, value, is_asked)
    }

    #[test]
    fn data_of_a_known_device_is_kept_if_it_is_enabled_then_mapped_then_readable() {
        let three = channel(3);
        let refused = Outcome::Refused;
        for (is_enabled, mapped, payload, outcome, is_routed) in [
            (true, Some(three), GOOD, Outcome::Kept(three), true),
            (true, Some(three), BAD, refused(Refused::BadPayload), false),
            (true, None, GOOD, Outcome::Unmapped, true),
            (true, None, BAD, Outcome::Unmapped, true),
            (false, Some(three), GOOD, refused(Refused::Disabled), false),
            (false, Some(three), BAD, refused(Refused::Disabled), false),
            (false, None, GOOD, refused(Refused::Disabled), false),
        ] {
            // A default channel is for new devices alone, and no room is needed.
            let known = Some(entry(is_enabled, mapped));
            let (verdict, value, is_asked) = verdict(payload, known, Some(channel(9)), false);
            assert_eq!(
                verdict,
                Verdict {
                    registers: None,
                    outcome
                }
            );
            assert_eq!(outcome.is_routed(), is_routed, "{outcome:?}");
            let is_kept = matches!(outcome, Outcome::Kept(_));
            assert_eq!(value, if is_kept { r#"{"value1":23.5}"# } else { "" });
            assert!(!is_asked);
        }
    }

    #[test]
    fn data_of_an_unknown_device_registers_it_where_there_is_room() {
        let fresh = entry(true, None);
        for payload in [GOOD, BAD] {
            let (verdict, value, is_asked) = verdict(payload, None, None, true);
            let (registers, outcome) = (Some(fresh), Outcome::Unmapped);
            assert_eq!(verdict, Verdict { registers, outcome });
            assert!(value.is_empty() && is_asked && outcome.is_routed());
        }
        for default_channel in [None, Some(channel(3))] {
            let (verdict, value, _) = verdict(GOOD, None, default_channel, false);
            let (registers, outcome) = (None, Outcome::Refused(Refused::DeviceLimit));
            assert_eq!(verdict, Verdict { registers, outcome });
            assert!(value.is_empty() && !outcome.is_routed());
        }
    }

    #[test]
    fn a_default_channel_keeps_the_first_value_of_a_new_device() {
        let three = channel(3);
        let registers = Some(entry(true, Some(three)));
        let (good, value, _) = verdict(GOOD, None, Some(three), true);
        let outcome = Outcome::Kept(three);
        assert_eq!(good, Verdict { registers, outcome });
        assert_eq!(value, r#"{"value1":23.5}"#);
        let (bad, value, _) = verdict(BAD, None, Some(three), true);
        let outcome = Outcome::Refused(Refused::BadPayload);
        assert_eq!(bad, Verdict { registers, outcome });
        assert!(value.is_empty());
    }

    #[test]
    fn a_state_report_is_kept_of_an_enabled_and_mapped_device_alone() {
        let three = channel(3);
        let good: &[u8] = b"health=OK";
        let refused = Outcome::Refused;
        for (known, payload, outcome) in [
            (Some(entry(true, Some(three))), good, Outcome::Kept(three)),
            (Some(entry(true, Some(three))), BAD, refused(Refused::BadPayload)),
            (Some(entry(true, None)), good, Outcome::Unmapped),
            (Some(entry(true, None)), BAD, Outcome::Unmapped),
            (Some(entry(false, Some(three))), good, refused(Refused::Disabled)),
            (Some(entry(false, None)), good, refused(Refused::Disabled)),
            (None, good, Outcome::Unmapped),
        ] {
            let mut text = String::new();
            assert_eq!(state(payload, known, &mut text), outcome);
            let is_kept = matches!(outcome, Outcome::Kept(_));
            assert_eq!(text, if is_kept { r#"{"health":"OK"}"# } else { "" });
        }
    }
}
