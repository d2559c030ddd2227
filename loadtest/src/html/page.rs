//! What a report shows of a run, and its HTML.
//!
//! Called  by the scenarios' `Figures::page`, which fill a `Page`, and by `html::write`.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot::{self, Line, Steps};
use super::style;
use crate::report::{Host, Latency, figure, grouped};
use crate::stats::Spread;
use crate::timeline::Timeline;

/// A rate over less time than this is noise.
const RATE_SECONDS_MIN: f64 = 0.1;
/// What the kernel counts in ticks of 10 ms wants more.
const SPLIT_SECONDS_MIN: f64 = 1.0;
const QUANTILES: [(f64, &str); 6] = [
    (0.5, "p50"),
    (0.9, "p90"),
    (0.99, "p99"),
    (0.999, "p99.9"),
    (0.9999, "p99.99"),
    (1.0, "max"),
];

pub struct Page {
    pub scenario: &'static str,
    /// Who was measured, and where.
    pub brokers: String,
    pub settings: String,
    pub host: Host,
    /// In words.
    pub verdict: String,
    /// Names of the columns of `rows` after the first.
    pub columns: Vec<String>,
    pub rows: Vec<(String, Vec<String>)>,
    pub latencies: Vec<Curves>,
    /// Of each broker one.
    pub runs: Vec<Run>,
    /// By figure, of each broker but the first.
    pub ratios: Vec<(&'static str, Vec<Option<Spread>>)>,
}

/// Latencies that are drawn together.
pub struct Curves {
    pub title: String,
    pub curves: Vec<Curve>,
}

pub struct Curve {
    pub name: String,
    /// Microseconds, messages up to it.
    pub steps: Vec<(f64, u64)>,
    /// Of the series.
    pub colour: usize,
}

pub struct Run {
    /// Of the broker.
    pub name: String,
    pub timeline: Timeline,
}

impl Page {
    pub fn new(scenario: &'static str, broker: Option<&str>, address: &str, settings: &str, host: &Host) -> Page {
        Page {
            scenario,
            brokers: format!("{} at {address}", broker.unwrap_or("broker")),
            settings: settings.to_string(),
            host: host.clone(),
            verdict: String::new(),
            columns: Vec::new(),
            rows: Vec::new(),
            latencies: Vec::new(),
            runs: Vec::new(),
            ratios: Vec::new(),
        }
    }

    /// A row of the table of figures.
    pub fn figure(&mut self, what: &str, value: impl Into<String>, unit: &str) {
        self.rows.push((what.to_string(), vec![value.into(), unit.to_string()]));
    }

    /// A row, if it was measured, with three digits.
    pub fn measured(&mut self, what: &str, value: Option<f64>, unit: &str) {
        if let Some(value) = value {
            self.figure(what, figure(value), unit);
        }
    }

    pub fn count(&mut self, what: &str, count: u64, unit: &str) {
        self.figure(what, grouped(count), unit);
    }

    /// The timeline of a run against one broker.
    pub fn timeline(&mut self, timeline: &Timeline) {
        self.runs.push(Run {
            name: String::new(),
            timeline: timeline.clone(),
        });
    }
}

impl Curves {
    pub fn new(title: &str) -> Curves {
        Curves {
            title: title.to_string(),
            curves: Vec::new(),
        }
    }

    /// What was not measured, or of nothing, is no curve.
    pub fn with(mut self, name: &str, latency: Option<&Latency>) -> Curves {
        if let Some(latency) = latency.filter(|latency| latency.count > 0) {
            self.curves.push(Curve {
                name: name.to_string(),
                steps: latency.histogram.clone(),
                colour: self.curves.len(),
            });
        }
        self
    }

    /// One curve of all rounds.
    pub fn with_merged<'a>(mut self, name: &str, colour: usize, rounds: impl Iterator<Item = &'a Latency>) -> Curves {
        let mut counts: Vec<(f64, u64)> = Vec::new();
        for latency in rounds {
            let mut before = 0;
            for &(us, up_to) in &latency.histogram {
                counts.push((us, up_to - before));
                before = up_to;
            }
        }
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut up_to = 0;
        let steps = counts.into_iter().map(|(us, count)| {
            up_to += count;
            (us, up_to)
        });
        let steps: Vec<(f64, u64)> = steps.collect();
        if !steps.is_empty() {
            self.curves.push(Curve {
                name: name.to_string(),
                steps,
                colour,
            });
        }
        self
    }
}

