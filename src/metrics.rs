//! One block of plain counters per core, their names beside them; a reader sums the blocks.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one core has counted since it started.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name, in the order of this file.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// Adds another core's counts.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }
        }
    };
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
    /// Connections closed because the broker stops.
    closed_stopping,
    /// PUBLISH packets from clients, by QoS.
    publishes_qos0,
    publishes_qos1,
    publishes_qos2,
    /// QoS 2 PUBLISH packets that repeated one already received.
    publishes_repeated,
    /// PUBLISH packets that the access rules refused; acknowledged and dropped.
    publishes_refused,
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
    /// QoS 0 messages dropped: the Session was away.
    dropped_away,
    /// Messages dropped with the Session that held them.
    dropped_session_ended,
    /// Retained messages sent to new subscriptions.
    retained_delivered,
    /// SUBSCRIBE filters granted.
    subscribed,
    /// SUBSCRIBE filters refused by the access rules or a bound.
    subscribe_refused,
    /// UNSUBSCRIBE filters that were held.
    unsubscribed,
    /// Times a connection was paused because another core or its own acknowledgements were behind.
    pauses,
    /// Batches sent to other cores.
    batches_sent,
}
