//! The layers that the head of `src/lib.rs` lists, held against what the files import; and the few names that belong to
//! few files: `monoio`, `heed`, `rustls`, `unsafe`, and everything that reaches out of the heart.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Layers 0 to this one are the heart.
const HEART_TOP: u32 = 2;
const MONOIO_FILES: [&str; 3] = ["worker/", "net/", "mesh/wake.rs"];
const HEED_FILES: [&str; 1] = ["store/lmdb"];
const RUSTLS_FILES: [&str; 5] = [
    "net/certificate",
    "net/tls.rs",
    "net/transport",
    "http/tls.rs",
    "http/notify",
];
const UNSAFE_FILES: [&str; 5] = [
    "mesh/ring.rs",
    "net/handoff.rs",
    "server/allocator.rs",
    "store/lmdb.rs",
    "worker/ring.rs",
];
const OUTSIDE_THE_HEART: [&str; 9] = [
    "std::time::Instant",
    "time::{Instant",
    "SystemTime",
    "std::net",
    "std::fs",
    "std::thread",
    "std::os",
    "rustix",
    "async ",
];

/// Every file under `src`, by its path there.
fn sources() -> Vec<(String, String)> {
    fn collect(directory: &Path, root: &Path, into: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, root, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                into.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort();
    files
}

/// A layer's number, and its place among the groups of modules between two `<`.
#[derive(Clone, Copy)]
struct Layer {
    number: u32,
    place: usize,
}

/// Module → layer, as the head of `lib.rs` writes it: 0 `limits` < 0 `mqtt` < 1 `session routing` < …
fn layers(lib: &str) -> HashMap<&str, Layer> {
    const START: &str = "Layers import downward only: ";
    let start = lib.find(START).expect("the head of lib.rs lists the layers") + START.len();
    let end = start + lib[start..].find(". ").expect("the list is a sentence");
    let mut layers = HashMap::new();
    for (place, group) in lib[start..end].split('<').enumerate() {
        let group = group.trim().trim_start_matches("//!").trim();
        let Some((number, names)) = group.split_once(' ') else {
            assert_eq!(group, "`main`", "a group without a number");
            continue;
        };
        let number = number.parse().expect("a group begins with its layer's number");
        for name in names.trim_matches('`').split(' ') {
            layers.insert(name, Layer { number, place });
        }
    }
    layers
}

/// The lines of a file that are no comment.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The lines before the unit tests, which may use what they like of the standard library.
fn before_tests(text: &str) -> &str {
    &text[..text.find("#[cfg(test)]").unwrap_or(text.len())]
}

/// The top modules of this crate that a line names, in paths and in `use crate::{…}`.
fn imports(line: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for path in line.split("crate::").skip(1) {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut depth = 0;
        let mut rest = path;
        loop {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            if end > 0 && depth <= 1 {
                names.push(&rest[..end]);
            }
            if depth == 0 && !rest.starts_with('{') {
                break;
            }
            // On to the next name at the first depth of a group.
            rest = &rest[end..];
            let mut is_next = false;
            let mut skipped = 0;
            for c in rest.chars() {
                skipped += c.len_utf8();
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && (c == '{' || c == ',') {
                    is_next = true;
                    break;
                }
            }
            rest = rest[skipped..].trim_start();
            if !is_next {
                break;
            }
        }
    }
    names
}

fn module(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// What a file imports from beside it or from above.
fn upward_imports(file: &str, text: &str, layers: &HashMap<&str, Layer>) -> Vec<String> {
    let Some(own) = layers.get(module(file)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, line) in code(text) {
        for name in imports(line) {
            if let Some(layer) = layers.get(name)
                && name != module(file)
                && layer.place >= own.place
            {
                found.push(format!(
                    "src/{file}:{number} is in layer {} and names `{name}`, in layer {}",
                    own.number, layer.number
                ));
            }
        }
    }
    found
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn modules_import_downward_only() {
    let sources = sources();
    let (_, lib) = sources.iter().find(|(file, _)| file == "lib.rs").unwrap();
    let layers = layers(lib);
    let declared = code(lib).filter_map(|(_, line)| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for name in declared {
        assert!(
            layers.contains_key(name),
            "the list in src/lib.rs has no layer for `{name}`"
        );
    }
    assert_none(
        sources
            .iter()
            .flat_map(|(file, text)| upward_imports(file, text, &layers))
            .collect(),
    );

    // The rule itself can be broken.
    let broken =
        "use crate::shard::Shard;\n// use crate::net::Door;\nuse crate::{mqtt, session::{will, outbox}, server};";
    let found = upward_imports("routing/any.rs", broken, &layers);
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn the_heart_reaches_for_nothing_outside() {
    let sources = sources();
    let (_, lib) = sources.iter().find(|(file, _)| file == "lib.rs").unwrap();
    let layers = layers(lib);
    let is_heart = |file: &str| layers.get(module(file)).is_some_and(|layer| layer.number <= HEART_TOP);
    let heart: Vec<_> = sources.iter().filter(|(file, _)| is_heart(file)).collect();
    assert!(heart.len() > 20, "{} files", heart.len());
    let mut found = Vec::new();
    for (file, text) in heart {
        for (number, line) in code(before_tests(text)) {
            for name in OUTSIDE_THE_HEART {
                if line.contains(name) {
                    found.push(format!("src/{file}:{number} has `{}` in the heart", name.trim()));
                }
            }
        }
    }
    assert_none(found);
}

#[test]
fn monoio_heed_rustls_and_unsafe_stay_where_they_belong() {
    let mut found = Vec::new();
    let homes = [
        ("monoio", &MONOIO_FILES[..]),
        ("heed", &HEED_FILES),
        ("rustls", &RUSTLS_FILES),
        // As a keyword: a policy of a page may be unsafe-inline.
        ("unsafe ", &UNSAFE_FILES),
    ];
    for (word, homes) in homes {
        let mut count = 0;
        for (file, text) in sources() {
            let is_home = homes.iter().any(|home| file.starts_with(home));
            for (number, line) in code(&text).filter(|(_, line)| line.contains(word)) {
                count += 1;
                if !is_home {
                    found.push(format!("src/{file}:{number} has `{word}`: {}", line.trim()));
                }
            }
        }
        assert!(
            count > 0,
            "`{word}` is nowhere: is this test looking in the right place?"
        );
    }
    assert_none(found);
}

/// rustls has one cryptographic provider here, ring: the other one needs more to build and would be chosen in its place where a
/// dependency asks for rustls with its default features.
#[test]
fn no_dependency_brings_a_second_cryptographic_provider() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    assert!(lock.contains("name = \"ring\""));
    assert!(!lock.contains("name = \"aws-lc"), "see cargo tree -i aws-lc-sys");
}
