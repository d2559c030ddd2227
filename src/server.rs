//! Layer 7: the one place that wires it all. Boot order and stop order.
//!
//! Called  by `main` with a checked [`Config`], on the main thread, which then waits for signals.
//! Holds   - boot: descriptors allowed, ports bound, the store opened and read, the certificate read or made, mesh and
//!           passages made, the shards given what was stored, the store's threads, cores opened, tables parted, cores
//!           serving, and only then the ready file and a word on stdout: who reads either can connect;
//!         - the certificate is read anew on SIGHUP and when its files change; a bad one changes nothing;
//!         - stop (SIGTERM, SIGINT): listeners first, then what is on its way between cores, then connections, then the last
//!           commit, and exit within [`STOP_TIMEOUT_MS`]; no will is published, since everybody who could receive it is
//!           leaving too;
//!         - what goes wrong on the way up is a [`StartError`]: one sentence that says what to change.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::config::{self, Config};
use crate::http;
use crate::http::notify::mail::BadMail;
use crate::http::notify::{self, NotifyReport};
use crate::limits::{
    CERTIFICATE_POLL_MS, CORES_ANSWER_MS, MESH_RING_PARCELS, STOP_TIMEOUT_MS, STORE_MAP_BYTES_MAX, STORE_STOP_MS,
};
use crate::mesh::Mesh;
use crate::metrics::Counters;
use crate::net::certificate::{CertificateError, Loaded};
use crate::net::handoff::passages;
use crate::net::listener::{Listener, listen_on};
use crate::net::transport::{Transport, Transports};
use crate::registry::access::{Access, Accounts};
use crate::registry::quota::Quotas;
use crate::routing::shard_key::{Division, ShardKey};
use crate::shard::record::Stored;
use crate::shard::restore::restore;
use crate::shard::{Limits, PeerId, Shard, ShardConfig, UnixTime};
use crate::store::error::StoreError;
use crate::store::lmdb::Durability;
use crate::store::writer::{Ring, Store, StoreConfig, StoreReport};
use crate::websocket::AllowedOrigins;
use crate::worker::turn::CoreParts;
use crate::worker::{self, Control, Driver, Gate, Mailbox, Progress, WorkerConfig};

mod allocator;
mod announce;
mod platform;
mod renewal;

use announce::{announce, endpoints_of, remove_ready_file, write_ready_file};
use platform::{Platform, PlatformParts, PlatformSettings};
use renewal::Renewal;

/// From the last core's end to the exit.
const EXIT_MARGIN_MS: u64 = 500;

/// What the operator has to change, as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "{address} is in use by another process; stop that one, or give {flag} another number (0: any free port, off: none)"
    )]
    PortInUse { address: SocketAddr, flag: &'static str },
    #[error("cannot listen on {address}: {error}; give --bind an address of this host and {flag} a port it may open")]
    Listen {
        address: SocketAddr,
        flag: &'static str,
        error: io::Error,
    },
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error("{0}")]
    Mail(#[from] BadMail),
    #[error(
        "cannot start the HTTP API: {0}; give --data-dir a directory on a local disk, and allow more threads (ulimit -u)"
    )]
    Api(io::Error),
    #[error("--ws-allow-origin: {0}")]
    Origin(String),
    #[error(
        "io_uring cannot be used here: {0}; containers often forbid it, and --driver epoll does without (--driver auto \
         chooses by itself)"
    )]
    IoUring(io::Error),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("cannot start the threads of the store: {0}; allow more threads (ulimit -u)")]
    StoreThreads(io::Error),
    #[error("cannot set up {cores} cores: {error}; allow more open files (ulimit -n) or give fewer --cores")]
    Cores { cores: u16, error: io::Error },
    #[error("cannot write the ready file {path}: {error}; give --ready-file a path that can be written", path = path.display())]
    ReadyFile { path: PathBuf, error: io::Error },
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// Runs the broker until a signal ends it.
pub fn run(config: Config) -> Result<(), StartError> {
    allocator::bound();
    let descriptors = raise_descriptor_limit();
    let signals = signals().map_err(StartError::Signals)?;
    let mut broker = start(&config, descriptors)?;
    if let Some(path) = &config.ready_file {
        write_ready_file(path, &broker.ports, broker.api_port()).map_err(|error| StartError::ReadyFile {
            path: path.clone(),
            error,
        })?;
    }
    announce(&config, &broker);
    loop {
        match await_signal(&signals, broker.renewal.is_some()) {
            None => broker.renew(Renewal::look),
            Some(SIGHUP) => broker.renew(Renewal::reload),
            Some(SIGUSR1) => {
                let (counters, store) = broker.report();
                tracing::info!(
                    counters = summary(&counters),
                    store = summary_of_store(&store),
                    events = summary_of_events(broker.platform.as_ref().map(Platform::report)),
                    "counted so far"
                );
            }
            Some(_) => break,
        }
    }
    tracing::info!("stopping");
    let events = broker.platform.take().map(Platform::stop);
    let (counters, store) = broker.stop();
    tracing::info!(
        counters = summary(&counters),
        store = summary_of_store(&store),
        events = summary_of_events(events),
        "stopped"
    );
    if let Some(path) = &config.ready_file {
        remove_ready_file(path);
    }
    Ok(())
}

