//! Telemetry: devices of a platform send datapoints, and every one is looked for in their streams.
//!
//! Owns    the flags of the scenario and its phases.
//! Called  by `main`.
//! Holds   - the phases: channels and mapped devices are made, the devices send while readers read and commands come, the
//!           account's count of datapoints says when all is stored, the streams are read back;
//!         - channels, devices and datapoints stay in the account: another run uses the channels and devices again, and knows
//!           its datapoints by its tag;
//!         - settings that cannot be measured are refused with a sentence before anything is connected;
//!         - everything is bounded in time: handshakes, calls, and silence while the broker owes something.

mod commands;
mod ingest;
mod payload;
mod read_back;
mod readers;
mod registry;
mod report;
mod stop;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};

use self::commands::{Commander, Echoes};
use self::ingest::Sending;
use self::readers::Readers;
use self::report::{Disk, Stored, Telemetry};
use crate::acknowledgement::UNACKED_MAX;
use crate::api::Api;
use crate::broker_process::BrokerProcess;
use crate::meter::Reading;
use crate::pace::Pace;
use crate::packet::{Credentials, run_tag};
use crate::poller::Poller;
use crate::private_fds;
use crate::receivers::Wish;
use crate::report::{Host, Latency, Verdict, grouped};
use crate::senders::{Job, NUMBER_DIGITS, NUMBER_MAX, Payload, Rota, Senders, Share};
use crate::timeline::Watch;
use crate::transport::{self, Target};

/// Descriptors that are not devices.
const OTHER_FDS: u64 = 64;
const DEVICE_NAME: &str = "load-";
/// Channels of its own accord: what a person or another program numbers begins below it.
const FIRST_CHANNEL: u32 = 1_000_000;
const CHANNEL_MAX: u32 = i32::MAX as u32;
const CHANNELS_DEFAULT_MAX: u32 = 1000;
/// At QoS 0, and above it: half of the one at QoS 0 leaves at a time.
const WINDOWS: [usize; 2] = [40, 20];
/// Open loop: it is no bound in an ordinary run.
const WINDOW_OPEN_LOOP: usize = 1000;
/// The clocks of the broker and of this host may differ by this much.
const CLOCKS: SignedDuration = SignedDuration::from_secs(60);
const FAR: SignedDuration = SignedDuration::from_hours(24);
/// Between two looks at the count: below the rate limit an API has.
const LOOK: Duration = Duration::from_millis(60);

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Settings {
    /// Devices, each a connection of its own that sends to TOKEN/json/load-NUMBER
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub devices: u32,
    /// Payload bytes, at least 54: {"seq":1000000123,"temp":21.5,"pad":"..."}
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Of the datapoints; commands come at 0, or at 1 where this is not 0
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Messages of one device whose flow has not ended; at QoS 0 those not covered by the answer to a PINGREQ that follows
    /// them [default: at QoS 0 40, else 20, with --rate 1000]
    #[arg(long)]
    pub window: Option<usize>,
    /// Open loop: datapoints a second over all devices, sent on a schedule; latency counts from the scheduled time
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rate: Option<u64>,
    /// Open loop: datapoints that a device gathers and sends at once; above 1 the generator needs much less CPU time
    #[arg(long, default_value_t = 1, requires = "rate", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub burst: u64,
    /// Seconds of sending [default: 10, or without end if there are --messages]
    #[arg(long, visible_alias = "duration")]
    pub seconds: Option<f64>,
    /// Datapoints of each device [default: as many as --seconds allow]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=payload::MESSAGES_MAX))]
    pub messages: Option<u64>,
    /// Seconds without any sign of the broker, while it owes one, that end a run
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub silence: u64,
    /// The HTTP API, by which channels and devices are made, streams read and commands published. Its rate limit is kept: with
    /// 20 calls a second the making and the reading back of 1,000 devices take minutes (skein --api-rate 0 has no limit)
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub api: String,
    /// API token of the account. Other users of this host see the flag in the list of processes, the variable they do not
    #[arg(long, env = "SKEIN_LOAD_API_TOKEN", hide_env_values = true)]
    pub api_token: String,
    /// Channels the devices share out among themselves [default: one each, at most 1000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub channels: Option<u32>,
    /// Number of the first of them; those that are not there are made
    #[arg(long, default_value_t = FIRST_CHANNEL)]
    pub first_channel: u32,
    /// Publish commands through the API, to one device after the other, and time them until the device has them
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub commands_per_second: Option<u64>,
    /// Readers that page through all streams while the devices send
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub readers: u32,
    /// Reads a second over all readers [default: as fast as they are answered]
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub reads_per_second: Option<u64>,
    /// Data directory of the broker: by how much its data.mdb grows
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// First levels of the topics [default: the device token of the account]
    #[arg(long, env = "SKEIN_LOAD_TOPIC_PREFIX", hide_env_values = true)]
    pub topic_prefix: Option<String>,
    #[command(flatten)]
    pub credentials: Credentials,
    #[command(flatten)]
    pub transport: transport::Settings,
}

