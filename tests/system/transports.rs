//! Four ports, one broker: what a client may rely on does not depend on the port it uses, nor on the one that others use.
//! That all ports see one order is in `order`, a browser's page in `browser`.

use crate::broker::{Broker, FOUR_CORES, SETTINGS, Setting, Transport, patience};
use crate::clients::{
    Address, Agent, LIBRARIES, Library, Message, MosquittoSub, hello, mosquitto_pub, mosquitto_pub_at,
};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use Transport::{SecureWebSocket, Tcp, Tls, WebSocket};

/// From each port to each other one, each way once.
const TOUR: [Transport; 13] = [
    Tcp,
    Tls,
    Tcp,
    WebSocket,
    Tls,
    SecureWebSocket,
    Tls,
    WebSocket,
    SecureWebSocket,
    WebSocket,
    Tcp,
    SecureWebSocket,
    Tcp,
];

#[test]
fn the_tour_leads_from_each_port_to_each_other_once() {
    let mut steps: Vec<_> = TOUR
        .windows(2)
        .map(|step| (step[0] as usize, step[1] as usize))
        .collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.len() == 12 && steps.iter().all(|(from, to)| from != to));
}

/// Around the lengths at which a WebSocket frame's header and a TLS record's end lie, up to 200 KB.
fn payloads() -> Vec<Vec<u8>> {
    let sizes = [0, 1, 100, 126, 4_096, 16_384, 65_536, 200_000, 2];
    let payload = |size| (0..size).map(|n: u32| (n * 31 % 251) as u8).collect();
    sizes.map(payload).into()
}

/// Sixteen pairs of ports, four pairs of libraries, three QoS; all publishers of a library at the same time. The large
/// payloads, which take most of the time, are sent in half of the settings: on one core and on four, on either driver.
#[test]
fn a_publisher_on_each_port_reaches_subscribers_on_all_four() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let mut payloads = payloads();
        if setting.private_fds == "on" {
            payloads.retain(|payload| payload.len() <= 16_384);
        }
        // What is sent at QoS 0 comes faster here than a library reads it.
        let broker = Broker::start(setting, &["--max-outbox", "16 MiB"]);
        for agent in &mut agents {
            for transport in Transport::ALL {
                let name = transport.name();
                let id = format!("{:?} {name}", agent.library);
                // MQTT.js asks for another subprotocol at level 3, mqttv3.1.
                let level = if setting.cores == 1 { 3 } else { 4 };
                agent.connect(name, &broker, hello(&id).over(transport).level(level));
                assert_eq!(agent.subscribe(name, &[("pairs/#", 2)]), [2]);
            }
        }
        for publisher in 0..agents.len() {
            for transport in Transport::ALL {
                for qos in 0..=2 {
                    let topic = format!("pairs/{}/{qos}", transport.name());
                    agents[publisher].begin_payloads(transport.name(), &topic, qos, &payloads);
                }
            }
            for transport in Transport::ALL {
                for _ in 0..=2 {
                    agents[publisher].await_burst(transport.name());
                }
            }
            let library = agents[publisher].library;
            for agent in &mut agents {
                for to in Transport::ALL {
                    let mut of_topic: HashMap<String, Vec<Message>> = HashMap::new();
                    for message in agent.messages(to.name(), 4 * 3 * payloads.len()) {
                        of_topic.entry(message.topic.clone()).or_default().push(message);
                    }
                    for from in Transport::ALL {
                        for qos in 0..=2 {
                            let topic = format!("pairs/{}/{qos}", from.name());
                            let expected = payloads.iter().map(|payload| Message::new(&topic, payload, qos, false));
                            assert!(
                                of_topic.remove(&topic).unwrap_or_default().into_iter().eq(expected),
                                "{library:?} over {from:?} to {:?} over {to:?}, QoS {qos}, {setting:?}",
                                agent.library
                            );
                        }
                    }
                    assert!(
                        of_topic.is_empty(),
                        "topics that nobody published to: {:?}",
                        of_topic.keys()
                    );
                }
            }
        }
        broker.stop();
    }
}

/// Passes one TLS connection on to this port, and tells the version that the server chose for it.
fn version_teller(port: u16) -> (u16, Receiver<&'static str>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    let (tell, told) = channel();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        // Its first record is the ServerHello.
        let mut head = [0; 5];
        server.read_exact(&mut head).unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        server.read_exact(&mut hello).unwrap();
        // Extension supported_versions, two bytes, 0x0304 (RFC 8446 section 4.2.1); TLS 1.2 does not have it.
        let is_1_3 = hello.windows(6).any(|bytes| bytes == [0, 43, 0, 2, 3, 4]);
        let _ = tell.send(if is_1_3 { "TLSv1.3" } else { "TLSv1.2" });
        client.write_all(&[&head[..], &hello].concat()).unwrap();
        let _ = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(Shutdown::Write);
    });
    (here, told)
}

