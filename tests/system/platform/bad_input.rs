//! What nobody should send to the HTTP port: too much, too little, too deep, in a foreign tongue.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::fixture::{LIFTED, Platform, assert_error};
use super::rest::Reply;
use crate::broker::patience;

fn socket(platform: &Platform) -> TcpStream {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, platform.broker().api_port())).unwrap();
    socket
        .set_read_timeout(Some(patience(Duration::from_secs(30))))
        .unwrap();
    socket
}

/// Everything until the server closes; an error of the socket is as good.
fn rest_of(mut socket: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the server neither answers nor closes"),
        _ => bytes,
    }
}

/// What is written is answered, then the connection ends.
fn raw_call(platform: &Platform, request: &[u8]) -> Option<u16> {
    let mut socket = socket(platform);
    let _ = socket.write_all(request);
    let bytes = rest_of(&socket);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split(' ')
        .nth(1)
        .map(|status| status.parse().unwrap_or_else(|_| panic!("no answer of HTTP: {text}")))
}

fn is_well(platform: &Platform) {
    platform.api(0).get("/v2/device").expect(200);
}

#[test]
fn a_body_over_the_limit_is_413_on_every_service() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    platform.map(0, "pump-07", 3);
    let big = format!("{{\"description\":\"{}\"}}", "x".repeat(70_000));
    for (method, path) in [
        ("PUT", "/v2/device/pump-07"),
        ("POST", "/v2/device/new"),
        ("PUT", "/v2/channel/3"),
        ("POST", "/v2/stream/3"),
        ("POST", "/v2/event"),
        ("PUT", "/v2/user"),
        ("POST", "/v2/publish/pump-07"),
    ] {
        assert_error(&api.call(method, path, Some(big.as_bytes())), 413, "PAYLOAD_TOO_LARGE");
        // Without a length beforehand.
        let chunked = api
            .header("Transfer-Encoding", "chunked")
            .call(method, path, Some(big.as_bytes()));
        assert_error(&chunked, 413, "PAYLOAD_TOO_LARGE");
    }
    assert_eq!(platform.devices(0), ["pump-07"]);
    assert_eq!(platform.values(0, 3).len(), 0);
    // A length that is only promised is answered without waiting for it, or the connection ends.
    let token = &platform.account(0).api_token;
    let promise = format!(
        "PUT /v2/user HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {token}\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(raw_call(&platform, promise.as_bytes()), Some(413));
    is_well(&platform);
}

#[test]
fn unknown_paths_are_404_and_unknown_methods_405() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let api = platform.api(0);
    for path in [
        "/v2",
        "/v2/",
        "/v2/devices",
        "/v2/Device",
        "/v1/device",
        "/v3/device",
        "/v2/device/pump-07/more",
        "/v2/user/U000000",
        "/v2/../v2/device",
        "/v2/%2e%2e/v2/device",
        "//v2/device",
        "/v2//device",
        "/admin",
        "/etc/passwd",
        "/../../../../etc/passwd",
    ] {
        let reply = api.get(path);
        assert_eq!(reply.status, 404, "{path}: {reply:?}");
        assert_eq!(reply.json_or_text(), json!({"error": "NOT_FOUND"}), "{path}");
    }
    for (path, methods) in [
        ("/v2/device", &["POST", "PUT", "DELETE", "PATCH"][..]),
        ("/v2/device/pump-07", &["PATCH", "OPTIONS", "PROPFIND", "X"]),
        ("/v2/channel", &["POST", "PUT", "DELETE"]),
        ("/v2/channel/3", &["PATCH"]),
        ("/v2/stream/3", &["PUT", "DELETE", "PATCH"]),
        ("/v2/event", &["PUT", "DELETE"]),
        ("/v2/event/1", &["POST", "PATCH"]),
        ("/v2/user", &["POST", "DELETE"]),
        ("/v2/session", &["POST", "PUT", "DELETE"]),
        ("/v2/publish/pump-07", &["GET", "PUT", "DELETE"]),
        ("/post_v2/", &["GET", "PUT", "DELETE"]),
        ("/openapi.json", &["POST", "PUT", "DELETE"]),
    ] {
        for method in methods {
            assert_error(&api.call(method, path, None), 405, "BAD_METHOD");
        }
    }
    assert_eq!(platform.devices(0), ["pump-07"]);
}

