//! The port of the API (section 2): over TCP or TLS, any number or none.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use serde_json::{Value, json};

use super::fixture::{LIFTED, Platform};
use super::rest::Api;
use crate::broker::Transport;

#[test]
fn the_api_speaks_tls_with_the_certificate_of_the_tls_ports() {
    for cores in [1, 4] {
        let platform = Platform::start_with(cores, 1, &[&LIFTED[..], &["--api-tls=true"]].concat());
        let port = platform.broker().api_port();
        let api = Api::tls(port, platform.broker().certificate());
        let own = api.header("X-APITOKEN", &platform.account(0).api_token);
        for _ in 0..3 {
            assert_eq!(own.get("/v2/device").expect(200).json(), json!([]));
        }
        let connector = api
            .header("X-DEVICETOKEN", &platform.account(0).device_token)
            .header("X-DEVICEID", "pump-07");
        connector.post("/post_v2/", "1").expect(201);
        for version in ["1.2", "1.3"] {
            let output = Command::new("curl")
                .args([
                    "-sS",
                    "--noproxy",
                    "*",
                    "--tls-max",
                    version,
                    &format!("--tlsv{version}"),
                    "--cacert",
                ])
                .arg(platform.broker().certificate())
                .args([
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    &format!("https://127.0.0.1:{port}/v2/device"),
                ])
                .output()
                .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "401",
                "TLS {version}: {output:?}"
            );
        }
        // Who speaks plain HTTP to it, or trusts another authority, gets nothing.
        for arguments in [&[][..], &["--cacert", "/dev/null"]] {
            let scheme = if arguments.is_empty() { "http" } else { "https" };
            let output = Command::new("curl")
                .args(["-sS", "--noproxy", "*", "--max-time", "20"])
                .args(arguments)
                .arg(format!("{scheme}://127.0.0.1:{port}/v2/device"))
                .output()
                .unwrap();
            assert!(!output.status.success(), "{output:?}");
        }
        own.get("/v2/device").expect(200);
    }
}

#[test]
fn the_api_listens_on_loopback_alone_unless_told_otherwise() {
    let platform = Platform::start_with(1, 1, &["--bind", "0.0.0.0"]);
    let elsewhere = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), platform.broker().api_port()));
    assert!(
        TcpStream::connect(elsewhere).is_err(),
        "tokens in the clear are for this host alone"
    );
    platform.api(0).get("/v2/device").expect(200);
    let platform = Platform::start_with(1, 1, &["--api-bind", "127.0.0.2"]);
    let elsewhere = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), platform.broker().api_port()));
    assert!(TcpStream::connect(elsewhere).is_ok());
}

#[test]
fn the_api_can_be_off_while_devices_go_on() {
    let mut platform = Platform::prepare(1);
    platform.run(4, &["--api-port", "off"]);
    let ready: Value = serde_json::from_slice(&std::fs::read(platform.broker().ready_file()).unwrap()).unwrap();
    assert_eq!(ready["api"], json!(null));
    assert!(
        Transport::ALL.iter().all(|transport| ready[transport.name()].is_u64()),
        "{ready}"
    );
    platform.send(0, "json/pump-07", "1");
    // Accounts are made beside it all the same.
    platform.add_account(&[]);
    platform.client(1, "device");
    platform.stop();
    platform.run(4, &LIFTED);
    let ready: Value = serde_json::from_slice(&std::fs::read(platform.broker().ready_file()).unwrap()).unwrap();
    assert_eq!(ready["api"], platform.broker().api_port());
    assert_eq!(platform.devices(0), ["pump-07"]);
}

#[test]
fn a_port_of_the_api_in_use_is_one_sentence_that_names_its_flag() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let platform = Platform::prepare(1);
    let sentence = platform.site.refusal(&["--access", "platform", "--api-port", &port]);
    assert!(
        sentence.contains(&format!("127.0.0.1:{port} is in use")) && sentence.contains("--api-port"),
        "{sentence}"
    );
}
