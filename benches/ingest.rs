//! A device's message on its way to a stored value, with a million devices registered.
//!
//! `cargo bench --bench ingest`. Times are the thread's CPU time. Before the timings it prints the heap a device takes and the
//! largest request to the allocator on the way to a million (what one registration at most moves).

#[path = "../tests/memory/counting.rs"]
mod counting;
mod scenarios;
mod timed;

use std::hint::black_box;

use counting::{held_bytes, largest_request_bytes};
use criterion::{Criterion, criterion_group, criterion_main};
use scenarios::HASH_KEY;
use skein::registry::access::AccountId;
use skein::registry::channel::ChannelId;
use skein::registry::devices::{Devices, Entry};
use timed::{ThreadInstant, ThreadTime};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const DEVICES: usize = 1_000_000;
const ACCOUNT: AccountId = AccountId(1);

/// An id is written into the same few bytes each time, as it lies in a read buffer: only the table is cold.
struct Id([u8; 10]);

impl Id {
    fn of(&mut self, device: usize) -> &str {
        let mut rest = device;
        for digit in self.0[3..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        std::str::from_utf8(&self.0).expect("digits")
    }
}

fn devices(c: &mut Criterion<ThreadTime>) {
    let mut id = Id(*b"DEV0000000");
    let before = held_bytes();
    let mut devices = Devices::new(HASH_KEY);
    largest_request_bytes();
    let entry = Entry {
        is_enabled: true,
        channel: ChannelId::new(3),
    };
    let started = ThreadInstant::now();
    for device in 0..DEVICES {
        devices.insert(ACCOUNT, id.of(device), entry);
    }
    let (taken, largest) = (started.elapsed(), largest_request_bytes());
    let each = (held_bytes() - before + size_of::<Devices>()) as f64 / DEVICES as f64;
    println!("devices: {DEVICES}, bytes of memory each: {each:.1}");
    println!(
        "registered from none: {:?} each, largest request {largest} bytes",
        taken / DEVICES as u32
    );

    let mut group = c.benchmark_group("devices");
    group.bench_function("get the same of 1M", |b| {
        b.iter(|| devices.get(ACCOUNT, black_box(id.of(4_711))))
    });
    // The next id depends on what the lookup before found, so that no two are under way at once.
    let mut at = 0;
    group.bench_function("get any of 1M", |b| {
        b.iter(|| {
            let found = devices.get(ACCOUNT, id.of(at));
            at = (at * 421 + 54_773 + usize::from(found.is_none())) % DEVICES;
            found
        })
    });
    group.bench_function("get one that is not there, of 1M", |b| {
        b.iter(|| {
            let found = devices.get(ACCOUNT, id.of(DEVICES + at));
            at = (at * 421 + 54_773 + usize::from(found.is_some())) % DEVICES;
            found
        })
    });
    group.bench_function("write an id", |b| {
        b.iter(|| {
            at = (at * 421 + 54_773 + id.of(at).len()) % DEVICES;
            at
        })
    });
    group.finish();
}

fn message(criterion: &mut Criterion<ThreadTime>) {
    scenarios::ingest::scenarios(criterion);
}

criterion_group! {
    name = benches;
    config = timed::criterion();
    targets = timed::floor, devices, message
}
criterion_main!(benches);
