//! The flows of QoS 1 and 2, what is sent again, and in which order.

use std::collections::BTreeSet;

use crate::bench::{Bench, Outcome, each, skip};
use crate::client::{Client, Event};
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-2.3.1-4"],
        "identifiers of deliveries in flight differ, and stay when sent again",
        unused_identifiers,
    ),
    case(
        &["MQTT-3.3.1-1"],
        "an unacknowledged PUBLISH comes again with DUP 1",
        again_with_dup,
    ),
    case(&["MQTT-4.3.2-1"], "QoS 1 as sender", at_least_once_out),
    case(&["MQTT-4.3.2-2"], "QoS 1 as receiver", at_least_once_in),
    case(&["MQTT-4.3.3-1"], "QoS 2 as sender", exactly_once_out),
    case(&["MQTT-4.3.3-2"], "QoS 2 as receiver", exactly_once_in),
    case(
        &["MQTT-4.3.3-2"],
        "QoS 2 as receiver, across two connections",
        exactly_once_across,
    ),
    case(
        &["MQTT-4.4.0-1"],
        "PUBLISH and PUBREL are sent again with their identifiers",
        sent_again,
    ),
    case(
        &["MQTT-4.6.0-1"],
        "what is sent again comes in its order",
        again_in_order,
    ),
    case(&["MQTT-4.6.0-2"], "PUBACKs of a topic come in order", pubacks_in_order),
    case(&["MQTT-4.6.0-3"], "PUBRECs of a topic come in order", pubrecs_in_order),
    case(
        &["MQTT-4.6.0-4"],
        "PUBRELs come in the order of the PUBRECs",
        pubrels_in_order,
    ),
    case(
        &["MQTT-4.6.0-5", "MQTT-4.6.0-6"],
        "numbered messages arrive in order, at each QoS, live and after being away",
        in_order,
    ),
];

/// A durable Session that holds `count` deliveries of this QoS, unacknowledged. Some brokers send only so many at once: the
/// first two are waited for, of the rest those that come are taken.
fn in_flight<'a>(bench: &'a Bench<'a>, qos: u8, count: u8) -> Outcome<(Client<'a>, Vec<Message>)> {
    let topic = bench.topic("t");
    let (mut client, _) = bench.enter(&bench.hello("a").durable())?;
    client.subscribe(&[(&topic, qos)])?;
    let mut publisher = bench.client("p")?;
    for number in 0..count {
        publisher.publish(&topic, [number], qos, false)?;
    }
    let mut messages = Vec::new();
    while messages.len() < usize::from(count) {
        let within = if messages.len() < 2 {
            bench.settings.timeout
        } else {
            bench.settings.silence
        };
        match client.event(within)? {
            Event::Packet(came) if came.kind() == PUBLISH => messages.extend(came.message()),
            Event::Silence if !messages.is_empty() => break,
            event => return client.unexpected("deliveries", &event),
        }
    }
    Ok((client, messages))
}

fn back<'a>(bench: &'a Bench<'a>) -> Outcome<Client<'a>> {
    Ok(bench.enter(&bench.hello("a").durable())?.0)
}

fn unused_identifiers(bench: &Bench) -> Outcome {
    let (client, messages) = in_flight(bench, 1, 10)?;
    let ids: BTreeSet<u16> = messages.iter().map(|message| message.id).collect();
    if ids.len() < messages.len() {
        let all: Vec<u16> = messages.iter().map(|message| message.id).collect();
        return client.failed(
            "a Packet Identifier of its own for each delivery in flight",
            format!("identifiers {all:?}"),
        );
    }
    client.drop_connection();
    let mut client = back(bench)?;
    for first in &messages {
        let again = client.message("the deliveries again")?;
        if (again.id, &again.payload) != (first.id, &first.payload) {
            let expected = format!("payload {} with identifier {}", bench.show(&first.payload), first.id);
            return client.failed(
                expected,
                format!("payload {} with identifier {}", bench.show(&again.payload), again.id),
            );
        }
    }
    Ok(())
}

fn again_with_dup(bench: &Bench) -> Outcome {
    each([("QoS 1", 1), ("QoS 2", 2)], |qos| {
        let (client, _) = in_flight(bench, qos, 1)?;
        client.drop_connection();
        let mut client = back(bench)?;
        let again = client.message("the delivery again")?;
        if !again.dup {
            return client.failed("the delivery again with DUP 1", "DUP 0");
        }
        client.acknowledge(&again)?;
        client.pings()?;
        client.leave();
        Ok(())
    })
}

