//! Layer 3: a parcel between cores, both ends on one thread. The parcel is what the broker's is about: a boxed batch and its
//! address, here 24 bytes.

use std::hint::black_box;

use skein::mesh::{Endpoint, Lane, Mesh, ring};

use super::Runner;

pub type Parcel = [u64; 3];

const PARCELS: usize = 64;

pub fn pair(ring_parcels: usize) -> (Endpoint<Parcel>, Endpoint<Parcel>) {
    let mut endpoints = Mesh::build(2, ring_parcels).expect("two bells");
    let second = endpoints.pop().expect("two cores");
    (endpoints.pop().expect("two cores"), second)
}

pub fn scenarios(runner: &mut impl Runner) {
    runner.scenario("mesh/ring, push and pop", 1, || {
        let (mut producer, mut consumer) = ring::<Parcel>(16);
        move || {
            producer.push(black_box([1, 2, 3])).expect("the ring is empty");
            assert!(black_box(consumer.pop()).is_some());
        }
    });
    runner.scenario("mesh/endpoints, push, ring_bells, pop_any", 1, || {
        let (mut from, mut to) = pair(16);
        move || {
            from.push(1, Lane::ToHome, black_box([1, 2, 3]))
                .expect("the ring is empty");
            from.ring_bells();
            assert!(black_box(to.pop_any(Lane::ToHome)).is_some());
            to.ring_bells();
        }
    });
    runner.scenario("mesh/endpoints, batch of 64", PARCELS, || {
        let (mut from, mut to) = pair(PARCELS);
        move || {
            for n in 0..PARCELS as u64 {
                from.push(1, Lane::ToHome, black_box([n, 2, 3]))
                    .expect("the ring is empty");
            }
            from.ring_bells();
            let mut sum = 0;
            to.drain(Lane::ToHome, usize::MAX, |_, parcel| sum += parcel[0]);
            to.ring_bells();
            assert_eq!(sum, (PARCELS * (PARCELS - 1) / 2) as u64);
        }
    });
}
