//! What outlives a message or a connection: retained messages, wills, durable sessions.

use crate::broker::{Broker, SETTINGS};
use crate::clients::{Agent, LIBRARIES, Library, Message, MosquittoSub, hello, mosquitto_pub};
use std::thread::sleep;
use std::time::Duration;

/// [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-8] [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-12]
#[test]
fn a_retained_message_is_stored_replaced_and_cleared() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let [live, late] = &mut agents;
        live.connect("a", &broker, hello("live"));
        live.subscribe("a", &[("kept/#", 2)]);
        let retained = |topic, payload, qos| Message::new(topic, payload, qos, true);
        for (topic, payload, qos) in [("kept/one", "old", 1), ("kept/one", "new", 2), ("kept/two", "two", 0)] {
            mosquitto_pub(&broker, &[], &retained(topic, payload, qos));
            assert_eq!(
                live.message("a"),
                Message::new(topic, payload, qos, false),
                "{setting:?}"
            );
        }
        // Not retained: the stored message stays as it is.
        mosquitto_pub(&broker, &[], &Message::new("kept/one", "passing", 1, false));

        late.connect("b", &broker, hello("late"));
        for filters in [&["kept/+"][..], &["kept/one", "kept/two"], &["#"]] {
            let filters: Vec<_> = filters.iter().map(|&filter| (filter, 1)).collect();
            late.subscribe("b", &filters);
            let mut got = late.messages("b", 2);
            got.sort();
            let expected = [retained("kept/one", "new", 1), retained("kept/two", "two", 0)];
            assert_eq!(got, expected, "{filters:?}, {setting:?}");
        }
        let mut command = MosquittoSub::start(&broker, &["-V", "mqttv31", "-q", "2", "-t", "kept/one"]);
        assert_eq!(command.message(), retained("kept/one", "new", 2));
        late.disconnect("b");

        mosquitto_pub(&broker, &[], &retained("kept/one", "", 1));
        assert_eq!(live.message("a").payload, b"passing");
        assert_eq!(live.message("a"), Message::new("kept/one", "", 1, false));
        late.connect("b", &broker, hello("later"));
        late.subscribe("b", &[("kept/#", 1)]);
        assert_eq!(late.message("b"), retained("kept/two", "two", 0));
        late.publish("b", &Message::new("kept/one", "end", 1, false));
        assert_eq!(
            late.message("b").payload,
            b"end",
            "the cleared message came, {setting:?}"
        );
        broker.stop();
    }
}

/// [MQTT-3.1.2-8]
#[test]
fn a_client_that_is_killed_has_its_will_published() {
    let mut watcher = Agent::start(Library::MqttJs);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        watcher.connect("w", &broker, hello("watcher"));
        watcher.subscribe("w", &[("will/#", 2)]);

        let mut victim = Agent::start(Library::Paho);
        victim.connect(
            "a",
            &broker,
            hello("victim").will(Message::new("will/paho", "gone", 2, true)),
        );
        victim.kill();
        assert_eq!(
            watcher.message("w"),
            Message::new("will/paho", "gone", 2, false),
            "{setting:?}"
        );

        let will = [
            "--will-topic",
            "will/command",
            "--will-payload",
            "gone",
            "--will-qos",
            "1",
        ];
        let command = MosquittoSub::start(&broker, &[&will[..], &["-t", "any"]].concat());
        command.kill();
        assert_eq!(
            watcher.message("w"),
            Message::new("will/command", "gone", 1, false),
            "{setting:?}"
        );

        // [MQTT-3.1.2-17]: the first was to be retained, the second was not [MQTT-3.1.2-16].
        watcher.subscribe("w", &[("will/+", 2)]);
        assert_eq!(
            watcher.message("w"),
            Message::new("will/paho", "gone", 2, true),
            "{setting:?}"
        );
        watcher.publish("w", &Message::new("will/end", "end", 1, false));
        assert!(watcher.message("w").topic == "will/end", "{setting:?}");
        broker.stop();
    }
}

