//! Layer 1: what a QoS 1 or 2 message costs one Session, from its client and to it.

use std::hint::black_box;

use skein::mqtt::packet::{Level, PacketId, QoS};
use skein::mqtt::topic::TopicName;
use skein::session::inbound::{Acknowledgement, Acknowledgements, Received, ReceivedIds};
use skein::session::message::{Message, SharedMessage};
use skein::session::outbound::{Keeping, Limits, Offered, Outbound};
use skein::session::outbox::{BufferPool, Outbox};

use super::{PAYLOAD, Runner, packet_id};

const LIMITS: Limits = Limits {
    inflight_max: 256,
    queued_max: 10_000,
    queued_bytes_max: 16 * 1024 * 1024,
    outbox_bytes_max: 256 * 1024,
};
const MESSAGES: usize = 100;

struct Session {
    outbound: Outbound,
    outbox: Outbox,
    pool: BufferPool,
    next: PacketId,
}

impl Session {
    fn new() -> Session {
        Session {
            outbound: Outbound::default(),
            outbox: Outbox::default(),
            pool: BufferPool::new(),
            next: packet_id(1),
        }
    }

    #[inline]
    fn offer(&mut self, qos: QoS, keeping: Keeping, is_writable: bool) {
        let message = Message {
            topic: TopicName::trusted("dt/json/device"),
            payload: &PAYLOAD,
            qos,
        };
        let mut shared: Option<SharedMessage> = None;
        let outbox = is_writable.then_some((&mut self.outbox, &mut self.pool));
        let offered = self
            .outbound
            .offer(&message, &mut shared, qos, false, keeping, outbox, &LIMITS);
        // What needs a commit before it is sent waits for that.
        assert!(matches!(offered, Offered::Sent | Offered::Queued));
    }

    /// Everything is committed, and goes as far as the window allows; the socket takes it.
    #[inline]
    fn send(&mut self) {
        let (outbox, pool) = (&mut self.outbox, &mut self.pool);
        self.outbound
            .refill(outbox, pool, Level::V311, u64::MAX, &LIMITS, |_, _| {});
        let unsent = black_box(self.outbox.unsent()).len();
        self.outbox.take(unsent, &mut self.pool);
    }

    #[inline]
    fn each(&mut self, acknowledge: impl Fn(&mut Outbound, PacketId)) {
        for _ in 0..MESSAGES {
            acknowledge(&mut self.outbound, self.next);
            self.next = self.next.next();
        }
        assert!(self.outbound.is_idle());
    }
}

pub fn scenarios(runner: &mut impl Runner) {
    for (of, keeping) in [("clean", Keeping::Clean), ("durable", Keeping::Durable { record: 1 })] {
        runner.scenario(&format!("session/out, qos 1, to PUBACK, {of}"), MESSAGES, || {
            let mut session = Session::new();
            move || {
                (0..MESSAGES).for_each(|_| session.offer(QoS::AtLeastOnce, keeping, true));
                session.send();
                session.each(|outbound, id| {
                    outbound.puback(id).expect("it waits for PUBACK");
                });
            }
        });
        runner.scenario(&format!("session/out, qos 2, to PUBCOMP, {of}"), MESSAGES, || {
            let mut session = Session::new();
            move || {
                (0..MESSAGES).for_each(|_| session.offer(QoS::ExactlyOnce, keeping, true));
                session.send();
                session.each(|outbound, id| {
                    outbound.pubrec(id).expect("it waits for PUBREC");
                    outbound.pubcomp(id).expect("it waits for PUBCOMP");
                });
            }
        });
    }
    runner.scenario("session/out, qos 1, through the queue, clean", MESSAGES, || {
        let mut session = Session::new();
        move || {
            (0..MESSAGES).for_each(|_| session.offer(QoS::AtLeastOnce, Keeping::Clean, false));
            session.send();
            session.each(|outbound, id| {
                outbound.puback(id).expect("it waits for PUBACK");
            });
        }
    });
    runner.scenario("session/in, qos 1, to PUBACK", MESSAGES, || {
        let mut owed = Acknowledgements::default();
        move || {
            for number in 1..=MESSAGES {
                let sequence = owed.next_sequence();
                owed.push(Acknowledgement::PubAck(packet_id(number as u16)), false);
                owed.complete(black_box(sequence));
                assert!(owed.pop().is_some());
            }
        }
    });
    runner.scenario("session/in, qos 2, to PUBCOMP", MESSAGES, || {
        let (mut owed, mut received) = (Acknowledgements::default(), ReceivedIds::default());
        move || {
            for number in 1..=MESSAGES {
                let id = packet_id(number as u16);
                assert_eq!(received.receive(id), Received::New);
                let sequence = owed.next_sequence();
                owed.push(Acknowledgement::PubRec(id), false);
                received.routing(id);
                received.routed(id);
                owed.complete(black_box(sequence));
                assert!(owed.pop().is_some());
            }
            for number in 1..=MESSAGES {
                assert!(received.release(packet_id(number as u16)));
            }
        }
    });
}