/// The commands' own `--tls-version tlsv1.2` was seen (2.0.11) to agree on 1.3, so OpenSSL is told.
#[test]
fn the_mosquitto_commands_verify_the_broker_over_tls_1_2_and_1_3() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for version in ["TLSv1.2", "TLSv1.3"] {
            let openssl = broker.directory().join(version);
            let limits = format!(
                "openssl_conf = begin\n[begin]\nssl_conf = ssl\n[ssl]\nsystem_default = limits\n[limits]\n\
                 MinProtocol = {version}\nMaxProtocol = {version}\n"
            );
            std::fs::write(&openssl, limits).unwrap();
            let tls = || {
                let (port, told) = version_teller(broker.port_of(Tls));
                let address = Address {
                    port,
                    certificate: Some(broker.certificate()),
                    openssl: Some(openssl.clone()),
                };
                (address, told)
            };
            let (address, told) = tls();
            let mut over_tls = MosquittoSub::start_at(&address, &["-q", "2", "-t", "#"]);
            assert_eq!(told.recv().unwrap(), version, "mosquitto_sub, {setting:?}");
            let mut over_tcp = MosquittoSub::start(&broker, &["-q", "2", "-t", "#"]);
            for (qos, payload) in [(0, vec![]), (1, vec![b'x'; 200_000]), (2, b"small".to_vec())] {
                let message = Message::new("mosquitto", &payload, qos, false);
                let (address, told) = tls();
                mosquitto_pub_at(&address, &[], &message);
                assert_eq!(told.recv().unwrap(), version, "mosquitto_pub, {setting:?}");
                mosquitto_pub(&broker, &[], &message);
                for _ in 0..2 {
                    assert!(over_tls.message() == message, "QoS {qos}, {version}, {setting:?}");
                    assert!(over_tcp.message() == message, "QoS {qos}, {version}, {setting:?}");
                }
            }
        }
        broker.stop();
    }
}

/// [MQTT-3.1.4-2]
#[test]
fn a_takeover_from_another_port_closes_the_older_connection_and_keeps_the_session() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        agents[0].connect("w", &broker, hello("watcher"));
        agents[0].subscribe("w", &[("will", 1)]);
        for (step, transport) in TOUR.into_iter().enumerate() {
            let will = Message::new("will", step.to_string(), 1, false);
            let hello = hello("same").durable().over(transport).will(will);
            let newer = step % 2;
            let resumed = agents[newer].connect("a", &broker, hello);
            assert_eq!(resumed, step > 0, "step {step}, {setting:?}");
            if step == 0 {
                agents[newer].subscribe("a", &[("mine", 1)]);
            } else {
                agents[1 - newer].closed("a");
                let will = agents[0].message("w");
                assert_eq!(will.payload, (step - 1).to_string().as_bytes(), "{setting:?}");
            }
            let message = Message::new("mine", step.to_string(), 1, false);
            agents[0].publish("w", &message);
            assert_eq!(agents[newer].message("a"), message, "step {step}, {setting:?}");
            agents[newer].fence("a");
        }
        broker.stop();
    }
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-4.6.0-6]
#[test]
fn a_durable_session_is_resumed_over_another_port_with_what_waited() {
    const COUNT: usize = 40;
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        for (step, transport) in TOUR.into_iter().enumerate() {
            let (subscriber, publisher) = (step % 2, 1 - step % 2);
            let agent = &mut agents[subscriber];
            let resumed = agent.connect("s", &broker, hello("durable").durable().over(transport));
            assert_eq!(resumed, step > 0, "step {step}, {setting:?}");
            if step == 0 {
                agent.subscribe("s", &[("away/+", 2)]);
            } else {
                let got = agent.messages("s", 2 * COUNT);
                for qos in [1, 2] {
                    let of_qos = got.iter().filter(|message| message.qos == qos);
                    let expected = (0..COUNT).map(|n| format!("{step}-{n}"));
                    assert!(
                        of_qos.map(Message::label).eq(expected),
                        "QoS {qos}, step {step} to {:?} over {transport:?}, {setting:?}",
                        agent.library
                    );
                }
                agent.fence("s");
            }
            agent.disconnect("s");

            let agent = &mut agents[publisher];
            agent.connect("p", &broker, hello("publisher").over(TOUR[12 - step]));
            for qos in [1, 2] {
                let prefix = format!("{}-", step + 1);
                agent.begin_burst("p", &format!("away/{qos}"), qos, &prefix, COUNT, 2_000);
            }
            agent.await_burst("p");
            agent.await_burst("p");
            agent.disconnect("p");
        }
        broker.stop();
    }
}

/// [MQTT-3.1.2-6]
#[test]
fn a_clean_session_forgets_what_was_on_another_port() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let [agent, publisher] = &mut agents;
        publisher.connect("p", &broker, hello("publisher").over(SecureWebSocket));
        for step in TOUR.windows(2) {
            agent.connect("s", &broker, hello("s").durable().over(step[0]));
            agent.subscribe("s", &[("before", 1)]);
            agent.disconnect("s");
            publisher.publish("p", &Message::new("before", "queued", 1, false));
            let resumed = agent.connect("s", &broker, hello("s").over(step[1]));
            assert!(!resumed, "{step:?}, {setting:?}");
            agent.subscribe("s", &[("after", 1)]);
            publisher.publish("p", &Message::new("before", "subscribed", 1, false));
            publisher.publish("p", &Message::new("after", "end", 1, false));
            assert_eq!(agent.message("s").payload, b"end", "{step:?}, {setting:?}");
            agent.disconnect("s");
        }
        broker.stop();
    }
}

