//! `store::pages` against files that heed makes: a sound one passes with heed's own counts, and what passes after damage
//! LMDB reads from end to end. LMDB reads in a child process, since damage may end it by a signal.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};
use proptest::prelude::*;
use skein::store::pages::{Damage, Depth, Summary, Table, check, check_image, fuzz_pages};

const TABLES: [&str; 6] = ["accounts", "messages", "queues", "references", "retained", "sessions"];
const BACKLOG: [&str; 4] = ["messages", "queues", "references", "retained"];
const PAGE: usize = 4096;

type Bytewise = Database<'static, Bytes, Bytes>;

/// xorshift: the same numbers from the same seed.
struct Random(u64);

impl Random {
    /// For the tests that damage at random: `SKEIN_TEST_SEED=7 cargo test --test pages` looks elsewhere.
    fn of_run(number: u64) -> Random {
        let seed = std::env::var("SKEIN_TEST_SEED").map_or(1, |seed| seed.parse::<u64>().unwrap());
        Random((seed * 100 + number).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

struct Store {
    env: Env,
    /// In the order of `TABLES`.
    tables: [Bytewise; TABLES.len()],
}

impl Store {
    fn open(directory: &Path) -> Store {
        let mut options = EnvOpenOptions::new();
        options.map_size(1 << 30).max_dbs(16);
        // SAFETY: no file of these tests is opened twice in one process, and none is damaged but in a child.
        let env = unsafe { options.flags(EnvFlags::NO_SYNC).open(directory).unwrap() };
        let transaction = env.write_txn().unwrap();
        let tables = env
            .create_databases_and_commit(transaction, |opener, transaction| {
                Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(
                    TABLES.map(|name| opener.create_database::<Bytes, Bytes>(transaction, Some(name))),
                ))
            })
            .unwrap()
            .unwrap_commit()
            .map(Result::unwrap);
        Store { env, tables }
    }

    fn table(&self, name: &str) -> Bytewise {
        self.tables[TABLES.iter().position(|table| *table == name).unwrap()]
    }
}

fn data_file(directory: &Path) -> PathBuf {
    directory.join("data.mdb")
}

/// One transaction of anything: small values and large, ordered keys and scattered ones, deletes, a table that is emptied.
fn change(store: &Store, random: &mut Random) {
    let mut transaction = store.env.write_txn().unwrap();
    for _ in 0..1 + random.below(3) {
        let name = TABLES[random.below(TABLES.len())];
        let table = store.table(name);
        if random.below(30) == 0 {
            table.clear(&mut transaction).unwrap();
        }
        let start = random.below(20_000) as u64;
        for offset in 0..random.below(300) as u64 {
            let mut key = match name {
                "messages" | "queues" => (start + offset).to_be_bytes().to_vec(),
                _ => (random.next() % 5_000).to_le_bytes().repeat(1 + random.below(40)),
            };
            if random.below(8) == 0 {
                key.truncate(1 + random.below(key.len()));
            }
            let size = match random.below(100) {
                0 => random.below(100_000),
                1..10 => random.below(5_000),
                _ => random.below(200),
            };
            match random.below(3) {
                0 => drop(table.delete(&mut transaction, &key).unwrap()),
                _ => table.put(&mut transaction, &key, &vec![offset as u8; size]).unwrap(),
            }
        }
    }
    transaction.commit().unwrap();
}

/// What heed counts.
fn counts(store: &Store) -> Vec<Table> {
    let transaction = store.env.read_txn().unwrap();
    let table = |(name, table): (&str, Bytewise)| {
        let stat = table.stat(&transaction).unwrap();
        Table {
            name: name.into(),
            depth: stat.depth as u16,
            entries: stat.entries as u64,
            branch_pages: stat.branch_pages as u64,
            leaf_pages: stat.leaf_pages as u64,
            overflow_pages: stat.overflow_pages as u64,
            is_counted: true,
        }
    };
    TABLES.into_iter().zip(store.tables).map(table).collect()
}

fn assert_sound(store: &Store, directory: &Path) -> Summary {
    let path = data_file(directory);
    let summary = check(&path, Depth::Everything).unwrap();
    assert_eq!(summary.tables, counts(store));
    assert_eq!(summary.lost_pages, 0);
    assert_eq!(summary.last_transaction, store.env.info().last_txn_id as u64);
    assert_eq!(summary.other_transaction, summary.last_transaction - 1);
    assert_eq!(summary.last_page, store.env.info().last_page_number as u64);
    assert_eq!(summary.used_pages + summary.free_pages, summary.last_page + 1);

    let mut structure = check(&path, Depth::Structure { unread: &BACKLOG }).unwrap();
    for table in &mut structure.tables {
        assert_eq!(table.is_counted, !BACKLOG.contains(&table.name.as_str()));
        table.is_counted = true;
    }
    assert_eq!(structure, summary);
    summary
}

#[test]
fn a_file_that_heed_made_passes_with_the_counts_of_heed() {
    for seed in 1..=4 {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path());
        let mut random = Random(seed * 0x9E37_79B9);
        assert_sound(&store, directory.path());
        for round in 0..80 {
            // A reader that stays makes the free list long.
            let reader = (round % 3 == 0).then(|| store.env.read_txn().unwrap());
            change(&store, &mut random);
            change(&store, &mut random);
            drop(reader);
            assert_sound(&store, directory.path());
        }
    }
}

#[test]
fn a_free_list_in_overflow_pages_passes() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let fill = |name| {
        let mut transaction = store.env.write_txn().unwrap();
        let table = store.table(name);
        for number in 0..20_000u64 {
            table.put(&mut transaction, &number.to_be_bytes(), &[7; 900]).unwrap();
        }
        transaction.commit().unwrap();
        table
    };
    let queues = fill("queues");
    fill("messages");
    let mut transaction = store.env.write_txn().unwrap();
    queues.clear(&mut transaction).unwrap();
    transaction.commit().unwrap();
    assert!(assert_sound(&store, directory.path()).free_pages > 4_000);
    let mut random = Random(5);
    for _ in 0..30 {
        change(&store, &mut random);
        assert_sound(&store, directory.path());
    }
}

