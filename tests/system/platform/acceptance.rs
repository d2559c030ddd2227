//! The acceptance list of the contract (section 15), as an operator would go through it: `mosquitto_pub`, `mosquitto_sub` and
//! `curl`, on each of the four ports, with one core and with four. The mosquitto commands know no WebSocket, so there the
//! libraries stand in for them.

use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use super::fixture::{Account, LIFTED, Platform, assert_error, eventually, keys, settle, values};
use super::servers::Hook;
use crate::broker::Transport;
use crate::clients::{Address, Agent, INSTALL, Library, Message, MosquittoSub, mosquitto_pub_at};

const CORES: [u16; 2] = [1, 4];

/// Whoever publishes and subscribes on a port.
struct Clients {
    /// For the two ports of WebSocket.
    library: Agent,
    paho: Agent,
}

impl Clients {
    fn start() -> Clients {
        Clients {
            library: Agent::start(Library::MqttJs),
            paho: Agent::start(Library::Paho),
        }
    }

    /// One connection, one message, as `mosquitto_pub` does it.
    fn publish(&mut self, platform: &Platform, over: Transport, account: &Account, message: &Message) {
        if let Transport::Tcp | Transport::Tls = over {
            let address = Address::of(platform.broker(), over);
            return mosquitto_pub_at(&address, &account.mosquitto(), message);
        }
        let hello = account.hello("publisher").over(over);
        self.library.connect("publisher", platform.broker(), hello);
        self.library.publish("publisher", message);
        self.library.disconnect("publisher");
    }
}

/// On every port, with an account of its own for each.
fn on_every_port(cores: u16, check: impl Fn(&mut Clients, &Platform, usize, Transport)) {
    let mut clients = Clients::start();
    let mut platform = Platform::start_with(
        cores,
        Transport::ALL.len() + 1,
        &[&LIFTED[..], &["--log", "debug"]].concat(),
    );
    for (index, transport) in Transport::ALL.into_iter().enumerate() {
        check(&mut clients, &platform, index, transport);
    }
    let log = platform.stop();
    for index in 0..=Transport::ALL.len() {
        let account = platform.account(index);
        for token in [&account.api_token, &account.device_token] {
            assert!(!log.contains(token.as_str()), "a token is in the log: {log}");
        }
    }
}

#[test]
fn item_1_a_new_device_is_registered_and_keeps_data_once_it_is_mapped() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let account = platform.account(index);
            let api = platform.api(index);
            assert_eq!(api.get("/v2/device").expect(200).json(), json!([]));
            // As the list has it, at QoS 0.
            let message = Message::new(&account.topic("json/pump-07"), r#"{"temp":20}"#, 0, false);
            clients.publish(platform, over, account, &message);
            eventually("pump-07 is registered", || platform.devices(index) == ["pump-07"]);
            assert_eq!(platform.device(index, "pump-07")["mapped_ch"], json!(null));
            assert_eq!(api.get("/v2/channel").expect(200).json(), json!([]));
            api.post("/v2/channel/3", "").expect(201);
            api.put("/v2/device/pump-07", json!({"mapped_ch": 3})).expect(200);
            assert_eq!(
                platform.values(index, 3),
                Vec::<serde_json::Value>::new(),
                "the first was not kept"
            );
            clients.publish(platform, over, account, &message);
            eventually("one datapoint is stored", || {
                platform.values(index, 3) == [json!({"temp": 20})]
            });
            settle();
            assert_eq!(platform.values(index, 3).len(), 1, "{over:?}");
        });
    }
}

#[test]
fn item_2_a_number_is_wrapped_and_bytes_are_kept_as_hexadecimal_digits() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let account = platform.account(index);
            platform.map(index, "pump-07", 3);
            let mut publish = |topic: &str, payload: &[u8]| {
                clients.publish(
                    platform,
                    over,
                    account,
                    &Message::new(&account.topic(topic), payload, 1, false),
                );
            };
            publish("json/pump-07", b"23.5");
            publish("binary/pump-07", &[0x01, 0xa4, 0xff]);
            let expected = [json!({"value1": 23.5}), json!({"value1": "01a4ff"})];
            assert_eq!(platform.values(index, 3), expected, "{over:?}");
        });
    }
}

