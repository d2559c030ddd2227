//! Starts on a data directory that cannot be used: one sentence that names it, exit code 2, and nothing changed there. And
//! on one that is damaged: what it still holds is served, or the start is refused; it never begins anew by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, EnvOpenOptions};

use super::{seed, write_sparse};
use crate::broker::{Site, patience};
use crate::clients::{Message, mosquitto_pub};
use crate::power_cut::Random;
use crate::raw::{PUBACK, Packet, Raw, publish};

/// A store with something of everything in it, of a broker that has stopped.
fn filled() -> Site {
    let site = Site::new();
    let broker = site.start(1, &[]);
    for n in 0..20 {
        let mut raw = Raw::durable(site.port(), &format!("session {n}"));
        raw.subscribe(&format!("filled/{}/#", n % 4), 2);
    }
    let mut publisher = Raw::durable(site.port(), "publisher");
    for n in 0..200u16 {
        let payload = [&n.to_be_bytes()[..], &[b'.'; 700]].concat();
        let mut packet = publish(&format!("filled/{}/x", n % 4), 1 + (n % 2) as u8, n + 1, &payload);
        if n % 5 == 0 {
            packet = publish(&format!("kept/{n}"), 1, n + 1, &payload);
            packet[0] |= 1;
        }
        publisher.send(&packet);
        let Packet::Acknowledgement { .. } = publisher.packet() else {
            panic!("no acknowledgement")
        };
    }
    broker.stop();
    site
}

/// Every file of a directory with what it holds; the lock is nobody's data.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file() && !path.to_string_lossy().contains("lock"));
    let mut contents: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    contents.sort();
    contents
}

/// The start is refused in a sentence with these words, and the directory stays as it is.
fn assert_refused(site: &Site, words: &[&str]) {
    let before = contents(&site.data_dir());
    let sentence = site.refusal(&[]);
    for word in words {
        assert!(sentence.contains(word), "no word of {word:?}: {sentence}");
    }
    assert!(contents(&site.data_dir()) == before, "changed by: {sentence}");
}

#[test]
fn a_directory_that_another_broker_uses_is_refused() {
    let site = Site::new();
    let broker = site.start(1, &[]);
    let directory = site.data_dir().display().to_string();
    let sentence = Site::new().refusal(&["--data-dir", &directory]);
    assert!(
        sentence.contains(&directory) && sentence.contains("in use"),
        "{sentence}"
    );
    mosquitto_pub(&broker, &[], &Message::new("still/there", "yes", 1, true));
    broker.kill();
    // A broker that was killed holds nothing.
    site.start(4, &[]).stop();
}

#[test]
fn a_directory_that_cannot_be_made_or_written_is_refused() {
    let site = Site::new();
    let file = site.directory().join("file");
    fs::write(&file, "a file").unwrap();
    let below_a_file = file.join("below");
    for path in [&file, &below_a_file, Path::new("/proc/skein-data")] {
        let path = path.display().to_string();
        let sentence = site.refusal(&["--data-dir", &path]);
        assert!(
            sentence.contains(&path) && sentence.contains("--data-dir"),
            "{sentence}"
        );
    }
    assert_eq!(fs::read(&file).unwrap(), b"a file");
    // In place of the file of data.
    fs::create_dir_all(site.data_file()).unwrap();
    assert_refused(&site, &["data.mdb"]);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_one_of_an_older_taken_up() {
    let site = filled();
    set_schema(&site.data_dir(), 3);
    assert_refused(&site, &["data.mdb", "newer version", "schema 3"]);
    set_schema(&site.data_dir(), 1);
    let broker = site.start(1, &[]);
    assert!(Raw::durable(site.port(), "session 3").session_present);
    broker.stop();
}

#[allow(unsafe_code)]
fn set_schema(directory: &Path, schema: u64) {
    // SAFETY: no broker runs on it, and no other place of this process opens it.
    let env = unsafe { EnvOpenOptions::new().max_dbs(20).open(directory).unwrap() };
    let transaction = env.write_txn().unwrap();
    let meta: Database<'static, Bytes, Bytes> = env
        .create_databases_and_commit(transaction, |opener, transaction| {
            let meta = opener.create_database(transaction, Some("meta"));
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(meta))
        })
        .unwrap()
        .unwrap_commit()
        .unwrap();
    let mut transaction = env.write_txn().unwrap();
    let value = [&[1][..], &schema.to_be_bytes()].concat();
    let mut crc = crc32fast::Hasher::new();
    crc.update(b"schema");
    crc.update(&value);
    let value = [&value[..], &crc.finalize().to_be_bytes()].concat();
    meta.put(&mut transaction, b"schema", &value).unwrap();
    transaction.commit().unwrap();
    env.prepare_for_closing().wait();
}

