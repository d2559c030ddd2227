//! What the tables of the device platform say of each other.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Check;
use crate::registry::access::AccountId;
use crate::registry::channel::ChannelId;
use crate::registry::datapoint::DatapointId;
use crate::store::lmdb::{Fault, Table, View};
use crate::store::schema::platform::{self, Generation, Purge, StreamNumber, Tag};
use crate::store::streams::Usage;

/// What was read so far.
#[derive(Default)]
struct Platform {
    accounts: HashSet<AccountId>,
    /// Those that are being deleted.
    gone_accounts: HashSet<AccountId>,
    channels: HashSet<(AccountId, ChannelId)>,
    /// Each with its account.
    streams: HashMap<StreamNumber, AccountId>,
    gone_streams: HashSet<StreamNumber>,
    /// Generations since when datapoints live.
    gone_tags: HashMap<StreamNumber, BTreeMap<Box<str>, Generation>>,
    /// Rows of `tags`, by stream.
    tags: HashMap<StreamNumber, u64>,
    usage: HashMap<AccountId, Usage>,
}

impl Platform {
    fn is_known(&self, account: AccountId) -> bool {
        self.accounts.contains(&account) || self.gone_accounts.contains(&account)
    }
}

impl Check {
    pub(super) fn platform(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let mut platform = Platform::default();
        self.accounts(view, &mut platform)?;
        self.purges(view, &mut platform)?;
        self.channels(view, &mut platform)?;
        self.devices(view, &platform)?;
        self.events(view, &platform)?;
        self.tags(view, &mut platform)?;
        self.datapoints(view, &platform)?;
        self.usage(view, platform)
    }

    fn accounts(&mut self, view: &View<'_>, platform: &mut Platform) -> Result<(), Fault> {
        let mut users = HashSet::new();
        let mut twice = Vec::new();
        self.each(view, Table::Accounts, |key, value| {
            platform.accounts.insert(platform::decode_account_key(key)?);
            let account = platform::decode_account(key, value)?;
            if !users.insert(account.user_id.clone()) {
                twice.push(account.user_id);
            }
            Ok(None)
        })?;
        for user in twice {
            self.find(format!("account {user}: another one has this name too"));
        }
        let newest = platform.accounts.iter().max().map_or(0, |account| account.0);
        if u64::from(newest) > self.newest_account {
            let known = self.newest_account;
            self.find(format!("account number {newest} is newer than the newest, {known}"));
        }
        Ok(())
    }

    fn purges(&mut self, view: &View<'_>, platform: &mut Platform) -> Result<(), Fault> {
        self.each(view, Table::Purges, |key, value| {
            match platform::decode_purge_key(key)? {
                Purge::Account(account) => {
                    crate::store::schema::decode_mark(key, value)?;
                    platform.gone_accounts.insert(account);
                }
                Purge::Stream(stream) => {
                    crate::store::schema::decode_mark(key, value)?;
                    platform.gone_streams.insert(stream);
                }
                Purge::Tag(stream, tag) => {
                    let purge = platform::decode_tag_purge(key, value)?;
                    let tags = platform.gone_tags.entry(stream).or_default();
                    tags.insert(tag, purge.generation);
                }
            }
            Ok(None)
        })?;
        let both: Vec<_> = platform.accounts.intersection(&platform.gone_accounts).collect();
        for account in both {
            self.find(format!("account number {} is removed and is not", account.0));
        }
        Ok(())
    }

    fn channels(&mut self, view: &View<'_>, platform: &mut Platform) -> Result<(), Fault> {
        let mut wrong = Vec::new();
        let newest_stream = self.newest_stream;
        self.each(view, Table::Channels, |key, value| {
            let (account, channel) = platform::decode_channel_key(key)?;
            platform.channels.insert((account, channel));
            let (stream, _) = platform::decode_channel(key, value)?;
            let what = if !platform.is_known(account) {
                "its account is not there"
            } else if platform.gone_streams.contains(&stream) {
                "its stream is removed"
            } else if platform.streams.insert(stream, account).is_some() {
                "its stream is that of another channel too"
            } else if stream.0 > newest_stream {
                "its stream is newer than the newest"
            } else {
                return Ok(None);
            };
            wrong.push(format!(
                "channel {} of account number {}: {what}",
                channel.number(),
                account.0
            ));
            Ok(None)
        })?;
        wrong.into_iter().for_each(|finding| self.find(finding));
        Ok(())
    }

