//! The platform's rules at a shard: what is kept, what is routed, what an acknowledgement waits for. Each on one core and on two.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::query::{Answer, Query, Refusal, SentFormat, Ticket};
use super::record::{Datapoint, Origin, Stored, StoredDevice, StoredSession};
use super::restore::restore;
use super::tests::{Cores, at, packet_id, publish};
use super::*;
use crate::mqtt::client;
use crate::mqtt::packet::{Level, QoS, Will};
use crate::registry::access::{Accounts, AccountsChange, Ended, EndedWhy};
use crate::registry::account::{Account, Token};
use crate::registry::channel::ChannelId;
use crate::registry::datapoint::DatapointRow;
use crate::registry::device::DeviceChange;
use crate::registry::event::{Event, Operator};

const ONE: AccountId = AccountId(1);
const TWO: AccountId = AccountId(2);

fn account(id: AccountId) -> Account {
    let token = |kind: u8| Token::from_random([kind + id.0 as u8; 16]);
    Account {
        devices_max: 3,
        ..Account::new(id, &format!("U{:06}", id.0), token(0xa0), token(0xd0), 0)
    }
}

fn token(id: AccountId) -> String {
    account(id).device_token.as_str().to_owned()
}

fn access(first: Account, events: Vec<Event>) -> Access {
    let accounts = Accounts::default().with(first, events).with(account(TWO), []);
    Access::Platform(Arc::new(accounts))
}

fn channel(number: u32) -> ChannelId {
    ChannelId::new(number).unwrap()
}

/// Client 0 of account 1 at home on core 0, subscribed to all that is its account's; client 1 of account 2 likewise.
fn cores(count: u16, access: Access) -> Cores {
    let mut cores = Cores::with_access(count, Limits::default(), access);
    for (index, id) in [(0, ONE), (1, TWO)] {
        cores.account = id;
        cores.connect(0, index, Level::V311, true);
        cores.subscribe(0, index, 1, &format!("{}/#", token(id)), QoS::AtMostOnce);
        cores.carry_all();
        cores.sent(0, index);
    }
    cores.account = ONE;
    cores
}

impl Cores {
    fn owner(&self, device: &str) -> usize {
        self.shards[0].shard_key.owner_of_device(ONE, device).into()
    }

    fn commit_all(&mut self) {
        (0..self.shards.len()).for_each(|core| self.commit(core));
        self.carry_all();
        (0..self.shards.len()).for_each(|core| self.commit(core));
        self.carry_all();
    }