/// [`Settings`] checked, defaults filled in.
#[derive(Clone, Debug)]
struct Plan {
    run: u32,
    devices: usize,
    channels: u32,
    first_channel: u32,
    qos: u8,
    size: usize,
    window: usize,
    pace: Option<Pace>,
    /// Nanoseconds since the start.
    end_ns: u64,
    messages: u64,
    silence_max: Duration,
    /// In what is read from the API: no datapoint of the run is outside.
    from: String,
    until: String,
}

/// Its digits are those a topic ends in.
fn device_id(device: usize) -> String {
    format!("{DEVICE_NAME}{device:0NUMBER_DIGITS$}")
}

impl Settings {
    fn plan(&self) -> Result<Plan> {
        let devices = u64::from(self.devices);
        if devices - 1 > NUMBER_MAX {
            bail!("--devices {devices} is more than can be numbered");
        }
        let fds = private_fds::raise_limit();
        if devices + OTHER_FDS > fds {
            bail!("{devices} devices, but this process may have {fds} files open: ulimit -n");
        }
        if !(payload::SIZE_MIN..=200_000_000).contains(&self.size) {
            bail!(
                "--size {} is outside {}..=200000000: a payload says which datapoint it is",
                self.size,
                payload::SIZE_MIN
            );
        }
        let window = self.window.unwrap_or(match self.rate {
            Some(_) => WINDOW_OPEN_LOOP,
            None => WINDOWS[usize::from(self.qos.min(1))],
        });
        if !(1..=UNACKED_MAX).contains(&window) {
            bail!("--window {window} is outside 1..={UNACKED_MAX}");
        }
        let seconds = self.seconds.or(match self.messages {
            Some(_) => None,
            None => Some(10.0),
        });
        if seconds.is_some_and(|seconds| !(0.01..=1e6).contains(&seconds)) {
            bail!(
                "--seconds {} is too short to measure, or no time span",
                seconds.unwrap_or(0.0)
            );
        }
        let channels = self
            .channels
            .unwrap_or(self.devices.min(CHANNELS_DEFAULT_MAX))
            .min(self.devices);
        if u64::from(self.first_channel) + u64::from(channels) > u64::from(CHANNEL_MAX) + 1 {
            bail!(
                "--first-channel {} is too great: channels end at {CHANNEL_MAX}",
                self.first_channel
            );
        }
        let now = Timestamp::now();
        let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%S+0000").to_string();
        Ok(Plan {
            run: run_tag(),
            devices: self.devices as usize,
            channels,
            first_channel: self.first_channel,
            qos: self.qos,
            size: self.size,
            window,
            pace: self.rate.map(|rate| Pace::new(rate, devices).in_bursts(self.burst)),
            end_ns: seconds.map_or(u64::MAX, |seconds| (seconds * 1e9) as u64),
            messages: self.messages.unwrap_or(payload::MESSAGES_MAX),
            silence_max: Duration::from_secs(self.silence),
            from: time(now.checked_sub(CLOCKS)?),
            until: time(now.checked_add(FAR)?),
        })
    }

