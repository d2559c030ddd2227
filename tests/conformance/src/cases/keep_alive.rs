//! Silence, and PINGREQ.

use std::time::{Duration, Instant};

use crate::bench::{Bench, Outcome};
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-3.1.2-24"],
        "a silent client is disconnected, and its Will published",
        silence_ends,
    ),
    case(
        &["MQTT-3.1.2-24"],
        "whatever is sent counts, not PINGREQ alone",
        packets_count,
    ),
    case(&["MQTT-3.12.4-1"], "PINGREQ gets PINGRESP, several get several", ping),
];

const KEEP_ALIVE_S: u16 = 2;

/// A Server may close sooner than it must (section 3.1.2.10), and looks at its clocks when it looks: one timeout late is in time.
fn silence_ends(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&topic, 0)])?;
    let (mut client, _) = bench.enter(&bench.hello("a").keep_alive(KEEP_ALIVE_S).will(&topic, "gone", 0, false))?;
    let within = Duration::from_secs(u64::from(KEEP_ALIVE_S) * 3 / 2) + bench.settings.timeout;
    let expected = format!(
        "the connection is closed after {} s of silence",
        f32::from(KEEP_ALIVE_S) * 1.5
    );
    match client.event(within)? {
        crate::client::Event::Closed => {}
        event => return client.unexpected(expected, &event),
    }
    watcher.delivered(&topic, "gone", 0, false)?;
    Ok(())
}

fn packets_count(bench: &Bench) -> Outcome {
    let (mut client, _) = bench.enter(&bench.hello("a").keep_alive(3))?;
    let topic = bench.topic("t");
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(5500) {
        client.send(publish(0, &topic, 0, "x"));
        std::thread::sleep(Duration::from_millis(500));
    }
    client.pings()
}

fn ping(bench: &Bench) -> Outcome {
    let mut client = bench.client("a")?;
    client.send(PINGREQ);
    client.expect([PINGRESP, 0], "PINGRESP")?;
    client.send(PINGREQ.repeat(3));
    for _ in 0..3 {
        client.expect([PINGRESP, 0], "PINGRESP")?;
    }
    client.nothing("nothing after three PINGRESP")
}