/// A closed file with a bit of everything, and what it holds by table and key.
struct Sample {
    bytes: Vec<u8>,
    content: String,
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path());
        let mut random = Random(11);
        for _ in 0..25 {
            change(&store, &mut random);
        }
        let summary = assert_sound(&store, directory.path());
        assert!(summary.free_pages > 20, "{summary:?}");
        assert!(summary.tables.iter().any(|table| table.depth > 2), "{summary:?}");
        store.env.prepare_for_closing().wait();
        let bytes = fs::read(data_file(directory.path())).unwrap();
        let content = read_in_child(&bytes).expect("the sample is sound");
        Sample { bytes, content }
    })
}

/// What LMDB reads in these bytes, digested; or how the child ended.
fn read_in_child(bytes: &[u8]) -> Result<String, String> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(data_file(directory.path()), bytes).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_reads_and_writes", "--ignored", "--nocapture"])
        .env("SKEIN_TEST_DIRECTORY", directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(format!("{}, signal {:?}", output.status, output.status.signal()));
    }
    Ok(fs::read_to_string(directory.path().join("content")).unwrap())
}

/// Not a test by itself: reads everything, then changes something everywhere.
#[test]
#[ignore = "the child of other tests"]
fn child_reads_and_writes() {
    let Some(directory) = std::env::var_os("SKEIN_TEST_DIRECTORY").map(PathBuf::from) else {
        return;
    };
    let store = Store::open(&directory);
    let mut content = String::new();
    let mut keys = BTreeMap::new();
    {
        let transaction = store.env.read_txn().unwrap();
        for (name, table) in TABLES.into_iter().zip(store.tables) {
            let mut digest = DefaultHasher::new();
            let mut count = 0;
            for entry in table.iter(&transaction).unwrap() {
                let (key, value) = entry.unwrap();
                digest.write(key);
                digest.write(value);
                count += 1;
                if count % 97 == 0 {
                    keys.entry(name).or_insert_with(Vec::new).push(key.to_vec());
                }
            }
            for key in keys.get(name).into_iter().flatten() {
                assert!(table.get(&transaction, key).unwrap().is_some());
            }
            content += &format!("{name} {count} {:x}\n", digest.finish());
        }
    }
    let mut transaction = store.env.write_txn().unwrap();
    for (name, keys) in keys {
        let table = store.table(name);
        for (index, key) in keys.iter().enumerate() {
            match index % 2 {
                0 => drop(table.delete(&mut transaction, key).unwrap()),
                _ => table.put(&mut transaction, key, &[1; 3000]).unwrap(),
            }
        }
    }
    transaction.commit().unwrap();
    fs::write(directory.join("content"), content).unwrap();
}

