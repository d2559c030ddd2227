//! A broker with accounts.
//!
//! Owns    [`Platform`]: one run after another on one directory, with `--access platform`; [`Account`]: what
//!         `skein account add` has printed.
//! Called  by every theme of the platform's tests.
//! Holds   - accounts are made by the command alone, before the broker runs or beside it;
//!         - the rates of the API are lifted unless a test gives its own flags ([`LIFTED`]).

use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rest::{Api, Reply};
use crate::broker::{Broker, Site, Transport, patience};
use crate::clients::{Address, Hello, Message, MosquittoSub, hello, mosquitto_pub_at};
use crate::raw::{Connect, Raw, Will};

/// No limit on how often the API and the connector may be called.
pub const LIFTED: [&str; 4] = ["--api-rate", "0", "--connector-rate", "0"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub user_id: String,
    pub api_token: String,
    pub device_token: String,
}

impl Account {
    /// Of what the command has printed.
    pub fn parse(printed: &Value) -> Account {
        let field = |name: &str| {
            let text = printed[name].as_str();
            text.unwrap_or_else(|| panic!("no `{name}`: {printed}")).to_owned()
        };
        Account {
            user_id: field("user_id"),
            api_token: field("api_token"),
            device_token: field("device_token"),
        }
    }

    /// Below its own prefix.
    pub fn topic(&self, below: &str) -> String {
        format!("{}/{below}", self.device_token)
    }

    pub fn hello(&self, id: &str) -> Hello {
        hello(id).user(&self.user_id, &self.device_token)
    }

    /// For the mosquitto commands.
    pub fn mosquitto(&self) -> [&str; 4] {
        ["-u", &self.user_id, "-P", &self.device_token]
    }

    /// Clean, level 4.
    pub fn connect<'a>(&'a self, id: &'a str) -> Connect<'a> {
        Connect {
            level: 4,
            id,
            is_clean: true,
            keep_alive_s: 60,
            user: Some(&self.user_id),
            password: Some(&self.device_token),
            will: None,
        }
    }

    pub fn connect_durable<'a>(&'a self, id: &'a str) -> Connect<'a> {
        Connect {
            is_clean: false,
            ..self.connect(id)
        }
    }

    pub fn connect_with_will<'a>(&'a self, id: &'a str, will: Will<'a>) -> Connect<'a> {
        Connect {
            will: Some(will),
            ..self.connect(id)
        }
    }
}

pub struct Platform {
    pub site: Site,
    /// None between two runs.
    running: Option<Broker>,
    accounts: Vec<Account>,
}

impl Platform {
    /// So many accounts; four cores, no rates.
    pub fn start(accounts: usize) -> Platform {
        Platform::start_with(4, accounts, &LIFTED)
    }

    pub fn start_with(cores: u16, accounts: usize, further: &[&str]) -> Platform {
        let mut platform = Platform::prepare(accounts);
        platform.run(cores, further);
        platform
    }

    /// The accounts alone: no broker has run yet.
    pub fn prepare(accounts: usize) -> Platform {
        let mut platform = Platform {
            site: Site::new(),
            running: None,
            accounts: Vec::new(),
        };
        for _ in 0..accounts {
            platform.add_account(&[]);
        }
        platform
    }

    /// Starts the next run.
    pub fn run(&mut self, cores: u16, further: &[&str]) {
        assert!(self.running.is_none());
        let further = [&["--access", "platform"], further].concat();
        self.running = Some(self.site.start(cores, &further));
    }

    pub fn broker(&self) -> &Broker {
        self.running.as_ref().expect("a test runs the broker first")
    }

    pub fn account(&self, index: usize) -> &Account {
        &self.accounts[index]
    }

    /// Accounts after one another.
    pub fn accounts<const N: usize>(&self) -> [Account; N] {
        self.accounts[..N].to_vec().try_into().unwrap()
    }

    /// The API with the token of this account.
    pub fn api(&self, index: usize) -> Api {
        self.api_of(&self.accounts[index])
    }

    pub fn api_of(&self, account: &Account) -> Api {
        self.anybody().header("X-APITOKEN", &account.api_token)
    }

    /// The API without a token.
    pub fn anybody(&self) -> Api {
        Api::at(self.broker().api_port())
    }

    /// What a device sends by HTTP: token and id.
    pub fn connector(&self, index: usize, device: &str) -> Api {
        let api = self
            .anybody()
            .header("X-DEVICETOKEN", &self.accounts[index].device_token);
        api.header("X-DEVICEID", device)
    }

