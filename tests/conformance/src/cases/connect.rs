//! CONNECT and CONNACK: who is let in, who is refused, and how.

use crate::bench::{Bench, Outcome, each, skip};
use crate::client::Event;
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(&["MQTT-3.1.0-1"], "another packet before CONNECT", not_first),
    case(&["MQTT-3.1.0-2"], "CONNECT twice, the same or another", twice),
    case(&["MQTT-3.1.2-1"], "other protocol names", names),
    case(&["MQTT-3.1.2-2"], "protocol levels that there are not", levels),
    case(&["MQTT-3.1.2-3"], "the reserved Connect Flag", reserved_flag),
    case(
        &["MQTT-3.1.2-9"],
        "Will Flag without Will Topic or Will Message",
        will_missing,
    ),
    case(
        &["MQTT-3.1.2-11"],
        "no Will Flag, but Will Topic and Will Message, Will QoS or Will Retain",
        will_without_flag,
    ),
    case(
        &["MQTT-3.1.2-13"],
        "no Will Flag, but a Will QoS",
        will_qos_without_flag,
    ),
    case(&["MQTT-3.1.2-14"], "Will QoS 3", will_qos_3),
    case(
        &["MQTT-3.1.2-15"],
        "no Will Flag, but Will Retain",
        will_retain_without_flag,
    ),
    case(
        &["MQTT-3.1.2-18"],
        "no User Name Flag, but a user name",
        user_without_flag,
    ),
    case(&["MQTT-3.1.2-19"], "User Name Flag, but no user name", user_missing),
    case(
        &["MQTT-3.1.2-20"],
        "no Password Flag, but a password",
        password_without_flag,
    ),
    case(&["MQTT-3.1.2-21"], "Password Flag, but no password", password_missing),
    case(
        &["MQTT-3.1.2-22"],
        "Password Flag without User Name Flag",
        password_without_user,
    ),
    case(
        &["MQTT-3.1.3-1"],
        "all fields there are, in their order",
        fields_in_order,
    ),
    case(
        &["MQTT-3.1.3-3"],
        "no Client Identifier, not even an empty one",
        identifier_missing,
    ),
    case(
        &["MQTT-3.1.3-5"],
        "identifiers of 1 and of 23 digits and letters",
        identifiers,
    ),
    case(
        &["MQTT-3.1.3-6"],
        "two Clients without identifiers are not one",
        no_identifier,
    ),
    case(
        &["MQTT-3.1.3-7", "MQTT-3.1.3-8"],
        "no identifier and Clean Session 0",
        no_identifier_durable,
    ),
    case(
        &["MQTT-3.1.3-9"],
        "identifiers that a broker may reject",
        odd_identifiers,
    ),
    case(
        &["MQTT-3.1.4-1"],
        "CONNECTs that do not conform get no CONNACK",
        nonconforming,
    ),
    case(&["MQTT-3.1.4-4"], "a CONNECT that conforms gets CONNACK 0", accepted),
    case(
        &["MQTT-3.1.4-5"],
        "a rejected CONNECT with a PUBLISH and a SUBSCRIBE behind it",
        rest_of_a_rejected,
    ),
    case(
        &["MQTT-3.2.0-1"],
        "CONNACK is first, also when messages wait",
        connack_first,
    ),
    case(
        &["MQTT-3.2.2-4", "MQTT-3.2.2-5"],
        "every refusal has Session Present 0 and ends",
        refusals,
    ),
];

fn refuses(bench: &Bench, hello: &Hello, silent: bool) -> Outcome {
    let mut client = bench.open("a")?;
    bench.note(hello);
    client.send(hello.bytes());
    client.refused(silent)
}

fn not_first(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let variants = [
        ("PINGREQ", PINGREQ.to_vec()),
        ("DISCONNECT", DISCONNECT.to_vec()),
        ("PUBLISH", publish(2, &topic, 1, "x")),
        ("SUBSCRIBE", subscribe(1, &[(&topic, 0)])),
    ];
    each(variants, |bytes| {
        let mut client = bench.open("a")?;
        client.send(bytes);
        match client.receive()? {
            Event::Closed => Ok(()),
            event => client.unexpected("the connection is closed and nothing is sent", &event),
        }
    })
}

