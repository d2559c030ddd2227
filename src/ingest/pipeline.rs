//! What is to become of a device's data, by what the registry says of the device: section 6.2 of the contract.
//!
//! Called  by `shard::ingest`, for what came over MQTT and over HTTP alike, once token, topic and device id are known to be good.

use crate::registry::channel::ChannelId;
use crate::registry::devices::Entry;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The payload, if it is one, is a datapoint of this channel.
    Store(ChannelId),
    /// The device is new, and mapped to this channel: then its first payload is stored at once.
    Register(Option<ChannelId>),
    /// Routed, not stored.
    Unmapped,
    /// Neither routed nor stored.
    Disabled,
    /// One device too many: neither registered nor routed nor stored.
    DeviceLimit,
}

/// `take_device` makes room in the account for one more device, and says whether there was any.
#[inline]
pub fn judge(entry: Option<Entry>, default_channel: Option<ChannelId>, take_device: impl FnOnce() -> bool) -> Verdict {
    match entry {
        None if take_device() => Verdict::Register(default_channel),
        None => Verdict::DeviceLimit,
        Some(Entry { is_enabled: false, .. }) => Verdict::Disabled,
        Some(Entry { channel: None, .. }) => Verdict::Unmapped,
        Some(Entry {
            channel: Some(channel), ..
        }) => Verdict::Store(channel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabled_comes_before_mapped_and_both_before_the_payload() {
        let channel = ChannelId::new(3);
        let entry = |is_enabled, channel| Some(Entry { is_enabled, channel });
        for (entry, default_channel, has_room, verdict) in [
            (None, None, true, Verdict::Register(None)),
            (None, channel, true, Verdict::Register(channel)),
            (None, channel, false, Verdict::DeviceLimit),
            (entry(false, None), None, false, Verdict::Disabled),
            (entry(false, channel), None, false, Verdict::Disabled),
            (entry(true, None), channel, false, Verdict::Unmapped),
            (
                entry(true, channel),
                None,
                false,
                Verdict::Store(ChannelId::new(3).unwrap()),
            ),
        ] {
            let judged = judge(entry, default_channel, || has_room);
            assert_eq!(judged, verdict, "{entry:?} {default_channel:?} {has_room}");
        }
    }

    #[test]
    fn room_is_taken_for_new_devices_only() {
        let known = Entry {
            is_enabled: true,
            channel: None,
        };
        judge(Some(known), None, || panic!("it is registered"));
    }
}
