//! Puts `disk_faults.c` between a program and its data file: what reaches the file is written down, and calls fail on demand.
//!
//! Called  by tests that start a program: [`DiskLayer::environment`] goes into its `Command::envs`.
//! Holds   - the layer is built once for a run of the tests, by `cc`;
//!         - a fault holds from the next call on that concerns the file, whatever is under way.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::power_cut::{self, Log};

/// One watched file, through all lives of the program that owns it. The layer's own files are elsewhere.
pub struct DiskLayer {
    file: PathBuf,
    own: tempfile::TempDir,
    lives: Cell<usize>,
}

impl DiskLayer {
    /// `file` need not exist yet, its directory must. What it holds already is on disk.
    pub fn over(file: &Path) -> DiskLayer {
        let directory = fs::canonicalize(file.parent().unwrap()).unwrap();
        let layer = DiskLayer {
            file: directory.join(file.file_name().unwrap()),
            own: tempfile::tempdir().unwrap(),
            lives: Cell::new(0),
        };
        fs::write(layer.own.path().join("base"), fs::read(&layer.file).unwrap_or_default()).unwrap();
        layer
    }

    /// For the next life of the program, and whatever it starts. The life before is over: what it had written when it was
    /// killed, and not yet noted in its log, is noted here.
    pub fn environment(&self) -> [(&'static str, OsString); 4] {
        let unnoted = match self.lives.get() {
            0 => Vec::new(),
            _ => self.log().unnoted(&fs::read(&self.file).unwrap()),
        };
        self.lives.set(self.lives.get() + 1);
        fs::write(self.log_path(), unnoted).unwrap();
        [
            ("LD_PRELOAD", library().into()),
            ("SKEIN_DISK_FILE", self.file.clone().into()),
            ("SKEIN_DISK_LOG", self.log_path().into()),
            ("SKEIN_DISK_CONTROL", self.own.path().join("control").into()),
        ]
    }

    /// What fails from now on: pairs of words, in any number, until the next call. Nothing: all is well.
    ///
    /// | | |
    /// |---|---|
    /// | `write ENOSPC`, `write EIO`, `write EDQUOT`, `write EROFS` | a write of pages fails, nothing of it is written |
    /// | `write SHORT` | half of it is written, and said to be |
    /// | `meta EIO` | the write of a meta page fails; it is in the page cache, and on disk or not |
    /// | `meta ENOSPC` | the same, but nothing of it is written |
    /// | `sync EIO` | fdatasync and fsync fail; what was written before may be on disk or not, for ever |
    /// | `sync-delay 250` | they take so many milliseconds more |
    /// | `meta-delay 250` | so does the write of a meta page, and others can read it meanwhile |
    pub fn set_faults(&self, faults: &str) {
        set_faults(&self.own.path().join("control"), faults);
    }

    /// Notes in the log that something is known to have happened, such as an acknowledgement: what the program did before it
    /// is before it in the log.
    pub fn mark(&self, text: &str) {
        let mut log = OpenOptions::new().append(true).open(self.log_path()).unwrap();
        log.write_all(&power_cut::mark_record(text)).unwrap();
    }

    /// What has reached the file so far.
    pub fn log(&self) -> Log {
        let mut log = Log::new(fs::read(self.own.path().join("base")).unwrap());
        for life in 1..=self.lives.get() {
            log.append(&self.log_of(life));
        }
        log
    }

    fn log_path(&self) -> PathBuf {
        self.log_of(self.lives.get())
    }

    fn log_of(&self, life: usize) -> PathBuf {
        self.own.path().join(format!("log.{life}"))
    }
}

/// For a program that sets its own faults: `control` is its SKEIN_DISK_CONTROL.
pub fn set_faults(control: &Path, faults: &str) {
    // Renamed into place: the layer never reads half of it.
    let new = control.with_extension("new");
    fs::write(&new, faults).unwrap();
    fs::rename(new, control).unwrap();
}

fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/disk_faults.c");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = directory.join("disk_faults.so");
        let new = directory.join(format!("disk_faults.{}.so", std::process::id()));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&new, &source])
            .status()
            .expect("tests/setup installs a C compiler");
        assert!(status.success(), "{} does not compile", source.display());
        // Another run of the tests may have the old one open.
        fs::rename(new, &library).unwrap();
        library
    })
}
