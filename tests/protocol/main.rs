//! Protocol conversations in hex: every line of the conformance checklist that concerns MQTT 3.1 and 3.1.1, played
//! against the real broker over each of its transports and in memory against its heart.
//!
//! Owns    the pool of brokers, the report. `README.md` says how to read and write a conversation.
//! Holds   a conversation that cannot be played is a failure.
//!
//! `SKEIN_PROTOCOL_ADDRESS=127.0.0.1:1883` plays the conversations against a broker that is already running there
//! (`SKEIN_PROTOCOL_FLAGS` says which of our flags its settings amount to; conversations that need others are left out,
//! and said so). `SKEIN_PROTOCOL_ONLY=text` plays those whose title or file has the text in it.

mod checklist;
mod heart;
mod network;
mod runner;
mod script;
mod stream;
mod websocket;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heart::Heart;
use network::{Broker, Network, Transport};
use script::{Action, Conversation};

/// Most of a conversation is waiting, so there are more threads than cores.
const THREADS: usize = 24;

/// A broker that several conversations share, once the first of them has started it.
type Shared = Arc<Mutex<Option<Arc<Broker>>>>;

/// All files, read when the test runs: a conversation can be changed without a build.
fn conversations() -> Vec<Conversation> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protocol");
    let files = std::fs::read_dir(directory).expect("the conversations stand beside this file");
    let mut files: Vec<_> = files.map(|entry| entry.expect("a readable directory").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut all = Vec::new();
    for (number, path) in files.iter().enumerate() {
        let name = path.file_name().expect("it has an extension").to_string_lossy();
        let text = std::fs::read_to_string(path).expect("a conversation is UTF-8");
        all.extend(script::parse(&name, number, &text).unwrap_or_else(|error| panic!("{error}")));
    }
    all
}

fn chosen() -> Vec<Conversation> {
    let only = std::env::var("SKEIN_PROTOCOL_ONLY").unwrap_or_default();
    conversations()
        .into_iter()
        .filter(|one| one.title.contains(&only) || one.place.contains(&only))
        .collect()
}

/// The time a conversation waits for: the long ones start first.
fn waits(conversation: &Conversation) -> Duration {
    let steps = conversation.steps.iter().map(|step| match &step.action {
        Action::Wait(time) => *time,
        Action::ExpectNothing { lasting, .. } => lasting.unwrap_or(Duration::from_millis(100)),
        Action::ExpectClose { within, .. } => within.unwrap_or_default(),
        _ => Duration::ZERO,
    });
    steps.sum()
}

/// Plays all on some threads; one line per failure.
fn play_all(
    mut conversations: Vec<Conversation>,
    play: impl Fn(&Conversation) -> Result<(), String> + Sync,
) -> Vec<String> {
    conversations.sort_by_key(|conversation| std::cmp::Reverse(waits(conversation)));
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(conversation) = conversations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(reason) = play(conversation) {
                        let failure = format!("{} {}\n    {reason}", conversation.place, conversation.title);
                        failures.lock().expect("no thread panics holding it").push(failure);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no thread panics holding it");
    failures.sort();
    failures
}

fn report(count: usize, failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} of {count} conversations failed\n\n{}\n",
        failures.len(),
        failures.join("\n\n")
    );
}

/// Plays all against brokers with these flags, and those of each conversation.
fn over(transport: Transport, usual: &[&str]) {
    if let Ok(address) = std::env::var("SKEIN_PROTOCOL_ADDRESS") {
        assert_eq!(transport, Transport::Tcp, "SKEIN_PROTOCOL_ADDRESS is played over TCP");
        return against(&address);
    }
    // One broker per file and set of flags; those who need one for themselves get one.
    let brokers: Mutex<HashMap<String, Shared>> = Mutex::default();
    let all = chosen();
    let count = all.len();
    let mut failures = play_all(all, |conversation| {
        let mut flags: Vec<String> = usual.iter().map(|flag| flag.to_string()).collect();
        flags.extend(conversation.flags.iter().cloned());
        let file = conversation.place.split(':').next().unwrap_or_default();
        let key = if conversation.alone {
            conversation.place.clone()
        } else {
            format!("{file} {flags:?}")
        };
        let slot = Arc::clone(
            brokers
                .lock()
                .expect("no thread panics holding it")
                .entry(key)
                .or_default(),
        );
        let broker = {
            let mut slot = slot.lock().expect("no thread panics holding it");
            if slot.is_none() {
                *slot = Some(Arc::new(Broker::start(transport, &flags)?));
            }
            Arc::clone(slot.as_ref().expect("just filled"))
        };
        let outcome = runner::run(conversation, &mut Network::new(&broker, conversation));
        if conversation.alone {
            slot.lock().expect("no thread panics holding it").take();
            let mut broker = Arc::into_inner(broker).expect("nobody else knows it");
            return match broker.ended() {
                Some(reason) => Err(reason),
                None => outcome,
            };
        }
        outcome
    });
    for (key, slot) in brokers.into_inner().expect("no thread panics holding it") {
        let broker = slot.lock().expect("no thread panics holding it").take();
        if let Some(reason) = broker.and_then(Arc::into_inner).and_then(|mut broker| broker.ended()) {
            failures.push(format!("{key}: {reason}"));
        }
    }
    report(count, &failures);
}

