//! The connections of the API: accepted, bounded, and ended when they are silent.
//!
//! Holds   - at most [`HTTP_CONNECTIONS_MAX`] at a time; who comes then waits in the backlog of the listener;
//!         - a connection on which no byte moves for [`HTTP_STALL_MS`] is closed, whatever it waits for: an answer takes less;
//!         - one that is refused waits for that: it costs a flood time, not the broker;
//!         - one whose client reads its answer too slowly is closed too, since what it has not taken is in memory;
//!         - at a stop, requests that have begun are answered, within [`HTTP_STOP_MS`].

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tower::ServiceExt as _;

use super::router::App;
use super::tls::Acceptor;
use crate::limits::{
    HTTP_CONNECTIONS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_REFUSAL_MS, HTTP_SILENCE_MS, HTTP_STALL_BYTES,
    HTTP_STALL_MS, HTTP_STOP_MS,
};

/// Out of descriptors, mostly: others have to close some first.
const ACCEPT_RETRY_MS: u64 = 100;

/// Serves until `stop` says true (or has no sender any more), and then until who is connected has been answered.
pub async fn serve(listener: TcpListener, acceptor: Option<Acceptor>, app: App, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, app, stop) = (acceptor.clone(), app.clone(), stop.clone());
                tokio::spawn(async move {
                    let _place = place;
                    connection(stream, acceptor, app, stop).await;
                });
            }
            Err(error) => {
                tracing::warn!("the API cannot accept a connection: {error}");
                sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
            }
        }
    }
    drop(listener);
    let all = u32::try_from(HTTP_CONNECTIONS_MAX).expect("it is a small number");
    let _ = timeout(Duration::from_millis(HTTP_STOP_MS), places.acquire_many(all)).await;
}