    /// `skein account …` with the directory of this platform.
    pub fn account_command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
        command.arg("account").args(arguments);
        command.arg("--data-dir").arg(self.site.data_dir());
        command.output().unwrap()
    }

    /// The same, which must end well; what it prints with `--json`.
    pub fn account_json(&self, arguments: &[&str]) -> Value {
        let output = self.account_command(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "skein account {arguments:?}: {output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("skein account {arguments:?}: {error}: {printed}"))
    }

    pub fn add_account(&mut self, arguments: &[&str]) -> Account {
        let account = Account::parse(&self.account_json(&[&["add"], arguments].concat()));
        self.accounts.push(account.clone());
        account
    }

    /// The account as the command prints it after a change by one of its words (`suspend`, …).
    pub fn change_account(&mut self, index: usize, words: &[&str]) -> Account {
        let user_id = self.accounts[index].user_id.clone();
        let changed = Account::parse(&self.account_json(&[words, &[&user_id]].concat()));
        self.accounts[index] = changed.clone();
        changed
    }

    /// A raw client that has been let in.
    pub fn raw(&self, connect: Connect<'_>) -> Raw {
        let opened = Raw::open(self.broker().port, &connect.packet());
        opened.unwrap_or_else(|code| panic!("refused with return code {code}: {connect:?}"))
    }

    /// A raw client, clean, level 4.
    pub fn client(&self, index: usize, id: &str) -> Raw {
        self.raw(self.accounts[index].connect(id))
    }

    /// A return code that is not 0.
    pub fn refused(&self, connect: Connect<'_>) -> u8 {
        let opened = Raw::open(self.broker().port, &connect.packet());
        opened.err().unwrap_or_else(|| panic!("let in: {connect:?}"))
    }

    /// Published by `mosquitto_pub` over TCP, at QoS 1 and acknowledged: below the account's prefix.
    pub fn send(&self, index: usize, below: &str, payload: impl AsRef<[u8]>) {
        let account = &self.accounts[index];
        let message = Message::new(&account.topic(below), payload, 1, false);
        mosquitto_pub_at(
            &Address::of(self.broker(), Transport::Tcp),
            &account.mosquitto(),
            &message,
        );
    }

    /// `mosquitto_sub` over TCP at QoS 2: all below the account's prefix.
    pub fn watch(&self, index: usize) -> MosquittoSub {
        let account = &self.accounts[index];
        let filter = account.topic("#");
        MosquittoSub::start(
            self.broker(),
            &[&account.mosquitto()[..], &["-q", "2", "-t", &filter]].concat(),
        )
    }

    /// A channel, and a device that is mapped to it.
    pub fn map(&self, index: usize, device: &str, channel: u32) {
        let api = self.api(index);
        let made = api.post(&format!("/v2/channel/{channel}"), "");
        assert!(matches!(made.status, 201 | 403), "{made:?}");
        let made = api.post(&format!("/v2/device/{device}"), "");
        assert!(matches!(made.status, 201 | 403), "{made:?}");
        api.put(&format!("/v2/device/{device}"), json!({"mapped_ch": channel}))
            .expect(200);
    }

    /// The values of a channel, the oldest first.
    pub fn values(&self, index: usize, channel: u32) -> Vec<Value> {
        values(&self.stream(index, channel))
    }

    /// The newest datapoints of a channel, at most 10,000, the oldest first: the whole answer.
    pub fn stream(&self, index: usize, channel: u32) -> Value {
        let api = self
            .api(index)
            .header("X-ENDTIME", "last")
            .header("X-PAGELIMIT", "10000");
        api.get(&format!("/v2/stream/{channel}")).expect(200).json()
    }

    /// Ids of the devices of an account.
    pub fn devices(&self, index: usize) -> Vec<String> {
        let devices = self.api(index).get("/v2/device").expect(200).json();
        let devices = devices.as_array().expect("an array");
        devices
            .iter()
            .map(|device| device["device_id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// One device, whole.
    pub fn device(&self, index: usize, device: &str) -> Value {
        let found = self.api(index).get(&format!("/v2/device/{device}")).expect(200).json();
        let [found] = &found.as_array().expect("an array")[..] else {
            panic!("not one device: {found}")
        };
        found.clone()
    }

    /// SIGTERM; what was written.
    pub fn stop(&mut self) -> String {
        self.running.take().expect("it runs").stop()
    }

    pub fn kill(&mut self) -> String {
        self.running.take().expect("it runs").kill()
    }

    /// Where the broker keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.site.data_dir()
    }
}

/// Of an answer of the stream service.
pub fn values(stream: &Value) -> Vec<Value> {
    let points = stream["stream"]
        .as_array()
        .unwrap_or_else(|| panic!("no `stream`: {stream}"));
    points.iter().map(|point| point["value"].clone()).collect()
}

/// Comes true within a generous time.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < patience(Duration::from_secs(10)),
            "waited in vain: {what}"
        );
        sleep(Duration::from_millis(20));
    }
}

/// Time for what must not come.
pub fn settle() {
    sleep(Duration::from_millis(400));
}

/// The keys of an object, sorted.
pub fn keys(object: &Value) -> Vec<&str> {
    let object = object.as_object().unwrap_or_else(|| panic!("no object: {object}"));
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort();
    keys
}

/// The answer is an error of the contract: status, code, nothing else, as JSON.
pub fn assert_error(reply: &Reply, status: u16, code: &str) {
    assert_eq!(
        (reply.status, reply.json_or_text()),
        (status, json!({"error": code})),
        "{reply:?}"
    );
    let kind = reply.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{reply:?}");
}
