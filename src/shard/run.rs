//! Runs on their whole way: packets of one topic and QoS that came in one read, from their publisher's home core over the topic's
//! owner to the home cores of who wants them, and runs of acknowledgements.
//!
//! Called  by `shard` with what a client sent, and with `PublishRun` and `DeliverRun` from other cores.
//! Holds   - a run is what its packets would be one by one, in the same order and the same counters: matched once, copied
//!           once per subscriber;
//!         - wherever one packet of it may need another answer than the next, they do go one by one: data of a device, a
//!           subscriber with a queue;
//!         - above QoS 0 a run has one receipt, so its acknowledgements leave together: when everybody has all of it. On the core of
//!           its publisher it goes as one where everybody who wants it there keeps up and has nothing on disk;
//!         - who subscribes to what it publishes itself gets a run's messages first, then its acknowledgements.

use crate::ingest::topic::{Purpose, purpose};
use crate::limits::RECEIPTS_PER_CONNECTION_MAX;
use crate::mqtt::encode;
use crate::mqtt::packet::{Publish, QoS};
use crate::mqtt::run::{AcknowledgementKind, AcknowledgementRun, Run};
use crate::registry::access::{Access, AccountId};
use crate::routing::subscriptions::Target;
use crate::session::inbound::Acknowledgement;
use crate::session::message::Message;
use crate::session::outbound::PubRec;

use super::clients::{Clients, paused};
use super::event::{CloseReason, ConnectionId, Lane, PeerId, RecordNumber, Violation};
use super::message::ShardMessage;
use super::publish::{Dispatched, write_acknowledgement};
use super::receipt::{ReceiptId, RunSender, Sender};
use super::{Shard, mark};

impl Shard {
    /// Packets of a client, on its home core. Gives how many bytes of them are dealt with: those that are not go one by one.
    #[inline]
    pub(super) fn publish_run(&mut self, id: ConnectionId, run: &Run<'_>) -> usize {
        if run.qos != QoS::AtMostOnce {
            return self.publish_run_acknowledged(id, run);
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
            self.send_run(owner, None, account, run)
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
    fn publish_run_acknowledged(&mut self, id: ConnectionId, run: &Run<'_>) -> usize {
        let account = self.clients.account_of(id);
        let index = self.clients.connections[id.index as usize].client;
        // What is durable of a publisher's identifiers goes to disk one by one.
        let is_durable = run.qos == QoS::ExactlyOnce && !self.clients.sessions[index as usize].is_clean();
        if is_durable || !self.passes_whole(account, run) {
            return 0;
        }
        let owner = self.owner(account, run.topic);
        if owner != self.core {
            let run = self.receive_new(index, run);
            if run.count > 0 {
                let sender = self.run_sender(id, &run);
                let receipt = self.receipts.open(Sender::Run(sender), None);
                let congested = self.send_run(owner, Some(receipt), account, &run);
                self.owe_run(id, &run, false);
                let waits = true;
                self.pause_if_congested(id, Dispatched { waits, congested });
            }
            return run.frames.len();
        }
        let interested = (self.cores > 1).then(|| self.find_interested(run.topic));
        let cores = interested.as_ref().map_or(&[][..], |interested| interested.answer());
        let targets = (self.cores == 1 || cores.contains(&self.core.0)).then(|| self.find_targets(run.topic));
        let mut run = *run;
        let here = targets.as_ref().map_or(&[][..], |targets| targets.answer());
        match here.iter().all(|target| self.takes_whole(target, &run)) {
            true => run = self.receive_new(index, &run),
            false => run = run.first(0),
        }
        if run.count > 0 {
            self.deliver_whole(here, &run);
            let others = self.count_others(cores);
            let receipt = (others > 0).then(|| {
                let sender = self.run_sender(id, &run);
                self.receipts.open(Sender::Run(sender), Some(others))
            });
            let deliver = ShardMessage::DeliverRun {
                receipt: receipt.map(|receipt| (self.core, receipt)),
                run,
            };
            let congested = self.forward(cores, &deliver);
            let waits = receipt.is_some();
            self.owe_run(id, &run, !waits);
            self.pause_if_congested(id, Dispatched { waits, congested });
        }
        if let Some(targets) = targets {
            self.targets = targets;
        }
        if let Some(interested) = interested {
            self.cores_wanting = interested;
        }
        run.frames.len()
    }

    /// At QoS 2 the packets before the first whose identifier is in use; at QoS 1 all.
    fn receive_new<'a>(&mut self, client: u32, run: &Run<'a>) -> Run<'a> {
        if run.qos != QoS::ExactlyOnce {
            return *run;
        }
        let received = self.clients.sessions[client as usize].received.get_or_insert_default();
        let new = received.receive_new(run.packet_ids());
        match new < run.count {
            true => run.first(new),
            false => *run,
        }
    }

