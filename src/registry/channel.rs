//! A channel: a numbered store of datapoints, and the tags in it.

use std::collections::BTreeMap;

/// 0 to 2,147,483,647, chosen by whoever creates the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ChannelId(u32);

impl ChannelId {
    pub const MAX: u32 = i32::MAX as u32;

    pub const fn new(number: u32) -> Option<ChannelId> {
        if number <= Self::MAX {
            Some(ChannelId(number))
        } else {
            None
        }
    }

    /// Decimal digits as in a path: no sign, no blank.
    pub fn parse(text: &str) -> Option<ChannelId> {
        let is_decimal = !text.is_empty() && text.len() <= 10 && text.bytes().all(|byte| byte.is_ascii_digit());
        ChannelId::new(is_decimal.then(|| text.parse().ok()).flatten()?)
    }

    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What is on disk of a channel, beside its datapoints and what they left in `tags`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Channel {
    pub name: String,
    /// Tags that were declared, or have a name of their own in place of the channel's. A tag may have datapoints and not be
    /// here.
    pub tags: BTreeMap<Box<str>, Option<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_id_is_a_number_of_31_bits() {
        assert_eq!(ChannelId::parse("0"), ChannelId::new(0));
        assert_eq!(ChannelId::parse("2147483647"), ChannelId::new(ChannelId::MAX));
        for not in ["", "-1", "+1", " 1", "1 ", "1.0", "2147483648", "99999999999", "x"] {
            assert_eq!(ChannelId::parse(not), None, "{not}");
        }
    }
}