/// A byte of a page's structure.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    /// The check is blind here to some changes, as its head says: LMDB then reads another value, or the commit before the
    /// last, but it comes to the end.
    is_blind: bool,
}

/// Where a page's structure is: its header, the offsets of its nodes, their headers. Empty for a page in the midst of an
/// overflow run, which is all value.
fn structure(bytes: &[u8], page: usize) -> Vec<Place> {
    let place = |is_blind| move |at| Place { at, is_blind };
    let (seen, blind) = (place(false), place(true));
    let start = page * PAGE;
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    if bytes[start..start + 8] != (page as u64).to_le_bytes() {
        return Vec::new();
    }
    let mut places: Vec<Place> = (start..start + 16).map(seen).collect();
    let flags = u16_at(start + 10);
    if flags == 8 {
        places.extend((start + 16..start + 144).map(seen));
        // Of which transaction the page is.
        places.extend((start + 144..start + 152).map(blind));
    }
    if flags == 1 || flags == 2 {
        for pointer in (start + 16..start + u16_at(start + 12)).step_by(2) {
            let node = start + u16_at(pointer);
            places.extend([pointer, pointer + 1, node + 4, node + 5].map(seen));
            // How long key and value are, in a leaf.
            let lengths = (node..node + 4).chain(node + 6..node + 8);
            places.extend(lengths.map(place(flags == 2)));
            // The number of a child or of an overflow run: behind the key of a leaf's node.
            if flags == 2 && u16_at(node + 4) & 1 == 1 {
                let value = node + 8 + u16_at(node + 6);
                places.extend((value..value + 8).map(seen));
            }
        }
    }
    places
}

/// Damage to a structure is found, or LMDB reads everything back identically.
fn assert_found_or_harmless(damaged: &[u8], is_blind: bool, what: &str) -> bool {
    match check_image(damaged, Depth::Everything) {
        Err(_) => true,
        Ok(_) => {
            let content = read_in_child(damaged);
            match is_blind {
                true => assert!(content.is_ok(), "{what} was not found: {content:?}"),
                false => assert_eq!(content.as_ref(), Ok(&sample().content), "{what} was not found"),
            }
            false
        }
    }
}

#[test]
fn a_flipped_bit_in_a_structure_is_found_or_harmless() {
    let sample = sample();
    let pages = sample.bytes.len() / PAGE;
    let mut random = Random::of_run(21);
    let (mut found, mut tried) = (0, 0);
    while tried < 500 {
        // The meta pages as often as ten others.
        let page = match random.below(20) {
            0 => random.below(2),
            _ => random.below(pages),
        };
        let places = structure(&sample.bytes, page);
        if places.is_empty() {
            continue;
        }
        let (place, bit) = (places[random.below(places.len())], random.below(8));
        let mut damaged = sample.bytes.clone();
        damaged[place.at] ^= 1 << bit;
        tried += 1;
        let what = format!("bit {bit} of byte {} of page {page}", place.at % PAGE);
        found += usize::from(assert_found_or_harmless(&damaged, place.is_blind, &what));
    }
    println!("{found} of {tried} flips were found, the others were harmless");
    assert!(found > tried / 2);
}

#[test]
fn a_zeroed_page_and_swapped_pages_are_found_or_harmless() {
    let sample = sample();
    let heads: Vec<usize> = (0..sample.bytes.len() / PAGE)
        .filter(|page| !structure(&sample.bytes, *page).is_empty())
        .collect();
    let mut random = Random::of_run(31);
    let range = |page: usize| page * PAGE..(page + 1) * PAGE;
    let mut found = 0;
    for _ in 0..100 {
        let (one, other) = (heads[random.below(heads.len())], heads[random.below(heads.len())]);
        let mut damaged = sample.bytes.clone();
        damaged[range(one)].fill(0);
        found += usize::from(assert_found_or_harmless(&damaged, false, &format!("page {one} zeroed")));

        let mut damaged = sample.bytes.clone();
        damaged.copy_within(range(one), other * PAGE);
        damaged[range(other)].copy_from_slice(&sample.bytes[range(one)]);
        damaged[range(one)].copy_from_slice(&sample.bytes[range(other)]);
        found += usize::from(assert_found_or_harmless(
            &damaged,
            false,
            &format!("pages {one} and {other} swapped"),
        ));
    }
    println!("{found} of 200 were found, the others were harmless");
    assert!(found > 100);
}

