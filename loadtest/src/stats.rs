//! Median, spread and paired ratios of the rounds of a comparison; the slope of readings over time.

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

/// How fast y grows with x, by least squares; `None` where the points do not tell.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let spread_x: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
    let both: f64 = points.iter().map(|point| (point.0 - mean_x) * (point.1 - mean_y)).sum();
    (points.len() > 1 && spread_x > 0.0).then(|| both / spread_x)
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

    #[test]
    fn the_slope_is_that_of_the_line_through_the_noise() {
        let points: Vec<(f64, f64)> = (0..100)
            .map(|i| (f64::from(i), 3.0 * f64::from(i) + if i % 2 == 0 { 1.0 } else { -1.0 }))
            .collect();
        assert!((slope(&points).unwrap() - 3.0).abs() < 0.01);
        assert_eq!(slope(&[(0.0, 5.0), (1.0, 5.0)]), Some(0.0));
        assert_eq!(
            [slope(&[]), slope(&[(1.0, 2.0)]), slope(&[(1.0, 2.0), (1.0, 3.0)])],
            [None; 3]
        );
    }
}
