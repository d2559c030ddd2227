//! One block of plain counters per core, their names beside them; a reader sums the blocks.
//!
//! Called  by `shard` and `worker`, each for its own core: plain additions, no atomics.

use crate::mqtt::error::DecodeError;
use crate::websocket::{FrameError, HandshakeError};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one core has counted since it started.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
            /// Connections closed for a malformed packet, by the rule it broke.
            pub malformed: ByRule<{ DecodeError::COUNT }>,
            /// Requests that were no upgrade to WebSocket, and frames, by the rule they broke.
            pub upgrades_refused: ByRule<{ HandshakeError::COUNT }>,
            pub frames_refused: ByRule<{ FrameError::COUNT }>,
        }

        impl Counters {
            /// Every counter with its name, in the order of this file.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let malformed = DecodeError::ALL.iter().map(|rule| (rule.name(), self.malformed.0[rule.index()]));
                let upgrades = HandshakeError::ALL.iter().map(|rule| (rule.name(), self.upgrades_refused.0[rule.index()]));
                let frames = FrameError::ALL.iter().map(|rule| (rule.name(), self.frames_refused.0[rule.index()]));
                let named = [$((stringify!($name), self.$name),)*];
                named.into_iter().chain(malformed).chain(upgrades).chain(frames)
            }

            /// Adds another core's counts.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
                self.malformed.add(&other.malformed);
                self.upgrades_refused.add(&other.upgrades_refused);
                self.frames_refused.add(&other.frames_refused);
            }
        }
    };
}

/// One counter per rule, by its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByRule<const RULES: usize>([u64; RULES]);

impl<const RULES: usize> ByRule<RULES> {
    pub fn count(&mut self, index: usize) {
        self.0[index] += 1;
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

impl<const RULES: usize> Default for ByRule<RULES> {
    fn default() -> Self {
        ByRule([0; RULES])
    }
}

counters! {
    /// Sockets accepted by this core.
    sockets_accepted,
    /// Sockets closed at once because `--max-connections` or the descriptors were used up.
    sockets_refused,
    /// CONNECT packets answered with return code 0.
    connects_accepted,
    /// CONNECT packets answered with another return code.
    connects_refused,
    /// Of these, those whose account had as many connections, or durable sessions, as it may.
    refused_account_connections,
    refused_account_sessions,
    /// Connections handed to another core after their CONNECT.
    handoffs,
    /// Connections closed by the client's DISCONNECT.
    closed_disconnect,
    /// Connections closed or reset from the other side.
    closed_peer,
    /// Connections closed for a malformed packet.
    closed_malformed,
    /// Connections closed for a packet out of order.
    closed_violation,
    /// Connections closed for silence beyond their Keep Alive.
    closed_keep_alive,
    /// Connections closed because another took over the client identifier.
    closed_taken_over,
    /// Connections closed without a whole CONNECT in time.
    closed_connect_timeout,
    /// Connections closed because their account's device token was rotated, or the account suspended or removed.
    closed_account_ended,
    /// Connections closed because the broker stops.
    closed_stopping,
    /// Connections that do not begin with a PROXY header where they must.
    closed_proxy,
    /// TLS handshakes that came to their end: in full, and by resuming an earlier session.
    tls_full,
    tls_resumed,
    /// Connections closed by a rule of TLS, and by which.
    closed_tls,
    tls_not_tls,
    tls_incompatible,
    tls_application_protocol,
    tls_no_client_certificate,
    tls_client_certificate_expired,
    tls_client_certificate_refused,
    tls_refused_by_client,
    tls_decrypt,
    tls_misbehaved,
    /// Upgrades to WebSocket, and connections closed by a rule of it; by which stands at the end.
    websockets,
    closed_websocket,
    /// PUBLISH packets from clients, by QoS.
    publishes_qos0,
    publishes_qos1,
    publishes_qos2,
    /// QoS 2 PUBLISH packets that repeated one already received.
    publishes_repeated,
    /// PUBLISH packets that the access rules refused; acknowledged and dropped.
    publishes_refused,
    /// Data that was refused, by why: the first level was not the account's token, the topic broke the grammar, the payload
    /// was of no kind that can be stored, the device was switched off, mapped to no channel (routed all the same), or one
    /// too many for its account.
    refused_bad_token,
    refused_bad_topic,
    refused_bad_payload,
    refused_disabled,
    refused_unmapped,
    refused_device_limit,
    /// Datapoints given to the store, state reports too, and devices registered by what they sent.
    datapoints,
    state_reports,
    devices_registered,
    /// Devices at this moment.
    devices_now,
    /// Notifications of events handed over, and those for which there was no room.
    notified,
    dropped_notifications,
    /// Wills published.
    wills_published,
    /// Matches of a message and a Session: each is delivered, queued or dropped.
    matched,
    /// PUBLISH packets written to an outbox for the first time, by QoS.
    delivered_qos0,
    delivered_qos1,
    delivered_qos2,
    /// PUBLISH packets written again after a resume.
    redelivered,
    /// QoS 0 messages dropped: the outbox was at its bound.
    dropped_outbox_full,
    /// Messages dropped: the Session's queue was at its bound.
    dropped_queue_full,
    /// Of these, those whose account had no room for what waits.
    refused_account_storage,
    /// QoS 0 messages dropped: the Session was away.
    dropped_away,
    /// Queued messages that could not be read back from disk: their values are damaged.
    dropped_damaged,
    /// Messages dropped with the Session in whose queue they waited; what was in flight has been counted as delivered.
    dropped_session_ended,
    /// Messages that waited for a Session that expired.
    expired,
    /// Messages that a start found waiting for Sessions. With `matched` they are delivered, dropped, expired, or `queued_now`.
    queued_restored,
    /// Messages that wait for a Session at this moment, never sent since the broker started.
    queued_now,
    /// Sessions, connections and retained messages at this moment.
    sessions_now,
    connections_now,
    retained_now,
    /// Sessions that a start found, and those that ended because their clients stayed away.
    sessions_restored,
    sessions_expired,
    /// Messages that were delivered and not retained, for their account had no room; the topic has none then.
    refused_account_retained,
    /// Retained messages sent to new subscriptions.
    retained_delivered,
    /// Retained messages that were given up because their value on disk was damaged.
    retained_damaged,
    /// SUBSCRIBE filters granted.
    subscribed,
    /// SUBSCRIBE filters refused by the access rules or a bound.
    subscribe_refused,
    /// Of these, those whose account had as many as it may.
    refused_account_subscriptions,
    /// UNSUBSCRIBE filters that were held.
    unsubscribed,
    /// Times a connection was paused because another core or its own acknowledgements were behind.
    pauses,
    /// Times a connection was held back because the queue of a subscriber was full.
    held_back,
    /// Times a connection was held back because its account had published as often as it may.
    held_back_account_rate,
    /// Batches sent to other cores.
    batches_sent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_blocks_has_every_counter_under_its_own_name() {
        let mut one = Counters {
            matched: 3,
            ..Counters::default()
        };
        one.malformed.count(DecodeError::PacketIdZero.index());
        let mut sum = one.clone();
        sum.add(&one);
        let counted: Vec<_> = sum.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("matched", 6), (DecodeError::PacketIdZero.name(), 2)]);
        let mut names: Vec<_> = sum.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), sum.iter().count());
    }
}
