//! Median, spread and paired ratios of the rounds of a comparison.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// `None` when there is nothing to summarise.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    };
    Some(Spread { median, min, max })
}

/// The ratios value / base, round by round: what both met in one round (another load on the machine) cancels out.
/// Rounds in which the base is 0 say nothing and are left out.
pub fn paired_ratios(values: &[f64], base: &[f64]) -> Vec<f64> {
    values
        .iter()
        .zip(base)
        .filter(|(_, base)| **base > 0.0)
        .map(|(value, base)| value / base)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // Round 2 ran on a machine half as fast: the absolutes double, the ratio stands.
        let ratios = paired_ratios(&[10.0, 20.0, 10.0], &[40.0, 80.0, 40.0]);
        assert_eq!(
            spread(&ratios),
            Some(Spread {
                median: 0.25,
                min: 0.25,
                max: 0.25
            })
        );
        assert_eq!(paired_ratios(&[1.0, 2.0], &[0.0, 4.0]), [0.5]);
    }
}
