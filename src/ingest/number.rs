//! A number as JSON writes one: whole numbers exactly, the rest as 64-bit floats.
//!
//! Called  by `payload` (is this text a number), by `trigger` and by `aggregate`.
//! Holds   - what is read here is read by serde_json too, so it may stand in a stored value as it is;
//!         - `007`, `+5`, `.5`, `5.`, `NaN`, `Infinity` and what is beyond a 64-bit float are no numbers.

use std::cmp::Ordering;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Integer(i128),
    /// Finite.
    Float(f64),
}

impl Number {
    /// `text` has no white space around it.
    pub fn parse(text: &str) -> Option<Number> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_whole
            && (digits.len() == 1 || !digits.starts_with('0'))
            && let Ok(integer) = text.parse()
        {
            return Some(Number::Integer(integer));
        }
        // serde_json knows the grammar, but would allow white space behind; the standard library rounds to the nearest.
        if !text.ends_with(|last: char| last.is_ascii_digit()) {
            return None;
        }
        serde_json::from_str::<f64>(text).ok()?;
        let float: f64 = text.parse().ok()?;
        float.is_finite().then_some(Number::Float(float))
    }

    pub fn as_float(self) -> f64 {
        match self {
            Number::Integer(integer) => integer as f64,
            Number::Float(float) => float,
        }
    }

    pub fn compare(self, other: Number) -> Ordering {
        match (self, other) {
            (Number::Integer(own), Number::Integer(other)) => own.cmp(&other),
            _ => {
                let order = self.as_float().partial_cmp(&other.as_float());
                order.expect("finite numbers have an order")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_in_jsons_grammar_and_finite() {
        for (text, integer) in [
            ("0", 0),
            ("-0", 0),
            ("23", 23),
            ("-7", -7),
            ("9007199254740993", 9_007_199_254_740_993),
            ("18446744073709551616", 18_446_744_073_709_551_616),
        ] {
            assert_eq!(Number::parse(text), Some(Number::Integer(integer)), "{text}");
        }
        let long = "9".repeat(60);
        for (text, float) in [
            ("23.5", 23.5),
            ("0.0", 0.0),
            ("-1.5e-3", -0.0015),
            ("1E2", 100.0),
            ("1e+2", 100.0),
            ("1e-400", 0.0),
            (&long, 1e60),
        ] {
            assert_eq!(Number::parse(text), Some(Number::Float(float)), "{text}");
        }
        for not in [
            "", "-", "+5", "007", "-01", ".5", "5.", "1e", "1e+", "1e400", "-1e400", "NaN", "nan", "Infinity", "inf",
            "0x1f", "1_000", "1,5", " 1", "1 ", "1\n", "1 2", "--1", "٣", "true",
        ] {
            assert_eq!(Number::parse(not), None, "{not}");
        }
    }

    #[test]
    fn whole_numbers_are_compared_exactly_and_others_as_floats() {
        let compare = |a, b| Number::parse(a).unwrap().compare(Number::parse(b).unwrap());
        assert_eq!(compare("9007199254740993", "9007199254740992"), Ordering::Greater);
        assert_eq!(compare("2", "2.0"), Ordering::Equal);
        assert_eq!(compare("-0.0", "0"), Ordering::Equal);
        assert_eq!(compare("10", "9"), Ordering::Greater);
        assert_eq!(compare("1.5", "2"), Ordering::Less);
    }
}
