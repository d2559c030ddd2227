//! Times what stands between a socket and MQTT over WebSocket: frames taken apart in place, their headers, the upgrade.
//!
//! `cargo bench --bench websocket`. Per frame; `copy` is the floor of whatever moves bytes at all.

mod scenarios;
mod timed;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scenarios::websocket::{LARGE_BYTES, masked_frames};
use timed::ThreadTime;

fn websocket(criterion: &mut Criterion<ThreadTime>) {
    scenarios::websocket::scenarios(criterion);
    let frames = masked_frames(LARGE_BYTES, 1);
    let mut buffer = frames.clone();
    let mut group = criterion.benchmark_group("websocket");
    group.throughput(Throughput::Elements(1));
    group.bench_function("copy 1 frame of 60,000 bytes", |b| {
        b.iter(|| black_box(&mut buffer).copy_from_slice(black_box(&frames)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = timed::criterion();
    targets = websocket
}
criterion_main!(benches);