/// Documented calls send JSON as a form.
#[test]
fn the_content_type_of_a_request_is_not_looked_at() {
    let platform = Platform::start(1);
    platform.api(0).post("/v2/device/pump-07", "").expect(201);
    for kind in [
        "application/x-www-form-urlencoded",
        "application/json",
        "text/plain",
        "multipart/form-data",
        "x",
        "",
    ] {
        let api = platform.api(0).header("Content-Type", kind);
        api.put("/v2/device/pump-07", json!({"description": kind})).expect(200);
        api.post("/v2/publish/pump-07", r#"{"payload":"x"}"#).expect(200);
        assert_eq!(platform.device(0, "pump-07")["description"], kind);
    }
}

#[test]
fn a_header_that_is_not_ascii_is_400() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    platform.send(0, "json/pump-07/inlet", "1");
    let bytes: [&[u8]; 3] = ["é".as_bytes(), b"\xff", "日本".as_bytes()];
    for value in bytes {
        let api = platform.api(0);
        for name in [
            "X-TAGNAME",
            "X-ENDTIME",
            "X-STARTTIME",
            "X-PAGELIMIT",
            "X-PAGESORT",
            "X-AGGREGATE",
            "X-DECODE",
        ] {
            let api = match name {
                "X-ENDTIME" => api.clone(),
                _ => api.header("X-ENDTIME", "last"),
            };
            assert_error(&api.header(name, value).get("/v2/stream/3"), 400, "BAD_PARAMETER");
        }
        assert_error(&api.header("X-WITHTAG", value).get("/v2/channel"), 400, "BAD_PARAMETER");
        assert_error(
            &api.header("X-TAGNAME", value).post("/v2/channel/3", ""),
            400,
            "BAD_PARAMETER",
        );
        let connector = platform.connector(0, "pump-07").header("X-TAGNAME", value);
        assert_error(&connector.post("/post_v2/", "1"), 400, "BAD_PARAMETER");
        let id = [&b"pump"[..], value].concat();
        let connector = platform
            .anybody()
            .header("X-DEVICETOKEN", &platform.account(0).device_token);
        let reply = connector.header("X-DEVICEID", id).post("/post_v2/", "1");
        assert_eq!(reply.status, 400, "{reply:?}");
        // Where a token is awaited it is no token.
        let reply = platform.anybody().header("X-APITOKEN", value).get("/v2/device");
        assert!(matches!(reply.status, 400 | 401), "{reply:?}");
    }
    assert_eq!(
        (platform.devices(0), platform.values(0, 3).len()),
        (vec!["pump-07".to_owned()], 1)
    );
}

#[test]
fn json_nested_ten_thousand_deep_is_400() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    let api = platform.api(0);
    for deep in [
        "[".repeat(10_000),
        format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)),
        format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000)),
    ] {
        let connector = platform.connector(0, "pump-07").post("/post_v2/", &deep);
        assert_error(&connector, 400, "BAD_JSON_FORMAT");
        for (method, path) in [
            ("POST", "/v2/stream/3"),
            ("PUT", "/v2/device/pump-07"),
            ("POST", "/v2/device/new"),
            ("PUT", "/v2/channel/3"),
            ("POST", "/v2/event"),
            ("PUT", "/v2/user"),
            ("POST", "/v2/publish/pump-07"),
        ] {
            assert_error(&api.call(method, path, Some(deep.as_bytes())), 400, "BAD_JSON_FORMAT");
        }
        // By MQTT it is acknowledged and refused.
        platform.send(0, "json/pump-07", &deep);
        platform.send(0, "state/pump-07", &deep);
    }
    assert_eq!(platform.values(0, 3).len(), 0);
    // What is nested as deep as anything real is taken.
    let deep = format!("{}1{}", "{\"a\":".repeat(60), "}".repeat(60));
    api.post("/v2/stream/3", &deep).expect(201);
    let value = platform.values(0, 3).remove(0);
    assert_eq!(value.to_string(), deep);
}

