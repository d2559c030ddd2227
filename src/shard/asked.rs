//! Questions of the control thread, and changes of the accounts.
//!
//! Called  on `Input::Asked` and `Input::Accounts`, and by `shard::receipt`'s answers to who asked.
//! Holds   - an answer follows what it says onto the disk;
//!         - who asks is bounded by the control thread, so nobody is held back here.

use crate::ingest::pipeline::{Outcome, Refused};
use crate::ingest::topic::Format;
use crate::mqtt::packet::{Level, QoS};
use crate::mqtt::topic::{TopicFilter, TopicName};
use crate::registry::access::{Access, AccountId, AccountsChange, Ended, EndedWhy};
use crate::registry::account::Token;
use crate::registry::device::{Device, DeviceChange};
use crate::registry::devices::Entry;
use crate::routing::subscriptions::Unsubscribed;
use crate::session::message::Message;

use super::Shard;
use super::event::{CloseReason, ConnectionId, Output};
use super::ingest::{Data, Taken};
use super::message::Published;
use super::query::{Answer, ConnectedSession, Query, Refusal, SentFormat, Ticket};
use super::receipt::{Asker, Sender, Then, Told};
use super::record::Record;
use crate::limits::SESSION_SLOTS_PER_QUESTION;

impl Shard {
    pub(super) fn asked(&mut self, ticket: Ticket, query: Query) {
        match query {
            Query::Send {
                account,
                device,
                tag,
                payload,
                format,
            } => self.send_for(ticket, account, &device, tag.as_deref(), &payload, format),
            Query::Command {
                account,
                device,
                qos,
                payload,
            } => self.command(ticket, account, &device, qos, &payload),
            Query::CreateDevice {
                account,
                device,
                change,
            } => self.create_device(ticket, account, &device, &change),
            Query::ChangeDevice {
                account,
                device,
                change,
            } => self.change_device(ticket, account, &device, change),
            Query::RemoveDevice { account, device } => self.remove_device(ticket, account, &device),
            Query::UnmapChannel { account, channel } => {
                self.devices.unmap(account, channel);
                self.tell_now(ticket, Told::Done);
            }
            Query::Settled => self.tell_now(ticket, Told::Done),
            Query::Sessions { account, from } => self.list_sessions(ticket, account, from),
        }
    }

    /// Everything that an answer waits for is done.
    pub(super) fn tell(&mut self, asker: Asker) {
        self.tell_now(asker.ticket, asker.then);
    }

    fn tell_now(&mut self, ticket: Ticket, told: Told) {
        let answer = match told {
            Told::Done => Answer::Done,
            Told::Registered => Answer::Registered,
            Told::Refused(refusal) => Answer::Refused(refusal),
        };
        self.outputs.push_back(Output::Answer(Box::new((ticket, answer))));
    }

    fn refuse_asker(&mut self, ticket: Ticket, refusal: Refusal) {
        self.tell_now(ticket, Told::Refused(refusal));
    }

    /// The token of an account, which its topics begin with.
    fn token(&self, account: AccountId) -> Option<Token> {
        match &self.access {
            Access::Open => None,
            Access::Platform(accounts) => Some(accounts.tenant(account)?.account.device_token),
        }
    }

