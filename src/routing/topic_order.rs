//! A filter's matches in any store that keeps topics in byte order: which topic to look at next.
//!
//! Owns    nothing: pure functions of (filter, topic).
//! Called  by `retained` over a map, and by whoever has a cursor over ordered keys.
//! Holds   - a seek target is greater than the topic it was given, so a scan ends;
//!         - no match lies between a topic and the seek target it led to.
//!
//! Byte order is not level order: `!` and `-` sort before `/`, so `a`, `a-b`, `a/b` is the order of a store. Two kinds
//! of neighbourhood are contiguous: the topics that share a prefix, and so those below a level (`a/` up to `a0`, `0`
//! being the byte after `/`). Every jump here is from one of those to another.

use crate::mqtt::topic::TopicFilter;

/// What a topic of the store is to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It matches; the next one to look at is the one after it.
    Match,
    /// It does not; the next one to look at is the first that is at least the seek target.
    Seek,
    /// Neither it nor any after it matches.
    End,
}

/// Where a scan starts: no topic less than this matches.
pub fn start(filter: TopicFilter<'_>) -> &str {
    leading_literals(filter.as_str())
}

/// Judges `topic`; on [`Step::Seek`], `seek` is replaced by the target, which is greater than `topic`.
pub fn step(filter: TopicFilter<'_>, topic: &str, seek: &mut String) -> Step {
    let mut filter = filter.as_str();
    // A leading wildcard never matches a topic that starts with `$` [MQTT-4.7.2-1]; `%` is the byte after `$`.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return seek_to(seek, &["%"]);
    }
    // Where the level starts that is compared next, and where the last level ended that a `+` took.
    let mut level_start = 0;
    let mut plus_end = None;
    loop {
        let (want, filter_rest) = split_level(filter);
        if want == "#" {
            return Step::Match;
        }
        let (level, topic_rest) = split_level(&topic[level_start..]);
        let level_end = level_start + level.len();
        if want == "+" {
            plus_end = Some(level_end);
        } else if want != level {
            // What matches with these leading levels starts with the filter's next literals.
            let literals = leading_literals(filter);
            seek_to(seek, &[&topic[..level_start], literals]);
            if seek.as_str() > topic {
                return Step::Seek;
            }
            // `sport-x` lies between `sport` and `sport/`, and `sport/#` matches on both sides of it.
            if filter[literals.len()..].starts_with("/#") {
                seek.push('/');
                if seek.as_str() > topic {
                    return Step::Seek;
                }
            }
            return past_group(topic, plus_end, seek);
        }
        match (filter_rest, topic_rest) {
            (None, None) => return Step::Match,
            (None, Some(_)) => return past_group(topic, plus_end, seek),
            // `sport/#` matches `sport` (section 4.7.1.2).
            (Some("#"), None) => return Step::Match,
            // `a!/c` lies between `a` and `a/c`, and `+/c` matches both: nothing can be passed over.
            (Some(_), None) if want == "+" => return seek_to(seek, &[topic, "\0"]),
            (Some(rest), None) => return seek_to(seek, &[topic, "/", leading_literals(rest)]),
            (Some(rest), Some(_)) => {
                filter = rest;
                level_start = level_end + 1;
            }
        }
    }
}

/// No further match has the topic's leading levels: on to the next value of the last `+`. A literal level after it has
/// no other value, so without a `+` there is nothing more.
fn past_group(topic: &str, plus_end: Option<usize>, seek: &mut String) -> Step {
    match plus_end {
        Some(end) => seek_to(seek, &[&topic[..end], "0"]),
        None => Step::End,
    }
}

fn seek_to(seek: &mut String, parts: &[&str]) -> Step {
    seek.clear();
    seek.extend(parts.iter().copied());
    Step::Seek
}

/// What every match of `filter` starts with: all before the first wildcard, without the separator before a `#`.
fn leading_literals(filter: &str) -> &str {
    match filter.find(['+', '#']) {
        None => filter,
        Some(at) if filter.as_bytes()[at] == b'+' => &filter[..at],
        Some(at) => &filter[..at.saturating_sub(1)],
    }
}

