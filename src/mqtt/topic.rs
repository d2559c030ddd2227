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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(filter: &str, name: &str) -> bool {
        TopicFilter::new(filter).unwrap().matches(TopicName::new(name).unwrap())
    }

    /// The text of section 4.7, level by level, with nothing clever.
    fn naive_matches(filter: &[&str], name: &[&str]) -> bool {
        match (filter, name) {
            (["#"], _) => true,
            ([], []) => true,
            (["+", filter @ ..], [_, name @ ..]) => naive_matches(filter, name),
            ([level, filter @ ..], [same, name @ ..]) if level == same => naive_matches(filter, name),
            _ => false,
        }
    }

    #[test]
    fn x20_hash_matches_the_parent_and_all_below() {
        assert!(matches("sport/#", "sport"));
        assert!(matches("sport/#", "sport/"));
        assert!(matches("sport/#", "sport/tennis/player1"));
        assert!(!matches("sport/#", "sports"));
        assert!(!matches("sport/#", "spor"));
        assert!(matches("#", "/"));
        assert!(matches("#", "a/b/c"));
        assert!(matches("+/#", "a"));
        assert!(matches("sport/+/#", "sport/a"));
        assert!(!matches("sport/+/#", "sport"));
        assert!(!matches("/#", "a"));
        assert!(matches("/#", "/"));
    }

    #[test]
    fn x21_empty_levels_count() {
        assert!(matches("+/+", "/finance"));
        assert!(matches("/+", "/finance"));
        assert!(!matches("+", "/finance"));
        assert!(matches("a/+", "a/"));
        assert!(!matches("a/+", "a"));
        assert!(!matches("a", "a/"));
        assert!(matches("+", "a"));
        assert!(matches("a//b", "a//b"));
        assert!(matches("a/+/b", "a//b"));
        assert!(!matches("a/b", "a//b"));
        assert!(matches("/", "/"));
        assert!(matches("+/+", "/"));
    }

    #[test]
    fn mqtt_4_7_2_1_a_leading_wildcard_does_not_match_a_leading_dollar() {
        assert!(!matches("#", "$SYS/x"));
        assert!(!matches("+/x", "$SYS/x"));
        assert!(!matches("+/#", "$SYS"));
        assert!(matches("$SYS/#", "$SYS/x"));
        assert!(matches("$SYS/#", "$SYS"));
        assert!(matches("$SYS/+", "$SYS/x"));
        assert!(matches("a/+", "a/$SYS"));
        assert!(matches("a/#", "a/$SYS"));
        assert!(matches("+", "a$"));
    }

    #[test]
    fn mqtt_4_7_3_4_topics_are_compared_byte_by_byte() {
        assert!(!matches("ACCOUNTS", "Accounts"));
        assert!(!matches("\u{e4}", "a\u{308}"));
        assert!(matches("+/größte", "wärme/größte"));
        assert!(!matches("\u{feff}a", "a"));
    }

    #[test]
    fn mqtt_4_7_1_wildcards_are_whole_levels_and_hash_is_the_last() {
        for good in [
            "#",
            "+",
            "/",
            "//",
            "a",
            "a/#",
            "+/#",
            "/#",
            "+/+",
            "a/+/b/#",
            "$SYS/#",
            " ",
            "0123456789/+",
        ] {
            assert!(TopicFilter::new(good).is_ok(), "{good}");
        }
        for (bad, rule) in [
            ("", DecodeError::EmptyTopicFilter),
            ("a#", DecodeError::MultiLevelWildcard),
            ("#a", DecodeError::MultiLevelWildcard),
            ("##", DecodeError::MultiLevelWildcard),
            ("#/", DecodeError::MultiLevelWildcard),
            ("a/#/b", DecodeError::MultiLevelWildcard),
            ("a/b#", DecodeError::MultiLevelWildcard),
            ("a+", DecodeError::SingleLevelWildcard),
            ("+a", DecodeError::SingleLevelWildcard),
            ("++", DecodeError::SingleLevelWildcard),
            ("+#", DecodeError::SingleLevelWildcard),
            ("+a/b", DecodeError::SingleLevelWildcard),
            ("a/b+", DecodeError::SingleLevelWildcard),
            ("a/b+/c", DecodeError::SingleLevelWildcard),
            ("a\0b", DecodeError::NulCharacter),
            ("0123456789a\0", DecodeError::NulCharacter),
        ] {
            assert_eq!(TopicFilter::new(bad), Err(rule), "{bad}");
        }
    }

    #[test]
    fn mqtt_4_7_3_1_and_3_lengths_are_1_to_65_535() {
        assert_eq!(TopicName::new(""), Err(DecodeError::EmptyTopicName));
        let longest = "a".repeat(65_535);
        assert!(TopicName::new(&longest).is_ok() && TopicFilter::new(&longest).is_ok());
        let longer = "a".repeat(65_536);
        assert_eq!(TopicName::new(&longer), Err(DecodeError::TopicTooLong));
        assert_eq!(TopicFilter::new(&longer), Err(DecodeError::TopicTooLong));
    }

    #[test]
    fn every_byte_value_at_every_place_is_judged_alike_by_word_and_by_byte() {
        for length in 1..=40 {
            for place in 0..length {
                for byte in 0..=u8::MAX {
                    let mut bytes = vec![b'a'; length];
                    bytes[place] = byte;
                    assert_eq!(
                        has_special(&bytes),
                        matches!(byte, 0 | b'+' | b'#'),
                        "{byte:02x} at {place}"
                    );
                }
            }
        }
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ab]", "[ab$]{1,2}", Just("ä".to_owned())]
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("empty", |s| !s.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => level(), 2 => Just("+".to_owned())];
        (prop::collection::vec(level, 0..5), any::<bool>())
            .prop_map(|(mut levels, hash)| {
                levels.extend(hash.then(|| "#".to_owned()));
                levels.join("/")
            })
            .prop_filter("empty", |s| !s.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn matches_agrees_with_the_naive_matcher(filter in filter(), name in name()) {
            let dollar = name.starts_with('$') && filter.starts_with(['+', '#']);
            let expected = !dollar
                && naive_matches(
                    &TopicFilter::trusted(&filter).levels().collect::<Vec<_>>(),
                    &TopicName::trusted(&name).levels().collect::<Vec<_>>(),
                );
            prop_assert_eq!(matches(&filter, &name), expected);
        }

        #[test]
        fn a_topic_name_is_a_filter_that_matches_itself(name in name()) {
            prop_assert!(matches(&name, &name));
        }

        #[test]
        fn names_and_filters_are_judged_as_the_naive_checks_do(text in "[a/+#\\x00ä]{0,12}") {
            let levels: Vec<&str> = text.split('/').collect();
            let nul = text.contains('\0');
            let wild = text.contains(['+', '#']);
            prop_assert_eq!(TopicName::new(&text).is_ok(), !text.is_empty() && !nul && !wild);
            let whole = levels.iter().all(|level| level.len() == 1 || !level.contains(['+', '#']));
            let last = !levels[..levels.len() - 1].contains(&"#");
            prop_assert_eq!(TopicFilter::new(&text).is_ok(), !text.is_empty() && !nul && whole && last);
            if let Ok(filter) = TopicFilter::new(&text) {
                prop_assert_eq!(filter.has_wildcard(), wild);
            }
        }
    }
}