#[test]
fn item_3_a_foreign_token_is_acknowledged_and_leaves_no_trace() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let other = Transport::ALL.len();
            let account = platform.account(index);
            platform.map(index, "pump-07", 3);
            if index == 0 {
                platform.map(other, "pump-07", 3);
            }
            let mut watchers = [index, other].map(|index| platform.watch(index));
            let unknown = "0".repeat(32);
            for token in [&platform.account(other).device_token, &account.api_token, &unknown] {
                for qos in 0..=2 {
                    for topic in [
                        "json/pump-07",
                        "binary/pump-07",
                        "json/new",
                        "state/pump-07",
                        "pump-07/subscribe",
                        "x",
                    ] {
                        // Acknowledged at QoS 1 and 2, or it would not come back.
                        let message = Message::new(&format!("{token}/{topic}"), "1", qos, true);
                        clients.publish(platform, over, account, &message);
                    }
                }
            }
            settle();
            for (index, watcher) in [index, other].into_iter().zip(&mut watchers) {
                assert_eq!(platform.values(index, 3).len(), 0, "{over:?}");
                assert_eq!(platform.devices(index), ["pump-07"], "{over:?}");
                assert_eq!(platform.device(index, "pump-07").get("state"), None, "{over:?}");
                assert_eq!(watcher.arrived(), [], "{over:?}");
            }
            // Nor was any of them retained.
            let mut later = platform.watch(other);
            settle();
            assert_eq!(later.arrived(), [], "{over:?}");
        });
    }
}

#[test]
fn item_4_a_filter_above_the_own_prefix_is_refused() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let account = platform.account(index);
            let own = account.topic("#");
            let foreign = platform.account(4).topic("#");
            // MQTT.js takes a refusal for an error of its own.
            let agent = &mut clients.paho;
            agent.connect("s", platform.broker(), account.hello("subscriber").over(over));
            let filters = [("#", 1), (&own[..], 1), (&foreign[..], 2), ("$SYS/#", 0)];
            assert_eq!(agent.subscribe("s", &filters), [0x80, 1, 0x80, 0x80], "{over:?}");
            agent.disconnect("s");
            if let Transport::Tcp | Transport::Tls = over {
                let said = mosquitto_sub(platform, over, account, &["-V", "mqttv311", "-t", "#"]);
                let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
                assert!(said.contains("denied"), "{said}");
            }
        });
    }
}

/// Ends by itself where it is refused.
fn mosquitto_sub(platform: &Platform, over: Transport, account: &Account, arguments: &[&str]) -> Output {
    let address = Address::of(platform.broker(), over);
    let mut command = Command::new("mosquitto_sub");
    command.args(["-h", "127.0.0.1", "-p", &address.port.to_string(), "-W", "5"]);
    if let Some(certificate) = &address.certificate {
        command.arg("--cafile").arg(certificate);
    }
    let output = command.args(account.mosquitto()).args(arguments).output();
    output.unwrap_or_else(|error| panic!("mosquitto_sub cannot be started ({error}): {INSTALL}"))
}

#[test]
fn item_5_a_command_published_by_http_reaches_the_subscriber_on_every_port() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let account = platform.account(index);
            let topic = account.topic("pump-07/subscribe");
            let api = platform.api(index);
            api.post("/v2/device/pump-07", "").expect(201);
            let agent = &mut clients.library;
            agent.connect("s", platform.broker(), account.hello("subscriber").over(over));
            agent.subscribe("s", &[(&topic, 1)]);
            let publish = |qos: u8| {
                let body = json!({"qos": qos, "payload": "valve=open"});
                api.post("/v2/publish/pump-07", body).expect(200);
                Message::new(&topic, "valve=open", qos, false)
            };
            for qos in [0, 1] {
                let expected = publish(qos);
                assert_eq!(agent.message("s"), expected, "{over:?}");
            }
            agent.disconnect("s");
            if let Transport::Tcp | Transport::Tls = over {
                let address = Address::of(platform.broker(), over);
                let arguments = [&account.mosquitto()[..], &["-q", "1", "-t", &topic]].concat();
                let mut command = MosquittoSub::start_at(&address, &arguments);
                let expected = publish(1);
                assert_eq!(command.message(), expected, "{over:?}");
            }
        });
    }
}

#[test]
fn item_6_each_token_fails_in_the_place_of_the_other() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let account = platform.account(index);
            let hello = account
                .hello("device")
                .user(&account.user_id, &account.api_token)
                .over(over);
            let reason = clients.library.refused("d", platform.broker(), hello);
            assert!(reason.contains("Bad username or password"), "{reason}");
            if let Transport::Tcp | Transport::Tls = over {
                let swapped = Account {
                    device_token: account.api_token.clone(),
                    ..account.clone()
                };
                let output = mosquitto_sub(platform, over, &swapped, &["-t", "x"]);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    !output.status.success() && said.contains("bad user name or password"),
                    "{said}"
                );
            }
            let api = platform.anybody().header("X-APITOKEN", &account.device_token);
            assert_error(&api.get("/v2/device"), 401, "AUTH_REQUIRED");
            let connector = platform.anybody().header("X-DEVICETOKEN", &account.api_token);
            let reply = connector.header("X-DEVICEID", "pump-07").post("/post_v2/", "1");
            assert_error(&reply, 401, "AUTH_REQUIRED");
        });
    }
}