/// Watchers on all ports, each sees the same four wills.
fn expect_wills(watchers: &mut Agent, text: &str, setting: Setting) {
    for watcher in Transport::ALL {
        let mut got = watchers.messages(watcher.name(), 4);
        got.sort();
        let mut expected = Transport::ALL.map(|victim| Message::new(&format!("will/{victim:?}"), text, 1, false));
        expected.sort();
        assert_eq!(got, expected, "seen over {watcher:?}, {setting:?}");
    }
}

/// [MQTT-3.1.2-8] [MQTT-3.1.2-24]
#[test]
fn a_client_that_is_killed_or_falls_silent_has_its_will_published_to_every_port() {
    let mut watchers = Agent::start(Library::MqttJs);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        for transport in Transport::ALL {
            let hello = hello(&format!("watcher {transport:?}")).over(transport);
            watchers.connect(transport.name(), &broker, hello);
            watchers.subscribe(transport.name(), &[("will/+", 1)]);
        }
        let victims = |text: &str, keep_alive| {
            let mut victims = Agent::start(Library::Paho);
            for transport in Transport::ALL {
                let will = Message::new(&format!("will/{transport:?}"), text, 1, false);
                let hello = hello(&format!("{text} {transport:?}")).over(transport).will(will);
                victims.connect(transport.name(), &broker, hello.keep_alive(keep_alive));
            }
            victims
        };
        victims("killed", 60).kill();
        expect_wills(&mut watchers, "killed", setting);

        let silent = victims("silent", 1);
        silent.freeze();
        let began = Instant::now();
        expect_wills(&mut watchers, "silent", setting);
        let after = began.elapsed();
        // One and a half times the keep alive, since its latest packet, which may have been a while ago.
        let limit = Duration::from_millis(400)..patience(Duration::from_secs(3));
        assert!(limit.contains(&after), "after {after:?}, {setting:?}");
        broker.stop();
    }
}

/// 60 MB are published to eight subscribers that never read, two on each port: what the broker holds for each is bounded by
/// `--max-outbox` and `--max-queued-bytes`, the layers below MQTT included. `hostile` says what else counts.
#[test]
fn a_subscriber_that_never_reads_costs_bounded_memory_on_any_port() {
    const ROUNDS: usize = 12;
    const COUNT: usize = 25;
    const SIZE: usize = 200_000;
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &["--max-queued-bytes", "2 MiB"]);
        let mut deaf = Agent::start(Library::Paho);
        let mut others = Agent::start(Library::MqttJs);
        for transport in Transport::ALL {
            for qos in [0, 1] {
                let name = format!("deaf {transport:?} {qos}");
                let hello = hello(&name).over(transport).keep_alive(600).clip(16);
                deaf.connect(&name, &broker, hello);
                deaf.subscribe(&name, &[("loud/#", qos)]);
            }
            let name = transport.name();
            others.connect(name, &broker, hello(&format!("witness {name}")).over(transport));
            others.subscribe(name, &[("witness/#", 1)]);
        }
        let mut publisher = Agent::start(Library::MqttJs);
        publisher.connect("p", &broker, hello("publisher"));
        deaf.freeze();
        publisher.begin_burst("p", "loud/warm", 1, "", 2 * COUNT, SIZE);
        publisher.await_burst("p");
        let before = broker.resident_kib();
        let mut longest = Duration::ZERO;
        for round in 0..ROUNDS {
            publisher.begin_burst("p", &format!("loud/{round}"), 1, "", COUNT, SIZE);
            for from in Transport::ALL {
                let message = Message::new(&format!("witness/{round}/{}", from.name()), "all is well", 1, false);
                let began = Instant::now();
                others.publish(from.name(), &message);
                for to in Transport::ALL {
                    assert_eq!(others.message(to.name()), message, "{from:?} to {to:?}, {setting:?}");
                }
                longest = longest.max(began.elapsed());
            }
            publisher.await_burst("p");
        }
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(grown < 48 * 1024, "resident memory grew by {grown} KiB, {setting:?}");
        assert!(
            longest < patience(Duration::from_secs(2)),
            "others waited for {longest:?}, {setting:?}"
        );

        // What it did not read for so long does not keep it from coming back.
        deaf.thaw();
        let name = "deaf SecureWebSocket 1";
        deaf.connect(name, &broker, hello(name).over(SecureWebSocket));
        deaf.subscribe(name, &[("quiet", 1)]);
        let message = Message::new("quiet", "back", 1, false);
        publisher.publish("p", &message);
        assert_eq!(deaf.message(name), message, "{setting:?}");
        broker.stop();
    }
}