#[test]
fn a_file_that_is_no_store_is_refused() {
    let text = b"a letter to somebody, and no store at all".repeat(500);
    for content in [&text[..], &text[..10], &[0; 8192]] {
        let site = Site::new();
        fs::create_dir(site.data_dir()).unwrap();
        fs::write(site.data_file(), content).unwrap();
        assert_refused(&site, &["data.mdb"]);
    }
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let site = filled();
    let whole = fs::read(site.data_file()).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    for length in [used / 2, used - used % 4096, 3 * 4096, 2 * 4096, 5000, 4096, 100] {
        fs::write(site.data_file(), &whole[..length as usize]).unwrap();
        assert_refused(&site, &["data.mdb"]);
    }
    fs::write(site.data_file(), &whole).unwrap();
    let broker = site.start(1, &[]);
    assert!(Raw::durable(site.port(), "session 3").session_present);
    broker.stop();
}

/// `SKEIN_DAMAGE_ROUNDS` and `SKEIN_DAMAGE_SEED` as in the kill loop.
#[test]
fn a_damaged_file_is_served_as_far_as_it_goes_or_refused() {
    let rounds = std::env::var("SKEIN_DAMAGE_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    let first = seed("SKEIN_DAMAGE_SEED");
    let site = filled();
    let whole = fs::read(site.data_file()).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut outcomes = [0, 0];
    for seed in first..first + rounds {
        eprintln!("SKEIN_DAMAGE_SEED={seed} SKEIN_DAMAGE_ROUNDS=1");
        let mut random = Random::new(seed);
        let damaged = damaged(&whole, used, &mut random);
        write_sparse(&site.data_file(), &damaged);
        let mut broker = site.launch([1, 4][seed as usize % 2], &[]);
        if broker.listens().is_err() {
            let sentence = broker.refusal();
            assert!(sentence.contains("data.mdb"), "the file is not named: {sentence}");
            assert!(
                fs::read(site.data_file()).unwrap() == damaged,
                "changed by a start that was refused: {sentence}"
            );
            outcomes[1] += 1;
            continue;
        }
        let written = broker.await_written("sessions=");
        let found = written.lines().find(|line| line.contains("sessions=")).unwrap();
        assert!(
            !found.contains("sessions=0") || !found.contains("retained=0"),
            "an empty store in place of the old one: {written}"
        );
        look_around(&site);
        broker.stop();
        outcomes[0] += 1;
    }
    eprintln!("{} served, {} refused", outcomes[0], outcomes[1]);
}

/// Some bytes, or a sector, or a page, in one place or in many.
fn damaged(whole: &[u8], used: usize, random: &mut Random) -> Vec<u8> {
    let mut file = whole.to_vec();
    let places = match random.below(3) {
        0 => 1,
        1 => 1 + random.below(4),
        _ => 1 + random.below(200),
    };
    let length = [1, 8, 512, 4096][random.below(4)];
    for _ in 0..places {
        let at = random.below(used) / length * length;
        let end = (at + length).min(used);
        match random.below(3) {
            0 => file[at..end].fill(0),
            1 => file[at..end].fill_with(|| random.next() as u8),
            // A page in the place of another.
            _ => {
                let from = random.below(used - length) / length * length;
                file[at..end].copy_from_slice(&whole[from..from + end - at]);
            }
        }
    }
    file
}

/// Everything is asked for, and new things are stored; what comes does not matter, as long as the broker serves.
fn look_around(site: &Site) {
    let quiet = Duration::from_millis(50);
    let began = Instant::now();
    for n in 0..20 {
        let mut raw = Raw::durable(site.port(), &format!("session {n}"));
        while raw.message_within(quiet).is_some() {}
    }
    let mut onlooker = Raw::clean(site.port(), "onlooker");
    onlooker.subscribe("kept/#", 1);
    while onlooker.message_within(quiet).is_some() {}
    for n in 1..5 {
        onlooker.send(&publish(&format!("filled/{n}/x"), 1, n, b"new"));
        let expected = Packet::Acknowledgement { kind: PUBACK, id: n };
        assert_eq!(onlooker.packet(), expected);
    }
    assert!(began.elapsed() < patience(Duration::from_secs(60)));
}