    fn devices(&mut self, view: &View<'_>, platform: &Platform) -> Result<(), Fault> {
        let mut wrong = Vec::new();
        self.each(view, Table::Devices, |key, value| {
            let (account, device) = platform::decode_device_key(key)?;
            let entry = platform::decode_device(key, value)?;
            if !platform.is_known(account) {
                wrong.push(format!(
                    "device {device:?} of account number {}: its account is not there",
                    account.0
                ));
            } else if let Some(channel) = entry.channel
                && platform.accounts.contains(&account)
                && !platform.channels.contains(&(account, channel))
            {
                wrong.push(format!(
                    "device {device:?} of account number {}: channel {}, which it is mapped to, is not there",
                    account.0,
                    channel.number()
                ));
            }
            Ok(None)
        })?;
        let mut orphans = Vec::new();
        self.each(view, Table::States, |key, value| {
            let (account, device) = platform::decode_device_key(key)?;
            platform::decode_state(key, value)?;
            if platform.accounts.contains(&account) {
                orphans.push((key.to_vec(), account, Box::from(device)));
            }
            Ok(None)
        })?;
        for (key, account, device) in orphans {
            let device: Box<str> = device;
            if view.row(Table::Devices, &key)?.is_none() {
                wrong.push(format!(
                    "the state of device {device:?} of account number {}: there is no such device",
                    account.0
                ));
            }
        }
        wrong.into_iter().for_each(|finding| self.find(finding));
        Ok(())
    }

    fn events(&mut self, view: &View<'_>, platform: &Platform) -> Result<(), Fault> {
        let mut wrong = Vec::new();
        self.each(view, Table::Events, |key, value| {
            let (account, number) = platform::decode_event_key(key)?;
            let event = platform::decode_event(key, value)?;
            if !platform.is_known(account) {
                wrong.push(format!(
                    "event {number} of account number {}: its account is not there",
                    account.0
                ));
            } else if let Some(channel) = event.channel
                && platform.accounts.contains(&account)
                && !platform.channels.contains(&(account, channel))
            {
                wrong.push(format!(
                    "event {number} of account number {}: channel {}, which it watches, is not there",
                    account.0,
                    channel.number()
                ));
            }
            Ok(None)
        })?;
        wrong.into_iter().for_each(|finding| self.find(finding));
        Ok(())
    }

    /// Adds up what the accounts must have.
    fn tags(&mut self, view: &View<'_>, platform: &mut Platform) -> Result<(), Fault> {
        let mut lost = Vec::new();
        self.each(view, Table::Tags, |key, value| {
            let (stream, tag) = platform::decode_tag_key(key)?;
            let row = platform::decode_tag(key, value)?;
            *platform.tags.entry(stream).or_default() += 1;
            match platform.streams.get(&stream) {
                // A removed account has no usage.
                Some(account) if platform.accounts.contains(account) => {
                    platform.usage.entry(*account).or_default().add_all(row.usage);
                }
                Some(_) => {}
                None if platform.gone_streams.contains(&stream) => {}
                None => lost.push(format!(
                    "tag {tag:?} of stream {}: no channel has this stream",
                    stream.0
                )),
            }
            Ok(None)
        })?;
        lost.into_iter().for_each(|finding| self.find(finding));
        Ok(())
    }

