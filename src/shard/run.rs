//! Runs on their whole way: packets of one topic and QoS that came in one read, from their publisher's home core over the topic's
//! owner to the home cores of who wants them, and runs of acknowledgements.
//!
//! Called  by `shard` with what a client sent, and with `PublishRun` and `DeliverRun` from other cores.
//! Holds   - a run is what its packets would be one by one, in the same order and the same counters: matched once, copied
//!           once per subscriber;
//!         - wherever one packet of it may need another answer than the next, they do go one by one: data of a device, a
//!           subscriber with a queue;
//!         - above QoS 0 a run goes as one only where all of it is done, and acknowledged, at once: everybody who wants it is at
//!           home here, keeps up, and has nothing on disk. Who subscribes to what it publishes itself gets a run's messages
//!           first, then its acknowledgements.

use crate::ingest::topic::{Purpose, purpose};
use crate::mqtt::encode;
use crate::mqtt::packet::QoS;
use crate::mqtt::run::{AcknowledgementKind, AcknowledgementRun, Run};
use crate::registry::access::{Access, AccountId};
use crate::routing::subscriptions::Target;
use crate::session::message::Message;
use crate::session::outbound::PubRec;

use super::Shard;
use super::event::{CloseReason, ConnectionId, Lane, PeerId, Violation};
use super::message::ShardMessage;
use super::publish::Dispatched;
use super::{clients::Clients, mark};