fn at_least_once_out(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let (mut client, messages) = in_flight(bench, 1, 2)?;
    if messages.len() < 2 {
        return skip("the broker has one delivery in flight at a time, as it may");
    }
    for message in &messages {
        if message.dup || message.qos != 1 {
            return client.failed(
                "QoS 1, DUP 0",
                format!("QoS {}, DUP {}", message.qos, u8::from(message.dup)),
            );
        }
    }
    // The first is acknowledged and does not come again; the second is not.
    client.acknowledge(&messages[0])?;
    client.pings()?;
    client.drop_connection();
    let mut client = back(bench)?;
    let again = client.message("the delivery that was not acknowledged")?;
    if (again.id, &again.topic, &again.payload) != (messages[1].id, &topic, &messages[1].payload) {
        let expected = format!("the delivery {} that was not acknowledged", messages[1].id);
        return client.failed(
            expected,
            format!("{} with payload {}", again.id, bench.show(&again.payload)),
        );
    }
    client.acknowledge(&again)?;
    client.nothing("nothing that was acknowledged")
}

fn at_least_once_in(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 0)])?;
    let mut publisher = bench.client("p")?;
    for (flags, payload) in [(2, "one"), (2, "two"), (10, "three")] {
        publisher.send(publish(flags, &topic, 7, payload));
        publisher.expect(acknowledgement(PUBACK, 7), "PUBACK")?;
        client.delivered(&topic, payload, 0, false)?;
    }
    Ok(())
}

fn exactly_once_out(bench: &Bench) -> Outcome {
    let (mut client, messages) = in_flight(bench, 2, 1)?;
    let message = &messages[0];
    if message.dup || message.qos != 2 {
        return client.failed(
            "QoS 2, DUP 0",
            format!("QoS {}, DUP {}", message.qos, u8::from(message.dup)),
        );
    }
    client.send(acknowledgement(PUBREC, message.id));
    client.expect(acknowledgement(PUBREL | 2, message.id), "PUBREL")?;
    client.drop_connection();
    let mut client = back(bench)?;
    client.expect(acknowledgement(PUBREL | 2, message.id), "PUBREL again, not PUBLISH")?;
    client.send(acknowledgement(PUBCOMP, message.id));
    client.nothing("nothing after PUBCOMP")?;
    client.drop_connection();
    back(bench)?.nothing("nothing after PUBCOMP")
}

fn exactly_once_in(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 0)])?;
    let mut publisher = bench.client("p")?;
    for flags in [4, 12, 12] {
        publisher.send(publish(flags, &topic, 7, "one"));
        publisher.expect(acknowledgement(PUBREC, 7), "PUBREC")?;
    }
    publisher.send(acknowledgement(PUBREL | 2, 7));
    publisher.expect(acknowledgement(PUBCOMP, 7), "PUBCOMP")?;
    client.delivered(&topic, "one", 0, false)?;
    client.nothing("the message once")?;
    // PUBREL again is answered again, and its identifier is free now: a new message.
    publisher.send(acknowledgement(PUBREL | 2, 7));
    publisher.expect(acknowledgement(PUBCOMP, 7), "PUBCOMP")?;
    publisher.send(publish(4, &topic, 7, "two"));
    publisher.expect(acknowledgement(PUBREC, 7), "PUBREC")?;
    publisher.send(acknowledgement(PUBREL | 2, 7));
    publisher.expect(acknowledgement(PUBCOMP, 7), "PUBCOMP")?;
    client.delivered(&topic, "two", 0, false)?;
    client.nothing("the message once")
}

fn exactly_once_across(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&topic, 0)])?;
    let (mut client, _) = bench.enter(&bench.hello("a").durable())?;
    client.send(publish(4, &topic, 9, "one"));
    client.expect(acknowledgement(PUBREC, 9), "PUBREC")?;
    client.drop_connection();
    let mut client = back(bench)?;
    client.send(publish(12, &topic, 9, "one"));
    client.expect(acknowledgement(PUBREC, 9), "PUBREC")?;
    client.send(acknowledgement(PUBREL | 2, 9));
    client.expect(acknowledgement(PUBCOMP, 9), "PUBCOMP")?;
    watcher.delivered(&topic, "one", 0, false)?;
    watcher.nothing("the message once")
}

