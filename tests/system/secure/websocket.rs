//! WebSocket, frame by frame: what is no upgrade, how frames may be cut, what closes a connection and with which code.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::peer::*;
use super::pki;
use crate::broker::{Broker, FOUR_CORES, SETTINGS, patience};
use crate::raw::{connect, hex, subscribe};

/// An upgraded connection on the ws port.
fn upgraded(broker: &Broker) -> std::net::TcpStream {
    let mut socket = tcp(broker, Port::Ws);
    socket.write_all(&upgrade_request()).unwrap();
    let head = response_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

/// The same with a CONNECT behind it.
fn greeted(broker: &Broker, id: &str) -> std::net::TcpStream {
    let mut socket = upgraded(broker);
    socket.write_all(&frame(BINARY, &connect(id))).unwrap();
    assert_eq!(read_frame(&mut socket).unwrap(), (BINARY, CONNACK.to_vec()));
    socket
}

/// `upgrade_request` with something else in the place of something; "" removes the line.
fn request(from: &str, to: &str) -> Vec<u8> {
    let good = String::from_utf8(upgrade_request()).unwrap();
    assert!(good.contains(from), "{from}");
    good.replace(from, to).into_bytes()
}

#[test]
fn paths_subprotocols_and_what_is_no_upgrade_are_answered_by_their_status() {
    const PROTOCOL: &str = "Sec-WebSocket-Protocol: mqtt\r\n";
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let many = format!("X: {}\r\n{PROTOCOL}", "y".repeat(9_000));
    // What is changed, the status, the subprotocol or the counter.
    let cases: &[(&str, &str, &str, &str)] = &[
        ("/mqtt", "/mqtt", "101", "mqtt"),
        ("/mqtt", "/", "101", "mqtt"),
        ("/mqtt", "/mqtt?token=x", "101", "mqtt"),
        ("/mqtt", "http://broker/mqtt", "101", "mqtt"),
        (PROTOCOL, "", "101", ""),
        (": mqtt\r\n", ": mqttv3.1\r\n", "101", "mqttv3.1"),
        (": mqtt\r\n", ": other, mqttv3.1, mqtt\r\n", "101", "mqttv3.1"),
        (
            PROTOCOL,
            "sec-websocket-protocol: a\r\nSEC-WEBSOCKET-PROTOCOL: mqtt\r\n",
            "101",
            "mqtt",
        ),
        ("Connection: Upgrade", "Connection: keep-alive, uPgRaDe", "101", "mqtt"),
        (": mqtt\r\n", ": MQTT\r\n", "400", "websocket_subprotocol"),
        (": mqtt\r\n", ": chat\r\n", "400", "websocket_subprotocol"),
        ("/mqtt", "/mqtt/", "404", "websocket_path"),
        ("/mqtt", "/favicon.ico", "404", "websocket_path"),
        ("GET", "POST", "405", "websocket_method"),
        ("Version: 13", "Version: 8", "426", "websocket_version"),
        ("Sec-WebSocket-Version: 13\r\n", "", "426", "websocket_version"),
        ("Upgrade: websocket\r\n", "", "426", "websocket_no_upgrade"),
        ("HTTP/1.1", "HTTP/1.0", "426", "websocket_no_upgrade"),
        (&key, "", "400", "websocket_bad_request"),
        (KEY, "c2hvcnQ=", "400", "websocket_bad_request"),
        ("Host: broker\r\n", "", "400", "websocket_bad_request"),
        ("Host: broker", "Ho st: broker", "400", "websocket_bad_request"),
        (PROTOCOL, &many, "431", "websocket_head_too_large"),
    ];
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        for (from, to, status, what) in cases {
            let mut socket = tcp(&broker, Port::Ws);
            // A head that is too large is refused before its end.
            let _ = socket.write_all(&request(from, to));
            let head = response_head(&mut socket);
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{from} {to}: {head}");
            if *status != "101" {
                assert!(head.to_ascii_lowercase().contains("close\r\n"), "{from} {to}: {head}");
                until_closed(&mut socket);
                continue;
            }
            assert!(head.contains(&format!("Sec-WebSocket-Accept: {ACCEPT}\r\n")), "{head}");
            let named = format!("Sec-WebSocket-Protocol: {what}\r\n");
            assert_eq!(head.contains("Sec-WebSocket-Protocol"), !what.is_empty(), "{head}");
            assert!(what.is_empty() || head.contains(&named), "{from} {to}: {head}");
            socket.write_all(&frame(BINARY, &connect("any"))).unwrap();
            assert_eq!(read_frame(&mut socket).unwrap(), (BINARY, CONNACK.to_vec()));
        }
        await_counted(
            &broker,
            &[
                ("websockets", 9),
                ("closed_websocket", 14),
                ("websocket_subprotocol", 2),
                ("websocket_path", 2),
                ("websocket_method", 1),
                ("websocket_version", 2),
                ("websocket_no_upgrade", 2),
                ("websocket_bad_request", 4),
                ("websocket_head_too_large", 1),
            ],
        );
        broker.stop();
    }
}

