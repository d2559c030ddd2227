//! What a power cut may leave of a data file, from the log that `disk_faults.c` wrote.
//!
//! **Why an image is what a power cut can leave, or worse.** A write that was followed by a completed sync of its file, or
//! went through an O_DSYNC descriptor and returned, is on disk: POSIX promises that, and a drive that lies about it is
//! no drive to keep acknowledged messages on. Everything else waits in the page cache, and the kernel may have written any
//! of it, in any order, when the power goes; a drive writes a sector of 512 bytes whole or not at all. So for every sector,
//! what is on disk is the last durable write to it, or any write after that one which was pending. An image takes the writes
//! in their order, all durable ones, and of the pending ones none, all, or any subset of their sectors; a later choice
//! covers an earlier one, which gives every version of every sector, in every combination with those of all others. That is
//! more than a file system does, which writes whole blocks and often keeps an order. Where writes made the file longer, it
//! may end anywhere between its durable length and the longest one, with zeros where nothing arrived. The write that is
//! under way at the cut is pending, also one that would have been durable. After a sync that failed, what was pending
//! stays so for ever, though later syncs succeed: the kernel has marked those pages clean.
//!
//! Not looked at: whether the file's name survives. The directory must be synced once after the file was made.

use std::fs;
use std::ops::Range;
use std::path::Path;

const SECTOR: u64 = 512;
const MAGIC: u32 = 0x464b_5344;
const RECORD_BYTES: usize = 24;
const PENDING: u32 = 1;
const DURABLE: u32 = 2;
const TRUNCATED: u32 = 3;
const SYNCED: u32 = 4;
const SYNC_FAILED: u32 = 5;
const MARK: u32 = 6;

/// What reached the file, in order.
pub struct Log {
    base: Vec<u8>,
    bytes: Vec<u8>,
    records: Vec<Record>,
}

struct Record {
    /// Where in the log it begins.
    start: usize,
    what: What,
}

enum What {
    Write {
        position: u64,
        bytes: Range<usize>,
        is_synchronous: bool,
    },
    Truncate {
        length: u64,
    },
    /// Of what began before this place in the log.
    Sync {
        covered: usize,
        is_done: bool,
    },
    Mark {
        text: String,
    },
}

/// What became of the writes that were not on disk for certain.
#[derive(Clone, Copy, Debug)]
pub enum Pending {
    Lost,
    Written,
    /// Each lost, written or torn, by this seed.
    Random(u64),
}