pub fn render(page: &Page, is_good: bool, summary: &str, command: &str, date: &str) -> Result<String> {
    let title = format!("{}: {}", page.scenario, page.brokers);
    let latencies: Vec<&Curves> = page
        .latencies
        .iter()
        .filter(|curves| !curves.curves.is_empty())
        .collect();
    let over_time = over_time(&page.runs)?;
    let ratios = plot::ratios(&page.ratios)?;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content={ "skein-load " (env!("CARGO_PKG_VERSION")) };
                title { (title) }
                style { (PreEscaped(style::sheet())) }
            }
            body {
                p class="muted" { "skein-load, " (date) }
                h1 { (title) }
                p { (page.settings) }
                p class={ "verdict" @if !is_good { " bad" } } { (page.verdict) }
                h2 { "Figures" }
                (figures(page))
                @if !latencies.is_empty() {
                    h2 { "Latency" }
                    (percentile_table(&latencies))
                    div class="plots" style="margin-top:1rem" {
                        @for curves in &latencies {
                            (plot_of(&format!("{}, by percentile", curves.title), &legend(curves), plot::percentiles(&steps(curves))?))
                            (plot_of(&format!("{}, how often", curves.title), &legend(curves), plot::histogram(&steps(curves))?))
                        }
                    }
                }
                @if !over_time.is_empty() {
                    h2 { "Over time" }
                    div class="plots" { @for plot in &over_time { (plot) } }
                }
                @if ratios.is_some() {
                    h2 { "Ratios to " (page.runs.first().map_or("", |run| run.name.as_str())) }
                    @let names = page.runs.iter().enumerate().skip(1).map(|(at, run)| (run.name.clone(), at));
                    div class="plots" {
                        (plot_of("Median, least and greatest of the rounds", &names.collect::<Vec<_>>(), ratios))
                    }
                }
                h2 { "How it was measured" }
                pre class="command" { (command) }
                div class="wide" { table { tbody { @for (what, text) in host(&page.host) { tr { th { (what) } td class="text" { (text) } } } } } }
                h2 { "Summary, as printed" }
                pre { (summary) }
            }
        }
    };
    Ok(markup.into_string())
}