#[test]
fn a_browser_that_is_pointed_here_sees_a_page() {
    let broker = Broker::start(SETTINGS[0], &[]);
    let config = trusting(&broker);
    for port in [Port::Ws, Port::Wss] {
        for path in ["/", "/mqtt"] {
            let mut wire = Wire::open(&broker, port, &config);
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n");
            wire.write_all(request.as_bytes()).unwrap();
            let head = response_head(&mut wire);
            assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
            assert!(head.contains("Content-Type: text/html; charset=utf-8\r\n"), "{head}");
            assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
            let page = String::from_utf8(until_closed(&mut wire)).unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", page.len())), "{head}");
            let scheme = format!("{}://", port.name());
            assert!(page.contains("MQTT over WebSocket") && page.contains(&scheme), "{page}");
        }
    }
    broker.stop();
}

#[test]
fn only_pages_of_allowed_origins_connect_and_whoever_names_none() {
    let broker = Broker::start(
        SETTINGS[0],
        &["--ws-allow-origin", "https://app.example,http://localhost:3000"],
    );
    for (origin, status) in [
        ("", 101),
        ("Origin: https://app.example\r\n", 101),
        ("origin: HTTPS://APP.example\r\n", 101),
        ("Origin: http://localhost:3000\r\n", 101),
        ("Origin: http://app.example\r\n", 403),
        ("Origin: https://app.example.evil\r\n", 403),
        ("Origin: http://localhost:3001\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: https://app.example\r\nOrigin: https://evil.example\r\n", 403),
    ] {
        let mut socket = tcp(&broker, Port::Ws);
        let request = request("Host: broker\r\n", &format!("Host: broker\r\n{origin}"));
        socket.write_all(&request).unwrap();
        let head = response_head(&mut socket);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{origin}: {head}");
    }
    await_counted(&broker, &[("websocket_origin", 5), ("websockets", 4)]);
    broker.stop();

    let broker = Broker::start(SETTINGS[0], &[]);
    let mut socket = tcp(&broker, Port::Ws);
    socket
        .write_all(&request(
            "Host: broker\r\n",
            "Host: broker\r\nOrigin: https://any.example\r\n",
        ))
        .unwrap();
    assert!(response_head(&mut socket).starts_with("HTTP/1.1 101 "));
    broker.stop();
}

/// Request, CONNECT and PINGREQ, sent in two pieces: cut after every byte.
#[test]
fn an_upgrade_and_what_follows_it_may_be_cut_anywhere() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let bytes = |id: usize| {
            let mut bytes = upgrade_request();
            bytes.extend(frame(BINARY, &connect(&format!("{id:04}"))));
            bytes.extend(frame(BINARY, &hex("c000")));
            bytes
        };
        let mut sockets: Vec<_> = (0..=bytes(0).len())
            .map(|cut| {
                let mut socket = tcp(&broker, Port::Ws);
                socket.write_all(&bytes(cut)[..cut]).unwrap();
                socket
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        for (cut, socket) in sockets.iter_mut().enumerate() {
            socket.write_all(&bytes(cut)[cut..]).unwrap();
        }
        for (cut, mut socket) in sockets.into_iter().enumerate() {
            let head = response_head(&mut socket);
            assert!(head.starts_with("HTTP/1.1 101 "), "cut at {cut}: {head}");
            let mut got = Vec::new();
            while got.len() < 6 {
                let (first, payload) = read_frame(&mut socket).unwrap();
                assert_eq!(first, BINARY, "cut at {cut}");
                got.extend(payload);
            }
            assert_eq!(got, hex("20020000 d000"), "cut at {cut}");
        }
        broker.stop();
    }
}

