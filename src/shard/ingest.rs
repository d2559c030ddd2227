//! A message of the platform at the owner of its topic, before anybody gets it: whether it passes, and what of it is kept.
//!
//! Owns    the devices of this core, and the ids of the datapoints it makes.
//! Called  by `shard::topic` for every message, Wills among them, and by `shard::asked` for what came over HTTP: one pipeline.
//! Gives   datapoints, state reports and new devices to the store, and what an event waits for to the control thread.
//! Holds   - what is refused is neither kept nor routed, and acknowledged like anything else: a publisher cannot be told;
//!         - an acknowledgement waits for everything that this has written;
//!         - a QoS 2 message that comes again after a crash is kept once, as it is delivered once.

use crate::ingest::payload::{self, BadPayload};
use crate::ingest::pipeline::{self, Verdict};
use crate::ingest::topic::{BadTopic, Format, Purpose, purpose};
use crate::ingest::trigger;
use crate::registry::access::{Access, AccountId};
use crate::registry::channel::ChannelId;
use crate::registry::datapoint::DatapointRow;
use crate::registry::device::{Device, DeviceState};
use crate::registry::devices::Entry;
use crate::registry::event::Notification;

use super::Shard;
use super::event::{Output, RecordNumber};
use super::message::{Doubt, Published};
use super::query::Refusal;
use super::record::{Datapoint, Record, SessionNumber};

/// Data of a device, from wherever it came.
pub(super) struct Data<'a> {
    pub account: AccountId,
    pub device: &'a str,
    /// "": none.
    pub tag: &'a str,
    pub format: Format,
    pub payload: &'a [u8],
    pub origin: Option<Doubt>,
    /// Somebody waits for its record.
    pub is_awaited: bool,
}

/// What became of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored,
    /// The device is new. Its data was kept only if the account maps new devices.
    Registered,
    /// Routed, not kept.
    Unmapped,
    /// Neither.
    Refused(Refusal),
}

impl Outcome {
    pub fn is_routed(self) -> bool {
        !matches!(self, Outcome::Refused(_))
    }
}

impl Shard {
    /// Whether a message goes on to those who want it, and the record that its acknowledgement waits for.
    #[inline]
    pub(super) fn admit(&mut self, published: &Published<'_>, is_awaited: bool) -> (bool, Option<RecordNumber>) {
        match self.access {
            Access::Open => (true, None),
            Access::Platform(_) => self.ingest(published, is_awaited),
        }
    }

    fn ingest(&mut self, published: &Published<'_>, is_awaited: bool) -> (bool, Option<RecordNumber>) {
        let Access::Platform(accounts) = &self.access else {
            return (true, None);
        };
        let Published {
            account,
            message,
            origin,
            ..
        } = *published;
        // The publisher's home has looked already; the token may have been rotated on the way.
        let Some(below) = accounts.below_prefix(account, message.topic.as_str()) else {
            self.counters.publishes_refused += 1;
            self.counters.refused_bad_token += 1;
            return (false, None);
        };
        let purpose = match purpose(below, self.v1_topics) {
            Ok(purpose) => purpose,
            Err(BadTopic) => {
                self.counters.publishes_refused += 1;
                self.counters.refused_bad_topic += 1;
                return (false, None);
            }
        };
        let (outcome, record) = match purpose {
            // It clears a retained message, no more.
            _ if message.payload.is_empty() => return (true, None),
            Purpose::Other => return (true, None),
            Purpose::State { device } => self.take_state(account, device, message.payload),
            Purpose::Data { format, device, tag } => self.take_data(&Data {
                account,
                device,
                tag: tag.unwrap_or_default(),
                format,
                payload: message.payload,
                origin,
                is_awaited,
            }),
        };
        if !outcome.is_routed() {
            self.counters.publishes_refused += 1;
        }
        (outcome.is_routed(), record)
    }

    /// The pipeline: device, `enabled`, `mapped_ch`, payload, store, events.
    pub(super) fn take_data(&mut self, data: &Data<'_>) -> (Outcome, Option<RecordNumber>) {
        let Access::Platform(accounts) = &self.access else {
            return (Outcome::Refused(Refusal::NoAccount), None);
        };
        let Some(tenant) = accounts.tenant(data.account) else {
            return (Outcome::Refused(Refusal::NoAccount), None);
        };
        let entry = self.devices.get(data.account, data.device);
        let default_channel = tenant.account.default_channel;
        match pipeline::judge(entry, default_channel, || tenant.take_device()) {
            Verdict::Store(channel) => match self.store_value(data, channel) {
                Ok(record) => (Outcome::Stored, record),
                Err(BadPayload) => (Outcome::Refused(Refusal::BadPayload), None),
            },
            Verdict::Register(channel) => {
                let registered = self.register_device(data.account, data.device, channel);
                // The first payload of a device counts for what it is: the device is there in any case.
                let stored = channel.map(|channel| self.store_value(data, channel));
                let record = match stored {
                    Some(Ok(Some(stored))) => stored,
                    _ => registered,
                };
                (Outcome::Registered, Some(record))
            }
            Verdict::Unmapped => {
                self.counters.refused_unmapped += 1;
                (Outcome::Unmapped, None)
            }
            Verdict::Disabled => {
                self.counters.refused_disabled += 1;
                (Outcome::Refused(Refusal::DeviceDisabled), None)
            }
            Verdict::DeviceLimit => {
                self.counters.refused_device_limit += 1;
                (Outcome::Refused(Refusal::MaxDeviceReach), None)
            }
        }
    }