impl Log {
    /// `base` is what the file held before the first log.
    pub fn new(base: Vec<u8>) -> Log {
        Log {
            base,
            bytes: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Goes on with the log of a life of the program, which found the file as the one before left it in the page cache.
    pub fn append(&mut self, path: &Path) {
        let first = self.bytes.len();
        self.bytes.extend(fs::read(path).unwrap_or_default());
        let mut start = first;
        // Where the program was killed within an append, the last record is cut short: its write had not returned.
        while let Some(header) = self.bytes.get(start..start + RECORD_BYTES) {
            let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
            let (magic, kind) = (word(0) as u32, (word(0) >> 32) as u32);
            assert_eq!(magic, MAGIC, "byte {start} of {} begins no record", path.display());
            let (position, payload) = (word(8), start + RECORD_BYTES..start + RECORD_BYTES + word(16) as usize);
            let Some(bytes) = self.bytes.get(payload.clone()) else {
                break;
            };
            let text = || String::from_utf8_lossy(bytes).into_owned();
            let what = match kind {
                PENDING | DURABLE => What::Write {
                    position,
                    bytes: payload.clone(),
                    is_synchronous: kind == DURABLE,
                },
                TRUNCATED => What::Truncate { length: position },
                SYNCED | SYNC_FAILED => What::Sync {
                    covered: first + position as usize,
                    is_done: kind == SYNCED,
                },
                MARK => What::Mark { text: text() },
                _ => panic!("the layer cannot follow this program: {}", text()),
            };
            self.records.push(Record { start, what });
            start = payload.end;
        }
        self.bytes.truncate(start);
    }

    /// Cuts are from 0, before anything happened, to this, after everything did.
    pub fn cut_max(&self) -> usize {
        self.records.len()
    }

    /// The marks before a cut.
    pub fn marks(&self, cut: usize) -> impl DoubleEndedIterator<Item = &str> {
        self.records[..cut].iter().filter_map(|record| match &record.what {
            What::Mark { text } => Some(text.as_str()),
            _ => None,
        })
    }

    /// The file after a power cut when so many records of the log had come about, and the next one was under way.
    pub fn image(&self, cut: usize, pending: Pending) -> Vec<u8> {
        let durable = self.durable(cut);
        let mut random = match pending {
            Pending::Random(seed) => Random::new(seed),
            _ => Random::new(0),
        };
        let mut image = self.base.clone();
        let mut longest = image.len();
        for (record, is_durable) in self.records.iter().zip(durable) {
            let is_written = |random: &mut Random| match pending {
                _ if is_durable => true,
                Pending::Lost => false,
                Pending::Written => true,
                Pending::Random(_) => random.below(2) == 0,
            };
            match &record.what {
                What::Write { position, bytes, .. } => {
                    let bytes = &self.bytes[bytes.clone()];
                    longest = longest.max(*position as usize + bytes.len());
                    let is_torn = !is_durable && matches!(pending, Pending::Random(_)) && random.below(2) == 0;
                    let is_whole = !is_torn && is_written(&mut random);
                    let mut done = 0;
                    while done < bytes.len() {
                        let at = position + done as u64;
                        let sector_end = (at / SECTOR + 1) * SECTOR;
                        let end = match is_torn {
                            true => bytes.len().min((sector_end - position) as usize),
                            false => bytes.len(),
                        };
                        if is_whole || (is_torn && random.below(2) == 0) {
                            let place = at as usize..*position as usize + end;
                            if image.len() < place.end {
                                image.resize(place.end, 0);
                            }
                            image[place].copy_from_slice(&bytes[done..end]);
                        }
                        done = end;
                    }
                }
                What::Truncate { length } => {
                    longest = longest.max(*length as usize);
                    if is_written(&mut random) {
                        image.resize(*length as usize, 0);
                    }
                }
                What::Sync { .. } | What::Mark { .. } => {}
            }
        }
        if matches!(pending, Pending::Random(_)) && random.below(2) == 0 && longest > image.len() {
            image.resize(image.len() + random.below(longest - image.len() + 1), 0);
        }
        image
    }

    /// The writes that the file shows and the log does not, as pending ones: of a program that was killed between a write and
    /// its record.
    pub fn unnoted(&self, file: &[u8]) -> Vec<u8> {
        let mut known = self.image(self.cut_max(), Pending::Written);
        known.resize(file.len(), 0);
        let sectors = file.chunks(SECTOR as usize).zip(known.chunks(SECTOR as usize));
        let differing = sectors.enumerate().filter(|(_, (now, known))| now != known);
        differing
            .flat_map(|(index, (now, _))| record(PENDING, index as u64 * SECTOR, now))
            .collect()
    }

    /// For each record before the cut, and the one under way: whether it is on disk for certain.
    fn durable(&self, cut: usize) -> Vec<bool> {
        let end = (cut + 1).min(self.records.len());
        let mut durable = vec![false; end];
        // Backwards: of the syncs that cover a record, the first one decides.
        let mut syncs: Vec<(usize, bool)> = Vec::new();
        for (index, record) in self.records[..cut].iter().enumerate().rev() {
            match record.what {
                What::Sync { covered, is_done } => syncs.push((covered, is_done)),
                What::Write {
                    is_synchronous: true, ..
                } => durable[index] = true,
                _ => {
                    let first = syncs.iter().rev().find(|(covered, _)| *covered > record.start);
                    durable[index] = first.is_some_and(|(_, is_done)| *is_done);
                }
            }
        }
        durable
    }
}

/// What a mark is in the log.
pub fn mark_record(text: &str) -> Vec<u8> {
    record(MARK, 0, text.as_bytes())
}

fn record(kind: u32, position: u64, bytes: &[u8]) -> Vec<u8> {
    let mut record = MAGIC.to_le_bytes().to_vec();
    record.extend(kind.to_le_bytes());
    record.extend(position.to_le_bytes());
    record.extend((bytes.len() as u64).to_le_bytes());
    record.extend(bytes);
    record
}

/// The same numbers from the same seed (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    //! A child process commits to an LMDB file under the layer, in a way that another process can repeat: what an image
    //! holds is compared with what the commits up to some number would have made.

    use std::collections::BTreeMap;
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use heed::types::Bytes;
    use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};
    use skein::store::pages::{Depth, check};

    use super::*;
    use crate::disk_faults::{DiskLayer, set_faults};

