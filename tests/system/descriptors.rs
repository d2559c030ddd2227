//! How many connections there may be: `--max-connections`, and more of them than one table of file descriptors may hold
//! (`--private-fds on` gives each core its own).

use crate::broker::{Broker, SETTINGS, io_uring, patience};
use crate::clients::{Agent, LIBRARIES, Library, Message, hello};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Descriptors the broker may have in one table, and connections it has to hold.
const LIMIT: u32 = 200;
const CONNECTIONS: usize = 500;

/// This process holds the other end of every connection.
pub fn allow_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
}

#[test]
fn private_tables_hold_more_connections_than_the_limit_of_one() {
    allow_open_files();
    for (driver, private_fds) in [(io_uring(), "on"), ("epoll", "on"), ("auto", "auto")] {
        let arguments = ["--cores", "4", "--driver", driver, "--private-fds", private_fds];
        let broker = Broker::start_with(&arguments, Some(LIMIT));
        let mut sockets = Vec::new();
        for n in 0..CONNECTIONS {
            let id = format!("held{n:04}");
            let mut socket = broker.socket();
            // CONNECT, level 4, Clean Session, keep alive 0; SUBSCRIBE to `all` at QoS 0.
            let mut packets = b"\x10\x14\x00\x04MQTT\x04\x02\x00\x00\x00\x08".to_vec();
            packets.extend(id.as_bytes());
            packets.extend(b"\x82\x08\x00\x01\x00\x03all\x00");
            socket.write_all(&packets).unwrap();
            let mut answer = [0; 9];
            let problem = format!("connection {n} was not served, --driver {driver}");
            socket.read_exact(&mut answer).expect(&problem);
            assert_eq!(answer, *b"\x20\x02\x00\x00\x90\x03\x00\x01\x00", "{problem}");
            sockets.push(socket);
        }
        let mut agent = Agent::start(Library::Paho);
        agent.connect("p", &broker, hello("publisher"));
        agent.publish("p", &Message::new("all", "hello", 1, false));
        for socket in &mut sockets {
            let mut message = [0; 12];
            socket.read_exact(&mut message).unwrap();
            assert_eq!(message, *b"\x30\x0a\x00\x03allhello");
        }
        assert!(broker.socket_count() > CONNECTIONS);

        // What has gone makes room again.
        drop(sockets);
        let began = Instant::now();
        while broker.socket_count() > CONNECTIONS / 4 {
            assert!(
                began.elapsed() < patience(Duration::from_secs(5)),
                "{} sockets are left",
                broker.socket_count()
            );
        }
        broker.stop();
    }
}

/// [MQTT-3.2.2-4]: return code 3, over all cores together.
#[test]
fn one_more_than_max_connections_is_refused_and_one_that_goes_makes_room() {
    let mut agents = LIBRARIES.map(Agent::start);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &["--max-connections", "3"]);
        for agent in &mut agents {
            for name in ["0", "1", "2"] {
                agent.connect(name, &broker, hello(name));
            }
            let reason = agent.refused("3", &broker, hello("3"));
            assert!(reason.to_lowercase().contains("server unavailable"), "{reason}");
            for name in ["0", "1", "2"] {
                agent.disconnect(name);
            }
            // Closed at this end; the other learns of it in its own time.
            sleep(Duration::from_millis(300));
            agent.connect("3", &broker, hello("3"));
            agent.disconnect("3");
        }
        broker.stop();
    }
}