/// Plays what needs no flag of ours against the broker at `address`: it shows that a conversation itself is right.
fn against(address: &str) {
    let broker = Broker::at(address).expect("SKEIN_PROTOCOL_ADDRESS is an address");
    let flags = std::env::var("SKEIN_PROTOCOL_FLAGS").unwrap_or_default();
    let (all, left_out): (Vec<_>, Vec<_>) = chosen()
        .into_iter()
        .partition(|conversation| conversation.flags.join(" ") == flags);
    for conversation in left_out {
        println!("left out: {} {}", conversation.place, conversation.title);
    }
    let count = all.len();
    let (alone, shared): (Vec<_>, Vec<_>) = all.into_iter().partition(|conversation| conversation.alone);
    let play = |conversation: &Conversation| {
        let outcome = runner::run(conversation, &mut Network::new(&broker, conversation));
        match (&conversation.mosquitto, outcome) {
            (Some(reason), Ok(())) => {
                println!("{} does not differ: {reason}", conversation.place);
                Ok(())
            }
            (Some(reason), Err(_)) => {
                println!("{} differs: {reason}", conversation.place);
                Ok(())
            }
            (None, outcome) => outcome,
        }
    };
    // One at a time, and first: nobody else has left anything there yet.
    let mut failures = Vec::new();
    for conversation in alone {
        failures.extend(play_all(vec![conversation], play));
    }
    failures.extend(play_all(shared, play));
    report(count, &failures);
}

#[test]
fn conversations_hold_over_tcp_on_one_core() {
    over(Transport::Tcp, &["--cores", "1"]);
}

#[test]
fn conversations_hold_over_tcp_on_four_cores() {
    over(Transport::Tcp, &["--cores", "4"]);
}

/// The driver of hosts that refuse io_uring.
#[test]
fn conversations_hold_over_tcp_on_epoll() {
    over(Transport::Tcp, &["--cores", "2", "--driver", "epoll"]);
}

#[test]
fn conversations_hold_over_tls_on_four_cores() {
    over(Transport::Tls, &["--cores", "4"]);
}

#[test]
fn conversations_hold_over_tls_1_2_on_one_core() {
    over(Transport::Tls12, &["--cores", "1"]);
}

#[test]
fn conversations_hold_over_websocket_on_four_cores() {
    over(Transport::WebSocket, &["--cores", "4"]);
}

#[test]
fn conversations_hold_over_secure_websocket_on_four_cores() {
    over(Transport::SecureWebSocket, &["--cores", "4"]);
}

fn in_memory(cores: u16, seeds: &[u64]) {
    let all: Vec<_> = chosen()
        .into_iter()
        .filter(|conversation| conversation.tcp_only.is_none())
        .collect();
    let count = all.len();
    let failures = play_all(all, |conversation| {
        for &seed in seeds {
            let play = || runner::run(conversation, &mut Heart::new(cores, seed, &conversation.flags)?);
            // A broken assertion of the heart is that conversation's failure.
            let played = std::panic::catch_unwind(play);
            let played = played.unwrap_or_else(|_| Err("the heart panicked; its message is above".to_owned()));
            played.map_err(|reason| format!("{cores} cores, seed {seed}: {reason}"))?;
        }
        Ok(())
    });
    report(count, &failures);
}

#[test]
fn conversations_hold_in_memory_on_one_core() {
    in_memory(1, &[1]);
}

#[test]
fn conversations_hold_in_memory_on_four_cores() {
    in_memory(4, &[1, 2]);
}

#[test]
fn every_line_of_the_checklist_has_a_conversation() {
    let problems = checklist::problems(&conversations());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