    /// Who is owed acknowledgements for a run, before [`Shard::owe_run`].
    fn run_sender(&self, id: ConnectionId, run: &Run<'_>) -> RunSender {
        let owed = &self.clients.connections[id.index as usize].acknowledgements;
        RunSender {
            connection: id,
            sequence: owed.as_ref().map_or(0, |owed| owed.next_sequence()),
            count: run.count,
        }
    }

    /// Owes an acknowledgement for each packet; they leave at once if all is done and nothing is owed before. A QoS 2 packet that is
    /// repeated meanwhile is answered behind them: its Session is clean, so the repetition comes on this connection.
    fn owe_run(&mut self, id: ConnectionId, run: &Run<'_>, ready: bool) {
        let connection = &mut self.clients.connections[id.index as usize];
        let acknowledgement = match run.qos {
            QoS::ExactlyOnce => Acknowledgement::PubRec,
            _ => Acknowledgement::PubAck,
        };
        *match run.qos {
            QoS::ExactlyOnce => &mut self.counters.publishes_qos2,
            _ => &mut self.counters.publishes_qos1,
        } += u64::from(run.count);
        let nothing_before = connection.acknowledgements.as_ref().is_none_or(|owed| owed.is_empty());
        if ready && nothing_before {
            let out = connection.outbox.writer(&mut self.pool);
            run.packet_ids()
                .for_each(|packet_id| write_acknowledgement(out, acknowledgement(packet_id)));
            mark(connection, id, &mut self.outputs);
            return;
        }
        let owed = connection.acknowledgements.get_or_insert_default();
        run.packet_ids()
            .for_each(|packet_id| owed.push(acknowledgement(packet_id), ready));
        if owed.len() >= RECEIPTS_PER_CONNECTION_MAX {
            self.pause(id, paused::RECEIPTS);
        }
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

    /// Gives a run above QoS 0 to Sessions of which each takes it whole.
    fn deliver_whole(&mut self, targets: &[Target], run: &Run<'_>) {
        self.counters.matched += targets.len() as u64 * u64::from(run.count);
        for target in targets {
            self.deliver_whole_to(target, run);
        }
    }

    fn deliver_whole_to(&mut self, target: &Target, run: &Run<'_>) {
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
    pub(super) fn publish_run_from(
        &mut self,
        from: PeerId,
        receipt: Option<ReceiptId>,
        account: AccountId,
        run: &Run<'_>,
    ) {
        // Its home has looked already; the token may have been rotated on the way.
        let is_routed = self.access.may_publish(account, run.topic);
        if !is_routed {
            self.counters.publishes_refused += u64::from(run.count);
            self.counters.refused_bad_token += u64::from(run.count);
        }
        if run.qos == QoS::AtMostOnce {
            if is_routed {
                // Past the bound, the next batch of requests is not taken: nobody to pause here.
                self.route_run(run);
            }
            return;
        }
        let interested = self.find_interested(run.topic);
        // What is not routed nobody gets.
        let cores = if is_routed { interested.answer() } else { &[] };
        let record = match cores.contains(&self.core.0) {
            true => self.deliver_run_kept(run),
            false => None,
        };
        self.routed_for(from, receipt, record, self.count_others(cores));
        let deliver = ShardMessage::DeliverRun {
            receipt: receipt.map(|receipt| (from, receipt)),
            run: *run,
        };
        self.forward(cores, &deliver);
        self.cores_wanting = interested;
    }

    /// Packets from the owner of their topic.
    pub(super) fn deliver_run_from(&mut self, receipt: Option<(PeerId, ReceiptId)>, run: &Run<'_>) {
        if run.qos == QoS::AtMostOnce {
            return self.deliver_run(run);
        }
        let record = self.deliver_run_kept(run);
        self.delivered(receipt, record);
    }

    /// Gives a run above QoS 0, whose publisher is at home elsewhere, to every Session of this core that wants it. Returns the
    /// record that its acknowledgements must wait for, if a durable Session has it.
    fn deliver_run_kept(&mut self, run: &Run<'_>) -> Option<RecordNumber> {
        let targets = self.find_targets(run.topic);
        let is_taken = targets.answer().iter().all(|target| self.takes_whole(target, run));
        if is_taken {
            self.deliver_whole(targets.answer(), run);
        }
        self.targets = targets;
        if is_taken {
            return None;
        }
        let mut record = None;
        for publish in run.publishes() {
            let Publish {
                topic, payload, qos, ..
            } = publish;
            record = record.max(self.deliver(&Message { topic, payload, qos }, None));
        }
        record
    }

    /// Sends a run to the owner of its topic; that, if its batch is past its bound.
    fn send_run(
        &mut self,
        owner: PeerId,
        receipt: Option<ReceiptId>,
        account: AccountId,
        run: &Run<'_>,
    ) -> Option<(PeerId, Lane)> {
        let publish = ShardMessage::PublishRun {
            receipt,
            account,
            run: *run,
        };
        let is_full = self.send(owner, Lane::ToOwner, &publish);
        is_full.then_some((owner, Lane::ToOwner))
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
        let deliver = ShardMessage::DeliverRun {
            receipt: None,
            run: *run,
        };
        let congested = self.forward(cores, &deliver);
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