/// With the rates that are the default.
#[test]
fn item_7_the_http_connector_answers_by_what_the_registry_says_of_the_device() {
    for cores in CORES {
        let platform = Platform::start_with(cores, 1, &[]);
        let connector = platform.connector(0, "pump-07");
        let pause = || sleep(Duration::from_millis(1100));
        let reply = connector.post("/post_v2/", r#"{"temp":20}"#);
        assert_eq!(
            (reply.status, reply.json()),
            (201, json!({"result": "NEW_DEVICE_FOUND"}))
        );
        pause();
        assert_error(&connector.post("/post_v2/", r#"{"temp":21}"#), 403, "NO_MAPPED_CH");
        platform.map(0, "pump-07", 3);
        pause();
        // On one connection, so that a second is long for both.
        let replies = connector.post_times("/post_v2/", r#"{"temp":22}"#, 2);
        assert_eq!((replies[0].status, replies[0].json()), (200, json!({"result": "OK"})));
        assert_error(&replies[1], 429, "TOO_MANY_REQUESTS");
        assert_eq!(replies[1].header("retry-after"), Some("1"));
        platform
            .api(0)
            .put("/v2/device/pump-07", json!({"enabled": false}))
            .expect(200);
        pause();
        assert_error(&connector.post("/post_v2/", r#"{"temp":24}"#), 403, "DEVICE_DISABLED");
        assert_eq!(platform.values(0, 3), [json!({"temp": 22})]);
    }
}

#[test]
fn item_8_endtime_last_alone_is_exactly_the_newest_datapoint() {
    for cores in CORES {
        on_every_port(cores, |clients, platform, index, over| {
            let account = platform.account(index);
            platform.map(index, "pump-07", 3);
            let stream = platform.api(index).header("X-ENDTIME", "last");
            for n in 0..3 {
                let message = Message::new(&account.topic("json/pump-07"), format!("{{\"n\":{n}}}"), 1, false);
                clients.publish(platform, over, account, &message);
                let newest = stream.get("/v2/stream/3").expect(200).json();
                assert_eq!(values(&newest), [json!({"n": n})], "{over:?}");
            }
        });
    }
}

#[test]
fn item_9_an_event_posts_once_for_each_datapoint_that_matches() {
    for cores in CORES {
        let hook = Hook::content();
        let mut clients = Clients::start();
        let flags = [&LIFTED[..], &["--webhook-allow", "127.0.0.0/8"]].concat();
        let platform = Platform::start_with(cores, 4, &flags);
        let mut expected = 0;
        for (index, over) in Transport::ALL.into_iter().enumerate() {
            let account = platform.account(index);
            platform.map(index, "pump-07", 3);
            let api = platform.api(index);
            api.put("/v2/channel/3", json!({"channel_name": "water"})).expect(200);
            let event = json!({
                "mapped_ch": 3, "description": "well too warm", "notify_type": "http", "post_url": hook.url("/hook"),
                "enabled": true, "source": "temp", "operator": ">", "threshold": "30",
            });
            let made = api.post("/v2/event", &event).expect(201).json();
            for temp in ["30", "31.2", "29", "31.2", "40"] {
                let payload = format!("{{\"temp\":{temp}}}");
                let message = Message::new(&account.topic("json/pump-07"), payload, 1, false);
                clients.publish(&platform, over, account, &message);
                expected += usize::from(temp > "30");
                hook.await_requests(expected);
            }
            settle();
            let requests = hook.await_requests(expected);
            let mut current = Vec::new();
            for request in &requests[expected - 3..] {
                assert_eq!((&request.method[..], &request.path[..]), ("POST", "/hook"));
                assert!(request.header("content-type").unwrap().starts_with("application/json"));
                let posted = request.json();
                let fields = [
                    "channel_name",
                    "current",
                    "description",
                    "event_id",
                    "mapped_ch",
                    "source",
                    "status",
                    "threshold",
                ];
                assert_eq!(keys(&posted), fields);
                assert_eq!(posted["event_id"], made["event_id"]);
                assert_eq!(posted["description"], "well too warm");
                assert_eq!(
                    (&posted["mapped_ch"], &posted["channel_name"]),
                    (&json!(3), &json!("water"))
                );
                assert_eq!(
                    (&posted["source"], &posted["threshold"]),
                    (&json!("temp"), &json!("30"))
                );
                let status = posted["status"].as_str().unwrap();
                assert!(
                    status.ends_with(&format!("Current:{} > Threshold:30", posted["current"])),
                    "{status}"
                );
                current.push(posted["current"].clone());
            }
            assert_eq!(current, [json!(31.2), json!(31.2), json!(40)], "{over:?}");
        }
    }
}

/// With the rate that is the default.
#[test]
fn item_10_the_21st_request_in_one_second_is_one_too_many() {
    for cores in CORES {
        let platform = Platform::start_with(cores, 1, &[]);
        let replies = platform.api(0).get_times("/v2/device", 21);
        let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
        assert_eq!(statuses, [vec![200; 20], vec![429]].concat());
        assert_error(&replies[20], 429, "TOO_MANY_REQUESTS");
        assert_eq!(replies[20].header("retry-after"), Some("1"));
    }
}
