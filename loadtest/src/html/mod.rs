//! A run as one page of HTML that needs nothing but itself: tables, plots as SVG, light and dark.
//!
//! Called  by `main` for --report with what a scenario says of itself (`Figures::page`).
//! Holds   - no script, no font, nothing fetched: what is in the file is all there is;
//!         - every text is escaped, credentials are left out (`command`);
//!         - what was not measured has no plot, and is no row.

mod command;
mod page;
mod plot;
mod style;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;

pub use self::page::{Curves, Page, Run};
use crate::report::Figures;

/// Writes the page of a run that ended now.
pub fn write(path: &Path, figures: &impl Figures) -> Result<()> {
    let command = command::line(std::env::args(), |name| std::env::var(name).ok());
    let date = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let text = page::render(
        &figures.page(),
        figures.is_good(),
        &figures.to_string(),
        &command,
        &date,
    )?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
