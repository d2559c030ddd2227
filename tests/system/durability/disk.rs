//! Disks that are full, that fail, and whose power is cut, under the real binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::crowd::{Crowd, Part, Publishing};
use super::{seed, write_sparse};
use crate::broker::{Broker, Site, patience};
use crate::clients::{Agent, INSTALL, Library, Message, hello};
use crate::disk_faults::DiskLayer;
use crate::power_cut::{Pending, Random};
use crate::raw::{PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Raw, acknowledgement, publish};

/// The file may not grow past this many bytes, or as far as it wants.
fn limit_file_size(broker: &Broker, bytes: Option<u64>) {
    let limit = bytes.map_or("unlimited".into(), |bytes| bytes.to_string());
    // The hard limit stays: what is lowered there cannot be raised again.
    let status = Command::new("prlimit")
        .args(["--pid", &broker.pid().to_string(), &format!("--fsize={limit}:")])
        .status();
    let status = status.unwrap_or_else(|error| panic!("prlimit cannot be started ({error}): {INSTALL}"));
    assert!(status.success());
}

/// Publishes one message after another, each with its number, and says which were acknowledged.
struct Writer {
    raw: Raw,
    acknowledged: u16,
    sent: u16,
}

impl Writer {
    fn start(site: &Site) -> Writer {
        Writer {
            raw: Raw::clean(site.port(), "writer"),
            acknowledged: 0,
            sent: 0,
        }
    }

    /// Sends the next unless one waits, and waits so long for the acknowledgement.
    fn write(&mut self, within: Duration) -> bool {
        if self.sent == self.acknowledged {
            self.sent += 1;
            let payload = format!("{} {:1500}", self.sent, "");
            self.raw.send(&publish("disk/x", 1, self.sent, payload.as_bytes()));
        }
        let Some(packet) = self.raw.packet_within(within) else {
            return false;
        };
        self.acknowledged += 1;
        let expected = Packet::Acknowledgement {
            kind: PUBACK,
            id: self.acknowledged,
        };
        assert_eq!(packet, expected);
        true
    }

    fn write_some(&mut self) {
        for _ in 0..100 {
            assert!(
                self.write(patience(Duration::from_secs(20))),
                "no PUBACK on a disk that works"
            );
        }
    }
}

/// What happens to a disk, and how it is undone.
pub struct Outage<'a> {
    pub name: &'a str,
    pub begin: &'a dyn Fn(&Broker),
    pub end: &'a dyn Fn(&Broker),
    /// The same, while no broker runs.
    pub repair: &'a dyn Fn(),
}

/// How the broker meets the end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It goes on by itself, and is killed later.
    Over,
    /// The disk works again when it has been started again.
    Killed,
    Stopped,
}

/// All three ends, each with the cores of the run after it.
pub const ENDS: [(Until, u16); 3] = [(Until::Over, 1), (Until::Killed, 4), (Until::Stopped, 1)];

/// Acknowledgements stop, everything else goes on; when the disk works again so do they, and a kill finds it all.
pub fn ride_out(site: &Site, outage: &Outage<'_>, ends: &[(Until, u16)]) {
    const ROOMY: [&str; 4] = ["--max-queued", "100000", "--max-queued-bytes", "1 GiB"];
    let mut broker = site.start(4, &ROOMY);
    Raw::durable(site.port(), "absent").subscribe("disk/#", 1);
    let mut paho = Agent::start(Library::Paho);
    let mut writer = Writer::start(site);
    for (until, cores) in ends.iter().copied() {
        let name = format!("{}, {until:?}", outage.name);
        paho.connect("w", &broker, hello("witness"));
        paho.subscribe("w", &[("witness/+", 1)]);
        // Pages to be written beyond those that are free in between.
        for _ in 0..3 {
            writer.write_some();
        }
        let complaints = |broker: &Broker| broker.written().matches("the store cannot commit").count();
        assert_eq!(complaints(&broker), 0, "{name}: before it");
        (outage.begin)(&broker);
        let began = Instant::now();
        while writer.write(Duration::from_secs(1)) || complaints(&broker) == 0 {
            assert!(
                began.elapsed() < patience(Duration::from_secs(60)),
                "{name}: acknowledged all the time, or nothing in the log"
            );
        }
        let before = writer.acknowledged;
        // Nobody who wants nothing of the disk is kept waiting, nobody at all is closed.
        for n in 0..20 {
            let message = Message::new(&format!("witness/{n}"), "all is well", (n % 2) as u8, false);
            paho.publish("w", &message);
            assert_eq!(paho.message("w"), message, "{name}");
        }
        assert!(
            !writer.write(Duration::from_secs(1)),
            "{name}: acknowledged meanwhile, after {before}"
        );
        match until {
            Until::Over => {
                (outage.end)(&broker);
                writer.write_some();
                broker.await_written("the store works again");
                paho.publish("w", &Message::new("witness/end", "end", 1, false));
                assert_eq!(paho.message("w").payload, b"end", "{name}");
                broker.kill();
            }
            Until::Killed => {
                broker.kill();
                (outage.repair)();
            }
            Until::Stopped => {
                broker.stop();
                (outage.repair)();
            }
        }
        broker = site.start(cores, &ROOMY);
        // What was sent and not acknowledged may be there or not: it is sent again, and may be there twice.
        writer = Writer {
            raw: Raw::clean(site.port(), "writer"),
            sent: writer.acknowledged,
            acknowledged: writer.acknowledged,
        };
    }
    let mut absent = Raw::durable(site.port(), "absent");
    assert!(absent.session_present);
    let mut numbers = Vec::new();
    while numbers.last() != Some(&writer.acknowledged) {
        let (_, payload, _) = absent.message();
        let text = String::from_utf8(payload).unwrap();
        numbers.push(text.split(' ').next().unwrap().parse().unwrap());
    }
    numbers.dedup();
    assert!(
        numbers.iter().copied().eq(1..=writer.acknowledged),
        "{}: {numbers:?}",
        outage.name
    );
    drop(absent);
    broker.stop();
    let inspected = site
        .command()
        .args(["inspect", "--data-dir"])
        .arg(site.data_dir())
        .output()
        .unwrap();
    assert!(inspected.status.success(), "{}: {inspected:?}", outage.name);
}

