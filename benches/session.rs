//! What a QoS 1 or 2 message costs one Session: from its client until it is acknowledged; offered, written, acknowledged.
//!
//! `cargo bench --bench session`.

mod scenarios;
mod timed;

use criterion::{Criterion, criterion_group, criterion_main};
use timed::ThreadTime;

fn session(criterion: &mut Criterion<ThreadTime>) {
    scenarios::session::scenarios(criterion);
}

criterion_group! {
    name = benches;
    config = timed::criterion();
    targets = session
}
criterion_main!(benches);