#[test]
fn a_file_cut_short_at_any_length_is_found_or_harmless() {
    let sample = sample();
    let mut random = Random::of_run(41);
    let mut lengths: Vec<usize> = (0..300).map(|_| random.below(sample.bytes.len())).collect();
    lengths.extend(0..200);
    lengths.extend((0..20).flat_map(|page| [page * PAGE, page * PAGE + 1, page * PAGE + 152]));
    lengths.extend((1..40).map(|back| sample.bytes.len() - back * 501));
    for length in lengths {
        assert_found_or_harmless(&sample.bytes[..length], false, &format!("cut to {length} bytes"));
    }
}

/// Blind to values, and to keys that keep their order; but LMDB comes to the end of what passes.
#[test]
fn whatever_passes_does_not_kill_the_reader() {
    let sample = sample();
    let mut random = Random::of_run(51);
    let (mut found, mut passed) = (0, 0);
    while passed < 30 {
        let mut damaged = sample.bytes.clone();
        for _ in 0..1 + random.below(3) {
            // Anywhere, or in a structure.
            let places = structure(&sample.bytes, random.below(sample.bytes.len() / PAGE));
            let place = match random.below(2) {
                1 if !places.is_empty() => places[random.below(places.len())].at,
                _ => random.below(damaged.len()),
            };
            damaged[place] ^= 1 << random.below(8);
        }
        match check_image(&damaged, Depth::Everything) {
            Err(_) => found += 1,
            Ok(_) => {
                passed += 1;
                if let Err(end) = read_in_child(&damaged) {
                    let path = std::env::temp_dir().join("skein-pages-survivor.mdb");
                    fs::write(&path, &damaged).unwrap();
                    panic!("LMDB did not survive {}: {end}", path.display());
                }
            }
        }
    }
    println!("{found} were found while {passed} passed");
}

#[test]
fn a_zeroed_meta_page_is_damage_and_an_older_one_takes_over_after_a_lost_write() {
    let sample = sample();
    let transaction = |bytes: &[u8]| check_image(bytes, Depth::Everything).map(|summary| summary.last_transaction);
    let last = transaction(&sample.bytes).unwrap();
    let newer = (last % 2) as usize * PAGE;

    let mut zeroed = sample.bytes.clone();
    zeroed[newer..newer + PAGE].fill(0);
    assert!(transaction(&zeroed).unwrap_err().contains("no meta page"));
    assert!(read_in_child(&zeroed).is_err());

    // As if the newer meta page had never been written.
    let mut before = sample.bytes.clone();
    before[newer + 32..newer + 152].fill(0);
    assert!(
        transaction(&before).is_err(),
        "a page size of 0 is not what a lost write leaves"
    );
    let older = PAGE - newer;
    before.copy_within(older + 32..older + 152, newer + 32);
    before[newer + 144..newer + 152].copy_from_slice(&(last - 2).to_le_bytes());
    assert_eq!(transaction(&before), Ok(last - 1));
    assert!(read_in_child(&before).is_ok());
}

#[test]
fn leaves_that_are_not_to_be_read_are_not_missed() {
    let sample = sample();
    let pages = sample.bytes.len() / PAGE;
    let structure = |unread| move |bytes: &[u8]| check_image(bytes, Depth::Structure { unread });
    let (all, none) = (structure(&TABLES), structure(&[]));
    let (mut unseen, mut seen) = (0, 0);
    let mut random = Random::of_run(61);
    for _ in 0..200 {
        let flags = (2 + random.below(pages - 2)) * PAGE + 10;
        let mut damaged = sample.bytes.clone();
        damaged[flags] ^= 0x80;
        // None: a free page, or one in the midst of an overflow run.
        if let Err(sentence) = none(&damaged) {
            assert_eq!(check_image(&damaged, Depth::Everything), Err(sentence));
            let is_leaf_or_value = matches!(sample.bytes[flags], 2 | 4);
            match all(&damaged) {
                Ok(_) if is_leaf_or_value => unseen += 1,
                Ok(_) => panic!("a branch page was not read"),
                Err(_) => seen += 1,
            }
        }
    }
    println!("{unseen} leaves were not read, {seen} pages were found");
    assert!(unseen > 50 && seen > 0);
}

