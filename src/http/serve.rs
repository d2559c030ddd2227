//! The connections of the API: accepted, bounded, and ended when they are silent.
//!
//! Holds   - at most [`HTTP_CONNECTIONS_MAX`] at a time; who comes then waits in the backlog of the listener;
//!         - a connection on which no byte moves for [`HTTP_STALL_MS`] is closed, whatever it waits for: an answer takes less;
//!         - at a stop, requests that have begun are answered, within [`HTTP_STOP_MS`].

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, sleep, timeout};
use tower::ServiceExt as _;

use super::router::App;
use super::tls::Acceptor;
use crate::limits::{
    HTTP_CONNECTIONS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_SILENCE_MS, HTTP_STALL_MS, HTTP_STOP_MS,
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
    let moved = Arc::new(AtomicU64::new(0));
    let watched = Watched {
        stream,
        moved: Arc::clone(&moved),
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
    let mut moved_before = u64::MAX;
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
                let moved = moved.load(Ordering::Relaxed);
                if moved == moved_before {
                    return;
                }
                moved_before = moved;
            }
            () = stopped(&mut stop), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(app: App, request: Request<Incoming>) -> Result<Response, Infallible> {
    app.oneshot(request.map(Body::new)).await
}

/// A stream that counts the bytes that move on it.
struct Watched<S> {
    stream: S,
    moved: Arc<AtomicU64>,
}

impl<S> Watched<S> {
    fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, into);
        this.count(into.filled().len() - before);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            this.count(*written);
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        if let Poll::Ready(Ok(written)) = &polled {
            this.count(*written);
        }
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