    const COMMITS: u64 = 200;
    const TABLES: [&str; 2] = ["queues", "sessions"];
    /// In the first table: the last commit.
    const LAST: &[u8] = b"last";

    type Content = [BTreeMap<Vec<u8>, Vec<u8>>; TABLES.len()];

    /// What commit `number` does to a table: a value, or none where the key goes.
    fn changes(number: u64) -> Vec<(usize, Vec<u8>, Option<Vec<u8>>)> {
        let mut random = Random::new(number);
        let change = |_| {
            let key = (random.below(500) as u64).to_be_bytes().repeat(1 + random.below(5));
            let size = match random.below(20) {
                0 => random.below(20_000),
                _ => random.below(300),
            };
            let value = (random.below(3) > 0).then(|| vec![number as u8; size]);
            (random.below(TABLES.len()), key, value)
        };
        let count = 1 + number as usize * 7 % 30;
        let mut changes: Vec<_> = (0..count).map(change).collect();
        changes.push((0, LAST.to_vec(), Some(number.to_be_bytes().to_vec())));
        changes
    }

    /// What the commits from 1 to `last` make; from 0, one by one.
    fn contents(last: u64) -> Vec<Content> {
        let mut contents = vec![Content::default()];
        for number in 1..=last {
            let mut content = contents[contents.len() - 1].clone();
            for (table, key, value) in changes(number) {
                match value {
                    Some(value) => content[table].insert(key, value),
                    None => content[table].remove(&key),
                };
            }
            contents.push(content);
        }
        contents
    }

    struct Store {
        env: Env,
        tables: [Database<'static, Bytes, Bytes>; TABLES.len()],
    }

    impl Store {
        #[allow(unsafe_code)]
        fn open(directory: &Path, flags: EnvFlags) -> Store {
            let mut options = EnvOpenOptions::new();
            options.map_size(1 << 28).max_dbs(4);
            // SAFETY: each directory is opened once in a process, and an image only after the check of its pages.
            let env = unsafe { options.flags(flags).open(directory).unwrap() };
            let transaction = env.write_txn().unwrap();
            let tables = env
                .create_databases_and_commit(transaction, |opener, transaction| {
                    Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(
                        TABLES.map(|name| opener.create_database(transaction, Some(name))),
                    ))
                })
                .unwrap()
                .unwrap_commit()
                .map(Result::unwrap);
            Store { env, tables }
        }

        fn commit(&self, number: u64) -> heed::Result<()> {
            let mut transaction = self.env.write_txn()?;
            for (table, key, value) in changes(number) {
                match value {
                    Some(value) => self.tables[table].put(&mut transaction, &key, &value)?,
                    None => drop(self.tables[table].delete(&mut transaction, &key)?),
                }
            }
            transaction.commit()
        }

        fn content(&self) -> Content {
            let transaction = self.env.read_txn().unwrap();
            self.tables.map(|table| {
                let entries = table.iter(&transaction).unwrap().map(Result::unwrap);
                entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
            })
        }
    }

    fn last(content: &Content) -> u64 {
        let number = content[0].get(LAST);
        number.map_or(0, |number| u64::from_be_bytes(number.as_slice().try_into().unwrap()))
    }

