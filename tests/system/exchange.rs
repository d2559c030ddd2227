//! Publish and subscribe between all clients, at every QoS, in both levels of the protocol.

use crate::broker::{Broker, FURTHER_SETTINGS, SETTINGS};
use crate::clients::{Agent, LIBRARIES, Message, MosquittoSub, hello, mosquitto_pub};

const MOSQUITTO_LEVELS: [&str; 2] = ["mqttv31", "mqttv311"];

fn sorted(mut messages: Vec<Message>) -> Vec<Message> {
    messages.sort();
    messages
}

/// Six publishers (three clients, two levels each), each at three QoS; six subscribers at QoS 2 see all of it.
#[test]
fn what_any_client_publishes_every_client_receives_at_the_same_qos() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS.into_iter().chain(FURTHER_SETTINGS) {
        let broker = Broker::start(setting, &[]);
        let mut commands =
            MOSQUITTO_LEVELS.map(|level| MosquittoSub::start(&broker, &["-V", level, "-q", "2", "-t", "exchange/#"]));
        for agent in &mut agents {
            for level in [3, 4] {
                let name = format!("level {level}");
                agent.connect(
                    &name,
                    &broker,
                    hello(&format!("{:?}{level}", agent.library)).level(level),
                );
                assert_eq!(agent.subscribe(&name, &[("exchange/#", 2)]), [2]);
            }
        }

        let mut sent = Vec::new();
        for qos in 0..=2 {
            for level in MOSQUITTO_LEVELS {
                let message = Message::new(
                    &format!("exchange/{level}/Grüße/日本/{qos}"),
                    "from a command",
                    qos,
                    false,
                );
                mosquitto_pub(&broker, &["-V", level], &message);
                sent.push(message);
            }
            for agent in &mut agents {
                for level in [3, 4] {
                    let topic = format!("exchange/{:?} {level}/Grüße/日本/{qos}", agent.library);
                    let message = Message::new(&topic, [0, 255, b'\n', 128], qos, false);
                    agent.publish(&format!("level {level}"), &message);
                    sent.push(message);
                }
            }
        }
        let sent = sorted(sent);
        for command in &mut commands {
            assert_eq!(sorted(command.messages(sent.len())), sent, "{setting:?}");
        }
        for agent in &mut agents {
            for level in [3, 4] {
                let got = sorted(agent.messages(&format!("level {level}"), sent.len()));
                assert_eq!(got, sent, "{:?}, level {level}, {setting:?}", agent.library);
            }
        }
        broker.stop();
    }
}

/// [MQTT-3.8.4-6]
#[test]
fn a_delivery_has_the_lower_of_the_qos_published_and_the_qos_granted() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for agent in &mut agents {
            for granted in 0..=2 {
                let name = format!("subscriber {granted}");
                agent.connect(&name, &broker, hello(&format!("{:?}-{granted}", agent.library)));
                assert_eq!(agent.subscribe(&name, &[("lower", granted)]), [granted]);
            }
        }
        for published in 0..=2 {
            mosquitto_pub(&broker, &[], &Message::new("lower", [published], published, false));
            for agent in &mut agents {
                for granted in 0..=2 {
                    let got = agent.message(&format!("subscriber {granted}"));
                    let expected = Message::new("lower", [published], published.min(granted), false);
                    assert_eq!(got, expected, "{:?}, granted {granted}, {setting:?}", agent.library);
                }
            }
        }
        broker.stop();
    }
}

/// From nothing to 200 KB, with the sizes at which the Remaining Length field grows by a byte.
#[test]
fn a_payload_of_any_size_arrives_unchanged() {
    const TOPIC: &str = "size";
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let mut command = MosquittoSub::start(&broker, &["-q", "1", "-t", TOPIC]);
        for agent in &mut agents {
            agent.connect("a", &broker, hello(&format!("{:?}", agent.library)));
            agent.subscribe("a", &[(TOPIC, 2)]);
        }
        for size in [0, 1, 119, 120, 121, 16_375, 16_376, 16_377, 65_536, 200_000] {
            let payload: Vec<u8> = (0..size).map(|n: u32| (n * 31 % 251) as u8).collect();
            let message = |qos| Message::new(TOPIC, &payload, qos, false);
            mosquitto_pub(&broker, &[], &message(1));
            agents[0].publish("a", &message(1));
            agents[1].publish("a", &message(1));
            for _ in 0..3 {
                assert!(
                    command.message() == message(1),
                    "mosquitto_sub, {size} bytes, {setting:?}"
                );
                for agent in &mut agents {
                    assert!(
                        agent.message("a") == message(1),
                        "{:?}, {size} bytes, {setting:?}",
                        agent.library
                    );
                }
            }
        }
        broker.stop();
    }
}

/// [MQTT-3.10.4-1]
#[test]
fn an_unsubscribed_filter_gets_nothing_and_the_others_go_on() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for agent in &mut agents {
            agent.connect("a", &broker, hello(&format!("{:?}", agent.library)));
            assert_eq!(agent.subscribe("a", &[("first/+", 1), ("second/#", 1)]), [1, 1]);
            agent.unsubscribe("a", &["first/+"]);
            agent.publish("a", &Message::new("first/x", "gone", 1, false));
            let message = Message::new(&format!("second/{:?}", agent.library), "stays", 1, false);
            agent.publish("a", &message);
            let got = agent.message("a");
            assert_eq!(got, message, "{setting:?}");
            agent.disconnect("a");
        }
        broker.stop();
    }
}
