//! Questions from outside the cores, on their way into the shard and back, and notifications on their way out.
//!
//! Called by `turn`.
//! Holds  - an answer or a notification is handed over, never waited for.

use crate::net::listener::peer_address;
use crate::net::transport::Layers;
use crate::registry::event::Notification;
use crate::shard::Input;
use crate::shard::query::{Answer, Ticket};

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

    pub(super) fn notify(&mut self, notification: Notification) {
        let counters = self.parts.shard.counters_mut();
        match &self.parts.notifier {
            Some(notifier) if notifier(notification) => counters.notified += 1,
            _ => counters.dropped_notifications += 1,
        }
    }
}
