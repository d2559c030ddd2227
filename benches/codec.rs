//! Times layer 0: frame + decode and encode of the packets on a message's path, and filter matching.
//!
//! `cargo bench --bench codec`. Bound: frame + decode of a PUBLISH with a 64-byte payload takes at most 25 ns.

mod scenarios;
mod timed;

use criterion::{Criterion, criterion_group, criterion_main};
use timed::ThreadTime;

fn codec(criterion: &mut Criterion<ThreadTime>) {
    scenarios::codec::scenarios(criterion);
}

criterion_group! {
    name = benches;
    config = timed::criterion();
    targets = codec
}
criterion_main!(benches);
