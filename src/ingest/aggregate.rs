//! Aggregates of a stream: one figure for every numeric field of the values in it.
//!
//! Called  by `http`, with the values of a range one after another.
//! Holds   - a field is known by its path as `trigger` reads one: arrays are passed through, so that their elements count as
//!           values of one field;
//!         - numbers alone count, and no text that reads as one;
//!         - a mean is a float. The others are whole numbers where all values were, and exact then; else floats;
//!         - a figure beyond a 64-bit float is left out;
//!         - at most `AGGREGATE_PATHS_MAX` fields, those that came first, and no path longer than `AGGREGATE_PATH_BYTES_MAX`:
//!           where more was there, [`is_cut`](Aggregator::is_cut) says so.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::json::{Begun, Reader, unescaped};
use super::number::Number;
use crate::limits::{AGGREGATE_PATH_BYTES_MAX, AGGREGATE_PATHS_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    Avg,
    Sum,
    Min,
    Max,
}

impl Aggregate {
    /// As `X-AGGREGATE` names it.
    pub fn parse(text: &str) -> Option<Aggregate> {
        let all = [Aggregate::Avg, Aggregate::Sum, Aggregate::Min, Aggregate::Max];
        all.into_iter().find(|aggregate| aggregate.as_str() == text)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Aggregate::Avg => "avg",
            Aggregate::Sum => "sum",
            Aggregate::Min => "min",
            Aggregate::Max => "max",
        }
    }
}

pub struct Aggregator {
    aggregate: Aggregate,
    /// In the order of their first values.
    fields: IndexMap<String, Tally>,
    is_cut: bool,
}

impl Aggregator {
    pub fn new(aggregate: Aggregate) -> Aggregator {
        Aggregator {
            aggregate,
            fields: IndexMap::new(),
            is_cut: false,
        }
    }

    /// `value`: one that was stored.
    pub fn add(&mut self, value: &str) {
        self.walk(&mut Reader::new(value), &mut String::new(), "");
    }

    /// Whether fields were left out because there were too many, or their paths too long.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Path → figure. Empty: there was no number.
    pub fn finish(self) -> Map<String, Value> {
        let aggregate = self.aggregate;
        let figures = self.fields.into_iter();
        figures
            .filter_map(|(path, tally)| Some((path, Value::Number(tally.figure(aggregate)?))))
            .collect()
    }

    /// Looks at the next value, which is at `path`. `separator`: what stands between that and a name.
    fn walk(&mut self, reader: &mut Reader<'_>, path: &mut String, separator: &str) {
        match reader.begin() {
            None => {}
            Some(Begun::Scalar(raw)) => {
                // A string has its quotation mark before it.
                if let Some(number) = Number::parse(raw) {
                    self.count(path, number);
                }
            }
            Some(Begun::Array) => {
                while reader.next_element() {
                    self.walk(reader, path, separator);
                }
            }
            Some(Begun::Object) => {
                let length = path.len();
                while let Some(name) = reader.next_name() {
                    path.push_str(separator);
                    path.push_str(&unescaped(name));
                    if path.len() <= AGGREGATE_PATH_BYTES_MAX {
                        self.walk(reader, path, ":");
                    } else {
                        reader.skip();
                        self.is_cut = true;
                    }
                    path.truncate(length);
                }
            }
        }
    }

    fn count(&mut self, path: &str, number: Number) {
        if let Some(tally) = self.fields.get_mut(path) {
            tally.count(self.aggregate, number);
        } else if self.fields.len() < AGGREGATE_PATHS_MAX {
            self.fields.insert(path.to_owned(), Tally::new(number));
        } else {
            self.is_cut = true;
        }
    }
}

/// The sum, the least or the greatest so far.
struct Tally {
    count: u64,
    /// `None`: not all were whole numbers, or their sum is beyond 128 bits.
    exact: Option<i128>,
    float: f64,
    /// What rounding took from `float` (Neumaier's sum): a mean of a year's values is as good as that of an hour's.
    lost: f64,
}

impl Tally {
    fn new(number: Number) -> Tally {
        Tally {
            count: 1,
            exact: match number {
                Number::Integer(integer) => Some(integer),
                Number::Float(_) => None,
            },
            float: number.as_float(),
            lost: 0.0,
        }
    }

    fn count(&mut self, aggregate: Aggregate, number: Number) {
        self.count += 1;
        let float = number.as_float();
        self.exact = match (self.exact, number) {
            (Some(exact), Number::Integer(integer)) => match aggregate {
                Aggregate::Avg | Aggregate::Sum => exact.checked_add(integer),
                Aggregate::Min => Some(exact.min(integer)),
                Aggregate::Max => Some(exact.max(integer)),
            },
            _ => None,
        };
        self.float = match aggregate {
            Aggregate::Avg | Aggregate::Sum => {
                let sum = self.float + float;
                self.lost += if self.float.abs() >= float.abs() {
                    (self.float - sum) + float
                } else {
                    (float - sum) + self.float
                };
                sum
            }
            Aggregate::Min => self.float.min(float),
            Aggregate::Max => self.float.max(float),
        };
    }

