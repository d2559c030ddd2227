//! Plots as SVG: axes whose ticks are chosen here, lines, areas, dots with whiskers.
//!
//! Called  by `page` with what a run measured.
//! Holds   - colours are those of `style`, which a style sheet changes where the reader wants it dark;
//!         - a plot has a bounded number of points, however long the run;
//!         - drawn `SCALE` times as large as it is meant, since the library rounds to whole units.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::style::{GRID, INK, MUTED, series};
use crate::report::grouped;
use crate::stats::Spread;
use crate::timeline::Timeline;

const SCALE: u32 = 4;
const WIDTH: u32 = 480 * SCALE;
const HEIGHT: u32 = 270 * SCALE;
/// Of a row of dots, for each broker.
const ROW_HEIGHT: u32 = 13 * SCALE;
const FONT_PX: f64 = 12.0;
/// Of a character of the font, for whether a text has room.
const CHARACTER_PX: f64 = 6.5;
/// The library makes a font smaller by this.
const FONT_FACTOR: f64 = 1.24;
const POINTS_MAX: usize = 400;
const BINS: usize = 90;
/// 99.99999 %: more nines have no room.
const NINES_MAX: f64 = 7.0;

/// What a plot draws, and in which colour of the series.
pub struct Line {
    pub points: Vec<(f64, f64)>,
    pub colour: usize,
}

/// (Value, messages up to it), as of `report::Latency`.
pub type Steps = [(f64, u64)];

struct Axis<'a> {
    range: Range<f64>,
    ticks: Vec<f64>,
    label: Box<dyn Fn(f64) -> String + 'a>,
    name: String,
}

impl Ranged for &Axis<'_> {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for &Axis<'_> {
    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

impl Axis<'_> {
    /// From 0 to what the lines need, and some room above them.
    fn from_zero(max: f64, room: f64, name: &str) -> Axis<'static> {
        let end = if max > 0.0 { max * room } else { 1.0 };
        let (ticks, step) = round_ticks(0.0..end, 5.0);
        Axis {
            range: 0.0..end,
            ticks,
            label: Box::new(move |value| number(value, step)),
            name: name.to_string(),
        }
    }

    /// Microseconds, logarithmic: values on it are exponents of 10.
    fn microseconds(min: f64, max: f64) -> Axis<'static> {
        let (mut low, mut high) = (min.max(0.1).log10(), max.max(0.1).log10());
        // One value alone has a place in the middle.
        let narrow = ((0.6 - (high - low)) / 2.0).max(0.0);
        (low, high) = (low - narrow - 0.04, high + narrow + 0.04);
        Axis::powers(low, high, 2.2, duration)
    }

    /// Logarithmic: values on it are exponents of 10. Ticks between the powers where it is shorter than `dense`.
    fn powers(low: f64, high: f64, dense: f64, label: fn(f64) -> String) -> Axis<'static> {
        let factors: &[f64] = if high - low < dense { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let decades = (low.floor() as i32)..=(high.ceil() as i32);
        let ticks = decades.flat_map(|decade| factors.iter().map(move |factor| f64::from(decade) + factor.log10()));
        Axis {
            range: low..high,
            ticks: ticks.filter(|tick| (low..=high).contains(tick)).collect(),
            label: Box::new(move |exponent| label(10f64.powf(exponent))),
            name: String::new(),
        }
    }

    /// Percentiles, each nine as wide as the one before it: values on it are numbers of nines.
    fn nines(count: u64) -> Axis<'static> {
        let end = (count.max(10) as f64).log10().min(NINES_MAX);
        let ticks = std::iter::once(nines_of(0.5)).chain((1..=end as u32).map(f64::from));
        Axis {
            range: 0.0..end,
            ticks: ticks.collect(),
            label: Box::new(percent),
            name: "percentile".to_string(),
        }
    }

    fn time(seconds: f64) -> Axis<'static> {
        let (unit_seconds, name) = time_unit(seconds);
        Axis {
            name: name.to_string(),
            ..Axis::from_zero(seconds / unit_seconds, 1.0, "")
        }
    }
}

