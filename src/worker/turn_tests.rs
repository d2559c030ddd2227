//! Cores driven by hand on one thread, without a runtime: real sockets, a clock that is moved by waiting.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::turn::{Core, CoreParts};
use super::{Control, Mailbox};
use crate::limits::{EVENTS_PER_BATCH, MESH_BACKLOG_BYTES_MAX, WRITE_INTERVAL_US};
use crate::mesh::Mesh;
use crate::metrics::Counters;
use crate::net::handoff::passages;
use crate::net::listener::{Listener, listen_on};
use crate::net::sockets::Sockets;
use crate::net::transport::{Transport, Transports};
use crate::registry::access::Access;
use crate::registry::datapoint::StoredDatapoints;
use crate::shard::{Limits, PeerId, Shard, ShardConfig, UnixTime};
use crate::store::Door;
use crate::websocket::AllowedOrigins;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

struct World {
    cores: Vec<Core>,
    mailboxes: Vec<Arc<Mailbox>>,
    port: u16,
    connections_open: Arc<AtomicUsize>,
}

impl World {
    fn new(cores: usize, has_passages: bool, connections_max: usize, connect_timeout_ms: u64) -> World {
        World::over(
            Transport::default(),
            cores,
            has_passages,
            connections_max,
            connect_timeout_ms,
        )
    }

    fn over(
        transport: Transport,
        cores: usize,
        has_passages: bool,
        connections_max: usize,
        connect_timeout_ms: u64,
    ) -> World {
        let (port, listeners) = listen_on(LOCAL, 0, cores).unwrap();
        let mut passages = passages(cores).unwrap().into_iter();
        let connections_open = Arc::new(AtomicUsize::new(0));
        let mut world = World {
            cores: Vec::new(),
            mailboxes: Vec::new(),
            port,
            connections_open: Arc::clone(&connections_open),
        };
        for (core, (mesh, listener)) in Mesh::build(cores, 2).unwrap().into_iter().zip(listeners).enumerate() {
            let sockets = Sockets::new().unwrap();
            sockets.watch_bell(&**mesh.bell()).unwrap();
            let listener = Listener::new(listener);
            sockets.watch_listener(0, &listener).unwrap();
            let mailbox = Arc::new(Mailbox::new(Arc::clone(mesh.bell())));
            world.mailboxes.push(Arc::clone(&mailbox));
            let parts = CoreParts {
                shard: Shard::new(ShardConfig {
                    core: PeerId(core as u16),
                    cores: cores as u16,
                    shard_levels: 3,
                    hash_key: [1, 2, 3, 4],
                    limits: Limits::default(),
                    access: Access::Open,
                    unix_time: UnixTime::default(),
                    v1_topics: false,
                    stored_datapoints: StoredDatapoints::until(0),
                }),
                listeners: vec![listener],
                transports_of: vec![transport],
                transports: Transports::new(None, AllowedOrigins::Any),
                certificate_names_user: false,
                mesh,
                passage: passages.next().filter(|_| has_passages),
                store: Door::memory(),
                mailbox,
                access: Access::Open,
                notifier: None,
                client_id_chars_max: 100,
                connect_timeout_ms,
                write_interval_us: WRITE_INTERVAL_US as u32,
                connections_max,
                connections_open: Arc::clone(&connections_open),
                epoch: Instant::now(),
            };
            world.cores.push(Core::new(parts, sockets));
        }
        world
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect((LOCAL, self.port)).unwrap();
        client.set_nonblocking(true).unwrap();
        client.set_nodelay(true).unwrap();
        client
    }

    /// Until every core says it may sleep, twice: what one does may give another work.
    fn run(&mut self) {
        for _ in 0..2 {
            // Loopback delivers within the system call, but for what waits on its soft interrupt.
            std::thread::sleep(Duration::from_millis(2));
            for _ in 0..20 {
                for core in &mut self.cores {
                    while core.batch() || core.nap().map(std::thread::sleep).is_some() {}
                }
            }
        }
    }

