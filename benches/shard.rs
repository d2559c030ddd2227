//! What a message costs inside the heart: from a frame in a read buffer to the frame in an outbox, and what is rarer.
//!
//! `cargo bench --bench shard`. Every case drains the outputs and takes the outboxes as the shell does, so the figures are
//! those of whole turns.

mod scenarios;
mod timed;

use criterion::{Criterion, criterion_group, criterion_main};
use timed::ThreadTime;

fn shard(criterion: &mut Criterion<ThreadTime>) {
    scenarios::shard::scenarios(criterion);
}

criterion_group! {
    name = benches;
    config = timed::criterion();
    targets = shard
}
criterion_main!(benches);
