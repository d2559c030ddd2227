//! Names, filters, and which match.

use crate::bench::{Bench, Outcome, each, skip};
use crate::client::Event;
use crate::packet::*;
use crate::{Case, case};

pub const CASES: &[Case] = &[
    case(
        &["MQTT-4.7.1-2"],
        "# elsewhere than alone at the end is refused, and stands for any number of levels",
        multi_level,
    ),
    case(
        &["MQTT-4.7.1-3"],
        "+ beside other characters is refused, and stands for one level",
        single_level,
    ),
    case(&["MQTT-4.7.2-1"], "#, + and $-topics", dollar),
    case(&["MQTT-4.7.3-1"], "empty names and filters", empty),
    case(&["MQTT-4.7.3-4"], "names that look alike are not the same", look_alikes),
];

/// A malformed filter is a protocol violation; a return code of 0x80 says no, too.
fn is_refused(bench: &Bench, rest: &str) -> Outcome {
    let mut client = bench.client("a")?;
    client.send(subscribe(1, &[(&bench.topic(rest), 0)]));
    let expected = "the connection is closed, or SUBACK with return code 0x80";
    match client.receive()? {
        Event::Closed => Ok(()),
        Event::Packet(came) if came.kind() == SUBACK && came.body == [0, 1, 0x80] => Ok(()),
        event => client.unexpected(expected, &event),
    }
}

/// Each topic with whether the filter matches it.
fn matches(bench: &Bench, filter: &str, topics: &[(&str, bool)]) -> Outcome {
    let mut client = bench.client("m")?;
    client.subscribe(&[(&bench.topic(filter), 0)])?;
    let mut publisher = bench.client("p")?;
    for (rest, _) in topics {
        publisher.publish(&bench.topic(rest), rest, 1, false)?;
    }
    for (rest, _) in topics.iter().filter(|(_, is_match)| *is_match) {
        client.delivered(&bench.topic(rest), rest, 0, false)?;
    }
    client.nothing("nothing on topics that the filter does not match")?;
    client.leave();
    Ok(())
}

fn multi_level(bench: &Bench) -> Outcome {
    each(
        ["a/#/b", "a#", "a/b#", "#/", "##", "a/##"].map(|rest| (rest, rest)),
        |rest| is_refused(bench, rest),
    )?;
    let topics = [
        ("s", true),
        ("s/a", true),
        ("s/a/b", true),
        ("s/", true),
        ("t", false),
        ("sa", false),
    ];
    matches(bench, "s/#", &topics)
}

fn single_level(bench: &Bench) -> Outcome {
    each(
        ["a+", "+a/b", "a/b+", "a/+b", "++", "+#"].map(|rest| (rest, rest)),
        |rest| is_refused(bench, rest),
    )?;
    let one = [
        ("s/a", true),
        ("s/", true),
        ("s", false),
        ("s/a/b", false),
        ("t/a", false),
    ];
    matches(bench, "s/+", &one)?;
    let within = [("s/x/y", true), ("s//y", true), ("s/y", false), ("s/x/x/y", false)];
    matches(bench, "s/+/y", &within)?;
    matches(
        bench,
        "u/+/#",
        &[("u/a", true), ("u/a/b/c", true), ("u/", true), ("u", false)],
    )
}

/// The broker's own $SYS messages serve, and what it lets Clients publish below $.
fn dollar(bench: &Bench) -> Outcome {
    if !bench.settings.topic_prefix.is_empty() {
        return skip("filters that begin with a wildcard are outside the topic prefix");
    }
    let (own, fence) = (bench.topic("t"), bench.topic("fence"));
    let depth = own.matches('/').count();
    let plus = format!("+{}", "/+".repeat(depth));
    each([("#", "#".to_owned()), ("+/…", plus)], |filter| {
        let mut client = bench.client("a")?;
        client.subscribe(&[(&filter, 0)])?;
        for name in ["$SYS", "$conformance"] {
            // It may end the connection for this.
            let mut publisher = bench.client("d")?;
            let topic = format!("{name}/{}", own.split_once('/').map_or("", |(_, rest)| rest));
            publisher.send([publish(0, topic, 0, "x"), PINGREQ.to_vec()].concat());
            while let Event::Packet(came) = publisher.receive()? {
                if came.kind() == PINGRESP {
                    break;
                }
            }
        }
        bench.client("p")?.publish(&fence, "fence", 1, false)?;
        loop {
            // Other cases publish, too.
            let message = client.message("messages on topics that do not begin with $")?;
            if message.topic.starts_with('$') {
                return client.failed(
                    "no message on a topic that begins with $",
                    format!("one on {}", message.topic),
                );
            }
            if message.topic == fence {
                break;
            }
        }
        client.leave();
        Ok(())
    })
}

fn empty(bench: &Bench) -> Outcome {
    let topic = bench.topic("t");
    let variants = [
        ("PUBLISH", publish(0, "", 0, "x")),
        ("PUBLISH at QoS 1", publish(2, "", 1, "x")),
        ("SUBSCRIBE", subscribe(1, &[("", 0)])),
        ("SUBSCRIBE, among others", subscribe(1, &[(&topic, 0), ("", 0)])),
        ("UNSUBSCRIBE", unsubscribe(1, &[""])),
    ];
    each(variants, |bytes| {
        let mut client = bench.client("a")?;
        let is_subscribe = bytes[0] == 0x82;
        client.send(bytes);
        // As with any filter that is none, 0x80 is a no.
        match client.event(bench.settings.silence)? {
            Event::Packet(came) if is_subscribe && came.kind() == SUBACK && came.body.last() == Some(&0x80) => Ok(()),
            Event::Closed => Ok(()),
            Event::Silence => client.closed("the connection is closed"),
            event => client.unexpected("the connection is closed", &event),
        }
    })
}

fn look_alikes(bench: &Bench) -> Outcome {
    let names = [
        "Straße",
        "STRASSE",
        "straße",
        "Stra\u{df}e/",
        "/Straße",
        "Straße ",
        "u\u{308}",
        "ü",
        "a//b",
        "a/b",
        "%61",
    ];
    each(names.map(|name| (format!("{name:?}"), name)), |name| {
        let topics = names.map(|other| (other, other == name));
        matches(bench, name, &topics)
    })
}
