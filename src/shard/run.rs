//! Runs on their whole way: QoS 0 packets of one topic that came in one read, from their publisher's home core over the
//! topic's owner to the home cores of who wants them.
//!
//! Called  by `shard` with what a client sent, and with `PublishRun` and `DeliverRun` from other cores.
//! Holds   - a run is what its packets would be one by one, in the same order and the same counters: matched once, copied
//!           once per subscriber;
//!         - wherever one packet of it may need another answer than the next, they do go one by one: data of a device, a
//!           subscriber with a queue.

use crate::ingest::topic::{Purpose, purpose};
use crate::mqtt::run::Run;
use crate::registry::access::{Access, AccountId};
use crate::session::message::Message;

use super::Shard;
use super::event::{ConnectionId, Lane, PeerId};
use super::message::ShardMessage;
use super::publish::Dispatched;
use super::{clients::Clients, mark};

impl Shard {
    /// Packets of a client, on its home core.
    #[inline]
    pub(super) fn publish_run(&mut self, id: ConnectionId, run: &Run<'_>) {
        let account = self.clients.account_of(id);
        if !self.passes_whole(account, run) {
            for publish in run.publishes() {
                self.publish(id, publish);
            }
            return;
        }
        self.counters.publishes_qos0 += u64::from(run.count);
        let owner = self.owner(account, run.topic);
        let congested = if owner == self.core {
            self.route_run(run)
        } else {
            let publish = ShardMessage::PublishRun { account, run: *run };
            let is_full = self.send(owner, Lane::ToOwner, &publish);
            is_full.then_some((owner, Lane::ToOwner))
        };
        self.pause_if_congested(
            id,
            Dispatched {
                waits: false,
                congested,
            },
        );
    }

    /// Packets whose publisher is at home on another core.
    pub(super) fn publish_run_from(&mut self, account: AccountId, run: &Run<'_>) {
        // Its home has looked already; the token may have been rotated on the way.
        if !self.access.may_publish(account, run.topic) {
            self.counters.publishes_refused += u64::from(run.count);
            self.counters.refused_bad_token += u64::from(run.count);
            return;
        }
        // Past the bound, the next batch of requests is not taken: nobody to pause here.
        self.route_run(run);
    }

    /// Whether all of it may be published without a look at each.
    fn passes_whole(&self, account: AccountId, run: &Run<'_>) -> bool {
        match &self.access {
            Access::Open => true,
            Access::Platform(accounts) => accounts
                .below_prefix(account, run.topic.as_str())
                .is_some_and(|below| matches!(purpose(below, self.v1_topics), Ok(Purpose::Other))),
        }
    }

    fn route_run(&mut self, run: &Run<'_>) -> Option<(PeerId, Lane)> {
        if self.cores == 1 {
            self.deliver_run(run);
            return None;
        }
        let interested = self.find_interested(run.topic);
        let cores = interested.answer();
        if cores.contains(&self.core.0) {
            self.deliver_run(run);
        }
        let congested = self.forward(cores, &ShardMessage::DeliverRun { run: *run });
        self.cores_wanting = interested;
        congested
    }

    /// Gives a run to every Session of this core that wants it.
    pub(super) fn deliver_run(&mut self, run: &Run<'_>) {
        let targets = self.find_targets(run.topic);
        self.counters.matched += targets.answer().len() as u64 * u64::from(run.count);
        for target in targets.answer() {
            self.deliver_run_to(target.session, run);
        }
        self.targets = targets;
    }

    #[inline]
    fn deliver_run_to(&mut self, session: u32, run: &Run<'_>) {
        let Clients {
            sessions, connections, ..
        } = &mut self.clients;
        let client = &sessions[session as usize];
        let Some(id) = client.connection else {
            self.counters.dropped_away += u64::from(run.count);
            return;
        };
        let connection = &mut connections[id.index as usize];
        if client.outbound.as_ref().is_some_and(|outbound| !outbound.is_clear()) {
            self.deliver_one_by_one(session, run);
            return;
        }
        let (len, max) = (connection.outbox.len(), self.delivery_limits.outbox_bytes_max);
        let fits = match len + run.frames.len() <= max {
            true => *run,
            false => run.up_to(max.saturating_sub(len)),
        };
        if fits.count > 0 {
            connection.outbox.writer(&mut self.pool).extend_from_slice(fits.frames);
            mark(connection, id, &mut self.outputs);
        }
        self.counters.delivered_qos0 += u64::from(fits.count);
        self.counters.dropped_outbox_full += u64::from(run.count - fits.count);
    }

    #[cold]
    fn deliver_one_by_one(&mut self, session: u32, run: &Run<'_>) {
        let limits = self.delivery_limits;
        for publish in run.publishes() {
            let message = Message {
                topic: publish.topic,
                payload: publish.payload,
                qos: publish.qos,
            };
            // What a durable Session keeps is above QoS 0.
            self.deliver_to(
                session,
                &message,
                &mut None,
                message.qos,
                false,
                &limits,
                &mut Vec::new(),
            );
        }
    }
}