    fn figure(&self, aggregate: Aggregate) -> Option<serde_json::Number> {
        let float = self.exact.map_or(self.float + self.lost, |exact| exact as f64);
        match (aggregate, self.exact) {
            (Aggregate::Avg, _) => serde_json::Number::from_f64(float / self.count as f64),
            (_, Some(exact)) => serde_json::Number::from_i128(exact).or_else(|| serde_json::Number::from_f64(float)),
            (_, None) => serde_json::Number::from_f64(float),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aggregated(aggregate: Aggregate, values: &[&str]) -> String {
        let mut aggregator = Aggregator::new(aggregate);
        for value in values {
            aggregator.add(value);
        }
        assert!(!aggregator.is_cut());
        serde_json::to_string(&aggregator.finish()).unwrap()
    }

    #[test]
    fn each_aggregate_has_its_name_and_its_figure() {
        let values = [
            r#"{"temp":21.5,"rh":48}"#,
            r#"{"temp":20.0,"rh":47}"#,
            r#"{"rh":-50,"temp":2e1}"#,
        ];
        for (name, figures) in [
            ("avg", r#"{"temp":20.5,"rh":15.0}"#),
            ("sum", r#"{"temp":61.5,"rh":45}"#),
            ("min", r#"{"temp":20.0,"rh":-50}"#),
            ("max", r#"{"temp":21.5,"rh":48}"#),
        ] {
            let aggregate = Aggregate::parse(name).unwrap();
            assert_eq!(aggregate.as_str(), name);
            assert_eq!(aggregated(aggregate, &values), figures);
        }
        for not in ["", "AVG", "mean", "avg "] {
            assert_eq!(Aggregate::parse(not), None);
        }
    }

    #[test]
    fn a_field_is_known_by_its_path_and_arrays_are_passed_through() {
        let values = [
            r#"{"data":[{"value":10},{"value":20}],"list":[1,[2,[3]]],"a":{"b":{"c":1}}}"#,
            r#"{"data":{"value":60},"a:b":{"c":3},"":{"":7}}"#,
        ];
        assert_eq!(
            aggregated(Aggregate::Sum, &values),
            r#"{"data:value":90,"list":6,"a:b:c":4,":":7}"#
        );
    }

    #[test]
    fn what_is_no_number_is_skipped() {
        let values = [
            r#"{"text":"12","on":true,"none":null,"n":1,"mixed":"x","empty":{},"list":[]}"#,
            r#"{"mixed":4,"n":2}"#,
        ];
        assert_eq!(aggregated(Aggregate::Max, &values), r#"{"n":2,"mixed":4}"#);
        assert_eq!(aggregated(Aggregate::Avg, &[r#"{"value1":"01a4ff"}"#]), "{}");
        assert_eq!(aggregated(Aggregate::Avg, &[]), "{}");
    }

    #[test]
    fn whole_numbers_stay_exact_and_one_float_makes_a_float() {
        let large = [r#"{"n":9007199254740993}"#, r#"{"n":1}"#];
        assert_eq!(aggregated(Aggregate::Sum, &large), r#"{"n":9007199254740994}"#);
        assert_eq!(aggregated(Aggregate::Max, &large), r#"{"n":9007199254740993}"#);
        let mixed = [r#"{"n":1}"#, r#"{"n":2.5}"#, r#"{"n":3}"#];
        assert_eq!(aggregated(Aggregate::Sum, &mixed), r#"{"n":6.5}"#);
        assert_eq!(aggregated(Aggregate::Min, &mixed), r#"{"n":1.0}"#);
        assert_eq!(aggregated(Aggregate::Avg, &[r#"{"n":2}"#]), r#"{"n":2.0}"#);
        let beyond = [r#"{"n":18446744073709551615}"#, r#"{"n":1}"#];
        assert_eq!(aggregated(Aggregate::Max, &beyond), r#"{"n":18446744073709551615}"#);
        assert_eq!(aggregated(Aggregate::Sum, &beyond), r#"{"n":1.8446744073709552e+19}"#);
    }

    #[test]
    fn a_sum_of_many_floats_does_not_drift() {
        let values = [r#"{"n":0.1}"#; 10];
        assert_eq!(aggregated(Aggregate::Sum, &values), r#"{"n":1.0}"#);
        assert_eq!(aggregated(Aggregate::Avg, &values), r#"{"n":0.1}"#);
    }

    #[test]
    fn a_figure_beyond_a_float_is_left_out() {
        let values = [r#"{"n":1e308,"m":1}"#; 2];
        assert_eq!(aggregated(Aggregate::Sum, &values), r#"{"m":2}"#);
        assert_eq!(aggregated(Aggregate::Max, &values), r#"{"n":1e+308,"m":1}"#);
    }

    #[test]
    fn fields_beyond_the_bound_are_left_out_and_said_to_be() {
        let mut aggregator = Aggregator::new(Aggregate::Sum);
        for field in 0..AGGREGATE_PATHS_MAX {
            aggregator.add(&format!(r#"{{"f{field}":1}}"#));
        }
        assert!(!aggregator.is_cut());
        aggregator.add(r#"{"one more":1,"f0":1}"#);
        assert!(aggregator.is_cut());
        let figures = aggregator.finish();
        assert_eq!(figures.len(), AGGREGATE_PATHS_MAX);
        assert_eq!(figures["f0"], 2);

        let mut aggregator = Aggregator::new(Aggregate::Sum);
        let name = |length: usize| "x".repeat(length);
        aggregator.add(&format!(r#"{{"{}":1}}"#, name(AGGREGATE_PATH_BYTES_MAX)));
        assert!(!aggregator.is_cut());
        aggregator.add(&format!(
            r#"{{"{}":{{"y":1}},"z":1}}"#,
            name(AGGREGATE_PATH_BYTES_MAX - 1)
        ));
        assert!(aggregator.is_cut());
        assert_eq!(aggregator.finish().len(), 2);
    }
}
