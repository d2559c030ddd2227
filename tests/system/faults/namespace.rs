//! A host of the clients and one of the broker, each a network namespace, and a cable between them: so the TCP of both sees
//! packets lost, and connections that end without a word.
//!
//! Holds   - where the host has netem, it loses, delays and reorders; where not, nftables lose at random and tbf throttles:
//!           delays are with the relay of `network` then, and reordering is not tested;
//!         - where the host allows no namespaces, this says so, and `network` alone is left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Holder, ROOMY, Traffic};
use crate::broker::{Broker, Site};
use crate::clients::INSTALL;
use crate::durability::crowd::{Crowd, Part, Publishing};
use crate::durability::{assert_balanced, count, counted, counters, seed};

const BROKER: &str = "10.77.0.1";
const CLIENTS: &str = "10.77.0.2";
const KEEP_ALIVE_S: u16 = 2;
/// More than one and a half times that.
const PARTITION: Duration = Duration::from_secs(5);

/// One packet in ten, at random, as nftables say it.
const TENTH: &str = "numgen random mod 100 < 10";

/// Two hosts; each holds its end of the cable.
struct Hosts {
    broker: Holder,
    clients: Holder,
}

impl Hosts {
    fn start() -> Result<Hosts, String> {
        let broker = Holder::start(&["unshare", "-r", "-n"], "ip link set lo up")?;
        let clients = Hosts::plug_in(&broker)?;
        Ok(Hosts { broker, clients })
    }

    /// A host of clients, on a cable to that of the broker.
    fn plug_in(broker: &Holder) -> Result<Holder, String> {
        let mut words = broker.enter("-n");
        words.extend(["unshare", "-n"].map(str::to_owned));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let clients = Holder::start(&words, "ip link set lo up")?;
        let peer = clients.process.id();
        broker.try_run(
            "-n",
            &format!(
                "ip link add cable type veth peer name cable netns {peer}
                 ip address add {BROKER}/24 dev cable
                 ip link set cable up"
            ),
        )?;
        clients.try_run(
            "-n",
            &format!(
                "ip address add {CLIENTS}/24 dev cable
                 ip link set cable up"
            ),
        )?;
        Ok(clients)
    }

    /// The host of the clients loses its power: it says nothing to anybody any more. Another one comes at the same address.
    fn replace_clients(&mut self) {
        self.broker.run("-n", "ip link delete cable");
        self.clients = Hosts::plug_in(&self.broker).unwrap();
    }

    fn both(&self, script: &str) {
        self.broker.run("-n", script);
        self.clients.run("-n", script);
    }

    /// Packets that come in are lost: all of them, or those that this matches.
    fn lose(&self, host: &Holder, which: &str) {
        host.run(
            "-n",
            &format!(
                "command -v nft >/dev/null || {{ echo {INSTALL:?} >&2; exit 1; }}
                 nft -f - <<.
table inet faults {{
  chain input {{
    type filter hook input priority 0;
    iifname cable {which} drop
  }}
}}
."
            ),
        );
    }

    fn lose_nothing(&self) {
        self.both("nft delete table inet faults 2>/dev/null || true");
    }
}

/// The site of a broker on its host.
fn site(hosts: &Hosts) -> (Site, Broker) {
    let mut site = Site::new();
    site.set_launcher(hosts.broker.enter("-n"));
    let broker = site.start(4, &[&ROOMY[..], &["--bind", "0.0.0.0"]].concat());
    (site, broker)
}

#[test]
fn what_is_acknowledged_passes_a_cable_that_loses_packets_and_comes_loose() {
    let hosts = match Hosts::start() {
        Ok(hosts) => hosts,
        Err(problem) => return eprintln!("no network namespaces here, so `network` alone has to do: {problem}"),
    };
    let seed = seed("SKEIN_FAULT_SEED");
    let (site, broker) = site(&hosts);
    let launcher = hosts.clients.enter("-n");
    let crowd = Crowd::start_from(&launcher, BROKER, site.port(), seed);
    let mut traffic = Traffic::start(crowd, KEEP_ALIVE_S);
    let keep_alives = || count(&counted(&broker), "closed_keep_alive");

    let netem = "tc qdisc add dev cable root netem delay 20ms 10ms loss 10% reorder 20% 50%";
    match hosts.broker.try_run("-n", netem) {
        Ok(()) => {
            hosts.clients.run("-n", netem);
            traffic.crowd.watch(Duration::from_secs(3));
            hosts.both("tc qdisc delete dev cable root");
            traffic.compare("netem");
        }
        Err(problem) => {
            eprintln!("no netem here, so nftables lose packets, and nothing reorders them: {problem}");
            hosts.lose(&hosts.broker, TENTH);
            hosts.lose(&hosts.clients, TENTH);
            traffic.crowd.watch(Duration::from_secs(3));
            hosts.lose_nothing();
            traffic.compare("one packet in ten lost");
            let throttle = "tc qdisc add dev cable root tbf rate 100kbit burst 3000 latency 200ms";
            match hosts.broker.try_run("-n", throttle) {
                Ok(()) => {
                    traffic.crowd.watch(Duration::from_secs(2));
                    hosts.broker.run("-n", "tc qdisc delete dev cable root");
                    traffic.compare("a slow cable with a short queue");
                }
                Err(problem) => eprintln!("no tbf either, so no cable is slow: {problem}"),
            }
        }
    }

    // What the clients say is lost, what the broker says comes.
    let before = keep_alives();
    hosts.lose(&hosts.broker, "");
    traffic.crowd.watch(PARTITION);
    assert!(keep_alives() > before, "the broker hears nobody, and closes them");
    hosts.lose_nothing();
    traffic.compare("one way");

    // The cable is pulled out and put in again.
    let before = keep_alives();
    hosts.clients.run("-n", "ip link set cable down");
    traffic.crowd.watch(PARTITION);
    assert!(keep_alives() > before, "nobody is there, and the broker closes them");
    hosts.clients.run("-n", "ip link set cable up");
    traffic.compare("the cable");
    eprintln!("{} deliveries compared", traffic.compared);
    drop(traffic);
    assert_balanced(&counters(&broker.stop()));
}

