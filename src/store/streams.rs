//! What is asked of devices and streams, and what is found: plain data between the store and whoever reads it.

use crate::registry::datapoint::DatapointId;
use crate::registry::device::{Device, DeviceState};

/// A device by its id, with its last state report.
pub type FoundDevice = (Box<str>, Device, Option<DeviceState>);

/// What an account or a tag has of datapoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub count: u64,
    /// Keys and values.
    pub bytes: u64,
}

/// A tag that has datapoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagUsage {
    /// `""`: the datapoints without a tag.
    pub tag: Box<str>,
    /// When its newest datapoint came, in milliseconds of Unix time.
    pub last_ms: u64,
    pub count: u64,
}

/// Which datapoints of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapointRange {
    /// Both are included.
    pub from: DatapointId,
    pub to: DatapointId,
    /// Only these. `None`: tagged and untagged together.
    pub tag: Option<Box<str>>,
    pub newest_first: bool,
    pub rows_max: usize,
}

/// In the order that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub rows: Vec<FoundDatapoint>,
    /// There are more.
    pub is_cut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDatapoint {
    pub id: DatapointId,
    pub tag: Option<Box<str>>,
    /// A JSON object.
    pub value: Box<str>,
}

impl Usage {
    pub(super) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }

    pub(super) fn add_all(&mut self, other: Usage) {
        self.count += other.count;
        self.bytes += other.bytes;
    }

    /// Counts that were damaged may be too small.
    pub(super) fn subtract(&mut self, other: Usage) {
        self.count = self.count.saturating_sub(other.count);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}
