//! Threshold rules: whether a stored value meets an event's `source operator threshold`.
//!
//! Called  by `shard` for every datapoint stored in a channel that has events.
//! Holds   - a path is the names on the way with `:` between them; arrays are passed through, whatever their depth, and do not
//!           count as a step. A name that has a `:` itself is a part of the path like any other;
//!         - of several values at the path the first that meets the rule is the one reported;
//!         - values that read as numbers, strings among them, are compared as numbers if the threshold reads as one. Else `=`
//!           and `!=` compare texts, a boolean's being `true` or `false`, and the ordering operators never match;
//!         - what is missing, null, or an object at the end of the path never matches, not even `!=`;
//!         - the value is read once, from its beginning to the match.

use super::json::{Begun, Reader, unescaped};
use super::number::Number;
use crate::registry::event::{Event, Operator};

/// The first value that meets the event's rule, as JSON text. `value`: what was stored.
pub fn matches(event: &Event, value: &str) -> Option<Box<str>> {
    if event.source.is_empty() {
        return None;
    }
    let rule = Rule {
        operator: event.operator,
        threshold: &event.threshold,
        threshold_number: Number::parse(event.threshold.trim()),
    };
    rule.first_match(&mut Reader::new(value), Some(&event.source))
        .map(Box::from)
}

struct Rule<'e> {
    operator: Operator,
    threshold: &'e str,
    threshold_number: Option<Number>,
}

impl Rule<'_> {
    /// Looks at the next value. `path`: what is left of it; `None` at its end.
    fn first_match<'t>(&self, reader: &mut Reader<'t>, path: Option<&str>) -> Option<&'t str> {
        match reader.begin()? {
            Begun::Scalar(raw) => (path.is_none() && self.is_met(raw)).then_some(raw),
            Begun::Array => {
                while reader.next_element() {
                    let found = self.first_match(reader, path);
                    if found.is_some() {
                        return found;
                    }
                }
                None
            }
            Begun::Object => {
                while let Some(name) = reader.next_name() {
                    match path.and_then(|path| step(path, &unescaped(name))) {
                        None => reader.skip(),
                        Some(rest) => {
                            let found = self.first_match(reader, rest);
                            if found.is_some() {
                                return found;
                            }
                        }
                    }
                }
                None
            }
        }
    }

    fn is_met(&self, raw: &str) -> bool {
        if raw == "null" {
            return false;
        }
        let text = unescaped(raw);
        let number = Number::parse(text.trim());
        if let (Some(number), Some(threshold)) = (number, self.threshold_number) {
            let order = number.compare(threshold);
            return match self.operator {
                Operator::Less => order.is_lt(),
                Operator::Greater => order.is_gt(),
                Operator::LessOrEqual => order.is_le(),
                Operator::GreaterOrEqual => order.is_ge(),
                Operator::Equal => order.is_eq(),
                Operator::NotEqual => order.is_ne(),
            };
        }
        match self.operator {
            Operator::Equal => *text == *self.threshold,
            Operator::NotEqual => *text != *self.threshold,
            _ => false,
        }
    }
}