/// Nobody tells the broker: it knows the old connections as open until the new host says that it does not know them, or
/// their clients are back.
#[test]
fn a_host_that_loses_its_power_comes_back_and_its_clients_miss_nothing() {
    const LIVES: u32 = 3;
    // What the broker has in flight to one client by default.
    const INFLIGHT_MAX: usize = 256;
    let mut hosts = match Hosts::start() {
        Ok(hosts) => hosts,
        Err(problem) => return eprintln!("no network namespaces here, so `network` alone has to do: {problem}"),
    };
    let seed = seed("SKEIN_FAULT_SEED");
    let (site, broker) = site(&hosts);
    let mut publishers = Crowd::start_from(&hosts.broker.enter("-n"), "127.0.0.1", site.port(), seed);
    for qos in [1, 2] {
        publishers.join(Part::new(&format!("publisher {qos}")).publishes(Publishing {
            topics: vec![format!("load/{qos}")],
            qos,
            retain: false,
            window: 8,
            per_second: 100,
            padding: vec![0, 500],
            clear_every: 0,
        }));
    }
    let names = ["sub 1", "sub 2"];
    // By subscriber and topic, over all lives of its host.
    let mut arrivals = BTreeMap::<_, Vec<u32>>::new();
    for life in 0..LIVES {
        let mut crowd = Crowd::start_from(&hosts.clients.enter("-n"), BROKER, site.port(), seed);
        for (name, qos) in names.into_iter().zip([1, 2]) {
            crowd.join(Part::new(name).subscribes(&["load/#"], qos).keep_alive(600));
        }
        crowd.wait_until("everybody is back", |crowd| {
            crowd.members.values().all(|member| {
                if life == 0 {
                    member.subscribed > 0
                } else {
                    member.is_connected
                }
            })
        });
        if life == 0 {
            publishers.resume();
        }
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            crowd.watch(Duration::from_millis(20));
            publishers.watch(Duration::from_millis(20));
        }
        if life == LIVES - 1 {
            publishers.pause();
            let issued = |qos: u8| publishers.members[&format!("publisher {qos}")].issued[&format!("load/{qos}")];
            let last = [issued(1), issued(2)].map(|issued| Some(issued - 1));
            crowd.wait_until("the last message comes to everybody", |crowd| {
                crowd.members.values().all(|member| {
                    [1, 2].iter().zip(last).all(|(qos, last)| {
                        let arrivals = member.arrivals.get(&format!("load/{qos}")).into_iter().flatten();
                        arrivals.map(|arrival| arrival.number).any(|number| number == last)
                    })
                })
            });
            crowd.watch(super::SETTLE);
        } else {
            hosts.replace_clients();
            // What has come so far: nothing more comes to this host.
            crowd.watch(Duration::from_millis(300));
        }
        for (name, member) in &crowd.members {
            for (topic, came) in &member.arrivals {
                let numbers = came.iter().filter_map(|arrival| arrival.number);
                arrivals
                    .entry((name.clone(), topic.clone()))
                    .or_default()
                    .extend(numbers);
            }
        }
    }
    for ((name, topic), numbers) in &arrivals {
        let is_exact = (name.as_str(), topic.as_str()) == ("sub 2", "load/2");
        let mut seen = BTreeSet::new();
        let firsts: Vec<_> = numbers.iter().copied().filter(|number| seen.insert(*number)).collect();
        assert!(firsts.is_sorted(), "{name}: {topic}: out of order: {numbers:?}");
        let missing = firsts[firsts.len() - 1] as usize + 1 - firsts.len();
        if is_exact {
            // What its host had taken over and not yet shown to anybody was lost with the host, not with the broker.
            assert_eq!(firsts.len(), numbers.len(), "{name}: {topic}: doubled: {numbers:?}");
            assert!(
                missing <= INFLIGHT_MAX * (LIVES as usize - 1),
                "{name}: {topic}: {numbers:?}"
            );
        } else {
            assert_eq!(missing, 0, "{name}: {topic}: {numbers:?}");
        }
    }
    assert_balanced(&counters(&broker.stop()));
}