#[test]
fn the_sentence_names_the_file_and_the_page() {
    let directory = tempfile::tempdir().unwrap();
    let path = data_file(directory.path());
    let sentence = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let damage = check(&path, Depth::Everything).unwrap_err();
        let text = damage.to_string();
        assert!(text.starts_with(path.to_str().unwrap()), "{text}");
        assert!(!text.contains('\n'));
        (damage, text)
    };
    assert!(matches!(sentence(b"").0, Damage::Empty { .. }));
    assert!(
        sentence(b"short")
            .1
            .ends_with("it ends after 5 bytes, within meta page 0")
    );
    assert!(
        sentence(&[b'x'; 9000])
            .1
            .contains("page 0 is no meta page of an LMDB file")
    );
    let mut newer = sample().bytes.clone();
    newer[20] = 2;
    assert!(
        sentence(&newer)
            .1
            .contains("is of format 2, and this program reads format 1")
    );
    let (damage, text) = sentence(&sample().bytes[..PAGE * 9]);
    assert!(matches!(damage, Damage::Damaged { page: Some(_), .. }), "{text}");
    assert!(text.contains("ends after 9 pages"), "{text}");
    assert!(matches!(
        check(&directory.path().join("none"), Depth::Everything),
        Err(Damage::Unreadable { .. })
    ));
}

#[test]
fn a_file_that_is_being_written_passes() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let mut random = Random(61);
    for _ in 0..40 {
        change(&store, &mut random);
    }
    let is_over = AtomicBool::new(false);
    let path = data_file(directory.path());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut random = Random(71);
            let mut commits = 0;
            while !is_over.load(Ordering::Relaxed) {
                change(&store, &mut random);
                commits += 1;
            }
            commits
        });
        let (mut passed, mut busy) = (0, 0);
        for _ in 0..100 {
            match check(&path, Depth::Everything) {
                Ok(_) => passed += 1,
                Err(Damage::Busy { .. }) => busy += 1,
                Err(damage) => panic!("{damage}"),
            }
        }
        for _ in 0..100 {
            let reader = store.env.read_txn().unwrap();
            // One attempt is enough: nothing the reader may look at is used again.
            check(&path, Depth::Everything).unwrap();
            drop(reader);
        }
        is_over.store(true, Ordering::Relaxed);
        println!(
            "{passed} passed and {busy} were busy beside {} commits",
            writer.join().unwrap()
        );
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_check_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..152), 0..12),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = sample().bytes.clone();
        let pages = bytes.len() / PAGE;
        for (page, byte, offset) in changes {
            bytes[page.index(pages) * PAGE + offset] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz_pages(&bytes);
    }

    #[test]
    fn no_meta_page_makes_the_check_panic(bytes in prop::collection::vec(any::<u8>(), 136), more in 0usize..9000) {
        let mut file = sample().bytes[..more.max(PAGE + 152)].to_vec();
        file[24..152].copy_from_slice(&bytes[..128]);
        file[PAGE + 144..PAGE + 152].copy_from_slice(&bytes[128..]);
        fuzz_pages(&file);
    }
}

/// `cargo test --release --test pages -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let mut transaction = store.env.write_txn().unwrap();
    let (queues, sessions) = (store.table("queues"), store.table("sessions"));
    let mut random = Random(81);
    for number in 0..1_000_000u64 {
        queues.put(&mut transaction, &number.to_be_bytes(), &[7; 130]).unwrap();
        if number % 10 == 0 {
            sessions
                .put(&mut transaction, &random.next().to_be_bytes(), &[7; 200])
                .unwrap();
        }
    }
    transaction.commit().unwrap();
    let path = data_file(directory.path());
    let megabytes = fs::metadata(&path).unwrap().len() / 1_000_000;
    for depth in [
        Depth::Everything,
        Depth::Everything,
        Depth::Structure { unread: &BACKLOG },
    ] {
        let started = Instant::now();
        let summary = check(&path, depth).unwrap();
        println!(
            "{depth:?}: {megabytes} MB, {} pages in {:?}",
            summary.used_pages,
            started.elapsed()
        );
    }
}
