//! Topic Names and Topic Filters: checked once, then trusted (section 4.7).
//!
//! Called  by `decode` (bytes of a packet), by `routing` and `shard` (levels, matching, names kept as `String`).
//! Holds   - a `TopicName` has 1 to 65,535 bytes, no wildcard, no U+0000 [MQTT-3.3.2-2] [MQTT-4.7.3-1];
//!         - a `TopicFilter` has 1 to 65,535 bytes, `+` and `#` only as whole levels, `#` only as the last
//!           [MQTT-4.7.1-2] [MQTT-4.7.1-3];
//!         - bytes are kept as they came: no normal form, a leading U+FEFF stays [MQTT-1.5.3-3] [MQTT-4.7.3-4].
//!
//! Control characters (U+0001 to U+001F, U+007F to U+009F) and non-characters are allowed: the standard leaves the choice
//! to the receiver (section 1.5.3), and clients in the field send them.

use super::error::DecodeError;

/// A name that is published to: 1 to 65,535 bytes, no wildcard, no U+0000 [MQTT-3.3.2-2] [MQTT-4.7.3-1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName<'a>(&'a str);

/// A filter that is subscribed with: 1 to 65,535 bytes, wildcards only as whole levels, `#` only as the last
/// [MQTT-4.7.1-2] [MQTT-4.7.1-3].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter<'a>(&'a str);

impl<'a> TopicName<'a> {
    #[inline]
    pub fn new(name: &'a str) -> Result<Self, DecodeError> {
        if name.is_empty() {
            return Err(DecodeError::EmptyTopicName);
        }
        if name.len() > usize::from(u16::MAX) {
            return Err(DecodeError::TopicTooLong);
        }
        if has_special(name.as_bytes()) {
            return Err(if has_nul(name.as_bytes()) {
                DecodeError::NulCharacter
            } else {
                DecodeError::WildcardInTopicName
            });
        }
        Ok(TopicName(name))
    }

    /// The name in these bytes of a packet.
    #[inline]
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        TopicName::new(str_from_utf8(bytes)?)
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
        if filter.is_empty() {
            return Err(DecodeError::EmptyTopicFilter);
        }
        if filter.len() > usize::from(u16::MAX) {
            return Err(DecodeError::TopicTooLong);
        }
        if has_special(filter.as_bytes()) {
            check_specials(filter.as_bytes())?;
        }
        Ok(TopicFilter(filter))
    }

    /// The filter in these bytes of a packet.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        TopicFilter::new(str_from_utf8(bytes)?)
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
        let (mut filter, mut name) = (self.0.as_bytes(), name.0.as_bytes());
        if name.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
            return false;
        }
        // Both stand at the start of a level. `/`, `+` and `#` are single bytes and no part of another character.
        loop {
            match filter.first() {
                Some(b'#') => return true,
                Some(b'+') => {
                    filter = &filter[1..];
                    let level_len = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
                    name = &name[level_len..];
                }
                _ => {
                    let same_len = filter
                        .iter()
                        .zip(name)
                        .take_while(|(filter, name)| filter == name && **filter != b'/')
                        .count();
                    filter = &filter[same_len..];
                    name = &name[same_len..];
                }
            }
            match (filter, name) {
                ([], []) => return true,
                ([b'/', filter_rest @ ..], [b'/', name_rest @ ..]) => (filter, name) = (filter_rest, name_rest),
                // `sport/#` matches `sport` too: `#` includes the parent level (section 4.7.1.2).
                (b"/#", []) => return true,
                _ => return false,
            }
        }
    }
}

/// `bytes` as a string [MQTT-1.5.3-1]; U+0000 is left to the caller.
#[inline]
pub(super) fn str_from_utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::IllFormedUtf8)
}

pub(super) fn has_nul(bytes: &[u8]) -> bool {
    bytes.contains(&0)
}

/// Whether U+0000, `+` or `#` occurs, eight bytes at a time. In UTF-8 these bytes are never part of another character.
#[inline]
fn has_special(bytes: &[u8]) -> bool {
    const WORD: usize = size_of::<u64>();
    if let Some(last) = bytes.last_chunk::<WORD>() {
        // The last word overlaps the one before it where the length is no multiple of eight.
        let (words, _) = bytes.as_chunks::<WORD>();
        words.iter().any(|word| word_has_special(u64::from_ne_bytes(*word)))
            || word_has_special(u64::from_ne_bytes(*last))
    } else {
        bytes.iter().any(|byte| matches!(byte, 0 | b'+' | b'#'))
    }
}

/// `+` is 0x2b and `#` is 0x23: without the bit 0x08 both are 0x23, and no other byte becomes 0x23.
#[inline]
const fn word_has_special(word: u64) -> bool {
    const fn every(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    /// Not zero exactly if some byte of `word` is zero.
    const fn zero_byte(word: u64) -> u64 {
        word.wrapping_sub(every(0x01)) & !word & every(0x80)
    }
    zero_byte(word) | zero_byte((word & every(!0x08)) ^ every(b'#')) != 0
}

/// The slow half of [`TopicFilter::new`]: some byte of the filter is U+0000, `+` or `#`.
fn check_specials(filter: &[u8]) -> Result<(), DecodeError> {
    for (index, &byte) in filter.iter().enumerate() {
        let level_start = index == 0 || filter[index - 1] == b'/';
        let next = filter.get(index + 1);
        match byte {
            0 => return Err(DecodeError::NulCharacter),
            b'#' if !level_start || next.is_some() => return Err(DecodeError::MultiLevelWildcard),
            b'+' if !level_start || next.is_some_and(|&next| next != b'/') => {
                return Err(DecodeError::SingleLevelWildcard);
            }
            _ => {}
        }
    }
    Ok(())
}
