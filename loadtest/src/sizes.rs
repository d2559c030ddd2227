//! How long payloads are: one size, a span, or sizes with weights.
//!
//! Called  by `throughput` for each message, at both ends: a message's size follows from the seed, its publisher and its
//!         number, so that the receiver knows it without being told.
//! Holds   - the same seed gives the same sizes, whatever the threads and the window.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::packet::STAMP_BYTES;

pub const SIZE_BYTES_MAX: usize = 200_000_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    Fixed(usize),
    /// Each size of the span as often as every other.
    Uniform {
        min: usize,
        max: usize,
    },
    /// A size, and the share of the messages up to it, of 2^32.
    Weighted(Vec<(usize, u64)>, String),
}

impl Sizes {
    /// Bytes of message `sequence` of `publisher`.
    #[inline]
    pub fn of(&self, seed: u64, publisher: u32, sequence: u64) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Uniform { min, max } => {
                let span = (max - min + 1) as u64;
                min + ((draw(seed, publisher, sequence) * span) >> 32) as usize
            }
            Sizes::Weighted(steps, _) => {
                let drawn = draw(seed, publisher, sequence);
                let at = steps.partition_point(|&(_, up_to)| up_to <= drawn);
                steps[at.min(steps.len() - 1)].0
            }
        }
    }

    pub fn max(&self) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Uniform { max, .. } => *max,
            Sizes::Weighted(steps, _) => steps.iter().map(|step| step.0).max().unwrap_or(0),
        }
    }

    pub fn is_fixed(&self) -> bool {
        matches!(self, Sizes::Fixed(_))
    }
}

/// 32 bits that depend on all of it (splitmix64).
fn draw(seed: u64, publisher: u32, sequence: u64) -> u64 {
    let mut x = seed
        .wrapping_add(u64::from(publisher).wrapping_mul(0xD1B5_4A32_D192_ED03))
        .wrapping_add(sequence.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) >> 32
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let size = |text: &str| -> Result<usize, String> {
            match text.trim().parse::<usize>() {
                Ok(size) if (STAMP_BYTES..=SIZE_BYTES_MAX).contains(&size) => Ok(size),
                Ok(size) => Err(format!(
                    "{size} is outside {STAMP_BYTES}..={SIZE_BYTES_MAX}: a payload starts with {STAMP_BYTES} bytes of bookkeeping"
                )),
                Err(_) => Err(format!(
                    "{text:?} is no size: 64, a span like 64-1024 or sizes with weights like 64:0.9,4096:0.1 are wanted"
                )),
            }
        };
        if text.contains(':') {
            let mut parts = Vec::new();
            for part in text.split(',') {
                let (bytes, weight) = part
                    .split_once(':')
                    .ok_or_else(|| format!("{part:?} has no weight: SIZE:WEIGHT is wanted"))?;
                let weight = match weight.trim().parse::<f64>() {
                    Ok(weight) if weight > 0.0 && weight <= 1e9 => weight,
                    _ => return Err(format!("{weight:?} is no weight: a number above 0 is wanted")),
                };
                parts.push((size(bytes)?, weight));
            }
            let all: f64 = parts.iter().map(|part| part.1).sum();
            let mut up_to = 0.0;
            let steps = parts.into_iter().map(|(bytes, weight)| {
                up_to += weight;
                (bytes, (up_to / all * 2f64.powi(32)) as u64)
            });
            return Ok(Sizes::Weighted(steps.collect(), text.to_string()));
        }
        match text.split_once('-') {
            None => Ok(Sizes::Fixed(size(text)?)),
            Some((min, max)) => {
                let (min, max) = (size(min)?, size(max)?);
                match min.cmp(&max) {
                    std::cmp::Ordering::Less => Ok(Sizes::Uniform { min, max }),
                    std::cmp::Ordering::Equal => Ok(Sizes::Fixed(min)),
                    std::cmp::Ordering::Greater => Err(format!("{min}-{max} runs backwards")),
                }
            }
        }
    }
}

impl Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(size) => write!(f, "{size}"),
            Sizes::Uniform { min, max } => write!(f, "{min}-{max}"),
            Sizes::Weighted(_, text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Sizes {
        text.parse().unwrap()
    }

    #[test]
    fn a_span_gives_each_of_its_sizes_equally_often() {
        let span = sizes("24-33");
        let mut counts = [0u32; 10];
        for sequence in 0..100_000 {
            counts[span.of(7, 3, sequence) - 24] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 600), "{counts:?}");
    }

    #[test]
    fn weights_are_shares_whatever_they_add_up_to() {
        for text in ["64:0.9,4096:0.1", "64:9,4096:1"] {
            let weighted = sizes(text);
            let large = (0..100_000).filter(|&n| weighted.of(1, 0, n) == 4096).count();
            assert!(large.abs_diff(10_000) < 600, "{large}");
            assert_eq!((weighted.max(), weighted.to_string().as_str()), (4096, text));
        }
    }

    #[test]
    fn sizes_follow_from_the_seed_and_differ_between_publishers() {
        let span = sizes("64-100000");
        let of = |seed, publisher| (0..50).map(|n| span.of(seed, publisher, n)).collect::<Vec<_>>();
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), of(1, 1));
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_sentence() {
        assert_eq!(sizes("64-64"), Sizes::Fixed(64));
        for (text, word) in [
            ("23", "bookkeeping"),
            ("abc", "no size"),
            ("-5", "no size"),
            ("100-64", "backwards"),
            ("64:0,128:1", "no weight"),
            ("64:1,128", "no weight"),
            ("64:NaN", "no weight"),
            ("300000000", "outside"),
        ] {
            let refusal = text.parse::<Sizes>().unwrap_err();
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
    }
}
