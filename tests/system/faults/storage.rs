//! Real file systems under the data directory: one that is full, one that is read-only; and a disk that is slow.
//!
//! Holds   - the small file system is a tmpfs in a mount namespace of its own; where the host allows none, this says so, and
//!           `durability::disk` alone is left, whose layer makes the same calls fail;
//!         - Linux makes no file system read-only that has a file open for writing: so a broker that runs sees EROFS by the
//!           layer, and one that starts sees the real thing.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Holder, ROOMY};
use crate::broker::Site;
use crate::durability::disk::{ENDS, Outage, ride_out, site_over_layer};
use crate::durability::{assert_balanced, count, counters};
use crate::raw::{PUBACK, Packet, Raw, publish};

/// A tmpfs of this size as the data directory of a site.
struct SmallDisk {
    holder: Holder,
    site: Site,
}

impl SmallDisk {
    fn mount(size: &str) -> Result<SmallDisk, String> {
        let mut site = Site::new();
        fs::create_dir(site.data_dir()).unwrap();
        let directory = site.data_dir().display().to_string();
        let script = format!("mount -t tmpfs -o size={size},mode=700 skein {directory}");
        let holder = Holder::start(&["unshare", "-r", "-m"], &script)?;
        site.set_launcher(holder.enter("-m"));
        site.set_environment([("SKEIN_DATA_DIR", directory.into())]);
        Ok(SmallDisk { holder, site })
    }

    /// Its directory as this process sees it.
    fn path(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.process.id());
        PathBuf::from(root).join(self.site.data_dir().strip_prefix("/").unwrap())
    }

    /// Nothing more fits.
    fn fill(&self) {
        let mut file = fs::File::create(self.path().join("filler")).unwrap();
        let mut size = 1 << 20;
        while size > 0 {
            match file.write(&vec![1; size]) {
                Ok(_) => {}
                Err(_) => size /= 2,
            }
        }
    }

    /// As much room as there was.
    fn make_room(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }

    fn remount(&self, how: &str) {
        let directory = self.site.data_dir().display().to_string();
        self.holder.run("-m", &format!("mount -o remount,{how} {directory}"));
    }
}

#[test]
fn a_full_file_system_stops_acknowledgements_and_nothing_else() {
    let disk = match SmallDisk::mount("16m") {
        Ok(disk) => disk,
        Err(problem) => return eprintln!("no mount namespace here, so `durability::disk` alone has to do: {problem}"),
    };
    ride_out(
        &disk.site,
        &Outage {
            name: "a full tmpfs",
            begin: &|_| disk.fill(),
            end: &|_| disk.make_room(),
            repair: &|| disk.make_room(),
        },
        &ENDS,
    );
}

#[test]
fn a_start_on_a_read_only_file_system_is_refused_and_finds_everything_when_it_may_write_again() {
    const COUNT: u16 = 50;
    let disk = match SmallDisk::mount("16m") {
        Ok(disk) => disk,
        Err(problem) => return eprintln!("no mount namespace here, so nothing is read-only: {problem}"),
    };
    let site = &disk.site;
    let broker = site.start(4, &ROOMY);
    Raw::durable(site.port(), "absent").subscribe("ro", 1);
    let mut publisher = Raw::clean(site.port(), "publisher");
    for n in 0..COUNT {
        publisher.deliver(&publish("ro", 1, n + 1, n.to_string().as_bytes()), n + 1);
    }
    broker.kill();
    disk.remount("ro");
    let sentence = site.refusal(&[]);
    let directory = site.data_dir().display().to_string();
    assert!(
        sentence.contains(&directory) && sentence.contains("Read-only file system"),
        "{sentence}"
    );
    disk.remount("rw");
    let broker = site.start(1, &ROOMY);
    let mut absent = Raw::durable(site.port(), "absent");
    for n in 0..COUNT {
        assert_eq!(absent.message().1, n.to_string().as_bytes());
    }
    absent.fence();
    drop(absent);
    assert_balanced(&counters(&broker.stop()));
}

/// Every sync takes a second: acknowledgements of what is durable are late, and nothing else is; nothing is lost.
#[test]
fn a_slow_disk_delays_acknowledgements_and_nothing_else() {
    const SYNC_MS: u64 = 1_000;
    const ROUNDS: usize = 40;
    for cores in [1, 4] {
        let (site, layer) = site_over_layer();
        let broker = site.start(cores, &ROOMY);
        Raw::durable(site.port(), "absent").subscribe("slow/#", 1);
        layer.set_faults(&format!("sync-delay {SYNC_MS}"));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            // Leaves one message unacknowledged at a time: so something waits for the disk all the time.
            let durable = scope.spawn(|| {
                let mut publisher = Raw::clean(site.port(), "durable");
                let mut waits = Vec::new();
                for id in 1..=u16::MAX {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    publisher.send(&publish("slow/x", 1, id, id.to_string().as_bytes()));
                    assert_eq!(publisher.packet(), Packet::Acknowledgement { kind: PUBACK, id });
                    waits.push(began.elapsed());
                }
                waits
            });
            let mut others = Raw::clean(site.port(), "others");
            others.subscribe("quick/#", 1);
            let mut trips: Vec<_> = (0..ROUNDS)
                .map(|n| {
                    let began = Instant::now();
                    let topic = format!("quick/{n}");
                    match n % 2 {
                        0 => others.send(&crate::raw::publish_at_most_once(&topic, b"x")),
                        _ => others.deliver(&publish(&topic, 1, 1, b"x"), 1),
                    }
                    assert_eq!(others.message().0, topic);
                    let took = began.elapsed();
                    thread::sleep(Duration::from_millis(20));
                    took
                })
                .collect();
            is_over.store(true, Ordering::Relaxed);
            let waits = durable.join().unwrap();
            trips.sort();
            let shortest = waits.iter().min().unwrap();
            assert!(
                *shortest >= Duration::from_millis(SYNC_MS),
                "acknowledged after {shortest:?}"
            );
            // A wait for the disk would delay most of them by half a sync and more.
            let middle = trips[ROUNDS / 2];
            assert!(middle < Duration::from_millis(SYNC_MS / 2), "{cores} cores: {trips:?}");
            eprintln!(
                "{cores} cores: {} late acknowledgements, others took {middle:?} at the median",
                waits.len()
            );
            layer.set_faults("");
            let mut absent = Raw::durable(site.port(), "absent");
            for id in 1..=waits.len() {
                assert_eq!(absent.message().1, id.to_string().as_bytes());
            }
            absent.fence();
        });
        let counters = counters(&broker.stop());
        assert_eq!(count(&counters, "dropped_queue_full"), 0);
        assert_balanced(&counters);
    }
}
