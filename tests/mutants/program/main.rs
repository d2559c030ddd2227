//! The simulation of a heart with a fault: runs the seeds below the one number it is given, in order, until one fails. Prints
//! nothing if all hold; else the seed and the place of the assertion, and its message below.
//!
//! No part of the package around it: `heart` builds it in a copy, and it depends on nothing but the heart.

#[path = "../../simulation/abuse.rs"]
mod abuse;
#[path = "../../simulation/disk.rs"]
mod disk;
#[path = "../../simulation/faults.rs"]
mod faults;
#[path = "../../simulation/links.rs"]
mod links;
#[path = "../../simulation/met.rs"]
mod met;
#[path = "../../simulation/oracle.rs"]
mod oracle;
#[path = "../../simulation/overrides.rs"]
mod overrides;
#[path = "../../simulation/platform.rs"]
mod platform;
#[path = "../../simulation/quotas.rs"]
mod quotas;
#[path = "../../simulation/random.rs"]
mod random;
#[path = "../../simulation/receiving.rs"]
mod receiving;
#[path = "../../simulation/rows.rs"]
mod rows;
#[path = "../../simulation/run.rs"]
mod run;
#[path = "../../simulation/streams.rs"]
mod streams;
#[path = "../../simulation/topics.rs"]
mod topics;
#[path = "../../simulation/words.rs"]
mod words;
#[path = "../../simulation/workload.rs"]
mod workload;
#[path = "../../simulation/world.rs"]
mod world;

fn main() {
    let seeds: u64 = std::env::args()
        .nth(1)
        .and_then(|seeds| seeds.parse().ok())
        .expect("the one argument is a number of seeds");
    let as_it_is = overrides::Overrides::default();
    for seed in 0..seeds {
        if let Err(failure) = run::attempt(seed, &as_it_is) {
            let message = failure.message.lines().next().unwrap_or_default();
            println!("{seed} {}\n{message}", failure.place);
            return;
        }
    }
}