/// What is left of the path behind this name: `None` where the path does not lead over it, `Some(None)` where it ends.
fn step<'p>(path: &'p str, name: &str) -> Option<Option<&'p str>> {
    let rest = path.strip_prefix(name)?;
    if rest.is_empty() {
        return Some(None);
    }
    rest.strip_prefix(':').map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: &str, operator: Operator, threshold: &str) -> Event {
        Event {
            source: source.to_owned(),
            operator,
            threshold: threshold.to_owned(),
            ..Event::default()
        }
    }

    #[track_caller]
    fn assert_match(value: &str, source: &str, operator: Operator, threshold: &str, expected: Option<&str>) {
        let found = matches(&event(source, operator, threshold), value);
        assert_eq!(found.as_deref(), expected, "{value}: {source} {operator:?} {threshold}");
    }

    #[test]
    fn a_source_descends_by_colons_and_passes_through_arrays() {
        use Operator::Greater;
        for (value, source, expected) in [
            (r#"{"temp":25}"#, "temp", Some("25")),
            (r#"{"data":[{"value":10}]}"#, "data:value", Some("10")),
            (r#"{"data":{"value":10}}"#, "data:value", Some("10")),
            (r#"{"data":[[[{"value":[[10]]}]]]}"#, "data:value", Some("10")),
            (r#"{"a":{"b":{"c":10}}}"#, "a:b:c", Some("10")),
            (r#"{"temp":[1,2,10]}"#, "temp", Some("10")),
            (r#"{ "other" : {"temp":10} , "temp" : 12.50 }"#, "temp", Some("12.50")),
            (r#"{"other":{"temp":10}}"#, "temp", None),
            (r#"{"temp":{"value":10}}"#, "temp", None),
            (r#"{"temp":[{"value":10}]}"#, "temp", None),
            (r#"{"temp":10}"#, "temp:value", None),
            (r#"{"temperature":10}"#, "temp", None),
            (r#"{"temp":10}"#, "temperature", None),
            (r#"{"data":[{"value":10}]}"#, "data:0:value", None),
            (r#"{"Temp":10}"#, "temp", None),
            (r#"{"te\u006dp":10}"#, "temp", Some("10")),
            (r#"{"a:b":10}"#, "a:b", Some("10")),
            (r#"{"a:b":{"c":10}}"#, "a:b:c", Some("10")),
            (r#"{"":10}"#, "", None),
            (r#"{"value1":10}"#, "value1", Some("10")),
            (r#"{"value1":10}"#, "", None),
        ] {
            assert_match(value, source, Greater, "5", expected);
        }
    }

    #[test]
    fn one_matching_element_suffices_and_the_first_is_reported() {
        let value = r#"{"data":[{"value":10},{"value":31},{"value":40}]}"#;
        assert_match(value, "data:value", Operator::Greater, "30", Some("31"));
        assert_match(value, "data:value", Operator::Equal, "40", Some("40"));
        assert_match(value, "data:value", Operator::Greater, "50", None);
        assert_match(value, "data:value", Operator::NotEqual, "10", Some("31"));
    }

    #[test]
    fn numbers_are_compared_by_each_operator() {
        use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        for (operator, below, equal, above) in [
            (Less, true, false, false),
            (Greater, false, false, true),
            (LessOrEqual, true, true, false),
            (GreaterOrEqual, false, true, true),
            (Equal, false, true, false),
            (NotEqual, true, false, true),
        ] {
            for (raw, is_met) in [("9.5", below), ("30", equal), ("30.0", equal), ("100", above)] {
                let value = format!(r#"{{"temp":{raw}}}"#);
                assert_match(&value, "temp", operator, "30", is_met.then_some(raw));
                assert_match(&value, "temp", operator, " 30 ", is_met.then_some(raw));
                let (value, quoted) = (format!(r#"{{"temp":"{raw}"}}"#), format!(r#""{raw}""#));
                assert_match(&value, "temp", operator, "30", is_met.then_some(quoted.as_str()));
            }
        }
        let large = r#"{"n":9007199254740993}"#;
        assert_match(large, "n", Equal, "9007199254740992", None);
        assert_match(large, "n", Greater, "9007199254740992", Some("9007199254740993"));
    }

    #[test]
    fn what_is_no_number_is_compared_as_text_by_equal_and_not_equal_only() {
        use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        let open = r#"{"door":"open"}"#;
        assert_match(open, "door", Equal, "open", Some(r#""open""#));
        assert_match(open, "door", Equal, "Open", None);
        assert_match(open, "door", Equal, "open ", None);
        assert_match(open, "door", NotEqual, "closed", Some(r#""open""#));
        assert_match(open, "door", NotEqual, "open", None);
        assert_match(
            r#"{"door":"\u00f6ffen"}"#,
            "door",
            Equal,
            "öffen",
            Some(r#""\u00f6ffen""#),
        );
        for operator in [Less, Greater, LessOrEqual, GreaterOrEqual] {
            assert_match(open, "door", operator, "open", None);
            assert_match(open, "door", operator, "5", None);
            assert_match(r#"{"door":5}"#, "door", operator, "open", None);
            assert_match(r#"{"door":true}"#, "door", operator, "true", None);
        }
        assert_match(r#"{"door":5}"#, "door", NotEqual, "open", Some("5"));
        assert_match(r#"{"on":true}"#, "on", Equal, "true", Some("true"));
        assert_match(r#"{"on":false}"#, "on", NotEqual, "true", Some("false"));
        // A serial number is no number: it has a zero before it.
        assert_match(r#"{"serial":"007"}"#, "serial", Equal, "7", None);
        assert_match(r#"{"text":""}"#, "text", Equal, "", Some(r#""""#));
    }

    #[test]
    fn what_is_missing_never_matches() {
        for operator in [Operator::NotEqual, Operator::Equal, Operator::Less] {
            for value in [
                r#"{}"#,
                r#"{"temp":null}"#,
                r#"{"temp":{}}"#,
                r#"{"temp":[]}"#,
                r#"{"temp":[{"a":1},null]}"#,
            ] {
                assert_match(value, "temp", operator, "30", None);
                assert_match(value, "temp", operator, "null", None);
                assert_match(value, "temp", operator, "", None);
            }
        }
    }
}
