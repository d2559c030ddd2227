//! RETAIN.

use crate::bench::{Bench, Outcome, each};
use crate::client::Client;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(&["MQTT-3.3.1-5"], "stored with its QoS", stored),
    case(
        &["MQTT-3.3.1-6"],
        "the last of each topic, through any filter",
        last_of_each,
    ),
    case(
        &["MQTT-3.3.1-7"],
        "QoS 0 after QoS 1: the old one never comes again",
        qos_0_discards,
    ),
    case(&["MQTT-3.3.1-8"], "a new subscription sees RETAIN 1", flag_for_new),
    case(
        &["MQTT-3.3.1-9"],
        "an established subscription sees RETAIN 0",
        flag_for_established,
    ),
    case(&["MQTT-3.3.1-10"], "an empty payload is delivered and removes", removed),
    case(
        &["MQTT-3.3.1-11"],
        "an empty payload is not stored",
        empty_is_not_stored,
    ),
    case(
        &["MQTT-3.3.1-12"],
        "RETAIN 0 leaves what is retained as it is",
        untouched,
    ),
];

/// A new client with this filter at QoS 2.
fn reader<'a>(bench: &'a Bench<'a>, filter: &str) -> Outcome<Client<'a>> {
    let mut client = bench.client("r")?;
    client.subscribe(&[(filter, 2)])?;
    Ok(client)
}

fn stored(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    each([1, 2].map(|qos: u8| (format!("QoS {qos}"), qos)), |qos| {
        publisher.publish(&topic, "kept", qos, true)?;
        // At the lower of the two, as any delivery.
        for granted in 0..=2 {
            let mut client = bench.client("r")?;
            client.subscribe(&[(&topic, granted)])?;
            let message = client.delivered(&topic, "kept", granted.min(qos), true)?;
            client.acknowledge(&message)?;
            client.leave();
        }
        Ok(())
    })
}

fn last_of_each(bench: &Bench) -> Outcome {
    let mut publisher = bench.client("p")?;
    for rest in ["t/a", "t/b", "t/c/d"] {
        publisher.publish(&bench.topic(rest), "old", 1, true)?;
        publisher.publish(&bench.topic(rest), rest, 1, true)?;
    }
    let variants: [(&str, &[&str]); 5] = [
        ("t/a", &["t/a"]),
        ("t/+", &["t/a", "t/b"]),
        ("t/#", &["t/a", "t/b", "t/c/d"]),
        ("+/c/#", &["t/c/d"]),
        ("t", &[]),
    ];
    each(
        variants.map(|(filter, wanted)| (filter, (filter, wanted))),
        |(filter, wanted)| {
            let mut client = reader(bench, &bench.topic(filter))?;
            let mut got = Vec::new();
            for _ in wanted {
                let message = client.message("a retained message for each topic that matches")?;
                client.acknowledge(&message)?;
                got.push((message.topic, message.payload));
            }
            got.sort();
            let wanted: Vec<_> = wanted
                .iter()
                .map(|rest| (bench.topic(rest), rest.as_bytes().to_vec()))
                .collect();
            if got != wanted {
                let shown = |list: &[(String, Vec<u8>)]| {
                    let words = list
                        .iter()
                        .map(|(topic, payload)| format!("{} {}", bench.show(topic.as_bytes()), bench.show(payload)));
                    words.collect::<Vec<_>>().join(", ")
                };
                return client.failed(shown(&wanted), shown(&got));
            }
            client.nothing("one retained message for each topic")?;
            client.leave();
            Ok(())
        },
    )
}

/// It should be stored in the old one's place, but need not.
fn qos_0_discards(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "old", 1, true)?;
    publisher.publish(&topic, "new", 0, true)?;
    publisher.pings()?;
    let mut client = reader(bench, &topic)?;
    if let crate::client::Event::Packet(came) = client.event(bench.settings.silence)? {
        match came.message() {
            Ok(message) if message.payload == b"new" && message.qos == 0 && message.retain => {}
            _ => return client.unexpected("the new message, or none", &crate::client::Event::Packet(came)),
        }
    }
    client.nothing("the new message, or none")
}

fn flag_for_new(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    bench.client("p")?.publish(&topic, "kept", 1, true)?;
    for filter in [topic.clone(), bench.topic("+"), bench.topic("#")] {
        let mut client = reader(bench, &filter)?;
        client.delivered(&topic, "kept", 1, true)?;
        client.leave();
    }
    Ok(())
}

fn flag_for_established(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = reader(bench, &topic)?;
    let mut publisher = bench.client("p")?;
    for qos in 0..=2 {
        publisher.publish(&topic, "kept", qos, true)?;
        let message = client.delivered(&topic, "kept", qos, false)?;
        client.acknowledge(&message)?;
    }
    Ok(())
}

fn removed(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "kept", 1, true)?;
    let mut client = reader(bench, &topic)?;
    let message = client.delivered(&topic, "kept", 1, true)?;
    client.acknowledge(&message)?;
    publisher.publish(&topic, "", 1, true)?;
    client.delivered(&topic, "", 1, false)?;
    let mut late = bench.client("late")?;
    late.subscribe(&[(&topic, 1)])?;
    late.nothing("no retained message")
}

fn empty_is_not_stored(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    for qos in 0..=2 {
        publisher.publish(&topic, "", qos, true)?;
    }
    publisher.pings()?;
    reader(bench, &topic)?.nothing("no retained message")
}

fn untouched(bench: &Bench) -> Outcome {
    let (topic, other) = (bench.topic("t"), bench.topic("u"));
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "kept", 1, true)?;
    publisher.publish(&topic, "live", 1, false)?;
    publisher.publish(&topic, "", 1, false)?;
    publisher.publish(&other, "live", 1, false)?;
    let mut client = reader(bench, &bench.topic("+"))?;
    client.delivered(&topic, "kept", 1, true)?;
    client.nothing("the one message that was retained")
}