#[test]
fn a_file_that_may_not_grow_stops_acknowledgements_and_nothing_else() {
    let site = Site::new();
    ride_out(
        &site,
        &Outage {
            name: "EFBIG",
            begin: &|broker| limit_file_size(broker, Some(256 * 1024)),
            end: &|broker| limit_file_size(broker, None),
            repair: &|| {},
        },
        &ENDS,
    );
}

pub fn site_over_layer() -> (Site, DiskLayer) {
    let mut site = Site::new();
    // A store is made under another name, which the layer does not watch.
    site.start(1, &[]).stop();
    let layer = DiskLayer::over(&site.data_file());
    site.set_environment(layer.environment());
    (site, layer)
}

fn make_data_dir(site: &Site) {
    fs::DirBuilder::new().mode(0o700).create(site.data_dir()).unwrap();
}

#[test]
fn a_disk_that_is_full_or_fails_stops_acknowledgements_and_nothing_else() {
    let faults = [
        ("write ENOSPC", 3),
        ("sync EIO", 3),
        ("meta EIO", 3),
        ("write EIO", 1),
        ("write SHORT", 1),
        // As a file system has it that was made read-only while the file was open.
        ("write EROFS", 1),
        ("meta ENOSPC", 1),
    ];
    for (faults, ends) in faults {
        let (site, layer) = site_over_layer();
        ride_out(
            &site,
            &Outage {
                name: faults,
                begin: &|_| layer.set_faults(faults),
                end: &|_| layer.set_faults(""),
                repair: &|| layer.set_faults(""),
            },
            &ENDS[..ends],
        );
    }
}

const CUTS: u64 = 20;
/// After all that must come has come: time for what must not.
const SETTLE: Duration = Duration::from_millis(200);

