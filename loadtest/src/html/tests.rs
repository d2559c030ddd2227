//! Pages of runs that measured everything, little and nothing.

use hdrhistogram::Histogram;

use super::*;
use crate::report::{Host, Latency};
use crate::stats::Spread;
use crate::timeline::{Sample, Timeline};

fn latency(values_us: impl Iterator<Item = u64>) -> Latency {
    let mut histogram = Histogram::new_with_bounds(100, 3_600_000_000_000, 3).unwrap();
    values_us.for_each(|us| histogram.record(us * 1000).unwrap());
    Latency::of(&histogram)
}

fn timeline(seconds: u32, has_broker: bool) -> Timeline {
    let sample = |at: u32| Sample {
        seconds: f64::from(at) / 4.0,
        counts: vec![u64::from(at) * 100_000, u64::from(at) * 90_000],
        errors: u64::from(at / 8),
        broker_bytes: has_broker.then_some(5_000_000 + u64::from(at) * 10_000),
        broker_cpu_seconds: has_broker.then_some(f64::from(at) * 0.2),
        broker_user_seconds: has_broker.then_some(f64::from(at) * 0.05),
        generator_cpu_seconds: f64::from(at) * 0.1,
    };
    Timeline {
        counted: vec!["delivered", "acknowledged"],
        phases: vec![(0.0, "warm-up"), (1.0, "measured"), (f64::from(seconds) - 0.1, "drain")],
        samples: (0..=seconds * 4).map(sample).collect(),
    }
}

fn host() -> Host {
    Host {
        kernel: "6.18".into(),
        cpus: 2,
        cpu_model: Some("A & B <CPU>".into()),
        memory_bytes: Some(8 << 30),
    }
}

fn whole() -> Page {
    let mut page = Page::new(
        "throughput",
        Some("skein"),
        "127.0.0.1:1883",
        "pairs 10 -> 10, QoS 1",
        &host(),
    );
    page.verdict = "Every rule was kept: 1,000 messages sent.".into();
    page.count("Delivered", 1_234_567, "messages/s");
    page.measured("Broker CPU time", Some(1.18), "µs per delivered message");
    page.latencies.push(
        Curves::new("From PUBLISH")
            .with(
                "delivered",
                Some(&latency((1..=100_000).map(|i| 20 + i * i / 10_000_000))),
            )
            .with("acknowledged", Some(&latency((1..=100_000).map(|i| 15 + i / 1000)))),
    );
    page.timeline(&timeline(6, true));
    page
}

fn rendered(page: &Page) -> String {
    page::render(
        page,
        true,
        "summary",
        "skein-load throughput",
        "2026-01-02 03:04:05 UTC",
    )
    .unwrap()
}

/// Checks that tags and attributes are well-formed, and that nothing leads out of the page. Gives its text.
fn checked(text: &str) -> String {
    // The one void element there is.
    let mut xml = String::new();
    for (at, piece) in text.split("<meta ").enumerate() {
        match at {
            0 => xml.push_str(piece),
            _ => xml.push_str(&format!("<meta {}", piece.replacen('>', "/>", 1))),
        }
    }
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let document = roxmltree::Document::parse_with_options(&xml, options).unwrap();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(
            !["script", "link", "img", "image", "iframe", "object", "use", "a"].contains(&name),
            "<{name}>"
        );
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(
                !["src", "href", "srcset", "data", "action"].contains(&key) && !key.starts_with("on"),
                "{key}"
            );
            assert!(!value.contains("url("), "{value}");
        }
        if name == "style" {
            let css = node.text().unwrap();
            assert!(
                !css.contains("@import") && !css.contains("url(") && !css.contains("//"),
                "{css}"
            );
        }
    }
    document
        .descendants()
        .filter(roxmltree::Node::is_text)
        .filter_map(|node| node.text())
        .collect()
}