    /// They sort by stream: each stream is counted once, and held against its tags.
    fn datapoints(&mut self, view: &View<'_>, platform: &Platform) -> Result<(), Fault> {
        let mut counted: Option<(StreamNumber, BTreeMap<Box<str>, Tag>)> = None;
        let mut held = HashSet::new();
        for row in view.rows(Table::Datapoints)? {
            let (key, value) = row?;
            let (stream, id) = match platform::decode_datapoint_key(key) {
                Ok(place) => place,
                Err(error) => {
                    self.unusable(Table::Datapoints, key, error);
                    continue;
                }
            };
            if counted.as_ref().is_none_or(|(of, _)| *of != stream)
                && let Some((of, tags)) = counted.replace((stream, BTreeMap::new()))
            {
                held.insert(of);
                self.stream(view, platform, of, &tags)?;
            }
            let datapoint = match platform::decode_datapoint(key, value) {
                Ok(datapoint) => datapoint,
                Err(error) => {
                    self.unusable(Table::Datapoints, key, error);
                    continue;
                }
            };
            let gone = platform
                .gone_tags
                .get(&stream)
                .and_then(|tags| tags.get(datapoint.row.tag));
            if gone.is_some_and(|since| datapoint.generation < *since) {
                self.dead_datapoints += 1;
            } else if let Some((_, tags)) = &mut counted {
                add(tags, datapoint.row.tag, id, datapoint.bytes);
            }
        }
        if let Some((of, tags)) = counted {
            held.insert(of);
            self.stream(view, platform, of, &tags)?;
        }
        for (stream, rows) in &platform.tags {
            if !held.contains(stream) && platform.streams.contains_key(stream) {
                self.find(format!("stream {}: {rows} tags, and no datapoints", stream.0));
            }
        }
        Ok(())
    }

    fn stream(
        &mut self,
        view: &View<'_>,
        platform: &Platform,
        stream: StreamNumber,
        counted: &BTreeMap<Box<str>, Tag>,
    ) -> Result<(), Fault> {
        let number = stream.0;
        if !platform.streams.contains_key(&stream) {
            let count: u64 = counted.values().map(|tag| tag.usage.count).sum();
            match platform.gone_streams.contains(&stream) {
                true => self.dead_datapoints += count,
                false => self.find(format!(
                    "stream {number}: {count} datapoints, and no channel has this stream"
                )),
            }
            return Ok(());
        }
        let mut key = Vec::new();
        for (name, counted) in counted {
            platform::tag_key(stream, name, &mut key);
            let stored = view
                .row(Table::Tags, &key)?
                .map(|value| platform::decode_tag(&key, value));
            match stored {
                Some(Ok(stored)) if stored.usage == counted.usage && stored.newest >= counted.newest => {}
                // That is said where it is read.
                Some(Err(_)) => {}
                other => {
                    let stored = other.and_then(Result::ok).unwrap_or_default();
                    self.find(format!(
                        "stream {number}, tag {name:?}: it should have {} datapoints of {} bytes, and has {} of {}",
                        stored.usage.count, stored.usage.bytes, counted.usage.count, counted.usage.bytes
                    ));
                }
            }
        }
        let rows = platform.tags.get(&stream).copied().unwrap_or(0);
        let more = rows.saturating_sub(counted.len() as u64);
        if more > 0 {
            self.find(format!("stream {number}: {more} tags have no datapoints"));
        }
        Ok(())
    }

    fn usage(&mut self, view: &View<'_>, mut platform: Platform) -> Result<(), Fault> {
        let mut stored = HashMap::new();
        self.each(view, Table::Usage, |key, value| {
            stored.insert(platform::decode_account_key(key)?, platform::decode_usage(key, value)?);
            Ok(None)
        })?;
        let mut accounts: Vec<_> = stored.keys().chain(platform.usage.keys()).copied().collect();
        accounts.sort_unstable();
        accounts.dedup();
        for account in accounts {
            let counted = platform.usage.remove(&account).unwrap_or_default();
            let stored = stored.get(&account).copied().unwrap_or_default();
            self.datapoints += counted.count;
            self.datapoint_bytes += counted.bytes;
            if stored != counted {
                self.find(format!(
                    "account number {}: it should have {} datapoints of {} bytes, its channels have {} of {}",
                    account.0, stored.count, stored.bytes, counted.count, counted.bytes
                ));
            }
        }
        Ok(())
    }
}

fn add(tags: &mut BTreeMap<Box<str>, Tag>, name: &str, id: DatapointId, bytes: u64) {
    // Mostly the tag is there: no text is made for it.
    let tag = match tags.get_mut(name) {
        Some(tag) => tag,
        None => tags.entry(name.into()).or_default(),
    };
    tag.newest = id;
    tag.usage.add(bytes);
}
