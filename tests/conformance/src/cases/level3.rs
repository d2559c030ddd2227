//! MQTT 3.1: protocol name MQIsdp, level 3. Its numbers are ours.

use super::publish::forbidden_topic;
use crate::bench::{Bench, Outcome, each, skip};
use crate::client::{Client, Event};
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(&["V31-1"], "both protocols on the port", both),
    case(&["V31-2"], "names and levels that do not belong together", mixed),
    case(&["V31-3"], "an identifier of 40 characters", long_identifier),
    case(&["V31-4"], "an empty identifier", empty_identifier),
    case(&["V31-5"], "CONNACK where a Session is resumed", reserved_byte),
    case(&["V31-7"], "flags in the header of CONNECT", header_flags),
    case(&["V31-8"], "the reserved Connect Flag", reserved_flag),
    case(&["V31-9"], "User Name Flag and nothing behind it", absent_user),
    case(&["V31-10"], "Password Flag without User Name Flag", password_alone),
    case(&["V31-11"], "SUBSCRIBE, UNSUBSCRIBE and PUBREL with DUP", dup),
    case(&["V31-12"], "a SUBSCRIBE to a forbidden topic", forbidden),
    case(&["V31-14"], "QoS 1 and 2, unacknowledged, after a reconnect", again),
    case(&["V31-14"], "PUBREL, after a reconnect", release_again),
    case(&["V31-15"], "a PUBLISH of QoS 2 twice before its PUBREL", twice),
    case(
        &["V31-16"],
        "a message, a retained message and a Session across both",
        across,
    ),
    case(&["V31-17"], "CONNECT twice, and no CONNECT first", order),
];

fn hello(bench: &Bench, name: &str) -> Hello {
    bench.hello(name).level3()
}

/// Let in with level 3; a broker that does not speak it at all cannot play the rest.
fn enter<'a>(bench: &'a Bench<'a>, hello: &Hello) -> Outcome<Client<'a>> {
    let mut client = bench.open("level 3")?;
    bench.note(hello);
    client.send(hello.bytes());
    match client.receive()? {
        Event::Packet(came) if came.kind() == CONNACK && came.body[1] == 0 => Ok(client),
        Event::Packet(came) if came.kind() == CONNACK && came.body[1] == 1 => {
            skip("the broker does not speak MQTT 3.1")
        }
        Event::Closed => skip("the broker does not speak MQTT 3.1"),
        event => client.unexpected("CONNACK with return code 0", &event),
    }
}

/// The rest is for those who do speak it.
fn speaks(bench: &Bench) -> Outcome {
    enter(bench, &hello(bench, "speaks"))?.leave();
    Ok(())
}

fn client<'a>(bench: &'a Bench<'a>, name: &str) -> Outcome<Client<'a>> {
    enter(bench, &hello(bench, name))
}

fn both(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut old = client(bench, "old")?;
    old.subscribe(&[(&topic, 1)])?;
    let mut new = bench.client("new")?;
    new.publish(&topic, "x", 1, false)?;
    old.delivered(&topic, "x", 1, false)?;
    Ok(())
}

fn mixed(bench: &Bench) -> Outcome {
    speaks(bench)?;
    let variants = [("MQIsdp", 4), ("MQIsdp", 2), ("MQTT", 3)];
    each(
        variants.map(|(name, level)| (format!("{name} with level {level}"), (name, level))),
        |(name, level)| {
            let mut client = bench.open("a")?;
            client.send(bench.hello("a").protocol(name, level).bytes());
            client.refused(false)
        },
    )
}

fn long_identifier(bench: &Bench) -> Outcome {
    speaks(bench)?;
    let mut client = bench.open("a")?;
    let id = format!("{:040}", bench.id(""));
    client.send(hello(bench, "a").id(id).bytes());
    match client.receive()? {
        Event::Packet(came) if came.kind() == CONNACK && came.body[1] == 0 => Ok(()),
        Event::Packet(came) if came.kind() == CONNACK && came.body[1] == 2 => {
            client.closed("the end after return code 2")
        }
        event => client.unexpected("CONNACK with return code 0 or 2", &event),
    }
}

fn empty_identifier(bench: &Bench) -> Outcome {
    speaks(bench)?;
    each(
        [
            ("Clean Session 1", hello(bench, "")),
            ("Clean Session 0", hello(bench, "").durable()),
        ],
        |hello| {
            let mut client = bench.open("a")?;
            client.send(hello.id("").bytes());
            client.refused_with(2)
        },
    )
}

fn reserved_byte(bench: &Bench) -> Outcome {
    let durable = hello(bench, "a").durable();
    enter(bench, &durable)?.leave();
    let mut client = bench.open("a")?;
    client.send(durable.bytes());
    client.expect([CONNACK, 2, 0, 0], "CONNACK whose first byte is 0")
}

fn header_flags(bench: &Bench) -> Outcome {
    speaks(bench)?;
    each([("DUP", 0x18), ("QoS 1 and RETAIN", 0x13)], |header| {
        let mut client = bench.open("a")?;
        client.send(
            Hello {
                header,
                ..hello(bench, "a")
            }
            .bytes(),
        );
        client.accepted().map(|_| ())
    })
}

fn reserved_flag(bench: &Bench) -> Outcome {
    speaks(bench)?;
    bench.enter(&hello(bench, "a").flag(1)).map(|_| ())
}

