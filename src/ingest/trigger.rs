//! Whether a datapoint meets an event's rule.

use crate::registry::event::Event;

/// The first value that meets it, as JSON.
pub fn matches(_event: &Event, _value: &str) -> Option<Box<str>> {
    None
}