    /// What the stores were given since the last time, by all cores.
    fn records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        for said in &mut self.said {
            for output in said.extract_if(.., |output| matches!(output, Output::Persist(..))) {
                let Output::Persist(_, record) = output else {
                    unreachable!("picked by its kind");
                };
                records.push(*record);
            }
        }
        records
    }

    fn datapoints(&mut self) -> Vec<(ChannelId, String)> {
        let datapoint = |record| match record {
            Record::Datapoint(datapoint) => {
                let Datapoint { channel, row, .. } = *datapoint;
                let row = DatapointRow::unpack(&row).unwrap();
                Some((channel, format!("{} {} {}", row.device, row.tag, row.value)))
            }
            _ => None,
        };
        self.records().into_iter().filter_map(datapoint).collect()
    }

    /// Client 0 publishes at QoS 1, and everything that follows happens.
    fn publish(&mut self, topic: &str, retain: bool, payload: &str) -> Vec<String> {
        self.receive(0, 0, &publish(topic, QoS::AtLeastOnce, retain, 1, payload.as_bytes()));
        self.carry_all();
        self.commit_all();
        self.sent(0, 0)
    }

    fn ask(&mut self, core: usize, query: Query) -> Answer {
        let ticket = Ticket(7);
        self.input(
            core,
            Input::Asked {
                ticket,
                query: query.into(),
            },
        );
        self.carry_all();
        self.commit_all();
        self.answer(core).expect("everything is committed")
    }

    fn answer(&mut self, core: usize) -> Option<Answer> {
        let mut answers = self.said[core].extract_if(.., |output| matches!(output, Output::Answer(_)));
        let Some(Output::Answer(answer)) = answers.next() else {
            return None;
        };
        assert_eq!(answer.0, Ticket(7));
        Some(answer.1)
    }

    fn map(&mut self, device: &str, number: u32) {
        let change = DeviceChange {
            channel: Some(Some(channel(number))),
            ..DeviceChange::default()
        };
        let owner = self.owner(device);
        let (account, device) = (ONE, device.into());
        let answer = self.ask(
            owner,
            Query::ChangeDevice {
                account,
                device,
                change,
            },
        );
        assert_eq!(answer, Answer::Done);
        self.records();
    }

    fn enable(&mut self, device: &str, is_enabled: bool) {
        let change = DeviceChange {
            is_enabled: Some(is_enabled),
            ..DeviceChange::default()
        };
        let owner = self.owner(device);
        let (account, device) = (ONE, device.into());
        self.ask(
            owner,
            Query::ChangeDevice {
                account,
                device,
                change,
            },
        );
        self.records();
    }

    /// As the cores know them.
    fn accounts(&self) -> Accounts {
        match &self.shards[0].access {
            Access::Open => panic!("there are accounts"),
            Access::Platform(accounts) => Accounts::clone(accounts),
        }
    }

    fn change_accounts(&mut self, accounts: Accounts, ended: Option<Ended>) {
        let accounts = Arc::new(accounts);
        for core in 0..self.shards.len() {
            let change = AccountsChange {
                accounts: Arc::clone(&accounts),
                ended,
            };
            self.input(core, Input::Accounts(Box::new(change)));
        }
        self.carry_all();
    }

    fn sum(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        self.shards.iter().map(|shard| of(shard.counters())).sum()
    }
}

fn on_one_and_two_cores(test: impl Fn(Cores)) {
    for count in [1, 2] {
        test(cores(count, access(account(ONE), Vec::new())));
    }
}

