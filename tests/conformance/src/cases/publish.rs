//! PUBLISH: what it may look like, what answers it, and what subscribers see of it.

use crate::bench::{Bench, Outcome, each, skip};
use crate::client::Event;
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-3.3.1-2"],
        "QoS 0 comes with DUP 0, whatever the publisher's DUP was",
        no_dup_at_qos_0,
    ),
    case(
        &["MQTT-3.3.1-3"],
        "a first delivery has DUP 0, also of what came with DUP 1",
        dup_is_not_passed_on,
    ),
    case(&["MQTT-3.3.1-4"], "both QoS bits set", qos_3),
    case(
        &["MQTT-3.3.2-2", "MQTT-4.7.1-1"],
        "wildcards in a topic name",
        wildcards,
    ),
    case(
        &["MQTT-3.3.2-3"],
        "the topic name of a delivery is the one published to",
        topic_names,
    ),
    case(
        &["MQTT-3.3.4-1"],
        "the answer to each QoS, with subscribers and without",
        answers,
    ),
    case(
        &["MQTT-2.3.1-6"],
        "acknowledgements have the identifier, small, large and largest",
        identifiers,
    ),
    case(
        &["MQTT-3.3.5-1"],
        "overlapping subscriptions of QoS 0, 1 and 2, in any order",
        overlapping,
    ),
    case(&["MQTT-3.3.5-2"], "a PUBLISH to a forbidden topic", forbidden),
    case(
        &["MQTT-4.3.1-1"],
        "QoS 0 is delivered at QoS 0, DUP 0, without an identifier",
        at_most_once,
    ),
];

fn no_dup_at_qos_0(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 0)])?;
    let mut publisher = bench.client("p")?;
    for (number, flags) in [0, 2, 10].into_iter().enumerate() {
        publisher.send(publish(flags, &topic, number as u16 + 1, [b'a' + number as u8]));
        client.delivered(&topic, [b'a' + number as u8], 0, false)?;
    }
    Ok(())
}

fn dup_is_not_passed_on(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 2)])?;
    let mut publisher = bench.client("p")?;
    publisher.send(publish(8 | 2, &topic, 1, "one"));
    publisher.acknowledged(PUBACK, 1)?;
    client.delivered(&topic, "one", 1, false)?;
    publisher.send(publish(8 | 4, &topic, 2, "two"));
    publisher.acknowledged(PUBREC, 2)?;
    publisher.send(acknowledgement(PUBREL | 2, 2));
    publisher.acknowledged(PUBCOMP, 2)?;
    client.delivered(&topic, "two", 2, false)?;
    Ok(())
}

fn qos_3(bench: &Bench) -> Outcome {
    each([6, 7, 14].map(|flags: u8| (format!("flags {flags}"), flags)), |flags| {
        bench.client("a")?.violates(publish(flags, bench.topic("t"), 1, "x"))
    })
}

fn wildcards(bench: &Bench) -> Outcome {
    let all = bench.topic("#");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&all, 0)])?;
    each(
        ["a/+", "a/#", "+/a", "a+", "#"].map(|rest| (rest, bench.topic(rest))),
        |topic| {
            bench.client("a")?.violates(publish(2, topic, 1, "x"))?;
            watcher.nothing("nobody gets a message on a topic with wildcards")
        },
    )
}

fn topic_names(bench: &Bench) -> Outcome {
    let filters = [
        bench.topic("a/b"),
        bench.topic("c/+"),
        bench.topic("d/#"),
        bench.topic("+/e/+/#"),
    ];
    let mut client = bench.client("a")?;
    for filter in &filters {
        client.subscribe(&[(filter, 0)])?;
    }
    let mut publisher = bench.client("p")?;
    for rest in ["a/b", "c/x", "c/", "d", "d/x/y", "Q/e/R", "Q/e/R/s/ /ü"] {
        let topic = bench.topic(rest);
        publisher.publish(&topic, rest, 1, false)?;
        client.delivered(&topic, rest, 0, false)?;
    }
    for rest in ["a", "a/b/c", "c", "c/x/y", "e/x"] {
        publisher.publish(&bench.topic(rest), rest, 1, false)?;
    }
    client.nothing("nothing for topics that no filter matches")
}