    fn describe(&self, plan: &Plan) -> String {
        let loop_ = match self.rate {
            Some(rate) => format!(
                "open loop at {}/s in bursts of {}, window {}",
                grouped(rate),
                self.burst,
                plan.window
            ),
            None => format!("window {}", plan.window),
        };
        let each = self
            .messages
            .map_or(String::new(), |count| format!(", {} each", grouped(count)));
        format!(
            "{} devices on {} channels, QoS {}, {} bytes, {loop_}{each}, {}",
            grouped(plan.devices as u64),
            grouped(u64::from(plan.channels)),
            plan.qos,
            plan.size,
            self.transport.transport.name(),
        )
    }
}

impl Plan {
    fn channel(&self, index: u32) -> u32 {
        self.first_channel + index
    }

    fn channel_of(&self, device: usize) -> u32 {
        self.channel((device % self.channels as usize) as u32)
    }

    /// The API publishes at no other.
    fn command_qos(&self) -> u8 {
        self.qos.min(1)
    }
}

/// One run against one broker.
pub fn run(address: &str, broker_pid: Option<u32>, settings: &Settings) -> Result<Telemetry> {
    let plan = settings.plan()?;
    let target = Target::new(address, &settings.transport)?;
    let broker = broker_pid.map(BrokerProcess::new).transpose()?;
    let broker = broker.as_ref();
    let api = Api::new(&settings.api, &settings.api_token)?;
    let account = api.account()?;
    let credentials = Credentials {
        username: settings.credentials.username.clone().or(Some(account.user_id)),
        password: settings
            .credentials
            .password
            .clone()
            .or(Some(account.device_token.clone())),
    };
    let prefix = settings.topic_prefix.clone().unwrap_or(account.device_token);
    registry::prepare(&api, &plan)?;

    let mut poller = Poller::new()?;
    let text = |device: usize| payload::text(plan.run, device, plan.size);
    let wish = |device: usize| Wish {
        filter: format!("{prefix}/{}/subscribe", device_id(device)),
        qos: plan.command_qos(),
    };
    let job = Job {
        credentials: &credentials,
        run: plan.run,
        qos: plan.qos,
        unacked: plan.window,
        ping_window: Some(plan.window as u64),
        pace: plan.pace,
        pace_end_ns: plan.end_ns,
        silence_max: plan.silence_max,
        retain: false,
        payload: Payload::Text {
            of: &text,
            sequence_at: payload::SEQUENCE_AT,
            sequence_base: payload::SEQUENCE_BASE,
        },
        topic: format!("{prefix}/json/{}", device_id(0)),
        is_numbered: true,
        wish: settings.commands_per_second.is_some().then_some(&wish),
    };
    let shares: Vec<Share> = (0..plan.devices as u64)
        .map(|device| share(device, plan.messages))
        .collect();
    let mut senders = Senders::connect(&target, &poller, 0, job, &shares)?;

    let stored_before = api.account()?.datapoint_count();
    let disk_before = settings.data_dir.as_deref().map(used_bytes).transpose()?;
    let readers = Readers::start(&api, &plan, settings.readers, settings.reads_per_second)?;
    let watch = Watch::start(
        broker,
        if plan.qos > 0 {
            &["sent", "acknowledged"]
        } else {
            &["sent"]
        },
        "sending",
    )?;
    let begin = Reading::take(broker)?;
    let start = Instant::now();
    let mut echoes = Echoes::new(&plan, start)?;
    let commander = settings
        .commands_per_second
        .map(|rate| Commander::start(&api, &plan, rate, start));
    let commands = commander.transpose()?.map(|commander| (commander, &mut echoes));
    let sending = ingest::drive(&mut senders, &mut poller, &plan, start, &watch, commands)?;
    let own = Reading::take(None)?.since(&begin).own_cpu;
    watch.phase("storing");
    let reading = readers.map(Readers::stop).transpose()?;
    let stored = wait_until_stored(&api, &plan, stored_before, senders.sent, start, sending)?;
    let span = Reading::take(broker)?.since(&begin);
    let memory = watch.memory();
    let timeline = watch.stop();
    let disk = match (&settings.data_dir, disk_before) {
        (Some(directory), Some(before)) => Some(disk(before, used_bytes(directory)?, stored.datapoints)),
        _ => None,
    };
    let read_back = read_back::run(&api, &plan, |device| senders.sent_by(device))?;

    let seconds = |ns: u64| ns.max(1) as f64 / 1e9;
    let (sent_seconds, answered_seconds) = (seconds(sending.sent_ns), seconds(sending.answered_ns));
    let is_acknowledged = plan.qos > 0;
    let mut figures = Telemetry {
        address: address.to_string(),
        broker: broker.map(|b| b.name.clone()),
        settings: settings.describe(&plan),
        host: Host::this(),
        qos: plan.qos,
        sent: senders.sent,
        sent_seconds,
        sent_per_s: senders.sent as f64 / sent_seconds,
        acknowledged: is_acknowledged.then_some(senders.acknowledged),
        answered_seconds,
        acknowledged_per_s: is_acknowledged.then(|| senders.acknowledged as f64 / answered_seconds),
        acknowledgement_us: is_acknowledged.then(|| Latency::of(&senders.histogram)),
        generator_cpu_us: own.as_secs_f64() * 1e6 / senders.sent.max(1) as f64,
        generator_cpus: own.as_secs_f64() / answered_seconds,
        costs: span.costs(stored.datapoints),
        stored,
        memory,
        disk,
        commands: echoes.figures(),
        reading,
        read_back,
        acknowledgements: senders.faults(),
        timeline,
        behind_schedule: sending.behind_schedule,
        api_refused: api.refused(),
        verdict: Verdict::Good,
    };
    figures.judge();
    senders.close();
    Ok(figures)
}