/// The signals of this process, as they come.
fn signals() -> io::Result<mpsc::Receiver<i32>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP])?;
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        // Ends with the process.
        signals
            .forever()
            .take_while(|signal| tell.send(*signal).is_ok())
            .for_each(drop);
    })?;
    Ok(told)
}

/// The next signal; None after a while, if there is something to look at.
fn await_signal(signals: &mpsc::Receiver<i32>, looks: bool) -> Option<i32> {
    const GONE: &str = "the thread that hears signals does not end";
    if !looks {
        return Some(signals.recv().expect(GONE));
    }
    match signals.recv_timeout(Duration::from_millis(CERTIFICATE_POLL_MS)) {
        Ok(signal) => Some(signal),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
        Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("{GONE}"),
    }
}

/// One of the ports that clients connect to.
#[derive(Clone, Copy, Debug)]
struct OpenPort {
    transport: Transport,
    port: u16,
}

/// A broker that serves.
struct Broker {
    ports: Vec<OpenPort>,
    /// None: no port speaks TLS.
    renewal: Option<Renewal>,
    cores: Vec<(Arc<Mailbox>, JoinHandle<Counters>)>,
    store: Store,
    /// `--access platform`
    platform: Option<Platform>,
}

impl Broker {
    /// The sum of all cores' counters; a core that does not answer in a second is left out.
    fn report(&self) -> (Counters, StoreReport) {
        let (to, reports) = mpsc::channel();
        for (mailbox, _) in &self.cores {
            mailbox.send(Control::Report(to.clone()));
        }
        drop(to);
        let mut sum = Counters::default();
        while let Ok(counters) = reports.recv_timeout(Duration::from_millis(CORES_ANSWER_MS)) {
            sum.add(&counters);
        }
        (sum, self.store.report())
    }

    /// Gives every core the certificate that this finds, if it finds one; the log has it when all have taken it up.
    fn renew(&mut self, find: impl FnOnce(&mut Renewal) -> Option<Loaded>) {
        let Some(loaded) = self.renewal.as_mut().and_then(find) else {
            return;
        };
        let (taken_up, all) = mpsc::channel();
        for (mailbox, _) in &self.cores {
            mailbox.send(Control::Certificate(Box::new(loaded.tls.clone()), taken_up.clone()));
        }
        drop(taken_up);
        if let Some(platform) = &self.platform {
            platform.renew(loaded.tls.clone());
        }
        // Nothing is sent: it ends when the last core has dropped its end.
        let _ = all.recv_timeout(Duration::from_millis(CORES_ANSWER_MS));
        renewal::tell_renewed(&loaded);
    }

    fn api_port(&self) -> Option<u16> {
        Some(self.platform.as_ref()?.api?.port())
    }

    fn stop(self) -> (Counters, StoreReport) {
        let until = Instant::now() + Duration::from_millis(STOP_TIMEOUT_MS - STORE_STOP_MS - EXIT_MARGIN_MS);
        for (mailbox, _) in &self.cores {
            mailbox.send(Control::Stop);
        }
        let mut sum = Counters::default();
        for (_, core) in self.cores {
            while !core.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            match core.is_finished() {
                true => sum.add(&core.join().expect("a core that panics ends the process")),
                false => tracing::warn!("a core did not stop in time; its connections end with the process"),
            }
        }
        (sum, self.store.stop())
    }
}