fn figures(page: &Page) -> Markup {
    html! {
        div class="wide" {
            table {
                @if !page.columns.is_empty() {
                    thead { tr { th {} @for name in &page.columns { th { (name) } } } }
                }
                tbody {
                    @for (what, cells) in &page.rows {
                        tr {
                            th { (what.trim()) }
                            @for (at, cell) in cells.iter().enumerate() {
                                // Without columns it is a value and its unit.
                                @let class = ["number", "text"].get(at).filter(|_| page.columns.is_empty());
                                td class=[class] { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn percentile_table(latencies: &[&Curves]) -> Markup {
    html! {
        div class="wide" {
            table {
                thead {
                    tr {
                        th { "microseconds" }
                        @for (_, name) in QUANTILES { th class="number" { (name) } }
                        th class="number" { "measured" }
                    }
                }
                tbody {
                    @for curves in latencies {
                        @for curve in &curves.curves {
                            tr {
                                th { (curves.title) ": " (curve.name) }
                                @for (quantile, _) in QUANTILES {
                                    td class="number" { (figure(plot::value_at(&curve.steps, quantile))) }
                                }
                                td class="number" { (grouped(curve.steps.last().map_or(0, |step| step.1))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn steps(curves: &Curves) -> Vec<(&Steps, usize)> {
    curves
        .curves
        .iter()
        .map(|curve| (curve.steps.as_slice(), curve.colour))
        .collect()
}

fn legend(curves: &Curves) -> Vec<(String, usize)> {
    curves
        .curves
        .iter()
        .map(|curve| (curve.name.clone(), curve.colour))
        .collect()
}

/// Nothing, where there is no plot.
fn plot_of(title: &str, legend: &[(String, usize)], svg: Option<String>) -> Markup {
    html! {
        @if let Some(svg) = svg {
            figure {
                figcaption { b { (title) } }
                div class="legend" {
                    @for (name, colour) in legend {
                        @if !name.is_empty() { span { i class=(style::mark(*colour)) {} (name) } }
                    }
                }
                div role="img" aria-label=(title) { (PreEscaped(svg)) }
            }
        }
    }
}

/// The plots over time that there is something to draw in.
fn over_time(runs: &[Run]) -> Result<Vec<Markup>> {
    let Some(longest) = runs
        .iter()
        .max_by(|a, b| a.timeline.seconds().total_cmp(&b.timeline.seconds()))
    else {
        return Ok(Vec::new());
    };
    let mut plots = Vec::new();
    let mut add = |title: &str, name: &str, lines: Vec<(String, Line)>| -> Result<()> {
        let lines = lines.into_iter().filter(|(_, line)| line.points.len() > 1);
        let (legend, lines): (Vec<(String, usize)>, Vec<Line>) =
            lines.map(|(text, line)| ((text, line.colour), line)).unzip();
        let svg = plot::over_time(&longest.timeline, lines, name)?;
        plots.extend(svg.map(|svg| plot_of(title, &legend, Some(svg))));
        Ok(())
    };
    let line = |name: &str, colour: usize, points: Vec<(f64, f64)>| (name.to_string(), Line { points, colour });
    let rates = |run: &Run, at: usize| {
        let total = |sample: &crate::timeline::Sample| sample.counts.get(at).map(|&count| count as f64);
        run.timeline.rates(RATE_SECONDS_MIN, total)
    };
    let cpu = |run: &Run| run.timeline.rates(RATE_SECONDS_MIN, |sample| sample.broker_cpu_seconds);
    let own = |run: &Run| {
        run.timeline
            .rates(RATE_SECONDS_MIN, |sample| Some(sample.generator_cpu_seconds))
    };
    let each = |of: &dyn Fn(&Run) -> Vec<(f64, f64)>| -> Vec<(String, Line)> {
        let lines = runs.iter().enumerate();
        lines.map(|(broker, run)| line(&run.name, broker, of(run))).collect()
    };
    let counted = &longest.timeline.counted;
    if let [run] = runs {
        let lines = counted
            .iter()
            .enumerate()
            .map(|(at, what)| line(what, at, rates(run, at)));
        add("Throughput", "per second", lines.collect())?;
    } else {
        for (at, what) in counted.iter().enumerate() {
            add(
                &format!("Throughput, {what}"),
                "per second",
                each(&|run| rates(run, at)),
            )?;
        }
    }
    let bytes = |run: &Run| {
        let samples = run.timeline.samples.iter();
        let read = samples.filter_map(|sample| Some((sample.seconds, sample.broker_bytes? as f64 / 1048576.0)));
        read.collect()
    };
    add("User memory of the broker", "MiB", each(&bytes))?;
    if let [run] = runs {
        let user = run
            .timeline
            .rates(SPLIT_SECONDS_MIN, |sample| sample.broker_user_seconds);
        let system = run.timeline.rates(SPLIT_SECONDS_MIN, |sample| {
            Some(sample.broker_cpu_seconds? - sample.broker_user_seconds?)
        });
        let lines = [
            ("broker", cpu(run)),
            ("of which user", user),
            ("of which system", system),
            ("generator", own(run)),
        ];
        let lines = lines.into_iter().enumerate();
        add(
            "CPU time",
            "CPUs",
            lines.map(|(at, (name, points))| line(name, at, points)).collect(),
        )?;
    } else {
        add("CPU time of the broker", "CPUs", each(&cpu))?;
        add("CPU time of the generator", "CPUs", each(&own))?;
    }
    if runs
        .iter()
        .flat_map(|run| &run.timeline.samples)
        .any(|sample| sample.errors > 0)
    {
        let errors = |run: &Run| {
            let samples = run.timeline.samples.iter();
            samples.map(|sample| (sample.seconds, sample.errors as f64)).collect()
        };
        add("Errors so far", "errors", each(&errors))?;
    }
    Ok(plots)
}

fn host(host: &Host) -> Vec<(&'static str, String)> {
    let memory = host
        .memory_bytes
        .map(|bytes| format!("{} GiB", figure(bytes as f64 / 1073741824.0)));
    let rows = [
        (
            "CPU",
            host.cpu_model
                .as_ref()
                .map(|model| format!("{model}, {} CPUs", host.cpus))
                .or(Some(format!("{} CPUs", host.cpus))),
        ),
        ("Memory", memory),
        ("Kernel", Some(format!("Linux {}", host.kernel))),
        (
            "Generator",
            Some(format!("skein-load {}, on this host", env!("CARGO_PKG_VERSION"))),
        ),
    ];
    rows.into_iter()
        .filter_map(|(what, text)| Some((what, text?)))
        .collect()
}