#[test]
fn packets_and_frames_need_not_agree() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let config = trusting(&broker);
        for port in [Port::Ws, Port::Wss] {
            let mut wire = Peer::open(&broker, port, &config).wire;
            // A byte a frame, one of them empty.
            for byte in connect("frames") {
                wire.write_all(&frame(BINARY, &[byte])).unwrap();
                wire.write_all(&frame(BINARY, &[])).unwrap();
            }
            assert_eq!(read_frame(&mut wire).unwrap(), (BINARY, CONNACK.to_vec()));
            // Many packets in a frame, in fragments with pings between them.
            let mut packets = subscribe("t", 0);
            for n in 0..40 {
                packets.extend(hex("30 05 0001 74"));
                packets.extend([b'a', n]);
            }
            let third = packets.len() / 3;
            let mut bytes = frame(0x02, &packets[..third]);
            bytes.extend(frame(PING, b"one"));
            bytes.extend(frame(0x00, &packets[third..2 * third]));
            bytes.extend(frame(PONG, b"nobody asked"));
            bytes.extend(frame(0x00, &[]));
            bytes.extend(frame(0x80, &packets[2 * third..]));
            wire.write_all(&bytes).unwrap();
            let (mut pongs, mut got) = (0, Vec::new());
            let mut expected = hex("90 03 0001 00");
            for n in 0..40 {
                expected.extend(hex("30 05 0001 74"));
                expected.extend([b'a', n]);
            }
            while got.len() < expected.len() || pongs == 0 {
                match read_frame(&mut wire).unwrap() {
                    (BINARY, payload) => got.extend(payload),
                    (PONG, payload) => {
                        assert_eq!(payload, b"one");
                        pongs += 1;
                    }
                    other => panic!("{other:02x?}"),
                }
            }
            assert_eq!((got, pongs), (expected, 1));
            for payload in [&b""[..], &[7; 125]] {
                wire.write_all(&frame(PING, payload)).unwrap();
                assert_eq!(read_frame(&mut wire).unwrap(), (PONG, payload.to_vec()));
            }
            // The other side's word is echoed.
            wire.write_all(&frame(CLOSE, &[&4711u16.to_be_bytes()[..], b"enough"].concat()))
                .unwrap();
            expect_close(&mut wire, 4711, "echo");
        }
        await_counted(&broker, &[("closed_peer", 2), ("closed_websocket", 0), ("tls_full", 1)]);
        broker.stop();
    }
}