fn split_level(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::topic::TopicName;

    fn judge(filter: &str, topic: &str) -> (Step, String) {
        let mut seek = String::new();
        let step = step(TopicFilter::trusted(filter), topic, &mut seek);
        (step, seek)
    }

    #[test]
    fn a_seek_goes_to_the_next_topic_that_can_match() {
        for (filter, topic, target) in [
            ("a/+/c", "a", "a/"),
            ("a/+/c", "A", "a/"),
            ("a/+/c", "a/x/a/z", "a/x/c"),
            ("a/+/c", "a/x/c/d", "a/x0"),
            ("a/+/c", "a/x/d", "a/x0"),
            ("a/+/c", "a/x", "a/x\0"),
            ("a/b/c", "a", "a/b/c"),
            ("a/b/#", "a/a", "a/b"),
            ("a/b/#", "a/b-c", "a/b/"),
            ("a/+", "a/x/y", "a/x0"),
            ("+/b", "$SYS/b", "%"),
            ("#", "$SYS/b", "%"),
            ("+/b/c/#", "a/b/d", "a0"),
        ] {
            assert_eq!(
                judge(filter, topic),
                (Step::Seek, target.to_owned()),
                "{filter} at {topic}"
            );
        }
    }

    #[test]
    fn a_scan_ends_behind_the_last_topic_that_can_match() {
        for (filter, topic) in [
            ("a", "b"),
            ("a", "a/b"),
            ("a/b", "a/b/c"),
            ("a/#", "a0"),
            ("a/b/#", "a/b0"),
            ("a/+", "a0"),
            ("$SYS/#", "%"),
        ] {
            assert_eq!(judge(filter, topic).0, Step::End, "{filter} at {topic}");
        }
    }

    #[test]
    fn what_starts_no_match_is_passed_over_from_the_start() {
        for (filter, from) in [
            ("#", ""),
            ("+/a", ""),
            ("a/#", "a"),
            ("a/b/+/c", "a/b/"),
            ("a/b", "a/b"),
            ("/#", ""),
        ] {
            assert_eq!(start(TopicFilter::trusted(filter)), from);
        }
    }

    #[test]
    fn a_scan_looks_once_or_twice_at_each_group() {
        let topics: BTreeSet<String> = (0..100)
            .flat_map(|group| (0..100).map(move |topic| format!("a/{group}/{topic}")))
            .collect();
        let (found, looks) = scan(&topics, "a/+/50");
        assert_eq!(found.len(), 100);
        assert!(looks <= 301, "{looks}");
    }

    fn scan(topics: &BTreeSet<String>, filter: &str) -> (Vec<String>, usize) {
        let filter = TopicFilter::trusted(filter);
        let (mut found, mut looks) = (Vec::new(), 0);
        let mut seek = start(filter).to_owned();
        while let Some(topic) = topics.range(seek.clone()..).next() {
            looks += 1;
            match step(filter, topic, &mut seek) {
                Step::Match => {
                    found.push(topic.clone());
                    seek = format!("{topic}\0");
                }
                Step::Seek => assert!(seek > *topic, "{seek} <= {topic}"),
                Step::End => break,
            }
        }
        (found, looks)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]
        #[test]
        fn a_scan_finds_what_a_look_at_every_topic_finds(
            topics in proptest::collection::btree_set("[a$]?[!\\-0b\u{1}]?(/[ab]?[!\\-0]?){0,3}", 0..60),
            filter in "(\\$|\\$a|[ab]?[!\\-0]?|\\+)(/([ab]?[!\\-0]?|\\+)){0,3}(/#)?|#",
        ) {
            prop_assume!(!filter.is_empty());
            let topics: BTreeSet<String> = topics.into_iter().filter(|topic| !topic.is_empty()).collect();
            let wanted: Vec<String> = topics
                .iter()
                .filter(|topic| TopicFilter::trusted(&filter).matches(TopicName::trusted(topic)))
                .cloned()
                .collect();
            prop_assert_eq!(scan(&topics, &filter).0, wanted);
        }
    }
}
