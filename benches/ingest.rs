//! A device's message on its way to a stored value, with a million devices registered.
//!
//! `cargo bench --bench ingest`. Times are the thread's CPU time. Before the timings it prints the heap a device takes and the
//! largest request to the allocator on the way to a million (what one registration at most moves).

#[path = "../tests/memory/counting.rs"]
mod counting;

use std::hint::black_box;
use std::time::Duration;

use counting::{held_bytes, largest_request_bytes};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};
use skein::ingest::payload::value;
use skein::ingest::topic::{Format, purpose};
use skein::ingest::trigger;
use skein::registry::access::AccountId;
use skein::registry::channel::ChannelId;
use skein::registry::devices::{Devices, Entry};
use skein::registry::event::{Event, Operator};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const KEY: [u64; 4] = [11, 22, 33, 44];
const DEVICES: usize = 1_000_000;
const ACCOUNT: AccountId = AccountId(1);
/// 64 bytes.
const PAYLOAD: &[u8] = br#"{"temp":21.5,"rh":48,"battery":3.71,"door":"open","uptime":9021}"#;

/// The CPU time of this thread.
struct ThreadTime;

fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Measurement for ThreadTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        thread_time()
    }

    fn end(&self, start: Duration) -> Duration {
        thread_time() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

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

/// What one dependent read of a cold cache line takes on this host, to read the other figures by.
fn floor(c: &mut Criterion<ThreadTime>) {
    const LINES: usize = 1 << 20;
    let mut lines = vec![[0u64; 8]; LINES];
    for (at, line) in lines.iter_mut().enumerate() {
        // A full cycle: the multiplier is 1 modulo 4, the step odd, the length a power of two.
        line[0] = ((at * 0x9E37_79B5 + 0x1_2345) % LINES) as u64;
    }
    let mut at = 0;
    c.bench_function("floor/one dependent line of 64 MiB", |b| {
        b.iter(|| {
            at = lines[at as usize][0];
            at
        })
    });
}

fn devices(c: &mut Criterion<ThreadTime>) {
    let mut id = Id(*b"DEV0000000");
    let before = held_bytes();
    let mut devices = Devices::new(KEY);
    largest_request_bytes();
    let entry = Entry {
        is_enabled: true,
        channel: ChannelId::new(3),
    };
    let started = thread_time();
    for device in 0..DEVICES {
        devices.insert(ACCOUNT, id.of(device), entry);
    }
    let (taken, largest) = (thread_time() - started, largest_request_bytes());
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

fn message(c: &mut Criterion<ThreadTime>) {
    assert_eq!(PAYLOAD.len(), 64);
    c.bench_function("topic/purpose", |b| {
        b.iter(|| purpose(black_box("json/DEV0000017/inlet"), black_box(false)).is_ok())
    });
    let mut out = String::with_capacity(1024);
    let mut payload = |name: &str, format: Format, payload: &[u8]| {
        c.bench_function(&format!("payload/{name}"), |b| {
            b.iter(|| {
                out.clear();
                value(format, black_box(payload), &mut out).is_ok()
            })
        });
    };
    payload("JSON of 64 bytes", Format::Json, PAYLOAD);
    payload("a number", Format::Json, b"23.5");
    payload("64 bytes of binary", Format::Binary, PAYLOAD);
    payload("the v1 form", Format::V1, b"v=1.5&v2=ok&v3=7");
    payload(
        "JSON with a name twice",
        Format::Json,
        br#"{"temp":21.5,"rh":48,"temp":22}"#,
    );

    let event = Event {
        source: "uptime".to_owned(),
        operator: Operator::Less,
        threshold: "30".to_owned(),
        ..Event::default()
    };
    let stored = std::str::from_utf8(PAYLOAD).expect("text");
    c.bench_function("trigger/the last field of 64 bytes", |b| {
        b.iter(|| trigger::matches(&event, black_box(stored)))
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(ThreadTime)
        .warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = floor, devices, message
}
criterion_main!(benches);
