//! Networks that delay, throttle, cut, swallow and lose, between the broker and everybody: by a relay in user space, which
//! needs nothing of the host. What TCP itself makes of lost packets is in `namespace`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::relay::{Conditions, Cut, Relay};
use super::{ROOMY, Traffic};
use crate::broker::{Site, patience};
use crate::durability::crowd::Crowd;
use crate::durability::{assert_balanced, count, counted, counters, seed};
use crate::raw::{Connect, Raw, Will};

/// How long each fault lasts.
const FAULT: Duration = Duration::from_millis(1_500);
const KEEP_ALIVE_S: u16 = 2;
/// More than one and a half times that, and than what a client waits for PINGRESP.
const PARTITION: Duration = Duration::from_secs(5);

#[test]
fn what_is_acknowledged_passes_a_network_that_delays_throttles_cuts_and_swallows() {
    let seed = seed("SKEIN_FAULT_SEED");
    eprintln!("SKEIN_FAULT_SEED={seed}");
    let site = Site::new();
    let broker = site.start(4, &ROOMY);
    let relay = Relay::start(site.port(), seed);
    let mut traffic = Traffic::start(Crowd::start(relay.port, seed), KEEP_ALIVE_S);
    let well = Conditions::default();
    let cut = |cut, most| Conditions {
        cut: Some((cut, most)),
        ..well
    };
    let delayed = Conditions {
        delay: Duration::from_millis(60),
        ..well
    };
    let throttled = Conditions {
        bytes_per_second: 5_000,
        ..well
    };
    for (name, conditions) in [("delayed", delayed), ("throttled", throttled)] {
        relay.set(conditions);
        traffic.crowd.watch(FAULT);
        relay.set(well);
        traffic.compare(name);
    }
    for (name, conditions) in [
        ("closed at any byte", cut(Cut::Closed, 6_000)),
        ("reset at any byte", cut(Cut::Reset, 6_000)),
        ("closed by halves at any byte", cut(Cut::Half, 6_000)),
        ("reset within the first packets", cut(Cut::Reset, 60)),
    ] {
        let before = traffic.connects();
        relay.set(conditions);
        traffic.crowd.watch(FAULT);
        relay.set(well);
        traffic.compare(name);
        assert!(traffic.connects() > before, "{name}: nobody was cut");
    }

    // No byte for longer than the keep alive, and then all that was held back, into connections that are given up by then.
    let before = count(&counted(&broker), "closed_keep_alive");
    relay.set(Conditions {
        is_partitioned: true,
        ..well
    });
    traffic.crowd.watch(PARTITION);
    relay.set(well);
    traffic.compare("partitioned and healed");
    let closed = count(&counted(&broker), "closed_keep_alive") - before;
    assert!(closed > 0, "a partition is found out by the keep alive");

    // Half open: the old connections stay, as far as the broker knows; the clients come on new ones.
    let members = traffic.crowd.members.len() as u32;
    let before = traffic.connects();
    relay.strand();
    let began = Instant::now();
    while traffic.connects() < before + members {
        traffic.crowd.watch(Duration::from_millis(50));
        assert!(
            began.elapsed() < patience(Duration::from_secs(20)),
            "not everybody comes back beside the old connection"
        );
    }
    traffic.compare("half open");
    eprintln!("{} deliveries compared", traffic.compared);
    drop(traffic);
    assert_balanced(&counters(&broker.stop()));
}

/// It is gone without a word, and comes back: the Session is taken over from the connection that is still open.
#[test]
fn a_client_whose_connection_is_half_open_takes_its_session_over() {
    const COUNT: usize = 50;
    for cores in [1, 4] {
        let site = Site::new();
        let broker = site.start(cores, &ROOMY);
        let relay = Relay::start(site.port(), 1);
        let mut gone = Raw::durable(relay.port, "half open");
        gone.subscribe("half/#", 2);
        relay.strand();
        let mut publisher = Raw::clean(site.port(), "publisher");
        for n in 0..COUNT {
            let (qos, id) = ([1, 2][n % 2], n as u16 + 1);
            let packet = crate::raw::publish("half/open", qos, id, n.to_string().as_bytes());
            publisher.deliver(&packet, id);
        }
        let mut back = Raw::durable(site.port(), "half open");
        assert!(back.session_present, "{cores} cores");
        for n in 0..COUNT {
            let (_, payload, qos) = back.message();
            assert_eq!(payload, n.to_string().as_bytes(), "{cores} cores");
            assert_eq!(qos, [1, 2][n % 2], "{cores} cores");
        }
        back.fence();
        let counters_now = counted(&broker);
        assert_eq!(count(&counters_now, "closed_taken_over"), 1, "{counters_now:?}");
        drop((gone, back, publisher, relay));
        assert_balanced(&counters(&broker.stop()));
    }
}

/// [MQTT-3.1.2-24]: within one and a half times the keep alive, and its Will is published.
#[test]
fn a_client_that_is_never_heard_of_again_is_closed_by_its_keep_alive() {
    let site = Site::new();
    let broker = site.start(4, &ROOMY);
    let relay = Relay::start(site.port(), 1);
    let mut witness = Raw::clean(site.port(), "witness");
    witness.subscribe("will/#", 1);
    let connect = Connect {
        level: 4,
        id: "mortal",
        is_clean: true,
        keep_alive_s: 2,
        user: None,
        password: None,
        will: Some(Will {
            topic: "will/mortal",
            payload: b"gone",
            qos: 1,
            retain: false,
        }),
    };
    let mortal = Raw::open(relay.port, &connect.packet()).unwrap();
    let began = Instant::now();
    relay.strand();
    let (_, payload, _) = witness.message();
    let after = began.elapsed();
    assert_eq!(payload, b"gone");
    let limit = Duration::from_millis(2_800)..patience(Duration::from_secs(5));
    assert!(limit.contains(&after), "closed after {after:?}");
    witness.fence();
    assert_eq!(count(&counted(&broker), "closed_keep_alive"), 1);
    // The relay ends the connection only now: the broker did not wait for that.
    drop((mortal, relay));
    sleep(Duration::from_millis(50));
    assert_balanced(&counters(&broker.stop()));
}