/// What a span of time is best told in.
fn time_unit(seconds: f64) -> (f64, &'static str) {
    match seconds {
        s if s < 300.0 => (1.0, "seconds"),
        s if s < 4.0 * 3600.0 => (60.0, "minutes"),
        _ => (3600.0, "hours"),
    }
}

fn nines_of(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// "50 %", "99.9 %".
fn percent(nines: f64) -> String {
    let quantile = 1.0 - 10f64.powf(-nines);
    let decimals = (nines.round() as usize).saturating_sub(2);
    format!("{:.decimals$} %", quantile * 100.0)
}

/// A round number of microseconds.
fn duration(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 0.999 => (us * 1e3, "ns"),
        us if us < 999.0 => (us, "µs"),
        us if us < 999e3 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    format!("{} {unit}", grouped(value.round() as u64))
}

/// With the decimals that ticks of this step differ in.
fn number(value: f64, step: f64) -> String {
    if step >= 1.0 {
        return grouped(value.round() as u64);
    }
    let decimals = (-step.log10()).ceil() as usize;
    format!("{value:.decimals$}")
}

/// Multiples of 1, 2 or 5 times a power of ten, about as many as wanted, and their step.
fn round_ticks(range: Range<f64>, wanted: f64) -> (Vec<f64>, f64) {
    let raw = (range.end - range.start) / wanted;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let first = (range.start / step).ceil() as i64;
    let last = (range.end / step + 1e-9).floor() as i64;
    ((first..=last).map(|k| k as f64 * step).collect(), step)
}

/// The value that a share `quantile` of all messages does not pass.
pub fn value_at(steps: &Steps, quantile: f64) -> f64 {
    let count = steps.last().map_or(0, |step| step.1);
    let wanted = ((quantile * count as f64).ceil() as u64).clamp(1, count.max(1));
    let at = steps.partition_point(|step| step.1 < wanted);
    steps.get(at).map_or(0.0, |step| step.0)
}

fn extremes(curves: &[(&Steps, usize)]) -> Option<(f64, f64)> {
    let ends = curves
        .iter()
        .filter_map(|(steps, _)| Some((steps.first()?.0, steps.last()?.0)));
    ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// Latency over the percentile, of each curve with its colour. None where nothing was measured.
pub fn percentiles(curves: &[(&Steps, usize)]) -> Result<Option<String>> {
    let Some((min, max)) = extremes(curves) else {
        return Ok(None);
    };
    let count_max = curves.iter().filter_map(|(steps, _)| Some(steps.last()?.1)).max();
    let (x, y) = (Axis::nines(count_max.unwrap_or(0)), Axis::microseconds(min, max));
    let lines = curves.iter().filter_map(|&(steps, colour)| {
        let end = (steps.last()?.1 as f64).log10().min(x.range.end);
        let points = (0..=POINTS_MAX).map(|i| {
            let nines = end * i as f64 / POINTS_MAX as f64;
            (nines, value_at(steps, 1.0 - 10f64.powf(-nines)).max(0.1).log10())
        });
        Some(Line {
            points: points.collect(),
            colour,
        })
    });
    draw(&x, &y, &lines.collect::<Vec<_>>(), &[], false).map(Some)
}

/// The share of messages in each of the `BINS` spans of latency. None where nothing was measured.
pub fn histogram(curves: &[(&Steps, usize)]) -> Result<Option<String>> {
    let Some((min, max)) = extremes(curves) else {
        return Ok(None);
    };
    let x = Axis::microseconds(min, max);
    let width = (x.range.end - x.range.start) / BINS as f64;
    let mut lines = Vec::new();
    for &(steps, colour) in curves {
        let Some(count) = steps.last().map(|step| step.1) else {
            continue;
        };
        let mut bins = [0; BINS];
        let mut before = 0;
        for &(us, up_to) in steps {
            let bin = (us.max(0.1).log10() - x.range.start) / width;
            bins[(bin as usize).min(BINS - 1)] += up_to - before;
            before = up_to;
        }
        let points = bins.iter().enumerate().flat_map(|(bin, &of)| {
            let (start, share) = (x.range.start + bin as f64 * width, of as f64 * 100.0 / count as f64);
            [(start, share), (start + width, share)]
        });
        lines.push(Line {
            points: points.collect(),
            colour,
        });
    }
    let name = "latency".to_string();
    draw(&Axis { name, ..x }, &y_axis(&lines, "% of all"), &lines, &[], true).map(Some)
}

/// Lines over the time of a run, whose phases are marked. None where there are not two points.
pub fn over_time(timeline: &Timeline, lines: Vec<Line>, name: &str) -> Result<Option<String>> {
    if lines.iter().all(|line| line.points.len() < 2) {
        return Ok(None);
    }
    let seconds = timeline.seconds().max(
        lines
            .iter()
            .filter_map(|line| Some(line.points.last()?.0))
            .fold(0.0, f64::max),
    );
    let (unit_seconds, _) = time_unit(seconds);
    let scaled = lines.into_iter().map(|line| Line {
        points: line
            .points
            .into_iter()
            .map(|(time, value)| (time / unit_seconds, value))
            .collect(),
        colour: line.colour,
    });
    let scaled: Vec<Line> = scaled.collect();
    let ends = timeline.phases.iter().skip(1).map(|phase| phase.0).chain([seconds]);
    let phases: Vec<Phase> = timeline
        .phases
        .iter()
        .zip(ends)
        .map(|(&(begin, name), end)| Phase {
            begin: begin / unit_seconds,
            end: end / unit_seconds,
            name,
        })
        .collect();
    draw(&Axis::time(seconds), &y_axis(&scaled, name), &scaled, &phases, false).map(Some)
}

fn y_axis(lines: &[Line], name: &str) -> Axis<'static> {
    let max = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.1)
        .fold(0.0, f64::max);
    Axis::from_zero(max, 1.15, name)
}