    /// Runs one of the ignored functions below in a child, on a store in `directory`, and marks in the log what it says that it
    /// has committed. Killed after so many times.
    fn run(name: &str, directory: &Path, layer: &DiskLayer, flags: EnvFlags, kill_after: Option<usize>) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("power_cut::tests::{name}"),
                "--ignored",
                "--nocapture",
            ])
            .envs(layer.environment())
            .env("SKEIN_TEST_DIRECTORY", directory)
            .env("SKEIN_TEST_FLAGS", flags.bits().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut count = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            // The test harness of the child writes lines of its own, and may begin one.
            let line = line.unwrap();
            let Some((_, number)) = line.split_once("committed ") else {
                continue;
            };
            layer.mark(number);
            count += 1;
            if Some(count) == kill_after {
                child.kill().unwrap();
            }
        }
        assert_eq!(child.wait().unwrap().success(), kill_after.is_none());
    }

    fn say_committed(number: u64) {
        println!("committed {number}");
    }

    /// What the child was given, or nothing where this is no child.
    fn given() -> Option<(PathBuf, EnvFlags)> {
        let directory = env::var_os("SKEIN_TEST_DIRECTORY")?;
        let flags = env::var("SKEIN_TEST_FLAGS").unwrap().parse().unwrap();
        Some((directory.into(), EnvFlags::from_bits(flags).unwrap()))
    }

    #[test]
    #[ignore = "the child of other tests"]
    fn child_commits() {
        let Some((directory, flags)) = given() else { return };
        let store = Store::open(&directory, flags);
        // What a life that was killed had written is in the page cache, and not on disk for certain.
        store.env.force_sync().unwrap();
        let found = last(&store.content());
        say_committed(found);
        for number in found + 1..=COMMITS {
            store.commit(number).unwrap();
            say_committed(number);
        }
    }

    /// Each commit fails once in every way that leaves the store usable; the last in the way that does not.
    #[test]
    #[ignore = "the child of other tests"]
    fn child_meets_faults() {
        const FAULTS: [&str; 5] = ["write ENOSPC", "write SHORT", "write EIO", "sync EIO", "meta ENOSPC"];
        let Some((directory, flags)) = given() else { return };
        let control = PathBuf::from(env::var_os("SKEIN_DISK_CONTROL").unwrap());
        let mut store = Store::open(&directory, flags);
        say_committed(0);
        for number in 1..=60 {
            let before = store.content();
            let faults = FAULTS[number as usize % FAULTS.len()];
            set_faults(&control, faults);
            let error = store.commit(number).expect_err(faults);
            assert!(matches!(error, heed::Error::Io(_)), "{faults}: {error:?}");
            set_faults(&control, "");
            if faults.starts_with("meta") {
                // LMDB gives the environment up, for writing: it must be opened anew.
                assert!(matches!(
                    store.commit(number),
                    Err(heed::Error::Mdb(heed::MdbError::Panic))
                ));
                store.env.prepare_for_closing().wait();
                store = Store::open(&directory, flags);
            }
            assert_eq!(store.content(), before, "{faults}");
            store.commit(number).unwrap();
            say_committed(number);
        }

        set_faults(&control, "sync-delay 150");
        let started = Instant::now();
        store.commit(61).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(150));
        say_committed(61);
        set_faults(&control, "meta EIO");
        store.commit(62).unwrap_err();
    }

    /// Whether the image opens, is sound, takes another commit, and holds the commits up to some number that is no less than
    /// the last one that was confirmed before the cut.
    fn verify(image: &[u8], confirmed: u64, contents: &[Content]) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.mdb");
        fs::write(&path, image).unwrap();
        let summary = check(&path, Depth::Everything).map_err(|damage| damage.to_string())?;
        if summary.lost_pages > 0 {
            return Err(format!("{} pages are lost", summary.lost_pages));
        }
        let store = Store::open(directory.path(), EnvFlags::NO_SYNC);
        let content = store.content();
        let last = last(&content);
        if last < confirmed {
            return Err(format!("commit {confirmed} was confirmed and {last} is the last"));
        }
        if contents.get(last as usize) != Some(&content) {
            return Err(format!("what is there is not what the commits to {last} made"));
        }
        store.commit(last + 1).map_err(|error| error.to_string())?;
        check(&path, Depth::Everything).map_err(|damage| format!("after another commit {damage}"))?;
        Ok(())
    }

    /// The last commit that was said to be one before this cut.
    fn confirmed(log: &Log, cut: usize) -> u64 {
        log.marks(cut).last().map_or(0, |mark| mark.parse().unwrap())
    }

    /// Verifies images at cuts anywhere after the store was made; returns what was wrong, with the cut.
    fn cut_at_random(log: &Log, images: u64) -> Vec<String> {
        let contents = contents(COMMITS + 1);
        let made = (0..=log.cut_max())
            .find(|cut| log.marks(*cut).next().is_some())
            .unwrap();
        let seed = env::var("SKEIN_TEST_SEED").map_or(1, |seed| seed.parse::<u64>().unwrap());
        let mut random = Random::new(seed);
        let verify_one = |number| {
            let cut = made + random.below(log.cut_max() - made + 1);
            let pending = match number % 8 {
                0 => Pending::Lost,
                1 => Pending::Written,
                _ => Pending::Random(random.next()),
            };
            let result = verify(&log.image(cut, pending), confirmed(log, cut), &contents);
            result.err().map(|wrong| format!("cut {cut}, {pending:?}: {wrong}"))
        };
        (0..images).filter_map(verify_one).collect()
    }

    #[test]
    fn a_power_cut_leaves_a_prefix_of_the_commits_with_all_that_were_confirmed() {
        let directory = tempfile::tempdir().unwrap();
        let layer = DiskLayer::over(&directory.path().join("data.mdb"));
        run("child_commits", directory.path(), &layer, EnvFlags::empty(), None);
        let log = layer.log();
        assert_eq!(log.marks(log.cut_max()).last(), Some("200"));
        // The layer has seen it all: the file is what the log makes.
        assert!(log.image(log.cut_max(), Pending::Written) == fs::read(directory.path().join("data.mdb")).unwrap());
        let wrong = cut_at_random(&log, 400);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_power_cut_after_a_kill_leaves_no_less() {
        let directory = tempfile::tempdir().unwrap();
        let layer = DiskLayer::over(&directory.path().join("data.mdb"));
        // Slow enough for a kill to meet a commit anywhere, and above all where its meta page can be seen and is not on disk.
        layer.set_faults("sync-delay 1 meta-delay 3");
        let mut starts = Vec::new();
        for kill_after in [Some(20), Some(1), Some(33), Some(2), Some(40), None] {
            starts.push(layer.log().cut_max());
            run("child_commits", directory.path(), &layer, EnvFlags::empty(), kill_after);
        }
        let (log, contents) = (layer.log(), contents(COMMITS + 1));
        for cut in starts[1..].iter().flat_map(|start| *start..start + 8) {
            let result = verify(&log.image(cut, Pending::Lost), confirmed(&log, cut), &contents);
            assert_eq!(result, Ok(()), "cut {cut}, after a start");
        }
        let wrong = cut_at_random(&log, 150);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_power_cut_after_writes_and_syncs_that_failed_leaves_no_less() {
        let directory = tempfile::tempdir().unwrap();
        let layer = DiskLayer::over(&directory.path().join("data.mdb"));
        run("child_meets_faults", directory.path(), &layer, EnvFlags::empty(), None);
        let log = layer.log();
        assert_eq!(log.marks(log.cut_max()).last(), Some("61"));
        let wrong = cut_at_random(&log, 200);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// The tests above would notice a store that does not sync.
    #[test]
    fn a_power_cut_tells_a_store_that_does_not_sync() {
        for flags in [EnvFlags::NO_SYNC, EnvFlags::NO_META_SYNC] {
            let directory = tempfile::tempdir().unwrap();
            let layer = DiskLayer::over(&directory.path().join("data.mdb"));
            run("child_commits", directory.path(), &layer, flags, None);
            let wrong = cut_at_random(&layer.log(), 60);
            assert!(!wrong.is_empty(), "{flags:?}");
        }
    }

    #[test]
    fn a_pending_write_is_lost_or_written_or_torn_at_sectors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let first = record(PENDING, 0, &[1; 1024]);
        let records = [
            first.clone(),
            record(SYNCED, first.len() as u64, &[]),
            record(PENDING, 256, &[2; 1024]),
            record(DURABLE, 0, &[3; 10]),
            mark_record("done"),
            // Cut short by a kill.
            record(PENDING, 0, &[4; 100])[..50].to_vec(),
        ];
        fs::write(&path, records.concat()).unwrap();
        let mut log = Log::new(Vec::new());
        log.append(&path);
        assert_eq!(log.cut_max(), 5);
        assert_eq!(log.marks(5).collect::<Vec<_>>(), ["done"]);

        assert!(log.image(0, Pending::Lost).is_empty());
        assert_eq!(log.image(0, Pending::Written), [1; 1024], "the write under way");
        assert_eq!(log.image(2, Pending::Lost), [1; 1024], "synced");
        let parts = |parts: &[(u8, usize)]| {
            parts
                .iter()
                .flat_map(|(byte, count)| vec![*byte; *count])
                .collect::<Vec<_>>()
        };
        assert_eq!(
            log.image(3, Pending::Lost),
            [1; 1024],
            "the write under way may be lost though it would be durable"
        );
        assert_eq!(log.image(4, Pending::Lost), parts(&[(3, 10), (1, 1014)]));
        assert_eq!(log.image(4, Pending::Written), parts(&[(3, 10), (1, 246), (2, 1024)]));
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let mut image = log.image(4, Pending::Random(seed));
            image.resize(1280, 0);
            for (bytes, sector) in [(&image[256..512], 0), (&image[512..1024], 1), (&image[1024..], 2)] {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "sector {sector} is torn");
            }
            assert_eq!(image[..256], parts(&[(3, 10), (1, 246)]));
            seen.insert((image[256], image[512], image[1024]));
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
    }
}
