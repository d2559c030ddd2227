//! A broker that is stopped and continued (SIGSTOP, SIGCONT), as by a host that swaps, a debugger, or a virtual machine that
//! is moved.

use std::io::Write;
use std::time::Duration;

use rustix::process::Signal;

use super::{ROOMY, Traffic};
use crate::broker::{Site, patience};
use crate::durability::crowd::Crowd;
use crate::durability::{assert_balanced, counters, seed};
use crate::raw::{Raw, publish};

/// More than one and a half times the keep alive of everybody here.
const PAUSE: Duration = Duration::from_secs(4);

#[test]
fn what_is_acknowledged_survives_a_pause_longer_than_the_keep_alive() {
    let seed = seed("SKEIN_FAULT_SEED");
    let site = Site::new();
    let broker = site.start(4, &ROOMY);
    let mut traffic = Traffic::start(Crowd::start(site.port(), seed), 2);
    for pause in [PAUSE, Duration::from_millis(300), PAUSE] {
        traffic.crowd.watch(Duration::from_millis(700));
        broker.signal(Signal::STOP);
        traffic.crowd.watch(pause);
        broker.signal(Signal::CONT);
        traffic.crowd.watch(Duration::from_millis(500));
        traffic.compare(&format!("a pause of {pause:?}"));
    }
    drop(traffic);
    assert_balanced(&counters(&broker.stop()));
}

/// Acknowledged before the pause, killed in it: it is on disk.
#[test]
fn a_broker_that_is_killed_while_it_is_stopped_has_lost_nothing() {
    const COUNT: u16 = 100;
    let site = Site::new();
    let broker = site.start(4, &ROOMY);
    Raw::durable(site.port(), "absent").subscribe("paused", 1);
    let mut publisher = Raw::clean(site.port(), "publisher");
    for n in 0..COUNT {
        publisher.deliver(&publish("paused", 1, n + 1, n.to_string().as_bytes()), n + 1);
    }
    broker.signal(Signal::STOP);
    // It takes these in, or not: nothing was said.
    let mut writer = publisher.writer();
    for n in COUNT..2 * COUNT {
        writer
            .write_all(&publish("paused", 1, n + 1, n.to_string().as_bytes()))
            .unwrap();
    }
    broker.kill();
    let broker = site.start(1, &ROOMY);
    let mut absent = Raw::durable(site.port(), "absent");
    for n in 0..COUNT {
        assert_eq!(absent.message().1, n.to_string().as_bytes());
    }
    let further = absent.message_within(patience(Duration::from_millis(300)));
    assert_eq!(further, None, "a stopped broker took something in");
    absent.fence();
    drop(absent);
    assert_balanced(&counters(&broker.stop()));
}
