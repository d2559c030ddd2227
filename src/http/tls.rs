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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::net::certificate::{Source, TlsSettings, load};

    /// A broker's own certificate in this directory, and a client that trusts it.
    fn made_in(directory: &Path) -> (Tls, TlsConnector) {
        let settings = TlsSettings {
            source: Source::SelfMade {
                directory: directory.to_owned(),
            },
            client_ca: None,
        };
        let loaded = load(&settings, SystemTime::now()).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(loaded.certificate).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (loaded.tls, Arc::new(config).into())
    }

    /// Whether a client gets through, and what it is said.
    async fn greeted(acceptor: &Acceptor, connector: &TlsConnector) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.ok()?;
            stream.write_all(b"hello").await.ok()?;
            stream.shutdown().await.ok()
        };
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = connector.connect(name, stream).await.ok()?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await.ok()?;
            Some(said)
        };
        tokio::join!(server, client).1
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_that_of_the_next_handshake() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, trusts_first) = made_in(one.path());
        let (second, trusts_second) = made_in(other.path());
        let acceptor = Acceptor::new(first);
        assert_eq!(greeted(&acceptor, &trusts_first).await.as_deref(), Some("hello"));
        assert_eq!(greeted(&acceptor, &trusts_second).await, None);
        acceptor.clone().renew(second);
        assert_eq!(greeted(&acceptor, &trusts_second).await.as_deref(), Some("hello"));
        assert_eq!(greeted(&acceptor, &trusts_first).await, None);
    }
}