/// [MQTT-3.1.4-2]
#[test]
fn a_takeover_closes_the_older_connection_and_publishes_its_will() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let [first, second] = &mut agents;
        second.connect("w", &broker, hello("watcher"));
        second.subscribe("w", &[("will", 1)]);
        first.connect(
            "a",
            &broker,
            hello("same")
                .durable()
                .will(Message::new("will", "taken over", 1, false)),
        );
        first.subscribe("a", &[("mine", 1)]);
        // The other level, from the other library.
        second.connect("b", &broker, hello("same").durable().level(3));
        first.closed("a");
        assert_eq!(second.message("w").payload, b"taken over", "{setting:?}");
        // The session went over: no SUBSCRIBE was sent on this connection.
        second.publish("w", &Message::new("mine", "still", 1, false));
        assert_eq!(second.message("b").payload, b"still", "{setting:?}");
        broker.stop();
    }
}

/// [MQTT-3.1.2-10]
#[test]
fn a_client_that_disconnects_has_no_will_published() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for agent in &mut agents {
            agent.connect("w", &broker, hello("watcher"));
            agent.subscribe("w", &[("will", 1)]);
            for level in [3, 4] {
                let will = Message::new("will", "wrong", 1, false);
                agent.connect("a", &broker, hello("polite").level(level).will(will));
                agent.disconnect("a");
            }
            // Time for what must not come.
            sleep(Duration::from_millis(200));
            agent.publish("w", &Message::new("will", "end", 1, false));
            assert_eq!(agent.message("w").payload, b"end", "{:?}, {setting:?}", agent.library);
            agent.disconnect("w");
        }
        broker.stop();
    }
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT-4.6.0-6]
#[test]
fn a_durable_session_gets_in_order_what_came_while_it_was_away() {
    const COUNT: usize = 300;
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for publisher in [0, 1] {
            let subscriber = 1 - publisher;
            let id = format!("durable {subscriber}");
            let agent = &mut agents[subscriber];
            assert!(!agent.connect("s", &broker, hello(&id).durable()));
            assert_eq!(agent.subscribe("s", &[("away/+", 2)]), [2]);
            agent.disconnect("s");

            let agent = &mut agents[publisher];
            agent.connect("p", &broker, hello("publisher"));
            for qos in [1, 2] {
                agent.begin_burst("p", &format!("away/{qos}"), qos, "", COUNT, 100);
                agent.await_burst("p");
            }
            agent.disconnect("p");

            let agent = &mut agents[subscriber];
            assert!(
                agent.connect("s", &broker, hello(&id).durable()),
                "no Session Present, {setting:?}"
            );
            let got = agent.messages("s", 2 * COUNT);
            for qos in [1, 2] {
                let of_qos = got.iter().filter(|message| message.qos == qos);
                let labels: Vec<_> = of_qos.map(Message::label).collect();
                let expected: Vec<_> = (0..COUNT).map(|n| n.to_string()).collect();
                assert_eq!(labels, expected, "QoS {qos} to {:?}, {setting:?}", agent.library);
            }
            agent.disconnect("s");
        }
        broker.stop();
    }
}

/// [MQTT-3.1.2-6] [MQTT-3.2.2-1]
#[test]
fn a_clean_session_forgets_what_was_before_it() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for agent in &mut agents {
            let id = format!("{:?}", agent.library);
            agent.connect("s", &broker, hello(&id).durable());
            agent.subscribe("s", &[("before", 1)]);
            agent.disconnect("s");
            mosquitto_pub(&broker, &[], &Message::new("before", "queued", 1, false));
            assert!(!agent.connect("s", &broker, hello(&id)), "{setting:?}");
            agent.disconnect("s");
            assert!(!agent.connect("s", &broker, hello(&id).durable()), "{setting:?}");
            agent.subscribe("s", &[("after", 1)]);
            mosquitto_pub(&broker, &[], &Message::new("before", "subscribed", 1, false));
            agent.publish("s", &Message::new("after", "end", 1, false));
            assert_eq!(agent.message("s").payload, b"end", "{id}, {setting:?}");
            agent.disconnect("s");
        }
        broker.stop();
    }
}
