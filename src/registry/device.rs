//! A device: an entry of the registry, and what its id may be.

use super::channel::ChannelId;
use crate::limits::NAME_CHARS_MAX;

/// Ids that would make topics ambiguous.
pub const RESERVED: [&str; 4] = ["json", "binary", "state", "subscribe"];

/// Why a text is no device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDeviceId {
    /// Empty or `0`.
    Zero,
    /// Too long, reserved, or of characters that a topic level cannot have.
    Invalid,
}

/// 1 to 64 characters, case-sensitive, no `/ + #`, no control characters; not `0`, and none of [`RESERVED`].
pub fn check_device_id(text: &str) -> Result<(), BadDeviceId> {
    match text {
        "" | "0" => Err(BadDeviceId::Zero),
        _ if RESERVED.contains(&text) || !is_name(text) => Err(BadDeviceId::Invalid),
        _ => Ok(()),
    }
}

/// The rule that device ids and tags share.
pub fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| !matches!(c, '/' | '+' | '#') && !c.is_control();
    // A character has at most four bytes, so most texts need not be counted.
    !text.is_empty()
        && text.len() <= 4 * NAME_CHARS_MAX
        && text.chars().all(is_allowed)
        && (text.len() <= NAME_CHARS_MAX || text.chars().count() <= NAME_CHARS_MAX)
}

/// What is on disk of a device, beside its state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Device {
    pub description: String,
    pub is_enabled: bool,
    pub channel: Option<ChannelId>,
    pub device_type: String,
    pub location: String,
    pub manufacturer: String,
    /// Milliseconds of Unix time.
    pub activated_ms: u64,
}

impl Device {
    /// As it is registered at first.
    pub fn new(channel: Option<ChannelId>, activated_ms: u64) -> Device {
        Device {
            description: String::new(),
            is_enabled: true,
            channel,
            device_type: String::new(),
            location: String::new(),
            manufacturer: String::new(),
            activated_ms,
        }
    }

    pub fn change(&mut self, change: &DeviceChange) {
        let DeviceChange {
            description,
            is_enabled,
            channel,
            device_type,
            location,
            manufacturer,
        } = change.clone();
        let set = |field: &mut String, text: Option<String>| *field = text.unwrap_or(std::mem::take(field));
        set(&mut self.description, description);
        set(&mut self.device_type, device_type);
        set(&mut self.location, location);
        set(&mut self.manufacturer, manufacturer);
        self.is_enabled = is_enabled.unwrap_or(self.is_enabled);
        self.channel = channel.unwrap_or(self.channel);
    }
}

/// What a PUT changes: absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceChange {
    pub description: Option<String>,
    pub is_enabled: Option<bool>,
    /// `Some(None)` takes the mapping away.
    pub channel: Option<Option<ChannelId>>,
    pub device_type: Option<String>,
    pub location: Option<String>,
    pub manufacturer: Option<String>,
}

/// The last state report of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// A JSON object, without `last_update`.
    pub json: Box<str>,
    /// Milliseconds of Unix time.
    pub at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_one_topic_level_of_up_to_64_characters() {
        let longest = "x".repeat(64);
        let wide = "\u{1F600}".repeat(64);
        for good in ["pump-07", "00", " ", "'; drop table", "Ä", &longest, &wide] {
            assert_eq!(check_device_id(good), Ok(()), "{good}");
        }
        for zero in ["", "0"] {
            assert_eq!(check_device_id(zero), Err(BadDeviceId::Zero));
        }
        let (long, wide) = ("x".repeat(65), "\u{1F600}".repeat(65));
        for bad in [
            "a/b",
            "+",
            "a#",
            "a\n",
            "\u{7f}",
            "\u{85}",
            "json",
            "binary",
            "state",
            "subscribe",
            &long,
            &wide,
        ] {
            assert_eq!(check_device_id(bad), Err(BadDeviceId::Invalid), "{bad}");
        }
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let channel = ChannelId::new(3);
        let mut device = Device::new(channel, 5);
        device.change(&DeviceChange {
            description: Some("north".to_owned()),
            ..DeviceChange::default()
        });
        assert_eq!(
            (device.description.as_str(), device.channel, device.is_enabled),
            ("north", channel, true)
        );
        device.change(&DeviceChange {
            channel: Some(None),
            is_enabled: Some(false),
            ..DeviceChange::default()
        });
        assert_eq!(
            (device.description.as_str(), device.channel, device.is_enabled),
            ("north", None, false)
        );
    }
}