    fn register_device(&mut self, account: AccountId, device: &str, channel: Option<ChannelId>) -> RecordNumber {
        let activated_ms = self.unix_now_ms();
        let entry = Entry {
            is_enabled: true,
            channel,
        };
        let is_new = self.devices.insert(account, device, entry);
        assert!(is_new, "looked up just now");
        self.counters.devices_registered += 1;
        self.persist(Record::DeviceRegistered {
            account,
            device: device.into(),
            entry: Box::new(Device::new(channel, activated_ms)),
        })
    }

    /// `None`: the stream has it already.
    fn store_value(&mut self, data: &Data<'_>, channel: ChannelId) -> Result<Option<RecordNumber>, BadPayload> {
        let mut value = std::mem::take(&mut self.value);
        value.clear();
        let made = payload::value(data.format, data.payload, &mut value);
        let stored = match made {
            Ok(()) => Ok(self.store_datapoint(data, channel, &value)),
            Err(BadPayload) => {
                self.counters.refused_bad_payload += 1;
                Err(BadPayload)
            }
        };
        self.value = value;
        stored
    }

    fn store_datapoint(&mut self, data: &Data<'_>, channel: ChannelId, value: &str) -> Option<RecordNumber> {
        let account = data.account;
        if let Some(doubt) = data.origin
            && doubt.is_again
            && let Some(have_it) = self.in_doubt.get(&doubt.origin)
            && have_it.contains(&SessionNumber::STREAM)
        {
            return None;
        }
        let now_ms = self.unix_now_ms();
        let id = self.datapoint_ids.next(now_ms);
        let row = DatapointRow {
            tag: data.tag,
            device: data.device,
            value,
        };
        // On one core the identifier is on disk before its message, in the same unit: nothing is in doubt.
        let origin = data.origin.filter(|_| self.cores > 1).map(|doubt| doubt.origin);
        self.counters.datapoints += 1;
        let record = self.persist(Record::Datapoint(Box::new(Datapoint {
            account,
            channel,
            id,
            row: row.pack(),
            origin,
            is_awaited: data.is_awaited,
        })));
        self.look_for_events(account, channel, value, id.at_ms());
        Some(record)
    }

    fn look_for_events(&mut self, account: AccountId, channel: ChannelId, value: &str, at_ms: u64) {
        let Access::Platform(accounts) = &self.access else {
            return;
        };
        let events = accounts.tenant(account).and_then(|tenant| tenant.events.get(&channel));
        for event in events.into_iter().flatten() {
            if let Some(current) = trigger::matches(event, value) {
                self.outputs.push_back(Output::Notify(Box::new(Notification {
                    account,
                    event_id: event.event_id,
                    channel,
                    current,
                    at_ms,
                })));
            }
        }
    }

    /// A state report registers no device, and counts only where data would.
    fn take_state(&mut self, account: AccountId, device: &str, bytes: &[u8]) -> (Outcome, Option<RecordNumber>) {
        match self.devices.get(account, device) {
            None => return (Outcome::Unmapped, None),
            Some(Entry { is_enabled: false, .. }) => {
                self.counters.refused_disabled += 1;
                return (Outcome::Refused(Refusal::DeviceDisabled), None);
            }
            Some(Entry { channel: None, .. }) => {
                self.counters.refused_unmapped += 1;
                return (Outcome::Unmapped, None);
            }
            Some(_) => {}
        }
        let mut json = String::new();
        if let Err(BadPayload) = payload::state(bytes, &mut json) {
            self.counters.refused_bad_payload += 1;
            return (Outcome::Refused(Refusal::BadPayload), None);
        }
        self.counters.state_reports += 1;
        let state = Box::new(DeviceState {
            json: json.into(),
            at_ms: self.unix_now_ms(),
        });
        let device = device.into();
        let record = self.persist(Record::DeviceReported { account, device, state });
        (Outcome::Stored, Some(record))
    }
}