/// Method: real clients publish to durable Sessions that are away, and rewrite retained messages, while the broker is killed
///         and started again; every acknowledgement is noted in the log of what reached the disk. Then the log is cut at
///         random points, a broker is started on what a power cut there could have left, and must have all that was
///         acknowledged before the cut. `SKEIN_CUT_SEED` repeats the cuts' choices, `SKEIN_CUTS` sets their number.
#[test]
fn a_power_cut_leaves_everything_that_was_acknowledged_before_it() {
    let wrong = cut_at_random("fsync", 4, CUTS);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The test above would notice a broker that does not sync.
#[test]
fn a_power_cut_tells_a_broker_that_does_not_sync() {
    let wrong = cut_at_random("process", 1, 6);
    assert!(!wrong.is_empty(), "nothing was lost without a sync");
}

/// What was wrong at each cut.
fn cut_at_random(durability: &str, lives: usize, cuts: u64) -> Vec<String> {
    let seed = seed("SKEIN_CUT_SEED");
    let cuts = std::env::var("SKEIN_CUTS").map_or(cuts, |cuts| cuts.parse().unwrap());
    eprintln!("--durability {durability}, SKEIN_CUT_SEED={seed}");
    let mut random = Random::new(seed);
    let (mut site, layer) = site_over_layer();
    let arguments = ["--durability", durability];
    let mut broker = site.start(1, &arguments);
    for qos in [1, 2] {
        Raw::durable(site.port(), &format!("absent {qos}")).subscribe("load/#", qos);
    }
    layer.mark("subscribed");
    let mut crowd = Crowd::start(site.port(), seed);
    for (name, qos, retain) in [("one", 1, false), ("two", 2, false), ("kept", 1, true)] {
        let prefix = if retain { "kept" } else { "load" };
        crowd.join(Part::new(name).publishes(Publishing {
            topics: (0..3).map(|n| format!("{prefix}/{name}/{n}")).collect(),
            qos,
            retain,
            window: 8,
            per_second: 100,
            padding: vec![0, 200, 5000],
            clear_every: 0,
        }));
    }
    crowd.resume();
    let note = |crowd: &mut Crowd| {
        for (topic, number) in crowd.take_acknowledged() {
            layer.mark(&format!("{topic} {number}"));
        }
    };
    for life in 1.. {
        let until = Instant::now() + Duration::from_millis(500 + random.below(1000) as u64);
        while Instant::now() < until {
            crowd.watch(Duration::from_millis(5));
            note(&mut crowd);
        }
        if life == lives {
            break;
        }
        broker.kill();
        note(&mut crowd);
        site.set_environment(layer.environment());
        broker = site.start([1, 4][life % 2], &arguments);
    }
    crowd.pause();
    note(&mut crowd);
    broker.stop();

    let log = layer.log();
    let first = (0..log.cut_max())
        .find(|cut| log.marks(*cut).next().is_some())
        .expect("the first mark is in the log");
    let mut wrong = Vec::new();
    for number in 0..cuts {
        let cut = first + random.below(log.cut_max() - first + 1);
        let pending = match number % 8 {
            0 => Pending::Lost,
            1 => Pending::Written,
            _ => Pending::Random(random.next()),
        };
        let mut required: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for mark in log.marks(cut) {
            if let Some((topic, number)) = mark.split_once(' ') {
                required.entry(topic).or_default().push(number.parse().unwrap());
            }
        }
        let verified = verify(&log.image(cut, pending), &required, [1, 4][number as usize % 2]);
        wrong.extend(verified.err().map(|problem| {
            let of = log.cut_max();
            format!("cut {cut} of {of}, {pending:?}, SKEIN_CUT_SEED={seed}: {problem}")
        }));
    }
    wrong
}

/// The image serves what is required: by topic, numbers.
fn verify(image: &[u8], required: &BTreeMap<&str, Vec<u32>>, cores: u16) -> Result<(), String> {
    let site = Site::new();
    make_data_dir(&site);
    write_sparse(&site.data_file(), image);
    let mut broker = site.launch(cores, &[]);
    broker.listens()?;
    for qos in [1, 2] {
        let mut raw = Raw::durable(site.port(), &format!("absent {qos}"));
        if !raw.session_present {
            return Err(format!("the Session at QoS {qos} is gone"));
        }
        let queued = required.iter().filter(|(topic, _)| topic.starts_with("load/"));
        let got = drain(&mut raw, |got| {
            let mut all = queued
                .clone()
                .flat_map(|(topic, numbers)| numbers.iter().map(|number| (*topic, *number)));
            all.find(|(topic, number)| !got.get(*topic).is_some_and(|got| got.contains(number)))
                .map(|(topic, number)| format!("QoS {qos}: {topic} number {number} is missing"))
        })?;
        for (topic, mut numbers) in got {
            // What was not acknowledged before a kill came again; at QoS 1 it is kept again.
            if topic.starts_with("load/one/") {
                let mut seen = BTreeSet::new();
                numbers.retain(|number| seen.insert(*number));
            }
            if !numbers.is_sorted_by(|one, other| one < other) {
                return Err(format!("QoS {qos}: {topic}: out of order or doubled: {numbers:?}"));
            }
        }
    }
    let mut raw = Raw::clean(site.port(), "onlooker");
    raw.subscribe("kept/#", 1);
    drain(&mut raw, |got| {
        let mut kept = required.iter().filter(|(topic, _)| topic.starts_with("kept/"));
        kept.find_map(|(topic, numbers)| {
            let newest = numbers.iter().max().unwrap();
            let kept = got.get(*topic).map_or(&[][..], Vec::as_slice);
            (kept.len() != 1 || kept[0] < *newest)
                .then(|| format!("{topic}: {kept:?} is kept, {newest} was acknowledged"))
        })
    })?;
    broker.stop();
    Ok(())
}

/// By topic, the numbers that came.
type Got = BTreeMap<String, Vec<u32>>;

/// Takes what comes until nothing lacks any more, and then nothing comes any more.
fn drain(raw: &mut Raw, lacks: impl Fn(&Got) -> Option<String>) -> Result<Got, String> {
    let mut got = Got::new();
    let mut latest = Instant::now();
    loop {
        let Some(packet) = raw.packet_within(SETTLE) else {
            let Some(problem) = lacks(&got) else {
                return Ok(got);
            };
            if latest.elapsed() > patience(Duration::from_secs(5)) {
                return Err(problem);
            }
            continue;
        };
        latest = Instant::now();
        match packet {
            Packet::Publish {
                topic,
                payload,
                qos,
                id,
                ..
            } => {
                let label = payload.split(|&byte| byte == b' ').next().unwrap();
                let number = std::str::from_utf8(label).unwrap().parse().unwrap();
                got.entry(topic).or_default().push(number);
                raw.send(&acknowledgement(if qos == 2 { PUBREC } else { PUBACK }, id));
            }
            Packet::Acknowledgement { kind: PUBREL, id } => raw.send(&acknowledgement(PUBCOMP, id)),
            other => return Err(format!("{other:?} came")),
        }
    }
}
