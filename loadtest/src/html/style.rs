//! The colours of a report, light and dark, and its style sheet.
//!
//! Called  by `plot` for colours, by `page` for the sheet.
//! Holds   - a plot is drawn in the light colours; the sheet names each with the dark one that takes its place, so that one
//!           drawing serves both;
//!         - the colours of the series are told apart by the colour-blind (those of Okabe and Ito).

use std::fmt::Write;

use plotters::style::RGBColor;

pub const INK: RGBColor = RGBColor(0x1f, 0x29, 0x37);
pub const MUTED: RGBColor = RGBColor(0x6b, 0x72, 0x80);
pub const GRID: RGBColor = RGBColor(0xe5, 0xe7, 0xeb);

/// Light, dark.
const SERIES: [(RGBColor, RGBColor); 6] = [
    (RGBColor(0x00, 0x72, 0xb2), RGBColor(0x5a, 0xb0, 0xf0)),
    (RGBColor(0xd5, 0x5e, 0x00), RGBColor(0xff, 0x9a, 0x4d)),
    (RGBColor(0x00, 0x9e, 0x73), RGBColor(0x3d, 0xd6, 0xa3)),
    (RGBColor(0xb0, 0x50, 0x8c), RGBColor(0xe8, 0xa2, 0xc8)),
    (RGBColor(0xb8, 0x86, 0x0b), RGBColor(0xf0, 0xc0, 0x4f)),
    (RGBColor(0x3f, 0x8f, 0xbf), RGBColor(0x9a, 0xd8, 0xf8)),
];

const DARK: [(RGBColor, RGBColor); 3] = [
    (INK, RGBColor(0xe5, 0xe7, 0xeb)),
    (MUTED, RGBColor(0x9c, 0xa3, 0xaf)),
    (GRID, RGBColor(0x37, 0x41, 0x51)),
];

const SHEET: &str = "
:root { color-scheme: light dark; --paper: #fff; --card: #f9fafb; --good: #047857; --bad: #b91c1c; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
.muted, figcaption, th { color: var(--muted); }
.verdict { border-left: .35rem solid var(--good); background: var(--card); padding: .6rem .9rem; margin: 1rem 0; font-weight: 600; }
.verdict.bad { border-color: var(--bad); color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--grid); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 500; }
td.number, th.number { text-align: right; }
th { min-width: 6rem; }
td { white-space: nowrap; }
td.text { white-space: normal; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; border: 1px solid var(--grid); border-radius: .5rem; padding: .75rem; background: var(--card); }
figcaption b { color: var(--ink); font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: .15rem 0 .35rem; font-size: .85rem; color: var(--ink); }
.legend i { display: inline-block; width: 1.1rem; height: .25rem; border-radius: .1rem; margin-right: .4rem; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; }
pre { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .75rem; margin: .25rem 0;
  overflow-x: auto; font: .8rem/1.45 ui-monospace, 'DejaVu Sans Mono', monospace; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { figure { break-inside: avoid; } }
";

/// Of series `index`; after the last the first comes again.
pub fn series(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()].0
}

/// The class of a legend's mark for series `index`.
pub fn mark(index: usize) -> String {
    format!("s{}", index % SERIES.len())
}

fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

pub fn sheet() -> String {
    let mut css = String::from(SHEET);
    let mut dark = String::new();
    for (name, (light, darker)) in ["ink", "muted", "grid"].iter().zip(DARK) {
        // Writing to a String cannot fail.
        let _ = writeln!(css, ":root {{ --{name}: {}; }}", hex(light));
        let _ = writeln!(dark, ":root {{ --{name}: {}; }}", hex(darker));
    }
    for (index, (light, darker)) in SERIES.iter().enumerate() {
        let _ = writeln!(css, ".s{index} {{ background: {}; }}", hex(*light));
        let _ = writeln!(dark, ".s{index} {{ background: {}; }}", hex(*darker));
    }
    for (light, darker) in DARK.iter().chain(&SERIES) {
        let (light, darker) = (hex(*light), hex(*darker));
        let _ = writeln!(dark, "svg [stroke=\"{light}\"] {{ stroke: {darker}; }}");
        let _ = writeln!(dark, "svg [fill=\"{light}\"] {{ fill: {darker}; }}");
    }
    let _ = write!(
        css,
        "@media (prefers-color-scheme: dark) {{\n:root {{ --paper: #111827; --card: #1a2332; --good: #34d399; --bad: #f87171; }}\n{dark}}}\n"
    );
    css
}