    /// Data that came over HTTP: kept as if it had been published, and given to whoever subscribes to that.
    fn send_for(
        &mut self,
        ticket: Ticket,
        account: AccountId,
        device: &str,
        tag: Option<&str>,
        payload: &[u8],
        format: SentFormat,
    ) {
        let Some(token) = self.token(account) else {
            return self.refuse_asker(ticket, Refusal::NoAccount);
        };
        let (format, topic) = match (format, tag) {
            (SentFormat::Json, None) => (Format::Json, format!("{}/json/{device}", token.as_str())),
            (SentFormat::Json, Some(tag)) => (Format::Json, format!("{}/json/{device}/{tag}", token.as_str())),
            (SentFormat::V1, _) => (Format::V1, format!("{}/{device}", token.as_str())),
        };
        let taken = self.take_data(&Data {
            account,
            device,
            tag: tag.unwrap_or_default(),
            format,
            payload,
            origin: None,
            is_awaited: true,
        });
        let Some(Taken {
            outcome,
            is_registered,
            record,
        }) = taken
        else {
            return self.refuse_asker(ticket, Refusal::NoAccount);
        };
        let then = match outcome {
            Outcome::Kept(_) | Outcome::Unmapped if is_registered => Told::Registered,
            Outcome::Kept(_) => Told::Done,
            Outcome::Unmapped => Told::Refused(Refusal::NoMappedChannel),
            Outcome::Refused(refused) => Told::Refused(match refused {
                Refused::DeviceLimit => Refusal::MaxDeviceReach,
                Refused::Disabled => Refusal::DeviceDisabled,
                Refused::BadPayload => Refusal::BadPayload,
            }),
        };
        let asker = Asker { ticket, then };
        if !outcome.is_routed() {
            // A device that was registered by it is on disk before anything is said of it.
            return match record {
                Some(record) => self.after_commit(record, Then::Answer(asker)),
                None => self.tell(asker),
            };
        }
        let published = Published {
            account,
            message: Message {
                topic: TopicName::trusted(&topic),
                payload,
                qos: QoS::AtLeastOnce,
            },
            retain: false,
            origin: None,
        };
        let dispatched = self.route_kept(&published, Some(Sender::Asker(asker)), record);
        self.hold_back(None);
        if !dispatched.waits {
            self.tell(asker);
        }
    }

    /// A message for a device, which must be registered.
    fn command(&mut self, ticket: Ticket, account: AccountId, device: &str, qos: QoS, payload: &[u8]) {
        let Some(token) = self.token(account) else {
            return self.refuse_asker(ticket, Refusal::NoAccount);
        };
        match self.devices.get(account, device) {
            None => return self.refuse_asker(ticket, Refusal::NoDevice),
            Some(entry) if !entry.is_enabled => return self.refuse_asker(ticket, Refusal::DeviceDisabled),
            Some(_) => {}
        }
        let topic = format!("{}/{device}/subscribe", token.as_str());
        let published = Published {
            account,
            message: Message {
                topic: TopicName::trusted(&topic),
                payload,
                qos,
            },
            retain: false,
            origin: None,
        };
        let asker = Asker {
            ticket,
            then: Told::Done,
        };
        // QoS 0 waits for nothing, here as over MQTT.
        let sender = (qos != QoS::AtMostOnce).then_some(Sender::Asker(asker));
        let dispatched = self.route_kept(&published, sender, None);
        self.hold_back(None);
        if !dispatched.waits {
            self.tell(asker);
        }
    }

    fn create_device(&mut self, ticket: Ticket, account: AccountId, device: &str, change: &DeviceChange) {
        let tenant = match &self.access {
            Access::Open => None,
            Access::Platform(accounts) => accounts.tenant(account),
        };
        let Some(tenant) = tenant else {
            return self.refuse_asker(ticket, Refusal::NoAccount);
        };
        if self.devices.get(account, device).is_some() {
            return self.refuse_asker(ticket, Refusal::DeviceInUse);
        }
        if !tenant.take_device() {
            return self.refuse_asker(ticket, Refusal::MaxDeviceReach);
        }
        let mut entry = Device::new(tenant.account.default_channel, self.unix_now_ms());
        entry.change(change);
        self.devices.insert(
            account,
            device,
            Entry {
                is_enabled: entry.is_enabled,
                channel: entry.channel,
            },
        );
        let record = self.persist(Record::DeviceRegistered {
            account,
            device: device.into(),
            entry: Box::new(entry),
        });
        self.tell_after(record, ticket);
    }

    fn change_device(&mut self, ticket: Ticket, account: AccountId, device: &str, change: DeviceChange) {
        let Some(mut entry) = self.devices.get(account, device) else {
            return self.refuse_asker(ticket, Refusal::NoDevice);
        };
        entry.is_enabled = change.is_enabled.unwrap_or(entry.is_enabled);
        entry.channel = change.channel.unwrap_or(entry.channel);
        self.devices.set(account, device, entry);
        let record = self.persist(Record::DeviceChanged {
            account,
            device: device.into(),
            change: Box::new(change),
        });
        self.tell_after(record, ticket);
    }

    fn remove_device(&mut self, ticket: Ticket, account: AccountId, device: &str) {
        if !self.devices.remove(account, device) {
            return self.refuse_asker(ticket, Refusal::NoDevice);
        }
        if let Access::Platform(accounts) = &self.access
            && let Some(tenant) = accounts.tenant(account)
        {
            tenant.give_device_back();
        }
        let device = device.into();
        let record = self.persist(Record::DeviceRemoved { account, device });
        self.tell_after(record, ticket);
    }

