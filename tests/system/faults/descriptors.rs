//! A broker that runs out of descriptors.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::ROOMY;
use crate::broker::{Broker, patience};
use crate::durability::{assert_balanced, count, counted, counters};
use crate::hostile::Witness;
use crate::raw::{PUBACK, Packet, Raw, connect, publish};

/// In the one table of the broker.
const LIMIT: u32 = 100;
/// More than that.
const COMERS: usize = 200;

/// Those over the limit are closed or wait; whoever is there is served, the disk included; who goes makes room.
#[test]
fn connections_over_the_limit_of_descriptors_are_turned_away_and_the_others_go_on() {
    for (cores, driver) in [("1", "auto"), ("4", "epoll")] {
        let fixed = ["--cores", cores, "--driver", driver, "--private-fds", "off"];
        let broker = Broker::start_with(&[&fixed[..], &ROOMY].concat(), Some(LIMIT));
        let mut witness = Witness::start(&broker);
        let mut durable = Raw::durable(broker.port, "durable");
        durable.subscribe("kept", 1);
        // Each says who it is, and whoever is served has an answer.
        let mut sockets: Vec<_> = (0..COMERS)
            .map(|n| {
                let mut socket = broker.socket();
                // It may have been closed by then.
                let _ = std::io::Write::write_all(&mut socket, &connect(&format!("comer {n}")));
                socket
                    .set_read_timeout(Some(patience(Duration::from_millis(500))))
                    .unwrap();
                socket
            })
            .collect();
        let is_served = |socket: &mut std::net::TcpStream| {
            let mut answer = [0; 4];
            std::io::Read::read_exact(socket, &mut answer).is_ok() && answer == [0x20, 2, 0, 0]
        };
        let mut served = Vec::new();
        let mut others = Vec::new();
        for mut socket in sockets.drain(..) {
            // The later ones have waited long enough by then.
            if served.len() + others.len() > LIMIT as usize {
                socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            }
            match is_served(&mut socket) {
                true => served.push(socket),
                false => others.push(socket),
            }
        }
        let most = LIMIT as usize - 10;
        assert!(
            (30..most).contains(&served.len()),
            "{} are served, {fixed:?}",
            served.len()
        );
        // With all descriptors taken.
        witness.looks();
        for id in 1..=10 {
            durable.send(&publish("kept", 1, id, b"kept"));
            let both = [durable.packet(), durable.packet()];
            assert!(both.contains(&Packet::Acknowledgement { kind: PUBACK, id }), "{both:?}");
        }
        counted(&broker);
        // All go who were served: others come in.
        let before = served.len();
        drop((served, others));
        let began = Instant::now();
        let mut back = Vec::new();
        while back.len() < before {
            let mut socket = broker.socket();
            let _ = std::io::Write::write_all(&mut socket, &connect(&format!("later {}", back.len())));
            match is_served(&mut socket) {
                true => back.push(socket),
                false => sleep(Duration::from_millis(50)),
            }
            assert!(
                began.elapsed() < patience(Duration::from_secs(20)),
                "{} of {before} came in after the others had gone, {fixed:?}",
                back.len()
            );
        }
        witness.looks();
        let written = counters(&broker.stop());
        eprintln!(
            "{before} of {COMERS} served, {} turned away",
            count(&written, "sockets_refused")
        );
        assert_balanced(&written);
    }
}