fn twice(bench: &Bench) -> Outcome {
    let variants = [
        ("the same", bench.hello("a")),
        ("another", bench.hello("b").keep_alive(9)),
    ];
    each(variants, |second| bench.client("a")?.violates(second.bytes()))
}

/// A Server may go on by another specification, but MQTT 3.1.1 knows no CONNACK that accepts these.
fn names(bench: &Bench) -> Outcome {
    each(
        ["MQT", "MQTTT", "mqtt", "", "HTTP"].map(|name| (format!("{name:?}"), name)),
        |name| refuses(bench, &bench.hello("a").protocol(name, 4), false),
    )
}

/// A Server that knows MQTT 5 may say no in the words of MQTT 5 to what is above it.
fn levels(bench: &Bench) -> Outcome {
    each(
        [2, 6, 100].map(|level: u8| (format!("level {level}"), level)),
        |level| {
            let mut client = bench.open("a")?;
            client.send(bench.hello("a").protocol("MQTT", level).bytes());
            if level > 5 {
                let expected = "CONNACK with return code 1, then the connection is closed";
                return match client.receive()? {
                    Event::Packet(came)
                        if came.kind() == CONNACK && matches!(came.body[..], [0, 1] | [0, 0x84, ..]) =>
                    {
                        client.closed(expected)
                    }
                    event => client.unexpected(expected, &event),
                };
            }
            client.refused_with(1)
        },
    )
}

fn reserved_flag(bench: &Bench) -> Outcome {
    refuses(bench, &bench.hello("a").flag(1), false)
}

/// Without credentials: a field that is missing would else be taken from them.
fn bare(bench: &Bench) -> Hello {
    bench.hello("a").anonymous()
}

fn will_missing(bench: &Bench) -> Outcome {
    let variants = [
        ("neither", bare(bench).flag(Hello::WILL)),
        (
            "no Will Message",
            bare(bench).flag(Hello::WILL).with_field(bench.topic("w")),
        ),
    ];
    each(variants, |hello| refuses(bench, &hello, false))
}

fn will_without_flag(bench: &Bench) -> Outcome {
    let with_will = bench.hello("a").will(bench.topic("w"), "x", 0, false);
    let variants = [
        ("Will Topic and Will Message", with_will.without_flag(Hello::WILL)),
        ("Will QoS 1", bench.hello("a").flag(1 << 3)),
        ("Will Retain", bench.hello("a").flag(Hello::WILL_RETAIN)),
    ];
    each(variants, |hello| refuses(bench, &hello, false))
}

fn will_qos_without_flag(bench: &Bench) -> Outcome {
    each([1, 2].map(|qos: u8| (format!("Will QoS {qos}"), qos)), |qos| {
        refuses(bench, &bench.hello("a").flag(qos << 3), false)
    })
}

fn will_qos_3(bench: &Bench) -> Outcome {
    refuses(bench, &bench.hello("a").will(bench.topic("w"), "x", 3, false), false)
}

fn will_retain_without_flag(bench: &Bench) -> Outcome {
    refuses(bench, &bench.hello("a").flag(Hello::WILL_RETAIN), false)
}

fn user_without_flag(bench: &Bench) -> Outcome {
    refuses(bench, &bare(bench).with_field("user"), false)
}

fn user_missing(bench: &Bench) -> Outcome {
    refuses(bench, &bare(bench).flag(Hello::USER), false)
}

fn with_user(bench: &Bench) -> Hello {
    let user = bench.settings.user.as_deref().unwrap_or("user");
    bare(bench).flag(Hello::USER).with_field(user)
}

fn password_without_flag(bench: &Bench) -> Outcome {
    let password = bench.settings.password.as_deref().unwrap_or("password");
    refuses(bench, &with_user(bench).with_field(password), false)
}

fn password_missing(bench: &Bench) -> Outcome {
    refuses(bench, &with_user(bench).flag(Hello::PASSWORD), false)
}