/// Serves nobody: for what runs beside.
pub async fn until(mut stop: watch::Receiver<bool>) {
    stopped(&mut stop).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without a sender there is nobody who could want it to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(stream: TcpStream, acceptor: Option<Acceptor>, app: App, stop: watch::Receiver<bool>) {
    // Answers are written whole.
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => speak(stream, app, stop).await,
        Some(acceptor) => {
            let silence = Duration::from_millis(HTTP_SILENCE_MS);
            match timeout(silence, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => speak(stream, app, stop).await,
                Ok(Err(error)) => tracing::debug!("a TLS handshake of the API failed: {error}"),
                Err(_) => tracing::debug!("a TLS handshake of the API took too long"),
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, app: App, mut stop: watch::Receiver<bool>) {
    let movement = Arc::new(Movement::default());
    let watched = Watched {
        stream,
        movement: Arc::clone(&movement),
    };
    let service = service_fn(move |request: Request<Incoming>| answer(app.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // From the end of the answer before: who keeps a connection for later is closed by it too.
        .header_read_timeout(Duration::from_millis(HTTP_SILENCE_MS))
        .max_headers(HTTP_HEADERS_MAX)
        .max_header_size(HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(watched), service);
    let mut connection = pin!(connection);
    let mut look = interval(Duration::from_millis(HTTP_STALL_MS));
    // After a sleep of the host nobody has had his time.
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut moved_before = None;
    let mut is_stopping = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!("a connection of the API ended: {error}");
                }
                return;
            }
            _ = look.tick() => {
                let moved = movement.bytes.load(Ordering::Relaxed);
                let least = if movement.is_held_up.load(Ordering::Relaxed) { HTTP_STALL_BYTES } else { 1 };
                if moved_before.is_some_and(|before| moved < before + least) {
                    return;
                }
                moved_before = Some(moved);
            }
            () = stopped(&mut stop), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(app: App, request: Request<Incoming>) -> Result<Response, Infallible> {
    let answer = app.oneshot(request.map(Body::new)).await?;
    if matches!(
        answer.status(),
        StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS
    ) {
        sleep(Duration::from_millis(HTTP_REFUSAL_MS)).await;
    }
    Ok(answer)
}

#[derive(Default)]
struct Movement {
    bytes: AtomicU64,
    /// The client has not taken what is to be written.
    is_held_up: AtomicBool,
}

/// A stream whose movement is counted.
struct Watched<S> {
    stream: S,
    movement: Arc<Movement>,
}

impl<S> Watched<S> {
    fn moved(&self, bytes: usize) {
        self.movement.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn written(&self, polled: &Poll<io::Result<usize>>) {
        self.movement.is_held_up.store(polled.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = polled {
            self.moved(*bytes);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, into);
        this.moved(into.filled().len() - before);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(&polled);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.written(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::testing::{ONE, Platform};

    struct Served {
        platform: Platform,
        address: std::net::SocketAddr,
        stop: watch::Sender<bool>,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Served {
        async fn start() -> Served {
            let platform = Platform::new();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = watch::channel(false);
            let serving = tokio::spawn(serve(listener, None, platform.app(), stopped));
            Served {
                platform,
                address,
                stop,
                serving,
            }
        }

        /// What comes until the other side closes.
        async fn says(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test]
    async fn requests_of_one_connection_are_answered_in_order() {
        let served = Served::start().await;
        let token = served.platform.account(ONE).api_token;
        let one = |path: &str, more: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {}\r\n{more}\r\n",
                token.as_str()
            )
        };
        let requests = one("/v2/device", "") + &one("/nothing", "") + &one("/health", "Connection: close\r\n");
        let answers = served.says(&requests).await;
        // A body has no line of its own.
        let statuses: Vec<_> = answers
            .split("HTTP/1.1 ")
            .skip(1)
            .filter_map(|answer| answer.lines().next())
            .collect();
        assert_eq!(statuses, ["200 OK", "404 Not Found", "200 OK"]);
        assert!(answers.contains("content-length: 2\r\n") && answers.ends_with(r#"{"status":"ok"}"#));
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_or_broken_is_refused() {
        let served = Served::start().await;
        let long = format!(
            "GET /health HTTP/1.1\r\nX-A: {}\r\n\r\n",
            "a".repeat(HTTP_HEAD_BYTES_MAX)
        );
        assert!(served.says(&long).await.starts_with("HTTP/1.1 431 "));
        let many = format!(
            "GET /health HTTP/1.1\r\n{}\r\n",
            "X-A: a\r\n".repeat(HTTP_HEADERS_MAX + 1)
        );
        assert!(served.says(&many).await.starts_with("HTTP/1.1 431 "));
        for broken in [
            "GET\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
            "GET / HTTP/1.1\r\nX : a\r\n\r\n",
        ] {
            assert!(served.says(broken).await.starts_with("HTTP/1.1 400 "), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_and_heard() {
        let served = Served::start().await;
        let token = served.platform.account(ONE).api_token;
        let head = format!("PUT /v2/user HTTP/1.1\r\nHost: x\r\nX-APITOKEN: {}\r\n", token.as_str());
        let body = "x".repeat(300_000);
        let sent = format!(
            "{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        assert!(served.says(&sent).await.starts_with("HTTP/1.1 413 "));
        let chunked = format!(
            "{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        assert!(served.says(&chunked).await.starts_with("HTTP/1.1 413 "));
        let promised = format!("{head}Content-Length: 99999999999\r\n\r\n");
        assert!(served.says(&promised).await.starts_with("HTTP/1.1 413 "));
        let waiting = format!("{head}Content-Length: 300000\r\nExpect: 100-continue\r\n\r\n");
        assert!(served.says(&waiting).await.starts_with("HTTP/1.1 413 "));
    }

    #[tokio::test]
    async fn a_stop_ends_connections_that_wait_and_the_listener() {
        let served = Served::start().await;
        let mut idle = TcpStream::connect(served.address).await.unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut begun = [0; 12];
        idle.read_exact(&mut begun).await.unwrap();
        served.stop.send_replace(true);
        timeout(Duration::from_secs(10), served.serving).await.unwrap().unwrap();
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.unwrap();
        assert!(TcpStream::connect(served.address).await.is_err());
    }
}
