//! Clean Session, what is stored, and two connections with one identifier.

use std::thread::sleep;

use crate::bench::{Bench, Outcome, each};
use crate::client::Event;
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-3.1.2-4"],
        "a Session and its subscriptions are there again, without SUBSCRIBE",
        resumed,
    ),
    case(
        &["MQTT-3.1.2-5"],
        "messages of QoS 1 and 2 wait for who is away",
        stored,
    ),
    case(
        &["MQTT-3.1.2-6"],
        "Clean Session 1 discards subscriptions and messages for good",
        discarded,
    ),
    case(
        &["MQTT-3.1.2-7"],
        "retained messages outlive the Session of who published them",
        retained_stay,
    ),
    case(&["MQTT-3.1.3-2"], "two identifiers are two Sessions", by_identifier),
    case(
        &["MQTT-3.1.4-2"],
        "the second connection stays, the first ends",
        taken_over,
    ),
    case(&["MQTT-3.1.4-3"], "Clean Session 0, 1 and 0 again", processed),
    case(&["MQTT-3.2.2-1"], "Session Present with Clean Session 1", present_clean),
    case(&["MQTT-3.2.2-2"], "Session Present where there is one", present),
    case(&["MQTT-3.2.2-3"], "Session Present where there is none", present_new),
    case(
        &["MQTT-4.1.0-1"],
        "subscriptions, messages and open flows are all kept",
        state,
    ),
    case(&["MQTT-4.1.0-2"], "a Session lives while its connection does", lives),
    case(
        &["MQTT-4.5.0-1"],
        "every Session with a matching subscription gets the message",
        added,
    ),
];

fn session_present(bench: &Bench, hello: &Hello, wanted: bool) -> Outcome {
    let (client, present) = bench.enter(hello)?;
    if present != wanted {
        let words = |present| format!("Session Present {}", u8::from(present));
        return client.failed(words(wanted), words(present));
    }
    client.leave();
    Ok(())
}

fn resumed(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let hello = bench.hello("a").durable();
    let (mut client, _) = bench.enter(&hello)?;
    client.subscribe(&[(&topic, 1)])?;
    client.leave();
    let (mut client, _) = bench.enter(&hello)?;
    bench.client("p")?.publish(&topic, "x", 1, false)?;
    client.delivered(&topic, "x", 1, false)?;
    Ok(())
}

fn stored(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let hello = bench.hello("a").durable();
    let (mut client, _) = bench.enter(&hello)?;
    client.subscribe(&[(&topic, 2)])?;
    client.leave();
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "one", 1, false)?;
    publisher.publish(&topic, "two", 2, false)?;
    let (mut client, _) = bench.enter(&hello)?;
    // A topic is ordered for messages of one QoS; these have two.
    let mut got = Vec::new();
    for _ in 0..2 {
        let message = client.message("the two messages that were published while the Client was away")?;
        client.acknowledge(&message)?;
        got.push((message.qos, message.payload));
    }
    got.sort();
    if got != [(1, b"one".to_vec()), (2, b"two".to_vec())] {
        return client.failed("one message at QoS 1 and one at QoS 2", format!("{got:?}"));
    }
    client.nothing("each message once")
}

fn discarded(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let hello = bench.hello("a").durable();
    let (mut client, _) = bench.enter(&hello)?;
    client.subscribe(&[(&topic, 1)])?;
    client.leave();
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "one", 1, false)?;
    let (mut client, _) = bench.enter(&bench.hello("a"))?;
    publisher.publish(&topic, "two", 1, false)?;
    client.nothing("no message and no subscription of the Session that was discarded")?;
    client.leave();
    let (mut client, _) = bench.enter(&hello)?;
    publisher.publish(&topic, "three", 1, false)?;
    client.nothing("no message and no subscription of the Session that was discarded")
}

fn retained_stay(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut publisher = bench.client("p")?;
    publisher.publish(&topic, "kept", 1, true)?;
    publisher.leave();
    bench.client("p")?.leave();
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 1)])?;
    client.delivered(&topic, "kept", 1, true)?;
    Ok(())
}

fn by_identifier(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let (one, other) = (bench.hello("a").durable(), bench.hello("b").durable());
    let (mut client, _) = bench.enter(&one)?;
    client.subscribe(&[(&topic, 1)])?;
    client.leave();
    let (mut client, _) = bench.enter(&other)?;
    bench.client("p")?.publish(&topic, "x", 1, false)?;
    client.nothing("nothing for a Session that has not subscribed")?;
    let (mut client, _) = bench.enter(&one)?;
    client.delivered(&topic, "x", 1, false)?;
    Ok(())
}

