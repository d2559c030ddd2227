//! Channels and mapped devices, made before anything is sent.
//!
//! Called  by `telemetry`.
//! Holds   - what an earlier run has made is used again: one list of each says what is lacking;
//!         - each device is enabled and mapped to its channel when this returns.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use anyhow::{Result, bail};

use super::{Plan, device_id};
use crate::api::{Api, Device};
use crate::progress::{End, Progress};

pub fn prepare(api: &Api, plan: &Plan) -> Result<()> {
    let start = Instant::now();
    let now_ns = || start.elapsed().as_nanos() as u64;
    let mut progress = Progress::new(End::At(u64::from(plan.channels)));
    let present: HashSet<u32> = api.channels()?.into_iter().collect();
    for index in 0..plan.channels {
        let channel = plan.channel(index);
        if !present.contains(&channel) {
            api.create_channel(channel)?;
            progress.count(now_ns(), u64::from(index), "channels");
        }
    }
    drop(progress);
    let mut progress = Progress::new(End::At(plan.devices as u64));
    let devices = api.devices()?.into_iter();
    let mut known: HashMap<String, Device> = devices.map(|device| (device.device_id.clone(), device)).collect();
    for index in 0..plan.devices {
        let (id, channel) = (device_id(index), plan.channel_of(index));
        match known.get(&id) {
            Some(device) if device.enabled && device.mapped_ch == Some(channel) => continue,
            Some(_) => api.map_device(&id, channel)?,
            None => {
                let device = Device {
                    device_id: id.clone(),
                    enabled: true,
                    mapped_ch: Some(channel),
                };
                if !api.create_device(&device)? {
                    bail!(
                        "the account takes no more than the {} devices it has, {} are wanted: raise its device limit",
                        known.len(),
                        plan.devices
                    );
                }
                known.insert(id, device);
            }
        }
        progress.count(now_ns(), index as u64, "devices");
    }
    Ok(())
}