#[test]
fn an_unknown_device_is_registered_and_routed_and_stored_once_it_is_mapped() {
    on_one_and_two_cores(|mut cores| {
        let topic = format!("{}/json/pump-07", token(ONE));
        let delivered = format!("PUBLISH {topic} {{\"temp\":20}}");
        let sent = cores.publish(&topic, false, r#"{"temp":20}"#);
        assert_eq!(sent, [delivered.as_str(), "PUBACK 1"]);
        let records = cores.records();
        let [
            Record::DeviceRegistered {
                account: ONE,
                device,
                entry,
            },
        ] = &records[..]
        else {
            panic!("{records:?}");
        };
        assert_eq!((&**device, entry.channel, entry.is_enabled), ("pump-07", None, true));
        assert_eq!(
            cores.publish(&topic, false, "1"),
            [format!("PUBLISH {topic} 1"), "PUBACK 1".into()]
        );
        assert_eq!(cores.records(), [], "not mapped");
        assert_eq!(cores.sum(|counters| counters.refused_unmapped), 1);
        cores.map("pump-07", 3);
        cores.publish(&format!("{topic}/inlet"), false, r#"{"temp":20}"#);
        assert_eq!(
            cores.datapoints(),
            [(channel(3), r#"pump-07 inlet {"temp":20}"#.to_owned())]
        );
        cores.publish(&format!("{}/binary/pump-07", token(ONE)), false, "\u{1}");
        assert_eq!(
            cores.datapoints(),
            [(channel(3), r#"pump-07  {"value1":"01"}"#.to_owned())]
        );
        assert!(cores.sent(0, 1).is_empty(), "another account sees nothing");
    });
}

#[test]
fn an_acknowledgement_waits_for_the_datapoint_on_disk_and_qos_0_is_stored_too() {
    on_one_and_two_cores(|mut cores| {
        let topic = format!("{}/json/d", token(ONE));
        cores.publish(&topic, false, "1");
        cores.map("d", 0);
        cores.receive(0, 0, &publish(&topic, QoS::AtLeastOnce, false, 5, b"2"));
        cores.carry_all();
        assert_eq!(cores.sent(0, 0), [format!("PUBLISH {topic} 2")]);
        cores.commit_all();
        assert_eq!(cores.sent(0, 0), ["PUBACK 5"]);
        cores.receive(0, 0, &publish(&topic, QoS::AtMostOnce, false, 0, b"3"));
        cores.carry_all();
        let values: Vec<_> = cores.datapoints().into_iter().map(|(_, row)| row).collect();
        assert_eq!(values, [r#"d  {"value1":2}"#, r#"d  {"value1":3}"#]);
    });
}

#[test]
fn what_is_refused_is_acknowledged_and_neither_kept_nor_routed() {
    on_one_and_two_cores(|mut cores| {
        let (own, other) = (token(ONE), token(TWO));
        let long = "x".repeat(65);
        for (topic, payload) in [
            (format!("{other}/json/d"), "1"),
            (format!("{other}/d/subscribe"), "1"),
            ("json/d".to_owned(), "1"),
            (format!("{own}/json/0"), "1"),
            (format!("{own}/json/"), "1"),
            (format!("{own}/json/json"), "1"),
            (format!("{own}/json/{long}"), "1"),
            (format!("{own}/json/d/t/x"), "1"),
            (format!("{own}/binary/d/{long}"), "1"),
        ] {
            assert_eq!(cores.publish(&topic, true, payload), ["PUBACK 1"], "{topic}");
            assert_eq!(cores.records(), [], "{topic}");
            assert!(cores.sent(0, 1).is_empty(), "{topic}");
        }
        assert_eq!(cores.sum(|counters| counters.refused_bad_token), 3);
        assert_eq!(cores.sum(|counters| counters.refused_bad_topic), 6);
        let topic = format!("{own}/json/d");
        cores.publish(&topic, false, "1");
        cores.map("d", 3);
        for payload in ["null", "{", "nan", "1 2"] {
            assert_eq!(cores.publish(&topic, true, payload), ["PUBACK 1"], "{payload}");
            assert_eq!(cores.records(), [], "{payload}");
        }
        assert_eq!(cores.sum(|counters| counters.refused_bad_payload), 4);
        cores.enable("d", false);
        assert_eq!(cores.publish(&topic, false, "1"), ["PUBACK 1"]);
        assert_eq!(cores.records(), []);
        assert_eq!(cores.sum(|counters| counters.refused_disabled), 1);
        assert_eq!(cores.sum(|counters| counters.publishes_refused), 14);
    });
}

#[test]
fn other_topics_below_the_own_token_are_routed_and_not_kept() {
    on_one_and_two_cores(|mut cores| {
        for rest in ["d/subscribe", "any/thing/at/all", "json", "d"] {
            let topic = format!("{}/{rest}", token(ONE));
            let sent = cores.publish(&topic, false, "x");
            assert_eq!(sent, [format!("PUBLISH {topic} x"), "PUBACK 1".into()]);
            assert_eq!(cores.records(), []);
        }
    });
}

#[test]
fn devices_are_registered_up_to_the_accounts_limit() {
    on_one_and_two_cores(|mut cores| {
        for device in ["a", "b", "c"] {
            cores.publish(&format!("{}/json/{device}", token(ONE)), false, "1");
        }
        let topic = format!("{}/json/d", token(ONE));
        assert_eq!(cores.publish(&topic, false, "1"), ["PUBACK 1"], "not routed either");
        assert_eq!(cores.sum(|counters| counters.refused_device_limit), 1);
        let owner = cores.owner("b");
        let (account, device) = (ONE, "b".into());
        assert_eq!(cores.ask(owner, Query::RemoveDevice { account, device }), Answer::Done);
        assert_eq!(cores.publish(&topic, false, "1").len(), 2);
        let create = |device: &str| Query::CreateDevice {
            account: ONE,
            device: device.into(),
            change: DeviceChange::default(),
        };
        let refused = cores.ask(cores.owner("e"), create("e"));
        assert_eq!(refused, Answer::Refused(Refusal::MaxDeviceReach));
        let refused = cores.ask(cores.owner("a"), create("a"));
        assert_eq!(refused, Answer::Refused(Refusal::DeviceInUse));
    });
}

#[test]
fn an_account_may_map_new_devices_at_once() {
    for count in [1, 2] {
        let mapping = Account {
            default_channel: Some(channel(9)),
            ..account(ONE)
        };
        let mut cores = cores(count, access(mapping, Vec::new()));
        cores.publish(&format!("{}/json/d", token(ONE)), false, "1");
        let records = cores.records();
        assert!(matches!(&records[0], Record::DeviceRegistered { entry, .. } if entry.channel == Some(channel(9))));
        assert!(matches!(&records[1], Record::Datapoint(datapoint) if datapoint.channel == channel(9)));
        assert_eq!(records.len(), 2);
    }
}

#[test]
fn a_retained_data_message_is_kept_once_and_an_empty_one_only_clears_it() {
    on_one_and_two_cores(|mut cores| {
        let topic = format!("{}/json/d", token(ONE));
        assert_eq!(
            cores.publish(&topic, true, ""),
            [format!("PUBLISH {topic} "), "PUBACK 1".into()]
        );
        assert!(
            !cores
                .records()
                .iter()
                .any(|record| matches!(record, Record::DeviceRegistered { .. }))
        );
        cores.publish(&topic, false, "1");
        cores.map("d", 1);
        cores.publish(&topic, true, "5");
        cores.subscribe(0, 0, 2, &topic, QoS::AtMostOnce);
        cores.carry_all();
        assert_eq!(cores.sent(0, 0)[1], format!("PUBLISH retained {topic} 5"));
        assert_eq!(cores.datapoints().len(), 1);
        cores.publish(&topic, true, "");
        assert_eq!(cores.datapoints(), []);
        assert_eq!(cores.shards.iter().map(Shard::retained_count).sum::<usize>(), 0);
    });
}

#[test]
fn a_will_on_a_data_topic_is_stored_when_it_fires_and_a_foreign_one_never() {
    on_one_and_two_cores(|mut cores| {
        let topic = format!("{}/json/d", token(ONE));
        cores.publish(&topic, false, "1");
        cores.map("d", 1);
        for (index, topic) in [(5, topic), (6, format!("{}/json/d", token(TWO)))] {
            cores.will = Some(Will {
                topic,
                payload: b"99".to_vec(),
                qos: QoS::AtLeastOnce,
                retain: false,
            });
            cores.connect(0, index, Level::V311, true);
            cores.input(0, Input::Disconnected { connection: at(index) });
            cores.carry_all();
        }
        assert_eq!(cores.datapoints(), [(channel(1), r#"d  {"value1":99}"#.to_owned())]);
        assert!(cores.sent(0, 1).is_empty());
    });
}

#[test]
fn a_state_report_counts_only_where_data_would_and_registers_nobody() {
    on_one_and_two_cores(|mut cores| {
        let state = format!("{}/state/d", token(ONE));
        assert_eq!(cores.publish(&state, false, "a=1").len(), 2, "routed");
        assert_eq!(cores.records(), []);
        cores.publish(&format!("{}/json/d", token(ONE)), false, "1");
        cores.records();
        cores.publish(&state, false, "a=1");
        assert_eq!(cores.records(), [], "not mapped");
        cores.map("d", 1);
        assert_eq!(cores.publish(&state, false, "health=OK&load= 12.5 ").len(), 2);
        let records = cores.records();
        let [Record::DeviceReported { state: report, .. }] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!(&*report.json, r#"{"health":"OK","load":12.5}"#);
        cores.enable("d", false);
        assert_eq!(cores.publish(&state, false, "a=1"), ["PUBACK 1"]);
        assert_eq!(cores.records(), []);
    });
}

#[test]
fn filters_beyond_the_own_token_are_refused_as_each_version_can_say_it() {
    on_one_and_two_cores(|mut cores| {
        let other = format!("{}/#", token(TWO));
        for filter in ["#", "+/json/#", "$SYS/#", &other] {
            cores.subscribe(0, 0, 2, filter, QoS::AtMostOnce);
            cores.carry_all();
            assert_eq!(cores.sent(0, 0), ["SUBACK [Failure]"], "{filter}");
        }
        cores.connect(0, 7, Level::V31, true);
        cores.subscribe(0, 7, 2, "#", QoS::AtLeastOnce);
        cores.carry_all();
        assert_eq!(cores.sent(0, 7), ["CONNACK 0", "SUBACK [Granted(AtLeastOnce)]"]);
        cores.publish(&format!("{}/x", token(ONE)), false, "1");
        assert!(cores.sent(0, 7).is_empty());
    });
}

#[test]
fn what_comes_over_http_goes_the_way_of_what_is_published() {
    on_one_and_two_cores(|mut cores| {
        let send = |payload: &str, format| Query::Send {
            account: ONE,
            device: "d".into(),
            tag: Some("t".into()),
            payload: payload.as_bytes().into(),
            format,
        };
        let owner = cores.owner("d");
        let topic = format!("{}/json/d/t", token(ONE));
        assert_eq!(cores.ask(owner, send("1", SentFormat::Json)), Answer::Registered);
        assert_eq!(cores.sent(0, 0), [format!("PUBLISH {topic} 1")]);
        let refused = cores.ask(owner, send("2", SentFormat::Json));
        assert_eq!(refused, Answer::Refused(Refusal::NoMappedChannel));
        assert_eq!(cores.sent(0, 0), [format!("PUBLISH {topic} 2")]);
        cores.map("d", 3);
        let ticket = Ticket(7);
        let query = Box::new(send("3", SentFormat::Json));
        cores.input(owner, Input::Asked { ticket, query });
        cores.carry_all();
        assert_eq!(cores.answer(owner), None, "not on disk yet");
        cores.commit_all();
        assert_eq!(cores.answer(owner), Some(Answer::Done));
        assert_eq!(cores.datapoints(), [(channel(3), r#"d t {"value1":3}"#.to_owned())]);
        assert_eq!(cores.ask(owner, send("v=4&v2=x", SentFormat::V1)), Answer::Done);
        assert_eq!(cores.datapoints()[0].1, r#"d t {"value1":4,"value2":"x"}"#);
        cores.sent(0, 0);
        let refused = cores.ask(owner, send("{", SentFormat::Json));
        assert_eq!(refused, Answer::Refused(Refusal::BadPayload));
        cores.enable("d", false);
        let refused = cores.ask(owner, send("1", SentFormat::Json));
        assert_eq!(refused, Answer::Refused(Refusal::DeviceDisabled));
        assert!(cores.sent(0, 0).is_empty());
    });
}

#[test]
fn a_command_reaches_its_topic_and_waits_for_durable_subscribers() {
    on_one_and_two_cores(|mut cores| {
        let command = |qos| Query::Command {
            account: ONE,
            device: "d".into(),
            qos,
            payload: b"go"[..].into(),
        };
        let owner = cores.owner("d");
        let refused = cores.ask(owner, command(QoS::AtMostOnce));
        assert_eq!(refused, Answer::Refused(Refusal::NoDevice));
        cores.publish(&format!("{}/json/d", token(ONE)), false, "1");
        assert_eq!(cores.ask(owner, command(QoS::AtMostOnce)), Answer::Done);
        let topic = format!("{}/d/subscribe", token(ONE));
        assert_eq!(cores.sent(0, 0), [format!("PUBLISH {topic} go")]);
        cores.connect(0, 3, Level::V311, false);
        cores.subscribe(0, 3, 1, &topic, QoS::AtLeastOnce);
        cores.carry_all();
        cores.commit_all();
        let ticket = Ticket(7);
        let query = Box::new(command(QoS::AtLeastOnce));
        cores.input(owner, Input::Asked { ticket, query });
        cores.carry_all();
        assert_eq!(cores.answer(owner), None);
        cores.commit_all();
        assert_eq!(cores.answer(owner), Some(Answer::Done));
        cores.enable("d", false);
        let refused = cores.ask(owner, command(QoS::AtMostOnce));
        assert_eq!(refused, Answer::Refused(Refusal::DeviceDisabled));
    });
}

#[test]
fn sessions_are_those_of_the_account_that_are_connected() {
    on_one_and_two_cores(|mut cores| {
        cores.now = Millis(5_000);
        cores.connect(0, 4, Level::V31, false);
        let Answer::Sessions { sessions, next: None } = cores.ask(0, Query::Sessions { account: ONE, from: 0 }) else {
            panic!("a question for sessions is answered with sessions");
        };
        let listed: Vec<_> = sessions
            .iter()
            .map(|session| {
                (
                    &*session.client_id,
                    session.clean_session,
                    session.level,
                    session.connected_ms,
                )
            })
            .collect();
        assert_eq!(listed, [("client-0", true, 4, 0), ("client-4", false, 3, 5_000)]);
        cores.input(0, Input::Disconnected { connection: at(4) });
        let Answer::Sessions { sessions, .. } = cores.ask(0, Query::Sessions { account: ONE, from: 0 }) else {
            panic!("a question for sessions is answered with sessions");
        };
        assert_eq!(sessions.len(), 1, "a durable Session that is away is not listed");
    });
}

#[test]
fn a_channel_that_goes_takes_its_mappings_along() {
    on_one_and_two_cores(|mut cores| {
        for device in ["a", "b"] {
            cores.publish(&format!("{}/json/{device}", token(ONE)), false, "1");
        }
        cores.map("a", 1);
        cores.map("b", 2);
        for core in 0..cores.shards.len() {
            let (account, channel) = (ONE, channel(1));
            assert_eq!(cores.ask(core, Query::UnmapChannel { account, channel }), Answer::Done);
        }
        for device in ["a", "b"] {
            cores.publish(&format!("{}/json/{device}", token(ONE)), false, "5");
        }
        assert_eq!(cores.datapoints(), [(channel(2), r#"b  {"value1":5}"#.to_owned())]);
    });
}

#[test]
fn an_event_is_told_for_each_datapoint_that_meets_it() {
    for count in [1, 2] {
        let event = Event {
            event_id: 12,
            channel: Some(channel(3)),
            is_enabled: true,
            source: "temp".to_owned(),
            operator: Operator::Greater,
            threshold: "30".to_owned(),
            ..Event::default()
        };
        let mut cores = cores(count, access(account(ONE), vec![event]));
        let topic = format!("{}/json/d", token(ONE));
        cores.publish(&topic, false, "1");
        cores.map("d", 3);
        for payload in [r#"{"temp":31.2}"#, r#"{"temp":30}"#, r#"{"rh":50}"#, r#"{"temp":31.2}"#] {
            cores.publish(&topic, false, payload);
        }
        let said = cores.said.iter().flatten();
        let told: Vec<_> = said
            .filter_map(|output| match output {
                Output::Notify(told) => Some((told.event_id, told.channel, &*told.current)),
                _ => None,
            })
            .collect();
        assert_eq!(told, [(12, channel(3), "31.2"), (12, channel(3), "31.2")]);
    }
}

#[test]
fn a_rotated_token_ends_connections_subscriptions_and_retained_messages() {
    on_one_and_two_cores(|mut cores| {
        let old = token(ONE);
        cores.connect(0, 3, Level::V311, false);
        cores.subscribe(0, 3, 1, &format!("{old}/#"), QoS::AtLeastOnce);
        cores.carry_all();
        cores.publish(&format!("{old}/json/d"), false, "1");
        cores.map("d", 4);
        cores.publish(&format!("{old}/x"), true, "kept");
        cores.records();
        let renewed = Account {
            device_token: Token::from_random([0x77; 16]),
            ..account(ONE)
        };
        let before = account(ONE).device_token;
        let accounts = cores.accounts();
        let ended = Ended {
            account: ONE,
            why: EndedWhy::TokenRotated { before },
        };
        cores.change_accounts(accounts.with(renewed.clone(), []), Some(ended));
        let said = cores.said.iter().flatten();
        let closed: Vec<_> = said
            .filter_map(|output| match output {
                Output::Close(connection, reason) => Some((connection.index, *reason)),
                _ => None,
            })
            .collect();
        assert_eq!(closed, [(0, CloseReason::AccountEnded), (3, CloseReason::AccountEnded)]);
        let records = cores.records();
        let unsubscribed =
            |record: &Record| matches!(record, Record::Unsubscribed { filter, .. } if filter.starts_with(&old));
        assert!(records.iter().any(unsubscribed), "{records:?}");
        let cleared = |record: &Record| matches!(record, Record::Retained { payload, .. } if payload.is_empty());
        assert!(records.iter().any(cleared), "{records:?}");
        assert_eq!(cores.shards.iter().map(Shard::retained_count).sum::<usize>(), 0);
        // The device is where it was, under the new token.
        cores.connect(0, 8, Level::V311, true);
        let topic = format!("{}/json/d", renewed.device_token.as_str());
        cores.receive(0, 8, &publish(&topic, QoS::AtLeastOnce, false, 1, b"2"));
        cores.carry_all();
        cores.commit_all();
        assert_eq!(cores.sent(0, 8), ["CONNACK 0", "PUBACK 1"]);
        assert_eq!(cores.datapoints(), [(channel(4), r#"d  {"value1":2}"#.to_owned())]);
    });
}

#[test]
fn a_removed_account_leaves_nothing_and_the_other_stays() {
    on_one_and_two_cores(|mut cores| {
        let own = token(ONE);
        cores.connect(0, 3, Level::V311, false);
        cores.publish(&format!("{own}/json/d"), true, "1");
        let accounts = cores.accounts();
        let device_token = account(ONE).device_token;
        let ended = Ended {
            account: ONE,
            why: EndedWhy::Removed { device_token },
        };
        cores.change_accounts(accounts.without(ONE), Some(ended));
        let count = |of: fn(&Shard) -> usize| cores.shards.iter().map(of).sum::<usize>();
        assert_eq!((count(Shard::session_count), count(Shard::retained_count)), (1, 0));
        assert_eq!(count(|shard| shard.devices.len()), 0);
        let topic = format!("{}/any", token(TWO));
        cores.receive(0, 1, &publish(&topic, QoS::AtMostOnce, false, 0, b"m"));
        cores.carry_all();
        assert_eq!(cores.sent(0, 1), [format!("PUBLISH {topic} m")]);
    });
}

/// What was stored when the broker died while PUBREC had not left: the client sends it again, and it is stored once.
#[test]
fn a_qos_2_datapoint_that_comes_again_after_a_crash_is_stored_once() {
    for count in [1, 2] {
        // A device of another core than the publisher's, which is where the two could part.
        let mut cores = cores(count, access(account(ONE), Vec::new()));
        let device = (0..)
            .map(|n| format!("d{n}"))
            .find(|device| cores.owner(device) == usize::from(count) - 1)
            .unwrap();
        let topic = format!("{}/json/{device}", token(ONE));
        cores.publish(&topic, false, "1");
        cores.map(&device, 1);
        cores.connect(0, 2, Level::V311, false);
        cores.commit_all();
        cores.receive(0, 2, &publish(&topic, QoS::ExactlyOnce, false, 9, b"7"));
        cores.carry_all();
        let records = cores.records();
        let datapoint = records.iter().find_map(|record| match record {
            Record::Datapoint(datapoint) => Some(datapoint),
            _ => None,
        });
        let origin = datapoint.expect("stored").origin;
        assert_eq!(origin.is_some(), count > 1);

        let number = SessionNumber(5);
        let in_doubt = Origin {
            session: number,
            packet_id: packet_id(9),
        };
        let stored = Stored {
            sessions: vec![StoredSession {
                session: number,
                account: ONE,
                client_id: "client-2".into(),
                filters: Vec::new(),
                // On one core the identifier and the datapoint are one unit.
                received: if count == 1 { vec![packet_id(9)] } else { Vec::new() },
                away_since_s: None,
                backlog: None,
            }],
            newest_session: 5,
            in_doubt: origin
                .map(|_| (in_doubt, vec![SessionNumber::STREAM]))
                .into_iter()
                .collect(),
            devices: vec![StoredDevice {
                account: ONE,
                device: device.as_str().into(),
                is_enabled: true,
                channel: Some(channel(1)),
            }],
            ..Stored::default()
        };
        let access = access(account(ONE), Vec::new());
        let mut cores = Cores::with_access(count, Limits::default(), access);
        restore(&mut cores.shards, stored);
        cores.account = ONE;
        let home = cores.shards[0].home(ONE, "client-2").0.into();
        cores.connect(home, 2, Level::V311, false);
        let mut again = Vec::new();
        crate::mqtt::encode::publish(
            &mut again,
            true,
            QoS::ExactlyOnce,
            false,
            &topic,
            Some(packet_id(9)),
            b"7",
        );
        cores.receive(home, 2, &again);
        cores.carry_all();
        cores.commit_all();
        assert!(cores.sent(home, 2).contains(&"PUBREC 9".to_owned()));
        assert_eq!(cores.datapoints(), [], "{count} cores");
    }
}

#[test]
fn a_start_takes_up_what_belongs_to_an_account_and_ends_what_was_a_removed_ones() {
    let own = token(ONE);
    let session = |number, account, filter: &str| StoredSession {
        session: SessionNumber(number),
        account,
        client_id: format!("c{number}").into(),
        filters: vec![(filter.into(), QoS::AtLeastOnce)],
        received: Vec::new(),
        away_since_s: None,
        backlog: None,
    };
    let stored = Stored {
        sessions: vec![
            session(1, AccountId(0), "#"),
            session(2, ONE, &format!("{own}/#")),
            session(3, ONE, "0123456789ABCDEF0123456789ABCDEF/#"),
            session(4, AccountId(9), "0123456789ABCDEF0123456789ABCDEF/#"),
        ],
        newest_session: 4,
        devices: [ONE, AccountId(9)]
            .map(|account| StoredDevice {
                account,
                device: "d".into(),
                is_enabled: true,
                channel: None,
            })
            .into(),
        ..Stored::default()
    };
    let access = access(account(ONE), Vec::new());
    let mut cores = Cores::with_access(2, Limits::default(), access.clone());
    restore(&mut cores.shards, stored);
    (0..2).for_each(|core| assert_eq!(cores.input(core, Input::Tick), 0));
    let count = |of: fn(&Shard) -> usize| cores.shards.iter().map(of).sum::<usize>();
    assert_eq!((count(Shard::session_count), count(Shard::filter_count)), (2, 1));
    assert_eq!(count(|shard| shard.devices.len()), 1);
    let Access::Platform(accounts) = access else {
        unreachable!("made so");
    };
    assert_eq!(accounts.tenant(ONE).unwrap().device_count(), 1);
    let said: Vec<_> = cores
        .records()
        .iter()
        .map(|record| match record {
            Record::Unsubscribed { session, .. } => ("unsubscribed", session.0),
            Record::SessionEnded { session } => ("ended", session.0),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        BTreeSet::from_iter(said),
        BTreeSet::from([("unsubscribed", 3), ("ended", 4)])
    );
}

#[test]
fn client_identifiers_of_two_accounts_do_not_disturb_each_other() {
    on_one_and_two_cores(|mut cores| {
        cores.account = TWO;
        // The place of another client 0: the same identifier in another account.
        let connect = client_zero();
        let input = Input::Connected {
            connection: at(20),
            connect: Box::new(connect),
            account: TWO,
        };
        cores.input(0, input);
        let closed = cores
            .said
            .iter()
            .flatten()
            .any(|output| matches!(output, Output::Close(..)));
        assert!(!closed);
        let mut bytes = Vec::new();
        client::pingreq(&mut bytes);
        cores.receive(0, 0, &bytes);
        assert_eq!(cores.sent(0, 0), ["PingResp"]);
    });
}

fn client_zero() -> crate::mqtt::packet::Connect {
    crate::mqtt::packet::Connect {
        level: Level::V311,
        clean_session: true,
        keep_alive_s: 0,
        client_id: "client-0".to_owned(),
        will: None,
        user_name: None,
        password: None,
    }
}