fn password_without_user(bench: &Bench) -> Outcome {
    let password = bench.settings.password.as_deref().unwrap_or("password");
    refuses(bench, &bare(bench).flag(Hello::PASSWORD).with_field(password), false)
}

/// Each field ends up where the order says: the Will is published on its topic, the credentials let in.
fn fields_in_order(bench: &Bench) -> Outcome {
    let topic = bench.topic("will");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&topic, 0)])?;
    let mut hello = bench.hello("a");
    if bench.settings.user.is_none() {
        let named = hello
            .clone()
            .flag(Hello::USER | Hello::PASSWORD)
            .with_field("user")
            .with_field("password");
        let mut client = bench.open("a")?;
        client.send(named.bytes());
        // A broker may refuse who it does not know, or their messages; then the Will alone has to do.
        if matches!(client.receive()?, Event::Packet(came) if came.kind() == CONNACK && came.body[1] == 0) {
            client.send(publish(0, &topic, 0, "probe"));
            if matches!(watcher.receive()?, Event::Packet(_)) {
                hello = named;
            }
            client.leave();
        }
    }
    let (client, _) = bench.enter(&hello.will(&topic, "the message", 0, false))?;
    client.drop_connection();
    watcher.delivered(&topic, "the message", 0, false)?;
    Ok(())
}

fn identifier_missing(bench: &Bench) -> Outcome {
    let mut hello = bare(bench);
    hello.fields.clear();
    refuses(bench, &hello, true)
}

fn identifiers(bench: &Bench) -> Outcome {
    let all: Vec<u8> = [b'0'..=b'9', b'a'..=b'z', b'A'..=b'Z'].into_iter().flatten().collect();
    let name = bench.settings.run_name.as_bytes();
    let mut variants = vec![("1 character".to_owned(), name[..1].to_vec())];
    // 17 more behind the six of the run: all 62 within four identifiers.
    for part in all.chunks(17) {
        let id = [name, part, &all[..17 - part.len()]].concat();
        variants.push((format!("23 characters with {}", String::from_utf8_lossy(part)), id));
    }
    each(variants, |id| {
        let (client, _) = bench.enter(&bench.hello("").id(id))?;
        client.leave();
        Ok(())
    })
}

fn no_identifier(bench: &Bench) -> Outcome {
    let hello = bench.hello("").id("");
    let mut first = bench.open("a")?;
    first.send(hello.bytes());
    match first.receive()? {
        Event::Packet(came) if came.kind() == CONNACK && came.body[1] == 2 => {
            first.closed("the connection is closed after return code 2")?;
            return skip("the broker lets nobody in without an identifier, as it may");
        }
        Event::Packet(came) if came.kind() == CONNACK && came.body == [0, 0] => {}
        event => return first.unexpected("CONNACK with return code 0 or 2", &event),
    }
    let (mut second, session_present) = bench.enter(&hello)?;
    if session_present {
        return second.failed("Session Present 0", "Session Present 1");
    }
    first.pings()?;
    second.pings()?;
    // Two Sessions: what one is subscribed to the other is not.
    let topic = bench.topic("t");
    first.subscribe(&[(&topic, 0)])?;
    second.publish(&topic, "x", 1, false)?;
    first.delivered(&topic, "x", 0, false)?;
    second.nothing("nothing for who has not subscribed")
}

fn no_identifier_durable(bench: &Bench) -> Outcome {
    let mut client = bench.open("a")?;
    client.send(bench.hello("").id("").durable().bytes());
    client.refused_with(2)
}

fn odd_identifiers(bench: &Bench) -> Outcome {
    let name = &bench.settings.run_name;
    let long = name.repeat(20);
    let variants = ["-_.:/ ", "+#$", "Grüße"].map(|odd| (format!("with {odd:?}"), format!("{name}{odd}")));
    each(
        variants.into_iter().chain([("120 characters".to_owned(), long)]),
        |id| {
            let mut client = bench.open("a")?;
            client.send(bench.hello("").id(id).bytes());
            match client.receive()? {
                Event::Packet(came) if came.kind() == CONNACK && came.body == [0, 0] => {
                    client.leave();
                    Ok(())
                }
                Event::Packet(came) if came.kind() == CONNACK && came.body == [0, 2] => {
                    client.closed("the connection is closed after return code 2")
                }
                event => client.unexpected("CONNACK with return code 0, or with 2 and the end", &event),
            }
        },
    )
}