#[test]
fn a_frame_that_breaks_a_rule_is_answered_by_its_close_code() {
    let masked = |head: &str| [&hex(head)[..], &[1, 2, 3, 4]].concat();
    let reason = |code: u16, reason: &[u8]| frame(CLOSE, &[&code.to_be_bytes()[..], reason].concat());
    let cases: [(&str, Vec<u8>, u16, &str); 20] = [
        ("unmasked", hex("82 02 c000"), 1002, "websocket_unmasked"),
        ("unmasked ping", hex("89 00"), 1002, "websocket_unmasked"),
        ("RSV1", frame(0xc2, b"x"), 1002, "websocket_reserved_bits"),
        ("RSV2", frame(0xa2, b"x"), 1002, "websocket_reserved_bits"),
        ("RSV3", frame(0x99, b"x"), 1002, "websocket_reserved_bits"),
        ("opcode 3", frame(0x83, b"x"), 1002, "websocket_reserved_opcode"),
        ("opcode b", frame(0x8b, b"x"), 1002, "websocket_reserved_opcode"),
        ("text", frame(0x81, b"hello"), 1003, "websocket_text"),
        (
            "continuation",
            frame(0x80, b"x"),
            1002,
            "websocket_continuation_of_nothing",
        ),
        (
            "message in message",
            [frame(0x02, &hex("10")), frame(0x82, &hex("02"))].concat(),
            1002,
            "websocket_message_inside_message",
        ),
        (
            "fragmented ping",
            frame(0x09, b"x"),
            1002,
            "websocket_fragmented_control",
        ),
        ("long ping", frame(PING, &[0; 126]), 1002, "websocket_long_control"),
        (
            "2^63",
            masked("82 ff 8000000000000000"),
            1002,
            "websocket_length_top_bit",
        ),
        (
            "length not minimal",
            masked("82 fe 0005"),
            1002,
            "websocket_length_not_minimal",
        ),
        (
            "too long",
            masked("82 ff 0000000020000000"),
            1009,
            "websocket_frame_too_large",
        ),
        ("half a code", frame(CLOSE, &[3]), 1002, "websocket_close_length"),
        ("code 1005", reason(1005, b""), 1002, "websocket_close_code"),
        ("code 999", reason(999, b""), 1002, "websocket_close_code"),
        ("bad UTF-8", reason(1000, b"\xff"), 1007, "websocket_close_reason"),
        (
            "half a character",
            reason(1000, b"caf\xc3"),
            1007,
            "websocket_close_reason",
        ),
    ];
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let mut expected = vec![("closed_websocket", 0)];
        for (n, (what, bytes, code, counter)) in cases.iter().enumerate() {
            // Before its CONNECT and after it.
            let mut before = upgraded(&broker);
            before.write_all(bytes).unwrap();
            expect_close(&mut before, *code, what);
            let mut after = greeted(&broker, &format!("bad{n}"));
            after.write_all(bytes).unwrap();
            expect_close(&mut after, *code, what);
            expected[0].1 += 2;
            match expected.iter_mut().find(|(name, _)| name == counter) {
                Some((_, count)) => *count += 2,
                None => expected.push((counter, 2)),
            }
        }
        await_counted(&broker, &expected);
        for (what, bytes, code) in [
            ("a bare close", frame(CLOSE, &[]), 1000),
            ("1000", reason(1000, b""), 1000),
            ("1001", reason(1001, "ade\u{301}".as_bytes()), 1001),
            ("3000", reason(3000, &[b'x'; 123]), 3000),
        ] {
            let mut socket = greeted(&broker, "leaves");
            socket.write_all(&bytes).unwrap();
            expect_close(&mut socket, code, what);
        }
        broker.stop();
    }
}

#[test]
fn what_ends_mqtt_is_told_in_the_close_frame() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &[]);
        let config = trusting(&broker);
        let mut stays = Vec::new();
        for port in [Port::Ws, Port::Wss] {
            let mut peer = Peer::connected(&broker, port, &config, "a");
            peer.send(&DISCONNECT);
            expect_close(&mut peer.wire, 1000, "DISCONNECT");
            let mut peer = Peer::connected(&broker, port, &config, "a");
            peer.send(&hex("f000"));
            expect_close(&mut peer.wire, 1002, "a malformed packet");
            let mut peer = Peer::connected(&broker, port, &config, "a");
            peer.send(&connect("a"));
            expect_close(&mut peer.wire, 1002, "a second CONNECT");
            let mut peer = Peer::open(&broker, port, &config);
            peer.send(&hex("30 05 0003 612f62"));
            expect_close(&mut peer.wire, 1002, "PUBLISH before CONNECT");
            let mut peer = Peer::connected(&broker, port, &config, "a");
            let _successor = Peer::connected(&broker, Port::Mqtt, &config, "a");
            expect_close(&mut peer.wire, 1008, "takeover");
            // A refused CONNECT is answered before the close.
            let mut peer = Peer::open(&broker, port, &config);
            let mut level = connect("b");
            level[8] = 9;
            peer.send(&level);
            assert_eq!(peer.packet(), hex("20 02 00 01"));
            expect_close(&mut peer.wire, 1008, "another level");
            stays.push(Peer::connected(
                &broker,
                port,
                &config,
                &format!("stays-{}", port.name()),
            ));
        }
        broker.signal(Signal::TERM);
        for mut peer in stays {
            expect_close(&mut peer.wire, 1001, "SIGTERM");
        }
    }
}