fn taken_over(bench: &Bench) -> Outcome {
    each(
        [
            ("Clean Session 1", bench.hello("a")),
            ("Clean Session 0", bench.hello("b").durable()),
        ],
        |hello| {
            let (mut first, _) = bench.enter(&hello)?;
            let (mut second, _) = bench.enter(&hello)?;
            match first.receive()? {
                Event::Closed => {}
                event => return first.unexpected("the first connection is closed", &event),
            }
            second.pings()
        },
    )
}

fn processed(bench: &Bench) -> Outcome {
    let durable = bench.hello("a").durable();
    session_present(bench, &durable, false)?;
    session_present(bench, &durable, true)?;
    session_present(bench, &bench.hello("a"), false)?;
    session_present(bench, &durable, false)
}

fn present_clean(bench: &Bench) -> Outcome {
    session_present(bench, &bench.hello("a"), false)?;
    session_present(bench, &bench.hello("a").durable(), false)?;
    session_present(bench, &bench.hello("a"), false)
}

fn present(bench: &Bench) -> Outcome {
    session_present(bench, &bench.hello("a").durable(), false)?;
    session_present(bench, &bench.hello("a").durable(), true)
}

fn present_new(bench: &Bench) -> Outcome {
    session_present(bench, &bench.hello("a").durable(), false)?;
    session_present(bench, &bench.hello("b"), false)?;
    session_present(bench, &bench.hello("b").durable(), false)
}

fn state(bench: &Bench) -> Outcome {
    let (held, open) = (bench.topic("held"), bench.topic("open"));
    let hello = bench.hello("a").durable();
    let (mut client, _) = bench.enter(&hello)?;
    client.subscribe(&[(&held, 1), (&open, 1)])?;
    let mut publisher = bench.client("p")?;
    publisher.publish(&open, "begun", 1, false)?;
    let begun = client.delivered(&open, "begun", 1, false)?;
    // A flow towards the broker is half done, too.
    client.send(publish(4, bench.topic("other"), 77, "mine"));
    client.acknowledged(PUBREC, 77)?;
    client.drop_connection();
    publisher.publish(&held, "waiting", 1, false)?;
    let (mut client, _) = bench.enter(&hello)?;
    let mut got = Vec::new();
    for _ in 0..2 {
        let message = client.message("the delivery that was begun, and the one that waits")?;
        client.acknowledge(&message)?;
        got.push((message.payload.clone(), message.id == begun.id));
    }
    if !got.contains(&(b"begun".to_vec(), true)) || !got.iter().any(|(payload, _)| payload == b"waiting") {
        return client.failed(
            "the delivery that was begun, with its identifier, and the one that waits",
            format!("{got:?}"),
        );
    }
    client.send(acknowledgement(PUBREL | 2, 77));
    client.acknowledged(PUBCOMP, 77)
}

fn lives(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let mut client = bench.client("a")?;
    client.subscribe(&[(&topic, 1)])?;
    let mut publisher = bench.client("p")?;
    for round in 0..3u8 {
        sleep(bench.settings.silence);
        publisher.publish(&topic, [round], 1, false)?;
        let message = client.delivered(&topic, [round], 1, false)?;
        client.acknowledge(&message)?;
    }
    Ok(())
}

fn added(bench: &Bench) -> Outcome {
    let topic = bench.topic("t/u");
    let filters = [topic.clone(), bench.topic("t/+"), bench.topic("#"), bench.topic("+/u")];
    let away = bench.hello("away").durable();
    let (mut client, _) = bench.enter(&away)?;
    client.subscribe(&[(&topic, 1)])?;
    client.leave();
    let mut clients = Vec::new();
    for (number, filter) in filters.iter().enumerate() {
        let mut client = bench.client(&format!("s{number}"))?;
        client.subscribe(&[(filter, 1)])?;
        clients.push(client);
    }
    bench.client("p")?.publish(&topic, "x", 1, false)?;
    for mut client in clients {
        client.delivered(&topic, "x", 1, false)?;
    }
    let (mut client, _) = bench.enter(&away)?;
    client.delivered(&topic, "x", 1, false)?;
    Ok(())
}