fn share(device: u64, messages: u64) -> Share {
    Share {
        rota: Rota {
            first: device,
            ..Rota::ONE
        },
        from: 0,
        until: messages,
    }
}

/// Asks for the account's count until all that was sent is in it, or it stands still: a disk that others use may keep a commit
/// waiting for seconds, and only what was dropped at QoS 0 is waited for in vain.
fn wait_until_stored(
    api: &Api,
    plan: &Plan,
    before: u64,
    sent: u64,
    start: Instant,
    sending: Sending,
) -> Result<Stored> {
    let (mut seen, mut moved) = (None, Instant::now());
    loop {
        let count = api.account()?.datapoint_count();
        let at_ns = start.elapsed().as_nanos() as u64;
        let datapoints = count.saturating_sub(before);
        if datapoints >= sent {
            let seconds = at_ns as f64 / 1e9;
            return Ok(Stored {
                datapoints,
                seconds: Some(seconds),
                per_s: Some(datapoints as f64 / seconds),
                readable_after_ms: Some(at_ns.saturating_sub(sending.sent_ns) as f64 / 1e6),
            });
        }
        if seen != Some(count) {
            (seen, moved) = (Some(count), Instant::now());
        } else if moved.elapsed() > plan.silence_max {
            return Ok(Stored {
                datapoints,
                seconds: None,
                per_s: None,
                readable_after_ms: None,
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// Of the blocks its file system has given the data file: the file itself may be longer than what is used of it.
fn used_bytes(directory: &Path) -> Result<u64> {
    let path = directory.join("data.mdb");
    let metadata = fs::metadata(&path).with_context(|| format!("--data-dir: {}", path.display()))?;
    Ok(metadata.blocks() * 512)
}

fn disk(bytes_before: u64, bytes_after: u64, datapoints: u64) -> Disk {
    let grown = bytes_after.saturating_sub(bytes_before);
    Disk {
        bytes_before,
        bytes_after,
        bytes_per_datapoint: (datapoints > 0).then(|| grown as f64 / datapoints as f64),
    }
}
