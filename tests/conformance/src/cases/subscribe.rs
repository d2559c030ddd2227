//! SUBSCRIBE and UNSUBSCRIBE.

use super::publish::forbidden_topic;
use crate::bench::{Bench, Outcome, each};
use crate::client::Event;
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(&["MQTT-3.8.3-2"], "filters with wildcards", wildcards),
    case(&["MQTT-3.8.3-3"], "SUBSCRIBE without filters", nothing_to_subscribe),
    case(&["MQTT-3.8.3-4"], "requested QoS that are none", requested_qos),
    case(
        &["MQTT-3.8.4-1", "MQTT-3.8.4-2"],
        "SUBACK, with the identifier of the SUBSCRIBE",
        suback,
    ),
    case(
        &["MQTT-2.3.1-7"],
        "SUBACK and UNSUBACK have the identifier, small, large and largest",
        identifiers,
    ),
    case(&["MQTT-3.8.4-3"], "the same filter again with another QoS", replaced),
    case(&["MQTT-3.8.4-4"], "several filters at once, one of them twice", several),
    case(
        &["MQTT-3.8.4-5", "MQTT-3.9.3-1"],
        "one return code for each filter, in order",
        codes,
    ),
    case(
        &["MQTT-3.8.4-6"],
        "all nine pairs of published and granted QoS",
        lower_of_both,
    ),
    case(&["MQTT-3.9.3-2"], "return codes of filters of every kind", known_codes),
    case(
        &["MQTT-3.10.3-2"],
        "UNSUBSCRIBE without filters",
        nothing_to_unsubscribe,
    ),
    case(&["MQTT-3.10.4-1"], "only the filter that is the same goes", exact),
    case(&["MQTT-3.10.4-2"], "nothing new after UNSUBACK", no_more),
    case(
        &["MQTT-3.10.4-3"],
        "a delivery of QoS 2 that was begun is completed",
        completed,
    ),
    case(
        &["MQTT-3.10.4-4"],
        "UNSUBACK, with the identifier of the UNSUBSCRIBE",
        unsuback,
    ),
    case(
        &["MQTT-3.10.4-5"],
        "UNSUBACK where there was no subscription",
        unsuback_for_none,
    ),
    case(&["MQTT-3.10.4-6"], "several filters, one UNSUBACK", several_at_once),
];

fn wildcards(bench: &Bench) -> Outcome {
    let topic = bench.topic("a/b");
    each(
        ["a/+", "+/b", "a/#", "#", "+/+"].map(|rest| (rest, bench.topic(rest))),
        |filter| {
            let mut client = bench.client("a")?;
            if client.subscribe_codes(&[(&filter, 0)])? == [0x80] {
                return Ok(());
            }
            bench.client("p")?.publish(&topic, "x", 1, false)?;
            client.delivered(&topic, "x", 0, false)?;
            client.leave();
            Ok(())
        },
    )
}

fn nothing_to_subscribe(bench: &Bench) -> Outcome {
    bench.client("a")?.violates([0x82, 2, 0, 1])
}

fn requested_qos(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    each([3, 4, 0x80, 0xFC].map(|qos: u8| (format!("{qos:#04x}"), qos)), |qos| {
        bench.client("a")?.violates(subscribe(1, &[(&topic, qos)]))
    })
}

fn suback(bench: &Bench) -> Outcome {
    let mut client = bench.client("a")?;
    for (number, id) in [1, 0x0100, 0xFFFF].into_iter().enumerate() {
        client.send(subscribe(id, &[(&bench.topic(&format!("t{number}")), 0)]));
        client.expect([&[SUBACK, 3], &id.to_be_bytes()[..], &[0]].concat(), "SUBACK")?;
    }
    Ok(())
}

fn identifiers(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    for id in [1, 0x00FF, 0x0100, 0x7FFF, 0xFFFF] {
        client.send(subscribe(id, &[(&topic, 0)]));
        client.acknowledged(SUBACK, id)?;
        client.send(unsubscribe(id, &[&topic]));
        client.acknowledged(UNSUBACK, id)?;
    }
    Ok(())
}

fn replaced(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "kept", 1, true)?;
    each(
        [("a topic", topic.clone()), ("a wildcard", bench.topic("+"))],
        |filter| {
            let mut client = bench.client("a")?;
            for qos in [0, 1, 0] {
                client.subscribe(&[(&filter, qos)])?;
                let message = client.delivered(&topic, "kept", qos, true)?;
                client.acknowledge(&message)?;
                publisher.publish(&topic, "live", 1, false)?;
                let message = client.delivered(&topic, "live", qos, false)?;
                client.acknowledge(&message)?;
                client.nothing("the message once: the subscription is replaced, not added")?;
            }
            client.leave();
            Ok(())
        },
    )
}

fn several(bench: &Bench) -> Outcome {
    let topics = ["a", "b", "c"].map(|rest| bench.topic(rest));
    let mut client = bench.client("a")?;
    let filters = [
        (topics[0].as_str(), 0),
        (&topics[1], 1),
        (&topics[2], 2),
        (&topics[0], 1),
    ];
    client.send(subscribe(5, &filters));
    client.expect([SUBACK, 6, 0, 5, 0, 1, 2, 1], "one SUBACK")?;
    let mut publisher = bench.client("p")?;
    for (topic, qos) in topics.iter().zip([1, 1, 2]) {
        publisher.publish(topic, "x", 2, false)?;
        let message = client.delivered(topic, "x", qos, false)?;
        client.acknowledge(&message)?;
    }
    client.nothing("each message once: the last of two identical filters stands")
}

