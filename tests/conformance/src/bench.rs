//! What a case works with: names of its own, connections, and words for what went wrong.
//!
//! Owns    what the case leaves behind on the broker (retained messages, durable Sessions), and takes it away at its end.
//! Called  by every case, through [`Bench`]; by `run`, which makes one for each.
//! Holds   - names and topics carry the run and the case: no two cases share any, nor two runs;
//!         - user name, password and topic prefix never reach a report.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::client::Client;
use crate::packet::{Hello, Packet, packet, publish, show};

/// Where the broker is and how to talk to it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    /// Where MQTT over WebSocket is; without it those statements are skipped.
    pub websocket: Option<SocketAddr>,
    pub websocket_path: String,
    pub user: Option<String>,
    pub password: Option<String>,
    /// What every topic begins with: empty, or with a `/` at its end.
    pub topic_prefix: String,
    /// A topic that these credentials may not use.
    pub forbidden_topic: Option<String>,
    /// How long is waited for what must come.
    pub timeout: Duration,
    /// How long nothing must come to count as nothing.
    pub silence: Duration,
    /// Cases at a time.
    pub jobs: usize,
    /// Makes names unique: six letters or digits.
    pub run_name: String,
}

/// How a case ends.
pub type Outcome<T = ()> = Result<T, Stop>;

#[derive(Clone, Debug)]
pub enum Stop {
    Failed(Vec<Failure>),
    /// It cannot be played against this broker, or the broker chose what the standard lets it choose.
    Skipped(String),
}

/// One departure from a statement.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Failure {
    /// Which of several stimuli, where a case has several.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
    pub sent: String,
    pub expected: String,
    pub received: String,
}

pub fn skip<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Stop::Skipped(reason.into()))
}

/// Plays all variants; fails with all that fail. Skipped only if every one of them is.
pub fn each<V>(
    variants: impl IntoIterator<Item = (impl Into<String>, V)>,
    mut play: impl FnMut(V) -> Outcome,
) -> Outcome {
    let (mut failures, mut skipped, mut has_passed) = (Vec::new(), None, false);
    for (name, variant) in variants {
        let name = name.into();
        match play(variant) {
            Ok(()) => has_passed = true,
            Err(Stop::Skipped(reason)) => skipped = Some(reason),
            Err(Stop::Failed(mut found)) => {
                for failure in &mut found {
                    let inner = std::mem::take(&mut failure.variant);
                    let words = [name.as_str(), &inner].into_iter().filter(|words| !words.is_empty());
                    failure.variant = words.collect::<Vec<_>>().join(", ");
                }
                failures.extend(found);
            }
        }
    }
    match skipped {
        _ if !failures.is_empty() => Err(Stop::Failed(failures)),
        Some(reason) if !has_passed => skip(reason),
        _ => Ok(()),
    }
}

pub struct Bench<'a> {
    pub settings: &'a Settings,
    /// Of the case, in the names it uses.
    number: usize,
    retained: RefCell<Vec<String>>,
    durable: RefCell<Vec<Hello>>,
}

impl<'a> Bench<'a> {
    pub fn new(settings: &'a Settings, number: usize) -> Bench<'a> {
        Bench {
            settings,
            number,
            retained: RefCell::default(),
            durable: RefCell::default(),
        }
    }

    /// At most 23 letters and digits, as every Server must take them [MQTT-3.1.3-5].
    pub fn id(&self, name: &str) -> String {
        let id = format!("{}{:03}{name}", self.settings.run_name, self.number);
        assert!(id.len() <= 23, "{id} is longer than a Server must take");
        id
    }

    pub fn topic(&self, rest: &str) -> String {
        let Settings {
            topic_prefix, run_name, ..
        } = self.settings;
        format!("{topic_prefix}conformance/{run_name}/{}/{rest}", self.number)
    }

    /// Clean Session, level 4, with the credentials of the run; keep alive 0.
    pub fn hello(&self, name: &str) -> Hello {
        let mut hello = Hello {
            header: 0x10,
            protocol: b"MQTT".to_vec(),
            level: 4,
            flags: Hello::CLEAN,
            keep_alive_s: 0,
            fields: vec![self.id(name).into_bytes()],
        };
        if let Some(user) = &self.settings.user {
            hello = hello.flag(Hello::USER).with_field(user);
            if let Some(password) = &self.settings.password {
                hello = hello.flag(Hello::PASSWORD).with_field(password);
            }
        }
        hello
    }

    /// A TCP connection on which nothing has been said yet.
    pub fn open(&self, name: &str) -> Outcome<Client<'_>> {
        Client::open(self, name)
    }