fn start(config: &Config, descriptors: u64) -> Result<Broker, StartError> {
    let cores = usize::from(config.cores);
    let no_cores = |error| StartError::Cores {
        cores: config.cores,
        error,
    };

    let mut listeners_of: Vec<Vec<OwnedFd>> = (0..cores).map(|_| Vec::new()).collect();
    let mut ports = Vec::new();
    for (transport, wanted, flag) in wanted_ports(config) {
        let (port, listeners) = listen_on(config.bind, wanted, cores).map_err(|error| {
            let address = SocketAddr::new(config.bind, wanted);
            match error.kind() {
                io::ErrorKind::AddrInUse => StartError::PortInUse { address, flag },
                _ => StartError::Listen { address, flag, error },
            }
        })?;
        ports.push(OpenPort { transport, port });
        for (of, listener) in listeners_of.iter_mut().zip(listeners) {
            of.push(listener);
        }
    }
    let platform = match config.access {
        config::Access::Open => None,
        config::Access::Platform => {
            let settings = PlatformSettings::of(config)?;
            let listener = platform::listen(&config.api).map_err(|(address, error)| {
                let flag = "--api-port";
                match error.kind() {
                    io::ErrorKind::AddrInUse => StartError::PortInUse { address, flag },
                    _ => StartError::Listen { address, flag, error },
                }
            })?;
            // Before the descriptor tables part.
            let runtime = http::Runtime::open().map_err(StartError::Api)?;
            Some((settings, listener, notify::door(), runtime))
        }
    };
    let origins = match &config.ws_allow_origin[..] {
        [] => AllowedOrigins::Any,
        origins => AllowedOrigins::parse(origins).map_err(StartError::Origin)?,
    };

    let (mut store, stored) = Store::open(StoreConfig {
        dir: config.data_dir.clone(),
        durability: match config.durability {
            config::Durability::Fsync => Durability::Fsync,
            config::Durability::Process => Durability::Process,
        },
        map_bytes: config.map_bytes,
        map_bytes_max: STORE_MAP_BYTES_MAX,
        retained_bytes_max: config.retained_memory_bytes_max,
    })?;
    // Behind the store, which has made sure that the data directory is this broker's.
    let api_is_tls = config.api.is_tls && platform.as_ref().is_some_and(|(_, listener, ..)| listener.is_some());
    let (renewal, tls) = match api_is_tls || ports.iter().any(|open| open.transport.is_tls) {
        false => (None, None),
        true => {
            let (renewal, tls) = Renewal::start(config)?;
            (Some(renewal), Some(tls))
        }
    };

    let is_private = config.parts_descriptors(descriptors);
    let listener_fds: Vec<Vec<RawFd>> = listeners_of
        .iter()
        .map(|of| of.iter().map(AsRawFd::as_raw_fd).collect())
        .collect();
    let passages = match is_private {
        true => passages(cores).map_err(no_cores)?.into_iter().map(Some).collect(),
        false => Vec::from_iter((0..cores).map(|_| None)),
    };
    let endpoints = Mesh::build(cores, MESH_RING_PARCELS).map_err(no_cores)?;

    let shard_config = ShardConfig {
        core: PeerId(0),
        cores: config.cores,
        shard_levels: config.shard_levels,
        hash_key: random_key(),
        limits: Limits {
            packet_bytes_max: config.packet_bytes_max,
            inflight_max: config.inflight_max,
            queued_max: config.queued_max,
            queued_bytes_max: config.queued_bytes_max,
            outbox_bytes_max: config.outbox_bytes_max,
            subscriptions_max: config.subscriptions_per_session_max,
            overflow_wait_ms: config.overflow_wait.as_millis() as u64,
            retained_memory_bytes_max: config.retained_memory_bytes_max,
            publishes_per_s_max: config.publishes_per_s_max,
            session_expiry_s: config.session_expiry.map(|expiry| expiry.as_secs()),
        },
        unix_time: UnixTime {
            epoch_ms: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
        },
        access: match config.access {
            config::Access::Open => Access::Open,
            config::Access::Platform => Access::Platform(Arc::new(accounts(&stored, config.account_quotas))),
        },
        v1_topics: config.api.v1,
        stored_datapoints: store.datapoints().clone(),
    };
    let driver = match config.driver {
        config::Driver::Auto => Driver::Auto,
        config::Driver::IoUring => Driver::IoUring,
        config::Driver::Epoll => Driver::Epoll,
    };
    let cpus = worker::cpus();
    let connections_open = Arc::new(AtomicUsize::new(0));
    let gates: Arc<[Gate; 2]> = Arc::new([Gate::new(cores), Gate::new(cores)]);
    let (progress, heard) = mpsc::channel();
    let epoch = Instant::now();

    let accounts = match &shard_config.access {
        Access::Open => None,
        Access::Platform(accounts) => Some(Arc::clone(accounts)),
    };
    let newest_account = stored.newest_account;
    let events: Vec<_> = stored
        .accounts
        .iter()
        .map(|(account, events)| (account.id, events.clone()))
        .collect();
    let shard = |core: usize| {
        Shard::new(ShardConfig {
            core: PeerId(core as u16),
            ..shard_config.clone()
        })
    };
    let mut shards: Vec<Shard> = (0..cores).map(shard).collect();
    let restored = (stored.sessions.len(), stored.retained.len());
    restore(&mut shards, stored);

    // All that can fail, before the first thread waits at a gate.
    let rings = endpoints.iter().map(|mesh| -> Ring {
        let bell = Arc::clone(mesh.bell());
        Box::new(move || bell.ring())
    });
    let doors = store.start(rings.collect()).map_err(StartError::StoreThreads)?;
    let mut parts_of = Vec::with_capacity(cores);
    let ends = endpoints
        .into_iter()
        .zip(listeners_of)
        .zip(passages)
        .zip(shards)
        .zip(doors);
    for ((((mesh, listeners), passage), shard), store) in ends {
        let mailbox = Arc::new(Mailbox::new(Arc::clone(mesh.bell())));
        parts_of.push(CoreParts {
            shard,
            listeners: listeners.into_iter().map(Listener::new).collect(),
            transports_of: ports.iter().map(|open| open.transport).collect(),
            transports: Transports::new(tls.clone(), origins.clone()),
            certificate_names_user: config.tls_client_cn_as_username,
            mesh,
            passage,
            store,
            mailbox,
            access: shard_config.access.clone(),
            notifier: platform.as_ref().map(|(_, _, (door, _), _)| door.of_cores()),
            client_id_chars_max: config.client_id_chars_max,
            connect_timeout_ms: config.connect_timeout.as_millis() as u64,
            write_interval_us: config.write_interval.as_micros() as u32,
            connections_max: config.connections_max,
            connections_open: Arc::clone(&connections_open),
            epoch,
        });
    }
    let mut threads = Vec::with_capacity(cores);
    for (core, parts) in parts_of.into_iter().enumerate() {
        let mailbox = Arc::clone(&parts.mailbox);
        let of_others = || {
            let others = listener_fds.iter().enumerate().filter(|(other, _)| *other != core);
            others.flat_map(|(_, fds)| fds.iter().copied()).collect()
        };
        let worker = WorkerConfig {
            driver,
            cpu: (cores <= cpus.len()).then(|| cpus[core]),
            private_descriptors: is_private.then(of_others),
        };
        // A thread that cannot be started leaves the others at a gate that never opens: the process ends with the error.
        let thread = worker::start(worker, parts, Arc::clone(&gates), progress.clone()).map_err(no_cores)?;
        threads.push((mailbox, thread));
    }
    drop(progress);

    let opened = hear_all(&heard, cores);
    gates[0].open(opened.is_ok());
    let drivers = opened.map_err(|error| match driver {
        Driver::IoUring => StartError::IoUring(error),
        _ => no_cores(error),
    })?;
    let parted = hear_all(&heard, cores);
    gates[1].open(parted.is_ok());
    parted.map_err(no_cores)?;

    let platform = match (platform, accounts) {
        (Some((settings, listener, (door, inbox), runtime)), Some(accounts)) => {
            let api_address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
            let parts = PlatformParts {
                runtime,
                settings,
                listener,
                tls: tls.filter(|_| api_is_tls),
                accounts,
                events,
                newest_account,
                stored_datapoints: shard_config.stored_datapoints.clone(),
                client: store.client(),
                mailboxes: threads.iter().map(|(mailbox, _)| Arc::clone(mailbox)).collect(),
                shard_key: ShardKey::new(
                    shard_config.hash_key,
                    config.cores,
                    Division::of(&shard_config.access, config.shard_levels),
                ),
                door,
                inbox,
                endpoints: endpoints_of(config, &ports, &renewal, api_address),
            };
            Some(platform::start(parts, &config.data_dir).map_err(StartError::Api)?)
        }
        _ => None,
    };

    let without_ring = drivers.iter().filter(|driver| **driver == Driver::Epoll).count();
    if config.driver == config::Driver::Auto && without_ring > 0 {
        tracing::warn!("io_uring cannot be used here; {without_ring} of {cores} cores wait with epoll instead");
    }
    let tables = if is_private { cores as u64 } else { 1 };
    tracing::info!(
        cores,
        driver = if without_ring == 0 { "io_uring" } else { "epoll" },
        private_fds = is_private,
        descriptors = tables * descriptors,
        data_dir = %config.data_dir.display(),
        sessions = restored.0,
        retained = restored.1,
        "started"
    );
    Ok(Broker {
        ports,
        renewal,
        cores: threads,
        store,
        platform,
    })
}

