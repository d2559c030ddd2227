//! Questions from outside the cores, on their way into the shard and back, and notifications on their way out.
//!
//! Called by `turn`.
//! Holds  - an answer or a notification is handed over, never waited for.

use crate::limits::{CLOCK_LOOK_MS, REFUSED_LOG_MS};
use crate::net::listener::peer_address;
use crate::net::transport::Layers;
use crate::registry::event::Notification;
use crate::shard::query::{Answer, Ticket};
use crate::shard::{Input, UnixTime};

use std::time::{SystemTime, UNIX_EPOCH};

use super::Question;
use super::turn::Core;

impl Core {
    pub(super) fn ask(&mut self, question: Question) {
        let Question { query, reply } = question;
        let place = self.asked.insert(reply);
        let ticket = Ticket(u32::try_from(place).expect("fewer questions than the control thread has requests"));
        let query = Box::new(query);
        self.turn(Input::Asked { ticket, query });
    }

    pub(super) fn answer(&mut self, (ticket, mut answer): (Ticket, Answer)) {
        if let Answer::Sessions { sessions, .. } = &mut answer {
            for session in sessions {
                let Some(socket) = self.sockets.get(session.connection) else {
                    continue;
                };
                // What a proxy has said goes before what the socket says.
                let said = socket.layers.as_deref().and_then(Layers::client_address);
                let address = said.or_else(|| peer_address(socket.fd()));
                session.address = address.map_or_else(String::new, |address| address.ip().to_string());
            }
        }
        let reply = self.asked.remove(ticket.0 as usize);
        reply(answer);
    }

    /// The clock may have been set; and whoever refuses data says so now and then, since its sender cannot be told.
    #[cold]
    pub(super) fn look_at_clock(&mut self) {
        self.clock_due = self.now.plus(CLOCK_LOOK_MS);
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        let epoch_ms = now_ms.saturating_sub(self.now.0);
        self.parts.shard.set_unix_time(UnixTime { epoch_ms });
        let counters = self.parts.shard.counters();
        let refused = counters.publishes_refused + counters.refused_unmapped;
        if refused > self.refused_before && self.now >= self.refused_log_due {
            self.refused_log_due = self.now.plus(REFUSED_LOG_MS);
            tracing::info!(
                bad_token = counters.refused_bad_token,
                bad_topic = counters.refused_bad_topic,
                bad_payload = counters.refused_bad_payload,
                disabled = counters.refused_disabled,
                unmapped = counters.refused_unmapped,
                device_limit = counters.refused_device_limit,
                "data was refused, so often so far"
            );
            self.refused_before = refused;
        }
    }

    pub(super) fn notify(&mut self, notification: Notification) {
        let counters = self.parts.shard.counters_mut();
        match &self.parts.notifier {
            Some(notifier) if notifier(notification) => counters.notified += 1,
            _ => counters.dropped_notifications += 1,
        }
    }
}
