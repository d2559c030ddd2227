//! What a parcel between cores costs: the ring on one thread, the whole way through two threads, the bell.
//!
//! `cargo bench --bench mesh`. The parcel is what the broker's is about: a boxed batch and its address, here 24 bytes.

mod scenarios;
mod timed;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rustix::event::{PollFd, PollFlags, poll};
use scenarios::mesh::{Parcel, pair};
use skein::mesh::{Bell, Endpoint, Lane, Mesh};
use timed::ThreadTime;

fn one_thread(criterion: &mut Criterion<ThreadTime>) {
    scenarios::mesh::scenarios(criterion);
}

fn idle_look(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh/idle look");
    for cores in [2usize, 64, 256] {
        group.bench_function(format!("{cores} cores"), |b| {
            let endpoints = Mesh::build::<Parcel>(cores, 1).expect("a bell for each");
            b.iter(|| black_box(&endpoints[0]).is_empty());
        });
    }
    group.finish();
}

fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh/two threads");
    let end: Parcel = [u64::MAX; 3];
    group.bench_function("ping and pong, both awake", |b| {
        let (mut here, mut there) = pair(16);
        let echo = std::thread::spawn(move || {
            loop {
                match there.pop_any(Lane::ToOwner) {
                    Some((_, parcel)) if parcel == end => return,
                    Some((from, parcel)) => {
                        there.push(from, Lane::ToHome, parcel).expect("one parcel at a time");
                        there.ring_bells();
                    }
                    None => std::hint::spin_loop(),
                }
            }
        });
        b.iter(|| {
            here.push(1, Lane::ToOwner, [1, 2, 3]).expect("one parcel at a time");
            here.ring_bells();
            loop {
                if let Some(parcel) = here.pop_any(Lane::ToHome) {
                    break parcel;
                }
                std::hint::spin_loop();
            }
        });
        here.push(1, Lane::ToOwner, end).expect("the ring is empty");
        here.ring_bells();
        echo.join().expect("the echo ends");
    });
    group.bench_function("ping and pong, both asleep", |b| {
        let (mut here, mut there) = pair(16);
        let echo = std::thread::spawn(move || {
            loop {
                match wait_for(&mut there, Lane::ToOwner) {
                    (_, parcel) if parcel == end => return,
                    (from, parcel) => {
                        there.push(from, Lane::ToHome, parcel).expect("one parcel at a time");
                        there.ring_bells();
                    }
                }
            }
        });
        b.iter(|| {
            here.push(1, Lane::ToOwner, [1, 2, 3]).expect("one parcel at a time");
            here.ring_bells();
            wait_for(&mut here, Lane::ToHome)
        });
        here.push(1, Lane::ToOwner, end).expect("the ring is empty");
        here.ring_bells();
        echo.join().expect("the echo ends");
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("stream in batches of 64, the receiver sleeps when it may", |b| {
        let (mut here, mut there) = pair(256);
        let sink = std::thread::spawn(move || {
            while wait_for(&mut there, Lane::ToOwner).1 != end {
                there.ring_bells();
            }
        });
        let send = |here: &mut Endpoint<Parcel>, parcel| {
            while here.push(1, Lane::ToOwner, parcel).is_err() {
                here.ring_bells();
                if here.prepare_sleep(&[Lane::ToHome]) {
                    sleep(here);
                }
            }
        };
        b.iter(|| {
            for n in 0..64 {
                send(&mut here, [n, 2, 3]);
            }
            here.ring_bells();
        });
        send(&mut here, end);
        here.ring_bells();
        sink.join().expect("the sink ends");
    });
    group.finish();
}

fn wait_for(endpoint: &mut Endpoint<Parcel>, lane: Lane) -> (u16, Parcel) {
    loop {
        if let Some(popped) = endpoint.pop_any(lane) {
            return popped;
        }
        endpoint.ring_bells();
        if endpoint.prepare_sleep(&[lane]) {
            sleep(endpoint);
        }
    }
}

fn sleep(endpoint: &Endpoint<Parcel>) {
    poll(&mut [PollFd::new(&**endpoint.bell(), PollFlags::IN)], None).expect("a bell can be waited for");
    endpoint.bell().woken();
}

fn bell(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh/bell");
    let bell = Bell::new().expect("a bell");
    group.bench_function("ring, the core awake", |b| b.iter(|| black_box(&bell).ring()));
    group.bench_function("ring, the core asleep, and woken", |b| {
        b.iter_batched(
            || bell.prepare_sleep(),
            |()| {
                bell.ring();
                bell.woken()
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("prepare_sleep and cancel_sleep", |b| {
        b.iter(|| {
            bell.prepare_sleep();
            bell.cancel_sleep();
        });
    });
    group.finish();
}

criterion_group! {
    name = one;
    config = timed::criterion();
    targets = one_thread
}
criterion_group!(benches, idle_look, two_threads, bell);
criterion_main!(one, benches);