    fn tell_after(&mut self, record: super::RecordNumber, ticket: Ticket) {
        let then = Told::Done;
        self.after_commit(record, Then::Answer(Asker { ticket, then }));
    }

    fn list_sessions(&mut self, ticket: Ticket, account: AccountId, from: u32) {
        let end = from.saturating_add(SESSION_SLOTS_PER_QUESTION);
        let slots = u32::try_from(self.clients.connections.len()).expect("a connection's index has 32 bits");
        let unix_time = self.unix_time;
        let mut sessions = Vec::new();
        for index in from..end.min(slots) {
            let generation = self.clients.connections[index as usize].generation;
            let id = ConnectionId { index, generation };
            let Some(connection) = self.clients.open_connection(id) else {
                continue;
            };
            let (level, keep_alive_s, client) = (connection.level(), connection.keep_alive_s, connection.client);
            let connected = connection.connected;
            let client = &self.clients.sessions[client as usize];
            if client.account != account {
                continue;
            }
            sessions.push(ConnectedSession {
                connection: id,
                client_id: client.client_id.clone(),
                address: String::new(),
                clean_session: client.is_clean(),
                level: match level {
                    Level::V31 => 3,
                    Level::V311 => 4,
                },
                keep_alive_s,
                connected_ms: unix_time.at_ms(connected.millis()),
            });
        }
        let next = (end < slots).then_some(end);
        let answer = Answer::Sessions { sessions, next };
        self.outputs.push_back(Output::Answer(Box::new((ticket, answer))));
    }

    // --- accounts ----------------------------------------------------------------------------------------------------

    pub(super) fn accounts_changed(&mut self, change: AccountsChange) {
        let AccountsChange { accounts, ended } = change;
        self.access = Access::Platform(accounts);
        self.look_at_quotas();
        let Some(Ended { account, why }) = ended else { return };
        self.close_connections_of(account);
        match why {
            EndedWhy::Suspended => {}
            EndedWhy::TokenRotated { before } => {
                self.unsubscribe_all_of(account);
                self.clear_retained_below(account, &before);
            }
            EndedWhy::Removed { device_token } => {
                for index in self.clients.of_account(account) {
                    self.counters.dropped_session_ended += self.end_session(index);
                }
                self.clear_retained_below(account, &device_token);
                self.devices.remove_account(account);
            }
        }
    }

    fn close_connections_of(&mut self, account: AccountId) {
        for index in self.clients.of_account(account) {
            if let Some(connection) = self.clients.sessions[index as usize].connection {
                self.close(connection, CloseReason::AccountEnded);
            }
        }
    }

    /// Every filter of an account begins with its token: none of them matches anything any more.
    fn unsubscribe_all_of(&mut self, account: AccountId) {
        for index in self.clients.of_account(account) {
            let client = &mut self.clients.sessions[index as usize];
            let session = client.number;
            let filters = std::mem::take(&mut client.filters);
            if let Some(tenant) = self.access.tenant(account) {
                tenant.usage.subscriptions.give_back(filters.len() as u32);
            }
            for filter in filters.as_slice() {
                let text: Box<str> = self.subscriptions.filter_text(*filter).into();
                if let Unsubscribed::LastOnCore(_) = self.subscriptions.unsubscribe_id(*filter, index) {
                    self.withdraw(account, TopicFilter::trusted(&text));
                }
                if !session.is_clean() {
                    self.persist(Record::Unsubscribed { session, filter: text });
                }
            }
        }
    }

    fn clear_retained_below(&mut self, account: AccountId, token: &Token) {
        let filter = format!("{}/#", token.as_str());
        while let Some((topic, retained)) = self.retained.next(TopicFilter::trusted(&filter), None, u64::MAX) {
            let (topic, qos, bytes) = (Box::<str>::from(topic), retained.qos, retained.bytes(topic));
            self.retained.remove(&topic);
            if let Some(tenant) = self.access.tenant(account) {
                tenant.usage.kept.change(bytes, 0);
            }
            let payload = [].into();
            self.persist(Record::Retained { topic, payload, qos });
        }
    }
}
