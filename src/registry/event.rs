//! An event: a threshold rule on a channel, and whom it tells.

use super::channel::ChannelId;

/// How a match is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyType {
    Email,
    #[default]
    Http,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Operator {
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
    #[serde(rename = "<=")]
    LessOrEqual,
    #[serde(rename = ">=")]
    GreaterOrEqual,
    #[default]
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
}

impl Operator {
    pub const fn as_str(self) -> &'static str {
        match self {
            Operator::Less => "<",
            Operator::Greater => ">",
            Operator::LessOrEqual => "<=",
            Operator::GreaterOrEqual => ">=",
            Operator::Equal => "=",
            Operator::NotEqual => "!=",
        }
    }
}

/// As it is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    pub event_id: u32,
    pub channel: Option<ChannelId>,
    pub description: String,
    pub notify_type: NotifyType,
    pub post_url: String,
    pub is_enabled: bool,
    /// A path into `value`: names with `:` between them.
    pub source: String,
    pub operator: Operator,
    pub threshold: String,
    /// At least so much time between two notifications; 0: none is left out.
    pub interval_ms: u64,
}

/// A datapoint has met an event's rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub account: super::access::AccountId,
    pub event_id: u32,
    pub channel: ChannelId,
    /// The value that met it, as JSON.
    pub current: Box<str>,
    /// Milliseconds of Unix time.
    pub at_ms: u64,
}
