//! What a seed decides before its run begins: the size of everything, the speed of everything, and how often what goes
//! wrong.
//!
//! Called  by `World::new`; read by `world` and `workload`.
//! Holds   - bounds are either far beyond what a run can fill (`ample_*`: then nothing may be dropped at all) or so small
//!           that they are met in every run (then what is missing must have been counted).

use skein::shard::Limits;

use crate::random::Random;

pub struct Profile {
    pub cores: u16,
    pub shard_levels: usize,
    /// Accounts; 0: anyone may use any topic.
    pub tenants: usize,
    pub clients: usize,
    /// What clients publish and subscribe to that is another account's.
    pub foreign_percent: usize,
    pub suspend_percent: usize,
    pub rotate_percent: usize,
    pub remove_percent: usize,
    /// Of the bounds that accounts may have, how many there are, and how often an operator sets others.
    pub quota_percent: usize,
    /// Bytes that may be kept for an account, where that is bounded: then a queue is full when its account is.
    pub kept_bytes_max: Option<u64>,
    /// Accounts have room for fewer devices than there are.
    pub has_few_devices: bool,
    /// Clients that keep no rule.
    pub abusers: usize,
    pub steps: usize,
    pub limits: Limits,
    /// No queue can fill: `dropped_queue_full` stays 0.
    pub ample_queue: bool,
    /// No outbox can fill: `dropped_outbox_full` stays 0.
    pub ample_outbox: bool,
    pub ring_parcels: usize,
    pub topics: usize,
    /// Topics that begin with `$`; below a token, what follows it does.
    pub dollar_percent: usize,
    pub payload_max: usize,
    /// What a client's socket and the network hold on the way to it.
    pub down_max: usize,
    /// By `Action`, in its order.
    pub weights: [usize; 10],
    pub publish_percent: usize,
    /// Of what is published, many packets of one topic and QoS, which a broker may take as one.
    pub run_percent: usize,
    pub retain_percent: usize,
    pub wildcard_percent: usize,
    pub durable_percent: usize,
    pub v31_percent: usize,
    /// In a thousand acts of a client.
    pub leave_permille: usize,
    /// In a thousand steps of the world.
    pub reset_permille: usize,
    pub keep_alive: bool,
    pub step_ms_max: usize,
    /// Clients that read only so often.
    pub slow_reader_percent: usize,
    /// Bytes move one by one now and then.
    pub crumbs_percent: usize,
    /// Of the commits, alone.
    pub commit_fails_percent: usize,
    /// Of the commits, those from which on all fail for a while.
    pub outage_percent: usize,
    /// Entries of a queue that the store reads at once.
    pub fetch_entries_max: usize,
    /// In ten thousand steps of the world.
    pub crash_permyriad: usize,
    /// While everything comes to rest.
    pub crashes_at_end_max: usize,
}

impl Profile {
    pub fn of(random: &mut Random) -> Profile {
        let large = random.percent(15);
        let ample_queue = random.percent(60);
        let ample_outbox = random.percent(60);
        let payload_max = if large {
            40_000
        } else {
            random.pick(&[8, 40, 400, 2_000])
        };
        let limits = Limits {
            inflight_max: random.pick(&[1, 2, 3, 8, 256]),
            queued_max: if ample_queue { 100_000 } else { random.between(1, 20) },
            queued_bytes_max: if ample_queue || random.percent(50) {
                1 << 30
            } else {
                4 * payload_max + 500
            },
            overflow_wait_ms: random.pick(&[0, 40, 1_000]),
            session_expiry_s: random.pick(&[None, None, None, Some(1), Some(20)]),
            publishes_per_s_max: random.pick(&[0, 0, 0, 3, 30]),
            retained_memory_bytes_max: random.pick(&[1 << 30, 1 << 30, 3_000, 300, 0]),
            subscriptions_max: random.pick(&[1_000, 1_000, 1_000, 2, 5]),
            outbox_bytes_max: if ample_outbox {
                1 << 30
            } else {
                random.pick(&[1, 100, 1_000, 5_000])
            },
            ..Limits::default()
        };
        let tenants = random.pick(&[0, 0, 1, 2, 3]);
        let mut weights = [0; 10];
        for weight in &mut weights {
            *weight = random.pick(&[3, 10, 10, 10, 30]);
        }
        weights[8] = 2;
        if tenants == 0 {
            weights[9] = 0;
        }
        let quota_percent = random.pick(&[0, 50, 100]);
        let kept_bytes_max = random.pick(&[None, None, None, Some(400), Some(4_000), Some(100_000)]);
        let kept_bytes_max = kept_bytes_max.filter(|_| tenants > 0 && quota_percent > 0);
        Profile {
            cores: random.pick(&[1, 2, 2, 3, 3, 4, 5]),
            shard_levels: random.between(1, 4),
            tenants,
            clients: random.between(2.max(tenants), 12),
            foreign_percent: random.pick(&[0, 5, 20]),
            suspend_percent: random.pick(&[0, 20, 100]),
            rotate_percent: random.pick(&[0, 0, 100]),
            remove_percent: random.pick(&[0, 0, 100]),
            quota_percent,
            kept_bytes_max,
            has_few_devices: quota_percent > 0 && random.percent(30),
            abusers: random.pick(&[0, 0, 1, 3]),
            steps: random.between(500, 4_000),
            limits,
            ample_queue: ample_queue && kept_bytes_max.is_none(),
            ample_outbox,
            ring_parcels: random.pick(&[1, 1, 2, 3, 8]),
            topics: random.pick(&[2, 5, 12, 30, 30, 250]),
            dollar_percent: random.pick(&[0, 0, 10, 40]),
            payload_max,
            down_max: if random.percent(50) {
                1 << 20
            } else {
                random.between(20, 3_000)
            },
            weights,
            publish_percent: random.between(20, 95),
            run_percent: random.pick(&[0, 20, 60]),
            retain_percent: random.pick(&[0, 10, 30, 70]),
            wildcard_percent: random.pick(&[0, 30, 60, 90]),
            durable_percent: random.pick(&[0, 30, 60, 100]),
            v31_percent: random.pick(&[0, 0, 20]),
            leave_permille: random.pick(&[0, 2, 10, 30]),
            reset_permille: random.pick(&[0, 1, 4, 15]),
            keep_alive: random.percent(30),
            step_ms_max: random.pick(&[1, 5, 50]),
            slow_reader_percent: random.pick(&[0, 0, 20, 60]),
            crumbs_percent: random.pick(&[0, 5, 30]),
            commit_fails_percent: random.pick(&[0, 0, 10, 50, 90]),
            outage_percent: random.pick(&[0, 0, 1, 5]),
            fetch_entries_max: random.pick(&[1, 2, 5, 1_000, 1_000]),
            crash_permyriad: random.pick(&[0, 0, 3, 10, 40]),
            crashes_at_end_max: random.pick(&[0, 1, 3]),
        }
    }

    /// Bytes a connection's outbox may hold: its bound, one packet more, an answer with retained messages, and the
    /// answers owed for what was read.
    pub fn unsent_max(&self) -> usize {
        let packet = self.payload_max + 100;
        let chunk = (64 * packet).min(64 * 1024 + packet);
        self.limits.outbox_bytes_max + packet + chunk + 16 * 1024
    }
}