/// The accounts that a start finds, with their events.
fn accounts(stored: &Stored, quotas: Quotas) -> Accounts {
    let mut accounts = Accounts::bounded(quotas);
    for (account, events) in &stored.accounts {
        accounts = accounts.with(account.clone(), events.iter().cloned());
    }
    accounts
}

/// The ports that are not off, with their flags.
fn wanted_ports(config: &Config) -> impl Iterator<Item = (Transport, u16, &'static str)> {
    let proxied = config.proxy_protocol;
    let ports = [
        (false, false, proxied.mqtt, config.mqtt_port, "--mqtt-port"),
        (true, false, proxied.mqtts, config.mqtts_port, "--mqtts-port"),
        (false, true, proxied.ws, config.ws_port, "--ws-port"),
        (true, true, proxied.wss, config.wss_port, "--wss-port"),
    ];
    ports
        .into_iter()
        .filter_map(|(is_tls, is_websocket, has_proxy_header, port, flag)| {
            let transport = Transport {
                has_proxy_header,
                is_tls,
                is_websocket,
            };
            port.map(|port| (transport, port, flag))
        })
}

/// One word of every core; the drivers they use if all went well, else the first thing that did not.
fn hear_all(heard: &mpsc::Receiver<Progress>, cores: usize) -> io::Result<Vec<Driver>> {
    let mut drivers = Vec::new();
    let mut failed = None;
    for _ in 0..cores {
        match heard.recv().expect("a core says how it fares before it ends") {
            Progress::Opened(driver) => drivers.push(driver),
            Progress::Parted => {}
            Progress::Failed(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(drivers), Err)
}

/// As many open files as the process may have; returns how many.
fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

/// The key of every hash, so that nobody outside can choose where things collide.
fn random_key() -> [u64; 4] {
    let mut bytes = [0; 32];
    let filled =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()));
    assert_eq!(
        filled,
        Ok(bytes.len()),
        "up to 256 bytes are given whole once the system has booted"
    );
    let mut key = [0; 4];
    for (word, bytes) in key.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("a chunk of eight"));
    }
    key
}