/// Whether nobody in particular is let in is another question.
fn absent_user(bench: &Bench) -> Outcome {
    speaks(bench)?;
    let variants = [
        ("user name", Hello::USER),
        ("user name and password", Hello::USER | Hello::PASSWORD),
    ];
    each(variants, |flags| {
        let mut client = bench.open("a")?;
        client.send(hello(bench, "a").anonymous().flag(flags).bytes());
        match client.receive()? {
            Event::Packet(came) if came.kind() == CONNACK && matches!(came.body[1], 0 | 4 | 5) => Ok(()),
            event => client.unexpected("CONNACK: accepted, or refused for want of credentials", &event),
        }
    })
}

fn password_alone(bench: &Bench) -> Outcome {
    speaks(bench)?;
    let mut client = bench.open("a")?;
    client.send(
        hello(bench, "a")
            .anonymous()
            .flag(Hello::PASSWORD)
            .with_field("x")
            .bytes(),
    );
    client.refused(false)
}

fn dup(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = client(bench, "a")?;
    let mut subscribe = subscribe(1, &[(&topic, 0)]);
    subscribe[0] = 0x8A;
    client.send(subscribe);
    client.expect([SUBACK, 3, 0, 1, 0], "SUBACK")?;
    client.send(publish(4, &topic, 2, "x"));
    client.acknowledged(PUBREC, 2)?;
    client.send(acknowledgement(0x6A, 2));
    client.acknowledged(PUBCOMP, 2)?;
    client.delivered(&topic, "x", 0, false)?;
    let mut unsubscribe = unsubscribe(3, &[&topic]);
    unsubscribe[0] = 0xAA;
    client.send(unsubscribe);
    client.acknowledged(UNSUBACK, 3)
}

fn forbidden(bench: &Bench) -> Outcome {
    let topic = forbidden_topic(bench)?;
    let mut client = client(bench, "a")?;
    client.send(subscribe(1, &[(&topic, 1)]));
    match client.receive()? {
        Event::Closed => Ok(()),
        Event::Packet(came) if came.kind() == SUBACK && matches!(came.body[..], [0, 1, 0..=2]) => Ok(()),
        event => client.unexpected("SUBACK with 0, 1 or 2, or the end of the connection", &event),
    }
}

fn again(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let durable = hello(bench, "a").durable();
    each([("QoS 1", 1), ("QoS 2", 2)], |qos| {
        let mut client = enter(bench, &durable)?;
        client.subscribe(&[(&topic, qos)])?;
        bench.client("p")?.publish(&topic, "x", qos, false)?;
        let first = client.delivered(&topic, "x", qos, false)?;
        client.drop_connection();
        let mut client = enter(bench, &durable)?;
        let again = client.message("the delivery again")?;
        if (again.dup, again.id) != (true, first.id) {
            let words = |dup, id| format!("DUP {}, identifier {id}", u8::from(dup));
            return client.failed(words(true, first.id), words(again.dup, again.id));
        }
        client.acknowledge(&again)?;
        client.pings()?;
        client.leave();
        Ok(())
    })
}

fn release_again(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let durable = hello(bench, "a").durable();
    let mut client = enter(bench, &durable)?;
    client.subscribe(&[(&topic, 2)])?;
    bench.client("p")?.publish(&topic, "x", 2, false)?;
    let message = client.delivered(&topic, "x", 2, false)?;
    client.send(acknowledgement(PUBREC, message.id));
    client.expect(acknowledgement(PUBREL | 2, message.id), "PUBREL")?;
    client.drop_connection();
    let mut client = enter(bench, &durable)?;
    client.expect(acknowledgement(PUBREL | 10, message.id), "PUBREL again, with DUP")?;
    client.send(acknowledgement(PUBCOMP, message.id));
    client.nothing("nothing after PUBCOMP")
}

fn twice(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&topic, 0)])?;
    let mut client = client(bench, "a")?;
    for flags in [4, 12] {
        client.send(publish(flags, &topic, 7, "x"));
        client.acknowledged(PUBREC, 7)?;
    }
    client.send(acknowledgement(PUBREL | 2, 7));
    client.acknowledged(PUBCOMP, 7)?;
    watcher.delivered(&topic, "x", 0, false)?;
    watcher.nothing("the message once")
}

fn across(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut old = client(bench, "old")?;
    old.publish(&topic, "kept", 1, true)?;
    let mut new = bench.client("new")?;
    new.subscribe(&[(&topic, 1)])?;
    new.delivered(&topic, "kept", 1, true)?;
    // One identifier is one Client, whichever level it speaks.
    let (durable, durable_old) = (bench.hello("a").durable(), hello(bench, "a").durable());
    let (mut first, _) = bench.enter(&durable)?;
    first.subscribe(&[(&bench.topic("u"), 1)])?;
    let mut second = enter(bench, &durable_old)?;
    match first.receive()? {
        Event::Closed => {}
        event => return first.unexpected("the connection of 3.1.1 ends when 3.1 takes over", &event),
    }
    new.publish(&bench.topic("u"), "x", 1, false)?;
    second.delivered(&bench.topic("u"), "x", 1, false)?;
    Ok(())
}

fn order(bench: &Bench) -> Outcome {
    client(bench, "a")?.violates(hello(bench, "a").bytes())?;
    let mut client = bench.open("b")?;
    client.send(PINGREQ);
    match client.receive()? {
        Event::Closed => Ok(()),
        event => client.unexpected("the connection is closed", &event),
    }
}