struct Phase {
    begin: f64,
    end: f64,
    name: &'static str,
}

fn text(pixels: f64, colour: &RGBColor) -> TextStyle<'static> {
    ("sans-serif", pixels * FONT_FACTOR * f64::from(SCALE))
        .into_font()
        .color(colour)
}

fn draw(x: &Axis<'_>, y: &Axis<'_>, lines: &[Line], phases: &[Phase], is_area: bool) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let widest = y
            .ticks
            .iter()
            .map(|tick| (y.label)(*tick).chars().count())
            .max()
            .unwrap_or(0);
        let name_px = if y.name.is_empty() { 0.0 } else { FONT_PX * 1.5 };
        let y_area = (widest as f64 * CHARACTER_PX + 12.0 + name_px) as u32 * SCALE;
        let mut chart = ChartBuilder::on(&root)
            .margin_top(8 * SCALE)
            .margin_right(24 * SCALE)
            .x_label_area_size(if x.name.is_empty() { 24 } else { 42 } * SCALE)
            .y_label_area_size(y_area)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(SCALE))
            .axis_style(MUTED.stroke_width(SCALE))
            .set_all_tick_mark_size(4 * SCALE)
            .label_style(text(FONT_PX, &INK))
            .axis_desc_style(text(FONT_PX, &MUTED))
            .x_desc(x.name.as_str())
            .y_desc(y.name.as_str())
            .draw()?;
        let top = y.range.end;
        for phase in phases.iter().skip(1) {
            let ends = [(phase.begin, y.range.start), (phase.begin, top)];
            chart.draw_series(DashedLineSeries::new(
                ends,
                4 * SCALE,
                4 * SCALE,
                MUTED.stroke_width(SCALE),
            ))?;
        }
        let unit_px = f64::from(WIDTH / SCALE) * 0.8 / (x.range.end - x.range.start);
        for phase in phases.iter().filter(|_| phases.len() > 1) {
            let room_px = (phase.end - phase.begin) * unit_px;
            if room_px > phase.name.len() as f64 * CHARACTER_PX + 8.0 {
                let at = (phase.begin + 4.0 / unit_px, top);
                chart.draw_series([Text::new(phase.name, at, text(FONT_PX - 1.0, &MUTED))])?;
            }
        }
        for (at, line) in lines.iter().enumerate() {
            let colour = series(line.colour);
            if is_area {
                let (Some(first), Some(last)) = (line.points.first(), line.points.last()) else {
                    continue;
                };
                let mut outline = vec![(first.0, 0.0)];
                outline.extend_from_slice(&line.points);
                outline.push((last.0, 0.0));
                chart.draw_series([Polygon::new(outline, colour.mix(0.25))])?;
            }
            // Where two lines are one, the first shows on both sides of the second.
            let width = if at == 0 && lines.len() > 1 {
                11 * SCALE / 4
            } else {
                7 * SCALE / 4
            };
            chart.draw_series([PathElement::new(line.points.clone(), colour.stroke_width(width))])?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Ratios to the first broker: of each figure a dot at the median of each other broker, and a line from the least to the
/// greatest. None where there is nothing to compare with.
pub fn ratios(rows: &[(&str, Vec<Option<Spread>>)]) -> Result<Option<String>> {
    let all = || {
        rows.iter()
            .flat_map(|row| &row.1)
            .flatten()
            .filter(|spread| spread.min > 0.0)
    };
    let (least, greatest) = all().fold((1f64, 1f64), |(least, greatest), spread| {
        (least.min(spread.min), greatest.max(spread.max))
    });
    if all().next().is_none() {
        return Ok(None);
    }
    let count = rows.len() as f64;
    let x = Axis {
        name: "ratio to the first broker".to_string(),
        ..Axis::powers(least.log10() - 0.1, greatest.log10() + 0.1, 1.4, ratio_label)
    };
    let y = Axis {
        range: -count..0.0,
        ticks: (0..rows.len()).map(|row| -(row as f64) - 0.5).collect(),
        label: Box::new(|at| {
            rows.get((-at) as usize)
                .map_or(String::new(), |row| row.0.trim().to_string())
        }),
        name: String::new(),
    };
    let brokers = rows.iter().map(|row| row.1.len()).max().unwrap_or(1);
    let row_height = ROW_HEIGHT * brokers.max(1) as u32 + 7 * SCALE;
    let mut svg = String::new();
    {
        let height = row_height * rows.len() as u32 + 50 * SCALE;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(8 * SCALE)
            .margin_right(24 * SCALE)
            .x_label_area_size(42 * SCALE)
            .y_label_area_size(170 * SCALE)
            .build_cartesian_2d(&x, &y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(SCALE))
            .axis_style(MUTED.stroke_width(SCALE))
            .set_all_tick_mark_size(4 * SCALE)
            .label_style(text(FONT_PX, &INK))
            .axis_desc_style(text(FONT_PX, &MUTED))
            .x_desc(x.name.as_str())
            .draw()?;
        chart.draw_series([PathElement::new(
            [(0.0, -count), (0.0, 0.0)],
            MUTED.stroke_width(2 * SCALE),
        )])?;
        for (row, (_, spreads)) in rows.iter().enumerate() {
            for (broker, spread) in spreads.iter().enumerate() {
                let Some(spread) = spread.filter(|spread| spread.min > 0.0) else {
                    continue;
                };
                let share = (broker as f64 + 1.0) / (spreads.len() as f64 + 1.0);
                let y = -(row as f64) - share;
                // The first broker is what the others are compared with.
                let colour = series(broker + 1);
                let ends = [(spread.min.log10(), y), (spread.max.log10(), y)];
                chart.draw_series([PathElement::new(ends, colour.stroke_width(2 * SCALE))])?;
                let dot = (spread.median.log10(), y);
                chart.draw_series([Circle::new(dot, 4 * SCALE, colour.filled())])?;
            }
        }
        root.present()?;
    }
    Ok(Some(svg))
}

/// "×2", "1/20": of a round value.
fn ratio_label(value: f64) -> String {
    match value {
        v if v >= 0.995 => format!("×{}", grouped(v.round() as u64)),
        v => format!("1/{}", grouped((1.0 / v).round() as u64)),
    }
}
