//! The heart of the broker with the simulation around it, as a package of its own: with axum, rustls and all the rest a
//! fault would take minutes to build, without them it takes seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::copy::{self, Copy};
use crate::list::Mutation;

/// What the simulation runs.
const MODULES: [&str; 9] = [
    "limits",
    "metrics",
    "mqtt",
    "websocket",
    "registry",
    "session",
    "routing",
    "ingest",
    "shard",
];
/// Modules of `store` that need no disk.
const STORE: [&str; 3] = ["memory", "schema", "streams"];
/// What these use, as the broker's own manifest has it, ...
const DEPENDENCIES: [&str; 15] = [
    "ahash",
    "base64",
    "crc32fast",
    "hashbrown",
    "hex",
    "httparse",
    "indexmap",
    "rmp-serde",
    "serde",
    "serde_json",
    "sha1",
    "sha2",
    "slab",
    "subtle",
    "thiserror",
];
/// ... and what the simulation does.
const DEV_DEPENDENCIES: [&str; 1] = ["mqttbytes"];
const SIMULATION: &str = "tests/simulation";
const PROGRAM: &str = "tests/mutants/program";

pub struct Heart {
    /// The package.
    package: Copy,
    /// What cargo makes of it.
    build: PathBuf,
    /// A program per fault.
    programs: PathBuf,
}

impl Heart {
    /// Copies what has changed since the last time.
    pub fn copy(root: &Path) -> anyhow::Result<Heart> {
        let target = copy::target(root).join("mutants");
        let heart = Heart {
            package: Copy::new(root, target.join("heart")),
            build: target.join("build"),
            programs: target.join("programs"),
        };
        fs::create_dir_all(&heart.programs)?;
        heart
            .package
            .update(&["src", SIMULATION, PROGRAM, "Cargo.lock"], &["src/lib.rs"])?;
        heart.package.write(Path::new("src/lib.rs"), library().as_bytes())?;
        heart
            .package
            .write(Path::new("Cargo.toml"), manifest(root)?.as_bytes())?;
        Ok(heart)
    }

    /// The program without a fault.
    pub fn build(&self, name: &str) -> anyhow::Result<PathBuf> {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--bin", "mutant", "--manifest-path"])
            .arg(self.package.at.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&self.build)
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!(
                "the copy in {} does not build:\n{}",
                self.package.at.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let program = self.programs.join(name);
        fs::copy(self.build.join("debug/mutant"), &program).context("cargo has left no program")?;
        Ok(program)
    }

    /// The program with a fault; the copy is whole again afterwards.
    pub fn build_with(&self, mutation: &Mutation) -> anyhow::Result<PathBuf> {
        self.package.with(mutation, || self.build(&mutation.name))
    }
}

fn library() -> String {
    let declared = |names: &[&str]| -> String { names.iter().map(|name| format!("pub mod {name};\n")).collect() };
    format!(
        "#![allow(dead_code)]\n{}pub mod store {{\n{}}}\n",
        declared(&MODULES),
        declared(&STORE)
    )
}

/// The broker's own, with what the heart needs of it.
fn manifest(root: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(root.join("Cargo.toml"))?;
    let broker: toml::Table = toml::from_str(&text).context("Cargo.toml")?;
    let mut dependencies = toml::Table::new();
    for (section, names) in [
        ("dependencies", &DEPENDENCIES[..]),
        ("dev-dependencies", &DEV_DEPENDENCIES),
    ] {
        for name in names {
            let version = broker.get(section).and_then(|section| section.get(name));
            let version = version.with_context(|| format!("Cargo.toml has no {name} among its {section}"))?;
            dependencies.insert((*name).to_owned(), version.clone());
        }
    }
    let dependencies = toml::Table::from_iter([("dependencies".to_owned(), dependencies.into())]);
    let dependencies = toml::to_string(&dependencies)?;
    Ok(format!(
        "# Made by tests/mutations.\n\
        [package]\nname = \"skein\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\nautobins = false\n\n\
        [workspace]\n\n\
        [[bin]]\nname = \"mutant\"\npath = \"{PROGRAM}/main.rs\"\n\n\
        [profile.dev]\nopt-level = 1\ndebug = false\n\n\
        [profile.dev.package.\"*\"]\nopt-level = 0\n\n\
        {dependencies}"
    ))
}