#[test]
fn a_page_needs_nothing_but_itself_and_has_what_was_measured() {
    let html = rendered(&whole());
    let text = checked(&html);
    for wanted in [
        "skein at 127.0.0.1:1883",
        "Every rule was kept",
        "1,234,567",
        "µs per delivered message",
        "99.9 %",
        "20 µs",
        "Throughput",
        "MiB",
        "of which system",
        "warm-up",
        "measured",
        "A & B <CPU>, 2 CPUs",
        "8.00 GiB",
        "skein-load throughput",
        "2026-01-02 03:04:05 UTC",
        "summary",
    ] {
        assert!(text.contains(wanted), "{wanted}");
    }
    assert_eq!(
        html.matches("<svg ").count(),
        6,
        "percentiles, histogram, throughput, memory, CPU, errors"
    );
    // The last phase is too short for its name.
    assert!(!text.contains("drain"));
}

#[test]
fn texts_of_others_are_texts() {
    let hostile = "</style><script>alert(1)</script>\"'&amp;<!--";
    let mut page = whole();
    page.brokers = hostile.into();
    page.settings = hostile.into();
    page.verdict = hostile.into();
    page.columns = vec![hostile.into(), hostile.into()];
    page.rows.push((hostile.into(), vec![hostile.into(), hostile.into()]));
    page.latencies = vec![Curves::new(hostile).with(hostile, Some(&latency(1..10)))];
    page.runs[0].name = hostile.into();
    let html = page::render(&page, false, hostile, hostile, hostile).unwrap();
    assert!(checked(&html).matches(hostile).count() >= 10);
}

#[test]
fn what_was_not_measured_is_no_plot() {
    let plots = |change: fn(&mut Page)| {
        let mut page = whole();
        change(&mut page);
        let html = rendered(&page);
        checked(&html);
        html.matches("<svg ").count()
    };
    assert_eq!(
        plots(|page| page.runs[0].timeline = timeline(6, false)),
        5,
        "generator's CPU time alone, no memory"
    );
    assert_eq!(plots(|page| page.latencies = vec![Curves::new("x").with("y", None)]), 4);
    assert_eq!(
        plots(|page| page.latencies = vec![Curves::new("x").with("y", Some(&latency(0..0)))]),
        4
    );
    assert_eq!(
        plots(|page| page.latencies = vec![Curves::new("x").with("y", Some(&latency(7..8)))]),
        6
    );
    assert_eq!(plots(|page| page.runs.clear()), 2);
    let nothing = |page: &mut Page| {
        page.runs[0].timeline = Timeline::default();
        page.latencies.clear();
    };
    assert_eq!(plots(nothing), 0);
}

#[test]
fn brokers_are_compared_line_by_line() {
    let mut page = whole();
    page.columns = ["mosquitto", "skein"].map(String::from).to_vec();
    page.rows = vec![("delivered/s".into(), vec!["1".into(), "2 ×2.00 [1.50..2.50]".into()])];
    let ratio = Spread {
        median: 0.05,
        min: 0.02,
        max: 4.0,
    };
    page.ratios = vec![("latency p99 µs", vec![Some(ratio)]), ("dropped", vec![None])];
    let rounds = [latency(1..1000), latency(500..700)];
    page.latencies = vec![
        Curves::new("Delivered")
            .with_merged("mosquitto", 0, rounds.iter())
            .with_merged("skein", 1, [].into_iter()),
    ];
    for name in ["mosquitto", "skein"] {
        page.timeline(&timeline(3, true));
        page.runs.last_mut().unwrap().name = name.into();
    }
    page.runs.remove(0);
    let html = rendered(&page);
    let text = checked(&html);
    for wanted in [
        "×2.00 [1.50..2.50]",
        "latency p99 µs",
        "1/10",
        "×1",
        "Throughput, acknowledged",
        "CPU time of the generator",
    ] {
        assert!(text.contains(wanted), "{wanted}");
    }
    // Both rounds: 999 and 200 values.
    assert!(text.contains("1,199"), "{text}");
}

#[test]
fn a_quantile_is_a_value_that_so_many_do_not_pass() {
    let steps = [(10.0, 90), (20.0, 99), (30.0, 100)];
    let at = |quantile| plot::value_at(&steps, quantile);
    assert_eq!(
        [at(0.0), at(0.5), at(0.9), at(0.91), at(0.99), at(0.999), at(1.0)],
        [10.0, 10.0, 10.0, 20.0, 20.0, 30.0, 30.0]
    );
    assert_eq!(plot::value_at(&[], 0.5), 0.0);
}
