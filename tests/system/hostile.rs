//! Peers that are slow, silent, broken or of another protocol: they lose their own connection, and nobody else notices.
//!
//! What they say is written in hex by hand: no client library can be brought to say it.

use crate::broker::{Broker, FOUR_CORES, SETTINGS, patience};
use crate::clients::{Agent, Library, Message, hello};
use crate::raw::{connect, hex, subscribe};
use rustix::net::sockopt::set_socket_linger;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const CONNACK: [u8; 4] = [0x20, 0x02, 0x00, 0x00];

fn expect(socket: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
}

/// What came before the broker closed the connection.
fn until_closed(socket: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    match socket.read_to_end(&mut got) {
        Ok(_) => {}
        // Bytes the broker had not read when it closed.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the broker has not closed the connection: {error}"),
    }
    got
}

/// A client that must not notice anything: it is connected all the time and talks to itself through the broker.
pub struct Witness {
    agent: Agent,
    count: u32,
}

impl Witness {
    pub fn start(broker: &Broker) -> Witness {
        let mut agent = Agent::start(Library::Paho);
        agent.connect("witness", broker, hello("witness"));
        agent.subscribe("witness", &[("witness/+/x", 1)]);
        Witness { agent, count: 0 }
    }

    pub fn looks(&mut self) {
        for _ in 0..10 {
            self.count += 1;
            let message = Message::new(&format!("witness/{}/x", self.count), "all is well", 1, false);
            self.agent.publish("witness", &message);
            assert_eq!(self.agent.message("witness"), message);
        }
    }
}

#[test]
fn half_a_connect_and_then_silence_is_closed_after_the_connect_timeout() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &["--connect-timeout", "1s"]);
        let mut witness = Witness::start(&broker);
        let whole = connect("half");
        let halves = [
            &[][..],
            &whole[..1],
            &whole[..2],
            &whole[..9],
            &whole[..whole.len() - 1],
        ];
        let began = Instant::now();
        let waiting: Vec<_> = halves
            .map(|half| {
                let mut socket = broker.socket();
                socket.write_all(half).unwrap();
                thread::spawn(move || (until_closed(&mut socket), began.elapsed()))
            })
            .into();
        for (half, waiting) in halves.iter().zip(waiting) {
            let (got, after) = waiting.join().unwrap();
            assert!(got.is_empty(), "{half:02x?} was answered with {got:02x?}");
            let limit = Duration::from_secs(1)..patience(Duration::from_secs(2));
            assert!(
                limit.contains(&after),
                "{half:02x?} was closed after {after:?}, {setting:?}"
            );
        }
        witness.looks();
        broker.stop();
    }
}

#[test]
fn whoever_speaks_no_mqtt_is_closed_at_once_and_nobody_else() {
    let mut garbage = vec![0u8; 70_000];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    garbage.fill_with(|| random(&mut state) as u8);
    let mut no_connect = hex("30 05 0003 612f62");
    no_connect.extend([b'.'; 2000]);
    let client_hello = hex(
        "16 03 01 00 3f 01 00 00 3b 03 03 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 00 \
         0004 1301 c02b 01 00 000e 000d 0004 0002 0403 000a 0002 001d",
    );
    let openings: [(&str, &[u8]); 7] = [
        ("garbage", &garbage),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: broker\r\nUser-Agent: any\r\n\r\n"),
        ("a TLS ClientHello", &client_hello),
        ("PUBLISH before CONNECT", &no_connect),
        ("a CONNECT of 256 MB", &hex("10 ffffff7f 0004 4d515454 04 02")),
        ("a Remaining Length of five bytes", &hex("10 ffffffff7f")),
        ("zeros", &[0; 100]),
    ];
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let mut witness = Witness::start(&broker);
        for (what, bytes) in openings {
            let began = Instant::now();
            let mut socket = broker.socket();
            // It may be closed while this is still being written.
            let _ = socket.write_all(bytes);
            let got = until_closed(&mut socket);
            assert!(got.is_empty(), "{what} was answered with {got:02x?}, {setting:?}");
            assert!(
                began.elapsed() < patience(Duration::from_secs(2)),
                "{what} was closed late, {setting:?}"
            );
        }
        // The same from somebody who was let in.
        let mut socket = broker.socket();
        socket.write_all(&connect("turncoat")).unwrap();
        expect(&mut socket, &CONNACK);
        let _ = socket.write_all(&hex("f0 00"));
        assert!(until_closed(&mut socket).is_empty());
        witness.looks();
        broker.stop();
    }
}

