//! A message of the platform at the owner of its topic, before anybody gets it: whether it passes, and what of it is kept.
//!
//! Owns    the devices of this core, and the ids of the datapoints it makes.
//! Called  by `shard::topic` for every message, Wills among them, and by `shard::asked` for what came over HTTP: one pipeline.
//! Gives   datapoints, state reports and new devices to the store, and what an event waits for to the control thread.
//! Holds   - what is refused is neither kept nor routed, and acknowledged like anything else: a publisher cannot be told;
//!         - an acknowledgement waits for everything that this has written;
//!         - a QoS 2 message that comes again after a crash is kept once, as it is delivered once.

use crate::ingest::pipeline::{self, Outcome, Refused};
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

/// What became of a message, and the record that an acknowledgement of it waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub outcome: Outcome,
    /// The device was new.
    pub is_registered: bool,
    pub record: Option<RecordNumber>,
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
        let taken = match purpose {
            // It clears a retained message, no more.
            _ if message.payload.is_empty() => return (true, None),
            Purpose::Other => return (true, None),
            Purpose::State { device } => self.take_state(account, device, message.payload),
            Purpose::Data { format, device, tag } => {
                let data = Data {
                    account,
                    device,
                    tag: tag.unwrap_or_default(),
                    format,
                    payload: message.payload,
                    origin,
                    is_awaited,
                };
                self.take_data(&data).expect("its account was found just now")
            }
        };
        (taken.outcome.is_routed(), taken.record)
    }

    /// Data: device, `enabled`, `mapped_ch`, payload, store, events. `None`: the account is gone.
    pub(super) fn take_data(&mut self, data: &Data<'_>) -> Option<Taken> {
        let Access::Platform(accounts) = &self.access else {
            return None;
        };
        let tenant = accounts.tenant(data.account)?;
        let known = self.devices.get(data.account, data.device);
        self.value.clear();
        let verdict = pipeline::data(
            data.format,
            data.payload,
            known,
            tenant.account.default_channel,
            || tenant.take_device(),
            &mut self.value,
        );
        let registered = verdict
            .registers
            .map(|entry| self.register_device(data.account, data.device, entry));
        let stored = match verdict.outcome {
            Outcome::Kept(channel) => self.store_datapoint(data, channel),
            Outcome::Unmapped => None,
            Outcome::Refused(_) => None,
        };
        self.count(verdict.outcome, registered.is_some());
        Some(Taken {
            outcome: verdict.outcome,
            is_registered: registered.is_some(),
            record: registered.max(stored),
        })
    }

    /// A state report registers no device, and counts only where data would.
    fn take_state(&mut self, account: AccountId, device: &str, payload: &[u8]) -> Taken {
        let known = self.devices.get(account, device);
        let mut json = String::new();
        let outcome = pipeline::state(payload, known, &mut json);
        let record = matches!(outcome, Outcome::Kept(_)).then(|| {
            self.counters.state_reports += 1;
            let state = Box::new(DeviceState {
                json: json.into(),
                at_ms: self.unix_now_ms(),
            });
            let device = device.into();
            self.persist(Record::DeviceReported { account, device, state })
        });
        self.count(outcome, known.is_none());
        Taken {
            outcome,
            is_registered: false,
            record,
        }
    }

    /// What is not kept is counted by why; that a device is new is no refusal.
    fn count(&mut self, outcome: Outcome, is_unknown: bool) {
        let counters = &mut self.counters;
        let reason = match outcome {
            Outcome::Kept(_) => return,
            Outcome::Unmapped if is_unknown => return,
            Outcome::Unmapped => {
                counters.refused_unmapped += 1;
                return;
            }
            Outcome::Refused(Refused::Disabled) => &mut counters.refused_disabled,
            Outcome::Refused(Refused::BadPayload) => &mut counters.refused_bad_payload,
            Outcome::Refused(Refused::DeviceLimit) => &mut counters.refused_device_limit,
        };
        *reason += 1;
        counters.publishes_refused += 1;
    }

    fn register_device(&mut self, account: AccountId, device: &str, entry: Entry) -> RecordNumber {
        let activated_ms = self.unix_now_ms();
        let is_new = self.devices.insert(account, device, entry);
        assert!(is_new, "looked up just now");
        self.counters.devices_registered += 1;
        self.persist(Record::DeviceRegistered {
            account,
            device: device.into(),
            entry: Box::new(Device::new(entry.channel, activated_ms)),
        })
    }

    /// Stores what the pipeline has left in `value`. `None`: the stream has it already.
    fn store_datapoint(&mut self, data: &Data<'_>, channel: ChannelId) -> Option<RecordNumber> {
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
            value: &self.value,
        };
        let row = row.pack();
        // On one core the identifier is on disk before its message, in the same unit: nothing is in doubt.
        let origin = data.origin.filter(|_| self.cores > 1).map(|doubt| doubt.origin);
        self.counters.datapoints += 1;
        let record = self.persist(Record::Datapoint(Box::new(Datapoint {
            account,
            channel,
            id,
            row,
            origin,
            is_awaited: data.is_awaited,
        })));
        self.look_for_events(account, channel, id.at_ms());
        Some(record)
    }

    fn look_for_events(&mut self, account: AccountId, channel: ChannelId, at_ms: u64) {
        let Access::Platform(accounts) = &self.access else {
            return;
        };
        let events = accounts.tenant(account).and_then(|tenant| tenant.events.get(&channel));
        for event in events.into_iter().flatten() {
            if let Some(current) = trigger::matches(event, &self.value) {
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
}
