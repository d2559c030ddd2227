//! The client's side of TLS, on rustls without its buffers.
//!
//! Owns    the connection's keys and the records whose end has not come.
//! Called  by `Layers`; `connect` brings a store of tickets.
//! Holds   - between records a connection holds no buffer: what an idle one costs is rustls' own state;
//!         - bytes for the broker come out in the order they must go.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    UnbufferedClientConnection,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::version::{TLS12, TLS13};
use rustls::{DigitallySignedStruct, Error, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme};

use super::Version;

/// Tickets kept at most: the oldest go first.
const TICKETS_MAX: usize = 16_384;
/// What a record adds to its bytes, with room to spare, and how many bytes it takes.
const RECORD_OVERHEAD: usize = 64;
const RECORD_BYTES: usize = 16 * 1024;

/// How the broker is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    Ca(PathBuf),
    Anybody,
}

/// What all connections of a run share. Without `tickets` every handshake is a full one.
pub fn config(trust: &Trust, version: Option<Version>, tickets: Option<Arc<Tickets>>) -> Result<Arc<ClientConfig>> {
    let versions: &[_] = match version {
        None => &[&TLS13, &TLS12],
        Some(Version::Tls12) => &[&TLS12],
        Some(Version::Tls13) => &[&TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .context("no cipher suite for these versions of TLS")?;
    let mut config = match trust {
        Trust::Ca(path) => builder.with_root_certificates(roots(path)?).with_no_client_auth(),
        Trust::Anybody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth(),
    };
    config.resumption = match tickets {
        Some(tickets) => Resumption::store(tickets),
        None => Resumption::disabled(),
    };
    Ok(Arc::new(config))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let name = path.display();
    let text = std::fs::read(path).with_context(|| format!("cannot read --tls-ca {name}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| anyhow!("--tls-ca {name} is not PEM: {error}"))?;
        roots
            .add(certificate)
            .with_context(|| format!("--tls-ca {name} holds a certificate that cannot vouch for others"))?;
    }
    if roots.is_empty() {
        bail!("--tls-ca {name} holds no certificate");
    }
    Ok(roots)
}

pub struct Tls {
    connection: UnbufferedClientConnection,
    /// The start of a record whose end has not come.
    records: Vec<u8>,
    is_open: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("is_open", &self.is_open)
            .finish_non_exhaustive()
    }
}

impl Tls {
    pub fn new(config: &Arc<ClientConfig>, name: &ServerName<'static>) -> Result<Tls> {
        let connection =
            UnbufferedClientConnection::new(config.clone(), name.clone()).context("TLS cannot be begun")?;
        Ok(Tls {
            connection,
            records: Vec::new(),
            is_open: false,
        })
    }

    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// The handshake used a ticket or session of an earlier connection.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Bytes of records that are not whole.
    pub fn held(&self) -> usize {
        self.records.len()
    }

    /// Bytes of the broker in (and decrypted in place); what they hold goes to `sink`, what must be answered to `out`. With
    /// no bytes it begins the handshake. An error completes the sentence "ADDRESS ...".
    pub fn take(
        &mut self,
        wire: &mut [u8],
        out: &mut Vec<u8>,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.records.is_empty() {
            let used = self.process(wire, out, &mut sink)?;
            self.records.extend_from_slice(&wire[used..]);
        } else {
            let mut records = std::mem::take(&mut self.records);
            records.extend_from_slice(wire);
            let used = self.process(&mut records, out, &mut sink)?;
            if used < records.len() {
                records.drain(..used);
                self.records = records;
            }
        }
        Ok(())
    }

    /// Gives the bytes used.
    fn process(
        &mut self,
        wire: &mut [u8],
        out: &mut Vec<u8>,
        sink: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let mut at = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(&mut wire[at..]);
            let mut is_waiting = false;
            match state.map_err(sentence)? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(sentence)?;
                        discard += record.discard;
                        sink(record.payload)?;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => grow(out, 1024, |space| match data.encode(space) {
                    Ok(n) => Ok(Ok(n)),
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size, .. })) => {
                        Ok(Err(required_size))
                    }
                    Err(error) => Err(anyhow!("made TLS fail: {error}")),
                })?,
                // What was encoded is in `out`, which goes before anything else.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::BlockedHandshake => is_waiting = true,
                ConnectionState::WriteTraffic(_) => {
                    self.is_open = true;
                    is_waiting = true;
                }
                ConnectionState::PeerClosed | ConnectionState::Closed => bail!("closed the connection"),
                state => bail!("made TLS reach an unknown state: {state:?}"),
            }
            at += discard;
            if is_waiting {
                return Ok(at);
            }
        }
    }

    /// `plain` as records. Only when open.
    pub fn put(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let room = plain.len() + (plain.len() / RECORD_BYTES + 1) * RECORD_OVERHEAD;
        self.write(out, room, |traffic, space| traffic.encrypt(plain, space))
    }

    /// Tells the broker that nothing more comes.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        self.write(out, RECORD_OVERHEAD, |traffic, space| traffic.queue_close_notify(space))
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        room: usize,
        write: impl Fn(&mut WriteTraffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<()> {
        loop {
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut self.records);
            match state.map_err(sentence)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return grow(out, room, |space| match write(&mut traffic, space) {
                        Ok(n) => Ok(Ok(n)),
                        Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size, .. })) => {
                            Ok(Err(required_size))
                        }
                        Err(error) => Err(anyhow!("made TLS fail: {error}")),
                    });
                }
                ConnectionState::EncodeTlsData(mut data) => grow(out, 1024, |space| match data.encode(space) {
                    Ok(n) => Ok(Ok(n)),
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size, .. })) => {
                        Ok(Err(required_size))
                    }
                    Err(error) => Err(anyhow!("made TLS fail: {error}")),
                })?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => bail!("closed the connection"),
            }
        }
    }
}