fn codes(bench: &Bench) -> Outcome {
    let topics: Vec<String> = (0..9).map(|number| bench.topic(&format!("t{number}"))).collect();
    let wanted = [2, 0, 1, 1, 0, 2, 0, 0, 1];
    let filters: Vec<(&str, u8)> = topics.iter().map(String::as_str).zip(wanted).collect();
    bench.client("a")?.subscribe(&filters)
}

fn lower_of_both(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    let pairs = (0..9).map(|pair: u8| {
        (
            format!("published at {}, granted {}", pair / 3, pair % 3),
            (pair / 3, pair % 3),
        )
    });
    each(pairs, |(published, granted)| {
        let mut client = bench.client("a")?;
        client.subscribe(&[(&topic, granted)])?;
        publisher.publish(&topic, "x", published, false)?;
        let message = client.delivered(&topic, "x", published.min(granted), false)?;
        client.acknowledge(&message)?;
        client.leave();
        Ok(())
    })
}

/// `subscribe_codes` accepts the four there are and nothing else.
fn known_codes(bench: &Bench) -> Outcome {
    let topics = ["t", "+", "#", "+/+/#", "/", " ", "ü/日本"].map(|rest| bench.topic(rest));
    let forbidden = forbidden_topic(bench).ok();
    each(
        topics
            .into_iter()
            .chain(forbidden)
            .map(|topic| (bench.show(topic.as_bytes()), topic)),
        |topic| {
            let mut client = bench.client("a")?;
            for qos in 0..=2 {
                client.subscribe_codes(&[(&topic, qos)])?;
            }
            client.leave();
            Ok(())
        },
    )
}

fn nothing_to_unsubscribe(bench: &Bench) -> Outcome {
    bench.client("a")?.violates([0xA2, 2, 0, 1])
}

/// Two subscriptions; what is unsubscribed, and who then gets a message on `b` and one on `c`.
fn exact(bench: &Bench) -> Outcome {
    let (topic, other, wildcard) = (bench.topic("b"), bench.topic("c"), bench.topic("+"));
    let variants: [(&str, &[&str]); 7] = [
        ("+", &["b"]),
        ("b", &["b", "c"]),
        ("#", &["b", "c"]),
        ("B", &["b", "c"]),
        ("b/", &["b", "c"]),
        ("b/#", &["b", "c"]),
        ("c", &["b", "c"]),
    ];
    each(
        variants.map(|(gone, wanted)| (format!("UNSUBSCRIBE {gone}"), (gone, wanted))),
        |(gone, wanted)| {
            let mut client = bench.client("a")?;
            client.subscribe(&[(&topic, 0), (&wildcard, 0)])?;
            client.unsubscribe(&[&bench.topic(gone)])?;
            let mut publisher = bench.client("p")?;
            publisher.publish(&topic, "b", 1, false)?;
            publisher.publish(&other, "c", 1, false)?;
            let mut got = Vec::new();
            let within = if wanted.is_empty() {
                bench.settings.silence
            } else {
                bench.settings.timeout
            };
            let mut wait = within;
            while let Event::Packet(came) = client.event(wait)? {
                let payload = came
                    .message()
                    .map(|message| String::from_utf8_lossy(&message.payload).into_owned());
                got.extend(payload);
                if wanted.iter().all(|payload| got.iter().any(|came| came == payload)) {
                    wait = bench.settings.silence;
                }
            }
            // A message that both match may come twice.
            got.sort();
            got.dedup();
            if got != wanted {
                return client.failed(format!("messages on {wanted:?}"), format!("messages on {got:?}"));
            }
            client.leave();
            Ok(())
        },
    )
}

fn no_more(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 1)])?;
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "x", 1, false)?;
    let message = client.delivered(&topic, "x", 1, false)?;
    client.acknowledge(&message)?;
    client.unsubscribe(&[&topic])?;
    for qos in 0..=2 {
        publisher.publish(&topic, "late", qos, false)?;
    }
    client.nothing("no message after UNSUBACK")
}

fn completed(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 2)])?;
    bench.client("p")?.publish(&topic, "x", 2, false)?;
    let message = client.delivered(&topic, "x", 2, false)?;
    client.unsubscribe(&[&topic])?;
    client.send(acknowledgement(PUBREC, message.id));
    client.expect(acknowledgement(PUBREL | 2, message.id), "PUBREL")?;
    client.send(acknowledgement(PUBCOMP, message.id));
    client.nothing("nothing after PUBCOMP")
}

fn unsuback(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    for id in [1, 0x0100, 0xFFFF] {
        client.subscribe(&[(&topic, 0)])?;
        client.send(unsubscribe(id, &[&topic]));
        client.expect(acknowledgement(UNSUBACK, id), "UNSUBACK")?;
    }
    Ok(())
}

fn unsuback_for_none(bench: &Bench) -> Outcome {
    let mut client = bench.client("a")?;
    client.send(unsubscribe(3, &[&bench.topic("never")]));
    client.expect(acknowledgement(UNSUBACK, 3), "UNSUBACK")
}

fn several_at_once(bench: &Bench) -> Outcome {
    let (one, other, held) = (bench.topic("a"), bench.topic("b"), bench.topic("c"));
    let mut client = bench.client("a")?;
    client.subscribe(&[(&one, 0), (&other, 0), (&held, 0)])?;
    client.send(unsubscribe(9, &[&one, &bench.topic("never"), &other]));
    client.expect(acknowledgement(UNSUBACK, 9), "one UNSUBACK")?;
    let mut publisher = bench.client("p")?;
    publisher.publish(&one, "x", 1, false)?;
    publisher.publish(&other, "x", 1, false)?;
    publisher.publish(&held, "held", 1, false)?;
    client.delivered(&held, "held", 0, false)?;
    client.nothing("nothing on the two that are unsubscribed")
}