#[test]
fn numbers_beyond_every_range_are_kept_as_text_or_refused() {
    let platform = Platform::start(1);
    platform.map(0, "pump-07", 3);
    for (n, number) in [
        "1e400",
        "-1e400",
        "1e-400",
        "123456789012345678901234567890",
        "0.1234567890123456789012345",
    ]
    .into_iter()
    .enumerate()
    {
        let reply = platform
            .connector(0, "pump-07")
            .post("/post_v2/", format!("{{\"n\":{number}}}"));
        assert!(matches!(reply.status, 200 | 400), "{number}: {reply:?}");
        let stored = platform
            .api(0)
            .header("X-ENDTIME", "last")
            .get("/v2/stream/3")
            .expect(200)
            .text();
        if reply.status == 200 {
            assert!(stored.contains("\"n\":"), "{n}: {stored}");
        }
        // What was taken can be aggregated.
        let sum = platform
            .api(0)
            .header("X-ENDTIME", "last")
            .header("X-AGGREGATE", "sum")
            .get("/v2/stream/3")
            .expect(200);
        serde_json::from_slice::<serde_json::Value>(&sum.body).unwrap();
    }
    for body in ["1e400", "-1e400"] {
        let reply = platform
            .api(0)
            .put("/v2/device/pump-07", format!("{{\"mapped_ch\":{body}}}"));
        assert!((400..500).contains(&reply.status), "{reply:?}");
        let reply = platform
            .api(0)
            .post("/v2/publish/pump-07", format!("{{\"payload\":\"x\",\"qos\":{body}}}"));
        assert!((400..500).contains(&reply.status), "{reply:?}");
    }
}

/// SQL, paths, templates, headers: names like any other.
#[test]
fn injections_are_plain_data() {
    let platform = Platform::start(1);
    let api = platform.api(0);
    let texts = [
        "'; DROP TABLE devices; --",
        "\" OR \"1\"=\"1",
        "..",
        "....",
        "%2e%2e",
        "${jndi:ldap:x}",
        "{{7*7}}",
        "<script>alert(1)</script>".split('/').next().unwrap(),
        "$(reboot)",
        "`reboot`",
        "a\\b",
        "a?b=c&d",
        "%00",
        "NULL",
        "DEV\u{202e}x",
    ];
    api.post("/v2/channel/3", "").expect(201);
    for text in texts {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let made = api
            .post(
                &format!("/v2/device/{encoded}"),
                json!({"description": text, "mapped_ch": 3}),
            )
            .expect(201);
        assert_eq!(made.json(), json!({"device_id": text}));
        let device = api.get(&format!("/v2/device/{encoded}")).expect(200).json();
        assert_eq!(
            (&device[0]["device_id"], &device[0]["description"]),
            (&json!(text), &json!(text))
        );
        if text.is_ascii() {
            platform
                .connector(0, text)
                .header("X-TAGNAME", text)
                .post("/post_v2/", json!({"v": text}))
                .expect(200);
            let row = api
                .header("X-ENDTIME", "last")
                .header("X-TAGNAME", text)
                .get("/v2/stream/3")
                .expect(200)
                .json();
            assert_eq!(
                (&row["stream"][0]["tag"], &row["stream"][0]["value"]),
                (&json!(text), &json!({"v": text}))
            );
        }
        platform.send(0, &format!("json/{text}"), json!({"v": text}).to_string());
        let row = api.header("X-ENDTIME", "last").get("/v2/stream/3").expect(200).json();
        assert_eq!(row["stream"][0]["value"], json!({"v": text}));
        for name in ["organization", "user_alias"] {
            api.put("/v2/user", json!({name: text})).expect(200);
            assert_eq!(api.get("/v2/user").expect(200).json()[0][name], text);
        }
        api.put("/v2/channel/3", json!({"channel_name": text})).expect(200);
        assert_eq!(api.get("/v2/channel/3").expect(200).json()[0]["channel_name"], text);
        api.delete(&format!("/v2/device/{encoded}")).expect(200);
    }
    assert_eq!(platform.devices(0), [""; 0]);
    // A name cannot break an answer's head: line ends are no header of ours.
    let api = api.header("X-TAGNAME", "a\tb");
    assert_error(&api.post("/v2/channel/4", ""), 400, "BAD_PARAMETER");
}