type WriteTraffic<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::client::ClientConnectionData>;

/// Lets `write` put its bytes behind those of `out`, given `room` for them or as much as it asks for.
fn grow(
    out: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<Result<usize, usize>>,
) -> Result<()> {
    let before = out.len();
    loop {
        out.resize(before + room, 0);
        match write(&mut out[before..])? {
            Ok(n) => {
                out.truncate(before + n);
                return Ok(());
            }
            Err(wanted) => room = wanted.max(room + 1),
        }
    }
}

/// Completes "ADDRESS ...".
fn sentence(error: Error) -> anyhow::Error {
    match error {
        Error::InvalidCertificate(cause) => anyhow!(
            "presented a certificate that does not stand: {cause} (--tls-ca must vouch for it, --tls-server-name be in it)"
        ),
        Error::AlertReceived(alert) => anyhow!("ended TLS with alert {alert:?}"),
        Error::InvalidMessage(cause) => anyhow!("sent what is not TLS: {cause:?} (is this its TLS port?)"),
        other => anyhow!("and this client cannot agree on TLS: {other}"),
    }
}

/// Believes every certificate and every signature.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What the one broker of a run gave to resume by: collected first, then used. A TLS 1.3 ticket is used once, the newest
/// first; a TLS 1.2 session again and again.
#[derive(Debug, Default)]
pub struct Tickets(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    is_used: bool,
    group: Option<NamedGroup>,
    session: Option<Tls12ClientSessionValue>,
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Tickets {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().expect("no thread panics while it holds this lock")
    }

    /// From here on connections resume.
    pub fn begin_use(&self) {
        self.kept().is_used = true;
    }

    /// Connections that can resume at the same time.
    pub fn count(&self) -> usize {
        let kept = self.kept();
        match &kept.session {
            Some(_) => usize::MAX,
            None => kept.tickets.len(),
        }
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.kept().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.kept().session = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let kept = self.kept();
        kept.session.clone().filter(|_| kept.is_used)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.kept().session = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.tickets.len() == TICKETS_MAX {
            kept.tickets.pop_front();
        }
        kept.tickets.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.kept();
        if kept.is_used { kept.tickets.pop_back() } else { None }
    }
}