fn summary_of_store(report: &StoreReport) -> String {
    let StoreReport {
        commits,
        records,
        records_max,
        bytes,
        failed_commits,
        dropped_datapoints,
        map_bytes,
        commit_us,
        commit_us_max,
        waiting_records,
    } = report;
    format!(
        "commits={commits} records={records} records_max={records_max} bytes={bytes} failed_commits={failed_commits} \
         dropped_datapoints={dropped_datapoints} map_bytes={map_bytes} commit_us={commit_us} commit_us_max={commit_us_max} waiting_records={waiting_records}"
    )
}

fn summary_of_events(report: Option<NotifyReport>) -> String {
    let Some(report) = report else {
        return String::new();
    };
    let NotifyReport {
        delivered,
        failed,
        refused,
        dropped,
        outdated,
        within_interval,
        mailed,
        mails_logged,
        mails_over_limit,
        retries,
        waiting,
    } = report;
    format!(
        "delivered={delivered} failed={failed} refused={refused} dropped={dropped} outdated={outdated} \
         within_interval={within_interval} mailed={mailed} mails_logged={mails_logged} \
         mails_over_limit={mails_over_limit} retries={retries} waiting={waiting}"
    )
}

/// The counters that are not 0.
fn summary(counters: &Counters) -> String {
    let mut text = String::new();
    for (name, count) in counters.iter().filter(|(_, count)| *count > 0) {
        let _ = write!(text, "{}{name}={count}", if text.is_empty() { "" } else { " " });
    }
    text
}
