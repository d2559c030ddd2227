//! Who may connect, and who may use which topic.
//!
//! Called by `shard::greeting` (CONNECT) and by `shard` (PUBLISH, SUBSCRIBE). Holds no state of a client.

use crate::mqtt::packet::Connect;
use crate::mqtt::reason::ConnectReturnCode;
use crate::mqtt::topic::{TopicFilter, TopicName};

/// A tenant. Client identifiers are unique within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(pub u32);

/// The rules of a run; an immutable value that every core holds.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// `--access open`: anyone, any topic. One account for all.
    #[default]
    Open,
}

impl Access {
    /// The account of a CONNECT, or the return code that refuses it.
    pub fn authenticate(&self, connect: &Connect) -> Result<AccountId, ConnectReturnCode> {
        let _ = connect;
        match self {
            Access::Open => Ok(AccountId(0)),
        }
    }

    pub fn may_publish(&self, account: AccountId, topic: TopicName<'_>) -> bool {
        let _ = (account, topic);
        match self {
            Access::Open => true,
        }
    }

    pub fn may_subscribe(&self, account: AccountId, filter: TopicFilter<'_>) -> bool {
        let _ = (account, filter);
        match self {
            Access::Open => true,
        }
    }
}
