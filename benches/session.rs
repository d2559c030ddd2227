//! What a QoS 1 or 2 delivery costs one Session: offered, written, acknowledged.
//!
//! `cargo bench --bench session`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use skein::mqtt::packet::{Level, PacketId, QoS};
use skein::mqtt::topic::TopicName;
use skein::session::message::{Message, SharedMessage};
use skein::session::outbound::{Keeping, Limits, Offered, Outbound};
use skein::session::outbox::{BufferPool, Outbox};

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
            next: PacketId::new(1).expect("not 0"),
        }
    }

    #[inline]
    fn offer(&mut self, message: &Message<'_>, keeping: Keeping) {
        let mut shared: Option<SharedMessage> = None;
        let outbox = Some((&mut self.outbox, &mut self.pool));
        let offered = self
            .outbound
            .offer(message, &mut shared, message.qos, false, keeping, outbox, &LIMITS);
        // What needs a commit before it is sent waits for that.
        assert!(matches!(offered, Offered::Sent | Offered::Queued));
    }

    /// Everything is committed, and goes as far as the window allows.
    fn refill(&mut self) {
        let (outbox, pool) = (&mut self.outbox, &mut self.pool);
        self.outbound
            .refill(outbox, pool, Level::V311, u64::MAX, &LIMITS, |_, _| {});
    }

    /// The socket takes everything.
    #[inline]
    fn take(&mut self) {
        let unsent = black_box(self.outbox.unsent()).len();
        self.outbox.take(unsent, &mut self.pool);
    }
}

fn deliveries(criterion: &mut Criterion) {
    let message = |qos| Message {
        topic: TopicName::new("dt/json/device").expect("a topic"),
        payload: &[b'x'; 64],
        qos,
    };
    let mut group = criterion.benchmark_group("outbound");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    for (of, keeping) in [("clean", Keeping::Clean), ("durable", Keeping::Durable { record: 1 })] {
        let mut session = Session::new();
        group.bench_function(format!("qos1_offer_and_puback/{of}"), |bencher| {
            bencher.iter(|| {
                for _ in 0..MESSAGES {
                    session.offer(&message(QoS::AtLeastOnce), keeping);
                }
                session.refill();
                session.take();
                for _ in 0..MESSAGES {
                    session.outbound.puback(session.next).expect("it waits for PUBACK");
                    session.next = session.next.next();
                }
            });
        });
        assert!(session.outbound.is_idle());
        let mut session = Session::new();
        group.bench_function(format!("qos2_offer_pubrec_pubcomp/{of}"), |bencher| {
            bencher.iter(|| {
                for _ in 0..MESSAGES {
                    session.offer(&message(QoS::ExactlyOnce), keeping);
                }
                session.refill();
                session.take();
                for _ in 0..MESSAGES {
                    session.outbound.pubrec(session.next).expect("it waits for PUBREC");
                    session.outbound.pubcomp(session.next).expect("it waits for PUBCOMP");
                    session.next = session.next.next();
                }
            });
        });
        assert!(session.outbound.is_idle());
    }
    let mut session = Session::new();
    group.bench_function("qos1_through_the_queue/clean", |bencher| {
        bencher.iter(|| {
            for _ in 0..MESSAGES {
                let mut shared = None;
                let offered = session.outbound.offer(
                    &message(QoS::AtLeastOnce),
                    &mut shared,
                    QoS::AtLeastOnce,
                    false,
                    Keeping::Clean,
                    None,
                    &LIMITS,
                );
                assert_eq!(offered, Offered::Queued);
            }
            session.refill();
            session.take();
            for _ in 0..MESSAGES {
                session.outbound.puback(session.next).expect("it waits for PUBACK");
                session.next = session.next.next();
            }
        });
    });
    assert!(session.outbound.is_idle());
    group.finish();
}

criterion_group!(benches, deliveries);
criterion_main!(benches);