impl Shard {
    /// Packets of a client, on its home core. Gives how many bytes of them are dealt with: those that are not go one by one.
    #[inline]
    pub(super) fn publish_run(&mut self, id: ConnectionId, run: &Run<'_>) -> usize {
        if run.qos != QoS::AtMostOnce {
            return self.publish_run_at_once(id, run);
        }
        let account = self.clients.account_of(id);
        if !self.passes_whole(account, run) {
            return 0;
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
        run.frames.len()
    }

    /// Packets above QoS 0: all of them, those before a repeated one, or none.
    #[inline(never)]
    fn publish_run_at_once(&mut self, id: ConnectionId, run: &Run<'_>) -> usize {
        // To find out whether it can go as one costs more than one packet saves by it, unless there is hardly anything to ask.
        if run.count == 1 && (self.cores > 1 || !matches!(self.access, Access::Open)) {
            return 0;
        }
        let account = self.clients.account_of(id);
        if !self.passes_whole(account, run) {
            return 0;
        }
        let connection = &self.clients.connections[id.index as usize];
        let index = connection.client;
        let is_owed = connection
            .acknowledgements
            .as_ref()
            .is_some_and(|owed| !owed.is_empty());
        let is_exactly_once = run.qos == QoS::ExactlyOnce;
        // A durable publisher's identifiers go to disk.
        let is_durable = is_exactly_once && !self.clients.sessions[index as usize].is_clean();
        if is_owed || is_durable || !self.is_wanted_here_alone(account, run) {
            return 0;
        }
        let targets = self.find_targets(run.topic);
        let mut run = *run;
        if !targets.answer().iter().all(|target| self.takes_whole(target, &run)) {
            run = run.first(0);
        } else if is_exactly_once {
            let received = self.clients.sessions[index as usize].received.get_or_insert_default();
            let new = received.receive_new(run.packet_ids());
            if new < run.count {
                run = run.first(new);
            }
        }
        if run.count > 0 {
            self.counters.matched += targets.answer().len() as u64 * u64::from(run.count);
            for target in targets.answer() {
                self.deliver_whole(target, &run);
            }
            self.acknowledge_run(id, &run);
        }
        self.targets = targets;
        run.frames.len()
    }

    /// No other core has a part in it.
    fn is_wanted_here_alone(&mut self, account: AccountId, run: &Run<'_>) -> bool {
        if self.cores == 1 {
            return true;
        }
        if self.owner(account, run.topic) != self.core {
            return false;
        }
        let interested = self.find_interested(run.topic);
        let is_alone = interested.answer().iter().all(|core| *core == self.core.0);
        self.cores_wanting = interested;
        is_alone
    }

    /// Whether every packet of a run above QoS 0 can be sent to this Session at once, or is not for it, with nothing to wait for.
    fn takes_whole(&self, target: &Target, run: &Run<'_>) -> bool {
        let client = &self.clients.sessions[target.session as usize];
        let Some(id) = client.connection else {
            return target.qos == QoS::AtMostOnce;
        };
        let connection = &self.clients.connections[id.index as usize];
        let limits = &self.delivery_limits;
        if connection.outbox.len() + run.frames.len() > limits.outbox_bytes_max {
            return false;
        }
        match (target.qos.min(run.qos), &client.outbound) {
            (QoS::AtMostOnce, None) => true,
            (QoS::AtMostOnce, Some(outbound)) => outbound.is_clear(),
            (qos, _) if qos != run.qos || !client.is_clean() => false,
            (_, None) => run.count as usize <= limits.inflight_max,
            (_, Some(outbound)) => outbound.has_window_for(run.count, limits),
        }
    }

    /// Gives a run above QoS 0 to a Session that takes it whole.
    fn deliver_whole(&mut self, target: &Target, run: &Run<'_>) {
        let Clients {
            sessions, connections, ..
        } = &mut self.clients;
        let client = &mut sessions[target.session as usize];
        let count = u64::from(run.count);
        let Some(id) = client.connection else {
            self.counters.dropped_away += count;
            return;
        };
        let connection = &mut connections[id.index as usize];
        let out = connection.outbox.writer(&mut self.pool);
        match target.qos.min(run.qos) {
            QoS::AtMostOnce => {
                let qos = QoS::AtMostOnce;
                for publish in run.publishes() {
                    encode::publish(out, false, qos, false, run.topic.as_str(), None, publish.payload);
                }
                self.counters.delivered_qos0 += count;
            }
            QoS::AtLeastOnce => {
                client.outbound().send_run(run, out);
                self.counters.delivered_qos1 += count;
            }
            QoS::ExactlyOnce => {
                client.outbound().send_run(run, out);
                self.counters.delivered_qos2 += count;
            }
        }
        mark(connection, id, &mut self.outputs);
    }

    /// Everybody has the run, and nothing is owed before it.
    fn acknowledge_run(&mut self, id: ConnectionId, run: &Run<'_>) {
        let Some(connection) = self.clients.open_connection(id) else {
            return;
        };
        let out = connection.outbox.writer(&mut self.pool);
        if run.qos == QoS::AtLeastOnce {
            self.counters.publishes_qos1 += u64::from(run.count);
            run.packet_ids().for_each(|packet_id| encode::puback(out, packet_id));
        } else {
            self.counters.publishes_qos2 += u64::from(run.count);
            run.packet_ids().for_each(|packet_id| encode::pubrec(out, packet_id));
        }
        mark(connection, id, &mut self.outputs);
    }

    /// Acknowledgements of a client: all of them, or none where one may need another answer than the next, since something waits
    /// or goes to disk.
    #[inline(never)]
    pub(super) fn acknowledged_run(&mut self, id: ConnectionId, run: &AcknowledgementRun<'_>) -> bool {
        let Clients {
            sessions, connections, ..
        } = &mut self.clients;
        let connection = &mut connections[id.index as usize];
        let client = &mut sessions[connection.client as usize];
        if !client.is_clean() {
            return false;
        }
        let before = connection.outbox.len();
        let mut is_wrong = false;
        if run.kind == AcknowledgementKind::PubRel {
            let out = connection.outbox.writer(&mut self.pool);
            for packet_id in run.packet_ids() {
                if let Some(received) = &mut client.received {
                    received.release(packet_id);
                }
                encode::pubcomp(out, packet_id);
            }
        } else {
            let Some(outbound) = client.outbound.as_mut().filter(|outbound| outbound.is_clear()) else {
                return false;
            };
            is_wrong = match run.kind {
                AcknowledgementKind::PubAck => run.packet_ids().any(|packet_id| outbound.puback(packet_id).is_err()),
                AcknowledgementKind::PubComp => run.packet_ids().any(|packet_id| outbound.pubcomp(packet_id).is_err()),
                _ => run.packet_ids().any(|packet_id| {
                    let meaning = outbound.pubrec(packet_id);
                    if meaning.is_ok_and(|meaning| meaning != PubRec::TooEarly) {
                        encode::pubrel(connection.outbox.writer(&mut self.pool), packet_id);
                    }
                    meaning.is_err()
                }),
            };
        }
        if connection.outbox.len() > before {
            mark(connection, id, &mut self.outputs);
        }
        if is_wrong {
            self.close(id, CloseReason::Violation(Violation::WrongAcknowledgement));
        }
        true
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
