//! What the broker promises of its disk, kept by the real binary: it is killed, stopped, started again with other cores, on
//! full, failing and damaged disks; and what it has acknowledged is there.

mod crowd;
mod kill_loop;

/// A small generator of numbers: the same seed, the same numbers.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// From this variable of the environment, or another one each time.
fn seed(variable: &str) -> u64 {
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into();
    std::env::var(variable).map_or_else(|_| now(), |seed| seed.parse().unwrap())
}
