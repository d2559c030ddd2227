//! Files and values that are not as they should be, and what an inspection finds.

use std::path::Path;

use tempfile::{TempDir, tempdir};

use super::{commit, config, damage, data, delivered, ended, open, queue_fetch, queued, retained, started, window};
use crate::shard::record::SessionNumber;
use crate::store::error::StoreError;
use crate::store::inspect::inspect;
use crate::store::lmdb::{Lmdb, Table};
use crate::store::schema::queue_key;
use crate::store::writer::{Store, StoreConfig};

// --- files that are not as they should be ----------------------------------------------------------------------------

/// A store with some of everything.
fn filled() -> TempDir {
    let dir = tempdir().unwrap();
    let (lmdb, mut applier) = open(dir.path());
    let mut records = vec![started(1), started(2), retained("a/b", &[9; 3_000])];
    records.extend((1..=200).map(|sequence| queued(&[1], sequence, b"the payload of session one")));
    commit(&lmdb, &mut applier, &records);
    dir
}

fn refused(dir: &Path) -> String {
    let error = Store::open(StoreConfig::new(dir)).map(drop).unwrap_err();
    error.to_string()
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(StoreConfig::new(dir.path())).unwrap();
    let error = Store::open(StoreConfig::new(dir.path())).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()));
    drop(store);
    Store::open(StoreConfig::new(dir.path())).unwrap();
}

#[test]
fn directory_and_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().unwrap();
    let inner = dir.path().join("one/two");
    let (store, _) = Store::open(StoreConfig::new(&inner)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for file in ["data.mdb", "lock.mdb", "lock"] {
        assert_eq!(mode(&inner.join(file)), 0o600, "{file}");
    }
    drop(store);
}

#[test]
fn a_truncated_file_is_refused() {
    let dir = filled();
    let file = std::fs::OpenOptions::new().write(true).open(data(&dir)).unwrap();
    assert!(
        file.metadata().unwrap().len() > 1 << 20,
        "it is kept longer than it must be"
    );
    file.set_len(3 * 4096).unwrap();
    let error = refused(dir.path());
    assert!(
        error.contains("is damaged") && error.contains("the file ends after 3 pages"),
        "{error}"
    );
    for length in [100, 0] {
        file.set_len(length).unwrap();
        let error = refused(dir.path());
        assert!(
            error.contains("it ends after 100 bytes") || error.contains("it is no LMDB file"),
            "{error}"
        );
        assert_eq!(file.metadata().unwrap().len(), length, "it is left as it is");
    }
}

/// The files are made aside and come whole: what a start finds there of an earlier one is no store yet.
#[test]
fn a_start_that_was_cut_off_while_it_made_the_store_is_no_hindrance() {
    let dir = tempdir().unwrap();
    std::fs::create_dir(dir.path().join("new")).unwrap();
    std::fs::write(dir.path().join("new/data.mdb"), [7; 5_000]).unwrap();
    drop(open(dir.path()));
    assert!(!dir.path().join("new").exists());
    drop(open(dir.path()));
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempdir().unwrap();
    {
        let (lmdb, _) = open(dir.path());
        lmdb.set_schema(9);
    }
    let error = refused(dir.path());
    assert!(error.contains("newer version (schema 9, this one knows 2)"), "{error}");
}

