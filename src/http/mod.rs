//! Layer 6: the HTTP API, on the control thread.
//!
//! Owns    the thread and its runtime, on which also runs what is beside the API: notifications, and the admin socket.
//! Called  by `server`: [`start`] when the cores serve, [`Handle::renew`] with a new certificate, [`Handle::stop`] before they
//!         stop, since what is being answered waits for them.
//! Holds   - one thread for all requests; what blocks (a look at the store) is on a few threads beside it;
//!         - the cores are asked, never shared with: a slow client of the API costs ingestion nothing;
//!         - where CPUs are short its threads step back before the cores.

pub mod admin;
mod answer;
pub mod api;
mod auth;
mod budget;
mod channel;
mod connector;
pub mod cores;
pub mod desk;
mod device;
pub mod error;
mod event;
pub mod notify;
mod openapi;
mod publish;
mod rate;
mod request;
mod router;
mod serve;
mod session;
mod stream;
#[cfg(test)]
mod testing;
mod time;
mod tls;
mod user;
mod viewers;

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::api::{Api, ApiParts};
use self::tls::Acceptor;
use crate::limits::{HTTP_BLOCKING_THREADS_MAX, HTTP_NICE, HTTP_STOP_MS};
use crate::net::certificate::Tls;

/// What the control thread will run on. Cores that part their descriptor tables do so after it was opened: they wake it by a
/// descriptor of its, which must be the same in every table.
pub struct Runtime(tokio::runtime::Runtime);

impl Runtime {
    pub fn open() -> io::Result<Runtime> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(HTTP_BLOCKING_THREADS_MAX)
            .thread_name("http-wait")
            .on_thread_start(step_back)
            .build()?;
        Ok(Runtime(runtime))
    }
}

/// What the control thread begins with.
pub struct Parts {
    pub runtime: Runtime,
    /// Bound already: that a port is in use is said before anything starts. `None`: the API is closed.
    pub listener: Option<TcpListener>,
    /// `--api-tls`
    pub tls: Option<Tls>,
    pub api: ApiParts,
    /// What else runs on this thread, until it ends.
    pub beside: Vec<Beside>,
}

pub type Beside = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The control thread.
pub struct Handle {
    thread: JoinHandle<()>,
    acceptor: Option<Acceptor>,
    stop: watch::Sender<bool>,
}

pub fn start(parts: Parts) -> io::Result<Handle> {
    let Parts {
        runtime: Runtime(runtime),
        listener,
        tls,
        api,
        beside,
    } = parts;
    let listener = match listener {
        None => None,
        Some(listener) => {
            listener.set_nonblocking(true)?;
            let _on = runtime.enter();
            Some(tokio::net::TcpListener::from_std(listener)?)
        }
    };
    let acceptor = tls.map(Acceptor::new);
    let (stop, stopped) = watch::channel(false);
    let serving = acceptor.clone();
    let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        step_back();
        let app = router::app(Api::new(api));
        runtime.block_on(async {
            beside.into_iter().for_each(|task| drop(tokio::spawn(task)));
            match listener {
                Some(listener) => serve::serve(listener, serving, app, stopped).await,
                None => serve::until(stopped).await,
            }
        });
        // A view that is being looked at may take longer; it ends with the process.
        runtime.shutdown_background();
    })?;
    Ok(Handle { thread, acceptor, stop })
}

/// The calling thread leaves the CPUs to the cores. On Linux this is about one thread.
fn step_back() {
    if let Err(error) = rustix::process::nice(HTTP_NICE) {
        tracing::debug!(%error, "the API goes on with the priority of the cores");
    }
}

/// The API as a service, without connections. The door for fuzzers.
#[doc(hidden)]
pub fn fuzz_app(api: Api) -> router::App {
    router::app(api)
}

impl Handle {
    /// For every TLS handshake from now on.
    pub fn renew(&self, tls: Tls) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.renew(tls);
        }
    }

    /// Ends the thread: who is connected is answered first, within [`HTTP_STOP_MS`].
    pub fn stop(self) {
        /// What the thread may take beyond that to come back.
        const SLACK: Duration = Duration::from_millis(500);
        /// The thread is looked at so often.
        const POLL: Duration = Duration::from_millis(2);
        let until = Instant::now() + Duration::from_millis(HTTP_STOP_MS) + SLACK;
        self.stop.send_replace(true);
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        match self.thread.is_finished() {
            true => {
                // A panic of it has been logged, and ends a release build.
                let _ = self.thread.join();
            }
            false => tracing::warn!("the API did not stop in time; its connections end with the process"),
        }
    }
}
