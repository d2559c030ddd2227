//! What the streams hold of a run, datapoint by datapoint.
//!
//! Called  by `telemetry`, after every device has its answers.
//! Holds   - a channel is read from the start of the run on, oldest first, a page at a time; the next page begins with the
//!           second the last one ended in, and what was in both is told by its id: ids grow within a channel;
//!         - each device's datapoints are to be all there, in the order they were sent (`sequence`), in its own channel.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Plan, payload};
use crate::api::{Api, Range};
use crate::progress::{End, Progress};
use crate::sequence::{Faults, Streams};

#[derive(Clone, Debug, Default, Serialize)]
pub struct ReadBack {
    pub seconds: f64,
    pub calls: u64,
    /// Datapoints of this run.
    pub found: u64,
    pub faults: Faults,
    /// In the channel of another device.
    pub misplaced: u64,
    /// With an id that is not greater than the one before it.
    pub unsorted: u64,
    /// Of others.
    pub foreign: u64,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    stream: Vec<Row<'a>>,
}

#[derive(Deserialize)]
struct Row<'a> {
    _id: &'a str,
    at: &'a str,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// `sent` tells how many messages each device has sent.
pub fn run(api: &Api, plan: &Plan, sent: impl Fn(usize) -> u64) -> Result<ReadBack> {
    let start = Instant::now();
    let mut progress = Progress::new(End::At((0..plan.devices).map(&sent).sum()));
    let mut whole = ReadBack::default();
    let mut streams = Streams::new(plan.devices);
    for index in 0..plan.channels {
        let channel = plan.channel(index);
        let mut from = plan.from.clone();
        let mut last_id = String::new();
        loop {
            let until = &plan.until;
            let answer = api.stream(Range {
                channel,
                from: &from,
                until,
            })?;
            whole.calls += 1;
            let page: Page<'_> =
                serde_json::from_str(&answer.body).with_context(|| format!("the stream of channel {channel}"))?;
            // Those of the second that both pages have.
            let known = page
                .stream
                .iter()
                .take_while(|row| row._id <= last_id.as_str() && row.at == from);
            let known = known.count();
            for row in &page.stream[known..] {
                whole.unsorted += u64::from(row._id <= last_id.as_str());
                last_id.replace_range(.., row._id);
                match payload::read(row.value.get()).filter(|datapoint| datapoint.run == plan.run) {
                    None => whole.foreign += 1,
                    Some(datapoint)
                        if datapoint.device >= plan.devices || plan.channel_of(datapoint.device) != channel =>
                    {
                        whole.misplaced += 1;
                    }
                    Some(datapoint) => {
                        whole.found += 1;
                        streams.receive(datapoint.device, datapoint.sequence);
                    }
                }
            }
            if !answer.is_truncated {
                break;
            }
            match page.stream.last() {
                Some(row) if row.at != from => from.replace_range(.., row.at),
                _ => bail!(
                    "channel {channel} has more datapoints of {from} than one answer holds: spread the devices over more --channels"
                ),
            }
        }
        progress.count(start.elapsed().as_nanos() as u64, whole.found, "datapoints read back");
    }
    for device in 0..plan.devices {
        streams.finish(device, sent(device));
    }
    whole.faults = streams.faults();
    whole.seconds = start.elapsed().as_secs_f64();
    Ok(whole)
}
