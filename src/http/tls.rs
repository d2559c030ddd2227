//! TLS of the API's port, with the certificate that the broker has.
//!
//! Holds   - a handshake that has begun ends with the certificate that it began with; the next has the renewed one;
//!         - where clients must show a certificate (`--tls-client-ca`) those of the API must as well, and it is verified again
//!           when a session is resumed.

use std::io;
use std::sync::{Arc, Mutex};

use rustls::pki_types::UnixTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::net::certificate::Tls;

/// A handle; all of them have the same certificate.
#[derive(Clone)]
pub struct Acceptor(Arc<Mutex<Tls>>);

impl Acceptor {
    pub fn new(tls: Tls) -> Acceptor {
        Acceptor(Arc::new(Mutex::new(tls)))
    }

    pub fn renew(&self, tls: Tls) {
        *self.0.lock().expect("nobody panics while holding it") = tls;
    }

    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let tls = self.0.lock().expect("nobody panics while holding it").clone();
        let stream = TlsAcceptor::from(tls.wss).accept(stream).await?;
        if let Some(verifier) = tls.client_verifier {
            // rustls takes the certificate of a resumed session as it was.
            let (_, connection) = stream.get_ref();
            let certificates = connection.peer_certificates().unwrap_or_default();
            let (first, chain) = certificates.split_first().ok_or(io::ErrorKind::PermissionDenied)?;
            verifier
                .verify_client_cert(first, chain, UnixTime::now())
                .map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
        }
        Ok(stream)
    }
}