    /// A connection that has sent this CONNECT, and been accepted; the second value is Session Present.
    pub fn enter(&self, hello: &Hello) -> Outcome<(Client<'_>, bool)> {
        let name = String::from_utf8_lossy(&hello.fields[0]).into_owned();
        let mut client = self.open(&name)?;
        self.note(hello);
        client.send(hello.bytes());
        let session_present = client.accepted()?;
        Ok((client, session_present))
    }

    /// A client of that name with a Session that ends with its connection.
    pub fn client(&self, name: &str) -> Outcome<Client<'_>> {
        Ok(self.enter(&self.hello(name))?.0)
    }

    /// The state that a CONNECT may leave behind is taken away at the end.
    pub fn note(&self, hello: &Hello) {
        if hello.flags & Hello::CLEAN == 0 && !hello.fields[0].is_empty() {
            let is_new = |known: &Hello| known.fields[0] != hello.fields[0];
            let mut durable = self.durable.borrow_mut();
            if durable.iter().all(is_new) {
                let mut end = self.hello("").id(&hello.fields[0]);
                end.protocol.clone_from(&hello.protocol);
                end.level = hello.level;
                durable.push(end);
            }
        }
        if hello.flags & (Hello::WILL | Hello::WILL_RETAIN) == Hello::WILL | Hello::WILL_RETAIN
            && let Ok(topic) = String::from_utf8(hello.fields[1].clone())
        {
            self.note_retained(&topic);
        }
    }

    pub fn note_retained(&self, topic: &str) {
        let mut retained = self.retained.borrow_mut();
        if !retained.iter().any(|known| known == topic) {
            retained.push(topic.to_owned());
        }
    }

    /// Takes away what the case has left. A broker that does not let it is none of this case's failures.
    pub fn clear(&self) {
        let retained = self.retained.take();
        for hello in self.durable.take() {
            if let Ok((client, _)) = self.enter(&hello) {
                client.leave();
            }
        }
        if !retained.is_empty()
            && let Ok(mut client) = self.client("clear")
        {
            for topic in retained {
                client.send(publish(1, topic, 0, ""));
            }
            // A broker that has answered has read what came before.
            let _ = client.pings();
            client.leave();
        }
    }

    /// The packet as a report may show it.
    pub fn show(&self, bytes: &[u8]) -> String {
        let mut bytes = bytes.to_vec();
        let Settings {
            user,
            password,
            topic_prefix,
            ..
        } = self.settings;
        let secrets = [
            (password.as_deref(), "(password)"),
            (user.as_deref(), "(user)"),
            (Some(topic_prefix.trim_end_matches('/')), "(prefix)"),
        ];
        for (secret, instead) in secrets {
            if let Some(secret) = secret.filter(|secret| !secret.is_empty()) {
                bytes = replaced(&bytes, secret.as_bytes(), instead.as_bytes());
            }
        }
        show(&bytes)
    }

    pub fn show_packet(&self, received: &Packet) -> String {
        let bytes = self.show(&packet(received.first, &received.body));
        format!("{} ({bytes})", crate::packet::name(received.kind()))
    }
}

fn replaced(bytes: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        out.extend(&rest[..at]);
        out.extend(by);
        rest = &rest[at + what.len()..];
    }
    out.extend(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let settings = Settings {
            user: Some("somebody".into()),
            password: Some("secret".into()),
            topic_prefix: "token/".into(),
            ..crate::tests::settings()
        };
        let bench = Bench::new(&settings, 7);
        let shown = bench.show(&bench.hello("a").will(bench.topic("x"), "w", 0, false).bytes());
        assert!(
            !shown.contains("secret") && !shown.contains("somebody") && !shown.contains("token"),
            "{shown}"
        );
        assert!(shown.contains("(prefix)/conformance/"), "{shown}");
    }

    #[test]
    fn variants_fail_together_and_are_skipped_together() {
        let failed = |received: &str| {
            Err(Stop::Failed(vec![Failure {
                variant: String::new(),
                sent: String::new(),
                expected: String::new(),
                received: received.into(),
            }]))
        };
        let play = |outcomes: Vec<(&str, Outcome)>| each(outcomes, |outcome| outcome);
        let Err(Stop::Failed(failures)) = play(vec![("a", failed("x")), ("b", Ok(())), ("c", failed("y"))]) else {
            panic!("two of three fail")
        };
        assert_eq!(
            failures.iter().map(|f| f.variant.as_str()).collect::<Vec<_>>(),
            ["a", "c"]
        );
        assert!(play(vec![("a", skip("why")), ("b", Ok(()))]).is_ok());
        assert!(matches!(play(vec![("a", skip("why"))]), Err(Stop::Skipped(why)) if why == "why"));
        assert!(matches!(
            play(vec![("a", skip("why")), ("b", failed("x"))]),
            Err(Stop::Failed(_))
        ));
    }
}