#[test]
fn what_is_no_request_is_answered_or_closed() {
    let platform = Platform::start(1);
    let token = &platform.account(0).api_token;
    let requests: Vec<Vec<u8>> = vec![
        b"\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"G\x00T / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET /v2/device HTTP/1.1\r\nHost : x\r\n\r\n".to_vec(),
        b"GET /v2/device HTTP/1.1\r\nno colon\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\r\n\r\n".to_vec(),
        format!("POST /v2/device/x HTTP/1.1\r\nX-APITOKEN: {token}\r\nContent-Length: -1\r\n\r\n").into_bytes(),
        format!(
            "POST /v2/device/x HTTP/1.1\r\nX-APITOKEN: {token}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        )
        .into_bytes(),
        format!("POST /v2/device/x HTTP/1.1\r\nX-APITOKEN: {token}\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")
            .into_bytes(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)).into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(10_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nX-A: {}\r\n\r\n", "b".repeat(1 << 20)).into_bytes(),
    ];
    for request in requests {
        let mut socket = socket(&platform);
        let _ = socket.write_all(&request);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let answer = rest_of(&socket);
        if !answer.is_empty() {
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status: u16 = text.split(' ').nth(1).unwrap().parse().unwrap();
            assert!(
                (400..500).contains(&status),
                "{}: {text}",
                String::from_utf8_lossy(&request[..60.min(request.len())])
            );
        }
        is_well(&platform);
    }
    assert_eq!(platform.devices(0), [""; 0]);
}

/// A request that comes byte by byte, or not at all, is given up; meanwhile others are served.
#[test]
fn a_slow_or_half_request_ends_and_holds_nobody_up() {
    let platform = Platform::start(1);
    let token = &platform.account(0).api_token;
    let halves = [
        "".to_owned(),
        "G".into(),
        "GET /v2/device HTTP/1.1\r\n".into(),
        format!("GET /v2/device HTTP/1.1\r\nX-APITOKEN: {token}\r\n"),
        format!("PUT /v2/user HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {token}\r\nContent-Length: 50\r\n\r\n{{\"email1\":"),
    ];
    let sockets: Vec<_> = (0..200)
        .map(|n| {
            let mut socket = socket(&platform);
            socket
                .set_read_timeout(Some(patience(Duration::from_secs(60))))
                .unwrap();
            socket.write_all(halves[n % halves.len()].as_bytes()).unwrap();
            socket
        })
        .collect();
    let began = Instant::now();
    is_well(&platform);
    assert!(began.elapsed() < patience(Duration::from_secs(2)));
    platform.send(0, "json/pump-07", "1");
    assert_eq!(platform.devices(0), ["pump-07"]);
    for socket in &sockets {
        rest_of(socket);
    }
    let before = platform.broker().socket_count();
    assert!(before < 150, "{before} sockets");
    is_well(&platform);
}

/// More than there is room for: MQTT goes on, and when they are gone there is room again.
#[test]
fn many_connections_leave_room_for_mqtt() {
    let platform = Platform::start(1);
    let sockets: Vec<_> = (0..2_000)
        .filter_map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, platform.broker().api_port())).ok())
        .collect();
    platform.send(0, "json/pump-07", "1");
    let mut watcher = platform.watch(0);
    platform.send(0, "json/pump-07", "2");
    assert_eq!(watcher.message().payload, b"2");
    drop(sockets);
    let began = Instant::now();
    loop {
        let reply = std::panic::catch_unwind(|| platform.api(0).get("/v2/device"));
        match reply {
            Ok(Reply { status: 200, .. }) => break,
            other => assert!(began.elapsed() < patience(Duration::from_secs(20)), "{other:?}"),
        }
    }
    assert_eq!(platform.devices(0), ["pump-07"]);
}

/// Requests after one another on one connection, a bad one among them.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let platform = Platform::start(1);
    let token = &platform.account(0).api_token;
    let request =
        |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {token}\r\n\r\n");
    let mut requests = String::new();
    for _ in 0..10 {
        requests += &request("GET", "/v2/device");
        requests += &request("GET", "/v2/nothing");
        requests += &request("PATCH", "/v2/device");
    }
    requests += &format!("GET /v2/user HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {token}\r\nConnection: close\r\n\r\n");
    let mut socket = socket(&platform);
    socket.write_all(requests.as_bytes()).unwrap();
    let statuses: Vec<_> = Reply::parse(rest_of(&socket))
        .iter()
        .map(|reply| reply.status)
        .collect();
    assert_eq!(statuses, [[200, 404, 405].repeat(10), vec![200]].concat());
}

/// A client that goes away in the middle of a call leaves nothing behind.
#[test]
fn a_client_that_goes_away_is_forgotten() {
    let platform = Platform::start_with(4, 1, &LIFTED);
    platform.map(0, "pump-07", 3);
    let token = &platform.account(0).api_token;
    let before = platform.broker().socket_count();
    for n in 0..300 {
        let mut socket = socket(&platform);
        let request = format!(
            "POST /v2/stream/3 HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {token}\r\nContent-Length: {}\r\n\r\n1",
            if n % 2 == 0 { 1 } else { 10 }
        );
        let _ = socket.write_all(request.as_bytes());
    }
    let began = Instant::now();
    while platform.broker().socket_count() > before + 2 {
        assert!(
            began.elapsed() < patience(Duration::from_secs(20)),
            "{} sockets",
            platform.broker().socket_count()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let count = platform.values(0, 3).len();
    assert!(count <= 150, "{count}: a body that was cut short was stored");
    is_well(&platform);
}