fn nonconforming(bench: &Bench) -> Outcome {
    let mut short = bare(bench);
    short.fields.clear();
    let variants = [
        ("the reserved flag", bench.hello("a").flag(1)),
        ("Will QoS 3", bench.hello("a").will(bench.topic("w"), "x", 3, false)),
        ("Will QoS without Will Flag", bench.hello("a").flag(1 << 3)),
        ("Will Flag without a Will", bare(bench).flag(Hello::WILL)),
        ("User Name Flag without a user name", bare(bench).flag(Hello::USER)),
        (
            "Password Flag without User Name Flag",
            bare(bench).flag(Hello::PASSWORD).with_field("x"),
        ),
        ("a field too many", bare(bench).with_field("x")),
        ("no Client Identifier", short),
        ("an identifier that is no UTF-8", bench.hello("a").id(b"a\xff")),
    ];
    each(variants, |hello| refuses(bench, &hello, true))
}

fn accepted(bench: &Bench) -> Outcome {
    let variants = [
        ("level 4, Clean Session", bench.hello("a")),
        ("with Keep Alive", bench.hello("b").keep_alive(600)),
        ("with a Will", bench.hello("c").will(bench.topic("w"), "x", 2, true)),
        (
            "with an empty Will Message",
            bench.hello("d").will(bench.topic("w"), "", 0, false),
        ),
        ("Clean Session 0", bench.hello("e").durable()),
    ];
    each(variants, |hello| {
        let (mut client, _) = bench.enter(&hello)?;
        client.nothing("nothing after CONNACK")?;
        client.leave();
        Ok(())
    })
}

fn rest_of_a_rejected(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut watcher = bench.client("watch")?;
    watcher.subscribe(&[(&topic, 0)])?;
    let variants = [
        ("no identifier and Clean Session 0", bench.hello("").id("").durable()),
        ("level 2", bench.hello("a").protocol("MQTT", 2)),
    ];
    each(variants, |hello| {
        let mut client = bench.open("a")?;
        client.send([hello.bytes(), publish(0, &topic, 0, "x"), subscribe(1, &[(&topic, 0)])].concat());
        client.refused(false)?;
        watcher.nothing("what follows a rejected CONNECT is not published")
    })
}

fn connack_first(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let hello = bench.hello("a").durable();
    let (mut client, _) = bench.enter(&hello)?;
    client.subscribe(&[(&topic, 1)])?;
    client.leave();
    let mut publisher = bench.client("p")?;
    for number in 0..5u8 {
        publisher.publish(&topic, [number], 1, false)?;
    }
    // What is sent with it makes no difference.
    let mut client = bench.open("a")?;
    client.send([hello.bytes(), PINGREQ.to_vec()].concat());
    client.accepted().map(|_| ())
}

fn refusals(bench: &Bench) -> Outcome {
    let mut variants = vec![
        ("level 2", bench.hello("a").protocol("MQTT", 2)),
        ("no identifier and Clean Session 0", bench.hello("").id("").durable()),
    ];
    if bench.settings.password.is_some() {
        let wrong = with_user(bench).flag(Hello::PASSWORD).with_field("wrong");
        variants.push(("a wrong password", wrong));
    }
    each(variants, |hello| {
        let mut client = bench.open("a")?;
        client.send(hello.bytes());
        match client.receive()? {
            Event::Packet(came) if came.kind() == CONNACK && came.body[0] == 0 && matches!(came.body[1], 1..=5) => {
                client.closed("the connection is closed after CONNACK")
            }
            // It may say nothing at all.
            Event::Closed => Ok(()),
            event => client.unexpected(
                "CONNACK with Session Present 0 and return code 1 to 5, or the end",
                &event,
            ),
        }
    })
}
