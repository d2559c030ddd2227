//! A broker that is stopped and continued (SIGSTOP, SIGCONT), as by a host that swaps, a debugger, or a virtual machine that
//! is moved.

use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{ROOMY, Traffic};
use crate::broker::{Site, patience};
use crate::durability::crowd::Crowd;
use crate::durability::{assert_balanced, count, counted, counters, seed};
use crate::raw::{Connect, Raw, publish};

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

/// What they sent is in their sockets: the broker has to look there before it says that they were silent. They are more
/// than a core takes in in one batch.
#[test]
fn nobody_is_closed_after_a_pause_who_went_on_sending() {
    const TALKERS: usize = 600;
    const SILENT: usize = 20;
    const KEEP_ALIVE_S: u16 = 4;
    const LONG_PAUSE: Duration = Duration::from_millis(6_500);
    let site = Site::new();
    let broker = site.start(1, &ROOMY);
    let names: Vec<_> = (0..TALKERS + SILENT).map(|n| format!("client {n}")).collect();
    let connect = |id| Connect {
        level: 4,
        id,
        is_clean: true,
        keep_alive_s: KEEP_ALIVE_S,
        user: None,
        password: None,
        will: None,
    };
    let ping = |clients: &mut [Raw]| clients.iter_mut().for_each(|client| client.send(&[0xc0, 0]));
    let mut clients = Vec::new();
    for chunk in names.chunks(100) {
        // None of them waits for another: so the first are not silent for long when the last have come.
        let sockets = chunk.iter().map(|id| {
            let mut socket = broker.socket();
            socket.write_all(&connect(id).packet()).unwrap();
            socket
        });
        let sockets: Vec<_> = sockets.collect();
        clients.extend(sockets.into_iter().map(|socket| Raw::over(socket, &[]).unwrap()));
        ping(&mut clients);
    }
    let (talkers, silent) = clients.split_at_mut(TALKERS);
    broker.signal(Signal::STOP);
    let until = Instant::now() + LONG_PAUSE;
    while Instant::now() < until {
        ping(talkers);
        sleep(Duration::from_millis(500));
    }
    ping(talkers);
    broker.signal(Signal::CONT);
    for client in silent {
        assert!(
            client.is_closed_within(Duration::from_secs(3)),
            "open in spite of its silence"
        );
    }
    let counters_now = counted(&broker);
    assert_eq!(
        count(&counters_now, "closed_keep_alive"),
        SILENT as u64,
        "{counters_now:?}"
    );
    assert_eq!(
        count(&counters_now, "connections_now"),
        TALKERS as u64,
        "{counters_now:?}"
    );
    drop(clients);
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