#[test]
fn a_file_of_something_else_is_refused_and_left_alone() {
    let dir = tempdir().unwrap();
    let text = b"not a database, but somebody's letters".repeat(200);
    std::fs::write(data(&dir), &text).unwrap();
    assert!(refused(dir.path()).contains("no LMDB file"));
    assert_eq!(std::fs::read(data(&dir)).unwrap(), text);

    let dir = filled();
    let file = std::fs::OpenOptions::new().write(true).open(data(&dir)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[2], 20).unwrap();
    let error = refused(dir.path());
    assert!(error.contains("another version of LMDB"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_or_written_is_named() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = refused(&file.join("data"));
    assert!(
        error.starts_with("cannot create ") && error.contains("--data-dir"),
        "{error}"
    );
    std::fs::create_dir_all(dir.path().join("taken/data.mdb")).unwrap();
    let error = refused(&dir.path().join("taken"));
    assert!(error.starts_with("cannot write to "), "{error}");
}

#[test]
fn a_damaged_value_that_a_start_needs_is_named() {
    let dir = filled();
    damage(&dir, b"client-2", b"client-3");
    let error = refused(dir.path());
    let expected = "in table sessions, the value of key 0000000000000002 cannot be used, since its checksum is wrong";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_damaged_message_is_not_delivered_and_holds_up_nothing() {
    let dir = filled();
    let (lmdb, mut applier) = open(dir.path());
    commit(
        &lmdb,
        &mut applier,
        &[queued(&[1], 201, b"the one that breaks"), queued(&[1], 202, b"after")],
    );
    drop(lmdb);
    damage(&dir, b"the one that breaks", b"The");
    let (lmdb, mut applier) = open(dir.path());
    let read = window(&lmdb, queue_fetch(1, 200, 10));
    let sequences: Vec<u64> = read.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!((sequences, read.is_end), (vec![200, 202], true));
    // Its queue is counted anew when it goes.
    commit(&lmdb, &mut applier, &[delivered(1, 201)]);
    let (stored, _) = lmdb.load(0).unwrap();
    let backlog = stored.sessions[0].backlog.unwrap();
    assert_eq!((backlog.first, backlog.end, backlog.entries), (1, 203, 201));
    assert_eq!(backlog.bytes, 200 * 36 + 15);
}

// --- inspection ------------------------------------------------------------------------------------------------------

#[test]
fn an_inspection_counts_what_there_is() {
    let dir = filled();
    let (lmdb, mut applier) = open(dir.path());
    let records = [
        queued(&[1, 2], 300, b"shared"),
        started(3),
        queued(&[3], 1, b"x"),
        queued(&[3], 2, b"x"),
    ];
    commit(&lmdb, &mut applier, &records);
    applier.set_purge_rows_max(0);
    commit(&lmdb, &mut applier, &[ended(3)]);
    drop(lmdb);
    let found = inspect(dir.path()).unwrap();
    assert_eq!((found.schema, found.sessions, found.ended_sessions), (2, 2, 1));
    assert_eq!(
        (found.queued_messages, found.shared_messages, found.retained_messages),
        (204, 1, 1)
    );
    assert_eq!(found.queued_bytes, 200 * 36 + 2 * 16 + 2 * 11);
    assert_eq!(found.map_bytes, 64 << 20);
    assert!(found.used_bytes > 10 * 4096 && found.file_bytes > found.used_bytes);
    assert_eq!(found.tables["queues"].entries, 204);
    assert_eq!(found.findings, [] as [String; 0]);
    let printed = found.to_string();
    assert!(
        printed.contains("queued messages                      204"),
        "{printed}"
    );
    assert!(printed.contains("agree with each other"));
    assert_eq!(
        serde_json::to_value(&found).unwrap()["tables"]["retained"]["entries"],
        1
    );
}

#[test]
fn an_inspection_finds_damaged_values_and_backlogs_that_are_wrong() {
    let dir = filled();
    damage(&dir, b"client-2", b"client-3");
    damage(&dir, &[9; 3_000], b"9");
    {
        let lmdb = Lmdb::open(config(dir.path())).unwrap();
        lmdb.remove_row(Table::Queues, &queue_key(SessionNumber(1), 7));
    }
    let found = inspect(dir.path()).unwrap();
    let expected = [
        "table sessions, key 0000000000000002: the value cannot be used, since its checksum is wrong",
        "session 1: its backlog says",
        "table retained, key 612f62: the value cannot be used, since its checksum is wrong",
    ];
    assert_eq!(found.findings.len(), expected.len(), "{:#?}", found.findings);
    for (finding, expected) in found.findings.iter().zip(expected) {
        assert!(finding.starts_with(expected), "{finding}");
    }
    assert!(found.to_string().contains("3 findings:"));
}

#[test]
fn a_directory_without_a_store_is_not_made_one_by_looking() {
    let dir = tempdir().unwrap();
    let error = inspect(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
