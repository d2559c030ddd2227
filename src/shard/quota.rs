//! What an account is charged for what this core has of it, and what it may not have (`registry::quota`).
//!
//! Called  by `shard::topic` (a message to retain), `shard::deliver` (a message to keep for a Session; after every change of a
//!         queue), `shard::connect` and `shard::restore`.
//! Holds   - an account is charged for its queues what [`Outbound::waiting_bytes`] says, once the turn that changed it ends;
//!         - a message that is delivered at once looks at no account.

use crate::registry::access::{Access, AccountId};
use crate::session::message::Message;
use crate::session::outbound::{Limits, Outbound};

use super::Shard;
use super::clients::Client;

impl Shard {
    /// After the accounts have changed.
    pub(super) fn look_at_quotas(&mut self) {
        self.limits_kept = self.access.limits_kept();
        self.publish_rate.limits_accounts(self.access.limits_publishes());
    }

    /// Charges the account of a Session for what its queue has become.
    #[inline]
    pub(super) fn charge(&mut self, index: u32) {
        let client = &mut self.clients.sessions[index as usize];
        if let Some(outbound) = &mut client.outbound {
            charge(&self.access, client.account, outbound);
        }
    }

    /// A Session has ended: nothing of it counts any more.
    pub(super) fn give_back_all_of(&self, client: &Client) {
        let Some(tenant) = self.access.tenant(client.account) else {
            return;
        };
        if !client.is_clean() {
            tenant.usage.sessions.give_back(1);
        }
        tenant.usage.subscriptions.give_back(client.filters.len() as u32);
        let charged = client.outbound.as_ref().map_or(0, |outbound| outbound.charged_bytes);
        tenant.usage.kept.change(charged, 0);
    }

    /// Whether a message may become the retained one of its topic, whose account is then charged for it in place of the one
    /// before. What is no larger than that always may.
    pub(super) fn charge_retained(&mut self, account: AccountId, message: &Message<'_>) -> bool {
        let Some(tenant) = self.access.tenant(account) else {
            return true;
        };
        let topic = message.topic.as_str();
        let before = self.retained.get(topic).map_or(0, |retained| retained.bytes(topic));
        let after = match message.payload.len() {
            0 => 0,
            bytes => topic.len() + bytes,
        };
        let is_kept = after <= before || tenant.has_room(after - before);
        tenant.usage.kept.change(before, if is_kept { after } else { 0 });
        is_kept
    }
}

/// [`Shard::charge`] where other parts of the shard are borrowed.
#[inline]
pub(super) fn charge(access: &Access, account: AccountId, outbound: &mut Outbound) {
    let bytes = outbound.waiting_bytes();
    if bytes == outbound.charged_bytes {
        return;
    }
    if let Some(tenant) = access.tenant(account) {
        tenant.usage.kept.change(outbound.charged_bytes, bytes);
        outbound.charged_bytes = bytes;
    }
}

/// The bounds of a queue whose account has no room for this message: nothing waits there.
#[cold]
pub(super) fn without_room(
    access: &Access,
    account: AccountId,
    message: &Message<'_>,
    limits: &Limits,
) -> Option<Limits> {
    let tenant = access.tenant(account)?;
    let bytes = message.topic.as_str().len() + message.payload.len();
    (!tenant.has_room(bytes)).then_some(Limits {
        queued_max: 0,
        ..*limits
    })
}