fn answers(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    let mut play = |name: &str| -> Outcome {
        publisher.send(publish(0, &topic, 0, name));
        publisher.nothing("no answer to QoS 0")?;
        publisher.send(publish(2, &topic, 11, name));
        publisher.expect(acknowledgement(PUBACK, 11), "PUBACK")?;
        publisher.send(publish(4, &topic, 12, name));
        publisher.expect(acknowledgement(PUBREC, 12), "PUBREC")?;
        publisher.send(acknowledgement(PUBREL | 2, 12));
        publisher.expect(acknowledgement(PUBCOMP, 12), "PUBCOMP")
    };
    play("nobody")?;
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 0)])?;
    play("somebody")
}

fn identifiers(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 2)])?;
    let mut publisher = bench.client("p")?;
    for id in [1, 0x00FF, 0x0100, 0x7FFF, 0xFFFF] {
        publisher.send(publish(2, &topic, id, "one"));
        publisher.expect(acknowledgement(PUBACK, id), "PUBACK")?;
        let message = client.delivered(&topic, "one", 1, false)?;
        client.acknowledge(&message)?;
        publisher.send(publish(4, &topic, id, "two"));
        publisher.expect(acknowledgement(PUBREC, id), "PUBREC")?;
        publisher.send(acknowledgement(PUBREL | 2, id));
        publisher.expect(acknowledgement(PUBCOMP, id), "PUBCOMP")?;
        let message = client.delivered(&topic, "two", 2, false)?;
        client.send(acknowledgement(PUBREC, message.id));
        client.expect(acknowledgement(PUBREL | 2, message.id), "PUBREL")?;
        client.send(acknowledgement(PUBCOMP, message.id));
    }
    Ok(())
}

/// One delivery at the highest QoS, or one for each subscription at its own (section 3.3.5): the highest is among them.
fn overlapping(bench: &Bench) -> Outcome {
    let topic = bench.topic("t/u");
    let filters = [topic.clone(), bench.topic("t/+"), bench.topic("t/#")];
    let orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]];
    let variants = orders.map(|order: [u8; 3]| (format!("QoS {}, {} and {}", order[0], order[1], order[2]), order));
    each(variants, |order| {
        let mut client = bench.client("a")?;
        for (filter, qos) in filters.iter().zip(order) {
            client.subscribe(&[(filter, qos)])?;
        }
        bench.client("p")?.publish(&topic, "x", 2, false)?;
        let mut got = Vec::new();
        let expected = "one delivery at QoS 2, or one for each subscription at its own QoS";
        loop {
            let within = if got.is_empty() {
                bench.settings.timeout
            } else {
                bench.settings.silence
            };
            match client.event(within)? {
                Event::Packet(came) if came.kind() == PUBLISH => got.push(came.first >> 1 & 3),
                Event::Silence if !got.is_empty() => break,
                event => return client.unexpected(expected, &event),
            }
        }
        got.sort();
        if got != [2] && got != [0, 1, 2] {
            return client.failed(expected, format!("deliveries at QoS {got:?}"));
        }
        client.leave();
        Ok(())
    })
}

/// A topic that is forbidden here, if the flags tell of one.
pub fn forbidden_topic(bench: &Bench) -> Outcome<String> {
    match &bench.settings.forbidden_topic {
        Some(topic) => Ok(topic.clone()),
        None if !bench.settings.topic_prefix.is_empty() => Ok(format!("forbidden/{}", bench.topic("t"))),
        None => skip("no topic is known to be forbidden; --forbidden-topic names one"),
    }
}

fn forbidden(bench: &Bench) -> Outcome {
    let topic = forbidden_topic(bench)?;
    each([("QoS 1", (1, PUBACK)), ("QoS 2", (2, PUBREC))], |(qos, answer)| {
        let mut client = bench.client("a")?;
        client.send(publish(qos << 1, &topic, 5, "x"));
        match client.receive()? {
            Event::Closed => Ok(()),
            Event::Packet(came) if came.kind() == answer && came.id() == 5 => Ok(()),
            event => client.unexpected(format!("{} 5, or the end of the connection", name(answer)), &event),
        }
    })
}

fn at_most_once(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 2)])?;
    bench.client("p")?.publish(&topic, "x", 0, false)?;
    client.delivered(&topic, "x", 0, false)?;
    client.nothing("the message once")
}
