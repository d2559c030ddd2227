//! `SECURITY.md` against the sources: every test it names exists, and `unsafe` stands where its table says and nowhere else.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where this workspace has Rust.
const ROOTS: [&str; 4] = ["src", "loadtest", "benches", "tests"];
/// Not ours, or not source.
const SKIPPED: [&str; 3] = ["target", "node_modules", ".venv"];
/// How far above an `unsafe` its reason may begin.
const REASON_LINES_MAX: usize = 12;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn security() -> String {
    fs::read_to_string(root().join("SECURITY.md")).unwrap()
}

/// Every Rust file, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut directories: Vec<PathBuf> = ROOTS.map(|name| root().join(name)).into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = entry.file_name();
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
                directories.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

/// The functions under `#[test]` or one of its kin, with whatever other attributes between.
fn tests_of(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else if let Some((_, rest)) = line.split_once("fn ") {
            if is_test {
                names.insert(rest.split(['(', '<']).next().unwrap());
            }
            is_test = false;
        }
    }
    names
}

/// `path/to/file.rs::name`, each of them.
fn named(text: &str) -> Vec<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_/.:".contains(c);
    let words = text.split(|c| !is_part(c));
    words
        .filter_map(|word| word.split_once(".rs::").map(|_| word.split_once("::").unwrap()))
        .collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let (security, sources) = (security(), sources());
    let named = named(&security);
    assert!(named.len() > 60, "{} tests are named", named.len());
    for (file, test) in named {
        let text = sources
            .get(file)
            .unwrap_or_else(|| panic!("SECURITY.md names {file}, which is not there"));
        assert!(
            tests_of(text).contains(test),
            "SECURITY.md names {test}, which is no test of {file}"
        );
    }
}

#[test]
fn a_test_is_known_by_its_attribute() {
    let text = "fn helper() {}\n#[test]\n#[ignore]\nfn one() {}\n    #[tokio::test(x)]\n    async fn two<T>() {}\nfn other() {}\n";
    assert_eq!(tests_of(text), BTreeSet::from(["one", "two"]));
    assert_eq!(
        named("| a/b.rs::c_1, `d.rs::e` | f.rs |"),
        [("a/b.rs", "c_1"), ("d.rs", "e")]
    );
}

/// What asks for a reason beside it; that of a function is with whoever calls it.
const REASONED: [&str; 3] = ["{", "impl", "extern"];

/// Lines, from 1, where the keyword opens one of these.
fn unsafe_lines(text: &str, openings: &[&str]) -> Vec<usize> {
    let opens = |line: &str| {
        line.match_indices("unsafe").any(|(at, word)| {
            let is_word = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let rest = line[at + word.len()..].trim_start();
            is_word && openings.iter().any(|opening| rest.starts_with(opening))
        })
    };
    let lines = text.lines().enumerate();
    let code = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.filter(|(_, line)| opens(line))
        .map(|(index, _)| index + 1)
        .collect()
}

/// A comment that says why, directly above, behind attributes and the beginning of the same statement at most.
fn has_reason(text: &str, line: usize) -> bool {
    let above = text.lines().take(line - 1).collect::<Vec<_>>();
    above
        .iter()
        .rev()
        .take(REASON_LINES_MAX)
        .map(|line| line.trim_start())
        .take_while(|line| !line.is_empty() && *line != "}")
        .any(|line| line.starts_with("// SAFETY: "))
}

#[test]
fn unsafe_stands_where_the_table_says_with_its_reason() {
    let security = security();
    let (_, table) = security.split_once("\n## Where the code is `unsafe`\n").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    let files = rows.flat_map(|row| row.split(" | ").next().unwrap().split(", "));
    let told: BTreeSet<String> = files.filter(|file| file.ends_with(".rs")).map(str::to_owned).collect();
    let mut found = BTreeSet::new();
    for (file, text) in sources() {
        for line in unsafe_lines(&text, &REASONED) {
            assert!(has_reason(&text, line), "{file}:{line} does not say why: // SAFETY: …");
        }
        if !unsafe_lines(&text, &[&REASONED[..], &["fn "]].concat()).is_empty() {
            found.insert(file);
        }
    }
    assert_eq!(
        found, told,
        "the files with `unsafe`, and those of the table in SECURITY.md"
    );
}

#[test]
fn unsafe_is_denied_unless_a_file_says_otherwise() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let workspace = manifest["workspace"].as_table().unwrap();
    assert_eq!(workspace["lints"]["rust"]["unsafe_code"].as_str(), Some("deny"));
    let members = workspace["members"].as_array().unwrap();
    for member in members.iter().map(|member| member.as_str().unwrap()).chain(["."]) {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{member}");
    }
}

#[test]
fn an_unsafe_without_its_reason_is_found() {
    let keyword = ["un", "safe"].concat();
    let reasoned =
        format!("// SAFETY: so.\n#[allow(x)]\nlet a = {keyword} {{ b() }};\n\n{keyword} impl C for D {{}}\n");
    assert_eq!(unsafe_lines(&reasoned, &REASONED), [3, 5]);
    assert!(has_reason(&reasoned, 3) && !has_reason(&reasoned, 5));
    let other = format!("// {keyword} {{\nun{keyword} {{ }}\n\"{keyword} \"\n{keyword}_code {{\n");
    assert_eq!(unsafe_lines(&other, &REASONED), [0; 0]);
}
