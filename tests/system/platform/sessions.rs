//! The session service (14.3), and a session as it is shown (8.6).

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use super::fixture::{LIFTED, Platform, assert_error, eventually, keys};
use super::time::{basic, now_s};
use crate::broker::Transport;
use crate::clients::{Agent, Library};
use crate::raw::{Connect, Raw};

fn sessions(platform: &Platform, index: usize) -> Vec<Value> {
    let list = platform.api(index).get("/v2/session").expect(200).json();
    let mut sessions = list.as_array().expect("an array").clone();
    sessions.sort_by_key(|session| session["client_id"].as_str().unwrap().to_owned());
    sessions
}

fn ids(platform: &Platform, index: usize) -> Vec<String> {
    let sessions = sessions(platform, index);
    sessions
        .iter()
        .map(|session| session["client_id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_connected_clients_of_the_account_are_listed_from_every_port() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 2, &LIFTED);
        platform
            .api(0)
            .put("/v2/user", json!({"locale": "Asia/Tokyo"}))
            .expect(200);
        assert_eq!(sessions(&platform, 0), [json!(null); 0]);
        let began = now_s();
        let mut agent = Agent::start(Library::MqttJs);
        for (n, transport) in Transport::ALL.into_iter().enumerate() {
            let hello = platform
                .account(0)
                .hello(transport.name())
                .over(transport)
                .keep_alive(30 + n as u16);
            let hello = if n % 2 == 0 { hello.durable() } else { hello };
            let hello = if n < 2 { hello.level(3) } else { hello };
            agent.connect(transport.name(), platform.broker(), hello);
        }
        let other = platform.client(1, "other");
        let list = sessions(&platform, 0);
        let mut expected: Vec<_> = Transport::ALL
            .into_iter()
            .enumerate()
            .map(|(n, transport)| {
                json!({
                    "client_id": transport.name(), "ipaddress": "127.0.0.1", "clean_sess": n % 2 == 1,
                    "proto_ver": if n < 2 { 3 } else { 4 }, "keepalive": 30 + n, "connected_at": null,
                })
            })
            .collect();
        expected.sort_by_key(|session| session["client_id"].as_str().unwrap().to_owned());
        let mut shown = list.clone();
        for session in &mut shown {
            let at = basic(session["connected_at"].as_str().unwrap(), "+0900");
            assert!((began..=now_s()).contains(&at), "{session}");
            session["connected_at"] = json!(null);
            let fields = [
                "clean_sess",
                "client_id",
                "connected_at",
                "ipaddress",
                "keepalive",
                "proto_ver",
            ];
            assert_eq!(keys(session), fields);
        }
        assert_eq!(shown, expected);
        assert_eq!(ids(&platform, 1), ["other"]);
        // A durable session that is away is not listed.
        for transport in Transport::ALL {
            agent.disconnect(transport.name());
        }
        eventually("nobody is connected", || ids(&platform, 0).is_empty());
        drop(other);
        eventually("nor the other", || ids(&platform, 1).is_empty());
    }
}

#[test]
fn a_takeover_is_one_session_with_the_time_of_the_later() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &LIFTED);
        let account = platform.account(0);
        let mut first = platform.raw(account.connect_durable("same"));
        let before = sessions(&platform, 0)[0].clone();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let _second = platform.raw(Connect {
            level: 3,
            keep_alive_s: 7,
            ..account.connect("same")
        });
        assert!(first.is_closed_within(std::time::Duration::from_secs(10)));
        let [after] = &sessions(&platform, 0)[..] else {
            panic!("not one session")
        };
        assert_eq!(
            (&after["keepalive"], &after["proto_ver"], &after["clean_sess"]),
            (&json!(7), &json!(3), &json!(true))
        );
        assert_ne!(after["connected_at"], before["connected_at"]);
    }
}

/// Behind a proxy the address is what the proxy says.
#[test]
fn the_address_is_that_of_the_client_behind_a_proxy() {
    for cores in [1, 4] {
        let flags = [&LIFTED[..], &["--proxy-protocol", "mqtt"]].concat();
        let platform = Platform::start_with(cores, 1, &flags);
        let mut raws = Vec::new();
        for (n, (header, _)) in PROXIED.into_iter().enumerate() {
            let mut socket = TcpStream::connect(platform.broker().address()).unwrap();
            socket.write_all(header).unwrap();
            let id = format!("proxied{n}");
            raws.push(Raw::over(socket, &platform.account(0).connect(&id).packet()).unwrap());
        }
        let addresses: Vec<_> = sessions(&platform, 0)
            .iter()
            .map(|session| session["ipaddress"].clone())
            .collect();
        let expected: Vec<_> = PROXIED.iter().map(|(_, address)| json!(address)).collect();
        assert_eq!(addresses, expected);
    }
}

const PROXIED: [(&[u8], &str); 3] = [
    (b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 1883\r\n", "203.0.113.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 1883\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
];

#[test]
fn nothing_else_is_offered() {
    let platform = Platform::start(1);
    assert_error(&platform.anybody().get("/v2/session"), 401, "AUTH_REQUIRED");
    for method in ["POST", "PUT", "DELETE"] {
        assert_error(&platform.api(0).call(method, "/v2/session", None), 405, "BAD_METHOD");
    }
    assert_eq!(platform.api(0).get("/v2/session/").expect(200).json(), json!([]));
}

/// Many sessions on all cores, none missing and none twice.
#[test]
fn a_crowd_is_listed_whole() {
    let platform = Platform::start(2);
    let mut expected: Vec<_> = (0..300).map(|n| format!("client{n:03}")).collect();
    let mut raws: Vec<_> = expected.iter().map(|id| platform.client(0, id)).collect();
    let _others: Vec<_> = expected.iter().take(50).map(|id| platform.client(1, id)).collect();
    assert_eq!(ids(&platform, 0), expected);
    assert_eq!(ids(&platform, 1), expected[..50]);
    raws.drain(..100);
    expected.drain(..100);
    eventually("the rest is listed", || ids(&platform, 0) == expected);
}
