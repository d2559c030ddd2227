//! What four cores could get wrong among themselves: the order of a topic, and floods in all directions.

use crate::broker::{Broker, FOUR_CORES, SETTINGS, Transport};
use crate::clients::{Agent, LIBRARIES, Message, hello};
use std::collections::HashMap;

/// Four publishers, one on each port, and eight subscribers, one of either library on each port, on as many cores as their
/// Client Identifiers hash to. That each publisher's own messages keep their order is [MQTT-4.6.0-5]; that all see one order
/// is the broker's own promise.
#[test]
fn every_subscriber_of_a_topic_sees_the_same_order() {
    const COUNT: usize = 500;
    const TOPIC: &str = "one/order";
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for (index, agent) in agents.iter_mut().enumerate() {
            let id = |name: &str| hello(&format!("{index} {name}"));
            for (n, transport) in Transport::ALL.into_iter().enumerate() {
                let name = format!("subscriber {n}");
                agent.connect(&name, &broker, id(&name).over(transport));
                // Filters that reach the topic in three ways: exact, and by either wildcard.
                agent.subscribe(&name, &[([TOPIC, "one/+", "#"][(n + index) % 3], 1)]);
            }
            for n in 0..2 {
                let name = format!("publisher {n}");
                agent.connect(&name, &broker, id(&name).over(Transport::ALL[2 * n + index]));
            }
        }
        for (index, agent) in agents.iter_mut().enumerate() {
            for n in 0..2 {
                agent.begin_burst(&format!("publisher {n}"), TOPIC, 1, &format!("{index}{n}-"), COUNT, 20);
            }
        }
        let mut orders = Vec::new();
        for agent in &mut agents {
            for n in 0..2 {
                agent.await_burst(&format!("publisher {n}"));
            }
            for n in 0..4 {
                orders.push(agent.labels(&format!("subscriber {n}"), 4 * COUNT));
            }
        }
        for publisher in ["00-", "01-", "10-", "11-"] {
            let own = orders[0].iter().filter_map(|label| label.strip_prefix(publisher));
            let expected = (0..COUNT).map(|n| n.to_string());
            assert!(own.eq(expected), "publisher {publisher} is out of order, {setting:?}");
        }
        for order in &orders {
            let differs = order.iter().zip(&orders[0]).position(|(one, other)| one != other);
            assert_eq!(differs, None, "two subscribers differ from there on, {setting:?}");
        }
        broker.stop();
    }
}

/// Eight clients, each subscriber of one topic and publisher to all eight: every core sends to every core at once.
#[test]
fn a_flood_in_all_directions_at_qos_1_loses_nothing() {
    const COUNT: usize = 150;
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let names = ["0", "1", "2", "3"];
        let topics: Vec<String> = (0..8).map(|n| format!("flood/{n}/x/y")).collect();
        for (index, agent) in agents.iter_mut().enumerate() {
            for (n, name) in names.iter().enumerate() {
                agent.connect(
                    name,
                    &broker,
                    hello(&format!("flood {index}{name}")).inflight(200).clip(32),
                );
                agent.subscribe(name, &[(&topics[4 * index + n], 1)]);
            }
        }
        for (index, agent) in agents.iter_mut().enumerate() {
            for name in names {
                for topic in &topics {
                    agent.begin_burst(name, topic, 1, &format!("{index}{name}-"), COUNT, 1000);
                }
            }
        }
        for agent in &mut agents {
            for (n, name) in names.iter().enumerate() {
                for _ in &topics {
                    agent.await_burst(name);
                }
                let got = agent.messages(name, 8 * COUNT);
                let mut next: HashMap<String, usize> = HashMap::new();
                for label in got.iter().map(Message::label) {
                    let (publisher, number) = label.split_once('-').unwrap();
                    let next = next.entry(publisher.to_owned()).or_default();
                    assert_eq!(
                        number,
                        next.to_string(),
                        "to {name}, number {n}, from {publisher}, {setting:?}"
                    );
                    *next += 1;
                }
                assert_eq!(next.len(), 8);
            }
        }
        broker.stop();
    }
}