#[test]
fn a_client_that_writes_byte_by_byte_is_served_unless_its_connect_takes_too_long() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &["--connect-timeout", "2s"]);
        let mut witness = Witness::start(&broker);

        // One byte a second: each byte is progress, yet the time for the CONNECT is what it is.
        let mut slow = broker.socket();
        let slow = thread::spawn(move || {
            let began = Instant::now();
            for byte in connect("slow") {
                if slow.write_all(&[byte]).is_err() || began.elapsed() > patience(Duration::from_secs(5)) {
                    break;
                }
                sleep(Duration::from_secs(1));
            }
            (until_closed(&mut slow), began.elapsed())
        });

        let mut socket = broker.socket();
        let mut bytes = connect("steady");
        bytes.extend(subscribe("steady", 0));
        bytes.extend(hex("30 0b 0006").into_iter().chain(*b"steadyabc"));
        for byte in bytes {
            socket.write_all(&[byte]).unwrap();
            sleep(Duration::from_millis(10));
        }
        expect(&mut socket, &CONNACK);
        expect(&mut socket, &hex("90 03 0001 00"));
        expect(&mut socket, &[&hex("30 0b 0006")[..], b"steadyabc"].concat());
        let (got, after) = slow.join().unwrap();
        assert!(
            got.is_empty() && after < patience(Duration::from_secs(5)),
            "{got:02x?} after {after:?}, {setting:?}"
        );
        witness.looks();
        broker.stop();
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Each connection goes at a random point of its conversation, by FIN or by RST; afterwards none of their sockets is left.
#[test]
fn two_hundred_connections_that_drop_at_random_leave_nothing_behind() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let mut witness = Witness::start(&broker);
        witness.looks();
        let before = broker.socket_count();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut sockets = Vec::new();
        for n in 0..200 {
            let mut bytes = connect(&format!("dropper{}", n % 150));
            bytes.extend(subscribe("witness/#", (n % 3) as u8));
            bytes.extend(hex("32 0f 0007 64726f70706572 0001").into_iter().chain(*b"1234"));
            let mut socket = broker.socket();
            let end = random(&mut state) as usize % (bytes.len() + 1);
            // Another with the same Client Identifier may have taken over.
            let _ = socket.write_all(&bytes[..end]);
            sockets.push(socket);
            if n % 20 == 0 {
                witness.looks();
            }
            if n >= 50 {
                let socket = sockets.swap_remove(random(&mut state) as usize % sockets.len());
                match random(&mut state) % 3 {
                    0 => set_socket_linger(&socket, Some(Duration::ZERO)).unwrap(),
                    1 => socket.shutdown(Shutdown::Write).unwrap_or(()),
                    _ => {}
                }
            }
        }
        drop(sockets);
        let began = Instant::now();
        while broker.socket_count() > before {
            let left = broker.socket_count() - before;
            assert!(
                began.elapsed() < patience(Duration::from_secs(5)),
                "{left} sockets are left, {setting:?}"
            );
            sleep(Duration::from_millis(50));
        }
        witness.looks();
        broker.stop();
    }
}

/// 120 MB are published to two subscribers that never read, at QoS 0 and 1; what the broker holds for each is bounded by
/// `--max-outbox` and `--max-queued-bytes`. Beside that count the packets on their way between cores and what the allocator
/// keeps of them: resident memory was seen to settle 10 to 32 MiB above its start, and to stay there for 600 MB.
#[test]
fn a_subscriber_that_never_reads_costs_bounded_memory_and_delays_nobody() {
    const COUNT: usize = 600;
    const SIZE: usize = 200_000;
    for setting in FOUR_CORES {
        let broker = Broker::start(setting, &["--max-queued-bytes", "2 MiB"]);
        let mut witness = Witness::start(&broker);
        let mut deaf = Vec::new();
        for qos in [0, 1] {
            let mut socket = broker.socket();
            socket.write_all(&connect(&format!("deaf{qos}"))).unwrap();
            socket.write_all(&subscribe("loud/#", qos)).unwrap();
            expect(&mut socket, &CONNACK);
            expect(&mut socket, &[0x90, 0x03, 0x00, 0x01, qos]);
            deaf.push(socket);
        }
        let mut publisher = Agent::start(Library::MqttJs);
        publisher.connect("p", &broker, hello("publisher"));
        publisher.begin_burst("p", "loud/warm", 1, "", 50, SIZE);
        publisher.await_burst("p");
        let before = broker.resident_kib();
        for round in 0..COUNT / 50 {
            publisher.begin_burst("p", &format!("loud/{round}"), 1, "", 50, SIZE);
            witness.looks();
            publisher.await_burst("p");
        }
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(grown < 48 * 1024, "resident memory grew by {grown} KiB, {setting:?}");
        witness.looks();
        broker.stop();
    }
}

/// Ends of lines, colours, separators of Unicode and marks that turn the direction: all of it is shown, none of it done.
#[test]
fn what_a_client_calls_itself_is_no_line_of_the_log() {
    const IDS: [&str; 7] = [
        "a\nINFO forged",
        "a\r\nforged",
        "\u{1b}[31mred\u{1b}[2J",
        "\u{9b}31mred",
        "a\u{2028}forged",
        "a\u{202e}degrof",
        "\u{7f}\u{8}",
    ];
    for format in ["text", "json"] {
        let broker = Broker::start(FOUR_CORES[0], &["--log", "debug", "--log-format", format]);
        for id in IDS {
            let mut socket = broker.socket();
            socket.write_all(&connect(id)).unwrap();
            expect(&mut socket, &CONNACK);
        }
        broker.await_written("degrof");
        let log = broker.stop();
        let mut connected = 0;
        for line in log.lines() {
            connected += usize::from(line.contains("connected") && line.contains("client"));
            assert!(!line.starts_with("INFO") && !line.starts_with("forged"), "{line:?}");
            // JSON escapes what is a control character of ASCII, and lets the others be.
            let acts = |c: char| match format {
                "json" => c < ' ',
                _ => c.is_control() || matches!(c, '\u{2028}' | '\u{202e}'),
            };
            assert!(!line.contains(acts), "{line:?}");
        }
        assert!(connected >= IDS.len(), "{log}");
    }
}