    /// What the client has been sent; None at the end of the stream if nothing came before.
    fn read(&mut self, mut client: &TcpStream) -> Option<Vec<u8>> {
        self.run();
        let mut bytes = vec![0; 1 << 20];
        match client.read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => Some(bytes[..count].to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(Vec::new()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.cores.iter().for_each(|core| sum.add(&core.report()));
        sum
    }
}

fn connect(client_id: &str) -> Vec<u8> {
    let mut packet = vec![
        0x10,
        12 + client_id.len() as u8,
        0,
        4,
        b'M',
        b'Q',
        b'T',
        b'T',
        4,
        2,
        0,
        0,
        0,
    ];
    packet.push(client_id.len() as u8);
    packet.extend_from_slice(client_id.as_bytes());
    packet
}

fn subscribe(filter: &str) -> Vec<u8> {
    let mut packet = vec![0x82, 5 + filter.len() as u8, 0, 1, 0, filter.len() as u8];
    packet.extend_from_slice(filter.as_bytes());
    packet.push(0);
    packet
}

fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x30, (2 + topic.len() + payload.len()) as u8, 0, topic.len() as u8];
    packet.extend_from_slice(topic.as_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// Twenty clients, each sending CONNECT, SUBSCRIBE and PUBLISH in one write: whichever core accepts, whichever is home.
fn everybody_comes_home(has_passages: bool) {
    let mut world = World::new(3, has_passages, 1_000, 10_000);
    let clients: Vec<TcpStream> = (0..20).map(|_| world.client()).collect();
    for (number, mut client) in clients.iter().enumerate() {
        let topic = format!("t/{number}");
        let hello = [connect(&format!("client-{number}")), subscribe(&topic)].concat();
        client.write_all(&hello).unwrap();
    }
    for client in &clients {
        assert_eq!(
            world.read(client).unwrap(),
            [&CONNACK[..], &[0x90, 3, 0, 1, 0]].concat()
        );
    }
    for (number, mut client) in clients.iter().enumerate() {
        client
            .write_all(&publish(&format!("t/{}", (number + 1) % 20), b"x"))
            .unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(world.read(client).unwrap(), publish(&format!("t/{number}"), b"x"));
    }
    assert_eq!(world.connections_open.load(Ordering::Relaxed), 20);
    assert!(world.counters().handoffs > 0, "three cores accepted twenty clients");
    drop(clients);
    world.run();
    assert_eq!(world.connections_open.load(Ordering::Relaxed), 0);
    assert_eq!(world.counters().closed_peer, 20);
}

#[test]
fn a_client_is_served_on_its_home_core_whichever_accepts_it() {
    everybody_comes_home(false);
}

#[test]
fn a_client_comes_home_through_a_passage_as_well() {
    everybody_comes_home(true);
}

#[test]
fn packets_that_come_byte_by_byte_are_the_same_packets() {
    let mut world = World::new(1, false, 10, 10_000);
    let mut client = world.client();
    let bytes = [connect("slow"), subscribe("a/b"), publish("a/b", b"hello")].concat();
    for byte in bytes {
        client.write_all(&[byte]).unwrap();
        for core in &mut world.cores {
            while core.batch() {}
        }
    }
    let expected = [&CONNACK[..], &[0x90, 3, 0, 1, 0], &publish("a/b", b"hello")].concat();
    assert_eq!(world.read(&client).unwrap(), expected);
}

#[test]
fn bytes_that_arrive_with_the_end_of_the_stream_are_served_before_it() {
    let mut world = World::new(1, false, 10, 10_000);
    let mut listener = world.client();
    listener
        .write_all(&[connect("listener"), subscribe("last")].concat())
        .unwrap();
    world.read(&listener).unwrap();
    let mut client = world.client();
    client
        .write_all(&[connect("leaver"), publish("last", b"words")].concat())
        .unwrap();
    drop(client);
    assert_eq!(world.read(&listener).unwrap(), publish("last", b"words"));
    assert_eq!(world.connections_open.load(Ordering::Relaxed), 1);
}

#[test]
fn packets_in_front_of_a_close_frame_are_served_before_it() {
    const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    // With a mask of zeros, which changes nothing.
    let frame = |packet: &[u8]| {
        let mut frame = match packet.len() {
            len @ 0..126 => vec![0x82, 0x80 | len as u8],
            len => [&[0x82, 0xfe], &(len as u16).to_be_bytes()[..]].concat(),
        };
        frame.extend([0; 4]);
        frame.extend(packet);
        frame
    };
    let websocket = Transport {
        is_websocket: true,
        ..Transport::default()
    };
    let message = frame(&publish("last", &[b'x'; 120]));
    let mut was_paused = 0;
    for count in (MESH_BACKLOG_BYTES_MAX / message.len()..).step_by(200).take(14) {
        let mut world = World::over(websocket, 2, false, 10, 10_000);
        let mut listener = world.client();
        let hello = [connect("listener"), subscribe("last")].concat();
        listener.write_all(&[UPGRADE, &frame(&hello)].concat()).unwrap();
        world.read(&listener).unwrap();
        let mut client = world.client();
        client
            .write_all(&[UPGRADE, &frame(&connect("from elsewhere"))].concat())
            .unwrap();
        world.read(&client).unwrap();
        let bytes = [&message.repeat(count)[..], &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]].concat();
        client.set_nonblocking(false).unwrap();
        let sending = std::thread::spawn(move || client.write_all(&bytes).map(|()| client).unwrap());
        // As much as the sockets hold is there before a core looks.
        std::thread::sleep(Duration::from_millis(20));
        let (mut received, mut quiet) = (0, 0);
        while quiet < 5 {
            let bytes = world.read(&listener).unwrap();
            quiet = if bytes.is_empty() { quiet + 1 } else { 0 };
            received += bytes.iter().filter(|byte| **byte == b'x').count();
        }
        drop(sending.join().unwrap());
        let counters = world.counters();
        was_paused += counters.pauses.min(1);
        let dropped = counters.dropped_outbox_full as usize;
        assert_eq!(received + 120 * dropped, 120 * count, "{counters:?}");
        assert_eq!(world.connections_open.load(Ordering::Relaxed), 1);
    }
    assert!(was_paused > 3, "hardly anybody had to wait");
}

#[test]
fn beyond_the_connections_allowed_a_connect_is_answered_with_return_code_3() {
    let mut world = World::new(2, false, 1, 10_000);
    let (mut first, mut second) = (world.client(), world.client());
    first.write_all(&connect("first")).unwrap();
    assert_eq!(world.read(&first).unwrap(), CONNACK);
    second.write_all(&connect("second")).unwrap();
    assert_eq!(world.read(&second).unwrap(), [0x20, 2, 0, 3]);
    assert_eq!(world.read(&second), None);
    assert_eq!(world.connections_open.load(Ordering::Relaxed), 1);
    drop(first);
    world.run();
    let mut third = world.client();
    third.write_all(&connect("third")).unwrap();
    assert_eq!(world.read(&third).unwrap(), CONNACK);
}

#[test]
fn a_socket_without_a_whole_connect_is_closed_in_time_and_one_with_it_is_not() {
    let mut world = World::new(1, false, 10, 50);
    let (mut mute, mut client) = (world.client(), world.client());
    mute.write_all(&connect("mute")[..5]).unwrap();
    client.write_all(&connect("client")).unwrap();
    assert_eq!(world.read(&client).unwrap(), CONNACK);
    std::thread::sleep(Duration::from_millis(80));
    assert_eq!(world.read(&mute), None);
    assert!(world.read(&client).unwrap().is_empty());
    assert_eq!(world.counters().closed_connect_timeout, 1);
}

/// A broker that counts from the beginning of a batch, or in whole milliseconds rounded down, is early nearly every time.
#[test]
fn nobody_has_less_than_the_connect_timeout() {
    const TIMEOUT_MS: u64 = 2;
    let mut world = World::new(1, false, 10, TIMEOUT_MS);
    for _ in 0..50 {
        let began = Instant::now();
        let mut mute = world.client();
        let core = &mut world.cores[0];
        while !matches!(mute.read(&mut [0]), Ok(0)) {
            core.batch();
        }
        let after = began.elapsed();
        assert!(after >= Duration::from_millis(TIMEOUT_MS), "closed after {after:?}");
    }
}

/// A process that was stopped finds the bytes of all clients at once, and more clients than it looks at in a batch.
#[test]
fn after_a_pause_nobody_is_silent_whose_bytes_are_there() {
    const KEEP_ALIVE_S: u8 = 3;
    let mut world = World::new(1, false, 1_000, 60_000);
    let mut clients = Vec::new();
    while clients.len() < 2 * EVENTS_PER_BATCH + EVENTS_PER_BATCH / 2 {
        for _ in 0..64 {
            let mut client = world.client();
            let mut packet = connect(&format!("c{}", clients.len()));
            packet[11] = KEEP_ALIVE_S;
            client.write_all(&packet).unwrap();
            clients.push(client);
        }
        world.run();
    }
    let silent = clients.split_off(clients.len() - 2);
    for client in &mut clients {
        client.write_all(&[0xc0, 0]).unwrap();
    }
    // One and a half times the Keep Alive [MQTT-3.1.2-24], and what a deadline may be late.
    std::thread::sleep(Duration::from_millis(u64::from(KEEP_ALIVE_S) * 1_500 + 250));
    world.run();
    assert_eq!(world.counters().closed_keep_alive, silent.len() as u64);
    let mut answers = [0; 16];
    for client in &mut clients {
        let count = client.read(&mut answers).unwrap();
        assert_eq!(answers[..count], [&CONNACK[..], &[0xd0, 0]].concat());
    }
}

#[test]
fn no_bytes_but_a_close_answer_what_is_not_mqtt() {
    let mut world = World::new(1, false, 10, 10_000);
    let mut client = world.client();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(world.read(&client), None);
    assert_eq!(world.counters().closed_malformed, 1);
}

/// A subscriber that does not read while four times its socket's room is published, then reads: what its outbox had room
/// for comes whole and in order, and every message is delivered or counted as dropped.
#[test]
fn a_full_socket_is_written_to_again_when_it_has_room() {
    let mut world = World::new(1, false, 10, 10_000);
    let (mut subscriber, mut publisher) = (world.client(), world.client());
    subscriber
        .write_all(&[connect("subscriber"), subscribe("a")].concat())
        .unwrap();
    publisher.write_all(&connect("publisher")).unwrap();
    world.read(&subscriber).unwrap();
    world.read(&publisher).unwrap();
    let sent = 200_000u32;
    for from in (0..sent).step_by(1_000) {
        let burst: Vec<u8> = (from..from + 1_000)
            .flat_map(|number| publish("a", &[&number.to_be_bytes()[..], &[0; 96]].concat()))
            .collect();
        let mut at = 0;
        while at < burst.len() {
            at += publisher.write(&burst[at..]).unwrap_or(0);
            world.cores[0].batch();
        }
    }
    let mut received = Vec::new();
    loop {
        let bytes = world.read(&subscriber).unwrap();
        if bytes.is_empty() {
            break;
        }
        received.extend(bytes);
    }
    let packet = publish("a", &[0; 100]).len();
    assert_eq!(received.len() % packet, 0, "whole packets only");
    let numbers: Vec<u32> = received
        .chunks(packet)
        .map(|packet| u32::from_be_bytes(packet[5..9].try_into().unwrap()))
        .collect();
    assert!(numbers.is_sorted());
    let counters = world.counters();
    assert!(counters.dropped_outbox_full > 0, "the socket was never full");
    assert_eq!(numbers.len() as u64 + counters.dropped_outbox_full, u64::from(sent));
}

#[test]
fn a_stop_refuses_newcomers_closes_everybody_and_publishes_no_will() {
    let mut world = World::new(2, false, 10, 10_000);
    let mut client = world.client();
    client.write_all(&connect("client")).unwrap();
    assert_eq!(world.read(&client).unwrap(), CONNACK);
    world.mailboxes.iter().for_each(|mailbox| mailbox.send(Control::Stop));
    world.run();
    assert!(TcpStream::connect((LOCAL, world.port)).is_err());
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(world.read(&client), None);
    assert!(world.cores.iter().all(Core::is_done));
    assert_eq!(world.counters().closed_stopping, 1);
    assert_eq!(world.counters().wills_published, 0);
}
