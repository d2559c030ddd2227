//! When a Will is published, and when not.

use std::time::Duration;

use crate::bench::{Bench, Outcome, each};
use crate::client::Client;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-3.1.2-8"],
        "an end without DISCONNECT publishes the Will",
        published,
    ),
    case(
        &["MQTT-3.1.2-10", "MQTT-3.14.4-3"],
        "DISCONNECT discards the Will",
        discarded,
    ),
    case(
        &["MQTT-3.1.2-10"],
        "a published Will is gone: the next end of the Session publishes none",
        once,
    ),
    case(
        &["MQTT-3.1.2-12"],
        "a connection without a Will publishes none, whatever the one before it had",
        none,
    ),
    case(
        &["MQTT-3.1.2-16"],
        "without Will Retain the Will is live alone",
        not_retained,
    ),
    case(
        &["MQTT-3.1.2-17"],
        "with Will Retain the Will is retained, and RETAIN is 0 in the live copy",
        retained,
    ),
];

fn watcher<'a>(bench: &'a Bench<'a>, topic: &str) -> Outcome<Client<'a>> {
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(topic, 2)])?;
    Ok(watcher)
}

fn published(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = watcher(bench, &topic)?;
    // For each QoS of the Will another end.
    let ends: [(&str, u8, &[u8]); 4] = [
        ("the socket is closed", 0, b""),
        ("the socket is closed, QoS 1", 1, b""),
        ("the socket is closed, QoS 2", 2, b""),
        ("a protocol violation", 1, &[0x36, 0x05, 0, 1, b'a', 0, 1]),
    ];
    let variants = ends
        .into_iter()
        .enumerate()
        .map(|(number, (name, qos, last))| (name, (number, qos, last)));
    each(variants, |(number, qos, last)| {
        let name = format!("w{number}");
        let (mut client, _) = bench.enter(&bench.hello(&name).will(&topic, &name, qos, false))?;
        if !last.is_empty() {
            client.violates(last)?;
        }
        client.drop_connection();
        let message = watcher.delivered(&topic, &name, qos, false)?;
        watcher.acknowledge(&message)
    })
}

/// What was published before cannot come later than this.
fn after_a_while(bench: &Bench) {
    std::thread::sleep(bench.settings.silence.min(Duration::from_secs(2)));
}

fn discarded(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = watcher(bench, &topic)?;
    let (client, _) = bench.enter(&bench.hello("a").will(&topic, "gone", 1, false))?;
    client.leave();
    after_a_while(bench);
    watcher.nothing("no Will")?;
    // Nor does it come back with the Session.
    let hello = bench.hello("b").durable();
    let (client, _) = bench.enter(&hello.clone().will(&topic, "gone", 1, false))?;
    client.leave();
    let (client, _) = bench.enter(&hello)?;
    client.drop_connection();
    after_a_while(bench);
    watcher.nothing("no Will")
}

fn once(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = watcher(bench, &topic)?;
    let hello = bench.hello("a").durable();
    let (client, _) = bench.enter(&hello.clone().will(&topic, "gone", 0, false))?;
    client.drop_connection();
    watcher.delivered(&topic, "gone", 0, false)?;
    let (client, _) = bench.enter(&hello)?;
    client.drop_connection();
    after_a_while(bench);
    watcher.nothing("the Will once")
}

fn none(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = watcher(bench, &topic)?;
    let (client, _) = bench.enter(&bench.hello("a").will(&topic, "gone", 0, false))?;
    client.leave();
    bench.client("a")?.drop_connection();
    bench.client("b")?.drop_connection();
    after_a_while(bench);
    watcher.nothing("no Will")
}

fn not_retained(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = watcher(bench, &topic)?;
    let (client, _) = bench.enter(&bench.hello("a").will(&topic, "gone", 0, false))?;
    client.drop_connection();
    watcher.delivered(&topic, "gone", 0, false)?;
    let mut late = bench.client("late")?;
    late.subscribe(&[(&topic, 0)])?;
    late.nothing("no retained message")
}

fn retained(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = watcher(bench, &topic)?;
    let (client, _) = bench.enter(&bench.hello("a").will(&topic, "gone", 1, true))?;
    client.drop_connection();
    watcher.delivered(&topic, "gone", 1, false)?;
    let mut late = bench.client("late")?;
    late.subscribe(&[(&topic, 1)])?;
    late.delivered(&topic, "gone", 1, true)?;
    Ok(())
}