/// Two deliveries of QoS 2: one that has got its PUBREC, one that has not.
fn sent_again(bench: &Bench) -> Outcome {
    let (mut client, messages) = in_flight(bench, 2, 2)?;
    if messages.len() < 2 {
        return skip("the broker has one delivery in flight at a time, as it may");
    }
    client.send(acknowledgement(PUBREC, messages[0].id));
    client.expect(acknowledgement(PUBREL | 2, messages[0].id), "PUBREL")?;
    client.drop_connection();
    let mut client = back(bench)?;
    let expected = format!("PUBREL {} and PUBLISH {} again", messages[0].id, messages[1].id);
    let mut wanted = BTreeSet::from([(PUBREL, messages[0].id), (PUBLISH, messages[1].id)]);
    for _ in 0..2 {
        match client.receive()? {
            Event::Packet(came) => {
                let id = came.message().map_or(came.id(), |message| message.id);
                let id = if came.kind() == PUBLISH { id } else { came.id() };
                if !wanted.remove(&(came.kind(), id)) {
                    return client.unexpected(expected, &Event::Packet(came));
                }
            }
            event => return client.unexpected(expected, &event),
        }
    }
    client.nothing("each once")
}

fn again_in_order(bench: &Bench) -> Outcome {
    let (client, messages) = in_flight(bench, 1, 10)?;
    client.drop_connection();
    let mut client = back(bench)?;
    for first in &messages {
        let again = client.message("the deliveries again")?;
        if again.payload != first.payload {
            let words = |message: &Message| format!("payload {}", bench.show(&message.payload));
            return client.failed(format!("{}, as at first", words(first)), words(&again));
        }
    }
    Ok(())
}

fn acknowledged_in_order(bench: &Bench, qos: u8, answer: u8) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.send(
        (1..=20)
            .flat_map(|id| publish(qos << 1, &topic, id, "x"))
            .collect::<Vec<u8>>(),
    );
    for id in 1..=20 {
        client.expect(acknowledgement(answer, id), &format!("{} in order", name(answer)))?;
    }
    Ok(())
}

fn pubacks_in_order(bench: &Bench) -> Outcome {
    acknowledged_in_order(bench, 1, PUBACK)
}

fn pubrecs_in_order(bench: &Bench) -> Outcome {
    acknowledged_in_order(bench, 2, PUBREC)
}

fn pubrels_in_order(bench: &Bench) -> Outcome {
    let (mut client, messages) = in_flight(bench, 2, 5)?;
    // Not the order in which they came.
    let ids: Vec<u16> = messages.iter().rev().map(|message| message.id).collect();
    client.send(
        ids.iter()
            .flat_map(|id| acknowledgement(PUBREC, *id))
            .collect::<Vec<u8>>(),
    );
    for id in ids {
        client.expect(acknowledgement(PUBREL | 2, id), "PUBREL in the order of the PUBRECs")?;
    }
    Ok(())
}

fn in_order(bench: &Bench) -> Outcome {
    const COUNT: u8 = 60;
    each([0, 1, 2].map(|qos: u8| (format!("QoS {qos}"), qos)), |qos| {
        let topic = bench.topic(&format!("q{qos}"));
        let away = bench.hello(&format!("away{qos}")).durable();
        let (mut client, _) = bench.enter(&away)?;
        client.subscribe(&[(&topic, qos)])?;
        client.leave();
        let mut live = bench.client("live")?;
        live.subscribe(&[(&topic, qos)])?;
        let mut publisher = bench.client("p")?;
        for number in 0..COUNT {
            publisher.publish(&topic, [number], qos, false)?;
        }
        for number in 0..COUNT {
            let message = live.delivered(&topic, [number], qos, false)?;
            live.acknowledge(&message)?;
        }
        live.leave();
        // QoS 0 need not be kept for who is away.
        if qos > 0 {
            let (mut client, _) = bench.enter(&away)?;
            for number in 0..COUNT {
                let message = client.delivered(&topic, [number], qos, false)?;
                client.acknowledge(&message)?;
            }
            client.leave();
        }
        Ok(())
    })
}
