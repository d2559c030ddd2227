//! What MQTT 3.1.1 and 3.1 ask of a broker, statement by statement, asked of any broker over TCP.
//!
//! `statements` has every normative statement and why some cannot be tested from outside; `cases` has what is played for the
//! others, each with a [`bench`] of its own (names, cleaning up, words for failures) and [`client`]s (connections, packet by
//! packet; `packet` has the bytes). [`run`] plays them side by side and gives a [`Report`], which is a table and a score.
//!
//! Holds   - where the standard leaves a choice, every choice passes;
//!         - a case that fails fails all statements it stands for; a statement passes when all of its cases that could be played
//!           pass, and there was one.

pub mod bench;
mod cases;
pub mod client;
pub mod packet;
pub mod report;
mod statements;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bench::{Bench, Failure, Outcome, Settings, Stop};
use crate::report::{Finding, Outcomes, Report};
use crate::statements::STATEMENTS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Mqtt311,
    Mqtt31,
}

/// What is played, and the statements it stands for.
pub struct Case {
    pub ids: &'static [&'static str],
    pub title: &'static str,
    pub play: fn(&Bench<'_>) -> Outcome,
}

pub const fn case(ids: &'static [&'static str], title: &'static str, play: fn(&Bench<'_>) -> Outcome) -> Case {
    Case { ids, title, play }
}

impl Settings {
    /// Against a broker that wants no credentials and has no rules about topics.
    pub fn at(address: SocketAddr) -> Settings {
        Settings {
            address,
            websocket: None,
            websocket_path: "/mqtt".into(),
            user: None,
            password: None,
            topic_prefix: String::new(),
            forbidden_topic: None,
            timeout: Duration::from_secs(5),
            silence: Duration::from_millis(300),
            jobs: 24,
            run_name: run_name(),
        }
    }
}

/// Six letters and digits that differ from run to run.
fn run_name() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut number = since.as_micros() as u64 ^ u64::from(std::process::id()) << 20;
    let mut name = String::new();
    for _ in 0..6 {
        name.push(char::from(DIGITS[(number % 36) as usize]));
        number /= 36;
    }
    name
}

/// `MQTT-3.1.2-24` by its whole name, `[MQTT-3.1.2-24]`, or by a pattern: `*` stands for anything, `3.1.2-*` is enough.
pub fn is_chosen(id: &str, patterns: &[String]) -> bool {
    patterns.is_empty()
        || patterns.iter().any(|pattern| {
            let pattern = pattern.trim_matches(['[', ']']).to_ascii_uppercase();
            let short = id.trim_start_matches("MQTT-");
            fits(id, &pattern) || fits(short, &pattern)
        })
}

fn fits(text: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => text == pattern,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            let mut ends = (0..=tail.len()).filter(|at| tail.is_char_boundary(*at));
            ends.any(|at| fits(&tail[at..], rest))
        }),
    }
}

/// The rows with nothing played: what there is.
pub fn list(only: &[String]) -> Vec<(&'static str, &'static str, Option<&'static str>)> {
    let chosen = STATEMENTS.iter().filter(|statement| is_chosen(statement.id, only));
    chosen
        .map(|statement| (statement.id, statement.sentence, statement.untestable))
        .collect()
}

/// Plays the cases of all statements that are chosen. An error is a sentence: there is no broker, or it lets nobody in.
pub fn run(settings: &Settings, only: &[String]) -> Result<Report, String> {
    let mut chosen = STATEMENTS
        .iter()
        .filter(|statement| is_chosen(statement.id, only))
        .peekable();
    if chosen.peek().is_none() {
        return Err(format!(
            "--only {} is no statement; --list names all",
            only.join(" --only ")
        ));
    }
    let all = cases::all();
    let is_wanted = |ids: &[&str]| ids.iter().any(|id| is_chosen(id, only));
    let wanted: Vec<usize> = (0..all.len()).filter(|number| is_wanted(all[*number].ids)).collect();
    if !wanted.is_empty() {
        enter(settings)?;
    }
    let outcomes = play(settings, &all, &wanted);
    let findings = chosen.map(|statement| Finding {
        id: statement.id,
        sentence: statement.sentence,
        section: statement.section(),
        outcomes: match statement.untestable {
            Some(reason) => Outcomes::Untestable(reason),
            None => {
                let of_case = |number: &usize| all[*number].ids.contains(&statement.id);
                let own = wanted.iter().zip(&outcomes).filter(|(number, _)| of_case(number));
                Outcomes::Played(
                    own.map(|(number, outcome)| (all[*number].title, outcome.clone()))
                        .collect(),
                )
            }
        },
    });
    Ok(Report::new(findings.collect()))
}

/// For the first connection of all: a broker may be slow to begin.
const ENTER_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// That somebody is there and lets these credentials in: without it every case would say the same.
fn enter(settings: &Settings) -> Result<(), String> {
    let patient = Settings {
        timeout: settings.timeout.max(ENTER_TIMEOUT_MIN),
        ..settings.clone()
    };
    let bench = Bench::new(&patient, 999);
    let advice = "give --user and --password that it lets in";
    let problem = |failures: Vec<Failure>| {
        let failure = failures.into_iter().next();
        let received = failure.map_or(String::new(), |failure| failure.received);
        format!("{}: {received}", settings.address)
    };
    let mut client = match bench.open("enter") {
        Ok(client) => client,
        Err(Stop::Failed(failures)) => return Err(format!("{}; is a broker running there?", problem(failures))),
        Err(Stop::Skipped(reason)) => return Err(reason),
    };
    client.send(bench.hello("enter").bytes());
    match client.accepted() {
        Ok(_) => {
            client.leave();
            Ok(())
        }
        Err(Stop::Failed(failures)) => {
            let problem = problem(failures);
            Err(format!("{problem} in answer to a CONNECT of MQTT 3.1.1; {advice}"))
        }
        Err(Stop::Skipped(reason)) => Err(reason),
    }
}

/// The outcome of each, in the order of `wanted`; so many at a time.
fn play(settings: &Settings, all: &[&Case], wanted: &[usize]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Ok(()); wanted.len()]);
    thread::scope(|scope| {
        for _ in 0..settings.jobs.min(wanted.len()) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&number) = wanted.get(place) else { return };
                    let bench = Bench::new(settings, number);
                    let outcome = (all[number].play)(&bench);
                    bench.clear();
                    outcomes.lock().expect("no case panics while it holds this")[place] = outcome;
                }
            });
        }
    });
    outcomes.into_inner().expect("as above")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a broker that nobody asks.
    pub fn settings() -> Settings {
        Settings::at(([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn statements_are_chosen_by_name_and_by_pattern() {
        let chosen = |pattern: &str| is_chosen("MQTT-3.1.2-2", &[pattern.to_owned()]);
        for pattern in [
            "MQTT-3.1.2-2",
            "[MQTT-3.1.2-2]",
            "mqtt-3.1.2-2",
            "3.1.2-2",
            "3.1.2-*",
            "*-2",
            "MQTT-3.*",
            "*",
            "*1.2*",
        ] {
            assert!(chosen(pattern), "{pattern}");
        }
        for pattern in ["MQTT-3.1.2-24", "3.1.2-", "V31-*", "", "3.1.2", "*x*"] {
            assert!(!chosen(pattern), "{pattern}");
        }
        assert!(is_chosen("V31-1", &[]));
    }

    #[test]
    fn every_case_fits_the_longest_identifier_that_a_server_must_take() {
        assert!(cases::all().len() < 999);
        assert_eq!(run_name().len(), 6);
    }
}