/// TCP alone, half a handshake of each layer, and each whole one without what comes next.
#[test]
fn who_does_not_get_as_far_as_a_connect_is_closed_after_the_connect_timeout() {
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &["--connect-timeout", "1s"]);
        let config = trusting(&broker);
        let mut established = Witnesses::start(&broker, &config);
        let began = Instant::now();
        let mut waiting: Vec<(String, Wire, Option<u16>)> = Vec::new();
        for port in Port::ALL {
            waiting.push((format!("{port:?}: nothing"), Wire::Plain(tcp(&broker, port)), None));
            if port.is_tls() {
                let mut socket = tcp(&broker, port);
                socket.write_all(&hex("16 0301 0200 01 0001fc 0303")).unwrap();
                waiting.push((format!("{port:?}: half a ClientHello"), Wire::Plain(socket), None));
                waiting.push((format!("{port:?}: TLS"), Wire::open(&broker, port, &config), None));
            }
            if port.is_websocket() {
                let mut wire = Wire::open(&broker, port, &config);
                wire.write_all(&upgrade_request()[..50]).unwrap();
                waiting.push((format!("{port:?}: half an upgrade"), wire, None));
                let peer = Peer::open(&broker, port, &config);
                waiting.push((format!("{port:?}: an upgrade"), peer.wire, Some(1008)));
                let mut peer = Peer::open(&broker, port, &config);
                peer.send(&connect("half")[..9]);
                peer.wire.write_all(&frame(PING, b"")).unwrap();
                assert_eq!(read_frame(&mut peer.wire).unwrap().0, PONG);
                waiting.push((format!("{port:?}: half a CONNECT"), peer.wire, Some(1008)));
            }
        }
        let count = waiting.len() as u64;
        let ends = waiting.into_iter().map(|(what, mut wire, code)| {
            thread::spawn(move || {
                match code {
                    Some(code) => expect_close(&mut wire, code, &what),
                    None => assert!(until_closed(&mut wire).is_empty(), "{what}"),
                }
                let after = began.elapsed();
                let limit = Duration::from_secs(1)..patience(Duration::from_secs(4));
                assert!(limit.contains(&after), "{what}: after {after:?}");
            })
        });
        let ends: Vec<_> = ends.collect();
        established.look();
        ends.into_iter().for_each(|end| end.join().unwrap());
        await_counted(&broker, &[("closed_connect_timeout", count)]);
        established.look();
        broker.stop();
    }
}

/// Each ping asks for 127 bytes that are never read, and each update of keys for a record.
#[test]
fn a_client_that_asks_without_end_and_never_reads_costs_bounded_memory() {
    let broker = Broker::start(FOUR_CORES[0], &[]);
    let config = trusting(&broker);
    let authority = fs::read_to_string(self_made(&broker)).unwrap();
    let tls13 = pki::client(&authority, pki::EACH[1], None);
    let mut established = Witnesses::start(&broker, &config);
    let pings = frame(PING, &[7; 125]).repeat(500);
    let mut warm = [Port::Ws, Port::Wss].map(|port| Peer::connected(&broker, port, &tls13, port.name()));
    for peer in &mut warm {
        peer.wire.write_all(&pings).unwrap();
    }
    established.look();
    let before = broker.resident_kib();
    for peer in &mut warm {
        for _ in 0..200 {
            peer.wire.write_all(&pings).unwrap();
        }
        established.look();
    }
    if let Wire::Tls(stream) = &mut warm[1].wire {
        'updates: for _ in 0..4_000 {
            for _ in 0..20 {
                stream.conn.refresh_traffic_keys().unwrap();
            }
            // Data between them, or they would be too many in a row.
            match stream.write_all(&frame(PONG, b"")) {
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    break 'updates;
                }
                written => written.unwrap(),
            }
        }
    }
    established.look();
    let grown = broker.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "resident memory grew by {grown} KiB");
    // The latest of them is answered once there is room.
    let mut wire = warm.into_iter().next().unwrap().wire;
    let mut got = vec![0; 127];
    wire.read_exact(&mut got).unwrap();
    assert_eq!(got[..3], [PONG, 125, 7]);
    broker.stop();
}
